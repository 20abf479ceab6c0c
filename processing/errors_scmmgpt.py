"""The error for unusable input; its message says what was wrong and what to do."""


class UserError(ValueError):
    """What was asked cannot be done; the message says what was wrong, where, and what to do."""
