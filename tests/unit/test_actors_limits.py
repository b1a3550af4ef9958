"""What a broker holds a tenant to follows its limits, and nothing is recorded that is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.broker.port import BrokerError
from tenantry.control.port import CommandFailedError, ControlUnavailableError
from tenantry.domain.commands import (
    AddTopics,
    ChangeLimits,
    GrantConsumerAccess,
    InvalidCommandError,
    RequestDeletion,
)
from tests.fakes.actors import Tree, running_tree
from tests.fakes.faults import outage
from tests.unit.test_reconciler import look_again, repairs
from tests.waiting import eventually


@pytest.fixture
def tree() -> Iterator[Tree]:
    with running_tree(look_every=0.02) as tree:
        yield tree


def limit(tree: Tree, **changes: int | None) -> None:
    tree.execute(ChangeLimits(tenant_id="a", changes=changes))


def test_limits_hold_on_the_broker_when_the_command_is_answered_and_are_lifted_again(
    tree: Tree,
) -> None:
    tree.create("a")
    limit(tree, connections=3, backlog_messages=100)
    assert tree.administration.limits["a"] == {"user": 3, "policy": (100, 1)}
    tree.execute(AddTopics(tenant_id="a", topics=("logs",)))
    assert tree.administration.limits["a"]["policy"] == (100, 3)
    tree.execute(GrantConsumerAccess(tenant_id="a"))
    assert tree.administration.limits["a"]["consumer"] == 3
    look_again(tree)
    assert not repairs(tree, "a")
    limit(tree, connections=None, backlog_messages=None)
    assert not tree.administration.limits


def test_limits_that_are_not_the_broker_s_leave_it_alone(tree: Tree) -> None:
    tree.create("a")
    limit(tree, rate=10, weight=3)
    assert "ensure_limits" not in tree.faults.steps
    runtime = tree.control.runtime("a")
    assert runtime is not None
    assert (runtime.rate_limit, runtime.backlog_limit) == (10, None)


def test_a_limit_that_the_broker_can_t_keep_is_refused_by_name_and_may_be_lifted(
    tree: Tree,
) -> None:
    tree.create("a")
    tree.administration.kept = frozenset({"connections"})
    with pytest.raises(InvalidCommandError, match="the fake can't hold") as refused:
        limit(tree, connections=3, backlog_bytes=100)
    assert refused.value.field == "backlog.bytes"
    assert "LimitsChanged" not in tree.events("a")
    assert not tree.administration.limits
    limit(tree, connections=3, backlog_bytes=None)
    assert tree.administration.limits["a"] == {"user": 3}


@pytest.mark.parametrize(
    ("error", "seen"),
    [(BrokerError("no"), CommandFailedError), (outage(), ControlUnavailableError)],
)
def test_limits_that_the_broker_refuses_are_not_recorded_and_the_former_hold(
    tree: Tree, error: Exception, seen: type[Exception]
) -> None:
    tree.create("a")
    limit(tree, connections=3)
    tree.faults.plan("ensure_limits", error)
    with pytest.raises(seen):
        limit(tree, connections=5)
    assert tree.events("a").count("LimitsChanged") == 1
    eventually(lambda: tree.administration.limits["a"] == {"user": 3})


def test_limits_that_could_not_be_recorded_are_taken_back(tree: Tree) -> None:
    tree.create("a")
    append = tree.journal.append

    def failing(*arguments: object, **named: object) -> object:
        tree.journal.append = append  # type: ignore[method-assign]
        raise outage()

    tree.journal.append = failing  # type: ignore[method-assign,assignment]
    with pytest.raises((ControlUnavailableError, CommandFailedError)):
        limit(tree, connections=3)
    eventually(lambda: not tree.administration.limits)


def test_limits_that_somebody_has_changed_on_the_broker_are_set_again(tree: Tree) -> None:
    tree.create("a")
    limit(tree, connections=3, backlog_messages=10)
    tree.administration.limits["a"] = {"user": 3000, "policy": (10, 1)}
    assert eventually(lambda: repairs(tree, "a"))[0].found == ("user had other limits",)
    assert tree.administration.limits["a"] == {"user": 3, "policy": (10, 1)}


def test_limits_that_nobody_has_set_here_are_lifted(tree: Tree) -> None:
    tree.create("a")
    tree.administration.limits["a"] = {"user": 1}
    assert eventually(lambda: repairs(tree, "a"))[0].kinds == ("limits",)
    assert not tree.administration.limits


def test_the_next_tenant_of_the_id_has_no_limits(tree: Tree) -> None:
    tree.create("a")
    limit(tree, connections=3)
    tree.execute(RequestDeletion(tenant_id="a"))
    assert not tree.administration.limits
    assert not tree.create("a").tenant.limits.of_the_broker
    look_again(tree)
    assert not tree.administration.limits
