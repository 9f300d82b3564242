"""The third sampler: a step is recorded once, and played back for each token.

A small model's step is hundreds of operations, each of which is done before Python has asked for the next. A recording
asks for all of them at once: a CUDA graph on a GPU, kernels of torch.compile on a CPU (a C++ compiler, 5 to 15 seconds
when it is made). For that every tensor keeps its place and its shape: the KV cache is as wide as the texts may become,
and texts that have ended go on beside the others. `agents.sampling.write` leaves them out, and is the faster one where
most texts end long before the longest.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from agents.policy import TransformerPolicy, check_compiler
from agents.sampling.loop import Generation, sample
from textenv import TextMDP, TextState
from textenv.lm import cache_argument, pack_left, position_ids

LOOK_UP = 16  # steps of a GPU between two looks at whether any text goes on: a look waits for it


class GraphSampler:
    """Samples like `write`, from the same distribution: `agent.sampler = GraphSampler()`.

    What it is first asked for is recorded: so many texts, of such lengths. Weights that are trained in place are read
    as they are; for another policy or task, or weights elsewhere, it is recorded anew. V, where it is a head on the
    policy's trunk, is read on the way, so the parallel pass for it is not needed.

    All else is left to `write`: another number of texts; a reference that forbids tokens, and is asked for them on the
    host; a model whose cache is more than keys and values of all columns (windows that slide), or of which transformers
    says that it cannot be compiled.

    Raises:
        ValueError: the policy is on a CPU, and there is no C++ compiler; or torch cannot record the model.
    """

    def __init__(self) -> None:
        self.tape: CapturedStep | None = None

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self, policy: TransformerPolicy, mdp: TextMDP, texts: TextState, generator: torch.Generator
    ) -> Generation:
        steps = mdp.max_new_tokens - int(texts.time.min())
        begun = int(texts.attention_mask.sum(axis=1).max())
        if not mdp.full_support or not can_capture(policy.model):
            return sample(policy, mdp, texts, generator)
        if self.tape is None or not self.tape.is_of(policy, mdp):
            self.tape = None  # two caches at once might not fit
            gc.collect()  # what was compiled holds itself, and the cache
            self.tape = CapturedStep(policy, mdp, texts, max(mdp.prompt_width + mdp.max_new_tokens, begun + steps))
        if len(texts) != self.tape.rows or begun + steps > self.tape.length:
            return sample(policy, mdp, texts, generator)
        return self.tape.play(texts, steps, generator)


class CapturedStep:
    """The tensors that a step reads and writes, each in its place, and the step.

    Args:
        policy: writes.
        process: what is written.
        texts: [B] beginnings, to try the step on.
        length: columns of the KV cache.

    Raises:
        ValueError: see `GraphSampler`.
    """

    def __init__(self, policy: TransformerPolicy, mdp: TextMDP, texts: TextState, length: int) -> None:
        self.policy, self.mdp, self.recorded = policy, mdp, capture_key(policy)
        self.rows, self.length = len(texts), length
        device, width, horizon = policy.device, mdp.prompt_width, mdp.max_new_tokens
        self.cache: Any = StaticCache(config=policy.model.config, max_cache_len=length)
        # as in `write`, texts that have ended go on writing in one column more than there are tokens
        self.ids = torch.zeros(self.rows, width + horizon + 1, dtype=torch.long, device=device)
        self.attention = torch.zeros(self.rows, width + horizon + 1, dtype=torch.int8, device=device)
        self.log_probs, self.values = torch.zeros(2, self.rows, horizon + 1, device=device)
        self.is_eos = torch.as_tensor(mdp.is_eos, device=device)
        self.time, self.token, self.position = torch.zeros(3, self.rows, dtype=torch.long, device=device)
        self.seen = torch.zeros(self.rows, length, dtype=torch.long, device=device)  # which columns of the cache
        self.column = torch.zeros(1, dtype=torch.long, device=device)  # the next of them
        # what the generator draws, between the steps: a recording would keep the generator that it was made with
        self.uniform = torch.zeros(self.rows, 1, dtype=torch.float64, device=device)
        self.looks = LOOK_UP if device.type == "cuda" else 1
        self._begin(texts)
        self._step()  # the cache is made when it is first written to
        self.step: Callable[[], Any] = self._cuda_graph(texts) if device.type == "cuda" else self._compiled(texts)

    def is_of(self, policy: TransformerPolicy, mdp: TextMDP) -> bool:
        """Whether it was recorded with these."""
        return self.policy is policy and self.mdp is mdp and self.recorded == capture_key(policy)

    def play(self, texts: TextState, steps: int, generator: torch.Generator) -> Generation:
        """Write until every text has ended, or `steps` tokens, with numbers of `generator`."""
        self._begin(texts)
        for step in range(steps):
            if step and step % self.looks == 0 and not bool((self.time < self.mdp.max_new_tokens).any()):
                break
            self.uniform.uniform_(generator=generator)
            self.step()
        ids, attention, log_probs, values = (
            tensor[:, :-1].clone() for tensor in (self.ids, self.attention, self.log_probs, self.values)
        )
        return Generation(ids, attention, log_probs, values=values if self.policy.critic is None else None)

    def _begin(self, texts: TextState) -> None:
        """Read the beginnings but for their last tokens, which the first step reads."""
        device = self.ids.device
        self.ids.copy_(F.pad(torch.as_tensor(texts.input_ids, device=device), (0, 1)))
        self.attention.copy_(F.pad(torch.as_tensor(texts.attention_mask, device=device), (0, 1)))
        for zero in (self.log_probs, self.values, self.seen):
            zero.zero_()
        self.time.copy_(torch.as_tensor(texts.time, device=device))
        packed, mask = pack_left(self.ids, self.attention)
        self.token.copy_(packed[:, -1])
        before = packed.shape[1] - 1
        self.seen[:, :before] = mask[:, :-1]
        self.column.fill_(before)
        self.position.copy_(mask.sum(dim=1) - 1)
        self.cache.reset()
        if before:
            self.policy.trunk(**self._arguments(packed[:, :-1], position_ids(mask)[:, :-1]))

    def _step(self) -> None:
        """Read the last token of each text, and write the next one."""
        horizon = self.mdp.max_new_tokens
        live = self.time < horizon
        self.seen.index_copy_(1, self.column, live[:, None].long())
        arguments = self._arguments(self.token[:, None], self.position[:, None])
        shared = self.policy.critic is None
        output = self.policy.model(**arguments, logits_to_keep=1, output_hidden_states=shared)
        self.column.add_(1)
        self.position.add_(live)

        token, log_prob = self.policy.sample(output.logits[:, -1], None, self.uniform)
        column = (self.mdp.prompt_width + self.time)[:, None]
        self.ids.scatter_(1, column, token[:, None])
        self.attention.scatter_(1, column, 1)
        self.log_probs.scatter_(1, self.time[:, None], log_prob[:, None])
        if shared:
            self.values.scatter_(
                1, self.time[:, None], self.policy.values_from_hidden(output.hidden_states[-1], 1).float()
            )
        self.time.copy_((self.time + 1).clamp(max=horizon).masked_fill(self.is_eos[token], horizon))
        self.token.copy_(token)

    def _arguments(self, ids: Tensor, positions: Tensor) -> dict[str, Any]:
        """What a model is called with to read `ids` [B, n] into the cache."""
        return {
            "input_ids": ids,
            "attention_mask": self.seen,
            "position_ids": positions,
            "use_cache": True,
            cache_argument(self.policy.model): self.cache,
        }

    def _compiled(self, texts: TextState) -> Callable[[], Any]:
        """The step as kernels of torch.compile; what it was tried on is forgotten by the next `_begin`."""
        check_compiler()
        # a function of its own: torch counts what it has compiled of one, and refuses the ninth
        own = FunctionType(CapturedStep._step.__code__.replace(), globals())
        step: Callable[[Any], Any] = torch.compile(own, fullgraph=True, options={"emulate_precision_casts": True})
        self._begin(texts)
        try:
            step(self)
        except Exception as error:
            name = type(self.policy.model).__name__
            raise ValueError(f"torch cannot record {name}; sample with the loop instead: {error}") from error
        return lambda: step(self)

    def _cuda_graph(self, texts: TextState) -> Callable[[], Any]:
        """The step as a CUDA graph; what it was tried on is forgotten by the next `_begin`."""
        with torch.cuda.device(self.ids.device):
            stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):  # libraries set themselves up in the first steps, which must not be recorded
                    self._begin(texts)
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            self._begin(texts)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
        return graph.replay


def capture_key(policy: TransformerPolicy) -> tuple[Any, ...]:
    """Where the weights lie, and the temperature, which a step takes from Python: with others it is recorded anew."""
    return (policy.temperature, *(parameter.data_ptr() for parameter in policy.parameters()))


def can_capture(model: Any) -> bool:
    """Whether its cache is keys and values of all columns, in their places, and transformers says that it compiles."""
    layers = StaticCache(config=model.config, max_cache_len=1).layers
    return bool(model._can_compile_fullgraph) and all(type(layer) is StaticLayer for layer in layers)
