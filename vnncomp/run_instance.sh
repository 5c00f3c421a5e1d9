#!/usr/bin/env bash
# VNN-COMP: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULT_FILE TIMEOUT.  Writes one of unsat, sat (and the witness),
# unknown, timeout, error to RESULT_FILE and ends with 0: the competition reads the file only then.
set -u
[ "${1:-}" = v1 ] || { echo "run_instance.sh: expected version v1, got '${1:-}'" >&2; exit 1; }
[ $# -ge 6 ] || { echo "usage: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULT_FILE TIMEOUT" >&2; exit 1; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
curvverify=$here/../.venv/bin/curvverify
onnx=$3 vnnlib=$4 result=$5 timeout=$6

# One instance has the machine for itself: idle threads may spin, which makes two threads up to 1.9 times as fast.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-ACTIVE}"

# The tool itself ends at 95 % of the time limit.  `timeout` ends it at 98 % should it hang.
watchdog=$(awk -v t="$timeout" 'BEGIN { printf "%.2f", 0.98 * t }')
rm -f "$result"
# The consent flag: the competition's queries say float32, and our proofs are about the real numbers.
timeout --signal=TERM --kill-after=1 "$watchdog" \
  "$curvverify" verify "$vnnlib" --network "$onnx" --timeout "$timeout" --result-file "$result" \
  --real-semantics </dev/null >/dev/null &
echo $! >"${TMPDIR:-/tmp}/curvverify-vnncomp-$(id -u)" # `timeout` leads the process group of what it runs
wait $!
code=$?

if [ ! -s "$result" ]; then # hung (124), or ended without a word
  case $code in
    124) echo timeout >"$result" ;;
    *) echo error >"$result" ;;
  esac
fi
exit 0
