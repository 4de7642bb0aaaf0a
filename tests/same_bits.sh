#!/usr/bin/env bash
# same_bits.sh: one SHA-256 of the weights of 50 steps, in fp32 and in bf16, for both families, over threads, instruction sets, cuts of a
# step's batch, recomputation, and a run that is stopped and resumed. Compilers and levels are covered by `gpt doctor`, whose
# hash is stored. Last line: "N passed, N failed". Slow suite.
set -u
gpt=${GPT:-$PWD/gpt}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}   # 7 threads on few cores: see run.sh
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
passed=0 failed=0
awk 'BEGIN { srand(5); for (i = 0; i < 6000; i++) printf "%c%s", 97 + int(rand() * 26), rand() < 0.2 ? " " : ""; }' > text.txt

run() {   # environment, flags... ; prints the hash of the weights after the last step
  local environment=$1; shift
  rm -rf out
  env $environment "$gpt" train text.txt --out out --tokenizer byte --layers 2 --channels 48 --context 24 --tokens-per-step 192 --dropout 0.1 \
    --steps 50 --val-every 0 --sample-every 0 --save-every 0 "$@" > log 2>&1 || { tail -3 log; return 1; }
  sha256sum < out/step_00000050/model.safetensors | cut -c1-64
}

same() {   # name, expected, got
  if [ -n "$3" ] && [ "$2" = "$3" ]; then passed=$((passed + 1)); echo "ok      $1"; else failed=$((failed + 1)); echo "FAILED  $1: $3 instead of $2"; fi
}

for family in "gpt2 --heads 4" "llama --heads 4 --kv-heads 2" "gpt2 --heads 4 --precision bf16" "llama --heads 4 --kv-heads 2 --precision bf16 --stochastic-rounding on"; do
  base="--family $family --batch 8"
  want=$(run A=1 $base --threads 1)
  echo "$family: $want"
  for threads in 2 3 7; do same "$family, $threads threads" "$want" "$(run OMP_NUM_THREADS=$threads $base)"; done   # more than there are cores: --threads would not give them
  for batch in 1 2 4; do same "$family, micro-batches of $batch" "$want" "$(run A=1 --family $family --batch $batch --threads 2)"; done
  for recompute in light block; do same "$family, recompute $recompute" "$want" "$(run A=1 $base --recompute $recompute)"; done
  chains=$want   # matrix tiles have bits of their own in bf16
  case $family in *bf16*) if GPT_CPU=amx "$gpt" doctor > /dev/null 2>&1; then chains=$(run GPT_CPU=avx512 $base); fi ;; esac
  for set in avx512bf16 avx2 avx512 generic; do
    if GPT_CPU=$set "$gpt" doctor > /dev/null 2>&1; then same "$family, $set" "$chains" "$(run GPT_CPU=$set $base)"; else echo "        $set: not on this processor, not tested"; fi
  done
  # stopped by a signal in the middle, then resumed
  rm -rf out
  "$gpt" train text.txt --out out --tokenizer byte --layers 2 --channels 48 --context 24 --tokens-per-step 192 --dropout 0.1 --steps 50 --val-every 0 \
    --sample-every 0 --save-every 7 --log-every 1 $base > log 2>&1 & pid=$!
  while kill -0 $pid 2> /dev/null && ! grep -q '^step     1[0-9]/' log; do sleep 0.01; done
  kill -INT $pid 2> /dev/null; wait $pid; code=$?
  echo "        stopped with exit code $code after $(grep -c '^step' log) steps"
  "$gpt" train --resume out > log 2>&1
  same "$family, stopped and resumed" "$want" "$(sha256sum < out/step_00000050/model.safetensors | cut -c1-64)"
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
