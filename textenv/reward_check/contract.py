"""Does a reward function keep the contract: one score a completion, the same whenever and wherever it is computed?"""

from __future__ import annotations

import inspect

import numpy as np
from numpy.typing import NDArray

from textenv.data import messages_of
from textenv.reward_check.calls import Array, WatchedFunction
from textenv.reward_check.child import NotRun, run_elsewhere
from textenv.reward_check.findings import Finding, Verdict, quoted
from textenv.reward_check.noise import beyond_noise, differences, standard_deviation
from textenv.reward_check.samples import Samples
from textenv.rewards import TRAINER_ARGUMENTS, FinishedCompletions, RewardError, WeightedReward, WrongSignature

ALONE = 32  # completions that are scored alone, and in another process
ROUNDING = 1e-3  # of the scores' standard deviation: float32 in a batch of another shape
NOISE = 0.1  # of the scores' standard deviation, of repeated scores: above it the noise is part of what is learned
SLOW = 0.5  # of the seconds of sampling and scoring
STOPS = 0.01  # the probability that all attempts of a batch fail


def check_contract(
    function: WatchedFunction, samples: Samples, *, other_process: bool = True
) -> tuple[list[Finding], Array | None, float]:
    """Checks one reward function.

    Returns:
        The findings; its scores, [K], nan where it returned None, or None if it has none; and the standard deviation of
        a score that is computed again.
    """
    finished = samples.finished
    try:
        scores = function.score_texts(finished)
    except RewardError as error:
        return [_failed(function, finished, error)], None, 0.0
    checks = _Contract(function, finished, scores)
    found: list[Finding | None] = [checks.returns()]
    calls = {"repeats": checks.repeats, "score_tokens": checks.tokens, "alone": checks.alone, "order": checks.order,
             "batch": checks.batch} | ({"process": checks.process} if other_process else {})  # fmt: skip
    for name, check in calls.items():
        try:
            found.append(check())
        except RewardError as error:  # the first call did not fail
            found.append(checks.failed(name, error))
    found += [checks.arguments(), checks.generators(), checks.inputs(), checks.printed(), checks.speed(samples)]
    return [each for each in found if each is not None], scores, checks.noise


class _Contract:
    """The checks of one function whose scores are known."""

    def __init__(self, function: WatchedFunction, finished: FinishedCompletions, scores: Array) -> None:
        self.function, self.finished, self.scores = function, finished, scores
        valid = scores[~np.isnan(scores)]
        self.spread = float(valid.std()) if len(valid) else 0.0
        self.tolerance = ROUNDING * self.spread
        self.noise, self.repeated = 0.0, np.zeros(len(scores))
        order = np.argsort(finished.length, kind="stable")  # the shortest are among those that are scored alone
        self.subset = order[np.unique(np.linspace(0, len(order) - 1, min(ALONE, len(order))).round().astype(int))]

    def finding(self, name: str, verdict: Verdict, text: str, example: str = "") -> Finding:
        """A finding about this function."""
        return Finding("contract", name, verdict, text, example, self.function.name)

    def failed(self, name: str, error: RewardError) -> Finding:
        """A check in which it failed in every attempt."""
        if self.function.attempts.at_random:
            return self.finding(name, "look here", f"not checked: it fails at random, here in every attempt: {error}")
        return self.finding(name, "broken", f"it fails where it is called so: {error}")

    def returns(self) -> Finding:
        """One finite number or None for each completion."""
        count, failed = len(self.scores), int(self.function.attempts.is_skipped(self.finished).sum())
        known = int((~np.isnan(self.scores)).sum())
        if failed == count:
            return self.finding("returns", "broken", "it fails on every completion")
        if not known:
            return self.finding("returns", "broken", "None for every completion: it applies to none.")
        text = f"a finite number for {known:,} of {count:,} completions"
        text += f", None for {none:,}" if (none := count - known - failed) else ""
        text += f", and it fails on {failed:,}" if failed else ""
        return self.finding("returns", "holds", text)

    def repeats(self) -> Finding:
        """The same scores again."""
        again = self.function.score_texts(self.finished)
        self.repeated = differences(again, self.scores)
        self.noise = standard_deviation(again, self.scores)
        differ = int((self.repeated > 0).sum())
        if not differ:
            return self.finding("repeats", "holds", "the same batch has the same scores again")
        text = f"the same batch has other scores again: {differ:,} of {len(again):,} completions; "
        text += f"a score's standard deviation is {self.noise:.3g}, {self._relative(self.noise)} of the scores'"
        rounding = float(self.repeated.max()) <= self.tolerance
        verdict: Verdict = "holds" if rounding else "broken" if self.noise > NOISE * self.spread else "look here"
        example = "" if rounding else self._example(again, self.scores, np.arange(len(again)), "again")
        return self.finding("repeats", verdict, text, example)

    def tokens(self) -> Finding | None:
        """`score_tokens` gives what the function itself gives."""
        if not self.function.has_score_tokens:
            return None
        found = self.function.score(self.finished)
        rows = np.arange(len(found))
        return self._compare("score_tokens", found, rows, "by token ids", "by its signature with texts")

    def alone(self) -> Finding:
        """The same scores one by one, of some."""
        found = np.concatenate([self.function.score_texts(self.finished.select(row)) for row in self.subset.tolist()])
        return self._compare("alone", found, self.subset, "alone", f"in a batch of {len(self.scores):,}")

    def order(self) -> Finding:
        """The same scores in another order, of all."""
        backwards = np.arange(len(self.scores))[::-1]
        found = self.function.score_texts(self.finished.select(backwards))
        return self._compare("order", found, backwards, "in the reverse order", "in the batch")

    def batch(self) -> Finding:
        """The same scores in two other batches, of half of the completions each: the first has each of them twice."""
        even, odd = (np.arange(first, len(self.scores), 2) for first in (0, 1))
        twice = self.function.score_texts(self.finished.select(np.tile(even, 2)))
        found = np.concatenate([twice[len(even) :], self.function.score_texts(self.finished.select(odd))])
        new = "in batches of half of the completions, one of them with each twice,"
        return self._compare("batch", found, np.concatenate([even, odd]), new, "in the whole batch")

    def process(self) -> Finding:
        """The same scores in another process, of the same batch: what depends on the batch is no fault of a process."""
        some = self.finished.select(self.subset)
        here = self.function.score_texts(some)
        try:
            found = run_elsewhere(self.function.function, some, skips=self.function.attempts.skips)
        except NotRun as error:  # a RewardError is one of the function: it failed there
            return self.finding("process", "look here", f"not tried in another process: {error}")
        return self._compare("process", found, self.subset, "in another process", "in this one", here)

    def arguments(self) -> Finding:
        """What it is given is not changed."""
        if self.function.changed:
            return self.finding("arguments", "broken", "it changes its arguments", self.function.changed)
        if self.function.not_copied:
            text = f"not checked inside of values that cannot be copied, {self.function.not_copied}"
            return self.finding("arguments", "look here", text)
        return self.finding("arguments", "holds", "it does not change its arguments")

    def generators(self) -> Finding | None:
        """No draw from a global random generator."""
        if not self.function.drew_from:
            return None
        text = f"it draws from the global generator of {self.function.drew_from}: seeds of others change with it"
        return self.finding("random numbers", "look here", text)

    def inputs(self) -> Finding:
        """What it gets: messages or texts, columns, arguments of a trainer; and whether it is async."""
        chat = messages_of(self.finished.prompts[0]) is not None  # all prompts are, or none
        columns = list(self.finished.columns)
        text = f"{'async; ' if self.function.is_async else ''}prompts are {'messages' if chat else 'texts'}; "
        text += f"columns: {', '.join(columns) or 'none'}"
        missing = [name for name in _own_parameters(self.function) if name not in columns]
        if missing:
            text += f"; its parameter {missing[0]!r} is none of them, and always has its default"
        return self.finding("inputs", "look here" if missing else "holds", text)

    def printed(self) -> Finding | None:
        """What it prints, which is kept away from the report."""
        if not (lines := self.function.printed.count()):
            return None
        text = f"it prints: {lines:,} lines in {len(self.function.calls)} calls, which are left out here"
        return self.finding("prints", "holds", text, f"the first is {quoted(self.function.printed.first)}")

    def speed(self, samples: Samples) -> Finding:
        """Seconds of the first call, beside those of sampling: later calls may find their scores in a cache."""
        size, seconds = self.function.calls[0]
        sampling = samples.seconds / len(samples)
        share = seconds / size / (seconds / size + sampling)
        text = (
            f"{1000 * seconds / size:.3g} s for a thousand completions, which take {1000 * sampling:.3g} s to sample: "
        )
        text += f"{share:.0%} of both together (training takes further time)"
        total = sum(each for each, _ in self.function.calls)
        text += f"; the checks of this section took {len(self.function.calls)} calls for {total:,} scores"
        return self.finding("speed", "look here" if share > SLOW and seconds / size > 1e-3 else "holds", text)

    def _compare(
        self, name: str, found: Array, rows: NDArray[np.int64], new: str, old: str, expected: Array | None = None
    ) -> Finding:
        """Compares scores of rows with what is expected, by default their scores in the batch of all."""
        expected = self.scores[rows] if expected is None else expected
        sizes = differences(found, expected)
        tried = f"{len(rows):,} completions" if len(rows) == len(self.scores) else f"{len(rows)} that were tried"
        if not beyond_noise(sizes, self.repeated, self.tolerance):
            largest = float(sizes.max())
            beyond = " within its noise" if self.noise else f" apart from rounding, {largest:.2g} at most"
            text = f"the same scores {new} as {old}{beyond if largest else ''}: {tried}"
            return self.finding(name, "holds", text)
        wrong = sizes > self.tolerance
        text = f"{int(wrong.sum()):,} of {tried} have another score {new} than {old}"
        text += f", more or larger differences than where the same is repeated ({self.noise:.3g})" if self.noise else ""
        return self.finding(name, "broken", text, self._example(found, expected, rows, new))

    def _example(self, found: Array, expected: Array, rows: NDArray[np.int64], new: str) -> str:
        """The shortest completion whose score is another."""
        wrong = differences(found, expected) > self.tolerance
        at = min(np.flatnonzero(wrong).tolist(), key=lambda i: int(self.finished.length[rows[i]]))
        text = quoted(str(self.finished.completions[rows[at]]))
        return f"{text} has {_score(expected[at])}, and {_score(found[at])} {new}"

    def _relative(self, value: float) -> str:
        return f"{value / self.spread:.1%}" if value < self.spread else "as large as that"


def check_failures(function: WatchedFunction, reward: WeightedReward) -> list[Finding]:
    """What failed in all calls so far, and what a training does about it; completions that stop a check are not here.

    Args:
        function: one of the reward's functions.
        reward: as a training has it: `on_reward_error`, `reward_tries`.
    """
    attempts, found = function.attempts, list[Finding]()
    if attempts.at_random:
        several, one = (f"{bad:,} of {all_:,}" for bad, all_ in zip(attempts.failed, attempts.count, strict=True))
        text = f"at random: {several} calls with several completions and {one} with one failed, and the same were "
        text += "scored when they were tried again; "
        text += {
            "raise": "the first such failure stops a training: on_reward_error is 'raise'",
            "retry": f"a training stops where {reward.tries} attempts of a batch in a row fail",
            "skip": f"where {reward.tries} attempts of a batch fail, a training scores each of it alone, and skips "
            "those that fail then too",
        }[reward.on_error]
        stops = reward.on_error == "raise" or (
            reward.on_error == "retry" and (attempts.failed[0] / max(attempts.count[0], 1)) ** reward.tries > STOPS
        )
        verdict: Verdict = "broken" if stops else "look here"
        found.append(Finding("contract", "fails", verdict, text, attempts.at_random, function.name))
    if attempts.skipped:
        text = f"on {len(attempts.skipped):,} different completions, sampled or edited, in every attempt: a training "
        text += "skips them, and they are in no number below"
        error = min(attempts.skipped.values(), key=len)
        found.append(Finding("contract", "fails", "look here", text, error, function.name))
    return found


def _failed(function: WatchedFunction, finished: FinishedCompletions, error: RewardError) -> Finding:
    """The finding about a function that cannot be called, with the shortest completion that fails alone."""
    if isinstance(error, WrongSignature):
        return Finding("contract", "returns", "broken", str(error), function=function.name)
    for row in np.argsort(finished.length, kind="stable").tolist():
        try:
            function.score_texts(finished.select(row))
        except RewardError as alone:
            example = f"alone, {quoted(str(finished.completions[row]))} of {quoted(str(finished.prompts[row]))} fails"
            return Finding("contract", "returns", "broken", str(alone), example, function.name)
    example = f"a batch of {len(finished):,} completions"
    return Finding("contract", "returns", "broken", str(error), example, function.name)


def _score(value: float) -> str:
    return "None" if np.isnan(value) else f"{value:.6g}"


def _own_parameters(function: WatchedFunction) -> list[str]:
    """The parameters by which a function takes columns."""
    try:
        parameters = inspect.signature(function.function).parameters.values()
    except (TypeError, ValueError):
        return []
    given = {"prompts", "completions", "completion_ids", *TRAINER_ARGUMENTS}
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in parameters if each.kind in kinds and each.name not in given]
