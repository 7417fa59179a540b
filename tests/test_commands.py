"""Both commands as a shell runs them: signals, paths with ~, hints for any folder, revisions that look like options."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import report_fixtures as fixtures

from rgpo.cli.run import _split
from rgpo.report.cli import main, parse
from rgpo.report.settings import command

BIN = Path(sys.executable).parent
RUN = ["algo=ppo", "task=cartpole", "task.num_steps=32", "task.num_envs=2", "num_iterations=2", "eval_every=0", "gradvar_every=0"]
FAST = ["format=svg", "num_resamples=200", "figures=[]"]
NAMES = [
    "a b",
    "it's",
    '"q"',
    "a,b",
    "[x]",
    "{a: b}",
    "k=v",
    "$HOME",
    "${x}",
    "a\nb",
    "-x",
    "é漢",
    "#c",
    "~",
    "%s",
    "*",
    "1e3",
    "nan",
    "!x",
]


@pytest.mark.parametrize("module", ["rgpo.cli.run", "rgpo.report.cli"])
def test_signals_during_the_start_leave_no_traceback(module: str, here: Path) -> None:
    """After the interpreter has started, on which a program has no influence."""
    fixtures.write_run(here / "results")
    words = ["num_iterations=100000", *RUN[:4]] if module == "rgpo.cli.run" else []
    code = f"import sys; sys.argv[1:] = {words}; from {module} import main; print('ready', flush=True); sys.exit(main())"
    rng = random.Random(0)
    for attempt in range(10):
        number = (signal.SIGINT, signal.SIGTERM)[attempt % 2]
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # these tests may run in the background of a script
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.02, 0.9))
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        if process.returncode != 0:  # a short report may be done
            assert process.returncode == 128 + number and "Traceback" not in error, error


@pytest.mark.parametrize("name", NAMES)
def test_the_report_takes_names_as_they_are_typed(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And names them so that its own commands, run by a shell, draw the same."""
    fixtures.write_run(here / name / "results", name=name, iterations=3)
    words = [f"results_dir={name}/results", f"experiment={name}", f"out={name}/report"]
    if name == "~":
        words = ["results_dir=./~/results", "experiment=~", "out=./~/report"]
    assert main([*words, *FAST]) == 0, capsys.readouterr().err
    assert (here / name / "report/index.html").exists()
    settings, defaults = parse([*words, *FAST])
    line = command(settings, defaults).replace("rgpo-report", f"{sys.executable} -c 'import sys; print(sys.argv[1:])'", 1)
    again = eval(subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout)  # noqa: S307
    assert parse(again)[0] == settings


def test_the_hint_of_a_run_is_understood(here: Path) -> None:
    folder = "it's $HOME, [x]=${y} \\ é\n\x1b[31m-"
    done = subprocess.run([BIN / "rgpo-run", *RUN, f"results_dir={folder}", "name=a.b-c"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    hint = re.search(r"`(rgpo-report .*)` draws it", done.stdout, re.DOTALL)
    assert hint is not None, done.stdout
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    line = f"{hint[1]} {' '.join(map(repr, FAST))}"
    drawn = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)
    assert drawn.returncode == 0 and "1 runs" in drawn.stdout, drawn.stderr


def test_a_home_that_the_shell_did_not_expand(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    fixtures.write_run(here / "x", iterations=3)
    assert main(["results_dir=~/x", "out=~/page", *FAST]) == 0
    assert (here / "page/index.html").exists() and not (here / "~").exists()
    assert parse(["results_dir=~nobody-of-that-name/x"])[0].results_dir == str(here / "~nobody-of-that-name/x")
    assert _split(["--config-dir", "~/mine", "a=b"]) == (False, str(here / "mine"), ["a=b"])
    assert _split(["-m", "--config-dir=~/mine"]) == (True, str(here / "mine"), [])


@pytest.mark.parametrize(
    "name", ["--output=x.zip", "-o", "--", "HEAD:results", ":(top)results", "HEAD --output=x.zip", "nothing"]
)
def test_compare_passes_no_options_to_git(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixtures.write_run(here / "results", iterations=3)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], check=True)
    assert main(["compare", "HEAD", "results"]) == 0 and "identical" in capsys.readouterr().out
    before = {path.name for path in here.iterdir()}
    assert main(["compare", "HEAD", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rgpo-report: compare={name}: ") and error.count("\n") == 1
    assert {path.name for path in here.iterdir()} == before


def test_a_damaged_state_stops_neither_a_plan_nor_a_sweep(here: Path) -> None:
    words = [BIN / "rgpo-run", "-m", *RUN, "seed=1,2,3"]
    assert subprocess.run(words, capture_output=True).returncode == 0
    first, second, third = sorted((here / "results/default").iterdir())
    before = {folder: (folder / "metrics.parquet").read_bytes() for folder in (first, second, third)}
    (first / "state.json").write_text("[]")
    (second / "state.json").write_text(
        '{"status": "failed", "reason": "\x1b]0;title\x07' + 3_000_000 * "x" + '", "attempt": null}'
    )
    (third / "state.json").unlink()
    os.mkfifo(third / "state.json")
    plan = subprocess.run([*words, "plan=true"], capture_output=True, text=True, timeout=60)
    assert plan.returncode == 0 and "3 run(s)" in plan.stdout and "\x1b" not in plan.stdout, plan.stderr
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "3 of 3 runs are complete" in done.stdout and "\x1b" not in done.stdout + done.stderr, done
    assert len(done.stderr) < 5000
    for folder, data in before.items():
        assert (folder / "metrics.parquet").read_bytes() == data


def test_a_sweep_repeats_a_finished_run_whose_rows_are_damaged(here: Path) -> None:
    words = [BIN / "rgpo-run", "-m", *RUN, "seed=1,2"]
    assert subprocess.run(words, capture_output=True).returncode == 0
    first = min((here / "results/default").iterdir())
    data = bytearray((first / "metrics.parquet").read_bytes())
    data[100] ^= 1
    (first / "metrics.parquet").write_bytes(data)
    done = subprocess.run(words, capture_output=True, text=True)
    assert "1 of 2 runs already complete" in done.stdout, done
    assert done.returncode == 0 and "2 of 2 runs are complete" in done.stdout, done
    assert main(["verify"]) == 0


def test_an_unfinished_run_with_another_configuration_is_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fixtures.write_run(here / "results", iterations=30, reached=8, status="interrupted")
    (part,) = (run / "metrics").iterdir()
    config = (run / "config.yaml").read_text()
    table = pq.read_table(part, partitioning=None)
    pq.write_table(table.replace_schema_metadata({"config": config}), part)
    assert main([*FAST]) == 0, capsys.readouterr().err
    (run / "config.yaml").write_text(config.replace('"name": "first_evidence"', '"name": "first_evidence", "memory_gb": 3'))
    assert main([*FAST]) == 0, capsys.readouterr().err
    (run / "config.yaml").write_text(config.replace('"lr": 0.0003', '"lr": 0.0004'))
    assert main([*FAST]) == 1
    assert "config.yaml is not the configuration that its rows were measured with" in capsys.readouterr().err
