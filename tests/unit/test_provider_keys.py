"""A provider's keys: fetched, kept for a while, looked at again; whatever the provider does."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trustme

from tenantry.http import provider_keys
from tenantry.http.fetching import MAX_BYTES, trusting
from tenantry.http.provider_keys import MAX_WAITING, Pace, ProviderKeys
from tenantry.http.tokens import BadTokenError, TokenUnreadableError
from tests.identity_provider import LOOKS_BROKEN_OFF, KeyServer, Signer, key_server
from tests.waiting import DEADLINE, eventually

pytestmark = LOOKS_BROKEN_OFF

ONE, TWO = Signer("one"), Signer("two")

HASTY = Pace(every=3600.0, again=0.01, look=DEADLINE, patience=DEADLINE)
"""Looks when asked alone, and is not held up by a busy machine."""


@contextmanager
def running(
    url: str, pace: Pace = HASTY, tls: ssl.SSLContext | None = None
) -> Iterator[ProviderKeys]:
    keys = ProviderKeys(url, tls=tls or trusting(""), pace=pace)
    thread = threading.Thread(target=keys.run, name="provider-keys")
    thread.start()
    try:
        yield keys
    finally:
        keys.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def find(keys: ProviderKeys, kid: str) -> str | None:
    return asyncio.run(keys.find(kid, "ES256")).kid


def is_away(keys: ProviderKeys, kid: str) -> bool:
    try:
        find(keys, kid)
    except TokenUnreadableError:
        return True
    return False


def test_a_token_that_comes_before_the_keys_waits_for_them() -> None:
    with key_server(ONE) as server, running(server.url) as keys:
        assert find(keys, "one") == "one"
        assert server.asked in {1, 2}  # it may have come after the first look began


def test_a_new_key_is_known_by_the_first_token_that_it_has_signed() -> None:
    with key_server(ONE) as server, running(server.url) as keys:
        find(keys, "one")
        server.show_keys(ONE, TWO)
        assert find(keys, "two") == "two"
        asked = server.asked
        assert [find(keys, kid) for kid in ("one", "two")] == ["one", "two"]
        assert server.asked == asked


def test_a_key_that_was_taken_away_is_forgotten_at_the_next_look() -> None:
    with key_server(ONE, TWO) as server, running(server.url) as keys:
        find(keys, "one")
        server.show_keys(TWO)
        keys.look_soon()
        eventually(lambda: _refused(keys, "one"), what="the key is forgotten")
        assert find(keys, "two") == "two"


def _refused(keys: ProviderKeys, kid: str) -> bool:
    try:
        find(keys, kid)
    except BadTokenError:
        return True
    return False


def test_keys_are_as_old_as_the_last_look_that_succeeded() -> None:
    with key_server(ONE) as server, running(server.url) as keys:
        find(keys, "one")
        server.answer = lambda request: server.send(request, b"", 500)
        assert is_away(keys, "two")
        old = keys.age
        assert is_away(keys, "two")
        assert keys.age > old
        restored = time.monotonic()
        server.answer = server.show
        keys.look_soon()
        # However late this looks: they are younger than that moment.
        eventually(lambda: time.monotonic() - restored > keys.age, what="younger keys")
    never = ProviderKeys(server.url, tls=trusting(""), pace=HASTY)
    assert 0 <= never.age < keys.age


def test_keys_are_looked_at_every_so_often() -> None:
    pace = replace(HASTY, every=0.02)
    with key_server(ONE) as server, running(server.url, pace):
        eventually(lambda: server.asked > 3, what="looks that nobody has asked for")


def test_a_key_that_the_provider_does_not_have_is_none_only_after_a_look() -> None:
    with key_server(ONE) as server, running(server.url) as keys:
        find(keys, "one")
        asked = server.asked
        with pytest.raises(BadTokenError, match="does not have"):
            find(keys, "made up")
        assert server.asked == asked + 1


def test_made_up_names_make_few_looks_and_hold_few_requests() -> None:
    held = threading.Event()
    with key_server(ONE) as server, running(server.url) as keys:
        find(keys, "one")
        asked = server.asked

        def wait(request: BaseHTTPRequestHandler) -> None:
            held.wait(DEADLINE)
            server.show(request)

        async def flood() -> list[BaseException | object]:
            looking = asyncio.ensure_future(keys.find("first", "ES256"))
            await asyncio.to_thread(eventually, lambda: server.asked > asked)
            names = [f"made up {number}" for number in range(MAX_WAITING + 9)]
            waiting = [asyncio.ensure_future(keys.find(name, "ES256")) for name in names]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert (await keys.find("one", "ES256")).kid == "one"
            held.set()
            return await asyncio.gather(looking, *waiting, return_exceptions=True)

        server.answer = wait
        answers = asyncio.run(flood())
        refused = [one for one in answers if isinstance(one, TokenUnreadableError)]
        assert len(refused) == 9
        assert sum(isinstance(one, BadTokenError) for one in answers) == MAX_WAITING + 1
        assert server.asked == asked + 2


def test_looks_that_are_asked_for_keep_their_distance() -> None:
    pace = replace(HASTY, again=3600.0, patience=0.02)
    with key_server(ONE) as server, running(server.url, pace) as keys:
        eventually(lambda: not is_away(keys, "one"), what="the first look")
        for number in range(20):
            assert is_away(keys, f"made up {number}")
        assert server.asked == 1
        assert find(keys, "one") == "one"


def test_while_the_provider_is_away_its_keys_hold_for_a_while_and_then_nothing_is_told() -> None:
    with key_server(ONE) as server, running(server.url) as keys:
        find(keys, "one")
        server.answer = lambda request: server.send(request, b"later", 503)
        with pytest.raises(TokenUnreadableError):
            find(keys, "two")
        assert find(keys, "one") == "one"
        keys._pace = replace(HASTY, kept=0.0)
        with pytest.raises(TokenUnreadableError):
            find(keys, "one")
        keys._pace = HASTY
        server.answer = server.show
        server.show_keys(TWO)
        eventually(lambda: not is_away(keys, "two"), what="the provider is there again")


def test_of_a_provider_that_has_just_failed_nobody_waits_to_hear_it() -> None:
    with key_server() as server:
        server.answer = lambda request: server.send(request, b"", 500)
        with running(server.url, replace(HASTY, again=3600.0)) as keys:
            eventually(lambda: keys._failures, what="a look that has failed")
            assert is_away(keys, "one")
        assert server.asked == 1


def test_after_failures_the_provider_is_asked_again_without_anybody_waiting() -> None:
    with key_server(ONE) as server:
        server.answer = lambda request: server.send(request, b"", 500)
        with running(server.url, replace(HASTY, longest=0.05)) as keys:
            eventually(lambda: server.asked >= 3, what="looks after failures")
            server.answer = server.show
            eventually(lambda: not is_away(keys, "one"), what="the keys")


def _large(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(10 * MAX_BYTES // 65536):
        request.wfile.write(b" " * 65536)


def _compressed(request: BaseHTTPRequestHandler) -> None:
    KeyServer.send(request, gzip.compress(b" " * 10**7), Content_Encoding="gzip")


def _broken_off(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"keys": []')


ANSWERS: dict[str, tuple[Callable[[BaseHTTPRequestHandler], None], str]] = {
    "garbage": (lambda request: KeyServer.send(request, b"<html>"), "it is no JSON"),
    "another document": (lambda request: KeyServer.send(request, b"{}"), "it is no key set"),
    "nothing": (lambda request: KeyServer.send(request, b""), "it is no JSON"),
    "an error": (lambda request: KeyServer.send(request, b"{}", 404), "status 404"),
    "created": (lambda request: KeyServer.send(request, b'{"keys": []}', 201), "status 201"),
    "another place": (
        lambda request: KeyServer.send(request, b"", 302, Location="http://127.0.0.1:1/"),
        "sends elsewhere",
    ),
    "no http": (lambda request: request.wfile.write(b"\0\1\2\r\n\r\n") and None, ""),
    "too large": (_large, "larger than"),
    "compressed": (_compressed, "compressed"),
    "broken off": (_broken_off, ""),
}


@pytest.mark.parametrize(("answer", "why"), ANSWERS.values(), ids=ANSWERS)
def test_whatever_a_provider_answers_the_keys_from_before_hold(
    answer: Callable[[BaseHTTPRequestHandler], None], why: str
) -> None:
    told: list[str] = []
    with key_server(ONE) as server, running(server.url) as keys:
        keys._tell_failure = told.append  # type: ignore[method-assign]
        find(keys, "one")
        server.answer = answer
        assert is_away(keys, "two")
        assert find(keys, "one") == "one"
    assert why in told[0]


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_provider_that_drips_is_given_up_in_time(part: str) -> None:
    told: list[str] = []
    ended = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        if part == "body":
            request.send_response(200)
            request.end_headers()
        else:
            request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not ended.wait(0.01):
            request.wfile.write(b" " if part == "body" else b"X-A: b\r\n")

    with key_server() as server:
        server.answer = drip
        with running(server.url, replace(HASTY, look=0.1)) as keys:
            keys._tell_failure = told.append  # type: ignore[method-assign]
            eventually(lambda: told, what="it is given up")
        ended.set()
    assert told[0] == "it takes longer than 0.1 s"


def test_a_look_that_is_under_way_is_broken_off_at_the_end() -> None:
    ended = threading.Event()
    with key_server() as server:
        server.answer = lambda _: ended.wait(DEADLINE) and None
        with running(server.url) as keys, ThreadPoolExecutor(1) as pool:
            eventually(lambda: server.asked, what="a look")
            waiting = pool.submit(is_away, keys, "one")
            eventually(lambda: keys._waiting, what="a request that waits")
            keys.stop()
            assert waiting.result(DEADLINE)
            assert is_away(keys, "one")
        ended.set()


def test_who_has_waited_long_enough_is_told_so_and_leaves_nothing_behind() -> None:
    ended = threading.Event()
    with key_server() as server:
        server.answer = lambda _: ended.wait(DEADLINE) and None
        with running(server.url, replace(HASTY, patience=0.02)) as keys:
            eventually(lambda: server.asked, what="a look")
            assert is_away(keys, "one")
            assert keys._waiting == []
        ended.set()


def test_a_port_where_nobody_listens_is_told() -> None:
    with key_server() as server:
        url = server.url
    with running(url) as keys:
        assert is_away(keys, "one")


def test_by_https_a_provider_is_trusted_by_its_authority_alone(tmp_path: Path) -> None:
    mine, foreign = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    mine.issue_cert("127.0.0.1").configure_cert(context)
    for name, authority in (("mine", mine), ("foreign", foreign)):
        authority.cert_pem.write_to_path(str(tmp_path / name))
    with key_server(ONE, tls=context) as server:
        with running(server.url, tls=trusting(str(tmp_path / "mine"))) as keys:
            assert find(keys, "one") == "one"
        for tls in (trusting(str(tmp_path / "foreign")), trusting("")):
            with running(server.url, tls=tls) as keys:
                assert is_away(keys, "one")


def test_a_file_without_an_authority_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name, why in (("empty", "no certificate"), ("absent", "no such file"), ("", "directory")):
        with pytest.raises(ValueError, match=why):
            trusting(str(tmp_path / name))


def test_no_answer_is_wrong_while_keys_change() -> None:
    """What was signed with a key that the provider shows is taken, at once."""
    ended = threading.Event()
    with key_server(ONE) as server, running(server.url) as keys:
        shown = ["one"]
        lock = threading.Lock()

        def ask() -> int:
            count = 0
            while not ended.is_set():
                with lock:
                    kid = shown[-1]
                if find(keys, kid) == kid:
                    count += 1
            return count

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask) for _ in range(3)]
            signers = [ONE]
            for number in range(25):
                signers.append(Signer(f"key {number}"))
                server.show_keys(*signers)
                asked = server.asked
                with lock:
                    shown.append(f"key {number}")
                eventually(lambda asked=asked: server.asked > asked)  # type: ignore[misc]
            ended.set()
            assert all(one.result(DEADLINE) for one in asking)


def test_the_times_stand_in_an_order_that_works() -> None:
    pace = Pace()
    assert pace.again <= pace.longest < pace.every < pace.kept
    assert pace.again + 2 * pace.look <= pace.patience
    assert 2 * pace.look < provider_keys.LONGEST_LOOK
