"""A verifier as the reward: a small model that guesses sums learns to compute them, in under a minute on one core.

    python docs/examples/arithmetic.py

The model is pretrained on sums of which most have a wrong answer, then trained with GRPO on whether its answer is right.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

PROMPTS = {f"{a}+{b}=": str(a + b) for a in range(10) for b in range(10)}
CHARACTERS = ["<eos>", "<pad>", *"0123456789+="]
SHARE = 0.3  # share of right answers in pretraining


def correct(completions: list[str], answer: list[str]) -> list[float]:
    """The reward: 1 for the right sum; answer is a column of the data."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def write_model(folder: Path, num_steps: int = 300) -> None:
    """Pretrain a Qwen2 of 0.1 M parameters on sums with mostly random answers, and save it with its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    ids = {character: i for i, character in enumerate(CHARACTERS)}
    characters = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="<eos>", pad_token="<pad>")  # noqa: S106
    torch.manual_seed(0)
    rng = random.Random(0)  # noqa: S311
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=16, num_key_value_heads=4, max_position_embeddings=16, **sizes, **special))
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(num_steps):
        answers = [sum_ if rng.random() < SHARE else str(rng.randrange(19)) for sum_ in PROMPTS.values()]
        texts = [f"{prompt}{answer}<eos>" for prompt, answer in zip(PROMPTS, answers, strict=True)]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, :4] = -100  # the prompt
        adam.zero_grad()
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        adam.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(folder: Path) -> None:
    """Write model and data into the folder, and train there."""
    write_model(folder / "model")
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in PROMPTS.items()]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "arithmetic.py").write_text(Path(__file__).read_text())  # a reward is found from the current folder
    words = ["task=qwen_rlhf", "scale=paper", "algo=grpo", "task.reward=arithmetic.py:correct", "task.source.model=model"]
    words += ["task.source.data=sums.jsonl", "task.source.heldout_share=0.2", "task.source.dtype=float32", "task.lora=null"]
    words += ["task.num_prompts=32", "task.group_size=8", "task.max_new_tokens=3", "task.num_eval_prompts=16", "update.lr=1e-3"]
    words += ["task.micro_batch_size=256", "task.gradient_checkpointing=false", "num_iterations=60", "eval_every=20"]
    subprocess.run([sys.executable, "-m", "rgpo.cli.run", *words], cwd=folder, check=True)  # noqa: S603


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "arithmetic")
    place.mkdir(parents=True, exist_ok=True)
    main(place)
