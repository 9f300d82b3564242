"""Rollouts in external environments (of other libraries), one step at a time.

`agents.sampling.collect` uses the MDP of textenv and computes whole completions in one pass. An external environment
has only Gymnasium's interface, and its transitions are arbitrary: the next observation need not contain the last one.
So each step has its own observation as a token sequence, and the reward is the environment's alone, without a KL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from agents.errors import Diverged
from agents.policy import TransformerPolicy
from agents.sampling.rollout import Rollout
from textenv import EnvLike, TextEnv
from textenv.lm import max_length


def is_external(env: EnvLike) -> bool:
    """Whether `env` is a single environment of another library; environments of textenv may be wrapped."""
    return isinstance(env, gym.Env) and not isinstance(env.unwrapped, TextEnv)


def check_spaces(env: Any, policy: TransformerPolicy) -> None:
    """Checks that the policy can take the observations as input and sample the actions.

    Raises:
        ValueError: a space that does not fit; the message has the required space and the received one.
    """
    observation, action = env.observation_space, env.action_space
    parts: dict[str, Any] = dict(observation.spaces) if isinstance(observation, spaces.Dict) else {}
    rows = [parts[name] for name in ("input_ids", "attention_mask") if name in parts]
    if len({part.shape for part in rows}) != 1 or len(rows) != 2 or not all(map(_is_row_of_integers, rows)):
        raise ValueError(
            "Agents need token observations: the observation must be a Dict of input_ids and attention_mask, integers "
            f"of one shape (L,), got {observation}. A gym.ObservationWrapper can tokenise other observations."
        )
    if not isinstance(action, spaces.Discrete) or action.start != 0 or action.n != policy.vocab_size:
        raise ValueError(
            f"The policy samples one of {policy.vocab_size} actions, so the action space must be "
            f"Discrete({policy.vocab_size}), got {action}. TransformerPolicy takes vocab_size= for fewer actions than "
            "the model has tokens; other kinds of action need a gym.ActionWrapper."
        )
    config = policy.model.config.get_text_config()
    ids = rows[0]
    low, high = _range(ids)
    if low < 0 or high >= config.vocab_size:
        raise ValueError(
            f"input_ids must be in 0 .. {config.vocab_size - 1}, the model's ids; the observation may have "
            f"{low} .. {high}."
        )
    context = max_length(policy.model)
    if context is not None and ids.shape[0] > context:
        raise ValueError(f"The policy's context is {context} tokens, the observation has {ids.shape[0]}.")


@torch.no_grad()
def collect_external(
    env: EnvLike,
    policy: TransformerPolicy,
    n: int,
    *,
    generator: torch.Generator,
    gamma: float = 1.0,
    values: bool = True,
) -> Rollout:
    """Collects `n` whole episodes as a `Rollout` whose `input_ids` and `attention_mask` are [B, T, L + 1].

    Row t has the observation of step t with left padding, and the action in its last column. `scores` are the episodes'
    returns. A truncated episode is bootstrapped: `gamma V(s_T)` is added to its last reward. (Without `values` there is
    no trained V, and a truncation counts as a termination.) An `action_mask` in the info or in the observation is
    applied.

    Args:
        env: a single environment that passes `check_spaces`.
        policy: samples the actions and estimates V.
        n: B.
        generator: draws a seed for each episode, and the actions; on the policy's device.
        gamma: discount of V(s_T) at a truncation.
        values: whether to compute V.
    """
    episodes = [_episode(env, policy, generator, gamma if values else None) for _ in range(n)]
    padded: dict[str, Any] = {
        name: pad_sequence([episode[name] for episode in episodes], batch_first=True)
        for name in ("input_ids", "attention_mask", "log_probs", "rewards", "mask")
    }
    mask = padded["mask"]
    padded["attention_mask"][..., -2:] = 1  # padding steps too: the model needs at least one token
    allowed = pad_sequence([e["action_mask"] for e in episodes], batch_first=True, padding_value=True)
    rollout = Rollout(
        prompt=torch.zeros(n, dtype=torch.long, device=policy.device),
        **padded,
        ref_log_probs=torch.where(mask, torch.nan, 0.0),  # there is no reference
        scores=torch.stack([episode["score"] for episode in episodes]),
        stopped=torch.stack([episode["stopped"] for episode in episodes]),
        values=None,
        action_mask=None if allowed.all() else allowed,
        prompts=np.full(n, None),
        completions=np.full(n, None),
    )
    if values:
        flat = policy.values(rollout.input_ids.flatten(0, 1), rollout.attention_mask.flatten(0, 1), 1)
        rollout.values = torch.where(mask, flat.view(mask.shape), 0.0)
    return rollout


def _range(space: object) -> tuple[int, int]:
    """The smallest and the largest integer that a space allows."""
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.start.min()), int((space.start + space.nvec).max()) - 1
    if isinstance(space, spaces.Box):
        return int(space.low.min()), int(space.high.max())
    return 0, 1  # MultiBinary


def _is_row_of_integers(space: Any) -> bool:
    """Whether its elements are integers of a shape [L]."""
    return space.shape is not None and len(space.shape) == 1 and np.issubdtype(space.dtype, np.integer)


def _episode(env: Any, policy: TransformerPolicy, generator: torch.Generator, gamma: float | None) -> dict[str, Any]:
    """Collects one episode, a row per step; adds `gamma V(s_T)` at a truncation, unless `gamma` is None."""
    seed = torch.randint(2**31, (), generator=generator, device=policy.device)
    observation, info = env.reset(seed=int(seed))
    steps: dict[str, list[Any]] = {name: [] for name in ("input_ids", "attention_mask", "rewards")}
    masks, sampled, no_mask = [], [], np.ones(policy.vocab_size, dtype=np.int8)
    terminated = truncated = False
    while not terminated and not truncated:
        ids, attention = _input_row(observation, policy)
        logits = policy.next_token_logits(ids[None, :-1], attention[None, :-1])[0]
        action_mask = info.get("action_mask", observation.get("action_mask", no_mask))
        masks.append(torch.as_tensor(action_mask, device=policy.device) > 0)
        if masks[-1].shape != (policy.vocab_size,):
            raise ValueError(f"action_mask must have one value per action ({policy.vocab_size}), got {action_mask!r}.")
        if not masks[-1].any():
            raise ValueError(
                f"action_mask must allow an action, got {action_mask!r}, which allows no action: the environment must "
                "end the episode before."
            )
        log_probs = logits.masked_fill(~masks[-1], -torch.inf).log_softmax(dim=0)
        if bool(log_probs.isnan().any()):
            raise Diverged(
                f"The policy's probabilities are not finite after {len(steps['rewards'])} steps of an episode: the "
                "last optimizer steps were too large."
            )
        ids[-1] = action = int(torch.multinomial(log_probs.exp(), 1, generator=generator))
        observation, reward, terminated, truncated, info = env.step(action)
        if not abs(reward := float(reward)) <= float(np.finfo(np.float32).max):
            raise ValueError(f"A reward must be a finite number, got {reward} for action {action} (in float32).")
        sampled.append(log_probs[action])
        step = {"input_ids": ids, "attention_mask": attention, "rewards": np.float32(reward)}
        for name, value in step.items():
            steps[name].append(value)
    episode = {name: torch.as_tensor(np.array(values), device=policy.device) for name, values in steps.items()}
    episode["log_probs"] = torch.stack(sampled)
    rewards = episode["rewards"]
    score = rewards.sum()
    if not terminated and gamma is not None:
        ids, attention = _input_row(observation, policy)
        last = torch.as_tensor(np.stack([ids, attention])[:, None], device=policy.device)
        rewards[-1] += gamma * policy.values(last[0], last[1], 1).item()
    episode |= {"rewards": rewards, "score": score, "stopped": torch.tensor(terminated, device=policy.device)}
    episode["mask"] = torch.ones_like(rewards, dtype=torch.bool)
    return episode | {"action_mask": torch.stack(masks)}


def _input_row(
    observation: Mapping[str, object], policy: TransformerPolicy
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask [L + 1] of an observation: padding moved to the left, and a last column for the action."""
    mask = np.asarray(observation["attention_mask"], dtype=np.int64)
    order = mask.argsort(kind="stable")
    ids = np.asarray(observation["input_ids"], dtype=np.int64)[order]
    size = policy.model.config.get_text_config().vocab_size
    if not mask.any() or ids.min() < 0 or ids.max() >= size:
        raise ValueError(
            f"An observation must have at least one token, and ids 0 .. {size - 1} (padding too), got {observation}."
        )
    return np.append(ids, 0), np.append(mask[order], 1)
