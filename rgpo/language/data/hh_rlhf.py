"""Anthropic's HH-RLHF pairs (Bai et al., arXiv 2204.05862): one dialogue per line, with the answers people chose and rejected.

A line is {"chosen": TEXT, "rejected": TEXT} with TEXT = "\\n\\nHuman: ...\\n\\nAssistant: ...", equal up to the last answer.
Files are jsonl or jsonl.gz, local or in a data set on the hub (downloading it from the hub was never run here). In a folder,
files without pairs are left out, and what lies under a name with the word test, eval, dev, valid or heldout is never trained on.
Consecutive turns of one speaker are merged into one for the chat template.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rgpo.errors import ConfigError, first_line, require
from rgpo.language.assets import Log
from rgpo.language.policy.model_files import fetch_from_hub, find_local

KEY = "task.source.data"
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ANSWER = "\n\nAssistant:"
ROLES = {"Human": "user", "Assistant": "assistant"}
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")  # owner/name, /subset, @revision
ENDINGS = (".jsonl", ".jsonl.gz")
HELDOUT = re.compile(r"(?<![a-z])(tests?|testing|eval|evaluation|dev|val|valid|validation|held.?out)(?![a-z])")  # in names
LFS_POINTER = b"version https://git-lfs"  # the first bytes of a file that `git clone` did not download
MAX_BYTES = 16 * 2**20  # of a line


class Pair(NamedTuple):
    """A dialogue up to an answer ("Human: ...\\n\\nAssistant: ...\\n\\nHuman: ..."), and the two answers."""

    prompt: str
    chosen: str
    rejected: str
    heldout: bool = False  # from a test file


def check_data(data: str | None) -> None:
    """Check that data is a file, a folder or owner/name/subset of the hub, without reading it.

    Raises: ConfigError if it is none of them.
    """
    if not data:
        raise ConfigError(
            f"{KEY}={data}: must be given: a jsonl(.gz) in HH-RLHF's format, a folder of them, or Anthropic/hh-rlhf/helpful-base."
        )
    path = find_local(KEY, data)
    if path is not None:
        _files_below(path, data)
    else:
        on_hub = ON_HUB.fullmatch(data) is not None and data[0] not in ".~" and not data.endswith(ENDINGS)
        require(on_hub, KEY, data, "there is no such file or folder; give a path or owner/name/subset of the hub.")


def load_pairs(data: str, log: Log) -> tuple[list[Pair], list[Path]]:
    """Every usable pair of data, and its files; logs how many were left out for which reason.

    Raises: ConfigError if a file cannot be read, a line is malformed or no pair is usable.
    """
    found = find_files(data)
    files = found if len(found) == 1 else [file for file in found if _has_pairs(file)]
    for file in found:
        if file not in files:
            log(f"{file}: contains no pairs, left out")
    root = Path(data).expanduser()
    heldout = [file for file in files if root.is_dir() and is_heldout(file, root)]
    require(
        len(heldout) < len(files) or not heldout,
        KEY,
        data,
        "contains test files only; give one of them, or add files to train on.",
    )
    pairs, skipped = read_pairs(files, heldout)
    if heldout:
        tested = {pair.prompt for pair in pairs if pair.heldout}
        kept = [pair for pair in pairs if pair.heldout or pair.prompt not in tested]
        names = ", ".join(str(file.relative_to(root)) for file in heldout)
        log(f"held out in place of heldout_share: {names}; {len(pairs) - len(kept)} other pairs with the same prompts left out")
        pairs = kept
    log(f"{data}: {len(pairs)} pairs" + "".join(f"; {count} with {reason} left out" for reason, count in skipped.items()))
    return pairs, files


def find_files(data: str) -> list[Path]:
    """The jsonl(.gz) files of a path, or of a data set of the hub, downloaded at first use; sorted by name.

    Raises: ConfigError if there is none.
    """
    check_data(data)
    path = find_local(KEY, data)
    if path is None:
        place, at, revision = data.partition("@")
        owner, name, *subset = place.split("/")
        patterns = [f"{'/'.join([*subset, '*'])}{ending}" for ending in ENDINGS]
        repository = f"{owner}/{name}{at}{revision}"
        path = fetch_from_hub(KEY, repository, repo_type="dataset", allow_patterns=patterns).joinpath(*subset)
    return _files_below(path, data)


def _files_below(path: Path, data: str) -> list[Path]:
    files = [path]
    if not path.is_file():
        below = sorted(file for ending in ENDINGS for file in path.rglob(f"*{ending}") if file.is_file())
        files = [file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    require(bool(files), KEY, data, f"contains no file that ends in {' or '.join(ENDINGS)}.")
    return files


def is_heldout(file: Path, root: Path) -> bool:
    """True if the file's name, or that of a folder between root and it, has a word of HELDOUT."""
    return HELDOUT.search(file.relative_to(root).as_posix().lower()) is not None


def _has_pairs(file: Path) -> bool:
    """True if any line has a chosen answer."""
    return any('"chosen"' in line for _, line in _lines(file))


def read_pairs(files: Sequence[Path], heldout: Collection[Path] = ()) -> tuple[list[Pair], Counter[str]]:
    """Every usable pair in order, marked if its file is in heldout, and how many were left out for which reason.

    The published files contain pairs with different prompts, an empty answer, equal answers or no question at the end; these
    are left out.
    Raises: ConfigError, with file and line, if a line is malformed; ConfigError if no pair is usable.
    """
    pairs, skipped = [], Counter[str]()
    for file in files:
        for location, line in _lines(file):
            pair, defect = _parse(location, line)
            if defect:
                skipped[defect] += 1
            else:
                pairs.append(pair._replace(heldout=file in heldout))
    if not pairs:
        names = ", ".join(map(str, files))
        left_out = "".join(f"; {count} with {reason}" for reason, count in skipped.items())
        raise ConfigError(f"{KEY}={names}: has no usable pair{left_out}.")
    return pairs, skipped


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    number = 0
    try:
        with file.open("rb") as start:
            pointer = start.read(len(LFS_POINTER)) == LFS_POINTER
        require(not pointer, KEY, file, "is a pointer of Git LFS without the data; run `git lfs pull` in the clone.")
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_BYTES + 1), b""), 1):
                if len(line) > MAX_BYTES:
                    raise ConfigError(f"{KEY}={file}: line {number} is longer than {MAX_BYTES} bytes; remove it.")
                if line.strip():
                    yield f"{file}, line {number}", line.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{KEY}={file}: cannot be read after line {number} ({first_line(error)}).") from error


def _parse(location: str, line: str) -> tuple[Pair, str]:
    """The pair, and "" or the reason to leave it out."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{KEY}: {location} is not valid JSON ({first_line(error)}); fix or remove the line.") from error
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("chosen", "rejected")):
        raise ConfigError(f"{KEY}: {location} lacks a text under chosen or rejected; fix or remove the line.")
    (prompt, chosen), (other, rejected) = (_split_answer(location, key, row[key]) for key in ("chosen", "rejected"))
    if prompt != other:
        defect = "different prompts"
    elif not (chosen and rejected):
        defect = "an empty answer"
    elif chosen == rejected:
        defect = "equal answers"
    else:
        defect = "" if to_messages(prompt)[-1]["role"] == "user" else "no question before the answer"
    return Pair(prompt, chosen, rejected), defect


def _split_answer(location: str, key: str, text: str) -> tuple[str, str]:
    """(prompt, answer) of a dialogue."""
    speakers = TURN.findall(text)
    if not text.startswith("\n\nHuman:") or speakers[-1] != "Assistant":
        raise ConfigError(
            f"{KEY}: {location} must begin with a turn of the Human and end with one of the Assistant under {key}; "
            "fix or remove the line."
        )
    prompt, _, answer = text.rpartition(ANSWER)
    return prompt.strip(), answer.strip()


def to_messages(prompt: str, *answer: str) -> list[dict[str, str]]:
    """The turns of a prompt's text, followed by an answer if given, as a chat template takes them."""
    parts = TURN.split(prompt)
    messages: list[dict[str, str]] = []
    for speaker, text in zip(parts[1::2], parts[2::2], strict=True):
        role = ROLES[speaker]
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{text.strip()}"
        else:
            messages.append({"role": role, "content": text.strip()})
    return messages + [{"role": "assistant", "content": text} for text in answer]


def split_by_dialogue(pairs: Iterable[Pair], shares: Sequence[float], seed: int) -> list[list[Pair]]:
    """len(shares) disjoint parts; a hash of seed and first turn decides, so that all pairs of a dialogue stay together.

    Where some pairs are held out by their files, the last part consists of these, and its share is not used.
    """
    pairs = list(pairs)
    heldout = [pair for pair in pairs if pair.heldout]
    if heldout:
        return [*split_by_dialogue([p for p in pairs if not p.heldout], shares[:-1], seed), heldout]
    parts: list[list[Pair]] = [[] for _ in shares]
    for pair in pairs:
        first = to_messages(pair.prompt)[0]["content"]
        place = int.from_bytes(hashlib.sha256(f"{seed} {first}".encode()).digest()[:8]) / 2**64 * sum(shares)
        index = 0
        while index < len(shares) - 1 and place >= shares[index]:
            place -= shares[index]
            index += 1
        parts[index].append(pair)
    return parts
