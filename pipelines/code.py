"""A digest of the source code of functions, so that an edited plug-in is told from the one that made a store."""

from __future__ import annotations

import ast
import dataclasses
import dis
import enum
import functools
import hashlib
import importlib
import importlib.util
import linecache
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

PACKAGE = "substyle"
_PLAIN = (type(None), bool, int, float, complex, bytes, range, slice, type(...), np.dtype, torch.dtype, torch.device)
_READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")  # instructions that read a global name
_INSTALLED = ("site-packages", "dist-packages")

_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

_kept: dict[str, str] = {}  # source as it was when it was run, by file
_trees: dict[str, tuple[str, ast.Module, list[_Function]]] = {}  # text, tree and its functions, by file


def source_digest(*functions: Callable[..., Any] | None) -> str:
    """16 hex digits that change with the source of functions or of anything of the user's that they refer to.

    Covered are a function and every function, class and constant that it refers to, directly or not: by a global name,
    in a closure, as a default argument. They count where they are defined in the module of the function itself, or in
    another one that is neither installed nor part of the standard library or of this package. Libraries count by the
    names that they are imported under, not by their content; so do data files and the weights of networks.

    Comments, docstrings, type comments and formatting do not count; nor do decorators, other than by the functions
    that they return. Values count as they are at the time of the call: ask before code that changes them has run.

    Args:
        functions: functions, or anything else that can be called. None stands for no function.
    """
    digest = hashlib.sha256()
    for function in functions:
        digest.update(_Walk(function).digest())
    return digest.hexdigest()[:16]


def in_package(function: Callable[..., Any] | None) -> bool:
    """Whether a function is defined by this package (no function at all is)."""
    return function is None or _is_package(_module_name(function))


def keep_source(file: str, text: str) -> None:
    """Take this text for the source of a file from now on, whatever happens to the file."""
    _kept[file] = text


class _Walk:
    """Goes through everything that a function refers to, in an order that is the same in every process."""

    def __init__(self, root: object) -> None:
        self.root, self.home = root, _module_name(root)
        self._sha = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._alive: list[object] = []  # an id is only good while its object lives
        self._named: set[tuple[int, str, tuple[str, ...]]] = set()

    def digest(self) -> bytes:
        self.see(self.root)
        return self._sha.digest()

    def note(self, *texts: str) -> None:
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            self._sha.update(b"%d:" % len(data) + data)

    def see(self, value: object, folder: str = "") -> None:
        """Any value. One that nothing is known of counts by its type."""
        try:
            self._see(value, folder)
        except Exception as error:  # noqa: BLE001 - attributes of a user's objects may raise anything
            self.note("unreadable", type(value).__qualname__, type(error).__name__)

    def _see(self, value: object, folder: str) -> None:
        if isinstance(value, enum.Enum):
            self.note("enum", type(value).__qualname__, value.name)
            self.see(type(value), folder)
        elif isinstance(value, _PLAIN):
            self.note(type(value).__name__, repr(value))
        elif isinstance(value, str | PurePath):
            # a plug-in may be moved with the files beside it
            self.note(type(value).__name__, str(value).replace(folder, "") if folder else str(value))
        elif isinstance(value, tuple):
            self.note("tuple", str(len(value)))
            for item in value:
                self.see(item, folder)
        elif isinstance(value, np.generic):
            self.note("scalar", str(value.dtype), repr(value.item()))
        elif isinstance(value, frozenset | set):
            self.note("set", *sorted(_plain_digest(item) for item in value))
        elif id(value) in self._seen:
            self.note("again", str(self._seen[id(value)]))
        else:
            self._seen[id(value)] = len(self._seen)
            self._alive.append(value)
            self._object(value, folder)

    def _object(self, value: object, folder: str) -> None:
        if isinstance(value, list):
            self.note("list", str(len(value)))
            for item in value:
                self.see(item, folder)
        elif isinstance(value, dict | MappingProxyType):
            self.note("mapping", str(len(value)))
            for key, item in value.items():
                self.see(key, folder)
                self.see(item, folder)
        elif isinstance(value, np.ndarray):
            self.note("array", str(value.dtype), str(value.shape))
            if value.dtype.hasobject:
                self.see(value.tolist(), folder)
            else:
                self._sha.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, torch.Tensor):
            tensor = value.detach().cpu().contiguous()
            self.note("tensor", str(tensor.dtype), str(tuple(tensor.shape)))
            self._sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, re.Pattern):
            self.note("pattern", repr(value.pattern), str(value.flags))
        elif isinstance(value, CodeType):
            self._code(value)
        elif isinstance(value, ModuleType):
            self._module(value)
        else:
            self._callable(value, folder)

    def _callable(self, value: object, folder: str) -> None:
        if isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, MethodType):
            self.note("method")
            self.see((value.__func__, value.__self__), folder)
        elif isinstance(value, functools.partial):
            self.note("partial")
            self.see((value.func, value.args, value.keywords), folder)
        elif isinstance(value, BuiltinFunctionType):
            self.note("builtin", str(value.__module__), value.__qualname__)
        elif hasattr(value, "__wrapped__"):  # as of functools.cache
            self.note("wrapper", type(value).__qualname__)
            self.see(value.__wrapped__, folder)
        else:
            self._instance(value, folder)

    def _instance(self, value: object, folder: str) -> None:
        kind = type(value)
        self.note("instance", kind.__module__ if kind.__module__ != self.home else "", kind.__qualname__)
        if self._own(kind.__module__, _file_of(kind.__module__)):
            self.see(kind)
        elif not dataclasses.is_dataclass(value):
            return
        if isinstance(value, torch.nn.Module):
            return  # weights may be drawn at random; they are data
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
        else:
            names = sorted(getattr(value, "__dict__", {}))
        for name in names:
            self.note(name)
            self.see(getattr(value, name), folder)

    def _function(self, function: FunctionType) -> None:
        code, scope = function.__code__, function.__globals__
        if not self._own(str(function.__module__), code.co_filename):
            self.note("library", str(function.__module__), function.__qualname__)
            if hasattr(function, "__wrapped__"):
                self.see(function.__wrapped__)
            return
        node, folder = _node_of(code), _folder(scope)
        if node is None:
            self._code(code)
        else:
            self.note("source", *_dump(node))
        self.see(function.__defaults__, folder)
        self.see(function.__kwdefaults__, folder)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self.note("cell", name)
            try:
                content = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            self.see(content, folder)
        for name, attributes in _globals_of(code):
            self._name(name, attributes, scope)
        for module, level, names in _imports_of(code):
            self._import(module, level, names, scope)
        if hasattr(function, "__wrapped__"):
            self.see(function.__wrapped__)

    def _code(self, code: CodeType) -> None:
        """Where there is no source; it differs between versions of Python."""
        self.note("code", code.co_code.hex(), *code.co_names)
        self.see(tuple(code.co_consts))

    def _class(self, kind: type) -> None:
        if not self._own(kind.__module__, _file_of(kind.__module__)):
            self.note("library", kind.__module__, kind.__qualname__)
            return
        scope = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
        nodes = [node for node in ast.walk(_tree_of(scope)) if isinstance(node, ast.ClassDef)]
        nodes = [node for node in nodes if node.name == kind.__name__]
        self.note("class", kind.__qualname__)
        for node in nodes:
            self.note(*_dump(node))
            for name, attributes in _chains(node):
                self._name(name, attributes, scope)
        for base in kind.__bases__:
            self.see(base)
        for name, value in sorted(vars(kind).items()):
            if name.startswith("_") and name.endswith("_") and not isinstance(value, FunctionType):
                continue
            found = _behind(value)
            if nodes and isinstance(found, FunctionType) and found.__code__.co_filename.startswith("<"):
                continue  # made by a decorator such as dataclass, from what the class says
            self.note(name)
            self.see(found, _folder(scope))

    def _module(self, module: ModuleType) -> None:
        if not self._own(module.__name__, getattr(module, "__file__", None)):
            self.note("library", module.__name__)
            return
        self.note("module", *_dump(_tree_of(vars(module))))
        for name, value in sorted(vars(module).items()):
            if not name.startswith("__") and isinstance(value, FunctionType | type):
                self.see(value)

    def _name(self, name: str, attributes: tuple[str, ...], scope: dict[str, Any]) -> None:
        """What a global name stands for; of a module of the user's, what its attribute does."""
        if name not in scope or name.startswith("__") or (id(scope), name, attributes) in self._named:
            return
        self._named.add((id(scope), name, attributes))
        value = scope[name]
        self.note("name", name)
        if isinstance(value, ModuleType) and self._own(value.__name__, getattr(value, "__file__", None)):
            if attributes:
                self._name(attributes[0], attributes[1:], vars(value))
            else:
                self.see(value)
            return
        bindings = list(_bindings(_tree_of(scope).body, name))
        if bindings and all(self._from_library(node) for node in bindings):
            for node in bindings:  # by name alone: the value may be what differs between processes, as os.environ
                self.note("import", *_dump(node))
            return
        if not self._told_by_value(value):
            for node in bindings:
                self.note("binding", *_dump(node))
                for other, inner in _chains(node):
                    self._name(other, inner, scope)
        self.see(value, _folder(scope))

    def _from_library(self, node: ast.AST) -> bool:
        """Whether a statement imports something from a library."""
        if not isinstance(node, ast.ImportFrom) or node.level:
            return False
        name = node.module or node.names[0].name
        return not self._own(name, _file_of(name))

    def _told_by_value(self, value: object) -> bool:
        if isinstance(value, FunctionType):
            return self._own(str(value.__module__), value.__code__.co_filename)
        if isinstance(value, type):
            return self._own(value.__module__, _file_of(value.__module__))
        return _is_plain(value)

    def _import(self, name: str, level: int, names: tuple[str, ...], scope: dict[str, Any]) -> None:
        """What a function imports when it runs, where that is the user's."""
        try:
            module = _imported("." * level + name, str(scope.get("__package__") or ""))
        except Exception:  # noqa: BLE001 - a module of the user's may raise anything; then the function will too
            self.note("not importable", name)
            return
        if module is None or not self._own(module.__name__, getattr(module, "__file__", None)):
            return
        if not names or "*" in names:
            self.see(module)
        for each in names:
            self._name(each, (), vars(module))

    def _own(self, module: str, file: str | None) -> bool:
        """Whether the source of a module counts."""
        return module == self.home or not (_is_package(module) or _installed(module, file))


def _is_package(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


@functools.cache
def _installed(module: str, file: str | None) -> bool:
    """Whether a module is part of the standard library or of an installed one."""
    if file is None:
        return module.partition(".")[0] in sys.stdlib_module_names or module in sys.modules
    path = Path(file)
    if file.startswith("<frozen") or path.suffix not in (".py", "") or any(part in _INSTALLED for part in path.parts):
        return True
    library = Path(sysconfig.get_path("stdlib"))
    return path.is_relative_to(library) or path.resolve().is_relative_to(library.resolve())


def _module_name(function: object) -> str:
    """Where the function is defined that something which can be called leads to."""
    for _ in range(100):
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    named = function if isinstance(function, FunctionType | type | BuiltinFunctionType) else type(function)
    return str(named.__module__)


def _file_of(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)


def _folder(scope: Mapping[str, Any]) -> str:
    file = scope.get("__file__")
    return str(Path(file).absolute().parent) if file else ""


def _behind(value: object) -> object:
    """The function of a descriptor in a class."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return (value.fget, value.fset, value.fdel)
    return value.func if isinstance(value, functools.cached_property) else value


def _plain_digest(value: object) -> str:
    return _Walk(value).digest().hex()


def _is_plain(value: object) -> bool:
    """Whether a value is told from every other by what `_Walk.see` makes of it."""
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    return isinstance(value, (*_PLAIN, str, PurePath, np.generic, torch.Tensor, re.Pattern))


def _imported(name: str, package: str) -> ModuleType | None:
    """A module, imported if it is not a library; None for one."""
    full = importlib.util.resolve_name(name, package) if name.startswith(".") else name
    if full in sys.modules:
        return sys.modules[full]
    top = full.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None or _is_package(top) or spec.origin is None or _installed(top, spec.origin):
        return None
    return importlib.import_module(full)


def _globals_of(code: CodeType) -> list[tuple[str, tuple[str, ...]]]:
    """Global names that code reads, with the attributes that it reads of them at once."""
    found = set()
    for part in _parts(code):
        steps = list(dis.get_instructions(part))
        for i, step in enumerate(steps):
            if step.opname in _READS:
                attributes = []
                for later in steps[i + 1 :]:
                    if later.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                        break
                    attributes.append(str(later.argval))
                found.add((str(step.argval), tuple(attributes)))
    return sorted(found)


def _imports_of(code: CodeType) -> list[tuple[str, int, tuple[str, ...]]]:
    """(module, level, names) of the imports in code."""
    found = set()
    for part in _parts(code):
        steps = list(dis.get_instructions(part))
        for i, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                level, names = steps[i - 2].argval, steps[i - 1].argval
                found.add((str(step.argval), int(level or 0), tuple(names or ())))
    return sorted(found)


def _parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)


def _tree_of(scope: Mapping[str, Any]) -> ast.Module:
    """The parsed source of the module with these globals; empty where there is none."""
    file = scope.get("__file__")
    return _parsed(str(file))[0] if file else ast.Module([], [])


def _parsed(file: str) -> tuple[ast.Module, list[_Function]]:
    """The tree of a file, and the functions in it."""
    text = _kept[file] if file in _kept else "".join(linecache.getlines(file))
    if file not in _trees or _trees[file][0] != text:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            tree = ast.Module([], [])
        _trees[file] = text, tree, [node for node in ast.walk(tree) if isinstance(node, _Function)]
    return _trees[file][1:]


def _node_of(code: CodeType) -> ast.AST | None:
    """The function in the source that this is the code of; None where it is not found, or not for certain."""
    found = [node for node in _parsed(code.co_filename)[1] if _fits(node, code)]
    if len(found) > 1:  # several lambdas in one line
        found = [node for node in found if isinstance(node, ast.Lambda) and _holds(node.body, code)]
    return found[0] if len(found) == 1 else None


def _fits(node: _Function, code: CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        name, line = "<lambda>", node.lineno
    else:
        name, line = node.name, min([node.lineno, *(each.lineno for each in node.decorator_list)])
    arguments = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    count = code.co_argcount + code.co_kwonlyargcount
    return (name, line) == (code.co_name, code.co_firstlineno) and tuple(arguments) == code.co_varnames[:count]


def _holds(body: ast.expr, code: CodeType) -> bool:
    """Whether all instructions of a lambda come from an expression, and some from its very beginning or end."""
    spans = {span for span in code.co_positions() if None not in span and span[2] != span[3]}
    return (body.lineno, body.end_lineno, body.col_offset, body.end_col_offset) in spans


def _bindings(statements: list[ast.stmt], name: str) -> Iterator[ast.AST]:
    """The smallest statements that bind a name; of an import, only that name's part."""
    for node in statements:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    module = node.module if isinstance(node, ast.ImportFrom) else None
                    level = node.level if isinstance(node, ast.ImportFrom) else 0
                    yield ast.ImportFrom(module, [alias], level)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name == name:
                yield node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _bindings(getattr(node, part, []), name)
            for handler in getattr(node, "handlers", []):
                yield from _bindings(handler.body, name)
        elif any(isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store) for n in ast.walk(node)):
            yield node


def _chains(tree: ast.AST) -> list[tuple[str, tuple[str, ...]]]:
    """Names that are read in source, with the attributes that are read of them at once."""
    found: set[tuple[str, tuple[str, ...]]] = set()

    def visit(node: ast.AST) -> None:
        attributes: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            attributes.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
            found.add((inner.id, tuple(attributes)))
            return
        for field, value in ast.iter_fields(node):
            if field == "decorator_list":
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(tree)
    return sorted(found)


def _dump(node: object) -> Iterator[str]:
    """A syntax tree as texts: `ast.dump` gives others in other versions of Python, and has docstrings in it."""
    if isinstance(node, list):
        yield "["
        for item in node:
            if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)):  # docstrings do nothing
                yield from _dump(item)
        yield "]"
    elif isinstance(node, ast.AST):
        yield type(node).__name__
        for field, value in ast.iter_fields(node):
            if value is not None and value != [] and field not in ("decorator_list", "type_comment", "kind", "ctx"):
                yield field
                yield from _dump(value)
            elif value is None and isinstance(node, ast.Constant) and field == "value":
                yield "None"
        yield "."
    else:
        yield f"{type(node).__name__} {node!r}"
