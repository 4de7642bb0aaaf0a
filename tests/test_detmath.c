// test_detmath.c: owns the tests of detmath.c: errors against long double, special values, and a hash of the results.
//
// The hash is the promise "the same bits on every machine": it was recorded once and must never change, because every
// published loss curve starts from these numbers.
#include "../detmath.h"  // det_exp, det_log, det_pow, det_sin, det_cos, det_tanh, det_erf, det_normals
#include "../rng.h"      // rng_uniform
#include "test.h"        // RUN, CHECK
#include <float.h>       // LDBL_MANT_DIG
#include <stdint.h>

enum { POINTS = 100000 };
static const double MAX_ULP = 1;  // over a million points each the worst was 0.83; the header promises 2

// Distance in units of the last place of the correct value (those of the smallest normal number below it).
static double error_in_ulp(double got, long double want) {
  double rounded = (double)want;
  if (isinf(rounded) || isinf(got)) return got == rounded ? 0 : INFINITY;
  int e = ilogb(rounded == 0 ? 0x1p-1022 : rounded);
  return (double)(fabsl((long double)got - want) / ldexpl(1, (e < -1022 ? -1022 : e) - 52));
}

static double uniform(const char *site, uint64_t i, double lo, double hi) {
  return lo + (hi - lo) * rng_uniform(7, 0, rng_site(site), i);
}

// Largest error of f over uniform points of [lo, hi]; with `spread` the point is sign * exp2(uniform in [lo, hi]).
static void check_function(const char *name, double (*f)(double), long double (*exact)(long double), double lo, double hi,
                           int spread) {
  double worst = 0, worst_x = 0;
  for (uint64_t i = 0; i < POINTS; i++) {
    double x = uniform(name, i, lo, hi);
    if (spread) x = (i & 1 && f != det_log ? -1 : 1) * exp2(x);
    double error = error_in_ulp(f(x), exact(x));
    if (!(error <= worst)) worst = error, worst_x = x;
  }
  CHECK_MSG(worst <= MAX_ULP, "det_%s on [%g, %g]: %.3f ulp at %a", name, lo, hi, worst, worst_x);
  if (getenv("GPT_TEST_VERBOSE")) printf("det_%s on [%g, %g]%s: %.3f ulp\n", name, lo, hi, spread ? " (exponents)" : "", worst);
}

// A long double must itself be good to far less than one of our units.
static int long_double_is_wide(void) { return LDBL_MANT_DIG >= 64; }

static void exp_is_accurate(void) {
  if (!long_double_is_wide()) return;
  check_function("exp", det_exp, expl, -1, 1, 0);
  check_function("exp", det_exp, expl, -745, 709.7, 0);
  check_function("exp", det_exp, expl, -60, 9, 1);
}

static void log_is_accurate(void) {
  if (!long_double_is_wide()) return;
  check_function("log", det_log, logl, 0.5, 2, 0);
  check_function("log", det_log, logl, 0.999, 1.001, 0);
  check_function("log", det_log, logl, -1074, 1023, 1);
}

static void sin_and_cos_are_accurate(void) {
  if (!long_double_is_wide()) return;
  check_function("sin", det_sin, sinl, -7, 7, 0);
  check_function("sin", det_sin, sinl, -1e6, 1e6, 0);
  check_function("sin", det_sin, sinl, -100, 0, 1);
  check_function("cos", det_cos, cosl, -7, 7, 0);
  check_function("cos", det_cos, cosl, -1e6, 1e6, 0);
  // next to multiples of pi/2 the value is what the reduction left: the hardest points there are
  double worst = 0;
  for (int k = 1; k < POINTS; k++) {
    double x = k * 0x1.921fb54442d18p+0;
    worst = fmax(worst, fmax(error_in_ulp(det_sin(x), sinl(x)), error_in_ulp(det_cos(x), cosl(x))));
  }
  CHECK_MSG(worst <= MAX_ULP, "near multiples of pi/2: %.3f ulp", worst);
}

static void tanh_is_accurate(void) {
  if (!long_double_is_wide()) return;
  check_function("tanh", det_tanh, tanhl, -1, 1, 0);
  check_function("tanh", det_tanh, tanhl, -21, 21, 0);
  check_function("tanh", det_tanh, tanhl, -100, 4, 1);
}

static void erf_is_accurate(void) {
  if (!long_double_is_wide()) return;
  check_function("erf", det_erf, erfl, -1, 1, 0);
  check_function("erf", det_erf, erfl, -6.5, 6.5, 0);
  check_function("erf", det_erf, erfl, -100, 2, 1);
}

static void pow_is_accurate(void) {
  if (!long_double_is_wide()) return;
  double worst = 0, worst_x = 0, worst_y = 0;
  for (uint64_t i = 0; i < POINTS; i++) {
    // a third anywhere, a third near 1 with large powers (beta^t), a third as rotary positions use it
    double x = exp2(uniform("pow x", i, -1000, 1000)), y = uniform("pow y", i, -1, 1);
    if (i % 3 == 1) x = uniform("pow x", i, 0.9, 1), y = floor(uniform("pow y", i, 0, 1000));
    if (i % 3 == 2) x = uniform("pow x", i, 1e3, 1e6);
    double error = error_in_ulp(det_pow(x, y), powl(x, y));
    if (!(error <= worst)) worst = error, worst_x = x, worst_y = y;
  }
  CHECK_MSG(worst <= MAX_ULP, "det_pow: %.3f ulp at %a, %a", worst, worst_x, worst_y);
  if (getenv("GPT_TEST_VERBOSE")) printf("det_pow: %.3f ulp\n", worst);
}

static void special_values(void) {
  CHECK(det_exp(0) == 1 && det_exp(-INFINITY) == 0 && det_exp(-800) == 0 && isinf(det_exp(710)) && isinf(det_exp(INFINITY)));
  CHECK(isnan(det_exp(NAN)) && det_exp(1e300) == INFINITY && det_exp(-1e300) == 0);
  CHECK(det_exp(-745) == 0x1p-1074 && det_exp(-745.1) == 0x1p-1074 && det_exp(709.5) < INFINITY);
  CHECK(det_log(1) == 0 && det_log(0) == -INFINITY && isnan(det_log(-1)) && isnan(det_log(NAN)) && isinf(det_log(INFINITY)));
  CHECK(det_pow(2, 10) == 1024 && det_pow(10, -1) == 0.1 && det_pow(5, 0) == 1 && det_pow(1, 1e300) == 1);
  CHECK(det_pow(0, 2) == 0 && isinf(det_pow(0, -2)) && isinf(det_pow(2, 5000)) && det_pow(2, -5000) == 0);
  CHECK(isnan(det_pow(-2, 2)) && isnan(det_pow(NAN, 2)) && isnan(det_pow(2, NAN)) && det_pow(2, 1e308) == INFINITY);
  CHECK(det_pow(1e300, 1e300) == INFINITY && det_pow(1e300, -1e300) == 0);
  CHECK(det_pow(NAN, 0) == 1 && det_pow(INFINITY, 0) == 1 && det_pow(-3, 0) == 1 && det_pow(1, NAN) == 1 && det_pow(1, INFINITY) == 1 && det_pow(0.3, 1) == 0.3);
  CHECK(det_pow(INFINITY, 2) == INFINITY && det_pow(INFINITY, -2) == 0 && det_pow(2, INFINITY) == INFINITY && det_pow(2, -INFINITY) == 0 && det_pow(0.5, INFINITY) == 0);
  CHECK(det_sin(0) == 0 && det_cos(0) == 1 && isnan(det_sin(INFINITY)) && isnan(det_cos(NAN)));
  CHECK(det_tanh(0) == 0 && det_tanh(100) == 1 && det_tanh(-INFINITY) == -1 && isnan(det_tanh(NAN)));
  CHECK(isfinite(det_sin(nextafter(0x1p31, 0))) && isnan(det_sin(0x1p31)) && isfinite(det_cos(-nextafter(0x1p31, 0))) && isnan(det_cos(-0x1p31)));
  CHECK(det_tanh(0x1p-1060) == 0x1p-1060 && det_tanh(19.03) < 1 && det_tanh(-19.03) > -1);
  CHECK(det_erf(0) == 0 && det_erf(7) == 1 && det_erf(-INFINITY) == -1 && isnan(det_erf(NAN)));
}

static void symmetries_are_exact(void) {
  for (uint64_t i = 0; i < 1000; i++) {
    double x = uniform("symmetry", i, 0, 10);
    CHECK(det_sin(-x) == -det_sin(x) && det_cos(-x) == det_cos(x));
    CHECK(det_tanh(-x) == -det_tanh(x) && det_erf(-x) == -det_erf(x));
  }
}

static double normal(uint64_t seed, uint32_t site, uint64_t element) {
  double z;
  det_normals(seed, site, element, 1, &z);
  return z;
}

// A range is its elements, wherever it begins and ends within a pair; nothing beside it is written.
static void normal_ranges_are_their_elements(void) {
  for (uint64_t first = 0; first < 4; first++)
    for (size_t n = 0; n < 7; n++) {
      double values[9] = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
      det_normals(5, 6, first, n, values + 1);
      for (size_t i = 0; i < n; i++) CHECK(values[1 + i] == normal(5, 6, first + i));
      CHECK(isnan(values[0]) && isnan(values[n + 1]));
    }
}

// Mean 0, variance 1, fourth moment 3, and the tails of the normal distribution. The standard errors over n draws are
// 1/sqrt(n), sqrt(2/n), sqrt(96/n); the bounds are five of them. The numbers are fixed, so the test cannot flicker.
static void normal_numbers_are_normal(void) {
  enum { N = 200000 };
  double mean = 0, square = 0, fourth = 0, neighbours = 0, previous = 0, beyond_two = 0;
  for (uint64_t i = 0; i < N; i++) {
    double z = normal(1, rng_site("normal"), i);
    mean += z / N, square += z * z / N, fourth += z * z * z * z / N, neighbours += z * previous / N;
    beyond_two += fabs(z) > 2;
    previous = z;
  }
  CHECK_NEAR(mean, 0, 5 / sqrt(N), "mean");
  CHECK_NEAR(square, 1, 5 * sqrt(2.0 / N), "variance");
  CHECK_NEAR(fourth, 3, 5 * sqrt(96.0 / N), "fourth moment");
  CHECK_NEAR(neighbours, 0, 5 / sqrt(N), "correlation of neighbours");
  CHECK_NEAR(beyond_two / N, 0.0455003, 5 * sqrt(0.0455 / N), "share beyond two sigma");
  CHECK(normal(1, 2, 3) != normal(1, 2, 4) && normal(1, 2, 3) != normal(1, 3, 3) &&
        normal(1, 2, 3) != normal(2, 2, 3));
}

static uint64_t fnv1a(uint64_t hash, double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  for (int i = 0; i < 64; i += 8) hash = (hash ^ (bits >> i & 255)) * 1099511628211u;
  return hash;
}

static void bits_never_change(void) {
  enum { EXP, LOG, POW, SIN, COS, TANH, ERF, NORMAL, COUNT };
  static const char *const name[COUNT] = {"exp", "log", "pow", "sin", "cos", "tanh", "erf", "normal"};
  static const uint64_t recorded[COUNT] = {
    0x3e0c5dcb1b352dee, 0x7bf76df74c8a0653, 0x090fceff9240f235, 0x543e851681f8835b,
    0x9178f1ebd44085bb, 0x1371cb3e693dc520, 0x2bddafe98e2bf3ef, 0x6c3b6333ebac5ac5,
  };
  uint64_t hash[COUNT];
  for (int f = 0; f < COUNT; f++) hash[f] = 14695981039346656037u;
  for (uint64_t i = 0; i < 20000; i++) {
    double x = uniform("hash x", i, -8, 8), y = uniform("hash y", i, -30, 30), wide = uniform("hash wide", i, -700, 700);
    hash[EXP] = fnv1a(fnv1a(hash[EXP], det_exp(x)), det_exp(wide));
    hash[LOG] = fnv1a(fnv1a(hash[LOG], det_log(fabs(x))), det_log(fabs(wide)));
    hash[POW] = fnv1a(hash[POW], det_pow(fabs(x), y));
    hash[SIN] = fnv1a(fnv1a(hash[SIN], det_sin(x)), det_sin(1000 * wide));
    hash[COS] = fnv1a(fnv1a(hash[COS], det_cos(x)), det_cos(1000 * wide));
    hash[TANH] = fnv1a(hash[TANH], det_tanh(x));
    hash[ERF] = fnv1a(hash[ERF], det_erf(x));
    hash[NORMAL] = fnv1a(hash[NORMAL], normal(42, 1, i));
  }
  for (int f = 0; f < COUNT; f++) {
    CHECK_MSG(hash[f] == recorded[f], "%s: 0x%016llx", name[f], (unsigned long long)hash[f]);
  }
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(exp_is_accurate);
  RUN(log_is_accurate);
  RUN(sin_and_cos_are_accurate);
  RUN(tanh_is_accurate);
  RUN(erf_is_accurate);
  RUN(pow_is_accurate);
  RUN(special_values);
  RUN(symmetries_are_exact);
  RUN(normal_numbers_are_normal);
  RUN(normal_ranges_are_their_elements);
  RUN(bits_never_change);
  return TEST_END();
}
