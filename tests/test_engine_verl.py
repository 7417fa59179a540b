"""Our gates as a policy loss of verl: equal to verl's own losses, found by a Ray worker, and the ready configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

verl = pytest.importorskip("verl", reason="verl is not installed (make test-engines builds its environment)")

from hydra import compose, initialize_config_dir
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.workers.config import ActorConfig, PolicyLossConfig

from rgpo.engines.verl import METRICS, GatedPolicyLossConfig
from rgpo.errors import ConfigError

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples" / "verl"
AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
CASES: dict[str, tuple[dict[str, Any], str, str]] = {  # verl's loss -> its settings, our words and ratio
    "vanilla": ({"clip_ratio_high": 0.28, "clip_ratio_c": 1.5}, "gate=dapo gate.cap=1.5", "token"),
    "dppo_tv": ({"clip_ratio_low": 0.05, "clip_ratio_high": 0.1, "clip_ratio_c": 1.5}, "gate=dppo_tv", "token"),
    "dppo_kl": ({"clip_ratio_low": 0.02, "clip_ratio_high": 0.03, "clip_ratio_c": 1.5}, "gate=dppo_kl", "token"),
    "sapo": ({}, "gate=sapo", "token"),
    "cispo": ({}, "gate=cispo_floor", "token"),
    "gspo": (
        {"clip_ratio_low": 3e-2, "clip_ratio_high": 4e-2},
        "gate=clip gate.eps_low=0.03 gate.eps_high=0.04",
        "sequence_token",
    ),
    "gpg": ({}, "gate=log", "token"),
    "dro": (
        {"policy_loss": PolicyLossConfig(loss_mode="dro", dro_beta=0.1)},
        "gate=log penalty=fixed penalty.coef=0.1 penalty.estimator=k2 penalty.anchor=old",
        "token",
    ),
    "geo_mean": ({"clip_ratio_low": 0.4, "clip_ratio_high": 0.3}, "gate=identity", "sequence_clipped"),
    "kl_cov": (
        {"policy_loss": PolicyLossConfig(loss_mode="kl_cov", kl_cov_ratio=0.1, ppo_kl_coef=0.7)},
        "gate=kl_cov gate.fraction=0.1 gate.coef=0.7",
        "token",
    ),
    "clip_cov": (  # so many that all candidates are dropped and none is drawn at random
        {"policy_loss": PolicyLossConfig(loss_mode="clip_cov", clip_cov_ratio=0.9, clip_cov_lb=0.2, clip_cov_ub=1.5)},
        "gate=clip_cov gate.fraction=0.9 gate.cov_low=0.2 gate.cov_high=1.5",
        "token",
    ),
    "bypass_mode": (
        {
            "policy_loss": PolicyLossConfig(
                loss_mode="bypass_mode",
                rollout_correction={"loss_type": "reinforce", "rollout_is": "token", "rollout_is_threshold": 1.2},
            )
        },
        "gate=cispo gate.cap=1.2",
        "token",
    ),
}
CLIPS = {"geo_mean": [0.4, 0.3]}
# whose weights of the sampler have another meaning; see docs/language.md
UNCORRECTED = ("dro", "geo_mean", "kl_cov", "clip_cov", "bypass_mode")
THRESHOLDS = {"dppo_tv": (0.05, 0.1), "dppo_kl": (0.02, 0.03)}


def actor(policy_loss: Any = None, **settings: Any) -> ActorConfig:
    own = {} if policy_loss is None else {"policy_loss": policy_loss}
    return ActorConfig(strategy="fsdp", rollout_n=4, ppo_micro_batch_size_per_gpu=1, **(settings | own))


def batch() -> dict[str, Tensor]:
    """Six ragged completions of up to ten tokens with one advantage each, of both signs, in float64."""
    noise = torch.Generator().manual_seed(0)
    B, T = 6, 10
    mask = torch.arange(T) < torch.tensor([10, 4, 7, 1, 9, 3])[:, None]
    old = -torch.rand((B, T), generator=noise, dtype=torch.float64) * 2
    new = old + 0.4 * torch.randn((B, T), generator=noise, dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, 0.5, -2.0, 0.3, -0.7], dtype=torch.float64)[:, None].expand(B, T)
    weight = torch.rand((B, T), generator=noise, dtype=torch.float64) + 0.5
    return {"old_log_prob": old, "log_prob": new.clamp(max=-1e-3), "advantages": advantage, "response_mask": mask, "is": weight}


def loss_and_gradient(name: str, config: ActorConfig, mode: str, corrected: bool) -> tuple[Tensor, Tensor, dict[str, Any]]:
    data = batch()
    logp = data["log_prob"].clone().requires_grad_()
    weights = data["is"] if corrected else None
    loss, metrics = get_policy_loss_fn(name)(
        data["old_log_prob"], logp, data["advantages"], data["response_mask"], mode, config, rollout_is_weights=weights
    )
    loss.backward()
    assert logp.grad is not None
    return loss.detach(), logp.grad, metrics


@pytest.mark.parametrize("corrected", [False, True], ids=["", "corrected"])
@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("name", CASES)
def test_equal_to_verl(name: str, mode: str, corrected: bool) -> None:
    """Gradients to 1e-6, and losses where verl's is no r log pi; its sapo and geo_mean have one reduction only."""
    settings, words, ratio = CASES[name]
    if name in THRESHOLDS:
        low, high = THRESHOLDS[name]
        words += f" gate.delta_low={low} gate.delta_high={high} gate.cap=1.5"
    mode = "seq-mean-token-mean" if name in ("sapo", "geo_mean") else mode
    corrected = corrected and name not in UNCORRECTED
    expected, gradient, _ = loss_and_gradient(name, actor(**settings), mode, corrected)
    config = actor(GatedPolicyLossConfig(parts=words, ratio=ratio, ratio_clip=CLIPS.get(name)))
    found, own, metrics = loss_and_gradient("rgpo", config, mode, corrected)
    torch.testing.assert_close(own, gradient, rtol=1e-6, atol=1e-9)
    assert gradient.abs().max() > 0
    if name in ("vanilla", "sapo", "gspo", "kl_cov", "clip_cov"):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert {f"actor/{key}" for key in METRICS} < metrics.keys()
    assert all(isinstance(x, float) for x in metrics.values())


def test_bypass_mode_with_a_clip() -> None:
    """verl computes its weights and does not use them."""
    correction = {"loss_type": "ppo_clip", "rollout_is": "token", "rollout_is_threshold": 1.2}
    theirs = actor(PolicyLossConfig(loss_mode="bypass_mode", rollout_correction=correction), clip_ratio_c=1.5)
    expected, gradient, _ = loss_and_gradient("bypass_mode", theirs, "token-mean", False)
    ours = actor(GatedPolicyLossConfig(parts="gate=clip gate.cap=1.5"))
    found, own, _ = loss_and_gradient("rgpo", ours, "token-mean", False)
    torch.testing.assert_close(own, gradient, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_every_registered_loss_has_its_words() -> None:
    """In docs/language.md, whose words test_field_losses.py compares with the losses written out."""
    page = (Path(__file__).parents[1] / "docs" / "language.md").read_text()
    table = page[page.index("### The losses of TRL and verl") : page.index("Not equal:")]
    assert {name for name in POLICY_LOSS_REGISTRY if f"`{name}`" not in table} == {"rgpo"}


def test_a_batch_without_tokens() -> None:
    empty = torch.zeros(1, 3)
    config = actor(GatedPolicyLossConfig(parts="gate=sigmoid"))
    config.global_batch_info["batch_num_tokens"] = 10
    logp = empty.clone().requires_grad_()
    loss, metrics = get_policy_loss_fn("rgpo")(empty, logp, empty, empty, "token-mean", config)
    loss.backward()
    assert loss == 0 and metrics["actor/kl/old_k3"] == 0


@pytest.mark.parametrize(
    "parts, ratio, sentence",
    [
        ("gate=clip gate@ref_gate=budget", "token", "gate@ref_gate: needs a reference policy, which verl does not"),
        ("algo=rgpo", "token", "gate@ref_gate: needs a reference policy"),
        ("gate=adaptive_sign_aware", "token", "adapts, but verl keeps no state"),
        ("gate=clip penalty=reward_kl", "token", "algorithm.use_kl_in_reward"),
        ("gate=clip", "word", "policy_loss.ratio=word: must be one of token, sequence"),
        ("", "token", "names no gate"),
    ],
)
def test_refusals(parts: str, ratio: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        GatedPolicyLossConfig(parts=parts, ratio=ratio)


def test_a_loss_without_a_gate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy_loss\.loss_mode=rgpo: has no gate"):
        loss_and_gradient("rgpo", actor(), "token-mean", False)


@pytest.mark.parametrize("name", [path.stem for path in sorted(EXAMPLES.glob("[!_]*.yaml"))])
def test_examples_are_composed_and_validated_by_verl(name: str) -> None:
    with initialize_config_dir(str(EXAMPLES), version_base=None):
        config = compose(name)
    settings = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert isinstance(settings.policy_loss, GatedPolicyLossConfig)
    config.actor_rollout_ref.model.path = "unused"
    validate_config(config, use_reference_policy=True, use_critic=False)
    loss, _, _ = loss_and_gradient(settings.policy_loss.loss_mode, settings, settings.loss_agg_mode, False)
    assert torch.isfinite(loss)


def test_a_ray_worker_finds_the_loss() -> None:
    """external_lib is imported by verl in the worker."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:

        @ray.remote
        def names() -> list[str]:
            from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
            from verl.utils.import_utils import import_external_libs

            before = sorted(POLICY_LOSS_REGISTRY)
            import_external_libs("rgpo.engines.verl")
            return [*before, *sorted(POLICY_LOSS_REGISTRY)]

        found = ray.get(names.remote(), timeout=240)
        assert found.count("rgpo") == 1
    finally:
        ray.shutdown()
