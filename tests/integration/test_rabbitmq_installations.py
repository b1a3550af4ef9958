"""Two installations on one RabbitMQ: what is another's is refused, and never taken."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import pika
import pytest

from tenantry.broker import drift
from tenantry.broker.port import (
    BrokerUnavailableError,
    Credentials,
    NotOursError,
    PasswordHash,
    TenantTopology,
)
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.broker.rabbitmq.management import ManagementClient
from tenantry.broker.rabbitmq.probes import RabbitProbes
from tenantry.broker.survey import DriftKind
from tenantry.domain import names
from tests.services_rabbitmq import RabbitHost, virtual_host
from tests.waiting import DEADLINE


@dataclass(frozen=True, kw_only=True)
class Installation:
    """One with its administration, and a client that looks at its virtual host."""

    name: str
    administration: RabbitAdministration
    management: ManagementClient

    def create(self, tenant_id: str) -> tuple[Credentials, PasswordHash]:
        """Create a tenant as the daemon does."""
        self.administration.claim(tenant_id)
        self.administration.ensure_topology(topology(tenant_id))
        credentials, hashed = self.administration.new_credentials(tenant_id)
        self.administration.ensure_user(tenant_id, hashed)
        return credentials, hashed

    def everything(self, tenant_id: str) -> object:
        """Give all that the server has of a tenant, as it is seen from here."""
        name = names.username(tenant_id)
        return (
            self.management.user(name),
            self.management.permissions_of(name),
            sorted(self.management.queues(f"^tenant_{tenant_id}_")),
            sorted(self.management.exchanges(f"^tenant_{tenant_id}_")),
        )


def topology(tenant_id: str) -> TenantTopology:
    return TenantTopology(tenant_id=tenant_id, topics=(), partitions=1)


def installation(stack: ExitStack, name: str, host: RabbitHost) -> Installation:
    made = Installation(
        name=name,
        administration=RabbitAdministration(
            url=host.url,
            management_url=host.management_url,
            queue_type="classic",
            installation=name,
        ),
        management=ManagementClient(host.management_url, vhost=host.vhost),
    )
    stack.callback(made.administration.close)
    stack.callback(made.management.close)
    return made


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[RabbitHost, RabbitHost]]:
    with virtual_host() as one, virtual_host() as other:
        yield one, other


@pytest.fixture
def production(hosts: tuple[RabbitHost, RabbitHost]) -> Iterator[Installation]:
    with ExitStack() as stack:
        yield installation(stack, "production", hosts[0])


@pytest.fixture
def staging(hosts: tuple[RabbitHost, RabbitHost]) -> Iterator[Installation]:
    """On the same server, in a virtual host of its own."""
    with ExitStack() as stack:
        yield installation(stack, "staging", hosts[1])


@pytest.fixture
def guest(hosts: tuple[RabbitHost, RabbitHost]) -> Iterator[Installation]:
    """In the very virtual host of `production`."""
    with ExitStack() as stack:
        yield installation(stack, "guest", hosts[0])


@pytest.fixture
def tenant_id(production: Installation, staging: Installation) -> Iterator[str]:
    made = f"t{uuid.uuid4().hex[:12]}"
    yield made
    for one in (production, staging):
        one.administration.remove_topology(made)
    production.management.delete_user(names.username(made))


def logs_in(credentials: Credentials) -> bool:
    pika.BlockingConnection(pika.URLParameters(credentials.amqp_url)).close()
    return True


@pytest.mark.parametrize("place", ["staging", "guest"])
def test_whatever_another_installation_does_with_the_same_tenant_changes_nothing_of_ours(
    production: Installation, tenant_id: str, place: str, request: pytest.FixtureRequest
) -> None:
    other: Installation = request.getfixturevalue(place)
    credentials, hashed = production.create(tenant_id)
    before = production.everything(tenant_id)
    theirs = other.administration
    _, their_hash = theirs.new_credentials(tenant_id)
    refused: list[Callable[[], object]] = [
        lambda: theirs.check_owner(tenant_id),
        lambda: theirs.claim(tenant_id),
        lambda: theirs.claim(tenant_id, hashed),
        lambda: theirs.ensure_user(tenant_id, their_hash),
        lambda: theirs.ensure_user(tenant_id, hashed),
    ]
    for attempt in refused:
        with pytest.raises(NotOursError) as caught:
            attempt()
        line = str(caught.value)
        assert f"'{names.username(tenant_id)}'" in line
        assert "belongs to the installation production" in line
        assert f"the installation {other.name}; " in line
        assert "rabbitmqctl delete_user" in line
        assert caught.value.here is (place == "guest")
    theirs.remove_user(tenant_id)
    theirs.remove_user(tenant_id, hashed)
    assert production.everything(tenant_id) == before
    assert logs_in(credentials)


def test_what_another_has_is_told_as_drift_and_is_nobodys_leftover(
    production: Installation, staging: Installation, guest: Installation, tenant_id: str
) -> None:
    _, hashed = production.create(tenant_id)
    seen = staging.administration.survey()
    found = drift.differences(topology(tenant_id), hashed, seen, consuming=False)
    told = [one for one in found if one.kind is DriftKind.FOREIGN]
    assert [one.found for one in told] == [
        f"user {names.username(tenant_id)} belongs to the installation production"
    ]
    assert not told[0].mendable
    assert "delete the" in told[0].remedy
    assert not {one.kind for one in found} & {DriftKind.USER, DriftKind.PASSWORD}
    assert tenant_id not in drift.owners(seen)
    assert tenant_id not in drift.owners(guest.administration.survey())
    ours = production.administration.survey()
    assert drift.differences(topology(tenant_id), hashed, ours, consuming=False) == ()
    assert tenant_id in drift.owners(ours)


def test_a_user_without_a_mark_is_taken_only_where_it_is_provably_ours(
    production: Installation, staging: Installation, tenant_id: str
) -> None:
    credentials, hashed = production.create(tenant_id)
    name = names.username(tenant_id)
    # As they were made before there were marks.
    production.management.put_user(name, hashed.value)
    with pytest.raises(NotOursError, match="carries no installation's mark, and has rights in"):
        staging.administration.ensure_user(tenant_id, hashed)
    with pytest.raises(NotOursError, match="is not known to be ours"):
        production.administration.claim(tenant_id)
    production.administration.ensure_user(tenant_id, hashed)
    user = production.management.user(name)
    assert user is not None
    assert user["tags"] == {"tenantry-production"}
    assert logs_in(credentials)
    # As two have left it that fought about it.
    production.management.put_user(name, hashed.value)
    staging.management.put_permissions(name, configure="^$", write="^$", read="^$")
    for one in (production, staging):
        with pytest.raises(NotOursError, match="has rights in virtual host"):
            one.administration.ensure_user(tenant_id, hashed)
        one.administration.remove_user(tenant_id, hashed)
    assert production.management.user(name) is not None


class Meanwhile:
    """Lets something happen between two calls of the management API."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def after(self, client: ManagementClient, call: str, then: Callable[[], object]) -> None:
        original: Callable[..., Any] = getattr(client, call)

        def once(*args: Any, **kwargs: Any) -> Any:
            self._monkeypatch.setattr(client, call, original)
            result = original(*args, **kwargs)
            then()
            return result

        self._monkeypatch.setattr(client, call, once)


@pytest.mark.parametrize("moment", ["user", "put_user", "put_permissions"])
def test_of_two_that_create_the_same_tenant_at_once_one_at_most_has_it_and_none_shares_it(
    production: Installation,
    staging: Installation,
    tenant_id: str,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes: dict[str, str] = {}

    def create(one: Installation) -> None:
        try:
            one.create(tenant_id)
        except NotOursError:
            outcomes[one.name] = "refused"
        else:
            outcomes[one.name] = "created"

    client = production.administration.management
    Meanwhile(monkeypatch).after(client, moment, lambda: create(staging))
    create(production)
    assert list(outcomes.values()).count("created") <= 1
    name = names.username(tenant_id)
    user = production.management.user(name)
    rights = production.management.permissions_of(name)
    # Whoever it is that the user is known to be, it enters no other place.
    assert len(rights) <= 1
    if "created" in outcomes.values():
        winner = next(one for one in (production, staging) if outcomes[one.name] == "created")
        winner.administration.ensure_user(
            tenant_id, winner.administration.new_credentials(tenant_id)[1]
        )
        user = production.management.user(name)
        assert user is not None
        assert user["tags"] == {f"tenantry-{winner.name}"}
        rights = winner.management.permissions_of(name)
        assert list(rights) == [winner.management.virtual_host]


def test_in_one_virtual_host_a_tenant_is_claimed_by_one_at_a_time(
    production: Installation, guest: Installation, tenant_id: str
) -> None:
    found: list[BaseException] = []
    looked, done = Event(), Event()

    def claim() -> None:
        with production.administration._alone(tenant_id):
            looked.set()
            done.wait(DEADLINE)

    holding = Thread(target=claim)
    holding.start()
    try:
        assert looked.wait(DEADLINE)
        with pytest.raises(
            BrokerUnavailableError, match="another daemon is making or removing"
        ) as caught:
            guest.administration.claim(tenant_id)
        found.append(caught.value)
    finally:
        done.set()
        holding.join()
    assert production.management.user(names.username(tenant_id)) is None
    guest.administration.claim(tenant_id)


def test_probes_are_swept_by_the_installation_that_made_them(
    production: Installation, guest: Installation, tenant_id: str
) -> None:
    production.create(tenant_id)
    ours, theirs = RabbitProbes(production.administration), RabbitProbes(guest.administration)
    with ours.probe(tenant_id) as probe:
        theirs.sweep()
        assert logs_in(probe.sender)
        ours.sweep()
        assert production.management.user(probe.sender.username) is None
