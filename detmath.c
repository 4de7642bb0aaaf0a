// detmath.c: owns exp, log, pow, sin, cos, tanh, erf and normal random numbers in fp64, with the same bits everywhere.
//
// Only +, -, *, /, sqrt, fma, rint, and the exact frexp, ldexp, fabs: IEEE 754 fixes the result of each, so any compiler
// and any processor agrees, as long as it is built with -ffp-contract=off. Every function has the same three steps:
//   1. reduce the argument to a short interval, keeping the rounding error of the reduction as a second number;
//   2. sum a plain Taylor series there, long enough that what is cut off is far below half a unit in the last place;
//   3. undo the reduction, adding the large term last so that almost only its own rounding is left.
// See Muller, "Elementary Functions" (Birkhauser, 3rd edition 2016), chapters 3, 9 and 11.
// Tests: tests/test_detmath.c (against long double, and a hash of the results)
#include "detmath.h"  // what we promise
#include <math.h>     // sqrt, fma, rint, frexp, ldexp, fabs, isfinite
#include "rng.h"      // rng_block

// ---- pairs: the unevaluated sum hi + lo, about 106 bits (Dekker 1971; Knuth, TAOCP 2, 4.2.2) ----
typedef struct { double hi, lo; } Pair;

// a + b exactly, for any a and b.
static Pair two_sum(double a, double b) {
  double sum = a + b, b_kept = sum - a, a_kept = sum - b_kept;
  return (Pair){sum, (a - a_kept) + (b - b_kept)};
}

// a * b exactly (unless it underflows).
static Pair two_product(double a, double b) {
  double product = a * b;
  return (Pair){product, fma(a, b, -product)};
}

static Pair pair_add(Pair a, Pair b) {
  Pair sum = two_sum(a.hi, b.hi);
  return two_sum(sum.hi, sum.lo + (a.lo + b.lo));
}

static Pair pair_multiply(Pair a, Pair b) {
  Pair product = two_product(a.hi, b.hi);
  return two_sum(product.hi, product.lo + (a.hi * b.lo + a.lo * b.hi));
}

static Pair pair_divide(Pair a, Pair b) {
  double quotient = a.hi / b.hi;
  double rest = fma(-quotient, b.hi, a.hi) + a.lo - quotient * b.lo;  // what a - quotient * b leaves
  return two_sum(quotient, rest / b.hi);
}

// 1/n!: the compiler divides, and IEEE rounds
static const double ONE_OVER_FACTORIAL[21] = {
  1.0 / 1, 1.0 / 1, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
  1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0, 1.0 / 87178291200.0,
  1.0 / 1307674368000.0, 1.0 / 20922789888000.0, 1.0 / 355687428096000.0,
  1.0 / 6402373705728000.0, 1.0 / 121645100408832000.0, 1.0 / 2432902008176640000.0,
};

// ---- exp ----
static const double LN2_TOP = 0x1.62e42fee00000p-1;    // ln 2 cut to 32 bits: its product with |k| < 2^11 is exact
static const double LN2_REST = 0x1.a39ef35793c76p-33;  // ln 2 - LN2_TOP
static const double ONE_OVER_LN2 = 0x1.71547652b82fep+0;

// x + x_lo = k ln 2 + r with |r| <= 0.35; returns exp(r) - 1. |x| < 1100.
// Taylor: exp(r) = 1 + r + r^2 (1/2! + r/3! + ... + r^12/14!); the next term is below 0.35^15 / 15! = 1.1e-19.
static Pair expm1_reduced(double x, double x_lo, int *k) {
  double multiple = rint(x * ONE_OVER_LN2);
  Pair r = two_sum(x - multiple * LN2_TOP, x_lo - multiple * LN2_REST);
  double series = 0;
  for (int n = 14; n >= 2; n--) series = series * r.hi + ONE_OVER_FACTORIAL[n];
  *k = (int)multiple;
  // d exp(r) = exp(r) dr: the low part of r is multiplied by 1 + r, which is near enough to exp(r) for it
  return two_sum(r.hi, r.lo * (1 + r.hi) + r.hi * r.hi * series);
}

// exp(x.hi + x.lo) = pair * 2^k; |x.hi| < 1100, |x.lo| well below 1. The pair is good to about 2^-57.
static Pair exp_scaled(Pair x, int *k) {
  Pair less_one = expm1_reduced(x.hi, x.lo, k), value = two_sum(1, less_one.hi);
  return two_sum(value.hi, value.lo + less_one.lo);
}

static double exp_of_pair(Pair x) {
  if (x.hi != x.hi) return x.hi;
  if (x.hi > 710) return INFINITY;  // the largest double is exp(709.78)
  if (x.hi < -746) return 0;        // half of the smallest is exp(-745.13)
  int k;
  Pair value = exp_scaled(x, &k);
  return ldexp(value.hi, k);
}

double det_exp(double x) { return exp_of_pair((Pair){x, 0}); }

// ---- log and powers ----
// x = 2^e * m, m in [sqrt(1/2), sqrt(2)): so log m is small where x is near 1, and nothing cancels. Returns m.
static double split_exponent(double x, double *e) {
  int exponent;
  double m = frexp(x, &exponent);
  if (m < 0x1.6a09e667f3bcdp-1) m *= 2, exponent--;
  *e = exponent;
  return m;
}

// With f = m - 1 (exact) and s = f / (2 + f): log m = 2 atanh(s) = 2s + s R, R = 2 s^2/3 + 2 s^4/5 + ...; |s| <= 0.172.
// As 2s = f - s f, that is f - s (f - R): the rounding of s touches only a small correction of f, which is exact.
// And s f = f^2/2 - s f^2/2 brings the correction's own leading part, f^2/2, out of the division too.
double det_log(double x) {
  static const double TWO_OVER[24] = {
    [3] = 2.0 / 3, [5] = 2.0 / 5, [7] = 2.0 / 7, [9] = 2.0 / 9, [11] = 2.0 / 11, [13] = 2.0 / 13,
    [15] = 2.0 / 15, [17] = 2.0 / 17, [19] = 2.0 / 19, [21] = 2.0 / 21, [23] = 2.0 / 23,
  };
  if (!(x > 0)) return x == 0 ? -INFINITY : NAN;
  if (!isfinite(x)) return x;
  double e, f = split_exponent(x, &e) - 1;
  double s = f / (2 + f), square = s * s, half_square = 0.5 * f * f, series = 0;
  for (int n = 23; n >= 3; n -= 2) series = (series + TWO_OVER[n]) * square;  // what is cut: 2 * 0.172^24 / 25 = 3e-20
  return e * LN2_TOP + (f - (half_square - (s * (half_square + series) + e * LN2_REST)));
}

// log(x) to about 2^-70, for powers: an error in log(x) is multiplied by y, and becomes the relative error of x^y.
static Pair log_to_pair(double x) {
  static const Pair LN2 = {0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56};
  double e, f = split_exponent(x, &e) - 1;
  Pair s = pair_divide((Pair){f, 0}, two_sum(2, f)), square = pair_multiply(s, s), series = {0, 0};
  for (int n = 27; n >= 1; n -= 2) {  // what is cut off, relative to the sum: 0.172^28 / 29 = 1.3e-23
    series = pair_add(pair_multiply(series, square), pair_divide((Pair){2, 0}, (Pair){n, 0}));
  }
  return pair_add(pair_multiply(LN2, (Pair){e, 0}), pair_multiply(s, series));
}

double det_pow(double x, double y) {
  if (y == 0 || x == 1) return 1;
  if (!(x > 0) || !isfinite(x) || !isfinite(y)) return det_exp(y * det_log(x));
  Pair log_x = log_to_pair(x);
  double product = log_x.hi * y;
  if (!(fabs(product) < 1000)) return det_exp(product);  // infinity or 0; and the pair would overflow
  return exp_of_pair(two_sum(product, fma(log_x.hi, y, -product) + log_x.lo * y));
}

// ---- sin and cos ----
// x = k pi/2 + r, |r| <= pi/4 and a little; returns r. pi/2 = A + B + C, 53 bits each (Cody and Waite 1980, with fma).
// x - k A is exact: it is a multiple of the last place of A or of x, and below 1.
static Pair reduce_by_half_pi(double x, int *quadrant) {
  static const double A = 0x1.921fb54442d18p+0, B = 0x1.1a62633145c07p-54, C = -0x1.f1976b7ed8fbcp-110;
  double k = rint(x * 0x1.45f306dc9c883p-1);  // 2 / pi
  Pair k_b = two_product(k, B), r = two_sum(fma(-k, A, x), -k_b.hi);
  *quadrant = (int)((int64_t)k & 3);
  return two_sum(r.hi, r.lo - k_b.lo - k * C);
}

// sin r = r - r^3/3! + r^5/5! - ... - r^19/19!; the low part of r counts as d sin(r) = cos(r) dr, cos r = 1 - r^2/2 + ...
static double sin_reduced(Pair r) {
  double square = r.hi * r.hi, series = 0;
  for (int n = 19; n >= 3; n -= 2) series = ONE_OVER_FACTORIAL[n] - series * square;
  return r.hi + (r.lo * (1 - 0.5 * square) - r.hi * (square * series));
}

// cos r = 1 - r^2/2 + (r^4/4! - ... + r^20/20!); what 1 - r^2/2 rounds off is added back; d cos(r) = -sin(r) dr
static double cos_reduced(Pair r) {
  double square = r.hi * r.hi, series = 0;
  for (int n = 20; n >= 4; n -= 2) series = ONE_OVER_FACTORIAL[n] - series * square;
  Pair start = two_sum(1, -0.5 * square);
  return start.hi + (start.lo + (square * square * series - r.hi * r.lo));
}

// The sine of an angle so many quarter turns further: sin and cos follow each other with alternating signs.
static double in_quadrant(int quadrant, double sin, double cos) {
  double value = quadrant & 1 ? cos : sin;
  return quadrant & 2 ? -value : value;
}

static double sin_or_cos(double x, int quarter_turns) {
  if (!(fabs(x) < 0x1p31)) return NAN;  // far beyond the promise; a reduction by three words would return noise
  int quadrant;
  Pair r = reduce_by_half_pi(x, &quadrant);
  quadrant += quarter_turns;
  return quadrant & 1 ? in_quadrant(quadrant, 0, cos_reduced(r)) : in_quadrant(quadrant, sin_reduced(r), 0);
}

double det_sin(double x) { return sin_or_cos(x, 0); }
double det_cos(double x) { return sin_or_cos(x, 1); }

// ---- tanh and erf ----
// With q = exp(2|x|) - 1: tanh|x| = q / (q + 2), which keeps its relative accuracy down to x = 0.
double det_tanh(double x) {
  double size = fabs(x);
  if (size != size || size < 0x1p-30) return x;  // x - x^3/3: x^2/3 is below half a unit in the last place
  if (size > 20) return x > 0 ? 1 : -1;          // 1 - 2 exp(-40) rounds to 1
  int k;
  Pair less_one = expm1_reduced(2 * size, 0, &k);
  double power = ldexp(1, k);                    // exp(2|x|) - 1 = power * less_one + (power - 1)
  Pair q = pair_add((Pair){power * less_one.hi, power * less_one.lo}, two_sum(power, -1));
  Pair value = pair_divide(q, pair_add(q, (Pair){2, 0}));
  return x > 0 ? value.hi : -value.hi;
}

// erf(x) = 2/sqrt(pi) x exp(-x^2) sum_n (2 x^2)^n / (1*3*5*...*(2n+1)) (Abramowitz and Stegun, 7.1.6): all terms are
// positive, so nothing cancels; as pairs, because the 100 terms that x = 6 takes would each leave a rounding.
double det_erf(double x) {
  static const Pair TWO_OVER_SQRT_PI = {0x1.20dd750429b6dp+0, 0x1.1ae3a914fed80p-56};
  double size = fabs(x);
  if (size != size) return x;
  if (size > 6) return x > 0 ? 1 : -1;  // 1 - erf(6) = 2e-17
  Pair square = two_product(x, x), term = {1, 0}, sum = {1, 0};
  for (int n = 1; term.hi > sum.hi * 0x1p-60; n++) {
    term = pair_multiply(term, pair_divide((Pair){2 * square.hi, 2 * square.lo}, (Pair){2 * n + 1, 0}));
    sum = pair_add(sum, term);
  }
  int k;
  Pair decay = exp_scaled((Pair){-square.hi, -square.lo}, &k);
  Pair factor = pair_multiply(pair_multiply(TWO_OVER_SQRT_PI, (Pair){x, 0}), sum);
  return ldexp(pair_multiply(decay, factor).hi, k);
}

// ---- normal random numbers (Box and Muller 1958) ----
// Uniform in (0, 1), never 0 or 1, from 64 random bits: as rng_uniform().
static double uniform_of(uint32_t low, uint32_t high) {
  return ((double)(((uint64_t)high << 32 | low) >> 11) + 0.5) * 0x1p-53;
}

// Elements 2i and 2i+1 are the cosine and the sine side of one random point, made of block i of the stream.
void det_normals(uint64_t seed, uint32_t site, uint64_t first, size_t n, double *values) {
  for (uint64_t i = first / 2; i < (first + n + 1) / 2; i++) {
    Philox4 r = rng_block(seed, 0, site, i);
    double radius = sqrt(-2 * det_log(uniform_of(r.v[0], r.v[1])));
    int quadrant;
    Pair angle = reduce_by_half_pi(0x1.921fb54442d18p+2 * uniform_of(r.v[2], r.v[3]), &quadrant);  // of 2 pi u
    double sin = sin_reduced(angle), cos = cos_reduced(angle);
    if (2 * i >= first) values[2 * i - first] = radius * in_quadrant(quadrant + 1, sin, cos);
    if (2 * i + 1 < first + n) values[2 * i + 1 - first] = radius * in_quadrant(quadrant, sin, cos);
  }
}
