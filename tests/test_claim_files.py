"""Claims as files: what cannot be used is refused in one sentence, and a damaged claim costs itself alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import report_fixtures as fixtures
import yaml
from claim_fixtures import CLAIM, GAIN, RETURN, claim, registered, verdict

from rgpo.errors import ConfigError
from rgpo.paths import claims_dir
from rgpo.report.claims.claim import RULES, read_claim, read_claims
from rgpo.report.claims.external import read_external
from rgpo.report.claims.published import published_table
from rgpo.report.claims.verdict import REPRODUCED, UNDECIDED
from rgpo.report.cli import main
from rgpo.report.read.groups import group_runs
from rgpo.report.read.load import read_runs

ROOT = Path(__file__).parents[1]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"rule": {"kind": "parity_", **RETURN, "margin": 20}}, "T1.yaml: rule.kind=parity_: there is no such value. Did you"),
    ({"rule": {**CLAIM["rule"], "marginn": 3}}, "T1.yaml: rule.marginn=3: there is no such key. Did"),
    ({"rule": {**CLAIM["rule"], "margin": "wide"}}, "T1.yaml: rule.margin=wide: give a number"),
    ({"rule": {**CLAIM["rule"], "margin": -1}}, "T1.yaml: rule.margin=-1.0: give percent above 0"),
    ({"rule": {**CLAIM["rule"], "metric": "return/trian_mean"}}, "there is no such metric. Did you mean return/train"),
    ({"rule": {**CLAIM["rule"], "statistic": "mode"}}, "rule.statistic=mode: give final, mean"),
    ({"rule": {"kind": "level", **RETURN}, "arms": {"treatment": {"algo": "rgpo"}}}, "rule.low=null: give low, high or both"),
    ({"rule": {**GAIN, "paper": {"ant": 3}}}, "rule.paper=ant: give the tasks of evidence.tasks (hopper)"),
    ({"rule": None}, "T1.yaml: rule=null: it is missing; add it"),
    ({"stated_by": "nobody"}, "stated_by=nobody: there is no such value"),
    ({"arms": {"treatment": {"algo": "rgpoo"}, "baseline": {"algo": "ppo"}}}, "arms.treatment.algo=rgpoo: there is no such"),
    ({"arms": {"treatment": {"algo": "rgpo"}}}, "arms.baseline=null: it is missing"),
    ({"arms": {**CLAIM["arms"], "third": {"algo": "ppo"}}}, "arms=third: there is no such arm of this rule"),
    ({"null_arm": None}, "null_arm=null: the null arm is missing"),
    ({"null_arm": {"algo": "rgpo"}}, "it is the treatment itself"),
    ({"evidence": {"experiment": "first_evidense"}}, "experiment=first_evidense: there is no such experiment. Did"),
    ({"evidence": {"seeds": 0}}, "evidence.seeds=0: give 3 to 1000"),
    ({"evidence": {"seeds": 2.5}}, "evidence.seeds=2.5: give a whole number"),
    ({"evidence": {"steps": None}}, "evidence.steps=null: give steps or iterations"),
    ({"evidence": {"tasks": []}}, "evidence.tasks=[]: name at least one task"),
    ({"arms": {"treatment": {"algo": "rgpo"}, "baseline": {"external": "nothing/ppo"}}}, "no such file of results/external"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), BAD, ids=[sentence[:60] for _, sentence in BAD])
def test_a_claim_that_cannot_be_used_is_refused_in_one_sentence(change: dict[str, Any], sentence: str, here: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_claim(claim(here, **change), [], [])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_claim_removes_no_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registered(here)
    claim(here)
    for name, text in (("A", "id: [unclosed"), ("B", "just text"), ("C", "id: 3"), ("D", "\x00")):
        (here / "mine" / f"{name}.yaml").write_text(text)
    assert main(["figures=[]", "claims=mine/", "num_resamples=100"]) == 1
    (row,) = fixtures.read_csv(here / "report/tables/ledger.csv")
    assert row["verdict"] == REPRODUCED and row["quote"] == "on par"
    lines = [line for line in capsys.readouterr().err.splitlines() if "claims/" in line]
    assert len(lines) == 4 and all("; the claim is left out" in line for line in lines)
    assert main(["figures=[]", "claims=nowhere"]) == 2
    assert "claims=nowhere: it cannot be read" in capsys.readouterr().err.replace(str(here) + "/", "")


def test_the_packaged_claims_are_whole_and_use_every_rule() -> None:
    anchors, problems = read_external(ROOT / "results")
    assert not problems
    used = set()
    for folder in sorted(claims_dir().iterdir()):
        found, problems = read_claims(folder, [], anchors)
        assert found and not problems
        used |= {str(loaded.claim.rule["kind"]) for loaded in found}
        assert all(loaded.claim.quote and loaded.claim.changes_our_mind for loaded in found)
    assert used == set(RULES)


def test_klip_ppos_table_is_judged_from_committed_runs() -> None:
    """Hopper, 5 seeds each: 2664 ± 311 of ours against their 2598 ± 278, +2.5 %; too few seeds for a margin of 20 %."""
    results = ROOT / "results"
    found = verdict(ROOT, claims_dir() / "klip_ppo/K1_hopper.yaml", results)
    assert found.outcome == UNDECIDED and "hopper +2." in found.ours and "6 seeds per arm would decide" in found.ours


def test_a_published_number_takes_part_with_its_own_error(here: Path) -> None:
    registered(here)
    folder = here / "results/external"
    folder.mkdir()
    source = {"source": "a paper", "url": "", "protocol": "ours", "license": "", "metric": "return/train_mean"}
    for sd, outcome in ((10.0, REPRODUCED), (400.0, UNDECIDED)):
        numbers = {"ppo": {"hopper": {"value": 1000, "sd": sd, "n": 5}}}
        (folder / "theirs.yaml").write_text(yaml.safe_dump(source | {"arms": numbers}))
        arms = {"treatment": {"algo": "rgpo"}, "baseline": {"external": "theirs/ppo"}}
        assert verdict(here, claim(here, arms=arms)).outcome == outcome
    (folder / "bad.yaml").write_text(yaml.safe_dump(source | {"arms": {"ppo": {"hopper": {"value": "high", "n": 5}}}}))
    _, problems = read_external(here / "results")
    assert "external/bad.yaml: arms.ppo.hopper.value=high: give a number" in str(problems[0])


def test_published_returns_are_rows_beside_ours_with_their_differences() -> None:
    runs = read_runs(ROOT / "results/archive/published_returns", (), 0.1, (0.04,), lambda f, items, _: map(f, items))[0]
    table = published_table(read_external(ROOT / "results")[0], group_runs(runs)[0], 0.95)
    assert table is not None
    rows = {(row["task"], row["source"]): row for row in table.rows}
    ours = rows["hopper", "CleanRL documentation, PPO (continuous actions)"]
    assert (ours["theirs"], ours["their_n"], ours["n"], ours["differs"]) == (2382.9, 3, 5, "")
    assert ours["percent"] == pytest.approx(100 * (ours["ours"] / 2382.9 - 1)) and ours["percent_low"] < 0 < ours["percent_high"]
    assert "one seed" in rows["hopper", "RL Baselines3 Zoo benchmark"]["differs"]
    assert not any("RPO page" in source for _, source in rows), "8M steps are another length"
