"""What edits of completions do to the score: does it rise where nothing is added, and fall where meaning is lost?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.reward_check.calls import Array, score_completions
from textenv.reward_check.correlation import spread_within
from textenv.reward_check.edits import EDITS, OTHER_PROMPT, Kind, best_literal, contexts
from textenv.reward_check.findings import Cell, Finding, Table, Verdict, quoted
from textenv.reward_check.holes import Hole
from textenv.reward_check.items import Item
from textenv.reward_check.samples import Samples, encode_completions, reference_log_probs
from textenv.rewards import FinishedCompletions, RewardError

COMPLETIONS = 48  # that are edited
LONG = 16  # tokens: then half of them is room enough for a prompt or a sentence
RAISED, HOLE = 0.2, 0.5  # standard deviations within a prompt
KEPT = 0.8  # of what good completions score above the mean, which itself is known to a tenth or so
MOST, NEARLY_ALL = 0.8, 0.9  # of the completions
GOOD = 0.5  # standard deviations above the mean
SURE, SIGN = 3.0, 2.0  # standard errors of the mean change, and of how many rise more than fall
FEWEST_PAIRS = 8  # different completions and what became of them: that all of so many rise is no chance
FEWEST = 3  # good completions, different texts


@dataclass(frozen=True)
class Base:
    """The M completions that are edited.

    Attributes:
        mdp: the task.
        whole: the completions.
        finished: the same, cut so that there is room for an edit.
        scores: [M].
        log_probs: log pi_ref(y|x), [M].
        means: the mean score of each prompt of the task; nan for those that were not sampled.
        scale: the scores' standard deviation within prompts; 0 where all of a prompt are the same.
    """

    mdp: TextMDP
    whole: FinishedCompletions
    finished: FinishedCompletions
    scores: Array
    log_probs: Array
    means: Array
    scale: float

    def above_mean(self, scores: Array, rows: NDArray[np.int64] | None = None) -> Array:
        """Scores of completions of the prompts of some rows minus the means of these prompts."""
        prompts = self.finished.prompt if rows is None else self.finished.prompt[rows]
        above: Array = scores - self.means[prompts]
        return above


def base_of(samples: Samples, scores: Array) -> Base | None:
    """Completions of all scores that have a text; None if there is none."""
    mdp, finished = samples.mdp, samples.finished
    valid = [
        row for row in np.argsort(scores).tolist() if finished.completions[row].strip() and not np.isnan(scores[row])
    ]
    if not valid:
        return None
    some = np.array(valid)[np.unique(np.linspace(0, len(valid) - 1, min(COMPLETIONS, len(valid))).round().astype(int))]
    chosen, found = finished.select(some), scores[some]
    if (shorter := _with_room(mdp, chosen)) is not None:
        kept, chosen, found = shorter
        some = some[kept]
    means = np.full(len(mdp.prompts.texts), np.nan)
    means[finished.prompt.reshape(samples.num_prompts, -1)[:, 0]] = np.nanmean(samples.by_prompt(scores), axis=1)
    within, log_probs = spread_within(samples.by_prompt(scores)), reference_log_probs(mdp, chosen)
    return Base(mdp, finished.select(some), chosen, found, log_probs, means, within)


def _with_room(
    mdp: TextMDP, chosen: FinishedCompletions
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
        scores = score_completions(mdp.reward, cut)
    except RewardError:
        return None
    kept = np.flatnonzero(~np.isnan(scores) & [bool(text.strip()) for text in cut.completions])
    return (kept, cut.select(kept), scores[kept]) if len(kept) else None


def check_edits(base: Base, strongest: Item | None, seed: int) -> tuple[list[Hole], list[Table]]:
    """Edits completions, and compares the scores.

    Args:
        base: the completions.
        strongest: what goes most with a high score; None if nothing does.
        seed: of the edits.
    """
    holes, outcomes = list[Hole](), list[_Outcome]()
    literal = best_literal(base.mdp, base.finished, base.scores)
    if literal and strongest and literal.text == strongest.text:
        literal = None
    around = list(contexts(base.mdp, base.finished, strongest, literal, seed))
    for name, (kind, edit) in EDITS.items():
        edited = [edit(str(text), context) for text, context in zip(base.finished.completions, around, strict=True)]
        texts = [text for text in edited if text is not None]
        if len(texts) < len(edited):
            continue
        try:
            outcomes += _try_texts(base, name, kind, texts)
        except RewardError as error:
            text = f"the reward fails on it: {error}"
            holes.append(Hole(np.inf, Finding("holes", f"edit: {name}", "broken", text, quoted(texts[0]))))
    outcomes += _other_prompt(base, seed)
    # where all scores of the samples are the same, the largest change is the unit
    scale = base.scale or max((abs(float(each.change.mean())) for each in outcomes), default=0.0) or 1.0
    holes += [hole for outcome in outcomes if (hole := outcome.hole(scale)) is not None]
    rows: list[list[Cell]] = [[each.name, each.kind, *each.numbers()] for each in outcomes]
    rows.sort(key=lambda row: -float(row[-1] or 0.0))
    columns = ["edit", "it", "score", "raised", "log pi_ref", "worth"]
    title = "edits of completions, by what they are worth to a policy: change of score + beta log pi_ref"
    return holes, [Table("holes", title, columns, rows)]


def _try_texts(base: Base, name: str, kind: Kind, texts: list[str]) -> list[_Outcome]:
    """What became of the completions where they were changed; none where nothing was, or by no possible completion."""
    found = encode_completions(base.mdp, base.finished, texts)
    if found is None:
        return []
    after, before = score_completions(base.mdp.reward, found), base.scores
    changed = np.array([a != b for a, b in zip(found.completions, base.finished.completions, strict=True)])
    if kind == "keeps the meaning":  # an edit that did not fit in has cut some of it
        changed &= np.array([a.split() == b.split() for a, b in zip(found.completions, texts, strict=True)])
    log_ref = reference_log_probs(base.mdp, found)
    cost = np.minimum(log_ref - _log_probs_of_edit(base, texts), 0.0)
    return _outcome(base, name, kind, np.arange(len(before)), found, after, cost, changed & (log_ref > -np.inf))


def _log_probs_of_edit(base: Base, texts: list[str]) -> Array:
    """log pi(y'|x) of a policy that samples from the reference and edits, [M].

    It is that of the completion before the edit, or, where several completions of a prompt became one, their share.
    """
    pairs = list(zip(base.finished.prompt.tolist(), texts, strict=True))
    same, total = np.array([pairs.count(pair) for pair in pairs]), np.bincount(base.finished.prompt)
    return np.where(same > 1, np.log(same / total[base.finished.prompt]), base.log_probs)


def _other_prompt(base: Base, seed: int) -> list[_Outcome]:
    """What completions of other prompts score above the mean, beside what they do at their own."""
    generator, prompt = np.random.default_rng(seed), base.finished.prompt
    if len(np.unique(prompt)) < 2:
        return []
    origin = np.array([generator.choice(np.flatnonzero(prompt != own)) for own in prompt])
    tokens, length = base.finished.tokens[origin], base.finished.length[origin]
    found = base.mdp.finished(prompt, base.finished.prompt_text, tokens, length)
    try:
        after = score_completions(base.mdp.reward, found)
    except RewardError:  # a function may well refuse what fits the prompt in no way
        return []
    log_ref = reference_log_probs(base.mdp, found)
    cost = np.minimum(log_ref - base.log_probs, 0.0)
    return _outcome(base, OTHER_PROMPT, "destroys the meaning", origin, found, after, cost, log_ref > -np.inf)


def _outcome(
    base: Base, name: str, kind: Kind, origin: NDArray[np.int64], found: FinishedCompletions,
    after: Array, cost: Array, reached: NDArray[np.bool_],
) -> list[_Outcome]:  # fmt: skip
    """The outcome of rows that were reached and have a score; `origin` are the rows that their texts come from."""
    rows = np.flatnonzero(reached & ~np.isnan(after))
    if not len(rows):
        return []
    before = base.above_mean(base.scores[origin], origin)[rows]
    texts = [
        (str(base.finished.completions[origin[row]]), base.scores[origin[row]], str(found.completions[row]), after[row])
        for row in rows.tolist()
    ]
    return [_Outcome(name, kind, before, base.above_mean(after)[rows], cost[rows], base.mdp.kl_coef, texts)]


@dataclass(frozen=True)
class _Outcome:
    """What an edit did to M completions.

    Attributes:
        name: of the edit.
        kind: what it does to the meaning.
        before: score above the mean of the prompt, [M].
        after: the same of the edited completion, [M].
        cost: change of log pi_ref that a policy pays for, [M].
        beta: of the task.
        texts: the completion and its score, and the edited one and its score, M times.
    """

    name: str
    kind: Kind
    before: Array
    after: Array
    cost: Array
    beta: float
    texts: list[tuple[str, float, str, float]]

    @property
    def change(self) -> Array:
        """Of the score, [M]."""
        return self.after - self.before

    @property
    def worth(self) -> float:
        """The mean change of score + beta log pi_ref: what decides how soon a policy does it."""
        return float((self.change + self.beta * self.cost).mean())

    def kept(self, scale: float) -> float:
        """The share of what good completions score above the mean that they keep; 0 where it is not so in general."""
        good = self.before > GOOD * scale
        most = (self.after > self.before / 2)[good]  # keep half of it: no outlier decides
        if good.sum() < FEWEST or most.mean() < MOST:
            return 0.0
        return float(self.after[good].sum() / self.before[good].sum())

    def numbers(self) -> list[Cell]:
        """Change of the score, share of completions whose score rises, change of log pi_ref, worth."""
        rises = f"{(self.change > 0).mean():.0%}"
        return [float(self.change.mean()), rises, float(self.cost.mean()), self.worth]

    def hole(self, scale: float) -> Hole | None:
        """The finding, if there is something to see; `scale` is the scores' standard deviation within prompts."""
        verdict, text = self._verdict(scale)
        if verdict == "holds":
            return None
        order = np.argsort(-self.change, kind="stable")
        clearest = order[: max(1, len(order) // 10)].tolist()  # the shortest of the tenth that rises most
        old, before, new, after = min((self.texts[row] for row in clearest), key=lambda texts: len(texts[2]))
        example = f"{quoted(old)} has {before:.3g}, {quoted(new)} {after:.3g}"
        return Hole(self.worth / scale, Finding("holes", f"edit: {self.name}", verdict, text, example))

    @property
    def _distinct(self) -> int:
        """The different texts that the edit made."""
        return len({new for _, _, new, _ in self.texts})

    def _is_certain(self) -> bool:
        """Whether the mean change is no chance: by its standard error, and by how many scores rise and fall."""
        if self.name == OTHER_PROMPT:  # what one prompt gains there another one loses
            return False
        if len({(old, new) for old, _, new, _ in self.texts}) < FEWEST_PAIRS:
            return False
        rise, fall, number = int((self.change > 0).sum()), int((self.change < 0).sum()), len(self.change)
        independent = self._distinct  # toys have few texts, and many completions become one of them
        if independent < FEWEST:  # that one text scores above the mean may be chance, above nearly all may not
            return max(rise, fall) > NEARLY_ALL * number
        size = abs(float(self.change.mean())) * np.sqrt(independent)
        sign = abs(rise - fall) * np.sqrt(independent / number / max(rise + fall, 1))
        return bool(size > SURE * float(self.change.std()) and sign > SIGN)

    def _verdict(self, scale: float) -> tuple[Verdict, str]:
        mean, certain, distinct = float(self.change.mean()), self._is_certain(), self._distinct
        relative = f"{mean:+.3g}, {mean / scale:+.1f} standard deviations"
        senseless = self.kind in ("adds nothing", "destroys the meaning")
        if senseless and mean > HOLE * scale and certain and self.worth > 0:
            return "broken", f"it {self.kind}, and raises the score by more than the KL costs: {relative}"
        if mean > RAISED * scale and certain:
            return "look here", f"it {self.kind}, and raises the score: {relative}"
        if self.kind == "keeps the meaning" and mean < -RAISED * scale and certain:
            return "look here", f"it {self.kind}, and lowers the score: {relative}"
        if self.kind == "destroys the meaning" and distinct >= FEWEST and (kept := self.kept(scale)) > KEPT:
            text = f"it {self.kind}, and good completions keep {kept:.0%} of what they score above the mean"
            return "look here", text
        return "holds", relative
