"""The exceptions that the command line reports without a traceback."""


class UsageError(Exception):
    """A mistake of the user. Its text is one paragraph: what is wrong, and what to type instead (exit code 2)."""


class RunsFailed(Exception):
    """Runs that were started did not succeed. Its text says which and why (exit code 1)."""
