// watch.c: owns the wrapping device: times each operation, or checks each output. One function per operation of device.h,
// in its order: call the inner device, then say what was moved and what was set. See watch.h.
#include "watch.h"
#include <stdlib.h>   // free, qsort
#include <string.h>   // strcmp

enum { NAME_ROOM = 80 };   // of what an output is called: "gradient of layer 12 post-attention norm" and the like
typedef struct { const char *op; char where[NAME_ROOM], shape[48]; double seconds, bytes, flops; uint64_t launches; } Record;   // launches: of kernels

typedef struct {
  Device *inner;
  const Gpt *m;
  WatchMode mode;
  double start;
  double own;              // seconds that noting took, which belong to no operation and not to the step
  uint64_t launched;       // before the operation under way
  Record *records;
  size_t count;
  char finding[240];
  scalar *counter;         // one fp64 on the device
} Watch;

static Watch *watch_of(const Device *d) { return d->state; }

// ---- before and after every operation ----

static uint64_t launches(const Watch *w) { return w->inner->launches ? w->inner->launches(w->inner) : 0; }

static Device *begin(Device *d) {
  Watch *w = watch_of(d);
  w->launched = launches(w);
  if (w->mode == WATCH_TRACE) w->start = seconds_now();
  return w->inner;
}

// What an operation's output is called. A gradient may lie in the place of what it is the gradient of.
static const char *output_name(const Watch *w, const char *op, const void *output) {
  static char text[NAME_ROOM];
  const char *name = gpt_name_at(w->m, output);
  if (!strcmp(op, "rope backward")) return "gradient of qkv";
  bool gradient = strstr(op, "backward") && strstr(name, "gradient") != name;
  snprintf(text, sizeof text, "%s%s", gradient ? "gradient of " : "", name);
  return text;
}

static void end(Device *d, const char *op, const void *output, double bytes, double flops, const char *shape, ...) PRINTF_LIKE(6, 7);
static void end(Device *d, const char *op, const void *output, double bytes, double flops, const char *shape, ...) {
  Watch *w = watch_of(d);
  if (w->mode != WATCH_TRACE) return;
  w->inner->sync(w->inner);
  const double ended = seconds_now();
  w->records = xrealloc(w->records, w->count + 1, sizeof *w->records);
  Record *r = &w->records[w->count++];
  *r = (Record){.op = op, .seconds = ended - w->start, .bytes = bytes, .flops = flops, .launches = launches(w) - w->launched};
  snprintf(r->where, sizeof r->where, "%s", output ? output_name(w, op, output) : "");
  va_list args;
  va_start(args, shape);
  vsnprintf(r->shape, sizeof r->shape, shape, args);
  va_end(args);
  w->own += seconds_now() - ended;
}

static void found(Watch *w, const char *op, const void *output, size_t n) {
  double bad;
  w->inner->download_stat(w->inner, &bad, w->counter, 1);
  if (bad > 0) snprintf(w->finding, sizeof w->finding, "%s: %s: %.0f of %zu numbers are not finite", op, output_name(w, op, output), bad, n);
}

static void check_named(Device *d, const char *op, const real *output, size_t n, const void *name) {   // name: a place whose name it is
  Watch *w = watch_of(d);
  if (w->mode != WATCH_CHECK || w->finding[0] || !output) return;
  w->inner->zero(w->inner, w->counter, sizeof(double));
  w->inner->count_nonfinite_real(w->inner, w->counter, output, n);
  found(w, op, name, n);
}
static void check_real(Device *d, const char *op, const real *output, size_t n) { check_named(d, op, output, n, output); }

static void check_acc(Device *d, const char *op, const acc *output, size_t n) {
  Watch *w = watch_of(d);
  if (w->mode != WATCH_CHECK || w->finding[0] || !output) return;
  w->inner->zero(w->inner, w->counter, sizeof(double));
  w->inner->count_nonfinite_acc(w->inner, w->counter, output, n);
  found(w, op, output, n);
}

static const double STREAMS = 0;     // arithmetic of an operation that only reads and writes: it is not counted
static double reals(const Device *d, double n) { return n * (double)d->real_size; }
static double accs(const Device *d, double n) { return n * (double)d->acc_size; }

// ---- memory: passed on; only zero and copy are operations of a step ----

static void *watch_allocate(Device *d, size_t bytes) { Device *i = watch_of(d)->inner; return i->allocate(i, bytes); }
static void watch_release(Device *d, void *p, size_t bytes) { Device *i = watch_of(d)->inner; i->release(i, p, bytes); }
static void watch_zero(Device *d, void *p, size_t bytes) {
  Device *i = begin(d);
  i->zero(i, p, bytes);
  end(d, "zero", p, (double)bytes, STREAMS, "%zu bytes", bytes);
}
static void watch_copy(Device *d, void *dst, const void *src, size_t bytes) {
  Device *i = begin(d);
  i->copy(i, dst, src, bytes);
  end(d, "copy", dst, 2 * (double)bytes, STREAMS, "%zu bytes", bytes);
}
static void watch_upload_real(Device *d, real *dst, const double *src, size_t n) { Device *i = watch_of(d)->inner; i->upload_real(i, dst, src, n); }
static void watch_upload_acc(Device *d, acc *dst, const double *src, size_t n) { Device *i = watch_of(d)->inner; i->upload_acc(i, dst, src, n); }
static void watch_upload_real_float(Device *d, real *dst, const float *src, size_t n) { Device *i = watch_of(d)->inner; i->upload_real_float(i, dst, src, n); }
static void watch_upload_acc_float(Device *d, acc *dst, const float *src, size_t n) { Device *i = watch_of(d)->inner; i->upload_acc_float(i, dst, src, n); }
static void watch_upload_ids(Device *d, int32_t *dst, const int32_t *src, size_t n) { Device *i = watch_of(d)->inner; i->upload_ids(i, dst, src, n); }
static void watch_download_real(Device *d, double *dst, const real *src, size_t n) { Device *i = watch_of(d)->inner; i->download_real(i, dst, src, n); }
static void watch_download_acc(Device *d, double *dst, const acc *src, size_t n) { Device *i = watch_of(d)->inner; i->download_acc(i, dst, src, n); }
static void watch_download_stat(Device *d, double *dst, const scalar *src, size_t n) { Device *i = watch_of(d)->inner; i->download_stat(i, dst, src, n); }
static void watch_sync(Device *d) { Device *i = watch_of(d)->inner; i->sync(i); }

// ---- operations ----

static void watch_embedding_forward(Device *d, real *out, const int32_t *ids, const real *wte, const real *wpe, size_t B, size_t T, size_t C, size_t position) {
  Device *i = begin(d);
  i->embedding_forward(i, out, ids, wte, wpe, B, T, C, position);
  end(d, "embedding_forward", out, reals(d, (wpe ? 3.0 : 2.0) * (double)(B * T * C)), STREAMS, "%zu x %zu x %zu", B, T, C);
  check_real(d, "embedding_forward", out, B * T * C);
}

static void watch_embedding_backward(Device *d, acc *dwte, acc *dwpe, const real *dout, const int32_t *ids, size_t B, size_t T, size_t C, size_t V) {
  Device *i = begin(d);
  i->embedding_backward(i, dwte, dwpe, dout, ids, B, T, C, V);
  end(d, "embedding_backward", dwte, reals(d, (double)(B * T * C)) + accs(d, (dwpe ? 4.0 : 2.0) * (double)(B * T * C)), STREAMS, "%zu x %zu x %zu", B, T, C);
  check_acc(d, "embedding_backward", dwte, V * C);
  check_acc(d, "embedding_backward", dwpe, T * C);
}

static void watch_dropout(Device *d, real *x, size_t rows, size_t width, const Dropout *dropout) {
  Device *i = begin(d);
  i->dropout(i, x, rows, width, dropout);
  end(d, "dropout", x, reals(d, 2.0 * (double)(rows * width)), STREAMS, "%zu x %zu", rows, width);
  check_real(d, "dropout", x, rows * width);
}

static void watch_layernorm_forward(Device *d, real *residual, real *out, acc *mean, acc *rstd, const real *x, const real *delta,
                                    const real *weight, const real *bias, size_t rows, size_t C, double eps) {
  Device *i = begin(d);
  i->layernorm_forward(i, residual, out, mean, rstd, x, delta, weight, bias, rows, C, eps);
  end(d, "layernorm_forward", out, reals(d, (delta ? 4.0 : 2.0) * (double)(rows * C)), STREAMS, "%zu x %zu", rows, C);
  if (delta) check_real(d, "layernorm_forward", residual, rows * C);
  check_real(d, "layernorm_forward", out, rows * C);
}

static void watch_layernorm_backward(Device *d, real *dx, acc *dweight, acc *dbias, const real *dout, const real *dresidual, const real *x,
                                     const real *weight, const acc *mean, const acc *rstd, size_t rows, size_t C) {
  Device *i = begin(d);
  i->layernorm_backward(i, dx, dweight, dbias, dout, dresidual, x, weight, mean, rstd, rows, C);
  end(d, "layernorm_backward", dx, reals(d, (dresidual ? 4.0 : 3.0) * (double)(rows * C)), STREAMS, "%zu x %zu", rows, C);
  check_real(d, "layernorm_backward", dx, rows * C);
  check_acc(d, "layernorm_backward", dweight, C);
}

static void watch_rmsnorm_forward(Device *d, real *residual, real *out, acc *rstd, const real *x, const real *delta, const real *weight, size_t rows, size_t C, double eps) {
  Device *i = begin(d);
  i->rmsnorm_forward(i, residual, out, rstd, x, delta, weight, rows, C, eps);
  end(d, "rmsnorm_forward", out, reals(d, (delta ? 4.0 : 2.0) * (double)(rows * C)), STREAMS, "%zu x %zu", rows, C);
  if (delta) check_real(d, "rmsnorm_forward", residual, rows * C);
  check_real(d, "rmsnorm_forward", out, rows * C);
}

static void watch_rmsnorm_backward(Device *d, real *dx, acc *dweight, const real *dout, const real *dresidual, const real *x, const real *weight, const acc *rstd, size_t rows, size_t C) {
  Device *i = begin(d);
  i->rmsnorm_backward(i, dx, dweight, dout, dresidual, x, weight, rstd, rows, C);
  end(d, "rmsnorm_backward", dx, reals(d, (dresidual ? 4.0 : 3.0) * (double)(rows * C)), STREAMS, "%zu x %zu", rows, C);
  check_real(d, "rmsnorm_backward", dx, rows * C);
  check_acc(d, "rmsnorm_backward", dweight, C);
}

static void watch_residual_forward(Device *d, real *out, const real *x, const real *delta, size_t n) {
  Device *i = begin(d);
  i->residual_forward(i, out, x, delta, n);
  end(d, "residual_forward", out, reals(d, 3.0 * (double)n), STREAMS, "%zu", n);
  check_real(d, "residual_forward", out, n);
}

// reads x, weight; writes the output
static double product_bytes(const Device *d, size_t rows, size_t IC, size_t OC) { return reals(d, (double)(rows * IC + OC * IC + rows * OC)); }
static double product_flops(size_t rows, size_t IC, size_t OC) { return 2.0 * (double)rows * (double)IC * (double)OC; }

static void watch_linear_forward(Device *d, real *pre, real *post, const real *x, const real *weight, const real *bias, size_t rows, size_t IC, size_t OC, Activation activation) {
  Device *i = begin(d);
  i->linear_forward(i, pre, post, x, weight, bias, rows, IC, OC, activation);
  end(d, "linear_forward", pre ? pre : post, product_bytes(d, rows, IC, OC), product_flops(rows, IC, OC), "%zu x %zu -> %zu", rows, IC, OC);
  check_real(d, "linear_forward", pre, rows * OC);
  if (activation != ACTIVATION_NONE) check_real(d, "linear_forward", post, activation == ACTIVATION_SWIGLU ? rows * OC / 2 : rows * OC);
}

static void watch_linear_backward_input(Device *d, real *dx, const real *dout, const real *weight, size_t rows, size_t IC, size_t OC) {
  Device *i = begin(d);
  i->linear_backward_input(i, dx, dout, weight, rows, IC, OC);
  end(d, "linear_backward_input", dx, product_bytes(d, rows, IC, OC), product_flops(rows, IC, OC), "%zu x %zu <- %zu", rows, IC, OC);
  check_real(d, "linear_backward_input", dx, rows * IC);
}

static void watch_linear_backward_weight(Device *d, acc *dweight, acc *dbias, const real *dout, const real *x, size_t rows, size_t IC, size_t OC) {
  Device *i = begin(d);
  i->linear_backward_weight(i, dweight, dbias, dout, x, rows, IC, OC);
  end(d, "linear_backward_weight", dweight, reals(d, (double)(rows * (IC + OC))) + accs(d, 2.0 * (double)(IC * OC)), product_flops(rows, IC, OC), "%zu x (%zu, %zu)", rows, OC, IC);
  check_acc(d, "linear_backward_weight", dweight, OC * IC);
  check_acc(d, "linear_backward_weight", dbias, OC);
}

static void watch_activation_forward(Device *d, real *post, const real *pre, size_t rows, size_t width, Activation activation) {
  Device *i = begin(d);
  size_t n = activation == ACTIVATION_SWIGLU ? rows * width / 2 : rows * width;
  i->activation_forward(i, post, pre, rows, width, activation);
  end(d, "activation_forward", post, reals(d, (double)(rows * width + n)), STREAMS, "%zu x %zu", rows, width);
  check_real(d, "activation_forward", post, n);
}

static void watch_activation_backward(Device *d, real *dpre, const real *dpost, const real *pre, size_t rows, size_t width, Activation activation) {
  Device *i = begin(d);
  size_t n = activation == ACTIVATION_SWIGLU ? rows * width / 2 : rows * width;
  i->activation_backward(i, dpre, dpost, pre, rows, width, activation);
  end(d, "activation_backward", dpre, reals(d, (double)(2 * rows * width + n)), STREAMS, "%zu x %zu", rows, width);
  check_real(d, "activation_backward", dpre, rows * width);
}

static void watch_rope_table(Device *d, acc *table, size_t context, size_t HS, double theta) {
  Device *i = begin(d);
  i->rope_table(i, table, context, HS, theta);
  end(d, "rope_table", table, accs(d, (double)(context * HS)), STREAMS, "%zu x %zu", context, HS);
}

static void watch_rope(Device *d, real *x, const acc *table, size_t B, size_t T, size_t position, size_t heads, size_t HS, size_t stride, int direction) {
  Device *i = begin(d);
  i->rope(i, x, table, B, T, position, heads, HS, stride, direction);
  end(d, direction == 1 ? "rope forward" : "rope backward", x, reals(d, 2.0 * (double)(B * T * heads * HS)), STREAMS, "%zu x %zu x %zu x %zu", B, T, heads, HS);
  check_real(d, direction == 1 ? "rope forward" : "rope backward", x, B * T * stride);
}

// Score-value pairs that a mask leaves: q.k and p.v are 2 HS FLOPs each
static double attention_pairs(const AttentionShape *s) {
  double pairs = s->mask == MASK_FULL ? (double)s->T * (double)s->S : (double)s->T * ((double)s->position + ((double)s->T + 1) / 2);
  return pairs * (double)s->B * (double)s->NH * (double)s->HS;
}

static void watch_attention_forward(Device *d, real *out, acc *lse, const real *q, const real *k, const real *v, const AttentionShape *s) {
  Device *i = begin(d);
  i->attention_forward(i, out, lse, q, k, v, s);
  double rows = (double)(s->B * s->T), keys = (double)(s->B * s->S);
  end(d, "attention_forward", out, reals(d, (double)s->HS * (2 * rows * (double)s->NH + 2 * keys * (double)s->KVH)), 4 * attention_pairs(s),
      "%zu x %zu (%zu keys) x %zu x %zu", s->B, s->T, s->S, s->NH, s->HS);
  for (size_t b = 0; b < s->B; b++) check_real(d, "attention_forward", d->real_at(out, b * s->out_batch), s->T * s->out_stride);
}

static void watch_attention_backward(Device *d, real *dq, real *dk, real *dv, const real *dout, const real *q, const real *k, const real *v,
                                     const real *out, const acc *lse, const AttentionShape *s) {
  Device *i = begin(d);
  i->attention_backward(i, dq, dk, dv, dout, q, k, v, out, lse, s);
  double rows = (double)(s->B * s->T);
  end(d, "attention_backward", q, reals(d, (double)s->HS * (4 * rows * (double)s->NH + 4 * rows * (double)s->KVH)), 10 * attention_pairs(s),
      "%zu x %zu x %zu x %zu", s->B, s->T, s->NH, s->HS);
  for (size_t b = 0; b < s->B; b++) check_named(d, "attention_backward", d->real_at(dq, b * s->q_batch), s->T * s->q_stride, q);
}

static void watch_copy_rows(Device *d, real *dst, size_t dst_stride, const real *src, size_t src_stride, size_t rows, size_t width) {
  Device *i = begin(d);
  i->copy_rows(i, dst, dst_stride, src, src_stride, rows, width);
  end(d, "copy_rows", dst, reals(d, 2.0 * (double)(rows * width)), STREAMS, "%zu x %zu", rows, width);
}

static void watch_crossentropy(Device *d, real *logits, acc *loss, const int32_t *targets, size_t rows, size_t V, size_t stride, double scale, WantGradient gradient) {
  Device *i = begin(d);
  i->crossentropy(i, logits, loss, targets, rows, V, stride, scale, gradient);
  end(d, "crossentropy", logits, reals(d, (gradient == WITH_GRADIENT ? 2.0 : 1.0) * (double)(rows * stride)), STREAMS, "%zu x %zu", rows, V);
  check_acc(d, "crossentropy", loss, rows);
  check_real(d, "crossentropy", logits, rows * stride);
}

static void watch_add_rows(Device *d, acc *out, const acc *x, const int32_t *ids, size_t n, size_t C, size_t V) {
  Device *i = begin(d);
  i->add_rows(i, out, x, ids, n, C, V);
  end(d, "add_rows", out, accs(d, 3.0 * (double)(n * C)), STREAMS, "%zu x %zu", n, C);
  check_acc(d, "add_rows", out, V * C);
}

static void watch_sum(Device *d, scalar *out, const acc *x, size_t n) {
  Device *i = begin(d);
  i->sum(i, out, x, n);
  end(d, "sum", x, accs(d, (double)n), STREAMS, "%zu", n);
}

static void watch_sumsq(Device *d, scalar *out, const acc *x, size_t n) {
  Device *i = begin(d);
  i->sumsq(i, out, x, n);
  end(d, "sumsq", x, accs(d, (double)n), 2 * (double)n, "%zu", n);
}

static void watch_adamw(Device *d, const AdamWTensor *tensors, size_t count, const AdamWSettings *settings, const scalar *step_stat) {
  Device *i = begin(d);
  i->adamw(i, tensors, count, settings, step_stat);
  double n = 0;
  for (size_t t = 0; t < count; t++) n += (double)tensors[t].n;
  // reads g, m, v, w and writes m, v, w; a master copy is w, and param is written besides
  end(d, "adamw", NULL, d->real_is_acc ? accs(d, 7 * n) : accs(d, 7 * n) + reals(d, n), STREAMS, "%zu tensors, %.0f", count, n);
}

static void watch_refresh(Device *d, const real *params, size_t n) {
  Device *i = begin(d);
  i->refresh(i, params, n);
  end(d, "refresh", params, 0, STREAMS, "%zu", n);
}

static void watch_count_nonfinite_real(Device *d, scalar *out, const real *x, size_t n) { Device *i = watch_of(d)->inner; i->count_nonfinite_real(i, out, x, n); }
static void watch_count_nonfinite_acc(Device *d, scalar *out, const acc *x, size_t n) { Device *i = watch_of(d)->inner; i->count_nonfinite_acc(i, out, x, n); }

// ---- making, printing ----

Device *watch_device(Device *inner, const Gpt *m, WatchMode mode) {
  Device *d = xmalloc(1, sizeof *d);
  Watch *w = xzero(sizeof *w);
  *w = (Watch){.inner = inner, .m = m, .mode = mode, .counter = inner->allocate(inner, 64)};
  if (!w->counter) fail(EXIT_MACHINE, "memory: no 64 bytes left on the %s device", inner->name);
  *d = *inner;   // names, sizes, address functions
  d->state = w;
#define WRAP(op) d->op = watch_##op
  WRAP(allocate); WRAP(release); WRAP(zero); WRAP(copy); WRAP(upload_real); WRAP(upload_acc); WRAP(upload_real_float); WRAP(upload_acc_float);
  WRAP(upload_ids); WRAP(download_real); WRAP(download_acc); WRAP(download_stat); WRAP(sync);
  WRAP(embedding_forward); WRAP(embedding_backward); WRAP(dropout); WRAP(layernorm_forward); WRAP(layernorm_backward);
  WRAP(rmsnorm_forward); WRAP(rmsnorm_backward); WRAP(residual_forward); WRAP(linear_forward); WRAP(linear_backward_input);
  WRAP(linear_backward_weight); WRAP(activation_forward); WRAP(activation_backward); WRAP(rope_table); WRAP(rope);
  WRAP(attention_forward); WRAP(attention_backward); WRAP(copy_rows); WRAP(crossentropy); WRAP(add_rows); WRAP(sum); WRAP(sumsq);
  WRAP(adamw); WRAP(refresh); WRAP(count_nonfinite_real); WRAP(count_nonfinite_acc);
#undef WRAP
  d->destroy = watch_destroy;
  return d;
}

void watch_destroy(Device *d) {
  Watch *w = watch_of(d);
  w->inner->release(w->inner, w->counter, 64);
  free(w->records);
  free(w);
  free(d);
}

const char *watch_finding(const Device *d) { return watch_of(d)->finding[0] ? watch_of(d)->finding : NULL; }

static int slowest_first(const void *a, const void *b) {
  double x = ((const Record *)a)->seconds, y = ((const Record *)b)->seconds;
  return (x < y) - (x > y);
}

// Kernels launched for one block in the forward and in the backward pass, on average: of what lies between the embedding and the last norm, and
// between the last norm's gradient and the embedding's.
static void print_launches(const Watch *w, FILE *out) {
  size_t embedding = 0, classifier = 0, end = 0, scored = 0;
  uint64_t forward = 0, backward = 0, all = 0;
  for (size_t i = 0; i < w->count; i++) {
    const char *op = w->records[i].op;
    all += w->records[i].launches;
    if (!strcmp(op, "embedding_forward") && !embedding) embedding = i;
    if (!strcmp(op, "crossentropy") && !classifier) classifier = i;
    if (!strcmp(op, "sum") && !scored) scored = i;
    if (!strcmp(op, "embedding_backward") && !end) end = i;
  }
  if (!all || classifier < embedding + 3 || end < scored + 3) return;
  for (size_t i = embedding + 1; i < classifier - 2; i++) forward += w->records[i].launches;   // behind them: the last norm, the head
  for (size_t i = scored + 2; i < end; i++) backward += w->records[i].launches;
  double layers = (double)gpt_config(w->m)->layers;
  fprintf(out, "sum    %llu kernels launched; %.3g a block forward, %.3g backward\n", (unsigned long long)all, (double)forward / layers, (double)backward / layers);
}

// Matrix products and attention are bound by arithmetic; all else only reads and writes, and is held against what the memory gives.
static bool streams(const char *op) { return strncmp(op, "linear", 6) && strncmp(op, "attention", 9); }

void watch_print(const Device *d, FILE *out, double step_seconds) {
  const Watch *w = watch_of(d);
  const double bandwidth = w->inner->measure_bandwidth ? w->inner->measure_bandwidth(w->inner) : 0;
  step_seconds -= w->own;
  Record *sums = xcalloc(w->count, sizeof *sums);
  size_t kinds = 0;
  double total = 0;
  fprintf(out, "trace  %-23s %-42s %-32s %9s %9s %8s %8s\n", "operation", "output", "shape", "ms", "MB", "GB/s", "GFLOP/s");
  for (size_t i = 0; i < w->count; i++) {
    const Record *r = &w->records[i];
    fprintf(out, "trace  %-23s %-42s %-32s %9.3f %9.3f %8.1f %8.1f\n", r->op, r->where, r->shape, 1e3 * r->seconds, 1e-6 * r->bytes, 1e-9 * r->bytes / r->seconds, 1e-9 * r->flops / r->seconds);
    size_t k = 0;
    while (k < kinds && strcmp(sums[k].op, r->op)) k++;
    if (k == kinds) sums[kinds++].op = r->op;
    sums[k].seconds += r->seconds;
    sums[k].bytes += r->bytes;
    sums[k].flops += r->flops;
    sums[k].launches += r->launches;
    total += r->seconds;
  }
  qsort(sums, kinds, sizeof *sums, slowest_first);
  for (size_t k = 0; k < kinds; k++) {
    fprintf(out, "sum    %-23s %9.3f ms  %5.1f%%  %8.1f GB/s  %8.1f GFLOP/s", sums[k].op, 1e3 * sums[k].seconds, 100 * sums[k].seconds / step_seconds, 1e-9 * sums[k].bytes / sums[k].seconds, 1e-9 * sums[k].flops / sums[k].seconds);
    if (sums[k].launches) fprintf(out, "  %6llu launches", (unsigned long long)sums[k].launches);
    if (bandwidth > 0 && streams(sums[k].op)) fprintf(out, "  %7.1f MB, %3.0f%% of memory's speed", 1e-6 * sums[k].bytes, 100 * sums[k].bytes / sums[k].seconds / bandwidth);
    fprintf(out, "\n");
  }
  if (bandwidth > 0) fprintf(out, "sum    memory: %.1f GB/s read and written in place, measured now; what lies in a cache may be faster\n", 1e-9 * bandwidth);
  fprintf(out, "sum    %zu operations %.3f ms, %.1f%% of the step's %.3f ms\n", w->count, 1e3 * total, 100 * total / step_seconds, 1e3 * step_seconds);
  print_launches(w, out);
  free(sums);
}
