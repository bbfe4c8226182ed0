module load/accuracy

go 1.22

require load v0.0.0

replace load => ../../load
