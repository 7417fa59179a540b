"""scale=paper with Qwen2.5's real tokenizer: template, prompt filter, ends and one update over its 151,936 tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from paper_runs import run

from rgpo.errors import ConfigError
from rgpo.language.data.chat import find_turn_end
from rgpo.language.data.dialogue import Dialogue
from rgpo.language.data.template import PromptFormat

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import launch_readiness
from scaling import SHAPES


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    try:
        return launch_readiness.make_tokenizer()
    except ConfigError as error:  # without network access
        pytest.skip(str(error))


def test_the_tokenizer_is_the_real_one(tokenizer: Any) -> None:
    """Ids as Qwen2.5's documentation and its users print them."""
    assert len(tokenizer) == 151_665 <= SHAPES[1].vocabulary
    assert tokenizer("Hello world")["input_ids"] == [9707, 1879]
    question = Dialogue.of([{"role": "user", "content": "hi"}])
    system = [151644, 8948, 198, 2610, 525, 1207, 16948, 11, 3465, 553, 54364, 14817, 13, 1446, 525, 264, 10950, 17847, 13]
    user = [151645, 198, 151644, 872, 198, 6023, 151645, 198, 151644, 77091, 198]
    assert tokenizer(PromptFormat().render(tokenizer, question))["input_ids"] == system + user
    assert find_turn_end(tokenizer) == tokenizer.eos_token_id == 151_645
    for text in ("naïve 日本語", "1234", "\n\n  def f(x):\n", "<|im_end|>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_model_of_the_real_vocabulary_is_trained(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = launch_readiness.write_model(tmp_path / "small", launch_readiness.SMALL, 1, tokenizer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch_readiness, "REWARD", "def brevity(completions): return [-len(text) for text in completions]")
    ran = run([*launch_readiness.command(model, tmp_path, lora=True)[3:], "task.log_rollouts_every=1"])
    assert ran.code == 0, ran.printed
    assert "1 longer than 512 tokens left out" in ran.printed
    frame, rollouts = (pd.read_parquet(ran.folder / f"{name}.parquet") for name in ("metrics", "rollouts"))
    assert frame["sampler/log_ratio_abs_max"].iloc[0] < 1e-4 and frame["grad/norm_max"].iloc[0] > 0
    assert frame["policy/entropy"].iloc[0] > 11  # log(151,936) = 11.9 nats: nearly uniform
    assert rollouts["length"].max() == launch_readiness.NEW_TOKENS


def test_the_plan_counts_what_the_shapes_say() -> None:
    plan = launch_readiness.planned_bytes(SHAPES[1], 28, lora=False)
    assert plan["weights"] == plan["gradients"] == plan["reference"] == plan["Adam"] / 2 == 4 * SHAPES[1].parameters
    lora = launch_readiness.planned_bytes(SHAPES[1], 28, lora=True)
    assert lora["reference"] == 0 and lora["gradients"] == 4 * 73_859_072  # peft's count for rank 64 on all linear modules
