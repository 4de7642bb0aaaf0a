// cuda_runtime.h: owns the CUDA language and run-time interface for a host compiler, so that kernels run on this machine's CPU.
//
// The .cu stays plain CUDA. One rule rewrites the launches on their way to the compiler (cuda.mk):
//     kernel<<<grid, block, smem, stream>>>(a, b);   ->   kernel<<cuda_launch(grid, block, smem, stream)(a, b);
// A CUDA thread is a fiber (emulator.cpp). __shared__ is thread_local: a thread of this machine runs one block at a time.
// What is here is what the project's kernels use; add what yours need. Tests: tests/cuda_on_cpu.sh
#pragma once
#define CUDA_ON_CPU 1
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>

// ---- language ----------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ thread_local                 // block scope: implies static; also fits `extern __shared__ T smem[]`
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
#define CUEMU_VEC(T, N, A2, A4)                                                                     \
    struct alignas(A2) N##2 { T x, y; };  struct N##3 { T x, y, z; };  struct alignas(A4) N##4 { T x, y, z, w; }; \
    inline N##2 make_##N##2(T x, T y) { return {x, y}; }                                            \
    inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUEMU_VEC(float, float, 8, 16)
CUEMU_VEC(int, int, 8, 16)
CUEMU_VEC(unsigned short, ushort, 4, 8)
struct alignas(8)  uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) double2 { double x, y; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace cuemu {
struct Tls { uint3 threadIdx, blockIdx, blockDim, gridDim; };
extern __thread Tls tls;                        // __thread, not thread_local: no wrapper for dynamic initialisation
}
#define threadIdx (cuemu::tls.threadIdx)
#define blockIdx  (cuemu::tls.blockIdx)
#define blockDim  (cuemu::tls.blockDim)
#define gridDim   (cuemu::tls.gridDim)
static constexpr int warpSize = 32;

// ---- barriers and warp-wide operations ---------------------------------------------------------
#define CUEMU_WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
namespace cuemu {
// Each participating lane hands in a pointer to its own slot (it lives on the lane's fiber stack);
// the last lane to arrive runs `combine` once for the whole warp.  slot[l] is null if l is not in mask.
typedef void (*Combine)(void **slot, unsigned mask);
void warp_collective(unsigned mask, const char *what, Combine combine, void *slot, const char *file, int line);
int  block_barrier(int pred, const char *what, const char *file, int line);   // returns number of pred != 0
void warp_sync(unsigned mask, const char *file, int line);
[[noreturn]] void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int  lane();
// hooks of the checked build (weak no-ops otherwise)
void note_read(const void *p, size_t n, int lane, const void *pc);
void note_write(const void *p, size_t n, int lane, const void *pc);
bool in_shared(const void *p, size_t n);
bool in_device(const void *p, size_t n);

struct Shfl { uint64_t v, out; int src; };
void shfl_combine(void **slot, unsigned mask);
template <class T> T shfl(unsigned mask, T v, int src, const char *what, const char *file, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "shfl type");
    Shfl s{0, 0, src};
    memcpy(&s.v, &v, sizeof v);
    warp_collective(mask, what, shfl_combine, &s, file, line);
    memcpy(&v, &s.out, sizeof v);
    return v;
}
struct Vote { bool p; unsigned ballot; };
void vote_combine(void **slot, unsigned mask);
inline unsigned ballot(unsigned mask, bool p, const char *what, const char *file, int line) {
    Vote v{p, 0};
    warp_collective(mask, what, vote_combine, &v, file, line);
    return v.ballot;
}
}
inline void __syncthreads(CUEMU_WHERE) { cuemu::block_barrier(0, "__syncthreads", file, line); }
inline int __syncthreads_or(int p, CUEMU_WHERE) { return cuemu::block_barrier(p, "__syncthreads_or", file, line) != 0; }
inline int __syncthreads_count(int p, CUEMU_WHERE) { return cuemu::block_barrier(p, "__syncthreads_count", file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, CUEMU_WHERE) { cuemu::warp_sync(mask, file, line); }
template <class T> T __shfl_sync(unsigned mask, T v, int src, int width = 32, CUEMU_WHERE) {
    int l = cuemu::lane();
    return cuemu::shfl(mask, v, (l & ~(width - 1)) | (src & (width - 1)), "__shfl_sync", file, line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int m, int width = 32, CUEMU_WHERE) {
    int l = cuemu::lane(), s = l ^ m;
    return cuemu::shfl(mask, v, (s & ~(width - 1)) > (l & ~(width - 1)) ? -1 : s, "__shfl_xor_sync", file, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned d, int width = 32, CUEMU_WHERE) {
    int l = cuemu::lane();
    return cuemu::shfl(mask, v, (l & (width - 1)) + (int)d < width ? l + (int)d : -1, "__shfl_down_sync", file, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned d, int width = 32, CUEMU_WHERE) {
    int l = cuemu::lane();
    return cuemu::shfl(mask, v, (l & (width - 1)) >= (int)d ? l - (int)d : -1, "__shfl_up_sync", file, line);
}
inline unsigned __ballot_sync(unsigned m, int p, CUEMU_WHERE) { return cuemu::ballot(m, p, "__ballot_sync", file, line); }
inline int __any_sync(unsigned m, int p, CUEMU_WHERE) { return cuemu::ballot(m, p, "__any_sync", file, line) != 0; }
inline int __all_sync(unsigned m, int p, CUEMU_WHERE) { return cuemu::ballot(m, !p, "__all_sync", file, line) == 0; }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// ---- atomics (out of line: the instrumented build must not see the plain accesses) --------------
float atomicAdd(float *p, float v);
double atomicAdd(double *p, double v);
int atomicAdd(int *p, int v);
unsigned atomicAdd(unsigned *p, unsigned v);
unsigned long long atomicAdd(unsigned long long *p, unsigned long long v);
int atomicMax(int *p, int v);
unsigned atomicMax(unsigned *p, unsigned v);
int atomicCAS(int *p, int cmp, int v);
unsigned atomicCAS(unsigned *p, unsigned cmp, unsigned v);
unsigned atomicExch(unsigned *p, unsigned v);
unsigned atomicOr(unsigned *p, unsigned v);
unsigned atomicInc(unsigned *p, unsigned wrap);

// ---- scalar intrinsics -------------------------------------------------------------------------
template <class To, class From> inline To cuemu_bits(From f) { static_assert(sizeof(To) == sizeof(From), ""); To t; memcpy(&t, &f, sizeof t); return t; }
inline unsigned __float_as_uint(float f) { return cuemu_bits<unsigned>(f); }
inline float __uint_as_float(unsigned u) { return cuemu_bits<float>(u); }
inline int __float_as_int(float f) { return cuemu_bits<int>(f); }
inline float __int_as_float(int u) { return cuemu_bits<float>(u); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.f / a; }
inline float __frsqrt_rn(float a) { return 1.f / sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float rsqrtf(float a) { return 1.f / sqrtf(a); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
#define CUEMU_MINMAX(T) inline T min(T a, T b) { return b < a ? b : a; } inline T max(T a, T b) { return a < b ? b : a; }
CUEMU_MINMAX(int) CUEMU_MINMAX(unsigned) CUEMU_MINMAX(long) CUEMU_MINMAX(unsigned long) CUEMU_MINMAX(long long) CUEMU_MINMAX(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
template <class T> inline T __ldg(const T *p) { return *p; }
template <class T> inline T __ldcs(const T *p) { return *p; }
template <class T> inline T __ldcg(const T *p) { return *p; }
template <class T> inline void __stcs(T *p, T v) { *p = v; }
template <class T> inline void __stcg(T *p, T v) { *p = v; }

// ---- bf16 --------------------------------------------------------------------------------------
inline unsigned short cuemu_f2bf(float f) {                              // round to nearest even
    unsigned u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;                  // NaN, as cuda_bf16.h
    return (unsigned short)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
struct alignas(2) __nv_bfloat16 {
    unsigned short __x;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) : __x(cuemu_f2bf(f)) {}
    __nv_bfloat16(double f) : __x(cuemu_f2bf((float)f)) {}
    __nv_bfloat16(int f) : __x(cuemu_f2bf((float)f)) {}
    operator float() const { return __uint_as_float((unsigned)__x << 16); }
};
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
inline float __bfloat162float(__nv_bfloat16 a) { return (float)a; }
inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.__x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { __nv_bfloat16 r; r.__x = u; return r; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16(a), __nv_bfloat16(b)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 a) { return {(float)a.x, (float)a.y}; }
inline __nv_bfloat16 __hadd(__nv_bfloat16 a, __nv_bfloat16 b) { return __nv_bfloat16((float)a + (float)b); }
inline __nv_bfloat16 __hmul(__nv_bfloat16 a, __nv_bfloat16 b) { return __nv_bfloat16((float)a * (float)b); }
inline __nv_bfloat16 operator+(__nv_bfloat16 a, __nv_bfloat16 b) { return __hadd(a, b); }
inline __nv_bfloat16 operator*(__nv_bfloat16 a, __nv_bfloat16 b) { return __hmul(a, b); }
inline __nv_bfloat16 operator-(__nv_bfloat16 a, __nv_bfloat16 b) { return __nv_bfloat16((float)a - (float)b); }

// ---- asynchronous copies and tensor-core operations, called from ptx.cuh ------------------------
namespace cuemu {
void cp_async(void *dst_shared, const void *src_global, int bytes, int src_bytes);
void cp_async_commit();
void cp_async_wait(int keep);
struct LdMatrix { const void *row; uint32_t *r; int n; bool trans; const void *pc = nullptr; };
void ldmatrix(LdMatrix *x, const char *file, int line);
struct Mma { float *d; const uint32_t *a, *b; const float *c; };
void mma_m16n8k16_bf16(Mma *x, const char *file, int line);
struct Wgmma { float (*d)[4]; uint64_t a, b; bool a_transposed, b_transposed; const void *pc = nullptr; };
uint64_t shared_address(const void *p);
void async_proxy_fence();
void wgmma_m64n128k16_bf16(Wgmma *x, const char *file, int line);
void wgmma_fence(const char *file, int line);
void wgmma_commit(const char *file, int line);
void wgmma_wait(int keep, const char *file, int line);
}

// ---- runtime API -------------------------------------------------------------------------------
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9,
                   cudaErrorInvalidDevicePointer = 17, cudaErrorNoDevice = 100, cudaErrorInvalidDevice = 101,
                   cudaErrorInvalidResourceHandle = 400, cudaErrorNotReady = 600 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed };
struct CUstream_st; struct CUevent_st; struct CUgraph_st;
typedef CUstream_st *cudaStream_t; typedef CUevent_st *cudaEvent_t; typedef CUgraph_st *cudaGraph_t; typedef CUgraph_st *cudaGraphExec_t;
#define cudaStreamNonBlocking 1
#define cudaEventDisableTiming 2
struct cudaDeviceProp {
    char name[256]; size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin; int multiProcessorCount, maxThreadsPerMultiProcessor, major, minor, warpSize, maxThreadsPerBlock, l2CacheSize;
};
const char *cudaGetErrorString(cudaError_t);
const char *cudaGetErrorName(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cuemu_malloc(void **p, size_t n);
template <class T> cudaError_t cudaMalloc(T **p, size_t n) { return cuemu_malloc((void **)p, n); }
cudaError_t cudaFree(void *p);
template <class T> cudaError_t cudaMallocHost(T **p, size_t n) { return (*p = (T *)malloc(n)) ? cudaSuccess : cudaErrorMemoryAllocation; }
inline cudaError_t cudaFreeHost(void *p) { free(p); return cudaSuccess; }
cudaError_t cudaMemcpy(void *d, const void *s, size_t n, cudaMemcpyKind k);
cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, cudaMemcpyKind k, cudaStream_t st = nullptr);
cudaError_t cudaMemset(void *d, int v, size_t n);
cudaError_t cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t st = nullptr);
cudaError_t cudaMemGetInfo(size_t *free_, size_t *total);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int d);
cudaError_t cudaGetDevice(int *d);
#define CUDART_VERSION 13000
enum cudaDeviceAttr { cudaDevAttrClockRate = 13 };
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
inline cudaError_t cudaDriverGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int d);
cudaError_t cudaStreamCreate(cudaStream_t *s);
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags = 0);
cudaError_t cudaEventCreate(cudaEvent_t *e);
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventQuery(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode m);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t g);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x);
cudaError_t cuemu_func_set_attribute(const void *f, cudaFuncAttribute a, int v);
template <class F> cudaError_t cudaFuncSetAttribute(F *f, cudaFuncAttribute a, int v) { return cuemu_func_set_attribute((const void *)f, a, v); }
template <class T> cudaError_t cudaMemcpyToSymbol(T &sym, const void *s, size_t n, size_t off = 0) { memcpy((char *)&sym + off, s, n); return cudaSuccess; }

// ---- launches ----------------------------------------------------------------------------------
namespace cuemu {
typedef void (*Invoke)(const void *fn, const void *args);
typedef void (*ParamPtrs)(const void *args, const void **ptrs);
struct Launch { const void *fn; dim3 grid, block; size_t smem; cudaStream_t stream; size_t args_size; Invoke invoke; ParamPtrs params; };
void launch(const Launch &l, std::function<const void *()> args_ptr);
void submit(cudaStream_t s, std::function<void()> work);              // put work on a stream
// Work that others do: begun when its turn comes; what stands behind it on the stream waits until done() says so. Both are called by the host's thread.
void submit_to_others(cudaStream_t s, std::function<void()> begin, std::function<bool()> done);
template <class... A> struct Call { dim3 grid, block; size_t smem; cudaStream_t stream; std::tuple<A...> args; };
struct Config {
    dim3 grid, block; size_t smem; cudaStream_t stream;
    template <class... A> Call<A &&...> operator()(A &&...a) const { return {grid, block, smem, stream, std::tuple<A &&...>(std::forward<A>(a)...)}; }
};
template <class... P, class... A> void operator<<(void (*kernel)(P...), Call<A...> &&c) {
    static_assert(sizeof...(P) == sizeof...(A), "kernel launched with the wrong number of arguments");
    auto args = std::make_shared<std::tuple<P...>>(std::move(c.args));   // copied at launch, as CUDA does
    launch({(const void *)kernel, c.grid, c.block, c.smem, c.stream, sizeof *args,
            [](const void *fn, const void *p) { std::apply((void (*)(P...))fn, *(const std::tuple<P...> *)p); },
            [](const void *p, const void **out) { std::apply([&](const P &...x) { int i = 0; ((out[i++] = &x), ...); (void)i; (void)out; }, *(const std::tuple<P...> *)p); }},
           [args]() -> const void * { return args.get(); });
}
}
inline cuemu::Config cuda_launch(dim3 g, dim3 b, size_t smem = 0, cudaStream_t s = nullptr) { return {g, b, smem, s}; }
