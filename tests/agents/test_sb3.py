"""Stable-Baselines3 and sb3-contrib, unmodified, on environments of textenv."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from agents.sb3 import (
    CausalLMPolicy,
    KLDictRolloutBuffer,
    KLMaskableDictRolloutBuffer,
    KLMaskableRolloutBuffer,
    KLRolloutBuffer,
    MaskableCausalLMPolicy,
    TextVecEnv,
)
from tests.helpers.policies import random_policy
from tests.helpers.tasks import words
from textenv import InvalidAction, TextVectorEnv, exact, get_mdp
from textenv.references import TableReference
from textenv.testing import play
from textenv.wrappers import FlatTokens

TOY = {"vocab_size": 3, "max_new_tokens": 3, "num_prompts": 2, "kl_coef": 0.5}
KL_BUFFER = {"rollout_buffer_class": KLDictRolloutBuffer}


def vec(env_id: str = "textenv/Toy-v0", num_envs: int = 4, **arguments: Any) -> TextVecEnv:
    """A batched environment for Stable-Baselines3."""
    return TextVecEnv(gym.make_vec(env_id, num_envs=num_envs, autoreset_mode="SameStep", **arguments))


class KeepRollout(BaseCallback):
    """Keeps the first rollout of the buffer: arrays [n_steps, n_envs]."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if not hasattr(self, "kept"):
            buffer = self.locals["rollout_buffer"]
            names = ("rewards", "actions", "log_probs", "episode_starts", "values")
            self.kept = {name: getattr(buffer, name).copy() for name in names}
            arrays = buffer.observations if isinstance(buffer.observations, dict) else {"flat": buffer.observations}
            self.kept |= {name: values.copy() for name, values in arrays.items()}


Episode = tuple[tuple[int, ...], tuple[int, ...], np.ndarray]


def episodes(kept: dict[str, np.ndarray], width: int) -> list[Episode]:
    """The whole episodes of a rollout: prompt, tokens, rewards."""
    found = []
    steps, envs = kept["rewards"].shape
    for env in range(envs):
        starts = [t for t in range(steps) if kept["episode_starts"][t, env]]
        for start, stop in itertools.pairwise(starts):
            mask = kept["attention_mask"][start, env, :width] == 1
            prompt = kept["input_ids"][start, env, :width][mask]
            tokens = kept["actions"][start:stop, env].ravel()
            found.append((tuple(prompt.tolist()), tuple(tokens.tolist()), kept["rewards"][start:stop, env]))
    return found


@pytest.mark.parametrize(
    ("algorithm", "policy", "buffer"),
    [
        (PPO, CausalLMPolicy, KLDictRolloutBuffer),
        (A2C, CausalLMPolicy, KLDictRolloutBuffer),
        (MaskablePPO, MaskableCausalLMPolicy, KLMaskableDictRolloutBuffer),
    ],
)
def test_the_buffers_rewards_equal_those_of_collect(algorithm: Any, policy: Any, buffer: Any) -> None:
    """For the same completions each r_t, with the score and both halves of the KL, equals that of `collect`."""
    envs = vec(**TOY)
    language_model = random_policy(envs).float()
    agent = algorithm(
        policy,
        envs,
        n_steps=40,
        seed=0,
        rollout_buffer_class=buffer,
        policy_kwargs={"language_model": language_model},
    )
    assert agent.rollout_buffer.kl_coef == TOY["kl_coef"]  # read from the environment
    keep = KeepRollout()
    agent.learn(1, callback=keep)
    ours = collect(envs, language_model, 1024, generator=new_generator("cpu", 0))
    width = envs.mdp.prompt_width
    expected = {}
    for row in range(len(ours)):
        columns = ours.attention_mask[row, : -ours.num_tokens] == 1
        prompt = ours.input_ids[row, : -ours.num_tokens][columns]
        mask = ours.mask[row]
        expected[tuple(prompt.tolist()), tuple(ours.tokens[row][mask].tolist())] = ours.rewards[row][mask]
    compared = [episode for episode in episodes(keep.kept, width) if episode[:2] in expected]
    assert len(compared) > 30 and len({(prompt, tokens) for prompt, tokens, _ in compared}) > 5
    for prompt, tokens, rewards in compared:
        np.testing.assert_allclose(rewards, expected[prompt, tokens].numpy(), atol=2e-5)
    # control: the environment's reward alone differs
    halves = keep.kept | {"rewards": keep.kept["rewards"] + TOY["kl_coef"] * keep.kept["log_probs"]}
    compared = [episode for episode in episodes(halves, width) if episode[:2] in expected]
    assert all(np.abs(half - expected[prompt, tokens].numpy()).max() > 1e-3 for prompt, tokens, half in compared)


@pytest.mark.parametrize(
    ("algorithm", "buffer", "env_id"),
    [(PPO, KLRolloutBuffer, "textenv/Toy-v0"), (MaskablePPO, KLMaskableRolloutBuffer, "textenv/TajMahal-v0")],
)
def test_rewards_on_flat_observations_equal_those_of_a_bound_policy(algorithm: Any, buffer: Any, env_id: str) -> None:
    """Each r_t, with a plain network; the buffer needs `kl_coef`, since `FlatTokens` hides the environment's."""
    envs = DummyVecEnv([lambda: FlatTokens(gym.make(env_id))])
    with pytest.raises(TypeError, match="pass rollout_buffer_kwargs={'kl_coef': ...}"):
        algorithm("MlpPolicy", envs, n_steps=200, rollout_buffer_class=buffer)
    settings = {"rollout_buffer_class": buffer, "rollout_buffer_kwargs": {"kl_coef": 0.1}}
    agent = algorithm("MlpPolicy", envs, n_steps=200, seed=0, learning_rate=0.0, **settings)
    keep = KeepRollout()
    agent.learn(1, callback=keep)
    mdp = get_mdp(gym.make(env_id))
    padding, width = mdp.vocab_size, mdp.prompt_width

    def network(ids: np.ndarray, attention: np.ndarray) -> torch.Tensor:
        tensors, _ = agent.policy.obs_to_tensor(np.where(attention == 1, ids, padding))
        logits: torch.Tensor = agent.policy.get_distribution(tensors).distribution.logits
        return logits

    env = gym.make(env_id, policy=network)
    assert mdp.kl_coef == 0.1
    keep.kept["input_ids"], keep.kept["attention_mask"] = keep.kept["flat"], keep.kept["flat"] != padding
    whole = episodes(keep.kept, width)
    halves = episodes(keep.kept | {"rewards": keep.kept["rewards"] + 0.1 * keep.kept["log_probs"]}, width)
    assert len(whole) > 30
    missing = 0.0
    for (prompt, tokens, rewards), (_, _, half) in zip(whole, halves, strict=True):
        bound = play(env, [int(i) for i in prompt], list(tokens)).rewards
        np.testing.assert_allclose(rewards, bound, atol=2e-5)
        missing = max(missing, np.abs(half - bound).max())
    assert missing > 0.05  # control


def test_a_missing_buffer_is_an_error() -> None:
    """Before the first update; so is a beta other than the environment's. With beta = 0 no such buffer is needed."""
    envs = vec(**TOY)
    settings = {"n_steps": 8, "seed": 0, "policy_kwargs": {"language_model": random_policy(envs).float()}}
    for algorithm, policy in ((PPO, CausalLMPolicy), (A2C, CausalLMPolicy), (MaskablePPO, MaskableCausalLMPolicy)):
        agent = algorithm(policy, VecMonitor(envs), **settings)
        before = [p.clone() for p in agent.policy.parameters()]
        with pytest.raises(ValueError, match="rollout_buffer_class=KLDictRolloutBuffer, with MaskablePPO KLMaskable"):
            agent.learn(64)
        assert all(torch.equal(p, q) for p, q in zip(before, agent.policy.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"The environment's kl_coef is 0.5, the buffer's 0.4: leave the buffer's out"):
        PPO(CausalLMPolicy, envs, **KL_BUFFER, rollout_buffer_kwargs={"kl_coef": 0.4}, **settings)
    PPO(CausalLMPolicy, envs, **KL_BUFFER, rollout_buffer_kwargs={"kl_coef": 0.5}, **settings).learn(64)
    PPO(CausalLMPolicy, vec(**(TOY | {"kl_coef": 0.0})), **settings).learn(64)


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


def test_it_equals_a_loop_over_single_environments() -> None:
    """In each row and its infos, at ends too, `TextVecEnv` equals Stable-Baselines3's `DummyVecEnv`."""
    envs = vec(num_envs=3, **TOY)
    loop = DummyVecEnv([lambda: gym.make("textenv/Toy-v0", **TOY) for _ in range(3)])
    envs.seed(5)
    loop.seed(5)
    ours, theirs = envs.reset(), loop.reset()
    rng = np.random.default_rng(0)
    for _ in range(25):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
        actions = rng.integers(3, size=3)
        ours, rewards, dones, infos = envs.step(actions)
        theirs, their_rewards, their_dones, their_infos = loop.step(actions)
        np.testing.assert_allclose(rewards, their_rewards, atol=1e-6)
        np.testing.assert_array_equal(dones, their_dones)
        for info, other, reward in zip(infos, their_infos, rewards, strict=True):
            assert info["TimeLimit.truncated"] is other["TimeLimit.truncated"] is False
            assert {"action_mask", "ref_log_prob", "reward_terms"} < set(info) == set(other)
            np.testing.assert_equal(info, other)  # compares nested dicts and arrays too
            assert sum(info["reward_terms"].values()) == pytest.approx(reward, abs=1e-6)


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_other_autoreset_modes_are_refused(mode: str) -> None:
    """A dead step would be stored as a transition; the error has the required mode."""
    with pytest.raises(ValueError, match=r"autoreset_mode='SameStep'.*dead step"):
        TextVecEnv(gym.make_vec("textenv/Toy-v0", num_envs=2, autoreset_mode=mode))
    with pytest.raises(TypeError, match=r"gym.make_vec\('textenv"):
        TextVecEnv(gym.make("textenv/Toy-v0"))


def test_setups_with_wrong_rewards_are_refused() -> None:
    """Wrappers that would be bypassed, a bound policy whose KL would count twice, options, another architecture."""
    inner = gym.make_vec("textenv/Toy-v0", num_envs=2, autoreset_mode="SameStep", **TOY)
    with pytest.raises(TypeError, match="without wrappers, which it would bypass, got TransformReward"):
        TextVecEnv(gym.wrappers.vector.TransformReward(inner, lambda reward: reward + 7))
    envs = vec(**TOY)
    language_model = random_policy(envs).float()
    agent = PPO(CausalLMPolicy, envs, n_steps=8, policy_kwargs={"language_model": language_model})
    envs.envs.bind_policy(language_model)
    with pytest.raises(ValueError, match=r"bind_policy\(None\).*bind a single environment"):
        agent.learn(16)
    envs.envs.bind_policy(None)
    envs.set_options({"prompt": "a"})
    with pytest.raises(ValueError, match="takes no options"):
        envs.reset()
    for name in ("net_arch", "share_features_extractor"):
        with pytest.raises(TypeError, match=f"leave out {name}"):
            PPO(CausalLMPolicy, vec(**TOY), policy_kwargs={"language_model": language_model, name: False})


def test_the_rows_are_one_environment() -> None:
    """An attribute is set for all rows or none; the MDP is found through wrappers of Stable-Baselines3."""
    envs = vec(**TOY)
    with pytest.raises(ValueError, match="num_things is set for all of them"):
        envs.set_attr("num_things", 3, indices=[0])
    envs.set_attr("num_things", 3)
    assert envs.get_attr("num_things", indices=[1]) == [3] and envs.get_attr("num_things") == [3] * 4
    wrapped = VecMonitor(envs)
    assert wrapped.unwrapped is envs and get_mdp(wrapped) is envs.mdp and wrapped.unwrapped.prompts


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
@pytest.mark.parametrize("flat", [False, True])
def test_plain_networks_run_on_dict_and_on_flat_observations(algorithm: Any, flat: bool) -> None:
    """Its own policies take the `Dict`, and with `FlatTokens` a `MultiDiscrete`, which they one-hot encode."""
    envs = DummyVecEnv([lambda: FlatTokens(gym.make("textenv/Toy-v0", **TOY))]) if flat else vec(num_envs=1, **TOY)
    options: dict[str, Any] = {"learning_starts": 20} if algorithm is DQN else {"n_steps": 16}
    agent = algorithm("MlpPolicy" if flat else "MultiInputPolicy", VecMonitor(envs), seed=0, **options)
    agent.learn(64)
    assert agent.num_timesteps >= 64 and len(agent.ep_info_buffer) > 5


def test_agents_with_masks_sample_no_masked_action() -> None:
    """On TajMahal, where most tokens are masked: MaskablePPO, and PPO and A2C with masks as observations, not PPO."""
    envs = vec("textenv/TajMahal-v0")
    language_model = random_policy(envs).float()
    settings = {"n_steps": 32, "seed": 0, "policy_kwargs": {"language_model": language_model}}
    masked = {"rollout_buffer_class": KLMaskableDictRolloutBuffer}
    MaskablePPO(MaskableCausalLMPolicy, envs, **masked, **settings).learn(256)
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


class WithoutPolicyKL(KLDictRolloutBuffer):
    """Control: the environment's reward alone, without the policy's half of the KL."""

    def add(self, obs: Any, action: Any, reward: Any, start: Any, value: Any, log_prob: torch.Tensor) -> None:  # type: ignore[override]
        super().add(obs, action, reward + self.kl_coef * log_prob.numpy(), start, value, log_prob)


@pytest.mark.slow
def test_ppo_goes_most_of_the_way_to_the_optimum() -> None:
    """With the language model and both halves of the KL; control: not without the policy's half."""
    envs = vec(num_envs=16, vocab_size=5, max_new_tokens=4, kl_coef=0.5)
    start = TransformerPolicy.for_env(envs)
    solution = exact.solve(envs)
    shares = []
    for buffer in (KLDictRolloutBuffer, WithoutPolicyKL):
        agent = PPO(
            CausalLMPolicy,
            envs,
            n_steps=16,
            batch_size=64,
            n_epochs=4,
            learning_rate=1e-3,
            gamma=1.0,
            seed=0,
            normalize_advantage=False,
            rollout_buffer_class=buffer,
            policy_kwargs={"language_model": start},
        )
        agent.learn(15_000)
        known = exact.evaluate(solution.tree, agent.policy.features_extractor.language_model)
        reference = solution.reference_objective
        shares.append((known.objective - reference) / (solution.objective - reference))
    assert shares[0] > 0.8 and shares[0] > shares[1] + 0.1
