import gymnasium as gym
import numpy as np
import torch
from torch.distributions import Categorical

from rgpo import gates
from rgpo.core.advantages import GAE
from rgpo.core.rollout import Rollout
from rgpo.core.surrogate import Detached, surrogate

torch.manual_seed(0)
envs = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 8, autoreset_mode="SameStep")
envs = gym.wrappers.vector.RecordEpisodeStatistics(envs, buffer_length=20)
actor, critic = (torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, n)) for n in (2, 1))
adam = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3)
estimator = GAE(gamma=0.99, lam=0.95, bootstrap_truncated=True, normalize="minibatch")
clip = {"gate": gates.Clip(eps_low=0.2, eps_high=0.2, cap=None), "ref_gate": gates.Open(), "combine": Detached()}
observation, _ = envs.reset(seed=0)
for iteration in range(40):
    steps = []  # 128 steps of 8 environments
    for _ in range(128):
        with torch.no_grad():
            action = Categorical(logits=actor(torch.as_tensor(observation))).sample().numpy()
        start, (observation, reward, terminated, truncated, info) = observation, envs.step(action)
        following = [info["final_obs"][i] if terminated[i] or truncated[i] else observation[i] for i in range(8)]
        steps.append((start, action, reward, terminated, terminated | truncated, following))
    start, action, reward, terminated, done, following = map(np.array, zip(*steps, strict=True))
    x, a = torch.as_tensor(start).flatten(0, 1), torch.as_tensor(action).flatten()
    with torch.no_grad():
        value, next_value = (critic(torch.as_tensor(s))[..., 0].double().numpy() for s in (start, following))
        logp_old = Categorical(logits=actor(x)).log_prob(a)
    rollout = Rollout(reward=reward, terminated=terminated, done=done, value=value, next_value=next_value, metrics={})
    advantage, target = (torch.as_tensor(y.ravel()).float() for y in estimator(rollout))
    for i in torch.cat([torch.randperm(1024).view(4, 256) for _ in range(4)]):  # 4 epochs of 4 minibatches
        d, A = Categorical(logits=actor(x[i])).log_prob(a[i]) - logp_old[i], advantage[i]
        policy_loss = surrogate(d, d, (A - A.mean()) / A.std(), torch.zeros_like(d), **clip, kl_coef=0.0).loss
        adam.zero_grad()
        (policy_loss + (critic(x[i])[:, 0] - target[i]) ** 2 / 2).mean().backward()
        adam.step()
    print(f"iteration {iteration + 1}: mean return of the last 20 episodes {np.mean(envs.return_queue):.0f}")
