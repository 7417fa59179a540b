"""Iterations from whose rewards nothing can be learned: equal scores within every prompt, or no advantage at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import TinyRun, sum_of_codes

from rgpo.core.rollout import Array
from rgpo.runtime.runner import is_informative


def constant(texts: Sequence[str]) -> Array:
    return np.full(len(texts), 7.0)


@pytest.mark.parametrize("algo", ["grpo", "rgpo", "ppo", "rloo"])
def test_a_constant_reward_is_not_informative(algo: str, tiny_checkpoint: Path) -> None:
    for reward, expected in ((constant, False), (sum_of_codes, True)):
        run = TinyRun(tiny_checkpoint, algo, reward=reward)
        assert [is_informative(run.iterate()) for _ in range(2)] == [expected] * 2


def test_rewards_that_differ_between_prompts_alone_are_not_informative(tiny_checkpoint: Path) -> None:
    """The critic's advantages are not 0, and the ratio moves; still no completion is better than another of its prompt."""
    run = TinyRun(tiny_checkpoint, "rgpo", reward=lambda texts: np.repeat([1.0, 2.0, 3.0, 4.0], 2))
    metrics = run.iterate()
    assert metrics["ratio/abs_log_max"] > 0 and not is_informative(metrics)


def test_single_completions_are_compared_over_the_batch(tiny_checkpoint: Path) -> None:
    for reward, expected in ((constant, False), (sum_of_codes, True)):
        run = TinyRun(tiny_checkpoint, "rgpo", "task.group_size=1", reward=reward)
        assert is_informative(run.iterate()) is expected


def test_algorithms_without_advantages_learn_from_something_else(tiny_checkpoint: Path) -> None:
    metrics = TinyRun(tiny_checkpoint, "dpo", reward=constant).iterate()
    assert metrics["language/zero_variance_group_share"] == 1 and is_informative(metrics)
    assert is_informative({"mine/loss": 1.0})
