"""A search for hyperparameters by validation accuracy."""
