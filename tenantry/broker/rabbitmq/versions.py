"""Faults of RabbitMQ's versions that a tenant can exploit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import structlog

log = structlog.get_logger(__name__)

FIRST_SOUND: Final = 4
"""The first version in which no message stops dead-lettering. Before it, a header `x-death` that is
not a list of tables ends the process that moves a quorum queue's dead letters, and with it those of
all queues on the node, until the node is restarted; and then again, if the message is still
there."""

_MAJOR: Final = re.compile(r"[0-9]{1,4}")


class Versions:
    """Warns of faulty versions among a broker's nodes, once per version."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def saw(self, properties: Mapping[str, object] | None) -> None:
        """Check the version that a node reports as a connection opens."""
        version = str((properties or {}).get("version") or "")
        major = _MAJOR.match(version)
        if major is None or version in self._seen:
            return
        self._seen.add(version)
        if int(major[0]) < FIRST_SOUND:
            log.warning(
                "broker.warning",
                version=version,
                means="a message of any tenant's can stop dead-lettering for all tenants "
                "(a forged header x-death), until RabbitMQ is started again",
                remedy="upgrade to RabbitMQ 4.0 or newer where tenants are not to be trusted",
            )
