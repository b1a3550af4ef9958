"""Hooks of mkdocs: pages that stand beside docs/, and links between files as links between pages.

In the repository a link leads to a file, as people read it there; on the site to its page. What
the site does not have is named, and not linked.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).parents[1]

BESIDE: Final = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "systemd/README.md": "systemd.md",
    "deploy/README.md": "deploy.md",
    "examples/nginx/README.md": "nginx.md",
    "config.toml": "configuration.md",
}
"""Files outside of docs/, and the pages that they are."""

ORIGINS: Final = {page: file for file, page in BESIDE.items()}

LOG: Final = logging.getLogger("mkdocs.hooks.site")

_LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FOR_TESTS: Final = re.compile(r"^<!-- manual: .*?-->\n+", re.MULTILINE | re.DOTALL)
"""What a page says to those who run its commands (tests/manual)."""

_FENCE: Final = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand beside docs/."""
    for origin, page in BESIDE.items():
        text = (ROOT / origin).read_text(encoding="utf-8")
        if origin.endswith(".toml"):
            text = f"# Configuration\n\nThe file as it is shipped:\n\n```toml\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001
    """Lead links from page to page; what stands in a block of code is none."""
    own = page.file.src_uri
    origin = ORIGINS.get(own, f"docs/{own}")

    def led(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        wanted = _page_of(file, files)
        if wanted is None:
            if not (ROOT / file).exists():
                LOG.warning("%s leads to %s, which is not there", origin, target)
            return text
        there = posixpath.relpath(wanted, posixpath.dirname(own) or ".")
        return f"{picture}[{text}]({there}{'#' + anchor if anchor else ''})"

    parts = _FENCE.split(_FOR_TESTS.sub("", markdown))
    return "".join(part if part.startswith("```") else _LINK.sub(led, part) for part in parts)


def _page_of(file: str, files: Files) -> str | None:
    """Give the page, or other file of the site, that a file of the repository is."""
    page = BESIDE.get(file) or file.removeprefix("docs/")
    if (ROOT / file).is_dir():
        page = f"{page}/README.md"
    return page if files.get_file_from_path(page) is not None else None
