"""The calculations in docs/scaling.md: memory, time and traffic of a language run, for models of 0.5 to 72 billion parameters.

    python benchmarks/scaling.py             prints the tables of docs/scaling.md
    OMP_NUM_THREADS=1 python benchmarks/scaling.py measure    measures the constants on this machine's CPU

Names: P parameters, L layers, D hidden size, N tokens per step, V vocabulary. 1 GB = 1e9 bytes. Activations are bf16, as are the
frozen weights under LoRA; everything else is float32. Quantities that are assumed rather than measured are in ASSUMED.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen2Config

BF16, FP32 = 2, 4  # bytes
GB = 1e9


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2, from which everything else is computed."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def kv_width(self) -> int:
        """Width of the keys and of the values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def layer_parameters(self) -> int:
        """Parameters of a layer: queries, keys and values with biases, output, the MLP's three matrices, two norms."""
        d, kv = self.hidden, self.kv_width
        return (d * d + d) + 2 * (d * kv + kv) + d * d + 3 * d * self.intermediate + 2 * d

    @property
    def parameters(self) -> int:
        """All parameters; a tied head is counted once."""
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return self.layers * self.layer_parameters + embeddings + self.hidden

    def forward_flops(self, context: float) -> float:
        """Floating-point operations per token in a forward pass: 2 per matrix entry, plus 4 L D per token of context."""
        matrices = self.layers * (self.layer_parameters - 3 * self.hidden - 2 * self.kv_width)
        return 2 * (matrices + self.vocabulary * self.hidden) + 4 * self.layers * self.hidden * context

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV cache per token."""
        return 2 * self.layers * self.kv_width * BF16

    @property
    def saved_bytes(self) -> int:
        """Bytes per token that a layer keeps for its backward pass without checkpointing; ``measure`` verifies this."""
        d, kv, i = self.hidden, self.kv_width, self.intermediate
        norms = 2 * (FP32 * d + FP32 + 2 * BF16 * d)  # float32 input, 1/rms, their product, and the product with the weight
        attention = BF16 * (2 * d + 2 * kv) + FP32 * self.heads  # queries, keys, values, output; logsumexp
        return norms + attention + 4 * BF16 * i  # gate, its silu, up, their product


SHAPES = (  # Qwen2.5's
    Shape("0.5 B", 896, 24, 14, 2, 4864, 151936, True),
    Shape("1.5 B", 1536, 28, 12, 2, 8960, 151936, True),
    Shape("7 B", 3584, 28, 28, 4, 18944, 152064, False),
    Shape("72 B", 8192, 80, 64, 8, 29568, 152064, False),
)


@dataclass(frozen=True)
class Assumed:
    """Assumptions, which we have never measured except for layer_overhead_s."""

    flops: float = 989e12  # bf16 operations per second, from the H100's data sheet
    utilization: float = 0.4  # fraction achieved in training and in processing prompts
    bandwidth: float = 3.35e12  # bytes per second, from the data sheet
    link: float = 4.5e11  # bytes per second and direction between GPUs in a machine
    memory: float = 80e9 * 0.9  # usable bytes
    layer_overhead_s: float = 5e-4  # dispatch time per layer and decoding step in plain PyTorch, on our CPU
    prompt: int = 200  # tokens; HH-RLHF's lengths differ, and the paper's limits are unknown
    completion: int = 256  # tokens
    batch: int = 128  # completions per step
    epochs: int = 4  # passes over the completions


ASSUMED = Assumed()
MICROBATCH = 8 * (ASSUMED.prompt + ASSUMED.completion)  # tokens in the backward pass at the same time


def training_bytes(shape: Shape) -> dict[str, float]:
    """Memory for full fine-tuning: float32 weights, gradients and two moments, autocast's bf16 copies, a float32 reference."""
    p, n = shape.parameters, MICROBATCH
    return {
        "weights": FP32 * p,
        "bf16 copies": BF16 * p,
        "gradients": FP32 * p,
        "Adam": 2 * FP32 * p,
        "reference": FP32 * p,
        "activations": n * (shape.layers * shape.hidden * BF16 + shape.saved_bytes),  # every layer's input, and one full layer
        "KV cache": ASSUMED.batch * (ASSUMED.prompt + ASSUMED.completion) * shape.kv_bytes,
    }


def whole_activations(shape: Shape) -> float:
    """Bytes of activations without checkpointing."""
    return MICROBATCH * shape.layers * shape.saved_bytes


def logits_bytes(shape: Shape) -> float:
    """Bytes of logits with their float32 log-softmax and gradient, which computing in blocks of 2 MiB avoids."""
    return MICROBATCH * shape.vocabulary * (BF16 + 2 * FP32)


def step_seconds(shape: Shape) -> dict[str, float]:
    """GPU seconds per step of ``batch`` completions, by phase; generation in plain PyTorch and, at best, with an engine."""
    a = ASSUMED
    tokens = a.batch * (a.prompt + a.completion)
    forward = tokens * shape.forward_flops((a.prompt + a.completion) / 2) / (a.flops * a.utilization)
    reading = (BF16 * shape.parameters + a.batch * (a.prompt + a.completion / 2) * shape.kv_bytes) / a.bandwidth
    return {
        "generation, plain": a.completion * (reading + shape.layers * a.layer_overhead_s),
        "generation, engine": a.completion * reading,
        "old, reference, reward": 3 * forward,
        "training": a.epochs * 4 * forward,  # forward, recomputed for checkpointing, and backward, which counts twice
    }


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Parameters of LoRA adapters on all matrices of one layer."""
    d, kv, i = shape.hidden, shape.kv_width, shape.intermediate
    return rank * (4 * d + 2 * (d + kv) + 3 * (d + i))


def lora_bytes(shape: Shape, rank: int = 16) -> float:
    """Memory for LoRA: bf16 weights and float32 adapters on every matrix; the reference is the model without its adapters."""
    adapters = shape.layers * adapter_parameters(shape, rank)
    held = training_bytes(shape)
    return BF16 * shape.parameters + 4 * FP32 * adapters + held["activations"] + held["KV cache"]


def gpus(shape: Shape) -> int:
    """Number of 80 GB GPUs, doubled until full fine-tuning fits with FSDP, which shards all but activations and KV cache."""
    held = training_bytes(shape)
    own = held.pop("activations") + held.pop("KV cache") / 4  # generation can be split into four parts
    count = 1
    while sum(held.values()) / count + own > ASSUMED.memory:
        count *= 2
    return count


def fsdp_bytes(shape: Shape, count: int) -> float:
    """Bytes that one GPU receives in a forward and backward pass: all weights twice, its share of all gradients once."""
    return 3 * BF16 * shape.parameters * (count - 1) / count


def pass_seconds(shape: Shape) -> float:
    """Seconds of compute for a forward and backward pass over a microbatch, with recomputation of the layers."""
    context = (ASSUMED.prompt + ASSUMED.completion) / 2
    return 4 * MICROBATCH * shape.forward_flops(context) / (ASSUMED.flops * ASSUMED.utilization)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a markdown table."""
    header = list(header)
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *map(list, rows))]


def tables() -> list[list[str]]:
    """The tables of memory, time and traffic in docs/scaling.md."""
    memory, seconds, traffic = [], [], []
    for shape in SHAPES:
        own = [f"{value / GB:,.1f}" for value in training_bytes(shape).values()]
        others = [f"{value(shape) / GB:,.1f}" for value in (whole_activations, logits_bytes, lora_bytes)]
        memory.append([shape.name, f"{shape.parameters / 1e9:.3f}", *own, str(gpus(shape)), *others])
        took = step_seconds(shape)
        share = took["generation, plain"] / (sum(took.values()) - took["generation, engine"])
        seconds.append([shape.name, *(f"{value:,.1f}" for value in took.values()), f"{share:.0%}"])
        count = max(8, gpus(shape))
        moved = fsdp_bytes(shape, count)
        traffic.append(
            [shape.name, str(count), f"{moved / GB:,.1f}", f"{moved / ASSUMED.link:,.2f}", f"{pass_seconds(shape):,.2f}"]
        )
    kinds = list(training_bytes(SHAPES[0]))
    return [
        table(["model", "P / 1e9", *kinds, "GPUs", "activations kept", "logits kept", "LoRA in all"], memory),
        table(["model", *step_seconds(SHAPES[0]), "plain generation's share"], seconds),
        table(["model", "GPUs", "GB received a pass", "s at 450 GB/s", "s of compute"], traffic),
    ]


def paper_gpu_hours(prompts: int = 43_835, seeds: int = 3) -> dict[str, float]:
    """H100 hours for one pass over the paper's prompts with its 1.5 B model, one completion per prompt, all seeds."""
    took = step_seconds(SHAPES[1])
    shared = took["old, reference, reward"] + took["training"]
    hours = prompts / ASSUMED.batch * seeds / 3600
    return {kind: hours * (took[f"generation, {kind}"] + shared) for kind in ("plain", "engine")}


def as_config(shape: Shape, layers: int, vocabulary: int) -> Qwen2Config:
    """The shape as a transformers config."""
    from transformers import Qwen2Config

    sizes = {"hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": layers}
    heads = {"num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads}
    return Qwen2Config(vocab_size=vocabulary, **sizes, **heads, tie_word_embeddings=shape.tied)


def count_saved_bytes(shape: Shape, tokens: int) -> float:
    """Bytes per token that one additional layer keeps for the backward pass: distinct storages, without parameters."""
    import torch
    from transformers import Qwen2Model

    totals = []
    for layers in (1, 2):
        model = Qwen2Model(as_config(shape, layers, 16)).bfloat16()
        known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(torch.zeros(1, tokens, dtype=torch.long), use_cache=False).last_hidden_state
        totals.append(sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in known))
        del out
    return (totals[1] - totals[0]) / tokens


def measure() -> None:
    """Measure on this machine's CPU: saved bytes per layer for each size, and step times for models of increasing size."""
    import torch
    from transformers import Qwen2ForCausalLM

    from rgpo.language.policy.generation import generate
    from rgpo.language.policy.stopping import StopRule

    print("saved bytes of a layer and token, counted and by the formula (64 tokens)")
    for shape in SHAPES[:3]:
        print(f"  {shape.name}: {count_saved_bytes(shape, 64):,.0f} and {shape.saved_bytes:,}", flush=True)

    print("a training step of 2,048 tokens and a decoding step of 8 rows, one thread, float32")
    for hidden, layers in ((128, 4), (256, 4), (512, 4), (512, 8)):
        shape = Shape("", hidden, layers, hidden // 32, hidden // 64, 4 * hidden, 4096, True)
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(as_config(shape, layers, shape.vocabulary))
        ids = torch.randint(4096, (8, 256))
        training, decoding = [], []
        for _ in range(3):
            start = time.process_time()
            model(ids, labels=ids).loss.backward()
            training.append(time.process_time() - start)
            start = time.process_time()
            kind = {"temperature": 1.0, "stop": StopRule(frozenset()), "pad_id": 0, "generator": torch.Generator()}
            generate(model, ids[:, :1].tolist(), max_new_tokens=33, **kind)
            decoding.append((time.process_time() - start) / 33)
        flops = 3 * ids.numel() * shape.forward_flops(128)
        text = f"{flops / min(training) / 1e9:.0f} GFLOP/s in training, {1e3 * min(decoding):.1f} ms per decoding step"
        print(f"  {shape.parameters / 1e6:.1f} M, {layers} layers: {min(training):.2f} s, {text}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        measure()
    else:
        print("\n\n".join("\n".join(lines) for lines in tables()))
        print("\nGPU hours of the paper's run:", {key: round(value, 1) for key, value in paper_gpu_hours().items()})
