#!/usr/bin/env bash
# gpu_check.sh [FOLDER]: everything that only a GPU can show, for whoever has one. Under 10 minutes. Needs nvcc and the driver.
#   tests      test_ops and test_attention in fp32 and bf16, and test_cuda, on the GPU, against the reference; of several GPUs test_nccl, where there is NCCL
#   training   a tiny model of both families beside the CPU device; twice: the same bits; stopped and resumed: the same bits
#   sanitizer  compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over the CUDA tests, where it is installed
#   speed      products, attention and whole steps, beside the GPU's peak
# Writes FOLDER/gpu_check.json (default: here), one object, and FOLDER/gpu_check.log. GPU_CHECK="tests speed" runs only those parts.
# The README asks for results: please send gpu_check.json. Last line: "N passed, N failed".
set -u
cd "$(dirname "$0")/.." || exit 1
out=$(realpath "${1:-.}"); mkdir -p "$out" || exit 1
log=$out/gpu_check.log
: > "$log"
parts=${GPU_CHECK:-tests training sanitizer speed}
passed=0 failed=0 facts=""
export OMP_WAIT_POLICY=passive

wanted() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
fact() { facts="$facts, \"$1\": $2"; }                    # key, JSON value
verdict() {   # name, exit code, what was found
  if [ "$2" = 0 ]; then passed=$((passed + 1)); echo "ok      $1${3:+: $3}"; else failed=$((failed + 1)); echo "FAILED  $1${3:+: $3}"; fi
}
program() {   # name, command line...
  local name=$1 start=$SECONDS; shift
  echo "=== $*" >> "$log"
  "$@" > "$out/part.log" 2>&1
  local code=$?
  cat "$out/part.log" >> "$log"
  [ $code = 0 ] || grep -vE 'passed, 0 failed' "$out/part.log" | tail -12
  verdict "$name" $code "$(tail -1 "$out/part.log") ($((SECONDS - start)) s)"
}

command -v nvidia-smi > /dev/null || { echo "there is no nvidia-smi: this script needs an NVIDIA GPU and its driver; without one: make test-cuda"; exit 3; }
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -1)
echo "GPU: $gpu"
start=$SECONDS
make > "$out/part.log" 2>&1 || { tail -20 "$out/part.log"; exit 1; }
build=$(make -s print-build)
make $build/test_ops $build/test_attention $build/test_cuda $build/test_nccl >> "$out/part.log" 2>&1 || { tail -20 "$out/part.log"; exit 1; }
grep '^nvcc' "$out/part.log"
echo "built in $((SECONDS - start)) s"
./gpt doctor | tee -a "$log" | grep -i cuda

if wanted tests; then
  for device in cuda cuda-bf16; do
    program "operations, $device" env TEST_DEVICE=$device "$build/test_ops"
    program "attention, $device" env TEST_DEVICE=$device "$build/test_attention"
    if ./gpt bench gemm --device cuda --gemm cublaslt --model tiny --steps 1 > /dev/null 2>&1; then
      program "products by cuBLASLt, $device" env TEST_DEVICE=$device-cublaslt "$build/test_ops" linear
    fi
  done
  if ./gpt bench gemm --device cuda --gemm cublaslt --model tiny --steps 1 > /dev/null 2>&1; then
    program "the device with cuBLASLt" env TEST_DEVICE=cuda-cublaslt "$build/test_cuda"
  fi
  program "the device" "$build/test_cuda"
  if ./gpt bench gemm --device cuda --precision bf16 --gemm wgmma --model tiny --steps 1 > /dev/null 2>&1; then
    program "products by wgmma" env TEST_DEVICE=cuda-bf16-wgmma "$build/test_ops" linear
    program "the device with wgmma" env TEST_DEVICE=cuda-bf16-wgmma "$build/test_cuda"
  fi
  program "collectives of several GPUs" "$build/test_nccl"
fi
wanted training && program "training, sampling and evaluation beside the CPU" env CUDA_TESTS=train bash tests/cuda.sh "$build"
if wanted sanitizer && command -v compute-sanitizer > /dev/null; then   # test_cuda asks for refusals, which memcheck would report
  for tool in memcheck racecheck initcheck synccheck; do
    program "compute-sanitizer $tool, operations" env TEST_DEVICE=cuda-bf16 timeout 100 compute-sanitizer --tool $tool --error-exitcode 9 "$build/test_ops"
    program "compute-sanitizer $tool, attention" env TEST_DEVICE=cuda-bf16 timeout 60 compute-sanitizer --tool $tool --error-exitcode 9 "$build/test_attention"
  done
fi

last_json() { tail -1 "$out/part.log" | grep '^{' || echo null; }
bench() {   # key, flags of gpt bench...
  local key=$1; shift
  echo "=== gpt bench $*" >> "$log"
  ./gpt bench "$@" --json > "$out/part.log" 2>&1
  local code=$?
  cat "$out/part.log" >> "$log"
  grep -v '^{' "$out/part.log" | sed 's/^/        /'
  verdict "$key" $code
  fact "$key" "$(last_json)"
}
if wanted speed; then
  libraries="own"
  for library in cublaslt wgmma; do
    ./gpt bench gemm --device cuda --precision bf16 --gemm $library --model tiny --steps 1 > /dev/null 2>&1 && libraries="$libraries $library"
  done
  for library in $libraries; do
    bench gemm_bf16_$library gemm --device cuda --precision bf16 --gemm $library --model gpt2-124M --batch 16 --context 1024
    bench train_124M_bf16_$library train --device cuda --precision bf16 --gemm $library --model gpt2-124M --batch 32 --context 1024 --steps 10
  done
  bench gemm_fp32 gemm --device cuda --precision fp32 --model gpt2-124M --batch 4 --context 1024
  bench attention_bf16 attention --device cuda --precision bf16 --model gpt2-124M --batch 16 --context 1024
  for cell in "355M 16" "774M 8" "1558M 4"; do
    set -- $cell
    bench "train_$1_bf16" train --device cuda --precision bf16 --model gpt2-$1 --batch $2 --context 1024 --steps 10
  done
  bench train_124M_fp32 train --device cuda --precision fp32 --model gpt2-124M --batch 8 --context 1024 --steps 5
fi
rm -f "$out/part.log"
echo "{\"gpu\": \"$gpu\", \"nvcc\": \"$(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')\", \"commit\": \"$(git rev-parse --short HEAD 2> /dev/null)\", \"passed\": $passed, \"failed\": $failed, \"seconds\": $SECONDS$facts}" > "$out/gpu_check.json"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
