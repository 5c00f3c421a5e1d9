#!/usr/bin/env bash
# VNN-COMP: install_tool.sh v1.  Sets up the virtual environment beside this folder; needs Python 3.11+, pip and make.
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "install_tool.sh: expected version v1, got '${1:-}'" >&2; exit 1; }
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
make -C "$repository" .venv/.installed
"$repository/.venv/bin/curvverify" --version
