"""The test run's own services."""

from __future__ import annotations

import pika

from tests.services_rabbitmq import RabbitHost


def test_a_test_has_a_virtual_host_of_its_own(rabbitmq: RabbitHost) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        assert connection.is_open
    assert "@" not in repr(rabbitmq)
