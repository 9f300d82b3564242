"""The work of one update of PPO by phase, counted on the project's own code with tensors that have no numbers.

Layers are equal, so the work is counted with one and with two of them: n layers are w(1) + (n - 1) (w(2) - w(1)). In
the same way it is counted with one and with two micro-batches. Decode steps are counted where the cache has its mean
length. Prompts differ and have the same length, and all completions have `new` tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from agents import PPO
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, sample
from experiments.cost.equations import Job, dtype_of, lora_config, rows_per_pass
from experiments.cost.kernels import Work, WorkCounter, fake_tensors
from textenv.lm import MAX_LOGITS, assume_cache_support

STEPS = 8  # decode steps that are counted; the copies of the cache, one in 32 steps, are left out

Phases = dict[str, Work]  # of one update on one device: "sampling", "scoring", "update"


def count_phases(config: Any, job: Job, foreach: bool = False) -> Phases:
    """Counts the work of one update of a model by its Hugging Face config.

    Args:
        config: the config; no weights are made.
        job: sizes of the update; `devices` share its completions, and each has a whole model.
        foreach: whether the optimizer steps all weights with few kernels, as torch does on a GPU.
    """
    one, two = (_with_layers(config, number, job, foreach) for number in (1, 2))
    return {phase: one[phase] + (two[phase] - one[phase]) * (config.num_hidden_layers - 1) for phase in one}


def _with_layers(config: Any, layers: int, job: Job, foreach: bool) -> Phases:
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    policy = _policy(config, job)
    with fake_tensors() as counter:
        no_env: Any = None
        agent = PPO(policy.to_empty(device="cpu"), no_env, micro_batch_size=rows_per_pass(job), n_epochs=1)
        for group in agent.optimization.optimizer.param_groups:
            group["foreach"] = foreach
        return {
            "sampling": _sampling(counter, agent.policy, job),
            "scoring": _scoring(counter, agent.policy, job),
            "update": _update(counter, agent, job),
        }


def _policy(config: Any, job: Job) -> TransformerPolicy:
    """The policy on the meta device. An adapter is attached afterwards: its checks read numbers."""
    arguments: dict[str, Any] = {"dtype": dtype_of(job), "trust_remote_code": False}
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, **arguments)  # type: ignore[no-untyped-call]
        assume_cache_support(model.eval())
        policy = TransformerPolicy(model, separate_critic=job.separate_critic)
        if job.checkpointing:
            policy.gradient_checkpointing_enable()
        if job.lora_rank:
            from peft import get_peft_model

            policy.model = get_peft_model(model, lora_config(job.lora_rank))
    return policy


class _Counted(Exception):
    """Ends the sampler: the steps are counted."""


def _sampling(counter: WorkCounter, policy: TransformerPolicy, job: Job) -> Work:
    """Prefill, and decode steps of the loop sampler."""
    steps = min(STEPS, job.new - 1)
    prefill = _until_sampled(counter, policy, job, job.prompt, 1)
    if not steps:
        return prefill
    middle = job.prompt + (job.new - steps) // 2
    first, last = (_until_sampled(counter, policy, job, middle, number) for number in (2, 2 + steps))
    return prefill + (last - first) * (job.new / steps)


def _until_sampled(counter: WorkCounter, policy: TransformerPolicy, job: Job, width: int, times: int) -> Work:
    """The work of the loop sampler from sequences of `width` tokens until it samples for the n-th time."""
    left = [times]

    def sample_token(*args: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise _Counted
        return TransformerPolicy.sample(policy, *args)

    # The prefill drops no columns: it reads a made-up width of the longest prompt. So these are part of the width.
    rows, new = job.episodes // job.devices, STEPS + 3
    width = max(width, new + 2)
    state: Any = SimpleNamespace(
        input_ids=_integers(rows, width - 1),
        attention_mask=_integers(rows, width - 1),
        time=np.zeros(rows, dtype=np.int64),
    )
    is_eos = torch.zeros(policy.vocab_size, dtype=torch.bool)
    mdp: Any = SimpleNamespace(
        prompt_width=width - 1 - new,
        max_new_tokens=new,
        vocab_size=policy.vocab_size,
        is_eos=is_eos,
        full_support=True,
    )

    def call() -> None:
        policy.sample = sample_token  # type: ignore[assignment,method-assign]
        try:
            with torch.no_grad():
                sample(policy, mdp, state, torch.Generator())
            raise AssertionError("The sampler ended before the steps that are counted.")
        except _Counted:
            pass
        finally:
            del policy.sample

    return _count(counter, call)


def _scoring(counter: WorkCounter, policy: TransformerPolicy, job: Job) -> Work:
    """log pi_ref of all completions, in chunks whose logits fit in memory, and V."""
    rows = job.episodes // job.devices
    chunk = min(rows, max(1, MAX_LOGITS // (job.new * policy.vocab_size)))

    @torch.no_grad()
    def reference() -> None:
        policy.evaluate_actions(_integers(chunk, job.tokens), _integers(chunk, job.tokens), job.new, values=False)

    @torch.no_grad()
    def values() -> None:
        policy.values(_integers(rows, job.tokens), _integers(rows, job.tokens), job.new)

    return _count(counter, reference) * (rows / chunk) + _count(counter, values)


def _update(counter: WorkCounter, agent: PPO, job: Job) -> Work:
    """Advantages; then in each epoch forward and backward passes of the micro-batches, and a step."""
    rows = rows_per_pass(job)
    micro_batches = -(-(job.episodes // job.devices) // rows)
    batch = agent.batch(_rollout(2 * rows, job))
    agent.backward(batch)
    agent.step()  # allocates Adam's moments
    advantages = _count(counter, lambda: agent.batch(_rollout(rows, job)))
    one, two = (_count(counter, lambda n=n: agent.backward(batch, torch.arange(n * rows))) for n in (1, 2))  # type: ignore[misc]
    step = _count(counter, agent.step)
    step.waits = 1  # for the gradient's norm: the optimizer's counters of steps are the host's
    return advantages + (one + (two - one) * (micro_batches - 1) + step) * job.epochs


def _rollout(rows: int, job: Job) -> Rollout:
    """Completions without numbers."""
    numbers: Any = dict.fromkeys(("log_probs", "ref_log_probs", "rewards", "values"), torch.ones(rows, job.new))
    return Rollout(
        prompt=torch.arange(rows),
        input_ids=_integers(rows, job.tokens),
        attention_mask=_integers(rows, job.tokens),
        mask=torch.ones(rows, job.new, dtype=torch.bool),
        scores=torch.ones(rows),
        stopped=torch.ones(rows, dtype=torch.bool),
        action_mask=None,
        prompts=None,
        completions=None,
        **numbers,
    )


def _integers(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.long)


def _count(counter: WorkCounter, call: Callable[[], object]) -> Work:
    before = counter.work + Work()
    call()
    return counter.work - before
