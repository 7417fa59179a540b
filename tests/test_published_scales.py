"""scale=nanorlhf and scale=trlx_hh_1b have the values of the published scripts; scale=paper has those that it names as shared."""

from __future__ import annotations

from typing import Any

import pytest

from rgpo.cli.config import build, compose_jobs
from rgpo.runtime.former import flat_config

# github.com/jackfsuia/nanoRLHF, commit f6c8732, ppo/ppo.py: assignments of Value_Finetune_Config, MyPPOConfig and training_args
NANORLHF: dict[str, Any] = {
    "base_model_name_or_path": "Qwen/Qwen2.5-1.5B-Instruct",
    "train_dataset": "Anthropic/hh-rlhf",  # /data/hh-rlhf, a clone
    "question": "first turn",
    "reward_model_path": "OpenAssistant/reward-model-deberta-v3-large-v2",
    "reward_batch_size": 16,
    "torch_dtype": "bfloat16",
    "lora_r": 64,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "policy_learning_rate": 6e-6,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "num_mini_batches": 16,
    "num_ppo_epochs": 1,
    "total_episodes": 250_000,
    "response_length": 1500,
    "temperature": 0.9,
    "kl_coef": 0.01,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 1,
    "gamma": 1.0,
    "lam": 0.95,
    "advantage_whiten": False,
    "missing_eos_penalty": None,
    "gradient_checkpointing": True,
}
# github.com/CarperAI/trlx, examples/hh: configs/ppo_hh_1B.yml at commit 21ebbf6, ppo_hh.py at f77df53
TRLX: dict[str, Any] = {
    "model_path": "Dahoas/pythia-1B-static-sft",
    "num_layers_unfrozen": 2,
    "dataset": "Dahoas/rm-static",
    "reward_model": "Dahoas/gptj-rm-static",
    "stop_sequences": ["Human:", "human:", "Assistant:", "assistant:"],
    "seq_length": 2048,
    "total_steps": 2500,
    "batch_size": 8,
    "lr": 6e-6,
    "eps": 1e-8,
    "eta_min": 6e-6,
    "num_rollouts": 64,
    "ppo_epochs": 4,
    "init_kl_coef": 0.01,
    "target": 6,
    "gamma": 1,
    "lam": 0.95,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 1,
    "max_new_tokens": 96,
}
PPO = {"gate.eps_low": "cliprange", "gate.eps_high": "cliprange", "update.value_clip": "cliprange_value"}
PPO |= {"update.vf_coef": "vf_coef", "advantage.gamma": "gamma", "advantage.lam": "lam"}


def composed(*words: str) -> dict[str, Any]:
    """Dotted key -> value, with hub ids as the scale names them."""
    return flat_config(compose_jobs(["task=qwen_rlhf", *words], False, None)[0].config)


def test_nanorlhf_is_the_published_script() -> None:
    config, theirs = composed("algo=ppo", "scale=nanorlhf"), NANORLHF
    batch = theirs["per_device_train_batch_size"] * theirs["gradient_accumulation_steps"] * theirs["num_mini_batches"]
    ours = PPO | {
        "task.source.model": "base_model_name_or_path",
        "task.source.data": "train_dataset",
        "task.source.reward_model": "reward_model_path",
        "task.source.reward_batch_size": "reward_batch_size",
        "task.source.dtype": "torch_dtype",
        "task.lora.rank": "lora_r",
        "task.lora.alpha": "lora_alpha",
        "task.lora.target_modules": "lora_target_modules",
        "task.max_new_tokens": "response_length",
        "task.temperature": "temperature",
        "task.missing_eos_penalty": "missing_eos_penalty",
        "task.gradient_checkpointing": "gradient_checkpointing",
        "task.micro_batch_size": "per_device_train_batch_size",
        "update.lr": "policy_learning_rate",
        "update.num_epochs": "num_ppo_epochs",
        "update.num_minibatches": "num_mini_batches",
        "penalty.coef": "kl_coef",
    }
    assert {key: config[key] for key in ours} == {key: theirs[name] for key, name in ours.items()}
    assert config["task.source.first_turn"] is (theirs["question"] == "first turn")
    assert config["advantage.normalize"] == "none" and not theirs["advantage_whiten"]
    assert config["penalty._target_"].endswith("RewardKL") and config["update.max_grad_norm"] is None
    assert config["task.num_prompts"] * config["task.group_size"] == batch == 512
    assert config["num_iterations"] == -(-theirs["total_episodes"] // batch)
    assert set(theirs) == {*ours.values(), *USED_NANORLHF}


USED_NANORLHF = ("question", "advantage_whiten", "gradient_accumulation_steps", "total_episodes", "lora_dropout")


def test_trlx_hh_1b_is_the_published_script() -> None:
    config, theirs = composed("algo=ppo", "scale=trlx_hh_1b"), TRLX
    ours = PPO | {
        "task.source.model": "model_path",
        "task.source.data": "dataset",
        "task.source.reward_model": "reward_model",
        "task.trained_layers": "num_layers_unfrozen",
        "task.stop_strings": "stop_sequences",
        "task.num_prompts": "num_rollouts",
        "task.max_new_tokens": "max_new_tokens",
        "task.micro_batch_size": "batch_size",
        "update.lr": "lr",
        "update.adam_eps": "eps",
        "update.num_epochs": "ppo_epochs",
        "penalty.coef": "init_kl_coef",
    }
    assert {key: config[key] for key in ours} == {key: theirs[name] for key, name in ours.items()}
    assert config["update.anneal_lr"] is (theirs["eta_min"] != theirs["lr"])
    assert config["task.source.max_prompt_tokens"] + config["task.max_new_tokens"] == theirs["seq_length"]
    assert config["task.num_prompts"] / config["update.num_minibatches"] == theirs["batch_size"]
    steps = config["update.num_minibatches"] * config["update.num_epochs"]
    assert config["num_iterations"] == theirs["total_steps"] // steps
    assert config["advantage.normalize"] == "minibatch" and config["update.max_grad_norm"] is None
    adaptive = composed("algo=ppo_kl", "scale=trlx_hh_1b")
    assert adaptive["penalty.coef"] == theirs["init_kl_coef"]
    assert adaptive["penalty.kl_target"] * config["task.max_new_tokens"] == theirs["target"]
    assert set(theirs) == {*ours.values(), "eta_min", "seq_length", "total_steps", "target"}


def test_paper_shares_the_lora_of_nanorlhf_and_the_kl_target_of_trlx() -> None:
    """Its other values are our choice."""
    paper, nanorlhf = (composed("algo=ppo", f"scale={scale}") for scale in ("paper", "nanorlhf"))
    for key in ("task.lora.rank", "task.lora.alpha", "update.lr", "task.source.model"):
        assert paper[key] == nanorlhf[key]
    per_token = composed("algo=rgpo", "scale=paper")["penalty.kl_target"]
    assert 5 < per_token * 200 < 8  # nats per completion; trlx: 6


@pytest.mark.parametrize("algo", ["rgpo", "ppo", "trpo", "grpo", "rloo"])
@pytest.mark.parametrize("scale", ["paper", "nanorlhf", "trlx_hh_1b"])
def test_every_algorithm_builds_at_a_published_scale(algo: str, scale: str) -> None:
    groups = ["task.group_size=8"] if algo in ("grpo", "rloo") else []
    task, algorithm = build(compose_jobs([f"algo={algo}", "task=qwen_rlhf", f"scale={scale}", *groups], False, None)[0].config)
    assert task.batch_size >= 64 and algorithm.describe()
