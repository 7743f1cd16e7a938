"""Tables of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from substyle.engine.report.data import (
    Column,
    Table,
    cell_of,
    scored,
    show,
    words,
)
from substyle.engine.results.model import BackboneResults, ProbeScores, ResultsDocument
from substyle.engine.results.statistics import binomial_interval

_BACKBONE, _HEAD = words("backbone", "head")
_RECALLS = ("1", "5", "10")


def overview(results: ResultsDocument) -> Table:
    """Probe accuracy, one row per backbone and head."""
    columns = (
        *(_BACKBONE, _HEAD, Column("dim", "Width", "count"), Column("transformation", "Transformation", interval=True)),
        *(Column("seen", "Seen", interval=True), Column("held_out", "Held out", interval=True)),
        Column("gap", "Gap", "points", interval=True),
        Column("rotation", "Held out in turn", interval=True),
        Column("original", "Class, original", interval=True),
        Column("transformed", "Class, transformed", interval=True),
    )
    wanted = (
        *(("transformation", "accuracy"), ("kind", "seen"), ("kind", "held_out"), ("kind", "gap")),
        *(("kind_rotation", "accuracy"), ("class", "original"), ("class", "transformed")),
    )
    rows = []
    for name, backbone in results.ordered().items():
        for head in results.heads():
            values = [scored(backbone.probe(task, head), key) for task, key in wanted]
            if any(values):
                rows.append((name, head, backbone.dim, *values))
    return Table("overview", "Probe accuracy of each backbone (95 % intervals).", columns, tuple(rows))


def _each_transformation(
    results: ResultsDocument,
    name: str,
    caption: str,
    columns: Sequence[Column],
    values: Callable[[BackboneResults, str], Iterable[Any]],
) -> Table:
    """Table of (backbone, transformation, kind, role, *values), without rows that have no values."""
    rows = []
    for own, backbone in results.ordered().items():
        for row in results.transformations:
            found = tuple(values(backbone, row.name))
            if any(value is not None for value in found):
                rows.append((own, row.name, row.kind, row.role, *found))
    fixed = (*words("backbone", "transformation"), Column("kind", "Kind", "text"), *words("role"))
    return Table(name, caption, (*fixed, *columns), tuple(rows))


# of each task: table, caption, columns and their heading
_BY_TRANSFORMATION = {
    "transformation": (
        "per_transformation",
        "Transformation accuracy on test photographs, by transformation.",
        "transformation",
        "Transformation",
    ),
    "kind": ("generalisation", "Kind accuracy on test photographs, by transformation.", "kind", "Kind"),
    "kind_rotation": (
        *("rotation", "Kind accuracy on test photographs, by transformation, each held out in turn."),
        *("kind", "Kind"),
    ),
    "class": (
        *("class", "Accuracy of the class probe, trained on original photographs, by transformation."),
        *("class", "Class"),
    ),
}


def by_transformation(results: ResultsDocument, task: str) -> Table:
    """Accuracy of a task by transformation, a column per kind of head."""
    name, caption, key, heading = _BY_TRANSFORMATION[task]
    tried, interval = results.heads(), task != "class"

    def values(backbone: BackboneResults, transformation: str) -> Iterable[Any]:
        for probe in (backbone.probe(task, head) for head in tried):
            found = (getattr(probe, "by_transformation", None) or {}).get(transformation)
            if task.startswith("kind"):
                yield scored(found, "accuracy")
            elif task == "class" or found is None:
                yield found
            else:
                yield (found, *(recall_interval(results, probe, transformation, found) or (None, None)))

    columns = [Column(f"{key}_{head}", f"{heading} ({head})", interval=interval) for head in tried]
    return _each_transformation(results, name, caption, columns, values)


def confused_with(probe: ProbeScores | None, label: str) -> list[tuple[str, int]]:
    """(prediction, count) of the test variants of a label, most frequent first; empty if unknown."""
    matrix = probe.confusion if probe else None
    if matrix is None or label not in matrix.labels:
        return []
    counts = zip(matrix.labels, matrix.counts[matrix.labels.index(label)], strict=True)
    return sorted((each for each in counts if each[1]), key=lambda each: -each[1])


def recall_interval(
    results: ResultsDocument, probe: ProbeScores | None, label: str, recall: float
) -> tuple[float, float] | None:
    """Interval of the recall of a transformation over test photographs.

    None unless the confusion matrix has the same recall, of at most one variant of each photograph, and photographs are
    independent: none are near-duplicates or drawn by folder.
    """
    counts, photographs = dict(confused_with(probe, label)), (results.splits or {}).get("test") or 0
    right, total = counts.get(label, 0), sum(counts.values())
    if results.resampled is None or results.resampled.groups != photographs or not 0 < total <= photographs:
        return None
    return binomial_interval(right, total) if abs(right / total - recall) < _SAME else None


_SAME = 1e-6  # difference of recalls that are rounded differently


def geometry(results: ResultsDocument) -> Table:
    """Sensitivity, equivariance and steerability by transformation."""
    return _each_transformation(
        results,
        "geometry",
        "Sensitivity (1 - cosine to the original photograph, mean photograph subtracted), parallelism of "
        "displacements, and R2 of a linear map to the variant.",
        [
            Column("sensitivity", "Sensitivity", "number", interval=True),
            Column("equivariance", "Equivariance", "number", interval=True),
            Column("steerability", "Steerability", "number"),
            Column("unchanged", "R2 of the original", "number"),
        ],
        lambda backbone, t: (
            *(cell_of((each or {}).get(t)) for each in (backbone.sensitivity, backbone.equivariance)),
            *((each or {}).get(t) for each in (backbone.steerability, backbone.steerability_unchanged)),
        ),
    )


def knn(results: ResultsDocument) -> Table:
    """k-NN accuracy by k."""
    scores = (Column("transformation", "Transformation", interval=True), Column("class", "Class", interval=True))
    columns = (_BACKBONE, Column("k", "k", "count"), *scores)
    rows = [
        (name, int(k), cell_of(own), cell_of((near.label or {}).get(k)))
        for name, backbone in results.ordered().items()
        if (near := backbone.knn)
        for k, own in (near.transformation or {}).items()
    ]
    return Table("knn", "Accuracy of a vote of the k nearest training variants (cosine).", columns, tuple(rows))


def neighbours(results: ResultsDocument) -> Table:
    """Balance, retrieval and clusters."""
    balance = (("same_image", "photograph"), ("same_transformation", "transformation"), ("neither", "neither"))
    recalled = (("image", "image", "Photograph"), ("transformation", "transformation", "Transformation"))
    clusters = (("ami_transformation", "AMI, transformation"), ("ami_class", "AMI, class"))
    columns = (
        _BACKBONE,
        *(Column(key, f"Nearest: {heading}", interval=True) for key, heading in balance),
        *(
            Column(f"recall_{what}_{k}", f"{heading}, R@1" if k == "1" else f"R@{k}")
            for _, what, heading in recalled
            for k in _RECALLS
        ),
        *(Column(key, heading, "number", interval=True) for key, heading in clusters),
    )
    rows = []
    for name, backbone in results.ordered().items():
        values = [
            *(scored(backbone.balance, key) for key, _ in balance),
            *(((backbone.retrieval or {}).get(of) or {}).get(k) for of, *_ in recalled for k in _RECALLS),
            *(scored(backbone.clusters, key) for key, _ in clusters),
        ]
        if any(value is not None for value in values):
            rows.append((name, *values))
    caption = "Balance, retrieval and clusters of test variants (95 % intervals)."
    return Table("neighbours", caption, columns, tuple(rows))


def multitask(results: ResultsDocument) -> Table:
    """Multi-task probes and their single-task twins."""
    columns = [_BACKBONE, Column("task_weight", "Weight", "number")]
    for task, heading in (("transformation", "Transformation"), ("class", "Class")):
        columns += [
            Column(f"{task}_both", f"{heading}, both", interval=True),
            Column(f"{task}_alone", f"{heading}, alone", interval=True),
            Column(f"{task}_difference", "Difference", "points", interval=True),
        ]
    rows = []
    for name, backbone in results.ordered().items():
        if both := backbone.multitask:
            row: list[Any] = [name, both.task_weight]
            for task in ("transformation", "class"):
                difference = (both.difference or {}).get(task)
                row += [scored(both, task), scored(both.single_task, task), cell_of(difference)]
            rows.append(tuple(row))
    return Table("multitask", "Multi-task probes and their single-task twins.", tuple(columns), tuple(rows))


def comparisons(results: ResultsDocument) -> Table:
    """Paired differences between backbones."""
    columns = (
        *words("task", "metric", "head", "a", "b"),
        Column("difference", "A − B", "points", interval=True),
        Column("two_way", "Two‑way", "points", interval=True),
        Column("se", "Error", "share"),
        Column("p_holm", "p", "number"),
    )
    rows = [
        (
            *(row.task, row.metric, row.head, row.a, row.b),
            (row.difference.value, *(row.difference.over_photographs or (None, None))),
            (row.difference.value, *ends) if (ends := row.difference.over_transformations) else None,
            *(row.difference.se, row.p_holm),
        )
        for row in results.comparisons or []
    ]
    return Table("comparisons", "Paired differences (one-way and two-way bootstrap intervals).", columns, tuple(rows))


def redrawn(results: ResultsDocument) -> Table:
    """Accuracy on held-out transformations over random held-out sets."""
    columns = (
        *(_BACKBONE, Column("sets", "Sets", "count"), Column("mean", "Mean"), Column("sd", "Standard deviation")),
        *(Column("low", "Lowest"), Column("high", "Highest")),
    )
    found = {name: (each.kind_redrawn or {}).get("linear") for name, each in results.ordered().items()}
    rows = [(name, *(getattr(each, column.name) for column in columns[1:])) for name, each in found.items() if each]
    caption = "Kind accuracy on held-out transformations, over random held-out sets."
    return Table("redrawn", caption, columns, tuple(rows))


def equal_width(results: ResultsDocument) -> Table:
    """Linear probes on a random projection to a common width."""
    columns = (
        *(_BACKBONE, Column("dim", "Width", "count"), Column("transformation", "Transformation", interval=True)),
        Column("rotation", "Held out in turn", interval=True),
        Column("styles", "Painting styles", interval=True),
    )
    rows = []
    for name, backbone in results.ordered().items():
        if found := backbone.equal_width:
            turned = (scored(found.rotation, key) for key in ("accuracy", "styles"))
            rows.append((name, found.dim, scored(found.transformation, "accuracy"), *turned))
    return Table("equal_width", "Linear probes on a random projection to a common width.", columns, tuple(rows))


_TRAINED = ("transformation", "kind", "kind_rotation", "class", "multitask")  # tasks


def training(results: ResultsDocument) -> Table:
    """Convergence and certificates of all probes."""
    columns = words("backbone", "task", "head", "converged", "edge", "certificate")
    rows = []
    for name, backbone in results.ordered().items():
        for task in _TRAINED:
            for head, probe in backbone.probes(task).items():
                if probe.converged is not None:
                    certificate = probe.certificate or {}
                    numbers = {key: value for key, value in certificate.items() if type(value) in (int, float)}
                    details = ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())
                    flags = ("–" if flag is None else "yes" if flag else "no" for flag in (probe.converged, probe.edge))
                    rows.append((name, task, head, *flags, details))
    return Table("training", "Convergence of all probes.", columns, tuple(rows))


def calibrations(results: ResultsDocument) -> Table:
    """Temperature of each output of a probe, and its calibration error without and with it."""
    columns = (
        *words("backbone", "task", "head", "output"),
        Column("ece_before", "Error at temperature 1"),
        Column("ece", "Error at the fitted temperature"),
        Column("temperature", "Temperature", "number"),
    )
    rows = [
        (name, task, head, output, own.ece_before, own.ece, own.temperature)
        for name, backbone in results.ordered().items()
        for task in _TRAINED
        for head, probe in backbone.probes(task).items()
        for output, own in (probe.calibration or {}).items()
        if own is not None
    ]
    return Table("calibration", "Expected calibration error of all probes.", columns, tuple(rows))


def confusions(results: ResultsDocument, task: str) -> Table:
    """Non-zero cells of the confusion matrices of a task."""
    columns = (*words("backbone", "head", "truth", "predicted"), Column("count", "Variants", "count"))
    rows = []
    for name, backbone in results.ordered().items():
        for head in results.heads():
            probe = backbone.probe(task, head)
            if probe is None or (matrix := probe.confusion) is None:
                continue
            for truth, counts in zip(matrix.labels, matrix.counts, strict=True):
                pairs = zip(matrix.labels, counts, strict=True)
                rows += [(name, head, truth, predicted, count) for predicted, count in pairs if count]
    return Table(f"confusion_{task}", f"Confusions of the {task} probes.", columns, tuple(rows))


def headline_table(results: ResultsDocument) -> str:
    """Overview as text for the terminal: accuracies of each backbone in per cent, and chance.

    Scores of kind and class are those of the first head, linear if available. † marks probes that have not converged.
    """
    tried, first = results.heads(), results.first_head() or "linear"
    columns = [  # heading, task, head, score
        *((f"transformation {head}", "transformation", head, "accuracy") for head in tried),
        *(
            ("seen", "kind", first, "seen"),
            ("held out", "kind", first, "held_out"),
            ("gap", "kind", first, "gap"),
        ),
        ("class, original", "class", first, "original"),
        ("class, transformed", "class", first, "transformed"),
    ]
    backbones = results.ordered()
    late = any(backbone.unconverged(task, head) for backbone in backbones.values() for _, task, head, _ in columns)
    blank = " " * late  # keeps digits below each other
    lines = [["backbone", "dim", *(f"{heading}{blank}" for heading, *_ in columns), f"10-NN transformation{blank}"]]
    for name, backbone in backbones.items():
        cells = [
            show(getattr(backbone.probe(task, head), key, None)) + ("†" if backbone.unconverged(task, head) else blank)
            for _, task, head, key in columns
        ]
        near = ((backbone.knn and backbone.knn.transformation) or {}).get("10")
        lines.append([name, show(backbone.dim, "count"), *cells, show(near) + blank])
    chances = [None if key == "gap" else results.chance_of(task) for _, task, _, key in columns]
    chances.append(results.chance_of("transformation"))
    lines.append(["chance", "", *("" if chance is None else show(chance) + blank for chance in chances)])
    notes = ["† The probe has not converged."] * late + [note for note in (results.gate_note(),) if note]
    return "\n".join([text_table(lines), *notes])


def text_table(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align a table for a terminal: a line of headings, a rule, rows. The first ``left`` columns are flush left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    flush = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    text = [
        "  ".join(align(cell, width) for align, cell, width in zip(flush, row, widths, strict=True)) for row in lines
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([text[0], rule, *text[1:]])
