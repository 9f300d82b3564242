"""What is measured on one side: our agents, the tight loop, transformers' `generate`; each does one round a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

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
    """The work as an environment, whose texts no token ends."""
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


def ours(
    work: Work,
    agent_class: Any,
    separate_critic: bool = False,
    compiled: bool = False,
    recorded: bool = False,
    medium: bool = False,
    **settings: Any,
) -> Round:
    """An update of one of our agents, in whose first minibatch the ratio is measured too, before the rounds.

    `medium` is `--float32-matmul-precision medium --attn-implementation eager`, of the whole process.
    """
    env = environment(work)
    if medium:
        torch.set_float32_matmul_precision("medium")
        reference: Any = get_mdp(env).reference
        reference.model.set_attn_implementation("eager")
    policy = TransformerPolicy.for_env(env, separate_critic=separate_critic).to(work.device)
    if compiled:
        policy.compile()
    settings |= {"n_episodes": work.answers, "n_epochs": work.epochs, "micro_batch_size": work.micro_batch}
    agent = agent_class(policy, env, seed=0, **settings)
    if recorded:
        agent.sampler = GraphSampler()
    return rounds_of(agent, {"largest_ratio": largest_ratio(agent, work.micro_batch)}, work.device)


def largest_ratio(agent: Any, count: int | None = None) -> float:
    """The largest of max(rho, 1 / rho) over tokens of which nothing was learned yet: 1, but for rounding.

    rho_t = pi(a_t|s_t) as the update reads it, over that which the token was sampled with; of `count` answers, or all.
    """
    rollout = agent.collect()
    # laid out as a minibatch: what is compiled for one is used again
    rollout = rollout[torch.arange(min(count or len(rollout), len(rollout)))]
    texts = (rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask)
    read = agent.learner(*texts, values=agent.needs_values and agent.policy.critic is None)
    log_ratio = (read.log_probs.detach() - rollout.log_probs)[rollout.mask]
    return float(log_ratio.abs().max().exp())


def rounds_of(agent: Any, numbers: dict[str, float], device: str = "cpu") -> Round:
    """An update a round, by phases."""
    spent = {name: watch(agent, name, device) for name in ("sampler", "collect", "backward", "step")}
    spent["autograd"] = watch(torch.autograd, "backward", device)  # for good: a worker is one variant

    def play() -> RoundResult:
        for seconds in spent.values():
            seconds.clear()
        start = time.perf_counter()
        agent.learn(1)  # which is an update
        whole = time.perf_counter() - start
        took = {name: sum(seconds) for name, seconds in spent.items()}
        phases = {
            "generate": took["sampler"],
            "score": took["collect"] - took["sampler"],
            "forward": took["backward"] - took["autograd"],
            "backward": took["autograd"],
            "step": took["step"],
            "other": whole - took["collect"] - took["backward"] - took["step"],
        }
        return RoundResult(agent.num_timesteps, phases, numbers)

    return play


def watch(owner: Any, name: str, device: str = "cpu") -> list[float]:
    """From now on the seconds of each call of `owner.name` are appended to the list that is returned."""
    call, seconds = getattr(owner, name), []

    def timed(*args: Any, **kwargs: Any) -> Any:
        finish(device)
        start = time.perf_counter()
        answer = call(*args, **kwargs)
        finish(device)
        seconds.append(time.perf_counter() - start)
        return answer

    setattr(owner, name, timed)
    return seconds


def tight(work: Work, separate_critic: bool) -> Round:
    """An update of the tight loop."""
    loop = TightPPO(work.model(), separate_critic, reward=paid, kl_coef=0.05)
    prompts = torch.as_tensor(get_mdp(environment(work)).prompts.input_ids)

    def play() -> RoundResult:
        loop.seconds = {}
        batch = loop.collect(prompts, work.tokens)
        loop.train(batch, work.epochs)
        return RoundResult(batch.rewards.numel(), loop.seconds)

    return play


def paid(answers: Tensor) -> Tensor:
    """`distinct`, as the tight loop asks for it."""
    return torch.tensor(distinct(None, None, answers.tolist()))


def sampling(work: Work, sampler: Any) -> Round:
    """Answers alone, by a sampler of `agents.sampling`."""
    env = environment(work)
    policy, mdp = TransformerPolicy.for_env(env).to(work.device), get_mdp(env)
    generator = new_generator(work.device, 0)

    @torch.no_grad()
    def play() -> RoundResult:
        written = sampler(policy, mdp, sample_prompts(mdp, work.answers, 1, generator), generator)
        return RoundResult(int(written.attention_mask[:, mdp.prompt_width :].sum()), {})

    return play


def tight_sampling(work: Work) -> Round:
    """Answers alone, by the tight loop."""
    trunk, generator = work.model().transformer, torch.Generator().manual_seed(0)
    prompts = torch.as_tensor(get_mdp(environment(work)).prompts.input_ids)

    def play() -> RoundResult:
        return RoundResult(sample_tight(trunk, prompts, work.tokens, generator)[1].numel(), {})

    return play


def plain_generate(work: Work) -> Round:
    """transformers' `generate` as its documentation has it: nothing of ours around it, and no log-probabilities."""
    model, generator = work.model().to(work.device, getattr(torch, work.dtype)), new_generator(work.device, 0)
    mdp = get_mdp(environment(work))

    @torch.no_grad()
    def play() -> RoundResult:
        texts = sample_prompts(mdp, work.answers, 1, generator)
        ids = torch.as_tensor(texts.input_ids[:, : work.prompt], device=work.device)
        mask = torch.ones_like(ids)
        settings: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": work.tokens, "pad_token_id": 0}
        texts_written = model.generate(ids, attention_mask=mask, **settings)
        return RoundResult(texts_written[:, work.prompt :].numel(), {})

    return play


VARIANTS: dict[str, Callable[[Work], Round]] = {
    "ppo": lambda work: ours(work, PPO),
    "ppo, micro-batches": lambda work: ours(replace(work, micro_batch=16), PPO),
    "ppo, separate critic": lambda work: ours(work, PPO, separate_critic=True),
    "ppo, separate critic, micro-batches": lambda work: ours(replace(work, micro_batch=16), PPO, separate_critic=True),
    "ppo, bfloat16": lambda work: ours(replace(work, dtype="bfloat16"), PPO),
    "ppo, medium": lambda work: ours(work, PPO, medium=True),
    "ppo, compiled": lambda work: ours(work, PPO, compiled=True),
    "rloo": lambda work: ours(work, RLOO, num_generations=work.generations),
    "ppo, graph": lambda work: ours(work, PPO, recorded=True),
    "grpo": lambda work: ours(work, GRPO, num_generations=work.generations),
    "grpo, graph": lambda work: ours(work, GRPO, recorded=True, num_generations=work.generations),
    "tight loop": lambda work: tight(work, separate_critic=False),
    "tight loop, separate critic": lambda work: tight(work, separate_critic=True),
    "sampling": lambda work: sampling(work, sample),
    "sampling, graph": lambda work: sampling(work, GraphSampler()),
    "sampling, our generate": lambda work: sampling(work, generate_sampler),
    "sampling, tight loop": tight_sampling,
    "sampling, transformers": plain_generate,
}
