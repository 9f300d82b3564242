"""The tasks of the suite: ten random toys, two toys with words, and stories of a language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Group = Literal["toys", "taj_mahal", "reward_hacking", "stories"]

# vocab_size, max_new_tokens, num_prompts and beta; the place in the list is the task_seed
TOYS = (
    *((4, 4, 3, 0.1), (4, 6, 2, 0.2), (5, 4, 3, 0.5), (5, 5, 2, 0.05), (6, 4, 2, 0.1)),
    *((6, 5, 2, 0.2), (7, 4, 2, 0.5), (7, 5, 2, 0.2), (8, 4, 2, 0.05), (8, 5, 2, 0.1)),
)


@dataclass(frozen=True)
class SuiteTask:
    """A task of the suite.

    Attributes:
        name: of its folder.
        group: what its results are put together with.
        flags: flags of `train`.
    """

    name: str
    group: Group
    flags: dict[str, object] = field(default_factory=dict)


def suite_tasks(groups: list[Group], model: str | None, prompts: str | None) -> list[SuiteTask]:
    """Returns the tasks of some groups.

    Args:
        groups: the groups.
        model: path or hub id of the language model of the stories.
        prompts: file of their openings.
    """
    sizes = ("vocab_size", "max_new_tokens", "num_prompts")
    toys = [
        SuiteTask(
            f"toy-{seed}",
            "toys",
            {
                "env": "textenv/Toy-v0",
                "env_args": {**dict(zip(sizes, toy, strict=False)), "task_seed": seed},
                "kl_coef": toy[3],
            },
        )
        for seed, toy in enumerate(TOYS)
    ]
    # VADER is bounded, needs no model, and rewards what stories of this kind can be: happy
    stories: dict[str, object] = {"env": "textenv/Text-v0", "model": model, "prompts": prompts, "reward": ["vader"]}
    stories |= {"kl_coef": 0.05, "max_new_tokens": 48, "num_evals": 8}
    all_tasks = [
        *toys,
        SuiteTask("taj_mahal", "taj_mahal", {"env": "textenv/TajMahal-v0"}),
        SuiteTask("reward_hacking", "reward_hacking", {"env": "textenv/RewardHacking-v0"}),
        SuiteTask("stories", "stories", stories),
    ]
    return [task for task in all_tasks if task.group in groups]
