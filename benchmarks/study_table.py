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

from benchmarks.harness import RESULTS, ROOT, markdown, replaced, write
from substyle.engine.extensions.attentive.section import attentive
from substyle.engine.extensions.finetune.section import finetuned
from substyle.engine.extensions.movement.section import over_backbones
from substyle.engine.probes.outcomes import holm
from substyle.engine.results.convert import converted
from substyle.engine.results.model import Robustness
from substyle.engine.stages.results import validate_results
from substyle.engine.stages.shift.domains_section import domains
from substyle.engine.stages.shift.section import shift_table, shown_correlations

START, END = "<!-- study table: benchmarks/study_table.py -->", "<!-- end of study table -->"
Json = dict[str, Any]
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


def summary(results: Json) -> Json:
    """Reduce a results.json to every score with its interval, without keys of images."""
    kept: Json = {key: results[key] for key in _KEPT}
    kept["backbones"] = {name: _backbone(row) for name, row in results["backbones"].items()}
    kept["claims"] = [{key: claim[key] for key in _CLAIM} for claim in results.get("claims", [])]
    kept["comparisons"] = [
        row
        for row in results["comparisons"]
        if row["task"] == "transformation" or (row["task"] in _TASKS and row["head"] == "linear")
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
    answer: Json = json.loads(text)
    return answer


def _backbone(found: Json) -> Json:
    row: Json = {key: found[key] for key in ("dim", "control", "runtime", "gate", "knn", "balance")}
    for task, wanted in _WANTED.items():
        keys = (*wanted, "converged", "certificate")
        row[task] = {head: {k: one[k] for k in keys if k in one} for head, one in (found.get(task) or {}).items()}
    multitask = found.get("multitask") or {}
    wanted = ("transformation", "class", "task_weight", "difference", "converged")
    row["multitask"] = {key: multitask[key] for key in wanted if key in multitask}
    row |= {key: found[key] for key in ("attack", "few_shot", "generators") if key in found}
    parts = ("labels", "movement", "parameters", "shortcut", "extractability")
    row |= {key: _without_points(found[key]) for key in parts if found.get(key)}
    row |= {key: found[key] for key in ("adapter", "complexity", "sensitivity") if found.get(key)}
    tuned = (found.get("spec") or {}).get("finetuned")
    return row | ({"finetuned": f"{tuned['backbone']} + {tuned['objective']}, seed {tuned['seed']}"} if tuned else {})


def parts(kept: Json, names: Iterable[str]) -> Json:
    own = {name: {key: row[key] for key in ("control", *names)} for name, row in kept["backbones"].items()}
    return {key: kept[key] for key in _KEPT} | {"backbones": own, "comparisons": []}


def _without_points(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """Results without the points of plots and the blocks of codelengths."""
    if isinstance(value, dict):
        return {key: _without_points(inner) for key, inner in value.items() if key not in ("points", "blocks")}
    return value


def table(kept: Json) -> str:
    """Format one Markdown row per backbone: per cent, 95 % intervals in brackets, unconverged probes marked.

    Values missing from the summary are dashes.
    """
    rows = []
    for name, row in kept["backbones"].items():
        cells = [_score(row.get(task, {}).get(head, {}), score) for _, task, head, score in _COLUMNS]
        near = row["knn"]["transformation"].get("10")
        rows.append([f"`{name}`", *cells, _per_cent(near and near["value"])])
    tasks = [*(task.removesuffix("_rotation") for _, task, *_ in _COLUMNS), "transformation"]
    rows.append(["chance", *(_per_cent(kept["chance"].get(task)) for task in tasks)])
    spent, images = kept["throughput"], kept["images"]
    verdicts = _verdicts(kept.get("claims", []))
    return "\n".join([
        _marked(markdown(["backbone", *(column[0] for column in _COLUMNS), "10-NN transformation"], rows)),
        *(["", verdicts] if verdicts else []),
        "",
        f"{images:,} photographs × {kept['variants'] // images} variants × {len(kept['backbones'])} embeddings; "
        f"{spent['variants_per_s']:.0f} variants/s in one pass, embedding {spent['embed_seconds'] / 60:.1f} min, "
        f"probes {spent['probe_seconds'] / 60:.1f} min, analysis {spent['analysis_seconds'] / 60:.1f} min on "
        f"{kept['environment']['threads']} cores ({kept['environment']['cpu']}).",
    ])  # fmt: skip


def _marked(text: str) -> str:
    """A table, and what its mark means if it has one."""
    said = f"\n\n{_MARK} The probe has not converged: more training would change this number."
    return text + (said if _MARK in text else "")


_DETECTORS = {"transformation": "transformation probe", "kind": "kind probe", "detector": "detector",
              "other_radii": "other radii",
              "other_attacks": "other attacks", "mahalanobis": "Mahalanobis", "knn": "k-NN", "squeezing": "squeezing",
              "layers": "layers"}  # fmt: skip


def attack_table(kept: Json) -> str:
    """Format success, AUROC and true-positive rate at 5 % false positives of each attack, in per cent."""
    parts = []
    for name, backbone in kept["backbones"].items():
        if not (found := backbone.get("attack")):
            continue
        rows = []
        for attack, row in found["attacks"].items():
            scores = [row["detection"].get(how) for how in _DETECTORS]
            both = [f"{_per_cent(s['auroc']['value'])} / {_per_cent(s['tpr']['value'])}" if s else "–" for s in scores]
            rows.append([f"`{attack}`", _cell(row["success"]), *both])
        count = found["photographs"]
        parts.append(
            f"{markdown(['attack', 'success', *_DETECTORS.values()], rows)}\n\n"
            f"`{name}`, class accuracy {_per_cent(found['accuracy'])}; {count['train']} training and "
            f"{count['attacked']} test photographs, {found['library']}, transfer from `{found['surrogate']}`."
        )
    return "\n\n".join(parts)


def probing_table(kept: Json) -> str:
    """Format extractability of linear probes, and differences of MLPs of every size to the linear probe.

    Selectivity and differences are in points, accuracies in per cent, codelengths in bits per label.
    """
    tasks = ("transformation", "class")
    measures = {  # part, key, scale, form
        "selectivity": ("selectivity", "selectivity", 100.0, "+.1f"),
        "bits per label": ("codelength", "bits", 1.0, ".2f"),
        "photographs for 90 %": ("curve", "needed", 1.0, ".0f"),
    }
    rows = []
    for name, row in kept["backbones"].items():
        heads = [row["extractability"][task]["linear"] for task in tasks]
        cells = [
            _number((head.get(part) or {}).get(key), scale, form, late=_late(head.get(part) or {}))
            for part, key, scale, form in measures.values()
            for head in heads
        ]
        rows.append([f"`{name}`", *cells])
    first = markdown(["backbone", *(f"{measure}, {task}" for measure in measures for task in tasks)], rows)
    sizes = [size for size in next(iter(kept["backbones"].values()))["complexity"] if size != "linear"]
    rows = []
    for name, row in kept["backbones"].items():
        for task in tasks:
            probes, late = row["complexity"], f"{task}_converged"
            cells = [_cell(probes["linear"].get(task), late=probes["linear"][late] is False)]
            for own in map(probes.get, sizes):
                cells.append(_number(own.get(f"{task}_difference"), 100, "+.1f", late=own[late] is False))
            rows.append([f"`{name}`", task, *cells])
    headings = ["backbone", "task", "linear", *(size.replace("x", "×") for size in sizes)]
    return f"{first}\n\n{markdown(headings, rows)}"


def adapter_table(kept: Json) -> str:
    """Format scores of linear probes on backbones and on their adapted embeddings, in per cent."""
    adapted = {name: row["adapter"]["backbone"] for name, row in kept["backbones"].items() if "adapter" in row}
    bases = dict.fromkeys(adapted.values())
    return _linear(kept, [each for base in bases for each in (base, *(n for n, of in adapted.items() if of == base))])


def _linear(kept: Json, names: Iterable[str]) -> str:
    """Format scores of linear probes on some embeddings, in per cent."""
    columns = [column for column in _COLUMNS if column[2] == "linear" and column[1] != "kind_rotation"]
    rows = []
    for name in names:
        row = kept["backbones"][name]
        scores = [_score(row[task].get(head, {}), score) for _, task, head, score in columns]
        rows.append([f"`{name}`", f"{row['dim']:,}", *scores])
    return markdown(["embedding", "width", *(column[0].removesuffix(", linear") for column in columns)], rows)


def finetuned_table(kept: Json) -> str:
    """Format scores before and after fine-tuning in per cent, mean over seeds, and differences in points."""
    found = {(row["score"], row["objective"]): row for row in kept["finetuned"]}
    others = ("transformation", "joint")
    rows = []
    for score in dict.fromkeys(row["score"] for row in kept["finetuned"]):
        cells = [_per_cent(found[score, "class"]["before"])]
        cells += [_per_cent(found[score, objective]["after"]) for objective in ("class", *others)]
        for row in (found[score, objective] for objective in others):
            cells.append(_number(_of(row["difference"]), 100, "+.1f", late=row["converged"] != "yes"))
        rows.append([score, *cells])
    return markdown(["score", "before", "class", *others, *(f"{each} − class" for each in others)], rows)


def blind_table(kept: dict[str, Json]) -> str:
    """Format how well linear probes tell photographs from variants, by transformation, and sensitivity."""
    rows = []
    for backbone in next(iter(kept.values()))["backbones"]:
        own = {name: study["backbones"][backbone] for name, study in kept.items()}
        cells = [
            f"{_score(row['transformation']['linear'], 'accuracy')}; {row['sensitivity'][name]['value']:.3f}"
            for name, row in own.items()
        ]
        rows.append([f"`{backbone}`", *cells])
    return _marked(markdown(["embedding", *(f"`{name}`" for name in kept)], rows))


def augmentation_table(kept: Json) -> str:
    """Format by transformation how often a linear probe finds it in per cent, and sensitivity."""
    backbones = kept["backbones"].values()
    found = [row["transformation"]["linear"]["by_transformation"] for row in backbones]
    rows = []
    for name in found[0]:
        cells = []
        for row, own in zip(backbones, found, strict=True):
            moved = row["sensitivity"].get(name)
            text = "" if moved is None else "; {value:.2f} ({low:.2f}–{high:.2f})".format(**moved)
            cells.append(_per_cent(own[name]) + text)
        rows.append([f"`{name}`", *cells])
    rows.append(["all", *(_score(row["transformation"]["linear"], "accuracy") for row in backbones)])
    return markdown(["transformation", *(f"`{name}`" for name in kept["backbones"])], rows)


def attentive_table(kept: Json) -> str:
    """Format probes of tokens in per cent, and differences to the linear probe of their mean in points."""
    heads, rows = ("attentive", "efficient"), []
    for row in kept["attentive"]:
        gains = [_number(_of(row[f"{h}_gain"]), 100, "+.1f", late=h in row["converged"]) for h in heads]
        rows.append([f"`{row['backbone']}`", row["score"].lower(), _cell(_of(row["linear"])), *gains])
    return markdown(["embedding", "score", "linear, of the mean", *(f"{head} − linear" for head in heads)], rows)


def generators_table(kept: Json) -> str:
    """Format accuracy on the styles of unseen generators in per cent, and all contrasts in points."""
    found = {name: row["generators"] for name, row in kept["backbones"].items()}
    first = next(iter(found.values()))
    rows = [[f"`{name}`", _per_cent(own["seen"]), _score(own, "accuracy")] for name, own in found.items()]
    return "\n".join([
        markdown(("backbone", "styles of its training generator", "styles of unseen generators"), rows),
        *_contrasts(kept["generators"]["contrasts"]),
        f"{len(first['generators'])} generators, each training in turn with {first['styles']} of its styles, at most "
        f"{first['draws']} draws; {first['images']} test photographs of {kept['images']}, "
        f"{len(first['by_style'])} styles.",
    ])  # fmt: skip


def _contrasts(found: Iterable[Json]) -> list[str]:
    """Format differences in points, with a verdict on each."""
    rows = []
    for row in found:
        better = row["a"] if row["difference"]["value"] > 0 else row["b"]
        verdict = f"`{better}` is better" if row["p_holm"] < LEVEL else "undecided"
        points = _number(row["difference"], 100, "+.1f", late=_late(row))
        rows.append([f"`{row['a']}` − `{row['b']}`", points, f"{row['p_holm']:.3g}", verdict])
    return ["", markdown(("contrast", "points", "p, Holm", "verdict"), rows), ""]


def of_networks(kept: Json, task: str, metric: str) -> list[Json]:
    """Differences of all pairs of networks in a score of linear probes, with p values after Holm's correction."""
    controls = {name for name, row in kept["backbones"].items() if row["control"]}
    pairs = [
        row
        for row in kept["comparisons"]
        if (row["task"], row["metric"], row["head"]) == (task, metric, "linear") and not controls & {row["a"], row["b"]}
    ]
    return [{**row, "p_holm": p} for row, p in zip(pairs, holm([row["p"] for row in pairs]), strict=True)]


def kind_table(kept: Json) -> str:
    """Format accuracy on transformations held out in turn in per cent, and contrasts of networks in points."""
    rows = []
    for name, row in kept["backbones"].items():
        found = row["kind_rotation"]["linear"]
        rows.append([f"`{name}`", *(_score(found, score) for score in ("balanced", "accuracy"))])
    rows.append(["chance", *[_per_cent(kept["chance"]["kind"])] * 2])
    made = markdown(("backbone", "mean over kinds", "mean over transformations"), rows)
    count, images = kept["variants"] // kept["images"] - 1, kept["images"]
    text = f"{count} transformations, each held out in turn; {kept['splits']['test']} test photographs of {images}."
    return "\n".join([made, *_contrasts(of_networks(kept, "rotation", "balanced")), text])


def labels_table(kept: Json) -> str:
    """Format accuracy or R² of labels in per cent, and prices of shortcuts in points."""
    rows = []
    for name, row in kept["backbones"].items():
        for label, own in row["labels"]["by_label"].items():
            score = "accuracy" if own["kind"] == "class" else "r2"
            scored = (own, own.get("fixed") or {}, own.get("few_shot") or {})
            price = _number((own.get("shortcut") or {}).get("price"), 100, "+.1f")
            rows.append([f"`{name}`", label, _per_cent(own.get("chance")), *(_score(s, score) for s in scored), price])
    scores = ("accuracy or R²", "class held fixed", "few labels")
    return markdown(["embedding", "label", "chance", *scores, "price of a shortcut"], rows)


def movement_table(kept: Json) -> str:
    """Format rank correlations of each measure of movement with the loss of class accuracy."""
    rows = []
    for name, row in kept["backbones"].items():
        found = row["movement"]
        measures = (found["measures"][key]["spearman"] for key in ("sensitivity", "radius", "csls"))
        loss = _number(found["loss"], 100, ".1f")
        rows.append([f"`{name}`", loss, *(_number(each, 1, "+.2f") for each in measures)])
    return markdown(("embedding", "points lost", "sensitivity", "radius", "CSLS"), rows)


def moved_table(kept: Json) -> str:
    """Format rank correlations over backbones of each measure of movement with each loss of class accuracy."""
    found = kept["movement_over_backbones"]
    spearman = {(row["loss"], row["measure"]): _number(_of(row["spearman"]), 1, "+.2f") for row in found}
    losses, measures = ({key[i]: None for key in spearman} for i in (0, 1))
    rows = [[loss, *(spearman[loss, measure] for measure in measures)] for loss in losses]
    return markdown([f"loss over {found[0]['backbones']} backbones, under", *measures], rows)


def known_table(kept: Json, shown: Iterable[tuple[str, str]]) -> str:
    """Format R² of parameters of some transformations in per cent, and prices of shortcuts in points."""
    rows = []
    for name, row in kept["backbones"].items():
        known, shortcut = row["parameters"]["by_transformation"], row["shortcut"]
        prices = {t: own["price"]["value"] for t, own in shortcut["by_transformation"].items()}
        cells = [f"{_cell(known[t][parameter]['r2'])}; {100 * prices[t]:+.1f}" for t, parameter in shown]
        price = _number(shortcut["price"], 100, "+.1f")
        rows.append([f"`{name}`", *cells, f"{_per_cent(mean_r2(row)[0])}; {price}"])
    return markdown(["embedding", *(f"`{t}`: {parameter}; price" for t, parameter in shown), "all; price"], rows)


def mean_r2(row: Json) -> tuple[float, int]:
    """Mean R² of all parameters, of which those below 0 count as 0, and their number."""
    known = row["parameters"]["by_transformation"].values()
    every = [max(one["r2"]["value"], 0.0) for own in known for one in own.values()]
    return sum(every) / len(every), len(every)


def shifted_table(kept: Json) -> str:
    """Format class accuracy, also on each shift, sensitivity, and accuracy on styles of a held-out generator."""
    shifts = [key for key in kept["shift"][0] if key.startswith("shift_")]
    held_out = {
        name: {of: _cell(one["accuracy"]) for of, one in row["kind_rotation"]["linear"]["generators"].items()}
        for name, row in kept["backbones"].items()
    }
    rows = []
    for row in kept["shift"]:
        scores = [_cell(_of(cell)) for cell in map(row.get, ("original", *shifts))]
        rows.append([f"`{row['backbone']}`", *scores, f"{row['sensitivity']:.3f}", *held_out[row["backbone"]].values()])
    generators = [f"styles of {name} held out" for name in next(iter(held_out.values()))]
    headings = ["backbone", "class", *(f"class, {key[6:]}" for key in shifts), "mean sensitivity", *generators]
    last = kept["robustness"][-1]
    said = shown_correlations(Robustness.model_validate(last))
    return f"{markdown(headings, rows)}\n\nOver {len(last['backbones'])} trained backbones: {said}."


def domain_table(kept: Json, score: str) -> str:
    """Format one score of probes by training domain (rows) and test domain (columns), in per cent."""
    found = [row for row in kept["domains"] if row["score"] == score]
    names = [key.removeprefix("on_") for key in found[0] if key.startswith("on_")]
    shown = {name: "photographs" if name == kept["name"] else name for name in names}  # the study's own domain
    rows = [
        [f"`{row['backbone']}`", shown[row["trained"]], *(_cell(_of(row[f"on_{name}"])) for name in names)]
        for row in found
    ]
    return markdown(["embedding", "trained on", *(f"on {name}" for name in shown.values())], rows)


def _number(estimate: Json | None, scale: float, form: str, *, late: bool = False) -> str:
    """A number with its interval; marked if the probes have not converged, – if there is none."""
    if estimate is None:
        return "–"

    def shown(number: float) -> str:
        digits = int(form[-2])
        return f"{round(scale * number, digits) + 0.0:{form}}"  # no negative zero

    between = f" ({' to '.join(map(shown, _ends(estimate)))})" if _ends(estimate) else ""
    return f"{shown(estimate['value'])}{between}" + f" {_MARK}" * late


def _ends(estimate: Json) -> list[float]:
    return [estimate["low"], estimate["high"]] if estimate.get("low") is not None else []


def _of(cell: Sequence[float | None] | None) -> Json | None:
    """The estimate of a cell of a table."""
    return None if cell is None else dict(zip(("value", "low", "high"), cell, strict=True))


def _verdicts(claims: list[Json]) -> str:
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


def _cell(estimate: Json | None, *, late: bool = False) -> str:
    """A fraction in per cent with its interval; marked if the probe has not converged."""
    if estimate is None:
        return "–"
    between = f" ({'–'.join(map(_per_cent, _ends(estimate)))})" if _ends(estimate) else ""
    return _per_cent(estimate["value"]) + between + f" {_MARK}" * late


def _score(scores: Json, name: str) -> str:
    return _cell(scores.get(name), late=_late(scores))


def _late(scores: Json) -> bool:
    return scores.get("converged") is False


def _per_cent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def pages() -> dict[Path, str]:
    made = {
        "docs/results.md": [
            *(generators_table(kept_study("generators")), kind_table(kept_study("kinds"))),
            *(table(kept_study(name)) for name in STUDIES),
        ],
        "docs/labels.md": [labels_table(kept_study("labels"))],
        "docs/augmentation.md": [augmentation_table(kept_study("augmentation"))],
        "docs/blind.md": [
            blind_table({name: kept_study(f"blind-{name}") for name in BLIND}),
            known_table(kept_study("leaks"), KNOWN),
        ],
        "docs/finetuning.md": [finetuned_table(kept_study("objective"))],
        "docs/attacks.md": [attack_table(kept_study("attack"))],
        "benchmarks/TABLES.md": [
            _linear(kept_study("depth"), kept_study("depth")["backbones"]),
            *(probing_table(kept_study("probing")), adapter_table(kept_study("adapt"))),
            *(attentive_table(kept_study("tokens")), movement_table(kept_study("leaks"))),
            *(moved_table(kept_study("shift")), shifted_table(kept_study("shift"))),
            domain_table(kept_study("domains"), "Transformation"),
        ],
    }
    return {ROOT / page: "\n\n".join(tables) for page, tables in made.items()}


# scores of kept tables, by their headings in earlier versions
_LABELS = {
    **{"Style": "Transformation", "style": "transformation"},
    **{
        f"{old}, {part}": f"{new}, {part}"
        for old, new in (("Coarse", "Kind"), ("coarse", "kind"))
        for part in ("seen", "held out")
    },
}


def kept_study(name: str) -> Json:
    """The summary of a study, in today's schema."""
    found: Json = json.loads((RESULTS / f"study-{name}.json").read_text())
    if "contrasts" in found:  # as they were kept in schema 1
        found["generators"] = {"contrasts": found.pop("contrasts")}
    for row in (row for part in ("finetuned", "attentive", "domains") for row in found.get(part, ())):
        row["score"] = _LABELS.get(row.get("score"), row.get("score"))
    return converted(found)


def written(page: str, text: str) -> str:
    return replaced(page, START, END, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", nargs=2, metavar=("NAME", "RESULTS.json"))
    parser.add_argument("--parts", default="", metavar="PARTS")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.keep:
        name, source = options.keep
        kept = summary(converted(json.loads(Path(source).read_text())))
        write(RESULTS / f"study-{name}.json", parts(kept, options.parts.split(",")) if options.parts else kept)
    for path, text in pages().items():
        if options.write:
            path.write_text(written(path.read_text(), text))
        print(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
