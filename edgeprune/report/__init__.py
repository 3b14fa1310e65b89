"""Print results."""
