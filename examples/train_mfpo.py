"""What `mfpo train` does, for a script of your own: the same recipes, fields and resuming.

accelerate launch --config_file recipes/accelerate/ddp.yaml examples/train_mfpo.py \
    --config recipes/llava-1.5/7b-mfpo-lora.yaml --gradient_accumulation_steps 1
"""

import sys

from mfpo_trl import leaving
from mfpo_trl.train.command import build, parse, train


def main(argv=None):
    script, training, model = parse(sys.argv[1:] if argv is None else argv)
    trainer = build(script, training, model)  # an MFPOTrainer: add callbacks here, or look at trainer.train_dataset
    train(trainer, script)


if __name__ == "__main__":
    leaving.run(main)
