"""The database's errors as those of the port that stands on it."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors as pg

from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.failures import UNFIT, PortErrors
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
