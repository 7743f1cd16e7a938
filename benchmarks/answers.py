"""Answers of the kept study of generators: the figure and the sentences on the first screen of README.md.

``python benchmarks/answers.py`` prints the sentences; ``--write`` updates README.md and docs/answers.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURE = ROOT / "docs" / "answers.svg"
START, END = "<!-- answers: benchmarks/answers.py -->", "<!-- end of answers -->"
LEVEL = 0.05  # of a clear difference, after Holm's correction over all pairs
INK, MUTED, FULL, OPEN = "#1b1f24", "#57606a", "#1f6fb5", "#c8561b"
STATISTICS = "control:statistics"


@dataclass(frozen=True)
class Question:
    """A column of the figure and a sentence.

    Attributes:
        text: the question.
        short: the heading of its column.
        entry: keys of its scores in the summary of a backbone.
        score: key of the score; its interval is ``interval``.
        task: task whose chance is that of the question.
        compared: task and metric of the differences between backbones; empty: none are kept.
    """

    text: str
    short: str
    entry: tuple[str, ...]
    score: str
    interval: str
    task: str
    compared: tuple[str, str] | tuple[()] = ()

    def scores(self, row: dict[str, Any]) -> dict[str, Any]:
        """The scores of a backbone; empty if missing."""
        for key in self.entry:
            row = row.get(key) or {}
        return row


QUESTIONS = (
    Question(
        "Which of the {variants} transformations was applied?", "transformation", ("fine", "linear"),
        "accuracy", "ci95", "fine", ("fine", "accuracy"),
    ),
    Question(
        "Which kind of transformation is it, if the probe has never seen it?", "kind of a new\ntransformation",
        ("coarse", "linear"), "held_out", "held_out_two_way_ci95", "coarse", ("coarse", "held_out"),
    ),
    Question(
        "Is it a painting style, if the probe knows the styles of one other generator?", "style of a new\ngenerator",
        ("generators",), "accuracy", "ci95", "coarse", ("generators", "accuracy"),
    ),
    Question(
        "Which class does the photograph belong to?", "class", ("semantic", "linear"),
        "clean", "clean_ci95", "semantic", ("semantic", "clean"),
    ),
    Question(
        "Which class does it belong to, once it is transformed?", "class,\ntransformed", ("semantic", "linear"),
        "obfuscated", "obfuscated_ci95", "semantic", ("semantic", "obfuscated"),
    ),
)  # fmt: skip


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f}"


def _shown(scores: dict[str, Any], question: Question) -> str:
    ends = "–".join(map(_per_cent, scores.get(question.interval) or ()))
    return f"{_per_cent(scores[question.score])} %" + f" ({ends})" * bool(ends)


def _named(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def compared(kept: dict[str, Any], question: Question, a: str, b: str) -> float | None:
    """p value, after Holm's correction, of the difference of two backbones; None if unknown."""
    rows = kept["contrasts"] if question.entry == ("generators",) else kept["comparisons"]
    for row in rows:
        named = row.get("task", "generators"), row.get("metric", "accuracy"), row.get("head", "linear")
        if {row["a"], row["b"]} == {a, b} and named == (*question.compared, "linear"):
            found: float | None = row["p_holm"]
            return found
    return None


def sentence(kept: dict[str, Any], question: Question) -> str:
    """The answer: the best network, those that it is clearly ahead of, and low-level statistics."""
    rows = {name: question.scores(row) for name, row in kept["backbones"].items()}
    known = {name: scores for name, scores in rows.items() if scores.get(question.score) is not None}
    late = [name for name, scores in known.items() if scores.get("converged") is False]
    networks = [name for name in known if not kept["backbones"][name]["control"] and name not in late]
    if not networks:
        return f"**{question.text.format(**kept)}** No probe of a network has converged."
    best, *others = sorted(networks, key=lambda name: -known[name][question.score])
    text = f"**{question.text.format(**kept)}** `{best}` reads it best: {_shown(known[best], question)}"
    p = {name: compared(kept, question, best, name) for name in others}
    clear = [f"`{name}`" for name in others if (each := p[name]) is not None and each < LEVEL]
    unclear = [f"`{name}`" for name in others if f"`{name}`" not in clear]
    text += f", clearly ahead of {_named(clear)}" if clear else ""
    text += f"; no clear difference from {_named(unclear)}" if unclear else ""
    if STATISTICS in known and STATISTICS not in late:
        text += f". Low-level statistics reach {_per_cent(known[STATISTICS][question.score])} %"
    return text + f"; chance is {_per_cent(kept['chance'][question.task])} %."


def _ranked(values: dict[str, float], shown: dict[str, str], *, lowest: bool = False) -> str:
    """Networks from the best to the worst, then low-level statistics."""
    names = sorted((name for name in values if not name.startswith("control:")), key=values.__getitem__)
    names = names if lowest else names[::-1]
    text = _named([f"`{name}` {shown[name]}" for name in names])
    return f"{text}; low-level statistics {shown[STATISTICS]}" if STATISTICS in values else text


def how_much(leaks: dict[str, Any]) -> str:
    """How well parameters are read, and what a shortcut costs."""
    r2, price, ends = {}, {}, {}
    for name, row in leaks["backbones"].items():
        every = [max(one["r2"], 0.0) for own in row["parameters"]["by_transformation"].values() for one in own.values()]
        r2[name], price[name] = sum(every) / len(every), row["shortcut"]["price"]
        low, high = row["shortcut"]["price_two_way_ci95"]
        ends[name] = f"{_per_cent(price[name])} ({_per_cent(low)}–{_per_cent(high)})"
    text = (
        f"- **How much of it was applied?** Mean R² of {len(every)} parameters (sigma, angle, quality …) in per cent: "
    )
    text += f"{_ranked(r2, {name: _per_cent(value) for name, value in r2.items()})}.\n"
    text += "- **What if processing goes with the class?** Points of accuracy that nearest neighbours lose, mean over "
    return text + f"transformations: {_ranked(price, ends, lowest=True)}."


def answers(kept: dict[str, Any], leaks: dict[str, Any]) -> str:
    """One sentence for each question, as a list."""
    return "\n".join([*(f"- {sentence(kept, question)}" for question in QUESTIONS), how_much(leaks)])


def draw(kept: dict[str, Any], path: Path) -> None:
    """Draw backbones (rows) by questions (columns): dots with 95 % intervals, and chance as a line."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    names = list(kept["backbones"])
    style = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "substyle", "axes.edgecolor": "#9aa3ad"}
    with matplotlib.rc_context(style):
        figure, axes = plt.subplots(1, len(QUESTIONS), sharey=True, figsize=(10.5, 0.8 + 0.36 * len(names)))
        for axis, question in zip(axes, QUESTIONS, strict=True):
            axis.axvline(100 * kept["chance"][question.task], color=MUTED, linewidth=0.8, linestyle=":")
            for y, name in enumerate(names):
                scores = question.scores(kept["backbones"][name])
                if (value := scores.get(question.score)) is None:
                    continue
                colour = OPEN if kept["backbones"][name]["control"] else FULL
                low, high = scores.get(question.interval) or (value, value)
                axis.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2, alpha=0.45)
                full = scores.get("converged") is not False
                axis.plot(100 * value, y, "o", color=colour, markersize=5, markerfacecolor=colour if full else "none")
            axis.set(xlim=(0, 102), ylim=(len(names) - 0.5, -0.5), xticks=(0, 50, 100))
            axis.set_title(question.short, fontsize=9, color=INK)
            axis.tick_params(length=0, colors=MUTED)
            axis.grid(axis="x", color="#eceff2")
            axis.set_axisbelow(True)
            axis.spines[["top", "right", "left"]].set_visible(False)
        axes[0].set_yticks(range(len(names)), names, color=INK)
        figure.supxlabel("accuracy in per cent, 95 % intervals; dotted: chance", fontsize=8, color=MUTED)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")
        plt.close(figure)


def written(page: str, text: str) -> str:
    """Replace the text between the two markers of a page."""
    before, rest = page.split(START)
    return f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}"


def load(name: str) -> dict[str, Any]:
    """A kept study."""
    found: dict[str, Any] = json.loads((RESULTS / f"study-{name}.json").read_text())
    return found | {"variants": found["variants"] // found["images"]}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    write, kept = parser.parse_args().write, load("generators")
    text = answers(kept, load("leaks"))
    print(text)
    if write:
        readme = ROOT / "README.md"
        readme.write_text(written(readme.read_text(), text))
        draw(kept, FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
