"""The script for SLURM, with stand-ins for SLURM and Ray: what it would run, and on which address."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from substyle.engine.commands.arguments import parser
from substyle.engine.commands.options import changes

SCRIPT = Path(__file__).parents[4] / "studies" / "slurm" / "embed.sh"
STAND_INS = {
    "scontrol": 'test "$*" = "show hostnames node[3-4]" && printf "node3\\nnode4\\n"',
    "srun": 'printf "%s\\n" "$@"; printf "%s %s %s\\n" "$RAY_AUTH_MODE" "$RAY_USAGE_STATS_ENABLED" "$RAY_AUTH_TOKEN"',
}


def run(folder: Path, *arguments: str) -> list[str]:
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[3-4]", "SLURM_JOB_NUM_NODES": "2"}
    environment = {**os.environ, **slurm, "PATH": f"{folder}:{os.environ['PATH']}"}
    ended = subprocess.run(["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()


def test_every_machine_joins_one_ray_and_the_first_runs_the_command(tmp_path: Path) -> None:
    *words, environment = run(tmp_path, "my photographs", "--store", "s.zarr", "--backbone", "mae:base")
    cut = words.index("--")
    ray, command = words[:cut], words[cut + 1 :]
    assert ray[:2] == ["--nodes=2", "--ntasks-per-node=1"]
    assert ray[2:] == [
        "ray", "symmetric-run", "--address", "node3:6379", "--min-nodes", "2", "--include-dashboard=false",
    ]  # fmt: skip
    assert command[0] == "substyle"
    options = parser().parse_args(command[1:])
    assert (options.images, options.store, options.backbone) == (Path("my photographs"), Path("s.zarr"), ["mae:base"])
    assert changes(options) == {"executor.address": "auto"}
    mode, statistics, token = environment.split()
    assert (mode, statistics, len(token)) == ("token", "0", 64)
    assert run(tmp_path, "x", "--store", "s", "--backbone", "mae:base")[-1].split()[2] != token
