"""What can be counted in a completion without understanding it: what a policy finds when it finds a hole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from textenv.reward_check.calls import Array
from textenv.reward_check.samples import Samples

WORD = re.compile(r"\w+|[^\w\s]+")
PUNCTUATION = re.compile(r"[^\w\s]")
EMOTICON = re.compile(r"[:;=8xX]['-]?[)(DPpOo/\\|\]\[*3]|<3|[\u2600-\u27bf\U0001f300-\U0001faff]")
LETTERS = 4  # of a word of the prompt that counts: shorter ones are in every text


def words_of(text: str) -> list[str]:
    """Words and runs of punctuation, in lower case."""
    return WORD.findall(text.lower())


def _copied(prompt: str, completion: str) -> int:
    asked = {word for word in words_of(prompt) if len(word) >= LETTERS}
    return sum(word in asked for word in words_of(completion))


def _repeated(prompt: str, completion: str) -> int:
    words = words_of(completion)
    return len(words) - len(set(words))


# the prompt and the completion -> a number
FEATURES: dict[str, Callable[[str, str], int]] = {
    "repeated words": _repeated,
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


def features_of(samples: Samples) -> dict[str, Array]:
    """The features of the completions, [K] each; those that are the same in all are left out."""
    finished = samples.finished
    texts = list(zip(map(str, finished.prompts), map(str, finished.completions), strict=True))
    found = {"length in tokens": finished.length.astype(np.float64), "log pi_ref": samples.log_probs}
    found |= {name: np.array([float(count(*each)) for each in texts]) for name, count in FEATURES.items()}
    return {name: values for name, values in found.items() if np.ptp(values) > 0}


def count_items(texts: list[list[str]], least: int, most: int = 2000) -> tuple[list[str], Array]:
    """How often each completion has each word or character: W items, and their counts, [K, W].

    Args:
        texts: the words or the characters of each completion.
        least: the completions that must have it.
        most: W at most, the most frequent.
    """
    counted = [Counter(items) for items in texts]
    frequency = Counter(item for counts in counted for item in counts)
    column = {item: k for k, (item, count) in enumerate(frequency.most_common(most)) if count >= least}
    matrix = np.zeros((len(texts), len(column)))
    for row, counts in enumerate(counted):
        for item, count in counts.items():
            if item in column:
                matrix[row, column[item]] = count
    return list(column), matrix
