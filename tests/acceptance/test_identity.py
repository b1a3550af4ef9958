"""Tokens of a provider, and Tenantry's own, over TCP, while keys and secrets are replaced."""

from __future__ import annotations

import json
import re
import signal
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import httpx

from tenantry.http.tokens import Tokens
from tests.acceptance.program import Program
from tests.identity_provider import AUDIENCE, Signer, serving
from tests.login_provider import CLIENT, SECRET, LoginProvider
from tests.waiting import DEADLINE, eventually

OLD = "the old secret, thirty-two bytes or more"
NEW = "the new secret, thirty-two bytes or more"


def own(secret: str) -> str:
    now, hour = datetime.now(UTC), timedelta(hours=1)
    return Tokens(secret).issue(subject="ann", now=now, ttl=hour)


def logged_in(client: httpx.Client, provider: LoginProvider) -> str:
    """Log in to the page by the provider, as a browser does; return the session's token."""
    begun = client.get("/ui/oidc")
    back = httpx.get(begun.headers["location"], trust_env=False).headers["location"]
    assert back.startswith("http://localhost:1/ops/ui/callback?")
    cookie = begun.headers["set-cookie"].partition(";")[0]
    ended = client.get(f"/ui/callback?{urlsplit(back).query}", headers={"Cookie": cookie})
    assert ended.status_code == 200, ended.text
    (session,) = re.findall(r"tenantry_session=([^;]+);", ended.headers["set-cookie"])
    return session


def test_keys_and_secrets_are_replaced_while_the_daemon_runs(program: Program) -> None:
    def configure(*secrets: str) -> None:
        program.config.write_text(
            f"""
            [security]
            jwt_secret = {json.dumps(secrets)}
            jwks_url = "{server.url}"
            issuer = "{server.issuer}"
            audience = "{AUDIENCE}"
            scope_claim = "realm_access.roles"
            [security.scopes]
            support = "read"
            [server]
            public_url = "http://localhost:1/ops"
            [oidc]
            client_id = "{CLIENT}"
            """
        )

    def status(token: str) -> int:
        return client.get("/tenants", headers={"Authorization": f"Bearer {token}"}).status_code

    one, two = Signer("one", "RS256"), Signer("two")
    with serving(LoginProvider(one)) as server:
        roles: dict[str, object] = {"realm_access": {"roles": ["support", "offline_access"]}}
        server.person = {"sub": "ann", **roles}
        server.redirect_uris = {"http://localhost:1/ops/ui/callback"}
        roles["iss"] = server.issuer
        program.settings["TENANTRY_OIDC_CLIENT_SECRET_FILE"] = str(program.directory / "secret")
        (program.directory / "secret").write_text(SECRET)
        configure(OLD)
        program.start()
        url = f"http://127.0.0.1:{program.get('/info')['server']['port']}"
        with httpx.Client(base_url=url, timeout=DEADLINE, trust_env=False) as client:
            assert status(one.token(**roles)) == 200
            assert status(one.token(**roles, aud="another")) == 401
            assert status(one.token(iss=server.issuer)) == 403
            session = logged_in(client, server)
            assert status(session) == 200
            shown = client.get("/ui", headers={"Cookie": f"tenantry_session={session}"})
            assert "<bdi>ann</bdi>, read" in shown.text
            made = client.post(
                "/tenants",
                json={"id": "acme"},
                headers={"Authorization": f"Bearer {one.token(**roles)}"},
            )
            assert made.status_code == 403
            server.show_keys(one, two)
            assert status(two.token(**roles)) == 200
            assert (status(own(OLD)), status(own(NEW))) == (200, 401)
            configure(NEW)
            program.send(signal.SIGHUP)
            (event,) = program.wait_logged("daemon.reloaded")
            assert event["changed"] == ["security.jwt_secret"]
            eventually(lambda: status(own(NEW)) == 200, what="the new secret is taken")
            eventually(lambda: status(own(OLD)) == 401, what="the old secret is not")
            assert status(session) == 401
            assert status(logged_in(client, server)) == 200
            metrics = client.get("/metrics", headers={"Authorization": f"Bearer {own(NEW)}"})
            assert "tenantry_provider_keys_age_seconds" in metrics.text
            assert status(two.token(**roles)) == 200
        assert program.stop() == 0
    program.check_no_traceback()
    for hidden in (NEW, SECRET, session, "code="):
        assert hidden not in program.stderr
