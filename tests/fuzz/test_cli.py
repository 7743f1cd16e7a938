"""Command lines of any words: done, or an exit code and a line that says why; never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import strategies as st
from tests.fuzz.harness import examine
from tests.fuzz.test_documents import ROWS, SCHEMA, results

from substyle.engine import cli
from substyle.engine.commands.json_output import requested
from substyle.engine.store.importer import import_store
from substyle.errors import SubstyleError
from substyle.files import remove

HEAVY = {
    "substyle.engine.embedding.run.prepare_backbones",
    "substyle.engine.stages.probes.run_probes",
    "substyle.engine.stages.analysis.analyze",
    "substyle.engine.study.predict.PixelPipeline",
}
COMMANDS = {
    "transforms": ["--suite", "--seed", "--canvas", "--plugin"],
    "backbones": ["--store", "--plugin"],
    "run": ["--images", "--out", "--device", "--set", "--backbone", "--checkpoint", "--suite"],
    "embed": ["--store", "--backbone", "--checkpoint", "--suite", "--set", "--part", "--plugin", "--device"],
    "info": ["--clean-cache"],
    "verify": [],
    "stage": ["--out", "--study", "--backbone", "--set", "--checkpoint"],
    "report": ["--out", "--study"],
    "predict": ["--checkpoint", "--top", "--plugin"],
    "compare": ["--out"],
    "import": ["--rows", "--store", "--backbone", "--seed"],
}
WORDS = [
    *("", " ", "-", "--", "-1", "0", "1", "2", "3", "007", "1_0", "٣", "1e3", "nan", "9" * 30, "9" * 5_000, "0x10"),
    *("1/2", "3/2", "control:pixels", "timm:x", "identity", "identity,jpeg", "mini5", "jpeg,jpeg", "fp32", "float16"),
    *("apply", "a=b", "=", "é", "🖼", "\udcff", "a\nb", "x" * 300, "x" * 5_000, ".", "/dev/null", "/dev/null/x"),
    *("{a", "*", "%s", "'"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with one file of every kind; what would take seconds is refused there."""

    def stop(*_: object, **__: object) -> None:
        raise SubstyleError("as far as this test goes")

    folder = tmp_path / "place"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), folder / "made.parquet")
    import_store(folder / "made.parquet", folder / "s.zarr", "import:x")
    for name in HEAVY:
        monkeypatch.setattr(name, stop)
    (folder / "empty").mkdir()
    (folder / "study.toml").write_text('name = "x"\nbackbones = ["control:pixels"]\nimages = "empty"\n')
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "results.json").write_text(json.dumps(results(name)))
    (folder / "half.json").write_text("{")
    (folder / "made.csv").write_text("key,transformation\n")
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


def test_any_arguments(place: Path, cases: int) -> None:
    there = set(place.iterdir())
    files = [*sorted(path.name for path in there), "new.zarr", "s.zarr/zarr.json", "a/results.json"]
    words = st.one_of(st.sampled_from(files), st.sampled_from(files), st.sampled_from(WORDS), st.text(max_size=6))
    words = words.filter(lambda word: "\x00" not in word)  # no system passes it on
    words = words.filter(lambda word: (".." not in word and word[:1] != "/") or word[:9] == "/dev/null")  # stay here

    def line(name: str) -> st.SearchStrategy[list[str]]:
        option = st.sampled_from([*COMMANDS[name], "--json", "--quiet", "--strict", "--no-note", "--nothing"])
        given = st.tuples(option, words).map(lambda pair: list(pair) if pair[0] in COMMANDS[name] else [pair[0]])
        needed = [
            [flag, word]
            for flag, word in (("--store", "s.zarr"), ("--backbone", "control:pixels"))
            if flag in COMMANDS[name]
        ]
        start = st.sampled_from([[], [word for pair in needed for word in pair]])
        return st.builds(
            lambda first, some, many: [name, *first, *some, *(word for pair in many for word in pair)],
            start,
            st.lists(words, max_size=3),
            st.lists(given, max_size=3),
        )

    def check(arguments: list[str]) -> None:
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main(arguments)
            except SystemExit as stop:
                code = int(str(stop.code))
        out.flush()
        err.flush()
        said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
        assert code in (0, 1, 2), said
        assert code == 0 or said or out.buffer.getvalue(), "it failed and says nothing"  # type: ignore[attr-defined]
        assert "Traceback" not in said
        if requested(arguments):
            assert ("error" in json.loads(out.buffer.getvalue())) or code in (0, 1)  # type: ignore[attr-defined]
        for path in set(place.iterdir()) - there:
            remove(path)

    names = st.sampled_from(sorted(COMMANDS))
    examine(check, names.flatmap(line), cases=cases)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["transforms", "--canvas", "1e3"], "--canvas: got '1e3'"),
        (["transforms", "--canvas", "66"], "--canvas: got"),
        (["transforms", "--seed", "9" * 5_000], "--seed: got '9999"),
        (["import", "x.npy", "--store", "s", "--backbone", "b", "--seed", str(2**63)], "--seed: got"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert named in capsys.readouterr().err
