"""Anthropic's HH-RLHF pairs (Bai et al., arXiv 2204.05862): one dialogue a line, with the answer people chose and the other.

A line is {"chosen": TEXT, "rejected": TEXT} with TEXT = "\\n\\nHuman: ...\\n\\nAssistant: ...", alike up to the last answer.
Files are jsonl or jsonl.gz, here or in a data set of the hub (fetching from the hub was never run here).
Of two consecutive turns by one speaker the template sees one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rgpo.errors import ConfigError, first_line, require
from rgpo.language.assets import Say
from rgpo.language.policy.pretrained import fetch_from_hub

KEY = "task.source.data"
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ANSWER = "\n\nAssistant:"
ROLES = {"Human": "user", "Assistant": "assistant"}
ENDINGS = (".jsonl", ".jsonl.gz")


class Pair(NamedTuple):
    """A dialogue up to an answer ("Human: ...\\n\\nAssistant: ...\\n\\nHuman: ..."), and the two answers."""

    prompt: str
    chosen: str
    rejected: str


def check_data(data: str | None) -> None:
    """Refuse what is plainly no file, folder or owner/name/subset of the hub, without reading it. ConfigError."""
    if not data:
        raise ConfigError(
            f"{KEY}={data}: give a jsonl(.gz) of HH-RLHF's format, a folder of them or Anthropic/hh-rlhf/helpful-base."
        )
    path = Path(data).expanduser()
    if path.exists():
        _files_below(path, data)
    else:
        on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)?", data) and data[0] not in ".~" and not data.endswith(ENDINGS)
        require(bool(on_hub), KEY, data, "there is no such file or folder.")


def load_pairs(data: str, say: Say) -> tuple[list[Pair], list[Path]]:
    """Every usable pair of data, and its files; says how many were left out for what reason. ConfigError."""
    files = find_files(data)
    pairs, skipped = read_pairs(files)
    say(f"{data}: {len(pairs)} pairs" + "".join(f"; {count} with {reason} left out" for reason, count in skipped.items()))
    return pairs, files


def find_files(data: str) -> list[Path]:
    """The jsonl(.gz) files of a path, or of a data set of the hub, fetched at first use; in order of their names. ConfigError."""
    check_data(data)
    path = Path(data).expanduser()
    if not path.exists():
        owner, name, *subset = data.split("/")
        wanted = [f"{'/'.join([*subset, '*'])}{ending}" for ending in ENDINGS]
        path = fetch_from_hub(KEY, f"{owner}/{name}", repo_type="dataset", allow_patterns=wanted).joinpath(*subset)
    return _files_below(path, data)


def _files_below(path: Path, data: str) -> list[Path]:
    files = [path] if path.is_file() else sorted(file for ending in ENDINGS for file in path.rglob(f"*{ending}"))
    require(bool(files), KEY, data, f"has no file that ends in {' or '.join(ENDINGS)}.")
    return files


def read_pairs(files: Sequence[Path]) -> tuple[list[Pair], Counter[str]]:
    """Every usable pair in order, and how many were left out for what reason. ConfigError, with the line, for a malformed one.

    Left out, since the published files have some: prompts that differ, an empty answer, two answers alike, no question last.
    """
    pairs, skipped = [], Counter[str]()
    for file in files:
        for place, line in _lines(file):
            pair, trouble = _parse(place, line)
            if trouble:
                skipped[trouble] += 1
            else:
                pairs.append(pair)
    if not pairs:
        names = ", ".join(map(str, files))
        left_out = "".join(f"; {count} with {reason}" for reason, count in skipped.items())
        raise ConfigError(f"{KEY}={names}: has no usable pair{left_out}.")
    return pairs, skipped


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file}, line {number}", line.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{KEY}={file}: cannot be read after line {number} ({first_line(error)}).") from error


def _parse(place: str, line: str) -> tuple[Pair, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{KEY}: {place} is no JSON ({first_line(error)}), mend or delete the line.") from error
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("chosen", "rejected")):
        raise ConfigError(f"{KEY}: {place} lacks a text under chosen or rejected, mend or delete the line.")
    (prompt, chosen), (other, rejected) = (_cut(place, key, row[key]) for key in ("chosen", "rejected"))
    if prompt != other:
        trouble = "prompts that differ"
    elif not (chosen and rejected):
        trouble = "an empty answer"
    elif chosen == rejected:
        trouble = "two answers alike"
    else:
        trouble = "" if messages(prompt)[-1]["role"] == "user" else "no question before the answer"
    return Pair(prompt, chosen, rejected), trouble


def _cut(place: str, key: str, text: str) -> tuple[str, str]:
    """(prompt, answer) of a dialogue."""
    speakers = TURN.findall(text)
    if not text.startswith("\n\nHuman:") or speakers[-1] != "Assistant":
        raise ConfigError(f"{KEY}: {place} must begin with a turn of the Human and end with one of the Assistant under {key}.")
    prompt, _, answer = text.rpartition(ANSWER)
    return prompt.strip(), answer.strip()


def messages(prompt: str, *answer: str) -> list[dict[str, str]]:
    """The turns of a prompt's text, and an answer's, for a chat template."""
    parts = TURN.split(prompt)
    said: list[dict[str, str]] = []
    for speaker, words in zip(parts[1::2], parts[2::2], strict=True):
        role = ROLES[speaker]
        if said and said[-1]["role"] == role:
            said[-1]["content"] += f"\n\n{words.strip()}"
        else:
            said.append({"role": role, "content": words.strip()})
    return said + [{"role": "assistant", "content": words} for words in answer]


def split(pairs: Iterable[Pair], shares: Sequence[float], seed: int) -> list[list[Pair]]:
    """len(shares) disjoint parts; the hash of seed and a dialogue's first turn decides, so all of a dialogue stays together."""
    parts: list[list[Pair]] = [[] for _ in shares]
    for pair in pairs:
        first = messages(pair.prompt)[0]["content"]
        place = int.from_bytes(hashlib.sha256(f"{seed} {first}".encode()).digest()[:8]) / 2**64 * sum(shares)
        index = 0
        while index < len(shares) - 1 and place >= shares[index]:
            place -= shares[index]
            index += 1
        parts[index].append(pair)
    return parts
