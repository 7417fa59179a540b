"""C2: the algorithms as choices of w. The table of g and w from the yamls, and whether w is all there is to an algorithm.

A monotone gate with values in [0, 1] has the weight w iff the integral of w over d = log r is at most 1, because the
integral is g(inf) - g(-inf); it can be moved and scaled into [0, 1] iff the integral is finite.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.theory.batch import load_batch
from experiments.theory.common import Tables, Verdict, algorithms, gate_names, judge, load, load_gate
from experiments.theory.drift import objective
from rgpo.bandit.quadrature import integrate
from rgpo.control.actor_critic import ActorCritic
from rgpo.control.policy import ControlBatch
from rgpo.core.gate import GateLike, weight
from rgpo.core.rollout import Array
from rgpo.learning.algorithm import GateAlgorithm
from rgpo.learning.loss import GateLoss, standardize
from rgpo.report.figures import style

COLUMNS = 5  # of the figure
COMMAND = "python -m experiments.theory weights"
NEAR, FAR = 120.0, 240.0  # nats; an integral that still grows between them diverges
CONVERGED = 1e-6
INNER = 40.0  # nats; where the integral is also taken by quadrature


def measure(smoke: bool) -> dict[str, pd.DataFrame]:
    """gates (one row per gate and sign of A), curves (for the figure), algorithms (axes and gradients on a fixed batch)."""
    gates = {name: load_gate(name) for name in gate_names()}
    table = pd.DataFrame([_facts(name, gate, sign) for name, gate in gates.items() for sign in (1.0, -1.0)])
    d = np.linspace(-2.5, 2.5, 101)
    curves = [
        {"gate": name, "advantage": sign, "log_ratio": x, "value": g, "weight": w}
        for name, gate in gates.items()
        for sign in (1.0, -1.0)
        for x, g, w in zip(d, _value(gate, sign, d), _weight(gate, sign, d), strict=True)
    ]
    return {"gates": table, "curves": pd.DataFrame(curves), "algorithms": _algorithms()}


def _value(gate: GateLike, sign: float, d: Array) -> Array:
    log_ratio = torch.from_numpy(np.asarray(d, float))
    value: Array = gate(log_ratio, torch.full_like(log_ratio, sign)).numpy()
    return value


def _weight(gate: GateLike, sign: float, d: Array) -> Array:
    log_ratio = torch.from_numpy(np.asarray(d, float))
    w: Array = weight(gate, log_ratio, torch.full_like(log_ratio, sign)).numpy()
    return w


def _facts(name: str, gate: GateLike, sign: float) -> dict[str, object]:
    """w(1), sup w, the integral of w over d, and the interval that g fills."""
    w = partial(_weight, gate, sign)
    reach = _value(gate, sign, np.array([-FAR, -NEAR, NEAR, FAR]))
    rise, rise_near = float(reach[3] - reach[0]), float(reach[2] - reach[1])
    finite = abs(rise - rise_near) <= CONVERGED * max(abs(rise_near), 1.0)
    inner = float(np.diff(_value(gate, sign, np.array([-INNER, INNER])))[0])
    dense = np.linspace(-8, 8, 160_001)
    within = w(dense)
    unbounded = w(np.array([NEAR]))[0] > 1.001 * within.max()
    monotone = within.min() >= 0
    return {
        "gate": name,
        "advantage": sign,
        "at_one": float(w(np.zeros(1))[0]),
        "sup": math.inf if unbounded else float(within.max()),
        "sup_at": math.nan if unbounded else float(np.exp(dense[within.argmax()])),
        "integral": rise if finite else math.copysign(math.inf, rise),
        "integral_error": abs(integrate(w, -INNER, INNER) - inner) / max(1.0, abs(inner)),
        "lowest": float(reach[0]),
        "highest": float(reach[3]),
        "monotone": bool(monotone),
        "in_unit_interval": bool(finite and monotone and reach[0] >= -1e-9 and reach[3] <= 1 + 1e-9),
        "representable": bool(finite and monotone),
    }


def _algorithms() -> pd.DataFrame:
    """The parts of each control algorithm, and its gradient and step against w A grad log pi on one batch."""
    rows = []
    for name in algorithms("hopper"):
        _, algorithm = load("task=hopper", f"algo={name}")
        update = algorithm.update
        rows.append(
            {
                "algo": name,
                "gate": type(algorithm.gate).__name__,
                "advantage": type(algorithm.advantage).__name__,
                "penalty": type(algorithm.penalty).__name__,
                "update": type(update).__name__,
                "gradient_error": _gradient_error(name, algorithm.gate),
                "step_cosine": _natural_cosine(algorithm) if update.trust_region else math.nan,
            }
        )
    return pd.DataFrame(rows)


def published_loss(name: str, logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor | None:
    """The policy loss as its paper writes it, for the three algorithms of the claim; None for others."""
    ratio = (logp - logp_old).exp()
    if name == "ppo":
        return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    if name == "trpo":
        return -(ratio * advantage).mean()
    if name == "reinforce":
        return -(logp * advantage).mean()
    return None


def _log_prob(policy: ActorCritic, batch: ControlBatch, flat: Tensor) -> Tensor:
    """log pi (N,) of the batch's actions at the parameters flat (P,)."""
    return policy.forward(batch.view, flat=flat, entropy=False, value=False).logp


def _gradient_error(name: str, gate: GateLike) -> float:
    """||published gradient - mean(sg(w) A grad log pi)|| / ||published gradient||; NaN for other algorithms."""
    policy, batch = load_batch()
    advantage, logp_old = standardize(batch.samples.advantage), batch.samples.logp_old
    noise = torch.randn(policy.flat.shape, generator=torch.Generator().manual_seed(0))
    flat = (policy.flat + 0.02 * noise).requires_grad_()  # away from the parameters that collected the batch: r is not 1
    logp = _log_prob(policy, batch, flat)
    published = published_loss(name, logp, logp_old, advantage)
    if published is None:
        return math.nan
    derived = -(weight(gate, logp - logp_old, advantage) * advantage * logp).mean()
    theirs, ours = (torch.autograd.grad(loss, flat, retain_graph=True)[0] for loss in (published, derived))
    return float((theirs - ours).norm() / theirs.norm())


def _natural_cosine(algorithm: GateAlgorithm) -> float:
    """Cosine between the actor's step and the gradient w A grad log pi at the batch's own parameters."""
    policy, batch = load_batch()
    start, count = policy.flat.clone(), policy.num_actor_parameters
    gate, update = algorithm.gate, algorithm.update
    flat = start.clone().requires_grad_()
    logp = _log_prob(policy, batch, flat)
    advantage = standardize(batch.samples.advantage)
    gradient = torch.autograd.grad((weight(gate, logp - batch.samples.logp_old, advantage) * advantage * logp).mean(), flat)[0]
    loss = GateLoss(objective=objective(gate), divergence=None)
    update.setup(policy, loss, normalize="minibatch", num_iterations=1, seed=0)
    update(policy, batch, 0.0)
    step = policy.flat - start
    return float(torch.cosine_similarity(step[:count], gradient[:count], dim=0))


def verdicts(tables: Tables) -> list[Verdict]:
    rows, table = [], tables["algorithms"].set_index("algo")
    for name in ("reinforce", "ppo", "trpo"):
        error = float(table.gradient_error[name])
        rule = "reproduced if the published loss's gradient is w A grad log pi to a relative error below 1e-4 (float32)"
        where = f"{name}: gradient on the fixed Hopper batch (relative error)"
        rows.append(Verdict("C2", where, error, math.nan, math.nan, 2048, "a choice of w", judge(error < 1e-4), rule, COMMAND))
    cosine = float(table.step_cosine["trpo"])
    rule = "reproduced if the cosine between the step taken and w A grad log pi is above 0.95: then w determines the algorithm"
    where = "trpo: its step on the fixed Hopper batch (cosine with w A s)"
    rows.append(Verdict("C2 (ours)", where, cosine, math.nan, math.nan, 2048, "not stated", judge(cosine > 0.95), rule, COMMAND))
    gates = tables["gates"].set_index(["gate", "advantage"])
    halves = [("log", 1.0), ("identity", 1.0), ("clip", 1.0), ("clip", -1.0)]
    count = sum(bool(gates.representable[half]) for half in halves)
    rule = "reproduced if all four weights (REINFORCE, TRPO, PPO A >= 0 and A < 0) have a finite integral over log r"
    where = "of these four weights, those of gates with values in an interval (count)"
    rows.append(Verdict("C2 (ours)", where, count, math.nan, math.nan, 4, "not stated", judge(count == 4), rule, COMMAND))
    return rows


def numbers(tables: Tables) -> dict[str, object]:
    gates = tables["gates"]
    rows = []
    for name, sides in gates.groupby("gate", sort=True):
        positive, negative = (sides[sides.advantage == s].iloc[0] for s in (1.0, -1.0))
        same = all(positive[key] == negative[key] for key in ("at_one", "sup", "integral", "lowest", "highest"))
        rows += [{"name": name, "side": "" if same else "A ≥ 0", **positive}]
        rows += [] if same else [{"name": name, "side": "A < 0", **negative}]
    return {"gates": rows, "algorithms": tables["algorithms"].set_index("algo").to_dict("index")}


def draw(tables: Tables) -> Figure:
    """One panel per gate: g and w over log r, dashed where A < 0 differs."""
    curves = tables["curves"]
    names = list(dict.fromkeys(curves.gate))
    figure, axes = style.grid(len(names), columns=COLUMNS, height=1.3)
    for i, (panel, name) in enumerate(zip(axes, names, strict=True)):
        here = curves[curves.gate == name]
        for key, color in (("value", style.BLUE), ("weight", style.VERMILLION)):
            sides = [here[here.advantage == sign][key].to_numpy() for sign in (1.0, -1.0)]
            x = here[here.advantage == 1.0].log_ratio
            panel.plot(x, sides[0], color=color, linewidth=1.6 if key == "value" else 1.0)
            if not np.allclose(sides[0], sides[1], atol=1e-6):
                panel.plot(x, sides[1], color=color, linewidth=1.0, linestyle=style.DASHED)
        panel.set(title=name, ylim=(-0.6, 3.0), xlim=(-2.5, 2.5), xticks=[-2, 0, 2], yticks=[0, 1, 2, 3])
        panel.axvline(0, color=style.GRAY, linewidth=0.5)
        panel.tick_params(labelleft=i % COLUMNS == 0, labelbottom=i + COLUMNS >= len(names))
        panel.set_xlabel("log r  [nats]" if i + COLUMNS >= len(names) else "")
    lines = {
        f"{name}, A {side} 0": style.Line(color, dashes, "")
        for name, color in (("g", style.BLUE), ("w", style.VERMILLION))
        for side, dashes in (("≥", style.SOLID), ("<", style.DASHED))
    }
    style.legend_below(figure, lines)
    return figure
