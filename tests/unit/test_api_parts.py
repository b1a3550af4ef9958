from __future__ import annotations

import json
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import floor
from typing import Any

import jwt
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenantry.api import access, publisher
from tenantry.api.app import ROUTES
from tenantry.api.openapi import Routes
from tenantry.api.paging import BadCursorError, Cursors
from tenantry.api.publisher import Router, partition_of_key
from tenantry.api.schemas.common import format_time, parse_time
from tenantry.api.schemas.daemon import runtime_of, runtimes_json
from tenantry.control.port import TenantRuntime
from tenantry.http import auth
from tenantry.http.tokens import LEEWAY_SECONDS, BadTokenError, Principal, Scope, Tokens
from tests.api.serving import SECRET

CURSORS = Cursors(b"sixteen bytes or more")


def test_a_cursor_gives_back_what_it_holds() -> None:
    assert CURSORS.open_place(CURSORS.seal_place(7, 2, "a", "b"), "a", "b") == (7, 2)


@pytest.mark.parametrize("binding", [("b",), ("a", "x"), ("ax",), ()])
def test_a_cursor_opens_only_where_it_belongs(binding: tuple[str, ...]) -> None:
    with pytest.raises(BadCursorError):
        CURSORS.open(CURSORS.seal(b"1", "a"), *binding)


def test_a_cursor_of_another_key_is_refused() -> None:
    with pytest.raises(BadCursorError):
        Cursors(b"quite another key").open(CURSORS.seal(b"1", "a"), "a")


@given(st.text(max_size=80))
def test_no_invented_cursor_opens(text: str) -> None:
    with pytest.raises(BadCursorError):
        CURSORS.open(text, "a")


@example(2**63 - 1, 8, 0x70)  # `/` for `_`
@given(st.integers(0, 2**63 - 1), st.integers(0, 31), st.integers(1, 255))
def test_a_cursor_changed_in_any_byte_is_refused(position: int, place: int, flip: int) -> None:
    token = bytearray(CURSORS.seal_place(position, 1, "a").encode())
    token[place] ^= flip
    with pytest.raises(BadCursorError):
        CURSORS.open(token.decode("latin-1"), "a")


def test_a_short_cursor_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Cursors(b"short")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31t12:00:00.123456789z", datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)),
        ("2026-01-31T12:00:00+02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("2026-01-31T12:00:00 02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_utc(text: str, moment: datetime) -> None:
    assert parse_time(text) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-02-30T12:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "2026-01-31T12:00:60Z",
        "٢026-01-31T12:00:00Z",
        "20260131T120000Z",
    ],
)
def test_what_is_no_time_is_none(text: str) -> None:
    assert parse_time(text) is None


@given(st.text(max_size=40))
def test_reading_a_time_never_fails(text: str) -> None:
    parse_time(text)


def test_times_are_written_with_z() -> None:
    assert format_time(datetime(2026, 1, 31, 12, tzinfo=UTC)) == "2026-01-31T12:00:00.000000Z"


def test_the_partition_of_a_key_is_its_crc_32_modulo_the_partitions() -> None:
    assert partition_of_key("customer-42", 7) == zlib.crc32(b"customer-42") % 7


def test_messages_without_a_key_take_turns() -> None:
    router = Router()
    keys = [router.routing_key("acme", "logs", 3, None) for _ in range(6)]
    assert keys == ["logs.0", "logs.1", "logs.2"] * 2


def test_each_topic_has_its_own_turns() -> None:
    router = Router()
    assert router.routing_key("acme", "logs", 3, None) == "logs.0"
    assert router.routing_key("acme", "events", 3, None) == "events.0"


def test_the_default_topic_has_no_partitions() -> None:
    assert Router().routing_key("acme", "default", 3, "key") == "default"


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.lists(_JSON, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_cut_out_members_are_the_values_themselves(
    values: list[object], indent: int | None, ascii_only: bool
) -> None:
    objects = [{"before": [1, {"payload": 0}], "payload": one, "after": "}"} for one in values]
    body = json.dumps(objects, indent=indent, ensure_ascii=ascii_only).encode()
    assert [json.loads(one) for one in publisher.members(body, "payload")] == values


def test_a_number_keeps_every_digit() -> None:
    body = b' { "payload" : 12345678901234567890123.4500 } '
    assert publisher.members(body, "payload") == [b"12345678901234567890123.4500"]


def test_of_a_member_that_comes_twice_the_last_holds() -> None:
    assert publisher.members(b'{"payload":1,"payload":[2]}', "payload") == [b"[2]"]


def test_what_is_nested_too_deeply_is_bad_json() -> None:
    body = b'{"payload":' + b"[" * 1020 + b"]" * 1020 + b"}"
    orjson.loads(body)
    try:
        publisher.members(body, "payload")
    except json.JSONDecodeError as error:
        assert "nested" in error.msg  # noqa: PT017 - whether it fails depends on the stack's depth


RUNTIME = TenantRuntime(
    tenant_id="a", workers_current=3, consuming=True, unsettled=7, rate=12.5, pending=5, stored=9,
    duplicates=3, dead_lettered=1, parked="why", parked_at=datetime(2026, 1, 31, tzinfo=UTC),
    latency_p99_ms=41.5, rate_limit=500, backlog_limit=1000,
)  # fmt: skip


def test_what_a_node_of_an_earlier_version_does_not_tell_of_a_tenant_is_not_known() -> None:
    told = orjson.loads(runtimes_json({"a": RUNTIME}))["data"]["a"]
    assert runtime_of(told) == RUNTIME
    for name in ("latency_p99_ms", "rate_limit", "backlog_limit"):
        del told[name]
    earlier = replace(RUNTIME, latency_p99_ms=None, rate_limit=None, backlog_limit=None)
    assert runtime_of(told) == earlier


NOW = datetime.now(UTC)
TOKENS = Tokens(SECRET)
END = floor((NOW + timedelta(hours=1)).timestamp())


def test_an_admins_token_is_read_back() -> None:
    token = TOKENS.issue(subject="ann", now=NOW, ttl=timedelta(hours=1))
    assert TOKENS.read(token) == Principal(name="ann", scope=Scope.ADMIN, expires_at=END)


@pytest.mark.parametrize("payloads", [False, True])
@pytest.mark.parametrize("scope", list(Scope))
def test_another_node_is_told_who_calls_and_what_they_may(scope: Scope, *, payloads: bool) -> None:
    tenant_id = "acme" if scope is Scope.TENANT else None
    shows = payloads or scope in {Scope.ADMIN, Scope.TENANT}
    who = Principal(
        name="ann", scope=scope, tenant_id=tenant_id, payloads=shows, issued_at=1.5, expires_at=2.5
    )
    name, value = auth.caller_header({"type": "http", auth._PRINCIPAL_KEY: who})
    assert name == auth.CALLER
    assert auth._caller_said(value.decode())[0] == who


def test_a_tenants_token_names_its_tenant() -> None:
    token = TOKENS.issue(subject="app", now=NOW, ttl=timedelta(hours=1), tenant_id="acme")
    assert TOKENS.read(token) == Principal(
        name="app",
        scope=Scope.TENANT,
        tenant_id="acme",
        issued_at=NOW.timestamp(),
        expires_at=END,
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("app", "acme"), ("report", "acme"), True),
        (("app", "acme"), ("app", "globex"), False),
        (("ann", None), ("bob", None), False),
        (("acme", None), ("app", "acme"), False),
    ],
)
def test_a_tenant_is_one_client_under_however_many_names(
    one: tuple[str, str | None], other: tuple[str, str | None], *, same: bool
) -> None:
    def client(name: str, tenant_id: str | None) -> str:
        kind = Scope.TENANT if tenant_id else Scope.ADMIN
        return auth.client_of(
            {auth._PRINCIPAL_KEY: Principal(name=name, scope=kind, tenant_id=tenant_id)}
        )

    assert (client(*one) == client(*other)) is same


OTHER = "another secret, and of thirty-two bytes or more"


def _signed(algorithm: str = "HS256", secret: str = SECRET, **claims: Any) -> str:
    full = {"exp": NOW + timedelta(hours=1), "sub": "ann", "scope": "admin"} | claims
    given = {name: value for name, value in full.items() if value is not None}
    return jwt.encode(given, secret, algorithm=algorithm)


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": None},
        {"exp": "soon"},
        {"exp": NOW - timedelta(seconds=LEEWAY_SECONDS + 5)},
        {"nbf": NOW + timedelta(hours=1)},
        {"scope": None},
        {"scope": "root"},
        {"scope": ["admin"]},
        {"scope": "tenant"},
        {"scope": "tenant", "tenant_id": "A B"},
        {"scope": "tenant", "tenant_id": 7},
    ],
    ids="-".join,
)
def test_a_token_with_bad_claims_is_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(BadTokenError):
        TOKENS.read(_signed(**claims))


def test_a_token_that_is_not_signed_with_the_secret_by_hs256_is_refused() -> None:
    TOKENS.read(_signed())
    for token in (
        "",
        "a.b.c",
        "é",
        _signed(secret=OTHER),
        _signed(algorithm="HS512"),
        _signed(algorithm="none", secret=""),
    ):
        with pytest.raises(BadTokenError):
            TOKENS.read(token)


def test_clocks_may_differ_by_less_than_a_minute() -> None:
    assert LEEWAY_SECONDS <= 60
    now = datetime.now(UTC)
    for late in ({"exp": now - timedelta(seconds=5)}, {"nbf": now + timedelta(seconds=15)}):
        assert TOKENS.read(_signed(**late)).name == "ann"


def test_a_short_secret_is_refused_and_so_is_none() -> None:
    for secrets in ([], ["short"], [SECRET, "short"]):
        with pytest.raises(ValueError, match="32 bytes"):
            Tokens(*secrets)


def test_the_first_secret_signs_and_all_of_them_verify() -> None:
    old, new = Tokens(OTHER), Tokens(SECRET, OTHER)
    before = old.issue(subject="ann", now=NOW, ttl=timedelta(hours=1))
    after = new.issue(subject="ann", now=NOW, ttl=timedelta(hours=1))
    assert new.read(before) == new.read(after) == TOKENS.read(after)
    for tokens, token in ((old, after), (TOKENS, before)):
        with pytest.raises(BadTokenError, match="signed"):
            tokens.read(token)
    late = _signed(secret=OTHER, exp=NOW - timedelta(hours=1))
    with pytest.raises(BadTokenError, match="expired"):
        new.read(late)


def test_what_can_not_be_shown_of_a_holders_name_is_not_taken() -> None:
    assert TOKENS.read(_signed(sub="a\0b\nc\ud800 é")).name == "a?b?c? é"


@pytest.mark.parametrize("exp", [10**400, 2**63])
def test_a_token_may_end_beyond_all_calendars(exp: int) -> None:
    assert TOKENS.read(_signed(exp=exp)).expires_at == 2**53


def test_a_token_is_good_until_it_ends_and_for_what_clocks_may_differ() -> None:
    who = Principal(name="ann", scope=Scope.ADMIN, expires_at=NOW.timestamp())
    later = lambda seconds: NOW + timedelta(seconds=seconds)  # noqa: E731
    assert who.good_for(NOW) == LEEWAY_SECONDS
    assert who.good_for(later(LEEWAY_SECONDS - 1)) == pytest.approx(1)
    assert who.good_for(later(LEEWAY_SECONDS + 1)) == 0
    assert replace(who, expires_at=None).good_for(NOW) is None


def test_a_route_without_a_rule_is_noticed() -> None:
    forgotten = Routes("daemon")
    forgotten("GET /forgotten", "Forgotten", None)(lambda: None)
    with pytest.raises(RuntimeError, match="/forgotten"):
        access.check_routes([*ROUTES, *forgotten])


def test_only_health_and_documentation_are_public() -> None:
    public = {path for (_, path), rule in access.TABLE.items() if rule is access.Access.PUBLIC}
    assert public == {"/healthz", "/readyz", "/openapi.json", "/docs", "/swagger/{asset}"}


def test_every_endpoint_gives_a_response_that_is_ready_to_be_sent() -> None:
    # What a route says of its answers is for the document: nothing is made to fit it.
    given_back = {one.endpoint.__annotations__["return"] for one in ROUTES}
    assert len(ROUTES) > 30
    assert given_back == {"Response"}
