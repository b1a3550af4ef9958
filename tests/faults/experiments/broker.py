"""The broker is stopped or killed, and started again; the daemon stays up."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from tenantry.broker.port import Outgoing
from tenantry.broker.rabbitmq.publishing import RabbitPublishing
from tests.brokers import running
from tests.faults.rig import PATIENCE, Rig
from tests.ledger import DEFAULT, Draft, Noted
from tests.ledger.entries import entry


def run(rig: Rig, rounds: int) -> None:
    assert rig.node is not None
    rig.start()
    pid, url = rig.program.process.pid, rig.node.url
    publishing = nullcontext() if rig.broker == "iggy" else _publishing(rig)
    with rig.load(rate=300), publishing:
        # A quorum queue that is younger than a second does not survive a kill of its node.
        rig.ledger.wait_confirmed(30 if rig.light else 500)
        for number in rig.rounds(rounds):
            rig.wait_for_some()
            if number % 2:
                rig.node.kill()
            else:
                rig.node.stop()
            rig.wait_not_ready()
            assert rig.program.status_of("/healthz") == 200
            rig.node.start()
            assert rig.node.url == url, "another port, or another password"
            rig.recover(time.monotonic(), serves=True)
            rig.caught_up()
    rig.program.check_running()
    assert rig.program.process.pid == pid
    assert rig.program.create("after").shown["state"] == "active"


@contextmanager
def _publishing(rig: Rig) -> Iterator[None]:
    """Publish beside the block by the daemon's code: messages must survive the broker's end.

    The daemon itself takes no messages while it is not ready.
    """
    tenant = rig.tenants[0]
    noted = Noted(tenant_id=tenant.id)
    rig.ledger.clients.append(noted)
    publishing = RabbitPublishing(rig.program.host.url)
    begun, over = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def publish() -> None:
        try:
            while not over.wait(0.02):
                key = str(uuid.uuid4())
                draft = Draft(key=key, message_id=key, body=b"{}", content_type="application/json")
                noted.sent[key] = entry(draft, DEFAULT)
                message = Outgoing(
                    exchange=tenant.stream,
                    routing_key=DEFAULT.routing_key,
                    body=draft.body,
                    message_id=key,
                    content_type="application/json",
                )
                publishing.publish([message], timeout=PATIENCE)
                noted.confirmed[key] = noted.sent[key]
                begun.set()
        except Exception as error:  # noqa: BLE001 - raised where the block ends
            failed.append(error)

    with running(publishing):
        thread = threading.Thread(target=publish)
        thread.start()
        try:
            assert begun.wait(PATIENCE), failed
            yield
        finally:
            over.set()
            thread.join(2 * PATIENCE)
    assert not failed, failed
