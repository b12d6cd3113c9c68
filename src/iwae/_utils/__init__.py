"""Internal helpers that every package uses."""
