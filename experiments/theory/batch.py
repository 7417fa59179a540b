"""python -m experiments.theory.batch: collect the fixed Hopper batch that the experiments on drift, weights and cost share.

PPO learns for 20 iterations of 2,048 steps and collects one more; the policy that collected it is stored with the batch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from experiments.theory.common import load
from rgpo.control.actor_critic import ActorCritic
from rgpo.control.mlp import MLP
from rgpo.core.rollout import Batch

FILE = Path(__file__).parent / "hopper_batch.npz"
ENVIRONMENT, NUM_ITERATIONS, SEED = "Hopper-v4", 20, 1
NUM_STEPS = 2048


def make(path: Path) -> None:
    """Train, collect and write; the same numbers every time with the same libraries on the same machine."""
    task, algorithm = load("task=hopper", "algo=ppo", "update.anneal_lr=false")
    task.setup(SEED, algorithm.advantage.gamma)
    policy = task.make_policy(SEED)
    algorithm.setup(policy, NUM_ITERATIONS, SEED)
    for _ in range(NUM_ITERATIONS):
        algorithm.learn(policy, task.collect(policy), measure_variance=False)
    rollout = task.collect(policy)
    batch, _ = policy.make_batch(rollout, *algorithm.advantage(rollout))
    kept = {name: getattr(batch, name).numpy() for name in ("observation", "action", "advantage", "value_target", "value_old")}
    np.savez_compressed(path, parameters=policy.parameters.numpy(), train_return=rollout.metrics["return/train_mean"], **kept)


def load_batch(path: Path = FILE) -> tuple[ActorCritic, Batch]:
    """The policy that collected the batch, and the batch of N = 2,048 samples."""
    with np.load(path) as saved:
        arrays = {name: torch.from_numpy(saved[name]) for name in saved.files if name != "train_return"}
    observation, action = arrays["observation"], arrays["action"]
    policy = ActorCritic(MLP(), observation.shape[1], action.shape[1], False, torch.Generator().manual_seed(0))
    policy.load_state_dict(arrays["parameters"])
    with torch.no_grad():
        old = policy.distribution(policy.parameters, observation)
        logp_old = old.log_prob(action)
    rest = (arrays[name] for name in ("advantage", "value_target", "value_old"))
    return policy, Batch(observation, action, logp_old, tuple(x.contiguous() for x in old), *rest)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(FILE)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
