"""Text that is printed: names hold no commands for a terminal, and addresses no secrets."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from tests.conftest import jpeg, photograph, slow_after

from substyle.engine.cli import main
from substyle.engine.commands.json_output import printable
from substyle.errors import ConfigError, MissingError, SubstyleError, redacted

# --- terminals --------------------------------------------------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


def test_control_characters_of_names_are_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(jpeg(photograph(i)))
    (folder / f"a{ESCAPE}b.jpg").write_bytes(b"no picture")
    words = ["embed", str(folder), "--store", str(tmp_path / "s.zarr"), "--backbone", "control:pixels"]
    assert main([*words, "--suite", "identity", "--set", "canvas=64", "--quiet"]) == 0
    said = capsys.readouterr()
    assert "\\x1b]0;owned\\x07" in said.out
    for text in (said.out, said.err):
        assert not set(text) & set(ESCAPE) - set("]0;owned[2J31m")
    assert main(["info", str(tmp_path / f"a{ESCAPE}")]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_text_stays_text() -> None:
    assert printable("a\tb\nÄ – 写真 🙂 é") == "a\tb\nÄ – 写真 🙂 é"
    assert printable("a\rb") == "a\\rb"


# --- secrets ----------------------------------------------------------------------------------------------------------

REJECTED = ("s3://KEY:SECRET@bucket/x", "gs://bucket/x?token=SECRET")
ADDRESSES = (
    *REJECTED,
    "s3:/KEY:SECRET@bucket/x",
    "s3:KEY:SECRET@bucket/x",
    "s3://KEY:SEC/RET:SECRET@bucket/x",
    "S3://KEY:SECRET@bucket/x",
    "s3://KEY%3ASECRET%40bucket/x",
    "https://user:SECRET@host/x",
    "file://user:SECRET@host/x",
)
COMMANDS = (
    *("embed {0} --store x.zarr --backbone control:pixels", "embed images --store {0} --backbone control:pixels"),
    *("run {0} --backbone control:pixels", "run demo --out {0}", "run demo --store {0}", "run demo --images {0}"),
    *("plan {0}", "info {0}", "verify {0}", "stage probes {0}", "report {0}", "share card {0}"),
    *("share card runs/x --out {0}", "predict {0} images", "predict p.safetensors images --out {0}", "compare {0}"),
    *("compare a b --out {0}", "export s.zarr --to numpy --out {0}", "variants images --out {0}"),
    "import {0} --store y --backbone import:b",
)
FIELDS = ("images", "store", "source.names", "shift.x", "domains.x")


def code_of(words: list[str]) -> object:
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("address", slow_after(5, ADDRESSES))
def test_secrets_of_addresses_are_not_repeated_and_make_no_folder(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [[*command.format(address).split(), *more] for command in COMMANDS for more in ([], ["--json"])]
    for field in FIELDS:
        study = tmp_path / f"{field}.toml"
        study.write_text(f'name = "s"\nbackbones = ["control:pixels"]\n{field} = "{address}"\n')
        commands.append(["run", str(study), *(["--images", "images"] if field != "images" else [])])
    for command in commands:
        assert code_of(command) in (1, 2), command
        said = capsys.readouterr()
        assert "invalid choice" not in said.out + said.err
        assert "SECRET" not in said.out + said.err, command
        if address in REJECTED and command[0] in ("embed", "verify", "stage"):  # as an address, before it is opened
            assert "allowed: " in said.out + said.err, command
    assert {path.suffix for path in tmp_path.iterdir()} == {".toml"}


def test_messages_are_redacted() -> None:
    secret = "s3://KEY:SECRET@bucket/x"
    for error in (
        SubstyleError(f"{secret}: no such bucket"),
        ConfigError("images", secret, f"not {secret}"),
        MissingError("images", f"instead of {secret}"),
    ):
        assert "SECRET" not in str(error)
        assert "bucket" in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert redacted("a@b: c, /x/y@z and 3:/4") == "a@b: c, /x/y@z and 3:/4"
    assert redacted("s3://bucket/train-{0..3}.tar") == "s3://bucket/train-{0..3}.tar"


@pytest.mark.parametrize("field", ["images", "store", "source.names", "shift.x", "domains.x"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_secrets_in_study_files(
    address: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text(f'name = "s"\nbackbones = ["control:pixels"]\n{field} = "{address}"\n')
    words = ["run", "s.toml", *(["--images", "images"] if field != "images" else [])]
    assert main(words) in (1, 2)
    said = capsys.readouterr()
    assert "SECRET" not in said.out + said.err
    assert [path.name for path in tmp_path.iterdir()] == ["s.toml"]
