"""Every refusal that a training can meet, each with a command line that meets it.

`test_refusals.py` runs each line of `REFUSALS` through `mfpo check` and `mfpo train`, which must refuse in the same words, and reads
the sources: every `raise` there is in `REFUSALS`, or in `LATER` with the reason why no command line shows it before training.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tiny
from datasets import Dataset, DatasetDict

ROWS = 6
BASE = (
    "--use_cpu --bf16 false --report_to none --max_steps 1 --per_device_train_batch_size 1 --save_strategy no "
    "--gradient_checkpointing false --disable_tqdm true"
)


@dataclass(frozen=True)
class Refusal:
    """One refusal, and how it is met.

    Args:
        words: of its message as they stand in the source, with `{}` for what is filled in; enough to tell it from others.
        fields: of the command line, beside `BASE`; `{folder}` is where models and data are, `{out}` the output folder.
        data: a key of `DATA`.
        at: the function that raises it, `module.Class.function`, where other ones say the same `words`.
        recipe: the text of a recipe.
        model: the name of a model in the folder.
        found: what `mfpo check` says of it instead, where it counts what training stops at.
        prepare: what is done first, with the command line and the output folder.
    """

    words: str
    fields: str = ""
    data: str = "good"
    at: str = ""
    recipe: str = ""
    model: str = "model"
    found: str = ""
    prepare: Callable[[list[str], Path], None] | None = None


# Data


def table(rows: list[dict]) -> Dataset:
    return Dataset.from_list(rows)


def good(**first) -> Dataset:
    """Good rows; `first` is what the first one holds instead."""
    made = tiny.rows(ROWS, key_regions=tiny.boxes)
    return table([made[0] | first, *made[1:]])


def every(**columns) -> Dataset:
    """Good rows, and in every one these columns."""
    return table([row | columns for row in tiny.rows(ROWS)])


def column(name: str, *values) -> Dataset:
    return table([row | {name: value} for row, value in zip(tiny.rows(len(values)), values, strict=True)])


def texts(**first) -> Dataset:
    """Plain texts without images."""
    rows = [{"prompt": f"question {n}?", "chosen": " yes", "rejected": " no"} for n in range(ROWS)]
    return table([rows[0] | first, *rows[1:]])


def box(*numbers: float) -> Dataset:
    return every(key_regions=[list(numbers)])


def rle(counts, size=(32, 40)) -> Dataset:
    return table(
        [
            row | {"images": [tiny.picture(0)], "key_regions": [{"size": list(size), "counts": counts}]}
            for row in tiny.rows(2)
        ]
    )


def of_one_picture() -> Dataset:
    return table([row | {"images": [tiny.picture(0)]} for row in tiny.rows(ROWS)])


def mask_files(path: Path) -> Dataset:
    """Key regions that are files: no picture."""
    path.write_text("no picture")
    return every(key_regions=[{"path": str(path)}])


def with_evaluation(**first) -> DatasetDict:
    return DatasetDict(train=good(), test=good(**first))


def say(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


HUMAN = {"from": "human", "value": "<image> what?"}
RATED = {"response": "yes", "annotations": {"Helpfulness": {"Rating": "5"}}}
ANSWERS = {"chosen": " yes", "rejected": " no"}
SAID = {name: [{"role": "assistant", "content": text}] for name, text in ANSWERS.items()}

DATA: dict[str, Callable[[Path], Dataset | DatasetDict]] = {
    "good": lambda _: good(),
    "texts": lambda _: texts(),
    "picture": lambda _: good().rename_column("images", "picture"),
    "no answer column": lambda _: good().remove_columns("rejected"),
    "one image called images": lambda _: table([{**row, "images": row["images"][0]} for row in tiny.rows(ROWS)]),
    "no answer": lambda _: good(chosen=None),
    "an empty answer": lambda _: good(chosen=[]),
    "an answer of words": lambda _: column("chosen", *[["yes"]] * ROWS),
    "an empty prompt": lambda _: good(prompt=[]),
    "no prompt": lambda _: texts(chosen="yes no", rejected="yes").remove_columns("prompt"),
    "nothing shared": lambda _: table(
        [
            {
                "image": tiny.picture(0),
                "chosen": [{"role": "assistant", "content": "yes"}],
                "rejected": [{"role": "assistant", "content": "no"}],
            }
        ]
        * ROWS
    ),
    "a literal placeholder": lambda _: good(prompt=say("what is in <image>?")),
    "two columns of images": lambda _: every(image=tiny.picture(0)),
    "images that are a number": lambda _: every(images=5),
    "an image that is none": lambda _: every(images=[b"no image"]),
    "an empty image": lambda _: every(images=[b""]),
    "an image of the web": lambda _: every(images=["https://example.com/a.png"]),
    "numbers for images": lambda _: every(images=[5]),
    "more rejected images": lambda _: every(rejected_images=[tiny.picture(0), tiny.picture(1)]),
    "a message without a role": lambda _: every(prompt=[{"content": "what?"}]),
    "a message of a number": lambda _: every(prompt=[{"role": "user", "content": 5}]),
    "a beginning of a number": lambda _: every(answer_prefix=3),
    "a beginning of texts": lambda _: table([row | {"answer_prefix": "yes."} for row in texts()]),
    "a beginning of two messages": lambda _: every(
        answer_prefix="yes.", chosen=[{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    ),
    "two images and a counterpart": lambda _: every(
        images=[tiny.picture(0), tiny.picture(1)],
        rejected_images=[tiny.picture(2), tiny.picture(3)],
        rejected_image_chosen=[{"role": "assistant", "content": "a tree"}],
    ),
    "two placeholders": lambda _: table(
        [{"image": tiny.picture(0), "prompt": "<image> <image> what?", "chosen": " yes", "rejected": " no"}] * ROWS
    ),
    "the same row": lambda _: table(tiny.rows(1) * ROWS),
    "a row of LLaMA-Factory that is none": lambda _: table(
        [{"conversations": [HUMAN], "chosen": HUMAN, "rejected": HUMAN, "image": tiny.picture(0)}] * ROWS
    ),
    "ratings that are equal": lambda _: table([{"prompt": "what?", "completions": [RATED, RATED]}] * ROWS),
    "some places for images": lambda _: table(
        [{"image": tiny.picture(0), "prompt": prompt, **ANSWERS} for prompt in ("<image> what?", "what?")] * ROWS
    ),
    "a column of paths": lambda folder: (
        tiny.picture(0).save(folder / "a.png") or table([{"prompt": "what?", **ANSWERS, "picture": "a.png"}] * ROWS)
    ),
    "images alone": lambda _: table([{"image": tiny.picture(0)}] * ROWS),
    "paths that lead nowhere": lambda _: table([{"image": "no.png", "prompt": say("what?"), **SAID}] * ROWS),
    "one picture": lambda _: of_one_picture(),
    "some without regions": lambda _: good(key_regions=[]),
    "one picture with regions": lambda _: table(
        [{**row, "images": [tiny.picture(0)], "key_regions": tiny.boxes(0)} for row in tiny.rows(ROWS)]
    ),
    "regions that cover everything": lambda _: every(key_regions=[[0, 0, 99, 99]]),
    "a recipe of nothing": lambda _: every(corruption='{"corruption": "none"}'),
    "a recipe that needs regions": lambda _: every(corruption='{"corruption": "black", "region": "key"}'),
    "a recipe of words": lambda _: every(corruption="blur it"),
    "a recipe without a name": lambda _: every(corruption='{"corruption": 5}'),
    "a recipe with a list": lambda _: every(corruption='{"corruption": "blur", "kwargs": [1]}'),
    "a recipe for elsewhere": lambda _: every(corruption='{"corruption": "blur", "region": "elsewhere"}'),
    "a recipe of half a seed": lambda _: every(corruption='{"corruption": "blur", "seed": 0.5}'),
    "a recipe of something else": lambda _: every(corruption='{"colour": "red"}'),
    "regions of text": lambda _: every(key_regions="the dog"),
    "regions of one for two images": lambda _: every(
        images=[tiny.picture(0), tiny.picture(1)], key_regions=[[2, 2, 9, 9]], prompt=say("compare")
    ),
    "three regions for one image": lambda _: every(key_regions=[[[2, 2, 9, 9]], [[2, 2, 9, 9]], [[2, 2, 9, 9]]]),
    "a region of nothing": lambda _: every(key_regions=[{"phrase": "dog"}]),
    "a box of three": lambda _: box(1, 2, 3),
    "a box that is infinite": lambda _: box(1, 2, 3, float("inf")),
    "an empty box": lambda _: box(9, 9, 2, 2),
    "a box in fractions": lambda _: box(0.1, 0.1, 0.5, 0.5),
    "a box outside": lambda _: box(100, 100, 120, 120),
    "runs that are too short": lambda _: rle([5]),
    "runs that break off": lambda _: rle("`"),
    "a mask of another size": lambda _: rle([4], (2, 2)),
    "a mask of nothing": lambda _: rle([32 * 40]),
    "a mask that is no picture": lambda folder: mask_files(folder / "mask.png"),
    "a mask of another size in a picture": lambda folder: (
        tiny.picture(0, 9, 9).save(folder / "small.png") or every(key_regions=[{"path": str(folder / "small.png")}])
    ),
    "difficult": lambda _: column("difficulty", *map(float, range(ROWS))),
    "some without difficulty": lambda _: column("difficulty", 1.0, None, 3.0, 4.0, 5.0, 6.0),
    "difficult in words": lambda _: column("difficulty", *["hard"] * ROWS),
    "stages in fractions": lambda _: column("stage", 0.5, 1.0, 1.0, 2.0, 2.0, 2.0),
    "evaluation": lambda _: with_evaluation(),
    "evaluation without an answer": lambda _: with_evaluation(chosen=[]),
}


# Refusals

STAGED = "--curriculum staged"
LORA = "--use_peft"


def a_file(argv: list[str], out: Path) -> None:
    out.write_text("not a folder")


def a_broken_line(argv: list[str], out: Path) -> None:
    out.with_suffix(".jsonl").write_text('{"prompt": "a", "chosen"')


def a_broken_checkpoint(argv: list[str], out: Path) -> None:
    (out / "checkpoint-1").mkdir(parents=True)


def a_benchmark(argv: list[str], out: Path) -> None:
    out.mkdir()
    tiny.picture(1).save(out / "1.png")
    (out / "ground_truth.json").write_text('{"1": ["dog"]}')


def trained(argv: list[str], out: Path, *fields: str) -> None:
    """A training with this command line, but for the fields."""
    from mfpo_trl import train

    place = argv.index("--resume_from_checkpoint")
    argv = [*argv[:place], *argv[place + 2 :]]
    assert train.main([*argv, "--save_strategy", "steps", "--save_steps", "1", *fields]) == 0


def another_order(argv: list[str], out: Path) -> None:
    trained(argv, out, "--seed", "7")


def a_stage_without_its_model(argv: list[str], out: Path) -> None:
    """Two steps of a stage are done when the next one's third comes, and the model of its reference is gone."""
    trained(argv, out, "--max_steps", "3")
    (out / "_checkpoint-stage-1").rename(out / "elsewhere")


def a_stage_of_another_training(argv: list[str], out: Path) -> None:
    trained(argv, out, "--max_steps", "3")
    state = out / "_checkpoint-stage-1" / "trainer_state.json"
    state.write_text(re.sub(r'"run": "\w+"', '"run": "another"', state.read_text()))


CHAIR = "--eval_benchmark chair --eval_benchmark_data {out} --eval_split_ratio 0.5 --eval_strategy epoch"

REFUSALS = [
    # The configuration
    Refusal(
        "are all 0: there is nothing to train on", "--text_loss_weight 0 --image_loss_weight 0 --anchor_loss_weight 0"
    ),
    Refusal("{} is {}; expected {}", "--image_loss_weight -1", at="config._check"),
    Refusal("objective is {}; expected {}", "--objective mfop"),
    Refusal("the weight of term {} is {}", """--objective_terms '{{"image": -1}}'"""),
    Refusal("the beta of term {} is {}", """--objective_terms '{{"image": {{"beta": 0}}}}'"""),
    Refusal("has the option {}; expected {}", """--objective_terms '{{"image": {{"wieght": 1}}}}'"""),
    Refusal(
        "; expected a finite number",
        """--objective_terms '{{"anchor": {{"margin": "high"}}}}'""",
        at="objective.chosen._weighted",
    ),
    Refusal("term {} is unknown; expected {}, or package", """--objective_terms '{{"imge": 1}}'"""),
    Refusal("term {} cannot be imported: {}", """--objective_terms '{{"nowhere.at_all:term": 1}}'"""),
    Refusal("term {} has no {}; a term has a name", """--objective_terms '{{"json:dumps": 1}}'"""),
    Refusal("has no column {}, which term {} of objective={} reads", "--objective symmpo"),
    Refusal(
        "two terms are called {}; give each a name", """--objective_terms '{{"image": 1, "own_terms:IMAGE": 1}}'"""
    ),
    Refusal("expected a function of log-ratios and beta", """--objective_terms '{{"own_terms:NO_FUNCTION": 1}}'"""),
    Refusal("branch {} is unknown; expected (image variant", """--objective_terms '{{"own_terms:ELSEWHERE": 1}}'"""),
    Refusal("branch {} is unknown; expected {}, or (image", """--objective_terms '{{"own_terms:MISSPELT": 1}}'"""),
    Refusal("has no column {}, which objective={} is for", "--objective sentinel"),
    Refusal("{} is {}; expected {}", "--image_instruction 'Look at the image.'", at="config._check"),
    Refusal("the share of the region must lie", """--corruption mask --corruption_kwargs '{{"share": 2}}'"""),
    Refusal(
        "is an empty list; expected a number, or one for each",
        """--corruption mask --corruption_kwargs '{{"share": []}}'""",
    ),
    Refusal("expected {} or {}", """--corruption inpaint --corruption_kwargs '{{"method": "patch"}}'"""),
    Refusal("the radius is a number of pixels", """--corruption inpaint --corruption_kwargs '{{"radius": 0}}'"""),
    Refusal(
        "the resolution of inpaint is a number", """--corruption inpaint --corruption_kwargs '{{"resolution": 0}}'"""
    ),
    Refusal(
        "expected 'feather' or 'poisson'", """--corruption transplant --corruption_kwargs '{{"blend": "hard"}}'"""
    ),
    Refusal(
        "the border is a share of the region's", """--corruption transplant --corruption_kwargs '{{"border": 2}}'"""
    ),
    Refusal("generate cannot be made here", "--corruption generate"),
    Refusal("corruption_kwargs cannot name a 'donor'", """--corruption swap --corruption_kwargs '{{"donor": 1}}'"""),
    Refusal("unknown noise schedule", """--corruption_kwargs '{{"schedule": "steep"}}'"""),
    Refusal("the noise step must be a whole number", """--corruption_kwargs '{{"step": 5000}}'"""),
    Refusal("the noise resolution is a number of pixels above 0", """--corruption_kwargs '{{"resolution": 0}}'"""),
    Refusal(
        "the crop's scale must be two shares", """--corruption crop --corruption_kwargs '{{"scale": [0.5, 0.1]}}'"""
    ),
    Refusal("the blur's sigma is a share", """--corruption blur --corruption_kwargs '{{"sigma": 3}}'"""),
    Refusal("corruption {} cannot use {}", """--corruption crop --corruption_kwargs '{{"scale": 5}}'"""),
    Refusal("corruption {} has no option {}", """--corruption blur --corruption_kwargs '{{"steps": 5}}'"""),
    Refusal("unknown corruption {}", "--corruption difusion"),
    Refusal("no corruption has an option", """--corruption_kwargs '{{"sharpness": 1}}'"""),
    # Fields of a recipe and of the command line
    Refusal("must hold a YAML mapping of fields", recipe="- a", at="train.fields.read_recipe"),
    Refusal("has an unknown key", recipe="image_loss_wieght: 1"),
    Refusal("; expected {}{}", recipe="beta: [0.1]", at="train.fields._value"),
    Refusal("expected a whole number or", recipe="pad_to_multiple_of: many"),
    Refusal("expected a mapping, which is a JSON object", recipe="corruption_kwargs: step"),
    Refusal("{} cannot be used: {}", recipe="accelerator_config: {splits: 1}", at="train.fields.Parser.parse"),
    Refusal("--config needs the path or the name of a recipe", "--config"),
    Refusal("--config is given twice", "--config methods/mfpo --config methods/dpo"),
    Refusal("is no file, and no recipe that `mfpo recipes` lists", "--config methods/mfop"),
    Refusal("unknown option", "--lerning_rate 1"),
    Refusal("belongs to no option", "--beta 0.1 word"),
    Refusal("; expected one of", "--curriculum stagged", at="train.fields._chosen"),
    # The model and the adapter
    Refusal("are pickles only", model="pickled"),
    Refusal("cannot be put on its model", model="misfit", at="train.parts.put_on"),
    Refusal("model_init_kwargs has use_safetensors=False", """--model_init_kwargs '{{"use_safetensors": false}}'"""),
    Refusal("and there is no such folder", "--model_name_or_path ./no/such/folder", at="train.command.check_name"),
    Refusal("freeze_vision_tower=False is of full fine-tuning", f"{LORA} --freeze_vision_tower false"),
    Refusal("quantised weights cannot be trained", "--load_in_4bit"),
    Refusal(
        "prefix_sharing='on' is not possible: {}",
        "--prefix_sharing on --neftune_noise_alpha 5",
        at="batch.choice.choose_layout",
    ),
    Refusal("prefix_sharing='on' is not possible: {}", "--prefix_sharing on", "texts", at="batch.choice.given_layout"),
    Refusal("needs a tokenizer with an end-of-sequence token", model="without_end"),
    Refusal("reads single tokens of the reference", "--objective tpo --precompute_ref_log_probs"),
    Refusal("which TRL's batches of texts do not tell", "--objective ddpo", "texts"),
    # What is not installed
    Refusal("use_liger_kernel=True needs liger-kernel", "--use_liger_kernel"),
    Refusal(
        "curriculum_scheduler='restart' needs a schedule",
        f"{STAGED} --curriculum_scheduler restart --eval_strategy epoch --lr_scheduler_type reduce_lr_on_plateau",
        "evaluation",
    ),
    # Folders, checkpoints and the Hub
    Refusal("output_dir is {}, and {} {}", prepare=a_file),
    Refusal(
        "cannot be used: {}; give a complete checkpoint",
        "--resume_from_checkpoint {out}/checkpoint-1",
        prepare=a_broken_checkpoint,
    ),
    Refusal(
        "written in another order of the rows",
        f"{STAGED} --max_steps 2 --resume_from_checkpoint true",
        "difficult",
        prepare=another_order,
    ),
    Refusal(
        "the reference of stage {} is the policy at the end of stage {}, and {} is not there",
        f"{STAGED} --curriculum_epochs 1 --curriculum_reference stage --max_steps 4 --resume_from_checkpoint {{out}}/checkpoint-3",
        "difficult",
        prepare=a_stage_without_its_model,
    ),
    Refusal(
        "the reference of stage {} is the policy at the end of stage {}, and {} is not there",
        f"{STAGED} --curriculum_epochs 1 --curriculum_reference stage --max_steps 4 --resume_from_checkpoint {{out}}/checkpoint-3",
        prepare=a_stage_without_its_model,
    ),
    Refusal(
        "{} is that of another training than {}",
        f"{STAGED} --curriculum_epochs 1 --curriculum_reference stage --max_steps 4 --resume_from_checkpoint {{out}}/checkpoint-3",
        "difficult",
        prepare=a_stage_of_another_training,
    ),
    Refusal("the Hub needs a token with write access", "--push_to_hub"),
    Refusal("pushes whole checkpoints, with the states", "--push_to_hub --hub_strategy checkpoint"),
    Refusal("pushes whole checkpoints, with the states", "--push_to_hub --hub_strategy all_checkpoints"),
    # How it is launched
    Refusal("--accelerate-config {} is not known", "--accelerate-config zero4"),
    Refusal("{} needs a value", "--accelerate-config", at="train.launch.split"),
    Refusal("the launcher starts processes on other machines itself", "--accelerate-config {folder}/pdsh.yaml"),
    Refusal("is for one process; take --accelerate-config ddp", "--accelerate-config single_gpu --num-processes 2"),
    # Which data
    Refusal("there is no folder or file {} here", "--dataset_name not-yet-built"),
    Refusal("and there is no such folder or file", "--dataset_name ./not-yet-built"),
    Refusal("expected a folder, or a file that ends in", "--dataset_name {folder}/pdsh.yaml"),
    Refusal(
        "cannot be loaded: {}; where single rows are at fault", "--dataset_name {out}.jsonl", prepare=a_broken_line
    ),
    Refusal("the data set has no split {}, only", "--dataset_train_split fit"),
    Refusal("the data set has no split {}, only", "--eval_strategy epoch"),
    Refusal("the data set has no split {}, only", "--eval_on_start"),
    Refusal("expected a share of the rows", "--eval_split_ratio 1.5 --eval_strategy epoch"),
    Refusal("holds rows out to evaluate on, and eval_strategy is 'no'", "--eval_split_ratio 0.5"),
    Refusal(
        "takes a share of rows that can be counted",
        "--eval_split_ratio 0.5 --eval_strategy epoch --dataset_streaming",
    ),
    Refusal(
        "holds rows out to evaluate on, and dataset_test_split names others",
        "--eval_split_ratio 0.5 --eval_strategy epoch --dataset_test_split test",
        "evaluation",
    ),
    Refusal(
        "rows have the same prompt and images, so that none can be held out",
        "--eval_split_ratio 0.5 --eval_strategy epoch",
        "the same row",
    ),
    # A benchmark at each evaluation
    Refusal("and eval_benchmark names none", "--eval_benchmark_data x"),
    Refusal("needs eval_benchmark_data, the folder", "--eval_benchmark chair"),
    Refusal("eval_benchmark_rows is {}", "--eval_benchmark chair --eval_benchmark_data x --eval_benchmark_rows 0"),
    Refusal(
        "is asked at each evaluation, and eval_strategy is 'no'", "--eval_benchmark chair --eval_benchmark_data x"
    ),
    Refusal(
        "has no such figure, only",
        f"{CHAIR} --metric_for_best_model eval_chair_S",
        prepare=a_benchmark,
    ),
    Refusal(
        "would keep the worst checkpoint",
        f"{CHAIR} --metric_for_best_model eval_chair_s --greater_is_better true",
        prepare=a_benchmark,
    ),
    # How the rows are read
    Refusal("cannot be read as {}: {}; mend it", "--source rlhf-v"),
    Refusal("cannot be read as {}: {}; mend it", data="a row of LLaMA-Factory that is none"),
    Refusal("holds two answers of which one is better", data="ratings that are equal"),
    Refusal("has no place for its image, and that of row {} has one", data="some places for images"),
    Refusal("row {}, field {}: {}", data="paths that lead nowhere", at="train.paths.whole"),
    Refusal("holds images, and no image is read", data="picture"),
    Refusal("holds images, and no image is read", "--dataset_streaming", "picture"),
    # The order of the rows
    Refusal(
        "needs a map-style data set without a transform, whose rows can be ranked", f"{STAGED} --dataset_streaming"
    ),
    Refusal("decides itself which row comes in which step", f"{STAGED} --train_sampling_strategy sequential"),
    Refusal("decides itself which row comes in which step", f"{STAGED} --ignore_data_skip"),
    Refusal("decides itself which row comes in which step", f"{STAGED} --auto_find_batch_size"),
    Refusal("decides itself which row comes in which step", "--curriculum sorted --group_by_prompt"),
    Refusal("decides itself which row comes in which step", "--curriculum sorted --curriculum_group_by_length"),
    Refusal(
        "decides itself which row comes in which step", f"{STAGED} --group_by_prompt --curriculum_group_by_length"
    ),
    Refusal(
        "restore_callback_states_from_checkpoint=True makes callbacks anew",
        f"{STAGED} --restore_callback_states_from_checkpoint",
    ),
    Refusal("rows have no finite {}", STAGED, "some without difficulty"),
    Refusal("holds something that is no number", STAGED, "difficult in words"),
    Refusal(
        "holds fractions; a stage is a whole number", f"{STAGED} --curriculum_column stage", "stages in fractions"
    ),
    Refusal("column {}; curriculum_column='difficulty' ranks", f"{STAGED} --curriculum_column stage"),
    Refusal("is computed for data with images only", STAGED, "texts"),
    Refusal("is computed for data with images only", f"{STAGED} --curriculum_score reference_margin", "texts"),
    Refusal("curriculum_epochs has {} numbers and the data {} stages", f"{STAGED} --curriculum_epochs 1 2"),
    Refusal(
        "rows and a step takes {}: none is left",
        f"{STAGED} --dataloader_drop_last --per_device_train_batch_size 4 --num_train_epochs 1",
    ),
    Refusal("steps of all stages; raise curriculum_epochs", f"{STAGED} --max_steps 999"),
    Refusal("group_by_prompt=True needs a map-style data set", "--group_by_prompt --dataset_streaming"),
    Refusal("group_by_prompt=True orders rows itself", "--group_by_prompt --train_sampling_strategy group_by_length"),
    # The reference
    Refusal(
        "needs map-style data sets, whose rows can be found again", "--precompute_ref_log_probs --dataset_streaming"
    ),
    Refusal(
        "stores the log-probabilities that `ld_alpha` has weighted",
        "--precompute_ref_log_probs --ld_alpha 0.5",
        "texts",
    ),
    Refusal("sync_ref_model=True moves the reference", "--sync_ref_model --precompute_ref_log_probs"),
    Refusal("both change the reference; choose one", f"{STAGED} --curriculum_reference stage --sync_ref_model"),
    Refusal(
        "lowers the learning rate where {} gets worse",
        f"{STAGED} --curriculum_reference stage --eval_strategy steps --eval_steps 1 --lr_scheduler_type reduce_lr_on_plateau",
        "evaluation",
    ),
    Refusal(
        "is measured against, so that checkpoints",
        f"{STAGED} --curriculum_reference stage --eval_strategy steps --eval_steps 1 --save_strategy steps --save_steps 1 --load_best_model_at_end",
        "evaluation",
    ),
    Refusal(
        "cannot change the log-probabilities that TRL computes",
        f"{STAGED} --curriculum_reference stage --precompute_ref_log_probs --curriculum_score mask_area",
        "texts",
    ),
    # Rows
    Refusal("has no column {}, only {}; a preference row needs", data="no answer column"),
    Refusal("must hold a list of images; call a single image", data="one image called images"),
    Refusal("is missing; a preference row needs both", data="no answer"),
    Refusal("expected a string or a list of messages", data="an answer of words"),
    Refusal("is empty; there is no token to score", data="an empty answer"),
    Refusal("is empty; there is no token to score", "--eval_strategy epoch", "evaluation without an answer"),
    Refusal("is empty; there is nothing to answer", data="an empty prompt", at="rows.validation.checked_texts"),
    Refusal("and 'rejected' begin alike to the end of one", data="no prompt", at="rows.validation.checked_texts"),
    Refusal("shares no prompt with 'rejected'", data="nothing shared"),
    Refusal("holds a literal {} in its text", data="a literal placeholder"),
    Refusal("the row also has {}; fill one of the two", data="two columns of images"),
    Refusal("expected a list of images", data="images that are a number"),
    Refusal("image {} cannot be read", data="an image that is none"),
    Refusal("the file is empty (0 bytes)", data="an empty image"),
    Refusal("is a URL; download the images first", data="an image of the web"),
    Refusal("expected an image, its bytes or its path", data="numbers for images"),
    Refusal("image(s) for the {} of 'images'; give one for each", data="more rejected images"),
    Refusal("expected a text, the beginning that", data="a beginning of a number"),
    Refusal("which alone can go on from the begun answer", data="a beginning of two messages"),
    Refusal("TRL reads rows of texts alone", data="a beginning of texts"),
    Refusal("and of both images the first or the second", "--objective icvco", "two images and a counterpart"),
    Refusal("has a message without a 'role'", data="a message without a role"),
    Refusal("the chat template cannot write it", data="a message of a number"),
    Refusal("the processor cannot encode prompt and images", data="two placeholders"),
    Refusal(
        "max_length={} would cut the {} tokens of the prompt",
        "--max_length 9",
        found="no room for the answer, or not even for the image",
        at="batch.collator.MFPOCollator._encode_prompt",
    ),
    Refusal(
        "; raise it or set it to None",
        "--max_length 2",
        "texts",
        at="trainer.MFPOTrainer._prepare_dataset",
    ),
    Refusal(
        "only the image term has weight, but the data set has no image",
        "--text_loss_weight 0 --anchor_loss_weight 0",
        "texts",
    ),
    # Dispreferred images
    Refusal("is missing, and {}'none' makes none", "--corruption none"),
    Refusal("is missing, and {}'none' makes none", data="a recipe of nothing"),
    Refusal(
        "takes another row's image, which an IterableDataset cannot give", "--corruption swap --dataset_streaming"
    ),
    Refusal("needs something around a region; leave these rows out", "--corruption inpaint", "some without regions"),
    Refusal("the regions cover the whole image; corruption", "--corruption inpaint", "regions that cover everything"),
    Refusal("has a region of the same size class", "--corruption transplant", "one picture with regions"),
    Refusal(
        "of a row is asked for, and {} of {} has {} numbers",
        """--objective misp --corruption mask --corruption_kwargs '{{"share": [0.5, 1.0]}}'""",
    ),
    Refusal("no other image to swap in was found", "--corruption swap", "one picture"),
    Refusal("is empty; corruption_region='key' needs a region", "--corruption_region key", "some without regions"),
    Refusal("is empty, and the row's recipe asks for region 'key'", data="a recipe that needs regions"),
    Refusal("is not JSON: {}; {}", data="a recipe of words"),
    Refusal("corruption is {}; expected a name", data="a recipe without a name"),
    Refusal("expected options of the corruption by their names", data="a recipe with a list"),
    Refusal("region is {}; expected", data="a recipe for elsewhere"),
    Refusal("seed is {}; expected a whole number", data="a recipe of half a seed"),
    Refusal("expected 'corruption' and any of", data="a recipe of something else", at="images.recipe.row_recipe"),
    Refusal("found the text {}", data="regions of text"),
    Refusal("found one list of regions for {} images", data="regions of one for two images"),
    Refusal("lists of regions for {} image(s)", data="three regions for one image"),
    Refusal("a region that fills none of its keys", data="a region of nothing"),
    Refusal("found {}; expected {}", data="a box of three", at="images.regions._box_mask"),
    Refusal("holds a number that is not finite", data="a box that is infinite"),
    Refusal("is empty; expected [x0, y0, x1, y1]", data="an empty box"),
    Refusal("coordinates are pixels, not fractions", data="a box in fractions"),
    Refusal("lies outside the image of", data="a box outside"),
    Refusal("the runs of the RLE cover", data="runs that are too short"),
    Refusal("the RLE string ends in the middle of a run", data="runs that break off"),
    Refusal("a mask of {}x{} pixels for an image of", data="a mask of another size"),
    Refusal("a mask of {}x{} pixels for an image of", "--image_root {folder}", "a mask of another size in a picture"),
    Refusal("an empty mask: it covers no pixel", data="a mask of nothing"),
    Refusal("the mask image cannot be read", "--image_root {folder}", "a mask that is no picture"),
]

THEIRS = [
    # The building of data
    Refusal("must be a folder, and is {}", "--image_root {folder}/nowhere"),
    Refusal("the data set holds images alone", data="images alone"),
    Refusal("and no image is read: rename it to", "--image_root {folder}", "a column of paths"),
    # DPOTrainer and DPOConfig
    Refusal("Can't load image processor for", model="without_processor"),
    Refusal("truncation_mode='keep_end' is not supported for vision-language models", "--truncation_mode keep_end"),
    Refusal("The specified `pad_token` ('{}') is not found", "--pad_token [none]"),
    Refusal(
        "is only supported for the following loss types", "--f_divergence_type js_divergence --loss_type nca_pair"
    ),
    Refusal("WPO-style weighting is not implemented", "--use_weighting --loss_type aot"),
    Refusal("Label smoothing must be greater than 0.0", "--loss_type exo_pair"),
    Refusal("Applying a PEFT adapter to `lm_head` is not supported", f"{LORA} --lora_target_modules q_proj lm_head"),
    Refusal("is not a Mixture-of-Experts model", "--router_aux_loss_coef 0.1"),
    Refusal("You passed `sync_ref_model=True` while using a PEFT model", f"{LORA} --sync_ref_model"),
    Refusal(
        "`precompute_ref_log_probs=True` is not supported with IterableDataset",
        "--precompute_ref_log_probs --dataset_streaming",
        "texts",
    ),
    Refusal("`loss_weights` must have the same length as `loss_type`", "--loss_weights 1 2"),
    Refusal("Unknown loss type: {}", "--loss_type sigmod"),
    Refusal("Unknown f_divergence_type: {}", "--f_divergence_type kl"),
    Refusal("You can't use 8 bit and 4 bit precision", "--load_in_8bit --load_in_4bit"),
    Refusal("Invalid `dtype` passed to the config", """--model_init_kwargs '{{"dtype": "float8"}}'"""),
    # Trainer and TrainingArguments
    Refusal("The train_dataset does not implement __len__", "--dataset_streaming --max_steps -1"),
    Refusal("Can only automatically infer lengths", "--train_sampling_strategy group_by_length"),
    Refusal("Can only automatically infer lengths", "--train_sampling_strategy batch_rebalance"),
    Refusal("Using fsdp only works in distributed training", "--fsdp full_shard"),
    Refusal("requires non-zero --logging_steps", "--logging_steps 0"),
    Refusal("--logging_steps must be an integer if bigger than 1", "--logging_steps 1.5"),
    Refusal("--eval_steps must be an integer if bigger than 1", "--eval_strategy steps --eval_steps 1.5"),
    Refusal("--save_steps must be an integer if bigger than 1", "--save_strategy steps --save_steps 1.5"),
    Refusal("requires the save and eval strategy to match", "--load_best_model_at_end --save_strategy steps"),
    Refusal(
        "which cannot get guaranteed when mixing ratio and absolute steps",
        "--load_best_model_at_end --save_strategy steps --eval_strategy steps --eval_steps 0.1 --save_steps 2",
    ),
    Refusal(
        "steps, but found {}, which is not a multiple of",
        "--load_best_model_at_end --save_strategy steps --eval_strategy steps --eval_steps 0.2 --save_steps 0.5",
    ),
    Refusal(
        "which is not a round multiple of",
        "--load_best_model_at_end --save_strategy steps --eval_strategy steps --eval_steps 2 --save_steps 3",
    ),
    Refusal("At most one of fp16 and bf16 can be True, but not both", "--fp16 --bf16 true"),
    Refusal("At most one of fp16 and bf16 can be True for full eval", "--fp16_full_eval --bf16_full_eval"),
    Refusal(
        "lr_scheduler_type reduce_lr_on_plateau requires an eval strategy", "--lr_scheduler_type reduce_lr_on_plateau"
    ),
    Refusal("lr_scheduler_type greedy requires an eval strategy", "--lr_scheduler_type greedy"),
    Refusal("Expected value warmup_steps >= 0", "--warmup_steps -1"),
    Refusal("--dataloader_prefetch_factor can only be set when", "--dataloader_prefetch_factor 2"),
    Refusal("`torch_empty_cache_steps` must be an integer bigger than 0", "--torch_empty_cache_steps 0"),
    Refusal("One of min_lr or min_lr_rate should be set", "--lr_scheduler_type cosine_with_min_lr"),
    Refusal(
        "unexpected keyword argument 'cycles'",
        """--lr_scheduler_type cosine --lr_scheduler_kwargs '{{"cycles": 2}}'""",
    ),
    Refusal("is not supported, only azure_ml", "--report_to paper"),
    Refusal("--tf32 requires Ampere", "--tf32 true"),
    Refusal(
        "evaluation strategy {} requires either non-zero",
        "--eval_strategy steps --logging_strategy no --logging_steps 0",
    ),
    Refusal(
        "`args.metric_for_best_model` must be provided", "--eval_strategy steps --save_strategy best", "evaluation"
    ),
    Refusal(
        "You set `quantization_config` both as",
        f"""{LORA} --load_in_4bit --model_init_kwargs '{{{{"quantization_config": {{{{"load_in_4bit": true}}}}}}}}'""",
    ),
    Refusal(
        "The `AcceleratorConfig`'s `num_steps` is set",
        "--gradient_accumulation_steps 2 "
        """--accelerator_config '{{"gradient_accumulation_kwargs": {{"num_steps": 2}}}}'""",
    ),
]
"""Refusals of TRL and transformers that a flag meets."""


# What no command line shows before training

API = "an argument of MFPOTrainer or of a function, which mfpo train does not give"
RUNNING = "known only while it trains or evaluates"
OWN = "an option of mfpo check itself, or a file that only it reads"

LATER = {
    "_trl.contract.check_contract": "another version of TRL, which the installation excludes",
    "_trl.following.policy_to_reference": RUNNING,
    "_trl.contract.check_attributes": "another version of TRL, which the installation excludes",
    "_trl.data.NumberedRows.__getitems__: cannot be read": "the rows that are not looked at before",
    "_trl.data.NumberedRows.__getitems__: transform failed": API,
    "arguments.as_mfpo_config": API,
    "batch.begun.begun_tokens: otherwise than it stands": "a chat template that rewrites answers; `mfpo check` encodes rows with the same collator",
    "arguments.check_weights: `ref_model` must be a model": API,
    "arguments.check_weights: `ref_model` has an adapter": API,
    "arguments.check_arguments: context and sequence parallelism": API,
    "arguments.check_arguments: compute_metrics reads the logits": API,
    "arguments.check_arguments: include_for_metrics='inputs' would hand": API,
    "objective.terms.table.checked_losses": f"{RUNNING}: shown in test_what_a_term_returns",
    "rows.schema.check_answers: the objective reads this answer": "a column that is there and empty in a row that is not looked at",
    "batch.collator.MFPOCollator._of_both: has no message of the user": "a conversation that an assistant alone has begun",
    "batch.collator._number": "a column that is there, and not filled in a row that is not looked at",
    "check.benchmarks.of_folder": OWN,
    "objective.branches.check_scored": API,
    "objective.branches.check_batch": API,
    "card.scores._checked": "files of scores, which are read when the card is written",
    "card.scores._check_number": "files of scores, which are read when the card is written",
    "card.scores.update_card": "of mfpo score, which trains nothing",
    "check.command.parse_options": OWN,
    "check.command._zero": OWN,
    "check.command._mapping": OWN,
    "check.preflight.check_devices": "how mfpo train is started, which TRL and accelerate refuse in words of their own",
    "check.model.processor_of": "mfpo train says it in the words of transformers, which are among THEIRS",
    "batch.collator.MFPOCollator.__post_init__": API,
    "batch.collator.MFPOCollator._encode_prompt: is empty; there is nothing to answer": "a template that writes nothing at all",
    "batch.collator._with_remote_files.fetched": "an archive on the web that cannot be read",
    "order.curriculum.stages": API,
    "images.regions._unwrap: the bytes of a mask are of type": "parquet has no such column, and a text of JSON lines is a path's place",
    "images.donors._drawn: needs stored rows with images to take another": "images to evaluate on, and none to train on",
    "images.corruptions.filled.opencv": "needs an installation without OpenCV: shown in test_without_opencv_the_install_line_is_named",
    "images.corruptions.filled.inpaint: the region covers the whole image": API,
    "images.corruptions.filled.inpaint: the region leaves nothing of the image": "thin strips of a large image: shown in test_negatives",
    "images.corruptions.others.transplant: the region covers the whole image": API,
    "images.corruptions.others._poisson": "a region of few pixels: shown in test_negatives",
    "recipes.shipped.any_file": "of `mfpo recipes`",
    "hub.upload.check_login": "needs a Hub to answer: shown in test_the_hub_is_asked_what_a_token_may_do",
    "hub.upload.open_repository": "needs a Hub to answer: shown in test_the_hub_is_asked_what_a_token_may_do",
    "hub.upload.push": RUNNING,
    "hub.files.check_folder": RUNNING,
    "hub.files._check_shards": RUNNING,
    "hub.files.refuse_tokens": RUNNING,
    "hub.upload._upload": RUNNING,
    "train.launch.command": "mfpo check takes --num-processes alone, for a training that torchrun starts",
    "batch.choice.given_layout": API,
    "batch.choice.proven": "the first forward pass compares",
    "order.ranking._reference_values: needs MFPOCollator": API,
    "reference.references.check_cacheable: has a transform": API,
    "reference.references.check_cacheable: needs the collator of MFPOTrainer": API,
    "reference.references.References._cached": RUNNING,
    "requirements.check_quantised: needs bitsandbytes": "shown without bitsandbytes in test_without_a_package",
    "config.check_deepspeed": "shown without deepspeed in test_without_a_package",
    "train.command.check_output: nothing can be written to": "shown in test_a_full_disk_is_found_before_the_weights_are",
    "order.refusals.check_curriculum: was set after the configuration was made": API,
    "order.refusals.check_stage_arguments: keeps a frozen copy of the adapter": API,
    "order.refusals.check_stage_reference: trained outside of it; freeze them": API,
    "order.refusals.check_stage_reference: copies the policy's weights": "needs an engine: shown in test_the_engines_refusal",
    "order.refusals.check_stage_reference: makes a copy of the adapter": API,
    "order.refusals.check_stage_reference: makes the adapter the reference; leave ref_model out": API,
    "order.refusals.check_stage_reference: needs a ref_model of the policy's own": API,
    "config.MFPOConfig._check_launch": "needs processes that torchrun has started; in test_engines",
    "order.staged.Curriculum.on_train_begin": API,
    "train.parts.freeze": "models without one of the parts, of which there is no tiny one; check.model.adapted asks the same function",
    "train.command.parse": "the fields that BASE gives; in test_cli and test_check",
    "trainer.MFPOTrainer._compute_loss": API,
    "trainer.MFPOTrainer._live_reference": API,
    "trainer.MFPOTrainer._prove_layout": API,
    "rows.validation.check_dataset: has no rows": "the datasets library cannot load a file or folder without rows",
    "trainer.MFPOTrainer.prediction_step": API,
}
"""`module.function`, or `module.function: words`, of the raises that are not in `REFUSALS`, and why."""

ENGINE = "needs an engine that runs; mfpo check reckons with it in one process"
ELSEWHERE = "of hardware or versions that are not those of this package"

THEIRS_LATER = {
    "`train_dataset` is required": API,
    "`train_dataset` must be a `Dataset`": API,
    "You cannot use `sync_ref_model=True` together with": "arguments.check_arguments refuses before",
    "You passed `quantization_config` to the trainer, but your model is already": API,
    "`model` and `ref_model` cannot be the same object": API,
    "The `processing_class` must be either": API,
    "You passed `peft_config` but the `peft` library is not": "peft is installed with this package",
    "`peft_config` must be a `peft.PeftConfig` instance": API,
    "You passed a `PeftModel` instance together": API,
    "Prefix tuning requires `peft>=0.18.0`": ELSEWHERE,
    "does not seem to be a vision-language model": "its processor is missing, and transformers says so first, which is in THEIRS",
    "`precompute_ref_log_probs=True` is not supported for vision datasets": "this package does it",
    "does not support `nn.DataParallel`": "needs several GPUs; check.preflight.check_devices finds them, as test_several_devices shows",
    "`liger_kernel_config={": "needs liger-kernel, which is asked for first",
    "lr_scheduler_type reduce_lr_on_plateau requires torch": ELSEWHERE,
    "Tried passing in a callable to `accelerator_config`": API,
    "`Trainer` requires either a `model` or `model_init`": API,
    "cannot be used as is for training: it only computes hidden states": API,
    "Using --fsdp xxx together with --deepspeed": ENGINE,
    "Resuming is not supported for models sharded at load time": ENGINE,
    "FSDPv2 requires `torch_xla`": ELSEWHERE,
    "SageMaker Model Parallelism": ELSEWHERE,
    "When using `batch_eval_metrics`": API,
    "You have set `args.eval_strategy` to": "splits.split_of refuses before",
    "Passing both `optimizers` and": API,
    "Passing a `model_init` is incompatible": API,
    "The model and the optimizer parameters are not on the same": ELSEWHERE,
    "Passing `optimizers` is not allowed": API,
    "The `data_collator` should be a simple callable": API,
    "`fsdp_config['activation_checkpointing']`": ENGINE,
    "can't be used with `save_only_model` along with": ENGINE,
    "`auto_find_batch_size` isn't supported yet with DeepSpeed": ENGINE,
    "save_only_model option is not compatible with FSDP": ENGINE,
}
"""Words of what TRL and transformers refuse, in the functions of `test_refusals.THEIR_FUNCTIONS`, and why it is not in `THEIRS`."""
