from .parts import Parts as Parts
from .parts import beside as beside
from .parts import features as features
from .parts import remember as remember
from .parts import replace as replace
from .report import PartReport as PartReport
from .report import Said as Said
from .report import finish as finish
