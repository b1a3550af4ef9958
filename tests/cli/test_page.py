"""`tenantry ui`, against a real API."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.api.serving import Served

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("_isolated")


@pytest.mark.parametrize(
    ("host", "tls", "address"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:8080/ui"),
        ("0.0.0.0", True, "https://localhost:8080/ui"),
        ("::1", False, "http://[::1]:8080/ui"),
    ],
)
def test_the_address_of_the_page_is_printed(
    api: Served, run: Run, host: str, address: str, *, tls: bool
) -> None:
    services = api.app.state.services
    services.info = {"server": {"host": host, "port": 8080, "tls": tls}}
    assert run("ui") == (0, f"{address}\n", "")
    services.identity.trust(["a secret of thirty-two bytes or more"])
    code, out, _ = run("ui", "--json")
    before, _, login = json.loads(out)["url"].partition("/login?code=")
    assert (code, before) == (0, address)
    assert services.login_codes.redeem(login)
