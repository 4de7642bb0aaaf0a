#!/usr/bin/env bash
# cuda.sh FOLDER: the tests of the CUDA device on this machine's CPU, with the emulated programs of `make test-cuda`, in FOLDER:
#   ops      every operation against the reference, fp32 and bf16, 42 shapes each, in the plain build: forward, reverse, random order and lazily run streams
#   checked  the same in the checked build (races, barriers, bounds, uninitialised memory), and training, sampling, evaluation
#   ptx      the same as the PTX that nvcc makes: sm_80 in order, sm_90a in random order; where there is nvcc
#            products by wgmma, too, in all of these but sm_80; products by a stand-in for cuBLASLt in all
#   train    30 steps of a tiny model of both families beside the CPU device; stopped and resumed; one to four micro-batches; sampling, evaluation
# Passing here is not having run on a GPU. CUDA_TESTS="ops train ..." runs only those parts. Last line: "N passed, N failed".
set -u
folder=$(cd "$1" && pwd) || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
parts=${CUDA_TESTS:-checked train ptx ops}
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1   # as many jobs as processors run beside each other

wanted() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
verdict() {   # name, whether it is right, what was found
  if [ "$2" = 0 ]; then echo "ok      $1${3:+: $3}"; else echo "FAILED  $1${3:+: $3}"; fi
}

# ---- jobs: functions that print verdicts, each in a folder of its own ----

jobs=0
job() {   # function and its arguments
  while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
  jobs=$((jobs + 1))
  mkdir "$work/$jobs"
  (cd "$work/$jobs" && "$@" > ../$jobs.out 2>&1; echo $? > ../$jobs.ended) &
}
results() {   # in the order in which the jobs were begun
  for ((n = 1; n <= jobs; n++)); do
    cat "$work/$n.out"
    [ -s "$work/$n.ended" ] && grep -qE '^(ok|FAILED) ' "$work/$n.out" || echo "FAILED  job $n ended without a verdict"
  done
}

program() {   # name, environment, program and filter
  local start=$SECONDS code
  timeout 900 env $2 ${3} > log 2>&1
  code=$?
  verdict "$1" $code "$(tail -1 log) ($((SECONDS - start)) s)"
  [ $code = 0 ] || grep -aE -A4 'FAILED|error|_test.h|test_.*\.c:' log | head -20 | sed 's/^/        /'
}
operations() {   # name, environment, suffix of the program
  for device in cuda cuda-bf16; do
    job program "$1, attention, $device" "TEST_DEVICE=$device $2" "$folder/test_attention$3"
    job program "$1, operations, $device" "TEST_DEVICE=$device $2" "$folder/test_ops$3"
  done
  job program "$1, the device" "$2" "$folder/test_cuda$3"
  for device in cuda cuda-bf16; do job program "$1, products by cuBLASLt's stand-in, $device" "TEST_DEVICE=$device-cublaslt $2" "$folder/test_ops$3 linear"; done
  case $1 in checked | *lazy*) job program "$1, what the library is asked" "TEST_DEVICE=cuda-cublaslt $2" "$folder/test_cuda$3" ;; esac
  case $1 in *sm_80*) return ;; esac   # which has no wgmma
  job program "$1, products by wgmma" "TEST_DEVICE=cuda-bf16-wgmma $2" "$folder/test_ops$3 linear"
  job program "$1, large products by wgmma" "TEST_DEVICE=cuda-bf16-wgmma $2" "$folder/test_cuda$3 products"
}

# Where no stand-in lies beside the program, and where one lies there that lacks a function. Without a libcublasLt of the machine's.
library_missing() {
  local said code
  ask() { said=$(elsewhere/gpt bench gemm --device cuda --gemm cublaslt --model tiny --steps 1 2>&1); code=$?; }
  mkdir elsewhere && cp "$folder/gpt" elsewhere/
  ask
  if [ $code = 0 ] || [[ $said == *"cublasLtCreate failed"* ]]; then verdict "a missing cuBLASLt is not tested: there is one on this machine" 0; return; fi
  [ $code = 3 ] && [[ $said == *"gpt: --gemm cublaslt: libcublasLt.so.13 and .12 were not found: it comes with the CUDA toolkit; set LD_LIBRARY_PATH to its folder; or use --gemm own" ]]
  verdict "no cuBLASLt" $? "exit code $code: $said"
  for version in 13 12; do
    rm -f elsewhere/*.so*
    echo 'int cublasLtCreate(void **handle) { return handle == 0; }' | ${CC:-cc} -shared -fPIC -x c -o elsewhere/libcublasLt.so.$version -
    ask
    [ $code = 3 ] && [[ $said == *"gpt: --gemm cublaslt: the libcublasLt found here lacks a function; versions 12 and 13 are known to have all; or use --gemm own" ]]
    verdict "a libcublasLt.so.$version that lacks a function" $? "exit code $code: $said"
  done
}

# ---- training ----

train_with() {   # program, run folder, flags...
  local gpt=$1 out=$2
  shift 2
  rm -rf "$out"
  timeout 200 "$folder/$gpt" train "$work/text.txt" --out "$out" --tokenizer byte --layers 2 --channels 64 --heads 2 --context 32 --tokens-per-step 128 --val-every 0 --sample-every 0 --save-every 0 \
    --log-every 100 --lr 3e-3 --warmup 5 "$@" > "$out.log" 2>&1 || { echo "FAILED  gpt train --out $out $*"; tail -4 "$out.log"; }
}
train() { train_with gpt "$@"; }
resume() { timeout 200 "$folder/gpt" train --resume "$@" > resumed.log 2>&1 || { echo "FAILED  gpt train --resume $*"; tail -4 resumed.log; }; }
losses() { sed -n 's/.*"kind": "step".*"loss": \([^,]*\),.*/\1/p' "$1/log.jsonl" 2> /dev/null; }
# The largest difference of two runs' losses over the first N steps: absolute, or relative to the first run's
difference() {   # run, run, steps, relative or absolute
  paste <(losses "$1") <(losses "$2") | awk -v n="$3" -v kind="$4" 'NR <= n && NF == 2 { d = $1 - $2; if (d < 0) d = -d; if (kind == "relative") d /= $1; if (!(d <= most)) most = d; seen++ }
    END { if (seen != n) print "no losses"; else printf "%.3g\n", most }'
}
within() {   # name, difference, bound
  awk -v d="$2" -v b="$3" 'BEGIN { exit !(d ~ /^[0-9]/ && d + 0 <= b + 0) }'
  verdict "$1" $? "$2 (bound $3)"
}
same_weights() {   # name, run, run
  cmp -s "$2/step_00000030/model.safetensors" "$3/step_00000030/model.safetensors"
  verdict "$1: the same bits" $?
}
loss_of() { timeout 100 "$folder/$1" eval "$2" "$work/text.txt" --limit 500 --device "$3" --json 2> /dev/null | tail -1 | sed -n 's/.*"loss": \([^,}]*\).*/\1/p'; }
relative() { awk -v a="$1" -v b="$2" 'BEGIN { if (!(a > 0 && b > 0)) { print "no losses"; exit } d = a - b; if (d < 0) d = -d; printf "%.3g", d / a }'; }

beside_the_cpu() {   # family and its flags: fp32
  local name=${1%% *} base="--family $1 --batch 4 --steps 30"
  train cpu $base --device cpu
  train cuda $base --device cuda
  within "$name fp32, 5 steps beside the CPU, relative" "$(difference cpu cuda 5 relative)" 2e-6
  within "$name fp32, 30 steps beside the CPU, relative" "$(difference cpu cuda 30 relative)" 2e-5
  train again $base --device cuda
  same_weights "$name fp32, twice" cuda again
  train library $base --device cuda --gemm cublaslt
  within "$name fp32, --gemm cublaslt, 30 steps beside the CPU, relative" "$(difference cpu library 30 relative)" 2e-5
  for batch in 1 2; do   # four and two micro-batches
    train cut --family $1 --batch $batch --device cuda --steps 30
    within "$name fp32, micro-batches of $batch, 30 steps, relative" "$(difference cuda cut 30 relative)" 2e-5
  done
  timeout 100 "$folder/gpt" sample cuda --device cpu --tokens 40 --temperature 0 --prompt "abc" > cpu.txt 2> /dev/null
  timeout 100 "$folder/gpt" sample cuda --device cuda --tokens 40 --temperature 0 --prompt "abc" > sample.txt 2> /dev/null
  [ -s sample.txt ] && cmp -s cpu.txt sample.txt
  verdict "$name fp32, the CPU's greedy sample" $?
  within "$name fp32, evaluation beside the CPU, relative" "$(relative "$(loss_of gpt cuda cpu)" "$(loss_of gpt cuda cuda)")" 2e-6
}
# `--trace` says how many kernels a block launches: at most 12 forward and 20 backward
launches_of() {   # flags
  local said
  train launched "$@" --device cuda --steps 1 --trace
  said=$(sed -n 's/^sum .* kernels launched; \([0-9]*\) a block forward, \([0-9]*\) backward$/\1 \2/p' launched.log)
  awk -v said="$said" 'BEGIN { exit !(split(said, n, " ") == 2 && n[1] > 0 && n[1] <= 12 && n[2] > 0 && n[2] <= 20) }'
  verdict "$name, launches of a block, forward and backward" $? "$said (bounds 12 and 20)"
}
half_precision() {   # the same in bf16
  local name=${1%% *} base="--family $1 --batch 4 --steps 30"
  train cpu $base --device cpu
  train bf16 $base --device cuda --precision bf16
  within "$name bf16, 30 steps beside the CPU, absolute" "$(difference cpu bf16 30 absolute)" 1e-2
  GPT_CUDA_STREAMS=lazy:5 GPT_CUDA_SCHED=random:9 train lazy $base --device cuda --precision bf16
  same_weights "$name bf16, lazy streams, random order" bf16 lazy
  train library $base --device cuda --precision bf16 --gemm cublaslt
  within "$name bf16, --gemm cublaslt, 30 steps beside the CPU, absolute" "$(difference cpu library 30 absolute)" 1e-2
  for recompute in light block; do
    train recomputed $base --device cuda --precision bf16 --recompute $recompute
    same_weights "$name bf16, recompute $recompute" bf16 recomputed
    train recomputed $base --device cuda --precision bf16 --gemm cublaslt --recompute $recompute
    same_weights "$name bf16, --gemm cublaslt, recompute $recompute" library recomputed
  done
  train cut --family $1 --batch 1 --device cuda --precision bf16 --steps 30
  within "$name bf16, four micro-batches, 30 steps, absolute" "$(difference bf16 cut 30 absolute)" 1e-3   # a weight's last bit is 0.4 % of it
  # without master weights a weight is a bf16 number, rounded to either neighbour: on average right, with noise of 0.2 % of a weight a step
  train random $base --device cuda --precision bf16 --stochastic-rounding on
  within "$name bf16, stochastic rounding, 30 steps beside the CPU, absolute" "$(difference cpu random 30 absolute)" 0.05
  train again $base --device cuda --precision bf16 --stochastic-rounding on
  same_weights "$name bf16, stochastic rounding, twice" random again
  train part ${base/30/12} --device cuda --precision bf16 --stochastic-rounding on --schedule constant
  train whole $base --device cuda --precision bf16 --stochastic-rounding on --schedule constant
  resume part --steps 30
  same_weights "$name bf16, stochastic rounding, stopped and resumed" whole part
  launches_of --family $1 --batch 4 --precision bf16
  if "$folder/gpt" bench gemm --model tiny --steps 1 --device cuda --precision bf16 --gemm wgmma > wgmma.log 2>&1; then
    train wgmma $base --device cuda --precision bf16 --gemm wgmma
    within "$name bf16, --gemm wgmma, 30 steps beside the CPU, absolute" "$(difference cpu wgmma 30 absolute)" 1e-2
  fi
  timeout 100 "$folder/gpt" sample bf16 --device cuda --precision bf16 --tokens 40 --temperature 0 --prompt "abc" > sample.txt 2> sample.log
  verdict "$name bf16, sampling with the cache" $(( $(wc -c < sample.txt) > 40 ? 0 : 1 ))
}
stop_and_resume() {   # with dropout, after 12 steps
  local name=${1%% *} shape="--family $1 --batch 4 --schedule constant"
  for precision in fp32 bf16; do
    train whole $shape --steps 30 --device cuda --precision $precision --dropout 0.1
    train part $shape --steps 12 --device cuda --precision $precision --dropout 0.1
    resume part --steps 30
    same_weights "$name $precision, dropout, stopped and resumed" whole part
  done
  train part $shape --steps 12 --device cuda      # saved on one device, resumed on another
  resume part --steps 30 --device cpu
  train whole $shape --steps 30 --device cpu
  within "$name fp32, begun on CUDA, resumed on the CPU, relative" "$(difference whole part 30 relative)" 2e-5
}

# Two steps in the checked build find nothing, and have the plain build's losses.
checked_training() {   # family and its flags, precision
  local name=${1%% *} flags="--family $1 --batch 2 --steps 2 --device cuda --precision $2 --dropout 0.1 --recompute block"
  train plain $flags
  train_with gpt_checked checked $flags
  within "$name $2, checked, 2 steps, relative" "$(difference plain checked 2 relative)" 0
  timeout 200 "$folder/gpt_checked" sample plain --device cuda --precision $2 --tokens 40 --temperature 0 > sample.txt 2> sample.log
  verdict "$name $2, checked, sampling past the context" $?
  within "$name $2, checked, evaluation, relative" "$(relative "$(loss_of gpt plain cuda)" "$(loss_of gpt_checked plain cuda)")" 0
}
ptx_training() {   # family and its flags, target
  local name=${1%% *} base="--family $1 --batch 2 --steps 5"
  export GPT_CUDA_PTX=$folder/train_gpt.$2.ptx
  train cpu $base --device cpu
  train fp32 $base --device cuda
  within "$name fp32, PTX of $2, 5 steps beside the CPU, relative" "$(difference cpu fp32 5 relative)" 2e-6
  train bf16 $base --device cuda --precision bf16
  within "$name bf16, PTX of $2, 5 steps beside the CPU, absolute" "$(difference cpu bf16 5 absolute)" 1e-2
}

awk 'BEGIN { srand(5); for (i = 0; i < 6000; i++) printf "%c%s", 97 + int(rand() * 26), rand() < 0.2 ? " " : ""; }' > "$work/text.txt"
if wanted checked; then
  operations "checked" "GPT_CUDA_SCHED=forward" _checked
  job program "checked, bank conflicts" "GPT_CUDA_PROFILE=1" "$folder/test_cuda_checked"
  for family in "gpt2" "llama --kv-heads 1"; do for precision in fp32 bf16; do job checked_training "$family" $precision; done; done
fi
if wanted train; then
  for family in "gpt2" "llama --kv-heads 1"; do for part in beside_the_cpu half_precision stop_and_resume; do job $part "$family"; done; done
fi
if wanted ptx; then
  for arch in sm_80 sm_90a; do
    if [ ! -e "$folder/train_gpt.$arch.ptx" ]; then echo "        PTX of $arch: there is no nvcc to make it, not tested"; continue; fi
    [ $arch = sm_80 ] && order=forward || order=random:11
    operations "PTX of $arch, $order" "GPT_CUDA_PTX=$folder/train_gpt.$arch.ptx GPT_CUDA_SCHED=$order" ""
    [ $arch = sm_80 ] && job program "PTX of $arch, bank conflicts" "GPT_CUDA_PTX=$folder/train_gpt.$arch.ptx GPT_CUDA_PROFILE=1" "$folder/test_cuda"
    for family in "gpt2" "llama --kv-heads 1"; do job ptx_training "$family" $arch; done
  done
fi
if wanted ops; then
  job library_missing
  operations "forward" "GPT_CUDA_SCHED=forward" ""
  operations "reverse" "GPT_CUDA_SCHED=reverse" ""
  operations "random, lazy streams" "GPT_CUDA_SCHED=random:7 GPT_CUDA_STREAMS=lazy:3" ""
fi
wait
results | tee "$work/all"
passed=$(grep -ac '^ok ' "$work/all") failed=$(grep -ac '^FAILED ' "$work/all")
echo "$SECONDS s"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
