"""Seeded odd configurations: each is refused in one sentence with its key, or makes sense by a judgment independent of ours."""

from __future__ import annotations

import os

import pytest
from odd_configs import cases, every_case, judge, nonsense, wrong_sentence

from rgpo.cli.config import compose_jobs
from rgpo.cli.overrides import hydra_on

NUM_RANDOM = int(os.environ.get("RGPO_ODD_CONFIGS", "250"))  # tests.campaign draws more


def test_odd_configurations_are_refused_in_a_sentence_or_make_sense() -> None:
    lines = [*list(every_case())[::4], *cases(seed=0, n=NUM_RANDOM)]
    with hydra_on(None) as composer:
        outcomes = [(words, judge(words, composer)) for words in lines]
    assert [(words, outcome) for words, outcome in outcomes if outcome not in ("refused", "accepted")] == []
    accepted = sum(outcome == "accepted" for _, outcome in outcomes)
    assert 10 < accepted < len(outcomes) / 2, accepted  # odd as they are, some of them are valid


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_iterations", 10**20), ("update", {"lr": 1e300}), ("gate", {"sharpness": 1e-300}), ("exports", 7)],
)
def test_the_judgment_finds_nonsense(key: str, value: object) -> None:
    config = compose_jobs([], False, None)[0].config
    assert nonsense(config) == []
    old = config[key]
    assert nonsense(config | {key: old | value if isinstance(old, dict) and isinstance(value, dict) else value})


@pytest.mark.parametrize(
    "sentence", ["update.lr=1: bad\nworse.", "update.lr=\x1b: bad.", "update.lr=1: bad", "It is bad.", f"update.lr={'1' * 3000}."]
)
def test_the_judgment_finds_bad_sentences(sentence: str) -> None:
    assert wrong_sentence(sentence, ["update.lr=1"])
    assert wrong_sentence("update.lr=1: must be smaller.", ["update.lr=1"]) == ""
