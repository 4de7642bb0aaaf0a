// test_attention.c: owns the tests of attention on a device (op_test.h says which), and on the CPU device beyond that: against the reference, the same bits everywhere, decoding
// equals the full forward pass bit for bit, and what a query does not see does not reach it.
#include "op_test.h"

// Case `number` chooses the mask (every third full), the group, documents (every fourth), dropout (every fifth), strides and offsets.
enum { DIM_B, DIM_T, DIM_S, DIM_KVH, DIM_GROUP, DIM_HS, DIM_PAD, DIM_NUMBER };
static AttentionShape shape_of(const size_t *n, const int32_t *first_key) {
  size_t NH = n[DIM_KVH] * n[DIM_GROUP], number = n[DIM_NUMBER];
  const bool documents = on_cuda() ? number / 2 % 7 % 3 == 2 : number % 4 == 3;   // on CUDA in both families
  AttentionShape s = {
    .B = n[DIM_B], .T = n[DIM_T], .S = n[DIM_S], .position = n[DIM_S] - n[DIM_T], .NH = NH, .KVH = n[DIM_KVH], .HS = n[DIM_HS],
    .q_stride = NH * n[DIM_HS] + n[DIM_PAD], .kv_stride = n[DIM_KVH] * n[DIM_HS] + 2 * n[DIM_PAD], .out_stride = NH * n[DIM_HS] + n[DIM_PAD] / 2,
    .mask = number % 3 == 2 ? MASK_FULL : MASK_CAUSAL, .first_key = documents ? first_key : NULL, .scale = 1 / sqrt((double)n[DIM_HS]),
  };
  bool even = on_cuda() && number % 2 == 0;   // the aligned cases of op_test.h
  if (even) s.out_stride = NH * n[DIM_HS] + n[DIM_PAD];
  s.q_batch = s.T * s.q_stride + (even ? 8 : 3), s.kv_batch = s.S * s.kv_stride + (even ? 8 : 1), s.out_batch = s.T * s.out_stride;
  if (number % 5 == 4) s.dropout = (Dropout){.p = 0.3, .seed = 99, .step = 5, .site = 4, .row0 = number * 3};
  return s;
}
static size_t q_size(const AttentionShape *s) { return s->B * s->q_batch; }
static size_t kv_size(const AttentionShape *s) { return s->B * s->kv_batch; }

static void dims(Case *c, bool square) {
  size_t *n = c->dim;
  n[DIM_B] = odd_size(c, 0, 3), n[DIM_T] = odd_size(c, 1, c->number % 7 == 6 ? 193 : 65), n[DIM_S] = n[DIM_T] + (square ? 0 : odd_size(c, 2, 65) - 1);
  n[DIM_KVH] = odd_size(c, 3, 3), n[DIM_GROUP] = odd_size(c, 4, 3), n[DIM_HS] = odd_size(c, 5, c->number % 4 ? 33 : 129), n[DIM_PAD] = odd_pad(c, 6, 17);
  if (aligned_case(c) && c->number % 3) n[DIM_HS] = (size_t[]){32, 64, 96, 128}[c->number / 2 % 4];   // those of the tensor-core kernels
  n[DIM_NUMBER] = (size_t)c->number;
}

// Documents: the start that each query may see, somewhere before its own position.
static void add_first_key(Case *c, const AttentionShape *s) {
  Array *a = input_ids(c, "first_key", s->B * s->T, 1);
  for (size_t i = 0; i < a->n; i++) a->start[i] = (double)rng_below(s->position + i % s->T + 1, 11, (uint32_t)c->number, 5, i / 9);   // runs of nine
  for (size_t i = 0; i < a->n; i++) a->start[i] = MIN(a->start[i], (double)(s->position + i % s->T));
}

static void forward_shape(Case *c) {
  dims(c, false);
  AttentionShape s = shape_of(c->dim, NULL);
  size_t out = s.B * s.out_batch;
  Array *a = array_add(c, "out", KIND_REAL, IN_OUT, out, 1);   // between the heads' columns the old values stay
  (void)a;
  output_acc(c, "lse", s.B * s.NH * s.T), array_add(c, "q", KIND_REAL, IN, q_size(&s), 3), array_add(c, "k", KIND_REAL, IN, kv_size(&s), 3);
  array_add(c, "v", KIND_REAL, IN, kv_size(&s), c->size), add_first_key(c, &s);
}
static void forward_run(Device *d, const size_t *n, void *const p[]) {
  AttentionShape s = shape_of(n, p[5]);
  d->attention_forward(d, p[0], p[1], p[2], p[3], p[4], &s);
}

// One query of one head: what the bounds need. p without dropout; factor: dropout.
typedef struct { size_t begin, end; double p[300], factor[300], score_error; } Query;
static void query_of(Query *query, const AttentionShape *s, const double *q, const double *k, const double *first_key, size_t b, size_t t, size_t h) {
  query->begin = s->first_key ? (size_t)first_key[b * s->T + t] : 0, query->end = s->mask == MASK_CAUSAL ? s->position + t + 1 : s->S;
  double max = -INFINITY, sum = 0;
  query->score_error = 0;
  for (size_t i = query->begin; i < query->end; i++) {
    double score = 0, size = 0;
    for (size_t e = 0; e < s->HS; e++) {
      double product = q[b * s->q_batch + t * s->q_stride + h * s->HS + e] * k[b * s->kv_batch + i * s->kv_stride + h / (s->NH / s->KVH) * s->HS + e] * s->scale;
      score += product, size += fabs(product);
    }
    query->p[i] = score, max = MAX(max, score);
    query->score_error = MAX(query->score_error, ((double)s->HS + 2) * U * size);   // scale, its product, a chain of HS
  }
  for (size_t i = query->begin; i < query->end; i++) {
    uint64_t element = ((s->dropout.row0 + b * s->T + t) * s->NH + h) * s->S + i;
    bool kept = s->dropout.p == 0 || rng_u32(s->dropout.seed, s->dropout.step, s->dropout.site, element) >= (uint32_t)(s->dropout.p * 0x1p32);
    query->factor[i] = kept ? 1 / (1 - s->dropout.p) : 0;
    query->p[i] = exp(query->p[i] - max), sum += query->p[i];
  }
  for (size_t i = query->begin; i < query->end; i++) query->p[i] /= sum;
}

// p errs relatively by 2 score errors (its own and the largest's), the rounding of score - largest (below 90: scores are small), exp's
// two and the sum's S/16 + 5; out adds a chain of S, the factor and the quotient. lse: the score, the sum, the log.
// On tensor cores each p is rounded to bf16 before it meets v (and dscore before it meets k or q).
static void forward_bounds(Case *c) {
  AttentionShape s = shape_of(c->dim, (const int32_t *)c);   // only asked whether there are documents
  const double *q = c->array[2].start, *k = c->array[3].start, *v = c->array[4].start;
  Query *query = xmalloc(1, sizeof *query);
  for (size_t b = 0; b < s.B; b++)
    for (size_t t = 0; t < s.T; t++)
      for (size_t h = 0; h < s.NH; h++) {
        query_of(query, &s, q, k, c->array[5].start, b, t, h);
        double keys = (double)(query->end - query->begin), sum_error = 2 * query->score_error + (keys / 16 + 12) * U;
        double *lse = c->array[1].bound + (b * s.NH + h) * s.T + t;
        *lse = sum_error + 4 * U * (fabs(c->array[1].want[(b * s.NH + h) * s.T + t]) + 40);
        for (size_t e = 0; e < s.HS; e++) {
          double size = 0;
          for (size_t i = query->begin; i < query->end; i++)
            size += query->p[i] * query->factor[i] * fabs(v[b * s.kv_batch + i * s.kv_stride + h / (s.NH / s.KVH) * s.HS + e]);
          c->array[0].bound[b * s.out_batch + t * s.out_stride + h * s.HS + e] = (2 * sum_error + (keys + 100) * U + (on_tensor_cores() ? U_BF16 : 0)) * size + TINY;
        }
      }
  free(query);
}
static const Operation attention_forward_op = {"attention_forward", forward_shape, forward_run, forward_bounds};
static void attention_forward(void) { check_operation(&attention_forward_op); }

// The reference's own out and lse, rounded to float, are inputs of the backward pass.
static void backward_shape(Case *c) {
  dims(c, true);
  AttentionShape s = shape_of(c->dim, NULL);
  array_add(c, "dq", KIND_REAL, IN_OUT, q_size(&s), 1), array_add(c, "dk", KIND_REAL, IN_OUT, kv_size(&s), 1), array_add(c, "dv", KIND_REAL, IN_OUT, kv_size(&s), 1);
  array_add(c, "dout", KIND_REAL, IN, s.B * s.out_batch, c->size), array_add(c, "q", KIND_REAL, IN, q_size(&s), 3);
  array_add(c, "k", KIND_REAL, IN, kv_size(&s), 3), array_add(c, "v", KIND_REAL, IN, kv_size(&s), 2), add_first_key(c, &s);
  Array *out = array_add(c, "out", KIND_REAL, IN, s.B * s.out_batch, 0), *lse = array_add(c, "lse", KIND_ACC, IN, s.B * s.NH * s.T, 0);
  Device *reference = reference_device();
  int32_t *first = xmalloc(s.B * s.T, sizeof *first);
  for (size_t i = 0; i < s.B * s.T; i++) first[i] = (int32_t)c->array[7].start[i];
  s = shape_of(c->dim, first);
  reference->attention_forward(reference, (real *)out->start, (acc *)lse->start, (real *)c->array[4].start, (real *)c->array[5].start, (real *)c->array[6].start, &s);   // its real and acc are double
  for (size_t i = 0; i < out->n; i++) out->start[i] = stored(out->start[i]);
  for (size_t i = 0; i < lse->n; i++) lse->start[i] = (float)lse->start[i];
  free(first);
}
static void backward_run(Device *d, const size_t *n, void *const p[]) {
  AttentionShape s = shape_of(n, p[7]);
  d->attention_backward(d, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[8], p[9], &s);
}

// p = exp(score - lse): relatively the score's error, the difference's rounding, exp's; lse is given. With D = sum |dout| |v| or |dout| |out|,
// dscore errs by p (error of p + HS + S/16 + 12 roundings) (factor D_v + D_out). The chains over keys or queries add their length.
static void backward_bounds(Case *c) {
  AttentionShape s = shape_of(c->dim, (const int32_t *)c);
  const double *dout = c->array[3].start, *q = c->array[4].start, *k = c->array[5].start, *v = c->array[6].start, *out = c->array[8].start;
  double *dq = c->array[0].bound, *dk = c->array[1].bound, *dv = c->array[2].bound;
  const double length = (double)(s.T * (s.NH / s.KVH)) + 8;   // of the longest chain
  Query *query = xmalloc(1, sizeof *query);
  for (size_t b = 0; b < s.B; b++)
    for (size_t t = 0; t < s.T; t++)
      for (size_t h = 0; h < s.NH; h++) {
        query_of(query, &s, q, k, c->array[7].start, b, t, h);
        const size_t q_at = b * s.q_batch + t * s.q_stride + h * s.HS, out_at = b * s.out_batch + t * s.out_stride + h * s.HS;
        double size_out = 0;
        for (size_t e = 0; e < s.HS; e++) size_out += fabs(dout[out_at + e] * out[out_at + e]);
        for (size_t i = query->begin; i < query->end; i++) {
          const size_t key = b * s.kv_batch + i * s.kv_stride + h / (s.NH / s.KVH) * s.HS;
          double size_v = 0, p_error = query->score_error + 110 * U;   // |score - lse| below 100
          for (size_t e = 0; e < s.HS; e++) size_v += fabs(dout[out_at + e] * v[key + e]);
          double dscore = query->p[i] * (query->factor[i] * size_v + size_out), error = p_error + ((double)s.HS + 16 + length) * U + (on_tensor_cores() ? U_BF16 : 0);
          for (size_t e = 0; e < s.HS; e++) {
            dq[q_at + e] += s.scale * dscore * fabs(k[key + e]) * error;
            dk[key + e] += s.scale * dscore * fabs(q[q_at + e]) * error;
            dv[key + e] += query->p[i] * query->factor[i] * fabs(dout[out_at + e]) * error;
          }
        }
        for (size_t e = 0; e < s.HS; e++) dq[q_at + e] += TINY;
      }
  for (size_t i = 0; i < c->array[1].n; i++) {
    bool inside = i % s.kv_batch < s.S * s.kv_stride && i % s.kv_batch % s.kv_stride < s.KVH * s.HS;
    if (inside) dk[i] += TINY, dv[i] += TINY;
  }
  free(query);
}
static const Operation attention_backward_op = {"attention_backward", backward_shape, backward_run, backward_bounds};
static void attention_backward(void) { check_operation(&attention_backward_op); }

// ---- decoding ----

static float *random_floats(const char *name, size_t n, double size) {
  float *p = xmalloc(n, sizeof *p);
  for (size_t i = 0; i < n; i++) p[i] = (float)(size * (2 * rng_uniform(5, 0, rng_site(name), i) - 1));
  return p;
}

typedef struct { size_t T, NH, KVH, HS; float *q, *k, *v, *out, *lse; } Sequence;
static void run_part(Device *d, const Sequence *x, float *out, float *lse, size_t position, size_t T, const int32_t *first_key) {
  AttentionShape s = {.B = 1, .T = T, .S = position + T, .position = position, .NH = x->NH, .KVH = x->KVH, .HS = x->HS, .q_stride = x->NH * x->HS,
                      .kv_stride = x->KVH * x->HS, .out_stride = x->NH * x->HS, .mask = MASK_CAUSAL, .scale = 0.3, .first_key = first_key};
  d->attention_forward(d, (real *)out, (acc *)lse, d->real_at((real *)x->q, position * s.q_stride), (real *)x->k, (real *)x->v, &s);
}

// The whole sequence at once, one position at a time, and in uneven pieces, on every instruction set: the same bits.
static void attention_decoding_is_the_full_pass(void) {
  static const size_t shapes[][4] = {{1, 1, 1, 1}, {67, 2, 1, 32}, {130, 3, 3, 17}, {33, 4, 2, 64}, {257, 1, 1, 8}, {65, 2, 2, 129}};
  static const char *const sets[] = {"", "avx512", "avx2", "generic"};
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
    Sequence x = {shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], NULL, NULL, NULL, NULL, NULL};
    size_t row = x.NH * x.HS, kv_row = x.KVH * x.HS;
    x.q = random_floats("q", x.T * row, 3), x.k = random_floats("k", x.T * kv_row, 3), x.v = random_floats("v", x.T * kv_row, 1);
    x.out = xcalloc(x.T * row, 4), x.lse = xcalloc(x.T * x.NH, 4);
    float *out = xcalloc(x.T * row, 4), *lse = xcalloc(x.NH, 4);
    Device *any = device_under_test(1);   // its storage, in the first bytes of the same arrays
    any->upload_real_float(any, (real *)x.q, x.q, x.T * row), any->upload_real_float(any, (real *)x.k, x.k, x.T * kv_row), any->upload_real_float(any, (real *)x.v, x.v, x.T * kv_row);
    any->destroy(any);
    for (size_t set = 0; set < ARRAY_LEN(sets); set++) {
      if (*sets[set] && !has_instruction_set(sets[set])) continue;
      Device *d = device_with(sets[set], 2);
      if (set == 0) run_part(d, &x, x.out, x.lse, 0, x.T, NULL);
      for (size_t t = 0; t < x.T; t++) {
        run_part(d, &x, (float *)d->real_at((real *)out, t * row), lse, t, 1, NULL);
        for (size_t h = 0; h < x.NH; h++) CHECK(!memcmp(&lse[h], &x.lse[h * x.T + t], 4));
      }
      CHECK_MSG(!memcmp(out, x.out, x.T * row * d->real_size), "T %zu HS %zu, %s: decoding differs", x.T, x.HS, d->description);
      memset(out, 0, x.T * row * d->real_size);
      for (size_t t = 0, step; t < x.T; t += step) {
        step = MIN((size_t)(1 + t * 3 % 40), x.T - t);
        run_part(d, &x, (float *)d->real_at((real *)out, t * row), NULL, t, step, NULL);
      }
      CHECK_MSG(!memcmp(out, x.out, x.T * row * d->real_size), "T %zu HS %zu, %s: pieces differ", x.T, x.HS, d->description);
      d->destroy(d);
    }
    free(x.q), free(x.k), free(x.v), free(x.out), free(x.lse), free(out), free(lse);
  }
}

// A document in the middle of a sequence gives the very bits that it gives when nothing precedes it within its own first 16 keys' lanes:
// whatever stands in keys that a query does not see changes nothing.
static void attention_unseen_keys_change_nothing(void) {
  Device *d = cpu_device(2);
  Sequence x = {100, 2, 1, 24, NULL, NULL, NULL, NULL, NULL};
  size_t row = x.NH * x.HS, kv_row = x.KVH * x.HS;
  int32_t first_key[100];
  for (int t = 0; t < 100; t++) first_key[t] = t < 37 ? 0 : 37;
  x.q = random_floats("q", x.T * row, 3), x.k = random_floats("k", x.T * kv_row, 3), x.v = random_floats("v", x.T * kv_row, 1);
  float *before = xcalloc(x.T * row, 4), *after = xcalloc(x.T * row, 4);
  run_part(d, &x, before, NULL, 0, x.T, first_key);
  for (size_t i = 50 * kv_row; i < x.T * kv_row; i++) x.k[i] *= -3, x.v[i] = 1e30f;   // the future of the first 50
  run_part(d, &x, after, NULL, 0, x.T, first_key);
  CHECK(!memcmp(before, after, 50 * row * 4));
  CHECK(memcmp(before + 50 * row, after + 50 * row, 50 * row * 4));
  run_part(d, &x, before, NULL, 0, x.T, first_key);
  for (size_t i = 0; i < 37 * kv_row; i++) x.k[i] *= -3, x.v[i] = 1e30f;              // another document
  run_part(d, &x, after, NULL, 0, x.T, first_key);
  CHECK(!memcmp(before + 37 * row, after + 37 * row, 63 * row * 4));
  CHECK(memcmp(before, after, 37 * row * 4));
  free(x.q), free(x.k), free(x.v), free(before), free(after);
  d->destroy(d);
}

// No gradient comes in: none goes out, to the last bit (the sums start at zero).
static void attention_backward_of_nothing_is_nothing(void) {
  Device *d = cpu_device(2);
  enum { T = 70, W = 3 * 40 };
  float *q = random_floats("q", T * W, 2), *k = random_floats("k", T * W, 2), *v = random_floats("v", T * W, 2), *out = random_floats("out", T * W, 1), *lse = random_floats("lse", T * 3, 1);
  float *g[3], *zero = xcalloc(T * W, 4);
  for (int i = 0; i < 3; i++) g[i] = random_floats("old", T * W, 1);
  AttentionShape s = {.B = 1, .T = T, .S = T, .NH = 3, .KVH = 3, .HS = 40, .q_stride = W, .kv_stride = W, .out_stride = W, .scale = 0.1};
  d->attention_backward(d, (real *)g[0], (real *)g[1], (real *)g[2], (real *)zero, (real *)q, (real *)k, (real *)v, (real *)out, (acc *)lse, &s);
  for (int i = 0; i < 3; i++) {
    CHECK(!memcmp(g[i], zero, T * W * 4));
    free(g[i]);
  }
  free(q), free(k), free(v), free(out), free(lse), free(zero);
  d->destroy(d);
}

// What an earlier call left in the working memory, be it not a number, changes no bit of a later one; and the bits are those of every version.
typedef struct { size_t B, T, position, KVH, group, HS; AttentionMask mask; bool documents; double p; } Setting;
static void run_setting(Device *d, const Setting *x, bool poison, bool backward, Buffer *bits) {
  const size_t S = x->position + x->T, NH = x->KVH * x->group, row = NH * x->HS, kv_row = x->KVH * x->HS, rows = x->B * x->T, nq = rows * row, nk = x->B * S * kv_row;
  float *q = random_floats("q", nq, 2), *k = random_floats("k", nk, 2), *v = random_floats("v", nk, 1), *out = xcalloc(nq, 4), *lse = xcalloc(rows * NH, 4), *dout = random_floats("dout", nq, 1);
  float *dq = xcalloc(nq, 4), *dk = xcalloc(nk, 4), *dv = xcalloc(nk, 4);
  int32_t *first = xcalloc(rows, sizeof *first);
  for (size_t i = 0; i < rows; i++) first[i] = (int32_t)((x->position + i % x->T) / 23 * 23);
  if (poison) for (size_t i = 0; i < nk; i++) k[i] = v[i] = NAN;
  if (poison) for (size_t i = 0; i < nq; i++) q[i] = dout[i] = NAN;
  AttentionShape s = {.B = x->B, .T = x->T, .S = S, .position = x->position, .NH = NH, .KVH = x->KVH, .HS = x->HS, .q_stride = row, .kv_stride = kv_row, .out_stride = row,
                      .q_batch = x->T * row, .kv_batch = S * kv_row, .out_batch = x->T * row, .mask = x->mask, .scale = 0.3, .first_key = x->documents ? first : NULL,
                      .dropout = {.p = x->p, .seed = 3, .step = 4, .site = 5, .row0 = 6}};
  d->attention_forward(d, (real *)out, (acc *)lse, (real *)q, (real *)k, (real *)v, &s);
  if (backward) d->attention_backward(d, (real *)dq, (real *)dk, (real *)dv, (real *)dout, (real *)q, (real *)k, (real *)v, (real *)out, (acc *)lse, &s);
  if (bits) buffer_append(bits, out, nq * 4), buffer_append(bits, lse, rows * NH * 4), buffer_append(bits, dq, nq * 4), buffer_append(bits, dk, nk * 4), buffer_append(bits, dv, nk * 4);
  free(q), free(k), free(v), free(out), free(lse), free(dout), free(dq), free(dk), free(dv), free(first);
}

static void attention_forgets_and_keeps_its_bits(void) {
  static const Setting settings[] = {
    {1, 1, 0, 1, 1, 16, MASK_CAUSAL, false, 0}, {1, 64, 0, 1, 1, 16, MASK_CAUSAL, false, 0}, {2, 65, 0, 2, 1, 17, MASK_CAUSAL, false, 0}, {1, 33, 31, 1, 2, 32, MASK_CAUSAL, false, 0.2},
    {1, 100, 0, 1, 1, 48, MASK_FULL, false, 0}, {2, 71, 0, 1, 3, 5, MASK_FULL, false, 0.3}, {1, 130, 0, 1, 1, 64, MASK_CAUSAL, true, 0}, {1, 96, 0, 2, 2, 33, MASK_CAUSAL, true, 0.1},
    {1, 1, 77, 2, 1, 24, MASK_CAUSAL, false, 0}, {3, 7, 0, 1, 1, 1, MASK_CAUSAL, true, 0.5}, {1, 80, 0, 1, 1, 31, MASK_FULL, true, 0},
    {1, 17, 0, 1, 1, 16, MASK_CAUSAL, false, 0}, {1, 12, 12, 1, 1, 16, MASK_CAUSAL, false, 0.2}, {1, 49, 9, 1, 1, 33, MASK_CAUSAL, true, 0}};   // the last three are not in the hash
  enum { HASHED = 11 };
  Buffer all = {0};
  for (size_t i = 0; i < ARRAY_LEN(settings); i++) {
    Buffer bits[3] = {{0}, {0}, {0}};
    const bool backward = settings[i].position == 0;
    for (int poisoned = 0; poisoned < (has_instruction_set("avx2") ? 3 : 2); poisoned++) {
      Device *d = device_with(poisoned == 2 ? "avx2" : "", 1);   // tiles of other sizes look at other places
      if (poisoned) run_setting(d, &(Setting){1, 140, 0, 1, 1, 129, MASK_FULL, false, 0.4}, true, true, NULL);
      run_setting(d, &settings[i], false, backward, &bits[poisoned]);
      d->destroy(d);
      CHECK_MSG(!memcmp(bits[0].data, bits[poisoned].data, bits[0].len), "setting %zu: what was left behind has changed something", i);
    }
    if (i < HASHED) buffer_append(&all, bits[0].data, bits[0].len);
    for (int poisoned = 0; poisoned < 3; poisoned++) buffer_free(&bits[poisoned]);
  }
  char hex[65];
  sha256_of(all.data, all.len, hex);
  CHECK_STR(hex, "3cea0bad7e1b1406ef76b6d297119fd32cf5cad60b998476f4d151f237ed4b71");
  buffer_free(&all);
}

static void attention_of_no_sequences_is_nothing(void) {
  Device *d = cpu_device(2);
  float x[4] = {1, 2, 3, 4}, same[4] = {1, 2, 3, 4};
  AttentionShape s = {.B = 0, .T = 3, .S = 3, .NH = 1, .KVH = 1, .HS = 1, .q_stride = 1, .kv_stride = 1, .out_stride = 1, .scale = 1};
  d->attention_forward(d, (real *)x, NULL, (real *)x, (real *)x, (real *)x, &s);
  d->attention_backward(d, (real *)x, (real *)x, (real *)x, (real *)x, (real *)x, (real *)x, (real *)x, (real *)x, (acc *)x, &s);
  CHECK(!memcmp(x, same, sizeof x));
  d->destroy(d);
}

// A broken query breaks the gradients of the keys that it sees, and of none in a later tile: 48 is a multiple of every set's tile.
static void attention_backward_breaks_no_later_key(void) {
  static const char *const sets[] = {"avx512", "avx2", "generic"};
  enum { T = 100, BROKEN = 47, HS = 16 };
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    if (!has_instruction_set(sets[i])) continue;
    Device *d = device_with(sets[i], 1);
    float *q = random_floats("q", T * HS, 1), *k = random_floats("k", T * HS, 1), *out = xcalloc(T * HS, 4), *lse = xcalloc(T, 4), *dout = random_floats("dout", T * HS, 1);
    float *dq = xcalloc(T * HS, 4), *dk = xcalloc(T * HS, 4), *dv = xcalloc(T * HS, 4);
    AttentionShape s = {.B = 1, .T = T, .S = T, .NH = 1, .KVH = 1, .HS = HS, .q_stride = HS, .kv_stride = HS, .out_stride = HS, .mask = MASK_CAUSAL, .scale = 0.2};
    d->attention_forward(d, (real *)out, (acc *)lse, (real *)q, (real *)k, (real *)k, &s);
    for (int e = 0; e < HS; e++) q[BROKEN * HS + e] = dout[BROKEN * HS + e] = NAN;
    d->attention_backward(d, (real *)dq, (real *)dk, (real *)dv, (real *)dout, (real *)q, (real *)k, (real *)k, (real *)out, (acc *)lse, &s);
    for (int e = 0; e < T * HS; e++) {
      CHECK(isnan(dq[e]) == (e / HS == BROKEN));
      if (e / HS <= BROKEN || e / HS >= 48) CHECK_MSG(isnan(dk[e]) == (e / HS <= BROKEN) && isnan(dv[e]) == (e / HS <= BROKEN), "%s, key %d", sets[i], e / HS);
    }
    free(q), free(k), free(out), free(lse), free(dout), free(dq), free(dk), free(dv);
    d->destroy(d);
  }
}

static void attention_is_stable_and_honest(void) {
  Device *d = cpu_device(1);
  Sequence x = {40, 1, 1, 16, random_floats("q", 640, 2e3), random_floats("k", 640, 2e3), random_floats("v", 640, 1), NULL, NULL};
  float out[640], lse[40];
  run_part(d, &x, out, lse, 0, 40, NULL);   // scores of millions: the softmax is one key, nothing overflows
  for (int i = 0; i < 640; i++) CHECK(fabsf(out[i]) <= 1);
  for (int i = 0; i < 40; i++) CHECK(isfinite(lse[i]));
  x.k[20 * 16] = NAN;                       // a NaN key reaches every query that sees it, and no decoding step before it
  run_part(d, &x, out, lse, 0, 40, NULL);
  for (int t = 20; t < 40; t++) CHECK(isnan(out[t * 16]) && isnan(lse[t]));
  for (int t = 0; t < 20; t++) CHECK(isfinite(lse[t]));
  int32_t nothing = 3;                      // a query that sees nothing: zeros
  AttentionShape s = {.B = 1, .T = 1, .S = 3, .position = 2, .NH = 1, .KVH = 1, .HS = 16, .q_stride = 16, .kv_stride = 16, .out_stride = 16, .first_key = &nothing, .scale = 1};
  d->attention_forward(d, (real *)out, (acc *)lse, (real *)x.q, (real *)x.k, (real *)x.v, &s);
  for (int i = 0; i < 16; i++) CHECK(out[i] == 0);
  CHECK(lse[0] == -INFINITY);
  free(x.q), free(x.k), free(x.v);
  d->destroy(d);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(attention_forward);
  RUN(attention_backward);
  if (on_cuda()) return TEST_END();   // the rest is of memory that the host reads; test_cuda.c has its like
  RUN(attention_decoding_is_the_full_pass);
  in_bf16(true);
  RUN(attention_forward);
  RUN(attention_backward);
  RUN(attention_decoding_is_the_full_pass);
  in_bf16(false);
  RUN(attention_unseen_keys_change_nothing);
  RUN(attention_backward_of_nothing_is_nothing);
  RUN(attention_forgets_and_keeps_its_bits);
  RUN(attention_of_no_sequences_is_nothing);
  RUN(attention_backward_breaks_no_later_key);
  RUN(attention_is_stable_and_honest);
  return TEST_END();
}
