from __future__ import annotations

import sys
from http.client import HTTPConnection
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.staged import probe

import substyle
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.stages.tables import tables
from substyle.engine.study import explore as module
from substyle.engine.study.explore import explore
from substyle.errors import ConfigError, MissingError

NAMES = ["identity", "gaussian_blur", "icon_overlay"]


@pytest.fixture(scope="module")
def store(two_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> substyle.EmbeddingStore:
    path = tmp_path_factory.mktemp("embedded") / "s.zarr"
    return substyle.embed(two_classes, path, ["control:pixels"], transformations=NAMES, canvas=64)


@pytest.fixture
def atlas(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], object]]:
    """Stand-ins for embedding-atlas and umap, which need not be installed: commands with the rows they would show."""
    calls: list[tuple[list[str], object]] = []

    def run(command: list[str], **_: object) -> CompletedProcess[bytes]:
        assert command[1] == "-P"  # nothing is imported from the current folder
        calls.append((command, pq.read_table(command[4])))
        page = Path(command[command.index("--export-application") + 1])
        page.mkdir()
        (page / "index.html").touch()
        return CompletedProcess(command, 0)

    umap = ModuleType("umap")
    umap.UMAP = lambda **_: type("UMAP", (), {"fit_transform": lambda self, x_RD: x_RD[:, :2]})()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", umap)
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module, "_serve", lambda page: None)
    return calls


def test_rows_of_the_map(store: substyle.EmbeddingStore, atlas: list[tuple[list[str], object]], tmp_path: Path) -> None:
    answer = explore(store, "control:pixels", export=tmp_path / "page", photographs=10)
    assert (answer["photographs"], answer["points"], answer["thumbnails"]) == (10, 30, True)
    assert (tmp_path / "page" / "index.html").is_file()
    ((command, rows),) = atlas
    assert {"--image", "--neighbors", "--export-application"} <= set(command)
    table = substyle.load_table(store, "control:pixels")
    found = rows.to_pylist()  # type: ignore[attr-defined]
    x_RD = np.stack([table.x_TND[NAMES.index(r["transformation"]), table.keys.index(r["key"])] for r in found])
    x_RD = x_RD.astype(np.float64)
    x_RD /= np.linalg.norm(x_RD, axis=1, keepdims=True)
    near = 1 - x_RD @ x_RD.T
    np.fill_diagonal(near, np.inf)
    for r, row in enumerate(found):
        assert row["neighbors"]["ids"][0] == near[r].argmin()
        np.testing.assert_allclose(row["neighbors"]["distances"], np.sort(near[r])[:10], atol=1e-5)
        assert row["class"] == row["key"].split("/")[0]
        assert row["variant"]["bytes"][:2] == b"\xff\xd8"


def test_predictions_of_saved_probes(
    two_classes: Path, atlas: list[tuple[list[str], object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = substyle.embed(two_classes, tmp_path / "s.zarr", ["control:pixels"], transformations=NAMES, canvas=64)
    config = ProbeConfig(
        tasks=("transformation", "class"), heads=("linear",), Cs=(1e-2,), resamples=0, redraws=0,
        rotate="none", bootstrap=100, expert=ExpertConfig(passes=50, doublings=1, equal_width=0))  # fmt: skip
    outcome = probe(store, tmp_path, config)["control:pixels"]
    explore(store, "control:pixels", results=tmp_path)
    probe(store, tmp_path, config, tables(store, transformations=NAMES[:2]))
    (tmp_path / "probes" / store.backbone("control:pixels").slug / "scores.npz").write_bytes(b"")
    explore(store, "control:pixels", results=tmp_path)
    (_, rows), (_, without) = atlas
    assert "scores.npz: modified" in capsys.readouterr().err
    assert not any("confidence" in name for name in without.column_names)  # type: ignore[attr-defined]
    seen = 0
    for row in rows.to_pylist():  # type: ignore[attr-defined]
        t = outcome.transformations.index(row["transformation"])
        for task, labels in (("transformation", 3), ("class", 2)):
            assert 1 / labels <= row[f"{task}_linear_confidence"] <= 1
            if row["split"] == "test":  # what `probe` scored
                score = outcome.scores[f"{task}/linear"][t, outcome.keys.index(row["key"])]
                expected = None if np.isnan(score) else bool(score)
                assert row[f"{task}_linear_correct"] is expected
                seen += 1
    assert seen == 2 * len(NAMES) * len(outcome.keys)


def test_the_map_is_served_to_those_who_know_its_address(tmp_path: Path) -> None:
    """Neither other users of the machine nor pages of other hosts (by rebinding a name) can read it."""
    (tmp_path / "index.html").write_text("the map")
    with module.serving(tmp_path) as address:
        host, _, secret = address.removeprefix("http://").rstrip("/").partition("/")

        def get(path: str, host_header: str = host) -> tuple[int, bytes]:
            connection = HTTPConnection(host)
            connection.request("GET", path, headers={"Host": host_header})
            answer = connection.getresponse()
            return answer.status, answer.read()

        assert host.startswith("127.0.0.1:")
        assert get(f"/{secret}/index.html") == (200, b"the map")
        assert get(f"/{secret}/") == (200, b"the map")
        for path, header in (
            ("/", host),
            ("/index.html", host),
            (f"/{secret[:-1]}/index.html", host),
            (f"/{secret}/index.html", "attacker.example"),
            (f"/{secret}/index.html", f"attacker.example:{host.partition(':')[2]}"),
        ):
            status, body = get(path, header)
            assert (status, b"the map" in body) == (403, False), path


def test_bad_arguments(store: substyle.EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="umap, pacmap"):
        explore(store, "control:pixels", projection="pca")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="embedding-atlas"):
        explore(store, "control:pixels")
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="a new or empty folder"):
        explore(store, "control:pixels", export=tmp_path)
