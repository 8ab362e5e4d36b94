#!/usr/bin/env bash
# Check the program on this machine's GPU: right results first, then speed and memory. At most 20 minutes, no network.
#   scripts/check_gpu.sh [--tiny] [--only NAME ...] [--json FILE]
# Runs on the CPU where there is no GPU, and says so. --tiny: smaller networks and fewer steps, for the tests.
# Prints a table as it goes and writes it to FILE (runs/check_gpu.json), with the output of all commands beside it (.txt).
# Exit code 1 if a result is wrong or a check did not end. PYTHON=... chooses the interpreter. Nothing is installed, no setting
# of the GPU is changed, and all other files are in a temporary folder.
set -euo pipefail
exec "${PYTHON:-python}" "$(dirname "$0")/check_gpu.py" "$@"
