from __future__ import annotations

import pytest

from substyle.engine.probes.config import ProbeConfig
from substyle.errors import ConfigError


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        ProbeConfig(redraw=1)  # type: ignore[call-arg]
    assert (caught.value.field, caught.value.given) == ("probes.redraw", 1)
    assert "redraws" in caught.value.allowed
