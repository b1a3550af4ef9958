"""What the program brings along: a bill of materials, and what is known to be wrong with any of it.

`python -m scripts.bill sbom FILE` writes a CycloneDX document of the packages that `pip install
tenantry` brings with all of its extras for users, in the versions that are installed here.
`python -m scripts.bill audit` asks PyPI for their known vulnerabilities: exit 1 where there is one;
what keeps it from being asked is said in a line, and fails nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[1]
PROGRAM: Final = "tenantry"
EXTRAS: Final = ("iggy", "jwks", "tracing")
"""Those of users; the others are for who develops it."""

TIMEOUT: Final = 5
"""Seconds that the service has for each answer."""

LONGEST: Final = 120


def brought(name: str, extras: Iterable[str] = ()) -> dict[str, str]:
    """Give the names and versions of a distribution and of all that it requires here."""
    found: dict[str, str] = {}
    todo = [(name, frozenset(extras))]
    seen = set()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        known = distribution(one[0])
        found[canonicalize_name(one[0])] = known.version
        for text in known.requires or ():
            wanted = Requirement(text)
            if any(_applies(wanted, extra) for extra in ("", *one[1])):
                todo.append((wanted.name, frozenset(wanted.extras)))
    return found


def _applies(wanted: Requirement, extra: str) -> bool:
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})


def write(file: Path) -> int:
    """Write the bill of materials; give how many packages are on it, beside the program itself."""
    names = brought(PROGRAM, EXTRAS).keys() - {PROGRAM}
    said = subprocess.run(  # noqa: S603
        [
            *(sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"),
            *("--no-validate", "--pyproject", str(ROOT / "pyproject.toml"), sys.prefix),
        ],
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=True,
    )
    bill: dict[str, Any] = json.loads(said.stdout)
    parts = [one for one in bill["components"] if canonicalize_name(one["name"]) in names]
    refs = {one["bom-ref"] for one in parts} | {bill["metadata"]["component"]["bom-ref"]}
    bill["components"] = parts
    bill["dependencies"] = [
        {**one, "dependsOn": [ref for ref in one.get("dependsOn", ()) if ref in refs]}
        for one in bill["dependencies"]
        if one["ref"] in refs
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")
    return len(parts)


def audit() -> int:
    """Ask for known vulnerabilities, print them, and give the exit status."""
    wanted = brought(PROGRAM, EXTRAS)
    del wanted[PROGRAM]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{name}=={version}\n" for name, version in sorted(wanted.items()))
        file.flush()
        code, out, errors = _asked(file.name)
    try:
        packages = json.loads(out)["dependencies"]
    except ValueError:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1][:200]
        why = f"PyPI does not answer within {LONGEST} s" if code is None else last
        print(f"pip-audit: nothing was audited: {why}")
        return 0
    lines, status = judged(packages)
    print("\n".join(lines))
    return status


def judged(packages: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Give what is to be said of the packages in pip-audit's answer, and the exit status."""
    known = [one for one in packages if "skip_reason" not in one]
    if not known:
        return ["pip-audit: nothing was audited: the index that was asked knows no packages"], 0
    unknown = sorted(one["name"] for one in packages if "skip_reason" in one)
    lines = [f"pip-audit: PyPI does not know {', '.join(unknown)}"] if unknown else []
    bad = list(_told(known))
    lines += bad or [f"pip-audit: {len(known)} packages, no known vulnerability"]
    return lines, 1 if bad else 0


def _asked(requirements: str) -> tuple[int | None, str, str]:
    """Run pip-audit; give its exit status, None where it took too long, and what it said."""
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", requirements, "--no-deps"),
        *("--disable-pip", "--format", "json", "--progress-spinner", "off"),
        *("--timeout", str(TIMEOUT)),
    ]
    try:
        said = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=LONGEST, check=False
        )
    except subprocess.TimeoutExpired:
        return None, "", ""
    return said.returncode, said.stdout, said.stderr


def _told(packages: list[dict[str, Any]]) -> Iterator[str]:
    for one in packages:
        for known in one.get("vulns", ()):
            mended = ", ".join(known["fix_versions"]) or "no version"
            yield f"{one['name']} {one['version']}: {known['id']}, mended in {mended}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["sbom", place]:
            print(f"{place}: {write(Path(place))} packages")
        case ["audit"]:
            sys.exit(audit())
        case _:
            sys.exit(__doc__)
