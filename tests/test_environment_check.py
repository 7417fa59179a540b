"""The check before anything trains: what it refuses, what it reports, and that a sound environment gives no finding."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from odd_environments import Outside, Sound

from rgpo.control.envs import check
from rgpo.control.envs.facts import describe, space_in_words
from rgpo.control.envs.make_env import make_vector_env
from rgpo.errors import ConfigError, EnvironmentFault


def try_out(name: str) -> tuple[str, ...]:
    def make(num_envs: int) -> Any:
        return make_vector_env(name, num_envs, "auto")

    check.try_out(name, make)
    return check.findings(name)


@pytest.mark.parametrize("env_id", ["CheckSound-v0", "CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Hopper-v4"])
def test_a_sound_environment_gives_no_finding(env_id: str) -> None:
    assert try_out(env_id) == ()


FOUND = {
    "NoSeed": "the seed does not reach the environment",
    "NoisyStep": "two episodes with one seed and the same actions differ after step 5",
    "OwnGenerator": "resumed runs begin their episodes anew, not bit for bit",
    "Wider": r"an observation of reset\(\) has type float64, its space has float32",
    "Outside": r"an observation of step\(\) is outside of its space: 0\.3 at \[1\] is not in \[0, 0\.25\]",
    "WholeFlags": "gymnasium's checker: Expects `terminated` signal to be a boolean",
}
REFUSED = {
    "Alone": r"reset\(\) must return an observation and a dict",
    "Scalar": r"an observation must be numbers of shape \(2,\), but the environment returned np.float32\(1\.0\)",
    "NoInfo": r"reset\(\) must return an observation and a dict",
    "Raises": r"the environment raised KeyError: 'the valve is lost' in step\(\)",
    "OldReset": r"raised TypeError: .* unexpected keyword argument 'seed' in reset\(\)",
    "NaNReward": "the reward is NaN or infinite within the first 16 steps",
    "HugeReward": r"the reward must be a number that fits into 64 bits, but the environment returned 10000.*\(401 characters\)",
    "RaisesSilently": r"the environment raised Silent in odd_environments\.py, line \d+ in step\(\)",
    "Leaves": r"the environment raised GeneratorExit in odd_environments\.py, line \d+ in step\(\)",
    "OneElement": r"the reward must be a number, but the environment returned an array of shape \(1,\)",
}


@pytest.mark.parametrize("name", FOUND)
def test_what_may_surprise_is_one_finding(name: str) -> None:
    (finding,) = try_out(f"Check{name}-v0")
    assert re.match(rf"Check{name}-v0: {FOUND[name]}", finding)


SPACES = {
    "NoSpace": "it has no action_space; set it to one of gymnasium.spaces",
    "PlainDict": "its observation_space is {'a': Discrete(2)}, no space of gymnasium; set it to one of gymnasium.spaces",
    "NoNumbers": "its action space has no numbers; give it a space with some",
    "EmptyPart": "its action.1 is an empty Tuple; leave it out, or give it parts",
    "NumberedParts": "its action is a Dict whose keys are not texts (1, 2); name its parts by texts",
}


@pytest.mark.parametrize("name", SPACES)
def test_what_is_no_space_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"task.env_id=Check{name}-v0: {SPACES[name]}.")):
        try_out(f"Check{name}-v0")


def test_what_an_environment_changes_of_the_process_is_put_back() -> None:
    here = Path.cwd()
    assert try_out("CheckMoves-v0") == ()
    assert Path.cwd() == here and torch.get_default_dtype() == torch.float32


def test_actions_have_the_type_of_their_space() -> None:
    assert try_out("CheckSmall-v0") == ()
    env = make_vector_env("CheckSmall-v0", 2, "auto")
    env.reset(0)
    env.step(np.array([0, 2]))


@pytest.mark.parametrize(
    ("env_id", "remedy"),
    [
        (":Fine-v0", "names no module before the colon; write module:id, or Fine-v0 alone."),
        ("base_ok.py:Fine-v0", "base_ok.py is no name of a module; write module:id, as base_ok:Fine-v0."),
    ],
)
def test_a_module_is_named_by_its_name(env_id: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"task.env_id={env_id}: {remedy}")):
        try_out(env_id)


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_the_interface_is_refused(name: str) -> None:
    with pytest.raises(EnvironmentFault, match=rf"^task\.env_id=Check{name}-v0: .*{REFUSED[name]}.*\.$"):
        try_out(f"Check{name}-v0")


def test_a_refusal_leaves_the_traceback_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rgpo.cli.config import compose_jobs
    from rgpo.report.read.load import queued

    monkeypatch.chdir(tmp_path)
    words = ["task=gym", "task.env_id=CheckRaises-v0"]
    with pytest.raises(ConfigError, match=r"the valve is lost.*\(traceback in results/default/gym-.*/error\.txt\)"):
        compose_jobs(words, False, None)
    (log,) = tmp_path.rglob("error.txt")
    assert 'raise KeyError("the valve is lost")' in log.read_text() and "EnvironmentFault" not in log.read_text()
    assert queued(log.parent)
    with pytest.raises(ConfigError, match=r"the valve is lost' in step\(\)\.$"):
        compose_jobs([*words, "plan=true", "name=other"], False, None)
    assert len(list(tmp_path.rglob("error.txt"))) == 1


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Box(-1, 1, (2, 3), np.float64), "Box (2, 3) float64, from -1 to 1"),
        (spaces.Box(-np.inf, np.inf, (2,)), "Box (2,) float32, unbounded"),
        (Outside.observation_space, "Box (2,) float32, from -inf to inf, other bounds in each place, 1 unbounded"),
        (spaces.Discrete(3), "Discrete(3)"),
    ],
)
def test_spaces_in_words(space: Any, words: str) -> None:
    assert space_in_words(space) == words


def test_time_limit_and_wrappers_are_described() -> None:
    def layers(env_id: str) -> str:
        return describe(make_vector_env(env_id, 1, "auto"), env_id)["environment"]

    assert layers("CheckSound-v0") == "CheckSound-v0, time limit 1,000 steps, TimeLimit > OrderEnforcing > Sound"
    assert layers("Hopper-v4") == "Hopper-v4, time limit 1,000 steps, MuJoCo stepped directly"


TWO_MODULES = """
import gymnasium, odd_environments as base

class Same(base.Sound):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, {factor} * reward, *rest

gymnasium.register("{name}", Same, max_episode_steps=20)
"""


@pytest.mark.parametrize("name", ["Same-v0", "Pendulum-v1"])
def test_each_of_two_modules_has_its_own_environment_of_one_id(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the user's may also have the id of one of gymnasium's own."""
    monkeypatch.syspath_prepend(tmp_path)
    stock = make_vector_env(name, 1, "auto").module if name in gymnasium.registry else ""
    modules = {factor: f"same_{name[:4].lower()}_{factor}" for factor in (1, 100)}
    for factor, module in modules.items():
        (tmp_path / f"{module}.py").write_text(TWO_MODULES.format(factor=factor, name=name))
    envs = {factor: make_vector_env(f"{module}:{name}", 1, "auto") for factor, module in modules.items()}
    again = make_vector_env(f"{modules[1]}:{name}", 1, "auto")
    try:
        rewards = []
        for env in (*envs.values(), again):
            env.reset(3)
            env.step(np.zeros((1, 1), np.float32))
            rewards.append(float(env.rewards()[0, 0]))
        assert rewards[1] == pytest.approx(100 * rewards[0]) and rewards[2] == rewards[0] != 0
        if stock:
            assert make_vector_env(name, 1, "auto").module == stock
    finally:
        if not stock:
            del gymnasium.registry[name]


def test_keywords_of_an_environment_may_have_the_names_of_ours() -> None:
    env = make_vector_env("CheckKeywords-v0", 1, "auto", kwargs={"backend": "gpu", "num_envs": 4, "wrappers": 2})
    assert env.num_envs == 1
    with pytest.raises(EnvironmentFault, match=r"its constructor failed \(GeneratorExit: stopped\)"):
        make_vector_env("CheckKeywords-v0", 1, "auto", kwargs={"raises": True})


def test_an_action_without_axes_is_an_array() -> None:
    env = make_vector_env("CheckScalarAction-v0", 2, "auto")
    env.reset(0)
    env.step(np.zeros((2, 1), np.float32))


def test_an_environment_of_which_there_may_be_one_is_reported() -> None:
    check.try_out("one", lambda num_envs: make_vector_env("CheckOneAtATime-v0", num_envs, "auto"))
    assert "a second copy beside the first cannot be made" in " ".join(check.findings("one"))


def test_spaces_of_a_billion_numbers_are_refused() -> None:
    class Huge(Sound):
        observation_space = spaces.Discrete(10**9)

    gymnasium.register("CheckHuge-v0", Huge)
    with pytest.raises(ConfigError, match=r"its observation space makes 1,000,000,000 numbers of the network, over 10,000,000"):
        make_vector_env("CheckHuge-v0", 1, "auto")
