"""Adapters: a low-rank correction beside a frozen base."""
