"""A tenant's own connection to the embedded broker, with its own database role.

Its consumer leases stored messages, batch by batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg

from tenantry.database.failures import one_line
from tenantry.messages.encoding import bigint_array, bytea_array, headers_array, text_array
from tenantry.tenant_client.amqp import (
    TIMEOUT,
    AttemptResult,
    PublishResult,
    TenantClientError,
    TenantMessage,
)

_PUBLISH: Final = """
SELECT tenantry.publish_many(
    keys => %b, ids => %b, bodies => %b, content_types => %b, headers => %b, published_at_ms => %b)
"""

PAUSE: Final = 0.05
"""Seconds between polls while nothing arrives."""

_RECEIVE: Final = """
SELECT lease, coalesce(body, convert_to(payload::text, 'UTF8')) FROM tenantry.receive(%s, %s)
"""
_SETTLE: Final = "SELECT tenantry.settle(%s)"


class SqlClient:
    """One connection. Belongs to the thread that opened it; every call is bounded in time."""

    def __init__(self, url: str, *, name: str, timeout: float = TIMEOUT) -> None:
        self._url = url
        self._name = name
        self._timeout = timeout
        self._connection: psycopg.Connection[Any] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used; once lost it stays lost until the next `open`."""
        return self._connection is not None and not self._connection.closed

    def open(self) -> None:
        """Connect and log in. Raises `TenantClientError`."""
        try:
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                application_name=self._name,
                connect_timeout=max(2, round(self._timeout)),
                options=f"-c statement_timeout={int(self._timeout * 1000)}",
            )
        except psycopg.Error as error:
            raise TenantClientError(one_line(error)) from error

    def close(self) -> None:
        """Close the connection; harmless twice, and before `open`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def idle(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(max(0.0, seconds))

    def publish(self, exchange: str, batch: Sequence[TenantMessage]) -> PublishResult:  # noqa: ARG002
        """Publish a batch to the tenant's own exchange: all of it is confirmed, or nothing.

        Never raises. Unconfirmed messages may have been accepted all the same, so publish them
        again with the same message ids.
        """
        parameters = (
            text_array([mail.routing_key for mail in batch]),
            text_array([mail.message_id for mail in batch]),
            bytea_array([mail.body for mail in batch]),
            text_array([mail.content_type for mail in batch]),
            headers_array([{"timestamp_in_ms": mail.published_at_ms} for mail in batch]),
            bigint_array([mail.published_at_ms for mail in batch]),
        )
        try:
            self._open_connection().execute(_PUBLISH, parameters, prepare=True)
        except (TenantClientError, psycopg.Error) as error:
            return PublishResult(confirmed=frozenset(), reason=one_line(error))
        return PublishResult(confirmed=frozenset(range(len(batch))), reason=None)

    def lift_defaults(self) -> None:
        """Let the session write, as far as its rights go. Raises `TenantClientError`."""
        try:
            self._open_connection().execute("SET default_transaction_read_only = off")
        except psycopg.Error as error:
            raise TenantClientError(one_line(error)) from error

    def sees(self, query: str, *parameters: object) -> bool:
        """Return whether a query gives a row. Raises `TenantClientError`."""
        try:
            cursor = self._open_connection().execute(query.encode(), parameters)
            return cursor.fetchone() is not None
        except psycopg.errors.InsufficientPrivilege:
            return False
        except psycopg.Error as error:
            raise TenantClientError(one_line(error)) from error

    def attempt(
        self,
        statement: psycopg.sql.Composed | str,
        *parameters: object,
        missing: AttemptResult = AttemptResult.ALLOWED,
    ) -> AttemptResult:
        """Try a statement, return whether it is allowed, and undo it.

        Only the lack of a privilege is a refusal: an answer that something does not exist means
        that asking was allowed, unless `missing` says otherwise. Raises `TenantClientError` if the
        database gives no verdict.
        """
        connection = self._open_connection()
        query = statement.encode() if isinstance(statement, str) else statement
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(query, parameters or None)
        except psycopg.errors.InsufficientPrivilege:
            return AttemptResult.REFUSED
        except psycopg.OperationalError as error:
            with suppress(psycopg.Error):
                connection.close()
            raise TenantClientError(one_line(error)) from error
        except psycopg.Error:
            return missing
        return AttemptResult.ALLOWED

    def _open_connection(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            raise TenantClientError("not connected")
        return self._connection


class SqlReader(SqlClient):
    """Reads a topic (`TopicReader`). A lease lasts a minute, and ends with its session."""

    def __init__(self, url: str, *, topic: str, name: str, timeout: float = TIMEOUT) -> None:
        super().__init__(url, name=name, timeout=timeout)
        self._topic = topic
        self._lease: int | None = None

    def receive(self, most: int, seconds: float) -> Sequence[bytes]:
        """See `TopicReader.receive`."""
        until = time.monotonic() + seconds
        while True:
            rows = self._ask(_RECEIVE, self._topic, most)
            if rows:
                self._lease = int(str(rows[0][0]))
                return [bytes(body) for _, body in rows]  # type: ignore[call-overload]
            self._lease = None
            if (left := until - time.monotonic()) <= 0:
                return []
            time.sleep(min(PAUSE, left))

    def commit(self) -> None:
        """See `TopicReader.commit`."""
        if self._lease is not None and self._ask(_SETTLE, self._lease) != [(True,)]:
            raise TenantClientError("it took too long: another consumer has been given the batch")
        self._lease = None

    def at_end(self) -> bool:
        """See `TopicReader.at_end`: the last poll found nothing."""
        return self._lease is None

    def _ask(self, query: str, *parameters: object) -> list[tuple[object, ...]]:
        try:
            return self._open_connection().execute(query.encode(), parameters).fetchall()
        except psycopg.Error as error:
            self.close()
            raise TenantClientError(one_line(error)) from error
