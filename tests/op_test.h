// op_test.h: owns the way an operation of a device is tested: against the reference, and against itself.
//
// The device is the CPU's in fp32, or what TEST_DEVICE names: cpu-bf16; cuda, cuda-bf16 (then of every two cases one has sizes and
// addresses that allow 16-byte accesses), and cuda-cublaslt, cuda-bf16-cublaslt, cuda-bf16-wgmma.
//
// An operation is a row: its shapes, its arrays for a shape, the call, and the bound on each output element. For every row
//   check_against_reference   42 odd shapes (1, primes, tile edges +-1), canaries around every array, inputs unchanged,
//                             |device - reference| <= bound, and "all NaN" and "all zero" fail the same comparison; on the CPU every
//                             second case has a page that cannot even be read behind each array, instead of the canaries there
//   check_same_bits           every instruction set of this processor and 1, 2, 3, 7 threads give the same bits; on CUDA, a second run
// Inputs are rounded to the device's storage first, so that both devices start from the same numbers and a bound counts roundings only:
// u = 2^-24 is one rounding. A chain of n additions or fused multiply-adds errs by at most n u times the sum of magnitudes (Higham,
// Accuracy and Stability of Numerical Algorithms, 3.1); "magnitudes" runs the reference on absolute values to get that sum.
#pragma once
#include "../device.h"  // Device
#include "../rng.h"     // rng_u32, rng_below, rng_site
#include "../util.h"    // xmalloc, ARRAY_LEN, MIN, MAX
#include "test.h"       // CHECK_MSG
#include <sys/mman.h>   // mmap, mprotect
#if defined(__x86_64__)
#include <cpuid.h>      // __get_cpuid_count
#include <xmmintrin.h>  // _mm_getcsr, _mm_setcsr
#endif

static const double U = 0x1p-24;       // one rounding to float
static const double U_BF16 = 0x1p-8;   // one rounding to bf16, of 8 significant bits
static const double TINY = 0x1p-120;   // what lies below is flushed to zero sooner or later (2^-126, times a few factors)

enum { SHAPES = 42, MOST_DIMS = 8, MOST_ARRAYS = 12, CANARIES = 17, ALIGNED_CANARIES = 32 };   // 17: nothing is aligned to a vector
static const double CANARY = 12288;    // exact in every storage

typedef enum { KIND_REAL, KIND_ACC, KIND_IDS, KIND_STAT } Kind;
typedef enum { IN, OUT, IN_OUT } Role;
typedef struct {
  const char *name;
  Kind kind;
  Role role;
  size_t n;
  double *start;   // (n) before; NaN for OUT
  double *want;    // (n) after, on the reference
  double *bound;   // (n) allowed difference, where role is not IN
} Array;

typedef struct Case Case;
typedef struct {
  const char *name;
  void (*shape)(Case *c);                                        // dims and arrays of shape number c->number
  void (*run)(Device *d, const size_t *dim, void *const p[]);    // the call
  void (*bounds)(Case *c);                                       // bound of each output, from start and want
} Operation;

struct Case {
  const Operation *op;
  int number;                // 0 .. SHAPES-1
  size_t dim[MOST_DIMS];
  double size;               // magnitude of this case's inputs: 1, 1e4 or 10
  Array array[MOST_ARRAYS];
  int arrays;
};

// ---- the device under test ----

static inline bool on_cuda(void) { const char *name = getenv("TEST_DEVICE"); return name && !strncmp(name, "cuda", 4); }
static inline bool on_bf16(void) { const char *name = getenv("TEST_DEVICE"); return name && strstr(name, "-bf16"); }
static inline bool on_tensor_cores(void) { return on_cuda() && on_bf16(); }   // their factors are bf16, those between two products too
// From here on the CPU device under test stores bf16, or no more.
static inline void in_bf16(bool yes) {
  if (yes) setenv("TEST_DEVICE", "cpu-bf16", 1);
  else unsetenv("TEST_DEVICE");
}
static inline GemmLibrary gemm_library(void) {
  const char *name = getenv("TEST_DEVICE");
  return name && strstr(name, "-cublaslt") ? GEMM_CUBLASLT : name && strstr(name, "-wgmma") ? GEMM_WGMMA : GEMM_OWN;
}
static inline Device *device_under_test(int threads) { return on_cuda() ? cuda_device(on_bf16() ? CUDA_BF16 : CUDA_FP32, gemm_library()) : on_bf16() ? cpu_device_bf16(threads) : cpu_device(threads); }
// One rounding to storage.
static inline double unit_of_storage(void) { return on_bf16() ? U_BF16 : U; }
// x as it is after it was stored; ties to even.
static inline double stored(double x) {
  if (!on_bf16() || x == 0 || !isfinite(x)) return (float)x;
  int exponent;
  frexp(x, &exponent);
  return ldexp(rint(ldexp(x, 8 - exponent)), exponent - 8);
}

// ---- shapes and arrays ----

// Every second case on CUDA: what is at least 8 is a multiple of 8, and arrays begin at multiples of 16 bytes.
static inline bool aligned_case(const Case *c) { return on_cuda() && c->number % 2 == 0; }
typedef struct { size_t before, behind; } Canaries;
static inline Canaries canaries_of(const Case *c) {
  const size_t n = aligned_case(c) ? ALIGNED_CANARIES : CANARIES;
  return (Canaries){n, c->number % 2 && !on_cuda() ? 0 : n};
}

// Dimension `which` of a case: 1, primes, edges of vectors and tiles +-1; the first case is all ones.
static inline size_t odd_size(const Case *c, unsigned which, size_t most) {
  static const size_t sizes[] = {1, 2, 3, 5, 7, 11, 13, 15, 16, 17, 23, 31, 32, 33, 47, 48, 49, 61, 63, 64, 65, 79, 95, 96, 97, 113, 127, 128, 129,
                                 151, 191, 192, 193, 211, 255, 256, 257, 383, 384, 385, 509, 511, 512, 513, 769};
  if (c->number == 0) return 1;
  size_t n = 0;
  while (n < ARRAY_LEN(sizes) && sizes[n] <= most) n++;
  size_t size = sizes[rng_below(n, 7, which, rng_site(c->op->name), (uint64_t)c->number)];
  return aligned_case(c) && size >= 8 ? round_up(size, 8) : size;
}
// What a stride is larger than a row.
static inline size_t odd_pad(const Case *c, unsigned which, size_t most) {
  size_t pad = odd_size(c, which, most) - 1;
  return aligned_case(c) ? round_up(pad, 8) : pad;
}

// Uniform in (-1, 1), by Stafford's mixing of a counter: Philox would take most of these tests' time.
static inline double mixed_value(uint64_t stream, uint64_t i) {
  uint64_t x = (stream + 1) * 0x9e3779b97f4a7c15u + i * 0xd1342543de82ef95u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return (double)((int64_t)(x ^ x >> 31) >> 11) * 0x1p-52;
}

static inline Array *array_add(Case *c, const char *name, Kind kind, Role role, size_t n, double size) {
  Array *a = &c->array[c->arrays++];
  *a = (Array){name, kind, role, n, xmalloc(n, 8), xmalloc(n, 8), xmalloc(n, 8)};
  for (size_t i = 0; i < n; i++) {
    double value = size * mixed_value((uint64_t)c->number << 32 | rng_site(name), i);
    value = kind == KIND_REAL ? stored(value) : (float)value;
    a->start[i] = role == OUT ? (kind == KIND_STAT ? 0 : NAN) : value;
    a->bound[i] = 0;
  }
  return a;
}
static inline Array *input(Case *c, const char *name, size_t n) { return array_add(c, name, KIND_REAL, IN, n, c->size); }
static inline Array *input_acc(Case *c, const char *name, size_t n) { return array_add(c, name, KIND_ACC, IN, n, c->size); }
static inline Array *output(Case *c, const char *name, size_t n) { return array_add(c, name, KIND_REAL, OUT, n, 0); }
static inline Array *output_acc(Case *c, const char *name, size_t n) { return array_add(c, name, KIND_ACC, OUT, n, 0); }
static inline Array *accumulated(Case *c, const char *name, size_t n) { return array_add(c, name, KIND_ACC, IN_OUT, n, c->size); }
static inline Array *input_ids(Case *c, const char *name, size_t n, size_t below) {
  Array *a = array_add(c, name, KIND_IDS, IN, n, 0);
  for (size_t i = 0; i < n; i++) a->start[i] = (double)rng_below(below, 3, (uint32_t)c->number, rng_site(name), i);
  return a;
}

static inline void case_begin(Case *c, const Operation *op, int number) {
  *c = (Case){.op = op, .number = number, .size = number % 3 == 1 ? 1e4 : number % 3 == 2 ? 10 : 1};
  op->shape(c);
}
static inline void case_end(Case *c) {
  for (int a = 0; a < c->arrays; a++) free(c->array[a].start), free(c->array[a].want), free(c->array[a].bound);
}

// ---- running a case on a device ----

static inline size_t kind_bytes(const Device *d, Kind kind) {
  return kind == KIND_REAL ? d->real_size : kind == KIND_ACC ? d->acc_size : kind == KIND_IDS ? sizeof(int32_t) : sizeof(double);
}

// Memory of a case's array; without canaries behind it there is a page that cannot be read.
typedef struct { char *data, *mapped; size_t bytes; } Memory;
static inline Memory memory_of(Device *d, size_t bytes, Canaries canaries) {
  if (canaries.behind) return (Memory){d->allocate(d, bytes), NULL, bytes};
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), used = round_up(bytes, page);
  char *p = mmap(NULL, used + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED || mprotect(p + used, page, PROT_NONE) != 0) return (Memory){0};
  return (Memory){p + used - bytes, p, used + page};
}
static inline void memory_free(Device *d, Memory m) {
  if (m.mapped) munmap(m.mapped, m.bytes);
  else d->release(d, m.data, m.bytes);
}

static inline void put(Device *d, const Array *a, Canaries canaries, char *memory, const double *values) {
  size_t all = canaries.before + a->n + canaries.behind;
  double *padded = xmalloc(all, sizeof *padded);
  int32_t *ids = xmalloc(all, sizeof *ids);
  for (size_t i = 0; i < all; i++) padded[i] = i < canaries.before || i >= canaries.before + a->n ? CANARY : values[i - canaries.before];
  for (size_t i = 0; i < all && a->kind == KIND_IDS; i++) ids[i] = (int32_t)padded[i];
  if (a->kind == KIND_REAL) d->upload_real(d, (real *)memory, padded, all);
  if (a->kind == KIND_ACC) d->upload_acc(d, (acc *)memory, padded, all);
  if (a->kind == KIND_IDS) d->upload_ids(d, (int32_t *)memory, ids, all);
  free(padded), free(ids);   // KIND_STAT starts at zero, as allocate gives it
}

// Whole numbers, from memory that only the device reads: the bits of floats, which every conversion on their way keeps.
static inline void get_ids(Device *d, double *values, const char *memory, size_t n) {
  if (on_cuda() && strcmp(d->name, "reference")) d->download_acc(d, values, (const acc *)memory, n);
  for (size_t i = 0; i < n; i++) {
    int32_t id;
    if (on_cuda() && strcmp(d->name, "reference")) memcpy(&id, &(float){(float)values[i]}, 4);
    else id = ((const int32_t *)memory)[i];
    values[i] = id;
  }
}

static inline void get(Device *d, const Array *a, Canaries canaries, const char *memory, double *values, bool *live) {
  size_t all = canaries.before + a->n + canaries.behind;
  double *padded = xmalloc(all, sizeof *padded);
  if (a->kind == KIND_REAL) d->download_real(d, padded, (const real *)memory, all);
  if (a->kind == KIND_ACC) d->download_acc(d, padded, (const acc *)memory, all);
  if (a->kind == KIND_STAT) d->download_stat(d, padded, (const scalar *)memory, all);
  if (a->kind == KIND_IDS) get_ids(d, padded, memory, all);
  for (size_t i = 0; i < all; i++) {
    bool outside = i < canaries.before || i >= canaries.before + a->n;
    if (outside && padded[i] != (a->kind == KIND_STAT ? 0 : CANARY)) *live = false;
  }
  memcpy(values, padded + canaries.before, a->n * sizeof *values);
  free(padded);
}

// The processor keeps denormal numbers until an operation says otherwise: each has to, in every thread, or the first operation of
// a process would compute other bits than the second. Not those that copy or count, nor the sum of losses in double.
// clang's OpenMP gives the caller its own control word back at the end of a region: nothing is left to see, so gcc's build sees it.
#if defined(__x86_64__) && !(defined(__clang__) && defined(_OPENMP))
#define SEES_DENORMALS
#endif
static inline void keep_denormals(void) {
#ifdef SEES_DENORMALS
  _mm_setcsr(_mm_getcsr() & ~0x8040u);
#endif
}
static inline void check_denormals_are_flushed(const Case *c, const Device *d) {
#ifdef SEES_DENORMALS
  const char *name = c->op->name;
  if (!strcmp(d->name, "cpu") && !strstr(name, "copy") && !strstr(name, "count") && strcmp(name, "sum"))
    CHECK_MSG((_mm_getcsr() & 0x8040) == 0x8040, "%s leaves denormals as they are", name);
#endif
  (void)c, (void)d;
}

// Runs the case on the device from the given start values; got[a] (n) receives every array. Returns whether all canaries live.
static inline bool run_case(const Case *c, Device *d, double *const start[], double *const got[]) {
  Memory memory[MOST_ARRAYS];
  void *p[MOST_ARRAYS];
  const Canaries canaries = canaries_of(c);
  bool live = true;
  for (int a = 0; a < c->arrays; a++) {
    const size_t size = kind_bytes(d, c->array[a].kind);
    memory[a] = memory_of(d, (canaries.before + c->array[a].n + canaries.behind) * size, canaries);
    if (!memory[a].data) abort();
    put(d, &c->array[a], canaries, memory[a].data, start[a]);
    p[a] = memory[a].data + canaries.before * size;
  }
  keep_denormals();
  c->op->run(d, c->dim, p);
  check_denormals_are_flushed(c, d);
  for (int a = 0; a < c->arrays; a++) {
    get(d, &c->array[a], canaries, memory[a].data, got[a], &live);
    memory_free(d, memory[a]);
  }
  return live;
}

typedef struct { double *p[MOST_ARRAYS]; } Results;
static inline Results results_of(const Case *c, Device *d, bool absolute, bool *canaries) {
  Results start, got;
  for (int a = 0; a < c->arrays; a++) {
    size_t n = c->array[a].n;
    start.p[a] = xmalloc(n, 8), got.p[a] = xmalloc(n, 8);
    for (size_t i = 0; i < n; i++) start.p[a][i] = absolute && c->array[a].kind != KIND_IDS ? fabs(c->array[a].start[i]) : c->array[a].start[i];
  }
  bool live = run_case(c, d, start.p, got.p);
  if (canaries) *canaries = live;
  for (int a = 0; a < c->arrays; a++) free(start.p[a]);
  return got;
}
static inline void results_free(const Case *c, Results *r) {
  for (int a = 0; a < c->arrays; a++) free(r->p[a]);
}
// Every array after the reference has run on absolute values: the sums of magnitudes of operations that are linear.
static inline Results magnitudes(const Case *c) { return results_of(c, reference_device(), true, NULL); }

// Where results are stored in bf16, each errs by one more rounding; what must be exact (bound 0) has none.
static inline void bound_storage(Array *a) {
  if (!on_bf16() || a->kind != KIND_REAL || a->role == IN) return;
  for (size_t i = 0; i < a->n; i++)
    if (a->bound[i] > 0) a->bound[i] += U_BF16 * (fabs(a->want[i]) + a->bound[i]);
}

// bound = roundings u times the sum of magnitudes, for one output of a linear operation
static inline void bound_linear(Case *c, int a, double roundings) {
  Results m = magnitudes(c);
  for (size_t i = 0; i < c->array[a].n; i++) c->array[a].bound[i] = roundings * U * m.p[a][i] + TINY;
  results_free(c, &m);
}
// bound = roundings u times the result itself
static inline void bound_relative(Case *c, int a, double roundings) {
  for (size_t i = 0; i < c->array[a].n; i++) c->array[a].bound[i] = roundings * U * fabs(c->array[a].want[i]) + TINY;
}

// ---- the two checks ----

// Elements of array a that are not within their bound; *first: the first of them
static inline size_t bad_elements(const Array *a, const double *got, size_t *first) {
  size_t bad = 0;
  for (size_t i = 0; i < a->n; i++)
    if (!(fabs(got[i] - a->want[i]) <= a->bound[i]) && bad++ == 0) *first = i;
  return bad;
}

static inline const char *dims_text(const Case *c) {
  static char text[128];
  int n = 0;
  for (int i = 0; i < MOST_DIMS; i++) n += snprintf(text + n, sizeof text - (size_t)n, "%s%zu", i ? " " : "", c->dim[i]);
  return text;
}

static inline void prepare(Case *c, const Operation *op, int number) {
  case_begin(c, op, number);
  Results want = results_of(c, reference_device(), false, NULL);
  for (int a = 0; a < c->arrays; a++) memcpy(c->array[a].want, want.p[a], c->array[a].n * sizeof(double));
  results_free(c, &want);
  op->bounds(c);
  for (int a = 0; a < c->arrays; a++) bound_storage(&c->array[a]);
}

static inline void check_case(Case *c, Device *d, int zero_passes[MOST_ARRAYS]) {
  bool canaries;
  Results got = results_of(c, d, false, &canaries);
  CHECK_MSG(canaries, "%s [%s]: wrote outside an array", c->op->name, dims_text(c));
  for (int a = 0; a < c->arrays; a++) {
    Array *array = &c->array[a];
    size_t first = 0, bad = bad_elements(array, got.p[a], &first);
    CHECK_MSG(bad == 0, "%s [%s]: %s: %zu of %zu wrong, first [%zu] %.9g, reference %.9g, |diff| %.3g, bound %.3g", c->op->name, dims_text(c),
              array->name, bad, array->n, first, got.p[a][first], array->want[first], fabs(got.p[a][first] - array->want[first]), array->bound[first]);
    if (array->role == IN || array->n == 0) continue;
    for (size_t i = 0; i < array->n; i++) got.p[a][i] = NAN;
    CHECK_MSG(bad_elements(array, got.p[a], &first) == array->n, "%s [%s]: %s: NaN passes", c->op->name, dims_text(c), array->name);
    for (size_t i = 0; i < array->n; i++) got.p[a][i] = 0;
    zero_passes[a] += bad_elements(array, got.p[a], &first) == 0;
  }
  results_free(c, &got);
}

static inline bool has_instruction_set(const char *name) {
#if defined(__x86_64__)
  unsigned a = 0, b, c, d;
  if (!strcmp(name, "avx512bf16")) return has_instruction_set("avx512") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
  if (!strcmp(name, "avx512")) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !strcmp(name, "generic");
}

// A device with this instruction set; "" is the best.
static inline Device *device_with(const char *instruction_set, int threads) {
  const char *before = getenv("GPT_CPU");
  char *saved = before ? xstrdup(before) : NULL;
  if (*instruction_set) setenv("GPT_CPU", instruction_set, 1);
  Device *d = device_under_test(threads);
  if (saved) setenv("GPT_CPU", saved, 1);
  else unsetenv("GPT_CPU");
  free(saved);
  return d;
}

// Zero may be right for a case or two (a norm over one channel, a loss over one word), never for most.
static inline void check_against_reference(const Operation *op, Device *d) {
  int zero_passes[MOST_ARRAYS] = {0};
  for (int number = 0; number < SHAPES; number++) {
    Case c;
    prepare(&c, op, number);
    check_case(&c, d, zero_passes);
    for (int a = 0; number == SHAPES - 1 && a < c.arrays; a++)
      CHECK_MSG(zero_passes[a] <= SHAPES / 4, "%s: all zeros pass as %s in %d of %d cases", op->name, c.array[a].name, zero_passes[a], SHAPES);
    case_end(&c);
  }
  d->destroy(d);
}

static const struct { const char *instruction_set; int threads; } variants[] = {
  {"", 1}, {"", 2}, {"", 3}, {"", 7}, {"avx512bf16", 2}, {"avx512", 2}, {"avx2", 2}, {"avx2", 7}, {"generic", 3},
  {"amx-emulated", 1}, {"amx-emulated", 3}, {"amx", 2},
};

// Matrix tiles differ from other sets in products in bf16 alone, and there they are compared among themselves.
static inline bool tiles_matter(const Operation *op) { return !on_cuda() && on_bf16() && !strncmp(op->name, "linear", 6); }

static inline void check_same_bits(const Operation *op) {
  Results first[2][SHAPES];   // of chains; of tiles
  bool there[2] = {false};
  for (size_t v = 0; v < (on_cuda() ? 2 : ARRAY_LEN(variants)); v++) {
    const char *set = variants[v].instruction_set;
    if (!on_cuda() && *set && !(strncmp(set, "amx", 3) ? has_instruction_set(set) : tiles_matter(op) && (set[3] || !cpu_tiles_unavailable()))) continue;
    Device *d = on_cuda() ? device_under_test(0) : device_with(set, variants[v].threads);
    const bool tiles = d->row_group > 1 && tiles_matter(op);
    for (int number = 0; number < SHAPES; number++) {
      Case c;
      case_begin(&c, op, number);
      Results got = results_of(&c, d, false, NULL);
      for (int a = 0; there[tiles] && a < c.arrays; a++)
        CHECK_MSG(!memcmp(got.p[a], first[tiles][number].p[a], c.array[a].n * sizeof(double)), "%s [%s]: %s: other bits with %s", op->name, dims_text(&c),
                  c.array[a].name, d->description);
      if (there[tiles]) results_free(&c, &got);
      else first[tiles][number] = got;
      case_end(&c);
    }
    there[tiles] = true;
    d->destroy(d);
  }
  for (int number = 0; number < SHAPES; number++) {
    Case c;
    case_begin(&c, op, number);
    for (int tiles = 0; tiles < 2; tiles++) if (there[tiles]) results_free(&c, &first[tiles][number]);
    case_end(&c);
  }
}

static inline void check_operation(const Operation *op) {
  check_against_reference(op, device_under_test(2));
  if (tiles_matter(op)) check_against_reference(op, device_with("amx-emulated", 2));
  check_same_bits(op);
}
