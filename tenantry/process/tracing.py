"""What the settings say of tracing, for each process that a service has."""

from __future__ import annotations

from typing import Final

from tenantry.broker import select
from tenantry.settings import Settings, SettingsError
from tenantry.tracing import Export, is_installed

PATH: Final = "/v1/traces"
"""Where a collector takes spans, by OTLP over HTTP."""


def export_of(settings: Settings) -> Export | None:
    """Say where spans go; None: nowhere.

    Raises `SettingsError` where what exports them is not installed.
    """
    given = settings.tracing
    if not given.endpoint:
        return None
    if not is_installed():
        raise SettingsError(
            "tracing.endpoint: what exports traces is not installed: "
            "pip install 'tenantry[tracing]'"
        )
    return Export(
        endpoint=given.endpoint.removesuffix(PATH) + PATH,
        service_name=given.service_name,
        system=select.system(settings),
        sample_ratio=given.sample_ratio,
        timeout=given.timeout_seconds,
        headers=given.header_table,
    )
