"""Tokens of a provider's and of our own over TCP, as keys and secrets are replaced."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta

import httpx

from tenantry.http.tokens import Tokens
from tests.acceptance.program import Program
from tests.identity_provider import AUDIENCE, ISSUER, Signer, key_server
from tests.waiting import DEADLINE, eventually

OLD = "the old secret, thirty-two bytes or more"
NEW = "the new secret, thirty-two bytes or more"


def own(secret: str) -> str:
    now, hour = datetime.now(UTC), timedelta(hours=1)
    return Tokens(secret).issue(subject="ann", now=now, ttl=hour)


def test_keys_and_secrets_are_replaced_while_the_daemon_runs(program: Program) -> None:
    def configure(*secrets: str) -> None:
        program.config.write_text(
            f"""
            [security]
            jwt_secret = {json.dumps(secrets)}
            jwks_url = "{server.url}"
            issuer = "{ISSUER}"
            audience = "{AUDIENCE}"
            scope_claim = "realm_access.roles"
            [security.scopes]
            support = "read"
            """
        )

    def status(token: str) -> int:
        return client.get("/tenants", headers={"Authorization": f"Bearer {token}"}).status_code

    roles = {"realm_access": {"roles": ["support", "offline_access"]}}
    one, two = Signer("one", "RS256"), Signer("two")
    with key_server(one) as server:
        configure(OLD)
        program.start()
        url = f"http://127.0.0.1:{program.get('/info')['server']['port']}"
        with httpx.Client(base_url=url, timeout=DEADLINE, trust_env=False) as client:
            assert status(one.token(**roles)) == 200
            assert status(one.token(**roles, aud="another")) == 401
            assert status(one.token()) == 403
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
            assert status(two.token(**roles)) == 200
        assert program.stop() == 0
    program.check_no_traceback()
    assert NEW not in program.stderr
