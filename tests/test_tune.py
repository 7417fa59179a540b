"""hydra/sweeper=optuna: means over seeds, pruning between iterations, and studies that continue."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli import TINY, rgpo_run

import rgpo
from rgpo.cli import search_space, tune
from rgpo.cli.overrides import hydra_on
from rgpo.cli.run import start
from rgpo.errors import ConfigError
from rgpo.runtime import run_folder

pytestmark = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs pip install 'rgpo[optuna]'")
SEARCH = ["hydra/sweeper=optuna", "task=cartpole", "seed=1,2", "hydra.sweeper.n_trials=2"]


def space(*words: str) -> search_space.Space:
    with hydra_on(None) as composer:
        return search_space.space_of(composer, list(words))


def test_hydras_ranges_become_optunas() -> None:
    words = ["update.lr=tag(log,interval(1e-4,1e-2))", "update.num_epochs=int(interval(1,8))", "task.num_envs=range(1,9,2)"]
    found = space(*words, "gate=glob(sigmoid*)", "seed=3,4", "task=cartpole")
    lr, epochs, envs, gate = found.ranges.values()
    assert (lr.low, lr.high, lr.log) == (1e-4, 1e-2, True) and (epochs.low, epochs.high) == (1, 8)
    assert (envs.low, envs.high, envs.step) == (1, 7, 2)  # hydra's range excludes its end
    assert gate.choices == ("sigmoid", "sigmoid_log", "sigmoid_matched")
    assert found.seeds == ("3", "4") and found.fixed == ("task=cartpole",)
    assert found.words({"gate": "sigmoid"}) == [["task=cartpole", "gate=sigmoid", f"seed={seed}"] for seed in (3, 4)]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["seed=1,2"], "has nothing to search"),
        (["update.lr=interval(1e-4,1e-2)", "seed=interval(1,3)"], "give seeds"),
        (["update.lr=tag(log,interval(0,1))"], "is not a range that optuna searches"),
    ],
)
def test_ranges_that_cannot_be_searched(words: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        space(*words)


def test_words_of_paths_and_names_stay_as_typed() -> None:
    found = space("update.lr=interval(1e-4,1e-2)", "name=mine", "results_dir=a folder")
    assert {"name=mine", "results_dir=a folder"} <= {*found.fixed}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["gate=sigmoid,erf", "hydra.sweeper.metric=return/trian_mean"], "Did you mean return/train_mean"),
        (["gate=sigmoid,erf", "hydra.sweeper.n_trials=0"], "n_trials=0"),
        (["gate=sigmoid,erf", "hydra.sweeper.prune_at=[2]"], "must be shares"),
        (["gate=sigmoid,erf", "hydra.sweeper.direction=up"], "direction=up"),
        (["gate=sigmoid,erf", "hydra.sweeper.trials=3"], "trials"),
        (["gate=sigmoid,erf", "hydra.sweeper.percentile=150"], "percentile=150"),
        (["gate=sigmoid,erf", "hydra.sweeper.study_name=a/b"], "study_name=a/b"),
        (["update.lr=interval(1e-4,1e40)"], "update.lr"),  # the ends are checked before the first trial
    ],
)
def test_refusals(words: list[str], why: str) -> None:
    with hydra_on(None) as composer, pytest.raises(ConfigError, match=why):
        tune.search(composer, [*SEARCH, *words], start)


def test_a_trial_is_the_mean_over_seeds_and_a_paused_run_equals_a_whole_one(tmp_path: Path) -> None:
    more = ["seed=1,2", "hydra/sweeper=optuna", "hydra.sweeper.n_startup_trials=1", "hydra.sweeper.prune_at=[0.5]"]
    words = ["-m", *TINY, *more, "update.lr=1e-3,1e-5", "hydra.sweeper.sampler=random", "hydra.sweeper.final_fraction=0.5"]
    first = rgpo_run([*words, "hydra.sweeper.n_trials=1"], tmp_path)
    out = rgpo_run([*words, "hydra.sweeper.n_trials=2"], tmp_path)
    lines = [line for line in (first + out).splitlines() if line.startswith("trial ")]
    assert [line.split(":")[0] for line in lines] == ["trial 0", "trial 1"] and "best of 2 trials" in out
    lr = lines[0].split("update.lr=")[1].split(":")[0]
    runs = [rgpo.load(tmp_path / "results" / "default" / name) for name in names(tmp_path, float(lr))]
    assert [run.status for run in runs] == ["completed"] * 2 and all(run.metrics.attempt.max() == 2 for run in runs)
    last = [run.metrics["return/train_mean"].dropna() for run in runs]
    mean = pd.Series([x.iloc[-(-len(x) // 2) * -1 :].mean() for x in last]).mean()
    assert float(lines[0].split("complete, ")[1].split(" ")[0]) == pytest.approx(mean, rel=1e-5)
    whole = rgpo.run(*TINY, f"update.lr={lr}", "seed=1", f"results_dir={tmp_path / 'whole'}")
    paused = next(run for run in runs if run.config["seed"] == 1)
    timed = [name for name in whole.metrics if name.startswith(("time/", "speed/")) or name == "attempt"]
    pd.testing.assert_frame_equal(whole.metrics.drop(columns=timed), paused.metrics.drop(columns=timed))


def names(folder: Path, lr: float) -> list[str]:
    found = sorted((folder / "results" / "default").glob("cartpole-*-s*"))
    return [path.name for path in found if rgpo.load(path).config["update"]["lr"] == lr]


def test_a_worse_trial_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that are only said to be complete, with values that fall from trial to trial."""
    monkeypatch.chdir(tmp_path)
    launched: list[list[str]] = []

    def launch(self: Any, jobs: Any) -> Any:
        launched.append([word for job in jobs for word in job.overrides if word.startswith("pause_at")])
        return 0, {}

    def value(job: Any, settings: Any, iteration: int) -> float:
        return -float(len(list(Path("results/default").glob("cartpole-*-s*"))))

    monkeypatch.setattr(tune.Launcher, "run", launch)
    monkeypatch.setattr(tune, "value_of", value)
    monkeypatch.setattr(run_folder, "status", lambda folder: "completed")
    words = [*SEARCH, "num_iterations=8", "update.lr=interval(1e-4,1e-2)", "hydra.sweeper.n_startup_trials=1"]
    with hydra_on(None) as composer:
        assert tune.search(composer, words, start) == 0
    out = capsys.readouterr().out
    assert "trial 0: " in out and "complete" in out and "pruned, -4 +- 0 (n = 2) after iteration 2" in out
    assert launched == [["pause_at=2"] * 2, ["pause_at=4"] * 2, [], ["pause_at=2"] * 2]
