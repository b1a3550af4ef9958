"""The ledger: what the broker has confirmed to tenants, and whether exactly that is there.

A library for tests, and a command: `python -m tests.ledger --help`.
"""

from tests.ledger.audit import Audit, Findings
from tests.ledger.book import LIGHT, Ledger, Noted
from tests.ledger.client import Client
from tests.ledger.entries import (
    DEFAULT,
    KEY_HEADER,
    Draft,
    Entry,
    Fate,
    Maker,
    Target,
    meaning,
    mixed,
    sha256,
)
from tests.ledger.record import Record
from tests.ledger.sender import WINDOW

__all__ = [
    "DEFAULT",
    "KEY_HEADER",
    "LIGHT",
    "WINDOW",
    "Audit",
    "Client",
    "Draft",
    "Entry",
    "Fate",
    "Findings",
    "Ledger",
    "Maker",
    "Noted",
    "Record",
    "Target",
    "meaning",
    "mixed",
    "sha256",
]
