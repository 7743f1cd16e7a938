"""How pages are made of templates: autoescaped, with a few filters for numbers and names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from substyle.engine.report.cells import show
from substyle.engine.report.results import head_name
from substyle.engine.report.table_files import cell_text

_TEMPLATES = Path(__file__).with_name("templates")


def environment() -> Environment:
    """The Jinja environment of every page: all text is escaped, an unknown variable is an error."""
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "show": show,
        "cell": cell_text,
        "soft": soft,
        "percent": percent,
        "plain": plain,
        "head_name": head_name,
    }
    made.globals["style"] = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return made


def write_page(path: Path, template: str, context: dict[str, Any]) -> Path:
    """Render a template into a file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = environment().get_template(template).render(context)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8", errors="replace")
    os.replace(part, path)
    return path


def soft(name: object) -> Markup:
    """A name that may break after ``: _ - / .`` and within very long words, escaped."""
    pieces = re.findall(r"\S{0,19}?[:_\-/.]\s*|\S{1,20}\s*|\s+", str(name))
    return Markup("<wbr>").join(escape(piece) for piece in pieces)


def percent(value: float) -> str:
    """A share as a CSS or SVG length, kept inside the plane."""
    return f"{100 * min(max(value, 0.0), 1.0):.2f}%"


def plain(value: object) -> str:
    """A value of any kind as short text, for lists of settings."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return "–" if value is None else str(value)
