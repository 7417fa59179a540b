"""The Dockerfile without an engine: its shape, and its own RUN steps in a plain virtual environment, in order.

Three RUN steps are read and not executed: the two that change the system (apt-get, useradd), and torch's own, which would fetch
a torch of several hundred MB from an index of its own; this interpreter's torch is linked in instead. FROM, USER and the image
itself have never been run by this test.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
READ_ONLY = ("apt-get ", "useradd ", 'uv="$(mktemp -d)"')


def instructions() -> list[tuple[str, str]]:
    """(FROM, python:...), (RUN, ...) and so on; continued lines are joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, rest in lines]


def every(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def test_base_pinned_user_not_root_and_torch_by_argument() -> None:
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", every("FROM")[0])
    assert every("USER") == ["rgpo"] and [name for name, _ in instructions()][-3:] == ["USER", "WORKDIR", "CMD"]
    assert "TORCH_BACKEND=cpu" in every("ARG")
    torch = next(step for step in every("RUN") if "--torch-backend" in step)
    pins = (ROOT / "constraints.txt").read_text().split()
    assert '"$TORCH_BACKEND"' in torch and re.search(r"torch==\S+", torch)[0] in pins
    assert all("rm -rf /var/lib/apt/lists" in step for step in every("RUN") if "apt-get" in step)


def test_the_build_context_holds_what_is_copied_and_no_more() -> None:
    sources = {word for rest in every("COPY") for word in rest.split()[:-1]}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert sources == kept and all((ROOT / name).exists() for name in sources)


def needed_by(name: str, found: set[str]) -> set[str]:
    """An installed distribution and all that it requires, added to ``found``."""
    if name not in found:
        found.add(name)
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed_by(requirement.name, found)
    return found


def link(distribution: str, site: Path) -> None:
    """Make an installed distribution's files part of another site-packages."""
    tops = {Path(file.parts[0]) for file in metadata.files(distribution) or [] if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(metadata.distribution(distribution).locate_file(top))))


def test_its_own_steps_in_a_virtual_environment(tmp_path: Path) -> None:
    image, venv = tmp_path / "image", tmp_path / "image" / "opt" / "venv"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env |= {"VIRTUAL_ENV": str(venv), "PATH": f"{venv}/bin:{Path(sys.executable).parent}:{env['PATH']}"}
    env |= dict(rest.split("=") for rest in every("ARG"))
    env |= {"PIP_NO_COMPILE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_QUIET": "1"}
    here, executed = image, 0
    for word, rest in instructions():
        if word == "WORKDIR":
            here = image / rest.lstrip("/")
            here.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            *sources, target = rest.split()
            for name in sources:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, here / target, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / name, here / target)
        elif word == "RUN" and not rest.startswith(READ_ONLY):
            here.mkdir(parents=True, exist_ok=True)
            process = subprocess.run(["sh", "-c", rest], cwd=here, env=env, capture_output=True, text=True, timeout=600)
            if process.returncode and "(from versions: none)" in process.stderr:
                pytest.skip("no package index answers")
            assert process.returncode == 0, rest + process.stderr
            executed += 1
            if "python -m venv" in rest:
                (site,) = venv.glob("lib/python*/site-packages")
                for name in needed_by("torch", set()):
                    link(name, site)
    assert executed == len(every("RUN")) - len(READ_ONLY) == 3
    command = ["rgpo-run", "algo=rgpo", "task=cartpole", "num_iterations=2"]
    out = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    assert "no repository" in out.stdout and len(pd.read_parquet(next(here.rglob("metrics.parquet")))) == 2
    shutil.rmtree(image)
