"""TextEnv: the MDP as a `gymnasium.Env`, one episode at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from textenv.actions import InvalidAction
from textenv.arguments import check_options, check_seed, is_scalar, shown
from textenv.bound_policy import PolicyFunction
from textenv.data import printable
from textenv.mdp import TextMDP
from textenv.rendering import likeliest, reward_text
from textenv.spaces import action_space, observation_space
from textenv.state import Array
from textenv.stepping import EpisodeBatch, Info
from textenv.terminal import has_colours

CHOICES = 5  # of the reference, in what is rendered

Observation = dict[str, Array]


class RenderModeError(ValueError, TypeError):
    """An unknown render mode; also a TypeError, on which Stable-Baselines3 makes the environment without one."""


class TextEnv(gym.Env[Observation, np.int64]):
    """An episode generates one completion; an action is the next token. See `textenv.mdp` for the equations.

    Observation: `input_ids` int64 [L] and `attention_mask` int8 [L]. The prompt is in the first W columns, padded on
    the left; completion token t is in column W + t.

    Info, on reset and on every step: `action_mask` int8 [V]. On every step: `ref_log_prob`, and `reward_terms`, whose
    sum is the reward: `score`, `kl_reference` (beta log pi_ref of the token), each shaping term by its name and, with a
    bound policy, `kl_policy` (-beta log pi of the token). On the last step also: `prompt`, `completion`, `score`,
    `finish_reason` ("stop" or "length"), `gold_score` where the task has one and, with a policy that was bound before
    the reset, `kl`: sum_t (log pi - log pi_ref) over the tokens since then. A masked action is an error, unless the
    environment is wrapped in `textenv.wrappers.TerminateIllegal`.

    Reset options: `prompt` (an index into `prompts`, text, messages or ids) and `completion` (its first tokens, as text
    or ids).

    Args:
        mdp: the task.
        policy: pi, bound as by `bind_policy`.
        render_mode: None, "ansi" (render() returns a string, without colours, as it is often logged or compared) or
            "human" (reset prints that, every step its token, in colours on a terminal that has them and without
            NO_COLOR).
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"], "render_fps": 4}  # noqa: RUF012, Gymnasium's form

    def __init__(self, mdp: TextMDP, policy: PolicyFunction | None = None, render_mode: str | None = None) -> None:
        if not isinstance(render_mode, str | None) or render_mode not in (None, *self.metadata["render_modes"]):
            raise RenderModeError(f"render_mode must be None, 'ansi' or 'human', got {shown(render_mode)}.")
        self.mdp = mdp
        self.render_mode = render_mode
        self.observation_space: Any = observation_space(mdp)  # Any: Gymnasium's Space is invariant
        self.action_space: Any = action_space(mdp)
        self.illegal_reward: float | None = None  # set by `textenv.wrappers.TerminateIllegal`
        self.episodes = EpisodeBatch(mdp, 1, policy)
        self._rewards: list[tuple[float, dict[str, float]]] = []  # since the last reset, each with its terms
        self._illegal = False  # whether the last of them is that of a masked token
        self._has_choices = False  # whether log pi_ref of the next token is known

    @property
    def prompts(self) -> list[str]:
        """The prompts, in the order of the index that `reset` takes."""
        return self.mdp.prompts.texts

    def bind_policy(self, policy: PolicyFunction | None) -> None:
        """Binds pi, `policy(input_ids, attention_mask) -> logits [B, V]`: the reward is then the whole r_t.

        With None the reward is `score + beta log pi_ref + shaping`, and the acting side owes `-beta log pi(a_t | s_t)`.
        """
        self.episodes.bind(policy)

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple[Observation, Info]:
        seed, options = check_seed(seed), check_options(options)
        with self.episodes.streams.restore_on_error(self) if options else nullcontext():
            super().reset(seed=seed)
            if seed is not None or not self.episodes.started:
                self.episodes.streams.seed(np.array([0]), np.array([self.np_random_seed % 2**64], dtype=np.uint64))
            self.episodes.start(0, options)
        self._rewards, self._illegal, self._has_choices = [], False, False
        self.episodes.refresh()  # may raise; the episodes and what is rendered of them have begun anew then
        self._has_choices = True
        if self.render_mode == "human":
            print(self._rendered(has_colours(sys.stdout)), flush=True)
        return self._observe(), {"action_mask": self.action_space.mask.copy()}

    def step(self, action: object) -> tuple[Observation, float, bool, bool, Info]:
        if not self.episodes.live[0]:
            raise gym.error.ResetNeeded(
                "No episode is in progress (none has started, or it has ended): call reset() before step()."
            )
        if not is_scalar(action):
            raise InvalidAction(f"An action is one token id, got {shown(action)}.")
        with self.episodes.restore_if_refresh_fails():
            step = self.episodes.step(np.asarray(action)[None], self.illegal_reward)
            self.episodes.refresh()
        self._has_choices = True
        reward: float = step.rewards.item(0)
        self._illegal = step.illegal is not None
        terms: dict[str, float] = {name: values.item(0) for name, values in step.terms.items()}
        terms = {"illegal": reward} if self._illegal else terms
        self._rewards.append((reward, terms))
        if self.render_mode == "human":  # the new token alone: what was printed before is on the screen
            print("\n".join([self._tokens(has_colours(sys.stdout))[-1], *self._choices()]), flush=True)
        final: Info = {}
        if step.final is not None:
            arrays = step.text_info() if self._illegal else step.text_info() | step.scored_info()
            final = {name: value for name, values in arrays.items() if (value := values.item(0)) == value}  # no nan
        observation = self._observe()
        info = {
            "action_mask": self.action_space.mask.copy(),
            "ref_log_prob": step.ref_log_prob.item(0),
            "reward_terms": dict(terms),
            **final,
        }
        return observation, reward, step.terminated.item(0), False, info

    @contextmanager
    def restore_on_error(self) -> Iterator[None]:
        """Restores the episode in progress if its block, of several steps, raises."""
        rewards, illegal = list(self._rewards), self._illegal
        try:
            with self.episodes.restore_on_error():
                yield
        except BaseException:
            self._rewards, self._illegal = rewards, illegal
            raise

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [V], which tokens are allowed now: sb3-contrib's convention."""
        mask: NDArray[np.bool_] = self.episodes.action_mask()[0].astype(np.bool_)
        return mask

    def render(self) -> str | None:
        """Returns the prompt, the tokens of the completion, and the likeliest next tokens of the reference.

        A token has its reward and the terms whose sum that is. An episode that has ended has no next token.
        """
        if self.render_mode != "ansi":
            return None
        return self._rendered()

    def _rendered(self, colours: bool = False) -> str:
        prompt = printable(self.episodes.state.prompt_text[0])
        return "\n".join([f"prompt: {prompt}", *self._tokens(colours), *self._choices()])

    def _tokens(self, colours: bool) -> list[str]:
        """A line for each token of the completion."""
        completion = self.episodes.state.completion_ids(0, self.mdp.prompt_width)
        names = self.mdp.tokenizer.convert_ids_to_tokens(completion.tolist())
        names = [*names, "(masked token)"] if self._illegal else names
        texts = [reward_text(*reward, colours) for reward in self._rewards]
        texts = [""] * (len(names) - len(texts)) + texts  # tokens of a reset have no reward
        return [f"  {printable(name):<16} {text}" for name, text in zip(names, texts, strict=True)]

    def _choices(self) -> list[str]:
        """A line with the likeliest next tokens of the reference, and how many are allowed; none after the end."""
        if not (self._has_choices and self.episodes.live[0]):
            return []
        log_probs = np.asarray(self.episodes.ref_log_probs[0], dtype=np.float64)
        tokens = likeliest(log_probs, CHOICES)
        names = self.mdp.tokenizer.convert_ids_to_tokens(tokens)
        shown = ", ".join(
            f"{printable(name)} {np.exp(log_probs[token]):.2%}" for name, token in zip(names, tokens, strict=True)
        )
        return [f"next: {shown} ({int((log_probs > -np.inf).sum()):,} of {self.mdp.vocab_size:,} tokens are allowed)"]

    def _observe(self) -> Observation:
        if not self.mdp.full_support:  # else the mask is all 1 at every step
            self.action_space.mask = self.episodes.action_mask()[0]
        return {name: values[0] for name, values in self.episodes.observation().items()}


def make(
    task: str, policy: PolicyFunction | None = None, render_mode: str | None = None, **arguments: object
) -> TextEnv:
    """The entry point of `gym.make`: `task` is the `module:function` that makes the `TextMDP` from `arguments`."""
    return TextEnv(load_env_creator(task)(**arguments), policy, render_mode)  # type: ignore[arg-type]
