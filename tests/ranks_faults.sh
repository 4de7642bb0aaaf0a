# ranks_faults.sh: owns the proof that a run of several ranks ends well whatever befalls one of them: at random instants, from start-up
# over training to saving, with and without --zero 1, a rank is killed, stopped, or left without memory, or all processes are killed together. Each time: all
# others end within 60 s, one line names the rank with operation, bytes and step, no process and no shared memory is left, the last
# checkpoint is whole, --resume goes on. `bash tests/ranks_faults.sh`; GPT=./gpt COUNT=60 SEED=1 LANES=5. About a minute and a half, of which
# most is waiting, so that five instants at once take the time of one: slow suites only.
gpt=$(realpath "${GPT:-./gpt}") count=${COUNT:-60} lanes=${LANES:-5}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
work=$(mktemp -d "${TMPDIR:-/tmp}/gpt_faults_XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

miss() { echo "FAILED tests/ranks_faults.sh: instant $instant ($kind of rank $victim of $ranks after $after ms): $*"; sed 's/^/  stderr: /' err | head -5; bad=1; }
awk -v s=7 'BEGIN { n = split("the old bear found a red key and sang slept ran home with his friend", w, " ")
  for (i = 0; i < 3500; i++) { s = s * 16807 % 2147483647; printf "%s%s", w[s % n + 1], i % 9 == 8 ? ".\n" : " " } }' > text.txt
tiny="$work/text.txt --tokenizer byte --layers 2 --channels 32 --heads 2 --context 16 --val-every 0 --sample-every 0 --tokens-per-step 384 --schedule constant --warmup 2"
kids() { cat /proc/$1/task/*/children 2> /dev/null; }
ours() { local p; for p in /proc/[0-9]*; do [ "$(readlink $p/cwd)" = "$PWD" ] && [ "$(readlink $p/exe)" = "$gpt" ] && echo ${p#/proc/}; done; } 2> /dev/null
now() { echo $(($(date +%s%N) / 1000000)); }
# LLVM's OpenMP, if a program built with clang is killed, leaves a file of its own (__KMP_REGISTERED_LIB): not the ranks'
shared_memory() { ls /dev/shm 2> /dev/null | grep -vc '^__KMP_'; ipcs -m 2> /dev/null | grep -c '^0x'; }
# Waits at most $1 seconds until what start began has ended; sets code.
finish() {
  local end=$(($(now) + 1000 * $1))
  while kill -0 $pid 2> /dev/null; do
    [ "$(now)" -gt $end ] && { kill -9 $pid $all 2> /dev/null; wait $pid 2> /dev/null; code=124; return; }
    sleep 0.03
  done
  wait $pid; code=$?
} 2> /dev/null

strike() {
  case $kind in
    kill) kill -9 $1 ;;
    stop) kill -STOP $1 ;;
    memory) prlimit --pid $1 --as=1 ;;    # the next allocation fails
    everybody) kill -9 $pid $all ;;
  esac 2> /dev/null
}

# --resume does a step and stops with a checkpoint when it is asked to
goes_on() {
  local before=$(grep -c '"kind": "step"' run/log.jsonl 2> /dev/null)
  "$gpt" train --resume run --save-every 0 --ranks $((1 + RANDOM % 4)) > out2 2> err2 & pid=$!
  for _ in $(seq 400); do [ "$(grep -c '"kind": "step"' run/log.jsonl)" -gt "$before" ] && break; sleep 0.02; done
  all=$(kids $pid); kill -TERM $pid; finish 60
  [ $code = 143 ] || { sed 's/^/  resume: /' err2; return 1; }
}

kinds=(kill kill kill stop memory everybody)
one_instant() {   # in a folder of its own
  RANDOM=$((${SEED:-1} * 1000 + instant))
  ranks=$((2 + RANDOM % 3)) victim=$((RANDOM % ranks)) kind=${kinds[instant % 6]} bad=0 code=0
  after=$((RANDOM % 3 ? RANDOM % 900 : RANDOM % 60))     # every third at start-up
  [ $kind = memory ] && [ $victim -gt 0 ] && after=$((RANDOM % 40))    # later it asks for none; rank 0 does to save
  rm -rf run
  "$gpt" train $tiny --ranks $ranks --zero $((instant / 6 % 2)) --batch 2 --steps 100000 --save-every $((1 + RANDOM % 2 * 4)) --out run > out 2> err & pid=$!
  sleep "$(printf '0.%03d' $after)"
  all=$(kids $pid); set -- $all; shift $victim
  [ -n "$1" ] || kind=everybody                           # the ranks have not parted yet
  begin=$(now); strike $1
  [ $kind = memory ] && { sleep 3; kill -9 $1 2> /dev/null; }    # a rank that needs no memory lives on
  finish 60
  took=$(($(now) - begin))
  [ $code != 124 ] || miss "still running after 60 s"
  if [ $kind != everybody ]; then
    [ $code = 3 ] || miss "exit code $code, expected 3"
    [ "$(grep -vc '^gpt: warning: ' err)" = 1 ] || miss "more or less than one line"
    [ $kind = memory ] || grep -qE "^gpt: rank $victim .*[ (][0-9]+ bytes .*step [0-9]+" err || miss "rank, operation, bytes and step are not named"
  fi
  # a rank that was not yet listed finishes its step and saves when its supervisor has died
  for _ in $(seq 200); do left=$(ours); [ -z "$left" ] && break; sleep 0.1; done
  [ -z "$left" ] || { miss "processes are left: $left"; kill -9 $left; }
  # everybody killed: what rank 0 was writing is not a checkpoint; the newest one must load
  if [ -e run/config.txt ]; then goes_on || miss "--resume does not go on"; fi
  [ $bad = 0 ] && echo passed
  [ -z "$VERBOSE" ] || echo "instant $instant: $kind of rank $victim of $ranks after $after ms: $took ms, code $code: $(tail -1 err)"
}
lane() {   # every $lanes-th instant from this one
  mkdir "$work/lane$1" && cd "$work/lane$1" || exit 1
  for ((instant = $1; instant <= count; instant += lanes)); do one_instant; done > said
}

before=$(shared_memory)
for ((n = 1; n <= lanes; n++)); do lane $n & done
wait
cat lane*/said | grep -v '^passed$'
passed=$(cat lane*/said | grep -c '^passed$')
[ "$(shared_memory)" = "$before" ] && passed=$((passed + 1)) || echo "FAILED tests/ranks_faults.sh: shared memory is left"
echo "tests/ranks_faults.sh: $passed passed, $((count + 1 - passed)) failed"
[ "$passed" -gt "$count" ]
