"""The proof of isolation with tenants' own credentials: what it tries, and what it leaves."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tenantry.broker.port import Credentials, TenantTopology
from tenantry.domain import names
from tenantry.isolation.proof import verify_isolation
from tenantry.producer.run import produce
from tenantry.tenant_client.access import ProducerError, TenantAccess, credentials_of, every_tenant
from tests.integration.broker_api import BrokerApi, depth, small, taken


def test_isolation_holds_and_leaves_no_trace(api: BrokerApi, channel: Any) -> None:
    produce(small(), api, say=lambda _line: None)
    channel.confirm_delivery()
    channel.basic_publish(names.exchange_name("1"), "default", b"waiting")
    everybody = every_tenant(api)
    before = [depth(channel, queue) for one in everybody for queue in one.queue_names]
    report = verify_isolation([api.access("1"), api.access("2")], everybody, say=lambda _line: None)
    assert report.holds
    tried = {(one.owner, one.action, one.target) for one in report.checks if one.tenant_id == "1"}
    assert tried >= {
        ("1", "read", "tenant_1_dead_letters"),
        ("2", "write", "dlx_exchange (by its id)"),
        ("2", "write", "tenant_2_queue (through the default exchange, by its name)"),
        ("2", "write", "tenant_1_stream (in the name of tenant_2_producer)"),
        ("2", "read", "tenant_2_queue (by purging it)"),
        ("2", "read", "tenant_2_stream (by binding tenant_1_stream to it)"),
        ("2", "configure", "tenant_2_queue (by deleting it)"),
        ("2", "configure", "tenant_2_stream (by deleting it)"),
    }
    assert [depth(channel, queue) for one in everybody for queue in one.queue_names] == before
    assert [body for _, body in taken(channel, names.queue_name("1"))] == [b"waiting"]


def test_every_kind_of_leak_is_found(api: BrokerApi, channel: Any) -> None:
    produce(small(batches=1), api, say=lambda _line: None)
    everybody = every_tenant(api)
    access = api.access("1")
    foreign = everybody[1]
    nothing = "^$"
    for configure, write, read, target in [
        (nothing, "^tenant_(1|2)_stream$", "^tenant_1_queue$", "tenant_2_stream"),
        # The broker asks for the default exchange's permission by this name.
        (
            nothing,
            "^(tenant_1_stream|amq\\.default)$",
            "^tenant_1_queue$",
            "tenant_2_queue (through the",
        ),
        (nothing, "^(tenant_1_stream|dlx_exchange)$", "^tenant_1_queue$", "dlx_exchange"),
        (nothing, "^tenant_1_stream$", "^tenant_(1|2)_queue$", "tenant_2_queue"),
        (
            nothing,
            "^tenant_1_stream$",
            "^tenant_(1_queue|2_stream\\.logs\\.1)$",
            "tenant_2_stream.logs.1",
        ),
        (
            nothing,
            "^tenant_1_stream$",
            "^tenant_(1_queue|2_dead_letters)$",
            "tenant_2_dead_letters",
        ),
        ("^tenant_2_queue$", "^tenant_1_stream$", "^tenant_1_queue$", "tenant_2_queue"),
        ("^tenant_2_stream$", "^tenant_1_stream$", "^tenant_1_queue$", "tenant_2_stream"),
        # Whoever may read a stream may bind something to it, and listen.
        (
            nothing,
            "^tenant_1_stream$",
            "^tenant_(1_queue|2_stream)$",
            "tenant_2_stream (by binding t",
        ),
    ]:
        api.allow("1", configure=configure, write=write, read=read)
        lines: list[str] = []
        report = verify_isolation([access], everybody, say=lines.append)
        leaks = [one for one in report.leaks if one.owner == "2"]
        assert len(leaks) == 1
        assert leaks[0].target.startswith(target)
        assert not report.holds
        assert any(line.startswith("LEAK: tenant 1") and target in line for line in lines)
        assert "Ensured no access to stream: tenant_2_stream" not in lines
    assert sum(depth(channel, queue) for queue in foreign.queue_names) == 30


def test_a_tenant_shut_out_of_its_own_stream_is_reported(api: BrokerApi) -> None:
    produce(small(batches=1), api, say=lambda _line: None)
    access = api.access("1")
    api.allow("1", write="^$", read="^$")
    lines: list[str] = []
    report = verify_isolation([access], every_tenant(api), say=lines.append)
    assert not report.holds
    stream, queues = names.exchange_name("1"), access.topology.queue_names
    assert [one.target for one in report.denials] == [stream, *queues]
    assert not report.leaks
    assert [re.sub(r":.*", "", line) for line in lines] == [
        *["NO ACCESS"] * (1 + len(queues)),
        "Ensured no access to stream",
    ]


def test_a_user_that_reaches_the_management_api_is_a_leak(api: BrokerApi) -> None:
    produce(small(batches=1), api, say=lambda _line: None)
    access, everybody = api.access("1"), every_tenant(api)
    base = api.http.base_url
    address = f"{base.scheme}://{base.host}:{base.port}"
    refused = verify_isolation([access], everybody, say=lambda _line: None, management=address)
    assert refused.holds
    tried = {one.target: one.allowed for one in refused.checks if "management API" in one.target}
    assert tried == {
        "/api/whoami (the management API)": False,
        "/api/queues (the management API)": False,
    }
    password = access.credentials.password
    for tags in ("management", "monitoring"):
        body = {"password": password, "tags": tags}
        api.http.put(f"/users/{api.user('1')}", json=body).raise_for_status()
        leaky = verify_isolation([access], everybody, say=lambda _line: None, management=address)
        assert {one.target for one in leaky.leaks} == tried.keys()


def test_a_management_api_that_gives_no_answer_gives_no_verdict(api: BrokerApi) -> None:
    produce(small(batches=1), api, say=lambda _line: None)
    access = api.access("1")
    base = api.http.base_url
    for address, reason in (
        ("http://127.0.0.1:1", "can't be reached"),
        (f"http://{base.host}:{base.port}/nowhere", "answered 404"),
    ):
        with pytest.raises(ProducerError, match=f"tenant 1's access can't be judged.*{reason}"):
            verify_isolation(
                [access], [access.topology], say=lambda _line: None, management=address
            )


def test_credentials_that_don_t_work_are_an_error_and_no_verdict(api: BrokerApi) -> None:
    produce(small(batches=1), api, say=lambda _line: None)
    right = api.access("1")
    wrong = credentials_of(
        {
            "username": right.credentials.username,
            "password": "wrong",
            "amqp_url": right.credentials.amqp_url.replace(right.credentials.password, "wrong"),
        }
    )
    assert isinstance(wrong, Credentials)
    access = TenantAccess(topology=right.topology, credentials=wrong)
    with pytest.raises(ProducerError, match="tenant 1's access can't be judged") as caught:
        verify_isolation([access], [right.topology], say=lambda _line: None)
    assert "wrong" not in str(caught.value)


def test_names_tell_every_queue_a_tenant_reads() -> None:
    one = TenantTopology(tenant_id="a", topics=("x", "y"), partitions=2)
    assert one.queue_names == (
        "tenant_a_queue",
        "tenant_a_stream.x.0",
        "tenant_a_stream.x.1",
        "tenant_a_stream.y.0",
        "tenant_a_stream.y.1",
    )
