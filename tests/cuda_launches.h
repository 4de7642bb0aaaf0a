// cuda_launches.h: owns the calls whose launches are golden (golden_launches.h): all operations, at the edges of tiles, blocks, tables and working memory.
#pragma once
#include "cuda_test.h"
#include "golden_launches.h"

// ---- launches, one by one: kernel (and so the width of an access and the tile), blocks, threads, shared memory ----

static char launched[1 << 17];
static size_t launched_bytes;
// Replaces `from` by `to`, which is not longer.
static bool shorten(char *line, const char *from, const char *to) {
  char *at = strstr(line, from);
  if (at) memmove(at + strlen(to), at + strlen(from), strlen(at + strlen(from)) + 1), memcpy(at, to, strlen(to));
  return at != NULL;
}
// Adds what was launched since the last call, each line behind `name`. Large tiles have the same places in both ways to multiply them.
static void note_launches(Device *d, const char *name, uint64_t before) {
  char *said = xstrdup(emulated_launches());
  uint64_t lines = 0;
  for (char *line = strtok(said, "\n"); line; line = strtok(NULL, "\n"), lines++) {
    while (shorten(line, "__nv_bfloat16", "bf16")) {}
    while (shorten(line, "(Direction)", "") || shorten(line, "(Activation)", "")) {}
    CHECK_MSG(!strstr(line, "128, true, ") || shorten(line, library == GEMM_WGMMA ? "128, true, true>" : "128, true, false>", "128>"), "%s: %s multiplies in the wrong way", name, line);
    launched_bytes += (size_t)snprintf(launched + launched_bytes, sizeof launched - launched_bytes, "%.60s: %.150s\n", name, line);
  }
  CHECK_MSG(lines == d->launches(d) - before, "%s: %d launches, %d are counted", name, (int)lines, (int)(d->launches(d) - before));
  free(said);
}
#define NOTE(name, call) do { emulated_launches(); const uint64_t before_ = d->launches(d); call; note_launches(d, name, before_); } while (0)

typedef struct { real *a, *b, *c, *e; acc *f, *g, *h, *i; int32_t *ids; scalar *stat; } Room;   // zeros, for any operation's arrays
static Room room_for(Device *d, size_t bytes) {
  return (Room){d->allocate(d, bytes), d->allocate(d, bytes), d->allocate(d, bytes), d->allocate(d, bytes), d->allocate(d, bytes), d->allocate(d, bytes), d->allocate(d, bytes), d->allocate(d, bytes),
                d->allocate(d, bytes), d->allocate(d, STAT_COUNT * sizeof(double))};
}

// Tensors of an update share no element.
static AdamWTensor part_of(Device *d, const Room *r, real *param, size_t at, size_t n) {
  return (AdamWTensor){.param = d->real_at(param, at), .grad = d->acc_at(r->f, at), .m = d->acc_at(r->g, at), .v = d->acc_at(r->h, at), .n = n};
}

static void note_streams(Device *d, const Room *r) {
  for (int kind = 0; kind < 3; kind++) {   // sixteen bytes at a time; rows of another length; an address between
    const size_t C = kind == 1 ? 83 : 96, W = 2 * C, rows = 35, HS = kind == 1 ? 22 : 32;
    real *a = kind == 2 ? d->real_at(r->a, 1) : r->a;
    acc *f = kind == 2 ? d->acc_at(r->f, 1) : r->f;
    const Dropout dropout = {.p = 0.5}, later = {.p = 0.5, .row0 = 3}, none = {.p = 0};
    NOTE("embedding", d->embedding_forward(d, a, r->ids, r->b, r->c, 5, 7, C, 0));
    NOTE("embedding backward", d->embedding_backward(d, r->g, r->h, a, r->ids, 5, 7, C, 70000));
    NOTE("dropout", d->dropout(d, a, rows, C, &dropout); d->dropout(d, a, rows, C, &later); d->dropout(d, a, rows, C, &none));
    NOTE("layernorm", d->layernorm_forward(d, r->b, r->c, r->g, r->h, a, r->e, r->e, NULL, rows, C, 1));
    NOTE("layernorm alone", d->layernorm_forward(d, d->real_at(r->b, 1), r->c, r->g, r->h, a, NULL, r->e, r->e, rows, C, 1));
    NOTE("rmsnorm", d->rmsnorm_forward(d, r->b, r->c, r->g, a, r->e, r->e, rows, C, 1));
    NOTE("layernorm backward", d->layernorm_backward(d, a, r->f, r->g, r->b, r->c, r->c, r->e, r->h, r->i, rows, C));
    NOTE("rmsnorm backward", d->rmsnorm_backward(d, a, r->f, r->b, NULL, r->c, r->e, r->h, rows, C));
    NOTE("residual", d->residual_forward(d, a, r->b, r->c, rows * C));
    for (int activation = ACTIVATION_GELU; activation <= ACTIVATION_SWIGLU; activation++) {
      NOTE("activation", d->activation_forward(d, a, r->b, rows, W, (Activation)activation));
      NOTE("activation backward", d->activation_backward(d, a, r->b, r->c, rows, W, (Activation)activation));
    }
    NOTE("rope", d->rope(d, a, r->f, 5, 7, 0, 3, HS, C, 1));
    NOTE("copy_rows", d->copy_rows(d, a, W, r->b, W, rows, C));
    NOTE("crossentropy", d->crossentropy(d, a, r->f, r->ids, 3, 8191, 8192 + (kind == 1), 1, WITH_GRADIENT); d->crossentropy(d, a, r->f, r->ids, 2, 8192, 8192 + (kind == 1), 1, WITHOUT_GRADIENT));
    NOTE("add", d->add_rows(d, f, r->g, NULL, rows, C, rows));
    NOTE("sums", d->sum(d, r->stat, f, 300); d->sumsq(d, r->stat, f, 4096); d->sumsq(d, r->stat, f, 4097); d->sumsq(d, r->stat, f, 1); d->sync(d));
    AdamWTensor t[3];
    for (size_t i = 0; i < 3; i++) t[i] = part_of(d, r, a, 8192 * i, (size_t[]){4096, 4097, 1}[i]);
    const AdamWSettings settings = some_settings();
    NOTE("adamw", d->adamw(d, t, 3, &settings, r->stat));
    NOTE("count", d->count_nonfinite_real(d, r->stat, a, 300); d->count_nonfinite_acc(d, r->stat, f, 300));
  }
  // one more than a table holds
  NOTE("many sums", for (size_t i = 0; i < 1025; i++) d->sumsq(d, r->stat, d->acc_at(r->f, i), 1); d->sync(d));
  AdamWTensor *many = xcalloc(2049, sizeof *many);
  const AdamWSettings settings = some_settings();
  for (size_t i = 0; i < 2049; i++) many[i] = part_of(d, r, r->a, 8 * i, i % 64 == 0);   // a tensor without elements has no block
  NOTE("adamw of many", d->adamw(d, many, 2049, &settings, r->stat));
  free(many);
  // how many slices, and rows short enough for registers
  static const size_t shapes[][2] = {{1, 96}, {32, 96}, {33, 96}, {64, 96}, {97, 96}, {200, 96}, {1001, 8}, {3, 255}, {3, 257}, {3, 512}, {3, 520}, {3, 1024}, {3, 1032}, {3, 2048}, {3, 2056}};
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
    NOTE("norm backward", d->layernorm_backward(d, r->a, r->f, r->g, r->b, r->c, r->c, r->e, r->h, r->i, shapes[i][0], shapes[i][1]));
  cuda_limit_work(2 * 2 * 96 * sizeof(float));
  NOTE("norm backward, room for two parts", d->layernorm_backward(d, r->a, r->f, r->g, r->b, r->c, r->c, r->e, r->h, r->i, 200, 96));
  cuda_limit_work(SIZE_MAX);
  NOTE("narrow norm backward", d->layernorm_backward(d, d->real_at(r->a, 1), r->f, r->g, r->b, r->c, r->c, r->e, r->h, r->i, 3, 256));
}

// So many threads that with a thread less, or more, to a block there would be another number of blocks.
static void note_edges(Device *d, const Room *r) {
  const Dropout dropout = {.p = 0.5};
  for (int wide = 0; wide < 2; wide++)
    for (size_t n = 256; n <= 257; n++) {
      const size_t W = wide ? 16 / d->real_size : 1;
      real *a = wide ? r->a : d->real_at(r->a, 1);
      NOTE("edge, embedding", d->embedding_forward(d, a, r->ids, r->b, r->c, 1, n, W, 0));
      NOTE("edge, embedding backward", d->embedding_backward(d, NULL, r->h, a, r->ids, 1, n, W, 8));
      NOTE("edge, dropout", d->dropout(d, a, n, 4, &dropout));
      NOTE("edge, residual", d->residual_forward(d, a, r->b, r->c, n * W));
      for (int activation = ACTIVATION_GELU; activation <= ACTIVATION_SWIGLU; activation++) {
        NOTE("edge, activation", d->activation_forward(d, a, r->b, n, activation * W, (Activation)activation));   // SwiGLU halves it
        NOTE("edge, activation backward", d->activation_backward(d, a, r->b, r->c, n, activation * W, (Activation)activation));
      }
      NOTE("edge, rope", d->rope(d, a, r->f, 1, n, 0, 1, 2 * W, 2 * W, 1));
      NOTE("edge, copy_rows", d->copy_rows(d, a, W, r->b, W, n, W));
      NOTE("edge, add", d->add_rows(d, r->f, r->g, NULL, n, wide ? 4 : 1, n));
    }
}

static void note_products(Device *d, const Room *r) {
  static const size_t shapes[][3] = {   // m, n, k: edges of tiles, one row or column of them, sums cut in parts or just too short for it
    {64, 64, 64}, {64, 256, 64}, {72, 72, 64}, {136, 64, 64}, {136, 72, 64}, {72, 136, 72}, {129, 130, 67}, {72, 72, 1016}, {72, 72, 1024}, {72, 72, 1536}, {72, 72, 2048}, {136, 136, 1024}, {136, 72, 2568},
    {256, 72, 1024}, {88, 136, 1024}};   // the sum of their parts has 19 x 256 threads, and 12 x 256 + 8
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
    const size_t m = shapes[i][0], n = shapes[i][1], k = shapes[i][2];
    if (k < 200) {
      NOTE("product", d->linear_forward(d, r->a, NULL, r->b, r->c, NULL, m, k, n, ACTIVATION_NONE));
      NOTE("product, gelu", d->linear_forward(d, NULL, r->e, r->b, r->c, NULL, m, k, n, ACTIVATION_GELU));
      NOTE("product, swiglu", d->linear_forward(d, r->a, r->e, r->b, r->c, NULL, m, k, n, ACTIVATION_SWIGLU));
    }
    NOTE("product, input", d->linear_backward_input(d, r->a, r->b, r->c, m, n, k));
    NOTE("product, weight", d->linear_backward_weight(d, r->f, r->g, r->b, r->c, k, n, m));
  }
  NOTE("product, weight, without bias", d->linear_backward_weight(d, r->f, NULL, r->b, r->c, 1024, 72, 72));
  NOTE("product at odd addresses", d->linear_forward(d, d->real_at(r->a, 1), NULL, r->b, r->c, NULL, 136, 64, 136, ACTIVATION_NONE));
  NOTE("product of odd addresses", d->linear_forward(d, r->a, NULL, d->real_at(r->b, 1), r->c, NULL, 136, 64, 136, ACTIVATION_NONE));
  NOTE("product, input, at odd addresses", d->linear_backward_input(d, d->real_at(r->a, 1), r->b, r->c, 72, 72, 1024));
  NOTE("product, weight, at odd addresses", d->linear_backward_weight(d, d->acc_at(r->f, 1), r->g, r->b, r->c, 1024, 72, 72));
}

static void note_attention(Device *d, const Room *r) {
  static const size_t shapes[][4] = {{64, 2, 1, 32}, {65, 2, 2, 64}, {9, 4, 2, 96}, {9, 1, 1, 128}, {33, 2, 1, 40}, {9, 2, 1, 33}};   // T, heads, key heads, head size
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
    for (int odd = 0; odd < 2; odd++) {   // an address between
      AttentionShape s = {.B = 2, .T = shapes[i][0], .S = shapes[i][0], .NH = shapes[i][1], .KVH = shapes[i][2], .HS = shapes[i][3], .scale = 0.1};
      s.q_stride = s.out_stride = s.NH * s.HS, s.kv_stride = s.KVH * s.HS, s.q_batch = s.out_batch = s.T * s.q_stride, s.kv_batch = s.S * s.kv_stride;
      real *out = odd ? d->real_at(r->a, 1) : r->a;
      NOTE("attention", d->attention_forward(d, out, r->f, r->b, r->c, r->c, &s));
      NOTE("attention backward", d->attention_backward(d, out, r->b, r->c, r->e, r->e, r->e, r->e, r->e, r->g, &s));
      if (odd || i) continue;
      s.scale = 0;   // the flash family takes the largest product for the largest score
      NOTE("attention without a scale", d->attention_forward(d, out, r->f, r->b, r->c, r->c, &s));
      s.scale = 0.1, s.q_batch = s.out_batch = s.T * (s.q_stride + 8), s.kv_batch = s.S * (s.kv_stride + 8);
      AttentionShape uneven[6] = {s, s, s, s, s, s};   // one number that is no multiple of 16 bytes
      uneven[0].q_stride++, uneven[1].kv_stride++, uneven[2].out_stride++, uneven[3].q_batch++, uneven[4].kv_batch++, uneven[5].out_batch++;
      for (int which = 0; which < 6; which++) NOTE("attention, rows or sequences at odd places", d->attention_forward(d, out, r->f, r->b, r->c, r->c, &uneven[which]));
      s.HS = 33, s.q_stride = s.out_stride = 72, s.kv_stride = 40, s.q_batch = s.out_batch = s.T * 72, s.kv_batch = s.S * 40;
      NOTE("attention, odd heads at even places", d->attention_forward(d, out, r->f, r->b, r->c, r->c, &s));
    }
}

// Every number of a launch is in golden_launches.h, for two multiprocessors and, of products, for six.
static void launches_are_golden(void) {
  if (!emulated_launches) return;   // on a GPU nobody sees them
  launched_bytes = 0;
  for (int many = 0; many < 2; many++) {
    Device *d = opened_with(many ? 6 : 2);
    const Room r = room_for(d, (size_t)1 << 21);
    if (!many) note_streams(d, &r), note_edges(d, &r), note_attention(d, &r);
    note_products(d, &r);
    d->destroy(d);
  }
  const char *want = golden_launches[precision], *got = launched;
  if (getenv("GOLDEN_LAUNCHES")) { printf("%s#\n", launched); return; }
  for (int line = 1, bad = 0; (*want || *got) && bad < 5; line++) {
    const size_t n = strcspn(want, "\n"), m = strcspn(got, "\n");
    const bool same = n == m && !memcmp(want, got, n);
    CHECK_MSG(same, "line %d: %.*s; golden: %.*s", line, (int)m, got, (int)n, want);
    bad += !same;
    want += n + (want[n] != 0), got += m + (got[m] != 0);
  }
}
