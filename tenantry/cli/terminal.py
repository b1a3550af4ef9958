"""A terminal that a program has to itself for a while: reading keys, drawing safe text, leaving.

Whether Ctrl-C, SIGTERM or an exception ends the program, the terminal is restored.
"""

from __future__ import annotations

import os
import re
import select
import signal
import termios
import tty
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

ESCAPE_SECONDS: Final = 0.05
"""How long the rest of a key's escape sequence may take; later bytes are another key."""

_SEQUENCE: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[@-~])")
_BEGUN: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|O)?")
_LONGEST: Final = 32
_NAMED: Final = {
    b"A": "up", b"B": "down", b"C": "right", b"D": "left", b"H": "home", b"F": "end",
    b"1~": "home", b"4~": "end", b"7~": "home", b"8~": "end", b"5~": "page-up", b"6~": "page-down",
}  # fmt: skip
_CONTROLS: Final = {
    0x08: "backspace", 0x7F: "backspace", 0x0A: "enter", 0x0D: "enter", 0x15: "clear",
}  # fmt: skip

_RIGHT_TO_LEFT: Final = frozenset({"R", "AL", "AN"})
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"


class Line(NamedTuple):
    """A line of the screen, and how it looks."""

    text: str
    style: str = ""


class Keys:
    """Turns a terminal's bytes into names of keys, in however many pieces the bytes come.

    A character is its own name. Unknown keys are left out.
    """

    def __init__(self) -> None:
        self._left = b""

    @property
    def begun(self) -> bool:
        """Whether the last bytes may be the beginning of an escape sequence."""
        return bool(self._left)

    def feed(self, sent: bytes) -> list[str]:
        """Add bytes, and return the keys that are complete now."""
        self._left += sent
        found: list[str] = []
        while self._left:
            if self._left[0] != 0x1B:
                char, self._left = self._left[0], self._left[1:]
                if 0x20 <= char < 0x7F:
                    found.append(chr(char))
                elif char in _CONTROLS:
                    found.append(_CONTROLS[char])
            elif (match := _SEQUENCE.match(self._left)) is not None:
                self._left = self._left[match.end() :]
                if (name := _NAMED.get(match[0][2:])) is not None:
                    found.append(name)
            elif _BEGUN.fullmatch(self._left) and len(self._left) <= _LONGEST:
                break
            else:
                self._left = self._left[1:]
                found.append("escape")
        return found

    def end(self) -> list[str]:
        """Return the keys in a sequence that was begun and will not be completed."""
        if not self._left:
            return []
        left, self._left = self._left[1:], b""
        return ["escape", *self.feed(left)]


def safe(text: str, *, ascii_only: bool = False) -> str:
    """Return a text in which each character takes cells of its own, from left to right.

    Escaped are control characters, characters that combine with others or have no width, and
    those that are written from right to left.
    """
    return "".join(
        char if _stands(char, ascii_only) else char.encode("unicode_escape").decode()
        for char in text
    )


def _stands(char: str, ascii_only: bool) -> bool:
    if char.isascii() or ascii_only:
        return char.isascii() and char.isprintable()
    return (
        char.isprintable()
        and not unicodedata.category(char).startswith("M")
        and unicodedata.bidirectional(char) not in _RIGHT_TO_LEFT
    )


def cells(text: str) -> int:
    """Count the cells that a safe text takes."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def cut(text: str, width: int, mark: str) -> str:
    """Cut a safe text to `width` cells; `mark`, which takes one, says that something is missing."""
    return text if cells(text) <= width else _begin(text, width - 1) + mark if width > 0 else ""


def shortened(text: str, width: int, mark: str) -> str:
    """Shorten a safe text to `width` cells, with `mark` in place of its middle if need be."""
    if cells(text) <= width:
        return text
    if width < 5:
        return cut(text, width, mark)
    back = (width - 1) // 2
    return _begin(text, width - 1 - back) + mark + _begin(text[::-1], back)[::-1]


def _begin(text: str, width: int) -> str:
    taken = 0
    for at, char in enumerate(text):
        taken += cells(char)
        if taken > width:
            return text[:at]
    return text


class Terminal:
    """The terminal while the program has it: draws lines, reads keys.

    `wake` ends a wait, from any thread. Ctrl-Z sets `suspended`, for the owner to give the terminal
    back before it stops.
    """

    def __init__(self, console: Console, keyboard: int | None) -> None:
        self.suspended = False
        self._console = console
        self._keyboard = keyboard
        self._keys = Keys()
        self._ear, self._mouth = os.pipe()
        for end in (self._ear, self._mouth):
            os.set_blocking(end, False)

    def close(self) -> None:
        """Close the pipe that wakes a wait."""
        os.close(self._ear)
        os.close(self._mouth)

    @property
    def size(self) -> tuple[int, int]:
        """The terminal's columns and lines, at least one of each."""
        width, height = self._console.size
        return max(1, width), max(1, height)

    @property
    def has_keys(self) -> bool:
        """Whether keys can be read."""
        return self._keyboard is not None

    def wake(self, *_signal: int | FrameType | None) -> None:
        """End a wait."""
        with suppress(BlockingIOError):  # a full pipe wakes it already
            os.write(self._mouth, b"\0")

    def draw(self, lines: Sequence[Line]) -> None:
        """Show these lines and nothing else; each begins at its own place, whatever its width."""
        from rich.segment import Segment
        from rich.style import Style

        width, height = self.size
        shown = [*lines[:height], *[Line("")] * (height - len(lines))]
        self._console.update_screen_lines(
            [
                [Segment(text + " " * (width - cells(text)), Style.parse(style) if style else None)]
                for text, style in shown
            ]
        )

    def wait(self) -> list[str]:
        """Wait for keys or a wake-up; return the keys. `EOFError` if the terminal is gone."""
        keyboard, patience = self._keyboard, ESCAPE_SECONDS if self._keys.begun else None
        watched = [self._ear] if keyboard is None else [self._ear, keyboard]
        ready = select.select(watched, [], [], patience)[0]
        if self._ear in ready:
            os.read(self._ear, 4096)
        if keyboard is not None and keyboard in ready:
            try:
                sent = os.read(keyboard, 4096)
            except OSError as error:
                raise EOFError from error
            if not sent:
                raise EOFError
            return self._keys.feed(sent)
        return [] if ready else self._keys.end()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take the terminal: an alternate screen, no cursor, each key as it is pressed."""
        self.suspended = False
        with ExitStack() as stack:
            for number, handler in (
                (signal.SIGWINCH, self.wake), (signal.SIGTSTP, self._suspend),
                (signal.SIGTERM, _end),
            ):  # fmt: skip
                if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                    signal.signal(number, handler)
                    stack.callback(signal.signal, number, before or signal.SIG_DFL)
            if self._keyboard is not None:
                stack.enter_context(_each_key(self._keyboard))
            stack.callback(self._write, _WRAP)
            self._write(_NO_WRAP)
            # If drawing is cut short, leaving the screen writes the rest.
            stack.enter_context(self._console.screen())
            yield

    def _write(self, control: str) -> None:
        self._console.file.write(control)
        self._console.file.flush()

    def _suspend(self, *_signal: int | FrameType | None) -> None:
        self.suspended = True
        self.wake()


@contextmanager
def _each_key(keyboard: int) -> Iterator[None]:
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard, termios.TCSANOW)
        yield
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(keyboard, termios.TCSANOW, before)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
