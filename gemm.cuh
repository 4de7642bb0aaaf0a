// gemm.cuh: owns the matrix products: out[m,n] = start + sum over k of a(m,k) b(k,n), in the three directions of a linear layer.
//
//   FORWARD          m row, n output, k input:   a = x (M,K), b = weight (N,K), start = bias; then the activation
//   BACKWARD_INPUT   m row, n input, k output:   a = dout (M,K), b = weight (K,N), start = 0
//   BACKWARD_WEIGHT  m output, n input, k row:   a = dout (K,M), b = x (K,N), start = the stored gradient; and the bias's gradient
// An operand lies either with k side by side ((M,K), (N,K)) or with m or n side by side ((K,M), (K,N)); that is all the difference.
// No atomics, the same bits each time. In float each output has one owner, which adds in the order of k: the chain of fused multiply-adds is
// device.h's own, and the result is the CPU device's to the last bit. In bf16 tensor cores add the 16 products of an instruction in an order
// of their own; where there are too few tiles for all multiprocessors, k is split, and the sums of the splits are added in order.
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
  float *partial;          // splits > 1: (splits,M,N), then (splits,M) for the bias
  int splits;
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

// Where element i of row k lies in a tile: shuffled in pieces of 8, so that the rows which a warp writes at once are in different banks.
__device__ __forceinline__ int float_place(int k, int i) { return i ^ k / 4 * 8; }

template <bool K_SIDE> __device__ __forceinline__ void put_floats(float (*tile)[FLOAT_TILE], const float (&x)[4]) {
  if constexpr (K_SIDE) {
    #pragma unroll
    for (int e = 0; e < 4; e++) tile[threadIdx.x % 4 * 4 + e][float_place(threadIdx.x % 4 * 4, threadIdx.x / 4)] = x[e];
  } else {
    put(&tile[threadIdx.x / 16][float_place(threadIdx.x / 16, threadIdx.x % 16 * 4)], x);
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
      g.post[m * half + j] = silu<float>(x[e]) * x[e + 1];
    }
  } else {
    float y[4];
    #pragma unroll
    for (int e = 0; e < 4; e++) y[e] = ACT == ACTIVATION_GELU ? gelu<float>(x[e]) : 0;
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

template <Direction DIR, Activation ACT> __global__ void __launch_bounds__(FLOAT_THREADS, 3) gemm_float_kernel(Gemm<float> g) {
  constexpr bool A_K_SIDE = DIR != BACKWARD_WEIGHT, B_K_SIDE = DIR == FORWARD;
  __shared__ __align__(16) float a_tile[FLOAT_DEPTH][FLOAT_TILE], b_tile[FLOAT_DEPTH][FLOAT_TILE];
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
      load<4>(a, &a_tile[k][float_place(k, down)]), load<4>(b, &b_tile[k][float_place(k, across)]);
      #pragma unroll
      for (int i = 0; i < 4; i++)
        #pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
    if (sums_bias)
      for (int k = 0; k < FLOAT_DEPTH; k++) bias_sum += a_tile[k][float_place(k, threadIdx.x)];
    __syncthreads();
  }
  #pragma unroll
  for (int i = 0; i < 4; i++)
    if (place.m + down + i < g.M && place.n + across < g.N) finish_floats<DIR, ACT>(g, place.m + down + i, place.n + across, sum[i]);
  if (sums_bias) g.bias_sum[place.m + threadIdx.x] = bias_sum;
}

// ---- bf16: tiles of TILE x TILE (128 or 64), four warps, k in steps of 64, three steps in flight ----
//
// Two ways to multiply the tiles of a step. mma.sync: each warp loads fragments into registers and owns TILE/2 x TILE/2 outputs. wgmma (sm_90a,
// TILE 128): the four warps together have the tensor cores read the tiles from shared memory; of every 64 rows each warp owns 16, over all columns.

enum { BF16_DEPTH = 64, BF16_STAGES = 3, BF16_THREADS = 128 };
enum { GROUP_BYTES = 8 * 128, PANEL_BYTES = BF16_DEPTH * 128 };   // of a tile, as wgmma_operand means them
static inline size_t gemm_bf16_shared_bytes(int tile) { return (size_t)BF16_STAGES * 2 * tile * BF16_DEPTH * sizeof(bf16); }

// Where 8 neighbours (a chunk of 16 bytes) of a row of WIDTH elements lie in shared memory, shuffled so that the eight rows which
// ldmatrix takes at once are in different banks.
template <int WIDTH> __device__ __forceinline__ int chunk_place(int row, int chunk) {
  return row * WIDTH + ((chunk ^ (WIDTH == 32 ? row / 2 % 4 : row % 8)) * 8);
}

// The same in a tile of an operand, 64 elements wide where k lies side by side, else a panel of 64 after the other: as wgmma_operand wants it.
template <int TILE, bool K_SIDE> __device__ __forceinline__ int tile_chunk(int row, int chunk) {
  return K_SIDE || TILE == 64 ? chunk_place<64>(row, chunk) : chunk / 8 * (BF16_DEPTH * 64) + chunk_place<64>(row, chunk % 8);
}

// What one thread brings of an operand into shared memory: of each step PARTS chunks, ROWS rows apart. The tile has TILE rows of 64 k
// (k side by side), or 64 rows k of TILE.
template <int TILE, bool K_SIDE, bool WIDE, Activation ACT> struct Feed {
  static constexpr int WIDTH = K_SIDE ? BF16_DEPTH : TILE, ROWS = BF16_THREADS / (WIDTH / 8), PARTS = TILE * BF16_DEPTH / 8 / BF16_THREADS;
  const bf16 *from;          // the first chunk of the step to come
  size_t to_part, to_step;   // elements from a part to the next, from a step to the next
  int to, left, left_k;      // place in the tile; how much of m or n, of k is left from the first chunk on

  __device__ __forceinline__ Feed(const bf16 *matrix, size_t first, size_t count, size_t k0, size_t k_end, size_t K) {
    const int row = threadIdx.x / (WIDTH / 8), chunk = threadIdx.x % (WIDTH / 8);
    const size_t i = first + (K_SIDE ? row : chunk * 8), k = k0 + (K_SIDE ? chunk * 8 : row);
    from = matrix + (K_SIDE ? column_of<ACT>(i, count) * K + k : k * count + i);
    to_part = K_SIDE ? (ACT == ACTIVATION_SWIGLU ? ROWS / 2 : ROWS) * K : ROWS * count;   // n columns on are n/2 gates on
    to_step = BF16_DEPTH * (K_SIDE ? 1 : count);
    to = tile_chunk<TILE, K_SIDE>(row, chunk), left = (int)count - (int)i, left_k = (int)k_end - (int)k;
  }
  // The next step into this tile; zeros outside.
  __device__ __forceinline__ void fetch(bf16 *tile) {
    #pragma unroll
    for (int part = 0; part < PARTS; part++) {
      const bool inside = K_SIDE ? part * ROWS < left && left_k > 0 : left > 0 && part * ROWS < left_k;
      const bf16 *place = from + (inside ? part * to_part : 0);
      bf16 *to_shared = tile + to + part * ROWS * 64;   // ROWS is a multiple of 8: the same shuffle
      if constexpr (WIDE) {
        cp_async_16(to_shared, place, inside);
      } else {
        float x[8];
        #pragma unroll
        for (int e = 0; e < 8; e++) x[e] = inside && e < (K_SIDE ? left_k : left) ? to_float(place[e]) : 0;
        put(to_shared, x);
      }
    }
    from += to_step, left_k -= BF16_DEPTH;
  }
};

// Fragment of 16 rows m and 16 k as mma_bf16 takes a.
template <int TILE, bool K_SIDE> __device__ __forceinline__ void a_fragment(uint32_t (&a)[4], const bf16 *tile, int m, int k) {
  const int lane = threadIdx.x % WARP;
  if (K_SIDE) ldmatrix_x4(a, tile + tile_chunk<TILE, true>(m + lane % 16, k / 8 + lane / 16));
  else ldmatrix_x4_transposed(a, tile + tile_chunk<TILE, false>(k + lane / 16 * 8 + lane % 8, m / 8 + lane / 8 % 2));
}
// Two fragments of 16 k and 8 columns n each: b[0], b[1] and b[2], b[3].
template <int TILE, bool K_SIDE> __device__ __forceinline__ void b_fragments(uint32_t (&b)[4], const bf16 *tile, int n, int k) {
  const int lane = threadIdx.x % WARP;
  if (K_SIDE) ldmatrix_x4(b, tile + tile_chunk<TILE, true>(n + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
  else ldmatrix_x4_transposed(b, tile + tile_chunk<TILE, false>(k + lane / 8 % 2 * 8 + lane % 8, n / 8 + lane / 16));
}

// Two neighbours of a row that starts at p; the second is there if `both`.
__device__ __forceinline__ float2 load_pair(const float *p, bool both, bool wide) {
  return wide ? *reinterpret_cast<const float2 *>(p) : make_float2(p[0], both ? p[1] : 0);
}
__device__ __forceinline__ void store_pair(float *p, float2 x, bool both, bool wide) {
  if (wide) { *reinterpret_cast<float2 *>(p) = x; return; }
  p[0] = x.x;
  if (both) p[1] = x.y;
}

// Eight neighbouring outputs of one row, from shared memory. The activation is of the rounded product, as where it is computed again
// from what was stored.
template <Activation ACT> __device__ __forceinline__ void finish_chunk(const Gemm<bf16> &g, size_t m, size_t n, const bf16 *chunk) {
  if (m >= g.M || n >= g.N) return;
  float x[8], y[8];
  load<8>(x, chunk);
  if constexpr (ACT == ACTIVATION_SWIGLU) {   // gate, up, gate, up ...
    const size_t half = g.N / 2;
    #pragma unroll
    for (int e = 0; e < 8; e += 2) y[e / 2] = silu<bf16>(x[e]) * x[e + 1];
    if (g.wide_out) {   // 8 bytes each
      if (g.pre) store_8(g.pre + m * g.N + n / 2, pack_bf16(x[0], x[2]), pack_bf16(x[4], x[6]));
      if (g.pre) store_8(g.pre + m * g.N + half + n / 2, pack_bf16(x[1], x[3]), pack_bf16(x[5], x[7]));
      store_8(g.post + m * half + n / 2, pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3]));
      return;
    }
    #pragma unroll
    for (int e = 0; e < 8; e += 2) {
      if (n + e >= g.N) break;
      const size_t j = (n + e) / 2;
      if (g.pre) g.pre[m * g.N + j] = __float2bfloat16(x[e]), g.pre[m * g.N + half + j] = __float2bfloat16(x[e + 1]);
      g.post[m * half + j] = __float2bfloat16(y[e / 2]);
    }
  } else {
    #pragma unroll
    for (int e = 0; e < 8; e++) y[e] = ACT == ACTIVATION_GELU ? gelu<bf16>(x[e]) : 0;
    if (g.wide_out) {
      if (g.pre) store<8>(g.pre + m * g.N + n, x);
      if (ACT == ACTIVATION_GELU) store<8>(g.post + m * g.N + n, y);
      return;
    }
    #pragma unroll
    for (int e = 0; e < 8; e++) {
      if (n + e >= g.N) break;
      if (g.pre) g.pre[m * g.N + n + e] = __float2bfloat16(x[e]);
      if (ACT == ACTIVATION_GELU) g.post[m * g.N + n + e] = __float2bfloat16(y[e]);
    }
  }
}

// A warp's fragments, as mma_bf16's d has them: this thread's begin at row m0 and column n0 of out (rows of g.N), rows +8 and +ROW_STEP i, columns +8 j.
template <int ROW_STEP, int ROWS, int COLUMNS>
static __device__ __forceinline__ void store_sums(const Gemm<bf16> &g, float *out, size_t m0, size_t n0, const float (&sum)[ROWS][COLUMNS][4]) {
  #pragma unroll
  for (int i = 0; i < ROWS; i++)
    #pragma unroll
    for (int j = 0; j < COLUMNS; j++)
      #pragma unroll
      for (int half = 0; half < 2; half++) {
        const size_t m = m0 + i * ROW_STEP + half * 8, n = n0 + j * 8;
        if (m < g.M && n < g.N) store_pair(out + m * g.N + n, make_float2(sum[i][j][half * 2], sum[i][j][half * 2 + 1]), n + 1 < g.N, g.wide_out);
      }
}

// Of a fragment whose columns are all the same.
template <int ROW_STEP, int ROWS> static __device__ __forceinline__ void store_bias_sums(float *out, size_t m0, size_t M, const float (&sum)[ROWS][4]) {
  #pragma unroll
  for (int i = 0; i < ROWS; i++)
    #pragma unroll
    for (int half = 0; half < 2; half++)
      if (m0 + i * ROW_STEP + half * 8 < M) out[m0 + i * ROW_STEP + half * 8] = sum[i][half * 2];
}

// The same rounded to bf16 and finished, by way of this warp's own shared memory, so that global memory is written 16 bytes at a time. m, n: where the
// warp's rows and columns begin.
template <Activation ACT, int ROW_STEP, int ROWS, int COLUMNS>
static __device__ __forceinline__ void finish_sums(const Gemm<bf16> &g, bf16 *staged, size_t m, size_t n, const float (&sum)[ROWS][COLUMNS][4]) {
  constexpr int WIDTH = COLUMNS * 8;
  const int lane = threadIdx.x % WARP;
  #pragma unroll
  for (int i = 0; i < ROWS; i++)
    #pragma unroll
    for (int j = 0; j < COLUMNS; j++)
      #pragma unroll
      for (int half = 0; half < 2; half++)
        *reinterpret_cast<uint32_t *>(staged + chunk_place<WIDTH>(i * 16 + half * 8 + lane / 4, j) + lane % 4 * 2) = pack_bf16(sum[i][j][half * 2], sum[i][j][half * 2 + 1]);
  __syncwarp();
  #pragma unroll
  for (int part = 0; part < ROWS * 16 * WIDTH / 8 / WARP; part++) {
    const int id = part * WARP + lane, row = id / (WIDTH / 8), chunk = id % (WIDTH / 8);
    finish_chunk<ACT>(g, m + row / 16 * ROW_STEP + row % 16, n + chunk * 8, staged + chunk_place<WIDTH>(row, chunk));
  }
}

// Split over k (splits > 1): block row y of the grid sums its share of the steps from zero into partial; gemm_bf16_sum_kernel adds them in order.
template <Direction DIR, Activation ACT, int TILE, bool WIDE, bool WGMMA>
__global__ void __launch_bounds__(BF16_THREADS, 2) gemm_bf16_kernel(Gemm<bf16> g) {
  static_assert(!WGMMA || (TILE == 128 && WIDE), "wgmma is for large tiles in shared memory by cp.async");
  constexpr bool A_K_SIDE = DIR != BACKWARD_WEIGHT, B_K_SIDE = DIR == FORWARD;
  constexpr int STEP = TILE * BF16_DEPTH;                      // elements of an operand's step
  constexpr int WIDTH = WGMMA ? TILE : TILE / 2, ROWS = WGMMA ? TILE / 64 : TILE / 32, COLUMNS = WIDTH / 8;   // a warp's columns; its fragments of 16 rows and of 8 columns
  constexpr int ROW_STEP = WGMMA ? 64 : 16;                    // rows from one of its fragments to the next
  extern __shared__ __align__(1024) unsigned char smem[];
  bf16 *a_tiles = reinterpret_cast<bf16 *>(smem), *b_tiles = a_tiles + BF16_STAGES * STEP;
  const TilePlace place = tile_place(g.M, g.N, TILE);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warp_m = WGMMA ? warp * 16 : warp % 2 * WIDTH, warp_n = WGMMA ? 0 : warp / 2 * WIDTH;
  const size_t share = CEIL_DIV(CEIL_DIV(g.K, (size_t)BF16_DEPTH), (size_t)g.splits) * BF16_DEPTH, k0 = blockIdx.y * share, k_end = min(k0 + share, g.K);
  const int steps = (int)CEIL_DIV(k_end - k0, (size_t)BF16_DEPTH);
  // where this thread's outputs begin: rows +8 and +ROW_STEP i, columns +8 j
  const size_t m0 = place.m + warp_m + lane / 4, n0 = place.n + warp_n + lane % 4 * 2;
  float *const sum_out = g.splits > 1 ? g.partial + blockIdx.y * g.M * g.N : g.sum;
  const bool from_stored = DIR == BACKWARD_WEIGHT && g.splits == 1;

  float sum[ROWS][COLUMNS][4] = {};   // as mma_bf16's d
  auto add_starts = [&] {             // the bias, the stored gradient
    #pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
      const size_t n = n0 + j * 8;
      float2 start = make_float2(0, 0);
      if (DIR == FORWARD && g.bias && n < g.N) {
        start.x = to_float(g.bias[column_of<ACT>(n, g.N)]);
        if (n + 1 < g.N) start.y = to_float(g.bias[column_of<ACT>(n + 1, g.N)]);
      }
      #pragma unroll
      for (int i = 0; i < ROWS; i++)
        #pragma unroll
        for (int half = 0; half < 2; half++) {
          const size_t m = m0 + i * ROW_STEP + half * 8;
          if (from_stored && m < g.M && n < g.N) start = load_pair(sum_out + m * g.N + n, n + 1 < g.N, g.wide_out);
          sum[i][j][half * 2] += start.x, sum[i][j][half * 2 + 1] += start.y;
        }
    }
  };
  // For wgmma behind the products: registers that were set before them make ptxas have each product wait for the last (its remark C7515).
  if (!WGMMA) add_starts();
  // the bias's gradient is the product of a with a column of ones: all columns of its fragment are the same
  const bool sums_bias = DIR == BACKWARD_WEIGHT && g.bias_sum && place.n == 0 && warp_n == 0;
  float *const bias_out = g.splits > 1 ? g.partial + g.splits * g.M * g.N + blockIdx.y * g.M : g.bias_sum;
  float bias[DIR == BACKWARD_WEIGHT ? ROWS : 1][4] = {};
  if (sums_bias && from_stored)
    #pragma unroll
    for (int i = 0; i < ROWS; i++)
      #pragma unroll
      for (int e = 0; e < 4; e++) bias[DIR == BACKWARD_WEIGHT ? i : 0][e] = m0 + i * ROW_STEP + e / 2 * 8 < g.M ? bias_out[m0 + i * ROW_STEP + e / 2 * 8] : 0;

  Feed<TILE, A_K_SIDE, WIDE, ACTIVATION_NONE> a_feed(g.a, place.m, g.M, k0, k_end, g.K);
  Feed<TILE, B_K_SIDE, WIDE, ACT> b_feed(g.b, place.n, g.N, k0, k_end, g.K);
  auto fetch = [&](int step) {
    if (step < steps) a_feed.fetch(a_tiles + step % BF16_STAGES * STEP), b_feed.fetch(b_tiles + step % BF16_STAGES * STEP);
    cp_async_commit();   // an empty group keeps the count
  };
  #pragma unroll
  for (int step = 0; step < BF16_STAGES - 1; step++) fetch(step);
  auto add_bias = [&](const uint32_t (&a)[4], int i) { mma_bf16(bias[DIR == BACKWARD_WEIGHT ? i : 0], a, ONES_BF16, ONES_BF16); };
  for (int step = 0; step < steps; step++) {
    const bf16 *a_tile = a_tiles + step % BF16_STAGES * STEP, *b_tile = b_tiles + step % BF16_STAGES * STEP;
    cp_async_wait<BF16_STAGES - 2>();   // this step has landed for this thread ...
    if constexpr (WGMMA) {
      shared_writes_to_wgmma();
      __syncthreads();                  // ... and for all
      keep_sums_here(sum);
      wgmma_fence();
      #pragma unroll
      for (int k = 0; k < BF16_DEPTH; k += 16)
        #pragma unroll
        for (int i = 0; i < ROWS; i++)
          wgmma_bf16<A_K_SIDE, B_K_SIDE>(sum[i], wgmma_operand(a_tile + i * 64 * BF16_DEPTH + (A_K_SIDE ? k : k * 64), PANEL_BYTES, GROUP_BYTES),
                                         wgmma_operand(b_tile + (B_K_SIDE ? k : k * 64), PANEL_BYTES, GROUP_BYTES));
      wgmma_commit();
      if (sums_bias)
        #pragma unroll
        for (int k = 0; k < BF16_DEPTH; k += 16)
          #pragma unroll
          for (int i = 0; i < ROWS; i++) {
            uint32_t a[4];
            a_fragment<TILE, A_K_SIDE>(a, a_tile, warp_m + i * ROW_STEP, k);
            add_bias(a, i);
          }
      wgmma_wait<1>();                  // the products of the step before are done for this warp ...
      __syncthreads();                  // ... and for all: nobody reads its tiles any more, while this step's products go on
      fetch(step + BF16_STAGES - 1);
    } else {
      __syncthreads();                  // ... and for all; and nobody reads the step before any more
      fetch(step + BF16_STAGES - 1);
      #pragma unroll
      for (int k = 0; k < BF16_DEPTH; k += 16) {
        uint32_t a[ROWS][4], b[COLUMNS / 2][4];
        #pragma unroll
        for (int i = 0; i < ROWS; i++) a_fragment<TILE, A_K_SIDE>(a[i], a_tile, warp_m + i * ROW_STEP, k);
        #pragma unroll
        for (int j = 0; j < COLUMNS / 2; j++) b_fragments<TILE, B_K_SIDE>(b[j], b_tile, warp_n + j * 16, k);
        #pragma unroll
        for (int i = 0; i < ROWS; i++)
          #pragma unroll
          for (int j = 0; j < COLUMNS; j++) mma_bf16(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        if (sums_bias)
          #pragma unroll
          for (int i = 0; i < ROWS; i++) add_bias(a[i], i);
      }
    }
  }
  if constexpr (WGMMA) {
    wgmma_wait<0>();
    keep_sums_here(sum);
    add_starts();
  }
  if constexpr (DIR == BACKWARD_WEIGHT) if (sums_bias && lane % 4 == 0) store_bias_sums<ROW_STEP>(bias_out, m0, g.M, bias);
  if (DIR == BACKWARD_WEIGHT || g.splits > 1) {
    store_sums<ROW_STEP>(g, sum_out, m0, n0, sum);
    return;
  }
  __syncthreads();   // nobody reads the tiles any more; no copy is on its way: the groups still open are empty
  finish_sums<ACT, ROW_STEP>(g, a_tiles + warp * STEP, place.m + warp_m, place.n + warp_n, sum);   // each warp has the room of a step
}

// The sums over the splits, in their order: gradients += (and the bias's), dx =. Four outputs a thread; wide_out.
template <Direction DIR> __global__ void gemm_bf16_sum_kernel(Gemm<bf16> g) {
  const size_t n = g.M * g.N, item = global_thread(), at = item * 4;
  if (at < n) {
    float total[4] = {}, x[4];
    if (DIR == BACKWARD_WEIGHT) load<4>(total, g.sum + at);
    for (int split = 0; split < g.splits; split++) {
      load<4>(x, g.partial + split * n + at);
      #pragma unroll
      for (int e = 0; e < 4; e++) total[e] += x[e];
    }
    if (DIR == BACKWARD_WEIGHT) store<4>(g.sum + at, total);
    else store<4>(g.pre + at, total);
  }
  const size_t m = item - n / 4;   // of what is no output
  if (DIR == BACKWARD_WEIGHT && g.bias_sum && m < g.M) {
    float total = g.bias_sum[m];
    for (int split = 0; split < g.splits; split++) total += g.partial[g.splits * n + split * g.M + m];
    g.bias_sum[m] = total;
  }
}
