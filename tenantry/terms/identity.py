"""Who a daemon is to the others, over its restarts."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path
from typing import Final

from tenantry.terms.port import Holder

FILE: Final = "instance"


def holder_of(state_dir: Path, control_socket: Path) -> Holder:
    """Say who this process is, once it has the control socket's lock.

    Who has that lock has outlived every earlier process with the same socket. The file in
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
