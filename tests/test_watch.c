// test_watch.c: owns the proof of the device that watches (watch.c): every operation is passed on once with its own arguments, and noted with name, shape, bytes and
// arithmetic, or its outputs checked; what is printed of it adds up. The inner device only notes what it is asked for, and takes a known time.
// The whole of it is tests/golden_watch.txt, held against the contract's formulas by hand. `GPT_TEST_GOLDEN=write test_watch` writes it anew.
#include "test.h"
#include "../util.h"
#include "../watch.h"

static Buffer said;              // what the inner device was asked for
static char *arena;              // of the model whose places have names
static size_t arena_bytes;
static uint64_t launched;
static const real *bad_place;    // where numbers are not finite, in check mode

static Device inner;
static void of_inner(const Device *d) { CHECK(d == &inner); }   // not the one that watches: its state is another one

static size_t released;          // bytes, the last time
static void *note_arena(Device *d, size_t bytes) {
  of_inner(d);
  arena_bytes = bytes, arena = xcalloc(bytes, 1);
  if (bytes == 64) memset(arena, 0x11, bytes);       // a counter: memory of a device is not zero
  return arena;
}
static void note_release(Device *d, void *p, size_t bytes) { of_inner(d); released = bytes; free(p); }

// An argument as text: pointers as their number of 64 bytes in the arena, NULL as -1
static long long of(const void *p) { return p ? (long long)((const char *)p - arena) / 64 : -1; }
#define ASKED(...) buffer_printf(&said, __VA_ARGS__)

static void fake_zero(Device *d, void *p, size_t bytes) { of_inner(d); if ((char *)p >= arena && (char *)p < arena + arena_bytes) ASKED("zero %lld %zu\n", of(p), bytes); else memset(p, 0, bytes); }
static void fake_copy(Device *d, void *a, const void *b, size_t n) { of_inner(d); ASKED("copy %lld %lld %zu\n", of(a), of(b), n); }
static void fake_upload_real(Device *d, real *p, const double *x, size_t n) { of_inner(d); ASKED("upload_real %lld %g %zu\n", of(p), *x, n); }
static void fake_upload_acc(Device *d, acc *p, const double *x, size_t n) { of_inner(d); ASKED("upload_acc %lld %g %zu\n", of(p), *x, n); }
static void fake_upload_real_float(Device *d, real *p, const float *x, size_t n) { of_inner(d); ASKED("upload_real_float %lld %g %zu\n", of(p), *x, n); }
static void fake_upload_acc_float(Device *d, acc *p, const float *x, size_t n) { of_inner(d); ASKED("upload_acc_float %lld %g %zu\n", of(p), *x, n); }
static void fake_upload_ids(Device *d, int32_t *p, const int32_t *x, size_t n) { of_inner(d); ASKED("upload_ids %lld %d %zu\n", of(p), *x, n); }
static void fake_download_real(Device *d, double *x, const real *p, size_t n) { of_inner(d); *x = 5; ASKED("download_real %lld %zu\n", of(p), n); }
static void fake_download_acc(Device *d, double *x, const acc *p, size_t n) { of_inner(d); *x = 6; ASKED("download_acc %lld %zu\n", of(p), n); }
static void fake_download_stat(Device *d, double *x, const scalar *p, size_t n) { of_inner(d); CHECK_EQ(n, 1); memcpy(x, p, n * sizeof *x); }
static void fake_sync(Device *d) { of_inner(d); usleep(1000); }
static uint64_t fake_launches(const Device *d) { of_inner(d); usleep(1000); return launched; }
static double fake_bandwidth(Device *d) { of_inner(d); return 2e9; }
static void fake_embedding_forward(Device *d, real *a, const int32_t *b, const real *c, const real *e, size_t B, size_t T, size_t C, size_t p) { of_inner(d); launched += 1; ASKED("embedding_forward %lld %lld %lld %lld %zu %zu %zu %zu\n", of(a), of(b), of(c), of(e), B, T, C, p); }
static void fake_embedding_backward(Device *d, acc *a, acc *b, const real *c, const int32_t *e, size_t B, size_t T, size_t C, size_t V) { of_inner(d); launched += 2; ASKED("embedding_backward %lld %lld %lld %lld %zu %zu %zu %zu\n", of(a), of(b), of(c), of(e), B, T, C, V); }
static void fake_dropout(Device *d, real *a, size_t r, size_t w, const Dropout *x) { of_inner(d); launched += 3; ASKED("dropout %lld %zu %zu %d\n", of(a), r, w, x != NULL); }
static void fake_layernorm_forward(Device *d, real *a, real *b, acc *c, acc *e, const real *f, const real *g, const real *h, const real *i, size_t r, size_t C, double eps) { of_inner(d); launched += 5; ASKED("layernorm_forward %lld %lld %lld %lld %lld %lld %lld %lld %zu %zu %g\n", of(a), of(b), of(c), of(e), of(f), of(g), of(h), of(i), r, C, eps); }
static void fake_layernorm_backward(Device *d, real *a, acc *b, acc *c, const real *e, const real *f, const real *g, const real *h, const acc *i, const acc *j, size_t r, size_t C) { of_inner(d); launched += 7; ASKED("layernorm_backward %lld %lld %lld %lld %lld %lld %lld %lld %lld %zu %zu\n", of(a), of(b), of(c), of(e), of(f), of(g), of(h), of(i), of(j), r, C); }
static void fake_rmsnorm_forward(Device *d, real *a, real *b, acc *c, const real *e, const real *f, const real *g, size_t r, size_t C, double eps) { of_inner(d); ASKED("rmsnorm_forward %lld %lld %lld %lld %lld %lld %zu %zu %g\n", of(a), of(b), of(c), of(e), of(f), of(g), r, C, eps); }
static void fake_rmsnorm_backward(Device *d, real *a, acc *b, const real *c, const real *e, const real *f, const real *g, const acc *h, size_t r, size_t C) { of_inner(d); ASKED("rmsnorm_backward %lld %lld %lld %lld %lld %lld %lld %zu %zu\n", of(a), of(b), of(c), of(e), of(f), of(g), of(h), r, C); }
static void fake_residual_forward(Device *d, real *a, const real *b, const real *c, size_t n) { of_inner(d); ASKED("residual_forward %lld %lld %lld %zu\n", of(a), of(b), of(c), n); }
static void fake_linear_forward(Device *d, real *a, real *b, const real *c, const real *e, const real *f, size_t r, size_t I, size_t O, Activation x) { of_inner(d); launched += 11; ASKED("linear_forward %lld %lld %lld %lld %lld %zu %zu %zu %d\n", of(a), of(b), of(c), of(e), of(f), r, I, O, (int)x); }
static void fake_linear_backward_input(Device *d, real *a, const real *b, const real *c, size_t r, size_t I, size_t O) { of_inner(d); launched += 13; ASKED("linear_backward_input %lld %lld %lld %zu %zu %zu\n", of(a), of(b), of(c), r, I, O); }
static void fake_linear_backward_weight(Device *d, acc *a, acc *b, const real *c, const real *e, size_t r, size_t I, size_t O) { of_inner(d); launched += 17; ASKED("linear_backward_weight %lld %lld %lld %lld %zu %zu %zu\n", of(a), of(b), of(c), of(e), r, I, O); }
static void fake_activation_forward(Device *d, real *a, const real *b, size_t r, size_t w, Activation x) { of_inner(d); ASKED("activation_forward %lld %lld %zu %zu %d\n", of(a), of(b), r, w, (int)x); }
static void fake_activation_backward(Device *d, real *a, const real *b, const real *c, size_t r, size_t w, Activation x) { of_inner(d); ASKED("activation_backward %lld %lld %lld %zu %zu %d\n", of(a), of(b), of(c), r, w, (int)x); }
static void fake_rope_table(Device *d, acc *a, size_t c, size_t h, double t) { of_inner(d); ASKED("rope_table %lld %zu %zu %g\n", of(a), c, h, t); }
static void fake_rope(Device *d, real *a, const acc *b, size_t B, size_t T, size_t p, size_t h, size_t H, size_t s, int x) { of_inner(d); ASKED("rope %lld %lld %zu %zu %zu %zu %zu %zu %d\n", of(a), of(b), B, T, p, h, H, s, x); }
static void fake_attention_forward(Device *d, real *a, acc *b, const real *c, const real *e, const real *f, const AttentionShape *s) { of_inner(d); ASKED("attention_forward %lld %lld %lld %lld %lld %zu\n", of(a), of(b), of(c), of(e), of(f), s->HS); }
static void fake_attention_backward(Device *d, real *a, real *b, real *c, const real *e, const real *f, const real *g, const real *h, const real *i, const acc *j, const AttentionShape *s) { of_inner(d); ASKED("attention_backward %lld %lld %lld %lld %lld %lld %lld %lld %lld %zu\n", of(a), of(b), of(c), of(e), of(f), of(g), of(h), of(i), of(j), s->HS); }
static void fake_copy_rows(Device *d, real *a, size_t as, const real *b, size_t bs, size_t r, size_t w) { of_inner(d); ASKED("copy_rows %lld %zu %lld %zu %zu %zu\n", of(a), as, of(b), bs, r, w); }
static void fake_crossentropy(Device *d, real *a, acc *b, const int32_t *c, size_t r, size_t V, size_t s, double k, WantGradient w) { of_inner(d); launched += 19; ASKED("crossentropy %lld %lld %lld %zu %zu %zu %g %d\n", of(a), of(b), of(c), r, V, s, k, (int)w); }
static void fake_add_rows(Device *d, acc *a, const acc *b, const int32_t *i, size_t n, size_t C, size_t V) { of_inner(d); ASKED("add_rows %lld %lld %lld %zu %zu %zu\n", of(a), of(b), of(i), n, C, V); }
static void fake_sum(Device *d, scalar *a, const acc *b, size_t n) { of_inner(d); launched += 23; ASKED("sum %lld %lld %zu\n", of(a), of(b), n); }
static void fake_sumsq(Device *d, scalar *a, const acc *b, size_t n) { of_inner(d); ASKED("sumsq %lld %lld %zu\n", of(a), of(b), n); }
static void fake_adamw(Device *d, const AdamWTensor *t, size_t n, const AdamWSettings *s, const scalar *p) { of_inner(d); ASKED("adamw %zu %zu %g %lld\n", t[0].n, n, s->lr, of(p)); }
static void fake_refresh(Device *d, const real *p, size_t n) { of_inner(d); ASKED("refresh %lld %zu\n", of(p), n); }
static void fake_count_nonfinite_real(Device *d, scalar *out, const real *x, size_t n) { of_inner(d); ASKED("  numbers of %lld %zu\n", of(x), n); if (x == bad_place) *(double *)(void *)out += 12; }
static void fake_count_nonfinite_acc(Device *d, scalar *out, const acc *x, size_t n) { of_inner(d); ASKED("  sums of %lld %zu\n", of(x), n); if ((const void *)x == (const void *)bad_place) *(double *)(void *)out += 1; }

static Gpt *model;
static void make_inner(void) {
  Device *cpu = cpu_device(1);
  inner = *cpu;
  inner.allocate = note_arena, inner.release = note_release, inner.launches = fake_launches, inner.measure_bandwidth = fake_bandwidth;
  inner.real_size = 2, inner.acc_size = 4, inner.real_is_acc = 0;
  const GptOptions o = {.config = {.family = FAMILY_GPT2, .layers = 2, .heads = 4, .kv_heads = 4, .channels = 24, .context = 13, .ffn = 37, .vocab = 29, .bias = true, .tie = false, .norm_eps = 1e-5},
                        .purpose = PURPOSE_TRAIN, .B = 3, .T = 7};
  inner.zero = fake_zero;
  model = gpt_create(&inner, &o);
#define FAKE(op) inner.op = fake_##op
  FAKE(copy); FAKE(upload_real); FAKE(upload_acc); FAKE(upload_real_float); FAKE(upload_acc_float); FAKE(upload_ids); FAKE(download_real); FAKE(download_acc); FAKE(download_stat); FAKE(sync);
  FAKE(embedding_forward); FAKE(embedding_backward); FAKE(dropout); FAKE(layernorm_forward); FAKE(layernorm_backward); FAKE(rmsnorm_forward); FAKE(rmsnorm_backward); FAKE(residual_forward);
  FAKE(linear_forward); FAKE(linear_backward_input); FAKE(linear_backward_weight); FAKE(activation_forward); FAKE(activation_backward); FAKE(rope_table); FAKE(rope); FAKE(attention_forward);
  FAKE(attention_backward); FAKE(copy_rows); FAKE(crossentropy); FAKE(add_rows); FAKE(sum); FAKE(sumsq); FAKE(adamw); FAKE(refresh); FAKE(count_nonfinite_real); FAKE(count_nonfinite_acc);
#undef FAKE
  said.len = 0;
}

// The first place of the model with this name; +i: i times 64 bytes behind it
static void *at(const char *name, int i) {
  for (char *p = arena; p < arena + arena_bytes; p += 64) if (!strcmp(gpt_name_at(model, p), name)) return p + 64 * i;
  printf("  no place is called %s\n", name);
  abort();
}
#define R(name, i) ((real *)at(name, i))
#define A(name, i) ((acc *)at(name, i))
#define S(name, i) ((scalar *)at(name, i))

// Every operation, with and without what may be left out, of a size that shows in megabytes. No operation touches memory.
static void every_operation(Device *d) {
  static const char qkv[] = "layer 1 qkv", grad[] = "gradient of transformer.h.0.mlp.c_fc.weight", weight[] = "transformer.h.1.mlp.c_fc.weight";
  const AttentionShape s = {.B = 3, .T = 10, .S = 14, .position = 2, .NH = 12000, .KVH = 4000, .HS = 64, .q_stride = 700, .kv_stride = 701, .out_stride = 702, .q_batch = 64, .kv_batch = 96, .out_batch = 128};
  AttentionShape full = s;
  AdamWTensor tensors[2] = {{.n = 1000000}, {.n = 234567}};
  const AdamWSettings settings = {.lr = 0.5};
  const Dropout drop = {0};
  full.mask = MASK_FULL;
  int32_t *ids = at(qkv, 1);
  d->zero(d, at(qkv, 0), 1234567);
  d->copy(d, at(weight, 0), at(grad, 0), 2345678);
  d->embedding_forward(d, R(qkv, 0), ids, R(weight, 0), R(weight, 1), 100, 30, 700, 5);
  d->embedding_forward(d, R(qkv, 0), ids, R(weight, 0), NULL, 100, 30, 700, 5);
  d->embedding_backward(d, A(grad, 0), A(grad, 1), R(qkv, 0), ids, 100, 30, 700, 5000);
  d->embedding_backward(d, A(grad, 0), NULL, R(qkv, 0), ids, 100, 30, 700, 5000);
  d->embedding_backward(d, NULL, A(grad, 1), R(qkv, 0), ids, 100, 30, 700, 5000);
  d->dropout(d, R(qkv, 0), 1000, 703, &drop);
  d->layernorm_forward(d, R(qkv, 0), R(qkv, 1), A(grad, 0), A(grad, 1), R(qkv, 2), R(qkv, 3), R(weight, 0), R(weight, 1), 1000, 703, 0.25);
  d->layernorm_forward(d, NULL, R(qkv, 1), A(grad, 0), A(grad, 1), R(qkv, 2), NULL, R(weight, 0), R(weight, 1), 1000, 703, 0.25);
  d->layernorm_backward(d, R(qkv, 0), A(grad, 0), A(grad, 1), R(qkv, 1), R(qkv, 2), R(qkv, 3), R(weight, 0), A(grad, 2), A(grad, 3), 1000, 703);
  d->layernorm_backward(d, R(qkv, 0), A(grad, 0), NULL, R(qkv, 1), NULL, R(qkv, 3), R(weight, 0), A(grad, 2), A(grad, 3), 1000, 703);
  d->rmsnorm_forward(d, R(qkv, 0), R(qkv, 1), A(grad, 0), R(qkv, 2), R(qkv, 3), R(weight, 0), 1000, 703, 0.125);
  d->rmsnorm_forward(d, NULL, R(qkv, 1), A(grad, 0), R(qkv, 2), NULL, R(weight, 0), 1000, 703, 0.125);
  d->rmsnorm_backward(d, R(qkv, 0), A(grad, 0), R(qkv, 1), R(qkv, 2), R(qkv, 3), R(weight, 0), A(grad, 2), 1000, 703);
  d->rmsnorm_backward(d, R(qkv, 0), A(grad, 0), R(qkv, 1), NULL, R(qkv, 3), R(weight, 0), A(grad, 2), 1000, 703);
  d->residual_forward(d, R(qkv, 0), R(qkv, 1), R(qkv, 2), 765432);
  d->linear_forward(d, R(qkv, 0), NULL, R(qkv, 1), R(weight, 0), R(weight, 1), 1000, 703, 411, ACTIVATION_NONE);
  d->linear_forward(d, R(qkv, 0), R(qkv, 2), R(qkv, 1), R(weight, 0), NULL, 1000, 703, 411, ACTIVATION_GELU);
  d->linear_forward(d, NULL, R(qkv, 2), R(qkv, 1), R(weight, 0), NULL, 1000, 703, 412, ACTIVATION_SWIGLU);
  d->linear_backward_input(d, R(qkv, 0), R(qkv, 1), R(weight, 0), 1000, 703, 411);
  d->linear_backward_weight(d, A(grad, 0), A(grad, 1), R(qkv, 0), R(qkv, 1), 1000, 703, 411);
  d->linear_backward_weight(d, A(grad, 0), NULL, R(qkv, 0), R(qkv, 1), 1000, 703, 411);
  d->activation_forward(d, R(qkv, 0), R(qkv, 1), 1000, 704, ACTIVATION_GELU);
  d->activation_forward(d, R(qkv, 0), R(qkv, 1), 1000, 704, ACTIVATION_SWIGLU);
  d->activation_backward(d, R(qkv, 0), R(qkv, 1), R(qkv, 2), 1000, 704, ACTIVATION_GELU);
  d->activation_backward(d, R(qkv, 0), R(qkv, 1), R(qkv, 2), 1000, 704, ACTIVATION_SWIGLU);
  d->rope_table(d, A(grad, 0), 3000, 64, 10000);
  d->rope(d, R(qkv, 0), A(grad, 0), 7, 300, 11, 5, 64, 333, 1);
  d->rope(d, R(qkv, 0), A(grad, 0), 7, 300, 0, 5, 64, 333, -1);
  d->attention_forward(d, R(qkv, 0), A(grad, 0), R(qkv, 4), R(qkv, 5), R(qkv, 6), &s);
  d->attention_forward(d, R(qkv, 0), A(grad, 0), R(qkv, 4), R(qkv, 5), R(qkv, 6), &full);
  d->attention_backward(d, R(qkv, 0), R(qkv, 1), R(qkv, 2), R(qkv, 3), R("layer 0 qkv", 0), R(qkv, 5), R(qkv, 6), R(qkv, 7), A(grad, 0), &s);
  d->copy_rows(d, R(qkv, 0), 71, R(qkv, 1), 72, 1000, 73);
  d->crossentropy(d, R(qkv, 0), A(grad, 0), ids, 1000, 500, 512, 0.5, WITH_GRADIENT);
  d->crossentropy(d, R(qkv, 0), A(grad, 0), ids, 1000, 500, 512, 0.5, WITHOUT_GRADIENT);
  d->add_rows(d, A(grad, 0), A(grad, 1), ids, 1234, 280, 5000);
  d->sum(d, S(qkv, 0), A(grad, 1), 456789);
  d->sumsq(d, S(qkv, 0), A(grad, 1), 567890);
  d->adamw(d, tensors, 2, &settings, S(qkv, 0));
  d->refresh(d, R(weight, 0), 678901);
}
static void every_transfer(Device *d) {     // passed on, and no operation of a step
  const double x = 1.5;
  const float f = 2.5f;
  const int32_t id = 7;
  double y = 0;
  d->upload_real(d, R("layer 1 qkv", 0), &x, 3);
  d->upload_acc(d, A("layer 1 qkv", 1), &x, 4);
  d->upload_real_float(d, R("layer 1 qkv", 2), &f, 5);
  d->upload_acc_float(d, A("layer 1 qkv", 3), &f, 6);
  d->upload_ids(d, at("layer 1 qkv", 4), &id, 7);
  d->download_real(d, &y, R("layer 1 qkv", 5), 8);
  CHECK(y == 5);
  d->download_acc(d, &y, A("layer 1 qkv", 6), 9);
  CHECK(y == 6);
  d->download_stat(d, &y, (const scalar *)(const void *)&x, 1);
  CHECK(y == 1.5);
  double counted[1] = {0};
  d->count_nonfinite_real(d, (scalar *)(void *)counted, R("layer 1 qkv", 7), 10);
  d->count_nonfinite_acc(d, (scalar *)(void *)counted, A("layer 1 qkv", 8), 11);
  const double start = seconds_now();
  d->sync(d);
  CHECK(seconds_now() - start >= 0.001);
  void *p = arena;
  const size_t n = arena_bytes;
  void *q = d->allocate(d, 77);
  CHECK(arena == q && arena_bytes == 77);
  d->release(d, q, 77);
  CHECK_EQ(released, 77);
  arena = p, arena_bytes = n;
}

static char *printed(const Device *d, double seconds) {
  char *text = NULL;
  size_t n = 0;
  FILE *f = open_memstream(&text, &n);
  watch_print(d, f, seconds);
  fclose(f);
  return text;
}
static Device *watching(WatchMode mode) {
  char *a = arena;
  const size_t n = arena_bytes;
  Device *d = watch_device(&inner, model, mode);
  CHECK_EQ(arena_bytes, 64);       // its counter
  arena = a, arena_bytes = n;
  return d;
}

// Arithmetic in millions: two for each multiplication of a product; q.k and p.v in attention, twice and a half as much in its backward pass; a square and a sum
static int attentions;           // so far: the first one's mask is causal, the second one's full
static double mflop_of(const char *line) {
  const double pairs = 3 * 12000 * 64e-6 * 10;
  if (!strncmp(line, "linear", 6)) return 2e-6 * 1000 * 703 * (strstr(line, "-> 412") ? 412 : 411);
  if (!strncmp(line, "attention_backward", 18)) return 10 * pairs * (2 + 5.5);
  if (!strncmp(line, "attention_forward", 17)) return 4 * pairs * (attentions++ ? 14 : 2 + 5.5);
  return strncmp(line, "sumsq", 5) ? 0 : 2e-6 * 567890;
}

// Of printed lines what does not depend on the clock goes to `golden`; what does must add up.
static void check_printed(char *text, Buffer *golden, double step_ms) {
  double all = 0, by_kind = 0, total = -1, share = 0, sum_mflop = 0, kinds_mflop = 0, kinds_ms = 0;
  attentions = 0;
  double kind_ms[40], shares[40];
  int operations = 0, kinds = 0, last_ms = 1 << 30;
  for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
    double ms, mb, gbs, gflops, percent, memory;
    char name[40];
    int count;
    if (!strncmp(line, "trace  operation", 16)) { buffer_printf(golden, "%s\n", line); continue; }
    if (!strncmp(line, "trace  ", 7)) {
      CHECK_MSG(sscanf(line + 7 + 24 + 43 + 33, "%lf %lf %lf %lf", &ms, &mb, &gbs, &gflops) == 4, "%s", line);
      CHECK_MSG(ms >= 1 && fabs(gbs * ms - mb) <= 0.06 * ms + 0.001 * gbs + 0.001, "%s", line);        // MB/ms = GB/s; both are rounded
      const double mflop = mflop_of(line + 7);
      CHECK_MSG(fabs(gflops * ms - mflop) <= 0.06 * ms + 0.001 * gflops, "%s: %g MFLOP expected", line, mflop);
      buffer_printf(golden, "%.*s %.3f MB\n", 7 + 24 + 43 + 33, line, mb);
      all += ms, sum_mflop += mflop;
      operations++;
    } else if (sscanf(line, "sum %d operations %lf ms, %lf%% of the step's %lf", &count, &total, &percent, &ms) == 4) {
      CHECK_EQ(count, operations);
      CHECK_MSG(fabs(total - all) <= 1e-3 * operations, "%s: %g in all", line, all);
      // what noting took, at least a millisecond for each, belongs to no operation
      CHECK_MSG(ms < step_ms - operations && ms > step_ms - 3 * operations - 200, "%s", line);
      CHECK_MSG(total <= ms && fabs(percent - 100 * total / ms) < 0.06, "%s", line);
      for (int k = 0; k < kinds; k++) CHECK_MSG(fabs(shares[k] - 100 * kind_ms[k] / ms) < 0.051 + 0.05 / ms, "%g ms are not %g%% of %g ms", kind_ms[k], shares[k], ms);
      CHECK_MSG(fabs(share - percent) < 0.06 * 30, "%g and %g", share, percent);
    } else if (!strncmp(line, "sum    memory", 13) || strstr(line, "kernels launched")) buffer_printf(golden, "%s\n", line);
    else {
      snprintf(name, sizeof name, "%.23s", line + 7);
      CHECK_MSG(sscanf(line + 7 + 23, "%lf ms %lf%% %lf GB/s %lf", &ms, &percent, &gbs, &gflops) == 4, "%s", line);
      kinds_mflop += gflops * ms, kinds_ms += ms;
      CHECK_MSG(ms <= last_ms, "%s: not the slowest first", line);
      last_ms = (int)ms + 1;
      by_kind += ms, share += percent;
      if (kinds < 40) kind_ms[kinds] = ms, shares[kinds++] = percent;
      char *behind = strstr(line, "GFLOP/s") + 7, *of_memory = strstr(line, " MB,");
      if (of_memory) {
        CHECK_MSG(sscanf(of_memory, " MB, %lf%%", &memory) == 1 && fabs(memory - 100 * gbs / 2) < 0.51 + 100 * 0.05 / 2, "%s", line);
        of_memory[4] = 0;
      }
      buffer_printf(golden, "sum    %s%s\n", name, behind);
    }
  }
  CHECK_MSG(fabs(by_kind - total) <= 1e-3 * operations, "%g and %g", by_kind, total);
  CHECK_MSG(fabs(kinds_mflop - sum_mflop) <= 0.06 * kinds_ms + 1e-3 * sum_mflop, "%g and %g MFLOP", kinds_mflop, sum_mflop);
}

// Shares of one operation that takes about as long as the step and moves far more than a slow memory could: so large that a hundredth of them shows.
static double slow_bandwidth(Device *d) { of_inner(d); return 1e7; }
static void shares(void) {
  make_inner();
  inner.measure_bandwidth = slow_bandwidth, inner.launches = NULL;
  Device *d = watching(WATCH_TRACE);
  d->residual_forward(d, R("layer 1 qkv", 0), R("layer 1 qkv", 1), R("layer 1 qkv", 2), 765432);
  char *text = printed(d, 1), *at = strstr(text, "of the step's ");
  double rest = 0, ms = 0, step = 0, share = 0, all = 0, of_all = 0, mb = 0, memory = 0;
  CHECK(at && sscanf(at, "of the step's %lf", &rest) == 1);
  free(text);
  text = printed(d, 1.001 - 1e-3 * rest);           // what noting took, and a millisecond
  at = strstr(text, "sum    residual_forward");
  CHECK_MSG(at && sscanf(at + 7 + 23, "%lf ms %lf%%", &ms, &share) == 2 && sscanf(strstr(at, " MB, "), " MB, %lf%%", &memory) == 1, "%s", text);
  at = strstr(text, "trace  residual_forward");
  CHECK_MSG(at && sscanf(at + 7 + 24 + 43 + 33, "%*f %lf", &mb) == 1, "%s", text);      // to three decimals
  at = strstr(text, "sum    1 operations ");
  CHECK_MSG(at && sscanf(at, "sum    1 operations %lf ms, %lf%% of the step's %lf", &all, &of_all, &step) == 3, "%s", text);
  // three decimals of either time, and one of the share
  const double tolerance = 0.05 + 100 * 5e-4 / step * (1 + ms / step) + 1e-6;
  CHECK_NEAR(step, 1, 0.002, "the step is what is not noting");
  CHECK_NEAR(share, 100 * ms / step, tolerance, "%s", text);
  CHECK_NEAR(of_all, 100 * all / step, tolerance, "%s", text);
  CHECK_NEAR(memory, 100 * mb / ms * 1e9 / 1e7, 100 * mb / ms * 100 * (5e-4 / ms + 5e-4 / mb) + 0.5, "%s", text);
  CHECK(tolerance < share / 100 / 2);
  free(text);
  watch_destroy(d);
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
static void sort_lines(Buffer *b, size_t from) {      // of equally slow operations any may come first
  char *lines[100], *all = xstrdup(b->data + from);
  size_t n = 0;
  for (char *line = strtok(all, "\n"); line && n < 100; line = strtok(NULL, "\n")) lines[n++] = line;
  qsort(lines, n, sizeof *lines, by_text);
  b->len = from;
  for (size_t i = 0; i < n; i++) buffer_printf(b, "%s\n", lines[i]);
  free(all);
}

static void golden(void) {
  Buffer out = {0};
  make_inner();
  Device *d = watching(WATCH_TRACE);
  CHECK_STR(d->name, inner.name);
  every_transfer(d);
  const double start = seconds_now();
  every_operation(d);
  const double step = seconds_now() - start;
  CHECK(watch_finding(d) == NULL);
  buffer_append(&out, said.data, said.len);
  const size_t from = out.len;
  char *text = printed(d, step);
  check_printed(text, &out, 1e3 * step);
  sort_lines(&out, from);
  free(text);
  watch_destroy(d);
  // nothing is known of the memory's speed, and nothing is launched
  inner.measure_bandwidth = NULL, inner.launches = NULL;
  d = watching(WATCH_TRACE);
  d->residual_forward(d, R("layer 1 qkv", 0), R("layer 1 qkv", 1), R("layer 1 qkv", 2), 765432);
  text = printed(d, 1);
  CHECK(!strstr(text, "launch") && !strstr(text, "memory"));
  free(text);
  d->destroy(d);               // as its users may: the inner device lives on
  CHECK_EQ(released, 64);
  said.len = 0;
  d = watching(WATCH_CHECK);
  every_operation(d);
  CHECK(watch_finding(d) == NULL);
  buffer_append(&out, said.data, said.len);
  text = printed(d, 1);
  CHECK(strstr(text, "sum    0 operations 0.000 ms, 0.0% of the step's 1000.000 ms"));
  free(text);
  watch_destroy(d);
  // in fp64 or fp32 a master copy is the weights themselves
  inner.real_is_acc = 1, inner.launches = fake_launches;
  d = watching(WATCH_TRACE);
  AdamWTensor tensor = {.n = 1000000};
  d->adamw(d, &tensor, 1, &(AdamWSettings){0}, S("layer 1 qkv", 0));
  text = printed(d, 1);
  buffer_printf(&out, "%.*s\n", 7 + 24 + 43 + 33, strstr(text, "\ntrace  ") + 1);
  CHECK(strstr(text, "    28.000 "));      // MB: reads g, m, v, w and writes m, v, w
  free(text);
  watch_destroy(d);
  static const char path[] = "tests/golden_watch.txt";
  const char *wish = getenv("GPT_TEST_GOLDEN");
  if (wish && !strcmp(wish, "write")) replace_file(path, out.data, out.len);
  size_t n;
  char *expected = read_file(path, "golden", 1 << 20, &n), *a = expected, *b = out.data;
  for (int line = 1; *a || *b; line++) {
    const size_t na = strcspn(a, "\n"), nb = strcspn(b, "\n");
    CHECK_MSG(na == nb && !memcmp(a, b, na), "line %d: \"%.*s\", expected \"%.*s\"", line, (int)nb, b, (int)na, a);
    a += na + (a[na] != 0), b += nb + (b[nb] != 0);
  }
  free(expected);
  buffer_free(&out);
}

// The counter is set to zero before the first output, of whatever kind.
static void a_counter_begins_at_zero(void) {
  make_inner();
  for (int kind = 0; kind < 2; kind++) {
    Device *d = watching(WATCH_CHECK);
    if (kind) d->add_rows(d, A("layer 1 qkv", 1), A("layer 1 qkv", 2), NULL, 3, 5, 7);
    else d->residual_forward(d, R("layer 1 qkv", 0), R("layer 1 qkv", 1), R("layer 1 qkv", 2), 7);
    CHECK(watch_finding(d) == NULL);
    watch_destroy(d);
  }
}

// The first bad output counts, of whatever kind, with its name; nothing is looked at behind it.
static void findings(void) {
  make_inner();
  Device *d = watching(WATCH_CHECK);
  bad_place = R("layer 1 qkv", 2);
  every_operation(d);
  CHECK_STR(watch_finding(d), "linear_forward: layer 1 qkv: 12 of 411000 numbers are not finite");
  const size_t seen = said.len;
  d->add_rows(d, A("gradient of transformer.h.0.mlp.c_fc.weight", 0), A("layer 1 qkv", 1), NULL, 3, 5, 7);
  CHECK_MSG(!strstr(said.data + seen, "sums of"), "looked at after a finding: %s", said.data + seen);
  watch_destroy(d);
  d = watching(WATCH_CHECK);
  bad_place = R("gradient of transformer.h.0.mlp.c_fc.weight", 1);
  every_operation(d);
  CHECK_STR(watch_finding(d), "embedding_backward: gradient of transformer.h.0.mlp.c_fc.weight: 1 of 21000 numbers are not finite");
  watch_destroy(d);
  d = watching(WATCH_CHECK);
  bad_place = R("layer 1 qkv", 0);
  d->layernorm_backward(d, R("layer 1 qkv", 0), A("layer 1 qkv", 1), NULL, R("layer 1 qkv", 1), NULL, R("layer 1 qkv", 3), R("layer 1 qkv", 0), A("layer 1 qkv", 2), A("layer 1 qkv", 3), 10, 7);
  CHECK_STR(watch_finding(d), "layernorm_backward: gradient of layer 1 qkv: 12 of 70 numbers are not finite");
  watch_destroy(d);
  bad_place = NULL;
}

// Kernels of a block: of what lies between the embedding and the last norm (which is followed by the head and the classifier), and between the last norm's gradient
// and the embedding's.
static void one_step(Device *d, int forward, int backward, bool norm) {
  real *x = R("layer 1 qkv", 0);
  acc *g = A("layer 1 qkv", 1);
  d->embedding_forward(d, x, NULL, x, x, 1, 1, 1, 0);                                       // 1
  for (int b = 0; b < forward; b++) d->linear_forward(d, x, NULL, x, x, NULL, 1, 1, 1, ACTIVATION_NONE);     // 11
  if (norm) d->layernorm_forward(d, x, x, g, g, x, x, x, x, 1, 1, 1);                       // 5
  d->linear_forward(d, x, NULL, x, x, NULL, 1, 1, 1, ACTIVATION_NONE);                      // 11
  d->crossentropy(d, x, g, NULL, 1, 1, 1, 1, WITH_GRADIENT);                                // 19
  d->linear_backward_weight(d, g, NULL, x, x, 1, 1, 1);                                     // 17
  d->sum(d, S("layer 1 qkv", 2), g, 1);                                                     // 23
  if (norm) d->layernorm_backward(d, x, g, g, x, x, x, x, g, g, 1, 1);                      // 7
  for (int b = 0; b < backward; b++) d->linear_backward_input(d, x, x, x, 1, 1, 1);         // 13
  d->embedding_backward(d, g, g, x, NULL, 1, 1, 1, 1);                                      // 2
}
static void check_launches(int forward, int backward, bool norm, int steps, const char *expected) {
  make_inner();
  Device *d = watching(WATCH_TRACE);
  for (int i = 0; i < 2; i++) d->zero(d, at("layer 1 qkv", 0), 64);
  for (int i = 0; i < steps; i++) one_step(d, forward, backward, norm);
  char *text = printed(d, 10), *found = strstr(text, " kernels launched");
  while (found && found[-1] != '\n') found--;
  CHECK_STR(found ? found : "", expected);
  free(text);
  watch_destroy(d);
}
static void launches(void) {
  launched = 1000;                 // before: they belong to nobody
  check_launches(2, 2, true, 1, "sum    133 kernels launched; 11 a block forward, 13 backward\n");
  check_launches(1, 1, true, 1, "sum    109 kernels launched; 5.5 a block forward, 6.5 backward\n");
  check_launches(2, 2, true, 2, "sum    266 kernels launched; 11 a block forward, 13 backward\n");      // of the first micro-batch
  check_launches(0, 1, true, 1, "sum    98 kernels launched; 0 a block forward, 6.5 backward\n");
  check_launches(1, 0, true, 1, "");               // no such step
  check_launches(0, 2, false, 1, "");
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(golden);
  RUN(shares);
  RUN(a_counter_begins_at_zero);
  RUN(findings);
  RUN(launches);
  return TEST_END();
}
