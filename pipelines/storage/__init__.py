"""Storage locations: `Place`, on a disk (`LocalPlace`) or in a bucket (`ObjectPlace`), and how users name them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from substyle.errors import ConfigError
from substyle.pipelines.storage.bucket import ObjectError, ObjectPlace
from substyle.pipelines.storage.interface import REQUESTS, OpenFile, Place, Version, at_once, each
from substyle.pipelines.storage.local import LocalPlace

__all__ = [
    "ALLOWED",
    "BUCKETS",
    "REQUESTS",
    "LocalPlace",
    "ObjectError",
    "ObjectPlace",
    "OpenFile",
    "Place",
    "Version",
    "at_once",
    "below",
    "each",
    "is_address",
    "is_remote",
    "object_place",
    "photographs",
    "place",
]

BUCKETS = ("s3", "gs", "az")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ALMOST = re.compile(rf"({'|'.join(BUCKETS)}|file):", re.IGNORECASE)  # mistyped: s3:/bucket, s3:bucket
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
ALLOWED = "a local path, s3://bucket/name, gs://bucket/name, az://container/name, file:///path"


def is_remote(text: object) -> bool:
    """Whether a text has a URL scheme other than ``file``. `place` validates it."""
    match = _SCHEME.match(str(text))
    return match is not None and match[1].lower() != "file"


def is_address(text: object) -> bool:
    """Whether a text is an address, or almost one, such as ``s3:/bucket``."""
    return bool(_SCHEME.match(str(text)) or _ALMOST.match(str(text)))


def place(text: str | Path | Place, field: str = "place") -> Place:
    """Return the place of a path or URL.

    Args:
        text: a local path, or a ``file``, ``s3``, ``gs`` or ``az`` URL; a place is returned as it is.
        field: field name for error messages.

    Raises:
        ConfigError: unknown scheme, no bucket, or a user, password or query, which are left out of the message: they
            may be secret.
        SubstyleError: a bucket, and the extra ``object-stores`` is not installed.
    """
    if isinstance(text, Path):
        return text if isinstance(text, LocalPlace) else LocalPlace(text)
    if not isinstance(text, str):
        return text
    if is_remote(text):
        return object_place(text, field)
    if _SCHEME.match(text):
        return LocalPlace(_file_path(text, field))
    if almost := _ALMOST.match(text):  # would become a folder
        raise ConfigError(field, f"{almost[0]}…", ALLOWED)
    return LocalPlace(text)


def object_place(text: str, field: str) -> ObjectPlace:
    """Return the place of a URL in a bucket. Raises ConfigError and SubstyleError, see `place`."""
    scheme, _, rest = text.partition("://")
    kind = scheme.lower()
    bucket, _, key = rest.partition("/")
    if kind not in BUCKETS:
        raise ConfigError(field, f"{scheme}://…", ALLOWED)
    # what precedes @ or follows ? may be a secret
    if "@" in bucket or ":" in bucket:
        raise ConfigError(field, f"{kind}://…@…", f"{ALLOWED}; set credentials in the environment")
    if "?" in text or "#" in text:
        raise ConfigError(field, f"{kind}://{bucket.split('?')[0].split('#')[0]}/…?…", f"{ALLOWED}, without a query")
    if _BUCKET.fullmatch(bucket) is None:
        raise ConfigError(field, text, ALLOWED)
    key = key.rstrip("/")
    parts = key.split("/") if key else []
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise ConfigError(field, text, f"{ALLOWED}, without empty, . or .. parts")
    return ObjectPlace.open(kind, bucket, key)


def photographs(text: str | Path, field: str = "images") -> str | Path:
    """Parse the location of photographs: a local path, or a validated URL as text. Either may be a pattern.

    Raises:
        ConfigError: see `place`.
    """
    location = place(str(text), field)
    return Path(location) if isinstance(location, LocalPlace) else str(text)


def below(folder: Path, text: str | Path, field: str) -> str | Path:
    """Like `photographs`, with local paths relative to ``folder``."""
    location = photographs(text, field)
    return folder / location if isinstance(location, Path) else location


def _file_path(text: str, field: str) -> str:
    address = urlsplit(text)
    if address.netloc not in ("", "localhost") or address.query or address.fragment or not address.path:
        raise ConfigError(field, "file://…", "file:///path, without a host, a user or a query")
    return unquote(address.path)
