"""Answers in short: the best backbone of a task, its accuracy, how it compares with others, and a plot."""

from __future__ import annotations

from substyle.engine.report.data import head_name, show, show_interval
from substyle.engine.report.dots import dot_panel
from substyle.engine.report.figures import rows_height
from substyle.engine.report.findings import Standing, controls_first, listed, standing
from substyle.engine.report.section import Answer, Plots
from substyle.engine.results.model import ResultsDocument

_KEYS = {"fine": ("accuracy",), "coarse": ("held_out",), "semantic": ("obfuscated", "clean")}  # the first that is there
# of each score: question, what the probe predicts, the score beside it and what that is on
_ASKED = {
    "accuracy": (
        "Which transformation was applied?",
        "which of {} transformations was applied to a photograph",
        "",
        "",
    ),
    "held_out": (
        "Which kind of transformation is it, if the probe was not trained on it?",
        "the coarse class of transformations that were held out of its training",
        *("seen", "of those seen in training"),
    ),
    "obfuscated": (
        "Which class does the photograph belong to, once it is transformed?",
        "the class of transformed photographs after training on original ones",
        *("clean", "of original ones"),
    ),
    "clean": ("Which class does the photograph belong to?", "the class of a photograph", "", ""),
}
_ROWS = 8  # maximum backbones in a plot, besides the strongest control


def answer(results: ResultsDocument, task: str) -> Answer | None:
    """The answer of a task by probes of the first head that have converged; None without scores."""
    head = results.first_head()
    ranked = {key: found for key in _KEYS[task] if (found := standing(results, task, head, key)).scores}
    if not ranked:
        return None
    key, found = next(iter(ranked.items()))
    best, chance = (found.trained or found.scores)[0], results.chance_of(task)
    question, predicted, beside, those = _ASKED[key]
    other = getattr(results.probe(best.name, task, head), beside) if beside else None
    text = f"{'An' if head == 'mlp' else 'A'} {head_name(head)} probe on {best.name} predicts "
    text += predicted.format(results.suite_size) + (f" ({show(other)}% {those})." if other is not None else ".")
    if chance is not None and best.low_high and best.low_high[0] <= chance:
        text += " This is not clearly above chance."
    interval = "accuracy" + (f"; 95% interval {show_interval(best.low_high)}" if best.low_high else "")
    interval += f"; chance {show(chance)}%" if chance is not None else ""
    names = list(dict.fromkeys(score.name for score in (*found.scores[:_ROWS], *found.controls[:1])))
    panel = dot_panel(results, task, names)
    plots = Plots("", (panel,) if panel else (), (2.4, rows_height(names)))
    return Answer(question, f"{show(best.value)}%", interval, text + _compared(found), plots)


def _compared(found: Standing) -> str:
    """Sentences on how the best backbone compares with the others and with controls."""
    excluded = f" Excluded, not converged: {listed(found.unconverged)}." if found.unconverged else ""
    if not found.trained:
        return f" Only controls have a score.{excluded}"
    best, rest = found.trained[0], [score.name for score in found.trained[1:]]
    clear = [name for name in rest if found.clearly_above(best.name, name)]
    unclear = [name for name in rest if name not in clear]
    text = f" Clearly ahead of {listed(clear)}." if clear else ""
    text += f" No clear difference from {listed(unclear)}." if unclear else ""
    if controls := controls_first(found):
        text += f" {controls.strip()}"
    elif found.controls:
        text += f" The strongest control, {found.controls[0].name}, reaches {show(found.controls[0].value)}%."
    return text + excluded
