"""Stable-Baselines3's PPO with our gates and KL penalties instead of its clipped ratio.

    model = GatedPPO("MlpPolicy", env, parts="gate=sigmoid", n_steps=2048).learn(100_000)

Everything else is SB3's: rollouts, callbacks, vector environments, schedules, logs, `target_kl`, value clipping, entropy bonus.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from rgpo.core.divergences import k3
from rgpo.engines.parts import GateParts, parts_of, warn_untried
from rgpo.engines.record import RecordOptions, RunRecord
from rgpo.engines.statistics import Window
from rgpo.errors import require
from rgpo.learning.loss import standardize

if TYPE_CHECKING:
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.type_aliases import RolloutBufferSamples

TRIED = ("2.9.2",)
NAMES = {  # SB3's logged name -> our metric
    "train/policy_gradient_loss": "loss/policy",
    "train/value_loss": "loss/value",
    "train/explained_variance": "value/explained_variance",
}
SETTINGS = (
    *("n_steps", "n_envs", "batch_size", "n_epochs", "gamma", "gae_lambda", "normalize_advantage", "ent_coef", "vf_coef"),
    *("max_grad_norm", "target_kl"),
)
CHUNK = 4096  # samples per forward pass when computing diagnostics


class GatedPPO(PPO):
    """PPO with the policy loss -g(d) A + coef KL; parts: a GateParts, or rgpo-run arguments.

    Gate and penalty adapt once per rollout. ``clip_range`` is replaced by the gate's own eps_low and eps_high.

    Raises: ConfigError if ``clip_range`` is not the default 0.2, or if a part needs a reference policy.
    """

    def __init__(
        self, policy: object, env: object, *args: object, parts: GateParts | str | Sequence[str] | None = None, **named: object
    ) -> None:
        if named.get("_init_setup_model", True):  # False in ``load``, which restores the saved parts
            warn_untried("stable-baselines3", TRIED)
            self.parts = parts_of("" if parts is None else parts, "control")
            self.parts.refuse_reference("Stable-Baselines3")
        super().__init__(policy, env, *args, **named)
        if named.get("_init_setup_model", True):
            clips = [self.clip_range(progress) for progress in (1.0, 0.0)]
            remedy = "would be ignored, because the gate takes its place; set the gate's own keys, such as gate.eps_low."
            require(clips == [0.2, 0.2], "clip_range", clips[0], remedy)

    def train(self) -> None:
        """Run SB3's epochs over the rollout with our loss."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_vf = None if self.clip_range_vf is None else self.clip_range_vf(self._current_progress_remaining)
        divergence = self.parts.penalty.divergence
        exact = divergence is not None and divergence.estimator == "exact"
        old = copy.deepcopy(self.policy)  # the buffer does not store the old distributions
        logged: dict[str, list[float]] = {name: [] for name in ("policy_gradient_loss", "value_loss", "entropy_loss", "loss")}
        go = True
        for epoch in range(self.n_epochs):
            approx_kls: list[float] = []
            for data in self.rollout_buffer.get(self.batch_size):
                values, logp, entropy = self._evaluate(data)
                advantage = data.advantages
                if self.normalize_advantage and len(advantage) > 1:
                    advantage = standardize(advantage)
                kl_old = self._exact_kl(old, data.observations) if exact else None
                losses, _ = self.parts.losses(logp, data.old_log_prob, advantage, kl_old=kl_old)
                policy_loss = losses.mean()
                value_loss = self._value_loss(values, data, clip_vf)
                entropy_loss = logp.mean() if entropy is None else -entropy.mean()
                loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
                for name, value in zip(logged, (policy_loss, value_loss, entropy_loss, loss), strict=True):
                    logged[name].append(value.item())
                approx_kls.append(k3((logp - data.old_log_prob).detach()).mean().item())
                if self.target_kl is not None and approx_kls[-1] > 1.5 * self.target_kl:
                    go = False
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kls[-1]:.2f}")
                    break
                self.policy.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
            self._n_updates += 1
            if not go:
                break
        self._log(logged, approx_kls)
        self._measure(old)

    def _evaluate(self, data: RolloutBufferSamples) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities and entropies (n,) at the rollout's actions; entropy is None without a closed form."""
        discrete = isinstance(self.action_space, spaces.Discrete)
        actions = data.actions.long().flatten() if discrete else data.actions
        values, logp, entropy = self.policy.evaluate_actions(data.observations, actions)
        return values.flatten(), logp, entropy

    def _value_loss(self, values: Tensor, data: RolloutBufferSamples, clip: float | None) -> Tensor:
        """Mean (V - return)^2, with V clipped to within clip of its old value; clip None: not clipped."""
        if clip is not None:
            values = data.old_values + (values - data.old_values).clamp(-clip, clip)
        return torch.nn.functional.mse_loss(data.returns, values)

    def _exact_kl(self, old: ActorCriticPolicy, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """KL(old || new) at each observation, (n,)."""
        with torch.no_grad():
            before = old.get_distribution(observations)
        found: Tensor = kl_divergence(before, self.policy.get_distribution(observations))
        return found.sum(-1) if found.dim() > 1 else found

    @torch.no_grad()
    def _measure(self, old: ActorCriticPolicy) -> None:
        """Log our diagnostics over the whole rollout after the last epoch, and adapt gate and penalty to the KL."""
        self.policy.set_training_mode(False)
        window, kls = Window(), []
        buffer = self.rollout_buffer
        for rows in np.array_split(np.arange(len(buffer.advantages)), -(-len(buffer.advantages) // CHUNK)):
            data = buffer._get_samples(rows)  # in order; SB3's get() would draw random numbers
            _, logp, entropy = self._evaluate(data)
            d_old = logp - data.old_log_prob
            _, seen = self.parts.losses(logp, data.old_log_prob, data.advantages, kl_old=torch.zeros_like(logp))
            window.add(d_old, d_old, -logp if entropy is None else entropy.expand_as(logp), seen)
            kls.append(self._exact_kl(old, data.observations))
        found = window.take(self.parts.gate, reference=False, kl=torch.cat(kls))
        for name, value in (found | {"kl/coef": self.parts.penalty.loss_coef}).items():
            self.logger.record(name, value)
        self.parts.observe(found["kl/old_exact"], 0.0)

    def _log(self, logged: dict[str, list[float]], approx_kls: list[float]) -> None:
        """Log SB3's own quantities, except those of its clip."""
        for name in ("entropy_loss", "policy_gradient_loss", "value_loss"):
            self.logger.record(f"train/{name}", sum(logged[name]) / len(logged[name]))
        self.logger.record("train/approx_kl", sum(approx_kls) / len(approx_kls))
        self.logger.record("train/loss", logged["loss"][-1])
        buffer = self.rollout_buffer
        self.logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")


class RecordRun(BaseCallback):
    """Callback that records a run of SB3's PPO, with our gates or its own loss, for rgpo-report; see ``RunRecord``.

        model.learn(100_000, callback=RecordRun(task="hopper", algo="rgpo"))

    One row is one rollout with its update; returns are taken from SB3's Monitor.
    """

    def __init__(self, *, task: str, algo: str, **options: Unpack[RecordOptions]) -> None:
        super().__init__()
        self._task, self._algo, self._options = task, algo, options
        self._returns: list[tuple[float, float]] = []  # (return, length) of each episode
        self._env_steps = 0

    def _on_training_start(self) -> None:
        model = self.model
        settings = {key: x for key in SETTINGS if isinstance(x := getattr(model, key), int | float | None)}
        policy = {"policy": type(model.policy).__name__, "learning_rate": float(model.lr_schedule(1.0))}
        rollout = model.n_steps * model.n_envs
        own: RecordOptions = {"seed": model.seed or 0, "num_iterations": -(-self.locals["total_timesteps"] // rollout)}
        own |= {"settings": settings | policy, "parts": getattr(model, "parts", None)}
        self.record = RunRecord(engine="sb3", task=self._task, algo=self._algo, **(own | self._options))
        self.record.start()

    def _on_step(self) -> bool:
        episodes = (info["episode"] for info in self.locals["infos"] if "episode" in info)
        self._returns += [(float(episode["r"]), float(episode["l"])) for episode in episodes]
        return True

    def _on_rollout_start(self) -> None:
        self._write()

    def _on_rollout_end(self) -> None:
        self._env_steps = self.model.num_timesteps

    def _on_training_end(self) -> None:
        self._write()
        self.record.finish()

    def _write(self) -> None:
        """Write the last rollout's row once its update has been logged."""
        logged = self.logger.name_to_value.items()
        found = {NAMES.get(key, key): float(x) for key, x in logged if isinstance(x, float | np.floating)}
        if "loss/policy" not in found or not self._env_steps:
            return
        found["return/num_episodes"] = float(len(self._returns))
        if self._returns:
            returns, lengths = np.array(self._returns).T
            found |= {"return/train_mean": float(returns.mean()), "return/train_std": float(returns.std())}
            found["return/length_mean"] = float(lengths.mean())
        self.record.log(self._env_steps, found)
        self._returns, self._env_steps = [], 0
