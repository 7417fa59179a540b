"""A causal language model as a policy: samples completions, and computes the quantities that an update needs for their tokens.

Log-probabilities are taken at the sampling temperature, both in sampling and in learning. The reference policy is the model
itself with its LoRA adapters disabled, or a frozen copy if the model's own weights are trained.
Names: rgpo.language.policy.token_batch, rgpo.language.policy.packing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from rgpo import distributed
from rgpo.core.rollout import Array, Rollout
from rgpo.core.sequence import RatioLevel
from rgpo.language.policy import packing, sharding
from rgpo.language.policy.generation import (
    Batching,
    Completions,
    Sampling,
    base_model,
    concatenate,
    default_batching,
    generate,
)
from rgpo.language.policy.heads import Parts, find_parts
from rgpo.language.policy.logprobs import Head, token_statistics
from rgpo.language.policy.packed_attention import enable_packing
from rgpo.language.policy.packing import Layout, MicroBatch, StoredDistributions
from rgpo.language.policy.token_batch import (
    CompletionRollout,
    OldLogprobs,
    TokenBatch,
    TokenOutputs,
    sampler_gap,
    to_rows,
    to_tokens,
    token_weights,
)
from rgpo.language.policy.value_head import ValueHead
from rgpo.learning import sharded
from rgpo.learning.samples import OffPolicy, PolicyOutput, PolicyShift, Samples
from rgpo.learning.types import Batch, State, View

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from transformers import PreTrainedModel


class LanguageModel:
    """Policy of a causal LM or of a peft model around one; critic: whether it has a value head."""

    def __init__(self, model: PreTrainedModel, sampling: Sampling, critic: bool) -> None:
        self.model = model
        self.sampling = sampling
        base = base_model(model)
        self.batching: Batching = default_batching(base)  # for generation; Consistency may change it and layout
        self.compute_dtype = model.dtype  # dtype of computations; without adapters the weights are float32
        if base is model:
            model.float()
        model.eval()  # always, because with dropout the ratio of a policy to itself would not be 1
        self.backbone, self.head, num_features = find_parts(base)
        self.layout: Layout = "packed" if enable_packing(base) else "padded"
        self._disable_adapters: Callable[[], AbstractContextManager[None]] | None = None
        if base is model:
            self.reference = copy.deepcopy(model).requires_grad_(False)
            self._reference_parts = find_parts(self.reference)
        else:
            self._disable_adapters = model.disable_adapter
            self._reference_parts = Parts(self.backbone, self.head, num_features)
        self.critic = ValueHead(num_features, model.device, self._read_features) if critic else None
        self._layers: dict[bool, list[FSDPModule]] = {True: [], False: []}  # sharded; keys: is reference?

    flat = None  # no flat parameter vector: the module is not a pure function of one

    def shard(self) -> None:
        """Shard the layers of the policy and of the reference copy over the processes."""
        if distributed.world_size() > 1:
            self._layers[False] = sharding.shard(self.backbone)
            shared = self._disable_adapters is not None
            self._layers[True] = self._layers[False] if shared else sharding.shard(self._reference_parts.decoder)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All trained parameters by name, the value head last."""
        actor = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        critic = {} if self.critic is None else dict(self.critic.linear.named_parameters(prefix="value_head"))
        return actor | critic

    def parameters(self) -> list[nn.Parameter]:
        """All trained parameters, the value head last."""
        return list(self.named_parameters().values())

    @property
    def num_actor_parameters(self) -> int:
        """Number of trained parameters except the value head's."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def generate(self, prompts: Sequence[Sequence[int]], generator: torch.Generator, reference: bool = False) -> Completions:
        """One completion per prompt, sampled from the policy or from the reference."""
        sampling = self.sampling
        model = self.reference if reference and self._disable_adapters is None else self.model
        with self._without_adapters(reference), sharding.gathered(self._layers[reference]), self.precision():
            mine = generate(
                model,
                prompts,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                stop=sampling.stop,
                pad_id=sampling.pad_id,
                generator=generator,
                rows=distributed.local_slice(prompts),
                batching=self.batching,
            )
        return concatenate(distributed.all_gather(mine), sampling.pad_id)

    def _without_adapters(self, reference: bool) -> AbstractContextManager[None]:
        return self._disable_adapters() if reference and self._disable_adapters else nullcontext()

    def precision(self) -> AbstractContextManager[None]:
        """Context for forward passes: autocast if the trained weights are float32 and the model's dtype is not."""
        mixed = self._disable_adapters is None and self.compute_dtype != torch.float32
        return torch.autocast(self.model.device.type, self.compute_dtype) if mixed else nullcontext()

    def forward(
        self, view: View, *, flat: Tensor | None = None, kl: bool = False, entropy: bool = True, value: bool = True
    ) -> PolicyOutput:
        """Log-probabilities, entropies and values (n,) of a micro-batch's tokens, and KL(old || new) (m,) at the stored ones."""
        assert isinstance(view, MicroBatch) and flat is None
        out = self._outputs(view)
        return PolicyOutput(
            logp=out.logp_n,
            entropy=out.entropy_n,
            value=None if self.critic is None or not value else self.critic(out.hidden_nD).float(),
            kl_old=self._stored_kl(view, out.hidden_nD)[1] if kl else None,
        )

    def _outputs(self, view: MicroBatch) -> TokenOutputs:
        hidden_nD = self._hidden(self.backbone, view)
        return TokenOutputs(
            *token_statistics(hidden_nD, self.head, view.targets_n, temperature=self.sampling.temperature), hidden_nD
        )

    def _hidden(self, backbone: PreTrainedModel, view: MicroBatch) -> Tensor:
        """Hidden states (n, D) from which a micro-batch's tokens are predicted."""
        with self.precision():
            out = backbone(input_ids=view.input_ids_UW, **packing.layout_inputs(self.layout, view, backbone))
        return view.predicting(out.last_hidden_state if self._disable_adapters else out.last_hidden_state.float())

    def _stored_kl(self, view: MicroBatch, hidden_nD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For the micro-batch's m stored tokens: indices among the M, KL(old || new) (m,), and log pi_new (m, V)."""
        assert view.stored is not None
        among = torch.isin(view.tokens_n, view.stored.tokens_M)
        at, held = view.stored.locate(view.tokens_n[among])
        new, old = self._log_softmax(hidden_nD[among], self.head), view.stored.logp_old_KV[held]
        return at, (old.exp() * (old - new)).sum(-1), new

    def _reference(self, view: MicroBatch) -> tuple[Tensor, Tensor, Head]:
        """The reference's log-probabilities (n,) and hidden states (n, D) for a micro-batch, and its head."""
        backbone, head, _ = self._reference_parts
        with self._without_adapters(reference=True):
            hidden_nD = self._hidden(backbone, view)
            statistics = token_statistics(hidden_nD, head, view.targets_n, temperature=self.sampling.temperature)
        return statistics.logp_N.float(), hidden_nD, head

    def _log_softmax(self, hidden_nD: Tensor, head: Head) -> Tensor:
        """Log-probabilities (n, V) float32 over the whole vocabulary."""
        return torch.log_softmax(head(hidden_nD) / self.sampling.temperature, -1, dtype=torch.float32)

    @torch.no_grad()
    def compute_old_logprobs(self, completions: Completions, num_minibatches: int, rng: np.random.Generator) -> OldLogprobs:
        """Split completions into minibatches and compute logp_old, logp_ref, values and the stored distributions.

        Forward passes consist of the same completions here and in learning, so that the ratio is exactly 1 before the first step.
        """
        parts = np.split(rng.permutation(len(completions.sequence_BS)), num_minibatches)
        minibatches = self._split(completions, parts)
        num_tokens = int(completions.completion_mask_BT.sum())
        count = min(num_tokens, self.sampling.num_kl_tokens)
        device = completions.sequence_BS.device
        chosen = torch.from_numpy(np.sort(rng.choice(num_tokens, count, replace=False))).to(device)
        logp_old, logp_ref, value = torch.zeros(3, num_tokens, device=device)
        tables: list[tuple[Tensor, Tensor, Tensor]] = []
        for view in self._local(completions, minibatches):
            out = self._outputs(view)
            logp_old[view.tokens_n] = out.logp_n.float()
            if self.critic is not None:
                value[view.tokens_n] = self.critic(out.hidden_nD).float()
            among = torch.isin(view.tokens_n, chosen)
            logp_ref[view.tokens_n], hidden, head = self._reference(view)
            with self._without_adapters(reference=True):  # the head, too, may have an adapter
                ref_table = self._log_softmax(hidden[among], head)
            tables.append((view.tokens_n[among], self._log_softmax(out.hidden_nD[among], self.head), ref_table))
        tokens, old_table, ref_table = (torch.cat(column) for column in zip(*tables, strict=True))
        order = tokens.argsort()
        numbers = distributed.all_reduce_sum(torch.stack([logp_old, logp_ref, value]))
        stored = StoredDistributions(chosen, tokens[order], old_table[order], ref_table[order])
        return OldLogprobs(minibatches, numbers[0], numbers[1], numbers[2], stored)

    @torch.no_grad()
    def completion_kl(self, completions: Completions) -> Array:
        """log pi(y)/pi_ref(y) (B,) of completions sampled from the policy: the k1 estimate, nats per completion."""
        gap_N = torch.zeros(int(completions.completion_mask_BT.sum()), device=completions.sequence_BS.device)
        for view in self._local(completions, self._split(completions, [np.arange(len(completions.sequence_BS))])):
            gap_N[view.tokens_n] = self._outputs(view).logp_n.float() - self._reference(view)[0]
        total: Array = to_rows(distributed.all_reduce_sum(gap_N).double(), completions).sum(-1).cpu().numpy()
        return total

    def _split(self, completions: Completions, parts: Iterable[Array]) -> list[list[Tensor]]:
        """Split each part into micro-batches, given as indices of completions (b,)."""
        rows = packing.assign_rows(completions, self.layout == "packed")
        return [packing.group_by_prompt(part, completions, rows, self.sampling.micro_batch_size) for part in parts]

    def _micro_batches(
        self, completions: Completions, minibatches: list[list[Tensor]], stored: StoredDistributions | None = None
    ) -> list[list[MicroBatch]]:
        """The micro-batches with the given completions, per minibatch."""
        packed = self.layout == "packed"
        rows = packing.assign_rows(completions, packed)
        return [
            [packing.make_micro_batch(completions, index.to(rows.device), rows, packed)._replace(stored=stored) for index in part]
            for part in minibatches
        ]

    def _local(self, completions: Completions, minibatches: list[list[Tensor]]) -> Iterator[MicroBatch]:
        for part in self._micro_batches(completions, minibatches):
            yield from packing.local_micro_batches(part)

    def make_batch(self, rollout: Rollout, advantage: Array, value_target: Array) -> TokenBatch:
        """The tokens of a rollout as a batch; advantage and value_target (T, B)."""
        assert isinstance(rollout, CompletionRollout)
        completions, old, sampling = rollout.completions, rollout.old, self.sampling
        max_kl = sampling.correction.max_kl
        samples = Samples(
            old.logp_old_N,
            old.logp_ref_N,
            to_tokens(advantage, completions),
            to_tokens(value_target, completions),
            old.value_N,
            token_weights(completions, old.minibatches, sampling),
            rollout.correction_N,
            ratio=RatioLevel(sampling.ratio, sampling.ratio_clip),
            off_policy=None if max_kl is None else OffPolicy(sampler_gap(old.logp_old_N, completions), max_kl),
        )
        micro_batches = self._micro_batches(completions, old.minibatches, old.stored)
        whole = sampling.ratio != "token" or max_kl is not None
        return TokenBatch(completions, micro_batches, old.stored, whole, samples)

    def subset(self, batch: Batch, index: Array) -> TokenBatch:
        """The completions with the given indices (b,) as a batch with one minibatch."""
        assert isinstance(batch, TokenBatch)
        minibatches = self._split(batch.completions, [index])
        weight = token_weights(batch.completions, minibatches, self.sampling)
        micro_batches = self._micro_batches(batch.completions, minibatches, batch.stored)
        samples = batch.samples._replace(weight=weight)
        return TokenBatch(batch.completions, micro_batches, batch.stored, batch.sequence_ratio, samples)

    @torch.no_grad()
    def measure_shift(self, batch: Batch) -> PolicyShift:
        """Compare the current policy with the old one, and with the reference at the stored tokens."""
        assert isinstance(batch, TokenBatch)
        logp_old, level = batch.samples.logp_old, batch.samples.ratio or RatioLevel("token")
        log_ratio, entropy, seen, seen_old = torch.zeros(4, len(logp_old), device=logp_old.device)
        kl_old, kl_ref = torch.zeros(2, batch.num_kl, device=log_ratio.device)
        for view in (view for minibatch in batch.minibatches() for view in minibatch.views):
            assert isinstance(view, MicroBatch) and view.stored is not None
            out = self._outputs(view)
            old = logp_old[view.tokens_n]
            d = out.logp_n.float() - old
            log_ratio[view.tokens_n], entropy[view.tokens_n] = d, out.entropy_n.float()
            seen[view.tokens_n] = level(d, batch.samples.advantage[view.tokens_n], view.live_bt)
            seen_old[view.tokens_n] = level.of_sequence(old, view.live_bt)
            at, kl, new = self._stored_kl(view, out.hidden_nD)
            held = torch.searchsorted(view.stored.tokens_K, view.stored.tokens_M[at])
            kl_old[at] = kl
            kl_ref[at] = (new.exp() * (new - view.stored.logp_ref_KV[held])).sum(-1)
        return PolicyShift(*(distributed.all_reduce_sum(x.cpu()) for x in (log_ratio, kl_old, entropy, seen, kl_ref, seen_old)))

    def _read_features(self, batch: Batch) -> Tensor:
        """Hidden states (N, D) from which the batch's tokens are predicted."""
        views = [cast(MicroBatch, view) for minibatch in batch.minibatches() for view in minibatch.views]
        hidden = [self._hidden(self.backbone, view) for view in views]
        table = hidden[0].new_zeros(len(batch.samples.logp_old), hidden[0].shape[1])
        table[torch.cat([view.tokens_n for view in views])] = torch.cat(hidden)
        return distributed.all_reduce_sum(table)

    def state_dict(self) -> State:
        """All trained parameters by name."""
        return {name: sharded.for_file(p) for name, p in self.named_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        """Copy the tensors of ``state_dict`` in place."""
        for name, p in self.named_parameters().items():
            p.copy_(sharded.fit(cast(Tensor, state[name]), p))
