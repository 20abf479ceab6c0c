"""The error of the person who asked: what was given cannot be used, and the message says what to do about it."""


class UserError(ValueError):
    """What was asked cannot be done; the message says what was wrong, where, and what to do."""
