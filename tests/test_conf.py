"""Every option of every group composes, builds, keeps to its constructor, and has no key that does nothing."""

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from changed_defaults import with_present_defaults
from omegaconf import OmegaConf

from rgpo.cli.build import present_name
from rgpo.cli.checks import LaunchSettings, plain
from rgpo.cli.config import build, compose_jobs, config_hash
from rgpo.cli.config_dir import group_options
from rgpo.cli.hints import is_node, parameters_of
from rgpo.cli.overrides import hydra_on
from rgpo.core.gates import Budget, Open
from rgpo.errors import ConfigError
from rgpo.paths import conf_dir
from rgpo.runtime.former import canonical_config
from rgpo.runtime.schema import AXES

LANGUAGE_ALGOS = ("dapo", "dpo", "dppo", "dr_grpo", "dro", "gmpo", "grpo", "gspo", "gspo_token", "luspo", "rloo", "vespo")
CONTROL_ALGOS = ("a2c",)
UNPENALIZED = ("dapo", "dppo", "dr_grpo", "gmpo", "gspo", "gspo_token", "luspo", "vespo")
FAMILY = [name for name in group_options("algo") if name not in ("a2c", "dpo")]
ALONE = {  # words that an option needs beside it, "" for none; None: it is tested elsewhere
    ("gate", "open"): None,
    ("advantage", "group_relative"): ["task=qwen_rlhf"],
    ("advantage", "leave_one_out"): ["task=qwen_rlhf"],
    ("penalty", "reward_kl"): ["task=qwen_rlhf", "gate@ref_gate=open"],
    **{("gate_combination", name): ["task=qwen_rlhf"] for name in ("detached", "product", "minimum")},
    ("gate_combination", "geometric"): ["task=qwen_rlhf", "gate@ref_gate=open"],
}
OPTIONS = [(g, o) for g in ("gate", "advantage", "penalty", "gate_combination") for o in group_options(g)]
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if ALONE.get(pair, []) is not None])
def test_option_builds(group: str, option: str) -> None:
    job = compose_jobs([f"{group}={option}", *(ALONE.get((group, option)) or [])], False, None)[0]
    _, algorithm = build(job.config)
    assert job.choice(group) == option and algorithm.gate is not None


@pytest.mark.parametrize("algo", group_options("algo"))
@pytest.mark.parametrize("task", ["cartpole", "qwen_rlhf"])
def test_an_algorithm_builds_or_is_refused(task: str, algo: str) -> None:
    words = [f"algo={algo}", f"task={task}"]
    if algo in (CONTROL_ALGOS if task == "qwen_rlhf" else LANGUAGE_ALGOS):
        with pytest.raises(ConfigError):
            compose_jobs(words, False, None)
    else:
        built, algorithm = build(compose_jobs(words, False, None)[0].config)
        assert built.batch_size > 0 and algorithm.describe()


@pytest.mark.parametrize("algo", FAMILY)
def test_only_rgpo_has_two_gates_and_the_kl_is_in_loss_or_reward(algo: str) -> None:
    config = compose_jobs([f"algo={algo}", "task=qwen_rlhf"], False, None)[0].config
    task, algorithm = build(config)
    assert config["choices"]["scale"] == "embedded" and task.batch_size == 32
    assert isinstance(algorithm.ref_gate, Budget if algo == "rgpo" else Open)
    assert (algorithm.penalty.loss_coef > 0) + (algorithm.penalty.reward_coef > 0) == (algo not in UNPENALIZED)


RUNS = json.loads((FIXTURES / "axes_0.1.json").read_text())


@pytest.mark.parametrize("run", RUNS["runs"])
def test_settings_of_version_01_have_not_changed(run: str) -> None:
    task, algo = run.split()
    expected = RUNS["runs"][run]
    with hydra_on(None) as composer:
        config = plain(composer([f"task={task}", f"algo={algo}"])[0])
    length = ("total_env_steps", "num_iterations", "eval_every", "gradvar_every")
    assert [config[key] for key in length] == expected["length"]
    former = canonical_config({key: RUNS["nodes"][index] for key, index in expected.items() if key != "length"})
    for key, node in with_present_defaults(former, algo).items():
        if (task, algo, key) != ("cartpole", "rloo", "penalty"):
            assert config[key] == node, key


@pytest.mark.parametrize("task", [name for name in group_options("task") if name != "gym"])
def test_task_builds(task: str) -> None:
    if task == "atari" and find_spec("ale_py") is None:  # in the atari extra
        with pytest.raises(ConfigError, match="ale_py cannot be imported; pip install 'ale-py'"):
            compose_jobs([f"task={task}"], False, None)
        return
    job = compose_jobs([f"task={task}"], False, None)[0]
    assert job.run_dir.name.startswith(f"{task}-rgpo-s1-")


@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize("task", ["halfcheetah", "hopper", "walker2d", "ant"])
def test_both_mujoco_versions(task: str, version: str) -> None:
    built, _ = build(compose_jobs([f"task={task}", f"task.version={version}"], False, None)[0].config)
    assert built.full_id.endswith(version)


def nodes(node: object) -> Iterator[Mapping]:
    if isinstance(node, Mapping):
        if is_node(node):
            yield node
        for value in node.values():
            yield from nodes(value)


@pytest.mark.parametrize("file", sorted(conf_dir().glob("*/*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_every_parameter_of_a_constructor_is_in_its_yaml(file: Path) -> None:
    """Options that set a part of a node, such as algo=gspo, are completed by the others."""
    import importlib

    for node in nodes(OmegaConf.to_container(OmegaConf.load(file))):
        name = str(node["_target_"])
        assert present_name(name) == name
        module, _, attribute = name.rpartition(".")
        target = getattr(importlib.import_module(module), attribute)
        known = set(parameters_of(target).hints)
        if file.parent.name in ("task", "scale", "algo"):
            assert set(node) - {"_target_"} <= known
        else:
            assert set(node) - {"_target_"} == known


CONTEXTS = {  # group -> words for each option, under which the option's keys are varied
    "gate": lambda name: ["task=qwen_rlhf", "algo=ppo", f"gate@ref_gate={name}"],
    "gate_combination": lambda name: ["task=qwen_rlhf", "algo=ppo", f"gate_combination={name}"],
    "advantage": lambda name: ["task=qwen_rlhf", "algo=ppo", f"advantage={name}"],
    "penalty": lambda name: ["task=qwen_rlhf", "algo=ppo", f"penalty={name}"],
    "update": lambda name: ["algo=ppo", f"update={name}"],
    "task": lambda name: [f"task={name}", *(["task.env_id=CartPole-v1"] if name == "gym" else [])],
    "scale": lambda name: ["task=qwen_rlhf", f"scale={name}", *(["task.source.data=x"] if name == "smollm2" else [])],
    "correction": lambda name: ["task=qwen_rlhf", f"correction@task.correction={name}"],
    "sampler": lambda name: ["task=qwen_rlhf", f"sampler@task.sampler={name}"],
    "algo": lambda name: [f"algo={name}", *(["task=qwen_rlhf"] if name in LANGUAGE_ALGOS else [])],
}
CHANGED = {"gate": "ref_gate", "algo": "algorithm"}  # group -> top-level key, if not its own
CHANGED |= dict.fromkeys(("scale", "sampler", "correction"), "task")
CASES = [(group, option) for group in CONTEXTS for option in group_options(group)]


@pytest.mark.parametrize(("group", "option"), CASES)
def test_a_changed_key_changes_an_object_or_is_refused(group: str, option: str) -> None:
    with hydra_on(None) as composer:
        config = plain(composer(CONTEXTS[group](option))[0])
    top = CHANGED.get(group, group)
    try:
        before = attributes(build(config))
    except ConfigError:
        needs_another = {("sampler", "offline_pairs")}  # algorithm; algo=dpo has it
        needs_another |= {("gate", name) for name in ("bapo", "clip_cov", "kl_cov", "m2po", "r2vpo")}  # place; gate= has it
        assert (group, option) in needs_another
        return
    for path, value in leaves(config[top]):
        for other in (other for other in others(value) if other != value):
            varied = json.loads(json.dumps(config))
            *parents, last = path
            node = varied[top]
            for name in parents:
                node = node[name]
            node[last] = other
            try:
                after = attributes(build(varied))
            except ConfigError:
                continue
            assert after != before, f"{top}.{'.'.join(path)}={other} reaches nothing"


def leaves(node: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, name))
        elif name != "_target_":
            yield (*path, name), value


def others(value: object) -> list[object]:
    """Values that differ from one, of the same type where it has one."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value / 2]
    if isinstance(value, str):
        return ["none", "auto", "batch", "sequence", f"{value}-"]
    return [{"a": 1}] if isinstance(value, dict) else [[3]] if isinstance(value, list) else [1, 2.5, "x", False]


def attributes(value: object) -> object:
    """Everything that an object holds, as plain values."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: attributes(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [attributes(entry) for entry in value]
    if type(value).__module__.startswith("rgpo."):
        return (type(value).__qualname__, attributes(vars(value)))
    return value


def test_every_top_level_key_has_a_reader() -> None:
    base = OmegaConf.load(conf_dir() / "config.yaml")
    built = {"algorithm", "task", *AXES}
    read = {*parameters_of(LaunchSettings).hints, "metrics", *built} - {"choices", "scale", "task", *AXES}
    assert {str(key) for key in base if key not in ("defaults", "hydra")} == read


def test_defaults_of_ppo_are_the_published_ones() -> None:
    config = compose_jobs(["task=hopper", "algo=ppo"], False, None)[0].config
    update = config["update"]
    assert (update["lr"], update["num_epochs"], update["num_minibatches"], update["adam_eps"]) == (3e-4, 10, 32, 1e-5)
    assert (update["vf_coef"], update["ent_coef"], update["max_grad_norm"], update["value_clip"]) == (0.5, 0.0, 0.5, 0.2)
    assert (config["advantage"]["gamma"], config["advantage"]["lam"]) == (0.99, 0.95)
    assert (config["task"]["num_steps"], config["task"]["num_envs"], config["task"]["version"]) == (2048, 1, "v4")


def test_the_two_files_of_presets_have_the_same_keys() -> None:
    control, language = (OmegaConf.load(conf_dir() / "presets" / f"{name}.yaml") for name in ("control", "language"))
    assert {group: set(control[group]) for group in control} == {group: set(language[group]) for group in language}


def test_a_preset_that_nothing_reads_does_not_change_a_run(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    text = "# @package _global_\ndefaults: [_control]\ntask: {env_id: CartPole-v1, num_envs: 4}\n"
    for name, presets in (("one", "{sgd: {lr: 1e-3}}"), ("two", "{sgd: {lr: 1e-3}, adaptive: {coef: 7}, reward_kl: {coef: 7}}")):
        (tmp_path / "task" / f"{name}.yaml").write_text(f"{text}presets: {presets}\n")
    one, two = (compose_jobs([f"task={name}", "algo=ppo"], False, str(tmp_path))[0].config for name in ("one", "two"))
    assert "presets" not in one and one["update"]["lr"] == 1e-3
    one["choices"] = two["choices"]
    assert config_hash(one) == config_hash(two)
    assert "task.penalty" not in one and compose_jobs(["task=two"], False, str(tmp_path))[0].config["penalty"]["coef"] == 7
