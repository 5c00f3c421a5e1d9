#!/usr/bin/env bash
# A gate for a pipeline: gate.sh MODEL.onnx QUERY.vnnlib...
# Exit codes: 0 every property is proved; 10 some property has a counterexample; 11 some property is undecided;
# curvverify's own (2 usage, 3 unsupported, 4 unreadable, 1 a bug) where a file could not be worked on.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: gate.sh MODEL.onnx QUERY.vnnlib..." >&2; exit 2; }
model=$1
shift
code=0
for query; do
  answer=$(curvverify verify "$query" --network "$model" --timeout "${GATE_TIMEOUT:-60}") # ends here on an error
  verdict=${answer%%$'\n'*} # the first line; after `sat` comes the counterexample
  echo "$verdict  $query"
  case $verdict in
    unsat) ;;
    sat) code=10 ;;
    *) [ $code -eq 10 ] || code=11 ;;
  esac
done
exit $code
