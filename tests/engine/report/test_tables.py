from pathlib import Path

from tests.engine.report.real import (
    real_results,
)

from substyle.engine.report.page import write_tables
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import all_tables

TABLES = """
    claims overview per_transformation confusion_transformation confusion_kind generalisation rotation redrawn
    equal_width
    class multitask comparisons training few_shot parameters shortcuts shortcuts_by_transformation knn neighbours
    geometry similarity shift attacks attack_detection attack_tpr extractability learning_curves complexity generators
    by_generator generator_contrasts movement movement_by_transformation
"""


def test_every_table_of_full_results_is_written_in_every_format(tmp_path: Path) -> None:
    made = all_tables(validate_results(real_results()))
    names = {table.name for table in made}
    assert names == set(TABLES.split())
    for table in made:
        assert all(len(row) == len(table.columns) for row in table.rows)
    written = write_tables(made, tmp_path)
    assert len(written) == len(set(written)) == 2 * len(names) - 2  # matrices have no .tex
    assert all(path.stat().st_size > 0 for path in written)
