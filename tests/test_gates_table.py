"""The committed table of gates is the one that the code makes."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rgpo.cli.gates_table import gates_table

COMMITTED = Path(__file__).parents[1] / "results" / "gates.parquet"


def test_the_committed_gates_are_up_to_date() -> None:
    ours, committed = gates_table().to_pydict(), pq.read_table(COMMITTED).to_pydict()
    assert ours["gate"] == committed["gate"], "make it again with `python -m rgpo.cli.gates_table`"
    for column in ("advantage", "log_ratio", "gate_value", "weight"):
        assert ours[column] == pytest.approx(committed[column], abs=1e-4), column
