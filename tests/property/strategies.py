"""Tenants' commands and events as Hypothesis makes them up."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

from hypothesis import strategies as st

from tenantry.domain.commands import (
    AbandonProvisioning,
    AddTopics,
    ChangeLimits,
    Command,
    ConfirmDeleted,
    ConfirmProvisioned,
    ConfirmRepaired,
    CreateTenant,
    GrantConsumerAccess,
    GrantSqlAccess,
    ParkTenant,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
    ResumeTenant,
    RevokeConsumerAccess,
    RevokeSqlAccess,
    RotateCredentials,
)
from tenantry.domain.events import DeadLetterEvent, Event, PlacementEvent, SystemEvent, TenantEvent
from tenantry.domain.limits import RANGES, Limits
from tenantry.domain.topics import Ordering, Topic

TENANT = "acme"

topics = st.sampled_from(["events", "logs", "notifications", "a", "b_c", "d-e"])
bad_topics = st.sampled_from(["", "default", "a.b", "UPPER", "-a", "x" * 64])
workers = st.integers(-2, 70)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)

limit_changes = st.dictionaries(
    st.sampled_from([*RANGES, "nonsense"]),
    st.none() | st.integers(-2, 70) | st.sampled_from([most for _, most in RANGES.values()]),
    max_size=4,
)


def commands(tenant_id: str = TENANT) -> st.SearchStrategy[Command]:
    """Commands of one tenant, sensible ones and foolish ones."""
    one = st.just(tenant_id)
    named = st.one_of(topics, topics, topics, bad_topics)
    with_settings = st.builds(
        Topic,
        name=named,
        partitions=st.none() | workers,
        ordering=st.none() | st.sampled_from(Ordering),
    )
    topic_lists = st.lists(st.one_of(named, named, with_settings), max_size=5).map(tuple)
    return st.one_of(
        st.builds(
            CreateTenant,
            tenant_id=one,
            name=st.sampled_from(["Acme", "", " ", "x" * 200, "x" * 201, "a\nb", "Ünï"]),
            workers=workers,
            topics=topic_lists,
            partitions=workers,
        ),
        st.builds(CreateTenant, tenant_id=one, name=st.just("Acme"), workers=st.integers(1, 64)),
        st.builds(ConfirmProvisioned, tenant_id=one),
        st.builds(AbandonProvisioning, tenant_id=one, reason=text),
        st.builds(ResizeWorkers, tenant_id=one, workers=workers),
        st.builds(ChangeLimits, tenant_id=one, changes=limit_changes),
        st.builds(PauseTenant, tenant_id=one),
        st.builds(ParkTenant, tenant_id=one, reason=text),
        st.builds(ResumeTenant, tenant_id=one),
        st.builds(RotateCredentials, tenant_id=one),
        st.builds(GrantSqlAccess, tenant_id=one),
        st.builds(RevokeSqlAccess, tenant_id=one),
        st.builds(GrantConsumerAccess, tenant_id=one),
        st.builds(RevokeConsumerAccess, tenant_id=one),
        st.builds(AddTopics, tenant_id=one, topics=topic_lists),
        st.builds(RequestDeletion, tenant_id=one, retain=st.booleans()),
        st.builds(
            ConfirmRepaired,
            tenant_id=one,
            kinds=st.lists(text, max_size=3).map(tuple),
            found=st.lists(text, max_size=3).map(tuple),
        ),
        st.builds(
            ConfirmDeleted,
            tenant_id=one,
            queued=st.integers(0, 10**12),
            stored=st.integers(0, 10**12),
        ),
    )


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if hint is str:
        return text
    if hint is int:
        return st.integers(-(2**63), 2**63)
    if hint is bool:
        return st.booleans()
    if hint == str | None:
        return st.none() | text
    if hint == int | None:
        return st.none() | st.integers(-(2**63), 2**63)
    if hint is Limits:
        return _any_of(Limits)
    if hint == tuple[int, ...]:
        return st.lists(st.integers(1, 64), max_size=4).map(tuple)
    if hint == tuple[str, ...]:
        return st.lists(text, max_size=4).map(tuple)
    raise AssertionError(f"no strategy for {hint}")


def _any_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{one.name: _values(hints[one.name]) for one in fields(kind)})


EVENT_KINDS: tuple[type[Any], ...] = (
    *get_args(TenantEvent),
    *get_args(DeadLetterEvent),
    *get_args(PlacementEvent),
    *get_args(SystemEvent),
)

events: st.SearchStrategy[Event] = st.one_of(*map(_any_of, EVENT_KINDS))
"""Every kind of event, with any values of its fields' types."""
