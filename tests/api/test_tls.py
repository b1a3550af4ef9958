"""HTTPS on TCP, with a certificate of our own making."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tenantry.api import handing_on
from tenantry.api.peers import Peers
from tenantry.http import listeners
from tenantry.http import server as serving_module
from tenantry.http.listeners import ListenError
from tenantry.http.server import ApiServer
from tenantry.http.tokens import Tokens
from tenantry.nodes.port import Introduction, Owned
from tenantry.settings import SettingsError, load
from tests.api.serving import SECRET, World, serving
from tests.waiting import DEADLINE

OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl makes the certificates")


def _make(directory: Path, name: str, *options: str) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    subprocess.run(
        [
            str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
            "-days", "2", "-keyout", str(key), "-out", str(certificate), *options,
        ],
        check=True,
        capture_output=True,
        timeout=DEADLINE,
    )  # fmt: skip
    return certificate, key


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return _make(tmp_path_factory.mktemp("tls"), "server", "-nodes")


def test_tcp_speaks_tls_and_the_control_socket_does_not(files: tuple[Path, Path]) -> None:
    with serving(World(), tls=files) as api:
        context = ssl.create_default_context(cafile=files[0])
        url = f"https://127.0.0.1:{api.server.tcp_port}"
        with httpx.Client(
            base_url=url, verify=context, timeout=DEADLINE, trust_env=False
        ) as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            assert client.post("/tenants", json={"name": "Acme"}).status_code == 201
            assert api.world.control.metadata[-1].actor == "anonymous@127.0.0.1"
        assert api.control.get("/healthz").status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            api.tcp.get("/healthz")
        with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
            httpx.get(f"{url}/healthz", timeout=DEADLINE, trust_env=False)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_node_hands_on_by_tls_to_one_whose_certificate_it_trusts(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, *, trusted: bool
) -> None:
    monkeypatch.setattr(handing_on, "UNREACHABLE_PATIENCE", 0.2)
    ways: dict[str, Introduction] = {}
    peers = Peers(
        "one", ways.get, tokens=lambda: Tokens(SECRET), trusted=files[:1] if trusted else ()
    )
    there = Peers("two", ways.get)
    with (
        serving(World(jwt_secret=SECRET, peers=there), tls=files) as two,
        serving(World(jwt_secret=SECRET, peers=peers)) as one,
    ):
        two.world.cluster.name = "two"
        two.world.create("acme")
        one.world.cluster.elsewhere["acme"] = Owned(tenant_id="acme", node="two", epoch=1)
        ways["two"] = Introduction(
            name="two",
            version="0.1.0",
            weight=1.0,
            machine="another",
            socket="",
            address=f"https://localhost:{two.server.tcp_port}",
        )
        answer = one.control.post("/tenants/acme/pause")
        assert answer.status_code == (200 if trusted else 503), answer.text
        # Nothing of it is said to who can't show who it is.
        assert len(two.world.control.metadata) == (2 if trusted else 1)
        if not trusted:
            assert "certificate" in answer.json()["detail"].lower()


def test_old_versions_of_tls_are_refused(files: tuple[Path, Path]) -> None:
    with serving(World(), tls=files) as api:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(files[0])
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(
                ("127.0.0.1", api.server.tcp_port or 0), timeout=DEADLINE
            ) as raw,
            pytest.raises(OSError),
        ):
            old.wrap_socket(raw, server_hostname="127.0.0.1")


def test_a_client_that_does_not_shake_hands_is_let_go(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "HANDSHAKE_SECONDS", 0.2)
    with (
        serving(World(), tls=files) as api,
        socket.create_connection(("127.0.0.1", api.server.tcp_port or 0), timeout=DEADLINE) as raw,
    ):
        assert raw.recv(1) == b""


def test_a_client_that_shakes_no_hands_has_but_some_connections(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "HANDSHAKES_OF_A_CLIENT", 3)
    monkeypatch.setattr(listeners, "HURRY_SECONDS", 0.0)
    with serving(World(), tls=files) as api, ExitStack() as opened:
        address = ("127.0.0.1", api.server.tcp_port or 0)
        context = ssl.create_default_context(cafile=files[0])
        # Who has come through a handshake is not counted any more.
        used = opened.enter_context(
            context.wrap_socket(
                socket.create_connection(address, timeout=DEADLINE), server_hostname="127.0.0.1"
            )
        )
        silent = [
            opened.enter_context(socket.create_connection(address, timeout=DEADLINE))
            for _ in range(6)
        ]
        for one in silent[:3]:
            assert one.recv(1) == b""
        # Those that are left may still shake hands, the oldest of them too.
        late = opened.enter_context(context.wrap_socket(silent[3], server_hostname="127.0.0.1"))
        for one in (used, late):
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one.recv(100).startswith(b"HTTP/1.1 200")


def test_of_too_many_handshakes_in_all_those_of_whoever_has_most_make_room() -> None:
    pairs = [socket.socketpair() for _ in range(6)]
    owners = ["one", "one", "two", "one", "three", "four"]
    known = listeners.Handshakes(4)
    for (mine, _), owner in zip(pairs, owners, strict=True):
        known.begin(mine, owner)
    for _, theirs in pairs:
        theirs.setblocking(False)
    ended = []
    for number, (_, theirs) in enumerate(pairs):
        with suppress(BlockingIOError):
            assert theirs.recv(1) == b""
            ended.append(number)
    assert ended == [0, 1]
    for pair in pairs:
        for one in pair:
            one.close()
    # What has been closed in the meantime takes nobody's place.
    mine, theirs = socket.socketpair()
    known.begin(mine, "five")
    assert known._addresses == {mine.fileno(): "five"}
    mine.close()
    theirs.close()


def test_files_that_will_not_do_are_named_before_anything_is_served(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = files
    other = _make(tmp_path, "other", "-nodes")
    encrypted = _make(tmp_path, "encrypted", "-passout", "pass:secret")
    text = tmp_path / "text"
    text.write_text("no PEM")
    for bad, word in (
        ((certificate, tmp_path / "missing"), "missing"),
        ((tmp_path / "missing", key), "missing"),
        ((certificate, other[1]), "belong together"),
        ((text, key), "PEM"),
        ((certificate, text), "PEM"),
        (encrypted, "not be encrypted"),
    ):
        server = ApiServer(World().app(), tcp=("127.0.0.1", 0), tls=bad)
        with pytest.raises(ListenError, match=word) as caught:
            server.bind()
        assert "\n" not in str(caught.value)
        assert server.tcp_port is None


def test_one_of_the_two_files_is_not_enough(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "TENANTRY_SERVER_TLS_CERT": "/a.pem"}
    with pytest.raises(SettingsError, match=r"server\.tls_key: certificate and key are needed"):
        load(None, environ=environ)
    environ |= {"TENANTRY_SERVER_TLS_KEY": "~/b.key"}
    tls = load(None, environ=environ).server.tls
    assert tls is not None
    assert tls[0] == Path("/a.pem")
    assert load(None, environ={"HOME": str(tmp_path)}).server.tls is None
