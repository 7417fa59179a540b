"""What the user types, and what he is told when it is wrong: one sentence with key, value and remedy, nothing lost."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from cli import TINY, rgpo_run, start, the_run

from rgpo.cli.config import compose_jobs
from rgpo.errors import ConfigError

BAD = {
    "algo=ppoo": ("algo=ppoo", "ppo"),
    "gate=sigmod": ("gate=sigmod", "sigmoid"),
    "task=hoper": ("task=hoper", "hopper"),
    "gat=log": ("gat=log", "gate"),
    "gate.sharpnes=3": ("gate.sharpnes=3", "gate.sharpness"),
    "+update.lrr=1": ("update.lrr=1", "lr"),
    "+sed=2": ("sed=2", "seed"),
    "gate.sharpness=0": ("gate.sharpness=0", "positive"),
    "gate.sharpness=-3": ("gate.sharpness=-3", "positive"),
    "gate.sharpness=many": ("gate.sharpness=many", "a number"),
    "algo=ppo gate.eps_low=1.5": ("gate.eps_low=1.5", "between 0 and 1"),
    "algo=ppo gate.eps_high=0": ("gate.eps_high=0", "between 0 and 1"),
    "update.num_minibatches=7": ("update.num_minibatches=7", "for example 8 does"),
    "algo=trpo update.critic_minibatches=7": ("critic_minibatches=7", "does not divide"),
    "task=gym task.env_id=CartPol-v1": ("CartPol-v1", "CartPole-v1"),
    "task=gym": ("task.env_id=???", "command line"),
    "task=gym task.env_id=Blackjack-v1": ("Blackjack-v1", "supported"),
    "task=hopper task.version=v1": ("Hopper-v1", ""),
    "algo=trpo penalty=adaptive": ("natural_gradient", "penalty=none"),
    "advantage=group_relative": ("group_relative", "gae"),
    "gate=open": ("gate=open", "gate@ref_gate"),
    "gate@ref_gate=budget": ("gate@ref_gate", "open"),
    "dual=geometric gate@ref_gate=budget": ("dual=geometric", "open"),
    "gate=budget gate.scale=unit": ("scale=unit", "none"),
    "seed=1,2": ("seed=1,2", "-m"),
    "seed=-1": ("seed=-1", "0 or more"),
    "total_env_steps=0": ("total_env_steps=0", "positive"),
    "num_threads=two": ("num_threads=two", "whole number"),
    "name=a/b": ("name=a/b", "letters"),
    "results_dir=/proc/none": ("results_dir", "another results_dir"),
    "seed": ("seed", "key=value"),
    "published.gama=1": ("published.gama=1", "gamma"),
    "update.lr=nan": ("update.lr=nan", "a number"),
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_sentence(line: str, tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "rgpo.cli.run", *line.split()], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 2, process.stdout + process.stderr
    assert process.stdout == "" and process.stderr.count("\n") == 1 and process.stderr.startswith("rgpo-run: ")
    for word in BAD[line]:
        assert word in process.stderr
    assert not list(tmp_path.rglob("*.parquet"))


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
    assert len({job.run_dir for job in jobs}) == len(jobs) == 36
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
    assert "NaN or infinite" in message and "iteration" in message and "update.lr" in message


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
