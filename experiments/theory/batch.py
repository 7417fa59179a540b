"""python -m experiments.theory.batch: collect the fixed Hopper batch that the experiments on drift, weights and cost share.

PPO learns for 20 iterations of 2,048 steps and collects one more; the policy that collected it is stored with the batch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from experiments.theory.common import load, start
from rgpo.control.actions import Head
from rgpo.control.actor_critic import ActorCritic
from rgpo.control.mlp import MLP
from rgpo.control.policy import ControlBatch, Observations
from rgpo.control.task import Control
from rgpo.learning.samples import Samples

FILE = Path(__file__).parent / "hopper_batch.npz"
NUM_ITERATIONS, SEED = 20, 1


def make(path: Path) -> None:
    """Train, collect and write; the same numbers every time with the same libraries on the same machine."""
    task, algorithm = load("task=hopper", "algo=ppo", "update.anneal_lr=false")
    policy = start(task, algorithm, NUM_ITERATIONS, SEED)
    assert isinstance(policy, ActorCritic)
    for _ in range(NUM_ITERATIONS):
        algorithm.learn(policy, task.collect(policy), measure_variance=False)
    rollout = task.collect(policy)
    batch = policy.make_batch(rollout, *algorithm.advantage(rollout))
    columns = {name: getattr(batch.samples, name) for name in ("advantage", "value_target", "value_old")}
    arrays = {"observation": batch.view.observation, "action": batch.view.action, **columns, "parameters": policy.flat}
    np.savez_compressed(
        path, train_return=rollout.metrics["return/train_mean"], **{name: x.numpy() for name, x in arrays.items()}
    )


def load_batch(path: Path = FILE) -> tuple[ActorCritic, ControlBatch]:
    """The policy that collected the batch, and the batch of N = 2,048 samples."""
    with np.load(path) as saved:
        arrays = {name: torch.from_numpy(saved[name]) for name in saved.files if name != "train_return"}
    observation, action = arrays["observation"], arrays["action"]
    task, _ = load("task=hopper", "algo=ppo")
    assert isinstance(task, Control) and isinstance(task.policy, MLP)
    heads = (Head("gaussian", action.shape[1]),)
    policy = ActorCritic(task.policy, observation.shape[1], heads, torch.Generator().manual_seed(0))
    policy.load_state_dict({"flat": arrays["parameters"]})
    with torch.no_grad():
        old = policy.distribution(policy.flat, observation)
        logp_old = old.log_prob(action)
    view = Observations(observation, action, tuple(x.contiguous() for x in old))
    advantage, target, value = (arrays[name] for name in ("advantage", "value_target", "value_old"))
    return policy, ControlBatch(view, Samples(logp_old, None, advantage, target, value))


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(FILE)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
