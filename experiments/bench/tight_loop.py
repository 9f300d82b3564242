"""The tight loop: PPO on a GPT-2, written by hand for one special case, as the lower bound of the time that it takes.

Prompts of one length, no EOS, no masks, no padding, no checks; attention over a preallocated KV cache, fused kernels
where PyTorch has them. The time that an agent of `agents` takes beyond this is the cost of generality. The loop uses
the weights of a transformers model, so that tests can compare both updates number by number.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Batch(NamedTuple):
    """B prompts of W tokens with their completions: ids [B, W + T]; log pi, log pi_ref, V and r, each [B, T]."""

    ids: Tensor
    log_probs: Tensor
    ref_log_probs: Tensor
    values: Tensor
    rewards: Tensor


class Cache:
    """The KV cache: keys and values of all layers, [layers, B, heads, L, d]; the first `length` columns are filled."""

    def __init__(self, trunk: Any, rows: int, width: int) -> None:
        heads = trunk.config.n_head
        shape = (trunk.config.n_layer, rows, heads, width, trunk.config.n_embd // heads)
        self.keys, self.values, self.length = torch.empty(shape), torch.empty(shape), 0


def hidden_states(trunk: Any, ids: Tensor, cache: Cache | None = None) -> Tensor:
    """Hidden states of GPT-2's trunk for `ids` [B, n], the tokens that follow those in the cache: [B, n, H]."""
    rows, columns = ids.shape
    start = 0 if cache is None else cache.length
    stop = start + columns
    x = F.embedding(ids, trunk.wte.weight) + trunk.wpe.weight[start:stop]
    size = x.shape[-1]
    for layer, block in enumerate(trunk.h):
        normed = F.layer_norm(x, (size,), block.ln_1.weight, block.ln_1.bias, block.ln_1.eps)
        qkv = _linear(normed, block.attn.c_attn).view(rows, columns, 3, trunk.config.n_head, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache.keys[layer, :, :, start:stop], cache.values[layer, :, :, start:stop] = key, value
            key, value = cache.keys[layer, :, :, :stop], cache.values[layer, :, :, :stop]
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=columns > 1)
        x = x + _linear(attended.transpose(1, 2).reshape(rows, columns, size), block.attn.c_proj)
        normed = F.layer_norm(x, (size,), block.ln_2.weight, block.ln_2.bias, block.ln_2.eps)
        x = x + _linear(F.gelu(_linear(normed, block.mlp.c_fc), approximate="tanh"), block.mlp.c_proj)
    if cache is not None:
        cache.length = stop
    return F.layer_norm(x, (size,), trunk.ln_f.weight, trunk.ln_f.bias, trunk.ln_f.eps)


def _linear(x: Tensor, layer: Any) -> Tensor:
    return torch.addmm(layer.bias, x.reshape(-1, x.shape[-1]), layer.weight).view(*x.shape[:-1], -1)


def token_log_probs(trunk: Any, hidden: Tensor, tokens: Tensor) -> Tensor:
    """log pi of `tokens` [B, T], given the hidden states [B, T, H] before them."""
    logits = F.linear(hidden, trunk.wte.weight)
    return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)


@torch.no_grad()
def sample_tight(trunk: Any, prompts: Tensor, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Samples `tokens` tokens after prompts [B, W]: ids [B, W + T], log pi [B, T], hidden states [B, T, H]."""
    rows, width = prompts.shape
    cache = Cache(trunk, rows, width + tokens)
    ids = torch.cat([prompts, prompts.new_zeros(rows, tokens)], dim=1)
    log_probs, hidden = torch.empty(rows, tokens), torch.empty(rows, tokens, trunk.config.n_embd)
    last = hidden_states(trunk, prompts, cache)[:, -1]
    for t in range(tokens):
        probs = F.linear(last, trunk.wte.weight).softmax(dim=1)
        cdf = probs.cumsum(dim=1, dtype=torch.float64)
        uniform = torch.rand(rows, 1, generator=generator, dtype=torch.float64)
        token = torch.searchsorted(cdf, uniform * cdf[:, -1:], right=True)
        ids[:, width + t], log_probs[:, t], hidden[:, t] = token[:, 0], probs.gather(1, token)[:, 0].log(), last
        if t + 1 < tokens:
            last = hidden_states(trunk, token, cache)[:, 0]
    return ids, log_probs, hidden


class TightPPO:
    """PPO with the defaults of `agents.PPO`: sums over a completion, no whitening, MSE on the reward to go, Adam."""

    def __init__(
        self, model: Any, separate_critic: bool, reward: Callable[[Tensor], Tensor], kl_coef: float, seed: int = 0
    ) -> None:
        self.trunk, self.reference = model.transformer, copy.deepcopy(model.transformer).requires_grad_(False)
        self.critic = copy.deepcopy(self.trunk) if separate_critic else None
        self.head = torch.zeros(self.trunk.config.n_embd, requires_grad=True)
        self.bias = torch.zeros((), requires_grad=True)
        trunks = [self.trunk] if self.critic is None else [self.trunk, self.critic]
        self.trained = [*(p for trunk in trunks for p in trunk.parameters()), self.head, self.bias]
        self.optimizer = torch.optim.Adam(self.trained, lr=3e-4, eps=1e-5)
        self.reward, self.kl_coef = reward, kl_coef
        self.generator = torch.Generator().manual_seed(seed)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Any:
        """Adds the seconds of the block to `seconds[name]`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def values(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """V before each of the last T tokens, [B, T], by the policy's hidden states [B, T, H] or a separate critic."""
        if self.critic is not None:
            hidden = hidden_states(self.critic, ids[:, :-1])[:, -hidden.shape[1] :]
        return hidden @ self.head + self.bias

    def collect(self, prompts: Tensor, tokens: int) -> Batch:
        """Samples and scores one completion per prompt."""
        with self.phase("generate"):
            ids, log_probs, hidden = sample_tight(self.trunk, prompts, tokens, self.generator)
        with self.phase("score"), torch.no_grad():
            completions = ids[:, -tokens:]
            hidden_ref = hidden_states(self.reference, ids[:, :-1])[:, -tokens:]
            ref_log_probs = token_log_probs(self.reference, hidden_ref, completions)
            rewards = -self.kl_coef * (log_probs - ref_log_probs)
            rewards[:, -1] += self.reward(completions)
            values = self.values(hidden, ids)
        return Batch(ids, log_probs, ref_log_probs, values, rewards)

    def losses(self, batch: Batch, advantages: Tensor, returns: Tensor) -> Iterator[Tensor]:
        """Yields the clipped surrogate plus the value error, or first one and then the other; sums over a completion.

        A separate critic's loss comes second, so that the policy's graph is freed before the critic's is built.
        """
        tokens = batch.rewards.shape[1]
        with self.phase("forward"):
            hidden = hidden_states(self.trunk, batch.ids[:, :-1])[:, -tokens:]
            log_probs = token_log_probs(self.trunk, hidden, batch.ids[:, -tokens:])
            ratio = (log_probs - batch.log_probs).exp()
            surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            loss = -surrogate.sum() / len(batch.ids)
            if self.critic is None:
                loss = loss + self.value_loss(hidden, batch, returns)
        yield loss
        if self.critic is not None:
            with self.phase("forward"):
                loss = self.value_loss(hidden, batch, returns)
            yield loss

    def value_loss(self, hidden: Tensor, batch: Batch, returns: Tensor) -> Tensor:
        """The value loss: vf_coef = 0.1 times half the squared error."""
        return 0.05 * ((self.values(hidden, batch.ids) - returns) ** 2).sum() / len(batch.ids)

    def train(self, batch: Batch, n_epochs: int = 4, gae_lambda: float = 0.95) -> None:
        """Takes `n_epochs` steps, each on the whole batch."""
        with self.phase("other"):
            deltas = batch.rewards - batch.values
            deltas[:, :-1] += batch.values[:, 1:]
            advantages = torch.empty_like(deltas)
            following = torch.zeros(len(deltas))
            for t in reversed(range(deltas.shape[1])):
                advantages[:, t] = following = deltas[:, t] + gae_lambda * following
            returns = batch.rewards.flip(1).cumsum(dim=1).flip(1)
        for _ in range(n_epochs):
            with self.phase("forward"):  # counted there for the agents, too
                self.optimizer.zero_grad()
            for loss in self.losses(batch, advantages, returns):
                with self.phase("backward"):
                    loss.backward()  # type: ignore[no-untyped-call]
            with self.phase("step"):
                torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
                self.optimizer.step()
