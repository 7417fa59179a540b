"""Learning itself, small: a solved CartPole, and the trust region that a literal gate lacks."""

from pathlib import Path

import pandas as pd
import pytest
from cli import rgpo_run


@pytest.mark.parametrize("algo", ["ppo", "trpo", "rgpo", "rgpo_sign_aware"])
def test_cartpole_is_solved(algo: str, tmp_path: Path) -> None:
    rgpo_run(["task=cartpole", f"algo={algo}", "total_env_steps=60000", "update.compile=false"], tmp_path)
    frame = pd.read_parquet(next(tmp_path.rglob("metrics.parquet")))
    assert frame["return/train_mean"].max() > 150  # random play earns 22
    assert frame["return/eval_mean"].max() > 195


def test_the_literal_gate_leaves_the_trust_region_and_the_sign_aware_one_keeps_it(tmp_path: Path) -> None:
    kl = {}
    for algo in ("rgpo_literal", "rgpo_sign_aware"):
        words = ["task=hopper", f"algo={algo}", "num_iterations=8", "update.anneal_lr=false", "gradvar_every=0", "eval_every=0"]
        rgpo_run(words, tmp_path)
    for file in tmp_path.rglob("metrics.parquet"):
        frame = pd.read_parquet(file)
        kl[frame.algo[0]] = frame["kl/old_exact"].median()
    assert kl["rgpo_sign_aware"] < 0.03
    assert kl["rgpo_literal"] > max(0.06, 5 * kl["rgpo_sign_aware"])
