"""Command lines as users type them; a mistake is answered by one sentence with key, value and remedy, and nothing is lost."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from cli import TINY, rgpo_run, start, the_run

from rgpo.cli.config import compose_jobs, config_hash
from rgpo.errors import ConfigError


def test_help_and_version() -> None:
    for words in (["-h"], ["--help"], ["--version"]):
        out = subprocess.run([sys.executable, "-m", "rgpo.cli.run", *words], capture_output=True, text=True)
        assert out.returncode == 0 and "rgpo" in out.stdout
    assert "first_evidence" in subprocess.run([sys.executable, "-m", "rgpo.cli.run", "-h"], capture_output=True, text=True).stdout


def test_the_command_line_wins_over_algo_and_names_its_own_folder() -> None:
    ppo, log = (compose_jobs(words, False, None)[0] for words in (["algo=ppo"], ["algo=ppo", "gate=log"]))
    assert ppo.config["gate"]["_target_"].endswith("Clip") and log.config["gate"]["_target_"].endswith("Log")
    assert ppo.run_dir != log.run_dir and ppo.run_dir.parent == log.run_dir.parent


def test_the_hash_ignores_what_changes_no_number() -> None:
    one = compose_jobs([], False, None)[0]
    same = compose_jobs(["results_dir=x", "num_threads=2", "name=y", "checkpoint_every_s=1"], False, None)[0]
    other = compose_jobs(["update.lr=1e-4"], False, None)[0]
    assert one.config_hash == same.config_hash != other.config_hash


def test_an_experiment_carries_its_grid_and_the_command_line_overrides_it() -> None:
    jobs = compose_jobs(["experiment=first_evidence"], True, None)
    assert len({job.run_dir for job in jobs}) == len(jobs) == 60
    fewer = compose_jobs(["experiment=first_evidence", "seed=7", "algo=ppo,rgpo"], True, None)
    assert len(fewer) == 4 and all(job.config["seed"] == 7 for job in fewer)


def test_a_bad_cell_of_a_sweep_stops_it_before_the_first_starts(tmp_path: Path) -> None:
    assert "gate=foo" in rgpo_run(["-m", *TINY, "gate=sigmoid,foo"], tmp_path, code=2)
    assert not (tmp_path / "results").exists()


def test_plan_lists_and_starts_nothing(tmp_path: Path) -> None:
    out = rgpo_run(["-m", *TINY, "seed=1,2,3", "plan=true"], tmp_path)
    assert out.count("missing") == 3 and "3 run(s)" in out
    assert not (tmp_path / "results").exists()


def test_a_sweep_goes_on_after_a_failure_and_lists_it(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import gymnasium, numpy as np\n"
        "class Broken(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-1, 1, (2,))\n"
        "    action_space = gymnasium.spaces.Discrete(2)\n"
        "    def __init__(self, bad=False): self.bad, self.t = bad, 0\n"
        "    def reset(self, seed=None, options=None):\n"
        "        super().reset(seed=seed); return np.zeros(2, np.float32), {}\n"
        "    def step(self, action):\n"
        "        self.t += 1\n"
        "        reward = float('nan') if self.bad and self.t > 150 else 1.0\n"
        "        return np.zeros(2, np.float32), reward, self.t % 10 == 0, False, {}\n"
        "gymnasium.register('Broken-v0', Broken)\n"
    )
    words = ["task=gym", "task.env_id=broken:Broken-v0", "task.num_envs=1", "task.num_steps=64", "num_iterations=5"]
    words += ["checkpoint_every_s=0", "+task.env_kwargs.bad=true,false", "seed=1"]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    process = subprocess.run(
        [sys.executable, "-m", "rgpo.cli.run", "-m", *words], cwd=tmp_path, capture_output=True, text=True, env=env, timeout=120
    )
    assert process.returncode == 1, process.stdout + process.stderr
    assert "1 of 2 runs" in process.stdout
    message = process.stderr.splitlines()[-1]
    for words in ("failed", "bad=True", "iteration 3", "reward of broken:Broken-v0", "last good checkpoint is after iteration 2"):
        assert words in message
    failed = next(file.parent for file in tmp_path.rglob("state.json") if "failed" in file.read_text())
    assert len(pd.read_parquet(failed / "metrics")) == 2  # nothing flushed is lost


def test_a_diverging_loss_stops_with_a_sentence(tmp_path: Path) -> None:
    message = rgpo_run([*TINY, "update.lr=1e30", "update.max_grad_norm=null", "num_iterations=20"], tmp_path, code=1)
    assert "value loss overflowed" in message and "iteration" in message and "update.lr" in message


def test_one_step_per_rollout_says_that_no_gate_matters(tmp_path: Path) -> None:
    out = rgpo_run([*TINY, "update.num_minibatches=1", "algo=reinforce"], tmp_path)
    assert "no gate can matter" in out
    assert "no gate can matter" not in rgpo_run([*TINY, "algo=ppo", "update.lr=0.01"], tmp_path)


def test_a_run_folder_holds_what_a_reader_needs(tmp_path: Path) -> None:
    rgpo_run([*TINY, "algo=rgpo", "update.lr=0.01"], tmp_path)
    run_dir = the_run(tmp_path / "results")
    assert {"config.yaml", "provenance.json", "state.json", "metrics.parquet", "checkpoint.pt"} <= {
        f.name for f in run_dir.iterdir()
    }
    frame = pd.read_parquet(run_dir / "metrics.parquet")
    assert frame.iteration.tolist() == [1, 2, 3, 4, 5, 6] and frame.env_steps.tolist() == [64 * i for i in range(1, 7)]
    assert frame["return/eval_mean"].notna().tolist() == [False, False, True] * 2
    assert frame["gradvar/before"].notna().tolist() == [True, False] * 3
    for name in ("kl/old_exact", "kl/old_k1", "kl/old_k3", "policy/entropy", "ess/ratio", "weight/pos_mean", "grad/norm_mean"):
        assert frame[name].notna().all(), name
    assert all(len(x) == 4 for x in frame["epoch/kl_old_exact"])
    assert (frame["epoch/kl_old_exact"].str[-1] == frame["kl/old_exact"]).all()


def test_own_options_add_names_and_may_not_shadow(tmp_path: Path) -> None:
    (tmp_path / "mine" / "gate").mkdir(parents=True)
    (tmp_path / "mine" / "gate" / "steep.yaml").write_text("_target_: rgpo.core.gates.SigmoidLog\nscale: none\nsharpness: 40.0\n")
    job = compose_jobs(["gate=steep"], False, str(tmp_path / "mine"))[0]
    assert job.config["gate"]["sharpness"] == 40.0
    assert "steps" in rgpo_run([*TINY, "--config-dir", "mine", "gate=steep"], tmp_path)
    assert "2 of 2" in rgpo_run(["-m", *TINY, "--config-dir", "mine", "gate=steep", "seed=1,2"], tmp_path)
    (tmp_path / "mine" / "gate" / "clip.yaml").write_text("_target_: rgpo.core.gates.Log\n")
    with pytest.raises(ConfigError, match="rename"):
        compose_jobs(["gate=clip"], False, str(tmp_path / "mine"))


FORMER = {  # a user's yaml of version 0.1: words, its file and text, and what the sentence holds
    "published": ("task=x", "task/x.yaml", "published: {lr: 1e-3}", ("published.lr=0.001: is now presets.sgd.lr",)),
    "published kl": ("task=x", "task/x.yaml", "published: {kl_coef: 2}", ("is now presets.adaptive.coef",)),
    "spikes": ("task=x", "task/x.yaml", "kl_spike_threshold: 0.1", ("rgpo-report spike_threshold=0.1",)),
    "reference": (
        "gate=x",
        "gate/x.yaml",
        "_target_: rgpo.gates.Log\nscale: ${published.lr}",
        ("published.lr", "presets.sgd.lr"),
    ),
    "option": ("algo=x", "algo/x.yaml", "defaults: [override /gate: sigmoid_signed]", ("is now gate=sign_aware_sigmoid",)),
    "group": ("algo=x", "algo/x.yaml", "defaults: [override /dual: product]", ("dual: is now gate_combination.",)),
    "preset": ("task=x", "task/x.yaml", "presets: {sgd: {lrr: 1}}", ("presets.sgd.lrr=1: ", "sgd.lr")),
    "absent group": ("algo=x", "algo/x.yaml", "defaults: [override /scale: paper]", ("algo=x: overrides scale", "choose a task")),
}


@pytest.mark.parametrize("case", FORMER)
def test_former_names_in_yaml_are_refused_with_the_present_one(case: str, tmp_path: Path) -> None:
    words, name, text, expected = FORMER[case]
    package = "" if name.startswith("gate") else "# @package _global_\n"
    base = "defaults: [_control]\ntask: {env_id: CartPole-v1}\n" if name.startswith("task") else ""
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(f"{package}{base}{text}\n")
    with pytest.raises(ConfigError) as caught:
        compose_jobs([words], False, str(tmp_path))
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1 and all(part in sentence for part in expected), sentence


def test_former_class_names_are_read_as_the_present_ones(tmp_path: Path) -> None:
    (tmp_path / "algo").mkdir()
    former = {"advantage": "advantages.GAE", "update": "updates.sgd.SGD", "gate": "gates.Clip", "penalty": "penalties.NoPenalty"}
    former |= {"gate_combination": "objective.Detached"}
    nodes = "".join(f"{key}: {{_target_: rgpo.{name}}}\n" for key, name in former.items())
    nodes += "task: {_target_: rgpo.tasks.control.Control, policy: {_target_: rgpo.policies.mlp.MLP}}\n"
    (tmp_path / "algo" / "old.yaml").write_text(f"# @package _global_\ndefaults: [override /gate: clip]\n{nodes}")
    (old,) = compose_jobs(["algo=old"], False, str(tmp_path))
    (new,) = compose_jobs(["algo=ppo"], False, None)
    old.config["choices"] = new.config["choices"]
    assert old.config == new.config and config_hash(old.config) == config_hash(new.config)


def test_classes_are_imported_from_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "mine" / "gate").mkdir(parents=True)
    (tmp_path / "mine" / "gate" / "cubic.yaml").write_text("_target_: my_gates.Cubic\nscale: none\nsharpness: 1.0\n")
    (tmp_path / "my_gates.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, field\n"
        "from typing import TYPE_CHECKING\n"
        "from rgpo.gates import POSITIVE, Gate\n"
        "if TYPE_CHECKING:\n    from torch import Tensor\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Cubic(Gate):\n"
        "    sharpness: float = field(metadata=POSITIVE)\n"
        "    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:\n"
        "        return self.sharpness * d + d**3 / 3\n"
    )
    words = [*TINY, "--config-dir", "mine", "gate=cubic", "num_iterations=1"]
    rgpo_run = Path(sys.executable).with_name("rgpo-run")  # its own sys.path[0] is the folder of commands

    def run(*more: str) -> str:
        process = subprocess.run([rgpo_run, *more, *words], cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    assert "Cubic(sharpness=1)" in run()
    command = json.loads((the_run(tmp_path / "results") / "provenance.json").read_text())["command"]
    assert command.startswith("rgpo-run --config-dir=mine task=cartpole")
    assert "1 of 1 runs are complete" in run("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "seed=2")
    for file in tmp_path.rglob("provenance.json"):
        assert "--config-dir" in json.loads(file.read_text())["command"]


DOOR = """\
from dataclasses import dataclass
from rgpo.core.advantages import Advantage
from rgpo.learning.types import Requirements

@dataclass(kw_only=True)
class Still:
    advantage: Advantage
    beta: float
    note = "nothing is trained"

    @property
    def requirements(self): return Requirements(gamma=self.advantage.gamma, critic=False, num_minibatches=1)
    def describe(self): return {"still": f"beta {self.beta}"}
    def validate(self, batch_size): pass
    def setup(self, policy, num_iterations, seed): pass
    def learn(self, policy, rollout, measure_variance): return {"still/beta": self.beta}
    def state_dict(self): return {}
    def load_state_dict(self, state): pass
"""
AXES_OF_DOOR = ("gate", "gate@ref_gate", "gate_combination", "penalty", "update")


def test_an_algorithm_outside_the_gate_family_reads_the_axes_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "algo").mkdir()
    (tmp_path / "still_door.py").write_text(DOOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "algorithm: {_target_: still_door.Still, beta: 0.5}\nmetrics: {still/beta: {unit: '1', meaning: beta}}\n"
    for skipped in (None, *AXES_OF_DOOR):
        lines = "".join(f"  - override /{axis}: null\n" for axis in AXES_OF_DOOR if axis != skipped)
        name = (skipped or "still").replace("@", "_")
        (tmp_path / "algo" / f"{name}.yaml").write_text(f"# @package _global_\ndefaults:\n{lines}{text}")
        if skipped is not None:
            with pytest.raises(ConfigError, match=f"^{skipped}=\\w+: algo={name} does not read it; leave it out"):
                compose_jobs([f"algo={name}"], False, str(tmp_path))
    job = compose_jobs(["algo=still", "algorithm.beta=2"], False, str(tmp_path))[0]
    assert job.describe() == {"still": "beta 2"} and set(job.config).isdisjoint(AXES_OF_DOOR) and job.choice("gate") == "none"
    for word, text in {
        "gate=clip": "gate=clip: algo=still does not read it",
        "algorithm.beta=x": "algorithm.beta=x: must be a number",
        "+algorithm.gamma=1": "algorithm.gamma=1: is not a known key",
        "~algorithm.beta": "algorithm.beta: is missing",
        "~advantage": "advantage=null: algo=still needs one",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(text)):
            compose_jobs(["algo=still", word], False, str(tmp_path))


def test_cfg_job_prints_the_configuration_of_a_run() -> None:
    command = [sys.executable, "-m", "rgpo.cli.run", "algo=ppo", "--cfg", "job"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    config = yaml.safe_load(out)
    assert "presets" not in config and config["update"]["lr"] == 5e-4 and config["gate"]["eps_low"] == 0.2
    bad = subprocess.run([*command, "gate=foo"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "gate=foo" in bad.stderr
    missing = subprocess.run([*command[:3], "task=gym", "-c", "job"], capture_output=True, text=True, check=True).stdout
    assert yaml.safe_load(missing)["task"]["env_id"] == "???"


def test_plan_describes_the_parts_that_act(tmp_path: Path) -> None:
    out = rgpo_run(["-m", "algo=ppo,rgpo", "seed=1,2", "update.lr=1e-3,1e-4", "plan=true"], tmp_path)
    ppo, rgpo = out.split("algo=rgpo\n")[-2].split("algo=ppo\n")[-1], out.split("algo=rgpo\n")[-1]
    assert "gate: Clip(eps_low=0.2" in ppo and "penalty" not in ppo and "ref_gate" not in ppo and "update: 2 variants" in ppo
    assert "gate: Sigmoid(" in rgpo and "penalty: AdaptivePenalty(" in rgpo and "8 run(s)" in rgpo


def test_a_full_disk_stops_with_a_sentence_and_the_command_goes_on_later(tmp_path: Path) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # a checkpoint is larger

    words = [*TINY, "checkpoint_every_s=0"]
    process = start(words, tmp_path, preexec_fn=small_files_only)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and err.count("\n") == 1, err
    assert "results_dir" in err and "free some space" in err and "iteration 2" in err
    run_dir = the_run(tmp_path / "results")
    assert json.loads((run_dir / "state.json").read_text())["status"] == "failed"
    rgpo_run(words, tmp_path)
    assert len(pd.read_parquet(run_dir / "metrics.parquet")) == 6
