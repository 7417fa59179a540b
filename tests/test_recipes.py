"""The recipes of docs/recipes, executed as they are printed: files written to an empty folder, commands run there."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from rgpo.cli import run
from rgpo.report import cli as report

PAGES = Path(__file__).parents[1] / "docs" / "recipes"
SHORT = ["task.num_steps=64", "task.num_eval_episodes=1", "num_iterations=2"]  # instead of the printed length
TINY = ["num_iterations=2", "task.num_prompts=4", "task.group_size=2", "task.max_new_tokens=4", "task.num_eval_prompts=2"]
TINY += [
    "task.source.dtype=float32",
    "task.source.device=cpu",
    "task.source.heldout_share=0.3",
    "task.gradient_checkpointing=false",
]
TINY += ["task.micro_batch_size=8", "task.num_samples=2", "task.lora.rank=2", "task.num_kl_tokens=4"]


START = PAGES.parent / "start.md"


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, name of the file, text) of each code block of a page."""
    text = (PAGES / f"{page}.md").read_text()
    return re.findall(r'^```(\w+)(?: title="([^"\n]*)")?\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory whose modules are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])
    known = set(sys.modules)
    yield here
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(here):
            del sys.modules[name]


@pytest.mark.parametrize("page", sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "index"))
def test_a_recipe_works_as_printed(
    page: str, place: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    num_runs = 0
    for language, name, text in blocks(page):
        if name:
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for line in text.splitlines() if language == "sh" else ():
            if "MODEL" in line:
                line = line.replace("MODEL", str(request.getfixturevalue("tiny_checkpoint")))
            program, *words = shlex.split(line)
            if program == "python":
                runpy.run_path(words[0], run_name="__main__")
                continue
            if program == "rgpo-run":
                words = [word for word in words if not word.startswith("total_env_steps=")]
                words += TINY if "task=qwen_rlhf" in words else SHORT
                num_runs += 1
            code = run._main(words) if program == "rgpo-run" else report.main(words)
            assert code == 0, f"{line}\n{capsys.readouterr()}"
    assert num_runs and [*place.rglob("metrics.parquet")]
    assert all(len(pd.read_parquet(path)) == 2 for path in place.rglob("metrics.parquet"))


def test_the_first_ten_minutes_work_as_printed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command of docs/start.md on CartPole, shortened, and the Python code."""
    text = START.read_text().replace("=8192", "=2048")
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if re.match(r"rgpo-(?!.*(?:qwen_rlhf|--help))", line)]
    assert len(commands) == 4
    for program, *words in commands:
        assert (run._main(words) if program == "rgpo-run" else report.main(words)) == 0, f"{words}\n{capsys.readouterr()}"
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    exec(code, {})
    assert "train_mean" in capsys.readouterr().out


def test_every_file_of_a_recipe_is_used() -> None:
    for page in PAGES.glob("*.md"):
        text = page.read_text()
        for stem in (Path(name).stem for _, name, _ in blocks(page.stem) if name):
            assert len(re.findall(rf"\b{stem}\b", text)) > 1, f"{page.name}: {stem}"
