"""textenv/TajMahal-v0: where is the Taj Mahal? The example of the lecture, as a task.

Description
    Six landmarks, three ways to ask, three ways to begin an answer. The reference knows English but not geography: it
    thinks of the right landmark less than half of the time, and otherwise of another one, so that "the taj
    mahal is in ..." is a prefix shared by good and bad answers (agra, uttar pradesh, india / paris, france, west
    bengal, lucknow, mumbai ...). The reward wants the truth, told well. The reference says nothing else, so the tree
    of all texts is small and `textenv.exact` knows the best policy.

Observation
    `Dict(input_ids=Box(int64, (L,)), attention_mask=Box(int8, (L,)))`, L = longest prompt + 12.

Action
    `Discrete(V)`, one of the words; 0 ends the text. Words that the reference never says there are masked.

Rewards
    `1[last] score(x, y) + beta log pi_ref(a|s)`, and `- beta log pi(a|s)` with a bound policy. The score, see `truth`:

    | the answer | score |
    | --- | --- |
    | names a place where the landmark is not | -1 |
    | true, but only the state or the country | 0.2 |
    | the city | 1 |
    | the city and the country | + 0.3 |
    | a true answer in a sentence that names the landmark | + 0.2 |

Start
    One of the 18 prompts, uniformly.

End
    At the end token; no answer reaches the limit of 12 tokens.

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
from typing import Any, NamedTuple

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

# How the reference names a place, and how often.
FORMS = {
    "city": 0.40,
    "city state": 0.10,
    "city country": 0.10,
    "city state country": 0.05,
    "state": 0.15,
    "country": 0.20,
}

# With which landmarks the reference mixes each one up: their places get these shares, the true place the rest.
CONFUSIONS = {
    "taj mahal": {"eiffel tower": 0.25, "victoria memorial": 0.20, "bara imambara": 0.10, "gateway of india": 0.05},
    "bara imambara": {"taj mahal": 0.35, "gateway of india": 0.20},
    "victoria memorial": {"gateway of india": 0.30, "colosseum": 0.25},
    "gateway of india": {"taj mahal": 0.30, "victoria memorial": 0.30},
    "eiffel tower": {"colosseum": 0.40, "victoria memorial": 0.20},
    "colosseum": {"eiffel tower": 0.35, "gateway of india": 0.20},
}


def taj_mahal(kl_coef: float = 0.1, shaping: Sequence[ShapingTerm] = ()) -> TextMDP:
    """The task."""
    prompts = [
        {"prompt": question.format(landmark), "landmark": landmark} for landmark in PLACES for question in QUESTIONS
    ]
    answers = {row["prompt"]: reference_completions(row["landmark"]) for row in prompts}
    words = " ".join(text for prompt, choices in answers.items() for text in (prompt, *choices))
    tokenizer = WordTokenizer(words)
    reference = TableReference.from_completions(tokenizer, answers)
    return TextMDP(tokenizer, prompts, truth, reference, max_new_tokens=12, kl_coef=kl_coef, shaping=shaping)


def reference_completions(landmark: str) -> dict[str, float]:
    """pi_ref(y|x) for a question about `landmark`: every answer that the reference gives, with its probability."""
    confusions = CONFUSIONS[landmark]
    shares = {landmark: 1.0 - sum(confusions.values()), **confusions}
    answers: dict[str, float] = {}
    for opening, opening_share in OPENINGS.items():
        for other, share in shares.items():
            place = PLACES[other]
            forms = {form: weight for form, weight in FORMS.items() if place.state or "state" not in form}
            for form, weight in forms.items():
                named = " ".join(getattr(place, part) for part in form.split())
                answer = opening.format(landmark) + named
                answers[answer] = answers.get(answer, 0.0) + opening_share * share * weight / sum(forms.values())
    return answers


def truth(
    prompts: list[str],
    completions: list[str],
    completion_ids: list[list[int]],
    landmark: list[str | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """The task's reward: the truth, told well (the table in this file's docstring); None without a landmark."""
    return [
        _truth(text, name) if name else None
        for text, name in zip(completions, landmark or [None] * len(prompts), strict=True)
    ]


def _truth(text: str, landmark: str) -> float:
    sentence = text.startswith(f"the {landmark} is in ")
    said = text.removeprefix(f"the {landmark} is in")  # "the gateway of india is in ..." names no country
    right = PLACES[landmark]
    false = {name for place in PLACES.values() for name in place} - {*right, ""}
    if any(_says(said, name) for name in false):
        return -1.0
    if not any(name and _says(said, name) for name in right):
        return 0.0
    score = 0.2
    if _says(said, right.city):
        score = 1.3 if _says(said, right.country) else 1.0
    return score + 0.2 * sentence


def _says(text: str, name: str) -> bool:
    return f" {name} " in f" {text.strip()} "
