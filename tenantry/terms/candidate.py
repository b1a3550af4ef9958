"""A daemon that would hold the term: who it is, and when it may take it."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from tenantry.terms.lease import Term, TermWatch, time_since_boot
from tenantry.terms.port import Holder, Standing, Terms
from tenantry.unavailable import UnavailableError

log: Final = structlog.get_logger("terms")


class Candidate:
    """A daemon that would hold the term; its owner calls `try_to_lead` again and again."""

    def __init__(
        self,
        terms: Terms,
        me: Holder,
        *,
        now: Callable[[], float] = time.monotonic,
        boot_time: Callable[[], float] = time_since_boot,
    ) -> None:
        self.me = me
        self.standing: Standing | None = None
        """How the term stood when last seen; None before that."""
        self.trouble: str | None = None
        """Why the term can't be seen or taken, as long as it can't."""
        self._terms = terms
        self._watch = TermWatch(me)
        self._now = now
        self._boot_time = boot_time

    def try_to_lead(self) -> Term | None:
        """Look at the term, and take it if it is free; None while it is not.

        Takes a few seconds at most, and never raises for a place that is away.
        """
        try:
            standing = self._terms.look()
        except UnavailableError as error:
            self._watch.interrupted()
            self._note_trouble(str(error))
            return None
        self.standing = standing
        if not self._watch.may_take(standing, self._now()):
            self._note_trouble(None)
            return None
        asked_at = self._boot_time()
        try:
            taken = self._terms.take(standing, self.me)
        except UnavailableError as error:
            self._note_trouble(str(error))
            return None
        self._note_trouble(None)
        if taken is None:
            return None
        self.standing = taken
        log.info("term.taken", number=taken.number, after=standing.holder.host or None)
        return Term(taken, asked_at=asked_at, now=self._boot_time)

    def _note_trouble(self, trouble: str | None) -> None:
        if trouble is not None and self.trouble is None:
            log.warning("term.out_of_reach", error=trouble)
        self.trouble = trouble


FILE: Final = "instance"


def holder_of(state_dir: Path, control_socket: Path) -> Holder:
    """Say who this process is, once it has the control socket's lock.

    The process that has that lock has outlived every earlier one with the same socket. The file in
    `state_dir` keeps machines apart whose paths and names are alike.
    """
    host = socket.gethostname()
    return Holder(
        instance=f"{_kept(state_dir / FILE)}@{host}:{control_socket}", host=host, pid=os.getpid()
    )


def _kept(file: Path) -> str:
    try:
        with file.open("x", encoding="ascii") as made:
            made.write(f"{uuid.uuid4()}\n")
    except FileExistsError:
        pass
    return file.read_text(encoding="ascii").strip()
