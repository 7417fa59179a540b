"""Archives of sentences as the embedded world downloads them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np

from rgpo.language.sources.embedded import corpus
from rgpo.language.sources.embedded.training import Recipe

TINY = Recipe(
    vocab_size=320,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    lm_epochs=1,
    lm_lr=1e-2,
    reward_epochs=8,
    reward_lr=1e-2,
)


def write_tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return out.getvalue()


def write_sdist(folder: Path, movie: list[tuple[str, list[int]]], amazon: list[tuple[str, list[int]]]) -> str:
    """Put an archive in the format of the real one into folder; returns its sha256."""
    files = {"hutto_ICWSM_2014/_README_.txt": b"\xff not utf-8"}
    for source, rows, mark in (("movie", movie, ""), ("amazon", amazon, "\ufeff")):
        truth = [f"{source}_{i}\t{np.mean(r):.11f}\t{text}\r\n" for i, (text, r) in enumerate(rows)]
        raters = [f"{source}_{i}\t{np.mean(r):.9f}\t{np.std(r):.5f}\t{r}\r\n" for i, (_, r) in enumerate(rows)]
        files[f"hutto_ICWSM_2014/{source}ReviewSnippets_GroundTruth.txt"] = "".join(truth).encode()
        files[f"hutto_ICWSM_2014/{source}ReviewSnippets_anonDataRatings.txt"] = (mark + "".join(raters)).encode()
    data = write_tar({corpus.INNER: write_tar(files), "vaderSentiment-3.3.2/setup.py": b"raise SystemExit('must not run')"})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / corpus.SDIST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def reviews(count: int, noun: str, seed: int) -> list[tuple[str, list[int]]]:
    """Sentences whose one adjective decides the rating, up to the raters' noise."""
    rng = np.random.default_rng(seed)
    value = {"great": 3, "lovely": 2, "fine": 1, "dull": -1, "bad": -2, "awful": -3}
    out = []
    for i in range(count):
        word = list(value)[int(rng.integers(6))]
        text = f"The {noun} number {i} is a {word} thing to have at home ."
        out.append((text, np.clip(value[word] + rng.integers(-1, 2, size=20), -4, 4).tolist()))
    return out
