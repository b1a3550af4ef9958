"""Tenants' objects on Iggy: streams with topics, their counts, and the survey of all."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from tenantry.broker import topology as layout
from tenantry.broker.iggy import wire
from tenantry.broker.iggy.client import ExistsError, MissingError, RefusedError, Session, Sessions
from tenantry.broker.iggy.passwords import Passwords
from tenantry.broker.iggy.topology import GROUP, Place, mark_topic, marked_by
from tenantry.broker.iggy.users import IggyUsers
from tenantry.broker.port import (
    BrokerError,
    BrokerUnavailableError,
    KeptLimits,
    QueueCounts,
    QueueSpec,
    TenantTopology,
)
from tenantry.broker.survey import Survey, User
from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.domain.limits import Limits
from tenantry.sql import queries

if TYPE_CHECKING:
    from apache_iggy import Partition, Stream, StreamDetails

log = structlog.get_logger(__name__)


COUNTED: Final = 60.0
"""Seconds for which a stream's counts hold, as long as nothing visible has changed."""


class Standing(NamedTuple):
    """The progress of a consumed partition: all below `floor` is settled, and `beyond` more."""

    floor: int
    beyond: int
    unsettled: int


class Rejected(NamedTuple):
    """Dead letters: their number by tenant, and their offsets, by queue."""

    counts: Mapping[str, int]
    places: Mapping[str, Sequence[int]]


NONE: Final = Rejected({}, {})


class StandingBooks:
    """Knowledge of messages and dead letters that the server does not have."""

    def __init__(self, database: Database, standing: Callable[[], Mapping[str, Standing]]) -> None:
        self._database = database
        self._errors = PortErrors(BrokerUnavailableError, BrokerError, where=database.where)
        self._sql = queries("iggy")
        self.standing: Final = standing
        """Gives the partitions that are consumed here and now, by queue."""

    def rejected(self) -> Rejected:
        """Count the dead letters, and list their offsets."""
        places: defaultdict[str, list[int]] = defaultdict(list)
        with self._errors, self._database.connection() as connection:
            for tenant_id, topic, partition, offset in connection.execute(
                self._sql["rejected_places"]
            ):
                places[QueueSpec.of(tenant_id, topic, partition).name].append(offset)
            counts = dict(connection.execute(self._sql["count_rejected"]).fetchall())
        return Rejected(counts, places)

    def drop(self, tenant_id: str) -> int:
        """Forget a tenant's dead letters and offsets; return how many dead letters there were."""
        with self._errors, self._database.connection() as connection:
            connection.execute(self._sql["drop_offsets"], {"tenant": tenant_id})
            row = connection.execute(self._sql["drop_rejected"], {"tenant": tenant_id}).fetchone()
        return 0 if row is None else int(row[0])

    def lying(
        self, queue: str, rejected: Rejected, here: Standing | None, *, floor: int, end: int
    ) -> int:
        """Count the unsettled messages of a partition from `floor` up to, not including, `end`.

        `here` is the partition's progress, if this process consumes it.
        """
        if here is not None:
            return max(0, end - max(floor, here.floor) - here.beyond)
        passed = sum(1 for offset in rejected.places.get(queue, ()) if floor <= offset < end)
        return max(0, end - floor - passed)


class IggyAdministration(IggyUsers):
    """Makes and removes tenants' objects on Iggy. Callable from any thread.

    `standing` returns the progress of the partitions that this process consumes, by queue;
    `consumed` returns the queues consumed now.
    """

    def __init__(
        self,
        sessions: Sessions,
        database: Database,
        *,
        installation: str,
        standing: Callable[[], Mapping[str, Standing]] = dict,
        consumed: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        """Tenants' streams carry the mark of the `installation`."""
        super().__init__(sessions, Passwords(database), installation=installation)
        self._books = StandingBooks(database, standing)
        self._consumed = consumed
        self._options: frozenset[str] | None = None
        self._counted: dict[str, tuple[tuple[object, ...], Mapping[str, int], float]] = {}

    def ensure_topology(self, topology: TenantTopology) -> None:
        """Make the tenant's missing stream and topics."""
        with self.sessions.session() as session:
            stream = self.ensure_stream(session, topology.tenant_id)
            there = {topic.name: topic.partitions_count for topic in stream.topics}
            wanted: dict[str, int] = {}
            for queue in topology.queues():
                wanted[queue.topic] = max(wanted.get(queue.topic, 0), queue.partition + 1)
            for topic, partitions in wanted.items():
                self._ensure_topic(session, topology.exchange, topic, partitions, there.get(topic))

    def remove_topology(self, tenant_id: str) -> int:
        """Delete the tenant's stream; return its number of pending messages and dead letters."""
        stream = names.exchange_name(tenant_id)
        with self.sessions.session() as session:
            found = session.call(lambda client: client.get_stream(stream))
            pending = 0
            if found is not None:
                pending = sum(
                    self._pending(session, tenant_id, found, NONE, self._books.standing()).values()
                )
                # Rights refer to the stream's number, which another stream may get at once.
                self.disown(session, tenant_id, found.id)
                try:
                    session.call(lambda client: client.delete_stream(stream))
                except MissingError:
                    log.debug("broker.stream_was_gone", stream=stream)
        return pending + self._books.drop(tenant_id)

    @property
    def kept_limits(self) -> KeptLimits:
        """See `Administration.kept_limits`: the server can enforce none."""
        return KeptLimits(broker="Apache Iggy")

    def limits_of(self, topology: TenantTopology, limits: Limits) -> Mapping[str, object]:  # noqa: ARG002
        """See `Administration.limits_of`."""
        return {}

    def ensure_limits(self, topology: TenantTopology, limits: Limits) -> None:
        """See `Administration.ensure_limits`: there is nothing to set."""

    def queue_counts(self) -> Mapping[str, QueueCounts]:
        """Count the messages in each tenant's topics that were not stored, by their offsets."""
        rejected = self._books.rejected()
        standing = self._books.standing()
        counts: dict[str, QueueCounts] = {}
        with self.sessions.session() as session:
            streams = session.call(lambda client: client.get_streams())
            for stream in streams:
                tenant_id = layout.owner_of(stream.name)
                if tenant_id is None:
                    continue
                lying = self._lying(session, tenant_id, stream, rejected, standing)
                unsettled = sum(
                    min(lying[name], standing[name].unsettled) for name in lying if name in standing
                )
                counts[tenant_id] = QueueCounts(
                    ready=sum(lying.values()) - unsettled,
                    unsettled=unsettled,
                    dead_letters=rejected.counts.get(tenant_id, 0),
                )
        there = {one.name for one in streams}
        counted = dict(self._counted)
        self._counted = {name: entry for name, entry in counted.items() if name in there}
        return counts

    def survey(self) -> Survey:
        """Survey all tenants' objects: a call for each stream, and for each user."""
        with self.sessions.session() as session:
            streams = session.call(lambda client: client.get_streams())
            details: dict[str, StreamDetails] = {}
            for stream in streams:
                if layout.owner_of(stream.name) is None:
                    continue
                found = session.call(lambda client, name=stream.name: client.get_stream(name))  # type: ignore[misc]
                if found is not None:
                    details[stream.name] = found
            users = self.surveyed(session, details, {one.id: one.name for one in streams})
        return _surveyed(details, users, self._consumed(), self._installation)

    def check(self) -> None:
        """Raise `BrokerError`, with a clear line, if the server can't be used."""
        with self.sessions.session() as session:
            user = self.sessions.access.user
            try:
                session.call(lambda client: client.get_users())
                session.call(lambda client: client.get_streams())
            except RefusedError as error:
                raise BrokerError(
                    f"the user {user!r} of Iggy at {self.sessions.access.where} may not manage"
                    " users and streams: give it the global permissions manage_users and"
                    " manage_streams"
                ) from error

    def close(self) -> None:
        """Close the sessions kept open between calls."""
        self.sessions.close()

    def ensure_stream(self, session: Session, tenant_id: str) -> StreamDetails:
        """Make the tenant's stream if it is missing, with our mark in it."""
        stream = names.exchange_name(tenant_id)
        found = session.call(lambda client: client.get_stream(stream))
        if found is None:
            try:
                session.call(lambda client: client.create_stream(stream))
            except ExistsError:
                log.debug("broker.stream_made_by_another", stream=stream)
        mark = mark_topic(self._installation)
        if found is None or mark not in {topic.name for topic in found.topics}:
            self._ensure_topic(session, stream, mark, 1, None)
            found = session.call(lambda client: client.get_stream(stream))
        if found is None:
            raise MissingError(f"stream {stream!r} was deleted a moment ago")
        return found

    def _ensure_topic(
        self, session: Session, stream: str, topic: str, partitions: int, there: int | None
    ) -> None:
        """Make a topic that keeps all messages, or add the partitions it lacks."""
        if there is None:
            request = wire.create_topic(stream, topic, partitions, self._options_of(session))
            try:
                session.call(lambda client: client.send_binary_request(wire.CREATE_TOPIC, request))
            except ExistsError:
                log.debug("broker.topic_made_by_another", topic=topic)
        elif there < partitions:
            session.call(lambda client: client.create_partitions(stream, topic, partitions - there))

    def _lying(
        self,
        session: Session,
        tenant_id: str,
        stream: Stream,
        rejected: Rejected,
        standing: Mapping[str, Standing],
    ) -> Mapping[str, int]:
        """Count a stream's pending messages; the server is asked only if something has changed."""
        known = self._counted.get(stream.name)
        now = time.monotonic()

        def seen(lying: Mapping[str, int]) -> tuple[object, ...]:
            return (
                stream.created_at,
                stream.messages_count,
                tuple((standing.get(one), len(rejected.places.get(one, ()))) for one in lying),
            )

        if known is not None and known[0] == seen(known[1]) and now < known[2]:
            return known[1]
        found = session.call(lambda client: client.get_stream(stream.name))
        lying = (
            {} if found is None else self._pending(session, tenant_id, found, rejected, standing)
        )
        self._counted[stream.name] = seen(lying), lying, now + COUNTED
        return lying

    def _options_of(self, session: Session) -> frozenset[str]:
        """Return the topic options that the server knows."""
        if self._options is None:
            options = session.call(lambda client: client.describe_options("topic"))
            self._options = frozenset(one.key for one in options)
        return self._options

    def _pending(
        self,
        session: Session,
        tenant_id: str,
        stream: StreamDetails,
        rejected: Rejected,
        standing: Mapping[str, Standing],
    ) -> Mapping[str, int]:
        """Count the messages that the daemon's group has not settled, by queue."""
        lying: dict[str, int] = {}
        for topic in stream.topics:
            if marked_by(topic.name) is not None:
                continue
            found = session.call(
                lambda client, name=topic.name: client.get_topic(stream.name, name)  # type: ignore[misc]
            )
            if found is None:
                continue
            for partition in found.partitions:
                queue = QueueSpec.of(tenant_id, topic.name, partition.id).name
                place = Place(stream.name, found.name, partition.id)
                here, bounds = standing.get(queue), self._range(session, place, partition)
                lying[queue] = self._books.lying(queue, rejected, here, **bounds)
        return lying

    def _range(self, session: Session, place: Place, partition: Partition) -> dict[str, int]:
        """Return the range of a partition's offsets that its group has not passed."""
        end = partition.current_offset + 1
        if not partition.messages_count:
            return {"floor": end, "end": end}
        request = wire.get_offset(GROUP, place)
        try:
            answer = session.call(
                lambda client: client.send_binary_request(wire.GET_OFFSET, request)
            )
        except MissingError:
            answer = b""
        offsets = wire.read_offsets(answer)
        first = end - partition.messages_count
        return {"floor": first if offsets is None else offsets.stored + 1, "end": end}


def _surveyed(
    streams: Mapping[str, StreamDetails],
    users: Mapping[str, User],
    consumed: frozenset[str],
    installation: str,
) -> Survey:
    """Make a survey of the streams and users found.

    The server has no dead-letter routes and no bindings: they exist as long as the stream and the
    topic do.
    """
    exchanges = {names.DEAD_LETTER_EXCHANGE: "direct"}
    arguments: dict[str, Mapping[str, object]] = {}
    bound: set[tuple[str, str, str]] = set()
    for name, stream in streams.items():
        tenant_id = layout.owner_of(name) or ""
        exchanges[name] = "direct"
        topics = {
            topic.name: topic.partitions_count
            for topic in stream.topics
            if marked_by(topic.name) is None
        }
        for topic, partitions in topics.items():
            declared = () if topic == names.DEFAULT_TOPIC else (topic,)
            plan = layout.plan(
                TenantTopology(tenant_id=tenant_id, topics=declared, partitions=partitions),
                "classic",
            )
            made = {
                QueueSpec.of(tenant_id, topic, partition).name for partition in range(partitions)
            }
            made.add(names.dead_letter_queue_name(tenant_id))
            arguments.update({one.name: one.arguments for one in plan.queues if one.name in made})
            bound.update(
                (one.exchange, one.queue, one.routing_key)
                for one in plan.bindings
                if one.queue in made
            )
    return Survey(
        exchanges=exchanges,
        queues=arguments,
        bindings=frozenset(bound),
        users=users,
        consumed=consumed,
        installation=installation,
    )
