"""A run that was killed resumes with the data and models that it began with, or not at all."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from cli import rgpo_run, start, the_run
from pair_files import line, write
from test_language_cli import words
from test_resume import wait_for_iteration
from tiny_models import write_model, write_reward_model


def test_a_resumed_run_refuses_changed_inputs_by_name(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_reward_model(tmp_path / "reward")
    data = write(tmp_path / "hh.jsonl.gz", *[line(f"\n\nHuman: what is {i}?") for i in range(60)])
    command = words(tmp_path, "algo=grpo", "task.lora.rank=2", "num_iterations=6")
    process = start(command, tmp_path)
    wait_for_iteration(tmp_path / "results", 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = json.loads((the_run(tmp_path / "results") / "state.json").read_text())["iteration"]

    changes = {
        "data": (data, lambda: write(data, *[line(f"\n\nHuman: what is {i}?") for i in range(61)])),
        "model": (tmp_path / "model" / "model.safetensors", lambda: write_model(tmp_path / "model", seed=5)),
        "reward_model": (tmp_path / "reward" / "model.safetensors", lambda: write_reward_model(tmp_path / "reward", seed=5)),
    }
    for key, (file, change) in changes.items():
        original = file.read_bytes()
        change()
        said = rgpo_run(command, tmp_path, code=2)
        assert f"task.source.{key}=" in said and "when the checkpoint was saved; restore it, or use force=true." in said, said
        assert "Traceback" not in said
        file.write_bytes(original)
    rgpo_run(command, tmp_path)
    state = json.loads((the_run(tmp_path / "results") / "state.json").read_text())
    assert state["status"] == "completed" and before < state["iteration"] == 6
