"""The settings by which people log in to the page: whole, and safe, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenantry.http.oidc import Registration
from tenantry.settings import Settings
from tests.unit.test_settings import PROVIDED, read, refusal

HIDDEN = "hidden, and 100% odd"
WHOLE = {
    **PROVIDED,
    "TENANTRY_JWT_SECRET": "s" * 32,
    "TENANTRY_SECURITY_ISSUER": "https://login.test/realms/one",
    "TENANTRY_SERVER_PUBLIC_URL": "https://ops.test/tenantry/",
    "TENANTRY_OIDC_CLIENT_ID": "tenantry-ui",
    "TENANTRY_OIDC_CLIENT_SECRET": HIDDEN,
    "TENANTRY_OIDC_SESSION_SECONDS": "3600",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_how_people_log_in_is_what_the_settings_say(file: Path) -> None:
    assert Registration.of(Settings()) is None
    settings = read(file, **WHOLE, TENANTRY_OIDC_SCOPES=" openid  groups ")
    found = Registration.of(settings)
    assert found is not None
    assert found.redirect_uri == "https://ops.test/tenantry/ui/callback"
    assert (found.issuer, found.client_id) == ("https://login.test/realms/one", "tenantry-ui")
    assert (found.client_secret, found.scopes) == (HIDDEN, "openid groups")
    assert found.session.total_seconds() == 3600
    assert HIDDEN not in repr(settings) + repr(settings.model_dump()) + repr(found)


def test_the_clients_secret_may_stand_in_a_file(file: Path, tmp_path: Path) -> None:
    (tmp_path / "oidc_client_secret").write_text(f"{HIDDEN}\n")
    without = {name: value for name, value in WHOLE.items() if not name.endswith("CLIENT_SECRET")}
    for environ in (
        {"TENANTRY_OIDC_CLIENT_SECRET_FILE": str(tmp_path / "oidc_client_secret")},
        {"CREDENTIALS_DIRECTORY": str(tmp_path)},
    ):
        given = read(file, **without, **environ).oidc.client_secret
        assert given.get_secret_value() == HIDDEN


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OIDC_CLIENT_ID", "", "oidc.client_id: is missing beside oidc.client_secret"),
        ("OIDC_CLIENT_ID", "a\tb", "oidc.client_id: holds a character"),
        ("OIDC_CLIENT_SECRET", "hidden\x01", "oidc.client_secret: holds a character"),
        ("OIDC_SCOPES", "profile", "oidc.scopes: must have openid among them"),
        ("OIDC_SCOPES", 'openid "x"', "oidc.scopes: must be words"),
        ("OIDC_SESSION_SECONDS", "59", "oidc.session_seconds: must be at least 60"),
        ("JWT_SECRET", "", "security.jwt_secret: is missing beside oidc.client_id"),
        ("SERVER_PUBLIC_URL", "", "server.public_url: is missing beside oidc.client_id"),
        ("SERVER_PUBLIC_URL", "http://ops.test", "server.public_url: must be https"),
        ("SERVER_PUBLIC_URL", "https://ops.test/?a", "server.public_url: must be https://HOST"),
        ("SERVER_PUBLIC_URL", "https://ops.test/#a", "server.public_url: must be https://HOST"),
        ("SERVER_PUBLIC_URL", "https://hidden@ops.test", "server.public_url: must be https://HOST"),
        ("SERVER_PUBLIC_URL", "https://é.test", "server.public_url: must be https://HOST"),
        ("SERVER_PUBLIC_URL", "ops.test", "server.public_url: must be a URL that begins with"),
        ("SECURITY_ISSUER", "one", "security.issuer: must be a URL by https"),
        ("SECURITY_ISSUER", "http://login.test", "security.issuer: must be a URL by https"),
    ],
)
def test_what_would_log_nobody_in_safely_is_refused(
    file: Path, name: str, value: str, expected: str
) -> None:
    message = refusal(file, **{**WHOLE, f"TENANTRY_{name}": value})
    assert message.startswith(expected)
    assert "hidden" not in message


def test_without_a_provider_of_tokens_nobody_logs_in(file: Path) -> None:
    given = {name: value for name, value in WHOLE.items() if "SECURITY" not in name}
    assert refusal(file, **given).startswith("security.jwks_url: is missing beside oidc.client_id")


def test_on_this_machine_http_will_do(file: Path) -> None:
    given = {**WHOLE, "TENANTRY_SERVER_PUBLIC_URL": "http://localhost:8080"}
    assert read(file, **given).server.public_url == "http://localhost:8080"
