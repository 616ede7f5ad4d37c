"""Arithmetic on whole numbers."""


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up, for b > 0, without the rounding of floating-point division."""
    return -(-a // b)
