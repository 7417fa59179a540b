"""Strict reading of json, yaml and text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rgpo.errors import printable
from rgpo.runtime import reader
from rgpo.runtime.provenance import Provenance


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"attempt": NaN}', "attempt=NaN has the wrong type"),
        ('{"attempt": 1e400}', "attempt=Infinity has the wrong type"),
        ('{"attempt": 1, "attempt": 1}', "a key that occurs twice"),
        ('{"attempt": 1', "not valid JSON, line 1"),
        ("", "it is empty"),
        ('{"versions": {"torch": null}}', "versions="),
        ('{"attempt": 1} x', "not valid JSON"),
    ],
)
def test_json_is_read_strictly(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(reader.Unreadable) as caught:
        reader.read_json(tmp_path / "provenance.json", Provenance)
    assert str(caught.value).startswith("provenance.json cannot be read (") and why in str(caught.value)


def test_yaml_with_a_few_aliases_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &x [1, .inf]\nb: *x\nc: {d: *x}\n")
    inf = float("inf")
    assert reader.read_yaml(tmp_path / "a.yaml") == {"a": [1, inf], "b": [1, inf], "c": {"d": [1, inf]}}


def test_printable() -> None:
    text = "a\x1b]0;t\x07\x9b\u202eb\nc\ud800é漢"
    assert printable(text) == "a\\x1b]0;t\\x07\\x9b\\u202eb c\\ud800é漢"
    assert printable("x" * 3_000_000) == "x" * 300 + "... (3,000,000 characters)"


def test_lists_that_are_too_long_are_refused_before_they_are_read(tmp_path: Path) -> None:
    entries = pa.array([np.zeros(reader.MAX_LIST * 3, dtype=np.float32)], type=pa.list_(pa.float32()))
    pq.write_table(pa.table({"iteration": [1], "epoch/kl_old_exact": entries}), tmp_path / "long.parquet", compression="zstd")
    with pytest.raises(reader.Unreadable, match="its lists are too long"), reader.parquet(tmp_path / "long.parquet"):
        pass
