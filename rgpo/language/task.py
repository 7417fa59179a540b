"""Language: completions of prompts under a causal language model, scored by a reward model (online preference fine-tuning).

The learner maximises the proxy's score; a gold judge, where there is one, is only asked by rgpo.language.evaluation.
Names: B completions, T tokens; rgpo.language.policy.token_batch.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rgpo import distributed
from rgpo.core.language_advantages import dead_groups, token_rewards, token_steps
from rgpo.core.rollout import Array
from rgpo.errors import require
from rgpo.language.assets import Materials, Source
from rgpo.language.evaluation import HeldOut, judged, texts_of
from rgpo.language.policy.samplers import Sampler

if TYPE_CHECKING:
    from rgpo.language.policy.generation import Completions
    from rgpo.language.policy.token_batch import CompletionRollout
    from rgpo.learning.algorithm import Algorithm

PARALLEL = ("ddp", "fsdp")
RATIOS, REDUCTIONS = ("token", "sequence"), ("token_mean", "sequence_mean")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters in place of full fine-tuning (Hu et al. 2021)."""

    rank: int = 16
    alpha: float = 32.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        require(self.rank > 0, "task.lora.rank", self.rank, "must be positive.")
        require(self.alpha > 0, "task.lora.alpha", self.alpha, "must be positive.")


@dataclass(kw_only=True)
class Language:
    """num_prompts prompts with group_size completions each make a rollout; setup() loads the source."""

    source: Source
    sampler: Sampler
    lora: LoRA | None
    num_prompts: int
    group_size: int
    max_new_tokens: int
    temperature: float
    ratio: str
    reduction: str
    micro_batch_size: int
    parallel: str
    num_kl_tokens: int
    staleness: int
    gradient_checkpointing: bool
    num_eval_prompts: int
    num_samples: int

    def __post_init__(self) -> None:
        for key in ("num_prompts", "group_size", "max_new_tokens", "micro_batch_size", "num_kl_tokens", "num_eval_prompts"):
            require(getattr(self, key) > 0, f"task.{key}", getattr(self, key), "must be positive.")
        require(self.temperature > 0, "task.temperature", self.temperature, "must be positive.")
        require(self.ratio in RATIOS, "task.ratio", self.ratio, "choose token or sequence.")
        require(self.reduction in REDUCTIONS, "task.reduction", self.reduction, "choose token_mean or sequence_mean.")
        require(self.parallel in PARALLEL, "task.parallel", self.parallel, "choose ddp or fsdp.")
        for key in ("staleness", "num_samples"):
            require(getattr(self, key) >= 0, f"task.{key}", getattr(self, key), "must not be negative.")

    memory_advice: ClassVar[str] = "lower task.micro_batch_size or task.num_kl_tokens, or set task.gradient_checkpointing=true"

    @property
    def batch_size(self) -> int:
        """Completions of one rollout, B."""
        return self.num_prompts * self.group_size

    def check(self) -> None:
        """Refuse, before anything starts, what the source can see is missing, and processes that would have nothing to do."""
        for key in ("num_prompts", "num_eval_prompts"):
            value, size = getattr(self, key), distributed.world_size()
            require(value >= size, f"task.{key}", value, f"leaves some of {size} processes without a prompt, start fewer.")
        self.source.check()
        self.sampler.check()

    def admit(self, algorithm: Algorithm) -> Algorithm:
        """The algorithm as it runs on this task. ConfigError for what cannot work."""
        if algorithm.advantage.needs_groups:
            require(self.group_size > 1, "task.group_size", self.group_size, "a group needs at least 2 completions to compare.")
        algorithm.update.check(self.batch_size, algorithm.advantage.normalize)
        natural = self.parallel == "fsdp" and algorithm.update.trust_region
        require(not natural, "task.parallel", self.parallel, "natural_gradient needs whole parameters in each process, use ddp.")
        self.critic = algorithm.advantage.needs_critic
        self.reward_kl_coef = algorithm.penalty.reward_kl_coef
        return algorithm

    def plan_iterations(self, total_env_steps: int) -> int:
        """Iterations that generate total_env_steps tokens if every completion were as long as it may be."""
        return -(-total_env_steps // (self.batch_size * self.max_new_tokens))

    def setup(self, seed: int, gamma: float) -> None:
        """Load model, prompts and judges, and seed the draws; gamma belongs to the advantages alone."""
        import torch

        self.materials: Materials = self.source.load(lambda line: print(f"  {line}", flush=True))
        for key, have in (("num_prompts", self.materials.train_prompts), ("num_eval_prompts", self.materials.heldout_prompts)):
            wanted = getattr(self, key)
            require(len(have) >= wanted, f"task.{key}", wanted, f"there are only {len(have)} prompts to choose from.")
        streams = np.random.SeedSequence(seed).spawn(2)
        self.rng = np.random.default_rng(streams[0])
        draws = [int(x) >> 2 for x in streams[1].generate_state(2)]
        self.generator = torch.Generator(self.materials.model.device).manual_seed(draws[0])
        self.heldout = HeldOut(self.materials, self.num_eval_prompts, self.num_samples, draws[1])
        self.order: list[int] = []  # prompts still to come in this pass over them
        self.waiting: deque[CompletionRollout] = deque()  # collected and not learnt from yet

    def make_policy(self, seed: int) -> Any:
        """The source's model with fresh adapters, or all of it, and a value head if the advantages need one."""
        from rgpo.language.policy.language_model import LanguageModel, Sampling
        from rgpo.language.policy.pretrained import add_lora

        materials = self.materials
        model = materials.model
        if self.gradient_checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # transformers is about to rename it
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.lora is not None:
            targets = self.lora.target_modules
            model = add_lora(model, rank=self.lora.rank, alpha=self.lora.alpha, dropout=0.0, target_modules=targets, seed=seed)
        else:
            model.requires_grad_(True)
        model.train(self.gradient_checkpointing)  # transformers checkpoints in no other mode; LanguageModel switches dropout off
        sampling = Sampling(
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            eos_id=materials.eos_id,
            pad_id=materials.pad_id,
            ratio=self.ratio,
            reduction=self.reduction,
            micro_batch_size=self.micro_batch_size,
            num_kl_tokens=self.num_kl_tokens,
        )
        policy = LanguageModel(model, sampling, self.critic)
        if self.parallel == "fsdp":
            policy.shard()
        return policy

    def collect(self, policy: Any) -> CompletionRollout:
        """A rollout of the present policy, or with staleness s the one of s iterations ago. NonFiniteError for a NaN reward."""
        while len(self.waiting) <= self.staleness:
            self.waiting.append(self._collect(policy))
        return self.waiting.popleft()

    def _collect(self, policy: Any) -> CompletionRollout:
        import torch

        from rgpo.language.policy.token_batch import CompletionRollout, rows_of, sampler_gap

        started = time.perf_counter()
        prompts = [self.materials.train_prompts[i] for i in self._next_prompts() for _ in range(self.group_size)]
        completions = self.sampler(policy, [prompt.ids for prompt in prompts], self.generator)
        generated = time.perf_counter()
        score = judged(self.materials.proxy, prompts, texts_of(completions, self.materials.tokenizer))
        scored = time.perf_counter()
        back = policy.look_back(completions, self.rng)
        weight_N = sampler_gap(back["logp_old_N"], completions).exp()
        cap = self.sampler.correction_cap
        back["correction_N"] = torch.ones_like(weight_N) if cap is None else weight_N.clamp(max=cap)
        kl_BT = rows_of(back["logp_old_N"] - back["logp_ref_N"], completions).double().cpu().numpy()
        value_BT = rows_of(back["value_N"], completions).double().cpu().numpy()
        mask_BT = completions.completion_mask_BT.cpu().numpy()
        reward_BT = token_rewards(score, kl_BT, mask_BT, kl_coef=self.reward_kl_coef)
        truncated = ~completions.finished_B.cpu().numpy()
        steps: dict[str, Any] = token_steps(reward_BT, value_BT, mask_BT, truncated)
        nothing = np.empty(0)
        return CompletionRollout(
            observation=nothing,
            action=nothing,
            **steps,
            metrics=self._describe(score, completions, back)
            | {
                "time/generate_s": generated - started,
                "time/score_s": scored - generated,
                "time/logprobs_s": time.perf_counter() - scored,
            },
            group_size=self.group_size,
            completions=completions,
            **back,
        )

    def _describe(self, score: Array, completions: Completions, back: dict[str, Any]) -> dict[str, float]:
        from rgpo.core.divergences import k1, k2, k3
        from rgpo.language.policy.token_batch import clustered_mean, sampler_gap

        gap = sampler_gap(back["logp_old_N"], completions).abs()
        x = back["logp_ref_N"] - back["logp_old_N"]  # samples of the policy: k1, k2, k3 estimate KL(policy || reference)
        metrics = {
            "reward/train_mean": float(score.mean()),
            "reward/train_std": float(score.std()),
            "sampler/log_ratio_abs_mean": float(gap.mean()),
            "sampler/log_ratio_abs_max": float(gap.max()),
            "language/num_tokens": float(completions.completion_mask_BT.sum()),
            "language/num_prompt_tokens": float(completions.prompt_lengths_B.sum()),
            "language/length_mean": float(completions.completion_mask_BT.sum(-1).double().mean()),
            "language/truncated_share": float((~completions.finished_B).double().mean()),
        }
        if self.group_size > 1:
            metrics["language/dead_group_share"] = float(dead_groups(score, self.group_size).mean())
        for name, estimator in (("k1", k1), ("k2", k2), ("k3", k3)):
            metrics[f"kl/ref_{name}"], metrics[f"kl/ref_{name}_se"] = clustered_mean(estimator(x), completions)
        return metrics

    def _next_prompts(self) -> list[int]:
        """num_prompts prompts of a shuffled pass over all; what is left of a pass that does not come out even waits for none."""
        if len(self.order) < self.num_prompts:
            self.order = self.rng.permutation(len(self.materials.train_prompts)).tolist()
        taken, self.order = self.order[: self.num_prompts], self.order[self.num_prompts :]
        return taken

    def evaluate(self, policy: Any) -> dict[str, float]:
        """Proxy and gold scores on held-out prompts, beside the reference's, and the KL."""
        return self.heldout.evaluate(policy)

    def summary(self, metrics: dict[str, Any]) -> list[str]:
        """What the end of a run says of this task."""
        return self.heldout.summary(metrics)

    def take_samples(self) -> list[dict[str, Any]]:
        """Rows for samples.parquet since the last call."""
        return self.heldout.take_samples()

    def headline(self, metrics: dict[str, Any]) -> str:
        """What a progress line says of this task."""
        return f"reward {metrics['reward/train_mean']:+.3f}  KL(ref) {metrics['kl/ref_exact']:.4f}"

    def state_dict(self) -> dict[str, Any]:
        from rgpo.language.policy.token_batch import pack

        return {
            "rng": self.rng.bit_generator.state,
            "generator": self.generator.get_state(),
            "order": self.order,
            "waiting": [pack(rollout) for rollout in self.waiting],
            "heldout": self.heldout.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from rgpo.language.policy.token_batch import unpack

        self.rng.bit_generator.state = state["rng"]
        self.generator.set_state(state["generator"])
        self.order = list(state["order"])
        self.waiting = deque(unpack(packed) for packed in state["waiting"])
        self.heldout.load_state_dict(state["heldout"])
