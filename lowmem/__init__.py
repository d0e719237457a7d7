"""Finetune, quantize and serve language models inside a memory budget."""

__version__ = "0.1.0"
