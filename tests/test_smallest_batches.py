"""One token, one completion, one prompt, no token at all: every algorithm on the smallest rollouts there are."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policies import plain_logp
from tiny_runs import OWN_ALGORITHMS, TinyRun

from rgpo.core.advantages import GAE, generalized_advantage, token_steps
from rgpo.core.rollout import Rollout
from rgpo.errors import ConfigError
from rgpo.language.policy.generation import make_completions
from rgpo.language.policy.token_batch import to_tokens
from rgpo.learning.loss import standardize

GROUPS = {
    "grpo",
    "rloo",
    "dapo",
    "gspo",
    "sapo",
    "cispo",
    "spo",
    "p3o",
    "dppo",
    "dr_grpo",
    "dro",
    "gmpo",
    "gspo_token",
    "luspo",
    "vespo",
}
ONE = ("task.num_prompts=1", "task.num_eval_prompts=1", "task.num_samples=1", "task.micro_batch_size=1")
CASES: dict[str, Any] = {
    "one token each": {"words": ("task.max_new_tokens=1",)},
    "the end at once": {"rows": [[1]] * 8},
    "one prompt": {"words": ONE},
    "one completion": {"words": (*ONE, "task.group_size=1")},
    "one token in all": {"words": (*ONE, "task.group_size=1", "task.max_new_tokens=1")},
    "an empty one": {"rows": [[9, 1], [], [1], [9, 8, 7, 6, 5, 4], [], [9, 1], [1], [1]]},
}


def words_of(algo: str, case: dict[str, Any]) -> list[str]:
    """The case's words, with minibatches that divide its completions and groups where the algorithm compares them."""
    words = list(case.get("words", ()))
    alone = "task.group_size=1" in words
    if alone and algo in GROUPS:
        words[words.index("task.group_size=1")] = "task.group_size=2"
    if alone and algo != "reinforce":
        words.append("update.critic_minibatches=1" if algo == "trpo" else "update.num_minibatches=1")
    return words


def saved_and_loaded(run: TinyRun) -> dict[str, Any]:
    """The run's state through a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(run.state(), buffer)
    buffer.seek(0)
    return dict(torch.load(buffer, weights_only=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algo", OWN_ALGORITHMS)
def test_every_algorithm_learns_and_evaluates(algo: str, case: str, tiny_checkpoint: Path) -> None:
    run = TinyRun(tiny_checkpoint, algo, *words_of(algo, CASES[case]), rows=CASES[case].get("rows"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = run.iterate(measure_variance=True)
        assert np.isfinite([metrics["loss/policy"], metrics["grad/norm_max"]]).all()
        assert all(torch.isfinite(p).all() for p in run.policy.parameters())
        assert set(run.task.evaluate(run.policy)) > {"reward/eval_proxy_mean", "kl/eval_ref_sequence"}
    assert len(list(run.task.take_samples())) == 2 * run.task.num_samples


@pytest.mark.parametrize("algo", ["rgpo", "trpo", "grpo"])
@pytest.mark.parametrize("stale", ["0", "1"])
def test_a_run_of_single_tokens_resumes(algo: str, stale: str, tiny_checkpoint: Path) -> None:
    words = ("task.max_new_tokens=1", f"task.staleness={stale}")
    run, other = (TinyRun(tiny_checkpoint, algo, *words) for _ in range(2))
    run.iterate()
    other.restore(saved_and_loaded(run))
    assert other.iterate()["loss/policy"] == run.iterate()["loss/policy"]


@pytest.mark.parametrize("packed", [True, False])
def test_log_probabilities_beside_an_empty_completion(make_language_model: Any, packed: bool) -> None:
    policy = make_language_model()
    policy._packed = packed
    answers = [[], [9], [9, 8, 7], [], [6, 1], [1]]
    rows = [(ids, [0.0] * len(ids), False) for ids in answers]
    completions = make_completions([[5, 9, 30]] * 4 + [[7]] * 2, rows, 0, torch.device("cpu"))
    found = policy.compute_old_logprobs(completions, 1, np.random.default_rng(0)).logp_old_N
    tables = [plain_logp(policy.model, completions, row) for row in range(6) if answers[row]]
    expected = [
        table.gather(1, torch.tensor(ids)[:, None])[:, 0] for table, ids in zip(tables, filter(None, answers), strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_dpo_on_answers_that_end_at_once(tiny_checkpoint: Path) -> None:
    run = TinyRun(tiny_checkpoint, "dpo", "task.max_new_tokens=1", "task.num_eval_prompts=1", "task.num_samples=1")
    assert np.isfinite(run.iterate(measure_variance=True)["dpo/loss"])
    one = TinyRun(tiny_checkpoint, "dpo", "task.num_prompts=1", "task.num_eval_prompts=1", "task.num_samples=1")
    assert np.isfinite(one.iterate(measure_variance=True)["dpo/loss"])


@pytest.mark.parametrize(("num_steps", "num_envs"), [(1, 1), (1, 5), (5, 1)])
def test_advantages_cross_to_tensors_at_every_shape(num_steps: int, num_envs: int) -> None:
    """torch takes no array with negative strides, and numpy keeps them on axes of length 1."""
    rng = np.random.default_rng(0)
    reward, value = rng.standard_normal((2, num_envs, num_steps))
    mask = np.ones((num_envs, num_steps), int)
    steps = token_steps(reward, value, mask, np.zeros(num_envs, bool))
    estimate = GAE(gamma=0.9, lam=0.5, bootstrap_truncated=True, normalize="none")
    completions = make_completions(
        [[2]] * num_envs, [([3] * num_steps, [0.0] * num_steps, True)] * num_envs, 0, torch.device("cpu")
    )
    advantage, target = estimate(Rollout(metrics={}, **steps))
    for x in (advantage, target, reward.T[::-1, ::-1][::-1, ::-1], np.broadcast_to(1.0, (num_steps, num_envs))):
        np.testing.assert_array_equal(to_tokens(x, completions), np.ravel(x.T).astype(np.float32))
    assert generalized_advantage(*steps_of(steps), gamma=0.9, lam=0.5).strides[0] > 0


def steps_of(steps: dict[str, Any]) -> list[Any]:
    return [steps[name] for name in ("reward", "value", "next_value", "terminated", "done")]


def test_a_single_sample_has_no_spread_to_divide_by() -> None:
    assert standardize(torch.tensor([3.0])).tolist() == [0.0]
    assert standardize(torch.tensor([3.0, 5.0])).tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_a_sampler_that_returns_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^task\.sampler=2 completions: no completion has a token"):
        make_completions([[2], [3]], [([], [], False)] * 2, 0, torch.device("cpu"))
