"""The central finding: how far each gate lets the policy drift over the epochs on one fixed batch.

A sample's progress is sign(A) log r. A gate may close where a sample makes progress (PPO does, beyond 1 + eps) and may close
where others have pushed it the wrong way. The literal sigmoid does both: on the wrong side it takes away the gradient that
would bring the sample back. Four gates that differ in nothing else separate the two:

    h(r) = 1 + (2/k) tanh(k (r-1)/2) on the sides that close, r on the sides that do not
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.theory.batch import load_batch
from experiments.theory.common import Tables, Verdict, interval, judge, load, load_gate
from rgpo.control.actor_critic import ActorCritic
from rgpo.control.policy import ControlBatch
from rgpo.core.gate import Gate, GateLike, ratio, ratio_minus_one, weight
from rgpo.core.gates import Open
from rgpo.core.kl_penalty import Divergence
from rgpo.core.surrogate import Detached, GateObjective, Objective
from rgpo.learning.adam import clip_by_norm
from rgpo.learning.flat_adam import select
from rgpo.learning.loss import GateLoss, loss, standardize
from rgpo.learning.sgd import flat_loss
from rgpo.report.figures import style

COMMAND = "python -m experiments.theory drift"
KL_CLAIMED = 0.04  # nats; the paper's KL is about 0.02, its spike threshold perhaps 0.04
SGD_LR = 0.1  # where the KL of PPO after ten epochs is about what it is with Adam
FACTORIAL = ("no gate", "progress side", "wrong side", "both sides")
BEYOND = 1.5  # nats of progress; the outermost bins of the figure hold everything beyond
SNAPSHOTS = ("PPO clip", "both sides", "progress side")


@dataclass(frozen=True, kw_only=True)
class Sided(Gate):
    """The normalized sigmoid h on the sides that close, r on those that do not."""

    sharpness: float = 10.0
    progress: bool = True
    wrong: bool = True

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        closing = 1 + (2 / self.sharpness) * (self.sharpness / 2 * ratio_minus_one(d)).tanh()
        forward = (d > 0) == (advantage >= 0)
        closes = (forward & self.progress) | (~forward & self.wrong)
        return closing.where(closes, ratio(d))


class Arm(NamedTuple):
    """A gate, and the coefficient of KL(old || new) in the loss."""

    gate: GateLike
    kl_coef: float = 0.0


def arms() -> dict[str, Arm]:
    """Name to arm; the first four are the factorial."""
    return {
        "no gate": Arm(load_gate("identity")),
        "progress side": Arm(Sided(wrong=False)),
        "wrong side": Arm(Sided(progress=False)),
        "both sides": Arm(Sided()),
        "RGPO literal": Arm(load_gate("sigmoid")),
        "RGPO literal + 1 KL": Arm(load_gate("sigmoid"), 1.0),
        "RGPO literal, log r": Arm(load_gate("sigmoid_log")),
        "sign-aware": Arm(load_gate("sign_aware_sigmoid")),
        "sign-aware, k = 5": Arm(load_gate("sign_aware_sigmoid", sharpness=5.0)),
        "PPO clip": Arm(load_gate("clip")),
        "CISPO": Arm(load_gate("cispo")),
    }


def measure(smoke: bool) -> dict[str, pd.DataFrame]:
    """kl (one row per arm, optimizer, seed of the shuffling and epoch) and samples (progress and weight, first seed)."""
    num_seeds, num_epochs = (1, 1) if smoke else (5, 10)
    rows, samples = [], []
    for name, arm in arms().items():
        for optimizer, run in (("Adam", adam), ("SGD", plain_sgd)):
            for seed in range(num_seeds if optimizer == "Adam" else min(num_seeds, 3)):
                policy, batch = load_batch()
                advantage = standardize(batch.samples.advantage)
                kls = run(arm, policy, batch, num_epochs, seed).mean(-1).tolist()
                rows += [(name, optimizer, seed, epoch + 1, kl) for epoch, kl in enumerate(kls)]
                if seed == 0 and optimizer == "Adam" and name in SNAPSHOTS:
                    d = policy.measure_shift(batch).log_ratio
                    w = weight(arm.gate, d, advantage) / arm.gate.weight_at_one()
                    samples.append(pd.DataFrame({"arm": name, "progress": advantage.sign() * d, "weight": w}))
    return {
        "kl": pd.DataFrame(rows, columns=["arm", "optimizer", "seed", "epoch", "kl"]),
        "samples": pd.concat(samples, ignore_index=True),
    }


def objective(gate: GateLike) -> Objective:
    """The surrogate with one gate."""
    return GateObjective(gate=gate, ref_gate=Open(), combine=Detached())


def divergence(arm: Arm) -> Divergence | None:
    """The exact KL(old || new) where the arm has a penalty."""
    return Divergence(estimator="exact", anchor="old") if arm.kl_coef > 0 else None


def adam(arm: Arm, policy: ActorCritic, batch: ControlBatch, num_epochs: int, seed: int) -> Tensor:
    """The update of rgpo-run with PPO's published settings: KL(old || new) after each epoch, (E, N)."""
    _, algorithm = load("task=hopper", "algo=ppo", f"update.num_epochs={num_epochs}")
    update = algorithm.update
    whole = GateLoss(objective=objective(arm.gate), divergence=divergence(arm))
    update.setup(policy, whole, normalize="minibatch", num_iterations=1, seed=seed)
    _, shift = update(policy, batch, arm.kl_coef)
    return shift.kl


def plain_sgd(arm: Arm, policy: ActorCritic, batch: ControlBatch, num_epochs: int, seed: int) -> Tensor:
    """theta -= lr clip(gradient) over the same minibatches, without moments, so that a gate's scale shows; KL as ``adam``."""
    of_samples = partial(
        loss, objective=objective(arm.gate), divergence=divergence(arm), vf_coef=0.5, ent_coef=0.0, value_clip=0.2
    )
    of_flat = partial(flat_loss, policy=policy, loss=of_samples, exact_kl=arm.kl_coef > 0, entropy=False, normalize=True)
    rng, flat, coef = np.random.default_rng(seed), policy.flat.clone(), torch.tensor(arm.kl_coef)
    kl = []
    for _ in range(num_epochs):
        for index in rng.permutation(batch.view.num_samples).reshape(32, -1):
            minibatch = select((batch.view, batch.samples), torch.from_numpy(index))
            gradient, _ = torch.func.grad(of_flat, has_aux=True)(flat, minibatch, coef)
            flat = flat - SGD_LR * clip_by_norm(gradient, 0.5)[0]
        policy.load_state_dict({"flat": flat})
        kl.append(policy.measure_shift(batch).kl)
    return torch.stack(kl)


def final(tables: Tables, arm: str, optimizer: str = "Adam") -> tuple[float, float, float]:
    """KL after the last epoch: mean over seeds and its interval."""
    table = tables["kl"]
    here = table[(table.arm == arm) & (table.optimizer == optimizer) & (table.epoch == table.epoch.max())]
    return interval(here.kl.to_numpy())


def lost(tables: Tables, arm: str) -> dict[str, float]:
    """Share of samples pushed more than 0.2 nats the wrong way after the last epoch, and their mean weight w/w(1)."""
    here = tables["samples"][tables["samples"].arm == arm]
    behind = here[here.progress < -0.2]
    return {"share": len(behind) / len(here), "weight": float(behind.weight.mean()) if len(behind) else float("nan")}


def verdicts(tables: Tables) -> list[Verdict]:
    num = int(tables["kl"].seed.nunique())
    rows = []
    rule = f"reproduced if KL(old || new) after the last of 10 epochs is at most {KL_CLAIMED} nats"
    for arm in ("RGPO literal", "RGPO literal, log r", "RGPO literal + 1 KL", "sign-aware"):
        found = final(tables, arm)
        where = f"{arm}, k = 10, one update on the fixed Hopper batch (nats)"
        rows.append(Verdict("drift (ours)", where, *found, num, "not stated", judge(found[0] <= KL_CLAIMED), rule, COMMAND))
    table = tables["kl"][(tables["kl"].optimizer == "Adam") & (tables["kl"].epoch == tables["kl"].epoch.max())]
    logs = np.log(table.pivot(index="seed", columns="arm", values="kl"))
    effect = interval((logs["both sides"] - logs["progress side"]).to_numpy())
    middle, low, high = (math.exp(x) for x in effect)
    rule = "reproduced if muting the wrong side as well multiplies the KL (the factor is shown, its interval above 1)"
    where = "both sides against progress side only, k = 10 (factor)"
    rows.append(Verdict("drift (ours)", where, middle, low, high, num, "not stated", judge(low > 1), rule, COMMAND))
    return rows


def numbers(tables: Tables) -> dict[str, object]:
    names = list(dict.fromkeys(tables["kl"].arm))
    return {
        "kl": {name: {"Adam": final(tables, name), "SGD": final(tables, name, "SGD")} for name in names},
        "lost": {name: lost(tables, name) for name in SNAPSHOTS},
        "seeds": int(tables["kl"].seed.nunique()),
        "samples": int((tables["samples"].arm == SNAPSHOTS[0]).sum()),
    }


LOOKS = {
    "no gate": style.Line(style.GREEN, style.DASHDOT, "D"),
    "wrong side": style.Line(style.PURPLE, style.DOTTED, "X"),
    "both sides": style.Line(style.VERMILLION, style.SOLID, "^"),
    "progress side": style.Line(style.BLUE, style.SOLID, "P"),
    "PPO clip": style.Line(style.BLACK, style.DASHED, "o"),
}


def draw(tables: Tables) -> Figure:
    """Left: what weight a sample gets over its progress. Middle: where the samples end. Right: KL over the epochs."""
    figure, axes = style.grid(3, columns=3, height=2.6)
    progress = torch.linspace(-1.0, 1.0, 401, dtype=torch.float64)
    given = arms()
    for name in ("PPO clip", "progress side", "both sides"):
        line, gate = LOOKS[name], given[name].gate
        w = weight(gate, progress, torch.ones_like(progress)) / gate.weight_at_one()
        axes[0].plot(progress, w, color=line.color, linestyle=line.dashes)
    axes[0].axvspan(-1, 0, color=style.GRAY, alpha=0.12, linewidth=0)
    axes[0].annotate("pushed the\nwrong way", (-0.93, 1.17), va="top")
    axes[0].annotate("makes\nprogress", (0.45, 1.17), va="top")
    axes[0].annotate("not\nbrought\nback", (-0.96, 0.03), color=style.VERMILLION, va="bottom", fontsize=7)
    axes[0].annotate("brought\nback", (-0.45, 0.69), color=style.BLUE, va="bottom", ha="right", fontsize=7)
    axes[0].set(xlim=(-1, 1), ylim=(0, 1.25), xlabel="progress sign(A) log r  [nats]", ylabel="weight w/w(1)  (A > 0)")
    axes[0].set_title("1  what the gate does")
    bins = np.linspace(-BEYOND, BEYOND, 61)
    for name in ("both sides", "progress side", "PPO clip"):
        values = tables["samples"].progress[tables["samples"].arm == name].clip(-BEYOND, BEYOND)
        line = LOOKS[name]
        axes[1].hist(values, bins=bins.tolist(), histtype="step", color=line.color, linestyle=line.dashes, linewidth=1.2)
    axes[1].axvspan(-BEYOND, 0, color=style.GRAY, alpha=0.12, linewidth=0)
    axes[1].set(yscale="log", xlim=(-BEYOND, BEYOND), xlabel="progress sign(A) log r  [nats]", ylabel="samples of 2,048")
    for x, side in ((-BEYOND, "left"), (BEYOND, "right")):
        axes[1].annotate("and\nbeyond", (x * 0.97, 3e2), ha=side, va="center", color=style.VERMILLION, fontsize=7)
    axes[1].set_title("2  where the samples end")
    adam = tables["kl"][tables["kl"].optimizer == "Adam"]
    for name, line in LOOKS.items():
        curves = adam[adam.arm == name].pivot(index="epoch", columns="seed", values="kl")
        axes[2].plot(curves.index, curves.mean(axis=1), color=line.color, linestyle=line.dashes, marker=line.marker)
    axes[2].set(yscale="log", xlabel="epoch over the batch", ylabel="KL(old ‖ new)  [nats]", title="3  how far the policy goes")
    names = {
        "no gate": "closes nowhere (w = r)", "wrong side": "closes on the wrong side only",
        "both sides": "closes on both: RGPO as written", "progress side": "closes on the progress side only", "PPO clip": "PPO",
    }  # fmt: skip
    style.legend_below(figure, {names[name]: line for name, line in LOOKS.items()})
    return figure
