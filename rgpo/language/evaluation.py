"""Evaluation on held-out prompts: scores of policy and reference, sampled with the same random numbers, and their KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np

from rgpo import distributed
from rgpo.core.rollout import Array
from rgpo.language.assets import LanguageAssets, Prompt, RewardFunction, require_finite_scores
from rgpo.language.rewards.function import Rewards
from rgpo.learning.types import State

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rgpo.language.policy.generation import Completions
    from rgpo.language.policy.language_model import LanguageModel
    from rgpo.language.policy.stopping import StopRule

NUM_SHOWN, SHOWN_CHARACTERS = 3, 300  # number and length of the completions in a run's summary
TITLES = {"proxy": "reward model", "gold": "gold reward model"}  # names in metrics and samples.parquet -> names in the summary


class SampleRow(TypedDict):
    """A row of samples.parquet; proxy and gold are the scores of the reward model and the gold reward model."""

    reference: bool
    prompt_id: int
    prompt: str
    completion: str
    proxy: float
    gold: float  # NaN without a gold reward model
    kl_ref: float
    length: int
    finished: bool


class Evaluator:
    """Evaluates a policy on the first num_prompts held-out prompts and stores num_samples of its completions as rows."""

    def __init__(
        self,
        assets: LanguageAssets,
        num_prompts: int,
        num_samples: int,
        seed: int,
        *,
        rewards: Rewards | None = None,
        skip_special_tokens: bool = True,
    ) -> None:
        self.assets, self.num_samples, self.seed = assets, num_samples, seed
        self.rewards = rewards or Rewards((), assets.reward_model, ())
        self.skip_special_tokens = skip_special_tokens
        self.prompts = assets.heldout_prompts[:num_prompts]
        self.reference_scores: dict[str, Array] = {}  # reward model -> (num_prompts,)
        self.samples: list[Mapping[str, object]] = []  # rows since the last take_samples, including the reward terms
        self.before: list[SampleRow] = []  # for the summary: the reference's completions, and the policy's latest ones
        self.after: list[SampleRow] = []

    def evaluate(self, policy: LanguageModel) -> dict[str, float]:
        """Mean scores, their changes from the reference, and log pi(y)/pi_ref(y) per completion (nats), with standard errors."""
        if not self.reference_scores:
            self.reference_scores, _, self.before = self._score_samples(policy, reference=True)
        scores, kl, self.after = self._score_samples(policy, reference=False)
        metrics: dict[str, float] = {}
        for name, score in scores.items():
            change = score - self.reference_scores[name]
            for key, x in ((f"reward/eval_{name}", score), (f"reward/eval_{name}_change", change)):
                metrics |= {(key if key.endswith("change") else f"{key}_mean"): float(x.mean()), f"{key}_se": standard_error(x)}
        return metrics | {"kl/eval_ref_sequence": float(kl.mean()), "kl/eval_ref_sequence_se": standard_error(kl)}

    def _score_samples(self, policy: LanguageModel, reference: bool) -> tuple[dict[str, Array], Array, list[SampleRow]]:
        """Scores per reward model and KL, each (num_prompts,), and num_samples rows; every call uses the same random numbers."""
        import torch

        prompts = self.prompts
        generator = torch.Generator(self.assets.model.device).manual_seed(self.seed)
        completions = policy.generate([prompt.ids for prompt in prompts], generator, reference=reference)
        texts = decode_completions(completions, self.assets.tokenizer, policy.sampling.stop, self.skip_special_tokens)
        total, parts = self.rewards(prompts, texts)
        scores, gold_model = {"proxy": total, **parts}, self.assets.gold_reward_model
        if gold_model is not None:
            scores["gold"] = score_completions(gold_model, prompts, texts)
        kl = np.zeros(len(prompts)) if reference else policy.completion_kl(completions)
        gold = scores.get("gold", np.full(len(prompts), np.nan))
        lengths = completions.completion_mask_BT.sum(-1).tolist()
        rows = [
            SampleRow(
                reference=reference,
                prompt_id=i,
                prompt=str(prompts[i].text),
                completion=texts[i],
                proxy=float(scores["proxy"][i]),
                gold=float(gold[i]),
                kl_ref=float(kl[i]),
                length=int(lengths[i]),
                finished=bool(completions.finished_B[i]),
            )
            for i in range(min(self.num_samples, len(prompts)))
        ]
        self.samples += [
            {**row, **{f"reward/{name}": float(part[i]) for name, part in parts.items()}} for i, row in enumerate(rows)
        ]
        return scores, kl, rows

    def summary(self, metrics: Mapping[str, float | list[float]]) -> list[str]:
        """Scores before and after training with intervals, the KL, and up to three completions before and after."""
        if "reward/eval_proxy_mean" not in metrics:
            return []

        def metric(key: str) -> float:
            value = metrics[key]
            assert not isinstance(value, list)
            return value

        lines = []
        for name in self.reference_scores:
            after, se = metric(f"reward/eval_{name}_mean"), metric(f"reward/eval_{name}_se")
            change, change_se = metric(f"reward/eval_{name}_change"), metric(f"reward/eval_{name}_change_se")
            lines.append(
                f"{self._title(name)} on {len(self.prompts)} held-out prompts: {after - change:+.3f} before, "
                f"{after:+.3f} +- {1.96 * se:.3f} after; change {change:+.3f} +- {1.96 * change_se:.3f} (95 %)"
            )
        kl, kl_se = metric("kl/eval_ref_sequence"), metric("kl/eval_ref_sequence_se")
        lines.append(f"KL to the reference {kl:.2f} +- {1.96 * kl_se:.2f} nats per completion")
        for before, after_row in list(zip(self.before, self.after, strict=False))[:NUM_SHOWN]:
            lines.append(f"{before['prompt'][-SHOWN_CHARACTERS:]!r}")
            for when, row in (("before", before), ("after", after_row)):
                scores = f"reward {row['proxy']:+.2f}" + ("" if np.isnan(row["gold"]) else f", gold {row['gold']:+.2f}")
                lines.append(f"  {when:6} ({scores}): {row['completion'][:SHOWN_CHARACTERS]!r}")
        return lines

    def _title(self, name: str) -> str:
        return "reward" if name == "proxy" and self.rewards.named else TITLES.get(name, name)

    def take_samples(self) -> list[Mapping[str, object]]:
        """Return the rows of samples.parquet since the last call."""
        taken, self.samples = self.samples, []
        return taken

    def state_dict(self) -> State:
        scores = {name: score.tolist() for name, score in self.reference_scores.items()}
        return {"reference_scores": scores, "before": self.before}

    def load_state_dict(self, state: State) -> None:
        scores = cast(dict[str, list[float]], state["reference_scores"])
        self.reference_scores = {name: np.array(score) for name, score in scores.items()}
        self.before = cast(list[SampleRow], state["before"])


def decode_completions(
    completions: Completions, tokenizer: PreTrainedTokenizerBase, stop: StopRule, skip_special_tokens: bool = True
) -> list[str]:
    """Decode each completion, without the token or text that ended it, and by default without special tokens."""
    from rgpo.language.policy.generation import completion_ids

    bodies = [stop.body(ids) for ids in completion_ids(completions)]
    texts: list[str] = tokenizer.batch_decode(bodies, skip_special_tokens=skip_special_tokens)
    return [stop.cut(text) for text in texts]


def score_completions(reward_model: RewardFunction, prompts: Sequence[Prompt], texts: Sequence[str]) -> Array:
    """Scores (N,); each process scores its own slice.

    Raises: NonFiniteError if a score is NaN or infinite.
    """
    mine = distributed.local_slice(prompts)
    scores = np.concatenate(distributed.all_gather(reward_model([prompt.text for prompt in prompts[mine]], texts[mine])))
    return require_finite_scores(scores, texts, "the reward model")


def standard_error(x: Array) -> float:
    """Standard error of the mean of independent x (n,); NaN for n = 1."""
    return float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else float("nan")
