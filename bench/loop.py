"""`python -m bench.loop`: queries on an event loop, beside psycopg's own pool of connections.

Both have as many connections to the same PostgreSQL, and as many tasks ask for the same page of
a hundred messages as JSON text. They take turns, so that other load on the machine affects both.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from psycopg_pool import AsyncConnectionPool

from tenantry.database.embedded import EmbeddedPostgres
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Database

PAGE = """
SELECT string_agg(format('{"id": "%%s", "payload": {"n": %%s}}', n, n), ',')
FROM generate_series(1, {}::int) AS n
"""

Ask = Callable[[bytes], Awaitable[object]]


async def measure(ask: Ask, queries: int, tasks: int, rows: bytes) -> tuple[float, float]:
    """Return the seconds that `queries` take, by the clock and of this process's time."""
    left = iter(range(queries))

    async def work() -> None:
        for _ in left:
            await ask(rows)

    await asyncio.gather(*[work() for _ in range(tasks)])  # makes the connections and the plans
    left = iter(range(queries))
    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*[work() for _ in range(tasks)])
    return time.perf_counter() - began, time.process_time() - used


async def compare(url: str, queries: int, tasks: int, connections: int, turns: int) -> None:
    """Measure both in turns and print the cost of a query."""
    own = LoopQueries(Database(url), connections=connections)
    text = PAGE.replace("{}", "$1").replace("%%", "%").encode()

    async def by_ours(rows: bytes) -> object:
        return await own.row(text, [rows])

    async with AsyncConnectionPool(
        url, min_size=connections, max_size=connections, kwargs={"autocommit": True}
    ) as pool:

        async def by_psycopg(rows: bytes) -> object:
            async with pool.connection() as connection:
                query = PAGE.replace("{}", "%s")
                cursor = await connection.execute(query, [rows.decode()], binary=True)
                return await cursor.fetchone()

        for rows in (b"1", b"100"):
            best: dict[str, tuple[float, float]] = {}
            for _ in range(turns):
                for name, ask in (("ours", by_ours), ("psycopg_pool", by_psycopg)):
                    taken = await measure(ask, queries, tasks, rows)
                    best[name] = min(best.get(name, taken), taken, key=lambda one: one[1])
            print(f"{rows.decode()} rows a query, {tasks} tasks, {connections} connections:")
            for name, (clock, used) in best.items():
                print(
                    f"  {name:13}{used / queries * 1e6:7.0f} µs of processor time a query"
                    f"{queries / clock:9.0f} queries/s"
                    f"{used / best['ours'][1]:6.2f} of ours"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenantry-bench-") as directory:
        server = EmbeddedPostgres(Path(directory) / "postgres")
        url = server.start()
        try:
            asyncio.run(compare(url, given.queries, given.tasks, given.connections, given.turns))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
