"""Find a way to run a model whose log-probabilities equal those of one whole text at a time, without padding or cache.

A few short random texts are checked when a policy is made, so that for an untested model family, masks, positions and caches are
either correct or replaced by a slower method that is, or else the model is rejected. The run's random numbers are not used.
Legend: V vocabulary; B rows, T longest completion, S a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from rgpo.errors import ConfigError, first_line, is_out_of_memory
from rgpo.language.policy import packing
from rgpo.language.policy.generation import BATCHINGS, Batching, Completions, base_model, generate
from rgpo.language.policy.packing import LAYOUTS, Layout
from rgpo.language.policy.pretrained import context_length
from rgpo.language.policy.rounding import LEAST, ROUNDING, UNITS, UNUSABLE, accepted, perturbed_embeddings
from rgpo.language.policy.stopping import StopRule
from rgpo.language.policy.token_batch import to_rows

if TYPE_CHECKING:
    from rgpo.language.policy.language_model import LanguageModel

PROMPTS, NUM_NEW = (9, 9, 2, 13, 13, 13), 8  # tokens in each prompt (equal lengths: equal prompts) and completion
SEEDS = (0, 1)  # a second try, in case rounding changes a mixture of experts' choice
WORDS: dict[Batching, str] = {
    "equal_length": "one prompt length at a time",
    "uncached": "one prompt length at a time and without a cache, which is slow",
}
ROWS: dict[Layout, str] = {"padded": "in rows of one completion", "plain": "in rows of one completion without a mask"}
Way = TypeVar("Way", Batching, Layout)


class Expected(NamedTuple):
    """Sampled completions, their log-probabilities from passes over whole texts, and the tolerance (mean difference) per row."""

    completions: Completions
    logp_BT: Tensor
    tolerance_B: Tensor


class Consistency:
    """Consistency check of a policy before training."""

    def __init__(self, policy: LanguageModel) -> None:
        self.policy, self.base = policy, base_model(policy.model)
        self.key = f"task.source.model={self.base.name_or_path}"
        self._drawn: dict[tuple[Batching, int], Expected] = {}

    @torch.no_grad()
    def run(self, log: Callable[[str], None]) -> None:
        """Set the policy's batching and layout to the fastest correct ones, and log if a slower one is needed.

        Raises: ConfigError if two passes over one text differ, no method reproduces the log-probabilities of whole texts, or
            there is no gradient.
        """
        name, policy = type(self.base).__name__, self.policy
        ids = self._prompts(SEEDS[0])[-1]
        try:
            first, again = (self._text_logp(ids) for _ in range(2))
        except UNUSABLE as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(f"{self.key}: a {name} cannot read a text of {len(ids)} tokens ({first_line(error)}).") from error
        gap = float((first - again).abs().mean())
        if not gap <= self._unit(first):
            raise ConfigError(
                f"{self.key}: two passes over one text by {name} differ by {gap:.2g} nats per token; "
                "its forward pass is random, give another model."
            )
        batchings = BATCHINGS[BATCHINGS.index(policy.batching) :]
        policy.batching, trouble = self._fastest(batchings, self._generated_gap, "generates tokens one at a time")
        if policy.batching in WORDS:
            log(f"{name}: completions are generated {WORDS[policy.batching]} ({trouble})")
        layouts = LAYOUTS[LAYOUTS.index(policy.layout) :]
        policy.layout, trouble = self._fastest(layouts, self._learned_gap, "reads several texts at once")
        if trouble:
            log(f"{name}: completions are read {ROWS[policy.layout]} ({trouble})")
        self._require_gradient()

    def _require_gradient(self) -> None:
        """Run a backward pass to the first and last 16 trained parameters.

        Raises: ConfigError if that fails (some models need transformers' training mode, others do not support autograd).
        """
        trained = [p for p in self.policy.model.parameters() if p.requires_grad]
        try:
            with torch.enable_grad():
                logp_n = self.policy.forward(self._view(self._expected(self.policy.batching, SEEDS[0]).completions)).logp
                torch.autograd.grad(logp_n.sum(), trained[:16] + trained[16:][-16:], allow_unused=True)
        except UNUSABLE as error:
            if is_out_of_memory(error):
                raise
            name, reason = type(self.base).__name__, first_line(error)[:120]
            raise ConfigError(
                f"{self.key}: a {name} cannot be trained ({type(error).__name__}: {reason}); give another model."
            ) from error

    def _view(self, completions: Completions) -> packing.MicroBatch:
        index = torch.arange(len(completions.sequence_BS), device=completions.sequence_BS.device)
        packed = self.policy.layout == "packed"
        return packing.make_micro_batch(completions, index, packing.assign_rows(completions, packed), packed)

    def _fastest(self, ways: Sequence[Way], gap_of: Callable[[Way, int], Tensor], does: str) -> tuple[Way, str]:
        """The first way whose gap is within tolerance, and why the earlier ones are not.

        Raises: ConfigError if there is none.
        """
        trouble = ""
        for way in ways:
            try:
                gaps = [gap_of(way, SEEDS[0])]
                if not bool((gaps[0] <= 1).all()):
                    gaps.append(gap_of(way, SEEDS[1]))
                if bool((gaps[-1] <= 1).all()):
                    return way, trouble
                found = f"{way}: {float(gaps[0].nan_to_num(torch.inf).max()):.2g} times what rounding explains"
            except UNUSABLE as error:
                if is_out_of_memory(error) or isinstance(error, ConfigError):
                    raise
                found = f"{way}: {type(error).__name__}, {first_line(error)[:80]}"
            trouble = f"{trouble}; {found}" if trouble else found
        raise ConfigError(
            f"{self.key}: the log-probabilities of {type(self.base).__name__} change when it {does} ({trouble}), "
            "so it is not causal or cannot be read in this version of transformers; give another model."
        )

    def _prompts(self, seed: int) -> list[list[int]]:
        """Prompts of random tokens, shortened to fit the model's context."""
        generator = torch.Generator().manual_seed(seed)
        room = (context_length(self.base.config) or 1024) - self._num_new
        high = self.base.get_input_embeddings().weight.shape[0]
        texts = {n: torch.randint(high, (min(n, room),), generator=generator).tolist() for n in sorted(set(PROMPTS))}
        return [texts[n] for n in PROMPTS]

    @property
    def _num_new(self) -> int:
        return min(NUM_NEW, (context_length(self.base.config) or 1024) // 2)

    def _expected(self, batching: Batching, seed: int) -> Expected:
        """Completions generated with this batching, and their correct log-probabilities; cached."""
        if (batching, seed) not in self._drawn:
            policy, device = self.policy, self.base.device
            vocabulary = self._logits(self._prompts(seed)[0]).shape[-1]
            with policy.precision():
                drawn = generate(
                    policy.model,
                    self._prompts(seed),
                    max_new_tokens=self._num_new,
                    temperature=policy.sampling.temperature,
                    stop=StopRule(frozenset(range(0, vocabulary, 8))),  # so that rows end at different steps
                    pad_id=policy.sampling.pad_id,
                    generator=torch.Generator(device).manual_seed(seed),
                    batching=batching,
                )
            logp = torch.zeros_like(drawn.logp_BT)
            tolerance = []
            for row, live in enumerate(drawn.completion_mask_BT.sum(-1).tolist()):
                ids = drawn.sequence_BS[row][drawn.attention_mask_BS[row].bool()].tolist()
                text = self._text_logp(ids)
                logp[row, :live] = text[-live:]
                tolerance.append(self._tolerance(ids, text))
            self._drawn[batching, seed] = Expected(drawn, logp, torch.tensor(tolerance, device=device))
        return self._drawn[batching, seed]

    def _generated_gap(self, batching: Batching, seed: int) -> Tensor:
        """Mean errors (B,) of the log-probabilities recorded by generation, in units of the tolerance."""
        expected = self._expected(batching, seed)
        return self._gap(expected.completions.logp_BT, expected)

    def _learned_gap(self, layout: Layout, seed: int) -> Tensor:
        """Mean errors (B,) of the log-probabilities computed for learning, in units of the tolerance."""
        policy, expected = self.policy, self._expected(self.policy.batching, seed)
        policy.layout, completions = layout, expected.completions
        view = self._view(completions)
        logp_N = torch.zeros(len(view.tokens_n), device=view.tokens_n.device)
        logp_N[view.tokens_n] = policy.forward(view).logp.float()
        return self._gap(to_rows(logp_N, completions), expected)

    def _gap(self, logp_BT: Tensor, expected: Expected) -> Tensor:
        length_B = expected.completions.completion_mask_BT.sum(-1)
        return (logp_BT - expected.logp_BT).abs().sum(-1) / length_B / expected.tolerance_B

    def _logits(self, ids: Sequence[int]) -> Tensor:
        """Logits / temperature (S, V) of one whole text, from the model's plain forward pass."""
        with self.policy.precision():
            text = torch.tensor([ids], device=self.base.device)
            logits: Tensor = self.policy.model(input_ids=text, **accepted(self.base, use_cache=False)).logits[0]
        return logits.float() / self.policy.sampling.temperature

    def _text_logp(self, ids: Sequence[int]) -> Tensor:
        """Log-probabilities (S - 1,) of all tokens of a text except the first."""
        targets = torch.tensor(ids[1:], device=self.base.device)
        return torch.log_softmax(self._logits(ids)[:-1], -1).gather(-1, targets[:, None])[:, 0]

    def _tolerance(self, ids: Sequence[int], logp: Tensor) -> float:
        """Tolerance for the mean difference from logp (S - 1,), from its change when the embeddings' last bit changes."""
        with perturbed_embeddings(self.base, self.policy.compute_dtype):
            change = float((self._text_logp(ids) - logp).abs().mean())
        return ROUNDING * change + self._unit(logp)

    def _unit(self, logp: Tensor) -> float:
        """Tolerance for values that should agree up to the last place."""
        return max(LEAST, UNITS * torch.finfo(self.policy.compute_dtype).eps * float(logp.abs().max()))
