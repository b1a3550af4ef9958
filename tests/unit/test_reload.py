"""What of the configuration takes effect while the daemon runs."""

from __future__ import annotations

from tenantry.process.reload import LiveSettings
from tenantry.settings import Settings, SettingsError

OLD, NEW = "o" * 32, "n" * 32


def settings(*secrets: str, **more: object) -> Settings:
    return Settings.model_validate({"security": {"jwt_secret": list(secrets)}, **more})


def test_secrets_of_tokens_are_taken_on_a_reload_and_told_to_who_uses_them() -> None:
    given = [settings(NEW, OLD, processes=7)]
    live = LiveSettings(settings(OLD), given.pop)
    told: list[tuple[str, ...]] = []
    live.tell(lambda now: told.append(now.security.secrets))
    live.reload()
    assert told == [(NEW, OLD)]
    assert live.now.security.secrets == (NEW, OLD)
    assert live.now.processes == 1


def test_a_configuration_that_can_not_be_used_leaves_the_secrets_as_they_are() -> None:
    def load() -> Settings:
        raise SettingsError("security.jwt_secret: must be at least 32 bytes, not 5")

    live = LiveSettings(settings(OLD), load)
    live.tell(lambda _: told.append(1))
    told: list[int] = []
    live.reload()
    assert (told, live.now.security.secrets) == ([], (OLD,))
