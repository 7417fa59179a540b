"""Composite spaces: flattened as gymnasium does, exact product distributions, and training, acting and export with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rgpo
from rgpo.control.actions import Head, Rescale, choose, column_bounds, draw_noise, heads, row, to_env
from rgpo.control.advice import advice
from rgpo.control.distributions import Bernoulli, Product, make_distribution
from rgpo.control.envs.make_env import make_vector_env
from rgpo.control.mlp import MLP
from rgpo.control.spaces import describe, flatten, observation_size
from rgpo.errors import ConfigError

PARTS: dict[str, Any] = {
    "box": spaces.Box(-1, 1, (2, 3), np.float32),
    "scalar": spaces.Box(0, 1, (), np.float64),
    "pixels": spaces.Box(0, 255, (2, 2, 3), np.uint8),
    "one": spaces.Discrete(4, start=-2),
    "several": spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[5, -3], [0, 7]]),
    "bits": spaces.MultiBinary([2, 2]),
}
NESTED = spaces.Dict({**PARTS, "inner": spaces.Tuple((spaces.Discrete(3), spaces.Dict(a=PARTS["box"], b=spaces.MultiBinary(2))))})
SPACES = {**PARTS, "nested": NESTED, "tuple": spaces.Tuple((PARTS["several"], NESTED))}
ACTIONS: dict[str, Any] = {
    **{name: space for name, space in SPACES.items() if name not in ("pixels", "nested", "tuple")},
    "integers": spaces.Box(np.array([[-2, 0]]), np.array([[3, 0]]), dtype=np.int16),
    "nested": spaces.Dict(z=spaces.Tuple((PARTS["box"], PARTS["several"])), a=PARTS["bits"], one=PARTS["one"]),
}


@pytest.mark.parametrize("name", SPACES)
def test_observations_are_flattened_as_gymnasium_does(name: str) -> None:
    space = SPACES[name]
    space.seed(0)
    ours, samples = describe(space, "observation"), [space.sample() for _ in range(5)]
    assert observation_size(ours) == spaces.flatdim(space)
    for x in samples:
        rows, single = flatten(ours, x)
        assert single and np.array_equal(rows[0], spaces.flatten(space, x).astype(np.float64))
    batch = gymnasium.vector.utils.concatenate(space, samples, gymnasium.vector.utils.create_empty_array(space, 5))
    rows, single = flatten(ours, batch)
    assert not single and np.array_equal(rows, [spaces.flatten(space, x) for x in samples])


@pytest.mark.parametrize(
    ("space", "observation", "words"),
    [
        (spaces.Discrete(3), 3, "from 0 to 2"),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 3]), r"from \[0, 0\] to \[1, 2\]"),
        (spaces.MultiDiscrete([2, 3]), np.array([0.5, 1]), "must be from"),
        (spaces.MultiBinary(2), np.array([0, 2]), "0 and 1"),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2)), {"a": 1}, "dict with a, b"),
        (spaces.Dict(a=spaces.Box(0, 1, (2,))), {"a": [0.0]}, r"observation\.a: .*shape \(2,\)"),
        (spaces.Tuple((spaces.Discrete(2),)), (0, 1), "tuple of 1"),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2)), {"a": [1, 0], "b": 0}, "as many"),
    ],
)
def test_an_observation_outside_its_space_is_named(space: Any, observation: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        flatten(describe(space, "observation"), observation)


@pytest.mark.parametrize("name", ACTIONS)
def test_drawn_actions_are_in_their_space(name: str) -> None:
    space, rng = ACTIONS[name], np.random.default_rng(0)
    ours = describe(space, "action")
    factors = heads(ours)
    size, gaussian = sum(head.size for head in factors), sum(head.size for head in factors if head.kind == "gaussian")
    noise = draw_noise(factors, (200,), np.ones(gaussian, np.float32), rng)
    assert noise.shape == (200, size) and noise.dtype == np.float32
    batch = to_env(ours, choose(factors, noise))
    seen = [row(ours, batch, i) for i in range(200)]
    assert all(space.contains(x) for x in seen), seen[0]
    if gaussian == 0 and name != "integers":  # every value of more than one occurs
        assert len(np.unique([spaces.flatten(space, x) for x in seen], axis=0)) > 1


def theirs(factors: tuple[Head, ...], output: torch.Tensor, log_std: torch.Tensor) -> list[torch.distributions.Distribution]:
    made, begin = list[torch.distributions.Distribution](), 0
    for head, part in zip(factors, torch.split(output, [h.size for h in factors], -1), strict=True):
        if head.kind == "categorical":
            made.append(torch.distributions.Categorical(logits=part))
        elif head.kind == "bernoulli":
            made.append(torch.distributions.Independent(torch.distributions.Bernoulli(logits=part), 1))
        else:
            std = log_std[begin : begin + head.size].exp().expand_as(part)
            begin += head.size
            made.append(torch.distributions.Independent(torch.distributions.Normal(part, std), 1))
    return made


@pytest.mark.parametrize(
    "factors",
    [
        (Head("bernoulli", 3),),
        (Head("categorical", 3), Head("categorical", 2)),
        (Head("gaussian", 2), Head("categorical", 4), Head("bernoulli", 2), Head("gaussian", 1)),
    ],
)
def test_a_joint_distribution_is_the_product_of_torchs(factors: tuple[Head, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    size, gaussian = sum(h.size for h in factors), sum(h.size for h in factors if h.kind == "gaussian")
    outputs, stds = (torch.randn(2, n, s, generator=generator, dtype=torch.float64) for n, s in ((7, size), (1, gaussian)))
    ours, other = (make_distribution(factors, o, s[0]) for o, s in zip(outputs, stds, strict=True))
    torchs, their_other = (theirs(factors, o, s[0]) for o, s in zip(outputs, stds, strict=True))
    assert isinstance(ours, Product | Bernoulli) and isinstance(other, Product | Bernoulli)
    parts = [x.sample() for x in torchs]
    action = torch.cat([x.unsqueeze(-1) if x.dim() == 1 else x for x in parts], -1).double()
    torch.testing.assert_close(ours.log_prob(action), sum(d.log_prob(x) for d, x in zip(torchs, parts, strict=True)))
    torch.testing.assert_close(ours.entropy(), sum(d.entropy() for d in torchs))
    pairs = zip(torchs, their_other, strict=True)
    torch.testing.assert_close(other.kl_from(tuple(ours)), sum(torch.distributions.kl_divergence(p, q) for p, q in pairs))
    assert (ours.kl_from(tuple(ours)) == 0).all()


def test_rescaled_actions_are_gymnasiums() -> None:
    low, high = np.array([0.0, -5.0, -np.inf], np.float32), np.array([100.0, 3.0, 1.0], np.float32)
    rescale = Rescale(describe(spaces.Box(low, high), "action"))
    action = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)

    class Bounded(gymnasium.Env):
        observation_space, action_space = spaces.Discrete(1), spaces.Box(low[:2], high[:2])

    wrapper = gymnasium.wrappers.RescaleAction(Bounded(), np.float32(-1), np.float32(1))
    expected = [wrapper.action(np.clip(x, -1, 1)) for x in action[:, :2]]
    np.testing.assert_allclose(rescale(action)[:, :2], expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(rescale(action)[:, 2], action[:, 2])
    assert not np.isfinite(column_bounds(describe(spaces.Dict(a=PARTS["one"], b=PARTS["bits"]), "action"))).any()


class Parts(gymnasium.Env):
    """Nested observations and actions; the reward is 1 for the action's first bit."""

    observation_space: Any = NESTED
    action_space: Any = ACTIONS["nested"]

    def __init__(self, action: str = "nested") -> None:
        self.action_space = ACTIONS[action]

    def observe(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        flat = spaces.flatten(self.action_space, action)
        return self.observe(), float(flat[0] > 0), bool(self.np_random.random() < 0.1), False, {}


class Valve(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Box(0, 100, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), -abs(float(action[0]) - 60) / 60, False, False, {}


gymnasium.register("Parts-v0", Parts)
gymnasium.register("Opening-v0", Valve, max_episode_steps=50)
DESIGN = MLP(hidden_sizes=(8,), activation="tanh", orthogonal_init=True, policy_gain=0.01, value_gain=1.0, log_std_init=0.0)
SMALL = ["task=gym", "task.num_envs=2", "task.num_steps=32", "update.num_minibatches=4", "task.num_eval_episodes=1"]


@pytest.mark.parametrize("action", ["nested", "several", "integers", "bits"])
def test_a_run_with_composite_spaces_learns_acts_and_is_exported(action: str, tmp_path: Path) -> None:
    words = ["algo=ppo", *SMALL, "task.env_id=Parts-v0", f"+task.env_kwargs.action={action}", "num_iterations=2"]
    run = rgpo.load(rgpo.run(*words, f"results_dir={tmp_path}").folder)
    assert run.metrics["kl/old_exact"].iloc[-1] > 0 and np.isfinite(run.metrics["policy/entropy"]).all()
    space, policy = ACTIONS[action], rgpo.load(run.folder).policy
    NESTED.seed(3)
    samples = [NESTED.sample() for _ in range(4)]
    for x in samples:
        assert space.contains(policy(x)) and space.contains(policy(x, deterministic=False))
    batch = gymnasium.vector.utils.concatenate(NESTED, samples, gymnasium.vector.utils.create_empty_array(NESTED, 4))
    from rgpo.cli import evaluate, export

    assert evaluate.main([str(run.folder), "episodes=3"]) == 0
    assert export.main([str(run.folder), str(tmp_path / "out")]) == 0
    module = torch.export.load(tmp_path / "out" / "policy.pt2").module()
    flat, _ = flatten(describe(NESTED, "observation"), batch)
    got = module(torch.from_numpy(flat).float()).numpy()
    wanted = [np.concatenate([np.ravel(x) for x in leaves(policy(x))]) for x in samples]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def leaves(x: Any) -> list[Any]:
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else None
    return [x] if parts is None else [leaf for part in parts for leaf in leaves(part)]


def test_a_replayed_state_continues_bit_for_bit_with_composite_actions() -> None:
    env, fresh = (make_vector_env("Parts-v0", 2, "auto", kwargs={"action": "nested"}) for _ in range(2))
    space = env.action_space
    space.seed(0)
    factors, rng = heads(describe(space, "action")), np.random.default_rng(0)
    gaussian = sum(head.size for head in factors if head.kind == "gaussian")
    actions = [choose(factors, draw_noise(factors, (2,), np.ones(gaussian), rng)) for _ in range(20)]
    env.reset(5)
    for action in actions[:10]:
        env.step(action)
    env.rewards()
    fresh.reset(9)
    fresh.load_state_dict(env.state_dict())
    for action in actions[10:]:
        expected, got = env.step(action), fresh.step(action)
        assert all(np.array_equal(x, y) for x, y in zip(expected, got, strict=True))
    assert np.array_equal(env.rewards(), fresh.rewards())


def test_rescaled_actions_learn_where_clipped_ones_do_not(tmp_path: Path) -> None:
    words = ["algo=ppo", *SMALL, "task.num_steps=256", "task.env_id=Opening-v0", "total_env_steps=5120"]
    clipped = rgpo.run(*words, f"results_dir={tmp_path}")
    (text,) = clipped.task.findings
    assert "has actions in [0, 100], of which a new policy reaches 2 %; task.action_bounds=rescale maps" in text
    scaled = rgpo.run(*words, "task.action_bounds=rescale", f"results_dir={tmp_path}")
    last = [float(run.metrics["return/train_mean"].iloc[-1]) for run in (clipped, scaled)]
    assert last[0] < -48 and last[1] > -30


def test_bounds_that_fit_give_no_advice_and_none_cannot_be_rescaled() -> None:
    for env_id in ("Pendulum-v1", "MountainCarContinuous-v0", "CartPole-v1", "Hopper-v5"):
        assert not list(advice(env_id, make_vector_env(env_id, 1, "auto"), "clip", DESIGN))
    with pytest.raises(ConfigError, match=r"^task\.action_bounds=rescale: CartPole-v1 has no actions with finite bounds"):
        list(advice("CartPole-v1", make_vector_env("CartPole-v1", 1, "auto"), "rescale", DESIGN))


@pytest.mark.parametrize("low", [-np.finfo(np.float32).max, -np.inf])
def test_the_largest_number_of_float32_is_no_bound(low: Any) -> None:
    space = describe(spaces.Box(low, -low, (2,), np.float32), "action")
    assert space["low"] is None and space["high"] is None
