"""How far what a language model says in company is from what it says of each sequence alone."""

from __future__ import annotations

import inspect
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents import PPO
from agents.policy import TransformerPolicy
from agents.sampling import collect
from tests.helpers.tiny_models import VOCABULARY
from textenv import get_mdp
from textenv.data import WordTokenizer

PROMPTS = ["w3 w4 w5", "w6", "w7 w8"]
HORIZON = 12


def alone(model: Any, ids: list[int]) -> Any:
    """The model's output for one sequence, without padding, batch and cache."""
    cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return model(input_ids=torch.tensor([ids], device=model.device), **cache)


def log_probs_alone(model: Any, ids: list[int]) -> Tensor:
    """log pi(.|s) after each token of a sequence, [L, V]."""
    with torch.no_grad():
        log_probs: Tensor = alone(model, ids).logits[0].double().log_softmax(dim=-1)
    return log_probs


def environment(model: Any, num_envs: int = 3, max_new_tokens: int = HORIZON) -> Any:
    """Text-v0 with a model of `VOCABULARY` tokens as reference."""
    return gym.make_vec(
        "textenv/Text-v0",
        num_envs=num_envs,
        tokenizer=WordTokenizer([f"w{i}" for i in range(1, VOCABULARY)]),
        prompts=PROMPTS,
        reference=model,
        reward=lambda prompts, completions, **_: [float(len(completion)) for completion in completions],
        max_new_tokens=max_new_tokens,
        kl_coef=1.0,
        eos_token_id=0,
    )


def stepping_error(envs: Any, model: Any, steps: int = 30) -> float:
    """The largest error of log pi_ref while rows end, and begin anew beside others that go on."""
    rng, worst = np.random.default_rng(0), 0.0
    observations, _ = envs.reset(seed=0)
    ended = np.zeros(envs.num_envs, dtype=np.bool_)
    for _ in range(steps):
        actions = rng.integers(1, VOCABULARY, envs.num_envs)
        actions[rng.random(envs.num_envs) < 0.15] = 0
        before = observations
        observations, _, terminated, _, info = envs.step(actions)
        for row in np.flatnonzero(~ended):
            ids = before["input_ids"][row][before["attention_mask"][row] == 1].tolist()
            expected = float(log_probs_alone(model, ids)[-1, actions[row]])
            worst = max(worst, abs(float(info["ref_log_prob"][row]) - expected))
        ended = terminated
    return worst


def tokens_per_second(model: Any, completions: int = 32) -> float:
    """The rate at which `collect` samples completions, their rewards and log pi_ref included."""
    envs = environment(model)
    policy = TransformerPolicy.for_env(envs)
    generator = torch.Generator().manual_seed(0)
    collect(envs, policy, completions, generator=generator)
    start = time.perf_counter()
    tokens = collect(envs, policy, completions, generator=generator).num_sampled
    return float(tokens) / (time.perf_counter() - start)


def errors(model: Any) -> dict[str, float]:
    """The largest error of stepping, of what `collect` returns, and of what an update computes, by name."""
    envs = environment(model)
    found = {"stepping": stepping_error(envs, model)}
    policy = TransformerPolicy.for_env(envs)
    with torch.no_grad():
        policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    rollout = collect(envs, policy, 6, generator=torch.Generator().manual_seed(0))
    inputs = (rollout.input_ids, rollout.attention_mask, rollout.tokens.shape[1])
    evaluated = policy.evaluate_actions(*inputs)
    measured = {
        "sampled": rollout.log_probs,
        "reference": rollout.ref_log_probs,
        "values": rollout.values,
        "evaluated": evaluated.log_probs,
        "evaluated values": evaluated.values,
        "values alone": policy.values(*inputs),
    }
    tokenizer, mask = get_mdp(envs).tokenizer, rollout.mask
    for row in range(len(mask)):
        prompt, tokens = tokenizer.encode(PROMPTS[int(rollout.prompt[row])]), rollout.tokens[row][mask[row]]
        states = slice(len(prompt) - 1, len(prompt) - 1 + len(tokens))
        ids = prompt + tokens.tolist()
        log_probs = log_probs_alone(model, ids)[states].gather(1, tokens[:, None]).squeeze(1)
        with torch.no_grad():
            values = policy.values_from_hidden(alone(policy.trunk, ids).last_hidden_state[:, states], len(tokens))[0]
        for name, tensor in measured.items():
            expected = values if "values" in name else log_probs
            error = float((tensor[row][mask[row]].detach() - expected).abs().max())
            found[name] = max(found.get(name, 0.0), error)
    PPO(policy, envs, n_episodes=8, n_epochs=1, seed=0).learn(60)
    assert all(bool(parameter.isfinite().all()) for parameter in policy.parameters())
    return found
