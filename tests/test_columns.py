"""Columns made from buffers against pyarrow's own conversion."""

from __future__ import annotations

import math
import subprocess
import sys

import pyarrow as pa
import pytest

from rgpo.runtime.columns import array, table
from rgpo.runtime.metrics import arrow_schema, table_schema

VALUES = {
    pa.float32(): [1.0, None, -0.1, 3, True, math.inf, 1e-45],
    pa.float64(): [1.0, None, -0.1],
    pa.int64(): [1, None, -(2**63), 2**63 - 1],
    pa.int32(): [5, None],
    pa.bool_(): [True, None, False, True, True, False, False, False, True, None],
    pa.string(): ["a", None, "", "\u00e4\u20ac\U0001f600", "b" * 1000],
    pa.dictionary(pa.int32(), pa.string()): ["a", "b", None, "a", ""],
    pa.list_(pa.float32()): [[1.0, 2.0], None, [], [0.5, None]],
    pa.list_(pa.string()): [["x"], [], None, ["y", "zz"]],
}


@pytest.mark.parametrize("kind", VALUES, ids=str)
@pytest.mark.parametrize("count", [None, 1, 0])
def test_columns_equal_pyarrows(kind: pa.DataType, count: int | None) -> None:
    values = VALUES[kind][:count]
    found = array(values, kind)
    found.validate(full=True)
    assert found.equals(pa.array(values, kind))


def test_nan_is_a_number_and_not_missing() -> None:
    found = array([math.nan, None], pa.float32())
    assert found.null_count == 1 and math.isnan(found[0].as_py())


def test_rows_of_a_run_equal_pyarrows() -> None:
    schema = arrow_schema({"config": "x"})
    rows = [{"task": "a", "iteration": 1, "kl/mean": 0.5, "epoch/kl": [1.0]}, {"task": "b", "iteration": 2, "env_steps": 3}]
    rows = [{name: value for name, value in row.items() if name in schema.names} for row in rows]
    found = table(rows, schema)
    assert found.equals(pa.Table.from_pylist(rows, schema=schema), check_metadata=True)
    assert table([], schema).equals(schema.empty_table(), check_metadata=True)


@pytest.mark.parametrize(("kind", "value"), [("number", "3"), ("whole", 1.5), ("text", 3), ("yes/no", 1), ("whole", "1")])
def test_a_value_of_another_kind_is_refused(kind: str, value: object) -> None:
    with pytest.raises(TypeError):
        table([{"x": value}], table_schema({"x": kind}, {}))


def test_an_integer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(OverflowError):
        array([2**63], pa.int64())


def test_pandas_is_not_imported() -> None:
    code = "import sys, pyarrow as pa; from rgpo.runtime.columns import table; "
    code += "t = table([{'x': 1.0}], pa.schema([('x', pa.float32())])); assert t['x'].to_pylist() == [1.0]; "
    code += "assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
