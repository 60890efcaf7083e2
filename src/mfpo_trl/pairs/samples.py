"""Every answer with its claims, as they are stored beside the pairs (`samples/*.parquet`)."""

from typing import Any

THUMBNAIL = (340, 300)
"""Width and height at most of the pictures there, in pixels."""


def sample_features() -> Any:
    """The `datasets.Features` of a row: a prompt and its answers; `used` is chosen, rejected or none."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    claims = List({"phrase": text, "verdict": text})
    samples = List({"text": text, "claims": claims, "used": text})
    return Features({"id": text, "image": Image(), "prompt": text, "answer_prefix": text, "samples": samples})
