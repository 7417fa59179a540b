"""How a language model climbs: Adam over micro-batches, a value head fitted alone, and the local model of a natural gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad

from rgpo import distributed
from rgpo.core.rollout import Array, Moved
from rgpo.errors import require
from rgpo.language.policy import sharding
from rgpo.language.policy.packing import own
from rgpo.language.policy.token_batch import token_weights
from rgpo.learning.loss import standardise, value_loss
from rgpo.learning.types import STATISTICS, AdamSettings, CriticSettings

if TYPE_CHECKING:
    from rgpo.language.policy.language_model import LanguageModel
    from rgpo.language.policy.packing import Piece
    from rgpo.language.policy.token_batch import TokenBatch

NOTE = "not compiled"


def refuse_compile(choice: bool | str) -> None:
    """ConfigError for update.compile=true."""
    require(choice is not True, "update.compile", choice, "language models are not compiled, use auto or false.")


class MicroBatchAdam:
    """Adam on the sum of a minibatch's pieces: how it is cut changes memory and rounding, and nothing else.

    The rows of a minibatch stay together for all epochs of an iteration, the minibatches' order is drawn anew.
    """

    note = NOTE

    def __init__(self, policy: LanguageModel, settings: AdamSettings) -> None:
        refuse_compile(settings.compile)
        self.policy, self.settings = policy, settings
        self.parameters = policy.with_critic()
        groups: list[dict[str, Any]] = [{"params": part} for part in sharding.kinds(self.parameters)]
        self.adam = torch.optim.Adam(groups, eps=settings.adam_eps)
        self.rng = np.random.default_rng(settings.seed)

    def climb(self, batch: TokenBatch, lr: float, kl_coef: float, num_epochs: int) -> tuple[Tensor, tuple[Any, ...]]:
        """num_epochs passes over batch; statistics (num_epochs, num_minibatches, 5) in the order of STATISTICS."""
        rows, after = zip(*((self._epoch(batch, lr, kl_coef), self.policy.moved(batch)) for _ in range(num_epochs)), strict=True)
        return torch.stack(rows), Moved.stack(after)

    def _epoch(self, batch: TokenBatch, lr: float, kl_coef: float) -> Tensor:
        for group in self.adam.param_groups:
            group["lr"] = lr
        order = self.rng.permutation(len(batch.minibatches))
        rows = torch.stack([self._step(batch.minibatches[i], batch, kl_coef) for i in order])
        return torch.cat([distributed.total(rows[:, :2]), distributed.largest(rows[:, 2:3]), rows[:, 3:]], 1)

    def _step(self, pieces: list[Piece], batch: TokenBatch, kl_coef: float) -> Tensor:
        self.adam.zero_grad()
        advantage = batch.advantage
        if self.settings.normalize:
            tokens = torch.cat([piece.tokens_n for piece in pieces])
            advantage = advantage.index_copy(0, tokens, standardise(advantage[tokens]))
        row = torch.zeros(len(STATISTICS))
        for piece in own(pieces):
            loss, parts = self.losses(piece, batch, advantage, kl_coef)
            torch.autograd.backward(loss)
            row[:2] += parts[:2].cpu()
            row[2] = row[2].maximum(parts[2].cpu())
        sharding.sum_gradients(self.parameters)
        limit = self.settings.max_grad_norm
        row[3] = sharding.clip_gradients(self.parameters, math.inf if limit is None else limit)
        row[4] = float(limit is not None and row[3] > limit)
        self.adam.step()
        return row

    def losses(self, piece: Piece, batch: TokenBatch, advantage: Tensor, kl_coef: float) -> tuple[Tensor, Tensor]:
        """This piece's share of its minibatch's loss, and (policy loss, value loss, max |d|) of it, detached (3,)."""
        policy, settings = self.policy, self.settings
        seen = policy.see(piece)
        weight = batch.weight[piece.tokens_n]
        out = policy.surrogate(seen, piece, batch, advantage, settings.objective, kl_coef)
        actor = (weight * out.loss).sum()
        target, old = batch.value_target[piece.tokens_n], batch.value_old[piece.tokens_n]
        critic = (weight * value_loss(seen.value_n, target, old, settings.value_clip)).sum()
        total = actor if policy.value_head is None else actor + settings.vf_coef * critic
        if settings.ent_coef != 0:
            total = total - settings.ent_coef * (weight * seen.entropy_n).sum()
        furthest = pad(out.log_ratio.detach().abs(), (0, 1)).max()  # 0 where the piece has no token
        return total, torch.stack([actor.detach(), critic.detach(), furthest])

    def state_dict(self) -> dict[str, Any]:
        moments = [{key: sharding.for_file(x) for key, x in self.adam.state[p].items()} for p in self.parameters]
        return {"adam": moments, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state, whichever way it was divided over processes when it was written."""
        for p, moments in zip(self.parameters, state["adam"], strict=True):
            self.adam.state[p] = {key: x if key == "step" else sharding.fit(x, p) for key, x in moments.items()}
        self.rng.bit_generator.state = state["rng"]


class CriticFit:
    """Adam on the value head over the policy's hidden states, which it leaves alone; nothing to do without a critic."""

    note = NOTE

    def __init__(self, policy: LanguageModel, settings: CriticSettings) -> None:
        refuse_compile(settings.compile)
        self.policy, self.settings = policy, settings
        self.rng = np.random.default_rng(settings.seed)
        self.adam = None if policy.value_head is None else torch.optim.Adam(policy.value_head.parameters(), eps=1e-5)

    def climb(self, batch: TokenBatch, lr: float, kl_coef: float, num_epochs: int) -> tuple[Tensor, tuple[Any, ...]]:
        """num_epochs passes over the tokens of batch; statistics (num_epochs, num_minibatches, 5)."""
        table = torch.zeros(num_epochs, self.settings.num_minibatches, len(STATISTICS))
        if self.adam is not None:
            self.adam.param_groups[0]["lr"] = lr
            hidden = self._read(batch)
            for rows in table:
                self._epoch(self.adam, batch, hidden, rows)
        return table, ()

    def _epoch(self, adam: torch.optim.Adam, batch: TokenBatch, hidden: Tensor, rows: Tensor) -> None:
        tokens = torch.from_numpy(self.rng.permutation(len(hidden))).to(hidden.device)
        for row, part in zip(rows, tokens.tensor_split(len(rows)), strict=True):
            adam.zero_grad()
            value, target = self.policy.values(hidden[part]), batch.value_target[part]
            loss = value_loss(value, target, batch.value_old[part], None).mean()
            torch.autograd.backward(loss)
            adam.step()
            row[1] = loss.item()

    @torch.no_grad()
    def _read(self, batch: TokenBatch) -> Tensor:
        pieces = [piece for minibatch in batch.minibatches for piece in own(minibatch)]
        hidden = [self.policy.see(piece).hidden_nD for piece in pieces]
        table = hidden[0].new_zeros(len(batch.logp_old), hidden[0].shape[1])
        for piece, rows in zip(pieces, hidden, strict=True):
            table[piece.tokens_n] = rows
        return distributed.total(table)

    def state_dict(self) -> dict[str, Any]:
        adam = {} if self.adam is None else self.adam.state_dict()
        return {"adam": adam, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.adam is not None:
            self.adam.load_state_dict(state["adam"])
        self.rng.bit_generator.state = state["rng"]


def group_gradients(
    policy: LanguageModel, batch: TokenBatch, advantage: Tensor, objective: Any, groups: Array
) -> Iterator[Tensor]:
    """The policy's gradient (P,) of the surrogate without penalty over each group of rows (M, b)."""
    parameters = list(policy.trained().values())
    for p in parameters:
        p.grad = None
    for group in groups:
        minibatch = policy.cut(batch.completions, [group])
        grouped = batch._replace(weight=token_weights(batch.completions, minibatch, policy.sampling.reduction))
        for piece in own(policy.pieces(batch.completions, minibatch)[0]):
            out = policy.surrogate(policy.see(piece), piece, grouped, advantage, objective, 0.0)
            (grouped.weight[piece.tokens_n] * out.loss).sum().backward()  # FSDP knows no torch.autograd.grad
        sharding.sum_gradients(parameters)
        yield torch.cat([sharding.full(p.grad).flatten() for p in parameters if p.grad is not None])
        for p in parameters:
            p.grad = None


class TokenLocalModel:
    """The surrogate over all tokens and KL(old || new) over the kept ones, around a language model's present parameters.

    F v = mean over kept tokens of J'(diag p - p p')J v, J the Jacobian of the logits, by a second backward pass through the
    KL; its graph stays in memory while this object lives. Attention is computed by plain matrix products meanwhile, the one
    implementation that can be differentiated twice everywhere.
    """

    def __init__(self, policy: LanguageModel, batch: TokenBatch, advantage: Tensor, objective: Any) -> None:
        self.policy, self.batch = policy, batch
        self._advantage, self._objective = advantage, objective
        self._parameters = list(policy.trained().values())
        self._pieces = [piece for minibatch in batch.minibatches for piece in own(minibatch)]
        self._slopes: list[Tensor] = []
        gradient = torch.zeros(sum(p.numel() for p in self._parameters), device=advantage.device)
        total = torch.zeros((), dtype=torch.float64)
        with sdpa_kernel(SDPBackend.MATH):
            for piece in self._pieces:
                loss, kl = self._parts(piece)
                total += loss.detach().cpu()
                gradient -= self._flat(torch.autograd.grad(loss, self._parameters, retain_graph=True))
                if kl is not None:
                    self._slopes.append(self._flat(torch.autograd.grad(kl, self._parameters, create_graph=True)))
        self.loss = distributed.total(total).item()
        self._gradient = distributed.total(gradient)

    def _parts(self, piece: Piece) -> tuple[Tensor, Tensor | None]:
        """This piece's share of the mean surrogate and of the mean KL; None if none of its tokens was kept."""
        seen = self.policy.see(piece)
        out = self.policy.surrogate(seen, piece, self.batch, self._advantage, self._objective, 0.0)
        loss = (self.batch.weight[piece.tokens_n] * out.loss).sum()
        kept = self.batch.kept
        among = torch.isin(piece.tokens_n, kept.tokens_M)
        if not bool(among.any()):
            return loss, None
        old = kept.logp_old_KV[kept.find(piece.tokens_n[among])[1]]
        new = self.policy.log_softmax(seen.hidden_nD[among], self.policy.head)
        return loss, (old.exp() * (old - new)).sum() / len(kept.tokens_M)

    def _flat(self, tensors: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([x.flatten() for x in tensors])

    def gradient(self) -> Tensor:
        """Of minus the loss, (P,)."""
        return self._gradient

    def fisher_product(self, v: Tensor) -> Tensor:
        """F v, (P,)."""
        total = torch.zeros_like(v)
        with sdpa_kernel(SDPBackend.MATH):
            for slope in self._slopes:
                total += self._flat(torch.autograd.grad(slope.dot(v), self._parameters, retain_graph=True))
        return distributed.total(total)

    def evaluate(self, step: Tensor) -> tuple[float, float]:
        """Loss and mean KL after a step (P,), which is not kept."""
        before = [p.detach().clone() for p in self._parameters]
        with torch.no_grad():
            self.move(step)
            parts = [self._parts(piece) for piece in self._pieces]
            for p, value in zip(self._parameters, before, strict=True):
                p.copy_(value)
        sums = [sum(loss.item() for loss, _ in parts), sum(kl.item() for _, kl in parts if kl is not None)]
        loss, kl = distributed.total(torch.tensor(sums, dtype=torch.float64)).tolist()
        return loss, kl

    @torch.no_grad()
    def move(self, step: Tensor) -> None:
        """Take the step (P,)."""
        parts = torch.split(step, [p.numel() for p in self._parameters])
        for p, part in zip(self._parameters, parts, strict=True):
            p.add_(part.view_as(p))
