"""Several attempts at one run: each has an entry in provenance.json, and what changed between them is a notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from cli import the_run

from rgpo.report.page.index import provenance as page_lines
from rgpo.report.read.load import read_runs
from rgpo.runtime import own_code, provenance, reader
from rgpo.runtime.provenance import Attempt, Provenance

ENVIRONMENT = '''
import gymnasium, numpy as np
class Valve(gymnasium.Env):
    """Draws from a generator of its own, so that no replay reproduces it."""
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None: self.rng = np.random.default_rng(seed)
        self.t = 0
        return self.see(), {}
    def see(self): return np.array([self.rng.normal()], np.float32)
    def step(self, action):
        self.t += 1
        return self.see(), 1.0, False, self.t >= 7, {}
gymnasium.register("Valve-v0", Valve)
'''
STOPPED = """
import os, signal
from rgpo.cli import run
from rgpo.runtime import runner
iterate = runner.iterate
def stopped(session):
    metrics = iterate(session)
    if session.iteration == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return metrics
runner.iterate = stopped
run.main()
"""
WORDS = ["task=gym", "task.env_id=valve:Valve-v0", "task.num_envs=2", "task.num_steps=16", "update.num_minibatches=2"]
WORDS += ["num_iterations=4", "eval_every=0", "update.num_epochs=1"]


def start(program: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run([sys.executable, *program, *WORDS], cwd=folder, capture_output=True, text=True, env=environment)


def test_a_run_with_a_generator_of_its_own_is_resumed_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "valve.py").write_text(ENVIRONMENT)
    first = start(["-c", STOPPED], tmp_path)
    assert first.returncode == 128 + signal.SIGTERM, first.stdout + first.stderr
    assert "valve:Valve-v0: resumed runs begin their episodes anew, not bit for bit" in first.stdout
    (tmp_path / "valve.py").write_text(ENVIRONMENT.replace("1.0", "2.0"))
    second = start(["-m", "rgpo.cli.run"], tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "attempt 2 resumes after iteration 2 of 4" in second.stdout
    assert "not bit for bit: 2 of 2 episodes begin anew, because" in second.stdout
    assert "changed since attempt 1: valve.py; iterations" in second.stdout

    run_dir = the_run(tmp_path / "results")
    facts = reader.read_json(run_dir / "provenance.json", Provenance)
    assert [entry["attempt"] for entry in facts["attempts"]] == [1, 2]
    digests = [entry["own_code"]["valve.py"] for entry in facts["attempts"]]
    assert digests[0] != digests[1] and facts["attempts"][0]["code"] == facts["attempts"][1]["code"] == facts["code"]
    rows = pd.read_parquet(run_dir / "metrics.parquet")
    assert rows["attempt"].tolist() == [1, 1, 2, 2]
    assert rows["return/num_restarted"].isna().tolist() == [True, True, False, True]

    (run,), problems = read_runs(run_dir.parent, (), 0.1, (), lambda read, folders, _: map(read, folders))
    assert not run.exact and not problems
    assert "1 resumed (1 of them not bit for bit: open episodes began anew)" in dict(page_lines([run]))["runs"][0]


def attempt(number: int, **changes: Any) -> Attempt:
    entry: Any = {"attempt": number, "code": "c", "own_code": {"a.py": "1"}, "versions": {"torch": "2.13.0"}}
    return entry | changes


def test_changes_are_named() -> None:
    assert provenance.changes([attempt(1)]) == provenance.changes([attempt(1), attempt(2)]) == ""
    now = attempt(3, code="d", own_code={"b.py": "1"}, versions={"torch": "2.14.0"})
    words = "the code of rgpo, a.py, b.py, torch (2.13.0, now 2.14.0)"
    assert provenance.changes([attempt(1), attempt(2), now]).startswith(f"changed since attempt 2: {words}; ")


def test_only_code_of_the_users_has_digests(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "my_digested.py").write_text("x = 1  # a comment\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_digested  # noqa: F401

    monkeypatch.setattr(own_code, "MAX_FILES", 10_000)  # this process may have imported many tests
    before = own_code.digests()
    assert "my_digested.py" in before and not any(name.startswith(("rgpo/", "torch/", "numpy/")) for name in before)
    (tmp_path / "my_digested.py").write_text("x = 1\n")
    assert own_code.digests() == before
    (tmp_path / "my_digested.py").write_text("x = 2\n")
    assert own_code.digests()["my_digested.py"] != before["my_digested.py"]
    del sys.modules["my_digested"]
