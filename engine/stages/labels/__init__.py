"""What an embedding knows of any label: scanner, camera, site or year, beside the class and with it held fixed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, StrictInt
from torch.nn.functional import normalize

from substyle.engine.config import Study
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.probes.config import Head, ProbeConfig
from substyle.engine.probes.evaluate import resample
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.probes.ridge import Response, cells_of, regressed
from substyle.engine.probes.run import run_probes, threads
from substyle.engine.probes.tasks import identity, images_of
from substyle.engine.report.data import ComparedScore
from substyle.engine.report.section import Section
from substyle.engine.results.model import BackboneResults, ResultsDocument
from substyle.engine.stages.few_shot import FewShotConfig, few_shot
from substyle.engine.stages.labels.section import Labels, scores, sections
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.shortcut import voted
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.store import identity as recorded
from substyle.engine.store.layout import TEST, TRAIN, UNLABELLED, ResampleBy
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.store.tokens import averaged
from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.kernels.philox import image_keys
from substyle.pipelines.sources import Source
from substyle.pipelines.sources.metadata import Origin, read_labels
from substyle.pipelines.validation import Distinct, validated

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
_QUERIES = 2048  # queries in memory, with their similarity to all training photographs
_MANY = 20  # different numbers, from which a label is regressed
_MOST = 1000  # different values of a class
_LARGEST = 1e150  # number, whose square is finite
_IMPORTED = "imported"


def _origins(of: dict[str, str]) -> dict[str, str]:
    for label, text in of.items():
        Origin.of(text, label, f"labels.of.{label}")
    return of


@validated("labels")
class LabelsConfig:
    """Labels of photographs besides their class, and how well embeddings of unchanged photographs tell them."""

    of: Annotated[dict[str, str], Field(max_length=100), AfterValidator(_origins)]
    """Labels by name: ``column:NAME`` of the source of photographs, ``file:LIST.csv`` or ``file:LIST.csv:COLUMN`` (a
    list with the paths of photographs; by default the column of the label's name), ``exif:FIELD``, or
    ``exif:FIELD.year`` (``.month``, ``.hour``) of dates."""
    group: str = ""
    """The label whose photographs are not independent, such as the patient: intervals are over its values, and test
    photographs of a value that is also in training are left out."""
    numbers: tuple[str, ...] = ()
    """Labels that are regressed; in any case those with more than 20 values, all of them numbers."""
    heads: Distinct[Head] = ("linear",)
    """Kinds of probes: linear, mlp."""
    shots: Annotated[StrictInt, Field(ge=0, le=10**6)] = 16
    """Photographs of each value from which few-shot accuracy is measured; 0 measures none."""
    min_images: Annotated[StrictInt, Field(ge=2, le=10**6)] = 5
    """Values on fewer training photographs are left out."""
    max_images: Annotated[StrictInt, Field(ge=2, le=20_000)] = 2_000
    """Maximum number of training photographs among which nearest neighbours are searched."""
    max_values: Annotated[StrictInt, Field(ge=0, le=1000)] = 5
    """Number of values, the most frequent ones, that are left out of the training of class probes in turn."""
    neighbours: Annotated[StrictInt, Field(ge=1, le=1000)] = 10
    """Number of neighbours that vote on the class."""
    bootstrap: Annotated[StrictInt, Field(ge=100, le=10**6)] = 2000
    """Number of resamples of the test photographs."""
    resample_by: ResampleBy = "photograph"
    """Unit of the bootstrap without a ``group``. Defaults to the study's."""
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    """Seed of probes, draws and resamples. Defaults to the study's."""

    def __post_init__(self) -> None:
        for field, names in (("group", (self.group,) * bool(self.group)), ("numbers", self.numbers)):
            if unknown := sorted(set(names) - set(self.of)):
                raise ConfigError(f"labels.{field}", unknown[0], f"labels: {', '.join(self.of) or 'there are none'}")

    @property
    def origins(self) -> dict[str, Origin]:
        """Where labels come from, by name."""
        return {label: Origin.of(text, label) for label, text in self.of.items()}


Known = dict[str, dict[str, str]]  # values by label and key


class LabelsStage(JsonStage[LabelsConfig]):
    """Probe unchanged photographs for labels, on all of their embedding and with the mean of their class removed.

    Class probes are scored by value of each label, and on values that were left out of their training.
    """

    name = "labels"
    config = LabelsConfig
    file = "labels.json"
    alike = True
    photographs = True
    backbone_results = Labels

    def placed(self, config: LabelsConfig, folder: Path) -> LabelsConfig:
        """Paths of lists are relative to the study file."""
        return replace(config, of={label: origin.below(folder) for label, origin in config.origins.items()})

    def stated(self, stored: Mapping[str, Any]) -> JSON:
        """Digests of the values in place of paths."""
        return {**super().stated(stored), "of": stored.get("values")}

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Raise ConfigError for a list or a column of it that does not exist."""
        config = self.of(study)
        for label, origin in config.origins.items() if config else ():
            if origin.kind == "file":
                read_labels({label: origin}, [], (), "labels.of")
        return []

    def units(self, run: Run, config: LabelsConfig) -> Iterable[Unit]:
        """Backbones with unchanged variants."""
        return [unit for unit in super().units(run, config) if "identity" in run.tables[unit.name].transformations]

    def inputs(self, run: Run, config: LabelsConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """Digests of the values, and the settings of probes.

        Of loaded results nothing is read unless the user has named it: results may be somebody else's. Fields of EXIF,
        and columns of photographs that are gone, count as unchanged.
        """
        stored, named = (before or {}).get("values"), self.chosen(run) is not None
        known = stored if isinstance(stored, dict) else {}
        if before is not None and not named:
            return {"values": known if set(known) == set(config.of) else None, "probes": before.get("probes")}
        kept = {label for label, origin in config.origins.items() if label in known and origin.kind == "exif"}
        columns = {label for label, origin in config.origins.items() if origin.kind != "file"} - kept
        read = dict(self._read(run, without(config, kept | columns)))
        try:
            read |= self._read(run, without(config, set(config.of) - columns))
        except (SubstyleError, OSError):
            if before is None or not columns <= set(known):
                raise
            kept |= columns
        digests = {label: known.get(label) if label in kept else _digest(read[label]) for label in config.of}
        return {"values": digests, "probes": PROBES.settings(_probes(run))}

    def compute(self, run: Run, config: LabelsConfig, unit: Unit, shared: None, folder: Path) -> bool:
        """Write the scores."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        with threads(1), threadpool_limits(1):  # the same numbers on any number of cores
            known = self._read(run, config)
            self.write(folder, labels(averaged(run.tables[unit.name]), known, config, _probes(run)))
        return True

    def _read(self, run: Run, config: LabelsConfig) -> Known:
        """Values of labels, read once in a run."""
        origins = config.origins

        def read() -> Known:
            keys = {key for table in run.tables.values() for key in table.keys}
            sources = _sources(run) if any(origin.kind != "file" for origin in origins.values()) else []
            return read_labels(origins, sources, keys, "labels.of")

        found: Known = run.once((self.name, *sorted(config.of.items())), read)
        return found

    def lines(self, result: JSON) -> Iterator[str]:
        """How well each label is told."""
        for label, own in result["by_label"].items():
            number = own.get("r2") if own["kind"] == "number" else own.get("accuracy")
            if number is None:
                yield f"{label}  not told: {own['values']} values, {own['missing']} photographs without one"
            else:
                yield f"{label}  {'R² ' if own['kind'] == 'number' else ''}{100 * number:.1f}"

    def scores(self, backbone: BackboneResults) -> Iterator[ComparedScore]:
        """How well each label is told."""
        return scores(backbone)

    def sections(self, results: ResultsDocument) -> Iterator[Section]:
        """Sections of the report."""
        return sections(results)


STAGE = LabelsStage()


def without(config: LabelsConfig, labels: Collection[str]) -> LabelsConfig:
    """Settings without some labels."""
    left = {label: text for label, text in config.of.items() if label not in labels}
    return replace(config, of=left, group="", numbers=())


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(values.items())).encode()).hexdigest()[:16]


def _probes(run: Run) -> ProbeConfig:
    config: ProbeConfig | None = PROBES.chosen(run)
    return config or ProbeConfig(seed=run.store.settings.seed)


def _sources(run: Run) -> list[Source]:
    """The photographs of a store: those of the run, and others that the store records."""
    entries = run.store.manifest().sources if run.store.has_manifest() else ()
    if run.source is not None and len(entries) < 2:
        return [run.source]
    return [recorded.open_recorded(run.store, entry) for entry in entries if entry.kind != _IMPORTED]


@dataclass(frozen=True)
class Values:
    """The values of a label on the photographs of a table.

    Attributes:
        code_N: index into names, -1 where it is unknown, rare or not used.
        number_N: the values as numbers, NaN where it is unknown or not used; None if they are classes.
        counts: how many photographs are left out, by reason.
    """

    code_N: I64
    names: tuple[str, ...]
    number_N: F64 | None
    counts: dict[str, int]

    @staticmethod
    def of(
        table: EmbeddingTable, known: Mapping[str, str], usable_N: NDArray[np.bool_], label: str, config: LabelsConfig
    ) -> Values:
        """Values on the usable photographs: numbers, or classes that are frequent enough."""
        texts = [known.get(key) for key in table.keys]
        has_N = np.array([text is not None for text in texts])
        counts = {"missing": int((~has_N).sum()), "in_training": int((has_N & ~usable_N).sum()), "rare": 0}
        has_N &= usable_N
        number_N = _numbers(texts)
        finite = number_N is not None and bool(np.isfinite(number_N[has_N]).all())
        if finite and (label in config.numbers or len(set(texts) - {None}) > _MANY):
            assert number_N is not None
            number_N[~has_N] = np.nan
            return Values(np.full(len(texts), UNLABELLED), (), number_N, counts)
        if label in config.numbers:
            wrong = next(text for text in texts if text is not None and _number(text) is None)
            raise ConfigError("labels.numbers", label, f"a label whose values are numbers, not {wrong!r}")
        of_train = Counter(text for n, text in enumerate(texts) if has_N[n] and table.split_N[n] == TRAIN)
        names = tuple(sorted(str(name) for name, count in of_train.items() if count >= config.min_images))
        place = {name: i for i, name in enumerate(names)}
        code_N = np.array([place.get(text or "", UNLABELLED) for text in texts], np.int64)
        counts["rare"] = int((has_N & (code_N == UNLABELLED)).sum())
        code_N[~has_N] = UNLABELLED
        return Values(code_N, names, None, counts)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < _LARGEST else None


def _numbers(texts: Sequence[str | None]) -> F64 | None:
    """The values as numbers, NaN for missing ones; None if one is no number."""
    values = [np.nan if text is None else _number(text) for text in texts]
    return None if None in values else np.array(values, np.float64)


def labels(table: EmbeddingTable, known: Known, config: LabelsConfig, probes: ProbeConfig) -> JSON:
    """Scores of probes for each label on unchanged test photographs.

    Args:
        known: values by label and key.

    Returns:
        results of `Labels`.
    """
    plain = _grouped(_unchanged(table), known.get(config.group, {}) if config.group else {})
    usable_N = _apart(plain) if config.group else np.ones(len(plain.keys), np.bool_)
    fixed = _class_removed(plain)
    settings = replace(
        probes,
        tasks=("semantic",),
        heads=config.heads,
        equal_width=0,
        complexity=False,
        extractability=False,
        save=False,
        bootstrap=config.bootstrap,
        resample_by=config.resample_by if not config.group else "photograph",
        seed=config.seed,
    )
    by_label = {}
    for label in config.of:
        if label == config.group:
            continue
        values = Values.of(plain, known[label], usable_N, label, config)
        if values.number_N is not None:
            by_label[label] = _numeric(plain, fixed, values, label, config)
        else:
            by_label[label] = _classes(plain, fixed, values, config, settings)
    return {"by_label": by_label, **{name: value for name, value in asdict(config).items() if name != "of"}}


def _unchanged(table: EmbeddingTable) -> EmbeddingTable:
    """The unchanged photographs of a table, in memory."""
    t, every = identity(table), np.arange(len(table.keys))
    return replace(
        table,
        x_TND=table.take(t, every)[None],
        transformations=("identity",),
        coarse=(table.coarse[t],),
        roles=(table.roles[t],),
        distinct_TN=table.distinct_TN[t : t + 1],
        generators=(),
    )


def _grouped(plain: EmbeddingTable, group: Mapping[str, str]) -> EmbeddingTable:
    """A table whose photographs of one value stay together, as near-duplicates do."""
    if not group:
        return plain
    alike = plain.groups("photograph").tolist()
    names = [group.get(key, f"\0{alike[n]}") for n, key in enumerate(plain.keys)]
    _, first, place_N = np.unique(names, return_index=True, return_inverse=True)
    return replace(plain, first_N=first[place_N])


def _apart(plain: EmbeddingTable) -> NDArray[np.bool_]:
    """Whether a photograph is for training, or of no group that is also in training. Shape: (N,)."""
    group_N, train_N = plain.groups("photograph"), plain.split_N != TEST
    apart_N: NDArray[np.bool_] = train_N | ~np.isin(group_N, group_N[train_N])
    return apart_N


def _class_removed(plain: EmbeddingTable) -> EmbeddingTable | None:
    """Embeddings minus the mean of their class over training photographs; None for fewer than two classes.

    Photographs without such a class have the label -1.
    """
    train_N = plain.rows(TRAIN)
    classes = np.unique(plain.label_N[train_N])
    classes = classes[classes >= 0]
    if len(classes) < 2:
        return None
    x_ND = plain.take(0, np.arange(len(plain.keys))).astype(np.float32)
    for each in classes:
        mean_D = x_ND[train_N[plain.label_N[train_N] == each]].mean(axis=0, dtype=np.float64)
        x_ND[plain.label_N == each] -= mean_D.astype(np.float32)
    return replace(
        plain, x_TND=x_ND[None], label_N=np.where(np.isin(plain.label_N, classes), plain.label_N, UNLABELLED)
    )


def _probed(plain: EmbeddingTable, code_N: I64, names: tuple[str, ...], probes: ProbeConfig) -> ProbeOutcome | None:
    """Probes of labels; None for fewer than two in training, too many, or none to validate or test on."""
    train_N, val_N, _ = _splits(plain, code_N >= 0, probes.seed)
    trained = np.unique(code_N[train_N])
    if len(trained) < 2 or len(names) > _MOST or not np.isin(code_N[val_N], trained).any():
        return None
    return run_probes(replace(plain, label_N=code_N, class_names=names), probes, out_dir=None, quiet=True)


def _splits(table: EmbeddingTable, used_N: NDArray[np.bool_], seed: int) -> tuple[I64, I64, I64]:
    """Photographs to train, validate and test on; none if a split is empty, as where groups stay together."""
    try:
        return images_of(table, used_N, seed)
    except SubstyleError:
        return (np.zeros(0, np.int64),) * 3


def _told(scores: Mapping[str, Any]) -> JSON:
    """Accuracy of a probe on unchanged photographs."""
    return {
        "accuracy": scores["clean"],
        "ci95": scores["clean_ci95"],
        "chance": scores["chance"],
        "converged": scores["converged"],
    }


def _classes(
    plain: EmbeddingTable, fixed: EmbeddingTable | None, values: Values, config: LabelsConfig, probes: ProbeConfig
) -> JSON:
    """Scores of a label whose values are classes."""
    code_N, test_N = values.code_N, plain.rows(TEST)
    found: JSON = {
        "kind": "class",
        "values": len(values.names),
        "images": int((code_N[test_N] >= 0).sum()),
        **values.counts,
    }
    outcome = _probed(plain, code_N, values.names, probes)
    if outcome is None:
        return found
    for head in config.heads:
        told = _told(outcome.results["semantic"][head])
        found |= told if head == config.heads[0] else {head: told}
    counts_CC = np.array(outcome.results["semantic"][config.heads[0]]["confusion"]["counts"])
    tested = counts_CC.sum(axis=1) > 0
    found["balanced"] = float((counts_CC.diagonal()[tested] / counts_CC.sum(axis=1)[tested]).mean())
    if config.shots:
        own = replace(plain, label_N=code_N, class_names=values.names)
        few = few_shot(own, FewShotConfig(shots=config.shots, resample_by=probes.resample_by, seed=config.seed))
        found["few_shot"] = {name: few[name] for name in ("accuracy", "ci95", "converged")}
    if fixed is not None:
        left_N = np.where(fixed.label_N >= 0, code_N, UNLABELLED)
        within = _probed(fixed, left_N, values.names, probes)
        if within is not None:
            found["fixed"] = _told(within.results["semantic"][config.heads[0]])
        found["class_alone"] = _from_class(fixed, left_N)
        found["substance"] = _substance(plain, values, config, probes)
        found["shortcut"] = _shortcut(plain, values, config, probes.resample_by)
    return found


def _from_class(fixed: EmbeddingTable, code_N: I64) -> float | None:
    """Accuracy of the most frequent value of the photograph's class in training, on test photographs."""
    train, test = ((fixed.split_N == split) & (code_N >= 0) for split in (TRAIN, TEST))
    if not train.any() or not test.any():
        return None
    best_N = np.full(len(code_N), np.bincount(code_N[train]).argmax())
    for each in np.unique(fixed.label_N[train]):
        own = fixed.label_N == each
        best_N[own] = np.bincount(code_N[train & own]).argmax()
    return float((best_N == code_N)[test].mean())


def _substance(plain: EmbeddingTable, values: Values, config: LabelsConfig, probes: ProbeConfig) -> JSON | None:
    """Class accuracy by value of a label, of probes trained with this value and without it.

    The others leave out as many photographs at random. Test photographs of classes that no other value has are not
    scored: nothing could name them.
    """
    probes = replace(probes, heads=("linear",), resamples=0)
    train, test_N = plain.split_N != TEST, plain.rows(TEST)
    labelled = (values.code_N >= 0) & (plain.label_N >= 0)
    counts = np.bincount(values.code_N[labelled & train], minlength=len(values.names))
    order = [v for v in np.argsort(-counts, kind="stable").tolist() if counts[v]][: config.max_values]
    score_KN = np.full((2, len(test_N)), np.nan, np.float32)  # with the value, without it
    converged = True
    by_value: dict[str, JSON] = {}
    for v in order:
        own = labelled & (values.code_N == v)
        others = np.unique(plain.label_N[labelled & ~own & (plain.split_N == TRAIN)])
        asked = own & ~train & np.isin(plain.label_N, others)
        if len(others) < 2 or not asked.any():
            continue
        rng = np.random.default_rng([config.seed, 0x6C61626C, v])
        dropped = np.zeros(len(own), np.bool_)
        for split in np.unique(plain.split_N[train]).tolist():
            rows = np.flatnonzero(labelled & (plain.split_N == split))
            dropped[rng.choice(rows, int((own & (plain.split_N == split)).sum()), replace=False)] = True
        for k, left_out in enumerate((dropped, own & train)):
            label_N = np.where((labelled & train & ~left_out) | asked, plain.label_N, UNLABELLED)
            outcome = _probed(plain, label_N, plain.class_names, probes)
            if outcome is not None:
                row_N = outcome.scores["semantic/linear"][0]
                score_KN[k] = np.where(np.isfinite(row_N), row_N, score_KN[k])
                converged &= outcome.results["semantic"]["linear"]["converged"]
        place = asked[test_N]
        if np.isfinite(score_KN[:, place]).all():
            among, across = (float(row[place].mean()) for row in score_KN)
            by_value[values.names[v]] = {"within": among, "across": across, "images": int(place.sum())}
        else:
            score_KN[:, place] = np.nan
    if not by_value:
        return None
    group_N = plain.groups_of(test_N, probes.resample_by)
    both = resample(score_KN, config.bootstrap, config.seed, group_N, proportion=True)
    drop = resample((score_KN[0] - score_KN[1])[None], config.bootstrap, config.seed, group_N, proportion=False).one(0)
    mean, worst = both.one(0), min(by_value, key=lambda name: float(by_value[name]["within"]))
    return {
        **mean.entries("within"),
        **both.one(1).entries("across"),
        "drop": drop.number,
        "drop_ci95": drop.within(-1.0, 1.0),
        "worst": worst,
        "gap": mean.value - float(by_value[worst]["within"]),
        "by_value": by_value,
        "images": int(np.isfinite(score_KN[0]).sum()),
        "converged": converged,
    }


def _shortcut(plain: EmbeddingTable, values: Values, config: LabelsConfig, by: ResampleBy) -> JSON | None:
    """Class accuracy of nearest neighbours where only the query's class shares its value, and where only others do.

    In both arrangements each class has as many training photographs, drawn at random. Queries of classes that have
    training photographs on one side alone are not scored.
    """
    train_N, test_N = (plain.rows(split) for split in (TRAIN, TEST))
    known_N = (values.code_N >= 0) & (plain.label_N >= 0)
    bank, asked = train_N[known_N[train_N]], np.flatnonzero(known_N[test_N])
    bank = bank[np.sort(np.argsort(image_keys(config.seed, [plain.keys[n] for n in bank]))[: config.max_images])]
    label_B, code_B = plain.label_N[bank], values.code_N[bank]
    unit_BD, unit_ND = (normalize(torch.from_numpy(plain.take_finite(0, rows)), dim=1) for rows in (bank, test_N))
    rank_B = np.random.default_rng([config.seed, 0x73686F72]).permutation(len(bank))
    right_AN = np.full((2, len(test_N)), np.nan, np.float32)
    for v in range(len(values.names)):
        same, kept = code_B == v, np.zeros(len(bank), np.bool_)
        for label in np.unique(label_B):
            sides = [np.flatnonzero((label_B == label) & side) for side in (same, ~same)]
            for rows in sides:
                kept[rows[np.argsort(rank_B[rows])[: min(map(len, sides))]]] = True
        queries = asked[values.code_N[test_N[asked]] == v]
        queries = queries[np.isin(plain.label_N[test_N[queries]], label_B[kept])]
        if len(np.unique(label_B[kept])) < 2:  # no other class could be named
            continue
        count = min(config.neighbours, int((kept & same).sum()))
        for part in np.array_split(queries, max(1, -(-len(queries) // _QUERIES))):
            label_Q = torch.from_numpy(plain.label_N[test_N[part]])
            own_QB = label_Q[:, None] == torch.from_numpy(label_B)[None]
            near_QB = unit_ND[part] @ unit_BD.T
            for a, like_QB in enumerate((own_QB, ~own_QB)):
                there_QB = (like_QB == torch.from_numpy(same)[None]) & torch.from_numpy(kept)[None]
                vote_Q = voted(near_QB.masked_fill(~there_QB, -torch.inf), torch.from_numpy(label_B), count)
                right_AN[a, part] = (vote_Q == label_Q).numpy()
    if not np.isfinite(right_AN).any():
        return None
    group_N = plain.groups_of(test_N, by)
    both = resample(right_AN, config.bootstrap, config.seed, group_N, proportion=True)
    price = resample((right_AN[0] - right_AN[1])[None], config.bootstrap, config.seed, group_N, proportion=False).one(0)
    return {
        "pos_same": both.one(0).number,
        "neg_same": both.one(1).number,
        "price": price.number,
        "price_ci95": price.within(-1.0, 1.0),
        "images": int(np.isfinite(right_AN[0]).sum()),
    }


def _numeric(
    plain: EmbeddingTable, fixed: EmbeddingTable | None, values: Values, label: str, config: LabelsConfig
) -> JSON:
    """Scores of a label whose values are numbers."""
    assert values.number_N is not None
    own_N = np.isfinite(values.number_N)
    found: JSON = {
        "kind": "number",
        "values": len(np.unique(values.number_N[own_N])),
        "images": int((own_N & (plain.split_N == TEST)).sum()),
        **values.counts,
        **_ridge(plain, own_N, values.number_N, label, config),
    }
    if fixed is not None:
        own_N &= fixed.label_N >= 0
        number_N, train = values.number_N.copy(), own_N & (plain.split_N == TRAIN)
        for each in np.unique(fixed.label_N[own_N]):
            rows = own_N & (fixed.label_N == each)
            known = (rows & train).any()
            number_N[rows] -= number_N[rows & train].mean() if known else np.nan
            own_N[rows] &= known
        scored = _ridge(fixed, own_N, number_N, label, config)
        found["fixed"] = {name: scored.get(name) for name in ("r2", "r2_ci95", "error", "error_ci95")}
    return found


def _ridge(table: EmbeddingTable, own_N: NDArray[np.bool_], number_N: F64, label: str, config: LabelsConfig) -> JSON:
    """R² and error on the test photographs among some; empty if a split has none, or all values are equal."""
    splits = _splits(table, own_N, config.seed)
    if any(len(np.unique(number_N[rows])) < 2 for rows in (splits[0], splits[2])):
        return {}
    cells = [list(cells_of(table, [0], rows)) for rows in splits]
    by = "photograph" if config.group else config.resample_by
    target = Response(label, "", 0.0)
    ((_, scored),) = regressed(
        table, [target], {label: number_N[None]}, cells, bootstrap=config.bootstrap, seed=config.seed, resample_by=by
    )
    return {name: value for name, value in scored.items() if name != "points"}
