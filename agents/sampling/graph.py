"""The graph sampler: captures a decode step once and replays it for each token.

A decode step of a small model is hundreds of operations, and each finishes before Python has launched the next. A
captured step launches all of them in one call: as a CUDA graph on a GPU, as torch.compile kernels on a CPU (this needs
a C++ compiler, and 5 to 15 seconds to compile). For that, every tensor keeps its address and its shape: the KV cache
has room for the longest sequence, and finished rows are computed until the last row has finished. The loop sampler
(`agents.sampling.loop`) drops finished rows. It is faster where most completions end long before the longest one.
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

from agents.functional import widest_float
from agents.policy import TransformerPolicy, check_compiler
from agents.sampling.loop import Generation, sample
from textenv import TextMDP, TextState
from textenv.lm import cache_argument, pack_left, position_ids, supports_cache

CHECK_INTERVAL = 16  # steps on a GPU between checks for live rows; a check waits for the GPU


class GraphSampler:
    """Samples from the same distribution as the loop sampler: `agent.sampler = GraphSampler()`.

    The first call captures a step for its number of rows and its length. Later calls use the current weights if these
    are updated in place. Another policy, MDP or temperature, or weights at other addresses, cause a new capture. If
    V is a head on the policy's trunk, the step computes it too, so no separate pass is needed.

    The loop sampler serves all other cases:

    - another number of rows, or longer sequences;
    - a reference that masks tokens, since it is evaluated on the host;
    - a model whose cache is more than keys and values of all columns (sliding windows);
    - a model that cannot be compiled according to transformers.

    Raises:
        ValueError: the policy is on a CPU and there is no C++ compiler, or torch cannot compile the step.
    """

    def __init__(self) -> None:
        self.captured: CapturedStep | None = None

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self, policy: TransformerPolicy, mdp: TextMDP, state: TextState, generator: torch.Generator
    ) -> Generation:
        steps = mdp.max_new_tokens - int(state.time.min())
        longest = int(state.attention_mask.sum(axis=1).max())
        if not mdp.full_support or not can_capture(policy.model):
            return sample(policy, mdp, state, generator)
        if self.captured is None or not self.captured.matches(policy, mdp):
            self.captured = None  # memory might not hold two caches
            gc.collect()  # compiled code is in a reference cycle, which holds the cache
            length = max(mdp.prompt_width + mdp.max_new_tokens, longest + steps)
            self.captured = CapturedStep(policy, mdp, state, length)
        if len(state) != self.captured.num_rows or longest + steps > self.captured.length:
            return sample(policy, mdp, state, generator)
        return self.captured.sample(state, steps, generator)


class CapturedStep:
    """A captured decode step, and the tensors that it reads and writes at fixed addresses.

    Args:
        policy: samples.
        mdp: the MDP.
        state: B initial states, on which the step is run while it is captured.
        length: columns of the KV cache.

    Raises:
        ValueError: see `GraphSampler`.
    """

    def __init__(self, policy: TransformerPolicy, mdp: TextMDP, state: TextState, length: int) -> None:
        self.policy, self.mdp, self.key = policy, mdp, capture_key(policy)
        self.num_rows, self.length = len(state), length
        device, width, horizon = policy.device, mdp.prompt_width, mdp.max_new_tokens
        self.cache: Any = StaticCache(config=policy.model.config, max_cache_len=length)
        # as in the loop sampler, one extra column takes the tokens of finished rows
        self.ids = torch.zeros(self.num_rows, width + horizon + 1, dtype=torch.long, device=device)
        self.attention = torch.zeros(self.num_rows, width + horizon + 1, dtype=torch.int8, device=device)
        self.log_probs, self.values = torch.zeros(2, self.num_rows, horizon + 1, device=device)
        self.is_eos = torch.as_tensor(mdp.is_eos, device=device)
        self.time, self.token, self.position = torch.zeros(3, self.num_rows, dtype=torch.long, device=device)
        # which columns of the cache are valid, and the next column
        self.cache_mask = torch.zeros(self.num_rows, length, dtype=torch.long, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        # random numbers are drawn between the steps: a capture would be tied to the generator it was made with
        self.uniform = torch.zeros(self.num_rows, 1, dtype=widest_float(device), device=device)
        self.check_interval = CHECK_INTERVAL if device.type == "cuda" else 1
        self._prefill(state)
        self._step()  # the cache allocates its tensors on its first update
        self.step: Callable[[], Any] = self._cuda_graph(state) if device.type == "cuda" else self._compiled(state)

    def matches(self, policy: TransformerPolicy, mdp: TextMDP) -> bool:
        """Whether it was captured for this policy, as it is now, and this MDP."""
        return self.policy is policy and self.mdp is mdp and self.key == capture_key(policy)

    def sample(self, state: TextState, steps: int, generator: torch.Generator) -> Generation:
        """Samples until all completions have ended, at most `steps` tokens."""
        self._prefill(state)
        for step in range(steps):
            if step and step % self.check_interval == 0 and not bool((self.time < self.mdp.max_new_tokens).any()):
                break
            self.uniform.uniform_(generator=generator)
            self.step()
        ids, attention, log_probs, values = (
            tensor[:, :-1].clone() for tensor in (self.ids, self.attention, self.log_probs, self.values)
        )
        return Generation(ids, attention, log_probs, values=values if self.policy.critic is None else None)

    def _prefill(self, state: TextState) -> None:
        """Fills the KV cache with all tokens of the initial states but the last ones, which the first step takes."""
        device = self.ids.device
        self.ids.copy_(F.pad(torch.as_tensor(state.input_ids, device=device), (0, 1)))
        self.attention.copy_(F.pad(torch.as_tensor(state.attention_mask, device=device), (0, 1)))
        for tensor in (self.log_probs, self.values, self.cache_mask):
            tensor.zero_()
        self.time.copy_(torch.as_tensor(state.time, device=device))
        packed, mask = pack_left(self.ids, self.attention)
        self.token.copy_(packed[:, -1])
        before = packed.shape[1] - 1
        self.cache_mask[:, :before] = mask[:, :-1]
        self.column.fill_(before)
        self.position.copy_(mask.sum(dim=1) - 1)
        self.cache.reset()
        if before:
            self.policy.trunk(**self._arguments(packed[:, :-1], position_ids(mask)[:, :-1]))

    def _step(self) -> None:
        """Decodes the last token of each row and samples the next one."""
        horizon = self.mdp.max_new_tokens
        live = self.time < horizon
        self.cache_mask.index_copy_(1, self.column, live[:, None].long())
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

    def _arguments(self, ids: Tensor, positions: Tensor) -> dict[str, object]:
        """The model's arguments to add `ids` [B, n] to the cache."""
        return {
            "input_ids": ids,
            "attention_mask": self.cache_mask,
            "position_ids": positions,
            "use_cache": True,
            cache_argument(self.policy.model): self.cache,
        }

    def _compiled(self, state: TextState) -> Callable[[], Any]:
        """The step as torch.compile kernels; the next `_prefill` discards what this run sampled."""
        check_compiler()
        # a new function: torch counts the compilations of a function, and refuses the ninth
        own = FunctionType(CapturedStep._step.__code__.replace(), globals())
        step: Callable[[Any], Any] = torch.compile(own, fullgraph=True, options={"emulate_precision_casts": True})
        self._prefill(state)
        try:
            step(self)
        except Exception as error:
            name = type(self.policy.model).__name__
            raise ValueError(f"torch cannot compile {name}; sample with the loop instead: {error}") from error
        return lambda: step(self)

    def _cuda_graph(self, state: TextState) -> Callable[[], Any]:
        """The step as a CUDA graph; the next `_prefill` discards what these runs sampled."""
        with torch.cuda.device(self.ids.device):
            stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):  # warm-up: libraries initialise in the first steps, which must not be captured
                    self._prefill(state)
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            self._prefill(state)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
        return graph.replay


def capture_key(policy: TransformerPolicy) -> tuple[object, ...]:
    """What a captured step depends on: the addresses of the weights, and the temperature, which is a Python number."""
    return (policy.temperature, *(parameter.data_ptr() for parameter in policy.parameters()))


def can_capture(model: Any) -> bool:
    """Whether the cache may be keys and values of all columns, and transformers declares the model compilable."""
    if not supports_cache(model) or not model._can_compile_fullgraph:
        return False
    return all(type(layer) is StaticLayer for layer in StaticCache(config=model.config, max_cache_len=1).layers)
