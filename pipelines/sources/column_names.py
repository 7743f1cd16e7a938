"""What the columns of a list or a table are usually called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from substyle.pipelines.sources.names import split_word
from substyle.pipelines.sources.text import shown

# the likelier first; case is ignored
IMAGE_COLUMNS = ("image", "img", "image_bytes", "picture", "photo", "jpg", "jpeg", "png", "webp")
PATH_COLUMNS = (
    "path", "file_name", "filename", "filepath", "file_path", "image_path", "image", "img", "file",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "fine_label")
SPLIT_COLUMNS = ("split",)
# splits only if they hold nothing else: data sets call all kinds of groups so
MAYBE_SPLIT_COLUMNS = ("subset", "partition")


def find(names: Iterable[str], usual: Sequence[str]) -> str | None:
    """The column with the first of some usual names, None if there is none; the exact spelling wins over another."""
    names = list(names)
    known = {name.lower(): name for name in reversed(names)} | {name: name for name in names}
    return next((known[name] for name in usual if name in known), None)


def says_splits(values: Iterable[object]) -> bool:
    """Whether the values of a column are split words or empty, and not all of them empty."""
    words = {str(value) for value in values if value is not None and str(value).strip()}
    return bool(words) and all(map(split_word, words))


def no_label(unused: Sequence[str]) -> tuple[str, ...]:
    """What to say of a table without a column of labels; nothing if it has no other columns."""
    if not unused:
        return ()
    more = f" and {len(unused) - 12} more" if len(unused) > 12 else ""
    some = ", ".join(shown(name)[:50] for name in unused[:12])
    return (f"no label column among: {some}{more}; name one with --label-column",)
