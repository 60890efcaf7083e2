"""Merged models against unmerged ones, as plain transformers and PEFT run them, for every kind of adapter and of base."""

import json
import re
import shutil
import warnings

import pytest
import tiny
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, GenerationConfig

from mfpo_trl.evaluation import run_merge
from mfpo_trl.evaluation.merge.command import Change
from mfpo_trl.evaluation.models.loading import Quantisation, quantisation_told

LANGUAGE = r".*language_model.*(q|v|gate|up|down)_proj"
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    tiny.save_pretrained(folder / "base")
    return folder


@pytest.fixture(autouse=True)
def four_bits():
    tiny.allow_four_bits()


def load(path, **options):
    return AutoModelForImageTextToText.from_pretrained(path, **options).eval()


def moved(model):
    """Every weight of the adapter somewhere else than where it begins."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad and weight.is_floating_point():
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator).to(weight.dtype))
    return model


def adapter(folder, config, base="base", name="adapter", **options):
    """A folder as training saves it, for a model loaded with these options; and the unmerged model, whose logits are compared."""
    model = load(folder / base, **options)
    if options:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config.base_model_name_or_path = str(folder / base)
    moved(get_peft_model(model, config)).save_pretrained(folder / name)
    settings = json.loads((folder / name / "adapter_config.json").read_text())
    (folder / name / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(folder / base)})
    )
    (folder / name / "README.md").unlink()
    return folder / name


def logits(model):
    processor = tiny.processor()
    found = []
    for n in range(2):
        inputs = processor(
            images=[tiny.picture(n)], text=["USER: <image>\nwhat is it? ASSISTANT: a red dog"], return_tensors="pt"
        )
        with torch.no_grad():
            found.append(model(**inputs).logits.float())
    return torch.stack(found)


def merge(folder, capsys, *argv, rows=None):
    """What the command printed; it must end well."""
    data = tiny.dataset(3) if rows is None else rows
    status = run_merge(list(map(str, argv)), lambda args: data)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def check_plain(output, base):
    """Nothing of an adapter or of quantisation, nothing missing, and only safetensors."""
    model, info = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    files = sorted(path.name for path in output.rglob("*"))
    assert not [name for name in files if name.endswith((".bin", ".pt")) or "adapter" in name]
    kept = [name for path in output.glob("*.safetensors") for name in safe_open(path, "pt").keys()]
    there = [name for path in base.glob("*.safetensors") for name in safe_open(path, "pt").keys()]
    assert not [name for name in kept if re.search("lora|absmax|quant|base_layer|modules_to_save|ref", name)]
    assert "quantization_config" not in json.loads((output / "config.json").read_text())
    return model.eval(), sorted(kept), sorted(there)


def saved_reference(folder):
    """A curriculum's frozen copy beside the adapter, with other weights."""
    config = LoraConfig(target_modules=LANGUAGE)
    model = get_peft_model(load(folder / "base"), config)
    model.add_adapter("ref", LoraConfig(target_modules=LANGUAGE))
    model.set_adapter("default")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=1.0 if ".ref." in name else 0.1)
    path = folder / "with-reference"
    model.peft_config["default"].base_model_name_or_path = model.peft_config["ref"].base_model_name_or_path = str(
        folder / "base"
    )
    model.save_pretrained(path)
    assert (path / "ref" / "adapter_model.safetensors").is_file()
    return path


ADAPTERS = {
    "LoRA": lambda f: adapter(f, LoraConfig(target_modules=LANGUAGE)),
    "LoRA on the vision tower and the projector": lambda f: adapter(f, LoraConfig(target_modules="all-linear")),
    "rank-stabilised LoRA with biases": lambda f: adapter(
        f, LoraConfig(target_modules=r".*(linear_1|q_proj)", use_rslora=True, bias="lora_only")
    ),
    "DoRA": lambda f: adapter(f, LoraConfig(target_modules=LANGUAGE, use_dora=True)),
    "modules in full": lambda f: adapter(
        f, LoraConfig(target_modules=LANGUAGE, modules_to_save=["lm_head", "multi_modal_projector"])
    ),
    "embeddings": lambda f: adapter(f, LoraConfig(target_modules=["embed_tokens", "q_proj"])),
    "PiSSA": lambda f: adapter(f, LoraConfig(target_modules=LANGUAGE, init_lora_weights="pissa")),
    "IA3": lambda f: adapter(f, IA3Config(target_modules=r".*(k|v|down)_proj", feedforward_modules=r".*down_proj")),
    "a reference beside it": saved_reference,
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_merged_is_unmerged(folder, tmp_path, capsys, kind):
    path = ADAPTERS[kind](folder)
    before = logits(PeftModel.from_pretrained(load(folder / "base"), path))
    printed = merge(folder, capsys, path, "--output", tmp_path / "merged")
    model, kept, there = check_plain(tmp_path / "merged", folder / "base")
    assert kept == there
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert (before - logits(load(folder / "base"))).abs().max() > 0.01
    assert "Not measured what merging changes; --rows DATA" in printed
    shutil.rmtree(path)


QUANTISED = {
    "4 bits": (NF4, ["--load-in-4bit"]),
    "DoRA": (NF4, ["--load-in-4bit"]),
    "4 bits, scales too": (NF4 | {"bnb_4bit_use_double_quant": True}, ["--load-in-4bit", "--use-bnb-nested-quant"]),
    "a base that is stored in 4 bits": (NF4, []),
    "as the card tells": (NF4 | {"bnb_4bit_use_double_quant": True}, []),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_merged_is_unmerged_on_quantised_weights(folder, tmp_path, capsys, kind):
    """The adapter knows the quantised weights: merged into those, and not into the whole ones."""
    options, argv = QUANTISED[kind]
    config = LoraConfig(target_modules=LANGUAGE, use_dora=kind == "DoRA")
    path = adapter(tmp_path, config, base=folder / "base", quantization_config=BitsAndBytesConfig(**options))
    quantised = load(folder / "base", quantization_config=BitsAndBytesConfig(**options))
    if kind == "a base that is stored in 4 bits":
        quantised.save_pretrained(tmp_path / "stored")
        tiny.processor().save_pretrained(tmp_path / "stored")
        argv = ["--base", tmp_path / "stored"]
    if kind == "as the card tells":
        line = "4-bit NF4 (bitsandbytes), with double quantisation, computed in float32"
        (path / "README.md").write_text(f"---\nlibrary_name: peft\n---\n\n# An adapter\n\n- quantisation: {line}\n")
    before = logits(PeftModel.from_pretrained(quantised, path))
    printed = merge(folder, capsys, path, "--output", tmp_path / "merged", "--rows", "x", *argv)
    model, kept, there = check_plain(tmp_path / "merged", folder / "base")
    after = logits(model)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    # What those get who merge into the whole weights.
    other = logits(PeftModel.from_pretrained(load(folder / "base"), path))
    assert (other - before).abs().max() > 100 * (after - before).abs().max() and kept == there
    largest = float(re.search(r"differ by ([\d.e+-]+) at most", printed)[1])
    assert largest < 1e-4
    if kind == "as the card tells":
        assert "4 bits (NF4, scales quantised as well)" in printed and "--no-load-in-4bit overrules it" in printed


def chosen(model, row):
    """Log-probability of the chosen answer from plain logits."""
    processor = tiny.processor()
    text = f"USER: <image>\n{row['prompt'][0]['content']} ASSISTANT:"
    inputs = processor(images=row["images"], text=[text], return_tensors="pt", add_special_tokens=False)
    said = processor.tokenizer(f" {row['chosen'][0]['content']} </s>", return_tensors="pt")["input_ids"]
    ids = torch.cat([inputs["input_ids"], said], dim=1)
    with torch.no_grad():
        found = model(
            input_ids=ids, pixel_values=inputs["pixel_values"].to(model.dtype), attention_mask=torch.ones_like(ids)
        ).logits
    logps = found.float().log_softmax(-1)[0, inputs["input_ids"].shape[1] - 1 : -1]
    return float(logps.gather(1, said[0][:, None]).sum())


def test_what_merging_changes_is_measured_as_it_is_saved(folder, tmp_path, capsys):
    """In bfloat16 the difference is seen; it is that of plain forwards, and stands in the card."""
    path, rows = adapter(folder, LoraConfig(target_modules=LANGUAGE)), tiny.dataset(3)
    (path / "README.md").write_text(
        "---\nlibrary_name: peft\nbase_model: a/b\ntags:\n- lora\n- mfpo\n---\n\n# An adapter\n\nTold.\n"
    )
    (path / "training_curves.png").write_bytes(b"picture")
    argv = [path, "--output", tmp_path / "merged", "--rows", "x", "--dtype", "bfloat16"]
    printed = merge(folder, capsys, *argv, rows=rows)
    unmerged = PeftModel.from_pretrained(load(folder / "base", dtype=torch.bfloat16), path)
    merged = load(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    before, after = ([chosen(model, row) for row in rows] for model in (unmerged, merged))
    with unmerged.disable_adapter():
        without = [chosen(unmerged, row) for row in rows]
    apart = [abs(a - b) for a, b in zip(before, after, strict=True)]
    moves = sum(abs(a - b) for a, b in zip(before, without, strict=True)) / 3
    told = Change(3, max(apart), sum(apart) / 3, moves)
    numbers = [float(own) for own in re.findall(r"by ([\d.e+-]+) |and ([\d.e+-]+) on", printed) for own in own if own]
    assert max(apart) > 1e-3 and numbers == pytest.approx([told.largest, told.mean, told.adapter], rel=0.05, abs=2e-3)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"- {printed.splitlines()[1]}" in card and "these weights are in bfloat16" in card and "Told." in card
    assert "library_name: transformers" in card and "- mfpo" in card and "- lora" not in card
    assert str(folder) not in card and (tmp_path / "merged" / "training_curves.png").is_file()


def test_what_lies_beside_the_weights(folder, tmp_path, capsys):
    """Shards in, shards out; the processor and template of the training; settings of generation that contradict themselves."""
    base = tmp_path / "base"
    shutil.copytree(folder / "base", base)
    (base / "model.safetensors").unlink()
    load(folder / "base").save_pretrained(base, max_shard_size="100KB")
    assert (base / "model.safetensors.index.json").is_file()
    (base / "generation_config.json").write_text(
        json.dumps({"temperature": 0.2, "top_p": None, "eos_token_id": [2, 5], "do_sample": False})
    )
    path = adapter(tmp_path, LoraConfig(target_modules=LANGUAGE))
    tiny.processor(tiny.LLAVA_TEMPLATE).save_pretrained(path)
    merge(folder, capsys, path, "--output", tmp_path / "merged", "--max-shard-size", "100KB")
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()
    _, kept, there = check_plain(tmp_path / "merged", base)
    assert kept == there
    assert AutoProcessor.from_pretrained(tmp_path / "merged").chat_template == tiny.LLAVA_TEMPLATE
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [2, 5]


def test_a_head_of_its_own_where_embeddings_were_tied(folder, tmp_path, capsys):
    tied = tiny.model()
    tied.config.tie_word_embeddings = tied.config.text_config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(tmp_path / "base")
    tiny.processor().save_pretrained(tmp_path / "base")
    path = adapter(tmp_path, LoraConfig(target_modules=LANGUAGE, modules_to_save=["lm_head"]))
    before = logits(PeftModel.from_pretrained(load(tmp_path / "base"), path))
    merge(folder, capsys, path, "--output", tmp_path / "merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged")), before, rtol=1e-4, atol=1e-4)


# Nothing to merge, or nothing that can be


def whole(folder, tmp_path):
    return folder / "base"


def untrained(folder, tmp_path):
    config = LoraConfig(target_modules=LANGUAGE)
    config.base_model_name_or_path = str(folder / "base")
    get_peft_model(load(folder / "base"), config).save_pretrained(tmp_path / "untrained")
    return named(tmp_path / "untrained", folder / "base")


def named(path, base):
    settings = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base and str(base)}))
    return path


def prompts(folder, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(load(folder / "base"), config).save_pretrained(tmp_path / "prompts")
    return named(tmp_path / "prompts", folder / "base")


def prefixes(folder, tmp_path):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(load(folder / "base"), config).save_pretrained(tmp_path / "prefixes")
    return named(tmp_path / "prefixes", folder / "base")


def pickled(folder, tmp_path):
    path = adapter(tmp_path, LoraConfig(target_modules=LANGUAGE), base=folder / "base")
    (path / "adapter_model.safetensors").unlink()
    torch.save({}, path / "adapter_model.bin")
    return path


def nameless(folder, tmp_path):
    return named(adapter(tmp_path, LoraConfig(target_modules=LANGUAGE), base=folder / "base"), None)


def stacked(folder, tmp_path):
    inner = adapter(tmp_path, LoraConfig(target_modules=LANGUAGE), base=folder / "base", name="inner")
    return named(adapter(tmp_path, LoraConfig(target_modules=LANGUAGE), base=folder / "base"), inner)


def other_model(folder, tmp_path):
    path = adapter(tmp_path, LoraConfig(target_modules=r".*q_proj"), base=folder / "base")
    settings = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": r".*nowhere"}))
    return path


REFUSED = {
    "a whole model": (whole, "is a whole model and no adapter: there is nothing to merge"),
    "an adapter that was never trained": (untrained, "changes no weight of .* there is nothing to merge"),
    "prompt learning": (prompts, "an adapter of type PROMPT_TUNING, which has no weights to merge"),
    "prefixes": (prefixes, "an adapter of type PREFIX_TUNING, which has no weights to merge"),
    "pickles": (pickled, "pickles only"),
    "no base": (nameless, "names no model; write it there as base_model_name_or_path, or name it with --base"),
    "an adapter on an adapter": (stacked, "an adapter itself; merge that one first"),
    "another model's adapter": (other_model, "cannot be put on its model: Target modules"),
    "nothing there": (lambda folder, tmp_path: tmp_path / "none", "there is no folder"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals(folder, tmp_path, capsys, kind):
    make, words = REFUSED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = make(folder, tmp_path)
    assert run_merge([str(path), "--output", str(tmp_path / "merged")], lambda args: tiny.dataset(2)) == 1
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".*unfinished"))


def test_a_folder_that_holds_something(folder, tmp_path, capsys):
    assert run_merge([str(folder / "base"), "--output", str(folder / "base")], lambda args: None) == 1
    assert "is there already; name a new folder" in capsys.readouterr().err
    assert (folder / "base" / "config.json").is_file()


def test_the_line_of_the_card_is_that_of_the_card(tmp_path):
    """Read as `card/facts.py` writes it."""
    from types import SimpleNamespace

    from mfpo_trl.card.facts import describe_quantisation

    cases = {
        ("nf4", True): BitsAndBytesConfig(**NF4, bnb_4bit_use_double_quant=True),
        ("fp4", False): BitsAndBytesConfig(**NF4 | {"bnb_4bit_quant_type": "fp4"}),
        ("int8", False): BitsAndBytesConfig(load_in_8bit=True),
    }
    for (kind, double), config in cases.items():
        told = describe_quantisation(SimpleNamespace(config=SimpleNamespace(quantization_config=config)))
        (tmp_path / "README.md").write_text(f"# A\n\n- engine: DDP\n- quantisation: {told}\n- trained: all\n")
        expected = Quantisation(kind, double), None if kind == "int8" else "float32"
        assert quantisation_told(str(tmp_path)) == expected
    (tmp_path / "README.md").write_text("# quantisation: none\n")
    assert quantisation_told(str(tmp_path)) is None
