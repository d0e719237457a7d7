"""Memory before it is used: live bytes by phase, on real or on fake tensors."""
