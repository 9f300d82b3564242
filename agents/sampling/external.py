"""Episodes in environments of other libraries: texts observed and tokens chosen, one step at a time.

`agents.rollout.collect` knows textenv's process and reads whole answers at once. Here nothing is known but Gymnasium's
interface: what an action does to the text is the environment's business (it may answer, or show something else), so
each step has a text of its own, and the reward is the environment's alone, without a KL.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from agents.policy import TransformerPolicy
from agents.sampling.rollout import Rollout
from textenv import TextEnv


def is_external(env: Any) -> bool:
    """Whether it is an environment of another library; ours, wrapped or not, are none."""
    return isinstance(env, gym.Env) and not isinstance(env.unwrapped, TextEnv)


def check_spaces(env: Any, policy: TransformerPolicy) -> None:
    """The policy must be able to read the observations and to choose the actions.

    Raises:
        ValueError: says what the spaces must be, and what they are.
    """
    observation, action = env.observation_space, env.action_space
    parts: dict[str, Any] = dict(observation.spaces) if isinstance(observation, spaces.Dict) else {}
    texts = [parts[name] for name in ("input_ids", "attention_mask") if name in parts]
    if len({part.shape for part in texts}) != 1 or len(texts) != 2 or not all(map(_is_row_of_integers, texts)):
        raise ValueError(
            "Agents read texts: the observation must be a Dict of input_ids and attention_mask, integers of one shape "
            f"(L,), got {observation}. A gym.ObservationWrapper around the environment can tokenise what it shows."
        )
    if not isinstance(action, spaces.Discrete) or action.start != 0 or action.n != policy.vocab_size:
        raise ValueError(
            f"The policy chooses one of {policy.vocab_size} actions, so the action space must be "
            f"Discrete({policy.vocab_size}), got {action}. TransformerPolicy takes vocab_size= for fewer actions than "
            "the model has tokens; other kinds of action need a gym.ActionWrapper."
        )
    config = policy.model.config.get_text_config()
    ids = texts[0]
    least, largest = _range(ids)
    if least < 0 or largest >= config.vocab_size:
        raise ValueError(
            f"The model reads ids 0 .. {config.vocab_size - 1}, the observation may have {least} .. {largest}."
        )
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and ids.shape[0] > context:
        raise ValueError(f"The policy's context is {context} tokens, the observation has {ids.shape[0]}.")


@torch.no_grad()
def collect_external(
    env: Any, policy: TransformerPolicy, n: int, *, generator: torch.Generator, gamma: float = 1.0, values: bool = True
) -> Rollout:
    """Let the policy play `n` episodes to their ends, as a `Rollout` whose texts are [B, T, L + 1].

    The text of a step is what was observed, on the right of its row, and in the last column the action. `scores` are
    the episodes' returns. Where an episode was truncated, `gamma V(s_T)` is added to its last reward: it would have
    gone on. (Without `values` there is no V that means anything, and a cut counts as an end.) `action_mask`, in the
    info or in the observation, is obeyed where there is one.

    Args:
        env: a single environment that passes `check_spaces`.
        policy: chooses, and says V.
        n: B.
        generator: draws a seed for each episode and the actions; on the policy's device.
        gamma: discount, for what is added at a truncation.
        values: whether V is wanted.
    """
    episodes = [_episode(env, policy, generator, gamma if values else None) for _ in range(n)]
    padded = {
        name: pad_sequence([episode[name] for episode in episodes], batch_first=True)
        for name in ("input_ids", "attention_mask", "log_probs", "rewards", "mask")
    }
    mask = padded["mask"]
    padded["attention_mask"][..., -2:] = 1  # also beyond an end: a text of no token cannot be read
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
        seen = policy.values(rollout.input_ids.flatten(0, 1), rollout.attention_mask.flatten(0, 1), 1)
        rollout.values = torch.where(mask, seen.view(mask.shape), 0.0)
    return rollout


def _range(space: Any) -> tuple[int, int]:
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.start.min()), int((space.start + space.nvec).max()) - 1
    if isinstance(space, spaces.Box):
        return int(space.low.min()), int(space.high.max())
    return 0, 1  # MultiBinary


def _is_row_of_integers(space: Any) -> bool:
    return space.shape is not None and len(space.shape) == 1 and np.issubdtype(space.dtype, np.integer)


def _episode(env: Any, policy: TransformerPolicy, generator: torch.Generator, gamma: float | None) -> dict[str, Any]:
    """One episode: a row a step; `gamma V(s_T)` is added where it was cut, unless `gamma` is None."""
    seed = torch.randint(2**31, (), generator=generator, device=policy.device)
    observation, info = env.reset(seed=int(seed))
    steps: dict[str, list[Any]] = {name: [] for name in ("input_ids", "attention_mask", "log_probs", "rewards")}
    masks, everything = [], np.ones(policy.vocab_size, dtype=np.int8)
    terminated = truncated = False
    while not terminated and not truncated:
        ids, attention = _text(observation, policy)
        logits = policy.next_token_logits(ids[None, :-1], attention[None, :-1])[0]
        shown = info.get("action_mask", observation.get("action_mask", everything))
        masks.append(torch.as_tensor(shown, device=policy.device) > 0)
        if masks[-1].shape != (policy.vocab_size,):
            raise ValueError(f"action_mask must have one value an action ({policy.vocab_size}), got {shown!r}.")
        if not masks[-1].any():
            raise ValueError("action_mask allows no action: the environment must end an episode before.")
        log_probs = logits.masked_fill(~masks[-1], -torch.inf).log_softmax(dim=0)
        ids[-1] = action = int(torch.multinomial(log_probs.exp(), 1, generator=generator))
        observation, reward, terminated, truncated, info = env.step(action)
        if not np.isfinite(reward := float(reward)):
            raise ValueError(f"A reward must be a finite number, got {reward} for action {action}.")
        step = {"input_ids": ids, "attention_mask": attention, "log_probs": log_probs[action], "rewards": reward}
        for name, value in step.items():
            steps[name].append(value)
    played = {name: torch.as_tensor(np.array(values), device=policy.device) for name, values in steps.items()}
    rewards = played["rewards"].float()
    score = rewards.sum()
    if not terminated and gamma is not None:
        ids, attention = _text(observation, policy)
        last = torch.as_tensor(np.stack([ids, attention])[:, None], device=policy.device)
        rewards[-1] += gamma * policy.values(last[0], last[1], 1).item()
    played |= {"rewards": rewards, "score": score, "stopped": torch.tensor(terminated, device=policy.device)}
    played["mask"] = torch.ones_like(rewards, dtype=torch.bool)
    return played | {"action_mask": torch.stack(masks)}


def _text(observation: dict[str, Any], policy: TransformerPolicy) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask [L + 1]: what is observed, blanks moved to the left, and room for the action."""
    mask = np.asarray(observation["attention_mask"], dtype=np.int64)
    order = mask.argsort(kind="stable")
    ids = np.asarray(observation["input_ids"], dtype=np.int64)[order]
    size = policy.model.config.get_text_config().vocab_size
    if not mask.any() or ids.min() < 0 or ids.max() >= size:
        raise ValueError(
            f"An observation must show at least one token, and ids 0 .. {size - 1} (blanks too), got {observation}."
        )
    return np.append(ids, 0), np.append(mask[order], 1)
