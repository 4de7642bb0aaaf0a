// test_rng.c: owns the tests of rng.h: Philox's published known answers, and where each number of a stream comes from.
#include "../rng.h"  // philox, rng_block, rng_u32, rng_u64, rng_uniform, rng_below, rng_site
#include "test.h"    // RUN, CHECK

static int same(Philox4 r, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return r.v[0] == a && r.v[1] == b && r.v[2] == c && r.v[3] == d;
}

// The three vectors for philox4x32-10 that the authors of Salmon et al. (SC11) publish with their library.
static void known_answers(void) {
  CHECK(same(philox(0, 0, 0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  CHECK(same(philox(~0u, ~0u, ~0u, ~0u, ~0ull), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  CHECK(same(philox(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0x299f31d0a4093822ull),
             0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

// The low 64 bits of the counter are the block, then site, then step; the key is the seed. Element e is word e mod 4 of
// block e / 4. Checkpoints and published curves depend on this layout.
static void streams_are_laid_out_as_promised(void) {
  uint64_t seed = 0x0123456789abcdefull, block = 0x1122334455667788ull;
  Philox4 want = philox(0x55667788, 0x11223344, 7, 9, seed), got = rng_block(seed, 9, 7, block);
  CHECK(same(got, want.v[0], want.v[1], want.v[2], want.v[3]));
  for (uint32_t i = 0; i < 4; i++) CHECK_EQ(rng_u32(seed, 9, 7, 4 * 12345678901ull + i), rng_block(seed, 9, 7, 12345678901ull).v[i]);
  for (uint64_t i = 0; i < 10; i++) {
    uint64_t low = rng_u32(seed, 1, 2, 2 * i), high = rng_u32(seed, 1, 2, 2 * i + 1);
    CHECK(rng_u64(seed, 1, 2, i) == (high << 32 | low));
    CHECK(rng_uniform(seed, 1, 2, i) == ((double)(rng_u64(seed, 1, 2, i) >> 11) + 0.5) / 9007199254740992.0);
  }
}

// Each of the four coordinates matters, in every bit.
static void every_coordinate_matters(void) {
  uint64_t base = rng_u64(5, 6, 7, 8);
  for (int bit = 0; bit < 64; bit++) {
    CHECK(rng_u64(5 ^ 1ull << bit, 6, 7, 8) != base);
    CHECK(rng_u64(5, 6, 7, 8 ^ 1ull << bit) != base);
  }
  for (int bit = 0; bit < 32; bit++) {
    CHECK(rng_u64(5, 6 ^ 1u << bit, 7, 8) != base);
    CHECK(rng_u64(5, 6, 7 ^ 1u << bit, 8) != base);
  }
}

// Standard errors over n draws: 1/sqrt(12 n) of the mean, sqrt(1/180 n) of the variance; the bounds are five of them.
static void uniforms_are_uniform(void) {
  enum { N = 100000 };
  double mean = 0, variance = 0, low = 1, high = 0;
  for (uint64_t i = 0; i < N; i++) {
    double u = rng_uniform(3, 1, 4, i);
    mean += u / N, variance += (u - 0.5) * (u - 0.5) / N;
    low = fmin(low, u), high = fmax(high, u);
  }
  CHECK(low > 0 && high < 1 && low < 1e-3 && high > 1 - 1e-3);
  CHECK_NEAR(mean, 0.5, 5 / sqrt(12.0 * N), "mean");
  CHECK_NEAR(variance, 1 / 12.0, 5 / sqrt(180.0 * N), "variance");
}

// Chi-squared over n buckets has mean n - 1 and variance 2 (n - 1).
static void below_is_even(void) {
  enum { N = 7, DRAWS = 70000 };
  double count[N] = {0}, chi_squared = 0;
  for (uint64_t i = 0; i < DRAWS; i++) {
    uint64_t draw = rng_below(N, 1, 2, 3, i);
    CHECK(draw < N);
    if (draw < N) count[draw]++;
  }
  for (int i = 0; i < N; i++) chi_squared += (count[i] - DRAWS / N) * (count[i] - DRAWS / N) / (DRAWS / N);
  CHECK_MSG(chi_squared <= N - 1 + 5 * sqrt(2.0 * (N - 1)), "chi squared %g", chi_squared);
  for (uint64_t i = 0; i < 100; i++) {
    CHECK_EQ(rng_below(1, 1, 2, 3, i), 0);
    // n a power of two: the high bits of the word
    CHECK(rng_below(1ull << 40, 1, 2, 3, i) == rng_u64(1, 2, 3, i) >> 24);
  }
}

static void sites_are_fnv1a(void) {
  CHECK_EQ(rng_site(""), 2166136261u);  // the published FNV-1a values
  CHECK_EQ(rng_site("a"), 0xe40c292c);
  CHECK_EQ(rng_site("foobar"), 0xbf9cf968);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(known_answers);
  RUN(streams_are_laid_out_as_promised);
  RUN(every_coordinate_matters);
  RUN(uniforms_are_uniform);
  RUN(below_is_even);
  RUN(sites_are_fnv1a);
  return TEST_END();
}
