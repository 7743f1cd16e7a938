"""`--json`: stdout is exactly one JSON object; everything else goes to stderr."""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from substyle.engine import cli
from substyle.engine.cli import main
from substyle.engine.commands import describe
from substyle.engine.commands.json_output import requested
from substyle.errors import ConfigError, SubstyleError

# writes to stdout in every way that a library can: print, an older stream, the descriptor, C's stdio, a child process,
# and once more when the interpreter ends
CHATTER = """
import atexit, ctypes, os, subprocess, sys

def chatter(when):
    print(f"{when}: print")
    if sys.__stdout__ is not None:
        sys.__stdout__.write(f"{when}: older stream\\n")
    os.write(1, f"{when}: descriptor\\n".encode())
    ctypes.CDLL(None).printf(f"{when}: stdio\\n".encode())  # buffered, as stdout is no terminal
    subprocess.run(["echo", f"{when}: child"], check=True)

chatter("plug-in")
atexit.register(chatter, "exit")
"""
WAYS = ("print", "older stream", "descriptor", "stdio", "child")


def substyle(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401
    command = [sys.executable, "-m", "substyle.engine.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def error(text: str) -> dict[str, Any]:
    """The error on stdout."""
    assert text.endswith("\n")
    answer = json.loads(text)
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"type", "field", "message"}
    found: dict[str, Any] = answer["error"]
    return found


def failing(monkeypatch: pytest.MonkeyPatch, what: BaseException) -> None:
    """Make `substyle info` print something, then raise."""

    def machine_info(options: object) -> None:
        print("a table")
        raise what

    monkeypatch.setattr("substyle.engine.commands.describe.machine_info", machine_info)


@pytest.mark.slow
def test_what_libraries_write_goes_to_stderr(tmp_path: Path) -> None:
    plugin = tmp_path / "chatter.py"
    plugin.write_text(CHATTER)
    done = substyle("transforms", "--suite", "identity", "--plugin", plugin, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["suite"] == "identity"
    for when in ("plug-in", "exit"):
        for way in WAYS:
            assert f"{when}: {way}" in done.stderr
    assert "identity " in done.stderr  # the table
    plain = substyle("transforms", "--suite", "identity", "--plugin", plugin)
    assert all(f"plug-in: {way}" in plain.stdout for way in WAYS)
    assert plain.stderr == ""


def test_in_process_the_streams_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    stdout = sys.stdout
    assert main(["info", "--json"]) == 0
    assert sys.stdout is stdout
    os.write(1, b"afterwards\n")
    out, err = capfd.readouterr()
    answer, afterwards = out.splitlines()
    assert json.loads(answer)["packages"]["torch"]
    assert afterwards == "afterwards"
    assert "packages:" in err


def test_without_json_tables_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out, err = capsys.readouterr()
    assert "packages:" in out
    assert "{" not in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["embed", "--store", "s", "--backbone", "b", "--what", "1"], None),
        (["embed", "--store", "s", "--backbone", "b", "--shard-rows", "8"], None),
        (["embed", "--store", "s", "--backbone"], "--backbone"),
        (["verify"], "STORE"),
        (["embed"], None),  # two are missing
        (["nothing"], "COMMAND"),
        (["info", "--nothing"], None),
        ([], "COMMAND"),
    ],
)
def test_bad_usage(arguments: list[str], field: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--json"])
    out, err = capsys.readouterr()
    reported = error(out)
    assert (reported["type"], reported["field"]) == ("UsageError", field)
    assert f"error: {reported['message']}\n" in err
    assert err.startswith("usage: substyle")
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    out, plain = capsys.readouterr()
    assert out == ""
    assert "error: " in plain


@pytest.mark.parametrize(
    ("what", "code", "reported"),
    [
        (ConfigError("seed", -1, "0 or more"), 2, ("ConfigError", "seed", "seed: got -1; allowed: 0 or more")),
        (SubstyleError("no"), 1, ("SubstyleError", None, "no")),
        (FileNotFoundError(2, "No such file", "x.json"), 1, ("FileNotFoundError", None, "x.json: No such file")),
        (OSError(28, "No space left"), 1, ("OSError", None, "No space left")),
        (BrokenPipeError(32, "Broken pipe"), 1, ("BrokenPipeError", None, "Broken pipe")),
        (ZeroDivisionError("by zero"), 1, ("ZeroDivisionError", None, "by zero")),
        (KeyboardInterrupt(), 130, ("Interrupted", None, "interrupted")),
        (SystemExit(0), 1, ("SubstyleError", None, "sys.exit(0)")),
    ],
)
def test_failures(
    what: BaseException,
    code: int,
    reported: tuple[str, str | None, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(monkeypatch, what)
    assert main(["info", "--json"]) == code
    out, err = capsys.readouterr()
    found = error(out)
    assert set(found) == {"type", "field", "message"}
    assert (found["type"], found["field"]) == reported[:2]
    assert reported[2] in found["message"]
    assert err.startswith("a table\n")
    assert found["message"] in err
    assert ("Traceback" in err) == isinstance(what, ZeroDivisionError)


def test_a_bug_is_a_traceback_without_json(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("by zero"))
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_an_answer_that_is_no_json_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("substyle.engine.commands.describe.machine_info", lambda options: {"accuracy": float("nan")})
    assert main(["info", "--json"]) == 1
    assert error(capsys.readouterr().out)["type"] == "ValueError"


def test_an_address_with_a_password_is_refused_while_the_arguments_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "s3://me:secret@bucket/s.zarr", "--json"]) == 2
    out, err = capsys.readouterr()
    assert (error(out)["type"], error(out)["field"]) == ("ConfigError", "STORE")
    assert "secret" not in out + err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "kind"),
    [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")],
)
def test_a_signal(number: signal.Signals, code: int, kind: str, tmp_path: Path) -> None:
    plugin, begun = tmp_path / "slow.py", tmp_path / "begun"
    plugin.write_text(f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "substyle.engine.cli", "transforms", "--plugin", str(plugin), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert error(out)["type"] == kind
    assert f"substyle: {kind.lower()}" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_library_loads(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Libraries may swallow the exception; the command must still stop before doing any work."""

    def load(name: str) -> object:
        try:
            signal.raise_signal(number)
        except BaseException:  # noqa: BLE001
            raise ImportError("swallowed") from None
        return describe

    monkeypatch.setattr(cli, "importlib", SimpleNamespace(import_module=load))
    failing(monkeypatch, AssertionError("it went on"))
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert main(["info", "--json"]) == code
    assert error(capsys.readouterr().out)["type"] == ("Interrupted" if number == signal.SIGINT else "Terminated")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("bindings", [False, True])
def test_garbage_is_collected_at_exit_only_for_bindings_that_report_it(
    bindings: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(cli, "gc", SimpleNamespace(freeze=lambda: frozen.append(True)))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    if bindings:
        monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())  # type: ignore[arg-type]
    cli._leave()
    assert bool(frozen) is not bindings


@pytest.mark.parametrize("enabled", [False, True])
def test_garbage_is_not_searched_for_during_imports(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with cli._uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("raised", [RuntimeError("lock"), SubstyleError("store"), OSError(5, "disk")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_error_in_the_wake_of_a_signal_is_the_signal(
    number: signal.Signals, raised: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as of a lock whose acquisition was interrupted."""

    def interrupted(options: object) -> NoReturn:
        try:
            signal.raise_signal(number)
        finally:
            raise raised from None

    monkeypatch.setattr("substyle.engine.commands.describe.machine_info", interrupted)
    code, kind = (130, "interrupted") if number == signal.SIGINT else (143, "terminated")
    assert main(["info"]) == code
    err = capsys.readouterr().err
    assert f"substyle: {kind}" in err
    assert str(raised) in err
    assert main(["info", "--json"]) == code
    assert error(capsys.readouterr().out)["type"] == kind.capitalize()


def test_help_and_version_are_text() -> None:
    for arguments, start in ((["verify", "--json", "--help"], "usage: substyle verify"), (["--version"], "substyle ")):
        done = substyle(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(start)


def test_stdout_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "substyle.engine.cli", "info", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("substyle: ")
    assert done.stderr.endswith("No space left on device\n")


@pytest.mark.slow
@pytest.mark.parametrize("closed", [[1], [2], [1, 2]])
def test_closed_streams(closed: list[int], tmp_path: Path) -> None:
    """Text for stderr must not appear on stdout."""
    redirect = " ".join(f"{number}>&-" for number in closed)
    command = f"{sys.executable} -m substyle.engine.cli verify {tmp_path}/nothing --json {redirect}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    if 1 not in closed:
        assert error(done.stdout)["type"] == "StoreError"
    assert "Traceback" not in done.stderr


def test_a_stream_that_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["info", "--json"]) == 0
    assert json.loads(out.getvalue())["packages"]
    assert "packages:" in err.getvalue()


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["info", "--json"], True),
        (["info", "--js"], True),  # argparse takes it
        (["info", "--json=yes"], True),  # refused, as JSON
        (["info"], False),
        (["predict", "--", "--json"], False),
        (["embed", "--", "x"], False),
        (["embed", "--store", "json", "-j", "--"], False),
    ],
)
def test_requested(arguments: list[str], asked: bool) -> None:
    assert requested(arguments) == asked
