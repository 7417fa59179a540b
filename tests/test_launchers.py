"""Six runs on each engine, one of which raises and one of which is killed; nothing else is lost, and the last lines name them."""

import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from cli import TINY, rgpo_run, start

from rgpo.cli import sweep
from rgpo.cli.config import compose_jobs
from rgpo.cli.overrides import hydra_on
from rgpo.runtime import resources as machine
from rgpo.runtime import run_folder

SWEEP = ["-m", "task=gym", "task.env_id=fragile:Fragile-v0", "task.num_envs=1", "task.num_steps=64", "num_iterations=5"]
SWEEP += ["checkpoint_every_s=0", "eval_every=0", "gradvar_every=0", "+task.env_kwargs.number=1,2,3,4,5,6"]


def installed(extra: str, plugin: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(f"hydra_plugins.{plugin}") is None
    return pytest.mark.skipif(missing, reason=f"needs pip install 'rgpo[{extra}]'")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds the fragile environment, as a user's would."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    shutil.copy(Path(__file__).with_name("fragile.py"), tmp_path)
    return tmp_path


def runs(folder: Path) -> dict[int, Path]:
    """Run folders by the environment's number."""
    jobs = compose_jobs(SWEEP[1:], True, None)  # conftest.py has this folder on Python's path
    return {job.config["task"]["env_kwargs"]["number"]: folder / job.run_dir for job in jobs}


def attempts(folders: dict[int, Path]) -> dict[int, int]:
    return {number: run_folder.read_state(folder).get("attempt", 0) for number, folder in folders.items()}


def assert_all_but_the_second(folders: dict[int, Path], out: str) -> None:
    assert [n for n, folder in folders.items() if run_folder.status(folder) == "completed"] == [1, 3, 4, 5, 6], out
    assert all(pd.read_parquet(folders[n] / "metrics.parquet").iteration.tolist() == [1, 2, 3, 4, 5] for n in (1, 3, 4, 5, 6))
    assert "5 of 6 runs are complete" in out
    listed = [line for line in out.splitlines() if line.startswith("  failed:")]
    assert len(listed) == 1 and "number=2" in listed[0] and "always breaks" in listed[0] and "error.txt" in listed[0]
    assert "always breaks" in (folders[2] / "error.txt").read_text()


@installed("joblib", "hydra_joblib_launcher")
def test_joblib_restarts_what_the_killed_run_took_down_and_completes_every_other(folder: Path) -> None:
    words = [*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    out = rgpo_run(words, folder, code=1)
    folders = runs(folder)
    assert_all_but_the_second(folders, out)
    assert "hydra/launcher=joblib stopped" in out and "attempt 2 resumes after iteration 2 of 5" in out
    starts = attempts(folders)
    assert starts[3] == 2 and max(starts.values()) == 2 and sum(starts.values()) <= 8  # its neighbor, too
    assert "5 of 6 runs already complete" in rgpo_run(words, folder, code=1)
    assert attempts(folders) == starts | {2: starts[2] + 1}


LAUNCHERS = [
    (),
    pytest.param(("hydra/launcher=joblib", "hydra.launcher.n_jobs=1"), marks=installed("joblib", "hydra_joblib_launcher")),
    pytest.param(
        ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=1", "+hydra.launcher.ray.init._node_ip_address=127.0.0.1"),
        marks=installed("ray", "hydra_ray_launcher"),
    ),
]


@pytest.mark.parametrize("engine", LAUNCHERS)
def test_on_failure_stop_starts_no_further_run(engine: tuple[str, ...], folder: Path) -> None:
    words = [*SWEEP[:-1], "+task.env_kwargs.number=2,4,5", "on_failure=stop", *engine]
    out = rgpo_run(words, folder, code=1)
    assert "0 of 3 runs are complete, 2 queued" in out and out.count("  failed:") == 1
    assert "2 of 3 runs have not started; with on_failure=continue the same command goes past what failed" in out
    assert not list((folder / "results" / ".hydra").glob("stop-*"))


@installed("slurm", "hydra_submitit_launcher")
def test_a_preempted_job_is_queued_again_and_resumes(tmp_path: Path) -> None:
    """On submitit's local executor, whose jobs take the same signal as SLURM's and are put back by the same mechanism."""
    words = [word for word in TINY if not word.startswith("num_iterations")] + ["num_iterations=400", "checkpoint_every_s=1000"]
    process = start(["-m", *words, "hydra/launcher=submitit_local"], tmp_path)
    (run,) = [tmp_path / job.run_dir for job in compose_jobs(words, False, None)]
    while run_folder.read_state(run).get("status") != "running":
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    os.kill(run_folder.read_state(run)["pid"], signal.SIGUSR2)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and "1 of 1 runs are complete" in out, out + err
    table = pd.read_parquet(run / "metrics.parquet")
    assert table.iteration.tolist() == list(range(1, 401)) and table.attempt.unique().tolist() in ([1, 2], [2])


@pytest.fixture
def ray_head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray of our own on loopback; ended by the ids of its processes, since `ray stop` ends everybody's."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray turns 127.0.0.1 into the network card's address
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    temp = tempfile.mkdtemp(prefix="ray")  # its sockets need a short path
    port = 20000 + os.getpid() % 20000
    words = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", f"--temp-dir={temp}"]
    words += ["--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    ray = [str(Path(sys.executable).with_name("ray")), *words]
    head = subprocess.Popen(ray, start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert head.stdout is not None
    for line in head.stdout:
        if "Ray runtime started" in line:
            break
    yield f"127.0.0.1:{port}"
    family = [*descendants(head.pid), head.pid]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in family:
            if alive(pid):
                os.kill(pid, number)
        until = time.monotonic() + 10
        while time.monotonic() < until and (head.poll() is None or any(alive(pid) for pid in family)):
            time.sleep(0.2)
    assert not any(alive(pid) for pid in family)
    shutil.rmtree(temp)


def descendants(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parent = {int(line.split()[0]): int(line.split()[1]) for line in listing.splitlines()}
    found, edge = [], [pid]
    while edge:
        edge = [child for child, its in parent.items() if its in edge]
        found += edge
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@installed("ray", "hydra_ray_launcher")
def test_ray_reruns_the_killed_run_and_completes_every_other(folder: Path, ray_head: str) -> None:
    out = rgpo_run([*SWEEP, "hydra/launcher=ray", f"hydra.launcher.ray.init.address={ray_head}"], folder, code=1)
    folders = runs(folder)
    assert_all_but_the_second(folders, out)
    assert attempts(folders) == {1: 1, 2: 1, 3: 2, 4: 1, 5: 1, 6: 1}
    assert "attempt 2 resumes after iteration 2 of 5" in out


@installed("ray", "hydra_ray_launcher")
def test_a_ray_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    words = ["-m", *TINY, "seed=1,2", "hydra/launcher=ray", "hydra.launcher.ray.init.address=127.0.0.1:9"]
    began = time.monotonic()
    message = rgpo_run(words, tmp_path, code=2)
    assert time.monotonic() - began < 60
    assert message.count("\n") == 1 and "ray.init.address=127.0.0.1:9" in message and "HOST:PORT" in message
    assert not (tmp_path / "results").exists()


@installed("slurm", "hydra_submitit_launcher")
@pytest.mark.filterwarnings("ignore:\\s*.hydra/launcher/.*is validated against ConfigStore schema")
def test_the_slurm_preset_asks_for_what_one_run_needs() -> None:
    with hydra_on(None) as composer:
        config = composer.whole(["hydra/launcher=submitit_slurm", "num_threads=2", "memory_gb=3", "results_dir=/shared"])
        launcher = config.hydra.launcher
        assert (launcher.cpus_per_task, launcher.mem_gb, launcher.tasks_per_node) == (2, 3, 1)
        assert launcher.submitit_folder.startswith("/shared/.hydra/submitit/") and launcher.max_num_timeout > 0


def test_an_engine_that_is_not_installed_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "mine" / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "mine" / "hydra" / "launcher" / "other.yaml").write_text("_target_: hydra_plugins.nowhere.Other\n")
    for name, extra in (("joblib", "joblib"), ("ray", "ray"), ("submitit_slurm", "slurm")):
        plugin = f"hydra_{name.split('_')[0]}_launcher"
        blocked = f"import sys; sys.modules['hydra_plugins.{plugin}'] = None; from rgpo.cli.run import main; main()"
        words = [sys.executable, "-W", "ignore", "-c", blocked, "-m", *TINY, "seed=1,2", f"hydra/launcher={name}"]
        process = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
        assert f"hydra/launcher={name}" in process.stderr and f"pip install 'rgpo[{extra}]'" in process.stderr
    assert "install its package" in rgpo_run(
        ["-m", *TINY, "seed=1,2", "--config-dir", "mine", "hydra/launcher=other"], tmp_path, 2
    )
    assert "joblib" in rgpo_run(["-m", *TINY, "seed=1,2", "hydra/launcher=jblib"], tmp_path, code=2)
    assert not (tmp_path / "results").exists()


def test_jobs_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "num_cpus", lambda: 16)
    monkeypatch.setattr(machine, "available_gb", lambda: 10.0)
    assert [machine.jobs_that_fit(threads, memory) for threads, memory in ((1, 0.1), (4, 1), (1, 3), (32, 1), (1, 99))] == [
        *(16, 4, 3, 1, 1)
    ]


def test_more_runs_than_fit_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sweep, "num_cpus", lambda: 4)
    monkeypatch.setattr(sweep, "available_gb", lambda: 5.0)
    with hydra_on(None) as composer:
        for asked, told in ((2, []), (4, ["memory_gb=2 = 8 GB, but 5.0 GB"]), (6, ["12 GB, but 5.0 GB", "share 4 CPUs"])):
            config = composer.whole(["memory_gb=2"])
            config.hydra.launcher = {"_target_": "x", "n_jobs": asked}
            sweep._warn_of_crowding(config, num_jobs=100)
            err = capsys.readouterr().err
            assert err.count("warning") == len(told) and all(text in err for text in told)


def test_a_second_sweep_leaves_what_the_first_holds(tmp_path: Path) -> None:
    words = ["-m", *TINY, "seed=1,2"]
    (held, free) = [tmp_path / job.run_dir for job in compose_jobs(words[1:], True, None)]
    with run_folder.lock(held):
        run_folder.write_state(held, status="running", attempt=1)
        out = rgpo_run(words, tmp_path)
        assert "is running it, skipped" in out and "1 of 2 runs are complete, 1 running" in out
    assert run_folder.status(held) == "interrupted" and run_folder.status(free) == "completed"


def test_a_sweep_is_extended_and_goes_on_after_a_signal(tmp_path: Path) -> None:
    assert "2 of 2" in rgpo_run(["-m", *TINY, "seed=1,2"], tmp_path)
    out = rgpo_run(["-m", *TINY, "seed=1,2,3", "gate=sigmoid,erf", "plan=true"], tmp_path)
    assert out.count("completed") == 2 and out.count("missing") == 4
    states = {file: file.read_text() for file in tmp_path.rglob("state.json")}
    out = rgpo_run(["-m", *TINY, "seed=1,2,3", "gate=sigmoid"], tmp_path)
    assert "2 of 3 runs already complete" in out and "3 of 3 runs are complete" in out
    assert all(file.read_text() == text for file, text in states.items())
    assert [json.loads(file.read_text())["attempt"] for file in tmp_path.rglob("state.json")] == [1, 1, 1]


POOL = """
import re
from pathlib import Path
from rgpo.cli.engines import start_pool
start_pool(2)
for folder in Path("/proc").glob("[0-9]*"):
    try:
        status, command = (folder / "status").read_text(), (folder / "cmdline").read_text()
    except OSError:
        continue
    if "popen_loky_posix" in command and re.search(rf"PPid:\\s+{__import__('os').getpid()}\\n", status):
        print(re.search(r"SigBlk:\\s+(\\w+)", status)[1])
"""


@pytest.mark.skipif(importlib.util.find_spec("joblib") is None, reason="joblib is not installed")
def test_workers_start_with_signals_blocked(tmp_path: Path) -> None:
    """From their first instruction on: a signal during their imports would print a traceback."""
    ended = subprocess.run([sys.executable, "-c", POOL], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True)
    wanted = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM))
    masks = [int(mask, 16) & wanted for mask in ended.stdout.split()]
    assert masks == [wanted, wanted], ended.stdout
