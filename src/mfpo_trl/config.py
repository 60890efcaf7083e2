"""`MFPOConfig`: only what is added to `DPOConfig`, and what is refused."""

import copy
import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from trl import DPOConfig

from .corruptions import check_corruption
from .losses import TERMS, branches_read

REGION_CHOICES = ("auto", "global", "random", "key")
PREFIX_SHARING_CHOICES = ("auto", "on", "off")


@dataclass
class MFPOConfig(DPOConfig):
    """Configuration of [`MFPOTrainer`]: every field of `trl.DPOConfig`, and those below.

    The objective is `text_loss_weight * L_text + image_loss_weight * L_image + anchor_loss_weight * L_margin`
    (arXiv 2410.15334). `L_text` is TRL's own loss, so `beta`, `loss_type`, `f_divergence_type`, `ld_alpha`,
    `use_weighting` and `label_smoothing` mean what they mean there.

    Args:
        text_loss_weight, image_loss_weight, anchor_loss_weight:
            Weights of the three terms, >= 0 and not all 0. A branch that no term with weight reads is not computed; with
            `text_loss_weight=0` TRL's loss does not run, and the metrics that it logs are not there.
        anchor_margin: eta of `L_margin` (delta in mDPO), in units of reward.
        image_beta: beta of the image and anchor terms; `beta` when None.
        corruption: how the dispreferred image is made for a row that has no `rejected_images`: `diffusion`, `crop`,
            `mean`, `black`, `blur` or `swap` (another row's image); with `none` every row has to bring its own.
        corruption_kwargs: options of that corruption, for example `{"step": 500, "schedule": "vcd_sigmoid"}` or
            `{"scale": [0.01, 0.2]}`.
        corruption_region: where: `auto` (the row's `key_regions`, else the whole image), `global` (the whole image),
            `random` (a rectangle of 20 % of the area), `key` (the row's `key_regions`; a row without is an error).
        corruption_seed: the dispreferred image depends on this and on the row's image and prompt (`swap`: also on the other
            rows of the data set), never on order, worker or rank.
        add_eos: score the end of every completion, also where the chat template writes none. The only default that makes
            a number differ from DPOTrainer's when the other weights are 0.
        prefix_sharing: whether branches that share image and prompt share a row: `auto` (where the model can), `on` (an error
            where it cannot), `off`.
        precompute_ref_log_probs: TRL's field, here also for data with images: one pass of the reference over map-style data
            before training, kept beside the data set's own cache and used again while nothing that it depends on changes.
        group_by_prompt: bring the rows of a data set that share image and prompt into one micro-batch, where packed rows
            score each distinct (image, response) once.

    Raises:
        ValueError: a weight that is negative or not a number, all weights 0, an unknown choice, corruption, option or
            noise schedule.
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "corruption_kwargs"]

    text_loss_weight: float = field(default=1.0, metadata={"help": "Weight of DPO's text term."})
    image_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the image term."})
    anchor_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the anchored-reward term."})
    anchor_margin: float = field(default=0.0, metadata={"help": "Margin (eta, delta) of the anchor, in reward units."})
    image_beta: float | None = field(
        default=None, metadata={"help": "Beta of the image and anchor terms; `beta` when not set."}
    )
    corruption: str = field(
        default="diffusion",
        metadata={
            "help": "How dispreferred images are made for rows without `rejected_images`: `diffusion`, `crop`, `mean`, "
            "`black`, `blur` or `swap`, or not at all: `none`."
        },
    )
    corruption_kwargs: dict[str, Any] | str | None = field(
        default_factory=dict,
        metadata={"help": 'Options of the corruption, e.g. `{"step": 500, "schedule": "vcd_sigmoid"}`.'},
    )
    corruption_region: str = field(
        default="auto",
        metadata={
            "help": "Where images are corrupted: `auto`, `global`, `random` or `key`.",
            "choices": REGION_CHOICES,
        },
    )
    corruption_seed: int = field(default=0, metadata={"help": "Seed of the dispreferred images."})
    add_eos: bool = field(
        default=True,
        metadata={"help": "Score the end of every completion, also where the chat template writes none."},
    )
    prefix_sharing: str = field(
        default="auto",
        metadata={
            "help": "Whether branches that share image and prompt share a row: `auto`, `on` or `off`.",
            "choices": PREFIX_SHARING_CHOICES,
        },
    )
    group_by_prompt: bool = field(
        default=False, metadata={"help": "Bring rows that share image and prompt into one micro-batch."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.corruption_kwargs is None:
            self.corruption_kwargs = {}
        for name, weight in self.term_weights.items():
            _check(_is_number(weight) and weight >= 0, f"{name}_loss_weight", weight, "a number >= 0")
        if not any(self.term_weights.values()):
            raise ValueError(
                "text_loss_weight, image_loss_weight and anchor_loss_weight are all 0: there is nothing to train on"
            )
        _check(_is_number(self.anchor_margin), "anchor_margin", self.anchor_margin, "a finite number")
        if self.image_beta is not None:
            _check(_is_number(self.image_beta) and self.image_beta > 0, "image_beta", self.image_beta, "a number > 0")
        _check(self.corruption_region in REGION_CHOICES, "corruption_region", self.corruption_region, REGION_CHOICES)
        choices = PREFIX_SHARING_CHOICES
        _check(self.prefix_sharing in choices, "prefix_sharing", self.prefix_sharing, choices)
        if "donor" in self.corruption_kwargs:
            raise ValueError("corruption_kwargs cannot name a 'donor': `swap` takes another row of the data set")
        check_corruption(self.corruption, self.corruption_kwargs)

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of every term of the objective by its name."""
        return {name: getattr(self, f"{name}_loss_weight") for name in TERMS}

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that the terms with weight read."""
        return branches_read(self.term_weights)

    @classmethod
    def from_dpo_config(cls, config: DPOConfig) -> "MFPOConfig":
        """The same settings as a plain `DPOConfig`'s, with the defaults of what is added.

        The copy is made field by field and without a second `__post_init__`, which would start the distributed state
        again and derive settings from values that are already derived.
        """
        new = cls.__new__(cls)
        new.__dict__.update(copy.copy(config.__dict__))
        for own in fields(cls):
            if own.name not in new.__dict__:
                setattr(new, own.name, own.default if own.default is not MISSING else own.default_factory())
        return new


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(holds: bool, name: str, value: Any, expected: Any) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; expected {expected if isinstance(expected, str) else list(expected)}")
