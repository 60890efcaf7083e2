"""From text preferences to a trained model in one script: find the key regions, then train on them.

python examples/build_and_train.py

Needs `pip install "mfpo_trl[data]"`. A second run finds the data built and goes on training from the last checkpoint.
"""

from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig

from mfpo_trl import MFPOConfig, MFPOTrainer, leaving
from mfpo_trl.checkpoints import last_complete_checkpoint
from mfpo_trl.data.build import BuildOptions, run
from mfpo_trl.train import NOT_LANGUAGE

MODEL = "llava-hf/llava-1.5-7b-hf"


def main(
    model=MODEL, dataset="openbmb/RLHF-V-Dataset", data="rlhf-v-regions", output="llava-mfpo", build=None, **options
):
    folder = run(BuildOptions(dataset=dataset, output=Path(data), **(build or {"model": model})))
    settings = {"learning_rate": 1e-5, "num_train_epochs": 3, "gradient_accumulation_steps": 4, **options}
    trainer = MFPOTrainer(
        model=model,
        args=MFPOConfig(
            output_dir=output,
            max_length=None,  # image tokens must not be cut
            precompute_ref_log_probs=True,
            model_init_kwargs={"dtype": "bfloat16"},
            **settings,
        ),
        train_dataset=load_dataset(str(folder), split="train"),
        peft_config=LoraConfig(r=64, lora_alpha=128, target_modules="all-linear", exclude_modules=NOT_LANGUAGE),
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output))
    trainer.save_model()
    leaving.tear_down(trainer)


if __name__ == "__main__":
    leaving.run(main)
