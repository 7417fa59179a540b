"""Language tables, the place of the ledger, LaTeX that compiles, and compare."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import report_fixtures as fixtures

from rgpo.report.claims.ledger import END, START
from rgpo.report.cli import main

FAST = ["format=svg", "num_resamples=200", "figures=[]"]


def test_one_experiment_is_not_judged_for_all(here: Path) -> None:
    fixtures.write_experiment(here / "results", algos=("ppo",))
    assert main(FAST) == 0
    before = (here / "report/tables/ledger.csv").read_bytes()
    fixtures.write_experiment(here / "elsewhere", algos=("ppo",))
    (here / "elsewhere/first_evidence").rename(here / "results/other")
    assert main([*FAST, "experiment=other"]) == 0
    assert (here / "report/tables/ledger.csv").read_bytes() == before


def test_a_damaged_table_of_the_theory_costs_its_claims_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixtures.write_run(here / "results")
    (here / "results/theory").mkdir()
    (here / "results/theory/verdicts.parquet").write_text("junk")
    assert main(FAST) == 1
    rows = fixtures.read_csv(here / "report/tables/ledger.csv")
    assert len(rows) > 10 and {row["verdict"] for row in rows} <= {"not tested", "undecided"}
    assert "theory: verdicts.parquet cannot be read" in capsys.readouterr().err


def test_language_rows_carry_their_scale_and_the_papers_numbers(here: Path) -> None:
    fixtures.write_language(here / "results", iterations=20)
    assert main(FAST) == 0
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
    assert (
        text.startswith("before\n")
        and text.endswith("\nafter\n")
        and "stale" not in text
        and text.count("| C8a |") == text.count("| C8b |") == 1
    )


@pytest.mark.parametrize(("name", "claims"), [("experiments/README.md", "rgpo"), ("experiments/klip_ppo.md", "klip_ppo")])
def test_the_committed_ledgers_are_those_of_the_committed_results(name: str, claims: str, tmp_path: Path) -> None:
    """Also that no row states that the code is unchanged when its digest has changed since."""
    root = Path(__file__).parents[1]
    committed = (root / name).read_text()
    (tmp_path / "README.md").write_text(committed)
    listed = subprocess.run(["git", "ls-files", "results"], cwd=root, capture_output=True, text=True, check=True).stdout.split()
    (tmp_path / "results").mkdir()
    for folder in {Path(file).parts[1] for file in listed}:  # not what somebody has run since
        (tmp_path / "results" / folder).symlink_to(root / "results" / folder)
    words = [f"results_dir={tmp_path}/results", f"out={tmp_path}/report", "figures=[]", f"ledger={tmp_path}/README.md"]
    assert main([*words, f"claims={root}/claims/{claims}"]) in (0, 1)
    command = f"rgpo-report 'figures=[]' ledger={name}{'' if claims == 'rgpo' else f' claims=claims/{claims}'}"
    assert (tmp_path / "README.md").read_text() == committed, f"run: {command}"


def test_latex_tables_are_well_formed_and_compile(here: Path) -> None:
    fixtures.write_language(here / "results", seeds=3, iterations=20)
    fixtures.write_experiment(here / "results", algos=("ppo", "rgpo_literal", "rgpo"))
    assert main([*FAST]) == 0
    files = sorted((here / "report").rglob("*.tex"))
    assert {"rewards", "returns", "comparisons", "overall", "ledger"} <= {file.stem for file in files}
    for file in files:
        rows = [line for line in file.read_text().splitlines() if line.endswith(r"\\")]
        align = re.search(r"\\begin\{tabular\}\{(.+)\}$", file.read_text(), re.MULTILINE)[1]
        columns = len(re.sub(r">\{.*?0pt\}\}p\{[^}]*\}", "p", align))
        assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    if shutil.which("pdflatex") is None:
        return
    head = r"\documentclass{article}\usepackage{booktabs,array,graphicx}\begin{document}\setlength\parindent{0pt}"
    body = "\n\n".join(rf"\input{{{file.with_suffix('')}}}" for file in files)
    (here / "all.tex").write_text(f"{head}\n{body}\n\\end{{document}}\n")
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
