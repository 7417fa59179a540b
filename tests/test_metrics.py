"""The parquet sink: atomic parts, nothing lost, nothing doubled, nothing undocumented."""

import math
from pathlib import Path

import pandas as pd
import pytest

from rgpo.errors import ConfigError
from rgpo.runtime.metrics import MetricsWriter, remove_parts
from rgpo.runtime.schema import GLOSSARY, PROVENANCE, Metric

NAMES = dict.fromkeys(PROVENANCE, "x")


def writer(folder: Path, attempt: int = 1, keep_until: int = 0, glossary: dict[str, Metric] = GLOSSARY) -> MetricsWriter:
    sink = MetricsWriter(folder, NAMES, 3, attempt, {"config": "a: 1"}, glossary)
    sink.resume(keep_until)
    return sink


def test_parts_are_readable_before_the_end_and_joined_at_it(tmp_path: Path) -> None:
    sink = writer(tmp_path)
    for i in (1, 2):
        sink.log(i, 10 * i, {"kl/old_exact": 0.5 * i, "epoch/kl_old_exact": [0.1, 0.5 * i]})
        sink.flush()
    sink.log(3, 30, {"kl/old_exact": 1.5})
    half_written = tmp_path / "metrics" / ".part-0001-000002.parquet.writing"
    half_written.write_bytes(b"PAR1 and then the power went")
    assert pd.read_parquet(tmp_path / "metrics").iteration.tolist() == [1, 2]
    half_written.unlink()
    frame = pd.read_parquet(sink.finish())
    remove_parts(tmp_path)
    assert frame.iteration.tolist() == [1, 2, 3] and frame.seed.tolist() == [3, 3, 3]
    assert frame["kl/old_exact"].dtype == "float32" and "kl/old_k1" not in frame
    assert frame["epoch/kl_old_exact"][1].tolist() == [pytest.approx(0.1), 1.0]
    assert not (tmp_path / "metrics").exists()


def test_rows_beyond_the_checkpoint_are_kept_until_they_are_measured_again(tmp_path: Path) -> None:
    first = writer(tmp_path)
    for i in range(1, 6):
        first.log(i, i, {"kl/old_exact": 1.0})
        first.flush()
    second = writer(tmp_path, attempt=2, keep_until=3)
    for i, attempts in ((4, [1, 1, 1, 2, 1]), (5, [1, 1, 1, 2, 2])):
        assert sorted(pd.read_parquet(tmp_path / "metrics").iteration) == [1, 2, 3, 4, 5]
        second.log(i, i, {"kl/old_exact": 2.0})
        second.flush()
        frame = pd.read_parquet(tmp_path / "metrics").sort_values("iteration")
        assert frame.iteration.tolist() == [1, 2, 3, 4, 5] and frame.attempt.tolist() == attempts
    frame = pd.read_parquet(second.finish())
    assert frame.iteration.tolist() == [1, 2, 3, 4, 5] and frame.attempt.tolist() == [1, 1, 1, 2, 2]


def test_an_undocumented_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metric kl/old_exct: has no unit and meaning.* Did you mean kl/old_exact"):
        writer(tmp_path).log(1, 1, {"kl/old_exct": 1.0})
    with pytest.raises(ConfigError, match="metric kl/old_exact: has one value per epoch"):
        writer(tmp_path).log(1, 1, {"kl/old_exact": [1.0, 2.0]})


def test_a_metric_declared_later_joins_rows_written_without_it(tmp_path: Path) -> None:
    first = writer(tmp_path)
    first.log(1, 1, {"kl/old_exact": 1.0})
    first.flush()
    second = writer(tmp_path, attempt=2, keep_until=1, glossary=GLOSSARY | {"mine/loss": Metric("1", "a loss of my own")})
    second.log(2, 2, {"kl/old_exact": 2.0, "mine/loss": 0.5})
    frame = pd.read_parquet(second.finish())
    assert frame["kl/old_exact"].tolist() == [1.0, 2.0] and frame.iteration.tolist() == [1, 2]
    assert math.isnan(frame["mine/loss"][0]) and frame["mine/loss"][1] == 0.5


def test_what_was_not_measured_is_nan(tmp_path: Path) -> None:
    sink = writer(tmp_path)
    sink.log(1, 1, {"kl/old_exact": 1.0})
    sink.flush()
    assert math.isnan(pd.read_parquet(tmp_path / "metrics")["kl/old_k1"][0])


def test_the_glossary_names_units_and_meanings() -> None:
    for name, metric in GLOSSARY.items():
        assert "/" in name and metric.unit and len(metric.meaning) > 10, name
