"""The tree of actors: how a tenant is created, and what stands in the way of that."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tenantry.actors.messages import Drifted
from tenantry.actors.supervision import tell
from tenantry.broker.port import NotOursError, TenantTopology
from tenantry.broker.survey import Drift, DriftKind, Survey
from tenantry.control.port import CommandFailedError, ControlUnavailableError
from tenantry.domain import names
from tenantry.domain.commands import (
    InvalidCommandError,
    PauseTenant,
    RequestDeletion,
    ResumeTenant,
    RotateCredentials,
    TenantExistsError,
    TenantNotFoundError,
)
from tenantry.domain.events import TenantPaused
from tenantry.domain.tenant import Lifecycle
from tenantry.journal.port import Metadata
from tenantry.messages.port import MessageStoreError, Whose
from tests.fakes.actors import Tree
from tests.fakes.faults import outage
from tests.waiting import eventually


def test_creation_answers_when_the_tenant_consumes(tree: Tree) -> None:
    outcome = tree.create("a")
    assert outcome.tenant.lifecycle is Lifecycle.ACTIVE
    assert outcome.credentials is not None
    assert outcome.runtime is not None
    assert outcome.runtime.consuming
    assert outcome.runtime.workers_current == 3
    assert tree.events("a") == ["TenantCreated", "TenantProvisioned"]
    assert tree.administration.users["a"] == tree.passwords.hashes["a"]


@pytest.mark.parametrize("step", ["claim", "create_partition", "ensure_topology", "ensure_user"])
def test_a_creation_that_fails_at_a_step_leaves_nothing(tree: Tree, step: str) -> None:
    tree.faults.plan(step, outage())
    with pytest.raises(CommandFailedError, match="undone"):
        tree.create("a")
    assert tree.events("a")[-1] == "ProvisioningAbandoned"
    assert not tree.administration.users
    assert not tree.administration.topologies
    assert not tree.passwords.hashes
    assert "a" not in tree.store.rows
    assert tree.create("a").tenant.lifecycle is Lifecycle.ACTIVE


def test_a_creation_that_could_not_be_undone_is_undone_later(tree: Tree) -> None:
    tree.faults.plan("ensure_user", outage())
    tree.faults.plan("remove_user", outage(), times=2)
    with pytest.raises(CommandFailedError, match="will be undone"):
        tree.create("a")
    eventually(lambda: tree.events("a")[-1] == "ProvisioningAbandoned")
    assert not tree.administration.topologies


@pytest.mark.parametrize("here", [False, True])
def test_a_tenant_whose_user_is_anothers_is_refused_and_nothing_is_made(
    tree: Tree, *, here: bool
) -> None:
    tree.administration.taken["a"] = here
    with pytest.raises(CommandFailedError, match="another's") as caught:
        tree.create("a")
    assert isinstance(caught.value.__cause__, NotOursError)
    assert tree.events("a") == []
    assert not {"claim", "create_partition", "ensure_topology"} & set(tree.faults.steps)


@pytest.mark.parametrize(("here", "topologies"), [(False, set()), (True, {"a"})])
def test_a_creation_that_another_wins_is_undone_but_for_what_may_be_the_others(
    tree: Tree, *, here: bool, topologies: set[str]
) -> None:
    tree.administration.overtaken["a"] = here
    with pytest.raises(CommandFailedError, match="another's") as caught:
        tree.create("a")
    assert isinstance(caught.value.__cause__, NotOursError)
    assert tree.events("a") == ["TenantCreated", "ProvisioningAbandoned"]
    assert set(tree.administration.topologies) == topologies
    assert "a" not in tree.store.rows
    assert not tree.passwords.hashes


def test_a_provisioning_that_broke_off_and_that_another_has_won_is_undone_at_the_next_start(
    tree: Tree,
) -> None:
    tree.faults.plan("ensure_user", outage())
    tree.faults.plan("remove_user", outage(), times=1000)
    with pytest.raises(CommandFailedError, match="will be undone"):
        tree.create("a")
    tree.stop()
    tree.faults.clear()
    tree.administration.taken["a"] = False
    tree.start()
    eventually(lambda: tree.events("a")[-1] == "ProvisioningAbandoned")


def test_a_tenant_whose_user_another_has_taken_goes_on_storing_and_gets_no_password(
    tree: Tree,
) -> None:
    tree.create("a")
    before = tree.administration.users["a"]
    tree.administration.taken["a"] = False
    tree.stop()
    tree.start()
    eventually(lambda: tree.subscription("a").consuming)
    tree.deliver("a", "1")
    eventually(lambda: tree.stored("a") == {"1"})
    with pytest.raises(CommandFailedError, match="another's"):
        tree.execute(RotateCredentials(tenant_id="a"))
    assert "CredentialsRotated" not in tree.events("a")
    assert tree.administration.users["a"] == tree.passwords.hashes["a"] == before
    tree.execute(RequestDeletion(tenant_id="a"))
    assert tree.administration.users["a"] == before
    assert not tree.administration.topologies


def test_what_another_has_made_under_the_id_of_a_deleted_tenant_is_no_leftover(tree: Tree) -> None:
    tree.create("a")
    tree.execute(RequestDeletion(tenant_id="a"))
    topology = TenantTopology(tenant_id="a", topics=(), partitions=1)
    tree.administration.topologies["a"] = topology
    tree.administration.taken["a"] = True
    with pytest.raises(CommandFailedError, match="another's"):
        tree.create("a")
    left = Drift(kind=DriftKind.LEFTOVER, found="queue tenant_a_queue was left")
    tell(
        tree.supervisor,
        Drifted(tenant_id="a", drift=(left,), seen_at=tree.clock.now(), leftover=True),
    )
    eventually(lambda: "a" not in tree.runtime.tenants)
    assert tree.administration.topologies["a"] == topology


def test_of_two_creations_of_one_id_one_wins(tree: Tree) -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(tree.create, "a") for _ in range(8)]
        errors = [future.exception() for future in futures]
    assert sum(error is None for error in errors) == 1
    assert all(isinstance(error, TenantExistsError) for error in errors if error is not None)


def test_a_command_for_nobody_is_refused(tree: Tree) -> None:
    with pytest.raises(TenantNotFoundError):
        tree.execute(PauseTenant(tenant_id="nobody"))


def test_a_tenant_created_again_is_another_and_the_former_is_out_of_its_way_before(
    tree: Tree,
) -> None:
    tree.create("a")
    tree.deliver("a", "1", "2")
    eventually(lambda: tree.store.counts("a").stored == 2)
    tree.execute(RequestDeletion(tenant_id="a", retain=True))
    tree.faults.plan("vacate", outage())
    with pytest.raises(ControlUnavailableError):
        tree.create("a")
    tree.faults.plan("vacate", MessageStoreError("rows of others"))
    with pytest.raises(CommandFailedError, match="stands in its way: rows of others"):
        tree.create("a")
    assert tree.events("a")[-1] == "TenantDeleted"
    again = tree.create("a")
    assert again.tenant.incarnation == 2
    assert again.runtime is not None
    assert (again.runtime.incarnation, again.runtime.stored) == (2, 0)
    assert tree.store.whose["a"] == Whose(2, again.tenant.created_at)
    assert list(tree.store.retained["a", 1]) == ["1", "2"]
    tree.deliver("a", "1")
    eventually(lambda: tree.store.counts("a").stored == 1)


def test_a_refused_creation_moves_nothing_of_the_former(tree: Tree) -> None:
    tree.create("a")
    tree.execute(RequestDeletion(tenant_id="a", retain=True))
    with pytest.raises(InvalidCommandError):
        tree.create("a", workers=0)
    assert "vacate" not in tree.faults.steps


def test_a_start_looks_once_at_all_tenants_and_makes_only_what_is_missing(tree: Tree) -> None:
    for tenant_id in ("a", "b", "c", "d"):
        tree.create(tenant_id)
    tree.execute(PauseTenant(tenant_id="c"))
    tree.deliver("a", "1", "2")
    eventually(lambda: tree.stored("a") == {"1", "2"})
    tree.stop()
    del tree.administration.users["b"]
    tree.store.whose["d"] = Whose(7, None)
    before = len(tree.faults.steps)
    tree.start()
    eventually(lambda: tree.events("b")[-1] == "DriftRepaired")
    eventually(lambda: tree.runtime.not_ready() == ())
    # Once for all of them; for b, which lacks a user, and d, whose partition is another's, more.
    assert Counter(tree.faults.steps[before:]) == {
        "survey": 1,
        "partitions": 1,
        "create_partition": 2,
        "ensure_topology": 2,
        "ensure_user": 3,
    }
    assert {one for one in "abcd" if tree.subscription(one).consuming} == {"a", "b", "d"}
    runtime = tree.control.runtime("a")
    assert runtime is not None
    assert runtime.stored == 2
    assert tree.store.whose["d"].incarnation == 1
    tree.execute(ResumeTenant(tenant_id="c"))
    eventually(lambda: tree.subscription("c").consuming)


def test_a_start_goes_by_the_journal_where_it_has_moved_on_since_the_look(tree: Tree) -> None:
    tree.create("a")
    tree.stop()
    seen = tree.directory.page()
    stream = names.journal_stream("a")
    look = tree.administration.survey

    def late() -> Survey:
        found = look()
        tree.journal.append(
            stream,
            [TenantPaused(tenant_id="a")],
            expected=seen[0].version,
            metadata=Metadata(actor="another"),
        )
        return found

    tree.administration.survey = late  # type: ignore[method-assign]
    tree.start()
    tenant = tree.control.runtime("a")
    assert tenant is not None
    eventually(lambda: tree.runtime.tenants["a"].state is not None)
    state = tree.runtime.tenants["a"].state
    assert state is not None
    assert state.lifecycle is Lifecycle.PAUSED
    assert not tree.runtime.tenants["a"].consuming


def test_a_creation_takes_each_step_once(tree: Tree) -> None:
    before = len(tree.faults.steps)
    tree.create("a")
    taken = Counter(tree.faults.steps[before:])
    steps = ("claim", "create_partition", "ensure_topology", "ensure_user")
    assert {step: taken[step] for step in steps} == dict.fromkeys(steps, 1)
