"""Whether what was printed is what a page shows, but for what is another each time."""

from __future__ import annotations

import re
from typing import Final

_VARIES: Final = tuple(
    (re.compile(pattern), word)
    for pattern, word in (
        (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?", "TIME"),
        (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "ID"),
        (r"(?<=://)[^:@/\s\"]+:[^@\s\"]+@", "USER:PASSWORD@"),
        (r"(\b127\.0\.0\.1|\blocalhost):\d+", r"\1:PORT"),
        (r"\b([pu]id)(\W+)\d+", r"\1\g<2>NUMBER"),
        (r"/worker-\d+\b", "/worker-NUMBER"),
        (r"\b\d+(\.\d+)? ?(ms|s)\b", "DURATION"),
        (r"\b\d[\d,]*\.\d+\b", "DECIMAL"),
        (r"[A-Za-z0-9_=-]{30,}(\.[A-Za-z0-9_=-]+)*", "SECRET"),
        (r"-{3,}", "---"),
        (r"[ \t]+", " "),
        (r" ?\n", "\n"),
    )
)
"""What is another each time, and what stands for it; last, widths of columns follow from these."""


def general(text: str) -> str:
    """Put words in the place of what is another each time."""
    for pattern, word in _VARIES:
        text = pattern.sub(word, text)
    return text.strip("\n")


def agrees(shown: str, printed: str) -> bool:
    """Say whether a page may show this for what was printed; a line `...` is any lines, or none."""
    parts = [
        "".join(f"{re.escape(line)}\n" for line in part.splitlines())
        for part in re.split(r"^\.\.\.$\n?", general(shown) + "\n", flags=re.MULTILINE)
    ]
    return re.fullmatch(r"(?:.*\n)*?".join(parts), general(printed) + "\n") is not None


def difference(shown: str, printed: str) -> str:
    return f"--- shown\n{shown.rstrip()}\n--- printed\n{printed.rstrip()}\n"
