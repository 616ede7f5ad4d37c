"""From files to batches: data sets, tasks, streams and samplers."""
