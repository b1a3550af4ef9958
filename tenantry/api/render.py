"""Writes answers: values of the ports as JSON bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import orjson
from starlette.responses import Response

from tenantry.api.times import format_time
from tenantry.audit.balance import Audit
from tenantry.control.port import ActorStatus, Outcome, SystemStatus, TenantRuntime, TermStatus
from tenantry.dead_letters.port import DeadLetter, Preview
from tenantry.dead_letters.replay import Reprocessed
from tenantry.domain import names
from tenantry.domain.tenant import TenantState
from tenantry.isolation.port import IsolationReport
from tenantry.journal.codec import CODEC
from tenantry.journal.port import RecordedEvent
from tenantry.messages.port import StoredMessage


def dumps(value: object) -> bytes:
    """Write JSON; times come out as RFC 3339, in UTC."""
    return orjson.dumps(value, default=_default, option=orjson.OPT_PASSTHROUGH_DATETIME)


def json_response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with JSON that has been written already."""
    return Response(body, status_code=status, media_type="application/json", headers=headers)


_TOLD: Final = "it is in trouble; the operator can see why"


def tenant(
    state: TenantState, runtime: TenantRuntime | None, *, to_admin: bool = True
) -> dict[str, Any]:
    """Show a tenant as it is now; without a runtime nothing of it is running.

    What its trouble is may name what is others': that is told to admins.
    """
    trouble = None if runtime is None else runtime.trouble
    return _tenant(
        state,
        trouble=trouble if to_admin or trouble is None else _TOLD,
        workers_current=0 if runtime is None else runtime.workers_current,
        messages_pending=None if runtime is None else runtime.pending,
    )


def past_tenant(state: TenantState) -> dict[str, Any]:
    """Show a tenant as it was; what was running then is not known."""
    return _tenant(state, workers_current=None, messages_pending=None)


def outcome(result: Outcome) -> dict[str, Any]:
    """Show what a command has done, with the credentials it made, if it made any."""
    shown = tenant(result.tenant, result.runtime)
    if result.credentials is not None:
        credentials = result.credentials
        kind = "amqp_url" if credentials.amqp_url else "postgres_url"
        shown["credentials"] = {
            "username": credentials.username,
            "password": credentials.password,
            kind: credentials.url,
        }
    return shown


def sql_access(result: Outcome) -> dict[str, Any]:
    """Show the credentials of a database role, this once."""
    credentials = result.sql_credentials
    if credentials is None:
        raise RuntimeError("a grant of SQL access came back without credentials")
    return {
        "tenant_id": result.tenant.tenant_id,
        "username": credentials.username,
        "password": credentials.password,
        "url": credentials.url,
    }


def audit(found: Audit) -> dict[str, Any]:
    """Show what an audit has found."""
    account, queues = found.account, found.queues
    return {
        "tenant_id": found.tenant_id,
        "balanced": found.balanced,
        "accepted": found.accepted,
        "stored": account.stored,
        "duplicates": account.duplicates,
        "dead_lettered": account.dead_lettered,
        "in_flight": found.in_flight,
        "waiting": None if queues is None else queues.ready,
        "removed": account.removed,
        "rows": account.rows,
        "dead_letters": {
            "kept": account.kept,
            "replayed": account.replayed,
            "discarded": account.discarded,
            "missing": account.missing,
            "listed": account.listed,
            "queued": None if queues is None else queues.dead_letters,
        },
        "differences": [
            {"kind": one.kind.value, "expected": one.expected, "found": one.found, "text": one.text}
            for one in found.differences
        ],
        "moving": found.moving,
        "uncounted": found.uncounted,
    }


def message(row: StoredMessage) -> dict[str, Any]:
    """Show a stored message. Payload and headers are JSON text already, and stay as they are."""
    shown: dict[str, Any] = {
        "id": row.id,
        "tenant_id": row.tenant_id,
        "position": row.position,
        "topic": row.topic,
        "partition": row.partition,
    }
    if row.payload is not None:
        shown["payload"] = orjson.Fragment(row.payload)
    if row.body is not None:
        shown["body"] = base64.b64encode(row.body).decode()
    shown["content_type"] = row.content_type
    shown["headers"] = None if row.headers is None else orjson.Fragment(row.headers)
    shown["created_at"] = row.created_at
    return shown


def message_page(text: bytes, *, next_cursor: str | None, follow_cursor: str | None) -> bytes:
    """Write a page of messages that are written already, with commas between them."""
    cursors = dumps({"next_cursor": next_cursor, "follow_cursor": follow_cursor})
    return b'{"data":[%b],%b' % (text, cursors[1:])


def dead_letter(letter: DeadLetter, *, payload: bool = True) -> dict[str, Any]:
    """Show a dead letter. Its id is the message's own, if it has one."""
    shown: dict[str, Any] = {
        "id": str(letter.id) if letter.message_id is None else letter.message_id,
        "letter_id": str(letter.id),
        "tenant_id": letter.tenant_id,
        "message_id": letter.message_id,
        "topic": letter.topic,
        "partition": letter.partition,
        "reason": letter.reason,
        "error": letter.error,
        "first_error": letter.first_error,
        "attempts": letter.attempts,
        "replays": letter.replays,
        "size": letter.size,
        "content_type": letter.content_type,
        "published_at": letter.published_at,
        "dead_lettered_at": letter.dead_lettered_at,
    }
    if payload:
        shown["body"] = None if letter.body is None else base64.b64encode(letter.body).decode()
        shown["headers"] = None if letter.headers is None else orjson.Fragment(letter.headers)
    return shown


def reprocessed(what: str, done: Reprocessed) -> dict[str, Any]:
    """Show what was done to dead letters; what was not done only where there is something."""
    shown: dict[str, Any] = {what: done.count}
    if done.worn:
        shown["replayed_too_often"] = done.worn
    if done.refused:
        shown["refused_by_broker"] = done.refused
    if not done.complete:
        shown["complete"] = False
    return shown


def letters_preview(preview: Preview) -> dict[str, Any]:
    """Show what would be done to dead letters."""
    return {
        "dry_run": True,
        "as_of": preview.as_of,
        "count": preview.count,
        "replayed_too_often": preview.worn,
        "places": [
            {"topic": topic, "partition": partition, "count": count}
            for (topic, partition), count in sorted(preview.places.items())
        ],
    }


def event(recorded: RecordedEvent) -> dict[str, Any]:
    """Show an event of the journal."""
    type_name, schema_version, data = CODEC.encode(recorded.event)
    return {
        "position": recorded.position,
        "stream": recorded.stream,
        "version": recorded.version,
        "id": recorded.id,
        "tenant_id": recorded.event.tenant_id or None,
        "type": type_name,
        "schema_version": schema_version,
        "data": data,
        "actor": recorded.metadata.actor,
        "correlation_id": recorded.metadata.correlation_id,
        "causation_id": recorded.metadata.causation_id,
        "recorded_at": recorded.recorded_at,
    }


def isolation(report: IsolationReport) -> dict[str, Any]:
    """Show a proof of isolation."""
    return {
        "isolated": report.holds and not report.unjudged,
        "leaks": [str(one) for one in report.leaks],
        "denials": [str(one) for one in report.denials],
        "unjudged": list(report.unjudged),
        "open": list(report.open),
        "checks": [
            {
                "tenant": one.tenant_id,
                "owner": one.owner,
                "action": one.action,
                "target": one.target,
                "allowed": one.allowed,
                "holds": one.holds,
            }
            for one in report.checks
        ],
    }


def status(system: SystemStatus) -> dict[str, Any]:
    """Show how everything is."""
    return {
        "state": system.state.value,
        "ready": system.ready,
        "reasons": system.reasons,
        "started_at": system.started_at,
        "version": system.version,
        "pid": system.pid,
        "role": system.role.value,
        "term": None if system.term is None else _term(system.term),
        "tree": _actor(system.tree),
        "abandoned": system.abandoned,
        "tenants": {tenant_id: _runtime(one) for tenant_id, one in system.tenants.items()},
    }


def _term(term: TermStatus) -> dict[str, Any]:
    return {
        "number": term.number,
        "host": term.host,
        "pid": term.pid,
        "since": term.since,
    }


def _tenant(
    state: TenantState,
    *,
    workers_current: int | None,
    messages_pending: int | None,
    trouble: str | None = None,
) -> dict[str, Any]:
    return {
        "id": state.tenant_id,
        "name": state.name,
        "state": state.lifecycle.value,
        "workers": state.workers,
        "topics": state.topics,
        "partitions": state.partitions,
        "stream": names.exchange_name(state.tenant_id),
        "queue": names.queue_name(state.tenant_id),
        "version": state.version,
        "incarnation": state.incarnation,
        "created_at": state.created_at,
        "updated_at": state.updated_at,
        "workers_current": workers_current,
        "messages_pending": messages_pending,
        "parked": state.parked,
        "parked_at": state.parked_at,
        "trouble": trouble,
    }


def _actor(actor: ActorStatus) -> dict[str, Any]:
    return {
        "name": actor.name,
        "kind": actor.kind,
        "state": actor.state,
        "mailbox": actor.mailbox,
        "restarts": actor.restarts,
        "children": [_actor(child) for child in actor.children],
    }


def _runtime(runtime: TenantRuntime) -> dict[str, Any]:
    return {
        "tenant_id": runtime.tenant_id,
        "workers_current": runtime.workers_current,
        "consuming": runtime.consuming,
        "unsettled": runtime.unsettled,
        "held": runtime.held,
        "rate": runtime.rate,
        "pending": runtime.pending,
        "stored": runtime.stored,
        "duplicates": runtime.duplicates,
        "dead_lettered": runtime.dead_lettered,
        "parked": runtime.parked,
        "parked_at": runtime.parked_at,
        "trouble": runtime.trouble,
    }


def _default(value: object) -> object:
    if isinstance(value, datetime):
        return format_time(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")
