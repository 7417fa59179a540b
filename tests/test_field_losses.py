"""Every loss of TRL 1.16's GRPOTrainer and verl 0.9.1's registry from words of rgpo-run, against its formula written out.

Not equal, and left out: the draw of verl's clip_cov (random there, a hash of the sample here; test_published_gates.py has its
candidates), sampler weights in verl's kl_cov and dro (they also multiply the penalty) and geo_mean (their geometric mean),
TRL's entropy bonus over a subset of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from rgpo.cli.config import build, compose_jobs
from rgpo.core.gate import weight
from rgpo.core.sequence import RatioLevel
from rgpo.core.surrogate import GateObjective
from rgpo.language.policy.stopping import StopRule
from rgpo.language.policy.token_batch import Sampling, token_weights
from rgpo.learning.algorithm import GateAlgorithm
from rgpo.learning.loss import gate_inputs, policy_loss
from rgpo.learning.samples import OffPolicy, PolicyOutput, Samples

B, T, LONGEST = 8, 9, 32  # the embedded scale's max_new_tokens
RNG = np.random.default_rng(3)
LENGTH = torch.tensor([1, 9, 4, 7, 2, 9, 5, 8])
MASK = torch.arange(T) < LENGTH[:, None]


def noise(scale: float) -> Tensor:
    return torch.from_numpy(scale * RNG.standard_normal((B, T)))


OLD = torch.from_numpy(np.log(RNG.uniform(0.05, 0.95, (B, T))))
NEW = (OLD + noise(0.5)).clamp(max=-1e-3)
REF, GAP = OLD + noise(0.4), noise(0.6)  # GAP = log pi_old/pi_sampler
A = torch.from_numpy(RNG.standard_normal(B))[:, None].expand(B, T)


class Field(NamedTuple):
    """Words of rgpo-run, the loss of each token (B, T) by new log-probabilities, its reduction; values: they are published."""

    words: str
    loss: Callable[[Tensor], Tensor]
    reduce: Callable[[Tensor], Tensor]
    values: bool = True


def token_mean(x: Tensor) -> Tensor:
    return x[MASK].mean()


def sequence_mean(x: Tensor) -> Tensor:
    return torch.stack([row[live].mean() for row, live in zip(x, MASK, strict=True)]).mean()


def sequence_sum(x: Tensor) -> Tensor:
    return (x * MASK).sum() / B


def constant(x: Tensor) -> Tensor:
    return sequence_sum(x) / LONGEST


def mean_ratio(new: Tensor) -> Tensor:
    return (((new - OLD) * MASK).sum(1, keepdim=True) / LENGTH[:, None]).expand(B, T)


def clipped(r: Tensor, low: float, high: float, cap: float = math.inf) -> Tensor:
    lost = torch.maximum(-A * r, -A * r.clamp(1 - low, 1 + high))
    return torch.where(A < 0, torch.minimum(lost, -A * cap), lost) if cap < math.inf else lost


def k3(new: Tensor) -> Tensor:
    return (REF - new).exp() - (REF - new) - 1


def score(w: Tensor, new: Tensor) -> Tensor:
    return -w.detach() * A * new


def sapo(new: Tensor) -> Tensor:
    tau = torch.where(A > 0, 1.0, 1.05)
    return -torch.sigmoid(tau * ((new - OLD).exp() - 1)) * 4 / tau * A


def vespo(new: Tensor) -> Tensor:
    w = ((new - OLD) * MASK).sum(1, keepdim=True).exp()
    return score(torch.where(A >= 0, w**2 * (3 - 3 * w).exp(), w**3 * (2 - 2 * w).exp()), new)


def gspo_token(new: Tensor) -> Tensor:
    return clipped((mean_ratio(new).detach() + new - new.detach()).exp(), 3e-4, 4e-4)


def gmpo(new: Tensor) -> Tensor:
    d = new - OLD
    kept = torch.where(A >= 0, d.clamp(max=0.4), d.clamp(min=-0.4))
    return -A * ((kept * MASK).sum(1, keepdim=True) / LENGTH[:, None]).exp()


def dppo_tv(new: Tensor) -> Tensor:
    p, p_old = new.exp(), OLD.exp()
    return score((new - OLD).exp().clamp(max=20) * torch.where(A > 0, p - p_old <= 0.2, p_old - p <= 0.2), new)


def dppo_kl(new: Tensor) -> Tensor:
    p, p_old = new.exp(), OLD.exp()
    kl = p_old * (OLD - new) + (1 - p_old) * ((1 - p_old) / (1 - p)).log()
    return score((new - OLD).exp().clamp(max=20) * ((kl <= 0.05) | torch.where(A > 0, new <= OLD, new >= OLD)), new)


def kl_cov(new: Tensor) -> Tensor:
    d, fixed = new - OLD, new.detach()
    cov = ((A - A[MASK].mean()) * (fixed - fixed[MASK].mean())).masked_fill(~MASK, -math.inf)
    return -A * d.exp() + d.abs() * (cov >= cov.flatten().topk(int(0.1 * int(MASK.sum()))).values[-1])


def corrected(level: str, outside: str, low: float, high: float) -> Tensor:
    gap = GAP * MASK
    w = (gap.sum(1, keepdim=True).expand(B, T) if level == "sequence" else gap).exp()
    return w.clamp(low, high) if outside == "clamp" else w * ((w >= low) & (w <= high))


def stale(new: Tensor) -> Tensor:
    """TRL's off-policy mask at 0.1 nats per token."""
    kl = (((OLD - GAP) - new.detach()) * MASK).sum(1, keepdim=True) / LENGTH[:, None]
    return ((A >= 0) | (kl <= 0.1)).double()


def ratio(new: Tensor) -> Tensor:
    return (new - OLD).exp()


GRPO = "algo=grpo penalty=none"
TOKENS = f"{GRPO} task.reduction=token_mean"
SETTINGS = ("temperature", "max_new_tokens", "ratio", "reduction", "ratio_clip", "correction")
FIELD = {
    "trl grpo, beta": Field("algo=grpo", lambda new: clipped(ratio(new), 0.2, 0.2) + 0.04 * k3(new), sequence_mean),
    "trl grpo, use_bias_correction_kl": Field(
        "algo=grpo penalty.estimator=unbiased",
        lambda new: clipped(ratio(new), 0.2, 0.2) + 0.04 * ratio(new) * k3(new),
        sequence_mean,
    ),
    "trl bnpo": Field(TOKENS, lambda new: clipped(ratio(new), 0.2, 0.2), token_mean),
    "trl dr_grpo": Field("algo=dr_grpo", lambda new: clipped(ratio(new), 0.2, 0.2), constant),
    "trl dapo": Field("algo=dapo", lambda new: clipped(ratio(new), 0.2, 0.28), token_mean),
    "trl cispo": Field(f"{TOKENS} gate=cispo", lambda new: score(ratio(new).clamp(max=3), new), token_mean, values=False),
    "trl sapo": Field(f"{GRPO} gate=sapo", sapo, sequence_mean),
    "trl luspo": Field("algo=luspo", lambda new: clipped(mean_ratio(new).exp(), 3e-4, 4e-4), sequence_sum),
    "trl vespo": Field("algo=vespo", vespo, token_mean, False),
    "trl gspo": Field("algo=gspo", lambda new: clipped(mean_ratio(new).exp(), 3e-4, 4e-4), sequence_mean),
    "trl token_truncate": Field(
        f"{GRPO} correction@task.correction=truncate",
        lambda new: clipped(ratio(new), 0.2, 0.2) * corrected("token", "clamp", 0, 2),
        sequence_mean,
    ),
    "trl token_mask": Field(
        f"{GRPO} correction@task.correction=mask",
        lambda new: clipped(ratio(new), 0.2, 0.2) * corrected("token", "drop", 0, 2),
        sequence_mean,
    ),
    "trl sequence_truncate": Field(
        f"{GRPO} correction@task.correction=sequence_truncate",
        lambda new: clipped(ratio(new), 0.2, 0.2) * corrected("sequence", "clamp", 0, 2),
        sequence_mean,
    ),
    "trl sequence_mask": Field(
        f"{GRPO} correction@task.correction=sequence_mask",
        lambda new: clipped(ratio(new), 0.2, 0.2) * corrected("sequence", "drop", 0, 3),
        sequence_mean,
    ),
    "trl off_policy_mask_threshold": Field(
        f"{GRPO} correction@task.correction=off_policy_mask",
        lambda new: clipped(ratio(new), 0.2, 0.2) * stale(new),
        sequence_mean,
    ),
    "verl vanilla": Field(f"{GRPO} gate.cap=3.0", lambda new: clipped(ratio(new), 0.2, 0.2, 3.0), sequence_mean),
    "verl icepop": Field(
        "algo=dapo correction@task.correction=band",
        lambda new: clipped(ratio(new), 0.2, 0.28) * corrected("token", "drop", 0.5, 5),
        token_mean,
    ),
    "verl dppo_tv": Field("algo=dppo", dppo_tv, token_mean, False),
    "verl dppo_kl": Field("algo=dppo gate=dppo_kl", dppo_kl, token_mean, False),
    "verl gspo": Field("algo=gspo_token", gspo_token, sequence_mean),
    "verl sapo": Field(f"{GRPO} gate=sapo", sapo, sequence_mean),
    "verl gpg": Field(f"{TOKENS} gate=log", lambda new: -new * A, token_mean, False),
    "verl kl_cov": Field(f"{TOKENS} gate=kl_cov gate.fraction=0.1", kl_cov, token_mean),
    "verl geo_mean": Field("algo=gmpo", gmpo, sequence_mean),
    "verl dro": Field("algo=dro", lambda new: -new * A + 0.05 * (new - OLD) ** 2, token_mean, False),
    "verl cispo": Field(
        f"{GRPO} gate=cispo_floor task.reduction=token_mean",
        lambda new: score(ratio(new).clamp(0.8, 1.2), new),
        token_mean,
        False,
    ),
    "verl bypass_mode, reinforce": Field(
        f"{GRPO} gate=cispo gate.cap=2.0 task.reduction=token_mean",
        lambda new: score(ratio(new).clamp(max=2), new),
        token_mean,
        False,
    ),
    "verl seq-mean-token-sum": Field(
        "algo=dapo task.reduction=sequence_sum", lambda new: clipped(ratio(new), 0.2, 0.28), sequence_sum
    ),
}


@cache
def parts(words: str) -> tuple[Any, GateAlgorithm]:
    (job,) = compose_jobs(["task=qwen_rlhf", *words.split()], multirun=False, config_dir=None)
    task, algorithm = build(job.config)
    return task, cast(GateAlgorithm, algorithm)


def samples_of(task: Any) -> Samples:
    """The batch as the learner reads it under the task's settings."""
    sampling = Sampling(
        **{
            key: getattr(task, key) for key in ("temperature", "max_new_tokens", "ratio", "reduction", "ratio_clip", "correction")
        },
        **{"stop": StopRule(frozenset([1])), "pad_id": 0, "micro_batch_size": 8, "num_kl_tokens": 1},
    )
    completions = cast(Any, SimpleNamespace(completion_mask_BT=MASK, finished_B=torch.ones(B, dtype=torch.bool)))
    max_kl, unused = task.correction.max_kl, torch.zeros(int(MASK.sum())).double()
    return Samples(
        OLD[MASK],
        REF[MASK],
        A[MASK],
        unused,
        unused,
        token_weights(completions, [[torch.arange(B)]], sampling).double(),
        task.correction.weights(GAP[MASK], MASK),
        MASK,
        RatioLevel(task.ratio, task.ratio_clip),
        None if max_kl is None else OffPolicy(GAP[MASK], max_kl),
    )


@pytest.mark.parametrize("name", FIELD)
def test_value_and_gradient_are_the_fields(name: str) -> None:
    field = FIELD[name]
    task, algorithm = parts(field.words)
    new, theirs = NEW.clone().requires_grad_(), NEW.clone().requires_grad_()
    samples, out = samples_of(task), PolicyOutput(new[MASK], None, None, None)
    objective = GateObjective(gate=algorithm.gate, ref_gate=algorithm.ref_gate, combine=algorithm.gate_combination)
    divergence, coef = algorithm.penalty.divergence, algorithm.penalty.loss_coef
    loss, _ = policy_loss(out, samples, objective=objective, divergence=divergence, kl_coef=coef)
    expected = field.reduce(field.loss(theirs))
    (gradient,), (wanted,) = torch.autograd.grad(loss, new), torch.autograd.grad(expected, theirs)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-8)
    assert wanted[MASK].count_nonzero() > 10
    if field.values:
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)
    elif divergence is None:  # published as -sg[w] A log pi, which our weight gives, too
        seen = gate_inputs(out, samples)
        curve = algorithm.gate.prepare(seen.batch(samples.weight))
        w = weight(curve, seen.d_old, seen.advantage, seen.logp_old)
        detached = (samples.weight * -w * seen.advantage * new[MASK]).sum()
        torch.testing.assert_close(detached, expected, rtol=1e-6, atol=1e-8)


def test_a_wrong_word_is_noticed() -> None:
    """The case that must fail: one reduction, level or correction for another."""
    pairs = [
        ("trl bnpo", "trl dr_grpo"),
        ("trl gspo", "trl luspo"),
        ("trl token_mask", "trl sequence_mask"),
        ("trl gspo", "verl gspo"),
    ]
    for one, other in pairs:
        found = [FIELD[name].reduce(FIELD[name].loss(NEW)) for name in (one, other)]
        new = NEW.clone().requires_grad_()
        grads = [torch.autograd.grad(FIELD[name].reduce(FIELD[name].loss(new)), new)[0] for name in (one, other)]
        same_value = (found[0] - found[1]).abs() < 1e-6
        assert not same_value or (grads[0] - grads[1]).abs().max() < 1e-9, (one, other)  # gspo's two forms are equal here


def test_corrections_are_one_sentence_or_finite() -> None:
    far = torch.tensor([-300.0, 300.0, 0.1, 0.0])
    mask = torch.tensor([[True, True], [True, True]])
    for name in ("none", "truncate", "mask", "band", "sequence_truncate", "sequence_mask", "off_policy_mask"):
        correction = parts(f"{GRPO} correction@task.correction={name}")[0].correction
        assert correction.weights(far, mask).isfinite().all(), name
    assert parts(f"{GRPO} correction@task.correction=sequence_mask")[0].correction.weights(far, mask).tolist()[:2] == [1, 1]
