module load/accuracy

go 1.24

require load v0.0.0

replace load => ../../load
