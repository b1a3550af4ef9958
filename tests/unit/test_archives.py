"""Archives as files: whole or not at all, read back, found out when they were changed."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tenantry import failpoints
from tenantry.journal import archives
from tenantry.journal.archives import Archive, ArchiveError
from tests.waiting import DEADLINE

LINES = [f'{{"position": {n}, "data": {{"n": "{n} ☃"}}}}' for n in range(1, 301)]


def part(events: int = len(LINES), number: int = 1) -> dict[str, Any]:
    return {
        "part": number,
        "first_position": 1,
        "last_position": events,
        "first_at": "2026-01-31T12:00:00.000000Z",
        "last_at": "2026-02-01T12:00:00.000000Z",
        "events": events,
        "state": "kept",
        "digest": None,
        "archive": None,
        "archived_at": None,
    }


def written(directory: Path) -> Archive:
    return archives.write(directory, part(), LINES)


def names(directory: Path) -> list[str]:
    return sorted(one.name for one in directory.iterdir())


def test_what_is_written_is_read_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    archive = written(tmp_path / "new" / "place")
    assert list(archive.lines()) == LINES
    archive.check()
    assert archives.find(archive.file) == archives.find(archive.file.parent) == [archive]
    assert names(archive.file.parent) == ["journal-00001.json", "journal-00001.jsonl.gz"]
    assert {one.stat().st_mode & 0o777 for one in archive.file.parent.iterdir()} == {0o600}


def test_one_that_is_complete_is_checked_and_not_written_again(tmp_path: Path) -> None:
    def nobody_asks() -> Iterator[str]:
        raise AssertionError
        yield ""

    first = written(tmp_path)
    before = first.file.stat().st_mtime_ns
    assert archives.write(tmp_path, part(), nobody_asks()) == first
    assert first.file.stat().st_mtime_ns == before
    with pytest.raises(ArchiveError, match="another journal"):
        archives.write(tmp_path, part(events=7), nobody_asks())


@pytest.mark.parametrize("missing", [1, -1])
def test_one_with_fewer_or_more_events_than_its_part_is_none(tmp_path: Path, missing: int) -> None:
    with pytest.raises(ArchiveError, match="nothing was removed"):
        archives.write(tmp_path, part(events=len(LINES) + missing), LINES)
    assert names(tmp_path) == []


@pytest.mark.parametrize("point", ["archive_written", "archive_synced", "archive_named"])
def test_what_broke_off_is_no_archive_and_the_next_one_takes_it_away(
    tmp_path: Path, point: str
) -> None:
    (tmp_path / ".journal-00001.jsonl.gz.killed.partial").write_bytes(
        b"from a process that is gone"
    )
    failpoints.arm(f"{point}:fail")
    try:
        with pytest.raises(failpoints.FailpointError):
            written(tmp_path)
    finally:
        failpoints.arm("")
    with pytest.raises(ArchiveError, match="no archive"):
        archives.find(tmp_path)
    assert list(written(tmp_path).lines()) == LINES
    assert names(tmp_path) == ["journal-00001.json", "journal-00001.jsonl.gz"]


def test_several_at_once_write_the_same_archive(tmp_path: Path) -> None:
    done: list[Archive] = []
    threads = [threading.Thread(target=lambda: done.append(written(tmp_path))) for _ in range(5)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(DEADLINE)
    assert done == [done[0]] * 5
    done[0].check()
    assert names(tmp_path) == ["journal-00001.json", "journal-00001.jsonl.gz"]


def test_what_another_sweeps_away_before_it_is_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    make = tempfile.mkstemp

    def make_and_lose_the_first(**where: Any) -> tuple[int, str]:
        handle, path = make(**where)
        if not begun:
            archives._sweep(tmp_path, archives.file_name(1))
            assert names(tmp_path) == []
        begun.append(path)
        return handle, path

    monkeypatch.setattr(tempfile, "mkstemp", make_and_lose_the_first)
    assert list(written(tmp_path).lines()) == LINES
    assert len(begun) == 3
    assert names(tmp_path) == ["journal-00001.json", "journal-00001.jsonl.gz"]


FULL = """
import resource, sys
from pathlib import Path
from tenantry.journal import archives
from tests.unit.test_archives import part
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
lines = (f'{{"position": {n}, "data": "{hash(n ** 7) ** 5}"}}' for n in range(1, 10_000))
try:
    archives.write(Path(sys.argv[1]), part(events=9999), lines)
except archives.ArchiveError as error:
    print(error)
"""


def test_where_there_is_no_room_nothing_is_left_behind(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=DEADLINE,
    )
    assert "File too large" in ended.stdout, ended
    assert names(tmp_path) == []


def flip(archive: Archive) -> None:
    """Change a byte in the middle."""
    data = bytearray(archive.file.read_bytes())
    data[len(data) // 2] ^= 1
    archive.file.write_bytes(data)


def cut(archive: Archive) -> None:
    """Lose the end."""
    archive.file.write_bytes(archive.file.read_bytes()[:-40])


def edit(archive: Archive) -> None:
    """Write another event, packed as it should be."""
    lines = gzip.decompress(archive.file.read_bytes()).replace(b'"7 ', b'"8 ')
    archive.file.write_bytes(gzip.compress(lines))


def add(archive: Archive) -> None:
    """Add an event."""
    archive.file.write_bytes(archive.file.read_bytes() + gzip.compress(b"{}\n"))


def lose(archive: Archive) -> None:
    """Lose the file itself."""
    archive.file.unlink()


@pytest.mark.parametrize("change", [flip, cut, edit, add, lose])
def test_one_that_was_changed_is_found_out(tmp_path: Path, change: Any) -> None:
    archive = written(tmp_path)
    change(archive)
    with pytest.raises(ArchiveError, match=r"changed|No such file") as caught:
        archives.find(tmp_path)[0].check()
    assert str(archive.file) in str(caught.value)


@pytest.mark.parametrize("summary", ["", "[]", "{}", '{"format": "tenantry-journal-1"}', "\udcff"])
def test_a_summary_that_tells_nothing_is_refused(tmp_path: Path, summary: str) -> None:
    archive = written(tmp_path)
    beside = archive.file.with_name("journal-00001.json")
    beside.write_bytes(summary.encode(errors="surrogateescape"))
    with pytest.raises(ArchiveError, match=r"journal-00001\.json"):
        archives.find(tmp_path)


def test_a_place_without_an_archive_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    for place in (tmp_path, tmp_path / "file", tmp_path / "nothing", tmp_path / "a.jsonl.gz"):
        with pytest.raises(ArchiveError):
            archives.find(place)
