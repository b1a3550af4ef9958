"""Archives of the journal: a file with a part's events, a line of JSON each, and its summary file.

`journal-00001.jsonl.gz` has the events of part 1, `journal-00001.json` is the summary of them.
The summary is written last: without it there is no archive.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Final

from tenantry import failpoints
from tenantry.journal.parts import Digest

FORMAT: Final = "tenantry-journal-1"
_SUMMARY: Final = re.compile(r"journal-(\d{5,})\.json")
_BLOCK: Final = 1024 * 1024


class ArchiveError(Exception):
    """An archive can't be written or read, or has been changed; one line with the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What an archive must contain.

    Times are as the API gives them. `digest` is that of the archive's lines
    (`tenantry.journal.parts.Digest`), `sha256` that of its file: both hexadecimal.
    """

    format: str
    part: int
    first_position: int
    last_position: int
    first_at: str | None
    last_at: str | None
    events: int
    digest: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A part in a file."""

    file: Path
    summary: Summary

    def lines(self) -> Iterator[str]:
        """Read the events, oldest first, unverified; `check` verifies them."""
        with _failures(self.file), gzip.open(self.file, "rb") as lines:
            for line in lines:
                yield line.removesuffix(b"\n").decode()

    def check(self) -> None:
        """Read the whole file; raise `ArchiveError` unless it matches the summary."""
        with _failures(self.file):
            found = _read(self.file)
        wanted = self.summary
        if found != (wanted.events, wanted.digest, wanted.sha256):
            events, _, _ = found
            raise ArchiveError(
                f"{self.file} has been changed: it has {events} events, and not the "
                f"{wanted.events} that were archived as they were; take another copy of it"
            )


def file_name(part: int) -> str:
    """Name the file of a part."""
    return f"journal-{part:05}.jsonl.gz"


def find(place: Path) -> list[Archive]:
    """Find the archives in a directory, or the one in this file; sorted by part.

    Raises `ArchiveError` where there is none.
    """
    with _failures(place):
        if place.is_dir():
            found = [one for one in place.iterdir() if _SUMMARY.fullmatch(one.name)]
        else:
            found = [place.with_name(f"{place.name.removesuffix('.jsonl.gz')}.json")]
            if not place.name.endswith(".jsonl.gz") or not found[0].exists():
                raise ArchiveError(
                    f"{place} is no archive: name a directory, or a file journal-….jsonl.gz "
                    "beside its .json"
                )
    if not found:
        raise ArchiveError(f"there is no archive in {place}: none of its files is a journal-….json")
    return sorted(map(_known, found), key=lambda one: one.summary.part)


def write(directory: Path, part: dict[str, Any], lines: Iterable[str]) -> Archive:
    """Write an archive of a part (as the API describes it); return it once synced and read back.

    An existing archive of the part is checked and kept; `lines` are not read then. Raises
    `ArchiveError`; the next call removes any leftovers.
    """
    file = directory / file_name(part["part"])
    summary = _summary_of(file)
    with _failures(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if summary.exists():
            return _there(file, part)
        _sweep(directory, file.name)
        with _partial(directory, file.name) as (partial, written):
            digest = Digest()
            # Without name and time, so that the same part gives the same file.
            with gzip.GzipFile(filename="", mode="wb", fileobj=written, mtime=0) as packed:
                for line in lines:
                    one = line.encode()
                    digest.add(one)
                    packed.write(one + b"\n")
            failpoints.reach("archive_written")
            _to_the_disk(written)
            failpoints.reach("archive_synced")
            events, read_digest, sha256 = _read(partial)
            if (events, read_digest) != (part["events"], digest.hexdigest()):
                raise ArchiveError(
                    f"{file} is not what was written: {events} of {part['events']} events were "
                    "read back; nothing was removed, try another disk"
                )
            partial.replace(file)
        failpoints.reach("archive_named")
        told = {one.name: part[one.name] for one in fields(Summary) if one.name in part}
        told |= {"format": FORMAT, "digest": digest.hexdigest(), "sha256": sha256}
        with _partial(directory, summary.name) as (partial, written):
            written.write(json.dumps(told, indent=2).encode() + b"\n")
            _to_the_disk(written)
            partial.replace(summary)
        _names_to_the_disk(directory)
        failpoints.reach("archive_complete")
    return Archive(file=file, summary=Summary(**told))


def summary_as_json(archive: Archive) -> dict[str, object]:
    """Describe an archive, its file included."""
    return {**asdict(archive.summary), "file": str(archive.file)}


def _there(file: Path, part: dict[str, Any]) -> Archive:
    archive = _known(_summary_of(file))
    names = ("part", "first_position", "last_position", "events")
    if any(getattr(archive.summary, name) != part[name] for name in names):
        raise ArchiveError(f"{file} is an archive of another journal: name another directory")
    archive.check()
    return archive


def _summary_of(file: Path) -> Path:
    return file.with_name(f"{file.name.removesuffix('.jsonl.gz')}.json")


def _known(summary: Path) -> Archive:
    with _failures(summary):
        text = summary.read_bytes()
    try:
        told = json.loads(text)
        if told.get("format") != FORMAT:
            raise ArchiveError(f"{summary} is of no form that this program knows")
        found = Summary(**{one.name: told[one.name] for one in fields(Summary)})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArchiveError(f"{summary} does not tell what is in an archive any more") from None
    return Archive(
        file=summary.with_name(f"{summary.name.removesuffix('.json')}.jsonl.gz"), summary=found
    )


def _read(file: Path) -> tuple[int, str, str]:
    """Return a file's number of lines, their digest, and the SHA-256 of the file."""
    digest = Digest()
    with file.open("rb") as packed:
        # Read from the disk, not from the page cache.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(packed.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        sha256 = hashlib.sha256()
        while block := packed.read(_BLOCK):
            sha256.update(block)
        packed.seek(0)
        with gzip.GzipFile(mode="rb", fileobj=packed) as lines:
            for line in lines:
                digest.add(line.removesuffix(b"\n"))
    return digest.lines, digest.hexdigest(), sha256.hexdigest()


@contextmanager
def _partial(directory: Path, name: str) -> Iterator[tuple[Path, IO[bytes]]]:
    """Open a temporary file private to its owner; remove it at the end unless it was renamed."""
    while True:
        handle, path = tempfile.mkstemp(dir=directory, prefix=f".{name}.", suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as written:
                fcntl.flock(written, fcntl.LOCK_EX)
                if os.fstat(handle).st_nlink == 0:
                    continue  # Another program swept the file away before it was locked.
                yield Path(path), written
                return
        finally:
            Path(path).unlink(missing_ok=True)


def _sweep(directory: Path, name: str) -> None:
    """Remove partial files of programs that have ended; a living writer holds a lock on its own."""
    for one in directory.glob(f".{name}.*.partial"):
        with suppress(OSError), one.open("rb") as begun:
            fcntl.flock(begun, fcntl.LOCK_EX | fcntl.LOCK_NB)
            one.unlink()


def _to_the_disk(written: IO[bytes]) -> None:
    written.flush()
    os.fsync(written.fileno())


def _names_to_the_disk(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _failures(place: Path) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise ArchiveError(f"{place} has been changed: its end is missing") from None
    except (OSError, UnicodeDecodeError, zlib.error) as error:
        # OSError without errno is gzip's: it reports changed data so.
        if isinstance(error, OSError) and error.errno is not None:
            full = " (make room, or name another directory)" if error.errno == errno.ENOSPC else ""
            raise ArchiveError(f"{place}: {error.strerror}{full}") from error
        raise ArchiveError(f"{place} has been changed: {error}") from error
