"""Rollouts by collect.c against the loop in numpy: the same bits, and the loop itself wherever they would not be."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from ctypes import Structure
from pathlib import Path

import mujoco
import numpy as np
import pytest

from rgpo.cli.build import build
from rgpo.cli.config import compose_jobs
from rgpo.control.accel import collector, layout, library
from rgpo.control.envs import native
from rgpo.control.policy import ControlPolicy, ControlRollout
from rgpo.control.task import Control
from rgpo.errors import NonFiniteError

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="compiling needs cc")
SOURCE = library.SOURCE.read_text()
CASES = {
    "halfcheetah": "task=halfcheetah",
    "hopper, v5": "task=hopper task.version=v5",
    "walker2d, wide, of relu": "task=walker2d task.policy.hidden_sizes=[256,128] task.policy.activation=relu",
    "ant, whose forces are observed": "task=ant",
    "ant, v5": "task=ant task.version=v5",
    "hopper, as it is": "task=hopper task.normalize_observation=false",
    "cartpole": "task=cartpole",
    "cartpole, normalized": "task=cartpole task.normalize_observation=true",
}


def make(words: str) -> tuple[Control, ControlPolicy]:
    (job,) = compose_jobs(["algo=ppo", "total_env_steps=100000", *words.split()], False, None)
    task, algorithm = build(job.config)
    assert isinstance(task, Control)
    task.setup(3, algorithm.requirements)
    return task, task.make_policy(5)


def play(words: str, monkeypatch: pytest.MonkeyPatch, in_c: bool, num_rollouts: int = 4) -> tuple[list[ControlRollout], dict]:
    """Rollouts and the state after them; the policy moves in between, as in training."""
    with monkeypatch.context() as patch:
        if not in_c:
            patch.setattr(collector, "make_collector", lambda *_: None)
        task, policy = make(words)
        rollouts = []
        for _ in range(num_rollouts):
            rollouts.append(task.collect(policy))
            policy.flat.add_(0.01)
    return rollouts, dict(task.state_dict())


def served(words: str) -> bool:
    task, policy = make(words)
    seen = np.empty((1, task.num_envs, task.env.observation_size), np.float32)
    noise = np.zeros((1, task.num_envs, policy.output_size), np.float32)
    normalizer = task.normalize if task.normalize_observation else None
    return collector.make_collector(task.env, policy, normalizer, seen, noise, policy.empty_actions(seen.shape[:2])) is not None


@pytest.mark.parametrize("num_envs", [1, 8])
@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_as_numpy(case: str, num_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"{CASES[case]} task.num_envs={num_envs} task.num_steps=300 update.num_minibatches=1"
    assert served(words)
    (ours, state), (theirs, expected) = (play(words, monkeypatch, in_c) for in_c in (True, False))
    for a, b in zip(ours, theirs, strict=True):
        for name in ("observation", "action", "reward", "terminated", "done", "value", "next_value"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
        assert a.metrics == b.metrics
    assert repr(state) == repr(expected)
    assert any(rollout.done.any() for rollout in theirs)  # new episodes are part of it


@pytest.mark.parametrize("num_threads", [2, 3, 16])
def test_threads_change_no_bit(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "task=hopper task.num_envs=8 task.num_steps=100 update.num_minibatches=1"
    found = []
    for count in (1, num_threads):
        monkeypatch.setattr(Control, "num_threads", count, raising=False)
        task, policy = make(words)
        task.env.use_threads(count)
        found.append((task.collect(policy).observation.tobytes(), repr(task.state_dict())))
    assert found[0] == found[1]


def test_a_rollout_is_one_call_per_episode() -> None:
    """Operations are counted, not timed: Python is entered at the ends of episodes only."""
    task, policy = make("task=hopper task.num_steps=2048")
    task.collect(policy)
    calls = []
    settle = task.env.settle
    task.env.settle = lambda count: calls.append(count) or settle(count)
    rollout = task.collect(policy)
    assert sum(calls) == 2048 and len(calls) <= rollout.done.sum() + 1


def other_tanh(functions: layout.Numpy) -> None:
    functions.tanh = library._loop(np.sinh, np.float32)


def other_product(functions: layout.Numpy) -> None:
    functions.sgemm = ctypes.cast(OTHER_PRODUCT, ctypes.c_void_p).value


@ctypes.CFUNCTYPE(None)
def OTHER_PRODUCT() -> None:
    """Computes nothing."""


@pytest.mark.parametrize("spoil", [other_tanh, other_product])
def test_functions_that_compute_otherwise_are_not_used(
    spoil: Callable[[layout.Numpy], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, functions = "task=hopper task.num_envs=2 task.num_steps=64", library.numpy_functions()
    assert functions is not None and served(words)
    copy = layout.Numpy.from_buffer_copy(functions)
    spoil(copy)
    monkeypatch.setattr(collector, "_exact", {})
    monkeypatch.setattr(collector, "numpy_functions", lambda: copy)
    assert not served(words)


@pytest.mark.parametrize(
    "words",
    [
        "task=gym task.env_id=Pendulum-v1",
        "task=hopper task.backend=gymnasium",
        "task=hopper task.action_bounds=rescale",
        "task=gym task.env_id=Acrobot-v1",
        "task=hopper task.policy.hidden_sizes=[64,1]",  # products with a vector
    ],
)
def test_everything_else_is_stepped_by_the_loop(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector.Collector, "__call__", lambda *_: pytest.fail("stepped in C"))
    task, policy = make(f"{words} task.num_envs=2 task.num_steps=64")
    assert task.collect(policy).reward.shape == (64, 2)


def test_a_callback_in_mujoco_is_called_where_its_errors_can_be_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    def passive(model: object, data: object) -> None:
        raise RuntimeError("of the user's callback")

    task, policy = make("task=hopper task.num_envs=2 task.num_steps=64")
    mujoco.set_mjcb_passive(passive)
    try:
        with pytest.raises(RuntimeError, match="of the user's callback"):
            task.collect(policy)
    finally:
        mujoco.set_mjcb_passive(None)


def test_a_policy_that_became_nan_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    task, policy = make("task=halfcheetah task.num_steps=64")
    policy.flat.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="policy's actions became NaN or infinite at step 0"):
        task.collect(policy)


def load(cache: Path, compiler: str) -> str:
    """True or False as a new process prints it, for a library that it has or has not, and its standard error."""
    program = "from rgpo.control.accel.library import library; print(library() is not None)"
    environment = {"CC": compiler, "RGPO_CACHE": str(cache), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    return done.stdout + done.stderr


def test_without_a_compiler_the_loop_is_used(tmp_path: Path) -> None:
    assert load(tmp_path, "no-such-compiler") == "False\n"


@pytest.mark.parametrize("compiler", ["false", "true", "cc -ffast-math", "cc -E", 'cc "-O1'])
def test_a_compiler_that_cannot_be_used_is_named(compiler: str, tmp_path: Path) -> None:
    said = load(tmp_path, compiler)
    assert said.startswith("False\n") and f"CC={compiler}: no library came of it (" in said and "Traceback" not in said


def test_code_is_compiled_once_and_damage_is_noticed(tmp_path: Path) -> None:
    assert load(tmp_path, "cc -O1") == "True\n"
    (file,) = tmp_path.rglob("collect.so")
    before = file.stat().st_mtime_ns
    assert load(tmp_path, "cc -O1") == "True\n" and file.stat().st_mtime_ns == before
    file.write_bytes(b"damaged")
    assert "damaged" in load(tmp_path, "cc -O1")
    (file,) = tmp_path.rglob("collect.so")
    assert file.read_bytes() != b"damaged"


@pytest.mark.parametrize("name", ["Function", "Numpy", "Layer", "Network", "Normalizer", "Body", "Mujoco", "Cart", "Job"])
def test_structs_have_the_same_fields_in_c_and_in_python(name: str) -> None:
    body = re.sub(r"/\*.*?\*/", "", SOURCE.split(f"}} {name};")[0].rpartition("typedef struct {")[2], flags=re.DOTALL)
    declared = re.findall(r"(\w+)\s*(?=[,;]|\)\()", re.sub(r"\)\([^)]*\)", ")()", body))
    struct = getattr(layout, name, None) or getattr(native, name)
    assert issubclass(struct, Structure)
    assert declared == [field for field, _ in struct._fields_]
