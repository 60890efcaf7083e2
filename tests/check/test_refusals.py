"""What `mfpo train` refuses, `mfpo check` finds, in the same words; and no refusal is forgotten."""

import ast
import importlib.metadata
import inspect
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

import launches
import pytest
import tiny
import torch
import transformers
import warm
from datasets import DatasetDict
from peft import LoraConfig, get_peft_model
from refusals import BASE, DATA, LATER, REFUSALS, THEIRS, THEIRS_LATER, Refusal
from safetensors.torch import load_file
from stand_in_hub import BAD, READS, WRITES, StandInHub
from transformers.training_args import OptimizerNames
from trl import DPOConfig, DPOTrainer, ModelConfig

import mfpo_trl
from mfpo_trl import train
from mfpo_trl.check import command
from mfpo_trl.check.formulas import Engine
from mfpo_trl.check.preflight import check_devices
from mfpo_trl.requirements import check_optimizer

SOURCE = Path(mfpo_trl.__file__).parent


# Both commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    tiny.save_pretrained(folder / "model", template=tiny.LLAVA_TEMPLATE)
    tiny.model().save_pretrained(folder / "without_processor")
    tiny.tokenizer().save_pretrained(folder / "without_processor")
    shutil.copytree(folder / "model", folder / "pickled")
    torch.save(load_file(folder / "model" / "model.safetensors"), folder / "pickled" / "pytorch_model.bin")
    (folder / "pickled" / "model.safetensors").unlink()
    around = get_peft_model(tiny.model(), LoraConfig(target_modules=["q_proj"], r=4))
    around.peft_config["default"].base_model_name_or_path = str(folder / "model")
    around.peft_config["default"].r = 8
    around.save_pretrained(folder / "misfit")
    (folder / "pdsh.yaml").write_text("distributed_type: DEEPSPEED\nnum_machines: 2\nnum_processes: 2\n")
    tiny.model().save_pretrained(folder / "without_end")
    processor = tiny.processor(tiny.LLAVA_TEMPLATE)
    processor.tokenizer.eos_token = None
    processor.save_pretrained(folder / "without_end")
    return folder


def data(folder: Path, name: str) -> Path:
    """A data set of the table, written once."""
    path = folder / "data" / name.replace(" ", "-")
    if not path.exists():
        made = DATA[name](folder)
        path.mkdir(parents=True)
        for split, rows in (made if isinstance(made, DatasetDict) else {"train": made}).items():
            rows.to_parquet(path / f"{split}.parquet")
    # A folder is looked through by every name that files of a split may have.
    files = list(path.glob("*.parquet"))
    return files[0] if len(files) == 1 else path


def written(refusal: Refusal, folder: Path, out: Path) -> list[str]:
    """The command line of a refusal."""
    argv = ["--model_name_or_path", str(folder / refusal.model), "--dataset_name", str(data(folder, refusal.data))]
    argv += ["--output_dir", str(out), *BASE.split()]
    if refusal.recipe:
        out.with_suffix(".yaml").write_text(refusal.recipe)
        argv += ["--config", str(out.with_suffix(".yaml"))]
    argv += shlex.split(refusal.fields.format(folder=folder, out=out))
    if refusal.prepare is not None:
        refusal.prepare(argv, out)
    return argv


def checked(argv, capsys) -> tuple[int, str]:
    """What `mfpo check` refuses: its status, and the problems with their details or the error."""
    capsys.readouterr()
    status = command.main(["--json", *argv])
    printed = capsys.readouterr()
    if status == 2:
        (error,) = re.findall("^mfpo check: error: (.*)$", printed.err, re.M)
        return status, flat(error)
    problems = [found for found in json.loads(printed.out)["findings"] if found["status"] == "problem"]
    assert all(found["value"] and found["advice"] for found in problems)
    said = [[found["value"], *(row["error"] for row in found["details"].get("invalid", []))] for found in problems]
    return status, flat(" ".join(part for parts in said for part in parts))


def trained(argv, capsys) -> tuple[int, str]:
    """What `mfpo train` refuses: its status and the error."""
    capsys.readouterr()
    status = train.main(argv)
    errors = re.findall("^mfpo train: error: (.*)$", capsys.readouterr().err, re.M)
    return status, flat(errors[0]) if errors else ""


def flat(text: str) -> str:
    """Without line breaks and places in memory."""
    return re.sub(" at 0x[0-9a-f]+", "", " ".join(text.split()))


def pattern(words: str) -> str:
    return ".*".join(map(re.escape, words.split("{}")))


@pytest.mark.parametrize(
    "refusal", [*REFUSALS, *THEIRS], ids=lambda one: f"{one.words[:40]}-{one.fields[-30:] or one.data}"
)
def test_what_training_refuses_is_found_before(refusal, folder, tmp_path, capsys):
    argv = written(refusal, folder, tmp_path / "out")
    status, found = checked(argv, capsys)
    stopped, error = trained(argv, capsys)
    assert stopped == 2 and re.search(pattern(refusal.words), error), error or f"mfpo train ended with {stopped}"
    # How a data set is called does not matter where its rows are looked at.
    error = refusal.found or re.sub(r"^\w+_dataset, ", "", error)
    assert status in (1, 2) and error in found, f"mfpo train: {error}\nmfpo check ({status}): {found}"


@pytest.mark.parametrize(
    ("term", "words"),
    [
        ("SHAPE", "term 'shape' returned (); expected one loss for each of the 1 samples"),
        ("NAN", "term 'nan' returned NaN for log-ratios that are finite; look at its loss and at its columns"),
    ],
)
def test_what_a_term_returns(term, words, folder, tmp_path, capsys):
    """One sentence of the first step, and of the step that `mfpo check` tries."""
    argv = written(Refusal("", f"""--objective_terms '{{{{"own_terms:{term}": 1}}}}'"""), folder, tmp_path / "out")
    assert checked([*argv, "--try-forward", "no"], capsys)[0] == 0
    status, found = checked([*argv, "--try-forward", "yes"], capsys)
    assert status == 1 and words in found
    assert trained(argv, capsys) == (2, words)


def test_several_problems_in_one_run(folder, tmp_path, capsys):
    """Those that are known do not hide what comes behind them."""
    fields = "--use_peft --curriculum staged --train_sampling_strategy sequential --eval_strategy epoch --push_to_hub "
    fields += "--report_to wandb --optim lomo --sync_ref_model"
    status, found = checked(written(Refusal("", fields), folder, tmp_path / "out"), capsys)
    assert status == 1
    for words in (
        "decides itself which row comes",
        "no split 'test'",
        "needs a token with write access",
        "pip install wandb",
        "pip install lomo-optim",
        "`sync_ref_model=True` while using a PEFT model",
    ):
        assert words in found, words


def test_nothing_is_left_behind(folder, tmp_path, capsys):
    """The rehearsal makes no folder, pushes nothing and starts no reporter."""
    status, _ = checked(written(Refusal("", ""), folder, tmp_path / "out"), capsys)
    assert status == 0 and not list(tmp_path.iterdir())


ASK = """
import sys
from mfpo_trl.hub.upload import PushError, check_login, open_repository
for token in sys.argv[1:]:
    for ask in check_login, open_repository:
        try:
            print(ask("user/model", token=token))
        except PushError as error:
            print(error)
"""


def test_the_hub_is_asked_what_a_token_may_do(tmp_path):
    """What opening the repository says of it too; nothing is created by asking."""
    with StandInHub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path, WRITES)}
        command = [sys.executable, "-c", ASK, BAD, READS, WRITES]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert len(hub.repos) == 1
    lines = done.stdout.splitlines()
    assert lines[4:] == ["None", "None"]
    for asked, opened, words in (
        (*lines[:2], "does not accept the token"),
        (*lines[2:4], "the token may not write there"),
    ):
        assert words in asked and words in opened and "mfpo push" in asked


def test_the_engines_refusal(folder, tmp_path, capsys):
    """What depends on the engine, by an engine that runs, in one process."""
    configuration = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}, "num_machines": 1}
    configuration |= {"num_processes": 1, "mixed_precision": "no", "use_cpu": True}
    (tmp_path / "zero2.json").write_text(json.dumps(configuration))
    fields = "--use_peft --curriculum staged --curriculum_reference stage --ddp_backend gloo"
    argv = written(Refusal("", fields, "difficult"), folder, tmp_path / "out")
    argv += ["--accelerate-config", str(tmp_path / "zero2.json")]
    status, found = checked(argv, capsys)
    words = (
        "curriculum_reference='stage' copies the policy's weights into the reference, which is not done for the shards"
    )
    assert status == 1 and words in found
    (done,) = launches.run_warm(["-m", "mfpo_trl.cli", "train", *argv])
    assert done.returncode == 2 and words in flat(done.stderr), done.stderr[-2000:]


def test_several_devices():
    """That one process sees, where TRL refuses to copy the model to them."""
    check_devices(Engine(), 1)
    check_devices(Engine(4), 4)
    with pytest.raises(ValueError, match="one process sees 4 CUDA devices.* --num-processes 4"):
        check_devices(Engine(), 4)


# Packages that are not installed

OPTIMIZERS = {
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu_fused": "torch_npu",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "grokadamw": "grokadamw",
    "lomo": "lomo-optim",
    "adalomo": "lomo-optim",
    "stable_adamw": "torch-optimi",
    **{name.value: "galore-torch" for name in OptimizerNames if name.value.startswith("galore")},
    **{name.value: "apollo-torch" for name in OptimizerNames if name.value.startswith("apollo")},
    **{name.value: "schedulefree" for name in OptimizerNames if name.value.startswith("schedule_free")},
    **{
        name.value: "bitsandbytes"
        for name in OptimizerNames
        if re.search("bnb|paged|lion|ademamix|^adamw_8bit", name.value)
    },
}
"""The distribution that an optimizer is of; PyTorch and transformers have the others."""

REPORTERS = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""The distribution that a reporter is of, where it has another name."""


def is_installed(distribution: str) -> bool:
    try:
        return bool(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return False


def test_optimizers_are_asked_for(folder, tmp_path, capsys):
    """All of them: those of a package that is not installed are refused with its name, the others are not."""
    argv = written(Refusal(""), folder, tmp_path / "out")
    missing = {}
    for name in (one.value for one in OptimizerNames):
        _, training, _ = train.parse([*argv, "--optim", name])
        if is_installed(OPTIMIZERS.get(name, "torch")):
            check_optimizer(training)
        else:
            with pytest.raises((ImportError, ValueError), match=f"^optim={name!r}: ") as refused:
                check_optimizer(training)
            missing[OPTIMIZERS[name]] = name, str(refused.value)
    assert {"lomo-optim", "galore-torch", "apollo-torch", "schedulefree", "torchao"} <= set(missing)
    # One of each package through both commands.
    for package, (name, words) in missing.items():
        assert checked([*argv, "--optim", name], capsys) == (1, words)
        assert trained([*argv, "--optim", name], capsys) == (2, words)
        assert re.search(f"{package.partition('-')[0].replace('_', '.')}.*|{package}", words, re.I), words


@pytest.mark.parametrize("name", sorted(transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK))
def test_reporters_are_asked_for(name, folder, tmp_path, capsys):
    argv = written(Refusal("", f"--report_to {name}"), folder, tmp_path / "out")
    status, found = checked(argv, capsys)
    assert status == (not is_installed(REPORTERS.get(name, name.replace("_", "-")))), found
    if status:
        stopped, error = trained(argv, capsys)
        assert stopped == 2 and error == found and f"report_to={name!r}" in error
        assert "pip install" in error or "environment variable" in error


WITHOUT = """
import contextlib, importlib.metadata, importlib.util, io, json, sys
packages, commands = map(json.loads, sys.argv[1:])
spec, version = importlib.util.find_spec, importlib.metadata.version
def hidden(name, *rest):
    return None if name.split(".")[0] in packages else spec(name, *rest)
def unknown(name):
    if name in packages:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.util.find_spec, importlib.metadata.version = hidden, unknown
from mfpo_trl import cli
told = []
for argv in commands:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = cli.main(argv)
    told.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(told))
"""


LACKED = {
    "bitsandbytes": (
        "--load_in_4bit --use_peft",
        "load_in_4bit=True needs bitsandbytes; run `pip install bitsandbytes`",
    ),
    "deepspeed": (
        f"--deepspeed {launches.ROOT / 'recipes' / 'deepspeed' / 'zero3.json'}",
        'training with DeepSpeed needs deepspeed; run `pip install "mfpo_trl[deepspeed]"`',
    ),
}


def test_without_a_package(folder, tmp_path):
    """What both commands say, in one process of a machine that lacks them all."""
    asked = [
        (name, package, [name, *written(Refusal("", fields), folder, tmp_path / "out")])
        for package, (fields, _) in LACKED.items()
        for name in ("check", "train")
    ]
    command = [sys.executable, "-c", WITHOUT, json.dumps(list(LACKED)), json.dumps([argv for *_, argv in asked])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    for (name, package, _), (status, out, err) in zip(asked, told, strict=True):
        said = flat(out if name == "check" else err)
        assert status == {"check": 1, "train": 2}[name], (name, package, err[-2000:])
        assert LACKED[package][1] in said and "Traceback" not in err, (name, package, said)


@pytest.mark.parametrize("name", ["check", "train"])
def test_a_full_disk_is_found_before_the_weights_are(name, folder, tmp_path, capsys):
    argv = written(Refusal(""), folder, tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As little as what the terminal of the tests is kept in may hold.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        status, said = checked(argv, capsys) if name == "check" else trained(argv, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == {"check": 1, "train": 2}[name] and "nothing can be written to" in said and "too large" in said


def test_as_processes(folder, tmp_path):
    """One problem, as a user reads it."""
    argv = written(Refusal("", "--curriculum staged --dataset_streaming"), folder, tmp_path / "out")
    for name, status, start in (("check", 1, "problem curriculum"), ("train", 2, "mfpo train: error:")):
        done = subprocess.run([warm.executable(), "-m", "mfpo_trl.cli", name, *argv], capture_output=True, text=True)
        said = flat(done.stdout if name == "check" else done.stderr)
        assert done.returncode == status and "Traceback" not in done.stderr, done.stderr[-2000:]
        assert start in said and "curriculum='staged' needs a map-style data set" in said


# The sources


class Raise(NamedTuple):
    """A `raise` of a source: where, the function, and the text of its message with `{}` for what is filled in."""

    place: str
    function: str
    text: str

    @property
    def says_nothing(self) -> bool:
        """Whether it hands on another message, behind the name of a field at most."""
        return not re.search(r"[a-z]{2}\w*(?![\w=])", self.text)

    def is_met_by(self, words: str, at: str) -> bool:
        if self.says_nothing:
            return at == self.function
        return words in self.text and at in ("", self.function)


def raises(tree: ast.AST, module: str, path: str, first_line: int = 1) -> list[Raise]:
    """Every `raise` of a new exception in a source, but for assertions and attributes."""
    found = []
    built = messages(tree)

    def visit(node: ast.AST, names: list[str]) -> None:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            visit(child, [*names, child.name] if named else names)
            if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
                kind = ast.unparse(child.exc.func)
                if kind not in ("AssertionError", "AttributeError"):
                    for text in built.get(kind.removeprefix("self."), [message(child.exc)]):
                        place = f"{path}:{child.lineno + first_line - 1}"
                        found.append(Raise(place, ".".join([module, *names]), text))

    visit(tree, [])
    return found


def messages(tree: ast.AST) -> dict[str, list[str]]:
    """The texts of the exceptions that a file's functions return for others to raise, by the function's name."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    returned = {
        one.name: [
            node.value for node in ast.walk(one) if isinstance(node, ast.Return) and isinstance(node.value, ast.Call)
        ]
        for one in functions
    }
    found = {
        name: [message(call) for call in calls if ast.unparse(call.func).endswith(("Error", "_error"))]
        for name, calls in returned.items()
        if name != "row_error"
    }
    return {name: texts for name, texts in found.items() if texts}


def message(call: ast.Call) -> str:
    # The row and the field come before what is said of them.
    said = call.args[2:] if ast.unparse(call.func) == "row_error" else call.args
    return " ".join(map(template, said))


def template(node: ast.AST) -> str:
    """The text of a message with `{}` for what is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "{}"
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    return "{}"


@cache
def ours() -> list[Raise]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        if path.relative_to(SOURCE).parts[0] in ("data", "demo", "endpoint", "evaluation", "loop", "pairs"):
            continue
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found += raises(ast.parse(path.read_text()), module, f"src/mfpo_trl/{path.relative_to(SOURCE)}")
    return found


def longest(one: Raise) -> str:
    return max(one.text.split("{}"), key=len).strip()[:60].strip()


def test_no_refusal_is_forgotten():
    later = [line.partition(": ")[::2] for line in LATER]
    open_ones = [
        one
        for one in ours()
        if not one.says_nothing
        and not any(one.is_met_by(refusal.words, refusal.at) for refusal in REFUSALS)
        and not any(function == one.function and words in one.text for function, words in later)
    ]
    assert not open_ones, "\n\n".join(
        f"{one.place} raises: {one.text}\n"
        "and nothing shows that `mfpo check` finds it. Add to REFUSALS in tests/check/refusals.py\n"
        f'    Refusal({longest(one)!r}, "the fields that meet it", "a key of DATA"),\n'
        "and run this file; where no command line can show it before training, add to LATER with the reason\n"
        f'    {f"{one.function}: {longest(one)}"!r}: "why",'
        for one in open_ones
    )


def test_every_line_of_the_tables_means_one_raise():
    for refusal in REFUSALS:
        met = {one.function for one in ours() if one.is_met_by(refusal.words, refusal.at)}
        assert met, (
            f"nobody raises {refusal.words!r} {refusal.at and f'in {refusal.at} '}any more: take it out of REFUSALS"
        )
        assert len(met) == 1, f"{refusal.words!r} is said by {', '.join(sorted(met))}: add `at` to it in REFUSALS"
    for line in LATER:
        function, _, words = line.partition(": ")
        met = [one for one in ours() if one.function == function and words in one.text]
        assert met, f"nobody raises {line!r} any more: take it out of LATER"


THEIR_FUNCTIONS = (
    DPOConfig.__post_init__,
    DPOTrainer.__init__,
    DPOTrainer._compute_loss,
    ModelConfig.__post_init__,
    transformers.TrainingArguments.__post_init__,
    transformers.TrainingArguments._validate_args,
    transformers.Trainer.__init__,
    transformers.Trainer._validate_args,
    transformers.Trainer.create_accelerator_and_postprocess,
)
"""Where TRL and transformers look at what a command line gives."""


def test_no_refusal_of_theirs_is_forgotten():
    """So that a new version that refuses more is looked at."""
    found = []
    for function in THEIR_FUNCTIONS:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        found += raises(tree, function.__qualname__, function.__qualname__)
    known = [*(refusal.words for refusal in THEIRS), *THEIRS_LATER]
    for one in found:
        assert one.says_nothing or any(words in one.text for words in known), (
            f"{one.place} raises: {one.text}\nadd it to THEIRS in tests/check/refusals.py, or to THEIRS_LATER with the reason"
        )
    for words in THEIRS_LATER:
        assert any(words in one.text for one in found), (
            f"nobody raises {words!r} any more: take it out of THEIRS_LATER"
        )
