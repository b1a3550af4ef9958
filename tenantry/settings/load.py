"""Where the configuration comes from: a TOML file, the environment, flags."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, TypeAlias, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tenantry.settings.model import CONTROL_SOCKET, DEFAULT_STATE_DIR, Settings


class SettingsError(Exception):
    """The configuration can't be used; the one-line message says what to change, and where."""


def _whole(text: str) -> object:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()) else text


def _yes_or_no(text: str) -> object:
    """Read true or false, yes or no, on or off, 1 or 0."""
    return {
        **dict.fromkeys(("true", "yes", "on", "1"), True),
        **dict.fromkeys(("false", "no", "off", "0"), False),
    }.get(text.strip().lower(), text)


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _numbers(text: str) -> object:
    """Read `0.1, 1, 5` or a JSON list."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return [_number(part) for part in text.split(",")]


def _lines(text: str) -> object:
    """Read one value a line: a secret may hold any other character."""
    return [line for line in text.splitlines() if line]


def _texts(text: str) -> object:
    """Read `one, another`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _pairs(text: str) -> object:
    """Read `events=package.module:function,logs=...`."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(equals for _, equals, _ in pairs):
        return text
    return {key.strip(): value.strip() for key, _, value in pairs}


Reader: TypeAlias = Callable[[str], object]

_READERS: Final[Mapping[type, Reader]] = {
    bool: _yes_or_no,
    int: _whole,
    float: _number,
    tuple: _numbers,
    dict: _pairs,
}
"""How a variable's text is read, by the type of the setting; other types are text."""

_READERS_OF_KEYS: Final[Mapping[str, Reader]] = {
    "security.jwt_secret": _lines,
    "security.audience": _texts,
}
"""The same for keys whose type does not determine it."""

_VARIABLES: Final[Mapping[str, str]] = {
    "broker.url": "BROKER_URL",
    "broker.ca_file": "BROKER_CA_FILE",
    "rabbitmq.url": "RABBITMQ_URL",
    "rabbitmq.management_url": "RABBITMQ_MANAGEMENT_URL",
    "rabbitmq.ca_file": "RABBITMQ_CA_FILE",
    "rabbitmq.cert_file": "RABBITMQ_CERT_FILE",
    "rabbitmq.key_file": "RABBITMQ_KEY_FILE",
    "database.url": "DATABASE_URL",
    "security.jwt_secret": "TENANTRY_JWT_SECRET",
}
"""Variables that break the rule by which `section.key` is `TENANTRY_SECTION_KEY`."""


def _environment() -> Iterator[tuple[str, tuple[str, Reader]]]:
    for section, table in Settings.model_fields.items():
        fields = getattr(table.annotation, "model_fields", None)
        named = {f"{section}.{name}": one for name, one in fields.items()} if fields else None
        for key, field in (named or {section: table}).items():
            by_rule = f"TENANTRY_{key.replace('.', '_').upper()}"
            by_type = _READERS.get(_plain_type(field.annotation), str)
            reader = _READERS_OF_KEYS.get(key, by_type)
            yield key, (_VARIABLES.get(key, by_rule), reader)


def _plain_type(annotation: Any) -> Any:
    """Return `int` for `Annotated[int, ...] | None`, `dict` for `dict[str, str]`."""
    while (origin := get_origin(annotation)) is not None:
        if origin not in (Annotated, Union, UnionType):
            return origin
        annotation = get_args(annotation)[0]
    return annotation


ENVIRONMENT: Final[Mapping[str, tuple[str, Reader]]] = dict(_environment())
"""Every key, with its environment variable and how its text is read."""

CREDENTIALS: Final[Mapping[str, str]] = {
    "jwt_secret": "security.jwt_secret",
    "broker_url": "broker.url",
    "rabbitmq_url": "rabbitmq.url",
    "rabbitmq_management_url": "rabbitmq.management_url",
    "database_url": "database.url",
    "tracing_headers": "tracing.headers",
    "oidc_client_secret": "oidc.client_secret",
}
"""The keys that systemd may pass as a credential (`LoadCredential=`), by the credential's name."""

IN_A_FILE: Final = "_FILE"
"""The suffix of a variable that names a file with a secret, as is usual with containers."""

OPEN_TABLES: Final = frozenset({"handlers", "security.scopes"})
"""Keys whose tables have keys that the user chooses."""


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
    client: bool = False,
) -> Settings:
    """Gather the configuration from a file, the environment and flags.

    Without `path` the file is `$TENANTRY_CONFIG`, `./config.toml` or `/etc/tenantry/config.toml`,
    the first that exists; none is needed. `overrides` maps dotted keys to values; None is no
    override. A `client` only needs to find the daemon, so it may lack the secret that the daemon
    needs. Raises `SettingsError`.
    """
    file = _find(path, environ)
    tree: dict[str, Any] = {} if file is None else _read(file)
    sources: dict[str, str] = {}
    for key, (variable, parse) in ENVIRONMENT.items():
        if variable in environ:
            _put(tree, sources, key, parse(environ[variable]), f"environment variable {variable}")
    _take_files(tree, sources, environ)
    _take_credentials(tree, sources, environ)
    for key, value in (overrides or {}).items():
        if value is not None:
            _put(tree, sources, key, value, "command line")
    _settle_paths(tree, environ)
    where = str(file) if file is not None else "defaults"
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_explain(error, sources, where)) from None
    if not (client or settings.server.is_loopback or settings.security.takes_tokens):
        source = sources.get("server.host", where)
        raise SettingsError(
            f"server.host: {settings.server.host!r} is not loopback, so security.jwt_secret "
            f"(TENANTRY_JWT_SECRET) or security.jwks_url must be set ({source})"
        )
    return settings


def source(path: Path | None, key: str, *, environ: Mapping[str, str]) -> str:
    """Name the source of a key's value, as `load` does: an environment variable or a file."""
    variable, _ = ENVIRONMENT[key]
    for one in (variable, variable + IN_A_FILE):
        if one in environ and (one == variable or key in CREDENTIALS.values()):
            return f"environment variable {one}"
    return str(_find(path, environ) or "defaults")


def _find(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    if path is not None:
        return path
    if environ.get("TENANTRY_CONFIG"):
        return Path(environ["TENANTRY_CONFIG"])
    places = (Path("config.toml"), Path("/etc/tenantry/config.toml"))
    return next((place for place in places if _is_there(place)), None)


def _is_there(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:
        return True  # A user that may not look there gets an error, not another configuration.


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = ""
        if isinstance(error, PermissionError):
            remedy = "; join the group that may, or name another with --config"
        raise SettingsError(f"{file}: the configuration can't be read: {reason}{remedy}") from None
    except ValueError as error:
        raise SettingsError(f"{file}: is not valid TOML: {error}") from None


def _put(
    tree: dict[str, Any], sources: dict[str, str], key: str, value: object, source: str
) -> None:
    *sections, name = key.split(".")
    table: Any = tree
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            return  # the file has no table there: validation says so
    table[name] = value
    sources[key] = source


def _get(tree: Mapping[str, Any], key: str) -> object:
    value: object = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _take_files(tree: dict[str, Any], sources: dict[str, str], environ: Mapping[str, str]) -> None:
    """Read the secrets from files that the environment names."""
    for key in CREDENTIALS.values():
        variable, parse = ENVIRONMENT[key]
        file = environ.get(variable + IN_A_FILE)
        if not file:
            continue
        if variable in environ:
            raise SettingsError(f"{key}: {variable} and {variable}{IN_A_FILE} are set; set one")
        try:
            secret = Path(file).read_text(encoding="utf-8").strip("\r\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise SettingsError(
                f"{key}: {file} can't be read: {reason.lower()} "
                f"(environment variable {variable}{IN_A_FILE})"
            ) from None
        _put(tree, sources, key, parse(secret), f"{file}, which {variable}{IN_A_FILE} names")


def _take_credentials(
    tree: dict[str, Any], sources: dict[str, str], environ: Mapping[str, str]
) -> None:
    """Read systemd's credentials, except keys that the environment sets itself."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    for name, key in CREDENTIALS.items() if directory else ():
        variable, parse = ENVIRONMENT[key]
        if variable in environ or environ.get(variable + IN_A_FILE):
            continue
        try:
            secret = Path(directory or "", name).read_text(encoding="utf-8").strip("\r\n")
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            raise SettingsError(f"{key}: the credential {name} can't be read") from None
        _put(tree, sources, key, parse(secret), f"credential {name}")


def _settle_paths(tree: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Turn texts into absolute paths, with `~` expanded; empty ones default to systemd's."""
    state = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    derived = {
        "state_dir": state or DEFAULT_STATE_DIR,
        "control.socket": f"{runtime}/{CONTROL_SOCKET}" if runtime else None,
    }
    for key, default in derived.items():
        value = _get(tree, key)
        value = default if value in (None, "") else value
        if isinstance(value, (str, Path)):
            text = str(value)
            if text == "~" or text.startswith("~/"):
                text = _home(key, environ) + text[1:]
            try:
                value = Path(text).absolute()
            except OSError:
                raise SettingsError(
                    f"{key}: {text} is relative, and the working directory is gone"
                ) from None
        _put(tree, {}, key, value, "")


def _home(key: str, environ: Mapping[str, str]) -> str:
    try:
        return environ.get("HOME") or str(Path.home())
    except RuntimeError:  # a user without an entry in the list of users
        raise SettingsError(
            f"{key}: it would be in the home directory, and this user has none; set {key} "
            f"({ENVIRONMENT[key][0]})"
        ) from None


_PHRASES: Final = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "is_instance_of": "must be a path",
    "tuple_type": "must be a list of numbers",
    "dict_type": "must be a table of topics, each with its function",
    "too_short": "must not be empty",
    "too_long": "has too many entries",
    "string_too_short": "must not be empty",
    "string_too_long": "is too long",
    "model_type": "must be a table of keys",
    "model_attributes_type": "must be a table of keys",
}


_WANTED: Final = {
    "security.jwt_secret": "must be text, or a list of texts",
    "security.audience": "must be text, or a list of texts",
    "security.scopes": "must be a table of a claim's values, each with the rights that it gives",
}
"""Phrases for keys whose list is not one of numbers, or whose table is not one of topics."""


def _explain(error: ValidationError, sources: Mapping[str, str], where: str) -> str:
    """Describe the first error in one line: key, problem, source; never a secret's value."""
    detail = error.errors(include_url=False)[0]
    parts = [str(part) for part in detail["loc"] if part != "[key]"]
    context = detail.get("ctx", {})
    key = str(context.get("key", "")) or ".".join(parts)
    known = next((one for one in ENVIRONMENT if key == one or key.startswith(f"{one}.")), key)
    shown = key if known in OPEN_TABLES else known
    return f"{shown}: {_problem(detail, key)} ({sources.get(known, where)})"


def _problem(detail: ErrorDetails, key: str) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in {"tuple_type", "dict_type"} and key in _WANTED:
        return _WANTED[key]
    given = detail["input"]
    shown = f", not {given!r}" if isinstance(given, (int, float)) else ""
    match kind:
        case "extra_forbidden":
            names = [*ENVIRONMENT, *{name.partition(".")[0] for name in ENVIRONMENT}]
            close = difflib.get_close_matches(key, names, n=1)
            return "unknown key" + (f"; did you mean {close[0]}?" if close else "")
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}{shown}"
        case "greater_than":
            return f"must be more than {context['gt']:g}{shown}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}{shown}"
        case "literal_error":
            return f"must be {context['expected']}"
        case _:
            return _PHRASES.get(kind, detail["msg"])
