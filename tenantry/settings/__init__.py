"""The configuration: `config.toml`, the environment and flags as one frozen, validated object.

Environment wins over the file, a flag wins over both. Nothing is ignored silently: an unknown key,
a wrong type or a value out of range is a `SettingsError` that names the key and its source.
"""

from tenantry.settings.load import ENVIRONMENT, SettingsError, load, source
from tenantry.settings.model import Settings

__all__ = ["ENVIRONMENT", "Settings", "SettingsError", "load", "source"]
