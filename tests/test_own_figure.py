"""A figure from a module in the current directory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rgpo.report.cli import main
from tests.report_fixtures import write_experiment

FIGURE = '''
"""Steps against iterations."""
from matplotlib.figure import Figure

COLUMNS = ("kl/old_exact",)
SCALES = ("linear y axis",)

def compute(groups, settings):
    return [[run.curve("kl/old_exact").sum() for run in group.used] for group in groups]

def draw(panels, lines, scale):
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([sum(panel) for panel in panels], gid="total-kl")
    return figure

def caption(panels, settings):
    return f"Total KL of {len(panels)} groups."
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_experiment(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_module_of_the_current_directory_is_drawn_after_the_reports_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "total_kl_figure.py").write_text(FIGURE)
    assert main(["figures=[total_kl_figure,kl]", "format=svg"]) == 0, capsys.readouterr().err
    page = (here / "report/index.html").read_text()
    assert (here / "report/first_evidence/figures/total_kl_figure.svg").exists()
    assert page.index("figures/kl.svg") < page.index("figures/total_kl_figure.svg")
    assert "Total KL of" in page and "total-kl" in page


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("absent_figure", None, "there is no module of that name in the current directory"),
        ("broken_figure", "import no_such_package", "cannot be imported (ModuleNotFoundError"),
        ("half_figure", "COLUMNS = ()", "lacks SCALES, compute, draw, caption"),
        ("json", None, "there is no module of that name in the current directory"),
    ],
)
def test_a_module_that_cannot_be_drawn_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, text: str | None, expected: str
) -> None:
    if text is not None:
        (here / f"{name}.py").write_text(text)
    assert main([f"figures=[{name}]"]) == 2
    assert expected in capsys.readouterr().err and not (here / "report").exists()


def test_a_figure_that_raises_costs_itself_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "raising_figure.py").write_text(FIGURE.replace("return figure", "raise KeyError('x')"))
    assert main(["figures=[kl,raising_figure]", "format=svg"]) == 1
    assert "raising_figure: cannot be drawn (KeyError: 'x'); it is left out" in capsys.readouterr().err
    assert (here / "report/first_evidence/figures/kl.svg").exists()
