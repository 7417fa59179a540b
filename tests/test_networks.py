"""Convolutions for pictures and networks of the user's own: trained, acting, exported, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from odd_networks import Frozen
from safetensors.numpy import load_file

import rgpo
from rgpo.cli import evaluate, export
from rgpo.control.actions import Head
from rgpo.control.cnn import NatureCNN, picture
from rgpo.control.finite import require_actions
from rgpo.control.module_policy import ModulePolicy, make_policy
from rgpo.errors import ConfigError, NonFiniteError

PIXELS = ("task=gym", "task.env_id=Pictures-v0", "policy@task.policy=cnn", "task.policy.hidden_size=16")
PIXELS += ("task.normalize_observation=false", "task.num_envs=2", "task.num_steps=32", "task.num_eval_episodes=1")
OWN = "~task.policy", "+task.policy={_target_:odd_networks.Net,width:6}"
SMALL = (
    "task=cartpole",
    "task.num_envs=2",
    "task.num_steps=32",
    "task.num_eval_episodes=1",
    "num_iterations=2",
    "gradvar_every=1",
)
HEADS = (Head("categorical", 2),)


def make(shape: tuple[int, ...], heads: tuple[Head, ...] = HEADS, seed: int = 0) -> ModulePolicy:
    design = NatureCNN(hidden_size=16, policy_gain=0.01, value_gain=1.0, log_std_init=0.0)
    policy = make_policy(design, shape, heads, pixels=True, seed=seed)
    assert isinstance(policy, ModulePolicy)
    return policy


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 84, 84), (4, 84, 84)), ((96, 96, 3), (3, 96, 96)), ((84, 84), (1, 84, 84)), ((4, 96, 96, 3), (12, 96, 96))],
)
def test_channels_are_first_or_last_or_stacked(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert picture(shape) == expected
    policy, seen = make(shape), np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    channels = {4: lambda x: x.transpose(0, 1, 4, 2, 3), 3: lambda x: x if shape[0] < shape[-1] else x.transpose(0, 3, 1, 2)}
    by_hand = channels.get(len(shape), lambda x: x)(seen).reshape(3, *expected)
    module: Any = policy.module
    hidden = module.trunk(torch.from_numpy(by_hand.copy()).float() / 255)
    np.testing.assert_allclose(policy.mode_output(seen.reshape(3, -1)), module.actor(hidden).numpy(), atol=1e-5)
    np.testing.assert_allclose(policy.values(seen.reshape(3, -1)), module.critic(hidden).numpy()[:, 0], atol=1e-5)


def test_the_flat_vector_is_the_modules_parameters_and_shared_layers_are_the_actors() -> None:
    policy = make((4, 40, 40), heads=(Head("categorical", 2), Head("gaussian", 3)))
    observation = torch.rand(5, 6400)
    leaf = policy.flat.clone().requires_grad_()
    count, critic = policy.num_actor_parameters, 16 + 1
    assert len(leaf) == count + critic and policy.names[-3:] == [".log_std", "critic.weight", "critic.bias"]
    found = policy.evaluate(leaf, observation, value=True)
    np.testing.assert_allclose(found.output.detach(), policy.mode_output(observation.numpy()), atol=1e-6)
    assert found.value is not None
    (shared,) = torch.autograd.grad(found.value.sum(), leaf)
    (apart,) = torch.autograd.grad(policy.value(leaf, observation).sum(), leaf)
    assert shared[:count].abs().max() > 0 and apart[:count].abs().max() == 0
    assert torch.equal(shared[count:], apart[count:])
    policy.flat.zero_()
    assert np.abs(policy.mode_output(observation.numpy())).max() == 0
    assert torch.equal(make((4, 40, 40)).flat, make((4, 40, 40)).flat) and not torch.equal(
        make((4, 40, 40), seed=1).flat, make((4, 40, 40)).flat
    )


def test_pictures_are_learned_from_kept_as_bytes_and_exported(tmp_path: Path) -> None:
    words = (*PIXELS, "algo=ppo", "update.lr=2e-3", "num_iterations=6", f"results_dir={tmp_path}")
    run = rgpo.load(rgpo.run(*words).folder)
    assert run.metrics["return/train_mean"].iloc[-1] > 5  # 4 by chance, 8 at best
    rollout = run.task.collect(run._parts.policy)
    assert rollout.observation.dtype == np.uint8
    acts_and_exports(run.folder, np.random.default_rng(0).integers(0, 256, (5, 40, 44, 3), np.uint8), tmp_path)


def acts_and_exports(folder: Path, seen: Any, out: Path) -> None:
    """policy/, rgpo-eval, rgpo-export and the checkpoint agree."""
    stored, restored = rgpo.load(folder), rgpo.load(folder)
    expected = restored._parts.policy.mode_output(seen.reshape(len(seen), -1)).argmax(-1)
    assert np.array_equal(stored.policy(seen), expected) and stored.policy(seen[0]) == expected[0]
    assert evaluate.main([str(folder), "episodes=2"]) == 0
    assert export.main([str(folder), str(out / "out")]) == 0
    for module in (torch.export.load(out / "out" / "policy.pt2").module(), torch.jit.load(out / "out" / "policy.ts")):
        assert np.array_equal(module(torch.from_numpy(seen.reshape(len(seen), -1)).float()).numpy(), expected)


@pytest.mark.parametrize("algo", ["ppo", "trpo"])
def test_a_network_of_ones_own_is_trained_and_exported(algo: str, tmp_path: Path) -> None:
    run = rgpo.run(*SMALL, *OWN, f"algo={algo}", f"results_dir={tmp_path}")
    assert run.metrics["kl/old_exact"].iloc[-1] > 0
    acts_and_exports(run.folder, np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), tmp_path)


@pytest.mark.parametrize("kind", ["Keywords", "Frozen"])
def test_other_networks_that_work(kind: str, tmp_path: Path) -> None:
    """With the node written as one word, too; what is not trained stays as it is, and the checkpoint has it."""
    words = (*SMALL, f"task.policy={{_target_:odd_networks.{kind}}}", "algo=ppo", f"results_dir={tmp_path}")
    run = rgpo.run(*words)
    assert run.metrics["kl/old_exact"].iloc[-1] > 0 and "hidden_sizes" not in run.config["task"]["policy"]
    policy = rgpo.load(run.folder)._parts.policy
    own = policy.state_dict().get("buffers", {})
    assert own.keys() == ({"body.weight", "body.bias"} if kind == "Frozen" else set())
    for x in policy.module.buffers(), policy.module.parameters():
        assert all(torch.isfinite(value).all() for value in x)
    changed = {name: value + 1 for name, value in own.items()}
    policy.load_state_dict(policy.state_dict() | {"buffers": changed})
    assert all(torch.equal(policy.module.state_dict()[name], value) for name, value in changed.items())


def test_a_parameter_may_have_the_name_of_ours(tmp_path: Path) -> None:
    own = ("task=gym", "task.env_id=Pendulum-v1", "task.policy={_target_:odd_networks.Std}", "algo=ppo")
    run = rgpo.run(*own, *SMALL[1:], f"results_dir={tmp_path}")
    weights = load_file(run.folder / "policy/policy.safetensors")
    assert weights["log_std"].shape == (1,) and weights["module.log_std"].shape == (8,)


def test_exported_weights_have_what_is_not_trained(tmp_path: Path) -> None:
    run = rgpo.run(*SMALL, "task.policy={_target_:odd_networks.Frozen}", "algo=ppo", f"results_dir={tmp_path}")
    weights, module = load_file(run.folder / "policy/policy.safetensors"), Frozen((4,), 2)
    assert not module.load_state_dict({name: torch.from_numpy(x) for name, x in weights.items()}).missing_keys
    seen = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    policy = rgpo.load(run.folder)._parts.policy
    assert np.allclose(module.eval()(torch.from_numpy(seen))[0].detach(), policy.mode_output(seen), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4)])
def test_actions_that_are_not_finite_are_the_policys_and_not_the_environments(shape: tuple[int, ...]) -> None:
    seen, actions = np.zeros((3, 2, 5)), np.zeros(shape)
    require_actions(seen, actions)
    actions[1, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"the policy's actions became NaN or infinite at step 1 .*lower update\.lr"):
        require_actions(seen, actions)
    seen[1, 1] = np.inf
    require_actions(seen, actions)  # what follows from an observation is the environment's


RETURNS = r"task\.policy={}\(\): must return outputs \(n, 2\) and values \(n,\), not {} for n = 3\."


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ("odd_networks.Alone", RETURNS.format("Alone", "Tensor")),
        ("odd_networks.Named", RETURNS.format("Named", "dict")),
        ("odd_networks.Narrow", RETURNS.format("Narrow", r"\(3, 1\) and \(3, 1\)")),
        ("odd_networks.Leaves", r"task\.policy: Leaves\(\) raised on observations \(3, 4\) \(SystemExit: 3\)\."),
        ("odd_networks.Raises", r"task\.policy: Raises\(\) raised on observations \(3, 4\) \(RuntimeError: no such layer\)\."),
        ("odd_networks.Broken", r"task\.policy: Broken\(\) cannot be made \(FileNotFoundError: weights\.pt\)\."),
        ("odd_networks.NaN", r"task\.policy=NaN\(\): it returns NaN or infinite numbers at its initial parameters\."),
        ("odd_networks.Noisy", r"task\.policy=Noisy\(\): it returns something else when it is called again"),
        (
            "odd_networks.Mixing",
            r"Mixing\(\): what it returns for an observation depends on the others",
        ),
        ("odd_networks.NoisyValue", r"task\.policy=NoisyValue\(\): it returns something else when it is called again"),
        ("odd_networks.Half", r"Half\(\): its outputs and values must be floating-point numbers of 32 or 64 bits"),
        ("odd_networks.Exits", r"task\.policy: Exits\(\) cannot be made \(SystemExit: 4\)"),
        (
            "odd_networks.Whole",
            r"Whole\(\): its outputs and values must be floating-point numbers of 32 or 64 bits",
        ),
        ("odd_networks.Untrained", r"task\.policy=Untrained\(\): its outputs depend on no parameter that requires a gradient"),
        ("odd_networks.function", r"task\.policy\._target_=odd_networks\.function: is no torch\.nn\.Module"),
        ("odd_networks.Net,depth:3", r"task\.policy\.depth=3: is not a known key"),
        ("odd_networks.Pictures", r"task\.policy\._target_=odd_networks\.Pictures: is no torch\.nn\.Module"),
        ("torch.nn.Linear,in_features:3", r"torch is not a module of rgpo"),
    ],
)
def test_another_network_is_refused_in_one_sentence(node: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        rgpo.run(*SMALL, "~task.policy", f"+task.policy={{_target_:{node}}}", "algo=ppo", f"results_dir={tmp_path}")


def test_a_network_that_changes_its_input_in_place_learns_as_one_that_does_not(tmp_path: Path) -> None:
    found = []
    for name in ("InPlace", "OutOfPlace"):
        words = ("~task.policy", f"+task.policy={{_target_:odd_networks.{name}}}", "algo=ppo", f"results_dir={tmp_path}/{name}")
        table = rgpo.run(*SMALL, *words).metrics
        found.append(table[["kl/old_exact", "loss/policy", "loss/value", "return/train_mean"]].to_numpy())
    assert np.array_equal(*found, equal_nan=True) and np.isfinite(found[0]).any()


def test_what_convolutions_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pictures of 20 x 44 are too small .*ResizeObservation to at least 36 x 36\."):
        rgpo.run(*PIXELS, "algo=ppo", "+task.env_kwargs.side=20", f"results_dir={tmp_path}")
    with pytest.raises(ConfigError, match=r"observations of shape \(4,\) are no pictures; use policy@task\.policy=mlp\."):
        rgpo.run(*SMALL, "policy@task.policy=cnn", "algo=ppo", f"results_dir={tmp_path}")


def test_updates_of_convolutions_are_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"update\.compile=True: updates are compiled with policy@task\.policy=mlp only"):
        rgpo.run(*PIXELS, "algo=ppo", "update.compile=true", f"results_dir={tmp_path}")
