"""Many made-up cases against one property, and the property nearly all of them share: good answers or a named error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from substyle.errors import SubstyleError

T = TypeVar("T")


def examine(check: Callable[..., object], *strategies: SearchStrategy[Any], cases: int) -> None:
    """Run a check on so many cases; the first that fails is made as small as it gets and shown.

    The same cases every time; another number in the environment's SUBSTYLE_FUZZ_SEED gives others.
    """

    @seed(int(os.environ.get("SUBSTYLE_FUZZ_SEED", "0")))
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(st.tuples(*strategies))
    def run(arguments: tuple[Any, ...]) -> None:
        check(*arguments)

    run()


def attempt(call: Callable[..., T], *arguments: Any, names: tuple[str, ...], **more: Any) -> T | None:  # noqa: ANN401
    """What a call gives, None where it is refused.

    A refusal is a SubstyleError whose message has one of the names; any other error is a failure of the test.
    """
    try:
        return call(*arguments, **more)
    except SubstyleError as error:
        message = str(error)
        assert any(name in message for name in names), f"names none of {names}: {message[:500]}"
        assert len(message) < 10_000, f"a message of {len(message)} characters: {message[:500]}"
        return None


def put(path: Path, content: bytes | None) -> None:
    """Make a file hold this, or for None put an empty folder in its place."""
    if path.is_dir():
        path.rmdir()
    if content is None:
        path.unlink(missing_ok=True)
        path.mkdir()
    else:
        path.write_bytes(content)
