"""The one exception that means: the user can mend this."""


class UsageError(Exception):
    """A mistake of the user's. Its text is one paragraph: what is wrong, and what to type instead (exit code 2)."""
