"""The parts of `bench_gguf.py`: `reader` runs where llama-cpp-python is, `compare` sets both sides in a row."""
