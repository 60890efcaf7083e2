"""DPOTrainer's script with another trainer: LLaVA-1.5 with text, image and anchor terms.

accelerate launch examples/drop_in.py
"""

from datasets import load_dataset

from mfpo_trl import MFPOConfig, MFPOTrainer, leaving  # was: from trl import DPOConfig, DPOTrainer


def main(model="llava-hf/llava-1.5-7b-hf", dataset="trl-lib/rlaif-v", **options):
    trainer = MFPOTrainer(  # was: DPOTrainer(
        model=model,
        args=MFPOConfig(output_dir="llava-mfpo", **options),  # was: DPOConfig(
        train_dataset=load_dataset(dataset, split="train"),
    )
    trainer.train()
    trainer.save_model()
    leaving.tear_down(trainer)


if __name__ == "__main__":
    leaving.run(main)
