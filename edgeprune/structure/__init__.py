"""Channels, heads and layers leave: groups of slices, what to remove, and the surgery."""
