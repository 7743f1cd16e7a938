"""Tar shards: samples, labels, formats, and rejected members."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.conformance.kinds import write_tar

from substyle.pipelines.sources import SourceConfig, TarSource

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def described(source: TarSource) -> dict[str, tuple[bytes, str | None, str | None]]:
    names = source.class_names
    return {r.key: (r.read(), None if r.label is None else names[r.label], r.split) for r in source.records}


def keys(source: TarSource) -> list[str]:
    return [record.key for record in source.records]


def one(root: Path, *members: tuple[str, bytes]) -> Path:
    write_tar(root / "a.tar", members)
    return root / "a.tar"


def test_a_sample_is_what_agrees_up_to_the_first_dot(tmp_path: Path) -> None:
    path = one(
        tmp_path,
        ("cat/0001.seg.png", b"mask"), ("cat/0001.png", b"second"), ("cat/0001.JPG", b"image"),
        ("cat/0001.cls", b" 7\n"), ("cat/0002.mask.png", b"only"), ("cat/0002.txt", b"a caption"),
        ("./cat/0003.jpeg", b"third"), ("cat/0003.cls", b"red fox"),
        ("0003.cls", b"8"), ("readme", b"no dot"), ("._0001.jpg", b"no name"), ("b.d/0004.jpg", b"dots in folders"),
    )  # fmt: skip
    assert described(TarSource(path)) == {
        "a.tar/cat/0001": (b"image", "7", None),
        "a.tar/cat/0002": (b"only", None, None),
        "a.tar/cat/0003": (b"third", "red fox", None),
        "a.tar/b.d/0004": (b"dots in folders", None, None),
    }


@pytest.mark.parametrize("config", [SourceConfig(), SourceConfig(json_label="species")])
def test_labels_from_json(tmp_path: Path, config: SourceConfig) -> None:
    path = one(
        tmp_path,
        ("1.jpg", b"1"), ("1.json", json.dumps({"label": "a", "species": 5}).encode()),
        ("2.jpg", b"2"), ("2.json", b'{"label": "b"}'), ("2.cls", b"c"),
        ("3.jpg", b"3"), ("3.json", b'{"label": "b", "species": "d"}'), ("3.cls", b"c"),
        ("4.jpg", b"4"), ("4.json", b'{"label": null}'),
    )  # fmt: skip
    labels = [label for _, label, _ in described(TarSource(path, config)).values()]
    assert labels == (["a", "c", "c", None] if config == SourceConfig() else ["5", "c", "d", None])


@pytest.mark.parametrize(
    "text",
    [
        b"no json", b"[1]", b"{", b'{"label": 1.5}', b'{"label": true}', b'{"label": ["a"]}', b'{"label": {}}',
        b"\xff\xfe", b'{"label": ""}', b'{"label": " "}', b"[" * 100_000, b'{"label": ' + b"9" * 5000 + b"}",
        b'{"label": "' + b"x" * 1001 + b'"}', b'{"label": "a", "text": "' + b" " * (1 << 20) + b'"}',
        b'{"label": 9223372036854775808}', b"", b"null",
    ],
    ids=range(17),
)  # fmt: skip
def test_json_that_holds_no_label(tmp_path: Path, text: bytes) -> None:
    source = TarSource(one(tmp_path, ("1.jpg", b"1"), ("1.json", text), ("2.jpg", b"2"), ("2.json", b'{"label": "a"}')))
    assert [label for _, label, _ in described(source).values()] == [None, "a"]


@pytest.mark.parametrize("text", [b"", b"\n", b"\xff", b"x" * 1001, b"x" * 5000])
def test_cls_that_holds_no_label(tmp_path: Path, text: bytes) -> None:
    source = TarSource(one(tmp_path, ("1.jpg", b"1"), ("1.cls", text)))
    assert described(source) == {"a.tar/1": (b"1", None, None)}


def test_half_characters_in_a_label_become_text(tmp_path: Path) -> None:
    source = TarSource(one(tmp_path, ("1.jpg", b"1"), ("1.json", b'{"label": "a\\ud800"}')))
    assert source.class_names == ("a\ufffd",)


def test_numbers_have_readable_names(tmp_path: Path) -> None:
    path = one(
        tmp_path, ("1.jpg", b"1"), ("1.cls", b"1"), ("2.jpg", b"2"), ("2.cls", b"0"), ("3.jpg", b"3"), ("3.cls", b"7")
    )
    names = tmp_path / "names.txt"
    names.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n\n")
    source = TarSource(path, SourceConfig(names=names))
    assert source.class_names == ("tench", "goldfish", "7")
    assert [source.class_names[r.label or 0] for r in source.records] == ["goldfish", "tench", "7"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-0.tar", "val-0.tar", "test-0.tar"), ["test", "train", "val"]),
        (("x/train/0.tar", "x/validation/0.tar"), ["train", "val"]),
        (("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"), ["train", "val"]),
        (("train-0.tar", "other-0.tar"), [None, None]),
        (("val-0.tar", "test-0.tar"), [None, None]),
        (("train-val-0.tar", "train-1.tar"), [None, None]),
        (("trains-0.tar",), [None]),
    ],
)
def test_splits_from_the_names_of_shards(tmp_path: Path, names: tuple[str, ...], splits: list[str | None]) -> None:
    for name in names:
        write_tar(tmp_path / name, [("1.jpg", b"1")])
    assert [record.split for record in TarSource(tmp_path).records] == splits


def test_keys_hold_their_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "a.tar", [("b/1.jpg", b"1")])
    alone = keys(TarSource(tmp_path / "s" / "a.tar"))
    write_tar(tmp_path / "s" / "a" / "b.tar", [("1.jpg", b"2")])
    write_tar(tmp_path / "s" / "c.tar", [("b/1.jpg", b"3")])
    assert alone == ["a.tar/b/1"]
    assert keys(TarSource(tmp_path / "s")) == ["a.tar/b/1", "a/b.tar/1", "c.tar/b/1"]


def test_in_one_shard_the_first_of_a_name_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = one(
        tmp_path, ("1.jpg", b"first"), ("1.cls", b"a"), ("1.jpg", b"second"), ("1.cls", b"b"), ("1.JPG", b"third")
    )
    assert described(TarSource(path)) == {"a.tar/1": (b"first", "a", None)}
    assert "1.JPG is another image" in caplog.text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=90)
        .flatmap(lambda stem: st.sampled_from([stem, f"{stem}/{stem}", f"d/{stem}/e"]))
        .map(lambda stem: f"{stem}.jpg"),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    format=st.sampled_from(FORMATS),
    sizes=st.lists(st.sampled_from([0, 1, 511, 512, 513, 3000]), min_size=6, max_size=6),
)
@example(names=["d" * 150 + "/" + "n" * 90 + ".jpg"], format=tarfile.USTAR_FORMAT, sizes=[5] * 6)
@example(names=["é" * 60 + "/" + "é" * 40 + ".jpg"], format=tarfile.GNU_FORMAT, sizes=[5] * 6)
def test_members_lie_where_tarfile_finds_them(tmp_path: Path, names: list[str], format: int, sizes: list[int]) -> None:
    members = [(name, bytes([65 + i]) * size) for i, (name, size) in enumerate(zip(names, sizes, strict=False))]
    try:
        write_tar(tmp_path / "a.tar", members, format)
    except ValueError:  # a name too long for ustar
        return
    with tarfile.open(tmp_path / "a.tar") as tar:
        truth = {}
        for info in tar.getmembers():
            file = tar.extractfile(info)
            assert file is not None
            parts = [part for part in info.name.split("/") if part not in ("", ".")]
            stem = parts[-1].split(".")[0]
            if stem and ".." not in parts and not info.name.startswith("/"):
                truth.setdefault("/".join(["a.tar", *parts[:-1], stem]), set()).add(file.read())
    if not truth:
        return
    source = TarSource(tmp_path / "a.tar")
    assert [record.key for record in source.records] == sorted(truth)
    assert all(record.read() in truth[record.key] for record in source.records)
