#!/bin/sh
# What only a GPU can show: scripts/gpu_run.md says how, and scripts/gpu_check.py does it.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
