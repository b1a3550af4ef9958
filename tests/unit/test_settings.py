from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from tenantry.settings import ENVIRONMENT, Settings, SettingsError, load
from tenantry.urls import split

SHIPPED = Path(__file__).parents[2] / "config.toml"
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def read(file: Path, text: str = "", /, *, client: bool = False, **environ: str) -> Settings:
    file.write_text(text)
    return load(file, environ={"HOME": "/home/u", **environ}, client=client)


def refusal(file: Path, text: str = "", /, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(file, text, **environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_shipped_file_equals_the_defaults(file: Path) -> None:
    assert load(SHIPPED, environ={"HOME": "/home/u"}) == read(file)


def test_a_variable_is_named_by_the_rule_or_by_name() -> None:
    assert ENVIRONMENT["consumer.batch_size"][0] == "TENANTRY_CONSUMER_BATCH_SIZE"
    assert ENVIRONMENT["state_dir"][0] == "TENANTRY_STATE_DIR"
    assert ENVIRONMENT["database.url"][0] == "DATABASE_URL"
    assert ENVIRONMENT["rabbitmq.ca_file"][0] == "RABBITMQ_CA_FILE"


def test_the_environment_wins_over_the_file_and_a_flag_over_both(file: Path) -> None:
    file.write_text("workers = 4")
    environ = {"TENANTRY_WORKERS": "5"}
    assert load(file, environ={}).workers == 4
    assert load(file, environ=environ).workers == 5
    assert load(file, environ=environ, overrides={"workers": 6, "server.port": None}).workers == 6


def test_texts_of_the_environment_become_numbers_and_lists(file: Path) -> None:
    settings = read(
        file,
        TENANTRY_SERVER_PORT="0",
        TENANTRY_METRICS_PORT="9100",
        TENANTRY_SHUTDOWN_DEADLINE_SECONDS="2.5",
        TENANTRY_RETRY_BACKOFF_SECONDS="0.5, 2",
    )
    assert settings.server.port == 0
    assert settings.metrics.port == 9100
    assert settings.shutdown.deadline_seconds == 2.5
    assert settings.retry.backoff_seconds == (0.5, 2.0)


def test_without_any_file_the_defaults_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(None, environ={"HOME": "/home/u"})
    assert settings.state_dir == Path("/home/u/.local/state/tenantry")
    assert settings.control_socket == settings.state_dir / "control.sock"
    assert settings.postgres_dir == settings.state_dir / "postgres"
    assert settings.management_url is None


def test_the_file_is_found_through_the_environment_and_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text("workers = 7")
    (tmp_path / "other.toml").write_text("workers = 8")
    assert load(None, environ={}).workers == 7
    assert load(None, environ={"TENANTRY_CONFIG": "other.toml"}).workers == 8


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml: .*no such file"):
        load(tmp_path / "absent.toml", environ={})


def test_a_file_that_one_may_not_look_at_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: object) -> bool:
        if self.is_absolute():
            raise PermissionError(13, "Permission denied", str(self))
        return False

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "is_file", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        SettingsError, match=r"/etc/tenantry/config\.toml: .*denied; join the group"
    ):
        load(None, environ={})


def test_systemd_s_directories_are_taken_and_a_key_wins_over_them(file: Path) -> None:
    systemd = {"STATE_DIRECTORY": "/var/lib/t:/x", "RUNTIME_DIRECTORY": "/run/t"}
    settings = read(file, **systemd)
    assert settings.state_dir == Path("/var/lib/t")
    assert settings.control_socket == Path("/run/t/control.sock")
    settings = read(file, 'state_dir = "~/x"\n[control]\nsocket = "/s.sock"', **systemd)
    assert settings.state_dir == Path("/home/u/x")
    assert settings.control_socket == Path("/s.sock")


def test_the_secret_may_be_a_systemd_credential(file: Path, tmp_path: Path) -> None:
    (tmp_path / "jwt_secret").write_text(SECRET + "\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    settings = read(file, '[server]\nhost = "0.0.0.0"', **environ)
    assert settings.security.secrets == (SECRET,)
    settings = read(file, **environ, TENANTRY_JWT_SECRET="x" * 32)
    assert settings.security.secrets == ("x" * 32,)
    (tmp_path / "jwt_secret").write_text("short")
    assert "credential jwt_secret" in refusal(file, **environ)


def test_secrets_may_be_several_the_first_of_which_signs(file: Path, tmp_path: Path) -> None:
    assert read(file).security.secrets == ()
    old, new = SECRET, "a new one, with commas, = and [] in it"
    listed = read(file, f"security = {{jwt_secret = ['{new}', '{old}']}}")
    assert listed.security.secrets == (new, old)
    (tmp_path / "jwt_secret").write_text(f"{new}\n\n{old}\n")
    for environ in (
        {"TENANTRY_JWT_SECRET": f"{new}\n{old}"},
        {"TENANTRY_JWT_SECRET_FILE": str(tmp_path / "jwt_secret")},
        {"CREDENTIALS_DIRECTORY": str(tmp_path)},
    ):
        assert read(file, **environ).security.secrets == (new, old)
    assert not any(one in repr(listed) + repr(listed.model_dump()) for one in (new, old))
    assert read(file, TENANTRY_JWT_SECRET="").security.secrets == ()


PROVIDED = {
    "TENANTRY_SECURITY_JWKS_URL": "https://login.test/keys",
    "TENANTRY_SECURITY_ISSUER": "https://login.test",
    "TENANTRY_SECURITY_AUDIENCE": "one, two",
}


def test_a_provider_of_tokens_is_named_with_whose_and_for_whom_they_are(file: Path) -> None:
    roles = {
        "TENANTRY_SECURITY_SCOPE_CLAIM": "realm_access.roles",
        "TENANTRY_SECURITY_SCOPES": "bosses=admin,support=read payloads",
    }
    given = read(file, TENANTRY_SERVER_HOST="::", **PROVIDED, **roles).security
    assert given.audience == ("one", "two")
    assert given.scopes == {"bosses": "admin", "support": "read payloads"}
    assert (given.scope_claim, given.tenant_claim) == ("realm_access.roles", "tenant_id")
    listed = read(
        file, 'security = {audience = ["a, b"], jwks_url = "http://[::1]:1", issuer = "i"}'
    )
    assert listed.security.audience == ("a, b",)
    assert listed.security.takes_tokens


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ISSUER": ""}, "security.issuer: is missing beside security.jwks_url"),
        ({"AUDIENCE": ""}, "security.audience: is missing beside security.jwks_url"),
        ({"JWKS_URL": ""}, "security.issuer: is for tokens of a provider"),
        ({"JWKS_URL": "", "ISSUER": ""}, "security.audience: is for tokens of a provider"),
        ({"JWKS_URL": "http://login.test/keys"}, "security.jwks_url: must be https"),
        ({"JWKS_URL": "http://localhost.test/"}, "security.jwks_url: must be https"),
        ({"JWKS_URL": "file:///etc/keys"}, "security.jwks_url: must be a URL that begins with"),
        ({"JWKS_URL": "https:///keys"}, "security.jwks_url: names no host"),
        ({"JWKS_URL": "https://u:hidden@h/"}, "security.jwks_url: holds a user"),
        ({"SCOPE_CLAIM": "roles"}, "security.scopes: is missing beside security.scope_claim"),
        ({"SCOPE_CLAIM": ""}, "security.scope_claim: must not be empty"),
        ({"SCOPES": "bosses=root"}, "security.scopes.bosses: must be 'admin', 'operate'"),
        ({"SCOPES": "bosses"}, "security.scopes: must be a table of a claim's values"),
        ({"AUDIENCE": ",".join("a" * 21)}, "security.audience: has too many entries"),
    ],
)
def test_a_provider_that_could_not_be_trusted_is_refused(
    file: Path, changes: dict[str, str], expected: str
) -> None:
    changed = {f"TENANTRY_SECURITY_{name}": value for name, value in changes.items()}
    message = refusal(file, **(PROVIDED | changed))
    assert message.startswith(expected)
    assert "hidden" not in message


def test_the_broker_is_named_by_one_url_or_the_other(file: Path) -> None:
    assert read(file).broker_url.get_secret_value() == ""
    old = read(file, '[rabbitmq]\nurl = "amqp://old/"')
    assert old.broker_url.get_secret_value() == "amqp://old/"
    settings = read(file, BROKER_URL="iggy://u:hidden@h:8090")
    assert settings.broker_url.get_secret_value() == "iggy://u:hidden@h:8090"
    assert settings.management_url is None
    assert "hidden" not in repr(settings)
    both = {"BROKER_URL": "amqp://h/", "RABBITMQ_URL": "amqp://h/"}
    management = read(file, **both).management_url
    assert management is not None
    assert management.get_secret_value() == "http://guest:guest@h:15672"
    said = refusal(file, **both | {"BROKER_URL": "iggy://u:hidden@h"})
    assert "broker.url" in said
    assert "set one" in said
    assert "hidden" not in said


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("DATABASE_URL", "database.url"), ("RABBITMQ_URL", "rabbitmq.url"),
        ("RABBITMQ_MANAGEMENT_URL", "rabbitmq.management_url"), ("BROKER_URL", "broker.url"),
        ("TENANTRY_JWT_SECRET", "security.jwt_secret"),
    ],
)  # fmt: skip
def test_a_secret_may_stand_in_a_file_that_the_environment_names(
    file: Path, tmp_path: Path, variable: str, key: str
) -> None:
    scheme = {"DATABASE_URL": "postgresql", "RABBITMQ_MANAGEMENT_URL": "http"}.get(variable, "amqp")
    secret = f"{scheme}://user:{'s' * 32}@host:1"
    (tmp_path / "secret").write_text(secret + "\n")
    named = {f"{variable}_FILE": str(tmp_path / "secret")}
    settings = read(file, **named)
    section, name = key.split(".")
    value = getattr(getattr(settings, section), name)
    (value,) = value if isinstance(value, tuple) else [value]
    assert value.get_secret_value() == secret
    assert f"{variable}_FILE" in refusal(file, **named, **{variable: secret})
    said = refusal(file, **{f"{variable}_FILE": str(tmp_path / "nowhere")})
    assert f"{key}: {tmp_path}/nowhere can't be read: no such file" in said
    (tmp_path / "secret").write_bytes(b"\xff\xfe")
    assert "it is no text" in refusal(file, **named)


def test_headers_of_traces_are_a_secret_that_may_stand_in_a_file(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "tracing_headers").write_text("authorization=Bearer%20xyz, other=a=b\n")
    for environ in (
        {"TENANTRY_TRACING_HEADERS_FILE": str(tmp_path / "tracing_headers")},
        {"CREDENTIALS_DIRECTORY": str(tmp_path)},
    ):
        settings = read(file, **environ)
        assert settings.tracing.header_table == {"authorization": "Bearer xyz", "other": "a=b"}
        assert "xyz" not in repr(settings) + repr(settings.model_dump())


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("ENDPOINT", "http://user:hidden@c.test", "holds a user"),
        ("ENDPOINT", "localhost:4318", "must be a URL that begins with http:// or https://"),
        ("HEADERS", "hidden words=1", "must look like name=value"),
        ("HEADERS", "a=hidden%0D%0Ab: c", "holds a value that HTTP can't carry"),
        ("SAMPLE_RATIO", "1.5", "must be at most 1"),
        ("SERVICE_NAME", "", "must not be empty"),
        ("TIMEOUT_SECONDS", "0", "must be at least 0.1"),
    ],
)
def test_tracing_that_could_not_be_is_refused(
    file: Path, key: str, value: str, problem: str
) -> None:
    said = refusal(file, **{f"TENANTRY_TRACING_{key}": value})
    assert said.startswith(f"tracing.{key.lower()}: {problem}")
    assert "hidden" not in said


def test_urls_may_be_systemd_credentials_and_an_empty_one_is_none(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "rabbitmq_url").write_text("amqp://u:p@broker/\n")
    (tmp_path / "rabbitmq_management_url").write_text("http://m:1\n")
    (tmp_path / "database_url").write_text("")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    settings = read(file, '[rabbitmq]\nurl = "amqp://file/"', **environ)
    assert settings.rabbitmq.url.get_secret_value() == "amqp://u:p@broker/"
    assert settings.rabbitmq.management_url.get_secret_value() == "http://m:1"
    assert settings.database.url.get_secret_value() == ""
    settings = read(file, **environ, RABBITMQ_URL="amqp://variable/")
    assert settings.rabbitmq.url.get_secret_value() == "amqp://variable/"
    (tmp_path / "database_url").write_text("mysql://u:secret@h/d")
    said = refusal(file, **environ)
    assert "database.url" in said
    assert "credential database_url" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("amqp", "given", "derived"),
    [
        ("amqp://u:p@h", "", "http://u:p@h:15672"),
        ("amqps://u:p%40@h:5671/v", "", "https://u:p%40@h:15672"),
        ("amqp://[::1]:5673", "", "http://guest:guest@[::1]:15672"),
        ("amqp://u:p@h", "https://m:1/base/", "https://u:p@m:1/base"),
        ("amqp://u:p@h", "http://a:b@m:1", "http://a:b@m:1"),
        ("amqp://u:p@g:1,[::1]:2,h/v", "", "http://u:p@g:15672,[::1]:15672,h:15672"),
        ("amqp://u:p@g,h", "http://m:1,n:2", "http://u:p@m:1,n:2"),
    ],
)
def test_the_management_url_is_derived(file: Path, amqp: str, given: str, derived: str) -> None:
    url = read(file, RABBITMQ_URL=amqp, RABBITMQ_MANAGEMENT_URL=given).management_url
    assert url is not None
    assert url.get_secret_value() == derived


@pytest.mark.parametrize(
    "url", ["postgresql://u@[::1]:1,[::2]:2/d", "postgresql://u:p@g,[::1]/d?sslmode=disable"]
)
def test_a_database_may_be_at_several_addresses_in_brackets(file: Path, url: str) -> None:
    assert read(file, DATABASE_URL=url).database.url.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    ["amqp://u:p@h:1/v?x=a,b", "amqp://h", "amqp://u:p,q@[::1]:2/v", "postgresql:///d?host=/a,/b"],
)
def test_one_place_is_split_as_everybody_does(url: str) -> None:
    assert split(url) == urlsplit(url)


def test_secrets_are_in_no_repr_and_no_dump(file: Path) -> None:
    settings = read(
        file,
        RABBITMQ_URL="amqp://u:hunter2@h",
        RABBITMQ_MANAGEMENT_URL="http://u:hunter2@h",
        DATABASE_URL="postgresql://u:hunter2@h/d",
        TENANTRY_JWT_SECRET="hunter2" * 5,
    )
    shown = [repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json()]
    shown.append(repr(settings.management_url))
    assert not any("hunter2" in text for text in shown)
    assert settings.database.url.get_secret_value() == "postgresql://u:hunter2@h/d"


def test_settings_can_t_be_changed(file: Path) -> None:
    with pytest.raises(ValidationError):
        read(file).workers = 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wokers = 3", "wokers: unknown key; did you mean workers?"),
        ("[sever]\nport = 1", "sever: unknown key; did you mean server?"),
        ("[server]\nprot = 1", "server.prot: unknown key; did you mean server.port?"),
        ("server = 1", "server: must be a table"),
        ("workers = '3'", "workers: must be a whole number"),
        ("workers = true", "workers: must be a whole number"),
        ("workers = 0", "workers: must be at least 1, not 0"),
        ("workers = 65", "workers: must be at most 64, not 65"),
        ("database = {pool_size = 1}", "database.pool_size: must be at least 2"),
        ("server = {port = 65536}", "server.port: must be at most 65535"),
        ("metrics = {port = 'x'}", "metrics.port: must be a whole number"),
        ("state_dir = 3", "state_dir: must be a path"),
        ("queue = {type = 'lazy'}", "queue.type: must be 'quorum' or 'classic'"),
        ("retry = {backoff_seconds = []}", "retry.backoff_seconds: must not be empty"),
        ("retry = {backoff_seconds = [1, 'x']}", "retry.backoff_seconds: must be a number"),
        ("shutdown = {deadline_seconds = inf}", "shutdown.deadline_seconds: must be a finite"),
        ("consumer = {prefetch = 70000}", "consumer.prefetch: must be at most 65535"),
        ("rabbitmq = {url = 'http://h'}", "rabbitmq.url: must be a URL that begins with amqp://"),
        ("rabbitmq = {url = 'amqp:///v'}", "rabbitmq.url: names no host"),
        ("rabbitmq = {url = 'amqp://h:99999'}", "rabbitmq.url: is no URL"),
        ("rabbitmq = {url = 'amqp://g:5672,h:0'}", "rabbitmq.url: port 0 is no port"),
        ("rabbitmq = {url = 'amqp://g:5672,h:x'}", "rabbitmq.url: is no URL"),
        ("rabbitmq = {url = 'amqp://g,,h'}", "rabbitmq.url: names no host"),
        ("broker = {url = 'iggy://g:1,h:2'}", "broker.url: is no URL"),
        ("broker = {url = 'http://h'}", "broker.url: must be a URL that begins with amqp://"),
        ("broker = {url = 'iggy:///v'}", "broker.url: names no host"),
        ("database = {url = 'mysql://h'}", "database.url: must be a URL that begins with postgres"),
        ("security = {jwt_secret = 'short'}", "security.jwt_secret: must be at least 32 bytes"),
        (
            f"security = {{jwt_secret = ['{SECRET}', '']}}",
            "security.jwt_secret: secret 2 of 2: must be at least 32 bytes, not 0",
        ),
        (
            f"security = {{jwt_secret = {[SECRET] * 11}}}",
            "security.jwt_secret: has too many entries",
        ),
        ("security = {jwt_secret = 7}", "security.jwt_secret: must be text, or a list of texts"),
        ("security = {jwt_secret = [7]}", "security.jwt_secret: must be text"),
    ],
)
def test_a_bad_file_is_refused_by_key_and_file(file: Path, text: str, expected: str) -> None:
    message = refusal(file, text)
    assert expected in message
    assert str(file) in message


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TENANTRY_WORKERS", "many"),
        ("TENANTRY_WORKERS", ""),
        ("TENANTRY_SERVER_PORT", "1.5"),
        ("TENANTRY_RETRY_BACKOFF_SECONDS", "1;2"),
        ("TENANTRY_RETRY_BACKOFF_SECONDS", "[1"),
        ("TENANTRY_LOG_LEVEL", "loud"),
        ("RABBITMQ_URL", "localhost:5672"),
        ("RABBITMQ_URL", "amqp://u:p@h\n"),
        ("DATABASE_URL", "dbname=x"),
    ],
)
def test_a_bad_variable_is_refused_by_its_name(file: Path, variable: str, value: str) -> None:
    assert f"environment variable {variable}" in refusal(file, **{variable: value})


def test_a_refusal_does_not_repeat_a_secret(file: Path) -> None:
    assert "hunter2" not in refusal(file, TENANTRY_JWT_SECRET="hunter2")
    assert "hunter2" not in refusal(file, RABBITMQ_URL="http://u:hunter2@h")


def test_what_is_no_toml_is_refused(file: Path) -> None:
    assert "is not valid TOML" in refusal(file, "workers = ")
    file.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="is not valid TOML"):
        load(file, environ={})


def test_without_a_secret_only_loopback_is_served(file: Path) -> None:
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"):
        assert read(file, TENANTRY_SERVER_HOST=host).server.host == host
    assert "TENANTRY_SERVER_HOST" in refusal(file, TENANTRY_SERVER_HOST="0.0.0.0")
    assert "jwt_secret" in refusal(file, '[server]\nhost = "example.org"')
    settings = read(file, TENANTRY_SERVER_HOST="::", TENANTRY_JWT_SECRET=SECRET)
    assert settings.server.host == "::"


def test_a_client_needs_no_secret_to_find_the_daemon(file: Path) -> None:
    assert read(file, client=True, TENANTRY_SERVER_HOST="0.0.0.0").control_socket


def test_a_socket_path_too_long_for_the_system_is_refused(file: Path) -> None:
    assert read(file, TENANTRY_CONTROL_SOCKET="/" + "x" * 106)
    message = refusal(file, TENANTRY_CONTROL_SOCKET="/" + "x" * 107)
    assert message.startswith("control.socket: ")
    assert "107" in message


def test_a_state_directory_may_have_a_path_of_any_length(file: Path) -> None:
    directory = "/" + "/".join(["é" * 100] * 10)
    assert read(file, TENANTRY_STATE_DIR=directory).control_socket == Path(
        directory, "control.sock"
    )


@pytest.mark.parametrize(
    ("key", "variable"),
    [
        ("state_dir", "TENANTRY_STATE_DIR"),
        ("control.socket", "TENANTRY_CONTROL_SOCKET"),
        ("server.tls_cert", "TENANTRY_SERVER_TLS_CERT"),
    ],
)
@pytest.mark.parametrize("wrong", ["\n", "\0", "\x7f", "\udcff"])
def test_a_path_that_no_line_and_no_url_can_name_is_refused(
    file: Path, key: str, variable: str, wrong: str
) -> None:
    assert refusal(file, **{variable: f"/tmp/a{wrong}b"}).startswith(f"{key}: ")
