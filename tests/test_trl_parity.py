"""Our loss and advantages against TRL's trainers: losses and gradients recorded by benchmarks/trl_fixtures.py.

Every `loss_type` of TRL is a gate, a reduction and the level of the ratio; here each is put together from our parts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gate_options import load_gate
from torch import Tensor
from update_parts import K3, objective

from rgpo.core.advantages import GroupRelative, LeaveOneOut, zero_variance_groups
from rgpo.core.gate import Gate, weight
from rgpo.core.sequence import sequence_log_ratio, sequence_mean, token_mean
from rgpo.learning.loss import policy_loss
from rgpo.learning.samples import PolicyOutput, Samples

RECORD = json.loads((Path(__file__).parent / "fixtures" / "trl_losses.json").read_text())
CASES, GROUP = RECORD["cases"], RECORD["group_size"]
TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}  # float64 on both sides; TRL keeps SAPO's temperatures in float32


def tensor(key: str) -> Tensor:
    return torch.tensor(RECORD[key], dtype=torch.float64)


LOGP_NEW, LOGP_OLD, LOGP_REF, MASK = (tensor(key) for key in ("logp_new", "logp_old", "logp_ref", "mask"))
ADVANTAGE = torch.tensor(RECORD["advantage"]["grpo_group"], dtype=torch.float64)[:, None].expand_as(MASK)
LIVE = MASK > 0
FIRST = LIVE.sum(1).cumsum(0) - LIVE.sum(1)  # of the n tokens, the first one of each completion


def dr_grpo_mean(mask: Tensor) -> Tensor:
    """Weights of a sum over tokens by B times the longest length that generation allows."""
    return mask / (len(mask) * RECORD["max_completion_length"])


# our gate, its level, our reduction
OURS: dict[str, tuple[Gate, str, Any]] = {
    "grpo": (load_gate("clip"), "token", sequence_mean),
    "grpo_kl": (load_gate("clip"), "token", sequence_mean),
    "grpo_delta": (load_gate("clip", cap=1.5), "token", sequence_mean),
    "bnpo": (load_gate("clip"), "token", token_mean),
    "dr_grpo": (load_gate("clip"), "token", dr_grpo_mean),
    "dapo": (load_gate("dapo"), "token", token_mean),
    "sapo": (load_gate("sapo"), "token", sequence_mean),
    "cispo": (load_gate("cispo"), "token", token_mean),
    "gspo": (load_gate("gspo"), "sequence", sequence_mean),
    "gspo_kl": (load_gate("gspo"), "sequence", sequence_mean),
}


def ours(name: str) -> tuple[Tensor, Tensor]:
    """Loss and its gradient (B, T) by the tokens' log-probabilities, as the learner computes it from the n tokens."""
    curve, level, reduce = OURS[name]
    logp_new = LOGP_NEW.clone().requires_grad_()
    unused = torch.zeros_like(LOGP_OLD[LIVE])
    samples = Samples(
        logp_old=LOGP_OLD[LIVE],
        logp_ref=LOGP_REF[LIVE],
        advantage=ADVANTAGE[LIVE],
        value_target=unused,
        value_old=unused,
        weight=reduce(MASK)[LIVE],
        sequence_mask=LIVE if level == "sequence" else None,
    )
    out = PolicyOutput(logp=logp_new[LIVE], entropy=None, value=None, kl_old=None)
    loss, _ = policy_loss(out, samples, objective=objective(curve), divergence=K3, kl_coef=CASES[name]["constants"]["beta"])
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
    w = weight(load_gate("cispo"), LOGP_NEW - LOGP_OLD, ADVANTAGE)
    loss = (token_mean(MASK) * (-w * ADVANTAGE * LOGP_NEW)).sum()
    torch.testing.assert_close(loss.item(), CASES["cispo"]["loss"], **TOLERANCE)
    assert abs(ours("cispo")[0].item() - loss.item()) > 0.01


def test_the_constants_are_those_of_our_configuration() -> None:
    """TRL was given the values of the yaml files."""
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
    """Ragged, advantages of both signs and a zero-variance group; ratios inside and outside every band, for both signs."""
    assert set(RECORD["versions"]) == {"trl", "transformers", "torch"}
    assert {1, MASK.shape[1]} <= set(MASK.sum(1).int().tolist())
    assert (ADVANTAGE[GROUP : 2 * GROUP] == 0).all()
    ratio = (LOGP_NEW - LOGP_OLD).exp()
    of_sequence = sequence_log_ratio((LOGP_NEW - LOGP_OLD)[LIVE], LIVE).exp()[FIRST]
    bands = [(ratio[LIVE], ADVANTAGE[LIVE], 0.8, 1.2), (ratio[LIVE], ADVANTAGE[LIVE], 0.8, 1.28)]
    bands += [(of_sequence, ADVANTAGE[:, 0], 1 - 3e-4, 1 + 4e-4)]
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
    wrong = (token_mean(MASK) * (-load_gate("clip")(LOGP_NEW - LOGP_OLD, ADVANTAGE) * ADVANTAGE)).sum()
    torch.testing.assert_close(wrong.item(), CASES["bnpo"]["loss"], **TOLERANCE)
    assert abs(wrong.item() - CASES["grpo"]["loss"]) > 1e-3
    tokens = (sequence_mean(MASK) * (-load_gate("gspo")(LOGP_NEW - LOGP_OLD, ADVANTAGE) * ADVANTAGE)).sum()
    assert abs(tokens.item() - CASES["gspo"]["loss"]) > 1e-3


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_relative_is_trls(scale: str) -> None:
    found = GroupRelative(scale=scale, eps=1e-4, normalize="none").compare(np.array(RECORD["reward"]), GROUP)
    np.testing.assert_allclose(found, RECORD["advantage"][f"grpo_{scale}"], rtol=1e-6, atol=1e-6)  # TRL: float32
    assert zero_variance_groups(np.array(RECORD["reward"]), GROUP).tolist() == [False, True, False, False]


def test_leave_one_out_is_trls() -> None:
    found = LeaveOneOut(normalize="none").compare(np.array(RECORD["reward"]), GROUP)
    np.testing.assert_allclose(found, RECORD["advantage"]["rloo"], rtol=1e-6, atol=1e-6)


def test_sequence_log_ratio() -> None:
    """Length-normalized, spread over the tokens, gradient 1/|y| per token, and no division by 0 where a sequence is empty."""
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    d = torch.tensor([0.3, 0.6, 0.0, -0.2], requires_grad=True)
    found = sequence_log_ratio(d, mask)
    torch.testing.assert_close(found, torch.tensor([0.3, 0.3, 0.3, -0.2]))
    for i, expected in ((0, [1 / 3, 1 / 3, 1 / 3, 0]), (2, [1 / 3, 1 / 3, 1 / 3, 0]), (3, [0, 0, 0, 1])):
        (gradient,) = torch.autograd.grad(found[i], d, retain_graph=True)
        torch.testing.assert_close(gradient, torch.tensor(expected, dtype=d.dtype))
    assert sequence_log_ratio(d[:0], mask[2:]).shape == (0,)
    gap = torch.tensor([[1, 0, 1], [0, 1, 0]]).bool()  # the tokens are the mask's, row by row, wherever they are
    torch.testing.assert_close(sequence_log_ratio(torch.tensor([1.0, 3.0, 7.0]), gap), torch.tensor([2.0, 2.0, 7.0]))
    broken = sequence_log_ratio(torch.tensor([torch.nan, 0.0, 0.0, -0.2]), mask)  # stays in its own sequence
    assert broken[:3].isnan().all() and broken[3] == -0.2
