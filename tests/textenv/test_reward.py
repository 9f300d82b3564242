"""The reward r_t of the MDP, term by term: the two halves of the KL, the score, the gold score, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import (
    RandomPolicy,
    allowed_action,
    assert_same,
    count_words,
    golden,
    letter_values,
    log_softmax,
    make,
    random_reference,
    stories,
    tasks,
    words,
    zero,
)
from textenv import TextMDP, TextVectorEnv
from textenv.references import CausalLMReference, TableReference
from textenv.shaping import (
    length_penalty,
    missing_eos_penalty,
    repetition_penalty,
)
from textenv.testing import play


def episodes(arguments: dict[str, Any], seed: int, policies: list[Any]) -> list[list[Any]]:
    """One random allowed episode in an environment per policy: [(observation before, step, action, mask)] each."""
    played = []
    for policy in policies:
        env, rng = make(arguments, policy=policy), np.random.default_rng(seed)
        observation, info = env.reset(seed=seed)
        steps: list[Any] = []
        while not steps or not steps[-1][1][2]:
            action = allowed_action(info["action_mask"], rng)
            step = env.step(action)
            steps.append((observation, step, action, info["action_mask"]))
            observation, info = step[0], step[-1]
        played.append(steps)
    return played


@settings(max_examples=40, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 999))
def test_the_two_halves_of_the_kl_add_up(arguments: dict[str, Any], seed: int) -> None:
    """Bound reward = unbound reward - beta log pi(a|s), exactly; log pi is the policy's softmax over allowed tokens."""
    beta, policy = arguments["kl_coef"], RandomPolicy(len(arguments["tokenizer"]), seed)
    unbound, bound = episodes(arguments, seed, [None, policy])
    kl = 0.0
    for (observation, half, action, mask), (_, whole, again, _) in zip(unbound, bound, strict=True):
        assert action == again
        terms, half_terms = dict(whole[-1]["reward_terms"]), half[-1]["reward_terms"]
        kl_policy = terms.pop("kl_policy")
        assert terms == half_terms and "kl_policy" not in half_terms
        assert whole[1] == half[1] + kl_policy  # exactly
        logits = policy(observation["input_ids"][None], observation["attention_mask"][None])[0]
        log_prob = log_softmax(logits, mask == 1)[action]
        assert kl_policy == pytest.approx(-beta * log_prob, abs=1e-12)
        assert half_terms["kl_reference"] == beta * half[-1]["ref_log_prob"]
        kl += log_prob - half[-1]["ref_log_prob"]
    assert bound[-1][1][-1]["kl"] == pytest.approx(kl, abs=1e-12)
    assert "kl" not in unbound[-1][1][-1]


@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 999))
def test_terms_sum_to_the_reward_and_the_score_occurs_once(arguments: dict[str, Any], seed: int) -> None:
    """reward_terms sum to the reward; the score is on the last token and on no other."""
    for steps in episodes(arguments, seed, [None, RandomPolicy(len(arguments["tokenizer"]), seed)]):
        infos = [step[-1] for _, step, _, _ in steps]
        for (_, step, _, _), info in zip(steps, infos, strict=True):
            assert sum(info["reward_terms"].values()) == pytest.approx(step[1], abs=1e-12)
        scores = [info["reward_terms"]["score"] for info in infos]
        assert scores[:-1] == [0.0] * (len(scores) - 1) and scores[-1] == infos[-1]["score"]
        tokens = [action for _, _, action, _ in steps]
        assert infos[-1]["score"] == letter_values([infos[-1]["prompt"]], [""], [tokens])[0]


def test_kl_is_zero_when_the_policy_is_the_reference() -> None:
    """info["kl"] and the sum of the two KL terms are zero for pi = pi_ref, and not for another policy."""
    for sparse in (False, True):
        reference = random_reference(4, 1, sparse)
        arguments = words(reference=reference, reward=zero)
        for policy, is_reference in ((reference.log_probs, True), (RandomPolicy(4), False)):
            for steps in (episodes(arguments, seed, [policy])[0] for seed in range(5)):
                rewards = [step[1] for _, step, _, _ in steps]
                assert np.allclose(rewards, 0.0, atol=1e-12) == is_reference
                assert (abs(steps[-1][1][-1]["kl"]) < 1e-12) == is_reference


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_the_kl_restarts_with_each_episode(mode: str) -> None:
    """info["kl"] restarts with each episode: for one token against uniform it is the same every time."""
    arguments, policy = words(prompts=["a"], max_new_tokens=1), RandomPolicy(4)
    env = make(arguments, policy=policy)
    once = play(env, 0, [1])
    logits = policy(*(value[None] for value in env.reset()[0].values()))[0]
    kl = log_softmax(logits, np.ones(4, dtype=bool))[1] - once.ref_log_probs[0]
    envs = TextVectorEnv(TextMDP(**arguments), 2, autoreset_mode=mode, policy=policy)
    envs.reset()
    for _ in range(3):
        assert env.step(1)[-1]["kl"] == pytest.approx(kl)
        env.reset()
        info = envs.step(np.array([1, 1]))[-1]
        assert (info.get("final_info") or info)["kl"] == pytest.approx(kl)
        if mode == "NextStep":
            envs.step(np.array([1, 1]))
        elif mode == "Disabled":
            envs.reset(options={"reset_mask": np.array([True, True])})


def test_kl_on_a_real_model_is_zero_against_itself(assets: Any) -> None:
    """The same on a language model: a policy with the reference's log-probabilities has no KL reward."""
    env = make(stories(assets, reward=zero, kl_coef=1.0))
    twin = CausalLMReference(str(assets / "stories260k"))
    env.unwrapped.bind_policy(twin.log_probs)
    episode = play(env, 0, [300, 42, 411])
    np.testing.assert_allclose(episode.rewards, 0.0, atol=1e-5)
    env.unwrapped.bind_policy(lambda ids, mask: 0.5 * twin.log_probs(ids, mask))  # another temperature: another policy
    assert abs(play(env, 0, [300, 42, 411]).rewards).max() > 0.01


def test_binding_and_unbinding_switch_the_policys_half() -> None:
    """bind_policy on a made environment equals policy= at construction; None unbinds; both also batched."""
    arguments, policy = words(kl_coef=0.25), RandomPolicy(4)
    env = make(arguments)
    unbound = play(env, 1, "a b").rewards
    env.unwrapped.bind_policy(policy)
    assert (play(env, 1, "a b").rewards == play(make(arguments, policy=policy), 1, "a b").rewards).all()
    assert (play(env, 1, "a b").rewards != unbound).all()
    env.unwrapped.bind_policy(None)
    assert (play(env, 1, "a b").rewards == unbound).all()
    envs = TextVectorEnv(TextMDP(**arguments), 2)
    envs.bind_policy(policy)
    envs.reset(options={"prompt": 1})
    assert "kl_policy" in envs.step(np.array([1, 1]))[-1]["reward_terms"]


@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 999), extra=st.integers(1, 4))
def test_padding_changes_nothing(arguments: dict[str, Any], seed: int, extra: int) -> None:
    """More left padding (a wider prompt window) changes no reward, no KL and no shaping."""
    width = TextMDP(**arguments).prompt_width
    policy = RandomPolicy(len(arguments["tokenizer"]), seed)
    narrow, wide = (episodes(arguments | {"max_prompt_length": w}, seed, [policy])[0] for w in (width, width + extra))
    assert_same([step[1:] for _, step, _, _ in narrow], [step[1:] for _, step, _, _ in wide])
    assert wide[0][0]["input_ids"].shape[0] == narrow[0][0]["input_ids"].shape[0] + extra


def test_the_prompt_has_no_reward() -> None:
    """Only the completion counts: after longer prompts the reference's terms, the KL and the penalties are the same."""
    unigram = np.log([0.1, 0.2, 0.3, 0.4])
    shaping = [length_penalty(1.0), repetition_penalty(1.0), missing_eos_penalty(1.0)]
    arguments = words(reference=TableReference(unigram), reward=count_words, shaping=shaping, kl_coef=1.0)
    env = make(arguments, policy=lambda ids, mask: np.zeros((len(ids), 4)))
    rewards = [play(env, prompt, "b a b").rewards.tolist() for prompt in range(4)]
    assert rewards[0] == rewards[1] == rewards[2] == rewards[3]
    kl = 3 * np.log(0.25) - np.log([0.3, 0.2, 0.3]).sum()
    assert sum(rewards[0]) == pytest.approx(3 - kl - 3 - 1 - 1)  # words, KL, length, repeated "b", missing EOS


@pytest.mark.parametrize(
    ("completion", "rewards", "reason"),
    [("", [0.0], "stop"), ("a", [0, 1.0], "stop"), ("a b", [0, 0, 2.0], "stop"), ("a b c", [0, 0, 3.0], "length")],
)
def test_the_score_is_on_the_last_real_token(completion: str, rewards: list[float], reason: str) -> None:
    """On EOS where there is one ("stop"), else on the last allowed token ("length"), also where pad == eos."""
    arguments = words(reward=count_words, kl_coef=0.0)
    assert arguments["tokenizer"].pad_token_id == arguments["tokenizer"].eos_token_id
    episode = play(make(arguments), 0, completion)
    assert episode.rewards.tolist() == rewards
    assert (episode.finish_reason, episode.score, episode.completion) == (reason, rewards[-1], completion)


def test_eos_is_an_action_like_any_other() -> None:
    """EOS gets its log-probability and its share of the KL, also where it is the padding token, in batches as well."""
    unigram = np.log([0.1, 0.2, 0.3, 0.4])
    arguments = words(reference=TableReference(unigram), reward=zero, kl_coef=1.0)
    assert play(make(arguments), 0, "c a").rewards.tolist() == unigram[[3, 1, 0]].tolist()
    envs = TextVectorEnv(TextMDP(**arguments), 2, autoreset_mode="Disabled")
    envs.reset(options={"prompt": 0})
    _, rewards, terminated, _, info = envs.step(np.array([0, 1]))
    assert rewards.tolist() == unigram[[0, 1]].tolist() and terminated.tolist() == [True, False]
    observation = envs.episodes.observation()
    width = envs.mdp.prompt_width
    assert observation["attention_mask"][:, width].tolist() == [1, 1]  # the mask distinguishes EOS from padding
    assert info["finish_reason"].tolist() == ["stop", None]


def test_each_of_several_eos_tokens_ends_the_completion() -> None:
    """Every token of eos_token_id ends the completion, and no other token does."""
    env = make(words(eos_token_id=[0, 3]))
    assert play(env, 0, [3]).finish_reason == play(env, 0, [1, 0]).finish_reason == "stop"
    assert play(env, 0, [1, 2]).finish_reason is None
    env = make(words(eos_token_id=[]))
    assert play(env, 0, [0, 3]).finish_reason is None and play(env, 0, [0, 3, 1]).finish_reason == "length"


@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 999), bound=st.booleans())
def test_the_gold_reward_is_reported_at_the_end_only(arguments: dict[str, Any], seed: int, bound: bool) -> None:
    """info["gold_score"] is in the last info only; apart from it every observation, reward and info is the same."""
    policy = RandomPolicy(len(arguments["tokenizer"]), seed) if bound else None
    plain, with_gold = (episodes(more | arguments, seed, [policy])[0] for more in ({}, {"gold_reward": golden}))
    infos = [step[-1] for _, step, _, _ in with_gold]
    tokens = [action for _, _, action, _ in with_gold]
    assert ["gold_score" in info for info in infos] == [False] * (len(infos) - 1) + [True]
    gold_score = infos[-1].pop("gold_score")
    assert type(gold_score) is float
    assert gold_score == golden([infos[-1]["prompt"]], [""], [tokens])[0] != infos[-1]["score"]
    assert_same([step for _, step, _, _ in with_gold], [step for _, step, _, _ in plain])


def test_a_gold_reward_in_the_reward_would_be_detected() -> None:
    """Negative control: with `golden` as the reward the rewards differ, and it gives completions different scores."""
    as_reward, as_gold = (
        episodes(words() | more, 0, [None])[0] for more in ({"reward": golden}, {"gold_reward": golden})
    )
    assert [action for _, _, action, _ in as_reward] == [action for _, _, action, _ in as_gold]
    assert as_reward[-1][1][-1]["score"] == as_gold[-1][1][-1]["gold_score"]
    assert [step[1] for _, step, _, _ in as_reward] != [step[1] for _, step, _, _ in as_gold]
    assert len({episodes(words(gold_reward=golden), s, [None])[0][-1][1][-1]["gold_score"] for s in range(9)}) > 4
