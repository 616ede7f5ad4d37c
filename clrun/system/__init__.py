"""The machine and its files, without any learning: errors, paths, atomic files, locks, signals, memory, energy."""
