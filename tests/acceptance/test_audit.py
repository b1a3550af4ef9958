"""Audits: the running program's counts, compared with a real database and broker."""

from __future__ import annotations

import pika
import psycopg

from tests.acceptance.program import Program, Tenant, in_background
from tests.acceptance.test_metrics import publish, scrape
from tests.waiting import eventually

OUTCOMES = ("stored", "duplicates", "dead_lettered")


def pour(tenant: Tenant, count: int) -> None:
    """Publish so many messages; every tenth is a repetition, every twentieth bad.

    Wait for confirms: a quorum queue may lose messages that it has not taken when the channel
    closes.
    """
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for number in range(count):
            body = b"no JSON" if number % 20 == 19 else b"{}"
            identity = str(number - 1 if number % 10 == 9 else number)
            channel.basic_publish(
                tenant.stream,
                "default",
                body,
                pika.BasicProperties(message_id=identity, content_type="application/json"),
            )


def test_three_rows_deleted_by_hand_show_as_three(program: Program) -> None:
    program.settings["TENANTRY_AUDIT_EVERY_SECONDS"] = "0.5"
    program.start()
    tenant, other = program.create(), program.create("other")
    pour(tenant, 100)
    eventually(
        lambda: [program.runtime(tenant)[name] for name in OUTCOMES] == [90, 5, 5], what="outcomes"
    )
    before = program.cli("audit", "--json")
    assert before.code == 0, before.stdout
    shown = {one["tenant_id"]: one for one in before.json["tenants"]}[tenant.id]
    figures = [shown[name] for name in ("accepted", "stored", "duplicates", "dead_lettered")]
    assert figures == [100, 90, 5, 5]
    assert shown["dead_letters"]["listed"] == 5
    with psycopg.connect(program.database_url) as connection:
        connection.execute(
            "DELETE FROM public.messages WHERE tenant_id = %s AND id IN ('0', '50', '98')",
            [tenant.id],
        )
    after = program.cli("audit")
    assert after.code == 1
    line = f"3 rows of tenant {tenant.id} are missing: counted 90 stored, 87 rows"
    assert after.stdout.splitlines()[-1] == line
    assert program.cli("audit", other.id).code == 0
    eventually(
        lambda: scrape(program).value("tenantry_audit_difference", tenant_id=tenant.id) == 3,
        what="the metric",
    )
    assert line in [one["difference"] for one in program.wait_logged("audit.difference")]
    assert program.stop() == 0


def test_it_adds_up_while_messages_pour_in_and_after_letters_are_worked_off(
    running: Program,
) -> None:
    tenant = running.create()
    with in_background(lambda: pour(tenant, 400)):
        for _ in range(3):
            during = running.cli("audit", tenant.id, "--json")
            assert during.code == 0, during.stdout
    eventually(lambda: running.runtime(tenant)["dead_lettered"] == 20, what="dead letters")
    path = f"/tenants/{tenant.id}/dead-letters"
    ids = [one["letter_id"] for one in running.get(f"{path}?limit=8")["data"]]
    assert running.call("DELETE", path, {"ids": ids}).json() == {"discarded": 8}
    assert running.call("POST", f"{path}/replay", {"all": True}).json() == {"replayed": 12}
    eventually(lambda: running.runtime(tenant)["dead_lettered"] == 32, what="dead letters again")
    shown = running.cli("audit", tenant.id, "--json")
    assert shown.code == 0, shown.stdout
    letters = shown.json["tenants"][0]["dead_letters"]
    assert letters == {
        "kept": 32, "replayed": 12, "discarded": 8, "missing": 0, "listed": 12, "queued": 12,
    }  # fmt: skip
    # Purged behind the daemon's back, those included that it has in hand just now, to look at them.
    # The broker's counts are up to 5 s old.
    with running.connect_admin() as connection:
        channel, purged = connection.channel(), [0]

        def purge() -> bool:
            purged.append(channel.queue_purge(tenant.dead_letters).method.message_count)
            return sum(purged) == 12

        eventually(purge, what="the dead letters are purged")
    found = eventually(lambda: running.get(f"/tenants/{tenant.id}/audit")["differences"])
    assert [(one["kind"], one["expected"], one["found"]) for one in found] == [
        ("dead_letter_queue", 12, 0)
    ]


def test_a_deleted_tenant_leaves_nothing_to_audit(running: Program) -> None:
    tenant = running.create()
    publish(tenant, "1", "2")
    eventually(lambda: running.runtime(tenant)["stored"] == 2)
    retained = running.create("retained")
    publish(retained, "1")
    eventually(lambda: running.runtime(retained)["stored"] == 1)
    assert running.call("DELETE", f"/tenants/{tenant.id}").status_code == 204
    assert running.call("DELETE", f"/tenants/{retained.id}?retain=true").status_code == 204
    assert running.cli("audit", "--json").json == {"balanced": True, "tenants": []}
    missing = running.cli("audit", tenant.id)
    assert (missing.code, missing.complaint) == (1, "error: there is no such tenant")
    assert running.get(f"/tenants/{retained.id}/audit")["balanced"] is True
