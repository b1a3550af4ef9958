"""What is to be known of RabbitMQ's versions: faults of its own that a tenant can make use of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import structlog

log = structlog.get_logger(__name__)

FIRST_SOUND: Final = 4
"""The first of which no message stops dead-lettering. Before, a header `x-death` that is no list of
tables ends the process that moves a quorum queue's dead letters, and with it those of all queues of
the node, until it is started again; and then once more, if the message is still there."""

_MAJOR: Final = re.compile(r"[0-9]{1,4}")


class Versions:
    """Warns of the versions that a broker's nodes have, once of each."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def saw(self, properties: Mapping[str, object] | None) -> None:
        """Hear what a node tells of itself as a connection begins."""
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
