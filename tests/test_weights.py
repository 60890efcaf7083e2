"""Weights that are pickles are loaded by nothing, and each refusal comes with a command that really converts them."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_trainer import CPU
from transformers import (
    AutoModelForImageTextToText,
    BertConfig,
    BertForSequenceClassification,
    LlavaForConditionalGeneration,
)

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.checkpoints import last_complete_checkpoint, resume_point
from mfpo_trl.data.difficulty.measures import build_difficulty
from mfpo_trl.data.difficulty.semantic_entropy import entailment
from mfpo_trl.data.grounding.detectors import load as load_grounder
from mfpo_trl.data.keywords.extraction import embedding_vectors
from mfpo_trl.weights import pickled_only

SOURCE = Path(__file__).parents[1] / "src" / "mfpo_trl"
REFUSED = (
    r"are pickles only \({names}\), which can run code when they are loaded; they become safetensors with: python -c"
)


def pickle_weights(folder: Path, shards: int = 1) -> dict[str, torch.Tensor]:
    """Put a folder's weights into pickles, as old checkpoints have them; returns them."""
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    path.unlink()
    name = {"model": "pytorch_model", "adapter_model": "adapter_model"}[path.stem]
    if shards == 1:
        torch.save(weights, folder / f"{name}.bin")
        return weights
    files = {key: f"{name}-{n % shards + 1:05d}-of-{shards:05d}.bin" for n, key in enumerate(weights)}
    for file in set(files.values()):
        torch.save({key: weights[key] for key in weights if files[key] == file}, folder / file)
    (folder / f"{name}.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return weights


def convert(error: Exception) -> None:
    """Do what a refusal says, in this process, as its imports cost more than the rest."""
    python, option, program = shlex.split(str(error).partition("with: ")[2])
    assert (python, option) == ("python", "-c")
    exec(program, {})


def trainer(model, output: Path, ref_model=None, peft_config=None, **settings) -> MFPOTrainer:
    args = MFPOConfig(output_dir=str(output), **{**CPU, "max_steps": 1, **settings})
    return MFPOTrainer(
        model,
        ref_model,
        args,
        train_dataset=tiny.dataset(4),
        processing_class=tiny.processor(),
        peft_config=peft_config,
    )


LORA = LoraConfig(target_modules=["q_proj"], r=2)


@pytest.fixture
def llava(tmp_path) -> Path:
    return Path(tiny.save_pretrained(tmp_path / 'it\'s a "llava"'))


def test_a_model_by_name_is_refused_and_converted_by_the_command_that_is_shown(llava, tmp_path):
    """The shell reads the command, quotes in the folder's name and all."""
    pickle_weights(llava)
    with pytest.raises(ValueError, match=REFUSED.format(names="pytorch_model.bin")) as refused:
        trainer(str(llava), tmp_path / "out")
    command = str(refused.value).partition("with: ")[2].replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert not pickled_only(llava, {})
    own = trainer(str(llava), tmp_path / "out")
    assert own.args.model_init_kwargs is None
    expected = LlavaForConditionalGeneration(own.model.config)
    expected.load_state_dict(tiny.model().state_dict())
    for found in (own.model, own.ref_model):
        for name, value in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], value), name


def test_shards_are_refused_and_converted(llava, tmp_path):
    pickle_weights(llava, shards=3)
    with pytest.raises(ValueError, match=REFUSED.format(names="pytorch_model.bin.index.json")) as refused:
        trainer(str(llava), tmp_path / "out")
    convert(refused.value)
    found = AutoModelForImageTextToText.from_pretrained(llava, use_safetensors=True).state_dict()
    assert all(torch.equal(found[name], value) for name, value in tiny.model().state_dict().items())


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("given", ["name", "object"])
def test_a_variant_is_refused_and_converted(llava, tmp_path, given, shards):
    """Of a model by name, and of the reference of one that is given, which is read from where it was."""
    model = tiny.LlavaForConditionalGeneration.from_pretrained(llava) if given == "object" else str(llava)
    pickle_weights(llava, shards)
    for path in llava.glob("pytorch_model*"):
        path.rename(path.with_suffix(f".fp16{path.suffix}"))
    names = "pytorch_model.fp16.bin" if shards == 1 else "pytorch_model.bin.index.fp16.json"
    if shards > 1:
        index = llava / names
        weights = json.loads(index.read_text())
        weights["weight_map"] = {key: file.replace(".bin", ".fp16.bin") for key, file in weights["weight_map"].items()}
        index.write_text(json.dumps(weights))
    settings = {"model_init_kwargs": {"variant": "fp16"}}
    with pytest.raises(ValueError, match=REFUSED.format(names=names)) as refused:
        trainer(model, tmp_path / "out", **settings)
    convert(refused.value)
    own = trainer(model, tmp_path / "out", **settings)
    for name, value in tiny.model().state_dict().items():
        assert torch.equal(own.ref_model.state_dict()[name], value), name


def test_an_adapter_beside_a_model_is_refused_and_converted(llava, tmp_path):
    """transformers loads it with the model, whatever `use_safetensors` says."""
    adapted = get_peft_model(tiny.model(), LORA)
    adapted.save_pretrained(tmp_path / "adapter")
    weights = pickle_weights(tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", llava, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=REFUSED.format(names="adapter_model.bin")) as refused:
        trainer(str(llava), tmp_path / "out")
    convert(refused.value)
    found = load_file(llava / "adapter_model.safetensors")
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_reference_is_refused_too(llava, tmp_path):
    """TRL reads it from where the model was read; under an adapter, or where it is given, it reads none."""
    model = LlavaForConditionalGeneration.from_pretrained(llava)
    pickle_weights(llava)
    with pytest.raises(ValueError, match=REFUSED.format(names="pytorch_model.bin")):
        trainer(model, tmp_path / "out")
    trainer(model, tmp_path / "out", ref_model=tiny.model())
    trainer(model, tmp_path / "out", peft_config=LORA)
    with pytest.raises(TypeError, match="`ref_model` must be a model, got 'a/name'; load it with"):
        trainer(model, tmp_path / "out", ref_model="a/name")


def test_pickles_cannot_be_asked_for(llava, tmp_path):
    for model in (str(llava), tiny.model()):
        with pytest.raises(ValueError, match="use_safetensors=False, and pickles are not loaded"):
            trainer(model, tmp_path / "out", model_init_kwargs={"use_safetensors": False})


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
def test_checkpoints_are_refused(adapter, llava, tmp_path):
    """To resume from, named or found, and the best one at the end."""
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    own = trainer(str(llava), tmp_path / "out", peft_config=LORA if adapter else None, **settings)
    own.train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    pickle_weights(checkpoint)
    said = REFUSED.format(names="adapter_model.bin" if adapter else "pytorch_model.bin")
    with pytest.raises(ValueError, match=said) as refused:
        own.train(resume_from_checkpoint=str(checkpoint))
    own.state.best_model_checkpoint = str(checkpoint)
    with pytest.raises(ValueError, match=said):
        own._load_best_model()
    with pytest.raises(ValueError, match=said):
        resume_point(str(checkpoint), tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    assert last_complete_checkpoint(tmp_path / "out") is None
    convert(refused.value)
    assert last_complete_checkpoint(tmp_path / "out") == checkpoint
    own.train(resume_from_checkpoint=str(checkpoint))
    assert own.state.global_step == 2


def test_another_adapter_of_a_checkpoint_is_refused(tmp_path):
    """Such as the reference of a stage, which lies in a folder of its own."""
    own = trainer(get_peft_model(tiny.model(), LORA), tmp_path / "out")
    for folder in (tmp_path / "checkpoint-1", tmp_path / "checkpoint-1" / "ref"):
        own.model.save_pretrained(folder)
    pickle_weights(tmp_path / "checkpoint-1" / "ref")
    with pytest.raises(ValueError, match=r"checkpoint-1/ref are pickles only \(adapter_model.bin\)"):
        own._load_from_checkpoint(str(tmp_path / "checkpoint-1"))


def classifier(folder: Path) -> str:
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "loaded",
    [
        lambda name: build_difficulty("nll", model=name),
        lambda name: embedding_vectors(name, tiny.tokenizer()),
        lambda name: load_grounder(type(tiny.processor()), LlavaForConditionalGeneration, name, "cpu"),
        lambda name: entailment(name, "cpu"),
    ],
    ids=["difficulty", "embeddings", "grounder", "entailment"],
)
def test_the_models_of_a_build_are_refused(loaded, llava, tmp_path, request):
    folder = llava if "entailment" not in request.node.name else Path(classifier(tmp_path / "nli"))
    pickle_weights(folder)
    with pytest.raises(ValueError, match=REFUSED.format(names="pytorch_model.bin")) as refused:
        loaded(str(folder))
    kind = "BertForSequenceClassification" if folder != llava else "LlavaForConditionalGeneration"
    assert f"from transformers import {kind} as Model" in str(refused.value)


def test_a_configuration_puts_nothing_into_the_command(llava):
    config = json.loads((llava / "config.json").read_text())
    (llava / "config.json").write_text(json.dumps(config | {"architectures": ["x; import os; os.abort()"]}))
    pickle_weights(llava)
    with pytest.raises(
        ValueError, match="import AutoModelForImageTextToText as Model; Model.from_pretrained"
    ) as refused:
        embedding_vectors(str(llava), tiny.tokenizer())
    assert "abort" not in str(refused.value)


def test_what_is_not_there_is_said_by_transformers(tmp_path):
    for name in (str(tmp_path / "nowhere"), "nobody/nothing"):
        assert pickled_only(name, {}) == pickled_only(tmp_path, {}) == []
        with pytest.raises(OSError):
            embedding_vectors(name, tiny.tokenizer())


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_of_the_package_reads_pickles(path):
    """Whatever loads weights asks for safetensors, and nothing loads what is pickled."""
    for call in calls(path):
        said = ast.unparse(call)
        name = ast.unparse(call.func)
        if name == "PeftModel.from_pretrained":
            # Has no such option.
            assert "refuse_pickles(adapter)" in path.read_text() and "(base, adapter," in said, said
        elif name.endswith(".from_pretrained") and not re.search("processor|config|weightless", name, re.IGNORECASE):
            assert "use_safetensors=True" in said, said
        if name == "pipeline":
            assert "{'use_safetensors': True}" in said, said
        assert name not in ("torch.load", "pickle.load", "pickle.loads", "joblib.load", "np.load", "numpy.load"), said
