from .command import add_recipes as add_recipes
from .shipped import accelerate_file as accelerate_file
from .shipped import is_training as is_training
from .shipped import recipe_file as recipe_file
from .shipped import shipped_files as shipped_files
