#!/usr/bin/env bash
# VNN-COMP: prepare_instance.sh v1 CATEGORY ONNX VNNLIB.  Checks that the files are there, ends what an earlier
# instance left running, and reads the libraries once, so that the measured run finds them in the file cache.
set -u
[ "${1:-}" = v1 ] || { echo "prepare_instance.sh: expected version v1, got '${1:-}'" >&2; exit 1; }
[ $# -ge 4 ] || { echo "usage: prepare_instance.sh v1 CATEGORY ONNX VNNLIB" >&2; exit 1; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
onnx=$3 vnnlib=$4

case $onnx in
  \[*) ;; # several networks: a Python list, for run_instance.sh to answer
  *) [ -f "$onnx" ] || [ -f "$onnx.gz" ] || { echo "prepare_instance.sh: no file '$onnx'" >&2; exit 1; } ;;
esac
[ -f "$vnnlib" ] || [ -f "$vnnlib.gz" ] || { echo "prepare_instance.sh: no file '$vnnlib'" >&2; exit 1; }

# run_instance.sh notes the process group it starts.  Numbers are reused: only processes that are ours are ended.
"$here/../.venv/bin/python" - "${TMPDIR:-/tmp}/curvverify-vnncomp-$(id -u)" <<'PYTHON'
import contextlib, os, pathlib, sys

import onnxruntime, psutil
import curvverify.verification.driver

note = pathlib.Path(sys.argv[1])
if note.is_file():
    group = int(note.read_text().strip() or 0)
    note.unlink()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if group and os.getpgid(process.pid) == group and any("curvverify" in part for part in process.cmdline()):
                process.kill()
PYTHON
