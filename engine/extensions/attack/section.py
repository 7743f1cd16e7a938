"""Adversarial attacks: success, and how well probes and detectors tell attacked from original photographs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from substyle.engine.report.data import Column, ComparedScore, Table, scored, show, show_interval, words
from substyle.engine.report.section import Block, Data, Section, Text
from substyle.engine.results.model import BackboneResults, Finite, Model, Numbers, ResultsDocument, Share, ShareEstimate

DETECTORS = {
    "transformation": "Transformation probe",
    "kind": "Kind probe",
    "detector": "Detector",
    "other_radii": "Detector, other radii",
    "other_attacks": "Detector, other attacks",
    "mahalanobis": "Mahalanobis",
    "knn": "k-NN distance",
    "squeezing": "Squeezing",
    "layers": "Layers",
}
BASELINES = ("mahalanobis", "knn", "squeezing", "layers")
HALF = 0.5


class Detected(Model):
    """How well a detector tells attacked photographs from others."""

    auroc: ShareEstimate
    tpr: ShareEstimate | None = None


class AttackScores(Model):
    """Success of an attack, and of its detection by detector."""

    l2: Finite
    accuracy: Share | None = None
    success: ShareEstimate | None = None
    linf: Finite | None = None
    named: Numbers | None = None
    detection: dict[str, Detected | None] | None = None


class Attacks(Model):
    """Adversarial attacks on the class probe of a backbone, by attack.

    ``named``: by the transformation probe without them.
    """

    accuracy: Share | None = None
    named: Numbers | None = None
    attacks: dict[str, AttackScores | None] | None = None
    resample_by: str | None = None


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without attacks."""
    table = attacks(results)
    if not table.rows:
        return
    by = next(iter(_found(results).values())).resample_by
    note = (
        "Attacks start from test photographs that the linear class probe classifies correctly, and are rounded to grey "
        "levels; success is the share of these that it then gets wrong, class accuracy counts all test photographs. "
        "Only successful attacks are to be detected (of noise, which is no attack, all pictures); attacks that succeed "
        "on less than half are marked * and prove little. Transformation and kind probe: 1 − probability of identity, "
        "without training on attacks. Detector: linear probe of attacked against original training photographs; for "
        "other radii or attacks, that radius or the whole attack is left out of its training. Adaptive: PGD on class "
        "and on the detector trained on all attacks. An AUROC below 50 ranks attacked pictures as less suspicious than "
        f"original ones. In small type: 95% intervals over {results.drawn(by)}."
    )
    detection = [each for each in attack_detection(results) if each.rows]
    tables = (Data(each, each.caption) for each in (table, *detection))
    blocks: list[Block] = [Text(attack_summary(results)), *tables, Text(note, note=True)]
    yield Section("attacks", "Attacks", "Attacks: can the probes tell?", tuple(blocks))


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """Success of attacks, and AUROC of the detector that was trained on them."""
    found: Attacks = backbone.entry("attack") or Attacks()
    converged = not backbone.unconverged("class", "linear")
    for attack, entry in (found.attacks or {}).items():
        if entry and entry.success is not None:
            yield ComparedScore(f"attack_{attack}", f"Success of {attack}", entry.success, converged)
        if entry and (known := (entry.detection or {}).get("detector")):
            yield ComparedScore(f"detected_{attack}", f"AUROC of {attack}, detector", known.auroc, converged)


def _found(results: ResultsDocument) -> Mapping[str, Attacks]:
    return results.entries("attack")


def _rows(results: ResultsDocument) -> Iterator[tuple[str, str, AttackScores]]:
    """(backbone, attack, entry) of all attacks."""
    for name, found in _found(results).items():
        for attack, entry in (found.attacks or {}).items():
            if entry:
                yield name, attack, entry


def _remark(attack: str, entry: AttackScores) -> str:
    if attack.startswith("noise"):
        return "no attack: random signs"
    return "" if entry.success is None or _half(entry) else "succeeds on less than half"


def _half(entry: AttackScores) -> bool:
    """Whether an attack is known to succeed on at least half."""
    return entry.success is not None and entry.success.value >= HALF


def attacks(results: ResultsDocument) -> Table:
    """Success and size of each attack, and the transformations that the transformation probe takes it for."""
    columns = (
        *words("backbone", "attack"),
        *(Column("success", "Success", interval=True), Column("accuracy", "Class accuracy")),
        *(Column("linf", "L∞", "count"), Column("l2", "L2", "count")),
        *(Column("named", "Transformation probe names", "text"), *words("remark")),
    )
    rows: list[tuple[Any, ...]] = []
    before = ""
    for name, attack, entry in _rows(results):
        if name != before:
            found = _found(results)[name]
            rows.append((name, "none", None, found.accuracy, 0.0, 0.0, _most(found.named), ""))
            before = name
        numbers = scored(entry, "success"), entry.accuracy, entry.linf, entry.l2
        rows.append((name, attack, *numbers, _most(entry.named), _remark(attack, entry)))
    caption = "Attacks on the linear class probe of each backbone; mean distances in grey levels."
    return Table("attacks", caption, columns, tuple(rows))


def _most(named: Numbers | None) -> str:
    shares = [f"{label} {show(share)} %" for label, share in list((named or {}).items())[:3]]
    return ", ".join(shares) or "–"


def attack_detection(results: ResultsDocument) -> list[Table]:
    """AUROC of each detector for each attack, and its true-positive rate at a false-positive rate of 5 %."""
    used = [how for how in DETECTORS if any((entry.detection or {}).get(how) for *_, entry in _rows(results))]
    columns = (*words("backbone", "attack"), *(Column(how, DETECTORS[how], interval=True) for how in used))
    tables = []
    for table, key, what in (
        ("attack_detection", "auroc", "AUROC"),
        ("attack_tpr", "tpr", "true-positive rate at a false-positive rate of 5 %"),
    ):
        rows = []
        for name, attack, entry in _rows(results):
            mark = " *" if _remark(attack, entry) else ""
            rows.append((name, attack + mark, *(scored((entry.detection or {}).get(how), key) for how in used)))
        caption = f"Detection of successful attacks: {what}."
        tables.append(Table(table, caption, columns, tuple(rows) if used else ()))
    return tables


def attack_summary(results: ResultsDocument) -> str:
    """How many attacks succeed on at least half, and what tells the least visible of these from original photographs.

    Of attacks that succeed on at least half of the photographs, the one with the smallest mean L2 counts. The best
    baseline is that with the highest of the AUROCs on test photographs that the sentence states, which favours it.
    """
    sentences = []
    for name in dict.fromkeys(name for name, _, _ in _rows(results)):
        every = {attack: entry for own, attack, entry in _rows(results) if own == name}
        real = {attack: entry for attack, entry in every.items() if not attack.startswith(("noise", "adaptive"))}
        good = {attack: entry for attack, entry in real.items() if _half(entry)}
        text = f"{len(good)} of {len(real)} attacks on {name} succeed on at least half of the photographs"
        if good:
            attack = min(good, key=lambda each: good[each].l2)
            scores = {how: found for how, found in (good[attack].detection or {}).items() if found}
            parts = (
                [f"the transformation probe {_auroc(scores['transformation'])}"] if "transformation" in scores else []
            )
            unseen = next((how for how in ("other_attacks", "other_radii", "detector") if how in scores), None)
            if unseen:
                parts.append(f"{_WITH[unseen]} {_auroc(scores[unseen])}")
            able = [how for how in BASELINES if how in scores]
            if able:
                best = max(able, key=lambda how: scores[how].auroc.value)
                which = f"the best of {len(able)} baselines by this AUROC" if len(able) > 1 else "the only baseline"
                parts.append(f"{which} ({DETECTORS[best]}) {_auroc(scores[best])}")
            text += f"; the least visible of them is {attack}, which is detected with an AUROC of "
            text += ", ".join(parts)
        adaptive = next((entry for attack, entry in every.items() if attack.startswith("adaptive")), None)
        if adaptive is not None:
            text += f"; an attack that knows the detector succeeds on {show(adaptive.success)} %"
            known = (adaptive.detection or {}).get("detector")
            text += f", and lowers it to {_auroc(known)}" if known else ""
        sentences.append(text + ".")
    return " ".join(sentences)


_WITH = {
    "other_attacks": "a detector trained on other attacks",
    "other_radii": "a detector trained on other radii",
    "detector": "a detector trained on it",
}


def _auroc(entry: Detected) -> str:
    text = show(entry.auroc)
    return f"{text} ({low_high})" if (low_high := show_interval(entry.auroc.interval)) else text
