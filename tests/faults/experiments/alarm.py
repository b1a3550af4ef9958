"""The broker raises its memory alarm: it takes no messages, and still delivers those it has."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from tests.faults.rig import PATIENCE, Rig
from tests.ledger import DEFAULT, Draft
from tests.ledger.entries import entry
from tests.services_rabbitmq import LITTLE, MUCH, allow_memory
from tests.waiting import eventually


def run(rig: Rig, rounds: int) -> None:
    assert rig.node is not None
    rig.start()
    with rig.load(rate=300):
        for _ in rig.rounds(rounds):
            rig.wait_for_some()
            allow_memory(rig.node.directory, LITTLE)
            try:
                _blocked(rig)
                publish_again = _refused(rig)
                # Messages confirmed before the alarm are still delivered.
                rig.caught_up()
                rig.program.check_running()
                assert rig.program.status_of("/healthz") == 200
            finally:
                allow_memory(rig.node.directory, MUCH)
            rig.recover(time.monotonic())
            publish_again()
            rig.caught_up()


def _blocked(rig: Rig) -> None:
    """Wait until no client gets confirms any more."""

    def stands_still() -> bool:
        before = rig.ledger.confirmed
        time.sleep(0.5)
        return rig.ledger.confirmed == before

    eventually(stands_still, timeout=PATIENCE, what="a broker that confirms nothing")


def _refused(rig: Rig) -> Callable[[], None]:
    """Check that the API refuses a message and says why; return a function that publishes it again.

    The daemon consumes all the while, and so it is ready.
    """
    client = rig.ledger.clients[0]
    key = str(uuid.uuid4())
    # The broker may have the first copy, and accept it later: both have the same message id.
    draft = Draft(key=key, message_id=key, body=b"{}", content_type="application/json")
    client.sent[key] = entry(draft, DEFAULT)
    path, body = f"/tenants/{client.tenant_id}/messages", {"payload": {}, "id": key}
    answer = rig.program.call("POST", path, body)
    assert answer.status_code == 503, (answer.status_code, answer.text)
    assert "RabbitMQ takes no messages now: low on memory" in answer.json()["detail"], answer.text
    assert rig.program.status_of("/readyz") == 200

    def again() -> None:
        answer = rig.program.call("POST", path, body)
        assert answer.status_code == 202, (answer.status_code, answer.text)
        client.confirmed[key] = client.sent[key]

    return again
