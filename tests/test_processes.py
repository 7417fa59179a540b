"""One language model in two processes over gloo: what one process computes, one writer, and every way it can end."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli import checkpoint_of, parameters, rgpo_run, rows, the_run
from pair_files import line, write
from process_worker import CASES, measure
from tiny_models import write_model, write_reward_model

from rgpo import distributed
from rgpo.cli import run
from rgpo.cli.checks import check_task
from rgpo.cli.config import compose_jobs
from rgpo.errors import ConfigError

HERE = Path(__file__).parent
RUN = ["task=qwen_rlhf", "scale=paper", "algo=ppo_kl", "task.source.dtype=float32", "task.source.reward_dtype=float32"]
RUN += [
    "task.source.device=cpu",
    "task.source.heldout_share=0.3",
    "task.num_prompts=3",
    "task.group_size=4",
    "task.max_new_tokens=6",
]
RUN += ["task.micro_batch_size=2", "task.num_eval_prompts=3", "task.num_kl_tokens=16", "update.lr=1e-3", "checkpoint_every_s=0"]
LORA = ["task.lora.rank=2", "task.parallel=fsdp", "num_iterations=3"]
RUN += ["num_iterations=4", "eval_every=2", "gradvar_every=3", "task.gradient_checkpointing=true"]


def start_two(command: list[str], cwd: Path) -> list[subprocess.Popen]:
    """Two processes with the variables that torchrun would set."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    each = [env | {"RANK": str(k), "LOCAL_RANK": str(k)} for k in range(2)]
    return [subprocess.Popen([sys.executable, *command], cwd=cwd, env=one, **pipes) for one in each]


def run_two(command: list[str], cwd: Path, code: int = 0) -> list[str]:
    """Output of each of two processes; both must end with the exit code."""
    both = start_two(command, cwd)
    outputs = ["".join(process.communicate(timeout=300)) for process in both]
    assert [process.returncode for process in both] == [code, code], outputs
    return outputs


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    write_model(folder / "model"), write_reward_model(folder / "reward")
    write(folder / "data.jsonl", *(line(f"\n\nHuman: what is {i}?") for i in range(30)))
    return folder


@pytest.fixture(scope="module")
def words(parts: Path) -> list[str]:
    places = {"model": "model", "reward_model": "reward", "data": "data.jsonl"}
    return [*RUN, *(f"task.source.{key}={parts / name}" for key, name in places.items())]


@pytest.fixture(scope="module")
def pair(words: list[str], parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two processes that measure, and then run to the end, to a signal and to a failure."""
    folder = tmp_path_factory.mktemp("pair")
    full = [*words, "task.lora=null"]
    runs = [
        [*full, "results_dir=whole"],
        [*full, "results_dir=full", "task.parallel=fsdp"],
        [*words, "results_dir=lora", *LORA],
        [*words, "results_dir=stopped"],
        [*words, "results_dir=raised"],
    ]
    (folder / "jobs.json").write_text(json.dumps({"checkpoint": str(parts / "model"), "runs": runs}))
    first, second = run_two([str(HERE / "process_worker.py"), str(folder)], folder, code=1)
    (folder / "first").write_text(first), (folder / "second").write_text(second)
    return folder


def same(one: Path, other: Path) -> None:
    """Equal metrics and weights but for rounding, which three iterations of Adam, a tail index and a variance make larger."""
    found, wanted = rows(one), rows(other)
    names = [name for name in wanted if wanted[name].dtype.kind == "f"]
    assert len(names) > 50
    np.testing.assert_allclose(found[names], wanted[names], rtol=2e-3, atol=2e-3)
    assert parameters(one).keys() == parameters(other).keys()
    for name, x in parameters(one).items():
        torch.testing.assert_close(x, parameters(other)[name], rtol=2e-3, atol=2e-3)


def test_two_processes_find_what_one_finds(parts: Path, pair: Path) -> None:
    """Completions, log-probabilities, KL, loss, gradients, Fisher products, to 1e-6."""
    found = torch.load(pair / "found.pt")
    for name, case in CASES.items():
        alone = measure(str(parts / "model"), **case)
        assert alone["gradient"].norm() > 0.1
        for how in ("ddp", "fsdp"):
            numbers = found[f"{name} {how}"]
            assert len(numbers) >= 11
            for key, x in numbers.items():
                gap = (x.double() - alone[key].double()).abs().max().item()
                scale = max(1.0, alone[key].abs().max().item())
                assert x.shape == alone[key].shape and gap <= 1e-6 * scale, (name, how, key, gap)


def test_sharded_layers_train_as_whole_ones(words: list[str], pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same(the_run(pair / "full"), the_run(pair / "whole"))
    monkeypatch.chdir(pair)
    assert run._main([*words, "results_dir=alone", *LORA]) == 0
    same(the_run(pair / "lora"), the_run(pair / "alone"))


def test_a_killed_run_goes_on_in_two_processes_bit_for_bit_and_in_one_to_rounding(
    words: list[str], pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = [*words, "task.lora=null", "results_dir=killed"]
    (tmp_path / "jobs.json").write_text(json.dumps({"checkpoint": None, "runs": [full]}))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(HERE / "process_worker.py")]
    killed = subprocess.run([sys.executable, *torchrun, str(tmp_path)], cwd=tmp_path, text=True, capture_output=True, timeout=300)
    why = "rank 1 exited without an error message (killed or out of memory?)"
    assert killed.returncode != 0
    assert killed.stderr.count("rgpo-run: ") == 1 and f"rgpo-run: {why}" in killed.stderr, killed.stderr
    state = json.loads((the_run(tmp_path / "killed") / "state.json").read_text())
    assert state["status"] == "failed" and state["reason"].startswith(why) and state["iteration"] == 2
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")

    resumed, _ = run_two(["-m", "rgpo.cli.run", *full], tmp_path)
    assert "attempt 2 resumes after iteration 2" in resumed and "up to rounding" not in resumed
    run_dir, wanted = the_run(tmp_path / "killed"), the_run(pair / "whole")
    pd.testing.assert_frame_equal(rows(run_dir), rows(wanted), check_exact=True)
    assert all(torch.equal(x, parameters(wanted)[name]) for name, x in parameters(run_dir).items())

    monkeypatch.chdir(tmp_path)
    assert run._main([*full[:-1], "results_dir=alone"]) == 0
    assert (
        "2 process(es) wrote the checkpoint, with 1 thread(s) each: the resumed run is equal up to rounding"
        in capsys.readouterr().out
    )
    same(the_run(tmp_path / "alone"), wanted)


def test_a_signal_to_one_stops_both_after_the_same_iteration(pair: Path) -> None:
    run_dir = the_run(pair / "stopped")
    state = json.loads((run_dir / "state.json").read_text())
    assert state["status"] == "interrupted" and state["iteration"] == 3
    assert checkpoint_of(run_dir)["iteration"] == 3
    for k in range(2):
        assert json.loads((pair / f"codes{k}.json").read_text()) == [0, 0, 0, 143, 1]


def test_a_process_that_raises_ends_the_run_with_one_sentence(pair: Path) -> None:
    why = "rank 1: ValueError: boom"
    said = [(pair / name).read_text() for name in ("first", "second")]
    assert "rgpo-run: " not in said[0] and f"rgpo-run: {why}\n" in said[1]
    assert "in each of 2 processes" in said[0] and "results in" not in said[1]  # rank 0 alone prints progress
    run_dir = the_run(pair / "raised")
    state = json.loads((run_dir / "state.json").read_text())
    assert state["status"] == "failed" and state["reason"] == why
    assert checkpoint_of(run_dir)["iteration"] == 2
    assert "boom" in (run_dir / "error.txt").read_text()


@pytest.mark.parametrize(
    ("size", "rest", "sentence"),
    [
        ("2", ["task=cartpole"], "WORLD_SIZE=2: is set but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not"),
        ("two", ["task=cartpole"], "WORLD_SIZE=two: must be a positive whole number"),
    ],
)
def test_a_world_size_without_a_launcher_is_refused(
    size: str, rest: list[str], sentence: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    for name in distributed.REQUIRED_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert sentence in rgpo_run(rest, tmp_path, code=2)


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        (["task=cartpole"], "WORLD_SIZE=2: control tasks run in one process"),
        ([*RUN, "task.num_prompts=1"], "task.num_prompts=1: leaves some of 2 processes without a prompt"),
        (["task=qwen_rlhf", "task.num_eval_prompts=1"], "task.num_eval_prompts=1: leaves some of 2 processes"),
        (["task=qwen_rlhf", "algo=trpo", "task.parallel=fsdp"], "task.parallel=fsdp: this update needs whole parameters"),
        (["task=qwen_rlhf", "task.parallel=none"], "task.parallel=none: must be ddp or fsdp"),
    ],
)
def test_what_many_processes_cannot_run_is_refused(rest: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_task.cache_clear()
    with pytest.raises(ConfigError, match=sentence):
        compose_jobs(rest, False, None)


def test_local_slices_are_whole_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    items = ["a", "a", "b", "b", "b", "c"]
    for size, wanted in ((1, ["aabbbc"]), (2, ["aa", "bbbc"]), (3, ["aa", "bbb", "c"]), (6, list("aabbbc"))):
        monkeypatch.setenv("WORLD_SIZE", str(size))
        got = []
        for k in range(size):
            monkeypatch.setenv("RANK", str(k))
            got.append("".join(items[distributed.local_slice(items)]))
        assert got == wanted
