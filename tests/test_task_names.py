"""An environment, a scale and its data are part of a task, and nothing is compared across tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import report_fixtures as fixtures

from rgpo.report.cli import main
from rgpo.runtime.task_name import declared_options, folder_name, task_name

HOPPER = {"choices.task": "hopper", "task.env_id": "Hopper", "task.version": "v4", "task.env_kwargs": {}}
GYM = {"choices.task": "gym", "task.env_id": "CartPole-v1", "task.version": None}
ATARI = {"choices.task": "atari"} | declared_options("task", "atari")
PAPER = {"task.source.model": "Qwen/Qwen2.5-1.5B-Instruct", "task.source.data": "Anthropic/hh-rlhf/helpful-base"}
HUB = {"choices.task": "qwen_rlhf"} | PAPER


@pytest.mark.parametrize(
    ("config", "scale", "name"),
    [
        (HOPPER, "none", "hopper"),
        (HOPPER | {"task.version": "v5"}, "none", "hopper (v5)"),
        (HOPPER | {"task.env_id": "Walker2d"}, "none", "hopper (Walker2d-v4)"),
        (HOPPER | {"task.env_kwargs.healthy_reward": 2.0}, "none", "hopper (healthy_reward=2.0)"),
        (GYM, "none", "gym (CartPole-v1)"),
        (GYM | {"task.wrappers": []}, "none", "gym (CartPole-v1)"),
        (GYM | {"task.wrappers": [{"_target_": "a.TimeLimit", "steps": 9}]}, "none", "gym (CartPole-v1, TimeLimit(steps=9))"),
        (ATARI, "none", "atari"),
        (ATARI | {"task.wrappers": []}, "none", "atari (no wrappers)"),
        ({"choices.task": "cartpole", "task.env_id": "CartPole-v1", "task.version": None}, "none", "cartpole"),
        ({"choices.task": "mine", "task.env_id": "Mine", "task.version": "v0"}, "none", "mine (Mine-v0)"),
        ({"choices.task": "../secret"}, "none", "../secret"),
        ({"choices.task": "qwen_rlhf"}, "embedded", "qwen_rlhf (embedded)"),
        (HUB, "paper", "qwen_rlhf (paper)"),
        (HUB | {"task.source.model": "other/model"}, "paper", "qwen_rlhf (paper, other/model)"),
    ],
)  # fmt: skip
def test_names(config: dict[str, object], scale: str, name: str) -> None:
    assert task_name(config, scale) == name


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (HOPPER, "hopper-ppo-s3-0f5394b8"),
        (HOPPER | {"task.version": "v5"}, "hopper-v5-ppo-s3-0f5394b8"),
        (GYM, "gym-CartPole-v1-ppo-s3-0f5394b8"),
        (GYM | {"task.env_id": "my_module:Mine-v0"}, "gym-Mine-v0-ppo-s3-0f5394b8"),
        (GYM | {"task.env_id": "ALE/Pong-v5"}, "gym-ALE_Pong-v5-ppo-s3-0f5394b8"),
        (GYM | {"task.env_id": "../../etc/x y"}, "gym-etc_x_y-ppo-s3-0f5394b8"),
        (GYM | {"task.env_id": 200 * "x"}, f"gym-{40 * 'x'}-ppo-s3-0f5394b8"),
        ({"choices.task": "qwen_rlhf"}, "qwen_rlhf-ppo-s3-0f5394b8"),
        ({"choices.task": "qwen_rlhf", "choices.scale": "embedded"}, "qwen_rlhf-ppo-s3-0f5394b8"),
        ({"choices.task": "qwen_rlhf", "choices.scale": "smollm2"}, "qwen_rlhf-smollm2-ppo-s3-0f5394b8"),
        (
            {"choices.task": "qwen_rlhf", "choices.scale": "paper", "task.source.model": "me/mine"},
            "qwen_rlhf-paper_me_mine-ppo-s3-0f5394b8",
        ),
        (HOPPER | {"task.env_kwargs.healthy_reward": 2}, "hopper-healthy_reward_2-ppo-s3-0f5394b8"),
        (HOPPER | {"task.wrappers": [{"_target_": "a.b.Flip", "n": 2}]}, "hopper-Flip_n_2-ppo-s3-0f5394b8"),
    ],
)
def test_a_run_folder_is_named_after_its_environment_and_data(config: dict[str, object], name: str) -> None:
    assert folder_name(config | {"choices.algo": "ppo"}, 3, "0f5394b8") == name


def test_two_environments_are_two_tasks_with_a_baseline_each(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for env_id in ("CartPole-v1", "Acrobot-v1"):
        monkeypatch.setitem(fixtures.ENVIRONMENTS, "gym", {"env_id": env_id})
        for algo in ("ppo", "rgpo"):
            for seed in (1, 2, 3):
                metrics = fixtures.metrics_of("hopper", algo, seed, 20)
                fixtures.write_run(here / "results", "gym", algo, seed, 20, metrics=metrics)
    assert main(["figures=[]", "num_resamples=100", "baseline=ppo"]) == 0
    rows = fixtures.read_csv(here / "report/first_evidence/tables/comparisons.csv")
    assert {(row["task"], row["label"], row["baseline"]) for row in rows} == {
        ("gym (CartPole-v1)", "rgpo", "ppo"),
        ("gym (Acrobot-v1)", "rgpo", "ppo"),
    }
    (ppo, rgpo) = fixtures.read_csv(here / "report/first_evidence/tables/overall.csv")
    assert ppo["tasks"] == rgpo["tasks"] == "2"
