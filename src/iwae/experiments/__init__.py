"""What papers published, and ours beside it: tables, jobs, executors, records, the results page."""
