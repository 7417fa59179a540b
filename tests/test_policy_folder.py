"""policy/ of control runs acts as the trained policy does, without torch; modules that torch loads agree to 1e-6."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from cli import start, the_run
from gymnasium import spaces
from safetensors.numpy import load_file
from test_runner import CONFIG, Halve, Line, Point

import rgpo
from rgpo.cli import export
from rgpo.control.actor import Actor
from rgpo.learning.export import Facts
from rgpo.runtime import manifest, run_folder, runner

SMALL = (
    "task.num_envs=2",
    "task.num_steps=32",
    "task.num_eval_episodes=2",
    "num_iterations=2",
    "eval_every=2",
    "gradvar_every=0",
)


class Odd(gymnasium.Env):
    """Box actions of shape (2, 2) with one-sided and asymmetric bounds, or Discrete spaces that start elsewhere."""

    def __init__(self, discrete: bool = False) -> None:
        if discrete:
            self.observation_space: Any = spaces.Discrete(4, start=-2)
            self.action_space: Any = spaces.Discrete(3, start=5)
        else:
            self.observation_space = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
            low = np.array([[-0.01, -np.inf], [-3, 0.5]], np.float32)
            self.action_space = spaces.Box(low, np.array([[0.02, 0.1], [np.inf, 2]], np.float32))

    def _seen(self) -> Any:
        if isinstance(self.observation_space, spaces.Discrete):
            return int(self.np_random.integers(-2, 2))
        return self.np_random.normal(3.0, 5.0, (2, 3))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        return self._seen(), float(np.sum(action)), bool(self.np_random.random() < 0.1), False, {}


gymnasium.register("Shapes-v0", Odd)
CASES = {
    "cartpole": ("algo=ppo", "task=cartpole", "update.num_minibatches=4"),
    "hopper": ("algo=a2c", "task=hopper"),
    "relu": ("algo=trpo", "task=pendulum", "task.policy.activation=relu", "task.policy.hidden_sizes=[8]"),
    "odd box": ("algo=ppo", "task=gym", "task.env_id=Shapes-v0", "update.num_minibatches=4"),
    "odd discrete": (
        *("algo=ppo", "task=gym", "task.env_id=Shapes-v0"),
        *("+task.env_kwargs.discrete=true", "update.num_minibatches=4"),
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], rgpo.Run]:
    folder, made = tmp_path_factory.mktemp("runs"), dict[str, rgpo.Run]()

    def make(name: str) -> rgpo.Run:
        if name not in made:
            made[name] = rgpo.run(*CASES[name], *SMALL, f"results_dir={folder}")
        return rgpo.load(made[name].folder)

    return make


def observations(run: rgpo.Run, count: int = 50) -> np.ndarray[Any, Any]:
    """Raw observations of the run's environment."""
    env, seen = run.task.make_env(1), []
    env.reset(3)
    space = env.observation_space
    for i in range(count):
        space.seed(i)
        seen.append(space.sample() if isinstance(space, spaces.Discrete) else np.random.default_rng(i).normal(2, 4, space.shape))
    return np.array(seen)


def flat(run: rgpo.Run, seen: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As the vector environment would return them."""
    space = run.task.env.observation_space
    return np.eye(space.n)[seen - space.start] if isinstance(space, spaces.Discrete) else seen.reshape(len(seen), -1)


def expected(run: rgpo.Run, seen: np.ndarray[Any, Any], rng: np.random.Generator | None = None) -> np.ndarray[Any, Any]:
    """Actions of the policy of the checkpoint, as the environment's ``step`` gets them."""
    task, policy = run.task, run._parts.policy
    prepared = task._prepare(flat(run, seen).astype(np.float64), learn=False)
    silence = np.zeros((len(seen), policy.output_size), np.float32)
    noise = silence if rng is None else policy.draw_noise((len(seen),), rng)
    action, space = policy.act(prepared, noise), task.env.action_space
    if isinstance(space, spaces.Discrete):
        return np.asarray(action + space.start)
    return np.clip(action.reshape(-1, *space.shape), space.low, space.high)


@pytest.mark.parametrize("name", CASES)
def test_the_stored_policy_acts_as_the_trained_one(name: str, runs: Callable[[str], rgpo.Run]) -> None:
    run = runs(name)
    seen = observations(run)
    stored = rgpo.load(run.folder).policy
    space = run.task.env.action_space
    action = stored(seen)
    np.testing.assert_allclose(action, expected(run, seen), atol=1e-6)
    assert action.dtype == space.dtype and action.shape == (50, *space.shape)
    drawn = stored(seen, deterministic=False, rng=np.random.default_rng(7))
    np.testing.assert_allclose(drawn, expected(run, seen, np.random.default_rng(7)), atol=1e-6)
    assert not np.array_equal(drawn, action)
    assert not np.array_equal(stored(seen, deterministic=False), stored(seen, deterministic=False))
    for i in range(5):
        single = stored(seen[i])
        assert single.shape == space.shape and space.contains(single)
        np.testing.assert_allclose(single, action[i], atol=1e-6)


def test_acting_needs_neither_torch_nor_a_checkpoint(runs: Callable[[str], rgpo.Run], tmp_path: Path) -> None:
    run = runs("hopper")
    copy = shutil.copytree(run.folder, tmp_path / run.folder.name)
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (copy / name).unlink(missing_ok=True)
    code = f"import sys, rgpo; p = rgpo.load({str(copy)!r}).policy; print(p([0.0] * 11).shape, 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "(3,) False\n"


def test_a_policy_whose_attributes_were_used_acts_as_it_is_now(runs: Callable[[str], rgpo.Run]) -> None:
    run = rgpo.load(runs("hopper").folder)
    assert np.abs(run.policy(np.ones(11))).max() > 0
    run.policy.load_state_dict({"flat": torch.zeros_like(run.policy.flat)})
    assert np.array_equal(run.policy(np.ones(11)), np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("observation", "why"),
    [
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((2, 5)), r"batch \(N, 4\)"),
        (np.zeros((2, 2, 4)), r"\(2, 2, 4\)"),
        ([0.0, np.nan, 0.0, 0.0], "NaN"),
        ("abcd", "type <U4"),
        (None, "object"),
    ],
)
def test_wrong_observations(observation: object, why: str, runs: Callable[[str], rgpo.Run]) -> None:
    with pytest.raises(ValueError, match=why):
        runs("cartpole").policy(observation)


def test_wrong_discrete_observations_and_an_empty_batch(runs: Callable[[str], rgpo.Run]) -> None:
    with pytest.raises(ValueError, match="from -2 to 1"):
        runs("odd discrete").policy(2)
    assert runs("odd discrete").policy(np.array([], np.int64)).shape == (0,)
    assert runs("cartpole").policy(np.zeros((0, 4))).shape == (0,)


def test_weights_have_names_that_torch_takes(runs: Callable[[str], rgpo.Run]) -> None:
    run = runs("hopper")
    weights = load_file(run.folder / "policy" / "policy.safetensors")
    layers = [f"{part}.{i}.{kind}" for part in ("actor", "critic") for i in (0, 2, 4) for kind in ("weight", "bias")]
    assert sorted(weights) == sorted([*layers, "log_std"])
    nn = torch.nn
    actor = nn.Sequential(nn.Linear(11, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    actor.load_state_dict({n.removeprefix("actor."): torch.from_numpy(x) for n, x in weights.items() if n.startswith("actor.")})
    x = torch.randn(6, 11)
    with torch.no_grad():
        torch.testing.assert_close(actor(x).numpy(), run.policy.mode_output(x.numpy()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_exported_modules_agree_to_1e_6(name: str, runs: Callable[[str], rgpo.Run], tmp_path: Path) -> None:
    run = runs(name)
    assert export.main([str(run.folder), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "policy.safetensors").read_bytes() == (run.folder / "policy" / "policy.safetensors").read_bytes()
    assert (tmp_path / "out" / "policy.json").read_bytes() == (run.folder / "policy" / "policy.json").read_bytes()
    modules = [torch.export.load(tmp_path / "out" / "policy.pt2").module(), torch.jit.load(str(tmp_path / "out" / "policy.ts"))]
    seen = observations(run)
    x = torch.from_numpy(flat(run, seen).astype(np.float32))
    for module in modules:
        for count in (1, 2, 50):
            found = module(x[:count]).numpy()
            want = run.policy(seen[:count].astype(np.float32) if seen.dtype.kind == "f" else seen[:count])
            np.testing.assert_allclose(found, want.reshape(found.shape), atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime and pip install 'rgpo[onnx]'")
@pytest.mark.parametrize("name", ["cartpole", "hopper"])
def test_the_onnx_export_agrees_to_1e_6(name: str, runs: Callable[[str], rgpo.Run], tmp_path: Path) -> None:
    import onnxruntime

    run = runs(name)
    assert export.main([str(run.folder), str(tmp_path / "out"), "onnx=true"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "out" / "policy.onnx")
    for seen in (observations(run), observations(run, 1)):
        (found,) = session.run(["action"], {"observation": flat(run, seen).astype(np.float32)})
        np.testing.assert_allclose(found.reshape(len(seen), -1), run.policy(seen).reshape(len(seen), -1), atol=1e-6, rtol=0)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is not None, reason="onnxscript is installed")
def test_without_the_packages_of_onnx_the_extra_is_named(
    runs: Callable[[str], rgpo.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(runs("cartpole").folder), str(tmp_path / "out"), "onnx=true"]) == 2
    assert "pip install 'rgpo[onnx]'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_interrupted_run_acts_and_is_exported(tmp_path: Path) -> None:
    words = ["algo=ppo", "task=cartpole", *SMALL, "num_iterations=100000", "checkpoint_every_s=0", "update.num_minibatches=4"]
    process = start([w for w in words if w != "num_iterations=2"] + ["update.compile=false"], tmp_path)
    while not list(tmp_path.rglob("checkpoint.pt")) and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    folder = the_run(tmp_path / "results")
    assert not (folder / "policy").exists()
    run = rgpo.load(folder)
    assert run.policy(np.zeros(4)) in (0, 1)
    assert export.main([str(folder), str(tmp_path / "out")]) == 0
    actor = Actor.load(tmp_path / "out")
    assert actor.description["run"]["iteration"] == run._parts.iteration >= 1
    assert np.array_equal(actor(np.eye(4)), run.policy(np.eye(4)))


@pytest.mark.parametrize("target", ["policy", ".policy"])  # as the folder gets its name, or as the file in it is written
def test_a_run_killed_while_it_exports_ends_with_the_same_folder(target: str, tmp_path: Path) -> None:
    words = ["algo=ppo", "task=cartpole", *SMALL, "update.num_minibatches=4"]
    folders = {}
    for name in ("whole", "killed"):
        code = "import os, sys\nfrom rgpo import atomic\nrename, replace = os.replace, os.replace\ndef kill(a, b):\n"
        end = "/policy" if target == "policy" else "policy.json"
        code += f"    if str(b).endswith({end!r}): os._exit(9)\n    return replace(a, b)\n"
        code += "if sys.argv.pop(1) == 'killed': os.replace = kill\nfrom rgpo.cli.run import main\nmain()\n"
        command = [sys.executable, "-c", code, name, *words, f"results_dir={tmp_path / name}"]
        first = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert first.returncode == (9 if name == "killed" else 0), first.stderr
        folders[name] = the_run(tmp_path / name)
    killed = folders["killed"]
    assert not (killed / "policy").exists() and [p for p in killed.iterdir() if p.name.endswith(".writing")]
    rgpo.run(*words, f"results_dir={tmp_path / 'killed'}")
    assert not [p for p in killed.iterdir() if p.name.endswith(".writing")] and manifest.problems(killed) == []
    one, other = ((folder / "policy") for folder in folders.values())
    assert (
        sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir()) == ["policy.json", "policy.safetensors"]
    )
    assert (one / "policy.safetensors").read_bytes() == (other / "policy.safetensors").read_bytes()
    texts = [(folder / "policy.json").read_text() for folder in (one, other)]
    command = [json.loads(text)["run"].pop("command") for text in texts]
    assert texts[0].replace(command[0], "") == texts[1].replace(command[1], "")


def test_damage_is_named_and_stops_the_policy(runs: Callable[[str], rgpo.Run], tmp_path: Path) -> None:
    run = runs("cartpole")
    copy = shutil.copytree(run.folder, tmp_path / run.folder.name)
    assert manifest.problems(copy) == []
    data = bytearray((copy / "policy" / "policy.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "policy" / "policy.safetensors").write_bytes(data)
    assert manifest.problems(copy) == ["policy.safetensors is damaged (checksum)"]
    with pytest.raises(rgpo.ConfigError, match=r"policy.safetensors is damaged \(checksum\); restore the files"):
        rgpo.load(copy).policy(np.zeros(4))
    shutil.rmtree(copy / "policy")
    with pytest.raises(rgpo.ConfigError, match=r"policy.json is missing"):
        rgpo.load(copy).policy(np.zeros(4))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format=2),
        lambda d: d.pop("network"),
        lambda d: d["network"].update(activation="softmax"),
        lambda d: d["network"].update(hidden_sizes="many"),
        lambda d: d["network"].update(hidden_sizes=[64] * 9),
        lambda d: d.update(observation_normalizer=3),
    ],
)
def test_a_foreign_description_is_refused_in_a_sentence(
    change: Callable[[dict[str, Any]], object], runs: Callable[[str], rgpo.Run], tmp_path: Path
) -> None:
    folder = shutil.copytree(runs("cartpole").folder / "policy", tmp_path / "policy")
    description = json.loads((folder / "policy.json").read_text())
    change(description)
    (folder / "policy.json").write_text(json.dumps(description))
    with pytest.raises(rgpo.ConfigError, match="export it again"):
        Actor.load(folder)


def test_damaged_weights_are_refused_in_a_sentence(runs: Callable[[str], rgpo.Run], tmp_path: Path) -> None:
    folder = shutil.copytree(runs("cartpole").folder / "policy", tmp_path / "policy")
    for data in (b"", b"\xff" * 100, (folder / "policy.safetensors").read_bytes()[:1000]):
        (folder / "policy.safetensors").write_bytes(data)
        with pytest.raises(rgpo.ConfigError, match="SafetensorError"):
            Actor.load(folder)


def test_a_policy_without_export_ends_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "line-halve-s1-00000000"
    assert runner.run(CONFIG | {"save_model": True}, Line(), Halve(), run_dir, "0" * 8, "rgpo-run") == "completed"
    assert "no policy/: neither the task nor the policy has a method export" in capsys.readouterr().out
    assert run_folder.status(run_dir) == "completed" and not (run_dir / "policy").exists()


class Saved(Point):
    """A user's policy with the one method."""

    def export(self, folder: Path, facts: Facts) -> None:
        (folder / "x.txt").write_text(f"{self.x} after {facts.iteration}\n")


class Failing(Point):
    def export(self, folder: Path, facts: Facts) -> None:
        (folder / "x.txt").write_text("half")
        raise ValueError("cannot")


class Of(Line):
    def __init__(self, kind: type[Point]) -> None:
        super().__init__()
        self.kind = kind

    def make_policy(self, seed: int) -> Point:
        return self.kind(seed)


def test_a_users_policy_is_exported_by_its_own_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, expect in ((Saved, True), (Failing, False)):
        run_dir = tmp_path / kind.__name__
        runner.run(CONFIG | {"save_model": True}, Of(kind), Halve(), run_dir, "0" * 8, "rgpo-run")
        assert run_folder.status(run_dir) == "completed"
        assert (run_dir / "policy" / "x.txt").exists() == expect
        assert ("policy/x.txt" in manifest.read(run_dir)["files"]) == expect
    assert "no policy/: ValueError: cannot; the checkpoint alone holds the policy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "give exactly RUN and DIR"),
        (["a"], "give exactly RUN and DIR"),
        (["a", "b", "c"], "give exactly RUN and DIR"),
        (["a", "b", "merge=true"], "merge=true: is not a setting; choose from merged, onnx. Did you mean merged?"),
        (["a", "b", "merged=yes"], "merged=yes: must be true or false"),
        (["a", "b", "merged=true", "merged=true"], "given twice"),
        (["nowhere", "b"], "config.yaml is missing; give the folder of a run"),
        (["no\x1bwhere", "b"], "no\\x1bwhere"),
        (["", "b"], "give exactly"),
        (["RUN", "full"], "exists and is no empty folder"),
        (["RUN", "full/file"], "exists and is no empty folder"),
        (["RUN", "full/file/below"], "full/file: cannot be used (Not a directory)"),
        (["RUN", "out", "merged=true"], "merged=true: the run trained no adapter"),
    ],
)
def test_export_refuses_in_one_sentence(
    words: list[str], why: str, runs: Callable[[str], rgpo.Run], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "full").mkdir()
    (here / "full" / "file").touch()
    words = [str(runs("cartpole").folder) if word == "RUN" else word for word in words]
    capsys.readouterr()
    assert export.main(words) == 2
    out, err = capsys.readouterr()
    assert err.startswith("rgpo-export: ") and err.count("\n") == 1 and why in err and not out
    assert sorted(path.name for path in here.iterdir()) == ["full"]


def test_home_is_expanded_and_an_empty_folder_taken(
    runs: Callable[[str], rgpo.Run], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs("cartpole").folder
    monkeypatch.setenv("HOME", str(here))
    shutil.copytree(run, here / "run")
    (here / "out").mkdir()
    assert export.main(["~/run", "~/out"]) == 0 and (here / "out" / "policy.ts").exists()
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--help"]) == 0 and "rgpo-export RUN DIR" in capsys.readouterr().out
    assert export.main(["--version"]) == 0 and capsys.readouterr().out == f"rgpo-export {rgpo.__version__}\n"
