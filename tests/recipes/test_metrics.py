"""A metric: it stands in docs/metrics.md with type, labels and meaning, and nothing else does."""

from __future__ import annotations

import re
from pathlib import Path

from tenantry.metrics.collector import FAMILIES

ROOT = Path(__file__).parents[2]


def test_what_is_measured_is_documented_with_its_type_and_labels_and_the_reverse() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+)[^|]*\|([^|]*)\| \S.* \|$",
        (ROOT / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    documented = {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in rows}
    assert len(rows) == len(documented)
    assert documented == {
        f"{name}_total" if one.type == "counter" else name: (one.type, list(one.labels))
        for name, one in FAMILIES.items()
    }
