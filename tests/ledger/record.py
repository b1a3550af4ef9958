"""The ledger's file: a line before each message is sent, and one for each confirm."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tests.ledger.entries import Entry, Target


class Record:
    """Appends to a file; written lines outlive the process, even if it is killed.

    Several threads may write: each line is written in one piece.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def close(self) -> None:
        """Force everything to the disk."""
        os.fsync(self._file)
        os.close(self._file)

    def sent(self, tenant_id: str, key: str, entry: Entry) -> None:
        """Note a message that is about to be sent."""
        self._write({"sent": key, "tenant": tenant_id, **asdict(entry)})

    def confirmed(self, tenant_id: str, keys: Iterable[str]) -> None:
        """Note the messages that the broker has confirmed."""
        self._write({"confirmed": list(keys), "tenant": tenant_id})

    def _write(self, line: dict[str, object]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read(path: Path) -> tuple[dict[tuple[str, str], Entry], set[tuple[str, str]]]:
    """Give what was sent, by tenant and key, and which of it was confirmed."""
    sent: dict[tuple[str, str], Entry] = {}
    confirmed: set[tuple[str, str]] = set()
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break  # the writer was killed in the middle of its last line
            fields = json.loads(line)
            tenant_id = fields.pop("tenant")
            if "confirmed" in fields:
                confirmed.update((tenant_id, key) for key in fields["confirmed"])
            else:
                key = fields.pop("sent")
                sent[tenant_id, key] = Entry(**fields | {"target": Target(**fields["target"])})
    return sent, confirmed
