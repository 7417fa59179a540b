"""Our gates inside TRL's trainers: equal to TRL's own loss, learning, saved and resumed, and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

trl = pytest.importorskip("trl", reason="TRL is not installed (pip install 'rgpo[engines]')")

import tiny_trl

import rgpo
from rgpo import gates
from rgpo.core.sequence import RatioLevel
from rgpo.engines.parts import GateParts
from rgpo.engines.trl import STATE, GatedGRPOTrainer, GatedRLOOTrainer
from rgpo.engines.trl_record import RecordRun
from rgpo.errors import ConfigError
from rgpo.report.cli import main as report

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_trl.save_model(tmp_path_factory.mktemp("model"))


def make(kind: Any, folder: str, out: Path, parts: Any = None, eval_dataset: Any = None, **change: Any) -> Any:
    config = trl.RLOOConfig if issubclass(kind, trl.RLOOTrainer) else trl.GRPOConfig
    own = {} if parts is None else {"parts": parts, "ratio": change.pop("ratio", None)}
    if kind is GatedRLOOTrainer:
        del own["ratio"]
    return kind(
        folder,
        tiny_trl.reward,
        config(str(out), **(tiny_trl.PINNED | change)),
        train_dataset=tiny_trl.prompts(),
        eval_dataset=eval_dataset,
        processing_class=tiny_trl.tokenizer(),
        **own,
    )


def steps(trainer: Any) -> list[torch.Tensor]:
    """Gradient of each optimizer step, flat, before clipping, and the loss of each micro-batch behind it."""
    found: list[torch.Tensor] = []
    losses: list[float] = []
    compute, clip = trainer._compute_loss, trainer.accelerator.clip_grad_norm_

    def observed(*args: Any) -> torch.Tensor:
        loss = compute(*args)
        losses.append(loss.item())
        return loss

    def taken(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(torch.cat([p.grad.flatten().double() for p in trainer.model.parameters()] + [torch.tensor(losses).double()]))
        losses.clear()
        return clip(parameters, *args, **kwargs)

    trainer._compute_loss, trainer.accelerator.clip_grad_norm_ = observed, taken
    trainer.train()
    return found


CLIP = "gate=clip"
SAME = {  # TRL's own loss and ours, with settings of both
    "grpo": ({"loss_type": "grpo"}, CLIP, {"loss_type": "grpo"}),
    "dapo": ({"epsilon_high": 0.28}, "gate=dapo", {"loss_type": "dapo"}),
    "bnpo, dual clip": ({"loss_type": "bnpo", "delta": 1.5}, "gate=clip gate.cap=1.5", {"loss_type": "bnpo"}),
    "dr_grpo, beta": ({"loss_type": "dr_grpo", "beta": 0.1}, CLIP, {"loss_type": "dr_grpo", "beta": 0.1}),
    "k3": (
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False},
        "gate=clip penalty=fixed penalty.coef=0.1 penalty.estimator=k3",
        {"loss_type": "grpo"},
    ),
    "unbiased": (
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": True},
        "gate=clip penalty=fixed penalty.coef=0.1",
        {"loss_type": "grpo"},
    ),
    "gspo, luspo": (
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        "gate=gspo",
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    ),
    "sapo": ({"loss_type": "sapo"}, "gate=sapo", {"loss_type": "grpo"}),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 3.0}, "gate=cispo", {"loss_type": "dapo"}),
    "vespo": ({"loss_type": "vespo"}, "gate=vespo", {"loss_type": "dapo", "ratio": RatioLevel("sequence_sum")}),
    "masks": (
        {"loss_type": "grpo", "off_policy_mask_threshold": 1e-4, "top_entropy_quantile": 0.5, "entropy_coef": 0.01},
        CLIP,
        {"loss_type": "grpo", "off_policy_mask_threshold": 1e-4, "top_entropy_quantile": 0.5, "entropy_coef": 0.01},
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_to_grpo_trainer(name: str, folder: str, tmp_path: Path) -> None:
    """Losses and gradients, step by step; values of CISPO and VESPO differ, as TRL's are w log pi."""
    theirs, parts, ours = SAME[name]
    expected = steps(make(trl.GRPOTrainer, folder, tmp_path, max_steps=4, **theirs))
    found = steps(make(GatedGRPOTrainer, folder, tmp_path, parts, max_steps=4, **ours))
    assert len(expected) == len(found) == 4
    for a, b in zip(expected, found, strict=True):
        end = -2 if name in ("cispo", "vespo") else None
        tolerance = 1e-5 if name == "vespo" else 1e-6  # whose weight we take by autograd of a Gamma CDF, in float32
        torch.testing.assert_close(b[:end], a[:end], rtol=1e-6, atol=tolerance * float(a[:-2].abs().max()))
    assert not torch.equal(expected[0], expected[1])


def test_a_gate_reads_the_old_probability(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DPPO's weight, written out, from the log-probabilities that TRL has: min(r, cap) where the probability moved little."""
    delta, seen, losses = 0.002, [], GateParts.losses

    def watched(self: GateParts, logp: torch.Tensor, logp_old: torch.Tensor, advantage: torch.Tensor, **rest: Any) -> Any:
        found, inputs = losses(self, logp, logp_old, advantage, **rest)
        (slope,) = torch.autograd.grad(found.sum(), logp, retain_graph=True)
        seen.append((logp.detach(), logp_old, advantage, slope))
        return found, inputs

    monkeypatch.setattr(GateParts, "losses", watched)
    parts = f"gate=dppo_tv gate.delta_low={delta} gate.delta_high={delta}"
    make(GatedGRPOTrainer, folder, tmp_path, parts, loss_type="grpo", max_steps=4).train()
    masked = 0
    for logp, old, advantage, slope in seen:
        moved = logp.double().exp() - old.double().exp()
        kept = torch.where(advantage > 0, moved <= delta, moved >= -delta)
        sure = (moved.abs() - delta).abs() > 1e-6
        expected = -(logp - old).exp().clamp(max=20.0) * advantage * kept
        torch.testing.assert_close(slope[sure], expected[sure], rtol=1e-5, atol=1e-7)
        masked += int((~kept & (advantage != 0)).sum())
    assert masked > 0


def test_every_loss_type_of_trl_has_its_words() -> None:
    page = (Path(__file__).parents[1] / "docs" / "language.md").read_text()
    table = page[page.index("### The losses of TRL and verl") : page.index("Not equal:")]
    text = trl.GRPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    names = re.findall(r"'(\w+)'", text.partition("Supported values are")[2].partition(".")[0])
    assert len(names) >= 7 and all(f"`{name}`" in table for name in names)


def test_equal_to_rloo_trainer(folder: str, tmp_path: Path) -> None:
    expected = steps(make(trl.RLOOTrainer, folder, tmp_path, max_steps=4))
    found = steps(make(GatedRLOOTrainer, folder, tmp_path, CLIP, max_steps=4))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6 * float(a[:-2].abs().max()))


def test_rgpo_learns_saves_and_resumes(folder: str, tmp_path: Path) -> None:
    """algo=rgpo has a second gate on the reference and an adaptive penalty, which a resumed run continues."""
    parts = "algo=rgpo penalty.kl_target=1e-4"
    settings = {"loss_type": "grpo", "save_strategy": "steps", "save_steps": 12, "max_steps": 20}
    whole = make(GatedGRPOTrainer, folder, tmp_path / "whole", parts, **settings)
    whole.train()
    rows = [row for row in whole.state.log_history if "loss" in row]
    rewards = [row["reward"] for row in rows if "reward" in row]  # every second step begins with new completions
    assert len(rows) == 20 and len(rewards) == 10
    assert sum(rewards[-3:]) > sum(rewards[:3])
    assert whole.parts.penalty.loss_coef > 0.05
    names = {
        "kl/old_k3",
        "weight/relative_mean",
        "ess/ratio",
        "ess/weight",
        "ratio/tail_index",
        "kl/ref_unbiased",
        "gate/sharpness",
    }
    assert names <= {name for row in rows for name in row}
    assert rows[1]["ess/ratio"] < 1
    checkpoint = tmp_path / "whole" / "checkpoint-12"
    saved = json.loads((checkpoint / STATE).read_text())
    resumed = make(GatedGRPOTrainer, folder, tmp_path / "resumed", parts, **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert saved["penalty"]["coef"] == rows[11]["kl/coef"]
    later = [row for row in resumed.state.log_history if "loss" in row and row["step"] > 12]
    for name in ("kl/coef", "loss", "kl/ref_unbiased"):
        assert [row[name] for row in later] == [row[name] for row in rows[12:]]


def test_a_run_is_on_the_frontier(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, and rewards against KL of the evaluations, of our loss; TRL's own measures no KL per completion."""
    evaluated = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "per_device_eval_batch_size": 8}
    for kind, parts, algo in ((GatedGRPOTrainer, "algo=rgpo", "rgpo"), (trl.GRPOTrainer, None, "dapo")):
        trainer = make(kind, folder, tmp_path / algo, parts, max_steps=4, eval_dataset=tiny_trl.prompts(4), **evaluated)
        trainer.add_callback(RecordRun(trainer, task="words", algo=algo, results_dir=str(tmp_path / "results")))
        trainer.train()
    for run in map(rgpo.load, sorted((tmp_path / "results" / "engines").iterdir())):
        table = run.metrics
        assert run.status == "completed" and len(table) == 4
        assert table["loss/policy"].notna().all() and table["reward/train_mean"].notna().sum() == 2
        assert list(table["reward/eval_proxy_change"].notna()) == [False, True, False, True]
        own = run.identity["algo"] == "rgpo"
        assert ("kl/eval_ref_sequence" in table) == own
        assert not own or (table["kl/eval_ref_sequence"].dropna() != 0).all()
        assert run.config["engine"]["settings"]["num_iterations"] == 2
    out = tmp_path / "report"
    capsys.readouterr()
    assert report([f"results_dir={tmp_path / 'results'}", f"out={out}", "format=svg"]) == 1
    (problem,) = capsys.readouterr().err.splitlines()
    assert "/words-dapo-s0-" in problem and "kl/eval_ref_sequence was never measured" in problem
    assert any("frontier" in path.name for path in out.rglob("*"))


@pytest.mark.parametrize(
    "parts, change, sentence",
    [
        ("gate=clip", {"epsilon": 0.3}, "epsilon=0.3: would be ignored, because the gate takes its place"),
        ("gate=clip", {"loss_type": "sapo"}, "loss_type=sapo: is a curve of its own"),
        ("gate=clip penalty=fixed", {"beta": 0.1}, "beta=0.1: is a second KL penalty"),
        ("algo=ppo", {}, "penalty=reward_kl: GRPOTrainer has no KL in the reward"),
        ("gate=clip penalty=fixed penalty.estimator=exact penalty.anchor=old", {}, "stores no distributions"),
        ("gate=clip seed=3", {}, "seed=3: is the trainer's own to set"),
        ("gate=open", {}, "gate=open: has zero gradient"),
        ("algo=dpo", {}, "algo=dpo has no gate"),
        ("gate=clip gate_combination=product", {}, "gate_combination=product: would be ignored"),
        ("gate=clipp", {}, "Did you mean"),
        ("gate=clip penalty=fixed", {"top_entropy_quantile": 0.5}, "would mask the KL penalty"),
    ],
)
def test_refusals(parts: str, change: dict[str, Any], sentence: str, folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make(GatedGRPOTrainer, folder, tmp_path, parts, **({"loss_type": "grpo"} | change))


def test_rloo_refuses_a_reference_gate(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gate@ref_gate: needs a reference policy, which RLOOTrainer does not"):
        make(GatedRLOOTrainer, folder, tmp_path, "gate=clip gate@ref_gate=budget")
    with pytest.raises(ConfigError, match=r"gate=DppoTV.*: reads the old log-probability of a token, which RLOOTrainer does not"):
        make(GatedRLOOTrainer, folder, tmp_path, "gate=dppo_tv")
    with pytest.raises(ConfigError, match="has its KL in the reward"):
        make(GatedRLOOTrainer, folder, tmp_path, "gate=clip penalty=fixed")


def test_objects_and_untried_versions(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = GateParts(gate=gates.Sigmoid(sharpness=10.0))
    assert make(GatedGRPOTrainer, folder, tmp_path, parts).parts is parts
    monkeypatch.setattr("rgpo.engines.parts.metadata.version", lambda _: "9.0.0")
    with pytest.warns(UserWarning, match=r"trl 9\.0\.0: rgpo.engines was tried with 1\.16\.0"):
        make(GatedGRPOTrainer, folder, tmp_path, parts)
