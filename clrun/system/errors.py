"""The exceptions that the command line reports without a traceback."""


class Paragraph(Exception):
    """An exception that says all in its text."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows (IPython asks for it): the text, without the frames of clrun."""
        return [f"{type(self).__name__}: {self}"]


class UsageError(Paragraph):
    """A mistake of the user. Its text is one paragraph: what is wrong, and what to type instead (exit code 2)."""


class UnfitRun(UsageError):
    """A mistake in the settings of one run that shows while it is trained, maybe together with others."""

    def __init__(self, text: str, run: int) -> None:
        super().__init__(text)
        self.run = run  # its place in the stack


class RunsFailed(Paragraph):
    """Runs that were started did not succeed. Its text says which and why (exit code 1)."""
