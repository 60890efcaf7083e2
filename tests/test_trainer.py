"""The trainer on a tiny LLaVA: against DPOTrainer, against a straight-line computation, and under what users combine."""

import copy
import math
import subprocess
from pathlib import Path

import pytest
import tiny
import torch
import warm
from datasets import Dataset, DatasetDict, Image, IterableDataset, List
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import Trainer
from trl import DPOConfig, DPOTrainer

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl._trl import ATTRIBUTES, CLASS_ATTRIBUTES, check_attributes, check_contract
from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.images.dispreferred import DispreferredImages
from mfpo_trl.requirements import check_optimizer
from mfpo_trl.rows import rows_without_regions
from mfpo_trl.rows.schema import to_rgb

CPU = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-3,
    "max_steps": 5,
    "beta": 0.5,
}
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q|v)_proj", init_lora_weights=False)
PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
MOVING = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
MOVING |= {f"eval_{name}" for name in ("runtime", "samples_per_second", "steps_per_second")}


def policy(seed=0):
    """A model that differs from the reference, so that no ratio is 0."""
    model = tiny.model(seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return model


def build(cls, config, tmp_path, model=None, data=None, reference=True, **kwargs):
    options = {**CPU, **config}
    args = (MFPOConfig if cls is MFPOTrainer else DPOConfig)(output_dir=str(tmp_path), **options)
    return cls(
        model=policy() if model is None else model,
        ref_model=kwargs.pop("ref_model", None) or (tiny.model() if reference else None),
        args=args,
        train_dataset=data if data is not None else tiny.dataset(12, tiny.BOXES, key_regions=tiny.boxes),
        processing_class=kwargs.pop("processing_class", None) or tiny.processor(),
        **kwargs,
    )


def history(trainer):
    return [{k: v for k, v in line.items() if k not in MOVING} for line in trainer.state.log_history]


def assert_same_history(theirs, ours, extra=()):
    assert len(theirs) == len(ours)
    for one, other in zip(theirs, ours, strict=True):
        assert set(other) - set(one) <= set(extra), set(other) - set(one)
        for key, value in one.items():
            # Log-probabilities are sums of about -50; a reward is the difference of two of them.
            assert other[key] == pytest.approx(value, rel=1e-5, abs=2e-5), key


def assert_same_weights(first, second):
    for (name, one), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


# Against DPOTrainer

TEXT_ONLY = {"image_loss_weight": 0.0, "anchor_loss_weight": 0.0}


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": ["sigmoid"]},
        {"loss_type": ["ipo"]},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"use_weighting": True},
        {"ld_alpha": 0.3},
        {"f_divergence_type": "js_divergence"},
        {"loss_type": ["robust"], "label_smoothing": 0.1},
        {"loss_type": ["aot"], "gradient_accumulation_steps": 2},
    ],
    ids=lambda options: "-".join(f"{value}" for value in options.values()),
)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_without_image_and_anchor_it_is_dpo(tmp_path, options, lora):
    """Loss, gradient norm and every metric over five optimizer steps, and the weights after them."""
    torch.manual_seed(0)
    runs = []
    for cls, extra in ((DPOTrainer, {}), (MFPOTrainer, TEXT_ONLY)):
        peft = {"peft_config": copy.deepcopy(LORA), "reference": False} if lora else {}
        # Plain gradient steps: Adam would blow up the rounding of gradients that are 0 by construction.
        trainer = build(cls, {"optim": "sgd", "learning_rate": 1e-2, **options, **extra}, tmp_path, **peft)
        trainer.train()
        runs.append(trainer)
    assert_same_history(
        history(runs[0]), history(runs[1]), extra={"loss/text", "tokens/padding", "completions/clipped_ratio"}
    )
    assert_same_weights(runs[0].model, runs[1].model)
    first = history(runs[1])[0]
    assert first["grad_norm"] > 1e-3 and abs(first["rewards/chosen"]) > 1e-4


def test_first_gradients_equal_dpo(tmp_path):
    gradients = []
    for cls, extra in ((DPOTrainer, {}), (MFPOTrainer, TEXT_ONLY)):
        trainer = build(cls, extra, tmp_path)
        trainer.model.train()
        batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
        trainer.compute_loss(trainer.model, batch).backward()
        gradients.append(
            {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    # The bias of a key projection has no gradient but rounding: errors are measured against a thousandth of the largest.
    floor = max(gradient.norm() for gradient in gradients[0].values()) / 1000
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).norm() / expected.norm().clamp(min=floor) < 1e-5, name


# Against a straight line


def straight_line(model, reference, processor, row, images, answer):
    """`log pi_theta - log pi_ref` of one answer: one row, no padding, the whole vocabulary's logits."""
    prompt = f"USER: <image>\n{row['prompt'][0]['content']} ASSISTANT:"
    encoded = processor(images=images, text=prompt, add_special_tokens=False, return_tensors="pt")
    ids = processor.tokenizer(f" {answer} </s>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    inputs = torch.cat([encoded["input_ids"], ids], dim=1)
    sums = []
    for network in (model, reference):
        logits = network(input_ids=inputs, pixel_values=encoded["pixel_values"]).logits[0, -ids.size(1) - 1 : -1]
        sums.append(torch.log_softmax(logits.double(), dim=-1).gather(1, ids[0][:, None]).sum())
    return sums[0] - sums[1].detach()


@pytest.mark.parametrize(
    ("weights", "eta", "image_beta", "tolerance"),
    [
        ((1.0, 1.0, 1.0), 0.0, None, 1e-5),
        ((0.5, 2.0, 0.25), 0.3, 0.2, 1e-5),
        # The image term alone is the difference of two almost equal gradients, and float32 leaves the difference fewer digits.
        ((0.0, 1.0, 0.0), 0.0, 0.7, 5e-5),
    ],
)
def test_loss_and_gradients_against_a_straight_line(tmp_path, weights, eta, image_beta, tolerance):
    model, reference, processor = policy(), tiny.model(), tiny.processor()
    expected_model = copy.deepcopy(model)
    names = ("text_loss_weight", "image_loss_weight", "anchor_loss_weight")
    config = {**dict(zip(names, weights, strict=True)), "anchor_margin": eta, "image_beta": image_beta}
    trainer = build(MFPOTrainer, config, tmp_path, model=model, ref_model=copy.deepcopy(reference))
    trainer.model.train()
    rows = [trainer.train_dataset[n] for n in range(4)]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()

    beta, beta_image, total = 0.5, image_beta or 0.5, 0.0
    make = DispreferredImages(resolution=lambda height, width: 28)
    for row in rows:
        images = [to_rgb(image) for image in row["images"]]
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        r_w = straight_line(expected_model, reference, processor, row, images, chosen)
        r_l = straight_line(expected_model, reference, processor, row, images, rejected)
        r_c = straight_line(expected_model, reference, processor, row, make(row, images), chosen)
        terms = (beta * (r_w - r_l), beta_image * (r_w - r_c), beta_image * r_w - eta)
        total = total + sum(w * torch.log1p(torch.exp(-logit)) for w, logit in zip(weights, terms, strict=True)) / 4
    total.backward()

    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    pairs = zip(trainer.model.named_parameters(), expected_model.parameters(), strict=True)
    gradients = [(name, ours.grad, theirs.grad) for (name, ours), theirs in pairs if theirs.grad is not None]
    # The bias of a key projection has no gradient but rounding.
    gradients = [line for line in gradients if not line[0].endswith("k_proj.bias")]
    floor = max(theirs.norm() for _, _, theirs in gradients) / 1000
    assert len(gradients) > 30 and floor > 1e-5
    for name, ours, theirs in gradients:
        assert (ours - theirs).norm() / theirs.norm().clamp(min=floor) < tolerance, name


def test_metrics_are_what_they_say(tmp_path):
    """Recomputed from the branches' log-ratios of the first batch."""
    trainer = build(MFPOTrainer, {"image_beta": 0.2, "max_steps": 1, "learning_rate": 0.0}, tmp_path)
    rows = [trainer.train_dataset[n] for n in range(4)]
    trainer._get_train_sampler = lambda dataset=None: torch.utils.data.SequentialSampler(trainer.train_dataset)
    trainer.train()
    found = trainer.state.log_history[0]
    processor, make = trainer.processing_class, DispreferredImages(resolution=lambda height, width: 28)
    ratios = []
    with torch.no_grad():
        for row in rows:
            images = [to_rgb(image) for image in row["images"]]
            answers = (row["chosen"][0]["content"], row["rejected"][0]["content"], row["chosen"][0]["content"])
            pictures = (images, images, make(row, images))
            ratios.append(
                [
                    straight_line(trainer.model, trainer.ref_model, processor, row, picture, answer).item()
                    for answer, picture in zip(answers, pictures, strict=True)
                ]
            )
    chosen, rejected, corrupted = torch.tensor(ratios).T
    expected = {
        "loss/text": -torch.nn.functional.logsigmoid(0.5 * (chosen - rejected)).mean(),
        "loss/image": -torch.nn.functional.logsigmoid(0.2 * (chosen - corrupted)).mean(),
        "loss/anchor": -torch.nn.functional.logsigmoid(0.2 * chosen).mean(),
        "rewards/image_margins": 0.2 * (chosen - corrupted).mean(),
        "rewards/image_accuracies": (chosen > corrupted).float().mean(),
        "rewards/image_rejected": 0.2 * corrupted.mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name
    assert found["loss"] == pytest.approx(sum(found[f"loss/{name}"] for name in ("text", "image", "anchor")), rel=1e-5)
    margins = found["rewards/margins"], found["rewards/image_margins"]
    balance = min(margins) / max(margins) if min(margins) > 0 else 0.0
    assert found["rewards/modality_balance"] == pytest.approx(balance)


def test_rows_without_an_image_weigh_in_text_and_anchor_only(tmp_path):
    """Half of the rows have no image: the image term is the sum over the others divided by all rows, and one batch of four
    gives the same gradient as the same rows in two micro-batches."""
    images = {"images": lambda n: [tiny.picture(n)] if n % 2 else []}
    data = Dataset.from_list(tiny.rows(4, **images), features=tiny.dataset(1).features)
    trainer = build(MFPOTrainer, {}, tmp_path, data=data)
    trainer.model.train()
    rows = [data[n] for n in range(4)]
    whole = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    halves = [trainer.compute_loss(trainer.model, trainer.data_collator(part)) for part in (rows[:3], rows[3:])]
    assert whole.item() == pytest.approx((3 * halves[0].item() + halves[1].item()) / 4, rel=1e-5)
    trainer.log({})
    alone = trainer.compute_loss(trainer.model, trainer.data_collator(rows[:1]))
    alone.backward()
    trainer.log({})
    assert alone.isfinite() and trainer.state.log_history[-1]["loss/image"] == 0.0


# The contract with TRL


def test_contract_holds():
    check_contract()


def test_contract_notices_a_renamed_attribute(tmp_path, monkeypatch):
    """Of the class, and of a trainer that is built; every one of them."""
    trainer = build(MFPOTrainer, {}, tmp_path)
    for name in ATTRIBUTES:
        check_attributes(trainer)
        value = vars(trainer).pop(name)
        with pytest.raises(RuntimeError, match=f"does not know this version of TRL .*no attribute {name}"):
            check_attributes(trainer)
        setattr(trainer, name, value)
    for name in CLASS_ATTRIBUTES:
        for cls in DPOTrainer.__mro__:
            if name in vars(cls):
                monkeypatch.delattr(cls, name)
        with pytest.raises(RuntimeError, match=f"DPOTrainer.{name} is gone"):
            check_contract()
        monkeypatch.undo()


def test_contract_notices_a_renamed_method(monkeypatch):
    monkeypatch.delattr(DPOTrainer, "_compute_loss")
    with pytest.raises(RuntimeError, match=r"DPOTrainer._compute_loss\(\) is gone.*trl==1.16.0"):
        check_contract()
    monkeypatch.undo()
    monkeypatch.setattr(DPOTrainer, "_compute_loss", lambda self, model, batch: None)
    with pytest.raises(RuntimeError, match="has other parameters"):
        check_contract()


def test_an_older_transformers_is_known(tmp_path, monkeypatch):
    """As 5.17 to 5.19 have it: no `private` when pushing, and AdamW looks at the model's parameters."""

    def push_to_hub(self, commit_message="", blocking=True, token=None, revision=None, **kwargs): ...

    def init_hf_repo(self, token=None): ...

    def adamw(args, model):
        return torch.optim.AdamW, {"foreach": any(weight.requires_grad for weight in model.parameters())}

    monkeypatch.setattr(Trainer, "push_to_hub", push_to_hub)
    monkeypatch.setattr(Trainer, "init_hf_repo", init_hf_repo)
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(adamw))
    check_contract()
    check_optimizer(MFPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False))


def test_train_reaches_the_loss_with_one_forward_a_model(tmp_path):
    """Two steps of two micro-batches: four forwards of the policy and four of the reference, no more."""
    options = {"max_steps": 2, "gradient_accumulation_steps": 2}
    trainer = build(MFPOTrainer, options, tmp_path, data=tiny.dataset(16))
    calls = {"policy": 0, "reference": 0, "loss": 0}
    own_loss = trainer._compute_loss

    def counted(*args):
        calls["loss"] += 1
        return own_loss(*args)

    trainer._compute_loss = counted
    for name, model in (("policy", trainer.model), ("reference", trainer.ref_model)):
        model.model.register_forward_pre_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    trainer.train()
    assert calls == {"policy": 4, "reference": 4, "loss": 4}


# What users combine


def test_plain_dpo_config_means_the_defaults(tmp_path):
    args = DPOConfig(output_dir=str(tmp_path), **CPU)
    trainer = MFPOTrainer(
        model=policy(),
        ref_model=tiny.model(),
        args=args,
        train_dataset=tiny.dataset(8),
        processing_class=tiny.processor(),
    )
    trainer.train()
    assert {"loss/text", "loss/image", "loss/anchor", "rewards/image_margins"} <= set(trainer.state.log_history[0])


def test_other_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`args` must be a `MFPOConfig` or a `DPOConfig`, got `dict`"):
        MFPOTrainer(model=policy(), args={"beta": 1}, train_dataset=tiny.dataset(2), processing_class=tiny.processor())


def test_model_path_finds_everything_by_itself(tmp_path):
    path = tiny.save_pretrained(tmp_path / "tiny")
    trainer = MFPOTrainer(
        model=path, args=MFPOConfig(output_dir=str(tmp_path / "out"), **CPU), train_dataset=tiny.dataset(8)
    )
    trainer.train()
    first = trainer.state.log_history[0]
    # The reference is the policy itself at the first step: every ratio is 0 and every term log 2.
    assert first["loss"] == pytest.approx(3 * math.log(2), rel=1e-5)
    trainer.save_model()
    again = tiny.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert_same_weights(again, trainer.model)
    card = tmp_path / "out" / "README.md"
    trainer.create_model_card()
    assert "Modality-Fair" in card.read_text()


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "gradient_accumulation_steps": 2,
        },
        {"bf16": True},
        {"sync_ref_model": True, "ref_model_sync_steps": 2},
        {"corruption": "swap"},
        {"corruption": "crop", "corruption_region": "global", "corruption_kwargs": {"scale": [0.01, 0.2]}},
        {"corruption": "blur", "corruption_region": "random"},
        {"text_loss_weight": 0.0},
        {"text_loss_weight": 0.0, "anchor_loss_weight": 0.0, "eval_strategy": "steps", "eval_steps": 2},
        {"pad_to_multiple_of": 8, "max_length": 64},
        {"dataloader_num_workers": 2},
        {"remove_unused_columns": False},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items()),
)
def test_options_train(tmp_path, options):
    evaluation = {"eval_dataset": tiny.dataset(4)} if "eval_strategy" in options else {}
    trainer = build(MFPOTrainer, {**options, "max_steps": 3}, tmp_path, **evaluation)
    trainer.train()
    for line in history(trainer):
        assert all(math.isfinite(value) for value in line.values()), line


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain, saving = (
        build(MFPOTrainer, {"gradient_checkpointing": on, "max_steps": 3}, tmp_path) for on in (False, True)
    )
    plain.train(), saving.train()
    assert_same_history(history(plain), history(saving))


def test_lora_with_a_new_and_with_an_existing_adapter(tmp_path):
    """A new adapter that starts away from 0 has the base as its reference; an existing one has itself."""
    fresh = build(MFPOTrainer, {}, tmp_path, model=tiny.model(), reference=False, peft_config=copy.deepcopy(LORA))
    fresh.train()
    assert fresh.state.log_history[0]["loss"] != pytest.approx(3 * math.log(2), rel=1e-4)
    model = get_peft_model(tiny.model(), copy.deepcopy(LORA))
    existing = build(MFPOTrainer, {}, tmp_path, model=model, reference=False)
    existing.train()
    assert existing.state.log_history[0]["loss"] == pytest.approx(3 * math.log(2), rel=1e-5)
    assert existing.state.log_history[-2]["loss"] != pytest.approx(3 * math.log(2), rel=1e-4)


def test_saved_adapter_gives_the_same_logps(tmp_path):
    flat = {"prefix_sharing": "off"}  # rows that an ordinary model reads
    trainer = build(MFPOTrainer, flat, tmp_path, model=tiny.model(), reference=False, peft_config=copy.deepcopy(LORA))
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    again = PeftModel.from_pretrained(tiny.model(), tmp_path / "adapter").eval()
    batch = trainer.data_collator(tiny.rows(3))
    inputs = {key: value for key, value in batch.items() if key not in ("pairs", "branches", "labels")}
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, trainer.model(**inputs).logits, rtol=1e-5, atol=1e-5)
        with again.disable_adapter():
            assert not torch.allclose(again(**inputs).logits, trainer.model(**inputs).logits, atol=1e-3)


def test_four_bit_lora_trains_and_reloads(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    tiny.allow_four_bits()
    path = tiny.save_pretrained(tmp_path / "tiny")
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules=r".*language_model.*\.(q|v)_proj")
    trainer = MFPOTrainer(
        model=path,
        args=MFPOConfig(
            output_dir=str(tmp_path / "out"), **{**CPU, "gradient_checkpointing": True, "learning_rate": 0.02}
        ),
        train_dataset=tiny.dataset(8, tiny.BOXES, key_regions=tiny.boxes),
        quantization_config=four_bit,
        peft_config=lora,
    )
    quantised = [m for m in trainer.model.modules() if type(m).__name__ == "Linear4bit"]
    assert quantised
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(3 * math.log(2), rel=1e-4) and losses[-1] < losses[0] - 0.05
    trainer.save_model()
    base = tiny.LlavaForConditionalGeneration.from_pretrained(path, quantization_config=four_bit)
    again = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    batch = MFPOCollator(trainer.processing_class)(tiny.rows(2))
    inputs = {key: value for key, value in batch.items() if key not in ("pairs", "branches", "labels")}
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, trainer.model(**inputs).logits, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_resume_continues_as_if_never_stopped(tmp_path, lora):
    """12 rows in batches of 4: the checkpoint at step 4 lies inside of the second epoch."""
    settings = {"max_steps": 7, "save_strategy": "steps", "save_steps": 4, "seed": 7}
    runs = []
    for name, checkpoint in (("whole", None), ("again", str(tmp_path / "whole" / "checkpoint-4"))):
        peft = {"peft_config": copy.deepcopy(LORA), "reference": False, "model": tiny.model()} if lora else {}
        runs.append(build(MFPOTrainer, settings, tmp_path / name, **peft))
        runs[-1].train(resume_from_checkpoint=checkpoint)
    for line in (*runs[0].state.log_history, *runs[1].state.log_history):
        line.pop("num_tokens", None)  # TRL counts from the start of the process
    assert_same_history(history(runs[0])[4:7], history(runs[1])[4:7])
    assert_same_weights(runs[0].model, runs[1].model)
    assert runs[1].state.log_history[4]["step"] == 5
    assert "mfpo" in (tmp_path / "whole" / "README.md").read_text()


def test_best_model_is_really_loaded(tmp_path):
    """With the largest loss taken for the best the first checkpoint wins, and its weights are what is left."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    settings |= {"load_best_model_at_end": True, "greater_is_better": True}
    trainer = build(MFPOTrainer, settings, tmp_path, eval_dataset=tiny.dataset(4))
    trainer.train()
    assert "checkpoint-1" in trainer.state.best_model_checkpoint
    best = tiny.LlavaForConditionalGeneration.from_pretrained(trainer.state.best_model_checkpoint)
    assert_same_weights(best, trainer.model)


def test_evaluation_with_one_and_several_sets(tmp_path):
    sets = {"near": tiny.dataset(4), "far": tiny.dataset(6)}
    trainer = build(MFPOTrainer, {}, tmp_path, eval_dataset=sets)
    found = trainer.evaluate()
    assert all(math.isfinite(found[f"eval_{name}_loss"]) for name in sets)
    logged = set().union(*trainer.state.log_history)
    assert {"eval_loss/image", "eval_rewards/image_margins", "eval_rewards/margins", "eval_loss/text"} <= logged
    held_out = trainer.evaluate(tiny.dataset(4))
    assert held_out["eval_loss"] == pytest.approx(found["eval_near_loss"], rel=1e-5)
    assert held_out["eval_loss/image"] > 0 and "eval_rewards/modality_balance" in held_out


def test_evaluation_weighs_rows_alike(tmp_path):
    """Six rows in batches of four and two: the mean over rows, not over batches."""
    trainer = build(MFPOTrainer, {}, tmp_path)
    parts = [trainer.evaluate(tiny.dataset(6).select(range(*bounds)))["eval_loss"] for bounds in ((0, 4), (4, 6))]
    whole = trainer.evaluate(tiny.dataset(6))["eval_loss"]
    assert whole == pytest.approx((4 * parts[0] + 2 * parts[1]) / 6, rel=1e-5)


def test_rows_that_a_transform_makes(tmp_path):
    """Paths in the data set, pictures when a row is read."""

    def opened(batch):
        return {**batch, "images": [[tiny.picture(n)] for n in batch["number"]]}

    data = tiny.dataset(8).remove_columns("images").add_column("number", list(range(8))).with_transform(opened)
    trainer = build(MFPOTrainer, {"remove_unused_columns": False, "max_steps": 2}, tmp_path, data=data)
    trainer.train()
    assert "rewards/image_margins" in trainer.state.log_history[0]


def test_compute_metrics_gets_logits(tmp_path):
    seen = {}

    def metrics(prediction):
        seen["logits"], seen["labels"] = prediction.predictions.shape, prediction.label_ids.shape
        return {"own": 1.0}

    trainer = build(MFPOTrainer, {}, tmp_path, compute_metrics=metrics)
    with pytest.warns(FutureWarning, match="return_outputs"):
        assert trainer.evaluate(tiny.dataset(4))["eval_own"] == 1.0
    assert seen["logits"][:2] == seen["labels"] and seen["logits"][2] == 320


def test_iterable_data_sets(tmp_path):
    data = tiny.dataset(8, tiny.BOXES, key_regions=tiny.boxes).to_iterable_dataset()
    assert isinstance(data, IterableDataset)
    trainer = build(
        MFPOTrainer, {"max_steps": 3}, tmp_path, data=data, eval_dataset=tiny.dataset(4).to_iterable_dataset()
    )
    trainer.train()
    assert "rewards/image_margins" in trainer.state.log_history[0]
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    with pytest.raises(ValueError, match="swap.*map-style data set"):
        build(MFPOTrainer, {"max_steps": 3, "corruption": "swap"}, tmp_path, data=data)


@pytest.mark.parametrize("sharing", ["auto", "off"])
def test_a_stream_is_evaluated_like_its_rows(tmp_path, sharing):
    """Also where only the evaluation data are a stream: accelerate would cut the tensors of its batches."""
    trainer = build(MFPOTrainer, {"prefix_sharing": sharing, "max_steps": 1}, tmp_path)
    data = tiny.dataset(4)
    losses = [trainer.evaluate(own)["eval_loss"] for own in (data, data.to_iterable_dataset())]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_log_level_reaches_this_package(tmp_path):
    """As users set it, in a process without other logging."""
    script = (
        "import sys; sys.path.insert(0, 'tests'); import tiny; from test_trainer import CPU, MFPOConfig, MFPOTrainer\n"
        "for level in ('passive', 'info'):\n"
        f"    args = MFPOConfig(output_dir={str(tmp_path)!r}, log_level=level, **CPU)\n"
        "    MFPOTrainer(tiny.model(), tiny.model(), args, train_dataset=tiny.dataset(2), processing_class=tiny.processor())\n"
    )
    done = subprocess.run(
        [warm.executable(), "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("Layout: packed row (llava with sdpa attention).") == 1


def broken_data(number: int) -> Dataset:
    """Eight rows, one of which holds a file that is cut off."""
    data = tiny.dataset(8).cast_column("images", tiny.List(tiny.Image(decode=False)))
    return data.map(
        lambda row, n: {
            "images": [{"bytes": row["images"][0]["bytes"][:150], "path": None}] if n == number else row["images"]
        },
        with_indices=True,
    ).cast_column("images", tiny.List(tiny.Image()))


def test_unreadable_image_of_a_stream_is_named_by_its_prompt(tmp_path):
    trainer = build(MFPOTrainer, {"max_steps": 4}, tmp_path, data=broken_data(5).to_iterable_dataset())
    with pytest.raises(
        ValueError, match="a row .prompt 'what is in image 5.'.*'images': image 0 cannot be read: .*[Tt]runcated"
    ):
        trainer.train()


def text_data(count=8):
    return tiny.dataset(count).remove_columns("images")


def test_data_without_images_is_dpo_with_an_anchor(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        trainer = build(MFPOTrainer, {}, tmp_path, data=text_data())
    assert caplog.text.count("No image in the data set") == 1
    trainer.train()
    first = trainer.state.log_history[0]
    assert "loss/image" not in first
    assert first["loss"] == pytest.approx(first["loss/text"] + first["loss/anchor"], rel=1e-5)
    plain = build(DPOTrainer, {}, tmp_path, data=text_data())
    plain.train()
    assert plain.state.log_history[0]["loss"] == pytest.approx(first["loss/text"], rel=1e-5)


def test_an_image_column_that_is_empty_everywhere_counts_as_no_image(tmp_path, caplog):
    data = Dataset.from_list(tiny.rows(4, images=lambda n: []), features=tiny.dataset(1).features)
    with caplog.at_level("WARNING"):
        trainer = build(MFPOTrainer, {"max_steps": 1}, tmp_path, data=data)
    assert "No image in the data set" in caplog.text
    trainer.train()
    assert "loss/image" not in trainer.state.log_history[0]
    with pytest.raises(ValueError, match="only the image term has weight"):
        build(MFPOTrainer, {"text_loss_weight": 0, "anchor_loss_weight": 0}, tmp_path, data=data)


def test_text_answers_end_too(tmp_path):
    """TRL leaves the end of conversational answers to the chat template, which here writes none."""
    processor = tiny.processor(tiny.LLAVA_TEMPLATE)
    for add_eos in (True, False):
        trainer = build(MFPOTrainer, {"add_eos": add_eos}, tmp_path, data=text_data(), processing_class=processor)
        for column in ("chosen_ids", "rejected_ids"):
            assert all((ids[-1] == 2) == add_eos for ids in trainer.train_dataset[column])


def test_precomputed_reference_of_text_equals_the_live_one(tmp_path):
    live = build(MFPOTrainer, {}, tmp_path, data=text_data())
    cached = build(MFPOTrainer, {"precompute_ref_log_probs": True}, tmp_path, data=text_data())
    live.train(), cached.train()
    assert_same_history(history(live), history(cached))
    with pytest.raises(ValueError, match="ld_alpha"):
        build(MFPOTrainer, {"precompute_ref_log_probs": True, "ld_alpha": 0.5}, tmp_path, data=text_data())


@pytest.mark.parametrize(
    ("rate", "given", "said"),
    [
        (None, {"peft_config": LORA}, "learning_rate=1e-06, TRL's default for whole models, hardly moves an adapter"),
        (1e-6, {"peft_config": LORA}, "learning_rate=1e-06, TRL's default"),
        (5e-7, {"peft_config": LORA}, "learning_rate=5e-07 hardly moves an adapter"),
        (None, {"peft_config": PROMPT}, "hardly moves an adapter"),
        (None, {"model": LORA}, "hardly moves an adapter"),
        (2e-6, {"peft_config": LORA}, None),
        # A whole model, for which it is the right one, and an optimizer that has a rate of its own.
        (None, {}, None),
        (None, {"peft_config": LORA, "optimizers": True}, None),
    ],
)
@pytest.mark.parametrize("config", [DPOConfig, MFPOConfig])
def test_a_rate_that_hardly_moves_an_adapter_is_told(config, rate, given, said, tmp_path, caplog):
    assert DPOConfig.__dataclass_fields__["learning_rate"].default == 1e-6
    own = {name: value for name, value in CPU.items() if name != "learning_rate"}
    model, reference = tiny.model(), None if given else tiny.model()
    if "model" in given:
        model, given = get_peft_model(model, given["model"]), {}
    if "optimizers" in given:
        given = {**given, "optimizers": (torch.optim.SGD(model.parameters(), 0.1), None)}
    args = config(output_dir=str(tmp_path), **own, **({} if rate is None else {"learning_rate": rate}))
    with caplog.at_level("WARNING"):
        MFPOTrainer(model, reference, args, train_dataset=tiny.dataset(4), processing_class=tiny.processor(), **given)
    told = [record.getMessage() for record in caplog.records if "moves an adapter" in record.getMessage()]
    assert len(told) == (said is not None) and all(
        said in line and line.endswith("LoRA usually takes 1e-5 to 1e-4.") for line in told
    )


def test_custom_collator_in_trl_layout(tmp_path, caplog):
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    with caplog.at_level("WARNING"):
        trainer = build(MFPOTrainer, {}, tmp_path, data_collator=DataCollatorForVisionPreference(tiny.processor()))
    assert "data_collator of your own" in caplog.text
    trainer.train()
    assert "loss/image" not in trainer.state.log_history[0] and "loss/anchor" in trainer.state.log_history[0]


# Bad data


@pytest.mark.parametrize("split", ["train_dataset", "eval_dataset"])
def test_empty_answers_are_found_before_training(tmp_path, split):
    rows = tiny.rows(4)
    rows[2]["chosen"] = [{"role": "assistant", "content": ""}]
    bad = Dataset.from_list(rows, features=tiny.dataset(1).features)
    sets = {"data": bad} if split == "train_dataset" else {"eval_dataset": bad}
    with pytest.raises(ValueError, match=f"{split}, row 2 .*'what is in image 2.'.*'chosen': is empty"):
        build(MFPOTrainer, {}, tmp_path, **sets)


def test_a_bad_first_row_is_named(tmp_path):
    """TRL looks into the first row before anything else does."""
    with pytest.raises(ValueError, match="train_dataset, row 0, field 'images': cannot be read: .*[Tt]runcated"):
        build(MFPOTrainer, {}, tmp_path, data=broken_data(0))


def test_data_that_cannot_be_trained_on(tmp_path):
    with pytest.raises(ValueError, match="train_dataset has no rows"):
        build(MFPOTrainer, {}, tmp_path, data=tiny.dataset(2).select([]))
    single = tiny.dataset(2).remove_columns("images").add_column("images", [None, None], feature=tiny.Image())
    with pytest.raises(ValueError, match="'images' must hold a list of images; call a single image 'image'"):
        build(MFPOTrainer, {}, tmp_path, data=single)
    prompts = {"prompt": lambda n: [{"role": "user", "content": "<image> what?" if n == 2 else "what?"}]}
    with pytest.raises(ValueError, match="train_dataset, row 2 .*'prompt': holds a literal '<image>'"):
        build(MFPOTrainer, {}, tmp_path, data=tiny.dataset(4, **prompts))
    with pytest.raises(TypeError, match="DatasetDict"):
        build(MFPOTrainer, {}, tmp_path, data=DatasetDict(train=tiny.dataset(2)))


def test_only_the_image_term_with_a_collator_that_has_no_corrupted_branch(tmp_path):
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    options = {"text_loss_weight": 0, "anchor_loss_weight": 0}
    trainer = build(MFPOTrainer, options, tmp_path, data_collator=DataCollatorForVisionPreference(tiny.processor()))
    with pytest.raises(ValueError, match="no corrupted branch to read"):
        trainer.train()


def test_a_failing_transform_names_the_row(tmp_path):
    def opened(batch):
        if 5 in batch["number"]:
            raise OSError("no such picture")
        return {**batch, "images": [[tiny.picture(n)] for n in batch["number"]]}

    data = tiny.dataset(8).remove_columns("images").add_column("number", list(range(8))).with_transform(opened)
    trainer = build(MFPOTrainer, {"remove_unused_columns": False, "max_steps": 4}, tmp_path, data=data)
    with pytest.raises(ValueError, match=r"row 5: the data set's transform failed: OSError\('no such picture'\)"):
        trainer.train()


def test_swap_takes_only_rows_that_have_an_image(tmp_path):
    images = {"images": lambda n: [tiny.picture(n)] if n > 9 else []}
    data = Dataset.from_list(tiny.rows(12, **images), features=tiny.dataset(1).features)
    trainer = build(MFPOTrainer, {"corruption": "swap", "max_steps": 3}, tmp_path, data=data.shuffle(seed=1))
    assert len(trainer.data_collator.dispreferred.donors) == 2
    trainer.train()


def test_rows_that_max_length_drops_from_text_data_are_counted(tmp_path, caplog):
    rows = text_data()
    with pytest.raises(ValueError, match="max_length=5 leaves no room for the answer in 8 of the 8 rows"):
        build(MFPOTrainer, {"max_length": 5}, tmp_path, data=rows)
    long = Dataset.from_list([{**row, "prompt": [{"role": "user", "content": "why? " * 99}]} if n == 3 else row
                              for n, row in enumerate(rows)], features=rows.features)  # fmt: skip
    with caplog.at_level("WARNING"):
        trainer = build(MFPOTrainer, {"max_length": 200}, tmp_path, data=long)
    assert len(trainer.train_dataset) == 7 and "in 1 of the 8 rows of the train dataset" in caplog.text


def test_missing_column(tmp_path):
    with pytest.raises(ValueError, match="train_dataset has no column 'rejected', only"):
        build(MFPOTrainer, {}, tmp_path, data=tiny.dataset(4).remove_columns("rejected"))


def test_equal_answers_are_counted_once_and_kept(tmp_path, caplog):
    rows = tiny.rows(6)
    for n in (1, 4):
        rows[n]["rejected"] = rows[n]["chosen"]
    data = Dataset.from_list(rows, features=tiny.dataset(1).features)
    with caplog.at_level("WARNING"):
        trainer = build(MFPOTrainer, {"max_steps": 2}, tmp_path, data=data)
    assert "'chosen' equals 'rejected' in 2 of 6 rows (the first is row 1)" in caplog.text
    trainer.train()
    assert len(trainer.train_dataset) == 6


def test_unreadable_image_names_row_and_field(tmp_path):
    """The number is the position in the data set that was passed, also after a shuffle."""
    shuffled = broken_data(5).shuffle(seed=3)
    position = shuffled._indices.column(0).to_pylist().index(5)
    trainer = build(MFPOTrainer, {"num_train_epochs": 1, "max_steps": -1}, tmp_path, data=shuffled)
    with pytest.raises(
        ValueError, match=f"row {position}, field 'images': cannot be read: .*(truncated|broken|Truncated)"
    ):
        trainer.train()


def test_bad_region_names_the_row(tmp_path):
    regions = {"key_regions": lambda n: [[90, 90, 99, 99]] if n == 3 else tiny.boxes(n)}
    trainer = build(MFPOTrainer, {"max_steps": 4}, tmp_path, data=tiny.dataset(8, tiny.BOXES, **regions))
    with pytest.raises(ValueError, match="row 3 .*'key_regions': the box .* outside the image of 43x32"):
        trainer.train()


def test_rows_whose_whole_image_is_corrupted_for_want_of_regions_are_counted(tmp_path, caplog):
    """One of six has none and one an empty list; one has none and brings its dispreferred image, one has no image."""
    regions = [[[0, 0, 9, 9]], None, [], [[1, 1, 5, 5]], None, None]
    rows = tiny.rows(6, images=lambda n: [] if n == 5 else [tiny.picture(n, 30)])
    rows = [
        {
            **row,
            "key_regions": [own] if own is not None else None,
            "rejected_images": [tiny.picture(9, 30)] if n == 4 else None,
        }
        for n, (row, own) in enumerate(zip(rows, regions, strict=True))
    ]
    data = Dataset.from_list(rows).cast_column("images", List(Image())).cast_column("rejected_images", List(Image()))
    assert rows_without_regions(data) == 2 and rows_without_regions(data.remove_columns("key_regions")) == 4
    assert rows_without_regions(data.select([1, 2])) == 2 and rows_without_regions(data.select([0, 3])) == 0
    with caplog.at_level("WARNING"):
        build(MFPOTrainer, {}, tmp_path, data=data)
        assert "2 of 6 rows have an image and no key_regions: their whole image is corrupted" in caplog.text
        caplog.clear()
        build(MFPOTrainer, {"corruption_region": "global"}, tmp_path, data=data)
        build(MFPOTrainer, {}, tmp_path, data=data.select([0, 3]))
    assert "key_regions" not in caplog.text
