"""Random UUIDs by the hundred.

`uuid.uuid4` asks the system each time, and lets go of the interpreter for it: among busy threads
every one of them waits for its turn again. Here many cost one question.
"""

from __future__ import annotations

import os
from uuid import UUID

_BYTES = 16


def random_uuids(count: int) -> list[str]:
    """Make `count` random UUIDs (version 4), written as text."""
    noise = os.urandom(_BYTES * count)
    return [
        str(UUID(bytes=noise[start : start + _BYTES], version=4))
        for start in range(0, len(noise), _BYTES)
    ]
