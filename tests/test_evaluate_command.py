"""rgpo-eval: returns with their standard error, films, and scores with completions."""

from __future__ import annotations

import base64
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces
from stored_policies import CASES, SMALL
from stored_policies import runs as runs
from test_language_cli import parts as parts
from test_language_cli import words

import rgpo
from rgpo.cli import evaluate
from rgpo.control import evaluation
from rgpo.report import cli as report
from rgpo.report.page import films
from rgpo.runtime import manifest, schema

RETURN = re.compile(r"  (deterministic|stochastic) +return (\S+) \+- (\S+) \(standard error, n = (\d+)\)\n")
RUN = {"run_id": "x", "task": "gym", "seed": 1, "where": "x/y"}
Runs = Callable[[str], rgpo.Run]


class Drawn(gymnasium.Env):
    """Ten steps of a picture that shows the step."""

    metadata = {"render_fps": 10}
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, fails: bool = False, picture: str = "large") -> None:
        self.render_mode, self.fails, self.picture = render_mode, fails, picture
        if picture == "fast":
            self.metadata = {"render_fps": "fast"}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.zeros(2, np.float32), 1.0, False, self.t == 10, {}

    def render(self) -> Any:
        if self.picture == "tiny":
            return np.full((1, 1, 3), 0.5, np.float32)
        if self.picture == "grows":
            return np.zeros((40 + 8 * self.t, 40, 3), np.uint8)
        if self.picture == "stops" and self.t > 5:
            return None
        if self.picture == "exits" and self.t > 5:
            sys.exit(0)
        return None if self.fails else np.full((401, 801, 3), 20 * self.t, np.uint8)


gymnasium.register("Drawn-v0", Drawn)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., rgpo.Run]:
    folder = tmp_path_factory.mktemp("drawn")

    def make(*more: str) -> rgpo.Run:
        own = ("algo=ppo", "task=gym", "task.env_id=Drawn-v0", "update.num_minibatches=4", f"results_dir={folder}")
        return rgpo.run(*own, *SMALL, *more)

    return make


def by_hand(run: rgpo.Run, episodes: int, seed: int) -> list[float]:
    """Deterministic returns in gymnasium's own environments."""
    found = []
    for i in range(episodes):
        env = gymnasium.make("CartPole-v1")
        seen, _ = env.reset(seed=seed + i)
        total, over = 0.0, False
        while not over:
            seen, reward, terminated, truncated, _ = env.step(int(run.policy(seen)))
            total, over = total + float(reward), terminated or truncated
        found.append(total)
    return found


def test_returns_equal_those_of_gymnasium(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs("cartpole")
    capsys.readouterr()
    assert evaluate.main([str(run.folder), "episodes=7", "seed=5"]) == 0
    first = capsys.readouterr().out
    found = {name: (float(mean), float(error), int(n)) for name, mean, error, n in RETURN.findall(first)}
    expected = by_hand(run, 7, 5)
    mean, error, n = found["deterministic"]
    assert n == 7 and mean == pytest.approx(np.mean(expected), rel=1e-5)
    assert error == pytest.approx(np.std(expected, ddof=1) / 7**0.5, rel=1e-2)
    assert found["stochastic"][2] == 7 and found["stochastic"] != found["deterministic"]
    assert evaluate.main([str(run.folder), "episodes=7", "seed=5"]) == 0 and capsys.readouterr().out == first


def test_more_episodes_than_environments_at_a_time(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs("cartpole")
    actor = run._stored_actor
    assert actor is not None
    whole, _ = evaluation.returns(run.task, actor, 10, 3, True)
    monkeypatch.setattr(evaluation, "AT_A_TIME", 4)
    cut, _ = evaluation.returns(run.task, actor, 10, 3, True)
    np.testing.assert_array_equal(whole, cut)
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 5)
    total, num_cut = evaluation.returns(run.task, actor, 3, 3, True)
    assert num_cut == 3 and list(total) == [5.0, 5.0, 5.0]


def test_an_unfinished_run_is_evaluated(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    run = runs("cartpole")
    copy = shutil.copytree(run.folder, tmp_path / run.folder.name)
    assert evaluate.main([str(copy), "episodes=2"]) == 0
    finished = capsys.readouterr().out
    shutil.rmtree(copy / "policy")
    (copy / "manifest.json").unlink()
    assert evaluate.main([str(copy), "episodes=2"]) == 0 and capsys.readouterr().out == finished


def test_one_episode_has_no_standard_error(drawn: Callable[..., rgpo.Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(drawn().folder), "episodes=1"]) == 0
    assert "return 10 (n = 1)" in capsys.readouterr().out


def test_a_film_shows_the_episode(drawn: Callable[..., rgpo.Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = drawn()
    assert evaluate.main([str(run.folder), "episodes=2", "video=true"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1].strip())
    assert path.parent == run.folder / "evaluation" and path.name in ("episode.gif", "episode.mp4")
    if path.suffix == ".gif":
        frames = imageio.imread(path, index=None)
        assert len(frames) == 11 and frames.shape[1:3] == (134, 266)
        assert [int(frame[..., 0].mean()) for frame in frames] == [20 * t for t in range(11)]
        assert imageio.immeta(path)["duration"] == 100
    assert manifest.problems(run.folder) == []


def test_the_report_shows_the_film_in_its_page(
    drawn: Callable[..., rgpo.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = drawn()
    assert evaluate.main([str(run.folder), "episodes=1", "video=true"]) == 0
    (film,) = (run.folder / "evaluation").iterdir()
    words = [f"results_dir={run.folder.parents[1]}", f"out={tmp_path}", "figures=[]"]
    assert report.main(words) == 0
    page = (tmp_path / "index.html").read_text()
    kind = {".gif": "image/gif", ".mp4": "video/mp4"}[film.suffix]
    assert f"data:{kind};base64,{base64.b64encode(film.read_bytes()).decode()}" in page
    assert "img-src data:; media-src data:" in page and "default-src &#39;none&#39;" in page
    monkeypatch.setattr(films, "MAX_BYTES", 10)
    (section, problems) = films.films([SimpleNamespace(label="rgpo", runs=[SimpleNamespace(**RUN, folder=run.folder)])])
    assert section[0].data == "" and not problems
    film.write_bytes(b"<script>alert(1)</script>")
    assert report.main(words) == 1
    page = (tmp_path / "index.html").read_text()
    assert "is no film; its film is left out" in page and "media-src" not in page and "alert(1)" not in page
    film.unlink()


def test_mujoco_is_drawn_or_named(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs("hopper")
    code = evaluate.main([str(run.folder), "episodes=2", "video=true"])
    out, err = capsys.readouterr()
    if code == 0:
        frames = imageio.imread(Path(out.splitlines()[-1].strip()), index=None)
        assert len(frames) > 2 and frames.std() > 1
    else:
        assert code == 2 and "Hopper-v4 cannot be drawn here" in err and err.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("pygame") is not None, reason="pygame is installed")
def test_without_pygame_the_package_is_named(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(runs("cartpole").folder), "episodes=2", "video=true"]) == 2
    out, err = capsys.readouterr()
    assert err.count("gymnasium[classic-control]") == 1 and err.count("\n") == 1 and "stochastic" in out


def test_an_environment_that_draws_nothing(drawn: Callable[..., rgpo.Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = drawn("+task.env_kwargs.fails=true")
    capsys.readouterr()
    assert evaluate.main([str(run.folder), "episodes=2", "video=true"]) == 2
    assert (
        "Drawn-v0 cannot be drawn here (render() returned NoneType and no picture (height, width, 3)); leave video out"
        in capsys.readouterr().err
    )
    assert not (run.folder / "evaluation").exists()


def test_tiny_pictures_of_floats_are_a_film(drawn: Callable[..., rgpo.Run]) -> None:
    run = drawn("+task.env_kwargs.picture=tiny")
    assert evaluate.main([str(run.folder), "episodes=1", "video=true"]) == 0
    (film,) = (run.folder / "evaluation").glob("episode.*")
    frames = imageio.imread(film)
    assert frames.shape[-3:] == (16, 16, 3) and abs(int(frames.mean()) - 128) < 8


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        ("grows", "render() returned pictures of different sizes"),
        ("stops", "render() returned NoneType and no picture"),
        ("exits", "sys.exit(0)"),
    ],
)
def test_a_film_that_breaks_off(
    picture: str, why: str, drawn: Callable[..., rgpo.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = drawn(f"+task.env_kwargs.picture={picture}")
    capsys.readouterr()
    assert evaluate.main([str(run.folder), "episodes=1", "video=true"]) == 2
    assert f"Drawn-v0 cannot be drawn to its end ({why}" in capsys.readouterr().err


def test_a_film_needs_a_number_of_frames_per_second(drawn: Callable[..., rgpo.Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = drawn("+task.env_kwargs.picture=fast")
    capsys.readouterr()
    assert evaluate.main([str(run.folder), "episodes=1", "video=true"]) == 2
    assert "Drawn-v0 has render_fps=fast in its metadata; give it a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["MUJOCO_GL", "PYOPENGL_PLATFORM"])
def test_the_users_renderer_and_environment_stay(variable: str, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv(variable, raising=False)
    evaluate.main([str(runs("cartpole").folder), "episodes=1", "video=true"])
    assert variable not in os.environ
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert evaluation._renderers() == ("",)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "give exactly RUN"),
        (["a", "b"], "give exactly RUN"),
        (["RUN", "episodes=0"], "episodes=0: must be a whole number from 1 to 100,000"),
        (["RUN", "episodes=ten"], "episodes=ten: must be"),
        (["RUN", "episodes=1e3"], "must be a whole number"),
        (["RUN", "video=1"], "video=1: must be true or false"),
        (["RUN", "episode=3"], "Did you mean episodes"),
        (["RUN", "prompts=3"], "prompts=3: is read for language models only; leave it out"),
        (["nowhere"], "give the folder of a run"),
        (["no\nwhere"], "no\\nwhere"),
    ],
)
def test_refusals(given: list[str], why: str, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(runs("cartpole").folder)
    capsys.readouterr()
    assert evaluate.main([folder if word == "RUN" else word for word in given]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("rgpo-eval: ") and err.count("\n") == 1 and why in err and not out


def test_language_scores_and_completions(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = rgpo.run(*words(parts, "algo=grpo", "num_iterations=2", "task.lora.rank=2", f"results_dir={tmp_path}"))
    capsys.readouterr()
    assert evaluate.main([str(run.folder)]) == 0
    text = capsys.readouterr().out
    mean = run.metrics["reward/eval_proxy_mean"].iloc[-1]
    assert "on 8 held-out prompts" in text and f"{mean:+.3f} +- " in text  # the evaluation of the run itself
    table = pd.read_parquet(run.folder / "evaluation" / "completions.parquet")
    assert list(table) == list(schema.SAMPLES) and len(table) == 16
    mine = table[table.iteration == 2].reset_index(drop=True)
    assert mine.proxy.mean() == pytest.approx(mean, abs=1e-6)
    stored = run.samples[run.samples.iteration == 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine[: len(stored)], stored, check_dtype=False)
    assert evaluate.main([str(run.folder), "prompts=5"]) == 0
    assert len(pd.read_parquet(run.folder / "evaluation" / "completions.parquet")) == 10
    for given, why in (("prompts=1000", "there are only"), ("episodes=3", "is read for control tasks only")):
        capsys.readouterr()
        assert evaluate.main([str(run.folder), given]) == 2 and why in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["-h"]) == 0 and "rgpo-eval RUN" in capsys.readouterr().out
    assert set(CASES) >= {"cartpole", "hopper"}
