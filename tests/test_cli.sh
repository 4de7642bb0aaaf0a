# test_cli.sh: owns the proof of the surface of the built binary: help, version, exit codes, what goes to stdout and what to stderr,
# and the refusal of bad requests to tokenizer, data, report, plan, doctor and bench in one line with nothing left behind.
# Training, sample and eval: test_cli_train.sh. `bash tests/test_cli.sh`; GPT=./gpt. Everything happens in a temporary folder.
gpt=$(realpath "${GPT:-./gpt}")
root=$PWD
passed=0 failed=0
work=$(mktemp -d "${TMPDIR:-/tmp}/gpt_surface_XXXXXX") || exit 1
trap 'chmod -R u+rwx "$work"; rm -rf "$work"' EXIT
cd "$work" || exit 1

pass() { passed=$((passed + 1)); }
miss() { failed=$((failed + 1)); printf 'FAILED tests/test_cli.sh: %s\n' "$*"; }
check() { local name=$1; shift; if "$@"; then pass; else miss "$name"; fi; }    # check NAME COMMAND...

refuse() {   # refuse CODE NEEDLE ARGUMENTS...: that exit code, one line on stderr with that in it, no file more or less or changed
  local code=$1 needle=$2 got before left
  shift 2
  before=$(find . ! -name . -printf '%p %s %T@\n' | grep -v '^\./\(out\|err\) ' | sort)
  "$gpt" "$@" > out 2> err < /dev/null
  got=$?
  left=$(find . ! -name . -printf '%p %s %T@\n' | grep -v '^\./\(out\|err\) ' | sort)
  if [ $got -ne "$code" ]; then miss "$*: exit code $got, expected $code: $(head -c 300 err)"
  elif [ "$(wc -l < err)" -ne 1 ]; then miss "$*: stderr is not one line: $(head -c 500 err)"
  elif ! grep -qF -e "$needle" err; then miss "$*: stderr lacks \"$needle\": $(cat err)"
  elif [ "$left" != "$before" ]; then miss "$*: something was left behind: $(diff <(echo "$before") <(echo "$left"))"
  else pass; fi
}
quiet() { "$gpt" "$@" > out 2> err < /dev/null && [ ! -s err ]; }    # exit code 0, nothing on stderr

# ---- help and version ----

commands=$(cd "$root" && sed -n 's/^  {"\([a-z]*\)", \(NULL\|"[a-z]*"\), COMMAND_.*/\1 \2/p' gpt.c | sed 's/ NULL//; s/"//g')
check "the command table was read" [ "$(echo "$commands" | wc -l)" -ge 14 ]
check "help" quiet help
cp out help
while read -r command; do
  check "help names gpt $command" grep -q "^  gpt $command " help
  check "help $command" quiet help $command
  check "help $command begins with its usage" grep -q "^gpt $command" out
  cp out one
  check "$command --help is the same" sh -c "'$gpt' $command --help | cmp - one"
  check "${command% *} --help is help ${command% *}" sh -c "'$gpt' help ${command% *} > one && '$gpt' ${command% *} --help | cmp - one"
  refuse 2 "takes one command, nonsense is more" help $command nonsense
  refuse 2 "--no-such-flag: no such flag" $command --no-such-flag
  refuse 2 "flags are long" $command -z
done <<< "$commands"
check "--help is help" sh -c "'$gpt' --help | cmp - help"
check "help tokenizer shows its four" sh -c "[ \$('$gpt' help tokenizer | grep -c '^gpt tokenizer') = 4 ]"
check "help train shows default and range" sh -c "'$gpt' help train | grep -q -- '--seed .*(1337)'"
check "--version" quiet --version
check "--version: version, commit, compiler" grep -qE '^gpt [0-9.]+, commit [^ ]+, built with .' out
"$gpt" > out 2> err
check "without a command: exit code 2, usage on stderr" [ $? -eq 2 -a ! -s out -a -s err ]
refuse 2 "gpt trian: no such command; did you mean train" trian
refuse 2 "gpt qqqqqqqqqqqq: no such command; see gpt help" qqqqqqqqqqqq
refuse 2 "gpt tokenizer tarin: no such command; did you mean train" tokenizer tarin
refuse 2 "gpt data needs a word behind it" data
refuse 2 "did you mean tokenizer" help tokeniser
refuse 2 "did you mean check" help data chek
check "README names no flag that does not exist" sh -c '
  for flag in $(grep -oE -e "(^|[ \`(])--[a-z][a-z0-9-]+" "$0/README.md" 2> no_readme | grep -oE -e "--[a-z0-9-]+" | sort -u); do
    grep -q "\"${flag#--}\"" "$0/flags.h" || case $flag in --version|--help) ;; *) echo "$flag"; exit 1 ;; esac
  done' "$root"
rm -f no_readme

# ---- tokenizer ----

printf 'the old bear found a red key and the old fox sang to the bear.\n\nthe red key was the key to the old house.\n' > text.txt
printf '\377\376 any \200 bytes \000 go in' > bytes.bin
: > empty.txt
check "tokenizer train" quiet tokenizer train text.txt --vocab 270 --out tok.json
for t in gpt2 byte tok.json; do
  for f in text.txt bytes.bin; do
    check "encode $f with $t" sh -c "'$gpt' tokenizer encode --tokenizer $t $f > ids"
    check "decode gives $f back" sh -c "'$gpt' tokenizer decode --tokenizer $t ids | cmp - $f"
    check "encode from stdin is the same" sh -c "'$gpt' tokenizer encode --tokenizer $t - < $f | cmp - ids"
    check "encode to a file of u32 and back" sh -c "'$gpt' tokenizer encode --tokenizer $t $f --format u32 --out ids.u32 && '$gpt' tokenizer decode --tokenizer $t --format u32 ids.u32 | cmp - $f"
  done
done
check "gpt2 on a known line" sh -c "[ \"\$(printf 'Hello world' | '$gpt' tokenizer encode --tokenizer gpt2 -)\" = '15496 995' ]"
check "--tokenizer=T is --tokenizer T" sh -c "'$gpt' tokenizer encode --tokenizer=byte text.txt | cmp - ids0 2> err || '$gpt' tokenizer encode --tokenizer byte text.txt > ids0; '$gpt' tokenizer encode --tokenizer=byte text.txt | cmp - ids0"
check "info --json: the last line is an object" sh -c "'$gpt' tokenizer info --tokenizer gpt2 --json | tail -1 | grep -q '^{.*50257.*}$'"
refuse 2 "--stochastic-rounding on is for --precision bf16" bench train --stochastic-rounding on
refuse 2 "--gemm cublaslt needs --device cuda" bench gemm --device cpu --gemm cublaslt
refuse 2 "--gemm wgmma needs --device cuda" bench gemm --device cpu --gemm wgmma --precision bf16
refuse 2 "--gemm wgmma is for --precision bf16" bench gemm --gemm wgmma
refuse 2 "missing.txt" tokenizer train missing.txt --vocab 300 --out x.json
refuse 2 "--out is missing" tokenizer train text.txt --vocab 300
refuse 2 "--vocab 100: the 256 bytes" tokenizer train text.txt --vocab 100 --out x.json
refuse 2 "--allow-fewer" tokenizer train text.txt --vocab 30000 --out x.json
refuse 2 "--vocab 8x: is no whole number" tokenizer train text.txt --vocab 8x --out x.json
refuse 2 "must be one of gpt2|gpt4|none" tokenizer train text.txt --vocab 300 --pattern gpt5 --out x.json
refuse 2 "the text has 0 bytes, at least 2 are needed" tokenizer train empty.txt --vocab 300 --out x.json
refuse 3 "x.json" tokenizer train text.txt --vocab 270 --out no/such/folder/x.json
refuse 2 "--threads 0: must be from 1 to 4096" tokenizer train text.txt --vocab 270 --threads 0 --out x.json
# words are counted by any number of threads: the same tokenizer
awk 'BEGIN { for (i = 0; i < 20000; i++) printf "the%c%c%c old word\n\n", 97 + i % 26, 97 + i / 26 % 26, 97 + i / 676 % 26 }' > many.txt
for documents in blank-line file; do
  for threads in 1 2 3 7; do check "tokenizer train --threads $threads" quiet tokenizer train many.txt --documents $documents --vocab 400 --threads $threads --out many$threads.json; done
  check "any number of threads, one tokenizer: $documents" [ "$(cat many?.json | wc -c)" -gt 4000 -a "$(sha256sum many?.json | cut -c1-64 | sort -u | wc -l)" = 1 ]
done
for threads in 1 3; do refuse 2 "are needed for the words of the first 20000 documents, --max-memory allows 1048576" tokenizer train many.txt --documents blank-line --vocab 400 --max-memory 1Mi --threads $threads --out x.json; done
refuse 2 "missing.json" tokenizer encode --tokenizer missing.json text.txt
# a stream is encoded piece by piece: the ids of the whole, in bounded memory
awk 'BEGIN { s = 3; n = split("the old bear found a red key, don'"'"'t you 12345 ... naïve 漢字 x=1;", w, " "); for (i = 0; i < 500000; i++) { s = s * 16807 % 2147483647; printf "%s%s", w[s % n + 1], s % 11 ? " " : "\n\n" } }' > stream.txt
for tokenizer in gpt2 byte tok.json; do
  "$gpt" tokenizer encode --tokenizer $tokenizer stream.txt --special all --format u32 > whole.u32     # special tokens are looked for in the whole text
  "$gpt" tokenizer encode --tokenizer $tokenizer --format u32 --out pieces.u32 < stream.txt
  check "encode $tokenizer: pieces of a stream" cmp whole.u32 pieces.u32
done
check "encode: text, with one line end" test "$("$gpt" tokenizer encode --tokenizer byte stream.txt | tr -c '\n' x | wc -lw | tr -s ' ')" = " 1 1"
check "encode: an empty text" test "$(: | "$gpt" tokenizer encode --tokenizer gpt2 | od -An -c | tr -d ' ')" = '\n'
if { (ulimit -v 250000; "$gpt" --version) > out 2>&1; } 2> err; then    # sanitizers need more
  check "encode: 100 MB in bounded memory" test "$( (ulimit -v 250000; yes "the old bear found a red key" | head -c 100000000 | "$gpt" tokenizer encode --tokenizer gpt2 --format u16 - 2> err) | wc -c)" = 55172414
fi
refuse 2 "text.txt" tokenizer encode --tokenizer text.txt text.txt
refuse 2 "missing.txt" tokenizer encode --tokenizer byte missing.txt
refuse 2 "--show and --format are both given" tokenizer encode --tokenizer byte text.txt --show --format u16
check "decode: ids in quotes" [ "$("$gpt" tokenizer decode --tokenizer gpt2 "15496 995")" = "Hello world" ]
refuse 2 "--vocab is a flag of gpt tokenizer train, not of gpt tokenizer encode" tokenizer encode --tokenizer byte text.txt --vocab 3
printf '5 300\n' > high.ids
printf '5 x 6\n' > no.ids
printf 'abc' > odd.u16
refuse 2 "id 300, number 2 of the list, is not in the vocabulary: it has" tokenizer decode --tokenizer byte high.ids
refuse 2 "no.ids: line 1: id 2 is not a whole number" tokenizer decode --tokenizer byte no.ids
refuse 2 "odd.u16: 3 bytes are no whole number of 2-byte ids" tokenizer decode --tokenizer byte --format u16 odd.u16

# ---- data ----

check "data build" quiet data build text.txt --tokenizer tok.json --documents blank-line --val-fraction 0 --out shards
check "data check" quiet data check 'shards/*.bin'
check "data check --order on" quiet data check 'shards/*.bin' --order on --context 5 --epochs 3
check "data info" quiet data info shards
check "data info decodes the beginning" grep -q 'the old bear found' out
check "data info --json: the last line is an object" sh -c "'$gpt' data info shards --json | tail -1 | grep -q '^{.*\"tokens\": *[0-9].*}$'"
printf 'one\0two\n\0three\nfour' > zeros.txt
check "data build of a text with zeros" quiet data build zeros.txt --tokenizer byte --documents none --val-fraction 0 --out zeros
check "data info shows what is behind them" sh -c "'$gpt' data info zeros | grep -cE '^  \| (one.two|.three|four)' -a | grep -qx 3"
printf a > single.txt
check "data build of one token" quiet data build single.txt --tokenizer byte --documents none --val-fraction 0 --out single
mkdir vacant
check "data build into an empty folder that is there" quiet data build single.txt --tokenizer byte --documents none --val-fraction 0 --out vacant
check "data info of one token" quiet data info single --json
check "one token of one byte" grep -q '"bytes": 1, "bytes_per_token": 1,' out
shard=$(ls shards/*.bin | head -1)
cp "$shard" damaged.bin && printf '\001' | dd of=damaged.bin bs=1 seek=1030 conv=notrunc 2> err
head -c 1100 "$shard" > cut.bin
head -c 1000 /dev/zero > zero.bin
refuse 1 "damaged.bin: byte" data check damaged.bin
refuse 1 "cut.bin: byte" data check cut.bin
refuse 2 "zero.bin" data check zero.bin
refuse 2 "text.txt" data check text.txt
refuse 2 "0 files match" data check 'nothing*.bin'
refuse 2 "this needs a PATTERN" data check
refuse 2 "this needs a PATTERN" data info
refuse 2 "nothing*.bin" data info 'nothing*.bin'
refuse 2 "needs a TEXT" data build --tokenizer byte --out new
refuse 2 "--tokenizer is missing" data build text.txt --out new
refuse 2 "--out is missing" data build text.txt --tokenizer byte
refuse 2 "missing.txt" data build missing.txt --tokenizer byte --out new
refuse 2 "empty.txt" data build empty.txt --tokenizer byte --out new
refuse 2 "missing.json" data build text.txt --tokenizer missing.json --out new
refuse 2 "--val-fraction 1: must be from 0 to 0.9" data build text.txt --tokenizer byte --out new --val-fraction 1
refuse 2 "--shard-tokens 0: must be from 1" data build text.txt --tokenizer byte --out new --shard-tokens 0
refuse 2 "--jsonl and --documents are both given" data build text.txt --tokenizer byte --out new --jsonl text --documents file
refuse 2 "text.txt" data build text.txt --tokenizer byte --out new --jsonl text
refuse 2 "no/such: the folder no is missing" data build text.txt --tokenizer byte --out no/such
refuse 2 "must be one of no|u16|u32" data check --raw u8 "$shard"

# ---- report, plan, doctor, bench ----

refuse 2 "needs at least one RUN" report
refuse 2 "nowhere: is no run folder" report nowhere
refuse 2 "shards: is no run folder" report shards
check "plan" quiet plan --model gpt2-124M
refuse 2 "--json is a flag of gpt sample, not of gpt train" train --json
check "plan --json" quiet plan --model gpt2-124M --json
check "plan --json ends with one object" grep -qE '^\{"parameters": 8[0-9]{7}, "steps": [0-9]+, .*"memory_bytes": [0-9]+, "memory": \{"weights": [0-9]+, .*\}\}$' <(tail -1 out)
check "plan writes nothing" [ ! -e run ]
for word in gemm attention all; do
  check "bench $word" quiet bench $word --model tiny --batch 1 --context 8 --steps 1 --vocab 64 --threads 1 --json
  [ $word = all ] && before='\{"gemm": ' || before=
  check "bench $word ends with one object" grep -qE "^$before\{\"gflops\": [0-9.]+, \"peak_gflops\": [0-9.]+, \"fraction_of_peak\": [0-9.]+, \"bandwidth_gb_per_s\": [1-9][0-9.]+, \"thrown_out\": [0-9]+, \"figures\": \[\{.*\}\$" <(tail -1 out)
done
if "$gpt" doctor | grep -q '^OpenMP  *yes'; then   # a thread tied to one processor still sees the others; more threads than processors do not run
  all=$("$gpt" bench gemm --batch 1 --context 8 --steps 1 --vocab 64 | grep -o '[0-9]* threads*$')
  check "OMP_PROC_BIND leaves the threads" [ "$(OMP_PROC_BIND=true "$gpt" bench gemm --batch 1 --context 8 --steps 1 --vocab 64 | grep -o '[0-9]* threads*$')" = "$all" ]
  check "--threads over the processors" sh -c "'$gpt' bench gemm --batch 1 --context 8 --steps 1 --vocab 64 --threads 4096 2> err | grep -q ' $(nproc) threads*$'"
  check "--threads over the processors is said" grep -q 'gpt: warning: --threads 4096: this process may run on' err
fi
# the model is the one that train would take for these flags
for flags in "--family llama" "--family llama --heads 4 --kv-heads 2" "--model tiny --family llama" "--model llama-tiny --channels 64"; do
  check "bench train $flags" quiet bench train $flags --layers 1 --batch 1 --context 8 --steps 1 --vocab 64 --threads 1 --trace
  check "... is a Llama's" grep -q rmsnorm_forward out
done
refuse 2 "--bias on with --family llama" bench train --model llama-tiny --bias on
refuse 2 "leave it out or use --family llama" bench train --kv-heads 2
# what the breakdown adds up to is the step: all that a step does goes through the device. Best of five, for others may take the core in between.
for _ in 1 2 3 4 5; do
  check "bench train --trace" quiet bench train --batch 4 --context 64 --steps 1 --vocab 512 --threads 1 --trace
  share=$(sed -n 's/^sum .* operations .* ms, \([0-9.]*\)% of the step.*/\1/p' out)
  awk -v s="$share" 'BEGIN { exit !(s >= 97 && s <= 100) }' && break
done
check "--trace adds up to the step within 3 %: $share" awk -v s="$share" 'BEGIN { exit !(s >= 97 && s <= 100) }'
check "--trace says how fast the memory is" grep -qE '^sum +memory: [1-9][0-9.]* GB/s' out
check "--trace holds AdamW against it" grep -qE '^sum +adamw .* [1-9][0-9]*% of memory' out
printf 'a word, a word\n' > words.txt
check "bench tokenizer" quiet bench tokenizer --tokenizer gpt2 words.txt --steps 1 --json
check "bench tokenizer ends with one object" grep -qE '^\{"encode_cold_mb_per_s": [0-9.]+, "encode_mb_per_s": [0-9.]+, "decode_mb_per_s": [0-9.]+\}$' <(tail -1 out)
refuse 2 "TEXT is missing" bench tokenizer --tokenizer gpt2
refuse 2 "words.txt: this bench takes flags only" bench gemm words.txt
refuse 3 " GiB are needed, " bench gemm --batch 1M --context 16Mi --steps 1
refuse 3 " GiB are needed, " bench attention --model gpt2-1558M --batch 1M --steps 1
for text in "" , ,,; do refuse 2 "--text \"$text\": 0 names between its commas" plan --text "$text"; done
refuse 2 "--text text.txt and TEXT words.txt are both given" plan --text text.txt words.txt
printf '\357\273\277steps = 7\ntext = text.txt\ntokenizer = byte\ncontext = 8\n' > bom.conf
check "settings behind a byte order mark" sh -c "'$gpt' plan --config bom.conf | grep -q '^length    7 steps'"
check "texts on the command line win over those of settings" sh -c "'$gpt' plan --config bom.conf stream.txt | grep -q '^text      2.'"
refuse 2 "no such preset" plan --model gpt2-125M
refuse 2 "--heads 5 does not divide" plan --heads 5 --channels 16 --layers 1
check "doctor" quiet doctor
check "doctor prints the self-test" grep -qE '^self-test' out
check "forced down, the same hash" sh -c "
  for isa in generic avx2; do GPT_CPU=\$isa '$gpt' doctor; done | grep -oE '^self-test.*[0-9a-f]{16}' | grep -oE '[0-9a-f]{16,}' | sort -u | wc -l | grep -qx 2"   # of fp32 and of bf16
refuse 2 "--threads 0: must be from 1 to 4096" doctor --threads 0
refuse 2 "--threads needs a value" doctor --threads
refuse 2 "--steps x: is no whole number" bench train --steps x

# ---- stdout that cannot take it, and stdout that is no terminal ----

if [ -w /dev/full ]; then
  for words in "help" "tokenizer encode --tokenizer byte text.txt" "data info shards" "doctor" "--version"; do
    "$gpt" $words > /dev/full 2> err
    code=$?
    check "$words on a full disk: exit code 3, one line" [ $code -eq 3 -a "$(wc -l < err)" = 1 ]
  done
fi
check "no cursor tricks" sh -c "! '$gpt' help train | grep -q \$'\033'"

echo "tests/test_cli.sh: $passed passed, $failed failed"
[ $failed -eq 0 ]
