"""Whose a tenant is, as the database keeps it: a node that is not the owner stores nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import psycopg
import pytest

from tenantry.database.errors import TermOverError
from tenantry.database.pool import Database
from tenantry.messages.port import Incoming, StoreUnavailableError
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.nodes.joining import Joined, Joining, scope_of
from tenantry.nodes.port import Introduction, NodesUnavailableError
from tenantry.nodes.port import Node as Seen
from tenantry.nodes.postgres import PostgresNodes
from tenantry.terms.port import Holder
from tenantry.terms.postgres import PostgresTerms
from tenantry.turns.backlogs import NOTHING_YET, Progress
from tests.waiting import DEADLINE, eventually

INTRODUCTION = Introduction(name="one", version="1", weight=1.0, machine="", socket="", address="")


class Node:
    """A node's sessions, under a term of its own."""

    def __init__(self, stack: ExitStack, database: Database, url: str, name: str) -> None:
        self.name = name
        slot = PostgresNodes(database).open(name)
        self.terms = PostgresTerms(database, scope_of(name), slot=slot)
        taken = self.terms.take(self.terms.look(), Holder(instance=name, host="here", pid=1))
        assert taken is not None
        self.number = taken.number
        self.database = Database(url, pool_size=2, term=self.terms.claim(taken.number))
        stack.callback(self.database.close)
        self.database.open()
        self.nodes = PostgresNodes(self.database)
        self.store = PostgresMessageStore(self.database)


@pytest.fixture
def pair(database: Database, database_url: str) -> Iterator[tuple[Node, Node]]:
    with ExitStack() as stack:
        yield (
            Node(stack, database, database_url, "one"),
            Node(stack, database, database_url, "two"),
        )


def message(name: str) -> Incoming:
    return Incoming(name, "default", 0, b"1", "application/json", None, None)


def stored(database: Database) -> list[str]:
    with database.connection() as connection:
        rows = connection.execute("SELECT id FROM public.messages ORDER BY id").fetchall()
    return [name for (name,) in rows]


def test_only_the_owner_stores_and_each_change_of_owner_is_an_epoch(
    database: Database, pair: tuple[Node, Node]
) -> None:
    one, two = pair
    (claimed,) = one.nodes.claim("one", ["acme"])
    one.store.create_partition("acme")
    assert not two.nodes.claim("two", ["acme"])
    assert one.store.store("acme", [message("a")]).stored == 1
    with pytest.raises(StoreUnavailableError, match="tenant acme is node one's"):
        two.store.store("acme", [message("b")])
    assert one.nodes.hand_over("acme", source="one", target="two") == claimed.epoch + 1
    assert one.nodes.hand_over("acme", source="one", target="two") is None
    with pytest.raises(StoreUnavailableError, match="tenant acme is node two's"):
        one.store.store("acme", [message("c")])
    assert two.store.store("acme", [message("d")]).stored == 1
    for table in ("credentials", "consumer_credentials"):
        insert = f"INSERT INTO tenantry.{table} (tenant_id, password_hash) VALUES ('acme', 'x')"
        with pytest.raises(TermOverError), one.database.connection() as connection:
            connection.execute(insert.encode())
    assert stored(database) == ["a", "d"]


def test_what_is_being_stored_is_committed_before_a_hand_over_or_not_at_all(
    database: Database, database_url: str, pair: tuple[Node, Node]
) -> None:
    one, _ = pair
    one.nodes.claim("one", ["acme"])
    one.store.create_partition("acme")
    outcome: list[BaseException] = []

    def late() -> None:
        try:
            one.store.store("acme", [message("late")])
        except StoreUnavailableError as error:
            outcome.append(error)

    waiting = (
        "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    with psycopg.connect(database_url) as holding:
        # A hand-over that has begun: whoever stores waits for it, and finds another owner.
        holding.execute("SELECT tenantry.hand_over('acme', 'one', 'two')")
        thread = threading.Thread(target=late)
        thread.start()
        with psycopg.connect(database_url, autocommit=True) as watcher:
            eventually(lambda: watcher.execute(waiting).fetchall(), what="a store that waits")
        holding.commit()
        thread.join(DEADLINE)
    assert "is node two's" in str(outcome[0])
    assert stored(database) == []


def test_a_buried_node_writes_nothing_and_its_tenants_are_nobodys(
    database: Database, database_url: str, pair: tuple[Node, Node]
) -> None:
    one, two = pair
    two.nodes.claim("two", ["beta"])
    two.store.create_partition("beta")
    one.nodes.claim("one", ["acme"])
    one.store.create_partition("acme")
    claim = one.terms.claim(one.number)
    with psycopg.connect(database_url, options=f"-c tenantry.term={claim}") as frozen:
        frozen.execute("UPDATE tenantry.tenant_counters SET stored = 9 WHERE tenant_id = 'acme'")
        busy = psycopg.connect(
            database_url, options=f"-c tenantry.term={two.terms.claim(two.number)}"
        )
        busy.execute("UPDATE tenantry.tenant_counters SET stored = 7 WHERE tenant_id = 'beta'")
        # The one that is buried has a transaction open, which ends; the other's goes on.
        assert two.nodes.bury("one", one.terms.look())
        with pytest.raises(psycopg.OperationalError):
            frozen.execute("COMMIT")
        busy.commit()
        busy.close()
    with pytest.raises(StoreUnavailableError, match="is over"):
        one.store.store("acme", [message("a")])
    assert not one.terms.renew(one.number)
    owners = two.nodes.owners(["acme", "beta"])
    assert (owners["acme"].node, owners["acme"].previous) == (None, "one")
    assert owners["beta"].node == "two"
    (mine,) = two.nodes.claim("two", ["acme"])
    assert mine.epoch == 2
    assert PostgresMessageStore(database).counts("acme").stored == 0
    assert PostgresMessageStore(database).counts("beta").stored == 7


def test_a_node_that_renews_its_term_is_not_buried_and_who_is_buried_buries_nobody(
    pair: tuple[Node, Node],
) -> None:
    one, two = pair
    seen = one.terms.look()
    assert one.terms.renew(one.number)
    assert not two.nodes.bury("one", seen)
    assert two.nodes.bury("one", one.terms.look())
    with pytest.raises(Exception, match="is over"):
        one.nodes.bury("two", two.terms.look())


def test_a_lost_node_is_listed_for_a_while_and_then_forgotten(pair: tuple[Node, Node]) -> None:
    one, two = pair
    assert two.nodes.bury("one", one.terms.look())
    two.nodes.forget_lost(3600)
    assert [node.name for node in two.nodes.look()] == ["one", "two"]
    two.nodes.forget_lost(0)
    assert [node.name for node in two.nodes.look()] == ["two"]


def test_a_node_that_leaves_is_forgotten_unless_it_is_to_be_empty(
    database: Database, pair: tuple[Node, Node]
) -> None:
    one, two = pair
    one.nodes.claim("one", ["acme"])
    PostgresNodes(database).leave("one", one.number - 1)
    assert one.nodes.owners(["acme"])["acme"].node == "one"
    PostgresNodes(database).leave("one", one.number)
    assert [node.name for node in two.nodes.look()] == ["two"]
    assert two.nodes.owners(["acme"])["acme"].node is None


def test_each_node_sees_how_far_the_others_have_come_since_they_joined(
    pair: tuple[Node, Node],
) -> None:
    one, two = pair
    assert [node.progress for node in one.nodes.look()] == [NOTHING_YET, NOTHING_YET]
    told = Progress(seconds=3.5, weight=7.0, work=1.25, held=True)
    one.nodes.tell("one", told)
    assert [node.progress for node in two.nodes.look()] == [told, NOTHING_YET]
    one.nodes.introduce(INTRODUCTION)
    assert [node.progress for node in two.nodes.look()] == [NOTHING_YET, NOTHING_YET]
    assert two.nodes.bury("one", one.terms.look())
    with pytest.raises(NodesUnavailableError, match="is over"):
        one.nodes.tell("one", told)


def test_daemons_that_begin_at_once_take_no_name_that_another_has_just_taken(
    database: Database,
) -> None:
    """A name that nobody had at the look is not another's who has died."""

    def joining(instance: str) -> Joining:
        me = Holder(instance=instance, host="here", pid=1)
        return Joining(database, me, name=None, standby=False)

    late, quick = joining("late"), joining("quick")
    look, joined = late._nodes.look, list[Joined]()

    def look_and_be_overtaken() -> Sequence[Seen]:
        seen = look()
        if not joined and (taken := quick.try_to_join()) is not None:
            joined.append(taken)
        return seen

    late._nodes.look = look_and_be_overtaken  # type: ignore[method-assign]
    assert late.try_to_join() is None
    assert joined[0].name == "here"
    assert joined[0].terms.renew(joined[0].term.number)
    second = late.try_to_join()
    assert second is not None
    assert second.name == "here-2"
