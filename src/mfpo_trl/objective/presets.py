"""Objectives of the literature: tables of terms and weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """An objective by its name.

    Args:
        weights: of its terms, by their names.
        paper: where it comes from; `papers.PAPERS` has its title and authors by the number on arXiv.
        needs: of the rows, in words; beside a prompt, an image and two answers.
        corruption: with what dispreferred images are made unless the configuration says; None: the package's default.
        corruption_kwargs: its options.
        formula: of the whole loss, for people: `l(z) = -log sigma(beta z)`, `e(z) = exp(beta z)`, `r_w` and `r_l` the log-ratios of the
            chosen and the rejected answer, `r_y` that of the answer that is true of the dispreferred image and `r_w2` that of
            `chosen_2`; `r'` under the dispreferred image, `r'2`, `r'3`, … under further ones, `r0` without an image; `rb` and `rb'` under both
            images, asked about the row's and about the other; `d(z, t)` what `z` learns of `t` where that is surer and right.
        beta, learning_rate, epochs: of the paper or its released code; None where none is public.
        settings: where those three were read, and what they are of.
        published: figures of its paper in words, with what they are of; empty where none were read.
        cost: operations of a step over those of `dpo`, counted by `benchmarks/step_cost.py --methods` on packed rows of LLaVA-1.5-7B's
            geometry, with a cached reference where it can have one; None where it was not counted.
        released: `objective_terms` of the released code, where it differs from the paper and terms can say it.
        says: what else there is to know.
        columns: of the rows, beside those that its terms read.
    """

    weights: Mapping[str, float]
    paper: str
    needs: str = ""
    corruption: str | None = None
    corruption_kwargs: Mapping[str, Any] = field(default_factory=dict)
    formula: str = ""
    beta: float | None = None
    learning_rate: float | None = None
    epochs: float | None = None
    settings: str = ""
    published: str = ""
    cost: float | None = None
    released: Mapping[str, float] = field(default_factory=dict)
    says: str = ""
    columns: tuple[str, ...] = ()


TRUE_OF_BOTH = "a dispreferred image (`rejected_images`) and the answer that is true of it (`rejected_image_chosen`)"
OBJECT_HALBENCH = "Object HalBench, LLaVA-1.5-7B: CHAIRs {} %, CHAIRi {} % (MFPO, main table)"

PRESETS = {
    "dpo": Preset(
        {"text": 1.0},
        "arXiv 2305.18290",
        formula="l(r_w - r_l)",
        cost=1.0,
        beta=0.1,
        settings="beta is the paper's; learning rate and epochs are of language models there",
        published=OBJECT_HALBENCH.format("49.0", "13.0"),
    ),
    "mdpo": Preset(
        {"text": 1.0, "image": 1.0, "anchor": 1.0},
        "arXiv 2406.11839",
        corruption="crop",
        formula="l(r_w - r_l) + l(r_w - r'_w) + l(r_w)",
        cost=1.9,
        beta=0.1,
        learning_rate=1e-5,
        epochs=3,
        settings="paper, LoRA on Bunny-3B",
        published=OBJECT_HALBENCH.format("35.7", "9.8"),
        says="policy and reference see the same crop; in the released code each draws its own",
    ),
    "mfpo": Preset(
        {"text": 1.0, "image": 1.0, "anchor": 1.0},
        "arXiv 2410.15334",
        formula="l(r_w - r_l) + l(r_w - r'_w) + l(r_w)",
        cost=1.9,
        published=OBJECT_HALBENCH.format("13.4", "6.6"),
        says="`mfpo build` finds key regions; no code is public",
    ),
    "rdpo": Preset(
        {"text": 1.0, "image": 1.0},
        "arXiv 2502.13146",
        "a similar image (`rejected_images`)",
        corruption="none",
        formula="l(r_w - r_l) + l(r_w - r'_w)",
        cost=1.9,
        beta=0.1,
        learning_rate=1e-6,
        settings="code (train_lora_rdpo.sh), LoRA on LLaVA-1.6-7B",
        says="the released code scores, in place of the rejected answer and of the chosen one under the retrieved image, at each position "
        "the likeliest token that is not the answer's, which terms of given answers cannot say",
    ),
    "adavip": Preset(
        {"either": 1.0},
        "arXiv 2504.15619",
        formula="log(1 + e(r_l - r_w) + e(r'_w - r_w))",
        cost=1.9,
        published="Object HalBench, 7B: 93.7 % fewer answers and 96.4 % fewer mentions that hallucinate (abstract)",
        says="the paper removes key elements from the image by inpainting; bring such images as `rejected_images`, or mask `key_regions` "
        "with `corruption: mask`; no code is public",
    ),
    "povid": Preset(
        {"text": 1.0, "noisy_rejected": 1.0},
        "arXiv 2402.11411",
        formula="l(r_w - r_l) + l(r_w - r'_l)",
        cost=1.89,
        learning_rate=1e-7,
        epochs=3,
        settings="code (scripts/run_povid.sh), LoRA on LLaVA-1.5-7B in two stages",
        says="as the paper says it; the released code takes the mean of text and of a term whose rejected tokens are those that are "
        "likeliest under the noisy image, which terms of given answers cannot say",
    ),
    "mmedpo": Preset(
        {"text": 1.0, "weighted_noisy_rejected": 1.0},
        "arXiv 2412.06141",
        "a column `weight`, and `key_regions` of the lesion",
        formula="l(r_w - r_l) + weight * l(r_w - r'_l)",
        cost=1.89,
        learning_rate=1e-7,
        epochs=3,
        settings="code (scripts/train_dpo_visual-text.sh), LoRA on LLaVA-Med-1.5",
        published="factual accuracy +14.2 % on medical questions and +51.7 % on reports over the best baseline (abstract)",
        released={"weighted_noisy_rejected": 1.0},
        says="the released code has one weighted term, over rows with a noised image and rows whose `rejected_images` are their own "
        "`images`",
    ),
    "svco": Preset(
        {"attended": 1.0, "repelled": 1.0, "attended_counterpart": 1.0, "repelled_counterpart": 1.0},
        "arXiv 2502.13928",
        TRUE_OF_BOTH,
        corruption="none",
        formula="l(r_w - r0_w) + l(r0_w - r'_w) + l(r'_y - r0_y) + l(r0_y - r_y)",
        cost=2.31,
        beta=0.1,
        learning_rate=1e-6,
        epochs=1,
        settings="code (run_svco_example.sh), language part and connector of LLaVA-NeXT-Interleave-7B; each term's beta is 0.1",
        published="MMHal-Bench 2.75, 46 % hallucinated; its control, DPO on the same data: 2.45, 53 %",
        says="no text term; `rejected` is not read; each term takes its own beta in `objective_terms`",
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
        formula="l(r_w - r_l) + 0.5 * (l(r_w - r_y) + l(r'_y - r'_w)) + l(r_w) + l(r'_y) + 1e-4 * (r_w - r_y - r'_y + r'_w)^2",
        cost=2.12,
        beta=0.1,
        learning_rate=5e-6,
        epochs=10,
        settings="code (script/train/llava15_train_main.sh), all weights of LLaVA-1.5-7B, 670 steps at most; 0.5 there is the weight lambda",
        published="MMHal-Bench 2.89; on the same data mDPO 2.71, DPO 2.44",
    ),
    "vdpo": Preset(
        {"text": 1.0, "image_frozen": 1.0},
        "arXiv 2411.02712",
        corruption="diffusion",
        corruption_kwargs={"step": 999},
        formula="l(r_w - r_l) + l(r_w - stop(r'_w))",
        cost=1.9,
        beta=0.1,
        learning_rate=1e-6,
        epochs=4,
        settings="code (scripts/v1_5/vdpo.sh), all weights of LLaVA-1.5-7B",
        says="pure noise in place of the image; commits of the released code differ: one has no image term, one also prefers the noise to "
        "the rejected answer's image, with gradients through both",
    ),
    "lpoi": Preset(
        {"text": 1.0, "anchor": 1.0, "listwise": 1.0},
        "arXiv 2505.21061",
        "`key_regions`",
        corruption="mask",
        corruption_kwargs={"share": [0.25, 0.5, 0.75, 1.0]},
        formula="l(r_w - r_l) + l(r_w) + ranked(r_w, r'_w, r'2_w, r'3_w, r'4_w)",
        cost=4.61,
        beta=0.1,
        learning_rate=5e-5,
        epochs=1,
        settings="code (lpoi_llava7b.py, whose learning rate is transformers' default), LoRA on LLaVA-1.5-7B",
        says="`ranked` is Plackett-Luce's: each over all that follow, times beta",
    ),
    "misp": Preset(
        {"text": 1.0, "several_images": 1.0},
        "arXiv 2509.25717",
        formula="l(r_w - r_l) + log(1 + e(r'_w - r_w) + e(r'2_w - r_w) + e(r'3_w - r_w))",
        cost=3.71,
        says="three dispreferred images a row; the paper picks them from other rows, far from the image and from each other; no code is "
        "public, and its importance weights of the gradient are left out",
    ),
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
        formula="l(r_w - r_l) + l(r_w2 - r_l) + 0.2 * (l(r_w - r'_w) + l(r_w2 - r'_w2)) + l(r_w) + l(r_w2)",
        cost=2.12,
        beta=0.1,
        learning_rate=1e-6,
        epochs=4,
        settings="code (run/train_opa_dpo.sh), LoRA of rank 256 on LLaVA-1.5-7B that was tuned on both chosen answers before",
        released={
            "text": 1.0,
            "second_text": 1.0,
            "image": 0.2,
            "second_image": 0.2,
            "anchor": 2.0,
            "second_anchor_lowered": 2.0,
        },
        says="all anchors raise a chosen answer; the released code has each twice and lowers the second answer's, weighs tokens by the "
        "scores of their sentences, and takes the sigmoid of every position in place of the sum; it masks 30 % of the image",
    ),
    "dadpo": Preset(
        {"scaled_text": 1.0},
        "arXiv 2601.00623",
        "a column `beta_scale`",
        formula="l(beta_scale * (r_w - r_l))",
        cost=1.0,
        beta=0.1,
        learning_rate=2e-6,
        epochs=1,
        settings="code (scripts/da_dpo/7B_DADPO.sh), LoRA and connector of LLaVA-1.5-7B",
        says="the released code scales by alpha (1 + |difference of the answers' CLIP scores|)",
    ),
    "ddpo": Preset(
        {"segments": 1.0},
        "arXiv 2312.00849",
        formula="l(s_w / n_w - s_l / n_l), tokens of corrected segments count five times in s and n",
        cost=1.0,
        beta=0.5,
        settings="beta is the paper's",
        says="tokens of corrected segments count five times; means over tokens, `segment_sums` has sums",
    ),
    "unidpo": Preset(
        {"focal_text": 1.0, "gated_likelihood": 1e-3},
        "arXiv 2506.10054",
        "columns `chosen_score` and `rejected_score`",
        formula="q * (1 - sigma(beta (a_w - a_l) - 2))^3 * l(r_w / n_w - r_l / n_l) - 1e-3 * a_w where chosen_score >= 2.5 and r_w < 0; "
        "a = log pi / n, q = sigma(0.7 (chosen_score - rejected_score))",
        cost=1.0,
        beta=2.0,
        learning_rate=6e-6,
        epochs=1,
        settings="code (Multimodal/LlamaFactory/examples/uni_dpo/Qwen2_VL_2B_uni_dpo.sh), all weights of Qwen2-VL-2B",
        says="options are those of its multimodal run; `good` is on the scale of the scores",
    ),
    "chip": Preset(
        {"hierarchical": 1.0},
        "arXiv 2501.16629",
        corruption="diffusion",
        corruption_kwargs={"step": 500},
        cost=2.53,
        formula="l(2 s_w - s_l - s'_w - 0.1 (KL_l - stop(KL_w))), tokens of corrected segments count four times in s",
        beta=0.1,
        learning_rate=5e-7,
        epochs=1,
        settings="code (scripts/chip.sh), all weights of LLaVA-1.6-7B",
        published="Object HalBench, LLaVA-1.5-7B: CHAIRs 7.3 %, CHAIRi 4.3 %",
        says="as the released code has it, in one sigmoid; as a sum of losses it is `objective_terms` of `text`, `image`, `segment_sums` and "
        "`token_divergence`",
    ),
    "tpo": Preset(
        {"calibrated": 1.0},
        "arXiv 2412.14487",
        corruption="diffusion",
        cost=2.66,
        formula="l(r_w - r_l + sum log c(y_w) - sum log c(y_l)), c = sigma(z) + 1/2 on chosen, 3/2 - sigma(z) on rejected tokens; z the token's "
        "logit under m less that under m', of policy less of reference",
        learning_rate=5e-8,
        epochs=4,
        settings="code (scripts/token_tpo.sh), LLaVA-1.5-7B",
        says="as the released code has it: the logarithm of a token's weight is added to its log-probability",
    ),
    "sentinel": Preset(
        {"text": 1.0},
        "arXiv 2507.12455",
        "the clean beginning of the answer (`answer_prefix`), which both answers go on from",
        formula="l(r_w - r_l)",
        cost=1.0,
        beta=0.1,
        learning_rate=2e-6,
        epochs=1,
        settings="code (train/models/dpo_llava.sh), LoRA of LLaVA-1.5-7B and 13B, 64 pairs a step; the others with the same values in LLaMA-Factory",
        published="Object HalBench, LLaVA-1.5-7B: CHAIRs 4.3 %, CHAIRi 2.6 %",
        says="`dpo` on such rows; their answers are sentences on the way, so that no end of an answer is scored behind a beginning",
        columns=("answer_prefix",),
    ),
    "icvco": Preset(
        {
            "answers_of_image": 0.875,
            "answers_of_counterpart": 0.875,
            "anchor": 0.875,
            "counterpart_anchor": 0.875,
            "in_context_image": 0.375,
            "in_context_counterpart": 0.375,
            "in_context_anchor": 0.375,
            "in_context_counterpart_anchor": 0.375,
            "distillation": 0.4,
        },
        "arXiv 2605.31312",
        TRUE_OF_BOTH,
        corruption="none",
        formula="0.875 * (l(r_w - r_y) + l(r'_y - r'_w) + l(r_w) + l(r'_y)) + 0.375 * (l(rb_w - rb_y) + l(rb'_y - rb'_w) + l(rb_w) + l(rb'_y)) "
        "+ 0.2 * (d(r_w - r_y, rb_w - rb_y) + d(r'_y - r'_w, rb'_y - rb'_w))",
        cost=5.49,
        beta=0.1,
        learning_rate=5e-6,
        epochs=1,
        settings="code (scripts/train.sh), LoRA of LLaVA-NeXT-Interleave-Qwen-7B after SFT, 64 rows a step",
        says="the released code's loss, whose terms are means over the two images (1.75 with one image, 0.75 with both, anchors alike), "
        "without its factor 1/2 for the whole; `rejected` is not read. The code also scores, with one image, only the spans that differ, and "
        "divides the distillation by the samples that pass its gate, where here every row counts",
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
        formula="l(r_w - r_l) + l(r_w - r'_w) + l(r'_y - r'_w) + l(r'_y - r_y) + l(r_w) + l(r'_y)",
        cost=2.12,
        settings="as mfpo",
        says="ours: symmetric terms over branches that packed rows score for few operations more than mfpo's; its worth is not shown yet",
    ),
}
"""By their names, which `objective` takes; an entry that is added before a configuration is made can be asked for too."""
