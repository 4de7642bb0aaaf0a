// cuda.cuh: owns what all kernels share: number types, 16-byte accesses, sums over warps and blocks, random numbers, gelu and silu.
//
// A kernel is a template over Real, the storage of weights and activations: float or bf16. It computes in float. Where it has
// a parameter W, it moves W neighbouring elements at once: 16 bytes of them where every address allows it, else one.
// Rules that the emulator (dev/cuda_on_cpu) and the hardware share: dynamic shared memory is called smem; a block is whole warps; warps
// leave together before an operation of the whole warp; there is no barrier behind an early return; no float atomics.
// Tests: tests/test_ops.c, tests/test_attention.c, tests/test_cuda.c
#pragma once
#include <cuda_bf16.h>      // __nv_bfloat16
#include <cuda_runtime.h>   // __device__, threadIdx
#include "ptx.cuh"          // exp2_fast, reciprocal_fast
#include <stdint.h>         // uint64_t

typedef __nv_bfloat16 bf16;
enum { WARP = 32 };
static const unsigned ALL_LANES = 0xffffffffu;
#define CEIL_DIV(a, b) (((a) + (b) - 1) / (b))
#define NEGATIVE_INFINITY (-__int_as_float(0x7f800000))

// ---- storage: float or bf16 in memory, float in registers ----

template <class Real> struct Wide { enum { WIDTH = 16 / sizeof(Real) }; };   // elements of a 16-byte access

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
template <class Real> __device__ __forceinline__ Real from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16(x); }   // to nearest even
// What x is after it was stored.
template <class Real> __device__ __forceinline__ float rounded(float x) { return to_float(from_float<Real>(x)); }

// The two halves of a word that pack_bf16 made.
__device__ __forceinline__ float low_bf16(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_bf16(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

static const uint32_t ONES_BF16 = 0x3f803f80u;   // two of them

// x[0..W) = p[0..W), and back to global memory; W = 1, or p is a multiple of 16 (of 8 for four bf16)
template <int W> __device__ __forceinline__ void load(float (&x)[W], const float *p) {
  if constexpr (W == 1) x[0] = p[0];
  else {
    #pragma unroll
    for (int i = 0; i < W; i += 4) {
      float4 q = *reinterpret_cast<const float4 *>(p + i);
      x[i] = q.x, x[i + 1] = q.y, x[i + 2] = q.z, x[i + 3] = q.w;
    }
  }
}
template <int W> __device__ __forceinline__ void load(float (&x)[W], const bf16 *p) {
  if constexpr (W == 1) x[0] = to_float(p[0]);
  else if constexpr (W == 4) {
    uint2 q = *reinterpret_cast<const uint2 *>(p);
    x[0] = low_bf16(q.x), x[1] = high_bf16(q.x), x[2] = low_bf16(q.y), x[3] = high_bf16(q.y);
  } else {
    static_assert(W == 8, "16 bytes");
    uint4 q = *reinterpret_cast<const uint4 *>(p);
    x[0] = low_bf16(q.x), x[1] = high_bf16(q.x), x[2] = low_bf16(q.y), x[3] = high_bf16(q.y);
    x[4] = low_bf16(q.z), x[5] = high_bf16(q.z), x[6] = low_bf16(q.w), x[7] = high_bf16(q.w);
  }
}
template <int W> __device__ __forceinline__ void store(float *p, const float (&x)[W]) {
  if constexpr (W == 1) p[0] = x[0];
  else {
    #pragma unroll
    for (int i = 0; i < W; i += 4) store_16(p + i, __float_as_uint(x[i]), __float_as_uint(x[i + 1]), __float_as_uint(x[i + 2]), __float_as_uint(x[i + 3]));
  }
}
template <int W> __device__ __forceinline__ void store(bf16 *p, const float (&x)[W]) {
  if constexpr (W == 1) p[0] = __float2bfloat16(x[0]);
  else if constexpr (W == 4) store_8(p, pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
  else {
    static_assert(W == 8, "16 bytes");
    store_16(p, pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
  }
}
// The same to shared memory.
__device__ __forceinline__ void put(float *p, const float (&x)[4]) { *reinterpret_cast<float4 *>(p) = make_float4(x[0], x[1], x[2], x[3]); }
__device__ __forceinline__ void put(bf16 *p, const float (&x)[8]) {
  *reinterpret_cast<uint4 *>(p) = make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}

// ---- places and sums ----

__device__ __forceinline__ size_t global_thread() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }

// Every lane receives the sum (the largest) over the warp: a fixed tree, so the same bits each time.
template <class T> __device__ __forceinline__ T warp_sum(T x) {
  #pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
  return x;
}
// A NaN among the lanes makes the result NaN: fmaxf would hide it.
__device__ __forceinline__ float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }
__device__ __forceinline__ float warp_max(float x) {
  #pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x = max_or_nan(x, __shfl_xor_sync(ALL_LANES, x, distance));
  return x;
}

// Every thread receives the sum over the block, warps in order. Once in a kernel: before a second call all must have read the first one's parts.
template <class T> __device__ T block_sum(T x) {
  __shared__ T part[32];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  x = warp_sum(x);
  if (lane == 0) part[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? part[lane] : (T)0);
}
__device__ inline float block_max(float x) {
  __shared__ float part[32];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  x = warp_max(x);
  if (lane == 0) part[warp] = x;
  __syncthreads();
  return warp_max(part[lane % warps]);
}

// ---- random numbers: rng.h's Philox 4x32-10, the same words ----

struct Words { uint32_t v[4]; };
// Words 4*block .. 4*block+3 of the stream (seed, step, site).
__device__ __forceinline__ Words random_block(uint64_t seed, uint32_t step, uint32_t site, uint64_t block) {
  uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = site, c3 = step, k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  #pragma unroll
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c0 = n0, c1 = (uint32_t)p1, c2 = n2, c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// device.h's Dropout as kernels take it.
struct DropoutKey { uint64_t seed; uint32_t step, site, keep_threshold; float scale; };   // scale 1/(1-p); threshold 0: nothing is dropped
// What element e of the stream is multiplied by.
__device__ __forceinline__ float dropout_factor(const DropoutKey &key, uint64_t e) {
  if (key.keep_threshold == 0) return 1;
  Words words = random_block(key.seed, key.step, key.site, e / 4);
  const uint32_t word = e % 4 == 0 ? words.v[0] : e % 4 == 1 ? words.v[1] : e % 4 == 2 ? words.v[2] : words.v[3];   // no indexed registers
  return word >= key.keep_threshold ? key.scale : 0;
}

// ---- gelu(x) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3); silu(x) = x sigmoid(x) ----
// Where the result is stored in bf16, 2^x and 1/x to 2^-22 are enough.

template <class Real> __device__ __forceinline__ float sigmoid(float x) {
  return sizeof(Real) == 2 ? reciprocal_fast(1 + exp2_fast(-1.4426950408889634f * x)) : 1 / (1 + expf(-x));
}
template <class Real> __device__ __forceinline__ float sigmoid_product(float x, float z) { return sizeof(Real) == 2 ? x * sigmoid<Real>(z) : x / (1 + expf(-z)); }
__device__ __forceinline__ float twice_u(float x) { return 1.5957691216057308f * (x + 0.044715f * x * x * x); }
template <class Real> __device__ __forceinline__ float gelu(float x) { return sigmoid_product<Real>(x, twice_u(x)); }
template <class Real> __device__ __forceinline__ float silu(float x) { return sigmoid_product<Real>(x, x); }
// s + x s (1-s) z', of x s(z); where s (1-s) has vanished, so has the product, however large x z' is
template <class Real> __device__ __forceinline__ float sigmoid_product_derivative(float x, float z, float slope) {
  const float s = sigmoid<Real>(z), bell = s * sigmoid<Real>(-z);
  return bell == 0 ? s : s + x * bell * slope;
}
template <class Real> __device__ __forceinline__ float gelu_derivative(float x) {
  return sigmoid_product_derivative<Real>(x, twice_u(x), 1.5957691216057308f * (1 + 3 * 0.044715f * x * x));
}
template <class Real> __device__ __forceinline__ float silu_derivative(float x) { return sigmoid_product_derivative<Real>(x, x, 1); }
