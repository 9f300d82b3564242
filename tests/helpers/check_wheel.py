"""Runs the code of READMEs against the installed wheel: `python check_wheel.py README.md ...`, anywhere.

`make wheel` calls it in a clean environment with `python -I`: neither the checkout nor this folder is on the path.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import sysconfig
from pathlib import Path


def main(readmes: list[Path]) -> None:
    """Executes each Python block of the READMEs that needs no other library, and checks what is installed."""
    text = "\n".join(readme.read_text(encoding="utf-8") for readme in readmes)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    blocks = [block for block in blocks if not any(name in block for name in ("stable_baselines3", "hypothesis"))]
    for word in ("gym.make(", "play(", "PPO("):  # an environment, a reward's unit test, an agent
        if not any(word in block for block in blocks):
            raise SystemExit(f"the READMEs have no block with {word}")
    for i, block in enumerate(blocks):
        print(f"README block {i} of {len(blocks)}", flush=True)
        exec(compile(block, f"README, block {i}", "exec"), {"__name__": "__main__"})

    import agents
    import experiments
    import textenv

    installed = Path(sysconfig.get_path("purelib")).resolve()
    for package in (agents, experiments, textenv):
        folder = Path(str(package.__file__)).resolve().parent
        if folder.parent != installed:
            raise SystemExit(f"{package.__name__} is imported from {folder}, not from the wheel in {installed}")
        if not (folder / "py.typed").is_file():
            raise SystemExit(f"{folder} has no py.typed")
    page = Path(str(experiments.__file__)).resolve().parent / "html_report"
    if missing := [
        name for name in ("template.html", "tree.html", "style.css", "script.js") if not (page / name).is_file()
    ]:
        raise SystemExit(f"{page} has no {missing[0]}")
    if importlib.metadata.version("textenv") != textenv.__version__:
        raise SystemExit("the wheel's version is not textenv.__version__")
    print(f"textenv {textenv.__version__} runs from its wheel")


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]])
