"""What a source understood of the photographs it was given, in one line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from substyle.pipelines.sources.base import SPLITS, Records, Source
from substyle.pipelines.sources.text import LeftOut, shown

_NAMES, _KINDS = 3, 8  # shown of what was left out, and of suffixes that were skipped


def describe(source: Source) -> str:
    """One line for people: what is there, which classes and splits it has, what was not taken.

    For example ``folder photos/: 1,600 images, 10 classes, splits train 1,000, val 200, test 400 (from folders);
    skipped 3 files: .heic 2, .txt 1``.
    """
    found = source.understood
    root = source.root if not os.path.isdir(source.root) else source.root.rstrip("/") + "/"
    head = f"{source.options['kind']} {shown(root)}: {_images(source)}, {_classes(source)}, {_splits(source)}"
    columns = ", ".join(f"{what} column {shown(name)}" for what, name in found.columns.items())
    return "; ".join(filter(None, (head, columns, *found.remarks, *_not_taken(found.left_out))))


def _images(source: Source) -> str:
    return _number(len(source.records), "image")


def _classes(source: Source) -> str:
    if not source.class_names:
        return "no classes"
    records = source.records
    without = records.unlabelled if isinstance(records, Records) else sum(r.label is None for r in records)
    some = f" ({_number(without, 'image')} without)" if without else ""
    return _number(len(source.class_names), "class", "classes") + some


def _splits(source: Source) -> str:
    records = source.records
    count = Counter(records.splits() if isinstance(records, Records) else (record.split for record in records))
    parts = [f"{split} {count[split]:,}" for split in SPLITS if count[split]]
    if not parts:
        return "no splits of its own"
    if count[None]:
        parts.append(f"without {count[None]:,}")
    return f"splits {', '.join(parts)} (from {source.understood.splits_from})"


def _not_taken(left_out: LeftOut) -> list[str]:
    parts = []
    if left_out.total:
        parts.append(f"left out {left_out.total:,}: {_first(sorted(left_out.names), _NAMES, left_out.total)}")
    if left_out.skipped:
        most_first = sorted(left_out.skipped.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f"{shown(suffix)[:20] or 'no suffix'} {count:,}" for suffix, count in most_first]
        number = _number(left_out.skipped.total(), "file")
        parts.append(f"skipped {number}: {_first(kinds, _KINDS, len(kinds))}")
    if left_out.substyle_folders:
        parts.append(f"{_number(left_out.substyle_folders, 'substyle folder')} skipped")
    return parts


def _first(names: Sequence[str], count: int, total: int) -> str:
    more = total - min(count, len(names))
    return ", ".join(map(shown, names[:count])) + (f" and {more:,} more" if more else "")


def _number(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"
