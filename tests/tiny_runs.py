"""Runs of any packaged algorithm on a tiny Qwen2 in memory: no files, no processes, a reward given as a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tiny_models import make_assets

from rgpo.cli.build import build
from rgpo.cli.config import compose_jobs
from rgpo.core.rollout import Array
from rgpo.language.policy.generation import make_completions
from rgpo.language.policy.pretrained import load_causal_lm
from rgpo.language.task import Language
from rgpo.learning.types import Algorithm, Metrics, Policy, State
from rgpo.paths import conf_dir

PROMPTS = [[5, 9, 30], [7], [11, 12, 13, 14, 15, 16], [40, 41]]
PAIRS = [(0, [20, 21, 1], [22, 1]), (1, [23, 1], [24, 25, 1]), (2, [1], [26, 1]), (3, [27, 1], [1])]
SIZES = ("num_prompts=4", "group_size=2", "max_new_tokens=6", "num_eval_prompts=4", "num_samples=2")
RUN = ("task=qwen_rlhf", "num_iterations=8", "eval_every=2")
OWN_ALGORITHMS = sorted({file.stem for file in (conf_dir() / "algo").glob("*.yaml")} - {"a2c", "dpo"})  # control, pairs
Reward = Callable[[Sequence[str]], Array]


class Letters:
    """A tokenizer that writes each id as a character, and eos as nothing."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return ["".join(chr(97 + i) for i in row if i != 1) for row in rows]


class Given:
    """A sampler that returns the same rows of token ids, in place of samples."""

    correction_cap, on_policy = None, True

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def check(self, group_size: int) -> None: ...

    def prompts(self, assets: Any, max_new_tokens: int) -> Any:
        return assets.train_prompts

    def collect(self, policy: Any, assets: Any, indices: Sequence[int], group_size: int, generator: torch.Generator) -> Any:
        prompts = [assets.train_prompts[i].ids for i in indices for _ in range(group_size)]
        rows = [(ids, [0.0] * len(ids), ids[-1:] == [1]) for ids in self.rows]
        return make_completions(prompts, rows, 0, torch.device("cpu"))


@cache
def configuration(*words: str) -> dict[str, Any]:
    return compose_jobs(list(words), False, None)[0].config


def sum_of_codes(texts: Sequence[str]) -> Array:
    """A reward that differs between almost all completions."""
    return np.array([sum(map(ord, text)) % 97 / 10 for text in texts])


class TinyRun:
    """A task and an algorithm of the given words, ready for their first iteration; rows: completions in place of samples."""

    def __init__(
        self, checkpoint: Path, algo: str, *words: str, reward: Reward = sum_of_codes, rows: list[list[int]] | None = None
    ) -> None:
        given = {word.partition("=")[0] for word in words}
        sizes = [f"task.{size}" for size in SIZES if f"task.{size.partition('=')[0]}" not in given]
        run = [word for word in RUN if word.partition("=")[0] not in given]
        task, self.algorithm = build(configuration(*run, f"algo={algo}", *sizes, *words))
        assert isinstance(task, Language)
        model, _ = load_causal_lm(checkpoint, dtype="float32", device="cpu", attn_implementation="sdpa")
        assets = make_assets(model, Letters(), PROMPTS, PAIRS, reward_model=lambda prompts, texts: reward(texts))
        task.source = SimpleNamespace(check=lambda: None, load=lambda log: assets)
        task.sampler = task.sampler if rows is None else Given(rows)
        self.task: Language = task
        task.validate(self.algorithm.requirements)
        task.setup(1, self.algorithm.requirements)
        self.policy: Policy = task.make_policy(2)
        self.algorithm: Algorithm
        self.algorithm.setup(self.policy, 8, 3)

    def iterate(self, measure_variance: bool = False) -> Metrics:
        """One iteration's metrics."""
        rollout = self.task.collect(self.policy)
        return dict(rollout.metrics) | self.algorithm.learn(self.policy, rollout, measure_variance)

    def state(self) -> dict[str, State]:
        """The states of the three parts, as in a checkpoint."""
        return {name: getattr(self, name).state_dict() for name in ("task", "policy", "algorithm")}

    def restore(self, state: dict[str, State]) -> None:
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)
