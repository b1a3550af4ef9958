"""`tenantry token`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest

from tenantry.cli.main import main
from tenantry.http.tokens import Scope, Tokens
from tests.api.serving import SECRET

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENANTRY_JWT_SECRET", SECRET)
    monkeypatch.setenv("TENANTRY_STATE_DIR", str(tmp_path))


def test_a_tenants_token_is_one_the_daemon_takes(capsys: Output) -> None:
    assert main(["token", "--tenant", "acme"]) == 0
    principal = Tokens(SECRET).read(capsys.readouterr().out.strip())
    assert (principal.scope, principal.tenant_id) == (Scope.TENANT, "acme")


def test_an_admins_token_names_its_holder_and_its_end(capsys: Output) -> None:
    assert main(["token", "--admin", "--ttl", "7d", "--subject", "ann", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    claims = jwt.decode(shown["token"], SECRET, algorithms=["HS256"])
    assert (claims["scope"], claims["sub"], shown["subject"]) == ("admin", "ann", "ann")
    left = datetime.fromtimestamp(claims["exp"], UTC) - datetime.now(UTC)
    assert timedelta(days=6, hours=23) < left <= timedelta(days=7)


@pytest.mark.parametrize(
    ("arguments", "scope", "payloads"),
    [
        (["--read"], Scope.READ, False),
        (["--read", "--payloads"], Scope.READ, True),
        (["--operate"], Scope.OPERATE, False),
        (["--operate", "--payloads"], Scope.OPERATE, True),
    ],
)
def test_an_operators_token_is_good_for_what_was_asked(
    arguments: list[str], scope: Scope, payloads: bool, capsys: Output
) -> None:
    assert main(["token", *arguments, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["scope"] == " ".join(one.removeprefix("--") for one in arguments)
    principal = Tokens(SECRET).read(shown["token"])
    assert (principal.scope, principal.payloads, principal.tenant_id) == (scope, payloads, None)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--read", "--operate"],
        ["--read", "--tenant", "acme"],
        ["--payloads"],
        ["--admin", "--payloads"],
        ["--admin", "--tenant", "acme"],
        ["--tenant", "Not An Id"],
        ["--tenant", ""],
        ["--admin", "--ttl", "0s"],
        ["--admin", "--ttl", "1"],
        ["--admin", "--ttl", "-1h"],
        ["--admin", "--ttl", "99999d"],
        ["--admin", "--ttl", "999999999d"],
        ["--admin", "--subject", ""],
        ["--admin", "--subject", "a\nb"],
    ],
)
def test_bad_usage_is_exit_code_2(arguments: list[str], capsys: Output) -> None:
    assert main(["token", *arguments]) == 2
    assert capsys.readouterr().out == ""


def test_without_a_secret_there_is_no_token(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.delenv("TENANTRY_JWT_SECRET")
    assert main(["token", "--admin"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "security.jwt_secret is empty" in captured.err


def test_a_short_secret_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setenv("TENANTRY_JWT_SECRET", "short and secret")
    assert main(["token", "--admin"]) == 2
    captured = capsys.readouterr()
    assert "security.jwt_secret: must be at least 32 bytes" in captured.err
    assert "short and secret" not in captured.err
