"""The overview as plain text, for the terminal."""

from __future__ import annotations

from substyle.engine.report.cells import show
from substyle.engine.report.results import Results, dig, heads, ordered


def headline_table(results: Results) -> str:
    """One line for each backbone, shares in per cent, and chance below.

    Coarse and class scores are those of the first head (linear where there is one).
    """
    tried = heads(results)
    first = tried[0] if tried else "linear"
    columns: list[tuple[str, tuple[str, ...], str]] = [
        *((f"style {head}", ("fine", head, "accuracy"), "fine") for head in tried),
        ("seen", ("coarse", first, "seen"), "coarse"),
        ("held-out", ("coarse", first, "held_out"), "coarse"),
        ("gap", ("coarse", first, "gap"), ""),
        ("clean", ("semantic", first, "clean"), "semantic"),
        ("obfuscated", ("semantic", first, "obfuscated"), "semantic"),
        ("10-NN style", ("knn", "transformation", "10"), "fine"),
    ]
    lines = [["backbone", "dim", *(heading for heading, _, _ in columns)]]
    for name in ordered(results):
        backbone = results["backbones"][name]
        lines.append(
            [name, show(backbone.get("dim"), "count"), *(show(dig(backbone, *path)) for _, path, _ in columns)]
        )
    chances = [dig(results, "chance", task) for _, _, task in columns]
    lines.append(["chance", "", *("" if chance is None else show(chance) for chance in chances)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in lines]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([text[0], rule, *text[1:]])
