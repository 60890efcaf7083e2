"""Objectives of the literature: tables of terms and weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """An objective by its name.

    Args:
        weights: of its terms, by their names.
        paper: where it comes from.
        needs: of the rows, in words; beside a prompt, an image and two answers.
        corruption: with what dispreferred images are made unless the configuration says; None: the package's default.
        corruption_kwargs: its options.
        beta: of the paper, in words where it is not public.
        says: what else there is to know.
    """

    weights: Mapping[str, float]
    paper: str
    needs: str = ""
    corruption: str | None = None
    corruption_kwargs: Mapping[str, Any] = field(default_factory=dict)
    beta: str = "not public"
    says: str = ""


TRUE_OF_BOTH = "a dispreferred image (`rejected_images`) and the answer that is true of it (`rejected_image_chosen`)"

PRESETS = {
    "dpo": Preset({"text": 1.0}, "arXiv 2305.18290", beta="0.1"),
    "mdpo": Preset({"text": 1.0, "image": 1.0, "anchor": 1.0}, "arXiv 2406.11839", corruption="crop", beta="0.1"),
    "mfpo": Preset(
        {"text": 1.0, "image": 1.0, "anchor": 1.0}, "arXiv 2410.15334", says="`mfpo build` finds key regions"
    ),
    "rdpo": Preset(
        {"text": 1.0, "image": 1.0},
        "arXiv 2502.13146",
        "a similar image (`rejected_images`)",
        corruption="none",
    ),
    "adavip": Preset({"either": 1.0}, "arXiv 2504.15619", says="the paper inpaints key elements"),
    "povid": Preset(
        {"text": 1.0, "noisy_rejected": 1.0},
        "arXiv 2402.11411",
        says="as the paper says it; the released code takes the mean of text and of a term whose rejected tokens are those that are "
        "likeliest under the noisy image",
    ),
    "mmedpo": Preset(
        {"text": 1.0, "weighted_noisy_rejected": 1.0},
        "arXiv 2412.06141",
        "a column `weight`, and `key_regions` of the lesion",
    ),
    "svco": Preset(
        {"attended": 1.0, "repelled": 1.0, "attended_counterpart": 1.0, "repelled_counterpart": 1.0},
        "arXiv 2502.13928",
        TRUE_OF_BOTH,
        corruption="none",
        says="no text term; `rejected` is not read",
    ),
    "symmpo": Preset(
        {
            "text": 1.0,
            "answers_of_image": 0.5,
            "answers_of_counterpart": 0.5,
            "anchor": 1.0,
            "counterpart_anchor": 1.0,
            "even_margins": 1e-4,
        },
        "arXiv 2506.11712",
        TRUE_OF_BOTH,
        corruption="none",
        beta="0.5",
    ),
    "vdpo": Preset(
        {"text": 1.0, "image_frozen": 1.0},
        "arXiv 2411.02712",
        corruption="diffusion",
        corruption_kwargs={"step": 999},
        says="pure noise in place of the image",
    ),
    "lpoi": Preset(
        {"text": 1.0, "anchor": 1.0, "listwise": 1.0},
        "arXiv 2505.21061",
        "`key_regions`",
        corruption="mask",
        corruption_kwargs={"share": [0.25, 0.5, 0.75, 1.0]},
    ),
    "misp": Preset({"text": 1.0, "several_images": 1.0}, "arXiv 2509.25717", says="three dispreferred images a row"),
    "opa": Preset(
        {
            "text": 1.0,
            "second_text": 1.0,
            "image": 0.2,
            "second_image": 0.2,
            "anchor": 1.0,
            "second_anchor": 1.0,
        },
        "arXiv 2501.09695",
        "a second chosen answer (`chosen_2`)",
        says="anchors with the sign of the paper; two of the released code have the rejected sign",
    ),
    "dadpo": Preset({"scaled_text": 1.0}, "arXiv 2601.00623", "a column `beta_scale`"),
    "ddpo": Preset(
        {"segments": 1.0},
        "arXiv 2312.00849",
        beta="0.5",
        says="tokens of corrected segments count five times; means over tokens, `segment_sums` has sums",
    ),
    "unidpo": Preset(
        {"focal_text": 1.0, "gated_likelihood": 1e-3},
        "arXiv 2506.10054",
        "columns `chosen_score` and `rejected_score`",
        beta="2.0",
        says="options are those of its multimodal run; `good` is on the scale of the scores",
    ),
    "chip": Preset(
        {"hierarchical": 1.0},
        "arXiv 2501.16629",
        corruption="diffusion",
        corruption_kwargs={"step": 500},
        beta="0.1",
        says="as the released code has it, in one sigmoid; as a sum of losses it is `objective_terms` of `text`, `image`, `segment_sums` and "
        "`token_divergence`",
    ),
    "tpo": Preset(
        {"calibrated": 1.0},
        "arXiv 2412.14487",
        corruption="diffusion",
        says="as the released code has it: the logarithm of a token's weight is added to its log-probability",
    ),
    "mfpo-sym": Preset(
        {
            "text": 1.0,
            "image": 1.0,
            "answers_of_counterpart": 1.0,
            "images_of_counterpart": 1.0,
            "anchor": 1.0,
            "counterpart_anchor": 1.0,
        },
        "here",
        TRUE_OF_BOTH,
        corruption="none",
        beta="as mfpo",
    ),
}
