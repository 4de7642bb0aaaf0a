// cpu.c: owns the CPU device itself: its table of operations, memory, threads, and the choice of the instruction set.
//
// The operations are in cpu_ops.c, cpu_gemm.c and cpu_attention.c, which are compiled once for each instruction set; this file
// is compiled once, for any processor, asks what this one has, and fills the table from the best set. All sets give the same bits, but
// `amx`, which has its own.
// Tests: tests/test_cpu.c, tests/test_tiles.c, tests/test_ops.c
#include "cpu.h"        // CpuState, the functions of each instruction set
#include "machine.h"    // machine_cores
#include "util.h"       // fail, xcalloc, round_up
#if defined(CPU_BUILDS_AMX)
#include <cpuid.h>      // __get_cpuid_count
#include <errno.h>      // errno
#endif
#include <limits.h>     // PATH_MAX
#include <stdio.h>      // snprintf
#include <stdlib.h>     // getenv, strtol, posix_memalign, realpath, free
#include <string.h>     // memset, memmove, strcmp
#include <sys/mman.h>   // mmap, madvise
#if defined(CPU_BUILDS_AMX)
#include <sys/syscall.h>   // SYS_arch_prctl
#endif
#include <unistd.h>     // sysconf

// ---- instruction sets, the best first ----

typedef enum { STORE_FP32, STORE_BF16, STORAGES } Storage;
typedef struct InstructionSet {
  const char *name;
  unsigned needs;   // CPU_HAS_ bits
  struct { void (*ops)(Device *), (*attention)(Device *); double (*fma_rate)(double seconds); } of[STORAGES];   // none: the next lower set's are taken
} InstructionSet;
#define KERNELS(isa) {cpu_ops_##isa, cpu_attention_##isa, cpu_fma_rate_##isa}

static const InstructionSet instruction_sets[] = {
#if defined(__x86_64__)
#ifdef CPU_BUILDS_AMX   // the compiler knows it (dev/probe.sh)
  {"amx", CPU_HAS_FMA | CPU_HAS_AVX2 | CPU_HAS_AVX512 | CPU_HAS_TILES, {[STORE_BF16] = KERNELS(amx)}},
#endif
  {"avx512bf16", CPU_HAS_FMA | CPU_HAS_AVX2 | CPU_HAS_AVX512 | CPU_HAS_AVX512BF16, {[STORE_BF16] = KERNELS(avx512bf16)}},
  {"avx512", CPU_HAS_FMA | CPU_HAS_AVX2 | CPU_HAS_AVX512, {KERNELS(avx512), KERNELS(avx512_bf16)}},
  {"avx2", CPU_HAS_FMA | CPU_HAS_AVX2, {KERNELS(avx2), KERNELS(avx2_bf16)}},
#endif
#ifdef CPU_TEST_SETS
  {"amx-emulated", CPU_IF_ASKED, {[STORE_BF16] = KERNELS(amx_emulated)}},
#endif
  {"generic", 0, {KERNELS(generic), KERNELS(generic_bf16)}},
};

// ---- matrix tiles: registers of 8 KiB a thread, which Linux keeps for a process only if it has asked ----

const char *cpu_tiles_refusal(const TileFacts *f) {
  static char text[160];
  if (!f->built) return "this build has none: its compiler is too old or not for x86-64 (gcc 11, clang 12 know them)";
  if (!f->processor) return "this processor has none";
  if (!f->system) return "the operating system does not keep their registers";
  if (!f->refused) return NULL;
  snprintf(text, sizeof text, "the system refused their registers (arch_prctl: %s); Linux 5.16 or later gives them, unless a sandbox forbids it", strerror(f->refused));
  return text;
}

static TileFacts tile_facts(void) {
  TileFacts facts = {0};
#ifdef CPU_BUILDS_AMX
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
  unsigned a = 0, b, c = 0, d = 0, low, high;
  facts.built = true;
  facts.processor = __builtin_cpu_supports("avx512f") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);   // AMX-BF16, AMX-TILE
  if (!facts.processor) return facts;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));   // there: it has AVX-512
  facts.system = (low >> 17 & 3) == 3;                  // configuration and data of tiles
  if (facts.system && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA)) facts.refused = errno;
#endif
  return facts;
}

const char *cpu_tiles_unavailable(void) {
  const TileFacts facts = tile_facts();
  return cpu_tiles_refusal(&facts);
}

// The processor has it and the system saves its registers.
unsigned cpu_features(void) {
#if defined(__x86_64__)
  return (__builtin_cpu_supports("fma") ? CPU_HAS_FMA : 0) | (__builtin_cpu_supports("avx2") ? CPU_HAS_AVX2 : 0) |
         (__builtin_cpu_supports("avx512f") ? CPU_HAS_AVX512F : 0) | (__builtin_cpu_supports("avx512bw") ? CPU_HAS_AVX512BW : 0) |
         (__builtin_cpu_supports("avx512vl") ? CPU_HAS_AVX512VL : 0) | (__builtin_cpu_supports("avx512dq") ? CPU_HAS_AVX512DQ : 0) |
         (__builtin_cpu_supports("avx512bf16") ? CPU_HAS_AVX512BF16 : 0) | (cpu_tiles_unavailable() ? 0 : CPU_HAS_TILES);
#else
  return 0;
#endif
}

static const InstructionSet *choose_instruction_set(Storage storage, const char *wanted, unsigned features) {
  if (wanted && !*wanted) wanted = NULL;
  if (wanted) features |= CPU_IF_ASKED;
  char names[64] = "";
  for (size_t i = 0; i < ARRAY_LEN(instruction_sets); i++) {
    const InstructionSet *set = &instruction_sets[i];
    const bool available = (set->needs & features) == set->needs;
    if (wanted ? !strcmp(wanted, set->name) : available) {
      if (!available) fail(EXIT_MACHINE, "GPT_CPU=%s: this processor lacks it; unset GPT_CPU and the best one here is taken", wanted);
      while (!set->of[storage].ops) set++;
      // Some processors multiply pairs of bf16 at half the speed of floats. The bits are the same either way.
      const bool slow = !wanted && storage == STORE_BF16 && !strcmp(set->name, "avx512bf16") && set->of[storage].fma_rate(1e-3) < set[1].of[storage].fma_rate(1e-3);
      return slow ? set + 1 : set;
    }
    snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", set->name);
  }
  fail(EXIT_REQUEST, "GPT_CPU=%s: no such instruction set in this build; there are %s", wanted, names);
}

const char *cpu_set_name(bool stores_bf16, const char *wanted, unsigned features) { return choose_instruction_set(stores_bf16 ? STORE_BF16 : STORE_FP32, wanted, features)->name; }

// ---- threads ----

#ifdef _OPENMP
// OMP_PROC_BIND has tied the calling thread to one place before main: what all places hold is what counts.
static int bound_cores(void) {
  int count = 0, processors[1024];
  for (int place = 0; place < omp_get_num_places(); place++) {
    const int n = omp_get_place_num_procs(place);
    if (n < 1 || count + n > (int)ARRAY_LEN(processors)) break;
    omp_get_place_proc_ids(place, processors + count);
    count += n;
  }
  return machine_cores_among(processors, count);
}
#endif

int cpu_processors(void) {
#ifdef _OPENMP
  if (omp_get_proc_bind() != omp_proc_bind_false) return omp_get_num_procs();
#endif
  return machine_threads();
}

int cpu_choose_threads(int threads) {
#ifdef _OPENMP
  const char *text = getenv("OMP_NUM_THREADS");
  if (threads <= 0 && text) threads = (int)MIN(strtol(text, NULL, 10), 4096L);
  return threads > 0 ? threads : omp_get_proc_bind() != omp_proc_bind_false && omp_get_num_places() > 0 ? bound_cores() : machine_cores();
#else
  (void)threads;
  return 1;
#endif
}

// How long does a thread that waits for the others keep its core? libgomp's own answer is 5 to 20 ms: beside another program it then takes the core
// from the very thread that it waits for. Sleeping at once costs a wake-up of 50 us for each of the hundred and more regions of a step. So: tens of
// microseconds, in which nearly all waits end, then sleep. Measured on two cores, a step of a small model, quiet and beside one busy program, mean ms:
// libgomp's 12.5 and 50; asleep at once 17.7 and 27; 1,000 turns 13.1 and 32; 2,000 turns 12.6 and 37; LLVM's 1 ms instead of 200: as before, and 35 instead of 50.
// Pinning brought nothing there. OpenMP reads its variables before main, so the program starts itself again, once (a millisecond). Who has set any of
// OpenMP's own variables for this is obeyed.
void cpu_wait_briefly(char **argv) {
#ifdef _OPENMP
  static const char *const users[] = {"OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY", "KMP_BLOCKTIME", "KMP_AFFINITY", "KMP_LIBRARY"};
  for (size_t i = 0; i < ARRAY_LEN(users); i++) if (getenv(users[i])) return;
  char path[PATH_MAX];   // its own name, not that link's: it is what ps shows
  if (!realpath("/proc/self/exe", path) || setenv("KMP_BLOCKTIME", "1", 0) || setenv("GOMP_SPINCOUNT", "2000", 0)) return;
  execv(path, argv);   // returns where it cannot, and all goes on as it was
#else
  (void)argv;
#endif
}

void *cpu_scratch(CpuState *state, int slot, size_t bytes) {
  if (bytes <= state->scratch[slot].bytes) return state->scratch[slot].data;
  // A growing cache does not ask anew for each token: an eighth more is asked for, which costs nothing until it is used.
  const size_t size = round_up(bytes + bytes / 8, (size_t)1 << 16);
  free(state->scratch[slot].data);
  state->scratch[slot].bytes = size;
  if (posix_memalign(&state->scratch[slot].data, 64, size)) fail(EXIT_MACHINE, "memory: no %zu MiB for the CPU device's working memory; use a smaller --context or fewer --threads", size >> 20);
  return state->scratch[slot].data;
}

// ---- memory: whole pages from the system, which come zeroed; huge ones where there are any ----

enum { HUGE_PAGE = 1 << 21 };

size_t cpu_mapped_size(size_t bytes) {
  size_t unit = bytes >= HUGE_PAGE ? (size_t)HUGE_PAGE : (size_t)sysconf(_SC_PAGESIZE);
  return bytes > PTRDIFF_MAX ? 0 : round_up(bytes + !bytes, unit);   // at least a page; 0: more than there are addresses, which mmap refuses
}

static void *cpu_allocate(Device *d, size_t bytes) {
  (void)d;
  const size_t size = cpu_mapped_size(bytes), spare = size >= HUGE_PAGE ? HUGE_PAGE : 0;
  char *p = mmap(NULL, size + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return NULL;
  if (!spare) return p;
  char *begin = (char *)round_up((size_t)p, HUGE_PAGE);   // cut off what is before and behind whole huge pages
  const size_t before = (size_t)(begin - p), behind = spare - before;
  munmap(p, before);                                      // does nothing where there is nothing
  munmap(begin + size, behind);
  madvise(begin, size, MADV_HUGEPAGE);                    // advice: nothing depends on it
  return begin;
}

// ---- copies of weights ----

static void forget_copies(CpuState *state) {
  for (size_t i = 0; i < state->kept.count; i++) munmap(state->kept.list[i].panels, cpu_mapped_size(state->kept.list[i].bytes));
  free(state->kept.list);
  memset(&state->kept, 0, sizeof state->kept);
}

static void cpu_release(Device *d, void *p, size_t bytes) {
  CpuState *state = cpu_state(d);
  const uintptr_t begin = (uintptr_t)p;
  if (!p) return;
  if (begin < state->kept.end && state->kept.begin < begin + bytes) forget_copies(state);   // what comes to lie there is announced anew, or is no weight
  munmap(p, cpu_mapped_size(bytes));
}

static void cpu_refresh(Device *d, const real *params, size_t n) {
  CpuState *state = cpu_state(d);
  const uintptr_t begin = (uintptr_t)params, end = begin + n * d->real_size;
  if (begin != state->kept.begin || end != state->kept.end) forget_copies(state);
  state->kept.begin = begin, state->kept.end = end;
  state->kept.version++;
}

void *cpu_kept_copy(CpuState *state, const void *weight, size_t n, size_t k, bool across, size_t bytes, bool *current) {
  const uintptr_t begin = (uintptr_t)weight;
  *current = false;
  if (begin < state->kept.begin || begin + n * k * sizeof(bf16) > state->kept.end) return NULL;
  CpuCopy *copy = NULL;
  for (size_t i = 0; i < state->kept.count && !copy; i++) {
    CpuCopy *c = &state->kept.list[i];
    if (c->weight == weight && c->n == n && c->k == k && c->across == across) copy = c;
  }
  if (!copy) {
    void *panels = cpu_allocate(NULL, bytes);
    if (!panels) return NULL;
    state->kept.list = xrealloc(state->kept.list, state->kept.count + 1, sizeof *state->kept.list);
    copy = &state->kept.list[state->kept.count++];
    *copy = (CpuCopy){ weight, n, k, bytes, across, 0, panels };
  }
  *current = copy->version == state->kept.version;
  copy->version = state->kept.version;
  return copy->panels;
}

// Large blocks by all threads: one core alone does not fill the memory's bandwidth, nor touches new pages as fast.
enum { SMALLEST_SHARED_COPY = 1 << 20, COPY_PIECE = 1 << 18 };
static inline int copiers(const Device *d, size_t bytes) { return bytes < SMALLEST_SHARED_COPY ? 1 : cpu_state(d)->threads; }

static void cpu_zero(Device *d, void *p, size_t bytes) {
  if (copiers(d, bytes) == 1 || (uintptr_t)p % CPU_STREAM_UNIT) { memset(p, 0, bytes); return; }
  #pragma omp parallel for schedule(static) num_threads(copiers(d, bytes))
  for (size_t at = 0; at < bytes; at += COPY_PIECE) cpu_stream_zeros((char *)p + at, MIN((size_t)COPY_PIECE, bytes - at));
}

static void cpu_copy(Device *d, void *dst, const void *src, size_t bytes) {
  #pragma omp parallel for schedule(static) num_threads(copiers(d, bytes))
  for (size_t at = 0; at < bytes; at += COPY_PIECE) memcpy((char *)dst + at, (const char *)src + at, MIN((size_t)COPY_PIECE, bytes - at));
  (void)d;
}

static void narrow(const Device *d, float *dst, const double *src, size_t n) {
  #pragma omp parallel for schedule(static) num_threads(copiers(d, n * sizeof *src))
  for (size_t i = 0; i < n; i++) dst[i] = (float)src[i];
  (void)d;
}
static void widen(double *dst, const float *src, size_t n) {
  for (size_t i = 0; i < n; i++) dst[i] = src[i];
}

static void cpu_upload_real(Device *d, real *dst, const double *src, size_t n) { narrow(d, (float *)dst, src, n); }
static void cpu_upload_acc(Device *d, acc *dst, const double *src, size_t n) { narrow(d, acc_floats(dst), src, n); }
static void cpu_upload_real_float(Device *d, real *dst, const float *src, size_t n) { (void)d; memmove(dst, src, n * sizeof(float)); }
static void cpu_upload_acc_float(Device *d, acc *dst, const float *src, size_t n) { (void)d; memmove(dst, src, n * sizeof(float)); }
static void cpu_upload_ids(Device *d, int32_t *dst, const int32_t *src, size_t n) { (void)d; memmove(dst, src, n * sizeof(int32_t)); }
static void cpu_download_real(Device *d, double *dst, const real *src, size_t n) { (void)d; widen(dst, (const float *)src, n); }
static void cpu_download_acc(Device *d, double *dst, const acc *src, size_t n) { (void)d; widen(dst, const_acc_floats(src), n); }
static void cpu_download_stat(Device *d, double *dst, const scalar *src, size_t n) { (void)d; memmove(dst, src, n * sizeof(double)); }

static void cpu_upload_real_bf16(Device *d, real *dst, const double *src, size_t n) {
  (void)d;
  #pragma omp parallel for schedule(static) num_threads(copiers(d, n * sizeof *src))
  for (size_t i = 0; i < n; i++) ((bf16 *)dst)[i] = bf16_of_double(src[i]);
}
static void cpu_upload_real_float_bf16(Device *d, real *dst, const float *src, size_t n) {
  (void)d;
  for (size_t i = 0; i < n; i++) ((bf16 *)dst)[i] = bf16_of_float(src[i]);
}
static void cpu_download_real_bf16(Device *d, double *dst, const real *src, size_t n) {
  (void)d;
  for (size_t i = 0; i < n; i++) dst[i] = float_of_bf16(((const bf16 *)src)[i]);
}
static real *cpu_real_at_bf16(real *p, size_t i) { return (real *)((bf16 *)p + i); }

static void cpu_sync(Device *d) { (void)d; }   // every operation has ended when it returns
static real *cpu_real_at(real *p, size_t i) { return (real *)((float *)p + i); }
static acc *cpu_acc_at(acc *p, size_t i) { return (acc *)(acc_floats(p) + i); }
static scalar *cpu_stat_at(scalar *p, size_t i) { return (scalar *)((double *)p + i); }

static void cpu_destroy(Device *d) {
  for (int slot = 0; slot < CPU_SCRATCH_COUNT; slot++) free(cpu_state(d)->scratch[slot].data);
  forget_copies(cpu_state(d));
  free(d->state);
  free(d);
}

// ---- the device ----

// FLOP/s of all threads together: each runs on registers alone for 1 ms, twice, for the first time may find a slow clock.
static double measure_peak(double (*fma_rate)(double seconds), int threads) {
  double best = 0, *rate = xcalloc((size_t)threads, sizeof *rate);
  for (int trial = 0; trial < 2; trial++) {
    double total = 0;
    #pragma omp parallel num_threads(threads)
    rate[omp_get_thread_num()] = fma_rate(1e-3);
    for (int t = 0; t < threads; t++) total += rate[t];
    best = MAX(best, total);
  }
  free(rate);
  return best;
}

static double cpu_measure_peak(Device *d) { return measure_peak(cpu_state(d)->fma_rate, cpu_state(d)->threads); }

// Every thread changes its part in place, 64 bytes at a time: as many bytes are written as read, and nothing is read only to be overwritten.
static double cpu_measure_bandwidth(Device *d) {
  typedef float line __attribute__((vector_size(64)));
  const size_t cache = (size_t)MAX(sysconf(_SC_LEVEL3_CACHE_SIZE), 0L), bytes = MIN(MAX(4 * cache, (size_t)256 << 20), (size_t)1 << 30) / COPY_PIECE * COPY_PIECE;
  char *array = cpu_allocate(d, bytes);
  double best = 0;
  if (!array) return 0;
  cpu_zero(d, array, bytes);   // touches it
  for (int pass = 0; pass < 4; pass++) {
    const double start = seconds_now();
    #pragma omp parallel for schedule(static) num_threads(cpu_state(d)->threads)
    for (size_t at = 0; at < bytes; at += COPY_PIECE)
      for (line *p = (line *)(array + at); p < (line *)(array + at + COPY_PIECE); p++) *p += 1;
    best = MAX(best, 2 * (double)bytes / (seconds_now() - start));
  }
  cpu_release(d, array, bytes);
  return best;
}

static Device *device_of(Storage storage, int threads) {
  const InstructionSet *set = choose_instruction_set(storage, getenv("GPT_CPU"), cpu_features());
  CpuState *state = xcalloc(1, sizeof *state);
  Device *d = xcalloc(1, sizeof *d);
  state->threads = cpu_choose_threads(threads);
  machine_require_threads(state->threads);
  state->fma_rate = set->of[storage].fma_rate;
  snprintf(state->description, sizeof state->description, "%s, %s, %d thread%s", storage == STORE_BF16 ? "bf16" : "fp32", set->name, state->threads, state->threads == 1 ? "" : "s");
  cpu_flush_denormals();   // the calling thread, which works too; the others do it where they start
  *d = (Device){
    .name = "cpu", .description = state->description, .real_size = sizeof(float), .acc_size = sizeof(float), .real_is_acc = 1,
    .row_multiple = 16, .state = state, .peak_flops = measure_peak(state->fma_rate, state->threads),
    .allocate = cpu_allocate, .release = cpu_release, .zero = cpu_zero, .copy = cpu_copy,
    .upload_real = cpu_upload_real, .upload_acc = cpu_upload_acc, .upload_real_float = cpu_upload_real_float,
    .upload_acc_float = cpu_upload_acc_float, .upload_ids = cpu_upload_ids, .download_real = cpu_download_real,
    .download_acc = cpu_download_acc, .download_stat = cpu_download_stat, .sync = cpu_sync, .destroy = cpu_destroy,
    .measure_peak = cpu_measure_peak, .measure_bandwidth = cpu_measure_bandwidth,
    .real_at = cpu_real_at, .acc_at = cpu_acc_at, .stat_at = cpu_stat_at, .refresh = cpu_refresh,
  };
  if (storage == STORE_BF16) {
    d->real_size = sizeof(bf16), d->real_is_acc = 0, d->real_at = cpu_real_at_bf16;
    d->upload_real = cpu_upload_real_bf16, d->upload_real_float = cpu_upload_real_float_bf16, d->download_real = cpu_download_real_bf16;
  }
  set->of[storage].ops(d);
  set->of[storage].attention(d);
  return d;
}

Device *cpu_device(int threads) { return device_of(STORE_FP32, threads); }
Device *cpu_device_bf16(int threads) { return device_of(STORE_BF16, threads); }
