"""Exported policies: modules that torch loads agree to 1e-6, runs that are cut short, a user's own policies, and rgpo-export."""

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

import numpy as np
import pytest
import torch
from cli import start, the_run
from stored_policies import CASES, SMALL, flat, observations
from stored_policies import runs as runs
from test_runner import CONFIG, Halve, Line, Point

import rgpo
from rgpo.cli import export
from rgpo.control.actor import Actor
from rgpo.learning.export import Facts
from rgpo.runtime import manifest, run_folder, runner


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
