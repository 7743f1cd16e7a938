"""Model cards, and uploads to a hub on loopback."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from tests.engine.report.real import BACKBONE, real_results

from substyle.engine.cli import main
from substyle.engine.extensions.site.directory import rows_of_run
from substyle.engine.stages import stamp
from substyle.engine.stages.results import validate_results
from substyle.engine.study import hub
from substyle.errors import ConfigError, MissingError, SubstyleError

REPO, PROBE = "somebody/photographs", "probes/a/transformation-linear.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An output folder."""
    for name in ("report.html", "tables/overview.csv", PROBE, "probes/not-reported/x", "store.zarr/chunk"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    stamp.finish(tmp_path / "probes" / "a", stamp.Stamp("", "", {}, "", {}, ""), 0.0)
    (tmp_path / "tables" / "private.csv").write_bytes(b"not of the report")
    (tmp_path / "probes" / "a" / "private.txt").write_bytes(b"not of the report")
    results = real_results() | {"stamps": {"probes/a": "0" * 16, "analysis/a": "0" * 16}}
    (tmp_path / "results.json").write_text(json.dumps(results | {"checksum": stamp.checksum(results)}))
    return tmp_path


def test_the_card_has_all_accuracies_in_the_format_of_the_hub(run: Path) -> None:
    results = real_results()
    path = hub.write_card(run, run / "shared" / "card.md")
    loaded = ModelCard.load(path)
    assert loaded.data.library_name == "substyle"
    index = yaml.safe_load(path.read_text().split("---")[1])["model-index"]
    assert [model["name"] for model in index] == list(validate_results(results).ordered())
    found = {(each.metric_name, each.metric_value) for each in loaded.data.eval_results}
    for backbone in results["backbones"].values():
        assert ("Accuracy (Transformation, linear)", backbone["transformation"]["linear"]["accuracy"]["value"]) in found
    assert f"| {BACKBONE} | linear |" in loaded.text
    one = next(each for each in loaded.data.eval_results if each.metric_name == "Accuracy (Transformation, linear)")
    assert (one.task_type, one.metric_type, one.dataset_split) == ("image-classification", "accuracy", "test")
    first = results["backbones"][index[0]["name"]]
    for name, task, key in (
        ("Transformation, linear", "transformation", "accuracy"),
        ("Kind, held out, linear", "kind", "held_out"),
    ):
        shown = {json.dumps(each.metric_args) for each in loaded.data.eval_results if name in each.metric_name}
        own = first[task]["linear"]
        ends = [own[key]["low"], own[key]["high"]]
        assert json.dumps({"ci95": ends, "converged": own["converged"]}) in shown, name


class Hub(BaseHTTPRequestHandler):
    """Answers what the client asks to create a repository and to commit files."""

    created: dict[str, Any]
    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {}
        if self.path == "/api/repos/create":
            type(self).created = json.loads(body)
            answer = {"url": f"https://huggingface.co/{REPO}", "id": "1", "name": REPO}
        elif self.path.endswith("/preupload/main"):
            names = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            answer = {"files": names}
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitOid": "abc", "commitUrl": f"https://huggingface.co/{REPO}/commit/abc", "success": True}
        self.answer(answer)

    def do_GET(self) -> None:
        self.answer({"sha": "abc", "id": REPO, "siblings": []})

    def answer(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(Hub, "files", {}, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_report_tables_and_probes_are_uploaded_and_embeddings_stay(run: Path, endpoint: str) -> None:
    assert main(["share", "push", str(run), "--repo", REPO, "--private"]) == 0
    assert Hub.created.get("private") or Hub.created["visibility"] == "private"  # by version of the client
    rows = {row.path: row.text() for row in rows_of_run(run)}
    assert set(Hub.files) == {"README.md", "results.json", "report.html", "tables/overview.csv", PROBE, *rows}
    assert Hub.files["README.md"] == (run / "README.md").read_bytes()
    assert rows
    assert all(Hub.files[name].decode() == text for name, text in rows.items())
    with pytest.raises(ConfigError, match="--repo"):
        hub.push(run, "a/b/c")


def test_a_card_needs_results(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no results\.json"):
        hub.write_card(tmp_path)


def test_a_hub_out_of_reach_is_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SubstyleError, match="upload failed"):
        hub.push(run, REPO)
