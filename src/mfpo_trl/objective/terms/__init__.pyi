from .anchor import anchor_term as anchor_term
from .table import TERMS as TERMS
from .table import Weighted as Weighted
from .table import branches_read as branches_read
from .table import checked_losses as checked_losses
from .table import reading as reading
from .table import row_columns as row_columns
from .term import Term as Term
