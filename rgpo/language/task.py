"""Language tasks: completions of prompts by a causal language model, scored by a reward (online preference fine-tuning).

The learner maximizes the reward; a gold reward model, if there is one, is used only for evaluation.
Names: B completions, T tokens; rgpo.language.policy.token_batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from rgpo import distributed
from rgpo.core.advantages import token_rewards, token_steps
from rgpo.core.ranges import MANY, POSITIVE, accept, check_fields, count, one_of, or_null
from rgpo.core.rollout import Array
from rgpo.core.sequence import RATIOS, REDUCTIONS, UNCORRECTED, Correction, RatioLevel
from rgpo.errors import require
from rgpo.language.assets import AssetLoader, LanguageAssets, log_line, require_same_versions
from rgpo.language.evaluation import Evaluator, decode_completions
from rgpo.language.export import export_model
from rgpo.language.policy.pretrained import LoRA, as_language_model, forget_unusable_compiler_cache, require_context
from rgpo.language.policy.samplers import Sampler
from rgpo.language.policy.stopping import StopRule, make_stop_rule
from rgpo.language.rewards.function import Reward, Rewards, check_terms, describe, needs_reward_model
from rgpo.learning.clock import Clock
from rgpo.learning.types import Policy, Requirements, State

if TYPE_CHECKING:
    from torch import Tensor

    from rgpo.language.policy.language_model import LanguageModel
    from rgpo.language.policy.token_batch import CompletionRollout


@dataclass(kw_only=True)
class Language:
    """Language task with rollouts of num_prompts prompts and group_size completions each; ``setup`` loads the source."""

    source: AssetLoader
    sampler: Sampler
    lora: LoRA | None
    num_prompts: int = field(metadata=count(MANY))
    group_size: int = field(metadata=count(MANY))
    max_new_tokens: int = field(metadata=count(MANY))
    stop_tokens: list[str | int] | None
    stop_strings: list[str] = field(metadata=accept(all, "must not contain an empty text, which would end every completion."))
    temperature: float = field(metadata=accept(lambda x: 0.01 <= x <= 100, "must be a number from 0.01 to 100."))
    ratio: str = field(metadata=one_of(*RATIOS))
    ratio_clip: list[float] | None = None
    reduction: str = field(metadata=one_of(*REDUCTIONS))
    correction: Correction = UNCORRECTED
    decoupled: bool = False  # take the policy at the start of the update as the old one, even for stale rollouts
    micro_batch_size: int = field(metadata=count(MANY))
    parallel: str = field(metadata=one_of("ddp", "fsdp"))
    num_kl_tokens: int = field(metadata=count(MANY))
    staleness: int = field(metadata=count(100, least=0))
    gradient_checkpointing: bool
    trained_layers: int | None = field(default=None, metadata=or_null(count(MANY)))  # without LoRA only; null: all layers
    reward: list[Reward] | None = None  # null: the source's reward model
    missing_eos_penalty: float | None = field(default=None, metadata=or_null(POSITIVE))
    mask_truncated_completions: bool = False
    skip_special_tokens: bool = True
    center_scores: bool  # with a critic, subtract the mean score of the first rollout
    num_eval_prompts: int = field(metadata=count(MANY))
    num_samples: int = field(metadata=count(MANY, least=0))
    log_rollouts_every: int = field(default=0, metadata=count(MANY, least=0))  # in iterations; 0: never

    def __post_init__(self) -> None:
        check_fields(self, "task")
        check_terms(self.reward or ())
        RatioLevel(self.ratio, self.ratio_clip)
        require(self.staleness > 0 or not self.decoupled, "task.decoupled", True, "needs stale rollouts; set task.staleness.")
        alone = self.trained_layers is None or self.lora is None
        require(alone, "task.trained_layers", self.trained_layers, "is read with task.lora=null only; use one of them.")
        nothing = self.stop_tokens is not None and not self.stop_tokens and not self.stop_strings
        require(not nothing, "task.stop_tokens", "[]", "would let no completion end; name a token, or use null.")
        tokens = self.batch_size * self.max_new_tokens
        remedy = f"x task.group_size={self.group_size} x task.max_new_tokens={self.max_new_tokens} makes {tokens:,} tokens per "
        require(tokens <= MANY, "task.num_prompts", self.num_prompts, f"{remedy}rollout, over {MANY:,}; lower one of them.")

    export_name: ClassVar[str] = "model"
    export = export_model
    memory_advice: ClassVar[str] = "lower task.micro_batch_size or task.num_kl_tokens, or set task.gradient_checkpointing=true"

    @property
    def stop_rule(self) -> StopRule:
        """Tokens and strings that end a completion."""
        ids = self.assets.stop_ids | {self.assets.eos_id}
        return make_stop_rule(self.assets.tokenizer, ids, self.stop_tokens, self.stop_strings)

    @property
    def batch_size(self) -> int:
        """B, the number of completions in a rollout."""
        return self.num_prompts * self.group_size

    @property
    def versions(self) -> Mapping[str, str]:
        """Commit or sha256 of everything downloaded or built, and sha256 of the reward functions' files."""
        return {**self.assets.versions, **{term.place: term.sha256 for term in self.reward or () if term.function is not None}}

    @property
    def without_model(self) -> dict[str, bool]:
        """Keyword argument that makes a source skip its reward model; {} if the reward model is needed."""
        return {} if needs_reward_model(self.reward or ()) else {"reward_model": False}

    def check(self) -> None:
        """Raises: ConfigError if source or sampler cannot be used, or if a process would have no prompt."""
        for key in ("num_prompts", "num_eval_prompts"):
            value, size = getattr(self, key), distributed.world_size()
            require(value >= size, f"task.{key}", value, f"leaves some of {size} processes without a prompt; start fewer.")
        self.source.check(**self.without_model)
        self.sampler.check(self.group_size)
        self.correction.check_cap(self.sampler.correction_cap)

    def validate(self, requirements: Requirements) -> None:
        """Raises: ConfigError if the algorithm cannot learn from these rollouts."""
        if requirements.groups:
            require(self.group_size > 1, "task.group_size", self.group_size, "a group needs at least 2 completions to compare.")
        sharded = self.parallel == "fsdp" and requirements.whole_parameters
        require(not sharded, "task.parallel", self.parallel, "this update needs whole parameters in each process; use ddp.")
        offline = not self.sampler.on_policy
        read, option = ("stored pairs", "offline_pairs") if requirements.pairs else ("its own completions", "own")
        remedy = f"the algorithm learns from {read}; use sampler@task.sampler={option}."
        require(offline == requirements.pairs, "task.sampler", type(self.sampler).__name__, remedy)
        require(not requirements.exact_kl, "penalty.estimator", "exact", "is known at some tokens only; use unbiased, k2 or k3.")
        require(not requirements.compiled, "update.compile", True, "language models are not compiled; use auto or false.")

    def plan_iterations(self, total_env_steps: int) -> int:
        """Number of iterations that generate total_env_steps tokens if every completion has max_new_tokens."""
        return -(-total_env_steps // (self.batch_size * self.max_new_tokens))

    def setup(self, seed: int, requirements: Requirements) -> None:
        """Load model, prompts and reward models, and seed the random generators."""
        forget_unusable_compiler_cache()
        import torch

        self.requirements = requirements
        self.assets: LanguageAssets = self.source.load(log_line, **self.without_model)
        self.prompts = self.sampler.prompts(self.assets, self.max_new_tokens)
        for key, have in (("num_prompts", self.prompts), ("num_eval_prompts", self.assets.heldout_prompts)):
            wanted = getattr(self, key)
            require(len(have) >= wanted, f"task.{key}", wanted, f"there are only {len(have)} prompts to choose from.")
        known = [*self.prompts, *self.assets.heldout_prompts]
        require_context(self.assets.model.config, known, self.max_new_tokens)
        streams = np.random.SeedSequence(seed).spawn(2)
        self.rng = np.random.default_rng(streams[0])
        draws = [int(x) >> 2 for x in streams[1].generate_state(2)]
        self.generator = torch.Generator(self.assets.model.device).manual_seed(draws[0])
        self.rewards = Rewards(self.reward or (), self.assets.reward_model, known)
        counts, keep = (self.num_eval_prompts, self.num_samples, draws[1]), self.skip_special_tokens
        self.evaluator = Evaluator(self.assets, *counts, rewards=self.rewards, skip_special_tokens=keep)
        self.order: list[int] = []  # prompts left in the current pass
        self.waiting: deque[CompletionRollout] = deque()  # collected rollouts waiting to be learned from
        self.num_collected = 0  # rollouts so far, i.e. the iteration that learns from the last one
        self.score_offset: float | None = None  # subtracted from scores; None before the first rollout or if unused

    def make_policy(self, seed: int) -> LanguageModel:
        """The source's model with new adapters or with its own weights trained, and a value head if the algorithm has a critic.

        Raises: ConfigError if the model fails the consistency check of its log-probabilities.
        """
        from rgpo.language.policy.consistency import Consistency
        from rgpo.language.policy.generation import Sampling
        from rgpo.language.policy.language_model import LanguageModel
        from rgpo.language.policy.pretrained import trainable

        model = trainable(self.assets.model, self.lora, self.trained_layers, self.gradient_checkpointing, seed)
        sampling = Sampling(
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop_rule,
            pad_id=self.assets.pad_id,
            ratio=self.ratio,
            reduction=self.reduction,
            micro_batch_size=self.micro_batch_size,
            num_kl_tokens=self.num_kl_tokens,
            mask_truncated=self.mask_truncated_completions,
            ratio_clip=self.ratio_clip,
            correction=self.correction,
            correction_cap=self.sampler.correction_cap,
        )
        policy = LanguageModel(model, sampling, self.requirements.critic)
        Consistency(policy).run(log_line)
        if self.parallel == "fsdp":
            policy.shard()
        return policy

    def collect(self, policy: Policy) -> CompletionRollout:
        """A rollout of the current policy or, with staleness s, that of s iterations ago.

        Raises: NonFiniteError if a reward is NaN or infinite.
        """
        model = as_language_model(policy)
        while len(self.waiting) <= self.staleness:
            self.waiting.append(self._collect(model))
        rollout = self.waiting.popleft()
        if self.decoupled:
            old = model.compute_old_logprobs(rollout.completions, self.requirements.num_minibatches, self.rng)
            rollout = rollout.with_old(old, model.sampling)
        return rollout

    def _collect(self, policy: LanguageModel) -> CompletionRollout:
        from rgpo.language.policy.token_batch import CompletionRollout, sampler_correction, to_rows
        from rgpo.language.rollout_metrics import describe_rollout, rollout_rows

        clock = Clock()
        indices = self._next_prompts()
        prompts = [self.prompts[i] for i in indices for _ in range(self.group_size)]
        completions = self.sampler.collect(policy, self.assets, indices, self.group_size, self.generator)
        clock.add("generate")
        texts = decode_completions(completions, self.assets.tokenizer, self.stop_rule, self.skip_special_tokens)
        score, parts = self.rewards(prompts, texts)
        score = score - (self.missing_eos_penalty or 0.0) * (~completions.finished_B).double().cpu().numpy()
        clock.add("score")
        old = policy.compute_old_logprobs(completions, self.requirements.num_minibatches, self.rng)
        kl_BT = to_rows(old.logp_old_N - old.logp_ref_N, completions).double().cpu().numpy()
        value_BT = to_rows(old.value_N, completions).double().cpu().numpy()
        mask_BT = completions.completion_mask_BT.cpu().numpy()
        reward_BT = token_rewards(self._centered(score), kl_BT, mask_BT, kl_coef=self.requirements.reward_kl_coef)
        steps = token_steps(reward_BT, value_BT, mask_BT, ~completions.finished_B.cpu().numpy())
        clock.add("logprobs")
        on_policy = self.sampler.on_policy
        metrics = describe_rollout(score, completions, old, group_size=self.group_size, on_policy=on_policy) | describe(parts)
        metrics |= {} if self.score_offset is None else {"reward/offset": self.score_offset}
        self.num_collected += 1
        due = self.log_rollouts_every > 0 and self.num_collected % self.log_rollouts_every == 0
        rows = rollout_rows(prompts, score, parts, completions, kl_BT, self.assets.tokenizer) if due else []
        return CompletionRollout(
            **steps,
            metrics=metrics | clock.seconds,
            rows=rows,
            group_size=self.group_size,
            completions=completions,
            old=old,
            correction_N=sampler_correction(old.logp_old_N, completions, policy.sampling),
        )

    def _centered(self, score_B: Array) -> Array:
        """Scores minus the first rollout's mean, so that V = 0 is a fair start and a constant in the reward has no effect."""
        if self.center_scores and self.requirements.critic:  # group comparisons already cancel a constant
            if self.score_offset is None:
                self.score_offset = float(np.mean(score_B, dtype=np.float64))
            score_B = np.asarray(score_B, np.float64) - self.score_offset
        return score_B

    def _next_prompts(self) -> list[int]:
        """The next num_prompts prompts of a shuffled pass over all; a remainder smaller than num_prompts is dropped."""
        if len(self.order) < self.num_prompts:
            self.order = self.rng.permutation(len(self.prompts)).tolist()
        taken, self.order = self.order[: self.num_prompts], self.order[self.num_prompts :]
        return taken

    def evaluate(self, policy: Policy) -> dict[str, float]:
        """Scores on held-out prompts, their changes from the reference, and the KL to the reference."""
        return self.evaluator.evaluate(as_language_model(policy))

    def summary(self, metrics: Mapping[str, float | list[float]]) -> list[str]:
        """Scores before and after training, the KL, and some completions."""
        return self.evaluator.summary(metrics)

    def take_samples(self) -> Iterable[Mapping[str, object]]:
        """Return the rows of samples.parquet since the last call."""
        return self.evaluator.take_samples()

    def headline(self, metrics: Mapping[str, float | list[float]]) -> str:
        """The iteration's mean score and, if measured, the KL to the reference."""
        kl = f"  KL(ref) {metrics['kl/ref_exact']:.4f}" if "kl/ref_exact" in metrics else ""
        return f"reward {metrics['reward/train_mean']:+.3f}{kl}"

    def state_dict(self) -> State:
        from rgpo.language.policy.token_batch import rollout_state

        return {
            "rng": self.rng.bit_generator.state,
            "generator": self.generator.get_state(),
            "order": self.order,
            "score_offset": self.score_offset,
            "num_collected": self.num_collected,
            "waiting": [rollout_state(rollout) for rollout in self.waiting],
            "versions": dict(self.versions),
            "evaluator": self.evaluator.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Raises: ConfigError if the data, the model or a reward model differs from that at the start of the run."""
        from rgpo.language.policy.token_batch import restore_rollout

        require_same_versions(self.source, self.versions, cast(Mapping[str, str], state.get("versions", {})))
        self.rng.bit_generator.state = cast(Mapping[str, object], state["rng"])
        self.generator.set_state(cast("Tensor", state["generator"]))
        self.order = list(cast(list[int], state["order"]))
        self.score_offset = cast(float | None, state["score_offset"])
        self.num_collected = cast(int, state.get("num_collected", 0))
        self.waiting = deque(restore_rollout(saved) for saved in cast(list[State], state["waiting"]))
        self.evaluator.load_state_dict(cast(State, state["evaluator"]))
