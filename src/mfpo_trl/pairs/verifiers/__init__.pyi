from .table import VERIFIERS as VERIFIERS
from .table import Given as Given
from .table import Verifier as Verifier
from .table import build_verifier as build_verifier
