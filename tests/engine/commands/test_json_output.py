"""`--json`: stdout is exactly one JSON object; everything else goes to stderr."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from substyle.engine.cli import main
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


@pytest.mark.parametrize(
    ("what", "code", "reported"),
    [
        (ConfigError("seed", -1, "0 or more"), 2, ("ConfigError", "seed", "seed: got -1; allowed: 0 or more")),
        (SubstyleError("no"), 1, ("SubstyleError", None, "no")),
        (FileNotFoundError(2, "No such file", "x.json"), 1, ("FileNotFoundError", None, "x.json: No such file")),
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "kind"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
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


def test_a_bug_is_a_traceback_without_json(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("by zero"))
    with pytest.raises(ZeroDivisionError):
        main(["info"])
