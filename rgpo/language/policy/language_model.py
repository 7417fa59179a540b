"""A causal language model as a policy: samples completions, and computes what an update needs of their tokens.

Log-probabilities are those of the sampling temperature, for sampling and learning alike. The reference policy is the model
itself with its LoRA adapters switched off, or a frozen copy where all weights are trained.
Names: rgpo.language.policy.token_batch, rgpo.language.policy.packing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rgpo import distributed
from rgpo.core.divergences import k3
from rgpo.core.rollout import Array, Moved
from rgpo.core.sequence import sequence_log_ratio
from rgpo.language.policy import attention_masks, sharding
from rgpo.language.policy.generation import Completions, generate, join
from rgpo.language.policy.language_updates import CriticFit, MicroBatchAdam, TokenLocalModel, group_gradients
from rgpo.language.policy.logprobs import token_statistics
from rgpo.language.policy.packing import Piece, arrange, lines_of, make_piece, own
from rgpo.language.policy.pretrained import switch_off_dropout
from rgpo.language.policy.token_batch import CompletionRollout, Kept, Seen, TokenBatch, flat, rows_of, token_weights
from rgpo.learning.types import AdamSettings, CriticSettings


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn, and how their tokens are read again."""

    temperature: float
    max_new_tokens: int
    eos_id: int
    pad_id: int
    ratio: str  # token or sequence
    reduction: str  # token_mean or sequence_mean
    micro_batch_size: int  # completions in one forward pass of learning
    num_kl_tokens: int  # tokens whose whole distributions are kept


class LanguageModel:
    """model: a causal LM with a linear head, or a peft model around one; critic: whether it has a value head."""

    def __init__(self, model: Any, sampling: Sampling, critic: bool) -> None:
        self.model = model
        self.sampling = sampling
        self.num_minibatches = 1
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        self._shared = attention_masks.reads_lines(model.config)  # whether a prompt is read once for all its completions
        self._autocast = model.dtype  # that the model computes in; without adapters the weights themselves are float32
        if base is model:
            model.float()
        self.backbone, self.head = base.get_decoder(), base.get_output_embeddings()
        self._switch_off: Callable[[], AbstractContextManager[Any]] | None = None
        if base is model:
            self.reference = copy.deepcopy(model).requires_grad_(False).eval()
        else:
            self._switch_off = model.disable_adapter
        switch_off_dropout(model)
        self.value_head: nn.Linear | None = None
        if critic:
            self.value_head = nn.Linear(base.config.hidden_size, 1, device=model.device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self._layers: dict[bool, list[Any]] = {True: [], False: []}  # sharded ones of reference and policy

    def shard(self) -> None:
        """Divide the layers of policy and reference copy over the processes."""
        if distributed.world_size() > 1:
            self._layers[False] = sharding.shard(self.backbone)
            self._layers[True] = self._layers[False] if self._switch_off else sharding.shard(self.reference.get_decoder())

    def trained(self) -> dict[str, nn.Parameter]:
        """The policy's parameters that learn, by name, without the value head's."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def learning(self) -> dict[str, nn.Parameter]:
        """All parameters that learn, by name."""
        critic = {} if self.value_head is None else {f"value_head.{k}": v for k, v in self.value_head.named_parameters()}
        return self.trained() | critic

    def with_critic(self) -> list[nn.Parameter]:
        """All parameters that learn."""
        return list(self.learning().values())

    def generate(self, prompts: Sequence[Sequence[int]], generator: torch.Generator, reference: bool = False) -> Completions:
        """A completion of each prompt's ids, by the policy or by the reference."""
        sampling = self.sampling
        model = self.reference if reference and self._switch_off is None else self.model
        with self._without_adapters(reference), sharding.gathered(self._layers[reference]), self._precision():
            mine = generate(
                model,
                prompts,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                eos_id=sampling.eos_id,
                pad_id=sampling.pad_id,
                generator=generator,
                own=distributed.share(prompts),
            )
        return join(distributed.gather(mine), sampling.pad_id)

    def _without_adapters(self, reference: bool) -> AbstractContextManager[Any]:
        return self._switch_off() if reference and self._switch_off is not None else nullcontext()

    def _precision(self) -> AbstractContextManager[Any]:
        mixed = self._switch_off is None and self._autocast != torch.float32
        return torch.autocast(self.model.device.type, self._autocast) if mixed else nullcontext()

    def see(self, piece: Piece) -> Seen:
        """The policy's view of a piece, with gradients where they are enabled."""
        hidden_nD = self._hidden(self.backbone, piece)
        statistics = token_statistics(hidden_nD, self.head, piece.targets_n, temperature=self.sampling.temperature)
        value_n = hidden_nD.new_zeros(len(hidden_nD)) if self.value_head is None else self.values(hidden_nD)
        return Seen(statistics.logp_N, statistics.entropy_N, value_n.float(), hidden_nD)

    def values(self, hidden_nD: Tensor) -> Tensor:
        """V (n,) of hidden states."""
        assert self.value_head is not None
        values: Tensor = self.value_head(hidden_nD.to(self.value_head.weight.dtype)).squeeze(-1)
        return values

    def _hidden(self, backbone: Any, piece: Piece) -> Tensor:
        segment = piece.segment_UW
        mask = (
            attention_masks.additive(attention_masks.earlier(segment)[:, None], backbone.dtype)
            if self._shared
            else (segment >= 0).long()
        )
        inputs = {"input_ids": piece.input_ids_UW, "attention_mask": mask, "position_ids": piece.position_ids_UW}
        with self._precision():
            out = backbone(**inputs, use_cache=False)
        hidden = out.last_hidden_state if self._switch_off else out.last_hidden_state.float()
        return piece.predicting(hidden)

    def see_reference(self, piece: Piece) -> tuple[Tensor, Tensor, Any]:
        """The reference's log-probabilities (n,) and hidden states (n, D) of a piece, and its head."""
        other = None if self._switch_off is not None else self.reference
        with self._without_adapters(reference=True):
            hidden_nD = self._hidden(self.backbone if other is None else other.get_decoder(), piece)
            head = self.head if other is None else other.get_output_embeddings()
            statistics = token_statistics(hidden_nD, head, piece.targets_n, temperature=self.sampling.temperature)
        return statistics.logp_N.float(), hidden_nD, head

    def log_softmax(self, hidden_nD: Tensor, head: Any) -> Tensor:
        """Log-probabilities (n, V) float32 of whole distributions."""
        return torch.log_softmax(head(hidden_nD) / self.sampling.temperature, -1, dtype=torch.float32)

    @torch.no_grad()
    def look_back(self, completions: Completions, rng: np.random.Generator) -> dict[str, Any]:
        """What a CompletionRollout holds of tokens: the split into minibatches, logp_old, logp_ref, values and kept tokens.

        The same rows share a forward pass here and in learning, so that the ratio is exactly 1 before the first step.
        """
        minibatches = self.cut(completions, np.split(rng.permutation(len(completions.sequence_BS)), self.num_minibatches))
        num_tokens = int(completions.completion_mask_BT.sum())
        count = min(num_tokens, self.sampling.num_kl_tokens)
        device = completions.sequence_BS.device
        kept = torch.from_numpy(np.sort(rng.choice(num_tokens, count, replace=False))).to(device)
        logp_old, logp_ref, value = torch.zeros(3, num_tokens, device=device)
        tables: list[tuple[Tensor, Tensor, Tensor]] = []
        for piece in (piece for pieces in self.pieces(completions, minibatches) for piece in own(pieces)):
            seen = self.see(piece)
            logp_old[piece.tokens_n], value[piece.tokens_n] = seen.logp_n.float(), seen.value_n
            among = torch.isin(piece.tokens_n, kept)
            logp_ref[piece.tokens_n], hidden, head = self.see_reference(piece)
            with self._without_adapters(reference=True):  # the head may have an adapter, too
                ref_table = self.log_softmax(hidden[among], head)
            tables.append((piece.tokens_n[among], self.log_softmax(seen.hidden_nD[among], self.head), ref_table))
        places, old_table, ref_table = (torch.cat(column) for column in zip(*tables, strict=True))
        order = places.argsort()
        numbers = distributed.total(torch.stack([logp_old, logp_ref, value]))
        found = dict(zip(("logp_old_N", "logp_ref_N", "value_N"), numbers, strict=True))
        return {**found, "minibatches": minibatches, "kept": Kept(kept, places[order], old_table[order], ref_table[order])}

    @torch.no_grad()
    def completion_kl(self, completions: Completions) -> Array:
        """(B,) log pi(y)/pi_ref(y) of completions that the policy drew: k1, nats a completion."""
        gap_N = torch.zeros(int(completions.completion_mask_BT.sum()), device=completions.sequence_BS.device)
        everything = self.cut(completions, [np.arange(len(completions.sequence_BS))])
        for piece in own(self.pieces(completions, everything)[0]):
            gap_N[piece.tokens_n] = self.see(piece).logp_n.float() - self.see_reference(piece)[0]
        total: Array = rows_of(distributed.total(gap_N).double(), completions).sum(-1).cpu().numpy()
        return total

    def cut(self, completions: Completions, parts: Sequence[Array]) -> list[list[Tensor]]:
        """The rows (b,) of the pieces of each part."""
        lines = lines_of(completions, self._shared)
        return [arrange(part, completions, lines, self.sampling.micro_batch_size) for part in parts]

    def pieces(self, completions: Completions, minibatches: Sequence[Sequence[Tensor]]) -> list[list[Piece]]:
        """The pieces whose rows are given, minibatch by minibatch."""
        lines = lines_of(completions, self._shared)
        return [[make_piece(completions, rows.to(lines.device), lines) for rows in minibatch] for minibatch in minibatches]

    def make_batch(self, rollout: CompletionRollout, advantage: Array, value_target: Array) -> tuple[TokenBatch, dict[str, Any]]:
        """The tokens of a rollout; advantage and value_target (T, B)."""
        completions = rollout.completions
        live = rollout.live()
        spread = value_target[live].var()
        explained = 1 - (value_target - rollout.value)[live].var() / spread if self.value_head and spread > 0 else math.nan
        batch = TokenBatch(
            completions,
            self.pieces(completions, rollout.minibatches),
            token_weights(completions, rollout.minibatches, self.sampling.reduction),
            flat(advantage, completions),
            flat(value_target, completions),
            rollout.value_N,
            rollout.logp_old_N,
            rollout.logp_ref_N,
            rollout.correction_N,
            rollout.kept,
        )
        return batch, {
            "advantage/mean": advantage[live].mean(),
            "advantage/std": advantage[live].std(),
            "value/explained_variance": explained,
        }

    def gated(self, log_ratio_n: Tensor, piece: Piece) -> Tensor:
        """The log ratio (n,) that the gate sees: each token's own, or its completion's mean."""
        if self.sampling.ratio == "token":
            return log_ratio_n
        table_bt = torch.zeros(piece.live_bt.shape, device=log_ratio_n.device).masked_scatter(piece.live_bt, log_ratio_n)
        return sequence_log_ratio(table_bt, piece.live_bt)[piece.live_bt]

    def surrogate(self, seen: Seen, piece: Piece, batch: TokenBatch, advantage: Tensor, objective: Any, kl_coef: float) -> Any:
        """The objective at the piece's tokens, each (n,); advantage (N,). The KL is the reference's, per token (k3).

        A token's advantage is multiplied by its correction, min(pi_old/pi_sampler, cap) (truncated importance sampling).
        """
        old, ref = batch.logp_old[piece.tokens_n], batch.logp_ref[piece.tokens_n]
        d_old, d_ref = self.gated(seen.logp_n - old, piece), self.gated(seen.logp_n - ref, piece)
        kl = k3(ref - seen.logp_n)
        credit = (advantage * batch.correction)[piece.tokens_n]
        return objective(d_old, torch.zeros_like(d_old), d_old - d_ref, credit, kl_coef=kl_coef, kl=kl)

    @torch.no_grad()
    def moved(self, batch: TokenBatch) -> Moved:
        """The present policy compared with the one that collected the batch, and with the reference at the kept tokens."""
        log_ratio, entropy, gated = torch.zeros(3, len(batch.logp_old), device=batch.logp_old.device)
        kept = batch.kept
        kl_old, kl_ref = torch.zeros(2, len(kept.tokens_M), device=log_ratio.device)
        for piece in (piece for pieces in batch.minibatches for piece in own(pieces)):
            seen = self.see(piece)
            d = seen.logp_n.float() - batch.logp_old[piece.tokens_n]
            log_ratio[piece.tokens_n], entropy[piece.tokens_n] = d, seen.entropy_n.float()
            gated[piece.tokens_n] = self.gated(d, piece)
            among = torch.isin(piece.tokens_n, kept.tokens_M)
            at, held = kept.find(piece.tokens_n[among])
            new, old = self.log_softmax(seen.hidden_nD[among], self.head), kept.logp_old_KV[held]
            kl_old[at] = (old.exp() * (old - new)).sum(-1)
            kl_ref[at] = (new.exp() * (new - kept.logp_ref_KV[held])).sum(-1)
        return Moved(*(distributed.total(x.cpu()) for x in (log_ratio, kl_old, entropy, gated, kl_ref)))

    def group_gradients(self, batch: TokenBatch, advantage: Tensor, objective: Any, groups: Array) -> Iterator[Tensor]:
        """The policy's gradient (P,) of the surrogate without penalty over each group of rows (M, b)."""
        return group_gradients(self, batch, advantage, objective, groups)

    def adam(self, settings: AdamSettings) -> MicroBatchAdam:
        """Adam on policy and critic; a minibatch is run in pieces of micro_batch_size completions."""
        self.num_minibatches = settings.num_minibatches
        return MicroBatchAdam(self, settings)

    def critic_adam(self, settings: CriticSettings) -> CriticFit:
        """Adam on the value head alone; the policy takes one step on the whole batch."""
        self.num_minibatches = 1
        return CriticFit(self, settings)

    def local_model(self, batch: TokenBatch, advantage: Tensor, objective: Any) -> TokenLocalModel:
        """Gradient over all tokens, Fisher products and KL over the kept ones."""
        return TokenLocalModel(self, batch, advantage, objective)

    def state_dict(self) -> dict[str, Tensor]:
        """What learns, by name."""
        return {name: sharding.for_file(p) for name, p in self.learning().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the tensors of ``state_dict``, in place."""
        for name, p in self.learning().items():
            p.copy_(sharding.fit(state[name], p))
