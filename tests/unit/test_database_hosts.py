"""In which order the servers of a database are tried."""

from __future__ import annotations

import pytest

from tenantry.database.conninfo import Hosts, Place
from tenantry.database.failures import place

ONE, TWO, THREE = (Place(name, "", "5432") for name in ("one", "two", "three"))


def order(hosts: Hosts) -> str:
    return hosts.parameters()["host"]


def test_who_let_us_in_last_is_tried_first_and_the_others_as_they_were() -> None:
    hosts = Hosts({"host": "one,two,three"})
    assert order(hosts) == "one,two,three"
    assert hosts.prefer(THREE, hosts.changes)
    assert order(hosts) == "three,one,two"
    assert hosts.prefer(TWO, hosts.changes)
    assert order(hosts) == "two,three,one"
    assert hosts.prefer(Place("nobody", "", "5432"), hosts.changes)
    assert order(hosts) == "two,three,one"


def test_who_lets_in_what_began_before_another_took_over_is_not_tried_first_again() -> None:
    hosts = Hosts({"host": "one,two,three"})
    began = hosts.changes
    assert hosts.prefer(ONE, began)
    assert hosts.prefer(TWO, began)
    assert hosts.prefer(TWO, began)  # begun at the same time
    assert not hosts.prefer(ONE, began)
    assert order(hosts) == "two,one,three"
    assert hosts.prefer(ONE, hosts.changes)
    assert order(hosts) == "one,two,three"


def test_ports_and_addresses_go_with_their_hosts() -> None:
    given = {"host": "one,one", "hostaddr": "10.0.0.1,10.0.0.2", "port": "5432,5433"}
    hosts = Hosts(given)
    assert hosts.parameters() == given
    hosts.prefer(Place("one", "10.0.0.2", "5433"), hosts.changes)
    assert hosts.parameters() == {
        "host": "one,one", "hostaddr": "10.0.0.2,10.0.0.1", "port": "5433,5432"
    }  # fmt: skip


def test_addresses_alone_are_hosts_and_a_port_is_for_all_of_them() -> None:
    hosts = Hosts({"hostaddr": "10.0.0.1,10.0.0.2", "port": "6000"})
    # libpq tells the address as the name where it was given none.
    hosts.prefer(Place("10.0.0.2", "10.0.0.2", "6000"), hosts.changes)
    assert hosts.parameters() == {"hostaddr": "10.0.0.2,10.0.0.1", "port": "6000,6000"}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"host": "one"},
        {"host": "/run/postgresql", "port": "5433"},
        {"host": "one,two", "load_balance_hosts": "random"},
        {"host": "one,two", "port": "1,2,3"},
        {"host": "one,two", "hostaddr": "10.0.0.1"},
    ],
)
def test_one_alone_and_what_is_in_no_order_of_ours_stays_as_it_was_given(
    parameters: dict[str, str],
) -> None:
    hosts = Hosts(parameters)
    assert hosts.prefer(TWO, hosts.changes)
    assert not hosts.several
    assert hosts.parameters() == {}


def test_people_are_told_of_all_of_them() -> None:
    assert place({"host": "one,two", "port": "5432,5433"}) == "PostgreSQL at one:5432, two:5433"
    assert place({"host": "one,/run/pg", "port": "1"}) == "PostgreSQL at one:1, /run/pg"
