"""Noticing, token by token, that a text repeats itself."""
