#!/bin/sh
# run.sh BUILD OP: runs the test programs of a build folder and the shell tests, adds up their counts, fails if any failed.
# Every program prints "...: N passed, N failed" as its last line; one that ends in any other way counts as a failure.
build=$1 op=$2
# Tests run beside other work, and some start more threads than there are cores: a thread that waits sleeps instead of taking the core
# from the one it waits for (5 to 8 times slower steps on a loaded machine, dev/LOG.md). No result depends on it.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
passed=0 failed=0
log=$(mktemp) || exit 1
trap 'rm -f "$log" "$log".*' EXIT

count() {   # name, exit code; reads $log
  line=$(grep -E '[0-9]+ passed, [0-9]+ failed$' "$log" | tail -1)
  p=$(printf '%s' "$line" | sed -n 's/.* \([0-9]*\) passed.*/\1/p')
  f=$(printf '%s' "$line" | sed -n 's/.* \([0-9]*\) failed$/\1/p')
  if [ -z "$line" ] || { [ "$2" -ne 0 ] && [ "${f:-0}" -eq 0 ]; }; then f=$((${f:-0} + 1)); echo "$1 ended with exit code $2"; fi
  passed=$((passed + ${p:-0})) failed=$((failed + ${f:-0}))
}

# An operation: the tests with its name in theirs, and the programs that are about nothing else.
if [ -n "$op" ]; then
  programs="$build/test_ops $build/test_gradients"
  case $op in *attention*) programs="$programs $build/test_attention" ;; *linear*|*gemm*) programs="$programs $build/test_gemm $build/test_gemm_bf16 $build/test_tiles" ;; esac
else
  programs=$(for source in tests/test_*.c; do name=${source##*/}; echo "$build/${name%.c}"; done)
fi
# Three at a time: many use one thread only, and those about ranks, which are begun first, mostly wait for deadlines to pass.
first=""
case $programs in *"$build/test_comm"*) first="$build/test_comm $build/test_shared $build/test_tcp $build/test_supervisor" ;; esac
for program in $first $programs; do echo "$program"; done | awk '!seen[$0]++' |
  OP=$op LOG=$log xargs -P 3 -I{} sh -c 'name=${1##*/}
    case $name in test_attention | test_gemm* | test_tiles) OP="" ;; esac
    "$1" $OP > "$LOG.$name" 2>&1
    echo $? > "$LOG.$name.code"' - {}
for program in $programs; do
  name=${program##*/}
  cat "$log.$name" > "$log"
  cat "$log"
  count "$name" "$(cat "$log.$name.code")"
done
# Two at a time: they mostly wait for processes to start, to save, and to end.
if [ -z "$op" ]; then
  ls tests/test_*.sh | GPT=${GPT:-$PWD/gpt} LOG=$log xargs -P 2 -I{} sh -c 'bash "$1" > "$LOG.${1##*/}" 2>&1; echo $? > "$LOG.${1##*/}.code"' - {}
  for script in tests/test_*.sh; do
    cat "$log.${script##*/}" > "$log"
    cat "$log"
    count "$script" "$(cat "$log.${script##*/}.code")"
  done
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
