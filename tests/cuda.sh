#!/usr/bin/env bash
# cuda.sh FOLDER: the tests of the CUDA device on this machine's CPU, with the emulated programs of `make test-cuda`, in FOLDER:
#   every operation against the reference, fp32 and bf16, in the plain build under three schedules and lazily run streams, in the checked build
#   (races, barriers, bounds, uninitialised memory), and as the PTX that nvcc makes (sm_80, sm_90a), where there is nvcc;
#   30 steps of a tiny model of both families beside the CPU device; stopped and resumed; one to four micro-batches; sampling, evaluation.
# Passing here is not having run on a GPU. CUDA_TESTS="ops train ..." runs only those parts. Last line: "N passed, N failed".
set -u
folder=$(cd "$1" && pwd) || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
export OMP_WAIT_POLICY=passive
parts=${CUDA_TESTS:-ops checked ptx train}

wanted() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
verdict() {   # name, whether it is right, what was found
  if [ "$2" = 0 ]; then passed=$((passed + 1)); echo "ok      $1${3:+: $3}"; else failed=$((failed + 1)); echo "FAILED  $1${3:+: $3}"; fi
}
program() {   # name, environment, program and filter
  local start=$SECONDS
  env $2 ${3} > "$work/log" 2>&1
  local code=$?
  [ $code = 0 ] || { grep -E 'FAILED|error|in kernel|\.cuh?:' "$work/log" | head -12; }
  verdict "$1" $code "$(tail -1 "$work/log") ($((SECONDS - start)) s)"
}

operations() {   # name, environment, suffix of the program
  for device in cuda cuda-bf16; do
    program "$1, operations, $device" "TEST_DEVICE=$device $2" "$folder/test_ops$3"
    program "$1, attention, $device" "TEST_DEVICE=$device $2" "$folder/test_attention$3"
  done
  program "$1, the device" "$2" "$folder/test_cuda$3"
}

if wanted ops; then
  operations "forward" "GPT_CUDA_SCHED=forward" ""
  operations "reverse" "GPT_CUDA_SCHED=reverse" ""
  operations "random, lazy streams" "GPT_CUDA_SCHED=random:7 GPT_CUDA_STREAMS=lazy:3" ""
fi
wanted checked && operations "checked" "GPT_CUDA_SCHED=forward" _checked
if wanted ptx; then
  for arch in sm_80 sm_90a; do
    if [ -e "$folder/train_gpt.$arch.ptx" ]; then operations "PTX of $arch" "GPT_CUDA_PTX=$folder/train_gpt.$arch.ptx" ""
    else echo "        PTX of $arch: no nvcc made it, not tested"; fi
  done
fi

# ---- training ----

cd "$work" || exit 1
awk 'BEGIN { srand(5); for (i = 0; i < 6000; i++) printf "%c%s", 97 + int(rand() * 26), rand() < 0.2 ? " " : ""; }' > text.txt
train() {   # folder, flags...
  local out=$1; shift
  rm -rf "$out"
  "$folder/gpt" train text.txt --out "$out" --tokenizer byte --layers 2 --channels 64 --heads 2 --context 32 --val-every 0 --sample-every 0 --save-every 0 --log-every 100 \
    --lr 3e-3 --warmup 2 "$@" > "$out.log" 2>&1 || tail -3 "$out.log"
}
losses() { sed -n 's/.*"kind": "step".*"loss": \([^,]*\),.*/\1/p' "$1/log.jsonl"; }
# The largest difference of two runs' losses over the first N steps: absolute, or relative to the first run's
difference() {   # run, run, steps, relative or absolute
  paste <(losses "$1") <(losses "$2") | awk -v n="$3" -v kind="$4" 'NR <= n { d = $1 - $2; if (d < 0) d = -d; if (kind == "relative") d /= $1; if (d > most) most = d; seen++ }
    END { if (seen != n) print "no losses"; else printf "%.3g\n", most }'
}
within() {   # name, difference, bound
  awk -v d="$2" -v b="$3" 'BEGIN { exit !(d ~ /^[0-9]/ && d + 0 <= b + 0) }'
  verdict "$1" $? "$2 (bound $3)"
}
weights() { sha256sum < "$1/step_00000030/model.safetensors" | cut -c1-16; }

if wanted train; then
  for family in "gpt2" "llama --kv-heads 1"; do
    name=${family%% *}
    shape="--family $family --batch 4 --tokens-per-step 128"
    base="$shape --steps 30"
    train cpu $base --device cpu
    train cuda $base --device cuda
    within "$name, fp32, 5 steps beside the CPU, relative" "$(difference cpu cuda 5 relative)" 2e-6
    within "$name, fp32, 30 steps beside the CPU, relative" "$(difference cpu cuda 30 relative)" 2e-5
    train bf16 $base --device cuda --precision bf16
    within "$name, bf16, 30 steps beside the CPU, absolute" "$(difference cpu bf16 30 absolute)" 1e-2
    train again $base --device cuda
    [ "$(weights cuda)" = "$(weights again)" ]; verdict "$name, fp32, twice: the same bits" $?
    GPT_CUDA_STREAMS=lazy train lazy $base --device cuda --precision bf16
    [ "$(weights bf16)" = "$(weights lazy)" ]; verdict "$name, bf16, lazy streams: the same bits" $?
    for batch in 1 2; do   # four and two micro-batches
      train cut --family $family --batch $batch --tokens-per-step 128 --device cuda --steps 30
      within "$name, fp32, micro-batches of $batch, 30 steps, relative" "$(difference cuda cut 30 relative)" 2e-5
    done
    for recompute in light block; do
      train recomputed $base --device cuda --precision bf16 --recompute $recompute
      [ "$(weights bf16)" = "$(weights recomputed)" ]; verdict "$name, bf16, recompute $recompute: the same bits" $?
    done
    for precision in fp32 bf16; do   # dropout, stopped after 12 steps, resumed
      train whole $base --device cuda --precision $precision --dropout 0.1 --schedule constant
      train part $shape --device cuda --precision $precision --dropout 0.1 --schedule constant --steps 12
      "$folder/gpt" train --resume part --steps 30 > part.log 2>&1
      [ "$(weights whole)" = "$(weights part)" ]; verdict "$name, $precision, dropout, stopped and resumed: the same bits" $?
    done
    train part $shape --device cuda --schedule constant --steps 12      # saved on one device, resumed on another
    "$folder/gpt" train --resume part --steps 30 --device cpu > part.log 2>&1
    train whole $base --device cpu --schedule constant
    within "$name, fp32, begun on CUDA, resumed on the CPU, relative" "$(difference whole part 30 relative)" 2e-5
    for precision in fp32 bf16; do
      "$folder/gpt" sample cuda --device cuda --precision $precision --tokens 40 --temperature 0 --prompt "abc" > sample.txt 2> sample.log
      verdict "$name, $precision, sampling with the cache" $(( $(wc -c < sample.txt) > 40 ? 0 : 1 ))
    done
    "$folder/gpt" sample cuda --device cpu --tokens 40 --temperature 0 --prompt "abc" > cpu.txt 2> /dev/null
    "$folder/gpt" sample cuda --device cuda --tokens 40 --temperature 0 --prompt "abc" > sample.txt 2> /dev/null
    cmp -s cpu.txt sample.txt; verdict "$name, fp32, the CPU's greedy sample" $?
    cpu=$("$folder/gpt" eval cuda text.txt --limit 500 --device cpu --json | tail -1 | sed -n 's/.*"loss": \([^,}]*\).*/\1/p')
    own=$("$folder/gpt" eval cuda text.txt --limit 500 --device cuda --json | tail -1 | sed -n 's/.*"loss": \([^,}]*\).*/\1/p')
    within "$name, fp32, evaluation beside the CPU" "$(awk -v a="$cpu" -v b="$own" 'BEGIN { d = a - b; if (d < 0) d = -d; printf "%.3g", (a > 0 && b > 0 ? d / a : 1) }')" 2e-6
  done
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
