"""Full matrices trained through a low-rank view of their gradients."""
