"""No surprise code: what a _target_ may name and where, judged before anything is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from cli import rgpo_run

from rgpo.cli import targets
from rgpo.cli.build import make
from rgpo.cli.config import compose_jobs
from rgpo.core.gate import Gate, GateLike
from rgpo.errors import ConfigError
from rgpo.runtime.provenance import collect

CARTPOLE = ["algo=ppo", "task=cartpole", "task.num_steps=32", "num_iterations=10", "eval_every=0"]
FREE_FORM = {
    "+task.env_kwargs._target_=subprocess.Popen +task.env_kwargs.args=[touch,PWNED]": "task.env_kwargs._target_=subprocess.Popen",
    "+task.env_kwargs.a.b.c={_target_: os.system, command: touch PWNED}": "task.env_kwargs.a.b.c._target_=os.system",
    "+task.env_kwargs.a=[1,{_target_: os.system, command: touch PWNED}]": r"task.env_kwargs.a\[1\]._target_=os.system",
    "+task.env_kwargs.gate={_target_: rgpo.gates.Log, scale: none}": "task.env_kwargs.gate._target_=rgpo.gates.Log",
    "+metrics.a={_target_: os.system, command: touch PWNED}": "metrics.a=",
    "exports=[{_target_: os.system}]": "exports=",
    "seed={_target_: os.getpid}": "seed=",
    "task.policy.activation={_target_: os.getpid}": "task.policy.activation=",
    "task.policy.hidden_sizes=[{_target_: os.getpid}]": "task.policy.hidden_sizes=",
}
FOREIGN = {
    "os.path": "os is not a module of rgpo",
    "os.system": "os is not a module of rgpo",
    "subprocess.Popen": "subprocess is not a module of rgpo",
    "builtins.eval": "builtins is not a module of rgpo",
    "torch.nn.Linear": "torch is not a module of rgpo",
    "torch.hub.load": "torch is not a module of rgpo",
    "antigravity.webbrowser": "antigravity is not a module of rgpo",
    "pip.main": "pip is not a module of rgpo",
    "hydra.utils.instantiate": "hydra is not a module of rgpo",
    "pytest.main": "pytest is not a module of rgpo",
    "rgpo.paths.os": "is no class or function",
    "rgpo.paths.os.system": "cannot be imported",
    "rgpo.cli.targets.importlib.import_module": "cannot be imported",
    "rgpo.cli.build.cast": "is typing.cast, which is not defined in a module of rgpo",
    "rgpo.paths.Path": "is pathlib.Path, which is not defined in a module of rgpo",
    "rgpo.cli.run.main": "is a function of rgpo; name a class",
    "rgpo.language.data.pypi_archive.fetch": "is a function of rgpo; name a class",
    "rgpo.core.surrogate.Minimum": "is not a node with a _target_ of type GateLike",
    "rgpo.runtime.trackers.Tracker": "is not a node with a _target_ of type GateLike",
    "__main__.nothing": "cannot be imported",
    "rgpo": "write the dotted name of a class",
    "..": "write the dotted name of a class",
    "os;import sys": "write the dotted name of a class",
    "3": "write the dotted name of a class",
    "null": "write the dotted name of a class",
    "[a,b]": "write the dotted name of a class",
}


def test_a_target_among_free_form_values_starts_nothing(tmp_path: Path) -> None:
    words, sentence = next(iter(FREE_FORM.items()))
    out = rgpo_run([*CARTPOLE, *words.split(), "plan=true"], tmp_path, code=2)
    assert out.count("\n") == 1 and sentence in out and not any(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"^penalty\._target_=os\.path: os is not a module of rgpo"):
        compose_jobs([*CARTPOLE, "penalty._target_=os.path"], False, None)


@pytest.mark.parametrize("word", FREE_FORM)
def test_a_target_stands_only_where_a_class_is_declared(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^{FREE_FORM[word]}"):
        compose_jobs([*CARTPOLE, *re.split(r" (?=\+)", word), "plan=true"], False, None)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", FOREIGN)
def test_a_target_is_a_class_of_rgpo_or_of_the_users(name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=FOREIGN[name]):
        make("gate", {"_target_": yaml.safe_load(name)}, GateLike)
    assert not {"antigravity", "pip"} & (set(sys.modules) - before)


OWN = """\
import os, subprocess
from functools import partial
from subprocess import Popen
from rgpo.gates import Log as Renamed
open({mark!r}, "a").close()
system = os.system
bound = partial(os.system, "true")
class Mine(Renamed): pass
class NoGate: pass
class Nowhere(Renamed): __module__ = "no.such.module"
class Nothing(Renamed): __module__ = None
def make_gate(scale): return Mine(scale=scale)
"""


def test_modules_of_the_users_folders_may_be_named_but_not_what_they_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for module in ("own_gates", "own_package.inner"):
        file = tmp_path / (module.replace(".", "/") + ".py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(OWN.format(mark=str(tmp_path / "imported")))
        for name in ("Mine", "Renamed", "make_gate"):
            assert make("gate", {"_target_": f"{module}.{name}", "scale": "none"}, Gate).scale == "none"
        for name in ("Popen", "system", "bound", "os", "os.system", "subprocess.Popen", "partial", "Nowhere", "Nothing"):
            with pytest.raises(ConfigError, match=f"^gate._target_={module}.{name}: (is |cannot be imported)"):
                make("gate", {"_target_": f"{module}.{name}", "scale": "none"}, Gate)
        with pytest.raises(ConfigError, match="is not a node with a _target_ of type Gate: it lacks Gate"):
            make("gate", {"_target_": f"{module}.NoGate"}, Gate)


def test_an_environment_is_of_a_module_of_the_users_or_of_gymnasium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_envs.py").write_text("")
    for name in ("CartPole-v1", "own_envs:Own-v0", "gymnasium:CartPole-v1", "nowhere:X-v0", "mujoco"):
        targets.refuse_foreign_environment(name)
    for name in ("antigravity:X-v0", "os:X-v0", "torch.hub:X-v0", "pip:X-v0", "pytest:X-v0"):
        message = f"^task.env_id={name}: .* is not a module of rgpo.*, nor of a package that needs gymnasium"
        with pytest.raises(ConfigError, match=message):
            compose_jobs(["algo=ppo", "task=gym", f"task.env_id={name}", "plan=true"], False, None)
    assert "antigravity" not in sys.modules
    with pytest.raises(ConfigError, match=r"^task\.env_id=nowhere:X-v0"):
        compose_jobs(["algo=ppo", "task=gym", "task.env_id=nowhere:X-v0", "plan=true"], False, None)


@pytest.mark.parametrize("text", ["raise SystemExit(3)", "import rgpo.objective", "1 / 0", "def", "raise KeyError"])
def test_a_module_that_cannot_be_imported_is_a_sentence(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_module.py").write_text(text)
    with pytest.raises(ConfigError, match=r"^gate\._target_=broken_module\.X: cannot be imported \(") as error:
        make("gate", {"_target_": "broken_module.X"}, Gate)
    assert "\n" not in str(error.value) and ("rgpo.objective is now rgpo.core.surrogate" in str(error.value)) == ("rgpo" in text)


def test_an_installed_package_needs_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not imported before it is judged."""
    site = tmp_path / "lib" / "site-packages"
    site.mkdir(parents=True)
    (site / "some_plugin.py").write_text(OWN.format(mark=str(tmp_path / "imported")))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)  # even though the folder is below the current one
    with pytest.raises(ConfigError, match="some_plugin is not a module of rgpo"):
        make("gate", {"_target_": "some_plugin.Mine", "scale": "none"}, Gate)
    assert not (tmp_path / "imported").exists() and "some_plugin" not in sys.modules
    points = [SimpleNamespace(module="some_plugin")]
    monkeypatch.setattr(targets.metadata, "entry_points", lambda group: points if group == "rgpo" else [])
    assert make("gate", {"_target_": "some_plugin.Mine", "scale": "none"}, Gate).scale == "none"


def test_modules_of_a_config_dir_are_imported_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_yaml.py").write_text(OWN.format(mark=str(tmp_path / "imported")))
    (tmp_path / "torch.py").write_text("raise SystemExit")
    targets.make_importable(None)
    targets.make_importable(str(tmp_path))
    targets.make_importable(str(tmp_path))
    assert sys.path[-1] == str(tmp_path) and sys.path.count(str(tmp_path)) == 1
    assert make("gate", {"_target_": "beside_the_yaml.Mine", "scale": "none"}, Gate).scale == "none"


def test_modules_made_in_memory_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "in_memory", ModuleType("in_memory"))
    with pytest.raises(ConfigError, match="in_memory is not a module of rgpo"):
        make("gate", {"_target_": "in_memory.Mine"}, Gate)


def test_python_m_rgpo_does_not_make_its_functions_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise AssertionError("called")

    script = ModuleType("__main__")
    script.main, main.__module__ = main, "__main__"
    script.__spec__ = SimpleNamespace(name="rgpo.cli.run")
    monkeypatch.setitem(sys.modules, "__main__", script)
    with pytest.raises(ConfigError, match="is a function of rgpo; name a class"):
        make("gate", {"_target_": "__main__.main"}, Gate)


@pytest.mark.parametrize(
    ("hint", "takes", "entries"),
    [
        (Gate, True, object),
        (Gate | None, True, object),
        (list[Gate] | None, False, Gate),
        (Sequence[Gate], False, Gate),
        (dict[str, Gate], False, Gate),
        (Callable[[float], float], True, object),
        (Mapping[str, object], False, object),
        (Mapping[str, Any], False, Any),
        (dict, False, object),
        (list[int], False, int),
        (int | str | None, False, object),
        (Path, False, object),
        (object, False, object),
        (Any, False, object),
    ],
)
def test_only_hints_that_name_a_class_declare_a_node(hint: object, takes: bool, entries: object) -> None:
    assert targets.takes_object(hint) is takes
    assert targets.entry_hint(hint, mapping=str(hint).startswith(("dict[", "collections.abc.Mapping"))) is entries


HYDRA = [
    "+hydra.callbacks.x={_target_: subprocess.Popen, args: [touch, PWNED]}",
    "hydra.callbacks={x: {_target_: own_code.X}}",
    "+hydra={callbacks: {x: {_target_: own_code.X}}}",
    "hydra/callbacks=x",
    "+gate@hydra.callbacks.x=clip",
    "+gate@hydra.launcher.x=clip",
    "hydra.launcher._target_=own_code.X",
    "hydra.launcher={_target_: own_code.X}",
    "+hydra.launcher.x={_target_: own_code.X}",
    "+hydra.launcher.x.y._target_=own_code.X",
    "hydra.sweeper._target_=own_code.X",
    "hydra/sweeper=x",
    "+hydra.job_logging.handlers.x.class=own_code.X",
    "hydra.job.env_set={PYTHONSTARTUP: own_code.py}",
    "hydra.searchpath=[pkg://own_code]",
    "hydra.searchpath=[file:///tmp,pkg://own_code]",
    "hydra.searchpath=pkg://own_code",
    "~hydra.searchpath",
    "hydra.run.dir=/tmp/x",
    "hydra.sweep.dir=/tmp/x",
    "hydra.output_subdir=x",
]


@pytest.mark.parametrize("word", HYDRA)
@pytest.mark.parametrize("multirun", [False, True])
def test_hydras_own_keys_run_no_code(word: str, multirun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_code.py").write_text(OWN.format(mark=str(tmp_path / "imported")))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"it could run other code|add -m|is not read by rgpo-run|is not a sweeper"):
        compose_jobs([*CARTPOLE, word], multirun, None)
    assert not (tmp_path / "imported").exists() and not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("words", ["--info plugins", "--package x", "--resolve", "--cfg hydra", "--hydra-help", "-sc query=bash"])
def test_hydras_own_flags_are_not_passed_on(words: str, tmp_path: Path) -> None:
    """Some of them would start hydra's application with its callbacks."""
    (tmp_path / "own_code.py").write_text(OWN.format(mark=str(tmp_path / "imported")))
    out = rgpo_run([*words.split(), *CARTPOLE, "+hydra.callbacks.x._target_=own_code.X"], tmp_path, code=2)
    assert "is neither key=value nor an option of rgpo-run" in out and out.count("\n") == 1
    assert not (tmp_path / "imported").exists()


def test_launchers_and_folders_may_be_chosen(tmp_path: Path) -> None:
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.searchpath=[file://{tmp_path}]"]
    assert len(compose_jobs([*CARTPOLE, *words, "seed=1,2"], True, None)) == 2


def test_the_recorded_commit_is_of_the_package_whatever_git_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = collect("run", "hash", "rgpo-run", 1, 1, {}, "code")["commit"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert collect("run", "hash", "rgpo-run", 1, 1, {}, "code")["commit"] == before
