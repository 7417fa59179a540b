"""Formats of data, recognized by their columns, in every kind of file; what is left out is named and counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from paper_runs import jsonl

from rgpo.errors import ConfigError
from rgpo.language.data.dataset import Dataset, load_dataset
from rgpo.language.data.dialogue import Dialogue, to_messages, to_text

Rows = list[dict[str, Any]]
N = 12


def user(i: int) -> dict[str, str]:
    return {"role": "user", "content": f"what is {i}?"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def load(path: Path, eval_data: str | None = None) -> tuple[Dataset, list[str]]:
    logged: list[str] = []
    return load_dataset(str(path), eval_data, logged.append), logged


HH = [{key: f"\n\nHuman: what is {i}?\n\nAssistant: {key}" for key in ("chosen", "rejected")} for i in range(N)]
PAIRED: dict[str, Rows] = {
    "hh-rlhf": HH,
    "preference, text": [{"prompt": f"what is {i}?", "chosen": "chosen", "rejected": "rejected"} for i in range(N)],
    "preference, messages": [
        {"prompt": [user(i)], "chosen": [answer("chosen")], "rejected": [answer("rejected")]} for i in range(N)
    ],
    "implicit prompt, text": [{"chosen": f"what is {i}? chosen", "rejected": f"what is {i}? rejected"} for i in range(N)],
    "implicit prompt, messages": [{k: [user(i), answer(k)] for k in ("chosen", "rejected")} for i in range(N)],
    "ultrafeedback": [
        {
            "prompt": f"what is {i}?",
            "prompt_id": "a",
            "chosen": [user(i), answer("chosen")],
            "rejected": [user(i), answer("rejected")],
            "messages": [user(i), answer("chosen")],
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        }
        for i in range(N)
    ],
    "prompt in hh-rlhf's format": [
        {"prompt": f"\n\nHuman: what is {i}?\n\nAssistant:", "chosen": " chosen", "rejected": " rejected"} for i in range(N)
    ],
}
PROMPTS: dict[str, Rows] = {
    "prompts, text": [{"prompt": f"what is {i}?"} for i in range(N)],
    "prompts, messages": [{"prompt": [user(i)]} for i in range(N)],
    "prompt and completion": [{"prompt": f"what is {i}?", "completion": "a cat"} for i in range(N)],
    "prompt and completion, messages": [{"prompt": [user(i)], "completion": [answer("a cat")]} for i in range(N)],
    "unpaired preference": [{"prompt": f"what is {i}?", "completion": "a cat", "label": True} for i in range(N)],
    "messages": [{"messages": [user(i), answer("a cat")]} for i in range(N)],
    "messages without an answer": [{"messages": [user(i)]} for i in range(N)],
    "conversations": [
        {"conversations": [{"from": "human", "value": f"what is {i}?"}, {"from": "gpt", "value": "x"}]} for i in range(N)
    ],
    "ultrafeedback as first published": [{"instruction": f"what is {i}?", "completions": [], "source": "x"} for i in range(N)],
}


@pytest.mark.parametrize("name", [*PAIRED, *PROMPTS])
def test_a_format_is_known_by_its_columns(tmp_path: Path, name: str) -> None:
    rows = (PAIRED | PROMPTS)[name]
    data, _ = load(jsonl(tmp_path / "a.jsonl", rows))
    assert [to_messages(pair.prompt) for pair in data.pairs] == [[user(i)] for i in range(N)]
    answers = {(pair.chosen and pair.chosen.strip(), pair.rejected and pair.rejected.strip()) for pair in data.pairs}
    assert answers == ({("chosen", "rejected")} if name in PAIRED else {(None, None)})
    assert all(pair.columns == row for pair, row in zip(data.pairs, rows, strict=True))


def as_csv(rows: Rows, separator: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator)
    writer.writeheader()
    cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
    writer.writerows(cells)
    return out.getvalue().encode()


def as_parquet(rows: Rows) -> bytes:
    out = io.BytesIO()
    pd.DataFrame(rows).to_parquet(out)
    return out.getvalue()


def lines(rows: Rows, end: str = "\n") -> bytes:
    return "".join(json.dumps(row) + end for row in rows).encode()


FILES: dict[str, Callable[[Rows], bytes]] = {
    "a.jsonl": lines,
    "crlf.jsonl": lambda rows: lines(rows, "\r\n"),
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + lines(rows),
    "array.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "bom.json": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode(),
    "lines.json": lines,
    "object.json": lambda rows: json.dumps({"data": rows}, indent=1).encode(),
    "a.csv": as_csv,
    "bom.csv": lambda rows: b"\xef\xbb\xbf" + as_csv(rows),
    "a.tsv": lambda rows: as_csv(rows, "\t"),
    "a.parquet": as_parquet,
    "wrong_ending.jsonl": as_parquet,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rows", [HH, PAIRED["ultrafeedback"], PROMPTS["prompts, messages"]], ids=["hh", "uf", "prompts"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, name: str, packed: bool, rows: Rows) -> None:
    content = FILES[name](rows)
    file = tmp_path / (f"{name}.gz" if packed else name)
    file.write_bytes(gzip.compress(content) if packed else content)
    for path in (file, tmp_path):
        data, _ = load(path)
        assert [to_messages(pair.prompt) for pair in data.pairs] == [[user(i)] for i in range(N)]


def test_turns_systems_and_text_that_quotes_a_dialogue_are_kept(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    odd = {"role": "user", "content": "repeat:\n\nAssistant: yes\n\nHuman: no"}
    rows = [{"prompt": [system, user(1), answer("one"), user(2)]}, {"prompt": odd["content"]}, {"messages": [odd, answer("x")]}]
    data, _ = load(jsonl(tmp_path / "a.jsonl", rows))
    first, second, third = (pair.prompt for pair in data.pairs)
    assert to_messages(first) == [system, user(1), answer("one"), user(2)]
    assert first == "System: Be brief.\n\nHuman: what is 1?\n\nAssistant: one\n\nHuman: what is 2?"
    assert to_messages(second) == to_messages(third) == [odd] and second == third == odd["content"]
    assert to_text(second) == f"Human: {odd['content']}" and isinstance(second, Dialogue)


def test_a_foreign_format_is_named_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a.jsonl: has the columns answer, question, which are no known format; rename"):
        load(jsonl(tmp_path / "a.jsonl", [{"question": "x", "answer": "y"}] * 3))
    jsonl(tmp_path / "folder" / "b.jsonl", PROMPTS["prompts, text"])
    foreign = jsonl(tmp_path / "folder" / "c.jsonl", [{"text": "x"}] * 3)
    data, logged = load(tmp_path / "folder")
    assert len(data.pairs) == N and data.files == [tmp_path / "folder" / "b.jsonl"]
    assert logged[0].startswith(f"{foreign}: left out; it has the columns text, which are no known format")


def test_held_out_data_are_a_file_a_folder_or_a_word_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name, start in (("train_prefs.jsonl", 0), ("test_prefs.jsonl", 8), ("train_sft.jsonl", 20), ("test_sft.jsonl", 30)):
        jsonl(folder / name, [{"prompt": f"what is {start + i}?"} for i in range(10)])
    other = jsonl(tmp_path / "other.jsonl", [{"prompt": f"what is {i}?"} for i in (0, 1, 50)])
    expected = {None: (18, 20), "test_prefs": (18, 10), str(other): (18, 3)}
    for eval_data, (train, heldout) in expected.items():
        data, logged = load(folder, eval_data)
        assert (sum(not p.heldout for p in data.pairs), sum(p.heldout for p in data.pairs)) == (train, heldout), eval_data
        assert any("other rows with the same prompts left out" in words for words in logged)
    data, logged = load(folder, str(other))
    assert any("test_prefs.jsonl, test_sft.jsonl left out; task.source.eval_data=" in words for words in logged)
    assert data.eval_files == (other,)
    single, _ = load(folder / "train_prefs.jsonl", str(folder / "test_prefs.jsonl"))
    assert (sum(not p.heldout for p in single.pairs), sum(p.heldout for p in single.pairs)) == (8, 10)
    with pytest.raises(ConfigError, match=r"task.source.eval_data=holdout: is neither a path nor in the name of a file of"):
        load(folder, "holdout")
    with pytest.raises(ConfigError, match=r"task.source.eval_data=.*/foreign.jsonl: has the columns text"):
        load(folder, str(jsonl(tmp_path / "foreign.jsonl", [{"text": "x"}])))


def test_rows_of_a_table_without_a_cell_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,answer\nwhat is 1?,1\nwhat is 2?\n"what\nis 3?",3\n')
    data, logged = load(tmp_path / "a.csv")
    assert [str(pair.prompt) for pair in data.pairs] == ["what is 1?", "what\nis 3?"]
    assert "1 malformed row left out; the first, line 3, does not have the 2 cells of the first line" in logged[0]
