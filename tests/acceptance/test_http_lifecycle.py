"""A tenant's life over both listeners, with httpx and curl; live tails and keys over a restart."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.acceptance.program import Program
from tests.api.serving import SECRET
from tests.waiting import DEADLINE, eventually


def tcp_url(program: Program) -> str:
    return f"http://127.0.0.1:{program.get('/info')['server']['port']}"


@contextmanager
def over_tcp(program: Program, *arguments: str) -> Iterator[httpx.Client]:
    """A client on TCP with a token made by the command line."""
    ended = program.cli("token", *arguments)
    assert ended.code == 0, ended.stderr
    headers = {"Authorization": f"Bearer {ended.stdout.strip()}"}
    with httpx.Client(
        base_url=tcp_url(program), headers=headers, timeout=DEADLINE, trust_env=False
    ) as client:
        yield client


@contextmanager
def over_control(program: Program, *_: str) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(program.socket))
    with httpx.Client(transport=transport, base_url="http://localhost", timeout=DEADLINE) as client:
        yield client


def test_a_tenants_whole_life_over_both_listeners(program: Program) -> None:
    program.settings["TENANTRY_JWT_SECRET"] = SECRET
    program.start()
    lives = {door: begun(program, door) for door in (over_tcp, over_control)}
    program.stop()
    program.start()
    for door, (tenant_id, version) in lives.items():
        path = f"/tenants/{tenant_id}"
        with door(program, "--admin") as admin:
            again = admin.get(path).json()
            assert (again["workers"], again["version"]) == (5, version + 1)
            assert len(admin.get(f"/messages?tenant_id={tenant_id}").json()["data"]) == 25
            assert admin.delete(path).status_code == 204
            assert admin.get(path).status_code == 404
            assert admin.get(f"/messages?tenant_id={tenant_id}").status_code == 404
            assert admin.get(path, params={"at": "3"}).json()["workers"] == 5


def begun(program: Program, door: Any) -> tuple[str, int]:
    """Make a tenant and run every command on it but deletion; return its id and first version."""
    tenant_id = program.name(door.__name__.replace("_", "-"))
    path = f"/tenants/{tenant_id}"
    with door(program, "--admin", "--subject", "ann") as admin:
        wanted = {"name": "Acme", "id": tenant_id, "topics": ["logs"], "workers": 2}
        made = admin.post("/tenants", json=wanted)
        assert (made.status_code, made.headers["location"]) == (201, path)
        assert made.json()["credentials"]["password"]
        shown = admin.get(path).json()
        assert (shown["state"], shown["workers_current"]) == ("active", 2)
        assert "credentials" not in shown
        resized = admin.put(f"{path}/config/concurrency", json={"workers": 5})
        assert (resized.json()["workers"], resized.json()["workers_current"]) == (5, 5)

        with door(program, "--tenant", tenant_id) as own:
            batch = [{"payload": n, "topic": "logs", "id": str(n)} for n in range(25)]
            assert own.post(f"{path}/messages", json=batch).status_code == 202
            url = f"/messages?tenant_id={tenant_id}&limit=10"
            everything = url.replace("limit=10", "limit=100")
            eventually(lambda: len(own.get(everything).json()["data"]) == 25)
            seen: list[str] = []
            while url:  # following the links only
                page = own.get(url)
                seen += [one["id"] for one in page.json()["data"]]
                url = page.headers.get("link", "").partition(">")[0].lstrip("<")
            # Several workers store at once, so the order is open, but each message comes once.
            assert sorted(seen, key=int) == [str(n) for n in range(25)]
            if door is over_tcp:
                assert own.delete(path).status_code == 403
                assert own.get("/tenants").status_code == 403

        events = admin.get(f"{path}/events").json()["data"]
        assert [one["type"] for one in events] == [
            "TenantCreated",
            "TenantProvisioned",
            "WorkersResized",
        ]
        assert events[0]["actor"] == "ann" if door is over_tcp else "uid=" in events[0]["actor"]
    return tenant_id, shown["version"]


def test_a_live_tail_brings_each_message_once_in_order_over_a_restart(running: Program) -> None:
    tenant = running.create()
    total, halfway = 1200, threading.Event()
    followed: list[int] = []
    ids: list[str] = []
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        for number in range(0, total // 4, 10):
            if number == total // 8:
                assert halfway.wait(DEADLINE)
            batch = [{"payload": n, "id": f"{writer}-{n}"} for n in range(number, number + 10)]
            answer = running.call("POST", f"/tenants/{tenant.id}/messages", batch)
            assert answer.status_code == 202, answer.text

    def guarded(writer: int) -> None:
        try:
            write(writer)
        except BaseException as error:  # noqa: BLE001 - told to the test below
            failures.append(error)

    def follow(cursor: str, until: int) -> str:
        url = f"{tcp_url(running)}/messages/stream"
        headers = {"Last-Event-ID": cursor} if cursor else {}
        with (
            httpx.Client(timeout=DEADLINE, trust_env=False) as client,
            client.stream("GET", url, params={"tenant_id": tenant.id}, headers=headers) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    cursor = line[4:]
                    if not writers[0].is_alive() and not followed:
                        for thread in writers:
                            thread.start()  # the stream has begun
                elif line.startswith("data: "):
                    message = json.loads(line[6:])
                    followed.append(message["position"])
                    ids.append(message["id"])
                    if len(ids) >= until:
                        break
        return cursor

    writers = [threading.Thread(target=guarded, args=(writer,)) for writer in range(4)]
    cursor = follow("", 4 * 150)
    running.stop()
    running.start()
    halfway.set()
    follow(cursor, total)
    for thread in writers:
        thread.join(DEADLINE)
    assert not failures
    assert followed == sorted(set(followed))
    assert sorted(ids) == sorted(f"{writer}-{n}" for writer in range(4) for n in range(total // 4))


def test_idempotency_keys_outlive_the_daemon(running: Program) -> None:
    assert len(running.wait_logged("api.without_tokens")) == 1
    tenant_id = running.name("once")

    def create(name: str) -> httpx.Response:
        with over_control(running) as client:
            return client.post(
                "/tenants",
                json={"name": name, "id": tenant_id},
                headers={"Idempotency-Key": f"key-{tenant_id}"},
            )

    first = create("Once")
    assert first.status_code == 201
    running.kill()
    running.start()
    again = create("Once")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    assert again.json()["id"] == tenant_id
    assert "credentials" not in again.json()
    assert create("Twice").status_code == 422

    def publish() -> httpx.Response:
        with over_control(running) as client:
            return client.post(
                f"/tenants/{tenant_id}/messages",
                json=[{"payload": n} for n in range(3)],
                headers={"Idempotency-Key": f"publish-{tenant_id}"},
            )

    ids = publish().json()["ids"]
    path = f"/messages?tenant_id={tenant_id}"
    eventually(lambda: len(running.get(path)["data"]) == 3)
    running.kill()
    running.start()
    assert publish().json()["ids"] == ids
    # More than three if messages had been stored but not acknowledged when the daemon was killed.
    eventually(lambda: running.get("/status")["tenants"][tenant_id]["duplicates"] >= 3)
    assert sorted(one["id"] for one in running.get(path)["data"]) == sorted(ids)


def test_a_short_secret_and_an_open_address_without_one_are_refused(program: Program) -> None:
    ended = program.run(TENANTRY_JWT_SECRET="too short and secret")
    assert ended.code == 2
    assert "security.jwt_secret: must be at least 32 bytes" in ended.complaint
    assert "too short and secret" not in ended.stderr
    ended = program.run(TENANTRY_SERVER_HOST="0.0.0.0")
    assert ended.code == 2
    assert "security.jwt_secret" in ended.complaint
