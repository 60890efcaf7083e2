from .markdown import hub_id as hub_id
from .markdown import plain as plain
from .markdown import told_of_local_base as told_of_local_base
from .model_card import write_model_card as write_model_card
from .papers import MFPO_CITATION as MFPO_CITATION
from .scores import update_card as update_card
from .training import Training as Training
