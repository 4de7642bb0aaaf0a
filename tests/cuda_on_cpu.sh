#!/usr/bin/env bash
# cuda_on_cpu.sh FOLDER: the emulator's own tests, with the programs of `make emulator-tests` in FOLDER:
#   what it gives to kernels (tests/emulator_features.cu), in every order, build and as PTX; each planted bug (tests/emulator_bugs.cu) is noticed by the
#   builds that are said to notice it, and no build complains where there is none; wrong settings and files, and PTX it does not know, get a sentence.
# Last line: "N passed, N failed".
set -u
folder=$(cd "$1" && pwd) || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
export OMP_WAIT_POLICY=passive
ulimit -c 0

verdict() {   # name, whether it is right, what was found
  if [ "$2" = 0 ]; then passed=$((passed + 1)); echo "ok      $1"; else failed=$((failed + 1)); echo "FAILED  $1${3:+: $3}"; fi
}

# ---- features ----

features() {   # name, environment, program
  timeout 120 env $2 "$folder/$3" > "$work/log" 2>&1
  verdict "features, $1" $? "$(grep -aE 'FAILED|error|_features' "$work/log" | head -8)"
}
for order in forward reverse random random:7; do features "$order" "GPT_CUDA_SCHED=$order" emulator_features; done
features "lazy streams" "GPT_CUDA_STREAMS=lazy:3" emulator_features
features "cp.async lands early" "GPT_CUDA_ASYNC=early" emulator_features
features "one thread" "OMP_NUM_THREADS=1" emulator_features
features "switch of fibers by ucontext" "GPT_CUDA_SCHED=random:2" emulator_features_portable
features "checked" "A=1" emulator_features_checked
features "checked, random" "GPT_CUDA_SCHED=random:5" emulator_features_checked
for arch in sm_80 sm_90a; do
  [ -e "$folder/emulator_features.$arch.ptx" ] || { echo "        PTX of $arch: there is no nvcc to make it, not tested"; continue; }
  for order in forward reverse random:3; do features "PTX of $arch, $order" "GPT_CUDA_PTX=$folder/emulator_features.$arch.ptx GPT_CUDA_SCHED=$order" emulator_features; done
done

# ---- planted bugs ----

build() {   # letter: environment and program
  case $1 in
    f) echo "GPT_CUDA_SCHED=forward emulator_bugs" ;;
    r) echo "GPT_CUDA_SCHED=reverse emulator_bugs" ;;
    x) echo "GPT_CUDA_SCHED=random:3 emulator_bugs" ;;
    l) echo "GPT_CUDA_STREAMS=lazy:2 emulator_bugs" ;;
    c) echo "GPT_CUDA_SCHED=forward emulator_bugs_checked" ;;
    p) echo "GPT_CUDA_PTX=$folder/emulator_bugs.sm_80.ptx emulator_bugs GPT_CUDA_SCHED=random:3" ;;
  esac
}
builds="f r x l c"
[ -e "$folder/emulator_bugs.sm_80.ptx" ] && builds="$builds p"
run_case() {   # number, letter; leaves code and log
  local environment program more
  read -r environment program more <<< "$(build "$2")"
  timeout 60 env "$environment" $more "$folder/$program" "$1" > "$work/log" 2>&1
  code=$?
}
echo "        planted bugs: . not noticed, w wrong result, D diagnosis; builds: forward, reverse, random, lazy streams, checked$([ "${builds%p}" = "$builds" ] || echo ", PTX")"
while IFS=$'\t' read -r number noticed_by name; do
  row="" wrong=""
  for letter in $builds; do
    run_case "$number" "$letter"
    case $code in
      0) sign=. ;;
      1) sign=w ;;
      70 | 134 | 139) sign=D ;;
      *) sign="?" wrong="$wrong $letter ended with $code;" ;;
    esac
    grep -qaE 'runtime error' "$work/log" && sign=D   # of the compiler's bounds checks
    row="$row $sign"
    case $noticed_by in
      -) [ $sign = . ] || wrong="$wrong $letter complains: $(grep -a error "$work/log" | head -1);" ;;
      *$letter*) [ $sign = . ] && wrong="$wrong $letter does not notice;" ;;
      *C*) if [ "$letter" = c ] && ! { [ $sign = D ] && grep -qaE 'emulator_bugs\.cu:[0-9]+' "$work/log"; }; then wrong="$wrong the checked build names no line: $(head -2 "$work/log");"; fi ;;
    esac
  done
  [ -z "$wrong" ]
  verdict "bug$row  $name" $? "$wrong"
done < <("$folder/emulator_bugs")

# ---- sentences ----

says() {   # name, what has to be said, environment, program and arguments
  timeout 60 env $3 $4 > "$work/log" 2>&1
  local code=$?
  [ $code = 70 ] && grep -qaF "$2" "$work/log"
  verdict "$1" $? "exit $code: $(head -3 "$work/log")"
}
says "a wrong order is refused" "GPT_CUDA_SCHED=sideways: it is forward, reverse, random or random:SEED" "GPT_CUDA_SCHED=sideways" "$folder/emulator_bugs 0"
says "a wrong seed is refused" "GPT_CUDA_SCHED=random:x" "GPT_CUDA_SCHED=random:x" "$folder/emulator_bugs 0"
says "a wrong kind of streams is refused" "GPT_CUDA_STREAMS=idle: it is eager, lazy or lazy:SEED" "GPT_CUDA_STREAMS=idle" "$folder/emulator_bugs 0"
says "a missing PTX file is refused" "there are no kernels in that file, or it cannot be read" "GPT_CUDA_PTX=$work/nothing.ptx" "$folder/emulator_bugs 0"
says "an empty PTX file is refused" "there are no kernels in that file, or it cannot be read" "GPT_CUDA_PTX=/dev/null" "$folder/emulator_bugs 0"
ptx() {   # the kernel of case 0 with this body
  { printf '.version 8.0\n.target sm_80\n.address_size 64\n.visible .entry _Z6writerPf(.param .u64 p)\n{\n.reg .pred %%q<4>;\n.reg .b32 %%r<9>;\n.reg .b64 %%d<9>;\n'; printf '%s\n' "$@"; printf 'ret;\n}\n'; } > "$work/own.ptx"
}
own="GPT_CUDA_PTX=$work/own.ptx"
ptx "frobnicate.b32 %r1, %r2;"
says "an unknown instruction is named" "own.ptx:9: frobnicate.b32 %r1, %r2: this instruction is not known to the interpreter" "$own" "$folder/emulator_bugs 0"
ptx "mov.b32 %r1, nobody;"
says "an unknown symbol is named" "own.ptx:9: mov.b32 %r1, nobody: this symbol is declared nowhere: nobody" "$own" "$folder/emulator_bugs 0"
ptx "mov.u32 %r1, %clock9;"
says "an unknown register is named" "this register is neither declared nor a special one that the interpreter knows: %clock9" "$own" "$folder/emulator_bugs 0"
ptx "bra nowhere;"
says "an unknown label is named" "bra nowhere: there is no such label" "$own" "$folder/emulator_bugs 0"
ptx "add.s64 %r1, %r2, %d3;"
says "a register of the wrong width is refused" "add.s64 %r1, %r2, %d3: this instruction is not known" "$own" "$folder/emulator_bugs 0"
ptx "mov.u32 %r1, %tid.x;" "setp.lt.u32 %q1, %r1, 7;" "mov.b32 %r2, 127;" "@%q1 shfl.sync.idx.b32 %r3, %r1, 0, 31, %r2;" "@%q1 bra end;" "shfl.sync.idx.b32 %r3, %r1, 0, 31, -1;" "end:"
says "lanes that never come are named" "wait for others that never come" "$own" "$folder/emulator_bugs 0"
ptx "trap;"
says "a trap is said" "the kernel gave up" "$own" "$folder/emulator_bugs 0"
ptx "mov.u32 %r1, %tid.x;" "ld.param.u64 %d1, [p];" "mul.wide.u32 %d2, %r1, 4;" "add.s64 %d1, %d1, %d2;" "cvt.rn.f32.u32 %r2, %r1;" "st.global.f32 [%d1], %r2;"
env "$own" "$folder/emulator_bugs" 0 > "$work/log" 2>&1
verdict "a kernel written by hand runs" $? "$(head -3 "$work/log")"

# ---- the profile ----

GPT_CUDA_PROFILE=$work/table "$folder/emulator_features_checked" a_block_shares > "$work/log" 2>&1
# reverse_kernel: 10 blocks of 3 warps read and write 4 bytes a lane: 30 reads and 30 writes of 4 sectors; 4 requests of 1 wavefront a warp in shared memory
awk -F '\t' '$1 ~ /^reverse_kernel/ { if ($2 == 1 && $3 == 2 * 960 * 4 && $4 == $3 && $6 == $7 && $8 == 120 && $9 == 120) right = 1 } END { exit !right }' "$work/table"
verdict "the profile counts sectors and wavefronts" $? "$(cat "$work/table" "$work/log" 2> /dev/null | head -5)"

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
