"""Contents of result files that harm whoever reads them: bombs, odd types, huge sizes, control characters, functions to call."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

SHOWS = "\x1b]0;title\x07\x1b[31m\x9b31m\r\x00"
MATH = r"$\frac{x$ ${} $$ \undefined {{ x }} {% raw %} <script>alert(1)</script> & % # _ ^"
ODD_VALUES: list[Any] = [
    SHOWS,
    MATH,
    "x" * 3_000_000,
    "\u202e\u2028\u200b",
    "\ud800",
    "",
    10**400,
    -(2**70),
    2**63,
    -1,
    0,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    True,
    None,
    [],
    {},
    [[["a"]]],
    {"a": {"b": {}}},
    ["x"] * 10_000,
    "2026-13-45",
    "../../../etc/passwd",
]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
RAW = [
    "[" * 200_000,
    '{"a":' * 100_000,
    "[" * 900 + "]" * 900,
    '{"attempt": ' + "9" * 10_000 + "}",
    '{"status": "completed", "status": "failed"}',
    '{"iteration": 1e999, "attempt": -0}',
    '"' + "x" * 6_000_000 + '"',
    BOMB,
    "a: &a\n  <<: *a\n",
    "!!python/object/apply:os.system ['touch PWNED']",
    "!!python/name:os.system",
    "seed: !!binary aGVsbG8=\nchoices: !!set {a, b}\n",
    "seed: 2026-01-01\nchoices: {task: 2026-01-01 10:00:00, algo: ~}\n",
    "? [a, b]\n: 1\n",
    "1: 2\n3.5: x\nnull: y\n",
    "- " * 2_000 + "x",
    "{" * 2_000,
    "a: 1\n" * 60_000,
    "\t\n\x00\x01",
    "%YAML 9.9\n---\na: 1\n...\n---\nb: 2\n",
]
TARGETS = ("gate", "ref_gate", "task", "algorithm", "update", "advantage", "penalty", "gate_combination")


def raw_text(run: Path, rng: random.Random) -> str:
    """A bomb or malformed text in place of a small file."""
    name, text = rng.choice(("config.yaml", "state.json", "provenance.json", "manifest.json")), rng.choice(RAW)
    (run / name).write_text(text)
    return f"{name} {text[:40]!r}"


def sparse(run: Path, rng: random.Random) -> str:
    """A file that seems to have gigabytes."""
    name = rng.choice(("config.yaml", "state.json", "provenance.json", "manifest.json", "metrics.parquet", "checkpoint.pt"))
    os.truncate(run / name, rng.choice((5 << 20, 30 << 30)))
    return f"{name} of {(run / name).stat().st_size:,} bytes"


def odd_value(run: Path, rng: random.Random) -> str:
    """One value of a small file, at any depth, has another type or an odd content."""
    name = rng.choice(("config.yaml", "state.json", "provenance.json"))
    file = run / name
    content = yaml.safe_load(file.read_text())
    node, value = content, rng.choice(ODD_VALUES)
    while True:
        key = rng.choice(sorted(node))
        if not isinstance(node[key], dict) or not node[key] or rng.random() < 0.2:
            break
        node = node[key]
    if rng.random() < 0.2:
        node[value if isinstance(value, str) else repr(value)] = node.pop(key)
    else:
        node[key] = value
    text = json.dumps(content) if name.endswith("json") or rng.random() < 0.3 else yaml.safe_dump(content)
    file.write_text(text, errors="surrogatepass")
    return f"{name}, {key}: {repr(value)[:40]}"


def target(run: Path, rng: random.Random) -> str:
    """A config.yaml that names a function to call."""
    file = run / "config.yaml"
    content = yaml.safe_load(file.read_text())
    key = rng.choice(TARGETS)
    called = rng.choice(
        ({"_target_": "os.system", "command": "touch PWNED"}, {"_target_": "subprocess.Popen", "args": ["touch", "PWNED"]})
    )
    nested = rng.choice(
        (
            called,
            {"_target_": "os.system", "_args_": ["touch PWNED"]},
            {"_target_": "builtins.exec", "_args_": ["open('PWNED', 'w')"]},
        )
    )
    content[key] = nested if rng.random() < 0.5 or not isinstance(content.get(key), dict) else {**content[key], "x": nested}
    file.write_text(yaml.safe_dump(content))
    return f"config.yaml, {key}: {nested}"


def columns_of(run: Path, rng: random.Random) -> str:
    """metrics.parquet with columns of other types, odd names, or far too many rows or columns."""
    file = run / "metrics.parquet"
    table = pq.read_table(file, use_threads=False)
    made = rng.choice(ODD_TABLES)
    pq.write_table(made(table, rng), file)
    return f"metrics.parquet {made.__name__}"


def replaced(table: pa.Table, name: str, values: Any, kind: pa.DataType | None = None) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


def other_type_of_column(table: pa.Table, rng: random.Random) -> pa.Table:
    name = rng.choice(table.column_names)
    kinds = [
        pa.string(),
        pa.binary(),
        pa.list_(pa.list_(pa.int8())),
        pa.timestamp("ns"),
        pa.decimal128(30, 3),
        pa.null(),
        pa.bool_(),
    ]
    return replaced(
        table, name, [None] * len(table), rng.choice([*kinds, pa.struct([("a", pa.int8())]), pa.map_(pa.string(), pa.int8())])
    )


def odd_iterations(table: pa.Table, rng: random.Random) -> pa.Table:
    values = rng.choice(
        ([1] * 6, [-5, -4, 0, 1, 2, 3], [2**63 - 1] * 6, [1, None, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [1, 2, 3, 10**12, 5, 6])
    )
    return replaced(table, rng.choice(("iteration", "attempt", "env_steps")), values, pa.int64())


def odd_numbers(table: pa.Table, rng: random.Random) -> pa.Table:
    floats = [field.name for field in table.schema if pa.types.is_float32(field.type)]
    value = rng.choice((float("inf"), float("-inf"), float("nan"), 3e38, -3e38, 1e-45))
    for name in rng.sample(floats, rng.randint(1, len(floats))):
        table = replaced(table, name, [value] * len(table), pa.float32())
    return table


def odd_names(table: pa.Table, rng: random.Random) -> pa.Table:
    name = rng.choice((SHOWS, MATH, "", "iteration", "x" * 100_000, "epoch/x", "kl/old_exact"))
    return table.append_column(name, pa.array(range(len(table))))


def no_rows(table: pa.Table, rng: random.Random) -> pa.Table:
    return table.slice(0, rng.choice((0, 1, 5))) if rng.random() < 0.5 else table.select([])


def too_many(table: pa.Table, rng: random.Random) -> pa.Table:
    if rng.random() < 0.5:
        return pa.table({name: pa.nulls(3_000_000, table.schema.field(name).type) for name in table.column_names[:40]})
    return pa.table(
        {**{f"c{i}": [1.0] for i in range(5_000)}, "iteration": [1], "attempt": [1], "env_steps": [1], "run_id": ["x"]}
    )


ODD_TABLES = [other_type_of_column, odd_iterations, odd_numbers, odd_names, no_rows, too_many]
HARM: list[Callable[[Path, random.Random], str]] = [raw_text, odd_value, odd_value, sparse, columns_of, columns_of, target]
