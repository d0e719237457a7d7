"""A run folder as one page that can be read anywhere: curves, memory, samples, and everything needed to repeat it."""
