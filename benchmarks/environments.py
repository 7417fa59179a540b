"""python benchmarks/environments.py [word ...]: train 5 iterations in each environment, or record why it is rejected.

Writes docs/environments.md. Words select groups by name ("page" selects none); without words, all groups whose packages are
installed are run. Needs the extras atari and box2d, as well as minigrid, gymnasium-robotics and shimmy[dm-control]. Results with
published settings are read from benchmarks/zoo, which has copies of run folders.
"""

from __future__ import annotations

import importlib.util
import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
PAGE, RECORD = ROOT / "docs" / "environments.md", Path(__file__).with_suffix(".json")
MUJOCO = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "InvertedPendulum")
MUJOCO += ("Pusher", "Reacher", "Swimmer", "Walker2d")
SYMBOLS = "task.wrappers=[{_target_:gymnasium.wrappers.FilterObservation,filter_keys:[image,direction]}]"
PIXELS = ("policy@task.policy=cnn", "task.normalize_observation=false", "memory_gb=4")
STACK = (
    "task.wrappers=[{_target_:gymnasium.wrappers.GrayscaleObservation},{_target_:gymnasium.wrappers.ResizeObservation,shape:[84,84]},"
    "{_target_:gymnasium.wrappers.FrameStackObservation,stack_size:4}]"
)
Case = tuple[str, tuple[str, ...]]  # id, additional arguments
GROUPS: dict[str, tuple[str, list[Case]]] = {  # name -> package, environments
    "classic control": (
        "gymnasium",
        [(x, ()) for x in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")],
    ),
    "toy text": (
        "gymnasium",
        [(x, ()) for x in ("Blackjack-v1", "FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v3")],
    ),
    "Box2D": (
        "Box2D",
        [(x, ()) for x in ("LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3", "BipedalWalkerHardcore-v3")]
        + [("CarRacing-v3", (*PIXELS, STACK))],
    ),
    "MuJoCo": ("mujoco", [(f"{name}-{version}", ()) for version in ("v4", "v5") for name in MUJOCO]),
    "MiniGrid": (
        "minigrid",
        [(f"minigrid:MiniGrid-{x}-v0", words) for x in ("Empty-8x8", "DoorKey-5x5", "FourRooms") for words in ((), (SYMBOLS,))],
    ),
    "BabyAI": ("minigrid", [("minigrid:BabyAI-GoToRedBall-v0", (SYMBOLS,)), ("minigrid:BabyAI-OpenDoor-v0", (SYMBOLS,))]),
    "gymnasium-robotics": (
        "gymnasium_robotics",
        [
            (f"gymnasium_robotics:{x}", ())
            for x in (
                "FetchReach-v4",
                "FetchPush-v4",
                "AntMaze_UMaze-v5",
                "PointMaze_UMaze-v3",
                "HandReach-v3",
                "AdroitHandDoor-v1",
            )
        ],
    ),
    "dm_control": (
        "shimmy",
        [(f"shimmy:dm_control/{x}-v0", ()) for x in ("cartpole-swingup", "walker-walk", "humanoid-stand", "reacher-easy")],
    ),
    "Atari, RAM": ("ale_py", [(f"ale_py:ALE/{x}-v5", ("+task.env_kwargs.obs_type=ram",)) for x in ("Pong", "Breakout")]),
    "Atari, pixels": ("ale_py", [(f"ale_py:ALE/{x}-v5", ("task=atari",)) for x in ("Pong", "Breakout")]),
}


PUBLISHED = {  # task.env_id -> experiment, and PPO's result in rl-baselines3-zoo's benchmark.md
    "LunarLander-v3": ("zoo_lunarlander", "242 +- 32 after 1,000,000 steps (LunarLander-v2)"),
    "BipedalWalker-v3": ("zoo_bipedalwalker", "288 +- 2 after 5,000,000 steps"),
    "MountainCarContinuous-v0": ("zoo_mountaincar_continuous", "88 +- 3 after 20,000 steps, with state-dependent exploration"),
    "minigrid:MiniGrid-Empty-8x8-v0": ("zoo_minigrid_empty", "none for this one; the largest possible return is about 0.96"),
}


def main(words: list[str]) -> None:
    """Run the selected groups, keep earlier results of the others, and write the table."""
    rows: dict[str, list[list[str]]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name, (package, cases) in GROUPS.items():
        if words and not any(word.lower() in name.lower() for word in words):
            continue
        if importlib.util.find_spec(package) is None:
            print(f"{name}: {package} is not installed")
            continue
        rows[name] = []
        for env_id, extra in cases:
            rows[name].append([env_id, *train(env_id, extra)])
            print(name, *rows[name][-1], flush=True)
        RECORD.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(page(rows))


def train(env_id: str, extra: tuple[str, ...]) -> tuple[str, str]:
    """The arguments of a run and its result: iterations with a finite KL, or the message with which it was rejected."""
    words = [*(extra if "task=atari" in extra else ("task=gym", *extra)), f"task.env_id={env_id}"]
    size = ["algo=ppo", "num_iterations=5", "task.num_envs=2", "task.num_steps=64", "eval_every=0", "gradvar_every=0"]
    begun = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rgpo.cli.run", *size, *words, f"results_dir={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode == 0:
        last = next((line for line in reversed(lines) if "iteration 5/5" in line), "")
        return " ".join(map(quoted, words)), f"trained, {cpu_seconds() - begun:.0f} CPU-s" if last else lines[-1]
    sentence = next((line for line in reversed(lines) if line.startswith("rgpo-run:")), lines[-1] if lines else "no output")
    reason = re.sub(r"^rgpo-run: | \(traceback in .*\)$", "", sentence)
    return " ".join(map(quoted, words)), f"refused: {reason}"


def cpu_seconds() -> float:
    """CPU time of the runs so far."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def quoted(word: str) -> str:
    """Quote a word for the shell."""
    return f"'{word}'" if set(word) & set("{}[]*") else word


def page(rows: dict[str, list[list[str]]]) -> str:
    """The text of docs/environments.md."""
    parts = ["# Environments that were tried", ""]
    command = "`rgpo-run algo=ppo num_iterations=5 task.num_envs=2 task.num_steps=64`"
    parts += [f"Except in the first table, each row is a run of {command} with the"]
    parts += ["arguments shown, made by `python benchmarks/environments.py`; the CPU time includes imports.", ""]
    parts += learned()
    for name, table in rows.items():
        parts += [f"## {name}", "", "| environment | arguments | result |", "|---|---|---|"]
        parts += [f"| {env_id} | `{words}` | {result.replace('|', ' ')} |" for env_id, words, result in table]
        parts += [""]
    return "\n".join(parts)


def learned() -> list[str]:
    """The table of PPO's results with published settings, from benchmarks/zoo."""
    parts = ["## Learning with published settings", ""]
    parts += ["Each row is `rgpo-run experiment=...` with the name shown. The return is that of 20 episodes of the deterministic"]
    parts += ["policy after the last iteration: the mean over seeds, with their standard deviation.", ""]
    parts += ["| environment | experiment | steps | seeds | return | published |", "|---|---|---:|---:|---:|---|"]
    files = sorted((ROOT / "benchmarks" / "zoo").glob("*/metrics.parquet"))
    for env_id, (experiment, published) in PUBLISHED.items():
        runs = [pd.read_parquet(file) for file in files if f"env_id: {env_id}\n" in (file.parent / "config.yaml").read_text()]
        returns = np.array([run["return/eval_mean"].dropna().iloc[-1] for run in runs])
        steps = f"{max(run['env_steps'].iloc[-1] for run in runs):,}" if runs else "-"
        spread = f" +- {returns.std(ddof=1):.3g}" if len(runs) > 1 else ""
        mean = f"{returns.mean():.3g}{spread}" if runs else "not run"
        parts += [f"| {env_id} | `{experiment}` | {steps} | {len(runs)} | {mean} | {published} |"]
    return [*parts, ""]


if __name__ == "__main__":
    main(sys.argv[1:])
