"""Names that were perhaps meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def such_as(name: str, known: Iterable[str], cutoff: float) -> str:
    """The end of a sentence on what is allowed: known names that are like this one, else how to find them.

    Args:
        cutoff: how like, from 0 to 1, as in `difflib.get_close_matches`.
    """
    near = get_close_matches(name, list(known), n=5, cutoff=cutoff)
    return f", such as {', '.join(near)}" if near else "; substyle backbones --search finds them by a part of a name"
