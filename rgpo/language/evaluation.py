"""Held-out prompts: what proxy and gold judge say of policy and reference there, with the same random numbers every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rgpo import distributed
from rgpo.core.rollout import Array
from rgpo.language.assets import Materials, Prompt, Scorer, require_finite_scores

if TYPE_CHECKING:
    from rgpo.language.policy.generation import Completions

NUM_SHOWN, SHOWN_CHARACTERS = 3, 300  # completions that a run prints at its end


class HeldOut:
    """Examines a policy on the first num_prompts held-out prompts; the completions of num_samples of them are kept as rows."""

    def __init__(self, materials: Materials, num_prompts: int, num_samples: int, seed: int) -> None:
        self.materials, self.num_samples, self.seed = materials, num_samples, seed
        self.prompts = materials.heldout_prompts[:num_prompts]
        self.reference_scores: dict[str, Array] = {}  # by judge
        self.samples: list[dict[str, Any]] = []  # not taken yet
        self.before: list[dict[str, Any]] = []  # the reference's and the policy's last samples, for the summary
        self.after: list[dict[str, Any]] = []

    def evaluate(self, policy: Any) -> dict[str, float]:
        """Proxy and gold scores on held-out prompts, beside the reference's with the same random numbers, and the KL."""
        if not self.reference_scores:
            self.reference_scores, _, self.before = self._examine(policy, reference=True)
        scores, kl, self.after = self._examine(policy, reference=False)
        metrics: dict[str, float] = {}
        for name, score in scores.items():
            change = score - self.reference_scores[name]
            for key, x in ((f"reward/eval_{name}", score), (f"reward/eval_{name}_change", change)):
                metrics |= {(key if key.endswith("change") else f"{key}_mean"): float(x.mean()), f"{key}_se": standard_error(x)}
        return metrics | {"kl/eval_ref_sequence": float(kl.mean()), "kl/eval_ref_sequence_se": standard_error(kl)}

    def _examine(self, policy: Any, reference: bool) -> tuple[dict[str, Array], Array, list[dict[str, Any]]]:
        """Scores by judge and KL, each (num_prompts,), always with the same random numbers, and some rows as samples."""
        import torch

        prompts = self.prompts
        generator = torch.Generator(self.materials.model.device).manual_seed(self.seed)
        completions = policy.generate([prompt.ids for prompt in prompts], generator, reference=reference)
        texts = texts_of(completions, self.materials.tokenizer)
        judges = {"proxy": self.materials.proxy, "gold": self.materials.gold}
        scores = {name: judged(judge, prompts, texts) for name, judge in judges.items() if judge is not None}
        kl = np.zeros(len(prompts)) if reference else policy.completion_kl(completions)
        gold = scores.get("gold", np.full(len(prompts), np.nan))
        lengths = completions.completion_mask_BT.sum(-1).tolist()
        rows = [
            {
                "reference": reference,
                "prompt_id": i,
                "prompt": prompts[i].text,
                "completion": texts[i],
                "proxy": float(scores["proxy"][i]),
                "gold": float(gold[i]),
                "kl_ref": float(kl[i]),
                "length": int(lengths[i]),
                "finished": bool(completions.finished_B[i]),
            }
            for i in range(min(self.num_samples, len(prompts)))
        ]
        self.samples += rows
        return scores, kl, rows

    def summary(self, metrics: dict[str, Any]) -> list[str]:
        """Reward before and after with intervals, the KL, and three completions before and after."""
        if "reward/eval_proxy_mean" not in metrics:
            return []
        lines = []
        for name in self.reference_scores:
            after, se = metrics[f"reward/eval_{name}_mean"], metrics[f"reward/eval_{name}_se"]
            change, change_se = metrics[f"reward/eval_{name}_change"], metrics[f"reward/eval_{name}_change_se"]
            lines.append(
                f"{name} reward on {len(self.prompts)} held-out prompts: {after - change:+.3f} before, "
                f"{after:+.3f} +- {1.96 * se:.3f} after; change {change:+.3f} +- {1.96 * change_se:.3f} (95 %)"
            )
        kl, kl_se = metrics["kl/eval_ref_sequence"], metrics["kl/eval_ref_sequence_se"]
        lines.append(f"KL to the reference {kl:.2f} +- {1.96 * kl_se:.2f} nats a completion")
        for before, after_row in list(zip(self.before, self.after, strict=False))[:NUM_SHOWN]:
            lines.append(f"{before['prompt'][-SHOWN_CHARACTERS:]!r}")
            for when, row in (("before", before), ("after", after_row)):
                scores = f"proxy {row['proxy']:+.2f}" + ("" if np.isnan(row["gold"]) else f", gold {row['gold']:+.2f}")
                lines.append(f"  {when:6} ({scores}): {row['completion'][:SHOWN_CHARACTERS]!r}")
        return lines

    def take_samples(self) -> list[dict[str, Any]]:
        """Rows for samples.parquet since the last call."""
        taken, self.samples = self.samples, []
        return taken

    def state_dict(self) -> dict[str, Any]:
        scores = {name: score.tolist() for name, score in self.reference_scores.items()}
        return {"reference_scores": scores, "before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reference_scores = {name: np.array(score) for name, score in state["reference_scores"].items()}
        self.before = state["before"]


def texts_of(completions: Completions, tokenizer: Any) -> list[str]:
    """Each completion's text, without special tokens."""
    live = completions.completion_mask_BT.bool()
    width = completions.sequence_BS.shape[1] - live.shape[1]
    rows = [row[mask].tolist() for row, mask in zip(completions.sequence_BS[:, width:], live, strict=True)]
    texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return texts


def judged(judge: Scorer, prompts: Sequence[Prompt], texts: Sequence[str]) -> Array:
    """Scores (N,); each process scores its own prompts. NonFiniteError for NaN or an infinite one."""
    mine = distributed.share(prompts)
    scores = np.concatenate(distributed.gather(judge([prompt.text for prompt in prompts[mine]], texts[mine])))
    return require_finite_scores(scores, texts, "the reward model")


def standard_error(x: Array) -> float:
    """Of the mean of independent x (n,)."""
    return float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else float("nan")
