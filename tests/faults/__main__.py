"""`python -m tests.faults NAME`: run experiments, on services of their own, and print figures."""

from __future__ import annotations

import argparse
import json
import logging
import random
import signal
import sys
from contextlib import ExitStack

from rich.console import Console

from tests import services_iggy
from tests.faults.catalogue import EXPERIMENTS, conduct
from tests.on_demand import Service
from tests.services_postgres import PostgresService
from tests.services_rabbitmq import RabbitService


def main() -> int:
    """Run the named experiments; exit 1 if a ledger is not clean or a promise is not kept."""
    listed = "\n".join(
        f"  {name:<18} {one.about} ({one.rounds})" for name, one in EXPERIMENTS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        epilog=f"experiments, and their rounds:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*EXPERIMENTS, "all"])
    parser.add_argument("--rounds", type=int, help="of each; by default what is promised")
    parser.add_argument("--seed", type=int, help="to repeat a run's choices; printed at the end")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    names = list(EXPERIMENTS) if "all" in options.names else options.names
    seed = random.randrange(2**32) if options.seed is None else options.seed
    # On a signal it stops what it has started, even if a shell has made it ignore Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    # The clients lose their connections on purpose.
    logging.getLogger("pika").setLevel(logging.CRITICAL + 1)
    console = Console(stderr=True)
    found = []
    with ExitStack() as stack, console.status("starting RabbitMQ and PostgreSQL") as status:
        services: list[Service] = [PostgresService(), RabbitService()]
        if services_iggy.given() and any(EXPERIMENTS[one].broker == "iggy" for one in names):
            services.append(services_iggy.IggyService())
        for service in services:
            stack.callback(service.stop)
            service.start()
        for name in names:
            figures = conduct(name, rounds=options.rounds, seed=seed, say=status.update)
            found.append(figures)
            for line in figures.lines():
                console.print(line, markup=False, highlight=False)
    if options.json:
        print(json.dumps([one.document() for one in found], indent=2))
    return 0 if all(one.ok for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
