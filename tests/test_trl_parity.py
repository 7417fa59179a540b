"""Our surrogate and advantages against TRL's trainers: losses and gradients recorded by benchmarks/trl_fixtures.py.

Every `loss_type` of TRL is a gate, a reduction and the level of the ratio; here they are put together from our pieces.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from rgpo.core.divergences import k3
from rgpo.core.gate import Gate, weight
from rgpo.core.gates import Open
from rgpo.core.language_advantages import GroupRelative, LeaveOneOut, dead_groups
from rgpo.core.sequence import sequence_log_ratio
from rgpo.core.surrogate import Detached, sequence_mean, surrogate, token_mean
from rgpo.paths import conf_dir

RECORD = json.loads((Path(__file__).parent / "fixtures" / "trl_losses.json").read_text())
CASES, GROUP = RECORD["cases"], RECORD["group_size"]
TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}  # float64 on both sides; TRL keeps SAPO's temperatures in float32


def tensor(key: str) -> Tensor:
    return torch.tensor(RECORD[key], dtype=torch.float64)


LOGP_NEW, LOGP_OLD, LOGP_REF, MASK = (tensor(key) for key in ("logp_new", "logp_old", "logp_ref", "mask"))
ADVANTAGE = torch.tensor(RECORD["advantage"]["grpo_group"], dtype=torch.float64)[:, None].expand_as(MASK)
LIVE = MASK > 0


def gate(name: str, **change: Any) -> Gate:
    """The gate of conf/gate/<name>.yaml."""
    made: Gate = instantiate(OmegaConf.load(conf_dir() / "gate" / f"{name}.yaml"), **change)
    return made


def dr_grpo_mean(mask: Tensor) -> Tensor:
    """Weights of a sum over tokens by B times the longest length that generation allows."""
    return mask / (len(mask) * RECORD["max_completion_length"])


# our gate, its level, our reduction
OURS: dict[str, tuple[Gate, str, Any]] = {
    "grpo": (gate("clip"), "token", sequence_mean),
    "grpo_kl": (gate("clip"), "token", sequence_mean),
    "grpo_delta": (gate("clip", cap=1.5), "token", sequence_mean),
    "bnpo": (gate("clip"), "token", token_mean),
    "dr_grpo": (gate("clip"), "token", dr_grpo_mean),
    "dapo": (gate("dapo"), "token", token_mean),
    "sapo": (gate("sapo"), "token", sequence_mean),
    "cispo": (gate("cispo"), "token", token_mean),
    "gspo": (gate("gspo"), "sequence", sequence_mean),
    "gspo_kl": (gate("gspo"), "sequence", sequence_mean),
}


def ours(name: str) -> tuple[Tensor, Tensor]:
    """Loss and its gradient (B, T) by the tokens' log-probabilities."""
    curve, level, reduce = OURS[name]
    logp_new = LOGP_NEW.clone().requires_grad_()
    new, old, ref = logp_new, LOGP_OLD, LOGP_REF
    if level == "sequence":  # the sequence's log ratio stands for every token's; the KL stays per token
        new, old = sequence_log_ratio(logp_new - LOGP_OLD, MASK), torch.zeros_like(MASK)
        ref = new - sequence_log_ratio(logp_new - LOGP_REF, MASK)
    kl_coef = CASES[name]["constants"]["beta"]
    kl = k3(LOGP_REF - logp_new)
    found = surrogate(new, old, ref, ADVANTAGE, gate=curve, ref_gate=Open(), dual=Detached(), kl_coef=kl_coef, kl=kl)
    loss = (reduce(MASK) * found.loss).sum()
    (gradient,) = torch.autograd.grad(loss, logp_new)
    return loss.detach(), gradient


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_trls(name: str) -> None:
    expected = torch.tensor(CASES[name]["gradient"], dtype=torch.float64)
    torch.testing.assert_close(ours(name)[1], expected, **TOLERANCE)
    assert expected[LIVE].count_nonzero() > 0


@pytest.mark.parametrize("name", [name for name in CASES if name != "cispo"])
def test_loss_is_trls(name: str) -> None:
    torch.testing.assert_close(ours(name)[0].item(), CASES[name]["loss"], **TOLERANCE)


def test_cispo_in_its_detached_form() -> None:
    """CISPO is published as -sg[min(r, c)] A log pi: our curve has that gradient and another value, its weight has both."""
    w = weight(gate("cispo"), LOGP_NEW - LOGP_OLD, ADVANTAGE)
    loss = (token_mean(MASK) * (-w * ADVANTAGE * LOGP_NEW)).sum()
    torch.testing.assert_close(loss.item(), CASES["cispo"]["loss"], **TOLERANCE)
    assert abs(ours("cispo")[0].item() - loss.item()) > 0.01


def test_the_constants_are_those_of_our_configuration() -> None:
    """What TRL was given is what the yaml files say."""
    for name, case in CASES.items():
        curve, level, _ = OURS[name]
        given = case["constants"]
        high = given["epsilon"] if given["epsilon_high"] is None else given["epsilon_high"]
        assert given["importance_sampling_level"] == level
        if name == "sapo":
            assert (curve.sharpness, curve.sharpness_neg) == (given["sapo_temperature_pos"], given["sapo_temperature_neg"])
        elif name == "cispo":
            assert curve.cap == high
        else:
            assert (curve.eps_low, curve.eps_high, curve.cap) == (given["epsilon"], high, given["delta"])


def test_the_batch_reaches_every_branch() -> None:
    """Ragged, advantages of both signs and a dead group; ratios inside and outside every band, for both signs."""
    assert set(RECORD["versions"]) == {"trl", "transformers", "torch"}
    assert {1, MASK.shape[1]} <= set(MASK.sum(1).int().tolist())
    assert (ADVANTAGE[GROUP : 2 * GROUP] == 0).all()
    ratio = (LOGP_NEW - LOGP_OLD).exp()
    of_sequence = sequence_log_ratio(LOGP_NEW - LOGP_OLD, MASK).exp()[:, :1]
    bands = [(ratio[LIVE], ADVANTAGE[LIVE], 0.8, 1.2), (ratio[LIVE], ADVANTAGE[LIVE], 0.8, 1.28)]
    bands += [(of_sequence, ADVANTAGE[:, :1], 1 - 3e-4, 1 + 4e-4)]
    for r, advantage, low, high in bands:
        for sign in (1, -1):
            side = r[advantage.sign() == sign]
            assert (side < low).any(), (sign, low)
            assert (side > high).any(), (sign, high)
            assert ((side > low) & (side < high)).any(), (sign, low, high)
    assert (ratio[LIVE & (ADVANTAGE < 0)] > 1.5).any()  # delta
    assert (ratio[LIVE & (ADVANTAGE != 0)] > 3.0).any()  # CISPO's cap


def test_a_wrong_reduction_or_level_is_noticed() -> None:
    """The must-fail side: GRPO by the token mean is BNPO, and GSPO's band on tokens is something else."""
    wrong = (token_mean(MASK) * (-gate("clip")(LOGP_NEW - LOGP_OLD, ADVANTAGE) * ADVANTAGE)).sum()
    torch.testing.assert_close(wrong.item(), CASES["bnpo"]["loss"], **TOLERANCE)
    assert abs(wrong.item() - CASES["grpo"]["loss"]) > 1e-3
    tokens = (sequence_mean(MASK) * (-gate("gspo")(LOGP_NEW - LOGP_OLD, ADVANTAGE) * ADVANTAGE)).sum()
    assert abs(tokens.item() - CASES["gspo"]["loss"]) > 1e-3


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_relative_is_trls(scale: str) -> None:
    found = GroupRelative(scale=scale).compare(np.array(RECORD["reward"]), GROUP)
    np.testing.assert_allclose(found, RECORD["advantage"][f"grpo_{scale}"], rtol=1e-6, atol=1e-6)  # TRL: float32
    assert dead_groups(np.array(RECORD["reward"]), GROUP).tolist() == [False, True, False, False]


def test_leave_one_out_is_trls() -> None:
    found = LeaveOneOut().compare(np.array(RECORD["reward"]), GROUP)
    np.testing.assert_allclose(found, RECORD["advantage"]["rloo"], rtol=1e-6, atol=1e-6)


def test_sequence_log_ratio() -> None:
    """Length-normalised, spread over the tokens, blind to what lies under the mask, gradient 1/|y| per token."""
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    d = torch.tensor([[0.3, 0.6, 0.0, torch.nan], [-0.2, torch.inf, 5.0, 1.0], [1.0, torch.nan, 1.0, 1.0]], requires_grad=True)
    found = sequence_log_ratio(d, mask)
    torch.testing.assert_close(found, torch.tensor([[0.3], [-0.2], [0.0]]).expand(3, 4))
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), d)
    torch.testing.assert_close(gradient, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0], [1, 0, 0, 0], [0, 0, 0, 0]]))
    integer = sequence_log_ratio(d.detach(), mask.long())
    torch.testing.assert_close(integer, found.detach())
