"""What a batch says of an update: ratios, gates, weights, divergences, and the variance of the policy gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rgpo.batch import Moved
from rgpo.curve import Gate, weight
from rgpo.divergences import effective_sample_size, k1, k2, k3, tail_index

QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


def seen_by_gate(now: Moved) -> Tensor:
    """The log ratios (N,) that the gate is a function of."""
    return now.log_ratio if now.gated is None else now.gated


def epoch_curves(after: Sequence[Moved], gate: Gate, advantage: Tensor) -> dict[str, list[float]]:
    """The columns epoch/, a number for what each epoch left; advantage (N,) as the gate sees it."""
    d, gated = (torch.stack(rows) for rows in zip(*((now.log_ratio, seen_by_gate(now)) for now in after), strict=True))
    w = weight(gate, gated, advantage.expand_as(gated))
    return {
        "epoch/kl_old_exact": [now.kl.mean().item() for now in after],
        "epoch/weight_relative_mean": (w.mean(-1) / _divisor(gate)).tolist(),
        "epoch/ess_ratio": effective_sample_size(d.clamp(max=80.0).exp()).tolist(),
    }


def update_statistics(now: Moved, gate: Gate, advantage: Tensor, kl_spike_threshold: float) -> dict[str, float]:
    """The columns kl/, ratio/, gate/, weight/, ess/ and policy/entropy after an update; advantage (N,)."""
    d, gated = now.log_ratio, seen_by_gate(now)
    ratio = d.double().clamp(max=700.0).exp()
    value, w = gate(gated, advantage), weight(gate, gated, advantage)
    kl_exact = now.kl.mean().item()
    metrics = {
        "kl/old_exact": kl_exact,
        "kl/spike": float(kl_exact > kl_spike_threshold),
        "policy/entropy": now.entropy.mean().item(),
        "ratio/min": ratio.min().item(),
        "ratio/max": ratio.max().item(),
        "ratio/abs_log_max": d.abs().max().item(),
        "ratio/tail_index": tail_index(d).item(),
        "weight/at_one": gate.weight_at_one(),
        "weight/relative_mean": w.mean().item() / _divisor(gate),
        "ess/ratio": effective_sample_size(ratio).item(),
        "ess/weight": effective_sample_size(w).item(),
        "gate/sharpness": float(getattr(gate, "sharpness", float("nan"))),
    }
    for name, estimate in (("k1", k1(d)), ("k2", k2(d)), ("k3", k3(d))):
        metrics[f"kl/old_{name}"] = estimate.mean().item()
        metrics[f"kl/old_{name}_se"] = estimate.std().item() / len(d) ** 0.5
    if now.kl_ref is not None:
        metrics["kl/ref_exact"] = now.kl_ref.mean().item()
    for side, chosen in (("pos", advantage >= 0), ("neg", advantage < 0)):
        for name, x in (("gate", value[chosen]), ("weight", w[chosen])):
            metrics |= {f"{name}/{side}_{key}": number for key, number in _summary(x).items()}
    return metrics


def _summary(x: Tensor) -> dict[str, float]:
    if not len(x):
        return dict.fromkeys(("mean", *QUANTILES), float("nan"))
    levels = torch.tensor(list(QUANTILES.values()), dtype=x.dtype)
    quantiles = torch.quantile(x[: 2**24], levels).tolist()
    return {"mean": x.mean().item(), **dict(zip(QUANTILES, quantiles, strict=True))}


def _divisor(gate: Gate) -> float:
    return gate.weight_at_one() or 1.0


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
