"""An extension of Griffe, which reads the code for docs/reference/api.md: the comment of a field is its docstring.

In clrun the shape and the meaning of a field stand in a comment, behind it or above it:

    y: Tensor  # (B,) int64: output number
"""

from typing import Any

from griffe import Attribute, Docstring, Extension


class FieldComments(Extension):
    """An extension that gives every attribute without a docstring the comment of its line, if there is one."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Read the comment of an attribute that Griffe has found."""
        text = comment_of(attr)
        if attr.docstring is None and text:
            attr.docstring = Docstring(text[:1].upper() + text[1:], parent=attr)


def comment_of(attribute: Attribute) -> str:
    """Return the comment behind an attribute, or the lines of comments directly above it."""
    if attribute.lineno is None or attribute.endlineno is None:
        return ""
    lines = attribute.lines_collection[attribute.filepath]
    _, mark, behind = lines[attribute.endlineno - 1].partition("  # ")
    if mark:
        return behind.strip()
    first = attribute.lineno - 1
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.strip().lstrip("# ") for line in lines[first : attribute.lineno - 1])
