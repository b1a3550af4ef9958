"""The program with a tracer, which records calls of its functions while a test asks for that.

`python -m tests.acceptance.traced COMMAND…` runs `tenantry COMMAND…`. Calls are recorded by thread:
they show the way of one message, or one command, through the files.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
DIRECTORY = "TRACED_IN"
"""The variable that names the directory for the files `watch` and `trace`."""

POLL = 0.02

LOOKS = {"_look", "_look_at_load"}
"""Periodic functions, which are called whether or not there is a message to follow."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call into `file` on a thread; `callers` are the calling files, nearest first."""

    thread: str
    file: str
    function: str
    callers: tuple[str, ...]


class Trace:
    """Traces a program that runs in another process."""

    def __init__(self, directory: Path) -> None:
        self._watch, self._trace = directory / "watch", directory / "trace"

    @contextmanager
    def of(self, calls: list[Call], *, until: str = "") -> Iterator[None]:
        """Add the calls during the block to `calls`, in order, and later ones until `until`.

        `until` names functions, with commas between them; all of them have to be called, each on
        a thread of its own.
        """
        # The other process polls for this file, and must never find it half written.
        begun = self._watch.with_suffix(".begun")
        begun.write_text(until)
        begun.rename(self._watch)
        eventually(self._trace.exists, what="the trace has begun")
        yield
        self._watch.unlink()
        eventually(lambda: not self._trace.exists(), what="the trace has ended")
        done = self._trace.with_suffix(".json")
        calls += [Call(*row, tuple(callers)) for *row, callers in json.loads(done.read_text())]


class _Tracer:
    def __init__(self, directory: Path) -> None:
        self._watch, self._trace = directory / "watch", directory / "trace"
        self._calls: list[tuple[str, str, str, tuple[str, ...]]] = []
        self._noting = False
        self._until = ""
        self._names: dict[str, str | None] = {}

    def _own(self, path: str) -> str | None:
        """Return a program file's path from the root; None for any other file."""
        if path not in self._names:
            real = Path(os.path.realpath(path))
            own = real.is_relative_to(ROOT) and ".venv" not in real.parts
            name = str(real.relative_to(ROOT)) if own else ""
            self._names[path] = (
                name if name.startswith(("actors/", "tenantry/", "daemon")) else None
            )
        return self._names[path]

    def profile(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event != "call" or not self._noting:
            return
        file = self._own(frame.f_code.co_filename)
        if file is None:
            return
        above = tuple(_above(frame))
        if any(one.f_code.co_name in LOOKS for one in (frame, *above)):
            return
        callers = tuple(filter(None, (self._own(one.f_code.co_filename) for one in above)))
        thread = threading.current_thread().name
        self._calls.append((thread, file, frame.f_code.co_qualname, callers))

    def _come(self) -> bool:
        wanted = set(filter(None, self._until.split(",")))
        return wanted <= {one[2] for one in self._calls}

    def run(self) -> None:
        while True:
            time.sleep(POLL)
            wanted = self._watch.exists()
            if wanted and not self._noting:
                self._calls.clear()
                self._until = self._watch.read_text()
                self._noting = True
                self._trace.touch()
            elif self._noting and not wanted and self._come():
                self._noting = False
                self._trace.with_suffix(".json").write_text(json.dumps(self._calls))
                self._trace.unlink()


def _above(frame: FrameType) -> Iterator[FrameType]:
    above = frame.f_back
    while above is not None:
        yield above
        above = above.f_back


def main() -> None:
    tracer = _Tracer(Path(os.environ[DIRECTORY]))
    threading.Thread(target=tracer.run, name="tracer", daemon=True).start()
    threading.setprofile(tracer.profile)
    from tenantry.cli.main import main as tenantry

    tenantry()


if __name__ == "__main__":
    sys.exit(main())
