"""What is printed while runs train and when they have ended."""
