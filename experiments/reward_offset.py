"""The gain in mean reward when a constant is added to the reward; takes 3 minutes on one core.

    python -m experiments.reward_offset [ALGO ...]

The model is a Qwen2 with 2 layers, 32 hidden units and random weights; the reward is half the number of letters a plus the
constant. Prints a markdown table: for each algorithm and constant, mean reward of the last five iterations minus that of the
first five.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ALGOS = ("rgpo", "ppo", "trpo", "awr", "reinforce", "grpo")
OFFSETS = (0, 20)
REWARDS = "".join(
    f"def letters_{c}(completions):\n    return [text.count('a') / 2 + {c} for text in completions]\n\n\n" for c in OFFSETS
)
WORDS = "task=qwen_rlhf scale=paper num_iterations=60 eval_every=60 seed=1 task.source.model=model task.source.data=prompts.jsonl"
WORDS += " task.source.heldout_share=0.3 task.source.dtype=float32 task.source.device=cpu task.lora=null task.num_prompts=8"
WORDS += " task.group_size=4 task.max_new_tokens=12 task.num_eval_prompts=4 task.num_samples=1 task.gradient_checkpointing=false"


def write_model(folder: Path) -> None:
    """Write a model in Hugging Face's format with random weights from seed 0."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rgpo.language.sources.embedded.training import save_tokenizer, train_tokenizer

    tokenizer = train_tokenizer(["what is a cat? a cat is an animal."], 300)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 256}
    torch.manual_seed(0)
    config = Qwen2Config(**sizes, initializer_range=0.2, bos_token_id=None, pad_token_id=0, eos_token_id=1)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, appends_eos=False)


def gain(algo: str, offset: int) -> float:
    """Mean reward of the last five iterations minus that of the first five; runs in the current directory."""
    import rgpo

    rate = [] if algo == "trpo" else ["update.lr=1e-3"]
    with contextlib.redirect_stdout(io.StringIO()):
        run = rgpo.run(*WORDS.split(), f"algo={algo}", *rate, f"task.reward=my_rewards.py:letters_{offset}")
    reward = run.metrics["reward/train_mean"]
    return float(reward.tail(5).mean() - reward.head(5).mean())


def main(algos: Sequence[str]) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_model(Path("model"))
        Path("my_rewards.py").write_text(REWARDS)
        Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"what is {i}?"}) + "\n" for i in range(60)))
        print("| |", " | ".join(f"+{offset}" for offset in OFFSETS), "|")
        print("|---|" + "---|" * len(OFFSETS))
        for algo in algos:
            print(f"| `{algo}` |", " | ".join(f"{gain(algo, offset):.3f}" for offset in OFFSETS), "|", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:] or ALGOS)
