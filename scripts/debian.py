"""What the Debian package holds that is made from other files: configuration, units, copyright.

Called by debian/rules, with the Python of the package, as `python -m scripts.debian DIRECTORY`.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
CONTROL_SOCKET: Final = "/run/tenantry/control.sock"
ROOM: Final = "usr/lib/tenantry"
"""Where the package keeps its virtual environment, from the root."""

COMMON_LICENSES: Final = (
    ("Apache License\n", "Version 2.0", "Apache-2.0"),
    ("GNU LESSER GENERAL PUBLIC LICENSE\n", "Version 3", "LGPL-3"),
    ("Mozilla Public License", "ersion 2.0", "MPL-2.0"),
)
"""The first words of licenses of which every Debian has a copy, and the name of that."""


def configuration(text: str) -> str:
    """Give config.toml as the package installs it: commands find the daemon that systemd runs."""
    return _replaced(
        text,
        r'(\n\[control\]\n(?:#[^\n]*\n)*)socket = ""\n',
        rf'\1socket = "{CONTROL_SOCKET}"\n',
    )


def unit(text: str) -> str:
    """Give a unit of systemd/ as the package installs it."""
    text = _replaced(text, r"ExecStart=/usr/local/bin/", "ExecStart=/usr/bin/")
    text = _replaced(text, r"\n(Description=[^\n]*)\n", r"\n\1\nDocumentation=man:tenantry(1)\n")
    return _replaced(text, r"README\.md beside this file", "/usr/share/doc/tenantry/docs/debian.md")


def _replaced(text: str, pattern: str, replacement: str) -> str:
    replaced, times = re.subn(pattern, replacement, text)
    if times != 1:
        raise SystemExit(f"{pattern!r} is there {times} times: scripts/debian.py is out of date")
    return replaced


def stanzas(bundled: Iterable[Distribution]) -> Iterator[str]:
    """Give a paragraph of debian/copyright for each Python package that is not our own."""
    for one in sorted(bundled, key=lambda each: each.name.lower()):
        if one.name != "tenantry":
            yield _stanza(one)


def _stanza(one: Distribution) -> str:
    about = one.metadata
    said = about.get("License-Expression") or _short(about.get("License")) or "as below"
    authors = about.get("Author") or about.get("Author-email") or f"the authors of {one.name}"
    text = "\n\n".join(_licenses(one)) or f"The package names its license: {said}."
    files = [f"{ROOM}/lib/python3*/site-packages/{top}" for top in _tops(one)]
    return "\n".join(
        [
            "Files: " + "\n ".join(files),
            f"Copyright: {' '.join(authors.split())}",
            f"License: {one.name}-{one.version}",
            f" License of {one.name} {one.version}: {said}.",
            " .",
            _folded(text),
        ]
    )


def _tops(one: Distribution) -> list[str]:
    """Give what a package has put into site-packages, its directories with all that is in them."""
    found = set()
    for file in one.files or ():
        top, *below = file.parts
        if top != "..":
            found.add(f"{top}/*" if below else top)
    return sorted(found)


def _short(text: str | None) -> str:
    """Give the name of a license; some put its whole text there."""
    return text if text and "\n" not in text else ""


def _licenses(one: Distribution) -> Iterator[str]:
    for file in one.files or ():
        if ".dist-info/" in str(file) and re.search(r"(?i)licen[cs]e|copying|notice", file.name):
            text = file.read_text().strip("\n")
            name = common(text)
            where = f"/usr/share/common-licenses/{name}"
            yield f"{file.name}: the text is in {where}." if name else f"{file.name}:\n\n{text}"


def common(text: str) -> str | None:
    """Give the name under which Debian has a license's text, or None where it has not."""
    for title, version, name in COMMON_LICENSES:
        if title in text[:200] and version in text[:400]:
            return name
    return None


def _folded(text: str) -> str:
    lines = textwrap.dedent(text.expandtabs()).splitlines()
    return "\n".join(f" {line.rstrip()}" if line.strip() else " ." for line in lines)


def write(directory: Path, bundled: Iterable[Distribution]) -> None:
    """Write all of it into a directory, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text(configuration((ROOT / "config.toml").read_text()))
    for name in ("tenantry.service", "tenantry@.service"):
        (directory / name).write_text(unit((ROOT / "systemd" / name).read_text()))
    ours = (ROOT / "debian" / "copyright").read_text()
    (directory / "copyright").write_text("\n\n".join([ours.rstrip(), *stanzas(bundled)]) + "\n")


if __name__ == "__main__":
    site = [path for path in sys.path if path.endswith("site-packages")]
    write(Path(sys.argv[1]), distributions(path=site))
