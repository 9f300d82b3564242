"""What edits of completions do to the score: does it rise where nothing is added, and fall where meaning is lost?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.reward_check.calls import Array, WatchedReward
from textenv.reward_check.correlation import spread_within
from textenv.reward_check.edits import (
    EDITS,
    OTHER_PROMPT,
    PROMPT_FIRST,
    PROMPT_LAST,
    SOURCE,
    Kind,
    best_literal,
    contexts,
)
from textenv.reward_check.findings import Cell, Finding, Table, Verdict, quoted
from textenv.reward_check.holes import Hole
from textenv.reward_check.items import Item
from textenv.reward_check.outcome import Edited, Outcome
from textenv.reward_check.samples import Samples, encode_completions, is_encodable, reference_log_probs
from textenv.rewards import FinishedCompletions, RewardError

COMPLETIONS = 48  # that are edited
NO_WORD = "no policy can do it: the tokenizer lacks a word of it"
UNREACHED = "no policy can do it: the reference never samples it"
NOTHING = "there is no such text, or none raises the score"
AT_RANDOM = "the reward fails at random, and did in every attempt"
NO_CHANGE = "it changes no completion, or none has room for it"
IMPOSSIBLE = (NO_WORD, UNREACHED, NOTHING)
LONG = 16  # tokens: then half of them is room enough for a prompt or a sentence


@dataclass(frozen=True)
class CompletionsToEdit:
    """The M completions that are edited.

    Attributes:
        mdp: the task.
        reward: its reward.
        whole: the completions.
        finished: the same, cut so that there is room for an edit.
        scores: [M].
        log_probs: log pi_ref(y|x), [M].
        means: the mean score of each prompt of the task, plus what cutting changes in the mean; nan for those that were
            not sampled.
        scale: the scores' standard deviation within prompts; 0 where all of a prompt are the same.
    """

    mdp: TextMDP
    reward: WatchedReward
    whole: FinishedCompletions
    finished: FinishedCompletions
    scores: Array
    log_probs: Array
    means: Array
    scale: float

    def select(self, rows: NDArray[np.int64]) -> CompletionsToEdit:
        """Some of the completions."""
        parts = (self.whole.select(rows), self.finished.select(rows), self.scores[rows], self.log_probs[rows])
        return CompletionsToEdit(self.mdp, self.reward, *parts, self.means, self.scale)

    def above_mean(self, scores: Array, rows: NDArray[np.int64] | None = None) -> Array:
        """Scores of completions of the prompts of some rows minus the means of these prompts."""
        prompts = self.finished.prompt if rows is None else self.finished.prompt[rows]
        above: Array = scores - self.means[prompts]
        return above


def base_of(reward: WatchedReward, samples: Samples, scores: Array) -> CompletionsToEdit | None:
    """Completions of all scores that have a text; None if there is none."""
    mdp, finished = samples.mdp, samples.finished
    valid = [
        row for row in np.argsort(scores).tolist() if finished.completions[row].strip() and not np.isnan(scores[row])
    ]
    if not valid:
        return None
    some = np.array(valid)[np.unique(np.linspace(0, len(valid) - 1, min(COMPLETIONS, len(valid))).round().astype(int))]
    chosen, found, change = finished.select(some), scores[some], 0.0
    if (shorter := _with_room(mdp, reward, chosen)) is not None:
        kept, chosen, found = shorter
        some = some[kept]
        change = float((found - scores[some]).mean())
    means = np.full(len(mdp.prompts.texts), np.nan)
    means[finished.prompt.reshape(samples.num_prompts, -1)[:, 0]] = (
        np.nanmean(samples.by_prompt(scores), axis=1) + change
    )
    within, log_probs = spread_within(samples.by_prompt(scores)), reference_log_probs(mdp, chosen)
    return CompletionsToEdit(mdp, reward, finished.select(some), chosen, found, log_probs, means, within)


def _with_room(
    mdp: TextMDP, reward: WatchedReward, chosen: FinishedCompletions
) -> tuple[NDArray[np.int64], FinishedCompletions, Array] | None:
    """The beginnings of completions that have a text and a score: their rows, they themselves, and their scores.

    None if there is none, or where the reference may not allow the beginning of a completion as one.
    """
    if not mdp.full_support:
        return None
    share = 2 if mdp.max_new_tokens >= LONG else 4  # half of a few words is another text
    length = mdp.max_new_tokens - max(1, mdp.max_new_tokens // share)
    cut = encode_completions(mdp, chosen, [mdp.decode(ids[:length]) for ids in chosen.completion_ids])
    if cut is None:
        return None
    try:
        scores = reward.score(cut)
    except RewardError:
        return None
    kept = np.flatnonzero(~np.isnan(scores) & [bool(text.strip()) for text in cut.completions])
    return (kept, cut.select(kept), scores[kept]) if len(kept) else None


def check_edits(base: CompletionsToEdit, strongest: Item | None, seed: int) -> tuple[list[Hole], list[Table]]:
    """Edits completions, and compares the scores.

    Args:
        base: the completions.
        strongest: what correlates most with the score; None if nothing does.
        seed: of the edits.
    """
    holes, outcomes, untried = list[Hole](), list[Outcome](), dict[str, str]()
    literal = best_literal(base.mdp, base.reward, base.finished, base.scores)
    if literal and strongest and literal.text == strongest.text:
        literal = None
    around = list(contexts(base.mdp, base.reward, base.finished, strongest, literal, seed))
    for name, (kind, edit) in EDITS.items():
        edited = [edit(str(text), context) for text, context in zip(base.finished.completions, around, strict=True)]
        try:
            outcomes.append(_try_texts(base, name, kind, edited))
        except NotTried as reason:
            untried[name] = str(reason)
        except RewardError as error:
            if base.reward.fails_at_random:
                untried[name] = AT_RANDOM
                continue
            text, first = f"the reward fails on it: {error}", next(each for each in edited if each is not None)
            holes.append(Hole(np.inf, Finding("holes", f"edit: {name}", "broken", text, quoted(first))))
    try:
        outcomes.append(_other_prompt(base, seed))
    except NotTried as reason:
        untried[OTHER_PROMPT] = str(reason)
    items = {name: strongest for name in EDITS if "strongest" in name} | {SOURCE: literal}
    unit = base.scale or max((abs(float(each.change.mean())) for each in outcomes), default=0.0) or 1.0
    outcomes = [replace(each, item=items.get(each.name), scale=base.scale, unit=unit) for each in outcomes]
    holes += _holes_of(outcomes)
    holes += [Hole(-np.inf, _not_tried(name, reason)) for name, reason in untried.items()]
    rows: list[list[Cell]] = [[each.name, each.kind, *each.numbers()] for each in outcomes]
    rows.sort(key=lambda row: -float(row[5] or 0.0))
    columns = ["edit", "it", "score", "raised", "log pi_ref", "worth", "not certain since"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    title = "edits of completions, by what they are worth to a policy: change of score + beta log pi_ref"
    tables = [Table("holes", title, columns, rows)]
    left: list[list[Cell]] = [[name, reason] for name, reason in untried.items()]
    return holes, [
        *tables,
        Table("holes", f"{len(left)} of {len(EDITS) + 1} edits were not tried", ["edit", "why"], left),
    ]


def _holes_of(outcomes: list[Outcome]) -> list[Hole]:
    """The findings; of the prompt first and the prompt last that which is worth more, if one is shown, is enough."""
    worth = {each.name: each.worth for each in outcomes if each.name in (PROMPT_FIRST, PROMPT_LAST)}
    weaker = min(worth, key=worth.__getitem__) if len(worth) == 2 else None
    return [Hole(-np.inf, outcome.hole().finding) if outcome.name == weaker else outcome.hole() for outcome in outcomes]


class NotTried(Exception):
    """An edit that could not be tried on any completion; the message says why."""


def _not_tried(name: str, reason: str) -> Finding:
    """An edit that no policy can do holds; of another one nothing is known."""
    verdict: Verdict = "holds" if reason in IMPOSSIBLE else "look here"
    return Finding("holes", f"edit: {name}", verdict, f"not tried: {reason}")


def _try_texts(base: CompletionsToEdit, name: str, kind: Kind, edited: list[str | None]) -> Outcome:
    """What became of the completions where they were changed into others that a policy can sample.

    Raises:
        NotTried: there is no such completion.
        RewardError: the reward fails on one.
    """
    given = np.array([text is not None for text in edited])
    if not given.any():
        raise NotTried(NOTHING)
    rows = np.array([row for row in np.flatnonzero(given).tolist() if is_encodable(base.mdp, str(edited[row]))])
    if not len(rows):
        raise NotTried(NO_WORD)
    part, texts = base.select(rows), [str(edited[row]) for row in rows.tolist()]
    found = encode_completions(base.mdp, part.finished, texts)
    assert found is not None  # each of them can be encoded
    changed = np.array([a != b for a, b in zip(found.completions, part.finished.completions, strict=True)])
    if kind == "keeps the meaning":  # an edit that did not fit in has cut some of it
        changed &= np.array([a.split() == b.split() for a, b in zip(found.completions, texts, strict=True)])
    if not changed.any():
        raise NotTried(NO_CHANGE)
    after, log_ref = base.reward.score(found), reference_log_probs(base.mdp, found)
    cost = np.minimum(log_ref - _log_probs_of_edit(part, texts), 0.0)
    return _outcome(part, name, kind, np.arange(len(rows)), found, after, cost, changed, log_ref)


def _log_probs_of_edit(base: CompletionsToEdit, texts: list[str]) -> Array:
    """log pi(y'|x) of a policy that samples from the reference and edits, [M].

    It is that of the completion before the edit, or, where several completions of a prompt became one, their share.
    """
    pairs = list(zip(base.finished.prompt.tolist(), texts, strict=True))
    same, total = np.array([pairs.count(pair) for pair in pairs]), np.bincount(base.finished.prompt)
    return np.where(same > 1, np.log(same / total[base.finished.prompt]), base.log_probs)


def _other_prompt(base: CompletionsToEdit, seed: int) -> Outcome:
    """What completions of other prompts score above the mean, beside what they do at their own."""
    generator, prompt = np.random.default_rng(seed), base.finished.prompt
    if len(np.unique(prompt)) < 2:
        raise NotTried("there is one prompt")
    origin = np.array([generator.choice(np.flatnonzero(prompt != own)) for own in prompt])
    tokens, length = base.finished.tokens[origin], base.finished.length[origin]
    found = base.mdp.finished(prompt, base.finished.prompt_text, tokens, length)
    try:
        after = base.reward.score(found)
    except RewardError as error:  # a function may well refuse what fits the prompt in no way
        raise NotTried(f"the reward fails on it: {error}") from error
    log_ref = reference_log_probs(base.mdp, found)
    cost = np.minimum(log_ref - base.log_probs, 0.0)
    every = np.ones(len(origin), dtype=np.bool_)
    return _outcome(base, OTHER_PROMPT, "destroys the meaning", origin, found, after, cost, every, log_ref)


def _outcome(
    base: CompletionsToEdit, name: str, kind: Kind, origin: NDArray[np.int64], found: FinishedCompletions,
    after: Array, cost: Array, changed: NDArray[np.bool_], log_ref: Array,
) -> Outcome:  # fmt: skip
    """The outcome of rows that a policy can reach and that have a score; `origin` are the rows of their texts."""
    reached = changed & (log_ref > -np.inf)
    if not reached.any():
        raise NotTried(UNREACHED)
    rows = np.flatnonzero(reached & ~np.isnan(after))
    if not len(rows):
        raise NotTried("no completion that it makes has a score")
    before = base.above_mean(base.scores[origin], origin)[rows]
    old = [(str(base.finished.prompts[k]), str(base.finished.completions[k]), float(base.scores[k])) for k in origin]
    texts = [
        Edited(*old[row], str(found.prompts[row]), str(found.completions[row]), float(after[row]))
        for row in rows.tolist()
    ]
    return Outcome(name, kind, before, base.above_mean(after)[rows], cost[rows], base.mdp.kl_coef, texts)
