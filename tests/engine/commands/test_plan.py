"""`plan`: its output and samples; sums by hand, and forecasts of half widths against simulated differences."""

from __future__ import annotations

import json
import math
import re
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import setting
from tests.object_server import Server

from substyle.engine import cli, config
from substyle.engine.commands import plan as commands
from substyle.engine.estimate import networks
from substyle.engine.estimate import plan as estimated
from substyle.engine.estimate.forecast import GENERATORS, HEADS, STYLE, forecasts
from substyle.engine.estimate.plan import ANALYSIS, EMBEDDING, PROBES, Plan
from substyle.engine.estimate.roofline import DEVICES, GPU, HOST, STORAGE, Cluster, Device
from substyle.engine.results.statistics import correlation_interval
from substyle.pipelines.storage import ObjectPlace
from substyle.pipelines.transforms.registry import suite


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(f'name = "s"\nbackbones = ["{VIT}", "control:pixels"]\n')
    return path


def planned(
    study: Path, capsys: pytest.CaptureFixture[str], *more: str, gpu: tuple[str, ...] = ("--gpu", "h100")
) -> tuple[str, dict[str, Any]]:
    assert cli.main(["plan", str(study), "--photographs", "1331167", "--json", *gpu, *more]) == 0
    out, shown = capsys.readouterr()
    return shown, json.loads(out)


pytestmark = pytest.mark.usefixtures("counted_once")
H100 = DEVICES["h100"]
VIT = "timm:vit_base_patch16_224"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "s.toml"
    study.write_text(f'name = "s"\nbackbones = ["{VIT}", "control:pixels"]\n')
    asked = ["plan", str(study), "--gpu", "a100"]
    assert cli.main([*asked, "--photographs", "1331167", "--count", "8", "--json"]) == 0
    out, shown = capsys.readouterr()
    answer, told = json.loads(out), " ".join(shown.split())
    assert (answer["gpu"], answer["count"], answer["photographs"]) == ("A100 SXM 80GB", 8, 1_331_167)
    assert f"{answer['hours']:.2f} hours for embedding, {answer['total_hours']:.2f} with probes and analysis" in told
    assert answer["total_hours"] == pytest.approx(sum(part["hours"] for part in answer["parts"]))
    lines = shown.splitlines()
    for part in answer["parts"]:
        (line,) = (line for line in lines if line.startswith(f"{part['stage']}: {part['name']} "))
        assert line.endswith(part["limited_by"])
    assert "one backbone at a time on each GPU" in shown
    assert f"store: {answer['store_bytes'] / 1e9:.1f} GB" in shown
    assert answer["forecast"]["test"] == round(1_331_167 * 0.2)
    low, median, high = (f"{100 * each:.3g}" for each in answer["forecast"]["claims"][0]["half"])
    assert f"± {median} points ({low} to {high})" in shown
    assert answer["sources"]["products"] == DEVICES["a100"].source
    for source in answer["sources"].values():
        assert source in told
        assert source.partition(":")[0] in ("assumed", "counted", "measured", "published")
    assert cli.main(asked) == 2
    assert "--photographs is required" in capsys.readouterr().err


QUICK = 'bootstrap = 100\n[probes]\nheads = ["linear"]\ntasks = ["transformation"]\nresamples = 0\n'


def sampled(folder: Path, images: Path, *more: str) -> Path:
    study = folder / "study.toml"
    study.write_text(f'name = "n"\nbackbones = ["control:pixels"]\nsuite = "identity,grayscale"\ncanvas = 64\n{QUICK}')
    assert cli.main(["plan", str(study), "--images", str(images), "--json", "--quiet", *more]) == 0
    return study


def test_a_sample_is_run(two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All stages of two sizes; nothing is left behind."""
    sampled(tmp_path, two_classes, "--sample", "30")
    out, shown = capsys.readouterr()
    found = json.loads(out)
    assert (found["photographs"], found["samples"], found["variants"]) == (40, [15, 30], 2)
    assert {"prepare", "embed", "probes", "analysis"} <= found["seconds"].keys()
    assert found["hours"] == pytest.approx(sum(found["seconds"].values()) / 3600)
    assert f"{found['hours']:.2f} hours, by a line through 15 and 30" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("probes "))
    assert [float(word) for word in line.split()[1:3]] == [
        pytest.approx(found["fixed"]["probes"], abs=0.051),
        pytest.approx(1000 * found["each"]["probes"], abs=0.0051),
    ]
    assert found["store_bytes"] == 40 * 2 * 768 * 2  # float16
    assert [each.name for each in tmp_path.iterdir()] == ["study.toml"]


def test_a_plan_by_a_sample_is_what_the_run_takes(
    two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds of a run whose parts take some for once, and some for each photograph."""
    prepared: list[int] = []

    def run(*_: object, stages: bool = True) -> tuple[dict[str, float], float]:
        photographs = _[-1]
        assert isinstance(photographs, int)
        prepared.append(photographs)
        cold = len(prepared) == 1
        took = {"prepare": 60.0 if cold else 2.0, "embed": 3.0 + 0.5 * photographs + 4.0 * cold}
        return took | ({"probes": 5.0 + 0.25 * photographs, "gallery and report": 6.0} if stages else {}), 1.0

    monkeypatch.setattr(commands, "_measured", run)
    sampled(tmp_path, two_classes, "--sample", "24", "--photographs", "100000")
    found = json.loads(capsys.readouterr().out)
    assert prepared == [12, 12, 24]
    true = {"prepare": 64.0, "embed": 3.0 + 5e4, "probes": 5.0 + 2.5e4, "gallery and report": 6.0}
    assert found["seconds"] == pytest.approx(true)
    study = str(tmp_path / "study.toml")
    assert cli.main(["plan", study, "--images", str(two_classes), "--sample", "1", "--quiet"]) == 2
    assert "--sample: got 1; allowed: at least 2 photographs" in capsys.readouterr().err


def plan(backbones: list[str], photographs: int, card: Device = H100, *, count: int = 1, **more: Any) -> Plan:  # noqa: ANN401
    choices = tuple(map(config.BackboneChoice, backbones))
    study = config.Study("s", choices, **more)
    return estimated.plan(study, photographs, card, Cluster(count))


def hours(made: Plan, stage: str) -> float:
    return sum(part.hours for part in made.parts if part.stage == stage)


def test_a_plan_adds_up() -> None:
    made = plan([VIT, "control:pixels"], 3600)
    vit, pixels = made.backbones
    assert made.store_bytes == vit.store_bytes + pixels.store_bytes == 3600 * 31 * 2 * 768 * 2
    assert vit.gpu_hours == pytest.approx(31 * networks.backbone(VIT, 256).work.seconds(H100))  # hours of seconds
    assert vit.embeddings_per_s == pytest.approx(31 / vit.gpu_hours)
    assert pixels.embeddings_per_s is None  # arithmetic is stored and takes time, and has no rate
    assert made.parts[0].busy[GPU] == pytest.approx(made.variant_hours + vit.gpu_hours + pixels.gpu_hours)
    assert made.hours == hours(made, EMBEDDING) == made.parts[0].busy[made.parts[0].limited_by]
    assert made.total_hours == pytest.approx(made.hours + hours(made, PROBES) + hours(made, ANALYSIS))
    assert hours(made, PROBES) > 0
    assert hours(made, ANALYSIS) > 0
    assert asdict(made)["parts"][0]["busy"] == made.parts[0].busy


def test_machines_bound_a_plan() -> None:
    """Photographs are embedded on all machines, which share storage; the stages run on one of them."""
    choices = tuple(map(config.BackboneChoice, ["package:efficientnet_lite0", "control:pixels"]))
    study = config.Study("s", choices)

    def of(**cluster: Any) -> Plan:  # noqa: ANN401
        return estimated.plan(study, 1_000_000, H100, Cluster(**cluster))

    stored = 1e6 * 31 * (1280 + 768) * 2
    storage = (1e6 * 110e3 + stored) / 3600e9  # hours of one machine, which reads and writes 1 GB/s
    one, nine, shared = of(gpus=8), of(gpus=9), of(gpus=64, storage_rate=2e9)
    assert [each.machines for each in (one, nine, shared)] == [1, 2, 8]
    assert one.parts[0].busy[STORAGE] == pytest.approx(storage)
    assert nine.parts[0].busy[STORAGE] == pytest.approx(storage / 2)
    assert shared.parts[0].busy[STORAGE] == pytest.approx(storage / 2)
    assert of(gpus=64).parts[0].busy[STORAGE] == pytest.approx(storage / 8)
    slow = of(gpus=64, machine_rate=1e7)
    assert (slow.parts[0].limited_by, slow.hours) == (STORAGE, pytest.approx(storage * 100 / 8))
    stages = shared.total_hours - shared.hours
    assert stages == pytest.approx(one.total_hours - one.hours)
    assert shared.paid_gpu_hours == pytest.approx(64 * shared.hours + 8 * stages)
    loading = "probes", "loading"
    (fast, slow_loading) = (
        next(part.busy[STORAGE] for part in made.parts if (part.stage, part.name) == loading) for made in (shared, slow)
    )
    assert fast == pytest.approx(stored / 3600e9)  # of one machine, which the shared storage does not limit
    assert slow_loading == pytest.approx(stored / 3600e7)


def test_requests_of_a_plan() -> None:
    """One for each photograph, and one for each MiB of tar shards; a shard of 1,024 rows is a file and its record."""
    made = plan([VIT, "control:pixels"], 1_000_000)
    shards = 2 * 977
    assert (made.shards, made.puts) == (shards, 2 * shards)
    assert made.gets == 1_000_000 + math.ceil(1_000_000 * 110e3 / 2**20) + shards
    few = plan([VIT, "control:pixels"], 1000, embed=config.EmbedConfig(shard_rows=32))
    assert (few.shards, few.puts) == (2 * 32, 2 * 64)


def test_embedding_sends_the_requests_of_a_plan(
    two_classes: Path, bucket: ObjectPlace, server: Server, tmp_path: Path
) -> None:
    """Beside those, embedding sends some that do not grow with the photographs."""
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        shard.add(two_classes, ".")
    photographs, store = bucket / "s.tar", bucket / "s.zarr"
    photographs.write((tmp_path / "s.tar").read_bytes())
    where = ["embed", str(photographs), "--store", str(store), "--backbone", "control:pixels", "--quiet"]
    settings = setting("canvas=64", "embed.shard_rows=8")
    server.requests.clear()
    assert cli.main([*where, "--suite", "identity,grayscale", *settings]) == 0

    def sent(method: str, pattern: str) -> int:
        return sum(each == method and bool(re.search(pattern, path)) for each, path in server.requests)

    of_records = r"/journal/[^/]+\.json"
    made = plan(["control:pixels"], 40, suite="identity,grayscale", canvas=64, embed=config.EmbedConfig(shard_rows=8))
    assert (made.shards, made.puts) == (5, sent("PUT", r"/c\.") + sent("PUT", of_records)) == (5, 10)
    mebibytes = math.ceil(40 * 110e3 / 2**20)  # of photographs of the size that plans assume, to list; here it is one
    assert made.gets - mebibytes + 1 == sent("GET", r"s\.tar") + sent("GET", of_records) == 40 + 1 + 5


def test_the_price_of_a_plan(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, answer = planned(study, capsys, "--count", "16", "--gpus-per-machine", "4", "--gpu-price", "2.5")
    assert answer["machines"] == 4
    assert answer["price"] == pytest.approx(2.5 * answer["paid_gpu_hours"])
    assert f"price: {answer['price']:,.2f}, of {answer['paid_gpu_hours']:,.2f} GPU hours" in shown
    assert "16 × H100 SXM (4 machines)" in shown
    shown, answer = planned(study, capsys, "--storage-rate", "0.001")
    assert "price:" not in shown
    assert answer["parts"][0]["limited_by"] == STORAGE
    with pytest.raises(SystemExit):
        cli.main(["plan", str(study), "--photographs", "9", "--machine-rate", "0"])
    assert "--machine-rate: got '0'" in capsys.readouterr().err


def test_arithmetic_waits_for_the_host() -> None:
    assert plan(["control:pixels"], 1000).parts[0].limited_by == HOST
    names = ["package:efficientnet_lite0", "control:pixels"]
    made, wider = plan(names, 1000), plan(names, 1000, embed=config.EmbedConfig(dtype="float32"))
    assert wider.store_bytes == 2 * made.store_bytes
    assert wider.parts[0].busy[HOST] == pytest.approx(wider.store_bytes / 0.41e9 / 3600)


def test_each_claim_says_its_width_or_what_it_needs() -> None:
    found = {each.claim: each for each in forecasts(suite("substance31"), 100, 3)}
    assert list(found) == ["C1, C3", "C2", "C4", "C6"]
    assert (found["C2"].half, found["C2"].remark) == (None, "requires three generators")
    assert found["C1, C3"].half == STYLE.half(31, 100)
    assert found["C6"].half is None
    many = {each.claim: each for each in forecasts(suite("substance31,styles48"), 100, 3)}
    assert many["C2"].half == GENERATORS.half(12, 100)
    (last,) = [each for each in forecasts(suite("substance31"), 100, 8) if each.claim == "C6"]
    assert last.half is not None
    assert last.half[1] == correlation_interval(0.0, 8)[1]
    assert forecasts(("identity", "jpeg"), 100, 3) == []
    severities = {each.claim: each for each in forecasts(suite("imagenet_c@1..5"), 100, 3)}
    assert severities["C1, C3"].half == STYLE.half(20, 100)
    assert severities["C4"].half == HEADS.half(20, 100)


def test_an_unknown_card_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(study), "--photographs", "9", "--gpu", "b200"]) == 2
    assert "--gpu: got 'b200'; allowed: h100, h200, a100, l4" in capsys.readouterr().err


def test_backbones_in_int8_are_counted_as_bf16(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, answer = planned(study, capsys)
    assert "int8" not in plain
    study.write_text(study.read_text() + '[embed]\nprecision = "int8"\n')
    shown, quantised = planned(study, capsys)
    assert "int8 backbones are counted as bf16" in shown
    assert quantised["hours"] == answer["hours"]


def test_more_gpus_than_photographs_are_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(study), "--gpu", "a100", "--photographs", "10", "--count", "11"]) == 2
    assert "--count: got 11" in capsys.readouterr().err
