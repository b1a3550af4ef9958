"""Which RabbitMQ a private node is, and what it is told: files, environment, Erlang arguments."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import Final

from tenantry.broker.port import BrokerError

ALONE: Final = "127.0.0.1"
"""Where a node listens that is in no cluster."""

USERNAME: Final = "tenantry"

# Below the range from which Linux and macOS take the ports of outgoing connections, which
# would otherwise now and then snatch one away between our choice and the node's start.
_PORTS: Final = range(20_000, 32_000)

# RabbitMQ loads more than a thousand modules one after the other; loading them on all cores
# first halves the time to start. A failure here costs nothing but that time.
_PRELOAD: Final = (
    "spawn(fun() -> catch code:ensure_modules_loaded(lists:append([case code:lib_dir(A) of "
    "{error, _} -> []; D -> [list_to_atom(filename:rootname(filename:basename(F))) || "
    "F <- filelib:wildcard(filename:join([D, ebin, [42 | atom_to_list('.beam')]]))] end || "
    "A <- [kernel, stdlib, sasl, mnesia, ssl, public_key, crypto, asn1, compiler, syntax_tools, "
    "os_mon, xmerl, tools, inets, rabbit, rabbit_common, rabbitmq_prelaunch, rabbitmq_management, "
    "rabbitmq_management_agent, rabbitmq_web_dispatch, cowboy, cowlib, ranch, ra, osiris, khepri, "
    "amqp_client, amqp10_common, cuttlefish, observer_cli, recon, credentials_obfuscation, "
    "stdout_formatter, sysmon_handler, aten, gen_batch_server, seshat, systemd]])) end)."
)

# The other end of the node's standard input is ours: when it closes, we are gone, however we
# went, and so must the node be.
_FOLLOW_PARENT: Final = (
    "spawn(fun() -> P = open_port({fd, 0, 0}, [in, eof, binary]), "
    "receive {P, eof} -> init:stop(), timer:sleep(10000), halt(1) end end)."
)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The node's listeners, all on its loopback address; the same on those of its peers."""

    amqp: int
    management: int
    distribution: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFiles:
    """Where the node keeps what; `directory` is its home.

    It listens on the loopback address `host`; its cluster is all the nodes at `peers`.
    """

    directory: Path
    host: str = ALONE
    peers: tuple[str, ...] = ()
    data: Path = field(init=False)
    log: Path = field(init=False)
    console: Path = field(init=False)
    configuration: Path = field(init=False)
    plugins: Path = field(init=False)
    password: Path = field(init=False)
    cookie: Path = field(init=False)
    ports: Path = field(init=False)
    lock: Path = field(init=False)

    def __post_init__(self) -> None:
        """Derive the paths."""
        for name, path in {
            "data": "data",
            "log": "log/rabbitmq.log",
            "console": "log/console.log",
            "configuration": "rabbitmq.conf",
            "plugins": "enabled_plugins",
            "password": "password",
            "cookie": ".erlang.cookie",
            "ports": "ports.json",
            "lock": "lock",
        }.items():
            object.__setattr__(self, name, self.directory / path)


def prepare(files: NodeFiles) -> str:
    """Make the directories and secrets where missing; give the admin user's password."""
    files.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.log.parent.mkdir(exist_ok=True, mode=0o700)
    files.data.mkdir(exist_ok=True, mode=0o700)
    files.plugins.write_text("[rabbitmq_management].\n", encoding="ascii")
    if not files.cookie.exists():
        write_private(files.cookie, secrets.token_hex(32))
    if not files.password.exists():
        write_private(files.password, secrets.token_urlsafe(32))
    return files.password.read_text(encoding="ascii")


def write_private(path: Path, text: str) -> None:
    """Write a file only its owner may read, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    temporary.replace(path)


def choose_ports(files: NodeFiles) -> Ports:
    """Choose free ports; those of the last start where they still are, so that URLs last."""
    try:
        ports = Ports(**json.loads(files.ports.read_text(encoding="ascii")))
    except (OSError, ValueError, TypeError):
        pass
    else:
        if all(_is_free(files.host, port) for port in asdict(ports).values()):
            return ports
    candidates = SystemRandom().sample(_PORTS, 200)
    hosts = files.peers or (files.host,)
    free = iter([one for one in candidates if all(_is_free(host, one) for host in hosts)][:3])
    try:
        ports = Ports(amqp=next(free), management=next(free), distribution=next(free))
    except StopIteration:
        raise BrokerError(f"no free port on {files.host} for the embedded broker") from None
    files.ports.write_text(json.dumps(asdict(ports)), encoding="ascii")
    return ports


def configuration(files: NodeFiles, ports: Ports, password: str) -> str:
    """Write out the node's rabbitmq.conf, which holds the password: keep it private.

    The WAL's limit bounds the memory of quorum queues, meant for larger machines by default.
    """
    formation = [
        f"cluster_formation.classic_config.nodes.{number} = {node_name(host)}\n"
        for number, host in enumerate(files.peers, 1)
    ]
    return f"""\
listeners.tcp.1 = {files.host}:{ports.amqp}
management.tcp.ip = {files.host}
management.tcp.port = {ports.management}
default_user = {USERNAME}
default_pass = {password}
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.relative = 0.4
raft.wal_max_size_bytes = 64000000
log.console = false
log.file.level = warning
log.file.rotation.size = 10485760
log.file.rotation.count = 1
{"".join(formation)}"""


def node_name(host: str) -> str:
    """Give the name of a node: it holds an address, so no list of hosts has to know one."""
    return f"tenantry@{host}"


def arguments(server: Server, files: NodeFiles, ports: Ports) -> list[str]:
    """Give the command line: distribution on loopback only, on a fixed port, without epmd.

    A node that is started with its name does not ask for the port mapper, so none is left
    behind, and nodes of the same name do not meet; it takes its peers to have the same port, each
    on an address of its own. For rabbitmqctl, take --longnames, the same HOME, and
    RABBITMQ_CTL_ERL_ARGS="-dist_listen false -start_epmd false -erl_epmd_port PORT".
    """
    return [
        *server.command(SCRIPT, home=files.directory),
        "-noinput",
        *("-name", node_name(files.host)),
        *("-start_epmd", "false"),
        *("-erl_epmd_port", str(ports.distribution)),
        *("-kernel", "inet_dist_use_interface", f"{{{files.host.replace('.', ',')}}}"),
    ]


def environment(files: NodeFiles, ports: Ports, inherited: Mapping[str, str]) -> dict[str, str]:
    """Give the node's environment; of ours it sees only where programs and scratch space are."""
    kept = {name: inherited[name] for name in ("PATH", "TMPDIR") if name in inherited}
    home = str(files.directory)
    return {
        "PATH": os.defpath,
        **kept,
        "LANG": "C.UTF-8",
        "HOME": home,
        "ERL_AFLAGS": f'-eval "{_FOLLOW_PARENT}" -eval "{_PRELOAD}"',
        "ERL_CRASH_DUMP_SECONDS": "0",
        # Makes the script become the Erlang machine instead of waiting beside it.
        "RABBITMQ_ALLOW_INPUT": "1",
        "RABBITMQ_NODENAME": node_name(files.host),
        "RABBITMQ_USE_LONGNAME": "true",
        "RABBITMQ_CONFIG_FILE": str(files.configuration),
        "RABBITMQ_ADVANCED_CONFIG_FILE": f"{home}/advanced.config",
        "RABBITMQ_CONF_ENV_FILE": f"{home}/rabbitmq-env.conf",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(files.plugins),
        "RABBITMQ_MNESIA_BASE": str(files.data),
        "RABBITMQ_LOG_BASE": str(files.log.parent),
        "RABBITMQ_LOGS": str(files.log),
        "RABBITMQ_PID_FILE": f"{home}/rabbitmq.pid",
        "RABBITMQ_DIST_PORT": str(ports.distribution),
    }


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        # As the node itself listens: a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
