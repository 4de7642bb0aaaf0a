// test_tiles.c: owns the tests of the stand-in for matrix tiles (tile_emulator.c), and of how the CPU device decides about tiles: what is asked of the
// machine, what is said where it refuses. The kernels themselves: test_gemm_bf16.c, test_bf16.c, test_bits.c, test_ops.c.
#include "../cpu.h"         // TileFacts, cpu_tiles_refusal
#define CPU_EMULATES_TILES
#include "../tiles.h"       // TileConfig, TILE_DOT and its like, here those of the stand-in
#include "../util.h"        // EXIT_MACHINE, EXIT_REQUEST
#include "test.h"           // RUN, CHECK, EXPECT_FAIL
#include <errno.h>          // EPERM

typedef struct { uint32_t word[16][16]; } Tile;

static uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
static uint32_t pair(float low, float high) { return bits_of(low) >> 16 | (bits_of(high) & 0xffff0000u); }   // of numbers that bf16 holds

static const TileConfig whole = TILES_WHOLE;

// c (1,1) after one product of up to 32 pairs of numbers.
static float dot(float c, const float *a, const float *b, int n) {
  Tile ta = {{{0}}}, tb = {{{0}}}, tc = {{{0}}};
  tc.word[0][0] = bits_of(c);
  for (int k = 0; k < n; k += 2) ta.word[0][k / 2] = pair(a[k], k + 1 < n ? a[k + 1] : 0), tb.word[k / 2][0] = pair(b[k], k + 1 < n ? b[k + 1] : 0);
  TILE_CONFIGURE(&whole);
  TILE_LOAD(0, &tc, 64), TILE_LOAD(1, &ta, 64), TILE_LOAD_ONCE(2, &tb, 64);
  TILE_DOT(0, 1, 2);
  TILE_STORE(0, &tc, 64);
  TILE_RELEASE();
  return float_of(tc.word[0][0]);
}

// Each line is decided by one sentence of the manual.
static void sums_are_made_as_the_manual_says(void) {
  const float big = 0x1p24f, ones[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  CHECK(dot(0, ones, ones, 32) == 32 && dot(5, ones, ones, 3) == 8);
  CHECK(dot(0, (float[]){big, 1, -big, 1}, ones, 4) == 2);        // even and odd k apart; one chain would give 1
  CHECK(dot(0, (float[]){big, 0, 1, 0, -big, 0, 1}, ones, 7) == 1);   // in order: 1 is lost beside 2^24, the last one is not
  CHECK(dot(big, (float[]){-big, 0, 1}, ones, 3) == 1 && dot(1, (float[]){big, -big}, ones, 2) == 1);   // from zero, and c last
  CHECK(dot(big, (float[]){1, 1}, ones, 2) == big + 2 && dot(big, (float[]){1, 0}, ones, 2) == big);    // ties to even
  CHECK(dot(0, (float[]){0x1p100f, 0, -0x1p100f, 0, 1}, (float[]){0x1p27f, 1, 0x1p27f, 1, 1}, 5) == 1);
  CHECK(isinf(dot(0, (float[]){0x1p100f}, (float[]){0x1p28f}, 1)) && isnan(dot(NAN, ones, ones, 1)) && isnan(dot(0, (float[]){INFINITY}, (float[]){0}, 1)));
  const float tiny = 0x1p-126f, denormal = 0x1p-127f;
  CHECK(dot(0, (float[]){denormal}, (float[]){0x1p100f}, 1) == 0);      // input denormals are zero,
  CHECK(dot(denormal, (float[]){tiny}, ones, 1) == tiny);               // also c's,
  CHECK(dot(0, (float[]){tiny}, (float[]){0.5f}, 1) == 0);              // and what comes out is
  CHECK(dot(0, (float[]){tiny, 0, -1.5f * tiny}, ones, 3) == 0);        // at every step
  CHECK(bits_of(dot(0, (float[]){0x1.02p0f}, (float[]){0x1.fep-1f}, 1)) == bits_of(0x1.02p0f * 0x1.fep-1f));
}

// Shapes smaller than a tile: rows and columns beyond are zero, and are not stored.
static void small_shapes(void) {
  TileConfig small = {.palette = 1, .row_bytes = {4 * 5, 4 * 3, 4 * 5}, .rows = {7, 7, 3}};
  Tile a, b, c, want;
  memset(&c, 0xa5, sizeof c), memset(&want, 0xa5, sizeof want);
  for (int i = 0; i < 16; i++) for (int j = 0; j < 16; j++) a.word[i][j] = pair((float)i, (float)(j - 4)), b.word[i][j] = pair((float)(i + j), 2);
  TILE_CONFIGURE(&small);
  TILE_ZERO(0), TILE_LOAD(1, &a, 64), TILE_LOAD(2, &b, 64);
  TILE_DOT(0, 1, 2);
  TILE_STORE(0, &c, 64);
  for (int i = 0; i < 7; i++)
    for (int j = 0; j < 5; j++) {
      float sum = 0;
      for (int p = 0; p < 3; p++) sum += (float)(i * (p + j) + (p - 4) * 2);
      want.word[i][j] = bits_of(sum);
    }
  CHECK(!memcmp(&c, &want, sizeof c));
  TILE_CONFIGURE(&whole);   // all is zero again
  TILE_STORE(0, &c, 64);
  CHECK(c.word[0][0] == 0 && c.word[6][4] == 0);
  TILE_LOAD(3, &a, 0);      // stride 0: one row sixteen times
  TILE_STORE(3, &c, 64);
  CHECK(!memcmp(c.word[15], a.word[0], 64));
  TILE_RELEASE();
}

static void configure_with(size_t byte, int value) {
  unsigned char bytes[64];
  memcpy(bytes, &whole, 64);
  bytes[byte] = (unsigned char)value;
  TILE_CONFIGURE(bytes);
}

// What the processor faults on ends the process here.
static void faults(void) {
  static Tile memory;
  const TileConfig odd = {.palette = 1, .row_bytes = {64, 64, 60, 64, 8, 6}, .rows = {16, 15, 15, 16, 2, 16}};
  EXPECT_FAIL(TILE_FAULT, "no configuration", TILE_ZERO(0));
  EXPECT_FAIL(TILE_FAULT, "no configuration", (TILE_CONFIGURE(&whole), TILE_RELEASE(), TILE_LOAD(1, &memory, 64)));
  EXPECT_FAIL(TILE_FAULT, "palette", configure_with(0, 2));
  EXPECT_FAIL(TILE_FAULT, "start_row", configure_with(1, 16));
  EXPECT_FAIL(TILE_FAULT, "reserved", configure_with(15, 1));
  EXPECT_FAIL(TILE_FAULT, "more than 64 bytes", configure_with(16 + 2 * 3, 65));
  EXPECT_FAIL(TILE_FAULT, "more than 16 rows", configure_with(48 + 7, 17));
  EXPECT_FAIL(TILE_FAULT, "rows without bytes", configure_with(16 + 2 * 3, 0));
  EXPECT_FAIL(TILE_FAULT, "eight registers", configure_with(48 + 8, 1));
  EXPECT_FAIL(TILE_FAULT, "c and a differ in rows", (TILE_CONFIGURE(&odd), TILE_DOT(0, 1, 3)));
  EXPECT_FAIL(TILE_FAULT, "a's pairs are not b's rows", (TILE_CONFIGURE(&odd), TILE_DOT(1, 2, 0)));
  EXPECT_FAIL(TILE_FAULT, "c and b differ in columns", (TILE_CONFIGURE(&odd), TILE_DOT(2, 1, 3)));
  EXPECT_FAIL(TILE_FAULT, "half a word", (TILE_CONFIGURE(&odd), TILE_DOT(0, 3, 5)));
  EXPECT_FAIL(TILE_FAULT, "the same register twice", (TILE_CONFIGURE(&whole), TILE_DOT(2, 2, 3)));
  EXPECT_FAIL(TILE_FAULT, "not configured (register 7)", (TILE_CONFIGURE(&odd), TILE_STORE(7, &memory, 64)));
}

static void reasons(void) {
  TileFacts f = {0};
  CHECK(strstr(cpu_tiles_refusal(&f), "this build has none: ") != NULL);
  f.built = true;
  CHECK_STR(cpu_tiles_refusal(&f), "this processor has none");
  f.processor = true;
  CHECK_STR(cpu_tiles_refusal(&f), "the operating system does not keep their registers");
  f.system = true;
  CHECK(cpu_tiles_refusal(&f) == NULL);
  f.refused = EPERM;
  CHECK_STR(cpu_tiles_refusal(&f), "the system refused their registers (arch_prctl: Operation not permitted); Linux 5.16 or later gives them, unless a sandbox forbids it");
  f.system = false;
  CHECK_STR(cpu_tiles_refusal(&f), "the operating system does not keep their registers");
}

static Device *device_on(const char *set, bool halves) {
  setenv("GPT_CPU", set, 1);
  Device *d = halves ? cpu_device_bf16(2) : cpu_device(2);
  unsetenv("GPT_CPU");
  return d;
}

static void device_is_chosen(void) {
  Device *d = device_on("amx-emulated", true);
  CHECK_STR(d->description, "bf16, amx-emulated, 2 threads");
  CHECK(d->row_group == 32 && d->peak_flops > 0 && d->measure_peak(d) > 0);
  d->destroy(d);
  d = device_on("amx-emulated", false);   // it has no fp32
  CHECK_STR(d->description, "fp32, generic, 2 threads");
  CHECK(d->row_group == 1);
  d->destroy(d);
  d = cpu_device_bf16(1);
  CHECK((d->row_group == 32) == (cpu_tiles_unavailable() == NULL) && !strstr(d->description, "emulated"));
  d->destroy(d);
  EXPECT_FAIL(EXIT_REQUEST, "GPT_CPU=amx512: no such instruction set in this build; there are ", device_on("amx512", true));
#ifdef CPU_BUILDS_AMX
  if (cpu_tiles_unavailable()) EXPECT_FAIL(EXIT_MACHINE, "GPT_CPU=amx: this processor lacks it; unset GPT_CPU and the best one here is taken", device_on("amx", true));
#else
  CHECK(strstr(cpu_tiles_unavailable(), "this build has none") != NULL);
#endif
}

// A weight that refresh has announced is packed once, and again after the next refresh; any other in each product. Released memory is forgotten.
static void weights_are_kept(void) {
  enum { ROWS = 5, IC = 40, OC = 70, N = OC * IC };
  Device *d = device_on("amx-emulated", true);
  const CpuState *state = d->state;
  real *x = d->allocate(d, ROWS * OC * d->real_size), *y = d->allocate(d, ROWS * OC * d->real_size), *params = d->allocate(d, (N + 3) * d->real_size), *w = d->real_at(params, 3);
  double one[N], two[N], ones[ROWS * OC], out[4][ROWS * OC];
  for (int i = 0; i < N; i++) one[i] = i % 7 - 3, two[i] = i % 5 - 1;
  for (int i = 0; i < ROWS * OC; i++) ones[i] = i % 3;
  d->upload_real(d, x, ones, ROWS * OC);
  for (int backward = 0; backward < 2; backward++) {
    for (int time = 0; time < 4; time++) {   // first weights, not announced; announced; second weights, not announced; announced
      d->upload_real(d, w, time < 2 ? one : two, N);
      if (time % 2) d->refresh(d, params, N + 3);
      for (int repeat = 0; repeat < 2; repeat++) {
        if (backward) d->linear_backward_input(d, y, x, w, ROWS, IC, OC);
        else d->linear_forward(d, y, NULL, x, w, NULL, ROWS, IC, OC, ACTIVATION_NONE);
      }
      d->download_real(d, out[time], y, ROWS * (backward ? IC : OC));
    }
    const size_t bytes = ROWS * (size_t)(backward ? IC : OC) * sizeof(double);
    CHECK_EQ(state->kept.count, backward + 1);
    if (!backward) CHECK(!memcmp(out[0], out[1], bytes));
    CHECK(!memcmp(out[1], out[2], bytes) && memcmp(out[2], out[3], bytes));
    double sum = 0;   // of the first element with the second weights
    for (int i = 0; i < (backward ? OC : IC); i++) sum += ones[i] * two[backward ? i * IC : i];
    CHECK(out[3][0] == sum);
  }
  size_t held = 0;
  for (size_t i = 0; i < state->kept.count; i++) held += cpu_mapped_size(state->kept.list[i].bytes);
  CHECK_EQ(held, d->weight_copies(d, OC, IC, WITH_GRADIENT));
  CHECK(d->weight_copies(d, OC, IC, WITHOUT_GRADIENT) < held);
  d->linear_forward(d, y, NULL, x, w, NULL, ROWS - 1, IC, OC + 1, ACTIVATION_NONE);   // beyond what was announced
  CHECK_EQ(state->kept.count, 2);
  d->refresh(d, w, N);                                                                 // other weights: the old ones are gone
  CHECK_EQ(state->kept.count, 0);
  d->linear_forward(d, y, NULL, x, w, NULL, ROWS, IC, OC, ACTIVATION_NONE);
  CHECK_EQ(state->kept.count, 1);
  d->release(d, x, ROWS * OC * d->real_size), d->release(d, y, ROWS * OC * d->real_size);
  CHECK_EQ(state->kept.count, 1);
  d->release(d, params, (N + 3) * d->real_size);
  CHECK(state->kept.count == 0 && state->kept.end == 0);
  d->destroy(d);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(sums_are_made_as_the_manual_says);
  RUN(small_shapes);
  RUN(faults);
  RUN(reasons);
  RUN(device_is_chosen);
  RUN(weights_are_kept);
  return TEST_END();
}
