"""Losses, gradients and advantages of TRL's trainers on fixed batches, for tests/test_trl_parity.py and tests/test_dpo.py.

    pip install torch==2.13.0 trl==1.16.0 transformers==5.23.0 peft accelerate datasets
    python benchmarks/trl_fixtures.py tests/fixtures/trl_losses.json tests/fixtures/trl_dpo.json

GRPOTrainer._compute_loss itself is called, with its per-token log-probabilities replaced by a float64 leaf, so that the gradient
with respect to them can be read; their values come from a random Qwen2 through the trainer's own method. The old ones are these
plus noise, and every second sequence's noise is centered within 6e-4 nats, so that both sides of GSPO's narrow band are covered.
Advantages come from the trainers' own _generate_and_score_completions with fixed rewards; the second group's are all equal.
Legend: B = 16 sequences (4 prompts x 4 completions), P = 5 prompt tokens, T = 12 completion tokens, right-padded; nats.

DPOTrainer.compute_loss is called in float64 on a Qwen2 with a few hundred parameters; these are recorded with those of the
reference, together with the gradient with respect to all parameters.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_trl

B, GROUP, P, T, V = 16, 4, 5, 12, 64
PROMPTS = tiny_trl.PROMPTS
REWARD = [1.0, 0.0, 0.25, -0.5, 0.1, 0.1, 0.1, 0.1, 2.0, -1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 1.0]
COMMON = {  # shared by both trainers: every value that affects a loss is pinned
    "per_device_train_batch_size": B,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "num_generations": GROUP,
    "num_iterations": 2,
    "max_completion_length": T,
    "mask_truncated_completions": False,
    "temperature": 1.0,
    "beta": 0.0,
    "epsilon": 0.2,
    "epsilon_high": None,
    "disable_dropout": True,
    "report_to": "none",
    "seed": 0,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}
GRPO = COMMON | {
    "delta": None,
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "scale_rewards": "group",
    "multi_objective_aggregation": "sum_then_normalize",
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "off_policy_mask_threshold": None,
    "use_bias_correction_kl": False,
    "use_vllm": False,
}
RLOO = COMMON | {"normalize_advantages": False, "reward_clip_range": None}
CONSTANTS = ["loss_type", "importance_sampling_level", "beta", "epsilon", "epsilon_high", "delta"]
CONSTANTS += ["sapo_temperature_pos", "sapo_temperature_neg"]
CASES: dict[str, dict[str, Any]] = {  # changes relative to GRPO
    "grpo": {},
    "grpo_kl": {"beta": 0.04},
    "grpo_delta": {"delta": 1.5},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "sapo": {"loss_type": "sapo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 3.0},
    "gspo": {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "gspo_kl": {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4, "beta": 0.04},
}

DPO_MODEL = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SHARED = ("gradient_accumulation_steps", "disable_dropout", "report_to", "seed", "use_cpu", "bf16", "gradient_checkpointing")
DPO = {key: COMMON[key] for key in SHARED} | {  # every value that affects the loss is pinned
    "per_device_train_batch_size": 5,
    "beta": 0.2,
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "ld_alpha": None,
    "use_weighting": False,
    "precompute_ref_log_probs": False,
    "sync_ref_model": False,
    "max_length": None,
    "padding_free": False,
}
PAIRS = [  # prompt, chosen, rejected; two pairs share a prompt, and one answer is cut before its end token
    ([3, 4, 5], [6, 7, 1], [8, 1]),
    ([9], [10, 11, 12, 13, 1], [14, 15, 3, 1]),
    ([3, 4, 5], [9, 9, 1], [10, 11, 12, 13, 14, 15]),
    ([2, 2, 6, 7, 8], [1], [4, 5, 1]),
    ([12, 13], [14, 2, 1], [14, 3, 1]),
]


def save_model(folder: str) -> None:
    """Save a random Qwen2 whose distributions are far from uniform."""
    tiny_trl.model(V, hidden=32, intermediate=64, layers=2, context=64).save_pretrained(folder)


def make_trainer(kind: str, folder: str, **change: Any) -> Any:
    """A GRPO or RLOO trainer for the saved model, with every value that affects the loss pinned."""
    trainer_class, config_class = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    settings = (GRPO if kind == "GRPO" else RLOO) | change
    trainer = trainer_class(
        model=folder,
        reward_funcs=lambda completions, **_: REWARD[: len(completions)],
        args=config_class(output_dir=f"{folder}/out", **settings),
        train_dataset=datasets.Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tiny_trl.tokenizer(V),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def advantages(trainer: Any) -> torch.Tensor:
    """The trainer's advantages for REWARD, (B,) float64."""
    inputs = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]
    scored: dict[str, torch.Tensor] = trainer._generate_and_score_completions(inputs)
    return scored["advantages"].double()


def make_batch(trainer: Any, advantage_B: torch.Tensor) -> dict[str, torch.Tensor]:
    """The trainer's inputs for a fixed ragged batch, plus the new log-probabilities under "logp_new"; float64."""
    generator = torch.Generator().manual_seed(1)
    length_B = torch.randint(3, T + 1, (B,), generator=generator)
    length_B[0], length_B[-1] = T, 1
    mask_BT = (torch.arange(T) < length_B[:, None]).long()
    prompt_BP = torch.randint(3, V, (B // GROUP, P), generator=generator).repeat_interleave(GROUP, 0)
    completion_BT = torch.randint(3, V, (B, T), generator=generator) * mask_BT
    with torch.no_grad():
        logp_new_BT, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([prompt_BP, completion_BT], 1),
            torch.cat([torch.ones_like(prompt_BP), mask_BT], 1),
            T,
        )
    logp_new_BT = (logp_new_BT.double() * mask_BT).round(decimals=9)
    noise_BT, ref_noise_BT = torch.randn((2, B, T), generator=generator, dtype=torch.float64) * mask_BT * 0.6
    centered_BT = noise_BT - noise_BT.sum(1, keepdim=True) / length_B[:, None]
    offset_B1 = (torch.rand((B, 1), generator=generator, dtype=torch.float64) - 0.5) * 1.2e-3
    noise_BT[::2] = ((centered_BT + offset_B1) * mask_BT)[::2]
    return {
        "prompt_ids": prompt_BP,
        "prompt_mask": torch.ones_like(prompt_BP),
        "completion_ids": completion_BT,
        "completion_mask": mask_BT,
        "advantages": advantage_B,
        "num_items_in_batch": mask_BT.sum(),
        "logp_new": logp_new_BT,
        "old_per_token_logps": (logp_new_BT - noise_BT).round(decimals=9),
        "ref_per_token_logps": (logp_new_BT - ref_noise_BT).round(decimals=9),
    }


def loss_and_gradient(trainer: Any, batch: dict[str, torch.Tensor]) -> tuple[float, list[list[float]]]:
    """The trainer's loss and its gradient with respect to the per-token log-probabilities (B, T)."""
    leaf_BT = batch["logp_new"].clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (leaf_BT, torch.zeros_like(leaf_BT), None)
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    assert leaf_BT.grad is not None
    return loss.item(), leaf_BT.grad.tolist()


def dpo_model(seed: int) -> Any:
    """A random Qwen2 in float64 with parameters rounded to 4 decimals."""
    torch.manual_seed(seed)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**DPO_MODEL)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.round(decimals=4))
    return model


def dpo_record() -> dict[str, Any]:
    """DPOTrainer's loss on PAIRS with its gradient, log-probability sums and logged values, and the inputs that give them."""
    policy, reference = dpo_model(1), dpo_model(2)
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = trl.DPOTrainer(
            model=policy,
            ref_model=reference,
            args=trl.DPOConfig(output_dir=folder, **DPO),
            train_dataset=datasets.Dataset.from_dict({"prompt": ["w3"], "chosen": [" w4 w1"], "rejected": [" w5 w1"]}),
            processing_class=tiny_trl.tokenizer(V),
        )
    trainer.model.train()
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    batch = trainer.data_collator([dict(zip(names, pair, strict=True)) for pair in PAIRS])
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    sums = [x.tolist() for model in (policy, reference) for x in trainer.compute_ref_log_probs(model, batch)]
    return {
        "pinned": DPO,
        "model": DPO_MODEL,
        "policy": {name: p.tolist() for name, p in policy.named_parameters()},
        "reference": {name: p.tolist() for name, p in reference.named_parameters()},
        "pairs": PAIRS,
        "loss": loss.item(),
        "gradient": {name: p.grad.tolist() for name, p in policy.named_parameters()},
        "logp": dict(zip(("chosen", "rejected", "ref_chosen", "ref_rejected"), sums, strict=True)),
        "logged": {key: values[-1] for key, values in trainer._metrics["train"].items() if key.startswith("rewards/")},
    }


def versions() -> dict[str, str]:
    """Versions of the packages that computed the numbers."""
    packages = {"trl": trl, "transformers": transformers, "torch": torch}
    return {name: module.__version__.split("+")[0] for name, module in packages.items()}


def main(path: str, dpo_path: str) -> None:
    torch.set_num_threads(1)
    Path(dpo_path).write_text(json.dumps({"versions": versions()} | dpo_record()) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        by_scale = {s: advantages(make_trainer("GRPO", folder, scale_rewards=s)) for s in ("group", "batch", "none")}
        leave_one_out = advantages(make_trainer("RLOO", folder))
        batch = make_batch(make_trainer("GRPO", folder), by_scale["group"])
        cases = {}
        for name, change in CASES.items():
            trainer = make_trainer("GRPO", folder, **change)
            loss, gradient = loss_and_gradient(trainer, batch)
            cases[name] = {"constants": {key: (GRPO | change)[key] for key in CONSTANTS}, "loss": loss, "gradient": gradient}
    found = {
        "versions": versions(),
        "pinned": GRPO,
        "group_size": GROUP,
        "max_completion_length": T,
        "reward": REWARD,
        "advantage": {f"grpo_{s}": a.tolist() for s, a in by_scale.items()} | {"rloo": leave_one_out.tolist()},
        "mask": batch["completion_mask"].tolist(),
        "logp_new": batch["logp_new"].tolist(),
        "logp_old": batch["old_per_token_logps"].tolist(),
        "logp_ref": batch["ref_per_token_logps"].tolist(),
        "cases": cases,
    }
    Path(path).write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
