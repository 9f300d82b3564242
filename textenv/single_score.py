"""The score of one completion, for unit tests: of an environment, or of a reward function without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from textenv.data import Prompts, load_prompts
from textenv.env import TextEnv
from textenv.episode import play
from textenv.mdp import TextMDP
from textenv.rewards import FinishedCompletions, RewardFunction, WeightedReward, call_reward, without_score_tokens
from textenv.unwrap import EnvLike, get_mdp

Rewarded = EnvLike | TextMDP | RewardFunction
Prompt = str | Sequence[Mapping[str, object]] | Mapping[str, object]


def score_of(reward: Rewarded, prompt: Prompt, completion: str) -> float:
    """The score of one completion.

    Args:
        reward: an environment of textenv, or a reward function. A function gets the bytes of a completion in UTF-8 as
            `completion_ids`: one that reads them needs an environment.
        prompt: a text; a conversation, `[{"role": ..., "content": ...}]`, whose messages a function gets; or, for a
            function, a mapping with one of them as "prompt", whose other fields are its columns.
        completion: its text.

    Returns:
        The score; nan where the function returned None.

    Raises:
        RewardError: the reward failed; that of an environment fails where it returns None.
        ValueError: the completion cannot be played, the prompt is malformed, or an environment gets columns.
    """
    if isinstance(reward, TextMDP) or hasattr(reward, "unwrapped"):
        if isinstance(prompt, Mapping):
            raise ValueError("An environment has the columns of its own prompts: pass a prompt without further fields.")
        score = play(TextEnv(get_mdp(reward)), prompt, completion).score
        return float("nan") if score is None else float(score)
    finished, weighted = _finished(prompt, completion), WeightedReward(reward)
    scores = [float(call_reward(without_score_tokens(function), finished)[0]) for function in weighted.functions]
    return float("nan") if np.isnan(scores).all() else float(np.nansum(scores))


def _finished(prompt: Prompt, completion: str) -> FinishedCompletions:
    """One completion, whose tokens are its bytes."""
    tokenizer, ids = _Bytes(), list(completion.encode())
    if isinstance(prompt, str):  # an empty one, too, which no task has
        listed = Prompts([prompt], np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1), dtype=np.int8), {})
    else:
        listed = load_prompts([prompt], tokenizer)
    text = np.array([[listed.texts[0]]], dtype=object)[0]
    return FinishedCompletions(
        tokenizer, listed, np.array([0]), text, np.array([ids or [0]]), np.array([len(ids)], dtype=np.int64)
    )


class _Bytes:
    """A tokenizer whose tokens are bytes."""

    eos_token_id = pad_token_id = None
    chat_template = ""  # see `apply_chat_template`

    def __len__(self) -> int:
        return 256

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: object, /, *, skip_special_tokens: bool = False) -> str:
        return bytes(np.asarray(token_ids, dtype=np.int64).tolist()).decode()

    def convert_ids_to_tokens(self, ids: object, /) -> list[str]:
        return [str(i) for i in np.asarray(ids).tolist()]

    def apply_chat_template(self, conversation: Sequence[Mapping[str, str]], **template: object) -> str:
        """The text of a conversation, as error messages show it; reward functions get its messages."""
        return "\n".join(f"{message['role']}: {message['content']}" for message in conversation)
