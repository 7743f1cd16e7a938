"""Tables of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from substyle.engine.report.data import (
    Column,
    Kind,
    Results,
    Table,
    dig,
    first_head,
    heads,
    ordered,
    scored,
    scored_under,
    show,
    show_interval,
    words,
)
from substyle.engine.report.findings import task_score

_BACKBONE, _HEAD = words("backbone", "head")


def overview(results: Results) -> Table:
    """Probe accuracy, one row per backbone and head."""
    columns = (
        *(_BACKBONE, _HEAD, Column("dim", "Width", "count"), Column("style", "Style", interval=True)),
        *(Column("seen", "Seen", interval=True), Column("held_out", "Held out", interval=True)),
        Column("gap", "Gap", "points", interval=True),
        Column("clean", "Class, clean", interval=True),
        Column("obfuscated", "Class, obfuscated", interval=True),
    )
    wanted = (
        *(("fine", "accuracy"), ("coarse", "seen"), ("coarse", "held_out"), ("coarse", "gap")),
        *(("semantic", "clean"), ("semantic", "obfuscated")),
    )
    rows = []
    for name in ordered(results):
        backbone = results["backbones"][name]
        for head in heads(results):
            values = [task_score(dig(backbone, task, head), task, key) for task, key in wanted]
            if any(values):
                rows.append((name, head, backbone.get("dim"), *values))
    return Table("overview", "Probe accuracy of each backbone (95 % intervals).", columns, tuple(rows))


def _each_transformation(
    results: Results, name: str, caption: str, columns: Sequence[Column], values: Callable[[Any, str], Iterable[Any]]
) -> Table:
    """Table of (backbone, transformation, coarse class, role, *values), without rows that have no values."""
    rows = []
    for backbone in ordered(results):
        for row in results["transformations"]:
            found = tuple(values(results["backbones"][backbone], row["name"]))
            if any(value is not None for value in found):
                rows.append((backbone, row["name"], row["coarse"], row["role"], *found))
    fixed = (*words("backbone", "transformation"), Column("coarse", "Coarse class", "text"), *words("role"))
    return Table(name, caption, (*fixed, *columns), tuple(rows))


# of each task: table, caption, columns and their heading
_BY_TRANSFORMATION = {
    "fine": ("per_transformation", "Style accuracy on test photographs, by transformation.", "style", "Style"),
    "coarse": ("generalisation", "Coarse accuracy on test photographs, by transformation.", "coarse", "Coarse class"),
    "coarse_rotation": (
        *("rotation", "Coarse accuracy on test photographs, by transformation, each held out in turn."),
        *("coarse", "Coarse class"),
    ),
    "semantic": (
        *("semantic", "Accuracy of the class probe, trained on unchanged photographs, by transformation."),
        *("class", "Class"),
    ),
}


def by_transformation(results: Results, task: str) -> Table:
    """Accuracy of a task by transformation, a column per kind of head."""
    name, caption, key, heading = _BY_TRANSFORMATION[task]
    tried, interval = heads(results), task.startswith("coarse")

    def values(backbone: object, transformation: str) -> Iterable[Any]:
        found = (dig(backbone, task, head, "by_transformation", transformation) for head in tried)
        return (scored(each, "accuracy", "ci95") for each in found) if interval else found

    columns = [Column(f"{key}_{head}", f"{heading} ({head})", interval=interval) for head in tried]
    return _each_transformation(results, name, caption, columns, values)


def geometry(results: Results) -> Table:
    """Sensitivity, equivariance and steerability by transformation."""
    return _each_transformation(
        results,
        "geometry",
        "Sensitivity (1 - cosine to the unchanged photograph, mean photograph subtracted), parallelism of "
        "displacements, and R2 of a linear map to the variant.",
        [
            Column("sensitivity", "Sensitivity", "number", interval=True),
            Column("equivariance", "Equivariance", "number", interval=True),
            Column("steerability", "Steerability", "number"),
            Column("unchanged", "R2 unchanged", "number"),
        ],
        lambda backbone, t: (
            *(scored_under(backbone, key, t) for key in ("sensitivity", "equivariance")),
            *(dig(backbone, key, t) for key in ("steerability", "steerability_unchanged")),
        ),
    )


def knn(results: Results) -> Table:
    """k-NN accuracy by k."""
    scores = (Column("style", "Style", interval=True), Column("class", "Class", interval=True))
    columns = (_BACKBONE, Column("k", "k", "count"), *scores)
    rows = [
        (name, int(k), *(scored_under(found, task, k) for task in ("transformation", "class")))
        for name in ordered(results)
        for found in [dig(results, "backbones", name, "knn")]
        for k in dig(found, "transformation") or {}
    ]
    return Table("knn", "Accuracy of a vote of the k nearest training variants (cosine).", columns, tuple(rows))


def neighbours(results: Results) -> Table:
    """Balance, retrieval and clusters."""
    wanted = (
        ("same_image", "Nearest: same photograph", ("balance", "same_image")),
        ("same_transformation", "Nearest: same style", ("balance", "same_transformation")),
        ("neither", "Nearest: neither", ("balance", "neither")),
        ("recall_image_1", "Photograph, R@1", ("retrieval", "image", "1")),
        ("recall_image_5", "R@5", ("retrieval", "image", "5")),
        ("recall_image_10", "R@10", ("retrieval", "image", "10")),
        ("recall_style_1", "Style, R@1", ("retrieval", "transformation", "1")),
        ("recall_style_5", "R@5", ("retrieval", "transformation", "5")),
        ("recall_style_10", "R@10", ("retrieval", "transformation", "10")),
        ("ami_style", "AMI, style", ("clusters", "ami_transformation")),
        ("ami_class", "AMI, class", ("clusters", "ami_class")),
    )
    columns = [
        Column(key, heading, "number" if path[0] == "clusters" else "share", interval=path[0] != "retrieval")
        for key, heading, path in wanted
    ]
    read: dict[str, Callable[..., Any]] = {
        **{"balance": scored_under, "retrieval": dig},
        "clusters": lambda backbone, part, key: scored(dig(backbone, part), key),
    }
    rows = []
    for name in ordered(results):
        backbone = results["backbones"][name]
        values = [read[path[0]](backbone, *path) for _, _, path in wanted]
        if any(value is not None for value in values):
            rows.append((name, *values))
    caption = "Balance, retrieval and clusters of test variants (95 % intervals)."
    return Table("neighbours", caption, (_BACKBONE, *columns), tuple(rows))


def multitask(results: Results) -> Table:
    """Multi-task probes and their single-task twins."""
    columns = [_BACKBONE, Column("task_weight", "Weight", "number")]
    for task, heading in (("fine", "Style"), ("semantic", "Class")):
        columns += [
            Column(f"{task}_both", f"{heading}, both", interval=True),
            Column(f"{task}_alone", f"{heading}, alone", interval=True),
            Column(f"{task}_difference", "Difference", "points", interval=True),
        ]
    rows = []
    for name in ordered(results):
        scores = dig(results, "backbones", name, "multitask")
        if scores:
            row: list[Any] = [name, dig(scores, "task_weight")]
            for task in ("fine", "semantic"):
                difference = scored(dig(scores, "difference", task), "value", "ci95")
                row += [scored(scores, task), scored(dig(scores, "single_task"), task), difference]
            rows.append(tuple(row))
    return Table("multitask", "Multi-task probes and their single-task twins.", tuple(columns), tuple(rows))


def comparisons(results: Results) -> Table:
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
            *(row["task"], row.get("metric"), row.get("head"), row["a"], row["b"]),
            scored(row, "difference", "ci95"),
            scored(row, "difference", "two_way_ci95") if row.get("two_way_ci95") else None,
            *(row.get("se"), row.get("p_holm")),
        )
        for row in results.get("comparisons") or []
    ]
    return Table("comparisons", "Paired differences (one-way and two-way bootstrap intervals).", columns, tuple(rows))


def redrawn(results: Results) -> Table:
    """Accuracy on held-out transformations over random held-out sets."""
    columns = (
        *(_BACKBONE, Column("sets", "Sets", "count"), Column("mean", "Mean"), Column("sd", "Standard deviation")),
        *(Column("low", "Lowest"), Column("high", "Highest")),
    )
    found = {name: dig(results, "backbones", name, "coarse_redrawn", "linear") for name in ordered(results)}
    rows = [(name, *(dig(each, column.name) for column in columns[1:])) for name, each in found.items() if each]
    caption = "Coarse accuracy on held-out transformations, over random held-out sets."
    return Table("redrawn", caption, columns, tuple(rows))


def equal_width(results: Results) -> Table:
    """Linear probes on a random projection to a common width."""
    columns = (
        *(_BACKBONE, Column("dim", "Width", "count"), Column("style", "Style", interval=True)),
        Column("rotation", "Held out in turn", interval=True),
        Column("styles", "Painting styles", interval=True),
    )
    rows = []
    for name in ordered(results):
        found = dig(results, "backbones", name, "equal_width")
        if found:
            turned = (task_score(dig(found, "rotation"), "coarse_rotation", key) for key in ("accuracy", "styles"))
            rows.append((name, dig(found, "dim"), task_score(dig(found, "fine"), "fine", "accuracy"), *turned))
    return Table("equal_width", "Linear probes on a random projection to a common width.", columns, tuple(rows))


def claims(results: Results) -> Table:
    """Verdicts on the claims of the paper."""
    columns = (
        Column("id", "Claim", "text"),
        *words("statement"),
        Column("status", "Verdict", "text"),
        *words("difference", "interval", "backbones", "why"),
    )
    rows = []
    for row in results.get("claims") or []:
        kind: Kind = "points" if row.get("unit", "points") == "points" else "number"
        groups = [
            f"{name.replace('_', '-')}: {', '.join(members) or 'none'}"
            for name, members in (row.get("groups") or {}).items()
        ]
        rows.append(
            (
                *(row["id"], row["statement"], row["status"]),
                *(show(row.get("estimate"), kind), show_interval(row.get("ci"), kind)),
                *("; ".join(groups) or "–", "; ".join(row.get("reasons") or [])),
            )
        )
    return Table("claims", "Claims of the paper.", columns, tuple(rows))


def training(results: Results) -> Table:
    """Convergence and certificates of all probes."""
    columns = words("backbone", "task", "head", "converged", "edge", "certificate")
    rows = []
    for name in ordered(results):
        for task in ("fine", "coarse", "coarse_rotation", "semantic", "multitask"):
            found = dig(results, "backbones", name, task)
            for head, scores in {"mlp": found}.items() if task == "multitask" else (found or {}).items():
                if dig(scores, "converged") is not None:
                    certificate = dig(scores, "certificate") or {}
                    numbers = {key: value for key, value in certificate.items() if type(value) in (int, float)}
                    details = ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())
                    flags = (_YES_NO.get(dig(scores, key), "–") for key in ("converged", "edge"))
                    rows.append((name, task, head, *flags, details))
    return Table("training", "Convergence of all probes.", columns, tuple(rows))


_YES_NO = {True: "yes", False: "no"}


def confusions(results: Results, task: str) -> Table:
    """Non-zero cells of the confusion matrices of a task."""
    columns = (*words("backbone", "head", "truth", "predicted"), Column("count", "Variants", "count"))
    rows = []
    for name in ordered(results):
        for head in heads(results):
            matrix = dig(results, "backbones", name, task, head, "confusion")
            labels = dig(matrix, "labels") or []
            for truth, counts in zip(labels, dig(matrix, "counts") or [], strict=True):
                pairs = zip(labels, counts, strict=True)
                rows += [(name, head, truth, predicted, count) for predicted, count in pairs if count]
    return Table(f"confusion_{task}", f"Confusions of the {task} probes.", columns, tuple(rows))


def headline_table(results: Results) -> str:
    """Overview as text for the terminal: accuracies of each backbone in per cent, and chance.

    Coarse and class scores are those of the first head, linear if available. † marks probes that have not converged.
    """
    tried, first = heads(results), first_head(results) or "linear"
    columns: list[tuple[str, tuple[str, ...], str]] = [
        *((f"style {head}", ("fine", head, "accuracy"), "fine") for head in tried),
        ("seen", ("coarse", first, "seen"), "coarse"),
        ("held-out", ("coarse", first, "held_out"), "coarse"),
        ("gap", ("coarse", first, "gap"), ""),
        ("clean", ("semantic", first, "clean"), "semantic"),
        ("obfuscated", ("semantic", first, "obfuscated"), "semantic"),
        ("10-NN style", ("knn", "transformation", "10"), "fine"),
    ]
    late = {
        (name, path)
        for name in results["backbones"]
        for _, path, _ in columns
        if dig(results, "backbones", name, *path[:2], "converged") is False
    }
    blank = " " * bool(late)  # keeps digits below each other
    lines = [["backbone", "dim", *(heading + blank for heading, _, _ in columns)]]
    for name in ordered(results):
        backbone = results["backbones"][name]
        cells = (show(dig(backbone, *path)) + ("†" if (name, path) in late else blank) for _, path, _ in columns)
        lines.append([name, show(backbone.get("dim"), "count"), *cells])
    chances = [dig(results, "chance", task) for _, _, task in columns]
    lines.append(["chance", "", *("" if chance is None else show(chance) + blank for chance in chances)])
    return text_table(lines) + "\n† The probe has not converged." * bool(late)


def text_table(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align a table for a terminal: a line of headings, a rule, rows. The first ``left`` columns are flush left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    flush = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    text = [
        "  ".join(align(cell, width) for align, cell, width in zip(flush, row, widths, strict=True)) for row in lines
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([text[0], rule, *text[1:]])
