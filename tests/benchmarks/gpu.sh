#!/usr/bin/env bash
# The optimizers on one GPU in at most eight minutes, one JSON out; see gpu.py for the sections and options.
#
#   bash tests/benchmarks/gpu.sh --output gpu.json                  what to run where a GPU is to be had
#   bash tests/benchmarks/gpu.sh --output gpu.json --only steps     one section again
#   bash tests/benchmarks/gpu.sh --dry-run                          the same code on the CPU at small shapes
#
# PYTHON names the interpreter (default python3). It needs torch; sections that need more say so where it is missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" "$here/gpu.py" "$@"
