"""Which objects of a bucket a user means by an address, a prefix, or a pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from substyle.kernels.errors import ConfigError
from substyle.pipelines.objects import ObjectPlace, each
from substyle.pipelines.places import place
from substyle.pipelines.sources.text import shown

_SPECIAL = "{*?["


def expand(root: str, extensions: Sequence[str], parts: Sequence[str]) -> list[tuple[str, str]]:
    """(name, address) of the objects that an address stands for; see `patterns.shards`, whose rules hold here too.

    Args:
        parts: what the braces of the address stand for, each an address without braces.

    Raises:
        ConfigError: nothing is there, or an object that a pattern names is not.
        ObjectError: the bucket cannot be asked.
    """
    if not any(mark in root for mark in _SPECIAL):
        there = _place(root)
        if there.is_file():
            return [(there.name, str(there))]
        return sorted((str(p.relative_to(there)), str(p)) for p in _below(there, extensions))
    base = _place(root[: min(root.index(mark) for mark in _SPECIAL if mark in root)].rpartition("/")[0])
    literal = [_place(part) for part in parts if not any(mark in part for mark in "*?[")]
    there_too = each(ObjectPlace.is_file, literal)
    missing = [str(p.relative_to(base)) for p, is_there in zip(literal, there_too, strict=True) if not is_there]
    if missing:
        some = ", ".join(shown(name) for name in missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ConfigError("images", root, f"objects that are there; {len(missing)} are not: {some}")
    found = {str(p.relative_to(base)): str(p) for p in literal}
    magic = [part for part in parts if any(mark in part for mark in "*?[")]
    if magic:
        patterns = [_place(part).relative_to(base).parts for part in magic]
        for p in _below(base, extensions):
            name = str(p.relative_to(base))
            if any(_fits(name.split("/"), pattern) for pattern in patterns):
                found[name] = str(p)
    return sorted(found.items())


def _place(text: str) -> ObjectPlace:
    there = place(text, "images")
    assert isinstance(there, ObjectPlace)
    return there


def _below(there: ObjectPlace, extensions: Sequence[str]) -> list[ObjectPlace]:
    return [p for p, _ in there.walk() if p.name.lower().endswith(tuple(extensions))]


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a name fit those of a pattern, of which ``**`` stands for any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_fits(names[i:], pattern[1:]) for i in range(len(names)))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])
