"""Answers in short: the best backbone of a task, its accuracy, how it compares with others, and a plot."""

from __future__ import annotations

from substyle.engine.report.data import head_name, show
from substyle.engine.report.dots import dot_panel
from substyle.engine.report.figures import rows_height
from substyle.engine.report.findings import Standing, controls_first, listed, standing, strongest_control, unseen
from substyle.engine.report.section import Answer, Plots
from substyle.engine.results.model import ResultsDocument

_UNSEEN = "Which kind of transformation is it, if the probe was not trained on it?"
# of each task and score: question, what the probe predicts, the score beside it and what that is on
_ASKED = {
    ("transformation", "accuracy"): (
        "Which transformation was applied?",
        "which of {} transformations was applied to a photograph",
        "",
        "",
    ),
    ("kind_rotation", "accuracy"): (
        _UNSEEN,
        "the kind of each transformation by training on all others",
        *("seen", "of those seen in training"),
    ),
    ("kind", "held_out"): (
        _UNSEEN,
        "the kind of the transformations that the suite holds out of its training",
        *("seen", "of those seen in training"),
    ),
    ("class", "transformed"): (
        "Which class does the photograph belong to, once it is transformed?",
        "the class of transformed photographs after training on original ones",
        *("original", "of original ones"),
    ),
    ("class", "original"): ("Which class does the photograph belong to?", "the class of a photograph", "", ""),
}
_ROWS = 8  # maximum backbones in a plot, besides the strongest control


def answer(results: ResultsDocument, task: str) -> Answer | None:
    """The answer of a task by probes of the first head that have converged; None without scores."""
    head = results.first_head()
    wanted = [each for each in _ASKED if each[0] == task] if task != "kind" else [unseen(results, head)]
    ranked = {each: found for each in wanted if (found := standing(results, each[0], head, each[1])).scores}
    if not ranked:
        return None
    asked, found = next(iter(ranked.items()))
    best, chance = (found.trained or found.scores)[0], results.chance_of(task)
    question, predicted, beside, those = _ASKED[asked]
    other = getattr(results.probe(best.name, task, head), beside, None) if beside and best.conclusive else None
    text = f"{'An' if head == 'mlp' else 'A'} {head_name(head)} probe on {best.name} predicts "
    text += predicted.format(results.suite_size) + (f" ({show(other)}% {those})." if other is not None else ".")
    if chance is not None and best.conclusive and best.low_high and best.low_high[0] <= chance:
        text += " This is not clearly above chance."
    remarks = ("accuracy; " if best.conclusive else "") + best.remarks(chance)
    names = list(dict.fromkeys(score.name for score in (*found.scores[:_ROWS], *found.controls[:1])))
    panel = dot_panel(results, task, names)
    plots = Plots("", (panel,) if panel and best.conclusive else (), (2.4, rows_height(names)))
    return Answer(question, best.number, remarks, text + _compared(found), plots)


def _compared(found: Standing) -> str:
    """Sentences on how the best backbone compares with the others and with controls."""
    excluded = f" Excluded, not converged: {listed(found.unconverged)}." if found.unconverged else ""
    if not found.trained:
        return f" Only controls have a score.{excluded}"
    best, rest = found.trained[0], [score.name for score in found.trained[1:]]
    clear = [name for name in rest if found.clearly_above(best.name, name)]
    unclear = [name for name in rest if name not in clear]
    text = f" Clearly ahead of {listed(clear)}." if clear else ""
    text += found.unclear(unclear)
    return f"{text} {controls_first(found)}".rstrip() + strongest_control(found) + excluded
