"""Published results beside ours: tables, jobs, executors, records, the results page."""
