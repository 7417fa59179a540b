"""Statistics of an update: ratios, gates, weights, divergences, and the variance of the policy gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from rgpo.core.divergences import effective_sample_size, k1, k2, k3, reweighted_kl, tail_index
from rgpo.core.gate import GateBatch, GateLike, weight
from rgpo.core.rollout import Array, Rollout
from rgpo.learning.samples import PolicyShift, Samples
from rgpo.learning.types import Metrics

SKETCH = 2**20  # entries kept of each group's gradient
QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


def credit_statistics(rollout: Rollout, advantage: Array, value_target: Array, critic: bool) -> Metrics:
    """Moments of the advantage over real steps, and the critic's explained variance before learning (NaN without a critic)."""
    live = rollout.live()
    target, value = value_target[live], rollout.value[live]
    spread = target.var()
    return {
        "advantage/mean": float(advantage[live].mean()),
        "advantage/std": float(advantage[live].std()),
        "value/explained_variance": float(1 - (target - value).var() / spread) if critic and spread > 0 else math.nan,
    }


def gate_statistics(shift: PolicyShift, gate: GateLike, samples: Samples) -> tuple[Tensor, Tensor]:
    """The gate's weights (E, N), and its values (N,) after the last epoch; batch bounds are computed from all N samples."""
    seen = shift.log_ratio if shift.gate_log_ratio is None else shift.gate_log_ratio
    advantage = samples.advantage.expand_as(seen)
    logp_old = samples.logp_old.to(seen.device).expand_as(seen) if shift.gate_logp_old is None else shift.gate_logp_old
    if gate.needs_batch:
        rows = list(zip(seen, advantage, logp_old, strict=True))
        curves = [gate.prepare(GateBatch(*row, samples.weight)) for row in rows]
        return torch.stack([weight(f, *row) for f, row in zip(curves, rows, strict=True)]), curves[-1](*rows[-1])
    if gate.needs_logp_old:
        return weight(gate, seen, advantage, logp_old), gate(seen[-1], advantage[-1], logp_old[-1])
    return weight(gate, seen, advantage), gate(seen[-1], advantage[-1])


def update_statistics(shift: PolicyShift, gate: GateLike, samples: Samples) -> Metrics:
    """The metrics epoch/*, with one number per epoch, and those of the whole update, measured after the last epoch.

    The latter are kl/*, ratio/*, gate/*, weight/*, ess/* and policy/entropy. shift is stacked over epochs; samples are all N
    of the update.
    """
    advantage = samples.advantage
    w, value = gate_statistics(shift, gate, samples)
    ratio = shift.log_ratio.double().clamp(max=700.0).exp()
    ess = effective_sample_size(ratio).tolist()
    kl = shift.kl.mean(-1).tolist()
    at_one = gate.weight_at_one()
    relative_weight = (w.mean(-1) / (at_one or 1.0)).tolist()
    metrics: Metrics = {
        "epoch/kl_old_exact": kl,
        "epoch/weight_relative_mean": relative_weight,
        "epoch/ess_ratio": ess,
        "kl/old_exact": kl[-1],
        "weight/at_one": at_one,
        "weight/relative_mean": relative_weight[-1],
        "ess/ratio": ess[-1],
        "ess/weight": effective_sample_size(w[-1]).item(),
        "gate/sharpness": float(getattr(gate, "sharpness", math.nan)),
        "ratio/min": ratio[-1].min().item(),
        "ratio/max": ratio[-1].max().item(),
    }
    sides = torch.stack([value, w[-1]])
    for side, chosen in (("pos", advantage >= 0), ("neg", advantage < 0)):
        for name, summary in zip(("gate", "weight"), _summaries(sides[:, chosen]), strict=True):
            metrics |= {f"{name}/{side}_{key}": number for key, number in summary.items()}
    kl_ref = None if shift.kl_ref is None else shift.kl_ref[-1]
    return metrics | _policy_statistics(shift.log_ratio[-1], shift.entropy[-1], kl_ref)


def _policy_statistics(log_ratio: Tensor, entropy: Tensor, kl_ref: Tensor | None) -> Metrics:
    metrics: Metrics = {
        "policy/entropy": entropy.mean().item(),
        "ratio/abs_log_max": log_ratio.abs().max().item(),
        "ratio/tail_index": tail_index(log_ratio).item(),
    }
    estimates = torch.stack([k1(log_ratio), k2(log_ratio), k3(log_ratio)])
    spread = estimates.std(-1) if len(log_ratio) > 1 else torch.full((3,), math.nan)
    means, errors = estimates.mean(-1).tolist(), (spread / len(log_ratio) ** 0.5).tolist()
    for name, mean, error in zip(("k1", "k2", "k3"), means, errors, strict=True):
        metrics |= {f"kl/old_{name}": mean, f"kl/old_{name}_se": error}
    if kl_ref is not None:
        metrics["kl/ref_exact"] = kl_ref.mean().item()
    return metrics


def reference_statistics(log_ratio: Tensor, samples: Samples) -> Metrics:
    """Reweighted estimate of KL(new || reference) over all samples of the old policy, and its standard error, nats.

    log_ratio (N,): log new/old, nats.
    """
    assert samples.logp_ref is not None
    d_ref = log_ratio.double() + (samples.logp_old - samples.logp_ref).double().to(log_ratio.device)
    estimate = reweighted_kl(log_ratio.double(), d_ref)
    if samples.correction is not None:
        estimate *= samples.correction.to(log_ratio.device)
    error = estimate.std().item() / len(estimate) ** 0.5 if len(estimate) > 1 else math.nan
    return {"kl/ref_unbiased": estimate.mean().item(), "kl/ref_unbiased_se": error}


def _summaries(rows: Tensor) -> list[dict[str, float]]:
    """Mean and quantiles of each of the rows (R, n), NaN where n = 0."""
    names = ("mean", *QUANTILES)
    if not rows.shape[1]:
        return [dict.fromkeys(names, math.nan) for _ in rows]
    levels = torch.tensor(list(QUANTILES.values()), dtype=rows.dtype)
    table = torch.cat([rows.mean(-1)[None], torch.quantile(rows[:, : 2**24], levels, dim=-1)])
    return [dict(zip(names, column, strict=True)) for column in table.T.tolist()]


def gradient_variance(when: str, gradients: Iterable[Tensor], group_size: int) -> dict[str, float]:
    """tr Sigma of one sample's gradient, and the noise share of the batch gradient, from the means (P,) of M disjoint groups.

    tr Sigma = b/(M-1) sum_j ||G_j - Gbar||^2 with b = group_size and n = M b (batch means, our choice of groups). E ||Gbar||^2 is
    ||g||^2 + tr Sigma/n, so noise_share = tr Sigma/n / ||Gbar||^2 estimates rho/(1 + rho) with rho = tr Sigma/n / ||g||^2, and
    1 - noise_share is the signal share. noise_share_low and _high are a 95 % jackknife interval over groups, within [0, 1], with
    a coverage of 91 % or more (tests/test_diagnostics.py). Gradients are accumulated one at a time, in float64 (Welford 1962);
    only a sketch of each is kept.
    """
    count, scatter = 0, 0.0
    mean = torch.zeros(())
    sketches: list[Tensor] = []
    for gradient in gradients:
        count += 1
        gap = gradient.double() - mean
        mean = mean + gap / count
        scatter += gap.dot(gradient.double() - mean).item()
        sketches.append(_sketch(gradient))
    keys = [f"gradvar/{when}", *(f"gradvar/{when}_noise_share{end}" for end in ("", "_low", "_high"))]
    if count < 2:
        return dict.fromkeys(keys, math.nan)
    trace, square = group_size / (count - 1) * scatter, mean.square().sum().item()
    share = trace / (group_size * count) / square if square > 0 else math.nan
    return dict(zip(keys, (trace, share, *_share_interval(torch.stack(sketches).double())), strict=True))


def _sketch(gradient: Tensor) -> Tensor:
    """Sum the blocks of SKETCH entries of a gradient (P,) with fixed random signs, float32; inner products stay unbiased."""
    whole = gradient.detach().to("cpu", torch.float32, copy=True)
    if len(whole) <= SKETCH:
        return whole
    noise = torch.Generator().manual_seed(0)
    found = torch.zeros(SKETCH)
    for part in torch.split(whole, SKETCH):
        found[: len(part)] += part * (2 * torch.randint(2, (len(part),), generator=noise) - 1)
    return found


def _share_interval(G_MP: Tensor) -> tuple[float, float]:
    """95 % interval of the noise share from the gradients of M groups: Student's t on the jackknife's log pseudo-values.

    Leaving out group j, ||g||^2 and the variance of a group are estimated without bias from inner products of the others. (0, 1)
    if there is no interval: with fewer than 3 groups, or if an estimated share has no finite logarithm.
    """
    M = len(G_MP)
    inner = G_MP @ G_MP.T
    squares = inner.diagonal()
    total = torch.cat([inner.sum()[None], inner.sum() - 2 * inner.sum(0) + squares])  # all groups, then without each
    within = torch.cat([squares.sum()[None], squares.sum() - squares])
    size = torch.tensor([M, *[M - 1] * M], dtype=inner.dtype)
    signal = (total - within) / (size * (size - 1))
    noise = (within / size - signal) / M  # of the batch's gradient
    logs = (noise / (signal + noise)).log()
    if M < 3 or not logs.isfinite().all():
        return 0.0, 1.0
    from scipy.special import stdtrit

    half = float(stdtrit(M - 1, 0.975)) * (M * logs[0] - (M - 1) * logs[1:]).std().item() / M**0.5
    return min(math.exp(logs[0] - half), 1.0), min(math.exp(logs[0] + half), 1.0)
