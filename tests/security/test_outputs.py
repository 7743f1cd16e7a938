"""Run folders, exports and photographs that somebody else has made: what they name stays inside."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from tests.conftest import jpeg, photograph, slow_after
from tests.engine.report.real import real_results
from tests.security.conftest import Outside

from substyle import files
from substyle.engine.config import Settings
from substyle.engine.embedding.variants import write_variants
from substyle.engine.report.figures import draw_plots
from substyle.engine.report.page import plots_of, read_gallery, write_page, write_tables
from substyle.engine.report.tables import overview
from substyle.engine.stages import stamp
from substyle.engine.stages.pictures import current_gallery
from substyle.engine.stages.results import validate_results
from substyle.engine.store.identity import RUN, PhotographsError
from substyle.engine.store.layout import EXPORT_NOTE as NOTE
from substyle.engine.store.layout import HEADER
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import open_table
from substyle.engine.study import hub, outputs
from substyle.engine.study.export import export
from substyle.engine.study.report import sections_of, write_report
from substyle.errors import ConfigError, SubstyleError
from substyle.files import UnsafeFileError
from substyle.pipelines.sources import SourceConfig

AWAY = ("../outside/x", "../../x", "/{outside}/x", "a/../../outside/x", "a//b", "./a", "", "a\\b", "a/", "..")


# --- variants ---------------------------------------------------------------------------------------------------------


def parquet(path: Path, keys: list[str]) -> Path:
    images = [{"bytes": jpeg(photograph(i)), "path": None} for i in range(len(keys))]
    pq.write_table(pa.table({"id": keys, "image": images}), path)
    return path


def test_a_key_does_not_leave_the_folder_of_variants(tmp_path: Path, outside: Outside) -> None:
    options: dict[str, Any] = {"source": SourceConfig(path_column="id"), "quiet": True}
    settings = Settings(0, 64, ("identity",))
    keys = [key.format(outside=outside.path) for key in AWAY if key]
    for key in keys:
        source = parquet(tmp_path / "x.parquet", ["good", key])
        with pytest.raises(ConfigError, match="keys that are relative paths"):
            write_variants(source, tmp_path / "out", settings, **options)
        assert not (tmp_path / "out").exists()
    source = parquet(tmp_path / "x.parquet", keys)
    assert write_variants(source, tmp_path / "tars", settings, to="webdataset", **options)["variants"] == len(keys)
    with tarfile.open(tmp_path / "tars" / "variants-00000.tar") as tar:
        assert tar.getnames() == [f"{i:09d}.{end}" for i in range(len(keys)) for end in ("png", "json")]


# --- exports ----------------------------------------------------------------------------------------------------------


def test_an_export_deletes_its_own_files_alone(foreign: Path, tmp_path: Path, outside: Outside) -> None:
    store, out = EmbeddingStore.open(foreign), tmp_path / "out"
    export(store, out, to="parquet", quiet=True)
    (out / "folder").mkdir()
    (out / "link").symlink_to(outside.secret)
    (out / "linked").symlink_to(outside.path / "folder")
    note, before = json.loads((out / NOTE).read_text()), sorted(out.rglob("*"))
    for name in (*AWAY, "linked/file", "link", "folder"):
        gone = {"digest": "x", "files": {name.format(outside=outside.path): 1}}
        (out / NOTE).write_text(json.dumps(note | {"parts": note["parts"] | {"gone": gone}}))
        with pytest.raises(ConfigError, match="damaged _substyle"):
            export(store, out, to="parquet", quiet=True)
        assert sorted(out.rglob("*")) == before, name


@pytest.mark.parametrize("to", ["parquet", "numpy"])
def test_an_export_does_not_write_through_links(foreign: Path, tmp_path: Path, outside: Outside, to: str) -> None:
    """Under names that can be foretold, as of unfinished files, and under its own."""
    store, out = EmbeddingStore.open(foreign), tmp_path / "out"
    export(store, out, to=to, quiet=True)
    note = json.loads((out / NOTE).read_text())
    (out / NOTE).write_text(json.dumps(note | {"parts": {}}))
    made = [path for path in out.rglob("*") if path.suffix in (".parquet", ".npy", ".csv")]
    for path in made:
        path.unlink()
        for name in (path.name, f".{path.name}.part", f"{path.name}.tmp"):
            path.with_name(name).symlink_to(outside.secret)
    with pytest.raises(files.UnsafeFileError, match="a symbolic link"):
        export(store, out, to=to, quiet=True)
    for path in made:
        path.unlink()
    export(store, out, to=to, quiet=True)
    assert all(files.is_regular(path) for path in made)


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reports_do_not_write_through_links(tmp_path: Path, outside: Outside) -> None:
    results = real_results()
    for folder, names in (
        ("", ("report.html", "report.html.part")),
        ("tables", [f"overview.{end}" for end in ("csv", "tex")]),
        ("figures", ["overview.pdf", "overview.png", "overview.svg"]),
    ):
        (tmp_path / "out" / folder).mkdir(exist_ok=True)
        for name in names:
            (tmp_path / "out" / folder / name).symlink_to(outside.secret)
    write_page(tmp_path / "out" / "report.html", "report.html.j2", _context(results, tmp_path) | {"plots": {}})
    write_tables([overview(validate_results(results))], tmp_path / "out" / "tables")
    draw_plots(plots_of(sections_of(validate_results(results))), tmp_path / "out" / "figures")
    assert files.is_regular(tmp_path / "out" / "report.html")


def _context(results: dict[str, Any], out: Path) -> dict[str, Any]:
    from substyle.engine.report import page
    from substyle.engine.report.data import labelled

    made = labelled(validate_results(results))
    return page._context(made, sections_of(made), None, out)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(f"subprocess.{name}", started)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "eps", "gif", "tiff", "pdf", "link", "folder link"])
def test_a_gallery_shows_pictures_of_its_folder(tmp_path: Path, outside: Outside, no_programs: None, kind: str) -> None:
    folder = tmp_path / "gallery"
    file = folder / "0" / "identity.png"
    if kind == "folder link":
        folder.mkdir()
        (tmp_path / "pictures").mkdir()
        photograph(0).save(tmp_path / "pictures" / "identity.png")
        file.parent.symlink_to(tmp_path / "pictures")
    else:
        file.parent.mkdir(parents=True)
        if kind == "link":
            file.symlink_to(outside.path / "picture.png")
        elif kind == "eps":
            Image.init()
            assert "EPS" in Image.OPEN  # else this shows nothing
            file.write_bytes(EPS)
        else:
            photograph(0).save(file, kind)
    if kind in ("png", "jpeg", "webp"):  # known by their content
        (((picture,),),) = (read_gallery(folder, ["identity"]),)
        assert picture.uri.startswith("data:image/jpeg;base64,")
        return
    with pytest.raises(SubstyleError, match=r"identity\.png: not a picture|symbolic link"):
        read_gallery(folder, ["identity"])


@pytest.mark.parametrize(
    "name", ["../outside/picture.png", "{outside}/picture.png", "a/link.png", "linked/picture.png"]
)
def test_mistakes_show_pictures_of_their_folder(tmp_path: Path, outside: Outside, name: str) -> None:
    (tmp_path / "mistakes" / "a").mkdir(parents=True)
    (tmp_path / "mistakes" / "a" / "link.png").symlink_to(outside.path / "picture.png")
    (tmp_path / "mistakes" / "linked").symlink_to(outside.path)
    results = real_results("alpha")
    row = {"key": "k", "transformation": "jpeg", "truth": "jpeg", "predicted": "swirl", "confidence": 0.9}
    row["picture"] = name.format(outside=outside.path)
    results["backbones"]["alpha"]["mistakes"] = {
        "transformation": {"head": "linear", "scored": 2, "wrong": 1, "rows": [row]}
    }
    with pytest.raises(UnsafeFileError):
        write_report(validate_results(results), tmp_path)


def test_a_gallery_holds_what_was_drawn(embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = EmbeddingStore.open(embedded)
    table = open_table(store, "control:pixels")
    folder = tmp_path / "gallery"
    (folder / "0").mkdir(parents=True)
    photograph(0).save(folder / "0" / "identity.png")
    known = store.catalog.transformations[store.backbone("control:pixels").slug]
    made = stamp.Stamp(store.uuid, "", {"identity": known["identity"].hash}, "", {"photographs": []}, "")
    stamp.finish(folder, made, 0.0)
    assert current_gallery(store, tmp_path, table) == folder
    photograph(1).save(folder / "private.png")
    assert current_gallery(store, tmp_path, table) is None
    assert "private.png: not of the gallery" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../outside/secret.json", "{outside}/secret.json", "link", "linked/file"])
def test_a_note_of_results_names_files_of_its_folder(tmp_path: Path, outside: Outside, name: str) -> None:
    folder = tmp_path / "probes"
    stamp.finish(folder, stamp.Stamp("", "", {}, "", {}, ""), 0.0)
    (folder / "link").symlink_to(outside.secret)
    (folder / "linked").symlink_to(outside.path / "folder")
    note = json.loads((folder / stamp.NOTE).read_text())
    note["files"] = {name.format(outside=outside.path): hashlib.sha256(b'{"kind": "secret"}').hexdigest()}
    (folder / stamp.NOTE).write_text(json.dumps(note | {"checksum": stamp.checksum(note)}))
    with pytest.raises(UnsafeFileError):
        stamp.note_of(folder)


@pytest.mark.parametrize("part", ["probes", "probes/a", "probes/a/probes.json", "gallery/0", "results.json", "tables"])
def test_results_contain_no_links(tmp_path: Path, outside: Outside, part: str) -> None:
    out = tmp_path / "out"
    outputs.claim(out, out / "store.zarr", "")
    (out / part).parent.mkdir(parents=True, exist_ok=True)
    (out / part).symlink_to(outside.path)
    for act in (
        lambda: outputs.claim(out, out / "store.zarr", "other"),
        lambda: outputs.require_own(out, out / "store.zarr", RUN),
        lambda: outputs.require_current(out, {}),
        lambda: outputs.start_fresh(out),
    ):
        with pytest.raises(UnsafeFileError, match="symbolic link"):
            act()


# --- uploads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_after(1, ["report.html", "figures/overview.png", "probes/a/p.safetensors"]))
@pytest.mark.parametrize("way", ["file", "folder"])
def test_a_link_is_not_uploaded(
    tmp_path: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    import huggingface_hub

    class Api:
        def __init__(self, **_: object) -> None: ...
        def create_repo(self, *_: object, **__: object) -> None: ...
        def create_commit(self, **_: object) -> None:
            raise AssertionError("uploaded")

        upload_folder = create_commit

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    run = tmp_path / "run"
    path = run / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{}")
    if name.startswith("probes"):
        stamp.finish(run / "probes" / "a", stamp.Stamp("", "", {}, "", {}, ""), 0.0)
    results = real_results() | {"stamps": {"probes/a": "0" * 16}}
    (run / "results.json").write_text(json.dumps(results | {"checksum": stamp.checksum(results)}))
    link = path if way == "file" or path.parent == run else path.parent
    shutil.copytree(link, tmp_path / "t") if link.is_dir() else shutil.copy(link, tmp_path / "t")
    shutil.rmtree(link) if link.is_dir() else link.unlink()
    link.symlink_to(tmp_path / "t")
    with pytest.raises(SubstyleError, match="symbolic link"):
        hub.push(run, "somebody/photographs")


@pytest.mark.parametrize("stage", ["probes/../../outside", "probes/", "probes//x", "/probes/x", "../outside"])
def test_results_name_stages_of_their_run(tmp_path: Path, outside: Outside, stage: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    outputs.claim(run, run / "store.zarr", "")
    results = real_results() | {"stamps": {stage: "0" * 16}}
    with pytest.raises(SubstyleError):
        outputs.require_current(run, results)


@pytest.mark.parametrize("store", ["s3://somebody/photographs.zarr", "{outside}/store.zarr"])
def test_a_store_that_only_a_marker_names_is_not_opened(
    tmp_path: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """Whoever made the folder could name any place on this machine, or any host."""
    run, asked = tmp_path / "run", []
    monkeypatch.setattr(outputs.catalog, "exists", lambda place: asked.append(str(place)))
    outputs.claim(run, tmp_path / "mine.zarr", "uuid")
    results = real_results() | {"stamps": {}}
    results |= {"checksum": stamp.checksum(results)}
    outputs.require_current(run, results)
    assert asked == [str(run / "store.zarr"), str(tmp_path / "mine.zarr")]
    asked.clear()
    marker = {"kind": "results", "store": store.format(outside=outside.path), "uuid": "uuid"}
    (run / HEADER).write_text(json.dumps(marker))
    outputs.require_current(run, results)
    assert asked == [str(run / "store.zarr")]
    asked.clear()
    with pytest.raises(PhotographsError, match="another store, and was not made here"):
        outputs.require_own(run, run / "store.zarr", RUN)
    assert asked == [str(run / "store.zarr")]


EVIL = '<img src=x onerror="alert(1)"> `a` | [x](javascript:alert(1)) \\'


def test_a_model_card_escapes_names(tmp_path: Path) -> None:
    results = real_results() | {"name": EVIL, "version": EVIL}
    results["identity"] = {"sources": EVIL}
    results["backbones"] = {f"{EVIL} {name}": each for name, each in results["backbones"].items()}
    text = ModelCard(hub.card(validate_results(results))).text
    assert "<img" not in text
    assert re.search(r"(?<!\\)\]\(", text) is None
    heads = [line for line in text.splitlines() if line.startswith("| ")]
    cells = {len([c for c in line.replace("\\\\", "").replace("\\|", "").split("|") if c]) for line in heads}
    assert len(heads) > 2
    assert len(cells) == 1  # a name adds no cell
