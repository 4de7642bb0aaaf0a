// attention.cuh: owns attention, forward and backward. No T x S array anywhere: the softmax is taken as the keys stream by (Milakov
// and Gimelshein 2018; Dao et al. 2022), and the backward pass finds each probability again from lse.
//
// Two families. The plain one, a warp a query (or a key), takes any type, head size and stride. The flash one, on tensor cores, takes bf16, head
// sizes 32, 64, 96, 128 and rows at multiples of 16 bytes. Each output has one owner, which sums in a fixed order: no atomics. So the
// backward pass has one kernel for dq (an owner a query) and one for dk, dv (an owner a key, all query heads of its group).
// Where a query begins to see keys, chunks of keys still begin at multiples of 32 (plain) or 64 (flash): a query's result does not
// depend on which other queries stand in the call.
// Tests: tests/test_attention.c with TEST_DEVICE=cuda and cuda-bf16
#pragma once
#include "cuda.cuh"     // load, store, warp_sum, dropout_factor
#include "ptx.cuh"      // cp.async, ldmatrix, mma, exp2_fast

// device.h's AttentionShape as kernels take it.
struct AttentionPlan {
  size_t B, T, S, position, NH, KVH, HS, q_stride, kv_stride, out_stride, q_batch, kv_batch, out_batch;
  bool causal;
  const int32_t *first_key;
  DropoutKey dropout;
  uint64_t row0;
  float scale;
};

struct KeyRange { size_t begin, end; };
__device__ __forceinline__ KeyRange visible_keys(const AttentionPlan &p, size_t b, size_t t) {
  return {p.first_key ? (size_t)p.first_key[b * p.T + t] : 0, p.causal ? p.position + t + 1 : p.S};
}
__device__ __forceinline__ size_t query_offset(const AttentionPlan &p, size_t b, size_t t, size_t h) { return b * p.q_batch + t * p.q_stride + h * p.HS; }
__device__ __forceinline__ size_t out_offset(const AttentionPlan &p, size_t b, size_t t, size_t h) { return b * p.out_batch + t * p.out_stride + h * p.HS; }
__device__ __forceinline__ size_t key_offset(const AttentionPlan &p, size_t b, size_t s, size_t kv_head) { return b * p.kv_batch + s * p.kv_stride + kv_head * p.HS; }
// Element of the dropout's stream that key 0 of this query has.
__device__ __forceinline__ uint64_t dropout_row(const AttentionPlan &p, size_t b, size_t t, size_t h) { return ((p.row0 + b * p.T + t) * p.NH + h) * p.S; }

// ---- the plain family: a warp owns a query, its lanes 32 keys at a time, then 32 columns at a time ----

enum { PLAIN_WARPS = 8, PLAIN_COLUMNS = 8 };   // warps of a block; columns of a lane: 256 of a head at once, larger heads in several passes

template <int W, class Real> __device__ __forceinline__ float dot(const Real *x, const Real *y, size_t n) {
  float sum = 0;
  for (size_t i = 0; i < n; i += W) {
    float a[W], b[W];
    load<W>(a, x + i), load<W>(b, y + i);
    #pragma unroll
    for (int e = 0; e < W; e++) sum = fmaf(a[e], b[e], sum);
  }
  return sum;
}

// result[i] += weight[j] * rows[j][first + 32 i + lane], over the first n rows
template <class Real>
__device__ __forceinline__ void add_rows(float (&result)[PLAIN_COLUMNS], const float *weight, const Real *rows, size_t stride, size_t n, size_t first, size_t HS) {
  const size_t column = first + threadIdx.x % WARP;
  #pragma unroll 2
  for (size_t j = 0; j < n; j++) {
    if (weight[j] == 0) continue;   // not seen, or dropped
    #pragma unroll
    for (int i = 0; i < PLAIN_COLUMNS; i++)
      if (column + i * WARP < HS) result[i] = fmaf(weight[j], to_float(rows[j * stride + column + i * WARP]), result[i]);
  }
}

template <class Real>
__device__ __forceinline__ void put_row(Real *out, const float (&result)[PLAIN_COLUMNS], size_t first, size_t HS) {
  #pragma unroll
  for (int i = 0; i < PLAIN_COLUMNS; i++) {
    const size_t column = first + i * WARP + threadIdx.x % WARP;
    if (column < HS) out[column] = from_float<Real>(result[i]);
  }
}

template <class Real, int W>
__global__ void __launch_bounds__(PLAIN_WARPS * WARP, 2) attention_forward_kernel(Real *out, float *lse, const Real *q, const Real *k, const Real *v, AttentionPlan p) {
  __shared__ float weights[PLAIN_WARPS][WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const size_t item = (size_t)blockIdx.x * PLAIN_WARPS + warp;
  if (item >= p.B * p.NH * p.T) return;
  const size_t t = item % p.T, h = item / p.T % p.NH, b = item / p.T / p.NH, kv_head = h / (p.NH / p.KVH);
  const KeyRange keys = visible_keys(p, b, t);
  const Real *query = q + query_offset(p, b, t, h);
  for (size_t first = 0; first < p.HS; first += WARP * PLAIN_COLUMNS) {
    float result[PLAIN_COLUMNS] = {}, largest = NEGATIVE_INFINITY, sum = 0;
    for (size_t s0 = keys.begin / WARP * WARP; s0 < keys.end; s0 += WARP) {
      const size_t s = s0 + lane;
      const bool seen = s >= keys.begin && s < keys.end;
      const float score = seen ? p.scale * dot<W>(query, k + key_offset(p, b, s, kv_head), p.HS) : NEGATIVE_INFINITY;
      const float before = largest;
      largest = max_or_nan(largest, warp_max(score));
      const float base = largest == NEGATIVE_INFINITY ? 0 : largest;   // a query that sees nothing: all weights 0
      const float correction = expf(before - base), weight = seen ? expf(score - base) : 0;
      sum = sum * correction + warp_sum(weight);
      weights[warp][lane] = seen ? weight * dropout_factor(p.dropout, dropout_row(p, b, t, h) + s) : 0;
      __syncwarp();
      #pragma unroll
      for (int i = 0; i < PLAIN_COLUMNS; i++) result[i] *= correction;
      add_rows(result, weights[warp], v + key_offset(p, b, s0, kv_head), p.kv_stride, min((size_t)WARP, keys.end - s0), first, p.HS);
      __syncwarp();
    }
    #pragma unroll
    for (int i = 0; i < PLAIN_COLUMNS; i++) result[i] = sum == 0 ? 0 : result[i] / sum;
    put_row(out + out_offset(p, b, t, h), result, first, p.HS);
    if (lse && first == 0 && lane == 0) lse[item] = largest + logf(sum);
  }
}

// delta = dout . out of each query, (heads, T) from head 0 of sequence-head number first on: sum over keys of p dp (see reference.c)
template <class Real, int W>
__global__ void __launch_bounds__(PLAIN_WARPS * WARP, 2) attention_delta_kernel(float *delta, const Real *dout, const Real *out, AttentionPlan p, size_t first, size_t heads) {
  const int lane = threadIdx.x % WARP;
  const size_t item = (size_t)blockIdx.x * PLAIN_WARPS + threadIdx.x / WARP;
  if (item >= heads * p.T) return;
  const size_t t = item % p.T, bh = first + item / p.T, at = out_offset(p, bh / p.NH, t, bh % p.NH);
  float sum = 0;
  for (size_t c = (size_t)lane * W; c < p.HS; c += WARP * W) {
    float x[W], y[W];
    load<W>(x, dout + at + c), load<W>(y, out + at + c);
    #pragma unroll
    for (int e = 0; e < W; e++) sum = fmaf(x[e], y[e], sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) delta[item] = sum;
}

// A warp owns a query: dq = scale * sum over keys of dscore k, dscore = p (factor dp - delta)
template <class Real, int W>
__global__ void __launch_bounds__(PLAIN_WARPS * WARP, 2) attention_backward_query_kernel(Real *dq, const Real *dout, const Real *q, const Real *k, const Real *v,
                                                                                     const float *lse, const float *delta, AttentionPlan p, size_t first_head, size_t heads) {
  __shared__ float weights[PLAIN_WARPS][WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const size_t item = (size_t)blockIdx.x * PLAIN_WARPS + warp;
  if (item >= heads * p.T) return;
  const size_t t = item % p.T, bh = first_head + item / p.T, b = bh / p.NH, h = bh % p.NH, kv_head = h / (p.NH / p.KVH);
  const KeyRange keys = visible_keys(p, b, t);
  const Real *query = q + query_offset(p, b, t, h), *gradient = dout + out_offset(p, b, t, h);
  for (size_t first = 0; first < p.HS; first += WARP * PLAIN_COLUMNS) {
    float result[PLAIN_COLUMNS] = {};
    for (size_t s0 = keys.begin / WARP * WARP; s0 < keys.end; s0 += WARP) {
      const size_t s = s0 + lane, key = key_offset(p, b, s, kv_head);
      float dscore = 0;
      if (s >= keys.begin && s < keys.end) {
        const float weight = expf(p.scale * dot<W>(query, k + key, p.HS) - lse[bh * p.T + t]);
        dscore = weight * (dropout_factor(p.dropout, dropout_row(p, b, t, h) + s) * dot<W>(gradient, v + key, p.HS) - delta[item]);
      }
      weights[warp][lane] = p.scale * dscore;
      __syncwarp();
      add_rows(result, weights[warp], k + key_offset(p, b, s0, kv_head), p.kv_stride, min((size_t)WARP, keys.end - s0), first, p.HS);
      __syncwarp();
    }
    put_row(dq + query_offset(p, b, t, h), result, first, p.HS);
  }
}

// A warp owns a key: dk = scale * sum over queries of dscore q, dv = sum of p factor dout; query heads of its group in order
template <class Real, int W>
__global__ void __launch_bounds__(PLAIN_WARPS * WARP, 2) attention_backward_key_kernel(Real *dk, Real *dv, const Real *dout, const Real *q, const Real *k, const Real *v,
                                                                                   const float *lse, const float *delta, AttentionPlan p, size_t first_head, size_t heads) {
  __shared__ float weights[2][PLAIN_WARPS][WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const size_t item = (size_t)blockIdx.x * PLAIN_WARPS + warp, group = p.NH / p.KVH;
  if (item >= heads / group * p.S) return;
  const size_t s = item % p.S, b_kv = first_head / group + item / p.S, b = b_kv / p.KVH, kv_head = b_kv % p.KVH, key = key_offset(p, b, s, kv_head);
  for (size_t first = 0; first < p.HS; first += WARP * PLAIN_COLUMNS) {
    float key_sum[PLAIN_COLUMNS] = {}, value_sum[PLAIN_COLUMNS] = {};
    for (size_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
      const size_t bh = b * p.NH + h;
      for (size_t t0 = p.causal ? s / WARP * WARP : 0; t0 < p.T; t0 += WARP) {
        const size_t t = t0 + lane;
        const bool sees = t < p.T && s >= visible_keys(p, b, t).begin && s < visible_keys(p, b, t).end;
        float dscore = 0, factor = 0;
        if (sees) {
          const float weight = expf(p.scale * dot<W>(q + query_offset(p, b, t, h), k + key, p.HS) - lse[bh * p.T + t]);
          factor = dropout_factor(p.dropout, dropout_row(p, b, t, h) + s);
          dscore = weight * (factor * dot<W>(dout + out_offset(p, b, t, h), v + key, p.HS) - delta[(bh - first_head) * p.T + t]);
          factor *= weight;
        }
        weights[0][warp][lane] = p.scale * dscore, weights[1][warp][lane] = factor;
        __syncwarp();
        const size_t n = min((size_t)WARP, p.T - t0);
        add_rows(key_sum, weights[0][warp], q + query_offset(p, b, t0, h), p.q_stride, n, first, p.HS);
        add_rows(value_sum, weights[1][warp], dout + out_offset(p, b, t0, h), p.out_stride, n, first, p.HS);
        __syncwarp();
      }
    }
    put_row(dk + key, key_sum, first, p.HS);
    put_row(dv + key, value_sum, first, p.HS);
  }
}

// ---- the flash family: tiles in shared memory, products on tensor cores, a warp owns 16 queries (or keys) ----

enum { FLASH_THREADS = 128, FLASH_ROWS = 64 };   // 4 warps of 16 rows
// Rows of the tiles that stream by: fewer for the large heads of the backward pass, whose sums fill the registers.
template <int HS> struct FlashTile { enum { FORWARD = 64, BACKWARD = HS <= 64 ? 64 : 32 }; };
template <int HS> size_t flash_forward_bytes() { return (FLASH_ROWS + 4 * FlashTile<HS>::FORWARD) * HS * sizeof(bf16); }
template <int HS> size_t flash_backward_bytes() { return (2 * FLASH_ROWS + 4 * FlashTile<HS>::BACKWARD) * HS * sizeof(bf16) + 4 * FlashTile<HS>::BACKWARD * sizeof(float); }
static const float LOG2_E = 1.4426950408889634f;

// Where 8 neighbours of a row lie: shuffled so that eight rows at one chunk are in different banks, for rows of 64, 128, 192 or 256 bytes.
template <int HS> __device__ __forceinline__ int flash_place(int row, int chunk) {
  return row * HS + (HS % 64 == 0 ? chunk ^ (row % 8) : chunk ^ (row / 2 % 4)) * 8;
}
// tile = rows first .. first+ROWS of one head, zero from row `count` on. A thread keeps its chunk of a row and goes down the rows; with
// 96 columns a row has 12 chunks, and 8 threads of the block have none.
template <int HS, int ROWS> __device__ __forceinline__ void fetch_rows(bf16 *tile, const bf16 *head, size_t stride, size_t first, size_t count) {
  constexpr int CHUNKS = HS / 8, DOWN = FLASH_THREADS / CHUNKS;
  const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS, left = (int)min(count - first, (size_t)ROWS) - row;
  const bf16 *from = head + (first + row) * stride + chunk * 8;
  #pragma unroll
  for (int r = 0; r < ROWS; r += DOWN) {
    if (row >= DOWN || (ROWS % DOWN && row + r >= ROWS)) break;
    cp_async_16(tile + flash_place<HS>(row + r, chunk), r < left ? from + r * stride : head, r < left);
  }
}
// Where key s lies in the tile of `keys` keys from s0 on: 0 before it, `keys` behind it.
__device__ __forceinline__ int place_in_tile(size_t s, size_t s0, int keys) { return (int)min(s - min(s, s0), (size_t)keys); }

// Rows are rows of the product: mma_bf16's a.
template <int HS> __device__ __forceinline__ void rows_as_a(uint32_t (&a)[4], const bf16 *tile, int row, int k) {
  const int lane = threadIdx.x % WARP;
  ldmatrix_x4(a, tile + flash_place<HS>(row + lane % 16, k / 8 + lane / 16));
}
// Rows are columns of the product (a . row): two b's of 8 rows.
template <int HS> __device__ __forceinline__ void rows_as_columns(uint32_t (&b)[4], const bf16 *tile, int row, int k) {
  const int lane = threadIdx.x % WARP;
  ldmatrix_x4(b, tile + flash_place<HS>(row + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
}
// Rows are what is summed over: two b's of 8 columns.
template <int HS> __device__ __forceinline__ void rows_as_k(uint32_t (&b)[4], const bf16 *tile, int row, int column) {
  const int lane = threadIdx.x % WARP;
  ldmatrix_x4_transposed(b, tile + flash_place<HS>(row + lane % 16, column / 8 + lane / 16));
}
// x(16,ROWS) = this warp's 16 rows of left, times all rows of right
template <int HS, int ROWS> __device__ __forceinline__ void multiply_rows(float (&x)[ROWS / 8][4], const bf16 *left, int row, const bf16 *right) {
  #pragma unroll
  for (int j = 0; j < ROWS / 8; j++)
    #pragma unroll
    for (int e = 0; e < 4; e++) x[j][e] = 0;
  #pragma unroll
  for (int k = 0; k < HS; k += 16) {
    uint32_t a[4], b[4];
    rows_as_a<HS>(a, left, row, k);
    #pragma unroll
    for (int j = 0; j < ROWS / 16; j++) {
      rows_as_columns<HS>(b, right, j * 16, k);
      mma_bf16(x[2 * j], a, b[0], b[1]);
      mma_bf16(x[2 * j + 1], a, b[2], b[3]);
    }
  }
}
// sum(16,HS) += weight(16,ROWS) rounded to bf16, times the rows of right. The layout of a product's result is that of its next factor.
template <int HS, int ROWS> __device__ __forceinline__ void add_weighted_rows(float (&sum)[HS / 8][4], const float (&weight)[ROWS / 8][4], const bf16 *right) {
  #pragma unroll
  for (int k = 0; k < ROWS / 16; k++) {
    const uint32_t a[4] = {pack_bf16(weight[2 * k][0], weight[2 * k][1]), pack_bf16(weight[2 * k][2], weight[2 * k][3]),
                           pack_bf16(weight[2 * k + 1][0], weight[2 * k + 1][1]), pack_bf16(weight[2 * k + 1][2], weight[2 * k + 1][3])};
    #pragma unroll
    for (int j = 0; j < HS / 16; j++) {
      uint32_t b[4];
      rows_as_k<HS>(b, right, k * 16, j * 16);
      mma_bf16(sum[2 * j], a, b[0], b[1]);
      mma_bf16(sum[2 * j + 1], a, b[2], b[3]);
    }
  }
}
// Four lanes hold a word each of four chunks of 16 bytes: word[i] is this lane's of chunk i. Afterwards lane%4 has the whole of chunk lane%4.
__device__ __forceinline__ void gather_chunk(uint32_t (&chunk)[4], const uint32_t (&word)[4]) {
  const int lane = threadIdx.x % 4;
  #pragma unroll
  for (int distance = 0; distance < 4; distance++) {
    const int other = lane ^ distance;
    const uint32_t got = __shfl_xor_sync(ALL_LANES, other & 2 ? other & 1 ? word[3] : word[2] : other & 1 ? word[1] : word[0], distance);
    #pragma unroll
    for (int i = 0; i < 4; i++) if (i == other) chunk[i] = got;
  }
}
// The two rows lane/4 and lane/4+8 of this warp's 16, times factor, to rows of one head; rows from `count` on are not written.
template <int HS> __device__ __forceinline__ void put_rows(bf16 *head, size_t stride, size_t row, size_t count, const float (&x)[HS / 8][4], float factor0, float factor1) {
  const int lane = threadIdx.x % WARP;
  #pragma unroll
  for (int half = 0; half < 2; half++) {
    const size_t at = row + lane / 4 + half * 8;
    const float factor = half ? factor1 : factor0;
    #pragma unroll
    for (int j = 0; j < HS / 8; j += 4) {
      uint32_t word[4], chunk[4];
      #pragma unroll
      for (int i = 0; i < 4; i++) word[i] = pack_bf16(x[j + i][half * 2] * factor, x[j + i][half * 2 + 1] * factor);
      gather_chunk(chunk, word);
      if (at < count) store_16(head + at * stride + (j + lane % 4) * 8, chunk[0], chunk[1], chunk[2], chunk[3]);
    }
  }
}

// A block owns 64 queries of one head; the last ones, which see most, start first.
template <int HS>
__global__ void __launch_bounds__(FLASH_THREADS) flash_forward_kernel(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, AttentionPlan p) {
  constexpr int KEYS = FlashTile<HS>::FORWARD;
  extern __shared__ __align__(1024) unsigned char smem[];
  bf16 *query_tile = reinterpret_cast<bf16 *>(smem), *key_tiles = query_tile + FLASH_ROWS * HS, *value_tiles = key_tiles + 2 * KEYS * HS;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const size_t tiles = CEIL_DIV(p.T, (size_t)FLASH_ROWS), bh = blockIdx.x / tiles, b = bh / p.NH, h = bh % p.NH, kv_head = h / (p.NH / p.KVH);
  const size_t t0 = (tiles - 1 - blockIdx.x % tiles) * FLASH_ROWS, end = p.causal ? min(p.position + t0 + FLASH_ROWS, p.S) : p.S;
  const bf16 *keys = k + key_offset(p, b, 0, kv_head), *values = v + key_offset(p, b, 0, kv_head);
  KeyRange seen[2];
  #pragma unroll
  for (int half = 0; half < 2; half++) {
    const size_t t = t0 + warp * 16 + lane / 4 + half * 8;
    seen[half] = visible_keys(p, b, min(t, p.T - 1));
  }
  fetch_rows<HS, FLASH_ROWS>(query_tile, q + query_offset(p, b, 0, h), p.q_stride, t0, p.T);
  fetch_rows<HS, KEYS>(key_tiles, keys, p.kv_stride, 0, p.S);
  fetch_rows<HS, KEYS>(value_tiles, values, p.kv_stride, 0, p.S);
  cp_async_commit();

  const float scale = p.scale * LOG2_E;   // positive: the largest score is the largest product
  float result[HS / 8][4] = {}, largest[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {0, 0};   // sum: this lane's part of the row
  for (size_t s0 = 0, stage = 0; s0 < end; s0 += KEYS, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();   // this tile is there for all, and nobody reads the one before any more
    if (s0 + KEYS < end) {
      fetch_rows<HS, KEYS>(key_tiles + (stage ^ 1) * KEYS * HS, keys, p.kv_stride, s0 + KEYS, p.S);
      fetch_rows<HS, KEYS>(value_tiles + (stage ^ 1) * KEYS * HS, values, p.kv_stride, s0 + KEYS, p.S);
      cp_async_commit();
    }
    float weight[KEYS / 8][4];
    multiply_rows<HS, KEYS>(weight, query_tile, warp * 16, key_tiles + stage * KEYS * HS);
    // Only tiles at the edge of what these queries see are looked at key by key.
    if (p.first_key || s0 + KEYS > (p.causal ? p.position + t0 + 1 : p.S)) {
      const int begin0 = place_in_tile(seen[0].begin, s0, KEYS), begin1 = place_in_tile(seen[1].begin, s0, KEYS);
      const int end0 = place_in_tile(seen[0].end, s0, KEYS), end1 = place_in_tile(seen[1].end, s0, KEYS);
      #pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
        #pragma unroll
        for (int e = 0; e < 4; e++) {
          const int s = j * 8 + lane % 4 * 2 + e % 2;
          if (s < (e < 2 ? begin0 : begin1) || s >= (e < 2 ? end0 : end1)) weight[j][e] = NEGATIVE_INFINITY;
        }
    }
    #pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = largest[half];   // fmaxf passes over a NaN; its weight below is NaN, and so is the sum
      #pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
        #pragma unroll
        for (int e = half * 2; e < half * 2 + 2; e++) {
          most = fmaxf(most, weight[j][e]);
        }
      most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
      most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
      const float base = most == NEGATIVE_INFINITY ? 0 : most * scale, correction = exp2_fast(fmaf(largest[half], scale, -base));   // nothing seen yet: all weights 0
      largest[half] = most;
      float part = 0;
      #pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
        #pragma unroll
        for (int e = half * 2; e < half * 2 + 2; e++) {
          weight[j][e] = exp2_fast(fmaf(weight[j][e], scale, -base));
          part += weight[j][e];
        }
      sum[half] = sum[half] * correction + part;
      #pragma unroll
      for (int j = 0; j < HS / 8; j++) result[j][half * 2] *= correction, result[j][half * 2 + 1] *= correction;
    }
    if (p.dropout.keep_threshold) {
      #pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
        #pragma unroll
        for (int e = 0; e < 4; e++)
          weight[j][e] *= dropout_factor(p.dropout, dropout_row(p, b, t0 + warp * 16 + lane / 4 + e / 2 * 8, h) + s0 + j * 8 + lane % 4 * 2 + e % 2);
    }
    add_weighted_rows<HS, KEYS>(result, weight, value_tiles + stage * KEYS * HS);
  }
  #pragma unroll
  for (int half = 0; half < 2; half++) {
    sum[half] += __shfl_xor_sync(ALL_LANES, sum[half], 1);
    sum[half] += __shfl_xor_sync(ALL_LANES, sum[half], 2);
    const size_t t = t0 + warp * 16 + lane / 4 + half * 8;
    if (lse && lane % 4 == 0 && t < p.T) lse[bh * p.T + t] = largest[half] * p.scale + logf(sum[half]);
  }
  put_rows<HS>(out + out_offset(p, b, 0, h), p.out_stride, t0 + warp * 16, p.T, result, sum[0] == 0 ? 0 : 1 / sum[0], sum[1] == 0 ? 0 : 1 / sum[1]);
}

// From scores and dp of 16 x ROWS pairs: score becomes p factor, dp becomes dscore. base: lse times log2 e of the pair's query.
// base(j, e), delta(j, e), and where CHECKED seen(j, e), factor(j, e) are asked for element e of fragment j.
template <int ROWS, bool CHECKED, class Seen, class Base, class Delta, class Factor>
__device__ __forceinline__ void weights_and_gradients(float (&score)[ROWS / 8][4], float (&dp)[ROWS / 8][4], float scale, Seen seen, Base base, Delta delta, Factor factor) {
  #pragma unroll
  for (int j = 0; j < ROWS / 8; j++)
    #pragma unroll
    for (int e = 0; e < 4; e++) {
      float weight = exp2_fast(fmaf(score[j][e], scale * LOG2_E, -base(j, e))), kept = 1;
      if (CHECKED) weight = seen(j, e) ? weight : 0, kept = factor(j, e);
      dp[j][e] = weight * (kept * dp[j][e] - delta(j, e));
      score[j][e] = weight * kept;
    }
}

// dout . out of one query, by the four lanes that share its row
template <int HS> __device__ __forceinline__ float query_delta(const bf16 *dout, const bf16 *out) {
  float sum = 0, x[8], y[8];
  #pragma unroll
  for (int c = threadIdx.x % 4 * 8; c < HS; c += 32) {
    load<8>(x, dout + c), load<8>(y, out + c);
    #pragma unroll
    for (int e = 0; e < 8; e++) sum = fmaf(x[e], y[e], sum);
  }
  sum += __shfl_xor_sync(ALL_LANES, sum, 1);
  return sum + __shfl_xor_sync(ALL_LANES, sum, 2);
}

// A block owns 64 queries of one head: dq, and delta (heads, T) from first_head on, which flash_backward_key_kernel reads.
template <int HS>
__global__ void __launch_bounds__(FLASH_THREADS) flash_backward_query_kernel(bf16 *dq, float *delta, const bf16 *dout, const bf16 *out, const bf16 *q, const bf16 *k, const bf16 *v,
                                                                            const float *lse, AttentionPlan p, size_t first_head) {
  constexpr int KEYS = FlashTile<HS>::BACKWARD;
  extern __shared__ __align__(1024) unsigned char smem[];
  bf16 *query_tile = reinterpret_cast<bf16 *>(smem), *dout_tile = query_tile + FLASH_ROWS * HS, *key_tiles = dout_tile + FLASH_ROWS * HS, *value_tiles = key_tiles + 2 * KEYS * HS;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const size_t tiles = CEIL_DIV(p.T, (size_t)FLASH_ROWS), bh = first_head + blockIdx.x / tiles, b = bh / p.NH, h = bh % p.NH, kv_head = h / (p.NH / p.KVH);
  const size_t t0 = (tiles - 1 - blockIdx.x % tiles) * FLASH_ROWS, end = p.causal ? min(t0 + FLASH_ROWS, p.S) : p.S;
  const bf16 *keys = k + key_offset(p, b, 0, kv_head), *values = v + key_offset(p, b, 0, kv_head);
  KeyRange seen[2];
  float base[2], sum_p_dp[2];
  #pragma unroll
  for (int half = 0; half < 2; half++) {
    const size_t row = t0 + warp * 16 + lane / 4 + half * 8, t = min(row, p.T - 1), at = out_offset(p, b, t, h);   // a row behind the last query is the last one again
    seen[half] = visible_keys(p, b, t);
    base[half] = lse[bh * p.T + t] * LOG2_E;
    sum_p_dp[half] = query_delta<HS>(dout + at, out + at);
    if (row < p.T && lane % 4 == 0) delta[(bh - first_head) * p.T + t] = sum_p_dp[half];
  }
  fetch_rows<HS, FLASH_ROWS>(query_tile, q + query_offset(p, b, 0, h), p.q_stride, t0, p.T);
  fetch_rows<HS, FLASH_ROWS>(dout_tile, dout + out_offset(p, b, 0, h), p.out_stride, t0, p.T);
  fetch_rows<HS, KEYS>(key_tiles, keys, p.kv_stride, 0, p.S);
  fetch_rows<HS, KEYS>(value_tiles, values, p.kv_stride, 0, p.S);
  cp_async_commit();

  float result[HS / 8][4] = {};
  for (size_t s0 = 0, stage = 0; s0 < end; s0 += KEYS, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();
    if (s0 + KEYS < end) {
      fetch_rows<HS, KEYS>(key_tiles + (stage ^ 1) * KEYS * HS, keys, p.kv_stride, s0 + KEYS, p.S);
      fetch_rows<HS, KEYS>(value_tiles + (stage ^ 1) * KEYS * HS, values, p.kv_stride, s0 + KEYS, p.S);
      cp_async_commit();
    }
    float weight[KEYS / 8][4], dp[KEYS / 8][4];
    multiply_rows<HS, KEYS>(weight, query_tile, warp * 16, key_tiles + stage * KEYS * HS);
    multiply_rows<HS, KEYS>(dp, dout_tile, warp * 16, value_tiles + stage * KEYS * HS);
    auto key_of = [&](int j, int e) { return s0 + j * 8 + lane % 4 * 2 + e % 2; };
    auto visible = [&](int j, int e) { return key_of(j, e) >= seen[e / 2].begin && key_of(j, e) < seen[e / 2].end; };
    auto base_of = [&](int, int e) { return base[e / 2]; };
    auto delta_of = [&](int, int e) { return sum_p_dp[e / 2]; };
    auto factor = [&](int j, int e) { return dropout_factor(p.dropout, dropout_row(p, b, t0 + warp * 16 + lane / 4 + e / 2 * 8, h) + key_of(j, e)); };
    // Queries behind the last are rows that nobody reads; keys behind the last have weights that may overflow.
    if (p.first_key || p.dropout.keep_threshold || s0 + KEYS > (p.causal ? t0 + 1 : p.S)) weights_and_gradients<KEYS, true>(weight, dp, p.scale, visible, base_of, delta_of, factor);
    else weights_and_gradients<KEYS, false>(weight, dp, p.scale, visible, base_of, delta_of, factor);
    add_weighted_rows<HS, KEYS>(result, dp, key_tiles + stage * KEYS * HS);
  }
  put_rows<HS>(dq + query_offset(p, b, 0, h), p.q_stride, t0 + warp * 16, p.T, result, p.scale, p.scale);
}

// A block owns 64 keys of one key head: dk, dv, over the query heads of its group and their queries in order.
template <int HS>
__global__ void __launch_bounds__(FLASH_THREADS) flash_backward_key_kernel(bf16 *dk, bf16 *dv, const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v,
                                                                          const float *lse, const float *delta, AttentionPlan p, size_t first_head) {
  constexpr int QUERIES = FlashTile<HS>::BACKWARD;
  extern __shared__ __align__(1024) unsigned char smem[];
  bf16 *key_tile = reinterpret_cast<bf16 *>(smem), *value_tile = key_tile + FLASH_ROWS * HS, *query_tiles = value_tile + FLASH_ROWS * HS, *dout_tiles = query_tiles + 2 * QUERIES * HS;
  float *bases = reinterpret_cast<float *>(dout_tiles + 2 * QUERIES * HS), *deltas = bases + 2 * QUERIES;   // of the queries of both stages
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const size_t tiles = CEIL_DIV(p.S, (size_t)FLASH_ROWS), group = p.NH / p.KVH, b_kv = first_head / group + blockIdx.x / tiles, b = b_kv / p.KVH, kv_head = b_kv % p.KVH;
  const size_t s0 = blockIdx.x % tiles * FLASH_ROWS, key = s0 + warp * 16 + lane / 4;
  // Tiles of queries that see anything here, of one query head of the group after the other.
  const size_t first = p.causal ? s0 / QUERIES : 0, end = CEIL_DIV(p.T, (size_t)QUERIES);
  struct Turn { size_t h, tile; } now = {kv_head * group, first}, next = now;
  auto fetch = [&](const Turn &turn, int stage) {
    const size_t t0 = turn.tile * QUERIES, row = (b * p.NH + turn.h) * p.T;
    fetch_rows<HS, QUERIES>(query_tiles + stage * QUERIES * HS, q + query_offset(p, b, 0, turn.h), p.q_stride, t0, p.T);
    fetch_rows<HS, QUERIES>(dout_tiles + stage * QUERIES * HS, dout + out_offset(p, b, 0, turn.h), p.out_stride, t0, p.T);
    if (threadIdx.x < QUERIES) {
      const size_t t = t0 + threadIdx.x, at = stage * QUERIES + threadIdx.x;
      cp_async_4(&bases[at], t < p.T ? lse + row + t : lse, t < p.T);
      cp_async_4(&deltas[at], t < p.T ? delta + row - first_head * p.T + t : delta, t < p.T);
    }
    cp_async_commit();
  };
  auto advance = [&](Turn &turn) { if (++turn.tile == end) turn.tile = first, turn.h++; };
  fetch_rows<HS, FLASH_ROWS>(key_tile, k + key_offset(p, b, 0, kv_head), p.kv_stride, s0, p.S);
  fetch_rows<HS, FLASH_ROWS>(value_tile, v + key_offset(p, b, 0, kv_head), p.kv_stride, s0, p.S);
  float key_sum[HS / 8][4] = {}, value_sum[HS / 8][4] = {};
  fetch(now, 0);
  for (int stage = 0; now.h < (kv_head + 1) * group; now = next, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();
    advance(next);
    if (next.h < (kv_head + 1) * group) fetch(next, stage ^ 1);
    const size_t h = now.h, t0 = now.tile * QUERIES;
    float weight[QUERIES / 8][4], dp[QUERIES / 8][4];
    multiply_rows<HS, QUERIES>(weight, key_tile, warp * 16, query_tiles + stage * QUERIES * HS);
    multiply_rows<HS, QUERIES>(dp, value_tile, warp * 16, dout_tiles + stage * QUERIES * HS);
    auto query_of = [&](int j, int e) { return j * 8 + lane % 4 * 2 + e % 2; };
    auto visible = [&](int j, int e) {
      const size_t t = t0 + query_of(j, e), s = key + e / 2 * 8;
      if (t >= p.T) return false;
      const KeyRange range = visible_keys(p, b, t);
      return s >= range.begin && s < range.end;
    };
    auto base_of = [&](int j, int e) { return bases[stage * QUERIES + query_of(j, e)] * LOG2_E; };
    auto delta_of = [&](int j, int e) { return deltas[stage * QUERIES + query_of(j, e)]; };
    auto factor = [&](int j, int e) { return dropout_factor(p.dropout, dropout_row(p, b, t0 + query_of(j, e), h) + key + e / 2 * 8); };
    // Keys behind the last are rows that nobody reads; queries behind the last have weights 1 and rows of zeros.
    if (p.first_key || p.dropout.keep_threshold || (p.causal && t0 < s0 + FLASH_ROWS - 1)) weights_and_gradients<QUERIES, true>(weight, dp, p.scale, visible, base_of, delta_of, factor);
    else weights_and_gradients<QUERIES, false>(weight, dp, p.scale, visible, base_of, delta_of, factor);
    add_weighted_rows<HS, QUERIES>(value_sum, weight, dout_tiles + stage * QUERIES * HS);
    add_weighted_rows<HS, QUERIES>(key_sum, dp, query_tiles + stage * QUERIES * HS);
  }
  const size_t at = key_offset(p, b, 0, kv_head);
  put_rows<HS>(dk + at, p.kv_stride, s0 + warp * 16, p.S, key_sum, p.scale, p.scale);
  put_rows<HS>(dv + at, p.kv_stride, s0 + warp * 16, p.S, value_sum, 1, 1);
}
