#!/usr/bin/env bash
# speed.sh: what the program owes to a machine that others use too: its threads beside a busy program, and more threads than processors; and
# what a second thread adds. Ratios of times measured beside each other, the best of several, with room for noise. Last line: "N passed, N failed". Slow suite; alone on the machine.
set -u
gpt=${GPT:-$PWD/gpt}
unset OMP_WAIT_POLICY GOMP_SPINCOUNT KMP_BLOCKTIME OMP_NUM_THREADS OMP_PROC_BIND
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"; [ -z "${busy:-}" ] || kill $busy 2> /dev/null' EXIT
cd "$work" || exit 1
passed=0 failed=0

least() {   # what, found, most: found <= most
  if awk -v f="$2" -v m="$3" 'BEGIN { exit !(f > 0 && f <= m) }'; then passed=$((passed + 1)); echo "ok      $1: $2, at most $3"
  else failed=$((failed + 1)); echo "FAILED  $1: $2, at most $3"; fi
}

# Mean milliseconds of a step of a small model, start and end of the program counted: a median would hide the rare long wait. Best of three. By training
# itself: `gpt bench` does steps again that shared their core, so that its own seconds count what the neighbour took twice.
step() {   # flags...
  local best="" start end
  for _ in 1 2 3; do
    rm -rf run
    start=$(date +%s%N)
    "$gpt" train text.txt --tokenizer byte --layers 4 --heads 4 --channels 128 --batch 12 --context 64 --tokens-per-step 768 --steps 60 \
      --val-every 0 --sample-every 0 --save-every 0 --out run "$@" > log 2>&1 || { cat log >&2; return 1; }
    end=$(date +%s%N)
    best=$(awk -v a="$start" -v b="$end" -v best="$best" 'BEGIN { ms = (b - a) / 1e6 / 60; printf "%.2f", best == "" || ms < best ? ms : best }')
  done
  echo "$best"
}
over() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

# Share of the peak that as many threads reach on registers at that moment. Of two over one: what the second thread adds, beside what it could add.
share() { "$gpt" bench "$@" --model gpt2-124M --batch 4 --context 64 --steps 5 --json | tail -1 | grep -o '"fraction_of_peak": [0-9.]*' | head -1 | cut -d' ' -f2; }

if [ "$(nproc)" -ge 2 ]; then
  for what in gemm train; do least "124M, $what: share of the peak of 1 thread over that of 2" "$(over "$(share $what --threads 1)" "$(share $what --threads 2)")" 1.11; done
fi

for i in $(seq 2000); do echo "line $i of a text that is only there to be read."; done > text.txt
quiet=$(step)
echo "        a step, quiet: $quiet ms"
least "--threads 4 times the processors, over the default" "$(over "$(step --threads $((4 * $(nproc))))" "$quiet")" 1.3
while :; do :; done & busy=$!
beside=$(step)
kill $busy; wait $busy 2> /dev/null; busy=
# Of two cores half of one is gone, and a step is cut into equal parts: 2 is the least. Threads that wait at libgomp's length: 4 to 8.
least "beside a busy program, over a quiet machine" "$(over "$beside" "$quiet")" 3.5

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
