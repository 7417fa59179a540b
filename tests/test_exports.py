"""Dashboards: asked for by name, imported then, fed with finite scalars, dropped with one sentence when they fail."""

from __future__ import annotations

import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli import TINY, rgpo_run, rows, the_run

from rgpo.cli.config import compose_jobs
from rgpo.errors import ConfigError
from rgpo.runtime.trackers import Trackers

CONFIG = {"name": "mine", "seed": 1, "choices": {"algo": "ppo"}}
TEXT = {"prompt_id": 7, "prompt": "Why?", "completion": "Because.", "proxy": 0.5, "kl_ref": 1.5}
ROW = {"a/b": 1.5, "bad": float("nan"), "epoch/list": [1.0], "n": 3}


class Fake(types.ModuleType):
    """A module that notes its calls; `broken` names the one that fails."""

    def __init__(self, name: str, broken: str = "") -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any, Any]] = []
        self.broken = broken

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*words: Any, **more: Any) -> None:
            self.calls.append((name, words, more))
            if name == self.broken:
                raise ConnectionError("no network\nat all")

        return call


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_finite_scalars(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(name)
    monkeypatch.setitem(sys.modules, name, fake)
    trackers = Trackers([name], tmp_path / "run-1", CONFIG, 0)
    trackers.log(4, ROW)
    trackers.log_texts(4, 30 * [TEXT])
    trackers.log_film(4, tmp_path / "episode.mp4")
    trackers.finish()
    init, log, table, texts, video, film, finish = fake.calls
    assert init[2]["project"] == "mine" and init[2]["name"] == "run-1" and init[2]["config"] == CONFIG
    assert log == ("log", ({"a/b": 1.5, "n": 3.0},), {"step": 4}) and finish[0] == "finish"
    assert table == ("Table", (), {"columns": list(TEXT), "data": 10 * [list(TEXT.values())]})
    assert video == ("Video", (str(tmp_path / "episode.mp4"),), {"format": "mp4"})
    assert texts[1][0].keys() == {"completions"} and film[1][0].keys() == {"episode"} and texts[2] == film[2] == {"step": 4}


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    trackers = Trackers(["mlflow"], tmp_path / "run-1", CONFIG, 0)
    trackers.log(4, ROW)
    trackers.log_texts(4, [TEXT, TEXT])
    trackers.log_film(4, tmp_path / "episode.gif")
    trackers.finish()
    calls = ["set_experiment", "start_run", "log_params", "log_metrics", "log_table", "log_artifact", "end_run"]
    assert [name for name, *_ in fake.calls] == calls
    assert fake.calls[2][1] == ({"name": "mine", "choices.algo": "ppo", "seed": "1"},)
    assert fake.calls[4][1] == ({"step": [4, 4], **{key: [value, value] for key, value in TEXT.items()}},)


@pytest.mark.parametrize(
    ("broken", "calls"), [("init", ["init"]), ("log", ["init", "log"]), ("finish", ["init", "log", "log", "finish"])]
)
def test_a_failing_one_warns_once(
    broken: str, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake("wandb", broken)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    trackers = Trackers(["wandb"], tmp_path, CONFIG, 0)
    for iteration in (1, 2):
        trackers.log(iteration, ROW)
    trackers.finish()
    assert [name for name, *_ in fake.calls] == calls
    said = capsys.readouterr().out
    assert said == "exports=wandb: no network at all; the run continues without it (its parquet files are complete)\n"


def test_a_missing_package_and_a_wrong_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    Trackers(["mlflow"], tmp_path, CONFIG, 0).log(1, ROW)
    assert "exports=mlflow:" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"exports=\[wand\]: choose from tensorboard, wandb, trackio, mlflow"):
        Trackers(["wand"], tmp_path, CONFIG, 0)


def read_events(folder: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value as TensorBoard shows them; a step is there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert all(len({event.step for event in many}) == len(many) for many in found.values())
    return {tag: {event.step: event.value for event in many} for tag, many in found.items()}


def test_tensorboard_shows_what_the_parquet_file_holds(tmp_path: Path) -> None:
    rgpo_run([*TINY, "num_iterations=3", "exports=[tensorboard]"], tmp_path)
    metrics = pd.read_parquet(the_run(tmp_path) / "metrics.parquet").set_index("env_steps")
    events = read_events(the_run(tmp_path) / "tensorboard")
    numbers = metrics.select_dtypes("number").replace([np.inf, -np.inf], np.nan).drop(columns=["seed", "attempt"])
    assert events == {name: column.dropna().to_dict() for name, column in numbers.items() if column.notna().any()}
    assert len(events) > 40 and list(events["kl/old_exact"]) == metrics.index.tolist() != [1, 2, 3]


def test_tensorboard_has_parameters_completions_and_a_film(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    film = tmp_path / "episode.gif"
    film.write_bytes(b"GIF89a and more")
    trackers = Trackers(["tensorboard"], tmp_path, CONFIG, 0)
    trackers.log_texts(5, [TEXT])
    trackers.log_film(5, film)
    trackers.log_film(5, tmp_path / "episode.mp4")  # which it cannot show
    trackers.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (text,) = events.Tensors("completion/7/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert text.step == 5 and all(part in shown for part in ("Why?", "Because.", "proxy 0.5"))
    assert events.Images("episode")[0].encoded_image_string == film.read_bytes()
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"choices.algo" in start and b"ppo" in start


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_the_real_package_takes_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    for key, folder in (("TRACKIO_DIR", "trackio"), ("MLFLOW_TRACKING_URI", "mlflow.db")):
        monkeypatch.setenv(key, f"sqlite:///{tmp_path}/{folder}" if folder.endswith(".db") else str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)
    said = rgpo_run([*TINY, "num_iterations=3", f"exports=[{name}]"], tmp_path)
    assert f"exports={name}" not in said
    trackers = Trackers([name], the_run(tmp_path), CONFIG, 0)
    trackers.log_texts(5, [TEXT])
    trackers.finish()
    assert list(trackers._trackers) == [name]


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    for start, stop, value in ((0, 5, 1.0), (3, 6, 2.0)):
        trackers = Trackers(["tensorboard"], tmp_path, CONFIG, start)
        for iteration in range(start + 1, stop + 1):
            trackers.log(iteration, {"a/b": value})
        trackers.finish()
    assert read_events(tmp_path / "tensorboard") == {"a/b": {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 2.0}}


@pytest.mark.skipif(find_spec("trackio") is not None, reason="trackio is installed")
def test_a_run_goes_on_without_a_dashboard_that_is_not_installed(tmp_path: Path) -> None:
    words = [*TINY, "num_iterations=2"]
    said = rgpo_run([*words, "exports=[trackio]"], tmp_path)
    assert said.count("exports=trackio:") == 1 and len(rows(the_run(tmp_path))) == 2
    assert the_run(tmp_path).name == compose_jobs(words, False, None)[0].run_dir.name
