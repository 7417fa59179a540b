"""The embedded scale's world: built once on this machine, kept in the cache, verified whenever it is loaded.

    <cache>/embedded-<version>-<recipe>/
      model/            language model and tokenizer (AutoModelForCausalLM, AutoTokenizer)
      reward_model/     proxy (AutoModelForSequenceClassification; its tokenizer appends eos)
      gold/             gold judge; no policy sees it
      prompts.json      train and heldout prompts
      report.json       sizes, accuracies with intervals, samples, seconds, versions, fingerprint
      stamp.json        recipe and sha256 of every file above but the report

Sentences fall into four disjoint sets: prompts, the proxy's, the gold judge's, held out. The proxy learns from every second
rater's mean rating of its sentences, the gold judge from the other raters' mean of its own. Language model and tokenizer read the
text of all but the held-out sentences, never a rating. Two builds with the same libraries on the same machine agree bit for bit.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rgpo.errors import ConfigError
from rgpo.tasks.embedded import corpus
from rgpo.tasks.embedded.judges import GoldJudge, ProxyReward

if TYPE_CHECKING:
    from rgpo.tasks.embedded.training import Recipe

__all__ = ["GoldJudge", "ProxyReward", "World", "load_world"]

VERSION = "1"  # of this code; another one builds another folder
Say = Callable[[str], None]


@dataclass(frozen=True)
class World:
    """Where everything lies, and the prompts; a prompt is 3 to 6 words, at most 8 tokens and no eos."""

    folder: Path
    model: Path
    reward_model: Path
    gold: Path
    train_prompts: list[str]
    heldout_prompts: list[str]
    report: dict[str, Any]


def load_world(cache: Path, say: Say, recipe: Recipe | None = None, sha256: str = corpus.SHA256) -> World:
    """The world of a recipe and of the sentences with that sha256, built if the cache has none or a damaged one.

    ConfigError if the cache cannot be written or the sentences cannot be had.
    """
    from rgpo.tasks.embedded.training import Recipe

    wanted = {"version": VERSION, "sdist": sha256, "recipe": (recipe or Recipe())._asdict()}
    digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    folder = cache / f"embedded-{VERSION}-{digest[:8]}"
    if not _intact(folder):
        with _lock(cache, say):
            if not _intact(folder):  # nobody else built it while we waited
                _build_aside(folder, recipe or Recipe(), wanted, say)
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return World(folder, folder / "model", folder / "reward_model", folder / "gold", prompts["train"], prompts["heldout"], report)


@contextmanager
def _lock(cache: Path, say: Say) -> Iterator[None]:
    """Wait until no other process builds; the kernel lets go of the lock however a process dies."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = (cache / ".embedded.lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"RGPO_CACHE={cache}: cannot write there ({error.strerror}); set RGPO_CACHE to a folder that can be written."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("embedded world: another process builds it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file but the report and the stamp."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ("stamp.json", "report.json"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _intact(folder: Path) -> bool:
    """Whether the folder is complete and its files are those that were written."""
    try:
        stamp = json.loads((folder / "stamp.json").read_text())
        json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return bool(stamp["sha256"] == _digests(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _build_aside(folder: Path, recipe: Recipe, wanted: dict[str, Any], say: Say) -> None:
    """Build in a hidden folder beside and rename it; the lock is held, so a hidden folder that is there is a dead process's."""
    from rgpo.tasks.embedded.build import build

    say(f"embedded world: building {folder} once, about two minutes on one core")
    aside = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(aside, ignore_errors=True)
    cpu_s, wall_s = time.process_time(), time.monotonic()
    report = build(aside, corpus.read_sentences(corpus.fetch(folder.parent, wanted["sdist"])), recipe, say)
    sha256 = _digests(aside)
    report["fingerprint"] = hashlib.sha256(json.dumps(sha256).encode()).hexdigest()
    report["versions"] = {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers", "numpy", "scipy")
    }
    report["cpu_s"], report["wall_s"] = time.process_time() - cpu_s, time.monotonic() - wall_s
    (aside / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (aside / "stamp.json").write_text(json.dumps({**wanted, "sha256": sha256}, indent=1) + "\n")
    if folder.exists():
        say(f"embedded world: {folder} was damaged and is replaced")
        shutil.rmtree(folder)
    aside.rename(folder)
    proxy, gold = report["proxy"]["accuracy"], report["gold"]["accuracy"]
    say(f"embedded world: done in {report['cpu_s']:.0f} CPU-s; held-out pairs right: proxy {proxy:.1%}, gold judge {gold:.1%}")
