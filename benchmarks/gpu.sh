#!/usr/bin/env bash
# benchmarks/gpu.py on a bare machine with a GPU, one that has PyTorch, transformers and accelerate and no package index.
#
#   benchmarks/gpu.sh collect WHEELS [PYTHON]             # where there is an index: our wheel and what it needs, as files
#   benchmarks/gpu.sh run WHEELS OUTPUT.json [OPTION...]  # on the machine: unpack them beside what is there, and measure
#
# WHEELS is a new folder, PYTHON the version on the machine, 3.12 by default. Nothing is installed into the machine's own environment.
set -euo pipefail

cd "$(dirname "$0")/.."
usage() { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
what=$1 wheels=$(realpath -m "$2")
python=${PYTHON:-python3}

case $what in
collect)
    version=${3:-3.12}
    mkdir "$wheels"
    platforms=()
    for name in manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014; do
        platforms+=(--platform "${name}_x86_64")
    done
    "$python" -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir "$wheels" .
    # In the tested versions. PyTorch, torchvision, transformers, accelerate, NumPy, pandas and PyArrow are the machine's own.
    "$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: --python-version "$version" \
        --implementation cp "${platforms[@]}" --constraint constraints.txt --dest "$wheels" \
        trl datasets peft bitsandbytes lazy-loader dill multiprocess xxhash rich markdown-it-py mdurl pygments networkx
    du -ch "$wheels"/*.whl | tail -n 1
    ;;
run)
    [ $# -ge 3 ] || usage
    output=$3
    shift 3
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    PYTHONPATH=$site HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 \
        "$python" benchmarks/gpu.py --output "$output" "$@"
    ;;
*)
    usage
    ;;
esac
