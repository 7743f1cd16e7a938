"""Studies of the package, `--set` and `--quick`, which count as if the study file said it, and completion."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import setting, the_json

from substyle.engine.cli import main
from substyle.engine.commands import study as commands
from substyle.engine.commands.arguments import parser
from substyle.engine.commands.options import changes
from substyle.engine.commands.study import study_asked
from substyle.engine.study.file import STUDIES, find_study, load_study
from substyle.errors import ConfigError

FILE = 'name = "s"\nbackbones = ["control:pixels"]\n[probes]\nmlp_steps = 20\nwidths = [8]\n'


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "study.toml"
    path.parent.mkdir()
    path.write_text(FILE)
    return path


def asked(*words: str) -> dict[str, Any]:
    return changes(parser().parse_args(["run", "s.toml", *words]))


@pytest.mark.parametrize("text", ["probes.mlp_steps", "=3", "probes.=3", ".seed=3", ""])
def test_what_names_no_field_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="FIELD=VALUE") as caught:
        asked("--set", text)
    assert caught.value.field == "--set"


def test_they_stand_in_place_of_those_of_the_file(study: Path) -> None:
    given = {
        "probes.mlp_steps": 300,
        "seed": 5,
        "shift.others": "photos",
        "splits": {"train": 0.4, "val": 0.3, "test": 0.3},
    }
    changed = load_study(study, changes=given)
    study.write_text(
        FILE.replace("mlp_steps = 20", "mlp_steps = 300").replace("[probes]", "seed = 5\n[probes]")
        + '[shift]\nothers = "photos"\n[splits]\ntrain = 0.4\nval = 0.3\ntest = 0.3\n'
    )
    assert changed == load_study(study)
    assert changed.probes.seed == 5
    assert changed.shift == {"others": study.parent / "photos"}
    assert asked(*setting("executor.retries=1", "executor.retries=3")) == {"executor.retries": 3}
    assert asked("--device", "cuda", *setting("device=cpu")) == {"device": "cpu"}


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("probes.mlp_steps", 0, "probes.mlp_steps"),
        ("probes.mlp_steps", "many", "probes.mlp_steps"),
        ("probes.mlp_stepz", 3, "probes.mlp_stepz"),
        ("nothing", 3, "nothing"),
        ("name.first", "s", "name.first"),
        ("backbones.0.precision", "fp32", "backbones.0.precision"),
        ("stages.mine", 3, "stages"),
    ],
)
def test_errors_are_those_of_the_file(study: Path, field: str, value: object, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(study, changes={field: value})
    assert caught.value.field == named


@pytest.mark.parametrize("change", ["plugins=['p.py']", "backbones=['python:p:network']"])
@pytest.mark.parametrize("photographs", [False, True])
def test_code_needs_permission(
    study: Path, change: str, photographs: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SUBSTYLE_ALLOW_PLUGINS", raising=False)
    monkeypatch.chdir(study.parent)
    ran = study.parent / "ran"
    (study.parent / "p.py").write_text(f"open({str(ran)!r}, 'w')\n")
    (study.parent / "photos").mkdir()
    words = ["photos", "--backbone", "control:pixels"] if photographs else ["study.toml"]
    assert main(["run", *words, "--set", change, "--out", "out", "--json"]) == 2
    assert the_json(capsys)["error"]["field"] in ("plugins", "backbones", "--set")
    assert not ran.exists()
    if change.startswith("plugins"):
        assert (
            main(["run", *words, "--set", change, "--out", "out", "--json", "--allow-plugins"]) != 0
        )  # no photographs
        assert ran.exists()


def test_what_a_command_does_not_read_is_refused(two_classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = str(two_classes)
    for words in (
        ["embed", images, "--store", "s.zarr", "--backbone", "control:pixels", "--set", "probes.seed=1"],
        ["embed", images, "--store", "s.zarr", "--backbone", "control:pixels", "--set", "plugins=['p.py']"],
        ["variants", images, "--out", "v", "--set", "embed.batch=2"],
        ["predict", "p.safetensors", images, "--set", "limit=2"],
    ):
        assert main([*words, "--json"]) == 2
        assert the_json(capsys)["error"]["field"] == "--set"


def test_quick_takes_what_is_cheaper_in_the_demo(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('name = "s"\nbackbones = ["control:pixels"]\n[probes]\nredraws = 0\nresamples = 9\n')
    parsed = parser().parse_args(["run", str(path), "--quick", *setting("probes.mlp_resamples=3")])
    study, demo = study_asked(parsed), load_study("demo")
    assert (study.limit, study.probes.rotate) == (demo.limit, demo.probes.rotate)
    assert (study.probes.redraws, study.probes.resamples) == (0, demo.probes.resamples)
    assert (study.probes.widths, study.probes.mlp_resamples) == (demo.probes.widths, 3)


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
    monkeypatch.setattr(commands, "run_study", lambda *given, **options: ran.append((*given, options)))
    monkeypatch.setattr(commands, "_show", lambda *given: {})
    commands.run(parser().parse_args(["run", name, "--packaged"]))
    ((asked, out, options),) = ran
    assert (asked.name, out, options["images"]) == (name, Path("runs") / name, Path("runs/photographs"))
    assert made == [Path("runs/photographs")]
    # they are crops, of which those of one picture are not independent
    assert asked.resample_by == "folder"


@pytest.mark.parametrize("words", [["demo", "--images", "x"], ["photographs-of-mine", "--backbone", "b"]])
def test_packaged_photographs_are_those_of_a_study(words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        commands.run(parser().parse_args(["run", *words, "--packaged"]))
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
