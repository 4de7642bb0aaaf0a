// test_gradients.c: owns the proof that every derivative is right: each backward operation of the reference device, and
// the backward pass of whole models, against differences of their own forward passes, on every element.
//
// For a scalar loss f the five-point difference
//   (f(x - 2h) - 8 f(x - h) + 8 f(x + h) - f(x + 2h)) / 12h = f'(x) - h^4/30 f^(5)(x) + ...
// has with h = 1e-3 a truncation error of 3e-14 f^(5), and a rounding error of about 2e-16 |f| / h = 2e-13 |f|. Hence the
// bound |g - d| <= 1e-6 max(|g|, |d|) + 1e-10 max(1, |f|): it holds with room where f^(5) < 1e3, so the values here are of
// size 1, and a wrong factor, index or sign is found even in a gradient of 1e-4.
// An operation becomes a scalar by a fixed random weight for each output, named after the gradient it is: "dout".
// The forward passes are compared with PyTorch: the recorded values are its own, in fp64, for the same inputs.
#include "oracle.h"      // random_value, real_buffer, acc_buffer, real_element, acc_element, random_functional, buffers_end
#include "../model.h"    // the whole model
#include <stdbool.h>

static const double STEP = 1e-3;
static Device *d;

typedef double (*Loss)(void *context);

// ---- comparing ----

static double with_element(Loss loss, void *context, real *x, size_t i, double value) {
  d->upload_real(d, d->real_at(x, i), &value, 1);
  return loss(context);
}

static void check_element(const char *what, size_t i, double gradient, double difference, double loss) {
  double bound = 1e-6 * fmax(fabs(gradient), fabs(difference)) + 1e-10 * fmax(1, fabs(loss));
  CHECK_MSG(fabs(gradient - difference) <= bound, "%s[%zu]: gradient %.12g, difference %.12g, off by %.3g, allowed %.3g", what, i,
            gradient, difference, fabs(gradient - difference), bound);
}

// gradient[i] is the derivative of the loss by x[i], for every i < n.
static void check_gradient(const char *what, Loss loss, void *context, real *x, const double *gradient, size_t n) {
  double here = loss(context);
  for (size_t i = 0; i < n; i++) {
    double at = real_element(d, x, i);
    double left2 = with_element(loss, context, x, i, at - 2 * STEP), left = with_element(loss, context, x, i, at - STEP);
    double right = with_element(loss, context, x, i, at + STEP), right2 = with_element(loss, context, x, i, at + 2 * STEP);
    d->upload_real(d, d->real_at(x, i), &at, 1);
    check_element(what, i, gradient[i], (left2 - 8 * left + 8 * right - right2) / (12 * STEP), here);
  }
}

enum { MOST = 4096 };

// The gradient dx was set.
static void check_set(const char *what, Loss loss, void *context, real *x, const real *dx, size_t n) {
  static double gradient[MOST];
  d->download_real(d, gradient, dx, n);
  check_gradient(what, loss, context, x, gradient, n);
}

// The gradient was added to dx, an acc_buffer called `name`.
static void check_added(const char *name, Loss loss, void *context, real *x, const acc *dx, size_t n) {
  static double gradient[MOST];
  d->download_acc(d, gradient, dx, n);
  for (size_t i = 0; i < n; i++) gradient[i] -= random_value(name, i);
  check_gradient(name, loss, context, x, gradient, n);
}

// The loss as PyTorch computed it. Both are sums of at most a thousand terms of size 1 in fp64, in different order.
static void check_value(const char *what, double loss, double pytorch) {
  CHECK_MSG(fabs(loss - pytorch) <= 1e-12 * fmax(1, fabs(pytorch)), "%s: loss %.17g, PyTorch has %.17g", what, loss, pytorch);
}

// ---- embedding ----

typedef struct { size_t B, T, C; int32_t ids[6]; real *out, *wte, *wpe; } Embedding;

static double embedding_loss(void *context) {
  Embedding *e = context;
  d->embedding_forward(d, e->out, e->ids, e->wte, e->wpe, e->B, e->T, e->C, 0);
  return random_functional(d, "dout", e->out, e->B * e->T * e->C);
}

static void embedding(void) {
  enum { B = 2, T = 3, C = 4, V = 5, CONTEXT = 4 };
  static const double PYTORCH[2] = {1.0135291803425148, 1.6187925895929749};
  for (int positions = 0; positions < 2; positions++) {
    Embedding e = {B, T, C, {4, 0, 4, 2, 4, 0}, real_buffer(d, NULL, B * T * C, 1), real_buffer(d, "wte", V * C, 1),
                   positions ? real_buffer(d, "wpe", CONTEXT * C, 1) : NULL};
    real *dout = real_buffer(d, "dout", B * T * C, 1);
    acc *dwte = acc_buffer(d, "dwte", V * C, 1), *dwpe = acc_buffer(d, "dwpe", CONTEXT * C, 1);
    check_value("embedding", embedding_loss(&e), PYTORCH[positions]);
    d->embedding_backward(d, dwte, positions ? dwpe : NULL, dout, e.ids, B, T, C, V);
    check_added("dwte", embedding_loss, &e, e.wte, dwte, V * C);
    if (positions) check_added("dwpe", embedding_loss, &e, e.wpe, dwpe, CONTEXT * C);
    // a frozen table
    acc *again = acc_buffer(d, "dwpe", CONTEXT * C, 1);
    d->embedding_backward(d, NULL, again, dout, e.ids, B, T, C, V);
    for (size_t i = 0; i < CONTEXT * C && positions; i++) CHECK(acc_element(d, again, i) == acc_element(d, dwpe, i));
    buffers_end();
  }
}

// ---- dropout ----

typedef struct { size_t rows, width; real *x, *out; Dropout dropout; } Drop;

static double dropout_loss(void *context) {
  Drop *c = context;
  d->copy(d, c->out, c->x, c->rows * c->width * d->real_size);
  d->dropout(d, c->out, c->rows, c->width, &c->dropout);
  return random_functional(d, "dout", c->out, c->rows * c->width);
}

static void dropout(void) {
  enum { ROWS = 10, WIDTH = 7, N = ROWS * WIDTH };
  static const double P[3] = {0, 0.25, 0.9}, PYTORCH[3] = {3.063563458594381, 3.2321680643869621, -3.0376424938765854};
  for (int i = 0; i < 3; i++) {
    Drop c = {ROWS, WIDTH, real_buffer(d, "x", N, 1), real_buffer(d, NULL, N, 1), {P[i], 11, 5, rng_site("site"), 1000}};
    real *dx = real_buffer(d, "dout", N, 1);
    d->dropout(d, dx, ROWS, WIDTH, &c.dropout);
    check_value("dropout", dropout_loss(&c), PYTORCH[i]);
    check_set("x of dropout", dropout_loss, &c, c.x, dx, N);
    buffers_end();
  }
}

// ---- norms ----

typedef struct {
  bool rms, dresidual;
  size_t rows, C;
  real *x, *delta, *weight, *bias, *residual, *out;
  acc *mean, *rstd;
} Norm;

static double norm_loss(void *context) {
  Norm *c = context;
  if (c->rms) d->rmsnorm_forward(d, c->residual, c->out, c->rstd, c->x, c->delta, c->weight, c->rows, c->C, 1e-5);
  else d->layernorm_forward(d, c->residual, c->out, c->mean, c->rstd, c->x, c->delta, c->weight, c->bias, c->rows, c->C, 1e-5);
  double loss = random_functional(d, "dout", c->out, c->rows * c->C);
  // the residual stream goes on past the norm: it has its own weights in the loss
  if (c->dresidual) loss += random_functional(d, "dresidual", c->delta ? c->residual : c->x, c->rows * c->C);
  return loss;
}

static void check_norm(bool rms, bool with_delta, bool with_bias, bool with_dresidual, bool alias, double pytorch) {
  enum { ROWS = 3, C = 7, N = ROWS * C };
  Norm c = {rms, with_dresidual, ROWS, C, real_buffer(d, "x", N, 1), with_delta ? real_buffer(d, "delta", N, 1) : NULL,
            real_buffer(d, "weight", C, 1), with_bias ? real_buffer(d, "bias", C, 1) : NULL, real_buffer(d, NULL, N, 1),
            real_buffer(d, NULL, N, 1), acc_buffer(d, NULL, ROWS, 1), acc_buffer(d, NULL, ROWS, 1)};
  real *dout = real_buffer(d, "dout", N, 1), *dresidual = with_dresidual ? real_buffer(d, "dresidual", N, 1) : NULL;
  real *dx = alias && with_dresidual ? dresidual : real_buffer(d, NULL, N, 1);
  acc *dweight = acc_buffer(d, "dweight", C, 1), *dbias = with_bias ? acc_buffer(d, "dbias", C, 1) : NULL;
  check_value("norm", norm_loss(&c), pytorch);
  real *normalised = with_delta ? c.residual : c.x;
  if (rms) d->rmsnorm_backward(d, dx, dweight, dout, dresidual, normalised, c.weight, c.rstd, ROWS, C);
  else d->layernorm_backward(d, dx, dweight, dbias, dout, dresidual, normalised, c.weight, c.mean, c.rstd, ROWS, C);
  check_set("x of norm", norm_loss, &c, c.x, dx, N);
  for (size_t i = 0; i < N && !with_delta; i++) CHECK(isnan(real_element(d, c.residual, i)));  // not written
  if (with_delta) check_set("delta of norm", norm_loss, &c, c.delta, dx, N);
  check_added("dweight", norm_loss, &c, c.weight, dweight, C);
  if (with_bias) check_added("dbias", norm_loss, &c, c.bias, dbias, C);
  buffers_end();
}

static void layernorm(void) {
  static const double PYTORCH[8] = {-4.3856809611699825, -0.7600777345301144, -5.8223707856373359, -2.1967675589974673,
                                    -4.9371019934510247, -1.8899430700985214, -6.3737918179183781, -3.3266328945658743};
  for (int i = 0; i < 8; i++)
    for (int alias = 0; alias < 2; alias++) check_norm(false, i & 1, i & 2, i & 4, alias, PYTORCH[i]);
}

static void rmsnorm(void) {
  static const double PYTORCH[4] = {-3.8446169904850396, 0.14786652930099853, -4.3960380227660814, -0.98199880626740843};
  for (int i = 0; i < 4; i++)
    for (int alias = 0; alias < 2; alias++) check_norm(true, i & 1, false, i & 2, alias, PYTORCH[i]);
}

// ---- matrix products and activations ----

typedef struct { size_t rows, IC, OC; Activation activation; real *x, *weight, *bias, *pre, *post; } Linear;

static size_t width_after(size_t OC, Activation activation) { return activation == ACTIVATION_SWIGLU ? OC / 2 : OC; }

static double linear_loss(void *context) {
  Linear *c = context;
  d->linear_forward(d, c->pre, c->post, c->x, c->weight, c->bias, c->rows, c->IC, c->OC, c->activation);
  return random_functional(d, "dout", c->post ? c->post : c->pre, c->rows * width_after(c->OC, c->activation));
}

// The fused product equals its parts, and what is not kept does not matter: the same bits.
static void check_fusion(Linear *c) {
  size_t n = c->rows * width_after(c->OC, c->activation);
  real *pre = real_buffer(d, NULL, c->rows * c->OC, 1), *post = real_buffer(d, NULL, n, 1), *unkept = real_buffer(d, NULL, n, 1);
  d->linear_forward(d, pre, NULL, c->x, c->weight, c->bias, c->rows, c->IC, c->OC, ACTIVATION_NONE);
  d->activation_forward(d, post, pre, c->rows, c->OC, c->activation);
  d->linear_forward(d, NULL, unkept, c->x, c->weight, c->bias, c->rows, c->IC, c->OC, c->activation);
  for (size_t i = 0; i < c->rows * c->OC; i++) CHECK(real_element(d, pre, i) == real_element(d, c->pre, i));
  for (size_t i = 0; i < n; i++) {
    CHECK(real_element(d, post, i) == real_element(d, c->post, i));
    CHECK(real_element(d, unkept, i) == real_element(d, c->post, i));
  }
}

static void check_linear(Activation activation, bool with_bias, double pytorch) {
  enum { ROWS = 3, IC = 5, OC = 6 };
  size_t n = ROWS * width_after(OC, activation);
  bool activated = activation != ACTIVATION_NONE;
  Linear c = {ROWS, IC, OC, activation, real_buffer(d, "x", ROWS * IC, 1), real_buffer(d, "weight", OC * IC, 1),
              with_bias ? real_buffer(d, "bias", OC, 1) : NULL, real_buffer(d, NULL, ROWS * OC, 1),
              activated ? real_buffer(d, NULL, n, 1) : NULL};
  real *dout = real_buffer(d, "dout", n, 1), *dpre = real_buffer(d, NULL, ROWS * OC, 1), *dx = real_buffer(d, NULL, ROWS * IC, 1);
  acc *dweight = acc_buffer(d, "dweight", OC * IC, 1), *dbias = with_bias ? acc_buffer(d, "dbias", OC, 1) : NULL;
  check_value("linear", linear_loss(&c), pytorch);
  if (activated) {
    check_fusion(&c);
    d->activation_backward(d, dpre, dout, c.pre, ROWS, OC, activation);
  } else {
    dpre = dout;
  }
  d->linear_backward_input(d, dx, dpre, c.weight, ROWS, IC, OC);
  d->linear_backward_weight(d, dweight, dbias, dpre, c.x, ROWS, IC, OC);
  check_set("x of linear", linear_loss, &c, c.x, dx, ROWS * IC);
  check_added("dweight", linear_loss, &c, c.weight, dweight, OC * IC);
  if (with_bias) check_added("dbias", linear_loss, &c, c.bias, dbias, OC);
  buffers_end();
}

static void linear(void) {
  static const double PYTORCH[3][2] = {{1.985018068558188, 1.5959500396965312}, {1.7043777707542596, 1.1284030184010425},
                                       {-0.65101347318396829, -0.72595136802696036}};
  for (int bias = 0; bias < 2; bias++) {
    check_linear(ACTIVATION_NONE, bias, PYTORCH[ACTIVATION_NONE][bias]);
    check_linear(ACTIVATION_GELU, bias, PYTORCH[ACTIVATION_GELU][bias]);
    check_linear(ACTIVATION_SWIGLU, bias, PYTORCH[ACTIVATION_SWIGLU][bias]);
  }
}

static double activation_loss(void *context) {
  Linear *c = context;
  d->activation_forward(d, c->post, c->pre, c->rows, c->OC, c->activation);
  return random_functional(d, "dout", c->post, c->rows * width_after(c->OC, c->activation));
}

// Over a wide range: the flat left side, the bend, the straight right side.
static void check_activation(Activation activation, double size, bool alias, double pytorch) {
  enum { ROWS = 3, OC = 20 };
  size_t n = ROWS * width_after(OC, activation);
  Linear c = {.rows = ROWS, .OC = OC, .activation = activation, .pre = real_buffer(d, "pre", ROWS * OC, size),
              .post = real_buffer(d, NULL, n, 1)};
  real *dpost = real_buffer(d, "dout", n, 1), *dpre = alias ? dpost : real_buffer(d, NULL, ROWS * OC, 1);
  check_value("activation", activation_loss(&c), pytorch);
  d->activation_backward(d, dpre, dpost, c.pre, ROWS, OC, activation);
  check_set("pre of activation", activation_loss, &c, c.pre, dpre, ROWS * OC);
  buffers_end();
}

static void activation(void) {
  static const double SIZE[2] = {5, 40};
  static const double PYTORCH[3][2] = {{21.358769746963731, 170.87015797570984}, {13.198407921765662, 105.25014968825958},
                                       {3.283063533111509, 313.24515901829881}};
  for (int i = 0; i < 2; i++) {
    check_activation(ACTIVATION_NONE, SIZE[i], false, PYTORCH[ACTIVATION_NONE][i]);
    check_activation(ACTIVATION_GELU, SIZE[i], false, PYTORCH[ACTIVATION_GELU][i]);
    check_activation(ACTIVATION_GELU, SIZE[i], true, PYTORCH[ACTIVATION_GELU][i]);
    check_activation(ACTIVATION_SWIGLU, SIZE[i], false, PYTORCH[ACTIVATION_SWIGLU][i]);
  }
}

// ---- rotary positions ----

typedef struct { size_t B, T, position, heads, HS, stride; int direction; real *x, *out; acc *table; } Rope;

static double rope_loss(void *context) {
  Rope *c = context;
  size_t n = c->B * c->T * c->stride;
  d->copy(d, c->out, c->x, n * d->real_size);
  d->rope(d, c->out, c->table, c->B, c->T, c->position, c->heads, c->HS, c->stride, c->direction);
  return random_functional(d, "dout", c->out, n);
}

static void rope(void) {
  enum { B = 2, T = 3, HEADS = 2, HS = 6, STRIDE = HEADS * HS + 2, N = B * T * STRIDE, CONTEXT = 9 };
  static const double PYTORCH[2] = {1.8964167256589006, 4.1127872469319229};
  for (int back = 0; back < 2; back++) {
    Rope c = {B, T, 5, HEADS, HS, STRIDE, back ? -1 : +1, real_buffer(d, "x", N, 1), real_buffer(d, NULL, N, 1),
              acc_buffer(d, NULL, CONTEXT * HS, 1)};
    d->rope_table(d, c.table, CONTEXT, HS, 100);
    check_value("rope", rope_loss(&c), PYTORCH[back]);
    real *dx = real_buffer(d, "dout", N, 1);
    d->rope(d, dx, c.table, B, T, c.position, HEADS, HS, STRIDE, -c.direction);
    check_set("x of rope", rope_loss, &c, c.x, dx, N);
    // there and back again
    rope_loss(&c);
    d->rope(d, c.out, c.table, B, T, c.position, HEADS, HS, STRIDE, -c.direction);
    for (size_t i = 0; i < N; i++) CHECK_NEAR(real_element(d, c.out, i), random_value("x", i), 1e-15, "inverse, element %zu", i);
    buffers_end();
  }
}

// ---- attention ----

typedef struct {
  const char *name;
  size_t NH, KVH, gap;  // gap 0: q, k, v side by side in one array; else apart, with `gap` unused elements after each row
  AttentionMask mask;
  bool documents;
  double p;
  double pytorch;
} AttentionCase;

typedef struct { AttentionShape shape; real *q, *k, *v, *out; acc *lse; } Attention;

static size_t attention_out_at(const AttentionShape *s, size_t i) {  // place of dense element i of the output
  size_t width = s->NH * s->HS, row = i / width;
  return row / s->T * s->out_batch + row % s->T * s->out_stride + i % width;
}

static double attention_loss(void *context) {
  Attention *c = context;
  const AttentionShape *s = &c->shape;
  d->attention_forward(d, c->out, c->lse, c->q, c->k, c->v, s);
  double loss = 0;
  for (size_t i = 0; i < s->B * s->T * s->NH * s->HS; i++)
    loss += random_value("dout", i) * real_element(d, c->out, attention_out_at(s, i));
  return loss;
}

// Every element of a (B,T,width) array with gaps, which must have been left alone: NaN still in a gradient.
static void check_rows(const char *what, Attention *c, real *x, real *dx, size_t stride, size_t width, bool joined) {
  for (size_t row = 0; row < c->shape.B * c->shape.T; row++) {
    check_set(what, attention_loss, c, d->real_at(x, row * stride), d->real_at(dx, row * stride), width);
    for (size_t j = width; j < stride && !joined; j++) CHECK(isnan(real_element(d, dx, row * stride + j)));
  }
}

static void check_attention(const AttentionCase *a) {
  enum { B = 2, T = 5, HS = 4 };
  static const int32_t first_key[B * T] = {0, 0, 2, 2, 4, 0, 1, 1, 1, 1};
  size_t QW = a->NH * HS, KW = a->KVH * HS, all = QW + 2 * KW;
  size_t q_stride = a->gap ? QW + a->gap : all, kv_stride = a->gap ? KW + a->gap : all, out_stride = QW + a->gap;
  Attention c = {.shape = {B, T, T, 0, a->NH, a->KVH, HS, q_stride, kv_stride, out_stride, T * q_stride, T * kv_stride,
                           T * out_stride, a->mask, a->documents ? first_key : NULL, {a->p, 3, 4, rng_site("attention"), 70}, 0.5}};
  real *dq, *dk, *dv;
  if (a->gap) {
    c.q = real_buffer(d, "q", B * T * q_stride, 2), dq = real_buffer(d, NULL, B * T * q_stride, 1);
    c.k = real_buffer(d, "k", B * T * kv_stride, 2), dk = real_buffer(d, NULL, B * T * kv_stride, 1);
    c.v = real_buffer(d, "v", B * T * kv_stride, 2), dv = real_buffer(d, NULL, B * T * kv_stride, 1);
  } else {
    c.q = real_buffer(d, "qkv", B * T * all, 2), c.k = d->real_at(c.q, QW), c.v = d->real_at(c.k, KW);
    dq = real_buffer(d, NULL, B * T * all, 1), dk = d->real_at(dq, QW), dv = d->real_at(dk, KW);
  }
  c.out = real_buffer(d, NULL, B * T * out_stride, 1);
  c.lse = acc_buffer(d, NULL, B * a->NH * T, 1);
  real *dout = real_buffer(d, NULL, B * T * out_stride, 1);
  for (size_t i = 0; i < B * T * QW; i++)
    d->upload_real(d, d->real_at(dout, attention_out_at(&c.shape, i)), &(double){random_value("dout", i)}, 1);

  check_value(a->name, attention_loss(&c), a->pytorch);
  d->attention_backward(d, dq, dk, dv, dout, c.q, c.k, c.v, c.out, c.lse, &c.shape);
  check_rows("q of attention", &c, c.q, dq, q_stride, QW, !a->gap);
  check_rows("k of attention", &c, c.k, dk, kv_stride, KW, !a->gap);
  check_rows("v of attention", &c, c.v, dv, kv_stride, KW, !a->gap);
  buffers_end();
}

static void attention(void) {
  static const AttentionCase cases[] = {
    {"causal",                        2, 2, 0, MASK_CAUSAL, false, 0,   0.81903648579258337},
    {"full",                          2, 2, 0, MASK_FULL,   false, 0,   -0.28955823093427768},
    {"grouped",                       4, 2, 0, MASK_CAUSAL, false, 0,   -1.2832037726751135},
    {"one key head, gaps",            3, 1, 5, MASK_CAUSAL, false, 0,   -1.3927179159051439},
    {"documents",                     2, 2, 0, MASK_CAUSAL, true,  0,   -5.8273550056203671},
    {"documents, full, gaps",         2, 1, 3, MASK_FULL,   true,  0,   -3.1213400261770095},
    {"dropout",                       2, 2, 0, MASK_CAUSAL, false, 0.3, 4.4879992979622845},
    {"dropout, grouped, full, gaps",  4, 2, 1, MASK_FULL,   false, 0.5, -1.9238841481063464},
    {"dropout, documents",            1, 1, 0, MASK_CAUSAL, true,  0.2, 4.8980940376113207},
  };
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) check_attention(&cases[i]);
}

// ---- classifier ----

typedef struct { size_t rows, V, stride; int32_t targets[5]; double scale; real *logits; acc *loss; } Classifier;

static double crossentropy_loss(void *context) {
  Classifier *c = context;
  d->crossentropy(d, c->logits, c->loss, c->targets, c->rows, c->V, c->stride, c->scale, WITHOUT_GRADIENT);
  double sum = 0;
  for (size_t r = 0; r < c->rows; r++) sum += acc_element(d, c->loss, r);
  return sum * c->scale;
}

static void crossentropy(void) {
  enum { ROWS = 5, V = 7 };
  static const double PYTORCH[2] = {3.0346932418797561, 5.02395455438627};
  for (size_t padding = 0; padding <= 9; padding += 9) {
    size_t stride = V + padding, n = ROWS * stride;
    Classifier c = {ROWS, V, stride, {6, IGNORED_TARGET, 0, 3, IGNORED_TARGET}, 1 / 3.0, real_buffer(d, "logits", n, 4),
                    acc_buffer(d, NULL, ROWS, 1)};
    real *dlogits = real_buffer(d, "logits", n, 4);
    acc *loss = acc_buffer(d, NULL, ROWS, 1);
    check_value("crossentropy", crossentropy_loss(&c), PYTORCH[padding > 0]);
    for (size_t i = 0; i < n; i++) CHECK(real_element(d, c.logits, i) == 4 * random_value("logits", i));
    d->crossentropy(d, dlogits, loss, c.targets, ROWS, V, stride, c.scale, WITH_GRADIENT);
    for (size_t r = 0; r < ROWS; r++) CHECK(acc_element(d, loss, r) == acc_element(d, c.loss, r));
    for (size_t r = 0; r < ROWS; r++)
      for (size_t j = V; j < stride; j++) CHECK(real_element(d, dlogits, r * stride + j) == 0);
    CHECK(acc_element(d, loss, 1) == 0 && real_element(d, dlogits, stride) == 0);
    check_set("logits", crossentropy_loss, &c, c.logits, dlogits, n);
    buffers_end();
  }
}

// ---- whole models ----

enum { CHANNELS = 8, LENGTH = 5, VOCAB = 11, CONTEXT = 6, FFN = 6, MOST_ROWS = 4 * LENGTH };

typedef struct {
  const char *name;
  Family family;
  int heads, kv_heads, layers;
  bool bias, tie;
  AttentionMask mask;
  double dropout;
  bool ignored;           // some targets are not scored
  int B, micro_batches;
  Recompute recompute;
  int classifier_rows;
  size_t row_multiple;    // the vocabulary is padded to it
  double loss, norm;      // as PyTorch computes them: of the step, and of all its gradients
} ModelCase;

typedef struct {
  Device device;          // the reference, perhaps with padding
  Gpt *m;
  const ModelCase *c;
  int32_t ids[MOST_ROWS], targets[MOST_ROWS];
  size_t rows;            // of a micro-batch
  double loss_scale;
} Model;

static void model_create(Model *model, const ModelCase *c) {
  *model = (Model){.device = *d, .c = c, .rows = (size_t)c->B * LENGTH};
  if (c->row_multiple) model->device.row_multiple = c->row_multiple;
  GptConfig config = {.family = c->family, .layers = c->layers, .heads = c->heads, .kv_heads = c->kv_heads, .channels = CHANNELS,
                      .context = CONTEXT, .ffn = FFN, .vocab = VOCAB, .bias = c->bias, .tie = c->tie, .dropout = c->dropout,
                      .norm_eps = 1e-5, .rope_theta = 100, .mask = c->mask};
  GptOptions options = {.config = config, .purpose = PURPOSE_TRAIN, .B = c->B, .T = LENGTH, .recompute = c->recompute,
                        .classifier_rows = c->classifier_rows};
  model->m = gpt_create(&model->device, &options);
  // Weights of size 1, not the small ones that training starts from: so that no gradient is lost under the bound
  const TensorTable *table = gpt_table(model->m);
  for (size_t i = 0; i < table->count; i++) {
    const TensorRow *row = &table->rows[i];
    for (size_t j = 0; j < tensor_values(row); j++) {
      double value = row->dims == 2 ? 0.6 * random_value(row->name, j) : 0.3 * random_value(row->name, j);
      if (row->init == INIT_ONE) value += 1;
      gpt_write(model->m, PART_WEIGHT, row, j, 1, &value);
    }
  }
  gpt_refresh(model->m);
  size_t counted = 0;
  for (size_t i = 0; i < MOST_ROWS; i++) {
    model->ids[i] = (int32_t)rng_below(VOCAB, 1, 0, rng_site("ids"), i);
    model->targets[i] = (int32_t)rng_below(VOCAB, 1, 0, rng_site("targets"), i);
    if (c->ignored && i % 3 == 1) model->targets[i] = IGNORED_TARGET;
    if (i < model->rows * (size_t)c->micro_batches) counted += model->targets[i] != IGNORED_TARGET;
  }
  model->loss_scale = 1 / (double)counted;
}

// The mean loss of a step. WITH_GRADIENT also in the differences, because dropout belongs to training.
static double model_step(Model *model, bool backward) {
  gpt_begin_step(model->m);
  for (int i = 0; i < model->c->micro_batches; i++) {
    size_t row0 = (size_t)i * model->rows;
    MicroBatch place = {.seed = 9, .step = 2, .row0 = row0, .loss_scale = model->loss_scale};
    gpt_forward(model->m, model->ids + row0, model->targets + row0, &place, WITH_GRADIENT);
    if (backward) gpt_backward(model->m, &place);
  }
  if (backward) gpt_finish_gradients(model->m);
  return gpt_loss_sum(model->m) * model->loss_scale;
}

static double model_difference(Model *model, const TensorRow *row, size_t i) {
  static const double OFFSET[4] = {-2, -1, 1, 2}, FACTOR[4] = {1, -8, 8, -1};
  double at, sum = 0;
  gpt_read(model->m, PART_WEIGHT, row, i, 1, &at);
  for (int j = 0; j < 4; j++) {
    gpt_write(model->m, PART_WEIGHT, row, i, 1, &(double){at + OFFSET[j] * STEP});
    gpt_refresh(model->m);
    sum += FACTOR[j] * model_step(model, false);
  }
  gpt_write(model->m, PART_WEIGHT, row, i, 1, &at);
  gpt_refresh(model->m);
  return sum / (12 * STEP);
}

static void check_model(const ModelCase *c) {
  static double gradient[64][MOST];
  Model model;
  model_create(&model, c);
  const TensorTable *table = gpt_table(model.m);
  model_step(&model, true);  // leaves gradients behind, which the next step must forget
  double loss = model_step(&model, true), squares = 0;
  check_value(c->name, loss, c->loss);
  if (table->count > ARRAY_LEN(gradient)) abort();
  for (size_t i = 0; i < table->count; i++) {
    const TensorRow *row = &table->rows[i];
    size_t n = tensor_values(row);
    if (n > MOST) abort();
    if (n) gpt_read(model.m, PART_GRADIENT, row, 0, n, gradient[i]);
    for (size_t j = 0; j < n; j++) squares += gradient[i][j] * gradient[i][j];
  }
  check_value("norm of all gradients", sqrt(squares), c->norm);
  check_value("norm of all gradients, as the model sums it", gpt_grad_norm(model.m), c->norm);
  for (size_t i = 0; i < table->count; i++) {
    const TensorRow *row = &table->rows[i];
    char what[160];
    snprintf(what, sizeof what, "%s: %s", c->name, row->name);
    for (size_t j = 0; j < tensor_values(row); j++)
      check_element(what, j, gradient[i][j], model_difference(&model, row, j), loss);
  }
  gpt_destroy(model.m);
}

static void models(void) {
  static const ModelCase cases[] = {
    // name                            family        NH KVH L  bias   tie    mask         p    ignored B  micro recompute  logits padding
    //                                 PyTorch's loss and norm
    {"gpt2",                           FAMILY_GPT2,  2, 2, 2, true,  true,  MASK_CAUSAL, 0,   false, 1, 1, RECOMPUTE_NONE,  0, 0,
     2.8768224437873435, 3.232530269305407},
    {"gpt2 untied",                    FAMILY_GPT2,  4, 4, 1, true,  false, MASK_CAUSAL, 0,   false, 1, 1, RECOMPUTE_NONE,  0, 0,
     2.2206836394086458, 2.4814749600996713},
    {"gpt2 without biases",            FAMILY_GPT2,  2, 2, 1, false, true,  MASK_CAUSAL, 0,   false, 2, 1, RECOMPUTE_NONE,  2, 0,
     2.7514236199296058, 1.8471234455678371},
    {"gpt2 plain, untied",             FAMILY_GPT2,  1, 1, 1, false, false, MASK_CAUSAL, 0,   true,  1, 1, RECOMPUTE_NONE,  0, 0,
     2.4420998015600932, 3.303044963919382},
    {"gpt2 dropout",                   FAMILY_GPT2,  2, 2, 2, true,  true,  MASK_CAUSAL, 0.3, false, 1, 1, RECOMPUTE_NONE,  0, 0,
     2.8881107345324111, 3.9733022247561194},
    {"gpt2 ignored targets",           FAMILY_GPT2,  2, 2, 1, true,  true,  MASK_CAUSAL, 0,   true,  2, 1, RECOMPUTE_NONE,  3, 0,
     2.505419966310575, 3.3635139228440978},
    {"gpt2 full attention",            FAMILY_GPT2,  2, 2, 1, true,  true,  MASK_FULL,   0,   true,  1, 1, RECOMPUTE_NONE,  0, 0,
     2.989164009965863, 3.3665186963532712},
    {"gpt2 two micro-batches",         FAMILY_GPT2,  2, 2, 1, true,  true,  MASK_CAUSAL, 0.2, true,  1, 2, RECOMPUTE_LIGHT, 0, 0,
     3.2785151944473916, 3.2343578058242506},
    {"gpt2 padded, recomputed",        FAMILY_GPT2,  2, 2, 2, true,  false, MASK_CAUSAL, 0.1, false, 1, 1, RECOMPUTE_BLOCK, 4, 16,
     2.6880060273225608, 2.5329458182951798},
    {"llama",                          FAMILY_LLAMA, 2, 2, 2, false, true,  MASK_CAUSAL, 0,   false, 1, 1, RECOMPUTE_NONE,  0, 0,
     3.1236660867234121, 3.4517510352870464},
    {"llama grouped, untied",          FAMILY_LLAMA, 4, 2, 1, false, false, MASK_CAUSAL, 0,   false, 1, 1, RECOMPUTE_NONE,  0, 0,
     2.9094700728251914, 2.3627753771690791},
    {"llama one key head",             FAMILY_LLAMA, 4, 1, 1, false, true,  MASK_CAUSAL, 0,   true,  2, 1, RECOMPUTE_NONE,  1, 0,
     2.8013438995014051, 2.3487170656903595},
    {"llama dropout, untied",          FAMILY_LLAMA, 2, 1, 1, false, false, MASK_CAUSAL, 0.3, false, 1, 1, RECOMPUTE_NONE,  0, 0,
     3.1448918406938873, 1.9939891138485135},
    {"llama full attention",           FAMILY_LLAMA, 2, 2, 1, false, true,  MASK_FULL,   0,   true,  1, 1, RECOMPUTE_LIGHT, 0, 0,
     3.1287690496161651, 3.4235595747071637},
    {"llama two micro-batches",        FAMILY_LLAMA, 4, 2, 1, false, true,  MASK_CAUSAL, 0.2, true,  1, 2, RECOMPUTE_NONE,  0, 0,
     2.6554447567443566, 1.9945529302597513},
    {"llama padded, recomputed",       FAMILY_LLAMA, 2, 1, 2, false, true,  MASK_CAUSAL, 0.1, false, 1, 1, RECOMPUTE_BLOCK, 2, 16,
     2.8193839505523068, 3.876070554229587},
  };
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) check_model(&cases[i]);
}

// ---- what must not change a bit ----

// All gradients of a step over four sequences with dropout and ignored targets, and its loss at the end; returns their count.
static size_t step_numbers(Family family, int B, Recompute recompute, int classifier_rows, double *numbers) {
  ModelCase c = {"bits", family, 4, family == FAMILY_LLAMA ? 2 : 4, 2, true, true, MASK_CAUSAL, 0.2, true, B, 4 / B, recompute,
                 classifier_rows, 0, 0, 0};
  Model model;
  model_create(&model, &c);
  double loss = model_step(&model, true);
  const TensorTable *table = gpt_table(model.m);
  size_t n = 0;
  for (size_t i = 0; i < table->count; i++) {
    size_t size = tensor_values(&table->rows[i]);
    if (size) gpt_read(model.m, PART_GRADIENT, &table->rows[i], 0, size, numbers + n);
    n += size;
  }
  numbers[n++] = loss;
  gpt_destroy(model.m);
  return n;
}

static void cuts_change_no_bit(void) {
  static double expected[MOST], numbers[MOST];
  for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++) {
    size_t n = step_numbers(family, 4, RECOMPUTE_NONE, 0, expected);
    for (int B = 1; B <= 4; B *= 2)
      for (Recompute recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_BLOCK; recompute++)
        for (int classifier_rows = 0; classifier_rows <= 3; classifier_rows += 3) {
          CHECK(step_numbers(family, B, recompute, classifier_rows, numbers) == n);
          CHECK_MSG(!memcmp(numbers, expected, n * sizeof *numbers), "family %d, %d x %d sequences, recompute %d, %d rows of logits",
                    (int)family, 4 / B, B, (int)recompute, classifier_rows);
        }
  }
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  d = reference_device();
  RUN(embedding);
  RUN(dropout);
  RUN(layernorm);
  RUN(rmsnorm);
  RUN(linear);
  RUN(activation);
  RUN(rope);
  RUN(attention);
  RUN(crossentropy);
  RUN(models);
  RUN(cuts_change_no_bit);
  return TEST_END();
}
