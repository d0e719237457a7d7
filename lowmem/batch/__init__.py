"""Many runs from one file: expanded, planned, packed by memory, and remembered through crashes and reboots."""
