"""PPO and TRPO on the same work, ours beside Stable-Baselines3, sb3-contrib and a plain loop in CleanRL's manner.

    pip install -e ".[bench]"
    python benchmarks/control.py [rounds] [out.parquet]
    python benchmarks/control.py learning [seeds] [out.parquet]

Equal samples, epochs, minibatches of 64, networks (64 x 64, tanh, two of them) and one thread. Contestants are interleaved,
each in a fresh process; ours compiles (`auto` does so from 15,000 gradient steps on), from a cache filled before.
Seconds and CPU seconds are counted from the second rollout on, over whole iterations of collecting and learning (ours with
diagnostics, and the gradient's variance every tenth); a run's evaluation, checkpoints and files are not in them. CPU seconds
decide. `learning` lets them train for 100,000 steps instead and compares the returns of the last 10 episodes (of which ours
each count as the mean of their rollout).
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

SAMPLES = {"HalfCheetah-v4": 2048, "Hopper-v4": 2048, "CartPole-v1": 1024}  # of one rollout over all environments
TASKS = {"HalfCheetah-v4": "halfcheetah", "Hopper-v4": "hopper", "CartPole-v1": "cartpole"}
EPOCHS, MINIBATCH = 10, 64
GATES = ("sigmoid", "sigmoid_log", "sign_aware_sigmoid", "gaussian_log", "power", "rational", "sapo", "spo", "cispo", "budget")
ITERATIONS = 11  # of which the first does not count
LEARNING_ITERATIONS, EPISODES = 49, 10
LEARNERS = ("ours", "ours-uncompiled", "sb3", "plain")
CASES = [
    *((env, n, name) for env, n in (("HalfCheetah-v4", 1), ("HalfCheetah-v4", 8)) for name in ("ours", "sb3", "plain")),
    *((env, n, name) for env, n in (("Hopper-v4", 1), ("Hopper-v4", 8)) for name in ("ours", "sb3", "plain")),
    *(("CartPole-v1", 8, name) for name in ("ours", "sb3", "plain")),
    *(("HalfCheetah-v4", 1, name) for name in ("ours-trpo", "sb3-trpo")),
    *(("HalfCheetah-v4", 1, f"ours-{gate}") for gate in GATES),
]


class Stopwatch:
    """Wall and CPU seconds from the first call of `start` to the last of `stop`."""

    def start(self) -> None:
        """Start counting."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, float]:
        """Seconds since ``start``."""
        return {"wall_s": time.perf_counter() - self.wall, "cpu_s": time.process_time() - self.cpu}


def ours(env_id: str, num_envs: int, name: str, seed: int, iterations: int) -> dict[str, float]:
    """rgpo's own parts, as its runner puts them together."""
    import torch

    from rgpo.cli.config import build, compose_jobs

    choice = name.partition("-")[2]
    axes = {"": [], "trpo": ["algo=trpo"], "uncompiled": ["update.compile=false"]}.get(choice, [f"gate={choice}"])
    axes += [] if choice == "trpo" else ["update.anneal_lr=false"]  # as the rivals' defaults have it
    size = [f"task.num_envs={num_envs}", f"task.num_steps={SAMPLES[env_id] // num_envs}"]
    words = ["algo=ppo", "update.compile=true", f"task={TASKS[env_id]}", *axes, *size]
    prefix = "update.critic_" if choice == "trpo" else "update.num_"
    words += [f"{prefix}epochs={EPOCHS}", f"{prefix}minibatches={SAMPLES[env_id] // MINIBATCH}"]
    config = compose_jobs([*words, f"num_iterations={iterations}"], False, None)[0].config
    torch.set_num_threads(1)
    task, algorithm = build(config)
    task.setup(3 * seed + 1, algorithm.requirements)
    policy = task.make_policy(3 * seed + 2)
    algorithm.setup(policy, iterations, 3 * seed + 3)
    watch, phases = Stopwatch(), dict.fromkeys(("collect_s", "update_s", "diagnostics_s", "gradvar_s"), 0.0)
    returns: list[float] = []
    for i in range(iterations):
        if i == 1:
            watch.start()
        before = time.perf_counter()
        rollout = task.collect(policy)
        collected = time.perf_counter() - before
        metrics = algorithm.learn(policy, rollout, i % config["gradvar_every"] == 0)
        returns += [rollout.metrics.get("return/train_mean", 0.0)] * int(rollout.metrics["return/num_episodes"])
        if i >= 1:
            phases["collect_s"] += collected
            for phase in ("update_s", "diagnostics_s", "gradvar_s"):
                phases[phase] += metrics.get(f"time/{phase}", 0.0)
    return watch.stop() | phases | {"return": statistics.fmean(returns[-EPISODES:])}


def sb3(env_id: str, num_envs: int, name: str, seed: int, iterations: int) -> dict[str, float]:
    """Stable-Baselines3's PPO or sb3-contrib's TRPO with the same numbers."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    watch, rollouts = Stopwatch(), []

    class Watch(BaseCallback):
        def _on_rollout_start(self) -> None:
            rollouts.append(len(rollouts))
            if len(rollouts) == 2:
                watch.start()

        def _on_step(self) -> bool:
            return True

    env = make_vec_env(env_id, n_envs=num_envs, seed=2 * seed + 1)
    if env_id != "CartPole-v1":
        env = VecNormalize(env)
    shared = {"n_steps": SAMPLES[env_id] // num_envs, "batch_size": MINIBATCH, "device": "cpu"}
    if name.endswith("trpo"):
        from sb3_contrib import TRPO

        model = TRPO("MlpPolicy", env, **shared, n_critic_updates=10, cg_max_steps=10, seed=2 * seed + 2)
    else:
        model = PPO("MlpPolicy", env, **shared, n_epochs=EPOCHS, ent_coef=0.0, seed=2 * seed + 2)
    model.learn(iterations * SAMPLES[env_id], callback=Watch())
    assert len(rollouts) == iterations
    returns = [episode["r"] for episode in model.ep_info_buffer]
    return watch.stop() | {"return": statistics.fmean(returns[-EPISODES:])}


def plain(env_id: str, num_envs: int, name: str, seed: int, iterations: int) -> dict[str, float]:
    """PPO as one plain script over gymnasium's wrappers and torch modules, the way CleanRL lays it out."""
    import gymnasium as gym
    import numpy as np
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    discrete = env_id == "CartPole-v1"

    def make() -> Any:
        env = gym.wrappers.RecordEpisodeStatistics(gym.make(env_id))
        if discrete:
            return env
        env = gym.wrappers.NormalizeObservation(gym.wrappers.ClipAction(env))
        env = gym.wrappers.TransformObservation(env, lambda x: np.clip(x, -10, 10), env.observation_space)
        return gym.wrappers.TransformReward(gym.wrappers.NormalizeReward(env), lambda r: float(np.clip(r, -10, 10)))

    envs = gym.vector.SyncVectorEnv([make] * num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    size = int(np.prod(envs.single_observation_space.shape))
    outputs = int(envs.single_action_space.n) if discrete else int(np.prod(envs.single_action_space.shape))

    def layers(last: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, last))

    actor, critic, log_std = layers(outputs), layers(1), nn.Parameter(torch.zeros(outputs))
    parameters = [*actor.parameters(), *critic.parameters(), log_std]
    adam = torch.optim.Adam(parameters, lr=3e-4, eps=1e-5)

    def distribution(x: torch.Tensor) -> Any:
        out = actor(x)
        if discrete:
            return torch.distributions.Categorical(logits=out)
        return torch.distributions.Independent(torch.distributions.Normal(out, log_std.exp()), 1)

    steps = SAMPLES[env_id] // num_envs
    observation, _ = envs.reset(seed=1000 * seed)
    watch, returns = Stopwatch(), []
    for iteration in range(iterations):
        if iteration == 1:
            watch.start()
        rows: list[tuple[torch.Tensor, ...]] = []
        for _ in range(steps):
            seen = torch.as_tensor(observation, dtype=torch.float32)
            with torch.no_grad():
                pi = distribution(seen)
                action = pi.sample()
                logp, value = pi.log_prob(action), critic(seen)[:, 0]
            observation, reward, terminated, truncated, info = envs.step(action.numpy())
            if "final_info" in info:
                episodes = info["final_info"]["episode"]
                returns += episodes["r"][episodes["_r"]].tolist()
            done = torch.as_tensor(terminated | truncated)
            rows.append((seen, action, logp, value, torch.as_tensor(reward, dtype=torch.float32), done))
        seen, action, logp, value, reward, done = (torch.stack(column) for column in zip(*rows, strict=True))
        with torch.no_grad():
            following = critic(torch.as_tensor(observation, dtype=torch.float32))[:, 0]
        advantage, carried = torch.zeros_like(reward), torch.zeros(num_envs)
        for t in reversed(range(steps)):
            alive = 1.0 - done[t].float()
            delta = reward[t] + 0.99 * following * alive - value[t]
            carried = delta + 0.99 * 0.95 * alive * carried
            advantage[t], following = carried, value[t]
        flat = [x.flatten(0, 1) for x in (seen, action, logp, value, advantage, advantage + value)]
        for _ in range(EPOCHS):
            for index in torch.randperm(SAMPLES[env_id]).chunk(SAMPLES[env_id] // MINIBATCH):
                x, a, old, v_old, adv, target = (part[index] for part in flat)
                pi, v = distribution(x), critic(x)[:, 0]
                ratio = (pi.log_prob(a) - old).exp()
                adv = (adv - adv.mean()) / (adv.std() + 1e-8)
                policy_loss = torch.max(-adv * ratio, -adv * ratio.clamp(0.8, 1.2)).mean()
                clipped = v_old + (v - v_old).clamp(-0.2, 0.2)
                value_loss = 0.5 * torch.max((v - target) ** 2, (clipped - target) ** 2).mean()
                adam.zero_grad()
                (policy_loss + 0.5 * value_loss - 0.0 * pi.entropy().mean()).backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                adam.step()
    return watch.stop() | {"return": statistics.fmean(returns[-EPISODES:])}


def measure(env_id: str, num_envs: int, name: str, seed: int = 0, iterations: int = ITERATIONS) -> dict[str, Any]:
    """One contestant in a fresh process."""
    command = [sys.executable, __file__, "--one", env_id, str(num_envs), name, str(seed), str(iterations)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{name} on {env_id} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    steps = SAMPLES[env_id] * (iterations - 1)
    return {"steps_per_cpu_s": steps / found["cpu_s"], "steps_per_s": steps / found["wall_s"], **found}


def one(env_id: str, num_envs: str, name: str, seed: str = "0", iterations: str = str(ITERATIONS)) -> None:
    """Print what one contestant measured in this process."""
    contestant = {"ours": ours, "sb3": sb3, "plain": plain}[name.partition("-")[0]]
    found = contestant(env_id, int(num_envs), name, int(seed), int(iterations))
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps(found))


def learning(seeds: int, out: str | None) -> None:
    """Train every learner on HalfCheetah-v4 with each seed and print the returns."""
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name in LEARNERS:
            row = {"seed": seed, "env_id": "HalfCheetah-v4", "num_envs": 1, "contestant": name}
            rows.append(row | measure("HalfCheetah-v4", 1, name, seed, LEARNING_ITERATIONS))
            print(f"seed {seed} {name:20} return {rows[-1]['return']:8.1f}", flush=True)
        keep(rows, out)
    for name in LEARNERS:
        returns = [row["return"] for row in rows if row["contestant"] == name]
        spread = statistics.stdev(returns) / len(returns) ** 0.5 if len(returns) > 1 else float("nan")
        print(f"{name:20} {statistics.fmean(returns):8.1f} +- {spread:.1f} over {len(returns)} seeds")


def speed(rounds: int, out: str | None) -> None:
    """Interleave the contestants, print medians and ratios, keep every row."""
    for case in CASES:
        if case[2].startswith("ours"):
            measure(*case)  # fills the cache of compiled code
    rows: list[dict[str, Any]] = []
    for i in range(rounds):
        for env_id, num_envs, name in CASES if i % 2 == 0 else CASES[::-1]:
            row = {"round": i, "env_id": env_id, "num_envs": num_envs, "contestant": name} | measure(env_id, num_envs, name)
            rows.append(row)
            print(f"round {i} {env_id:15} x{num_envs} {name:20} {row['steps_per_cpu_s']:8,.0f} steps per CPU-s", flush=True)
        keep(rows, out)
    print()
    for env_id, num_envs, name in CASES:
        mine = speeds(rows, env_id, num_envs, name)
        line = f"{env_id:15} x{num_envs} {name:20} {statistics.median(mine):8,.0f} steps per CPU-s"
        for rival in rivals(name):
            ratios = [a / b for a, b in zip(mine, speeds(rows, env_id, num_envs, rival), strict=True)]
            line += f"   {statistics.median(ratios):5.2f} x {rival} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(line)


def rivals(name: str) -> list[str]:
    """Whom a contestant is compared with."""
    if not name.startswith("ours"):
        return []
    return {"ours": ["sb3", "plain"], "ours-trpo": ["sb3-trpo"]}.get(name, ["ours"])


def speeds(rows: list[dict[str, Any]], env_id: str, num_envs: int, name: str) -> list[float]:
    """A contestant's speeds in the order of the rounds."""
    key = (env_id, num_envs, name)
    return [row["steps_per_cpu_s"] for row in rows if (row["env_id"], row["num_envs"], row["contestant"]) == key]


def keep(rows: list[dict[str, Any]], out: str | None) -> None:
    """Write what there is so far."""
    if out is not None:
        import pandas as pd

        pd.DataFrame(rows).to_parquet(out)


def main() -> None:
    """Read the command line."""
    words = sys.argv[1:]
    if words[:1] == ["--one"]:
        return one(*words[1:])
    run, words = (learning, words[1:]) if words[:1] == ["learning"] else (speed, words)
    run(int(words[0]) if words else 5, words[1] if len(words) > 1 else None)


if __name__ == "__main__":
    main()
