"""LLaVA-1.5-7B on one 24 GB GPU: the base in 4 bits, an adapter on the language model.

python examples/qlora_single_gpu.py

Needs `pip install "mfpo_trl[quantization]"`. The recipe with the same settings: recipes/llava-1.5/7b-mfpo-qlora.yaml.
"""

from datasets import load_dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from mfpo_trl import MFPOConfig, MFPOTrainer, leaving
from mfpo_trl.train import NOT_LANGUAGE


def main(model="llava-hf/llava-1.5-7b-hf", dataset="trl-lib/rlaif-v", **options):
    settings = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 32,
        "learning_rate": 5e-5,  # TRL holds the adapter of a 4-bit model in bfloat16, which rounds smaller steps away
        "precompute_ref_log_probs": True,  # the reference runs once, before training
        "max_length": None,  # image tokens must not be cut
        **options,
    }
    trainer = MFPOTrainer(
        model=model,
        args=MFPOConfig(output_dir="llava-mfpo-qlora", model_init_kwargs={"dtype": "bfloat16"}, **settings),
        train_dataset=load_dataset(dataset, split="train"),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16",
        ),
        peft_config=LoraConfig(r=64, lora_alpha=128, target_modules="all-linear", exclude_modules=NOT_LANGUAGE),
    )
    trainer.train()
    trainer.save_model()
    leaving.tear_down(trainer)


if __name__ == "__main__":
    leaving.run(main)
