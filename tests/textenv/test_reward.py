"""The reward r_t: what is paid when, term by term, and that nothing else is paid."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import (
    SHAPING,
    RandomPolicy,
    allowed_action,
    assert_same,
    count_words,
    golden,
    hashed_potential,
    letter_values,
    log_softmax,
    make,
    mdp,
    random_reference,
    stories,
    tasks,
    words,
    zero,
)
from textenv import TextMDP, TextVectorEnv
from textenv.bound_policy import masked_log_softmax
from textenv.references import CausalLMReference, TableReference
from textenv.rewards import WeightedReward
from textenv.shaping import (
    Transitions,
    length_penalty,
    missing_eos_penalty,
    potential_based,
    repetition_penalty,
    shaping_name,
)
from textenv.testing import play


def episodes(arguments: dict[str, Any], seed: int, policies: list[Any]) -> list[list[Any]]:
    """The same random legal text played in an environment for each policy: [(observation before, step)] each."""
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


# -- the KL and its two halves -----------------------------------------------------------------------------------------


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
        paid = terms.pop("kl_policy")
        assert terms == half_terms and "kl_policy" not in half_terms
        assert whole[1] == half[1] + paid  # exactly
        logits = policy(observation["input_ids"][None], observation["attention_mask"][None])[0]
        log_prob = log_softmax(logits, mask == 1)[action]
        assert paid == pytest.approx(-beta * log_prob, abs=1e-12)
        assert half_terms["kl_reference"] == beta * half[-1]["ref_log_prob"]
        kl += log_prob - half[-1]["ref_log_prob"]
    assert bound[-1][1][-1]["kl"] == pytest.approx(kl, abs=1e-12)
    assert "kl" not in unbound[-1][1][-1]


@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 999))
def test_terms_sum_to_the_reward_and_score_is_paid_once(arguments: dict[str, Any], seed: int) -> None:
    """reward_terms sum to the reward; the score stands on the last token and on no other."""
    for steps in episodes(arguments, seed, [None, RandomPolicy(len(arguments["tokenizer"]), seed)]):
        infos = [step[-1] for _, step, _, _ in steps]
        for (_, step, _, _), info in zip(steps, infos, strict=True):
            assert sum(info["reward_terms"].values()) == pytest.approx(step[1], abs=1e-12)
        scores = [info["reward_terms"]["score"] for info in infos]
        assert scores[:-1] == [0.0] * (len(scores) - 1) and scores[-1] == infos[-1]["score"]
        answer = [action for _, _, action, _ in steps]
        assert infos[-1]["score"] == letter_values([infos[-1]["prompt"]], [""], [answer])[0]


def test_kl_is_zero_when_the_policy_is_the_reference() -> None:
    """info["kl"] and the sum of the two KL terms vanish for pi = pi_ref, and not for another policy."""
    for sparse in (False, True):
        reference = random_reference(4, 1, sparse)
        arguments = words(reference=reference, reward=zero)
        for policy, is_reference in ((reference.log_probs, True), (RandomPolicy(4), False)):
            for steps in (episodes(arguments, seed, [policy])[0] for seed in range(5)):
                paid = [step[1] for _, step, _, _ in steps]
                assert np.allclose(paid, 0.0, atol=1e-12) == is_reference
                assert (abs(steps[-1][1][-1]["kl"]) < 1e-12) == is_reference


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_the_kl_of_a_text_is_its_own(mode: str) -> None:
    """info["kl"] begins anew with each text: for one word against uniform it is the same, text after text."""
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
    """The same on a language model: a policy that answers with the reference's log-probabilities is paid no KL."""
    env = make(stories(assets, reward=zero, kl_coef=1.0))
    twin = CausalLMReference(str(assets / "stories260k"))
    env.unwrapped.bind_policy(twin.log_probs)
    episode = play(env, 0, [300, 42, 411])
    np.testing.assert_allclose(episode.rewards, 0.0, atol=1e-5)
    env.unwrapped.bind_policy(lambda ids, mask: 0.5 * twin.log_probs(ids, mask))  # another temperature: another policy
    assert abs(play(env, 0, [300, 42, 411]).rewards).max() > 0.01


def test_binding_and_unbinding_switch_the_half_that_is_paid() -> None:
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


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50), min_size=4, max_size=4),
    mask=st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
    junk=st.lists(st.floats(allow_nan=False, width=32), min_size=4, max_size=4),
)
def test_forbidden_actions_never_matter(logits: list[float], mask: list[bool], junk: list[float]) -> None:
    """masked_log_softmax: allowed tokens sum to one, forbidden ones are -inf, whatever their logits are."""
    allowed = np.array(mask)
    right = masked_log_softmax(np.array(logits), allowed)
    assert np.exp(right[allowed]).sum() == pytest.approx(1.0)
    assert np.isneginf(right[~allowed]).all()
    np.testing.assert_allclose(right[allowed], log_softmax(np.array(logits), allowed)[allowed], atol=1e-12)
    assert (masked_log_softmax(np.where(allowed, logits, junk), allowed) == right).all()
    if allowed.sum() > 1:  # negative control: an allowed action's logit does matter
        moved = np.array(logits) + (np.arange(4) == np.flatnonzero(allowed)[0])
        assert (masked_log_softmax(moved, allowed) != right).any()


# -- prompts and padding -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 999), extra=st.integers(1, 4))
def test_padding_counts_nothing(arguments: dict[str, Any], seed: int, extra: int) -> None:
    """A wider prompt window (more padding on the left) changes no reward, no KL and no shaping."""
    width = TextMDP(**arguments).prompt_width
    policy = RandomPolicy(len(arguments["tokenizer"]), seed)
    narrow, wide = (episodes(arguments | {"max_prompt_length": w}, seed, [policy])[0] for w in (width, width + extra))
    assert_same([step[1:] for _, step, _, _ in narrow], [step[1:] for _, step, _, _ in wide])
    assert wide[0][0]["input_ids"].shape[0] == narrow[0][0]["input_ids"].shape[0] + extra


def test_the_prompt_is_not_paid_for() -> None:
    """The answer alone is scored: after longer prompts the reference's terms, the KL and the penalties are the same."""
    unigram = np.log([0.1, 0.2, 0.3, 0.4])
    shaping = [length_penalty(1.0), repetition_penalty(1.0), missing_eos_penalty(1.0)]
    arguments = words(reference=TableReference(unigram), reward=count_words, shaping=shaping, kl_coef=1.0)
    env = make(arguments, policy=lambda ids, mask: np.zeros((len(ids), 4)))
    paid = [play(env, prompt, "b a b").rewards.tolist() for prompt in range(4)]
    assert paid[0] == paid[1] == paid[2] == paid[3]
    kl = 3 * np.log(0.25) - np.log([0.3, 0.2, 0.3]).sum()
    assert sum(paid[0]) == pytest.approx(3 - kl - 3 - 1 - 1)  # words, KL, length, "b" again, no end


# -- the score ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "rewards", "reason"),
    [("", [0.0], "stop"), ("a", [0, 1.0], "stop"), ("a b", [0, 0, 2.0], "stop"), ("a b c", [0, 0, 3.0], "length")],
)
def test_score_is_paid_on_the_last_real_token(answer: str, rewards: list[float], reason: str) -> None:
    """On EOS where there is one ("stop"), else on the last token that fits ("length"), also where pad == eos."""
    arguments = words(reward=count_words, kl_coef=0.0)
    assert arguments["tokenizer"].pad_token_id == arguments["tokenizer"].eos_token_id
    episode = play(make(arguments), 0, answer)
    assert episode.rewards.tolist() == rewards
    assert (episode.finish_reason, episode.score, episode.text) == (reason, rewards[-1], answer)


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
    assert observation["attention_mask"][:, width].tolist() == [1, 1]  # the mask tells EOS from a blank
    assert info["finish_reason"].tolist() == ["stop", None]


def test_several_end_tokens_end_a_text() -> None:
    """Every token of eos_token_id ends the text, and none of the others does."""
    env = make(words(eos_token_id=[0, 3]))
    assert play(env, 0, [3]).finish_reason == play(env, 0, [1, 0]).finish_reason == "stop"
    assert play(env, 0, [1, 2]).finish_reason is None
    env = make(words(eos_token_id=[]))
    assert play(env, 0, [0, 3]).finish_reason is None and play(env, 0, [0, 3, 1]).finish_reason == "length"


# -- reward functions --------------------------------------------------------------------------------------------------


def test_columns_reach_the_reward_beside_their_prompts() -> None:
    """Each text is scored with the fields of its own prompt, in one call; None for a prompt that has none."""
    calls = []

    def target(prompts: Any, completions: Any, completion_ids: Any, goal: Any, weight: Any, **columns: Any) -> Any:
        calls.append((list(prompts), list(completions), [list(ids) for ids in completion_ids], list(goal)))
        assert not columns
        return [0.0 if g is None else w * (text == g) for text, g, w in zip(completions, goal, weight, strict=True)]

    rows = [{"prompt": "a", "goal": "b", "weight": 2.0}, {"prompt": "b a", "goal": "c", "weight": 3.0}]
    envs = TextVectorEnv(TextMDP(**words(prompts=rows, reward=target, kl_coef=0.0, max_new_tokens=2)), 6)
    envs.reset(seed=0)
    drawn = envs.episodes.texts.prompt.tolist()
    assert set(drawn) == {0, 1}
    envs.step(np.array([2, 3, 2, 3, 2, 3]))
    rewards = envs.step(np.zeros(6, dtype=int))[1]
    assert rewards.tolist() == [{(0, 0): 2.0, (1, 1): 3.0}.get((p, row % 2), 0.0) for row, p in enumerate(drawn)]
    prompts, completions, ids, goals = calls.pop()
    assert not calls and prompts == [rows[p]["prompt"] for p in drawn] and goals == [rows[p]["goal"] for p in drawn]
    assert completions == ["b", "c"] * 3 and ids == [[2, 0], [3, 0]] * 3
    own = make(words(prompts=rows, reward=target, kl_coef=0.0))
    assert play(own, [2], "b").score == 0.0 and calls[-1][-1] == [None]


def test_several_reward_functions_are_weighed_and_none_abstains() -> None:
    """score = sum of weight x score over the functions that do not answer None."""

    def odd(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        return [10.0 if len(ids) % 2 else None for ids in completion_ids]

    def as_array(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> np.ndarray:
        return np.ones(len(prompts), dtype=np.float32)

    arguments = words(reward=[count_words, odd, as_array], reward_weights=[1.0, 0.5, -2.0], kl_coef=0.0)
    env = make(arguments)
    assert play(env, 0, "a").score == 1 - 2  # two tokens: `odd` abstains
    assert play(env, 0, "a b").score == 2 + 5 - 2
    assert play(make(words(reward=[count_words, odd])), 0, "a b").score == 12  # weights are 1 by default


def test_a_torch_tensor_is_a_list_of_scores() -> None:
    """A reward model that answers with a tensor is understood."""
    import torch

    scorer = WeightedReward(lambda prompts, **_: torch.tensor([0.5] * len(prompts)))
    assert scorer(["a", "b"], ["", ""], [[0], [0]], {}).tolist() == [0.5, 0.5]


# -- the gold reward ---------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 999), bound=st.booleans())
def test_the_gold_reward_is_shown_at_the_end_and_not_paid(arguments: dict[str, Any], seed: int, bound: bool) -> None:
    """info["gold_score"] stands on the last step alone; without it every observation, reward and info is the same."""
    policy = RandomPolicy(len(arguments["tokenizer"]), seed) if bound else None
    plain, told = (episodes(more | arguments, seed, [policy])[0] for more in ({}, {"gold_reward": golden}))
    infos = [step[-1] for _, step, _, _ in told]
    answer = [action for _, _, action, _ in told]
    assert ["gold_score" in info for info in infos] == [False] * (len(infos) - 1) + [True]
    shown = infos[-1].pop("gold_score")
    assert type(shown) is float
    assert shown == golden([infos[-1]["prompt"]], [""], [answer])[0] != infos[-1]["score"]
    assert_same([step for _, step, _, _ in told], [step for _, step, _, _ in plain])


def test_a_gold_reward_that_is_paid_would_be_noticed() -> None:
    """Negative control: where `golden` is paid, rewards are others, and what it gives to texts differs."""
    paid, shown = (episodes(words() | more, 0, [None])[0] for more in ({"reward": golden}, {"gold_reward": golden}))
    assert [action for _, _, action, _ in paid] == [action for _, _, action, _ in shown]
    assert paid[-1][1][-1]["score"] == shown[-1][1][-1]["gold_score"]
    assert [step[1] for _, step, _, _ in paid] != [step[1] for _, step, _, _ in shown]
    assert len({episodes(words(gold_reward=golden), s, [None])[0][-1][1][-1]["gold_score"] for s in range(9)}) > 4


def test_columns_reach_the_gold_reward_and_several_are_added() -> None:
    """It sees the fields of its own prompt; several are their sum, whatever the reward's weights, and None abstains."""

    def goal(prompts: Any, completions: Any, completion_ids: Any, target: Any) -> list[float | None]:
        return [None if t is None else float(text == t) for text, t in zip(completions, target, strict=True)]

    rows = [{"prompt": "a", "target": "b"}, {"prompt": "b a", "target": "c"}]
    weighed = {"reward": [letter_values, count_words], "reward_weights": [3.0, -1.0]}
    env = make(words(prompts=rows, gold_reward=[goal, count_words], **weighed))
    for prompt, completion, gold in (("a", [2], 2.0), ("a", [3], 1.0), ("b a", [3], 2.0), ([2], [2, 3], 2.0)):
        env.reset(options={"prompt": prompt, "completion": completion})
        assert env.step(0)[-1]["gold_score"] == gold


# -- shaping -----------------------------------------------------------------------------------------------------------


@st.composite
def answers(draw: Any) -> tuple[TextMDP, list[int], list[list[int]]]:
    """Prompts and finished answers of different lengths, ended by EOS or by the limit."""
    horizon = draw(st.integers(1, 5))
    task = mdp(max_new_tokens=horizon)
    count = draw(st.integers(1, 4))
    written = []
    for _ in range(count):
        answer = draw(st.lists(st.integers(1, 3), max_size=horizon))
        written.append(answer + [0] * (len(answer) < horizon))
    return task, draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), written


def whole(task: TextMDP, prompts: list[int], written: list[list[int]], junk: int = 0) -> Transitions:
    """The [B, T] transitions of finished answers, from their first states; `junk` stands after the ends."""
    longest = max(map(len, written))
    texts = task.empty_state(len(written))
    task.reset_rows(texts, np.arange(len(written)), np.array(prompts))
    tokens = np.array([answer + [junk] * (longest - len(answer)) for answer in written])
    mask = np.array([[t < len(answer) for t in range(longest)] for answer in written])
    return task.transitions(texts, tokens, mask)


def stepped(task: TextMDP, term: Any, prompts: list[int], written: list[list[int]]) -> list[list[float]]:
    """What the term pays in an environment that is stepped token by token."""
    arguments = words(max_new_tokens=task.max_new_tokens, shaping=[term])
    return [
        play(make(arguments), prompt, answer).terms[shaping_name(term)].tolist()
        for prompt, answer in zip(prompts, written, strict=True)
    ]


@pytest.mark.parametrize("term", [*SHAPING, potential_based(hashed_potential, gamma=0.5)])
@settings(max_examples=20, deadline=None)
@given(drawn=answers(), junk=st.integers(0, 3))
def test_shaping_of_whole_answers_equals_stepping(term: Any, drawn: Any, junk: int) -> None:
    """Each term pays a batch of whole answers [B, T] what it pays step by step, whatever stands after the ends."""
    task, prompts, written = drawn
    moves = whole(task, prompts, written, junk)
    paid = np.where(moves.mask, term(moves), 0.0)
    for row, expected in enumerate(stepped(task, term, prompts, written)):
        assert paid[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-12)
        assert not paid[row, len(expected) :].any()


@settings(max_examples=30, deadline=None)
@given(drawn=answers(), cut=st.integers(0, 1), junk=st.integers(0, 3))
def test_reward_terms_of_whole_answers_equal_stepping(drawn: Any, cut: int, junk: int) -> None:
    """The one reward function pays answers [B, T] at once as stepping does: score once, nothing after the end."""
    task, prompts, written = drawn
    written = [answer[: max(1, len(answer) - cut)] for answer in written]  # cut: texts that have not ended
    reference = random_reference(4, 0, sparse=False)
    env = make(words(max_new_tokens=task.max_new_tokens, reference=reference, shaping=SHAPING))
    episodes = [play(env, prompt, answer) for prompt, answer in zip(prompts, written, strict=True)]
    task = env.unwrapped.mdp
    moves = whole(task, prompts, written, junk)
    log_probs = np.full(moves.mask.shape, -99.0)
    log_probs[moves.mask] = np.concatenate([episode.ref_log_probs for episode in episodes])
    scores = np.array([7.0 if episode.score is None else episode.score for episode in episodes])  # 7: must be ignored
    terms = task.reward_terms(moves, log_probs, scores, log_probs)
    assert terms.pop("kl_policy").tolist() == (-terms["kl_reference"]).tolist()
    for row, episode in enumerate(episodes):
        length = len(written[row])
        for name, paid in terms.items():
            assert paid[row, :length] == pytest.approx(episode.terms[name], abs=1e-12), name
            assert not paid[row, length:].any(), name


@settings(max_examples=30, deadline=None)
@given(drawn=answers())
def test_potential_based_shaping_telescopes(drawn: Any) -> None:
    """Whatever is written, the sum of gamma Phi(s') - Phi(s) is -Phi(s_0); with gamma 1/2, discounted, as well."""
    task, prompts, written = drawn
    first = hashed_potential(task.prompts.input_ids[prompts], task.prompts.attention_mask[prompts])
    for gamma in (1.0, 0.5):
        paid = stepped(task, potential_based(hashed_potential, gamma), prompts, written)
        returns = [sum(gamma**t * r for t, r in enumerate(rewards)) for rewards in paid]
        assert returns == pytest.approx((-first).tolist(), abs=1e-12)


def test_a_term_that_is_not_a_potential_does_not_telescope() -> None:
    """Negative control: the length penalty's sum depends on what is written."""
    paid = stepped(mdp(), length_penalty(0.25), [0, 0], [[1, 0], [0]])
    assert sum(paid[0]) != sum(paid[1])


@pytest.mark.parametrize(
    ("term", "answer", "paid"),
    [
        (length_penalty(0.5), "a b", [-0.5, -0.5, -0.5]),
        (length_penalty(0.5), "a b c", [-0.5, -0.5, -0.5]),
        (repetition_penalty(2.0), "a a a", [0, -2.0, -2.0]),
        (repetition_penalty(2.0), "a b a", [0, 0, -2.0]),
        (repetition_penalty(2.0), "c b", [0, 0, 0]),  # after the prompt "b a b": words of the prompt are no repetition
        (missing_eos_penalty(3.0), "a b c", [0, 0, -3.0]),
        (missing_eos_penalty(3.0), "a b", [0, 0, 0]),
        (missing_eos_penalty(3.0), "", [0]),
    ],
)
def test_shaping_terms_pay_what_they_say(term: Any, answer: str, paid: list[float]) -> None:
    """Length: each token, EOS too. Repetition: from the second time, in the answer. Missing EOS: only when cut off."""
    env = make(words(prompts=["b a b"], reward=zero, kl_coef=0.0, shaping=[term]))
    episode = play(env, 0, answer)
    assert episode.rewards.tolist() == paid == episode.terms[shaping_name(term)].tolist()


def test_shaping_goes_on_where_reset_put_the_text() -> None:
    """In a state rebuilt by reset, shaping sees the answer so far: the last step pays the same as after stepping."""
    for term in SHAPING:
        env = make(words(shaping=[term]))
        walked = play(env, 0, [2, 1, 2]).rewards[-1]
        env.reset(options={"prompt": 0, "completion": [2, 1]})
        assert env.step(2)[1] == walked


# -- TajMahal, by hand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("the taj mahal is in agra india", 1.5),  # city 1, country .3, sentence .2
        ("the taj mahal is in agra", 1.2),
        ("it is in agra india", 1.3),
        ("agra", 1.0),
        ("india", 0.2),
        ("the taj mahal is in uttar pradesh", 0.4),
        ("it is in paris", -1.0),
        ("the taj mahal is in france", -1.0),
        ("lucknow uttar pradesh india", -1.0),  # the state and the country are right, the city is not
    ],
)
def test_taj_mahal_pays_its_table(answer: str, score: float) -> None:
    """The table of the task's page, row by row, paid at the end token; before it, only the reference's half."""
    episode = play(gym.make("textenv/TajMahal-v0", kl_coef=0.0), "where is the taj mahal located", answer)
    assert episode.score == pytest.approx(score)
    assert episode.rewards[:-1].tolist() == [0.0] * (len(episode.rewards) - 1)
    assert episode.rewards[-1] == episode.score and episode.finish_reason == "stop"


def test_taj_mahal_reference_says_what_was_set() -> None:
    """pi_ref("agra") and pi_ref("it is in paris france") are products of the task's tables, computed by hand."""
    env = gym.make("textenv/TajMahal-v0", kl_coef=0.1)
    # no opening .3 x own place .4 x "city" .4; the same city in no other form
    agra = play(env, "where is the taj mahal", "agra")
    assert agra.ref_log_probs.sum() == pytest.approx(np.log(0.3 * 0.4 * 0.4))
    assert agra.rewards.sum() == pytest.approx(1.0 + 0.1 * np.log(0.3 * 0.4 * 0.4))
    # "it is in" .3 x the Eiffel tower's place .25 x "city country" .1 of the .7 that need no state
    paris = play(env, "where is the taj mahal", "it is in paris france")
    assert paris.ref_log_probs.sum() == pytest.approx(np.log(0.3 * 0.25 * 0.1 / 0.7))
