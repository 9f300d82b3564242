"""Language models as policy, reference and reward compute on the device what they compute on the CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import PPO, RLOO, TransformerPolicy, collect
from agents.sampling import Generation, generate_sampler, new_generator, sample
from tests.helpers.adapters import adapted, config
from tests.helpers.agents import every_kind
from tests.helpers.classifiers import random_classifier, word_tokenizer
from tests.helpers.models import CONFIGS, language_model, task
from tests.helpers.standin import DEVICE, counting
from tests.helpers.standin.comparison import (
    CLOSE,
    DEVICES,
    devices_of,
    largest_difference,
    one_number_a_row,
    place,
    rollouts_differ,
    train,
)
from tests.helpers.tasks import make, stories
from textenv import get_mdp
from textenv.rewards import RewardModel

pytestmark = pytest.mark.usefixtures(one_number_a_row.__name__)
HALF = torch.bfloat16


def single(kind: str, **arguments: Any) -> Any:
    """A task with a small random language model in float32."""
    return place(task(kind, **arguments), "cpu", torch.float32)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_rollout_and_an_update_are_those_of_the_cpu(kind: str) -> None:
    """Policy and reference on the device, with prompts of different lengths. Control: another temperature."""
    rollouts, policies = [], []
    for device, temperature in (("cpu", 1.0), (DEVICE, 1.0), (DEVICE, 0.9)):
        env = place(single(kind), device)
        policy = TransformerPolicy.for_env(env, temperature=temperature).to(device)
        rollouts.append(collect(env, policy, 24, generator=new_generator(device, 0)))
        policies.append(train(PPO, env, policy, device, learning_rate=1e-3).policy)
    assert rollouts_differ(rollouts[1], rollouts[0]) == [] != rollouts_differ(rollouts[2], rollouts[0])
    assert largest_difference(policies[1], policies[0]) < CLOSE < largest_difference(policies[2], policies[0])
    assert float(rollouts[1].kl.abs().max()) < 1e-4  # the policy starts at the reference


@every_kind
def test_every_agent_trains_a_language_model_there_as_here(kind: Any) -> None:
    """Weights after two updates. Control: they have moved."""
    policies = []
    for device in DEVICES:
        env = place(single("llama"), device)
        start = TransformerPolicy.for_env(env)
        policies.append(train(kind, env, start, device, learning_rate=1e-3).policy)
    assert largest_difference(policies[1], policies[0]) < CLOSE < 1e-3 < largest_difference(policies[1], start)


def test_rows_that_have_ended_leave_the_batch() -> None:
    """64 completions, most of which end early, of a vocabulary of 300 tokens."""
    rollouts = []
    for device in DEVICES:
        env, policy = language_model()
        rollouts.append(collect(place(env, device), policy.to(device), 64, generator=new_generator(device, 2)))
    assert rollouts_differ(rollouts[1], rollouts[0]) == []
    assert len({int(length) for length in rollouts[0].mask.sum(dim=1)}) > 3


@pytest.mark.parametrize("where", [("cpu", DEVICE), (DEVICE, "cpu")])
def test_policy_and_reference_may_be_on_different_devices(where: tuple[str, str]) -> None:
    """The rollout is on the policy's. Control: it is the one of a single device."""
    env, policy = language_model()
    expected = collect(env, policy, 24, generator=new_generator("cpu", 0))
    policy.to(where[0])
    found = collect(place(env, where[1]), policy, 24, generator=new_generator(where[0], 0))
    assert found.ref_log_probs.device.type == where[0] and rollouts_differ(found, expected) == []


def with_critic(env: Any) -> TransformerPolicy:
    """A policy whose critic has a trunk of its own."""
    return TransformerPolicy.for_env(env, separate_critic=True)


def checkpointed(env: Any) -> TransformerPolicy:
    """A policy that keeps few activations."""
    policy = TransformerPolicy.for_env(env)
    policy.gradient_checkpointing_enable()
    return policy


def without_sharing(env: Any) -> TransformerPolicy:
    """A policy that computes each prompt as often as it is there."""
    policy = TransformerPolicy.for_env(env)
    policy.share_prefixes = False
    return policy


MADE: dict[str, Any] = {
    "prefix sharing": (TransformerPolicy.for_env, {"num_generations": 8}),
    "no prefix sharing": (without_sharing, {"num_generations": 8}),
    "separate critic": (with_critic, {}),
    "LoRA": (adapted, {}),
    "gradient checkpointing": (checkpointed, {}),
    "micro-batches": (TransformerPolicy.for_env, {"micro_batch_size": 3}),
    "generate": (TransformerPolicy.for_env, {}),
    "the exact KL": (TransformerPolicy.for_env, {"kl_in": "loss", "kl_loss": "exact"}),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_options_do_there_what_they_do_here(kind: str, name: str) -> None:
    """Weights after two updates. Control: they have moved."""
    make, settings = MADE[name]
    found = []
    for device in DEVICES:
        env = single(kind)
        policy = make(env).to(device)
        place(env, device)
        start = copy.deepcopy(policy)
        agent = PPO(policy, env, seed=0, n_episodes=16, learning_rate=1e-3, **settings)
        agent.sampler = generate_sampler if name == "generate" else sample
        agent.learn(10**9, callback=lambda agent, *_: agent.num_updates < 2)
        assert devices_of(agent) == {device}
        found.append(agent.policy)
    assert largest_difference(found[1], found[0]) < CLOSE < 1e-3 < largest_difference(found[1], start)


def test_an_adapter_and_its_reference_share_weights_on_the_device(tmp_path: Path) -> None:
    """Moving the policy moves the reference, which has the same weights; saved there it is loaded here, and back."""
    env = single("llama")
    policy = TransformerPolicy.for_env(env, lora=config()).to(DEVICE)
    reference: Any = get_mdp(env).reference
    assert reference.model.device.type == DEVICE
    agent = PPO(policy, env, seed=0, n_episodes=16, learning_rate=1e-2).learn(100)
    agent.save(tmp_path)
    merged = TransformerPolicy.from_pretrained(tmp_path)
    expected = collect(env, policy, 8, generator=new_generator(DEVICE, 0))
    found = collect(single("llama"), merged, 8, generator=new_generator("cpu", 0))
    assert rollouts_differ(found, expected, close=1e-4) == []
    back = PPO.load(tmp_path, env=single("llama"), device=DEVICE)
    assert back.policy.has_adapter and largest_difference(back.policy, policy) == 0


def replayed(generations: list[Generation]) -> Any:
    """A sampler that returns what another one sampled, on the policy's device."""
    waiting = iter(generations)

    def sampler(policy: Any, *_: Any) -> Generation:
        return Generation(*(None if x is None else x.to(policy.device) for x in next(waiting)))

    return sampler


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_bfloat16_trains_by_master_weights(kind: str) -> None:
    """The same completions move the float32 weights alike, as far as rounding in bfloat16 lets them."""
    masters, generations = [], []

    def recorded(*args: Any) -> Generation:
        generations.append(sample(*args))
        return generations[-1]

    for device in DEVICES:
        env = place(single(kind), device, HALF)
        policy = TransformerPolicy.for_env(env).to(device)
        agent = PPO(policy, env, seed=0, n_episodes=16, learning_rate=1e-3)
        before = [p.detach().float().cpu().clone() for p in policy.parameters()]
        agent.sampler = recorded if device == "cpu" else replayed(generations)
        agent.learn(1)
        assert policy.model.dtype == HALF and policy.device.type == device
        weights = agent.optimization.stepped
        assert {(w.dtype, w.device.type) for w in weights} == {(torch.float32, device)}
        masters.append(torch.cat([(w.detach().cpu() - b).reshape(-1) for w, b in zip(weights, before, strict=True)]))
    assert float(torch.nn.functional.cosine_similarity(*masters, dim=0)) > 0.95
    other = masters[0].roll(1)  # control
    assert float(torch.nn.functional.cosine_similarity(masters[1], other, dim=0)) < 0.5


@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama"])
def test_a_reward_model_scores_there_as_here(kind: str) -> None:
    """Completions of several lengths; as the reward of a task too.

    RLOO learns from it: GRPO divides by the standard deviation of a group, which is rounding where scores are equal.
    """
    scores, policies = [], []
    texts = ["a", "b c", "c a b b", "a a a a a"]
    for device in DEVICES:
        model = random_classifier(kind).to(device)
        reward = RewardModel(model, word_tokenizer(eos_token="[END]"))
        scores.append(reward(["b"] * 4, texts))
        env = place(single("gpt2", reward=reward), device)
        policies.append(train(RLOO, env, TransformerPolicy.for_env(env), device, num_generations=4).policy)
    assert scores[1] == pytest.approx(scores[0], abs=CLOSE) and len(set(scores[0])) == 4
    assert largest_difference(policies[1], policies[0]) < CLOSE


def test_the_reference_is_frozen_there() -> None:
    """Bit for bit."""
    env, policy = language_model()
    place(env, DEVICE)
    reference: Any = get_mdp(env).reference
    before = copy.deepcopy(reference.model.state_dict())
    train(PPO, env, policy, DEVICE)
    assert all(torch.equal(x, before[name]) for name, x in reference.model.state_dict().items())


def test_stepping_an_environment_whose_reference_is_on_the_device() -> None:
    """Rewards and masks are NumPy arrays, and those of the CPU."""
    episodes = []
    for device in DEVICES:
        env = place(single("llama"), device)
        env.reset(seed=0)
        episodes.append([env.step(action)[1] for action in (3, 4, 5)])
    assert episodes[1] == pytest.approx(episodes[0], abs=CLOSE)


def test_real_weights_sample_there_what_they_sample_here(assets: Path) -> None:
    """A language model of 260 thousand parameters, loaded from its files after the device was installed."""
    rollouts = []
    for device in DEVICES:
        env = place(make(stories(assets, max_new_tokens=16)), device)
        policy = TransformerPolicy.for_env(env).to(device)
        with counting() as counts:
            rollouts.append(collect(env, policy, 16, generator=new_generator(device, 0)))
        assert (counts.kernels > 0) == (device == DEVICE)
    assert rollouts_differ(rollouts[1], rollouts[0], close=1e-4) == []
