"""How a command ends: one number for each way, and the exception that carries a sentence to it."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of ``merlin``; 130 and 143 are what a shell expects of Ctrl-C and of SIGTERM."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    FAILURES = 3
    CANNOT_RUN = 4
    HANGUP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class CliError(Exception):
    """Ends the command with ``code``; the message is all that the user sees, so it says what to do.

    Attributes:
        code: One of `Exit`.
    """

    code: Exit

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code
