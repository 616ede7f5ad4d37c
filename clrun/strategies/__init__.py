"""The continual-learning methods, one per file."""
