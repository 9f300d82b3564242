"""Paths of the checkout, and of the models and data beside it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

# Real small models and data stand beside the checkout in CI. A test that needs them skips where they are absent.
ASSETS = ROOT.parent / "shared" / "assets"

DATA = ROOT / "tests" / "data"  # see its README
