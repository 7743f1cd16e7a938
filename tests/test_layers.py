"""Imports, including lazy ones, go down the layers without cycles; public class names are unique."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = (
    ("errors",),
    ("files",),
    ("kernels",),
    ("engine.cache", "engine.hardware", "engine.observability", "engine.words"),
    ("pipelines", "engine.devices", "engine.cuda"),
    ("engine.backbones",),
    ("engine.store", "engine.style_transfer"),
    ("engine.results", "engine.base_config"),
    ("engine.probes", "engine.report"),
    ("engine.config",),
    ("engine.embedding", "engine.analysis"),
    ("engine.estimate",),
    ("engine.stages",),
    ("engine.study",),
    ("engine.commands",),
    ("engine.extensions",),
    ("engine.cli",),
)


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for folder in ("kernels", "pipelines", "engine"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text())
    for name in ("errors", "files"):
        found[name] = ast.parse((ROOT / "src" / "substyle" / f"{name}.py").read_text())
    return found


@cache
def imports(name: str) -> set[str]:
    """Modules of the package that a module imports, including imports for type checking."""
    tree, known = modules()[name], modules().keys()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.removeprefix("substyle.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}".removeprefix("substyle.")
                found.add(whole if whole in known else str(node.module).removeprefix("substyle."))
    return found & known


def group(name: str) -> tuple[int, str]:
    """Layer and package of a module."""
    found = [(i, p) for i, layer in enumerate(LAYERS) for p in layer if name == p or name.startswith(f"{p}.")]
    assert len(found) == 1, f"{name} is in no layer"
    return found[0]


def test_imports_go_down() -> None:
    found = modules()
    assert len(found) > 50
    for name in found:
        if name == "engine":
            continue
        for other in imports(name) - {"engine"}:
            (layer, package), (below, of) = group(name), group(other)
            assert below < layer or package == of, f"{name} imports {other}"


ROOMS = [name for name in modules() if "Other packages import" in (ast.get_docstring(modules()[name]) or "")]


def test_rooms_name_the_modules_that_others_import() -> None:
    """What a room does not name is internal to it, and can be changed without reading other rooms."""
    assert len(ROOMS) >= 12
    for room in ROOMS:
        text = (ast.get_docstring(modules()[room]) or "").rpartition("Other packages import")[2]
        outside = [name for name in modules() if not f"{name}.".startswith(f"{room}.")]
        used = {other for name in outside for other in imports(name) if other.startswith(f"{room}.")}
        assert sorted(re.findall("`(.+?)`", text)) == sorted(name.removeprefix(f"{room}.") for name in used), room


def test_no_cycles() -> None:
    found = modules()
    graph = {name: imports(name) - {name} for name in found}
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*way, name))
            done.add(name)

    for name in graph:
        walk(name, ())
    assert done == set(graph)


def test_the_zarr_library_is_not_imported() -> None:
    """It reads in an event loop of a thread, which fails at exit where it does not stop within a fifth of a second."""
    for name, tree in modules().items():
        for node in ast.walk(tree):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert "zarr" not in {each.partition(".")[0] for each in found}, name
