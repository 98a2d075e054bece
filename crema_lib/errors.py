"""The one exception a user meets: a sentence that says what is wrong and what to do."""


class CremaError(ValueError):
    """Bad input, described in one clear sentence. The command line prints it and exits with status 1."""
