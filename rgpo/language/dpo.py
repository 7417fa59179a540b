"""DPO (Rafailov et al. 2023, arXiv 2305.18290, Eq. 7): learns from stored pairs of answers, without sampling.

    loss = -log sigmoid(beta (d_chosen - d_rejected)),    d = sum over an answer's tokens of log pi - log pi_ref

Known deviations: log-probabilities are taken at task.temperature, 1 by default; Adam, as in TRL, instead of the paper's RMSprop.
Names: an iteration has B answers with N tokens in total; answers 2i and 2i + 1 are the chosen and the rejected one of pair i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from rgpo import distributed
from rgpo.core.ranges import MANY, POSITIVE, check_fields, count, or_null
from rgpo.core.rollout import Array, Rollout
from rgpo.errors import require
from rgpo.language.policy.pretrained import as_language_model
from rgpo.learning.algorithm import describe_part
from rgpo.learning.clock import Clock
from rgpo.learning.types import Metrics, Policy, Requirements, State

if TYPE_CHECKING:
    from torch import Tensor

    from rgpo.language.policy.language_model import LanguageModel
    from rgpo.language.policy.packing import MicroBatch
    from rgpo.language.policy.token_batch import TokenBatch


class PairTerms(NamedTuple):
    """Loss and implicit rewards of n pairs, (n,) each, in nats."""

    loss: Tensor
    reward_chosen: Tensor  # beta d, the implicit reward for which the policy is optimal
    reward_rejected: Tensor


def dpo(d_chosen: Tensor, d_rejected: Tensor, *, beta: float) -> PairTerms:
    """-log sigmoid(beta (d_chosen - d_rejected)) and both implicit rewards beta d; d = log pi(y)/pi_ref(y), nats, (n,) each."""
    from torch.nn.functional import logsigmoid

    reward_chosen, reward_rejected = beta * d_chosen, beta * d_rejected
    return PairTerms(-logsigmoid(reward_chosen - reward_rejected), reward_chosen, reward_rejected)


@dataclass(kw_only=True)
class DPO:
    """DPO with Adam, over epochs of shuffled minibatches of pairs.

    A pair's loss is not a sum over its answers, so both share a forward pass; a minibatch's gradient is summed over passes.
    """

    beta: float = field(metadata=POSITIVE)
    lr: float = field(metadata=POSITIVE)
    anneal_lr: bool  # linearly to 0 over the run
    num_epochs: int = field(metadata=count(10_000))
    num_minibatches: int = field(metadata=count(MANY))
    adam_eps: float = field(metadata=POSITIVE)
    max_grad_norm: float | None = field(metadata=or_null(POSITIVE))  # null: no clipping

    note = "not compiled"

    def __post_init__(self) -> None:
        check_fields(self, "algorithm")

    @property
    def requirements(self) -> Requirements:
        """Pairs and a reference policy; one minibatch at collection, because DPO makes its own minibatches of pairs."""
        return Requirements(gamma=1.0, critic=False, num_minibatches=1, reference="algo=dpo", pairs=True)

    def describe(self) -> dict[str, str]:
        """The algorithm and its parameters."""
        return {"algorithm": describe_part(self)}

    def validate(self, batch_size: int) -> None:
        """Raises: ConfigError if num_minibatches does not divide the number of pairs, or if there are several processes."""
        num_pairs, count = batch_size // 2, self.num_minibatches
        require(num_pairs % count == 0, "algorithm.num_minibatches", count, f"does not divide {num_pairs} pairs per iteration.")
        size = distributed.world_size()
        require(size == 1, "WORLD_SIZE", size, "algo=dpo runs in one process; start it without torchrun.")

    def setup(self, policy: Policy, num_iterations: int, seed: int) -> None:
        """Create the optimizer.

        Raises: ConfigError if a micro-batch is too small for the two answers of a pair.
        """
        import torch

        limit = as_language_model(policy).sampling.micro_batch_size
        require(limit > 1, "task.micro_batch_size", limit, "the two answers of a pair share a forward pass; use at least 2.")
        self.num_iterations, self.num_updates = num_iterations, 0
        self.parameters = list(policy.parameters())
        self.adam = torch.optim.Adam(self.parameters, self.lr, eps=self.adam_eps)
        self.rng = np.random.default_rng(seed)

    def learn(self, policy: Policy, rollout: Rollout, measure_variance: bool) -> Metrics:
        """Run num_epochs passes over the iteration's pairs.

        Raises: NonFiniteError, which names the first culprit, if a loss, a gradient or the KL is NaN or infinite.
        """
        from rgpo.learning import culprits
        from rgpo.learning.diagnostics import gradient_variance

        clock, model = Clock(), as_language_model(policy)
        nothing = np.zeros_like(rollout.reward)  # pairs have neither advantages nor value targets
        batch = model.make_batch(rollout, nothing, nothing)
        clock.add("update")
        metrics: Metrics = {}
        groups = rollout.groups()[:, ::2] // 2  # (M, n) pairs
        if measure_variance:
            metrics["gradvar/num_groups"] = len(groups)
            metrics |= gradient_variance("before", self.gradients(model, batch, groups), groups.shape[1])
            clock.add("gradvar")
        remedy = f"lower algorithm.lr={self.lr:g}"
        try:
            metrics |= self._run_epochs(model, batch)
        except culprits.NonFiniteStep as error:
            raise culprits.explain(error, policy, rollout, culprits.Credit("none", nothing, nothing), {}, remedy) from error
        clock.add("update")
        shift = model.measure_shift(batch)
        metrics["kl/old_exact"] = kl = shift.kl.mean().item()
        if not math.isfinite(kl):
            raise culprits.explain_shift(kl, policy, remedy)
        if shift.kl_ref is not None:
            metrics["kl/ref_exact"] = shift.kl_ref.mean().item()
        clock.add("diagnostics")
        if measure_variance:
            metrics |= gradient_variance("after", self.gradients(model, batch, groups), groups.shape[1])
            clock.add("gradvar")
        return metrics | clock.seconds

    def _run_epochs(self, model: LanguageModel, batch: TokenBatch) -> Metrics:
        import torch
        from torch.nn.utils import clip_grad_norm_

        from rgpo.learning.culprits import NonFiniteStep

        lr = self.lr * (1 - self.num_updates / self.num_iterations) if self.anneal_lr else self.lr
        for group in self.adam.param_groups:
            group["lr"] = lr
        num_pairs = len(batch.completions.sequence_BS) // 2
        limit = math.inf if self.max_grad_norm is None else self.max_grad_norm
        terms: list[PairTerms] = []
        norms: list[Tensor] = []
        for _ in range(self.num_epochs):
            for pairs in np.split(self.rng.permutation(num_pairs), self.num_minibatches):
                terms.append(self.backward(model, batch, pairs))
                norms.append(clip_grad_norm_(self.parameters, limit).cpu())
                if not (norms[-1].isfinite() and terms[-1].loss.isfinite().all()):
                    views = [self.view(model, batch, part) for part in self.split(model, pairs)]
                    where = f"gradient step {len(norms)} of the iteration"
                    raise NonFiniteStep(where, [(view, batch.at(view)) for view in views])
                self.adam.step()
        self.num_updates += 1
        found, norm = concatenate(terms), torch.stack(norms)
        margin = found.reward_chosen - found.reward_rejected
        return {
            "dpo/loss": found.loss.mean().item(),
            "dpo/accuracy": (margin > 0).double().mean().item(),
            "dpo/margin": margin.mean().item(),
            "dpo/reward_chosen": found.reward_chosen.mean().item(),
            "dpo/reward_rejected": found.reward_rejected.mean().item(),
            "grad/norm_mean": norm.mean().item(),
            "grad/norm_max": norm.max().item(),
            "grad/clip_fraction": (norm > limit).double().mean().item(),
        }

    def backward(self, model: LanguageModel, batch: TokenBatch, pairs: Array) -> PairTerms:
        """Leave the gradient of the pairs' mean loss in the parameters' ``grad``; returns the pairs' detached terms."""
        import torch

        self.adam.zero_grad()
        found: list[PairTerms] = []
        for part in self.split(model, pairs):
            terms = self.evaluate(model, batch, part)
            torch.autograd.backward(terms.loss.sum() / len(pairs))
            found.append(PairTerms(*(x.detach().cpu() for x in terms)))
        return concatenate(found)

    def split(self, model: LanguageModel, pairs: Array) -> list[Array]:
        """Split pairs into those of each forward pass."""
        size = model.sampling.micro_batch_size // 2
        return [pairs[start : start + size] for start in range(0, len(pairs), size)]

    def view(self, model: LanguageModel, batch: TokenBatch, pairs: Array) -> MicroBatch:
        """The micro-batch with both answers of each pair."""
        from rgpo.language.policy.packing import MicroBatch

        ((view,),) = (m.views for m in model.subset(batch, np.stack([2 * pairs, 2 * pairs + 1], -1).ravel()).minibatches())
        assert isinstance(view, MicroBatch)
        return view

    def evaluate(self, model: LanguageModel, batch: TokenBatch, pairs: Array) -> PairTerms:
        """The terms of a few pairs from one forward pass, with gradients."""
        from rgpo.language.policy.token_batch import to_rows

        view = self.view(model, batch, pairs)
        logp_n, logp_ref_N = model.forward(view, entropy=False, value=False).logp, batch.samples.logp_ref
        assert logp_ref_N is not None
        d_N = logp_n.new_zeros(len(logp_ref_N)).index_copy(0, view.tokens_n, logp_n - logp_ref_N[view.tokens_n])
        d_B = to_rows(d_N, batch.completions).sum(-1)
        return dpo(d_B[2 * pairs], d_B[2 * pairs + 1], beta=self.beta)

    def gradients(self, model: LanguageModel, batch: TokenBatch, groups: Array) -> Iterator[Tensor]:
        """The gradient (P,) of each group's mean loss; groups (M, n) of pairs."""
        import torch

        for pairs in groups:
            self.backward(model, batch, pairs)
            yield torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])

    def state_dict(self) -> State:
        return {"adam": self.adam.state_dict(), "rng": self.rng.bit_generator.state, "num_updates": self.num_updates}

    def load_state_dict(self, state: State) -> None:
        self.adam.load_state_dict(cast(dict[str, object], state["adam"]))
        self.rng.bit_generator.state = cast(Mapping[str, object], state["rng"])
        self.num_updates = cast(int, state["num_updates"])


def concatenate(parts: list[PairTerms]) -> PairTerms:
    """Concatenate the pairs of all parts."""
    import torch

    return PairTerms(*map(torch.cat, zip(*parts, strict=True)))
