"""Rewards that are functions of the user's: found, called with the data, summed, logged by name, and refused in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import report_fixtures as fixtures
from paper_runs import Ran, jsonl, run, words
from tiny_models import write_model, write_reward_model

import rgpo
from rgpo.cli import evaluate
from rgpo.report import cli as report

CODE = """
import numpy, torch
SEEN = []
def brevity(prompts, completions, **columns):
    SEEN.append((prompts, completions, columns))
    return [-len(text) for text in completions]
def letters(completions): return numpy.array([text.count("a") for text in completions])
def tensor(completions): return torch.ones(len(completions))
def near(prompts, completions, answer): return [float(len(text) == number) for text, number in zip(completions, answer)]
def optional(completions, answer=None, other="x"): return [answer is not None and other == "x" for _ in completions]
def lacks(completions, solution): return [0.0] * len(completions)
def short(completions): return [1.0]
def nan(completions): return [float("nan")] * len(completions)
def strings(completions): return ["1.0"] * len(completions)
def nothing(completions): pass
def some(completions): return [None] * len(completions)
def pairs(completions): return numpy.zeros((len(completions), 2))
def scalar(completions): return 1.0
def broken(completions): return helper(completions)
def helper(completions): raise KeyError("no such rule")
class Kind: pass
from os import getcwd
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder / "model")
    write_reward_model(folder / "reward")
    jsonl(folder / "data.jsonl", [{"prompt": f"what is {i}?", "answer": i} for i in range(40)])
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_reward.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


def go(parts: Path, *more: str) -> Ran:
    return run(words(Path("results").absolute(), parts / "model", parts / "data.jsonl", *more))


def test_one_word_names_a_reward_and_no_reward_model_is_loaded(parts: Path) -> None:
    ran = go(parts, "task.reward=my_reward.py:brevity")
    assert ran.code == 0, ran.printed
    assert "Skywork" not in ran.printed and "reward on 4 held-out prompts" in ran.printed
    frame, samples = pd.read_parquet(ran.folder / "metrics.parquet"), pd.read_parquet(ran.folder / "samples.parquet")
    np.testing.assert_array_equal(frame["reward/train_mean"], frame["reward/brevity_mean"])
    assert {"reward/brevity_std", "reward/eval_brevity_mean", "reward/eval_brevity_change_se"} <= {*frame}
    np.testing.assert_allclose(samples["proxy"], [-len(text) for text in samples["completion"]])
    np.testing.assert_allclose(samples["reward/brevity"], samples["proxy"])
    loaded = rgpo.load(ran.folder)
    assert "reward/brevity" in loaded.samples and "reward/brevity_mean" in loaded.metrics


def test_a_file_of_the_current_directory_is_found_by_a_script_elsewhere(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script has its own folder on the path, and not the current directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "my_reward.py").write_text("def brevity(completions): return [1000.0] * len(completions)")
    monkeypatch.setattr(sys, "path", [str(elsewhere), *(entry for entry in sys.path if Path(entry) not in (tmp_path, Path()))])
    made = rgpo.run(*words(Path("results").absolute(), parts / "model", parts / "data.jsonl"), "task.reward=my_reward.py:brevity")
    assert (made.metrics["reward/brevity_mean"] <= 0).all()


def test_terms_are_summed_with_weights_and_weight_0_only_logs(parts: Path) -> None:
    reward = (
        "[{function: my_reward.py:brevity, weight: 0.5}, {function: my_reward:letters, weight: 0, name: a}, my_reward.py:tensor]"
    )
    ran = go(parts, f"task.reward={reward}")
    assert ran.code == 0, ran.printed
    frame = pd.read_parquet(ran.folder / "metrics.parquet")
    np.testing.assert_allclose(frame["reward/train_mean"], 0.5 * frame["reward/brevity_mean"] + 1, rtol=1e-5)
    assert "reward/a_mean" in frame and (frame["reward/tensor_mean"] == 1).all()


def test_report_and_evaluation_show_every_term(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = go(parts, "task.reward=[my_reward.py:brevity, {function: my_reward.py:letters, weight: 0, name: vowels}]")
    samples = pd.read_parquet(ran.folder / "samples.parquet")
    assert report.main(["results_dir=results", f"out={tmp_path}/report", "figures=[own_metrics]", "format=svg"]) == 0
    page = json.dumps(fixtures.page_data(tmp_path / "report/index.html"), separators=(",", ":"))
    last = samples[samples["iteration"] == 2].iloc[0]
    score = float(f"{last['reward/vowels']:.6g}")
    assert f'"vowels":{score}' in page and '"name":"reward/vowels_mean","unit":"score"' in page
    table = pd.read_csv(tmp_path / "report/default/tables/reward_terms.csv").set_index("term")
    frame = pd.read_parquet(ran.folder / "metrics.parquet")
    for name in ("brevity", "vowels"):
        assert table.loc[name, "eval"] == pytest.approx(frame[f"reward/eval_{name}_mean"].iloc[-1], rel=1e-4)
        assert table.loc[name, "change"] == pytest.approx(frame[f"reward/eval_{name}_change"].iloc[-1], rel=1e-4, abs=1e-6)
    capsys.readouterr()
    assert evaluate.main([str(ran.folder)]) == 0, capsys.readouterr().err
    assert f"vowels on 4 held-out prompts: {frame['reward/eval_vowels_mean'].iloc[-1]:+.3f}"[:28] in capsys.readouterr().out
    again = pd.read_parquet(ran.folder / "evaluation/completions.parquet")
    pd.testing.assert_frame_equal(
        again[again["iteration"] == 2].reset_index(drop=True)[samples.columns],
        samples[samples["iteration"] == 2].reset_index(drop=True),
    )


def test_a_reward_model_can_be_one_of_the_terms(parts: Path) -> None:
    reward = "[my_reward.py:brevity, {function: reward_model, weight: 2}]"
    ran = go(parts, f"task.reward={reward}", f"task.source.reward_model={parts / 'reward'}")
    assert ran.code == 0, ran.printed
    frame = pd.read_parquet(ran.folder / "metrics.parquet")
    total = frame["reward/brevity_mean"] + 2 * frame["reward/reward_model_mean"]
    np.testing.assert_allclose(frame["reward/train_mean"], total, rtol=1e-5)
    both = go(parts, "task.reward=my_reward.py:brevity", f"task.source.reward_model={parts / 'reward'}", "name=typed")
    frame = pd.read_parquet(both.folder / "metrics.parquet")
    total = frame["reward/brevity_mean"] + frame["reward/reward_model_mean"]
    np.testing.assert_allclose(frame["reward/train_mean"], total, rtol=1e-5)


def test_a_function_gets_every_column_of_its_row(parts: Path) -> None:
    ran = go(parts, "task.reward=[my_reward.py:brevity, my_reward.py:near, my_reward.py:optional]")
    assert ran.code == 0, ran.printed
    module = next(m for name, m in sys.modules.items() if name.startswith("my_reward_") and m.SEEN)
    for prompts, completions, columns in module.SEEN:
        assert len(prompts) == len(completions) == len(columns["answer"])
        assert [f"what is {i}?" for i in columns["answer"]] == prompts == columns["prompt"]
    assert (pd.read_parquet(ran.folder / "metrics.parquet")["reward/optional_mean"] == 1).all()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("short", "returned 1 values for 8 completions; return one number per completion."),
        ("nan", "returned nan for the completion that ends in "),
        ("strings", "returned a str for completion 0"),
        ("nothing", "returned None in place of a list"),
        ("some", "returned None for completion 0"),
        ("pairs", "returned a ndarray of shape (8, 2) in place of a list"),
        ("scalar", "returned a float in place of a list"),
        ("broken", "raised KeyError: 'no such rule'; fix the function."),
    ],
)
def test_what_a_function_does_wrong_is_a_sentence_with_its_name(parts: Path, name: str, sentence: str) -> None:
    ran = go(parts, f"task.reward=my_reward.py:{name}")
    assert ran.code == 1 and f"task.reward=my_reward.py:{name}: {sentence}" in ran.printed, ran.printed
    if name == "broken":
        assert 'raise KeyError("no such rule")' in (ran.folder / "error.txt").read_text()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "my_reward.py:lacks",
            "task.reward=my_reward.py:lacks: needs solution, which the data lack; a function gets answer, ",
        ),
        (
            "my_reward.py:brief",
            "task.reward[0].function=my_reward.py:brief: my_reward.py defines no brief; write the name",
        ),
        ("my_reward.py:Kind", "Kind is no function but a type; define it with def"),
        ("my_reward.py:getcwd", "getcwd is no function but a builtin_function_or_method"),
        ("nowhere.py:f", "there is no such file; put it into the current directory or --config-dir"),
        ("../other.py:f", "is in none of these folders; put it into the current directory"),
        ("os:getcwd", "os is not a module of the current directory or of --config-dir; write one there"),
        ("broken_module.py:f", "broken_module.py cannot be imported (ZeroDivisionError: division by zero)"),
        ("brevity", "names no function; write file.py:function or module:function"),
        ("[]", "task.reward=[]: has no entry"),
        ("[{function: my_reward.py:brevity, weigth: 2}]", "weigth is not a known key"),
        ("[{function: my_reward.py:brevity, weight: 0}]", "every term has weight 0"),
        ("[{function: my_reward.py:brevity, weight: much}]", "task.reward[0].weight=much: must be a number"),
        (
            "[my_reward.py:brevity, {function: my_reward.py:brevity}]",
            "two terms are named brevity; give one of them",
        ),
        ("[{function: my_reward.py:brevity, name: train}]", "task.reward.name=train: names a packaged metric; choose another"),
        ("[{function: my_reward.py:brevity, name: a/b}]", "must consist of letters, digits and _"),
    ],
)
def test_a_reward_that_cannot_be_used_is_refused_before_anything_runs(
    parts: Path, tmp_path: Path, word: str, sentence: str
) -> None:
    (tmp_path.parent / "other.py").write_text(CODE)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    ran = go(parts, f"task.reward={word}")
    assert ran.code == 2 and sentence in ran.printed, ran.printed


def test_a_failed_run_resumes_bit_for_bit_unless_the_reward_has_changed(parts: Path, tmp_path: Path) -> None:
    code = (
        CODE
        + """
from pathlib import Path
def fragile(prompts, completions):
    calls = Path("calls")
    if calls.exists():
        calls.write_text(calls.read_text() + "x")
    if calls.exists() and len(calls.read_text()) > 4:
        raise RuntimeError("stopped")
    return [len(text) for text in completions]
"""
    )
    (tmp_path / "fragile.py").write_text(code)
    whole = go(parts, "task.reward=fragile.py:fragile", "num_iterations=4", "checkpoint_every_s=0", "name=whole")
    assert whole.code == 0, whole.printed
    wanted = pd.read_parquet(whole.folder / "metrics.parquet")
    command = words(tmp_path / "other", parts / "model", parts / "data.jsonl", "task.reward=fragile.py:fragile")
    command += ["num_iterations=4", "checkpoint_every_s=0", "name=whole"]
    command.remove("num_iterations=2")
    (tmp_path / "calls").touch()
    assert run(command).code == 1
    (tmp_path / "calls").unlink()
    (tmp_path / "fragile.py").write_text(code + "# changed")
    changed = run(command)
    assert changed.code == 2 and "task.reward=fragile.py:fragile: is " in changed.printed, changed.printed
    (tmp_path / "fragile.py").write_text(code)
    resumed = run(command)
    assert resumed.code == 0 and "resumes after iteration" in resumed.printed, resumed.printed
    found = pd.read_parquet(resumed.folder / "metrics.parquet")
    numbers = [name for name in wanted if name.startswith(("reward/", "kl/", "loss/", "policy/"))]
    pd.testing.assert_frame_equal(wanted[numbers], found[numbers], check_exact=True)


def test_the_example_learns_to_add(tmp_path: Path) -> None:
    """docs/examples/arithmetic.py as a user runs it: 60 iterations, half a minute of one core."""
    script = Path(__file__).parents[1] / "docs" / "examples" / "arithmetic.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "sums")], check=True, capture_output=True, timeout=240)
    loaded = rgpo.load(next(file.parent for file in (tmp_path / "sums").rglob("config.yaml")))
    reward = loaded.metrics["reward/correct_mean"]
    assert reward.iloc[-5:].mean() > 2 * reward.iloc[:5].mean(), reward.tolist()
    assert loaded.metrics["reward/eval_correct_change"].iloc[-1] > 0.2  # on sums that it was not trained on
