"""`MFPOConfig`: only what is added to `DPOConfig`, and what is refused."""

import copy
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
from transformers.integrations import is_deepspeed_available
from trl import DPOConfig

from .images import AUTO, REGION_CHOICES, check_corruption, check_some_corruption
from .objective import IMAGE_INSTRUCTION, POSITION, PRESETS, BranchName, terms_of
from .objective.terms import Weighted, branches_read

logger = logging.getLogger(__name__)

USUAL_BETA = 0.1
"""TRL's default, and that of most papers."""

WEIGHTS = ("text", "image", "anchor")
"""Terms whose weight is a field of its own."""

PREFIX_SHARING_CHOICES = ("auto", "on", "off")
CURRICULUM_CHOICES = {
    "curriculum": ("none", "staged", "sorted", "anti"),
    "curriculum_column": ("difficulty", "stage"),
    "curriculum_reference": ("initial", "stage"),
    "curriculum_scheduler": ("single", "restart"),
    "curriculum_score": ("nll", "reference_margin", "mask_area"),
    "curriculum_missing": ("error", "hard"),
}


def check_deepspeed() -> None:
    """Ask for DeepSpeed, before transformers reads a configuration for it.

    Raises:
        ImportError: it is not installed.
    """
    if not is_deepspeed_available():
        raise ImportError('training with DeepSpeed needs deepspeed; run `pip install "mfpo_trl[deepspeed]"`')


@dataclass
class MFPOConfig(DPOConfig):
    """Configuration of `MFPOTrainer`: every field of `trl.DPOConfig`, and those below.

    The objective is a sum of terms, by default `text_loss_weight * L_text + image_loss_weight * L_image + anchor_loss_weight *
    L_margin` (arXiv 2410.15334). `L_text` is TRL's own loss, so `beta`, `loss_type`, `f_divergence_type`, `ld_alpha`,
    `use_weighting` and `label_smoothing` mean what they mean there.

    Args:
        objective: the terms and their weights, as a method of the literature has them (`mfpo_trl.objective.presets`), and the
            corruption that goes with it where none is asked for.
        objective_terms: terms by their names, or as `package.module:term`, each with its weight or `{"weight", "beta"}`, in place
            of those of `objective`.
        text_loss_weight, image_loss_weight, anchor_loss_weight:
            Weights of these terms, >= 0 and not all 0; those of `objective` when None. A branch that no term with weight reads is not computed; with
            `text_loss_weight=0` TRL's loss does not run, and the metrics that it logs are not there.
        anchor_margin: eta of `L_margin` (delta in mDPO), in units of reward.
        beta: TRL's; that of the paper of `objective` when None, and 0.1 where that is not public.
        image_beta: beta of every term but TRL's text term; `beta` when None.
        corruption: how the dispreferred image is made for a row that has no `rejected_images`: `auto` (by the row's own
            recipe, which `mfpo build` writes into its column `corruption`, else by `diffusion`), or for all rows `diffusion`,
            `crop`, `mean`, `black`, `mask`, `blur`, `inpaint`, `transplant` (another row's region) or `swap` (another row's
            image); with `none` every row has to bring its own.
        corruption_kwargs: options of that corruption, for example `{"step": 500, "schedule": "vcd_sigmoid"}` or
            `{"scale": [0.01, 0.2]}`; with `auto` they change these options of the row's recipe. A list of steps, shares (`mask`) or
            sigmas (`blur`) is a ladder: one for each dispreferred image of a row that the objective reads.
        corruption_region: where: `auto` (as the row's recipe says, else the row's `key_regions`, else the whole image),
            `global` (the whole image), `random` (a rectangle of 20 % of the area), `key` (the row's `key_regions`; a row
            without is an error), `partial` (one of them, drawn by what the row shows and asks; else as `auto`).
        corruption_seed: the dispreferred image depends on this and on the row's image and prompt (`swap` and `transplant`: also on the other
            rows of the data set), never on order, worker or rank; None: that of the row's recipe with `auto`, else 0.
        image_instruction: of objectives that put two images into one prompt, the sentence that says which is meant, with `{position}`
            where it says `first` or `second`; in a conversation it stands behind the question.
        add_eos: score the end of every completion, also where the chat template writes none. The only default that makes
            a number differ from DPOTrainer's when the other weights are 0.
        prefix_sharing: whether branches that share image and prompt share a row: `auto` (where the model can), `on` (an error
            where it cannot), `off`.
        precompute_ref_log_probs: TRL's field, here also for data with images: one pass of the reference over map-style data
            before training, kept beside the data set's own cache and used again while nothing that it depends on changes.
        group_by_prompt: bring the rows of a data set that share image and prompt into one micro-batch, where packed rows
            score each distinct (image, response) once.
        curriculum: the order of the rows: `none` (TRL's), `staged` (stages from easy to hard, shuffled inside of a stage, as
            in the paper), `sorted` (the same, sorted inside of a stage) or `anti` (from hard to easy, for ablations). All
            stages together are one epoch of the trainer, so that `num_train_epochs` becomes 1.
        curriculum_column: the column that says how hard a row is: `difficulty` (a number, higher is harder) or `stage` (a
            whole number, taken as it is).
        curriculum_stages: into how many stages of equal size the rows are cut by their difficulty.
        curriculum_epochs: passes over each stage in the order of training, a number for all or a list; `num_train_epochs`
            when None.
        curriculum_reference: `initial`, or `stage`: the policy at the end of a stage is the reference of the next one.
        curriculum_scheduler: the learning rate's schedule over all stages once (`single`), or anew in each (`restart`).
        curriculum_score: what difficulty is where the data set has none: `nll`, `reference_margin` or `mask_area`
            (`mfpo_trl.order.ranking`).
        curriculum_missing: what happens when some rows have no difficulty: `error`, or `hard`: they count as the hardest.
        curriculum_group_by_length: bring rows of similar length into one micro-batch inside of a stage.

    Raises:
        ValueError: a weight that is negative or not a number, all weights 0, an unknown choice, corruption, option or
            noise schedule.
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "corruption_kwargs", "objective_terms"]

    objective: str = field(
        default="mfpo", metadata={"help": f"Terms and weights by the name of a method: {', '.join(PRESETS)}."}
    )
    objective_terms: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Terms in place of those of the objective, e.g. `{"text": 1, "image": {"weight": 0.5, "beta": 0.2}}`.'
        },
    )
    beta: float = field(
        default=None,  # type: ignore[assignment]  # a number from `__post_init__` on
        metadata={
            "help": "Inverse temperature; that of the objective's paper when not set, 0.1 where none is public."
        },
    )
    text_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of DPO's text term; the objective's when not set."}
    )
    image_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the image term; the objective's when not set."}
    )
    anchor_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the anchored-reward term; the objective's when not set."}
    )
    anchor_margin: float = field(default=0.0, metadata={"help": "Margin (eta, delta) of the anchor, in reward units."})
    image_beta: float | None = field(
        default=None, metadata={"help": "Beta of every term but the text term; `beta` when not set."}
    )
    corruption: str = field(
        default=AUTO,
        metadata={
            "help": "How dispreferred images are made for rows without `rejected_images`: `auto` (the row's own recipe, else "
            "`diffusion`), `diffusion`, `crop`, `mean`, `black`, `mask`, `blur`, `inpaint`, `transplant` or `swap`, or not at all: "
            "`none`."
        },
    )
    corruption_kwargs: dict[str, Any] | str | None = field(
        default_factory=dict,
        metadata={"help": 'Options of the corruption, e.g. `{"step": 500, "schedule": "vcd_sigmoid"}`.'},
    )
    corruption_region: str = field(
        default="auto",
        metadata={
            "help": "Where images are corrupted: `auto`, `global`, `random`, `key` or `partial`.",
            "choices": REGION_CHOICES,
        },
    )
    corruption_seed: int | None = field(
        default=None, metadata={"help": "Seed of the dispreferred images; if unset, that of the row's recipe, else 0."}
    )
    image_instruction: str = field(
        default=IMAGE_INSTRUCTION,
        metadata={
            "help": "Sentence that says which of two images in one prompt is meant, with `{position}` for `first` or `second`."
        },
    )
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

    curriculum: str = field(
        default="none",
        metadata={
            "help": "Order of the rows: `none`, `staged` (easy to hard), `sorted` or `anti` (hard to easy).",
            "choices": CURRICULUM_CHOICES["curriculum"],
        },
    )
    curriculum_column: str = field(
        default="difficulty",
        metadata={
            "help": "Column that ranks the rows: `difficulty` (a number) or `stage` (a whole number, taken as it is).",
            "choices": CURRICULUM_CHOICES["curriculum_column"],
        },
    )
    curriculum_stages: int = field(default=3, metadata={"help": "Stages into which the rows are cut by difficulty."})
    curriculum_epochs: list[float] | None = field(
        default=None,
        metadata={"help": "Passes over each stage, one number or one a stage; `num_train_epochs` if unset."},
    )
    curriculum_reference: str = field(
        default="initial",
        metadata={
            "help": "The reference: the `initial` one, or the policy at the end of the `stage` before.",
            "choices": CURRICULUM_CHOICES["curriculum_reference"],
        },
    )
    curriculum_scheduler: str = field(
        default="single",
        metadata={
            "help": "Learning-rate schedule: a `single` one, or `restart` in every stage.",
            "choices": CURRICULUM_CHOICES["curriculum_scheduler"],
        },
    )
    curriculum_score: str = field(
        default="nll",
        metadata={
            "help": "Difficulty of a data set without one: `nll`, `reference_margin` or `mask_area`.",
            "choices": CURRICULUM_CHOICES["curriculum_score"],
        },
    )
    curriculum_missing: str = field(
        default="error",
        metadata={
            "help": "Rows without difficulty: an `error`, or they count as `hard`.",
            "choices": CURRICULUM_CHOICES["curriculum_missing"],
        },
    )
    curriculum_group_by_length: bool = field(
        default=False, metadata={"help": "Bring rows of similar length into one micro-batch inside of a stage."}
    )

    def __post_init__(self):
        self._check_launch()
        self._set_beta()
        super().__post_init__()
        if self.corruption_kwargs is None:
            self.corruption_kwargs = {}
        for name in WEIGHTS:
            weight = getattr(self, f"{name}_loss_weight")
            if weight is not None:
                _check(_is_number(weight) and weight >= 0, f"{name}_loss_weight", weight, "a number >= 0")
        _check(_is_number(self.anchor_margin), "anchor_margin", self.anchor_margin, "a finite number")
        self._check_objective()
        if self.image_beta is not None:
            _check(_is_number(self.image_beta) and self.image_beta > 0, "image_beta", self.image_beta, "a number > 0")
        _check(self.corruption_region in REGION_CHOICES, "corruption_region", self.corruption_region, REGION_CHOICES)
        choices = PREFIX_SHARING_CHOICES
        _check(self.prefix_sharing in choices, "prefix_sharing", self.prefix_sharing, choices)
        instruction: Any = self.image_instruction
        says = isinstance(instruction, str) and POSITION in instruction
        _check(
            says, "image_instruction", instruction, f"a sentence with {POSITION} where it says which image is meant"
        )
        self._check_curriculum()
        if "donor" in self.corruption_kwargs:
            raise ValueError("corruption_kwargs cannot name a 'donor': `swap` takes another row of the data set")
        seed = self.corruption_seed
        whole = seed is None or (isinstance(seed, int) and not isinstance(seed, bool))
        _check(whole, "corruption_seed", seed, "a whole number")
        options: Any = self.corruption_kwargs  # a text has become a mapping by now
        if self.corruption == AUTO:
            check_some_corruption(options)
        else:
            check_corruption(self.corruption, options)

    def _set_beta(self) -> None:
        if self.beta is not None:
            return
        # What is no objective is refused with the terms.
        own = PRESETS[self.objective].beta if self.objective in PRESETS else None
        self.beta = USUAL_BETA if own is None else own
        if self.beta != USUAL_BETA:
            logger.info(f"beta={self.beta:g}, that of objective={self.objective!r}; `beta` says another one.")

    def _check_objective(self) -> None:
        if not self.terms:
            weights = ", ".join(f"{name}_loss_weight" for name in WEIGHTS)
            raise ValueError(f"{weights} or other weights of terms are all 0: there is nothing to train on")
        preset = PRESETS[self.objective]
        if self.corruption == AUTO and preset.corruption is not None:
            self.corruption = preset.corruption
            given: Any = self.corruption_kwargs  # a text has become a mapping by now
            self.corruption_kwargs = {**preset.corruption_kwargs, **(given or {})}

    def _check_launch(self) -> None:
        """Refuse what would end in DeepSpeed's assertion on batch sizes: on a CPU, transformers asks for no way to communicate, so that
        each process counts as the only one for it or for DeepSpeed."""
        if self.deepspeed:
            check_deepspeed()
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if self.deepspeed and started > 1 and (self.use_cpu or not torch.accelerator.is_available()):
            raise ValueError(
                f"deepspeed={self.deepspeed!r} in {started} processes needs an accelerator; on a CPU, start them with `accelerate launch "
                "--use_deepspeed --deepspeed_config_file FILE` in place of it, with ddp_backend='gloo' and without use_cpu"
            )

    def _check_curriculum(self) -> None:
        for name, choices in CURRICULUM_CHOICES.items():
            _check(getattr(self, name) in choices, name, getattr(self, name), choices)
        stages, epochs = self.curriculum_stages, self.curriculum_epochs
        whole = isinstance(stages, int) and not isinstance(stages, bool) and stages >= 1
        _check(whole, "curriculum_stages", stages, "a whole number from 1 up")
        if epochs is not None:
            self.curriculum_epochs = list(epochs) if isinstance(epochs, list | tuple) else [epochs]
            fit = self.curriculum_epochs and all(_is_number(own) and own > 0 for own in self.curriculum_epochs)
            _check(bool(fit), "curriculum_epochs", epochs, "a number above 0, or a list of them")
        if self.curriculum != "none":
            # All stages are one epoch of the trainer; a second one would begin again with the first stage.
            self.curriculum_epochs = self.curriculum_epochs or [self.num_train_epochs]
            self.num_train_epochs: float = 1

    def without_tokens(self) -> "MFPOConfig":
        """A copy without access tokens of the Hub, for whatever is written down."""
        new = copy.copy(self)
        new.hub_token = None
        # Functions of the caller's own need not be such as can be written down.
        new._own_terms = ()
        if isinstance(self.model_init_kwargs, dict):
            new.model_init_kwargs = _without_token(self.model_init_kwargs)
        return new

    def to_dict(self) -> dict[str, Any]:
        """TRL's, for logs and trackers, without tokens."""
        return super(MFPOConfig, self.without_tokens()).to_dict()

    def __str__(self) -> str:
        return super(MFPOConfig, self.without_tokens()).__str__()

    # That of a dataclass shows every field.
    __repr__ = __str__

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of every term of the objective by its name."""
        return {own.term.name: own.weight for own in self.terms}

    @property
    def terms(self) -> tuple[Weighted, ...]:
        """The terms with weight."""
        weights = {name: getattr(self, f"{name}_loss_weight") for name in WEIGHTS}
        own: Any = self.objective_terms  # a text has become a mapping by now
        found = terms_of(self.objective, own, weights, self.anchor_margin, getattr(self, "_own_terms", ()))
        return tuple(one for one in found if one.weight)

    def with_terms(self, terms: Sequence[Any]) -> "MFPOConfig":
        """The same configuration with terms of the caller's own beside its objective's.

        Raises:
            ValueError: something that is no term, or has the name of another one.
        """
        new = copy.copy(self)
        new._own_terms = tuple(terms)
        assert new.terms
        return new

    @property
    def branches(self) -> tuple[BranchName, ...]:
        """The branches that the terms with weight read."""
        return branches_read(self.terms)

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
                setattr(new, own.name, own.default if own.default_factory is MISSING else own.default_factory())
        return new


def _without_token(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `from_pretrained`, and those of adapters inside of them, without the access token."""
    return {
        key: _without_token(own) if isinstance(own, dict) else own for key, own in options.items() if key != "token"
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(holds: bool, name: str, value: Any, expected: Any) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; expected {expected if isinstance(expected, str) else list(expected)}")
