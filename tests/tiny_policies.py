"""Twelve completions of four prompts, drawn by a policy of a tiny Qwen2, and the updates that learn from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gate_options import load_gate
from torch import Tensor
from update_parts import K3, setup, sgd

from rgpo.core.advantages import token_steps
from rgpo.language.policy.generation import Completions, Sampling
from rgpo.language.policy.language_model import LanguageModel
from rgpo.language.policy.stopping import StopRule
from rgpo.language.policy.token_batch import CompletionRollout, TokenBatch
from rgpo.learning.micro_batch_adam import MicroBatchAdam
from rgpo.learning.sgd import SGD

PROMPTS = [[5, 9, 30], [7], [11, 12, 13, 14, 15, 16], [40, 41]] * 3
SAMPLING = Sampling(
    temperature=0.8,
    max_new_tokens=6,
    stop=StopRule(frozenset([1])),
    pad_id=1,  # equal on purpose: masks tell them apart
    ratio="token",
    reduction="token_mean",
    micro_batch_size=4,
    num_kl_tokens=10_000,
)


def roll(policy: LanguageModel, num_minibatches: int = 2, seed: int = 0) -> CompletionRollout:
    """Twelve completions of the policy with random rewards."""
    completions = policy.generate(PROMPTS, torch.Generator().manual_seed(seed))
    rng = np.random.default_rng(seed)
    old = policy.compute_old_logprobs(completions, num_minibatches, rng)
    mask = completions.completion_mask_BT.numpy()
    steps = token_steps(rng.standard_normal(mask.shape) * mask, np.zeros(mask.shape), mask, np.zeros(12, bool))
    correction = torch.ones_like(old.logp_old_N)
    return CompletionRollout(**steps, metrics={}, group_size=2, completions=completions, old=old, correction_N=correction)


def batch_of(policy: LanguageModel, **change: Any) -> TokenBatch:
    rollout = roll(policy, **change)
    return policy.make_batch(rollout, rollout.reward, rollout.reward * 0.5)


def make_sgd(policy: LanguageModel, *, normalize: str = "none", seed: int = 0, **change: Any) -> SGD:
    """SGD for the policy with the sign-aware gate and every term of the loss, k3 among them."""
    knobs: dict[str, Any] = {"num_epochs": 1, "num_minibatches": 2, "anneal_lr": False, "adam_eps": 1e-8, "max_grad_norm": None}
    update = sgd(**knobs | {"vf_coef": 0.1, "ent_coef": 0.01, "value_clip": 0.2} | change)
    setup(update, policy, load_gate("sign_aware_sigmoid"), divergence=K3, normalize=normalize, seed=seed)
    return update


def engine(update: SGD) -> MicroBatchAdam:
    """The optimizer of an update that was set up for a language model."""
    assert isinstance(update.optimizer, MicroBatchAdam)
    return update.optimizer


def nudge(policy: LanguageModel, scale: float = 0.05, seed: int = 3) -> None:
    """Move every parameter by Gaussian noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p += scale * torch.randn(p.shape, generator=generator)


def plain_logp(model: Any, completions: Completions, row: int) -> Tensor:
    """(t, V) log-probabilities that predict the row's completion, without padding and with the model's own logits."""
    live = completions.attention_mask_BS[row].bool()
    ids = completions.sequence_BS[row][live][None]
    length = int(completions.completion_mask_BT[row].sum())
    return torch.log_softmax(model(input_ids=ids).logits[0, -length - 1 : -1] / SAMPLING.temperature, -1)
