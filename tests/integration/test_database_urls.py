"""A URL that is given to a tenant works as it is, however the daemon's own way in is written."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tenantry.database.conninfo import url_for
from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.migrations import migrate
from tenantry.database.pool import Database
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.sql_access_postgres import PostgresSqlAccess
from tests.services_postgres import admin_url, drop_database, grant
from tests.waiting import DEADLINE

OPENSSL = shutil.which("openssl")
SECRET = "s3cret"
SSL_REQUEST = bytes.fromhex("0000000804d2162f")

EVERY_PARAMETER = {
    "host": "db.example.org,10.0.0.2", "port": "5432,5433", "hostaddr": "10.0.0.1,10.0.0.2",
    "dbname": "app", "user": "daemon", "password": SECRET, "passfile": f"/{SECRET}",
    "service": SECRET, "options": f"-c tenantry.x={SECRET}", "application_name": SECRET,
    "fallback_application_name": SECRET, "client_encoding": SECRET, "connect_timeout": "7",
    "sslmode": "verify-full", "sslrootcert": "/etc/ca.pem", "sslcert": f"/{SECRET}.pem",
    "sslkey": f"/{SECRET}.key", "sslpassword": SECRET, "sslcrl": f"/{SECRET}.crl",
    "sslcrldir": f"/{SECRET}", "sslsni": "0", "ssl_min_protocol_version": "TLSv1.3",
    "sslcertmode": "require", "channel_binding": "require", "require_auth": "gss",
    "target_session_attrs": "read-write", "load_balance_hosts": "random", "gssencmode": "disable",
    "gsslib": "gssapi", "krbsrvname": "pg", "gssdelegation": "1", "keepalives": "0",
    "keepalives_idle": "1", "keepalives_interval": "1", "keepalives_count": "1",
    "tcp_user_timeout": "1", "replication": "0", "requirepeer": SECRET, "sslnegotiation": "direct",
    "sslcompression": "0", "ssl_max_protocol_version": "TLSv1.3", "min_protocol_version": "3.0",
    "max_protocol_version": "3.2", "sslkeylogfile": f"/{SECRET}", "authtype": SECRET,
    "servicefile": f"/{SECRET}", "scram_client_key": SECRET, "scram_server_key": SECRET,
    "oauth_issuer": SECRET, "oauth_client_id": SECRET, "oauth_client_secret": SECRET,
    "oauth_scope": SECRET,
}  # fmt: skip


def test_of_all_parameters_only_the_way_in_is_given_on_and_nothing_of_the_daemon_s_own() -> None:
    known = {one.keyword.decode() for one in psycopg.pq.Conninfo.get_defaults()}
    assert known <= set(EVERY_PARAMETER), "a parameter without a decision"
    url = url_for(EVERY_PARAMETER, "tenant", "p")
    assert SECRET not in url
    assert parse_qs(urlsplit(url).query) == {
        "hostaddr": ["10.0.0.1,10.0.0.2"],
        "connect_timeout": ["7"],
        "sslmode": ["verify-full"],
        "sslrootcert": ["/etc/ca.pem"],
        "sslsni": ["0"],
        "sslnegotiation": ["direct"],
        "ssl_min_protocol_version": ["TLSv1.3"],
        "ssl_max_protocol_version": ["TLSv1.3"],
        "channel_binding": ["require"],
        "gssencmode": ["disable"],
        "krbsrvname": ["pg"],
        "target_session_attrs": ["primary"],
    }


def test_a_certificate_s_path_is_given_on_so_that_it_is_found_from_everywhere() -> None:
    url = url_for({"host": "db", "sslrootcert": "ca.pem"}, "u", "p")
    assert conninfo_to_dict(url)["sslrootcert"] == str(Path("ca.pem").absolute())
    url = url_for({"host": "db", "sslrootcert": "system"}, "u", "p")
    assert conninfo_to_dict(url)["sslrootcert"] == "system"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that is its own authority, and its key."""
    if OPENSSL is None:
        pytest.skip("openssl makes the certificates")
    made = tmp_path_factory.mktemp("ca") / "server.pem"
    return made, make_certificate(made)


def make_certificate(made: Path) -> Path:
    """Make a certificate of 127.0.0.1, and give the file of its key."""
    key = made.with_suffix(".key")
    subprocess.run(
        [
            str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
            "-days", "2", "-keyout", str(key), "-out", str(made),
        ],
        check=True, capture_output=True, timeout=DEADLINE,
    )  # fmt: skip
    return key


class TlsDoor(socketserver.ThreadingTCPServer):
    """A server's door that lets in by TLS only: the private PostgreSQL is built without it."""

    daemon_threads = False
    allow_reuse_address = True

    def __init__(self, certificate: tuple[Path, Path], behind: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Guest)
        self.behind = str(behind)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*certificate)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that refuse the certificate."""


class _Guest(socketserver.BaseRequestHandler):
    server: TlsDoor

    def handle(self) -> None:
        if self.request.recv(8, socket.MSG_WAITALL) != SSL_REQUEST:
            return
        self.request.sendall(b"S")
        with (
            self.server.context.wrap_socket(self.request, server_side=True) as client,
            socket.socket(socket.AF_UNIX) as inside,
        ):
            inside.connect(self.server.behind)
            answers = threading.Thread(target=_pass_on, args=(inside, client))
            answers.start()
            _pass_on(client, inside)
            answers.join(DEADLINE)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with suppress(OSError):
        other.shutdown(socket.SHUT_RDWR)


@contextmanager
def guarded_by_tls(certificate: tuple[Path, Path]) -> Iterator[tuple[int, str, str]]:
    """A database behind such a door; give its port, its owner and the owner's password."""
    parts = urlsplit(admin_url())
    directory = conninfo_to_dict(admin_url())["host"]
    role = f"boss_{secrets.token_hex(4)}"
    with psycopg.connect(admin_url(), autocommit=True) as connection:
        name = sql.Identifier(role)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEROLE PASSWORD 'a b'").format(name))
        connection.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(name))
    try:
        with TlsDoor(certificate, Path(directory) / ".s.PGSQL.5432") as door:
            serving = threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 0.05})
            serving.start()
            yield door.server_address[1], role, "a b"
            door.shutdown()
            serving.join(DEADLINE)
    finally:
        with psycopg.connect(admin_url(), autocommit=True) as connection:
            row = connection.execute("SELECT oid FROM pg_database WHERE datname = %s", [role])
            made = f"%\\_{(row.fetchone() or [0])[0]}"
            roles = connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE %s", [made])
            drop_database(parts._replace(path=f"/{role}").geturl())
            for one in (*(found for (found,) in roles.fetchall()), role):
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(one)))


def test_a_reader_s_url_works_by_tls_with_every_parameter_of_the_daemon_s(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with guarded_by_tls(certificate) as (port, boss, password):
        ca = quote(str(certificate[0]), safe="/")
        rest = (
            f"sslmode=verify-full&sslrootcert={ca}&target_session_attrs=read-write"
            "&options=-c%20work_mem%3D5MB&application_name=mine"
            "&connect_timeout=5&require_auth=scram-sha-256&gssencmode=disable"
        )
        who = f"{boss}:{quote(password)}"
        url = f"postgresql://{who}@127.0.0.1:{port}/{boss}?{rest}"
        migrate(url)
        service = tmp_path / "services"
        service.write_text(
            f"[mine]\nhost=127.0.0.1\nport={port}\ndbname={boss}\nuser={boss}\n"
            f"password={password}\nsslmode=verify-full\nsslrootcert={certificate[0]}\n"
        )
        monkeypatch.setenv("PGSERVICEFILE", str(service))
        several = f"postgresql://{who}@127.0.0.1:1,127.0.0.1:{port}/{boss}?{rest}"
        numeric = f"{url}&hostaddr=127.0.0.1&load_balance_hosts=random"
        for way in (url, several, numeric, "postgresql:///?service=mine"):
            with closing(Database(way)) as database:
                database.open()
                PostgresMessageStore(database).create_partition("a")
                given = grant(PostgresSqlAccess(database), "a").url
            # A client elsewhere has neither our service file nor our environment.
            monkeypatch.delenv("PGSERVICEFILE", raising=False)
            with psycopg.connect(given, autocommit=True) as connection:
                assert connection.pgconn.ssl_in_use
                assert connection.execute("SELECT count(*) FROM messages").fetchone() == (0,)
            assert conninfo_to_dict(given)["sslmode"] == "verify-full"
            monkeypatch.setenv("PGSERVICEFILE", str(service))
        wrong = url.replace("@127.0.0.1", "@db.example") + "&hostaddr=127.0.0.1"
        with pytest.raises(DatabaseUnavailableError) as caught:
            Database(wrong).open(0)
        assert "must name the server as its certificate does" in str(caught.value)
        monkeypatch.setenv("HOME", str(tmp_path))
        stranger = certificate[0].parent / "stranger.pem"
        make_certificate(stranger)
        with pytest.raises(DatabaseUnavailableError, match="file of the authority that signed"):
            Database(url.replace(ca, quote(str(stranger), safe="/"))).open(0)
        other = certificate[0].parent / "other.pem"
        assert not os.path.lexists(other)
        with pytest.raises(DatabaseUnavailableError, match="does not exist"):
            Database(url.replace(ca, quote(str(other), safe="/"))).open(0)
