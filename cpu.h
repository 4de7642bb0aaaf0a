// cpu.h: the inside of the CPU device: what cpu.c, cpu_ops.c, cpu_gemm.c and cpu_attention.c share. Flow never includes it.
//
// cpu.c is compiled once and chooses the instruction set. The other three are compiled once PER INSTRUCTION SET AND STORAGE with
// -DCPU_ISA=generic|avx2|avx512 or, with -DCPU_STORES_BF16, generic_bf16|avx2_bf16|avx512_bf16|avx512bf16|amx (and -m flags, see Makefile);
// every function of theirs with external linkage is named with CPU_NAME(x), which is cpu_x_avx2 and so on. All arithmetic goes
// through simd.h, so each kernel is written once and the bits do not depend on the set. The set amx alone has another file for its products,
// cpu_gemm_amx.c instead of cpu_gemm.c, and other bits in them.
// On the CPU real is `stored`: float, or bf16 which expands to float wherever it is read; acc is float and scalar is double.
// Tests: tests/test_ops.c, tests/test_attention.c, tests/test_gemm.c
#pragma once
#include "bf16.h"       // bf16
#include "device.h"     // the contract
#include "util.h"       // round_up, MAX
#include <stdbool.h>
#include <string.h>     // memset
#ifdef _OPENMP
#include <omp.h>        // omp_get_thread_num and its like
#else                   // a build without OpenMP: one thread
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_threads(void) { return 1; }
static inline int omp_get_max_threads(void) { return 1; }
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>  // _mm_getcsr, _mm_setcsr, _mm_stream_ps
#endif

#ifdef CPU_ISA
#define CPU_JOIN_AGAIN(x, isa) cpu_##x##_##isa
#define CPU_JOIN(x, isa) CPU_JOIN_AGAIN(x, isa)
#define CPU_NAME(x) CPU_JOIN(x, CPU_ISA)
#endif

// ---- state of the device (Device.state) ----
enum { CPU_SCRATCH_GEMM, CPU_SCRATCH_ATTENTION, CPU_SCRATCH_OPS, CPU_SCRATCH_COUNT };
// A weight's copy in the order that tiles want (cpu_gemm_amx.c), kept from product to product.
typedef struct { const void *weight; size_t n, k, bytes; bool across; uint64_t version; void *panels; } CpuCopy;
typedef struct {
  double (*fma_rate)(double seconds);      // FLOP/s of one thread, below
  int threads;                             // every parallel region says num_threads(state->threads)
  struct { void *data; size_t bytes; } scratch[CPU_SCRATCH_COUNT];
  char description[64];
  struct { uintptr_t begin, end; uint64_t version; CpuCopy *list; size_t count; } kept;   // of the weights in [begin, end), as of refresh number `version`
} CpuState;

// ---- cpu.c ----
// What a processor may have, as far as an instruction set asks for it.
enum { CPU_HAS_FMA = 1, CPU_HAS_AVX2 = 2, CPU_HAS_AVX512F = 4, CPU_HAS_AVX512BW = 8, CPU_HAS_AVX512VL = 16, CPU_HAS_AVX512DQ = 32, CPU_HAS_AVX512BF16 = 64, CPU_HAS_TILES = 128,
       CPU_IF_ASKED = 256,   // no processor has it: the set is taken only where GPT_CPU names it
       CPU_HAS_AVX512 = CPU_HAS_AVX512F | CPU_HAS_AVX512BW | CPU_HAS_AVX512VL | CPU_HAS_AVX512DQ };
unsigned cpu_features(void);   // of this processor
// The instruction set that a device with this storage takes on a processor with these features: `wanted` (GPT_CPU), or the best one where that
// is NULL or empty. Ends the process where there is none of this name (exit 2) or the processor lacks it (exit 3).
const char *cpu_set_name(bool stores_bf16, const char *wanted, unsigned features);
// `threads` if above 0; else OMP_NUM_THREADS, 4,096 at most; else one for each physical core within affinity and quota.
int cpu_choose_threads(int threads);

static inline CpuState *cpu_state(const Device *d) { return (CpuState *)d->state; }
// At least `bytes` of 64-byte aligned working memory, kept and grown, contents undefined; ends the process (exit 3) if there is
// none. Call it outside parallel regions; divide it among threads by hand.
void *cpu_scratch(CpuState *state, int slot, size_t bytes);

// The place of a weight's copy, `bytes` large, which is that for a product with n columns over k, across or along it; NULL: refresh has not announced the
// weight, so that it might change unseen, or there is no memory. *current: the copy is there; else the caller makes it now. Outside parallel regions.
void *cpu_kept_copy(CpuState *state, const void *weight, size_t n, size_t k, bool across, size_t bytes, bool *current);
size_t cpu_mapped_size(size_t bytes);   // what the system gives for them

// real and acc are opaque to flow; here they are this.
#ifdef CPU_TILES        // products are made by matrix tiles
enum { CPU_ROW_GROUP = 32 };   // Device.row_group
#else
enum { CPU_ROW_GROUP = 1 };
#endif
#ifdef CPU_STORES_BF16
typedef bf16 stored;
#ifdef __AVX512BF16__
#define CPU_DOTS_BF16   // an instruction multiplies pairs and adds both products
#endif
#else
typedef float stored;
#endif
static inline float float_same(float x) { return x; }
static inline float number_of(stored x) { return _Generic(x, float: float_same, bf16: float_of_bf16)(x); }
enum { STORES_BF16 = sizeof(stored) == sizeof(bf16) };
static inline stored *reals(real *p) { return (stored *)p; }
static inline const stored *const_reals(const real *p) { return (const stored *)p; }
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

// p (bytes) = 0, p a multiple of CPU_STREAM_UNIT. What is zeroed by the gigabyte is read again only much later: stores past the caches do not fetch
// the lines that they overwrite.
enum { CPU_STREAM_UNIT = 16 };
static inline void cpu_stream_zeros(char *p, size_t bytes) {
#if defined(__x86_64__)
  for (; bytes >= CPU_STREAM_UNIT; p += CPU_STREAM_UNIT, bytes -= CPU_STREAM_UNIT) _mm_stream_ps((float *)(void *)p, _mm_setzero_ps());
  _mm_sfence();   // these stores are in no order with others unless told so
#endif
  memset(p, 0, bytes);
}

// ---- cpu_gemm.c, cpu_gemm_amx.c ----
static inline size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }
// The size of equal parts of `total`, none above `most`, each a multiple of `unit`.
static inline size_t even_part(size_t total, size_t most, size_t unit) { return round_up(divide_up(total, divide_up(total, MAX(most, unit))), unit); }
// Called for each finished block rows [row0, row1) x columns [col0, col1) of the output by the thread that finished it, while the
// block is in that thread's cache. Every element is in exactly one block. col0 is a multiple of 16, and so is col1 unless it is the end.
typedef struct {
  void (*run)(const void *arg, size_t row0, size_t row1, size_t col0, size_t col1);   // NULL: nothing to do
  const void *arg;
} CpuEpilogue;
#ifdef CPU_ISA
size_t CPU_NAME(gemm_copies)(size_t OC, size_t IC, WantGradient gradient);   // Device.weight_copies; of cpu_gemm_amx.c alone
// Bytes of CPU_SCRATCH_GEMM that the three products below take, the largest of them.
size_t CPU_NAME(gemm_scratch)(const CpuState *state, size_t rows, size_t IC, size_t OC);
// out[r,o] = bias[o] + sum_i x[r,i]*weight[o,i]: one chain of fma over i from the bias (NULL: 0). epilogue NULL: none
void CPU_NAME(gemm_forward)(CpuState *state, stored *out /* = (rows,OC) */, const stored *x /* (rows,IC) */, const stored *weight /* (OC,IC) */,
                            const stored *bias /* (OC) or NULL */, size_t rows, size_t IC, size_t OC, const CpuEpilogue *epilogue);
// dx[r,i] = sum_o dout[r,o]*weight[o,i]: one chain of fma over o from 0
void CPU_NAME(gemm_backward_input)(CpuState *state, stored *dx /* = (rows,IC) */, const stored *dout /* (rows,OC) */,
                                   const stored *weight /* (OC,IC) */, size_t rows, size_t IC, size_t OC);
// dweight[o,i] += sum_r dout[r,o]*x[r,i]: one chain of fma over r from the stored value
void CPU_NAME(gemm_backward_weight)(CpuState *state, float *dweight /* += (OC,IC) */, const stored *dout /* (rows,OC) */,
                                    const stored *x /* (rows,IC) */, size_t rows, size_t IC, size_t OC);
#endif

// ---- may this process use matrix tiles? ----
typedef struct {
  bool built;       // the compiler knew the instructions
  bool processor;   // it has AMX-TILE and AMX-BF16, and AVX-512
  bool system;      // the operating system keeps the tiles' registers (XCR0)
  int refused;      // errno of the request for them (Linux gives them to who asks); 0: granted
} TileFacts;
const char *cpu_tiles_refusal(const TileFacts *facts);   // NULL: it may; else why not, without a full stop

// ---- what cpu.c takes from the files compiled per instruction set: each fills in its rows of the Device table ----
// cpu_fma_rate: FLOP/s of one thread's register-only loop of the instruction that the products are made of, about `seconds` long
#define CPU_SET(isa) void cpu_ops_##isa(Device *d), cpu_attention_##isa(Device *d); double cpu_fma_rate_##isa(double seconds);
CPU_SET(generic) CPU_SET(avx2) CPU_SET(avx512)
CPU_SET(generic_bf16) CPU_SET(avx2_bf16) CPU_SET(avx512_bf16) CPU_SET(avx512bf16) CPU_SET(amx)
CPU_SET(amx_emulated)   // of the tests: a stand-in for the instructions (tests/tile_emulator.h)
#undef CPU_SET
