"""Templates, system prompts, adapters, special tokens and cut completions: each knob reaches the tokens or the scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from paper_runs import Ran, jsonl, run, words
from peft import LoraConfig, get_peft_model
from tiny_models import TEMPLATE, write_model
from tiny_policies import SAMPLING
from transformers import AutoModelForCausalLM, AutoTokenizer

from rgpo.errors import ConfigError
from rgpo.language.assets import LanguageAssets
from rgpo.language.policy.generation import make_completions
from rgpo.language.policy.token_batch import token_weights
from rgpo.language.sources.hub import Hub

SYSTEM = "{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}" + TEMPLATE
REWARD = """
def length(completions): return [float(len(text)) for text in completions]
def letters(completions): return [float(sum(map(ord, text))) for text in completions]
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder / "model", template=SYSTEM, context=128)
    write_model(folder / "base", template=None, context=128)
    jsonl(folder / "text.jsonl", [{"prompt": f"what is {i}?"} for i in range(30)])
    jsonl(folder / "turns.jsonl", [{"prompt": [{"role": "user", "content": f"what is {i}?"}]} for i in range(30)])
    return folder


def load(parts: Path, **changes: Any) -> tuple[LanguageAssets, list[str]]:
    """The assets of a source, and what was logged."""
    options: dict[str, Any] = {"model": "model", "data": "text.jsonl"} | changes
    paths = {key: str(parts / options.pop(key)) for key in ("model", "data")}
    settings = {"reward_model": None, "gold_model": None, "max_prompt_tokens": 99, "max_new_tokens": 8, "heldout_share": 0.3}
    settings |= {"split_seed": 0, "dtype": "float32", "reward_dtype": "float32", "reward_batch_size": 4, "device": "cpu"}
    source = Hub(**paths, **settings, attn_implementation="sdpa", **options)
    source.check(reward_model=False)
    logged: list[str] = []
    return source.load(logged.append, reward_model=False), logged


def rendered(assets: LanguageAssets) -> str:
    return str(assets.tokenizer.decode(assets.train_prompts[0].ids))


def test_a_model_without_a_template_gets_a_plain_format_and_a_sentence(parts: Path) -> None:
    assets, logged = load(parts, model="base")
    assert rendered(assets) == assets.train_prompts[0].text
    assert any("has no chat template: prompts are continued as they are (task.source.chat_template=plain)" in x for x in logged)
    assets, logged = load(parts, model="base", data="turns.jsonl")
    assert rendered(assets) == f"\n\nHuman: {assets.train_prompts[0].text}\n\nAssistant:"
    assert any("prompts are written as Human: ... Assistant: (task.source.chat_template=hh)" in words for words in logged)
    for model in ("base", "model"):
        assets, logged = load(parts, model=model, chat_template="hh")
        assert rendered(assets) == f"\n\nHuman: {assets.train_prompts[0].text}\n\nAssistant:"
        assert not any("has no chat template" in words for words in logged)


def test_a_template_may_be_a_file(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}go:")
    assets, _ = load(parts, model="base", chat_template=str(tmp_path / "mine.jinja"))
    assert rendered(assets) == f"[user] {assets.train_prompts[0].text} go:"
    assert str(tmp_path / "mine.jinja") in assets.versions


@pytest.mark.parametrize(
    ("template", "changes", "match"),
    [
        ("{{ 'Hello!' }}", {}, "its chat template drops the prompt; give another with task.source.chat_template=FILE"),
        ("{{ messages[0]['content'] }}", {}, "its chat template drops the prompt"),
        ("", {}, "is empty; give a jinja file"),
        ("{% for m in messages %}{{ m.content }}", {}, "its chat template rejects a dialogue"),
        (
            "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}",
            {"system_prompt": "Be brief."},
            "task.source.system_prompt=Be brief.: is not written by the chat template of the model; use null",
        ),
        (TEMPLATE, {"chat_template_kwargs": {"enable_thinking": False}}, "enable_thinking=False: is not read by the chat templ"),
    ],
)
def test_a_template_that_loses_something_is_refused(
    parts: Path, tmp_path: Path, template: str, changes: dict[str, Any], match: str
) -> None:
    (tmp_path / "mine.jinja").write_text(template)
    with pytest.raises(ConfigError, match=match):
        load(parts, chat_template=str(tmp_path / "mine.jinja"), **changes)


def test_a_template_that_does_not_exist_is_refused(parts: Path) -> None:
    with pytest.raises(ConfigError, match=r"task.source.chat_template=no.jinja: is neither hh nor plain nor a file"):
        load(parts, chat_template="no.jinja")


def test_a_system_prompt_and_variables_reach_the_prompts(parts: Path) -> None:
    assets, _ = load(parts, system_prompt="Be brief.", chat_template_kwargs={"enable_thinking": False})
    text = assets.train_prompts[0].text
    assert rendered(assets) == f"<no><system>Be brief.<|endoftext|><user>{text}<|endoftext|><assistant>"
    assert text.startswith("what is ")


def test_a_run_starts_from_an_adapter_merged_into_the_model(parts: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(parts / "model")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "sft")
    assets, logged = load(parts, adapter=str(tmp_path / "sft"))
    ids = torch.tensor([assets.train_prompts[0].ids])
    with torch.no_grad():
        torch.testing.assert_close(assets.model(ids).logits, adapted.eval()(ids).logits, atol=1e-5, rtol=1e-5)
        plain, _ = load(parts)
        assert (assets.model(ids).logits - plain.model(ids).logits).abs().max() > 1e-3
    assert any("merged" in words for words in logged) and str(tmp_path / "sft") in assets.versions
    config = json.loads((tmp_path / "sft" / "adapter_config.json").read_text())
    (tmp_path / "sft" / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["nothing"]}))
    with pytest.raises(ConfigError, match=r"task.source.adapter=.*/sft: does not fit .*; give its own adapter"):
        load(parts, adapter=str(tmp_path / "sft"))
    with pytest.raises(ConfigError, match=r"task.source.adapter=.*: adapter_config.json cannot be read"):
        load(parts, adapter=str(parts))


def go(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Ran:
    (tmp_path / "mine.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = [] if "task.reward" in str(more) else ["task.reward=mine.py:length"]
    return run(words(tmp_path / "results", parts / "model", parts / "text.jsonl", *reward, *more))


def test_knobs_typed_on_the_command_line_reach_a_run(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system prompt with odd characters, variables of the template, and DPO's refusal of what it does not read."""
    more = ["task.source.system_prompt=Be brief, it's {1}: [a]", "task.source.chat_template_kwargs={enable_thinking: false}"]
    ran = go(parts, tmp_path, monkeypatch, *more)
    assert ran.code == 0, ran.printed
    refused = go(parts, tmp_path, monkeypatch, "algo=dpo", "sampler@task.sampler=offline_pairs", "task.missing_eos_penalty=1")
    assert refused.code == 2 and "task.missing_eos_penalty=1: would be ignored" in refused.printed
    pairs = go(parts, tmp_path, monkeypatch, "algo=dpo", "sampler@task.sampler=offline_pairs")
    assert pairs.code == 2 and "contains prompts but no pairs of answers (chosen and rejected)" in pairs.printed, pairs.printed


def test_cut_completions_lose_the_penalty(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = go(parts, tmp_path, monkeypatch, "task.missing_eos_penalty=3")
    frame = pd.read_parquet(ran.folder / "metrics.parquet")
    assert (frame["language/truncated_share"] > 0).all()
    lost = frame["reward/length_mean"] - frame["reward/train_mean"]
    np.testing.assert_allclose(lost, 3 * frame["language/truncated_share"], rtol=1e-4)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_masked_completions_have_no_weight(reduction: str) -> None:
    rows = [([5, 6, 1], [0.0] * 3, True), ([5, 6], [0.0] * 2, False), ([7], [0.0], False), ([8], [0.0], False)]
    completions = make_completions([[4]] * 4, rows, 0, torch.device("cpu"))
    minibatches = [[torch.tensor([0, 1])], [torch.tensor([2, 3])]]  # the second has no finished completion
    sampling = replace(SAMPLING, reduction=reduction)
    weight = token_weights(completions, minibatches, replace(sampling, mask_truncated=True))
    first = 1 / 3 if reduction == "token_mean" else 1 / 6  # TRL divides by all sequences
    torch.testing.assert_close(weight, torch.tensor([first] * 3 + [0.0] * 4))
    everything = token_weights(completions, minibatches, sampling)
    assert (everything > 0).all()


def test_a_run_of_cut_completions_alone_learns_nothing(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ("task.max_new_tokens=1", "task.source.max_new_tokens=1", "update.lr=0.1", "penalty=none")
    short += ("task.reward=mine.py:letters",)
    for masked, still in (("true", True), ("false", False)):
        more = (f"task.mask_truncated_completions={masked}", f"name=masked_{masked}", *short)
        ran = go(parts, tmp_path, monkeypatch, *more)
        assert ran.code == 0, ran.printed
        frame = pd.read_parquet(ran.folder / "metrics.parquet")
        assert (frame["language/truncated_share"] == 1).all() and (frame["ratio/abs_log_max"] == 0).all() == still


def test_special_tokens_are_visible_to_rewards_on_request(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose most probable token is the special token 2, which is no end."""
    folder = write_model(tmp_path / "model", template=SYSTEM, context=128)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(7)]})
    tokenizer.save_pretrained(folder)
    token = tokenizer.convert_ids_to_tokens(7)
    (tmp_path / "seen.py").write_text(f"def seen(completions): return [float({token!r} in text) for text in completions]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    shares = {}
    for skip in ("true", "false"):
        more = (f"task.skip_special_tokens={skip}", f"name=skip_{skip}", "task.max_new_tokens=60", "task.group_size=8")
        ran = run(words(tmp_path / "results", folder, parts / "text.jsonl", "task.reward=seen.py:seen", *more))
        assert ran.code == 0, ran.printed
        shares[skip] = pd.read_parquet(ran.folder / "metrics.parquet")["reward/train_mean"].mean()
    assert shares["true"] == 0 < shares["false"]
