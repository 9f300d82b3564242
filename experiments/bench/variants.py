"""The variants of this project, the tight loop and transformers' `generate`; each call runs one round."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

import textenv
from agents import GRPO, PPO, RLOO
from agents.policy import TransformerPolicy
from agents.sampling import GraphSampler, generate_sampler, new_generator, sample, sample_prompts
from experiments.bench.protocol import Round, RoundResult, finish
from experiments.bench.tight_loop import TightPPO, sample_tight
from experiments.bench.work import Work, distinct
from textenv import get_mdp


def environment(work: Work) -> Any:
    """The work as an environment without EOS: every completion has `work.tokens` tokens."""
    env = gym.make(
        "textenv/Text-v0",
        tokenizer=textenv.WordTokenizer(work.words),
        prompts=work.prompts(),
        reference=work.model(),
        reward=distinct,
        max_new_tokens=work.tokens,
        kl_coef=0.05,
        eos_token_id=[],
    )
    reference: Any = get_mdp(env).reference
    reference.model.to(work.device, getattr(torch, work.dtype))
    return env


def update(
    work: Work,
    agent_class: Any,
    separate_critic: bool = False,
    compiled: bool = False,
    graph: bool = False,
    medium: bool = False,
    **settings: Any,
) -> Round:
    """An update of an agent of `agents`. The largest ratio of the first minibatch is measured before the rounds.

    `medium` stands for `--float32-matmul-precision medium --attn-implementation eager`, for the whole process.
    """
    env = environment(work)
    if medium:
        torch.set_float32_matmul_precision("medium")
        reference: Any = get_mdp(env).reference
        reference.model.set_attn_implementation("eager")
    policy = TransformerPolicy.for_env(env, separate_critic=separate_critic).to(work.device)
    if compiled:
        policy.compile()
    settings |= {"learning_rate": 3e-4}  # the peers' too
    settings |= {"n_episodes": work.completions, "n_epochs": work.epochs, "micro_batch_size": work.micro_batch}
    agent = agent_class(policy, env, seed=0, **settings)
    if graph:
        agent.sampler = GraphSampler()
    return rounds_of(agent, {"largest_ratio": largest_ratio(agent, work.micro_batch)}, work.device)


def kl_in_loss(work: Work, kl_loss: str) -> Round:
    """An update of GRPO with the KL in its loss."""
    return update(work, GRPO, num_generations=work.generations, kl_in="loss", kl_loss=kl_loss)


def largest_ratio(agent: Any, count: int | None = None) -> float:
    """The largest max(rho, 1 / rho) before the first step of the optimizer: 1 up to rounding.

    rho_t = pi(a_t|s_t) in the update's forward pass over pi(a_t|s_t) when it was sampled, over the tokens of `count`
    completions, or of all.
    """
    rollout = agent.collect()
    # indexed like a minibatch, so that what is compiled for its layout is reused
    rollout = rollout[torch.arange(min(count or len(rollout), len(rollout)))]
    evaluated = agent.evaluate_actions(rollout, values=agent.needs_values and agent.policy.critic is None)
    log_ratio = (evaluated.log_probs.detach() - rollout.log_probs)[rollout.mask]
    return float(log_ratio.abs().max().exp())


def rounds_of(agent: Any, numbers: dict[str, float], device: str = "cpu") -> Round:
    """One update per round, with the seconds of each phase."""
    spent = {name: time_calls(agent, name, device) for name in ("sampler", "collect", "backward", "step")}
    spent["autograd"] = time_calls(torch.autograd, "backward", device)  # never undone: a variant process has one agent

    def run_round() -> RoundResult:
        for seconds in spent.values():
            seconds.clear()
        start = time.perf_counter()
        agent.learn(1)  # one update
        total = time.perf_counter() - start
        took = {name: sum(seconds) for name, seconds in spent.items()}
        phases = {
            "generate": took["sampler"],
            "score": took["collect"] - took["sampler"],
            "forward": took["backward"] - took["autograd"],
            "backward": took["autograd"],
            "step": took["step"],
            "other": total - took["collect"] - took["backward"] - took["step"],
        }
        return RoundResult(agent.num_timesteps, phases, numbers)

    return run_round


def time_calls(owner: Any, name: str, device: str = "cpu") -> list[float]:
    """Wraps `owner.name`; returns a list to which each call appends its seconds."""
    call, seconds = getattr(owner, name), []

    def timed(*args: Any, **kwargs: Any) -> Any:
        finish(device)
        start = time.perf_counter()
        result = call(*args, **kwargs)
        finish(device)
        seconds.append(time.perf_counter() - start)
        return result

    setattr(owner, name, timed)
    return seconds


def tight(work: Work, separate_critic: bool) -> Round:
    """An update by the tight loop."""
    loop = TightPPO(work.model(), separate_critic, reward=distinct_scores, kl_coef=0.05)
    prompts = torch.as_tensor(get_mdp(environment(work)).prompts.input_ids)

    def run_round() -> RoundResult:
        loop.seconds = {}
        batch = loop.collect(prompts, work.tokens)
        loop.train(batch, work.epochs)
        return RoundResult(batch.rewards.numel(), loop.seconds)

    return run_round


def distinct_scores(completions: Tensor) -> Tensor:
    """`distinct` as a function of token ids [B, T]: scores [B], the reward of the tight loop."""
    return torch.tensor(distinct(None, None, completions.tolist()))


def sampling(work: Work, sampler: Any) -> Round:
    """Sampling only, by a sampler of `agents.sampling`."""
    env = environment(work)
    policy, mdp = TransformerPolicy.for_env(env).to(work.device), get_mdp(env)
    generator = new_generator(work.device, 0)

    @torch.no_grad()
    def run_round() -> RoundResult:
        generation = sampler(policy, mdp, sample_prompts(mdp, work.completions, 1, generator), generator)
        return RoundResult(int(generation.attention_mask[:, mdp.prompt_width :].sum()), {})

    return run_round


def tight_sampling(work: Work) -> Round:
    """Sampling only, by the tight loop."""
    trunk, generator = work.model().transformer, torch.Generator().manual_seed(0)
    prompts = torch.as_tensor(get_mdp(environment(work)).prompts.input_ids)

    def run_round() -> RoundResult:
        return RoundResult(sample_tight(trunk, prompts, work.tokens, generator)[1].numel(), {})

    return run_round


def plain_generate(work: Work) -> Round:
    """transformers' `generate` as in its documentation: nothing around it, and no log-probabilities."""
    model, generator = work.model().to(work.device, getattr(torch, work.dtype)), new_generator(work.device, 0)
    mdp = get_mdp(environment(work))

    @torch.no_grad()
    def run_round() -> RoundResult:
        state = sample_prompts(mdp, work.completions, 1, generator)
        ids = torch.as_tensor(state.input_ids[:, : work.prompt], device=work.device)
        mask = torch.ones_like(ids)
        settings: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": work.tokens, "pad_token_id": 0}
        sequences = model.generate(ids, attention_mask=mask, **settings)
        return RoundResult(sequences[:, work.prompt :].numel(), {})

    return run_round


class Variant(NamedTuple):
    """What a variant runs, and the parts of `bench` that measure it."""

    start: Callable[[Work], Round]
    parts: tuple[str, ...]


# a new variant is one entry here; tables have them in this order
VARIANTS: dict[str, Variant] = {
    "ppo": Variant(lambda work: update(work, PPO), ("updates", "options", "device")),
    "ppo, bfloat16": Variant(lambda work: update(replace(work, dtype="bfloat16"), PPO), ("options",)),
    "ppo, medium": Variant(lambda work: update(work, PPO, medium=True), ("options",)),
    "ppo, compiled": Variant(lambda work: update(work, PPO, compiled=True), ("options",)),
    "ppo, graph": Variant(lambda work: update(work, PPO, graph=True), ("updates", "options", "gpu")),
    "ppo, micro-batches": Variant(lambda work: update(replace(work, micro_batch=16), PPO), ("updates",)),
    "ppo, separate critic": Variant(lambda work: update(work, PPO, separate_critic=True), ("updates",)),
    "ppo, separate critic, micro-batches": Variant(
        lambda work: update(replace(work, micro_batch=16), PPO, separate_critic=True), ("updates",)
    ),
    "rloo": Variant(lambda work: update(work, RLOO, num_generations=work.generations), ("updates",)),
    "grpo": Variant(lambda work: update(work, GRPO, num_generations=work.generations), ("gpu", "device")),
    "grpo, graph": Variant(lambda work: update(work, GRPO, graph=True, num_generations=work.generations), ("gpu",)),
    "grpo, k3 in the loss": Variant(lambda work: kl_in_loss(work, "k3"), ("options",)),
    "grpo, exact KL in the loss": Variant(lambda work: kl_in_loss(work, "exact"), ("options",)),
    "tight loop": Variant(lambda work: tight(work, separate_critic=False), ("updates",)),
    "tight loop, separate critic": Variant(lambda work: tight(work, separate_critic=True), ("updates",)),
    "sampling": Variant(lambda work: sampling(work, sample), ("updates", "gpu", "device")),
    "sampling, graph": Variant(lambda work: sampling(work, GraphSampler()), ("updates", "gpu")),
    "sampling, generate": Variant(lambda work: sampling(work, generate_sampler), ("updates", "device")),
    "sampling, tight loop": Variant(tight_sampling, ("updates",)),
    "sampling, transformers": Variant(plain_generate, ("updates", "gpu", "device")),
}
