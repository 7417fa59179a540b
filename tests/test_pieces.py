"""How completions are laid out in lines, by hand, and that sharing a line changes no number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policies import batch_of, nudge, roll, settings

from rgpo.language.policy import attention_masks
from rgpo.language.policy.generation import assemble
from rgpo.language.policy.language_model import LanguageModel
from rgpo.language.policy.packing import arrange, lines_of, make_piece

Make = Callable[..., LanguageModel]
A, B = [5, 9, 30], [7]
DRAWN = [(A, [20, 21, 1]), (B, [22]), (A, [23, 24]), (B, [25, 26])]
COMPLETIONS = assemble([p for p, _ in DRAWN], [(ids, [0.0] * len(ids), ids[-1] == 1) for _, ids in DRAWN], 0, torch.device("cpu"))


def test_a_line_is_a_prompt_and_its_completions_without_their_last_tokens() -> None:
    piece = make_piece(COMPLETIONS, torch.tensor([2, 1, 0]), lines_of(COMPLETIONS, shared=True))
    first, second = (0, 1) if piece.input_ids_UW[0, 0] == 5 else (1, 0)
    lines = [[5, 9, 30, 23, 20, 21], [7, 0, 0, 0, 0, 0]]
    assert piece.input_ids_UW[[first, second]].tolist() == lines
    assert piece.position_ids_UW[[first, second]].tolist() == [[0, 1, 2, 3, 3, 4], [0] * 6]
    assert piece.segment_UW[[first, second]].tolist() == [[0, 0, 0, 1, 2, 2], [0, -1, -1, -1, -1, -1]]
    assert piece.targets_n.tolist() == [23, 24, 22, 20, 21, 1]  # row by row, as they were asked for
    assert piece.tokens_n.tolist() == [4, 5, 3, 0, 1, 2]
    assert piece.live_bt.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    source = torch.tensor([2, 3, 0, 2, 4, 5]) + 6 * torch.tensor([first, first, second, first, first, first])
    assert piece.sources_n.tolist() == source.tolist()
    assert piece.predicting(piece.input_ids_UW[..., None])[:, 0].tolist() == [30, 23, 7, 30, 20, 21]


def test_lines_of_their_own_hold_one_completion() -> None:
    piece = make_piece(COMPLETIONS, torch.arange(4), lines_of(COMPLETIONS, shared=False))
    assert piece.input_ids_UW.tolist() == [[5, 9, 30, 20, 21], [7, 0, 0, 0, 0], [5, 9, 30, 23, 0], [7, 25, 0, 0, 0]]
    assert (piece.segment_UW >= 0).sum(1).tolist() == [5, 1, 4, 2]


def test_a_completion_sees_its_prompt_and_itself_alone() -> None:
    seen = attention_masks.earlier(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    assert attention_masks.additive(torch.tensor([True, False]), torch.float32).tolist() == [0.0, torch.finfo(torch.float32).min]


def test_rows_of_a_line_stay_together_and_short_lines_come_first() -> None:
    lines = lines_of(COMPLETIONS, shared=True)
    assert lines[0] == lines[2] != lines[1] == lines[3]
    assert [rows.tolist() for rows in arrange(np.arange(4), COMPLETIONS, lines, 2)] == [[1, 3], [2, 0]]
    assert [rows.tolist() for rows in arrange(np.array([3, 0, 2]), COMPLETIONS, lines, 8)] == [[3, 2, 0]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_reading_a_prompt_once_changes_no_number(
    make_language_model: Make, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities, reference and gradient against lines of one completion, which transformers masks itself."""
    found: list[dict[str, Any]] = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(attention_masks, "reads_lines", lambda config: False)
        policy = make_language_model(attention=attention, micro_batch_size=12)
        nudge(policy)
        batch = batch_of(policy, num_minibatches=1)
        (piece,) = batch.minibatches[0]
        tokens = (piece.segment_UW >= 0).sum().item()
        prompts = 3 + 1 + 6 + 2
        assert tokens == (prompts if shared else 3 * prompts) + len(batch.logp_old) - 12
        policy.adam(settings()).losses(piece, batch, torch.ones_like(batch.advantage), 0.1)[0].backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.with_critic()])
        found.append({"old": batch.logp_old, "ref": batch.logp_ref, "value": batch.value_old, "gradient": gradient})
    assert found[0]["gradient"].norm() > 0.1
    for key, x in found[0].items():
        torch.testing.assert_close(x, found[1][key], rtol=1e-4, atol=1e-6)


def test_models_whose_attention_takes_no_mask_keep_one_completion_a_line(make_language_model: Make) -> None:
    config = make_language_model().model.config
    assert attention_masks.reads_lines(config)
    for name, value in (("_attn_implementation", "flash_attention_2"), ("layer_types", ["full_attention", "sliding_attention"])):
        other = type(config)(**config.to_dict() | {"use_sliding_window": True, "sliding_window": 4})
        other._attn_implementation = "sdpa"
        setattr(other, name, value)
        assert not attention_masks.reads_lines(other)
    learned = type(config)(**config.to_dict())
    learned._attn_implementation, learned.rope_parameters = "sdpa", None
    assert attention_masks.takes_masks(learned) and not attention_masks.reads_lines(learned)


def test_completions_of_one_token_add_nothing_to_a_line(make_language_model: Make) -> None:
    policy = make_language_model(max_new_tokens=1)
    rollout = roll(policy, num_minibatches=1)
    (piece,) = policy.pieces(rollout.completions, policy.cut(rollout.completions, [np.arange(4)]))[0]
    assert piece.input_ids_UW.shape == (4, 6) and (policy.see(piece).logp_n < 0).all()
