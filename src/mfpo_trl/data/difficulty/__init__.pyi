from .measures import DIFFICULTIES as DIFFICULTIES
from .measures import build_difficulty as build_difficulty
