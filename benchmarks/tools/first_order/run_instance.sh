#!/usr/bin/env bash
# A second tool for the portfolio: curvverify's own first-order configuration (linear bounds, nothing coupled, nothing
# split), called as the competition calls a tool: v1 CATEGORY ONNX VNNLIB RESULT_FILE TIMEOUT.
set -u
exec "${CURVVERIFY:-curvverify}" verify "$4" --network "$3" --timeout "$6" --result-file "$5" --real-semantics \
  --no-coupling --no-branch --threads 1 >/dev/null
