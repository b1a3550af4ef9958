"""`python -m tests.manual PAGE...`: follow pages of the manual, or all, and hold them to it."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.manual import pages
from tests.manual.session import follow
from tests.on_demand import Service
from tests.preloaded import Preloaded
from tests.services_postgres import PostgresService
from tests.waiting import DEADLINE

WHILE_WRITING = 3.0
"""Seconds after which what is printed is taken for what is to be shown."""


def main() -> int:
    """Run the pages; exit 1 where one of them shows something else than is printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.manual", description=__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="all that have commands, if none")
    parser.add_argument("--write", action="store_true", help="put what was printed into the page")
    options = parser.parse_args()
    found = [pages.read(Path(one).resolve()) for one in options.pages or pages.with_commands()]
    services: list[Service] = [PostgresService(), Preloaded()]
    differ = False
    with ExitStack() as stack:
        for service in services:
            stack.callback(service.stop)
            service.start()
        for page in found:
            session = follow(page, WHILE_WRITING if options.write else DEADLINE)
            wrong = session.wrong()
            differ = differ or bool(wrong)
            print(wrong or f"{page.name}: {len(page.commands)} commands, as it says")
            if wrong and options.write:
                page.path.write_text(session.written(), encoding="utf-8")
    return 1 if differ and not options.write else 0


if __name__ == "__main__":
    sys.exit(main())
