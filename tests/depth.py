"""How deep a run goes: enough for every change, or `HYPOTHESIS_PROFILE=thorough`.

The same laws are tried either way, with fewer or more examples of each.
"""

from __future__ import annotations

import os
from typing import TypeVar

from hypothesis import HealthCheck, settings

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


N = TypeVar("N")


def examples(usual: N, thorough: N) -> N:
    """Choose how many examples are tried, how many steps, or which."""
    return thorough if THOROUGH else usual


def load() -> None:
    """Set what holds for every law that says nothing else."""
    # How long a machine takes says nothing about what is tested.
    settings.register_profile(
        "tenantry",
        max_examples=examples(25, 300),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("tenantry")
