"""TextVectorEnv: the MDP as a `gymnasium.vector.VectorEnv`, B episodes in lockstep on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textenv.arguments import Seeds, check_count, check_options, check_reset_mask, check_seeds, shown
from textenv.bound_policy import PolicyFunction
from textenv.data import printable
from textenv.mdp import TextMDP
from textenv.spaces import MaskedMultiDiscrete, action_space, observation_space
from textenv.state import Array
from textenv.stepping import EpisodeBatch, Info, StepResult

Observation = dict[str, Array]


class TextVectorEnv(VectorEnv[Observation, Array, Array]):
    """B episodes in lockstep. A step calls the reference at most once, and so the reward.

    Row i equals a `TextEnv` with the same seed and actions; `reset(seed=s)` seeds row i with s + i. Infos have
    Gymnasium's vector form: each key an array of B values, beside it `_key`, the mask of the rows that have it.

    Args:
        mdp: the task.
        num_envs: B.
        autoreset_mode: NEXT_STEP (the step after the last one resets, and its action is ignored), SAME_STEP (the last
            step resets; `final_obs` and `final_info` hold its observation and info) or DISABLED (the caller resets,
            by `reset(options={"reset_mask": ...})`).
        policy: pi, bound as by `bind_policy`.
        render_mode: None or "ansi".
    """

    def __init__(
        self,
        mdp: TextMDP,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        policy: PolicyFunction | None = None,
        render_mode: str | None = None,
    ) -> None:
        num_envs = check_count("num_envs", num_envs)
        if not isinstance(render_mode, str | None) or render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode must be None or 'ansi' for a vector environment, got {shown(render_mode)}.")
        self.mdp = mdp
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": ["ansi"], "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = observation_space(mdp)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = action_space(mdp)
        self.action_space: Any = MaskedMultiDiscrete(self.single_action_space.initial_mask, num_envs)
        self.illegal_reward: float | None = None  # set by `textenv.wrappers.TerminateIllegal`
        self.episodes = EpisodeBatch(mdp, num_envs, policy)

    @property
    def prompts(self) -> list[str]:
        """The prompts, in the order of the index that `reset` takes."""
        return self.mdp.prompts.texts

    def bind_policy(self, policy: PolicyFunction | None) -> None:
        """Binds pi, as `TextEnv.bind_policy`: the reward is then the whole r_t."""
        self.episodes.bind(policy)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, object] | None = None
    ) -> tuple[Observation, Info]:
        """Resets every row, or those where `options["reset_mask"]` (bool [B]) is True.

        The other options are those of `TextEnv.reset`, the same for every row that is reset.
        """
        seeds, options = check_seeds(seed, self.num_envs), check_options(options, "reset_mask")
        rows = check_reset_mask(options.pop("reset_mask", None), self.num_envs)
        if not (self.episodes.started or rows.all()):
            raise gym.error.ResetNeeded("The first reset() must start every row: leave reset_mask out.")
        with self.episodes.streams.restore_on_error(self) if options else nullcontext():
            self._seed(seeds, np.flatnonzero(rows), first=not self.episodes.started)
            self.episodes.start(np.flatnonzero(rows), options)
        self.episodes.refresh()
        mask = self._action_mask()
        return self.episodes.observation(), _pack({"action_mask": mask}, rows.copy())

    def _seed(self, seeds: Seeds, rows: Array, first: bool) -> None:
        """Seeds the rows that are reset; a row whose seed in a list is None keeps its stream."""
        one = None if isinstance(seeds, list) else seeds
        if first or one is not None:
            super().reset(seed=one)
            start = np.uint64((self.np_random_seed or 0) % 2**64)
            with np.errstate(over="ignore"):
                self.episodes.streams.seed(rows, start + rows.astype(np.uint64))
        if isinstance(seeds, list):
            given = {row: each for row in rows.tolist() if (each := seeds[row]) is not None}
            self.episodes.streams.seed(
                np.array([*given], dtype=np.int64), np.array([each % 2**64 for each in given.values()], dtype=np.uint64)
            )

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, Info]:
        mode, episodes = self.autoreset_mode, self.episodes
        if mode == AutoresetMode.DISABLED and episodes.started and not episodes.live.all():
            raise gym.error.ResetNeeded(
                f"The episodes in rows {np.flatnonzero(~episodes.live).tolist()} have ended; with autoreset DISABLED "
                "call reset(options={'reset_mask': terminated}) before the next step."
            )
        final: Info = {}
        with episodes.restore_if_refresh_fails():
            step = episodes.step(actions, self.illegal_reward)  # which by itself resets ended rows, as NEXT_STEP has it
            if mode == AutoresetMode.SAME_STEP and step.final is not None:
                final = self._same_step_info(step)
                episodes.start(step.terminated.nonzero()[0])
            episodes.refresh()

        info = final | {"action_mask": self._action_mask(), "_action_mask": _all_rows(self.num_envs)}
        if mode == AutoresetMode.SAME_STEP:
            step = step.restrict_to(step.stepped & ~step.terminated)
        if step.stepped.any():
            info |= self._step_info(step)
        if mode != AutoresetMode.SAME_STEP:
            info |= self._final_info(step)
        return episodes.observation(), step.rewards, step.terminated, np.zeros(self.num_envs, dtype=np.bool_), info

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [B, V], which tokens are allowed now: sb3-contrib's convention."""
        return self.episodes.action_mask().astype(np.bool_)

    def render(self) -> tuple[str, ...] | None:
        """Returns prompt and completion of each row."""
        if self.render_mode is None:
            return None
        state, width = self.episodes.state, self.mdp.prompt_width
        ids = (state.completion_ids(row, width) for row in range(self.num_envs))
        texts = zip(state.prompt_text, map(self.mdp.decode, ids), strict=True)
        return tuple(f"{printable(prompt)} | {printable(completion)}" for prompt, completion in texts)

    def _action_mask(self) -> NDArray[np.int8]:
        mask = self.episodes.action_mask()
        self.action_space.mask = mask
        return mask.copy() if mask.flags.writeable else mask

    def _step_info(self, step: StepResult) -> Info:
        """`ref_log_prob` and `reward_terms` of the rows that were stepped."""
        rows, terms = step.stepped, dict(step.terms)
        if step.illegal is None:
            terms = _pack(terms, rows)
        else:
            terms = _pack_some({"illegal": terms.pop("illegal")}, step.illegal) | _pack_some(
                terms, rows & ~step.illegal
            )
        return _pack({"ref_log_prob": step.ref_log_prob, "reward_terms": terms}, rows)

    def _final_info(self, step: StepResult) -> Info:
        """`prompt`, `completion`, `score` and the other fields of the rows that terminated."""
        if step.final is None:
            return {}
        info, scored = _pack(step.text_info(), step.terminated.copy()), step.scored_info()
        rows = step.terminated.copy() if step.illegal is None else step.terminated & ~step.illegal
        if (kl := scored.pop("kl", None)) is not None:
            known = rows & ~np.isnan(kl)
            info |= _pack_some({"kl": np.where(known, kl, 0.0)}, known)
        return info | _pack_some(scored, rows)

    def _same_step_info(self, step: StepResult) -> Info:
        """`final_obs` and `final_info` of the rows that terminated, as Gymnasium's SAME_STEP has them."""
        last, terminated, rows = self.episodes.observation(), step.terminated.copy(), step.terminated.nonzero()[0]
        ended = zip(last["input_ids"].take(rows, axis=0), last["attention_mask"].take(rows, axis=0), strict=True)
        observations = np.empty(self.num_envs, dtype=object)  # Gymnasium's form: one dict per row that terminated
        observations[rows] = [{"input_ids": ids, "attention_mask": mask} for ids, mask in ended]
        masks = terminated.astype(np.int8)[:, None]  # after the end no action counts, and none is masked
        info = _pack({"action_mask": np.broadcast_to(masks, (self.num_envs, self.mdp.vocab_size))}, terminated)
        info |= self._step_info(step.restrict_to(terminated)) | self._final_info(step)
        return _pack({"final_obs": observations, "final_info": info}, terminated)


def _autoreset_mode(mode: object) -> AutoresetMode:
    """The mode, given as itself or by its value."""
    if isinstance(mode, AutoresetMode):
        return mode
    values = [each.value for each in AutoresetMode]
    if not isinstance(mode, str) or mode not in values:
        raise ValueError(f"autoreset_mode must be one of {', '.join(map(repr, values))}, got {shown(mode)}.")
    return AutoresetMode(mode)


def _pack(info: Info, rows: NDArray[np.bool_]) -> Info:
    """Adds to each key the mask `_key` of the rows that have it, as in Gymnasium's vector infos."""
    return info | {f"_{name}": rows for name in info}


def _pack_some(info: Info, rows: NDArray[np.bool_]) -> Info:
    """As `_pack`; without the keys that no row has."""
    return _pack(info, rows) if rows.any() else {}


@cache
def _all_rows(num: int) -> NDArray[np.bool_]:
    """The mask `_key` of what every row has, bool [B]; read-only."""
    rows = np.ones(num, dtype=np.bool_)
    rows.flags.writeable = False
    return rows


def make_vec(
    task: str,
    num_envs: int = 1,
    *,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    policy: PolicyFunction | None = None,
    render_mode: str | None = None,
    **arguments: object,
) -> TextVectorEnv:
    """The entry point of `gym.make_vec`: `task` is the `module:function` that makes the `TextMDP` from `arguments`."""
    mdp: Any = load_env_creator(task)(**arguments)
    return TextVectorEnv(mdp, num_envs, autoreset_mode=autoreset_mode, policy=policy, render_mode=render_mode)
