"""Imports go down the floors and never in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = ("kernels", "pipelines", "engine")


def modules() -> dict[str, Path]:
    found = {}
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            parts = ["substyle", *path.relative_to(ROOT).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: set[str], *, top_level: bool) -> set[str]:
    """Modules of substyle that a file imports; with top_level only those that importing the file loads."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found.add(whole if whole in known else str(node.module))
            elif (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)) or (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and top_level
            ):
                continue
            for field in ("body", "orelse", "finalbody", "handlers"):
                inner = getattr(node, field, [])
                visit([n for n in inner if isinstance(n, ast.stmt)])
                for handler in (h for h in inner if isinstance(h, ast.ExceptHandler)):
                    visit(handler.body)

    visit(tree.body)
    return found & known


def test_imports_go_down() -> None:
    known = modules()
    assert len(known) > 50
    for name, path in known.items():
        floor = FLOORS.index(name.split(".")[1])
        for other in imports(path, set(known), top_level=False):
            assert FLOORS.index(other.split(".")[1]) <= floor, f"{name} imports {other}"


def test_no_circles() -> None:
    known = modules()
    graph = {name: imports(path, set(known), top_level=True) - {name} for name, path in known.items()}
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*way, name))
            done.add(name)

    for name in graph:
        walk(name, ())
    assert done == set(graph)
