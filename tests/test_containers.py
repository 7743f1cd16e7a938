"""Containers and the Kubernetes job use commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from substyle.engine.commands.arguments import parser
from substyle.engine.store.lock import Part

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_containers_call_targets_of_the_makefile(name: str) -> None:
    text = (ROOT / name).read_text()
    called = re.findall(r"\bmake(?: |\", \")([a-z-]+)", text)
    assert {"setup", "gpu-check"} <= {*called}
    for target in called:
        assert re.search(rf"^(\S+ )*{target}( \S+)*:", (ROOT / "Makefile").read_text(), re.M)
    assert re.search(r"^from:? python:3\.\d+\.\d+-slim-\w+$", text, re.M | re.I)  # one version, by its whole number


def test_a_job_of_kubernetes_embeds_every_part_once() -> None:
    spec = yaml.safe_load((ROOT / "studies" / "kubernetes" / "embed.yaml").read_text())["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert (spec["completionMode"], spec["completions"], container["command"]) == (
        "Indexed",
        spec["parallelism"],
        ["sh", "-c"],
    )
    (line,) = container["args"]
    parts = []
    for index in range(spec["completions"]):
        _, program, *words = shlex.split(re.sub(r"\$\(\(JOB_COMPLETION_INDEX \+ 1\)\)", str(index + 1), line))
        assert program == "substyle"
        parts.append(Part.parse(parser().parse_args(words).part))
    assert [(part.index, part.count) for part in parts] == [(i, len(parts)) for i in range(1, len(parts) + 1)]
