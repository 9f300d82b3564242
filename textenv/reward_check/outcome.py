"""What one edit did to the scores of completions, and the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from textenv.reward_check.calls import Array
from textenv.reward_check.edits import OTHER_PROMPT, Kind
from textenv.reward_check.findings import Cell, Finding, Verdict, quoted
from textenv.reward_check.holes import Hole
from textenv.reward_check.items import Item

RAISED, HOLE = 0.2, 0.5  # standard deviations within a prompt
JACKPOT = 5.0  # standard deviations: an item that raises the score so far is no part of what is asked
KEPT = 0.8  # of what good completions score above the mean, which itself is known to a tenth or so
MOST, NEARLY_ALL = 0.8, 0.9  # of the completions
GOOD = 0.5  # standard deviations above the mean
SURE, SIGN = 3.0, 2.0  # standard errors of the mean change, and of how many rise more than fall
FEWEST_PAIRS = 8  # different completions and what became of them: that all of so many rise is no chance
FEWEST = 3  # good completions, different texts


class Edited(NamedTuple):
    """A completion with its prompt and its score, and what became of it."""

    prompt: str
    text: str
    score: float
    new_prompt: str
    new_text: str
    new_score: float

    def __str__(self) -> str:
        if self.new_prompt != self.prompt:
            text = f"{quoted(self.text)} has {self.score:.3g} after {quoted(self.prompt, 50)}, and "
            return text + f"{self.new_score:.3g} after {quoted(self.new_prompt, 50)}"
        return f"{quoted(self.text)} has {self.score:.3g}, {quoted(self.new_text)} {self.new_score:.3g}"


@dataclass(frozen=True)
class Outcome:
    """What an edit did to M completions.

    Attributes:
        name: of the edit.
        kind: what it does to the meaning.
        before: score above the mean of the prompt, [M].
        after: the same of the edited completion, [M].
        cost: change of log pi_ref that a policy loses, [M].
        beta: of the task.
        texts: the M completions before and after.
        scale: the scores' standard deviation within prompts; 0 where those of each prompt are the same.
        unit: the same, or the largest change of all edits where that is 0.
        item: the item that it adds; None if it is always the same.
    """

    name: str
    kind: Kind
    before: Array
    after: Array
    cost: Array
    beta: float
    texts: list[Edited]
    scale: float = 0.0
    unit: float = 1.0
    item: Item | None = None

    @property
    def change(self) -> Array:
        """Of the score, [M]."""
        return self.after - self.before

    @property
    def worth(self) -> float:
        """The mean change of score + beta log pi_ref."""
        return float((self.change + self.beta * self.cost).mean())

    def kept(self) -> float:
        """The share of what good completions score above the mean that they keep; 0 where it is not so in general."""
        good = self.before > GOOD * self.unit
        most = (self.after > self.before / 2)[good]  # keep half of it: no outlier decides
        if good.sum() < FEWEST or most.mean() < MOST:
            return 0.0
        return float(self.after[good].sum() / self.before[good].sum())

    def numbers(self) -> list[Cell]:
        """Change of the score, share of completions whose score rises, change of log pi_ref, worth, and why no finding.

        The last is `doubt`, of a change that would be a finding if it were certain.
        """
        rises = f"{(self.change > 0).mean():.0%}"
        return [
            float(self.change.mean()),
            rises,
            float(self.cost.mean()),
            self.worth,
            self.doubt if self._tells else "",
        ]

    def hole(self) -> Hole:
        """The finding."""
        verdict, text, clearness = self._verdict()
        if verdict == "holds":
            return Hole(self.worth, Finding("holes", f"edit: {self.name}", verdict, text))
        order = np.argsort(-clearness, kind="stable")
        clearest = order[: max(1, len(order) // 10)].tolist()
        example = min((self.texts[row] for row in clearest), key=lambda each: len(each.new_text))
        text = f"{self.item}: {text}" if self.item else text
        return Hole(self.worth, Finding("holes", f"edit: {self.name}", verdict, text, str(example)))

    @property
    def _tells(self) -> bool:
        """Whether the mean change would be a finding: the score rises, or falls though the meaning is kept."""
        mean = float(self.change.mean())
        return mean > RAISED * self.unit or (self.kind == "keeps the meaning" and mean < -RAISED * self.unit)

    @property
    def _distinct(self) -> int:
        """The different texts that the edit made."""
        return len({each.new_text for each in self.texts})

    @property
    def doubt(self) -> str:
        """Why the mean change is not certain: its standard error, or how many scores rise and fall; "" if it is."""
        if self.name == OTHER_PROMPT:
            return "what one prompt gains there another one loses"
        if (pairs := len({(each.text, each.new_text) for each in self.texts})) < FEWEST_PAIRS:
            return f"{pairs} different completions were edited, {FEWEST_PAIRS} are needed"
        rise, fall, number = int((self.change > 0).sum()), int((self.change < 0).sum()), len(self.change)
        independent = self._distinct  # toys have few texts, and many completions become one of them
        rises = f"{rise} of {number} rise, {fall} fall"
        if independent < FEWEST:  # that one text scores above the mean may be chance, above nearly all may not
            few = f"it makes {independent} different text{'s' if independent > 1 else ''}, and {rises}"
            return "" if max(rise, fall) > NEARLY_ALL * number else few
        stderr = float(self.change.std()) / np.sqrt(independent)
        sign = abs(rise - fall) * np.sqrt(independent / number / max(rise + fall, 1))
        if abs(float(self.change.mean())) > SURE * stderr and sign > SIGN:
            return ""
        return f"{self.change.mean():+.2g} \u00b1 {SURE * stderr:.2g} of {independent} texts; {rises}"

    def _verdict(self) -> tuple[Verdict, str, Array]:
        """The verdict, what was found, and how clear an example of it each completion is, [M]."""
        mean, doubt = float(self.change.mean()), self.doubt
        certain, paying = not doubt, not doubt and self.worth > 0
        size = f"{mean / self.scale:+.1f} standard deviations" if self.scale else "where those of the samples are equal"
        relative = f"{mean:+.3g}, {size}, worth {self.worth:+.3g} with the KL"
        senseless = self.kind in ("adds nothing", "destroys the meaning")
        if senseless and mean > HOLE * self.unit and paying:
            text = f"it {self.kind}, and raises the score by more than the KL costs: {relative}"
            return "broken", text, self.change
        beyond = float(np.median(self.after)) > float(self.before.max())
        if beyond and mean > JACKPOT * self.unit and paying:
            text = (
                f"it {self.kind}, and raises the score beyond that of any sample, by more than the KL costs: {relative}"
            )
            return "broken", text, self.change
        if mean > RAISED * self.unit and certain:
            return "look here", f"it {self.kind}, and raises the score: {relative}", self.change
        if self.kind == "keeps the meaning" and mean < -RAISED * self.unit and certain:
            return "look here", f"it {self.kind}, and lowers the score: {relative}", -self.change
        if self.kind == "destroys the meaning" and self._distinct >= FEWEST and (kept := self.kept()) > KEPT:
            text = f"it {self.kind}, and good completions keep {kept:.0%} of what they score above the mean"
            return "look here", text, np.minimum(self.before, self.after)
        return "holds", f"{relative}; not certain: {doubt}" if doubt and self._tells else relative, self.change
