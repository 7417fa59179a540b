"""Figures as files: their size, and panels that are to be compared."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from rgpo.report.figures import proxy_against_gold, style
from rgpo.report.figures.frontier import Plane, Trajectory
from rgpo.report.figures.looks import KNOWN, algorithm_lines, assign
from rgpo.report.figures.render import Job, render
from rgpo.report.figures.series import Panel, Series
from rgpo.report.page.panels import drawn
from rgpo.report.stats.bootstrap import Interval

LINES = {label: style.KNOWN[label] for label in ("ppo", "rgpo")}


def planes(count: int = 1) -> tuple[Plane, ...]:
    """Panels whose curves end at KL 8 (ppo) and 2 (rgpo)."""
    made = []
    for label, end in (("ppo", 8.0), ("rgpo", 2.0)) * count:
        kl = np.array([0.0, end / 2, end])
        cross = Interval(end, end, end), Interval(1.0, 0.9, 1.1)
        reward = np.array([0.0, 0.7, 1.0])
        curves = (Trajectory(label, kl, reward, ((kl, reward),), *cross),) * 2
        made.append(Plane("qwen_rlhf", "change of the reward", curves))
    return tuple(made)


@pytest.mark.parametrize("dpi", [50, 120])
def test_dpi_is_that_of_the_png_whatever_is_drawn_before(tmp_path: Path, dpi: int) -> None:
    for width in (3.5, 7.0):
        shown = render(Job("proxy_against_gold", "1-1", planes(), LINES, tmp_path, "png", ("svg", "pdf", "png"), width, 8.0, dpi))
        pixels, _ = struct.unpack(">II", (tmp_path / "proxy_against_gold.png").read_bytes()[16:24])
        assert pixels == width * dpi and isinstance(shown, str) and shown.startswith("<svg")
    assert [path.name for path in tmp_path.iterdir()] == ["proxy_against_gold.png"]


@pytest.mark.parametrize("scale", proxy_against_gold.SCALES)
@pytest.mark.parametrize("count", [1, 7])
def test_panels_of_algorithms_have_common_limits_that_hold_every_curve(scale: str, count: int) -> None:
    with style.context():
        figure = proxy_against_gold.draw(planes(count), LINES, scale)
    assert len(figure.axes) == 2 * count
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1
    (low, high), (bottom, top) = figure.axes[1].get_xlim(), figure.axes[1].get_ylim()
    assert low < 1.0 and high > 8.0 and bottom < 0.0 and top > 1.1


@pytest.mark.parametrize(("count", "seeds", "points"), [(16, 3, 100), (17, 0, 40)])
def test_the_page_draws_no_single_seeds_in_crowded_panels(count: int, seeds: int, points: int) -> None:
    x = np.linspace(0.0, 1.0, 500)
    series = tuple(Series(f"x{k}", x, x, x - 1, x + 1, ((x, x),) * 3, 3) for k in range(count))
    (panel,) = drawn("spikes", [Panel("hopper", "threshold", "updates", series)])
    curves = panel["curves"]
    assert isinstance(curves, list) and len(curves) == count
    assert all((len(curve["seeds"]), len(curve["x"])) == (seeds, points) for curve in curves)
    assert curves[0]["x"][0] == 0.0 and curves[0]["x"][-1] == 1.0


def test_the_looks_have_contrast_and_differ() -> None:
    def light(color: str) -> float:
        parts = (int(color[k : k + 2], 16) / 255 for k in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lines = assign([(f"x{k}", f"x{k}") for k in range(8)], algorithm_lines(f"x{k}" for k in range(8))) | KNOWN
    assert len({line.color for line in lines.values()}) == len({line.dark for line in lines.values()}) == len(lines) == 20
    for line in lines.values():
        assert 1.05 / (light(line.color) + 0.05) >= 3 and (light(line.dark) + 0.05) / (light("#16181b") + 0.05) >= 3, line
