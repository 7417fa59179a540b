"""The contestants in benchmarks/control.py: PPO by rgpo, Stable-Baselines3, SBX, a plain loop, the same compiled, and JAX.

Each function trains in this process with the same samples, epochs, minibatches and networks, and returns the time from its second
rollout on, in seconds, and the mean return of its last episodes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

SAMPLES = {"HalfCheetah-v4": 2048, "Hopper-v4": 2048, "CartPole-v1": 1024}  # per rollout, over all environments
TASKS = {"HalfCheetah-v4": "halfcheetah", "Hopper-v4": "hopper", "CartPole-v1": "cartpole"}
EPOCHS, MINIBATCH, EPISODES = 10, 64, 10
Found = dict[str, float]


class Stopwatch:
    """Measures wall and CPU seconds from `start` to `stop`."""

    def start(self) -> None:
        """Start the measurement."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stop(self) -> Found:
        """Seconds since ``start``."""
        return {"wall_s": time.perf_counter() - self.wall, "cpu_s": time.process_time() - self.cpu}


def ours(env_id: str, num_envs: int, name: str, seed: int, iterations: int) -> Found:
    """rgpo's own parts, combined as in its runner."""
    import torch

    from rgpo.cli.config import build, compose_jobs

    choice = name.partition("-")[2]
    axes = {"": [], "trpo": ["algo=trpo"], "uncompiled": ["update.compile=false"]}.get(choice, [f"gate={choice}"])
    axes += [] if choice == "trpo" else ["update.anneal_lr=false"]  # as in the rivals' defaults
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


def sb3(env_id: str, num_envs: int, name: str, seed: int, iterations: int) -> Found:
    """PPO of Stable-Baselines3 or SBX (JAX), or TRPO of sb3-contrib, with the same settings."""
    import torch
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
    shared = {"n_steps": SAMPLES[env_id] // num_envs, "batch_size": MINIBATCH, "seed": 2 * seed + 2}
    model: Any
    if name == "sb3-trpo":
        from sb3_contrib import TRPO

        model = TRPO("MlpPolicy", env, **shared, device="cpu", n_critic_updates=10, cg_max_steps=10)
    elif name == "sbx":
        from sbx import PPO as JaxPPO

        model = JaxPPO("MlpPolicy", env, **shared, n_epochs=EPOCHS, ent_coef=0.0)
    else:
        from stable_baselines3 import PPO

        model = PPO("MlpPolicy", env, **shared, device="cpu", n_epochs=EPOCHS, ent_coef=0.0)
    model.learn(iterations * SAMPLES[env_id], callback=Watch())
    assert len(rollouts) == iterations
    returns = [episode["r"] for episode in model.ep_info_buffer]
    return watch.stop() | {"return": statistics.fmean(returns[-EPISODES:])}


def plain(env_id: str, num_envs: int, name: str, seed: int, iterations: int) -> Found:
    """PPO as a single script with gymnasium's wrappers and torch modules, as in CleanRL; "compiled" compiles it as in LeanRL."""
    import gymnasium as gym
    import numpy as np
    import torch
    from torch import Tensor, nn

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

    def distribution(x: Tensor) -> Any:
        out = actor(x)
        if discrete:
            return torch.distributions.Categorical(logits=out, validate_args=False)
        normal = torch.distributions.Normal(out, log_std.exp(), validate_args=False)
        return torch.distributions.Independent(normal, 1, validate_args=False)

    def act(seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            pi = distribution(seen)
            action = pi.sample()
            return action, pi.log_prob(action), critic(seen)[:, 0]

    def update(x: Tensor, a: Tensor, old: Tensor, v_old: Tensor, adv: Tensor, target: Tensor) -> None:
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

    if name == "compiled":
        act, update = torch.compile(act), torch.compile(update)
    steps = SAMPLES[env_id] // num_envs
    observation, _ = envs.reset(seed=1000 * seed)
    watch, returns = Stopwatch(), []
    for iteration in range(iterations):
        if iteration == 1:
            watch.start()
        rows: list[tuple[Tensor, ...]] = []
        for _ in range(steps):
            seen = torch.as_tensor(observation, dtype=torch.float32)
            action, logp, value = act(seen)
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
                update(*(part[index] for part in flat))
    return watch.stop() | {"return": statistics.fmean(returns[-EPISODES:])}


def jitted(env_id: str, num_envs: int, name: str, seed: int, iterations: int) -> Found:
    """PPO and CartPole in JAX, with one iteration of both compiled as a single function, like PureJaxRL."""
    import jax
    import optax
    from jax import numpy as jnp

    assert env_id == "CartPole-v1", "the only environment that is written in JAX here"
    steps = SAMPLES[env_id] // num_envs
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(3e-4, eps=1e-5))

    def network(key: Any, outputs: int) -> list[tuple[Any, Any]]:
        sizes = [(4, 64), (64, 64), (64, outputs)]
        keys = jax.random.split(key, len(sizes))
        return [(jax.random.normal(k, size) / size[0] ** 0.5, jnp.zeros(size[1])) for k, size in zip(keys, sizes, strict=True)]

    def forward(layers: list[tuple[Any, Any]], x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = jnp.tanh(x @ weight + bias)
        return x @ layers[-1][0] + layers[-1][1]

    def start(key: Any) -> Any:
        return jax.random.uniform(key, (num_envs, 4), minval=-0.05, maxval=0.05)

    def step(state: Any, action: Any) -> Any:
        """One step of gymnasium's CartPole-v1."""
        x, speed, angle, turning = state.T
        force = jnp.where(action == 1, 10.0, -10.0)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        push = (force + 0.05 * turning**2 * sin) / 1.1
        turn = (9.8 * sin - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
        moved = (x + 0.02 * speed, speed + 0.02 * (push - 0.05 * turn * cos / 1.1), angle + 0.02 * turning, turning + 0.02 * turn)
        return jnp.stack(moved, 1)

    def collect(carry: Any, key: Any) -> Any:
        (actor, critic), state, length = carry
        key_action, key_start = jax.random.split(key)
        logits = jax.nn.log_softmax(forward(actor, state))
        action = jax.random.categorical(key_action, logits)
        logp = jnp.take_along_axis(logits, action[:, None], 1)[:, 0]
        new, length = step(state, action), length + 1
        terminated = (jnp.abs(new[:, 0]) > 2.4) | (jnp.abs(new[:, 2]) > 0.2095)
        done = terminated | (length >= 500)
        row = (state, action, logp, forward(critic, state)[:, 0], done, jnp.where(done, length, 0))
        return ((actor, critic), jnp.where(done[:, None], start(key_start), new), jnp.where(done, 0, length)), row

    def loss(parameters: Any, batch: Any) -> Any:
        x, a, old, v_old, adv, target = batch
        logits, v = jax.nn.log_softmax(forward(parameters[0], x)), forward(parameters[1], x)[:, 0]
        ratio = jnp.exp(jnp.take_along_axis(logits, a[:, None], 1)[:, 0] - old)
        adv = (adv - adv.mean()) / (adv.std() + 1e-8)
        clipped = v_old + jnp.clip(v - v_old, -0.2, 0.2)
        value_loss = 0.5 * jnp.maximum((v - target) ** 2, (clipped - target) ** 2).mean()
        return jnp.maximum(-adv * ratio, -adv * jnp.clip(ratio, 0.8, 1.2)).mean() + 0.5 * value_loss

    @jax.jit
    def iteration(parameters: Any, moments: Any, state: Any, length: Any, key: Any) -> Any:
        key, key_collect, key_epochs = jax.random.split(key, 3)
        (_, state, length), rows = jax.lax.scan(collect, (parameters, state, length), jax.random.split(key_collect, steps))
        seen, action, logp, value, done, ended = rows

        def back(carry: Any, row: Any) -> Any:
            carried, following = carry
            v, over = row
            carried = 1.0 + 0.99 * following * (1 - over) - v + 0.99 * 0.95 * (1 - over) * carried
            return (carried, v), carried

        last = forward(parameters[1], state)[:, 0]
        _, advantage = jax.lax.scan(back, (jnp.zeros(num_envs), last), (value, done), reverse=True)
        flat = [x.reshape(-1, *x.shape[2:]) for x in (seen, action, logp, value, advantage, advantage + value)]

        def descend(carry: Any, index: Any) -> Any:
            parameters, moments = carry
            gradient = jax.grad(loss)(parameters, [x[index] for x in flat])
            change, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(parameters, change), moments), None

        order = jax.vmap(lambda k: jax.random.permutation(k, SAMPLES[env_id]))(jax.random.split(key_epochs, EPOCHS))
        (parameters, moments), _ = jax.lax.scan(descend, (parameters, moments), order.reshape(-1, MINIBATCH))
        return parameters, moments, state, length, key, ended

    keys = jax.random.split(jax.random.PRNGKey(seed), 4)
    parameters = (network(keys[0], 2), network(keys[1], 1))
    carry = (parameters, optimizer.init(parameters), start(keys[2]), jnp.zeros(num_envs, int), keys[3])
    watch, returns = Stopwatch(), []
    for i in range(iterations):
        if i == 1:
            watch.start()
        *carry, ended = iteration(*carry)
        ended = jax.device_get(ended)
        returns += ended[ended > 0].tolist()
    return watch.stop() | {"return": statistics.fmean(returns[-EPISODES:])}


CONTESTANTS: dict[str, Callable[[str, int, str, int, int], Found]] = {
    "ours": ours,
    "sb3": sb3,
    "sbx": sb3,
    "plain": plain,
    "compiled": plain,
    "jax": jitted,
}
PACKAGES = {"sb3": "stable_baselines3", "sbx": "sbx", "jax": "optax"}  # packages that contestants need in addition to rgpo's own
