"""Generate the result tables of the documentation from the summaries in benchmarks/results/.

``python benchmarks/study_table.py`` prints them and ``--write`` updates the pages;
``--keep NAME RESULTS.json`` first saves the summary of a run as ``benchmarks/results/study-NAME.json``, with
``--parts labels,movement`` only these results of its backbones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from substyle.engine.extensions.attentive.section import attentive
from substyle.engine.extensions.finetune.section import finetuned
from substyle.engine.extensions.movement.section import over_backbones
from substyle.engine.probes.outcomes import holm
from substyle.engine.results.convert import converted
from substyle.engine.results.model import Robustness
from substyle.engine.stages.results import validate_results
from substyle.engine.stages.shift.domains_section import domains
from substyle.engine.stages.shift.section import shift_table, shown_correlations

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- study table: benchmarks/study_table.py -->", "<!-- end of study table -->"
_KEPT = ("schema", "version", "created", "name", "seed", "canvas", "suite", "images", "variants", "splits", "chance",
         "throughput", "environment")  # fmt: skip
_CLAIM = ("id", "statement", "status", "estimate", "margin", "n_transformations", "reasons")
_WANTED = {
    "transformation": ("accuracy", "by_transformation"),
    "kind": ("seen", "held_out", "gap", "by_transformation"),
    "kind_rotation": ("accuracy", "balanced", "styles", "generators"),
    "class": ("original", "transformed"),
}
_TASKS = ("rotation", "class", "kind")  # besides transformation, whose differences are kept
_COLUMNS = (  # heading, task, head, score
    ("transformation, linear", "transformation", "linear", "accuracy"),
    ("transformation, MLP", "transformation", "mlp", "accuracy"),
    ("kind, seen", "kind", "linear", "seen"),
    ("kind, held out", "kind", "linear", "held_out"),
    ("kind, each held out in turn", "kind_rotation", "linear", "accuracy"),
    ("painting styles, each held out in turn", "kind_rotation", "linear", "styles"),
    ("class", "class", "linear", "original"),
    ("class, transformed", "class", "linear", "transformed"),
)
_MARK = "†"
LEVEL = 0.05  # of a contrast, after Holm's correction
KNOWN = (("jpeg", "quality"), ("gaussian_blur", "sigma"), ("hue_shift", "hue"))  # parameters shown in docs/blind.md
STUDIES = ("families", "imagenette")  # in the order of docs/results.md
BLIND = ("jpeg", "traces_jpeg75_420", "grayscale", "rotation")  # studies `blind-…` of one transformation each


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Reduce a results.json to every score with its interval, without keys of images."""
    kept = {key: results[key] for key in _KEPT}
    kept["backbones"] = {}
    for name, backbone in results["backbones"].items():
        row: dict[str, Any] = {key: backbone[key] for key in ("dim", "control", "runtime", "gate", "knn", "balance")}
        for task, wanted in _WANTED.items():
            heads = backbone.get(task) or {}
            keys = (*wanted, "converged", "certificate")
            row[task] = {h: {k: one[k] for k in keys if k in one} for h, one in heads.items()}
        multitask = backbone.get("multitask") or {}
        row["multitask"] = {
            k: multitask[k]
            for k in ("transformation", "class", "task_weight", "difference", "converged")
            if k in multitask
        }
        row |= {key: backbone[key] for key in ("attack", "few_shot", "generators") if key in backbone}
        for key in ("labels", "movement", "parameters", "shortcut"):
            row |= {key: _without_points(backbone[key])} if key in backbone else {}
        measured = ("adapter", "complexity", "sensitivity")
        row |= {key: backbone[key] for key in measured if backbone.get(key)}
        tuned = (backbone.get("spec") or {}).get("finetuned")
        row |= {"finetuned": f"{tuned['backbone']} + {tuned['objective']}, seed {tuned['seed']}"} if tuned else {}
        row |= {"extractability": _readable(backbone["extractability"])} if backbone.get("extractability") else {}
        kept["backbones"][name] = row
    kept["claims"] = [{key: claim[key] for key in _CLAIM} for claim in results.get("claims", [])]
    rows = results["comparisons"]
    kept["comparisons"] = [
        c for c in rows if c["task"] == "transformation" or (c["task"] in _TASKS and c["head"] == "linear")
    ]
    kept |= {part: results[part] for part in ("generators", "robustness") if results.get(part)}
    document = validate_results(results)
    moved = over_backbones(document, document.entries("movement"))
    for made in (finetuned(document), attentive(document), shift_table(document), domains(document), moved):
        if made and made.rows:
            names = [column.name for column in made.columns]
            kept[made.name] = [dict(zip(names, row, strict=True)) for row in made.rows]
    text = json.dumps(kept)
    for name, row in kept["backbones"].items():  # names of adapted and fine-tuned backbones are paths
        adapter = row.get("adapter")
        title = f"{adapter['backbone']} + {adapter['method']}" if adapter else row.get("finetuned", name)
        text = text.replace(json.dumps(name), json.dumps(title))
    answer: dict[str, Any] = json.loads(text)
    return answer


def parts(kept: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Only some results of backbones, and no comparisons or claims."""
    own = {name: {key: _rounded(row[key]) for key in ("control", *names)} for name, row in kept["backbones"].items()}
    return {key: kept[key] for key in _KEPT} | {"backbones": own, "comparisons": []}


def _rounded(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """Numbers with six digits."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _without_points(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """Results without the points of plots."""
    if isinstance(value, dict):
        return {key: _without_points(inner) for key, inner in value.items() if key != "points"}
    return value


def _readable(tasks: dict[str, Any]) -> dict[str, Any]:
    """Extractability without the details of single fits."""
    return {
        task: {
            head: {part: {k: v for k, v in one.items() if k not in ("blocks", "points")} for part, one in parts.items()}
            for head, parts in heads.items()
        }
        for task, heads in tasks.items()
    }


def table(kept: dict[str, Any]) -> str:
    """Format one Markdown row per backbone: per cent, 95 % intervals in brackets, unconverged probes marked.

    Values missing from the summary are dashes.
    """
    headings = ["backbone", *(column[0] for column in _COLUMNS), "10-NN transformation"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name, row in kept["backbones"].items():
        cells = [_score(row.get(task, {}).get(head, {}), score) for _, task, head, score in _COLUMNS]
        near = row["knn"]["transformation"].get("10")
        lines.append(f"| `{name}` | {' | '.join([*cells, _per_cent(near and near['value'])])} |")
    tasks = [task.removesuffix("_rotation") for _, task, *_ in _COLUMNS]
    lines.append(
        f"| chance | {' | '.join(_per_cent(kept['chance'].get(task)) for task in [*tasks, 'transformation'])} |"
    )
    if any(_MARK in line for line in lines):
        lines += ["", f"{_MARK} The probe has not converged: more training would change this number."]
    if verdicts := _verdicts(kept.get("claims", [])):
        lines += ["", verdicts]
    spent = kept["throughput"]
    lines += [
        "",
        f"{kept['images']:,} photographs × {kept['variants'] // kept['images']} variants × {len(kept['backbones'])} "
        "embeddings; "
        f"{spent['variants_per_s']:.0f} variants/s in one pass, embedding {spent['embed_seconds'] / 60:.1f} min, "
        f"probes {spent['probe_seconds'] / 60:.1f} min, analysis {spent['analysis_seconds'] / 60:.1f} min on "
        f"{kept['environment']['threads']} cores ({kept['environment']['cpu']}).",
    ]
    return "\n".join(lines)


_DETECTORS = {"transformation": "transformation probe", "kind": "kind probe", "detector": "detector",
              "other_radii": "other radii",
              "other_attacks": "other attacks", "mahalanobis": "Mahalanobis", "knn": "k-NN", "squeezing": "squeezing",
              "layers": "layers"}  # fmt: skip


def attack_table(kept: dict[str, Any]) -> str:
    """Format success, AUROC and true-positive rate at 5 % false positives of each attack, in per cent."""
    parts = []
    for name, backbone in kept["backbones"].items():
        if "attack" not in backbone:
            continue
        found = backbone["attack"]
        lines = [f"| attack | success | {' | '.join(_DETECTORS.values())} |", "|---" * (len(_DETECTORS) + 2) + "|"]
        for attack, row in found["attacks"].items():
            scores = [row["detection"].get(how) for how in _DETECTORS]
            both = [(s["auroc"], s["tpr"]) if s else () for s in scores]
            cells = [" / ".join(_per_cent(one["value"]) for one in pair) or "–" for pair in both]
            lines.append(f"| `{attack}` | {_cell(row['success'])} | {' | '.join(cells)} |")
        count = found["photographs"]
        parts.append(
            "\n".join(lines)
            + f"\n\n`{name}`, class accuracy {_per_cent(found['accuracy'])}; {count['train']} training and "
            f"{count['attacked']} test photographs, {found['library']}, transfer from `{found['surrogate']}`."
        )
    return "\n\n".join(parts)


def probing_table(kept: dict[str, Any]) -> str:
    """Format extractability of linear probes, and differences of MLPs of every size to the linear probe.

    Selectivity and differences are in points, accuracies in per cent, codelengths in bits per label.
    """
    measures = ("selectivity", "bits per label", "photographs for 90 %")
    headings = ["backbone", *(f"{measure}, {task}" for measure in measures for task in ("transformation", "class"))]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name, row in kept["backbones"].items():
        heads = [row["extractability"][task]["linear"] for task in ("transformation", "class")]
        measured = (("selectivity", "selectivity", 100, "+.1f"), ("codelength", "bits", 1, ".2f"))
        cells = [
            _number((head.get(part) or {}).get(key), scale, form, late=_late(head.get(part) or {}))
            for part, key, scale, form in (*measured, ("curve", "needed", 1, ".0f"))
            for head in heads
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    sizes = [size for size in next(iter(kept["backbones"].values()))["complexity"] if size != "linear"]
    lines += ["", f"| backbone | task | linear | {' | '.join(size.replace('x', '×') for size in sizes)} |"]
    lines += ["|---" * (len(sizes) + 3) + "|"]
    for name, row in kept["backbones"].items():
        for task, score in (("transformation", "transformation"), ("class", "class")):
            probes, late = row["complexity"], f"{score}_converged"
            differences = ((probes[size].get(f"{score}_difference"), probes[size][late] is False) for size in sizes)
            cells = [_number(difference, 100, "+.1f", late=unsettled) for difference, unsettled in differences]
            linear = _cell(probes["linear"].get(score), late=probes["linear"][late] is False)
            lines.append(f"| `{name}` | {task} | {linear} | {' | '.join(cells)} |")
    return "\n".join(lines)


def adapter_table(kept: dict[str, Any]) -> str:
    """Format scores of linear probes on backbones and on their adapted embeddings, in per cent."""
    adapted = {name: row["adapter"]["backbone"] for name, row in kept["backbones"].items() if "adapter" in row}
    bases = dict.fromkeys(adapted.values())
    return _linear(kept, [each for base in bases for each in (base, *(n for n, of in adapted.items() if of == base))])


def _linear(kept: dict[str, Any], names: Iterable[str]) -> str:
    """Format scores of linear probes on some embeddings, in per cent."""
    columns = [column for column in _COLUMNS if column[2] == "linear" and column[1] != "kind_rotation"]
    lines = [f"| embedding | width | {' | '.join(column[0].removesuffix(', linear') for column in columns)} |"]
    lines += ["|---" * (len(columns) + 2) + "|"]
    for name in names:
        row = kept["backbones"][name]
        cells = [_score(row[task].get(head, {}), score) for _, task, head, score in columns]
        lines.append(f"| `{name}` | {row['dim']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def finetuned_table(kept: dict[str, Any]) -> str:
    """Format scores before and after fine-tuning in per cent, mean over seeds, and differences in points."""
    rows = {(row["score"], row["objective"]): row for row in kept["finetuned"]}
    others = ("transformation", "joint")
    columns = ["before", "class", *others, *(f"{objective} − class" for objective in others)]
    lines = [f"| score | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for score in dict.fromkeys(row["score"] for row in kept["finetuned"]):
        cells = [_per_cent(rows[score, "class"]["before"])]
        cells += [_per_cent(rows[score, objective]["after"]) for objective in ("class", *others)]
        for objective in others:
            row = rows[score, objective]
            cells.append(_number(_of(row["difference"]), 100, "+.1f", late=row["converged"] != "yes"))
        lines.append(f"| {score} | {' | '.join(cells)} |")
    return "\n".join(lines)


def blind_table(kept: dict[str, dict[str, Any]]) -> str:
    """Format how well linear probes tell photographs from variants, by transformation, and sensitivity."""
    lines = [f"| embedding | {' | '.join(f'`{name}`' for name in kept)} |", "|---" * (len(kept) + 1) + "|"]
    for backbone in next(iter(kept.values()))["backbones"]:
        rows = {name: study["backbones"][backbone] for name, study in kept.items()}
        cells = [
            f"{_score(row['transformation']['linear'], 'accuracy')}; {row['sensitivity'][name]['value']:.3f}"
            for name, row in rows.items()
        ]
        lines.append(f"| `{backbone}` | {' | '.join(cells)} |")
    if any(_MARK in line for line in lines):
        lines += ["", f"{_MARK} The probe has not converged: more training would change this number."]
    return "\n".join(lines)


def augmentation_table(kept: dict[str, Any]) -> str:
    """Format by transformation how often a linear probe finds it in per cent, and sensitivity."""
    backbones = kept["backbones"]
    lines = [f"| transformation | {' | '.join(f'`{name}`' for name in backbones)} |"]
    lines.append("|---" * (len(backbones) + 1) + "|")
    found = [row["transformation"]["linear"]["by_transformation"] for row in backbones.values()]
    for name in found[0]:
        cells = []
        for row, own in zip(backbones.values(), found, strict=True):
            moved = row["sensitivity"].get(name)
            text = "" if moved is None else "; {value:.2f} ({low:.2f}–{high:.2f})".format(**moved)
            cells.append(_per_cent(own[name]) + text)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    every = (_score(row["transformation"]["linear"], "accuracy") for row in backbones.values())
    return "\n".join([*lines, f"| all | {' | '.join(every)} |"])


def attentive_table(kept: dict[str, Any]) -> str:
    """Format probes of tokens in per cent, and differences to the linear probe of their mean in points."""
    heads = ("attentive", "efficient")
    lines = ["| embedding | score | linear, of the mean | attentive − linear | efficient − linear |", "|---" * 5 + "|"]
    for row in kept["attentive"]:
        value, low, high = row["linear"]
        cells = [f"{_per_cent(value)} ({_per_cent(low)}–{_per_cent(high)})"]
        for head in heads:
            cells.append(_number(_of(row[f"{head}_gain"]), 100, "+.1f", late=head in row["converged"]))
        lines.append(f"| `{row['backbone']}` | {row['score'].lower()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def generators_table(kept: dict[str, Any]) -> str:
    """Format accuracy on the styles of unseen generators in per cent, and all contrasts in points."""
    first = next(iter(kept["backbones"].values()))["generators"]
    lines = ["| backbone | styles of its training generator | styles of unseen generators |", "|---" * 3 + "|"]
    for name, row in kept["backbones"].items():
        found = row["generators"]
        lines.append(f"| `{name}` | {_per_cent(found['seen'])} | {_score(found, 'accuracy')} |")
    lines += [
        *_contrasts(kept["generators"]["contrasts"]),
        f"{len(first['generators'])} generators, each training in turn with {first['styles']} of its styles, at most "
        f"{first['draws']} draws; {first['images']} test photographs of {kept['images']}, "
        f"{len(first['by_style'])} styles.",
    ]
    return "\n".join(lines)


def _contrasts(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Format differences in points, with a verdict on each."""
    lines = ["", "| contrast | points | p, Holm | verdict |", "|---" * 4 + "|"]
    for row in rows:
        points = _number(row["difference"], 100, "+.1f", late=_late(row))
        better = row["a"] if row["difference"]["value"] > 0 else row["b"]
        verdict = f"`{better}` is better" if row["p_holm"] < LEVEL else "undecided"
        lines.append(f"| `{row['a']}` − `{row['b']}` | {points} | {row['p_holm']:.3g} | {verdict} |")
    return [*lines, ""]


def of_networks(kept: dict[str, Any], task: str, metric: str) -> list[dict[str, Any]]:
    """Differences of all pairs of networks in a score of linear probes, with p values after Holm's correction."""
    controls = {name for name, row in kept["backbones"].items() if row["control"]}
    pairs = [
        row
        for row in kept["comparisons"]
        if (row["task"], row["metric"], row["head"]) == (task, metric, "linear") and not controls & {row["a"], row["b"]}
    ]
    return [{**row, "p_holm": p} for row, p in zip(pairs, holm([row["p"] for row in pairs]), strict=True)]


def kind_table(kept: dict[str, Any]) -> str:
    """Format accuracy on transformations held out in turn in per cent, and contrasts of networks in points."""
    lines = ["| backbone | mean over kinds | mean over transformations |", "|---" * 3 + "|"]
    for name, row in kept["backbones"].items():
        found = row["kind_rotation"]["linear"]
        cells = [_score(found, score) for score in ("balanced", "accuracy")]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines.append(f"| chance | {' | '.join([_per_cent(kept['chance']['kind'])] * 2)} |")
    pairs = of_networks(kept, "rotation", "balanced")
    count, images = kept["variants"] // kept["images"] - 1, kept["images"]
    text = f"{count} transformations, each held out in turn; {kept['splits']['test']} test photographs of {images}."
    return "\n".join([*lines, *_contrasts(pairs), text])


def labels_table(kept: dict[str, Any]) -> str:
    """Format accuracy or R² of labels in per cent, and prices of shortcuts in points."""
    headings = [
        "embedding",
        "label",
        "chance",
        "accuracy or R²",
        "class held fixed",
        "few labels",
        "price of a shortcut",
    ]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name, row in kept["backbones"].items():
        for label, own in row["labels"]["by_label"].items():
            score = "accuracy" if own["kind"] == "class" else "r2"
            scored = (own, own.get("fixed") or {}, own.get("few_shot") or {})
            cells = [_per_cent(own.get("chance")), *(_score(each, score) for each in scored)]
            cells.append(_number((own.get("shortcut") or {}).get("price"), 100, "+.1f"))
            lines.append(f"| `{name}` | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def movement_table(kept: dict[str, Any]) -> str:
    """Format rank correlations of each measure of movement with the loss of class accuracy."""
    lines = ["| embedding | points lost | sensitivity | radius | CSLS |", "|---" * 5 + "|"]
    for name, row in kept["backbones"].items():
        found = row["movement"]
        measures = (found["measures"][key] for key in ("sensitivity", "radius", "csls"))
        cells = [_number(measure["spearman"], 1, "+.2f") for measure in measures]
        lines.append(f"| `{name}` | {_number(found['loss'], 100, '.1f')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def moved_table(kept: dict[str, Any]) -> str:
    """Format rank correlations over backbones of each measure of movement with each loss of class accuracy."""
    rows = kept["movement_over_backbones"]
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    lines = [f"| loss over {rows[0]['backbones']} backbones, under | {' | '.join(measures)} |", "|---" * 4 + "|"]
    for loss in dict.fromkeys(row["loss"] for row in rows):
        found = {row["measure"]: row["spearman"] for row in rows if row["loss"] == loss}
        cells = ("{:+.2f} ({:+.2f} to {:+.2f})".format(*found[measure]) for measure in measures)
        lines.append(f"| {loss} | {' | '.join(cells)} |")
    return "\n".join(lines)


def known_table(kept: dict[str, Any], shown: Iterable[tuple[str, str]]) -> str:
    """Format R² of parameters of some transformations in per cent, and prices of shortcuts in points."""
    headings = [f"`{t}`: {parameter}; price" for t, parameter in shown]
    lines = [f"| embedding | {' | '.join(headings)} | all; price |", "|---" * (len(headings) + 2) + "|"]
    for name, row in kept["backbones"].items():
        known, shortcut = row["parameters"]["by_transformation"], row["shortcut"]
        every = [max(one["r2"]["value"], 0.0) for own in known.values() for one in own.values()]
        prices = {t: own["price"]["value"] for t, own in shortcut["by_transformation"].items()}
        cells = [f"{_cell(known[t][parameter]['r2'])}; {100 * prices[t]:+.1f}" for t, parameter in shown]
        price = _number(shortcut["price"], 100, "+.1f")
        lines.append(f"| `{name}` | {' | '.join(cells)} | {_per_cent(sum(every) / len(every))}; {price} |")
    return "\n".join(lines)


def shifted_table(kept: dict[str, Any]) -> str:
    """Format class accuracy, also on each shift, sensitivity, and accuracy on styles of a held-out generator."""
    shifts = [key for key in kept["shift"][0] if key.startswith("shift_")]
    generators = [f"styles of {name} held out" for name in _generators(kept, next(iter(kept["backbones"])))]
    headings = ["backbone", "class", *(f"class, {key[6:]}" for key in shifts), "mean sensitivity", *generators]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in kept["shift"]:
        cells = [_cell(_of(cell)) for cell in map(row.get, ("original", *shifts))]
        cells.append(f"{row['sensitivity']:.3f}")
        held_out = _generators(kept, row["backbone"]).values()
        cells += [_cell(one["accuracy"]) for one in held_out]
        lines.append(f"| `{row['backbone']}` | {' | '.join(cells)} |")
    last = kept["robustness"][-1]
    return (
        "\n".join(lines)
        + f"\n\nOver {len(last['backbones'])} trained backbones: {shown_correlations(Robustness.model_validate(last))}."
    )


def _generators(kept: dict[str, Any], backbone: str) -> dict[str, Any]:
    found: dict[str, Any] = kept["backbones"][backbone]["kind_rotation"]["linear"]["generators"]
    return found


def domain_table(kept: dict[str, Any], score: str) -> str:
    """Format one score of probes by training domain (rows) and test domain (columns), in per cent."""
    rows = [row for row in kept["domains"] if row["score"] == score]
    names = [key.removeprefix("on_") for key in rows[0] if key.startswith("on_")]
    shown = {name: "photographs" if name == kept["name"] else name for name in names}  # the study's own domain
    lines = [f"| embedding | trained on | {' | '.join(f'on {name}' for name in shown.values())} |"]
    lines += ["|---" * (len(names) + 2) + "|"]
    for row in rows:
        found = [row[f"on_{name}"] for name in names]
        cells = [_cell(_of(one)) for one in found]
        lines.append(f"| `{row['backbone']}` | {shown[row['trained']]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(estimate: dict[str, Any] | None, scale: float, form: str, *, late: bool = False) -> str:
    """A number with its interval; marked if the probes have not converged, – if there is none."""
    if estimate is None:
        return "–"

    def shown(number: float) -> str:
        digits = int(form[-2])
        return f"{round(scale * number, digits) + 0.0:{form}}"  # no negative zero

    between = f" ({' to '.join(map(shown, _ends(estimate)))})" if _ends(estimate) else ""
    return f"{shown(estimate['value'])}{between}" + f" {_MARK}" * late


def _ends(estimate: dict[str, Any]) -> list[float]:
    """The interval; empty without."""
    return [estimate["low"], estimate["high"]] if estimate.get("low") is not None else []


def _of(cell: Sequence[float | None] | None) -> dict[str, Any] | None:
    """The estimate of a cell of a table."""
    return None if cell is None else dict(zip(("value", "low", "high"), cell, strict=True))


def _verdicts(claims: list[dict[str, Any]]) -> str:
    """Format the testable claims, with the difference in points and its interval."""
    said = []
    for claim in claims:
        if claim["status"] != "not testable":
            estimate = claim["estimate"] or {}
            points = f": {100 * estimate['value']:+.1f}" if estimate else ""
            between = " to ".join(f"{100 * end:+.1f}" for end in _ends(estimate))
            between = f" ({between})" if between else ""
            said.append(f"{claim['id']} {claim['status']}{points}{between}")
    return f"Verdicts (points, 95 %): {'; '.join(said)}." if said else ""


def _cell(estimate: dict[str, Any] | None, *, late: bool = False) -> str:
    """A fraction in per cent with its interval; marked if the probe has not converged."""
    if estimate is None:
        return "–"
    between = f" ({'–'.join(map(_per_cent, _ends(estimate)))})" if _ends(estimate) else ""
    return _per_cent(estimate["value"]) + between + f" {_MARK}" * late


def _score(scores: dict[str, Any], name: str) -> str:
    """`_cell` of a score of a probe."""
    return _cell(scores.get(name), late=_late(scores))


def _late(scores: dict[str, Any]) -> bool:
    """Whether probes have not converged."""
    return scores.get("converged") is False


def _per_cent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def tables() -> str:
    """Format the tables of docs/results.md."""
    first = generators_table(kept_study("generators")), kind_table(kept_study("kinds"))
    return "\n\n".join([*first, *(table(kept_study(name)) for name in STUDIES)])


def pages() -> dict[Path, str]:
    """Format the tables of all pages."""
    return {
        ROOT / "docs" / "results.md": tables(),
        ROOT / "docs" / "labels.md": labels_table(kept_study("labels")),
        ROOT / "docs" / "augmentation.md": augmentation_table(kept_study("augmentation")),
        ROOT / "docs" / "backbones.md": _linear(kept_study("depth"), kept_study("depth")["backbones"]),
        ROOT / "docs" / "blind.md": blind_table({name: kept_study(f"blind-{name}") for name in BLIND})
        + "\n\n"
        + known_table(kept_study("leaks"), KNOWN),
        ROOT / "docs" / "finetuning.md": finetuned_table(kept_study("objective")),
        ROOT / "docs" / "analysis.md": "\n\n".join(
            [shifted_table(kept_study("shift")), domain_table(kept_study("domains"), "Transformation")]
        ),
        ROOT / "docs" / "attacks.md": attack_table(kept_study("attack")),
        ROOT / "docs" / "probes.md": "\n\n".join(
            [
                *(probing_table(kept_study("probing")), adapter_table(kept_study("adapt"))),
                *(attentive_table(kept_study("tokens")), movement_table(kept_study("leaks"))),
                moved_table(kept_study("shift")),
            ]
        ),
    }


# scores of kept tables, by their headings in earlier versions
_LABELS = {
    **{"Style": "Transformation", "style": "transformation"},
    **{
        f"{old}, {part}": f"{new}, {part}"
        for old, new in (("Coarse", "Kind"), ("coarse", "kind"))
        for part in ("seen", "held out")
    },
}


def kept_study(name: str) -> dict[str, Any]:
    """The summary of a study, in today's schema."""
    found: dict[str, Any] = json.loads((RESULTS / f"study-{name}.json").read_text())
    if "contrasts" in found:  # as they were kept in schema 1
        found["generators"] = {"contrasts": found.pop("contrasts")}
    for row in (row for part in ("finetuned", "attentive", "domains") for row in found.get(part, ())):
        row["score"] = _LABELS.get(row.get("score"), row.get("score"))
    return converted(found)


def written(readme: str, text: str) -> str:
    """Replace the text between the two markers of a page."""
    before, rest = readme.split(START)
    return f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", nargs=2, metavar=("NAME", "RESULTS.json"))
    parser.add_argument("--parts", default="", metavar="PARTS")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.keep:
        name, source = options.keep
        RESULTS.mkdir(exist_ok=True)
        kept = summary(converted(json.loads(Path(source).read_text())))
        if options.parts:
            kept = parts(kept, options.parts.split(","))
        (RESULTS / f"study-{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    for path, text in pages().items():
        if options.write:
            path.write_text(written(path.read_text(), text))
        print(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
