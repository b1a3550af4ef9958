"""`python -m tests.drill`: conduct the drill, and print its record or write it down."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.drill.scenes import SCENES
from tests.on_demand import Service
from tests.preloaded import Preloaded
from tests.services_postgres import PostgresService

PAGE: Final = Path(__file__).parents[2] / "docs" / "drill.md"


def main() -> int:
    """Conduct the named scenes; one that does not go as it should ends in a traceback."""
    listed = "\n".join(f"  {name:<15}{scene.__doc__}" for name, scene in SCENES.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.drill",
        description=__doc__,
        epilog=f"scenes:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="SCENE", help="all, if none")
    parser.add_argument("--write", action="store_true", help="put it into docs/drill.md")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SCENES):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    # The clients lose their connections on purpose.
    logging.getLogger("pika").setLevel(logging.CRITICAL + 1)
    services: list[Service] = [PostgresService(), Preloaded()]
    with ExitStack() as stack:
        for service in services:
            stack.callback(service.stop)
            service.start()
        for name in options.names or SCENES:
            seen = SCENES[name]().markdown()
            if options.write:
                PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), name, seen), encoding="utf-8")
            else:
                print(f"# {name}\n\n{seen}")
    return 0


def put(page: str, name: str, seen: str) -> str:
    """Put a scene's record into its place on the page."""
    place = re.compile(rf"(<!-- drill: {name} -->\n).*?(<!-- as seen -->)", re.DOTALL)
    assert len(place.findall(page)) == 1, f"the page has no place for {name}"
    return place.sub(lambda found: f"{found[1]}\n{seen}\n{found[2]}", page)


if __name__ == "__main__":
    sys.exit(main())
