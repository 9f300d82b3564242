"""What one edit did to the scores of completions, and the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass

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
        texts: the completion and its score, and the edited one and its score, M times.
        item: the item that it adds; None if it is always the same.
    """

    name: str
    kind: Kind
    before: Array
    after: Array
    cost: Array
    beta: float
    texts: list[tuple[str, float, str, float]]
    item: Item | None = None

    @property
    def change(self) -> Array:
        """Of the score, [M]."""
        return self.after - self.before

    @property
    def worth(self) -> float:
        """The mean change of score + beta log pi_ref."""
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

    def hole(self, scale: float) -> Hole:
        """The finding; `scale` is the scores' standard deviation within prompts."""
        verdict, text = self._verdict(scale)
        order = np.argsort(-self.change, kind="stable")
        clearest = order[: max(1, len(order) // 10)].tolist()  # the shortest of the tenth that rises most
        old, before, new, after = min((self.texts[row] for row in clearest), key=lambda texts: len(texts[2]))
        example = f"{quoted(old)} has {before:.3g}, {quoted(new)} {after:.3g}" if verdict != "holds" else ""
        if self.item and verdict != "holds":
            text = f"{self.item}: {text}"
        return Hole(self.worth, Finding("holes", f"edit: {self.name}", verdict, text, example))

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
        relative = f"{mean:+.3g}, {mean / scale:+.1f} standard deviations, worth {self.worth:+.3g} with the KL"
        senseless = self.kind in ("adds nothing", "destroys the meaning")
        if senseless and mean > HOLE * scale and certain and self.worth > 0:
            return "broken", f"it {self.kind}, and raises the score by more than the KL costs: {relative}"
        beyond = float(np.median(self.after)) > float(self.before.max())
        if beyond and mean > JACKPOT * scale and certain and self.worth > 0:
            text = (
                f"it {self.kind}, and raises the score beyond that of any sample, by more than the KL costs: {relative}"
            )
            return "broken", text
        if mean > RAISED * scale and certain:
            return "look here", f"it {self.kind}, and raises the score: {relative}"
        if self.kind == "keeps the meaning" and mean < -RAISED * scale and certain:
            return "look here", f"it {self.kind}, and lowers the score: {relative}"
        if self.kind == "destroys the meaning" and distinct >= FEWEST and (kept := self.kept(scale)) > KEPT:
            text = f"it {self.kind}, and good completions keep {kept:.0%} of what they score above the mean"
            return "look here", text
        return "holds", relative
