"""What one of several processes does for test_processes.py, and `measure`, which a single process does as well.

`process_worker.py FOLDER` reads FOLDER/jobs.json: measures of a checkpoint, then whole runs one after the other, in which process
1 is sent a signal at iteration 3, raises or dies where results_dir says so.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_policies import SAMPLING, critic_settings, nudge, objective, roll, settings

from rgpo import distributed
from rgpo.cli import run
from rgpo.core import gates
from rgpo.language.policy import sharding
from rgpo.language.policy.language_model import LanguageModel
from rgpo.language.policy.pretrained import add_lora, load_causal_lm
from rgpo.language.policy.token_batch import _whole
from rgpo.language.task import Language

CASES: dict[str, dict[str, Any]] = {  # of 12 completions; micro_batch_size decides into how many pieces
    "three pieces": {"micro_batch_size": 5},
    "three pieces, lora": {"micro_batch_size": 5, "lora": True},
    "whole completions": {"micro_batch_size": 3, "reduction": "sequence_mean", "ratio": "sequence", "lora": True},
    "a process without any": {"num_minibatches": 12, "reduction": "sequence_mean"},
}


def measure(
    checkpoint: str, *, shard: bool = False, lora: bool = False, num_minibatches: int = 1, **sampling: Any
) -> dict[str, Any]:
    """Everything that a rollout, a step and the diagnostics compute, whole in the first process."""
    model, _ = load_causal_lm(checkpoint, dtype="float32", device="cpu")
    if lora:
        model = add_lora(model, rank=2, alpha=4.0, dropout=0.0, target_modules="all-linear", seed=0)
    policy = LanguageModel(model, type(SAMPLING)(**{**vars(SAMPLING), "num_kl_tokens": 15, **sampling}), critic=True)
    nudge(policy)
    if shard:
        policy.shard()
    rollout = roll(policy, num_minibatches=num_minibatches)
    batch, _ = policy.make_batch(rollout, rollout.reward, rollout.reward * 0.5)
    generator = torch.Generator().manual_seed(5)
    batch = batch._replace(logp_old=batch.logp_old + 0.1 * torch.randn(batch.logp_old.shape, generator=generator))
    found: dict[str, Any] = {"sequence": batch.completions.sequence_BS, "logp_ref": batch.logp_ref}
    found["kl"] = torch.from_numpy(policy.completion_kl(batch.completions))
    found["kept"] = torch.stack(_whole(batch.kept)[2:])
    groups = np.arange(12).reshape(4, 3)
    found["groups"] = torch.stack(list(policy.group_gradients(batch, batch.advantage, objective(gates.Log()), groups)))
    adam = policy.adam(settings(num_minibatches=num_minibatches))
    (found["rows"],), _ = adam.climb(batch, 1e-12, 0.3, 1)
    found["gradient"] = torch.cat([sharding.full(p.grad).flatten() for p in policy.with_critic()])
    found |= {f"moved {i}": x for i, x in enumerate(policy.moved(batch))}
    found["state"] = torch.cat([x.flatten() for x in policy.state_dict().values()])
    policy.load_state_dict(distributed.gather(policy.state_dict())[0])  # as all read one checkpoint
    found["once more"] = policy.moved(batch).log_ratio
    if lora and not shard:
        local = policy.local_model(batch, batch.advantage, objective(gates.Identity()))
        v = torch.randn(len(local.gradient()), generator=generator)
        found |= {"natural gradient": local.gradient(), "fisher": local.fisher_product(v), "loss": torch.tensor(local.loss)}
        found["evaluated"] = torch.tensor(local.evaluate(1e-3 * v))
        (found["critic"],), _ = policy.critic_adam(critic_settings()).climb(batch, 1e-3, 0.0, 1)
    return found


def measure_all(checkpoint: str) -> dict[str, dict[str, Any]]:
    """All cases with whole and with sharded layers; what this process finds must be what the other does, bit for bit."""
    found = {}
    for name, case in CASES.items():
        for how in ("ddp", "fsdp"):
            found[f"{name} {how}"] = numbers = measure(checkpoint, shard=how == "fsdp", **case)
            for key in sorted(numbers.keys() - {"state"}):
                first, second = distributed.gather(numbers[key])
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
