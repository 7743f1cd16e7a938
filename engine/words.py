"""Words of earlier versions, in files that are still read."""

from __future__ import annotations

from typing import Final

TASKS: Final = {"fine": "transformation", "coarse": "kind", "semantic": "class"}
PHOTOGRAPHS: Final = {"clean": "original", "obfuscated": "transformed"}
_OTHERS: Final = {
    **{f"{before}{old}": f"{before}{new}" for old, new in TASKS.items() for before in ("equal_", "twin-")},
    **{f"coarse_{end}": f"kind_{end}" for end in ("rotation", "redrawn")},
}


def of_today(name: str) -> str:
    """A name with words between slashes, such as ``fine/linear``, in the words of today."""
    every = TASKS | PHOTOGRAPHS | _OTHERS
    return "/".join(every.get(word, word) for word in name.split("/"))
