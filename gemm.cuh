// gemm.cuh: owns the matrix products: out[m,n] = start + sum over k of a(m,k) b(k,n), in the three directions of a linear layer.
//
//   FORWARD          m row, n output, k input:   a = x (M,K), b = weight (N,K), start = bias; then the activation
//   BACKWARD_INPUT   m row, n input, k output:   a = dout (M,K), b = weight (K,N), start = 0
//   BACKWARD_WEIGHT  m output, n input, k row:   a = dout (K,M), b = x (K,N), start = the stored gradient; and the bias's gradient
// An operand lies either with k side by side ((M,K), (N,K)) or with m or n side by side ((K,M), (K,N)); that is all the difference.
// Each output has one owner, which adds in the order of k: no split over k, no atomics, the same bits each time. In float
// the chain of fused multiply-adds is device.h's own, and the result is the CPU device's to the last bit. Tensor cores add the 16 products of
// an instruction in an order of their own.
// SwiGLU: column n of the tile is gate n/2 (even n) or up n/2 (odd n), so that one thread holds both; only rows of b and columns of out
// are found elsewhere.
// Tests: tests/test_ops.c (linear_*), with TEST_DEVICE=cuda and cuda-bf16
#pragma once
#include "cuda.cuh"     // load, store, gelu, silu
#include "device.h"     // Activation
#include "ptx.cuh"      // cp.async, ldmatrix, mma

enum Direction { FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT };

template <class Real> struct Gemm {
  size_t M, N, K;
  const Real *a, *b;
  const Real *bias;        // (N) or NULL; FORWARD
  Real *pre, *post;        // FORWARD: (M,N) or NULL, (M,N) or (M,N/2); BACKWARD_INPUT: pre = dx
  float *sum, *bias_sum;   // BACKWARD_WEIGHT: (M,N), (M) or NULL
  bool wide;               // every row of a and b starts at a multiple of 16 bytes and ends at one
  bool wide_out;           // the same of pre, post, sum
};

// Where column n of the tile is in b and in out.
template <Activation ACT> __device__ __forceinline__ size_t column_of(size_t n, size_t N) {
  return ACT == ACTIVATION_SWIGLU ? (n % 2) * (N / 2) + n / 2 : n;
}

// Tiles of out, the direction with fewer of them first: its operand then stays in the cache while the other one streams by.
struct TilePlace { size_t m, n; };
__device__ __forceinline__ TilePlace tile_place(size_t M, size_t N, int tile) {
  const size_t tiles_m = CEIL_DIV(M, (size_t)tile), tiles_n = CEIL_DIV(N, (size_t)tile), block = blockIdx.x;
  if (tiles_m < tiles_n) return {block % tiles_m * tile, block / tiles_m * tile};
  return {block / tiles_n * tile, block % tiles_n * tile};
}

// ---- float: 64x64 tiles, 256 threads of 4x4 outputs, k in steps of 16, the next step on its way in registers ----

enum { FLOAT_TILE = 64, FLOAT_DEPTH = 16, FLOAT_THREADS = 256 };

// This thread's four elements of the tile's step: neighbours along k, or along m or n. Zero outside.
template <bool K_SIDE, Activation ACT>
__device__ __forceinline__ void fetch_floats(float (&x)[4], const float *from, size_t first, size_t count, size_t k0, size_t K, bool wide) {
  const size_t i = first + (K_SIDE ? threadIdx.x / 4 : threadIdx.x % 16 * 4), k = k0 + (K_SIDE ? threadIdx.x % 4 * 4 : threadIdx.x / 16);
  const bool inside = i < count && k < K;
  const float *place = from + (K_SIDE ? column_of<ACT>(i, count) * K + k : k * count + i);
  if (inside && wide) { load<4>(x, place); return; }
  #pragma unroll
  for (int e = 0; e < 4; e++) x[e] = inside && (K_SIDE ? k + e < K : i + e < count) ? place[e] : 0;
}

template <bool K_SIDE> __device__ __forceinline__ void put_floats(float (*tile)[FLOAT_TILE + 4], const float (&x)[4]) {
  if constexpr (K_SIDE) {
    #pragma unroll
    for (int e = 0; e < 4; e++) tile[threadIdx.x % 4 * 4 + e][threadIdx.x / 4] = x[e];
  } else {
    store<4>(&tile[threadIdx.x / 16][threadIdx.x % 16 * 4], x);
  }
}

template <Direction DIR, Activation ACT>
__device__ __forceinline__ float start_of(const Gemm<float> &g, size_t m, size_t n) {
  if (m >= g.M || n >= g.N) return 0;
  if (DIR == FORWARD) return g.bias ? g.bias[column_of<ACT>(n, g.N)] : 0;
  return DIR == BACKWARD_WEIGHT ? g.sum[m * g.N + n] : 0;
}

// Four neighbouring outputs of one row.
template <Direction DIR, Activation ACT>
__device__ __forceinline__ void finish_floats(const Gemm<float> &g, size_t m, size_t n, const float (&x)[4]) {
  float *out = DIR == BACKWARD_WEIGHT ? g.sum : g.pre;
  if constexpr (ACT == ACTIVATION_SWIGLU) {
    #pragma unroll
    for (int e = 0; e < 4; e += 2) {
      if (n + e >= g.N) break;
      const size_t half = g.N / 2, j = (n + e) / 2;
      if (out) out[m * g.N + j] = x[e], out[m * g.N + half + j] = x[e + 1];
      g.post[m * half + j] = silu(x[e]) * x[e + 1];
    }
  } else {
    float y[4];
    #pragma unroll
    for (int e = 0; e < 4; e++) y[e] = ACT == ACTIVATION_GELU ? gelu(x[e]) : 0;
    if (g.wide_out) {
      if (out) store<4>(out + m * g.N + n, x);
      if (ACT == ACTIVATION_GELU) store<4>(g.post + m * g.N + n, y);
      return;
    }
    #pragma unroll
    for (int e = 0; e < 4; e++) {
      if (n + e >= g.N) break;
      if (out) out[m * g.N + n + e] = x[e];
      if (ACT == ACTIVATION_GELU) g.post[m * g.N + n + e] = y[e];
    }
  }
}

template <Direction DIR, Activation ACT> __global__ void __launch_bounds__(FLOAT_THREADS) gemm_float_kernel(Gemm<float> g) {
  constexpr bool A_K_SIDE = DIR != BACKWARD_WEIGHT, B_K_SIDE = DIR == FORWARD;
  __shared__ __align__(16) float a_tile[FLOAT_DEPTH][FLOAT_TILE + 4], b_tile[FLOAT_DEPTH][FLOAT_TILE + 4];
  const TilePlace place = tile_place(g.M, g.N, FLOAT_TILE);
  const int across = threadIdx.x % 16 * 4, down = threadIdx.x / 16 * 4;
  const bool sums_bias = DIR == BACKWARD_WEIGHT && g.bias_sum && place.n == 0 && threadIdx.x < FLOAT_TILE && place.m + threadIdx.x < g.M;
  float bias_sum = sums_bias ? g.bias_sum[place.m + threadIdx.x] : 0;
  float sum[4][4], a_next[4], b_next[4];
  #pragma unroll
  for (int i = 0; i < 4; i++)
    #pragma unroll
    for (int j = 0; j < 4; j++) sum[i][j] = start_of<DIR, ACT>(g, place.m + down + i, place.n + across + j);

  fetch_floats<A_K_SIDE, ACTIVATION_NONE>(a_next, g.a, place.m, g.M, 0, g.K, g.wide);
  fetch_floats<B_K_SIDE, ACT>(b_next, g.b, place.n, g.N, 0, g.K, g.wide);
  for (size_t k0 = 0; k0 < g.K; k0 += FLOAT_DEPTH) {
    put_floats<A_K_SIDE>(a_tile, a_next);
    put_floats<B_K_SIDE>(b_tile, b_next);
    __syncthreads();
    if (k0 + FLOAT_DEPTH < g.K) {
      fetch_floats<A_K_SIDE, ACTIVATION_NONE>(a_next, g.a, place.m, g.M, k0 + FLOAT_DEPTH, g.K, g.wide);
      fetch_floats<B_K_SIDE, ACT>(b_next, g.b, place.n, g.N, k0 + FLOAT_DEPTH, g.K, g.wide);
    }
    #pragma unroll
    for (int k = 0; k < FLOAT_DEPTH; k++) {   // beyond K both are zero, which changes no sum
      float a[4], b[4];
      load<4>(a, &a_tile[k][down]), load<4>(b, &b_tile[k][across]);
      #pragma unroll
      for (int i = 0; i < 4; i++)
        #pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
    if (sums_bias)
      for (int k = 0; k < FLOAT_DEPTH; k++) bias_sum += a_tile[k][threadIdx.x];
    __syncthreads();
  }
  #pragma unroll
  for (int i = 0; i < 4; i++)
    if (place.m + down + i < g.M && place.n + across < g.N) finish_floats<DIR, ACT>(g, place.m + down + i, place.n + across, sum[i]);
  if (sums_bias) g.bias_sum[place.m + threadIdx.x] = bias_sum;
}

// ---- bf16: TILE x TILE tiles, warps of TILE/2 x 32 outputs, k in steps of 32, three steps in flight ----

enum { BF16_DEPTH = 32, BF16_STAGES = 3 };
static inline size_t gemm_bf16_shared_bytes(int tile) { return (size_t)BF16_STAGES * 2 * tile * BF16_DEPTH * sizeof(bf16); }

// Where 8 neighbours (a chunk of 16 bytes) of a tile lie in shared memory, shuffled so that the eight rows which ldmatrix takes
// at once are in different banks. k side by side: row i has 4 chunks; else row k has TILE/8.
template <int TILE, bool K_SIDE> __device__ __forceinline__ int chunk_place(int row, int chunk) {
  return K_SIDE ? row * BF16_DEPTH + ((chunk ^ (row / 2 % 4)) * 8) : row * TILE + ((chunk ^ (row % 8)) * 8);
}

// One step of an operand into shared memory: TILE rows of 32 k, or 32 rows k of TILE. Zero outside.
template <int TILE, bool K_SIDE, bool WIDE, Activation ACT>
__device__ __forceinline__ void fetch_bf16(bf16 *tile, const bf16 *from, size_t first, size_t count, size_t k0, size_t K) {
  #pragma unroll
  for (int part = 0; part < 2; part++) {
    const int id = threadIdx.x + part * 2 * TILE, row = K_SIDE ? id / 4 : id / (TILE / 8), chunk = K_SIDE ? id % 4 : id % (TILE / 8);
    const size_t i = first + (K_SIDE ? row : chunk * 8), k = k0 + (K_SIDE ? chunk * 8 : row);
    const bool inside = i < count && k < K;
    const bf16 *place = from + (inside ? (K_SIDE ? column_of<ACT>(i, count) * K + k : k * count + i) : 0);
    bf16 *to = tile + chunk_place<TILE, K_SIDE>(row, chunk);
    if constexpr (WIDE) {
      cp_async_16(to, place, inside);
    } else {
      float x[8];
      #pragma unroll
      for (int e = 0; e < 8; e++) x[e] = inside && (K_SIDE ? k + e < K : i + e < count) ? to_float(place[e]) : 0;
      store<8>(to, x);
    }
  }
}

// Fragment of 16 rows m and 16 k as mma_bf16 takes a.
template <int TILE, bool K_SIDE> __device__ __forceinline__ void a_fragment(uint32_t (&a)[4], const bf16 *tile, int m, int k) {
  const int lane = threadIdx.x % WARP;
  if (K_SIDE) ldmatrix_x4(a, tile + chunk_place<TILE, true>(m + lane % 16, k / 8 + lane / 16));
  else ldmatrix_x4_transposed(a, tile + chunk_place<TILE, false>(k + lane / 16 * 8 + lane % 8, m / 8 + lane / 8 % 2));
}
// Two fragments of 16 k and 8 columns n each: b[0], b[1] and b[2], b[3].
template <int TILE, bool K_SIDE> __device__ __forceinline__ void b_fragments(uint32_t (&b)[4], const bf16 *tile, int n, int k) {
  const int lane = threadIdx.x % WARP;
  if (K_SIDE) ldmatrix_x4(b, tile + chunk_place<TILE, true>(n + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
  else ldmatrix_x4_transposed(b, tile + chunk_place<TILE, false>(k + lane / 8 % 2 * 8 + lane % 8, n / 8 + lane / 16));
}

template <Direction DIR, Activation ACT>
__device__ __forceinline__ float start_of(const Gemm<bf16> &g, size_t m, size_t n) {
  if (m >= g.M || n >= g.N) return 0;
  if (DIR == FORWARD) return g.bias ? to_float(g.bias[column_of<ACT>(n, g.N)]) : 0;
  return DIR == BACKWARD_WEIGHT ? g.sum[m * g.N + n] : 0;
}

__device__ __forceinline__ void store_pair(bf16 *p, float x, float y, bool both, bool wide) {
  if (wide) { *reinterpret_cast<uint32_t *>(p) = pack_bf16(x, y); return; }
  p[0] = __float2bfloat16(x);
  if (both) p[1] = __float2bfloat16(y);
}

// Two neighbouring outputs of one row. The activation is of the rounded product, as where it is computed again from what was stored.
template <Direction DIR, Activation ACT>
__device__ __forceinline__ void finish_pair(const Gemm<bf16> &g, size_t m, size_t n, float x, float y) {
  if (m >= g.M || n >= g.N) return;
  const bool both = n + 1 < g.N;
  if (DIR == BACKWARD_WEIGHT) {
    float *out = g.sum + m * g.N + n;
    if (g.wide_out) *reinterpret_cast<float2 *>(out) = make_float2(x, y);
    else { out[0] = x; if (both) out[1] = y; }
    return;
  }
  x = rounded<bf16>(x), y = rounded<bf16>(y);
  if (ACT == ACTIVATION_SWIGLU) {
    const size_t half = g.N / 2;
    if (g.pre) g.pre[m * g.N + n / 2] = __float2bfloat16(x), g.pre[m * g.N + half + n / 2] = __float2bfloat16(y);
    g.post[m * half + n / 2] = __float2bfloat16(silu(x) * y);
    return;
  }
  if (g.pre) store_pair(g.pre + m * g.N + n, x, y, both, g.wide_out);
  if (ACT == ACTIVATION_GELU) store_pair(g.post + m * g.N + n, gelu(x), gelu(y), both, g.wide_out);
}

template <Direction DIR, Activation ACT, int TILE, bool WIDE>
__global__ void __launch_bounds__(2 * TILE) gemm_bf16_kernel(Gemm<bf16> g) {
  constexpr bool A_K_SIDE = DIR != BACKWARD_WEIGHT, B_K_SIDE = DIR == FORWARD;
  constexpr int STEP = TILE * BF16_DEPTH, FRAGMENTS = TILE / 32;   // elements of an operand's step; fragments of 16 rows in a warp
  extern __shared__ __align__(128) unsigned char smem[];
  bf16 *a_tiles = reinterpret_cast<bf16 *>(smem), *b_tiles = a_tiles + BF16_STAGES * STEP;
  const TilePlace place = tile_place(g.M, g.N, TILE);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warp_m = warp % 2 * (TILE / 2), warp_n = warp / 2 * 32;
  const size_t steps = CEIL_DIV(g.K, (size_t)BF16_DEPTH);
  const bool sums_bias = DIR == BACKWARD_WEIGHT && g.bias_sum && place.n == 0 && threadIdx.x < TILE && place.m + threadIdx.x < g.M;
  float bias_sum = sums_bias ? g.bias_sum[place.m + threadIdx.x] : 0;
  float sum[FRAGMENTS][4][4];   // fragment of rows, of columns; as mma_bf16's d
  #pragma unroll
  for (int i = 0; i < FRAGMENTS; i++)
    #pragma unroll
    for (int j = 0; j < 4; j++)
      #pragma unroll
      for (int e = 0; e < 4; e++)
        sum[i][j][e] = start_of<DIR, ACT>(g, place.m + warp_m + i * 16 + lane / 4 + e / 2 * 8, place.n + warp_n + j * 8 + lane % 4 * 2 + e % 2);

  auto fetch = [&](size_t step) {
    if (step < steps) {
      const int stage = (int)(step % BF16_STAGES) * STEP;
      fetch_bf16<TILE, A_K_SIDE, WIDE, ACTIVATION_NONE>(a_tiles + stage, g.a, place.m, g.M, step * BF16_DEPTH, g.K);
      fetch_bf16<TILE, B_K_SIDE, WIDE, ACT>(b_tiles + stage, g.b, place.n, g.N, step * BF16_DEPTH, g.K);
    }
    cp_async_commit();   // an empty group keeps the count
  };
  #pragma unroll
  for (int step = 0; step < BF16_STAGES - 1; step++) fetch(step);
  for (size_t step = 0; step < steps; step++) {
    cp_async_wait<BF16_STAGES - 2>();   // this step has landed for this thread ...
    __syncthreads();                    // ... and for all; and nobody reads the step before any more
    fetch(step + BF16_STAGES - 1);
    const bf16 *a_tile = a_tiles + step % BF16_STAGES * STEP, *b_tile = b_tiles + step % BF16_STAGES * STEP;
    #pragma unroll
    for (int k = 0; k < BF16_DEPTH; k += 16) {
      uint32_t a[FRAGMENTS][4], b[2][4];
      #pragma unroll
      for (int i = 0; i < FRAGMENTS; i++) a_fragment<TILE, A_K_SIDE>(a[i], a_tile, warp_m + i * 16, k);
      #pragma unroll
      for (int j = 0; j < 2; j++) b_fragments<TILE, B_K_SIDE>(b[j], b_tile, warp_n + j * 16, k);
      #pragma unroll
      for (int i = 0; i < FRAGMENTS; i++)
        #pragma unroll
        for (int j = 0; j < 4; j++) mma_bf16(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
    if (sums_bias)   // a is (K,M) here: column threadIdx.x of its tile
      for (int k = 0; k < BF16_DEPTH; k++) bias_sum += to_float(a_tile[chunk_place<TILE, false>(k, threadIdx.x / 8) + threadIdx.x % 8]);
  }
  #pragma unroll
  for (int i = 0; i < FRAGMENTS; i++)
    #pragma unroll
    for (int j = 0; j < 4; j++)
      #pragma unroll
      for (int e = 0; e < 4; e += 2)
        finish_pair<DIR, ACT>(g, place.m + warp_m + i * 16 + lane / 4 + e / 2 * 8, place.n + warp_n + j * 8 + lane % 4 * 2, sum[i][j][e], sum[i][j][e + 1]);
  if (sums_bias) g.bias_sum[place.m + threadIdx.x] = bias_sum;
}
