from .command import add_loop as add_loop
from .recipe import LoopRecipe as LoopRecipe
from .recipe import read_recipe as read_recipe
from .rounds import run as run
