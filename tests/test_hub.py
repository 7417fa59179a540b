"""Scale paper's source on tiny checkpoints in the real format: assets, reward models, preference pairs, and errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pair_files import line, write
from safetensors.torch import load_file, save_file
from tiny_models import write_model, write_reward_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rgpo.errors import ConfigError, NonFiniteError
from rgpo.language.rewards.reward_model import ChatRewardModel
from rgpo.language.sources.hub import Hub
from rgpo.paths import conf_dir

Make = Callable[..., Hub]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hub")
    long = line("\n\nHuman: " + "why? " * 60)
    lines = [line(f"\n\nHuman: what is {i}?") for i in range(40)]
    return {
        "model": str(write_model(folder / "model")),
        "reward_model": str(write_reward_model(folder / "reward")),
        "data": str(write(folder / "hh" / "train.jsonl.gz", *lines, long, lines[0])),
    }


@pytest.fixture
def make(parts: dict[str, Any]) -> Make:
    """A source with the yaml's settings, but tiny parts, float32 and the CPU."""
    settings = yaml.safe_load((conf_dir() / "scale" / "paper.yaml").read_text())["task"]["source"]
    assert settings.pop("_target_") == "rgpo.language.sources.hub.Hub"
    local = {"max_new_tokens": 8, "dtype": "float32", "reward_dtype": "float32", "device": "cpu", "heldout_share": 0.3}
    return lambda **changes: Hub(**{**settings, **parts, **local, **changes})


def test_everything_is_loaded_from_folders(make: Make, parts: dict[str, Any]) -> None:
    source, logged = make(), list[str]()
    source.check()
    got = source.load(logged.append)
    assert type(got.model).__name__ == "Qwen2ForCausalLM" and not got.model.training
    assert (got.eos_id, got.pad_id, got.num_dropped, got.gold_reward_model) == (1, 0, 1, None)
    train, heldout = ({prompt.text for prompt in prompts} for prompts in (got.train_prompts, got.heldout_prompts))
    assert not train & heldout and train | heldout == {f"Human: what is {i}?" for i in range(40)} and 3 < len(heldout) < 22
    prompt = got.train_prompts[0]
    assert got.tokenizer.decode(prompt.ids) == f"<user>{prompt.text.removeprefix('Human: ')}<|endoftext|><assistant>"
    assert any("1 longer than 56 tokens left out" in words for words in logged)  # a context of 64 less 8 new tokens
    assert make().load(logged.append).train_prompts == got.train_prompts


def test_the_reward_is_the_classifiers_logit_under_its_own_template(make: Make, parts: dict[str, Any]) -> None:
    prompts = ["Human: what is 1?", "Human: a\n\nAssistant: b\n\nHuman: c"] * 3
    completions = ["one", "a cat is an animal. " * 4, "", "\n\nHuman: no", "one", "?"]
    reward_model = make(reward_batch_size=2).load(lambda words: None).reward_model
    scores = reward_model(prompts, completions)
    model = AutoModelForSequenceClassification.from_pretrained(parts["reward_model"])
    tokenizer = AutoTokenizer.from_pretrained(parts["reward_model"])
    for prompt, completion, score in zip(prompts, completions, scores, strict=True):
        before = "<user>what is 1?" if "1" in prompt else "<user>a<|endoftext|><assistant>b<|endoftext|><user>c"
        ids = torch.tensor([tokenizer(f"{before}<|endoftext|><assistant>{completion}<|endoftext|>")["input_ids"]])
        by_hand = model.score(model.model(input_ids=ids).last_hidden_state[0, -1]).item()
        assert score == pytest.approx(by_hand, abs=1e-5)
    assert scores.dtype == np.float64 and scores.std() > 0


def test_a_reward_model_without_a_template_gets_the_format_of_the_data(tmp_path: Path) -> None:
    options = {"dtype": "float32", "device": "cpu", "batch_size": 2}
    plain = ChatRewardModel("key", str(write_reward_model(tmp_path / "plain", template=None)), **options)
    assert plain.render("Human: a", "b") == "\n\nHuman: a\n\nAssistant: b" and plain.model.special_tokens
    assert plain(["Human: a"], ["b"])[0] == plain.model(["\n\nHuman: a\n\nAssistant: b"])[0]


def test_a_gold_model_is_a_second_one(make: Make, tmp_path: Path) -> None:
    got = make(gold_model=str(write_reward_model(tmp_path / "gold", seed=2))).load(lambda words: None)
    assert got.gold_reward_model is not None
    assert got.gold_reward_model(["Human: a"], ["b"])[0] != got.reward_model(["Human: a"], ["b"])[0]


def test_a_config_without_a_padding_token_uses_the_tokenizers(tmp_path: Path) -> None:
    folder = write_reward_model(tmp_path / "reward")
    options = {"dtype": "float32", "device": "cpu", "batch_size": 2}
    exchanges = (["Human: a", "Human: a cat or a dog?"], ["b", "c"])
    wanted = ChatRewardModel("key", str(folder), **options)(*exchanges)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    np.testing.assert_allclose(ChatRewardModel("key", str(folder), **options)(*exchanges), wanted, atol=1e-6)


def test_a_reward_of_nan_is_a_non_finite_error(make: Make, tmp_path: Path) -> None:
    folder = write_reward_model(tmp_path / "reward")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "score.weight": weights["score.weight"] * torch.nan}, folder / "model.safetensors", {"format": "pt"})
    reward_model = make(reward_model=str(folder)).load(lambda words: None).reward_model
    with pytest.raises(NonFiniteError, match=r"reward: .*/reward gives nan for the text that ends in '.*yes<\|endoftext\|>'"):
        reward_model(["Human: a"], ["yes"])


def test_the_commits_of_downloads_are_recorded_and_may_be_pinned(
    make: Make, parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        """The cache's layout: snapshots/<commit> of each repository."""
        requests[repository] = options["revision"]
        place = tmp_path / repository.replace("/", "--") / "snapshots" / f"commit-of-{options['revision'] or 'main'}"
        source = Path(parts[repository.partition("/")[2]])
        if not place.exists() and source.is_dir():
            shutil.copytree(source, place)
        elif not place.exists():
            (place / "helpful").mkdir(parents=True)
            shutil.copy(source, place / "helpful")
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = make(model="hub/model@abc12", reward_model="hub/reward_model", data="hub/data/helpful@v2")
    source.check()
    got = source.load(lambda words: None)
    assert requests == {"hub/model": "abc12", "hub/reward_model": None, "hub/data": "v2"}
    assert got.versions == {
        "hub/model": "commit-of-abc12",
        "hub/reward_model": "commit-of-main",
        "hub/data/helpful": "commit-of-v2",
    }
    local = make().load(lambda words: None).versions  # folders have no commit
    assert local.keys() == {parts[key] for key in ("model", "data", "reward_model")} and {*map(len, local.values())} == {64}


def test_missing_files_and_bad_settings_are_refused_before_anything_is_loaded(make: Make, tmp_path: Path) -> None:
    for key in ("model", "reward_model", "gold_model"):
        with pytest.raises(ConfigError, match=rf"task.source.{key}={tmp_path}: has no config.json"):
            make(**{key: str(tmp_path)}).check()
    with pytest.raises(ConfigError, match=r"task.source.data=/nowhere.jsonl: there is no such file"):
        make(data="/nowhere.jsonl").check()
    make(model="Qwen/Qwen2.5-1.5B-Instruct", data="Anthropic/hh-rlhf/helpful-base").check()  # hub ids are looked up on loading
    for key, value in (("dtype", "half"), ("attn_implementation", "magic"), ("heldout_share", 1.0), ("max_prompt_tokens", 0)):
        with pytest.raises(ConfigError, match=f"task.source.{key}={value}: "):
            make(**{key: value})


def test_limits_that_leave_no_prompt_are_refused_by_their_key(make: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"max_prompt_tokens=3: leaves 0 for training, 0 held out \(41 are longer than 3 tokens\); raise it"
    ):
        make(max_prompt_tokens=3).load(lambda words: None)
    with pytest.raises(ConfigError, match=r"task.max_new_tokens=64: must be smaller than the context of 64 tokens"):
        make(max_new_tokens=64).load(lambda words: None)
    with pytest.raises(ConfigError, match=r"leaves 40 for training, 0 held out"):
        make(heldout_share=1e-6).load(lambda words: None)


def test_a_policy_is_no_reward_model(make: Make, parts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"task.source.reward_model=.*1 weights of a Qwen2ForSequenceClassification are not in"):
        make(reward_model=parts["model"]).load(lambda words: None)


def test_preference_pairs_are_those_of_the_training_prompts(make: Make) -> None:
    """In the data's order, repeated lines included, without held-out and overlong prompts; nothing is encoded before the call."""
    logged: list[str] = []
    got = make().load(logged.append)
    assert not any("preference" in line for line in logged)
    pairs = got.preference_pairs(99)
    assert got.preference_pairs(99) is pairs and sum("preference pairs" in line for line in logged) == 1
    train = [prompt.text for prompt in got.train_prompts]
    assert [pair.prompt.text for pair in pairs] == train + ([train[0]] if train[0] == "Human: what is 0?" else [])
    assert all(pair.prompt in got.train_prompts for pair in pairs)
    assert {got.tokenizer.decode(pair.chosen_ids) for pair in pairs} == {"An animal.<|endoftext|>"}
    assert {got.tokenizer.decode(pair.rejected_ids) for pair in pairs} == {"No idea: none.<|endoftext|>"}
    cut = got.preference_pairs(3)
    assert all(len(pair.chosen_ids) == len(pair.rejected_ids) == 3 and 1 not in pair.chosen_ids for pair in cut)
