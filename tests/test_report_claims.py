"""Language tables, the ledger's rules on results made to meet or fail them, LaTeX that compiles, and compare."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import report_fixtures as fixtures

from rgpo.report.claims.claims import REFUTED, REPRODUCED, UNTESTED
from rgpo.report.claims.ledger import END, START
from rgpo.report.cli import main

FAST = ["formats=[svg]", "num_resamples=200", "figures=[]"]


def verdicts(here: Path, code: int = 0) -> dict[str, dict[str, str]]:
    """First words of the claim -> row of the ledger."""
    assert main([*FAST, f"results_dir={here}/results", f"out={here}/report"]) == code
    rows = fixtures.read_csv(here / "report/tables/ledger.csv")
    return {f"{row['id']} {row['claim'].split(' ')[0]}": row for row in rows}


def write(here: Path, task: str, algo: str, finals: list[float], kl: float, spikes: float = 0.0) -> None:
    """Runs that end at the given returns with constant KL, a share of it above 0.04 nats."""
    for seed, final in enumerate(finals, start=1):
        metrics = fixtures.metrics_of(task, algo, seed, 20)
        metrics["return/train_mean"] = np.linspace(0, 1, 20) ** 0 * final
        metrics["kl/old_exact"] = np.where(np.arange(20) < 20 * spikes, 0.05, kl) * (1 + 0.001 * seed)
        fixtures.write_run(here / "results", task, algo, seed, 20, metrics=metrics)


def test_claims_that_hold(here: Path) -> None:
    for task, gain in (("halfcheetah", 1.0), ("hopper", 1.0), ("walker2d", 1.82), ("ant", 1.48)):
        write(here, task, "ppo", [1000, 1010, 1020, 1030], 0.01, spikes=0.5)
        write(here, task, "rgpo", [gain * x for x in (1001, 1012, 1018, 1031)], 0.02)
    found = verdicts(here)
    for claim in ("C5 costs", "C6 return", "C7 coefficient", "C8 KL", "C8 KL-spike"):
        assert found[claim]["verdict"] == REPRODUCED, found[claim]
    rows = fixtures.read_csv(here / "report/tables/ledger.csv")
    assert [row["verdict"] for row in rows if row["id"] == "C6"] == [REPRODUCED] * 2
    assert found["C1 gradient"]["verdict"] == UNTESTED and found["C9 reward"]["verdict"] == UNTESTED


def test_what_a_claim_needs_may_be_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No KL at all in one algorithm's runs, and a damaged file of the theory: the rest is judged."""
    for algo in ("ppo", "rgpo"):
        for seed in (1, 2, 3):
            metrics = fixtures.metrics_of("hopper", algo, seed, 20)
            if algo == "rgpo":
                metrics = {name: values for name, values in metrics.items() if not name.startswith("kl/")}
            fixtures.write_run(here / "results", "hopper", algo, seed, 20, metrics=metrics)
    (here / "results/theory").mkdir()
    (here / "results/theory/verdicts.parquet").write_text("junk")
    found = verdicts(here, code=1)
    assert found["C8 KL-spike"]["verdict"] == found["C1 gradient"]["verdict"] == UNTESTED
    assert "%" in found["C7 coefficient"]["ours"]
    assert "theory: verdicts.parquet cannot be read" in capsys.readouterr().err


def test_one_experiment_is_not_judged_for_all(here: Path) -> None:
    write(here, "hopper", "ppo", [1000, 1010, 1020], 0.01)
    verdicts(here)
    before = (here / "report/tables/ledger.csv").read_bytes()
    fixtures.write_experiment(here / "elsewhere", algos=("ppo",))
    (here / "elsewhere/first_evidence").rename(here / "results/other")
    assert main([*FAST, "experiment=other", "figures=[]"]) == 0
    assert (here / "report/tables/ledger.csv").read_bytes() == before


def test_claims_that_fail(here: Path) -> None:
    for task in ("halfcheetah", "hopper", "walker2d"):
        write(here, task, "ppo", [1000, 1010, 1020, 1030], 0.01)
        write(here, task, "rgpo", [500, 560, 505, 490], 0.2)
    write(here, "ant", "ppo", [1.0, 2.0, 3.0], 0.01)
    write(here, "ant", "rgpo", [100.0, 5000.0, 900.0], 0.2)
    found = verdicts(here)
    for claim in ("C8 KL", "C8 KL-spike", "C7 coefficient"):
        assert found[claim]["verdict"] == REFUTED, found[claim]
    rows = [row for row in fixtures.read_csv(here / "report/tables/ledger.csv") if row["id"] == "C6"]
    assert [row["verdict"] for row in rows] == [REFUTED] * 2 and "walker2d -49 %" in rows[1]["ours"]


def test_too_few_seeds_decide_nothing(here: Path) -> None:
    for task in ("halfcheetah", "hopper"):
        write(here, task, "ppo", [1000, 1010], 0.01)
        write(here, task, "rgpo", [1000, 1010], 0.02)
    found = verdicts(here)
    for claim in ("C6 return", "C7 coefficient", "C8 KL"):
        assert (found[claim]["verdict"], found[claim]["ours"]) == (UNTESTED, "not run with 3 seeds or more")


def test_language_rows_carry_their_scale_and_the_papers_numbers(here: Path) -> None:
    fixtures.write_language(here / "results", iterations=20)
    found = verdicts(here)
    assert found["C10 KL"]["setting"] == "embedded, 20 iterations, 3 seeds"
    assert "qwen_rlhf (embedded) against grpo" in found["C10 KL"]["ours"]
    rows = fixtures.read_csv(here / "report/embedded_rlhf/tables/comparisons.csv")
    row = next(row for row in rows if row["measure"] == "reward, proxy" and row["label"] == "rgpo")
    assert row["paper"] == "+14.8 % [P] (Qwen2.5-1.5B, n = 3)" and row["setting"] == "embedded, 20 iterations"
    rewards = fixtures.read_csv(here / "report/embedded_rlhf/tables/rewards.csv")
    assert all(float(row["proxy"]) > float(row["gold"]) for row in rewards) and len(rewards) == 3


def test_the_ledger_renews_a_file_between_its_markers(here: Path) -> None:
    fixtures.write_run(here / "results")
    (here / "README.md").write_text(f"before\n{START}\nstale\n{END}\nafter\n")
    for _ in range(2):
        assert main([*FAST, "ledger=README.md"]) == 0
        text = (here / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text and text.count("| C8 |") == 2


def test_the_committed_ledger_is_that_of_the_committed_results(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    committed = (root / "experiments/README.md").read_text()
    (tmp_path / "README.md").write_text(committed)
    listed = subprocess.run(["git", "ls-files", "results"], cwd=root, capture_output=True, text=True, check=True).stdout.split()
    (tmp_path / "results").mkdir()
    for name in {Path(file).parts[1] for file in listed}:  # not what somebody has run since
        (tmp_path / "results" / name).symlink_to(root / "results" / name)
    words = [f"results_dir={tmp_path}/results", f"out={tmp_path}/report", "figures=[]", f"ledger={tmp_path}/README.md"]
    assert main(words) in (0, 1)
    assert (tmp_path / "README.md").read_text() == committed, "run: rgpo-report 'figures=[]' ledger=experiments/README.md"


def test_latex_tables_are_well_formed_and_compile(here: Path) -> None:
    fixtures.write_language(here / "results", seeds=3, iterations=20)
    fixtures.write_experiment(here / "results", algos=("ppo", "rgpo_literal", "rgpo"))
    assert main([*FAST]) == 0
    files = sorted((here / "report").rglob("*.tex"))
    assert {"rewards", "returns", "comparisons", "overall", "ledger"} <= {file.stem for file in files}
    for file in files:
        rows = [line for line in file.read_text().splitlines() if line.endswith(r"\\")]
        columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", file.read_text())[1])
        assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    if shutil.which("pdflatex") is None:
        return
    head = r"\documentclass{article}\usepackage[a4paper,landscape,margin=1cm]{geometry}\usepackage{booktabs}"
    body = "\n\n".join(rf"\input{{{file.with_suffix('')}}}" for file in files if file.stem not in ("ledger", "runs"))
    small = r"\begin{document}\setlength\parindent{0pt}\setlength\tabcolsep{3pt}\footnotesize"
    (here / "all.tex").write_text(f"{head}\n{small}\n{body}\n\\end{{document}}\n")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], capture_output=True, text=True)
    assert done.returncode == 0 and "Overfull" not in done.stdout, done.stdout[-2000:]


# compare


def test_compare_lists_the_changes_beyond_noise(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, shift in (("a", 0.0), ("b", 500.0)):
        for algo in ("ppo", "rgpo"):
            for seed in (1, 2, 3, 4, 5):
                metrics = fixtures.metrics_of("hopper", algo, seed, 20)
                if algo == "rgpo":
                    metrics["return/train_mean"] = metrics["return/train_mean"] + shift + (seed if shift else 0)
                if algo == "ppo" and side == "b":
                    noise = np.random.default_rng(seed).normal()
                    metrics["kl/old_exact"] = metrics["kl/old_exact"] * (1 + 0.1 * noise)
                lr = {"lr": 1e-4 if side == "b" else 3e-4}  # a setting that differs everywhere parts nothing
                fixtures.write_run(here / side, "hopper", algo, seed, 20, metrics=metrics, update=lr)
    assert main(["compare", "a", "b"]) == 0
    said = capsys.readouterr().out
    first = said.splitlines()[2]
    assert first.startswith("| changed | return |") and "rgpo" in first and "+503" in first
    assert "within noise | KL per update" in said and "a against b: 1 changed, 1 within noise, 4 identical (of 6" in said
    assert main(["compare", "a", "a"]) == 0
    assert capsys.readouterr().out.strip().startswith("a against a: 6 identical (of 6")


def test_compare_two_commits_and_what_only_one_has(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)

    git("init", "-q")
    for seed in (1, 2, 3):
        fixtures.write_run(here / "results", seed=seed)
    git("add", "."), git("commit", "-qm", "one")
    fixtures.write_run(here / "results", algo="rgpo")
    git("add", "."), git("commit", "-qm", "two")
    assert main(["compare", "HEAD~1", "HEAD"]) == 1
    said = capsys.readouterr()
    assert "3 identical" in said.out and "first_evidence: rgpo (hopper): only in HEAD" in said.err
    assert main(["compare", "HEAD", "nowhere"]) == 2
    assert "compare=nowhere: it is neither a folder nor a commit that contains results" in capsys.readouterr().err


def test_compare_refuses_settings_that_it_does_not_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b", "out=elsewhere"]) == 2
    assert "compare=out=elsewhere: it reads only results_dir, experiment" in capsys.readouterr().err


def test_compare_runs_no_program_that_the_repository_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)

    git("init", "-q")
    for seed in (1, 2, 3):
        fixtures.write_run(here / "results", seed=seed)
    (here / ".gitattributes").write_text("* filter=evil\n")
    git("add", "."), git("commit", "-qm", "one")
    git("config", "filter.evil.smudge", "touch PWNED; cat")
    git("config", "core.fsmonitor", "touch PWNED; false")
    assert main(["compare", "HEAD", "HEAD"]) == 0
    assert "3 identical" in capsys.readouterr().out and not list(here.rglob("PWNED"))


@pytest.mark.parametrize(("kind", "why"), [("latin-1", "not UTF-8 text"), ("fifo", "not a regular file"), ("zero", "regular")])
def test_a_ledger_that_is_no_text_is_refused_before_the_work(
    kind: str, why: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixtures.write_run(here / "results")
    path = here / "README.md"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"caf\xe9")
    assert main([*FAST, "ledger=README.md"]) == 2
    error = capsys.readouterr().err
    assert "ledger=README.md: cannot be used" in error and why in error and not (here / "report").exists()
