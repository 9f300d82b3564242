"""textenv: Gymnasium environments in which an agent generates text token by token.

Public are the names below, and the modules `exact`, `shaping`, `testing`, `wrappers`, `rewards`, `references`, `data`
and, with torch, `lm`. (The packages of this repository also use the checks of `arguments`.) Importing this package
registers the tasks with Gymnasium and does not import torch:

>>> import gymnasium as gym, textenv
>>> env = gym.make("textenv/TajMahal-v0", kl_coef=0.1)
>>> observation, info = env.reset(seed=0, options={"prompt": "where is the taj mahal located"})
"""

import gymnasium as gym

from textenv.actions import InvalidAction
from textenv.data import WordTokenizer
from textenv.env import TextEnv
from textenv.mdp import TextMDP
from textenv.references import TableReference
from textenv.registration import register
from textenv.state import TextState
from textenv.unwrap import EnvLike, get_mdp
from textenv.vector import TextVectorEnv

__version__ = "0.3.0"

for _id, _task in {
    "textenv/TajMahal-v0": "textenv.tasks.taj_mahal:taj_mahal",
    "textenv/Toy-v0": "textenv.tasks.toy:toy",
    "textenv/RewardHacking-v0": "textenv.tasks.reward_hacking:reward_hacking",
    "textenv/Sentiment-v0": "textenv.tasks.sentiment:sentiment",
    "textenv/Text-v0": "textenv.tasks.text:text",
}.items():
    if _id not in gym.registry:
        register(_id, _task)

__all__ = [
    "EnvLike",
    "InvalidAction",
    "TableReference",
    "TextEnv",
    "TextMDP",
    "TextState",
    "TextVectorEnv",
    "WordTokenizer",
    "get_mdp",
    "register",
]
