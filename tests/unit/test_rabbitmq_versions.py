"""Which versions of RabbitMQ are warned of."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from tenantry.broker.rabbitmq.consuming import Versions


@pytest.mark.parametrize(
    ("version", "warned"),
    [
        ("3.10.8", True),
        ("3.13.7", True),
        ("4.0.5", False),
        ("10.0.0", False),
        ("", False),
        (7, False),
    ],
)
def test_a_version_in_which_a_message_stops_dead_lettering_is_warned_of_once(
    version: object, warned: bool
) -> None:
    versions = Versions()
    with capture_logs() as logs:
        for _ in range(2):
            versions.saw({"version": version})
            versions.saw(None)
    assert [one["event"] for one in logs] == ["broker.warning"] * warned
