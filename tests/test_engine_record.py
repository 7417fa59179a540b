"""Parts of an objective from words, and run folders that engines write; no engine is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rgpo
from rgpo import gates
from rgpo.core.kl_penalty import AdaptivePenalty, NoPenalty
from rgpo.engines import verl_record
from rgpo.engines.parts import GateParts, compose_parts, refuse_ignored, warn_untried
from rgpo.engines.record import RunRecord
from rgpo.errors import ConfigError
from rgpo.report.cli import main as report

SIGMOID = GateParts(gate=gates.Sigmoid(sharpness=10.0))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgpo.engines.record.metadata.version", lambda _: "1.16.0")


def record(folder: Path, **change: Any) -> RunRecord:
    options: dict[str, Any] = {"engine": "trl", "task": "words", "algo": "rgpo", "seed": 1, "settings": {"learning_rate": 1e-3}}
    options |= {"num_iterations": 3, "parts": SIGMOID, "results_dir": str(folder)}
    return RunRecord(**(options | change))


def write(run: RunRecord, rows: int = 3, start: int = 0) -> None:
    run.start(start)
    for i in range(start, rows):
        run.log(10 * (i + 1), {"reward/train_mean": i, "kl/old_k3": 0.01 * i, "unknown/metric": 1.0})


def test_words_are_those_of_rgpo_run() -> None:
    parts = compose_parts("algo=rgpo gate.sharpness=20", kind="language")
    assert parts.gate == gates.Sigmoid(sharpness=20.0)
    assert isinstance(parts.ref_gate, gates.Budget) and isinstance(parts.penalty, AdaptivePenalty)
    assert parts.reference_key == "gate@ref_gate"
    alone = compose_parts(["gate=clip"], kind="control")
    assert isinstance(alone.penalty, NoPenalty) and alone.reference_key == ""
    assert compose_parts("gate=clip gate_combination=geometric", kind="language").reference_key == "gate_combination"


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("", "parts: names no gate"),
        ("penalty=fixed", "penalty=fixed: names no gate"),
        ("gate=clip update.lr=1e-3", r"update.lr=1e-3: is the trainer's own to set"),
        ("gate=clip task=hopper", "task=hopper: is the trainer's own to set"),
        ("gate=clipp", "is not an option of the group gate. Did you mean clip"),
        ("gate=clip gate.eps_low=2", "gate.eps_low=2"),
        ("gate=clip,log", "is a sweep"),
        ("algo=dpo", "gate=null: algo=dpo has no gate"),
        ("gate=clip 'gate", "cannot be split into words"),
    ],
)
def test_words_are_refused_with_a_remedy(words: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compose_parts(words, kind="language")


def test_settings_that_a_gate_replaces() -> None:
    with pytest.raises(ConfigError, match=r"clip=0\.1: would be ignored, because the gate takes its place; set gate\.eps_low\."):
        refuse_ignored(type("Args", (), {"clip": 0.1})(), ("clip",), {"clip": 0.2}, "set gate.eps_low")
    with pytest.warns(UserWarning, match="pytest .*: rgpo.engines was tried with 0.0.1"):
        warn_untried("pytest", ("0.0.1",))


def test_state_of_gate_and_penalty() -> None:
    words = "gate=adaptive_sign_aware penalty=adaptive penalty.anchor=old penalty.estimator=k3"
    parts, other = (compose_parts(words, kind="language") for _ in range(2))
    parts.observe(10.0, 0.0)
    assert parts.state_dict() != other.state_dict()
    other.load_state_dict(parts.state_dict())
    assert parts.state_dict() == other.state_dict()


def test_a_run_is_read_by_api_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        run = record(tmp_path, seed=seed)
        write(run)
        assert run.finish() == run.run_dir
    write(own := record(tmp_path, algo="dapo", parts=None))
    own.finish()
    found = rgpo.load(run.run_dir)
    assert found.status == "completed" and list(found.metrics["reward/train_mean"]) == [0, 1, 2]
    assert list(found.metrics["env_steps"]) == [10, 20, 30]
    assert found.identity["algo"] == "rgpo" and found.identity["gate"] == "Sigmoid"
    assert found.config["gate"] == {"_target_": "rgpo.gates.Sigmoid", "scale": "none", "sharpness": 10.0}
    assert report([f"results_dir={tmp_path}", "experiment=engines", f"out={tmp_path / 'report'}", "format=svg"]) == 0
    printed = capsys.readouterr().out
    page = next((tmp_path / "report").rglob("index.html")).read_text()
    assert "words" in page and "dapo" in page and "left out" not in printed


def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    first = record(tmp_path)
    write(first, rows=2)
    first.stop("killed")
    assert rgpo.load(first.run_dir).status == "interrupted"
    again = record(tmp_path)
    write(again, rows=3, start=1)
    again.finish()
    metrics = rgpo.load(again.run_dir).metrics
    assert list(metrics["iteration"]) == [1, 2, 3] and list(metrics["attempt"]) == [1, 2, 2]
    with pytest.raises(ConfigError, match="the run is complete; use force=True"):
        record(tmp_path).start()
    record(tmp_path, force=True).start()


def test_names_and_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task=a/b: must consist of"):
        record(tmp_path, task="a/b")
    with pytest.raises(ConfigError, match=r"settings\.model=.*: is not a plain value"):
        record(tmp_path, settings={"model": object()})
    assert record(tmp_path).run_dir != record(tmp_path, settings={"learning_rate": 2e-3}).run_dir
    assert record(tmp_path).run_dir == record(tmp_path, num_iterations=9).run_dir


def test_a_log_of_verl_becomes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "gsm8k.jsonl"
    steps = [{"actor/pg_loss": 0.1, "actor/kl/old_k3": 0.01 * i, "critic/score/mean": float(i), "perf/x": 1} for i in range(3)]
    lines = [{"step": 0, "data": {"val-core/acc": 0.2}}, *({"step": i + 1, "data": row} for i, row in enumerate(steps))]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [str(log), "task=gsm8k", "algo=rgpo", "seed=3", f"results_dir={tmp_path / 'results'}"]
    assert verl_record.main(words) == 0
    found = rgpo.load(capsys.readouterr().out.strip())
    assert list(found.metrics["reward/train_mean"]) == [0, 1, 2] and found.identity["seed"] == 3
    assert list(found.metrics["kl/old_k3"]) == pytest.approx([0, 0.01, 0.02])


@pytest.mark.parametrize(
    "text, words, sentence",
    [
        ("", ["task=a", "algo=b", "seed=1"], "has no training steps"),
        ("{}\n", ["task=a", "algo=b", "seed=1"], "line 1 is no step"),
        ("", ["task=a"], "give FILE.jsonl task=NAME"),
        ("", ["task=a", "algo=b", "seed=x"], "give FILE.jsonl task=NAME"),
        (None, ["task=a", "algo=b", "seed=1"], "cannot be read"),
    ],
)
def test_a_log_that_is_none(
    text: str | None, words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    if text is not None:
        log.write_text(text)
    assert verl_record.main([str(log), *words]) == 2
    assert sentence in capsys.readouterr().err
