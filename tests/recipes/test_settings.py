"""A setting: it stands in config.toml with its default and its environment variable."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tenantry.settings import ENVIRONMENT, Settings

SHIPPED = Path(__file__).parents[2] / "config.toml"


def test_the_shipped_file_lists_exactly_the_known_keys() -> None:
    tree = tomllib.loads(SHIPPED.read_text())
    listed = {
        f"{section}.{key}" if isinstance(keys, dict) and keys else section
        for section, keys in tree.items()
        for key in (keys if isinstance(keys, dict) and keys else [""])
    }
    assert listed == set(ENVIRONMENT)


def test_the_shipped_file_names_every_environment_variable_beside_its_key() -> None:
    text = SHIPPED.read_text()
    for variable, _ in ENVIRONMENT.values():
        assert len(re.findall(rf"\b{variable}\b", text)) == 1


def test_every_key_of_the_model_has_an_environment_variable() -> None:
    keys = set()
    for name, field in Settings.model_fields.items():
        section = getattr(field.annotation, "model_fields", None)
        keys |= {f"{name}.{key}" for key in section} if section else {name}
    assert keys == set(ENVIRONMENT)
