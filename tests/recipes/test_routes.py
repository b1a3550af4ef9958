"""A route and a command: who may call it is told, and Hypothesis makes the command up."""

from __future__ import annotations

from typing import get_args

from tenantry.api import access
from tenantry.api.app import ROUTES
from tenantry.domain.commands import Command
from tests.property import strategies


def test_every_route_has_a_rule_of_access_and_every_rule_a_route() -> None:
    access.check_routes(ROUTES)


def test_every_command_is_made_up_for_the_laws() -> None:
    commands = {one.__name__ for one in get_args(Command)}
    missing = commands - vars(strategies).keys()
    assert not missing, "add it to tests/property/strategies.py"
