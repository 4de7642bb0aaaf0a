// cpu.h: the inside of the CPU device: what cpu.c, cpu_ops.c, cpu_gemm.c and cpu_attention.c share. Flow never includes it.
//
// cpu.c is compiled once and chooses the instruction set. The other three are compiled once PER INSTRUCTION SET with
// -DCPU_ISA=generic|avx2|avx512 (and its -m flags, see Makefile); every function of theirs with external linkage is named with
// CPU_NAME(x), which is cpu_x_avx2 and so on. All arithmetic goes through simd.h, so each kernel is written once and the
// bits do not depend on the set. On the CPU real and acc are float and scalar is double.
// Tests: tests/test_ops.c, tests/test_attention.c, tests/test_gemm.c
#pragma once
#include "device.h"     // the contract
#include <stdbool.h>
#ifdef _OPENMP
#include <omp.h>        // omp_get_thread_num and its like
#else                   // a build without OpenMP: one thread
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_threads(void) { return 1; }
static inline int omp_get_max_threads(void) { return 1; }
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>  // _mm_getcsr, _mm_setcsr
#endif

#ifdef CPU_ISA
#define CPU_JOIN_AGAIN(x, isa) cpu_##x##_##isa
#define CPU_JOIN(x, isa) CPU_JOIN_AGAIN(x, isa)
#define CPU_NAME(x) CPU_JOIN(x, CPU_ISA)
#endif

// ---- state of the device (Device.state) ----
enum { CPU_SCRATCH_GEMM, CPU_SCRATCH_ATTENTION, CPU_SCRATCH_OPS, CPU_SCRATCH_COUNT };
typedef struct {
  const struct InstructionSet *set;        // the one chosen (cpu.c)
  int threads;                             // every parallel region says num_threads(state->threads)
  struct { void *data; size_t bytes; } scratch[CPU_SCRATCH_COUNT];
  char description[64];
} CpuState;

static inline CpuState *cpu_state(const Device *d) { return (CpuState *)d->state; }
// At least `bytes` of 64-byte aligned working memory, kept and grown, contents undefined; ends the process (exit 3) if there is
// none. Call it outside parallel regions; divide it among threads by hand.
void *cpu_scratch(CpuState *state, int slot, size_t bytes);

// real and acc are opaque to flow; here they are float.
static inline float *floats(real *p) { return (float *)p; }
static inline const float *const_floats(const real *p) { return (const float *)p; }
static inline float *acc_floats(acc *p) { return (float *)p; }
static inline const float *const_acc_floats(const acc *p) { return (const float *)p; }

// Denormal numbers are flushed to zero, in every thread: call it first in every parallel region (two cycles when it is set
// already). A helper thread of the OpenMP runtime may be new in any region, and starts with the processor's default.
static inline void cpu_flush_denormals(void) {
#if defined(__x86_64__)
  unsigned control = _mm_getcsr(), flush = 0x8040;   // FTZ bit 15, DAZ bit 6
  if ((control & flush) != flush) _mm_setcsr(control | flush);
#elif defined(__aarch64__)
  uint64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  if (!(control >> 24 & 1)) __asm__ volatile("msr fpcr, %0" : : "r"(control | 1u << 24));
#endif
}

// ---- cpu_gemm.c ----
// Called for each finished block rows [row0, row1) x columns [col0, col1) of the output by the thread that finished it, while the
// block is in that thread's cache. Every element is in exactly one block. col0 is a multiple of 16, and so is col1 unless it is the end.
typedef struct {
  void (*run)(const void *arg, size_t row0, size_t row1, size_t col0, size_t col1);   // NULL: nothing to do
  const void *arg;
} CpuEpilogue;
#ifdef CPU_ISA
// Bytes of CPU_SCRATCH_GEMM that the three products below take, the largest of them.
size_t CPU_NAME(gemm_scratch)(const CpuState *state, size_t rows, size_t IC, size_t OC);
// out[r,o] = bias[o] + sum_i x[r,i]*weight[o,i]: one chain of fma over i from the bias (NULL: 0). epilogue NULL: none
void CPU_NAME(gemm_forward)(CpuState *state, float *out /* = (rows,OC) */, const float *x /* (rows,IC) */, const float *weight /* (OC,IC) */,
                            const float *bias /* (OC) or NULL */, size_t rows, size_t IC, size_t OC, const CpuEpilogue *epilogue);
// dx[r,i] = sum_o dout[r,o]*weight[o,i]: one chain of fma over o from 0
void CPU_NAME(gemm_backward_input)(CpuState *state, float *dx /* = (rows,IC) */, const float *dout /* (rows,OC) */,
                                   const float *weight /* (OC,IC) */, size_t rows, size_t IC, size_t OC);
// dweight[o,i] += sum_r dout[r,o]*x[r,i]: one chain of fma over r from the stored value
void CPU_NAME(gemm_backward_weight)(CpuState *state, float *dweight /* += (OC,IC) */, const float *dout /* (rows,OC) */,
                                    const float *x /* (rows,IC) */, size_t rows, size_t IC, size_t OC);
#endif

// ---- what cpu.c takes from the files compiled per instruction set: each fills in its rows of the Device table ----
void cpu_ops_generic(Device *d), cpu_attention_generic(Device *d);
void cpu_ops_avx2(Device *d), cpu_attention_avx2(Device *d);
void cpu_ops_avx512(Device *d), cpu_attention_avx512(Device *d);
// FLOP/s of one thread's register-only loop of the best fma of this instruction set, about `seconds` long
double cpu_fma_rate_generic(double seconds), cpu_fma_rate_avx2(double seconds), cpu_fma_rate_avx512(double seconds);
