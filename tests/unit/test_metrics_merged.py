"""Pages of several processes as one: every series has one label that says whose it is."""

from __future__ import annotations

from tenantry.metrics.page import labelled

PAGE = """\
# TYPE tenantry_nodes gauge
tenantry_node_info{node="a",version="1"} 1
tenantry_nodes{state="active"} 2
tenantry_ready 1
"""


def test_a_series_is_given_its_node_once() -> None:
    assert labelled(PAGE, "a").splitlines() == [
        "# TYPE tenantry_nodes gauge",
        'tenantry_node_info{node="a",version="1"} 1',
        'tenantry_nodes{node="a",state="active"} 2',
        'tenantry_ready{node="a"} 1',
    ]
