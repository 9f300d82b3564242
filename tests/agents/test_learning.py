"""`learn`: counts, callback, progress bar, seed, and that every agent reaches the optimum of small tasks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import PPO, REINFORCE
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect, new_generator
from tests.helpers.agents import FOREVER, KINDS, agent_of, every_kind, normalized_objective, stop_after, task, weights
from tests.helpers.policies import random_policy
from tests.helpers.tasks import golden, make, random_reference, stories, words
from textenv.tasks.taj_mahal import truth


@every_kind
def test_learning_counts_tokens(kind: Any) -> None:
    """A timestep is a sampled token; the last batch is completed; each batch is one update."""
    tokens: list[int] = []
    agent = agent_of(kind)
    returned = agent.learn(150, callback=lambda agent, rollout, metrics: tokens.append(int(rollout.mask.sum())))
    assert returned is agent
    assert agent.num_timesteps == sum(tokens) >= 150 > sum(tokens[:-1])
    assert agent.num_updates == len(tokens)
    agent.learn(10)
    assert agent.num_updates == 1 and agent.num_timesteps < 150  # counted from zero again


@every_kind
def test_a_second_learn_adds_to_the_counts(kind: Any) -> None:
    """As in Stable-Baselines3: with reset_num_timesteps=False a second `learn(n)` samples n more tokens."""
    agent = agent_of(kind).learn(100)
    before, trained = agent.num_timesteps, weights(agent)
    agent.learn(100, reset_num_timesteps=False)
    assert agent.num_timesteps >= before + 100
    assert not weights(agent).equal(trained)


@every_kind
def test_a_callback_is_called_after_each_update_and_can_stop(kind: Any) -> None:
    """Its arguments are agent, rollout and metrics; False stops learning, None does not."""
    calls: list[tuple[Any, ...]] = []

    def callback(*arguments: Any) -> bool | None:
        calls.append(arguments)
        return False if len(calls) == 3 else None

    agent = agent_of(kind)
    agent.learn(FOREVER, callback=callback)
    assert agent.num_updates == len(calls) == 3
    for sender, rollout, metrics in calls:
        assert sender is agent and len(rollout) == 16
        assert all(isinstance(value, float) and np.isfinite(value) for value in metrics.values())
        assert metrics["objective/scores"] == pytest.approx(float(rollout.scores.mean()))
        assert metrics["objective/rlhf_reward"] == pytest.approx(
            metrics["objective/scores"] + metrics["objective/non_score_reward"], abs=1e-5
        )
        # without shaping the rewards are the score and both halves of the KL
        assert metrics["objective/non_score_reward"] == pytest.approx(-0.5 * metrics["objective/kl"], abs=1e-5)
        assert metrics["completions/mean_length"] == pytest.approx(float(rollout.mask.sum()) / 16)
        assert metrics["completions/clipped_ratio"] == pytest.approx(1.0 - float(rollout.stopped.float().mean()))


@pytest.mark.parametrize("shown", [True, False])
def test_the_progress_bar_is_shown_on_request(capsys: pytest.CaptureFixture[str], shown: bool) -> None:
    """It counts tokens and shows score and KL; by default there is no bar."""
    agent_of(REINFORCE).learn(50, progress_bar=shown)
    output = capsys.readouterr()
    assert ("tok" in output.err and "kl=" in output.err) if shown else output.err == output.out == ""


@every_kind
def test_the_seed_is_the_only_randomness(kind: Any) -> None:
    """Same seed, same weights, whatever the state of the global generators; another seed, other weights."""
    trained = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002, the global one
        trained.append(weights(agent_of(kind, seed=seed).learn(100)))
    assert trained[0].equal(trained[1]) and not trained[0].equal(trained[2])


def test_agents_differ() -> None:
    """Control for the tests over all agents: their updates differ."""
    trained = [weights(agent_of(kind).learn(FOREVER, callback=stop_after(2))) for kind in KINDS]
    assert not trained[0].equal(trained[1]) and not trained[1].equal(trained[2])


@every_kind
def test_single_and_batched_environments_are_the_same_task(kind: Any) -> None:
    """Agents use only the MDP: the number of environments makes no difference."""
    arguments = words(4, reference=random_reference(4, 3, sparse=True))
    single, batched = make(arguments), gym.make_vec("textenv/Text-v0", num_envs=3, **arguments)
    assert weights(agent_of(kind, single).learn(60)).equal(weights(agent_of(kind, batched).learn(60)))


@pytest.mark.parametrize("kind", [REINFORCE, PPO])
def test_the_gold_score_is_a_metric_where_there_is_one(kind: Any) -> None:
    """objective/gold_scores is the batch's mean; tasks without a gold reward have no such metric."""
    for gold_reward in (golden, None):
        calls: list[tuple[Rollout, dict[str, float]]] = []
        agent = agent_of(kind, task(gold_reward=gold_reward))
        agent.learn(1, callback=lambda agent, rollout, metrics, calls=calls: calls.append((rollout, metrics)))
        rollout, metrics = calls[0]
        assert ("objective/gold_scores" in metrics) == (gold_reward is not None)
        if rollout.gold_scores is not None:
            assert metrics["objective/gold_scores"] == pytest.approx(float(rollout.gold_scores.mean()))


# -- small tasks -------------------------------------------------------------------------------------------------------


@every_kind
def test_every_agent_solves_a_small_toy(kind: Any, small_toy: tuple[Any, TransformerPolicy]) -> None:
    """After 6000 tokens each agent has come more than half of the way from the reference to the optimum."""
    env, start = small_toy
    assert abs(normalized_objective(env, start)) < 0.05
    policy = copy.deepcopy(start)
    kind(policy, env, learning_rate=5e-3, seed=0).learn(6_000)
    assert 0.5 < normalized_objective(env, policy) <= 1.0


def test_a_learning_rate_of_zero_changes_nothing(small_toy: tuple[Any, TransformerPolicy]) -> None:
    """Control: the same loop with step size zero stays at the reference."""
    env, start = small_toy
    policy = copy.deepcopy(start)
    PPO(policy, env, learning_rate=0.0, seed=0).learn(1_000)
    assert normalized_objective(env, policy) == pytest.approx(normalized_objective(env, start), abs=1e-9)


@pytest.mark.slow
@every_kind
def test_every_agent_solves_taj_mahal_because_of_its_reward(kind: Any) -> None:
    """After 40 000 tokens above 90% of the way to the optimum; with the reward's sign flipped, below the reference."""
    env = gym.make("textenv/TajMahal-v0")
    mdp = env.unwrapped.mdp
    rows = [
        {"prompt": text, "landmark": landmark}
        for text, landmark in zip(mdp.prompts.texts, mdp.prompts.columns["landmark"], strict=True)
    ]
    flipped = make(
        {
            "tokenizer": mdp.tokenizer,
            "prompts": rows,
            "reward": truth,
            "reward_weights": [-1.0],
            "reference": mdp.reference,
            "max_new_tokens": mdp.max_new_tokens,
            "kl_coef": mdp.kl_coef,
        }
    )
    start = TransformerPolicy.for_env(env)
    trained, misled = copy.deepcopy(start), copy.deepcopy(start)
    kind(trained, env, learning_rate=1e-3, seed=0).learn(40_000)
    kind(misled, flipped, learning_rate=1e-3, seed=0).learn(5_000)
    assert 0.9 < normalized_objective(env, trained) <= 1.0
    assert normalized_objective(env, misled) < 0


# -- on a GPU ----------------------------------------------------------------------------------------------------------


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_computes_what_a_cpu_computes() -> None:
    """Log-probabilities and values of the same completions are equal on both devices."""
    env = task()
    policy = random_policy(env)
    gpu_policy = copy.deepcopy(policy).to("cuda")
    rollout = collect(env, gpu_policy, 32, generator=new_generator("cuda", 0))
    assert rollout.rewards.device.type == rollout.input_ids.device.type == "cuda"
    assert rollout.action_mask is not None and rollout.values is not None
    with torch.no_grad():
        evaluation = policy.evaluate_actions(
            rollout.input_ids.cpu(), rollout.attention_mask.cpu(), rollout.num_tokens, rollout.action_mask.cpu()
        )
    mask = rollout.mask.cpu()
    assert evaluation.values is not None
    assert torch.allclose(evaluation.log_probs[mask], rollout.log_probs.cpu()[mask], rtol=1e-5, atol=1e-5)
    assert torch.allclose(evaluation.values[mask], rollout.values.cpu()[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@needs_cuda
def test_a_language_model_reference_works_with_a_policy_on_a_gpu(assets: Path) -> None:
    """A policy at the reference has KL zero on a GPU too."""
    env = make(stories(assets, max_new_tokens=8))
    policy = TransformerPolicy.for_env(env).to("cuda")
    assert abs(float(collect(env, policy, 16, generator=new_generator("cuda", 0)).kl.mean())) < 1e-3


@pytest.mark.gpu
@needs_cuda
def test_ppo_solves_a_small_toy_on_a_gpu(small_toy: tuple[Any, TransformerPolicy], tmp_path: Path) -> None:
    """The same toy with a similar threshold, saved and loaded on the GPU."""
    env, start = small_toy
    policy = copy.deepcopy(start).to("cuda")
    agent = PPO(policy, env, learning_rate=5e-3, seed=0).learn(6_000)
    assert normalized_objective(env, policy) > 0.6
    agent.save(tmp_path)
    loaded = PPO.load(tmp_path, env=env, device="cuda")
    assert normalized_objective(env, loaded.policy) == pytest.approx(normalized_objective(env, policy), abs=1e-4)
