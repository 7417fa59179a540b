"""GRPO on the same model, ours compared with TRL's GRPOTrainer: tokens per CPU-second, time per phase, peak memory.

    pip install -e ".[llm,bench]"
    python benchmarks/language.py [rounds] [out.parquet] [case ...]

Cases: tiny_TxG, a random Qwen2 with 0.15 M parameters, all trained, with completions of at most T = 32, 128 or 512 tokens in
groups of G = 4, 16 or 32; prompt_G, the same model with prompts longer than its completions of 32 tokens; smollm2 and
smollm2_256, SmolLM2-135M-Instruct from rgpo's cache with LoRA and 32 or 256 tokens. Rows of other cases in out.parquet are kept.
Both sides use one thread, float32, the same weights, prompts, reward function and adapters, 2 passes over each batch in one
minibatch, clip 0.2, group-relative advantages, a KL penalty to the reference of 0.04 (k3), and Adam; ours includes diagnostics.
Contestants are interleaved, each in a fresh process; CPU seconds and tokens are counted after a warm-up. Tokens are prompt plus
completion tokens, counted once per iteration, no matter how often they are processed.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from language_cases import CASES, Case, find_model, score

ROUNDS, EPOCHS, KL_COEF = 5, 2, 0.04


def ours(case: Case, folder: Path) -> dict[str, float]:
    """CPU seconds, tokens and wall seconds per phase of the iterations after the warm-up."""
    import numpy as np
    import torch

    from rgpo.cli.config import build, compose_jobs
    from rgpo.language.assets import LanguageAssets, Log, Prompt
    from rgpo.language.policy.pretrained import load_causal_lm
    from rgpo.language.task import LoRA

    torch.set_num_threads(1)

    class Loader:
        def check(self) -> None:
            """Nothing to check."""

        def load(self, log: Log) -> LanguageAssets:
            model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
            prompts = [Prompt(text, tokenizer(text)["input_ids"]) for text in case.prompts]
            return LanguageAssets(
                model=model,
                tokenizer=tokenizer,
                eos_id=tokenizer.eos_token_id,
                pad_id=tokenizer.pad_token_id,
                train_prompts=prompts,
                heldout_prompts=prompts,
                num_dropped=0,
                reward_model=lambda _, completions: np.array([score(text) for text in completions]),
                gold_reward_model=None,
                preference_pairs=lambda _: [],
            )

    sizes = ("num_prompts", "group_size", "max_new_tokens", "micro_batch_size")
    words = ["task=qwen_rlhf", "algo=grpo", *(f"task.{name}={getattr(case, name)}" for name in sizes)]
    words += ["task.num_kl_tokens=128", "task.num_eval_prompts=1", "task.num_samples=0", f"penalty.coef={KL_COEF}"]
    words += [f"update.num_epochs={EPOCHS}", "update.num_minibatches=1", f"update.lr={case.lr}", "update.anneal_lr=false"]
    task, algorithm = build(compose_jobs(words, False, None)[0].config)
    task.source = Loader()
    task.lora = None if case.lora is None else LoRA(**case.lora)
    task.setup(0, algorithm.requirements)
    policy = task.make_policy(0)
    algorithm.setup(policy, case.iterations, 0)
    found = {"tokens": 0.0}
    for i in range(case.iterations):
        if i == case.warm_up:
            start = time.process_time()
        rollout = task.collect(policy)
        metrics = rollout.metrics | algorithm.learn(policy, rollout, False)
        if i >= case.warm_up:
            found["tokens"] += metrics["language/num_tokens"] + metrics["language/num_prompt_tokens"]
            for key in metrics:
                if key.startswith("time/") and not key.endswith("_cpu_s"):
                    found[key] = found.get(key, 0.0) + metrics[key]
    return {"cpu_s": time.process_time() - start, **found}


def trl(case: Case, folder: Path) -> dict[str, float]:
    """Same as ``ours`` with TRL's GRPOTrainer."""
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    clock: dict[str, float] = {}
    counted: list[int] = []
    spent: dict[str, list[float]] = {"generate": [], "prepare": [], "step": []}

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        counted.append(sum(map(len, completion_ids)) + sum(len(tokenizer(prompt)["input_ids"]) for prompt in prompts))
        return [score(completion) for completion in completions]

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == case.warm_up * EPOCHS:
                clock["start"] = time.process_time()
            if state.global_step == case.iterations * EPOCHS:
                clock["end"] = time.process_time()

    arguments = GRPOConfig(
        output_dir=str(Path(tempfile.gettempdir()) / "trl"),
        per_device_train_batch_size=case.num_prompts * case.group_size,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=case.group_size,
        num_iterations=EPOCHS,
        max_steps=case.iterations * EPOCHS,
        max_completion_length=case.max_new_tokens,
        loss_type="grpo",
        beta=KL_COEF,
        epsilon=0.2,
        temperature=1.0,
        learning_rate=case.lr,
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
    adapters = None
    if case.lora is not None:
        settings = {"r": case.lora["rank"], "lora_alpha": case.lora["alpha"], "target_modules": case.lora["target_modules"]}
        adapters = LoraConfig(**settings, lora_dropout=0.0, task_type="CAUSAL_LM")
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict({"prompt": case.prompts}),
        reward_funcs=reward,
        callbacks=[Watch()],
        peft_config=adapters,
    )

    def timed(name: str, phase: str) -> None:
        method = getattr(trainer, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            out = method(*args, **kwargs)
            spent[phase].append(time.perf_counter() - begin)
            return out

        setattr(trainer, name, call)

    timed("_generate", "generate"), timed("_generate_and_score_completions", "prepare"), timed("training_step", "step")
    trainer.train()
    generate, prepare = (sum(spent[phase][case.warm_up :]) for phase in ("generate", "prepare"))
    phases = {"time/generate_s": generate, "time/logprobs_s": prepare - generate}  # includes the reward
    phases["time/update_s"] = sum(spent["step"][case.warm_up * EPOCHS :]) - prepare  # excludes Adam's step
    return {"cpu_s": clock["end"] - clock["start"], "tokens": float(sum(counted[case.warm_up : case.iterations])), **phases}


def compete(name: str, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Run interleaved fresh processes; prints medians and the ratio, and returns the rows."""
    model, rows = find_model(name, folder), []
    for i in range(rounds):
        for who in ("ours", "trl") if i % 2 == 0 else ("trl", "ours"):
            command = [sys.executable, __file__, "--one", who, name, str(model)]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                sys.exit(f"{who} failed:\n{done.stderr[-3000:]}")
            found = json.loads(lines[0].removeprefix("RESULT "))
            speed = found["tokens"] / found["cpu_s"]
            rows.append({"case": name, "round": i, "contestant": who, "tokens_per_cpu_s": speed, **found})
            phases = "  ".join(f"{key[5:-2]} {found[key]:.1f}" for key in found if key.startswith("time/"))
            shown = f"{speed:8,.1f} tokens per CPU-s, {found['peak_rss_mib']:.0f} MiB; {phases}"
            print(f"{name} round {i} {who:5} {shown}", flush=True)
    speeds = {who: [row["tokens_per_cpu_s"] for row in rows if row["contestant"] == who] for who in ("ours", "trl")}
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["trl"], strict=True)]
    for who, found in speeds.items():
        print(f"{name} {who:5} median {statistics.median(found):,.1f} tokens per CPU-s")
    print(f"{name} ratio median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    return rows


def main(words: Sequence[str]) -> None:
    """Run a single contestant, or all rounds of the cases."""
    if words[:1] == ["--one"]:
        found = {"ours": ours, "trl": trl}[words[1]](CASES[words[2]], Path(words[3]))
        found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print("RESULT " + json.dumps(found))
        return
    rounds = int(words[0]) if words else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in words[2:] or CASES for row in compete(name, rounds, Path(folder))]
    if len(words) > 1:
        import pandas as pd

        measured = {row["case"] for row in rows}
        earlier = pd.read_parquet(words[1]) if Path(words[1]).exists() else pd.DataFrame({"case": []})
        pd.concat([earlier[~earlier["case"].isin(measured)], pd.DataFrame(rows)]).astype({"round": int}).to_parquet(
            words[1], index=False
        )


if __name__ == "__main__":
    main(sys.argv[1:])
