"""A cancel of a subscription on RabbitMQ: it is done once the broker has ended every consumer."""

from __future__ import annotations

import pika

from tests import brokers
from tests.brokers import RecordingSink
from tests.services_rabbitmq import RabbitHost


def test_when_a_cancel_is_told_no_queue_of_several_has_a_consumer_any_more(
    rabbitmq: RabbitHost,
) -> None:
    with (
        brokers.rabbitmq(rabbitmq) as broker,
        pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as beside,
    ):
        tenant = broker.tenant("events", partitions=3)
        channel = beside.channel()
        left: list[int] = []

        class Looking(RecordingSink):
            def cancelled(self, generation: int) -> None:
                # On the loop's thread: it sends no further cancel meanwhile.
                for name in tenant.queue_names:
                    told = channel.queue_declare(name, passive=True).method
                    left.append(told.consumer_count)
                super().cancelled(generation)

        sink = Looking()
        subscription = broker.consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
        sink.heard("consuming")
        subscription.cancel()
        sink.heard("cancelled")
        assert left == [0] * len(tenant.queue_names)
