"""The loop that everybody reads, and what it needs: schedule, checkpoints, records, meter."""
