// test_ops.c: owns the tests of a device's operations other than attention (test_attention.c), and of simd.h. The device: see op_test.h.
//
// Each operation is a row of op_test.h: against the reference on 42 odd shapes with derived bounds, then bit for bit over
// instruction sets and threads. Then what the contract promises beside numbers: aliasing, cuts of the rows, fused equals unfused.
// `test_ops layernorm` runs only what has layernorm in its name.
#include "op_test.h"
#include <float.h>         // FLT_MAX, FLT_MIN
#include "../simd.h"     // the plain section, which the others equal

// Roundings of a sum within a row of n: n/16 in a lane, 4 in the tree, `more` in the terms and after.
static double row_sum(size_t n, double more) { return (double)(n / 16) + 1 + 4 + more; }

// ---- embedding ----
static void embedding_shape(Case *c) {
  size_t B = c->dim[0] = odd_size(c, 0, 5), T = c->dim[1] = odd_size(c, 1, 33), C = c->dim[2] = odd_size(c, 2, 257);
  size_t V = c->dim[3] = odd_size(c, 3, 65), position = c->dim[4] = odd_size(c, 4, 17) - 1;
  output(c, "out", B * T * C), input_ids(c, "ids", B * T, V), input(c, "wte", V * C), input(c, "wpe", (position + T) * C);
}
static void embedding_forward_run(Device *d, const size_t *n, void *const p[]) {
  d->embedding_forward(d, p[0], p[1], p[2], n[1] % 4 ? p[3] : NULL, n[0], n[1], n[2], n[4]);
}
static void embedding_forward_bounds(Case *c) { bound_relative(c, 0, 1); }   // one addition
static const Operation embedding_forward_op = {"embedding_forward", embedding_shape, embedding_forward_run, embedding_forward_bounds};
static void embedding_forward(void) { check_operation(&embedding_forward_op); }

static void embedding_backward_shape(Case *c) {
  size_t B = c->dim[0] = odd_size(c, 0, 5), T = c->dim[1] = odd_size(c, 1, 33), C = c->dim[2] = odd_size(c, 2, 257), V = c->dim[3] = odd_size(c, 3, 65);
  accumulated(c, "dwte", V * C), accumulated(c, "dwpe", (T + 3) * C), input(c, "dout", B * T * C), input_ids(c, "ids", B * T, V);
}
static void embedding_backward_run(Device *d, const size_t *n, void *const p[]) {
  d->embedding_backward(d, p[0], p[1], p[2], p[3], n[0], n[1], n[2], n[3]);
}
static void embedding_backward_bounds(Case *c) {
  bound_linear(c, 0, (double)(c->dim[0] * c->dim[1]));   // at most one addition a row
  bound_linear(c, 1, (double)c->dim[0]);                 // one a sequence
}
static const Operation embedding_backward_op = {"embedding_backward", embedding_backward_shape, embedding_backward_run, embedding_backward_bounds};
static void embedding_backward(void) { check_operation(&embedding_backward_op); }

// ---- dropout ----
static Dropout some_dropout(size_t number) {
  static const double p[] = {0.1, 0.5, 0.9, 0.25};
  return (Dropout){.p = p[number % 4], .seed = 0x123456789abcdef0u + number, .step = (uint32_t)number, .site = 77, .row0 = number % 3 ? number * 5 : (uint64_t)1 << 33};
}
static void dropout_shape(Case *c) {
  size_t rows = c->dim[0] = odd_size(c, 0, 65), width = c->dim[1] = odd_size(c, 1, 257);
  c->dim[2] = (size_t)c->number;
  array_add(c, "x", KIND_REAL, IN_OUT, rows * width, c->size);
}
static void dropout_run(Device *d, const size_t *n, void *const p[]) {
  Dropout dropout = some_dropout(n[2]);
  d->dropout(d, p[0], n[0], n[1], &dropout);
}
static void dropout_bounds(Case *c) { bound_relative(c, 0, 2); }   // the factor and the product; what is dropped is exactly 0
static const Operation dropout_op = {"dropout", dropout_shape, dropout_run, dropout_bounds};
static void dropout(void) { check_operation(&dropout_op); }

static void dropout_does_nothing_at_zero(void) {
  Device *d = cpu_device(1);
  float x[4] = {1, -2, INFINITY, 0}, denormal;
  memcpy(&denormal, &(uint32_t){77}, 4);
  memcpy(&x[3], &denormal, 4);
  Dropout none = {.p = 0};
  d->dropout(d, (real *)x, 1, 4, &none);
  CHECK(x[0] == 1 && x[1] == -2 && isinf(x[2]) && !memcmp(&x[3], &denormal, 4));   // what computes would flush it to zero
  d->destroy(d);
}

// ---- norms ----
// Cases 4 and 5 of 6 have no delta, even ones no bias; inputs of magnitude c->size around an offset as large, so that the
// centred sums matter.
static void norm_forward_shape(Case *c) {
  size_t rows = c->dim[0] = odd_size(c, 0, 65), C = c->dim[1] = odd_size(c, 1, 769);
  c->dim[2] = c->number % 6 < 4, c->dim[3] = (size_t)c->number % 2;
  output(c, "out", rows * C), output_acc(c, "mean", rows), output_acc(c, "rstd", rows), input(c, "x", rows * C);
  array_add(c, "weight", KIND_REAL, IN, C, 2), array_add(c, "bias", KIND_REAL, IN, C, 2);
  if (c->dim[2]) output(c, "residual", rows * C), input(c, "delta", rows * C);
}
static void layernorm_forward_run(Device *d, const size_t *n, void *const p[]) {
  d->layernorm_forward(d, n[2] ? p[6] : NULL, p[0], p[1], p[2], p[3], n[2] ? p[7] : NULL, p[4], n[3] ? p[5] : NULL, n[0], n[1], 1e-5);
}
// With e the error of one centred element (the residual's rounding, the mean's, its own), sigma = 1/rstd:
//   var changes by at most 2 e/sigma + (e/sigma)^2 and the roundings of its sum, relatively; rstd by half of that.
static void norm_forward_bounds(Case *c) {
  const bool centred = !strcmp(c->op->name, "layernorm_forward");
  const size_t rows = c->dim[0], C = c->dim[1];
  Array *out = &c->array[0], *mean = &c->array[1], *rstd = &c->array[2], *x = &c->array[3], *weight = &c->array[4], *bias = &c->array[5];
  for (size_t r = 0; r < rows; r++) {
    double size = 0, largest = 0;
    for (size_t i = r * C; i < (r + 1) * C; i++) {
      double value = fabs(x->start[i]) + (c->dim[2] ? fabs(c->array[7].start[i]) : 0);
      size += value / (double)C, largest = MAX(largest, value);
    }
    mean->bound[r] = centred ? (row_sum(C, 2) * U + (c->dim[2] && on_bf16() ? U_BF16 : 0)) * size : 0;
    double e = (c->dim[2] ? unit_of_storage() : U) * largest + (centred ? mean->bound[r] + U * largest : 0), relative = e * rstd->want[r];
    double var_error = 2 * relative + relative * relative + row_sum(C, 6) * U, rstd_error = 0.5 * var_error * (1 + var_error) + 4 * U;
    rstd->bound[r] = rstd_error * rstd->want[r];
    for (size_t i = 0; i < C; i++) {
      double norm = fabs(out->want[r * C + i]) + (centred && c->dim[3] ? fabs(bias->start[i]) : 0), w = fabs(weight->start[i]);
      out->bound[r * C + i] = w * e * rstd->want[r] + norm * (rstd_error + 4 * U) + TINY;
    }
  }
  if (c->dim[2]) bound_relative(c, 6, 1);
}
static const Operation layernorm_forward_op = {"layernorm_forward", norm_forward_shape, layernorm_forward_run, norm_forward_bounds};
static void layernorm_forward(void) { check_operation(&layernorm_forward_op); }

static void rmsnorm_forward_run(Device *d, const size_t *n, void *const p[]) {
  d->rmsnorm_forward(d, n[2] ? p[6] : NULL, p[0], p[2], p[3], n[2] ? p[7] : NULL, p[4], n[0], n[1], 1e-5);
}
static void rmsnorm_forward_shape(Case *c) {   // as layer norm, but that nothing writes the mean
  norm_forward_shape(c);
  c->array[1].role = IN;
  for (size_t i = 0; i < c->dim[0]; i++) c->array[1].start[i] = 0;
}
static const Operation rmsnorm_forward_op = {"rmsnorm_forward", rmsnorm_forward_shape, rmsnorm_forward_run, norm_forward_bounds};
static void rmsnorm_forward(void) { check_operation(&rmsnorm_forward_op); }

static void norm_backward_shape(Case *c) {
  size_t rows = c->dim[0] = odd_size(c, 0, 129), C = c->dim[1] = odd_size(c, 1, 385);
  if (c->number == 40) rows = c->dim[0] = 11, C = c->dim[1] = 2304;   // more than a warp of a GPU keeps in registers, in accesses of 16 bytes
  c->dim[2] = c->number % 4 != 3, c->dim[3] = (size_t)c->number % 2;   // with dresidual; with dbias
  output(c, "dx", rows * C), accumulated(c, "dweight", C), accumulated(c, "dbias", C), input(c, "dout", rows * C), input(c, "dresidual", rows * C);
  input(c, "x", rows * C), array_add(c, "weight", KIND_REAL, IN, C, 2), array_add(c, "mean", KIND_ACC, IN, rows, c->size / 4);
  Array *rstd = array_add(c, "rstd", KIND_ACC, IN, rows, 1);
  for (size_t r = 0; r < rows; r++) rstd->start[r] = (float)((2 + rstd->start[r]) / c->size);   // about what the forward pass gives
}
static void layernorm_backward_run(Device *d, const size_t *n, void *const p[]) {
  d->layernorm_backward(d, p[0], p[1], n[3] ? p[2] : NULL, p[3], n[2] ? p[4] : NULL, p[5], p[6], p[7], p[8], n[0], n[1]);
}
static void rmsnorm_backward_run(Device *d, const size_t *n, void *const p[]) {
  d->rmsnorm_backward(d, p[0], p[1], p[3], n[2] ? p[4] : NULL, p[5], p[6], p[8], n[0], n[1]);
}
// The formulas of the reference with every minus made a plus, on magnitudes, times the roundings of the longest path.
static void norm_backward_bounds(Case *c) {
  const bool centred = !strcmp(c->op->name, "layernorm_backward");
  const size_t rows = c->dim[0], C = c->dim[1];
  const double *dout = c->array[3].start, *dresidual = c->array[4].start, *x = c->array[5].start, *w = c->array[6].start, *mean = c->array[7].start, *rstd = c->array[8].start;
  double *dx = c->array[0].bound, *dweight = c->array[1].bound, *dbias = c->array[2].bound;
  for (size_t i = 0; i < C; i++) dweight[i] = fabs(c->array[1].start[i]), dbias[i] = fabs(c->array[2].start[i]);
  for (size_t r = 0; r < rows; r++) {
    double sum_dnorm = 0, sum_dnorm_norm = 0;
    for (size_t i = 0; i < C; i++) {
      double norm = (fabs(x[r * C + i]) + (centred ? fabs(mean[r]) : 0)) * rstd[r], dnorm = fabs(dout[r * C + i] * w[i]);
      sum_dnorm += centred ? dnorm : 0, sum_dnorm_norm += dnorm * norm;
      dweight[i] += fabs(dout[r * C + i]) * norm, dbias[i] += fabs(dout[r * C + i]);
    }
    for (size_t i = 0; i < C; i++) {
      double norm = (fabs(x[r * C + i]) + (centred ? fabs(mean[r]) : 0)) * rstd[r], dnorm = fabs(dout[r * C + i] * w[i]);
      double through = rstd[r] * (dnorm + sum_dnorm / (double)C + norm * sum_dnorm_norm / (double)C);
      dx[r * C + i] = row_sum(C, 10) * U * (through + (c->dim[2] ? fabs(dresidual[r * C + i]) : 0)) + TINY;
    }
  }
  for (size_t i = 0; i < C; i++) dweight[i] *= ((double)rows + 2) * U, dbias[i] *= (double)rows * U;
  if (!centred || !c->dim[3])
    for (size_t i = 0; i < C; i++) dbias[i] = 0;   // not touched
}
static const Operation layernorm_backward_op = {"layernorm_backward", norm_backward_shape, layernorm_backward_run, norm_backward_bounds};
static const Operation rmsnorm_backward_op = {"rmsnorm_backward", norm_backward_shape, rmsnorm_backward_run, norm_backward_bounds};
static void layernorm_backward(void) { check_operation(&layernorm_backward_op); }
static void rmsnorm_backward(void) { check_operation(&rmsnorm_backward_op); }

static void residual_shape(Case *c) {
  size_t n = c->dim[0] = odd_size(c, 0, 769) * odd_size(c, 1, 65);
  output(c, "out", n), input(c, "x", n), input(c, "delta", n);
}
static void residual_run(Device *d, const size_t *n, void *const p[]) { d->residual_forward(d, p[0], p[1], p[2], n[0]); }
static void residual_bounds(Case *c) { bound_relative(c, 0, 1); }
static const Operation residual_op = {"residual_forward", residual_shape, residual_run, residual_bounds};
static void residual_forward(void) { check_operation(&residual_op); }

// ---- matrix products ----
static Activation activation_of(size_t number) { return number % 3 == 0 ? ACTIVATION_NONE : number % 3 == 1 ? ACTIVATION_GELU : ACTIVATION_SWIGLU; }
static double sigmoid_of(double x) { return 1 / (1 + exp(-x)); }
static double gelu_inner(double x) { return 2 * 0.7978845608028654 * (x + 0.044715 * x * x * x); }   // 2u: gelu(x) = x sigmoid(2u)

// Error of our gelu: 2u carries 4 roundings, which e^(-2u) multiplies by |2u| (held below 86), and 6 more follow. The reference's
// 1 + tanh(u) in double has lost all but 2^-53 where u is far below zero, times |x|; e^-85 |x|, what we have beyond -9.9, is less.
static double gelu_bound(double x) { return (6 + 4 * MIN(fabs(gelu_inner(x)), 86.0)) * U * fabs(x * sigmoid_of(gelu_inner(x))) + 0x1p-52 * fabs(x) + TINY; }
static double silu_bound(double x) { return 6 * U * fabs(x * sigmoid_of(x)) + 2e-38 * fabs(x) + TINY; }   // -x is exact

static void linear_forward_shape(Case *c) {
  size_t rows = c->dim[0] = odd_size(c, 0, 129), IC = c->dim[1] = odd_size(c, 1, 193), OC = c->dim[2] = 2 * odd_size(c, 2, 129);
  c->dim[3] = (size_t)c->number / 3 % 3, c->dim[4] = (size_t)c->number / 2 % 2;   // activation; bias: in half of those that are aligned too
  output(c, "pre", rows * OC), input(c, "x", rows * IC), array_add(c, "weight", KIND_REAL, IN, OC * IC, 1), input(c, "bias", OC);
  if (activation_of(c->dim[3]) != ACTIVATION_NONE) output(c, "post", activation_of(c->dim[3]) == ACTIVATION_GELU ? rows * OC : rows * OC / 2);
}
static void linear_forward_run(Device *d, const size_t *n, void *const p[]) {
  d->linear_forward(d, p[0], n[3] % 3 ? p[4] : NULL, p[1], p[2], n[4] ? p[3] : NULL, n[0], n[1], n[2], activation_of(n[3]));
}
static void linear_forward_bounds(Case *c) {
  bound_linear(c, 0, (double)c->dim[1] + 1);   // a chain of IC, from the bias
  bound_storage(&c->array[0]);                 // the activation is of what is stored
  const double *pre = c->array[0].want, *bound = c->array[0].bound;
  const size_t OC = c->dim[2], half = OC / 2;
  Array *post = &c->array[4];
  // the slope of gelu and silu is at most 1.13
  for (size_t i = 0; c->arrays > 4 && i < post->n; i++) {
    if (activation_of(c->dim[3]) == ACTIVATION_GELU) { post->bound[i] = 1.13 * bound[i] + gelu_bound(pre[i]) + 6 * U * bound[i]; continue; }
    size_t gate = i / half * OC + i % half, up = gate + half;
    double silu = fabs(pre[gate] * sigmoid_of(pre[gate])), silu_error = 1.13 * bound[gate] + silu_bound(pre[gate]);
    post->bound[i] = silu_error * (fabs(pre[up]) + bound[up]) + silu * bound[up] + U * fabs(post->want[i]) + TINY;
  }
}
static const Operation linear_forward_op = {"linear_forward", linear_forward_shape, linear_forward_run, linear_forward_bounds};
static void linear_forward(void) { check_operation(&linear_forward_op); }

static void linear_backward_input_shape(Case *c) {
  size_t rows = c->dim[0] = odd_size(c, 0, 129), IC = c->dim[1] = odd_size(c, 1, 193), OC = c->dim[2] = odd_size(c, 2, 193);
  output(c, "dx", rows * IC), input(c, "dout", rows * OC), input(c, "weight", OC * IC);
}
static void linear_backward_input_run(Device *d, const size_t *n, void *const p[]) { d->linear_backward_input(d, p[0], p[1], p[2], n[0], n[1], n[2]); }
static void linear_backward_input_bounds(Case *c) { bound_linear(c, 0, (double)c->dim[2]); }
static const Operation linear_backward_input_op = {"linear_backward_input", linear_backward_input_shape, linear_backward_input_run, linear_backward_input_bounds};
static void linear_backward_input(void) { check_operation(&linear_backward_input_op); }

static void linear_backward_weight_shape(Case *c) {
  size_t rows = c->dim[0] = odd_size(c, 0, 193), IC = c->dim[1] = odd_size(c, 1, 129), OC = c->dim[2] = odd_size(c, 2, 193);
  accumulated(c, "dweight", OC * IC), accumulated(c, "dbias", OC), input(c, "dout", rows * OC), input(c, "x", rows * IC);
}
static void linear_backward_weight_run(Device *d, const size_t *n, void *const p[]) { d->linear_backward_weight(d, p[0], p[1], p[2], p[3], n[0], n[1], n[2]); }
static void linear_backward_weight_bounds(Case *c) { bound_linear(c, 0, (double)c->dim[0]), bound_linear(c, 1, (double)c->dim[0]); }
static const Operation linear_backward_weight_op = {"linear_backward_weight", linear_backward_weight_shape, linear_backward_weight_run, linear_backward_weight_bounds};
static void linear_backward_weight(void) { check_operation(&linear_backward_weight_op); }

static void activation_shape(Case *c) {
  size_t rows = c->dim[0] = odd_size(c, 0, 65), width = c->dim[1] = 2 * odd_size(c, 1, 193);
  c->dim[2] = (size_t)c->number / 3 % 3;
  output(c, "post", activation_of(c->dim[2]) == ACTIVATION_SWIGLU ? rows * width / 2 : rows * width), input(c, "pre", rows * width);
}
static void activation_forward_run(Device *d, const size_t *n, void *const p[]) { d->activation_forward(d, p[0], p[1], n[0], n[1], activation_of(n[2])); }
static void activation_forward_bounds(Case *c) {
  const double *pre = c->array[1].start;
  const size_t width = c->dim[1], half = width / 2;
  for (size_t i = 0; i < c->array[0].n; i++) {
    size_t gate = i / half * width + i % half;
    double *bound = &c->array[0].bound[i];
    if (activation_of(c->dim[2]) == ACTIVATION_NONE) *bound = 0;
    else if (activation_of(c->dim[2]) == ACTIVATION_GELU) *bound = gelu_bound(pre[i]);
    else *bound = silu_bound(pre[gate]) * fabs(pre[gate + half]) + U * fabs(c->array[0].want[i]) + TINY;
  }
}
static const Operation activation_forward_op = {"activation_forward", activation_shape, activation_forward_run, activation_forward_bounds};
static void activation_forward(void) { check_operation(&activation_forward_op); }

static void activation_backward_shape(Case *c) {
  size_t rows = c->dim[0] = odd_size(c, 0, 65), width = c->dim[1] = 2 * odd_size(c, 1, 193);
  c->dim[2] = (size_t)c->number / 3 % 3;
  output(c, "dpre", rows * width), input(c, "dpost", activation_of(c->dim[2]) == ACTIVATION_SWIGLU ? rows * width / 2 : rows * width), input(c, "pre", rows * width);
}
static void activation_backward_run(Device *d, const size_t *n, void *const p[]) { d->activation_backward(d, p[0], p[1], p[2], n[0], n[1], activation_of(n[2])); }
// Derivative of x s(z): s + x s (1-s) z'. Magnitudes with plus; z carries 4 roundings, times |z| in the exponential; 10 more.
static double derivative_bound(double x, double z, double slope) {
  double s = sigmoid_of(z), size = s + fabs(x) * s * sigmoid_of(-z) * slope;
  return (10 + 8 * MIN(fabs(z), 87.0)) * U * size + 0x1p-51 * (1 + MIN(fabs(x), 40.0) * MIN(slope, 100.0));   // and the reference's 1 + tanh, as above
}
static void activation_backward_bounds(Case *c) {
  const size_t width = c->dim[1], half = width / 2;
  const double *dpost = c->array[1].start, *pre = c->array[2].start;
  double *bound = c->array[0].bound;
  for (size_t i = 0; i < c->array[0].n; i++) {
    double x = pre[i], slope = 2 * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
    if (activation_of(c->dim[2]) == ACTIVATION_NONE) bound[i] = 0;
    else if (activation_of(c->dim[2]) == ACTIVATION_GELU) bound[i] = fabs(dpost[i]) * derivative_bound(x, gelu_inner(x), slope) + TINY;
    else {
      size_t row = i / width, j = i % half, gate = row * width + j;
      double dy = fabs(dpost[row * half + j]);
      if (i % width < half) bound[i] = dy * (derivative_bound(pre[gate], pre[gate], 1) * fabs(pre[gate + half])) + 3 * U * fabs(c->array[0].want[i]) + TINY;
      else bound[i] = dy * silu_bound(pre[gate]) + U * fabs(c->array[0].want[i]) + TINY;
    }
  }
}
static const Operation activation_backward_op = {"activation_backward", activation_backward_shape, activation_backward_run, activation_backward_bounds};
static void activation_backward(void) { check_operation(&activation_backward_op); }

// ---- rotary positions ----
static void rope_table_shape(Case *c) {
  size_t context = c->dim[0] = odd_size(c, 0, 257), HS = c->dim[1] = 2 * odd_size(c, 1, 65);
  output_acc(c, "table", context * HS);
}
static void rope_table_run(Device *d, const size_t *n, void *const p[]) { d->rope_table(d, p[0], n[0], n[1], 10000); }
static void rope_table_bounds(Case *c) { bound_relative(c, 0, 1); }   // the same doubles, rounded
static const Operation rope_table_op = {"rope_table", rope_table_shape, rope_table_run, rope_table_bounds};
static void rope_table(void) { check_operation(&rope_table_op); }

static void rope_shape(Case *c) {
  size_t B = c->dim[0] = odd_size(c, 0, 5), T = c->dim[1] = odd_size(c, 1, 33), heads = c->dim[2] = odd_size(c, 2, 5), HS = c->dim[3] = 2 * odd_size(c, 3, 49);
  size_t stride = c->dim[4] = heads * HS + odd_pad(c, 4, 17), position = c->dim[5] = odd_size(c, 5, 17) - 1;
  c->dim[6] = (size_t)c->number % 2;
  array_add(c, "x", KIND_REAL, IN_OUT, B * T * stride, c->size);
  array_add(c, "table", KIND_ACC, IN, (position + T) * HS, 1);
}
static void rope_run(Device *d, const size_t *n, void *const p[]) { d->rope(d, p[0], p[1], n[0], n[1], n[5], n[2], n[3], n[4], n[6] ? 1 : -1); }
// two products and a sum: 3 roundings of the magnitudes of both members of the pair (|cos|, |sin| <= 1); other columns are not touched
static void rope_bounds(Case *c) {
  const size_t heads = c->dim[2], HS = c->dim[3], stride = c->dim[4];
  const double *x = c->array[0].start;
  for (size_t i = 0; i < c->array[0].n; i++) {
    size_t column = i % stride, partner = column % HS < HS / 2 ? i + HS / 2 : i - HS / 2;
    c->array[0].bound[i] = column < heads * HS ? 3 * U * (fabs(x[i]) + fabs(x[partner])) : 0;
  }
}
static const Operation rope_op = {"rope", rope_shape, rope_run, rope_bounds};
static void rope(void) { check_operation(&rope_op); }

static void copy_rows_shape(Case *c) {
  size_t rows = c->dim[0] = odd_size(c, 0, 65), width = c->dim[1] = odd_size(c, 1, 193), to = c->dim[2] = width + odd_pad(c, 2, 17), from = c->dim[3] = width + odd_pad(c, 3, 17);
  array_add(c, "dst", KIND_REAL, IN_OUT, rows * to, c->size), input(c, "src", rows * from);
}
static void copy_rows_run(Device *d, const size_t *n, void *const p[]) { d->copy_rows(d, p[0], n[2], p[1], n[3], n[0], n[1]); }
static void exact_bounds(Case *c) { (void)c; }   // copies: bound 0
static const Operation copy_rows_op = {"copy_rows", copy_rows_shape, copy_rows_run, exact_bounds};
static void copy_rows(void) { check_operation(&copy_rows_op); }

// ---- classifier ----
static void crossentropy_shape(Case *c) {
  size_t rows = c->dim[0] = odd_size(c, 0, 33), V = c->dim[1] = odd_size(c, 1, 769), stride = c->dim[2] = V + odd_pad(c, 2, 17);
  c->dim[3] = c->number % 4 != 3;   // with gradient
  array_add(c, "logits", KIND_REAL, c->dim[3] ? IN_OUT : IN, rows * stride, c->size), output_acc(c, "loss", rows);
  Array *targets = input_ids(c, "targets", rows, V);
  for (size_t r = 0; r < rows; r++)
    if (r % 5 == 4) targets->start[r] = IGNORED_TARGET;
}
static const double CROSSENTROPY_SCALE = 0.0625;   // exact, so that only the operation rounds
static void crossentropy_run(Device *d, const size_t *n, void *const p[]) {
  d->crossentropy(d, p[0], p[1], p[2], n[0], n[1], n[2], CROSSENTROPY_SCALE, n[3] ? WITH_GRADIENT : WITHOUT_GRADIENT);
}
// x - max is rounded once, which its exponential multiplies by |x - max|; the sum has row_sum(V) roundings; logs below e^-87 are 0.
static void crossentropy_bounds(Case *c) {
  const size_t rows = c->dim[0], V = c->dim[1], stride = c->dim[2];
  for (size_t r = 0; r < rows; r++) {
    if (c->array[2].start[r] < 0) { c->array[1].bound[r] = 0; continue; }   // ignored: exactly 0, as the reference
    const double *x = c->array[0].start + r * stride;
    size_t target = (size_t)c->array[2].start[r];
    double max = -INFINITY, sum = 0, distance = 0;
    for (size_t j = 0; j < V; j++) max = MAX(max, x[j]);
    for (size_t j = 0; j < V; j++) sum += exp(x[j] - max), distance += exp(x[j] - max) * (max - x[j]);
    double sum_error = (row_sum(V, 4) + distance / sum) * U;   // relative
    c->array[1].bound[r] = 2 * sum_error + 2 * U * ((max - x[target]) + log(sum) + c->array[1].want[r]) + TINY;
    for (size_t j = 0; c->dim[3] && j < V; j++) {
      double p = exp(x[j] - max) / sum;
      c->array[0].bound[r * stride + j] = CROSSENTROPY_SCALE * (p * (sum_error + (6 + max - x[j]) * U) + (j == target ? 2 * U : 0) + TINY);
    }
  }
}
static const Operation crossentropy_op = {"crossentropy", crossentropy_shape, crossentropy_run, crossentropy_bounds};
static void crossentropy(void) { check_operation(&crossentropy_op); }

// ---- scalars and the optimizer ----
static void add_rows_shape(Case *c) {   // every other row, from the last to the first, so that no row is its own; every third case without ids
  size_t C = c->dim[0] = odd_size(c, 0, 769), n = c->dim[1] = odd_size(c, 1, 65), V = c->dim[2] = 2 * n + 1;
  c->dim[3] = c->number % 3 != 2;
  accumulated(c, "out", V * C), input_acc(c, "x", n * C);
  Array *ids = input_ids(c, "ids", n, 1);
  for (size_t i = 0; i < n; i++) ids->start[i] = (double)(V - 2 - 2 * i);
}
static void add_rows_run(Device *d, const size_t *n, void *const p[]) { d->add_rows(d, p[0], p[1], n[3] ? p[2] : NULL, n[1], n[0], n[2]); }
static void add_rows_bounds(Case *c) { bound_relative(c, 0, 1); }
static const Operation add_rows_op = {"add_rows", add_rows_shape, add_rows_run, add_rows_bounds};
static void add_rows(void) { check_operation(&add_rows_op); }

static void scalar_shape(Case *c) {
  size_t n = c->dim[0] = odd_size(c, 0, 257) * odd_size(c, 1, 257);
  array_add(c, "out", KIND_STAT, OUT, 1, 0), input_acc(c, "x", n);
}
static void scalar_bounds(Case *c) {   // fp64: n additions at 2^-53 each; the squares are exact in one and rounded in the other
  Results m = magnitudes(c);
  c->array[0].bound[0] = (double)(c->dim[0] + 2) * 0x1p-53 * m.p[0][0];
  results_free(c, &m);
}
static void sum_run(Device *d, const size_t *n, void *const p[]) { d->sum(d, p[0], p[1], n[0]); }
static void sumsq_run(Device *d, const size_t *n, void *const p[]) { d->sumsq(d, p[0], p[1], n[0] / 3), d->sumsq(d, p[0], d->acc_at(p[1], n[0] / 3), n[0] - n[0] / 3); }
static const Operation sum_op = {"sum", scalar_shape, sum_run, scalar_bounds}, sumsq_op = {"sumsq", scalar_shape, sumsq_run, scalar_bounds};
static void sum(void) { check_operation(&sum_op); }
static void sumsq(void) { check_operation(&sumsq_op); }

static void count_run(Device *d, const size_t *n, void *const p[]) {
  d->upload_acc(d, d->acc_at(p[1], n[0] - 1), &(double){n[0] % 3 ? INFINITY : NAN}, 1);
  d->upload_acc(d, d->acc_at(p[1], n[0] / 2), &(double){-INFINITY}, 1);
  d->count_nonfinite_acc(d, p[0], p[1], n[0]);
  if (d->real_size == d->acc_size) d->count_nonfinite_real(d, p[0], p[1], n[0] / 2 + 1);   // the first half again
  else d->count_nonfinite_acc(d, p[0], p[1], n[0] / 2 + 1);
  d->upload_acc(d, d->acc_at(p[1], n[0] - 1), &(double){1}, 1);
  d->upload_acc(d, d->acc_at(p[1], n[0] / 2), &(double){1}, 1);
}
static void count_bounds(Case *c) {   // exact; the two elements that the call replaces
  c->array[1].bound[c->dim[0] - 1] = c->array[1].bound[c->dim[0] / 2] = 0;
}
static const Operation count_op = {"count_nonfinite", scalar_shape, count_run, count_bounds};
static void count_nonfinite(void) { check_operation(&count_op); }

static AdamWSettings some_settings(size_t number) {
  double t = (double)(number + 1);
  return (AdamWSettings){.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .bias1 = 1 - pow(0.9, t), .bias2 = 1 - pow(0.95, t), .grad_clip = number % 3 ? (double)(number % 3) / 4 : 0};
}
static void adamw_shape(Case *c) {
  size_t n = c->dim[0] = odd_size(c, 0, 257) * odd_size(c, 1, 129), other = c->dim[1] = odd_size(c, 2, 33);
  c->dim[2] = (size_t)c->number;
  for (int tensor = 0; tensor < 2; tensor++) {
    size_t size = tensor ? other : n;
    array_add(c, tensor ? "b.param" : "a.param", KIND_REAL, IN_OUT, size, 2), array_add(c, tensor ? "b.m" : "a.m", KIND_ACC, IN_OUT, size, c->size / 10);
    Array *v = array_add(c, tensor ? "b.v" : "a.v", KIND_ACC, IN_OUT, size, c->size * c->size / 10);
    for (size_t i = 0; i < size; i++) v->start[i] = fabs(v->start[i]);
    input_acc(c, tensor ? "b.grad" : "a.grad", size);
  }
  array_add(c, "stats", KIND_STAT, OUT, STAT_COUNT, 0);
}
static void adamw_run(Device *d, const size_t *n, void *const p[]) {
  AdamWTensor tensors[2] = {{p[0], NULL, p[3], p[1], p[2], n[0], 0.1, 0}, {p[4], NULL, p[7], p[5], p[6], n[1], 0, 0}};
  AdamWSettings settings = some_settings(n[2]);
  d->sumsq(d, d->stat_at(p[8], STAT_GRAD_SUMSQ), p[3], n[0]);
  d->sumsq(d, d->stat_at(p[8], STAT_GRAD_SUMSQ), p[7], n[1]);
  keep_denormals();   // the sums have flushed them
  d->adamw(d, tensors, 2, &settings, p[8]);
}
// g: 2 roundings (clip, product); m: 4 on magnitudes; v: 6; root of v: 3 + its own 3; the quotient 4 more; lr and decay 2 each
static void adamw_bounds(Case *c) {
  AdamWSettings s = some_settings(c->dim[2]);
  double norm = sqrt(c->array[8].want[STAT_GRAD_SUMSQ]), clip = s.grad_clip > 0 && norm > s.grad_clip ? s.grad_clip / norm : 1;
  c->array[8].bound[STAT_GRAD_SUMSQ] = (double)(c->dim[0] + c->dim[1] + 2) * 0x1p-53 * norm * norm;
  for (int a = 0; a < 8; a += 4)
    for (size_t i = 0; i < c->array[a].n; i++) {
      double w = fabs(c->array[a].start[i]), g = fabs(c->array[a + 3].start[i]) * clip, decay = a ? 0 : 0.1;
      double m = s.beta1 * fabs(c->array[a + 1].start[i]) + (1 - s.beta1) * g, v = c->array[a + 2].want[i];
      c->array[a + 1].bound[i] = 5 * U * m, c->array[a + 2].bound[i] = 8 * U * v + TINY;
      double step = m / s.bias1 / (sqrt(v / s.bias2) + s.eps);
      c->array[a].bound[i] = 2 * U * w + s.lr * (18 * U * step + 6 * U * decay * w);
      if (on_bf16()) c->array[a].bound[i] += U_BF16 * fabs(c->array[a].want[i]);   // no master copy: to either neighbour, not to the nearest
    }
}
static const Operation adamw_op = {"adamw", adamw_shape, adamw_run, adamw_bounds};
static void adamw(void) { check_operation(&adamw_op); }

// A step whose loss or norm is not finite, or whose norm is beyond max_norm, writes nothing.
static void adamw_refuses_bad_steps(void) {
  Device *d = cpu_device(1);
  float w = 1, m = 2, v = 3, g = 4;
  AdamWTensor tensor = {(real *)&w, NULL, (acc *)&g, (acc *)&m, (acc *)&v, 1, 0.1, 0};
  AdamWSettings settings = some_settings(0);
  double stats[][STAT_COUNT] = {{NAN, 16}, {INFINITY, 16}, {1, NAN}, {1, INFINITY}, {1, 16}};
  for (size_t i = 0; i < ARRAY_LEN(stats); i++) {
    settings.max_norm = i == 4 ? 0.5 : 0;   // the norm is 4
    d->adamw(d, &tensor, 1, &settings, (scalar *)stats[i]);
    CHECK_MSG(w == 1 && m == 2 && v == 3, "case %zu wrote something", i);
  }
  settings.max_norm = 4;
  d->adamw(d, &tensor, 1, &settings, (scalar *)stats[4]);
  CHECK(w != 1 && m != 2 && v != 3);
  d->destroy(d);
}

// ---- what the contract promises beside numbers ----

enum { BITS_ROWS = 37, BITS_C = 83, BITS_OC = 150 };
static float *random_floats(const char *name, size_t n, double size) {
  float *p = xmalloc(n, sizeof *p);
  for (size_t i = 0; i < n; i++) p[i] = (float)(size * (2 * rng_uniform(5, 0, rng_site(name), i) - 1));
  return p;
}
static float *copy_floats(const float *p, size_t n) { return memcpy(xmalloc(n, sizeof *p), p, n * sizeof *p); }
static bool equal_floats(const float *a, const float *b, size_t n) { return !memcmp(a, b, n * sizeof *a); }
static real *R(float *p) { return (real *)p; }
static acc *A(float *p) { return (acc *)p; }

static void layernorm_may_alias(void) {
  Device *d = cpu_device(2);
  size_t n = BITS_ROWS * BITS_C;
  float *x = random_floats("x", n, 3), *delta = random_floats("delta", n, 3), *w = random_floats("w", BITS_C, 2), *b = random_floats("b", BITS_C, 2);
  float *residual = xmalloc(n, 4), *out = xmalloc(n, 4), *out2 = xmalloc(n, 4), *mean = xmalloc(BITS_ROWS, 4), *rstd = xmalloc(BITS_ROWS, 4);
  d->layernorm_forward(d, R(residual), R(out), A(mean), A(rstd), R(x), R(delta), R(w), R(b), BITS_ROWS, BITS_C, 1e-5);
  for (int which = 0; which < 2; which++) {
    float *x2 = copy_floats(x, n), *delta2 = copy_floats(delta, n), *target = which ? delta2 : x2;
    d->layernorm_forward(d, R(target), R(out2), A(mean), A(rstd), R(x2), R(delta2), R(w), R(b), BITS_ROWS, BITS_C, 1e-5);
    CHECK(equal_floats(target, residual, n) && equal_floats(out2, out, n));
    free(x2), free(delta2);
  }
  float *dx = xmalloc(n, 4), *dw = random_floats("dw", BITS_C, 1), *dw2 = copy_floats(dw, BITS_C), *dresidual = copy_floats(delta, n);
  d->layernorm_backward(d, R(dx), A(dw), NULL, R(x), R(dresidual), R(residual), R(w), A(mean), A(rstd), BITS_ROWS, BITS_C);
  d->layernorm_backward(d, R(dresidual), A(dw2), NULL, R(x), R(dresidual), R(residual), R(w), A(mean), A(rstd), BITS_ROWS, BITS_C);
  CHECK(equal_floats(dx, dresidual, n) && equal_floats(dw, dw2, BITS_C));
  free(x), free(delta), free(w), free(b), free(residual), free(out), free(out2), free(mean), free(rstd), free(dx), free(dw), free(dw2), free(dresidual);
  d->destroy(d);
}

static void activation_backward_may_alias(void) {
  Device *d = cpu_device(2);
  size_t n = BITS_ROWS * BITS_C;
  float *pre = random_floats("pre", n, 3), *dpost = random_floats("dpost", n, 3), *dpre = xmalloc(n, 4);
  d->activation_backward(d, R(dpre), R(dpost), R(pre), BITS_ROWS, BITS_C, ACTIVATION_GELU);
  d->activation_backward(d, R(dpost), R(dpost), R(pre), BITS_ROWS, BITS_C, ACTIVATION_GELU);
  CHECK(equal_floats(dpre, dpost, n));
  free(pre), free(dpost), free(dpre);
  d->destroy(d);
}

static void residual_forward_may_alias(void) {
  Device *d = cpu_device(2);
  size_t n = BITS_ROWS * BITS_C;
  float *x = random_floats("x", n, 3), *delta = random_floats("delta", n, 3), *out = xmalloc(n, 4), *x2 = copy_floats(x, n);
  d->residual_forward(d, R(out), R(x), R(delta), n);
  d->residual_forward(d, R(x2), R(x2), R(delta), n);
  d->residual_forward(d, R(delta), R(x), R(delta), n);
  CHECK(equal_floats(out, x2, n) && equal_floats(out, delta, n));
  free(x), free(delta), free(out), free(x2);
  d->destroy(d);
}

// Gradients that are sums over rows: the rows in two calls give the bits of one call, wherever they are cut.
static void accumulated_gradients_do_not_see_the_cut(void) {
  Device *d = cpu_device(2);
  size_t rows = BITS_ROWS, C = BITS_C, OC = BITS_OC;
  float *x = random_floats("x", rows * C, 2), *dx = xmalloc(rows * C, 4), *dy = random_floats("dy", rows * OC, 2), *w = random_floats("w", OC * C, 1);
  float *mean = random_floats("mean", rows, 1), *rstd = random_floats("rstd", rows, 1);
  float *start = random_floats("gradient", OC * C + OC, 1), *whole = NULL, *embedding = NULL, *norm = NULL;
  int32_t ids[BITS_ROWS];
  for (size_t r = 0; r < rows; r++) ids[r] = (int32_t)(r * r % 7);
  for (size_t cut = 0; cut < rows; cut += 1 + cut / 3) {
    float *g = copy_floats(start, OC * C + OC), *e = copy_floats(start, OC * C), *l = copy_floats(start, 3 * C);
    for (int half = 0; half < 2; half++) {
      size_t r = half ? cut : 0, n = half ? rows - cut : cut;
      d->linear_backward_weight(d, A(g), A(g + OC * C), R(dy + r * OC), R(x + r * C), n, C, OC);
      d->embedding_backward(d, A(e), NULL, R(x + r * C), ids + r, 1, n, C, 7);
      d->layernorm_backward(d, R(dx + r * C), A(l), A(l + C), R(x + r * C), NULL, R(x + r * C), R(w), A(mean + r), A(rstd + r), n, C);
      d->rmsnorm_backward(d, R(dx + r * C), A(l + 2 * C), R(x + r * C), NULL, R(x + r * C), R(w), A(rstd + r), n, C);
    }
    if (cut == 0) { whole = g, embedding = e, norm = l; continue; }
    CHECK_MSG(equal_floats(g, whole, OC * C + OC), "linear_backward_weight: cut at row %zu", cut);
    CHECK_MSG(equal_floats(e, embedding, OC * C), "embedding_backward: cut at row %zu", cut);
    CHECK_MSG(equal_floats(l, norm, 3 * C), "norms: cut at row %zu", cut);
    free(g), free(e), free(l);
  }
  free(x), free(dx), free(dy), free(w), free(mean), free(rstd), free(start), free(whole), free(embedding), free(norm);
  d->destroy(d);
}

// linear_forward with an activation, with pre kept and without, is the product, then activation_forward; any cut of the rows.
static void linear_forward_fused_is_unfused(void) {
  Device *d = cpu_device(2);
  size_t rows = BITS_ROWS, C = BITS_C, OC = BITS_OC;
  float *x = random_floats("x", rows * C, 2), *w = random_floats("w", OC * C, 1), *b = random_floats("b", OC, 1);
  float *pre = xmalloc(rows * OC, 4), *post = xmalloc(rows * OC, 4), *pre2 = xmalloc(rows * OC, 4), *post2 = xmalloc(rows * OC, 4);
  for (Activation a = ACTIVATION_GELU; a <= ACTIVATION_SWIGLU; a++) {
    size_t width = a == ACTIVATION_SWIGLU ? OC / 2 : OC;
    d->linear_forward(d, R(pre), NULL, R(x), R(w), R(b), rows, C, OC, ACTIVATION_NONE);
    d->activation_forward(d, R(post), R(pre), rows, OC, a);
    d->linear_forward(d, R(pre2), R(post2), R(x), R(w), R(b), rows, C, OC, a);
    CHECK(equal_floats(pre2, pre, rows * OC) && equal_floats(post2, post, rows * width));
    memset(post2, 0, rows * OC * sizeof *post2);
    d->linear_forward(d, NULL, R(post2), R(x), R(w), R(b), 5, C, OC, a);
    d->linear_forward(d, NULL, R(post2 + 5 * width), R(x + 5 * C), R(w), R(b), rows - 5, C, OC, a);
    CHECK(equal_floats(post2, post, rows * width));
  }
  free(x), free(w), free(b), free(pre), free(post), free(pre2), free(post2);
  d->destroy(d);
}

// Gradients of the weight alone, where there is no bias.
static void linear_backward_weight_without_bias(void) {
  Device *d = cpu_device(2);
  enum { ROWS = 33, C = 20, OC = 17 };
  float *x = random_floats("x", ROWS * C, 2), *dout = random_floats("dout", ROWS * OC, 1), *one = xcalloc(OC * C, 4), *two = xcalloc(OC * C, 4), *bias = xcalloc(OC, 4);
  d->linear_backward_weight(d, A(one), NULL, R(dout), R(x), ROWS, C, OC);
  d->linear_backward_weight(d, A(two), A(bias), R(dout), R(x), ROWS, C, OC);
  CHECK(equal_floats(one, two, OC * C));
  free(x), free(dout), free(one), free(two), free(bias);
  d->destroy(d);
}

// The activations and their derivatives over all of their range, and where they are held so that nothing overflows: the bits of every version.
static void activation_bits_never_change(void) {
  enum { STEPS = 2400 };
  float pre[2 * STEPS], dpost[2 * STEPS], out[2 * STEPS];
  Buffer all = {0};
  for (int i = 0; i < STEPS; i++) pre[i] = (float)(i - STEPS / 2) * 0.0101f * (i % 3 == 2 ? 9 : 1), pre[STEPS + i] = 1 + (float)(i % 7);
  for (int i = 0; i < 2 * STEPS; i++) dpost[i] = 1 + (float)(i % 5) / 4;
  Device *d = cpu_device(1);
  for (Activation a = ACTIVATION_NONE; a <= ACTIVATION_SWIGLU; a++) {
    d->activation_forward(d, R(out), R(pre), 1, 2 * STEPS, a);
    buffer_append(&all, out, (a == ACTIVATION_SWIGLU ? 1 : 2) * STEPS * sizeof(float));
    d->activation_backward(d, R(out), R(dpost), R(pre), 1, 2 * STEPS, a);
    buffer_append(&all, out, sizeof out);
  }
  char hex[65];
  sha256_of(all.data, all.len, hex);
  CHECK_STR(hex, "7bcfbfa36997bec67110f5c153f46cc48ffb09f73814c9ced07c0de9c3b66944");
  buffer_free(&all);
  d->destroy(d);
}

// A norm that adds delta first is residual_forward, then the norm.
static void layernorm_fused_is_unfused(void) {
  Device *d = cpu_device(2);
  size_t n = BITS_ROWS * BITS_C;
  float *x = random_floats("x", n, 3), *delta = random_floats("delta", n, 3), *w = random_floats("w", BITS_C, 2), *b = random_floats("b", BITS_C, 2);
  float *residual = xmalloc(n, 4), *out = xmalloc(n, 4), *residual2 = xmalloc(n, 4), *out2 = xmalloc(n, 4), *mean = xmalloc(BITS_ROWS, 4), *rstd = xmalloc(BITS_ROWS, 4);
  d->residual_forward(d, R(residual), R(x), R(delta), n);
  d->layernorm_forward(d, NULL, R(out), A(mean), A(rstd), R(residual), NULL, R(w), R(b), BITS_ROWS, BITS_C, 1e-5);
  d->layernorm_forward(d, R(residual2), R(out2), A(mean), A(rstd), R(x), R(delta), R(w), R(b), BITS_ROWS, BITS_C, 1e-5);
  CHECK(equal_floats(residual, residual2, n) && equal_floats(out, out2, n));
  d->rmsnorm_forward(d, NULL, R(out), A(rstd), R(residual), NULL, R(w), BITS_ROWS, BITS_C, 1e-5);
  d->rmsnorm_forward(d, R(residual2), R(out2), A(rstd), R(x), R(delta), R(w), BITS_ROWS, BITS_C, 1e-5);
  CHECK(equal_floats(residual, residual2, n) && equal_floats(out, out2, n));
  free(x), free(delta), free(w), free(b), free(residual), free(out), free(residual2), free(out2), free(mean), free(rstd);
  d->destroy(d);
}

// The loss of a row is the same bits with and without the gradient, and however many rows a call has.
static void crossentropy_does_not_see_the_chunk(void) {
  Device *d = cpu_device(2);
  enum { ROWS = 9, V = 301 };
  float *logits = random_floats("logits", ROWS * V, 5), *copy = copy_floats(logits, ROWS * V), loss[ROWS], loss2[ROWS];
  int32_t targets[ROWS] = {0, 300, 17, 5, IGNORED_TARGET, 44, 45, 46, 299};
  d->crossentropy(d, R(logits), A(loss), targets, ROWS, V, V, 0.1, WITHOUT_GRADIENT);
  CHECK(equal_floats(logits, copy, ROWS * V));
  for (size_t r = 0; r < ROWS; r++) d->crossentropy(d, R(copy + r * V), A(loss2 + r), targets + r, 1, V, V, 0.1, WITH_GRADIENT);
  d->crossentropy(d, R(logits), A(loss), targets, ROWS, V, V, 0.1, WITH_GRADIENT);
  CHECK(equal_floats(loss, loss2, ROWS) && equal_floats(logits, copy, ROWS * V));
  free(logits), free(copy);
  d->destroy(d);
}

// A NaN in the input is a NaN in the output: nothing hides a broken step.
static void nan_is_never_hidden(void) {
  Device *d = cpu_device(1);
  float x[20], w[20], out[20], mean, rstd, loss;
  for (int place = 0; place < 20; place += 19) {
    for (int i = 0; i < 20; i++) x[i] = (float)i, w[i] = 1;
    x[place] = NAN;
    d->activation_forward(d, R(out), R(x), 1, 20, ACTIVATION_GELU);
    CHECK(isnan(out[place]));
    d->activation_backward(d, R(out), R(w), R(x), 1, 20, ACTIVATION_GELU);
    CHECK(isnan(out[place]));
    d->activation_forward(d, R(out), R(x), 1, 20, ACTIVATION_SWIGLU);
    CHECK(isnan(out[place % 10]));
    d->activation_backward(d, R(out), R(w), R(x), 1, 20, ACTIVATION_SWIGLU);
    CHECK(isnan(out[place]) || isnan(out[place % 10]));
    d->layernorm_forward(d, NULL, R(out), A(&mean), A(&rstd), R(x), NULL, R(w), NULL, 1, 20, 1e-5);
    CHECK(isnan(out[0]) && isnan(mean) && isnan(rstd));
    d->rmsnorm_forward(d, NULL, R(out), A(&rstd), R(x), NULL, R(w), 1, 20, 1e-5);
    CHECK(isnan(out[0]));
    d->crossentropy(d, R(x), A(&loss), (int32_t[]){3}, 1, 20, 20, 1, WITH_GRADIENT);
    CHECK(isnan(loss) && isnan(x[7]));
  }
  d->destroy(d);
}

// ---- simd.h ----

// Distance of y from the true value, in units of the last of a float's 24 bits there.
static double ulps(float y, double truth) { return fabs((double)y - truth) / ldexp(1, ilogb(truth) - 23); }

// Sixty thousand floats of all magnitudes; the whole range was tried once (dev/LOG.md).
static void simd_exp_and_log_are_within_one_ulp(void) {
  float x[LANES], e[LANES], l[LANES];
  for (uint32_t bits = 0; bits < 0xffffffffu - (1u << 21); bits += 1u << 20 | 977) {
    for (uint32_t i = 0; i < LANES; i++) memcpy(&x[i], &(uint32_t){bits + i * 65521}, 4);
    vec_store(e, vec_exp(vec_load(x))), vec_store(l, vec_log(vec_load(x)));
    for (int i = 0; i < LANES; i++) {
      double truth = exp((double)x[i]);
      if (isnan(x[i])) CHECK(isnan(e[i]) && isnan(l[i]));
      else if (truth > FLT_MAX) CHECK(isinf(e[i]));
      else if (truth < 1.19e-38) CHECK(e[i] <= 1.19e-38f && e[i] >= 0);
      else CHECK_MSG(ulps(e[i], truth) <= 1, "exp(%a) = %a, %g ulp", x[i], e[i], ulps(e[i], truth));
      if (x[i] >= FLT_MIN && x[i] <= FLT_MAX && x[i] != 1) CHECK_MSG(ulps(l[i], log((double)x[i])) <= 1, "log(%a) = %a", x[i], l[i]);
    }
  }
  vec_store(l, vec_log(vec_load((float[LANES]){1, 0, -1, INFINITY, -INFINITY})));
  CHECK(l[0] == 0 && l[1] == -INFINITY && isnan(l[2]) && l[3] == INFINITY && isnan(l[4]));
}

static void simd_philox_is_rng(void) {
  uint32_t word[100 + PHILOX_ROOM];
  for (uint64_t first = 0xfffffffd0u; first < 0x1000000040u; first += 12) {   // over the counter's 32-bit edge
    philox_words(word, 0x0123456789abcdefu, 7, 9, first, 99);
    for (size_t i = 0; i < 99; i++) CHECK(word[i] == rng_u32(0x0123456789abcdefu, 7, 9, first + i));
  }
}

// ---- the device ----
static void device_memory(void) {
  Device *d = cpu_device(3);
  size_t sizes[] = {1, 63, 4096, 4097, (2 << 20) - 1, 2 << 20, (5 << 20) + 12345};
  for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
    unsigned char *p = d->allocate(d, sizes[i]), *q = d->allocate(d, sizes[i]);
    CHECK(p && q && (uintptr_t)p % 64 == 0);
    size_t bad = 0;
    for (size_t j = 0; j < sizes[i]; j++) bad += p[j] != 0, p[j] = (unsigned char)(j * 7 + 1);
    CHECK_EQ(bad, 0);
    d->copy(d, q, p, sizes[i]);
    CHECK(!memcmp(p, q, sizes[i]));
    d->zero(d, q, sizes[i]);
    for (size_t j = 0; j < sizes[i]; j++) bad += q[j] != 0;
    CHECK_EQ(bad, 0);
    d->release(d, p, sizes[i]), d->release(d, q, sizes[i]);
  }
  CHECK(d->allocate(d, SIZE_MAX) == NULL && d->allocate(d, SIZE_MAX / 2) == NULL);
  d->destroy(d);
}

static void device_transfers(void) {
  Device *d = cpu_device(1);
  double in[3] = {1.5, 1 + 0x1p-24, 1 + 3 * 0x1p-24}, back[3];   // the last two lie halfway: to even
  float wide[3] = {-2.25f, 3, 1e30f};
  real *x = d->allocate(d, 3 * d->real_size);
  acc *y = d->allocate(d, 3 * d->acc_size);
  d->upload_real(d, x, in, 3), d->download_real(d, back, x, 3);
  CHECK(back[0] == 1.5 && back[1] == 1 && back[2] == 1 + 4 * 0x1p-24);
  d->upload_acc(d, y, in, 3), d->download_acc(d, back, y, 3);
  CHECK(back[0] == 1.5 && back[1] == 1 && back[2] == 1 + 4 * 0x1p-24);
  d->upload_real_float(d, x, wide, 3), d->download_real(d, back, d->real_at(x, 1), 2);
  CHECK(back[0] == 3 && back[1] == wide[2]);
  d->upload_acc_float(d, y, wide, 3), d->download_acc(d, back, d->acc_at(y, 2), 1);
  CHECK(back[0] == wide[2]);
  d->release(d, x, 3 * d->real_size), d->release(d, y, 3 * d->acc_size);
  d->destroy(d);
}

static void device_choice(void) {
  Device *d = device_with("generic", 1);
  CHECK_STR(d->description, "fp32, generic, 1 thread");
  CHECK(d->real_size == 4 && d->real_is_acc);
  CHECK(d->peak_flops > 1e6 && d->linear_scratch(d, 64, 32, 96) > 0);
  d->destroy(d);
}

// Runs first: a leak checker that ends a child cannot look into threads that the child has not.
static void device_refuses_unknown_sets(void) {
  EXPECT_FAIL(EXIT_REQUEST, "generic", device_with("sse9", 1));
#if !defined(__x86_64__)
  EXPECT_FAIL(EXIT_REQUEST, "generic", device_with("avx2", 1));
#endif
}

// Every device.
static void test_operations(void) {
  RUN(embedding_forward);
  RUN(embedding_backward);
  RUN(dropout);
  RUN(layernorm_forward);
  RUN(layernorm_backward);
  RUN(rmsnorm_forward);
  RUN(rmsnorm_backward);
  RUN(residual_forward);
  RUN(linear_forward);
  RUN(linear_backward_input);
  RUN(linear_backward_weight);
  RUN(activation_forward);
  RUN(activation_backward);
  RUN(rope_table);
  RUN(rope);
  RUN(copy_rows);
  RUN(crossentropy);
  RUN(add_rows);
  RUN(sum);
  RUN(sumsq);
  RUN(count_nonfinite);
  RUN(adamw);
}

// The CPU device, whose memory is the host's; the same promises of the CUDA device are tested in test_cuda.c.
static void test_cpu_device(void) {
  RUN(device_refuses_unknown_sets);
  RUN(dropout_does_nothing_at_zero);
  RUN(layernorm_may_alias);
  RUN(layernorm_fused_is_unfused);
  RUN(residual_forward_may_alias);
  RUN(linear_forward_fused_is_unfused);
  RUN(linear_backward_weight_without_bias);
  RUN(activation_bits_never_change);
  RUN(activation_backward_may_alias);
  RUN(crossentropy_does_not_see_the_chunk);
  RUN(adamw_refuses_bad_steps);
  RUN(accumulated_gradients_do_not_see_the_cut);
  RUN(nan_is_never_hidden);
  RUN(simd_exp_and_log_are_within_one_ulp);
  RUN(simd_philox_is_rng);
  RUN(device_memory);
  RUN(device_transfers);
  RUN(device_choice);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  if (!on_cuda()) test_cpu_device();   // first: a leak checker that ends a child cannot look into threads that the child has not
  test_operations();
  if (on_cuda()) return TEST_END();
  in_bf16(true);
  test_operations();
  in_bf16(false);
  return TEST_END();
}
