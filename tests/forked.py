"""python -m forked: a process that has imported everything, and forks for each `rgpo-run`: a tenth of the cost of a start."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO

PATIENCE_S = 240.0
FIXED = ("PYTHONPATH", "OMP_NUM_THREADS")  # read when a process starts


class Server:
    """The process, with the environment that it was started with."""

    def __init__(self) -> None:
        folder = Path(__file__).parent
        self.fixed = [os.environ.get(name) for name in FIXED]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-m", "forked"], cwd=folder, text=True, **pipes)
        atexit.register(self.process.kill)

    def fits(self) -> bool:
        """True if a process started now would be like this one."""
        return self.process.poll() is None and self.fixed == [os.environ.get(name) for name in FIXED]

    def run(self, words: Sequence[str], cwd: Path) -> tuple[int | None, str, str]:
        """Exit code, stdout and stderr of `rgpo-run words` in the folder cwd with this process's environment."""
        asked, answered = _pipes(self.process)
        asked.write(json.dumps([list(words), str(cwd), dict(os.environ)]) + "\n")
        asked.flush()
        code, out, err = json.loads(answered.readline())
        return code, out, err


@cache
def server() -> Server:
    """The server of this process."""
    return Server()


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def serve() -> None:
    """Answer until the other end is closed."""
    from campaign.commands import rgpo_run, warm_up

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warm_up()
    for line in sys.stdin:
        words, cwd, env = json.loads(line)

        def be_in(env: dict[str, str] = env) -> None:
            os.environ.clear()
            os.environ.update(env)

        ended = rgpo_run(words, Path(cwd), first=be_in, patience_s=PATIENCE_S)
        print(json.dumps([ended.code, ended.out, ended.err]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
