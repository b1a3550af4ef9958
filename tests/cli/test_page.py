"""`tenantry ui`, against a real API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.serving import Served

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("_isolated")


@pytest.mark.parametrize(
    ("told", "address"),
    [
        ({"host": "127.0.0.1", "tls": False}, "http://127.0.0.1:8080/ui"),
        ({"host": "0.0.0.0", "tls": True}, "https://localhost:8080/ui"),
        ({"host": "::1", "tls": False}, "http://[::1]:8080/ui"),
        (
            {"host": "::1", "tls": False, "public_url": "https://ops.example.com/tenantry"},
            "https://ops.example.com/tenantry/ui",
        ),
    ],
)
def test_the_address_of_the_page_is_printed(
    api: Served, run: Run, told: dict[str, Any], address: str
) -> None:
    services = api.app.state.services
    services.info = {"server": {"port": 8080, **told}}
    assert run("ui") == (0, f"{address}\n", "")
    services.identity.trust(["a secret of thirty-two bytes or more"])
    code, out, _ = run("ui", "--json")
    before, _, login = json.loads(out)["url"].partition("/login?code=")
    assert (code, before) == (0, address)
    assert services.login_codes.redeem(login)
