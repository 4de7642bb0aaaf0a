// emulator_features.cu: owns the tests of what the emulator gives to kernels, each against its definition, computed on the host.
//
// The same program runs compiled for this machine's CPU (plain, checked, every order), as the PTX that nvcc makes of it, and on a GPU. Prints "N passed, N failed".
#include "cuda.cuh"   // bf16, ALL_LANES
#include "ptx.cuh"    // cp.async, ldmatrix, mma
#include "tests/test.h"
#include <stdint.h>
#include <vector>

static uint32_t noise(uint32_t i) { i = (i ^ i >> 16) * 0x7feb352du; i = (i ^ i >> 15) * 0x846ca68bu; return i ^ i >> 16; }
template <class T> static T *on_device(const std::vector<T> &host) {
  T *p;
  cudaMalloc(&p, host.size() * sizeof(T));
  cudaMemcpy(p, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
  return p;
}
template <class T> static std::vector<T> on_host(const T *p, size_t n) {
  std::vector<T> host(n);
  cudaMemcpy(host.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost);
  return host;
}
template <class T> static T *zeros(size_t n) { return on_device(std::vector<T>(n)); }
static float bf16_value(uint16_t bits) { uint32_t u = (uint32_t)bits << 16; float f; memcpy(&f, &u, 4); return f; }

// ---- places ----

__global__ void where_kernel(uint32_t *out) {
  const uint32_t thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z), block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const uint32_t threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] += 1 + thread + 1000 * block;
}
static void every_thread_of_every_block_runs_once() {
  const dim3 grid(3, 5, 2), block(7, 3, 2);
  const uint32_t threads = 42, blocks = 30;
  uint32_t *out = zeros<uint32_t>(threads * blocks);
  where_kernel<<<grid, block>>>(out);
  std::vector<uint32_t> got = on_host(out, threads * blocks);
  for (uint32_t i = 0; i < threads * blocks; i++) CHECK_EQ(got[i], 1 + i % threads + 1000 * (i / threads));
}

// ---- the warp ----

template <class T> __global__ void shuffle_kernel(T *out, int width, int by) {
  const int lane = threadIdx.x;
  const T mine = (T)(lane * 3 + 1);
  out[lane] = __shfl_sync(ALL_LANES, mine, by, width);
  out[32 + lane] = __shfl_up_sync(ALL_LANES, mine, by, width);
  out[64 + lane] = __shfl_down_sync(ALL_LANES, mine, by, width);
  out[96 + lane] = __shfl_xor_sync(ALL_LANES, mine, by, width);
}
template <class T> static void check_shuffles(int width, int by) {
  T *out = zeros<T>(128);
  shuffle_kernel<T><<<1, 32>>>(out, width, by);
  std::vector<T> got = on_host(out, 128);
  for (int lane = 0; lane < 32; lane++) {
    const int segment = lane / width * width, at = lane % width;
    const int from[4] = {segment + by % width, at >= by ? lane - by : lane, at + by < width ? lane + by : lane, (lane ^ by) < segment + width ? lane ^ by : lane};
    for (int kind = 0; kind < 4; kind++) CHECK_MSG(got[kind * 32 + lane] == (T)(from[kind] * 3 + 1), "kind %d width %d by %d lane %d", kind, width, by, lane);
  }
}
static void shuffles_bring_the_named_lane() {
  const int widths[] = {2, 8, 16, 32};
  for (int width : widths) for (int by = 0; by < 32; by += by < 4 ? 1 : 7) check_shuffles<float>(width, by), check_shuffles<double>(width, by);
}

__global__ void votes_kernel(uint32_t *out) {
  const int t = threadIdx.x, lane = t % 32, warp = t / 32;
  const uint32_t ballot = __ballot_sync(ALL_LANES, lane % 3 == warp);
  const int any = __any_sync(ALL_LANES, lane == 5 && warp == 1), all = __all_sync(ALL_LANES, lane < 32 - warp);
  uint32_t half = 0;
  if (lane < 16) half = __ballot_sync(0xffffu, lane % 2);
  else half = __ballot_sync(0xffff0000u, lane % 2 == 0);
  out[t] = ballot, out[96 + t] = any, out[192 + t] = all, out[288 + t] = half;
  out[384 + t] = __syncthreads_or(t == 77), out[480 + t] = __syncthreads_count(t % 5 == 0);
}
static void votes_count_lanes() {
  uint32_t *out = zeros<uint32_t>(576);
  votes_kernel<<<1, 96>>>(out);
  std::vector<uint32_t> got = on_host(out, 576);
  for (uint32_t t = 0; t < 96; t++) {
    uint32_t ballot = 0;
    for (uint32_t l = 0; l < 32; l++) if (l % 3 == t / 32) ballot |= 1u << l;
    CHECK_EQ(got[t], ballot);
    CHECK_EQ(got[96 + t], t / 32 == 1);
    CHECK_EQ(got[192 + t], t / 32 == 0);
    CHECK_EQ(got[288 + t], t % 32 < 16 ? 0xaaaau : 0x55550000u);
    CHECK(got[384 + t] != 0);
    CHECK_EQ(got[480 + t], 20);
  }
}

__global__ void parts_kernel(uint32_t *out, uint32_t n) {   // lanes part, loop for different times, leave early, and meet again
  const uint32_t t = threadIdx.x;
  uint32_t sum = 0;
  for (uint32_t i = 0; i < t % 7; i++) {
    if (i % 2) { sum += i; continue; }
    for (uint32_t j = i; j < t; j += 5) { sum += j; if (sum % 11 == 3) break; }
  }
  if (t >= n) { out[t] = sum; return; }
  out[t] = sum + __popc(__ballot_sync((1u << n) - 1, sum % 2));
}
static void lanes_part_and_meet() {
  const uint32_t n = 23;
  uint32_t *out = zeros<uint32_t>(32), want[32], odd = 0;
  parts_kernel<<<1, 32>>>(out, n);
  std::vector<uint32_t> got = on_host(out, 32);
  for (uint32_t t = 0; t < 32; t++) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < t % 7; i++) {
      if (i % 2) { sum += i; continue; }
      for (uint32_t j = i; j < t; j += 5) { sum += j; if (sum % 11 == 3) break; }
    }
    want[t] = sum;
    odd += t < n && sum % 2;
  }
  for (uint32_t t = 0; t < 32; t++) CHECK_EQ(got[t], want[t] + (t < n ? odd : 0));
}

// ---- shared memory, barriers, atomics ----

__global__ void reverse_kernel(float *out, const float *x) {
  __shared__ float fixed[96];
  extern __shared__ __align__(1024) unsigned char smem[];
  float *dynamic = reinterpret_cast<float *>(smem);
  const int t = threadIdx.x;
  fixed[t] = x[blockIdx.x * 96 + t], dynamic[95 - t] = 2 * x[blockIdx.x * 96 + t];
  __syncthreads();
  out[blockIdx.x * 96 + t] = fixed[95 - t] + dynamic[t];
}
static void a_block_shares_memory() {
  std::vector<float> x(960);
  for (int i = 0; i < 960; i++) x[i] = (float)i;
  float *out = zeros<float>(960), *in = on_device(x);
  reverse_kernel<<<10, 96, 96 * sizeof(float)>>>(out, in);
  std::vector<float> got = on_host(out, 960);
  for (int i = 0; i < 960; i++) CHECK_EQ(got[i], 3 * (i / 96 * 96 + 95 - i % 96));
}

__global__ void atomics_kernel(int *sums, unsigned *words, float *real, double *wide, unsigned long long *large) {
  __shared__ int local;
  if (threadIdx.x == 0) local = 0;
  __syncthreads();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&local, i % 5);
  atomicMax(&sums[1], i * 7 % 1000), atomicAdd(&words[0], 3u), atomicOr(&words[1], 1u << i % 32), atomicInc(&words[2], 4), atomicMax(&words[3], (unsigned)i);
  if (i == 5) atomicExch(&words[4], 99u), atomicCAS(&words[5], 7u, 42u), atomicCAS(&words[6], 8u, 42u);
  atomicAdd(real, 0.5f), atomicAdd(wide, 0.25), atomicAdd(large, 1ull << 33);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(&sums[0], local);
}
static void atomics_lose_nothing() {
  int *sums = zeros<int>(2);
  unsigned *words = on_device(std::vector<unsigned>{0, 0, 0, 0, 0, 7, 7});
  float *real = zeros<float>(1);
  double *wide = zeros<double>(1);
  unsigned long long *large = zeros<unsigned long long>(1);
  atomics_kernel<<<8, 128>>>(sums, words, real, wide, large);
  std::vector<int> s = on_host(sums, 2);
  std::vector<unsigned> w = on_host(words, 7);
  int sum = 0;
  for (int i = 0; i < 1024; i++) sum += i % 5;
  CHECK_EQ(s[0], sum);
  CHECK_EQ(s[1], 999);
  CHECK(w[0] == 3072 && w[1] == ~0u && w[2] == 1024 % 5 && w[3] == 1023 && w[4] == 99 && w[5] == 42 && w[6] == 7);
  CHECK(on_host(real, 1)[0] == 512 && on_host(wide, 1)[0] == 256 && on_host(large, 1)[0] == 1024ull << 33);
}

// ---- numbers ----

__global__ void bf16_kernel(uint16_t *same, uint16_t *rounded_bits, const float *x) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  same[i] = __bfloat16_as_ushort(__float2bfloat16(__uint_as_float(i << 16)));
  rounded_bits[i] = __bfloat16_as_ushort(__float2bfloat16(x[i]));
}
static void bf16_is_rounded_to_nearest_even() {
  const uint32_t n = 65536;
  std::vector<float> x(n);
  std::vector<uint16_t> want(n);
  for (uint32_t i = 0; i < n; i++) {
    const uint32_t low = i % 4 == 0 ? 0x8000u : i % 4 == 1 ? 0x7fffu : i % 4 == 2 ? 0x8001u : noise(i) & 0xffffu, bits = noise(i + 7) << 16 | low;
    memcpy(&x[i], &bits, 4);
    const double exact = x[i];
    if (isnan(exact) || fabs(exact) > 3e38) { x[i] = 1, want[i] = 0x3f80; continue; }   // overflow and NaN: below
    const uint16_t down = (uint16_t)(bits >> 16);
    const double below = fabs(exact - bf16_value(down)), above = fabs(exact - bf16_value((uint16_t)(down + 1)));
    want[i] = below < above || (below == above && down % 2 == 0) ? down : (uint16_t)(down + 1);
  }
  uint16_t *same = zeros<uint16_t>(n), *out = zeros<uint16_t>(n);
  bf16_kernel<<<n / 256, 256>>>(same, out, on_device(x));
  std::vector<uint16_t> s = on_host(same, n), got = on_host(out, n);
  for (uint32_t i = 0; i < n; i++) {
    const bool is_nan = (i & 0x7fff) > 0x7f80;
    CHECK_MSG(is_nan ? (s[i] & 0x7fff) > 0x7f80 : s[i] == i, "bf16 %04x became %04x", i, s[i]);
    CHECK_MSG(got[i] == want[i], "%.9g became %04x, expected %04x", x[i], got[i], want[i]);
  }
}

enum { WHOLE_RESULTS = 24 };
template <class T> static __device__ __host__ void whole_results(T *r, T a, T b) {
  r[0] = a + b, r[1] = a - b, r[2] = a * b, r[3] = a / (b ? b : 1), r[4] = a % (b ? b : 1), r[5] = a & b, r[6] = a | b, r[7] = a ^ b, r[8] = ~a;
  r[9] = a << (int)(b & 15), r[10] = a >> (int)(b & 15), r[11] = a < b, r[12] = a <= b, r[13] = a == b, r[14] = a < b ? a : b, r[15] = a > b ? a : b;
  r[16] = (T)(int8_t)a, r[17] = (T)(uint8_t)a, r[18] = (T)(int16_t)b, r[19] = (T)(uint16_t)b, r[20] = (T)((float)(a & 0xffff) * 0.5f), r[21] = (T)(int)(double)(b & 0xffff), r[22] = (T)((int64_t)(int32_t)a * (int32_t)b >> 7), r[23] = (T)(a * b + a);
}
template <class T> __global__ void whole_kernel(T *out, const T *a, const T *b) { const int i = threadIdx.x; whole_results(out + i * WHOLE_RESULTS, a[i], b[i]); }
template <class T> static void check_whole() {
  enum { COUNT = 64 };
  std::vector<T> a(COUNT), b(COUNT);
  for (uint32_t i = 0; i < COUNT; i++) {
    a[i] = (T)((uint64_t)noise(i) << 32 | noise(i + 999)) >> (i % 3 * 7), b[i] = (T)((uint64_t)noise(i + 99) << 32 | noise(i + 9)) >> (i % 5 * 6);
    if (i == 0) a[i] = 0, b[i] = 0;
    if (b[i] == (T)-1) b[i] = 5;
  }
  T *out = zeros<T>(COUNT * WHOLE_RESULTS), want[WHOLE_RESULTS];
  whole_kernel<T><<<1, COUNT>>>(out, on_device(a), on_device(b));
  std::vector<T> got = on_host(out, COUNT * WHOLE_RESULTS);
  for (int i = 0; i < COUNT; i++) {
    whole_results(want, a[i], b[i]);
    for (int k = 0; k < WHOLE_RESULTS; k++) CHECK_MSG(got[i * WHOLE_RESULTS + k] == want[k], "result %d of %lld and %lld: %lld, expected %lld", k, (long long)a[i], (long long)b[i], (long long)got[i * WHOLE_RESULTS + k], (long long)want[k]);
  }
}
static void whole_numbers_wrap_and_convert() { check_whole<uint32_t>(), check_whole<uint64_t>(), check_whole<int32_t>(), check_whole<int64_t>(); }

enum { EXACT_RESULTS = 13, FUNCTIONS = 7, FLOATS = 64 };
template <class T> static __device__ __host__ void exact_results(T *r, T a, T b) {
  r[0] = a + b, r[1] = a - b, r[2] = a * b, r[3] = a / b, r[4] = fma(a, b, a), r[5] = sqrt(a < 0 ? -a : a), r[6] = fmin(a, b), r[7] = fmax(a, b), r[8] = fabs(a), r[9] = (T)(int)(a * 100), r[10] = floor(b), r[11] = rint(b);
  r[12] = a < b ? a : -b;
}
static __device__ __host__ void functions(float *r, float a, float b) {
  r[0] = expf(a), r[1] = logf(a < 0 ? -a : a), r[2] = exp2f(b), r[3] = sinf(a), r[4] = cosf(b), r[5] = tanhf(a), r[6] = 1 / sqrtf(a < 0 ? -a : a);
}
template <class T> __global__ void exact_kernel(T *out, const T *a, const T *b) { const int i = threadIdx.x; exact_results(out + i * EXACT_RESULTS, a[i], b[i]); }
__global__ void functions_kernel(float *out, const float *a, const float *b) { const int i = threadIdx.x; functions(out + i * FUNCTIONS, a[i], b[i]); }
template <class T> static void check_exact() {
  std::vector<T> a(FLOATS), b(FLOATS);
  for (uint32_t i = 0; i < FLOATS; i++) a[i] = (T)((int32_t)noise(i) * 0x1p-30), b[i] = (T)((int32_t)noise(i + 50) * 0x1p-27);
  T *out = zeros<T>(FLOATS * EXACT_RESULTS), want[EXACT_RESULTS];
  exact_kernel<T><<<1, FLOATS>>>(out, on_device(a), on_device(b));
  std::vector<T> got = on_host(out, FLOATS * EXACT_RESULTS);
  for (int i = 0; i < FLOATS; i++) {
    exact_results(want, a[i], b[i]);
    for (int k = 0; k < EXACT_RESULTS; k++) CHECK_MSG(got[i * EXACT_RESULTS + k] == want[k], "result %d of %.17g and %.17g: %.17g, expected %.17g", k, (double)a[i], (double)b[i], (double)got[i * EXACT_RESULTS + k], (double)want[k]);
  }
}
static void floats_are_rounded_as_on_the_host() { check_exact<float>(), check_exact<double>(); }
static void functions_are_right_to_a_few_units() {
  std::vector<float> a(FLOATS), b(FLOATS);
  for (uint32_t i = 0; i < FLOATS; i++) a[i] = (float)((int32_t)noise(i + 1) * 0x1p-30), b[i] = (float)((int32_t)noise(i + 50) * 0x1p-27);
  float *out = zeros<float>(FLOATS * FUNCTIONS), want[FUNCTIONS];
  functions_kernel<<<1, FLOATS>>>(out, on_device(a), on_device(b));
  std::vector<float> got = on_host(out, FLOATS * FUNCTIONS);
  for (int i = 0; i < FLOATS; i++) {
    functions(want, a[i], b[i]);
    for (int k = 0; k < FUNCTIONS; k++) CHECK_NEAR(got[i * FUNCTIONS + k], want[k], 8 * 0x1p-24 * fmax(fabs((double)want[k]), 0.1), "function %d of %.9g and %.9g", k, (double)a[i], (double)b[i]);   // as the toolkit's tables say
  }
}

__constant__ float table[5] = {1.5f, -2, 3, 0.25f, 8};
__global__ void tables_kernel(float *out, const int *index) {
  float own[8];
  for (int i = 0; i < 8; i++) own[i] = (float)(i * (int)threadIdx.x);
  for (int i = 0; i < 3; i++) own[index[i]] += table[index[i] % 5];
  float value = own[index[threadIdx.x % 8]];
  switch (index[threadIdx.x % 8]) {
    case 0: value += 1; break;
    case 1: value *= 3; break;
    case 2: value -= 7; break;
    case 3: value = -value; break;
    case 5: value = value * value; break;
    case 6: value += own[2]; break;
    default: break;
  }
  out[threadIdx.x] = value;
}
static void arrays_of_a_thread_and_constants() {
  static const float constants[5] = {1.5f, -2, 3, 0.25f, 8};
  std::vector<int> index = {3, 5, 3, 0, 7, 1, 6, 2};
  float *out = zeros<float>(32);
  tables_kernel<<<1, 32>>>(out, on_device(index));
  std::vector<float> got = on_host(out, 32);
  for (int t = 0; t < 32; t++) {
    float own[8];
    for (int i = 0; i < 8; i++) own[i] = (float)(i * t);
    for (int i = 0; i < 3; i++) own[index[i]] += constants[index[i] % 5];
    const int k = index[t % 8];
    float v = own[k];
    v = k == 0 ? v + 1 : k == 1 ? v * 3 : k == 2 ? v - 7 : k == 3 ? -v : k == 5 ? v * v : k == 6 ? v + own[2] : v;
    CHECK_EQ(got[t], v);
  }
}

// ---- cp.async and tensor cores ----

__global__ void groups_kernel(float *out, const float *x) {
  __shared__ __align__(16) float s[3][128];
  const int t = threadIdx.x;
  for (int group = 0; group < 3; group++) {
    for (int i = 0; i < 4; i++) s[group][4 * t + i] = -1;
    __syncthreads();
    cp_async_16(&s[group][4 * t], x + group * 128 + 4 * t, t % 8 != group);   // some lanes fill with zeros
    cp_async_commit();
  }
  cp_async_wait<2>();
  __syncthreads();
  out[t] = s[0][(4 * t + 4) % 128];
  cp_async_wait<0>();
  __syncthreads();
  for (int group = 0; group < 3; group++)
    for (int i = 0; i < 4; i++) out[32 + group * 128 + 4 * t + i] = s[group][4 * t + i];
}
static void copies_land_in_groups() {
  std::vector<float> x(384);
  for (int i = 0; i < 384; i++) x[i] = i + 1.0f;
  float *out = zeros<float>(32 + 384);
  groups_kernel<<<1, 32>>>(out, on_device(x));
  std::vector<float> got = on_host(out, 32 + 384);
  auto want = [&](int group, int i) { return i / 4 % 8 == group ? 0 : x[group * 128 + i]; };
  for (int t = 0; t < 32; t++) CHECK_EQ(got[t], want(0, (4 * t + 4) % 128));
  for (int i = 0; i < 384; i++) CHECK_EQ(got[32 + i], want(i / 128, i % 128));
}

__global__ void ldmatrix_kernel(uint32_t *out, const uint16_t *x) {   // x: four matrices of 8 x 8
  __shared__ __align__(16) uint16_t s[256];
  const int t = threadIdx.x;
  for (int i = t; i < 256; i += 32) s[i] = x[i];
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, s + t * 8);
  for (int k = 0; k < 4; k++) out[k * 32 + t] = r[k];
  ldmatrix_x4_transposed(r, s + t * 8);
  for (int k = 0; k < 4; k++) out[128 + k * 32 + t] = r[k];
}
static void ldmatrix_deals_out_fragments() {
  std::vector<uint16_t> x(256);
  for (uint32_t i = 0; i < 256; i++) x[i] = (uint16_t)noise(i);
  uint32_t *out = zeros<uint32_t>(256);
  ldmatrix_kernel<<<1, 32>>>(out, on_device(x));
  std::vector<uint32_t> got = on_host(out, 256);
  for (int k = 0; k < 4; k++)
    for (int l = 0; l < 32; l++) {
      const uint16_t *m = &x[k * 64];
      const int row = l / 4, column = l % 4 * 2;
      CHECK_EQ(got[k * 32 + l], m[row * 8 + column] | (uint32_t)m[row * 8 + column + 1] << 16);
      CHECK_EQ(got[128 + k * 32 + l], m[column * 8 + row] | (uint32_t)m[(column + 1) * 8 + row] << 16);
    }
}

__global__ void mma_kernel(float *d, const uint16_t *a, const uint16_t *b, const float *c) {   // a (16,16), b (16,8), c and d (16,8), row by row
  const int l = threadIdx.x, g = l / 4, t = l % 4 * 2;
  auto pair = [](uint16_t low, uint16_t high) { return low | (uint32_t)high << 16; };
  const uint32_t left[4] = {pair(a[g * 16 + t], a[g * 16 + t + 1]), pair(a[(g + 8) * 16 + t], a[(g + 8) * 16 + t + 1]), pair(a[g * 16 + t + 8], a[g * 16 + t + 9]), pair(a[(g + 8) * 16 + t + 8], a[(g + 8) * 16 + t + 9])};
  float sum[4] = {c[g * 8 + t], c[g * 8 + t + 1], c[(g + 8) * 8 + t], c[(g + 8) * 8 + t + 1]};
  mma_bf16(sum, left, pair(b[t * 8 + g], b[(t + 1) * 8 + g]), pair(b[(t + 8) * 8 + g], b[(t + 9) * 8 + g]));
  d[g * 8 + t] = sum[0], d[g * 8 + t + 1] = sum[1], d[(g + 8) * 8 + t] = sum[2], d[(g + 8) * 8 + t + 1] = sum[3];
}
static void mma_multiplies_matrices() {
  std::vector<uint16_t> a(256), b(128);
  std::vector<float> c(128);
  auto small = [](uint32_t i) { return (uint16_t)(0x3f00 + (noise(i) & 0x80ff)); };   // +-0.5 .. 2
  for (uint32_t i = 0; i < 256; i++) a[i] = small(i);
  for (uint32_t i = 0; i < 128; i++) b[i] = small(i + 1000), c[i] = (float)(noise(i) % 1000) * 0.01f;
  float *out = zeros<float>(128);
  mma_kernel<<<1, 32>>>(out, on_device(a), on_device(b), on_device(c));
  std::vector<float> got = on_host(out, 128);
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++) {
      double sum = c[i * 8 + j], size = fabs(sum);
      for (int k = 0; k < 16; k++) sum += (double)bf16_value(a[i * 16 + k]) * bf16_value(b[k * 8 + j]), size += fabs((double)bf16_value(a[i * 16 + k]) * bf16_value(b[k * 8 + j]));
      CHECK_NEAR(got[i * 8 + j], sum, 17 * 0x1p-23 * size, "row %d column %d", i, j);   // 17 additions; tensor cores truncate: 2^-23 each
    }
}

// ---- the run time ----

__global__ void add_kernel(float *x, float y) { x[threadIdx.x] += y; }
__global__ void scale_kernel(float *x, float y) { x[threadIdx.x] *= y; }
static void events_order_streams() {
  cudaStream_t first, second;
  cudaEvent_t event;
  cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking), cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  float *x = zeros<float>(32);
  for (int i = 0; i < 10; i++) {
    add_kernel<<<1, 32, 0, first>>>(x, 1);
    cudaEventRecord(event, first), cudaStreamWaitEvent(second, event, 0);
    scale_kernel<<<1, 32, 0, second>>>(x, 2);
    cudaEventRecord(event, second), cudaStreamWaitEvent(first, event, 0);
  }
  float got;
  cudaMemcpyAsync(&got, x, sizeof got, cudaMemcpyDeviceToHost, first);
  cudaStreamSynchronize(first);
  CHECK_EQ(got, 2046);
  cudaEventDestroy(event), cudaStreamDestroy(first), cudaStreamDestroy(second);
}
static void graphs_are_played_again() {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t run;
  cudaStreamCreate(&stream);
  float *x = zeros<float>(32);
  cudaDeviceSynchronize();
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  add_kernel<<<1, 32, 0, stream>>>(x, 3);
  scale_kernel<<<1, 32, 0, stream>>>(x, 2);
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&run, graph, 0);
  CHECK_EQ(on_host(x, 1)[0], 0);   // captured, not run
  for (int i = 0; i < 3; i++) cudaGraphLaunch(run, stream);
  cudaStreamSynchronize(stream);
  CHECK_EQ(on_host(x, 1)[0], 42);
  cudaGraphExecDestroy(run), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
}
static void launches_have_limits() {
  float *x = zeros<float>(2048);
  cudaGetLastError();
  add_kernel<<<1, 1025>>>(x, 1);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  add_kernel<<<0, 32>>>(x, 1);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  add_kernel<<<dim3(1, 65536), 32>>>(x, 1);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  reverse_kernel<<<1, 96, 48 * 1024 + 16>>>(x, x);
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(reverse_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024) == cudaSuccess);
  reverse_kernel<<<1, 96, 64 * 1024>>>(x, x + 1024);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(cudaFuncSetAttribute(reverse_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 20) == cudaErrorInvalidValue);
  cudaGetLastError();
  void *p;
  CHECK(cudaMalloc(&p, (size_t)1 << 50) == cudaErrorMemoryAllocation);
  cudaGetLastError();
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(every_thread_of_every_block_runs_once);
  RUN(shuffles_bring_the_named_lane);
  RUN(votes_count_lanes);
  RUN(lanes_part_and_meet);
  RUN(a_block_shares_memory);
  RUN(atomics_lose_nothing);
  RUN(bf16_is_rounded_to_nearest_even);
  RUN(whole_numbers_wrap_and_convert);
  RUN(floats_are_rounded_as_on_the_host);
  RUN(functions_are_right_to_a_few_units);
  RUN(arrays_of_a_thread_and_constants);
  RUN(copies_land_in_groups);
  RUN(ldmatrix_deals_out_fragments);
  RUN(mma_multiplies_matrices);
  RUN(events_order_streams);
  RUN(graphs_are_played_again);
  RUN(launches_have_limits);
  return TEST_END();
}
