"""What a policy of a tiny Qwen2 samples and learns from: twelve completions of four prompts."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from rgpo.core import gates
from rgpo.core.language_advantages import token_steps
from rgpo.core.surrogate import Detached, surrogate
from rgpo.language.policy.language_model import LanguageModel, Sampling
from rgpo.language.policy.token_batch import CompletionRollout, TokenBatch
from rgpo.learning.types import AdamSettings, CriticSettings

PROMPTS = [[5, 9, 30], [7], [11, 12, 13, 14, 15, 16], [40, 41]] * 3
SAMPLING = Sampling(
    temperature=0.8,
    max_new_tokens=6,
    eos_id=1,
    pad_id=1,  # equal on purpose: masks tell them apart
    ratio="token",
    reduction="token_mean",
    micro_batch_size=4,
    num_kl_tokens=10_000,
)


def roll(policy: LanguageModel, num_minibatches: int = 2, seed: int = 0) -> CompletionRollout:
    """Twelve completions with random rewards and values of the policy."""
    policy.num_minibatches = num_minibatches
    completions = policy.generate(PROMPTS, torch.Generator().manual_seed(seed))
    rng = np.random.default_rng(seed)
    back = policy.look_back(completions, rng)
    mask = completions.completion_mask_BT.numpy()
    steps: dict[str, Any] = token_steps(rng.standard_normal(mask.shape) * mask, np.zeros(mask.shape), mask, np.zeros(12, bool))
    nothing = np.empty(0)
    shared = {"observation": nothing, "action": nothing, "metrics": {}, "group_size": 2}
    return CompletionRollout(**shared, **steps, completions=completions, correction_N=torch.ones_like(back["value_N"]), **back)


def batch_of(policy: LanguageModel, **change: Any) -> TokenBatch:
    rollout = roll(policy, **change)
    return policy.make_batch(rollout, rollout.reward, rollout.reward * 0.5)[0]


def objective(gate: Any) -> Any:
    return partial(surrogate, gate=gate, ref_gate=gates.Open(), dual=Detached())


def settings(**change: Any) -> AdamSettings:
    base: dict[str, Any] = {"objective": objective(gates.SigmoidSigned()), "penalised": True, "normalize": False}
    base |= {"num_minibatches": 2, "num_steps": 1, "max_grad_norm": None, "adam_eps": 1e-8, "vf_coef": 0.1}
    return AdamSettings(**(base | {"ent_coef": 0.01, "value_clip": 0.2, "compile": "auto", "seed": 0} | change))


def nudge(policy: LanguageModel, scale: float = 0.05, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.with_critic():
            p += scale * torch.randn(p.shape, generator=generator)


def critic_settings() -> CriticSettings:
    return CriticSettings(num_minibatches=2, num_steps=1, compile=False, seed=0)
