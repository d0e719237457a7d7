"""From rows to batches: formats, chat templates, masking, packing, tasks, and an index-based sampler."""
