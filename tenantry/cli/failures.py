"""How a command ends badly: one clear line on stderr and an exit code of the contract."""

from __future__ import annotations

from typing import ClassVar, Final

DONE: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141


class CommandError(Exception):
    """The operation failed; the message is what the user reads."""

    exit_code: ClassVar[int] = FAILED


class DaemonUnreachableError(CommandError):
    """Nothing answers on the control socket."""

    exit_code: ClassVar[int] = UNREACHABLE


class ApiError(CommandError):
    """The daemon answered with a problem; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
