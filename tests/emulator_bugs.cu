// emulator_bugs.cu: owns planted bugs, one typical CUDA mistake each, to test that the emulator notices them (tests/cuda_on_cpu.sh).
//
//   emulator_bugs          lists the cases: number, builds that must notice it, name
//   emulator_bugs NUMBER   runs one: exit 0 nothing noticed, 1 a wrong result (or a launch error), else a diagnosis of the emulator
// Builds: f plain forward, r plain reverse, x plain random order, l lazy streams, c checked (C: a diagnosis that names the line), p as PTX in random order.
#include "cuda.cuh"   // bf16, ALL_LANES
#include "ptx.cuh"    // cp.async, ldmatrix, wgmma
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 256 };
typedef float (*Value)(int i);

static float *memory(int n) {   // n floats on the device, zero
  float *p;
  cudaMalloc(&p, n * sizeof(float));
  cudaMemset(p, 0, n * sizeof(float));
  return p;
}
static float *filled(int n, Value value) {
  float *host = (float *)malloc(n * sizeof(float)), *p = memory(n);
  for (int i = 0; i < n; i++) host[i] = value(i);
  cudaMemcpy(p, host, n * sizeof(float), cudaMemcpyHostToDevice);
  free(host);
  return p;
}
static bool is(const float *device, int n, Value value) {
  float *host = (float *)malloc(n * sizeof(float));
  cudaMemcpy(host, device, n * sizeof(float), cudaMemcpyDeviceToHost);
  bool same = true;
  for (int i = 0; i < n; i++) same = same && host[i] == value(i);
  free(host);
  return same;
}
static float number(int i) { return (float)i; }

// ---- no bug ----

__global__ void writer(float *out) { out[threadIdx.x] = (float)threadIdx.x; }
static bool control() { float *o = memory(N); writer<<<1, N>>>(o); return is(o, N, number); }

// ---- barriers ----

__global__ void reads_next(float *out) { __shared__ float s[N]; const int t = threadIdx.x; s[t] = (float)t; out[t] = s[(t + 1) % N]; }
static bool barrier_towards_next() { float *o = memory(N); reads_next<<<1, N>>>(o); return is(o, N, [](int i) { return (float)((i + 1) % N); }); }

__global__ void reads_previous(float *out) { __shared__ float s[N]; const int t = threadIdx.x; s[t] = (float)t; out[t] = s[t ? t - 1 : 0]; }
static bool barrier_towards_previous() { float *o = memory(N); reads_previous<<<1, N>>>(o); return is(o, N, [](int i) { return (float)(i ? i - 1 : 0); }); }

__global__ void writes_too_early(float *out) {   // no barrier before the next round's write
  __shared__ float part[8];
  const int t = threadIdx.x;
  float sum = 0;
  for (int round = 0; round < 4; round++) {
    if (t % 32 == 0) part[t / 32] = (float)round;
    __syncthreads();
    for (int i = 0; i < 8; i++) sum += part[i];
  }
  out[t] = sum;
}
static bool barrier_before_writing_again() { float *o = memory(N); writes_too_early<<<1, N>>>(o); return is(o, N, [](int) { return 48.0f; }); }

__global__ void two_barriers(float *out) {
  __shared__ float s[N];
  const int t = threadIdx.x;
  s[t] = (float)t;
  if (t < 128) __syncthreads();
  out[t] = s[t];
  if (t >= 128) __syncthreads();
}
static bool divergent_barrier() { float *o = memory(N); two_barriers<<<1, N>>>(o); return is(o, N, number); }

__global__ void leaves_before(float *out, int n) {
  __shared__ float s[N];
  const int t = threadIdx.x;
  if (t >= n) return;
  s[t] = (float)t;
  __syncthreads();
  out[t] = s[t];
}
static bool exit_before_barrier() { float *o = memory(N); leaves_before<<<1, N>>>(o, 250); return is(o, 250, number); }

__global__ void swaps_without_syncwarp(float *out) { __shared__ float s[N]; const int t = threadIdx.x; s[t] = (float)t; out[t] = s[t ^ 1]; }
static bool missing_syncwarp() { float *o = memory(N); swaps_without_syncwarp<<<1, N>>>(o); return is(o, N, [](int i) { return (float)(i ^ 1); }); }

__global__ void loss_after_gradient(float *logits, float *loss, int target) {   // the logit is overwritten before thread 0 reads it
  const float x = logits[threadIdx.x];
  logits[threadIdx.x] = -1;
  if (threadIdx.x == 0) loss[0] = logits[target];
  if (x < -2) loss[0] = x;
}
static bool missing_barrier_in_place() { float *x = filled(N, number), *l = memory(1); loss_after_gradient<<<1, N>>>(x, l, 200); return is(l, 1, [](int) { return 200.0f; }); }

// ---- the warp ----

__global__ void shuffle_in_branch(float *out) {
  const int t = threadIdx.x;
  float v = (float)t;
  if (t % 32 < 16) v = __shfl_sync(ALL_LANES, v, t % 32);
  out[t] = v;
  __syncwarp();
}
static bool shuffle_of_half_a_warp() { float *o = memory(N); shuffle_in_branch<<<1, N>>>(o); return is(o, N, number); }

__global__ void wrong_mask(float *out) { const int t = threadIdx.x; out[t] = __shfl_sync(0xffffu, (float)t, t % 32); }
static bool lane_not_in_mask() { float *o = memory(N); wrong_mask<<<1, N>>>(o); return is(o, 16, number); }

__global__ void shuffle_from_absent(float *out) { const int t = threadIdx.x; if (t < 16) out[t] = __shfl_sync(0xffffu, (float)t, t + 8); }
static bool shuffle_from_a_lane_that_is_absent() { float *o = memory(N); shuffle_from_absent<<<1, 32>>>(o); return is(o, 8, [](int i) { return i + 8.0f; }) && is(o + 8, 8, [](int i) { return i + 16.0f; }); }

__global__ void matrix_of_odd_rows(float *out) {
  __shared__ __align__(16) bf16 s[32 * 12];   // rows of 24 bytes
  const int t = threadIdx.x;
  for (int i = t; i < 32 * 12; i += 32) s[i] = __float2bfloat16(1);
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, s + t * 12);
  out[t] = low_bf16(r[0]);
}
static bool ldmatrix_misaligned() { float *o = memory(32); matrix_of_odd_rows<<<1, 32>>>(o); return is(o, 32, [](int) { return 1.0f; }); }

// ---- cp.async ----

__global__ void no_wait(float *out, const float *x) {
  __shared__ __align__(16) float s[4 * N];
  const int t = threadIdx.x;
  cp_async_16(s + 4 * t, x + 4 * t, true);
  cp_async_commit();
  __syncthreads();
  out[t] = s[4 * t];
}
static bool copy_without_wait() { float *o = memory(N), *x = filled(4 * N, number); no_wait<<<1, N>>>(o, x); return is(o, N, [](int i) { return 4.0f * i; }); }

__global__ void no_barrier_after_wait(float *out, const float *x) {
  __shared__ __align__(16) float s[4 * N];
  const int t = threadIdx.x;
  cp_async_16(s + 4 * t, x + 4 * t, true);
  cp_async_commit();
  cp_async_wait<0>();
  out[t] = s[(4 * t + 4) % (4 * N)];
}
static bool copy_without_barrier() { float *o = memory(N), *x = filled(4 * N, number); no_barrier_after_wait<<<1, N>>>(o, x); return is(o, N, [](int i) { return (float)((4 * i + 4) % (4 * N)); }); }

__global__ void copies_over_readers(float *out, const float *x) {
  __shared__ __align__(16) float s[4 * N];
  const int t = threadIdx.x;
  float sum = 0;
  for (int round = 0; round < 2; round++) {
    cp_async_16(s + 4 * t, x + round * 4 * N + 4 * t, true);   // others may still read the last round's
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    sum += s[(4 * t + 148) % (4 * N)];
  }
  out[t] = sum;
}
static bool copy_over_what_is_read() {
  float *o = memory(N), *x = filled(8 * N, number);
  copies_over_readers<<<1, N>>>(o, x);
  return is(o, N, [](int i) { return 2.0f * ((4 * i + 148) % (4 * N)) + 4 * N; });
}

// ---- bounds, alignment, what was never written ----

__global__ void writes_one_over(float *out) { out[threadIdx.x + 1] = (float)threadIdx.x; }
static bool global_write_out_of_bounds() { float *o = memory(N); writes_one_over<<<1, N>>>(o); return is(o + 1, N - 1, number); }

__global__ void reads_one_over(float *out, const float *x) { out[threadIdx.x] = x[threadIdx.x + 1]; }
static bool global_read_out_of_bounds() { float *o = memory(N), *x = filled(N, number); reads_one_over<<<1, N>>>(o, x); return is(o, N - 1, [](int i) { return i + 1.0f; }); }

__global__ void shared_one_over(float *out) {
  __shared__ float s[N];
  __shared__ float behind[N];
  const int t = threadIdx.x;
  s[t + 1] = (float)t, behind[t] = (float)t;
  __syncthreads();
  out[t] = behind[t] + 0 * s[t];
}
static bool static_shared_out_of_bounds() { float *o = memory(N); shared_one_over<<<1, N>>>(o); return is(o + 1, N - 1, [](int i) { return i + 1.0f; }); }

__global__ void dynamic_shared_too_small(float *out) {
  extern __shared__ __align__(1024) unsigned char smem[];
  float *s = reinterpret_cast<float *>(smem);
  const int t = threadIdx.x;
  s[t] = (float)t;
  __syncthreads();
  out[t] = s[t];
}
static bool dynamic_shared_out_of_bounds() { float *o = memory(N); dynamic_shared_too_small<<<1, N, N * sizeof(float) - 16>>>(o); return is(o, N, number); }

__global__ void odd_float4(float *out, const float *x) { const float4 v = *reinterpret_cast<const float4 *>(x + 4 * threadIdx.x + 1); out[threadIdx.x] = v.x + v.y + v.z + v.w; }
static bool misaligned_float4() { float *o = memory(N), *x = filled(8 * N, number); odd_float4<<<1, N>>>(o, x); return is(o, N, [](int i) { return 16.0f * i + 10; }); }

__global__ void first_is_missing(float *out) { __shared__ float s[N]; const int t = threadIdx.x; if (t > 0) s[t] = (float)t; __syncthreads(); out[t] = s[t]; }
static bool shared_never_written() { float *o = memory(N); first_is_missing<<<1, N>>>(o); return is(o, N, number); }

__global__ void counts(float *x) { atomicAdd(&x[threadIdx.x], 1.0f); }
static bool global_never_written() { float *x; cudaMalloc(&x, N * sizeof(float)); counts<<<1, N>>>(x); return is(x, N, [](int) { return 1.0f; }); }

__global__ void adds_one(float *x) { x[threadIdx.x] += 1; }
static bool race_between_blocks() { float *x = memory(N); adds_one<<<4, N>>>(x); return is(x, N, [](int) { return 4.0f; }); }

__global__ void plain_and_atomic(float *x) { if (threadIdx.x == 0) x[0] = 1; else atomicAdd(&x[1], x[0]); }
static bool race_of_atomic_and_plain() { float *x = memory(2); plain_and_atomic<<<1, N>>>(x); return is(x + 1, 1, [](int) { return N - 1.0f; }); }

// ---- host and device ----

__global__ void copies(float *out, const float *x) { out[threadIdx.x] = x[threadIdx.x]; }
static bool kernel_reads_host_memory() { float *host = (float *)malloc(N * sizeof(float)); for (int i = 0; i < N; i++) host[i] = (float)i; float *o = memory(N); copies<<<1, N>>>(o, host); return is(o, N, number); }
static bool host_reads_device_memory() {
  float *o = memory(N);
  writer<<<1, N>>>(o);
  const volatile float *seen = o;
  float sum = 0;
  for (int i = 0; i < N; i++) sum += seen[i];
  return sum == 32640;
}
static bool use_after_free() { float *o = memory(N), *x = filled(N, number); cudaFree(x); copies<<<1, N>>>(o, x); return is(o, N, number); }
static bool copy_too_long() { float *o = memory(N), host[2 * N]; cudaMemcpy(host, o, sizeof host, cudaMemcpyDeviceToHost); return true; }
static bool copy_in_the_wrong_direction() { float *o = memory(N), host[N] = {}; cudaMemcpy(o, host, sizeof host, cudaMemcpyDeviceToHost); return true; }

// ---- launches and streams ----

static bool too_much_shared_memory() { float *o = memory(N); dynamic_shared_too_small<<<1, N, 64 * 1024>>>(o); return cudaGetLastError() == cudaSuccess; }
static bool too_many_threads() { float *o = memory(N); writer<<<1, 2048>>>(o); return cudaGetLastError() == cudaSuccess; }
static bool stream_without_sync() {
  cudaStream_t s;
  cudaStreamCreate(&s);
  static float host[N];   // the copy may come after this function's end
  float *o = memory(N);
  for (int i = 0; i < N; i++) host[i] = -1;
  writer<<<1, N, 0, s>>>(o);
  cudaMemcpyAsync(host, o, sizeof host, cudaMemcpyDeviceToHost, s);
  for (int i = 0; i < N; i++) if (host[i] != (float)i) return false;
  return true;
}
static bool streams_without_event() {
  cudaStream_t first, second;
  cudaStreamCreate(&first), cudaStreamCreate(&second);
  bool right = true;
  for (int round = 0; round < 8; round++) {   // each order of the two is as likely
    float *o = memory(N), *copy = memory(N);
    writer<<<1, N, 0, first>>>(o);
    copies<<<1, N, 0, second>>>(copy, o);
    cudaDeviceSynchronize();
    right = right && is(copy, N, number);
  }
  return right;
}

// ---- wgmma: x (192,64) is a (64,64) and then b (128,64), k side by side; out (64,128) = a b^T ----

enum WgmmaBug { WGMMA_RIGHT, NO_FENCE, NO_PROXY_FENCE, NO_WAIT, OVERWRITTEN, OTHER_LAYOUT, OTHER_OPERANDS, UNFINISHED };
template <WgmmaBug BUG> __global__ void multiplies(float *out, const bf16 *x) {
  extern __shared__ __align__(1024) unsigned char smem[];
  bf16 *tile = reinterpret_cast<bf16 *>(smem);
  const int t = threadIdx.x, lane = t % 32, warp = t / 32;
  for (int chunk = t; chunk < 192 * 8; chunk += 128) cp_async_16(tile + chunk / 8 * 64 + ((chunk % 8 ^ chunk / 8 % 8) * 8), x + chunk * 8, true);
  cp_async_commit();
  cp_async_wait<0>();
  if (BUG != NO_PROXY_FENCE) shared_writes_to_wgmma();
  __syncthreads();
  float sum[16][4] = {};
  if (BUG != NO_FENCE) wgmma_fence();
  for (int k = 0; k < 64; k += 16) {
    uint64_t a = wgmma_operand(tile + k, 0, 1024), b = wgmma_operand(tile + 64 * 64 + k, 0, 1024);
    if (BUG == OTHER_LAYOUT) a ^= 3ull << 62;
    if (BUG == OTHER_OPERANDS && warp == 2) a += 2;
    wgmma_bf16<true, true>(sum, a, b);
  }
  wgmma_commit();
  if (BUG == OVERWRITTEN) tile[64 * 64 + t] = __float2bfloat16(99);
  if (BUG != NO_WAIT && BUG != UNFINISHED) wgmma_wait<0>();
  for (int j = 0; j < 16; j++)
    for (int e = 0; e < 4; e++) out[(warp * 16 + lane / 4 + e / 2 * 8) * 128 + j * 8 + lane % 4 * 2 + e % 2] = sum[j][e];
  if (BUG == NO_WAIT) wgmma_wait<0>();
}
static float factor(int i) { return (float)(i * 7 % 15 - 7); }   // sums of 64 products are exact
static float product_of_factors(int i) {
  float sum = 0;
  for (int k = 0; k < 64; k++) sum += factor(i / 128 * 64 + k) * factor((64 + i % 128) * 64 + k);
  return sum;
}
template <WgmmaBug BUG> static bool product() {
  enum { BYTES = 192 * 64 * sizeof(bf16) };
  static bf16 host[192 * 64];
  for (int i = 0; i < 192 * 64; i++) host[i] = __float2bfloat16(factor(i));
  bf16 *x;
  cudaMalloc(&x, BYTES);
  cudaMemcpy(x, host, BYTES, cudaMemcpyHostToDevice);
  float *o = memory(64 * 128);
  multiplies<BUG><<<1, 128, BYTES>>>(o, x);
  return is(o, 64 * 128, product_of_factors);
}

static const struct { const char *noticed_by; bool (*run)(); const char *name; } cases[] = {
  {"", control, "control: no bug"},
  {"frxCp", barrier_towards_next, "barrier missing, next thread read"},
  {"rxCp", barrier_towards_previous, "barrier missing, previous thread read"},
  {"frxC", barrier_before_writing_again, "barrier missing before writing again"},
  {"frxC", divergent_barrier, "barriers of two branches"},
  {"C", exit_before_barrier, "threads left before a barrier"},
  {"frxC", missing_syncwarp, "syncwarp missing"},
  {"rxC", missing_barrier_in_place, "barrier missing before overwriting"},
  {"frxCp", shuffle_of_half_a_warp, "shuffle in a branch"},
  {"frxCp", lane_not_in_mask, "shuffle's mask lacks the lane"},
  {"frxcp", shuffle_from_a_lane_that_is_absent, "shuffle from a lane not in the mask"},
  {"frxCp", ldmatrix_misaligned, "ldmatrix misaligned"},
  {"frxCp", copy_without_wait, "cp.async without wait"},
  {"frxCp", copy_without_barrier, "cp.async without barrier after wait"},
  {"frxC", copy_over_what_is_read, "cp.async over what is read"},
  {"frxCp", global_write_out_of_bounds, "global write out of bounds"},
  {"frxCp", global_read_out_of_bounds, "global read out of bounds"},
  {"C", static_shared_out_of_bounds, "static shared array out of bounds"},
  {"frxCp", dynamic_shared_out_of_bounds, "dynamic shared memory out of bounds"},
  {"Cp", misaligned_float4, "float4 misaligned"},
  {"frxCp", shared_never_written, "shared memory never written"},
  {"frxCp", global_never_written, "device memory never written"},
  {"C", race_between_blocks, "race between blocks"},
  {"rxC", race_of_atomic_and_plain, "race of an atomic and a plain write"},
  {"Cp", kernel_reads_host_memory, "kernel reads host memory"},
  {"C", host_reads_device_memory, "host reads device memory"},
  {"frxCp", use_after_free, "use after free"},
  {"frxcp", copy_too_long, "cudaMemcpy too long"},
  {"frxcp", copy_in_the_wrong_direction, "cudaMemcpy in the wrong direction"},
  {"frxcp", too_much_shared_memory, "over 48 KiB shared memory not asked for"},
  {"frxcp", too_many_threads, "2,048 threads"},
  {"l", stream_without_sync, "stream read without sync"},
  {"l", streams_without_event, "two streams without an event"},
  {"p", product<WGMMA_RIGHT>, "wgmma (where sm_80 is asked for: it has none)"},
  {"frxcp", product<NO_FENCE>, "wgmma without its fence"},
  {"frxcp", product<NO_PROXY_FENCE>, "wgmma of copies without the proxy fence"},
  {"frxcp", product<NO_WAIT>, "wgmma's sums read too early"},
  {"frxCp", product<OVERWRITTEN>, "wgmma's tile overwritten too early"},
  {"frxcp", product<OTHER_LAYOUT>, "wgmma of another layout"},
  {"frxcp", product<OTHER_OPERANDS>, "wgmma of warps that do not agree"},
  {"frxcp", product<UNFINISHED>, "wgmma never waited for"},
};

int main(int argc, char **argv) {
  const int count = (int)(sizeof cases / sizeof *cases);
  if (argc < 2) {
    for (int i = 0; i < count; i++) printf("%d\t%s\t%s\n", i, *cases[i].noticed_by ? cases[i].noticed_by : "-", cases[i].name);
    return 0;
  }
  const int number = atoi(argv[1]);
  if (number < 0 || number >= count) return 99;
  const bool right = cases[number].run();
  cudaDeviceSynchronize();
  return !right;
}
