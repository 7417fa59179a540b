"""The pictures in the documentation, drawn from the classes that they explain and from results/."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pages import one_update
from experiments.pages.numbers import gate_of
from experiments.pages.results import Judged, Results
from experiments.theory.common import load_gate
from rgpo import gates, surrogate
from rgpo.cli.config_dir import group_options
from rgpo.core.advantages import GAE
from rgpo.core.gate import GateLike
from rgpo.core.kl_penalty import AdaptivePenalty
from rgpo.core.rollout import Rollout
from rgpo.core.surrogate import Detached
from rgpo.report.claims.verdict import OUTCOMES
from rgpo.report.figures import kl, learning_curves, settings_frontier, style
from rgpo.report.read.arms import arms_of
from rgpo.report.read.groups import Group

GATES = {"identity": "trpo", "clip": "ppo", "sigmoid": "rgpo", "sign_aware_sigmoid": "rgpo_sign_aware"}  # gate -> whose line
FRONTIERS = {"frontier": "language_frontier", "return_over_kl": "matched_kl"}  # picture -> experiment
KL_EXPERIMENT = "first_evidence"
MAX_ARMS = 10  # of a figure that can be read
RATIOS = np.linspace(0.02, 2.0, 200)


def pictures(results: Results) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(name, format -> content) of every picture; the README's picture also as PNG, at least 1,400 pixels wide."""
    drawn: dict[str, Callable[[], Figure]] = {
        "verdict": partial(verdict, results.claims),
        "concept_gate": partial(_curves, "gate value g(r)", lambda gate, d, sign: gate(d, sign)),
        "concept_weight": partial(_curves, "weight w(r) = r g'(r)", gates.weight),
        "concept_penalty": penalty,
        "concept_advantage": advantage,
        "concept_update": update,
    }
    for algo in group_options("algo"):
        gate = gate_of(algo)
        if gate is not None:
            drawn[f"gate_{gate}"] = partial(gate_and_weight, gate)
        if any(not group.language for groups in results.of(algo).values() for group in groups):
            drawn[f"results_{algo}"] = partial(learning, results, algo)
    if results.single_updates:
        drawn["one_update"] = partial(one_update.figure, results.single_updates, results.settings.confidence)
    if KL_EXPERIMENT in results.groups:
        drawn["kl_per_update"] = partial(kl_per_update, results)
    for name, experiment in FRONTIERS.items():
        if experiment in results.groups:
            drawn[name] = partial(frontier, results, experiment)
    for name, draw in drawn.items():
        with style.context():
            figure = draw()
            style.settle(figure)
            yield name, style.save(figure, name, ("svg", "png") if name == "verdict" else ("svg",), 220)


def verdict(claims: Sequence[Judged]) -> Figure:
    """A row per claim in the paper, by subject, with a mark in the column of its verdict."""
    rows: list[Judged | str] = []
    for subject in dict.fromkeys(claim.subject for claim in claims):
        rows += [subject.capitalize(), *(claim for claim in claims if claim.subject == subject)]
    figure = Figure(figsize=(style.WIDTH, 0.22 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots()
    colors = (style.GREEN, "o"), (style.VERMILLION, "X"), (style.ORANGE, "s"), (style.GRAY, "D")
    looks = dict(zip(OUTCOMES, colors, strict=True))
    for place, row in enumerate(rows):
        if isinstance(row, Judged):
            color, marker = looks[row.verdict]
            axes.plot(OUTCOMES.index(row.verdict), place, marker=marker, color=color, markersize=8)
    labels = [row if isinstance(row, str) else f"{row.id}  {textwrap.shorten(row.claim, 80)}" for row in rows]
    for label, row in zip(axes.set_yticks(range(len(rows)), labels), rows, strict=True):
        label.label1.set_fontweight("bold" if isinstance(row, str) else "normal")
    axes.set_xticks(range(len(OUTCOMES)), OUTCOMES)
    axes.set_xlim(-0.5, len(OUTCOMES) - 0.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    return figure


def _curves(label: str, values: Callable[[GateLike, torch.Tensor, torch.Tensor], torch.Tensor]) -> Figure:
    """A panel per sign of the advantage with the gates in GATES over r."""
    figure, panels = style.grid(2, columns=2, height=2.3)
    looks = style.algorithm_lines(GATES.values())
    lines = {name: looks[algo] for name, algo in GATES.items()}
    d = torch.as_tensor(RATIOS).log()
    for axes, sign in zip(panels, (1.0, -1.0), strict=True):
        for name, line in lines.items():
            y = values(load_gate(name), d, torch.full_like(d, sign))
            axes.plot(RATIOS, y, color=line.color, linestyle=line.dashes, marker=line.marker, markevery=40)
        _at_one(axes, 1.0)
        axes.set_ylim(-0.1, 2.7)
        axes.set_title("A ≥ 0" if sign > 0 else "A < 0")
        axes.set_xlabel("ratio r = new/old")
        axes.set_ylabel(label)
    style.legend_below(figure, lines)
    return figure


def gate_and_weight(name: str) -> Figure:
    """g and w of one gate over d = log r, for both signs of A."""
    figure, panels = style.grid(2, columns=2, height=2.0)
    lines = {"A ≥ 0": style.KNOWN["rgpo_sign_aware"], "A < 0": style.KNOWN["rgpo_literal"]}
    d = torch.linspace(-1.5, 1.5, 121, dtype=torch.float64)
    gate = load_gate(name)
    for sign, (label, line) in zip((1.0, -1.0), lines.items(), strict=True):
        inputs = d, torch.full_like(d, sign), torch.full_like(d, 0.5).log()  # an old probability of 1/2, for gates that use it
        for axes, y in zip(panels, (gate(*inputs), gates.weight(gate, *inputs)), strict=True):
            axes.plot(
                d,
                y,
                color=line.color,
                linestyle=line.dashes,
                marker=line.marker,
                markevery=(0 if sign > 0 else 10, 20),
                label=label,
            )
    for axes, what in zip(panels, ("g", "w = dg/dd"), strict=True):
        _at_one(axes, 0.0)
        axes.set_xlabel("log ratio d, nats")
        axes.set_ylabel(what)
    style.legend_below(figure, lines)
    return figure


def penalty() -> Figure:
    """The adaptive coefficient, if an update has a KL of 0.5 nats without it and 0.5/(1 + coef) with it."""
    rule = AdaptivePenalty(
        coef=1.0, estimator="exact", anchor="old", kl_target=0.02, factor=2.0, tolerance=1.5, min_coef=1e-3, max_coef=1e3
    )
    coefs, kls = [], []
    for _ in range(16):
        coefs.append(rule.coef)
        kls.append(0.5 / (1 + rule.coef))
        rule.observe(kls[-1])
    figure, panels = style.grid(2, columns=2, height=2.0)
    line = style.KNOWN["rgpo"]
    for axes, y, label in zip(panels, (coefs, kls), ("coefficient", "KL of the update, nats"), strict=True):
        axes.step(range(1, 17), y, where="mid", color=line.color)
        axes.set_xlabel("iteration")
        axes.set_ylabel(label)
        style.log_axis(axes)
    for level in (rule.kl_target / rule.tolerance, rule.kl_target, rule.kl_target * rule.tolerance):
        panels[1].axhline(level, color=style.GRAY, linewidth=0.8, linestyle=style.DASHED)
    return figure


def advantage() -> Figure:
    """GAE in an episode with a reward only at the end, for three values of lam."""
    steps = 20
    reward, value = np.zeros((steps, 1)), np.full((steps, 1), 0.3)
    reward[-1] = 1.0
    ended = np.zeros((steps, 1), bool)
    ended[-1] = True
    rollout = Rollout(
        reward=reward, terminated=ended, done=ended, value=value, next_value=np.where(ended, 0.0, value), metrics={}
    )
    figure, (axes,) = style.grid(1, columns=1, height=2.2)
    lines = {
        f"lam = {lam:g}": line
        for lam, line in zip((0.0, 0.9, 1.0), (style.KNOWN[name] for name in ("ppo", "rgpo", "rgpo_sign_aware")), strict=True)
    }
    for line, lam in zip(lines.values(), (0.0, 0.9, 1.0), strict=True):
        found, _ = GAE(gamma=1.0, lam=lam, bootstrap_truncated=True, normalize="none")(rollout)
        axes.plot(range(1, steps + 1), found[:, 0], color=line.color, linestyle=line.dashes, marker=line.marker, markevery=4)
    axes.set_xlabel("step of the episode; reward 1 at step 20, V = 0.3 at every step")
    axes.set_ylabel("advantage")
    style.legend_below(figure, lines)
    return figure


def update() -> Figure:
    """KL(old || new) of a policy with five actions over gradient steps on one batch, by gate and with a penalty."""
    figure, (axes,) = style.grid(1, columns=1, height=2.4)
    looks = style.algorithm_lines([*GATES.values(), "ppo_kl"])
    lines = {name: looks[algo] for name, algo in GATES.items()} | {"sigmoid + 1 KL": looks["ppo_kl"]}
    for label, line in lines.items():
        name, _, penalized = label.partition(" + ")
        kls = divergences(load_gate(name), kl_coef=1.0 if penalized else 0.0)
        axes.plot(kls, color=line.color, linestyle=line.dashes, marker=line.marker, markevery=25)
    axes.set_xlabel("gradient steps on the same batch")
    axes.set_ylabel("KL(old || new), nats")
    style.log_axis(axes)
    axes.set_ylim(1e-3, 10)
    style.legend_below(figure, lines)
    return figure


def divergences(gate: GateLike, kl_coef: float, num_steps: int = 150, lr: float = 0.5) -> Sequence[float]:
    """KL(old || new) after each gradient step on the expected surrogate for five actions with fixed advantages."""
    old = torch.tensor([0.1, 0.1, 0.2, 0.3, 0.3], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0, 0.5, -0.5, 0.0], dtype=torch.float64)
    gap = reward - (old * reward).sum()
    logits = old.log().clone().requires_grad_()
    found = []
    for _ in range(num_steps):
        d = logits.log_softmax(0) - old.log()
        kl = (old * -d).sum()
        loss = surrogate(d, d, gap, torch.zeros_like(d), gate=gate, ref_gate=gates.Open(), combine=Detached(), kl_coef=0.0).loss
        (grad,) = torch.autograd.grad((old * loss).sum() + kl_coef * kl, logits)
        logits = (logits - lr * grad).detach().requires_grad_()
        found.append((old * (old.log() - logits.log_softmax(0))).sum().item())
    return found


def learning(results: Results, algo: str) -> Figure:
    """Learning curves of an algorithm and PPO, from the longest experiment with few arms; of several, the one with most tasks."""
    found = {name: [group for group in groups if not group.language] for name, groups in results.of(algo).items()}

    def rank(name: str) -> tuple[bool, int, int, int]:
        groups = found[name]
        num_arms = len({group.label for group in groups})
        length = max(group.used[0].planned_steps or 0 for group in groups)
        return num_arms <= MAX_ARMS, length, len({group.task for group in groups}), -num_arms

    groups = found[max(sorted(name for name in found if found[name]), key=rank)]
    return learning_curves.draw(learning_curves.compute(groups, results.settings), _lines(groups))


def kl_per_update(results: Results) -> Figure:
    """KL of every update of each arm of the first experiment."""
    groups = results.groups[KL_EXPERIMENT]
    return kl.draw(kl.compute(groups, results.settings), _lines(groups))


def _lines(groups: Sequence[Group]) -> Mapping[str, style.Line]:
    return style.assign([(group.algo, group.label) for group in groups], style.algorithm_lines(group.algo for group in groups))


def frontier(results: Results, experiment: str) -> Figure:
    """Rewards over KL to the reference, or returns over KL per update, with a curve per arm through its settings."""
    groups = results.groups[experiment]
    panels = settings_frontier.compute(groups, results.settings)
    labels = {series.label: None for panel in panels for series in panel.series}
    algos = {arm.label: arm.algo for arm in arms_of(groups)}
    lines = style.assign([(algos[label], label) for label in labels], style.algorithm_lines(algos.values()))
    return settings_frontier.draw(panels, lines)


def _at_one(axes: Axes, place: float) -> None:
    axes.axvline(place, color=style.GRAY, linewidth=0.6, zorder=1)
