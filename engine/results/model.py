"""Models of results.json.

All but the parts without a default may be missing or null. Unknown keys are kept: a plug-in or a newer version may
write them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from substyle.pipelines.transforms.names import count_families

SCHEMA = 4
HEADS = ("linear", "mlp")
BLOCK = re.compile(r"block (\d+) of 0 to (\d+)")  # in the pooling of a layer

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=-1e-6, le=1 + 1e-6)]  # with room for rounding
Interval = Annotated[list[Finite], Field(min_length=2, max_length=2)]  # low, high
Numbers = dict[str, Finite | None]
Counts = dict[str, int | None]
K = Annotated[str, Field(pattern="^[0-9]{1,9}$")]  # a number of neighbours
Texts = list[str]


class Model(BaseModel):
    """An object of results.json; without entries it is false."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, defer_build=True)

    def __bool__(self) -> bool:
        return bool(self.model_fields_set)

    def entry(self, name: str) -> Any:  # noqa: ANN401 (of the type that the stage states, or JSON)
        """The entry of a key, such as a stage; None if missing."""
        field = "class_" if name == "class" else name  # a word of Python
        return getattr(self, field) if field in type(self).model_fields else (self.model_extra or {}).get(name)


class Estimate(Model):
    """A number and its 95 % interval, which is the one to show; without ``low`` and ``high`` there is none.

    The interval of a score that generalises to unseen transformations is over photographs and transformations
    (two-way), never over photographs alone, which is ``one_way``. ``two_way`` is that of a score for which ``low`` and
    ``high`` are over photographs alone. No estimate has both.

    ``n`` is the number of independent ``unit``s that the interval is over, its degrees of freedom and one. ``se`` is a
    standard error: of a score of a probe, over photographs and over probes trained on resampled photographs; of a
    difference, that of its test. ``se_training``, a part of it, is over the latter alone. ``ci90`` is for equivalence
    tests.
    """

    value: Finite
    low: Finite | None = None
    high: Finite | None = None
    n: int | None = None
    unit: str | None = None
    one_way: Interval | None = None
    two_way: Interval | None = None
    ci90: Interval | None = None
    se: Finite | None = None
    se_training: Finite | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> Estimate:
        if (self.low is None) != (self.high is None) or (self.one_way and self.two_way):
            raise ValueError("low and high, and at most one of one_way and two_way")
        return self

    @property
    def interval(self) -> Interval | None:
        """[low, high]; None without an interval."""
        return None if self.low is None or self.high is None else [self.low, self.high]

    @property
    def over_photographs(self) -> Interval | None:
        """The interval over photographs alone, also where it is not the one to show."""
        return self.one_way or self.interval

    @property
    def over_transformations(self) -> Interval | None:
        """The interval over photographs and transformations, also where it is not the one to show."""
        return self.interval if self.one_way else self.two_way

    def __neg__(self) -> Estimate:
        intervals = {name: getattr(self, name) for name in ("one_way", "two_way", "ci90")}
        turned = {name: each and [-each[1], -each[0]] for name, each in intervals.items()}
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return self.model_copy(update={"value": -self.value, "low": low, "high": high, **turned})


class ShareEstimate(Estimate):
    """An `Estimate` of a fraction."""

    value: Share


def entry_of(
    value: float | None,
    interval: Sequence[float] | None = None,
    n: float = math.inf,
    unit: str = "",
    **more: Any,  # noqa: ANN401 - JSON
) -> dict[str, Any] | None:
    """Entry of results.json of an `Estimate` with these and ``more`` fields; None without a value."""
    if value is None or math.isnan(value):
        return None
    low, high = interval or (None, None)
    of = {"n": int(n), "unit": unit} if interval and unit and math.isfinite(n) else {}
    fields = {"value": value, "low": low, "high": high, **of, **more}
    return {name: field for name, field in fields.items() if field is not None}


class Confusion(Model):
    """Counts of test images by true label (rows) and predicted label (columns); of tasks on transformations."""

    labels: Texts
    counts: list[list[Annotated[int, Field(ge=0)]]]

    @model_validator(mode="after")
    def _square(self) -> Confusion:
        count = len(self.labels)
        if len(self.counts) != count or any(len(row) != count for row in self.counts):
            raise ValueError("labels and a square matrix of counts")
        return self


class Calibration(Model):
    """Temperature of an output of a probe, and the expected calibration error on test photographs with and without it.

    The error is that of the probability of the most likely label, in 15 equally wide bins, on rows like those of the
    training: its transformations, or original photographs for classes.
    """

    temperature: Finite | None = None
    ece: Share | None = None
    ece_before: Share | None = None


class ProbeScores(Model):
    """Scores of a probe, and how it was trained.

    ``seen`` and ``held_out``: of the kind, on transformations in, or not in, the training set of the probe;
    ``original`` and ``transformed``: of the class on original and on transformed photographs. ``held_out``, ``gap``,
    ``balanced``, ``styles`` and, of `GroupedScores`, ``accuracy`` generalise to unseen transformations.
    """

    accuracy: ShareEstimate | None = None
    balanced: ShareEstimate | None = None
    styles: ShareEstimate | None = None
    seen: ShareEstimate | None = None
    held_out: ShareEstimate | None = None
    gap: Estimate | None = None
    original: ShareEstimate | None = None
    transformed: ShareEstimate | None = None
    chance: Finite | None = None
    validation: Finite | None = None
    steps: Finite | None = None
    converged: bool | None = None
    edge: bool | None = None
    setting: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    confusion: Confusion | None = None
    calibration: dict[str, Calibration | None] | None = None  # by output

    @property
    def unconverged(self) -> bool:
        """Whether the probe states that it has not converged."""
        return self.converged is False


class SeverityCurve(Model):
    """Accuracies by severity of a transformation.

    Of the transformation task also the severity at which accuracy is halfway between chance and its maximum.
    """

    severities: list[int]
    accuracy: list[ShareEstimate | None]
    halfway: Estimate | None = None

    @model_validator(mode="after")
    def _of_one_length(self) -> SeverityCurve:
        if len(self.severities) != len(self.accuracy):
            raise ValueError("severities and accuracy of one length")
        return self


class PlainScores(ProbeScores):
    """Scores of a probe that was trained on all transformations, or scored on another domain."""

    images: int | None = None
    by_transformation: Numbers | None = None
    by_severity: dict[str, SeverityCurve] | None = None


class Accuracy(Model):
    """An accuracy, and the number of images that it is over."""

    accuracy: ShareEstimate | None = None
    images: int | None = None
    role: str | None = None
    kind: str | None = None


# by task, training domain and test domain
DomainScores = dict[str, dict[str, dict[str, PlainScores | None] | None] | None]


class GroupedScores(ProbeScores):
    """Scores of a probe with held-out transformations, or of one for each transformation held out in turn."""

    by_transformation: dict[str, Accuracy | None] | None = None
    generators: dict[str, ProbeScores | None] | None = None


class Redrawn(Model):
    """Accuracies on random sets of held-out transformations."""

    sets: int | None = None
    transformations: int | None = None
    mean: Finite | None = None
    sd: Finite | None = None
    low: Finite | None = None
    high: Finite | None = None


class EqualWidth(Model):
    """Scores of linear probes on embeddings that were projected to one width."""

    dim: int | None = None
    transformation: PlainScores | None = None
    rotation: GroupedScores | None = None


class BothTasks(Model):
    """Accuracies of transformation and class."""

    transformation: ShareEstimate | None = None
    class_: ShareEstimate | None = Field(default=None, alias="class")


class MultiTask(BothTasks, ProbeScores):
    """Scores of a probe of transformation and class, and of its single-task twins."""

    task_weight: Finite | None = None
    single_task: BothTasks | None = None
    difference: dict[str, Estimate | None] | None = None


class Neighbours(Model):
    """Accuracies of k nearest neighbours, by k."""

    transformation: dict[K, ShareEstimate | None] | None = None
    label: dict[K, ShareEstimate | None] | None = Field(default=None, alias="class")


class Balance(Model):
    """What the nearest other variant shows, as fractions."""

    __pydantic_extra__: Numbers = Field(init=False)

    same_image: ShareEstimate | None = None
    same_transformation: ShareEstimate | None = None
    both: ShareEstimate | None = None
    neither: ShareEstimate | None = None


class Clusters(Model):
    """Numbers of clusters, and their adjusted mutual information with transformation and class."""

    k: Numbers | None = None
    ami_transformation: Estimate | None = None
    ami_class: Estimate | None = None


class VariantMap(Model):
    """Variants on a plane, in columns; numbers of transformations, and of classes or -1."""

    x: list[int]
    y: list[int]
    transformation: list[Annotated[int, Field(ge=0)]]
    label: list[Annotated[int, Field(ge=-1)]] = Field(alias="class")
    transformations: Texts
    kind: Texts

    @model_validator(mode="after")
    def _of_one_length(self) -> VariantMap:
        same = len(self.x) == len(self.y) == len(self.transformation) == len(self.label)
        named = len(self.transformations) == len(self.kind)
        if not (same and named and self.x and max(self.transformation) < len(self.transformations)):
            raise ValueError("columns of one length: x, y, transformation, class; names of transformations")
        return self


class FineTuning(Model):
    """Training of a fine-tuned backbone."""

    backbone: str
    objective: str
    seed: int
    settings: dict[str, Any] | None = None


class Spec(Model):
    """What a backbone is."""

    architecture: str | None = None
    pooling: str | None = None
    objective: str | None = None
    data: str | None = None
    parameters: Finite | None = None
    weights: str | None = None
    weights_hash: str | None = None
    licence: str | None = None
    input_side: int | str | None = None
    mean: list[Finite] | None = None
    std: list[Finite] | None = None
    finetuned: FineTuning | None = None


class AdapterFacts(Model):
    """The backbone of an adapted one, and how it was adapted."""

    backbone: str | None = None
    method: str | None = None


class Gate(Model):
    """Agreement of a runtime with the reference."""

    cosine_min: Finite | None = None
    threshold: Finite | None = None
    configured: bool | None = None
    spot: Gate | None = None


class BackboneResults(Model):
    """Results of one backbone; of probes by head (linear, mlp, …)."""

    dim: int | None = None
    control: bool | None = None
    label: str | None = None
    spec: Spec | None = None
    runtime: dict[str, Any] | None = None
    gate: Gate | None = None
    adapter: AdapterFacts | None = None
    cost: Numbers | None = None
    transformation: dict[str, PlainScores | None] | None = None
    kind: dict[str, GroupedScores | None] | None = None
    kind_rotation: dict[str, GroupedScores | None] | None = None
    kind_redrawn: dict[str, Redrawn | None] | None = None
    class_: dict[str, PlainScores | None] | None = Field(default=None, alias="class")
    multitask: MultiTask | None = None
    equal_width: EqualWidth | None = None
    knn: Neighbours | None = None
    balance: Balance | None = None
    sampled: dict[str, Any] | None = None
    retrieval: dict[str, dict[K, Finite | None] | None] | None = None
    clusters: Clusters | None = None
    sensitivity: dict[str, Estimate | None] | None = None
    equivariance: dict[str, Estimate | None] | None = None
    steerability: Numbers | None = None
    steerability_unchanged: Numbers | None = None
    map: VariantMap | None = None
    shift: dict[str, Accuracy | None] | None = None
    domains: DomainScores | None = None

    @property
    def facts(self) -> Spec:
        """What it is; empty if unknown."""
        return self.spec or Spec()

    @property
    def base(self) -> str | None:
        """Name of the backbone that an adapted or fine-tuned one was trained from."""
        adapted = self.adapter.backbone if self.adapter else None
        return adapted or (self.facts.finetuned.backbone if self.facts.finetuned else None)

    def is_whole(self) -> bool:
        """Whether it is the output of a network as it was loaded: no layer, not adapted or fine-tuned."""
        return not (self.adapter or self.facts.finetuned or BLOCK.search(self.facts.pooling or ""))

    def probes(self, task: str) -> Mapping[str, ProbeScores]:
        """Probes of a task (transformation, kind, kind_rotation, class, multitask) by head; of multitask MLPs."""
        if task == "multitask":
            return {"mlp": self.multitask} if self.multitask is not None else {}
        return {head: probe for head, probe in (self.entry(task) or {}).items() if probe is not None}

    def probe(self, task: str, head: str) -> ProbeScores | None:
        """The probe of a task with a head; None if missing."""
        return self.probes(task).get(head)

    def unconverged(self, task: str, head: str) -> bool:
        """Whether a probe states that it has not converged."""
        probe = self.probe(task, head)
        return probe is not None and probe.unconverged


class Parameter(Model):
    """A parameter of a transformation, and what it is drawn from."""

    name: str
    unit: str | None = None
    signed: bool | None = None
    one_of: list[Any] | None = None
    uniform: Interval | None = None


class TransformationEntry(Model):
    """A transformation of the suite."""

    name: str
    kind: str
    role: str
    made_by: str | None = None
    parameters: list[Parameter] | None = None


class Resampling(Model):
    """What intervals are over: photographs or folders, and their number."""

    by: str | None = None
    groups: int | None = None


class Throughput(Model):
    """Seconds of stages and rates per second."""

    __pydantic_extra__: Numbers = Field(init=False)

    backbone_only_per_s: Numbers | None = None


class PairComparison(Model):
    """The difference a - b of two backbones in a score, or of two heads on one backbone."""

    task: str
    a: str
    b: str
    difference: Estimate
    metric: str | None = None
    head: str | None = None
    p: Finite | None = None
    p_holm: Finite | None = None


class Moved(Model):
    """Sensitivity of a backbone, and its loss under shift."""

    sensitivity: Estimate | None = None
    loss: Estimate | None = None


class Robustness(Model):
    """Rank correlation of sensitivity and loss over backbones, under one shift or the mean of all (null)."""

    shift: str | None = None
    spearman: Estimate | None = None
    kendall: Estimate | None = None
    backbones: dict[str, Moved | None] | None = None


class StudyFacts(Model):
    """Maximum number of photographs (0: all), and fractions of splits if the source has none."""

    limit: int | None = None
    splits: Numbers | None = None


class ResultsDocument(Model):
    """results.json."""

    schema_number: Literal[4] = Field(alias="schema")
    name: str
    images: int
    transformations: list[TransformationEntry]
    backbones: dict[str, BackboneResults]
    version: str | None = None
    created: str | None = None
    note: str | None = None
    suite: str | None = None
    seed: int | None = None
    canvas: int | None = None
    orientation: str | None = None
    style_precision: str | None = None
    crop_pct: Finite | None = None
    variants: int | None = None
    splits: Counts | None = None
    labelled_test: int | None = None  # test photographs with a class
    classes: list[Any] | None = None
    chance: Numbers | None = None
    quarantined: list[dict[str, Any]] | None = None
    indistinct: Numbers | None = None
    left_out: Numbers | None = None
    duplicates: int | None = None
    duplicates_moved: int | None = None
    conflicting_copies: list[Annotated[Texts, Field(min_length=2, max_length=2)]] | None = None
    resampled: Resampling | None = None
    identity: dict[str, Any] | None = None
    stamps: dict[str, Any] | None = None
    settings: dict[str, dict[str, Any] | None] | None = None
    study: StudyFacts | None = None
    throughput: Throughput | None = None
    environment: dict[str, Any] | None = None
    comparisons: list[PairComparison] | None = None
    robustness: list[Robustness] | None = None

    def ordered(self) -> dict[str, BackboneResults]:
        """Backbones by name, controls last."""
        return dict(sorted(self.backbones.items(), key=lambda item: bool(item[1].control)))

    def real(self) -> dict[str, BackboneResults]:
        """Backbones that are not controls, by name."""
        return {name: backbone for name, backbone in self.backbones.items() if not backbone.control}

    def networks(self) -> list[str]:
        """Names of the backbones that are neither controls, nor layers, adapted nor fine-tuned."""
        return [name for name, backbone in self.real().items() if backbone.is_whole()]

    def entries(self, name: str) -> dict[str, Any]:
        """Results of a stage by backbone, controls last: of the type that it states, or JSON."""
        return {key: found for key, backbone in self.ordered().items() if (found := backbone.entry(name))}

    def probe(self, name: str, task: str, head: str) -> ProbeScores | None:
        """The probe of a backbone; None if it is missing."""
        return self.backbones[name].probe(task, head) if name in self.backbones else None

    def gate_note(self) -> str:
        """A sentence on backbones whose minimum cosine with float32 is not the default; empty if there are none."""
        gates = {name: backbone.gate for name, backbone in self.ordered().items()}
        limits = [f"{gate.threshold} for {name}" for name, gate in gates.items() if gate and gate.configured]
        return f"The minimum cosine with float32 is set to {', '.join(limits)}." if limits else ""

    def heads(self) -> list[str]:
        """Heads of all probes, linear and MLP first."""
        tasks = ("transformation", "kind", "class")
        probes = [backbone.probes(task) for backbone in self.backbones.values() for task in tasks]
        found = {head for each in probes for head, probe in each.items() if probe}
        return [head for head in HEADS if head in found] + sorted(found.difference(HEADS))

    def first_head(self) -> str:
        """The first head of all probes, "" without probes."""
        return (*self.heads(), "")[0]

    def chance_of(self, task: str) -> float | None:
        """Accuracy by chance."""
        return (self.chance or {}).get(task)

    def drawn(self, by: str | None = None) -> str:
        """What the bootstrap draws: of probes, or with another unit ``by``."""
        by = by or (self.resampled.by if self.resampled else None)
        return "folders of photographs" if by == "folder" else "photographs"

    @property
    def suite_size(self) -> int:
        """Number of transformations; severities of one count as one."""
        return count_families(row.name for row in self.transformations)

    def compared(self, task: str, metric: str, head: str = "linear") -> dict[tuple[str, str], PairComparison]:
        """Comparisons by a score, by (a, b)."""
        rows = self.comparisons or []
        return {(row.a, row.b): row for row in rows if (row.task, row.head, row.metric) == (task, head, metric)}
