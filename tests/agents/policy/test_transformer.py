"""The policy: where it starts, what it saves, what its critic may touch, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from agents import PPO, REINFORCE, ActorCritic
from agents.functional import value_loss
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, random_reference, stories, words
from textenv import exact
from textenv.references import TableReference

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def toy() -> Any:
    """A task whose policies are made in a second."""
    return gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)


def sparse(**arguments: Any) -> Any:
    """A task with masks."""
    return make(words(4, reference=random_reference(4, 3, sparse=True), **arguments))


def weights(module: Any) -> dict[str, torch.Tensor]:
    """A copy of a module's weights."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit-identical."""
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


# -- where it starts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["textenv/TajMahal-v0", "textenv/Toy-v0"])
def test_it_starts_at_a_table(task: str) -> None:
    """KL(pi || pi_ref) over whole texts is below 1e-3 on the tasks as they are by default."""
    env = gym.make(task)
    policy = TransformerPolicy.for_env(env)
    found = exact.evaluate(env, policy)
    assert 0 <= found.kl < 1e-3
    assert found.objective == pytest.approx(exact.solve(env).reference_objective, abs=0.02)
    with torch.no_grad():  # control: a policy that has moved is seen
        policy.model.transformer.wte.weight.mul_(1.1)
    assert exact.evaluate(env, policy).kl > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_it_starts_at_a_table_at_any_temperature(temperature: float) -> None:
    """The temperature is part of pi, and so of what is at the reference."""
    env = toy()
    policy = TransformerPolicy.for_env(env, temperature=temperature, **SMALL)
    assert exact.evaluate(env, policy).kl < 1e-3
    assert exact.evaluate(env, TransformerPolicy(policy.model)).kl > 1e-3  # control: without it


def test_it_starts_at_a_language_model(assets: Path) -> None:
    """The log-ratio of every answer is 0 where the policy is a copy of the reference; a copy, not the same weights."""
    env = make(stories(assets, max_new_tokens=16))
    policy = TransformerPolicy.for_env(env)
    rollout = collect(env, policy, 32, generator=new_generator("cpu", 0))
    assert abs(float(rollout.kl.mean())) < 1e-4 and float(rollout.kl.abs().max()) < 1e-3
    reference = env.unwrapped.mdp.reference.model
    ours = {p.data_ptr() for p in policy.model.parameters()}
    assert not ours & {p.data_ptr() for p in reference.parameters()}
    assert all(p.requires_grad for p in policy.parameters()) and not any(
        p.requires_grad for p in reference.parameters()
    )


def test_a_new_value_head_says_nothing() -> None:
    """V = 0 at first, so that the first advantages are the rewards."""
    env = toy()
    policy = TransformerPolicy.for_env(env, **SMALL)
    rollout = collect(env, policy, 8, generator=new_generator("cpu", 0))
    assert rollout.values is not None and not rollout.values.any()


def test_making_a_policy_touches_no_global_generator() -> None:
    """The same seed gives the same weights, whatever was drawn before, and draws nothing from global generators."""
    env = toy()
    made = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        made.append(weights(TransformerPolicy.for_env(env, seed=1, **SMALL)))
        assert torch.equal(torch_state, torch.get_rng_state())
        assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    assert same(*made)
    assert not same(made[0], weights(TransformerPolicy.for_env(env, seed=2, **SMALL)))


# -- saving and loading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate_critic", [False, True])
def test_saving_and_loading_changes_nothing(tmp_path: Path, separate_critic: bool) -> None:
    """Logits, log-probabilities, values and settings come back; `AutoModelForCausalLM` loads the same folder."""
    env = sparse()
    policy = random_policy(env, temperature=0.7, separate_critic=separate_critic).float()
    policy.save_pretrained(tmp_path / "policy")
    loaded = TransformerPolicy.from_pretrained(tmp_path / "policy")
    assert (loaded.temperature, loaded.vocab_size) == (0.7, 4) and (loaded.critic is not None) == separate_critic
    assert same(weights(policy), weights(loaded))

    rollout = collect(env, policy, 8, generator=new_generator("cpu", 0))
    inputs = (rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask)
    with torch.no_grad():
        for before, after in zip(policy.evaluate_actions(*inputs), loaded.evaluate_actions(*inputs), strict=True):
            assert before is not None and before.any() and before.equal(after)
        logits = policy.next_token_logits(rollout.input_ids, rollout.attention_mask)
        assert logits.equal(loaded.next_token_logits(rollout.input_ids, rollout.attention_mask))
        plain = TransformerPolicy(AutoModelForCausalLM.from_pretrained(tmp_path / "policy"), temperature=0.7)
        assert logits.equal(plain.next_token_logits(rollout.input_ids, rollout.attention_mask))


def test_settings_can_be_overridden_on_loading(tmp_path: Path) -> None:
    """Another temperature; a critic of its own that starts as a copy of the trunk, with the saved head."""
    policy = random_policy(sparse(), temperature=0.7).float()
    policy.save_pretrained(tmp_path)
    loaded = TransformerPolicy.from_pretrained(tmp_path, temperature=2.0, separate_critic=True)
    assert loaded.temperature == 2.0 and loaded.critic is not None
    assert same(weights(loaded.critic), weights(policy.model.base_model))
    assert loaded.value_head.weight.equal(policy.value_head.weight)


def test_any_causal_lm_can_be_a_policy(assets: Path) -> None:
    """A folder that we did not write is loaded with a new value head."""
    policy = TransformerPolicy.from_pretrained(assets / "stories260k")
    assert policy.vocab_size == 512 and policy.temperature == 1.0 and policy.critic is None
    assert not policy.value_head.weight.any()


# -- the distribution --------------------------------------------------------------------------------------------------


def test_temperature_divides_the_logits_everywhere() -> None:
    """Next-token logits, log-probabilities of a parallel pass and those of sampling all know it."""
    env = sparse()
    hot = random_policy(env, temperature=2.0)
    plain = TransformerPolicy(hot.model)
    rollout = collect(env, hot, 16, generator=new_generator("cpu", 0))
    ids, mask = rollout.input_ids, rollout.attention_mask
    with torch.no_grad():
        assert torch.allclose(hot.next_token_logits(ids, mask) * 2.0, plain.next_token_logits(ids, mask), atol=1e-5)
        for policy, equal in ((hot, True), (plain, False)):
            log_probs = policy.evaluate_actions(ids, mask, rollout.num_tokens, rollout.action_mask).log_probs
            assert torch.allclose(log_probs[rollout.mask], rollout.log_probs[rollout.mask], atol=1e-5) == equal


def test_logits_beyond_the_vocabulary_are_cut() -> None:
    """A model with a padded vocabulary never says what the tokenizer does not know, and its rest sums to one."""
    env = sparse()
    config = GPT2Config(vocab_size=7, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=None, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = TransformerPolicy(GPT2LMHeadModel(config), vocab_size=4)
    ids, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.int64)
    assert policy.next_token_logits(ids, mask).shape == (1, 4)
    assert policy.log_softmax(policy.model(ids).logits).exp().sum(dim=2)[0, 0].item() == pytest.approx(1.0, abs=1e-6)
    rollout = collect(env, policy, 64, generator=new_generator("cpu", 0))
    assert int(rollout.tokens.max()) < 4
    with torch.no_grad():
        log_probs = policy.evaluate_actions(
            rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask
        ).log_probs
    assert torch.allclose(log_probs[rollout.mask], rollout.log_probs[rollout.mask], atol=1e-5)


def test_it_stays_in_eval_mode() -> None:
    """`train()` and `train(True)` turn no dropout on."""
    policy = random_policy(sparse(), resid_pdrop=0.5)
    for mode in (True, False):
        policy.train(mode)
        assert not any(module.training for module in policy.modules())


# -- the critic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate_critic", [False, True])
def test_what_the_value_loss_may_touch(separate_critic: bool) -> None:
    """With a critic of its own the value loss does not reach the policy's weights; with the shared trunk it does."""
    env = sparse()
    policy = random_policy(env, separate_critic=separate_critic)
    rollout = collect(env, policy, 8, generator=new_generator("cpu", 0))
    values = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).values
    assert values is not None
    value_loss(values, rollout.rewards, rollout.mask).backward()
    reached = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"value_head", "critic" if separate_critic else "model"}


def test_the_critic_of_its_own_starts_as_a_copy() -> None:
    """Same values as the shared trunk at first, in weights of its own."""
    env = toy()
    policy = TransformerPolicy.for_env(env, separate_critic=True, **SMALL)
    assert policy.critic is not None and same(weights(policy.critic), weights(policy.model.base_model))
    ours = {p.data_ptr() for p in policy.model.parameters()}
    assert not ours & {p.data_ptr() for p in policy.critic.parameters()}


# -- the reference stays -----------------------------------------------------------------------------------------------


def test_training_leaves_a_table_as_it_was() -> None:
    """Bit-identical table, while the policy has moved."""
    env = sparse()
    reference: TableReference = env.unwrapped.mdp.reference
    policy = random_policy(env, scale=0.1)
    table, before = reference.table.copy(), weights(policy)
    PPO(policy, env, learning_rate=1e-2, n_episodes=16, seed=0).learn(100)
    assert np.array_equal(table, reference.table) and not same(before, weights(policy))


@pytest.mark.parametrize("shared", [False, True])
def test_training_leaves_a_language_model_as_it_was(assets: Path, shared: bool) -> None:
    """Bit-identical weights, also where one model object was handed to both reference and policy."""
    model = AutoModelForCausalLM.from_pretrained(assets / "stories260k", dtype=torch.float32)
    env = make(stories(assets, reference=model))
    reference = env.unwrapped.mdp.reference.model
    policy = TransformerPolicy(model) if shared else TransformerPolicy.for_env(env)
    before, start = weights(reference), weights(policy)
    PPO(policy, env, learning_rate=1e-3, n_episodes=8, seed=0).learn(30)
    assert same(before, weights(reference)) and not same(start, weights(policy))


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    """The error says what to do for the most likely token."""
    with pytest.raises(ValueError, match="predict"):
        TransformerPolicy(random_policy(sparse()).model, temperature=temperature)


def test_a_policy_of_another_vocabulary_is_refused() -> None:
    """The error names both sizes."""
    with pytest.raises(ValueError, match=r"writes 4 tokens.* knows 3"):
        PPO(random_policy(sparse()), toy())


@pytest.mark.parametrize("kind", [REINFORCE, ActorCritic, PPO])
@pytest.mark.parametrize(
    "settings", [{"n_episodes": 6, "num_generations": 4}, {"n_episodes": 0}, {"num_generations": 0}]
)
def test_groups_must_fill_the_batch(kind: Any, settings: dict[str, int]) -> None:
    """n_episodes that num_generations does not divide, or none at all."""
    env = sparse()
    with pytest.raises(ValueError, match="n_episodes must be a positive multiple of num_generations"):
        kind(random_policy(env), env, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"credit": "tokens"}, "credit must be 'sequence', 'reward_to_go' or 'q', got 'tokens'"),
        ({"baseline": "median"}, "baseline must be None, 'mean' or 'leave_one_out', got 'median'"),
        ({"num_generations": 1}, "num_generations >= 2"),
    ],
)
def test_reinforce_refuses_what_it_does_not_know(settings: dict[str, Any], message: str) -> None:
    """Wrong names, and leave_one_out with nobody left."""
    env = sparse()
    with pytest.raises(ValueError, match=message):
        REINFORCE(random_policy(env), env, **settings)


def test_a_folder_without_an_agent_is_refused(tmp_path: Path) -> None:
    """Also one that holds only a policy."""
    random_policy(sparse()).save_pretrained(tmp_path / "policy")
    for folder in (tmp_path / "nothing", tmp_path / "policy"):
        with pytest.raises(ValueError, match="no saved agent"):
            PPO.load(folder)


def test_an_agent_of_another_kind_is_refused(tmp_path: Path) -> None:
    """The error names both."""
    env = sparse()
    ActorCritic(random_policy(env).float(), env).save(tmp_path)
    with pytest.raises(ValueError, match="holds the agent ActorCritic, not PPO"):
        PPO.load(tmp_path)


def test_a_foreign_environment_is_refused() -> None:
    """By agents where it shows no text (`test_episodes` has more), and by for_env, with what is needed."""
    foreign = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match="Agents read texts"):
        PPO(random_policy(sparse()), foreign)
    with pytest.raises(TypeError, match="environment of textenv"):
        TransformerPolicy.for_env(foreign)
