"""Environments that return, raise or hold something odd: a named error, or finite numbers to the end of the run."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rgpo.control.envs.gymnasium_env import GymnasiumVector
from rgpo.control.mlp import MLP
from rgpo.control.task import Control
from rgpo.core.advantages import GAE
from rgpo.core.gates import Clip, Open
from rgpo.core.kl_penalty import NoPenalty
from rgpo.core.surrogate import Detached
from rgpo.errors import EnvironmentFault, NonFiniteError
from rgpo.learning.algorithm import GateAlgorithm
from rgpo.learning.sgd import SGD
from rgpo.learning.types import Metrics

LATE = 36  # steps before which every environment behaves, more than the check takes


class Odd(gymnasium.Env):
    """Three observation numbers; what a kind changes, it changes after LATE steps."""

    def __init__(self, kind: str = "") -> None:
        if kind == "constructor raises":
            raise OSError(2, "No such file", "simulator.bin")
        self.kind, self.total = kind, 0
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = spaces.Discrete(1 if kind == "one action" else 2)

    def observe(self) -> Any:
        kinds = {
            "constant": np.ones(3),
            "list": [0.0, 1.0, 2.0],
            "short list": [[0.0], [1.0, 2.0]],
            "scalar": 1.0,
            "row": np.ones((1, 3)),
        }
        kinds |= {"matrix": np.ones((3, 3)), "text": np.array(["1", "2", "3"]), "complex": np.ones(3) * 1j, "none": None}
        kinds |= {"huge": np.full(3, 1e30), "largest": np.full(3, 1e200), "nan": np.array([0.0, math.nan, 0.0])}
        return kinds[self.kind] if self.kind in kinds and self.total >= LATE else self.np_random.standard_normal(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.elapsed = 0
        if self.kind == "bare reset" and self.total >= LATE:
            return self.observe()
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.elapsed, self.total = self.elapsed + 1, self.total + 1
        late = self.total >= LATE
        ended = self.elapsed >= {"one step": 1}.get(self.kind, 10)
        observation = np.full(3, math.nan) if self.kind.startswith("nan at the ") and ended and late else self.observe()
        rewards: dict[str, Any] = {
            "nan reward": math.nan,
            "infinite reward": -math.inf,
            "no reward": None,
            "array reward": np.ones(1),
        }
        rewards |= {"text reward": "1", "complex reward": 1j, "largest reward": 1e300, "zero reward": 0.0, "huge reward": 1e30}
        reward = rewards[self.kind] if self.kind in rewards and late else 1.0
        if late and self.kind in RAISES:
            RAISES[self.kind]()
        flags = (False, ended) if self.kind == "nan at the cut" else ("no" if late and self.kind == "text flag" else ended, False)
        info: Any = None if late and self.kind == "no info" else {}
        returned = observation, reward, *flags, info
        return returned[:4] if late and self.kind == "four values" else returned

    def close(self) -> None:
        if self.kind == "close raises":
            raise RuntimeError("close is broken")
        if self.kind == "close exits":
            sys.exit(3)


class Strange(BaseException):
    """No Exception."""


def fail(error: BaseException) -> None:
    raise error


def fail_not(_: object) -> None:
    """Return as usual."""


RAISES: dict[str, Callable[[], None]] = {
    "raises": lambda: fail(ValueError("the simulator is broken")),
    "raises OSError": lambda: fail(OSError(2, "No such file", "simulator.bin")),
    "exits": lambda: sys.exit("bye"),
    "raises BaseException": lambda: fail(Strange("odd")),
    "moves": lambda: os.chdir("/"),
    "switches gradients off": lambda: fail_not(torch.set_grad_enabled(False)),
}
gymnasium.register("Odd-v0", Odd)


def train(kind: str, normalize: bool = False, num_evaluations: int = 0) -> Metrics:
    """Six iterations of 16 steps of two environments; the last one's metrics."""
    policy = MLP(hidden_sizes=(8,), activation="tanh", orthogonal_init=True, policy_gain=0.01, value_gain=1.0, log_std_init=0.0)
    task = Control(
        env_id="Odd-v0",
        policy=policy,
        version=None,
        num_envs=2,
        num_steps=16,
        normalize_observation=normalize,
        normalize_reward=normalize,
        clip_observation=10.0,
        clip_reward=10.0,
        num_eval_episodes=3,
        backend="auto",
        env_kwargs={"kind": kind},
    )
    update = SGD(
        clip_jointly=True,
        num_epochs=2,
        num_minibatches=2,
        lr=1e-3,
        anneal_lr=False,
        adam_eps=1e-5,
        max_grad_norm=0.5,
        vf_coef=0.5,
        ent_coef=0.0,
        value_clip=0.2,
        compile=False,
    )
    algorithm = GateAlgorithm(
        gate=Clip(eps_low=0.2, eps_high=0.2, cap=None),
        ref_gate=Open(),
        gate_combination=Detached(),
        advantage=GAE(gamma=0.99, lam=0.95, bootstrap_truncated=True, normalize="minibatch"),
        penalty=NoPenalty(),
        update=update,
    )
    task.check()
    task.setup(0, algorithm.requirements)
    learner = task.make_policy(0)
    algorithm.setup(learner, 6, 0)
    metrics: Metrics = {}
    for _ in range(6):
        metrics = algorithm.learn(learner, task.collect(learner), False)
        for _ in range(num_evaluations):
            task.evaluate(learner)
    assert learner.flat.isfinite().all()
    return metrics


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", ["", "constant", "list", "one step", "one action", "zero reward", "huge", "nan at the end"])
def test_what_can_be_learned_from_gives_finite_numbers(kind: str, normalize: bool) -> None:
    metrics = train(kind, normalize)
    for name in ("kl/old_exact", "loss/policy", "loss/value", "grad/norm_max", "policy/entropy", "ratio/max"):
        assert math.isfinite(metrics[name]), name


def test_huge_rewards_can_be_learned_from_when_normalized() -> None:
    assert math.isfinite(train("huge reward", normalize=True)["loss/value"])


SHAPE = r"task\.env_id=Odd-v0: an observation must be numbers of shape \(3,\), but the environment returned "
REWARD = r"task\.env_id=Odd-v0: the reward must be a number, but the environment returned "
NAMED: dict[str, tuple[type[Exception], str]] = {
    "matrix": (EnvironmentFault, SHAPE + r"an array of shape \(3, 3\)"),
    "row": (EnvironmentFault, SHAPE + r"an array of shape \(1, 3\)"),
    "scalar": (EnvironmentFault, SHAPE + r"1\.0\."),
    "short list": (EnvironmentFault, SHAPE + r"\[\[0\.0\], \[1\.0, 2\.0\]\]"),
    "text": (EnvironmentFault, SHAPE + r"an array of shape \(3,\) and type <U1"),
    "complex": (EnvironmentFault, SHAPE + r"an array of shape \(3,\) and type complex128"),
    "none": (EnvironmentFault, SHAPE + "None"),
    "bare reset": (EnvironmentFault, r"reset\(\) must return an observation and a dict"),
    "four values": (EnvironmentFault, r"step\(\) must return observation, reward, terminated, truncated and a dict"),
    "no reward": (EnvironmentFault, REWARD + "None"),
    "array reward": (EnvironmentFault, REWARD + r"an array of shape \(1,\)"),
    "text reward": (EnvironmentFault, REWARD + "'1'"),
    "complex reward": (EnvironmentFault, REWARD + "1j"),
    "nan": (NonFiniteError, r"^observation of Odd-v0 became NaN, infinite or too large for float32 at step 4 of the rollout\.$"),
    "nan at the cut": (
        NonFiniteError,
        r"^last observation of an episode of Odd-v0 became NaN, infinite or too large for float32 at step 7 of the rollout",
    ),
    "text flag": (EnvironmentFault, r"terminated must be true or false, but the environment returned 'no'"),
    "no info": (EnvironmentFault, r"step\(\) must return observation, reward, terminated, truncated and a dict"),
    "nan reward": (NonFiniteError, r"^reward of Odd-v0 became NaN or infinite at step 3 of the rollout"),
    "infinite reward": (NonFiniteError, r"^reward of Odd-v0 became NaN or infinite at step 3 of the rollout"),
    "largest reward": (NonFiniteError, r"scale the rewards"),
    "raises": (
        EnvironmentFault,
        r"^task\.env_id=Odd-v0: the environment raised ValueError: the simulator is broken in step\(\)\.$",
    ),
    "raises OSError": (EnvironmentFault, r"raised FileNotFoundError: .*simulator\.bin.* in step\(\)"),
    "raises BaseException": (EnvironmentFault, r"task\.env_id=Odd-v0: the environment raised Strange: odd in step\(\)\.$"),
    "exits": (EnvironmentFault, r"task\.env_id=Odd-v0: the environment called sys\.exit\('bye'\) in step\(\)"),
    "constructor raises": (
        EnvironmentFault,
        r"task\.env_id=Odd-v0: cannot be made, its constructor failed \(FileNotFoundError: ",
    ),
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_cannot_be_learned_from_is_named(kind: str) -> None:
    error, words = NAMED[kind]
    with pytest.raises(error, match=words):
        train(kind)


@pytest.mark.parametrize(("kind", "what"), [("largest", "observations"), ("largest reward", "rewards")])
def test_numbers_without_a_finite_square_are_not_normalized_to_zero(kind: str, what: str) -> None:
    """The case that must fail: their running variance is infinite, and every later number would be 0."""
    with pytest.raises(NonFiniteError, match=rf"{what} of Odd-v0 are too large for the running variance"):
        train(kind, normalize=True)


def test_an_evaluation_with_a_reward_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="reward of Odd-v0 became NaN or infinite in an evaluation episode"):
        train("nan reward", num_evaluations=2)


@pytest.mark.parametrize("kind", ["moves", "switches gradients off"])
def test_what_an_environment_changes_of_the_process_is_put_back(kind: str) -> None:
    here = Path.cwd()
    assert math.isfinite(train(kind, num_evaluations=1)["loss/value"])
    assert Path.cwd() == here and torch.is_grad_enabled()


def test_an_environment_that_exits_when_it_is_closed_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"task\.env_id=Odd-v0: close\(\) called sys\.exit\(3\)"):
        train("close exits")


def test_an_environment_that_cannot_be_closed_is_a_warning() -> None:
    env = GymnasiumVector("Odd-v0", 1, kwargs={"kind": "close raises"})
    with pytest.warns(UserWarning, match=r"task\.env_id=Odd-v0: close\(\) failed \(RuntimeError: close is broken\)"):
        env.close()


def test_an_error_without_a_message_is_described_by_its_place() -> None:
    from rgpo.errors import described

    try:
        raise AssertionError
    except AssertionError as error:
        assert re.fullmatch(r"AssertionError in test_misbehaving_environments\.py, line \d+", described(error))
    assert described(ValueError("of the user's\nand more")) == "ValueError: of the user's"
