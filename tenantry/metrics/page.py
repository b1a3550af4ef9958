"""The page of metrics, in the formats of Prometheus and of OpenMetrics.

prometheus-client writes them too, at two to four times the cost (ADR 0036), which with hundreds of
tenants slows down all other work of the process. The tests compare the two.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

OPENMETRICS: Final = "application/openmetrics-text"
TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"

LABEL: Final = "node"
_END: Final = "# EOF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Metrics as sent to a scraper."""

    body: bytes
    content_type: str
    encoding: str | None = None


class MetricsPage:
    """Some collectors' metrics, and those of the process and of Python. Callable from any thread.

    The registry is its own: nothing a library registers globally shows up.
    """

    def __init__(self, *collectors: Collector) -> None:
        self._registry = CollectorRegistry()
        for collector in collectors:
            self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, accept: str = "", accept_encoding: str = "") -> Page:
        """Write the collectors' metrics, as OpenMetrics if the scraper accepts that.

        Compressed if the scraper accepts that, as Prometheus does.
        """
        return compressed(self.render_alone(accept), accept_encoding)

    def render_alone(self, accept: str = "") -> Page:
        """Write the page uncompressed, to be merged with others."""
        openmetrics = _accepts(accept, OPENMETRICS)
        text = write(self._registry.collect(), openmetrics=openmetrics)
        return Page(body=text.encode(), content_type=OPENMETRICS_TYPE if openmetrics else TEXT_TYPE)


def compressed(page: Page, accept_encoding: str) -> Page:
    """Compress a page if the scraper accepts that.

    The lines of thousands of tenants are much alike, and compress to a twentieth.
    """
    if not _accepts(accept_encoding, "gzip"):
        return page
    return replace(page, body=gzip.compress(page.body, 1), encoding="gzip")


def _accepts(header: str, wanted: str) -> bool:
    """Tell whether a header names `wanted`, and does not refuse it."""
    for one in header.split(","):
        name, *parameters = (part.strip().lower() for part in one.split(";"))
        if name == wanted:
            return not any(_is_refusal(parameter) for parameter in parameters)
    return False


def _is_refusal(parameter: str) -> bool:
    """Tell whether a parameter is `q=0`, in any spelling."""
    key, _, value = parameter.partition("=")
    return key.strip() == "q" and not value.strip().strip("0.")


_PLAIN_NAMES: Final = {"counter": "_total", "info": "_info"}
"""Suffixes that Prometheus's format adds to families' names; OpenMetrics only to samples'."""

_PLAIN_TYPES: Final = {"info": "gauge", "stateset": "gauge", "unknown": "untyped"}


def write(families: Iterable[Metric], *, openmetrics: bool) -> str:
    """Write families one after the other. Units and timestamps are left out.

    Exemplars are OpenMetrics' alone.
    """
    lines = [line for family in families for line in _family(family, openmetrics)]
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _family(family: Metric, openmetrics: bool) -> Iterator[str]:
    name, kind = family.name, family.type
    if not openmetrics:
        name += _PLAIN_NAMES.get(kind, "")
        kind = _PLAIN_TYPES.get(kind, kind)
    meaning = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {name} {_quotes(meaning) if openmetrics else meaning}"
    yield f"# TYPE {name} {kind}"
    for sample in family.samples:
        value = sample.value
        # Most values are whole numbers, for which str is enough.
        text = str(value) if type(value) is int else _number(value)
        if sample.exemplar is not None and openmetrics:
            text += _exemplar(sample.exemplar)
        if sample.labels:
            yield f"{sample.name}{{{_labels(sample.labels)}}} {text}"
        else:
            yield f"{sample.name} {text}"


def _exemplar(exemplar: Exemplar) -> str:
    at = "" if exemplar.timestamp is None else f" {exemplar.timestamp}"
    return f" # {{{_labels(exemplar.labels)}}} {_number(exemplar.value)}{at}"


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join([f'{name}="{_escaped(value)}"' for name, value in labels.items()])


def _escaped(value: str) -> str:
    if "\\" not in value and "\n" not in value and '"' not in value:
        return value
    return _quotes(value.replace("\\", r"\\").replace("\n", r"\n"))


def _quotes(value: str) -> str:
    return value.replace('"', r"\"")


def _number(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


class Metrics(Protocol):
    """The page under `/metrics`."""

    def render(self, accept: str = "", accept_encoding: str = "") -> Page:
        """Write the page as the headers ask: in a format, and compressed or not."""

    def render_alone(self, accept: str = "") -> Page:
        """Write this process's own metrics, uncompressed."""


class MergedPage:
    """The page of this process and of its siblings, whose pages `others` returns.

    A page that does not arrive in time is left out: the scraper is to see its absence.
    """

    def __init__(self, page: Metrics, node: str, others: Callable[[str], Iterable[str]]) -> None:
        """`others` is called with the `accept` header, and may take a while."""
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
        """Write this process's own page, for the process that merges pages."""
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
    """Label each series of a page with its node, unless it has that label already."""
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
    """Yield each family's name, its HELP and TYPE lines, and its samples."""
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
