"""Files of preference pairs in HH-RLHF's format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from rgpo.language.data.dataset import read_pairs
from rgpo.language.data.dialogue import Pair

HELLO = "\n\nHuman: Hello.\n\nAssistant: Hi!\n\nHuman: What is\n\na cat?"


def line(prompt: str = HELLO, chosen: str = " An animal.", rejected: str = " No idea: none.") -> str:
    return json.dumps({name: f"{prompt}\n\nAssistant:{answer}" for name, answer in (("chosen", chosen), ("rejected", rejected))})


def read(*files: Path) -> tuple[list[Pair], list[str]]:
    """The pairs of files, and what was logged."""
    logged: list[str] = []
    return read_pairs(files, logged.append, alone=len(files) == 1)[0], logged


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{text}\n" for text in lines).encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file
