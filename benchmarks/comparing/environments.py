"""A virtual environment for each of the other tools, kept in a cache folder."""

import importlib.metadata
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """What pip is asked for.

    Args:
        package: the tool, with its version.
        without: names of requirements that are left out where this machine's PyTorch has no CUDA, because they have no build
            for it.
        needs: what is then installed in place of all requirements.
    """

    package: str
    without: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


ENVIRONMENTS = {
    "ms-swift": Environment("ms-swift==4.6.0"),
    "llamafactory": Environment(
        "llamafactory==0.9.5",
        without=("torchvision", "torchaudio"),
        # Its own bounds, without what its web page and its sounds and videos ask for.
        needs=(
            "accelerate<=1.11.0,>=1.3.0",
            "datasets<=4.0.0,>=2.16.0",
            "peft<=0.18.1,>=0.18.0",
            "transformers!=4.52.0,!=4.57.0,<=5.6.0,>=4.55.0",
            "trl<=0.24.0,>=0.18.0",
            "tyro<0.9.0",
            "einops",
            "fire",
            "hf-transfer",
            "matplotlib",
            "modelscope",
            "omegaconf",
            "pandas",
            "protobuf",
            "pydantic",
            "pyyaml",
            "scipy",
            "sentencepiece",
            "tiktoken",
        ),
    ),
}


def commands(environment: Environment, torch: str, cuda: bool) -> list[list[str]]:
    """Arguments of pip, one list a call; PyTorch goes first and alone, in the version of the present environment."""
    pinned = f"torch=={torch.partition('+')[0]}"
    if cuda or not environment.without:
        return [[pinned], [environment.package, pinned]]
    return [[pinned], ["--no-deps", environment.package], [*environment.needs, pinned]]


def interpreter(name: str, cache: Path) -> tuple[Path, str]:
    """The Python of a tool's environment, which is made where it is not there yet; and what it had to do without.

    Raises:
        RuntimeError: pip could not install it.
    """
    import torch

    environment, folder = ENVIRONMENTS[name], cache / name
    cuda = torch.version.cuda is not None
    calls = commands(environment, importlib.metadata.version("torch"), cuda)
    python, done = folder / "bin" / "python", folder / "installed.json"
    without = "" if cuda else ", ".join(environment.without)
    if done.exists() and json.loads(done.read_text(encoding="utf-8")) == calls:
        return python, without
    print(f"{name}: installing {environment.package} in {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    for call in calls:
        result = subprocess.run(
            [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *call],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"pip install {' '.join(call)}: {result.stderr.strip().splitlines()[-1]}")
    done.write_text(json.dumps(calls), encoding="utf-8")
    return python, without
