"""Plans of make run and make reproduce-*: commands, finished runs, and the expected time, printed before anything starts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from experiments import reproduce
from rgpo.cli.config_dir import group_options
from rgpo.runtime import run_folder

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("target", ["run", "quick", "language", "theory"])
def test_a_plan_names_its_commands_and_runs_nothing(
    target: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("started"))
    assert reproduce.main([target, "--plan", "--results", "again"]) == 0
    first, *commands = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{target}: about ") and "CPU-" in first and len(commands) >= 1
    assert not any(here.iterdir())


def test_run_and_quick_keep_their_promises(here: Path) -> None:
    assert sum(step.seconds for step in reproduce.plan("run", "results")) < 5 * 60
    assert sum(step.seconds for step in reproduce.plan("quick", "results")) < 2 * 15 * 60


def test_every_experiment_belongs_to_one_target() -> None:
    both = [*reproduce.experiments(language=True), *reproduce.experiments(language=False)]
    assert sorted([*both, *reproduce.NO_EVIDENCE]) == sorted(group_options("experiment"))
    assert "rlhf_embedded" in reproduce.experiments(language=True)


def test_finished_runs_cost_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["experiment=first_evidence", "results_dir=again"]
    before = reproduce.sweep(words)
    assert "hydra/launcher=joblib" in before.command
    monkeypatch.setattr(run_folder, "status", lambda folder: "completed" if "hopper" in folder.name else "missing")
    assert 0.3 * before.seconds < reproduce.sweep(words).seconds < 0.5 * before.seconds
    monkeypatch.setattr(run_folder, "status", lambda folder: "completed")
    assert reproduce.sweep(words).seconds == 0


def test_a_failing_command_ends_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter([0, 1, 3, 0])
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], next(codes)))
    steps = [reproduce.Step([program], 1.0) for program in ("rgpo-run", "rgpo-report", "rgpo-run", "rgpo-run")]
    assert reproduce.run(steps) == 3 and next(codes) == 0  # a report that left something out is no failure


def test_make_calls_them() -> None:
    text = (ROOT / "Makefile").read_text()
    assert "-m experiments.reproduce run" in text
    for target in ("quick", "control", "language", "theory"):
        assert f"reproduce-{target}" in text and f"make reproduce-{target}" in (ROOT / "docs" / "reproduce.md").read_text()
