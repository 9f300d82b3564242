"""TransformerPolicy: its start at the reference, saving, its distribution, its critic, and its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model

from agents import PPO
from agents.functional import value_loss
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, sparse, stories, toy, words
from textenv import exact
from textenv.references import TableReference

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def weights(module: Any) -> dict[str, torch.Tensor]:
    """A copy of a module's weights."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are bit-identical."""
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


# -- the start at the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["textenv/TajMahal-v0", "textenv/Toy-v0"])
def test_it_starts_at_a_table(task: str) -> None:
    """KL(pi || pi_ref) over whole completions is below 1e-3 on the default tasks."""
    env = gym.make(task)
    policy = TransformerPolicy.for_env(env)
    found = exact.evaluate(env, policy)
    assert 0 <= found.kl < 1e-3
    assert found.objective == pytest.approx(exact.solve(env).reference_objective, abs=0.02)
    with torch.no_grad():  # control: other weights have a larger KL
        policy.model.transformer.wte.weight.mul_(1.1)
    assert exact.evaluate(env, policy).kl > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_it_starts_at_a_table_at_any_temperature(temperature: float) -> None:
    """The temperature is part of pi, so imitation trains the scaled distribution."""
    env = toy()
    policy = TransformerPolicy.for_env(env, temperature=temperature, **SMALL)
    assert exact.evaluate(env, policy).kl < 1e-3
    assert exact.evaluate(env, TransformerPolicy(policy.model)).kl > 1e-3  # control: without it


def test_it_starts_at_a_language_model(assets: Path) -> None:
    """The policy is a copy of the reference, with its own weights; the log-ratio of every completion is 0."""
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


def test_a_new_value_head_is_zero() -> None:
    """V = 0 at first, so that the first advantages are the rewards."""
    env = toy()
    policy = TransformerPolicy.for_env(env, **SMALL)
    rollout = collect(env, policy, 8, generator=new_generator("cpu", 0))
    assert rollout.values is not None and not rollout.values.any()


def test_a_new_policy_uses_no_global_generator() -> None:
    """The seed alone determines the weights, and the states of the global generators do not change."""
    env = toy()
    made = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        made.append(weights(TransformerPolicy.for_env(env, seed=1, **SMALL)))
        assert torch.equal(torch_state, torch.get_rng_state())
        assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    assert equal(*made)
    assert not equal(made[0], weights(TransformerPolicy.for_env(env, seed=2, **SMALL)))


# -- saving and loading ------------------------------------------------------------------------------------------------


def test_a_cast_is_of_model_and_separate_critic() -> None:
    """The value head stays in float32."""
    policy = random_policy(toy(), separate_critic=True).float()
    assert policy.cast(torch.bfloat16) is policy and policy.critic is not None
    for module in (policy.model, policy.critic):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert policy.value_head.weight.dtype == torch.float32


@pytest.mark.parametrize("separate_critic", [False, True])
def test_saving_and_loading_changes_nothing(tmp_path: Path, separate_critic: bool) -> None:
    """Logits, log-probabilities, values and settings are restored; `AutoModelForCausalLM` loads the same folder."""
    env = sparse()
    policy = random_policy(env, temperature=0.7, separate_critic=separate_critic).float()
    policy.save_pretrained(tmp_path / "policy")
    loaded = TransformerPolicy.from_pretrained(tmp_path / "policy")
    assert (loaded.temperature, loaded.vocab_size) == (0.7, 4) and (loaded.critic is not None) == separate_critic
    assert equal(weights(policy), weights(loaded))

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
    """Another temperature; a separate critic that starts as a copy of the trunk, with the saved head."""
    policy = random_policy(sparse(), temperature=0.7).float()
    policy.save_pretrained(tmp_path)
    loaded = TransformerPolicy.from_pretrained(tmp_path, temperature=2.0, separate_critic=True)
    assert loaded.temperature == 2.0 and loaded.critic is not None
    assert equal(weights(loaded.critic), weights(policy.model.base_model))
    assert loaded.value_head.weight.equal(policy.value_head.weight)


def test_a_vocabulary_of_no_tokens_is_refused(tmp_path: Path) -> None:
    """vocab_size=0 is no "as saved", which None is. Control: a smaller vocabulary is taken."""
    random_policy(sparse()).float().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="vocab_size must be .*got 0"):
        TransformerPolicy.from_pretrained(tmp_path, vocab_size=0)
    assert TransformerPolicy.from_pretrained(tmp_path, vocab_size=3).vocab_size == 3


def test_any_causal_lm_can_be_a_policy(assets: Path) -> None:
    """A checkpoint without a value head is loaded with a new one."""
    policy = TransformerPolicy.from_pretrained(assets / "stories260k")
    assert policy.vocab_size == 512 and policy.temperature == 1.0 and policy.critic is None
    assert not policy.value_head.weight.any()


# -- the distribution --------------------------------------------------------------------------------------------------


def test_temperature_divides_the_logits_everywhere() -> None:
    """In next-token logits, in log-probabilities of a parallel pass, and in sampling."""
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
    """A model with a padded vocabulary samples only ids of the tokenizer, whose probabilities sum to one."""
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
    """`train()` and `train(True)` do not switch dropout on."""
    policy = random_policy(sparse(), resid_pdrop=0.5)
    for mode in (True, False):
        policy.train(mode)
        assert not any(module.training for module in policy.modules())


# -- the critic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate_critic", [False, True])
def test_gradients_of_the_value_loss(separate_critic: bool) -> None:
    """With a separate critic the value loss has no gradient in the policy's weights; with a shared trunk it has."""
    env = sparse()
    policy = random_policy(env, separate_critic=separate_critic)
    rollout = collect(env, policy, 8, generator=new_generator("cpu", 0))
    values = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).values
    assert values is not None
    value_loss(values, rollout.rewards, rollout.mask).backward()
    reached = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"value_head", "critic" if separate_critic else "model"}


def test_a_separate_critic_starts_as_a_copy() -> None:
    """Its weights equal those of the policy's trunk at first, and are not shared."""
    env = toy()
    policy = TransformerPolicy.for_env(env, separate_critic=True, **SMALL)
    assert policy.critic is not None and equal(weights(policy.critic), weights(policy.model.base_model))
    ours = {p.data_ptr() for p in policy.model.parameters()}
    assert not ours & {p.data_ptr() for p in policy.critic.parameters()}


# -- the reference is unchanged ----------------------------------------------------------------------------------------


def test_training_does_not_change_a_table() -> None:
    """The table is bit-identical, while the policy has changed."""
    env = sparse()
    reference: TableReference = env.unwrapped.mdp.reference
    policy = random_policy(env, scale=0.1)
    table, before = reference.table.copy(), weights(policy)
    PPO(policy, env, learning_rate=1e-2, n_episodes=16, seed=0).learn(100)
    assert np.array_equal(table, reference.table) and not equal(before, weights(policy))


@pytest.mark.parametrize("shared", [False, True])
def test_training_does_not_change_a_language_model(assets: Path, shared: bool) -> None:
    """Its weights are bit-identical, also if reference and policy were created from one model object."""
    model = AutoModelForCausalLM.from_pretrained(assets / "stories260k", dtype=torch.float32)
    env = make(stories(assets, reference=model))
    reference = env.unwrapped.mdp.reference.model
    policy = TransformerPolicy(model) if shared else TransformerPolicy.for_env(env)
    before, start = weights(reference), weights(policy)
    PPO(policy, env, learning_rate=1e-3, n_episodes=8, seed=0).learn(30)
    assert equal(before, weights(reference)) and not equal(start, weights(policy))


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        lambda: "path",
        lambda: Path("path"),
        lambda: None,
        lambda: 5,
        lambda: torch.nn.Linear(2, 2),
        lambda: GPT2LMHeadModel,
        GPT2Config,
        lambda: GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9)),
        lambda: random_policy(toy()),
    ],
    ids=["text", "path", "None", "number", "layer", "class", "config", "model without a head", "policy"],
)
def test_a_policy_needs_a_causal_lm(given: Any) -> None:
    """The error shows what was passed, in one line, and how a path is loaded."""
    with pytest.raises(
        TypeError, match="needs a causal language model of transformers, got .*from_pretrained"
    ) as error:
        TransformerPolicy(value := given())
    shown = type(value).__name__ if isinstance(value, torch.nn.Module) else repr(value)[:12]
    assert shown in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["yes", 1, 0, "", [], np.float64(1)])
def test_separate_critic_is_true_or_false(value: Any, tmp_path: Path) -> None:
    """Wherever it is taken, before anything is trained or attached."""
    env, policy = toy(), random_policy(toy()).float()
    policy.save_pretrained(tmp_path)
    for refused in (
        lambda: TransformerPolicy(policy.model, separate_critic=value),
        lambda: TransformerPolicy.for_env(env, separate_critic=value, **SMALL),
        lambda: TransformerPolicy.from_pretrained(tmp_path, separate_critic=value),
    ):
        with pytest.raises(ValueError, match="separate_critic must be True or False, got"):
            refused()
    for accepted in (np.True_, True):
        assert TransformerPolicy(policy.model, separate_critic=accepted).critic is not None
    assert TransformerPolicy.from_pretrained(tmp_path, separate_critic=None).critic is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", np.float32, 16, torch.int8, torch.bool, torch.float8_e5m2])
def test_a_dtype_is_one_of_torch(dtype: Any, tmp_path: Path) -> None:
    """With floating-point numbers of at least 16 bits; others are refused before the folder is read."""
    with pytest.raises(ValueError, match=r"dtype must be a torch.dtype .*such as torch.bfloat16, got"):
        TransformerPolicy.from_pretrained(tmp_path / "nowhere", dtype=dtype)
    random_policy(toy()).float().save_pretrained(tmp_path)
    for given in (torch.bfloat16, torch.float64):
        assert TransformerPolicy.from_pretrained(tmp_path, dtype=given).model.dtype == given


@pytest.mark.parametrize("reference", [5, "path", TableReference, GPT2LMHeadModel, torch.nn.Linear(2, 2)], ids=repr)
def test_a_policy_is_loaded_onto_a_reference(reference: Any, tmp_path: Path) -> None:
    """Anything else is refused, also where the folder has no adapter and needs none."""
    policy = random_policy(toy()).float()
    policy.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"reference must be an environment's reference, get_mdp\(env\).reference"):
        TransformerPolicy.from_pretrained(tmp_path, reference=reference)
    loaded = TransformerPolicy.from_pretrained(tmp_path, reference=toy().unwrapped.mdp.reference)
    assert equal(weights(policy), weights(loaded))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    """The error explains how to get the most likely token."""
    with pytest.raises(ValueError, match="predict"):
        TransformerPolicy(random_policy(sparse()).model, temperature=temperature)


def test_values_of_one_observation_for_each_token() -> None:
    """Inputs [B, T, L], as of environments of other libraries: V of each observation alone."""
    policy = random_policy(make(words()))
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(policy.vocab_size, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    values = policy.values(ids, torch.ones_like(ids), 3)
    each = [policy.values(row, torch.ones_like(row), 1)[:, 0] for row in ids]
    assert values.shape == (2, 3) and torch.allclose(values, torch.stack(each)) and float(values.std()) > 1e-3
