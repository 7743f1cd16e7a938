"""Local paths and buckets behave alike; invalid URLs, and URLs that carry a secret, are rejected."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
from tests.conftest import put
from tests.object_server import BUCKET, KEY, SECRET, Fault, Server

from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines.storage import (
    ObjectError,
    ObjectPlace,
    Place,
    Version,
    is_remote,
    place,
)
from substyle.pipelines.storage.bucket import reason, without_credentials


def test_names_and_lists(home: Place) -> None:
    for name in ("a/zarr.json", "b/zarr.json", "b/c/0/0", "notes-7.txt"):
        put(home / "s" / name, name.encode())
    store = home / "s"
    assert [str(p.relative_to(store)) for p in sorted(store.glob("*/zarr.json"))] == ["a/zarr.json", "b/zarr.json"]
    assert [p.name for p in sorted(store.glob("*.txt"))] == ["notes-7.txt"]
    assert [p.parent.name for p in sorted(store.glob("b/*/*/0"))] == ["0"]
    assert sorted(store.glob("nothing/*")) == []
    (notes,) = sorted(store.glob("notes*"))
    assert (notes.stem, notes.suffix, notes.parent == store) == ("notes-7", ".txt", True)
    assert notes.read_bytes() == b"notes-7.txt"
    assert notes.is_file()
    assert not (store / "a").is_file()
    notes.remove()
    assert not notes.is_file()
    with pytest.raises(FileNotFoundError, match=r"notes-7\.txt"):
        notes.read_bytes()
    with pytest.raises(ValueError, match="not in"):
        store.relative_to(home / "other")


def test_a_prefix_is_a_folder_and_no_beginning_of_a_name(bucket: ObjectPlace) -> None:
    (bucket / "s.zarr" / "x").write(b"1")
    (bucket / "s.zarr2" / "x").write(b"2")
    assert [str(p) for p, _ in (bucket / "s.zarr").walk()] == [f"{bucket}/s.zarr/x"]
    assert list((bucket / "s").walk()) == []


def test_conditional_writes(bucket: ObjectPlace) -> None:
    there = bucket / "x"
    first = there.create(b"one")
    with pytest.raises(FileExistsError):
        there.create(b"two")
    second = there.exchange(b"two", first)
    for version in (first, Version('"0"', None)):
        with pytest.raises(FileExistsError):
            there.exchange(b"three", version)
    assert there.read_bytes() == b"two"
    assert (there.head().e_tag, there.head().size) == (second.e_tag, 3)
    with pytest.raises(FileExistsError):
        (bucket / "nothing").exchange(b"x", second)


def test_ranges(bucket: ObjectPlace) -> None:
    there = bucket / "x"
    version = there.create(b"0123456789")
    assert there.read_range(2, 3) == b"234"
    assert there.read_range(8, 30, version.e_tag) == b"89"
    there.write(b"abcdefghij")
    with pytest.raises(OSError, match="s3://") as caught:
        there.read_range(2, 3, version.e_tag)
    assert caught.value.errno == errno.ESTALE
    with pytest.raises(ObjectError, match="416"):
        there.read_range(10, 1)


def test_another_process_opens_the_same_place(bucket: ObjectPlace) -> None:
    (bucket / "x").write(b"1")
    assert pickle.loads(pickle.dumps(bucket / "x")).read_bytes() == b"1"


def test_what_addresses_stand_for(server: Server, tmp_path: Path) -> None:
    del server
    there = place("S3://some-bucket/a/b.zarr/")
    assert isinstance(there, ObjectPlace)
    assert (str(there), there.name, there.stem) == ("s3://some-bucket/a/b.zarr", "b.zarr", "b")
    assert str(there.parent / "c") == "s3://some-bucket/a/c"
    assert there.relative_to(there.parent) == PurePosixPath("b.zarr")
    assert place(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert place("some/folder") == Path("some/folder")
    assert place("gs.zarr") == Path("gs.zarr")
    assert [is_remote(text) for text in ("s3://b/x", "file:///x", "s3:/b", "http://x", Path("s3"))] == [
        True, False, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        f"s3://{KEY}:{SECRET}@bucket/x", f"s3://{SECRET.replace('/', '')}@bucket/x", f"s3://bucket/x?sig={SECRET}",
        f"az://container/x?sv=2020&sig={SECRET}", f"gs://bucket/x#{SECRET}", f"https://host/x?token={SECRET}",
        f"s3://bucket?X-Amz-Signature={SECRET}", f"file://{KEY}:{SECRET}@host/x", f"file:///x?{SECRET}",
    ],
)  # fmt: skip
def test_an_address_that_may_carry_a_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place(text)
    assert SECRET[:9] not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("text", ["s3:///x", "s3://b/a//c", "s3://b/../c", "s3://b/.", "http://b/c", "s3://b\n/c"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/name"):
        place(text)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(SubstyleError, match=r"pip install 'substyle\[object-stores\]'"):
        place("s3://bucket/x")
    assert place("local") == Path("local")


@pytest.mark.slow
def test_local_places_need_no_obstore() -> None:
    code = "import sys; import substyle.engine.store.store; sys.exit('obstore' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_request_that_fails_once_is_made_again(bucket: ObjectPlace, server: Server) -> None:
    with server.failing(Fault("PUT", "/x$", times=1), Fault("GET", "/x$", times=2, status=503)):
        (bucket / "x").write(b"1")
        assert (bucket / "x").read_bytes() == b"1"


@pytest.mark.parametrize("status", [403, 500])
def test_a_request_that_fails_for_good_names_place_and_reason(bucket: ObjectPlace, server: Server, status: int) -> None:
    with server.failing(Fault(".*", "/x$", status=status)):
        for attempt in ((bucket / "x").read_bytes, lambda: (bucket / "x").write(b"1"), (bucket / "x").head):
            with pytest.raises(ObjectError) as caught:
                attempt()
            text = str(caught.value)
            assert text.startswith(f"{bucket}/x: ")
            assert str(status) in text
            assert KEY not in text
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__


def test_no_server_and_no_bucket_are_told(bucket: ObjectPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ObjectError, match=r"^s3://no-such-bucket/x: no such bucket$"):
        place("s3://no-such-bucket/x").write(b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ObjectError, match=rf"^s3://{BUCKET}/x: HTTP error: error sending request$"):
        place(f"s3://{BUCKET}/x").read_bytes()


def test_reasons_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = f"""Generic S3 error: Error performing GET https://u:{SECRET}@h/b?sig={SECRET} in 1ms - Server returned
non-2xx status code: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId>
<StringToSign>{SECRET}</StringToSign></Error>"""
    assert reason(answer).endswith("403 Forbidden (SignatureDoesNotMatch)")
    assert SECRET not in reason(answer)
    assert KEY not in reason(answer)
    monkeypatch.setenv("AZURE_STORAGE_SAS_KEY", "sv=2020&sig=abc%2Bdef")
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    assert without_credentials(f"a {SECRET} b sv=2020&sig=abc+def c") == "a … b … c"
    assert SECRET not in reason(f"the token {SECRET} was refused at https://host/{SECRET}")


@pytest.mark.parametrize(
    ("scheme", "name", "value", "said"),
    [
        ("az", "", "", "az://some-bucket: Account must be specified"),
        ("az", "AZURE_STORAGE_ACCOUNT_KEY", f"{SECRET}!!", "az://some-bucket"),
        ("gs", "GOOGLE_SERVICE_ACCOUNT_KEY", '{"private_key": "' + SECRET, "gs://some-bucket: GCP credential error"),
    ],
)
def test_credentials_that_are_none_are_told_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, scheme: str, name: str, value: str, said: str
) -> None:
    for known in [known for known in os.environ if known.startswith(("AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(known)
    if name == "AZURE_STORAGE_ACCOUNT_KEY":
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    if name:
        monkeypatch.setenv(name, value)
    with pytest.raises(ObjectError, match=f"^{said}") as caught:
        place(f"{scheme}://some-bucket/x")
    assert SECRET[:9] not in str(caught.value)
