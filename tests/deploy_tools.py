"""What holds the files in deploy/, where this machine has it: promtool, hadolint, schemas."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

PLACES = (
    Path(sys.executable).parent,
    Path(__file__).parents[1] / ".venv" / "prometheus" / "usr" / "bin",
)
"""Where `make deploy-tools` puts them."""


def found(tool: str) -> str:
    """Give a tool's path; the test is skipped where there is none."""
    path = shutil.which(tool, path=os.pathsep.join([*map(str, PLACES), os.environ.get("PATH", "")]))
    if path is None:
        pytest.skip(f"{tool} is not there: `make deploy-tools` fetches it")
    return path
