"""Backbones by torch.compile, on a GPU or a CPU; what torch generates lies in its own cache, inside ours."""

from __future__ import annotations

from importlib.metadata import version

from substyle.engine.backbones.artefact import Artefact, Mixture
from substyle.engine.backbones.fixed_batch import FixedBatch, InPieces
from substyle.engine.backbones.runtimes.torch_compiled import TorchCompiled
from substyle.engine.backbones.runtimes.typed_export import as_typed
from substyle.engine.backbones.spec import Embed
from substyle.engine.precision import as_precision
from substyle.kernels.errors import ConfigError


class TorchArtefact(Artefact):
    """A backbone in torch.compile."""

    libraries = ("torch", "timm", "open_clip_torch", "transformers")
    code = (
        *("engine/backbones/preprocess", "engine/backbones/families/*"),
        *("engine/backbones/runtimes/typed_export", "engine/backbones/runtimes/torch_compiled"),
    )
    _last: tuple[Mixture, InPieces] | None = None

    def require_precision(self, precision: str) -> None:
        """Raise ConfigError for a backbone that torch cannot run."""
        if self.source.graph_hash is not None:
            name = self.source.spec.name
            raise ConfigError(f"{name}: runtime", "torch", "openvino or tensorrt: this backbone comes as a graph")
        super().require_precision(precision)

    def runtime(self, mixture: Mixture, *, keep: bool = False) -> InPieces:
        """The module compiled; the one that was compiled last is at hand."""
        if self._last is None or self._last[0] != mixture:
            self._last = None  # its memory first
            module = as_typed(self.source.backbone.module)
            precision = as_precision(mixture.precision)
            device = self.target.torch_device
            compiled = TorchCompiled(module, precision, self.batch, device, canvas=self.canvas)
            self._last = mixture, InPieces(compiled, self.batch)
        return self._last[1]

    def describe(self, runtime: FixedBatch | InPieces) -> dict[str, str]:
        """torch.compile, or torch where it could not compile: what such a run makes is told apart in a store."""
        network = runtime.network if isinstance(runtime, InPieces) else None
        plain = isinstance(network, TorchCompiled) and network.fallback is not None
        return {"name": "torch" if plain else TorchCompiled.name, "version": version("torch")}

    def graph_reference(self) -> Embed:
        """There is none: `require_precision` has refused graphs."""
        raise ConfigError(f"{self.source.spec.name}: runtime", "torch", "openvino or tensorrt")
