# %% [markdown]
# # rgpo in Python
# Run this file as a notebook (VS Code and Jupytext open it as one) or as a plain script; it takes fifteen seconds on one core.

# %% Start a run with the words of `rgpo-run`. The same call again resumes an interrupted run and skips a finished one.
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

import rgpo

common = ["task=cartpole", "total_env_steps=8192", "name=quickstart"]
ppo = rgpo.run("algo=ppo", *common)
print(ppo)

# %% Its metrics, one row per iteration, are a pandas.DataFrame, even while another process is still running it.
print(ppo.metrics[["iteration", "env_steps", "return/train_mean", "kl/old_exact"]].tail())

# %% Load a run from its folder. It evaluates as it did at the end of training, or on more episodes.
ppo = rgpo.load(ppo.folder)
print(ppo.config["update"])
print(ppo.evaluate())
print(ppo.evaluate(num_episodes=20))


# %% A gate of your own: a frozen dataclass with a curve over d = log r. Its weight w = dg/dd is taken by autograd.
@dataclass(frozen=True, kw_only=True)
class Cauchy(rgpo.Gate):
    """g = 1/2 + arctan(k d)/pi."""

    sharpness: float = field(metadata=rgpo.gates.POSITIVE)

    def curve(self, d: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
        return (self.sharpness * d).atan() / math.pi + 0.5


d = torch.linspace(-1, 1, 5)
print(rgpo.gates.weight(Cauchy(sharpness=5.0), d, torch.ones_like(d)))

# %% A yaml makes the gate an option. `__main__` is this script or notebook; for rgpo-run, name a module: `my_gates.Cauchy`.
# A run is identified by its config, not by the code of its classes: after changing a class, repeat the run with `force=true`.
option = Path("my_conf/gate/cauchy.yaml")
option.parent.mkdir(parents=True, exist_ok=True)
option.write_text("_target_: __main__.Cauchy\nscale: none\nsharpness: 5.0\n")
cauchy = rgpo.run("algo=rgpo", "gate=cauchy", *common, config_dir="my_conf")
print(cauchy.evaluate())

# %% All runs as one table, with config keys as further columns.
table = rgpo.results("results/quickstart", columns=["gate.sharpness", "update.lr"])
curves = table.pivot_table(index="env_steps", columns="gate", values="return/train_mean")
print(curves.tail())
curves.plot(ylabel="mean return of training episodes").figure.savefig("quickstart.png")
