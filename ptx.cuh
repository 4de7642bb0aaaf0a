// ptx.cuh: owns the few PTX instructions that CUDA C++ has no function for, each with its version for the emulator.
//
// The only file with inline assembly, and the only one that asks whether it is compiled for the emulator (CUDA_ON_CPU).
// All of them exist from sm_80 on. Tests: tests/test_ops.c and tests/test_attention.c with TEST_DEVICE=cuda-bf16, `make test-cuda`
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
