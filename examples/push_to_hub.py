"""Push a trained model, or an adapter, with its card to the Hub; `mfpo push llava-mfpo user/llava-mfpo --private` does the same.

hf auth login
python examples/push_to_hub.py llava-mfpo user/llava-mfpo
"""

import sys

from mfpo_trl.hub.upload import push


def main(folder="llava-mfpo", repo="user/llava-mfpo", **options):
    # Safetensors, configurations, tokenizer, processor, chat template and card; checkpoints, optimizer and pickles stay.
    print(push(folder, repo, private=True, **options))


if __name__ == "__main__":
    main(*sys.argv[1:])
