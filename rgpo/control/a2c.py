"""A2C (Mnih et al. 2016, arXiv 1602.01783, Algorithm S3) as in Stable-Baselines3 2.9: one RMSprop step per short rollout.

Known deviations from the paper, all of them Stable-Baselines3's: actor and critic share no layer, vf_coef multiplies the squared
error without 1/2, RMSprop adds eps outside the square root, and the learning rate is constant unless anneal_lr is set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from rgpo.core.advantages import Advantage
from rgpo.core.ranges import NOT_NEGATIVE, POSITIVE, UNIT_INTERVAL, check_fields, or_null
from rgpo.core.rollout import Rollout
from rgpo.errors import ConfigError, require
from rgpo.learning.algorithm import describe_part, estimate
from rgpo.learning.clock import Clock
from rgpo.learning.samples import PolicyOutput, Samples
from rgpo.learning.types import Batch, Metrics, Policy, Requirements, State

if TYPE_CHECKING:
    from torch import Tensor


class Terms(NamedTuple):
    """The terms of the loss, each a mean over the rollout."""

    policy: Tensor  # -A log pi
    value: Tensor  # (V - target)^2
    entropy: Tensor  # nats


def a2c_loss(out: PolicyOutput, samples: Samples, *, vf_coef: float, ent_coef: float) -> tuple[Tensor, Terms]:
    """mean of -A log pi(a|s) + vf_coef (V(s) - target)^2 - ent_coef H(pi(.|s)), and its terms."""
    assert out.entropy is not None and out.value is not None
    policy = -(samples.advantage * out.logp).mean()
    value = (out.value - samples.value_target).square().mean()
    entropy = out.entropy.mean()
    terms = Terms(policy.detach(), value.detach(), entropy.detach())
    return policy + vf_coef * value - ent_coef * entropy, terms


def policy_gradient(
    d_old: Tensor, d_ref: Tensor, advantage: Tensor, kl: Tensor, *, kl_coef: Tensor | float, **unused: object
) -> tuple[Tensor, Tensor]:
    """The policy term as an objective for rgpo.learning.gradients: -A d_old has the gradient -A grad log pi."""
    return -advantage * d_old, d_old


def rmsprop(
    parameters: Tensor, square: Tensor, gradient: Tensor, *, lr: float, alpha: float, eps: float
) -> tuple[Tensor, Tensor]:
    """v' = alpha v + (1 - alpha) g^2, theta' = theta - lr g/(sqrt v' + eps); returns theta' and v', all (P,)."""
    square = alpha * square + (1 - alpha) * gradient.square()
    return parameters - lr * gradient / (square.sqrt() + eps), square


@dataclass(kw_only=True)
class A2C:
    """Advantage actor-critic; rollouts of n steps and lam = 1 in the advantage axis give n-step returns."""

    advantage: Advantage
    lr: float = field(metadata=POSITIVE)
    anneal_lr: bool  # linearly to 0 over the run
    rms_alpha: float = field(metadata=UNIT_INTERVAL)  # decay of the mean squared gradient per step
    rms_eps: float = field(metadata=POSITIVE)
    max_grad_norm: float | None = field(metadata=or_null(POSITIVE))  # of actor and critic together; null: no clipping
    vf_coef: float = field(metadata=NOT_NEGATIVE)
    ent_coef: float = field(metadata=NOT_NEGATIVE)

    note = "not compiled"

    def __post_init__(self) -> None:
        check_fields(self, "algorithm")

    @property
    def requirements(self) -> Requirements:
        """A critic; also groups if the chosen estimator compares completions, which control tasks reject."""
        return Requirements(gamma=self.advantage.gamma, critic=True, num_minibatches=1, groups=self.advantage.needs_groups)

    def describe(self) -> dict[str, str]:
        """The advantage estimator, and the update with its knobs."""
        knobs = (f"{f.name}={describe_part(getattr(self, f.name))}" for f in fields(self) if f.name != "advantage")
        return {"advantage": describe_part(self.advantage), "update": f"A2C({', '.join(knobs)})"}

    @property
    def remedy(self) -> str:
        """A clause for the error that ends a run whose training diverges."""
        return f"lower algorithm.lr={self.lr} or set algorithm.max_grad_norm"

    def validate(self, batch_size: int) -> None:
        """Raises: ConfigError if advantages would be standardized over a single sample."""
        normalize = self.advantage.normalize
        few = batch_size == 1 and normalize != "none"
        require(not few, "advantage.normalize", normalize, "cannot standardize a rollout of one sample; use none.")

    def setup(self, policy: Policy, num_iterations: int, seed: int) -> None:
        """Initialize the mean squared gradient to zero; draws no random numbers.

        Raises: ConfigError for a policy that is not a function of one parameter vector.
        """
        if policy.flat is None:
            raise ConfigError("algo=a2c: trains actor-critics of control tasks; choose one of those, such as task=cartpole.")
        self.num_iterations, self.num_updates = num_iterations, 0
        self.square = policy.flat * 0  # (P,) running mean of the squared gradient

    @np.errstate(over="ignore", invalid="ignore")  # a more detailed error takes the place of numpy's warning
    def learn(self, policy: Policy, rollout: Rollout, measure_variance: bool) -> Metrics:
        """Take one gradient step on the whole rollout.

        Raises: NonFiniteError if the loss, the gradient or the KL is NaN or infinite; it names the first quantity that was.
        """
        from rgpo.learning import culprits, diagnostics
        from rgpo.learning.gradients import group_gradients
        from rgpo.learning.loss import standardize

        assert policy.flat is not None
        clock = Clock()
        advantage_TE, target_TE = estimate(self.advantage, rollout)
        batch = policy.make_batch(rollout, advantage_TE, target_TE)
        if self.advantage.normalize != "none":  # the rollout is the only minibatch
            batch = batch.with_advantage(standardize(batch.samples.advantage))
        metrics = diagnostics.credit_statistics(rollout, advantage_TE, target_TE, critic=True)
        clock.add("update")
        groups = rollout.groups()
        if measure_variance:
            metrics["gradvar/num_groups"] = len(groups)
            gradients = group_gradients(policy, batch, policy_gradient, groups)
            metrics |= diagnostics.gradient_variance("before", gradients, groups.shape[1])
            clock.add("gradvar")
        try:
            metrics |= self._step(policy.flat, policy, batch)
        except culprits.NonFiniteStep as error:
            credit = culprits.Credit(type(self.advantage).__name__, advantage_TE, target_TE)
            raise culprits.explain(error, policy, rollout, credit, {}, self.remedy) from error
        clock.add("update")
        shift = policy.measure_shift(batch)
        kl = shift.kl.mean().item()
        if not math.isfinite(kl):
            raise culprits.explain_shift(kl, policy, self.remedy)
        metrics |= {"kl/old_exact": kl, "policy/entropy": shift.entropy.mean().item()}
        clock.add("diagnostics")
        if measure_variance:
            gradients = group_gradients(policy, batch, policy_gradient, groups)
            metrics |= diagnostics.gradient_variance("after", gradients, groups.shape[1])
            clock.add("gradvar")
        return metrics | clock.seconds

    def _step(self, flat: Tensor, policy: Policy, batch: Batch) -> Metrics:
        """Take the gradient step, overwriting flat (P,), the policy's own parameters."""
        import torch

        from rgpo.learning.adam import clip_by_norm
        from rgpo.learning.culprits import NonFiniteStep

        leaf = flat.clone().requires_grad_()
        ((view,),) = (minibatch.views for minibatch in batch.minibatches())
        out = policy.forward(view, flat=leaf)
        loss, terms = a2c_loss(out, batch.at(view), vf_coef=self.vf_coef, ent_coef=self.ent_coef)
        (gradient,) = torch.autograd.grad(loss, leaf)
        gradient, norm = clip_by_norm(gradient, self.max_grad_norm)
        if not (loss.isfinite() and norm.isfinite()):
            raise NonFiniteStep("the gradient step", [(view, batch.at(view))], flat)
        lr = self.lr * (1 - self.num_updates / self.num_iterations) if self.anneal_lr else self.lr
        moved, self.square = rmsprop(flat, self.square, gradient, lr=lr, alpha=self.rms_alpha, eps=self.rms_eps)
        flat.copy_(moved)
        self.num_updates += 1
        clipped = self.max_grad_norm is not None and norm.item() > self.max_grad_norm
        return {
            "a2c/policy_loss": terms.policy.item(),
            "a2c/value_loss": terms.value.item(),
            "a2c/entropy": terms.entropy.item(),
            "grad/norm_mean": norm.item(),
            "grad/norm_max": norm.item(),
            "grad/clip_fraction": float(clipped),
        }

    def state_dict(self) -> State:
        return {"square": self.square, "num_updates": self.num_updates}

    def load_state_dict(self, state: State) -> None:
        self.square = cast("Tensor", state["square"])
        self.num_updates = cast(int, state["num_updates"])
