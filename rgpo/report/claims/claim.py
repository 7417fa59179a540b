"""Claims as yaml files: the quoted sentence, who states it, the evidence by name, the rule and the null arm."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from rgpo.errors import ConfigError, close_matches, require
from rgpo.paths import conf_dir
from rgpo.report.claims.evidence import BASELINE, EXTERNAL, NULL, TREATMENT, Named
from rgpo.report.claims.external import Anchors
from rgpo.report.claims.frontier import Dominance
from rgpo.report.claims.rules import Gain, Level, Number, Parity, Rate, Rule
from rgpo.report.claims.selection import CHOICES
from rgpo.report.claims.theory import CostRatio, Statements
from rgpo.report.claims.typed import fill, shown
from rgpo.report.read.reduce import is_statistic
from rgpo.report.read.run import Problem
from rgpo.runtime.reader import Unreadable, printable, read_yaml
from rgpo.runtime.schema import GLOSSARY

OF_RUNS: dict[str, type[Rule]] = {"parity": Parity, "gain": Gain, "level": Level, "rate": Rate, "dominance": Dominance}
OF_THEORY: dict[str, type[Statements | CostRatio]] = {"statements": Statements, "cost_ratio": CostRatio}
RULES = (*OF_RUNS, *OF_THEORY)
STATED_BY = ("paper", "reader", "ours")
FOLDERS = {"algo": "algo", "ref_gate": "gate"}  # group -> folder in conf/, where the names differ
THEORY, COST, CONTROL, LANGUAGE = SUBJECTS = "theory", "cost", "control", "language models"
MAX_SEEDS = 1000
MAX_TEXT = 2000
MIN_CODE = 7  # least number of characters of a digest or commit
ID = re.compile(r"[\w.+-]{1,20}")
TEXTS = ("claim", "quote", "source", "paper", "changes_our_mind")  # required one-line texts
Arm = dict[str, object]


@dataclass(frozen=True)
class Claim:
    """One row of the ledger."""

    id: str
    claim: str
    quote: str  # the sentence in the paper, verbatim
    source: str
    stated_by: str  # paper, reader (of its full text) or ours; ours has no bearing on the paper
    paper: str  # the paper's number, as text
    rule: dict[str, object]  # kind and parameters
    changes_our_mind: str
    evidence: dict[str, object] = field(default_factory=dict)
    arms: dict[str, Arm] = field(default_factory=dict)
    null_arm: dict[str, object] | None = None  # an arm that must not satisfy the rule
    matched: str = ""  # the variable on which the arms are matched
    note: str = ""  # remarks on our setting for readers of the verdict


@dataclass(frozen=True)
class Loaded:
    """A validated claim, with its rule and evidence as objects."""

    claim: Claim
    path: Path
    rule: Rule | None = None  # for claims about runs
    theory: Statements | CostRatio | None = None
    named: Named | None = None
    arms: dict[str, Arm] = field(default_factory=dict)  # treatment, baseline, null
    damage: str = ""  # why it cannot be judged

    @property
    def subject(self) -> str:
        """The subject of the claim, one of SUBJECTS."""
        if self.theory is not None:
            return COST if isinstance(self.theory, CostRatio) else THEORY
        return LANGUAGE if any(column.startswith("reward/") for column in self.columns) else CONTROL

    @property
    def numbers(self) -> list[Number]:
        return self.rule.numbers() if self.rule else []

    @property
    def columns(self) -> list[str]:
        return [*(column for column, _ in self.numbers), *(self.rule.curves() if self.rule else [])]


def read_claims(folder: Path, experiments: Collection[str], anchors: Anchors) -> tuple[list[Loaded], list[Problem]]:
    """The claims in a folder, ordered by file name, and a problem for each invalid one.

    experiments: those with results; anchors: the numbers in results/external.

    Raises: ConfigError if the folder has no claims or cannot be read.
    """
    try:
        there = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"claims={folder}: it cannot be read ({error.strerror}); give a folder of yaml files") from None
    files = [path for path in there if path.suffix == ".yaml"]
    if not files:
        raise ConfigError(f"claims={folder}: it has no yaml files; write one per claim")
    found: list[Loaded] = []
    others = [path for path in there if path.suffix.lower() in (".yml", ".yaml") and path not in files]
    problems = [
        Problem(f"claims/{path.name}", "its name does not end in .yaml; rename it; the claim is left out") for path in others
    ]
    for path in sorted(files, key=_natural):
        try:
            found.append(read_claim(path, experiments, anchors))
        except (ConfigError, Unreadable) as error:
            problems.append(Problem(f"claims/{path.name}", f"{printable(str(error), 600)}; the claim is left out"))
    files_of: dict[str, list[str]] = defaultdict(list)
    for one in found:
        files_of[one.claim.id].append(one.path.name)
    clashes = {
        name: f"id={name}: {' and '.join(of)} have it; give each claim its own" for name, of in files_of.items() if len(of) > 1
    }
    problems += [Problem("claims", f"{why}; neither is judged") for why in clashes.values()]
    return [replace(one, damage=clashes.get(one.claim.id, "")) for one in found], problems


def read_claim(path: Path, experiments: Collection[str], anchors: Anchors) -> Loaded:
    """Read and validate one claim.

    Raises: ConfigError, with file, key, value and remedy, if it is invalid; Unreadable if it is not yaml.
    """
    where = f"{path.name}: "
    claim = fill(Claim, read_yaml(path), where)
    require(bool(ID.fullmatch(claim.id)), f"{where}id", shown(claim.id), "give up to 20 letters, digits, and . _ + -")
    for key in TEXTS:
        text = getattr(claim, key)
        require(bool(text.strip()), f"{where}{key}", shown(text), "give a text of one line")
    for key in (*TEXTS, "matched", "note"):
        text = getattr(claim, key)
        alone = printable(text, MAX_TEXT) == text and "<!--" not in text
        require(alone, f"{where}{key}", shown(text), "give a text of one line, without <!--")
    _one_of(claim.stated_by, STATED_BY, f"{where}stated_by")
    node = dict(claim.rule)
    kind = node.pop("kind", None)
    _one_of(kind, RULES, f"{where}rule.kind")
    if kind in OF_THEORY:
        theory = fill(OF_THEORY[str(kind)], node, f"{where}rule.")
        for key in ("algo", "baseline") if isinstance(theory, CostRatio) else ():
            _one_of(getattr(theory, key), _options("algo"), f"{where}rule.{key}", "option of algo")
        return Loaded(claim, path, theory=theory)
    rule = fill(OF_RUNS[str(kind)], node, f"{where}rule.")
    named = fill(Named, claim.evidence, f"{where}evidence.")
    loaded = Loaded(claim, path, rule, None, named, _arms(claim, rule, where, anchors))
    _check_evidence(named, f"{where}evidence.", experiments)
    fits = not named.over or isinstance(rule, Dominance)
    require(fits, f"{where}evidence.over", shown(named.over), "is for rule.kind=dominance; leave it out or change the rule")
    for column in loaded.columns:
        _one_of(column, GLOSSARY, f"{where}rule.{'metric' if loaded.numbers else 'x'}", "metric")
    for _, statistic in loaded.numbers:
        require(is_statistic(statistic), f"{where}rule.statistic", statistic, "give final, mean, median, first or last")
    if isinstance(rule, Gain):
        lacking = sorted(set(named.tasks) ^ set(rule.paper))
        require(
            not lacking,
            f"{where}rule.paper",
            ", ".join(rule.paper),
            f"give the tasks of evidence.tasks ({', '.join(named.tasks)})",
        )
    return loaded


def _check_evidence(named: Named, where: str, experiments: Collection[str]) -> None:
    _one_of(named.experiment, sorted({*declared_experiments(), *experiments}), f"{where}experiment", "experiment")
    require(3 <= named.seeds <= MAX_SEEDS, f"{where}seeds", named.seeds, f"give 3 to {MAX_SEEDS} seeds per arm and task")
    require(bool(named.tasks), f"{where}tasks", "[]", "name at least one task")
    require(len({*named.tasks}) == len(named.tasks), f"{where}tasks", ", ".join(named.tasks), "name each task once")
    for code in named.code or ():
        require(len(code) >= MIN_CODE, f"{where}code", shown(code), f"give at least {MIN_CODE} characters of a digest or commit")
    for key, value in named.config.items():
        _refuse_text_of_number(value, f"{where}config.{key}")
    budget = (named.steps is None) != (named.iterations is None)
    require(budget, f"{where}steps", shown(named.steps), "give steps or iterations, and not both")
    length = named.steps if named.steps is not None else named.iterations
    require(length is not None and length > 0, f"{where}steps", shown(length), "give a length above 0")


@functools.cache
def declared_experiments() -> frozenset[str]:
    """The names of the packaged experiments; several files may share a name."""
    nodes = (read_yaml(path) for path in (conf_dir() / "experiment").glob("*.yaml"))
    return frozenset(str(node["name"]) for node in nodes)


def _arms(claim: Claim, rule: Rule, where: str, anchors: Anchors) -> dict[str, Arm]:
    """Role (treatment, baseline, null) -> arm.

    Raises: ConfigError if an arm is missing, invalid or equal to another one.
    """
    known = (TREATMENT, BASELINE) if rule.needs_baseline else (TREATMENT,)
    for name in known:
        require(
            name in claim.arms, f"{where}arms.{name}", "null", "it is missing; give the settings of its runs, such as {algo: ppo}"
        )
    for name in claim.arms:
        _one_of(name, known, f"{where}arms", "arm of this rule")
    require(
        claim.null_arm is not None, f"{where}null_arm", "null",
        "the null arm is missing; give an arm for which the rule must not hold, such as {gate: identity, penalty: adaptive}",
    )  # fmt: skip
    arms = dict(claim.arms) | {NULL: dict(claim.null_arm or {})}
    for name, arm in arms.items():
        place = f"{where}{'null_arm' if name == NULL else f'arms.{name}'}"
        _check_arm(arm, place, anchors)
        number = EXTERNAL in arm and not isinstance(rule, (Parity, Gain))
        require(not number, place, arm, "the rule needs runs, and this is a published number; give the settings of runs")
    remedy = "give an arm without what the claim is about"
    require(arms[NULL] != arms[TREATMENT], f"{where}null_arm", arms[NULL], f"it is the treatment itself; {remedy}")
    require(arms[NULL] != arms.get(BASELINE), f"{where}null_arm", arms[NULL], f"it is the baseline itself; {remedy}")
    require(
        arms[TREATMENT] != arms.get(BASELINE), f"{where}arms.treatment", arms[TREATMENT], "it is the baseline, too; exchange one"
    )
    return arms


def _check_arm(arm: Arm, where: str, anchors: Anchors) -> None:
    require(bool(arm), where, "{}", "give at least one setting, such as {algo: ppo}")
    if EXTERNAL in arm:
        file, _, name = str(arm[EXTERNAL]).partition("/")
        require(len(arm) == 1, where, arm, "a published number has no other settings; leave them out")
        _one_of(file, anchors, f"{where}.external", "file of results/external")
        if anchors[file]:  # a file without numbers is damaged, so its arms are unknown
            _one_of(name, anchors[file], f"{where}.external={file}/", f"arm of {file}")
        return
    for key, value in arm.items():
        _refuse_text_of_number(value, f"{where}.{key}")
        if key in CHOICES:
            _one_of(value, _options(key), f"{where}.{key}", f"option of {key}")
        else:
            require("." in key or key.isidentifier(), where, key, "give a config key, such as update.lr")


def _refuse_text_of_number(value: object, where: str) -> None:
    """Raises: ConfigError for a number that yaml reads as text, such as 3e-4."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value):
        raise ConfigError(f"{where}={shown(value)}: is text in yaml; write a number with a decimal point, such as 3.0e-4.")


def _options(group: str) -> list[str]:
    """The options of a group in conf/, plus none."""
    return sorted({path.stem for path in (conf_dir() / FOLDERS.get(group, group)).glob("*.yaml")} | {"none"})


def _natural(path: Path) -> list[tuple[str, int]]:
    """Natural sort key: C9 before C10, O2 before P1."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", path.stem)]


def _one_of(value: object, known: Collection[str], where: str, kind: str = "") -> None:
    """Raises: ConfigError unless value is one of the known names."""
    if value not in known:
        near = close_matches(str(value), known) or (f" There are {', '.join(known)}." if 0 < len(known) <= 40 else "")
        raise ConfigError(f"{where}={shown(value)}: there is no such {kind or 'value'}.{near}")
