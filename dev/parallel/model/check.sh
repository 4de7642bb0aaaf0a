#!/bin/sh
# check.sh: runs the model of the ranks (ranks.pml) through all its states, and through those of three planted bugs, which must be found. Needs spin
# (Debian: apt install spin) and a C compiler. `make model-check`. Last line: "N passed, N failed".
model=$(cd "$(dirname "$0")" && pwd)/ranks.pml
command -v spin > /dev/null || { echo "model-check: there is no spin here (Debian: apt install spin)"; exit 1; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
passed=0 failed=0
for bug in 0 1 2 3; do
  spin -DBUG=$bug -a "$model" && ${CC:-cc} -O2 -DSAFETY -DCOLLAPSE -o pan pan.c 2> log && ./pan -m1000000 > log 2>&1
  errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' log) states=$(sed -n 's/ *\([0-9]*\) states, stored.*/\1/p' log) first=$(grep -m1 '^pan:1' log)
  if grep -q 'max search depth too small\|out of memory' log; then errors=incomplete; fi
  if [ $bug = 0 ]; then name="three ranks, a death at any moment, a signal at any moment: $states states, $errors errors"; [ "$errors" = 0 ]
  else name="planted bug $bug: ${first:-not found}"; [ "$errors" = 1 ]; fi
  if [ $? = 0 ]; then passed=$((passed + 1)); echo "ok      $name"; else failed=$((failed + 1)); echo "FAILED  $name"; tail -5 log; fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
