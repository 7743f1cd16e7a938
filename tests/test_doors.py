"""What is dangerous stands in few places: deletion, renaming, writing, code that is loaded, other programs.

A new use belongs in src/substyle/files.py. Only where that is impossible does it get an entry here, with its reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "pipelines", "engine", "src/substyle")

# functions by their last name, wherever they come from
_NAMES = """
rmtree unlink rmdir removedirs rename renames symlink_to hardlink_to symlink link write_bytes
write_text touch truncate copytree copyfile copy2 move chmod fchmod CDLL PyDLL LoadLibrary dlopen
load_library run_path run_module exec_module spec_from_file_location SourceFileLoader extractall
savez open_memmap mkdtemp mkstemp NamedTemporaryFile TemporaryFile TemporaryDirectory mktemp Popen
"""
DANGEROUS = frozenset(_NAMES.split())
BUILTINS = frozenset({"eval", "exec", "compile", "__import__"})
MODULES = frozenset({"subprocess", "pickle", "shelve", "marshal", "dill", "tempfile", "shutil", "runpy", "ctypes"})
OF_OS = frozenset({"replace", "remove", "open", "mkdir", "makedirs", "system", "execv", "execve", "spawnv", "popen"})
OF_TORCH = frozenset({"load"})
WRITING = frozenset("wax+")

FILES = "src/substyle/files.py"
# (file, use): why it is not in src/substyle/files.py
ALLOWED = {
    ("kernels/native.py", "ctypes"): "loads a library that files.require_private has checked",
    ("kernels/native.py", "CDLL"): "the same",
    ("kernels/native.py", "shutil"): "finds the compiler",
    ("kernels/native.py", "subprocess"): "runs the compiler, named by the user or in $PATH, without a shell",
    ("kernels/dispatch.py", "ctypes"): "mallopt of the C library",
    ("kernels/dispatch.py", "CDLL"): "the program itself, no file",
    ("engine/hardware.py", "ctypes"): "the driver's library",
    ("engine/hardware.py", "CDLL"): "the driver's library, by its name in the system's folders",
    ("engine/commands/json_output.py", "ctypes"): "flushes the C library",
    ("engine/commands/json_output.py", "CDLL"): "the program itself, no file",
    ("engine/commands/json_output.py", "os.open"): "/dev/null",
    ("engine/cli.py", "open for writing"): "/dev/null",
    ("pipelines/sources/files.py", "os.open"): "for reading: photographs may be links inside their folder",
    ("pipelines/plugins.py", "spec_from_file_location"): "plug-ins, which the user names, and what they import",
    ("pipelines/plugins.py", "exec_module"): "the same",
    ("engine/embedding/preflight.py", "tempfile"): "a file without a name, to see whether a folder is writable",
    ("engine/embedding/preflight.py", "TemporaryFile"): "the same",
    ("engine/store/importer.py", "tempfile"): "a file without a name for embeddings that are imported",
    ("engine/store/importer.py", "TemporaryFile"): "the same",
    ("engine/backbones/families/packaged.py", "torch.load"): "weights only: no code is run",
    ("engine/study/explore.py", "subprocess"): "runs embedding-atlas with files of this process",
    ("engine/study/explore.py", "shutil"): "copies the page that embedding-atlas has made to a new folder",
    ("engine/study/explore.py", "copytree"): "the same",
    ("engine/embedding/variants.py", "open for writing"): "a tar in a file of files.replacing",
    ("engine/embedding/ray_worker.py", "pickle"): "what the run has sent over Ray, which pickles all messages",
    ("engine/backbones/weights.py", "pickle"): "the name of an error; torch loads weights only",
    ("engine/backbones/families/timm.py", "__import__"): "the module of a network that timm has made",
    ("pipelines/processes.py", "truncate"): "memory without a name, not a file",
    ("pipelines/processes.py", "open for writing"): "memory of the program, recognised by device and inode",
    ("kernels/philox.py", "ctypes"): "types of a function that kernels/native.py has loaded",
}


def uses(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Dangerous uses in a module, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (name.name.split(".")[0], node.lineno) for name in node.names if name.name.split(".")[0] in MODULES
            )
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module).split(".")[0]
            if module in MODULES:
                yield module, node.lineno
            yield from (
                (f"{module}.{name.name}", node.lineno)
                for name in node.names
                if (module == "os" and name.name in OF_OS | DANGEROUS) or (module == "torch" and name.name in OF_TORCH)
            )
        elif isinstance(node, ast.FunctionDef) and node.name in DANGEROUS:
            yield node.name, node.lineno
        elif isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(node: ast.Call) -> Iterator[tuple[str, int]]:
    called = node.func
    if isinstance(called, ast.Name) and called.id in BUILTINS:
        yield called.id, node.lineno
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    owner = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
    of_os, of_torch = owner == "os" and name in OF_OS, owner == "torch" and name in OF_TORCH
    if of_os or of_torch:
        yield f"{owner}.{name}", node.lineno
    elif name in DANGEROUS and not _in_memory(node, name):
        yield name, node.lineno
    elif name == "replace" and isinstance(called, ast.Attribute) and len(node.args) == 1 and not node.keywords:
        yield "replace of a path", node.lineno  # of texts: two arguments; of dataclasses: keywords
    elif name in ("open", "fdopen") and any(set(mode) & WRITING for mode in _modes(node)):
        yield "open for writing", node.lineno


def _in_memory(node: ast.Call, name: str) -> bool:
    """Whether `np.savez` writes to a buffer."""
    return name == "savez" and bool(node.args) and isinstance(node.args[0], ast.Name) and node.args[0].id in _BUFFERS


_BUFFERS = ("arrays", "content", "buffer", "file")


def _modes(node: ast.Call) -> Iterator[str]:
    for argument in (*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")):
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and len(argument.value) <= 3:
            yield argument.value


def found() -> dict[tuple[str, str], list[int]]:
    lines: dict[tuple[str, str], list[int]] = {}
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).glob("**/*.py"))]
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        for use, line in uses(ast.parse(path.read_text())):
            lines.setdefault((name, use), []).append(line)
    return lines


def test_dangerous_functions_are_used_where_they_may_be() -> None:
    used = found()
    others = {key: lines for key, lines in used.items() if key[0] != FILES and key not in ALLOWED}
    assert others == {}, "use substyle.files, or give a reason here"
    assert set(ALLOWED) - set(used) == set(), "permissions that are left over"


DANGERS = """
shutil.rmtree(x); x.unlink(); os.remove(x); x.rename(y); os.replace(x, y); x.replace(y); open(x, 'wb'); x.open('a')
x.open(mode='w'); tarfile.open(x, 'w'); os.open(x, 0); x.write_bytes(b''); x.write_text(''); ctypes.CDLL(x)
torch.load(x); from torch import load; import pickle; from pickle import loads; import subprocess; eval(x); exec(x)
importlib.util.spec_from_file_location(n, x); tempfile.mkdtemp(); import tempfile; from os import remove
np.savez('name', x)
"""
SAFE = "x.open('rb'); text.replace('a', 'b'); replace(plan, a=1); module.eval(); re.compile(x); np.savez(buffer)"


def test_each_danger_is_seen() -> None:
    dangers = ast.parse(DANGERS).body
    assert len(dangers) == 26
    assert [ast.unparse(each) for each in dangers if not list(uses(ast.Module([each], [])))] == []
    assert list(uses(ast.parse(SAFE))) == []


def test_no_permission_is_left_over() -> None:
    assert set(ALLOWED) - set(found()) == set()
