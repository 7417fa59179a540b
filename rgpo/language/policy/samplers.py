"""Who draws the completions that are learnt from: the policy itself, or vLLM with the policy's adapters."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rgpo import distributed
from rgpo.errors import ConfigError, require
from rgpo.language.policy.pretrained import require_packages

if TYPE_CHECKING:
    import torch

    from rgpo.language.policy.generation import Completions


class Sampler(Protocol):
    """What conf/sampler/*.yaml names as task.sampler."""

    correction_cap: float | None  # largest weight pi_old/pi_sampler of a token; null: no correction

    def check(self) -> None:
        """ConfigError for packages that are missing."""

    def __call__(self, policy: Any, prompts: Sequence[Sequence[int]], generator: torch.Generator) -> Completions:
        """A completion of each prompt's ids, with the log-probabilities it was drawn with."""


def check_cap(cap: float | None) -> None:
    """ConfigError unless cap is null or at least 1."""
    require(cap is None or 1 <= cap < math.inf, "task.sampler.correction_cap", cap, "must be at least 1, or null for none.")


@dataclass(kw_only=True)
class Own:
    """The policy's own forward pass draws; what it draws with differs from what is learnt by rounding alone."""

    correction_cap: float | None = None

    def __post_init__(self) -> None:
        check_cap(self.correction_cap)

    def check(self) -> None:
        """Nothing besides the policy's own packages."""

    def __call__(self, policy: Any, prompts: Sequence[Sequence[int]], generator: torch.Generator) -> Completions:
        completions: Completions = policy.generate(prompts, generator)
        return completions


@dataclass(kw_only=True)
class VLLM:
    """vLLM draws with the policy's LoRA adapters, handed over on disk before each rollout; never run here (no GPU).

    Its kernels round differently from the learner's, so tokens get the weight min(pi_old/pi_vllm, correction_cap).
    """

    correction_cap: float | None = 2.0
    gpu_memory_utilization: float = 0.4  # share of the GPU that vLLM takes
    max_model_len: int = 1024  # tokens of prompt and completion

    _engine: Any = field(default=None, init=False, repr=False)
    _version: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        check_cap(self.correction_cap)
        share = self.gpu_memory_utilization
        require(0 < share < 1, "task.sampler.gpu_memory_utilization", share, "must lie strictly between 0 and 1.")

    def check(self) -> None:
        """vllm must be installed: it brings its own torch, so it is an extra of its own. ConfigError."""
        require_packages("task.sampler", "vllm", extra="vllm")
        require(distributed.world_size() == 1, "task.sampler", "vllm", "draws in one process; use own under torchrun.")

    def __call__(self, policy: Any, prompts: Sequence[Sequence[int]], generator: torch.Generator) -> Completions:
        import torch
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        from rgpo.language.policy.generation import assemble

        if not hasattr(policy.model, "peft_config"):
            raise ConfigError("task.sampler=vllm: takes the policy's adapters, set task.lora or use sampler@task.sampler=own.")
        sampling = policy.sampling
        if self._engine is None:
            rank = next(iter(policy.model.peft_config.values())).r
            self._engine = LLM(
                model=policy.model.get_base_model().config._name_or_path,
                enable_lora=True,
                max_lora_rank=rank,
                max_model_len=self.max_model_len,
                gpu_memory_utilization=self.gpu_memory_utilization,
                logprobs_mode="processed_logprobs",  # after the temperature, as the learner reads them
            )
        seeds = torch.randint(2**31, (len(prompts),), generator=generator, device=generator.device).tolist()
        shared = {"temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens, "logprobs": 0}
        shared |= {"stop_token_ids": [sampling.eos_id]}
        self._version += 1
        with tempfile.TemporaryDirectory() as folder:
            policy.model.save_pretrained(folder)
            outputs = self._engine.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                [SamplingParams(seed=seed, **shared) for seed in seeds],
                lora_request=LoRARequest(f"policy-{self._version}", self._version, str(Path(folder))),
                use_tqdm=False,
            )
        rows = []
        for output in outputs:
            drawn = output.outputs[0]
            ids = list(drawn.token_ids)
            rows.append(
                (ids, [entry[i].logprob for entry, i in zip(drawn.logprobs, ids, strict=True)], ids[-1] == sampling.eos_id)
            )
        return assemble(prompts, rows, sampling.pad_id, policy.model.device)
