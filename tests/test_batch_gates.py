"""Bounds of a batch in the learner: whole minibatches, however they are cut, and trust regions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gate_options import load_gate
from tiny_policies import batch_of, nudge
from update_parts import natural_gradient, setup, sgd

from rgpo.language.policy.language_model import LanguageModel


@pytest.mark.parametrize("name", ["m2po", "kl_cov"])
def test_bounds_are_those_of_the_minibatch_not_of_a_forward_pass(
    name: str, make_language_model: Callable[..., LanguageModel]
) -> None:
    found = []
    for size in (3, 12):
        policy = make_language_model(micro_batch_size=size)
        batch = batch_of(policy, num_minibatches=1)
        nudge(policy)
        before = torch.cat([p.detach().flatten() for p in policy.parameters()])
        update = sgd(num_epochs=1, num_minibatches=1, lr=1e-3, anneal_lr=False, adam_eps=1.0, vf_coef=0.1)
        setup(
            update,
            policy,
            load_gate(name, **({"second_moment": 1e-3} if name == "m2po" else {"fraction": 0.2})),
            normalize="none",
        )
        update(policy, batch, 0.0)
        found.append(torch.cat([p.detach().flatten() for p in policy.parameters()]) - before)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-7)
    assert found[0].abs().max() > 1e-6


def test_a_natural_gradient_step_keeps_the_bounds_of_its_start(make_language_model: Callable[..., LanguageModel]) -> None:
    policy = make_language_model(micro_batch_size=3)
    batch = batch_of(policy, num_minibatches=1)
    nudge(policy, scale=0.01)
    update = natural_gradient(critic_epochs=1, critic_minibatches=1)
    setup(update, policy, load_gate("m2po"), normalize="none")
    metrics, _ = update(policy, batch, 0.0)
    assert metrics["grad/norm_mean"] > 0
