"""`mfpo generate`: the answers of a straight-line loop over transformers, whatever the batches, processes and interruptions."""

import base64
import json
import shutil

import families
import launches
import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from stand_in_chat import StandInChat, text_of
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, GenerationConfig

from mfpo_trl.evaluation import run_generate
from mfpo_trl.evaluation.generation.generate import Decoding, answer, encode
from mfpo_trl.evaluation.generation.own_prompts import read_own
from mfpo_trl.evaluation.generation.prompts import Prompt, one_turn

TOKENS = 7
ENDS = [2, 228, 147, 114]
DESCRIBED, ASKED = 5, 6
SUFFIX = "\nAnswer with one word, Yes or No."
LORA = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")


def question(n):
    return "Is the cat blue?" + " Really?" * (n % 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, an adapter on it, and the files of AMBER with a few questions."""
    folder = tmp_path_factory.mktemp("generate")
    tiny.save_pretrained(folder / "model")
    # Ends that come now and then; the sampling and the penalty are what published models bring.
    ends = GenerationConfig(eos_token_id=ENDS, do_sample=True, temperature=0.3, repetition_penalty=1.5, pad_token_id=0)
    ends.save_pretrained(folder / "model")
    (folder / "amber" / "image").mkdir(parents=True)
    for n in range(1, 6):
        tiny.picture(n, 30 + 5 * n, 32).save(folder / "amber" / "image" / f"AMBER_{n}.jpg")
    described = [
        {"id": n, "image": f"AMBER_{n}.jpg", "query": "Describe this image."} for n in range(1, 1 + DESCRIBED)
    ]
    asked = [{"id": 1000 + n, "image": f"AMBER_{1 + n % 5}.jpg", "query": question(n)} for n in range(ASKED)]
    (folder / "amber" / "query_generative.json").write_text(json.dumps(described))
    (folder / "amber" / "query_discriminative.json").write_text(json.dumps(asked))
    tiny.save_pretrained(folder / "other", seed=1)
    torch.manual_seed(1)
    lora = get_peft_model(tiny.model(), LORA)
    lora.peft_config["default"].base_model_name_or_path = str(folder / "model")
    lora.save_pretrained(folder / "adapter")
    return folder


def run(folder, output, *options, model="model"):
    path = folder / output
    asked = ["--benchmark", "amber", "--data", folder / "amber", "--max-new-tokens", TOKENS]
    status = run_generate([*map(str, ["--model", folder / model, *asked, "--output", path, *options])])
    return path if status == 0 else None


def one_by_one(folder, model, **options):
    """What transformers writes, a prompt at a time."""
    model.eval()
    own, found = tiny.processor(), {}
    for part, more in (("generative", ""), ("discriminative", SUFFIX)):
        for row in json.loads((folder / "amber" / f"query_{part}.json").read_text()):
            picture = {"type": "image", "image": Image.open(folder / "amber" / "image" / row["image"]).convert("RGB")}
            turn = {"role": "user", "content": [picture, {"type": "text", "text": row["query"] + more}]}
            inputs = own.apply_chat_template(
                [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
            ends = {"eos_token_id": ENDS, "pad_token_id": 0}
            base = model.get_base_model() if isinstance(model, PeftModel) else model
            base.generation_config = GenerationConfig(max_new_tokens=TOKENS, **ends, **options)
            new = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
            found[row["id"]] = own.decode(new, skip_special_tokens=True).strip()
    return found


def answers(path):
    return {row["id"]: row["response"] for row in map(json.loads, path.read_text().splitlines())}


@pytest.fixture(scope="module")
def expected(folder):
    return one_by_one(folder, AutoModelForImageTextToText.from_pretrained(folder / "model"))


@pytest.fixture(scope="module")
def whole(folder):
    return run(folder, "whole.jsonl", "--batch-size", 1)


def test_the_answers_are_those_of_a_plain_loop(folder, expected, whole):
    """In the order of the files, some of them ended early, in batches of any size."""
    assert answers(whole) == expected and list(answers(whole)) == list(expected)
    assert len({len(text) for text in expected.values()}) > 1
    for size in (4, 100):
        assert run(folder, f"{size}.jsonl", "--batch-size", size).read_bytes() == whole.read_bytes()


def test_beams(folder, expected):
    model = AutoModelForImageTextToText.from_pretrained(folder / "model")
    beams = one_by_one(folder, model, num_beams=3, do_sample=False)
    assert answers(run(folder, "beams.jsonl", "--num-beams", 3)) == beams != expected


def test_an_adapter_stays_unmerged(folder, expected, monkeypatch):
    """The model with --adapter, and the adapter as the model, whose base it names."""
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", None)
    base = AutoModelForImageTextToText.from_pretrained(folder / "model")
    with_it = one_by_one(folder, PeftModel.from_pretrained(base, folder / "adapter"))
    assert answers(run(folder, "adapter.jsonl", "--adapter", folder / "adapter")) == with_it != expected
    assert answers(run(folder, "adapter-2.jsonl", model="adapter")) == with_it


def test_four_bits(folder, expected):
    tiny.allow_four_bits()
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", quantization_config=bits)
    found = answers(run(folder, "four.jsonl", "--load-in-4bit", "--batch-size", 8))
    assert found == one_by_one(folder, model) != expected


# Interrupted


def begun(folder, whole, name, lines, cut=b"", other=()):
    """The files that a run leaves that was killed behind so many answers; `other` are those of a second process."""
    path, all_ = folder / name, whole.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(all_[:lines]) + cut)
    shutil.copy(f"{whole}.settings.json", f"{path}.settings.json")
    if other:
        path.with_name(f"{name}.process-1").write_bytes(b"".join(all_[n] for n in other) + cut)
    return path


# Lines of the first process  what follows them    lines of another one
KILLED = [
    (0, b"", ()),
    (3, b"", ()),
    (3, b'{"id": 4, "respo', ()),
    (3, b'{"id": 4, "response": "cut behind the last brace"}', ()),
    (3, "é".encode()[:1], ()),
    (3, b'{"id"', (7, 8)),
    (0, b"\n"[:0], (7,)),
    (11, b"", ()),
]


@pytest.mark.parametrize("case", range(len(KILLED)))
def test_a_killed_run_goes_on(case, folder, whole, monkeypatch):
    """And asks for nothing that is there."""
    lines, cut, other = KILLED[case]
    path = begun(folder, whole, f"killed-{case}.jsonl", lines, cut, other)
    asked = []
    model = type(tiny.model())
    before = model.generate
    monkeypatch.setattr(model, "generate", lambda self, **inputs: asked.append(1) or before(self, **inputs))
    assert run(folder, path.name, "--batch-size", 1).read_bytes() == whole.read_bytes()
    assert len(asked) == DESCRIBED + ASKED - lines - len(other)
    assert not list(folder.glob(f"{path.name}.process-*")) and not list(folder.glob(".*.unfinished"))


def test_each_batch_is_there_before_the_next(folder, monkeypatch):
    """Whatever kills the process, in whichever batch."""
    model = type(tiny.model())
    before, there = model.generate, []

    def generate(self, **inputs):
        path = folder / "stopped.jsonl"
        there.append(path.read_bytes().count(b"\n") if path.exists() else 0)
        if len(there) == 3:
            raise KeyboardInterrupt
        return before(self, **inputs)

    monkeypatch.setattr(model, "generate", generate)
    assert run(folder, "stopped.jsonl", "--batch-size", 4) is None
    assert there == [0, 4, 8] and (folder / "stopped.jsonl").read_bytes().count(b"\n") == 8


def test_two_processes(folder, whole):
    """That go on where two were killed; the file is the same to the byte."""
    path = begun(folder, whole, "two.jsonl", 2, b'{"id"', (6, 9))
    command = ["-m", "accelerate.commands.launch", "--config_file", launches.CONFIGS / "ddp.yaml", *launches.OVERRIDES]
    command += ["--mixed_precision", "no", "-m", "mfpo_trl.cli", "generate", "--model", folder / "model"]
    command += ["--benchmark", "amber", "--data", folder / "amber", "--max-new-tokens", TOKENS, "--batch-size", 4]
    (done,) = launches.run_warm([*command, "--output", path])
    assert done.returncode == 0, done.stderr[-3000:]
    assert path.read_bytes() == whole.read_bytes() and not list(folder.glob("two.jsonl.process-*"))
    assert done.stdout.count("11 answers, 7 of them new by 2 processes") == 1


OTHER = {
    "max_new_tokens 7, now 8": ["--max-new-tokens", "8"],
    "num_beams 1, now 2": ["--num-beams", "2"],
    "parts [], now ['generative']": ["--parts", "generative"],
    "rows None, now 4": ["--rows", "4"],
    "prompt None, now 'What?'": ["--prompt", "What?"],
    "suffix None, now ''": ["--suffix", ""],
    "dtype 'auto', now 'bfloat16'": ["--dtype", "bfloat16"],
    "load_in_4bit False, now True": ["--load-in-4bit"],
    "adapter None, now {'files': 1": ["--adapter", "ADAPTER"],
    "model {'files': 1": ["--model", "OTHER"],
}


@pytest.mark.parametrize("words", OTHER)
def test_other_settings_are_refused(words, folder, whole, capsys):
    names = {"ADAPTER": str(folder / "adapter"), "OTHER": str(folder / "other")}
    before = whole.read_bytes()
    assert run(folder, whole.name, *(names.get(own, own) for own in OTHER[words])) is None
    said = capsys.readouterr().err
    assert "was begun with other settings" in said and words in said and said.count("\n") == 1
    assert whole.read_bytes() == before


def test_what_may_change(folder, whole, tmp_path):
    """The batches, and where the model lies."""
    shutil.copytree(folder / "model", tmp_path / "elsewhere")
    assert run(folder, whole.name, "--batch-size", "3", "--model", tmp_path / "elsewhere")


SPOILT = {
    "says what made it, is not": lambda path: path.with_name(f"{path.name}.settings.json").unlink(),
    "cannot be read; name another": lambda path: path.with_name(f"{path.name}.settings.json").write_text("{"),
    "line 2 is no answer": lambda path: path.write_bytes(path.read_bytes().replace(b'"response"', b'"text"', 2)),
    "line 1 is no answer": lambda path: path.write_text("\n"),
    "answers none of the prompts": lambda path: path.write_bytes(path.read_bytes().replace(b'"id": 2', b'"id": 77')),
}


@pytest.mark.parametrize("words", SPOILT)
def test_files_that_are_none(words, folder, whole, capsys):
    path = begun(folder, whole, "spoilt.jsonl", 4)
    if "line 2" in words:
        path.write_bytes(path.read_bytes().replace(b"response", b"respons\x65", 1))
    SPOILT[words](path)
    if words.startswith("line 2"):
        path.write_bytes(path.read_bytes().replace(b'"text"', b'"response"', 1))
    assert run(folder, path.name) is None
    assert words in capsys.readouterr().err


# Who answers


def test_pickles_are_refused(folder, capsys):
    for name in ("model", "adapter"):
        own = "adapter_model" if name == "adapter" else "model"
        bad = folder / f"pickled-{name}"
        shutil.copytree(folder / name, bad)
        weights = load_file(bad / f"{own}.safetensors")
        torch.save(weights, bad / ("adapter_model.bin" if name == "adapter" else "pytorch_model.bin"))
        (bad / f"{own}.safetensors").unlink()
        given = ["--adapter", bad] if name == "adapter" else ["--model", bad]
        assert run(folder, f"{name}-pickled.jsonl", *given) is None
        assert "pickles only" in capsys.readouterr().err


def test_a_server(folder, whole):
    """The same rows, also where it fails on the way and where it goes away; pictures go as the bytes of their files."""
    asked = ["--benchmark", "amber", "--data", str(folder / "amber"), "--max-new-tokens", str(TOKENS)]
    path = folder / "served.jsonl"
    with StandInChat(answer=lambda body: f" to {text_of(body)} ") as server:
        given = ["--endpoint", server.url, "--served-model", "m", "--concurrency", "1", *asked, "--output", str(path)]
        server.faults[question(2) + SUFFIX] = ["429", "400"]
        assert run_generate(given) == 1 and 0 < len(answers(path)) < DESCRIBED + ASKED
        there = len(server.seen)
        assert run_generate(given) == 0
    assert list(answers(path)) == list(answers(whole))
    assert answers(path)[1000] == f"to {question(0)}{SUFFIX}" and answers(path)[1] == "to Describe this image."
    sent = {text_of(one["body"]): one["body"] for one in server.seen}
    body = sent[question(0) + SUFFIX]
    assert body["model"] == "m" and body["max_tokens"] == TOKENS and body["temperature"] == 0
    urls = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    bytes_ = {path.read_bytes() for path in (folder / "amber" / "image").iterdir()}
    assert len(urls) == 1 and base64.b64decode(urls[0].partition(",")[2]) in bytes_
    assert len(server.seen) - there < DESCRIBED + ASKED


# Rows of a list, its image and a few more turns, read from every form of file


TURNS = [
    {"role": "user", "content": "what is it?"},
    {"role": "assistant", "content": "a cat"},
    {"role": "user", "content": "and what else?"},
]


def own_rows():
    picture = tiny.picture(1)
    return [
        {"image_id": 7, "prompt": [{"role": "user", "content": "what is in the image?"}], "images": [picture]},
        {"image_id": 8, "prompt": TURNS, "images": [tiny.picture(2)]},
        {"image_id": 9, "prompt": [{"role": "user", "content": "two of them?"}], "images": [picture, tiny.picture(3)]},
        {"image_id": 10, "prompt": [{"role": "user", "content": "none?"}], "images": []},
    ]


def test_prompts_of_ones_own(folder, tmp_path):
    """Several turns, several pictures and none, in one batch's size; each as alone."""
    Dataset.from_list(own_rows()).to_parquet(tmp_path / "rows.parquet")
    asked = ["--model", str(folder / "model"), "--dataset", str(tmp_path / "rows.parquet"), "--max-new-tokens", "5"]
    for size in ("1", "4"):
        assert run_generate([*asked, "--output", str(tmp_path / f"{size}.jsonl"), "--batch-size", size]) == 0
    rows = [json.loads(line) for line in (tmp_path / "4.jsonl").read_text().splitlines()]
    assert [(row["image_id"], row["prompt"]) for row in rows] == [
        (7, "what is in the image?"),
        (8, "and what else?"),
        (9, "two of them?"),
        (10, "none?"),
    ]
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "4.jsonl").read_bytes()
    prompts = read_own(str(tmp_path / "rows.parquet"))
    assert [own.shown for own in prompts] == [1, 1, 2, 0]
    assert [message["role"] for message in prompts[1].messages] == ["user", "assistant", "user"]
    assert prompts[1].messages[0]["content"][0]["type"] == "image"


FORMS = {
    "a question beside a path": ({"question": "q", "image": "a.png"}, {"id": 0, "prompt": "q"}, 1),
    "an id of its own": ({"id": "x", "prompt": "q", "images": ["a.png", "a.png"]}, {"id": "x", "prompt": "q"}, 2),
    "a place for the picture": ({"prompt": "see <image> there", "image": "a.png"}, {"id": 0}, 1),
    "without a picture": ({"question_id": 3, "prompt": "q"}, {"question_id": 3, "prompt": "q"}, 0),
    "an answer beside it": ({"prompt": "q", "chosen": "a", "rejected": "b", "image_path": "a.png"}, {"id": 0}, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows(form, tmp_path):
    row, written, pictures = FORMS[form]
    tiny.picture(1).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (prompt,) = read_own(str(tmp_path / "rows.jsonl"))
    assert written.items() <= dict(prompt.row).items() and prompt.shown == pictures == len(prompt.pictures())
    (prompt,) = read_own(str(tmp_path / "rows.jsonl"), question="instead?", behind="In a word.")
    assert prompt.text == "instead?\nIn a word."


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "image": "gone.png"}, "row 0: 'gone.png' is not a file in"),
        ({"prompt": "q", "image": "../secret.png"}, "row 0: '../secret.png' lies outside of"),
        ({"prompt": "q", "image": "http://x/y.png"}, "row 0: 'http://x/y.png' is a URL"),
        ({"image": None}, "row 0: has no 'prompt' or 'question', only 'image'"),
        ({"image": None, "prompt": ""}, "row 0: field 'prompt' is empty; ask the same of every row"),
        (
            {"prompt": "<image> and <image>"},
            "row 0: field 'prompt' has 2 place(s) for an image, and the row has 0 image(s)",
        ),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "row 0: its prompt ends with a message of 'assistant'"),
        ([1], "row 0: found a list"),
    ],
)
def test_rows_that_cannot_be_used(row, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="row 0") as error:
        read_own(str(tmp_path / "rows.jsonl"))
    assert words in str(error.value)


def test_equal_ids_and_broken_pictures(tmp_path, folder, capsys):
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "prompt": "q"}\n' * 2)
    given = ["--model", str(folder / "model"), "--dataset", str(tmp_path / "rows.jsonl")]
    assert run_generate([*given, "--output", str(tmp_path / "a.jsonl")]) == 1
    assert "two prompts have the same id {'id': 1, 'prompt': 'q'}" in capsys.readouterr().err
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "prompt": "q", "image": "bad.png"}\n')
    assert run_generate([*given, "--output", str(tmp_path / "b.jsonl")]) == 1
    assert "the picture of the prompt {'id': 1, 'prompt': 'q'} cannot be read" in capsys.readouterr().err


# Families


@pytest.mark.parametrize("template", [tiny.LLAVA_TEMPLATE, "<s>" + tiny.LLAVA_TEMPLATE])
def test_one_beginning(template):
    """By the template or by the tokenizer, as in transformers' own chats: once."""
    own = tiny.processor(template)
    begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", own.tokenizer.bos_token_id)])
    own.tokenizer.backend_tokenizer.post_processor = begin
    messages = one_turn("what is it?", 1)
    turn = {"role": "user", "content": [{"type": "image", "image": tiny.picture(1)}, messages[0]["content"][1]]}
    theirs = own.apply_chat_template([turn], add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    ours = encode(own, [Prompt({}, messages, lambda: [tiny.picture(1)])])["input_ids"][0].tolist()
    assert ours == list(theirs[0]) and ours.count(own.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("family", families.FAMILIES)
def test_padding_changes_no_answer(family):
    """Prompts of several lengths and pictures of several sizes, in one batch and alone."""
    model, processor = families.FAMILIES[family]()
    sizes = [(28, 28), (56, 28), (60, 90)]
    pictures = [tiny.picture(n, *size) for n, size in enumerate(sizes)]
    prompts = [
        Prompt({"id": n}, one_turn("what is in the image?" * (n + 1), 1), lambda own=own: [own])
        for n, own in enumerate(pictures)
    ]
    found = []
    for size in (1, 3):
        batches = answer(model, processor, prompts, Decoding(4), size)
        found.append({prompt.row["id"]: text for batch in batches for prompt, text in batch})
    # That tiny PaliGemma says the same to all.
    assert found[0] == found[1] and (len(set(found[0].values())) > 1 or family == "paligemma")
