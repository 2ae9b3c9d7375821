"""Artifacts on disk: which type a path is, what is in it, whether it is whole, and a hash of its content."""
