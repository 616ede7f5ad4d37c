"""The exceptions that the command line answers without a traceback."""


class UsageError(Exception):
    """A mistake of the user's. Its text is one paragraph: what is wrong, and what to type instead (exit code 2)."""


class RunsFailed(Exception):
    """Runs of a sweep crashed, the others are done. Its text lists them (exit code 1)."""
