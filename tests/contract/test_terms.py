"""What every place that keeps terms promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.database.pool import Database
from tenantry.terms.port import Holder, Terms
from tenantry.terms.postgres import PostgresTerms
from tenantry.unavailable import UnavailableError
from tests.fakes.stores import InMemoryTerms

ONE = Holder(instance="one", host="here", pid=1)
TWO = Holder(instance="two", host="there", pid=2)


@pytest.fixture(params=["memory", "postgres"])
def terms(request: pytest.FixtureRequest) -> Iterator[Terms]:
    if request.param == "memory":
        yield InMemoryTerms()
    else:
        yield PostgresTerms(request.getfixturevalue("database"))


def test_at_first_nobody_holds_the_term(terms: Terms) -> None:
    standing = terms.look()
    assert (standing.number, standing.held) == (0, False)


def test_a_taken_term_has_a_new_number_and_its_holder(terms: Terms) -> None:
    taken = terms.take(terms.look(), ONE)
    assert taken is not None
    assert (taken.number, taken.held, taken.holder) == (1, True, ONE)
    assert terms.look() == taken
    again = terms.take(taken, TWO)
    assert again is not None
    assert (again.number, again.holder) == (2, TWO)


def test_of_two_who_saw_the_same_only_one_takes_it(terms: Terms) -> None:
    seen = terms.look()
    assert terms.take(seen, ONE) is not None
    assert terms.take(seen, TWO) is None
    assert terms.look().holder == ONE


def test_a_term_that_was_renewed_since_is_not_taken(terms: Terms) -> None:
    seen = terms.take(terms.look(), ONE)
    assert seen is not None
    assert terms.renew(seen.number)
    assert terms.take(seen, TWO) is None
    after = terms.look()
    assert (after.number, after.beat) == (seen.number, seen.beat + 1)


def test_a_lost_term_is_neither_renewed_nor_given_back(terms: Terms) -> None:
    first = terms.take(terms.look(), ONE)
    assert first is not None
    second = terms.take(first, TWO)
    assert second is not None
    assert not terms.renew(first.number)
    terms.release(first.number)
    assert terms.look() == second


def test_a_released_term_is_nobodys_and_keeps_its_number(terms: Terms) -> None:
    taken = terms.take(terms.look(), ONE)
    assert taken is not None
    terms.release(taken.number)
    terms.release(taken.number)
    standing = terms.look()
    assert (standing.number, standing.held) == (taken.number, False)
    assert not terms.renew(taken.number)
    assert terms.take(standing, TWO) is not None


def test_an_absent_database_is_told_as_such(database: Database) -> None:
    terms = PostgresTerms(database)
    database.close()
    with pytest.raises(UnavailableError):
        terms.look()
    with pytest.raises(UnavailableError):
        terms.renew(1)
