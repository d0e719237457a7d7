"""The parts of `bench_rescue.py`: `detector` for what notices loops, `bed` for what ends them, and what they use."""
