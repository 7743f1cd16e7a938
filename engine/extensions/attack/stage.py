"""Attack backbones with their class probes, and measure whether probes and detectors can tell.

The attacked pictures are embedded by the same torch network in float32 as the original ones beside them: embeddings of
the study's store come from a compiled network, and a detector would learn that difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache as cache_calls
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cache, devices
from substyle.engine.backbones import registry
from substyle.engine.backbones.lazy import sketched
from substyle.engine.backbones.spec import network_name
from substyle.engine.cache import versions
from substyle.engine.config import EmbedConfig, Settings, Study, names_of
from substyle.engine.embedding.preflight import SplitCounts, require_class_probe
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.extensions.attack import detection, section
from substyle.engine.extensions.attack.config import ATTACKS, AttackConfig
from substyle.engine.extensions.attack.craft import (
    ADAPTIVE,
    BATCH,
    FEWEST,
    NOISE,
    ORIGINAL,
    Canvas,
    Victim,
    craft,
    distances,
    embedded,
    is_network,
    squeeze,
    torchattack,
)
from substyle.engine.extensions.attack.detection import Detector
from substyle.engine.extensions.attack.section import Attacks
from substyle.engine.observability import ProgressBar, stage
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.resampling import resample
from substyle.engine.stages.execution import settings_of
from substyle.engine.stages.probes import probe_file
from substyle.engine.stages.registry import register_stage
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.stages.stamp import file_digest, is_result
from substyle.engine.store import identity, lock
from substyle.engine.store.catalog import Definition
from substyle.engine.store.layout import (
    SPLITS,
    TEST,
    TRAIN,
    BackboneEntry,
    StoreSettings,
    network_changes,
    network_facts,
    network_identity,
)
from substyle.engine.store.manifest import SourceEntry
from substyle.engine.store.records import ImageNote
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table
from substyle.errors import ConfigError, MissingError, SubstyleError, abbreviated
from substyle.kernels.philox import image_keys
from substyle.pipelines.sources import Source

STORE = "variants.zarr"
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class AttackStage(JsonStage[AttackConfig]):
    """Attack backbones with their linear class probes on photographs that these classify correctly, and detect it.

    Beside the results it writes ``variants.zarr``, a store of the attacked pictures' embeddings with the attacks as
    transformations.
    """

    name = "attack"
    version = 3
    photographs = True
    config = AttackConfig
    switch = "attacks"
    on_demand = MappingProxyType({"attacks": ATTACKS})
    ignored = ("backbones",)
    any_order = True
    backbone_results = Attacks
    reads = ("probes",)
    report = section

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Raise ConfigError without networks, class probes or photographs to attack."""
        config = self.of(study)
        return check_attack(study, config, counts) if config is not None else []

    def units(self, run: Run, config: AttackConfig) -> Iterable[Unit]:
        """Backbones of the settings; by default all networks of the study, or of the store, that are no controls.

        Raises:
            MissingError: torchattack or a probe is missing.
            ConfigError: a backbone is no torch network, or transfer is the only attack and there is no surrogate.
        """
        torchattack()
        alone = run.embedding is None
        known = [entry.name for entry in run.store.backbones()] if alone else _probed(run)
        names = config.backbones or attackable(run.store, known)
        if alone and not names:
            raise ConfigError("STORE", str(run.store.path), "a store with networks; name controls with --backbone")
        for name in names:
            entry = run.store.backbone(name)
            if name not in _probed(run):
                again = f"run substyle stage probes {run.store.path}"
                raise MissingError(str(probe_file(run.out, name, "class")), again)
            inputs = _inputs(run.store, run.out, entry, config, _probed(run))
            if not config.names(transfer=inputs["transfer"] is not None):
                allowed = f"also another attack; no other network with a class probe to craft an attack on {name}"
                raise ConfigError("attack.attacks", ", ".join(config.attacks), allowed)
        return [Unit(name, run.store.backbone(name).slug) for name in names]

    def inputs(self, run: Run, config: AttackConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """Probes and networks, among them the surrogate and other layers."""
        probed = _probed(run)
        if before is not None:  # other backbones may have been probed since
            used = (before.get("transfer"), *before.get("layers", ()))
            probed = [each["name"] for each in used if each]
        return _inputs(run.store, run.out, run.store.backbone(unit.name), config, probed)

    def compute(self, run: Run, config: AttackConfig, unit: Unit, folder: Path) -> None:
        """Write the attacked pictures' embeddings and the scores."""
        inputs = {**settings_of(self, config), **self.inputs(run, config, unit)}
        target = devices.resolve(run.study.device if run.study else devices.AUTO).torch_device
        subject = _Subject(run.store, run.out, _table(run, unit), config, inputs, run.checkpoints, target)
        self.write(folder, subject.run(folder, run.source or identity.open_own(run.store), quiet=run.quiet))

    def lines(self, result: JSON) -> Iterator[str]:
        """Success and detection of each attack."""
        for name, numbers in result["attacks"].items():
            detector = (numbers["detection"].get("detector") or {}).get("auroc")
            suffix = "" if detector is None else f"  detector AUROC {detector['value']:.3f}"
            yield f"{name}  success {numbers['success']['value']:.3f}{suffix}"


STAGE = register_stage(AttackStage())


def check_attack(study: Study, config: AttackConfig, counts: SplitCounts) -> list[str]:
    """Check that there are networks, class probes and photographs to attack. Raises ConfigError("attack...", ...)."""
    torchattack()
    names = names_of(study.backbones)
    if unknown := set(config.backbones) - set(names):
        raise ConfigError(
            "attack.backbones", abbreviated(sorted(unknown)), f"backbones of the study: {', '.join(names)}"
        )
    networks = [name for name in names if is_network(name)]
    targets = config.backbones or networks
    if not targets:
        raise ConfigError("attack.backbones", "none", "controls by name; the study has no network to attack")
    if graphs := [name for name in targets if name.startswith("onnx:")]:
        raise ConfigError(
            "attack.backbones", abbreviated(graphs), "torch networks, since attacks follow their gradient"
        )
    for target in targets if config.attacks == ("transfer",) else ():
        if not surrogates_of(target, networks):
            allowed = f"also another attack; the study has no other network to craft an attack on {target}"
            raise ConfigError("attack.attacks", "transfer", allowed)
    require_class_probe("attack.attacks", ", ".join(config.attacks), counts, study.probes)
    for split in (TRAIN, TEST):
        labelled = int(counts.count_CS[:-1, split].sum())
        if (found := min(labelled, config.photographs or labelled)) < FEWEST:
            given = f"{found} labelled {SPLITS[split]} photographs"
            raise ConfigError("attack.attacks", given, f"at least {FEWEST} that the class probe gets right")
    return []


def _probed(run: Run) -> list[str]:
    """Backbones with probes, in a run of a study its own: neither adapted nor fine-tuned ones."""
    probed = list(run.results.get("probes", {}))
    own = set(names_of(run.study.backbones)) if run.study is not None and run.embedding is not None else probed
    return [name for name in probed if name in own]


def _table(run: Run, unit: Unit) -> EmbeddingTable:
    (first, *_) = run.tables.values()
    return open_table(run.store, unit.name, sorted(first.transformations))


def attackable(store: EmbeddingStore, names: Sequence[str]) -> list[str]:
    """Return the backbones among ``names`` that are torch networks with one vector per image, and not controls."""
    return [name for name in names if is_network(name) and not store.backbone(name).facts["spec"].get("control")]


def surrogates_of(target: str, networks: Iterable[str]) -> list[str]:
    """Return the networks on which transfer to a target is crafted, the first one first: other ones."""
    return [name for name in networks if network_name(name) != network_name(target)]


def _inputs(
    store: EmbeddingStore, out: Path, entry: BackboneEntry, config: AttackConfig, probed: Sequence[str]
) -> dict[str, Any]:
    """Everything that determines the attacks besides photographs and embeddings, without loading a network."""

    def facts(each: BackboneEntry, *tasks: str) -> dict[str, Any]:
        files = {task: file_digest(probe_file(out, each.name, task)) for task in tasks}
        return {"name": each.name, "network": network_identity(each.facts["spec"]), "probes": files}

    others = [e for e in store.backbones() if e.name in probed and e.name != entry.name]
    others = [e for e in others if is_result(probe_file(out, e.name, "class"))]
    names = [e.name for e in others]
    crafted = surrogates_of(entry.name, attackable(store, names))
    surrogates = [e for e in others if e.name in crafted]
    layers = [e for e in others if network_name(e.name) == network_name(entry.name)]
    return {
        "backbone": facts(entry, "class", "transformation", "kind"),
        "transfer": facts(surrogates[0], "class") if surrogates and "transfer" in config.attacks else None,
        "layers": [facts(each, "class") for each in layers],
        "libraries": versions("torchattack", "torchvision", "timm", "scipy", "nvidia-dali-cuda130"),
    }


@dataclass(frozen=True)
class _Photographs:
    """Sampled photographs of one split that decode. Shapes: (N, S, S, 3) canvases; ``row_N``: rows of the table."""

    canvas_NSSC: Canvas
    row_N: I64
    keys: list[str]
    label_N: I64  # as indices of the probe's classes

    def take(self, keep_N: NDArray[np.bool_]) -> _Photographs:
        keys = [key for key, keep in zip(self.keys, keep_N, strict=True) if keep]
        return _Photographs(self.canvas_NSSC[keep_N], self.row_N[keep_N], keys, self.label_N[keep_N])


@dataclass
class _Subject:
    """A backbone under attack.

    Attributes:
        layers: other layers of its network with their class probes.
        photographs: those that the class probe classifies correctly, by split.
        before: accuracy of the class probe on the sampled test photographs, and their number.
        made: embeddings by split, layer ("" for the output) and variant.
        norms: distances of attacked test photographs by attack.
        detectors: detectors by what is left out of their training, "" for nothing.
    """

    store: EmbeddingStore
    out: Path
    table: EmbeddingTable
    config: AttackConfig
    inputs: Mapping[str, Any]
    checkpoints: Mapping[str, Path | None]
    device: torch.device
    layers: dict[str, tuple[Victim, Probe]] = field(default_factory=dict)
    photographs: dict[int, _Photographs] = field(default_factory=dict)
    before: tuple[float, int] = (0.0, 0)
    made: dict[tuple[int, str, str], F32] = field(default_factory=dict)
    norms: dict[str, tuple[F32, F32]] = field(default_factory=dict)
    detectors: Mapping[str, Detector] = field(default_factory=dict)

    def run(self, folder: Path, source: Source, *, quiet: bool) -> dict[str, Any]:
        """Craft, embed and store the attacks, and score all detectors."""
        victim, probe = self._victim(self.table.backbone)
        transfer = self.inputs["transfer"]
        surrogate, classes = self._victim(transfer["name"]) if transfer else (None, probe)
        if classes.labels != probe.labels:
            raise SubstyleError(f"{transfer['name']}: its class probe has other classes; rerun substyle stage probes")
        self.layers = {each["name"]: self._victim(each["name"]) for each in self.inputs["layers"]}
        names = self.config.names(transfer=surrogate is not None)
        self._sample(source, victim, probe)
        train, test = self.photographs[TRAIN], self.photographs[TEST]
        strongest = max(self.config.epsilons)
        adaptive, noise = f"{ADAPTIVE}@{strongest}", f"{NOISE}@{strongest}"

        def add(split: int, name: str, picture_NSSC: Canvas) -> None:
            self.made[split, "", name] = embedded(victim, picture_NSSC)
            if split == TEST:
                for layer, (own, _) in self.layers.items():
                    self.made[split, layer, name] = embedded(own, picture_NSSC)
                for how, squeezed_NSSC in squeeze(picture_NSSC).items():
                    self.made[split, "", f"{name}+{how}"] = embedded(victim, squeezed_NSSC)

        total = len(names) * (len(train.keys) + len(test.keys)) + 2 * len(test.keys)
        with stage(f"attack {self.table.backbone}", total, "pictures", quiet=quiet) as bar:
            for split, own in self.photographs.items():
                add(split, ORIGINAL, own.canvas_NSSC)
                for name in [*names, *([noise] if split == TEST else [])]:
                    seen = surrogate if name.startswith("transfer") and surrogate else victim
                    bar.note(name)
                    picture_NSSC = self._crafted(name, seen, own, bar)
                    self.norms[name] = distances(own.canvas_NSSC, picture_NSSC)  # in the end those of test photographs
                    add(split, name, picture_NSSC)
            bar.note("detectors")
            train_ND = {name: self.made[TRAIN, "", name] for name in names}
            self.detectors = detection.fit_all(self.made[TRAIN, "", ORIGINAL], train_ND, self.config.seed)
            bar.note(adaptive)
            detector = self.detectors[""]
            picture_NSSC = self._crafted(adaptive, victim, test, bar, (detector.weight_D, detector.bias))
            self.norms[adaptive] = distances(test.canvas_NSSC, picture_NSSC)
            add(TEST, adaptive, picture_NSSC)
        self._write(folder / STORE)
        return self._scores(folder / STORE, [*names, adaptive, noise])

    def _victim(self, name: str) -> tuple[Victim, Probe]:
        """Load a backbone and its class probe, and check that they are those of the store."""
        entry = self.store.backbone(name)
        path = probe_file(self.out, name, "class")
        if not is_result(path):
            raise MissingError(
                str(path), f"run substyle stage probes {self.store.path} with the class task and linear heads"
            )
        settings = self.store.settings
        loaded = registry.load(
            name, registry.LoadContext(settings.canvas, BATCH, settings.seed, self.checkpoints.get(name)).of_a_file
        )
        now = sketched(loaded, settings.canvas, BATCH).describe()
        if changed := network_changes(network_facts(entry.facts["spec"]), network_facts(now), "in the store"):
            raise SubstyleError(f"{name}: {'; '.join(changed)}")
        probe = Probe.load(path)
        return Victim(name, loaded.module, probe, device=self.device), probe

    def _sample(self, source: Source, victim: Victim, probe: Probe) -> None:
        """Sample training and test photographs, and keep those that the probe classifies correctly."""
        table, settings = self.table, self.store.settings
        pipeline = PixelPipeline(Settings(transformations=(ORIGINAL,), **settings.pixels), EmbedConfig(device="cpu"))
        records = {record.key: record for record in source.records}
        truth_N = probe.truth(table, np.arange(len(table.keys)))[0]
        contents = table.contents
        for split in (TRAIN, TEST):
            rows = [n for n in table.rows(split).tolist() if truth_N[n] >= 0 and table.keys[n] in records]
            order = np.argsort(image_keys(self.config.seed, [f"attack:{table.keys[n]}" for n in rows]))
            rows = sorted(rows[i] for i in order[: self.config.photographs or None].tolist())
            canvases: list[Canvas] = []
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                blobs = [identity.read_unchanged(records[table.keys[n]], contents[n]) for n in part]
                canvases.append(pipeline.decoder(blobs).canvas_BSSC.numpy().copy())
            canvas_NSSC = np.concatenate(canvases or [np.empty((0, *2 * (settings.canvas,), 3), np.uint8)])
            keys, row_N = [table.keys[n] for n in rows], np.array(rows, np.int64)
            own = _Photographs(canvas_NSSC, row_N, keys, truth_N[row_N])
            right_N = np.zeros(0, bool)
            if rows:
                right_N = probe.predict(embedded(victim, canvas_NSSC)).argmax(1) == own.label_N
            if right_N.sum() < FEWEST:
                raise SubstyleError(
                    f"{table.backbone}: {int(right_N.sum())} of {len(rows)} {SPLITS[split]} photographs are classified "
                    f"correctly; attacks need {FEWEST}"
                )
            self.photographs[split] = own.take(right_N)
            self.before = float(right_N.mean()), len(rows)

    def _crafted(
        self,
        name: str,
        victim: Victim,
        own: _Photographs,
        bar: ProgressBar,
        detector: tuple[NDArray[np.floating], float] | None = None,
    ) -> Canvas:
        parts = []
        for start in range(0, len(own.keys), BATCH):
            b = slice(start, start + BATCH)
            canvas_BSSC, label_B, keys = own.canvas_NSSC[b], own.label_N[b], own.keys[b]
            parts.append(craft(name, victim, canvas_BSSC, label_B, keys, self.config, detector=detector))
            bar.advance(len(keys))
        return np.concatenate(parts)

    def _write(self, path: Path) -> None:
        """Write the embeddings of all pictures as variants of a store; training photographs precede test ones."""
        table, settings, photographs, made = self.table, self.store.settings, self.photographs, self.made
        most = max(len(own.keys) for own in photographs.values())
        rows = min(1024, 1 << max(most - 1, 1).bit_length())
        copied = StoreSettings(shard_rows=rows, dtype=settings.dtype, **settings.pixels)
        store = EmbeddingStore.create(path, copied)
        with lock.hold(path, run := lock.new_run_id()):
            contents = table.contents
            labels = [table.label_N[own.row_N] for own in photographs.values()]
            present = list(dict.fromkeys(label for own_N in labels for label in np.unique(own_N).tolist()))
            class_names = [table.class_names[label] for label in present]
            for split, own in photographs.items():
                split_N = np.full(len(own.keys), split, np.int8)
                label_N = np.array([present.index(label) for label in table.label_N[own.row_N].tolist()], np.int64)
                given = SourceEntry("", "imported", "")
                splits = [SPLITS[split]] * len(own.keys)
                store.add_images(own.keys, label_N, class_names, split_N, given=splits, source=given)
            row_N = store.manifest().row_N
            for layer in dict.fromkeys(layer for _, layer, _ in made):
                name = layer or table.backbone
                names = list(dict.fromkeys(variant for _, own_layer, variant in made if own_layer == layer))
                facts = {
                    "name": name,
                    "dim": made[TEST, layer, ORIGINAL].shape[1],
                    "spec": self.store.backbone(name).facts["spec"],
                    "runtime": {"name": "torch", "precision": "fp32"},
                    "gate": None,
                    "rate": None,
                }
                entry = store.ensure_backbone(facts, [self._definition(each) for each in names])
                first = 0
                for split, own in photographs.items():
                    own_N = row_N[first : first + len(own.keys)]
                    first += len(own.keys)
                    for shard in np.unique(own_N // rows).tolist():
                        at = np.flatnonzero(own_N // rows == shard)
                        parts = {each: made[split, layer, each][at] for each in names if (split, layer, each) in made}
                        notes = [
                            ImageNote(int(own_N[i]), 0, 0, "", "", (), contents[int(own.row_N[i])]) for i in at.tolist()
                        ]
                        if parts:
                            store.write_shard(entry, shard, parts, notes, seconds=0.0, run=run)

    def _definition(self, name: str) -> Definition:
        kind = ORIGINAL if name == ORIGINAL else "attack"
        role = "train" if name == ORIGINAL else "held_out"
        inputs = cache.key({"name": name, "inputs": dict(self.inputs)})
        return Definition({"name": name, "kind": kind, "role": role, "parameters": [], "inputs": inputs})

    def _scores(self, path: Path, names: Sequence[str]) -> dict[str, Any]:
        """Success, distances and detection of each attack, from the stored embeddings of test photographs."""
        stored, config, (accuracy, sampled) = EmbeddingStore.open(path), self.config, self.before
        train, test = self.photographs[TRAIN], self.photographs[TEST]
        entry = self.store.backbone(self.table.backbone)
        paths = {task: probe_file(self.out, entry.name, task) for task in ("class", "transformation", "kind")}
        probes = {task: Probe.load(own) for task, own in paths.items() if is_result(own)}

        @cache_calls
        def read(name: str, layer: str = "", split: int = TEST) -> F32:
            one = open_table(stored, layer or entry.name, [name])
            return np.asarray(one.take(0, one.rows(split)), np.float32)

        layers = {name: own for name, (_, own) in self.layers.items()}
        scorers = detection.scorers_of(read, train.label_N, probes, self.detectors, layers)
        class_, group_N = probes["class"], self.table.groups(config.resample_by)[test.row_N]
        attacks, by = {}, config.resample_by
        for name in names:
            wrong_N = class_.predict(read(name)).argmax(1) != test.label_N
            success = resample(
                wrong_N[None].astype(np.float64), detection.BOOTSTRAP, config.seed, group_N, unit=by
            ).one(0)
            counted_N = np.ones(len(wrong_N), bool) if detection.family(name) == NOISE else wrong_N
            scores = {}
            for how, scorer in scorers.items():
                attacked_N, original_N = scorer(name, name), scorer(name, ORIGINAL)
                if attacked_N is not None and original_N is not None:
                    found = detection.detection(attacked_N, original_N, counted_N, group_N, seed=config.seed, unit=by)
                    scores[how] = None if found is None else {key: own.entry() for key, own in found.items()}
            attacks[name] = {
                "success": success.entry(),
                "succeeded": int(wrong_N.sum()),
                "accuracy": accuracy * (1 - float(wrong_N.mean())),
                **{norm: float(each.mean()) for norm, each in zip(("linf", "l2"), self.norms[name], strict=True)},
                "named": detection.named(probes.get("transformation"), read(name)[counted_N]),
                "detection": scores,
            }
        return {
            "accuracy": accuracy,
            "photographs": {"train": len(train.keys), "test": sampled, "attacked": len(test.keys)},
            "surrogate": (self.inputs["transfer"] or {}).get("name"),
            "library": f"torchattack {versions('torchattack')['torchattack']}",
            "named": detection.named(probes.get("transformation"), read(ORIGINAL)),
            "resample_by": config.resample_by,
            "converged": all(detector.converged for detector in self.detectors.values()),
            "attacks": attacks,
        }
