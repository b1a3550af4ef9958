"""The client of the management API, against a server that answers what it is told to."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tenantry.broker.adapter import TermFence
from tenantry.broker.port import BrokerError, BrokerUnavailableError
from tenantry.broker.rabbitmq import management
from tenantry.broker.rabbitmq.management import ManagementClient
from tenantry.broker.rabbitmq.term_fence import shut_out
from tests.waiting import DEADLINE


@dataclass
class Script:
    """Answers to give, in order, the last one for ever; and the requests seen."""

    answers: list[tuple[int, str, str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    encoding: str = ""
    broken: bool = False

    def answer(self, status: int, body: object = None, kind: str = "application/json") -> None:
        text = body if isinstance(body, str) else "" if body is None else json.dumps(body)
        self.answers.append((status, text, kind))


class Server(ThreadingHTTPServer):
    script: Script


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do(self) -> None:
        assert isinstance(self.server, Server)
        script = self.server.script
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        script.requests.append(f"{self.command} {self.path}")
        answers = script.answers
        status, text, kind = answers.pop(0) if len(answers) > 1 else answers[0]
        data = gzip.compress(text.encode()) if script.encoding else text.encode()
        data = data[:-9] if script.broken else data
        self.send_response(status)
        if script.encoding:
            self.send_header("Content-Encoding", script.encoding)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_DELETE = do  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Script, ManagementClient]]:
    monkeypatch.setattr(management, "FIRST_BACKOFF", 0.001)
    script = Script()
    server = Server(("127.0.0.1", 0), Handler)
    server.script = script
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://admin:s%2Fecret@127.0.0.1:{server.server_address[1]}"
    try:
        with closing(ManagementClient(url, vhost="a/b")) as client:
            yield script, client
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


Scripted = tuple[Script, ManagementClient]


def test_a_failing_broker_is_asked_again(script: Scripted) -> None:
    told, client = script
    told.answer(500)
    told.answer(503)
    told.answer(200, [{"name": "q", "messages_ready": 3}, {"name": "new"}])
    assert client.message_counts() == {"q": (3, 0), "new": (0, 0)}
    assert len(told.requests) == 3


def test_it_is_not_asked_for_ever(script: Scripted) -> None:
    told, client = script
    told.answer(500)
    with pytest.raises(BrokerUnavailableError, match="HTTP 500"):
        client.tags()
    assert len(told.requests) == management.ATTEMPTS


def test_a_connection_that_the_server_has_closed_is_not_used_again(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, client = script
    told.answer(200, {"name": "a", "tags": []})
    closed = threading.Event()

    def answer_once(handler: Handler) -> None:
        BaseHTTPRequestHandler.handle_one_request(handler)
        handler.close_connection = True

    def finish(handler: Handler) -> None:
        BaseHTTPRequestHandler.finish(handler)
        handler.connection.close()
        closed.set()

    monkeypatch.setattr(Handler, "handle_one_request", answer_once)
    monkeypatch.setattr(Handler, "finish", finish)
    monkeypatch.setattr(management.time, "sleep", lambda _: pytest.fail("it has failed once"))
    client.tags()
    assert closed.wait(DEADLINE)
    client.tags()
    assert len(told.requests) == 2


def test_compressed_answers_are_read_and_broken_ones_asked_for_again(script: Scripted) -> None:
    told, client = script
    told.encoding = "gzip"
    told.answer(200, {"name": "a", "tags": ["administrator"]})
    assert client.tags() == {"administrator"}
    told.broken = True
    with pytest.raises(BrokerUnavailableError, match="does not answer"):
        client.tags()


def test_whoever_asks_when_all_is_closed_is_told_so(script: Scripted) -> None:
    told, client = script
    told.answer(200, {"name": "a", "tags": []})
    client.tags()
    client.close()
    with pytest.raises(BrokerUnavailableError, match="has been closed"):
        client.tags()


def test_names_are_quoted(script: Scripted) -> None:
    told, client = script
    told.answer(204)
    client.put_permissions("us/er", configure="", write="", read="")
    client.delete_user("us er")
    assert told.requests == ["PUT /api/permissions/a%2Fb/us%2Fer", "DELETE /api/users/us%20er"]


def test_deleting_what_is_not_there_is_no_error(script: Scripted) -> None:
    told, client = script
    told.answer(404, {"error": "Object Not Found", "reason": "Not Found"})
    client.delete_user("nobody")
    client.close_connections("nobody", "gone")


def test_a_refused_password_is_not_tried_again_nor_shown(script: Scripted) -> None:
    told, client = script
    told.answer(401, {"error": "not_authorized", "reason": "Login failed"})
    with pytest.raises(BrokerError, match="refuses user name and password") as caught:
        client.tags()
    assert not isinstance(caught.value, BrokerUnavailableError)
    assert len(told.requests) == 1
    assert "ecret" not in f"{caught.value} {client!r}"


def test_a_user_without_the_tag_is_told_which_it_needs(script: Scripted) -> None:
    told, client = script
    told.answer(403, {"error": "forbidden"})
    with pytest.raises(BrokerError, match="needs the tag administrator"):
        client.put_user("a", "hash")


def test_another_web_server_is_recognised(script: Scripted) -> None:
    told, client = script
    told.answer(404, "<h1>Not found</h1>", "text/html")
    with pytest.raises(BrokerError, match="is the plugin rabbitmq_management enabled"):
        client.check_vhost()
    told.answers.clear()
    told.answer(200, "<h1>Welcome</h1>", "text/html")
    with pytest.raises(BrokerError, match="not RabbitMQ's management API"):
        client.tags()


@pytest.mark.parametrize("answer", ["[" * 100_000, "[" + "9" * 4_400 + "]", '{"tags": NaN'])
def test_an_answer_that_can_not_be_read_is_the_brokers_failure(
    script: Scripted, answer: str
) -> None:
    told, client = script
    told.answer(200, answer)
    with pytest.raises(BrokerError, match="not RabbitMQ's management API"):
        client.tags()
    told.answers.clear()
    told.answer(400, answer)
    with pytest.raises(BrokerError, match="HTTP 400"):
        client.put_user("a", "hash")


def test_a_reason_is_one_line(script: Scripted) -> None:
    told, client = script
    told.answer(400, {"error": "bad_request", "reason": "first\n   second"})
    with pytest.raises(BrokerError, match="HTTP 400: first second"):
        client.put_user("a", "hash")


def test_tags_are_read_in_both_forms(script: Scripted) -> None:
    told, client = script
    told.answer(200, {"name": "a", "tags": ["administrator", "monitoring"]})
    assert client.tags() == {"administrator", "monitoring"}
    told.answers.clear()
    told.answer(200, {"name": "a", "tags": "administrator,monitoring"})
    assert client.tags() == {"administrator", "monitoring"}


def test_a_connection_is_ours_by_its_user_whatever_others_call_theirs(script: Scripted) -> None:
    told, client = script

    def connection(name: str, user: str, called: object) -> dict[str, object]:
        return {"name": name, "user": user, "client_properties": {"connection_name": called}}

    told.answer(
        200,
        [
            connection("1", "tenant_a_producer", f"tenantry consuming 1, term {'9' * 5000}"),
            connection("2", "tenant_a_producer", "tenantry consuming 1, term 3"),
            connection("3", "admin", f"tenantry consuming 1, term {'9' * 5000}"),
            connection("4", "admin", {"a": "table"}),
            {"name": "5", "user": "admin", "client_properties": {}},
            {"name": "6"},
            connection("7", "admin", "tenantry consuming 1, term 3"),
            connection("8", "admin", "tenantry consuming 1, term 4"),
        ],
    )
    told.answer(204)
    assert shut_out(client, TermFence(4), user="admin") == 1
    assert told.requests[1:] == ["DELETE /api/connections/7"]


def test_a_permit_that_lapses_while_it_connects_lets_nothing_be_sent(script: Scripted) -> None:
    told, client = script
    told.answer(204)
    looks = iter([True])
    fence = TermFence(1, lambda: next(looks, False))
    with (
        closing(
            ManagementClient(client.address.replace("//", "//a:b@"), vhost="/", fence=fence)
        ) as late,
        pytest.raises(BrokerUnavailableError, match="term 1 has lapsed"),
    ):
        late.delete_user("somebody")
    assert told.requests == []


@pytest.mark.parametrize("url", ["", "127.0.0.1:15672", "amqp://a:b@host", "http://", "http://[a"])
def test_an_url_that_is_none_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(BrokerError, match=r"rabbitmq\.management_url is not an HTTP URL"):
        ManagementClient(url, vhost="/")
