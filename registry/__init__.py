"""What was built, from what, and whether it is intact."""
