"""Digest of the code that determines a run's numbers.

It covers core, gates, learning and the task's package (without comments and docstrings) and the values of the chosen options in
conf/. Two runs with equal configuration, seed, digest and library versions give equal numbers on the same kind of machine.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import yaml

from rgpo import atomic
from rgpo.files import Unreadable, read_text
from rgpo.paths import cache_dir, conf_dir

ALWAYS = ("core", "gates.py", "learning")
GROUPS = (
    "algo",
    "task",
    "scale",
    "gate",
    "ref_gate",
    "gate_combination",
    "advantage",
    "penalty",
    "update",
    "sampler",
    "correction",
    "law",
)
FOLDERS = {"ref_gate": "gate"}  # group -> folder in conf/, where the names differ
LENGTH = 12  # hexadecimal digits
MAX_CACHED = 1000  # bytes in a cache file
_EMPTY = re.compile(r"(?:, )?\b\w+=(?:\[\]|None)")  # fields that only some versions of Python show
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest(choices: Mapping[str, object], target: str) -> str:
    """The digest for a task class, given by its dotted path, and the options chosen from the groups of conf/."""
    names = tuple(sorted((group, str(choices[group])) for group in GROUPS if choices.get(group)))
    room = room_of(target)
    return digest_of((*ALWAYS, *([room] if room else [])), names)


def room_of(target: str) -> str:
    """The subpackage of a task class, control or language; "" for a class outside rgpo."""
    parts = target.split(".")
    return parts[1] if parts[0] == "rgpo" and len(parts) > 2 else ""


@cache
def digest_of(parts: tuple[str, ...], choices: tuple[tuple[str, str], ...] = ()) -> str:
    """The digest of packages and modules of rgpo, and of options in conf/ given as (group, option)."""
    total = hashlib.sha256()
    for part in parts:
        total.update(_of_package(part).encode())
    for group, name in choices:
        total.update(_of_option(group, name).encode())
    return total.hexdigest()[:LENGTH]


@cache
def _of_package(name: str) -> str:
    root = Path(__file__).parents[1]
    path = root / name
    found = path.rglob("*") if path.is_dir() else [path] if path.exists() else []
    files = sorted(file for file in found if file.suffix in (".py", ".c"))
    sources = {file.relative_to(root).as_posix(): file.read_bytes() for file in files}
    return _remembered(sources) or _remember(sources)


def _remembered(sources: Mapping[str, bytes]) -> str:
    """The cached digest of these files, or ""; computing it takes a third of a CPU-second, for parsing."""
    place = _place(sources)
    try:
        found = read_text(place, MAX_CACHED)
    except Unreadable:
        return ""
    return found[:64] if found == _sealed(found[:64], place) else ""


def _remember(sources: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name, data in sources.items():
        text = without_comments(data.decode()) if name.endswith(".py") else data.decode()
        total.update(f"{name}\n{text}\n".encode())
    place = _place(sources)
    with suppress(OSError):  # without a cache, only time is lost
        atomic.make_folder(place.parent)
        atomic.write_text(place, _sealed(total.hexdigest(), place))
    return total.hexdigest()


def _sealed(digest: str, place: Path) -> str:
    """The contents of a cache file: the digest, followed by a checksum of it and of the file's name to detect damage."""
    return f"{digest} {hashlib.sha256(f'{place.name} {digest}'.encode()).hexdigest()}"


def _place(sources: Mapping[str, bytes]) -> Path:
    """The cache file for these sources; its name is a hash of their contents and of this module."""
    exact = hashlib.sha256(Path(__file__).read_bytes() if Path(__file__).is_file() else b"")
    for name, data in sources.items():
        exact.update(f"{name} {len(data)}\n".encode() + data)
    return cache_dir() / "digests" / exact.hexdigest()


@cache
def _of_option(group: str, name: str) -> str:
    """The values of an option; "" for a user's own option, whose values are in the run's configuration."""
    file = conf_dir() / FOLDERS.get(group, group) / f"{name}.yaml"
    if not file.is_file():
        return ""
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    return f"{group}={name} {json.dumps(values, sort_keys=True, default=str)}\n"


_parsing = threading.Lock()  # Python 3.11's parser shares its depth counter among threads and then fails


def without_comments(source: str) -> str:
    """A normal form of Python source, equal for sources that differ only in comments, docstrings and layout."""
    with _parsing:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and node.body and _is_text(node.body[0]):
            node.body = node.body[1:]
    return _EMPTY.sub("", ast.dump(tree))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
