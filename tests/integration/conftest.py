"""What the tests of the producer and of its isolation stand on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pika
import pytest

from tests.integration.broker_api import BrokerApi
from tests.services_rabbitmq import RabbitHost


@pytest.fixture
def api(rabbitmq: RabbitHost) -> Iterator[BrokerApi]:
    made = BrokerApi(rabbitmq)
    yield made
    made.close()


@pytest.fixture
def channel(rabbitmq: RabbitHost) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        yield connection.channel()
