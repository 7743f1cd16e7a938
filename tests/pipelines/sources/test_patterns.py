"""Patterns: braces as in bash, wildcards confined to the root."""

from __future__ import annotations

import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st

from substyle.pipelines.sources.files import braces


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["a", "-", ".tar", "{0..3}", "{07..11}", "{x,y}", "{3..1}", "{p,q,}"]), max_size=4))
def test_braces_are_those_of_bash(parts: list[str]) -> None:
    text = "s" + "".join(parts)
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
    assert sorted(braces(text, text)) == sorted(said.stdout.split("\n")[:-1])
