# test_files.sh: owns the proof that no command harms a file that is not its own, and that names, links, pipes, standard input and limits of the
# system are what a user takes them for. `bash tests/test_files.sh`; GPT=./gpt. Everything happens in a temporary folder.
gpt=$(realpath "${GPT:-./gpt}")
passed=0 failed=0
work=$(mktemp -d "${TMPDIR:-/tmp}/gpt_files_XXXXXX") || exit 1
trap 'kill $(jobs -p) 2> /dev/null; rm -rf "$work"' EXIT
cd "$work" || exit 1
[ -x "$gpt" ] || { echo "tests/test_files.sh: there is no ./gpt, make it first: 0 passed, 1 failed"; exit 1; }

pass() { passed=$((passed + 1)); }
miss() { failed=$((failed + 1)); printf 'FAILED tests/test_files.sh: %s\n' "$*"; }
check() { local name=$1; shift; if "$@"; then pass; else miss "$name"; fi; }    # check NAME COMMAND...
run() { timeout -k 5 120 "$gpt" "$@" > out 2> err; }                             # 124: it hung
refuse() {   # refuse CODE NEEDLE ARGUMENTS...: that exit code, one line on stderr with that in it
  local code=$1 needle=$2 got
  shift 2
  run "$@"
  got=$?
  if [ $got -ne "$code" ]; then miss "$*: exit code $got, expected $code: $(head -c 300 err)"
  elif [ "$(wc -l < err)" -ne 1 ]; then miss "$*: stderr is not one line: $(head -c 500 err)"
  elif ! grep -qF -e "$needle" err; then miss "$*: stderr lacks \"$needle\": $(cat err)"
  else pass; fi
}
tree() { find "$1" -printf '%P %y %s\n' | sort; }

awk -v s=7 'BEGIN { n = split("the old bear found a red key and sang slept ran home with his friend", w, " ")
  for (i = 0; i < 3500; i++) { s = s * 16807 % 2147483647; printf "%s%s", w[s % n + 1], i % 9 == 8 ? ".\n" : " " } }' > text.txt
shape="--tokenizer byte --layers 1 --channels 16 --heads 2 --context 16 --batch 2 --threads 1 --sample-every 0"
tiny="$shape --val-every 0"

# ---- --overwrite ----

run train text.txt $tiny --steps 4 --out run
mkdir -p project/src && echo x=1 > project/config.txt && echo 'int main' > project/src/m.c && cp text.txt project
tree project > before
refuse 2 "--overwrite project: src in it is no part of a run, so nothing is removed" train project/text.txt $tiny --steps 2 --out project --overwrite
check "a folder with somebody's files is left as it was" cmp before <(tree project)
cp -r run mine && echo note > mine/notes.txt && tree mine > before
refuse 2 "--overwrite mine: notes.txt in it is no part of a run" train text.txt $tiny --steps 2 --out mine --overwrite
check "a run with a note in it is left as it was" cmp before <(tree mine)
tree run > before
refuse 2 "--overwrite run: would remove the weights that --init takes, run/step_00000004" train text.txt --batch 2 --steps 2 --init run --out run --overwrite
check "weights to begin with stay" cmp before <(tree run)
cp -r run here
check "--out . --overwrite" sh -c "cd here && '$gpt' train ../text.txt $tiny --steps 2 --out . --overwrite > ../out 2> ../err && test -d step_00000002 -a ! -e step_00000004"
"$gpt" train text.txt $tiny --steps 1000000 --save-every 200 --out live > live.out 2>&1 &
pid=$!
for _ in $(seq 400); do sleep 0.02; ls -d live/step_* > out 2> err && break; done
refuse 3 "live: another gpt process is training in this folder" train text.txt $tiny --steps 2 --out live --overwrite
check "... which goes on" kill -INT $pid
wait $pid
check "... to its own checkpoint" sh -c '! grep -q "^steps = 2$" live/config.txt && [ "$(ls -d live/step_* | tail -1)" != live/step_00000002 ]'

# ---- --out FILE ----

run tokenizer train text.txt --vocab 260 --out t.json
if mknod node c 1 3 2> err; then
  check "a device is written to" run tokenizer train text.txt --vocab 260 --out node
  check "... and stays one" test -c node
fi
mkfifo pipe
cat pipe > through &
check "a pipe is written to" run tokenizer train text.txt --vocab 260 --out pipe
wait $!
check "... and stays one" test -p pipe
check "... with all that a file would hold" cmp through t.json
cat pipe > through &
check "ids into a pipe" run tokenizer encode --tokenizer t.json text.txt --format u16 --out pipe
wait $!
run tokenizer encode --tokenizer t.json text.txt --format u16 --out ids
check "... are those of a file" cmp through ids
for s in TERM HUP; do
  exec 9<> pipe   # a text that does not end
  "$gpt" tokenizer encode --tokenizer byte pipe --out stopped > out 2> err 9<&- &
  pid=$!
  for _ in $(seq 200); do sleep 0.02; ls stopped* > out 2> err && break; done
  kill -$s $pid
  wait $pid 2> err
  code=$?
  exec 9<&-
  check "encode ends by SIG$s" [ $code = $((128 + $(kill -l $s))) ]
  check "... and leaves nothing" sh -c '! ls stopped* 2> err'
done
mkdir there && cp t.json there/target && ln -s there/target link
check "behind a link" run tokenizer train text.txt --vocab 270 --out link
check "... its target is written, the link stays" sh -c 'test -L link && ! cmp -s t.json there/target && [ "$(ls there)" = target ]'
chmod 600 there/target
run tokenizer train text.txt --vocab 260 --out there/target
check "permissions stay" [ "$(stat -c %a there/target)" = 600 ]
refuse 2 "--out: the name is empty" tokenizer train text.txt --vocab 260 --out ''
refuse 2 "--out: the name is empty" train text.txt $tiny --steps 2 --out ''

# ---- standard input is read from where it stands ----

printf 'first\nsecond\n' > lines.txt
rest() { { read -r _; "$gpt" "$@" 2> err; } < lines.txt; }
check "tokenizer encode -" [ "$(rest tokenizer encode --tokenizer byte -)" = "$(printf 'second\n' | "$gpt" tokenizer encode --tokenizer byte -)" ]
check "sample --prompt-file -" [ "$(rest sample run --prompt-file - --tokens 0)" = second ]
check "eval -" sh -c "{ read -r _; '$gpt' eval run -; } < lines.txt | grep -q ' 6 tokens, 6 bytes'"
check "bench tokenizer -" sh -c "'$gpt' bench tokenizer --tokenizer byte - --steps 1 < lines.txt | grep -q '^13 bytes'"

# ---- what is looked at is not lost, what is closed stays closed ----

whole=$("$gpt" eval run text.txt | grep -o '[0-9]* tokens')
check "eval /dev/stdin of a pipe: every byte" sh -c "cat text.txt | '$gpt' eval run /dev/stdin | grep -qF ' $whole'"
cat text.txt > pipe &
check "eval of a named pipe: every byte" sh -c "timeout 20 '$gpt' eval run pipe | grep -qF ' $whole'"
wait $!
"$gpt" train text.txt $shape --steps 20 --save-every 1 --keep 0 --out closed >&- 2>&- <&-
check "nothing can be printed: exit code 3" [ $? = 3 ]
check "... and nothing is printed into the run's files" sh -c '! grep -qv "^{\"kind\": .*}$" closed/log.jsonl'
check "... which are whole" run eval closed/step_00000007 text.txt
refuse_closed() { "$gpt" "$@" <&- > out 2> err; [ $? = 3 ] && [ "$(wc -l < err)" = 1 ]; }
check "standard input is closed" refuse_closed eval run -

# ---- shards ----

awk 'BEGIN { for (i = 0; i < 200; i++) print i % 7, "a b c", i * i "\n" }' > documents.txt
run data build documents.txt --documents blank-line --tokenizer byte --out 'g[1]'
check "a folder whose name is a pattern: what is printed" grep -qxF "train on them: gpt train --train-data 'g[1]'" out
train_tokens=$(sed -n 's/^train  \([0-9]*\) tokens.*/\1/p' out) val_tokens=$(sed -n 's/^val    \([0-9]*\) tokens.*/\1/p' out)
check "... works" run train --train-data 'g[1]' ${shape/--tokenizer byte/} --steps 2 --val-every 1 --out sharded
check "... one side trains, the other validates" grep -q "^tokens    $train_tokens to train on, $val_tokens to validate" out
check "... with its tokenizer" test -e sharded/step_00000002/tokenizer.json
check "data check of such a folder" run data check 'g[1]'
for v in a b; do run tokenizer train <(sed "s/bear/$v$v$v$v/" text.txt) --vocab 262 --out $v.json; run data build text.txt --tokenizer $v.json --out d$v; done
refuse 2 "db/val_*.bin: made with tokenizer" train --train-data 'da/train_*.bin' --val-data 'db/val_*.bin' ${tiny/--tokenizer byte/} --steps 2 --out never

# ---- `auto` is nothing said; a stored run ----

run train text.txt $shape --steps 20 --schedule wsd --out spoken
run train text.txt $shape --steps 20 --schedule wsd --warmup auto --decay auto --save-every auto --val-every auto --log-every auto --lr auto --out autos
check "auto" cmp spoken/config.txt autos/config.txt
run plan text.txt ${tiny/--context 16/--context auto}
check "--context auto" [ $? = 0 ]
check "plan --minutes says that it cannot know" sh -c "'$gpt' plan text.txt --minutes 5 --json | grep -q '\"steps\": null, .*\"tokens\": null' && '$gpt' plan text.txt --minutes 5 | grep -q '^length    as many steps as 5 minutes hold'"
cp -r run changed && sed -i 's/^heads = 2/heads = 4/' changed/config.txt
refuse 2 "--heads of its config.txt is not that of its checkpoint" train --resume changed
mkdir elsewhere
check "a text that is not where the run was begun" sh -c "cd elsewhere && ! '$gpt' train --resume ../run 2> ../err && grep -q 'go on from the folder that the run was started in' ../err"
run train --resume run --log-every 3 --keep 7
check "flags beside --resume are said and logged" sh -c 'grep -q "goes on after step 4, with keep = 7, log-every = 3" out && grep -q "\"flags\": \"keep = 7, log-every = 3\"" run/log.jsonl'

run train text.txt ${tiny/--sample-every 0/} --steps 8 --save-every 4 --keep 0 --sample-every 2 --out torn
rm -r torn/step_00000008 && truncate -s -37 torn/log.jsonl
run train --resume torn
check "a torn last line is cut away" sh -c '! grep -v "^{\"kind\": .*}$" torn/log.jsonl && grep -q "^{\"kind\": \"resume\"" torn/log.jsonl'
check "the report has each sample once" [ "$(grep -o '<p>step [0-9]*</p>' torn/report.html | tr -cd '0-9\n' | xargs)" = "2 4 6 8" ]

# ---- documents ----

awk 'BEGIN { for (i = 0; i < 2000; i++) printf "doc %04d\n", i }' > rows.txt
rows="rows.txt --tokenizer byte --layers 1 --channels 16 --heads 2 --batch 16 --threads 1 --sample-every 0"
run plan $rows --separator $'\n' --context 256 --epochs 1 --val-fraction 0
check "--epochs 1 is every document once" grep -q '^length    125 steps, .* 1.00 epochs' out
run train $rows --separator $'\n' --context 32 --steps 2 --val-every 1 --val-tokens 500 --out scored
tokens=$(grep '"kind": "eval"' scored/log.jsonl | head -1 | sed 's/.*"tokens": \([0-9]*\).*/\1/')
check "--val-tokens counts tokens, not padding" [ "${tokens:-0}" -gt 460 -a "${tokens:-0}" -le 500 ]
printf 'a b\r\nc\r\n\r\nd e\r\n\r\nf\r\n' > crlf.txt && printf 'a b\r\nc\n\nd e\n\nf\n' > lf.txt
for f in crlf lf; do run data build $f.txt --tokenizer byte --documents blank-line --val-fraction 0 --out $f.d; run tokenizer train $f.txt --vocab 257 --documents blank-line --allow-fewer on --out $f.json; done
check "documents end before CR LF as before LF" cmp crlf.d/train_000000.bin lf.d/train_000000.bin
check "... a tokenizer's too" cmp crlf.json lf.json
for i in $(seq 50); do echo '{"text": "hello world", "meta": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}'; done > lines.jsonl
run data build lines.jsonl --jsonl text --tokenizer gpt2 --val-fraction 0 --out lines.d
check "of JSON lines the field's bytes count" grep -q '^0.001 MB of text, 3.64 bytes a token' out

# ---- tokens that are not what they look like ----

printf 'the cat the dog the cat the dog the old the bear the the the\n' > the.txt
refuse 2 '--add-special " the": the texts hold it so often' tokenizer train the.txt --vocab 262 --add-special ' the' --out special.json
check "... nothing is written" test ! -e special.json
refuse 2 "is a shard of token ids, not a text" eval run da
refuse 2 "is a shard of token ids, not a text" train da/train_000000.bin $tiny --steps 2 --out never

run train text.txt ${tiny/byte/bpe:300} --steps 1 --out padded
mkdir foreign && cp padded/step_*/config.json padded/step_*/model.safetensors foreign && run tokenizer info --tokenizer byte --out foreign/tokenizer.json
check "ids that only the model has are not sampled: a byte for every token" [ "$("$gpt" sample foreign --temperature 100 --tokens 300 2> err | wc -c)" -ge 300 ]

# ---- limits ----

head -c 1500 documents.txt > few.txt
run data build few.txt --documents blank-line --tokenizer byte --shard-tokens 2 --val-fraction 0.5 --out shards
check "more shards than a process may have files" sh -c "[ \$(ls shards/*.bin | wc -l) -gt 520 ] && (ulimit -n 1024; '$gpt' plan --train-data shards $(echo ${shape/--tokenizer byte/}) > out 2> err)"

(ulimit -f 4; run tokenizer train text.txt --vocab 300 --out limited.json; [ $? = 3 ] && grep -q 'cannot write .*File too large' err)
check "a limit on file sizes is said" [ $? = 0 ]
check "... and nothing is left" sh -c '! ls limited.json* 2> err'
check "more threads than there can be" sh -c "OMP_NUM_THREADS=99999 '$gpt' plan text.txt $tiny > out 2> err"
alone="setpriv --reuid=65534 --regid=65534 --clear-groups"   # root has no limit
[ "$(id -u)" = 0 ] || alone=
mkdir public && chmod 777 public && chmod 755 . && cp -r run text.txt "$gpt" public
few() { (cd public && bash -c "ulimit -u 1; OMP_NUM_THREADS=2 exec $alone ./gpt $*" > ../out 2> ../err); }
if few tokenizer encode --tokenizer byte text.txt && ! bash -c "ulimit -u 1; exec $alone sh -c 'sleep 0 & wait'" > out 2>&1; then
  for words in "data build text.txt --tokenizer byte --threads 2 --out shards" "tokenizer train text.txt --vocab 260 --threads 2 --out t.json" "sample run" "eval run text.txt"; do
    few $words
    check "threads that the system refuses: gpt $words: exit code 3" [ $? = 3 ]
    check "... one line" sh -c '[ "$(wc -l < err)" = 1 ] && grep -q "^gpt: threads: 2 are needed, the system gives this process 1 (.*); use --threads 1" err'
    check "... nothing else" [ "$(ls public | xargs)" = "gpt run text.txt" ]
  done
fi
check "bench: family and size" sh -c "'$gpt' bench train --family llama --layers 1 --channels 16 --heads 2 --context 16 --batch 2 --steps 1 | grep -q '^llama-tiny, '"
refuse 2 "gpt doctor takes no names, nonsense was given" doctor nonsense
refuse 2 "gpt tokenizer info takes no texts, nonsense was given" tokenizer info nonsense --tokenizer byte

echo "tests/test_files.sh: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
