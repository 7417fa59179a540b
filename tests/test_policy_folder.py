"""policy/ of control runs acts as the trained policy does, without torch; damage to it is named in a sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.numpy import load_file
from stored_policies import CASES, flat, observations
from stored_policies import runs as runs

import rgpo
from rgpo.control.actor import Actor
from rgpo.runtime import manifest


def expected(run: rgpo.Run, seen: np.ndarray[Any, Any], rng: np.random.Generator | None = None) -> np.ndarray[Any, Any]:
    """Actions of the policy of the checkpoint, as the environment's ``step`` gets them."""
    task, policy = run.task, run._parts.policy
    prepared = task._prepare(flat(run, seen).astype(np.float64), learn=False)
    silence = np.zeros((len(seen), policy.output_size), np.float32)
    noise = silence if rng is None else policy.draw_noise((len(seen),), rng)
    action, space = policy.act(prepared, noise), task.env.action_space
    if isinstance(space, spaces.Discrete):
        return np.asarray(action + space.start)
    return np.clip(action.reshape(-1, *space.shape), space.low, space.high)


@pytest.mark.parametrize("name", CASES)
def test_the_stored_policy_acts_as_the_trained_one(name: str, runs: Callable[[str], rgpo.Run]) -> None:
    run = runs(name)
    seen = observations(run)
    stored = rgpo.load(run.folder).policy
    space = run.task.env.action_space
    action = stored(seen)
    np.testing.assert_allclose(action, expected(run, seen), atol=1e-6)
    assert action.dtype == space.dtype and action.shape == (50, *space.shape)
    drawn = stored(seen, deterministic=False, rng=np.random.default_rng(7))
    np.testing.assert_allclose(drawn, expected(run, seen, np.random.default_rng(7)), atol=1e-6)
    assert not np.array_equal(drawn, action)
    assert not np.array_equal(stored(seen, deterministic=False), stored(seen, deterministic=False))
    for i in range(5):
        single = stored(seen[i])
        assert single.shape == space.shape and space.contains(single)
        np.testing.assert_allclose(single, action[i], atol=1e-6)


def test_acting_needs_neither_torch_nor_a_checkpoint(runs: Callable[[str], rgpo.Run], tmp_path: Path) -> None:
    run = runs("hopper")
    copy = shutil.copytree(run.folder, tmp_path / run.folder.name)
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (copy / name).unlink(missing_ok=True)
    code = f"import sys, rgpo; p = rgpo.load({str(copy)!r}).policy; print(p([0.0] * 11).shape, 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "(3,) False\n"


def test_a_policy_whose_attributes_were_used_acts_as_it_is_now(runs: Callable[[str], rgpo.Run]) -> None:
    run = rgpo.load(runs("hopper").folder)
    assert np.abs(run.policy(np.ones(11))).max() > 0
    run.policy.load_state_dict({"flat": torch.zeros_like(run.policy.flat)})
    assert np.array_equal(run.policy(np.ones(11)), np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("observation", "why"),
    [
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((2, 5)), r"batch \(N, 4\)"),
        (np.zeros((2, 2, 4)), r"\(2, 2, 4\)"),
        ([0.0, np.nan, 0.0, 0.0], "NaN"),
        ("abcd", "type <U4"),
        (None, "object"),
    ],
)
def test_wrong_observations(observation: object, why: str, runs: Callable[[str], rgpo.Run]) -> None:
    with pytest.raises(ValueError, match=why):
        runs("cartpole").policy(observation)


def test_wrong_discrete_observations_and_an_empty_batch(runs: Callable[[str], rgpo.Run]) -> None:
    with pytest.raises(ValueError, match="from -2 to 1"):
        runs("odd discrete").policy(2)
    assert runs("odd discrete").policy(np.array([], np.int64)).shape == (0,)
    assert runs("cartpole").policy(np.zeros((0, 4))).shape == (0,)


def test_weights_have_names_that_torch_takes(runs: Callable[[str], rgpo.Run]) -> None:
    run = runs("hopper")
    weights = load_file(run.folder / "policy" / "policy.safetensors")
    layers = [f"{part}.{i}.{kind}" for part in ("actor", "critic") for i in (0, 2, 4) for kind in ("weight", "bias")]
    assert sorted(weights) == sorted([*layers, "log_std"])
    nn = torch.nn
    actor = nn.Sequential(nn.Linear(11, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    actor.load_state_dict({n.removeprefix("actor."): torch.from_numpy(x) for n, x in weights.items() if n.startswith("actor.")})
    x = torch.randn(6, 11)
    with torch.no_grad():
        torch.testing.assert_close(actor(x).numpy(), run.policy.mode_output(x.numpy()), atol=1e-6, rtol=1e-5)


def test_damage_is_named_and_stops_the_policy(runs: Callable[[str], rgpo.Run], tmp_path: Path) -> None:
    run = runs("cartpole")
    copy = shutil.copytree(run.folder, tmp_path / run.folder.name)
    assert manifest.problems(copy) == []
    data = bytearray((copy / "policy" / "policy.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "policy" / "policy.safetensors").write_bytes(data)
    assert manifest.problems(copy) == ["policy.safetensors is damaged (checksum)"]
    with pytest.raises(rgpo.ConfigError, match=r"policy.safetensors is damaged \(checksum\); restore the files"):
        rgpo.load(copy).policy(np.zeros(4))
    shutil.rmtree(copy / "policy")
    with pytest.raises(rgpo.ConfigError, match=r"policy.json is missing"):
        rgpo.load(copy).policy(np.zeros(4))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format=2),
        lambda d: d.pop("network"),
        lambda d: d["network"].update(activation="softmax"),
        lambda d: d["network"].update(hidden_sizes="many"),
        lambda d: d["network"].update(hidden_sizes=[64] * 9),
        lambda d: d.update(observation_normalizer=3),
    ],
)
def test_a_foreign_description_is_refused_in_a_sentence(
    change: Callable[[dict[str, Any]], object], runs: Callable[[str], rgpo.Run], tmp_path: Path
) -> None:
    folder = shutil.copytree(runs("cartpole").folder / "policy", tmp_path / "policy")
    description = json.loads((folder / "policy.json").read_text())
    change(description)
    (folder / "policy.json").write_text(json.dumps(description))
    with pytest.raises(rgpo.ConfigError, match="export it again"):
        Actor.load(folder)


def test_damaged_weights_are_refused_in_a_sentence(runs: Callable[[str], rgpo.Run], tmp_path: Path) -> None:
    folder = shutil.copytree(runs("cartpole").folder / "policy", tmp_path / "policy")
    for data in (b"", b"\xff" * 100, (folder / "policy.safetensors").read_bytes()[:1000]):
        (folder / "policy.safetensors").write_bytes(data)
        with pytest.raises(rgpo.ConfigError, match="SafetensorError"):
            Actor.load(folder)
