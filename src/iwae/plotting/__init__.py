"""Pictures, and the report of runs."""
