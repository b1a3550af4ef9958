"""Which node a tenant is placed on: the node with the highest weighted score for it.

Weighted rendezvous hashing (Thaler and Ravishankar, 1998; with weights as by Schindelhauer and
Schomaker, 2005): each pair of tenant and node has a number between 0 and 1 of its own, and the
score is weight / -ln(number). A new node takes its share from all others, a leaving node's tenants
spread over all others, and nothing else moves.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Final

_BITS: Final = 53
"""The precision of a float."""


def score(tenant_id: str, node: str, weight: float) -> float:
    """Give a node's score for a tenant, above 0."""
    digest = hashlib.blake2b(f"{node}/{tenant_id}".encode(), digest_size=8).digest()
    # Never 0 and never 1.
    share = ((int.from_bytes(digest, "big") >> (64 - _BITS)) + 0.5) / (1 << _BITS)
    return weight / -math.log(share)


def place(tenant_id: str, weights: Mapping[str, float], wanted: str | None = None) -> str | None:
    """Choose a tenant's node among those with a weight; None where there are none.

    A `wanted` node is chosen as long as it is among them.
    """
    if wanted in weights:
        return wanted
    scores = {node: score(tenant_id, node, weight) for node, weight in weights.items()}
    return max(scores, key=lambda node: (scores[node], node), default=None)
