"""R runs trained by one loop: step, steppers, stack, evaluation and health."""
