"""Results of a run on the Hugging Face Hub: a model card, and an upload of report, tables and probes."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from substyle import files
from substyle.engine.report.data import head_name, labelled, scored
from substyle.engine.report.findings import SCORES
from substyle.engine.report.page import cell_text
from substyle.engine.report.tables import overview
from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages.results import read_results, validate_results
from substyle.engine.stages.stamp import note_of
from substyle.engine.study.outputs import CARD, PAGE, RESULTS, adding_card, require_current
from substyle.engine.study.report import all_figures, all_tables
from substyle.errors import ConfigError, MissingError, SubstyleError
from substyle.files import UnsafeFileError, inside, is_regular

_ENDINGS = {"tables": ("csv", "tex"), "figures": ("pdf", "png", "svg")}


def _plain(text: object) -> str:
    """Escape HTML and Markdown in names, which may come from somebody else's results."""
    return re.sub(r"([\\`|\[\]])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def write_card(run: Path, out: Path | None = None) -> Path:
    """Write the model card of a run, with its accuracies as evaluation results (``model-index``).

    Args:
        run: output folder with results.json.
        out: file; default: ``README.md`` in the folder.

    Raises:
        StaleError: the results are outdated.
        SubstyleError: they are missing or invalid, or the file exists and is no model card of this package.
    """
    if not (run / RESULTS).is_file():
        raise MissingError("RUN", f"{run} has no {RESULTS}; pass the output folder of substyle run or report")
    results = read_results(run / RESULTS)
    require_current(run, results)
    path, text = out or run / CARD, card(labelled(validate_results(results)))
    with adding_card(path.parent, path.name) as new:
        files.write(new / path.name, text)
    return path


def card(results: ResultsDocument) -> str:
    """The model card: metadata in the Hub's format, and the table of probe accuracies.

    Accuracies are fractions; ``args`` of a metric has its 95 % interval and whether the probe has converged.
    """
    from huggingface_hub import CardData, EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    photographs = (results.identity or {}).get("sources") or results.name
    index: list[dict[str, Any]] = []
    for name, backbone in results.ordered().items():
        found = []
        for head in results.heads():
            for heading, task, key in SCORES:
                probe = backbone.probe(task, head)
                if probe is not None and (score := scored(probe, key)) is not None:
                    found.append(
                        EvalResult(
                            task_type="image-classification",
                            task_name=f"{heading}, {head_name(head)} probe",
                            dataset_type=re.sub(r"[^a-z0-9]+", "-", photographs.lower()).strip("-") or "photographs",
                            dataset_name=photographs,
                            dataset_config=f"{results.suite or ''}/{task}/{head}/{key}",
                            dataset_split="test",
                            metric_type="accuracy",
                            metric_name=f"Accuracy ({heading}, {head_name(head)})",
                            metric_value=score[0],
                            metric_args={"ci95": getattr(probe, key).interval, "converged": probe.converged},
                        )
                    )
        if found:
            index += eval_results_to_model_index(name, found)
    if not index:
        raise SubstyleError("results.json: no probe has a score; run substyle stage probes and substyle report")
    # not ModelCardData, which holds the results of one model
    data = CardData(library_name="substyle", tags=["substyle", "probing"], **{"model-index": index})
    table = overview(results)
    lines = [[column.heading for column in table.columns], ["---"] * len(table.columns)]
    for row in table.rows:
        cells = [(cell_text(v, column), column.kind) for v, column in zip(row, table.columns, strict=True)]
        lines.append([_plain(text) if kind == "text" else text for text, kind in cells])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    chance = ", ".join(
        f"{_plain(task)} {100 * value:.1f}" for task, value in (results.chance or {}).items() if value is not None
    )
    variants, images, version = len(results.transformations), results.images, _plain(results.version or "")
    return f"""---
{data.to_yaml()}
---

# {_plain(results.name)}: what image embeddings know

Probes of {len(index)} frozen image embeddings, trained and tested by substyle {version} on {variants} variants of
{images:,} photographs ({_plain(photographs)}). Accuracy on test photographs in per cent, with 95 % intervals; † marks
probes that have not converged:

{rows}

*Seen* and *held out*: the kind of transformations in and not in the probe's training set; *class* is
predicted from original and from transformed photographs. Chance: {chance}.

`report.html` has all results. Apply a probe with `substyle predict probes/<backbone>/<task>-<head>.safetensors IMAGES`.
"""


def _reported(run: Path, results: ResultsDocument) -> list[str]:
    """Files that a report of these results has written and that exist, and those of its probes.

    Raises:
        StaleError: a file of a probe has changed.
        UnsafeFileError: one is a link or no regular file; nobody knows what else it would upload.
    """
    made = {"tables": [table.name for table in all_tables(results)], "figures": all_figures(results)}
    names = [CARD, PAGE, RESULTS]
    names += [f"{kind}/{name}.{end}" for kind, ends in _ENDINGS.items() for name in made[kind] for end in ends]
    for stage in results.stamps or {}:
        note = note_of(inside(run, stage)) if stage.startswith("probes/") else None
        names += [f"{stage}/{name}" for name in (note.files if note else ())]
    found = [name for name in names if inside(run, name).exists()]
    for name in found:
        if not is_regular(run / name):
            raise UnsafeFileError(f"{run / name}: not a regular file")
    return found


def push(run: Path, repo: str, *, private: bool = False, rows: Mapping[str, bytes] | None = None) -> str:
    """Upload card, report, results, tables, figures and probes of a run.

    Embeddings are not uploaded; the report may show photographs.

    The token is that of ``hf auth login`` or ``HF_TOKEN``; ``HF_ENDPOINT`` is another hub.

    Args:
        run: output folder.
        repo: ``user/name``, created if it does not exist.
        private: whether a new repository is private.
        rows: further files by path, such as rows of results.

    Returns:
        address of the commit.

    Raises:
        ConfigError: an invalid name.
        SubstyleError: the upload failed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError("--repo", repo, "user/name")
    write_card(run)
    names = _reported(run, validate_results(read_results(run / RESULTS)))
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id=repo,
            operations=[
                *(CommitOperationAdd(name, str(run / name)) for name in names),
                *(CommitOperationAdd(name, data) for name, data in (rows or {}).items()),
            ],
            commit_message=f"Results of {run.resolve().name}",
        )
    except HFValidationError as error:
        raise ConfigError("--repo", repo, f"user/name ({error})") from error
    except Exception as error:  # the client raises those of several HTTP libraries
        raise SubstyleError(f"{repo}: upload failed: {error}") from error
    return str(commit.commit_url)
