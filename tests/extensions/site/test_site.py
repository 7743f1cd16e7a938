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
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image
from tests.conftest import the_json
from tests.engine.report.html_page import Page
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
from substyle.errors import SubstyleError


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


def links(page: Page) -> Iterator[str | None]:
    for _, attributes in page.seen:
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
        for link in links(page):
            target, _, anchor = link.partition("#")
            if target == "data:,":
                continue
            path = (built / name).parent / target if target else built / name
            assert path.resolve().is_relative_to(built.resolve()), link
            assert path.is_file(), (name, link)
            assert not anchor or f'id="{anchor}"' in path.read_text(), (name, link)
        assert not page.tags("iframe")
        assert all("src" not in script for script in page.tags("script"))


def test_the_policy_allows_the_one_script_and_no_other(built: Path) -> None:
    for path in built.rglob("*.html"):
        text = path.read_text()
        (policy,) = (m["content"] for m in Page(text).tags("meta") if m.get("http-equiv") == "Content-Security-Policy")
        scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
        digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
        assert re.findall(r"script-src '(.*?)'", policy) == [f"sha256-{digest}" for digest in digests]
        assert len(scripts) == path.name.startswith("index") * (path.parent == built)
        assert policy.startswith("default-src 'none'; ")


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
    text = pages(tmp_path / "out")["index.html"].text
    for reason in ("another seed", "another canvas", "another suite or other definitions", "other photographs"):
        assert re.search(rf"Not compared with table \d: {reason}\.", text), reason
    assert "not recorded: these rows of one study are compared with each other alone" in " ".join(text.split())


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
@pytest.mark.parametrize("suite", ["/home/me/suite.toml", "jpeg,python:os:system"])
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
        assert not page.tags("img"), name
        assert "onerror" not in [attribute for _, own in page.seen for attribute in own]
        assert len(page.tags("script")) == (name == "index.html")
    assert HOSTILE in pages(tmp_path / "out")["index.html"].text.replace("\n", "")


def test_rows_are_ranked_and_have_a_cell_for_each_transformation(tmp_path: Path) -> None:
    made = results()
    low, high = [name for name, own in made["backbones"].items() if not own.get("control")][:2]
    for name, value in ((low, 0.25), (high, 0.75)):
        probe = made["backbones"][name]["transformation"]["linear"]
        probe["accuracy"]["value"] = value
        probe["by_transformation"] = {each["name"]: value for each in made["transformations"]}
    write_site([write_run(tmp_path / "run", made)], tmp_path / "out")
    index = (tmp_path / "out" / "index.html").read_text()
    by_name = {re.sub("<.*?>", "", row).split("</a>")[0]: row for row in re.findall("<tr data-.*?</tr>", index, re.S)}
    rows = [next(row for text, row in by_name.items() if text.startswith(name)) for name in (high, low)]
    assert index.index(rows[0]) < index.index(rows[1])
    for row, shown_value in zip(rows, ("75.0", "25.0"), strict=True):
        expected = [
            f"{each['name']} {shown_value}" + ", held out" * (each["role"] == "held_out")
            for each in made["transformations"]
        ]
        assert re.findall("<title>(.*?)</title>", row) == expected


def test_a_variant_stands_beside_its_original(built: Path) -> None:
    (page,) = (path for path in built.glob("transformations/*.html") if path.name.startswith("jpeg"))
    original, variant = Page(page.read_text()).tags("img")[:2]
    assert original["src"] != variant["src"]
    (page,) = (path for path in built.glob("transformations/*.html") if path.name.startswith("identity"))
    assert [image["src"] for image in Page(page.read_text()).tags("img")] == [original["src"]]


def test_what_is_not_recorded_is_said_once(tmp_path: Path) -> None:
    add_rows([foreign(own_row(), backbone={"objective": None, "licence": None, "data": None})], tmp_path / "rows")
    write_site([tmp_path / "rows"], tmp_path / "out")
    (row,) = (path.read_text() for path in (tmp_path / "out" / "rows").glob("*.html"))
    assert row.count("Not recorded: Objective, Pretraining data, Licence") == 1
    for path in (tmp_path / "out").rglob("*.html"):
        assert not re.search("<(td|th|dd|small)[^>]*>[^<]*not recorded", path.read_text()), path


def test_photographs_stay_out_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = shown(tmp_path / "run"), tmp_path / "out"
    assert main(["share", "site", str(run), "--out", str(out), "--without-photographs", "--json"]) == 0
    assert the_json(capsys)["rows"] == len(NAMES)
    assert not list(out.rglob("*.jpg"))
    assert not any(page.tags("img") for page in pages(out).values())
    assert "cat.jpg" not in "".join(path.read_text() for path in out.rglob("*.html"))
    assert main(["share", "site", str(run), "--out", str(out)]) == 0  # replaces the site
    assert len(list(out.rglob("*.jpg"))) == 3


@pytest.mark.slow
def test_long_pages_lose_tables_and_long_boards_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", results())
    monkeypatch.setattr(made_by, "MAX_PAGE", 50_000)
    monkeypatch.setattr(made_by, "_ROWS", 2)
    write_site([run], tmp_path / "out")
    found = pages(tmp_path / "out")
    assert {"index.html", "index-2.html"} <= found.keys()
    assert max(path.stat().st_size for path in (tmp_path / "out").rglob("*.html")) <= 50_000
    assert any("Left out, since pages have at most 2 MB" in page.text for page in found.values())
    shown_rows = {link for name in ("index.html", "index-2.html") for link in links(found[name]) if "rows/" in link}
    assert len(shown_rows) == len(NAMES)
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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
