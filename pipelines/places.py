"""Where stores and shards lie: a local path, or a place in a bucket. Both answer to the same few names.

A local place is a `pathlib.Path` and stays one, so that nothing stands between it and the disk. A place in a bucket is
an `ObjectPlace`, which has the methods of a path that are used here, under their names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from substyle.kernels.errors import ConfigError
from substyle.pipelines.objects import ObjectPlace, each

Place: TypeAlias = Path | ObjectPlace
T = TypeVar("T")

BUCKETS = ("s3", "gs", "az")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
ALLOWED = "a local path, s3://bucket/name, gs://bucket/name, az://container/name or file:///path"


def is_remote(text: object) -> bool:
    """Whether a text is an address in a bucket, or begins like one; `place` says whether it is a good one."""
    match = _SCHEME.match(str(text))
    return match is not None and match[1].lower() != "file"


def place(text: str | Place, field: str = "place") -> Place:
    """The place that a text names.

    Args:
        field: what the text is the value of, for messages.

    Raises:
        ConfigError: another scheme; an address without a bucket; one that carries a user, a password or a query, of
            which the message tells nothing further: they may be secret.
        SubstyleError: an address in a bucket, and the extra ``object-stores`` is not installed.
    """
    if not isinstance(text, str):
        return text
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(text)
    kind = scheme[1].lower()
    if kind == "file":
        return Path(_file_path(text, field))
    bucket, _, key = text[scheme.end() :].partition("/")
    if kind not in BUCKETS:
        raise ConfigError(field, f"{scheme[1]}://…", ALLOWED)
    # none of these is a character of a bucket's name, and what stands before @ or behind ? may be a secret
    if "@" in bucket or ":" in bucket:
        raise ConfigError(field, f"{kind}://…@…", f"{ALLOWED}; users and passwords come from the environment alone")
    if "?" in text or "#" in text:
        raise ConfigError(field, f"{kind}://{bucket.split('?')[0].split('#')[0]}/…?…", f"{ALLOWED}, without a query")
    if _BUCKET.fullmatch(bucket) is None:
        raise ConfigError(field, text, ALLOWED)
    key = key.rstrip("/")
    parts = key.split("/") if key else []
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise ConfigError(field, text, f"{ALLOWED}, without empty parts and without . and ..")
    return ObjectPlace.open(kind, bucket, key)


def photographs(text: str | Path, field: str = "images") -> str | Path:
    """A path of photographs, or their address in a bucket as it is; a pattern may be either.

    Raises:
        ConfigError: as `place` says.
    """
    if not is_remote(text):
        there = place(str(text), field)
        assert isinstance(there, Path)
        return there
    place(str(text), field)
    return str(text)


def below(folder: Path, text: str | Path, field: str) -> str | Path:
    """The same for a path that a file in some folder gives: it is relative to that folder."""
    there = photographs(text, field)
    return folder / there if isinstance(there, Path) else there


def matching(folder: Place, pattern: str) -> list[Place]:
    """What lies there under names that fit a pattern, sorted."""
    found: Iterable[Place] = folder.glob(pattern)
    return sorted(found, key=str)


def at_once(work: Callable[[Place], T], places: Iterable[Place]) -> list[T]:
    """Do the same for several places: at once for those in a bucket, where one waits for answers, else in turn."""
    all_places = list(places)
    if any(isinstance(there, ObjectPlace) for there in all_places):
        return list(each(work, all_places))
    return [work(there) for there in all_places]


def relative(inner: Place, outer: Place) -> PurePath:
    """The parts of a place that come after those of another in which it lies."""
    if isinstance(inner, ObjectPlace) and isinstance(outer, ObjectPlace):
        return inner.relative_to(outer)
    if isinstance(inner, Path) and isinstance(outer, Path):
        return inner.relative_to(outer)
    raise ValueError(f"{inner} does not lie in {outer}")


def _file_path(text: str, field: str) -> str:
    address = urlsplit(text)
    if address.netloc not in ("", "localhost") or address.query or address.fragment or not address.path:
        raise ConfigError(field, "file://…", "file:///path, without a host, a user or a query")
    return unquote(address.path)
