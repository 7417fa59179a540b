"""Data sets of prompts and pairs: a file, a folder or a data set on the hub (whose download we have never tested).

In a folder, files with unknown formats are skipped with a message, and files whose path contains the word test, eval, dev, valid
or heldout are never used for training. Unusable rows are dropped, with one message per file.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rgpo.errors import ConfigError, printable, require
from rgpo.language.assets import Log
from rgpo.language.data.dialogue import Pair, to_messages
from rgpo.language.data.formats import Malformed, Unusable, is_known, to_pair
from rgpo.language.data.rows import ENDINGS, KINDS, ForeignFile, Row, read_rows
from rgpo.language.policy.model_files import fetch_from_hub, find_local

KEY, EVAL_KEY = "task.source.data", "task.source.eval_data"
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")  # owner/name, /subset, @revision
HELDOUT = re.compile(r"(?<![a-z])(tests?|testing|eval|evaluation|dev|val|valid|validation|held.?out)(?![a-z])")  # in names
SPLIT = re.compile(r"[\w.-]+")
FORMATS = "HH-RLHF's chosen and rejected, prompt with or without answers, or messages"
MOST_BAD = 0.5  # largest share of malformed rows in a file


@dataclass(frozen=True)
class Dataset:
    """Pairs in order, some of which may come from held-out files, and the files from which they were read."""

    pairs: list[Pair]
    files: list[Path]
    eval_files: tuple[Path, ...] = ()  # files from eval_data


def check_data(data: str | None, key: str = KEY) -> None:
    """Check that data is a file, a folder or an id owner/name/subset on the hub, without reading it.

    Raises: ConfigError if it is none of these.
    """
    if not data:
        kinds = f"a jsonl, json, csv or parquet file of {FORMATS}"
        raise ConfigError(f"{key}={data}: must be given: {kinds}, a folder of them, or Anthropic/hh-rlhf/helpful-base.")
    path = find_local(key, data)
    if path is not None:
        _files_below(path, data, key)
    else:
        on_hub = ON_HUB.fullmatch(data) is not None and data[0] not in ".~" and not data.endswith(ENDINGS)
        require(on_hub, key, data, "there is no such file or folder; give a path or owner/name/subset of the hub.")


def check_eval_data(eval_data: str | None) -> None:
    """Same as check_data for held-out data, which may also be None or a word that occurs in the names of the data's files.

    Raises: ConfigError if it is none of these.
    """
    if eval_data is not None and not is_split(eval_data):
        check_data(eval_data, EVAL_KEY)


def is_split(eval_data: str) -> bool:
    """True for a word such as test_prefs that is not a path."""
    return SPLIT.fullmatch(eval_data) is not None and find_local(EVAL_KEY, eval_data) is None and not eval_data.endswith(ENDINGS)


def load_dataset(data: str, eval_data: str | None, log: Log) -> Dataset:
    """Read every usable row of data and eval_data; logs what was skipped and why.

    Raises: ConfigError if a file cannot be read, is of another format or holds mostly malformed rows, or no row is usable.
    """
    found = find_files(data)
    root = Path(data).expanduser()
    in_folder = len(found) > 1 or root.is_dir()
    place = root if root.is_dir() else found[0].parent
    heldout = [file for file in found if in_folder and is_heldout(file, place)]
    if eval_data is not None and is_split(eval_data):
        chosen = [file for file in found if eval_data.lower() in _name_below(file, place).lower()]
        require(bool(chosen), EVAL_KEY, eval_data, f"is neither a path nor in the name of a file of {data}.")
        found, extra = [file for file in found if file not in chosen], chosen
    else:
        extra = [] if eval_data is None else find_files(eval_data, EVAL_KEY)
    if eval_data is not None:
        unused = [_name_below(file, place) for file in heldout if file not in extra]
        if unused:
            log(f"{data}: {', '.join(unused)} left out; {EVAL_KEY}={eval_data} is held out instead")
        found, heldout = [file for file in found if file not in heldout], []
    require(len(heldout) < len(found), KEY, data, "contains test files only; give one of them, or add files to train on.")
    trained = [file for file in found if file not in heldout]
    eval_files: list[Path] = []
    pairs, used = read_pairs(trained, log, KEY, alone=not in_folder)
    tests, held = read_pairs(heldout, log, KEY, alone=False) if heldout else ([], [])
    if extra:
        tests, eval_files = read_pairs(extra, log, EVAL_KEY, alone=len(extra) == 1)
    if tests:
        tested = {str(pair.prompt) for pair in tests}
        kept = [pair for pair in pairs if str(pair.prompt) not in tested]
        names = ", ".join(_name_below(file, place) for file in [*held, *eval_files])
        log(f"held out in place of heldout_share: {names}; {len(pairs) - len(kept)} other rows with the same prompts left out")
        pairs = kept
    require(bool(pairs), KEY, data, f"contains no usable prompt to train on; give rows of {FORMATS}.")
    pairs += [replace(pair, heldout=True) for pair in tests]
    num_pairs = sum(pair.chosen is not None for pair in pairs)
    log(f"{data}: {len(pairs)} prompts, {num_pairs} of them with a pair of answers")
    return Dataset(pairs, used + held, tuple(eval_files))


def _name_below(file: Path, place: Path) -> str:
    return file.relative_to(place).as_posix() if file.is_relative_to(place) else str(file)


def find_files(data: str, key: str = KEY) -> list[Path]:
    """The data files at a path or in a data set on the hub, which is downloaded on first use; sorted by name.

    Raises: ConfigError if there is none.
    """
    check_data(data, key)
    path = find_local(key, data)
    if path is None:
        place, at, revision = data.partition("@")
        owner, name, *subset = place.split("/")
        patterns = [f"{'/'.join([*subset, '*'])}{ending}" for ending in ENDINGS]
        repository = f"{owner}/{name}{at}{revision}"
        path = fetch_from_hub(key, repository, repo_type="dataset", allow_patterns=patterns).joinpath(*subset)
    return _files_below(path, data, key)


def _files_below(path: Path, data: str, key: str) -> list[Path]:
    files = [path]
    if path.is_dir():
        below = sorted({file for ending in ENDINGS for file in path.rglob(f"*{ending}") if file.is_file()})
        files = [file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    elif not path.is_file():
        raise ConfigError(f"{key}={data}: is neither a file nor a folder; give one of them.")
    require(bool(files), key, data, f"contains no file that ends in {', '.join(KINDS)} or these with .gz.")
    return files


def is_heldout(file: Path, root: Path) -> bool:
    """True if the file's path below root contains a word in HELDOUT."""
    return HELDOUT.search(_name_below(file, root).lower()) is not None


def read_pairs(files: Sequence[Path], log: Log, key: str = KEY, alone: bool = True) -> tuple[list[Pair], list[Path]]:
    """Every usable pair or prompt in the files, in order, and the files that have any.

    alone: raise an error for a file with an unknown format instead of skipping it.

    Raises: ConfigError if a file cannot be read, is of another format or holds mostly malformed rows, or no row is usable.
    """
    pairs: list[Pair] = []
    used: list[Path] = []
    for file in files:
        if found := _read_file(key, file, log, alone):
            pairs += found
            used.append(file)
    if not pairs:
        names = printable(", ".join(map(str, files)))
        raise ConfigError(f"{key}={names}: contains no usable row; give rows of {FORMATS}.")
    return pairs, used


def _read_file(key: str, file: Path, log: Log, alone: bool) -> list[Pair]:
    pairs: list[Pair] = []
    malformed: list[Row] = []
    unusable = Counter[str]()
    foreign: list[str] | None = None
    num_known = num_malformed = 0
    try:
        for row in read_rows(key, file):
            if not row.defect and not is_known(row.columns):
                foreign = foreign or sorted(row.columns)
                row = row._replace(defect=f"has the columns {_listed(row.columns)}, no known format")
            num_known += not row.defect
            try:
                if not row.defect:
                    pairs.append(to_pair(row.columns))
            except Malformed as error:
                row = row._replace(defect=str(error))
            except Unusable as error:
                unusable[str(error)] += 1
            if row.defect:
                num_malformed += 1
                malformed = malformed or [row]
    except ForeignFile as error:
        if alone:
            raise
        log(f"{file}: left out ({error})")
        return []
    total = len(pairs) + num_malformed + unusable.total()
    if foreign is not None and num_known == 0:
        why = f"has the columns {_listed(foreign)}, which are no known format; rename them to {FORMATS}"
        require(not alone, key, file, f"{why}.")
        log(f"{file}: left out; it {why}")
        return []
    if num_malformed > MOST_BAD * total:
        example = f"the first, {malformed[0].place}, {malformed[0].defect}"
        raise ConfigError(f"{key}={file}: {num_malformed} of {total} rows cannot be read; {example}; fix or remove them.")
    if total == 0:
        log(f"{file}: is empty")
    if num_malformed:
        rows = "row" if num_malformed == 1 else "rows"
        log(f"{file}: {num_malformed} malformed {rows} left out; the first, {malformed[0].place}, {malformed[0].defect}")
    if unusable:
        log(f"{file}: " + "; ".join(f"{count} with {reason} left out" for reason, count in unusable.items()))
    return pairs


def _listed(columns: Iterable[str]) -> str:
    names = sorted(columns)
    return printable(", ".join(names[:12]) or "none") + (", ..." if len(names) > 12 else "")


def require_pairs(pairs: Sequence[Pair], data: str, why: str) -> list[Pair]:
    """The rows with two answers.

    Raises: ConfigError if there is none.
    """
    found = [pair for pair in pairs if has_answers(pair)]
    require(bool(found), KEY, data, f"contains prompts but no pairs of answers (chosen and rejected), {why}.")
    return found


def has_answers(pair: Pair) -> bool:
    """True for a row with two answers to compare."""
    return pair.chosen is not None and pair.rejected is not None


def split_by_dialogue(pairs: Iterable[Pair], shares: Sequence[float], seed: int) -> list[list[Pair]]:
    """Split into len(shares) disjoint parts by a hash of seed and first turn, so that all pairs of a dialogue stay together.

    If some pairs come from held-out files, these form the last part, and its share is not used.
    """
    pairs = list(pairs)
    heldout = [pair for pair in pairs if pair.heldout]
    if heldout:
        return [*split_by_dialogue([p for p in pairs if not p.heldout], shares[:-1], seed), heldout]
    parts: list[list[Pair]] = [[] for _ in shares]
    for pair in pairs:
        first = next(turn["content"] for turn in to_messages(pair.prompt) if turn["role"] == "user")
        place = int.from_bytes(hashlib.sha256(f"{seed} {first}".encode()).digest()[:8]) / 2**64 * sum(shares)
        index = 0
        while index < len(shares) - 1 and place >= shares[index]:
            place -= shares[index]
            index += 1
        parts[index].append(pair)
    return parts
