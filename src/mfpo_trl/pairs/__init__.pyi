from .claims import Answer as Answer
from .claims import Claim as Claim
from .claims import Rule as Rule
from .claims import choose_pairs as choose_pairs
from .command import add_pairs as add_pairs
from .command import make_pairs as make_pairs
from .command import options_of as options_of
from .options import PairOptions as PairOptions
