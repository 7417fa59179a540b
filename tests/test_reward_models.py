"""The reward models of the embedded scale against formulas, and the training of the neural one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from rgpo.language.rewards.reward_model import GoldRewardModel, pair_accuracy, text_features, tfidf, train_gold_reward_model
from rgpo.language.sources.embedded.training import batches, bradley_terry_loss, pad, reproducible


def test_the_gold_reward_model_is_ridge_regression_on_unit_tfidf_rows(tmp_path: Path) -> None:
    texts = ["a good film", "a bad film", "good good fun", "bad film !", "what a film"]
    rating = np.array([2.0, -2.0, 3.0, -1.0, 0.5])
    train_gold_reward_model(texts, rating, 0.7, tmp_path / "gold")
    gold = GoldRewardModel(tmp_path / "gold")
    vocabulary = sorted({f for text in texts for f in text_features(text) if sum(f in text_features(t) for t in texts) > 1})
    x = np.zeros((5, len(vocabulary)))
    for row, text in enumerate(texts):
        for column, feature in enumerate(vocabulary):
            if count := text_features(text)[feature]:
                x[row, column] = (1 + np.log(count)) * (1 + np.log(6 / (1 + sum(feature in text_features(t) for t in texts))))
        x[row] /= np.linalg.norm(x[row])
    weight = np.linalg.solve(x.T @ x + 0.7 * np.eye(len(vocabulary)), x.T @ (rating - rating.mean()))
    np.testing.assert_allclose(gold(texts), rating.mean() + x @ weight, atol=1e-5)
    np.testing.assert_allclose(gold(["zzz qqq"]), [rating.mean()])
    assert gold(["good"])[0] > gold(["bad"])[0] and gold([]).shape == (0,)
    assert tfidf([text_features("")], gold.index, gold.idf).toarray().tolist() == [[0.0] * len(vocabulary)]


def test_features_are_words_adjacent_pairs_and_substrings() -> None:
    assert text_features("Bad, bad") == {
        **{"bad": 2, ",": 1, "< bad": 1, "bad ,": 1, ", bad": 1, "bad >": 1},
        **{"#_ba": 2, "#bad": 2, "#ad_": 2, "#_bad": 2, "#bad_": 2, "#_bad_": 2, "#_,_": 1},
    }


def test_pair_accuracy_counts_pairs_and_half_of_the_ties() -> None:
    score, rating = np.array([3.0, 1.0, 1.0, 0.0]), np.array([1.0, 2.0, 0.0, 0.5])
    found = pair_accuracy(score, rating, 1.0, np.random.default_rng(0))
    assert (found["num_pairs"], found["accuracy"]) == (4, 2.5 / 4)  # 1 over 0 wrong, 1 over 2 tied, 1 over 3 and 0 over 2 right


def test_the_interval_of_a_pair_accuracy_covers_the_truth() -> None:
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[Any, Any]:
        rating = rng.normal(size=n)
        return rating + rng.normal(size=n), rating

    truth = np.mean([pair_accuracy(*draw(300), 0.5, rng)["accuracy"] for _ in range(50)])
    intervals = [pair_accuracy(*draw(100), 0.5, rng)["interval"] for _ in range(200)]
    assert 0.88 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.99


def test_bradley_terry_loss_is_the_mean_over_pairs() -> None:
    score, rating = [0.3, -1.0, 2.0, 0.1], [1.0, 0.0, 1.4, 3.0]
    terms = [
        -functional.logsigmoid(torch.tensor(score[i] - score[j])).item()
        for i in range(4)
        for j in range(4)
        if rating[i] - rating[j] >= 0.5
    ]
    assert len(terms) == 5
    assert bradley_terry_loss(torch.tensor(score), torch.tensor(rating), 0.5).item() == pytest.approx(np.mean(terms))
    alone = torch.zeros(1, requires_grad=True)
    bradley_terry_loss(alone, torch.zeros(1), 0.5).backward()
    assert alone.grad is not None and alone.grad.item() == 0


def test_an_epoch_sees_every_row_once_and_pads_on_the_right() -> None:
    rows = [[5] * (1 + i % 7) for i in range(50)]
    epoch = batches(rows, 4, np.random.default_rng(0))
    assert sorted(np.concatenate(epoch).tolist()) == list(range(50)) and max(map(len, epoch)) == 4
    assert pad([[7, 8, 1], [9, 1]]).tolist() == [[7, 8, 1], [9, 1, 0]]


def test_the_global_generator_and_the_threads_are_given_back() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with reproducible(0):
        first = torch.rand(2)
        assert torch.get_num_threads() == 1
    assert torch.equal(torch.rand(2), expected)
    with reproducible(0):
        assert torch.equal(torch.rand(2), first)
