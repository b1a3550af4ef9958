"""A network that swallows what RabbitMQ says is noticed, and a quiet broker is left alone."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tenantry.broker.adapter import TermFence
from tenantry.broker.rabbitmq.consuming import RabbitConsuming
from tests.brokers import running
from tests.faults.proxy import Proxy
from tests.services_rabbitmq import RabbitHost
from tests.waiting import eventually


def test_a_broker_that_falls_silent_is_left_and_taken_up_again_once_it_speaks(
    rabbitmq: RabbitHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tenantry.broker.rabbitmq.connection.HEARTBEAT", 2)
    monkeypatch.setattr("tenantry.broker.rabbitmq.connection.SILENT_AFTER", 4)
    url = urlsplit(rabbitmq.url)
    with Proxy((str(url.hostname), int(url.port or 5672))) as proxy:
        login = url.netloc.rpartition("@")[0]
        between = url._replace(netloc=f"{login}@127.0.0.1:{proxy.port}").geturl()
        consuming = RabbitConsuming(between)
        with running(consuming):
            eventually(lambda: consuming.connected)
            # Idle for longer than that: its heartbeats are enough.
            connection = consuming._pool._pool[0].recovery._connection
            assert connection is not None
            eventually(lambda: connection._heartbeat_checker._heartbeat_frames_received >= 5)
            assert consuming.reconnects == 0
            proxy.freeze()
            eventually(lambda: not consuming.connected)
            # By this watch, not by pika's own, which would need 7 to 14 s.
            assert "the broker has been silent" in capsys.readouterr().out
            proxy.thaw()
            eventually(lambda: consuming.connected)


def test_a_permit_that_has_lapsed_when_a_heartbeat_is_due_is_no_mistake_of_the_loop(
    rabbitmq: RabbitHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tenantry.broker.rabbitmq.connection.HEARTBEAT", 2)
    valid = True
    consuming = RabbitConsuming(rabbitmq.url, TermFence(3, lambda: valid))
    with running(consuming):
        eventually(lambda: consuming.connected)
        connection = consuming._pool._pool[0].recovery._connection
        assert connection is not None
        checker = connection._heartbeat_checker
        sent = checker._heartbeat_frames_sent
        valid = False
        eventually(lambda: not consuming.connected)
        assert checker._heartbeat_frames_sent > sent
        # None is to come on a connection that is closed.
        assert checker._send_timer is None
        valid = True
        eventually(lambda: consuming.connected)
    said = capsys.readouterr().out
    assert "the term 3 has lapsed" in said
    assert "loop_failed" not in said
