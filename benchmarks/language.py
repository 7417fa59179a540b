"""GRPO on the same tiny Qwen2, ours beside TRL's GRPOTrainer: tokens per CPU-second, time per phase, peak memory.

    pip install -e ".[llm,bench]"
    python benchmarks/language.py [rounds] [out.parquet]

Both sides: one thread, the same weights, prompts and reward function, 8 prompts x 4 completions of at most 32 tokens, 2 passes
over each batch in one minibatch, clip 0.2, group-relative advantages, KL to the reference 0.04 (k3), Adam. Contestants are
interleaved, each in a fresh process; CPU seconds and tokens are counted after WARM_UP iterations. Tokens are prompt + completion
tokens, once an iteration, however often they are read.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS, GROUP, NEW, PROMPT_WORDS, EPOCHS, WARM_UP, ITERATIONS = 8, 4, 32, 8, 2, 3, 23
VOCABULARY, KL_COEF, LR = 1024, 0.04, 1e-3


def write_model(folder: Path) -> None:
    """About 150 thousand random parameters, and a byte-level BPE tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rgpo.tasks.embedded.training import save_tokenizer, train_tokenizer

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    save_tokenizer(train_tokenizer([" ".join(f"w{i}" for i in range(2000))], VOCABULARY), folder, appends_eos=False)


def prompts() -> list[str]:
    """64 prompts of a few words."""
    return [" ".join(f"w{(31 * i + 7 * j) % 2000}" for j in range(PROMPT_WORDS)) for i in range(64)]


def score(completion: str) -> float:
    """Share of even digits among its characters."""
    return sum(character in "02468" for character in completion) / max(len(completion), 1)


def ours(folder: Path) -> dict[str, float]:
    """Seconds by phase of ITERATIONS - WARM_UP iterations."""
    import numpy as np
    import torch

    from rgpo import gates
    from rgpo.algorithm import Algorithm
    from rgpo.language_advantages import GroupRelative
    from rgpo.objective import Detached
    from rgpo.penalties import FixedPenalty
    from rgpo.policies.pretrained import load_causal_lm
    from rgpo.policies.samplers import Own
    from rgpo.tasks.language import Language
    from rgpo.tasks.materials import Materials, Prompt
    from rgpo.updates.sgd import SGD

    torch.set_num_threads(1)

    class Source:
        def check(self) -> None:
            """Nothing to look up."""

        def load(self, say: Any) -> Materials:
            model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
            texts = [Prompt(text, tokenizer(text)["input_ids"]) for text in prompts()]
            return Materials(model, tokenizer, 1, 0, texts, texts, 0, lambda _, drawn: np.array([score(c) for c in drawn]), None)

    settings: dict[str, Any] = {
        "lora": None,
        "num_prompts": PROMPTS,
        "group_size": GROUP,
        "max_new_tokens": NEW,
        "ratio": "token",
    }
    settings |= {"temperature": 1.0, "reduction": "sequence_mean", "micro_batch_size": 32, "num_kl_tokens": 128, "staleness": 0}
    task = Language(
        source=Source(),
        sampler=Own(),
        parallel="ddp",
        **settings,
        gradient_checkpointing=False,
        num_eval_prompts=1,
        num_samples=0,
    )
    update = SGD(num_epochs=EPOCHS, num_minibatches=1, lr=LR, anneal_lr=False, adam_eps=1e-8, max_grad_norm=1.0)
    algorithm = Algorithm(
        gate=gates.Clip(),
        ref_gate=gates.Open(),
        dual=Detached(),
        advantage=GroupRelative(),
        penalty=FixedPenalty(coef=KL_COEF),
        update=update,
        kl_spike_threshold=0.04,
    )
    task.admit(algorithm)
    task.setup(0, 1.0)
    policy = task.make_policy(0)
    algorithm.setup(policy, ITERATIONS, 0)
    phases: dict[str, float] = {}
    tokens, start = 0, 0.0
    for i in range(ITERATIONS):
        if i == WARM_UP:
            start = time.process_time()
        rollout = task.collect(policy)
        metrics = rollout.metrics | algorithm.learn(policy, rollout, False)
        if i >= WARM_UP:
            tokens += int(metrics["language/num_tokens"] + metrics["language/num_prompt_tokens"])
            for key in metrics:
                if key.startswith("time/"):
                    phases[key] = phases.get(key, 0.0) + metrics[key]
    return {"cpu_s": time.process_time() - start, "tokens": tokens, **phases}


def trl(folder: Path) -> dict[str, float]:
    """The same with TRL's GRPOTrainer."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    clock: dict[str, float] = {}
    counted: list[int] = []

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        counted.append(sum(map(len, completion_ids)) + sum(len(tokenizer(prompt)["input_ids"]) for prompt in prompts))
        return [score(completion) for completion in completions]

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP * EPOCHS:
                clock["start"] = time.process_time()
            if state.global_step == ITERATIONS * EPOCHS:
                clock["end"] = time.process_time()

    arguments = GRPOConfig(
        output_dir=str(folder.parent / "trl"),
        per_device_train_batch_size=PROMPTS * GROUP,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=GROUP,
        num_iterations=EPOCHS,
        max_steps=ITERATIONS * EPOCHS,
        max_completion_length=NEW,
        loss_type="grpo",
        beta=KL_COEF,
        epsilon=0.2,
        temperature=1.0,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts()}),
        reward_funcs=reward,
        callbacks=[Watch()],
    )
    trainer.train()
    return {"cpu_s": clock["end"] - clock["start"], "tokens": sum(counted[WARM_UP:ITERATIONS])}


def main() -> None:
    """Interleave the contestants and print medians and ratios."""
    if len(sys.argv) > 2 and sys.argv[1] == "--one":
        found = {"ours": ours, "trl": trl}[sys.argv[2]](Path(sys.argv[3]))
        found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print("RESULT " + json.dumps(found))
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model")
        for i in range(rounds):
            for name in ("ours", "trl") if i % 2 == 0 else ("trl", "ours"):
                command = [sys.executable, __file__, "--one", name, str(Path(folder) / "model")]
                done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if not lines:
                    sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
                found = json.loads(lines[0].removeprefix("RESULT "))
                speed = found["tokens"] / found["cpu_s"]
                rows.append({"round": i, "contestant": name, "tokens_per_cpu_s": speed, **found})
                print(f"round {i} {name:5} {speed:8,.0f} tokens per CPU-s, {found['peak_rss_mib']:.0f} MiB", flush=True)
    ratios = [a["tokens_per_cpu_s"] / b["tokens_per_cpu_s"] for a, b in zip(by(rows, "ours"), by(rows, "trl"), strict=True)]
    for name in ("ours", "trl"):
        print(f"{name:5} median {statistics.median(r['tokens_per_cpu_s'] for r in by(rows, name)):,.0f} tokens per CPU-s")
    print(f"ratio median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    if len(sys.argv) > 2:
        import pandas as pd

        pd.DataFrame(rows).to_parquet(sys.argv[2])


def by(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """A contestant's rows in the order of the rounds."""
    return sorted((row for row in rows if row["contestant"] == name), key=lambda row: row["round"])


if __name__ == "__main__":
    main()
