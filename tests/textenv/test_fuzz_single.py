"""A state machine over `TextEnv`: any order of calls, legal and refused, against a model of the process."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition

from tests.helpers.episode_model import Episode, Stream
from tests.helpers.fuzz import FuzzedMachine, fuzz, operation
from tests.helpers.fuzzed_tasks import FAILS, PureLetters, arguments, broken_policies, fuzzed_tasks
from tests.helpers.inputs import LEAST, check_inputs
from tests.helpers.planted_faults import PLANTED
from tests.helpers.refusals import ODD, refused
from tests.helpers.tasks import LETTERS, PROMPTS, RandomPolicy, assert_same, make
from textenv import InvalidAction

FORMS = [int, np.int64, np.int32, np.uint8, np.array, torch.tensor]  # of an action
ILLEGAL = [value for value in ODD if not isinstance(value, bool | int | np.integer)]
SEEDS = st.integers(0, 3) | st.sampled_from([np.int64(2), np.uint64(2**64 - 1), 2**200])


class SingleMachine(FuzzedMachine):
    """Calls of one environment."""

    @initialize(task=fuzzed_tasks(), seed=SEEDS)
    def begin(self, task: Any, seed: Any) -> None:
        """Makes the environment; its first reset may be refused before it succeeds."""
        self.task, self.policy = task, None
        self.env = make(arguments(task), render_mode="ansi")
        self.stream = Stream(0, len(task["prompts"]))
        self.started = False
        with refused():
            self.env.reset(seed=seed, options={"prompt": "zebra"})
        self.start(seed)

    def start(self, seed: Any) -> None:
        """A reset without options: the next prompt of the stream, or the first one of another seed's."""
        observation, info = self.env.reset(seed=seed)
        if seed is not None or not self.started:
            self.stream = Stream(int(self.env.unwrapped.np_random_seed), len(self.task["prompts"]))
            assert seed is None or self.stream.seed == int(seed)
        self.begin_episode(Episode(self.task, self.task["prompts"][self.stream.draw()]), observation, info)

    def begin_episode(self, episode: Episode, observation: Any, info: Any) -> None:
        """The model's episode from now on, and what `reset` has returned."""
        self.episode, self.observation, self.started = episode, observation, True
        self.rewards: list[float | None] = [None] * len(episode.tokens)
        assert info.keys() == {"action_mask"}
        assert info["action_mask"].tolist() == episode.allowed()

    @operation(seed=st.none() | SEEDS)
    def reset(self, seed: Any) -> None:
        """A reset by the stream, in the middle of an episode too."""
        self.start(seed)

    @operation(data=st.data())
    def reset_to_a_state(self, data: Any) -> None:
        """To a prompt by index, text or ids, listed or not, and the first tokens of a completion."""
        prompt = data.draw(st.sampled_from([*self.task["prompts"], *PROMPTS[:2]]))
        tokens = data.draw(st.lists(st.integers(0, len(self.task["tokenizer"]) - 1), max_size=3))
        episode = Episode(self.task, prompt, tokens)
        ids = episode.ids[: len(prompt.split())]
        forms: list[Any] = [prompt, ids, np.array(ids), torch.tensor(ids)]
        if prompt in self.task["prompts"]:
            forms += [self.task["prompts"].index(prompt)]
        text = " ".join(LETTERS[token - 1] for token in tokens)
        completions: list[Any] = [tokens, np.array(tokens, dtype=np.int64), *([text] if 0 not in tokens else [])]
        options = {"prompt": data.draw(st.sampled_from(forms)), "completion": data.draw(st.sampled_from(completions))}
        fits = len(ids) <= self.env.unwrapped.mdp.prompt_width
        if not fits or 0 in tokens or len(tokens) >= self.task["max_new_tokens"] or not any(episode.allowed()):
            with refused(ValueError):
                self.env.reset(options=options)
            return
        observation, info = self.env.reset(options=options)
        self.stream.draw()
        self.begin_episode(episode, observation, info)

    @operation(data=st.data())
    def reset_with_odd_arguments(self, data: Any) -> None:
        """Refused."""
        odd = data.draw(st.sampled_from(ILLEGAL))
        options = data.draw(
            st.sampled_from([{"prompt": 99}, {"promt": odd}, {odd.__class__: 0}, {"completion": "zebra"}])
        )
        seed = data.draw(st.sampled_from([*ILLEGAL, -1, True]))
        with refused(ValueError):
            self.env.reset(**data.draw(st.sampled_from([{"options": options}, {"seed": seed}])))

    @operation(pick=st.integers(0, 9), form=st.sampled_from(FORMS))
    def step(self, pick: int, form: Any) -> None:
        """A token that is allowed, as an integer of any kind."""
        token = self.pick(self.episode.allowed(), pick)
        if self.episode.ended:
            with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
                self.env.step(form(token))
            return
        self.take(form(token))

    def pick(self, tokens: list[bool], pick: int) -> int:
        """One of the tokens that are True."""
        return int(np.flatnonzero(tokens)[pick % sum(tokens)])

    def take(self, action: Any) -> None:
        """A step of both; what the environment returns is what the model says."""
        allowed_before = self.episode.ref_log_probs()
        self.observation, reward, terminated, truncated, info = self.env.step(action)
        terms, final = self.episode.take(int(action), self.policy)
        self.rewards.append(reward)
        assert isinstance(reward, float) and (terminated, truncated) == (self.episode.ended, False)
        assert sum(info["reward_terms"].values()) == reward
        assert_same({**info["reward_terms"]}, terms, 1e-6)
        assert info["ref_log_prob"] == pytest.approx(allowed_before[int(action)], abs=1e-6)
        assert_same({name: info[name] for name in final}, final, 1e-6)
        assert info.keys() == {"action_mask", "ref_log_prob", "reward_terms", *final}
        assert info["action_mask"].tolist() == self.episode.allowed()

    @precondition(lambda self: not all(self.episode.allowed()))
    @operation(pick=st.integers(0, 9))
    def step_to_a_masked_token(self, pick: int) -> None:
        """Refused."""
        masked = [not allowed for allowed in self.episode.allowed()]
        with refused(InvalidAction, match="is masked after"):
            self.env.step(self.pick(masked, pick))

    @operation(odd=st.sampled_from([*ILLEGAL, -1, True, 5, 2**200, np.uint64(2**64 - 1)]))
    def step_with_an_odd_action(self, odd: Any) -> None:
        """Refused: no integer, or none in 0 .. V-1."""
        kind = gym.error.ResetNeeded if self.episode.ended else InvalidAction
        with refused(kind):
            self.env.step(odd)

    @precondition(lambda self: not self.episode.ended and not isinstance(self.task["reward"], PureLetters))
    @operation(pick=st.integers(0, 9))
    def step_with_a_failing_reward(self, pick: int) -> None:
        """Refused where the completion would end: it can be tried again."""
        token = self.pick(self.episode.allowed(), pick)
        FAILS.append(True)
        try:
            if self.episode.ends(token):
                with refused(ValueError, match="fragile"):
                    self.env.step(token)
            else:
                self.take(token)
        finally:
            FAILS.clear()

    @operation(seed=st.none() | st.integers(0, 9))
    def bind(self, seed: int | None) -> None:
        """A policy, or None."""
        self.policy = None if seed is None else RandomPolicy(len(self.task["tokenizer"]), seed)
        self.env.unwrapped.bind_policy(self.policy)
        self.episode.bind()

    @precondition(lambda self: not self.episode.ended)
    @operation(pick=st.integers(0, 9), which=st.integers(0, 5))
    def step_with_a_broken_policy(self, pick: int, which: int) -> None:
        """Refused."""
        self.env.unwrapped.bind_policy(broken_policies(len(self.task["tokenizer"]))[which])
        with refused(ValueError, match="policy"):
            self.env.step(self.pick(self.episode.allowed(), pick))
        self.env.unwrapped.bind_policy(self.policy)
        self.episode.bind()

    @operation()
    def render(self) -> None:
        """The prompt, a line per token with its reward and terms, then the reference's choices while there are any."""
        first, *lines = self.env.render().split("\n")
        following = lines.pop() if lines and lines[-1].startswith("next: ") else None
        assert (following is None) == self.episode.ended
        names = ["<eos>", *LETTERS]
        assert first == f"prompt: {self.episode.prompt}"
        rewards = ["" if reward is None else f"{reward:+.4f}" for reward in self.rewards]
        tokens = [names[token] for token in self.episode.tokens]
        shown = [line.partition(" = ") for line in lines]
        assert [text.split() for text, _, _ in shown] == [
            [t, r] if r else [t] for t, r in zip(tokens, rewards, strict=True)
        ]
        for reward, (_, _, terms) in zip(self.rewards, shown, strict=True):
            assert sum(float(each) for each in terms.split()[1::2]) == pytest.approx(reward or 0.0, abs=3e-4)

    @operation(pickled=st.booleans())
    def copied(self, pickled: bool) -> None:
        """The copy goes on as the original would have; functions made in functions cannot be pickled."""
        if pickled and not self.task["shaping"]:
            self.env = pickle.loads(pickle.dumps(self.env))
        else:
            self.env = copy.deepcopy(self.env)

    @invariant()
    def state_is_that_of_the_model(self) -> None:
        """After every call, refused ones too: the observation, its space, the mask, and that of sampled actions."""
        env, episode, width = self.env.unwrapped, self.episode, self.env.unwrapped.mdp.prompt_width
        prompt = episode.ids[: len(episode.prompt.split())]
        mask = [0] * (width - len(prompt)) + [1] * len(episode.ids)
        mask += [0] * (width + self.task["max_new_tokens"] - len(mask))
        now, state = env.episodes.observation(), env.episodes.state
        assert (state.prompt_text[0], state.time[0]) == (episode.prompt, len(episode.tokens))
        for observation in ({name: values[0] for name, values in now.items()}, self.observation):
            assert env.observation_space.contains(observation)
            assert observation["attention_mask"].tolist() == mask
            assert observation["input_ids"][np.array(mask) == 1].tolist() == episode.ids
        assert env.action_masks().tolist() == episode.allowed()
        assert env.action_space.mask.tolist() == episode.allowed()
        assert episode.allowed()[env.action_space.sample()]


def test_single_environments() -> None:
    """A short run."""
    fuzz(SingleMachine, least=10)


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: in the score, in what a refused call leaves, and in what a reset leaves."""
    fault(monkeypatch)
    with pytest.raises((AssertionError, KeyError, gym.error.ResetNeeded)):
        fuzz(SingleMachine, least=200, shrink=False, start=0)


@pytest.mark.slow
def test_single_environments_for_longer(record_property: Any) -> None:
    """Each call several hundred times."""
    fuzz(SingleMachine, least=LEAST)
    check_inputs("TextEnv", SingleMachine.inputs, SingleMachine.names, record_property)
