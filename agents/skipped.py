"""The end of a training whose completions are all skipped."""

from __future__ import annotations

from textenv import TextMDP
from textenv.rewards import RewardError


def all_skipped(mdp: TextMDP | None, num_updates: int) -> RewardError:
    """The error of a batch of which no completion can be trained on: to continue would only sample more of them."""
    error = None if mdp is None else mdp.last_skip
    last = "" if error is None else f" The last of the errors: {error}"
    return RewardError(
        f"No completion of update {num_updates + 1} can be trained on: their rewards failed, or those of all others of "
        f"their groups (on_reward_error='skip' leaves such completions out). Raise reward_tries or reward_wait.{last}"
    )
