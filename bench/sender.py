"""Publishes as a tenant, to any kind of broker: `python -m bench.sender`."""

from __future__ import annotations

import os
import sys
import time
import uuid

from bench.load import body
from tenantry.tenant_client.amqp import TenantMessage
from tenantry.tenant_client.connecting import client_for


def main(exchange: str, key: str, count: int, batch: int, rate: float | None) -> None:
    """Publish in batches with the producer's own client, each confirmed before the next."""
    payload = body()
    client = client_for(os.environ["BENCH_URL"], name="bench")
    client.open()
    began = time.perf_counter()
    for start in range(0, count, batch):
        size = min(batch, count - start)
        if rate is not None:
            time.sleep(max(0.0, began + start / rate - time.perf_counter()))
        now = time.time_ns() // 1_000_000
        messages = [
            TenantMessage(
                routing_key=key,
                body=payload,
                message_id=uuid.uuid4().hex,
                content_type="application/json",
                published_at_ms=now,
            )
            for _ in range(size)
        ]
        result = client.publish(exchange, messages)
        if len(result.confirmed) != size:
            raise SystemExit(f"not confirmed: {result.reason}")
    client.close()


if __name__ == "__main__":
    main(
        sys.argv[1],
        sys.argv[2],
        int(sys.argv[3]),
        int(sys.argv[4]),
        float(sys.argv[5]) if len(sys.argv) > 5 else None,
    )
