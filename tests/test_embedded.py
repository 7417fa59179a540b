"""The embedded scale: reading the corpus, building the artifacts end to end twice, and its preference pairs."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import TINY, reviews, write_sdist
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rgpo.errors import ConfigError
from rgpo.language.assets import LanguageAssets, PreferencePair
from rgpo.language.rewards.reward_model import GoldRewardModel, RewardModel
from rgpo.language.sources.embedded import corpus
from rgpo.language.sources.embedded.artifacts import Artifacts, load_artifacts
from rgpo.language.sources.embedded.build import make_prompts
from rgpo.language.sources.embedded.pairs import sample_pairs
from rgpo.language.sources.embedded.source import Embedded


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Artifacts]:
    cache = tmp_path_factory.mktemp("cache")
    sha256 = write_sdist(cache, reviews(300, "movie", 0), reviews(200, "camera", 1))
    return cache, sha256, load_artifacts(cache, lambda line: None, TINY, sha256)


def load_source(built: tuple[Path, str, Artifacts], monkeypatch: pytest.MonkeyPatch) -> LanguageAssets:
    """The source's assets, from the tiny artifacts."""
    monkeypatch.setattr("rgpo.language.sources.embedded.artifacts.load_artifacts", lambda cache, log: built[2])
    return Embedded().load(lambda line: None)


def test_the_source_loads_prompts_and_scores_whole_texts(
    built: tuple[Path, str, Artifacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    assets, artifacts = load_source(built, monkeypatch), built[2]
    assert [prompt.text for prompt in assets.train_prompts] == artifacts.train_prompts
    heldout = [prompt.text for prompt in assets.heldout_prompts]
    assert sorted(heldout) == sorted(artifacts.heldout_prompts) != heldout != artifacts.heldout_prompts  # shuffled once
    assert all(assets.tokenizer.decode(prompt.ids) == prompt.text for prompt in assets.train_prompts)
    assert (assets.eos_id, assets.pad_id, assets.num_dropped) == (1, 0, 0) and assets.gold_reward_model is not None
    texts = ["the movie is great .", "the camera is awful ."]
    halves = [text[:9] for text in texts], [text[9:] for text in texts]
    assert assets.reward_model(*halves).tolist() == RewardModel(artifacts.reward_model)(texts).tolist()
    assert assets.gold_reward_model(*halves).tolist() == GoldRewardModel(artifacts.gold_reward_model)(texts).tolist()


def test_preference_pairs_are_samples_of_the_reference_ranked_by_the_reward_model(
    built: tuple[Path, str, Artifacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = load_source(built, monkeypatch)
    pairs = assets.preference_pairs(9)
    position = {prompt.text: i for i, prompt in enumerate(assets.train_prompts)}
    order = [position[pair.prompt.text] for pair in pairs]
    assert order == sorted(set(order)) and len(order) > 0.9 * len(position)  # at most one per prompt; ties are left out
    answers = [(pair.prompt.text, ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    texts = [assets.tokenizer.decode(ids, skip_special_tokens=True) for _, ids in answers]
    score = assets.reward_model([text for text, _ in answers], texts)
    assert (score[::2] > score[1::2]).all()
    for _, ids in answers:
        assert 1 <= len(ids) <= 9 and 1 not in ids[:-1] and (ids[-1] == 1 or len(ids) == 9)


def test_preference_pairs_are_deterministic_and_drawn_only_on_request(
    built: tuple[Path, str, Artifacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the number of threads, the global generator nor the trained model matters; loading draws nothing."""
    calls: list[int] = []

    def counted(*arguments: Any) -> list[PreferencePair]:
        calls.append(arguments[-1])
        return sample_pairs(*arguments)

    monkeypatch.setattr("rgpo.language.sources.embedded.pairs.sample_pairs", counted)
    assets = load_source(built, monkeypatch)
    assert calls == []
    pairs = assets.preference_pairs(5)
    assert assets.preference_pairs(5) is pairs and calls == [5]
    with torch.no_grad():
        for p in assets.model.parameters():
            p.add_(0.1)
    torch.rand(3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert sample_pairs(built[2].model, assets.train_prompts, assets.reward_model, 5) == pairs
    finally:
        torch.set_num_threads(threads)
    assert assets.preference_pairs(6) != pairs and calls == [5, 6]


def test_caches_of_earlier_versions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default recipe's folder has the name that it had when the committed results were computed."""
    folders: list[str] = []

    def stop(folder: Path, *arguments: object, **options: object) -> None:
        folders.append(folder.name)
        raise KeyboardInterrupt

    monkeypatch.setattr("rgpo.language.sources.embedded.artifacts.build_once", stop)
    with pytest.raises(KeyboardInterrupt):
        load_artifacts(tmp_path, lambda line: None)
    assert folders == ["embedded-1-f7757759"]


def test_the_artifacts_are_complete_and_load_with_the_auto_classes(built: tuple[Path, str, Artifacts]) -> None:
    cache, _, artifacts = built
    assert {path.name for path in cache.iterdir()} == {corpus.SDIST, ".embedded.lock", artifacts.folder.name}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(artifacts.model), AutoTokenizer.from_pretrained(artifacts.model)
    assert type(model).__name__ == "Qwen2ForCausalLM" and model.num_parameters() == artifacts.report["model"]["num_parameters"]
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.padding_side) == ("<|pad|>", "<|endoftext|>", "left")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1) == (model.config.pad_token_id, model.config.eos_token_id)
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (0, 1)
    text = 'the movie — a "café" 😀 is great .'
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and 1 not in ids
    written = Tokenizer.from_file(str(artifacts.model / "tokenizer.json"))  # as it was trained
    assert (
        written.encode(text).ids == ids and written.encode("it's 1,221 isn't").ids == tokenizer("it's 1,221 isn't")["input_ids"]
    )
    scorer = AutoTokenizer.from_pretrained(artifacts.reward_model)
    assert scorer(text)["input_ids"] == [*ids, 1] and scorer.padding_side == "right"
    reward_model = AutoModelForSequenceClassification.from_pretrained(artifacts.reward_model)
    assert type(reward_model).__name__ == "Qwen2ForSequenceClassification" and reward_model.config.num_labels == 1


def test_prompts_begin_sentences_of_their_own_split(built: tuple[Path, str, Artifacts]) -> None:
    cache, sha256, artifacts = built
    parts = corpus.split(corpus.read_sentences(corpus.fetch(cache, sha256)), TINY.shares, TINY.seed)
    tokenizer = AutoTokenizer.from_pretrained(artifacts.model)
    for prompts, part in ((artifacts.train_prompts, parts.policy), (artifacts.heldout_prompts, parts.heldout)):
        assert len(prompts) == len(set(prompts)) > 10
        for prompt in prompts:
            ids = tokenizer(prompt)["input_ids"]
            whole = next(sentence.text for sentence in part if sentence.text.startswith(prompt + " "))
            assert 3 <= len(prompt.split(" ")) <= 6 and len(ids) <= 8
            assert tokenizer(whole)["input_ids"][: len(ids)] == ids
    assert not set(artifacts.train_prompts) & set(artifacts.heldout_prompts)


def test_a_text_too_short_for_a_prompt_gives_none() -> None:
    class Letters:
        def encode(self, text: str) -> Any:
            return type("Encoding", (), {"ids": list(text)})

    rng = np.random.default_rng(0)
    assert make_prompts(["a b c d", "a b c d e", "abcd efgh ijkl mnop qrst uvwx"], Letters(), rng) == ["a b c"]


def test_the_report_has_the_accuracies_of_the_reward_models(built: tuple[Path, str, Artifacts]) -> None:
    report = built[2].report
    for key in ("proxy", "proxy_for_gold_raters", "gold", "proxy_raters_for_gold_raters"):
        low, high = report[key]["interval"]
        assert low <= report[key]["accuracy"] <= high <= 1 and report[key]["num_pairs"] > 500
    assert report["gold"]["accuracy"] > 0.85  # the adjective determines the rating
    assert report["proxy"]["accuracy"] > 0.7
    assert len(report["samples"]) == 16 and sum(report["num_sentences"].values()) == 500


def test_two_builds_agree_and_another_seed_does_not(built: tuple[Path, str, Artifacts], tmp_path: Path) -> None:
    cache, sha256, artifacts = built
    for name, recipe in (("same", TINY), ("other", TINY._replace(seed=1))):
        (tmp_path / name).mkdir()
        (tmp_path / name / corpus.SDIST).write_bytes((cache / corpus.SDIST).read_bytes())
        torch.rand(3)  # the global generator's state must not matter
        again = load_artifacts(tmp_path / name, lambda line: None, recipe, sha256)
        assert (again.report["fingerprint"] == artifacts.report["fingerprint"]) == (name == "same")
        assert (again.report["samples"] == artifacts.report["samples"]) == (name == "same")
        assert (again.folder.name == artifacts.folder.name) == (name == "same")


def test_the_second_load_builds_nothing_and_damaged_artifacts_are_rebuilt(built: tuple[Path, str, Artifacts]) -> None:
    cache, sha256, artifacts = built
    lines: list[str] = []
    assert load_artifacts(cache, lines.append, TINY, sha256) == artifacts and lines == []
    weights = artifacts.reward_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    (cache / f".{artifacts.folder.name}.building").mkdir()  # left over from a killed process
    again = load_artifacts(cache, lines.append, TINY, sha256)
    assert again.report["fingerprint"] == artifacts.report["fingerprint"]
    assert any("damaged" in line for line in lines) and not (cache / f".{artifacts.folder.name}.building").exists()


def test_a_second_process_waits_for_the_first(built: tuple[Path, str, Artifacts]) -> None:
    cache, sha256, artifacts = built
    aside = artifacts.folder.with_name("aside")
    artifacts.folder.rename(aside)
    lines: list[str] = []
    waiting = threading.Event()

    def log(line: str) -> None:
        lines.append(line)
        waiting.set()

    with (cache / ".embedded.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=load_artifacts, args=(cache, log, TINY, sha256))
        thread.start()
        assert waiting.wait(20)
        aside.rename(artifacts.folder)  # the first process has finished
    thread.join(20)
    assert not thread.is_alive() and lines == ["embedded scale: waiting for another process that builds it"]


def test_scores_do_not_depend_on_the_batch(built: tuple[Path, str, Artifacts]) -> None:
    folder = built[2].reward_model
    texts = ["the movie is great .", "bad", "the camera number 7 is an awful thing to have at home . " * 20, "the movie", "😀"]
    reward_model = RewardModel(folder, batch_size=3)
    scores = reward_model(texts)
    assert scores.dtype == np.float64 and scores.shape == (5,) and reward_model([]).shape == (0,)
    np.testing.assert_allclose(scores, [reward_model([text])[0] for text in texts], atol=1e-5)
    np.testing.assert_allclose(scores[::-1], reward_model(texts[::-1]), atol=1e-5)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(texts[0])["input_ids"]])
    expected = model.score(model.model(input_ids=ids).last_hidden_state[0, -1]).item()  # the head on eos, by hand
    assert scores[0] == pytest.approx(expected, abs=1e-5)


def test_a_classifier_with_two_outputs_is_no_reward_model(built: tuple[Path, str, Artifacts], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward_model=.*nowhere: there is no such folder"):
        RewardModel(tmp_path / "nowhere")
    model = AutoModelForSequenceClassification.from_pretrained(built[2].reward_model)
    tokenizer = AutoTokenizer.from_pretrained(built[2].reward_model)
    model.config.num_labels = 2
    model.score = torch.nn.Linear(16, 2, bias=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has 2 outputs; give a reward model with one"):
        RewardModel(tmp_path)
