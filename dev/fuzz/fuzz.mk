# make fuzz [FOR=600]: each target that many seconds, two at a time; needs clang with libFuzzer. Findings lie in build/fuzz/.
FUZZ := json ranks shard index encode
FUZZ_SOURCES := dev/fuzz/fuzz.c tokenizer.c tokenizer_merge.c tokenizer_pieces.c tokenizer_files.c tokenizer_train.c manifest.c json.c util.c dataloader.c shard_index.c

build/fuzz/%: $(FUZZ_SOURCES) dev/fuzz/track.h dev/fuzz/fuzz.mk
	@mkdir -p build/fuzz
	clang -std=gnu11 -D_GNU_SOURCE -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -include dev/fuzz/track.h -DTARGET=fuzz_$* -I. -o $@ $(FUZZ_SOURCES) -lm

# first inputs: valid files, small
build/fuzz/seeds: gpt dev/fuzz/fuzz.mk
	@rm -rf $@ && mkdir -p $(FUZZ:%=$@/%) && cp Makefile $@/encode/ && cp tests/data/gpt2_golden.jsonl $@/encode/
	@./gpt tokenizer train Makefile --vocab 300 --out $@/json/bpe.json > /dev/null && ./gpt tokenizer info --tokenizer byte --out $@/json/byte.json > /dev/null
	@for i in $$(seq 0 255); do printf "\\$$(printf %03o $$i)" | base64 | sed "s/$$/ $$i/"; done > $@/ranks/bytes.tiktoken
	@(cat $@/ranks/bytes.tiktoken; printf 'aXQ= 256\nICA= 257\n') > $@/ranks/more.tiktoken
	@./gpt data build LICENSE --tokenizer byte --out $@/build > /dev/null && mv $@/build/*train*.bin $@/shard/ && rm -r $@/build
	@for count in 3 600; do (head -c 33 /dev/zero; for i in $$(seq 0 3 $$((3 * count - 1))); do printf "\\$$(printf %03o $$((i % 256)))\\$$(printf %03o $$((i / 256)))\\0\\0\\0\\0\\0\\0"; done) > $@/index/$$count.idx; done

fuzz: $(FUZZ:%=build/fuzz/%) build/fuzz/seeds
	@cd build/fuzz && printf '%s\n' $(FUZZ) | ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 xargs -P 2 -I{} sh -c 'mkdir -p corpus/{}; ./{} -max_total_time=$(or $(FOR),600) -timeout=$(or $(LONGEST),1) -rss_limit_mb=2048 -max_len=20000 -close_fd_mask=0 -print_final_stats=1 -artifact_prefix={}- corpus/{} seeds/{} > {}.log 2>&1; \
	  code=$$?; echo "{}: $$(grep -o "number_of_executed_units: *[0-9]*" {}.log | grep -o "[0-9]*$$") executions, exit code $$code"; [ $$code -eq 0 ] || { grep -v "^gpt: " {}.log | tail -25; exit 1; }'
.PHONY: fuzz
