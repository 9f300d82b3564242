"""The update's pass by kernels of torch.compile: the same numbers, and kernels that are made once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch._dynamo.utils import counters

from agents import PPO, TransformerPolicy
from agents.rollout import Rollout
from experiments.config import FlagError, TrialConfig
from experiments.trial import INITIAL, _agent, prepare, run_trial
from tests.tasks import TRIAL

TAJ = "textenv/TajMahal-v0"  # most words are masked
TOLERANCE = 1e-5  # of the largest number in a gradient


def gradients(agent: PPO, rollout: Rollout, size: int) -> list[dict[str, torch.Tensor]]:
    """Of PPO's loss, by parameter name, of each minibatch of so many answers; nothing is learned."""
    advantages, returns = agent.advantages(rollout)
    found = []
    for rows in torch.arange(len(rollout)).split(size):
        agent.backward(rows, lambda rows: agent.losses(rollout[rows], advantages[rows], returns[rows]))
        found.append({name: p.grad.clone() for name, p in agent.policy.named_parameters() if p.grad is not None})
    return found


def furthest(ours: list[dict[str, torch.Tensor]], theirs: list[dict[str, torch.Tensor]]) -> float:
    """The largest difference of two gradients, over the largest number of the second."""
    return max(
        max(float((one[name] - other[name]).abs().max()) for name in other)
        / max(float(number.abs().max()) for number in other.values())
        for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("separate_critic", [False, True])
def test_the_gradient_is_the_plain_one(separate_critic: bool) -> None:
    """On answers of several lengths, masked, in minibatches of two sizes; no kernel is made for the later ones."""
    env = gym.make(TAJ)
    policy = TransformerPolicy.for_env(env, separate_critic=separate_critic)
    agent = PPO(policy, env, n_episodes=20, batch_size=8, learning_rate=0.02, seed=0)
    agent.learn(1)  # so that values and ratios are not trivial
    rollouts = [agent.collect() for _ in range(3)]
    rollouts = [replace(rollout, log_probs=rollout.log_probs + 0.1) for rollout in rollouts]
    plain = [gradients(agent, rollout, 8) for rollout in rollouts]
    counters.clear()
    agent.policy.compile()
    for rollout, expected in zip(rollouts, plain, strict=True):
        assert furthest(gradients(agent, rollout, 8), expected) < TOLERANCE
    assert len({rollout.input_ids.shape for rollout in rollouts}) > 1
    networks = 1 + separate_critic  # of each torch looks again where two sizes happened to be equal
    assert networks <= counters["stats"]["unique_graphs"] <= 2 * networks
    assert not counters["graph_break"]
    assert furthest(gradients(agent, rollouts[0], 8), plain[1]) > 1e-2  # control: of other answers


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is computed; the command tells it in a line."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    policy = TransformerPolicy.for_env(gym.make(TAJ))
    with pytest.raises(ValueError, match="needs a C.. compiler on a CPU, no-such-compiler is not there"):
        policy.compile()
    with pytest.raises(FlagError, match="no-such-compiler is not there"):
        config = TrialConfig(agent="ppo", compile=True, out=tmp_path / "run")
        prepare(config, "run", [config])


def is_compiled(policy: Any) -> bool:
    """Whether calling it is."""
    return policy._compiled_call_impl is not None


@pytest.mark.slow
def test_a_trial_compiles(tmp_path: Path) -> None:
    """It learns the same; a loaded checkpoint is compiled too; agents of other libraries refuse."""
    reached = {}
    for compiled in (False, True):
        config = TrialConfig(**TRIAL, agent="grpo", compile=compiled, out=tmp_path / str(compiled))
        env = config.make_env()
        _, folder, policy = prepare(config, "run", [config])
        assert is_compiled(policy) == compiled
        reached[compiled] = run_trial(config, folder, folder / INITIAL)["objective"]
        assert is_compiled(_agent(config, env, folder, folder / INITIAL).policy) == compiled
    assert reached[True] == pytest.approx(reached[False], abs=1e-4)
    with pytest.raises(FlagError, match="--compile is for our agents, not for sb3-ppo"):
        TrialConfig(**TRIAL, agent="sb3-ppo", compile=True)
