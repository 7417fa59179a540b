"""The part of test_processes.py that runs in each of several processes, and `measure`, which a single process runs as well.

`process_worker.py FOLDER` reads FOLDER/jobs.json: measures of a checkpoint, then whole runs one after the other, in which rank 1
receives a signal at iteration 3, raises or dies, depending on results_dir.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_policies import SAMPLING, engine, make_sgd, nudge, roll
from update_parts import natural_gradient, objective, setup

from rgpo import distributed
from rgpo.cli import run
from rgpo.core import gates
from rgpo.language.policy.language_model import LanguageModel
from rgpo.language.policy.pretrained import add_lora, load_causal_lm
from rgpo.language.policy.token_batch import _gathered
from rgpo.language.task import Language
from rgpo.learning import sharded
from rgpo.learning.gradients import TrustRegionProblem, group_gradients

CASES: dict[str, dict[str, Any]] = {  # of 12 completions; micro_batch_size decides the number of micro-batches
    "three micro-batches": {"micro_batch_size": 5},
    "three micro-batches, lora": {"micro_batch_size": 5, "lora": True},
    "whole completions": {"micro_batch_size": 3, "reduction": "sequence_mean", "ratio": "sequence", "lora": True},
    "a process without any": {"num_minibatches": 12, "reduction": "sequence_mean"},
}


def measure(
    checkpoint: str, *, shard: bool = False, lora: bool = False, num_minibatches: int = 1, **sampling: Any
) -> dict[str, Any]:
    """Everything that a rollout, a step and the diagnostics compute, whole on rank 0."""
    model, _ = load_causal_lm(checkpoint, dtype="float32", device="cpu")
    if lora:
        model = add_lora(model, rank=2, alpha=4.0, dropout=0.0, target_modules="all-linear", seed=0)
    policy = LanguageModel(model, replace(SAMPLING, num_kl_tokens=15, **sampling), critic=True)
    nudge(policy)
    if shard:
        policy.shard()
    rollout = roll(policy, num_minibatches=num_minibatches)
    batch = policy.make_batch(rollout, rollout.reward, rollout.reward * 0.5)
    generator = torch.Generator().manual_seed(5)
    logp_old = batch.samples.logp_old
    changed = logp_old + 0.1 * torch.randn(logp_old.shape, generator=generator)
    batch = replace(batch, samples=batch.samples._replace(logp_old=changed))
    found: dict[str, Any] = {"sequence": batch.completions.sequence_BS, "logp_ref": batch.samples.logp_ref}
    found["kl"] = torch.from_numpy(policy.completion_kl(batch.completions))
    found["stored"] = torch.stack(_gathered(batch.stored)[2:])
    groups = np.arange(12).reshape(4, 3)

    def stacked_group_gradients() -> torch.Tensor:
        return torch.stack(list(group_gradients(policy, batch, objective(gates.Log()), groups)))

    found["groups"] = stacked_group_gradients()
    (found["statistics"],), _ = engine(make_sgd(policy, num_minibatches=num_minibatches)).run_epochs(batch, 1e-12, 0.3, 1)
    found["gradient"] = torch.cat([sharded.full(p.grad).flatten() for p in policy.parameters()])
    found["groups after a step"] = stacked_group_gradients()  # p.grad is left from the step, and sharded under FSDP
    torch.testing.assert_close(found["groups after a step"], found["groups"], rtol=1e-4, atol=1e-6)
    found |= {f"shift {name}": x for name, x in policy.measure_shift(batch)._asdict().items()}
    found["state"] = torch.cat([x.flatten() for x in policy.state_dict().values()])
    policy.load_state_dict(distributed.all_gather(policy.state_dict())[0])  # as every rank reads one checkpoint
    found["once more"] = policy.measure_shift(batch).log_ratio
    if lora and not shard:
        problem = TrustRegionProblem(policy, batch, objective(gates.Identity()))
        v = torch.randn(len(problem.gradient), generator=generator)
        found |= {"natural gradient": problem.gradient, "fisher": problem.fisher_product(v), "loss": torch.tensor(problem.loss)}
        found["evaluated"] = torch.tensor(problem.evaluate(1e-3 * v))
        found["features"] = policy.critic.features(batch)
        update = natural_gradient(critic_epochs=1, critic_minibatches=2)
        setup(update, policy, gates.Identity(), normalize="none")
        found["critic loss"] = torch.tensor(update._fit_critic(policy, batch))
        found["critic"] = policy.critic.flat.clone()
    return found


def measure_all(checkpoint: str) -> dict[str, dict[str, Any]]:
    """All cases with whole and with sharded layers; every rank must find the same numbers, bit for bit."""
    found = {}
    for name, case in CASES.items():
        for how in ("ddp", "fsdp"):
            found[f"{name} {how}"] = numbers = measure(checkpoint, shard=how == "fsdp", **case)
            for key in sorted(numbers.keys() - {"state"}):
                first, second = distributed.all_gather(numbers[key])
                assert torch.equal(first, second), f"{name} {how} {key} differs between the processes"
    return found


def go_wrong(self: Language, policy: Any, collect: Any = Language.collect) -> Any:
    self.calls = getattr(self, "calls", 0) + 1
    if self.calls == 3 and distributed.rank() == 1:
        if "results_dir=stopped" in sys.argv:
            os.kill(os.getpid(), signal.SIGTERM)
        if "results_dir=raised" in sys.argv:
            raise ValueError("boom")
        if "results_dir=killed" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
    return collect(self, policy)


if __name__ == "__main__":
    torch.set_num_threads(1)
    Language.collect = go_wrong
    folder = Path(sys.argv[1])
    jobs = json.loads((folder / "jobs.json").read_text())
    distributed.start()
    distributed.start = distributed.stop = lambda: None  # one group for all that follows
    if jobs["checkpoint"]:
        found = measure_all(jobs["checkpoint"])
        if distributed.rank() == 0:
            torch.save(found, folder / "found.pt")
    codes = []
    for sys.argv[1:] in jobs["runs"]:
        codes.append(run._main(sys.argv[1:]))
        (folder / f"codes{distributed.rank()}.json").write_text(json.dumps(codes))
    sys.exit(codes[-1])
