"""`python -m tests.ledger`: publish and write down what is confirmed; check it afterwards."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from tests.ledger.audit import Audit, Findings
from tests.ledger.book import Ledger
from tests.ledger.entries import Entry, Sent
from tests.ledger.record import Record, read


def main() -> int:
    """Publish for a while, or check; exit 1 where something is missing, doubled or foreign."""
    parser = argparse.ArgumentParser(prog="python -m tests.ledger", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    publish = commands.add_parser("publish", help="as several tenants, with confirms")
    publish.add_argument(
        "tenants", nargs="+", metavar="ID", help="its AMQP URL is taken from $LEDGER_URL_<ID>"
    )
    publish.add_argument("--record", type=Path, required=True, help="the file to append to")
    publish.add_argument("--seconds", type=float, default=10.0)
    publish.add_argument("--rate", type=float, default=1000.0, help="messages/s for each tenant")
    check = commands.add_parser("check", help="the file against $DATABASE_URL and $RABBITMQ_URL")
    check.add_argument("--record", type=Path, required=True)
    check.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.command == "publish":
        return run_publish(options)
    return run_check(options)


def run_publish(options: argparse.Namespace) -> int:
    # Passwords come by the environment: every user of the machine may read a command line.
    if (urls := _environment(*map(_variable, options.tenants))) is None:
        return 2
    record = Record(options.record)
    ledger = Ledger(database_url="", record=record)
    tenants = list(zip(options.tenants, urls, strict=True))
    try:
        with ledger.publishing(tenants, rate=options.rate):
            time.sleep(options.seconds)
    finally:
        record.close()
        print(f"{ledger.confirmed} confirmed", file=sys.stderr)
    return 0


def run_check(options: argparse.Namespace) -> int:
    if (urls := _environment("DATABASE_URL", "RABBITMQ_URL")) is None:
        return 2
    entries, confirmed = read(options.record)
    by_tenant: dict[str, dict[str, Entry]] = {}
    for (tenant_id, key), entry in entries.items():
        by_tenant.setdefault(tenant_id, {})[key] = entry
    sent = Sent({tenant_id: [of] for tenant_id, of in by_tenant.items()})
    audit = Audit(*urls)
    audit.follow(sent)
    audit.look_into_queues(sent.tenants, _queues(by_tenant))
    found = audit.judge(sent, confirmed)
    if options.json:
        print(json.dumps(_document(audit, found, len(confirmed)), indent=2))
    else:
        print(f"{len(confirmed)} confirmed, {audit.stored} stored,")
        print(f"{audit.dead_lettered} dead letters, {audit.waiting} in queues: {found}")
    return 0 if found.clean else 1


def _document(audit: Audit, found: Findings, confirmed: int) -> dict[str, object]:
    return {
        "confirmed": confirmed,
        "stored": audit.stored,
        "dead_lettered": audit.dead_lettered,
        "queued": audit.waiting,
        "clean": found.clean,
        **found.counts(),
    }


def _queues(by_tenant: dict[str, dict[str, Entry]]) -> dict[str, list[str]]:
    """Name the queues a tenant's messages went to."""
    return {
        tenant_id: sorted({_queue(tenant_id, one) for one in entries.values()})
        for tenant_id, entries in by_tenant.items()
    }


def _queue(tenant_id: str, entry: Entry) -> str:
    target = entry.target
    if target.topic == "default":
        return f"tenant_{tenant_id}_queue"
    return f"tenant_{tenant_id}_stream.{target.topic}.{target.partition}"


def _environment(*variables: str) -> list[str] | None:
    unset = [one for one in variables if not os.environ.get(one)]
    if unset:
        print(f"error: not set: {', '.join(unset)}", file=sys.stderr)
        return None
    return [os.environ[one] for one in variables]


def _variable(tenant_id: str) -> str:
    return f"LEDGER_URL_{tenant_id.upper().replace('-', '_')}"


if __name__ == "__main__":
    sys.exit(main())
