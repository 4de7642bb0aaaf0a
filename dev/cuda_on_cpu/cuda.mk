# cuda.mk: owns the rules that run CUDA sources on a CPU: emulated, checked, and as the PTX that nvcc makes of them.
#
# Included by the Makefile after OBJECTS is set; alone (make -f dev/cuda_on_cpu/cuda.mk emulator-tests) it builds the emulator's own tests.
#   $(BUILD)/emulated/NAME.plain.o    NAME.cu for the emulator, fast          link with $(EMULATOR)
#   $(BUILD)/emulated/NAME.checked.o  the same, every memory access watched   link with $(EMULATOR_CHECKED)
#   $(BUILD)/emulated/NAME.sm_80.ptx  what nvcc makes of it, where there is nvcc; GPT_CUDA_PTX=that file makes a plain program interpret it
#   $(BUILD)/emulated/gpt, gpt_checked, test_NAME, test_NAME_checked          programs of the project with the emulated device
# Test: make emulator-tests

BUILD    ?= build/cuda_on_cpu
EMULATED := $(BUILD)/emulated
EMU_HOME := dev/cuda_on_cpu
EMU_CXX  ?= $(shell command -v g++ || command -v clang++)
NVCC     ?= $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
PTX_ARCHS ?= sm_80 sm_90a

# -fopenmp: blocks of a grid run on several threads of the machine. Contraction is off as everywhere in the project: the same bits on every machine;
# this machine's fma instruction, where it has one, gives the bits of the C library's function.
EMU_ISA     := $(shell grep -qw avx2 /proc/cpuinfo 2>/dev/null && grep -qw fma /proc/cpuinfo && echo -mavx2 -mfma)
EMU_BASE    := -std=c++17 -g1 -gdwarf-4 -fopenmp -ffp-contract=off -Wall -Wextra -Werror -Wno-unknown-pragmas -I$(EMU_HOME) -I. -I$(BUILD) -MMD -MP
EMU_PLAIN   := $(EMU_BASE) -O2 $(EMU_ISA)
# The compiler announces every access to the functions in check.cpp, which stand where ThreadSanitizer's would; its own run time is not linked.
EMU_WATCHED := $(EMU_BASE) -O1 -fsanitize=thread -fsanitize=bounds,alignment -fno-sanitize-recover=all $(if $(findstring clang,$(EMU_CXX)),,-Wno-tsan)
# libnccl.so.2 and libcublasLt.so.13, the stand-ins for NCCL and cuBLASLt, lie beside the programs, which they call: -rdynamic. LD_LIBRARY_PATH goes before: with
# it a program finds NVIDIA's.
EMU_LINK    := -fopenmp -lrt -lm -ldl -pthread -rdynamic -Wl,--enable-new-dtags,-rpath,'$$ORIGIN'

EMU_PARTS        := emulator warp_ops wgmma memory runtime symbols profile ptx_parse ptx_ops ptx_run
EMULATOR         := $(EMU_PARTS:%=$(EMULATED)/%.o)
EMULATOR_CHECKED := $(EMULATOR) $(EMULATED)/check.o
STAND_INS        := $(EMULATED)/libnccl.so.2 $(EMULATED)/libcublasLt.so.13
EMU_OBJECTS      := $(filter-out %/cuda_missing.o %/comm_nccl.o $(CUDA_OBJECT),$(OBJECTS)) $(BUILD)/comm_nccl.o

.PHONY: emulated-gpt emulator-tests cuda-report
.PRECIOUS: $(EMULATED)/%.cpp $(EMULATED)/%.plain.o $(EMULATED)/%.checked.o
emulated-gpt: $(EMULATED)/gpt $(EMULATED)/gpt_checked $(STAND_INS) $(if $(NVCC),$(PTX_ARCHS:%=$(EMULATED)/train_gpt.%.ptx))

# -lineinfo: messages name lines of the .cu. nvcc takes an option that it does not understand for another's value, so the target is looked up in what it wrote.
define emu_ptx
	@mkdir -p $(EMULATED)
	$(EMU_Q)$(NVCC) -std=c++17 -O3 -fmad=false -lineinfo -I. -arch=compute_$(1) -ptx -MMD -MP -o $@ $<
	@grep -q '^\.target sm_$(1)' $@ || { echo "$@ was not made for sm_$(1)"; rm -f $@; exit 1; }
endef
# The only change to the source: kernel<<<grid, block, smem, stream>>>(arguments) becomes kernel<<cuda_launch(grid, block, smem, stream)(arguments)
define emu_source
$(EMULATED)/%.cpp: $(1)%.cu $(EMU_HOME)/cuda.mk
	@mkdir -p $$(EMULATED)
	@(echo '#line 1 "$$<"'; sed -zE 's/<<<([^;{}]*)>>>[[:space:]]*\(/<<cuda_launch(\1)(/g' $$<) > $$@
$(EMULATED)/%.sm_80.ptx: $(1)%.cu $(EMU_HOME)/cuda.mk
	$$(call emu_ptx,80)
$(EMULATED)/%.sm_90a.ptx: $(1)%.cu $(EMU_HOME)/cuda.mk
	$$(call emu_ptx,90a)
endef
$(eval $(call emu_source,))
$(eval $(call emu_source,tests/))
EMU_Q = $(if $(V),,@echo "  emu $(notdir $@)";)

$(EMULATED)/%.plain.o: $(EMULATED)/%.cpp
	$(EMU_Q)$(EMU_CXX) $(EMU_PLAIN) -c -o $@ $<
$(EMULATED)/%.checked.o: $(EMULATED)/%.cpp
	$(EMU_Q)$(EMU_CXX) $(EMU_WATCHED) -c -o $@ $<
# -O3 without traps: loops over the lanes of a warp become vector instructions
$(EMULATED)/ptx_ops.o: EMU_PLAIN += -O3 -fno-math-errno -fno-trapping-math
$(EMULATED)/%.o: $(EMU_HOME)/%.cpp $(EMU_HOME)/cuda.mk
	@mkdir -p $(EMULATED)
	$(EMU_Q)$(EMU_CXX) $(EMU_PLAIN) -c -o $@ $<

$(EMULATED)/test_nccl $(EMULATED)/test_nccl_checked: | $(EMULATED)/libnccl.so.2
$(EMULATED)/test_ops $(EMULATED)/test_ops_checked $(EMULATED)/test_cuda $(EMULATED)/test_cuda_checked: | $(EMULATED)/libcublasLt.so.13
$(EMULATED)/libnccl.so.2: $(EMU_HOME)/nccl.cpp
$(EMULATED)/libcublasLt.so.13: $(EMU_HOME)/cublaslt.cpp
$(STAND_INS): $(EMU_HOME)/cuda.mk
	@mkdir -p $(EMULATED)
	$(EMU_Q)$(EMU_CXX) $(EMU_PLAIN) -fPIC -shared -pthread -Wl,-soname,$(notdir $@) -o $@ $(filter %.cpp,$^)

# ---- programs of the project with the emulated device ----

$(EMULATED)/gpt: $(BUILD)/gpt.o $(EMU_OBJECTS) $(EMULATED)/train_gpt.plain.o $(EMULATOR)
	$(EMU_Q)$(EMU_CXX) -o $@ $^ $(EMU_LINK)
$(EMULATED)/gpt_checked: $(BUILD)/gpt.o $(EMU_OBJECTS) $(EMULATED)/train_gpt.checked.o $(EMULATOR_CHECKED)
	$(EMU_Q)$(EMU_CXX) -fsanitize=bounds,alignment -o $@ $^ $(EMU_LINK)
$(EMULATED)/test_%_checked: $(BUILD)/test_%.o $(EMU_OBJECTS) $(EMULATED)/train_gpt.checked.o $(EMULATOR_CHECKED)
	$(EMU_Q)$(EMU_CXX) -fsanitize=bounds,alignment -o $@ $^ $(EMU_LINK)
$(EMULATED)/test_%: $(BUILD)/test_%.o $(EMU_OBJECTS) $(EMULATED)/train_gpt.plain.o $(EMULATOR)
	$(EMU_Q)$(EMU_CXX) -o $@ $^ $(EMU_LINK)

# What can be known of every kernel without a GPU: registers, spills, occupancy, bytes moved, bank conflicts, tensor-core work
cuda-report: $(EMULATED)/report $(EMULATED)/sass $(EMULATED)/train_gpt.sm_80.ptx $(EMULATED)/train_gpt.sm_90a.ptx
	@bash dev/cuda_report.sh $(EMULATED)
$(EMULATED)/report: $(EMULATED)/report.c.o $(EMU_OBJECTS) $(EMULATED)/train_gpt.plain.o $(EMULATOR)
	$(EMU_Q)$(EMU_CXX) -o $@ $^ $(EMU_LINK)
$(EMULATED)/report.c.o: $(EMU_HOME)/report.c device.h util.h
	@mkdir -p $(EMULATED)
	$(EMU_Q)$(CC) $(ALL_FLAGS) -I. -c -o $@ $<
$(EMULATED)/sass: $(EMU_HOME)/sass.c
	@mkdir -p $(EMULATED)
	$(EMU_Q)$(CC) $(ALL_FLAGS) -o $@ $<

# ---- the emulator's own tests ----

EMULATOR_TESTS := $(EMULATED)/emulator_features $(EMULATED)/emulator_features_checked $(EMULATED)/emulator_features_portable $(EMULATED)/emulator_bugs $(EMULATED)/emulator_bugs_checked \
                  $(if $(NVCC),$(PTX_ARCHS:%=$(EMULATED)/emulator_features.%.ptx) $(EMULATED)/emulator_bugs.sm_80.ptx)
emulator-tests: $(EMULATOR_TESTS)
	@bash tests/cuda_on_cpu.sh $(EMULATED)

$(EMULATED)/emulator_%_checked: $(EMULATED)/emulator_%.checked.o $(EMULATOR_CHECKED)
	$(EMU_Q)$(EMU_CXX) -fsanitize=bounds,alignment -o $@ $^ $(EMU_LINK)
$(EMULATED)/emulator_nccl: $(EMULATED)/emulator_nccl.plain.o $(EMULATOR) $(EMULATED)/libnccl.so.2
	$(EMU_Q)$(EMU_CXX) -o $@ $^ $(EMU_LINK)
$(EMULATED)/emulator_%: $(EMULATED)/emulator_%.plain.o $(EMULATOR)
	$(EMU_Q)$(EMU_CXX) -o $@ $^ $(EMU_LINK)
# as on a processor for which there is no switch of fibers in assembly
$(EMULATED)/emulator.portable.o: $(EMU_HOME)/emulator.cpp $(EMU_HOME)/cuda.mk
	@mkdir -p $(EMULATED)
	$(EMU_Q)$(EMU_CXX) $(EMU_PLAIN) -DPORTABLE_SWITCH=1 -c -o $@ $<
$(EMULATED)/emulator_features_portable: $(EMULATED)/emulator_features.plain.o $(filter-out %/emulator.o,$(EMULATOR)) $(EMULATED)/emulator.portable.o
	$(EMU_Q)$(EMU_CXX) -o $@ $^ $(EMU_LINK)

-include $(wildcard $(EMULATED)/*.d)
