// test_bits.c: owns the proof, in small, that a run is the same bits however it is computed, in fp32 and in bf16: any number of threads,
// any instruction set, a step's batch in one piece or in many, any recomputation, any chunk of logits.
//
// A tiny model of each family, with dropout, ignored targets and sizes that are no multiple of any tile, is trained for a few steps in
// each of these ways; all weights and both moments go into one SHA-256. The long form (50 steps, compilers, -O levels) is in the slow suite.
#include "../detmath.h"  // det_pow
#include "../doctor.h"   // doctor_self_test
#include "../model.h"    // the whole model
#include "../rng.h"      // rng_below
#include "test.h"        // RUN, CHECK_MSG
#if defined(__x86_64__)
#include <cpuid.h>       // __get_cpuid_count
#endif
#include <stdbool.h>

enum { SEQUENCES = 8, CONTEXT = 19, TILES_CONTEXT = 32, VOCAB = 67, STEPS = 8, FEW_STEPS = 2, MOST_ROWS = SEQUENCES * TILES_CONTEXT };

typedef struct {          // one way to compute the run
  const char *name;
  const char *set;        // GPT_CPU; NULL: base_set
  int threads;
  int B;                  // sequences of a micro-batch; SEQUENCES / B micro-batches make a step
  Recompute recompute;
  int classifier_rows;
  double dropout;
  uint64_t seed;
  uint32_t steps;
} Way;

// Of all runs until they are changed. Matrix tiles have bits of their own in bf16; without hardware a stand-in has them. 32 positions fill its groups of rows,
// 19 do not. RANDOM: without master weights, rounded at random.
typedef enum { FP32, BF16, RANDOM, TILES, TILES_FILLED, MODES } Mode;
static Mode mode;
static bool in_tiles(void) { return mode >= TILES; }
static const char *base_set(void) {   // NULL: the best one here
  if (in_tiles()) return cpu_tiles_unavailable() ? "amx-emulated" : "amx";
  return mode == FP32 || cpu_tiles_unavailable() ? NULL : "avx512";
}
static int context(void) { return mode == TILES_FILLED ? TILES_CONTEXT : CONTEXT; }
static int rows(void) { return SEQUENCES * context(); }

static const Way PLAIN = {"plain", NULL, 1, SEQUENCES, RECOMPUTE_NONE, 0, 0.1, 3, STEPS};

static bool processor_has(const char *set) {
#if defined(__x86_64__)
  unsigned a = 0, b, c, d;
  if (!strcmp(set, "avx512bf16")) return processor_has("avx512") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
  if (!strcmp(set, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!strcmp(set, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
#endif
  return !strcmp(set, "generic");
}

static void made_up_batch(uint32_t step, int32_t *ids, int32_t *targets) {
  for (uint64_t i = 0; i < (uint64_t)rows(); i++) {
    ids[i] = (int32_t)rng_below(VOCAB, 1, step, rng_site("ids"), i);
    targets[i] = i % 7 ? (int32_t)rng_below(VOCAB, 1, step, rng_site("targets"), i) : IGNORED_TARGET;
  }
}

static void one_step(Gpt *m, const Way *way, uint32_t step) {
  int32_t ids[MOST_ROWS], targets[MOST_ROWS];
  MicroBatch place = {.seed = way->seed, .step = step, .loss_scale = 1.0 / (rows() - (rows() + 6) / 7)};
  AdamWSettings settings = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .bias1 = 1 - det_pow(0.9, step + 1.0),
                            .bias2 = 1 - det_pow(0.99, step + 1.0), .grad_clip = 0.5, .seed = way->seed, .step = step};
  made_up_batch(step, ids, targets);
  gpt_begin_step(m);
  for (int first = 0; first < SEQUENCES; first += way->B) {
    place.row0 = (uint64_t)first * (uint64_t)context();
    gpt_forward(m, ids + first * context(), targets + first * context(), &place, WITH_GRADIENT);
    gpt_backward(m, &place);
  }
  gpt_finish_gradients(m);
  gpt_update(m, &settings, 0.1);
}

static void hash_numbers(Gpt *m, char hex[65]) {
  static const Part parts[] = {PART_WEIGHT, PART_M, PART_V};
  const TensorTable *table = gpt_table(m);
  uint8_t digest[32];
  Sha256 sha;
  sha256_init(&sha);
  for (size_t p = 0; p < ARRAY_LEN(parts); p++)
    for (size_t i = 0; i < table->count; i++) {
      size_t n = tensor_values(&table->rows[i]);
      double *values = xmalloc(n + 1, sizeof *values);
      if (n) gpt_read(m, parts[p], &table->rows[i], 0, n, values);
      sha256_update(&sha, values, n * sizeof *values);
      free(values);
    }
  sha256_final(&sha, digest);
  sha256_hex(digest, hex);
}

static void run_hash(Family family, const Way *way, char hex[65]) {
  bool llama = family == FAMILY_LLAMA;
  GptConfig c = {.family = family, .layers = 2, .heads = 6, .kv_heads = llama ? 2 : 6, .channels = 36, .context = context(), .ffn = 71,
                 .vocab = VOCAB, .bias = !llama, .tie = !llama, .dropout = way->dropout, .norm_eps = 1e-5, .rope_theta = 10000};
  const char *set = way->set ? way->set : base_set();
  if (set) setenv("GPT_CPU", set, 1);
  else unsetenv("GPT_CPU");
  Device *d = mode > FP32 ? cpu_device_bf16(way->threads) : cpu_device(way->threads);
  Gpt *m = gpt_create(d, &(GptOptions){.config = c, .purpose = PURPOSE_TRAIN, .B = way->B, .T = context(), .recompute = way->recompute,
                                       .classifier_rows = way->classifier_rows, .no_master = mode == RANDOM, .micro_batches = SEQUENCES / way->B});
  gpt_init(m, way->seed);
  for (uint32_t step = 0; step < way->steps; step++) one_step(m, way, step);
  hash_numbers(m, hex);
  gpt_destroy(m);
  d->destroy(d);
  unsetenv("GPT_CPU");
}

// The hash of the plain way after so many steps.
static const char *plain_hash(Family family, uint32_t steps) {
  static char hex[MODES][2][STEPS + 1][65];
  char *found = hex[mode][family][steps];
  Way way = PLAIN;
  way.steps = steps;
  if (!*found) run_hash(family, &way, found);
  return found;
}

static void check_same(const Way *way) {
  for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++) {
    char hex[65];
    static const char *const modes[] = {"fp32", "bf16", "bf16 rounded at random", "bf16 in tiles", "bf16 in tiles, whole groups"};
    Way w = *way;
    if (in_tiles()) w.steps = FEW_STEPS;   // the stand-in is slow
    const char *plain = plain_hash(family, w.steps);
    run_hash(family, &w, hex);
    CHECK_MSG(!strcmp(hex, plain), "%s, %s, %s: %.16s, plain is %.16s", family == FAMILY_GPT2 ? "gpt2" : "llama", modes[mode], way->name, hex, plain);
  }
}

static void threads_change_no_bit(void) {
  for (int threads = 2; threads <= 7; threads += threads == 2 ? 1 : 4) {
    Way way = PLAIN;
    way.name = threads == 2 ? "2 threads" : threads == 3 ? "3 threads" : "7 threads";
    way.threads = threads;
    check_same(&way);
  }
}

static void instruction_sets_change_no_bit(void) {
  static const char *const sets[] = {"generic", "avx2", "avx512", "avx512bf16"};
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    Way way = PLAIN;
    way.name = way.set = sets[i];
    way.threads = 2;
    if (i == 0) way.steps = FEW_STEPS;   // each fma of the generic set is a call into libm: a hundred times slower
    if (processor_has(sets[i])) check_same(&way);
    else printf("skipped: this processor has no %s\n", sets[i]);
  }
}

static void cuts_change_no_bit(void) {
  static const Way ways[] = {
    {"8 micro-batches of 1", NULL, 2, 1, RECOMPUTE_NONE, 0, 0.1, 3, STEPS},
    {"4 micro-batches of 2, light, chunks of 1", NULL, 1, 2, RECOMPUTE_LIGHT, 1, 0.1, 3, STEPS},
    {"2 micro-batches of 4, block, chunks of 7", NULL, 3, 4, RECOMPUTE_BLOCK, 7, 0.1, 3, STEPS},
    {"light", NULL, 1, 8, RECOMPUTE_LIGHT, 0, 0.1, 3, STEPS},
    {"block", NULL, 1, 8, RECOMPUTE_BLOCK, 0, 0.1, 3, STEPS},
    {"chunks of 7", NULL, 2, 8, RECOMPUTE_NONE, 7, 0.1, 3, STEPS},
    {"chunks of 64", NULL, 2, 8, RECOMPUTE_NONE, 64, 0.1, 3, STEPS},
  };
  for (size_t i = 0; i < ARRAY_LEN(ways); i++) check_same(&ways[i]);
}

// The hash sees what it should: another seed, and dropout, are another run.
static void the_hash_is_not_blind(void) {
  for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++) {
    char hex[65];
    Way seed = PLAIN, dropout = PLAIN;
    seed.steps = dropout.steps = in_tiles() ? FEW_STEPS : STEPS;
    seed.seed = 4;
    dropout.dropout = 0;
    run_hash(family, &seed, hex);
    CHECK_MSG(strcmp(hex, plain_hash(family, seed.steps)), "another seed gives the same weights");
    run_hash(family, &dropout, hex);
    CHECK_MSG(strcmp(hex, plain_hash(family, seed.steps)), "dropout does nothing");
  }
}

// The global norm's order of additions is device.h's: fp64, blocks of 4,096 from the tensor's beginning, lanes of 16 in a block.
static void squares_are_added_as_written(void) {
  enum { N = 2 * 4096 + 77 };
  double *x = xmalloc(N, sizeof *x), expected = 0, got;
  for (uint64_t i = 0; i < N; i++) x[i] = (float)(rng_below(1u << 24, 5, 0, rng_site("squares"), i) * 0x1p-20);
  for (size_t first = 0; first < N; first += 4096) {
    double lane[16] = {0};
    for (size_t i = first; i < MIN(first + 4096, (size_t)N); i++) lane[(i - first) % 16] += x[i] * x[i];
    for (int width = 8; width > 0; width /= 2) for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    expected += lane[0];
  }
  for (int threads = 1; threads <= 3; threads++) {
    Device *d = cpu_device(threads);
    acc *values = d->allocate(d, N * d->acc_size);
    scalar *sum = d->allocate(d, sizeof(double));
    d->upload_acc(d, values, x, N);
    d->sumsq(d, sum, values, N);
    d->download_stat(d, &got, sum, 1);
    CHECK_MSG(got == expected, "%.17g, expected %.17g", got, expected);
    d->release(d, values, N * d->acc_size);
    d->release(d, sum, sizeof(double));
    d->destroy(d);
  }
  free(x);
}

static void self_test_of_doctor(void) {
  for (int threads = 1; threads <= 3; threads += 2) {
    for (int bf16 = 0; bf16 < 2; bf16++) {
      char hex[65];
      Device *d = bf16 ? cpu_device_bf16(threads) : cpu_device(threads);
      doctor_self_test(d, hex);
      CHECK_STR(hex, doctor_expected_hash(d));
      d->destroy(d);
    }
  }
  char hex[65];
  setenv("GPT_CPU", "amx-emulated", 1);
  Device *d = cpu_device_bf16(2);
  unsetenv("GPT_CPU");
  doctor_self_test(d, hex);
  CHECK_STR(hex, doctor_expected_hash(d));
  d->destroy(d);
}

// Storage, and how it is rounded, are seen too.
static void precision_is_another_run(void) {
  char hex[TILES + 1][65];
  for (mode = FP32; mode <= TILES; mode++) {
    strcpy(hex[mode], plain_hash(FAMILY_GPT2, FEW_STEPS));
    for (Mode other = FP32; other < mode; other++) CHECK_MSG(strcmp(hex[mode], hex[other]), "modes %d and %d", (int)other, (int)mode);
  }
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(squares_are_added_as_written);
  for (mode = FP32; mode < MODES; mode++) {
    RUN(threads_change_no_bit);
    if (!in_tiles()) RUN(instruction_sets_change_no_bit);
    RUN(cuts_change_no_bit);
    RUN(the_hash_is_not_blind);
  }
  RUN(precision_is_another_run);
  RUN(self_test_of_doctor);
  return TEST_END();
}
