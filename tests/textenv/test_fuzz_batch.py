"""A state machine over `TextVectorEnv`, in each autoreset mode, against a model of each row."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition

from tests.helpers.envs import MODES, masked_info
from tests.helpers.episode_model import Episode, Stream
from tests.helpers.fuzz import FuzzedMachine, fuzz, operation
from tests.helpers.fuzzed_tasks import FAILS, PureLetters, arguments, broken_policies, fuzzed_tasks
from tests.helpers.inputs import LEAST, check_inputs
from tests.helpers.planted_faults import PLANTED
from tests.helpers.refusals import ODD, refused
from tests.helpers.tasks import LETTERS, RandomPolicy, assert_same
from textenv import InvalidAction, TextMDP, TextVectorEnv

FORMS = [np.array, list, tuple, lambda tokens: np.array(tokens, dtype=np.int32)]  # of the actions
PICKS = st.lists(st.integers(0, 9), min_size=3, max_size=3)
ILLEGAL = [value for value in ODD if not isinstance(value, bool | int | np.integer)]


class BatchMachine(FuzzedMachine):
    """Calls of one batch."""

    @initialize(task=fuzzed_tasks(), num_envs=st.integers(1, 3), mode=st.sampled_from(MODES), seed=st.integers(0, 5))
    def begin(self, task: Any, num_envs: int, mode: Any, seed: int) -> None:
        """Makes the environment; its first reset may be refused before it succeeds."""
        self.task, self.mode, self.policy = task, mode, None
        self.envs = TextVectorEnv(TextMDP(**arguments(task)), num_envs, autoreset_mode=mode, render_mode="ansi")
        self.rows = range(num_envs)
        self.streams = [Stream(0, len(task["prompts"])) for _ in self.rows]
        self.episodes: list[Episode] = [Episode(task, task["prompts"][0]) for _ in self.rows]
        with refused():
            self.envs.reset(seed=seed, options={"prompt": "zebra"})
        self.reset_rows([seed + row for row in self.rows], np.ones(num_envs, dtype=bool), seed=seed)

    # -- resets --------------------------------------------------------------------------------------------------------

    def reset_rows(self, seeds: list[int | None], mask: Any, episode: Episode | None = None, **arguments: Any) -> None:
        """A reset of the rows in the mask; a row with a seed has a new stream."""
        result = self.envs.reset(**arguments)
        for row in np.flatnonzero(mask):
            if seeds[row] is not None:
                self.streams[row] = Stream(seeds[row], len(self.task["prompts"]))
            self.start(row, episode)
        info = masked_info(result[1])
        assert info.keys() == {"action_mask"} and info["action_mask"][0].tolist() == mask.tolist()
        self.same_observation(result[0])

    def start(self, row: int, episode: Episode | None = None) -> None:
        """A new episode of the model in this row: at the next prompt of its stream, or a copy of the given one."""
        prompt = self.task["prompts"][self.streams[row].draw()]
        given = None if episode is None else Episode(self.task, episode.prompt, list(episode.tokens))
        self.episodes[row] = given or Episode(self.task, prompt)

    def seeds(self, data: Any) -> tuple[Any, list[int | None]]:
        """An argument `seed`, and the seed of each row that it means."""
        seed = data.draw(st.none() | st.integers(0, 5) | st.sampled_from([np.int64(3)]))
        if seed is not None and data.draw(st.booleans()):
            each = [data.draw(st.none() | st.integers(0, 5)) for _ in self.rows]
            return data.draw(st.sampled_from([each, tuple(each)])), each
        return seed, [None if seed is None else int(seed) + row for row in self.rows]

    def mask(self, data: Any) -> Any:
        """A reset_mask."""
        mask = np.array([data.draw(st.booleans()) for _ in self.rows])
        mask[data.draw(st.sampled_from(self.rows))] = True
        return mask

    @operation(data=st.data())
    def reset(self, data: Any) -> None:
        """Of every row, with one seed, one per row, or none."""
        seed, each = self.seeds(data)
        self.reset_rows(each, np.ones(len(self.rows), dtype=bool), seed=seed)

    @operation(data=st.data())
    def reset_some_rows(self, data: Any) -> None:
        """The others continue."""
        (seed, each), mask = self.seeds(data), self.mask(data)
        self.reset_rows(each, mask, seed=seed, options={"reset_mask": mask})

    @operation(data=st.data())
    def reset_to_a_state(self, data: Any) -> None:
        """Some rows to a prompt and the beginning of a completion, or refused."""
        prompt, mask = data.draw(st.sampled_from([*self.task["prompts"], "b a", "a"])), self.mask(data)
        tokens = data.draw(st.lists(st.integers(0, len(self.task["tokenizer"]) - 1), max_size=3))
        episode = Episode(self.task, prompt, tokens)
        options = {"prompt": prompt, "completion": tokens, "reset_mask": mask}
        fits = len(prompt.split()) <= self.envs.mdp.prompt_width
        if not fits or 0 in tokens or len(tokens) >= self.task["max_new_tokens"] or not any(episode.allowed()):
            with refused(ValueError):
                self.envs.reset(seed=1, options=options)
            return
        self.reset_rows([None] * len(self.rows), mask, episode, options=options)

    @operation(odd=st.sampled_from(ILLEGAL), which=st.integers(0, 6))
    def reset_with_odd_arguments(self, odd: Any, which: int) -> None:
        """Refused."""
        size, listed = len(self.rows), [odd] * len(self.rows)
        wrong = [{"seed": listed}, {"seed": -1}, {"seed": True}, {"seed": [1] * (size + 1)}]
        wrong += [{"options": {name: value}} for name, value in (("prompt", 99), ("promt", odd))]
        wrong += [{"options": {"reset_mask": np.zeros(size, dtype=bool)}}]
        with refused(ValueError):
            self.envs.reset(**wrong[which])

    # -- steps ---------------------------------------------------------------------------------------------------------

    def pick(self, picks: list[int]) -> list[int]:
        """An allowed token of each row."""
        allowed = [np.flatnonzero(episode.allowed()) for episode in self.episodes]
        return [int(tokens[pick % len(tokens)]) for tokens, pick in zip(allowed, picks, strict=False)]

    @property
    def must_reset(self) -> bool:
        """Whether a step is refused until the rows that have ended are reset."""
        return self.mode == AutoresetMode.DISABLED and any(episode.ended for episode in self.episodes)

    @operation(picks=PICKS, form=st.sampled_from(FORMS))
    def step(self, picks: list[int], form: Any) -> None:
        """Allowed tokens."""
        if self.must_reset:
            with pytest.raises(gym.error.ResetNeeded, match="reset_mask"):
                self.envs.step(form(self.pick(picks)))
            return
        self.take(self.pick(picks), form)

    def take(self, tokens: list[int], form: Any = np.array) -> None:
        """A step of both; what the environment returns is what the model says of each row."""
        observation, rewards, terminated, truncated, info = self.envs.step(form(tokens))
        live = [row for row in self.rows if not self.episodes[row].ended]
        steps, finals = {}, {}
        for row in live:
            ref_log_prob = self.episodes[row].ref_log_probs()[tokens[row]]
            terms, final = self.episodes[row].take(tokens[row], self.policy)
            steps[row] = {"ref_log_prob": ref_log_prob, "reward_terms": terms}
            finals |= {row: final} if final else {}
        ended = [row in finals for row in self.rows]
        assert terminated.tolist() == ended and truncated.tolist() == [False] * len(self.rows)
        sums = [sum(steps[row]["reward_terms"].values()) if row in steps else 0.0 for row in self.rows]
        assert_same(rewards, np.array(sums), 1e-6)
        found = masked_info(info)
        if self.mode == AutoresetMode.SAME_STEP:
            self.same_final_step(found, steps, finals)
            for row in finals:
                del steps[row]
                self.start(row)
        elif self.mode == AutoresetMode.NEXT_STEP:
            for row in set(self.rows) - set(live):
                self.start(row)
        if self.mode != AutoresetMode.SAME_STEP:
            self.same_rows(found, finals)
        self.same_rows(found, steps)
        mask, masks = found.pop("action_mask")
        assert mask.all() and found == {}
        assert masks.tolist() == [episode.allowed() for episode in self.episodes]
        self.same_observation(observation)

    def same_rows(self, found: dict[str, Any], rows: dict[int, dict[str, Any]]) -> None:
        """Removes from an info the keys that these rows have, after comparing their values; `rows` is by index."""
        for name in {name: None for values in rows.values() for name in values}:
            mask, values = found.pop(name)
            having = [row for row in sorted(rows) if name in rows[row]]
            assert np.flatnonzero(mask).tolist() == having
            expected = [rows[row][name] for row in having]
            if isinstance(values, dict):
                inner = dict(values)
                self.same_rows(inner, {row: rows[row][name] for row in having})
                assert inner == {}
            else:
                assert_same(list(values), expected, 1e-6)

    def same_final_step(self, found: dict[str, Any], steps: dict[int, Any], finals: dict[int, Any]) -> None:
        """`final_obs` and `final_info` of SAME_STEP, removed from the info."""
        if not finals:
            assert not {"final_obs", "final_info"} & found.keys()
            return
        mask, observations = found.pop("final_obs")
        assert np.flatnonzero(mask).tolist() == sorted(finals)
        for row, observation in zip(sorted(finals), observations, strict=True):
            self.same_row(observation, self.episodes[row])
        mask, final = found.pop("final_info")
        assert np.flatnonzero(mask).tolist() == sorted(finals)
        last = {
            row: {"action_mask": np.ones(len(self.task["tokenizer"]), dtype=np.int8)} | steps[row] | finals[row]
            for row in finals
        }
        self.same_rows(final, last)
        assert final == {}

    @precondition(lambda self: not self.must_reset and not all(all(e.allowed()) for e in self.episodes))
    @operation(picks=PICKS)
    def step_to_a_masked_token(self, picks: list[int]) -> None:
        """In one row; no row changes."""
        tokens = self.pick(picks)
        row = next(row for row in self.rows if not all(self.episodes[row].allowed()))
        tokens[row] = self.episodes[row].allowed().index(False)
        with refused(InvalidAction, match="is masked after"):
            self.envs.step(tokens)

    @operation(odd=st.sampled_from(ILLEGAL), row=st.integers(0, 2), picks=PICKS, whole=st.booleans())
    def step_with_odd_actions(self, odd: Any, row: int, picks: list[int], whole: bool) -> None:
        """Of one row, or of all; refused where rows have ended, too."""
        actions: Any = self.pick(picks)
        actions[row % len(self.rows)] = odd
        if whole:  # a list of integers is legal where every row has ended
            actions = 1.0 if str(odd) in ("[-1]", "[18446744073709551615]", "range(0, 2)") else odd
        kind = gym.error.ResetNeeded if self.must_reset else InvalidAction
        with refused(kind):
            self.envs.step(actions)

    @precondition(lambda self: not self.must_reset and not isinstance(self.task["reward"], PureLetters))
    @operation(picks=PICKS)
    def step_with_a_failing_reward(self, picks: list[int]) -> None:
        """Refused where a completion would end; no row changes."""
        tokens = self.pick(picks)
        rows = zip(tokens, self.episodes, strict=True)
        FAILS.append(True)
        try:
            if any(not episode.ended and episode.ends(token) for token, episode in rows):
                with refused(ValueError, match="fragile"):
                    self.envs.step(tokens)
            else:
                self.take(tokens)
        finally:
            FAILS.clear()

    # -- policy, copies, text ------------------------------------------------------------------------------------------

    @operation(seed=st.none() | st.integers(0, 9))
    def bind(self, seed: int | None) -> None:
        """A policy, or None."""
        self.policy = None if seed is None else RandomPolicy(len(self.task["tokenizer"]), seed)
        self.envs.bind_policy(self.policy)
        for episode in self.episodes:
            episode.bind()

    @precondition(lambda self: not self.must_reset and not all(e.ended for e in self.episodes))
    @operation(picks=PICKS, which=st.integers(0, 5))
    def step_with_a_broken_policy(self, picks: list[int], which: int) -> None:
        """Refused."""
        self.envs.bind_policy(broken_policies(len(self.task["tokenizer"]))[which])
        with refused(ValueError, match="policy"):
            self.envs.step(self.pick(picks))
        self.envs.bind_policy(self.policy)
        for episode in self.episodes:
            episode.bind()

    @operation()
    def render(self) -> None:
        """Prompt and completion of each row."""
        texts = [" ".join(LETTERS[token - 1] for token in e.tokens if token) for e in self.episodes]
        assert self.envs.render() == tuple(f"{e.prompt} | {text}" for e, text in zip(self.episodes, texts, strict=True))

    @operation(pickled=st.booleans())
    def copied(self, pickled: bool) -> None:
        """The copy goes on as the original would have; functions made in functions cannot be pickled."""
        if pickled and not self.task["shaping"]:
            self.envs = pickle.loads(pickle.dumps(self.envs))
        else:
            self.envs = copy.deepcopy(self.envs)

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def states_are_those_of_the_model(self) -> None:
        """After every call, refused ones too: observations, masks, and that of sampled actions."""
        self.same_observation(self.envs.episodes.observation())
        state = self.envs.episodes.state
        assert state.prompt_text.tolist() == [episode.prompt for episode in self.episodes]
        assert state.time.tolist() == [len(episode.tokens) for episode in self.episodes]
        allowed = [episode.allowed() for episode in self.episodes]
        assert self.envs.action_masks().tolist() == allowed
        assert all(mask[token] for mask, token in zip(allowed, self.envs.action_space.sample(), strict=True))

    def same_observation(self, observation: Any) -> None:
        """Every row of an observation, which is in its space, is that of the model."""
        assert self.envs.observation_space.contains(observation)
        for row, episode in enumerate(self.episodes):
            self.same_row({name: values[row] for name, values in observation.items()}, episode)

    def same_row(self, observation: Any, episode: Episode) -> None:
        """One row of an observation is that of an episode."""
        width = self.envs.mdp.prompt_width
        mask = [0] * (width - len(episode.prompt.split())) + [1] * len(episode.ids)
        mask += [0] * (width + self.task["max_new_tokens"] - len(mask))
        assert observation["attention_mask"].tolist() == mask
        assert observation["input_ids"][np.array(mask) == 1].tolist() == episode.ids


def test_batches() -> None:
    """A short run."""
    fuzz(BatchMachine, least=10)


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: in the score, in what a refused call leaves, and in what a reset leaves."""
    fault(monkeypatch)
    with pytest.raises((AssertionError, KeyError, gym.error.ResetNeeded)):
        fuzz(BatchMachine, least=200, shrink=False, start=0)


@pytest.mark.slow
def test_batches_for_longer(record_property: Any) -> None:
    """Each call several hundred times."""
    fuzz(BatchMachine, least=LEAST)
    check_inputs("TextVectorEnv", BatchMachine.inputs, BatchMachine.names, record_property)
