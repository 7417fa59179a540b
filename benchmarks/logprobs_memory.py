"""Additional peak memory and CPU time of token log-probabilities, forward and backward, each in a fresh process (Linux).

    OMP_NUM_THREADS=1 python benchmarks/logprobs_memory.py [--tokens 1024 --vocabulary 151936 --hidden 256 --repeats 3]

Additional memory is the process's peak resident memory (VmHWM, reset just before) minus its resident memory before the forward
pass: hidden states, head and targets are excluded; everything computed from them, including gradients, counts. "without
lm_head.weight.grad" subtracts that array where the head is trained. Heads: nn.Linear, trained or frozen; peft's LoRA (r=8) over
a frozen one; and a frozen one inside a module that is not known to be linear. Medians over runs; MB = 10^6 bytes.
Errors are relative to log_softmax: the largest ||x - plain|| / ||plain|| over log-probabilities and gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from rgpo.language.policy.logprobs import token_statistics

Method = Callable[[Tensor, nn.Module, Tensor], Tensor]


def log_softmax(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    logp: Tensor = torch.log_softmax(head(hidden), -1)
    return logp.gather(-1, targets[:, None]).squeeze(-1)


def gather_logsumexp(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    logits: Tensor = head(hidden)
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


def ours(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    return token_statistics(hidden, head, targets).logp_N


def ours_entropy(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    logp, entropy = token_statistics(hidden, head, targets)
    return logp + 0 * entropy  # runs the entropy's backward pass without changing the gradient


METHODS: dict[str, Method] = {
    "log_softmax": log_softmax,
    "gather - logsumexp": gather_logsumexp,
    "token_statistics": ours,
    "token_statistics, entropy too": ours_entropy,
}
HEADS = ("trained", "frozen", "lora", "callable")


def make_head(kind: str, hidden: int, vocabulary: int) -> nn.Module:
    linear = nn.Linear(hidden, vocabulary, bias=False).requires_grad_(kind == "trained")
    if kind == "callable":
        return nn.Sequential(linear)
    if kind != "lora":
        return linear
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules=["0"], init_lora_weights=False)
    return get_peft_model(nn.Sequential(linear), config).get_submodule("base_model.model.0")


def status(key: str) -> int:
    """VmHWM or VmRSS of this process, bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def child(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    method = METHODS[arguments.method]
    head = make_head(arguments.head, arguments.hidden, arguments.vocabulary)
    hidden = torch.randn(arguments.tokens, arguments.hidden, requires_grad=True)
    targets = torch.randint(arguments.vocabulary, (arguments.tokens,))
    slope = torch.randn(arguments.tokens)
    small = nn.Linear(arguments.hidden, 97)
    torch.autograd.backward(method(hidden, small, targets % 97) @ slope)  # warm-up, to load the kernels
    hidden.grad = None
    Path("/proc/self/clear_refs").write_text("5")
    before, start = status("VmRSS"), time.process_time()
    logp = method(hidden, head, targets)
    torch.autograd.backward(logp @ slope)
    seconds, extra = time.process_time() - start, status("VmHWM") - before
    grads = {name: x.grad for name, x in head.named_parameters() if x.grad is not None}
    torch.save({"logp": logp.detach(), "hidden": hidden.grad, **grads}, arguments.out)
    weight = sum(4 * x.numel() for name, x in grads.items() if "lora" not in name)
    print(json.dumps({"extra": extra / 1e6, "weight_grad": weight / 1e6, "seconds": seconds}))


def measure(arguments: argparse.Namespace, method: str, head: str, out: Path) -> dict[str, float]:
    sizes = [x for key in ("tokens", "vocabulary", "hidden") for x in (f"--{key}", str(getattr(arguments, key)))]
    command = [sys.executable, __file__, *sizes, "--method", method, "--head", head, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    result: dict[str, float] = json.loads(output)
    return result


def error(out: Path, reference: Path) -> float:
    """The largest relative error (Euclidean norms) over log-probabilities and every gradient."""
    found, wanted = torch.load(out, mmap=True), torch.load(reference, mmap=True)
    return max(float((found[k] - wanted[k]).norm() / wanted[k].norm()) for k in wanted)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("tokens", 1024), ("vocabulary", 151_936), ("hidden", 256), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--method", choices=list(METHODS))
    parser.add_argument("--head", choices=HEADS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.method:
        child(arguments)
    else:
        table(arguments)


def table(arguments: argparse.Namespace) -> None:
    print("| head | method | extra peak, MB | without lm_head.weight.grad, MB | CPU s | relative error |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for head in HEADS:
            for method in METHODS:
                out, reference = Path(folder, "out"), Path(folder, "reference")
                out = reference if method == "log_softmax" else out
                runs = [measure(arguments, method, head, out) for _ in range(arguments.repeats)]
                extra, grad, seconds = (statistics.median(r[k] for r in runs) for k in ("extra", "weight_grad", "seconds"))
                numbers = f"{extra:.0f} | {extra - grad:.0f} | {seconds:.2f} | {error(out, reference):.1e}"
                print(f"| {head} | {method} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
