"""Finds how a model can be read: its log-probabilities must be those of one whole text at a time, without padding or cache.

Checked with a few short random texts when a policy is made, so that masks, positions and caches of a family that nobody tried are
right, or replaced by a slower way that is right, or the model is refused. No random numbers of the run are used.
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

PROMPTS, NUM_NEW = (9, 9, 2, 13, 13, 13), 8  # tokens of the prompts, of which equal ones are the same, and of a completion
SEEDS = (0, 1)  # a mixture of experts that is one rounding away from another choice of experts gets a second try
WORDS: dict[Batching, str] = {
    "equal_length": "one prompt length at a time",
    "uncached": "one prompt length at a time and without a cache, which is slow",
}
ROWS: dict[Layout, str] = {"padded": "in rows of one completion", "plain": "in rows of one completion without a mask"}
Way = TypeVar("Way", Batching, Layout)


class Expected(NamedTuple):
    """Drawn completions, log-probabilities of their tokens read as whole texts, and the accepted mean difference of each row."""

    completions: Completions
    logp_BT: Tensor
    tolerance_B: Tensor


class Consistency:
    """The check of one policy before anything is trained."""

    def __init__(self, policy: LanguageModel) -> None:
        self.policy, self.base = policy, base_model(policy.model)
        self.key = f"task.source.model={self.base.name_or_path}"
        self._drawn: dict[tuple[Batching, int], Expected] = {}

    @torch.no_grad()
    def run(self, log: Callable[[str], None]) -> None:
        """Set the policy's batching and layout to the fastest that are right, and log where a slower one is needed.

        Raises: ConfigError if two passes over one text differ, no way of reading gives the log-probabilities of whole texts, or
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
        """Run a backward pass down to the first and the last trained parameters.

        Raises: ConfigError if the model has none (some run in transformers' training mode only, others not with autograd).
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
        """The first way with an accepted gap, and why an earlier one is not."""
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
        """Random tokens; in a model with a short context shorter ones."""
        generator = torch.Generator().manual_seed(seed)
        room = (context_length(self.base.config) or 1024) - self._num_new
        high = self.base.get_input_embeddings().weight.shape[0]
        texts = {n: torch.randint(high, (min(n, room),), generator=generator).tolist() for n in sorted(set(PROMPTS))}
        return [texts[n] for n in PROMPTS]

    @property
    def _num_new(self) -> int:
        return min(NUM_NEW, (context_length(self.base.config) or 1024) // 2)

    def _expected(self, batching: Batching, seed: int) -> Expected:
        """Completions that are generated in this way, and what their log-probabilities should be."""
        if (batching, seed) not in self._drawn:
            policy, device = self.policy, self.base.device
            vocabulary = self._logits(self._prompts(seed)[0]).shape[-1]
            with policy.precision():
                drawn = generate(
                    policy.model,
                    self._prompts(seed),
                    max_new_tokens=self._num_new,
                    temperature=policy.sampling.temperature,
                    stop=StopRule(frozenset(range(0, vocabulary, 8))),  # rows leave the batch at different steps
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
        """(B,) differences of the log-probabilities that generation recorded, in units of the accepted ones."""
        expected = self._expected(batching, seed)
        return self._gap(expected.completions.logp_BT, expected)

    def _learned_gap(self, layout: Layout, seed: int) -> Tensor:
        """(B,) differences of the log-probabilities that learning computes, in units of the accepted ones."""
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
        """(S, V) of one whole text, by the model alone."""
        with self.policy.precision():
            text = torch.tensor([ids], device=self.base.device)
            logits: Tensor = self.policy.model(input_ids=text, **accepted(self.base, use_cache=False)).logits[0]
        return logits.float() / self.policy.sampling.temperature

    def _text_logp(self, ids: Sequence[int]) -> Tensor:
        """(S - 1,) log-probabilities of a text's tokens but the first."""
        targets = torch.tensor(ids[1:], device=self.base.device)
        return torch.log_softmax(self._logits(ids)[:-1], -1).gather(-1, targets[:, None])[:, 0]

    def _tolerance(self, ids: Sequence[int], logp: Tensor) -> float:
        """The accepted mean difference from a text's logp (S - 1,): from its change when the last bit of embeddings changes."""
        with perturbed_embeddings(self.base, self.policy.compute_dtype):
            change = float((self._text_logp(ids) - logp).abs().mean())
        return ROUNDING * change + self._unit(logp)

    def _unit(self, logp: Tensor) -> float:
        """The accepted difference of what should be equal up to the last place."""
        return max(LEAST, UNITS * torch.finfo(self.policy.compute_dtype).eps * float(logp.abs().max()))
