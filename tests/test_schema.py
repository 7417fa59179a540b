"""Facts shared by writer and reader: the glossary of a run, and results and yaml of version 0.1 under present names."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from changed_defaults import with_present_defaults

from rgpo.cli.config import compose_jobs
from rgpo.errors import ConfigError
from rgpo.runtime import former, schema
from rgpo.runtime.former import canonical_config, canonical_name, canonical_target
from rgpo.runtime.own_metrics import glossary
from rgpo.runtime.schema import GLOSSARY

EXPERIMENTS = Path(__file__).parents[1] / "conf" / "experiment"
OF_READERS = {"default", "smoke", "compare"}  # what the README's commands write
RESULTS = Path(__file__).parents[1] / "results"
STORED = sorted(
    file
    for pattern in ("*/*/config.yaml", "archive/*/*/config.yaml")
    for file in RESULTS.glob(pattern)
    if file.parts[-3] not in OF_READERS
)
SUCCESSORS = {"published_returns": {"baselines", "factorial"}}  # experiments of the archive whose runs are part of others today
DATA = {"smollm2": "hh_harmless_test.jsonl.gz"}  # pairs that are not part of rgpo, as the runs name them


def targets(node: Any) -> Iterator[str]:
    """Every _target_ below a node."""
    if isinstance(node, dict):
        yield from ([node["_target_"]] if "_target_" in node else [])
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from targets(value)


def test_a_run_declares_metrics_of_its_own() -> None:
    own = glossary({"metrics": {"dpo/margin": {"unit": "nats", "meaning": "mean margin of chosen over rejected"}}})
    assert own.keys() - GLOSSARY.keys() == {"dpo/margin"} and own["dpo/margin"].unit == "nats"
    assert glossary({}) == glossary({"metrics": None}) == glossary({"metrics": {}}) == GLOSSARY


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({"kl/old_exact": {"unit": "nats", "meaning": "mine"}}, "metrics.kl/old_exact=.*: is a packaged metric"),
        ({"loss": {"unit": "1", "meaning": "mine"}}, "metrics.loss=.*: the name must be group/name"),
        ({"a/b c": {"unit": "1", "meaning": "mine"}}, "metrics.a/b c=.*: the name must be group/name"),
        ({"a/b": {"unit": "1"}}, "metrics.a/b=.*: must be {unit: ..., meaning: ...}"),
        ({"a/b": {"unit": "1", "meaning": "x", "color": "red"}}, "metrics.a/b=.*: must be {unit"),
        ({"a/b": {"unit": 1, "meaning": "x"}}, "metrics.a/b=.*: must be {unit"),
        ({"a/b": {"unit": "1", "meaning": " "}}, "metrics.a/b=.*: must be {unit"),
        ({"a/b": "nats"}, "metrics.a/b=nats: must be {unit"),
        (["a/b"], "metrics=.*: must map names"),
    ],
)
def test_a_malformed_declaration_is_refused(metrics: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        glossary({"metrics": metrics})


def test_former_names_have_present_ones() -> None:
    assert canonical_target("rgpo.gates.SigmoidSigned") == "rgpo.gates.SignAwareSigmoid"
    assert canonical_target("rgpo.gates.Clip") == canonical_target("rgpo.core.gates.Clip") == "rgpo.gates.Clip"
    assert canonical_target("rgpo.adaptive.AdaptiveSharpness") == "rgpo.core.adaptive_gate.AdaptiveSharpness"
    assert canonical_target("rgpo.language_advantages.GroupRelative") == "rgpo.core.advantages.GroupRelative"
    assert canonical_target("mine.gates.Steep") == "mine.gates.Steep" and canonical_target("Steep") == "Steep"
    assert canonical_name("algo", "rgpo_signed") == "rgpo_sign_aware" and canonical_name("algo", "ppo") == "ppo"
    assert canonical_name("ref_gate", "sigmoid_signed") == canonical_name("gate", "sign_aware_sigmoid") == "sign_aware_sigmoid"
    assert canonical_name("algo", "sigmoid_signed") == "sigmoid_signed"


VERSION_0_1 = {
    "rgpo.adaptive": "AdaptiveSharpness",
    "rgpo.advantages": "Exponential GAE",
    "rgpo.gates": "Arctan Budget Cispo Clip Erf GaussianLog Identity Log Open Power Rational Sapo Sigmoid SigmoidLog "
    "SigmoidMatched SigmoidSigned Softsign Spo Tanh",
    "rgpo.language_advantages": "GroupRelative LeaveOneOut",
    "rgpo.objective": "Detached Geometric Minimum Product",
    "rgpo.penalties": "AdaptivePenalty FixedPenalty NoPenalty",
    "rgpo.policies.mlp": "MLP",
    "rgpo.policies.samplers": "Own VLLM",
    "rgpo.tasks.bandit": "Gaussian Pareto",
    "rgpo.tasks.control": "Control",
    "rgpo.tasks.embedded.source": "Embedded",
    "rgpo.tasks.hub": "Hub",
    "rgpo.tasks.language": "Language LoRA",
    "rgpo.tasks.smollm2": "SmolLM2",
    "rgpo.updates.natural_gradient": "NaturalGradient",
    "rgpo.updates.sgd": "SGD",
}  # every class that the packaged yaml of version 0.1 named


@pytest.mark.parametrize("former", [f"{module}.{name}" for module, names in VERSION_0_1.items() for name in names.split()])
def test_every_class_of_version_0_1_is_found(former: str) -> None:
    module, _, name = canonical_target(former).rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


def test_stored_configurations_have_present_names() -> None:
    assert len(STORED) >= 75
    for file in STORED:
        config = canonical_config(yaml.safe_load(file.read_text()))
        assert canonical_config(config) == config, file
        assert not {"dual", *former.DROPPED} & config.keys() and "dual" not in config["choices"]
        assert {*schema.AXES, "algorithm"} <= config.keys() and {*schema.AXES, "task", "algo", "scale"} <= config[
            "choices"
        ].keys()
        advantage = config["advantage"].get("gae", config["advantage"])  # AWR's is nested
        assert "normalize" in advantage and "normalize_advantage" not in config["update"]
        for path in targets(config):
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(module), name), path


@pytest.mark.parametrize("experiment", sorted({file.parts[-3] for file in STORED}))
def test_older_runs_group_with_newer_ones(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is added to conf/ without its former value in ADDED splits the seeds of one experiment into two groups."""

    def identity(config: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in canonical_config(config).items() if key not in schema.NOT_IDENTITY}

    files = [file for file in STORED if file.parts[-3] == experiment]
    wanted = SUCCESSORS.get(experiment, {experiment})
    options = [file.stem for file in sorted(EXPERIMENTS.glob("*.yaml")) if name_of(file) in wanted]
    words = [f"task.source.data={DATA[experiment]}"] if experiment in DATA else []
    monkeypatch.chdir(tmp_path)
    Path(DATA.get(experiment, "unused")).touch()
    present = [identity(job.config) for option in options for job in compose_jobs([f"experiment={option}", *words], True, None)]
    for file in files:
        config = identity(yaml.safe_load(file.read_text()))
        assert with_present_defaults(config, config["choices"]["algo"]) in present, file


def name_of(file: Path) -> str:
    """The folder of an experiment's runs, which several options may share."""
    return str(yaml.safe_load(file.read_text()).get("name", file.stem))


def stored(pattern: str) -> dict[str, Any]:
    (file,) = (file for file in STORED if file.match(f"{pattern}/config.yaml"))
    return canonical_config(yaml.safe_load(file.read_text()))


def test_a_kl_in_the_reward_is_a_penalty_of_its_own() -> None:
    reinforce, dapo, rgpo = (stored(f"archive/rlhf_embedded/qwen_rlhf-{algo}-s1-*") for algo in ("reinforce", "dapo", "rgpo"))
    assert reinforce["penalty"] == {"_target_": "rgpo.core.kl_penalty.RewardKL", "coef": 0.05}
    assert dapo["penalty"] == {"_target_": "rgpo.core.kl_penalty.NoPenalty"}
    assert [x["choices"]["penalty"] for x in (reinforce, dapo, rgpo)] == ["reward_kl", "none", "adaptive"]
    assert rgpo["penalty"]["kl_target"] == 0.3 and rgpo["choices"]["ref_gate"] == "budget"


def test_keys_added_since_have_their_defaults_and_stored_values_win() -> None:
    language, control = stored("archive/rlhf_embedded/qwen_rlhf-rgpo-s1-*"), stored("archive/first_evidence/hopper-trpo-s1-*")
    assert language["penalty"]["estimator"] == "k3" and language["penalty"]["anchor"] == "reference"
    assert not language["task"]["center_scores"] and language["update"]["clip_jointly"]
    hopper = stored("archive/first_evidence/hopper-rgpo-s1-*")
    assert hopper["penalty"]["estimator"] == "exact" and hopper["penalty"]["anchor"] == "old" and hopper["update"]["clip_jointly"]
    assert "estimator" not in control["penalty"] and "clip_jointly" not in control["update"]
    assert language["task"]["parallel"] == "ddp" and language["task"]["sampler"]["correction_cap"] is None
    assert control["choices"]["scale"] == "none" and control["advantage"]["normalize"] == "minibatch"
    awr = {
        "advantage": {"_target_": "rgpo.advantages.Exponential", "gae": {"_target_": "rgpo.advantages.GAE", "normalize": "none"}}
    }
    assert canonical_config(awr)["advantage"]["gae"]["normalize"] == "none"
    old = {"update": {"normalize_advantage": "batch"}, "advantage": {"_target_": "rgpo.advantages.GAE"}}
    assert canonical_config(old)["advantage"]["normalize"] == "batch" and canonical_config(old)["update"] == {}
    signed = {"gate": {"_target_": "rgpo.gates.SigmoidSigned"}, "choices": {"algo": "rgpo_signed", "gate": "sigmoid_signed"}}
    assert canonical_config(signed)["choices"] == {"scale": "none", "algo": "rgpo_sign_aware", "gate": "sign_aware_sigmoid"}


def test_another_algorithm_and_its_empty_axes_are_kept() -> None:
    own = {
        "algorithm": {"_target_": "mine.DPO", "beta": 0.1},
        "gate": None,
        "penalty": None,
        "choices": {"gate": None, "algo": "dpo"},
    }
    added = {"resume_from": None, "save_model": False, "on_failure": "continue", "pause_at": None, "design": None}
    assert canonical_config(own) == own | added | {"choices": {"scale": "none", "gate": None, "algo": "dpo"}}


def test_the_schema_needs_no_torch() -> None:
    code = "import sys, rgpo.runtime.schema, rgpo.atomic; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
