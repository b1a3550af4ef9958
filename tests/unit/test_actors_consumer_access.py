"""A tenant is given a user that reads its topics, and that user follows what the journal says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.broker.port import BrokerError, PasswordHash
from tenantry.control.port import CommandFailedError, ControlUnavailableError
from tenantry.domain.commands import (
    AddTopics,
    GrantConsumerAccess,
    RequestDeletion,
    RevokeConsumerAccess,
    TenantNotFoundError,
)
from tenantry.domain.names import UserKind
from tests.fakes.actors import Tree, running_tree
from tests.fakes.faults import outage
from tests.unit.test_reconciler import look_again, repairs
from tests.waiting import eventually


@pytest.fixture
def tree() -> Iterator[Tree]:
    with running_tree(look_every=0.02) as tree:
        yield tree


def granted(tree: Tree) -> PasswordHash:
    outcome = tree.execute(GrantConsumerAccess(tenant_id="a"))
    assert outcome.credentials is not None
    assert outcome.credentials.username == "tenant_a_consumer"
    assert outcome.tenant.consumer_access
    return tree.administration.consumers["a"]


def test_a_grant_makes_user_and_queues_and_another_one_a_new_password(tree: Tree) -> None:
    tree.create("a", topics=("events",))
    producer = tree.administration.users["a"]
    first = granted(tree)
    assert tree.administration.topologies["a"].consumer_access
    assert tree.passwords.all(UserKind.CONSUMER) == {"a": first}
    second = granted(tree)
    assert second != first
    assert tree.passwords.load("a", UserKind.CONSUMER) == second
    assert tree.administration.ended == ["tenant_a_consumer"] * 2
    assert tree.administration.users["a"] == producer
    tree.execute(AddTopics(tenant_id="a", topics=("logs",)))
    assert tree.administration.topologies["a"].consumer_access


def test_a_revocation_takes_both_and_is_nothing_where_there_is_none(tree: Tree) -> None:
    tree.create("a")
    tree.execute(RevokeConsumerAccess(tenant_id="a"))
    assert "ConsumerAccessRevoked" not in tree.events("a")
    granted(tree)
    outcome = tree.execute(RevokeConsumerAccess(tenant_id="a"))
    assert not outcome.tenant.consumer_access
    assert not tree.administration.consumers
    assert not tree.administration.topologies["a"].consumer_access
    assert not tree.passwords.all(UserKind.CONSUMER)
    look_again(tree)
    assert not repairs(tree, "a")


def test_a_deleted_tenant_leaves_none_to_the_next_of_its_id(tree: Tree) -> None:
    tree.create("a")
    granted(tree)
    tree.execute(RequestDeletion(tenant_id="a"))
    assert not tree.administration.consumers
    assert not tree.passwords.all(UserKind.CONSUMER)
    assert not tree.create("a").tenant.consumer_access
    with pytest.raises(TenantNotFoundError):
        tree.execute(GrantConsumerAccess(tenant_id="b"))


@pytest.mark.parametrize("step", ["claim", "ensure_topology", "ensure_consumer"])
def test_a_first_grant_that_fails_leaves_nothing(tree: Tree, step: str) -> None:
    tree.create("a")
    tree.faults.plan(step, BrokerError("no"))
    with pytest.raises(CommandFailedError):
        tree.execute(GrantConsumerAccess(tenant_id="a"))
    eventually(lambda: not tree.administration.consumers)
    eventually(lambda: not tree.administration.topologies["a"].consumer_access)
    assert "ConsumerAccessGranted" not in tree.events("a")


def test_a_grant_that_fails_leaves_the_former_password(tree: Tree) -> None:
    tree.create("a")
    shown = granted(tree)
    append = tree.journal.append

    def failing(*arguments: object, **named: object) -> object:
        tree.journal.append = append  # type: ignore[method-assign]
        raise outage()

    tree.journal.append = failing  # type: ignore[method-assign,assignment]
    with pytest.raises((ControlUnavailableError, CommandFailedError)):
        tree.execute(GrantConsumerAccess(tenant_id="a"))
    eventually(lambda: tree.administration.consumers["a"] == shown)
    assert tree.passwords.load("a", UserKind.CONSUMER) == shown


def test_a_revocation_that_breaks_off_goes_on(tree: Tree) -> None:
    tree.create("a")
    granted(tree)
    tree.faults.plan("remove_consumer", outage(), times=2)
    with pytest.raises(ControlUnavailableError):
        tree.execute(RevokeConsumerAccess(tenant_id="a"))
    assert "ConsumerAccessRevoked" in tree.events("a")
    eventually(lambda: not tree.administration.consumers)
    eventually(lambda: not tree.administration.topologies["a"].consumer_access)


def test_what_drifts_of_a_consumer_is_made_right(tree: Tree) -> None:
    tree.create("a")
    shown = granted(tree)
    tree.administration.consumers.pop("a")
    assert eventually(lambda: repairs(tree, "a"))[0].found == (
        "user tenant_a_consumer was missing",
    )
    assert tree.administration.consumers["a"] == shown
    tree.administration.consumers["a"] = PasswordHash(value="another")
    eventually(lambda: tree.administration.consumers["a"] == shown)
    tree.administration.remove_group("a")
    eventually(lambda: tree.administration.topologies["a"].consumer_access)


def test_what_was_left_of_a_grant_that_nobody_recorded_is_removed(tree: Tree) -> None:
    tree.create("a")
    tree.administration.consumers["a"] = PasswordHash(value="left by a daemon that died")
    eventually(lambda: repairs(tree, "a"))
    assert repairs(tree, "a")[0].kinds == ("leftover",)
    assert not tree.administration.consumers
