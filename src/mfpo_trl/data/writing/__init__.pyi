from .parts import Parts as Parts
from .parts import features as features
from .parts import remember as remember
from .report import PartReport as PartReport
from .report import finish as finish
