"""Statistics over the seeds of many runs, as tables and plots."""
