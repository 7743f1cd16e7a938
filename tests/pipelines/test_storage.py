"""Every place does what `Place` says, on a disk and in a bucket; URLs that carry a secret are rejected."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.object_server import BUCKET, KEY, SECRET, Fault, Server

from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines.storage import (
    ObjectError,
    ObjectPlace,
    Place,
    place,
)

FILES = ("a/zarr.json", "b/c/0/0", "b/zarr.json", "notes-7.txt")


def test_lists(home: Place) -> None:
    """Beside the store is one whose name begins alike."""
    store = home / "s"
    for path in (*(store / name for name in FILES), home / "s2" / "other.txt"):
        path.write(b"x")

    def names(found: Iterable[Place]) -> list[str]:
        return sorted(each.relative_to(store).as_posix() for each in found)

    assert names(store.sizes()) == list(FILES)
    assert names(store.files(".txt")) == ["notes-7.txt"]
    assert store.files(".json") == (store / "nothing").files(".json") == []
    assert names(store.glob("*/zarr.json")) == ["a/zarr.json", "b/zarr.json"]
    assert names(store.glob("b/*/*/0")) == ["b/c/0/0"]
    assert names(store.glob("notes-[0-9].txt")) == ["notes-7.txt"]
    assert list(store.glob("nothing/*")) == list((store / "nothing").sizes()) == []


def test_another_process_opens_the_same_place(bucket: ObjectPlace) -> None:
    (bucket / "x").write(b"1")
    assert pickle.loads(pickle.dumps(bucket / "x")).read_bytes() == b"1"


@pytest.mark.parametrize(
    "text",
    [
        f"s3://{KEY}:{SECRET}@bucket/x", f"s3://bucket/x?sig={SECRET}", f"gs://bucket/x#{SECRET}",
        f"https://host/x?token={SECRET}", f"file://{KEY}:{SECRET}@host/x", f"file:///x?{SECRET}", f"file:///x#{SECRET}",
    ],
)  # fmt: skip
def test_an_address_that_may_carry_a_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place(text)
    assert SECRET[:9] not in str(caught.value)
    assert KEY not in str(caught.value)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(SubstyleError, match=r"pip install 'substyle\[object-stores\]'"):
        place("s3://bucket/x")
    assert place("local") == Path("local")


def test_a_request_that_fails_once_is_made_again(bucket: ObjectPlace, server: Server) -> None:
    with server.failing(Fault("PUT", "/x$", times=1), Fault("GET", "/x$", times=2, status=503)):
        (bucket / "x").write(b"1")
        assert (bucket / "x").read_bytes() == b"1"


def test_no_server_and_no_bucket_are_told(bucket: ObjectPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ObjectError, match=r"^s3://no-such-bucket/x: no such bucket$"):
        place("s3://no-such-bucket/x").write(b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ObjectError, match=rf"^s3://{BUCKET}/x: HTTP error: error sending request$"):
        place(f"s3://{BUCKET}/x").read_bytes()


@pytest.mark.parametrize("text", ["s3:///x", "s3://b/a//c", "s3://b/../c", "s3://b/.", "http://b/c", "s3://b\n/c"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/name"):
        place(text)
