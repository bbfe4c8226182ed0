"""What the filter costs, beside no filter, an empty one and one in Lua.

Run with ``PYTHONPATH=tests``: ``python -m bench.run``; see docs/benchmarks.md.
"""
