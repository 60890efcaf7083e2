"""`--eval_benchmark`: at each evaluation the figures that `mfpo generate` and `mfpo score` give for the same weights."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import tiny
import torch

from mfpo_trl import MFPOTrainer
from mfpo_trl.evaluation import During, run_generate
from mfpo_trl.evaluation import main as score
from mfpo_trl.train import BenchmarkCallback
from mfpo_trl.train import command as train
from mfpo_trl.train.benchmark import set_direction

IMAGES = 7
TOKENS = 6
NAMED = ("Ġdog", "Ġcat", "Ġbirds", "Ġtree")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that names objects of COCO, rows to train on, and three benchmarks."""
    folder = tmp_path_factory.mktemp("during")
    tiny.save_pretrained(folder / "model")
    model, words = tiny.model(), tiny.tokenizer()
    with torch.no_grad():
        model.lm_head.weight[words.convert_tokens_to_ids(list(NAMED))] *= 3
    model.save_pretrained(folder / "model")
    tiny.dataset(8, tiny.BOXES, key_regions=tiny.boxes).to_parquet(folder / "rows.parquet")
    for name in ("chair", "amber", "pope"):
        (folder / name).mkdir()
        for n in range(1, 1 + IMAGES):
            tiny.picture(n, 30 + 5 * n, 32).save(folder / name / f"{n}.png")
    truth = {str(n): ["dog"] if n % 2 else ["bird", "cat"] for n in range(1, 1 + IMAGES)}
    (folder / "chair" / "ground_truth.json").write_text(json.dumps(truth))
    rows = [
        {"question_id": n, "image": f"{n}.png", "text": "a dog?", "label": "yes" if n % 3 else "no"}
        for n in range(1, 5)
    ]
    for part in ("popular", "adversarial"):
        (folder / "pope" / f"coco_pope_{part}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = folder / "amber"
    (own / "query_generative.json").write_text(json.dumps([{"id": 1, "image": "1.png", "query": "Describe it."}]))
    (own / "annotations.json").write_text(
        json.dumps([{"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]}])
    )
    (own / "relation.json").write_text('{"dog": [], "cat": [], "tree": []}')
    (own / "safe_words.txt").write_text("line\n")
    return folder


def trained(folder, output, *fields, benchmark="chair", **more):
    """A training of three steps with an evaluation before the first one and behind each."""
    asked = ["--eval_benchmark", benchmark, "--eval_benchmark_data", folder / benchmark] if benchmark else []
    asked += ["--eval_benchmark_max_new_tokens", TOKENS] if benchmark else []
    common = (
        "--use_cpu --bf16 false --report_to none --max_steps 3 --per_device_train_batch_size 2 --learning_rate 1e-1"
    )
    common += " --eval_strategy steps --eval_steps 1 --eval_split_ratio 0.25 --logging_steps 1 --seed 3 --optim sgd"
    given = [
        "--model_name_or_path",
        folder / "model",
        "--dataset_name",
        folder / "rows.parquet",
        "--output_dir",
        output,
    ]
    script, training, model = train.parse(list(map(str, [*given, *common.split(), *asked, *fields])))
    trainer = train.build(script, training, model)
    trainer.train()
    return trainer


BEST = "--metric_for_best_model eval_chair_i --save_strategy steps --save_steps 1 --load_best_model_at_end --eval_on_start".split()


@pytest.fixture(scope="module")
def best(folder, tmp_path_factory):
    return trained(
        folder, tmp_path_factory.mktemp("best"), *BEST, "--eval_benchmark_rows", 5, "--per_device_eval_batch_size", 2
    )


def logged(trainer, name):
    return {line["step"]: line[name] for line in trainer.state.log_history if name in line}


def test_the_figures_are_those_of_generate_and_score(folder, best, tmp_path):
    """For the weights of every checkpoint, from the command line, without batches and adapters of a training."""
    steps = logged(best, "eval_chair_i")
    assert list(steps) == [0, 1, 2, 3] and len(set(steps.values())) > 1
    for step in steps:
        model = folder / "model" if not step else Path(best.args.output_dir, f"checkpoint-{step}")
        path, report = tmp_path / f"{step}.jsonl", tmp_path / f"{step}.json"
        asked = ["--benchmark", "chair", "--data", folder / "chair", "--rows", 5, "--max-new-tokens", TOKENS]
        assert run_generate([*map(str, ["--model", model, *asked, "--output", path, "--batch-size", 1])]) == 0
        assert path.read_text() == Path(best.args.output_dir, "eval_answers", f"chair-{step:06d}.jsonl").read_text()
        truth = ["--ground-truth", str(folder / "chair" / "ground_truth.json")]
        assert score(["chair", "--responses", str(path), *truth, "--json", str(report)]) == 0
        figures = json.loads(report.read_text())["all"]
        for name, figure in figures.items():
            own = name if name.startswith("chair_") else f"chair_{name}"
            assert logged(best, f"eval_{own}")[step] == pytest.approx(figure["value"], nan_ok=True), (step, own)


def test_the_lowest_rate_is_the_best(best):
    """And the checkpoint that has it is the one that is loaded."""
    steps = {step: value for step, value in logged(best, "eval_chair_i").items() if step}
    assert best.args.greater_is_better is False
    assert best.state.best_metric == min(steps.values()) < max(steps.values())
    assert steps[best.state.best_global_step] == min(steps.values())
    from safetensors.torch import load_file

    kept = load_file(Path(best.state.best_model_checkpoint, "model.safetensors"))
    own = {name: value for name, value in best.model.state_dict().items() if "lm_head" in name}
    assert own and all(any(torch.equal(value, other) for other in kept.values()) for value in own.values())


def test_the_training_stays_the_same(folder, best, tmp_path):
    """Its losses, its evaluation, and the settings of generation that its model is saved with."""
    fields = [own for own in BEST if own not in ("--metric_for_best_model", "eval_chair_i")]
    plain = trained(folder, tmp_path, *fields, "--per_device_eval_batch_size", 2, benchmark=None)
    for name in ("loss", "eval_loss", "eval_rewards/margins"):
        assert logged(plain, name) == logged(best, name)
    files = [Path(own, "checkpoint-3", "generation_config.json") for own in (tmp_path, best.args.output_dir)]
    assert files[0].read_text() == files[1].read_text()


@pytest.mark.parametrize("benchmark", ["amber", "pope"])
def test_other_benchmarks_and_adapters(folder, benchmark, tmp_path, capsys):
    """And the answers as a table, as TRL's trainers print completions."""
    fields = "--max_steps 1 --learning_rate 1e-3 --use_peft --gradient_checkpointing true".split()
    trainer = trained(folder, tmp_path, *fields, benchmark=benchmark)
    names = {name for line in trainer.state.log_history for name in line if name.startswith(f"eval_{benchmark}")}
    figures = {
        "amber": {"eval_amber_chair", "eval_amber_cover", "eval_amber_hal", "eval_amber_cog", "eval_amber_words"},
        "pope": {"eval_pope_f1", "eval_pope_popular_f1", "eval_pope_adversarial_accuracy", "eval_pope_yes_ratio"},
    }
    assert figures[benchmark] <= names
    assert trainer.model.is_gradient_checkpointing
    said = capsys.readouterr().out
    assert "Step 1" in said and "Completion" in said
    if benchmark == "pope":
        # Nobody is told no: right where the answer is yes, in 3 of 4 questions.
        assert logged(trainer, "eval_pope_accuracy") == {1: 0.75} and logged(trainer, "eval_pope_yes_ratio") == {
            1: 1.0
        }


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_share_the_questions(folder, processes):
    """Every one has as many, and together they answer all; with an answer that tells the prompt."""
    benchmark = During("chair", folder / "chair", rows=5, max_new_tokens=2)
    benchmark_answers = []
    model, processor = tiny.model().eval(), tiny.processor()
    for process in range(processes):
        own = benchmark.answer(model, processor, 2, process, processes)
        assert len(own) == -(-5 // processes)
        benchmark_answers += own
    alone = dict(benchmark.answer(model, processor, 5))
    assert dict(benchmark_answers) == alone and set(alone) == set(range(5))
    assert benchmark.scored(benchmark_answers).figures.keys() == benchmark.better.keys()


def test_of_several_evaluation_sets_the_first_asks(folder, tmp_path):
    """And another evaluation than the training's own asks for itself."""
    data = tiny.dataset(4, tiny.BOXES, key_regions=tiny.boxes)
    from mfpo_trl import MFPOConfig

    args = MFPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", per_device_eval_batch_size=4)
    given = {"train_dataset": data, "eval_dataset": {"a": data, "b": data}, "processing_class": tiny.processor()}
    trainer = MFPOTrainer(model=str(folder / "model"), args=args, **given)
    callback = BenchmarkCallback(During("chair", folder / "chair", rows=2, max_new_tokens=2), trainer)
    trainer.add_callback(callback)
    found = trainer.evaluate()
    assert "eval_chair_s" in found and not any("a_chair" in name or "b_chair" in name for name in found)
    assert sum("eval_chair_s" in line for line in trainer.state.log_history) == 1
    assert "test_chair_s" in trainer.evaluate(data, metric_key_prefix="test")


# Directions

LOWER = {"chair": "chair_s chair_i", "amber": "amber_chair amber_hal amber_cog", "pope": ""}
NEITHER = {"chair": "chair_words", "amber": "amber_words", "pope": "pope_yes_ratio pope_words pope_popular_yes_ratio"}


@pytest.mark.parametrize("name", ["chair", "amber", "pope"])
def test_the_direction_is_that_of_the_figure(name, folder):
    benchmark = During(name, folder / name)
    for metric, better in benchmark.better.items():
        assert better is (
            False if metric in LOWER[name].split() else None if "words" in metric or "ratio" in metric else True
        )
        training = Namespace(metric_for_best_model=f"eval_{metric}", greater_is_better=None)
        set_direction(training, benchmark)
        assert training.greater_is_better is (better is not False)
        if better is not None:
            training.greater_is_better = not better
            with pytest.raises(ValueError, match="would keep the worst checkpoint"):
                set_direction(training, benchmark)
    assert {*LOWER[name].split(), *NEITHER[name].split()} <= set(benchmark.better)


@pytest.mark.parametrize(
    ("metric", "direction"), [("loss", False), ("eval_loss", False), ("eval_rewards/margins", True), (None, None)]
)
def test_other_metrics_keep_the_rule_of_transformers(metric, direction, folder):
    training = Namespace(metric_for_best_model=metric, greater_is_better=None)
    set_direction(training, During("chair", folder / "chair"))
    assert training.greater_is_better is direction


def test_a_figure_that_is_none(folder):
    training = Namespace(metric_for_best_model="eval_chair_S", greater_is_better=None)
    with pytest.raises(ValueError, match=r"chair has no such figure, only .*did you mean eval_chair_s\?"):
        set_direction(training, During("chair", folder / "chair"))
