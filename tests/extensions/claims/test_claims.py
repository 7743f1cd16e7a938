"""Verdicts on the paper's claims, on synthetic results for each rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from substyle.engine.extensions.claims import part as report_part
from substyle.engine.extensions.claims.claims import claims
from substyle.engine.report.deciding import equivalence_needs, more_units
from substyle.engine.report.section import Data, Details
from substyle.engine.results.model import SCHEMA, entry_of
from substyle.engine.stages.results import validate_results

STYLES = ("style_a", "style_b", "style_c")
NAMES = ("identity", "blur", "noise", *STYLES)
KINDS = {
    "mae": "masked",
    "clip": "image_text",
    "siglip": "image_text",
    "simclr": "contrastive",
    "resnet": "supervised",
    "control:statistics": "none",
}


def backbone(objective: str, index: int) -> dict[str, Any]:
    single = {"accuracy": {"value": 0.8}, "converged": True}
    turned = {"accuracy": {"value": 0.5}, "styles": {"value": 0.6}, "converged": True}
    turned["by_transformation"] = {t: {"accuracy": {"value": 0.5}} for t in NAMES[1:]}
    difference = {task: entry_of(0.0, (-0.006, 0.006), ci90=[-0.005, 0.005]) for task in ("transformation", "class")}
    return {
        "dim": 512 + 256 * (index % 2),
        "control": objective == "none",
        "spec": {"objective": objective, "architecture": f"net{index}", "parameters": 10**7 * (index + 1), "data": "x"},
        "transformation": {"linear": dict(single), "mlp": dict(single)},
        "kind_rotation": {"linear": turned},
        "class": {"linear": {"original": {"value": 0.9}, "converged": True}},
        "multitask": {"difference": difference, "converged": True},
        "sensitivity": moved({t: 0.1 * i for i, t in enumerate(NAMES[1:], 1)}, 0.01),
    }


def moved(values: Mapping[str, float], half: float) -> dict[str, Any]:
    """Sensitivities with intervals of one half-width."""
    return {t: entry_of(value, (value - half, value + half)) for t, value in values.items()}


def interval(claim: dict[str, Any]) -> list[float]:
    return [claim["estimate"]["low"], claim["estimate"]["high"]]


def set_two_way(row: dict[str, Any], low: float, high: float) -> None:
    """Change the interval over transformations of a comparison."""
    row["difference"] |= {"low": low, "high": high} if "one_way" in row["difference"] else {"two_way": [low, high]}


def study(
    kinds: Mapping[str, str] = KINDS, gaps: Mapping[tuple[str, str], float] | None = None, half: float = 0.02
) -> dict[str, Any]:
    """A results.json; ``gaps`` are differences a − b of (kind a, kind b), 0 for all others."""
    gaps = gaps or {}
    both = {**gaps, **{(b, a): -gap for (a, b), gap in gaps.items()}}
    rows = []
    for task, metric in (
        ("transformation", "accuracy"),
        ("rotation", "styles"),
        ("rotation", "accuracy"),
        ("equal_transformation", "accuracy"),
    ):
        for a, b in combinations(kinds, 2):
            gap = both.get((kinds[a], kinds[b]), 0.0)
            alone, both_ways = [gap - 0.001, gap + 0.001], [gap - half, gap + half]
            general = entry_of(gap, both_ways, one_way=alone)
            difference = general if task == "rotation" else entry_of(gap, alone, two_way=both_ways)
            rows.append({"task": task, "metric": metric, "head": "linear", "a": a, "b": b, "difference": difference})
    for name in kinds:
        row = {"task": "transformation", "metric": "accuracy", "head": "mlp-linear", "a": name, "b": name}
        rows.append(row | {"difference": entry_of(0.03, (0.02, 0.04), two_way=[0.01, 0.05])})
    suite = [{"name": t, "kind": "style" if t in STYLES else t, "role": "train"} for t in NAMES]
    return {
        "schema": SCHEMA,
        "name": "s",
        "images": 500,
        "splits": {"train": 300, "val": 50, "test": 150},
        "transformations": suite,
        "backbones": {name: backbone(kind, i) for i, (name, kind) in enumerate(kinds.items())},
        "comparisons": rows,
    }


def verdict(results: dict[str, Any], identity: str) -> dict[str, Any]:
    results["claims"] = [claim.model_dump() for claim in claims(validate_results(results))]
    validate_results(results)
    json.dumps(results, allow_nan=False)
    ids = [claim["id"] for claim in results["claims"]]
    assert [identity for identity in ids if " " not in identity] == ["C1", "C2", "C3", "C4", "C5", "C6"]
    return next(claim for claim in results["claims"] if claim["id"] == identity)


def why(claim: dict[str, Any]) -> str:
    return "; ".join(claim["reasons"])


@pytest.mark.parametrize(
    ("gap", "status"), [(0.05, "supported"), (0.019, "undecided"), (-0.019, "undecided"), (-0.05, "contradicted")]
)
@pytest.mark.parametrize(
    ("identity", "kind", "sign"), [("C1", "masked", 1), ("C2", "image_text", 1), ("C3", "supervised", -1)]
)
def test_two_way_intervals_of_every_pair_decide(identity: str, kind: str, sign: int, gap: float, status: str) -> None:
    others = {other for other in KINDS.values() if other not in (kind, "none")}
    named = "masked" if identity == "C2" else "others"
    claim = verdict(study(gaps={(kind, other): sign * gap for other in others}), identity)
    assert claim["status"] == status
    assert claim["estimate"]["value"] == pytest.approx(sign * gap)
    assert interval(claim) == pytest.approx([sign * gap - 0.02, sign * gap + 0.02])
    assert claim["n_transformations"] == (3 if identity == "C2" else 6)
    assert set(claim["groups"]) == {kind, named}
    assert "control:statistics" not in claim["groups"][named]


def test_one_pair_that_is_not_clear_leaves_it_open() -> None:
    gaps = {("masked", kind): 0.05 for kind in ("image_text", "contrastive", "supervised")}
    assert verdict(study(gaps=gaps), "C1")["status"] == "supported"
    claim = verdict(study(gaps=gaps | {("masked", "supervised"): 0.01}), "C1")
    assert claim["status"] == "undecided"
    assert claim["estimate"]["value"] == pytest.approx((3 * 0.05 + 0.01) / 4)
    assert interval(claim) == pytest.approx([-0.01, 0.07])
    results = study(gaps=gaps)
    results["comparisons"] = [r for r in results["comparisons"] if {r["a"], r["b"]} != {"mae", "simclr"}]
    claim = verdict(results, "C1")
    assert claim["status"] == "undecided"
    assert "only 3 of 4 pairs were compared" in why(claim)


@pytest.mark.parametrize(
    ("identity", "without", "reason"),
    [
        ("C1", "masked", "no masked model"),
        ("C2", "image_text", "no image-text model"),
        ("C3", "supervised", "no supervised model"),
        ("C5", "contrastive", "no contrastive model"),
    ],
)
def test_an_absent_family_is_named(identity: str, without: str, reason: str) -> None:
    claim = verdict(study({name: kind for name, kind in KINDS.items() if kind != without}), identity)
    assert (claim["status"], claim["estimate"]) == ("not testable", None)
    assert reason in claim["reasons"]


@pytest.mark.parametrize("converged", [False, None])
@pytest.mark.parametrize(("identity", "part"), [("C1", "transformation"), ("C2", "kind_rotation"), ("C4", "multitask")])
def test_a_probe_that_has_not_converged_decides_nothing(identity: str, part: str, converged: bool | None) -> None:
    gaps = {("masked", k): 0.1 for k in ("image_text", "contrastive", "supervised")}
    gaps |= {("image_text", "contrastive"): 0.0}
    gaps |= {(k, "supervised"): 0.1 for k in ("masked", "image_text", "contrastive")}
    if identity == "C2":
        gaps = {("image_text", k): 0.1 for k in ("masked", "contrastive", "supervised")}
    results = study(gaps=gaps)
    assert verdict(results, identity)["status"] == "supported"
    scores = results["backbones"]["clip"][part]
    (scores if part == "multitask" else scores["linear"])["converged"] = converged
    claim = verdict(results, identity)
    assert claim["status"] == "undecided"
    assert "clip" in claim["reasons"][0]
    assert "converged" in claim["reasons"][0]


def test_few_test_photographs_decide_nothing() -> None:
    results = study(gaps={("masked", kind): 0.05 for kind in set(KINDS.values())})
    results["splits"]["test"] = 100
    assert verdict(results, "C1")["status"] == "supported"
    results["splits"]["test"] = 99
    claim = verdict(results, "C1")
    assert (claim["status"], claim["reasons"][0]) == ("undecided", "99 test photographs, fewer than 100")


def test_reasons_say_what_else_differs_and_what_statistics_reach() -> None:
    results = study(gaps={("masked", kind): 0.05 for kind in set(KINDS.values())})
    results["backbones"]["mae"]["spec"]["data"] = "ImageNet-1k"
    results["backbones"]["control:statistics"]["transformation"]["linear"]["accuracy"] = {"value": 0.913}
    said = why(verdict(results, "C1"))
    assert "1 masked and 4 other backbones" in said
    assert "architecture and data differ" in said
    assert "parameters 10 M against 20 M to 50 M" in said
    assert "width 512 against 512 to 768" in said
    assert "trained on ImageNet-1k against x" in said
    assert "at equal width: +5.0 points (+3.0 to +7.0)" in said
    assert "control:statistics reaches 91.3%, more than 5 of the 5 trained backbones" in said
    results["comparisons"] = [row for row in results["comparisons"] if not row["task"].startswith("equal")]
    del results["backbones"]["control:statistics"]
    said = why(verdict(results, "C1"))
    assert "not probed at equal width" in said
    assert "control:statistics was not probed" in said


def unseen(results: dict[str, Any], gaps: Mapping[str, float], half: float = 0.02) -> dict[str, Any]:
    """Add results on unseen generators; ``gaps`` of image-text models by the other kind."""
    kinds = {name: each["spec"]["objective"] for name, each in results["backbones"].items() if not each["control"]}
    scores = {"accuracy": {"value": 0.5}, "converged": True, "generators": list("abcdef")}
    scores |= {"by_style": dict.fromkeys(STYLES, 0.5)}
    for name in kinds:
        results["backbones"][name]["generators"] = dict(scores)
    rows = []
    for a, b in combinations(kinds, 2):
        sign = 1 if kinds[a] == "image_text" else -1
        gap = sign * gaps.get(kinds[b] if sign > 0 else kinds[a], 0.0)
        errors = {"se": half / 2, "se_generators": half / 2, "se_photographs": 0.0, "se_training": 0.0}
        rows.append({"a": a, "b": b, "difference": entry_of(gap, (gap - half, gap + half), **errors)})
    results["generators"] = {"contrasts": rows}
    return results


def test_unseen_generators_decide_for_each_kind_by_itself() -> None:
    results = unseen(study(), {"masked": 0.1, "supervised": -0.1, "contrastive": 0.01})
    claim = verdict(results, "C2")
    assert (claim["status"], claim["groups"]) == ("supported", {"image_text": ["clip", "siglip"], "masked": ["mae"]})
    assert (claim["estimate"]["value"], interval(claim)) == (pytest.approx(0.1), pytest.approx([0.08, 0.12]))
    assert claim["n_transformations"] == len(STYLES)
    assert "accuracy on painting styles of unseen generators" in why(claim)
    assert "a verdict on clip and siglip against mae, not on their kinds" in why(claim)
    assert "one generator" not in why(claim)
    assert verdict(results, "C2 supervised")["status"] == "contradicted"
    open_ = verdict(results, "C2 contrastive")
    assert open_["status"] == "undecided"
    assert "to decide clip against simclr: about 20 more generators" in why(open_)
    results["backbones"]["mae"]["generators"]["converged"] = False
    assert "not converged, or unknown: mae (generators linear)" in why(verdict(results, "C2"))


@pytest.mark.parametrize(
    ("value", "transformations", "photographs", "said"),
    [
        (0.05, 0.03, 0.06, "test photographs"),
        (-0.05, 0.06, 0.03, "more transformations"),
        (0.02, 0.03, 0.025, "times as many"),
    ],
)
def test_what_would_decide_does(value: float, transformations: float, photographs: float, said: str) -> None:
    """With as many units more the interval is off zero, and with a few fewer it is not."""
    halves = {"test photographs": photographs, "transformations": transformations}
    counts = {"test photographs": 100, "transformations": 30}
    text = more_units(value, halves, counts)
    assert said in text
    number = float(text.split()[1].replace(",", ""))
    for part, decided in ((1.0, True), (0.8, False)):
        n, t = 100.0, 30.0
        if "more test photographs" in text:
            n += part * number
        elif "times" in text:
            n, t = part * number * n, part * number * t
        else:
            t += part * number
        half = np.hypot(transformations * np.sqrt(30 / t), photographs * np.sqrt(100 / n))
        assert bool(half < abs(value) + (0.002 if decided else 0.0)) == decided
    for tiny in (0.0, 0.0001):
        assert "too small" in more_units(tiny, halves, counts)


def test_undecided_claims_say_what_would_decide() -> None:
    claim = verdict(study(gaps={("masked", "supervised"): 0.01}), "C1")
    assert "to decide mae against" in why(claim)
    mixed = study(gaps={("masked", "supervised"): 0.05, ("masked", "contrastive"): -0.05})
    said = why(verdict(mixed, "C1"))
    assert "pairs disagree at 95 %: mae minus resnet is above 0, mae minus simclr below" in said
    assert "to decide" not in said
    results = study()
    for each in results["comparisons"]:
        if each["head"] == "mlp-linear":
            set_two_way(each, -0.01, 0.07)
    assert "to decide the gain on mae: about" in why(verdict(results, "C4"))
    results = study()
    results["backbones"]["clip"]["multitask"]["difference"]["transformation"] |= {
        "value": -0.002,
        "ci90": [-0.014, 0.01],
    }
    assert "to decide equivalence on clip (transformation): about" in why(verdict(results, "C4"))
    assert "to decide simclr against mae: nothing within reach" in why(verdict(study(), "C5"))
    assert "to decide: about" in why(verdict(shifted(8, -0.2, (-0.3, -0.1)), "C6"))


def c4(results: dict[str, Any]) -> str:
    return str(verdict(results, "C4")["status"])


def test_an_mlp_must_gain_everywhere_and_sharing_cost_nothing_in_either_task() -> None:
    results = study()
    claim = verdict(results, "C4")
    assert (claim["status"], claim["margin"]) == ("supported", 0.01)
    assert "control:statistics" not in claim["groups"]["trained"]
    assert claim["estimate"]["value"] == pytest.approx(0.03)
    for task in ("transformation", "class"):
        results = study()
        results["backbones"]["mae"]["multitask"]["difference"][task]["ci90"] = [-0.012, 0.002]
        assert c4(results) == "undecided"
        assert "not shown to be equivalent within 1 point on mae" in why(verdict(results, "C4"))
        for each in results["backbones"].values():
            each["multitask"]["difference"][task]["ci90"] = [-0.05, -0.02]
        assert c4(results) == "contradicted"
    results = study()
    rows = [row for row in results["comparisons"] if row["head"] == "mlp-linear"]
    set_two_way(rows[0], -0.01, 0.05)
    assert c4(results) == "undecided"
    for row in rows:
        set_two_way(row, -0.05, -0.01)
    assert c4(results) == "contradicted"
    results["backbones"]["mae"]["multitask"] = None
    assert c4(results) == "not testable"


def shifted(count: int, rho: float, by_images: tuple[float, float]) -> dict[str, Any]:
    results = study({f"net{i}": "supervised" for i in range(count)})
    numbers = {key: {"value": 0.1, "low": 0.0, "high": 0.2} for key in ("sensitivity", "loss")}
    row: dict[str, Any] = dict.fromkeys(("spearman", "kendall"), entry_of(rho, by_images) if count >= 4 else None)
    results["robustness"] = [row | {"shift": "night", "backbones": {f"net{i}": numbers for i in range(count)}}]
    return results


def test_a_correlation_needs_backbones() -> None:
    claim = verdict(shifted(3, 1.0, (1.0, 1.0)), "C6")
    assert claim["status"] == "not testable"
    assert "requires 4 trained backbones" in why(claim)
    claim = verdict(shifted(5, 1.0, (0.9, 1.0)), "C6")
    assert (claim["status"], claim["estimate"]["value"]) == ("undecided", 1.0)
    assert interval(claim) == [None, None]
    assert "Spearman's rho +1.00 (+0.90 to +1.00), Kendall's tau" in why(claim)
    claim = verdict(shifted(6, 1.0, (0.9, 1.0)), "C6")
    assert (claim["status"], claim["groups"]["shifted"]) == ("contradicted", [f"net{i}" for i in range(6)])


def test_without_masked_models_the_other_contrasts_stand() -> None:
    results = unseen(study({n: kind for n, kind in KINDS.items() if kind != "masked"}), {"supervised": 0.1})
    assert verdict(results, "C2")["status"] == "not testable"
    assert verdict(results, "C2 supervised")["status"] == "supported"
    alone = study({"mae": "masked", "resnet": "supervised"})
    assert not [each for each in claims(validate_results(alone)) if each.id.startswith("C2 ")]


def test_the_page_folds_what_is_not_testable() -> None:
    results = study({"clip": "image_text", "simclr": "contrastive"})
    results["claims"] = [claim.model_dump() for claim in claims(validate_results(results))]
    (section,) = report_part.sections(validate_results(results))
    ((shown,), (saved,)) = ([b.table for b in section.blocks if isinstance(b, Data) and b.hidden == h] for h in (0, 1))
    (folded,) = [block for block in section.blocks if isinstance(block, Details)]
    untested = [claim["id"] for claim in results["claims"] if claim["status"] == "not testable"]
    assert "C1" in untested
    assert folded.summary == f"Not testable here: {', '.join(untested)}"
    assert [row[0] for row in shown.rows] == [row[0] for row in saved.rows if row[0] not in untested]
    for claim in results["claims"]:
        claim["status"] = "not testable"
    (section,) = report_part.sections(validate_results(results))
    assert [block for block in section.blocks if isinstance(block, Data) and not block.hidden] == []


def test_equivalence_needs_photographs_unless_the_difference_is_too_large() -> None:
    text = equivalence_needs(0.002, 0.016, 0.01, 100, "folders")
    assert text == "about 300 more folders"  # half as wide, four times as many
    assert equivalence_needs(-0.012, 0.001, 0.01, 100, "folders").startswith("nothing: the difference is not")
    assert equivalence_needs(0.0099, 0.01, 0.01, 400, "folders").startswith("nothing within reach")
