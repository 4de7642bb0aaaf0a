// cublaslt.cuh: owns --gemm cublaslt: the matrix products of gemm.cuh by NVIDIA's library, where it is found when the device is opened.
//
// Nothing is linked and no header is needed: what is used of the library is declared here (its C interface has been the same since CUDA 11;
// cuBLAS documentation, "Using the cublasLt API"). The library counts columns first, so a product is asked for transposed: out^T = b^T a^T.
// A product is taken if every row of its matrices starts at a multiple of 16 bytes and ends at one; the others stay with gemm.cuh.
// Activations and bias gradients are kernels of our own, behind and beside it: so recomputing gives the same bits as keeping.
// Tests: tests/test_ops.c (linear_*) and tests/test_cuda.c (library_*) with TEST_DEVICE=cuda-cublaslt and cuda-bf16-cublaslt: on a GPU (dev/gpu_check.sh), and
// emulated beside a stand-in that checks what it is given (dev/cuda_on_cpu/cublaslt.cpp)
#pragma once
#include "gemm.cuh"     // Gemm, Direction
#include <dlfcn.h>      // dlopen, dlsym
#include <stdio.h>      // snprintf

struct LtResult { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };   // cublasLtMatmulHeuristicResult_t
enum { LT_COMPUTE_32F = 68, LT_R_32F = 0, LT_R_16BF = 14, LT_TRANSA = 3, LT_TRANSB = 4, LT_EPILOGUE = 7, LT_BIAS_POINTER = 8, LT_EPILOGUE_BIAS = 4, LT_MAX_WORKSPACE = 1, LT_MIN_ALIGNMENT_A = 5, LT_MIN_ALIGNMENT_D = 8 };

// What has been asked for once: the library's answer for this kind and size of product. alignment: bytes, 16 to 256, of which all matrices begin at a multiple.
struct LtPlan { Direction direction; size_t M, N, K; bool bias; uint32_t alignment; void *operation, *a, *b, *out; LtResult result; };
enum { LT_PLANS = 128 };

struct CublasLt {
  void *handle;
  int (*create)(void **handle);
  int (*destroy)(void *handle);
  int (*operation_create)(void **operation, int compute, int scale);
  int (*operation_set)(void *operation, int attribute, const void *value, size_t size);
  int (*operation_destroy)(void *operation);
  int (*layout_create)(void **layout, int type, uint64_t rows, uint64_t columns, int64_t leading);
  int (*layout_destroy)(void *layout);
  int (*preference_create)(void **preference);
  int (*preference_set)(void *preference, int attribute, const void *value, size_t size);
  int (*preference_destroy)(void *preference);
  int (*choose)(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference, int wanted, LtResult *results, int *found);
  int (*multiply)(void *handle, void *operation, const void *alpha, const void *a, void *a_layout, const void *b, void *b_layout, const void *beta, const void *c, void *c_layout,
                  void *d, void *d_layout, const uint64_t *algorithm, void *workspace, size_t workspace_bytes, cudaStream_t stream);
  LtPlan plans[LT_PLANS];
  int count;
};

// NULL, or why it cannot be had.
static const char *cublaslt_open(CublasLt *lt) {
  static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
  void *library = NULL;
  for (int i = 0; i < 3 && !library; i++) library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
  if (!library) return "libcublasLt.so.13 and .12 were not found: it comes with the CUDA toolkit; set LD_LIBRARY_PATH to its folder";
  const struct { void *to; const char *name; } functions[] = {
    {&lt->create, "cublasLtCreate"}, {&lt->destroy, "cublasLtDestroy"}, {&lt->operation_create, "cublasLtMatmulDescCreate"}, {&lt->operation_set, "cublasLtMatmulDescSetAttribute"},
    {&lt->operation_destroy, "cublasLtMatmulDescDestroy"}, {&lt->layout_create, "cublasLtMatrixLayoutCreate"}, {&lt->layout_destroy, "cublasLtMatrixLayoutDestroy"},
    {&lt->preference_create, "cublasLtMatmulPreferenceCreate"}, {&lt->preference_set, "cublasLtMatmulPreferenceSetAttribute"}, {&lt->preference_destroy, "cublasLtMatmulPreferenceDestroy"},
    {&lt->choose, "cublasLtMatmulAlgoGetHeuristic"}, {&lt->multiply, "cublasLtMatmul"}};
  for (const auto &f : functions) {
    void *symbol = dlsym(library, f.name);
    if (!symbol) return "the libcublasLt found here lacks a function; versions 12 and 13 are known to have all";
    memcpy(f.to, &symbol, sizeof symbol);
  }
  return lt->create(&lt->handle) ? "cublasLtCreate failed: the library does not fit the driver, or memory is short" : NULL;
}

static void lt_forget(CublasLt *lt, LtPlan *p) {
  if (p->operation) lt->operation_destroy(p->operation);
  if (p->a) lt->layout_destroy(p->a);
  if (p->b) lt->layout_destroy(p->b);
  if (p->out) lt->layout_destroy(p->out);
  *p = {};
}
static void cublaslt_close(CublasLt *lt) {
  for (LtPlan &p : lt->plans) lt_forget(lt, &p);
  lt->destroy(lt->handle);
}

// The library's own factors are first our b, then our a. ld: elements of a row of ours.
template <class Real> static bool lt_plan(CublasLt *lt, LtPlan *p, size_t workspace) {
  const int type = sizeof(Real) == 2 ? LT_R_16BF : LT_R_32F, sum_type = p->direction == BACKWARD_WEIGHT ? LT_R_32F : type;
  const int b_transposed = p->direction == FORWARD, a_transposed = p->direction == BACKWARD_WEIGHT, epilogue = LT_EPILOGUE_BIAS;
  void *preference = NULL;
  int found = 0;
  bool ok = !lt->operation_create(&p->operation, LT_COMPUTE_32F, LT_R_32F) && !lt->operation_set(p->operation, LT_TRANSA, &b_transposed, sizeof(int)) &&
            !lt->operation_set(p->operation, LT_TRANSB, &a_transposed, sizeof(int)) && (!p->bias || !lt->operation_set(p->operation, LT_EPILOGUE, &epilogue, sizeof epilogue)) &&
            !lt->layout_create(&p->b, type, b_transposed ? p->K : p->N, b_transposed ? p->N : p->K, (int64_t)(b_transposed ? p->K : p->N)) &&
            !lt->layout_create(&p->a, type, a_transposed ? p->M : p->K, a_transposed ? p->K : p->M, (int64_t)(a_transposed ? p->M : p->K)) &&
            !lt->layout_create(&p->out, sum_type, p->N, p->M, (int64_t)p->N) && !lt->preference_create(&preference) &&
            !lt->preference_set(preference, LT_MAX_WORKSPACE, &workspace, sizeof workspace);
  for (int which = LT_MIN_ALIGNMENT_A; ok && which <= LT_MIN_ALIGNMENT_D; which++) ok = !lt->preference_set(preference, which, &p->alignment, sizeof p->alignment);   // else 256
  ok = ok && !lt->choose(lt->handle, p->operation, p->b, p->a, p->out, p->out, preference, 1, &p->result, &found) && found == 1 && p->result.state == 0;
  if (preference) lt->preference_destroy(preference);
  if (!ok) lt_forget(lt, p);
  return ok;
}

// out = start + a b, as Gemm says, without activation and without the bias's gradient. false: the library does not take it.
template <Direction DIR, class Real> static bool cublaslt_multiply(CublasLt *lt, const Gemm<Real> &g, void *workspace, size_t workspace_bytes, cudaStream_t stream) {
  LtPlan wanted = {};
  void *out = DIR == BACKWARD_WEIGHT ? static_cast<void *>(g.sum) : static_cast<void *>(g.pre);
  if (!g.wide || !g.wide_out || !out) return false;
  const uintptr_t places = 256 | reinterpret_cast<uintptr_t>(g.a) | reinterpret_cast<uintptr_t>(g.b) | reinterpret_cast<uintptr_t>(out);
  wanted.direction = DIR, wanted.M = g.M, wanted.N = g.N, wanted.K = g.K, wanted.bias = DIR == FORWARD && g.bias;
  wanted.alignment = (uint32_t)(places & -places);
  LtPlan *p = NULL;
  for (LtPlan &known : lt->plans)
    if (known.operation && known.direction == DIR && known.M == g.M && known.N == g.N && known.K == g.K && known.bias == wanted.bias && known.alignment == wanted.alignment) p = &known;
  if (!p) {
    p = &lt->plans[lt->count++ % LT_PLANS];
    lt_forget(lt, p);
    *p = wanted;
    if (!lt_plan<Real>(lt, p, workspace_bytes)) return false;
  }
  if (wanted.bias && lt->operation_set(p->operation, LT_BIAS_POINTER, &g.bias, sizeof g.bias)) return false;
  const float one = 1, beta = DIR == BACKWARD_WEIGHT;
  return !lt->multiply(lt->handle, p->operation, &one, g.b, p->b, g.a, p->a, &beta, out, p->out, out, p->out, p->result.algorithm, workspace, workspace_bytes, stream);
}

// A thread sums W columns of x (rows,C) over a slice of the rows into parts (slices,2 C): norm_backward_sum_kernel adds them in order.
template <class Real, int W> __global__ void column_sum_kernel(float *parts, const Real *x, size_t rows, size_t C, size_t slice) {
  const size_t c = global_thread() * W, first = blockIdx.y * slice, end = min(first + slice, rows);
  if (c >= C) return;
  float sum[W] = {};
  #pragma unroll 8
  for (size_t row = first; row < end; row++) {
    float v[W];
    load<W>(v, x + row * C + c);
    #pragma unroll
    for (int e = 0; e < W; e++) sum[e] += v[e];
  }
  #pragma unroll
  for (int e = 0; e < W; e++) parts[blockIdx.y * 2 * C + c + e] = sum[e];
}
