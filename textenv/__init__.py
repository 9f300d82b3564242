"""textenv: reinforcement learning on text with nothing hidden.

Importing this package registers the tasks with Gymnasium and imports no torch:

>>> import gymnasium as gym, textenv
>>> env = gym.make("textenv/TajMahal-v0", kl_coef=0.1)
>>> observation, info = env.reset(seed=0, options={"prompt": "where is the taj mahal located"})
"""

import gymnasium as gym

from textenv.env import TextEnv
from textenv.process import InvalidAction, TextProcess
from textenv.reference import TableReference
from textenv.tokenizer import WordTokenizer
from textenv.vector import TextVectorEnv

__version__ = "0.1.0"

for _id, _file in {"TajMahal-v0": "taj_mahal", "Toy-v0": "toy", "Text-v0": "text"}.items():
    if f"textenv/{_id}" not in gym.registry:
        gym.register(
            f"textenv/{_id}",
            entry_point=f"textenv.tasks.{_file}:make",
            vector_entry_point=f"textenv.tasks.{_file}:make_vec",
        )

__all__ = ["InvalidAction", "TableReference", "TextEnv", "TextProcess", "TextVectorEnv", "WordTokenizer"]
