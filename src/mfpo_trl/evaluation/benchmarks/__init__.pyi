from .coco import Objects as Objects
from .coco import read_synonyms as read_synonyms
from .coco import singular_words as singular_words
from .command import BENCHMARKS as BENCHMARKS
from .command import build_parser as build_parser
from .command import main as main
from .truth import Truth as Truth
from .truth import image_id as image_id
