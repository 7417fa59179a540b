"""The map from a causal language model's last hidden states to its logits, for any model family.

Most families multiply by the output embeddings; some scale or cap the product, or add layers before it (Granite, Gemma-2, BERT).
Legend: R tokens, D size of a hidden state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from rgpo.errors import ConfigError, first_line, is_out_of_memory
from rgpo.language.policy.logprobs import Head
from rgpo.language.policy.rounding import UNUSABLE, accepted

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput


class _Given(nn.Module):
    """Replaces the decoder while a model computes its logits; returns given hidden states, and has the decoder's attributes."""

    def __init__(self, decoder: nn.Module, output: BaseModelOutput) -> None:
        super().__init__()
        self.__dict__["decoder"], self.__dict__["output"] = decoder, output  # avoids registering a submodule

    def forward(self, *_: object, **__: object) -> BaseModelOutput:
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["decoder"], name)


class ModelHead:
    """Logits (R, V) of hidden states (R, D): the model's own forward pass, with these states as its decoder's output."""

    def __init__(self, model: nn.Module, decoder: nn.Module, output: type[BaseModelOutput]) -> None:
        self.model, self.output = model, output
        self.places = [(m, name) for m in model.modules() for name, child in m.named_children() if child is decoder]
        self.decoder = decoder

    def __call__(self, hidden_RD: Tensor) -> Tensor:
        if len(hidden_RD) == 0:
            return self(hidden_RD.new_zeros(1, hidden_RD.shape[1]))[:0]
        ids = torch.zeros(1, len(hidden_RD), dtype=torch.int64, device=hidden_RD.device)
        with self._replaced(_Given(self.decoder, self.output(last_hidden_state=hidden_RD[None]))):
            logits: Tensor = self.model(input_ids=ids, **accepted(self.model, use_cache=False)).logits[0]
        return logits

    @contextmanager
    def _replaced(self, stand_in: nn.Module) -> Iterator[None]:
        for parent, name in self.places:
            setattr(parent, name, stand_in)
        try:
            yield
        finally:
            for parent, name in self.places:
                setattr(parent, name, self.decoder)


class Parts(NamedTuple):
    """The parts of a causal language model."""

    decoder: PreTrainedModel  # ids -> last hidden states
    head: Head
    num_features: int  # D


@torch.inference_mode()
def find_parts(model: PreTrainedModel) -> Parts:
    """Find the decoder and the head: the output embeddings if logits are their product with the hidden states, else a ModelHead.

    Raises: ConfigError if the model cannot process text alone, or if its logits are not a function of last hidden states.
    """
    key, name = f"task.source.model={model.name_or_path}", type(model).__name__
    ids = torch.arange(8, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    states: dict[nn.Module, BaseModelOutput] = {}  # outputs with last hidden states, innermost submodule first

    def keep(module: nn.Module, _: object, out: object) -> None:
        if isinstance(getattr(out, "last_hidden_state", None), Tensor):
            states[module] = out

    handles = [module.register_forward_hook(keep) for module in model.modules() if module is not model]
    try:
        wanted = model(input_ids=ids, **accepted(model, use_cache=False)).logits[0]
    except UNUSABLE as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"{key}: a {name} cannot read a text alone ({first_line(error)}); give a causal language model."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    linear = model.get_output_embeddings()
    for decoder in sorted(states, key=lambda module: module is not model.get_decoder()):
        hidden = states[decoder].last_hidden_state
        whole = ModelHead(model, decoder, type(states[decoder]))
        try:
            logits = whole(hidden[0])
            unit = wanted.abs().max() * torch.finfo(model.dtype).eps
            if logits.shape == wanted.shape and bool(((logits - wanted).abs() <= 64 * unit).all()):
                product = linear(hidden)[0] if isinstance(linear, nn.Module) else None
                same = product is not None and torch.equal(product.to(logits.dtype), logits)
                return Parts(decoder, linear if same else whole, hidden.shape[-1])
        except UNUSABLE as error:
            if is_out_of_memory(error):
                raise
    raise ConfigError(f"{key}: the logits of a {name} are no function of its last hidden states; give a causal language model.")
