"""Rows and their twins (`mfpo build --mirror`): who reads which."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset

from ..config import MFPOConfig
from ..objective import COUNTERPART

logger = get_logger(__name__)

MIRROR_OF = "mirror_of"
"""The column with the id of the row that a twin was made of; None in every other row."""


def read_by_objective(dataset: Any, training: MFPOConfig, name: str) -> Any:
    """The rows that the objective of a training reads, where some of them are twins.

    An objective whose terms read `rejected_image_chosen` sees both images and both answers in the source's row: it reads the rows that
    have a twin, and not the twins, so that no pair counts twice. Any other one reads all rows.

    Args:
        dataset: of any kind; without a column `mirror_of` it is returned as it is.
        name: of the data set, for the log.
    """
    columns: Collection[str] = dataset.column_names or next(iter(dataset), {})
    if MIRROR_OF not in columns or not any(branch.answer == COUNTERPART for branch in training.branches):
        return dataset
    if not isinstance(dataset, Dataset):
        logger.warning(
            f"{name}: the objective reads {COUNTERPART!r}: of rows and their twins it takes the rows that have one."
        )
        return dataset.filter(lambda row: row.get(MIRROR_OF) is None and bool(row.get(COUNTERPART)))
    table = dataset.select_columns([MIRROR_OF, COUNTERPART]).with_format("arrow")[:]
    twin = pc.is_valid(table[MIRROR_OF]).to_numpy()
    answered = pc.is_valid(table[COUNTERPART]).to_numpy()
    kept = np.flatnonzero(~twin & answered)
    logger.warning(
        f"{name}: the objective reads {COUNTERPART!r}: of {len(dataset)} rows it takes the {len(kept)} that have a twin, and neither "
        f"the {int(twin.sum())} twins, whose pairs would count twice, nor the {int((~twin & ~answered).sum())} rows without one."
    )
    return dataset.select(kept)
