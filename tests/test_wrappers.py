"""Wrappers of gymnasium and of the user, and refusals of those that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import rgpo
from rgpo.control.late import Wrapper
from rgpo.errors import ConfigError

SMALL = ["task=gym", "task.num_envs=2", "task.num_steps=32", "update.num_minibatches=4", "task.num_eval_episodes=1"]


class Halved(gymnasium.ActionWrapper):
    """Of the user's own."""

    def __init__(self, env: Any, factor: float) -> None:
        super().__init__(env)
        self.factor = factor

    def action(self, action: Any) -> Any:
        return action * self.factor


def test_a_list_is_a_tuple_where_a_wrapper_takes_one() -> None:
    class Picture(gymnasium.Env):
        observation_space, action_space = spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2)

    sized = Wrapper(gymnasium.wrappers.ReshapeObservation, {"shape": [64, 3]})(Picture())
    assert sized.observation_space.shape == (64, 3)


class NoWrapper:
    """Of another kind."""

    def __init__(self, env: Any) -> None:
        self.env = env


def function(env: Any) -> Any:
    """No class."""
    return env


class Number(gymnasium.Wrapper):
    """Becomes something else."""

    def __new__(cls, env: Any) -> Any:
        return 5


WRAPPERS = "task.wrappers=[{_target_:gymnasium.wrappers.ClipAction},{_target_:test_wrappers.Halved,factor:0.5}]"


def test_wrappers_of_gymnasium_and_of_the_user(tmp_path: Path) -> None:
    run = rgpo.run("algo=ppo", *SMALL, "task.env_id=Pendulum-v1", WRAPPERS, "num_iterations=1", f"results_dir={tmp_path}")
    env = run.task.make_env(1)
    inner = env._envs[0]
    assert isinstance(inner, Halved) and isinstance(inner.env, gymnasium.wrappers.ClipAction) and inner.factor == 0.5


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("{_target_:gymnasium.wrappers.ClipActions}", "cannot be imported"),
        ("{_target_:gymnasium.spaces.Box,low:0,high:1}", "Wrapper"),
        ("{_target_:os.system,command:ls}", "is not a module of rgpo"),
        ("{_target_:gymnasium.wrappers.ClipAction,speed:3}", "is not a known key"),
        ("{_target_:gymnasium.wrappers.TimeLimit}", "max_episode_steps: is missing"),
        ("{_target_:gymnasium.wrappers.RescaleAction,min_action:0,max_action:1}", "cannot wrap"),
        ("{_target_:gymnasium.make,id:CartPole-v1}", "gymnasium"),
        (
            "{_target_:test_wrappers.NoWrapper}",
            r"task\.wrappers\[0\]\._target_=test_wrappers\.NoWrapper: is no gymnasium\.Wrapper",
        ),
        ("{_target_:test_wrappers.function}", r"is no gymnasium\.Wrapper; give the name of a class that is"),
        ("{_target_:gymnasium.wrappers.vector.RecordEpisodeStatistics}", r"is no gymnasium\.Wrapper"),
        ("{_target_:test_wrappers.Number}", r"Number\(\) returned int, which is no environment; return one\."),
        ("{_target_:gymnasium.wrappers.NormalizeObservation}", r"leave it out and use task\.normalize_observation=true\."),
        ("{_target_:gymnasium.wrappers.NormalizeReward}", r"leave it out and use task\.normalize_reward=true\."),
        ("3", "must be a list"),
    ],
)
def test_a_bad_wrapper_is_refused_in_one_sentence(node: str, words: str, capsys: Any, tmp_path: Path) -> None:
    given = [f"task.wrappers=[{node}]"] if words != "must be a list" else [f"task.wrappers={node}"]
    with pytest.raises(ConfigError, match=words):
        rgpo.run("algo=ppo", *SMALL, "task.env_id=CartPole-v1", *given, f"results_dir={tmp_path}")
