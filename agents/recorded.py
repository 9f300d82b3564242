"""The third sampler: a step is recorded once, and played back for each token.

A small model's step is hundreds of operations, each of which is done before Python has asked for the next. A recording
asks for all of them at once: a CUDA graph on a GPU; on a CPU kernels that torch.compile makes of what was recorded (a
C++ compiler, 5 to 15 seconds). For that every tensor keeps its place and its shape: the KV cache is as wide as the
texts may become, and texts that have ended go on beside the others, which `agents.sampling.write` leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import StaticCache

from agents.policy import TransformerPolicy, check_compiler
from agents.sampling import Written, new_generator, write
from textenv.kv_reader import cache_argument, pack_left, position_ids
from textenv.process import TextProcess, Texts

LOOK_UP = 16  # steps between two looks at whether any text goes on: a look waits for the device


class RecordedSampler:
    """Samples like `write`, from the same distribution: `agent.sampler = RecordedSampler()`.

    The recording is kept while policy and shapes are the same; weights that are trained in place are read as they are.
    V, where it is a head on the policy's trunk, is read on the way, so the parallel pass for it is not needed.
    Where the reference forbids tokens, and is asked for them on the host, or the model attends to a window that slides
    within the texts, there is nothing to record, and `write` it is.
    """

    def __init__(self) -> None:
        self.tape: Tape | None = None

    @torch.no_grad()
    def __call__(
        self, policy: TransformerPolicy, process: TextProcess, texts: Texts, generator: torch.Generator
    ) -> Written:
        steps = process.max_new_tokens - int(texts.time.min())
        begun = int(texts.attention_mask.sum(axis=1).max())
        length = max(process.prompt_width + process.max_new_tokens, begun + steps)
        window = getattr(policy.model.config.get_text_config(), "sliding_window", None) or length
        if not process.full_support or window < length:
            return write(policy, process, texts, generator)
        if self.tape is None or not self.tape.fits(policy, process, texts, length):
            self.tape = None  # two caches at once might not fit
            self.tape = Tape(policy, process, texts, length)
        return self.tape.play(texts, steps, generator)


class Tape:
    """The tensors that a step reads and writes, each in its place, and the step.

    Args:
        policy: writes.
        process: what is written.
        texts: [B] beginnings, of which only the number counts.
        length: columns of the KV cache.

    Raises:
        ValueError: the policy is on a CPU, and there is no C++ compiler.
    """

    def __init__(self, policy: TransformerPolicy, process: TextProcess, texts: Texts, length: int) -> None:
        self.policy, self.process = policy, process
        self.rows, self.length, self.recorded = len(texts), length, what_is_recorded(policy)
        device, width, horizon = policy.device, process.prompt_width, process.max_new_tokens
        self.cache: Any = StaticCache(config=policy.model.config, max_cache_len=length)
        # as in `write`, texts that have ended go on writing in one column more than there are tokens
        self.ids = torch.zeros(self.rows, width + horizon + 1, dtype=torch.long, device=device)
        self.attention = torch.zeros(self.rows, width + horizon + 1, dtype=torch.int8, device=device)
        self.log_probs, self.values = torch.zeros(2, self.rows, horizon + 1, device=device)
        self.is_eos = torch.as_tensor(process.is_eos, device=device)
        self.time, self.token, self.position = torch.zeros(3, self.rows, dtype=torch.long, device=device)
        self.seen = torch.zeros(self.rows, length, dtype=torch.long, device=device)  # which columns of the cache
        self.column = torch.zeros(1, dtype=torch.long, device=device)  # the next of them
        self.generator = new_generator(device, 0)  # a recording keeps the one that it was made with
        self.step: Callable[[], Any] = self._cuda_graph(texts) if device.type == "cuda" else self._compiled(texts)

    def fits(self, policy: TransformerPolicy, process: TextProcess, texts: Texts, length: int) -> bool:
        """Whether it can be played for these."""
        same = self.policy is policy and self.process is process
        return same and (self.rows, self.length, self.recorded) == (len(texts), length, what_is_recorded(policy))

    def play(self, texts: Texts, steps: int, generator: torch.Generator) -> Written:
        """Write until every text has ended, or `steps` tokens, with numbers of `generator`."""
        self.generator.set_state(generator.get_state())
        self._begin(texts)
        for step in range(1, steps):
            if step % LOOK_UP == 0 and not bool((self.time < self.process.max_new_tokens).any()):
                break
            self.step()
        generator.set_state(self.generator.get_state())
        ids, attention, log_probs, values = (
            tensor[:, :-1].clone() for tensor in (self.ids, self.attention, self.log_probs, self.values)
        )
        return Written(ids, attention, log_probs, values=values if self.policy.critic is None else None)

    def _begin(self, texts: Texts) -> None:
        """Read the beginnings, and write the first token of each."""
        device = self.ids.device
        self.ids.copy_(F.pad(torch.as_tensor(texts.input_ids, device=device), (0, 1)))
        self.attention.copy_(F.pad(torch.as_tensor(texts.attention_mask, device=device), (0, 1)))
        self.log_probs.zero_()
        self.values.zero_()
        self.time.copy_(torch.as_tensor(texts.time, device=device))
        packed, mask = pack_left(self.ids, self.attention)
        self.seen.zero_()
        self.seen[:, : mask.shape[1]] = mask
        self.column.fill_(mask.shape[1])
        self.position.copy_(mask.sum(dim=1))
        self.cache.reset()
        self._write(*self._read(packed, position_ids(mask)))

    def _step(self) -> None:
        """Read the last token of each text, and write the next one."""
        live = self.time < self.process.max_new_tokens
        self.seen.index_copy_(1, self.column, live[:, None].long())
        logits, value = self._read(self.token[:, None], self.position[:, None])
        self.column += 1
        self.position += live
        self._write(logits, value)

    def _read(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """After reading `ids` [B, n] into the cache: logits of the next token, [B, V], and V(s), [B], if at hand."""
        arguments: dict[str, Any] = {cache_argument(self.policy.model): self.cache}
        output = self.policy.model(
            input_ids=ids,
            attention_mask=self.seen,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=self.policy.critic is None,
            **arguments,
        )
        value = None if self.policy.critic is not None else self.policy.values_of(output.hidden_states[-1], 1)[:, 0]
        return output.logits[:, -1], value

    def _write(self, logits: Tensor, value: Tensor | None) -> None:
        token, log_prob = self.policy.draw(logits, None, self.generator)
        column = (self.process.prompt_width + self.time)[:, None]
        self.ids.scatter_(1, column, token[:, None])
        self.attention.scatter_(1, column, 1)
        self.log_probs.scatter_(1, self.time[:, None], log_prob[:, None])
        if value is not None:
            self.values.scatter_(1, self.time[:, None], value[:, None])
        horizon = self.process.max_new_tokens
        self.time.copy_((self.time + 1).clamp(max=horizon).masked_fill(self.is_eos[token], horizon))
        self.token.copy_(token)

    def _compiled(self, texts: Texts) -> Callable[[], Any]:
        """The operations of a step, without the Python that asks for them, by kernels of torch.compile."""
        check_compiler()
        self._begin(texts)
        asked: Callable[[], Any] = torch.compile(make_fx(lambda: self._step())())  # of a method it would want `self`
        return asked

    def _cuda_graph(self, texts: Texts) -> Callable[[], Any]:
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
            graph.register_generator_state(self.generator)
            with torch.cuda.graph(graph):
                self._step()
        return graph.replay


def what_is_recorded(policy: TransformerPolicy) -> tuple[Any, ...]:
    """Where the weights lie, and the one number that a step takes from Python: with others it must be recorded anew."""
    return (policy.temperature, *(parameter.data_ptr() for parameter in policy.parameters()))
