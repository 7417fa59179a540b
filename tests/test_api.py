"""The public Python API: lazy names, runs in this process, and words that are refused."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import rgpo
from rgpo import atomic
from rgpo.control.task import Control
from rgpo.runtime import schema

ROOT = Path(__file__).parents[1]
SHORT = ("task=cartpole", "task.num_envs=2", "task.num_steps=32", "task.num_eval_episodes=3", "num_iterations=5", "eval_every=2")
SHORT += ("gradvar_every=0",)
HEAVY = ("torch", "hydra", "omegaconf", "pandas", "numpy", "pyarrow", "gymnasium")


def without_clock(frame: pd.DataFrame) -> pd.DataFrame:
    """Metrics that two identical runs share."""
    return frame[[name for name in frame if not str(name).startswith(schema.CLOCK_PREFIXES) and name != "attempt"]]


@pytest.fixture(scope="module")
def results_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def ppo(results_dir: Path) -> rgpo.Run:
    """A finished run; copy its folder before changing it."""
    return rgpo.run("algo=ppo", *SHORT, f"results_dir={results_dir}")


@pytest.fixture
def at_iteration(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Do something in the rollout of an iteration."""

    def arrange(iteration: int, act: Callable[[], object]) -> None:
        collect, calls = Control.collect, iter(range(1, 1_000))

        def acting(task: Control, policy: Any) -> Any:
            if next(calls) == iteration:
                act()
            return collect(task, policy)

        monkeypatch.setattr(Control, "collect", acting)

    return arrange


def test_importing_is_light() -> None:
    code = "import time; t = time.process_time(); import rgpo; t = time.process_time() - t; import sys; "
    code += f"print(t, *(set({HEAVY}) & set(sys.modules)))"
    words = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(5)]
    assert all(len(found) == 1 for found in words), words
    assert min(float(found[0]) for found in words) < 0.05


def test_names_of_gates_and_errors_need_no_torch() -> None:
    code = "import sys, rgpo; rgpo.Gate, rgpo.gates.Sigmoid(sharpness=2.0), rgpo.ConfigError, rgpo.surrogate, rgpo.load; "
    code += "sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(rgpo.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(rgpo.__all__) <= set(dir(rgpo))
    assert all(getattr(rgpo, name) is not None for name in rgpo.__all__) and "__version__" in dir(rgpo)
    with pytest.raises(AttributeError, match="no attribute 'gate'"):
        _ = rgpo.gate


def test_a_finished_run_is_skipped_and_force_repeats_it(
    ppo: rgpo.Run, results_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ppo.folder, tmp_path / "default" / ppo.folder.name)
    words = ("algo=ppo", *SHORT, f"results_dir={tmp_path}")
    run = rgpo.run(*words)
    assert "already complete, skipped" in capsys.readouterr().out and run.metrics.attempt.eq(1).all()
    again = rgpo.run(*words, "force=true")
    assert again.folder == run.folder and "moved the earlier run to" in capsys.readouterr().out
    pd.testing.assert_frame_equal(without_clock(again.metrics), without_clock(ppo.metrics), check_exact=True)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_the_state_and_the_same_call_resumes(
    number: int, raised: type[BaseException], ppo: rgpo.Run, at_iteration: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    words = ("algo=ppo", *SHORT, f"results_dir={tmp_path}")
    at_iteration(3, lambda: signal.raise_signal(number))
    with pytest.raises(raised) as stop:
        rgpo.run(*words)
    assert getattr(stop.value, "code", 143) == 143
    assert "stopped; the same call resumes the run" in capsys.readouterr().out
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    run = rgpo.load(tmp_path / "default" / ppo.folder.name)
    assert repr(run).endswith("interrupted, iteration 3 of 5)") and run.metrics.iteration.tolist() == [1, 2, 3]
    resumed = rgpo.run(*words)
    assert resumed.status == "completed" and resumed.metrics.attempt.tolist() == [1, 1, 1, 2, 2]
    pd.testing.assert_frame_equal(without_clock(resumed.metrics), without_clock(ppo.metrics), check_exact=True)


def test_errors_are_raised_and_recorded(at_iteration: Any, tmp_path: Path) -> None:
    def fail() -> None:
        raise rgpo.NonFiniteError("reward became NaN.")

    at_iteration(2, fail)
    with pytest.raises(rgpo.NonFiniteError, match="iteration 2: reward became NaN; no checkpoint yet"):
        rgpo.run("algo=ppo", *SHORT, f"results_dir={tmp_path}")
    (folder,) = (tmp_path / "default").iterdir()
    run = rgpo.load(folder)
    assert run.status == "failed" and len(run.metrics) == 1
    with pytest.raises(rgpo.ConfigError, match=r"has no checkpoint\.pt, .*; repeat the run with force=true"):
        run.evaluate()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["algo=pppo"], r"algo=pppo: is not an option of the group algo\. Did you mean ppo"),
        (["update.lr=fast"], r"update\.lr=fast: must be a number"),
        (["algo=ppo,rgpo"], r"algo=ppo,rgpo: is a sweep"),
        (["plan=true"], r"plan=true: lists runs on the command line"),
        (["-m"], r"-m: is neither key=value nor an option"),
    ],
)
def test_words_that_cannot_run_are_refused(words: list[str], sentence: str, here: Path) -> None:
    with pytest.raises(rgpo.ConfigError, match=sentence):
        rgpo.run("task=cartpole", *words)
    assert not any(here.iterdir())


def test_several_processes_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(rgpo.ConfigError, match=r"WORLD_SIZE=2: rgpo\.run works in one process"):
        rgpo.run("algo=ppo", *SHORT)


def test_a_thread_may_run_and_nothing_of_the_process_changes(ppo: rgpo.Run, here: Path) -> None:
    def state() -> object:
        return os.environ.copy(), Path.cwd(), sys.path.copy(), torch.get_num_threads(), signal.getsignal(signal.SIGINT)

    found: list[rgpo.Run] = []
    torch.set_num_threads(2)
    try:
        before = state()
        threads = [
            threading.Thread(target=lambda seed=seed: found.append(rgpo.run("algo=ppo", f"seed={seed}", *SHORT)))
            for seed in (1, 2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert rgpo.run("algo=ppo", "seed=3", *SHORT).status == "completed" and state() == before
    finally:
        torch.set_num_threads(1)
    found.sort(key=lambda run: str(run.folder))
    assert [run.status for run in found] == ["completed", "completed"]
    pd.testing.assert_frame_equal(without_clock(found[0].metrics), without_clock(ppo.metrics), check_exact=True)


def test_a_run_that_another_process_holds_is_left_alone(
    ppo: rgpo.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "default" / ppo.folder.name
    shutil.copytree(ppo.folder, folder)
    (folder / "state.json").write_text(
        json.dumps({"status": "running", "attempt": 1, "iteration": 2, "num_iterations": 5, "pid": 9})
    )
    with atomic.locked(folder / ".lock", wait=False):
        run = rgpo.run("algo=ppo", *SHORT, f"results_dir={tmp_path}")
        told = capsys.readouterr().out
        assert re.search(
            r"process \d+ is running it \(started at ..:.. on .*; iteration 2 of 5 at its last checkpoint\), skipped", told
        )
        assert run.status == "running" and run.evaluate()
    assert run.status == "interrupted"


def test_the_quickstart_runs(tmp_path: Path) -> None:
    script = shutil.copy(ROOT / "docs" / "examples" / "quickstart.py", tmp_path)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, check=True, text=True, capture_output=True
    ).stdout
    assert "Cauchy(sharpness=5)" in out and (tmp_path / "quickstart.png").stat().st_size > 0
    table = rgpo.results(tmp_path / "results", columns=["gate.sharpness"])
    assert set(table.gate) == {"clip", "cauchy"} and set(table.status) == {"completed"}
    last = table.groupby("gate")["return/eval_mean"].last()
    assert last.gt(60).all(), last  # a random policy gets about 22
