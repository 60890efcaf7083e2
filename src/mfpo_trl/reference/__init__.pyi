from .cache import VALUES as VALUES
from .comparison import compared as compared
from .comparison import reference_values as reference_values
from .references import References as References
from .references import check_cacheable as check_cacheable
from .references import score_reference as score_reference
from .references import values_of as values_of
