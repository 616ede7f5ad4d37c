"""Values as text: the one way in which clrun prints a setting."""


def format_value(value: object) -> str:
    """Return a value as it is typed on the command line: null, true, 0.1, 1234567, [100,100], a text as it is.

    Floats get up to 15 significant digits, so that what is printed reads back as the value that was typed.
    """
    if hasattr(value, "item"):  # a NumPy scalar, as pandas reads it from a CSV file
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{format_value(v)}' for key, v in value.items())}}}"
    return str(value)
