// test_cpu.c: owns the tests of the CPU device itself (cpu.c): which instruction set, how many threads, how threads wait, memory, transfers.
//
// What depends on the process's beginning (OpenMP reads its variables before main) is asked of a child: this program itself, started
// with the name of a question (answer()).
#include "../cpu.h"      // what is tested
#include "../machine.h"  // machine_cores, machine_threads
#include "../util.h"     // format, ARRAY_LEN
#include "test.h"        // RUN, CHECK
#include <sched.h>       // sched_getaffinity
#include <sys/mman.h>    // mmap

static const char *self;   // argv[0]

// ---- which instruction set ----

typedef struct { bool fma, avx2, f, bw, vl, dq, pairs, tiles; } Features;
static unsigned bits_of(Features x) {
  return (x.fma ? CPU_HAS_FMA : 0u) | (x.avx2 ? CPU_HAS_AVX2 : 0u) | (x.f ? CPU_HAS_AVX512F : 0u) | (x.bw ? CPU_HAS_AVX512BW : 0u) | (x.vl ? CPU_HAS_AVX512VL : 0u) |
         (x.dq ? CPU_HAS_AVX512DQ : 0u) | (x.pairs ? CPU_HAS_AVX512BF16 : 0u) | (x.tiles ? CPU_HAS_TILES : 0u);
}

// Every processor there could be: a set is taken only where all that it is compiled for is there. The set of pairs of bf16 is timed, and so not
// chosen here for a processor that has it.
static void the_best_set_is_taken(void) {
#if defined(__x86_64__)
  for (int i = 0; i < 128; i++) {
    const Features x = {i & 1, i & 2, i & 4, i & 8, i & 16, i & 32, i & 64, false};
    const bool avx2 = x.fma && x.avx2, avx512 = avx2 && x.f && x.bw && x.vl && x.dq;
    const char *best = avx512 ? "avx512" : avx2 ? "avx2" : "generic";
    CHECK_STR(cpu_set_name(false, NULL, bits_of(x)), best);
    CHECK_STR(cpu_set_name(false, "", bits_of(x)), best);
    if (!(avx512 && x.pairs)) CHECK_STR(cpu_set_name(true, NULL, bits_of(x)), best);
    else CHECK_STR(cpu_set_name(true, "avx512bf16", bits_of(x)), "avx512bf16");
  }
  const unsigned all = bits_of((Features){1, 1, 1, 1, 1, 1, 1, 0});
#ifdef CPU_BUILDS_AMX
#define AMX_NAME "amx, "
  for (unsigned bit = 0; bit < 8; bit++) {   // tiles, where nothing but pairs is missing
    const unsigned x = (all | CPU_HAS_TILES) & ~(1u << bit);
    const bool there = 1u << bit == CPU_HAS_AVX512BF16;
    if (there) CHECK_STR(cpu_set_name(true, NULL, x), "amx");
    else if (bit < 6) CHECK(strncmp(cpu_set_name(true, NULL, x), "amx", 3) != 0);
    if (there) CHECK_STR(cpu_set_name(true, "amx", x), "amx");
    else EXPECT_FAIL(EXIT_MACHINE, "GPT_CPU=amx: this processor lacks it", cpu_set_name(true, "amx", x));
  }
  CHECK_STR(cpu_set_name(true, NULL, all | CPU_HAS_TILES), "amx");
  CHECK_STR(cpu_set_name(false, NULL, all | CPU_HAS_TILES), "avx512");
  CHECK_STR(cpu_set_name(false, "amx", all | CPU_HAS_TILES), "avx512");   // fp32 has no kernels of its own there either
#else
#define AMX_NAME ""
#endif
  CHECK_STR(cpu_set_name(true, "amx-emulated", 0), "amx-emulated");
  CHECK_STR(cpu_set_name(false, "avx512bf16", all), "avx512");   // fp32 has no kernels of its own there
  CHECK_STR(cpu_set_name(true, "avx512", all), "avx512");
  CHECK_STR(cpu_set_name(true, "avx2", all), "avx2");
  CHECK_STR(cpu_set_name(true, "generic", all), "generic");
  EXPECT_FAIL(EXIT_MACHINE, "GPT_CPU=avx2: this processor lacks it", cpu_set_name(false, "avx2", CPU_HAS_AVX2));
  EXPECT_FAIL(EXIT_MACHINE, "GPT_CPU=avx512bf16: this processor lacks it", cpu_set_name(false, "avx512bf16", all & ~(unsigned)CPU_HAS_AVX512BF16));
  EXPECT_FAIL(EXIT_REQUEST, "GPT_CPU=sse9: no such instruction set in this build; there are " AMX_NAME "avx512bf16, avx512, avx2, amx-emulated, generic\n", cpu_set_name(true, "sse9", all));
  FILE *f = fopen("/proc/cpuinfo", "r");
  char *flags = xcalloc(1, 1 << 16);
  for (bool found = false; f && !found && fgets(flags, 1 << 16, f);) found = !strncmp(flags, "flags", 5);
  const unsigned here = cpu_features();
  const struct { unsigned bit; const char *flag; } known[] = {{CPU_HAS_FMA, " fma "}, {CPU_HAS_AVX2, " avx2 "}, {CPU_HAS_AVX512F, " avx512f "}, {CPU_HAS_AVX512BW, " avx512bw "},
    {CPU_HAS_AVX512VL, " avx512vl "}, {CPU_HAS_AVX512DQ, " avx512dq "}, {CPU_HAS_AVX512BF16, " avx512_bf16 "}};
  for (size_t i = 0; i < ARRAY_LEN(known) && f; i++) CHECK_MSG(!(here & known[i].bit) == !strstr(flags, known[i].flag), "%s", known[i].flag);
  if (f) fclose(f);
  free(flags);
#else
  CHECK_STR(cpu_set_name(false, NULL, cpu_features()), "generic");
#endif
}

// ---- threads ----

// Answers one question on stdout. The program starts itself again where cpu_wait_briefly() says so, and comes by here twice.
static int answer(int argc, char **argv) {
  if (!strcmp(argv[1], "--threads")) printf("%d %d\n", cpu_choose_threads(0), cpu_processors());
  if (!strcmp(argv[1], "--waits")) {
    cpu_wait_briefly(argv);
    const char *spin = getenv("GOMP_SPINCOUNT"), *block = getenv("KMP_BLOCKTIME");
    printf("%s %s %d %s\n", spin ? spin : "none", block ? block : "none", argc, argv[argc - 1]);
  }
  return 0;
}

#ifdef _OPENMP
// What this program answers with these settings before it.
static const char *ask(const char *settings, const char *question) {
  static char line[256];
  char *command = format("unset OMP_WAIT_POLICY OMP_PROC_BIND OMP_PLACES OMP_NUM_THREADS GOMP_SPINCOUNT GOMP_CPU_AFFINITY KMP_BLOCKTIME KMP_AFFINITY KMP_LIBRARY; %s exec '%s' %s",
                         settings, self, question);
  FILE *f = popen(command, "r");
  if (!f || !fgets(line, sizeof line, f)) strcpy(line, "nothing\n");
  if (f) pclose(f);
  free(command);
  line[strcspn(line, "\n")] = 0;
  return line;
}
#endif

static void threads_are_chosen(void) {
  CHECK_EQ(cpu_choose_threads(1), 1);
  CHECK_EQ(cpu_choose_threads(17), 17);
  const char *before = getenv("OMP_NUM_THREADS");
  char *saved = before ? xstrdup(before) : NULL;
  static const struct { const char *text; int threads; } known[] = {{"3", 3}, {"12", 12}, {"4095", 4095}, {"4096", 4096}, {"4097", 4096}, {"99999999999", 4096}, {"1", 1}};
  for (size_t i = 0; i < ARRAY_LEN(known); i++) {
    setenv("OMP_NUM_THREADS", known[i].text, 1);
#ifdef _OPENMP
    CHECK_EQ(cpu_choose_threads(0), known[i].threads);
    CHECK_EQ(cpu_choose_threads(-1), known[i].threads);
    CHECK_EQ(cpu_choose_threads(1), 1);
    CHECK_EQ(cpu_choose_threads(5), 5);
#else
    CHECK_EQ(cpu_choose_threads(0), 1);
#endif
  }
  setenv("OMP_NUM_THREADS", "0", 1);
#ifdef _OPENMP
  CHECK_EQ(cpu_choose_threads(0), machine_cores());
  setenv("OMP_NUM_THREADS", "many", 1);
  CHECK_EQ(cpu_choose_threads(0), machine_cores());
#endif
  if (saved) setenv("OMP_NUM_THREADS", saved, 1);
  else unsetenv("OMP_NUM_THREADS");
  free(saved);
}

// Bound to places, what all of them hold counts, though the first thread is in one of them.
static void bound_threads_are_counted(void) {
#if defined(_OPENMP) && !defined(__clang__)   // LLVM's own counts of places differ
  cpu_set_t set;
  int processors[CPU_SETSIZE], n = 0;
  if (sched_getaffinity(0, sizeof set, &set)) return;
  for (int i = 0; i < CPU_SETSIZE; i++) if (CPU_ISSET(i, &set)) processors[n++] = i;
  char *expected = format("%d %d", machine_cores(), machine_threads());
  CHECK_STR(ask("", "--threads"), expected);
  CHECK_STR(ask("OMP_PROC_BIND=false", "--threads"), expected);
  free(expected);
  CHECK_EQ(atoi(ask("OMP_NUM_THREADS=9", "--threads")), 9);
  if (n < 2) return;
  char *places[] = {format("{%d}", processors[0]), format("{%d},{%d}", processors[0], processors[1]), format("{%d,%d}", processors[0], processors[1]), format("{%d}", processors[1])};
  const int cores[] = {1, machine_cores_among(processors, 2), machine_cores_among(processors, 2), 1};
  for (size_t i = 0; i < ARRAY_LEN(places); i++) {
    char *settings = format("OMP_PROC_BIND=true OMP_PLACES='%s'", places[i]);
    const char *said = ask(settings, "--threads");
    CHECK_MSG(atoi(said) == cores[i], "%s: %s, cores are %d", settings, said, cores[i]);
    free(settings);
    free(places[i]);
  }
#endif
}

// A thread that waits spins a little, then sleeps; a user who says how threads shall wait is obeyed, and the program is not started again.
static void threads_wait_briefly(void) {
#ifdef _OPENMP
  CHECK_STR(ask("", "--waits more"), "2000 1 3 more");
  CHECK_STR(ask("OMP_NUM_THREADS=2", "--waits"), "2000 1 2 --waits");
  static const char *const users[] = {"OMP_WAIT_POLICY=active", "OMP_PROC_BIND=false", "OMP_PLACES=threads", "GOMP_CPU_AFFINITY=0", "KMP_AFFINITY=none", "KMP_LIBRARY=throughput"};
  for (size_t i = 0; i < ARRAY_LEN(users); i++) CHECK_STR(ask(users[i], "--waits"), "none none 2 --waits");
  CHECK_STR(ask("GOMP_SPINCOUNT=7", "--waits"), "7 none 2 --waits");
  CHECK_STR(ask("KMP_BLOCKTIME=8", "--waits"), "none 8 2 --waits");
#endif
}

// A rate does not depend on how long it is measured: the best of five trials, short and ten times as long. (Half to twice would do on a quiet
// machine; a time multiplied instead of divided by is off by a hundred.)
static void rates_are_per_second(void) {
  double (*const rates[])(double) = {
    cpu_fma_rate_generic, cpu_fma_rate_generic_bf16, cpu_fma_rate_amx_emulated,
#if defined(__x86_64__)
    __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? cpu_fma_rate_avx2 : NULL, __builtin_cpu_supports("avx512dq") ? cpu_fma_rate_avx512 : NULL,
#endif
  };
  for (size_t i = 0; i < ARRAY_LEN(rates); i++) {
    double once = 0, longer = 0;
    for (int trial = 0; rates[i] && trial < 5; trial++) once = fmax(once, rates[i](1e-3)), longer = fmax(longer, rates[i](1e-2));
    CHECK_MSG(!rates[i] || (once > 0 && longer > 0.1 * once && longer < 10 * once), "set %zu: %g in a millisecond, %g in ten", i, once, longer);
  }
}

// The peak is the better one of two trials, of all threads together; each runs for a millisecond.
static int rated;
static double rate_of_this_call(double seconds) {
  CHECK_NEAR(seconds, 1e-3, 0, "of one trial");
  int call;
  #pragma omp atomic capture
  call = rated++;
  return call < 2 ? 0.25 : call < 4 ? 0.5 : 7;   // of two threads: 0.5, then 1, and no third trial
}
static void peak_is_of_all_threads(void) {
  CpuState state = {.fma_rate = rate_of_this_call, .threads = 1};
  Device *d = cpu_device(1), fake = *d;
  fake.state = &state;
  rated = 1;
  CHECK_NEAR(fake.measure_peak(&fake), 0.5, 0, "one thread");
#ifdef _OPENMP
  state.threads = 2, rated = 0;
  CHECK_NEAR(fake.measure_peak(&fake), 1, 0, "two threads of a half");
  CHECK_EQ(rated, 4);
#endif
  CHECK(d->peak_flops > 1e6 && d->peak_flops < 1e14);
  d->destroy(d);
}

// ---- memory ----

// Bytes of addresses that this process has.
static size_t addresses(void) {
  size_t pages = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  if (!f || fscanf(f, "%zu", &pages) != 1) pages = 0;
  if (f) fclose(f);
  return pages * (size_t)sysconf(_SC_PAGESIZE);
}

// Whole pages, or whole huge ones aligned to them, zeroed; nothing else is kept, and all is given back.
static void memory_is_given_back(void) {
#if !defined(__SANITIZE_ADDRESS__)   // whose own memory grows beside
  Device *d = cpu_device(1);
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), huge = (size_t)2 << 20;
  const size_t sizes[] = {0, 1, page - 1, page, page + 1, 3 * page, huge - 1, huge, huge + 1, 2 * huge - 1, 2 * huge, 5 * huge + 12345};
  for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
    const size_t before = addresses(), unit = sizes[i] >= huge ? huge : page;
    char *p = d->allocate(d, sizes[i]);
    CHECK(p && (uintptr_t)p % unit == 0);
    CHECK_EQ(addresses() - before, sizes[i] ? round_up(sizes[i], unit) : page);
    size_t bad = 0;
    for (size_t j = 0; j < sizes[i]; j++) bad += p[j] != 0, p[j] = 1;
    CHECK_EQ(bad, 0);
    d->release(d, p, sizes[i]);
    CHECK_EQ(addresses(), before);
  }
  d->release(d, NULL, huge);
  CHECK(d->allocate(d, SIZE_MAX) == NULL && d->allocate(d, SIZE_MAX / 2) == NULL && d->allocate(d, SIZE_MAX / 2 + 2) == NULL);
  for (size_t less = 0; less < 8 * huge; less += huge / 2) CHECK(d->allocate(d, SIZE_MAX - less) == NULL);
  d->destroy(d);
#endif
}

// Blocks below and above what threads share, of whole pieces and not: all of them, and nothing beside.
static void blocks_are_cleared_and_copied(void) {
  Device *d = cpu_device(3);
  const size_t piece = (size_t)1 << 18, sizes[] = {0, 1, 777, piece - 1, piece, piece + 1, 3 * piece + 5, 4 * piece, 4 * piece + 1, 9 * piece + 333};
  const size_t most = 9 * piece + 333, edge = piece + 100;   // a piece too much would be seen
  unsigned char *from = xmalloc(most + 2 * edge, 1), *to = xmalloc(most + 2 * edge, 1);
  for (size_t j = 0; j < most + 2 * edge; j++) from[j] = (unsigned char)(j * 7 + (j >> 8) + (j >> 16) * 3);
  for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
    for (int copies = 0; copies < 2; copies++) {
      memset(to, 0xa5, most + 2 * edge);
      if (copies) d->copy(d, to + edge, from + edge, sizes[i]);
      else d->zero(d, to + edge, sizes[i]);
      size_t bad = 0, beside = 0;
      for (size_t j = 0; j < most + 2 * edge; j++) {
        if (j < edge || j >= edge + sizes[i]) beside += to[j] != 0xa5;
        else bad += to[j] != (copies ? from[j] : 0);
      }
      CHECK_MSG(bad == 0 && beside == 0, "%s %zu bytes: %zu wrong, %zu written beside", copies ? "copy" : "zero", sizes[i], bad, beside);
    }
  free(from), free(to);
  d->destroy(d);
}

// Working memory is kept, and grows by an eighth more than asked for.
static void scratch_is_kept_and_grows(void) {
  CpuState state = {.threads = 1};
  char *p = cpu_scratch(&state, CPU_SCRATCH_OPS, 100);
  CHECK_EQ(state.scratch[CPU_SCRATCH_OPS].bytes, 65536);
  CHECK((uintptr_t)p % 64 == 0);
  memset(p, 7, 65536);
  CHECK(cpu_scratch(&state, CPU_SCRATCH_OPS, 65536) == p && cpu_scratch(&state, CPU_SCRATCH_OPS, 1) == p);
  CHECK(p[0] == 7 && p[65535] == 7 && state.scratch[CPU_SCRATCH_OPS].bytes == 65536);
  p = cpu_scratch(&state, CPU_SCRATCH_OPS, 65537);
  CHECK_EQ(state.scratch[CPU_SCRATCH_OPS].bytes, 2 * 65536);
  memset(p, 8, 2 * 65536);
  p = cpu_scratch(&state, CPU_SCRATCH_OPS, 8 * 65536);
  CHECK_EQ(state.scratch[CPU_SCRATCH_OPS].bytes, 9 * 65536);
  memset(p, 9, 9 * 65536);
  cpu_scratch(&state, CPU_SCRATCH_OPS, 64 * 65536);
  CHECK_EQ(state.scratch[CPU_SCRATCH_OPS].bytes, 72 * 65536);
  CHECK(state.scratch[CPU_SCRATCH_OPS].data && !state.scratch[CPU_SCRATCH_GEMM].data && !state.scratch[CPU_SCRATCH_ATTENTION].data);
  free(state.scratch[CPU_SCRATCH_OPS].data);
#if !defined(__SANITIZE_ADDRESS__)   // which ends the process in its own words
  CpuState none = {.threads = 1};
  EXPECT_FAIL(EXIT_MACHINE, "memory: no 9437184 MiB", cpu_scratch(&none, CPU_SCRATCH_OPS, (size_t)1 << 43));
#endif
}

// The working memory that an operation asks for: an eighth more of it, in steps of 64 KiB. Nothing of an earlier call is taken for this one's.
static size_t scratch_of_ops(const Device *d) { return cpu_state(d)->scratch[CPU_SCRATCH_OPS].bytes; }
static size_t scratch_for(size_t bytes) { return round_up(bytes + bytes / 8, 65536); }
static void scratch_of_linear_forward_and_sumsq(void) {
  Device *d = cpu_device(2);
  enum { ROWS = 200, C = 8, OC = 150 };
  float *x = xcalloc(ROWS * C, 4), *w = xcalloc(OC * C, 4), *post = xcalloc(ROWS * OC, 4);
  d->linear_forward(d, NULL, (real *)post, (real *)x, (real *)w, NULL, ROWS, C, OC, ACTIVATION_SWIGLU);
  CHECK_EQ(scratch_of_ops(d), scratch_for(ROWS * OC * sizeof(float)));
  free(x), free(w), free(post);
  const size_t blocks = (1 << 16) + 1, n = blocks * 4096;   // zeros that were never written take no memory
  float *zeros = mmap(NULL, n * sizeof(float), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  double sum = 0;
  if (zeros != MAP_FAILED) {
    madvise(zeros, n * sizeof(float), MADV_NOHUGEPAGE);
    memset(cpu_scratch(cpu_state(d), CPU_SCRATCH_OPS, blocks * sizeof(double)), 0xff, blocks * sizeof(double));   // NaN
    CHECK_EQ(scratch_of_ops(d), scratch_for(blocks * sizeof(double)));
    d->sumsq(d, (scalar *)&sum, (acc *)zeros, 5 * 4096);
    CHECK(sum == 0);
    munmap(zeros, n * sizeof(float));
  }
  d->destroy(d);
}

// What it says that it needs is what it takes, in steps of 64 KiB with an eighth more; the backward pass needs more, and every thread as much.
static void attention_scratch_is_what_it_takes(void) {
  enum { T = 70, HS = 24, C = 2 * HS };
  float *q = xcalloc(2 * T * C, 4), *out = xcalloc(2 * T * C, 4), *lse = xcalloc(2 * T * 2, 4), *dq = xcalloc(2 * T * C, 4), *dk = xcalloc(2 * T * C, 4), *dv = xcalloc(2 * T * C, 4);
  size_t one[2] = {0};
  setenv("GPT_CPU", "generic", 1);   // whose tiles are those of every processor
  for (int threads = 1; threads <= 3; threads += 2) {
    Device *d = cpu_device(threads);
    AttentionShape s = {.B = 2, .T = T, .S = T, .NH = 2, .KVH = 2, .HS = HS, .q_stride = C, .kv_stride = C, .out_stride = C, .q_batch = T * C, .kv_batch = T * C, .out_batch = T * C, .scale = 1};
    for (int backward = 0; backward < 2; backward++) {
      const size_t bytes = d->attention_scratch(d, &s, backward ? WITH_GRADIENT : WITHOUT_GRADIENT);
      if (backward) d->attention_backward(d, (real *)dq, (real *)dk, (real *)dv, (real *)q, (real *)q, (real *)q, (real *)q, (real *)out, (acc *)lse, &s);
      else d->attention_forward(d, (real *)out, (acc *)lse, (real *)q, (real *)q, (real *)q, &s);
      CHECK_EQ(cpu_state(d)->scratch[CPU_SCRATCH_ATTENTION].bytes, round_up(bytes + bytes / 8, 65536));
      if (threads == 1) one[backward] = bytes;
      CHECK_EQ(bytes, (size_t)threads * one[backward]);
    }
    CHECK_EQ(one[0], 65536);
    CHECK_EQ(one[1], 143360);
    d->destroy(d);
  }
  unsetenv("GPT_CPU");
  free(q), free(out), free(lse), free(dq), free(dk), free(dv);
}

// ---- the table, and what goes in and out ----

enum { N = 5 };
static const double VALUES[N] = {1.5, -0.0, 1 + 0x1p-24, 1 + 3 * 0x1p-24, 3e38};            // two halfway between floats: to even
static const double AS_FLOATS[N] = {1.5, -0.0, 1, 1 + 4 * 0x1p-24, (double)3e38f};
static const double AS_BF16[N] = {1.5, -0.0, 1, 1, 0x1.c2p127};

// Up and down, n elements and not one more, for each kind of number.
static void numbers_go_in_and_out(void) {
  for (int half = 0; half < 2; half++) {
    Device *d = half ? cpu_device_bf16(1) : cpu_device(1);
    float floats[N];
    for (int i = 0; i < N; i++) floats[i] = (float)VALUES[i];
    for (size_t n = 0; n < N; n++)
      for (int kind = 0; kind < 4; kind++) {
        char memory[(N + 1) * 8];
        double back[N + 1];
        const bool is_real = kind < 2;
        const size_t size = is_real ? d->real_size : d->acc_size;
        memset(memory, 0x11, sizeof memory);
        for (int i = 0; i <= N; i++) back[i] = 77;
        if (kind == 0) d->upload_real(d, (real *)memory, VALUES, n);
        if (kind == 1) d->upload_real_float(d, (real *)memory, floats, n);
        if (kind == 2) d->upload_acc(d, (acc *)memory, VALUES, n);
        if (kind == 3) d->upload_acc_float(d, (acc *)memory, floats, n);
        for (size_t j = n * size; j < sizeof memory; j++) CHECK_MSG(memory[j] == 0x11, "upload %d of %zu wrote byte %zu", kind, n, j);
        if (is_real) d->download_real(d, back, (real *)memory, n);
        else d->download_acc(d, back, (acc *)memory, n);
        const double *expected = is_real && half ? AS_BF16 : AS_FLOATS;
        for (size_t i = 0; i < n; i++) CHECK_MSG(!memcmp(&back[i], &expected[i], 8), "%s, kind %d: %a, expected %a", d->description, kind, back[i], expected[i]);
        for (size_t i = n; i <= N; i++) CHECK_MSG(back[i] == 77, "download %d of %zu wrote element %zu", kind, n, i);
      }
    int32_t ids[3] = {1, 2, 3}, more[3] = {-7, INT32_MAX, 9};
    d->upload_ids(d, ids, more, 2);
    CHECK(ids[0] == -7 && ids[1] == INT32_MAX && ids[2] == 3);
    double stats[3] = {0.1, 1e300, 3}, got[3] = {4, 5, 6};
    d->download_stat(d, got, (scalar *)stats, 2);
    CHECK(got[0] == 0.1 && got[1] == 1e300 && got[2] == 6);
    d->sync(d), d->refresh(d, NULL, 0);
    char memory[64];
    CHECK((char *)d->real_at((real *)memory, 3) == memory + 3 * d->real_size && (char *)d->acc_at((acc *)memory, 3) == memory + 12);
    CHECK((char *)d->stat_at((scalar *)memory, 3) == memory + 24);
    d->destroy(d);
  }
}

static void devices_are_described(void) {
  setenv("GPT_CPU", "generic", 1);
  for (int half = 0; half < 2; half++)
    for (int threads = 1; threads <= 3; threads++) {
      Device *d = half ? cpu_device_bf16(threads) : cpu_device(threads);
      char *expected = format("%s, generic, %d thread%s", half ? "bf16" : "fp32", threads, threads == 1 ? "" : "s");
      CHECK_STR(d->description, expected);
      CHECK_STR(d->name, "cpu");
      CHECK(d->real_size == (half ? 2 : 4) && d->acc_size == 4 && d->real_is_acc == !half);
      CHECK_EQ(cpu_state(d)->threads, threads);
      free(expected);
      d->destroy(d);
    }
  unsetenv("GPT_CPU");
}

// The calling thread works too: from the device's making on, it flushes denormal numbers.
static void making_a_device_flushes_denormals(void) {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() & ~0x8040u);
  Device *d = cpu_device(1);
  CHECK((_mm_getcsr() & 0x8040) == 0x8040);
  d->destroy(d);
#endif
}

// About what copying within memory gives: between a MB/s and ten TB/s.
static void bandwidth_is_a_bandwidth(void) {
  Device *d = cpu_device(2);
  const size_t before = addresses();
  const double bytes = d->measure_bandwidth(d);
  CHECK_MSG(bytes > 1e6 && bytes < 1e13, "%g", bytes);
#if !defined(__SANITIZE_ADDRESS__)
  CHECK(addresses() < before + ((size_t)128 << 20));   // what it measured with is given back
#endif
  (void)before;
  d->destroy(d);
}

// SwiGLU is done some rows at a time: many of them give the bits of one row at a time.
static void rows_of_swiglu_stand_alone(void) {
  enum { ROWS = 131, IC = 2, OC = 16400 };   // 64 at a time, then what is left
  Device *d = cpu_device(2);
  real *x = d->allocate(d, ROWS * IC * sizeof(float)), *weight = d->allocate(d, OC * IC * sizeof(float));
  real *all = d->allocate(d, ROWS * (OC / 2) * sizeof(float)), *one = d->allocate(d, ROWS * (OC / 2) * sizeof(float));
  for (size_t i = 0; i < ROWS * IC; i++) ((float *)(void *)x)[i] = (float)(i % 37) / 16 - 1;
  for (size_t i = 0; i < OC * IC; i++) ((float *)(void *)weight)[i] = (float)(i % 41) / 16 - 1;
  d->linear_forward(d, NULL, all, x, weight, NULL, ROWS, IC, OC, ACTIVATION_SWIGLU);
  for (size_t r = 0; r < ROWS; r++) d->linear_forward(d, NULL, d->real_at(one, r * (OC / 2)), d->real_at(x, r * IC), weight, NULL, 1, IC, OC, ACTIVATION_SWIGLU);
  CHECK(!memcmp(all, one, ROWS * (OC / 2) * sizeof(float)));
  d->release(d, x, ROWS * IC * sizeof(float)), d->release(d, weight, OC * IC * sizeof(float));
  d->release(d, all, ROWS * (OC / 2) * sizeof(float)), d->release(d, one, ROWS * (OC / 2) * sizeof(float));
}

// So many elements that all threads of a device get some: each its own, and from its own.
static void activations_are_shared_among_threads(void) {
  enum { ROWS = 301, WIDTH = 1002, COUNT = ROWS * WIDTH };
  Device *devices[] = {cpu_device(1), cpu_device(3)};
  float *x = malloc(COUNT * sizeof *x), *y[] = {malloc(COUNT * sizeof(float)), malloc(COUNT * sizeof(float))};
  for (int i = 0; i < COUNT; i++) x[i] = (float)(i % 8191) / 1024 - 4;
  for (Activation a = ACTIVATION_NONE; a <= ACTIVATION_SWIGLU; a++) {
    const size_t made = a == ACTIVATION_SWIGLU ? COUNT / 2 : COUNT;
    for (int k = 0; k < 2; k++) {
      memset(y[k], 0, COUNT * sizeof(float));
      devices[k]->activation_forward(devices[k], (real *)y[k], (real *)x, ROWS, WIDTH, a);
    }
    CHECK(memcmp(y[0], y[1], COUNT * sizeof(float)) == 0 && y[1][made - 1] != 0);
  }
  for (int k = 0; k < 2; k++) { devices[k]->destroy(devices[k]); free(y[k]); }
  free(x);
}

int main(int argc, char **argv) {
  self = argv[0];
  if (argc > 1 && !strncmp(argv[1], "--", 2)) return answer(argc, argv);
  TEST_BEGIN(argc, argv);
  RUN(the_best_set_is_taken);
  RUN(scratch_is_kept_and_grows);
  RUN(scratch_of_linear_forward_and_sumsq);
  RUN(attention_scratch_is_what_it_takes);
  RUN(threads_are_chosen);
  RUN(bound_threads_are_counted);
  RUN(threads_wait_briefly);
  RUN(memory_is_given_back);
  RUN(blocks_are_cleared_and_copied);
  RUN(numbers_go_in_and_out);
  RUN(devices_are_described);
  RUN(making_a_device_flushes_denormals);
  RUN(rows_of_swiglu_stand_alone);
  RUN(activations_are_shared_among_threads);
  RUN(rates_are_per_second);
  RUN(peak_is_of_all_threads);
  RUN(bandwidth_is_a_bandwidth);
  return TEST_END();
}
