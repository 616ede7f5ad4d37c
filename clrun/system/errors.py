"""The exceptions that the command line reports without a traceback."""


class UsageError(Exception):
    """A mistake of the user. Its text is one paragraph: what is wrong, and what to type instead (exit code 2)."""


class RunsFailed(Exception):
    """Runs of a sweep have crashed; the others are done. Its text lists them (exit code 1)."""
