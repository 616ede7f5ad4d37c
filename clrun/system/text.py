"""Values as text: the one way in which clrun prints a setting."""

import json


def format_value(value: object) -> str:
    """Return a value as it is typed on the command line: null, true, 0.1, 1234567, [100,100], a text as it is.

    What is printed of a float reads back as the same number: it gets 15 significant digits, and 17 where it needs them.
    """
    if hasattr(value, "item"):  # a NumPy scalar, as pandas reads it from a CSV file
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        short = f"{value:.15g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{format_value(v)}' for key, v in value.items())}}}"
    return str(value)


def format_cell(value: object) -> str:
    """Return the value of a key that was read from a CSV file, where lists are JSON, as `format_value` does; '' for an
    empty cell."""
    if value is None or value != value:  # nan alone differs from itself
        return ""
    if isinstance(value, str) and value.startswith("["):
        try:
            return format_value(json.loads(value))
        except ValueError:
            return value  # a text that begins with a bracket, as in a table made by hand
    return format_value(value)


def format_short(value: object) -> str:
    """Return a value as `format_value` does, with floats in 15 digits at most, as folders were named before it."""
    if isinstance(value, list):
        return f"[{','.join(map(format_short, value))}]"
    return f"{value:.15g}" if isinstance(value, float) else format_value(value)
