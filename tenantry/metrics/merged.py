"""Pages of several processes as one: each series says whose it is by the label `node`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from tenantry.metrics.page import OPENMETRICS, Page, compressed

LABEL: Final = "node"
_END: Final = "# EOF"


class Metrics(Protocol):
    """What is shown under `/metrics`."""

    def render(self, accept: str = "", accept_encoding: str = "") -> Page:
        """Write it as the headers ask for: in a format, and compressed or not."""

    def render_alone(self, accept: str = "") -> Page:
        """Write what is this process's own, as it is."""


class MergedPage:
    """The page of this process and of its siblings, whose pages `others` gives.

    What can't be had in time is left out: its absence is what a scraper is to see.
    """

    def __init__(self, page: Metrics, node: str, others: Callable[[str], Iterable[str]]) -> None:
        """`others` is given the header by which a format is asked for, and may take a while."""
        self._page = page
        self._node = node
        self._others = others

    def render(self, accept: str = "", accept_encoding: str = "") -> Page:
        """Write all of them."""
        own = self.render_alone(accept)
        openmetrics = own.content_type.startswith(OPENMETRICS)
        text = merged([own.body.decode(), *self._others(accept)], openmetrics=openmetrics)
        page = Page(body=text.encode(), content_type=own.content_type)
        return compressed(page, accept_encoding)

    def render_alone(self, accept: str = "") -> Page:
        """Write this process's own, for one that merges them."""
        own = self._page.render_alone(accept)
        text = labelled(own.body.decode(), self._node)
        return Page(body=text.encode(), content_type=own.content_type)


def merged(pages: Iterable[str], *, openmetrics: bool) -> str:
    """Put pages into one, family by family."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in pages:
        for family, head, lines in _families(text.splitlines()):
            heads.setdefault(family, head)
            samples.setdefault(family, []).extend(lines)
    written = [line for family, head in heads.items() for line in (*head, *samples[family])]
    if openmetrics:
        written.append(_END)
    return "\n".join(written) + "\n"


def labelled(text: str, node: str) -> str:
    """Give each series of a page its node; one that has it already is left as it is."""
    label = f'{LABEL}="{node}"'
    written = []
    for line in text.splitlines():
        brace, space = line.find("{"), line.find(" ")
        has_it = brace >= 0 and line.startswith(label, brace + 1)
        if line.startswith("#") or space < 0 or has_it:
            written.append(line)
        elif 0 <= brace < space:
            written.append(f"{line[: brace + 1]}{label},{line[brace + 1 :]}")
        else:
            written.append(f"{line[:space]}{{{label}}}{line[space:]}")
    return "\n".join(written) + "\n"


def _families(lines: Iterable[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Give each family's name, what is said of it, and its samples."""
    name, head, samples = "", list[str](), list[str]()
    for line in lines:
        if line == _END or not line:
            continue
        if line.startswith("#"):
            family = line.split(" ", 3)[2]
            if family != name:
                if head:
                    yield name, head, samples
                name, head, samples = family, [], []
            head.append(line)
        else:
            samples.append(line)
    if head:
        yield name, head, samples
