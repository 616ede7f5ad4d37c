"""What a run leaves behind: metrics, tables, files, costs and plots."""
