"""The one exception a user meets: a sentence that says what is wrong and what to do."""

import signal


class CremaError(ValueError):
    """Bad input, described in one clear sentence. The command line prints it and exits with `status`."""

    status = 1


class Stopped(CremaError):
    """A run that was asked to stop by a signal, and goes on from its checkpoint when it is started again.

    Its exit status is the shell's: 128 + the number of the signal, so 143 for SIGTERM and 130 for SIGINT.
    """

    def __init__(self, sentence, number=signal.SIGTERM):
        super().__init__(sentence)
        self.status = 128 + number
