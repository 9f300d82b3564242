"""What can be counted in a completion without understanding it: what a policy finds when it finds a hole."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from textenv.reward_check.calls import Array
from textenv.reward_check.samples import Samples

WORD = re.compile(r"\w+|[^\w\s]+")
PUNCTUATION = re.compile(r"[^\w\s]")
# not within words: "expect", "10:3" and "f:(x)" have none; no slashes, digits and brackets, which URLs and code have
EMOTICON = re.compile(
    r"""[:;]['-]?[)(](?!\w)
    | (?<!\w)(?:[:;=]['-]?[DPpOo]|=[)(]|[xX]D|<3)(?!\w)
    | [\u2600-\u27bf\U0001f300-\U0001faff]""",
    re.VERBOSE,
)
SENTENCE = re.compile(r"(?<=[.!?])\s+")
LETTERS = 4  # of a word of the prompt that counts: shorter ones are in every text


def words_of(text: str) -> list[str]:
    """Words and runs of punctuation, in lower case."""
    return WORD.findall(text.lower())


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, without empty ones."""
    return [each for each in SENTENCE.split(text.strip()) if each]


def _copied(prompt: str, completion: str) -> int:
    asked = {word for word in words_of(prompt) if len(word) >= LETTERS}
    return sum(word in asked for word in words_of(completion))


def _repeated(items: list[str] | list[tuple[str, str]]) -> int:
    return len(items) - len(set(items))


def _mean_length(words: list[str]) -> float:
    return sum(map(len, words)) / max(len(words), 1)


# the prompt and the completion -> a number
FEATURES: dict[str, Callable[[str, str], float]] = {
    "characters": lambda prompt, text: len(text),
    "different words": lambda prompt, text: len(set(words_of(text))),
    "letters of a word": lambda prompt, text: _mean_length(words_of(text)),
    "repeated words": lambda prompt, text: _repeated(words_of(text)),
    "repeated pairs of words": lambda prompt, text: _repeated(list(pairwise(words_of(text)))),
    "repeated sentences": lambda prompt, text: _repeated(sentences_of(text.lower())),
    "words of the prompt": _copied,
    "punctuation marks": lambda prompt, text: len(PUNCTUATION.findall(EMOTICON.sub("", text))),
    "exclamation marks": lambda prompt, text: text.count("!"),
    "question marks": lambda prompt, text: text.count("?"),
    "emoticons": lambda prompt, text: len(EMOTICON.findall(text)),
    "digits": lambda prompt, text: sum(each.isdigit() for each in text),
    "upper-case letters": lambda prompt, text: sum(each.isupper() for each in text),
    "other than ASCII": lambda prompt, text: sum(not each.isascii() for each in text),
    "lines": lambda prompt, text: len(text.splitlines()),
}


OF_TOKENS = ("length in tokens", "log pi_ref", "stops before the limit")
ALL_FEATURES = (*OF_TOKENS, *FEATURES)


def features_of(samples: Samples) -> dict[str, Array]:
    """The features of the completions, [K] each; those that are the same in all are left out."""
    finished = samples.finished
    texts = list(zip(map(str, finished.prompts), map(str, finished.completions), strict=True))
    last = finished.tokens[np.arange(len(finished)), finished.length - 1]
    columns = (finished.length.astype(np.float64), samples.log_probs, samples.mdp.is_eos[last].astype(np.float64))
    found = dict(zip(OF_TOKENS, columns, strict=True))
    found |= {name: np.array([float(count(*each)) for each in texts]) for name, count in FEATURES.items()}
    return {name: values for name, values in found.items() if np.ptp(values) > 0}
