"""`TabulatedBackend` equals stepping exactly; the oracle is `tests.helpers.plain_env`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.envs import MODES, array_and_loop, compare_trajectories, masked_info
from tests.helpers.tasks import RandomPolicy, assert_same, golden, letter_values, random_reference, tasks, words
from textenv import InvalidAction, TextEnv, TextMDP, TextVectorEnv
from textenv.data import WordTokenizer
from textenv.references import TableReference
from textenv.shaping import length_penalty
from textenv.stepping.reference import ReferenceBackend
from textenv.stepping.table import TableBackend
from textenv.stepping.tabulated import TabulatedBackend


class OfTokens:
    """A reward in both forms: `score_tokens` converts the arrays into the lists that the function takes."""

    def __init__(self, function: Any, prompts: list[str]) -> None:
        self.function, self.prompts = function, prompts

    def __call__(self, **arguments: Any) -> list[float]:
        """From lists."""
        scores: list[float] = self.function(**arguments)
        return scores

    def score_tokens(self, prompt: Any, tokens: Any, length: Any) -> Any:
        """From arrays."""
        ids = [row[:n].tolist() for row, n in zip(tokens, length, strict=True)]
        return np.array(self.function([self.prompts[i] for i in prompt], [""] * len(ids), ids))


def small(gold: bool = False, **arguments: Any) -> dict[str, Any]:
    """Arguments of a task that is tabulated."""
    arguments = words() | arguments | {"shaping": ()}
    prompts = arguments["prompts"]
    arguments["gold_reward"] = OfTokens(golden, prompts) if gold else None
    return arguments | {"reward": OfTokens(letter_values, prompts)}


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), num_envs=st.integers(1, 4), seed=st.integers(0, 2**32), gold=st.booleans())
def test_tabulated_episodes_equal_stepped_ones(
    mode: AutoresetMode, arguments: dict[str, Any], num_envs: int, seed: int, gold: bool
) -> None:
    """Observations, masks, rewards, terminations and infos, dense and sparse, with and without a gold reward."""
    pair = array_and_loop(small(gold, **arguments), num_envs, mode)
    assert type(pair[0].episodes.backend) is TabulatedBackend
    assert compare_trajectories(pair, seed, steps=9) > 0


def test_the_comparison_detects_a_wrong_edge() -> None:
    """Negative control: a wrong score, log-probability or child each fails the comparison."""
    for table, value in (("score", 1e-9), ("ref_log_prob", 1e-9), ("child", 1)):
        pair = array_and_loop(small(), 3, AutoresetMode.NEXT_STEP)
        getattr(pair[0].episodes.backend, table)[: -pair[0].mdp.vocab_size] += value
        with pytest.raises((AssertionError, IndexError)):
            compare_trajectories(pair, seed=0, steps=12)


def legal(envs: TextVectorEnv, rng: np.random.Generator) -> Any:
    keys = rng.random((envs.num_envs, envs.mdp.vocab_size))
    return np.where(envs.episodes.action_mask() == 1, keys, -1.0).argmax(axis=1)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("leave", ["policy", "options"])
def test_another_backend_goes_on_with_the_episodes(leave: str, sparse: bool) -> None:
    """After a policy is bound, or a reset names a state, a `TableBackend` continues the same episodes, for good."""
    arguments = small(max_new_tokens=4, reference=random_reference(4, 1, sparse))
    tabulated, stepped = (TextVectorEnv(TextMDP(**arguments), 5) for _ in range(2))
    assert type(tabulated.episodes.backend) is TabulatedBackend
    stepped.episodes.backend = TableBackend(stepped.mdp, 5)
    results: list[list[Any]] = [[], []]
    for envs, log in zip((tabulated, stepped), results, strict=True):
        rng = np.random.default_rng(0)
        envs.reset(seed=3)
        for _ in range(7):
            step = envs.step(legal(envs, rng))
            log.append([*step[:-1], masked_info(step[-1])])
        if leave == "policy":
            envs.bind_policy(RandomPolicy(4))
        else:
            rows = np.array([True, False, True, False, False])
            log.append(list(envs.reset(options={"prompt": "b a b", "reset_mask": rows}))[:1])
        for _ in range(9):
            step = envs.step(legal(envs, rng))
            log.append([*step[:-1], masked_info(step[-1])])
        envs.bind_policy(None)
        log += [envs.reset()[0], envs.step(legal(envs, rng))[:-1]]
        assert type(envs.episodes.backend) is TableBackend
    assert_same(*results)


def test_a_refused_reset_keeps_the_episodes() -> None:
    """An option that does not exist, a state that cannot be: the episodes and their prompts go on as before."""
    envs, twin = (TextVectorEnv(TextMDP(**small()), 3) for _ in range(2))
    for each in (envs, twin):
        each.reset(seed=1)
        each.step(np.array([1, 2, 3]))
    for options in ({"promt": 0}, {"prompt": 99}, {"completion": "a b a b a b a b"}):
        with pytest.raises(ValueError):
            envs.reset(options=options)
    for _ in range(8):
        assert_same(envs.step(np.array([1, 2, 3])), twin.step(np.array([1, 2, 3])))


def test_a_masked_token_is_refused_and_changes_nothing() -> None:
    """The error equals that of a `TableBackend`; the episodes stay as they were."""
    arguments = small(reference=random_reference(4, 1, sparse=True))
    envs, plain = (TextVectorEnv(TextMDP(**arguments | more), 3) for more in ({}, {"reward": letter_values}))
    assert (type(envs.episodes.backend), type(plain.episodes.backend)) == (TabulatedBackend, TableBackend)
    errors = []
    for each in (envs, plain):
        _, info = each.reset(seed=0)
        actions = info["action_mask"].argmax(axis=1)
        actions[1] = info["action_mask"][1].argmin()
        before = each.episodes.observation()
        with pytest.raises(InvalidAction, match="is masked") as error:
            each.step(actions)
        errors.append(str(error.value))
        assert_same(each.episodes.observation(), before)
        with pytest.raises(InvalidAction, match=r"must be in 0 \.\. 3, got -1"):
            each.step(np.array([0, -1, 0]))
    assert errors[0] == errors[1]
    with pytest.raises(gym.error.ResetNeeded):
        TextVectorEnv(TextMDP(**arguments), 2).step(np.zeros(2, dtype=int))


OWN = type("Own", (TableReference,), {})(np.log(np.full((1, 4), 0.25)))


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({}, TabulatedBackend),
        ({"reward": letter_values}, TableBackend),
        ({"gold_reward": golden}, TableBackend),
        ({"shaping": [length_penalty(0.25)]}, TableBackend),
        ({"max_new_tokens": 30}, TableBackend),
        ({"reference": OWN}, ReferenceBackend),
    ],
)
@pytest.mark.parametrize("make_env", [TextEnv, lambda mdp: TextVectorEnv(mdp, 2)])
def test_which_backend_a_task_has(make_env: Any, more: dict[str, Any], kind: type) -> None:
    """Tables need rewards that always give the same score, no shaping, few completions, a `TableReference` itself."""
    assert type(make_env(TextMDP(**small() | more)).episodes.backend) is kind


def test_a_changed_beta_applies_to_the_next_step() -> None:
    """The tables hold log pi_ref, not the reward: beta may change between two steps."""
    envs = TextVectorEnv(TextMDP(**small(kl_coef=0.5)), 2)
    envs.reset(seed=0)
    envs.mdp.kl_coef = 2.0
    info = envs.step(np.array([1, 2]))[-1]
    assert info["reward_terms"]["kl_reference"].tolist() == (2.0 * info["ref_log_prob"]).tolist()


def test_the_info_belongs_to_the_caller() -> None:
    """What a caller changes in an info, an observation or a mask is not in those of the next episode."""
    env = TextEnv(TextMDP(**small(max_new_tokens=1)))
    steps = []
    for _ in range(2):
        env.reset(options={"prompt": 0})
        observation, _, _, _, info = env.step(1)
        steps.append((observation["input_ids"].copy(), dict(info)))
        info["score"], info["reward_terms"]["score"] = 100.0, 100.0
        observation["input_ids"][:] = 7
    assert_same(*steps)


def test_wide_tables_are_not_tabulated() -> None:
    """Few completions over many tokens: the tables' size decides."""
    vocab_size = 2000
    log_probs = np.full((1, vocab_size), -np.inf)
    log_probs[0, 1:3] = np.log(0.5)
    tokenizer = WordTokenizer([f"w{i}" for i in range(vocab_size - 1)])
    task = small() | {"tokenizer": tokenizer, "prompts": ["w0"], "reference": TableReference(log_probs)}
    task["reward"] = OfTokens(letter_values, ["w0"])
    for length, kind in ((4, TabulatedBackend), (13, TableBackend)):
        assert type(TextVectorEnv(TextMDP(**task | {"max_new_tokens": length}), 2).episodes.backend) is kind
