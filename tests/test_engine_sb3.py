"""Our gates inside Stable-Baselines3's PPO: equal to its own loss, learning, saved and loaded, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sb3 = pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed (pip install 'rgpo[engines]')")

import rgpo
from rgpo import gates
from rgpo.engines.parts import GateParts
from rgpo.engines.sb3 import GatedPPO, RecordRun
from rgpo.errors import ConfigError
from rgpo.report.cli import main as report

SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 3, "seed": 0, "device": "cpu"}
CASES = {
    "discrete": ("CartPole-v1", {}),
    "continuous": ("Pendulum-v1", {"target_kl": 0.02, "clip_range_vf": 0.2, "ent_coef": 0.01}),
}


def parameters(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


@pytest.mark.parametrize("env, change", CASES.values(), ids=CASES)
def test_equal_to_ppo(env: str, change: dict[str, Any]) -> None:
    """Parameters after three rollouts, and SB3's own records."""
    theirs = sb3.PPO("MlpPolicy", env, **SMALL, **change).learn(192)
    ours = GatedPPO("MlpPolicy", env, parts="gate=clip", **SMALL, **change).learn(192)
    torch.testing.assert_close(parameters(ours), parameters(theirs), rtol=0, atol=1e-6)
    assert theirs._n_updates == ours._n_updates
    assert "train/loss" in theirs.logger.name_to_value
    for name in ("loss", "value_loss", "policy_gradient_loss", "entropy_loss", "approx_kl", "explained_variance"):
        assert np.isclose(ours.logger.name_to_value.get(f"train/{name}", 0), theirs.logger.name_to_value.get(f"train/{name}", 0))


def test_rgpo_learns_and_is_loaded_as_it_was(tmp_path: Path) -> None:
    """algo=rgpo has an adaptive penalty on the exact KL; a loaded model continues with its state."""
    seen: list[dict[str, float]] = []

    class Records(sb3.common.callbacks.BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            seen.append({key: x for key, x in self.logger.name_to_value.items() if "/" in key})

    model = GatedPPO("MlpPolicy", "CartPole-v1", parts="algo=rgpo penalty.kl_target=1e-3", **SMALL)
    model.learn(256, callback=Records(), log_interval=None)
    names = {"kl/old_exact", "kl/old_k3", "weight/relative_mean", "ess/ratio", "ess/weight", "ratio/tail_index", "kl/coef"}
    assert names <= seen[-1].keys()
    assert 0 < seen[-1]["ess/ratio"] <= 1
    coef = model.parts.penalty.loss_coef
    assert coef != 1.0  # as it was at the start
    model.save(tmp_path / "model.zip")
    loaded = GatedPPO.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    assert loaded.parts.penalty.loss_coef == coef and loaded.parts.describe() == model.parts.describe()
    loaded.learn(64)


def test_a_vector_environment_and_continuous_exact_kl() -> None:
    env = sb3.common.env_util.make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    model = GatedPPO("MlpPolicy", env, parts=GateParts(gate=gates.Sigmoid(sharpness=10.0)), **SMALL).learn(128)
    assert model.num_timesteps == 128
    GatedPPO("MlpPolicy", env, parts="algo=ppo_kl", **SMALL).learn(128)


def test_a_run_is_read_by_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of our loss, and of SB3's own, for which no exact KL is measured."""
    env = sb3.common.env_util.make_vec_env("CartPole-v1", n_envs=2, seed=0)
    options = {"task": "cartpole", "results_dir": str(tmp_path / "results")}
    GatedPPO("MlpPolicy", env, parts="algo=rgpo", **SMALL).learn(384, callback=RecordRun(algo="rgpo", **options))
    sb3.PPO("MlpPolicy", env, **SMALL).learn(384, callback=RecordRun(algo="ppo", **options))
    for run in map(rgpo.load, sorted((tmp_path / "results" / "engines").iterdir())):
        assert run.status == "completed"
        assert list(run.metrics["env_steps"]) == [128, 256, 384]
        assert run.metrics["return/train_mean"].notna().all()
        assert ("kl/old_exact" in run.metrics) == (run.identity["algo"] == "rgpo")
    assert report([f"results_dir={tmp_path / 'results'}", f"out={tmp_path / 'report'}", "format=svg"]) == 1
    (problem,) = capsys.readouterr().err.splitlines()
    assert "/cartpole-ppo-s0-" in problem and "kl/old_exact was never measured" in problem


@pytest.mark.parametrize(
    "parts, change, sentence",
    [
        ("gate=clip", {"clip_range": 0.1}, "clip_range=0.1: would be ignored"),
        ("gate=clip gate@ref_gate=budget", {}, "gate@ref_gate: needs a reference policy, which Stable-Baselines3"),
        ("gate=clip penalty=fixed penalty.anchor=reference penalty.estimator=k3", {}, "penalty.anchor: needs a reference"),
        (None, {}, "names no gate"),
        ("update=sgd", {}, "update=sgd: is the trainer's own to set"),
    ],
)
def test_refusals(parts: Any, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        GatedPPO("MlpPolicy", "CartPole-v1", parts=parts, **(SMALL | change))
