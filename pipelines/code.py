"""Digest of the source code of functions, to detect that a plug-in was edited after a store was created."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from substyle.kernels.errors import ConfigError

PACKAGE = "substyle"
SOURCE = "__substyle_source__"  # attribute of a plug-in module: the sources that were run, as one text
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_INSTALLED = {"site-packages", "dist-packages"}
_packages: dict[Path, str] = {}  # sources of packages with entry points, by folder or file


def source_digest(*functions: Callable[..., Any] | None) -> str:
    """Digest of the source of functions: 16 hex digits. None means no function.

    Covers, for a plug-in, the whole file and all files in or below its folder that it imports, directly or not; for a
    package with entry points, all its files; for a function of this package, its source and everything it refers to in
    its own module; for a library function, its name. Functions, numbers and strings in partials and closures are
    included; comments, docstrings, formatting and absolute paths are not. Raises ConfigError for a file that cannot be
    read or parsed.
    """
    texts = json.dumps([[_text(part) for part in _parts(function, {})] for function in functions])
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def in_package(function: Callable[..., Any] | None) -> bool:
    """Whether a function and all functions it holds are defined by this package; True for None."""
    return all(type(part) in _PLAIN or _module(part)[0] == PACKAGE for part in _parts(function, {}))


def sources_of(file: Path, source: bytes, root: Path | None = None, name: str = "") -> dict[str, str]:
    """Source, without comments, of a file and of all files below the root (by default its folder) that it imports.

    Keys are paths relative to the root, and ``name`` for the file.
    """
    root = root or file.parent
    tree = _parse(file, source)
    texts, todo = {name or file.relative_to(root).as_posix(): ast.unparse(tree)}, list(_imports(tree, file, root))
    while todo:
        path = todo.pop()
        if path.is_relative_to(root) and path.is_file() and (label := path.relative_to(root).as_posix()) not in texts:
            texts[label] = ast.unparse(tree := _parse(path))
            todo += _imports(tree, path, root)
    return texts


def text_of(sources: Mapping[str, str]) -> str:
    """One text for `sources_of`."""
    return json.dumps(sources, sort_keys=True)


def add_package(name: str) -> None:
    """Let the digest of functions of an installed package cover all source files of the package, as they are now.

    Args:
        name: its top-level module, which is not imported.
    """
    spec = importlib.util.find_spec(name)
    if spec is None:
        return  # its import tells why
    for root in [Path(each).absolute() for each in spec.submodule_search_locations or [str(spec.origin)]]:
        files = [root] if root.suffix == ".py" else sorted(root.rglob("*.py"))
        _packages[root] = text_of({each.relative_to(root).as_posix(): _unparsed(each) for each in files})


def _unparsed(file: Path) -> str:
    """Source without comments; as it is if it is no Python, such as a template."""
    try:
        return ast.unparse(_parse(file))
    except ConfigError:
        return file.read_bytes().decode(errors="backslashreplace")


def installed(file: Path) -> bool:
    """Whether a file belongs to an installed distribution, whose version is recorded."""
    return not _INSTALLED.isdisjoint(file.parts)


def _parts(value: object, seen: dict[int, object]) -> Iterator[object]:
    """A function and what it holds: arguments of a partial, object of a method, variables of a closure."""
    held: list[object] = []
    if type(value) in _PLAIN:
        yield value
    elif id(value) not in seen:
        seen[id(value)] = value  # keeps the object alive: ids are reused
        if isinstance(value, tuple | list):
            held += value
        elif isinstance(value, functools.partial):
            held += value.func, *value.args, *value.keywords, *value.keywords.values()
        elif isinstance(value, MethodType):
            held += value.__func__, value.__self__
        elif hasattr(value, "__wrapped__") and not isinstance(value, FunctionType):  # as of functools.cache
            held.append(value.__wrapped__)
        else:
            yield value
            with suppress(ValueError):  # unbound variable
                held.extend(cell.cell_contents for cell in getattr(value, "__closure__", None) or ())
    for each in held:
        yield from _parts(each, seen)


def _text(part: object) -> str:
    """The digested text of a part."""
    if type(part) in _PLAIN:
        return "" if isinstance(part, str) and os.path.isabs(part) else ascii(part)
    (top, scope), code = _module(part), getattr(part, "__code__", None)
    name = code.co_qualname if code else getattr(part, "__qualname__", type(part).__qualname__)
    file, module = Path(scope.get("__file__") or "").absolute(), str(scope.get("__name__"))
    if top == PACKAGE:
        return _named(file, f"{name} {code.co_firstlineno}" if code and name == "<lambda>" else name.partition(".")[0])
    source = scope.get(SOURCE, next((text for root, text in _packages.items() if file.is_relative_to(root)), None))
    if source is not None:
        return f"{name} {source}"
    if code and "__file__" not in scope:
        return ascii((name, code.co_code, code.co_names, [getattr(each, "co_code", each) for each in code.co_consts]))
    if top in sys.stdlib_module_names or file.suffix != ".py" or installed(file):
        return f"{module}.{name}"
    return f"{name} {text_of(sources_of(file, _read(file), [*file.parents][: module.count('.') + 1][-1]))}"


def _module(part: object) -> tuple[str, dict[str, Any]]:
    """Package and namespace of the module that defines a function or an object's class."""
    module = sys.modules.get(str(getattr(part, "__module__", None)), sys.modules["builtins"])
    scope = part.__globals__ if isinstance(part, FunctionType) else vars(module)
    return str(scope.get("__name__")).partition(".")[0], scope


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError("plugin", str(file), f"a readable file ({error.strerror})") from error


def _parse(file: Path, source: bytes | None = None) -> ast.Module:
    """The syntax tree of a file, without docstrings."""
    try:
        tree = ast.parse(_read(file) if source is None else source)
    except (SyntaxError, ValueError) as error:
        raise ConfigError("plugin", str(file), f"Python source ({error})") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return tree


def _imports(tree: ast.Module, file: Path, root: Path) -> Iterator[Path]:
    """Candidate paths of the imported modules, excluding this package and installed ones."""
    for node in ast.walk(tree):
        names, bases = [], {root, file.parent}
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}".lstrip(".") for alias in node.names]
            bases = {Path(*file.parts[: -node.level])} if node.level else bases
        for base, name in itertools.product(bases, names):
            parts = name.split(".")
            for place in [base.joinpath(*parts[:i]) for i in range(len(parts) + 1)]:
                if parts[0] != PACKAGE and not installed(place):
                    yield from (place / "__init__.py", Path(f"{place}.py"))


def _named(file: Path, name: str) -> str:
    """Source of a top-level name of a file of this package, and of all top-level names it refers to."""
    definitions, names, texts = _definitions(file), [name], list[str]()
    for each in names:  # grows
        for node in definitions.get(each, []):
            texts.append(ast.unparse(node))
            found = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
            names += sorted(found.difference(names))
    return "\n".join(texts)


@functools.cache
def _definitions(file: Path) -> dict[str, list[ast.AST]]:
    """Definitions of each top-level name of a file; lambdas are named by their line."""
    tree, found = _parse(file), dict[str, list[ast.AST]]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            found.setdefault(f"<lambda> {node.lineno}", []).append(node)
    for statement in tree.body:
        inner = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        names = [node.id for node in inner if isinstance(node.ctx, ast.Store)]
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names, statement.decorator_list = [statement.name], []  # decorators are covered by Transformation.describe
        for name in names:
            found.setdefault(name, []).append(statement)
    return found
