"""The loop with the smallest task and algorithm: any class that meets the protocols runs, resumes and is described."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rgpo.core.rollout import Rollout
from rgpo.errors import ConfigError
from rgpo.learning.types import Metrics, Requirements, State
from rgpo.runtime import console, run_folder, runner
from rgpo.runtime.signals import Interrupted

METRICS = {"mine/loss": {"unit": "1", "meaning": "squared distance to the goal"}}
CONFIG: dict[str, Any] = {
    "save_model": False,
    "resume_from": None,
    "pause_at": None,
    **{"name": "default", "seed": 3, "total_env_steps": 100, "num_iterations": None, "results_dir": "results", "num_threads": 1},
    **{"eval_every": 2, "gradvar_every": 0, "checkpoint_every_s": 0, "exports": [], "metrics": METRICS},
    "choices": {"task": "line", "scale": "none", "algo": "mine", "gate": None},
}


class Point:
    """A policy with one parameter."""

    def __init__(self, seed: int) -> None:
        self.x = float(seed % 100)

    def state_dict(self) -> State:
        return {"x": self.x}

    def load_state_dict(self, state: State) -> None:
        self.x = float(state["x"])


class Line:
    """Ten steps per iteration; reward -x^2."""

    memory_advice = "lower task.num_steps"
    batch_size = 10

    def __init__(self, fails_at: int = 0) -> None:
        self.fails_at, self.calls = fails_at, 0

    def check(self) -> None: ...

    def validate(self, requirements: Requirements) -> None: ...

    def plan_iterations(self, total_env_steps: int) -> int:
        return total_env_steps // 10

    def setup(self, seed: int, requirements: Requirements) -> None:
        assert requirements.gamma == 0.5

    def make_policy(self, seed: int) -> Point:
        return Point(seed)

    def collect(self, policy: Point) -> Rollout:
        self.calls += 1
        if self.calls == self.fails_at:
            raise Interrupted(15)
        reward, ended = np.full((10, 1), -(policy.x**2)), np.ones((10, 1), bool)
        mask = np.arange(10)[:, None] < 8
        return Rollout(
            reward=reward,
            terminated=ended,
            done=ended,
            value=reward,
            next_value=reward,
            metrics={"return/train_mean": 1.0},
            mask=mask,
        )

    def evaluate(self, policy: Point) -> dict[str, float]:
        return {"return/eval_mean": -(policy.x**2)}

    def headline(self, metrics: Mapping[str, float | list[float]]) -> str:
        return f"loss {metrics['mine/loss']:.1f}"

    def summary(self, metrics: Mapping[str, float | list[float]]) -> list[str]:
        return ["reached the goal"]

    def take_samples(self) -> Iterable[Mapping[str, object]]:
        return []

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None: ...


class Halve:
    """x <- x/2; no gate, no KL, no ratio."""

    note = ""
    requirements = Requirements(gamma=0.5, critic=False, num_minibatches=1)

    def __init__(self, name: str = "mine/loss") -> None:
        self.name, self.num_steps = name, 0

    def describe(self) -> dict[str, str]:
        return {"rule": "Halve(rate=0.5)"}

    def validate(self, batch_size: int) -> None: ...

    def setup(self, policy: Point, num_iterations: int, seed: int) -> None:
        assert num_iterations == 10

    def learn(self, policy: Point, rollout: Rollout, measure_variance: bool) -> Metrics:
        policy.x /= 2
        self.num_steps += 1
        return {self.name: policy.x**2, "loss/policy": float(self.num_steps)}

    def state_dict(self) -> State:
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: State) -> None:
        self.num_steps = int(state["num_steps"])


def run(run_dir: Path, task: Line | None = None, algorithm: Halve | None = None, **changes: object) -> str:
    return runner.run(CONFIG | changes, task or Line(), algorithm or Halve(), run_dir, "0" * 8, "rgpo-run")


def test_an_algorithm_outside_the_gate_family_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "run") == "completed"
    out = capsys.readouterr().out
    assert "line | mine, seed 3\n  rule  Halve(rate=0.5)\n  10 iterations, 1 thread\n" in out
    assert "iteration 10/10  steps 80  loss " in out and "reached the goal" in out
    assert "KL" not in out and "no gate can matter" not in out and "gate" not in out
    frame = pd.read_parquet(tmp_path / "run" / "metrics.parquet")
    assert frame["loss/policy"].tolist() == list(range(1, 11)) and frame.env_steps.tolist() == list(range(8, 81, 8))
    assert (frame["mine/loss"].diff().dropna() <= 0).all() and frame["return/eval_mean"].notna().tolist() == [False, True] * 5
    assert frame["gate"].tolist() == ["none"] * 10 and "kl/old_exact" not in frame
    assert frame["speed/env_steps_per_s"].gt(0).all() and frame["time/update_s"].gt(0).all()
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["algorithm"] == {"rule": "Halve(rate=0.5)"}
    assert run(tmp_path / "run") == "skipped"


def test_a_kl_below_rounding_is_shown_without_its_arbitrary_sign() -> None:
    assert console.nats(-1.9e-9) == console.nats(2.8e-8) == "below 1e-7"
    assert (console.nats(0.021344), console.nats(-2e-7), console.nats(float("nan"))) == ("0.0213", "-2e-07", "nan")


def test_the_state_has_the_length_before_the_first_checkpoint(tmp_path: Path) -> None:
    found: list[run_folder.RunState] = []

    class Observed(Line):
        def collect(self, policy: Point) -> Rollout:
            found.append(run_folder.read_state(tmp_path / "run"))
            return super().collect(policy)

    run(tmp_path / "run", Observed(), checkpoint_every_s=1000)
    assert len(found) == 10 and all(state["status"] == "running" and state["num_iterations"] == 10 for state in found)


def test_it_resumes_with_its_own_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "run", Line(fails_at=5))
    assert run_folder.status(tmp_path / "run") == "interrupted"
    capsys.readouterr()
    run(tmp_path / "run", num_threads=2)
    out = capsys.readouterr().out
    assert "attempt 2 resumes after iteration 4 of 10" in out
    assert "1 process(es) wrote the checkpoint, with 1 thread(s) each: the resumed run is equal up to rounding" in out
    whole, resumed = (pd.read_parquet(tmp_path / name / "metrics.parquet") for name in ("whole", "run"))
    for name in ("mine/loss", "loss/policy", "env_steps", "return/eval_mean"):
        pd.testing.assert_series_equal(whole[name], resumed[name])


def test_an_undeclared_metric_is_refused_with_a_near_match(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metric mine/los: has no unit and meaning; declare .* Did you mean mine/loss"):
        run(tmp_path / "run", algorithm=Halve("mine/los"))
    state = run_folder.read_state(tmp_path / "run")
    assert state["status"] == "failed" and "mine/los" in str(state["reason"])
    assert not (tmp_path / "run" / "error.txt").exists()


def test_a_folder_that_another_process_holds_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_folder.lock(tmp_path / "run"):
        assert run(tmp_path / "run") == "held"
    assert "another process is running it, skipped" in capsys.readouterr().out
    assert run_folder.read_state(tmp_path / "run") == {}


@pytest.mark.parametrize(
    ("error", "kept"), [(ValueError("boom"), True), (MemoryError(), False), (OSError(28, "No space left", "simulator.bin"), True)]
)
def test_a_failure_is_recorded(error: Exception, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Halve, policy: Point, rollout: Rollout, measure_variance: bool) -> Metrics:
        raise error

    monkeypatch.setattr(Halve, "learn", broken)
    with pytest.raises(Exception) as found:
        run(tmp_path / "run")
    reason = str(run_folder.read_state(tmp_path / "run")["reason"])
    assert (tmp_path / "run" / "error.txt").exists() == kept
    expected = {
        ValueError: "ValueError: boom",
        MemoryError: "iteration 1: out of memory; lower task.num_steps; no checkpoint yet",
        OSError: "OSError: [Errno 28] No space left: 'simulator.bin'",  # the task's file and not one of the run
    }
    assert expected[type(error)] in reason
    assert kept or str(found.value) == reason


def test_a_damaged_state_counts_as_none(tmp_path: Path) -> None:
    for text in ("", "[1]", "{"):
        (tmp_path / "state.json").write_text(text)
        assert run_folder.read_state(tmp_path) == {} and run_folder.status(tmp_path) == "missing"


def test_without_a_state_the_other_files_tell_the_status(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert run_folder.status(tmp_path) == "interrupted"
    with run_folder.lock(tmp_path):
        assert run_folder.status(tmp_path) == "running"
    (tmp_path / "error.txt").write_text("Traceback")
    assert run_folder.status(tmp_path) == "failed"
