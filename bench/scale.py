"""`python -m bench.scale`: how many cells, nodes and cores some tenants and messages take.

This is a calculation, not a measurement: a message's cost in each part comes from `bench.nodes`,
the capacity of a cell from options. A simulation finds the number of nodes: it places tenants
of uneven size on nodes as the program does, and adds nodes until the fullest one needs less than
a core.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tenantry.nodes.membership import place

SIZES = ((1_000, 10_000), (5_000, 50_000), (20_000, 200_000), (100_000, 1_000_000))
"""Tenants, and messages a second of all of them together."""

FULLEST = 0.9
"""The share of a core that the fullest node may use."""

SAMPLE = 5_000
"""Tenants of a cell that are placed at most; more would be spread as evenly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Microseconds a message, and the capacity of a cell."""

    daemon: float
    database: float
    broker: float
    tenants: int
    rate: int


def nodes_of(tenants: int, rate: float, costs: Costs, *, seed: int) -> int:
    """Return how many nodes a cell needs so that none has more than a core's work."""
    chance = random.Random(seed)
    # A few tenants send most messages: sizes follow Zipf's law, in random order.
    weights = [1 / (rank + 10) for rank in range(tenants)]
    chance.shuffle(weights)
    share = rate / sum(weights)
    work = {f"t{one}": weight * share * costs.daemon / 1e6 for one, weight in enumerate(weights)}
    count = max(1, math.ceil(sum(work.values())))
    while True:
        names = {f"n{one}": 1.0 for one in range(count)}
        load: Counter[str] = Counter()
        for tenant, needed in work.items():
            node = place(tenant, names)
            assert node is not None
            load[node] += needed  # type: ignore[assignment]
        if max(load.values()) <= FULLEST or max(work.values()) > FULLEST:
            return count
        count += 1


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--daemon", type=float, default=34.0, help="µs a message")
    parser.add_argument("--database", type=float, default=22.0, help="µs a message")
    parser.add_argument("--broker", type=float, default=18.0, help="µs a message")
    parser.add_argument("--tenants", type=int, default=5_000, help="of a cell, at most")
    parser.add_argument("--rate", type=int, default=60_000, help="messages a second of a cell")
    given = parser.parse_args()
    costs = Costs(**vars(given))
    table = Table("tenants", "messages/s", "cells", "nodes", "of databases", "of brokers")
    for tenants, rate in SIZES:
        cells = max(math.ceil(tenants / costs.tenants), math.ceil(rate / costs.rate))
        of_one = min(SAMPLE, math.ceil(tenants / cells)), rate / cells
        nodes = cells * nodes_of(*of_one, costs, seed=cells)
        cores = [math.ceil(rate * each / 1e6) for each in (costs.database, costs.broker)]
        row = (tenants, rate, cells, nodes, *(max(one, cells) for one in cores))
        table.add_row(*(f"{one:,}" for one in row))
    Console().print(table)


if __name__ == "__main__":
    main()
