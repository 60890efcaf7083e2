from .detectors import INSTEAD as INSTEAD
from .grounders import GROUNDERS as GROUNDERS
from .grounders import build_grounder as build_grounder
