"""A route about one tenant says whether its node has to answer it, or any may."""

from __future__ import annotations

from tenantry.api.access import TABLE
from tenantry.api.handing_on import ANYWHERE, OWNERS


def test_every_route_of_a_tenant_says_which_node_answers_it() -> None:
    of_a_tenant = {call for call in TABLE if "{tenant_id}" in call[1]}
    assert not OWNERS & ANYWHERE
    assert of_a_tenant | {("GET", "/messages/stream")} == OWNERS | ANYWHERE, (
        "add it to OWNERS or ANYWHERE in tenantry/api/handing_on.py"
    )
