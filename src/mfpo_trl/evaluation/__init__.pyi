from .command import main as main
from .figures import Difference as Difference
from .figures import Figure as Figure
from .figures import Measure as Measure
from .figures import compare as compare
from .figures import wilson as wilson
from .report import Group as Group
from .report import Result as Result
