"""`collect` gives the same results as the environment stepped token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from agents import REINFORCE
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect, new_generator
from tests.helpers.policies import random_policy
from tests.helpers.tasks import SHAPING, golden, letter_values, make, random_reference, stories, words
from textenv import TextMDP, TextState, exact, get_mdp
from textenv.rewards import vader
from textenv.testing import play

CLOSE = 1e-5  # absolute, and relative to log-probabilities of rare tokens (float32 models)
Pair = tuple[Any, TransformerPolicy]


def seeded(seed: int = 0) -> torch.Generator:
    """A generator for one call of `collect`."""
    return new_generator("cpu", seed)


def perturbed(policy: TransformerPolicy, scale: float, seed: int = 0) -> TransformerPolicy:
    """The policy with noise added to all weights, in float64, so that errors are not hidden by rounding."""
    policy.model.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return policy


def toy(assets: Path) -> Pair:
    """Nothing masked, every length up to four."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=4, num_prompts=3)
    return env, random_policy(env, scale=0.2)


def taj_mahal(assets: Path) -> Pair:
    """A sparse table and prompts of different lengths."""
    env = gym.make("textenv/TajMahal-v0")
    return env, random_policy(env, scale=0.2)


def shaped(assets: Path) -> Pair:
    """Shaping of every kind, masks, a temperature; the end token is also the padding token."""
    env = make(words(4, reference=random_reference(4, 3, sparse=True), max_new_tokens=5, shaping=SHAPING))
    tokenizer = env.unwrapped.mdp.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    return env, random_policy(env, scale=0.2, temperature=1.7)


def cold(assets: Path) -> Pair:
    """A temperature below one, and a separate critic."""
    env = make(words(5, reference=random_reference(5, 4, sparse=False), max_new_tokens=4))
    return env, random_policy(env, 1, scale=0.15, temperature=0.5, separate_critic=True)


def language_model(assets: Path) -> Pair:
    """A real language model as reference, and a perturbed copy of it as policy."""
    prompts = (assets / "tinystories" / "prompts.txt").read_text().splitlines()[:8]
    env = make(stories(assets, prompts=prompts, reward=vader, max_new_tokens=16))
    return env, perturbed(TransformerPolicy.for_env(env), 0.02)


def shaped_language_model(assets: Path) -> Pair:
    """The same with shaping, a temperature, and so many end tokens that many completions reach one."""
    eos = list(range(1, 40)) + list(range(400, 440))
    env = make(stories(assets, reward=vader, max_new_tokens=12, shaping=SHAPING, eos_token_id=eos))
    policy = TransformerPolicy.from_pretrained(assets / "stories260k", temperature=1.3)
    return env, perturbed(policy, 0.02)


MAKERS = [toy, taj_mahal, shaped, cold, language_model, shaped_language_model]
made: dict[str, Pair] = {}


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def pair(request: pytest.FixtureRequest) -> Pair:
    """An environment and a policy, made once."""
    maker: Callable[[Path], Pair] = request.param
    if maker.__name__ not in made:
        real = request.getfixturevalue("assets") if "language" in maker.__name__ else Path()
        made[maker.__name__] = maker(real)
    return made[maker.__name__]


def sampled_ids(rollout: Rollout, row: int) -> list[int]:
    """The ids of a completion that started at its prompt."""
    return [int(token) for token in rollout.tokens[row][rollout.mask[row]]]


def states(mdp: TextMDP, starts: list[tuple[Any, Any]]) -> TextState:
    """Initial states from pairs `(prompt, completion)`."""
    state = mdp.empty_state(len(starts))
    for row, (prompt, completion) in enumerate(starts):
        state.put(row, mdp.make_state(prompt, completion))
    return state


# -- the same MDP ------------------------------------------------------------------------------------------------------


def test_a_rollout_is_the_environment_stepped_token_by_token(pair: Pair) -> None:
    """Rewards, log-probabilities, score, KL and end of every completion are those of single steps with pi bound."""
    env, policy = pair
    rollout = collect(env, policy, 24, generator=seeded())
    env.unwrapped.bind_policy(policy)
    for row in range(len(rollout)):
        tokens, mask = sampled_ids(rollout, row), rollout.mask[row]
        observation, info = env.reset(options={"prompt": int(rollout.prompt[row])})
        rewards, ref_log_probs, log_probs = [], [], []
        for token in tokens:
            with torch.no_grad():
                logits = policy.next_token_logits(observation["input_ids"][None], observation["attention_mask"][None])
            allowed = torch.as_tensor(info["action_mask"]) == 1
            log_probs.append(float(logits[0].masked_fill(~allowed, -torch.inf).log_softmax(dim=0)[token]))
            observation, reward, terminated, _, info = env.step(token)
            rewards.append(reward)
            ref_log_probs.append(info["ref_log_prob"])
            assert sum(info["reward_terms"].values()) == pytest.approx(reward, abs=1e-12)
        assert terminated and len(tokens) == int(mask.sum())
        assert rollout.rewards[row][mask].numpy() == pytest.approx(np.array(rewards), rel=CLOSE, abs=CLOSE)
        assert rollout.ref_log_probs[row][mask].numpy() == pytest.approx(np.array(ref_log_probs), rel=CLOSE, abs=CLOSE)
        assert rollout.log_probs[row][mask].numpy() == pytest.approx(np.array(log_probs), rel=CLOSE, abs=CLOSE)
        assert float(rollout.scores[row]) == pytest.approx(info["score"], abs=1e-6)
        assert float(rollout.kl[row]) == pytest.approx(info["kl"], abs=CLOSE * len(tokens))
        assert bool(rollout.stopped[row]) == (info["finish_reason"] == "stop")
        assert (rollout.prompts[row], rollout.completions[row]) == (info["prompt"], info["completion"])
        for name in ("rewards", "log_probs", "ref_log_probs", "values"):
            assert not getattr(rollout, name)[row][~mask].any(), f"{name} is not 0 behind the completion"
    env.unwrapped.bind_policy(None)


@pytest.mark.parametrize("name", ["textenv/RewardHacking-v0", "words"])
def test_a_rollout_has_the_gold_scores_of_single_steps(name: str) -> None:
    """gold_scores [B] are info["gold_score"] of the same completions stepped token by token; indexing selects them."""
    arguments = words(4, reference=random_reference(4, 3, sparse=True), max_new_tokens=5, gold_reward=golden)
    env = make(arguments) if name == "words" else gym.make(name)
    policy = random_policy(env, scale=0.2)
    rollout = collect(env, policy, 24, generator=seeded())
    assert rollout.gold_scores is not None and rollout.gold_scores.shape == (24,)
    stepped = []
    for row in range(len(rollout)):
        env.reset(options={"prompt": int(rollout.prompt[row])})
        info = [env.step(token)[-1] for token in sampled_ids(rollout, row)][-1]
        stepped.append([info["gold_score"], info["score"]])
    gold, scores = np.array(stepped).T
    assert rollout.gold_scores.numpy() == pytest.approx(gold, abs=1e-6)
    assert rollout.scores.numpy() == pytest.approx(scores, abs=1e-6)
    assert np.abs(gold - scores).max() > 0.1 and np.abs(gold - np.roll(gold, 1)).max() > 0.1  # control: rows matter
    rows = torch.tensor([5, 0, 7])
    assert rollout[rows].gold_scores.equal(rollout.gold_scores[rows])  # type: ignore[union-attr]
    assert rollout[3:9].gold_scores.equal(rollout.gold_scores[3:9])  # type: ignore[union-attr]


def test_a_gold_reward_changes_nothing_else_in_a_rollout() -> None:
    """Without one gold_scores is None, also after indexing; every other field is the same."""
    policy = random_policy(make(words()), scale=0.2)
    envs = [make(words(gold_reward=gold)) for gold in (None, golden)]
    plain, with_gold = (collect(env, policy, 16, generator=seeded()) for env in envs)
    assert plain.gold_scores is None and plain[:3].gold_scores is None and with_gold.gold_scores is not None
    for name, value in vars(plain).items():
        if isinstance(value, Tensor):
            assert value.equal(getattr(with_gold, name)), name


@pytest.mark.parametrize("beta", [0.0, 0.2, 3.0])
def test_a_rollout_can_have_another_beta(beta: float) -> None:
    """kl_coef in `collect` gives the rewards of an environment with that kl_coef; the environment's does not change."""
    env, other = (make(words(max_new_tokens=4, shaping=SHAPING, kl_coef=b)) for b in (0.5, beta))
    policy = random_policy(env, scale=0.2)
    own, changed = (collect(env, policy, 16, generator=seeded(), kl_coef=b) for b in (None, beta))
    assert changed.rewards.equal(collect(other, policy, 16, generator=seeded()).rewards)
    assert (changed.rewards - own.rewards).abs().max() > 0.05  # control
    assert env.unwrapped.mdp.kl_coef == 0.5


def test_completions_differ_in_length(pair: Pair) -> None:
    """The comparison above covers several lengths, and distributions other than the reference's."""
    rollout = collect(*pair, 24, generator=seeded())
    assert len(set(rollout.mask.sum(dim=1).tolist())) > 1 or pair is made.get("language_model")
    assert float((rollout.log_probs - rollout.ref_log_probs).abs().max()) > 0.05


def test_a_teacher_forced_pass_equals_decoding(pair: Pair) -> None:
    """Decoding with a KV cache and one parallel pass give the same log-probabilities and values."""
    env, policy = pair
    rollout = collect(env, policy, 32, generator=seeded(1))
    with torch.no_grad():
        log_probs, values = policy.evaluate_actions(
            rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask
        )
    assert values is not None and rollout.values is not None
    mask = rollout.mask
    assert torch.allclose(log_probs[mask], rollout.log_probs[mask], rtol=CLOSE, atol=CLOSE)
    assert torch.allclose(values[mask], rollout.values[mask], rtol=CLOSE, atol=CLOSE)
    assert float(rollout.values[rollout.mask].std()) > 0  # the value head is not constant
    hot = TransformerPolicy(policy.model, vocab_size=policy.vocab_size, temperature=policy.temperature * 1.5)
    with torch.no_grad():
        other = hot.evaluate_actions(
            rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask
        ).log_probs
    assert float((other - rollout.log_probs)[rollout.mask].abs().max()) > 1e-2  # control: another temperature


def test_only_allowed_tokens_are_sampled() -> None:
    """Where the reference gives probability 0, the policy is renormalised over the other tokens."""
    env, policy = shaped(Path())
    rollout = collect(env, policy, 64, generator=seeded())
    assert rollout.action_mask is not None and not rollout.action_mask.all()
    assert torch.isfinite(rollout.ref_log_probs).all()
    allowed = rollout.action_mask.gather(2, rollout.tokens[..., None]).squeeze(2)
    assert allowed[rollout.mask].all()
    with torch.no_grad():
        unmasked = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).log_probs
    assert float((unmasked - rollout.log_probs)[rollout.mask].min()) < -0.1  # control: without the mask they are lower


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_completions_are_distributed_as_pi(temperature: float) -> None:
    """Chi-square of 4000 completions against the exact pi(y|x): p > 1e-4, the false-failure rate of another seed."""
    env = make(words(3, prompts=["a"], reference=random_reference(3, 1, sparse=False)))
    policy, tree = random_policy(env, temperature=temperature), exact.enumerate_tree(env)
    state, action = tree.leaves()
    index = {
        (*(int(token) for token in tree.tokens[s] if token >= 0), int(a)): i
        for i, (s, a) in enumerate(zip(state, action, strict=True))
    }
    rollout = collect(env, policy, 4000, generator=seeded(), values=False)
    counts = np.bincount([index[tuple(sampled_ids(rollout, i))] for i in range(len(rollout))], minlength=len(index))

    def p_value(of: TransformerPolicy) -> float:
        expected = len(rollout) * np.exp(tree.completion_log_probs(exact.evaluate(tree, of).log_probs))
        rare = expected < 5  # completions too rare for chi-square are one cell
        cells = np.append(expected[~rare], expected[rare].sum())
        observed = np.append(counts[~rare], counts[rare].sum())
        cells, observed = cells[cells > 0], observed[cells > 0]
        return float(chi2.sf(((observed - cells) ** 2 / cells).sum(), len(cells) - 1))

    assert p_value(policy) > 1e-4
    assert p_value(TransformerPolicy(policy.model, temperature=temperature * 1.3)) < 1e-6  # control


# -- padding -----------------------------------------------------------------------------------------------------------


def test_padding_changes_nothing(pair: Pair) -> None:
    """Padding columns on the left or on the right, with garbage in them, change no log-probability and no value."""
    env, policy = pair
    rollout = collect(env, policy, 8, generator=seeded())
    ids, mask, count, allowed = rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask
    padding, garbage = torch.zeros(len(ids), 1, dtype=mask.dtype), torch.full((len(ids), 1), 2)
    with torch.no_grad():
        plain = policy.evaluate_actions(ids, mask, count, allowed)
        left = policy.evaluate_actions(
            torch.cat([garbage, garbage, ids], dim=1), torch.cat([padding, padding, mask], dim=1), count, allowed
        )
        wider = None if allowed is None else torch.nn.functional.pad(allowed, (0, 0, 0, 1), value=True)
        right = policy.evaluate_actions(
            torch.cat([ids, garbage], dim=1), torch.cat([mask, padding], dim=1), count + 1, wider
        )
        logits = policy.next_token_logits(ids, mask)
        padded_logits = policy.next_token_logits(
            torch.cat([garbage, ids, garbage], dim=1).numpy(), torch.cat([padding, mask, padding], dim=1).numpy()
        )
    for name in ("log_probs", "values"):
        expected: Tensor = getattr(plain, name)[rollout.mask]
        assert torch.allclose(getattr(left, name)[rollout.mask], expected, rtol=CLOSE, atol=CLOSE)
        assert torch.allclose(getattr(right, name)[:, :count][rollout.mask], expected, rtol=CLOSE, atol=CLOSE)
    assert float((logits - padded_logits).abs().max()) < CLOSE
    with torch.no_grad():  # control: the same columns, attended to
        attended = policy.evaluate_actions(
            torch.cat([garbage, ids], dim=1), torch.cat([padding + 1, mask], dim=1), count
        )
    assert float((attended.log_probs - plain.log_probs)[rollout.mask].abs().max()) > 1e-3


def test_room_for_longer_prompts_changes_nothing() -> None:
    """An environment with a wider observation gives the same completions, and the padding columns are cut."""
    arguments = words(4, reference=random_reference(4, 3, sparse=True), shaping=SHAPING)
    narrow, wide = make(arguments), make(arguments | {"max_prompt_length": 9})
    policy = random_policy(wide)
    one, other = (collect(env, policy, 16, generator=seeded()) for env in (narrow, wide))
    assert one.input_ids.equal(other.input_ids) and one.mask.equal(other.mask)
    assert torch.allclose(one.rewards, other.rewards, atol=CLOSE)
    assert one.input_ids.shape[1] == int(one.attention_mask[:, : -one.num_tokens].sum(dim=1).max()) + one.num_tokens


# -- cost and randomness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [True, False])
def test_each_token_is_decoded_once(values: bool) -> None:
    """The model computes each token once, and once more in one parallel pass if values are requested."""
    env = make(words(4, prompts=["a b", "b b"], reference=random_reference(4, 2, sparse=False), max_new_tokens=6))
    policy, shapes = random_policy(env, scale=0.1), []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs["input_ids"]  # the model passes them by position
        shapes.append(tuple(ids.shape))

    hook = policy.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    rollout = collect(env, policy, 16, generator=seeded(), values=values)
    hook.remove()
    assert rollout.num_tokens > 3
    decoding = [(16, 2)] + [(16, 1)] * (rollout.num_tokens - 1)
    assert shapes == decoding + [(16, 2 + rollout.num_tokens - 1)] * values


def test_one_call_of_the_reward_and_one_pass_of_the_reference(assets: Path) -> None:
    """Each reward function is called once per batch, and a language-model reference computes one parallel pass."""
    calls: list[int] = []

    def counted(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        calls.append(len(prompts))
        return [0.0] * len(prompts)

    env = make(stories(assets, reward=counted, max_new_tokens=5))
    policy, passes = TransformerPolicy.for_env(env), []
    hook = env.unwrapped.mdp.reference.model.register_forward_pre_hook(lambda *_: passes.append(1))
    collect(env, policy, 12, generator=seeded())
    hook.remove()
    assert calls == [12] and len(passes) == 1


def test_the_generator_determines_the_rollout(pair: Pair) -> None:
    """All random numbers come from the given generator; the states of the global ones do not change."""
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002, the global one
    first, again, other = (collect(*pair, 8, generator=seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), torch_state)
    for before, after in zip(numpy_state, np.random.get_state(), strict=True):  # noqa: NPY002
        assert np.array_equal(before, after)
    for name in ("prompt", "input_ids", "mask", "log_probs", "rewards", "values"):
        assert getattr(first, name).equal(getattr(again, name)), name
    assert first.input_ids.shape != other.input_ids.shape or not first.input_ids.equal(other.input_ids)


def test_without_a_generator_every_call_differs() -> None:
    """The system seeds the default generator, not a constant."""
    env, policy = toy(Path())
    first, second = collect(env, policy, 64), collect(env, policy, 64)
    assert first.completions.tolist() != second.completions.tolist()


def test_the_environments_own_episode_is_not_changed(pair: Pair) -> None:
    """`collect` in the middle of an episode has no effect on its next steps."""
    env, policy = pair
    mdp = env.unwrapped.mdp
    tokens = sampled_ids(collect(env, policy, 1, start=states(mdp, [(0, ())]), generator=seeded()), 0)
    expected = play(env, 0, tokens)
    env.reset(options={"prompt": 0})
    rewards = []
    for token in tokens:
        rewards.append(env.step(token)[1])
        collect(env, policy, 4, generator=seeded(), values=False)
    assert np.array(rewards) == pytest.approx(expected.rewards, abs=CLOSE)


# -- prompts, groups, starts -------------------------------------------------------------------------------------------


def test_groups_are_contiguous() -> None:
    """`num_generations` completions for each of n / num_generations prompts, and they differ."""
    env, policy = toy(Path())
    rollout = collect(env, policy, 24, num_generations=4, generator=seeded())
    groups = rollout.prompt.view(6, 4)
    assert (groups == groups[:, :1]).all() and len(set(groups[:, 0].tolist())) > 1
    assert [env.unwrapped.prompts[i] for i in rollout.prompt] == rollout.prompts.tolist()
    assert all(len(set(rollout.completions[i : i + 4])) > 1 for i in range(0, 24, 4))


def test_prompts_are_drawn_uniformly() -> None:
    """Each of three prompts within five standard deviations of a third (false failure: 2e-6)."""
    env, policy = toy(Path())
    counts = torch.bincount(collect(env, policy, 3000, generator=seeded(), values=False).prompt, minlength=3)
    assert (counts - 1000).abs().max() < 5 * np.sqrt(3000 * (1 / 3) * (2 / 3))


@pytest.mark.parametrize(("n", "groups"), [(0, 1), (-4, 1), (5, 2), (4, 0)])
def test_completions_must_fill_their_groups(n: int, groups: int) -> None:
    """n that is not a positive multiple of num_generations is an error."""
    env, policy = toy(Path())
    with pytest.raises(ValueError, match="positive multiple of num_generations"):
        collect(env, policy, n, num_generations=groups)


def test_start_sets_the_initial_states() -> None:
    """The mask covers the sampled tokens, with the rewards of single steps; the score is the whole completion's."""
    env, policy = shaped(Path())
    mdp = env.unwrapped.mdp
    whole = [sampled_ids(collect(env, policy, 12, generator=seeded()), row) for row in range(12)]
    prompts = collect(env, policy, 12, generator=seeded()).prompt.tolist()
    starts = [(p, tokens[: row % len(tokens)]) for row, (p, tokens) in enumerate(zip(prompts, whole, strict=True))]
    assert {len(completion) for _, completion in starts} > {0, 1, 2}
    state = states(mdp, starts)
    before = {name: np.copy(value) for name, value in vars(state).items()}
    rollout = collect(env, policy, 0, generator=seeded(1), start=state)
    for name, value in before.items():
        assert np.array_equal(getattr(state, name), value), f"{name} of the given states was changed"

    env.unwrapped.bind_policy(policy)
    for row, (prompt, completion) in enumerate(starts):
        mask, given = rollout.mask[row], len(completion)
        assert not mask[:given].any() and rollout.tokens[row, :given].tolist() == completion
        assert not rollout.log_probs[row, :given].any() and not rollout.rewards[row, :given].any()
        env.reset(options={"prompt": prompt, "completion": completion})
        rewards = []
        for token in rollout.tokens[row][mask].tolist():
            _, reward, terminated, _, info = env.step(token)
            rewards.append(reward)
        assert terminated
        assert rollout.rewards[row][mask].numpy() == pytest.approx(np.array(rewards), rel=CLOSE, abs=CLOSE)
        full = completion + rollout.tokens[row][mask].tolist()
        score = letter_values([env.unwrapped.prompts[prompt]], [""], [full])[0]
        assert float(rollout.scores[row]) == pytest.approx(score, abs=1e-6)
        assert rollout.completions[row] == info["completion"]


def test_starts_of_different_lengths_fit_the_context() -> None:
    """A finished row takes up no further positions, while a row that started at its prompt fills the context."""
    env = make(words(4, prompts=["a b"], reference=random_reference(4, 2, sparse=False), max_new_tokens=8))
    policy = random_policy(env, scale=0.1)
    starts = [(0, [1] * 7)] * 4 + [(0, ())] * 12
    rollout = collect(env, policy, 0, generator=seeded(), start=states(get_mdp(env), starts))
    assert int(rollout.mask[4:].sum(dim=1).max()) > 2  # else the context would not be filled
    assert rollout.mask[:4].sum(dim=1).tolist() == [1] * 4


def test_reinforce_with_q_trains_on_long_completions() -> None:
    """One batch of continuations starts at every length."""
    env = make(words(4, prompts=["a b"], reference=random_reference(4, 2, sparse=False), max_new_tokens=8))
    agent = REINFORCE(random_policy(env, scale=0.1), env, n_episodes=16, credit="q", num_continuations=2, seed=0)
    assert agent.learn(100).num_timesteps >= 100


# -- rows --------------------------------------------------------------------------------------------------------------


def test_a_rollout_can_be_indexed() -> None:
    """A slice and a tensor of rows select the same completions, in every field."""
    env, policy = taj_mahal(Path())
    rollout = collect(env, policy, 6, generator=seeded())
    for rows in (slice(1, 4), torch.tensor([1, 2, 3])):
        part = rollout[rows]
        assert len(part) == 3 and part.num_tokens == rollout.num_tokens
        assert part.completions.tolist() == rollout.completions[1:4].tolist()
        assert part.prompts.tolist() == rollout.prompts[1:4].tolist()
        for name in ("prompt", "input_ids", "attention_mask", "mask", "log_probs", "ref_log_probs", "rewards"):
            assert getattr(part, name).equal(getattr(rollout, name)[1:4])
        assert part.kl.equal(rollout.kl[1:4]) and part.action_mask is not None
    assert collect(env, policy, 2, values=False)[:1].values is None
    shuffled = rollout[torch.tensor([5, 0])]
    assert shuffled.completions.tolist() == [rollout.completions[5], rollout.completions[0]]
    tensors_only = rollout.without_strings()
    assert tensors_only[1:4].completions is None and tensors_only[torch.tensor([5, 0])].rewards.equal(shuffled.rewards)
    assert rollout.completions is not None


def test_other_environments_are_refused() -> None:
    """The error names the required kind of environment."""
    with pytest.raises(TypeError, match="environment of textenv"):
        collect(gym.make("CartPole-v1"), toy(Path())[1], 4)


def test_skip_leaves_zeros_where_the_mask_is_false() -> None:
    """In log pi, log pi_ref, rewards and V, as `collect` does; the other rows are the same."""
    env = make(words(4, max_new_tokens=4))
    rollout = collect(env, random_policy(env, scale=0.1), 4, generator=seeded())
    rollout.values = torch.where(rollout.mask, 1.0, 0.0)
    skipped = rollout.skip(torch.tensor([False, True, False, False]))
    assert skipped.valid.tolist() == [True, False, True, True]
    for name in ("log_probs", "ref_log_probs", "rewards", "values"):
        before, after = getattr(rollout, name), getattr(skipped, name)
        assert before[1].any() and not after[1].any() and after[[0, 2, 3]].equal(before[[0, 2, 3]]), name
