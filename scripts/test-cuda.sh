#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one. Ends with a line "N passed, N failed" and leaves its log in
# .out/cuda/<parts>.log. Exit code 0 only if nothing failed.
#
#   scripts/test-cuda.sh                      all parts, about half an hour
#   scripts/test-cuda.sh ops models           some, for short slots
#
# Parts: build      the addon and the backend for the GPU found here (needs npm, CMake and CUDA 13's nvcc)
#        ops        every op beside the reference, in f32 and with bf16 activations
#        models     whole models beside the CPU: texts, states, training, checkpoints, memory that ends
#        suite      the whole test suite with the GPU as its device
#        memcheck racecheck initcheck synccheck
#                   compute-sanitizer over a part of the ops' cases and a small model (all four: sanitize)
#
# MAMBABYTE_TEST_EVERY=n  sanitizers take every n-th case of the table; default 16
# JOBS=n                  processes at a time; default about half of the cores
# NODE, SANITIZER         which node and which compute-sanitizer
set -uo pipefail
cd "$(dirname "$0")/.."
node=${NODE:-node}
sanitizer=${SANITIZER:-compute-sanitizer}
jobs=${JOBS:-$(($(nproc) / 2 + 1))}
out=$PWD/.out/cuda
parts=("$@")
((${#parts[@]} == 0)) && parts=(build ops models suite sanitize)
mkdir -p "$out"
log=$out/$(IFS=-; echo "${parts[*]}").log
exec > >(tee "$log") 2>&1
passed=0
failed=0

ava() { "$node" node_modules/ava/entrypoints/cli.mjs "$@"; }

# The number in ava's last "N tests passed" (or failed) lines; 0 if there is none.
count() {
  sed -E 's/\x1b\[[0-9;]*m//g' "$2" | grep -E "^ *[0-9]+ (tests?|uncaught exceptions?|unhandled rejections?) ?($1)?$" |
    grep -E "$1" | grep -oE '[0-9]+' | awk '{ sum += $1 } END { print sum + 0 }'
}

# tally <name> <log> <exit code> <start>: adds a run of ava to the counts.
tally() {
  local ok bad
  ok=$(count passed "$2")
  bad=$(count 'failed|remained pending' "$2")
  if (($3 != 0 && bad == 0)); then bad=1; fi # it did not get as far as counting
  passed=$((passed + ok))
  failed=$((failed + bad))
  echo "-- $1: $ok passed, $bad failed in $((SECONDS - $4)) s"
}

# tests <name> <arguments of ava ...>
tests() {
  local name=$1 start=$SECONDS code
  shift
  echo && echo "== $name"
  ava "$@" 2>&1 | tee "$out/$name.part"
  code=${PIPESTATUS[0]}
  tally "$name" "$out/$name.part" "$code" "$start"
}

step() {
  local name=$1 start=$SECONDS
  shift
  echo && echo "== $name: $*"
  if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "-- $name: FAILED"; fi
  echo "-- $name: $((SECONDS - start)) s"
}

# Kernels whose reports by racecheck do not count, because it does not know how they keep order: decode() by mbarriers that
# bulk and asynchronous copies arrive at (cuda/decode/ring.cuh), chain::scan() by a circle of named barriers, which only
# together order the reads of a state before its next writes (cuda/scan_chain.cuh).
unknown_order='mb::cuda::(decode::decode|chain::scan)<'

# sanitized <tool> <name> <command ...>: a line for what is clean, the report for what is not.
sanitized() {
  local tool=$1 name=$2 code report="$out/$1-$2.part" known
  shift 2
  timeout 900 "$sanitizer" --tool "$tool" --target-processes all --error-exitcode 9 "$@" >"$report" 2>&1
  code=$?
  known=$(grep 'Race reported' "$report" | grep -cE "$unknown_order")
  if ((code == 0)) && grep -q 'ERROR SUMMARY: 0 errors\|RACECHECK SUMMARY: 0 hazards' "$report"; then
    echo "clean: $tool $name"
  elif ((code == 9 && known > 0 && known == $(grep -c 'Race reported' "$report"))) && ! grep -qE '✘|tests? failed' "$report"; then
    echo "clean: $tool $name, but for $known reports on kernels whose order it does not know"
  else
    echo "NOT CLEAN ($code): $tool $name"
    grep -vE '^\s*$' "$report" | cut -c1-240 | head -60
    return 1
  fi
}
export -f sanitized
export out sanitizer node unknown_order

ops() {
  "$node" --import=tsx -e "import('./lib/graph.ts').then((m) => console.log([...m.opTable().keys()].join('\n')))"
}

# Ops in processes of their own, several at a time: a fault of one leaves the others alone.
parity() {
  local op start=$SECONDS
  echo && echo "== ops"
  parity_of() {
    "$node" node_modules/ava/entrypoints/cli.mjs test/ops/parity.test.ts --match "$1 on cuda*" \
      --match "$1 with bf16*" >"$out/ops-$1.part" 2>&1
    echo $? >"$out/ops-$1.code"
  }
  export -f parity_of
  ops | xargs -P "$jobs" -I{} bash -c 'parity_of {}'
  for op in $(ops); do
    grep -vE '^\s*$|^npm warn|^  ─$|tests? passed$' "$out/ops-$op.part"
    tally "$op" "$out/ops-$op.part" "$(cat "$out/ops-$op.code")" "$start"
  done
}

sanitize() {
  local tool=$1 start=$SECONDS results="$out/$1.results"
  echo && echo "== $tool"
  export MAMBABYTE_TEST_EVERY=${MAMBABYTE_TEST_EVERY:-16}
  {
    for what in train read decode; do
      echo "sanitized $tool model-$what $node --import=tsx test/support/cuda-smoke.ts $what"
    done
    for op in $(ops); do
      echo "sanitized $tool $op $node node_modules/ava/entrypoints/cli.mjs test/ops/parity.test.ts --timeout=800s" \
        "--match '$op on cuda*' --match '$op with bf16*'"
    done
  } | xargs -P "$jobs" -d '\n' -I{} bash -c '{}' | tee "$results"
  passed=$((passed + $(grep -c '^clean:' "$results")))
  failed=$((failed + $(grep -c '^NOT CLEAN' "$results")))
  echo "-- $tool: $((SECONDS - start)) s"
}

# Says why there is no GPU, if there is none.
gpu() {
  "$node" --import=tsx -e "import('./lib/device.ts').then(({ Device, deviceLabel }) => console.log(deviceLabel(Device.open('cuda').info))).catch((e) => { console.log(e.message); process.exit(1); })"
}

part() {
  if [[ $1 != build ]] && ! gpu; then
    echo "-- $1: FAILED, it needs a GPU"
    failed=$((failed + 1))
    return
  fi
  case $1 in
    build) step build env MAMBABYTE_CMAKE="${MAMBABYTE_CMAKE:-MB_CUDA=ON}" npm run --silent build ;;
    ops)
      parity
      tests invariants test/ops/invariants.test.ts test/ops/expand.test.ts --match '*cuda*'
      ;;
    models)
      MAMBABYTE_TEST_FILL=1 tests models test/cuda.test.ts
      MAMBABYTE_TEST_DEVICE=cuda tests fixtures test/models/mamba.test.ts
      ;;
    suite) MAMBABYTE_TEST_DEVICE=cuda tests suite --concurrency "$jobs" ;;
    memcheck | racecheck | initcheck | synccheck) sanitize "$1" ;;
    sanitize) for tool in memcheck racecheck initcheck synccheck; do sanitize "$tool"; done ;;
    *) echo "test-cuda: expected a part to be one of build, ops, models, suite, sanitize, memcheck, racecheck, initcheck, synccheck, got '$1'" && failed=$((failed + 1)) ;;
  esac
}

date -u +%F
git rev-parse --short HEAD 2>/dev/null || true
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
for p in "${parts[@]}"; do part "$p"; done
echo
echo "$passed passed, $failed failed"
exit $((failed > 0))
