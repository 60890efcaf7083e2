"""What the card says, and what it must not say."""

import pytest
import tiny
from datasets import DatasetInfo
from huggingface_hub import ModelCard

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.model_card import describe_dataset, hub_dataset


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    args = MFPOConfig(
        output_dir=str(folder / "my-model"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        image_loss_weight=0.5,
        image_beta=0.2,
        corruption_kwargs={"step": 700},
        hub_token="hf_secret",
    )
    model = tiny.model()
    model.config._name_or_path = "llava-hf/llava-1.5-7b-hf"
    data = tiny.dataset(4)
    data.info.download_checksums = {"hf://datasets/openbmb/RLHF-V-Dataset@abc/data.parquet": {}}
    trainer = MFPOTrainer(
        model=model, ref_model=tiny.model(), args=args, train_dataset=data, processing_class=tiny.processor()
    )
    trainer.create_model_card(model_name="My model", tags="extra")
    return (folder / "my-model" / "README.md").read_text()


def test_metadata(card):
    data = ModelCard(card).data
    assert {"mfpo", "dpo", "trl", "extra"} <= set(data.tags)
    assert data.base_model == "llava-hf/llava-1.5-7b-hf" and data.datasets == ["openbmb/RLHF-V-Dataset"]
    assert data.library_name == "transformers" and data.pipeline_tag == "image-text-to-text"


@pytest.mark.parametrize(
    "words",
    [
        "# My model",
        "[llava-hf/llava-1.5-7b-hf](https://huggingface.co/llava-hf/llava-1.5-7b-hf)",
        "[openbmb/RLHF-V-Dataset](https://huggingface.co/datasets/openbmb/RLHF-V-Dataset) (4 rows)",
        "| image | 0.5 |",
        "`beta` is 0.1 in the text term and 0.2 in the image and anchor terms",
        "`diffusion`, step = 700, schedule = vcd_sigmoid, inside the row's key regions, or the whole image",
        "- trl: 1.16.0",
        "- mfpo_trl: 0.1.0",
        "Modality-Fair Preference Optimization for Trustworthy MLLM Alignment",
        "mDPO: Conditional Preference Optimization",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "vonwerra2020trl",
    ],
)
def test_the_card_tells(card, words):
    assert words in card


def test_the_card_keeps_secrets_and_is_whole(card, tmp_path_factory):
    assert "hf_secret" not in card and str(tmp_path_factory.getbasetemp()) not in card
    assert "{" not in card.split("```")[0]


def test_a_local_data_set_and_terms_that_were_not_trained(tmp_path):
    (tmp_path / "secret.parquet").touch()
    args = MFPOConfig(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", loss_type="ipo")
    data = tiny.dataset(4).remove_columns("images")
    trainer = MFPOTrainer(
        model=tiny.model(), ref_model=tiny.model(), args=args, train_dataset=data, processing_class=tiny.processor()
    )
    trainer.create_model_card(dataset_name=str(tmp_path / "secret.parquet"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "secret" not in card
    assert "| image | 0 |" in card and "None: the image term has no weight, or the data set no image." in card
    assert "| text (DPO, `ipo`) | 1.0 | TRL's loss of that name |" in card


def test_data_sets_without_a_name():
    data = tiny.dataset(3)
    assert hub_dataset(data) is None and hub_dataset(object()) is None
    assert describe_dataset(data, None) == "a data set without a name (3 rows)"
    assert describe_dataset(type("D", (), {"info": DatasetInfo(dataset_name="own")})(), None) == "`own`"
