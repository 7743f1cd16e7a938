"""The README and docs/ match the repository."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from substyle.engine.cli import main
from substyle.engine.commands.arguments import parser
from substyle.engine.config import BackboneChoice, Study
from substyle.engine.estimate.plan import plan
from substyle.engine.estimate.probes import SCORES
from substyle.engine.estimate.roofline import DEVICES, Cluster
from substyle.engine.study.file import load_study
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page: page.read_text() for page in PAGES}
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def module_at(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command in the sh blocks."""
    found = []
    for page, text in TEXT.items():
        for block in re.findall(r"```sh\n(.*?)```", text, re.S):
            lines = [part.split("#")[0].strip() for line in block.splitlines() for part in re.split("&&|[|]", line)]
            found += [(page.name, line.split()) for line in lines if line]
    return found


def test_result_table_is_generated() -> None:
    made = module_at(ROOT / "benchmarks" / "study_table.py")
    for page, text in made.pages().items():
        assert made.written(page.read_text(), text) == page.read_text()


def test_answers_are_those_of_the_kept_study() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks import answers as made
    finally:
        sys.path.remove(str(ROOT))
    assert made.written(TEXT[made.PAGE], made.answers()) == TEXT[made.PAGE]
    assert made.written(TEXT[README], made.finding(), "finding") == TEXT[README]
    backbones = made.load("generators")["backbones"]
    for figure in (made.FINDING, made.FIGURE):
        assert all(f">{made.NAMES[name]}</text>" in figure.read_text() for name in backbones)
    values = [row["transformation"]["linear"]["accuracy"]["value"] for row in backbones.values()]
    assert all(f">{100 * value:.1f}</text>" in made.FINDING.read_text() for value in values)


def test_every_dependency_of_the_core_has_a_reason() -> None:
    core = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", TEXT[ROOT / "docs" / "contributing.md"], re.M)
    assert sorted(name for name, _ in rows) == sorted(re.split("[>=]", each)[0] for each in core)
    sizes = [float(size) for _, size in rows]
    assert sizes == sorted(sizes, reverse=True)


def test_commands_parse() -> None:
    ours = [words[1:] for _, words in commands() if words[0] == "substyle"]
    assert len(ours) >= 40
    for words in ours:
        parser().parse_args(words)


def test_targets_and_modules_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)", makefile, re.M)[1].split())  # type: ignore[index]
    made = [words[1] for _, words in commands() if words[0] == "make"]
    assert {"setup", "demo", "families", "docs"} <= set(made)
    assert set(made) <= targets
    for _, words in commands():
        if words[:2] == ["python", "-m"]:
            module = ROOT / words[2].replace(".", "/")
            assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), words


@EVERY_PAGE
def test_files_named_are_there(page: Path) -> None:
    folders = "docs|studies|engine|pipelines|kernels|benchmarks|tests"
    for name in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w/.*-]*", TEXT[page]):
        assert any(ROOT.glob(name.rstrip("./"))), name


@EVERY_PAGE
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if target.startswith("https://"):
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), target
        headings = re.findall(r"^#+ (.*)", file.read_text(), re.M) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings]


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    assert "(docs/index.md)" in TEXT[README]
    assert set(re.findall(r"\(([\w-]+\.md)", TEXT[index])) == {page.name for page in PAGES[1:]} - {index.name}


def test_the_performance_table_is_that_of_the_kept_results() -> None:
    """All stored results match the schema."""
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks import performance_table as kept
    finally:
        sys.path.remove(str(ROOT))
    documents = kept.documents()
    assert {d["benchmark"] for d in documents} == set(kept.BENCHMARKS)
    assert not any(d["quick"] for d in documents)
    assert kept.page() == TEXT[kept.PAGE]
    row = r"end_to_end: 31 variants, EfficientNet-Lite0, .* \| ([\d.]+) × a plain eager script, ([\d.]+) ×"
    ((times, last),) = re.findall(row, kept.page())
    said = TEXT[kept.PAGE].replace("\n", " ")
    assert (
        f"{float(times):.0f} times as fast as a plain eager script, and {last} times as fast as one with channels_last"
        in said
    )


@pytest.mark.slow
def test_the_hours_of_imagenet_are_what_the_plan_says() -> None:
    made = plan(Study("s", (BackboneChoice("timm:vit_base_patch16_224"),)), 1_331_167, DEVICES["h100"])
    said = TEXT[ROOT / "docs" / "gpus.md"].replace("\n", " ")
    ((hours, total),) = re.findall(r"alone: ([\d.]+) hours on one H100 for embedding, of ([\d.]+) in all", said)
    assert float(hours) == pytest.approx(made.hours, rel=0.03)
    assert float(total) == pytest.approx(made.total_hours, rel=0.03)


@pytest.mark.slow
def test_the_hours_of_a_whole_study_are_what_the_plan_says() -> None:
    study = load_study(ROOT / "studies" / "imagenet31.toml")
    one, eight = (plan(study, 1_331_167, DEVICES["h100"], Cluster(n)) for n in (1, 8))
    said = TEXT[ROOT / "docs" / "gpus.md"].replace("\n", " ")
    pattern = (
        r"`imagenet31`: ([\d.]+) hours on one H100, of which ([\d.]+) embed, and ([\d.]+) on eight, "
        r"of which ([\d.]+) embed\. "
        r".*?linear probes \(([\d.]+) hours\) and the intervals of scores \(([\d.]+)\)"
    )
    (hours,) = re.findall(pattern, said)
    parts = {name: sum(p.hours for p in one.parts if p.name.startswith(name)) for name in ("linear", SCORES)}
    found = (one.total_hours, one.hours, eight.total_hours, eight.hours, *parts.values())
    assert tuple(map(float, hours)) == pytest.approx(found, abs=0.06)
    names = ("vit_base_patch16_224", "tf_efficientnet_lite0", "resnet50")
    others = {
        r"1\.6 times as fast, ([\d.]+) and ([\d.]+) hours": replace(study, embed=replace(study.embed, precision="fp8")),
        r"EfficientNet-Lite0\): ([\d.]+) and ([\d.]+) hours": replace(
            study, backbones=[BackboneChoice(f"timm:{name}") for name in names]
        ),
    }
    untrained = replace(study, backbones=[BackboneChoice("control:random:vit_base_patch16_224")])
    ((added, tenth),) = re.findall(r"would add ([\d.]+) hours; .*?, it takes ([\d.]+)\.", said)
    both = replace(study, backbones=[*study.backbones, *untrained.backbones])
    both_hours = plan(both, 1_331_167, DEVICES["h100"]).total_hours
    assert float(added) == pytest.approx(both_hours - one.total_hours, abs=0.06)
    assert float(tenth) == pytest.approx(plan(untrained, 133_117, DEVICES["h100"]).total_hours, abs=0.02)
    for pattern, other in others.items():
        (hours,) = re.findall(pattern, said)
        found = tuple(plan(other, 1_331_167, DEVICES["h100"], Cluster(n)).total_hours for n in (1, 8))
        assert tuple(map(float, hours)) == pytest.approx(found, abs=0.06)


def _unwrapped(text: str) -> list[str]:
    return re.sub(r"\n {50}", " ", text).splitlines()


def test_the_suite_is_as_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transforms"]) == 0
    printed = [line.split(maxsplit=4) for line in _unwrapped(capsys.readouterr().out)]
    page = TEXT[ROOT / "docs" / "transformations.md"]
    rows = re.findall(r"^\| (\w+) \| `(\w+)` \| (train|held_out) \| (.*?) ?\|$", page, re.M)
    assert rows == [(kind, name, role, "".join(drawn).strip()) for name, kind, role, _, *drawn in printed]


@pytest.mark.parametrize("name", ["imagenet_c", "traces16", "naturalistic30", "obfuscation22"])
def test_other_suites_are_as_the_command_prints_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transforms", "--suite", name]) == 0
    printed = {tuple(line.split()[:3]) for line in _unwrapped(capsys.readouterr().out)[1:]}
    section = re.search(rf"^## {name}\n(.*?)^## ", TEXT[ROOT / "docs" / "transformations.md"], re.M | re.S)
    assert section is not None
    prefix = {"imagenet_c": "imagenet_c_", "traces16": "traces_", "obfuscation22": "obfuscation_"}.get(name, "")
    rows = re.findall(r"^\| (\w+) \| (`.*?`) \| (`.*`)? ?\|$", section[1], re.M)
    shown = [(n, kind, role) for kind, *cells in rows for role, cell in zip(("train", "held_out"), cells, strict=True)
             for n in re.findall(r"\w+", cell)]  # fmt: skip
    named = [(n if n.startswith("style_") else prefix + n, kind, role) for n, kind, role in shown]
    assert len(named) == len(printed)
    assert set(named) == printed


def test_the_generators_of_styles48() -> None:
    page = TEXT[ROOT / "docs" / "transformations.md"]
    rows = re.findall(r"^\| `(\w+)` \| (`\w+`(?:, `\w+`){3}) \|", page, re.M)
    networks = {"multistyle", "arbitrary"}
    named = [
        (f"style_{style}" if generator in networks else f"style_{generator}_{style}", generator)
        for generator, styles in rows
        for style in re.findall(r"\w+", styles)
    ]
    assert named == [(name, base.get(name).generator) for name in suite("styles48")[1:]]
