"""What a command prints to: standard output that takes any text, and says when it takes no more."""

from __future__ import annotations

import io
import os
import sys
from typing import Final

from tenantry.cli.failures import CommandError

_ASCII: Final = "ascii, the rest escaped"


class OutputError(CommandError):
    """Standard output takes no more."""


class _Output(io.TextIOWrapper):
    """Standard output: what its encoding lacks is escaped, and a failure is one clear line."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding; click would take a stream that says it is ASCII for misconfigured."""
        real = super().encoding
        return _ASCII if real.lower() in {"ascii", "us-ascii", "ansi_x3.4-1968"} else real

    def write(self, text: str, /) -> int:
        """Write."""
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _refused(error) from error

    def flush(self) -> None:
        """Write what is waiting."""
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _refused(error) from error


def prepare() -> None:
    """See that the process has its three streams, and that any text can be printed."""
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        # Where one is closed, the next file or socket would be taken for it. What is printed
        # to a closed output fails, as it would have; what is logged is lost.
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    closed = sys.stdout is None
    if closed:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    # Not where a test has put another in its place.
    if (closed or sys.stdout is sys.__stdout__) and isinstance(sys.stdout, io.TextIOWrapper):
        encoding, at_once = sys.stdout.encoding, sys.stdout.line_buffering
        through = sys.stdout.write_through
        sys.stdout = sys.__stdout__ = _Output(  # type: ignore[misc]
            sys.stdout.detach(),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=at_once,
            write_through=through,
        )


def give_up_output() -> None:
    """Throw away what is still to be printed: the interpreter would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def takes(text: str) -> bool:
    """Tell whether standard output can show all of a text as it is."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode("ascii" if encoding == _ASCII else encoding)
    except UnicodeEncodeError:
        return False
    return True


def _refused(error: OSError) -> OutputError:
    return OutputError(f"can't write to standard output: {error.strerror or error}")
