"""Pretrained models: found by name, loaded into bounded memory, and ready to be trained or run."""
