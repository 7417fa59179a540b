"""One thread, and the policies and batches that several test modules share."""

from __future__ import annotations

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")  # a quarter less to compile; kernels are as ever

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import setuptools  # noqa: F401  before a test imports distutils: torch's compiler needs setuptools's own
import torch

from rgpo.control.actions import Head
from rgpo.control.actor_critic import ActorCritic
from rgpo.control.mlp import MLP
from rgpo.control.policy import ControlBatch, ControlRollout

if TYPE_CHECKING:
    from rgpo.language.policy.language_model import LanguageModel

torch.set_num_threads(1)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SLOW = {line.split()[0] for line in (Path(__file__).parent / "slow.txt").read_text().splitlines()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow modules and the slow tests of others."""
    for item in items:
        if SLOW & {item.path.stem, f"{item.path.stem}::{item.name.partition('[')[0]}"}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def make_policy() -> Callable[..., ActorCritic]:
    """A small actor-critic with D observations and A actions; keywords go to the MLP."""

    def make(*, discrete: bool = False, observation: int = 5, action: int = 3, seed: int = 0, **mlp: Any) -> ActorCritic:
        generator = torch.Generator().manual_seed(seed)
        shape: dict[str, Any] = {"hidden_sizes": (16, 16), "activation": "tanh", "orthogonal_init": True}
        shape |= {"policy_gain": 0.5, "value_gain": 1.0, "log_std_init": 0.0} | mlp
        heads = (Head("categorical" if discrete else "gaussian", action),)
        return ActorCritic(MLP(**shape), observation, heads, generator)

    return make


@pytest.fixture
def make_batch() -> Callable[..., ControlBatch]:
    """num_samples samples of a policy with standard normal observations, advantages and value targets."""

    def make(policy: ActorCritic, num_samples: int, seed: int = 0) -> ControlBatch:
        rng = np.random.default_rng(seed)
        observation = rng.standard_normal((num_samples, policy.observation_size)).astype(np.float32)
        action = policy.act(observation, policy.draw_noise((num_samples,), rng))
        ended, value = np.zeros((num_samples, 1), bool), rng.standard_normal((num_samples, 1))
        steps = {"reward": value, "terminated": ended, "done": ended, "value": value, "next_value": value, "metrics": {}}
        rollout = ControlRollout(observation=observation[:, None], action=action[:, None], **steps)
        advantage, target = rng.standard_normal((2, num_samples, 1))
        return policy.make_batch(rollout, advantage, target)

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen2."""
    from tiny_models import write_model

    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def make_language_model(tiny_checkpoint: Path) -> Callable[..., LanguageModel]:
    """A policy of the tiny Qwen2, with or without adapters and value head; keywords go to its Sampling."""
    from tiny_policies import SAMPLING

    from rgpo.language.policy.language_model import LanguageModel
    from rgpo.language.policy.pretrained import add_lora, load_causal_lm

    def make(lora: bool = False, critic: bool = True, attention: str = "sdpa", **sampling: Any) -> LanguageModel:
        model, _ = load_causal_lm(tiny_checkpoint, dtype="float32", device="cpu", attn_implementation=attention)
        if lora:
            model = add_lora(model, rank=2, alpha=4.0, dropout=0.0, target_modules="all-linear", seed=0)
        return LanguageModel(model, replace(SAMPLING, **sampling), critic)

    return make


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; results go to its results/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks x three algorithms x three seeds, written once; copy before changing."""
    import report_fixtures as fixtures

    results = tmp_path_factory.mktemp("stored") / "results"
    fixtures.write_experiment(results, algos=("ppo", "rgpo", "trpo"))
    fixtures.write_gates(results / "gates.parquet")
    return results


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six finished runs, written once; copy before changing."""
    import report_fixtures as fixtures

    results = tmp_path_factory.mktemp("healthy") / "results"
    for algo in ("ppo", "rgpo"):
        for seed in (1, 2, 3):
            fixtures.write_run(results, algo=algo, seed=seed, iterations=20)
    return results


@pytest.fixture
def victim(healthy: Path, here: Path) -> Path:
    """The folder of one of six healthy runs in results/."""
    shutil.copytree(healthy, here / "results")
    return next((here / "results" / "first_evidence").glob("hopper-rgpo-s2-*"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """An installed Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
