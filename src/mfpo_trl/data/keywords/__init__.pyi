from .extraction import KeywordOptions as KeywordOptions
from .extraction import embedding_vectors as embedding_vectors
from .extraction import keywords as keywords
from .extraction import load_tagger as load_tagger
from .phrases import Candidate as Candidate
from .phrases import candidates as candidates
