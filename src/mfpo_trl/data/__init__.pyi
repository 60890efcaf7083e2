from .command import add_build as add_build
from .command import add_preview as add_preview
from .command import with_recipe as with_recipe
from .stages import Rejected as Rejected
from .stages import Row as Row
