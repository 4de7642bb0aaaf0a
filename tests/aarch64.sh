#!/usr/bin/env bash
# aarch64.sh: the generic path on another processor: a static build for aarch64 gives, under qemu, the stored self-test hash and
# trains a few steps to the bits of this machine's build. Slow suite; skipped where the cross compiler or qemu is missing
# (Debian: apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static). Last line: "N passed, N failed".
set -u
passed=0 failed=0
check() { local name=$1; shift; if "$@"; then passed=$((passed + 1)); echo "ok      $name"; else failed=$((failed + 1)); echo "FAILED  $name"; fi; }
if ! command -v aarch64-linux-gnu-gcc > /dev/null || ! command -v qemu-aarch64-static > /dev/null; then
  echo "skipped: aarch64-linux-gnu-gcc or qemu-aarch64-static is missing"; echo "0 passed, 0 failed"; exit 0
fi
here=${GPT:-$PWD/gpt}
cross="CC=aarch64-linux-gnu-gcc OPENMP=0 LDFLAGS=-static"
folder=$(make -s $cross print-build | tail -1)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
make -s $cross "$folder/gpt" > "$work/log" 2>&1 || { tail -5 "$work/log"; echo "0 passed, 1 failed"; exit 1; }
there="qemu-aarch64-static $PWD/$folder/gpt"
check "self-test under qemu" sh -c "$there doctor > '$work/doctor'"
awk 'BEGIN { srand(3); for (i = 0; i < 3000; i++) printf "%c", 97 + int(rand() * 20) }' > "$work/text.txt"
cd "$work" || exit 1
for family in "gpt2 --heads 2" "llama --heads 4 --kv-heads 2"; do
  flags="train text.txt --family $family --tokenizer byte --layers 1 --channels 16 --context 16 --batch 4 --steps 5 --dropout 0.1 --threads 1 --sample-every 0"
  $here $flags --out a > log 2>&1 && $there $flags --out b > log 2>&1 || tail -3 log
  check "$family: same weights" cmp a/step_00000005/model.safetensors b/step_00000005/model.safetensors
  check "$family: same moments" cmp a/step_00000005/trainer.safetensors b/step_00000005/trainer.safetensors
  rm -rf a b
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
