"""What a batch says of an update: ratios, gates, weights, divergences, and the variance of the policy gradient."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rgpo.core.divergences import effective_sample_size, k1, k2, k3, tail_index
from rgpo.core.gate import Gate, weight
from rgpo.core.rollout import Moved

QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


def seen_by_gate(now: Moved) -> Tensor:
    """The log ratios that the gate is a function of."""
    return now.log_ratio if now.gated is None else now.gated


def update_statistics(after: Moved, gate: Gate, advantage: Tensor, kl_spike_threshold: float) -> dict[str, float | list[float]]:
    """The columns epoch/, a number for what each epoch left, and those of the whole update, which are of the last epoch.

    kl/, ratio/, gate/, weight/, ess/ and policy/entropy. after has the epochs in front, advantage (N,) is as the gate sees it.
    """
    gated = seen_by_gate(after)
    w = weight(gate, gated, advantage.expand_as(gated))
    ratio = after.log_ratio.double().clamp(max=700.0).exp()
    ess = effective_sample_size(ratio).tolist()
    kl = after.kl.mean(-1).tolist()
    at_one = gate.weight_at_one()
    relative_weight = (w.mean(-1) / (at_one or 1.0)).tolist()
    metrics: dict[str, float | list[float]] = {
        "epoch/kl_old_exact": kl,
        "epoch/weight_relative_mean": relative_weight,
        "epoch/ess_ratio": ess,
        "kl/old_exact": kl[-1],
        "kl/spike": float(kl[-1] > kl_spike_threshold),
        "weight/at_one": at_one,
        "weight/relative_mean": relative_weight[-1],
        "ess/ratio": ess[-1],
        "ess/weight": effective_sample_size(w[-1]).item(),
        "gate/sharpness": float(getattr(gate, "sharpness", float("nan"))),
        "ratio/min": ratio[-1].min().item(),
        "ratio/max": ratio[-1].max().item(),
    }
    sides = torch.stack([gate(gated[-1], advantage), w[-1]])
    for side, chosen in (("pos", advantage >= 0), ("neg", advantage < 0)):
        for name, summary in zip(("gate", "weight"), _summaries(sides[:, chosen]), strict=True):
            metrics |= {f"{name}/{side}_{key}": number for key, number in summary.items()}
    return metrics | _of_policy(after.epoch(-1))


def _of_policy(now: Moved) -> dict[str, float]:
    d = now.log_ratio
    metrics = {
        "policy/entropy": now.entropy.mean().item(),
        "ratio/abs_log_max": d.abs().max().item(),
        "ratio/tail_index": tail_index(d).item(),
    }
    estimates = torch.stack([k1(d), k2(d), k3(d)])
    columns = zip(("k1", "k2", "k3"), estimates.mean(-1).tolist(), (estimates.std(-1) / len(d) ** 0.5).tolist(), strict=True)
    for name, mean, error in columns:
        metrics |= {f"kl/old_{name}": mean, f"kl/old_{name}_se": error}
    if now.kl_ref is not None:
        metrics["kl/ref_exact"] = now.kl_ref.mean().item()
    return metrics


def _summaries(rows: Tensor) -> list[dict[str, float]]:
    """Mean and quantiles of each of the rows (R, n), NaN where n = 0."""
    names = ("mean", *QUANTILES)
    if not rows.shape[1]:
        return [dict.fromkeys(names, float("nan")) for _ in rows]
    levels = torch.tensor(list(QUANTILES.values()), dtype=rows.dtype)
    table = torch.cat([rows.mean(-1)[None], torch.quantile(rows[:, : 2**24], levels, dim=-1)])
    return [dict(zip(names, column, strict=True)) for column in table.T.tolist()]


def gradient_variance(when: str, gradients: Iterable[Tensor], group_size: int) -> dict[str, float]:
    """tr Sigma of one sample's gradient and tr Sigma/n/||g||^2, from M disjoint groups' mean gradients, each (P,).

    tr Sigma = b/(M-1) sum_j ||G_j - Gbar||^2 with b = group_size and n = M b (batch means, our choice of groups). One
    gradient is held at a time (Welford 1962), in float64.
    """
    count, scatter = 0, 0.0
    mean = torch.zeros(())
    for gradient in gradients:
        count += 1
        gap = gradient.double() - mean
        mean = mean + gap / count
        scatter += gap.dot(gradient.double() - mean).item()
    if count < 2:
        return {f"gradvar/{when}": float("nan"), f"gradvar/{when}_relative": float("nan")}
    trace, signal = group_size / (count - 1) * scatter, mean.square().sum().item()
    relative = trace / (group_size * count) / signal if signal > 0 else float("nan")
    return {f"gradvar/{when}": trace, f"gradvar/{when}_relative": relative}
