"""Share of a TRL step taken by our gate and diagnostics, with the tests' tiny model on one thread.

    pip install 'rgpo[engines]'
    python benchmarks/engine_overhead.py [steps]

A step is one optimizer step of GatedGRPOTrainer with num_iterations=2 (16 completions of 16 tokens), including generation. "Gate"
is the computation of token losses from log-probabilities; diagnostics are computed once per optimizer step.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import trl

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_trl

from rgpo.engines.parts import GateParts
from rgpo.engines.trl import GatedGRPOTrainer


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Wrap a function so that the time of each call is appended to ``seconds``."""

    def call(*args: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **named)
        finally:
            seconds.append(time.perf_counter() - start)

    return call


def main(steps: int = 40) -> None:
    torch.set_num_threads(1)
    settings = tiny_trl.PINNED | {"max_completion_length": 16, "loss_type": "grpo", "max_steps": steps, "logging_steps": steps}
    gate, diagnostics = [], []
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = GatedGRPOTrainer(
            tiny_trl.save_model(Path(folder) / "model"),
            tiny_trl.reward,
            trl.GRPOConfig(folder, **settings),
            train_dataset=tiny_trl.prompts(),
            processing_class=tiny_trl.tokenizer(),
            parts="gate=sigmoid",
        )
        trainer._measure = timed(trainer._measure, diagnostics)
        with mock.patch.object(GateParts, "losses", timed(GateParts.losses, gate)):
            start = time.perf_counter()
            trainer.train()
            step = (time.perf_counter() - start) / steps
    for name, seconds in (("gate", gate), ("diagnostics", diagnostics)):
        own = sum(seconds) / steps
        print(f"{name}: {own * 1e3:.2f} ms of {step * 1e3:.0f} ms per step, {own / step:.2%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
