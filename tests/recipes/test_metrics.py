"""A metric: it stands in docs/metrics.md with type, labels and meaning, and nothing else does."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_is_measured_is_documented_and_the_reverse() -> None:
    code = "".join(one.read_text() for one in (ROOT / "tenantry" / "metrics").glob("*.py"))
    names = re.findall(r'"((?:tenantry|tenant|queue|messages)_[a-z_]+)"', code)
    made = set(names) - {"tenant_id"}
    rows = re.findall(
        r"^\| `(\w+)` \|[^|]+\|[^|]*\| \S.* \|$",
        (ROOT / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) == len(set(rows))
    assert {one.removesuffix("_total") for one in rows} == made
