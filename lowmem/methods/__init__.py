"""Training methods: each owns its step; the loop owns everything else."""
