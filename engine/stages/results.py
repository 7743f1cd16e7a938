"""Reading and checking results.json, with the results of all stages, and its JSON Schema."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model
from pydantic_core import ErrorDetails

from substyle.engine.report.parts import ReportPart, parts
from substyle.engine.results.convert import converted
from substyle.engine.results.model import BackboneResults, ResultsDocument
from substyle.engine.stages import registry
from substyle.engine.stages.stamp import checksum
from substyle.engine.store.files import read_json
from substyle.errors import SubstyleError
from substyle.files import inside

_DEPTH = 32  # maximum nesting; results.json has 7
_HUGE = 2**63
_EXPECTED = {
    "model_type": "dict",
    "dict_type": "dict",
    "list_type": "list",
    "string_type": "str",
    "string_unicode": "text in Unicode",
    "string_pattern_mismatch": "a number as name",
    "int_type": "int",
    "float_type": "a number",
    "bool_type": "true or false",
    "too_short": "[low, high]",
    "too_long": "[low, high]",
}

Location = tuple[int | str, ...]  # keys and indices


def validate_results(results: object) -> ResultsDocument:
    """Validate results.json.

    Checks the schema number, required sections, types of all sections, that fractions are in [0, 1] and that all
    numbers are finite.

    Raises:
        SubstyleError: the results are invalid; the message names the path.
    """
    if not isinstance(results, dict):
        raise SubstyleError(f"results: expected an object, got {type(results).__name__}")
    _require_bounded(results)
    try:
        return _document(tuple(registry.stages()), parts()).model_validate(results)
    except ValidationError as error:
        raise SubstyleError(_message(error.errors(include_url=False)[0])) from error


def read_results(path: Path) -> dict[str, Any]:
    """Read a results.json, also of an earlier schema, and validate it.

    Raises:
        SubstyleError: it is a link, invalid or cannot be converted; with the path.
    """
    results = read_json(inside(path.parent, path.name))
    try:
        if isinstance(results, dict):
            _require_bounded(results)
            whole, results = results.get("checksum") == checksum(results), converted(results)
            results |= {"checksum": checksum(results)} if whole else {}
        validate_results(results)
    except SubstyleError as error:
        raise SubstyleError(f"{path}: {error}") from error
    checked: dict[str, Any] = results
    return checked


def results_schema() -> dict[str, Any]:
    """JSON Schema of results.json, draft 2020-12."""
    model = _document(tuple(registry.stages()), parts())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


@cache
def _document(stages: tuple[registry.AnyStage, ...], more: tuple[ReportPart, ...]) -> type[ResultsDocument]:
    """The model of results.json with the types that stages and parts of reports state."""
    own: dict[str, Any] = {each.name: (each.backbone_results | None, None) for each in stages if each.backbone_results}
    common: dict[str, Any] = {
        each.name: (each.document_results | None, None) for each in stages if each.document_results
    }
    common |= {each.name: (each.results | None, None) for each in more}
    backbone = create_model(BackboneResults.__name__, __base__=BackboneResults, __doc__=BackboneResults.__doc__, **own)
    common["backbones"] = (dict[str, backbone], ...)  # type: ignore[valid-type]
    name = ResultsDocument.__name__
    return create_model(name, __base__=ResultsDocument, __doc__=ResultsDocument.__doc__, **common)


def _require_bounded(results: dict[str, Any]) -> None:
    """Raise SubstyleError for deep nesting or a number that is not finite, also in parts without a model."""
    level: list[tuple[Location, dict[Any, Any] | list[Any]]] = [((), results)]
    for _ in range(_DEPTH):
        below: list[tuple[Location, dict[Any, Any] | list[Any]]] = []
        for location, value in level:
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(inner, dict | list):
                    below.append(((*location, key), inner))
                elif (isinstance(inner, float) and not math.isfinite(inner)) or (
                    isinstance(inner, int) and not -_HUGE < inner < _HUGE
                ):
                    shown = inner if isinstance(inner, float) else math.inf
                    raise SubstyleError(f"{_path((*location, key))}: expected a finite number, got {shown}")
        level = below
    if level:
        raise SubstyleError(f"{_path(level[0][0])[:200]}: nested more than {_DEPTH} levels deep")


def _path(location: Location) -> str:
    """Format as ``results.backbones['x'].transformation.linear.accuracy.low``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    if len(location) > 1 and location[0] == "backbones":
        parts[1] = f"[{location[1]!r}]"
    return f"results{''.join(parts)}"


def _message(error: ErrorDetails) -> str:
    """Format an error as ``path: expected …, got …``."""
    kind, location, context, value = error["type"], error["loc"], error.get("ctx", {}), error["input"]
    path = _path(location[:-1] if location[-1:] == ("[key]",) else location)
    if kind == "missing":
        return f"{path}: missing"
    limit = context.get("ge", context.get("le"))
    if isinstance(limit, float):  # of a share; those of counts are integers
        expected = "a number between 0 and 1"
    else:
        stated = context.get("error") or context.get("expected", "").replace("'", "")
        expected = _EXPECTED.get(kind) or str(stated or error["msg"])
    got = type(value).__name__ if isinstance(value, list | dict) else repr(value)[:80]
    return f"{path}: expected {expected}, got {got}"
