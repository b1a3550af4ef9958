"""A command archives old events, whatever dies meanwhile; archives are read, and restored."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tenantry.journal.parts import Digest
from tests.acceptance.program import Ended, Program
from tests.depth import examples

LATER = "2999-01-01"
OF_THE_COMMAND = ["archive_written", "archive_synced", "archive_named", "archive_complete"]
OF_THE_DAEMON = ["before_detach", "after_detach"]


@pytest.fixture
def program(database_url: str) -> Iterator[Program]:
    """A daemon on its embedded broker, with a tenant that has some events."""
    with Program(None, database_url) as one:
        one.start()
        acme = one.create("acme", workers=2).id
        for workers in (3, 4):
            one.call("PUT", f"/tenants/{acme}/config/concurrency", {"workers": workers})
        yield one
        one.check_no_traceback()


def events(program: Program, *arguments: str) -> list[dict[str, Any]]:
    ended = program.cli("events", *arguments, "--json")
    assert ended.code == 0, ended.stderr
    found: list[dict[str, Any]] = ended.json
    return found


def archive(program: Program, directory: Path, *arguments: str, **settings: str) -> Ended:
    given = ("--before", LATER, "--to", str(directory), "--json", *arguments)
    return program.cli("events", "archive", *given, **settings)


def without_head(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out events about the journal's own parts."""
    return [one for one in found if one["stream"] != "journal"]


def test_old_events_go_to_files_are_read_there_and_come_back(
    program: Program, tmp_path: Path
) -> None:
    before, place, acme = events(program), tmp_path / "archive", program.name("acme")
    shown = program.get(f"/tenants/{acme}")
    cursor = program.get("/events?limit=1")["next_cursor"]
    would = archive(program, place, "--dry-run")
    assert [one["events"] for one in would.json["archived"]] == [len(before)]
    assert not place.exists()
    assert events(program) == before

    nothing = program.cli("events", "archive", "--before", "2000-01-01", "--to", str(place))
    assert nothing.code == 0
    assert "nothing to archive" in nothing.stdout
    done = archive(program, place)
    assert done.code == 0, done.stderr
    (one,) = done.json["archived"]
    assert one["events"] == len(before)
    assert hashlib.sha256(Path(one["file"]).read_bytes()).hexdigest() == one["sha256"]

    ended = program.cli("events", acme, "--json")
    assert ended.json == []
    assert one["file"] in ended.complaint
    (told,) = events(program)
    assert (told["type"], told["data"]["digest"]) == ("EventsArchived", one["digest"])
    assert told["actor"].startswith("uid=")
    assert {**program.get(f"/tenants/{acme}"), "rate": 0} == {**shown, "rate": 0}
    past = program.cli("tenant", "show", acme, "--at", "1")
    assert past.code == 1
    assert one["file"] in past.complaint
    assert program.get(f"/tenants/{acme}?at=4")["workers"] == 4
    answer = program.call("GET", f"/events?cursor={cursor}")
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (
        410,
        "events-archived",
    )
    assert program.cli("audit").code == 0

    assert events(program, "--archive", str(place)) == before
    of_acme = events(program, acme, "--archive", one["file"], "--limit", "2")
    assert [found["type"] for found in of_acme] == ["TenantCreated", "TenantProvisioned"]
    program.call("PUT", f"/tenants/{acme}/config/concurrency", {"workers": 5})
    assert program.get(f"/tenants/{acme}")["version"] == shown["version"] + 1

    restored = program.cli("events", "restore", str(place))
    assert restored.code == 0, restored.stderr
    assert events(program)[: len(before)] == before
    states = [part["state"] for part in program.cli("events", "parts", "--json").json]
    assert states == ["kept", "open"]
    assert program.get(f"/tenants/{acme}?at=1")["version"] == 1
    again = program.cli("events", "restore", str(place))
    assert again.code == 1
    assert "no part of the journal is archived" in again.complaint


def test_whatever_dies_on_the_way_the_events_are_there_and_the_command_goes_on(
    program: Program, tmp_path: Path
) -> None:
    before = events(program)
    for point in examples(OF_THE_COMMAND[-1:], OF_THE_COMMAND):
        place = tmp_path / point
        killed = archive(program, place, TENANTRY_FAILPOINTS=f"{point}:kill")
        assert killed.code == -9, killed
        assert without_head(events(program)) == before
        done = archive(program, place)
        assert done.code == 0, done.stderr
        names = sorted(one.name for one in place.iterdir())
        assert all(one.startswith("journal-0") for one in names), names
        assert without_head(events(program, "--archive", str(place))) == before
        assert program.cli("events", "restore", str(place)).code == 0
    for point in examples(OF_THE_DAEMON[-1:], OF_THE_DAEMON):
        place = tmp_path / point
        assert program.stop() == 0
        program.start(TENANTRY_FAILPOINTS=f"{point}:kill")
        cut = archive(program, place)
        assert cut.code == 3, cut
        assert program.wait() == -9
        program.start()
        assert without_head(events(program)) == before
        done = archive(program, place)
        assert done.code == 0, done.stderr
        assert without_head(events(program, "--archive", str(place))) == before
        assert program.cli("events", "restore", str(place)).code == 0
    assert without_head(events(program)) == before


def test_two_at_once_archive_the_same_events_once(program: Program, tmp_path: Path) -> None:
    before, ended = events(program), []
    threads = [
        threading.Thread(target=lambda: ended.append(archive(program, tmp_path))) for _ in range(3)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert 0 in {one.code for one in ended}
    for one in ended:
        assert one.code == 0 or "look again later" in one.complaint
    assert without_head(events(program, "--archive", str(tmp_path))) == before
    assert without_head(events(program)) == []


def test_an_archive_that_was_changed_together_with_its_summary_is_found_out(
    program: Program, tmp_path: Path
) -> None:
    (one,) = archive(program, tmp_path).json["archived"]
    file, beside = Path(one["file"]), tmp_path / "journal-00001.json"
    lines = gzip.decompress(file.read_bytes()).replace(b'"workers": 3', b'"workers": 9')
    file.write_bytes(gzip.compress(lines))
    digest = Digest()
    for line in lines.splitlines():
        digest.add(line)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    summary = json.loads(beside.read_text())
    beside.write_text(json.dumps({**summary, "digest": digest.hexdigest(), "sha256": sha256}))
    for command in (("--archive", str(tmp_path)), ("restore", str(tmp_path))):
        ended = program.cli("events", *command)
        assert ended.code == 1
        assert "it has been changed" in ended.complaint
        assert ended.stdout == ""
    assert program.stop() == 0
    alone = program.cli("events", program.name("acme"), "--archive", str(tmp_path))
    assert alone.code == 0
    assert "no daemon answers" in alone.complaint
