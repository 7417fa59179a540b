"""The arithmetic of docs/scaling.md against models that transformers builds, and the document against the arithmetic."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2ForCausalLM

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
assert spec is not None and spec.loader is not None
scaling = importlib.util.module_from_spec(spec)
__import__("sys").modules["scaling"] = scaling
spec.loader.exec_module(scaling)

SMALL = scaling.Shape("small", 64, 3, 4, 2, 160, 500, True)


@pytest.mark.parametrize("shape", [*scaling.SHAPES, SMALL], ids=lambda shape: shape.name)
def test_parameters(shape) -> None:
    with torch.device("meta"):
        model = Qwen2ForCausalLM(scaling.as_config(shape, shape.layers, shape.vocabulary))
    model.tie_weights()
    assert model.num_parameters() == shape.parameters


def test_published_sizes() -> None:
    assert [f"{shape.parameters / 1e9:.2f}" for shape in scaling.SHAPES] == ["0.49", "1.54", "7.62", "72.71"]  # Qwen2.5's cards


def test_flops_of_a_forward_pass() -> None:
    model = Qwen2ForCausalLM(scaling.as_config(SMALL, SMALL.layers, SMALL.vocabulary))
    model.set_attn_implementation("eager")  # whose products the counter sees
    ids = torch.zeros(2, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, use_cache=False)
    assert counter.get_total_flops() == pytest.approx(ids.numel() * SMALL.forward_flops(32), rel=1e-3)  # no causal saving


def test_bytes_of_the_cache() -> None:
    model = Qwen2ForCausalLM(scaling.as_config(SMALL, SMALL.layers, SMALL.vocabulary)).bfloat16()
    with torch.no_grad():
        cache = model(torch.zeros(2, 8, dtype=torch.long), use_cache=True).past_key_values
    held = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    assert held == 2 * 8 * SMALL.kv_bytes


@pytest.mark.parametrize("shape", [scaling.SHAPES[0], SMALL], ids=lambda shape: shape.name)
def test_bytes_kept_for_the_backward_pass(shape) -> None:
    assert scaling.count_saved_bytes(shape, 32) == pytest.approx(shape.saved_bytes, rel=1e-3)


def test_fsdp_fits_and_one_less_does_not() -> None:
    for shape in scaling.SHAPES:
        held = scaling.training_bytes(shape)
        own = held.pop("activations") + held.pop("KV cache") / 4
        count = scaling.gpus(shape)
        assert sum(held.values()) / count + own <= scaling.ASSUMED.memory
        assert count == 1 or sum(held.values()) / (count // 2) + own > scaling.ASSUMED.memory
        assert scaling.fsdp_bytes(shape, count) < 6 * shape.parameters


def test_the_document_shows_what_the_script_prints() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    for lines in scaling.tables():
        assert "\n".join(lines) in text
    for kind, hours in scaling.paper_gpu_hours().items():
        assert f"{hours:.1f} ({kind})" in text
