"""textenv/TajMahal-v0: where is the Taj Mahal? The example of the lecture, as a task.

Description
    Six landmarks, three forms of the question, three beginnings of a completion. The reference has correct English but
    wrong geography: less than half of the time it names a place of the right landmark, and otherwise one of another
    landmark. So "the taj mahal is in ..." is a prefix shared by good and bad completions (agra, uttar pradesh, india /
    paris, france, west bengal, lucknow, mumbai ...). The reward is for the truth in a full sentence. Every other
    completion has probability 0 under the reference, so the tree of all completions is small and `textenv.exact`
    computes the optimal policy.

Observation
    `Dict(input_ids=Box(int64, (L,)), attention_mask=Box(int8, (L,)))`, L = longest prompt + 12.

Action
    `Discrete(V)`, one of the words; 0 is the end token. Words with probability 0 under the reference are masked.

Rewards
    `1[last] score(x, y) + beta log pi_ref(a|s)`, and `- beta log pi(a|s)` with a bound policy. The score (`truth`):

    | the completion | score |
    | --- | --- |
    | names a place where the landmark is not | -1 |
    | true, but only the state or the country | 0.2 |
    | the city | 1 |
    | the city and the country | + 0.3 |
    | is true and a sentence that names the landmark | + 0.2 |

Start
    One of the 18 prompts, uniformly.

End
    At the end token; no completion reaches the limit of 12 tokens.

Arguments
    kl_coef=0.1, shaping.

Version history
    v0: first version.

>>> from textenv.testing import play
>>> import gymnasium as gym, textenv
>>> env = gym.make("textenv/TajMahal-v0")
>>> play(env, "where is the taj mahal located", "the taj mahal is in agra india").score
1.5
>>> play(env, "where is the taj mahal located", "the taj mahal is in paris").score
-1.0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from textenv.data import WordTokenizer
from textenv.mdp import TextMDP
from textenv.references import TableReference
from textenv.shaping import ShapingTerm


class Place(NamedTuple):
    """Where a landmark is; a place without a state has an empty one."""

    city: str
    state: str
    country: str


PLACES = {
    "taj mahal": Place("agra", "uttar pradesh", "india"),
    "bara imambara": Place("lucknow", "uttar pradesh", "india"),
    "victoria memorial": Place("kolkata", "west bengal", "india"),
    "gateway of india": Place("mumbai", "maharashtra", "india"),
    "eiffel tower": Place("paris", "", "france"),
    "colosseum": Place("rome", "", "italy"),
}
QUESTIONS = ("where is the {} located", "where is the {}", "in which city is the {}")
OPENINGS = {"the {} is in ": 0.4, "it is in ": 0.3, "": 0.3}

# The forms in which the reference names a place, with their probabilities.
FORMS = {
    "city": 0.40,
    "city state": 0.10,
    "city country": 0.10,
    "city state country": 0.05,
    "state": 0.15,
    "country": 0.20,
}

# The landmarks with which the reference confuses each one: their places have these probabilities, its own the rest.
CONFUSIONS = {
    "taj mahal": {"eiffel tower": 0.25, "victoria memorial": 0.20, "bara imambara": 0.10, "gateway of india": 0.05},
    "bara imambara": {"taj mahal": 0.35, "gateway of india": 0.20},
    "victoria memorial": {"gateway of india": 0.30, "colosseum": 0.25},
    "gateway of india": {"taj mahal": 0.30, "victoria memorial": 0.30},
    "eiffel tower": {"colosseum": 0.40, "victoria memorial": 0.20},
    "colosseum": {"eiffel tower": 0.35, "gateway of india": 0.20},
}


def taj_mahal(kl_coef: float = 0.1, shaping: Sequence[ShapingTerm] = ()) -> TextMDP:
    """Makes the task."""
    prompts = [
        {"prompt": question.format(landmark), "landmark": landmark} for landmark in PLACES for question in QUESTIONS
    ]
    completions = {row["prompt"]: reference_completions(row["landmark"]) for row in prompts}
    words = " ".join(part for prompt, choices in completions.items() for part in (prompt, *choices))
    tokenizer = WordTokenizer(words)
    reference = TableReference.from_completions(tokenizer, completions)
    return TextMDP(tokenizer, prompts, truth, reference, max_new_tokens=12, kl_coef=kl_coef, shaping=shaping)


def reference_completions(landmark: str) -> dict[str, float]:
    """pi_ref(y|x) for a question about `landmark`: every possible completion with its probability."""
    confusions = CONFUSIONS[landmark]
    shares = {landmark: 1.0 - sum(confusions.values()), **confusions}
    completions: dict[str, float] = {}
    for opening, opening_share in OPENINGS.items():
        for other, share in shares.items():
            place = PLACES[other]
            forms = {form: weight for form, weight in FORMS.items() if place.state or "state" not in form}
            for form, weight in forms.items():
                named = " ".join(getattr(place, part) for part in form.split())
                completion = opening.format(landmark) + named
                probability = opening_share * share * weight / sum(forms.values())
                completions[completion] = completions.get(completion, 0.0) + probability
    return completions


def truth(
    prompts: list[str],
    completions: list[str],
    completion_ids: list[list[int]],
    landmark: list[str | None] | None = None,
    **columns: object,
) -> list[float | None]:
    """The task's reward (the table in this file's docstring); None without a landmark."""
    return [
        _truth(completion, name) if name else None
        for completion, name in zip(completions, landmark or [None] * len(prompts), strict=True)
    ]


def _truth(completion: str, landmark: str) -> float:
    sentence = completion.startswith(f"the {landmark} is in ")
    place = completion.removeprefix(f"the {landmark} is in")  # "the gateway of india is in ..." names no country
    right = PLACES[landmark]
    false = {name for other in PLACES.values() for name in other} - {*right, ""}
    if any(_contains(place, name) for name in false):
        return -1.0
    if not any(name and _contains(place, name) for name in right):
        return 0.0
    score = 0.2
    if _contains(place, right.city):
        score = 1.3 if _contains(place, right.country) else 1.0
    return score + 0.2 * sentence


def _contains(text: str, name: str) -> bool:
    return f" {name} " in f" {text.strip()} "
