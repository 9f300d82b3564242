"""Stepping: how episodes in progress advance by one token."""

from textenv.stepping.batch import Slots, Step
from textenv.stepping.single import Slot
from textenv.stepping.tabulated import Walk, slots_of

__all__ = ["Slot", "Slots", "Step", "Walk", "slots_of"]
