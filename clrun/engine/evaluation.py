"""Accuracy and confusion of every task."""

EVALUATE = 1024  # test samples a pass
