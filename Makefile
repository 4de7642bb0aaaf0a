# Builds ./gpt. `make help` lists the targets. Needs GNU make and gcc >= 10 or clang >= 13, nothing else.
#   make CUDA=0   make CUDA_ARCHS=all   make CC=clang   make OPENMP=0   make OPT=-O3   make CFLAGS=-fsanitize=address,undefined   make WERROR=1
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
BASE   := -std=gnu11 -D_GNU_SOURCE -g -ffp-contract=off -Wall -Wextra -Wshadow -Wstrict-prototypes -pthread $(if $(filter 0,$(OPENMP)),-Wno-unknown-pragmas) $(if $(WERROR),-Werror)
KEY    := $(shell printf '%s' '$(CC) $(OPT) $(CFLAGS) $(OPENMP) $(WERROR) $(TARGET)$(if $(LDFLAGS), $(LDFLAGS))$(if $(filter 0,$(CUDA)), CUDA=0)' | cksum | cut -d' ' -f1)
BUILD  := build/$(notdir $(firstword $(CC)))$(OPT)-$(KEY)

SOURCES := checkpoint comm comm_shared comm_tcp config corpus cpu data data_build dataloader detmath doctor documents evaluate flags json load machine manifest model ranks reference report \
           run safetensors sample shard_index stories story_report tensors tokenizer tokenizer_cli tokenizer_files tokenizer_merge tokenizer_pieces tokenizer_train train trigram util watch bench
# Compiled once per instruction set, for fp32 and for bf16, and chosen at start: one binary runs on any processor (see cpu.h)
PER_SET := cpu_attention cpu_gemm cpu_ops
SETS     = generic generic_bf16 $(if $(X86),avx2 avx512 avx2_bf16 avx512_bf16 avx512bf16) $(if $(AMX),amx)
FLAGS_generic :=
FLAGS_avx2    := -mavx2 -mfma
FLAGS_avx512  := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma
FLAGS_generic_bf16 := -DCPU_STORES_BF16
FLAGS_avx2_bf16    := $(FLAGS_avx2) -DCPU_STORES_BF16
FLAGS_avx512_bf16  := $(FLAGS_avx512) -DCPU_STORES_BF16
FLAGS_avx512bf16   := $(FLAGS_avx512) -mavx512bf16 -DCPU_STORES_BF16
FLAGS_amx          := $(FLAGS_avx512) -mamx-tile -mamx-bf16 -DCPU_STORES_BF16 -DCPU_TILES
# For the tests: the tiles' kernels with a stand-in for their instructions, in plain C and with the vectors that they have on a processor with tiles
FLAGS_amx_emulated       := -DCPU_STORES_BF16 -DCPU_TILES -DCPU_EMULATES_TILES
FLAGS_amx_emulated512    := $(FLAGS_avx512) $(FLAGS_amx_emulated)

# ---- what is here: found means compiled, linked and run; asked once, kept in the build folder ----
FOUND := $(BUILD)/found.mk
ifeq ($(filter clean help print-build,$(MAKECMDGOALS)),)
-include $(FOUND)
endif
# a set's objects; tiles have products of their own
set_objects  = $(patsubst %,$(BUILD)/%.$(1).o,$(if $(filter amx%,$(1)),$(PER_SET:cpu_gemm=cpu_gemm_amx),$(PER_SET)))
OBJECTS     := $(SOURCES:%=$(BUILD)/%.o) $(foreach s,$(SETS),$(call set_objects,$s))
TESTS       := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/test_*.c))
# The CUDA device, or the file that says there is none. nvcc has its own host compiler and flags, so all builds share one object.
# CUDA_ARCHS: capabilities as nvcc names them; all: every target; left out: the GPU that is here, else sm_80. PTX always goes with it.
CUDA_ARCHS   ?= $(or $(CUDA_GPU),sm_80)
ALL_ARCHS    := sm_80 sm_86 sm_89 sm_90a sm_100a sm_120a
CUDA_TARGETS := $(if $(filter all,$(CUDA_ARCHS)),$(ALL_ARCHS),$(CUDA_ARCHS))
CUDA_OBJECT  := $(if $(NVCC),build/cuda/train_gpt$(subst $(eval) ,,$(CUDA_TARGETS:sm_%=-%)).o,$(BUILD)/cuda_missing.o)
OBJECTS      += $(CUDA_OBJECT) $(if $(NVCC),$(BUILD)/comm_nccl.o)
# -fmad=false: as on the CPU, every fused multiply-add is written out. The host part needs no C++ library.
NVCC_FLAGS   := -std=c++17 -O3 -fmad=false -Werror all-warnings -Xcompiler -Wall,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics --threads 2
# V=1 shows the compiler's command lines
Q = $(if $(V),,@echo "  cc  $(notdir $@)";)
ALL_FLAGS = $(BASE) $(OPT) $(OMP_FLAGS) $(if $(AMX),-DCPU_BUILDS_AMX) $(CFLAGS)

.PHONY: all demo test test-cuda test-nccl test-launchers test-slow mutants cuda-mutants cuda-waits parallel-ladder gemm-ladder model-check bench-comm bench-tokenizer bench-peers bench-peers-gemm clean help print-logits print-build
all: gpt

$(FOUND): dev/probe.sh
	@mkdir -p $(BUILD)
	@CC="$(CC)" OPENMP="$(OPENMP)" CUDA="$(CUDA)" sh dev/probe.sh $@

# FORCE: another build's gpt may be the newer one
gpt: $(BUILD)/gpt FORCE
	@[ $@ -ef $< ] || ln -f $< $@ 2>/dev/null || cp -f $< $@

$(BUILD)/gpt: $(BUILD)/gpt.o $(OBJECTS)
	$(Q)$(CC) $(ALL_FLAGS) $(LDFLAGS) -o $@ $^ $(CUDA_LIBS) -lm

build/cuda/train_gpt%.o: train_gpt.cu $(wildcard *.cuh) device.h detmath.h
	@mkdir -p build/cuda
	$(if $(V),,@echo "  nvcc $(notdir $@)";)$(NVCC) $(NVCC_FLAGS) $(foreach a,$(CUDA_TARGETS:sm_%=%),-gencode arch=compute_$a,code=sm_$a) -gencode arch=compute_80,code=compute_80 -I. -c -o $@ $<

$(BUILD)/version.h: FORCE
	@mkdir -p $(BUILD)
	@sh dev/version.sh "$(CC)" > $@.new; cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(BUILD)/%.o: %.c $(FOUND) | $(BUILD)/version.h
	$(Q)$(CC) $(ALL_FLAGS) -I$(BUILD) -MMD -MP -c -o $@ $<

define per_set
$(BUILD)/%.$(1).o: %.c $(FOUND)
	$$(Q)$(CC) $(ALL_FLAGS) $(FLAGS_$(1)) -DCPU_ISA=$(1) -MMD -MP -c -o $$@ $$<
endef
$(foreach s,$(SETS) amx_emulated amx_emulated512,$(eval $(call per_set,$(s))))
# what the tests link: a CPU device that has the set amx-emulated as well
TESTED := $(filter-out $(BUILD)/cpu.o,$(OBJECTS)) $(BUILD)/cpu.tested.o $(call set_objects,amx_emulated) $(if $(X86),$(BUILD)/cpu_gemm_amx.amx_emulated512.o) $(BUILD)/tile_emulator.o
$(BUILD)/cpu.tested.o: cpu.c $(FOUND)
	$(Q)$(CC) $(ALL_FLAGS) -DCPU_TEST_SETS -MMD -MP -c -o $@ $<
$(BUILD)/tile_emulator.o: tests/tile_emulator.c $(FOUND)
	$(Q)$(CC) $(ALL_FLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/test_%.o: tests/test_%.c $(FOUND) | $(BUILD)/version.h
	$(Q)$(CC) $(ALL_FLAGS) -I. -I$(BUILD) -MMD -MP -c -o $@ $<

# a changed source only links them again
$(BUILD)/test_%: $(BUILD)/test_%.o $(OBJECTS) $(TESTED)
	$(Q)$(CC) $(ALL_FLAGS) $(LDFLAGS) -o $@ $@.o $(TESTED) $(CUDA_LIBS) -lm

# kept; not those of gpt itself: a secondary file that is missing, as the CUDA object of other CUDA_ARCHS, would not be made
.SECONDARY: $(TESTS:%=%.o) $(filter-out $(OBJECTS),$(TESTED))

demo: gpt
	./gpt train

# OP=layernorm: only the tests of that operation
test: gpt $(if $(OP),$(addprefix $(BUILD)/test_,ops attention gemm gemm_bf16 tiles gradients),$(TESTS))
	@sh tests/run.sh $(BUILD) "$(OP)"

test-slow: gpt $(TESTS)
	@GPT_TEST_SLOW=1 sh tests/run.sh $(BUILD) ""
	@bash tests/same_bits.sh
	@bash tests/aarch64.sh
	@bash tests/speed.sh

# the kernels on this machine's CPU (dev/cuda_on_cpu), no GPU needed; passing is not having run on a GPU
include dev/cuda_on_cpu/cuda.mk
CUDA_TESTS := test_ops test_attention test_cuda
test-cuda: emulated-gpt $(CUDA_TESTS:%=$(EMULATED)/%) $(CUDA_TESTS:%=$(EMULATED)/%_checked)
	@bash tests/cuda.sh $(EMULATED)

# several GPUs and NCCL, both emulated: every collective, training, faults
test-nccl: $(EMULATED)/gpt $(EMULATED)/gpt_checked $(EMULATED)/libnccl.so.2 $(EMULATED)/test_nccl $(EMULATED)/test_nccl_checked $(EMULATED)/emulator_nccl
	@bash tests/nccl.sh $(EMULATED)

# the launchers that are installed: Open MPI, MPICH, Slurm
test-launchers: gpt
	@bash tests/launchers.sh

# N random mutants of the sources, each to be caught by a test; SUITE=off: by the tests of its own file
mutants: $(BUILD)/mutate
	@$(BUILD)/mutate --count $(or $(N),8) --seed $(or $(SEED),1) --least $(or $(LEAST),95) $(if $(SUITE),--suite $(SUITE)) $(FILES)

# the same of kernels, judged by the emulated device; and each of their barriers, waits and commits deleted in turn
KERNELS := train_gpt.cu gemm.cuh attention.cuh cuda.cuh cublaslt.cuh
cuda-mutants: $(BUILD)/mutate
	@$(BUILD)/mutate --count $(or $(N),8) --seed $(or $(SEED),1) --least $(or $(LEAST),95) $(if $(SUITE),--suite $(SUITE)) $(KERNELS)
cuda-waits: $(BUILD)/mutate
	@$(BUILD)/mutate --waits on --least 100 $(KERNELS)

$(BUILD)/mutate: dev/mutate.c rng.h $(FOUND)
	$(Q)$(CC) $(ALL_FLAGS) -o $@ $<

# encode, decode and train beside gigatoken, tiktoken, rustbpe and tokenizers (from the Python registry, into build/);
# TEXTS="a.txt b.txt" TRAIN=a.txt: other texts than those this machine has
bench-tokenizer: gpt build/venv-tokenizers/done
	build/venv-tokenizers/bin/python dev/peers/tokenizer_speed.py $(if $(TRAIN),--train $(TRAIN)) $(TEXTS)

build/venv-tokenizers/done:
	python3 -m venv build/venv-tokenizers && build/venv-tokenizers/bin/pip install -q gigatoken==0.10.0 rustbpe==0.1.0 tiktoken tokenizers && touch $@

# a training step beside PyTorch's (from the Python registry, into build/), by turns; alone on the machine, about an hour. CELLS="4x64 12x64" PAIRS=2: less
bench-peers: gpt build/venv-torch/done
	@mkdir -p dev/bench
	build/venv-torch/bin/python dev/peers/speed.py --results dev/bench/RESULTS.md --pairs $(or $(PAIRS),5) $(CELLS)

# its matrix products beside MKL's and oneDNN's, in the same manner; ten minutes
bench-peers-gemm: gpt build/venv-torch/done
	build/venv-torch/bin/python dev/peers/gemm_speed.py $(CELLS)

build/venv-torch/done:
	python3 -m venv build/venv-torch && build/venv-torch/bin/pip install -q torch==2.13.0 numpy && touch $@

# all-reduce beside copying the same bytes
bench-comm: $(OBJECTS) $(FOUND)
	$(Q)$(CC) $(ALL_FLAGS) $(LDFLAGS) -I. -o build/bench_comm dev/bench_comm.c $(OBJECTS) $(CUDA_LIBS) -lm
	@build/bench_comm

# all-reduce from the naive one to the overlapped one: each is checked, then timed (dev/parallel)
LADDER := 1_naive 2_ring 3_buckets 4_overlap
parallel-ladder: $(LADDER:%=$(BUILD)/parallel_%)
	@set -e; for step in $^; do $$step; done
$(BUILD)/parallel_%: dev/parallel/%.c $(wildcard dev/parallel/*) $(FOUND)
	$(Q)$(CC) $(BASE) $(OPT) $(CFLAGS) -pthread -o $@ $<

# matrix product from three loops to the program's own: each step is checked, then timed (dev/gemm). ARGS=check: not timed
SCALAR_STEPS := 1_loops 2_order 3_registers
GEMM_STEPS   := $(SCALAR_STEPS) 4_vectors 5_packing 6_blocks 7_threads
GEMM_SETS    := generic $(if $(X86),avx2 avx512)
GEMM_OBJECTS := $(foreach s,$(GEMM_SETS),$(GEMM_STEPS:%=$(BUILD)/gemm_%.$s.o)) $(BUILD)/gemm_8_program.o $(BUILD)/gemm_ladder.o
gemm-ladder: $(BUILD)/gemm_ladder
	@$< $(ARGS)
$(BUILD)/gemm_ladder: $(GEMM_OBJECTS) $(OBJECTS)
	$(Q)$(CC) $(ALL_FLAGS) $(LDFLAGS) -o $@ $^ $(CUDA_LIBS) -lm
$(BUILD)/gemm_%.o: dev/gemm/%.c $(FOUND)
	$(Q)$(CC) $(ALL_FLAGS) -MMD -MP -c -o $@ $<
define gemm_set
$(BUILD)/gemm_%.$(1).o: dev/gemm/%.c $(FOUND)
	$$(Q)$(CC) $(ALL_FLAGS) $$(NO_VECTORS) $(FLAGS_$(1)) -DCPU_ISA=$(1) -MMD -MP -c -o $$@ $$<
endef
$(foreach s,$(GEMM_SETS),$(eval $(call gemm_set,$(s))))
# a compiler that puts vectors where nobody wrote them would take the fourth step's idea
$(foreach s,$(GEMM_SETS),$(SCALAR_STEPS:%=$(BUILD)/gemm_%.$s.o)): NO_VECTORS := -fno-tree-vectorize -fno-tree-slp-vectorize

# all interleavings of three ranks, one of which may die (needs spin)
model-check:
	@sh dev/parallel/model/check.sh

# any bytes as tokenizer.json, rank file, shard, index, text: no crash, no leak, no long time, not much memory (clang)
include dev/fuzz/fuzz.mk

# dev/print_logits.c: logits as text, for comparing with other programs
print-logits: $(OBJECTS) $(FOUND)
	$(Q)$(CC) $(ALL_FLAGS) $(LDFLAGS) -I. -o build/print_logits dev/print_logits.c $(OBJECTS) $(CUDA_LIBS) -lm

print-build:
	@echo $(BUILD)

clean:
	rm -rf build gpt

help:
	@echo "make            build ./gpt"
	@echo "make demo       build, then train on the embedded stories and judge the result (about a minute and a half)"
	@echo "make test       all quick tests; make test OP=layernorm: those of one operation"
	@echo "make test-slow  the long ones"
	@echo "make test-cuda  the CUDA device, emulated: no GPU needed"
	@echo "make test-nccl  several GPUs and NCCL, both emulated"
	@echo "make test-launchers   ranks started by Open MPI, MPICH and Slurm, those that are installed"
	@echo "make mutants    N=8 SEED=1: change the sources at random; every change must make a test fail"
	@echo "make cuda-mutants     N=8 SEED=1: likewise the kernels; make cuda-waits: each barrier and wait deleted in turn"
	@echo "make cuda-report      registers, spills, occupancy, bytes moved, bank conflicts of every kernel (needs nvcc, no GPU)"
	@echo "make parallel-ladder  all-reduce, one idea a file: checked, then timed"
	@echo "make gemm-ladder      a matrix product, one idea a file: checked, then timed; ARGS=check: not timed"
	@echo "make model-check      all interleavings of three ranks, one of which may die (needs spin)"
	@echo "make bench-comm       an all-reduce beside copying the same bytes"
	@echo "make bench-peers      a training step beside PyTorch's: dev/bench/RESULTS.md (needs Python and its registry)"
	@echo "make bench-peers-gemm its matrix products beside those of MKL and oneDNN"
	@echo "make bench-tokenizer  the tokenizer's speed beside others' (needs Python and its registry)"
	@echo "make fuzz       FOR=600: random files into the readers, seconds each (needs clang)"
	@echo "make clean      remove build/ and gpt"

FORCE:
-include $(wildcard $(BUILD)/*.d)
