"""The photograph itself, as decoded."""

from __future__ import annotations

from substyle.pipelines.transforms.base import Transformation, register

register(Transformation("identity", "identity", "train", "identity"))
