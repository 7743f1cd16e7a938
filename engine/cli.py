"""Command line entry point. Heavy modules are imported only when a command runs."""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from substyle.engine.commands.arguments import BadUsage, parse
from substyle.engine.commands.json_output import (
    STDERR,
    STDOUT,
    discard_stdout,
    printable,
    printable_stdout,
    requested,
    stdout_to_stderr,
    write,
)
from substyle.errors import ConfigError, SubstyleError
from substyle.files import remove_temporary_folders

EXIT_QUARANTINED = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_TERMINATED = 143  # 128 + SIGTERM
_KEPT = "finished work is kept; run the same command again to resume"


class _Terminated(KeyboardInterrupt):
    """SIGTERM was received; cleanup is the same as after Ctrl-C."""


@dataclass(frozen=True)
class _Failure:
    """Error of a command: exit code and ``--json`` fields."""

    code: int
    type: str
    message: str
    field: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> _Failure:
        found = cls._of(error)
        notes = [each for each in getattr(error, "__notes__", ()) if each not in found.message]
        return replace(found, message="; ".join((found.message, *notes)))

    @classmethod
    def _of(cls, error: BaseException) -> _Failure:
        match error:
            case BadUsage():
                return cls(2, "UsageError", error.message, error.field)
            case SubstyleError():
                return cls(error.exit_code, type(error).__name__, str(error), error.field)
            case _Terminated():
                return cls(EXIT_TERMINATED, "Terminated", f"terminated; {_KEPT}")
            case KeyboardInterrupt():
                return cls(EXIT_INTERRUPTED, "Interrupted", f"interrupted; {_KEPT}")
            case OSError():  # disk or permission errors: a traceback would not help
                where = error.filename or "system error"
                return cls(1, type(error).__name__, f"{where}: {error.strerror or error}")
        return cls(1, type(error).__name__, str(error))

    def to_json(self) -> str:
        return json.dumps({"error": {"type": self.type, "field": self.field, "message": self.message}})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        exit code: 0 success, 1 failure, 2 invalid configuration, 3 images were quarantined (``--strict``),
        130 interrupted, 143 terminated.

    Raises:
        SystemExit: invalid arguments (code 2), ``--help`` or ``--version``.
    """
    if arguments is None:
        atexit.register(_leave)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not requested(words):
        return _reported(words)[0]
    if sys.stderr is None:  # closed: print would write to stdout instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - stays open until the process exits
    stop = None
    try:
        code, text = _reported(words, as_json=True)
    except BadUsage as usage:
        stop, text = usage, _Failure.of(usage).to_json()
    try:
        write(text, last=arguments is None)
    except OSError as error:  # the reader has closed the pipe, or the disk is full
        discard_stdout()
        _tell(error)
        code = 1
    if stop is not None:
        raise stop
    return code


def _reported(words: Sequence[str], *, as_json: bool = False) -> tuple[int, str]:
    """Run one command and report errors on stderr. Returns the exit code and the JSON object (empty without it)."""
    try:
        with _terminable(as_json=as_json):
            options = parse(words)
            # file names may not be encodable in the terminal's encoding; skipped if stdout is closed or replaced
            with suppress(AttributeError, OSError, ValueError):
                sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
            with stdout_to_stderr() if as_json else printable_stdout():
                answer = _run(options)
            text = json.dumps(answer, allow_nan=False) if as_json else ""
    except BrokenPipeError as error:
        if not as_json:  # the reader has closed the pipe
            discard_stdout()
            return 1, ""
        return 1, _tell(error).to_json()
    except (SubstyleError, KeyboardInterrupt, OSError) as error:
        if isinstance(error, KeyboardInterrupt):
            sys.unraisablehook = lambda _: None  # objects whose construction was interrupted, when they are deleted
        failure = _tell(error)
        return failure.code, failure.to_json()
    except Exception as error:
        stopped = _interruption(error) is not None
        if not (stopped or as_json):
            raise
        if not stopped:
            traceback.print_exception(error)
        failure = _tell(error) if stopped else _Failure.of(error)
        return failure.code, failure.to_json()
    if answer.get("ok") is False:
        return 1, text
    return (EXIT_QUARANTINED if getattr(options, "strict", False) and answer.get("quarantined") else 0), text


def _interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interruption that an exception is, or that it was raised from."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _tell(error: BaseException) -> _Failure:
    stopped = _interruption(error)
    failure = _Failure.of(stopped or error)
    if stopped is not None and stopped is not error:  # locks and libraries raise others while the stack unwinds
        failure = replace(failure, message=f"{failure.message} ({type(error).__name__}: {error})")
    start = "\n" if stopped is not None else ""  # the terminal shows ^C on this line
    with suppress(OSError):
        print(f"{start}substyle: {printable(failure.message)}", file=sys.stderr)
    return failure


def _log_level() -> str:
    """The level of messages on stderr, from $SUBSTYLE_LOG."""
    level = os.environ.get("SUBSTYLE_LOG", "warning").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigError("$SUBSTYLE_LOG", level.lower(), "debug, info, warning or error")
    return level


def _run(options: argparse.Namespace) -> dict[str, Any]:
    logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("substyle").setLevel(_log_level())
    # no command needs the hub client's progress bars or its warning about missing tokens
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with _held_back(), _uncollected():
        module = importlib.import_module(options.module)
    try:
        if plugins := getattr(options, "plugin", None):
            from substyle.pipelines.transforms.registry import load_plugin

            for plugin in plugins:
                load_plugin(plugin)
        with _allowing_code(options):
            answer: dict[str, Any] = getattr(module, options.function)(options)
    except SystemExit as stop:  # from a plug-in: its exit code must not become ours
        raise SubstyleError(f"{options.command}: aborted by sys.exit({stop.code!r})") from stop
    except MemoryError as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        where = f"{last.name}, {last.filename}:{last.lineno}"
        raise SubstyleError(f"{options.command}: out of memory in {where} ({error or 'MemoryError'})") from error
    except ConfigError as error:
        name = error.field.rpartition(".")[2]
        if name == "device" and error.given == getattr(options, name, None):  # fields that the option has set
            raise ConfigError("--device", error.given, error.allowed) from error
        raise
    except (SubstyleError, BrokenPipeError):
        raise
    except Exception as error:
        from substyle.pipelines.plugins import failed_line

        if line := failed_line(error):
            raise SubstyleError(f"{options.command}: a plug-in failed: {line}") from error
        raise
    return answer


@contextmanager
def _allowing_code(options: argparse.Namespace) -> Iterator[None]:
    """Let the command and its workers run code that files name, with ``--allow-plugins``."""
    from substyle.pipelines.plugins import ALLOW

    before = os.environ.get(ALLOW)
    if getattr(options, "allow_plugins", False):
        os.environ[ALLOW] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ALLOW, None)
        else:
            os.environ[ALLOW] = before


@contextmanager
def _terminable(*, as_json: bool) -> Iterator[None]:
    """Raise on SIGTERM within the block, so that locks are released, and end the process if that takes too long.

    Signals can only be handled on the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked = False

    def stop(signum: int, frame: object) -> None:
        nonlocal asked
        asked = True
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with _within_grace(as_json=as_json):
            yield
    except Exception as error:
        # a library that was interrupted may raise an error that knows nothing of it, as comparisons of NumPy do
        if asked and _interruption(error) is None:
            raise _Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


GRACE_S = 8.0  # time to stop after a signal


@contextmanager
def _within_grace(*, as_json: bool) -> Iterator[None]:
    """End the process `GRACE_S` seconds after the first SIGINT or SIGTERM, unless the block ends before.

    Python handles signals when a call into a library returns, which may take minutes. Nothing is lost: files are put in
    place whole, and the locks of a process that has ended are taken over.
    """
    stdout = None
    if as_json:
        with suppress(OSError):
            stdout = os.dup(STDOUT)
    received, sent = os.pipe()
    os.set_blocking(sent, False)
    ended = threading.Event()

    def watch() -> None:
        while (number := os.read(received, 1)) and number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        if not number or ended.wait(GRACE_S):
            return
        failure = _Failure.of(KeyboardInterrupt() if number[0] == signal.SIGINT else _Terminated())
        with suppress(OSError):
            os.write(STDERR, f"\nsubstyle: {failure.message} (stopped within a library)\n".encode())
        if stdout is not None:
            with suppress(OSError):
                os.write(stdout, f"{failure.to_json()}\n".encode())
        with suppress(Exception):
            remove_temporary_folders()
        os._exit(failure.code)

    before = signal.set_wakeup_fd(sent, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="substyle-stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.close(sent)  # ends the thread
        watcher.join()
        os.close(received)
        if stdout is not None:
            os.close(stdout)


def _leave() -> None:
    """Exit without a last search for garbage in all that was imported, which takes up to a second."""
    if "triton" not in sys.modules:  # its bindings report all objects that are not collected as leaks
        gc.freeze()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Do not search for garbage while modules are imported, which live as long as the process."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _held_back() -> Iterator[None]:
    """Defer SIGINT and SIGTERM until the block ends: libraries swallow exceptions raised during their import."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda signum, frame: held.append(signum)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


if __name__ == "__main__":
    sys.exit(main())
