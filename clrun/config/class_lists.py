"""Lists of classes on the command line: the names keep the text that was typed.

Hydra's grammar reads 1.0, 1e3, 2021_05, true and null as values of other types, and takes neither R&B nor x(1) nor a=b
as a text. So each name is put into quotes before Hydra sees it.
"""

from clrun.data.split import quoted_name, read_lists, typed_lists

KEY = "split.classes"


def as_typed(text: str) -> str:
    """Return an override in which every name of split.classes is in quotes; another override as it is."""
    key, _, value = text.partition("=")
    lists = read_lists(value) if key.lstrip("+") == KEY else None
    if lists is None:
        return text
    return f"{key}={','.join(typed_lists(each, quoted_name) for each in lists)}"
