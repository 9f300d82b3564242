"""Language models as policies of Stable-Baselines3 and sb3-contrib, unmodified."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents.sb3 import CausalLMPolicy, KLMaskableDictRolloutBuffer, MaskableCausalLMPolicy, TextVecEnv
from tests.helpers.policies import random_policy
from tests.helpers.sb3 import KL_BUFFER, TOY, KeepRollout, vec
from tests.helpers.tasks import words
from textenv import InvalidAction, TextVectorEnv, exact
from textenv.references import TableReference
from textenv.wrappers import FlatTokens


@pytest.mark.parametrize(("temperature", "separate_critic"), [(1.0, False), (0.7, False), (1.0, True)])
def test_the_policy_starts_with_the_pretrained_weights(temperature: float, separate_critic: bool) -> None:
    """Probabilities and values are the language model's at first; training changes a copy, trunk and heads."""
    envs = vec(**TOY)
    language_model = random_policy(envs, temperature=temperature, separate_critic=separate_critic).float()
    before = {name: p.clone() for name, p in language_model.named_parameters()}
    agent = PPO(CausalLMPolicy, envs, n_steps=8, seed=0, policy_kwargs={"language_model": language_model}, **KL_BUFFER)
    observation = envs.reset()
    tensors, _ = agent.policy.obs_to_tensor(observation)
    with torch.no_grad():
        expected = language_model.next_token_logits(**observation).log_softmax(dim=-1)
        found = agent.policy.get_distribution(tensors).distribution.logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        ids, mask = (torch.as_tensor(observation[name]) for name in ("input_ids", "attention_mask"))
        longer = torch.nn.functional.pad(ids, (0, 1)), torch.nn.functional.pad(mask, (0, 1))
        width = envs.mdp.prompt_width
        values = language_model.values(longer[0][:, : width + 1], longer[1][:, : width + 1], 1)
        torch.testing.assert_close(agent.policy.predict_values(tensors), values, rtol=0, atol=1e-5)
    agent.learn(64)
    assert all(torch.equal(p, before[name]) for name, p in language_model.named_parameters())
    trained = dict(agent.policy.features_extractor.language_model.named_parameters())
    assert all(not torch.equal(p, before[name]) for name, p in trained.items() if "wpe" not in name)


def test_a_language_model_that_does_not_fit_is_refused() -> None:
    """Another vocabulary, other observations, no `TransformerPolicy`; the error for a masked action has the remedy."""
    envs = vec(**TOY)
    other = random_policy(vec(**(TOY | {"vocab_size": TOY["vocab_size"] + 2}))).float()
    with pytest.raises(ValueError, match=r"number of actions, got 5 and 3.*for_env"):
        PPO(CausalLMPolicy, envs, policy_kwargs={"language_model": other})
    with pytest.raises(TypeError, match="must be a TransformerPolicy.*'gpt2'"):
        PPO(CausalLMPolicy, envs, policy_kwargs={"language_model": "gpt2"})
    frozen = random_policy(envs).float().requires_grad_(False)
    with pytest.raises(ValueError, match=r"language_model must have weights to train.*requires_grad_\(True\)"):
        PPO(CausalLMPolicy, envs, policy_kwargs={"language_model": frozen})
    flat = FlatTokens(gym.make("textenv/Toy-v0", **TOY))
    with pytest.raises(ValueError, match="observation must be a Dict of input_ids and attention_mask.*MultiDiscrete"):
        PPO(CausalLMPolicy, flat, policy_kwargs={"language_model": random_policy(envs).float()})
    without_mask = TextVecEnv(gym.make_vec("textenv/TajMahal-v0", num_envs=4, autoreset_mode="SameStep"))
    with pytest.raises(InvalidAction) as refused:
        A2C("MultiInputPolicy", without_mask, seed=0).learn(200)
    assert "mask_in_observation=True" in refused.value.__notes__[0]


def test_an_agent_is_saved_and_loaded(tmp_path: Path) -> None:
    """`PPO.load` restores the probabilities and resumes, only with the same beta; a policy alone cannot be saved."""
    envs = vec(**TOY)
    start = random_policy(envs).float()
    agent = PPO(CausalLMPolicy, envs, n_steps=8, seed=0, policy_kwargs={"language_model": start}, **KL_BUFFER)
    agent.learn(32).save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent", env=envs)
    tensors, _ = agent.policy.obs_to_tensor(envs.reset())
    with torch.no_grad():
        found, expected = (a.policy.get_distribution(tensors).distribution.logits for a in (loaded, agent))
    assert torch.equal(found, expected)
    loaded.learn(32)
    assert loaded.rollout_buffer.kl_coef == TOY["kl_coef"]
    with pytest.raises(ValueError, match=r"spaces do not match.*kl_coef=0.5 != .*kl_coef=0.4"):
        PPO.load(tmp_path / "agent", env=vec(**(TOY | {"kl_coef": 0.4})))
    with pytest.raises(NotImplementedError, match=r"agent.save.*language_model.save_pretrained"):
        agent.policy.save(tmp_path / "policy")


@pytest.mark.parametrize("separate_critic", [False, True])
def test_gradient_checkpointing_saves_memory(separate_critic: bool) -> None:
    """An update of Stable-Baselines3 stores fewer numbers for the backward pass, and has the same gradient."""
    envs = vec(**TOY)
    observation, kept, found = envs.reset(), [], []
    for checkpointing in (False, True):
        language_model = random_policy(envs, separate_critic=separate_critic).float()
        if checkpointing:
            language_model.gradient_checkpointing_enable()
        policy = PPO(CausalLMPolicy, envs, policy_kwargs={"language_model": language_model}).policy
        policy.set_training_mode(True)  # as an update does
        tensors, _ = policy.obs_to_tensor(observation)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: (s.append(x.numel()), x)[1], lambda x: x):
            values, log_probs, _ = policy.evaluate_actions(tensors, torch.zeros(4))
        (values.sum() + log_probs.sum()).backward()
        kept.append(sum(sizes))
        found.append([p.grad for p in policy.parameters() if p.grad is not None])
    assert kept[1] < kept[0] / 2
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-5)


def test_a_bound_single_environment_measures_j() -> None:
    """`evaluate_policy` on it estimates the exact J, with both halves of the KL."""
    envs = vec(**TOY)
    language_model = random_policy(envs).float()
    agent = PPO(CausalLMPolicy, envs, policy_kwargs={"language_model": language_model})
    returns = {}
    for policy in (language_model, None):
        env = Monitor(gym.make("textenv/Toy-v0", policy=policy, **TOY))
        env.reset(seed=0)
        torch.manual_seed(0)
        rewards, _ = evaluate_policy(agent, env, 400, deterministic=False, return_episode_rewards=True)
        returns[policy] = np.mean(rewards), np.std(rewards) / np.sqrt(400)
    objective = exact.evaluate(envs, language_model).objective
    mean, error = returns[language_model]
    assert abs(mean - objective) < 4 * error
    mean, error = returns[None]
    assert abs(mean - objective) > 8 * error  # control: without the policy's half


def test_agents_with_masks_sample_no_masked_action() -> None:
    """On TajMahal, where most tokens are masked: MaskablePPO, and PPO and A2C with masks as observations, not PPO."""
    envs = vec("textenv/TajMahal-v0")
    language_model = random_policy(envs).float()
    settings = {"n_steps": 32, "seed": 0, "policy_kwargs": {"language_model": language_model}}
    masked = {"rollout_buffer_class": KLMaskableDictRolloutBuffer}
    agent = MaskablePPO(MaskableCausalLMPolicy, envs, **masked, **settings)
    agent.learn(256)
    tensors, _ = agent.policy.obs_to_tensor(envs.reset())  # the update has the log-probabilities of sampling
    masks = np.stack(envs.env_method("action_masks"))
    actions = torch.as_tensor(masks.argmax(axis=1))
    expected = agent.policy.get_distribution(tensors, action_masks=masks).log_prob(actions)
    _, found, _ = agent.policy.evaluate_actions(tensors, actions, action_masks=masks)
    torch.testing.assert_close(found, expected)
    assert (agent.policy.evaluate_actions(tensors, actions)[1] < found).all()  # control
    for algorithm in (PPO, A2C):
        masked_envs = TextVecEnv(envs.envs, mask_in_observation=True)
        observation, ended = masked_envs.reset(), 0
        while not ended:
            masks = masked_envs.envs.action_masks()
            assert all(np.array_equal(masks[row], observation["action_mask"][row]) for row in range(4))
            observation, _, dones, infos = masked_envs.step(observation["action_mask"].argmax(axis=1))
            ended = int(dones.sum())
        last = infos[int(dones.argmax())]["terminal_observation"]
        assert masked_envs.observation_space.contains(last)
        algorithm(CausalLMPolicy, masked_envs, ent_coef=0.01, **KL_BUFFER, **settings).learn(256)
    with pytest.raises(gym.error.InvalidAction, match="masked after"):
        PPO(CausalLMPolicy, vec("textenv/TajMahal-v0"), **KL_BUFFER, **settings).learn(256)


def test_a_vocabulary_of_fifty_thousand() -> None:
    """MaskablePPO on 50,000 tokens of which 3 are allowed, torch's checks left on (sb3-contrib's issue 322)."""
    size = 50_000
    probs = np.zeros(size)
    probs[[0, 7, 49_999]] = 1 / 3
    with np.errstate(divide="ignore"):
        reference = TableReference(np.log(probs))
    from textenv import TextMDP
    from textenv.data import WordTokenizer

    arguments = words(tokenizer=WordTokenizer([f"w{i}" for i in range(size - 1)]), prompts=["w6"], reference=reference)
    envs = TextVecEnv(TextVectorEnv(TextMDP(**arguments), 4, autoreset_mode="SameStep"))
    agent = MaskablePPO(
        MaskableCausalLMPolicy,
        envs,
        n_steps=16,
        seed=0,
        rollout_buffer_class=KLMaskableDictRolloutBuffer,
        policy_kwargs={"language_model": random_policy(envs).float()},
    )
    keep = KeepRollout()
    agent.learn(64, callback=keep)
    assert torch.distributions.Distribution._validate_args
    assert set(keep.kept["actions"].ravel().tolist()) <= {0, 7, 49_999}
    assert np.isfinite(keep.kept["rewards"]).all()
