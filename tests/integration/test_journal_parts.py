"""Parts of the journal on PostgreSQL: archived, restored, and what is read meanwhile."""

from __future__ import annotations

import threading
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.domain.events import EventsArchived, EventsRestored, TenantPaused, WorkersResized
from tenantry.journal import parts_postgres
from tenantry.journal.parts import NoSuchPartError, PartsError
from tenantry.journal.parts_postgres import PostgresJournalParts
from tenantry.journal.port import (
    ANY,
    EventsArchivedError,
    JournalUnavailableError,
    UnknownEventError,
    VersionConflictError,
)
from tenantry.journal.postgres import PostgresEventStore
from tenantry.journal.tenants import load_tenant
from tenantry.terms.port import Holder
from tenantry.terms.postgres import PostgresTerms
from tests.integration.journal_in_parts import HERE, METADATA, Journal, dead, digest_of
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def journal(database: Database) -> Journal:
    return Journal(database)


def test_what_is_archived_changes_no_tenant_and_no_later_event(journal: Journal) -> None:
    journal.live("a", 4, 5)
    journal.live("b")
    journal.parts.begin(1)
    journal.live("a", 6)
    before = {one: load_tenant(journal.store, one) for one in "ab"}
    kept = journal.rows()[6:]
    journal.archive(1)
    assert {one: load_tenant(journal.store, one) for one in "ab"} == before
    assert {one: journal.directory.get(one) for one in "ab"} == before
    assert journal.projection.ensure_current(journal.database) is False
    assert journal.projection.rebuild(journal.database) == 2
    assert {one: journal.directory.get(one) for one in "ab"} == before
    assert journal.rows(up_to=7) == kept
    journal.live("a", 7)
    journal.live("b", 9)
    a, b = load_tenant(journal.store, "a"), load_tenant(journal.store, "b")
    assert a is not None
    assert b is not None
    assert (a.version, a.workers, b.version, b.workers) == (6, 7, 3, 9)
    with pytest.raises(VersionConflictError) as caught:
        journal.store.append(
            "tenant-b", [TenantPaused(tenant_id="b")], expected=1, metadata=METADATA
        )
    assert caught.value.actual == 3


def test_a_read_model_that_lost_a_row_is_mended_where_events_are_archived(journal: Journal) -> None:
    journal.live("a", 4)
    journal.parts.begin(1)
    journal.live("a", 6)
    journal.archive(1)
    with journal.database.connection() as connection:
        connection.execute("DELETE FROM tenantry.tenants")
    assert journal.projection.ensure_current(journal.database) is True
    with journal.database.connection() as connection:
        connection.execute("DELETE FROM tenantry.tenants")
    journal.live("a", 7)
    assert journal.directory.get("a") == load_tenant(journal.store, "a")


def test_what_would_need_archived_events_is_refused_and_names_the_archive(journal: Journal) -> None:
    journal.live("a", 4, 5)
    journal.store.append(
        names.dead_letter_journal_stream("a"), [dead("a")], expected=ANY, metadata=METADATA
    )
    early = journal.store.read_all()[1].recorded_at
    journal.parts.begin(1)
    journal.live("a", 6)
    journal.live("b")
    journal.archive(1)
    calls = (
        journal.store.read_all,
        lambda: journal.store.read_all(after=4),
        lambda: journal.store.read_all(categories=["tenant"]),
        lambda: journal.store.read_stream("tenant-a"),
        lambda: journal.store.read_stream("tenant-a", after=3, limit=1),
        lambda: journal.store.read_stream("dead_letters-a"),
        lambda: journal.store.read_tenant("a", after=4),
        lambda: journal.directory.as_of_version("a", 3),
        lambda: journal.directory.as_of_time("a", early),
        lambda: journal.parts.lines(1),
    )
    for call in calls:
        with pytest.raises(EventsArchivedError, match=HERE) as caught:
            call()
        assert caught.value.position == 5
    assert [one.position for one in journal.store.read_all(after=5)] == [6, 7, 8, 9]
    assert [one.version for one in journal.store.read_stream("tenant-a", after=4)] == [5]
    assert [one.position for one in journal.store.read_tenant("a", after=5)] == [6]
    assert len(journal.store.read_tenant("b")) == 2, "nothing of it is archived"
    for version, workers in ((4, 5), (5, 6)):
        then = journal.directory.as_of_version("a", version)
        assert then is not None
        assert then.workers == workers
        assert journal.directory.as_of_time("a", then.updated_at) == then
    assert journal.directory.as_of_version("a", 6) is None
    assert journal.directory.as_of_time("a", early - timedelta(days=1)) is None


def test_only_the_oldest_part_goes_and_only_as_it_is(journal: Journal) -> None:
    journal.live("a", 4)
    journal.parts.begin(1)
    journal.live("a", 5)
    journal.parts.begin(1)
    journal.live("a", 6)
    before = journal.rows()

    def refused(part: int, digest: str, why: str) -> None:
        with pytest.raises(PartsError, match=why):
            journal.parts.archive(part, digest=digest, archive=HERE, metadata=METADATA)
        assert journal.rows() == before

    refused(3, digest_of(journal.lines(3)), "appended to")
    refused(2, digest_of(journal.lines(2)), "part 1 is older")
    refused(1, digest_of(journal.lines(1)[:-1]), "nothing was removed")
    refused(1, digest_of([*journal.lines(1)[:-1], "{}"]), "nothing was removed")
    with pytest.raises(NoSuchPartError):
        journal.parts.archive(9, digest="", archive=HERE, metadata=METADATA)
    lines = journal.archive(1)
    again = journal.parts.archive(1, digest=digest_of(lines), archive="other", metadata=METADATA)
    assert again.archive == HERE
    with pytest.raises(PartsError, match="archived already"):
        journal.parts.archive(1, digest="0" * 64, archive="other", metadata=METADATA)
    told = journal.store.read_all(after=journal.head() - 1)[0]
    assert told.stream == names.PARTS_STREAM
    assert told.metadata.actor == "test"
    assert told.event == EventsArchived(
        part=1,
        first_position=1,
        last_position=3,
        events=3,
        until=again.last_at.isoformat() if again.last_at else "",
        digest=digest_of(lines),
        archive=HERE,
    )


def test_what_is_restored_is_what_was_archived(journal: Journal) -> None:
    journal.live("a", 4)
    stream = names.dead_letter_journal_stream("a")
    journal.store.append(stream, [dead("a"), dead("a")], expected=ANY, metadata=METADATA)
    journal.parts.begin(1)
    journal.live("a", 5)
    journal.parts.begin(1)
    before, head = journal.rows(), journal.head()
    first, second = journal.archive(1), journal.archive(2)
    with pytest.raises(PartsError, match="part 2 was archived last"):
        journal.parts.put_back(1, first, after=0)
    journal.restore(2, second)
    with pytest.raises(EventsArchivedError):
        journal.store.read_all()
    journal.restore(1, first)
    assert journal.rows(up_to=head) == before
    assert journal.lines(1) == first
    assert [one.archived_at for one in journal.parts.listed()] == [None] * 3
    assert len(journal.store.read_stream("tenant-a")) == 4
    assert isinstance(journal.store.read_all(after=journal.head() - 1)[0].event, EventsRestored)
    then = journal.directory.as_of_version("a", 2)
    assert then is not None
    assert then.workers == 3
    with pytest.raises(psycopg.errors.RestrictViolation), journal.database.connection() as one:
        one.execute("DELETE FROM tenantry.events_1")
    assert journal.archive(1) == first


def test_what_was_changed_or_is_of_another_part_is_not_restored(journal: Journal) -> None:
    journal.live("a", 4, 5)
    journal.parts.begin(1)
    with pytest.raises(PartsError, match="is not archived"):
        journal.parts.restore(1, METADATA)
    lines = journal.archive(1)
    head = journal.head()
    changed = [*lines[:-1], lines[-1].replace('"workers": 5', '"workers": 64')]
    assert changed != lines
    for wrong in (changed, lines[:-1], lines[1:]):
        with pytest.raises(PartsError, match="not what part 1 was"):
            journal.restore(1, wrong)
    with pytest.raises(PartsError, match="no lines of part 1"):
        journal.parts.put_back(1, ["{"], after=0)
    with pytest.raises(PartsError, match="begin again"):
        journal.parts.put_back(1, lines, after=7)
    assert journal.head() == head
    with pytest.raises(EventsArchivedError):
        journal.store.read_all()
    journal.restore(1, lines)
    assert len(journal.store.read_stream("tenant-a")) == 4


def test_an_event_is_recorded_once_whichever_part_it_is_in(journal: Journal) -> None:
    one, stream = uuid4(), names.dead_letter_journal_stream("a")

    def append(*ids: UUID) -> int:
        events = [dead("a") for _ in ids]
        return len(journal.store.append(stream, events, expected=ANY, metadata=METADATA, ids=ids))

    assert append(one) == 1
    for _ in range(3):
        journal.parts.begin(1)
        assert append(one, uuid4(), one) == 1
    assert [event.version for event in journal.store.read_stream(stream)] == [1, 2, 3, 4]


def test_a_part_that_others_read_stays_until_they_let_go(
    journal: Journal, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_postgres, "PAUSE", 0.0)
    monkeypatch.setattr(parts_postgres, "PATIENCE_MS", 20)
    journal.live("a", 4)
    journal.parts.begin(1)
    before = journal.rows()
    with psycopg.connect(database_url) as backup:
        backup.execute("LOCK TABLE tenantry.events IN ACCESS SHARE MODE")
        with pytest.raises(PartsError, match="a backup, say"):
            journal.archive(1)
        assert journal.rows() == before
        journal.live("a", 5)
    journal.archive(1)


def test_of_two_that_archive_at_once_one_is_told_so(journal: Journal, database_url: str) -> None:
    journal.live("a", 4)
    journal.parts.begin(1)
    with psycopg.connect(database_url) as other:
        other.execute("SELECT FROM tenantry.journal_parts WHERE part = 1 FOR UPDATE")
        with pytest.raises(PartsError, match="at this moment"):
            journal.archive(1)
        assert journal.parts.begin(1) is None
    journal.archive(1)


def test_appends_and_reads_go_on_while_parts_are_archived_and_restored(journal: Journal) -> None:
    failed: list[Exception] = []
    going = threading.Event()
    going.set()

    def append() -> None:
        n = 0
        store = PostgresEventStore(journal.database)
        try:
            while going.is_set():
                event = WorkersResized(tenant_id="x", previous=n, workers=n)
                store.append("ops-x", [event], expected=n, metadata=METADATA)
                n += 1
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    def read() -> None:
        try:
            while going.is_set():
                try:
                    found = journal.store.read_all(limit=30)
                except EventsArchivedError:
                    continue
                assert [one.position for one in found] == list(range(1, len(found) + 1))
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    threads = [threading.Thread(target=append), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: journal.head() > 20)
        for _ in range(3):
            number = journal.parts.begin(1)
            assert number is not None
            lines = journal.archive(number - 1)
            journal.restore(number - 1, lines, at_once=1000)
            journal.archive(number - 1)
    finally:
        going.clear()
        for thread in threads:
            thread.join(DEADLINE)
    assert failed == []
    last = max(one.last_position or 0 for one in journal.parts.listed() if one.archived_at)
    kept = journal.store.read_all(after=last, limit=100_000)
    assert [one.position for one in kept] == list(range(last + 1, journal.head() + 1))


def test_a_daemon_whose_term_is_over_archives_nothing(journal: Journal, database_url: str) -> None:
    journal.live("a", 4)
    journal.parts.begin(1)
    journal.live("a", 5)
    before = journal.rows()
    terms = PostgresTerms(journal.database)
    for number in ("one", "two"):
        assert terms.take(terms.look(), Holder(instance=number, host="here", pid=1)) is not None
    old = Database(database_url, pool_size=2, term="daemon/1")
    old.open()
    try:
        parts = PostgresJournalParts(old)
        with pytest.raises(JournalUnavailableError, match="term daemon/1 is over"):
            parts.archive(1, digest=digest_of(journal.lines(1)), archive=HERE, metadata=METADATA)
        with pytest.raises(JournalUnavailableError, match="term daemon/1 is over"):
            parts.begin(1)
    finally:
        old.close()
    assert journal.rows() == before


def test_a_state_that_a_newer_program_has_kept_is_not_taken_for_another(journal: Journal) -> None:
    journal.live("a", 4)
    journal.parts.begin(1)
    journal.archive(1)
    with journal.database.connection() as connection:
        connection.execute("UPDATE tenantry.archived_streams SET schema_version = 99")
    with pytest.raises(UnknownEventError, match="newer tenantry"):
        load_tenant(journal.store, "a")


def test_no_role_but_the_owner_reaches_a_part(journal: Journal, database_url: str) -> None:
    journal.live("a", 4)
    journal.parts.begin(1)
    lines = journal.archive(1)
    journal.restore(1, lines)
    role = f"tenant_{uuid4().hex}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role}".encode())
        try:
            reached = connection.execute(
                "SELECT c.relname FROM pg_class AS c"
                " WHERE c.relnamespace = 'tenantry'::regnamespace"
                " AND (c.relname ~ '^event' OR c.relname ~ 'parts$|^archived')"
                " AND c.relkind IN ('r', 'p', 'v')"
                " AND has_table_privilege(%s, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')",
                [role],
            ).fetchall()
        finally:
            connection.execute(f"DROP ROLE {role}".encode())
    assert reached == []
