"""Shell scripts that complete commands, options, paths and names. They hold all names: completing runs no Python."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable
from typing import Any

import shtab

from substyle.engine.backbones.registry import FAMILIES
from substyle.engine.stages import registry
from substyle.engine.study.api import backbones
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import FILES, load_all, suites

# bash splits words at colons, which names of backbones contain: join them, and drop from replies what is typed already
_COLONS = r"""
_substyle() {
  local word words=()
  for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
    if [[ $word == :* || ${words[*]: -1} == *: ]]; then words[-1]+=$word; else words+=("$word"); fi
  done
  local COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1)) typed=${words[-1]}
  _shtab_substyle
  [[ $COMPREPLY == *: ]] && compopt -o nospace 2>/dev/null
  [[ $typed == *:* && $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"${typed%"${typed##*:}"}"}")
}
complete -o bashdefault -F _substyle substyle"""


def script(parser: argparse.ArgumentParser, shell: str, paths: Collection[Callable[[str], Any]]) -> str:
    """Return the script for a shell.

    Args:
        parser: the parser; it cannot be used afterwards.
        shell: bash, zsh or tcsh.
        paths: argument types that are completed as paths.
    """
    names = _names()
    if shell == "zsh":
        names = {name: [each.replace(":", r"\:") for each in values] for name, values in names.items()}
    for command in (parser, *_subparsers(parser)):
        for action in command._actions:
            if action.type in paths:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif command.get_default("function") != "import_embeddings":  # which names a new backbone
                action.choices = action.choices or names.get(action.dest.rpartition(".")[2].rstrip("s"))
    made = str(shtab.complete(parser, shell=shell))
    return made + _COLONS if shell == "bash" else made


def _names() -> dict[str, list[str]]:
    """Values of arguments, by argument."""
    load_all()
    base.REGISTRY.load()
    known = [*backbones(), "control:pixels", "control:statistics", "control:random:"]
    prefixes = [f"{family.prefix}:" for family in FAMILIES.all()]
    prefixes = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in known)]
    transformations = sorted(base.REGISTRY)
    return {
        "backbone": [*known, *prefixes],
        "stage": [*registry.alone()],
        "suite": [*suites(), *FILES, *transformations],
        "transformation": transformations,
    }


def _subparsers(parser: argparse.ArgumentParser) -> Iterable[argparse.ArgumentParser]:
    for action in parser._actions:
        for command in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            yield command
            yield from _subparsers(command)
