"""`python scripts/dashboards.py`: writes Grafana's dashboards into deploy/grafana.

Grafana's own builders make them, so that what is written is what it reads. `--check` only tells
whether what is there is what would be written.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path
from typing import NamedTuple

from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

HOME = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")

OURS = 'job="tenantry"'
ONE = 'job="tenantry", tenant_id="$tenant"'


class Graph(NamedTuple):
    """A panel: what it shows, in which unit, and each curve's expression by its legend."""

    title: str
    unit: str
    curves: dict[str, str]
    told: str = ""


class Figure(NamedTuple):
    """One number."""

    title: str
    unit: str
    expr: str
    told: str = ""


def quantile(part: float, metric: str, labels: str, by: str = "") -> str:
    """Give a quantile of a histogram over five minutes."""
    kept = f"{by}, le" if by else "le"
    return f"histogram_quantile({part}, sum by ({kept}) (rate({metric}_bucket{{{labels}}}[5m])))"


OVERVIEW: dict[str, list[Graph | Figure]] = {
    "Now": [
        Figure("Ready", "short", f"sum(tenantry_ready{{{OURS}}})", "Daemons that take messages."),
        Figure("Tenants", "short", f"sum(tenantry_tenants{{{OURS}}})"),
        Figure(
            "Stored", "mps",
            f'sum(rate(messages_processed_total{{{OURS}, outcome="stored"}}[5m]))',
        ),
        Figure("Waiting", "short", f"sum(queue_messages_pending{{{OURS}}})"),
        Figure(
            "Dead letters in a day", "short",
            f'sum(increase(messages_processed_total{{{OURS}, outcome="dead_lettered"}}[1d]))',
        ),
        Figure("Parked", "short", f"sum(tenantry_parked{{{OURS}}})", "Tenants that were given up."),
    ],
    "Messages": [
        Graph("Outcomes", "mps", {
            "{{outcome}}": f"sum by (outcome) (rate(messages_processed_total{{{OURS}}}[5m]))",
        }),
        Graph("From publishing to the row", "s", {
            f"{part:g}": quantile(part, "tenantry_message_latency_seconds", OURS)
            for part in (0.5, 0.9, 0.99)
        }),
        Graph("Backlog, the ten largest", "short", {
            "{{tenant_id}}": f"topk(10, sum by (tenant_id) (queue_messages_pending{{{OURS}}}))",
        }),
        Graph("Stored, the ten busiest", "mps", {
            "{{tenant_id}}": "topk(10, sum by (tenant_id) "
            f'(rate(messages_processed_total{{{OURS}, outcome="stored"}}[5m])))',
        }),
        Graph("Dead letters, the ten worst", "mps", {
            "{{tenant_id}}": "topk(10, sum by (tenant_id) "
            f'(rate(messages_processed_total{{{OURS}, outcome="dead_lettered"}}[15m])) > 0)',
        }),
        Graph("Failed attempts of handlers", "mps", {
            "{{reason}}": f"sum by (reason) (rate(tenantry_failed_attempts_total{{{OURS}}}[5m]))",
        }),
    ],
    "Proofs": [
        Graph("Books that do not add up", "short", {
            "{{tenant_id}}": f"tenantry_audit_difference{{{OURS}}} != 0",
        }, "By so many messages; nothing here is right."),
        Graph("Isolation", "short", {
            "failures": f"max(tenantry_isolation_failures{{{OURS}}})",
            "without a verdict": f"max(tenantry_isolation_unjudged{{{OURS}}})",
        }),
    ],
}  # fmt: skip

TENANT: dict[str, list[Graph | Figure]] = {
    "Now": [
        Figure("Consumes", "bool_yes_no", f"max(tenantry_consuming{{{ONE}}})"),
        Figure("Workers", "short", f"sum(tenant_workers_current{{{ONE}}})"),
        Figure("Waiting", "short", f"sum(queue_messages_pending{{{ONE}}})"),
        Figure("Unsettled", "short", f"sum(tenantry_unsettled{{{ONE}}})"),
        Figure("Books differ by", "short", f"max(tenantry_audit_difference{{{ONE}}})"),
    ],
    "Messages": [
        Graph("Outcomes", "mps", {
            "{{outcome}}": f"sum by (outcome) (rate(messages_processed_total{{{ONE}}}[5m]))",
            "removed ({{reason}})": "sum by (reason) "
            f"(rate(tenantry_messages_removed_total{{{ONE}}}[5m]))",
        }),
        Graph("From publishing to the row", "s", {
            f"{part:g}": quantile(part, "tenantry_message_latency_seconds", ONE)
            for part in (0.5, 0.9, 0.99)
        }),
        Graph("Waiting and in work", "short", {
            "waiting": f"sum(queue_messages_pending{{{ONE}}})",
            "unsettled": f"sum(tenantry_unsettled{{{ONE}}})",
            "held for another attempt": f"sum(tenantry_held{{{ONE}}})",
        }),
        Graph("Workers", "short", {"workers": f"sum(tenant_workers_current{{{ONE}}})"}),
        Graph("Publishing that was refused", "reqps", {
            "{{reason}}": f"sum by (reason) (rate(tenantry_publishes_refused_total{{{ONE}}}[5m]))",
        }, "Calls over HTTP, beyond its limits."),
        Graph("Failed attempts of its handlers", "mps", {
            "{{reason}}": f"sum by (reason) (rate(tenantry_failed_attempts_total{{{ONE}}}[5m]))",
            "ids reused": f"sum(rate(tenantry_message_ids_reused_total{{{ONE}}}[5m]))",
        }),
        Graph("Mailboxes of its actors", "short", {
            "{{actor}}": f"sum by (actor) (tenantry_mailbox_depth{{{ONE}}})",
        }),
    ],
}  # fmt: skip

NODES: dict[str, list[Graph | Figure]] = {
    "Nodes": [
        Graph("Nodes by state", "short", {
            "{{state}}": f"max by (state) (tenantry_nodes{{{OURS}}})",
        }),
        Graph("Tenants that consume", "short", {
            "{{instance}} {{node}}": f"sum by (instance, node) (tenantry_consuming{{{OURS}}})",
        }),
        Graph("Stored", "mps", {
            "{{instance}} {{node}}": "sum by (instance, node) "
            f'(rate(messages_processed_total{{{OURS}, outcome="stored"}}[5m]))',
        }),
        Graph("Terms", "short", {
            "{{instance}} {{node}}": f"tenantry_term{{{OURS}}}",
        }, "A step up: a daemon has taken its term anew."),
    ],
    "Processes": [
        Graph("Processor time", "percentunit", {
            "{{instance}} {{node}}": f"rate(process_cpu_seconds_total{{{OURS}}}[5m])",
        }, "Of one core."),
        Graph("Resident memory", "bytes", {
            "{{instance}} {{node}}": f"process_resident_memory_bytes{{{OURS}}}",
        }),
        Graph("Open files", "short", {
            "{{instance}} {{node}}": f"process_open_fds{{{OURS}}}",
        }),
        Graph("Actors that failed", "short", {
            "{{kind}}": f"sum by (kind) (increase(tenantry_restarts_total{{{OURS}}}[15m]))",
        }),
        Graph("What hangs", "short", {
            "actors": f"sum(tenantry_stuck_actors{{{OURS}}})",
            "threads left behind": f"sum(tenantry_abandoned_threads{{{OURS}}})",
            "of handlers": f"sum(tenantry_handler_threads_abandoned{{{OURS}}})",
            "replaced: {{kind}}": f"sum by (kind) (increase(tenantry_stuck_total{{{OURS}}}[15m]))",
        }),
    ],
}  # fmt: skip

SERVICES: dict[str, list[Graph | Figure]] = {
    "Database": [
        Graph("Time a batch takes", "s", {
            f"{part:g}": quantile(part, "tenantry_store_seconds", OURS)
            for part in (0.5, 0.9, 0.99)
        }),
        Graph("Messages a batch", "short", {
            f"{part:g}": quantile(part, "tenantry_batch_messages", OURS) for part in (0.5, 0.9)
        }),
        Graph("Batches tried again", "ops", {
            "{{instance}} {{node}}": "sum by (instance, node) "
            f"(rate(tenantry_store_retries_total{{{OURS}}}[5m]))",
        }, "While the database can't be reached."),
        Graph("Journal", "ops", {
            "events": f"sum(rate(tenantry_journal_events_total{{{OURS}}}[5m]))",
            "appends": f"sum(rate(tenantry_journal_append_seconds_count{{{OURS}}}[5m]))",
        }),
        Graph("Disk of the embedded PostgreSQL", "bytes", {
            "free, {{instance}}": f"tenantry_disk_free_bytes{{{OURS}}}",
            "in all, {{instance}}": f"tenantry_disk_size_bytes{{{OURS}}}",
        }),
    ],
    "Broker": [
        Graph("Connections opened again", "short", {
            "{{connection}}": "sum by (connection) "
            f"(increase(tenantry_broker_reconnects_total{{{OURS}}}[15m]))",
        }),
        Graph("Changed behind the daemon's back", "short", {
            "{{kind}}, {{outcome}}": "sum by (kind, outcome) "
            f"(increase(tenantry_drift_total{{{OURS}}}[1h])) > 0",
        }),
        Graph("Queues of the embedded broker", "bytes", {
            "size": f"sum(tenantry_queue_ring_bytes{{{OURS}}})",
        }),
        Graph("Segments that a session holds", "short", {
            "held": f"sum(tenantry_queue_segments_held{{{OURS}}})",
        }),
    ],
}  # fmt: skip

DASHBOARDS = {
    "overview": ("Tenantry: overview", OVERVIEW),
    "tenant": ("Tenantry: one tenant", TENANT),
    "nodes": ("Tenantry: nodes", NODES),
    "services": ("Tenantry: broker and database", SERVICES),
}


def query(expr: str, legend: str, number: int = 0) -> Dataquery:
    ref = string.ascii_uppercase[number]
    made = Dataquery().exemplar(True) if expr.startswith("histogram_quantile") else Dataquery()
    return made.expr(expr).legend_format(legend).datasource(SOURCE).ref_id(ref)


def panel(wanted: Graph | Figure) -> TimeSeries | Stat:
    if isinstance(wanted, Figure):
        made = Stat().title(wanted.title).unit(wanted.unit).datasource(SOURCE).span(4).height(4)
        return made.description(wanted.told).with_target(query(wanted.expr, ""))
    graph = TimeSeries().title(wanted.title).unit(wanted.unit).datasource(SOURCE).span(12).height(8)
    graph.description(wanted.told).min(0).fill_opacity(8)
    for number, (legend, expr) in enumerate(wanted.curves.items()):
        graph.with_target(query(expr, legend, number))
    return graph


def written(name: str) -> str:
    """Give a dashboard as Grafana reads it."""
    title, rows = DASHBOARDS[name]
    made = Dashboard(title).uid(f"tenantry-{name}").tags(["tenantry"]).refresh("30s").readonly()
    made.time("now-3h", "now").timezone("browser")
    made.with_variable(DatasourceVariable("source").label("Source").type("prometheus"))
    if rows is TENANT:
        made.with_variable(
            QueryVariable("tenant")
            .label("Tenant")
            .datasource(SOURCE)
            .query(f"label_values(tenant_workers_current{{{OURS}}}, tenant_id)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
    for row, panels in rows.items():
        made.with_row(Row(row))
        for one in panels:
            made.with_panel(panel(one))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def main() -> int:
    """Write all, or tell whether they are as they would be written."""
    wanted = {HOME / f"{name}.json": written(name) for name in DASHBOARDS}
    if "--check" in sys.argv[1:]:
        stale = [file for file, text in wanted.items() if not same(file, text)]
        for file in stale:
            print(f"{file.name} is not as it would be written: run scripts/dashboards.py")
        return 1 if stale else 0
    HOME.mkdir(parents=True, exist_ok=True)
    for file, text in wanted.items():
        file.write_text(text, encoding="utf-8")
    return 0


def same(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
