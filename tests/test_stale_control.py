"""Stale rollouts of control tasks, the decoupled objective, clip_fraction and the early stop, each against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli import rgpo_run
from gate_options import load_gate
from update_parts import Make, MakeBatch, nudge, objective, setup, sgd

from rgpo.cli.config import build, compose_jobs
from rgpo.control import stale
from rgpo.control.policy import ControlRollout
from rgpo.errors import ConfigError
from rgpo.learning.loss import policy_loss
from rgpo.runtime.session import set_up
from rgpo.runtime.settings import Settings

SMALL = [
    "task.num_envs=2",
    "task.num_steps=16",
    "update.num_minibatches=2",
    "eval_every=0",
    "gradvar_every=0",
    "update.compile=false",
]


def parts(*words: str) -> Any:
    (job,) = compose_jobs(["task=cartpole", "algo=ppo", *SMALL, "num_iterations=9", *words], False, None)
    task, algorithm = build(job.config)
    policy, _ = set_up(Settings.of(job.config), task, algorithm)
    return task, algorithm, policy


def test_the_first_rollouts_are_those_of_the_first_policy_and_later_ones_wait() -> None:
    task, algorithm, policy = parts("task.staleness=2")
    fresh, _, same = parts()
    firsts = [fresh.collect(same) for _ in range(3)]
    flats = []
    for i in range(4):
        rollout = task.collect(policy)
        flats.append(policy.flat.clone())
        if i < 3:
            assert np.array_equal(rollout.observation, firsts[i].observation)
        assert len(task.waiting) == 2
        behavior = flats[max(i - 2, 0)]
        logp = policy.distribution(behavior, torch.from_numpy(rollout.observation.reshape(32, -1))).log_prob(
            torch.from_numpy(rollout.action.reshape(-1))
        )
        assert torch.equal(rollout.old.logp, logp)  # of the policy that drew the actions
        algorithm.learn(policy, rollout, False)


def test_a_decoupled_loss_is_the_one_written_out(make_policy: Make) -> None:
    """E_mu[min(pi_prox/mu, cap) gate(pi/pi_prox) A]; without a cap that binds, the gate Identity gives the plain ratio pi/mu."""
    policy, rng = make_policy(), np.random.default_rng(0)
    observation = rng.standard_normal((40, 1, 5)).astype(np.float32)
    action = policy.act(observation[:, 0], policy.draw_noise((40,), rng))[:, None]
    zero, ended = np.zeros((40, 1)), np.zeros((40, 1), bool)
    steps: dict[str, Any] = {"reward": zero, "terminated": ended, "done": ended, "value": zero, "next_value": zero, "metrics": {}}
    behavior = stale.kept(policy, ControlRollout(observation=observation, action=action, **steps))
    assert behavior.old is not None
    nudge(policy, 0.1, seed=1)
    advantage = rng.standard_normal((40, 1))
    for cap in (1e6, 1.0):
        rollout = stale.decoupled(policy, behavior, cap)
        proximal = policy.old(behavior)
        assert rollout.old is not None and torch.equal(rollout.old.logp, proximal.logp)
        batch = policy.make_batch(rollout, advantage, zero)
        present = make_policy()
        present.load_state_dict(policy.state_dict())
        nudge(present, 0.05, seed=2)
        out = present.forward(batch.view, value=False)
        for name in ("identity", "clip"):
            gate = load_gate(name)
            loss, _ = policy_loss(out, batch.samples, objective=objective(gate))
            ratio, weight = (out.logp - proximal.logp).exp(), (proximal.logp - behavior.old.logp).exp().clamp(max=cap)
            a = torch.from_numpy(advantage[:, 0]).float() * weight
            clipped = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
            torch.testing.assert_close(loss, -(ratio * a if name == "identity" else clipped).mean())
        if cap > 1:
            plain = policy.make_batch(behavior, advantage, zero)
            exact, _ = policy_loss(
                present.forward(plain.view, value=False), plain.samples, objective=objective(load_gate("identity"))
            )
            decoupled, _ = policy_loss(out, batch.samples, objective=objective(load_gate("identity")))
            torch.testing.assert_close(decoupled, exact)


@pytest.mark.parametrize("cap", ["null", "2.0"])
def test_a_run_on_stale_data_resumes_bit_for_bit(cap: str, tmp_path: Path) -> None:
    words = "task=pendulum", "task.staleness=2", f"task.correction_cap={cap}"
    whole, resumed = parts(*words), parts(*words)
    for _ in range(3):
        train(*whole)
    torch.save([part.state_dict() for part in whole], tmp_path / "state.pt")
    for part, state in zip(resumed, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    for _ in range(4):
        expected, got = train(*whole), train(*resumed)
        assert all(got[key] == expected[key] for key in ("kl/old_exact", "loss/value", "ratio/clip_fraction", "grad/norm_max"))
    assert torch.equal(whole[2].flat, resumed[2].flat)
    assert ("sampler/log_ratio_abs_mean" in whole[0].collect(whole[2]).metrics) == (cap != "null")


def train(task: Any, algorithm: Any, policy: Any) -> Any:
    return algorithm.learn(policy, task.collect(policy), False)


def test_a_correction_without_staleness_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^task\.correction_cap=2\.0: corrects stale rollouts only; set task\.staleness\.$"):
        compose_jobs(["task=cartpole", "algo=ppo", "task.correction_cap=2.0"], False, None)


@pytest.mark.parametrize(("gate", "low", "high"), [("clip", 0.2, 0.2), ("dapo", 0.2, 0.28), ("sigmoid", 0.2, 0.2)])
def test_clip_fraction_is_cleanrls_and_stable_baselines3s(
    gate: str, low: float, high: float, make_policy: Make, make_batch: MakeBatch
) -> None:
    """Both: the mean over all minibatches of ((ratio - 1).abs() > clip_range).float().mean(), before each step."""
    policy = make_policy()
    batch = make_batch(policy, 64)
    nudge(policy, 0.05)  # so that ratios differ from 1 at the first step, too
    update = sgd(num_epochs=2, num_minibatches=4, lr=1e-2, anneal_lr=False)
    setup(update, policy, load_gate(gate))
    seen: list[torch.Tensor] = []
    forward = policy.forward

    def record(view: Any, **kwargs: Any) -> Any:
        out = forward(view, **kwargs)
        if kwargs.get("value", True) and len(view.action) == 16:
            index = [int((batch.view.action == a).all(1).nonzero()) for a in view.action]
            seen.append((out.logp.detach() - batch.samples.logp_old[index]).exp())
        return out

    policy.forward = record
    metrics, _ = update(policy, batch, 0.0)
    assert len(seen) == 8
    clipfracs = [((r < 1 - low) | (r > 1 + high)).float().mean().item() for r in seen]
    if low == high:
        assert clipfracs == [((r - 1.0).abs() > low).float().mean().item() for r in seen]
    assert 0 < np.mean(clipfracs) < 1
    assert metrics["ratio/clip_fraction"] == pytest.approx(np.mean(clipfracs))


def test_learning_stops_after_the_epoch_that_exceeds_the_target_kl(make_policy: Make, make_batch: MakeBatch) -> None:
    whole, stopped, loose = (make_policy() for _ in range(3))
    batch = make_batch(whole, 64)
    shifts = []
    for policy, target in ((whole, None), (stopped, 0.02), (loose, 1e6)):
        update = sgd(num_epochs=6, num_minibatches=4, lr=3e-3, anneal_lr=False, target_kl=target)
        setup(update, policy, load_gate("clip"))
        shifts.append(update(policy, batch, 0.0)[1].kl.mean(1))
    kl, early, all_epochs = shifts
    exceeded = int((kl > 0.02).nonzero()[0])
    assert 0 < exceeded < 5 and torch.equal(early, kl[: exceeded + 1])
    assert torch.equal(all_epochs, kl) and torch.equal(loose.flat, whole.flat) and not torch.equal(stopped.flat, whole.flat)


def test_a_run_with_a_target_kl_has_rows_with_fewer_epochs(tmp_path: Path) -> None:
    rgpo_run(["task=cartpole", "algo=ppo", *SMALL, "update.target_kl=1e-4", "update.lr=1e-2", "num_iterations=3"], tmp_path)
    frame = pd.read_parquet(next(tmp_path.rglob("metrics.parquet")))
    lengths = frame["epoch/kl_old_exact"].map(len).tolist()
    assert min(lengths) < 4
    assert [row[-1] for row in frame["epoch/kl_old_exact"]] == frame["kl/old_exact"].tolist()
