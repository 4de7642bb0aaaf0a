# Builds ./gpt. `make help` lists the targets. Needs GNU make and gcc >= 10 or clang >= 13, nothing else.
#   make CC=clang   make OPENMP=0   make OPT=-O3   make CFLAGS=-fsanitize=address,undefined   make WERROR=1
# Each combination has its own folder under build/, so that they do not mix.

ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif

CC     := $(if $(filter default,$(origin CC)),$(if $(shell command -v gcc),gcc,cc),$(CC))
OPT    ?= -O2
OPENMP ?= 1
TARGET := $(shell $(CC) -dumpmachine)
X86    := $(filter x86_64%,$(TARGET))

# -ffp-contract=off: every fused multiply-add is written out, so that all compilers compute the same bits. Never fast-math.
BASE   := -std=gnu11 -D_GNU_SOURCE -g -ffp-contract=off -Wall -Wextra -Wshadow -Wstrict-prototypes $(if $(filter 0,$(OPENMP)),-Wno-unknown-pragmas) $(if $(WERROR),-Werror)
KEY    := $(shell printf '%s' '$(CC) $(OPT) $(CFLAGS) $(OPENMP) $(WERROR) $(TARGET)$(if $(LDFLAGS), $(LDFLAGS))' | cksum | cut -d' ' -f1)
BUILD  := build/$(notdir $(firstword $(CC)))$(OPT)-$(KEY)

SOURCES := checkpoint config corpus cpu data data_build dataloader detmath doctor documents evaluate flags json load machine manifest model reference report \
           run safetensors sample stories story_report tensors tokenizer tokenizer_cli tokenizer_files tokenizer_train train trigram util watch bench
# Compiled once per instruction set and chosen at start: one binary runs on any processor (see cpu.h)
PER_SET := cpu_attention cpu_gemm cpu_ops
SETS    := generic $(if $(X86),avx2 avx512)
FLAGS_generic :=
FLAGS_avx2    := -mavx2 -mfma
FLAGS_avx512  := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma

OBJECTS := $(SOURCES:%=$(BUILD)/%.o) $(foreach s,$(SETS),$(PER_SET:%=$(BUILD)/%.$(s).o))
TESTS   := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/test_*.c))

# ---- what is here: found means compiled, linked and run; asked once, kept in the build folder ----
FOUND := $(BUILD)/found.mk
ifeq ($(filter clean help,$(MAKECMDGOALS)),)
-include $(FOUND)
endif
# V=1 shows the compiler's command lines
Q = $(if $(V),,@echo "  cc  $(notdir $@)";)
ALL_FLAGS = $(BASE) $(OPT) $(OMP_FLAGS) $(CFLAGS)

.PHONY: all demo test test-slow mutants clean help print-logits print-build
all: gpt

$(FOUND): dev/probe.sh
	@mkdir -p $(BUILD)
	@CC="$(CC)" OPENMP="$(OPENMP)" sh dev/probe.sh $@

# FORCE: another build's gpt may be the newer one
gpt: $(BUILD)/gpt FORCE
	@[ $@ -ef $< ] || ln -f $< $@ 2>/dev/null || cp -f $< $@

$(BUILD)/gpt: $(BUILD)/gpt.o $(OBJECTS)
	$(Q)$(CC) $(ALL_FLAGS) $(LDFLAGS) -o $@ $^ -lm

$(BUILD)/version.h: FORCE
	@mkdir -p $(BUILD)
	@sh dev/version.sh "$(CC)" > $@.new; cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(BUILD)/%.o: %.c $(FOUND) | $(BUILD)/version.h
	$(Q)$(CC) $(ALL_FLAGS) -I$(BUILD) -MMD -MP -c -o $@ $<

define per_set
$(BUILD)/%.$(1).o: %.c $(FOUND)
	$$(Q)$(CC) $(ALL_FLAGS) $(FLAGS_$(1)) -DCPU_ISA=$(1) -MMD -MP -c -o $$@ $$<
endef
$(foreach s,$(SETS),$(eval $(call per_set,$(s))))

$(BUILD)/test_%.o: tests/test_%.c $(FOUND) | $(BUILD)/version.h
	$(Q)$(CC) $(ALL_FLAGS) -I. -I$(BUILD) -MMD -MP -c -o $@ $<

# a changed source only links them again
$(BUILD)/test_%: $(BUILD)/test_%.o $(OBJECTS)
	$(Q)$(CC) $(ALL_FLAGS) $(LDFLAGS) -o $@ $@.o $(OBJECTS) -lm

.SECONDARY: $(TESTS:%=%.o)

demo: gpt
	./gpt train

# OP=layernorm: only the tests of that operation
test: gpt $(if $(OP),$(BUILD)/test_ops $(BUILD)/test_gradients,$(TESTS))
	@sh tests/run.sh $(BUILD) "$(OP)"

test-slow: gpt $(TESTS)
	@GPT_TEST_SLOW=1 sh tests/run.sh $(BUILD) ""
	@bash tests/same_bits.sh
	@bash tests/aarch64.sh

# N random mutants of the sources, each to be caught by a test
mutants: $(BUILD)/mutate
	@$(BUILD)/mutate --count $(or $(N),8) --seed $(or $(SEED),1) $(FILES)

$(BUILD)/mutate: dev/mutate.c rng.h $(FOUND)
	$(Q)$(CC) $(ALL_FLAGS) -o $@ $<

# dev/print_logits.c: logits as text, for comparing with other programs
print-logits: $(OBJECTS) $(FOUND)
	$(Q)$(CC) $(ALL_FLAGS) $(LDFLAGS) -I. -o build/print_logits dev/print_logits.c $(OBJECTS) -lm

print-build:
	@echo $(BUILD)

clean:
	rm -rf build gpt

help:
	@echo "make            build ./gpt"
	@echo "make demo       build, then train on the embedded stories and judge the result (about a minute and a half)"
	@echo "make test       all quick tests; make test OP=layernorm: those of one operation"
	@echo "make test-slow  the long ones"
	@echo "make mutants    N=8 SEED=1: change the sources at random; every change must make a test fail"
	@echo "make clean      remove build/ and gpt"

FORCE:
-include $(wildcard $(BUILD)/*.d)
