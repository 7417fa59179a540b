"""Clips of trained policies on the page, and gates drawn with their jumps."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import report_fixtures as fixtures

from rgpo.report.cli import main
from rgpo.report.figures.gates import MAX_JUMPS, with_jumps

GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")  # one pixel


def test_a_clip_is_shown_beside_the_curve_of_its_task_and_hidden_with_its_arm(browser: Any, tmp_path: Path) -> None:
    for run in fixtures.write_experiment(tmp_path / "results", algos=("ppo", "rgpo"), seeds=2):
        if run.name.startswith("hopper") and "-s1-" in run.name:
            (run / "evaluation").mkdir()
            (run / "evaluation/episode.gif").write_bytes(GIF)
    main([f"results_dir={tmp_path}/results", f"out={tmp_path}/report", "num_resamples=200", "figures=[learning_curves]"])
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    tab.goto((tmp_path / "report/index.html").as_uri())
    explorer = tab.locator(".explorer").first
    explorer.evaluate("box => box.scrollIntoView()")
    clips = tab.locator(".chart .clips figure")
    clips.first.wait_for()
    charts = {title: tab.locator(f".chart:has(h4:text-is('Training return: {title}'))") for title in fixtures.TASKS}
    assert clips.count() == 2 and charts["hopper"].locator("figure img").count() == 2
    assert all(chart.locator("figure").count() == 0 for task, chart in charts.items() if task != "hopper")
    assert not tab.locator("section.films").is_visible()
    tab.get_by_role("button", name="only rgpo").first.click()
    tab.locator('.chart .clips figure[data-label="rgpo"]').wait_for()
    assert not tab.locator('figure[data-label="ppo"]').is_visible() and clips.count() == 2
    tab.close()


def test_jumps_are_drawn_as_steps_and_slopes_are_not() -> None:
    d = np.linspace(-3, 3, 121)
    clip = np.where(d < np.log(1.2), np.exp(d), 0.0)
    x, y = with_jumps(d, clip)
    assert len(x) == 123 and (np.diff(x) > 0).all()
    (fall,) = np.flatnonzero(np.abs(np.diff(y)) > 0.5)
    assert x[fall] < np.log(1.2) + 0.05 and x[fall + 1] - x[fall] < 0.006  # a tenth of the distance of neighbors
    assert set(y) == set(clip)
    for smooth in (np.exp(d), 1 / (1 + np.exp(-10 * d)), np.maximum(d, 0.0), np.full_like(d, np.nan)):
        np.testing.assert_array_equal(with_jumps(d, smooth)[1], smooth)
    stairs = np.repeat(np.arange(12.0), 11)[:121]
    assert len(with_jumps(d, stairs)[0]) == 121 + 2 * MAX_JUMPS
