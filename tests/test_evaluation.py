"""Evaluation on held-out prompts: metrics against their formulas, rows of samples.parquet, and resuming."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_assets

from rgpo.errors import NonFiniteError
from rgpo.language.evaluation import Evaluator, decode_completions, score_completions, standard_error
from rgpo.language.policy.generation import Completions, make_completions
from rgpo.language.policy.stopping import StopRule

PROMPTS = [[2, 3], [4], [5, 6, 7], [8]]
GOLD = [0.5, -1.0, 2.0]


class Letters:
    """A tokenizer of one letter per id; 1 is eos."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return ["".join(chr(96 + i) for i in row if i != 1) for row in rows]


NO_STOP = StopRule(frozenset())


class Policy:
    """Draws 1 to 4 tokens from the generator's numbers; the reference ends one token earlier."""

    sampling = SimpleNamespace(stop=NO_STOP)

    def generate(self, prompts: list[list[int]], generator: torch.Generator, reference: bool = False) -> Completions:
        lengths = torch.randint(2, 5, (len(prompts),), generator=generator).tolist()
        rows = [([20] * (length - reference), [0.0] * (length - reference), length > 2) for length in lengths]
        return make_completions(prompts, rows, 0, torch.device("cpu"))

    def completion_kl(self, completions: Completions) -> Any:
        return completions.completion_mask_BT.sum(-1).double().numpy() / 2


def make_evaluator(gold: bool = True, num_samples: int = 2, **changes: Any) -> Evaluator:
    if gold:
        changes["gold_reward_model"] = lambda prompts, texts: np.array(GOLD)
    assets = make_assets(SimpleNamespace(device="cpu"), Letters(), PROMPTS, **changes)
    return Evaluator(assets, 3, num_samples, seed=7)


def test_metrics_are_means_with_standard_errors_and_paired_changes() -> None:
    """Policy and reference draw the same numbers here, so each completion is exactly one token longer than the reference's."""
    evaluator = make_evaluator()
    lengths = torch.randint(2, 5, (3,), generator=torch.Generator().manual_seed(7)).double().numpy()
    for _ in range(2):  # every evaluation draws the same numbers
        found = evaluator.evaluate(Policy())
        wanted = {
            "reward/eval_proxy_mean": lengths.mean(),
            "reward/eval_proxy_se": lengths.std(ddof=1) / math.sqrt(3),
            "reward/eval_proxy_change": 1.0,
            "reward/eval_proxy_change_se": 0.0,
            "reward/eval_gold_mean": 0.5,
            "reward/eval_gold_se": np.std(GOLD, ddof=1) / math.sqrt(3),
            "reward/eval_gold_change": 0.0,
            "reward/eval_gold_change_se": 0.0,
            "kl/eval_ref_sequence": lengths.mean() / 2,
            "kl/eval_ref_sequence_se": lengths.std(ddof=1) / math.sqrt(3) / 2,
        }
        assert found == pytest.approx(wanted) and list(found) == list(wanted)


def test_rows_are_kept_of_the_first_samples_and_taken_once() -> None:
    evaluator = make_evaluator()
    evaluator.evaluate(Policy())
    rows = evaluator.take_samples()
    assert [(row["reference"], row["prompt_id"]) for row in rows] == [(True, 0), (True, 1), (False, 0), (False, 1)]
    first = rows[2]
    assert first["prompt"] == "prompt 0" and first["completion"] == "t" * first["length"]
    assert (first["proxy"], first["gold"], first["kl_ref"]) == (first["length"], 0.5, first["length"] / 2)
    assert first["finished"] == (first["length"] > 2) and rows[0]["kl_ref"] == 0
    assert evaluator.take_samples() == []
    evaluator.evaluate(Policy())
    assert [row["reference"] for row in evaluator.take_samples()] == [False, False]  # the reference is sampled once


def test_without_a_gold_reward_model_its_metrics_are_absent_and_its_column_is_nan() -> None:
    evaluator = make_evaluator(gold=False)
    assert not any("gold" in key for key in evaluator.evaluate(Policy()))
    assert all(math.isnan(row["gold"]) for row in evaluator.take_samples())


def test_the_summary_compares_before_and_after() -> None:
    evaluator = make_evaluator()
    assert evaluator.summary({}) == []
    lines = evaluator.summary(evaluator.evaluate(Policy()))
    assert lines[0].startswith("reward model on 3 held-out prompts: ") and "change +1.000 +- 0.000 (95 %)" in lines[0]
    assert lines[1].startswith("gold reward model on 3 held-out prompts: +0.500 before, +0.500 +- ")
    assert "nats per completion" in lines[2] and lines[3] == "'prompt 0'" and len(lines) == 3 + 2 * 3
    assert "before (reward " in lines[4] and "after  (reward " in lines[5]


def test_a_restored_evaluator_compares_with_the_same_reference() -> None:
    evaluator, restored = make_evaluator(), make_evaluator()
    metrics = evaluator.evaluate(Policy())
    restored.load_state_dict(evaluator.state_dict())
    restored.reference_scores["proxy"] = restored.reference_scores["proxy"] - 1  # it is read, not measured again
    changed = restored.evaluate(Policy())
    assert changed["reward/eval_proxy_change"] == metrics["reward/eval_proxy_change"] + 1
    assert all(not row["reference"] for row in restored.take_samples())
    assert restored.summary(metrics) == evaluator.summary(metrics)


def test_a_reward_of_nan_is_a_non_finite_error() -> None:
    prompts = make_evaluator().prompts

    def reward_model(prompts: Any, texts: Any) -> Any:
        return np.array([0.0, math.nan, 1.0])

    with pytest.raises(NonFiniteError, match=r"reward: the reward model gives nan for the text that ends in 'b'"):
        score_completions(reward_model, prompts, ["a", "b", "c"])


def test_texts_leave_out_padding_and_special_tokens() -> None:
    completions = make_completions([[2, 3], [4]], [([5, 6, 1], [0.0] * 3, True), ([7], [0.0], False)], 0, torch.device("cpu"))
    assert decode_completions(completions, Letters(), NO_STOP) == ["ef", "g"]
    assert math.isnan(standard_error(np.ones(1)))
