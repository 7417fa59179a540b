"""C4: which lower bounds on J(pi) - J(old) hold, on random MDPs solved exactly, and the two-action counter-example.

rho is the discounted state measure of the old policy (it sums to 1/(1-gamma)), h the zero-referenced normalized gate,
h(r) = 1 + (2/k) tanh(k (r-1)/2), and occupancy = 2 gamma eps_pi/(1-gamma) E_rho[TV(s)] with eps_pi = max_s |E_pi A(s, .)|
(Achiam et al. 2017, Corollary 1) or 4 eps gamma/(1-gamma)^2 TV_max^2 with eps = max |A| (Schulman et al. 2015, Theorem 1).

    naive       E_rho,old[g A] - C KL_max, C = 4 eps gamma/(1-gamma)^2, g = sigma(k (r-1)): the gate in place of the ratio
    divided     (4/k) E_rho,old[g A] - C KL_max: the same, divided by w(1) = k/4
    proved      (4/k) E_rho,old[g A] - (M_k eps/(1-gamma) + C) KL_max, M_k = sup |h - r|/(r - 1 - log r)
    repaired    E_rho,old[h A] - E_rho,old[|h - r| |A|] - occupancy
    pessimistic E_rho,old[min(r A, h A)] - occupancy
    capped      the same with the sign-aware gate as it is run, whose weight is capped at c = 3 where A < 0: beyond r = c it
                exceeds min(r A, h A) by (r - c (1 + log(r/c))) |A|, so the bound holds only less E of that surplus
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.theory.common import Tables, Verdict, judge, share
from rgpo.core.rollout import Array
from rgpo.report.figures import style

COMMAND = "python -m experiments.theory improvement"
NUM_STATES, NUM_ACTIONS, GAMMA = 5, 3, 0.9
SHARPNESS = (2.0, 4.0, 10.0)
CAP = 3.0  # of the sign-aware gate's weight, conf/gate/sign_aware_sigmoid.yaml
ROUNDING = 1e-9  # a bound is violated beyond it


@cache
def surrogate_constant(k: float) -> float:
    """M_k = sup_r |h(r) - r| / (r - 1 - log r), so that E_old|h - r| <= M_k KL(old || new); 1.26, 1.72, 3.26 for k = 2, 4, 10."""
    r = np.concatenate([np.linspace(1e-4, 0.999, 20_000), np.linspace(1.001, 200, 200_000)])
    return float(np.max(np.abs(1 + 2 / k * np.tanh(k * (r - 1) / 2) - r) / (r - 1 - np.log(r))))


class MDP(NamedTuple):
    """Transition (S, A, S), reward (S, A), first state's distribution (S,)."""

    transition: Array
    reward: Array
    start: Array


class Exact(NamedTuple):
    """Of one policy: its return J, its advantages (S, A) and its discounted state measure (S,)."""

    objective: float
    advantage: Array
    measure: Array


def random_mdp(rng: np.random.Generator) -> MDP:
    transition = rng.dirichlet(np.full(NUM_STATES, 0.5), (NUM_STATES, NUM_ACTIONS))
    return MDP(transition, rng.standard_normal((NUM_STATES, NUM_ACTIONS)), rng.dirichlet(np.ones(NUM_STATES)))


def solve(mdp: MDP, policy: Array) -> Exact:
    """V = (I - gamma P)^-1 r, A = r + gamma P V - V, rho = start (I - gamma P)^-1; policy (S, A)."""
    inverse = np.linalg.inv(np.eye(NUM_STATES) - GAMMA * np.einsum("sa,sat->st", policy, mdp.transition))
    value = inverse @ (policy * mdp.reward).sum(1)
    action_value = mdp.reward + GAMMA * mdp.transition @ value
    return Exact(float(mdp.start @ value), action_value - value[:, None], mdp.start @ inverse)


def bounds(exact: Exact, old: Array, new: Array, k: float) -> dict[str, float]:
    """Every lower bound on J(new) - J(old)."""
    ratio, a = new / old, exact.advantage
    h = 1 + (2 / k) * np.tanh(k * (ratio - 1) / 2)
    g = 1 / (1 + np.exp(-k * (ratio - 1)))

    def mean(x: Array) -> float:
        return float(exact.measure @ (old * x).sum(1))

    distance = np.abs(new - old).sum(1) / 2
    kl_max = float((old * np.log(old / new)).sum(1).max())
    expected = np.abs((new * a).sum(1)).max()
    largest = 4 * np.abs(a).max() * GAMMA / (1 - GAMMA) ** 2
    occupancy = {
        "CPO's term": 2 * GAMMA * expected / (1 - GAMMA) * float(exact.measure @ distance),
        "TRPO's term": largest * float(distance.max()) ** 2,
    }
    surplus = np.where((a < 0) & (ratio > CAP), (ratio - CAP * (1 + np.log(ratio / CAP))) * np.abs(a), 0.0)
    gated = {"repaired": mean(h * a) - mean(np.abs(h - ratio) * np.abs(a)), "pessimistic": mean(np.minimum(ratio * a, h * a))}
    found = {"naive": mean(g * a) - largest * kl_max, "divided by w(1)": 4 / k * mean(g * a) - largest * kl_max}
    moved = surrogate_constant(k) * float(np.abs(a).max()) / (1 - GAMMA) * kl_max
    found |= {"proved": found["divided by w(1)"] - moved, "ratio, no occupancy term": mean(ratio * a)}
    run = mean(np.minimum(ratio * a, h * a) + surplus)  # the gate as it is run
    found |= {f"capped, {key}": run - term for key, term in occupancy.items()}
    for name, value in gated.items():
        found |= {f"{name}, {key}": value - term for key, term in occupancy.items()}
        found[f"{name}, no occupancy term"] = value
    return found


def measure(smoke: bool) -> dict[str, pd.DataFrame]:
    """bounds: one row per MDP, pair of policies, k and bound, with gap = J(new) - J(old) - bound; counterexample."""
    num_pairs = 100 if smoke else 3000
    rng = np.random.default_rng(0)
    rows = []
    for pair in range(num_pairs):
        mdp = random_mdp(rng)
        logits, direction = rng.standard_normal((2, NUM_STATES, NUM_ACTIONS))
        distance = 10 ** rng.uniform(-4, 0.5)
        old, new = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits, logits + distance * direction))
        exact = solve(mdp, old)
        gain = solve(mdp, new).objective - exact.objective
        for k in SHARPNESS:
            rows += [(pair, k, name, distance, gain, gain - bound) for name, bound in bounds(exact, old, new, k).items()]
    t = np.linspace(0, 0.45, 91)
    example = pd.DataFrame({"t": t, "gain": 2 * t, "kl": -np.log(1 - 4 * t**2) / 2})
    for k in (2.0, 4.0, 10.0):
        example[f"surrogate_{k:g}"] = np.tanh(k * t) / 2
    columns = ["pair", "sharpness", "bound", "distance", "gain", "gap"]
    table = pd.DataFrame(rows, columns=columns).astype({"bound": "category", "gap": "float64"})
    return {"bounds": table, "example": example}


def violations(table: pd.DataFrame, bound: str, k: float) -> tuple[int, int]:
    """The number of pairs of policies that violate the bound, and of all pairs."""
    here = table[(table.bound == bound) & (table.sharpness == k)]
    return int((here.gap < -ROUNDING).sum()), len(here)


def verdicts(tables: Tables) -> list[Verdict]:
    rows = []
    rule = "reproduced if no pair of policies violates the bound (share of violations shown, Wilson's interval)"
    cases = [(bound, "C4", k) for bound in ("divided by w(1)", "proved") for k in SHARPNESS]
    cases += [("naive", "C4 (ours)", 10.0), ("naive", "C4 (ours)", 4.0), ("capped, CPO's term", "C4 (ours)", 10.0)]
    cases += [
        (f"{kind}, {term}", "C4 (ours)", 10.0) for kind in ("repaired", "pessimistic") for term in ("CPO's term", "TRPO's term")
    ]
    for bound, claim, k in cases:
        count, total = violations(tables["bounds"], bound, k)
        where = f"{bound}, k = {k:g}: random MDPs solved exactly (share of violations)"
        paper = "monotonic improvement" if claim == "C4" else "not stated"
        rows.append(Verdict(claim, where, *share(count, total), total, paper, judge(count == 0), rule, COMMAND))
    return rows


def numbers(tables: Tables) -> dict[str, object]:
    table = tables["bounds"]
    counts = [{"bound": bound} | {f"k{k:g}": violations(table, bound, k)[0] for k in SHARPNESS} for bound in table.bound.unique()]
    constants = [{"sharpness": k, "constant": surrogate_constant(k)} for k in SHARPNESS]
    return {"counts": counts, "constants": constants, "pairs": int(table.pair.nunique())}


def draw(tables: Tables) -> Figure:
    """The counter-example: the gain and the surrogate minus C KL; and the share of violations by distance."""
    example, table = tables["example"], tables["bounds"]
    figure, axes = style.grid(2, columns=2, height=2.5)
    near = example[example.t <= 0.2]
    axes[0].plot(near.t, near.gain, color=style.BLACK, label="true gain 2t")
    for k, color in ((10.0, style.VERMILLION), (4.0, style.BLUE)):
        for penalty, dashes in ((1.0, style.SOLID), (4.0, style.DASHED)):
            y = near[f"surrogate_{k:g}"] - penalty * near.kl
            axes[0].plot(near.t, y, color=color, linestyle=dashes, label=f"k = {k:g}, surrogate − {penalty:g} KL")
    axes[0].axhline(0, color=style.GRAY, linewidth=0.5)
    axes[0].set(xlabel="step t: π = (½ + t, ½ − t)", ylabel="gain, and its claimed lower bound", title="Two actions, A = (1, −1)")
    axes[0].legend(loc="upper left", fontsize=6.5)
    axes[0].set_ylim(-0.05, 0.8)
    here = table[table.sharpness == 10.0]
    edges = np.geomspace(1e-4, 10**0.5, 11)
    center = np.sqrt(edges[1:] * edges[:-1])
    looks: dict[str, tuple[str, Any, str]] = {
        "naive": (style.VERMILLION, style.SOLID, "^"), "divided by w(1)": (style.PURPLE, style.DOTTED, "s"),
        "ratio, no occupancy term": (style.GREEN, style.DASHDOT, "D"),
        "repaired, no occupancy term": (style.ORANGE, style.DASHED, "v"),
        "pessimistic, no occupancy term": (style.SKY, style.DASHED, "<"),
        "repaired, CPO's term": (style.BLACK, style.SOLID, "o"), "pessimistic, CPO's term": (style.BLUE, style.DASHED, "P"),
    }  # fmt: skip
    for bound, (color, dashes, marker) in looks.items():
        rows = here[here.bound == bound]
        bins = np.digitize(rows.distance, edges[1:-1])
        bad = (rows.gap < -ROUNDING).groupby(bins).mean().reindex(range(len(center)), fill_value=math.nan)
        axes[1].plot(center, 100 * bad, color=color, linestyle=dashes, marker=marker)
    axes[1].set(xscale="log", xlabel="step in logits", ylabel="violations  [%]", title="Random MDPs, k = 10", ylim=(-3, 100))
    style.legend_below(figure, {bound: style.Line(*look) for bound, look in looks.items()})
    return figure
