"""HH-RLHF's format: reading pairs, errors that name the line, splits by dialogue, prompts and pairs under a chat template."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pair_files import HELLO, line, read, write
from tiny_models import TEMPLATE, write_model
from transformers import AutoTokenizer

from rgpo.errors import ConfigError
from rgpo.language.data.chat import encode_pairs, encode_prompts, end_answer
from rgpo.language.data.dataset import (
    FORMATS,
    check_data,
    find_files,
    is_heldout,
    load_dataset,
    split_by_dialogue,
)
from rgpo.language.data.dialogue import Pair, to_messages
from rgpo.language.data.rows import ENDINGS
from rgpo.language.data.template import apply_chat_template


def test_a_line_is_a_prompt_and_two_answers(tmp_path: Path) -> None:
    pairs, logged = read(write(tmp_path / "a.jsonl", line(), "", line("\n\nHuman: One?", " 1", " 2")))
    assert pairs == [
        Pair("Human: Hello.\n\nAssistant: Hi!\n\nHuman: What is\n\na cat?", "An animal.", "No idea: none."),
        Pair("Human: One?", "1", "2"),
    ]
    assert logged == []
    assert to_messages(pairs[0].prompt, pairs[0].chosen) == [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "What is\n\na cat?"},
        {"role": "assistant", "content": "An animal."},
    ]


def test_an_answer_may_quote_a_dialogue() -> None:
    turns = to_messages("Human: Continue", "Human: no\n\nHuman: yes\n\nAssistant: no")
    assert [turn["role"] for turn in turns] == ["user", "assistant"] and turns[1]["content"].count("Human") == 2


def test_two_turns_of_one_speaker_become_one() -> None:
    assert to_messages("Human: a\n\nHuman: b\n\nAssistant: c") == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c"},
    ]


def test_defective_pairs_of_the_published_files_are_left_out_and_counted(tmp_path: Path) -> None:
    other = json.dumps({"chosen": HELLO + "\n\nAssistant: a", "rejected": "\n\nHuman: Bye.\n\nAssistant: b"})
    lines = [line(), other, other, line(chosen=""), line(rejected=" "), line(chosen=" x", rejected=" x")]
    pairs, logged = read(write(tmp_path / "a.jsonl", *lines, line(HELLO + "\n\nAssistant: A first answer.")))
    assert len(pairs) == 1
    counts = "2 with different prompts left out; 2 with an empty answer left out; 1 with equal answers left out"
    assert logged == [f"{tmp_path}/a.jsonl: {counts}; 1 with no question before the answer left out"]
    with pytest.raises(ConfigError, match=r"a.jsonl: contains no usable row; give rows of HH-RLHF's chosen and rejected"):
        read(write(tmp_path / "a.jsonl", other, other))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("{x", "is not valid JSON (Expecting property name"),
        ("[1]", "is not a JSON object"),
        ('{"chosen": "x"}', "has the columns chosen, no known format"),
        ('{"chosen": "x", "rejected": 3}', "lacks a text or messages under chosen or rejected"),
        (line(chosen=" a\n\nHuman: b"), "must begin with a turn of the Human and end with one of the Assistant under chosen"),
        ('{"prompt": " "}', "has an empty prompt"),
        ('{"prompt": "\\ud800"}', "has text under prompt that is not valid Unicode"),
        ('{"messages": [{"role": "narrator", "content": "x"}]}', "has a turn under messages that is not {role: system, user"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_malformed_row_is_left_out_and_named(tmp_path: Path, name: str, wrong: str, match: str) -> None:
    pairs, logged = read(write(tmp_path / name, line(), line(), wrong, wrong))
    assert len(pairs) == 2 and logged[0].startswith(f"{tmp_path}/{name}: 2 malformed rows left out; the first, line 3, {match}")
    with pytest.raises(ConfigError, match=r"2 of 3 rows cannot be read; the first, line 2, .*; fix or remove them") as error:
        read(write(tmp_path / name, line(), wrong, wrong))
    assert "\n" not in str(error.value)


def test_a_file_that_is_empty_truncated_or_binary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a.jsonl: contains no usable row"):
        read(write(tmp_path / "a.jsonl"))
    whole = write(tmp_path / "b.jsonl.gz", *[line(f"\n\nHuman: {i}{'?' * i}") for i in range(500)]).read_bytes()
    cases = {
        "b.jsonl.gz": (whole[:-20], r"cannot be read after line \d+ \("),
        "c.jsonl.gz": (b"no gzip", "1 of 1 rows cannot be read; the first, line 1, is not valid JSON"),
        "d.jsonl": (b'{"\xff', "the first, line 1, is not UTF-8 text"),
        "e.parquet": (b"PAR1 and no more", "cannot be read after the beginning"),
        "f.xlsx": (b"PK\x03\x04 a workbook", "is not jsonl, json, csv or parquet; convert it to one of them"),
        "g.json": (b"[{", "is not valid JSON"),
    }
    for name, (data, match) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=rf"task.source.data=.*{name}: .*{match}"):
            read(tmp_path / name)


def test_data_are_a_file_a_folder_or_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / "hh" / "helpful-base" / name, line()) for name in ("test.jsonl.gz", "train.jsonl.gz")]
    (tmp_path / "hh" / "README.md").write_text("")
    assert find_files(str(tmp_path / "hh")) == find_files(str(files[0].parent)) == files
    assert find_files(str(files[1])) == files[1:]
    requests: list[Any] = []

    def download(repository: str, **options: Any) -> str:
        requests.append((repository, options))
        return str(tmp_path / "hh")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_files("Anthropic/hh-rlhf/helpful-base") == files
    patterns = [f"helpful-base/*{ending}" for ending in ENDINGS]
    assert requests == [("Anthropic/hh-rlhf", {"repo_type": "dataset", "allow_patterns": patterns, "revision": None})]
    assert find_files("Anthropic/hh-rlhf/helpful-base@v1.0") == files and requests[1][0] == "Anthropic/hh-rlhf"
    assert requests[1][1] == requests[0][1] | {"revision": "v1.0"}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (None, r"must be given: a jsonl, json, csv or parquet file of .*, a folder of them, or Anthropic/hh-rlhf/helpful-base"),
        ("/nowhere/a.jsonl", "there is no such file or folder"),
        ("data/a.jsonl.gz", "there is no such file or folder"),
        ("./a/b", "there is no such file or folder"),
        ("EMPTY", "contains no file that ends in .jsonl, .json, .csv, .tsv, .parquet or these with .gz"),
    ],
)
def test_data_that_do_not_exist_are_refused(tmp_path: Path, data: str | None, match: str) -> None:
    data = str(tmp_path) if data == "EMPTY" else data
    with pytest.raises(ConfigError, match=match) as error:
        check_data(data)
    assert str(error.value).startswith(f"task.source.data={data}: ")


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"task.source.data=Anthropic/hh-rlhf: .* cannot be downloaded from the hub") as error:
        find_files("Anthropic/hh-rlhf/helpful-base")
    assert "\n" not in str(error.value)


def test_a_dialogue_stays_in_one_part() -> None:
    starts = [Pair(f"Human: question {i}", "a", "b") for i in range(2000)]
    later = [Pair(f"{pair.prompt}\n\nAssistant: a\n\nHuman: and?", "a", "b") for pair in starts]
    parts = split_by_dialogue(starts + later + starts[:50], (0.5, 0.2, 0.3), seed=0)
    assert sum(map(len, parts)) == 4050
    for part, share in zip(parts, (0.5, 0.2, 0.3), strict=True):
        assert len({pair.prompt for pair in part}) == pytest.approx(4000 * share, abs=4 * 2 * (2000 * share * (1 - share)) ** 0.5)
        assert {pair for pair in part if "and?" in pair.prompt} == {
            later[starts.index(p)] for p in part if "and?" not in p.prompt
        }
    assert (
        split_by_dialogue(starts, (0.5, 0.5), 0)
        == split_by_dialogue(starts, (0.5, 0.5), 0)
        != split_by_dialogue(starts, (0.5, 0.5), 1)
    )
    assert [len(part) for part in split_by_dialogue(starts, (1, 0, 0), 0)] == [2000, 0, 0]


def test_prompts_carry_the_template_and_long_ones_are_left_out_whole(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / "m"))
    short, long = Pair("Human: a cat?", "x", "y"), Pair("Human: " + "a cat? " * 9 + "\n\nAssistant: b\n\nHuman: c", "x", "y")
    text = "<user>a cat?<|endoftext|><assistant>"
    ids = tokenizer(text)["input_ids"]
    prompts, dropped = encode_prompts(tokenizer, [short, long, short, replace(short, chosen="z")], len(ids))
    assert [(prompt.text, prompt.ids) for prompt in prompts] == [(short.prompt, ids)] and dropped == 1
    assert encode_prompts(tokenizer, [short], len(ids) - 1) == ([], 1) and encode_prompts(tokenizer, [], 9) == ([], 0)
    assert (
        apply_chat_template(tokenizer, to_messages(short.prompt, "b"), answer_next=False)
        == "<user>a cat?<|endoftext|><assistant>b<|endoftext|>"
    )


def test_a_template_that_is_missing_or_rejects_a_dialogue_is_refused(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / "m", template=None))
    with pytest.raises(ConfigError, match=r"task.source.model=.*/m: its tokenizer has no chat template"):
        encode_prompts(tokenizer, [Pair("Human: a", "x", "y")], 9)
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}" + TEMPLATE
    with pytest.raises(ConfigError, match=r"its chat template rejects a dialogue \(no system turn\)"):
        encode_prompts(tokenizer, [Pair("Human: a", "x", "y")], 9)


def test_preference_pairs_are_the_answers_as_the_policy_would_generate_them(tmp_path: Path) -> None:
    """Each answer without the template, ended by eos where that fits; a cut answer is unfinished."""
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / "m"))
    eos = tokenizer.eos_token_id
    known, unknown = Pair("Human: a cat?", "an animal that is a cat", "no"), Pair("Human: a dog?", "yes", "no")
    prompts, _ = encode_prompts(tokenizer, [known], 99)
    chosen, rejected = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (known.chosen, known.rejected))
    assert len(chosen) > len(rejected) + 1
    found = encode_pairs(tokenizer, [known, unknown, known], prompts, len(chosen) + 1, eos)
    assert [(pair.prompt, pair.chosen_ids, pair.rejected_ids) for pair in found] == 2 * [
        (prompts[0], [*chosen, eos], [*rejected, eos])
    ]
    (cut,) = encode_pairs(tokenizer, [known], prompts, len(chosen), eos)
    assert (cut.chosen_ids, cut.rejected_ids) == (chosen, [*rejected, eos])
    assert encode_pairs(tokenizer, [], prompts, 9, eos) == []


def test_answers_that_differ_only_after_the_cut_make_no_pair(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / "m"))
    pair = Pair("Human: a cat?", "what is a cat?", "what is a rat?")
    prompts, _ = encode_prompts(tokenizer, [pair], 99)
    shared = len(tokenizer("what is a")["input_ids"])
    assert encode_pairs(tokenizer, [pair], prompts, shared, 1) == []
    assert len(encode_pairs(tokenizer, [pair], prompts, shared + 5, 1)) == 1


def test_an_answer_ends_at_its_first_eos() -> None:
    assert end_answer([5, 1, 6], eos_id=1, max_new_tokens=9) == [5, 1]
    assert end_answer([5, 6], eos_id=1, max_new_tokens=3) == [5, 6, 1]
    assert end_answer([5, 6], eos_id=1, max_new_tokens=2) == [5, 6]
    assert end_answer([], eos_id=1, max_new_tokens=2) == [1]


def test_the_published_folder_works_as_it_is_cloned(tmp_path: Path) -> None:
    """Test files are held out, a file without pairs is named, and hidden folders and other files are not read."""
    root = tmp_path / "hh-rlhf"
    for subset in ("harmless-base", "helpful-base"):
        lines = [line(f"\n\nHuman: {subset} {i}?") for i in range(5)]
        write(root / subset / "train.jsonl.gz", *lines, line("\n\nHuman: in both?"))
        write(root / subset / "test.jsonl.gz", line(f"\n\nHuman: {subset} test?"), line("\n\nHuman: in both?"))
    red = write(
        root / "red-team-attempts" / "red_team_attempts.jsonl.gz", '[{"transcript": "\\n\\nHuman: a"},', '{"transcript": "b"}]'
    )
    write(root / ".git" / "lfs" / "a.jsonl", "not json")
    (root / "README.md").write_text("# hh")
    logged: list[str] = []
    data = load_dataset(str(root), None, logged.append)
    assert len(data.files) == 4 and red not in data.files
    names = "harmless-base/test.jsonl.gz, helpful-base/test.jsonl.gz"
    why = f"has the columns transcript, which are no known format; rename them to {FORMATS}"
    assert logged == [
        f"{red}: left out; it {why}",
        f"held out in place of heldout_share: {names}; 2 other rows with the same prompts left out",
        f"{root}: 14 prompts, 14 of them with a pair of answers",
    ]
    train, heldout = split_by_dialogue(data.pairs, (0.95, 0.05), 0)
    assert {pair.prompt for pair in heldout} == {"Human: harmless-base test?", "Human: helpful-base test?", "Human: in both?"}
    assert len(train) == 10 and not {pair.prompt for pair in train} & {pair.prompt for pair in heldout}
    assert [len(part) for part in split_by_dialogue(data.pairs, (1, 1, 1), 0)][2] == 4
    alone = load_dataset(str(root / "helpful-base" / "test.jsonl.gz"), None, logged.append)  # named alone, it is the data
    assert not any(pair.heldout for pair in alone.pairs)


@pytest.mark.parametrize(
    ("name", "heldout"),
    [
        ("test.jsonl", True),
        ("helpful-base/test-00000.jsonl.gz", True),
        ("validation/a.jsonl", True),
        ("held_out.jsonl", True),
        ("eval_pairs.jsonl", True),
        ("train.jsonl", False),
        ("latest.jsonl", False),
        ("contest/devices.jsonl", False),
    ],
)
def test_test_files_are_known_by_the_words_of_their_names(tmp_path: Path, name: str, heldout: bool) -> None:
    root = tmp_path / "test"
    assert is_heldout(root / name, root) == heldout


def test_a_folder_of_test_files_and_a_clone_without_its_data_are_refused(tmp_path: Path) -> None:
    for name in ("test.jsonl", "dev.jsonl"):
        write(tmp_path / "a" / name, line())
    with pytest.raises(ConfigError, match=r"^task.source.data=.*/a: contains test files only; give one of them, or add files"):
        load_dataset(str(tmp_path / "a"), None, lambda words: None)
    pointer = tmp_path / "b" / "train.jsonl.gz"
    pointer.parent.mkdir()
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 16\n")
    with pytest.raises(ConfigError, match=r"train.jsonl.gz: is a pointer of Git LFS without the data; run `git lfs pull`"):
        load_dataset(str(tmp_path / "b"), None, lambda words: None)
