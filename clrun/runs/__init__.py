"""One run from its settings to its files: prepare, build, train, record, save."""
