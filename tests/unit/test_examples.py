"""What stands in examples/ fits together, and is taken by what it is for."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from tenantry.http.oidc import Registration
from tenantry.settings import load

NGINX = Path(__file__).parents[2] / "examples" / "nginx"


def test_the_proxy_leads_to_where_the_server_listens_under_the_address_that_it_is_told() -> None:
    environ = {
        "HOME": "/home/u", "TENANTRY_JWT_SECRET": "s" * 32, "TENANTRY_OIDC_CLIENT_SECRET": "s",
    }  # fmt: skip
    settings = load(NGINX / "config.toml", environ=environ)
    registration = Registration.of(settings)
    assert registration is not None
    public = urlsplit(registration.public_url)
    proxy = (NGINX / "tenantry.conf").read_text()
    assert f"server {settings.server.host}:{settings.server.port};" in proxy
    assert set(re.findall(r"server_name (.*);", proxy)) == {public.netloc}
    assert f"location {public.path}/ {{" in proxy
    assert f"rewrite ^{public.path}(/.*)$" in (NGINX / "tenantry.proxy").read_text()
    told = (NGINX / "README.md").read_text()
    for address in (registration.redirect_uri, f"{registration.public_url}/ui/login"):
        assert f"`{address}`" in told
