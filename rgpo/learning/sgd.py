"""Epochs of minibatch Adam: the update of PPO, REINFORCE, RGPO and most of their neighbors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

from rgpo.core.ranges import MANY, NOT_NEGATIVE, POSITIVE, check_fields, count, one_of, or_null
from rgpo.errors import require
from rgpo.learning.samples import PolicyShift, Samples
from rgpo.learning.types import Batch, Metrics, Policy, State, View

if TYPE_CHECKING:
    from torch import Tensor

    from rgpo.learning.flat_adam import Data, FlatAdam
    from rgpo.learning.loss import GateLoss, Loss, LossParts
    from rgpo.learning.micro_batch_adam import MicroBatchAdam


@dataclass(kw_only=True)
class SGD:
    """Adam over shuffled minibatches, every sample once per epoch, on policy loss + vf_coef value loss - ent_coef entropy.

    Two engines compute the same loss: for policies that are pure functions of one flat vector, all epochs are one call,
    compiled if that pays off; for torch modules, minibatches are processed in micro-batches.
    """

    num_epochs: int = field(metadata=count(10_000))
    num_minibatches: int = field(metadata=count(MANY))
    lr: float = field(metadata=POSITIVE)
    anneal_lr: bool  # linearly to 0 over the run
    adam_eps: float = field(metadata=POSITIVE)
    max_grad_norm: float | None = field(metadata=or_null(POSITIVE))  # null: no clipping
    clip_jointly: bool  # True: max_grad_norm limits the joint gradient of actor and critic; False: that of each
    vf_coef: float = field(metadata=NOT_NEGATIVE)
    ent_coef: float = field(metadata=NOT_NEGATIVE)
    value_clip: float | None = field(metadata=or_null(POSITIVE))  # null: the value loss is not clipped
    compile: bool | str = field(metadata=one_of("auto", True, False))
    target_kl: float | None = field(default=None, metadata=or_null(POSITIVE))  # nats; an epoch that exceeds it is the last

    trust_region: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_fields(self, "update")

    def validate(self, batch_size: int, normalize: str) -> None:
        """Raises: ConfigError if num_minibatches does not divide the batch, or leaves one sample to standardize over."""
        size, rest = divmod(batch_size, self.num_minibatches)
        require(
            rest == 0,
            "update.num_minibatches",
            self.num_minibatches,
            f"does not divide the batch of {batch_size}; {nearest_divisor(batch_size, self.num_minibatches)} does.",
        )
        require(
            size > 1 or normalize != "minibatch",
            "update.num_minibatches",
            self.num_minibatches,
            f"leaves {size} sample per minibatch, too few to standardize advantages over; choose fewer minibatches.",
        )

    def setup(self, policy: Policy, loss: GateLoss, normalize: str, num_iterations: int, seed: int) -> None:
        """Create the engine that the policy needs."""
        self.num_iterations = num_iterations
        self.num_updates = 0
        self._standardizes = normalize == "minibatch"
        self.optimizer: FlatAdam | MicroBatchAdam
        num_apart = None if self.clip_jointly else policy.num_actor_parameters
        whole = partial(loss, vf_coef=self.vf_coef, ent_coef=self.ent_coef, value_clip=self.value_clip)
        if policy.flat is None:
            from rgpo.learning.micro_batch_adam import MicroBatchAdam

            self.optimizer = MicroBatchAdam(
                policy,
                loss.objective,
                whole,
                normalize=normalize == "minibatch",
                max_grad_norm=self.max_grad_norm,
                num_apart=num_apart,
                adam_eps=self.adam_eps,
                seed=seed,
            )
        else:
            from rgpo.learning.flat_adam import FlatAdam

            compilable = getattr(policy, "compilable", True)
            self.optimizer = FlatAdam(
                policy.flat,
                partial(
                    flat_loss,
                    policy=policy,
                    loss=whole,
                    exact_kl=loss.exact_kl,
                    entropy=self.ent_coef != 0,
                    normalize=normalize == "minibatch",
                ),
                partial(flat_shift, policy=policy),
                num_minibatches=self.num_minibatches,
                max_grad_norm=self.max_grad_norm,
                num_apart=num_apart,
                adam_eps=self.adam_eps,
                compile=self.compile if compilable else False,
                num_steps=num_iterations * self.num_epochs * self.num_minibatches,
                seed=seed,
            )
            if not compilable:
                self.optimizer.note = "not compiled (updates of this kind of policy are not)"

    @property
    def note(self) -> str:
        """The engine's note on compilation."""
        return self.optimizer.note

    @property
    def remedy(self) -> str:
        """A clause for the error that ends a run whose training diverges."""
        return f"lower update.lr={self.lr} or set update.max_grad_norm"

    def __call__(self, policy: Policy, batch: Batch, kl_coef: float) -> tuple[Metrics, PolicyShift]:
        """Make up to num_epochs passes over the batch; returns metrics, and the shift after each epoch.

        Raises: NonFiniteStep if a loss or a gradient is NaN or infinite.
        """
        lr = self.lr * (1 - self.num_updates / self.num_iterations) if self.anneal_lr else self.lr
        statistics, shift = self._run_epochs(batch, lr, kl_coef)
        self.num_updates += 1
        table = statistics.flatten(0, 1).double()
        loss_policy, loss_value, _, _, _, grad_norm, grad_clipped = table.mean(0).tolist()
        _, _, log_ratio_max, _, _, grad_norm_max, _ = table.amax(0).tolist()
        metrics: Metrics = {
            "loss/policy": loss_policy,
            "loss/value": loss_value,
            "ratio/abs_log_max_learning": log_ratio_max,
            "ratio/clip_fraction": (table[:, 3] / table[:, 4].clamp(min=1)).mean().item(),
            "grad/norm_mean": grad_norm,
            "grad/norm_max": grad_norm_max,
            "grad/clip_fraction": grad_clipped,
        }
        return metrics, shift

    def _run_epochs(self, batch: Batch, lr: float, kl_coef: float) -> tuple[Tensor, PolicyShift]:
        """Statistics (E, M, 7) and the shift after each of E epochs: num_epochs, or fewer if target_kl is exceeded."""
        if self.target_kl is None:
            return self._run(batch, lr, kl_coef, self.num_epochs)
        import torch

        rows, shifts = [], []
        for _ in range(self.num_epochs):
            statistics, shift = self._run(batch, lr, kl_coef, 1)
            rows.append(statistics)
            shifts.append(shift)
            if not shift.kl.mean().item() <= self.target_kl:
                break
        return torch.cat(rows), PolicyShift.join(shifts)

    def _run(self, batch: Batch, lr: float, kl_coef: float, num_epochs: int) -> tuple[Tensor, PolicyShift]:
        from rgpo.learning.culprits import NonFiniteStep
        from rgpo.learning.flat_adam import FlatAdam
        from rgpo.learning.loss import standardize

        if isinstance(self.optimizer, FlatAdam):
            (minibatch,) = batch.minibatches()
            (view,) = minibatch.views
            try:
                statistics, measures = self.optimizer.run_epochs((view, batch.samples), lr, kl_coef, num_epochs)
            except NonFiniteStep as error:
                if self._standardizes:
                    error.parts = [(v, x._replace(advantage=standardize(x.advantage))) for v, x in error.parts]
                raise
            return statistics, PolicyShift(*measures)
        return self.optimizer.run_epochs(batch, lr, kl_coef, num_epochs)

    def state_dict(self) -> State:
        return {"optimizer": self.optimizer.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: State) -> None:
        self.optimizer.load_state_dict(cast(State, state["optimizer"]))
        self.num_updates = cast(int, state["num_updates"])


def flat_loss(
    flat: Tensor,
    data: Data,
    kl_coef: Tensor,
    *,
    policy: Policy,
    loss: Loss,
    exact_kl: bool,
    entropy: bool,
    normalize: bool,
) -> tuple[Tensor, LossParts]:
    """``loss`` of a minibatch (view, samples) at the parameters flat (P,); normalize: standardize its advantages."""
    from rgpo.learning.loss import standardize

    view, samples = cast(tuple[View, Samples], data)
    if normalize:
        samples = samples._replace(advantage=standardize(samples.advantage))
    out = policy.forward(view, flat=flat, kl=exact_kl, entropy=entropy)
    return loss(out, samples, kl_coef=kl_coef)


def flat_shift(flat: Tensor, data: Data, *, policy: Policy) -> tuple[Tensor, ...]:
    """The fields of PolicyShift at the parameters flat (P,)."""
    view, samples = cast(tuple[View, Samples], data)
    out = policy.forward(view, flat=flat, kl=True, value=False)
    assert out.kl_old is not None and out.entropy is not None
    return out.logp - samples.logp_old, out.kl_old, out.entropy


def nearest_divisor(number: int, target: int) -> int:
    """The divisor of number closest to target, the smaller of two; if number is huge, of those up to 1e6 and their cofactors."""
    low = [k for k in range(1, min(math.isqrt(number), 10**6) + 1) if number % k == 0]
    return min(sorted({*low, *(number // k for k in low)}), key=lambda k: abs(k - target))
