"""What the filter costs, beside no filter, an empty one and one in Lua.

Run with ``PYTHONPATH=tests``: ``python -m bench.run`` for CPU time, ``python -m
bench.instructions`` for instructions; see docs/benchmarks.md.
"""
