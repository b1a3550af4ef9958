"""What the parent of several processes hears from its children."""

from __future__ import annotations

import signal
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tenantry.process.family import DRAIN, STOP
from tenantry.processes.parent import Parent


@pytest.mark.parametrize(
    ("said", "asked"),
    [(DRAIN, ["drain"]), (STOP, ["stop"]), (DRAIN + STOP, ["drain", "stop"]), (b"", [])],
    ids=["drain", "stop", "one right after the other", "nothing"],
)
def test_each_request_of_a_child_is_carried_out_also_when_two_come_at_once(
    said: bytes, asked: list[str]
) -> None:
    done: list[str] = []
    sent = {signal.SIGUSR2: "drain"}
    parent = SimpleNamespace(
        _signals=SimpleNamespace(ask_to_stop=lambda: done.append("stop")),
        _tell_all=lambda number: done.append(sent[number]),
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(said)
        Parent._hear(cast("Any", parent), cast("Any", SimpleNamespace(line=ours, number=1)))
    assert done == asked
