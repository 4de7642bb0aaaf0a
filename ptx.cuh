// ptx.cuh: owns the few PTX instructions that CUDA C++ has no function for, each with its version for the emulator.
//
// The only file with inline assembly, and the only one that asks whether it is compiled for the emulator (CUDA_ON_CPU).
// All of them exist from sm_80 on, but for wgmma, which sm_90a alone has. Tests: tests/test_ops.c and tests/test_attention.c with TEST_DEVICE=cuda-bf16, `make test-cuda`
#pragma once
#include <cuda_bf16.h>      // __nv_bfloat16
#include <cuda_runtime.h>   // __device__
#include <stdint.h>         // uint32_t

#ifndef CUDA_ON_CPU
__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
#endif

// Copies 16 bytes from global to shared memory without passing through registers; both addresses are multiples of 16.
// valid = false writes zeros and reads nothing. The bytes may be read after cp_async_wait and a barrier.
__device__ __forceinline__ void cp_async_16(void *to_shared, const void *from_global, bool valid) {
#ifdef CUDA_ON_CPU
  cuemu::cp_async(to_shared, from_global, 16, valid ? 16 : 0);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to_shared)), "l"(from_global), "r"(valid ? 16 : 0) : "memory");
#endif
}

// The same of 4 bytes.
__device__ __forceinline__ void cp_async_4(void *to_shared, const void *from_global, bool valid) {
#ifdef CUDA_ON_CPU
  cuemu::cp_async(to_shared, from_global, 4, valid ? 4 : 0);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(to_shared)), "l"(from_global), "r"(valid ? 4 : 0) : "memory");
#endif
}

// 16 (8) bytes to global memory in one access; the address is a multiple of that. By hand, for the compiler takes the assignment of
// a vector apart and writes its words one by one: four times the requests.
__device__ __forceinline__ void store_16(void *global, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#ifdef CUDA_ON_CPU
  *reinterpret_cast<uint4 *>(global) = make_uint4(a, b, c, d);
#else
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};\n" ::"l"(__cvta_generic_to_global(global)), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
#endif
}
__device__ __forceinline__ void store_8(void *global, uint32_t a, uint32_t b) {
#ifdef CUDA_ON_CPU
  *reinterpret_cast<uint2 *>(global) = make_uint2(a, b);
#else
  asm volatile("st.global.v2.b32 [%0], {%1,%2};\n" ::"l"(__cvta_generic_to_global(global)), "r"(a), "r"(b) : "memory");
#endif
}

// Closes a group of copies of this thread.
__device__ __forceinline__ void cp_async_commit() {
#ifdef CUDA_ON_CPU
  cuemu::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most N of this thread's closed groups are still in flight.
template <int N> __device__ __forceinline__ void cp_async_wait() {
#ifdef CUDA_ON_CPU
  cuemu::cp_async_wait(N);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
#endif
}

// Loads four 8x8 matrices of bf16 from shared memory. Lane l gives the address of row l%8 of matrix l/8 (a multiple of 16);
// lane l receives elements (l/4, l%4*2) and the next of each matrix, in r[0..3].
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
#ifdef CUDA_ON_CPU
  cuemu::LdMatrix x{row, r, 4, false};
  cuemu::ldmatrix(&x, __FILE__, __LINE__);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}

// The same, each matrix transposed on its way: lane l receives elements (l%4*2, l/4) and the one below.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void *row) {
#ifdef CUDA_ON_CPU
  cuemu::LdMatrix x{row, r, 4, true};
  cuemu::ldmatrix(&x, __FILE__, __LINE__);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}

// d += a b on the tensor cores: a is 16x16 (rows, k), b is 16x8 (k, columns), bf16; d is 16x8, fp32. Lane l holds
//   a[0], a[1], a[2], a[3]: elements (l/4, l%4*2), (l/4+8, same), (l/4, l%4*2+8), (l/4+8, same), and the next along k of each
//   b0, b1: elements (l%4*2, l/4), (l%4*2+8, l/4), and the next along k of each
//   d[0..3]: elements (l/4, l%4*2), (l/4, l%4*2+1), (l/4+8, l%4*2), (l/4+8, l%4*2+1)
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef CUDA_ON_CPU
  uint32_t b[2] = {b0, b1};
  cuemu::Mma x{d, a, b, d};
  cuemu::mma_m16n8k16_bf16(&x, __FILE__, __LINE__);
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// ---- wgmma: four warps multiply tiles that lie in shared memory, while their threads go on (PTX ISA 8.0 and up, sm_90a) ----

#if defined(CUDA_ON_CPU) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0   // the functions are there and trap, so that one source serves all targets; `--gemm wgmma` asks a kernel before it uses them
#endif

// What wgmma knows of an operand: where it begins, in which layout. Shared memory holds it in lines of 128 bytes (64 bf16), eight lines to a
// block of 1,024 bytes that begins at a multiple of that; chunk c of 16 bytes of line r lies at place c ^ r%8 of it ("128-byte swizzle").
//   k side by side:      a line is a row (m or n); group: bytes from 8 rows to the next 8; panel is not used
//   m or n side by side: a line is 64 of them, of one k; group: bytes from 8 k to the next 8; panel: from 64 of them to the next 64
__device__ __forceinline__ uint64_t wgmma_operand(const void *shared, int panel, int group) {
#ifdef CUDA_ON_CPU
  const uint64_t address = cuemu::shared_address(shared);
#else
  const uint64_t address = shared_address(shared);
#endif
  return (address & 0x3ffff) >> 4 | (uint64_t)(panel >> 4) << 16 | (uint64_t)(group >> 4) << 32 | 1ull << 62;
}

// Keeps the compiler from moving reads and writes of sums past this point: what wgmma does with them, it does not see.
template <int ROWS, int COLUMNS> __device__ __forceinline__ void keep_sums_here(float (&d)[ROWS][COLUMNS][4]) {
#ifdef CUDA_ON_CPU
  (void)d;
#else
  #pragma unroll
  for (int i = 0; i < ROWS; i++)
    #pragma unroll
    for (int j = 0; j < COLUMNS; j++)
      #pragma unroll
      for (int e = 0; e < 4; e++) asm volatile("" : "+f"(d[i][j][e])::"memory");
#endif
}

// What this thread wrote to shared memory (cp.async that it has waited for, too) becomes visible to wgmma, which reads by another way. By the
// writers, before the barrier that lets the readers go on.
__device__ __forceinline__ void shared_writes_to_wgmma() {
#ifdef CUDA_ON_CPU
  cuemu::async_proxy_fence();
#elif HAS_WGMMA
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

// Before the first wgmma, and whenever registers of sums were touched in between.
__device__ __forceinline__ void wgmma_fence() {
#ifdef CUDA_ON_CPU
  cuemu::wgmma_fence(__FILE__, __LINE__);
#elif HAS_WGMMA
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}

// Closes a group of products of this warp.
__device__ __forceinline__ void wgmma_commit() {
#ifdef CUDA_ON_CPU
  cuemu::wgmma_commit(__FILE__, __LINE__);
#elif HAS_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#endif
}

// Waits until at most N groups are still under way: of the others sums may be read, and tiles overwritten.
template <int N> __device__ __forceinline__ void wgmma_wait() {
#ifdef CUDA_ON_CPU
  cuemu::wgmma_wait(N, __FILE__, __LINE__);
#elif HAS_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
#endif
}

// d += a b: a is 64 x 16 (rows, k), b is 16 x 128 (k, columns), bf16, both in shared memory; d is 64 x 128, fp32. Warp w of the four holds rows 16 w
// to 16 w + 15 of d, lane l of it in d[j]: elements (l/4, 8 j + l%4*2) and the next column, and the same 8 rows below. K_SIDE: k side by side.
template <bool A_K_SIDE, bool B_K_SIDE> __device__ __forceinline__ void wgmma_bf16(float (&d)[16][4], uint64_t a, uint64_t b) {
#ifdef CUDA_ON_CPU
  cuemu::Wgmma x{d, a, b, !A_K_SIDE, !B_K_SIDE};
  cuemu::wgmma_m64n128k16_bf16(&x, __FILE__, __LINE__);
#elif HAS_WGMMA
#define SUMS(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
               "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
               "%64, %65, p, 1, 1, %66, %67;\n}\n"
               : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7), SUMS(8), SUMS(9), SUMS(10), SUMS(11), SUMS(12), SUMS(13), SUMS(14), SUMS(15)
               : "l"(a), "l"(b), "n"(A_K_SIDE ? 0 : 1), "n"(B_K_SIDE ? 0 : 1) : "memory");
#undef SUMS
#else
  (void)d, (void)a, (void)b;
  __trap();
#endif
}

// 2^x, relative error 2^-22 (PTX ISA, ex2.approx), denormal results are zero: enough where bf16 comes next. -inf gives 0, NaN gives NaN.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef CUDA_ON_CPU
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// 1/x, one unit in the last place (PTX ISA, rcp.approx); infinity gives 0, NaN gives NaN.
__device__ __forceinline__ float reciprocal_fast(float x) {
#ifdef CUDA_ON_CPU
  return 1 / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Two floats to bf16, to nearest even, the first in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef CUDA_ON_CPU
  return (uint32_t)__bfloat16_as_ushort(__float2bfloat16(low)) | (uint32_t)__bfloat16_as_ushort(__float2bfloat16(high)) << 16;
#else
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#endif
}
