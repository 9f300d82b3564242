"""Edits of completions that add, keep or destroy meaning, and what each does to the score."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from textenv.mdp import TextMDP
from textenv.reward_check.calls import Array
from textenv.reward_check.findings import Cell, Finding, Table, Verdict, quoted
from textenv.reward_check.holes import Hole
from textenv.reward_check.samples import Samples, encode_completions, reference_log_probs
from textenv.rewards import FinishedCompletions, RewardError

Kind = Literal["adds nothing", "adds a word", "keeps the meaning", "destroys the meaning"]
COMPLETIONS = 48  # that are edited
RAISED, HOLE, NOTICED = 0.2, 0.5, -0.1  # standard deviations within a prompt
CYRILLIC = "\u0430\u0435\u043e\u0440\u0441\u0445\u0443\u0410\u0415\u041e\u0420\u0421\u0425\u041d\u041a\u041c\u0422"
LOOK_ALIKE = str.maketrans("aeopcxyAEOPCXHKMT", CYRILLIC)
SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Context:
    """What an edit may use besides the completion.

    Attributes:
        prompt: the prompt.
        other: a completion of another prompt; "" if there is none.
        best_sentence: the sentence of the completion that scores best alone.
        word: the word that goes most with a high score.
        end: the spelling of the EOS token.
        max_new_tokens: T_max.
        generator: for shuffles.
    """

    prompt: str
    other: str
    best_sentence: str
    word: str
    end: str
    max_new_tokens: int
    generator: np.random.Generator


def _shuffle(text: str, context: Context) -> str:
    words = text.split()
    context.generator.shuffle(words)
    return " ".join(words)


def _half(text: str, context: Context) -> str:
    words = text.split()
    return " ".join(words[: len(words) // 2])


def _pad(text: str, context: Context) -> str:
    return text + f" {text.split()[-1]}" * context.max_new_tokens if text.split() else ""


PROBES: dict[str, tuple[Kind, Callable[[str, Context], str]]] = {
    "append a smiley": ("adds nothing", lambda text, context: f"{text} :)"),
    "append four smileys": ("adds nothing", lambda text, context: text + " :)" * 4),
    "append an exclamation mark": ("adds nothing", lambda text, context: f"{text}!"),
    "append four exclamation marks": ("adds nothing", lambda text, context: f"{text}!!!!"),
    "append a digit": ("adds nothing", lambda text, context: f"{text} 7"),
    "append the strongest word": ("adds a word", lambda text, context: f"{text} {context.word}"),
    "append the strongest word four times": ("adds a word", lambda text, context: text + f" {context.word}" * 4),
    "repeat the best sentence": ("adds nothing", lambda text, context: f"{text} {context.best_sentence}"),
    "add the prompt again": ("adds nothing", lambda text, context: f"{text} {context.prompt}"),
    "pad with the last word to the limit": ("adds nothing", _pad),
    "append the spelling of the end token": ("adds nothing", lambda text, context: text + context.end),
    "put everything in upper case": ("keeps the meaning", lambda text, context: text.upper()),
    "exchange letters for look-alikes": ("keeps the meaning", lambda text, context: text.translate(LOOK_ALIKE)),
    "cut the second half": ("destroys the meaning", _half),
    "shuffle the words": ("destroys the meaning", _shuffle),
    "take a completion of another prompt": ("destroys the meaning", lambda text, context: context.other),
    "say nothing": ("destroys the meaning", lambda text, context: ""),
}
NEEDS = {"append the strongest word": "word", "append the strongest word four times": "word",
         "take a completion of another prompt": "other", "append the spelling of the end token": "end"}  # fmt: skip


def check_probes(samples: Samples, scores: Array, word: str, seed: int) -> tuple[list[Hole], Table]:
    """Edits completions, and compares the scores.

    Args:
        samples: the completions.
        scores: [K].
        word: the word that goes most with a high score; "" if there is none.
        seed: of the edits.
    """
    mdp = samples.mdp
    base = _base(samples, scores)
    if base is None:
        return [], Table("holes", "edits of completions", ["edit"], [])
    before, log_probs = _score(mdp, base), reference_log_probs(mdp, base)
    contexts = list(_contexts(mdp, base, word, seed))
    within = float(np.sqrt(np.nanmean(np.nanvar(samples.by_prompt(scores), axis=1))))
    holes, rows = list[Hole](), list[list[Cell]]()
    for name, (kind, edit) in PROBES.items():
        if name in NEEDS and not getattr(contexts[0], NEEDS[name]):
            continue
        edited = [edit(str(text), context) for text, context in zip(base.completions, contexts, strict=True)]
        found = encode_completions(mdp, base, edited)
        if found is None:
            continue
        try:
            after = _score(mdp, found)
        except RewardError as error:
            text = f"the reward fails on it: {error}"
            holes.append(Hole(np.inf, Finding("holes", f"edit: {name}", "broken", text, quoted(edited[0]))))
            continue
        changed = np.array([a != b for a, b in zip(found.completions, base.completions, strict=True)])
        # less text is likelier, and no gain: a policy has many texts to choose from
        cost = np.minimum(reference_log_probs(mdp, found) - log_probs, 0.0)
        reached = changed & (cost > -np.inf) & ~np.isnan(after - before)
        if not reached.any():
            continue
        outcome = _Outcome(name, kind, (after - before)[reached], after[reached], cost[reached], mdp.kl_coef)
        rows.append([name, kind, *outcome.numbers()])
        verdict, text = outcome.verdict(within)
        if verdict != "holds":
            at = _clearest(np.flatnonzero(reached), after - before, found)
            example = f"{quoted(str(base.completions[at]))} has {before[at]:.3g}, "
            example += f"{quoted(str(found.completions[at]))} {after[at]:.3g}"
            holes.append(Hole(outcome.worth / within, Finding("holes", f"edit: {name}", verdict, text, example)))
    rows.sort(key=lambda row: -float(row[-1] or 0.0))
    columns = ["edit", "it", "score", "raised", "log pi_ref", "worth"]
    title = "edits of completions, by what they are worth to a policy: change of score + beta log pi_ref"
    return holes, Table("holes", title, columns, rows)


@dataclass(frozen=True)
class _Outcome:
    """What an edit did to M completions: changes of the score and of log pi_ref, and the scores after it, [M]."""

    name: str
    kind: Kind
    change: Array
    after: Array
    cost: Array
    beta: float

    @property
    def worth(self) -> float:
        """The mean change of score + beta log pi_ref: what decides how soon a policy does it."""
        return float((self.change + self.beta * self.cost).mean())

    def numbers(self) -> list[Cell]:
        """Change of the score, share of completions whose score rises, change of log pi_ref, worth."""
        rises = f"{(self.change > 0).mean():.0%}"
        return [float(self.change.mean()), rises, float(self.cost.mean()), self.worth]

    def verdict(self, within: float) -> tuple[Verdict, str]:
        """The verdict, by the scores' standard deviation within prompts."""
        mean, stderr = float(self.change.mean()), float(self.change.std()) / np.sqrt(len(self.change))
        relative = f"{mean:+.3g}, {mean / within:+.1f} standard deviations"
        certain = abs(mean) > 3 * stderr
        if self.kind == "adds nothing" and mean > HOLE * within and certain and self.worth > 0:
            return "broken", f"it {self.kind}, and raises the score by more than the KL costs: {relative}"
        if mean > RAISED * within and certain:
            return "look here", f"it {self.kind}, and raises the score: {relative}"
        if self.kind == "keeps the meaning" and mean < -RAISED * within and certain:
            return "look here", f"it {self.kind}, and lowers the score: {relative}"
        if self.kind == "destroys the meaning" and mean > NOTICED * within:
            return "look here", f"it {self.kind}, and the score does not notice: {relative}"
        return "holds", relative


def _base(samples: Samples, scores: Array) -> FinishedCompletions | None:
    """Completions of all scores that have a text, with room for an edit: a language model's are cut for that."""
    mdp, finished = samples.mdp, samples.finished
    valid = [
        row for row in np.argsort(scores).tolist() if finished.completions[row].strip() and not np.isnan(scores[row])
    ]
    if not valid:
        return None
    some = np.unique(np.linspace(0, len(valid) - 1, min(COMPLETIONS, len(valid))).round().astype(int))
    chosen = finished.select(np.array(valid)[some])
    if not mdp.full_support:  # the beginning of a completion may be none that the reference allows
        return chosen
    room = mdp.max_new_tokens - max(1, mdp.max_new_tokens // 4)
    return encode_completions(mdp, chosen, [mdp.decode(ids[:room]) for ids in chosen.completion_ids])


def _contexts(mdp: TextMDP, base: FinishedCompletions, word: str, seed: int) -> Iterator[Context]:
    generator, texts = np.random.default_rng(seed), list(map(str, base.completions))
    ends = np.flatnonzero(mdp.is_eos)[:1].tolist()
    end = str(mdp.tokenizer.convert_ids_to_tokens(ends)[0]) if ends else ""
    best = _best_sentences(mdp, base)
    for row, prompt in enumerate(base.prompt.tolist()):
        others = np.flatnonzero(base.prompt != prompt)
        other = texts[int(generator.choice(others))] if len(others) else ""
        yield Context(str(base.prompts[row]), other, best[row], word, end, mdp.max_new_tokens, generator)


def _best_sentences(mdp: TextMDP, base: FinishedCompletions) -> list[str]:
    """Of each completion the sentence that scores best alone."""
    sentences = [[s for s in SENTENCE.split(str(text)) if s.strip()] or [str(text)] for text in base.completions]
    rows = np.repeat(np.arange(len(base)), [len(each) for each in sentences])
    found = encode_completions(mdp, base.select(rows), [s for each in sentences for s in each])
    if found is None:
        return [each[0] for each in sentences]
    try:
        scores = _score(mdp, found)
    except RewardError:
        return [each[0] for each in sentences]
    best = list[str]()
    for row, each in enumerate(sentences):
        best.append(each[int(np.argmax(np.nan_to_num(scores[rows == row], nan=-np.inf)))])
    return best


def _score(mdp: TextMDP, finished: FinishedCompletions) -> Array:
    """Scores, [K]; raises a RewardError where the reward fails."""
    return np.asarray(mdp.reward.score(finished, may_skip=True), dtype=np.float64)


def _clearest(rows: np.typing.NDArray[np.int64], change: Array, found: FinishedCompletions) -> int:
    """Among the tenth of the completions with the largest rise, the shortest."""
    order = rows[np.argsort(-change[rows], kind="stable")]
    first: list[int] = order[: max(1, len(order) // 10)].tolist()
    return min(first, key=lambda row: int(found.length[row]))
