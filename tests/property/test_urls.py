"""Whatever is put into a URL that is given out, its readers get the same out of it."""

from __future__ import annotations

import pika
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.database.conninfo import url_for
from tenantry.database.embedded import url_of
from tenantry.tenant_client.connecting import Addresses
from tenantry.urls import amqp_url, without_user

AWKWARD = "a b+c%d#e?f&g=h'i\"j\\k:l@m;n[o]ü,~|漢😀"

text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
names = text.filter(lambda one: "," not in one and "/" not in one and one not in (".", ".."))
hosts = st.sampled_from(["db", "db.example.org", "10.0.0.1", "::1", "fe80::1%eth0"])
ports = st.integers(1, 65535)


@given(directory=names, user=text, password=text, database=text, port=ports)
@example(
    directory=AWKWARD.replace(",", ""), user=AWKWARD, password=AWKWARD, database=AWKWARD, port=5432
)
def test_a_postgres_url_on_a_socket_reads_as_it_was_written(
    directory: str, user: str, password: str, database: str, port: int
) -> None:
    given = {"host": f"/run/{directory}", "port": str(port), "dbname": database}
    read = conninfo_to_dict(url_for(given, user, password))
    assert read == given | {"user": user, "password": password}


@given(
    places=st.lists(st.tuples(hosts, ports), min_size=1, max_size=3),
    password=text,
    certificate=names,
)
@example(places=[("db", 5432)], password=AWKWARD, certificate=AWKWARD.replace(",", ""))
def test_a_postgres_url_with_hosts_reads_as_it_was_written(
    places: list[tuple[str, int]], password: str, certificate: str
) -> None:
    given = {
        "host": ",".join(host for host, _ in places),
        "port": ",".join(str(port) for _, port in places),
        "dbname": "app",
        "sslrootcert": f"/etc/{certificate}",
    }
    read = conninfo_to_dict(url_for(given, "u", password))
    assert read == given | {"user": "u", "password": password}


@given(directory=names)
@example(directory=AWKWARD.replace(",", ""))
def test_the_embedded_servers_url_reads_as_it_was_written(directory: str) -> None:
    read = conninfo_to_dict(url_of(f"/run/{directory}"))
    assert read == {
        "user": "postgres",
        "dbname": "postgres",
        "host": f"/run/{directory}",
        "port": "5432",
    }


@given(user=text, password=text, vhost=text, host=hosts, port=ports)
@example(user=AWKWARD, password=AWKWARD, vhost=AWKWARD, host="::1", port=5671)
def test_an_amqp_url_reads_as_it_was_written(
    user: str, password: str, vhost: str, host: str, port: int
) -> None:
    url = amqp_url(scheme="amqp", user=user, password=password, host=host, port=port, vhost=vhost)
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    for one in (url, Addresses(amqp=place).at(url)):
        read = pika.URLParameters(one)
        assert (read.host, read.port, read.virtual_host) == (host, port, vhost)
        credentials = read.credentials
        assert isinstance(credentials, pika.PlainCredentials)
        assert (credentials.username, credentials.password) == (user, password)


@settings(max_examples=5)  # each makes a client of the management API
@given(vhost=text, password=text)
@example(vhost=AWKWARD, password=AWKWARD)
def test_a_tenants_url_leads_where_the_daemons_own_does(vhost: str, password: str) -> None:
    own = amqp_url(
        scheme="amqp", user="u", password=password, host="127.0.0.1", port=5672, vhost=vhost
    )
    administration = RabbitAdministration(
        url=own,
        management_url="http://u:p@127.0.0.1:1",
        queue_type="quorum",
        installation="calm-heron-7f3a",
    )
    try:
        given, _ = administration.new_credentials("acme")
    finally:
        administration.close()
    read = pika.URLParameters(given.amqp_url)
    assert (read.host, read.port, read.virtual_host) == ("127.0.0.1", 5672, vhost)


@given(user=text, password=text)
@example(user=AWKWARD, password=AWKWARD)
def test_what_is_shown_of_a_url_has_no_password(user: str, password: str) -> None:
    url = amqp_url(scheme="amqp", user=user, password=password, host="::1", port=1, vhost="/")
    assert without_user(url) == "amqp://[::1]:1/%2F"
