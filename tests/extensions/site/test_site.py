"""The pages of a site: what they show, that they show it safely, and that they need nothing but themselves."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image
from tests.conftest import slow_after, the_json
from tests.engine.report.real import BACKBONE, NAMES
from tests.extensions.site.test_directory import recorded, results, write_run

from substyle.engine.cli import main
from substyle.engine.extensions.site import site as made_by
from substyle.engine.extensions.site.directory import add_rows
from substyle.engine.extensions.site.row import Row, rows_of
from substyle.engine.extensions.site.site import _Writer, write_site
from substyle.engine.extensions.site.study_file import study_file
from substyle.engine.stages import stamp
from substyle.engine.stages.stamp import Stamp
from substyle.engine.store.layout import slug
from substyle.errors import ConfigError, SubstyleError


def shown(folder: Path, **changes: Any) -> Path:  # noqa: ANN401
    """A run with a gallery, mistakes and a probe."""
    made = results(**changes)
    made["identity"] |= {"store": "uuid"}
    mistake = {"key": "cat.jpg", "transformation": "jpeg", "truth": "jpeg", "predicted": "pixelate", "confidence": 0.9}
    part = {"head": "linear", "scored": 9, "wrong": 1, "rows": [mistake | {"picture": "a/0.png"}]}
    made["backbones"][BACKBONE]["mistakes"] = {"transformation": part}
    probes = f"probes/{slug(BACKBONE)}"
    made["stamps"] = {probes: "0" * 16}
    made["settings"] = {"probes": {"Cs": [0.1], "passes": 9, "unknown": 1}, "similarity": {"seed": 3}}
    run = write_run(folder, made)
    for number, name in enumerate(("gallery/0/identity.png", "gallery/0/jpeg.png", "mistakes/a/0.png")):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (90 * number, 20, 20)).save(run / name)
    (run / probes).mkdir(parents=True)
    (run / probes / "transformation-linear.safetensors").write_bytes(b"a probe")
    for name, store in (("gallery", "uuid"), (probes, "uuid")):
        stamp.finish(run / name, Stamp(store, "", {}, "", {}, ""), 0.0)
    return run


class Page(HTMLParser):
    """Elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def links(self) -> Iterator[str]:
        for _, attributes in self.elements:
            yield from (attributes[name] for name in ("href", "src") if name in attributes)


def pages(out: Path) -> dict[str, Page]:
    return {path.relative_to(out).as_posix(): Page(path.read_text()) for path in out.rglob("*.html")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of a run with photographs, and of a directory with rows of other photographs."""
    root = tmp_path_factory.mktemp("site")
    other = results(seed=7)
    other["identity"]["photographs"] = "f" * 16
    add_rows(rows_of(other), root / "rows")
    write_site([shown(root / "run"), root / "rows"], root / "out")
    return root / "out"


def test_links_resolve_and_nothing_comes_from_elsewhere(built: Path) -> None:
    for name, page in pages(built).items():
        for link in page.links():
            target, _, anchor = link.partition("#")
            if target == "data:,":
                continue
            path = (built / name).parent / target if target else built / name
            assert path.resolve().is_relative_to(built.resolve()), link
            assert path.is_file(), (name, link)
            assert not anchor or f'id="{anchor}"' in path.read_text(), (name, link)
        assert not page.of("iframe")
        assert all("src" not in script for script in page.of("script"))


def test_pages_are_small_and_say_what_they_are(built: Path) -> None:
    found = pages(built)
    assert {"index.html", "photographs.html", "backbones/index.html", "transformations/index.html"} < found.keys()
    for name, page in found.items():
        assert (built / name).stat().st_size <= made_by.MAX_PAGE
        assert page.of("html")[0]["lang"] == "en"
        assert [len(page.of(tag)) for tag in ("title", "h1", "main", "nav")] == [1, 1, 1, 1]
        assert page.of("a")[0]["href"] == "#main"  # the first stop of the keyboard
        assert all(image["alt"] for image in page.of("img"))
        for region in [each for each in page.of("div") if each.get("class") == "scroll"]:
            assert (region["tabindex"], region["role"]) == ("0", "region")
            assert region["aria-label"]
        assert not [attribute for _, own in page.elements for attribute in own if attribute.startswith("on")]


def test_the_policy_allows_the_one_script_and_no_other(built: Path) -> None:
    for path in built.rglob("*.html"):
        text = path.read_text()
        (policy,) = (m["content"] for m in Page(text).of("meta") if m.get("http-equiv") == "Content-Security-Policy")
        scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
        digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
        assert re.findall(r"script-src '(.*?)'", policy) == [f"sha256-{digest}" for digest in digests]
        assert len(scripts) == path.name.startswith("index") * (path.parent == built)
        assert policy.startswith("default-src 'none'; ")


def test_the_leaderboard_has_scores_with_intervals_and_links_to_rows(built: Path) -> None:
    page = pages(built)["index.html"]
    row = next(row for row in rows_of(results()) if row.backbone.name == BACKBONE)
    score = next(each for each in row.scores if each.key == "held_out_linear")
    text = "".join(page.text)
    assert score.ci95 is not None
    low, high = (f"{100 * end:.1f}" for end in score.ci95)
    assert f"{100 * score.value:.1f}{low}–{high}" in text
    rows = [link for link in page.links() if link.startswith("rows/")]
    assert len(set(rows)) == 2 * len(NAMES)
    form = next(own for own in page.of("form"))
    assert form["id"] == "filters"
    asked = {own["name"] for tag in ("select", "input") for own in page.of(tag)}
    assert asked == {"question", "suite", "data", "objective", "family", "name", "from", "to"}
    keys = [own["data-key"] for own in page.of("th") if "data-key" in own]
    assert {"transformation_linear", "held_out_linear", "original_linear", "transformed_linear"} < set(keys)


def test_the_page_of_a_row_has_command_study_probe_and_stamp(built: Path) -> None:
    rows = {name: page for name, page in pages(built).items() if name.startswith("rows/")}
    name, page = next((name, page) for name, page in rows.items() if "a probe" in _probe(page, built))
    mark = Path(name).stem
    text = "".join(page.text)
    assert f"substyle run {mark}.toml --images PHOTOGRAPHS" in text
    assert mark in text
    assert json.loads((built / "rows" / f"{mark}.json").read_text())["backbone"]["name"] == BACKBONE
    study = tomllib.loads((built / "studies" / f"{mark}.toml").read_text())
    assert (study["backbones"], study["probes"]) == ([BACKBONE], {"Cs": [0.1], "expert": {"passes": 9}})


def test_rows_are_headed_by_words(built: Path) -> None:
    for name, page in pages(built).items():
        assert not [text for text in page.text if text.startswith(("(", "["))], name


def _probe(page: Page, built: Path) -> str:
    return "".join((built / "rows" / link).read_text() for link in page.links() if link.endswith(".safetensors"))


def test_what_transformations_show_to_whom(built: Path) -> None:
    (name,) = (name for name in pages(built) if re.fullmatch(r"transformations/jpeg-\w+\.html", name))
    page = pages(built)[name]
    assert len(page.of("img")) == 1
    own = results()["backbones"][BACKBONE]["transformation"]["linear"]["by_transformation"]["jpeg"]
    assert f"{100 * own:.1f}" in "".join(page.text)


def test_severities_are_on_the_page_of_their_transformation(tmp_path: Path) -> None:
    made = results()
    curve = {"severities": [1, 3], "accuracy": [{"value": 0.4321}, {"value": 0.8, "low": 0.7, "high": 0.9}]}
    made["backbones"][BACKBONE]["transformation"]["linear"]["by_severity"] = {"jpeg": curve}
    write_site([write_run(tmp_path / "run", made)], tmp_path / "out")
    (page,) = (page for name, page in pages(tmp_path / "out").items() if name.startswith("transformations/jpeg-"))
    assert {"Severity", "43.2"} <= set(page.text)


def test_rows_that_must_not_be_compared_stand_apart_and_say_why(tmp_path: Path) -> None:
    own = {"backbones": {BACKBONE: results()["backbones"][BACKBONE]}}
    runs = [write_run(tmp_path / "first", results(**own))]
    for name, change in (("seed", {"seed": 1}), ("canvas", {"canvas": 64}), ("suite", {}), ("photographs", {})):
        made = results(**own, **change)
        if name == "suite":
            made["transformations"][2]["parameters"] = [{"name": "sigma"}]
        if name == "photographs":
            made["identity"]["photographs"] = "e" * 16
        runs.append(write_run(tmp_path / name, made))
    unknown = results(identity=None, **own)
    runs.append(write_run(tmp_path / "unknown", unknown))
    assert write_site(runs, tmp_path / "out").tables == 6
    text = "".join(pages(tmp_path / "out")["index.html"].text)
    for reason in ("another seed", "another canvas", "another suite or other definitions", "other photographs"):
        assert re.search(rf"Not compared with table \d: {reason}\.", text), reason
    assert "not recorded: these rows of one study are compared with each other alone" in " ".join(text.split())


def test_other_settings_are_named(tmp_path: Path) -> None:
    first, second = results(settings={"probes": {"seed": 0, "Cs": [1]}}), results(settings={"probes": {"seed": 0}})
    runs = [write_run(tmp_path / "a", first), write_run(tmp_path / "b", second)]
    assert write_site(runs, tmp_path / "out").tables == 1
    assert "Settings of probes differ: Cs." in "".join(pages(tmp_path / "out")["index.html"].text)


def foreign(row: Row, **changes: Any) -> Row:  # noqa: ANN401
    """A row as somebody else may write it: with a valid checksum."""

    def changed(content: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        merged = {
            name: changed(content[name], new) if isinstance(new, dict) and content.get(name) else new
            for name, new in own.items()
        }
        return content | merged

    made = Row.model_validate(changed(json.loads(row.text()), changes))
    return made.model_copy(update={"checksum": made.sum()})


@cache
def own_row() -> Row:
    return next(row for row in rows_of(results()) if row.backbone.name == BACKBONE)


DANGEROUS = {
    "executor": {"kind": "ray", "address": "example.org:10001"},
    "track": {"to": "wandb"},
    "embed": {"device": "cuda"},
    "source": {"names": "/home/me/names.txt"},
    "shift": {"folders": {"a": "/home/me/private"}},
    "domains": {"a": "/home/me/private"},
    "labels": {"of": {"a": "file:/home/me/list.csv"}},
    "attack": {"surrogate": "onnx:/home/me/secret.onnx", "backbones": ["onnx:/home/me/secret.onnx"], "steps": 3},
    "x\n[executor]\n": {"kind": "ray"},
}


@pytest.mark.parametrize("name", ["onnx:/home/me/x.onnx", "open_clip:ViT-B-32//home/me/x.pt", "python:os:system",
                                  "transformers:/home/me", "timm:local-dir:/home/me", "adapt:../x.safetensors",
                                  "open_clip:ViT-B-32/x.safetensors", "timm:hf-hub:../me"])  # fmt: skip
@pytest.mark.parametrize("suite", ["/home/me/suite.toml", "suite.toml", "python.os.system", "jpeg,python:os:system"])
def test_study_files_of_others_name_no_file_address_or_code(name: str, suite: str) -> None:
    study = study_file(
        foreign(own_row(), backbone={"name": name}, suite={"name": suite}, study={"settings": DANGEROUS})
    )
    found = tomllib.loads(study)
    plain = {"name", "seed", "canvas", "resample_by", "crop_pct", "orientation", "style_precision", "attack"}
    assert found.keys() <= plain
    assert found["attack"] == {"steps": 3}
    first = study.partition("\n")[0]
    for missing in ("backbones", "suite", "[executor]", "[track]", "[embed]", "[source]", "[shift]", "[domains]",
                    "[labels]", "attack.backbones"):  # fmt: skip
        assert missing in first


@pytest.mark.parametrize("name", ["mae:base@layer=0..11", "timm:vit_base_patch16_224.mae", "control:random:resnet18",
                                  "open_clip:ViT-B-32/laion2b_s34b_b79k@head=none", "timm:hf-hub:timm/resnet18.a1_in1k",
                                  "package:clip_vit_b16", "mae:base@layer=3+11"])  # fmt: skip
def test_names_that_are_no_files_are_part_of_study_files(name: str) -> None:
    settings = {"probes": {"heads": ["linear"]}, "analysis": {"ks": ["onnx:/home/me/x.onnx"]}}
    row = foreign(
        own_row(), backbone={"name": name}, suite={"name": "a+b@1..5"}, study={"settings": settings}, tables=[]
    )
    study = tomllib.loads(study_file(row))
    assert (study["backbones"], study["suite"], study["probes"]) == ([name], "a+b@1..5", {"heads": ["linear"]})
    assert "analysis" not in study  # ill-typed


def test_study_files_of_others_are_to_be_read_first(tmp_path: Path) -> None:
    add_rows([foreign(own_row(), study={"settings": {"probes": {}}})], tmp_path / "rows")
    run = write_run(tmp_path / "run", results(settings={"probes": {"seed": 0}}, seed=9))
    write_site([run, tmp_path / "rows"], tmp_path / "out")
    texts = ["".join(page.text) for name, page in pages(tmp_path / "out").items() if name.startswith("rows/")]
    assert sum("read the file before you run it" in text for text in texts) == 1
    assert all("Not in this file: photographs" in text for text in texts)


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}'


def test_names_are_escaped(tmp_path: Path) -> None:
    made = results(name=HOSTILE, suite=HOSTILE, note=HOSTILE, created=HOSTILE, settings={HOSTILE: {HOSTILE: HOSTILE}})
    made["identity"]["sources"] = HOSTILE
    made["backbones"] = {HOSTILE: made["backbones"][BACKBONE] | {"label": f"{HOSTILE}!"}}
    made["backbones"][HOSTILE]["spec"] |= {"objective": HOSTILE, "licence": HOSTILE}
    made["transformations"][1] |= {"name": HOSTILE, "kind": HOSTILE}
    made["backbones"][HOSTILE]["transformation"]["linear"]["by_transformation"][HOSTILE] = 0.5
    write_site([write_run(tmp_path / "run", made)], tmp_path / "out")
    for name, page in pages(tmp_path / "out").items():
        assert not page.of("img"), name
        assert "onerror" not in [attribute for _, own in page.elements for attribute in own]
        assert len(page.of("script")) == (name == "index.html")
    assert HOSTILE in "".join(pages(tmp_path / "out")["index.html"].text).replace("\n", "")


def test_photographs_stay_out_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = shown(tmp_path / "run"), tmp_path / "out"
    assert main(["share", "site", str(run), "--out", str(out), "--without-photographs", "--json"]) == 0
    assert the_json(capsys)["rows"] == len(NAMES)
    assert not list(out.rglob("*.jpg"))
    assert not any(page.of("img") for page in pages(out).values())
    assert "cat.jpg" not in "".join(path.read_text() for path in out.rglob("*.html"))
    assert main(["share", "site", str(run), "--out", str(out)]) == 0  # replaces the site
    assert len(list(out.rglob("*.jpg"))) == 3


def test_a_gallery_of_other_photographs_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shown(tmp_path / "run")
    (run / "gallery" / "0" / "jpeg.png").write_bytes(b"edited")
    write_site([run], tmp_path / "out")
    assert "modified since it was written" in capsys.readouterr().err
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 1  # the mistake


@pytest.mark.slow
def test_long_pages_lose_tables_and_long_boards_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", results())
    monkeypatch.setattr(made_by, "MAX_PAGE", 50_000)
    monkeypatch.setattr(made_by, "_ROWS", 2)
    write_site([run], tmp_path / "out")
    found = pages(tmp_path / "out")
    assert {"index.html", "index-2.html"} <= found.keys()
    assert max(path.stat().st_size for path in (tmp_path / "out").rglob("*.html")) <= 50_000
    assert any("Left out, since pages have at most 2 MB" in "".join(page.text) for page in found.values())
    links = {link for name in ("index.html", "index-2.html") for link in found[name].links() if "rows/" in link}
    assert len(links) == len(NAMES)
    monkeypatch.setattr(made_by, "MAX_PAGE", 1_000)
    with pytest.raises(SubstyleError, match="at most 1,000"):
        write_site([run], tmp_path / "out")
    assert (tmp_path / "out" / "index.html").exists()  # the former site is kept


def test_only_files_of_a_site_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = write_run(tmp_path / "run", results()), tmp_path / "out"
    add_rows(rows_of(recorded()), tmp_path / "rows")
    mine = [out / name for name in (".git/HEAD", "CNAME", "README.md", "pictures/mine.jpg", "rows/mine.html")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (out / "link").symlink_to(run)
    write_site([run, tmp_path / "rows"], out)
    before = contents(out)
    (removed,) = {path.name for path in out.glob("rows/*.html")} & {f"{rows_of(recorded())[0].stamp}.html"}
    with monkeypatch.context() as patch:
        patch.setattr(_Writer, "_row", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            write_site([run], out)
    assert contents(out) == before
    write_site([run], out)
    assert not (out / "rows" / removed).exists()
    assert {path.read_text() for path in mine} == {"mine"}
    assert (out / "link").is_symlink()


def test_a_site_is_apart_from_its_sources_and_from_pages_of_others(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", results())
    before = contents(run)
    (tmp_path / "link").symlink_to(run)
    for out in (run, run / "site", tmp_path, tmp_path / "link" / "site"):
        with pytest.raises(ConfigError, match=r"--out.* a folder apart from"):
            write_site([run], out)
    assert contents(run) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    with pytest.raises(SubstyleError, match=r"index\.html: would be replaced, but substyle has not written it"):
        write_site([run], tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"index.html": b"mine"}
    (tmp_path / "mine" / "site.json").write_text('{"pages": []}')
    with pytest.raises(SubstyleError, match=r"site\.json: not a list of files that substyle has written"):
        write_site([run], tmp_path / "mine")
    (tmp_path / "mine" / "site.json").write_text('{"kind": "site"}')  # of a version that listed no files
    write_site([run], tmp_path / "mine")
    with pytest.raises(ConfigError, match="directory of results"):
        write_site([tmp_path / "mine"], tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_of_different_rows_of_a_stamp_the_first_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", recorded())
    add_rows(rows_of(recorded()), tmp_path / "rows")
    assert write_site([run, tmp_path / "rows"], tmp_path / "out").rows == len(NAMES)
    other = next(row for row in rows_of(recorded()) if row.backbone.name == BACKBONE)
    scores = [score.model_dump() | {"value": 0.123} for score in other.scores]
    add_rows([foreign(other, scores=scores)], tmp_path / "other")
    command = [
        "share",
        "site",
        str(tmp_path / "other"),
        str(run),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]  # runs come first
    assert main(command) == 1
    answer = the_json(capsys)
    assert answer["bad"] == {str(tmp_path / "other" / other.path): "other numbers for the same stamp"}
    assert answer["rows"] == len(NAMES)
    assert "12.3" not in (tmp_path / "out" / "rows" / f"{other.stamp}.html").read_text()


def test_a_renamed_folder_of_photographs_is_no_other_row(tmp_path: Path) -> None:
    made = recorded()
    add_rows(rows_of(made), tmp_path / "rows")
    made["identity"]["sources"] = "renamed"
    assert len(add_rows(rows_of(made), tmp_path / "rows").added) == len(NAMES)
    site = write_site([tmp_path / "rows"], tmp_path / "out")
    assert (site.rows, site.bad) == (len(NAMES), {})


QUOTES = "'" * 4000


def bogus(key: str) -> dict[str, Any]:
    score = {"key": key, "heading": QUOTES, "stage": "probes", "value": 0.5}
    return score | {"ci95": None, "n": 3, "converged": True}


COLUMN = {"name": "transformation", "heading": "", "kind": "text", "interval": False}
TOO_MUCH: dict[str, dict[str, Any]] = {
    "settings": {"study": {"settings": {"probes": {"Cs": ["'" * 600_000]}}}},
    "scores": {"scores": [bogus(f"bogus{n}") for n in range(200)]},
    "tables": {"tables": [{"section": "s", "name": f"{n}{QUOTES}", "caption": QUOTES, "columns": [COLUMN],
                           "rows": [[QUOTES]]} for n in range(70)]},
    "text": {"suite": {"transformations": [{"name": f"{n}{QUOTES}", "kind": "", "role": "", "digest": None}
                                           for n in range(200)]}},
}  # fmt: skip


@pytest.mark.parametrize("case", slow_after(1, TOO_MUCH))
def test_a_row_with_too_much_stops_no_site(case: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", results())
    change = TOO_MUCH[case] | {"backbone": {"name": "theirs", **TOO_MUCH[case].get("backbone", {})}}
    row = foreign(own_row(), **change)
    assert add_rows([row], tmp_path / "rows").refused == {}
    site = write_site([run, tmp_path / "rows"], tmp_path / "out")
    bad = {str(tmp_path / "rows" / row.path): "too much text for a page"}
    assert (site.rows, site.bad) == ((len(NAMES), bad) if case == "text" else (len(NAMES) + 1, {}))
    assert max(path.stat().st_size for path in (tmp_path / "out").rglob("*.html")) <= made_by.MAX_PAGE
    assert own_row().scores[0].heading in (tmp_path / "out" / "index.html").read_text()


def test_many_differing_settings_stop_no_site(tmp_path: Path) -> None:
    for number in range(2):
        settings = {f"{n}{QUOTES}": {f"{m}{QUOTES}": number for m in range(9)} for n in range(20)}
        row = foreign(own_row(), backbone={"name": f"theirs{number}"}, study={"settings": settings}, tables=[])
        add_rows([row], tmp_path / "rows")
    assert write_site([tmp_path / "rows"], tmp_path / "out").rows == 2
    assert "Settings of 0'" in "".join(pages(tmp_path / "out")["index.html"].text)


@pytest.mark.slow
def test_many_rows_with_much_text_take_more_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", results())
    row, changed = own_row(), {"data": {"resampled_by": QUOTES}, "tables": []}
    study = {"name": QUOTES, "settings": None}
    rows = [foreign(row, backbone={"objective": QUOTES}, study=study | {"seed": n}, **changed) for n in range(40)]
    add_rows(rows, tmp_path / "rows")
    monkeypatch.setattr(made_by, "MAX_PAGE", 150_000)
    site = write_site([run, tmp_path / "rows"], tmp_path / "out")
    assert (site.rows, site.bad) == (40 + len(NAMES), {})
    found = pages(tmp_path / "out")
    assert "index-2.html" in found
    links = {link for name, page in found.items() if name.startswith("index") for link in page.links()}
    assert len([link for link in links if link.startswith("rows/")]) == site.rows
    (own,) = (page for name, page in found.items() if name.startswith(f"backbones/{BACKBONE.replace(':', '_')}"))
    assert re.search(r"The first \d+ of 41 are shown", "".join(own.text))


def test_columns_are_those_of_ones_own_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", results(backbones={BACKBONE: results()["backbones"][BACKBONE]}))
    row = own_row()
    scores = [score.model_dump() | {"heading": f"theirs {score.key}"} for score in row.scores]
    tables = [table.model_dump() | {"caption": "theirs"} for table in row.tables]
    backbone, more = {"name": "zzz", "digest": "f" * 16}, [bogus(f"bogus{n}") for n in range(40)]
    add_rows([foreign(row, backbone=backbone, scores=more + scores, tables=tables)], tmp_path / "rows")
    site = write_site([tmp_path / "rows", run], tmp_path / "out")
    assert (site.tables, site.rows) == (1, 2)
    found = pages(tmp_path / "out")
    keys = [own["data-key"] for own in found["index.html"].of("th") if "data-key" in own]
    assert {score.key for score in row.scores} <= set(keys)
    for name in ("index.html", *(name for name in found if name.startswith("transformations/"))):
        assert "theirs" not in "".join(found[name].text), name


def test_tables_of_most_photographs_come_first(tmp_path: Path) -> None:
    few, many = results(images=100), results(images=900)
    many["identity"] = {"sources": "many", "photographs": "e" * 16}
    many["backbones"] = {BACKBONE: many["backbones"][BACKBONE]}  # fewer rows
    runs = [write_run(tmp_path / name, made) for name, made in (("few", few), ("many", many))]
    write_site(runs, tmp_path / "out")
    headings = re.findall(r"<h2>(Table \d[^<]*)", (tmp_path / "out" / "index.html").read_text())
    assert [re.sub(r"\D+", " ", heading).split()[:2] for heading in headings] == [["1", "900"], ["2", "100"]]


def test_dates_are_days(built: Path) -> None:
    for name, page in pages(built).items():
        assert not re.search(r"\d{4}-\d\d-\d\dT", "".join(page.text)), name


def test_one_is_no_plural_and_a_folder_without_results_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = write_run(tmp_path / "run", results()), str(tmp_path / "out")
    assert main(["share", "site", str(run), "--out", out]) == 0
    assert f" {len(NAMES)} rows in 1 table, " in capsys.readouterr().out
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ConfigError, match=r"a run with results\.json, or a directory of results with results/"):
        write_site([tmp_path / "unfinished"], tmp_path / "out")


def test_study_files_have_limit_and_splits_if_they_are_recorded() -> None:
    splits = {"train": 0.5, "val": 0.25, "test": 0.25}
    (row, *_) = rows_of(results(settings={"probes": {}}, study={"limit": 500, "splits": splits}))
    study = tomllib.loads(study_file(row))
    assert (study["limit"], study["splits"]) == (500, splits)
    assert "limit" not in study_file(row).partition("\n")[0]
    assert "limit, [splits]" in study_file(rows_of(results(settings={"probes": {}}))[0]).partition("\n")[0]


def test_files_that_are_no_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_rows(rows_of(results()), tmp_path / "rows")
    bad = next((tmp_path / "rows").rglob("*.json"))
    bad.write_text("{}")
    assert main(["share", "site", str(tmp_path / "rows"), "--out", str(tmp_path / "out"), "--json"]) == 1
    answer = the_json(capsys)
    assert (list(answer["bad"]), answer["rows"]) == ([str(bad)], len(NAMES) - 1)


def test_without_a_valid_row_each_bad_file_is_named(tmp_path: Path) -> None:
    add_rows(rows_of(results()), tmp_path / "rows")
    for path in (tmp_path / "rows").rglob("*.json"):
        path.write_text("{}")
    with pytest.raises(ConfigError, match=r"valid rows \(left out: .*\.json: .*\)"):
        write_site([tmp_path / "rows"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
