"""What a page of the manual has to be run, in its order, and what of it is not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

WHY: Final = {
    "hosts": "names servers that are the reader's own",
    "iggy": "needs an Apache Iggy server; tests/acceptance/test_iggy.py has the same steps",
    "long": "takes minutes, or runs these tests",
    "machines": "needs several machines",
    "root": "changes the system that it is run on",
}
"""Reasons for which a block is not run."""

NOT_HERE: Final = {
    **dict.fromkeys(("make",), "a target of the repository; CI runs it"),
    **dict.fromkeys(("pip", "pipx", "uvx"), "fetches packages"),
    **dict.fromkeys(("sudo",), "changes the system it is run on"),
    **dict.fromkeys(("systemctl", "journalctl"), "needs systemd"),
    **dict.fromkeys(("podman",), "needs an engine for containers"),
    **dict.fromkeys(("rabbitmqctl",), "is the broker's own, and deletes"),
}
"""Commands that are passed over wherever they stand, by their first word."""

READING: Final = {
    "audit", "events", "healthcheck", "list", "messages", "nodes", "show", "stats", "status", "top",
}  # fmt: skip
CHANGING: Final = {"drain", "undrain"}

LANGUAGES: Final = ("sh", "console", "sql")
NO_COMMANDS: Final = ("python", "toml", "yaml", "json", "http", "text", "")
"""Languages of blocks that hold no commands."""

_BLOCK: Final = re.compile(
    r"^<!-- manual: (?P<marker>.*?) *-->$"
    r"|^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$"
    r"|^<!--.*?-->$",
    re.MULTILINE | re.DOTALL,
)
_HEREDOC: Final = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
_INDENTED: Final = re.compile(
    r"(?:^|\n)\n((?: {4}[^\n]*\n)+)",
)


class PageError(ValueError):
    """A page says something of its commands that can't be made sense of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command as it is typed, and what is shown below it, which may be nothing at all.

    `shown` is None where nothing is said of its output; `at` is where that stands in the page, as
    offsets of characters. `ends` is the exit code. Of SQL `url` is the variable that says where.
    """

    text: str
    line: int
    shown: str | None = None
    at: tuple[int, int] = (0, 0)
    ends: int = 0
    url: str = ""

    @property
    def program(self) -> str:
        """Its first word that is no variable."""
        words = (one for one in self.text.split() if not re.match(r"^\(*\w+=", one))
        return Path(next(words, "").lstrip("(")).name

    @property
    def stays(self) -> bool:
        """Whether it goes on beside those that follow, as in a terminal of its own."""
        if self.url or self.program != "tenantry" or "\n" in self.text:
            return False
        words = shlex.split(self.text, comments=True)
        return bool({"run", "--keep", "--follow"} & set(words))

    @property
    def reads(self) -> bool:
        """Whether it changes nothing, and so may be run again."""
        words = self.text.split()
        return (
            self.program == "tenantry" and bool(READING & set(words)) and not CHANGING & set(words)
        )

    @property
    def excuse(self) -> str | None:
        """Why it is not run, wherever it stands."""
        return None if self.url else NOT_HERE.get(self.program)


@dataclass(slots=True, kw_only=True)
class Page:
    """A page's commands in their order, and whether its daemon has a RabbitMQ."""

    path: Path
    text: str
    rabbitmq: bool = False
    commands: list[Command] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT)) if self.path.is_relative_to(ROOT) else "page"


def read(path: Path, text: str | None = None) -> Page:
    """Read a page. Raises `PageError` where its markers, or its blocks, are not understood."""
    page = Page(path=path, text=path.read_text(encoding="utf-8") if text is None else text)
    ends, excused, url = 0, False, ""
    for found in _BLOCK.finditer(page.text):
        marker, language = found["marker"], found["language"]
        line = page.text.count("\n", 0, found.start()) + 1
        if marker is not None:
            match marker.split(maxsplit=2):
                case ["daemon", "embedded" | "rabbitmq" as kind]:
                    page.rabbitmq = kind == "rabbitmq"
                    page.commands.append(Command(text="tenantry run", line=line))
                case ["as", variable]:
                    url = variable
                case ["first", *_]:
                    shell = marker.removeprefix("first")
                    page.commands += _of_shell(shell, line, 0)
                case ["ends", "with", code] if code.isdecimal():
                    ends = int(code)
                case ["not", "run:", reason] if reason in WHY:
                    page.reasons.add(reason)
                    excused = True
                case _:
                    raise PageError(f"{page.name}:{line}: what is 'manual: {marker}'?")
            continue
        if language is None:
            continue
        if language not in (*LANGUAGES, *NO_COMMANDS) or _commands(found["text"], language):
            raise PageError(
                f"{page.name}:{line}: commands stand in blocks of {', '.join(LANGUAGES)}; others"
                f" are of {', '.join(NO_COMMANDS)} or without a language, and hold none"
            )
        if language in LANGUAGES and not excused:
            if found["indent"]:
                raise PageError(f"{page.name}:{line}: an indented block is not run")
            if language == "sql" and not url:
                raise PageError(f"{page.name}:{line}: SQL is somebody's: say 'manual: as VARIABLE'")
            match language:
                case "sh":
                    page.commands += _of_shell(found["text"], line + 1, ends)
                case "console":
                    start = found.start("text")
                    page.commands += _of_console(found["text"], line + 1, ends, start)
                case "sql":
                    page.commands.append(Command(text=found["text"], line=line + 1, url=url))
        ends, excused, url = 0, False, ""
    return page


def _of_shell(text: str, line: int, ends: int) -> Iterator[Command]:
    """Cut a script into its commands: a line each, but for what goes on in the next one."""
    lines = iter(text.splitlines())
    for number, first in enumerate(lines, line):
        whole = [first]
        if not first.strip() or first.lstrip().startswith("#"):
            continue
        while whole[-1].endswith("\\"):
            whole.append(next(lines, ""))
        if (until := _HEREDOC.search(first)) is not None:
            for one in lines:
                whole.append(one)
                if one == until[1]:
                    break
        yield Command(text="\n".join(whole), line=number, ends=ends)


def _of_console(text: str, line: int, ends: int, start: int) -> Iterator[Command]:
    """Cut a session into its commands and what each has printed."""
    typed: list[str] = []
    shown: list[str] = []
    at = begins = start
    where = line

    def one() -> Iterator[Command]:
        if typed:
            said = "".join(shown)
            yield Command(
                text="\n".join(typed),
                line=where,
                shown=said,
                at=(begins, begins + len(said)),
                ends=ends,
            )

    for number, row in enumerate(text.splitlines(keepends=True), line):
        at += len(row)
        if row.startswith("$ "):
            yield from one()
            typed, shown, begins, where = [row[2:].rstrip("\n")], [], at, number
        elif typed and not shown and row.startswith("> "):
            typed.append(row[2:].rstrip("\n"))
            begins = at
        elif not typed:
            raise PageError(f"line {number}: a session begins with a command, after '$ '")
        else:
            shown.append(row)
    yield from one()


def _commands(text: str, language: str = "") -> list[str]:
    """Give the lines that look like commands, where they are not to be."""
    words = {"tenantry", "curl", "python", "export", *NOT_HERE} if not language else set()
    return [one.strip() for one in text.splitlines() if one.split()[:1] and one.split()[0] in words]


def not_fenced(text: str) -> list[str]:
    """Give the lines that look like commands and stand in an indented block, which is not run."""
    plain = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    plain = re.sub(r"^<!--.*?-->$", "", plain, flags=re.MULTILINE | re.DOTALL)
    return [line for block in _INDENTED.findall(plain) for line in _commands(block)]


@cache
def everywhere() -> tuple[Path, ...]:
    """Give the pages of the manual, and those beside it that a reader follows."""
    return (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *(ROOT / name / "README.md" for name in ("systemd", "deploy")),
        *sorted((ROOT / "examples").rglob("*.md")),
    )


def with_commands() -> tuple[Path, ...]:
    """Give those pages of which at least one command is run."""
    return tuple(
        path for path in everywhere() if any(one.excuse is None for one in read(path).commands)
    )
