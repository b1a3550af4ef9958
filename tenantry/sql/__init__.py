"""The SQL: numbered migrations, and queries kept in files under the names they are called by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final

_NAME: Final = re.compile(r"^--\s*name:\s*(\w+)\s*$", re.MULTILINE)
_COMMENT: Final = re.compile(r"^\s*--.*$\n?", re.MULTILINE)


@cache
def queries(file: str) -> Mapping[str, bytes]:
    """Read `file`.sql: each query stands under a line `-- name: its_name`.

    Comments are for those who read the file; they are not sent. Parameters are psycopg's
    (`%(name)s`). Raises `FileNotFoundError`, and `ValueError` for a name used twice.
    """
    text = resources.files(__name__).joinpath(f"{file}.sql").read_text("utf-8")
    parts = _NAME.split(text)
    found: dict[str, bytes] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name in found:
            raise ValueError(f"{file}.sql has two queries named {name!r}")
        found[name] = _COMMENT.sub("", body).strip().rstrip(";").encode()
    return MappingProxyType(found)
