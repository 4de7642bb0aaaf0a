# test_cli_train.sh: owns the proof of whole training runs from the command line: stop and resume to the bit, run folders, sample,
# eval, report, and the refusal of every bad request in one line with nothing left behind. `bash tests/test_cli_train.sh`; GPT=./gpt.
# Everything happens in a temporary folder, with models so small that a run takes a tenth of a second.
gpt=$(realpath "${GPT:-./gpt}")
golden=$(realpath "$(dirname "$0")/golden_train.txt")
passed=0 failed=0
work=$(mktemp -d "${TMPDIR:-/tmp}/gpt_cli_XXXXXX") || exit 1
trap 'chmod -R u+rwx "$work"; rm -rf "$work"' EXIT
cd "$work" || exit 1

pass() { passed=$((passed + 1)); }
miss() { failed=$((failed + 1)); printf 'FAILED tests/test_cli_train.sh: %s\n' "$*"; }
check() { local name=$1; shift; if "$@"; then pass; else miss "$name"; fi; }    # check NAME COMMAND...
expect_code() { [ "$1" -eq "$2" ] || { printf '  exit code %s, expected %s; stderr: %s\n' "$1" "$2" "$(head -c 300 err)"; return 1; }; }

# A text of about 16 KB: words of a small stream of numbers.
make_text() {
  awk -v s="$1" 'BEGIN { n = split("the old bear found a red key and sang slept ran home with his friend", w, " ")
    for (i = 0; i < 3500; i++) { s = s * 16807 % 2147483647; printf "%s%s", w[s % n + 1], i % 9 == 8 ? ".\n" : " " } }'
}
make_text 7 > text.txt
make_text 8 > other.txt
tiny="--tokenizer byte --layers 1 --channels 16 --heads 2 --context 16 --batch 4 --threads 1 --val-every 0 --sample-every 0"
train() { "$gpt" train "$@" > out 2> err; }
newest() { ls -d "$1"/step_* | tail -1; }
same_model() {   # same_model RUN RUN: their newest checkpoints are the same numbers
  cmp "$(newest "$1")/model.safetensors" "$(newest "$2")/model.safetensors" && cmp "$(newest "$1")/trainer.safetensors" "$(newest "$2")/trainer.safetensors"
}

# ---- what a run says and logs, to the last digit: the same on every machine, but for its speed ----

# GPT_TEST_GOLDEN=write writes the file anew: then read the difference
masked() {
  sed -E 's/"(run_id|version)": "[^"]*"/"\1": -/g; s/"(ms|tokens_per_s|seconds|program and tokens|scratch of the device|memory_bytes)": [0-9.e+]+/"\1": -/g; s/^device .*/device -/; s/^memory .*activation gradients/memory - activation gradients/
    s/, scratch of the device.*//; s/[0-9.]+ ms  [0-9.]+k tok\/s(  [0-9]+% of peak)?  eta [0-9:]+/-/' | cat -v
}
recorded() {   # NAME FLAGS...
  local name=$1; shift
  train text.txt --tokenizer byte --layers 1 --threads 1 --dropout 0.1 --warmup 3 --out $name "$@"
  echo "=== $*"; masked < out; masked < err; masked < $name/log.jsonl
}
small="--channels 16 --heads 2 --context 16 --batch 2 --tokens-per-step 64"
{ recorded g1 $small --steps 8 --val-every 4 --val-tokens 100 --sample-every 4 --save-every 3 --log-tensors 4 --log-every 3
  recorded g2 $small --steps 7 --family llama --kv-heads 1 --tie off --schedule wsd --val-every 0 --sample-every 0 --save-every 0
  recorded g3 $small --steps 5 --schedule linear --overfit-batch on --weight-decay 0 --grad-clip 0 --device reference
  recorded g4 --channels 16 --heads 2 --context 16 --batch 1 --tokens-per-step 16 --steps 24 --lr 0.0005 --skip-outliers 0.5 --beta1 0 --val-fraction 0 --save-every 0 --log-every 12
  recorded g5 --channels 8 --heads 1 --context 208 --batch 1 --tokens-per-step 208 --steps 2 --log-every 1   # a sample is cut at 200 tokens
  recorded g6 --channels 8 --heads 1 --context 1 --batch 1 --tokens-per-step 1 --steps 3                      # one target a step
  recorded g7 ${small/channels 16/channels 264} --steps 1 --bias off --log-tensors 1 --val-every 0 --sample-every 0 --save-every 0      # a tensor of several pieces; biases that are only in the file are not in the log
  echo "=== banners: the stories, shards, documents"
  "$gpt" data build text.txt --tokenizer byte --out shards --val-fraction 0.2 > shards.said
  awk '{ printf "%s#", $0 }' text.txt > separated.txt
  "$gpt" plan | masked; "$gpt" plan --train-data 'shards/train_*.bin' --val-data 'shards/val_*.bin' $small | masked
  (cd shards && "$gpt" plan --train-data 'train_*.bin' $small | masked); "$gpt" plan separated.txt --separator '#' --tokenizer char --layers 1 --channels 16 --heads 2 --context 128 --batch 1 | masked
  mkdir alone && cp shards/train_*.bin alone && "$gpt" plan --train-data 'alone/train_*.bin' $small | masked      # without their tokenizer
  echo "=== plans"
  for tokenizer in byte bpe:259; do "$gpt" plan text.txt --tokenizer $tokenizer --layers 2 --channels 32 --heads 2 --context 16 --batch 4 --tokens-per-step 256 --threads 1 --json | tee plan_$tokenizer | tail -1 | masked; done; } > transcript
[ "$GPT_TEST_GOLDEN" = write ] && cp transcript "$golden"
check "the transcript of runs and plans" diff -a "$golden" transcript
# the sums of what is masked above
check "... a plan's memory is the sum of its kinds" awk '{ n = $0; sub(/.*"memory_bytes": /, "", n); kinds = $0; sub(/.*"memory": {/, "", kinds); split(kinds, each, ", "); sum = 0
  for (i in each) { sub(/.*: /, "", each[i]); sum += each[i] } if (sum != n + 0 || sum < 1e5) { print; exit 1 } }' <(tail -qn 1 plan_*)

train --layers 1 --channels 16 --heads 1 --steps 2 --out stories
check "the embedded stories are judged" grep -qE '^stories +bits per character over 1000 unseen stories: floor 0\.[0-9]+ \(the grammar itself\), word trigram 0\.[0-9]+, model ' out
check "... and the samples" grep -qE 'of 100 sampled stories 0 are legal by the grammar, 0 of them not in the training text' out

# ---- stop and resume ----

# --steps upward; the text is about 900 rows of 16, an epoch of about 225 steps of 4: stops within an epoch and over several
resume_in_pieces() {   # NAME FLAGS...
  local name=$1; shift
  set -- text.txt $tiny "$@" --schedule constant --warmup 3 --save-every 0
  train "$@" --steps 260 --out whole && train "$@" --steps 2 --out cut
  for steps in 7 8 230 260; do train --resume cut --steps $steps || cat err; done
  check "$name: stopped after 2, 7, 8 and 230 of 260 steps" same_model whole cut
  rm -rf whole cut
}
resume_in_pieces "gpt2 with dropout" --dropout 0.1 --tokens-per-step 128
resume_in_pieces "llama" --family llama --kv-heads 1 --dropout 0.1
resume_in_pieces "outlier window" --skip-outliers 1

check "no validation: trains to the end" train text.txt ${tiny/--val-every 0/--val-every 1} --steps 3 --val-fraction 0 --out whole
check "no validation: none in the log" sh -c "! grep -q '\"kind\": \"eval\"' whole/log.jsonl"
rm -rf whole

# A signal in the middle of a cosine: finish the step, save, leave; then go on
steps_logged() { grep -c '"kind": "step"' cut/log.jsonl 2> /dev/null; }
train text.txt $tiny --save-every 0 --steps 3000 --out whole
for signal in INT TERM HUP; do
  if [ -d cut ]; then set -- --resume cut; else set -- text.txt $tiny --save-every 0 --steps 3000 --out cut; fi
  # a shell ignores SIGINT for what it starts in the background: a program that sets its own handler must get it all the same
  "$gpt" train "$@" > out 2> err &
  pid=$!
  before=$(ls -d cut/step_* 2> /dev/null | tail -1)
  for _ in $(seq 500); do sleep 0.02; [ "$(steps_logged)0" -gt "${logged:-0}0" ] && break; done    # now the handler is there
  kill -$signal $pid; [ $signal = HUP ] && kill -HUP $pid     # a closed terminal and its shell send one each
  wait $pid
  code=$?
  logged=$(steps_logged)
  check "SIG$signal: exit code" expect_code $code $([ $signal = INT ] && echo 130 || echo 143)
  check "SIG$signal: a checkpoint was saved" test "$(newest cut)" != "$before"
  check "SIG$signal: the log says so" grep -q "\"reason\": \"SIG${signal/HUP/TERM}\"" cut/log.jsonl
  check "SIG$signal: the way on is printed" grep -q -e "--resume cut" out
done
train --resume cut
check "stopped by three signals, a cosine" same_model whole cut
check "a finished run resumed does no step" train --resume cut
check "... and stays the same" same_model whole cut
check "the log has every step once" test "$(grep -c '"kind": "step"' cut/log.jsonl)" = "$(grep -c '"kind": "step"' whole/log.jsonl)"

# A second signal does not wait for the step: here one takes many seconds
"$gpt" train text.txt --tokenizer byte --layers 4 --channels 256 --heads 4 --context 256 --batch 4 --tokens-per-step 262144 --threads 1 --steps 9 --out slow > out 2> err &
pid=$!
for _ in $(seq 100); do sleep 0.05; grep -q '"kind": "start"' slow/log.jsonl 2> err && break; done
for _ in 1 2 3 4 5; do sleep 0.2; kill -INT $pid 2> /dev/null; done    # one that comes before the handler is lost
wait $pid
check "a second signal: exit code" expect_code $? 130
check "a second signal: no step was done" test ! -e slow/step_00000001

# The last validation takes the whole split, which may be long: a signal ends it, with all that was trained saved
awk 'BEGIN { for (i = 0; i < 400000; i++) print "to be, or not to be: line", i }' > long.txt
"$gpt" train long.txt --tokenizer byte --layers 4 --channels 256 --heads 4 --context 128 --batch 2 --tokens-per-step 256 --threads 1 --steps 1 --out validated > out 2> err &
pid=$!
for _ in $(seq 500); do sleep 0.02; [ -d validated/step_00000001 ] && break; done
sleep 0.2; kill -INT $pid 2> /dev/null
wait $pid
check "SIGINT in the last validation: exit code" expect_code $? 130
check "... the checkpoint is there, the way on is printed" sh -c "test -d validated/step_00000001 && grep -q 'stopped after step 1; go on with: gpt train --resume validated' out"
check "... no validation is claimed" sh -c "! grep -q '^eval' out && ! grep -q '\"kind\": \"eval\"' validated/log.jsonl"
check "... the log says so" grep -q '"reason": "SIGINT"' validated/log.jsonl
rm -r validated long.txt

# A run that began with another's weights: their shape, and what no flag can say, from wherever it goes on
train text.txt ${tiny/byte/bpe:300} --steps 2 --out base
mkdir odd && cp "$(newest base)"/{config.json,model.safetensors,tokenizer.json} odd
sed -i 's/"layer_norm_epsilon": [^,]*/"layer_norm_epsilon": 0.1/' odd/config.json
train text.txt --family llama --layers 1 --channels 32 --heads 2 --context 16 --batch 4 --tokenizer byte --steps 2 --val-every 0 --sample-every 0 --out llama
for init in "odd" "odd --context 8 --tokenizer byte" "llama"; do
  rm -rf tuned repeated
  train text.txt --batch 4 --steps 4 --save-every 2 --val-every 0 --sample-every 0 --init $init --out tuned
  cp -r tuned whole4
  rm -r tuned/step_00000004
  check "--init $init, resumed" train --resume tuned
  check "... the same bits" same_model whole4 tuned
  check "... the same shape and constants" cmp "$(newest whole4)/config.json" "$(newest tuned)/config.json"
  rm -r tuned/step_*
  check "... before its first checkpoint" train --resume tuned
  check "... the same bits" same_model whole4 tuned
  check "... repeated by its config.txt" train --config tuned/config.txt --out repeated
  check "... the same bits" same_model whole4 repeated
  rm -r whole4
done
check "an epsilon of its own" grep -q '"layer_norm_epsilon": 0.1' odd/config.json

# So does one of the other kind
"$gpt" train text.txt --tokenizer byte --layers 4 --channels 256 --heads 4 --context 256 --batch 4 --tokens-per-step 262144 --threads 1 --steps 9 --out slow2 > out 2> err &
pid=$!
for _ in $(seq 100); do sleep 0.05; grep -q '"kind": "start"' slow2/log.jsonl 2> err && break; done
sleep 0.5; kill -INT $pid; sleep 0.2; kill -TERM $pid
wait $pid
check "SIGINT, then SIGTERM: exit code" expect_code $? 143
check "SIGINT, then SIGTERM: no step was done" test ! -e slow2/step_00000001

# A name with a comma is one name
cp text.txt 'a,b\c.txt'
train 'a,b\c.txt' $tiny --steps 3 --out comma
check "a name with a comma: the way on" train --resume comma
check "... and repeated" train --config comma/config.txt --out comma2
check "... with the same bits" same_model comma comma2
check "plan takes a run's settings" sh -c "'$gpt' plan --config comma/config.txt --lr 0.5 > out && grep -q 'lr 0.5 to' out"

# A run that was ended before its first checkpoint begins again
train text.txt $tiny --steps 3 --out whole3 && train text.txt $tiny --steps 3 --out begun && rm -r begun/step_*
check "a run without a checkpoint begins again" train --resume begun
check "... with the same bits" same_model whole3 begun

# What a text is made of stands in the settings, however many files they are
mkdir files && for i in $(seq 300); do printf 'text number %d of them all\n' $i > files/$i.txt; done
train files/*.txt $tiny --steps 1 --save-every 0 --out many
check "a run of 300 files goes on" train --resume many
check "... and repeats" train --config many/config.txt --out many2
check "... with the same bits" same_model many many2

# ---- what a run folder is ----

run_and_run2() { train text.txt $tiny --steps 4 && [ -d run ] && train text.txt $tiny --steps 4 && [ -d run2 ] && same_model run run2; }
check "a second run goes to run2 and has the same bits" run_and_run2
check "report.html has curves" grep -q '<svg' run/report.html
check "report.html has the memory by kind, settings and speed" sh -c 'for word in "<td>weights</td>" "<td>in all</td>" "batch = 4" "tokens/s"; do grep -q "$word" run/report.html || exit 1; done'
check "... and its sum is the banner's" [ "$(sed -n 's/.*<td>in all<.td><td>\([0-9.]*\)<.*/\1/p' run2/report.html)" = "$(sed -n 's/^memory *\([0-9.]*\) MiB.*/\1/p' out)" ]
check "report.html reaches for no other file" sh -c '! grep -qE "(src|href)=\"?(http|//)" run/report.html'
check "config.txt repeats the run" train --config run/config.txt --out again
check "... with the same bits" same_model run again
train text.txt $tiny --steps 5 --out run --overwrite
check "--overwrite replaces a run" test "$(newest run)" = run/step_00000005
train text.txt $tiny --steps 5 --seed 2 --out seed2
train text.txt --init run --device reference --steps 1 --val-every 0 --sample-every 0 --out elsewhere
check "fp32 weights start a run in fp64" test -e elsewhere/step_00000001
check "another seed is another run" sh -c '! cmp -s run/step_00000005/model.safetensors seed2/step_00000005/model.safetensors'
train text.txt $tiny --steps 4 --dry-run --out dry
check "--dry-run writes nothing" test ! -e dry
check "--dry-run prints the memory" grep -q '^memory ' out
"$gpt" train text.txt ${tiny/--batch 4/--batch 64} --steps 2000000 --log-every 1 --save-every 0 --out long > out 2> err & pid=$!; began=$SECONDS
for _ in $(seq 100); do sleep 0.05; [ "$(grep -c '^step ' out)" -ge 16 ] && break; done
written=$(ls long/report.html 2> err) took=$((SECONDS - began))
kill -TERM $pid; wait $pid
# the steps that are left times the milliseconds of one, which are printed to a tenth
check "the time that is left" awk '/^step / { sub("/", " "); left = $3 - $2; for (i = 4; i < NF; i++) { if ($(i + 1) == "ms") ms = $i; if ($i == "eta") split($(i + 1), eta, ":") }
  if (ms > 0) { n++; d = (eta[1] * 60 + eta[2]) / (left * ms / 1000) - 1; if (d < 0) d = -d; if (!(d <= 0.06 / ms + 0.01)) bad = 1 } } END { exit bad || n < 3 }' out
# what is printed is smoothed: the mean of the steps after the first, from eleven on a tenth of the new one and nine of the old time; the log has each step's own, and both have the speed that goes with it
check "a step's milliseconds and tokens/s" awk 'function off(a, b) { d = a / b - 1; return d < 0 ? -d : d }
  FNR == NR { if (!/"kind": "step"/) next; split($0, at, /"(ms|tokens|tokens_per_s)": /); n++; ms = at[2] + 0; part = n <= 2 ? 1 : n <= 11 ? 1 / (n - 1) : 0.1; smooth[n] = (1 - part) * smooth[n - 1] + part * ms; if (!(off(ms * at[4] / 1000, 1024) < 0.0005 / ms + 0.001)) bad = 1; next }
  /^step .* loss / { k++; match($0, /[0-9.]+ ms/); ms = substr($0, RSTART) + 0; match($0, /[0-9.]+k tok/); rate = substr($0, RSTART) + 0; match($0, /[0-9]+% of peak/); share = substr($0, RSTART) + 0
    if (k == 1) { share1 = share; rate1 = rate } more = rate / rate1; d = share - share1 * more; if (!(share > 0 && share <= 100 && (d < 0 ? -d : d) <= 0.51 * (1 + more))) bad = 1
    if (!(off(ms, smooth[k]) < 0.06 / ms + 0.001) || !(off(rate * smooth[k], 1024) < 0.06 / rate + 0.001)) bad = 1 } END { exit bad || k < 6 }' long/log.jsonl out
check "report.html is not written with every step" test -z "$written" -o $took -ge 4
check "... but when a signal ends the run" test -s long/report.html
train text.txt $tiny --steps 4 --out plain
check "without --trace there is none" sh -c "! grep -q '^trace ' out"
train text.txt $tiny --steps 4 --trace --out trace
check "--trace prints the operations of one step" test "$(grep -c '^trace ' out)" = 51
check "--trace prints sums" grep -q '^sum .*operations' out
check "... which are most of the step, and no more than it" awk '/^sum .* operations .* of the step/ { share = $6 + 0; if (share > 30 && share <= 100) ok = 1 } END { exit !ok }' out
train text.txt $tiny --steps 4 --log-tensors 2 --out tensors
check "--log-tensors logs each tensor twice" test "$(grep -c '"kind": "tensor".*transformer.h.0.mlp.c_fc.weight' tensors/log.jsonl)" = 2
check "--keep 2 of many checkpoints" sh -c "'$gpt' train text.txt $tiny --steps 9 --save-every 2 --out kept > out && [ \$(ls -d kept/step_* | wc -l) = 2 ]"
train text.txt $tiny --steps 60 --lr 0.02 --overfit-batch on --out heart
check "--overfit-batch learns one batch" sh -c 'grep "\"step\": 60" heart/log.jsonl | grep -q "\"loss\": [01]\.[0-9]"'

# ---- a run that diverges ----

train text.txt $tiny --steps 40 --lr 100 --weight-decay 100 --warmup 0 --schedule constant --save-every 2 --out bad
check "a loss that is not finite: exit code" expect_code $? 1
check "... the step and the layer are named in one line" sh -c '[ $(wc -l < err) = 1 ] && grep -qE "step [0-9]+: [a-z_]+: layer [0-9]+ .*not finite" err'
check "... what was saved is said" grep -q "earlier checkpoints in bad are intact" err
train text.txt $tiny --steps 40 --lr 100 --weight-decay 100 --warmup 0 --schedule constant --save-every 0 --out unsaved
check "... or that nothing was" grep -q "nothing was saved yet" err
rm -rf unsaved
train text.txt ${tiny/--tokenizer byte/--tokenizer bpe:5000} --steps 1 --out few
check "fewer entries than asked for are said" grep -qE "warning: --tokenizer bpe:5000: this text gives [0-9]+ entries" err
rm -rf few
check "... the last good checkpoint stays" sh -c "'$gpt' sample bad --tokens 1 > out 2> err; ls -d bad/step_* > out"
check "... the log stays JSON: null, not nan" sh -c 'grep -q "\"loss\": null" bad/log.jsonl && ! grep -q nan bad/log.jsonl'

train text.txt $tiny --steps 40 --lr 100 --weight-decay 100 --warmup 0 --schedule constant --on-nonfinite skip --out skipped
check "what is no number is nan, without a sign" sh -c '! grep -a -e -nan out && grep -a -q "loss nan .* norm nan" out'
check "--on-nonfinite skip: bad steps are dropped, said and on record" sh -c 'grep -q "the step was dropped" err &&
  [ $(grep -c "the step was dropped" err) = $(grep -c "\"what\": \"nonfinite\"" skipped/log.jsonl) ] && [ $(grep -c "\"kind\": \"step\"" skipped/log.jsonl) = 40 ]'
rm -rf skipped

# ---- sample and eval ----

s="run --prompt the --tokens 20"
"$gpt" sample $s --seed 4 > a 2> err; "$gpt" sample $s --seed 4 > b 2> err; "$gpt" sample $s --seed 5 > c 2> err
check "sample: same seed, same text" cmp a b
check "sample: another seed, another text" sh -c '! cmp -s a c'
check "sample: the prompt comes first" sh -c '[ "$(head -c 3 a)" = the ]'
"$gpt" sample $s --seed 4 --stream off > b 2> err
check "sample: streaming changes nothing" cmp a b
"$gpt" sample $s --seed 4 --json > b 2> err
json='^\{"model": "run/step_00000005", "prompt": "the", "samples": \[\{"text": ".*", "tokens": 20, "stopped": false, "seconds": [0-9.]+\}\]\}$'
check "sample: --json" grep -aqE "$json" b
"$gpt" sample run --prompt the --tokens 0 > b 2> err
check "sample: no tokens" sh -c '[ "$(cat b)" = the ]'
"$gpt" sample run --prompt the --temperature 0 --tokens 12 --seed 1 > a 2> err; "$gpt" sample run --prompt the --top-k 1 --tokens 12 --seed 2 > b 2> err
check "sample: temperature 0 is the likeliest token" cmp a b
train text.txt $tiny --steps 400 --lr 0.01 --out good
"$gpt" sample good --prompt "the old " --tokens 200 --stop . > a 2> err
check "sample: --stop ends before the text" sh -c '! grep -q "\." a && [ $(wc -c < a) -lt 200 ]'
bytes=$(wc -c < text.txt)
tail -c $((bytes - bytes * 9 / 10)) text.txt > tail.txt      # what --val-fraction 0.1 keeps
"$gpt" eval good tail.txt --json > a 2> err
bits=$(grep -a '"kind": "eval"' good/log.jsonl | tail -1 | sed 's/.*"bits_per_byte": \([0-9.]*\).*/\1/')
number() { sed -n 's/^{.*"'"$1"'": \([0-9.]*\).*/\1/p' "$2"; }    # number KEY FILE
check "eval of the validation tail is the run's own" \
  awk -v a="$(number bits_per_byte a)" -v b="$bits" 'BEGIN { d = a - b; exit !(a > 0 && d <= 1e-6 && d >= -1e-6) }'
"$gpt" eval good tail.txt --json --batch 1 > b 2> err
check "eval: the batch changes nothing" cmp <(tail -1 a) <(tail -1 b)
"$gpt" eval good tail.txt --json --stride 4 > b 2> err
check "eval: a stride gives each token more past" awk -v a="$(number loss b)" -v b="$(number loss a)" 'BEGIN { exit !(a > 0 && a < b) }'

"$gpt" data build tail.txt --tokenizer "$(newest good)" --val-fraction 0 --shard-tokens 700 --out tailed > out 2> err
"$gpt" eval good tailed/train_*.bin --json > b 2> err
check "eval: shards as their text" cmp <(tail -1 a) <(tail -1 b)
check "... several, and it says so" sh -c 'set -- tailed/train_*.bin; [ $# -gt 2 ] && grep -q "^tailed/train_000000.bin and $(($# - 1)) more: loss " b'
mkdir untold && cp "$(newest good)"/{config.json,model.safetensors} untold
"$gpt" eval untold tailed/train_*.bin --json > c 2> err
check "eval: shards without a tokenizer have no bytes" [ "$(tail -1 c)" = "$(tail -1 b | sed 's/"bits_per_byte": [0-9.]*/"bits_per_byte": null/; s/"bytes": [0-9]*/"bytes": 0/')" ]
"$gpt" eval good tailed/train_*.bin --json --stride 5 --limit 1000 > b 2> err; "$gpt" eval good tail.txt --json --stride 5 --limit 1000 > c 2> err
check "eval: a stride over shards" cmp <(tail -1 b) <(tail -1 c)

# ---- bad requests: exit code, one line, nothing left behind ----


refuse() {   # refuse CODE NEEDLE ARGUMENTS...
  local code=$1 needle=$2 got before left
  shift 2
  before=$(find . | sort)
  "$gpt" "$@" > out 2> err < /dev/null
  got=$?
  left=$(find . | sort)
  if [ $got -ne "$code" ]; then miss "$*: exit code $got, expected $code: $(head -c 300 err)"
  elif [ "$(wc -l < err)" -ne 1 ]; then miss "$*: stderr is not one line: $(head -c 500 err)"
  elif ! grep -qF -e "$needle" err; then miss "$*: stderr lacks \"$needle\": $(cat err)"
  elif [ "$left" != "$before" ]; then miss "$*: something was left behind: $(diff <(echo "$before") <(echo "$left"))"
  else pass; fi
}

# flags
refuse 2 "did you mean --layers" train text.txt --layres 2
refuse 2 "no such command; did you mean train" trian text.txt
refuse 2 "--layers 8x: is no whole number" train text.txt --layers 8x
refuse 2 "--layers 1.5: is no whole number" train text.txt --layers 1.5
refuse 2 "--layers -1: must be from 1 to 10000" train text.txt --layers -1
refuse 2 "--lr -1: must be from 0" train text.txt --lr=-1
refuse 2 "--lr nan: is no number" train text.txt --lr nan
refuse 2 "--lr 1e999: is no number" train text.txt --lr 1e999
refuse 2 "--seed 99999999999999999999: is no whole number (or it is too large)" train text.txt --seed 99999999999999999999
refuse 2 "--layers is given twice" train text.txt --layers 1 --layers 2
refuse 2 "--layers needs a value" train text.txt --layers
refuse 2 "--top-k is a flag of gpt sample, not of gpt train" train text.txt --top-k 3
refuse 2 "--layers is a flag of gpt train, not of gpt sample" sample run --layers 3
refuse 2 "must be one of gpt2|llama" train text.txt --family gpt3
refuse 2 "must be on or off" train text.txt --bias maybe
refuse 2 "--steps, --tokens, --epochs and --minutes all say how long: give one" train text.txt --steps 3 --epochs 1
printf 'layers = 2\nlayres = 3\n' > bad.conf
refuse 2 "bad.conf line 2: layres is no flag" train text.txt --config bad.conf
refuse 2 "missing.conf: cannot open settings" train text.txt --config missing.conf

# texts
: > empty.txt
mkdir -p nothing/inside
printf 'Ten words are too few for a row of this model.' > short.txt
refuse 2 "missing.txt: cannot open text: No such file" train missing.txt
refuse 2 "empty.txt: the text is empty: 0 bytes in 1 file;" train empty.txt
refuse 2 "empty.txt: the text is empty: 0 bytes in 2 files;" train empty.txt empty.txt
refuse 2 "0 files in this directory" train nothing
refuse 2 "the text is too short: 41 tokens are there for training, 65 are needed for one row of --context 64" train short.txt --tokenizer byte --context 64
printf 'x' > one.txt
refuse 2 "the text is too short" train one.txt --tokenizer byte
if [ "$(id -u)" = 0 ]; then echo "skipped: an unreadable text (root reads everything)"
else cp text.txt secret.txt; chmod 0 secret.txt; refuse 2 "secret.txt: cannot open text: Permission denied" train secret.txt; fi
refuse 2 "--train-data and TEXT text.txt are both given" train text.txt --train-data 'x*.bin'
refuse 2 "--separator is empty; give the text that stands between documents" train text.txt --tokenizer byte --separator ''
refuse 2 '--separator "@@" occurs nowhere in the text: 1 document is found, at least 2 are needed' train text.txt --tokenizer byte --separator '@@'
refuse 2 "--val-data needs --train-data beside it" train text.txt --val-data 'x*.bin'
printf 'abc\377' > broken.txt
refuse 2 "gpt: broken.txt: " train broken.txt --tokenizer char
refuse 2 "x*.bin" train --train-data 'x*.bin'

# shapes
refuse 2 "--heads 5 does not divide --channels 16; use --heads 4" train text.txt --tokenizer byte --heads 5 --channels 16
refuse 2 "--kv-heads 2 with --family gpt2" train text.txt --tokenizer byte --heads 4 --channels 16 --kv-heads 2
refuse 2 "head size 9 (--channels 9 / --heads 1) is odd, rotary positions turn pairs; use --channels 10" train text.txt --tokenizer byte --family llama --heads 1 --channels 9 --layers 1
refuse 2 "use --channels 12" train text.txt --tokenizer byte --family llama --heads 3 --channels 9 --layers 1
refuse 2 "use --heads 4 --kv-heads 4 or --channels 30" plan text.txt --tokenizer byte --family llama --heads 5 --channels 24
refuse 2 "use --heads 2 or --channels 24" plan text.txt --tokenizer byte --model llama-tiny --channels 20      # the kv heads are the preset's
for advice in "--heads 1 --channels 10" "--heads 3 --channels 12" "--heads 4 --kv-heads 4 --channels 24" "--heads 5 --channels 30"; do
  check "... $advice works" sh -c "'$gpt' plan text.txt --tokenizer byte --family llama $advice > out"
done
for advice in "--heads 2 --channels 20" "--channels 24"; do check "... $advice works" sh -c "'$gpt' plan text.txt --tokenizer byte --model llama-tiny $advice > out"; done
refuse 2 "with --tokens-per-step 96 these batches fit: 1, 2, 3, 6" train text.txt --tokenizer byte --context 16 --batch 4 --tokens-per-step 96
refuse 2 "no such preset; did you mean tiny" train text.txt --model tinny
refuse 2 "--min-lr 0.5 is more than --lr 0.1" train text.txt --tokenizer byte --lr 0.1 --min-lr 0.5
refuse 3 "smaller model: fewer --layers or --channels" train text.txt --tokenizer byte --context 16 --batch 4 --heads 2 --layers 500 --channels 16384
refuse 3 "use fewer --ranks, a smaller model" train text.txt --tokenizer byte --context 16 --batch 4 --heads 2 --layers 500 --channels 16384 --ranks 2
# numbers of parameters are two fifths of the bytes here
refuse 3 "use a smaller --batch" train text.txt --tokenizer byte --context 16 --batch 2048 --heads 2 --layers 50 --channels 8192
refuse 3 "use a smaller --batch" train text.txt --tokenizer byte --context 16 --batch 1000000 --heads 2 --layers 100 --channels 64 --tokens-per-step 16M

device_of() { "$gpt" plan text.txt --tokenizer byte --device cpu | sed -n 's/^device //p'; }
check "bound threads are as many as free ones" [ "$(device_of)" = "$(OMP_PROC_BIND=true device_of)" ]
# what is counted of the other ranks: two thirds of the memory that is left are enough for one rank, and too much for two
wide="text.txt --tokenizer byte --layers 1 --channels 256 --heads 2 --context 64"
of_plan() { "$gpt" plan $wide --batch $1 --json 2> err | tail -1 | sed 's/.*"memory_bytes": \([0-9]*\),.*/\1/'; }
left=$("$gpt" plan $wide --batch 1000000 2>&1 | sed -n 's/.*needed, \([0-9.]*\) GiB are left.*/\1/p')
fits=$(awk -v left=$left -v a=$(of_plan 100) -v b=$(of_plan 200) 'BEGIN { printf "%d", 100 + (left * 2 ^ 30 * 0.66 - a) / (b - a) * 100 }')
check "one rank has room" sh -c "'$gpt' plan $wide --batch $fits > out"
refuse 3 "use fewer --ranks, a smaller model, or a smaller --batch" plan $wide --batch $fits --tokens-per-step $((fits * 128)) --ranks 2

# folders and models
refuse 2 "--out run is there already; go on with --resume run" train text.txt $tiny --steps 2 --out run
refuse 2 "--out no/such: the folder no is missing" train text.txt $tiny --steps 2 --out no/such
refuse 2 "--overwrite nothing: is no run folder" train text.txt $tiny --steps 2 --out nothing --overwrite
refuse 2 "--resume nowhere: is no run folder" train --resume nowhere
refuse 2 "--resume nothing: is no run folder" train --resume nothing
refuse 2 "--device cpu computes in fp32, this run began in fp64 and goes on in that only: give --device reference, or start a new run with --init elsewhere" train --resume elsewhere --device cpu
refuse 2 "--lr cannot be given beside --resume" train --resume run --lr 1
refuse 2 "--seed cannot be given beside --resume" train --resume run --seed 1
refuse 2 "--device reference computes in fp64, this run began in fp32" train --resume run --device reference
check "a resume on another device prints no banner" test ! -s out
refuse 2 "TEXT cannot be given beside --resume" train other.txt --resume run
refuse 2 "start a new run from its weights with --init run" train --resume run --steps 9
refuse 2 "--steps 2 is less than the run's 5" train --resume run --steps 2
refuse 2 "--layers cannot be another beside --init: the model's shape is that of run" train text.txt --init run --layers 2
refuse 2 "--model tiny cannot be given beside --init" train text.txt --init run --model tiny
refuse 2 "--init cannot be given beside --resume" train --resume run --init again
refuse 2 "ids, the model's vocabulary 256: take the model's own with --tokenizer run" train text.txt --init run --tokenizer bpe:300
for n in 256 300.5 1000001 x; do refuse 2 "bpe:N needs a whole number N from 257 to 1000000" train text.txt --tokenizer bpe:$n --out never; done
mkdir bare && cp run/step_*/config.json run/step_*/model.safetensors bare 2> err
refuse 2 "ids, the model's vocabulary 256: take the model's own with --tokenizer bare" train text.txt --init bare    # no tokenizer there: one is trained
refuse 2 "gpt: bpe.json: " train text.txt --tokenizer bpe.json --out never
check "bpe:257 is enough" sh -c "'$gpt' plan text.txt --tokenizer bpe:257 > out"
"$gpt" plan text.txt --tokenizer bpe:1000000 > out 2> err
check "bpe:1000000 is a whole number that can be" sh -c '! grep -q "needs a whole number" err'
refuse 2 "--context 32 is more than the 16 learned positions" train text.txt --init run --context 32
# a config.json that is wrong, in its own words, whoever reads it; numbers that nothing can be computed with, before the weights are blamed
foreign() {   # KEY VALUE: the model of a run, with another value there
  rm -rf foreign && mkdir foreign && cp "$(newest llama)"/{config.json,model.safetensors,tokenizer.json} foreign && sed -i "s/\"$1\": [^,]*/\"$1\": $2/" foreign/config.json
}
while read -r key value needle; do
  foreign "$key" "$value"
  for command in "train text.txt --init foreign" "sample foreign" "eval foreign text.txt"; do refuse 2 "gpt: foreign/config.json: $needle" $command; done
done <<'END'
rope_theta "500000" "rope_theta" is the string "500000", it must be a number from 1 to 1e+12 (line 15)
rope_theta -5 "rope_theta" is -5, it must be a number from 1 to 1e+12 (line 15)
rms_norm_eps "1e-5" "rms_norm_eps" is the string "1e-5", it must be a number from 1e-15 to 1 (line 14)
rms_norm_eps 0 "rms_norm_eps" is 0, it must be a number from 1e-15 to 1 (line 14)
tie_word_embeddings "true" "tie_word_embeddings" is the string "true", it must be true or false (line 19)
num_attention_heads 3 "num_key_value_heads" 2 does not divide "num_attention_heads" 3
num_key_value_heads 0 "num_key_value_heads" is 0, it must be a whole number from 1 to 65536 (line 7)
hidden_size 33 "num_attention_heads" 2 does not divide "hidden_size" 33
hidden_size 34 head size 17 ("hidden_size" 34 / "num_attention_heads" 2) is odd, rotary positions turn pairs
END
foreign rope_theta 500000
check "another rotary base that is a number is taken" sh -c "'$gpt' sample foreign --tokens 1 > out"
refuse 2 "nowhere" sample nowhere
refuse 2 "nothing" sample nothing
refuse 2 "gpt sample takes one MODEL" sample run the
train text.txt ${tiny/byte/char} --steps 1 --out letters
printf 'the old\nbear #' > prompt.txt
unseen="character '#' (U+0023) at line"
refuse 2 "gpt: --prompt-file prompt.txt: $unseen 2, column 6" sample letters --prompt-file prompt.txt
refuse 2 "gpt: --prompt: $unseen 1, column 5" sample letters --prompt 'old #'
refuse 2 "gpt: absent.txt: cannot open --prompt-file: No such file" sample letters --prompt-file absent.txt
check "--prompt-file - is named as it was given" sh -c "printf '#' | '$gpt' sample letters --prompt-file - 2>&1 | grep -q '^gpt: --prompt-file -: character'"
(ulimit -n 4; exec "$gpt" sample run) > out 2> err
check "too few open files: exit code" expect_code $? 3
check "too few open files: one line" cmp err <(echo "gpt: $(newest run)/trainer.safetensors: cannot be opened: Too many open files")
refuse 2 "gpt eval needs a MODEL and a TEXT" eval run
refuse 2 "missing.txt: cannot open text" eval run missing.txt
refuse 2 "1 of the 2 files named are shards, the others are not" eval run text.txt tailed/train_000000.bin
"$gpt" data build text.txt --tokenizer gpt2 --val-fraction 0 --out other > out 2> err
refuse 2 "made for a vocabulary of 50257 ids, this tokenizer or model has 256" eval run other/train_000000.bin
"$gpt" data build text.txt --tokenizer char --val-fraction 0 --out strange > out 2> err
refuse 2 "made with tokenizer" eval run strange/train_000000.bin
refuse 2 "--stride 17 is more than the context of 16" eval run text.txt --stride 17
cp text.txt changed.txt
train changed.txt $tiny --steps 4 --schedule constant --out changed
cat other.txt > changed.txt
cp changed/log.jsonl log.before
refuse 2 "the text has changed since this run began" train --resume changed --steps 8
check "a refused resume leaves the log as it was" cmp log.before changed/log.jsonl

echo "tests/test_cli_train.sh: $passed passed, $failed failed"
[ $failed -eq 0 ]
