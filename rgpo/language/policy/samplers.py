"""Samplers: the policy itself, vLLM with the policy's adapters, or stored preference pairs instead of samples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from rgpo import distributed
from rgpo.core.ranges import FRACTION, MANY, accept, check_fields, count
from rgpo.errors import ConfigError, require
from rgpo.language.policy.adapter import MERGED
from rgpo.language.policy.pretrained import require_packages

if TYPE_CHECKING:
    import torch

    from rgpo.language.assets import LanguageAssets, PreferencePair, Prompt
    from rgpo.language.policy.generation import Completions
    from rgpo.language.policy.language_model import LanguageModel


class Sampler(Protocol):
    """Interface of task.sampler, whose classes are named in conf/sampler/*.yaml."""

    @property
    def correction_cap(self) -> float | None:
        """Largest weight pi_old/pi_sampler of a token; None: tokens are not weighted."""
        ...

    @property
    def on_policy(self) -> bool:
        """True if completions are samples of the current policy, up to rounding; else only offline algorithms can use them."""
        ...

    def check(self, group_size: int) -> None:
        """Check packages and group size before anything is loaded.

        Raises: ConfigError if a package is missing or group_size is not supported.
        """
        ...

    def prompts(self, assets: LanguageAssets, max_new_tokens: int) -> Sequence[Prompt]:
        """The prompts from which collect()'s indices choose, one per group of completions."""
        ...

    def collect(
        self, policy: LanguageModel, assets: LanguageAssets, indices: Sequence[int], group_size: int, generator: torch.Generator
    ) -> Completions:
        """group_size completions for each prompt prompts(...)[i], i in indices, group by group."""
        ...


CAP = accept(lambda x: x is None or 1 <= x < math.inf, "must be at least 1, or null for none.")


def repeated_prompt_ids(assets: LanguageAssets, indices: Sequence[int], group_size: int) -> list[list[int]]:
    """Token ids of the training prompts at indices, each repeated group_size times."""
    return [assets.train_prompts[i].ids for i in indices for _ in range(group_size)]


@dataclass(kw_only=True)
class Own:
    """Samples with the policy's own forward pass; probabilities differ from the learner's only by rounding."""

    correction_cap: float | None = field(default=None, metadata=CAP)
    on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, "task.sampler")

    def check(self, group_size: int) -> None:
        """No-op: needs only the policy's own packages and supports any group size."""

    def prompts(self, assets: LanguageAssets, max_new_tokens: int) -> Sequence[Prompt]:
        return assets.train_prompts

    def collect(
        self, policy: LanguageModel, assets: LanguageAssets, indices: Sequence[int], group_size: int, generator: torch.Generator
    ) -> Completions:
        return policy.generate(repeated_prompt_ids(assets, indices, group_size), generator)


@dataclass(kw_only=True)
class VLLM:
    """Samples with vLLM, which loads the policy's LoRA adapters from disk before each rollout; we have never run it on a GPU.

    Its kernels round differently from the learner's, so each token is weighted by min(pi_old/pi_vllm, correction_cap).
    """

    correction_cap: float | None = field(default=2.0, metadata=CAP)
    gpu_memory_utilization: float = field(default=0.4, metadata=FRACTION)  # fraction of the GPU's memory for vLLM
    max_model_len: int = field(default=1024, metadata=count(MANY))  # tokens of prompt plus completion
    on_policy: ClassVar[bool] = True

    _engine: Any = field(default=None, init=False, repr=False)
    _version: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        check_fields(self, "task.sampler")

    def check(self, group_size: int) -> None:
        """Check that vLLM is installed; it is a separate extra because it requires its own version of torch.

        Raises: ConfigError if vLLM is not installed, or under torchrun.
        """
        require_packages("task.sampler", "vllm", extra="vllm")
        require(distributed.world_size() == 1, "task.sampler", "vllm", "runs in one process; use own under torchrun.")

    def prompts(self, assets: LanguageAssets, max_new_tokens: int) -> Sequence[Prompt]:
        adapter = getattr(assets.model, MERGED, None)
        require(adapter is None, "task.source.adapter", adapter, "vLLM would sample without it; merge it and save the model.")
        return assets.train_prompts

    def collect(
        self, policy: LanguageModel, assets: LanguageAssets, indices: Sequence[int], group_size: int, generator: torch.Generator
    ) -> Completions:
        import torch
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        from rgpo.language.policy.generation import make_completions

        if not hasattr(policy.model, "peft_config"):
            raise ConfigError("task.sampler=vllm: needs LoRA adapters; set task.lora or use sampler@task.sampler=own.")
        prompt_ids = repeated_prompt_ids(assets, indices, group_size)
        sampling = policy.sampling
        if self._engine is None:
            rank = next(iter(policy.model.peft_config.values())).r
            self._engine = LLM(
                model=policy.model.get_base_model().config._name_or_path,
                enable_lora=True,
                max_lora_rank=rank,
                max_model_len=self.max_model_len,
                gpu_memory_utilization=self.gpu_memory_utilization,
                logprobs_mode="processed_logprobs",  # after applying the temperature, as in the learner
            )
        seeds = torch.randint(2**31, (len(prompt_ids),), generator=generator, device=generator.device).tolist()
        shared: dict[str, object] = {"temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens, "logprobs": 0}
        shared |= {
            "stop_token_ids": sorted(sampling.stop.ids),
            "stop": list(sampling.stop.strings),
            "include_stop_str_in_output": True,
        }
        self._version += 1
        with tempfile.TemporaryDirectory() as folder:
            policy.model.save_pretrained(folder)
            outputs = self._engine.generate(
                [{"prompt_token_ids": ids} for ids in prompt_ids],
                [SamplingParams(seed=seed, **shared) for seed in seeds],
                lora_request=LoRARequest(f"policy-{self._version}", self._version, str(Path(folder))),
                use_tqdm=False,
            )
        rows = []
        for output in outputs:
            drawn = output.outputs[0]
            ids = list(drawn.token_ids)
            logp = [entry[i].logprob for entry, i in zip(drawn.logprobs, ids, strict=True)]
            rows.append((ids, logp, sampling.stop.finished(ids)))
        return make_completions(prompt_ids, rows, sampling.pad_id, policy.model.device)


@dataclass(kw_only=True)
class OfflinePairs:
    """Stored preference pairs instead of samples, as groups of two with the chosen answer first; for offline algorithms.

    The distribution of the answers is unknown, so their logp_BT is NaN and no correction is possible.
    """

    correction_cap: ClassVar[None] = None
    on_policy: ClassVar[bool] = False

    def check(self, group_size: int) -> None:
        """Raises: ConfigError unless group_size is 2."""
        require(group_size == 2, "task.group_size", group_size, "a preference pair has two answers; set task.group_size=2.")

    def prompts(self, assets: LanguageAssets, max_new_tokens: int) -> Sequence[Prompt]:
        return [pair.prompt for pair in assets.preference_pairs(max_new_tokens)]

    def collect(
        self, policy: LanguageModel, assets: LanguageAssets, indices: Sequence[int], group_size: int, generator: torch.Generator
    ) -> Completions:
        from rgpo.language.policy.generation import make_completions

        self.check(group_size)
        stored = assets.preference_pairs(policy.sampling.max_new_tokens)
        pairs: list[PreferencePair] = [stored[i] for i in indices]
        prompt_ids = [pair.prompt.ids for pair in pairs for _ in range(group_size)]
        answers = [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
        rows = [(ids, [math.nan] * len(ids), policy.sampling.stop.finished(ids)) for ids in answers]
        return make_completions(prompt_ids, rows, assets.pad_id, policy.model.device)
