// train_gpt.cu: owns the CUDA device: every operation of device.h as kernels for NVIDIA GPUs of capability 8.0 and up, and their launches.
//
// In the order of device.h and reference.c, under the same names: a kernel stands above the operation that launches it. Matrix products are in
// gemm.cuh, attention in attention.cuh, what all share in cuda.cuh, inline assembly in ptx.cuh. An operation is a template over
// Real, the storage of weights and activations (float, bf16); acc is float, scalar is double. It computes in float.
// Promises: every output has one owner, sums run in a fixed order, no float atomics: two runs give the same bits. Operations are enqueued on one
// stream; only download_* and sync wait. Memory beside the arena is allocated once (scratch_bytes).
// The same source compiles for the emulator (dev/cuda_on_cpu), where all tests run; passing there is not having run on a GPU.
// Tests: `make test-cuda`; on a GPU: TEST_DEVICE=cuda (or cuda-bf16) with test_ops and test_attention, and test_cuda
#include "attention.cuh"    // attention_*_kernel, flash_*_kernel
#include "cublaslt.cuh"     // CublasLt, cublaslt_multiply
#include "gemm.cuh"         // gemm_*_kernel, Gemm
extern "C" {
#include "detmath.h"        // det_pow, det_sin, det_cos
}
#include <math.h>           // fabs, sqrt
#include <stdio.h>          // snprintf
#include <stdlib.h>         // calloc, free
#include <string.h>         // memcpy

extern "C" [[noreturn]] void fail(int code, const char *fmt, ...);   // util.h, which is C
enum { EXIT_MACHINE = 3 };

// What flow cannot look into: real is float or bf16, as the device was opened.
static inline float *floats(acc *p) { return reinterpret_cast<float *>(p); }
static inline const float *floats(const acc *p) { return reinterpret_cast<const float *>(p); }
static inline double *doubles(scalar *p) { return reinterpret_cast<double *>(p); }
static inline const double *doubles(const scalar *p) { return reinterpret_cast<const double *>(p); }
template <class Real> Real *reals(real *p) { return reinterpret_cast<Real *>(p); }
template <class Real> const Real *reals(const real *p) { return reinterpret_cast<const Real *>(p); }

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// ---- the device's state ----

enum { STAGING_SLOTS = 4, NORM_ENTRIES = 1024, NORM_BLOCK = 4096, TENSOR_ENTRIES = 2048 };
static const size_t STAGING_BYTES = (size_t)1 << 20, WORK_BYTES = (size_t)32 << 20;

struct NormEntry { const float *x; size_t n, first_block; };
// AdamWTensor, and the number of its first block among all blocks of the launch
struct TensorEntry { void *param; float *master; const float *grad; float *m, *v; size_t n, first_block; float weight_decay; uint32_t site; bool wide; };

// Memory on the device, beside the arena.
struct Scratch {
  alignas(16) NormEntry norms[NORM_ENTRIES];
  TensorEntry tensors[TENSOR_ENTRIES];
  alignas(256) unsigned char work[WORK_BYTES];   // of one operation at a time; cuBLASLt wants it at a multiple of 256
};

struct CudaState {
  cudaStream_t stream;
  int multiprocessors;
  CublasLt *cublaslt;                      // NULL: own kernels
  bool wgmma;                              // large products in bf16 by wgmma
  char description[160];
  Scratch *scratch;
  struct { unsigned char *data; cudaEvent_t free_again; } staging[STAGING_SLOTS];   // pinned: copies run while the host goes on
  int next_slot;
  NormEntry norms[NORM_ENTRIES];           // sums of squares asked for and not yet enqueued: see cuda_sumsq
  size_t norm_count, norm_blocks;
  double *norm_out;
  TensorEntry tensors[TENSOR_ENTRIES], sent[TENSOR_ENTRIES];   // of this adamw; what the device's table holds
  cudaStream_t side;                       // NULL until it is asked for
  cudaEvent_t operations;                  // what the side stream waits for
  struct Span { cudaEvent_t begin, end; } *spans;   // of the side stream, since they were last counted; (span_room) events, used again and again
  size_t span_count, span_room;
};

static CudaState *state_of(const Device *d) { return static_cast<CudaState *>(d->state); }
static float *work_of(const Device *d) { return reinterpret_cast<float *>(state_of(d)->scratch->work); }
// How much of it operations use that can work in pieces: tests leave them little.
static size_t work_bytes = WORK_BYTES;
extern "C" void cuda_limit_work(size_t bytes) { work_bytes = smaller(bytes, WORK_BYTES); }

static void check(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return;
  if (error == cudaErrorMemoryAllocation) fail(EXIT_MACHINE, "cuda: %s: too little memory on the device; use a smaller --batch or --context", what);
  fail(EXIT_MACHINE, "cuda: %s: %s (%s); run it again with CUDA_LAUNCH_BLOCKING=1 to see where", what, cudaGetErrorString(error), cudaGetErrorName(error));
}
static uint64_t launch_count;   // of this process
// Right after `kernels` launches: a refused launch is named here, a fault inside the kernel at the next sync.
static void launched(const char *what, int kernels = 1) { launch_count += (uint64_t)kernels, check(cudaGetLastError(), what); }
static uint64_t cuda_launches(const Device *) { return launch_count; }

static void enqueue_norms(CudaState *state);
// The stream, for everything but sumsq: what sumsq put off goes first.
static cudaStream_t stream_of(const Device *d) {
  CudaState *state = state_of(d);
  if (state->norm_count) enqueue_norms(state);
  return state->stream;
}

// All begin at a multiple of 16 bytes (NULL does).
template <class... P> static bool aligned(const P *...p) { return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...); }
static unsigned grid_for(size_t items, size_t per_block) { return (unsigned)CEIL_DIV(items, per_block); }
static DropoutKey dropout_key(const Dropout *d) {
  return {d->seed, d->step, d->site, (uint32_t)(d->p * 4294967296.0), (float)(1 / (1 - d->p))};
}

// ---- memory ----

static void *cuda_allocate(Device *d, size_t bytes) {
  void *p = NULL;
  if (bytes > PTRDIFF_MAX || cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) { cudaGetLastError(); return NULL; }
  check(cudaMemsetAsync(p, 0, bytes ? bytes : 1, stream_of(d)), "allocate");
  return p;
}
static void cuda_release(Device *d, void *p, size_t) {
  check(cudaStreamSynchronize(stream_of(d)), "release");
  check(cudaFree(p), "release");
}
static void cuda_zero(Device *d, void *p, size_t bytes) {
  if (bytes) check(cudaMemsetAsync(p, 0, bytes, stream_of(d)), "zero");
}
static void cuda_copy(Device *d, void *dst, const void *src, size_t bytes) {
  if (bytes) check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, stream_of(d)), "copy");
}

// A pinned buffer that no copy uses any more.
static unsigned char *free_slot(CudaState *state) {
  state->next_slot = (state->next_slot + 1) % STAGING_SLOTS;
  check(cudaEventSynchronize(state->staging[state->next_slot].free_again), "upload");
  return state->staging[state->next_slot].data;
}
static void send_slot(CudaState *state, void *dst, size_t bytes) {
  check(cudaMemcpyAsync(dst, state->staging[state->next_slot].data, bytes, cudaMemcpyHostToDevice, state->stream), "upload");
  check(cudaEventRecord(state->staging[state->next_slot].free_again, state->stream), "upload");
}

// float from double or float; bf16 from either by way of float, rounding twice at most in the last bit of a tie: so not by way of float
static void convert(float *to, double from) { *to = (float)from; }
static void convert(float *to, float from) { *to = from; }
static void convert(int32_t *to, int32_t from) { *to = from; }
static void convert(bf16 *to, float from) { *to = __float2bfloat16(from); }
static void convert(bf16 *to, double from) {
  float nearest = (float)from;   // to odd: then rounding again to fewer bits is rounding once (Boldo and Melquiond 2008); the largest float becomes infinity, as more does
  uint32_t bits;
  memcpy(&bits, &nearest, 4);
  if ((double)nearest != from && bits % 2 == 0) bits += fabs(from) > fabs((double)nearest) ? 1 : -1;   // the sign is a bit of its own: -0 too
  memcpy(&nearest, &bits, 4);
  *to = __float2bfloat16(nearest);
}
static double widen(float x) { return x; }
static double widen(double x) { return x; }
static double widen(bf16 x) { return __bfloat162float(x); }

template <class To, class From> static void upload(Device *d, To *dst, const From *src, size_t n) {
  const size_t piece = STAGING_BYTES / sizeof(To);
  stream_of(d);
  for (size_t first = 0; first < n; first += piece) {
    const size_t count = smaller(n - first, piece);
    To *slot = reinterpret_cast<To *>(free_slot(state_of(d)));
    for (size_t i = 0; i < count; i++) convert(&slot[i], src[first + i]);
    send_slot(state_of(d), dst + first, count * sizeof(To));
  }
}
template <class From> static void download(Device *d, double *dst, const From *src, size_t n) {
  const size_t piece = STAGING_BYTES / sizeof(From);
  cudaStream_t stream = stream_of(d);
  for (size_t first = 0; first < n; first += piece) {
    const size_t count = smaller(n - first, piece);
    From *slot = reinterpret_cast<From *>(free_slot(state_of(d)));
    check(cudaMemcpyAsync(slot, src + first, count * sizeof(From), cudaMemcpyDeviceToHost, stream), "download");
    check(cudaStreamSynchronize(stream), "download");
    for (size_t i = 0; i < count; i++) dst[first + i] = widen(slot[i]);
  }
}

template <class Real> static void cuda_upload_real(Device *d, real *dst, const double *src, size_t n) { upload(d, reals<Real>(dst), src, n); }
static void cuda_upload_acc(Device *d, acc *dst, const double *src, size_t n) { upload(d, floats(dst), src, n); }
template <class Real> static void cuda_upload_real_float(Device *d, real *dst, const float *src, size_t n) { upload(d, reals<Real>(dst), src, n); }
static void cuda_upload_acc_float(Device *d, acc *dst, const float *src, size_t n) { upload(d, floats(dst), src, n); }
static void cuda_upload_ids(Device *d, int32_t *dst, const int32_t *src, size_t n) { upload(d, dst, src, n); }
template <class Real> static void cuda_download_real(Device *d, double *dst, const real *src, size_t n) { download(d, dst, reals<Real>(src), n); }
static void cuda_download_acc(Device *d, double *dst, const acc *src, size_t n) { download(d, dst, floats(src), n); }
static void cuda_download_stat(Device *d, double *dst, const scalar *src, size_t n) { download(d, dst, doubles(src), n); }
static void cuda_sync(Device *d) { check(cudaStreamSynchronize(stream_of(d)), "sync"); }
template <class Real> static real *cuda_real_at(real *p, size_t i) { return reinterpret_cast<real *>(reals<Real>(p) + i); }
static acc *cuda_acc_at(acc *p, size_t i) { return reinterpret_cast<acc *>(floats(p) + i); }
static scalar *cuda_stat_at(scalar *p, size_t i) { return reinterpret_cast<scalar *>(doubles(p) + i); }

// ---- the side stream ----

static void *cuda_side_stream(Device *d) {
  CudaState *state = state_of(d);
  if (state->side) return state->side;
  check(cudaStreamCreateWithFlags(&state->side, cudaStreamNonBlocking), "side stream");
  check(cudaEventCreateWithFlags(&state->operations, cudaEventDisableTiming), "side stream");
  return state->side;
}
static void cuda_side_begin(Device *d) {
  CudaState *state = state_of(d);
  if (state->span_count == state->span_room) {
    const size_t room = 2 * state->span_room + 16;
    CudaState::Span *spans = static_cast<CudaState::Span *>(realloc(state->spans, room * sizeof *spans));
    if (!spans) fail(EXIT_MACHINE, "memory: no %zu bytes for the side stream's events", room * sizeof *spans);
    state->spans = spans;
    for (; state->span_room < room; state->span_room++) {
      check(cudaEventCreate(&spans[state->span_room].begin), "side stream");
      check(cudaEventCreate(&spans[state->span_room].end), "side stream");
    }
  }
  check(cudaEventRecord(state->operations, stream_of(d)), "side stream");
  check(cudaStreamWaitEvent(state->side, state->operations, 0), "side stream");
  check(cudaEventRecord(state->spans[state->span_count].begin, state->side), "side stream");
}
static void cuda_side_end(Device *d) {
  CudaState *state = state_of(d);
  check(cudaEventRecord(state->spans[state->span_count++].end, state->side), "side stream");
}
static int cuda_side_busy(Device *d) {
  CudaState *state = state_of(d);
  if (!state->span_count) return 0;
  const cudaError_t error = cudaEventQuery(state->spans[state->span_count - 1].end);
  if (error == cudaErrorNotReady) { cudaGetLastError(); return 1; }
  check(error, "side stream");
  return 0;
}
static double cuda_side_seconds(Device *d) {
  CudaState *state = state_of(d);
  double milliseconds = 0;
  for (size_t i = 0; i < state->span_count; i++) {
    float span = 0;
    check(cudaEventElapsedTime(&span, state->spans[i].begin, state->spans[i].end), "side stream");
    milliseconds += span;
  }
  state->span_count = 0;
  return 1e-3 * milliseconds;
}
static void close_side_stream(CudaState *state) {
  for (size_t i = 0; i < state->span_room; i++) cudaEventDestroy(state->spans[i].begin), cudaEventDestroy(state->spans[i].end);
  free(state->spans);
  if (!state->side) return;
  cudaEventDestroy(state->operations);
  cudaStreamDestroy(state->side);
}

// ---- embedding ----

// W channels of a row a thread. The rows of one position stand side by side in the grid, so that wpe is read from memory once.
template <class Real, int W>
__global__ void embedding_forward_kernel(Real *out, const int32_t *ids, const Real *wte, const Real *wpe, size_t B, size_t T, size_t C, size_t position) {
  const size_t item = global_thread() * W / C, c = global_thread() * W % C, row = item % B * T + item / B;
  if (item >= B * T) return;
  float token[W], place[W];
  load<W>(token, wte + (size_t)ids[row] * C + c);
  if (wpe) {
    load<W>(place, wpe + (position + item / B) * C + c);
    #pragma unroll
    for (int e = 0; e < W; e++) token[e] += place[e];
  }
  store<W>(out + row * C + c, token);
}

template <class Real>
static void cuda_embedding_forward(Device *d, real *out, const int32_t *ids, const real *wte, const real *wpe, size_t B, size_t T, size_t C, size_t position) {
  constexpr int W = Wide<Real>::WIDTH;
  cudaStream_t stream = stream_of(d);
  const size_t n = B * T * C;
  if (C % W == 0 && aligned(out, wte, wpe)) embedding_forward_kernel<Real, W><<<grid_for(n / W, 256), 256, 0, stream>>>(reals<Real>(out), ids, reals<Real>(wte), reals<Real>(wpe), B, T, C, position);
  else embedding_forward_kernel<Real, 1><<<grid_for(n, 256), 256, 0, stream>>>(reals<Real>(out), ids, reals<Real>(wte), reals<Real>(wpe), B, T, C, position);
  launched("embedding_forward");
}

// The gradient of a token's row is a sum over the rows where the token stands. One block sorts the rows by id, eight bits at a time,
// keeping the order of equal ids; then each run of equal ids has one owner, who adds in row order.
enum { SORT_THREADS = 1024, SORT_ROWS = 1 << 16, DIGITS = 256 };
struct SortedRows { uint32_t *id, *row; };   // (n) each

__global__ void __launch_bounds__(SORT_THREADS) embedding_sort_kernel(SortedRows to, SortedRows from, const int32_t *ids, uint32_t n, int passes) {
  __shared__ uint32_t next[DIGITS];                         // where the next row of a digit goes
  __shared__ uint32_t place[SORT_THREADS / WARP][DIGITS];   // where a warp's first row of a digit goes
  const uint32_t thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
  for (int pass = 0; pass < passes; pass++) {
    const int shift = 8 * pass;
    if (thread < DIGITS) next[thread] = 0;
    __syncthreads();
    for (uint32_t i = thread; i < n; i += SORT_THREADS) atomicAdd(&next[(pass ? from.id[i] : (uint32_t)ids[i]) >> shift & (DIGITS - 1)], 1u);   // counts: any order
    __syncthreads();
    if (thread == 0)
      for (uint32_t digit = 0, sum = 0; digit < DIGITS; digit++) { const uint32_t count = next[digit]; next[digit] = sum, sum += count; }
    for (uint32_t first = 0; first < n; first += SORT_THREADS) {
      for (uint32_t i = thread; i < SORT_THREADS / WARP * DIGITS; i += SORT_THREADS) place[i / DIGITS][i % DIGITS] = 0;
      __syncthreads();
      const uint32_t i = first + thread;
      const bool valid = i < n;
      const uint32_t id = !valid ? 0 : pass ? from.id[i] : (uint32_t)ids[i], digit = id >> shift & (DIGITS - 1);
      uint32_t same = __ballot_sync(ALL_LANES, valid);      // lanes with this digit
      for (int bit = 0; bit < 8; bit++) {
        const uint32_t set = __ballot_sync(ALL_LANES, digit >> bit & 1);
        same &= digit >> bit & 1 ? set : ~set;
      }
      const uint32_t before = __popc(same & ((1u << lane) - 1));
      if (valid && before == 0) place[warp][digit] = __popc(same);
      __syncthreads();
      if (thread < DIGITS)
        for (uint32_t w = 0; w < SORT_THREADS / WARP; w++) { const uint32_t count = place[w][thread]; place[w][thread] = next[thread], next[thread] += count; }
      __syncthreads();
      if (valid) {
        const uint32_t at = place[warp][digit] + before;
        to.id[at] = id, to.row[at] = pass ? from.row[i] : i;
      }
      __syncthreads();
    }
    const SortedRows swap = to;
    to = from, from = swap;
  }
}

// A warp owns 32 W channels of a run of equal ids.
template <class Real, int W>
__global__ void embedding_backward_token_kernel(float *dwte, const Real *dout, SortedRows sorted, size_t n, size_t C) {
  const size_t pieces = CEIL_DIV(C, (size_t)WARP * W), item = global_thread() / WARP, i = item / pieces, c = item % pieces * WARP * W + threadIdx.x % WARP * W;
  if (i >= n || c >= C || (i > 0 && sorted.id[i - 1] == sorted.id[i])) return;
  constexpr int RUN = 8;
  float sum[W], x[RUN][W];
  float *out = dwte + (size_t)sorted.id[i] * C + c;
  load<W>(sum, out);
  const uint32_t id = sorted.id[i];
  for (size_t j = i; j < n && sorted.id[j] == id; j += RUN) {   // frequent tokens have long runs: several loads are under way at once
    const int rows = (int)min((size_t)RUN, n - j);
    #pragma unroll
    for (int r = 0; r < RUN; r++)
      if (r < rows && sorted.id[j + r] == id) load<W>(x[r], dout + (size_t)sorted.row[j + r] * C + c);
      else
        #pragma unroll
        for (int e = 0; e < W; e++) x[r][e] = 0;
    #pragma unroll
    for (int r = 0; r < RUN; r++)
      #pragma unroll
      for (int e = 0; e < W; e++) sum[e] += x[r][e];   // beyond the run: + 0
  }
  store<W>(out, sum);
}

// A thread owns W channels of a position.
template <class Real, int W> __global__ void embedding_backward_position_kernel(float *dwpe, const Real *dout, size_t B, size_t T, size_t C) {
  const size_t at = global_thread() * W;
  if (at >= T * C) return;
  float sum[W], x[W];
  load<W>(sum, dwpe + at);
  for (size_t b = 0; b < B; b++) {
    load<W>(x, dout + b * T * C + at);
    #pragma unroll
    for (int e = 0; e < W; e++) sum[e] += x[e];
  }
  store<W>(dwpe + at, sum);
}

template <class Real, int W>
static void embedding_backward(Device *d, float *dwte, float *dwpe, const Real *dout, const int32_t *ids, size_t B, size_t T, size_t C, size_t V) {
  cudaStream_t stream = stream_of(d);
  uint32_t *work = reinterpret_cast<uint32_t *>(work_of(d));
  SortedRows one = {work, work + SORT_ROWS}, other = {work + 2 * SORT_ROWS, work + 3 * SORT_ROWS};
  int passes = 1;
  while ((V - 1) >> (8 * passes)) passes++;   // ids are int32_t
  for (size_t first = 0; dwte && first < B * T; first += SORT_ROWS) {
    const size_t n = smaller(B * T - first, SORT_ROWS);
    embedding_sort_kernel<<<1, SORT_THREADS, 0, stream>>>(one, other, ids + first, (uint32_t)n, passes);
    embedding_backward_token_kernel<Real, W><<<grid_for(n * CEIL_DIV(C, (size_t)WARP * W), 4), 4 * WARP, 0, stream>>>(dwte, dout + first * C, passes % 2 ? one : other, n, C);
    launched("embedding_backward", 2);
  }
  if (!dwpe) return;
  embedding_backward_position_kernel<Real, W><<<grid_for(T * C / W, 256), 256, 0, stream>>>(dwpe, dout, B, T, C);
  launched("embedding_backward");
}
template <class Real>
static void cuda_embedding_backward(Device *d, acc *dwte, acc *dwpe, const real *dout, const int32_t *ids, size_t B, size_t T, size_t C, size_t V) {
  constexpr int W = Wide<Real>::WIDTH;
  if (C % W == 0 && aligned(dwte, dwpe, dout)) embedding_backward<Real, W>(d, floats(dwte), floats(dwpe), reals<Real>(dout), ids, B, T, C, V);
  else embedding_backward<Real, 1>(d, floats(dwte), floats(dwpe), reals<Real>(dout), ids, B, T, C, V);
}

// ---- dropout ----

// A thread takes the elements that share a block of four random words; the first and the last block may be cut, and blocks behind it have none.
// wide: first is a multiple of 4.
template <class Real> __global__ void dropout_kernel(Real *x, size_t n, uint64_t first, DropoutKey key, bool wide) {
  const uint64_t block = first / 4 + global_thread();
  const Words words = random_block(key.seed, key.step, key.site, block);
  if (wide && block * 4 + 4 <= first + n) {
    float v[4];
    Real *place = x + (block * 4 - first);
    load<4>(v, place);
    #pragma unroll
    for (int e = 0; e < 4; e++) v[e] *= words.v[e] >= key.keep_threshold ? key.scale : 0;
    store<4>(place, v);
    return;
  }
  #pragma unroll
  for (int e = 0; e < 4; e++) {
    const uint64_t element = block * 4 + e;
    if (element < first || element >= first + n) continue;
    const float factor = words.v[e] >= key.keep_threshold ? key.scale : 0;
    x[element - first] = from_float<Real>(to_float(x[element - first]) * factor);
  }
}

template <class Real> static void cuda_dropout(Device *d, real *x, size_t rows, size_t width, const Dropout *dropout) {
  const size_t n = rows * width;
  const uint64_t first = dropout->row0 * width;
  if (dropout->p == 0 || n == 0) return;
  dropout_kernel<Real><<<grid_for(CEIL_DIV(first + n, (uint64_t)4) - first / 4, 256), 256, 0, stream_of(d)>>>(reals<Real>(x), n, first, dropout_key(dropout), first % 4 == 0 && aligned(x));
  launched("dropout");
}

// ---- norms ----

enum { NORM_WARPS = 8 };

// A warp owns a row. CENTRED: layer norm, else RMS norm. A row is read again from the cache, by the lanes that read or wrote it before.
template <class Real, int W, bool CENTRED>
__global__ void __launch_bounds__(NORM_WARPS * WARP) norm_forward_kernel(Real *residual, Real *out, float *mean, float *rstd, const Real *x, const Real *delta,
                                                                         const Real *weight, const Real *bias, size_t rows, size_t C, float eps) {
  const size_t row = (size_t)blockIdx.x * NORM_WARPS + threadIdx.x / WARP, begin = row * C + threadIdx.x % WARP * W, end = (row + 1) * C;
  if (row >= rows) return;
  const Real *source = delta ? residual : x;
  float v[W], more[W], sum = 0, squares = 0;
  for (size_t i = begin; i < end; i += WARP * W) {
    load<W>(v, x + i);
    if (delta) {
      load<W>(more, delta + i);
      #pragma unroll
      for (int e = 0; e < W; e++) v[e] = rounded<Real>(v[e] + more[e]);
      store<W>(residual + i, v);
    }
    #pragma unroll
    for (int e = 0; e < W; e++) sum += v[e], squares = fmaf(v[e], v[e], squares);
  }
  float centre = 0;
  if (CENTRED) {
    centre = warp_sum(sum) / (float)C, squares = 0;
    for (size_t i = begin; i < end; i += WARP * W) {
      load<W>(v, source + i);
      #pragma unroll
      for (int e = 0; e < W; e++) squares = fmaf(v[e] - centre, v[e] - centre, squares);
    }
  }
  const float scale = 1 / sqrtf(warp_sum(squares) / (float)C + eps);
  for (size_t i = begin; i < end; i += WARP * W) {
    const size_t c = i - row * C;
    float w[W], b[W] = {};
    load<W>(v, source + i), load<W>(w, weight + c);
    if (bias) load<W>(b, bias + c);
    #pragma unroll
    for (int e = 0; e < W; e++) v[e] = CENTRED ? (v[e] - centre) * scale * w[e] + b[e] : v[e] * scale * w[e];
    store<W>(out + i, v);
  }
  if (threadIdx.x % WARP != 0) return;
  if (CENTRED) mean[row] = centre;
  rstd[row] = scale;
}

template <class Real, bool CENTRED>
static void norm_forward(Device *d, real *residual, real *out, acc *mean, acc *rstd, const real *x, const real *delta, const real *weight, const real *bias, size_t rows, size_t C, double eps) {
  constexpr int W = Wide<Real>::WIDTH;
  cudaStream_t stream = stream_of(d);
  Real *r = reals<Real>(residual), *o = reals<Real>(out);
  const Real *a = reals<Real>(x), *b = reals<Real>(delta), *w = reals<Real>(weight), *shift = reals<Real>(bias);
  if (C % W == 0 && aligned(delta ? residual : NULL, out, x, delta, weight, bias))
    norm_forward_kernel<Real, W, CENTRED><<<grid_for(rows, NORM_WARPS), NORM_WARPS * WARP, 0, stream>>>(r, o, floats(mean), floats(rstd), a, b, w, shift, rows, C, (float)eps);
  else norm_forward_kernel<Real, 1, CENTRED><<<grid_for(rows, NORM_WARPS), NORM_WARPS * WARP, 0, stream>>>(r, o, floats(mean), floats(rstd), a, b, w, shift, rows, C, (float)eps);
  launched("norm_forward");
}

// A block owns a slice of rows, eight at a time: a warp finds a row's two averages and its dx; then each thread adds the eight rows to its own
// columns of this block's part of dweight and dbias. x and dout are then read a second time, from the cache.
template <class Real, int W, bool CENTRED>
__global__ void __launch_bounds__(NORM_WARPS * WARP) norm_backward_kernel(Real *dx, float *parts, const Real *dout, const Real *dresidual, const Real *x, const Real *weight,
                                                                          const float *mean, const float *rstd, size_t rows, size_t C, size_t slice) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const size_t first = (size_t)blockIdx.x * slice, end = min(first + slice, rows);
  float *dweight = parts + (size_t)blockIdx.x * 2 * C, *dbias = dweight + C;
  for (size_t c = threadIdx.x * W; c < C; c += NORM_WARPS * WARP * W) {
    const float zero[W] = {};
    store<W>(dweight + c, zero);
    if (CENTRED) store<W>(dbias + c, zero);
  }
  for (size_t group = first; group < end; group += NORM_WARPS) {
    const size_t row = group + warp;
    float dy[W], v[W], w[W], r[W] = {};
    if (row < end) {
      const float centre = CENTRED ? mean[row] : 0, scale = rstd[row];
      float sum_dnorm = 0, sum_dnorm_norm = 0;
      for (size_t c = (size_t)lane * W; c < C; c += WARP * W) {
        load<W>(dy, dout + row * C + c), load<W>(v, x + row * C + c), load<W>(w, weight + c);
        #pragma unroll
        for (int e = 0; e < W; e++) {
          const float norm = (v[e] - centre) * scale, dnorm = dy[e] * w[e];
          sum_dnorm += dnorm, sum_dnorm_norm = fmaf(dnorm, norm, sum_dnorm_norm);
        }
      }
      const float average = CENTRED ? warp_sum(sum_dnorm) / (float)C : 0, along_norm = warp_sum(sum_dnorm_norm) / (float)C;
      for (size_t c = (size_t)lane * W; c < C; c += WARP * W) {
        load<W>(dy, dout + row * C + c), load<W>(v, x + row * C + c), load<W>(w, weight + c);
        if (dresidual) load<W>(r, dresidual + row * C + c);
        #pragma unroll
        for (int e = 0; e < W; e++) {
          const float norm = (v[e] - centre) * scale, dnorm = dy[e] * w[e];
          v[e] = r[e] + scale * (dnorm - average - norm * along_norm);
        }
        store<W>(dx + row * C + c, v);
      }
    }
    for (size_t c = threadIdx.x * W; c < C; c += NORM_WARPS * WARP * W) {
      float gain[W], shift[W] = {};
      load<W>(gain, dweight + c);
      if (CENTRED) load<W>(shift, dbias + c);
      for (size_t i = group; i < group + NORM_WARPS && i < end; i++) {
        load<W>(dy, dout + i * C + c), load<W>(v, x + i * C + c);
        const float centre = CENTRED ? mean[i] : 0, scale = rstd[i];
        #pragma unroll
        for (int e = 0; e < W; e++) gain[e] = fmaf(dy[e], (v[e] - centre) * scale, gain[e]), shift[e] += dy[e];
      }
      store<W>(dweight + c, gain);
      if (CENTRED) store<W>(dbias + c, shift);
    }
  }
}

// The same for rows of at most PIECES accesses of W a lane: a warp owns every eighth row of the slice and keeps its part of dweight and
// dbias in registers; the block's part is the sum over its warps, in order, in smem (norm_short_bytes), where a thread's e-th elements
// lie side by side with the other lanes'. A row is read again from the cache.
template <class Real, int W, bool CENTRED, int PIECES>
__global__ void __launch_bounds__(NORM_WARPS * WARP) norm_backward_short_kernel(Real *dx, float *parts, const Real *dout, const Real *dresidual, const Real *x, const Real *weight,
                                                                                const float *mean, const float *rstd, size_t rows, size_t C, size_t slice) {
  extern __shared__ __align__(1024) unsigned char smem[];
  const int warp = threadIdx.x / WARP;
  const size_t first = (size_t)blockIdx.x * slice, end = min(first + slice, rows), begin = threadIdx.x % WARP * W;
  float *total = reinterpret_cast<float *>(smem), *total_shift = total + PIECES * W * WARP, gain[PIECES][W] = {}, shift[PIECES][W] = {};
  for (size_t row = first + warp; row < end; row += NORM_WARPS) {
    const float centre = CENTRED ? mean[row] : 0, scale = rstd[row];
    float dy[W], v[W], w[W], r[W] = {}, sum_dnorm = 0, sum_dnorm_norm = 0;
    #pragma unroll
    for (int p = 0; p < PIECES; p++) {
      const size_t c = begin + p * WARP * W;
      if (c >= C) break;
      load<W>(dy, dout + row * C + c), load<W>(v, x + row * C + c), load<W>(w, weight + c);
      #pragma unroll
      for (int e = 0; e < W; e++) {
        const float norm = (v[e] - centre) * scale, dnorm = dy[e] * w[e];
        sum_dnorm += dnorm, sum_dnorm_norm = fmaf(dnorm, norm, sum_dnorm_norm);
        gain[p][e] = fmaf(dy[e], norm, gain[p][e]), shift[p][e] += dy[e];
      }
    }
    const float average = CENTRED ? warp_sum(sum_dnorm) / (float)C : 0, along_norm = warp_sum(sum_dnorm_norm) / (float)C;
    #pragma unroll
    for (int p = 0; p < PIECES; p++) {
      const size_t c = begin + p * WARP * W;
      if (c >= C) break;
      load<W>(dy, dout + row * C + c), load<W>(v, x + row * C + c), load<W>(w, weight + c);
      if (dresidual) load<W>(r, dresidual + row * C + c);
      #pragma unroll
      for (int e = 0; e < W; e++) v[e] = r[e] + scale * (dy[e] * w[e] - average - (v[e] - centre) * scale * along_norm);
      store<W>(dx + row * C + c, v);
    }
  }
  for (int turn = 0; turn < NORM_WARPS; turn++) {
    if (warp == turn)
      #pragma unroll
      for (int p = 0; p < PIECES; p++)
        #pragma unroll
        for (int e = 0; e < W; e++) {
          const int at = (p * W + e) * WARP + threadIdx.x % WARP;
          total[at] = turn == 0 ? gain[p][e] : total[at] + gain[p][e];
          if (CENTRED) total_shift[at] = turn == 0 ? shift[p][e] : total_shift[at] + shift[p][e];
        }
    __syncthreads();
  }
  for (size_t c = threadIdx.x; c < C; c += NORM_WARPS * WARP) {
    const size_t at = (c / (WARP * W) * W + c % W) * WARP + c / W % WARP;
    parts[(size_t)blockIdx.x * 2 * C + c] = total[at];
    if (CENTRED) parts[((size_t)blockIdx.x * 2 + 1) * C + c] = total_shift[at];
  }
}
static constexpr size_t norm_short_bytes(int pieces, int width) { return 2 * (size_t)pieces * width * WARP * sizeof(float); }

// dweight, dbias += the blocks' parts. A block owns 32 columns, its warps a share of the parts each; the shares are added in order.
enum { PART_WARPS = 8 };
__global__ void __launch_bounds__(PART_WARPS * WARP) norm_backward_sum_kernel(float *dweight, float *dbias, const float *parts, size_t blocks, size_t C) {
  __shared__ float sums[PART_WARPS][WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const size_t column = (size_t)blockIdx.x * WARP + lane, share = CEIL_DIV(blocks, (size_t)PART_WARPS), end = min((warp + 1) * share, blocks);
  float *out = column < C ? dweight : dbias, sum = 0;
  const bool mine = column < 2 * C && out;
  if (mine) {
    #pragma unroll 8
    for (size_t block = warp * share; block < end; block++) sum += parts[block * 2 * C + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || !mine) return;
  sum = out[column % C];
  #pragma unroll
  for (int w = 0; w < PART_WARPS; w++) sum += sums[w][lane];
  out[column % C] = sum;
}

template <class Real, bool CENTRED>
static void norm_backward(Device *d, real *dx, acc *dweight, acc *dbias, const real *dout, const real *dresidual, const real *x, const real *weight,
                          const acc *mean, const acc *rstd, size_t rows, size_t C) {
  constexpr int W = Wide<Real>::WIDTH;
  cudaStream_t stream = stream_of(d);
  if (rows == 0) return;
  float *parts = work_of(d);
  const size_t room = work_bytes / sizeof(float) / (2 * C), wanted = CEIL_DIV(rows, (size_t)32), most = 2 * (size_t)state_of(d)->multiprocessors;
  if (room == 0) fail(EXIT_MACHINE, "cuda: norm_backward: %zu channels are too many; at most %zu", C, work_bytes / sizeof(float) / 2);
  const size_t slice = CEIL_DIV(rows, smaller(wanted, smaller(most, room))), blocks = CEIL_DIV(rows, slice);
  Real *out = reals<Real>(dx);
  const Real *dy = reals<Real>(dout), *dr = reals<Real>(dresidual), *v = reals<Real>(x), *w = reals<Real>(weight);
  const bool wide = C % W == 0 && aligned(dx, dout, dresidual, x, weight);
  auto launch = [&](auto kernel, size_t shared) {
    kernel<<<(unsigned)blocks, NORM_WARPS * WARP, shared, stream>>>(out, parts, dy, dr, v, w, floats(mean), floats(rstd), rows, C, slice);
  };
  if (wide && C <= 4 * WARP * W) launch(norm_backward_short_kernel<Real, W, CENTRED, 4>, norm_short_bytes(4, W));
  else if (wide && C <= 8 * WARP * W) launch(norm_backward_short_kernel<Real, W, CENTRED, 8>, norm_short_bytes(8, W));
  else if (wide) launch(norm_backward_kernel<Real, W, CENTRED>, 0);
  else if (C <= 8 * WARP) launch(norm_backward_short_kernel<Real, 1, CENTRED, 8>, norm_short_bytes(8, 1));
  else launch(norm_backward_kernel<Real, 1, CENTRED>, 0);
  norm_backward_sum_kernel<<<grid_for(2 * C, WARP), PART_WARPS * WARP, 0, stream>>>(floats(dweight), CENTRED ? floats(dbias) : NULL, parts, blocks, C);
  launched("norm_backward", 2);
}

template <class Real>
static void cuda_layernorm_forward(Device *d, real *residual, real *out, acc *mean, acc *rstd, const real *x, const real *delta, const real *weight, const real *bias, size_t rows, size_t C, double eps) {
  norm_forward<Real, true>(d, residual, out, mean, rstd, x, delta, weight, bias, rows, C, eps);
}
template <class Real>
static void cuda_layernorm_backward(Device *d, real *dx, acc *dweight, acc *dbias, const real *dout, const real *dresidual, const real *x, const real *weight,
                                    const acc *mean, const acc *rstd, size_t rows, size_t C) {
  norm_backward<Real, true>(d, dx, dweight, dbias, dout, dresidual, x, weight, mean, rstd, rows, C);
}
template <class Real>
static void cuda_rmsnorm_forward(Device *d, real *residual, real *out, acc *rstd, const real *x, const real *delta, const real *weight, size_t rows, size_t C, double eps) {
  norm_forward<Real, false>(d, residual, out, NULL, rstd, x, delta, weight, NULL, rows, C, eps);
}
template <class Real>
static void cuda_rmsnorm_backward(Device *d, real *dx, acc *dweight, const real *dout, const real *dresidual, const real *x, const real *weight, const acc *rstd, size_t rows, size_t C) {
  norm_backward<Real, false>(d, dx, dweight, NULL, dout, dresidual, x, weight, NULL, rstd, rows, C);
}

template <class Real, int W> __global__ void residual_forward_kernel(Real *out, const Real *x, const Real *delta, size_t n) {
  const size_t i = global_thread() * W;
  if (i >= n) return;
  float a[W], b[W];
  load<W>(a, x + i), load<W>(b, delta + i);
  #pragma unroll
  for (int e = 0; e < W; e++) a[e] += b[e];
  store<W>(out + i, a);
}

template <class Real> static void cuda_residual_forward(Device *d, real *out, const real *x, const real *delta, size_t n) {
  constexpr int W = Wide<Real>::WIDTH;
  cudaStream_t stream = stream_of(d);
  if (n % W == 0 && aligned(out, x, delta)) residual_forward_kernel<Real, W><<<grid_for(n / W, 256), 256, 0, stream>>>(reals<Real>(out), reals<Real>(x), reals<Real>(delta), n);
  else residual_forward_kernel<Real, 1><<<grid_for(n, 256), 256, 0, stream>>>(reals<Real>(out), reals<Real>(x), reals<Real>(delta), n);
  launched("residual_forward");
}

// ---- matrix products (gemm.cuh, cublaslt.cuh) ----

template <class Real> static void cuda_activation_forward(Device *d, real *post, const real *pre, size_t rows, size_t width, Activation activation);

static size_t tiles_of(size_t M, size_t N, size_t tile) { return CEIL_DIV(M, tile) * CEIL_DIV(N, tile); }

template <Direction DIR, Activation ACT> static void launch_gemm(CudaState *state, const Gemm<float> &g) {
  gemm_float_kernel<DIR, ACT><<<(unsigned)tiles_of(g.M, g.N, FLOAT_TILE), FLOAT_THREADS, 0, state->stream>>>(g);
}
// How often k is split, so that the last round of blocks is as full as the others: least time, counted in rounds of all multiprocessors; a share
// costs memory traffic, so it keeps 8 steps at least and must win 3 % of a round: more than 6 parts never do.
// Apart, so that it can be tested without products of that size.
extern "C" int cuda_splits(size_t M, size_t N, size_t K, size_t tiles, size_t places) {
  const size_t room = WORK_BYTES / sizeof(float) / (M * N + M), longest = K / (8 * BF16_DEPTH);
  int best = 1;
  double least = (double)CEIL_DIV(tiles, places);
  for (size_t splits = 2; splits <= 6 && splits <= room && splits <= longest; splits++) {
    const double time = (double)CEIL_DIV(tiles * splits, places) / (double)splits + 0.03 * (double)splits;
    if (time < least) least = time, best = (int)splits;
  }
  return best;
}
template <Direction DIR, Activation ACT, int TILE, bool WIDE, bool WGMMA> static void launch_tiles(CudaState *state, const Gemm<bf16> &g) {
  gemm_bf16_kernel<DIR, ACT, TILE, WIDE, WGMMA><<<dim3((unsigned)tiles_of(g.M, g.N, TILE), (unsigned)g.splits), BF16_THREADS, gemm_bf16_shared_bytes(TILE), state->stream>>>(g);
  if constexpr (DIR != FORWARD) {
    if (g.splits == 1) return;
    gemm_bf16_sum_kernel<DIR><<<grid_for(g.M * g.N / 4 + (g.bias_sum ? g.M : 0), 256), 256, 0, state->stream>>>(g);
    launched("sum of splits");
  }
}
// Large tiles do more products for each byte, if there are enough of them for all multiprocessors.
template <Direction DIR, Activation ACT> static void launch_gemm(CudaState *state, Gemm<bf16> g) {
  const size_t processors = (size_t)state->multiprocessors, large = tiles_of(g.M, g.N, 128);
  if (!g.wide) { launch_tiles<DIR, ACT, 64, false, false>(state, g); return; }
  if (DIR != FORWARD && g.wide_out) g.splits = cuda_splits(g.M, g.N, g.K, large, 2 * processors);
  if (large * g.splits >= processors && g.M > 64 && g.N > 64) {
    if (state->wgmma) launch_tiles<DIR, ACT, 128, true, true>(state, g);
    else launch_tiles<DIR, ACT, 128, true, false>(state, g);
    return;
  }
  g.splits = 1;
  launch_tiles<DIR, ACT, 64, true, false>(state, g);
}

// The product by the library, if it was asked for and takes it; what it leaves to do is done here.
template <Direction DIR, Activation ACT, class Real> static bool library_product(Device *d, const Gemm<Real> &g) {
  constexpr int W = Wide<Real>::WIDTH;
  CudaState *state = state_of(d);
  if (!state->cublaslt || !cublaslt_multiply<DIR>(state->cublaslt, g, state->scratch->work, WORK_BYTES, state->stream)) return false;
  if (DIR == BACKWARD_WEIGHT && g.bias_sum) {
    const size_t room = work_bytes / sizeof(float) / (2 * g.M), slice = CEIL_DIV(g.K, smaller(CEIL_DIV(g.K, (size_t)64), smaller(128, room)));
    column_sum_kernel<Real, W><<<dim3(grid_for(g.M / W, 128), (unsigned)CEIL_DIV(g.K, slice)), 128, 0, state->stream>>>(g.partial, g.a, g.K, g.M, slice);
    norm_backward_sum_kernel<<<grid_for(g.M, WARP), PART_WARPS * WARP, 0, state->stream>>>(g.bias_sum, (float *)NULL, g.partial, CEIL_DIV(g.K, slice), g.M);
    launched("sum of columns", 2);
  }
  if (ACT != ACTIVATION_NONE) cuda_activation_forward<Real>(d, reinterpret_cast<real *>(g.post), reinterpret_cast<const real *>(g.pre), g.M, g.N, ACT);
  return true;
}
template <Direction DIR, Activation ACT, class Real> static void product(Device *d, const Gemm<Real> &g) {
  if (!library_product<DIR, ACT>(d, g)) launch_gemm<DIR, ACT>(state_of(d), g);
}
// Tiles count in int.
static void check_product(size_t M, size_t N, size_t K) {
  const size_t most = INT32_MAX / 2;
  if (M > most || N > most || K > most) fail(EXIT_MACHINE, "cuda: a product of %zu x %zu x %zu is too large: at most %zu on a side; use a smaller --batch", M, N, K, most);
}

template <class Real>
static void cuda_linear_forward(Device *d, real *pre, real *post, const real *x, const real *weight, const real *bias, size_t rows, size_t IC, size_t OC, Activation activation) {
  constexpr size_t W = Wide<Real>::WIDTH;
  stream_of(d);
  if (rows == 0 || OC == 0) return;
  check_product(rows, IC, OC);
  const Gemm<Real> g = {rows, OC, IC, reals<Real>(x), reals<Real>(weight), reals<Real>(bias), reals<Real>(pre), reals<Real>(post), NULL, NULL, work_of(d), 1,
                        IC % W == 0 && aligned(x, weight), OC % W == 0 && aligned(pre, post)};
  if (activation == ACTIVATION_NONE) product<FORWARD, ACTIVATION_NONE>(d, g);
  else if (activation == ACTIVATION_GELU) product<FORWARD, ACTIVATION_GELU>(d, g);
  else product<FORWARD, ACTIVATION_SWIGLU>(d, g);
  launched("linear_forward");
}

template <class Real>
static void cuda_linear_backward_input(Device *d, real *dx, const real *dout, const real *weight, size_t rows, size_t IC, size_t OC) {
  constexpr size_t W = Wide<Real>::WIDTH;
  stream_of(d);
  if (rows == 0 || IC == 0) return;
  check_product(rows, IC, OC);
  const Gemm<Real> g = {rows, IC, OC, reals<Real>(dout), reals<Real>(weight), NULL, reals<Real>(dx), NULL, NULL, NULL, work_of(d), 1,
                        OC % W == 0 && IC % W == 0 && aligned(dout, weight), IC % W == 0 && aligned(dx)};
  product<BACKWARD_INPUT, ACTIVATION_NONE>(d, g);
  launched("linear_backward_input");
}

template <class Real>
static void cuda_linear_backward_weight(Device *d, acc *dweight, acc *dbias, const real *dout, const real *x, size_t rows, size_t IC, size_t OC) {
  constexpr size_t W = Wide<Real>::WIDTH;
  stream_of(d);
  if (rows == 0 || OC == 0) return;
  check_product(rows, IC, OC);
  const Gemm<Real> g = {OC, IC, rows, reals<Real>(dout), reals<Real>(x), NULL, NULL, NULL, floats(dweight), floats(dbias), work_of(d), 1,
                        OC % W == 0 && IC % W == 0 && aligned(dout, x), IC % W == 0 && aligned(dweight)};
  product<BACKWARD_WEIGHT, ACTIVATION_NONE>(d, g);
  launched("linear_backward_weight");
}

// W outputs a thread; SwiGLU: columns j and half + j of pre make column j of post
template <class Real, int W, Activation ACT> __global__ void activation_forward_kernel(Real *post, const Real *pre, size_t rows, size_t width) {
  const size_t half = ACT == ACTIVATION_SWIGLU ? width / 2 : width, at = global_thread() * W, row = at / half, j = at % half;
  if (row >= rows) return;
  float x[W], up[W];
  load<W>(x, pre + row * width + j);
  if (ACT == ACTIVATION_SWIGLU) load<W>(up, pre + row * width + half + j);
  #pragma unroll
  for (int e = 0; e < W; e++) x[e] = ACT == ACTIVATION_GELU ? gelu<Real>(x[e]) : silu<Real>(x[e]) * up[e];
  store<W>(post + at, x);
}

template <class Real, int W, Activation ACT> __global__ void activation_backward_kernel(Real *dpre, const Real *dpost, const Real *pre, size_t rows, size_t width) {
  const size_t half = ACT == ACTIVATION_SWIGLU ? width / 2 : width, at = global_thread() * W, row = at / half, j = at % half;
  if (row >= rows) return;
  float x[W], up[W], dy[W], dup[W];
  load<W>(x, pre + row * width + j), load<W>(dy, dpost + at);
  if (ACT == ACTIVATION_SWIGLU) load<W>(up, pre + row * width + half + j);
  #pragma unroll
  for (int e = 0; e < W; e++) {
    if (ACT == ACTIVATION_SWIGLU) dup[e] = dy[e] * silu<Real>(x[e]), dy[e] *= silu_derivative<Real>(x[e]) * up[e];
    else dy[e] *= gelu_derivative<Real>(x[e]);
  }
  store<W>(dpre + row * width + j, dy);
  if (ACT == ACTIVATION_SWIGLU) store<W>(dpre + row * width + half + j, dup);
}

template <class Real, Activation ACT> static void activation_forward(cudaStream_t stream, Real *post, const Real *pre, size_t rows, size_t width) {
  constexpr int W = Wide<Real>::WIDTH;
  const size_t half = ACT == ACTIVATION_SWIGLU ? width / 2 : width;
  if (half % W == 0 && aligned(post, pre)) activation_forward_kernel<Real, W, ACT><<<grid_for(rows * half / W, 256), 256, 0, stream>>>(post, pre, rows, width);
  else activation_forward_kernel<Real, 1, ACT><<<grid_for(rows * half, 256), 256, 0, stream>>>(post, pre, rows, width);
}
template <class Real> static void cuda_activation_forward(Device *d, real *post, const real *pre, size_t rows, size_t width, Activation activation) {
  if (rows == 0 || width == 0) return;
  if (activation == ACTIVATION_NONE) { cuda_copy(d, post, pre, rows * width * sizeof(Real)); return; }
  if (activation == ACTIVATION_GELU) activation_forward<Real, ACTIVATION_GELU>(stream_of(d), reals<Real>(post), reals<Real>(pre), rows, width);
  else activation_forward<Real, ACTIVATION_SWIGLU>(stream_of(d), reals<Real>(post), reals<Real>(pre), rows, width);
  launched("activation_forward");
}

template <class Real, Activation ACT> static void activation_backward(cudaStream_t stream, Real *dpre, const Real *dpost, const Real *pre, size_t rows, size_t width) {
  constexpr int W = Wide<Real>::WIDTH;
  const size_t half = ACT == ACTIVATION_SWIGLU ? width / 2 : width;
  if (half % W == 0 && aligned(dpre, dpost, pre)) activation_backward_kernel<Real, W, ACT><<<grid_for(rows * half / W, 256), 256, 0, stream>>>(dpre, dpost, pre, rows, width);
  else activation_backward_kernel<Real, 1, ACT><<<grid_for(rows * half, 256), 256, 0, stream>>>(dpre, dpost, pre, rows, width);
}
template <class Real> static void cuda_activation_backward(Device *d, real *dpre, const real *dpost, const real *pre, size_t rows, size_t width, Activation activation) {
  if (rows == 0 || width == 0) return;
  if (activation == ACTIVATION_NONE) { cuda_copy(d, dpre, dpost, rows * width * sizeof(Real)); return; }
  if (activation == ACTIVATION_GELU) activation_backward<Real, ACTIVATION_GELU>(stream_of(d), reals<Real>(dpre), reals<Real>(dpost), reals<Real>(pre), rows, width);
  else activation_backward<Real, ACTIVATION_SWIGLU>(stream_of(d), reals<Real>(dpre), reals<Real>(dpost), reals<Real>(pre), rows, width);
  launched("activation_backward");
}

// ---- rotary positions ----

// On the host, in double, as every device: the table is made once.
static void cuda_rope_table(Device *d, acc *table, size_t context, size_t HS, double theta) {
  double *values = static_cast<double *>(calloc(HS, sizeof(double)));
  if (!values) fail(EXIT_MACHINE, "memory: no %zu bytes for a table of rotations", HS * sizeof(double));
  for (size_t p = 0; p < context; p++) {
    for (size_t i = 0; i < HS / 2; i++) {
      const double angle = (double)p * det_pow(theta, -2.0 * (double)i / (double)HS);
      values[2 * i] = det_cos(angle), values[2 * i + 1] = det_sin(angle);
    }
    upload(d, floats(table) + p * HS, values, HS);
  }
  free(values);
}

// W pairs of a head a thread
template <class Real, int W> __global__ void rope_kernel(Real *x, const float *table, size_t rows, size_t T, size_t position, size_t heads, size_t HS, size_t stride, float direction) {
  const size_t half = HS / 2, at = global_thread() * W, i = at % half, h = at / half % heads, row = at / half / heads;
  if (row >= rows) return;
  float first[W], second[W], angles[2 * W];
  Real *head = x + row * stride + h * HS;
  const float *place = table + (position + row % T) * HS + 2 * i;
  load<W>(first, head + i), load<W>(second, head + half + i);
  #pragma unroll
  for (int e = 0; e < 2 * W; e++) angles[e] = place[e];
  #pragma unroll
  for (int e = 0; e < W; e++) {
    const float a = first[e], b = second[e], cos = angles[2 * e], sin = direction * angles[2 * e + 1];
    first[e] = a * cos - b * sin, second[e] = a * sin + b * cos;
  }
  store<W>(head + i, first), store<W>(head + half + i, second);
}

template <class Real>
static void cuda_rope(Device *d, real *x, const acc *table, size_t B, size_t T, size_t position, size_t heads, size_t HS, size_t stride, int direction) {
  constexpr int W = Wide<Real>::WIDTH;
  cudaStream_t stream = stream_of(d);
  const size_t pairs = B * T * heads * (HS / 2);
  if (pairs == 0) return;
  if (HS / 2 % W == 0 && stride % W == 0 && aligned(x)) rope_kernel<Real, W><<<grid_for(pairs / W, 256), 256, 0, stream>>>(reals<Real>(x), floats(table), B * T, T, position, heads, HS, stride, (float)direction);
  else rope_kernel<Real, 1><<<grid_for(pairs, 256), 256, 0, stream>>>(reals<Real>(x), floats(table), B * T, T, position, heads, HS, stride, (float)direction);
  launched("rope");
}

// ---- attention (attention.cuh) ----

static AttentionPlan plan_of(const AttentionShape *s) {
  return {s->B, s->T, s->S, s->position, s->NH, s->KVH, s->HS, s->q_stride, s->kv_stride, s->out_stride, s->q_batch, s->kv_batch, s->out_batch,
          s->mask == MASK_CAUSAL, s->first_key, dropout_key(&s->dropout), s->dropout.row0, (float)s->scale};
}
// Every row of a head begins at a multiple of 16 bytes.
template <class Real> static bool rows_are_wide(const AttentionShape *s) {
  return (s->HS | s->q_stride | s->kv_stride | s->out_stride | s->q_batch | s->kv_batch | s->out_batch) % Wide<Real>::WIDTH == 0;
}

template <class Real, int W>
static void plain_attention_forward(cudaStream_t stream, Real *out, float *lse, const Real *q, const Real *k, const Real *v, const AttentionPlan &p) {
  attention_forward_kernel<Real, W><<<grid_for(p.B * p.NH * p.T, PLAIN_WARPS), PLAIN_WARPS * WARP, 0, stream>>>(out, lse, q, k, v, p);
}
template <int HS>
static void flash_attention_forward(cudaStream_t stream, bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const AttentionPlan &p) {
  flash_forward_kernel<HS><<<grid_for(p.T, FLASH_ROWS) * (unsigned)(p.B * p.NH), FLASH_THREADS, flash_forward_bytes<HS>(), stream>>>(out, lse, q, k, v, p);
}
// Whether the flash family took the call.
static bool flash_forward(cudaStream_t, float *, float *, const float *, const float *, const float *, const AttentionPlan &) { return false; }
static bool flash_forward(cudaStream_t stream, bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const AttentionPlan &p) {
  if (!(p.scale > 0)) return false;
  switch (p.HS) {
    case 32: flash_attention_forward<32>(stream, out, lse, q, k, v, p); return true;
    case 64: flash_attention_forward<64>(stream, out, lse, q, k, v, p); return true;
    case 96: flash_attention_forward<96>(stream, out, lse, q, k, v, p); return true;
    case 128: flash_attention_forward<128>(stream, out, lse, q, k, v, p); return true;
    default: return false;
  }
}

template <class Real>
static void cuda_attention_forward(Device *d, real *out, acc *lse, const real *q, const real *k, const real *v, const AttentionShape *shape) {
  constexpr int W = Wide<Real>::WIDTH;
  cudaStream_t stream = stream_of(d);
  const AttentionPlan p = plan_of(shape);
  if (p.B * p.NH * p.T == 0) return;
  Real *o = reals<Real>(out);
  const Real *a = reals<Real>(q), *b = reals<Real>(k), *c = reals<Real>(v);
  const bool wide = rows_are_wide<Real>(shape) && aligned(out, q, k, v);
  if (wide && flash_forward(stream, o, floats(lse), a, b, c, p)) {}
  else if (wide) plain_attention_forward<Real, W>(stream, o, floats(lse), a, b, c, p);
  else plain_attention_forward<Real, 1>(stream, o, floats(lse), a, b, c, p);
  launched("attention_forward");
}

// Arrays of the backward pass.
template <class Real> struct AttentionGradients { Real *dq, *dk, *dv; const Real *dout, *q, *k, *v, *out; const float *lse; float *delta; };

// Both for `heads` query heads from number `first` on, counted over the sequences; whole groups.
template <class Real, int W> static void plain_attention_backward(cudaStream_t stream, const AttentionGradients<Real> &g, const AttentionPlan &p, size_t first, size_t heads) {
  attention_delta_kernel<Real, W><<<grid_for(heads * p.T, PLAIN_WARPS), PLAIN_WARPS * WARP, 0, stream>>>(g.delta, g.dout, g.out, p, first, heads);
  attention_backward_query_kernel<Real, W><<<grid_for(heads * p.T, PLAIN_WARPS), PLAIN_WARPS * WARP, 0, stream>>>(g.dq, g.dout, g.q, g.k, g.v, g.lse, g.delta, p, first, heads);
  attention_backward_key_kernel<Real, W><<<grid_for(heads / (p.NH / p.KVH) * p.S, PLAIN_WARPS), PLAIN_WARPS * WARP, 0, stream>>>(g.dk, g.dv, g.dout, g.q, g.k, g.v, g.lse, g.delta, p, first, heads);
  launched("attention_backward", 3);
}
template <int HS> static void flash_attention_backward(cudaStream_t stream, const AttentionGradients<bf16> &g, const AttentionPlan &p, size_t first, size_t heads) {
  flash_backward_query_kernel<HS><<<grid_for(p.T, FLASH_ROWS) * (unsigned)heads, FLASH_THREADS, flash_backward_bytes<HS>(), stream>>>(g.dq, g.delta, g.dout, g.out, g.q, g.k, g.v, g.lse, p, first);
  flash_backward_key_kernel<HS><<<grid_for(p.S, FLASH_ROWS) * (unsigned)(heads / (p.NH / p.KVH)), FLASH_THREADS, flash_backward_bytes<HS>(), stream>>>(g.dk, g.dv, g.dout, g.q, g.k, g.v, g.lse, g.delta, p, first);
  launched("attention_backward", 2);
}
static bool flash_backward(cudaStream_t, const AttentionGradients<float> &, const AttentionPlan &, size_t, size_t) { return false; }
static bool flash_backward(cudaStream_t stream, const AttentionGradients<bf16> &g, const AttentionPlan &p, size_t first, size_t heads) {
  switch (p.HS) {
    case 32: flash_attention_backward<32>(stream, g, p, first, heads); return true;
    case 64: flash_attention_backward<64>(stream, g, p, first, heads); return true;
    case 96: flash_attention_backward<96>(stream, g, p, first, heads); return true;
    case 128: flash_attention_backward<128>(stream, g, p, first, heads); return true;
    default: return false;
  }
}

template <class Real>
static void cuda_attention_backward(Device *d, real *dq, real *dk, real *dv, const real *dout, const real *q, const real *k, const real *v, const real *out, const acc *lse,
                                    const AttentionShape *shape) {
  constexpr int W = Wide<Real>::WIDTH;
  cudaStream_t stream = stream_of(d);
  const AttentionPlan p = plan_of(shape);
  const size_t all = p.B * p.NH, group = p.NH / p.KVH;
  if (all * p.T == 0) return;
  const size_t most = work_bytes / sizeof(float) / p.T, room = most / group * group;   // heads whose delta fits; whole groups of them
  if (room == 0) fail(EXIT_MACHINE, "cuda: attention_backward: %zu query heads a key head at --context %zu are too many; at most %zu", group, p.T, most);
  const AttentionGradients<Real> g = {reals<Real>(dq), reals<Real>(dk), reals<Real>(dv), reals<Real>(dout), reals<Real>(q), reals<Real>(k), reals<Real>(v), reals<Real>(out),
                                      floats(lse), work_of(d)};
  const bool wide = rows_are_wide<Real>(shape) && aligned(dq, dk, dv, dout, q, k, v, out);
  for (size_t first = 0; first < all; first += room) {
    const size_t heads = smaller(all - first, room);
    if (wide && flash_backward(stream, g, p, first, heads)) {}
    else if (wide) plain_attention_backward<Real, W>(stream, g, p, first, heads);
    else plain_attention_backward<Real, 1>(stream, g, p, first, heads);
  }
}

template <class Real> __global__ void copy_rows_kernel(Real *dst, size_t dst_stride, const Real *src, size_t src_stride, size_t rows, size_t width) {
  const size_t i = global_thread(), row = i / width, j = i % width;
  if (row < rows) dst[row * dst_stride + j] = src[row * src_stride + j];
}
template <class Real> static void cuda_copy_rows(Device *d, real *dst, size_t dst_stride, const real *src, size_t src_stride, size_t rows, size_t width) {
  cudaStream_t stream = stream_of(d);
  constexpr size_t W = Wide<Real>::WIDTH;
  if (rows * width == 0) return;
  if ((dst_stride | src_stride | width) % W == 0 && aligned(dst, src))   // 16 bytes as one element
    copy_rows_kernel<uint4><<<grid_for(rows * width / W, 256), 256, 0, stream>>>(reinterpret_cast<uint4 *>(dst), dst_stride / W, reinterpret_cast<const uint4 *>(src), src_stride / W, rows, width / W);
  else copy_rows_kernel<Real><<<grid_for(rows * width, 256), 256, 0, stream>>>(reals<Real>(dst), dst_stride, reals<Real>(src), src_stride, rows, width);
  launched("copy_rows");
}

// ---- classifier ----

// A block owns a row: one pass for the largest logit and the sum of exponentials, one for the gradient in place.
template <class Real, int W>
__global__ void crossentropy_kernel(Real *logits, float *loss, const int32_t *targets, size_t V, size_t stride, float scale, bool gradient) {
  Real *row = logits + (size_t)blockIdx.x * stride;
  const int32_t target = targets[blockIdx.x];
  const size_t step = (size_t)blockDim.x * W, whole = V / W * W, begin = (size_t)threadIdx.x * W;
  float x[W];
  if (target < 0) {   // ignored
    if (threadIdx.x == 0) loss[blockIdx.x] = 0;
    #pragma unroll
    for (int e = 0; e < W; e++) x[e] = 0;
    for (size_t j = begin; gradient && j < stride; j += step) store<W>(row + j, x);
    return;
  }
  float largest = NEGATIVE_INFINITY, sum = 0;   // of this thread's logits; sum counts from largest
  auto add = [&](float value) {
    if (!(value <= largest)) sum = largest == NEGATIVE_INFINITY ? 0 : sum * expf(largest - value), largest = value;
    sum += expf(value - largest);
  };
  for (size_t j = begin; j < whole; j += step) {
    load<W>(x, row + j);
    #pragma unroll
    for (int e = 0; e < W; e++) add(x[e]);
  }
  if (whole + threadIdx.x < V) add(to_float(row[whole + threadIdx.x]));
  const float most = block_max(largest);
  sum = block_sum(largest == NEGATIVE_INFINITY ? 0.0f : sum * expf(largest - most));
  if (threadIdx.x == 0) loss[blockIdx.x] = (most - to_float(row[target])) + logf(sum);
  if (!gradient) return;
  __syncthreads();   // the target's logit is overwritten below
  const float share = 1 / sum;
  for (size_t j = begin; j < stride; j += step) {
    load<W>(x, row + j);
    #pragma unroll
    for (int e = 0; e < W; e++) x[e] = j + e < V ? (expf(x[e] - most) * share - (j + e == (size_t)target ? 1.0f : 0.0f)) * scale : 0;
    store<W>(row + j, x);
  }
}

template <class Real>
static void cuda_crossentropy(Device *d, real *logits, acc *loss, const int32_t *targets, size_t rows, size_t V, size_t stride, double scale, WantGradient gradient) {
  constexpr int W = Wide<Real>::WIDTH;
  cudaStream_t stream = stream_of(d);
  if (rows == 0) return;
  const unsigned threads = V >= 8192 ? 512 : 128;
  if (stride % W == 0 && aligned(logits)) crossentropy_kernel<Real, W><<<(unsigned)rows, threads, 0, stream>>>(reals<Real>(logits), floats(loss), targets, V, stride, (float)scale, gradient == WITH_GRADIENT);
  else crossentropy_kernel<Real, 1><<<(unsigned)rows, threads, 0, stream>>>(reals<Real>(logits), floats(loss), targets, V, stride, (float)scale, gradient == WITH_GRADIENT);
  launched("crossentropy");
}

// ---- the step's scalars and the optimizer ----

// A thread owns W channels of a row.
template <int W> __global__ void add_rows_kernel(float *out, const float *x, const int32_t *ids, size_t n, size_t C) {
  const size_t i = global_thread() * W, row = i / C;
  if (i >= n * C) return;
  float a[W], b[W];
  float *place = out + (ids ? (size_t)ids[row] : row) * C + i % C;
  load<W>(a, place), load<W>(b, x + i);
  #pragma unroll
  for (int e = 0; e < W; e++) a[e] += b[e];
  store<W>(place, a);
}
static void cuda_add_rows(Device *d, acc *out, const acc *x, const int32_t *ids, size_t n, size_t C, size_t) {
  cudaStream_t stream = stream_of(d);
  if (n == 0) return;
  if (C % 4 == 0 && aligned(out, x)) add_rows_kernel<4><<<grid_for(n * C / 4, 256), 256, 0, stream>>>(floats(out), floats(x), ids, n, C);
  else add_rows_kernel<1><<<grid_for(n * C, 256), 256, 0, stream>>>(floats(out), floats(x), ids, n, C);
  launched("add_rows");
}

// One block: n is the rows of a micro-batch.
template <class T> __global__ void sum_kernel(double *out, const T *x, size_t n) {
  double sum = 0;
  for (size_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out += sum;
}
static void cuda_sum(Device *d, scalar *out, const acc *x, size_t n) {
  sum_kernel<float><<<1, 256, 0, stream_of(d)>>>(doubles(out), floats(x), n);
  launched("sum");
}

// Which entry of a table a block works for: the last whose first block is not beyond it.
template <class Entry> __device__ __forceinline__ const Entry &entry_of_block(const Entry *table, size_t count) {
  size_t low = 0, high = count;
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    if (table[middle].first_block <= blockIdx.x) low = middle; else high = middle;
  }
  return table[low];
}

// A block owns 4,096 elements of a tensor.
__global__ void __launch_bounds__(256) sumsq_kernel(double *partials, const NormEntry *table, size_t count) {
  const NormEntry entry = entry_of_block(table, count);
  const size_t first = (blockIdx.x - entry.first_block) * NORM_BLOCK, end = min(first + NORM_BLOCK, entry.n);
  double sum = 0;
  if (reinterpret_cast<uintptr_t>(entry.x) % 16 == 0) {
    for (size_t i = first + threadIdx.x * 4; i < end; i += 256 * 4) {
      if (i + 4 <= end) {
        float x[4];
        load<4>(x, entry.x + i);
        #pragma unroll
        for (int e = 0; e < 4; e++) sum = fma((double)x[e], (double)x[e], sum);
      } else {
        for (size_t j = i; j < end; j++) sum = fma((double)entry.x[j], (double)entry.x[j], sum);
      }
    }
  } else {
    for (size_t i = first + threadIdx.x; i < end; i += 256) sum = fma((double)entry.x[i], (double)entry.x[i], sum);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// The global norm is asked for tensor by tensor; the requests are gathered, and enqueued as two launches before whatever comes next.
static void enqueue_norms(CudaState *state) {
  const size_t count = state->norm_count, blocks = state->norm_blocks;
  state->norm_count = state->norm_blocks = 0;
  double *partials = reinterpret_cast<double *>(state->scratch->work);
  memcpy(free_slot(state), state->norms, count * sizeof(NormEntry));
  send_slot(state, state->scratch->norms, count * sizeof(NormEntry));
  sumsq_kernel<<<(unsigned)blocks, 256, 0, state->stream>>>(partials, state->scratch->norms, count);
  sum_kernel<double><<<1, 256, 0, state->stream>>>(state->norm_out, partials, blocks);
  launched("sumsq", 2);
}
static void cuda_sumsq(Device *d, scalar *out, const acc *x, size_t n) {
  CudaState *state = state_of(d);
  const float *from = floats(x);
  const size_t most = work_bytes / sizeof(double);   // blocks whose sums fit
  while (n > 0) {   // once, but for a tensor of over 17 thousand million elements
    const size_t piece = smaller(n, most * NORM_BLOCK), blocks = CEIL_DIV(piece, (size_t)NORM_BLOCK);
    if (state->norm_count && (state->norm_out != doubles(out) || state->norm_count == NORM_ENTRIES || state->norm_blocks + blocks > most)) enqueue_norms(state);
    state->norms[state->norm_count++] = {from, piece, state->norm_blocks};
    state->norm_blocks += blocks, state->norm_out = doubles(out);
    from += piece, n -= piece;
  }
}

enum { ADAMW_BLOCK = 4096 };
// AdamWSettings in float, but for what decides about the whole step.
struct AdamWNumbers { double grad_clip, max_norm; float lr, beta1, beta2, rest1, rest2, eps, bias1, bias2; uint64_t seed; uint32_t step; };

// x becomes one of its two neighbours in bf16, the nearer one more often: on average nothing is lost. Not finite: as it is.
__device__ __forceinline__ float rounded_at_random(float x, uint32_t word) {
  if (!(x - x == 0)) return x;
  return __uint_as_float((__float_as_uint(x) + (word & 0xffff)) & 0xffff0000u);
}
// Elements i .. i+W of the tensor, i a multiple of W.
template <int W> __device__ __forceinline__ void round_at_random(float (&x)[W], const AdamWNumbers &s, uint32_t site, size_t i) {
  const Words words = random_block(s.seed, s.step, site, i / 4);
  #pragma unroll
  for (int e = 0; e < W; e++) {
    const size_t place = W == 4 ? e : i % 4;
    x[e] = rounded_at_random(x[e], place == 0 ? words.v[0] : place == 1 ? words.v[1] : place == 2 ? words.v[2] : words.v[3]);
  }
}

template <class Real, int W> __device__ __forceinline__ void adamw_elements(const TensorEntry &t, size_t i, const AdamWNumbers &s, float clip) {
  Real *param = static_cast<Real *>(t.param) + i;
  float w[W], g[W], m[W], v[W];
  if (t.master) load<W>(w, t.master + i);
  else load<W>(w, param);
  load<W>(g, t.grad + i), load<W>(m, t.m + i), load<W>(v, t.v + i);
  #pragma unroll
  for (int e = 0; e < W; e++) {
    const float gradient = g[e] * clip;
    m[e] = s.beta1 * m[e] + s.rest1 * gradient;
    v[e] = s.beta2 * v[e] + s.rest2 * gradient * gradient;
    w[e] -= s.lr * ((m[e] / s.bias1) / (sqrtf(v[e] / s.bias2) + s.eps) + t.weight_decay * w[e]);
  }
  store<W>(t.m + i, m), store<W>(t.v + i, v);
  if (sizeof(Real) == 2 && !t.master) round_at_random<W>(w, s, t.site, i);
  store<W>(param, w);
  if (t.master) store<W>(t.master + i, w);
}

// A block owns 4,096 elements of a tensor.
template <class Real> __global__ void __launch_bounds__(256) adamw_kernel(const TensorEntry *table, size_t count, AdamWNumbers s, const double *step_stat) {
  const double loss = step_stat[STAT_LOSS], norm = sqrt(step_stat[STAT_GRAD_SUMSQ]);
  if (!(loss - loss == 0) || !(norm - norm == 0) || (s.max_norm > 0 && norm > s.max_norm)) return;
  const float clip = s.grad_clip > 0 && norm > s.grad_clip ? (float)(s.grad_clip / norm) : 1;
  const TensorEntry t = entry_of_block(table, count);
  const size_t first = (blockIdx.x - t.first_block) * ADAMW_BLOCK, end = min(first + ADAMW_BLOCK, t.n), whole = t.wide ? end / 4 * 4 : first;
  for (size_t i = first + threadIdx.x * 4; i < whole; i += 256 * 4) adamw_elements<Real, 4>(t, i, s, clip);
  for (size_t i = whole + threadIdx.x; i < end; i += 256) adamw_elements<Real, 1>(t, i, s, clip);
}

// One launch over all tensors (for each 2,048). Their table is sent when it differs from the last one.
template <class Real> static void cuda_adamw(Device *d, const AdamWTensor *tensors, size_t count, const AdamWSettings *settings, const scalar *step_stat) {
  CudaState *state = state_of(d);
  cudaStream_t stream = stream_of(d);
  const AdamWNumbers s = {settings->grad_clip, settings->max_norm, (float)settings->lr, (float)settings->beta1, (float)settings->beta2, (float)(1 - settings->beta1),
                          (float)(1 - settings->beta2), (float)settings->eps, (float)settings->bias1, (float)settings->bias2, settings->seed, settings->step};
  for (size_t first = 0; first < count; first += TENSOR_ENTRIES) {
    const size_t entries = smaller(count - first, TENSOR_ENTRIES);
    size_t blocks = 0;
    for (size_t i = 0; i < entries; i++) {
      const AdamWTensor *t = &tensors[first + i];
      TensorEntry *e = &state->tensors[i];
      e->param = t->param, e->master = floats(t->master), e->grad = floats(t->grad), e->m = floats(t->m), e->v = floats(t->v), e->n = t->n, e->first_block = blocks;
      e->weight_decay = (float)t->weight_decay, e->site = t->site, e->wide = aligned(t->param, t->master, t->grad, t->m, t->v);
      blocks += CEIL_DIV(t->n, (size_t)ADAMW_BLOCK);
    }
    if (memcmp(state->sent, state->tensors, entries * sizeof(TensorEntry))) {   // padding too, which stays the zeros of calloc
      memcpy(state->sent, state->tensors, entries * sizeof(TensorEntry));
      memcpy(free_slot(state), state->sent, entries * sizeof(TensorEntry));
      send_slot(state, state->scratch->tensors, entries * sizeof(TensorEntry));
    }
    if (!blocks) continue;
    adamw_kernel<Real><<<(unsigned)blocks, 256, 0, stream>>>(state->scratch->tensors, entries, s, doubles(step_stat));
    launched("adamw");
  }
}

static void cuda_refresh(Device *, const real *, size_t) {}   // there are no copies to renew: adamw writes the bf16 weights beside their masters

template <class Real> __global__ void count_nonfinite_kernel(double *out, const Real *x, size_t n) {
  double count = 0;
  for (size_t i = threadIdx.x; i < n; i += blockDim.x) count += !(to_float(x[i]) - to_float(x[i]) == 0);
  count = block_sum(count);
  if (threadIdx.x == 0) *out += count;
}
template <class Real> static void cuda_count_nonfinite_real(Device *d, scalar *out, const real *x, size_t n) {
  count_nonfinite_kernel<Real><<<1, 1024, 0, stream_of(d)>>>(doubles(out), reals<Real>(x), n);
  launched("count_nonfinite");
}
static void cuda_count_nonfinite_acc(Device *d, scalar *out, const acc *x, size_t n) {
  count_nonfinite_kernel<float><<<1, 1024, 0, stream_of(d)>>>(doubles(out), floats(x), n);
  launched("count_nonfinite");
}

// ---- start ----

// What the start asks of the machine, apart so that every answer can be tested without such a machine.
// Why these facts forbid the device, in one sentence; NULL: they do not.
extern "C" const char *cuda_refusal(const CudaFacts *f) {
  static char text[320];
  enum { OUT_OF_MEMORY = 2, INSUFFICIENT_DRIVER = 35, DEVICES_UNAVAILABLE = 46, NO_DEVICE = 100 };   // cudaError_t, as the toolkit numbers them
  const bool old = f->error == INSUFFICIENT_DRIVER || (f->error == 0 && f->driver < f->runtime / 1000 * 1000);
  if (old && f->driver == 0) snprintf(text, sizeof text, "there is no NVIDIA driver here; this binary needs one for CUDA %d.0 or later", f->runtime / 1000);
  else if (old)
    snprintf(text, sizeof text, "the NVIDIA driver is too old: it knows CUDA %d.%d and this binary needs %d.0 or later; install a newer driver, or build with an older toolkit",
             f->driver / 1000, f->driver % 1000 / 10, f->runtime / 1000);
  else if (f->error == NO_DEVICE || (f->error == 0 && f->devices == 0)) snprintf(text, sizeof text, "there is no CUDA device here (CUDA_VISIBLE_DEVICES may hide one)");
  else if (f->error == DEVICES_UNAVAILABLE) snprintf(text, sizeof text, "the CUDA device is in exclusive use by another process; end it, or set its compute mode to default");
  else if (f->error == OUT_OF_MEMORY || (f->error == 0 && f->memory_free < f->memory_needed))
    snprintf(text, sizeof text, "the CUDA device has too little free memory: %zu MiB, the device itself needs %zu; end other programs on it", f->memory_free >> 20, f->memory_needed >> 20);
  else if (f->error != 0) snprintf(text, sizeof text, "the CUDA device does not start: %.200s", cudaGetErrorString((cudaError_t)f->error));
  else if (f->major < 8) snprintf(text, sizeof text, "the CUDA device has compute capability %d.%d and this binary needs 8.0 or later", f->major, f->minor);
  else return NULL;
  return text;
}

static int selected;   // the GPU of this process

extern "C" void cuda_select(int number) { selected = number; }
extern "C" int cuda_devices(void) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) { cudaGetLastError(); return 0; }
  return count;
}

static CudaFacts look_around(void) {
  CudaFacts f = {};
  f.runtime = CUDART_VERSION, f.memory_needed = sizeof(Scratch);
  cudaDriverGetVersion(&f.driver);
  cudaDeviceProp p;
  f.error = (int)cudaGetDeviceCount(&f.devices);   // none is an error
  if (f.error == 0) f.error = (int)cudaGetDeviceProperties(&p, selected);
  if (f.error == 0) {
    f.major = p.major, f.minor = p.minor;
    size_t total;
    f.error = (int)cudaSetDevice(selected);
    if (f.error == 0 && f.major >= 8) f.error = (int)cudaMemGetInfo(&f.memory_free, &total);
  }
  cudaGetLastError();
  return f;
}

extern "C" const char *cuda_unavailable(void) {
  const CudaFacts f = look_around();
  return cuda_refusal(&f);
}

// FLOP a cycle of a multiprocessor, dense, sums in fp32 (NVIDIA's architecture white papers); 0: not known.
extern "C" double cuda_flops_a_cycle(int major, int minor, CudaPrecision precision) {
  if (precision == CUDA_FP32) return major == 8 && minor == 0 ? 128 : 256;
  if (major == 8) return minor == 0 ? 2048 : 1024;
  return major == 9 ? 4096 : major == 10 ? 8192 : 1024;
}

// Why a GPU of this capability cannot do --gemm wgmma, in a sentence. made: whether the kernels that it runs were made for sm_90a. NULL: it can.
extern "C" const char *cuda_wgmma_refusal(int made, int major, int minor) {
  static char text[120];
  if (made) return NULL;
  if (major == 9) return "this binary has no kernels for sm_90a; build it with make CUDA_ARCHS=sm_90a, or use --gemm own";
  snprintf(text, sizeof text, "this GPU has compute capability %d.%d, the instruction needs 9.0; use --gemm own", major, minor);
  return text;
}

// Whether the kernels that this GPU runs were made for sm_90a: only their own code can tell.
__global__ void has_wgmma_kernel(int *made) { if (threadIdx.x == 0) *made = HAS_WGMMA; }
static void require_wgmma(CudaState *state, const cudaDeviceProp *p) {
  int made;
  int *answer = reinterpret_cast<int *>(state->scratch->work);
  has_wgmma_kernel<<<1, 32, 0, state->stream>>>(answer);
  launched("start");
  check(cudaMemcpyAsync(&made, answer, sizeof made, cudaMemcpyDeviceToHost, state->stream), "start");
  check(cudaStreamSynchronize(state->stream), "start");
  const char *why = cuda_wgmma_refusal(made, p->major, p->minor);
  if (why) fail(EXIT_MACHINE, "--gemm wgmma: %s", why);
  state->wgmma = true;
}

// Kernels whose tiles need more than 48 KiB of shared memory have to say so once.
template <bool WGMMA> static void allow_large_tiles(void) {
  const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
  const int tiles = (int)gemm_bf16_shared_bytes(128);
  check(cudaFuncSetAttribute(gemm_bf16_kernel<FORWARD, ACTIVATION_NONE, 128, true, WGMMA>, most, tiles), "start");
  check(cudaFuncSetAttribute(gemm_bf16_kernel<FORWARD, ACTIVATION_GELU, 128, true, WGMMA>, most, tiles), "start");
  check(cudaFuncSetAttribute(gemm_bf16_kernel<FORWARD, ACTIVATION_SWIGLU, 128, true, WGMMA>, most, tiles), "start");
  check(cudaFuncSetAttribute(gemm_bf16_kernel<BACKWARD_INPUT, ACTIVATION_NONE, 128, true, WGMMA>, most, tiles), "start");
  check(cudaFuncSetAttribute(gemm_bf16_kernel<BACKWARD_WEIGHT, ACTIVATION_NONE, 128, true, WGMMA>, most, tiles), "start");
}
static void allow_shared_memory(void) {
  const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
  allow_large_tiles<false>();
  allow_large_tiles<true>();
  check(cudaFuncSetAttribute(flash_forward_kernel<96>, most, (int)flash_forward_bytes<96>()), "start");
  check(cudaFuncSetAttribute(flash_forward_kernel<128>, most, (int)flash_forward_bytes<128>()), "start");
  check(cudaFuncSetAttribute(flash_backward_query_kernel<64>, most, (int)flash_backward_bytes<64>()), "start");
  check(cudaFuncSetAttribute(flash_backward_query_kernel<96>, most, (int)flash_backward_bytes<96>()), "start");
  check(cudaFuncSetAttribute(flash_backward_query_kernel<128>, most, (int)flash_backward_bytes<128>()), "start");
  check(cudaFuncSetAttribute(flash_backward_key_kernel<64>, most, (int)flash_backward_bytes<64>()), "start");
  check(cudaFuncSetAttribute(flash_backward_key_kernel<96>, most, (int)flash_backward_bytes<96>()), "start");
  check(cudaFuncSetAttribute(flash_backward_key_kernel<128>, most, (int)flash_backward_bytes<128>()), "start");
}

static size_t cuda_memory_available(const Device *, const char **from) {
  size_t memory_free = 0, total;
  check(cudaMemGetInfo(&memory_free, &total), "memory");
  *from = "free on the CUDA device";
  return memory_free + sizeof(Scratch);   // the table counts the scratch, which is taken already
}

static void cuda_destroy(Device *d) {
  CudaState *state = state_of(d);
  cudaStreamSynchronize(stream_of(d));
  for (int i = 0; i < STAGING_SLOTS; i++) cudaFreeHost(state->staging[i].data), cudaEventDestroy(state->staging[i].free_again);
  if (state->cublaslt) cublaslt_close(state->cublaslt);
  free(state->cublaslt);
  cudaFree(state->scratch);
  close_side_stream(state);
  cudaStreamDestroy(state->stream);
  free(state);
  free(d);
}

template <class Real> static void set_operations(Device *d) {
  d->real_size = sizeof(Real), d->real_is_acc = sizeof(Real) == sizeof(float);
  d->allocate = cuda_allocate, d->release = cuda_release, d->zero = cuda_zero, d->copy = cuda_copy;
  d->upload_real = cuda_upload_real<Real>, d->upload_acc = cuda_upload_acc, d->upload_real_float = cuda_upload_real_float<Real>;
  d->upload_acc_float = cuda_upload_acc_float, d->upload_ids = cuda_upload_ids;
  d->download_real = cuda_download_real<Real>, d->download_acc = cuda_download_acc, d->download_stat = cuda_download_stat;
  d->sync = cuda_sync, d->destroy = cuda_destroy, d->memory_available = cuda_memory_available, d->launches = cuda_launches;
  d->side_stream = cuda_side_stream, d->side_begin = cuda_side_begin, d->side_end = cuda_side_end, d->side_busy = cuda_side_busy, d->side_seconds = cuda_side_seconds;
  d->real_at = cuda_real_at<Real>, d->acc_at = cuda_acc_at, d->stat_at = cuda_stat_at;

  d->embedding_forward = cuda_embedding_forward<Real>, d->embedding_backward = cuda_embedding_backward<Real>;
  d->dropout = cuda_dropout<Real>;
  d->layernorm_forward = cuda_layernorm_forward<Real>, d->layernorm_backward = cuda_layernorm_backward<Real>;
  d->rmsnorm_forward = cuda_rmsnorm_forward<Real>, d->rmsnorm_backward = cuda_rmsnorm_backward<Real>;
  d->residual_forward = cuda_residual_forward<Real>;
  d->linear_forward = cuda_linear_forward<Real>;
  d->linear_backward_input = cuda_linear_backward_input<Real>, d->linear_backward_weight = cuda_linear_backward_weight<Real>;
  d->activation_forward = cuda_activation_forward<Real>, d->activation_backward = cuda_activation_backward<Real>;
  d->rope_table = cuda_rope_table, d->rope = cuda_rope<Real>;
  d->attention_forward = cuda_attention_forward<Real>, d->attention_backward = cuda_attention_backward<Real>;
  d->copy_rows = cuda_copy_rows<Real>;
  d->crossentropy = cuda_crossentropy<Real>;
  d->add_rows = cuda_add_rows, d->sum = cuda_sum, d->sumsq = cuda_sumsq;
  d->adamw = cuda_adamw<Real>;
  d->refresh = cuda_refresh;
  d->count_nonfinite_real = cuda_count_nonfinite_real<Real>, d->count_nonfinite_acc = cuda_count_nonfinite_acc;
}

static CublasLt *open_library(void) {
  CublasLt *lt = static_cast<CublasLt *>(calloc(1, sizeof *lt));
  if (!lt) fail(EXIT_MACHINE, "memory: no %zu bytes for cuBLASLt's state", sizeof *lt);
  const char *why = cublaslt_open(lt);
  if (why) fail(EXIT_MACHINE, "--gemm cublaslt: %s; or use --gemm own", why);
  return lt;
}

extern "C" Device *cuda_device(CudaPrecision precision, GemmLibrary library) {
  const char *why = cuda_unavailable();
  if (why) fail(EXIT_MACHINE, "--device cuda: %s; or use --device cpu", why);
  CudaState *state = static_cast<CudaState *>(calloc(1, sizeof *state));
  Device *d = static_cast<Device *>(calloc(1, sizeof *d));
  if (!state || !d) fail(EXIT_MACHINE, "memory: no %zu bytes for the CUDA device's state", sizeof *state);
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, selected), "start");
  check(cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking), "start");
  check(cudaMalloc(&state->scratch, sizeof(Scratch)), "start");
  for (int i = 0; i < STAGING_SLOTS; i++) {
    check(cudaMallocHost(&state->staging[i].data, STAGING_BYTES), "start");
    check(cudaEventCreateWithFlags(&state->staging[i].free_again, cudaEventDisableTiming), "start");
  }
  allow_shared_memory();
  if (library == GEMM_CUBLASLT) state->cublaslt = open_library();
  if (library == GEMM_WGMMA) require_wgmma(state, &p);
  state->multiprocessors = p.multiProcessorCount;
  snprintf(state->description, sizeof state->description, "%s%s, %.100s, %d multiprocessors", precision == CUDA_BF16 ? "bf16" : "fp32",
           library == GEMM_CUBLASLT ? ", cuBLASLt" : library == GEMM_WGMMA ? ", wgmma" : "", p.name, p.multiProcessorCount);
  int clock_khz = 0;
  cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, selected);
  d->name = "cuda", d->description = state->description, d->acc_size = sizeof(float), d->row_multiple = 64, d->row_group = 1, d->state = state;
  d->scratch_bytes = sizeof(Scratch), d->peak_flops = 1e3 * clock_khz * p.multiProcessorCount * cuda_flops_a_cycle(p.major, p.minor, precision);
  if (precision == CUDA_BF16) set_operations<bf16>(d);
  else set_operations<float>(d);
  return d;
}
