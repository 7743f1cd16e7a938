from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from substyle.engine.commands import study
from substyle.engine.commands.arguments import parser
from substyle.engine.study.file import STUDIES, find_study, load_study
from substyle.errors import ConfigError


def test_a_study_of_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_study("smallest") == STUDIES / "smallest.toml"
    assert load_study("smallest").limit == 48
    assert find_study("mine.toml") == Path("mine.toml")
    assert find_study("photos") is None
    assert parser().parse_args(["run", "smallest"]).study == STUDIES / "smallest.toml"
    (tmp_path / "smallest").mkdir()  # photographs of this name
    assert find_study("smallest") is None
    with pytest.raises(ConfigError, match=r"or one of .*demo.*smallest"):
        load_study("no-such")


@pytest.mark.parametrize("name", ["demo", "smallest"])
def test_a_study_of_packaged_photographs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made: list[Path] = []
    monkeypatch.setattr("substyle.pipelines.packaged_photographs.ensure", made.append)
    ran: list[tuple[Any, ...]] = []
    monkeypatch.setattr(study, "run_study", lambda *given, **options: ran.append((*given, options)))
    monkeypatch.setattr(study, "_show", lambda *given: {})
    study.run(parser().parse_args(["run", name, "--packaged"]))
    ((asked, out, options),) = ran
    assert (asked.name, out, options["images"]) == (name, Path("runs") / name, Path("runs/photographs"))
    assert made == [Path("runs/photographs")]
    # they are crops, of which those of one picture are not independent
    assert asked.resample_by == "folder"


@pytest.mark.parametrize("words", [["demo", "--images", "x"], ["photographs-of-mine", "--backbone", "b"]])
def test_packaged_photographs_are_those_of_a_study(words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        study.run(parser().parse_args(["run", *words, "--packaged"]))
    assert caught.value.field == "--packaged"


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--print-completion", shell])
    assert not stop.value.code
    script = capsys.readouterr().out
    assert ("variants" if shell == "tcsh" else "--fresh") in script
    if shell == "bash":
        assert complete(script, "run", "") >= {"tmp"}
        assert complete(script, "embed", "--backbone", "package", ":", "clip") == {"clip_vit_b16"}
        assert complete(script, "embed", "--backbone", "control", ":") == {"pixels", "statistics", "random:"}
        assert complete(script, "run", "x", "--backbone", "open_") == {"open_clip:"}
        assert complete(script, "embed", "--suite", "substance3") == {"substance31", "substance36"}
        assert complete(script, "export", "--transformation", "gray") == {"grayscale"}
        assert not complete(script, "import", "--backbone", "mae")


def complete(script: str, *words: str) -> set[str]:
    """Replies of the script for words as bash splits them, the last one being typed."""
    given = " ".join(f'"{word}"' for word in words)
    line = f'COMP_WORDS=(substyle {given}); COMP_CWORD={len(words)}; _substyle; echo "${{COMPREPLY[@]}}"'
    found = subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True, check=True, cwd="/")
    return set(found.stdout.split())
