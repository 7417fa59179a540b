"""Properties over inputs that hypothesis searches: gates, ranges, the words of a command line, packing of completions."""

from __future__ import annotations

import math

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpo import gates
from rgpo.cli.words import LITERAL, flat, hydra_form, user_form
from rgpo.core import ranges
from rgpo.core.gate import Gate
from rgpo.errors import ConfigError
from rgpo.language.policy.generation import make_completions
from rgpo.language.policy.packing import assign_rows, group_by_prompt, make_micro_batch

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)
sharpness = st.floats(0.01, 60)
log_ratios = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20)
GATES: list[st.SearchStrategy[Gate]] = [
    st.builds(gates.Sigmoid, sharpness=sharpness),
    st.builds(gates.SigmoidLog, sharpness=sharpness),
    st.builds(gates.SigmoidMatched, sharpness=st.floats(1.01, 60)),
    st.builds(gates.SignAwareSigmoid, sharpness=sharpness, cap=st.floats(1.01, 20)),
    st.builds(gates.GaussianLog, sharpness=sharpness),
    st.builds(gates.Arctan, sharpness=sharpness),
    st.builds(gates.Power, sharpness=sharpness, center=st.floats(0.1, 10)),
    st.builds(gates.Rational, sharpness=sharpness, center=st.floats(0.1, 10)),
    st.builds(gates.Clip, eps_low=st.floats(0.01, 0.9), eps_high=st.floats(0.01, 0.99), cap=st.none()),
]


@QUICK
@given(st.one_of(GATES), log_ratios, st.booleans())
def test_a_gate_and_its_weight_are_finite_and_do_not_decrease(gate: Gate, d: list[float], positive: bool) -> None:
    x = torch.tensor(sorted(d), dtype=torch.float32)
    side = torch.full_like(x, 1.0 if positive else -1.0)
    value, slope = gate(x, side), gates.weight(gate, x, side)
    assert value.isfinite().all() and slope.isfinite().all()
    assert (slope >= 0).all()  # no sample with a positive advantage is ever made less probable
    assert (value.diff() >= -1e-5 * value.abs().max()).all()


@QUICK
@given(st.one_of(GATES), st.floats(-2, 2).filter(lambda d: abs(d) > 1e-3), st.booleans())
def test_the_weight_is_the_slope_of_the_gate(gate: Gate, d: float, positive: bool) -> None:
    x = torch.tensor([d], dtype=torch.float64)
    side = torch.tensor([1.0 if positive else -1.0], dtype=torch.float64)
    h = 1e-6
    both = [(gate(x + s * h, side) - gate(x, side)) * s / h for s in (1, -1)]  # equal but at a kink
    slope = gates.weight(gate, x, side)
    low, high = min(both).item(), max(both).item()
    assert low - 1e-3 * (1 + abs(low)) <= slope.item() <= high + 1e-3 * (1 + abs(high))


@QUICK
@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=5), st.lists(st.floats(), max_size=2)))
def test_a_range_accepts_or_refuses_with_one_sentence(value: object) -> None:
    for declared in (ranges.POSITIVE, ranges.FRACTION, ranges.FINITE, ranges.count(10), ranges.one_of("a", 1, True)):
        (allowed,) = declared.values()
        try:
            allowed.check("gate.sharpness", value)
        except ConfigError as error:
            sentence = str(error)
            assert sentence.startswith("gate.sharpness=") and "\n" not in sentence and sentence.endswith(".")
        else:
            assert value is not None and not (isinstance(value, float) and math.isnan(value))


@QUICK
@given(st.sampled_from([key for key in LITERAL if key != "name"]), st.text(min_size=1, max_size=30))
def test_a_literal_word_reaches_the_configuration_as_it_was_typed(key: str, text: str) -> None:
    text = text.replace("\x00", "").strip() or "a"
    (item,) = OverridesParser.create().parse_overrides([hydra_form(f"{key}={text}")])
    assert item.key_or_group == key and user_form(item) == f"{key}={text}"


nested = st.recursive(
    st.one_of(st.integers(), st.text(max_size=3)),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(nested)
def test_flat_names_every_entry_once(node: object) -> None:
    found = flat(node)
    for key, value in found.items():
        inner: object = node
        for part in key.split("."):
            assert isinstance(inner, dict)
            inner = inner[part]
        assert inner == value


tokens = st.lists(st.integers(2, 9), min_size=1, max_size=4)


@QUICK
@given(
    st.lists(st.tuples(st.sampled_from([(5,), (5, 6), (7, 8, 9)]), tokens), min_size=1, max_size=8),
    st.booleans(),
    st.integers(1, 5),
)
def test_micro_batches_hold_every_token_once(drawn: list[tuple[tuple[int, ...], list[int]]], packed: bool, size: int) -> None:
    import numpy as np

    made = [(ids, [0.0] * len(ids), False) for _, ids in drawn]
    completions = make_completions([list(prompt) for prompt, _ in drawn], made, 0, torch.device("cpu"))
    rows = assign_rows(completions, packed)
    groups = group_by_prompt(np.arange(len(drawn)), completions, rows, size)
    assert sorted(i for group in groups for i in group.tolist()) == list(range(len(drawn)))
    whole = [token for _, ids in drawn for token in ids]
    seen: dict[int, int] = {}
    for group in groups:
        view = make_micro_batch(completions, group, rows, packed)
        seen |= dict(zip(view.tokens_n.tolist(), view.targets_n.tolist(), strict=True))
        before = view.predicting(view.input_ids_UW[..., None])[:, 0].tolist()  # the token that precedes each target
        for place, token in zip(view.tokens_n.tolist(), before, strict=True):
            starts = [0, *np.cumsum([len(ids) for _, ids in drawn]).tolist()]
            which = int(np.searchsorted(starts, place, side="right")) - 1
            assert token == (whole[place - 1] if place > starts[which] else drawn[which][0][-1])
    assert [seen[i] for i in range(len(whole))] == whole
