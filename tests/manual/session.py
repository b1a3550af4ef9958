"""A reader at a machine of their own: a home, a terminal, and what was left running in others."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg

from tests import preloaded, scratch, services_postgres
from tests.acceptance.program import COMMAND
from tests.manual.outputs import agrees, difference
from tests.manual.pages import Command, Page
from tests.ports import free_port
from tests.services_rabbitmq import own_node
from tests.waiting import DEADLINE, eventually

BIN: Final = Path(sys.executable).parent
HOME: Final = "/home/you"
"""The reader's home, as pages show it."""

PORT: Final = 8080
"""The port that pages name, where a run takes a free one."""

STATE: Final = ".local/state/tenantry"
PLACES: Final = "/opt/tenantry/bin", "/var/lib/tenantry", "/srv/archive"
"""Where pages have the program and its state once it is installed, and what they write."""

READY: Final = ('"daemon.ready"', "Everything keeps running")
PAUSE: Final = 0.2
NEEDS_A_SHELL: Final = re.compile(r"[|&;<>()$`*?~\n{}]|^\w+=")


class Session:
    """Runs a page's commands in its order, each with what the ones before have left."""

    def __init__(self, page: Page, patience: float = DEADLINE) -> None:
        self.page = page
        self._patience = patience
        self.printed: list[tuple[Command, str]] = []
        """What each command has printed of which the page shows what it prints."""
        self._stack = ExitStack()
        self._home = scratch.short("tnt-manual-")
        self._port = free_port()
        self._beside: list[tuple[Command, subprocess.Popen[bytes] | preloaded.Popen, Path]] = []
        self._places = BIN, self._home / STATE, self._home / "archive"
        self._cwd = self._home
        self._environment = {
            "HOME": str(self._home),
            "LANG": "C.UTF-8",
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "TMPDIR": str(self._home / "tmp"),
            "TENANTRY_SERVER_PORT": str(self._port),
            "TENANTRY_NODE_NAME": "vm",
        }

    def __enter__(self) -> Self:
        (self._home / "tmp").mkdir()
        (self._home / ".venv").symlink_to(sys.prefix)
        self._lay_a_database()
        if self.page.rabbitmq:
            # Of its own: users are a whole node's, and pages call their tenants by plain names.
            node = self._stack.enter_context(own_node())
            self._environment |= {
                "RABBITMQ_URL": node.url,
                "RABBITMQ_MANAGEMENT_URL": node.management_url,
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for command, process, output in reversed(self._beside):
                self._end(command, process, output, judge=error is None)
        finally:
            for _, process, _ in self._beside:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            self._stack.close()
            shutil.rmtree(self._home, ignore_errors=True)

    def run(self, command: Command) -> None:
        """Run a command to its end, or until it is ready where it stays.

        Fails where it does not end as the page says, or prints something else than is shown.
        """
        text = command.text.replace(f":{PORT}", f":{self._port}")
        for shown, true in zip(PLACES, self._places, strict=True):
            text = text.replace(shown, str(true))
        if command.url:
            with psycopg.connect(self._environment[command.url], autocommit=True) as connection:
                connection.execute(text)
            return
        if command.stays:
            self._start(command, text)
            return
        until = time.monotonic() + self._patience
        while True:
            code, printed = self._once(command, text)
            agreed = command.shown is None or agrees(command.shown, printed)
            if (agreed and code == command.ends) or not command.reads or time.monotonic() > until:
                break
            # Readers take their time; what they have sent is stored meanwhile.
            time.sleep(PAUSE)
        where = f"{self.page.name}:{command.line}: {command.text}"
        assert code == command.ends, f"{where}\nended with {code}\n{printed}"
        if command.shown is not None:
            self.printed.append((command, printed))

    def _once(self, command: Command, text: str) -> tuple[int, str]:
        simple = command.program == "tenantry" and not NEEDS_A_SHELL.search(text)
        code, printed = self._in_process(text) if simple else self._in_shell(text)
        return code, printed.replace(f":{self._port}", f":{PORT}").replace(str(self._home), HOME)

    def wrong(self) -> str:
        """Give where what was printed is not what is shown; nothing where all agrees."""
        return "".join(
            f"{self.page.name}:{command.line}: {command.text}\n{difference(command.shown, printed)}"
            for command, printed in self.printed
            if command.shown is not None and not agrees(command.shown, printed)
        )

    def written(self) -> str:
        """Give the page with what was printed in the place of what does not agree."""
        text = self.page.text
        for command, printed in reversed(self.printed):
            if command.shown is not None and not agrees(command.shown, printed):
                begins, ends = command.at
                text = text[:begins] + printed.rstrip("\n") + "\n" * bool(printed) + text[ends:]
        return text

    def _lay_a_database(self) -> None:
        """Have the embedded PostgreSQL of the reader's daemon begin with data that are made."""
        place = self._home / STATE / "postgres"
        place.parent.mkdir(parents=True)
        place.parent.chmod(0o700)
        services_postgres.own_server(place)

    def _in_process(self, text: str) -> tuple[int, str]:
        """Run one of the program's commands alone, by what has loaded it already."""
        arguments = shlex.split(text, comments=True)[1:]
        ended = preloaded.run(
            [*COMMAND, *arguments], cwd=self._cwd, env=self._environment, timeout=DEADLINE
        )
        return ended.returncode, ended.stdout + ended.stderr

    def _in_shell(self, text: str) -> tuple[int, str]:
        """Run anything else; what it sets, and where it goes, holds for those that follow."""
        after = self._home / "tmp" / ".environment"
        ended = subprocess.run(
            ["bash", "-c", f"trap 'pwd > {after}; env -0 >> {after}' EXIT\nset -ae\n{text}"],
            cwd=self._cwd,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        place, _, variables = after.read_text().partition("\n")
        self._cwd = Path(place)
        pairs = (one.partition("=") for one in variables.split("\0") if one)
        self._environment = {key: value for key, _, value in pairs if key not in NOT_KEPT}
        after.unlink()
        return ended.returncode, ended.stdout

    def _start(self, command: Command, text: str) -> None:
        """Start what stays, and wait until it is ready, where it is a daemon."""
        words = shlex.split(text, comments=True)
        variables = dict(one.split("=", 1) for one in words if re.match(r"^\w+=", one))
        arguments = words[len(variables) + 1 :]
        output = self._home / "tmp" / f"{len(self._beside)}.out"
        start = preloaded.Popen if preloaded.available() else subprocess.Popen
        with output.open("wb") as file:
            process = start(
                [*COMMAND, *arguments],
                cwd=self._cwd,
                env={**self._environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._beside.append((command, process, output))
        if "--follow" in arguments:
            return

        def ready() -> bool:
            said = output.read_text(errors="replace")
            assert process.poll() is None, f"{command.text} has ended:\n{said}"
            return sum(said.count(one) for one in READY) >= _processes(words)

        eventually(ready, what=f"{command.text} is ready")

    def _end(
        self,
        command: Command,
        process: subprocess.Popen[bytes] | preloaded.Popen,
        output: Path,
        *,
        judge: bool,
    ) -> None:
        process.send_signal(signal.SIGINT)
        code = process.wait(DEADLINE)
        said = output.read_text(errors="replace")
        assert not judge or "Traceback" not in said, f"{command.text}\n{said}"
        follows = "--follow" in command.text
        assert not judge or code == (130 if follows else 0), f"{command.text}: {code}\n{said}"


NOT_KEPT: Final = ("_", "SHLVL", "PWD", "OLDPWD")


def _processes(words: list[str]) -> int:
    return int(words[words.index("--processes") + 1]) if "--processes" in words else 1


def follow(page: Page, patience: float = DEADLINE) -> Session:
    """Run all of a page's commands; give what was printed.

    What only reads is run again, for as many seconds as there is patience, until it prints what is
    shown. Raises `AssertionError` where a command does not end as it should.
    """
    with Session(page, patience) as session:
        for command in page.commands:
            if command.excuse is None:
                session.run(command)
    return session
