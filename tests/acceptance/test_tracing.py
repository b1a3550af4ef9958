"""Traces of a running daemon, as a collector sees them."""

from __future__ import annotations

import json

import httpx
import psycopg

from tenantry.metrics.page import OPENMETRICS
from tests.acceptance.program import Program
from tests.acceptance.test_handlers import HANDLERS
from tests.collector import Collected, Collector, collector
from tests.waiting import DEADLINE, eventually

TRACE, ANOTHER = "4bf92f3577b34da6a3ce929d0e0e4736", "af7651916cd43dd8448eb211c80319c1"
SPAN = "00f067aa0ba902b7"


def parent(trace: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{SPAN}-01"}


def one(collecting: Collector, name: str, trace: str) -> Collected:
    (span,) = eventually(lambda: collecting.spans(name=name, trace=trace), what=f"the span {name}")
    return span


def buckets(program: Program, family: str) -> str:
    """Return a histogram's buckets as a scraper of OpenMetrics reads them."""
    request = httpx.Request("GET", "http://localhost/metrics", headers={"Accept": OPENMETRICS})
    transport = httpx.HTTPTransport(uds=str(program.socket))
    with httpx.Client(transport=transport, timeout=DEADLINE) as client:
        text = client.send(request).text
    return "\n".join(line for line in text.splitlines() if line.startswith(f"{family}_bucket"))


def lost(program: Program) -> dict[str, int]:
    """Count lost spans by process; processes that have lost none are left out."""
    found: dict[str, int] = {}
    for line in program.call("GET", "/metrics").text.splitlines():
        if line.startswith("tenantry_spans_lost_total"):
            labels, _, count = line.rpartition(" ")
            process = labels.partition('process="')[2].partition('"')[0]
            found[process] = found.get(process, 0) + int(float(count))
    return {process: count for process, count in found.items() if count}


def test_a_trace_leads_from_a_request_to_what_came_of_it(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE effects (tenant text, id text, attempt integer)")
    with Program(None, database_url) as program:
        with collector() as collecting:
            program.start(
                TENANTRY_HANDLERS=HANDLERS,
                TENANTRY_TRACING_ENDPOINT=collecting.url,
                TENANTRY_TRACING_HEADERS="x-key=let%20me%20in",
                TENANTRY_TRACING_SAMPLE_RATIO="0",
            )
            tenant = program.create(topics=["events"])
            url = f"http://127.0.0.1:{program.get('/info')['server']['port']}/tenants/{tenant.id}"
            with httpx.Client(timeout=DEADLINE, trust_env=False) as client:
                # The front publishes; the daemon consumes from the queue.
                sent = client.post(
                    f"{url}/messages",
                    json={"topic": "events", "payload": {"span": "own"}, "id": "m-1"},
                    headers=parent(TRACE),
                )
                assert sent.status_code == 202
                publish = one(collecting, "publish tenant_{id}_stream", TRACE)
                process = one(collecting, "process tenant_{id}_stream", TRACE)
                handle = one(collecting, "handle events", TRACE)
                commit = one(collecting, "commit", TRACE)
                changed = client.put(
                    f"{url}/config/concurrency", json={"workers": 2}, headers=parent(ANOTHER)
                )
                assert changed.status_code == 200
            assert (publish.kind, publish.parent) == ("PRODUCER", SPAN)
            assert (process.kind, process.parent) == ("CONSUMER", publish.id)
            assert process.links == [publish.id]
            assert (handle.kind, handle.parent) == ("CONSUMER", process.id)
            assert one(collecting, "own", TRACE).parent == handle.id
            assert (commit.kind, commit.parent) == ("CLIENT", process.id)
            for span in (publish, process, handle):
                assert span.attributes["messaging.message.id"] == "m-1"
                assert span.attributes["tenantry.tenant.id"] == tenant.id
            request = one(collecting, "PUT /tenants/{tenant_id}/config/concurrency", ANOTHER)
            command = one(collecting, "execute ResizeWorkers", ANOTHER)
            assert (request.kind, request.parent) == ("SERVER", SPAN)
            assert (command.kind, command.parent) == ("INTERNAL", request.id)
            event = program.get(f"/tenants/{tenant.id}/events?limit=100")["data"][-1]
            assert (event["type"], event["trace_id"]) == ("WorkersResized", ANOTHER)
            # A tenant's own client sends the context in headers; an invalid one is ignored.
            for number, headers in enumerate(({"traceparent": ["00"] * 99}, parent(ANOTHER)), 2):
                with psycopg.connect(tenant.amqp_url) as session:
                    session.execute(
                        "SELECT tenantry.publish('default', '1', headers => %s)",
                        [json.dumps(headers)],
                    )
                eventually(lambda so_many=number: program.runtime(tenant)["stored"] == so_many)
            one(collecting, "process tenant_{id}_stream", ANOTHER)
            assert collecting.headers["x-key"] == "let me in"
            assert {span.service for span in collecting.spans()} == {"tenantry"}
            assert {span.trace for span in collecting.spans()} == {TRACE, ANOTHER}
            assert f'trace_id="{TRACE}"' in buckets(program, "tenantry_handler_seconds")
            # A bucket's exemplar is the latest trace.
            assert f'trace_id="{ANOTHER}"' in buckets(program, "tenantry_message_latency_seconds")
            assert lost(program) == {}
            with httpx.Client(timeout=DEADLINE, trust_env=False) as client:
                collecting.refuse = True

                def both_lose() -> bool:
                    # One span in the front, unless it hands the call on; two in the daemon.
                    body = {"payload": 1}
                    sent = client.post(f"{url}/messages", json=body, headers=parent(TRACE))
                    assert sent.status_code == 202
                    return lost(program).keys() == {"daemon", "front"}

                eventually(both_lose)
        # Without a collector all else goes on, and the daemon ends in time.
        assert program.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
        assert program.stop() == 0
        program.check_no_traceback()
        assert "let me in" not in program.stderr
