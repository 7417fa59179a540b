"""Separate actor and critic networks whose parameters are one flat float32 vector: [actor | log_std | critic].

The vector is what updates climb and checkpoints keep. Acting reads it through numpy views, because a call into torch for
one observation costs more than the network itself; learning reads it through ``unflatten``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from rgpo.control.distributions import Categorical, Distribution, Gaussian
from rgpo.control.mlp import MLP
from rgpo.core.rollout import Array, Batch, Moved, Rollout
from rgpo.learning.loss import actor_critic_loss, critic_loss, policy_loss
from rgpo.learning.minibatch_adam import Measure, MinibatchAdam, nothing
from rgpo.learning.types import AdamSettings, CriticSettings


def tanh(x: Tensor) -> Tensor:
    """2/(1 + exp(-2x)) - 1, to 2e-7: torch's own takes four times as long."""
    return 2 * (2 * x).sigmoid() - 1


class ActorCritic:
    """pi(a|s) and V(s) over flat observations; `discrete` chooses categorical or diagonal Gaussian actions."""

    def __init__(self, mlp: MLP, observation_size: int, action_size: int, discrete: bool, generator: Generator) -> None:
        self.mlp = mlp
        self.discrete = discrete
        self.action_size = action_size
        self.observation_size = observation_size
        actor = (observation_size, *mlp.hidden_sizes, action_size)
        critic = (observation_size, *mlp.hidden_sizes, 1)
        self.actor_shapes = [s for i, o in pairwise(actor) for s in ((i, o), (o,))]
        self.critic_shapes = [s for i, o in pairwise(critic) for s in ((i, o), (o,))]
        if not discrete:
            self.actor_shapes.append((action_size,))
        self.shapes = self.actor_shapes + self.critic_shapes
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.num_actor_parameters = sum(math.prod(shape) for shape in self.actor_shapes)
        self.parameters: Tensor = torch.empty(sum(self.sizes))
        self._initialise(generator)
        self._tensors = self.unflatten(self.parameters)
        views = [t.numpy() for t in self._tensors]
        self._actor, self._critic = views[: len(actor) * 2 - 2], views[len(self.actor_shapes) :]
        self._act: Callable[..., Any] = np.tanh if mlp.activation == "tanh" else partial(np.maximum, 0.0)

    def _initialise(self, generator: Generator) -> None:
        tensors = self.unflatten(self.parameters)
        last_policy_layer = 2 * len(self.mlp.hidden_sizes)
        gains = {last_policy_layer: self.mlp.policy_gain, len(tensors) - 2: self.mlp.value_gain}
        width = 1  # inputs of the present layer
        for i, tensor in enumerate(tensors):
            width = tensor.shape[0] if tensor.dim() == 2 else width
            if not self.mlp.orthogonal_init:
                tensor.uniform_(-1, 1, generator=generator).div_(math.sqrt(width))
            elif tensor.dim() == 2:
                gain = gains.get(i, math.sqrt(2))
                tensor.copy_(torch.nn.init.orthogonal_(torch.empty_like(tensor.T), gain, generator=generator).T)
            else:
                tensor.zero_()
        if not self.discrete:
            tensors[len(self.actor_shapes) - 1].fill_(self.mlp.log_std_init)

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """Views of flat (P,) as weights (in, out), biases (out,) and, for Gaussians, log_std (A,)."""
        return [part.view(shape) for part, shape in zip(torch.split(flat, self.sizes), self.shapes, strict=True)]

    def forward(self, flat: Tensor, observation: Tensor) -> tuple[Distribution, Tensor]:
        """pi(.|observation) and V(observation) (N,) at the parameters flat (P,); observation (N, D)."""
        tensors = self.unflatten(flat)
        count = len(self.actor_shapes)
        return self._policy(tensors[:count], observation), self._network(tensors[count:], observation).squeeze(-1)

    def distribution(self, flat: Tensor, observation: Tensor) -> Distribution:
        """pi(.|observation) alone."""
        return self._policy(self.unflatten(flat)[: len(self.actor_shapes)], observation)

    def value(self, flat: Tensor, observation: Tensor) -> Tensor:
        """V(observation) (N,) alone."""
        return self._network(self.unflatten(flat)[len(self.actor_shapes) :], observation).squeeze(-1)

    def compare(self, flat: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The first fields of Moved, each (N,): the parameters flat (P,) compared with those that collected the batch."""
        new = self.distribution(flat, batch.observation)
        return new.log_prob(batch.action) - batch.logp_old, new.kl_from(batch.old), new.entropy()

    def _policy(self, tensors: list[Tensor], observation: Tensor) -> Distribution:
        output = self._network(tensors if self.discrete else tensors[:-1], observation)
        if self.discrete:
            return Categorical(output.log_softmax(-1))
        return Gaussian(output, torch.broadcast_to(tensors[-1], output.shape))

    def _network(self, tensors: list[Tensor], x: Tensor) -> Tensor:
        for i in range(0, len(tensors) - 2, 2):
            x = x @ tensors[i] + tensors[i + 1]
            x = tanh(x) if self.mlp.activation == "tanh" else x.relu()
        return (tensors[-2].T @ x.T).T + tensors[-1]  # few columns: torch's BLAS takes half the time on the transposes

    def state_dict(self) -> Tensor:
        """The parameters (P,)."""
        return self.parameters.clone()

    def load_state_dict(self, flat: Tensor) -> None:
        """Take over the parameters flat (P,), in place, so that acting sees them."""
        self.parameters.copy_(flat)

    def act(self, observation: Array, noise: Array) -> Array:
        """Draw actions for observation (E, D) float32 with noise (E, A) of ``draw_noise``; none of it gives the mode.

        Returns (E, A) float32 or (E,) int64.
        """
        action = self.mode_output(observation)
        action += noise
        choice: Array = action.argmax(-1) if self.discrete else action
        return choice

    def mode_output(self, observation: Array) -> Array:
        """Logits or Gaussian means (N, A) for observation (N, D), in numpy."""
        return self._evaluate(self._actor, observation)

    def values(self, observation: Array) -> Array:
        """V (N,) of observation (N, D), in numpy."""
        return self._evaluate(self._critic, observation).ravel()

    def _evaluate(self, layers: list[Array], x: Array) -> Array:
        for i in range(0, len(layers), 2):
            x = x.dot(layers[i])  # dot is half the time of @ on one row
            x += layers[i + 1]
            if i + 2 < len(layers):
                self._act(x, out=x)
        return x

    def draw_noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        """What to add to ``mode_output`` at the present parameters, (*shape, A) float32: Gumbel, or std times Gaussian."""
        size = (*shape, self.action_size)
        if self.discrete:
            return rng.gumbel(size=size).astype(np.float32)
        std = self._tensors[len(self.actor_shapes) - 1].exp().numpy()
        noise: Array = std * rng.standard_normal(size).astype(np.float32)
        return noise

    def make_batch(self, rollout: Rollout, advantage: Array, value_target: Array) -> tuple[Batch, dict[str, Any]]:
        """Flatten a rollout (T, E) to N samples, and what it says of critic and advantages.

        The old log-probabilities are recomputed by the forward pass that training uses, so that the ratio starts at 1.
        """
        unexplained, spread = (value_target - rollout.value).var(), value_target.var()
        observation = torch.from_numpy(rollout.observation.reshape(-1, self.observation_size))
        action = torch.from_numpy(rollout.action.reshape(-1, *rollout.action.shape[2:]))
        with torch.no_grad():
            old = self.distribution(self.parameters, observation)
            logp_old = old.log_prob(action)
        flat = (torch.from_numpy(x.reshape(-1).astype(np.float32)) for x in (advantage, value_target, rollout.value))
        return Batch(observation, action, logp_old, tuple(x.contiguous() for x in old), *flat), {
            "advantage/mean": advantage.mean(),
            "advantage/std": advantage.std(),
            "value/explained_variance": 1 - unexplained / spread if spread > 0 else math.nan,
        }

    @torch.no_grad()
    def moved(self, batch: Batch) -> Moved:
        """The present parameters compared with those that collected the batch."""
        return Moved(*self.compare(self.parameters, batch))

    def group_gradients(self, batch: Batch, advantage: Tensor, objective: Callable[..., Any], groups: Array) -> Iterator[Tensor]:
        """The actor's gradient (P,) of the surrogate without its penalty, averaged over each group; groups (M, b)."""

        def loss_of(flat: Tensor, index: Tensor) -> Tensor:
            group = batch.select(index)
            new = self.distribution(flat, group.observation)
            return policy_loss(new, group, advantage.index_select(0, index), objective=objective)[0]

        per_group = torch.func.vmap(torch.func.grad(loss_of), (None, 0))(self.parameters, torch.from_numpy(groups))
        yield from per_group[:, : self.num_actor_parameters]

    def adam(self, settings: AdamSettings) -> MinibatchAdam:
        """Minibatch Adam on actor and critic, compiled where that pays."""
        loss_function = partial(
            actor_critic_loss,
            policy=self,
            objective=settings.objective,
            penalised=settings.penalised,
            normalize=settings.normalize,
            vf_coef=settings.vf_coef,
            ent_coef=settings.ent_coef,
            value_clip=settings.value_clip,
        )
        return self._adam(loss_function, self.compare, settings, settings.max_grad_norm, settings.adam_eps)

    def critic_adam(self, settings: CriticSettings) -> MinibatchAdam:
        """Minibatch Adam on the critic alone, with the published eps."""
        return self._adam(partial(critic_loss, policy=self), nothing, settings, None, 1e-5)

    def _adam(
        self,
        loss_function: Any,
        measure: Measure,
        settings: AdamSettings | CriticSettings,
        max_grad_norm: float | None,
        adam_eps: float,
    ) -> MinibatchAdam:
        return MinibatchAdam(
            self.parameters,
            loss_function,
            measure,
            num_minibatches=settings.num_minibatches,
            max_grad_norm=max_grad_norm,
            adam_eps=adam_eps,
            compile=settings.compile,
            num_steps=settings.num_steps,
            seed=settings.seed,
        )

    def local_model(self, batch: Batch, advantage: Tensor, objective: Callable[..., Any]) -> FlatLocalModel:
        """Gradient, Fisher products and trial steps of the actor."""
        return FlatLocalModel(self, batch, advantage, objective)


class FlatLocalModel:
    """The surrogate and KL(old || new) around an actor-critic's present parameters; steps and gradients are the actor's."""

    def __init__(self, policy: ActorCritic, batch: Batch, advantage: Tensor, objective: Callable[..., Any]) -> None:
        self.policy = policy
        self.count = policy.num_actor_parameters
        self._batch = batch
        self._loss_of = partial(policy_loss, batch=batch, advantage=advantage, objective=objective)
        self._flat = policy.parameters.clone().requires_grad_()
        self._loss, kl = self._surrogate(self._flat)
        self.loss = self._loss.item()
        self._slope = torch.autograd.grad(kl, self._flat, create_graph=True)[0][: self.count]

    def _surrogate(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        new = self.policy.distribution(flat, self._batch.observation)
        loss, _ = self._loss_of(new)
        return loss, new.kl_from(self._batch.old).mean()

    def gradient(self) -> Tensor:
        """Of minus the loss, (P,)."""
        return -torch.autograd.grad(self._loss, self._flat, retain_graph=True)[0][: self.count]

    def fisher_product(self, v: Tensor) -> Tensor:
        """F v by a second backward pass through the mean KL, (P,)."""
        return torch.autograd.grad(self._slope.dot(v), self._flat, retain_graph=True)[0][: self.count]

    @torch.no_grad()
    def evaluate(self, step: Tensor) -> tuple[float, float]:
        """Loss and mean KL after a step (P,), which is not kept."""
        flat = self.policy.parameters.clone()
        flat[: self.count] += step
        loss, kl = self._surrogate(flat)
        return loss.item(), kl.item()

    def move(self, step: Tensor) -> None:
        """Take the step (P,)."""
        self.policy.parameters[: self.count] += step
