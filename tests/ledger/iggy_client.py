"""A tenant's own client on Apache Iggy: a batch is confirmed by the answer to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from tenantry.broker.iggy.client import Access, Session
from tenantry.broker.iggy.publishing import made, send
from tenantry.broker.iggy.topology import routed
from tenantry.broker.port import BrokerError, BrokerUnavailableError, Outgoing
from tenantry.domain import names
from tests.ledger.batch_client import BatchClient
from tests.ledger.sender import Message

ANSWER = 10.0
"""Seconds the server may take to confirm a batch."""


class IggyClient(BatchClient):
    """Publishes as the tenant's user that may send, with a request for each partition."""

    away = (BrokerUnavailableError,)
    wrong = (BrokerError,)

    @contextmanager
    def _connect(self) -> Iterator[Session]:
        session = Session(Access.of(self._url))
        try:
            yield session
        finally:
            session.close()

    def _publish(self, connection: Session, batch: Sequence[Message]) -> None:
        stream = names.exchange_name(self.tenant_id)
        until = time.monotonic() + ANSWER
        by_place = sorted(batch, key=lambda one: one.entry.target.routing_key)
        for key, part in groupby(by_place, key=lambda one: one.entry.target.routing_key):
            messages = [made(_outgoing(stream, key, one)) for one in part]
            send(connection, routed(stream, key), messages, until)


def _outgoing(stream: str, key: str, message: Message) -> Outgoing:
    draft = message.draft
    assert not isinstance(draft.message_id, bytes)
    assert not isinstance(draft.content_type, bytes)
    return Outgoing(
        exchange=stream,
        routing_key=key,
        body=draft.body,
        message_id=draft.message_id,
        content_type=draft.content_type,
        headers={**(draft.headers or {}), "timestamp_in_ms": int(time.time() * 1000)},
    )
