#!/usr/bin/env bash
# nccl.sh [FOLDER]: NVIDIA's own NCCL, from the Python registry (into build/nccl; or FOLDER, where include/nccl.h and lib/libnccl.so.2 lie), on a machine that needs no GPU:
#   its header against ours (nccl_abi.c); gpt doctor opens it and tells its version; a run on two GPUs, which are emulated, opens and initialises it, and where there
#   is no GPU NCCL refuses: the run must end with our own sentence, exit code 3, and nothing left behind.
# Needs Python's venv once, g++, and no CUDA toolkit. That NCCL sums anything is seen on GPUs only. Last line: "N passed, N failed".
set -u
passed=0 failed=0
check() { local name=$1; shift; if "$@"; then passed=$((passed + 1)); echo "ok      $name"; else failed=$((failed + 1)); echo "FAILED  $name"; fi; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
nccl=${1:-$PWD/build/nccl/nvidia/nccl}
if [ ! -e "$nccl/lib/libnccl.so.2" ]; then
  python3 -m venv build/venv-nccl && build/venv-nccl/bin/pip install -q --no-deps --target build/nccl nvidia-nccl-cu13 || { echo "NCCL cannot be installed from the Python registry"; echo "0 passed, 1 failed"; exit 1; }
fi
make || exit 1
folder=$(make -s print-build) && make "$folder/emulated/gpt" "$folder/emulated/libnccl.so.2" || exit 1

# What NCCL's header includes of the toolkit: the names of two types are all that matters here
[ -e "$nccl/include/cuda_runtime.h" ] || { mkdir "$work/include"; printf '#include <stddef.h>\ntypedef struct CUstream_st *cudaStream_t;\ntypedef struct CUevent_st *cudaEvent_t;\n' > "$work/include/cuda_runtime.h"; : > "$work/include/cuda_fp16.h"; }
check "nccl_abi.h is what NVIDIA's header says" ${CC:-cc} -std=gnu11 -Wall -Wextra -Werror -Wno-unused -I"$work/include" -I"$nccl/include" -I. -c -o "$work/abi.o" dev/peers/nccl_abi.c
mkdir "$work/other" && cp dev/peers/nccl_abi.c "$work/other/" && sed 's/NCCL_SUM = 0/NCCL_SUM = 1/' nccl_abi.h > "$work/other/nccl_abi.h"
check "... and another value would be noticed" sh -c "! ${CC:-cc} -std=gnu11 -w -I'$work/include' -I'$nccl/include' -c -o '$work/abi.o' '$work/other/nccl_abi.c' 2> /dev/null"

export LD_LIBRARY_PATH=$nccl/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
version=$(sed -n 's/^#define NCCL_MAJOR \([0-9]*\).*/\1/p; s/^#define NCCL_MINOR \([0-9]*\).*/.\1/p; s/^#define NCCL_PATCH \([0-9]*\).*/.\1/p' "$nccl/include/nccl.h" | tr -d '\n')
"$folder/emulated/gpt" doctor > "$work/doctor"
check "gpt doctor opens NCCL $version" grep -q "^NCCL  *$version:" "$work/doctor"
grep '^NCCL' "$work/doctor"

if nvidia-smi -L > /dev/null 2>&1; then echo "        there is a GPU here: what NCCL says without one is not tested"
else
  before=$(ls /dev/shm)
  awk 'BEGIN { srand(3); for (i = 0; i < 3000; i++) printf "%c", 97 + int(rand() * 20) }' > "$work/text.txt"
  (cd "$work" && GPT_CUDA_DEVICES=2 OMP_NUM_THREADS=1 timeout 100 "$OLDPWD/$folder/emulated/gpt" train text.txt --tokenizer byte --layers 1 --channels 32 --heads 2 --context 16 --batch 2 --steps 2 --gpus 2 --out run > out 2> err)
  code=$?
  cat "$work/err"
  check "without a GPU: exit code 3" test $code = 3
  check "without a GPU: one line, our own" sh -c "[ \$(wc -l < '$work/err') = 1 ] && grep -qE '^gpt: (rank 1: )?NCCL $version does not start: nccl[A-Za-z]*: .*; set NCCL_DEBUG=WARN to learn more, or train on one GPU with --gpus 1, or on the CPU with --ranks 2\$' '$work/err'"
  check "without a GPU: nothing is left behind" test "$(ls /dev/shm)" = "$before" -a ! -e "$work/run"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
