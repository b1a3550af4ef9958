"""The database's errors in plain words, and as those of the port that stands on it."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors as pg

from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.failures import UNFIT, PortErrors, connect_failure
from tenantry.messages.port import MessageStoreError, PartitionMissingError, StoreUnavailableError
from tenantry.unavailable import UnavailableError


def raised(errors: PortErrors, error: Exception) -> Exception:
    with pytest.raises(Exception) as caught, errors:
        raise error
    return caught.value


def test_an_outage_is_told_from_a_refusal() -> None:
    errors = PortErrors(StoreUnavailableError, MessageStoreError, where="here")
    for away in (DatabaseUnavailableError("here: gone"), psycopg.OperationalError("gone")):
        error = raised(errors, away)
        assert isinstance(error, UnavailableError)
        assert (str(error), error.__cause__) == ("here: gone", away)
    refused = raised(errors, pg.CheckViolation("no such row"))
    assert type(refused) is MessageStoreError
    assert str(refused) == "here: no such row"


def test_an_unfit_database_is_waited_for_where_the_port_says_so() -> None:
    error = pg.InsufficientPrivilege("permission denied")
    for waited_for, kind in (((), MessageStoreError), (UNFIT, StoreUnavailableError)):
        errors = PortErrors(StoreUnavailableError, MessageStoreError, waited_for=waited_for)
        assert type(raised(errors, error)) is kind


def test_a_port_may_name_errors_of_its_own() -> None:
    errors = PortErrors(
        StoreUnavailableError,
        MessageStoreError,
        otherwise=lambda error: (
            PartitionMissingError("none") if isinstance(error, pg.UndefinedTable) else None
        ),
    )
    assert type(raised(errors, pg.UndefinedTable("gone"))) is PartitionMissingError
    assert type(raised(errors, pg.SyntaxError("no"))) is MessageStoreError


def test_what_is_none_of_the_databases_passes() -> None:
    errors = PortErrors(StoreUnavailableError, MessageStoreError)
    for error in (PartitionMissingError("none"), ValueError("no"), StoreUnavailableError("gone")):
        assert raised(errors, error) is error


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('FATAL: role "x" does not exist', "there is no such user; create the user"),
        ('FATAL: database "x" does not exist', "there is no such database; create it"),
        ("Connection refused", "connection refused; start the server"),
        ("FATAL: the database system is starting up", "starting up; wait a moment"),
        ("something unheard of", "something unheard of; start the server"),
    ],
)
def test_why_there_is_no_connection_is_told_whatever_the_server_is_called(
    said: str, told: str
) -> None:
    prefix = 'connection failed: connection to server at "database" (192.0.2.1), port 5432 failed: '
    error = connect_failure(psycopg.OperationalError(prefix + said), "PostgreSQL")
    assert told in str(error)
