"""How the broker's objects differ from what a tenant needs, and who owns a user.

Users belong to a whole server, which several installations may use. Each installation (one database
and what runs on it) has a name, and its users carry it as a mark. A user with another's mark, or
with none and not provably ours, is refused and never taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from tenantry.broker import topology as layout
from tenantry.broker.port import PasswordHash, TenantTopology
from tenantry.broker.survey import LOST_PASSWORD, Drift, DriftKind, Survey, User
from tenantry.domain import names
from tenantry.domain.names import UserKind

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")
"""The pattern of an installation's name."""

NO_LIMITS: Final[Mapping[str, object]] = MappingProxyType({})

_PREFIX: Final = "tenantry-"
_MARK: Final = re.compile(rf"\b{_PREFIX}({NAME.pattern})")


def differences(
    topology: TenantTopology,
    password: PasswordHash | None,
    survey: Survey,
    *,
    consuming: bool,
    limits: Mapping[str, object] = NO_LIMITS,
) -> tuple[Drift, ...]:
    """List what is missing or different of a tenant; empty if all is as it should be.

    A queue may be of either type: the setting is for queues made from now on. Without a known
    `password`, the user's is not compared. Consumers are checked if the tenant is `consuming`.
    `limits` are the broker's settings that enforce the tenant's limits.
    """
    if not survey.copies:
        topology = replace(topology, consumer_access=False, ordered=())
    return (
        *_objects(topology, survey),
        *_user(topology.tenant_id, UserKind.PRODUCER, password, survey),
        *_limits(topology.tenant_id, limits, survey),
        *(_consumers(topology, survey) if consuming else ()),
    )


def group_queues(survey: Survey) -> Mapping[str, list[str]]:
    """Return the queues of tenants' consumer groups, by tenant."""
    found: dict[str, list[str]] = {}
    for queue in survey.queues:
        if layout.is_group_queue(queue):
            found.setdefault(layout.owner(queue) or "", []).append(queue)
    return found


def group_differences(
    topology: TenantTopology,
    password: PasswordHash | None,
    survey: Survey,
    queues: Mapping[str, list[str]],
) -> tuple[Drift, ...]:
    """List the differences of the user that reads a tenant's topics, beside `differences`.

    Without consumer access, neither this user nor group queues should exist: what is found is a
    leftover. `queues` are the survey's `group_queues`.
    """
    if topology.consumer_access:
        return tuple(_user(topology.tenant_id, UserKind.CONSUMER, password, survey))
    name = names.username(topology.tenant_id, UserKind.CONSUMER)
    user = survey.users.get(name)
    left = [f"user {name}"] if user is not None and _left_here(user, survey.installation) else []
    left += [f"queue {queue}" for queue in queues.get(topology.tenant_id, ())]
    return tuple(Drift(kind=DriftKind.LEFTOVER, found=f"{one} was left") for one in left)


def owners(survey: Survey) -> Mapping[str, list[str]]:
    """Return the tenants that objects on the broker are named after, each with these objects."""
    found: dict[str, list[str]] = {}
    for kind, things in (
        ("queue", survey.queues),
        ("exchange", survey.exchanges),
        ("user", survey.users),
    ):
        for name in things:
            tenant_id = layout.owner_of(name)
            if kind == "user" and not _left_here(survey.users[name], survey.installation):
                continue
            if tenant_id is not None and not _is_anothers(tenant_id, survey):
                found.setdefault(tenant_id, []).append(f"{kind} {name}")
    return found


def is_marked(tenant_id: str, survey: Survey) -> bool:
    """Return whether a tenant's user exists with our mark alone, or on a broker without marks."""
    user = survey.users.get(names.username(tenant_id))
    return user is not None and (not survey.installation or user.marks == {survey.installation})


def _is_anothers(tenant_id: str, survey: Survey) -> bool:
    """Return whether another installation, sharing our virtual host or database, has the tenant."""
    user = survey.users.get(names.username(tenant_id))
    others = frozenset() if user is None else user.marks - {survey.installation}
    return bool(others) and user is not None and user.permissions is not None


def _left_here(user: User, installation: str) -> bool:
    """Return whether a user belongs to this installation; others are ignored."""
    if not installation:
        return user.permissions is not None
    return user.marks == {installation}


def _objects(topology: TenantTopology, survey: Survey) -> Iterator[Drift]:
    wanted = {one: layout.plan(topology, one) for one in _types(topology, survey)}
    some = next(iter(wanted.values()))
    for exchange in some.exchanges:
        kind = survey.exchanges.get(exchange)
        if kind is None:
            yield Drift(kind=DriftKind.EXCHANGE, found=f"exchange {exchange} was missing")
        elif kind != "direct":
            found = f"exchange {exchange} is {kind}, not direct"
            yield Drift(kind=DriftKind.ARGUMENTS, found=found)
    for alternatives in zip(*(one.queues for one in wanted.values()), strict=True):
        name = alternatives[0].name
        arguments = survey.queues.get(name)
        if arguments is None:
            yield Drift(kind=DriftKind.QUEUE, found=f"queue {name} was missing")
        elif all(arguments != one.arguments for one in alternatives):
            found = f"queue {name} has other arguments than wanted"
            yield Drift(kind=DriftKind.ARGUMENTS, found=found)
    for binding in some.bindings:
        if (binding.exchange, binding.queue, binding.routing_key) not in survey.bindings:
            found = (
                f"binding {binding.exchange} -{binding.routing_key}-> {binding.queue} was missing"
            )
            yield Drift(kind=DriftKind.BINDING, found=found)


def _types(topology: TenantTopology, survey: Survey) -> tuple[layout.QueueType, ...]:
    """Return the queue types to compare with: mostly all queues of a tenant have the same one."""
    found = {
        survey.queues[name].get("x-queue-type")
        for name in (
            names.dead_letter_queue_name(topology.tenant_id),
            *(one.name for one in topology.queues()),
        )
        if name in survey.queues
    }
    if found == {"quorum"}:
        return ("quorum",)
    return ("classic",) if found == {"classic"} else ("quorum", "classic")


def _user(
    tenant_id: str, kind: UserKind, password: PasswordHash | None, survey: Survey
) -> Iterator[Drift]:
    name = names.username(tenant_id, kind)
    user = survey.users.get(name)
    if user is None:
        yield Drift(kind=DriftKind.USER, found=f"user {name} was missing")
        return
    whose = stranger(user, survey.installation, password) if survey.installation else None
    if whose is not None:
        yield Drift(kind=DriftKind.FOREIGN, found=f"user {name} {whose}")
        return
    if user.elsewhere:
        found = f"user {name} has rights in {', '.join(user.elsewhere)} as well"
        yield Drift(kind=DriftKind.FOREIGN, found=found)
    if user.tags:
        found = f"user {name} had the tags {', '.join(sorted(user.tags))}"
        yield Drift(kind=DriftKind.USER, found=found)
    if user.password_hash == LOST_PASSWORD:
        yield Drift(kind=DriftKind.LOST_PASSWORD, found=f"the password of user {name} is lost")
    elif password is not None and user.password_hash != password.value:
        yield Drift(kind=DriftKind.PASSWORD, found=f"user {name} had another password")
    if user.permissions != layout.permissions(tenant_id, kind):
        what = "no permissions" if user.permissions is None else "other permissions"
        yield Drift(kind=DriftKind.PERMISSIONS, found=f"user {name} had {what}")


def _limits(tenant_id: str, wanted: Mapping[str, object], survey: Survey) -> Iterator[Drift]:
    found = survey.limits.get(tenant_id, NO_LIMITS)
    for where in sorted(wanted.keys() | found.keys()):
        if wanted.get(where) != found.get(where):
            yield Drift(kind=DriftKind.LIMITS, found=f"{where} had other limits")


def _consumers(topology: TenantTopology, survey: Survey) -> Iterator[Drift]:
    for queue in topology.queues():
        # A missing queue has been reported already.
        if queue.name in survey.queues and queue.name not in survey.consumed:
            yield Drift(kind=DriftKind.CONSUMER, found=f"queue {queue.name} had no consumer")


def mark_of(installation: str) -> str:
    """Return the mark, a word, that shows a user to be an installation's."""
    return _PREFIX + installation


def marks_in(words: Iterable[str]) -> frozenset[str]:
    """Return the installations whose marks are among some words, such as tags."""
    return frozenset(
        match[1] for word in words if (match := _MARK.fullmatch(word.strip())) is not None
    )


def stranger(user: User, installation: str, known: PasswordHash | None) -> str | None:
    """Return what is wrong with a user that is not ours; None if it is ours.

    A user without any mark, as once made, is ours if it has no rights elsewhere on the server and
    its tenant is ours (so that a password is `known`), and if it has rights here or that password.
    """
    others = user.marks - {installation}
    if others:
        return f"belongs to the installation {', '.join(sorted(others))}"
    if user.marks:
        return None
    if user.elsewhere:
        return f"carries no installation's mark, and has rights in {', '.join(user.elsewhere)}"
    proven = known is not None and (
        user.permissions is not None or (known.value != "" and user.password_hash == known.value)
    )
    return None if proven else "carries no installation's mark, and is not known to be ours"
