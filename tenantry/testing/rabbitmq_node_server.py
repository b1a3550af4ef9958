"""Which RabbitMQ a private node is: the machine's own, or one that the environment names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tenantry.broker.port import BrokerError

ENVIRONMENT: Final = "TENANTRY_TEST_RABBITMQ"
"""Names a folder with RabbitMQ's scripts, or the root of a whole system that has one installed."""

SCRIPT: Final = "rabbitmq-server"

# The scripts themselves come first: the wrapper in Debian's /usr/sbin insists on becoming the
# user rabbitmq, which neither works for an ordinary user nor leaves the files ours.
_INSTALLED: Final = (
    "/usr/lib/rabbitmq/bin",
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)

# In a mount namespace of its own, so that nothing stays mounted once the node has ended: the
# machine's /proc and /dev, and the node's directory under the path it has outside.
_ENTER: Final = """\
root=$1 home=$2; shift 2
mount --rbind /proc "$root/proc" && mount --rbind /dev "$root/dev" || exit 125
mount -t tmpfs tenantry "$root/tmp" && mkdir -p "$root$home" || exit 125
mount --bind "$home" "$root$home" || exit 125
exec chroot "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class Server:
    """Where an installation's scripts are; `root` is the system they belong to, if not this one."""

    scripts: Path
    root: Path | None = None

    def command(self, script: str, *, home: Path) -> list[str]:
        """Give what runs a script of the installation for the node in `home`."""
        path = str(self.scripts / script)
        if self.root is None:
            return [path]
        mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
        enter = ["unshare", "--mount", *mapped, "--", "/bin/sh", "-c", _ENTER, "sh"]
        return [*enter, str(self.root), str(home), path]


def find_server(environ: Mapping[str, str] = os.environ) -> Server:
    """Find RabbitMQ: what the environment names, else where package managers put it.

    Raises `BrokerError` where it is not there.
    """
    if named := environ.get(ENVIRONMENT):
        return _named(Path(named))
    for folder in _INSTALLED:
        if os.access(Path(folder, SCRIPT), os.X_OK):
            return Server(Path(folder))
    if found := shutil.which(SCRIPT):
        return Server(Path(found).parent)
    raise BrokerError(
        "RabbitMQ is not installed: install rabbitmq-server (apt-get install rabbitmq-server, "
        "brew install rabbitmq), or set rabbitmq.url to a running one"
    )


def _named(place: Path) -> Server:
    place = place.expanduser().absolute()
    if os.access(place / SCRIPT, os.X_OK):
        return Server(place)
    for folder in _INSTALLED:
        if os.access(place / folder.lstrip("/") / SCRIPT, os.X_OK):
            if shutil.which("unshare") is None:
                raise BrokerError(f"{ENVIRONMENT} names a root, for which there must be unshare")
            return Server(Path(folder), root=place)
    raise BrokerError(
        f"{ENVIRONMENT} is {place}, where there is no {SCRIPT}: it names the folder with "
        "RabbitMQ's scripts (its sbin), or the root of a system that has RabbitMQ installed"
    )
