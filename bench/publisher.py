"""Publishes to the embedded broker with a tenant's own role: `python -m bench.publisher`."""

from __future__ import annotations

import os
import sys
import time
import uuid

import psycopg

from bench.load import body

PUBLISH = """
SELECT tenantry.publish_many(
    %s::text[], %s::text[], %s::bytea[], %s::text[], %s::jsonb[], %s::bigint[])
"""


def main(key: str, count: int, batch: int, rate: float | None) -> None:
    """Publish in batches; the commit of a batch confirms it."""
    payload = body()
    with psycopg.connect(os.environ["BENCH_URL"], autocommit=True) as connection:
        began = time.perf_counter()
        for start in range(0, count, batch):
            size = min(batch, count - start)
            if rate is not None:
                time.sleep(max(0.0, began + start / rate - time.perf_counter()))
            ids = [uuid.uuid4().hex for _ in range(size)]
            now = int(time.time() * 1000)
            connection.execute(
                PUBLISH,
                (
                    [key] * size,
                    ids,
                    [payload] * size,
                    ["application/json"] * size,
                    [None] * size,
                    [now] * size,
                ),
                binary=True,
            )


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        float(sys.argv[4]) if len(sys.argv) > 4 else None,
    )
