"""The first screen: the verdict in a box, what to use instead, and what a user's own sweep gets in their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import report_fixtures as fixtures

from rgpo.report.claims.ledger import in_short
from rgpo.report.cli import main, parse
from rgpo.report.read.groups import Group, group_runs
from rgpo.report.read.load import read_runs
from rgpo.report.read.repeated import Repeated
from rgpo.report.read.run import Run
from rgpo.report.read.workers import workers
from rgpo.report.tables.advice import advice
from rgpo.report.tables.contest import APART, BETTER, DRIFT, FEW, NOISE, WORSE
from rgpo.report.tables.matched import matched_table

FAST = ["num_resamples=100", "figures=[]"]


def groups(
    results: Path, returns: dict[str, list[float]], tasks: tuple[str, ...] = ("hopper",), iterations: int = 5
) -> list[Group]:
    """Groups of runs whose training return is constant."""
    for task in tasks:
        for algo, values in returns.items():
            for seed, value in enumerate(values, start=1):
                metrics = {"return/train_mean": np.full(iterations, value)}
                fixtures.write_run(results, task, algo, seed, iterations, metrics=metrics)
    with workers(0) as serial:
        runs, _ = read_runs(results / "first_evidence", {"return/train_mean"}, 0.1, (0.04,), serial)
    return group_runs(runs)[0]


@pytest.mark.parametrize(
    ("returns", "outcomes", "headline"),
    [
        (
            {"ppo": [10.0, 11, 12], "rgpo": [20.0, 21, 22]},
            {"rgpo": BETTER},
            "Use rgpo: better than ppo by more than noise on hopper.",
        ),
        (
            {"ppo": [10.0, 11, 12], "rgpo": [10.5, 11, 12]},
            {"rgpo": NOISE},
            "the other does not beat it beyond noise on hopper (3 seeds). RGPO is not shown to differ from it.",
        ),
        (
            {"ppo": [10.0, 11, 12], "rgpo": [1.0, 2, 3]},
            {"rgpo": WORSE},
            "Use ppo: the other does not beat it beyond noise on hopper (3 seeds). RGPO is worse.",
        ),
        ({"ppo": [10.0, 11], "rgpo": [20.0, 21]}, {"rgpo": FEW}, "Undecided: every arm has fewer than 3 seeds"),
    ],
)
def test_the_best_arm_is_recommended_only_beyond_noise(
    returns: dict[str, list[float]], outcomes: dict[str, str], headline: str, tmp_path: Path
) -> None:
    found = advice([("sweep", groups(tmp_path, returns))], parse([])[0])
    assert found is not None and headline in found.headlines[0]
    assert {arm.label: arm.outcome for arm in found.contests[0].arms} == {"ppo": "", **outcomes}
    assert found.contests[0].arms[0].mean == max(np.mean(values) for values in returns.values())


def test_a_baseline_at_a_worse_setting_is_no_comparison(tmp_path: Path) -> None:
    fast = groups(tmp_path / "fast", {"ppo": [1.0, 2, 3], "rgpo": [18.0, 19, 20]})
    alone = groups(tmp_path / "usual", {"ppo": [20.0, 21, 22]})
    assert "Use rgpo" in advice([("fast", fast)], parse([])[0]).headlines[0]
    both = groups(tmp_path / "both", {"ppo": [20.0, 21, 22], "rgpo": [19.0, 20, 21]})
    found = advice([("fast", fast), ("usual", alone), ("both", both)], parse([])[0])
    assert found is not None and found.headlines[0].startswith("Use ppo: the other does not beat it beyond noise")


def test_a_baseline_with_several_settings_is_compared_at_its_best(tmp_path: Path) -> None:
    """The first setting alone, 1 to 3, would lose to rgpo."""
    for lr, values in ((1e-4, [1.0, 2, 3]), (1e-3, [20.0, 21, 22]), (1e-2, [10.0, 11, 12])):
        for seed, value in enumerate(values, start=1):
            metrics = {"return/train_mean": np.full(5, value)}
            fixtures.write_run(tmp_path, "hopper", "ppo", seed, 5, metrics=metrics, update={"lr": lr})
    found = advice([("sweep", groups(tmp_path, {"rgpo": [18.0, 19, 20]}))], parse([])[0])
    assert found is not None and found.contests[0].baseline == "ppo lr=0.001"
    assert "none of 3 other arms beats it beyond noise" in found.headlines[0]
    assert found.remarks[-1] == "The baseline on hopper is ppo lr=0.001, the best of its 3 settings."
    assert {arm.label: arm.outcome for arm in found.contests[0].arms}["rgpo"] == NOISE


def test_each_task_is_answered_by_its_own_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the present code replace older ones of their task, not those of other tasks; without PPO, theirs is used."""
    old = groups(tmp_path / "old", {"ppo": [20.0, 21, 22], "rgpo": [1.0, 2, 3]}, tasks=("ant", "hopper"))
    new = groups(tmp_path / "new", {"ppo": [20.0, 21, 22], "rgpo": [20.0, 21, 23]})
    without = groups(tmp_path / "without", {"awr": [1.0, 2, 3, 4], "rgpo": [5.0, 6, 7, 8]}, tasks=("ant",))
    folders = {run.folder for group in [*new, *without] for run in group.runs}
    monkeypatch.setattr(Run, "is_current", property(lambda run: run.folder in folders))
    found = advice([("old", old), ("new", new), ("without", without)], parse([])[0])
    assert found is not None and "on ant or hopper" in found.headlines[0]
    assert "worse in 1 and not shown to differ from it in 1 of 2 comparisons" in found.headlines[0]
    assert found.remarks[-1] == "The arms of without are compared with ppo from old."


def test_a_repeated_run_stands_for_its_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = groups(tmp_path / "old", {"ppo": [20.0, 21, 22], "awr": [1.0, 2, 3]})
    new = groups(tmp_path / "new", {"ppo": [20.0, 21, 22], "rgpo": [20.0, 21, 23]})
    monkeypatch.setattr(Run, "is_current", property(lambda run: "new" in run.folder.parts))
    sections, run = [("old", old), ("new", new)], old[0].runs[0]
    for code, current in ((run.present_code, True), ("0" * 12, False)):
        repeated = {run.where: Repeated(code=code, commit="", found="equal")}
        found = advice([("old", old)], parse([])[0], repeated)
        assert found is not None and found.contests[0].current is current
    monkeypatch.setattr(Run, "where", property(lambda run: str(run.folder)))  # both are called first_evidence
    for repeated, size in (
        ({}, "the other does"),
        ({run.where: Repeated(code=run.present_code, commit="", found="equal")}, "none of 2"),
    ):
        found = advice(sections, parse([])[0], repeated)
        assert found is not None and size in found.headlines[0]


def test_neighbors_are_compared_with_ppo_at_its_best_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only under the same conditions, with enough seeds, and in the same time; of equal ones with the present code's."""
    neighbors = groups(tmp_path / "neighbors", {"awr": [1.0, 2, 3], "spo": [20.0, 21, 22]})
    one_run = groups(tmp_path / "one_run", {"ppo": [99.0]})
    longer = groups(tmp_path / "longer", {"ppo": [98.0, 99, 99]}, iterations=10)
    better = groups(tmp_path / "better", {"ppo": [18.0, 19, 20]})
    usual = groups(tmp_path / "usual", {"ppo": [15.0, 16, 17]})
    sections = [("neighbors", neighbors), ("one_run", one_run), ("longer", longer)]
    (alone,) = advice(sections, parse([])[0]).contests
    assert alone.borrowed == "" and alone.baseline in ("awr", "spo")
    (contest,) = advice([*sections, ("usual", usual), ("better", better)], parse([])[0]).contests
    assert (contest.borrowed, contest.baseline) == ("better", "ppo") and contest.fair and contest.usual
    assert {arm.label: arm.outcome for arm in contest.arms} == {"spo": NOISE, "ppo": "", "awr": WORSE}
    assert contest.sentence.endswith("; ppo is from better.")
    today = groups(tmp_path / "today", {"ppo": [18.0, 19, 20]})
    monkeypatch.setattr(Run, "is_current", property(lambda run: "today" in run.folder.parts))
    (contest,) = advice([*sections, ("better", better), ("today", today)], parse([])[0]).contests
    assert contest.borrowed == "today"


def test_ppo_with_another_gate_is_no_baseline_by_the_name_of_ppo(tmp_path: Path) -> None:
    """PPO's settings with the sigmoid are RGPO; where its clip was run elsewhere, they are compared with that."""
    for sharpness, values in ((4.0, [1.0, 2, 3]), (10.0, [2.0, 3, 4])):
        for task in ("ant", "hopper"):
            for seed, value in enumerate(values, start=1):
                metrics = {"return/train_mean": np.full(5, value)}
                options = {"choices": {"gate": "sigmoid", "penalty": "adaptive"}, "gate": {"sharpness": sharpness}}
                fixtures.write_run(tmp_path / "sweep", task, "ppo", seed, 5, metrics=metrics, **options)
    sweep = groups(tmp_path / "sweep", {})
    alone = advice([("sweep", sweep)], parse([])[0])
    assert alone is not None and alone.headlines[0].startswith("Use ppo sharpness=")
    assert not any(contest.usual or contest.borrowed for contest in alone.contests)
    clip = groups(tmp_path / "clip", {"ppo": [20.0, 21, 22]}, tasks=("ant", "hopper"))
    found = advice([("sweep", sweep), ("clip", clip)], parse([])[0])
    assert found is not None and found.headlines[0].startswith(
        "Use ppo: none of 2 other arms beats it beyond noise on ant or hopper"
    )
    assert "RGPO is worse in 4 of 4 comparisons (2 tasks)." in found.headlines[0]


def test_an_arm_that_loses_under_another_label_is_not_recommended(tmp_path: Path) -> None:
    """Labels name what differs within an experiment, so the same arm has another one elsewhere."""
    wins = groups(tmp_path / "wins", {"ppo": [1.0, 2, 3], "rgpo": [18.0, 19, 20]}, tasks=("ant",))
    for lr in (3e-4, 1e-3):
        for seed in (1, 2, 3):
            metrics = {"return/train_mean": np.full(5, float(seed))}
            fixtures.write_run(tmp_path / "loses", "hopper", "rgpo", seed, 5, metrics=metrics, update={"lr": lr})
    loses = groups(tmp_path / "loses", {"ppo": [18.0, 19, 20]})
    found = advice([("wins", wins), ("loses", loses)], parse([])[0])
    assert found is not None and found.headlines[0].startswith("Use ppo: rgpo beat it in one task and lost in another.")


def test_an_arm_with_few_seeds_hides_no_other(tmp_path: Path) -> None:
    many = groups(tmp_path / "many", {"ppo": [10.0, 11, 12, 13], "awr": [1.0, 2, 3, 4], "trpo": [1.0]})
    other = groups(tmp_path / "other", {"ppo": [10.0, 11, 12, 13], "spo": [1.0, 2, 3]})
    found = advice([("many", many), ("other", other)], parse([])[0])
    assert found is not None
    assert "none of 2 other arms beats it beyond noise on hopper (3 to 4 seeds)" in found.headlines[0]


def test_of_a_task_the_longer_experiment_counts(tmp_path: Path) -> None:
    """With equally many seeds; arms of both together would be counted as compared in one design."""
    short = groups(tmp_path / "short", {"ppo": [10.0, 11, 12], "trpo": [1.0, 2, 3], "awr": [1.0, 2, 3]})
    long = groups(tmp_path / "long", {"ppo": [10.0, 11, 12], "rgpo": [10.5, 11, 12]}, iterations=10)
    found = advice([("short", short), ("long", long)], parse([])[0])
    assert found is not None and "the other does not beat it beyond noise on hopper" in found.headlines[0]


def test_the_headline_counts_the_arms_of_each_task(tmp_path: Path) -> None:
    many = groups(tmp_path / "many", {"ppo": [10.0, 11, 12], "trpo": [1.0, 2, 3], "awr": [1.0, 2, 3]}, tasks=("ant",))
    few = groups(tmp_path / "few", {"ppo": [10.0, 11, 12], "rgpo": [10.5, 11, 12]})
    found = advice([("many", many), ("few", few)], parse([])[0])
    assert found is not None and "none of 1 to 2 other arms beats it beyond noise on ant or hopper" in found.headlines[0]


def test_one_arm_alone_is_no_contest(tmp_path: Path) -> None:
    assert advice([("sweep", groups(tmp_path, {"ppo": [1.0, 2, 3]}))], parse([])[0]) is None


def test_a_sweep_without_ppo_has_a_baseline_and_a_sentence_about_it(here: Path) -> None:
    for sharpness in (4.0, 10.0):
        for seed in (1, 2, 3):
            fixtures.write_run(here / "results", algo="rgpo", seed=seed, name="sweep", gate={"sharpness": sharpness})
    assert main([*FAST]) == 0
    page = (here / "report/index.html").read_text()
    assert "Which arm is best?" in page and "Does RGPO reproduce?" not in page and 'id="claims"' not in page
    assert "ppo was not run, so arms are compared with rgpo sharpness=4" in page
    rows = fixtures.read_csv(here / "report/sweep/tables/comparisons.csv")
    assert {row["baseline"] for row in rows} == {"rgpo sharpness=4"}


def test_the_first_screen_answers_for_the_experiments_of_the_claims(here: Path) -> None:
    fixtures.write_experiment(here / "results", tasks=("hopper",), algos=("ppo", "rgpo"), iterations=5)
    assert main([*FAST]) == 0
    page = (here / "report/index.html").read_text()
    assert page.index("Does RGPO reproduce?") < page.index("What should I use instead?") < page.index('id="first_evidence"')
    assert "Theory: not tested; cost: not tested; control: not tested; language models: not tested." in page
    assert "The paper&#39;s 13 claims: 13 not tested, at our scale" in page


def test_the_short_answer_counts_the_verdicts_of_a_subject_only_where_they_differ() -> None:
    found = [("theory", "reproduced"), ("theory", "reproduced"), ("control", "contradicted"), ("control", "undecided")]
    words, counts = in_short(found)
    assert words == "Theory: yes; control: 1 no, 1 undecided"
    assert counts.startswith("The paper's 4 claims: 2 reproduced, 1 contradicted, 1 undecided, at our scale")


def test_a_baseline_without_a_gate_keeps_its_name_and_is_not_the_papers_algorithm(tmp_path: Path) -> None:
    for gate, value in (("identity", 10.0), ("sigmoid", 10.5)):
        for seed in (1, 2, 3):
            columns = {"return/train_mean": np.full(5, value + seed)}
            fixtures.write_run(tmp_path, "hopper", "rgpo", seed, 5, metrics=columns, choices={"gate": gate})
    with workers(0) as serial:
        runs, _ = read_runs(tmp_path / "first_evidence", {"return/train_mean"}, 0.1, (0.04,), serial)
    found = advice([("sweep", group_runs(runs)[0])], parse([])[0])
    assert found is not None and found.headlines[0].startswith("Use rgpo gate=identity: ")
    assert [arm.ours for arm in found.contests[0].arms if "identity" in arm.label] == [False]
    assert "RGPO is not shown to differ from it." in found.headlines[0]


def test_less_reward_at_less_kl_alone_is_no_reason_against_an_arm(tmp_path: Path) -> None:
    """Three strengths of the penalty per algorithm: rgpo's end on ppo's curve with less KL, grpo's below it, rloo's elsewhere."""
    reach = {"ppo": (4.0, 8.0, 16.0), "rgpo": (2.0, 4.0, 8.0), "grpo": (4.0, 8.0, 16.0), "rloo": (0.5, 1.0, 2.0)}
    for algo, ends in reach.items():
        for end in ends:
            for seed in (1, 2, 3):
                kl = end * np.linspace(0.05, 1, 20)
                reward = (0.4 if algo == "grpo" else 1.0) * (1 + 0.01 * seed) * kl
                columns = {"kl/eval_ref_sequence": kl, "reward/eval_proxy_change": reward}
                fixtures.write_run(
                    tmp_path, "qwen_rlhf", algo, seed, 20, metrics=columns, scale="embedded", penalty={"coef": 1 / end}
                )
    with workers(0) as serial:
        runs, _ = read_runs(
            tmp_path / "first_evidence", {"kl/eval_ref_sequence", "reward/eval_proxy_change"}, 0.1, (0.04,), serial
        )
    found = advice([("sweep", group_runs(runs)[0])], parse([])[0])
    assert found is not None
    outcomes = {arm.family: arm.outcome for arm in found.contests[0].arms}
    assert outcomes == {"ppo": "", "rgpo": NOISE, "grpo": WORSE, "rloo": APART}
    assert found.headlines[0].startswith("Use ppo: ") and "RGPO is not shown to differ from it at equal KL" in found.headlines[0]
    assert "Worse by more than noise in at least one task: grpo." in found.remarks


def test_more_reward_at_more_kl_alone_is_no_reason_to_use_an_arm(tmp_path: Path) -> None:
    """Two arms on one frontier, reward sqrt(KL) less a tenth: the one that goes further ends higher and is not recommended."""
    for algo, end, factor in (("ppo", 4.0, 1.0), ("grpo", 16.0, 0.9)):
        for seed in (1, 2, 3):
            kl = end * np.linspace(0.05, 1, 20)
            columns = {"kl/eval_ref_sequence": kl, "reward/eval_proxy_change": factor * (1 + 0.01 * seed) * np.sqrt(kl)}
            fixtures.write_run(tmp_path, "qwen_rlhf", algo, seed, 20, metrics=columns, scale="embedded")
    columns = {"kl/eval_ref_sequence", "reward/eval_proxy_change"}
    with workers(0) as serial:
        runs, _ = read_runs(tmp_path / "first_evidence", columns, 0.1, (0.04,), serial)
    members = group_runs(runs)[0]
    found = advice([("sweep", members)], parse([])[0])
    assert found is not None and {arm.label: arm.outcome for arm in found.contests[0].arms} == {"grpo": DRIFT, "ppo": ""}
    assert found.headlines[0].startswith("Use ppo: ") and "only with more KL to the reference: grpo" in found.remarks[0]
    table = matched_table(members, parse([])[0])
    rows = table.rows if table else ()
    assert [row["kl"] for row in rows] == pytest.approx([1, 2, 3, 4])
    assert [row["percent"] for row in rows] == pytest.approx([-10] * 4, abs=2)  # linear between evaluations of a square root
