// reference.c: owns the reference device: every operation of device.h as plain loops in double precision, one thread.
//
// This file is the specification. Each operation is written in the most obvious way, in the order of device.h, with the
// formula it computes above it; cpu.c does the same things fast, under the same names. It is also the oracle: every other
// device is compared with it, and it is compared with itself, by differences of its own forward passes.
//
// How to read it: an array of `rows` rows lies row after row, so that row r of x (rows,C) begins at x + r * C. Sums run
// from left to right and rows from top to bottom, so cutting the rows into several calls changes no bit of any result.
// In a backward operation dx is the derivative of the loss by x: the gradient.
// Tests: tests/test_gradients.c (every derivative), tests/test_ops.c (the other devices against this one)
#include "device.h"   // the contract
#include "detmath.h"  // det_exp, det_log, det_pow, det_sin, det_cos, det_tanh
#include "rng.h"      // rng_u32
#include "util.h"     // xcalloc, MAX
#include <math.h>     // sqrt, isfinite, INFINITY
#include <stdlib.h>   // posix_memalign, free
#include <string.h>   // memset, memmove

#pragma GCC diagnostic ignored "-Wunused-parameter"  // this device has no state, so no operation needs its Device *d

// What flow cannot look into. Weights, gradients and losses are of different types so that the compiler keeps them apart.
struct real { double v; };
struct acc { double v; };
struct scalar { double v; };

// ---- memory: plain host memory, so that uploading and downloading are copies ----

static void *reference_allocate(Device *d, size_t bytes) {
  void *p;
  if (bytes > PTRDIFF_MAX || posix_memalign(&p, 64, bytes + !bytes)) return NULL;   // at least a byte, which has an address
  return memset(p, 0, bytes);
}

static void reference_release(Device *d, void *p, size_t bytes) { free(p); }
static void reference_zero(Device *d, void *p, size_t bytes) { memset(p, 0, bytes); }
static void reference_copy(Device *d, void *dst, const void *src, size_t bytes) { memmove(dst, src, bytes); }

static void reference_upload_real(Device *d, real *dst, const double *src, size_t n) {
  for (size_t i = 0; i < n; i++) dst[i].v = src[i];
}

static void reference_upload_acc(Device *d, acc *dst, const double *src, size_t n) {
  for (size_t i = 0; i < n; i++) dst[i].v = src[i];
}

static void reference_upload_real_float(Device *d, real *dst, const float *src, size_t n) {
  for (size_t i = 0; i < n; i++) dst[i].v = src[i];
}

static void reference_upload_acc_float(Device *d, acc *dst, const float *src, size_t n) {
  for (size_t i = 0; i < n; i++) dst[i].v = src[i];
}

static void reference_upload_ids(Device *d, int32_t *dst, const int32_t *src, size_t n) {
  for (size_t i = 0; i < n; i++) dst[i] = src[i];
}

static void reference_download_real(Device *d, double *dst, const real *src, size_t n) {
  for (size_t i = 0; i < n; i++) dst[i] = src[i].v;
}

static void reference_download_acc(Device *d, double *dst, const acc *src, size_t n) {
  for (size_t i = 0; i < n; i++) dst[i] = src[i].v;
}

static void reference_download_stat(Device *d, double *dst, const scalar *src, size_t n) {
  for (size_t i = 0; i < n; i++) dst[i] = src[i].v;
}

static void reference_sync(Device *d) {}
static void reference_destroy(Device *d) {}
static real *reference_real_at(real *p, size_t i) { return p + i; }
static acc *reference_acc_at(acc *p, size_t i) { return p + i; }
static scalar *reference_stat_at(scalar *p, size_t i) { return p + i; }

// ---- embedding: look up one row of a table for each token, and one for its position ----

static void reference_embedding_forward(Device *d, real *out, const int32_t *ids, const real *wte, const real *wpe, size_t B,
                                        size_t T, size_t C, size_t position) {
  for (size_t b = 0; b < B; b++) {
    for (size_t t = 0; t < T; t++) {
      size_t row = b * T + t;
      const real *token = wte + (size_t)ids[row] * C;
      const real *place = wpe ? wpe + (position + t) * C : NULL;
      for (size_t c = 0; c < C; c++) out[row * C + c].v = place ? token[c].v + place[c].v : token[c].v;
    }
  }
}

// A token that occurs twice gets both gradients.
static void reference_embedding_backward(Device *d, acc *dwte, acc *dwpe, const real *dout, const int32_t *ids, size_t B,
                                         size_t T, size_t C, size_t V) {
  for (size_t b = 0; b < B; b++) {
    for (size_t t = 0; t < T; t++) {
      size_t row = b * T + t;
      for (size_t c = 0; c < C; c++) {
        if (dwte) dwte[(size_t)ids[row] * C + c].v += dout[row * C + c].v;
        if (dwpe) dwpe[t * C + c].v += dout[row * C + c].v;
      }
    }
  }
}

// ---- dropout (Srivastava et al. 2014) ----

// What element e is multiplied by: 0 with probability p, else 1/(1-p), which keeps the expectation. It depends on nothing
// but the element's place, so the backward pass finds the same factors again without having stored them.
static double dropout_factor(const Dropout *dropout, uint64_t e) {
  if (dropout->p == 0) return 1;
  uint32_t keep_threshold = (uint32_t)(dropout->p * 0x1p32);
  int keep = rng_u32(dropout->seed, dropout->step, dropout->site, e) >= keep_threshold;
  return keep ? 1 / (1 - dropout->p) : 0;
}

static void reference_dropout(Device *d, real *x, size_t rows, size_t width, const Dropout *dropout) {
  for (size_t row = 0; row < rows; row++) {
    for (size_t column = 0; column < width; column++) {
      x[row * width + column].v *= dropout_factor(dropout, (dropout->row0 + row) * width + column);
    }
  }
}

// ---- layer norm (Ba et al. 2016): each row is shifted to mean 0 and scaled to variance 1, then by learned factors ----

static void reference_layernorm_forward(Device *d, real *residual, real *out, acc *mean, acc *rstd, const real *x,
                                        const real *delta, const real *weight, const real *bias, size_t rows, size_t C,
                                        double eps) {
  for (size_t r = 0; r < rows; r++) {
    if (delta) {
      for (size_t c = 0; c < C; c++) residual[r * C + c].v = x[r * C + c].v + delta[r * C + c].v;
    }
    const real *row = (delta ? residual : x) + r * C;

    double sum = 0;
    for (size_t c = 0; c < C; c++) sum += row[c].v;
    mean[r].v = sum / C;

    double squares = 0;
    for (size_t c = 0; c < C; c++) squares += (row[c].v - mean[r].v) * (row[c].v - mean[r].v);
    rstd[r].v = 1 / sqrt(squares / C + eps);

    for (size_t c = 0; c < C; c++) {
      double norm = (row[c].v - mean[r].v) * rstd[r].v;
      out[r * C + c].v = norm * weight[c].v + (bias ? bias[c].v : 0);
    }
  }
}

// out = norm * weight + bias with norm = (x - mean) * rstd, so dnorm = dout * weight. x moves norm directly, and through
// the mean and rstd of its row, which all elements share; that subtracts from dnorm its components along 1 and along norm:
//   dx = rstd * (dnorm - average(dnorm) - norm * average(dnorm * norm))
static void reference_layernorm_backward(Device *d, real *dx, acc *dweight, acc *dbias, const real *dout,
                                         const real *dresidual, const real *x, const real *weight, const acc *mean,
                                         const acc *rstd, size_t rows, size_t C) {
  for (size_t r = 0; r < rows; r++) {
    double sum_dnorm = 0, sum_dnorm_norm = 0;
    for (size_t c = 0; c < C; c++) {
      double norm = (x[r * C + c].v - mean[r].v) * rstd[r].v, dnorm = dout[r * C + c].v * weight[c].v;
      sum_dnorm += dnorm;
      sum_dnorm_norm += dnorm * norm;
    }
    for (size_t c = 0; c < C; c++) {
      double norm = (x[r * C + c].v - mean[r].v) * rstd[r].v, dnorm = dout[r * C + c].v * weight[c].v;
      dweight[c].v += dout[r * C + c].v * norm;
      if (dbias) dbias[c].v += dout[r * C + c].v;
      double through_norm = rstd[r].v * (dnorm - sum_dnorm / C - norm * (sum_dnorm_norm / C));
      dx[r * C + c].v = (dresidual ? dresidual[r * C + c].v : 0) + through_norm;
    }
  }
}

// ---- RMS norm (Zhang and Sennrich 2019): layer norm without the shift ----

static void reference_rmsnorm_forward(Device *d, real *residual, real *out, acc *rstd, const real *x, const real *delta,
                                      const real *weight, size_t rows, size_t C, double eps) {
  for (size_t r = 0; r < rows; r++) {
    if (delta) {
      for (size_t c = 0; c < C; c++) residual[r * C + c].v = x[r * C + c].v + delta[r * C + c].v;
    }
    const real *row = (delta ? residual : x) + r * C;

    double squares = 0;
    for (size_t c = 0; c < C; c++) squares += row[c].v * row[c].v;
    rstd[r].v = 1 / sqrt(squares / C + eps);

    for (size_t c = 0; c < C; c++) out[r * C + c].v = row[c].v * rstd[r].v * weight[c].v;
  }
}

// As for layer norm, but nothing was shifted: dx = rstd * (dnorm - norm * average(dnorm * norm)), norm = x * rstd
static void reference_rmsnorm_backward(Device *d, real *dx, acc *dweight, const real *dout, const real *dresidual,
                                       const real *x, const real *weight, const acc *rstd, size_t rows, size_t C) {
  for (size_t r = 0; r < rows; r++) {
    double sum_dnorm_norm = 0;
    for (size_t c = 0; c < C; c++) {
      double norm = x[r * C + c].v * rstd[r].v, dnorm = dout[r * C + c].v * weight[c].v;
      sum_dnorm_norm += dnorm * norm;
    }
    for (size_t c = 0; c < C; c++) {
      double norm = x[r * C + c].v * rstd[r].v, dnorm = dout[r * C + c].v * weight[c].v;
      dweight[c].v += dout[r * C + c].v * norm;
      double through_norm = rstd[r].v * (dnorm - norm * (sum_dnorm_norm / C));
      dx[r * C + c].v = (dresidual ? dresidual[r * C + c].v : 0) + through_norm;
    }
  }
}

static void reference_residual_forward(Device *d, real *out, const real *x, const real *delta, size_t n) {
  for (size_t i = 0; i < n; i++) out[i].v = x[i].v + delta[i].v;
}

// ---- matrix products, and the functions that follow them ----

// gelu(x) = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3)
static const double SQRT_2_OVER_PI = 0.79788456080286535588, GELU_CUBE = 0.044715;

static double gelu(double x) {
  double u = SQRT_2_OVER_PI * (x + GELU_CUBE * x * x * x);
  return 0.5 * x * (1 + det_tanh(u));
}

// tanh'(u) = 1 - tanh(u)^2, and du/dx = sqrt(2/pi) (1 + 3 * 0.044715 x^2)
static double gelu_derivative(double x) {
  double tanh_u = det_tanh(SQRT_2_OVER_PI * (x + GELU_CUBE * x * x * x));
  double du_dx = SQRT_2_OVER_PI * (1 + 3 * GELU_CUBE * x * x);
  return 0.5 * (1 + tanh_u) + 0.5 * x * (1 - tanh_u * tanh_u) * du_dx;
}

static double sigmoid(double x) { return 1 / (1 + det_exp(-x)); }
static double silu(double x) { return x * sigmoid(x); }

static double silu_derivative(double x) {
  double s = sigmoid(x);
  return s * (1 + x * (1 - s));
}

// Element o of one row of the product: bias[o] + sum_i x[i] * weight[o,i]
static double product_element(const real *x, const real *weight, const real *bias, size_t o, size_t IC) {
  double sum = bias ? bias[o].v : 0;
  for (size_t i = 0; i < IC; i++) sum += x[i].v * weight[o * IC + i].v;
  return sum;
}

static void reference_linear_forward(Device *d, real *pre, real *post, const real *x, const real *weight, const real *bias,
                                     size_t rows, size_t IC, size_t OC, Activation activation) {
  size_t half = OC / 2;  // SwiGLU: columns j and half + j of pre make column j of post
  for (size_t r = 0; r < rows; r++) {
    const real *row = x + r * IC;
    if (activation == ACTIVATION_SWIGLU) {
      for (size_t j = 0; j < half; j++) {
        double gate = product_element(row, weight, bias, j, IC), up = product_element(row, weight, bias, half + j, IC);
        if (pre) pre[r * OC + j].v = gate, pre[r * OC + half + j].v = up;
        post[r * half + j].v = silu(gate) * up;
      }
    } else {
      for (size_t o = 0; o < OC; o++) {
        double value = product_element(row, weight, bias, o, IC);
        if (pre) pre[r * OC + o].v = value;
        if (activation == ACTIVATION_GELU) post[r * OC + o].v = gelu(value);
      }
    }
  }
}

// x[r,i] is in every output of its row, multiplied by weight[o,i].
static void reference_linear_backward_input(Device *d, real *dx, const real *dout, const real *weight, size_t rows,
                                            size_t IC, size_t OC) {
  for (size_t r = 0; r < rows; r++) {
    for (size_t i = 0; i < IC; i++) {
      double sum = 0;
      for (size_t o = 0; o < OC; o++) sum += dout[r * OC + o].v * weight[o * IC + i].v;
      dx[r * IC + i].v = sum;
    }
  }
}

// weight[o,i] is in output o of every row, multiplied by x[r,i].
static void reference_linear_backward_weight(Device *d, acc *dweight, acc *dbias, const real *dout, const real *x,
                                             size_t rows, size_t IC, size_t OC) {
  for (size_t r = 0; r < rows; r++) {
    for (size_t o = 0; o < OC; o++) {
      for (size_t i = 0; i < IC; i++) dweight[o * IC + i].v += dout[r * OC + o].v * x[r * IC + i].v;
      if (dbias) dbias[o].v += dout[r * OC + o].v;
    }
  }
}

static void reference_activation_forward(Device *d, real *post, const real *pre, size_t rows, size_t width,
                                         Activation activation) {
  size_t half = width / 2;
  for (size_t r = 0; r < rows; r++) {
    const real *row = pre + r * width;
    switch (activation) {
    case ACTIVATION_NONE:
      for (size_t j = 0; j < width; j++) post[r * width + j].v = row[j].v;
      break;
    case ACTIVATION_GELU:
      for (size_t j = 0; j < width; j++) post[r * width + j].v = gelu(row[j].v);
      break;
    case ACTIVATION_SWIGLU:
      for (size_t j = 0; j < half; j++) post[r * half + j].v = silu(row[j].v) * row[half + j].v;
      break;
    }
  }
}

static void reference_activation_backward(Device *d, real *dpre, const real *dpost, const real *pre, size_t rows,
                                          size_t width, Activation activation) {
  size_t half = width / 2;
  for (size_t r = 0; r < rows; r++) {
    const real *row = pre + r * width;
    switch (activation) {
    case ACTIVATION_NONE:
      for (size_t j = 0; j < width; j++) dpre[r * width + j].v = dpost[r * width + j].v;
      break;
    case ACTIVATION_GELU:
      for (size_t j = 0; j < width; j++) dpre[r * width + j].v = dpost[r * width + j].v * gelu_derivative(row[j].v);
      break;
    case ACTIVATION_SWIGLU:
      for (size_t j = 0; j < half; j++) {
        double gate = row[j].v, up = row[half + j].v, dout = dpost[r * half + j].v;
        dpre[r * width + j].v = dout * silu_derivative(gate) * up;
        dpre[r * width + half + j].v = dout * silu(gate);
      }
      break;
    }
  }
}

// ---- rotary positions: pair i of a head is turned by the angle position * theta^(-2i/HS) ----
// The product of a turned query and a turned key then depends on the difference of their positions only.

static void reference_rope_table(Device *d, acc *table, size_t context, size_t HS, double theta) {
  for (size_t p = 0; p < context; p++) {
    for (size_t i = 0; i < HS / 2; i++) {
      double angle = (double)p * det_pow(theta, -2.0 * (double)i / (double)HS);
      table[(p * (HS / 2) + i) * 2].v = det_cos(angle);
      table[(p * (HS / 2) + i) * 2 + 1].v = det_sin(angle);
    }
  }
}

// A rotation keeps lengths, so its inverse, which is also its transpose, takes the gradient back.
static void reference_rope(Device *d, real *x, const acc *table, size_t B, size_t T, size_t position, size_t heads, size_t HS,
                           size_t stride, int direction) {
  for (size_t b = 0; b < B; b++) {
    for (size_t t = 0; t < T; t++) {
      const acc *angles = table + (position + t) * HS;
      for (size_t h = 0; h < heads; h++) {
        real *head = x + (b * T + t) * stride + h * HS;
        for (size_t i = 0; i < HS / 2; i++) {
          double cos = angles[2 * i].v, sin = direction * angles[2 * i + 1].v;
          double first = head[i].v, second = head[i + HS / 2].v;
          head[i].v = first * cos - second * sin;
          head[i + HS / 2].v = first * sin + second * cos;
        }
      }
    }
  }
}

// ---- attention: each query takes an average of the values, weighted by how well its key fits ----

typedef struct { size_t begin, end; } KeyRange;

// Keys that query t of sequence b sees.
static KeyRange visible_keys(const AttentionShape *shape, size_t b, size_t t) {
  size_t begin = shape->first_key ? (size_t)shape->first_key[b * shape->T + t] : 0;
  size_t end = shape->mask == MASK_CAUSAL ? shape->position + t + 1 : shape->S;
  return (KeyRange){begin, end};
}

// Where head h of query row t, of key (or value) row s, of output row t begins in its array.
static size_t query_offset(const AttentionShape *shape, size_t b, size_t t, size_t h) {
  return b * shape->q_batch + t * shape->q_stride + h * shape->HS;
}

static size_t key_offset(const AttentionShape *shape, size_t b, size_t s, size_t h) {
  size_t key_head = h / (shape->NH / shape->KVH);  // several query heads may share one key head (Ainslie et al. 2023)
  return b * shape->kv_batch + s * shape->kv_stride + key_head * shape->HS;
}

static size_t out_offset(const AttentionShape *shape, size_t b, size_t t, size_t h) {
  return b * shape->out_batch + t * shape->out_stride + h * shape->HS;
}

static double attention_dropout_factor(const AttentionShape *shape, size_t b, size_t t, size_t h, size_t s) {
  uint64_t row = (shape->dropout.row0 + b * shape->T + t) * shape->NH + h;
  return dropout_factor(&shape->dropout, row * shape->S + s);
}

static double dot(const real *x, const real *y, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += x[i].v * y[i].v;
  return sum;
}

static void reference_attention_forward(Device *d, real *out, acc *lse, const real *q, const real *k, const real *v,
                                        const AttentionShape *shape) {
  size_t T = shape->T, NH = shape->NH, HS = shape->HS;
  double *weight = xcalloc(shape->S, sizeof *weight);  // of one query; the T x S matrix never exists
  for (size_t b = 0; b < shape->B; b++) {
    for (size_t t = 0; t < T; t++) {
      KeyRange keys = visible_keys(shape, b, t);
      for (size_t h = 0; h < NH; h++) {
        const real *query = q + query_offset(shape, b, t, h);
        double max = -INFINITY, sum = 0;
        for (size_t s = keys.begin; s < keys.end; s++) {
          weight[s] = shape->scale * dot(query, k + key_offset(shape, b, s, h), HS);
          max = MAX(max, weight[s]);
        }
        for (size_t s = keys.begin; s < keys.end; s++) {
          weight[s] = det_exp(weight[s] - max);  // the largest is exp(0): no overflow, and the quotient is the same
          sum += weight[s];
        }
        if (lse) lse[(b * NH + h) * T + t].v = max + det_log(sum);

        real *result = out + out_offset(shape, b, t, h);
        for (size_t i = 0; i < HS; i++) result[i].v = 0;
        for (size_t s = keys.begin; s < keys.end; s++) {
          double p = weight[s] / sum * attention_dropout_factor(shape, b, t, h, s);
          for (size_t i = 0; i < HS; i++) result[i].v += p * v[key_offset(shape, b, s, h) + i].v;
        }
      }
    }
  }
  free(weight);
}

static void set_attention_gradients_to_zero(real *dq, real *dk, real *dv, const AttentionShape *shape) {
  for (size_t b = 0; b < shape->B; b++) {
    for (size_t t = 0; t < shape->T; t++) {
      size_t query = query_offset(shape, b, t, 0), key = key_offset(shape, b, t, 0);
      for (size_t i = 0; i < shape->NH * shape->HS; i++) dq[query + i].v = 0;
      for (size_t i = 0; i < shape->KVH * shape->HS; i++) dk[key + i].v = dv[key + i].v = 0;
    }
  }
}

// With score[s] = scale q.k[s], p = softmax(score) = exp(score - lse), f the factors of dropout, out = sum_s p[s] f[s] v[s]:
//   dv[s] += p[s] f[s] dout                              dp[s] = f[s] dout.v[s]
//   dscore[s] = p[s] (dp[s] - sum_j p[j] dp[j]), and the sum over j is dout.out, already at hand
//   dq += scale dscore[s] k[s]                           dk[s] += scale dscore[s] q
static void reference_attention_backward(Device *d, real *dq, real *dk, real *dv, const real *dout, const real *q,
                                         const real *k, const real *v, const real *out, const acc *lse,
                                         const AttentionShape *shape) {
  size_t T = shape->T, NH = shape->NH, HS = shape->HS;
  set_attention_gradients_to_zero(dq, dk, dv, shape);
  for (size_t b = 0; b < shape->B; b++) {
    for (size_t t = 0; t < T; t++) {
      KeyRange keys = visible_keys(shape, b, t);
      for (size_t h = 0; h < NH; h++) {
        size_t query = query_offset(shape, b, t, h), result = out_offset(shape, b, t, h);
        double sum_p_dp = dot(dout + result, out + result, HS);
        for (size_t s = keys.begin; s < keys.end; s++) {
          size_t key = key_offset(shape, b, s, h);
          double p = det_exp(shape->scale * dot(q + query, k + key, HS) - lse[(b * NH + h) * T + t].v);
          double factor = attention_dropout_factor(shape, b, t, h, s);
          double dp = factor * dot(dout + result, v + key, HS), dscore = p * (dp - sum_p_dp);
          for (size_t i = 0; i < HS; i++) {
            dq[query + i].v += shape->scale * dscore * k[key + i].v;
            dk[key + i].v += shape->scale * dscore * q[query + i].v;
            dv[key + i].v += p * factor * dout[result + i].v;
          }
        }
      }
    }
  }
}

static void reference_copy_rows(Device *d, real *dst, size_t dst_stride, const real *src, size_t src_stride, size_t rows,
                                size_t width) {
  for (size_t r = 0; r < rows; r++) {
    for (size_t j = 0; j < width; j++) dst[r * dst_stride + j] = src[r * src_stride + j];
  }
}

// ---- classifier: how surprised the model is by each target, and how the logits should move ----

// loss = -log p[target], p = softmax(logits); its derivative by logit j is p[j] - [j is the target].
static void reference_crossentropy(Device *d, real *logits, acc *loss, const int32_t *targets, size_t rows, size_t V,
                                   size_t stride, double scale, WantGradient gradient) {
  for (size_t r = 0; r < rows; r++) {
    real *row = logits + r * stride;
    if (targets[r] == IGNORED_TARGET) {
      loss[r].v = 0;
      size_t zeros = gradient == WITH_GRADIENT ? stride : 0;
      for (size_t j = 0; j < zeros; j++) row[j].v = 0;
      continue;
    }
    size_t target = (size_t)targets[r];
    double max = -INFINITY, sum = 0;
    for (size_t j = 0; j < V; j++) max = MAX(max, row[j].v);
    for (size_t j = 0; j < V; j++) sum += det_exp(row[j].v - max);
    loss[r].v = max + det_log(sum) - row[target].v;

    if (gradient == WITHOUT_GRADIENT) continue;
    for (size_t j = 0; j < V; j++) {
      double p = det_exp(row[j].v - max) / sum;
      row[j].v = (p - (j == target)) * scale;
    }
    for (size_t j = V; j < stride; j++) row[j].v = 0;  // padding is no word: it has no probability and no gradient
  }
}

// ---- the step's scalars and the optimizer ----

static void reference_add_rows(Device *d, acc *out, const acc *x, const int32_t *ids, size_t n, size_t C, size_t V) {
  for (size_t i = 0; i < n; i++)
    for (size_t c = 0; c < C; c++) out[(ids ? (size_t)ids[i] : i) * C + c].v += x[i * C + c].v;
}

static void reference_sum(Device *d, scalar *out, const acc *x, size_t n) {
  for (size_t i = 0; i < n; i++) out->v += x[i].v;
}

static void reference_sumsq(Device *d, scalar *out, const acc *x, size_t n) {
  enum { BLOCK = 4096 };  // so that several threads can share the work and still agree on every bit
  for (size_t begin = 0; begin < n; begin += BLOCK) {
    double partial = 0;
    for (size_t i = begin; i < n && i < begin + BLOCK; i++) partial += x[i].v * x[i].v;
    out->v += partial;
  }
}

static void reference_adamw(Device *d, const AdamWTensor *tensors, size_t count, const AdamWSettings *settings,
                            const scalar *step_stat) {
  double norm = sqrt(step_stat[STAT_GRAD_SUMSQ].v);
  if (!isfinite(step_stat[STAT_LOSS].v) || !isfinite(norm)) return;
  if (settings->max_norm > 0 && norm > settings->max_norm) return;
  double clip = settings->grad_clip > 0 && norm > settings->grad_clip ? settings->grad_clip / norm : 1;
  double beta1 = settings->beta1, beta2 = settings->beta2;

  for (size_t tensor = 0; tensor < count; tensor++) {
    const AdamWTensor *t = &tensors[tensor];
    for (size_t i = 0; i < t->n; i++) {
      double g = t->grad[i].v * clip;
      double m = beta1 * t->m[i].v + (1 - beta1) * g;
      double v = beta2 * t->v[i].v + (1 - beta2) * g * g;
      double w = t->master ? t->master[i].v : t->param[i].v;
      double direction = (m / settings->bias1) / (sqrt(v / settings->bias2) + settings->eps);
      w -= settings->lr * (direction + t->weight_decay * w);

      t->m[i].v = m;
      t->v[i].v = v;
      t->param[i].v = w;
      if (t->master) t->master[i].v = w;
    }
  }
}

static void reference_refresh(Device *d, const real *params, size_t n) {}  // there are no copies to renew

static void reference_count_nonfinite_real(Device *d, scalar *out, const real *x, size_t n) {
  for (size_t i = 0; i < n; i++) out->v += !isfinite(x[i].v);
}

static void reference_count_nonfinite_acc(Device *d, scalar *out, const acc *x, size_t n) {
  for (size_t i = 0; i < n; i++) out->v += !isfinite(x[i].v);
}

// ---- the table ----

Device *reference_device(void) {
  static Device device = {
    .name = "reference",
    .description = "fp64, plain loops, 1 thread",
    .real_size = sizeof(real),
    .acc_size = sizeof(acc),
    .real_is_acc = 1,
    .row_multiple = 1, .row_group = 1,

    .allocate = reference_allocate,
    .release = reference_release,
    .zero = reference_zero,
    .copy = reference_copy,
    .upload_real = reference_upload_real,
    .upload_acc = reference_upload_acc,
    .upload_real_float = reference_upload_real_float,
    .upload_acc_float = reference_upload_acc_float,
    .upload_ids = reference_upload_ids,
    .download_real = reference_download_real,
    .download_acc = reference_download_acc,
    .download_stat = reference_download_stat,
    .sync = reference_sync,
    .destroy = reference_destroy,
    .real_at = reference_real_at,
    .acc_at = reference_acc_at,
    .stat_at = reference_stat_at,

    .embedding_forward = reference_embedding_forward,
    .embedding_backward = reference_embedding_backward,
    .dropout = reference_dropout,
    .layernorm_forward = reference_layernorm_forward,
    .layernorm_backward = reference_layernorm_backward,
    .rmsnorm_forward = reference_rmsnorm_forward,
    .rmsnorm_backward = reference_rmsnorm_backward,
    .residual_forward = reference_residual_forward,
    .linear_forward = reference_linear_forward,
    .linear_backward_input = reference_linear_backward_input,
    .linear_backward_weight = reference_linear_backward_weight,
    .activation_forward = reference_activation_forward,
    .activation_backward = reference_activation_backward,
    .rope_table = reference_rope_table,
    .rope = reference_rope,
    .attention_forward = reference_attention_forward,
    .attention_backward = reference_attention_backward,
    .copy_rows = reference_copy_rows,
    .crossentropy = reference_crossentropy,
    .add_rows = reference_add_rows,
    .sum = reference_sum,
    .sumsq = reference_sumsq,
    .adamw = reference_adamw,
    .refresh = reference_refresh,
    .count_nonfinite_real = reference_count_nonfinite_real,
    .count_nonfinite_acc = reference_count_nonfinite_acc,
  };
  return &device;
}
