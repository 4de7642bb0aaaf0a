// bench.c: owns `gpt bench train|gemm|attention|all|tokenizer`: a step, the products and the attention of a model on made-up numbers, and
// a tokenizer on real text, timed. See bench.h.
#include "bench.h"
#include "corpus.h"    // corpus_read_texts
#include "detmath.h"   // det_pow
#include "load.h"      // device_open, require_memory
#include "machine.h"   // machine_resident
#include "rng.h"       // made-up ids
#include "tokenizer.h" // tokenizer_encode, tokenizer_decode
#include "watch.h"     // --trace
#include <math.h>      // sqrt
#include <stdlib.h>    // qsort, free
#include <string.h>    // memcmp
#include <sys/resource.h>  // getrusage

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static GptConfig bench_config(const Options *o) {
  GptConfig c;
  shape_from_flags(&c, o);
  if (o->context != AUTO_INT) c.context = o->context;
  c.vocab = o->vocab != AUTO_INT ? o->vocab : 50304;
  c.dropout = o->dropout;
  config_check(&c);
  return c;
}

// ---- a sample, and what the machine gave while it was taken ----

typedef struct { Device *d; void (*run)(const void *arg); const void *arg; } Timed;
// Of one call, medians: seconds, the peak measured beside (0: unknown), flops over both. spread: (worst - best) / median
typedef struct { double seconds, best, worst, peak, share, spread; int thrown_out; } Figure;

static double peak_now(Device *d) { return d->measure_peak ? d->measure_peak(d) : d->peak_flops; }

static long preemptions(void) {
  struct rusage use;
  return getrusage(RUSAGE_SELF, &use) ? 0 : use.ru_nivcsw;
}

static double median(double *x, int n) {
  qsort(x, (size_t)n, sizeof *x, by_value);
  return x[n / 2];
}

// Takes `samples` samples, each between two measurements of the peak. One is thrown out, counted and taken again, up to four times as many in all (then
// what comes counts as it is), if the machine was not ours alone: the system took threads off their cores, the two peaks differ, or both are far under the
// highest one seen in this process. The last is a virtual machine whose processors share a core for a while: half of everything (a host does so unasked).
static Figure measure(const Timed *t, double flops, int samples) {
  static double highest;
  double *seconds = xmalloc((size_t)samples, sizeof *seconds), *share = xmalloc((size_t)samples, sizeof *share), *peak = xmalloc((size_t)samples, sizeof *peak);
  Figure f = {0};
  t->run(t->arg);   // the first touches memory
  t->d->sync(t->d);
  for (int i = 0, tried = 0; i < samples; tried++) {
    const double before = peak_now(t->d), start = seconds_now();
    const long preempted = preemptions();
    int repeats = 0;
    do { t->run(t->arg); repeats++; t->d->sync(t->d); } while (seconds_now() - start < 5e-3);   // shorter is noise of the clock and of waking threads
    const double all = seconds_now() - start;
    const bool taken_off = (double)(preemptions() - preempted) > 20 * all;   // the system's own work is less than that
    const double after = peak_now(t->d);
    highest = MAX(highest, MAX(before, after));
    const bool shared = MIN(before, after) < 0.75 * highest || MIN(before, after) < 0.94 * MAX(before, after);
    if ((taken_off || shared) && tried < 4 * samples) { f.thrown_out++; continue; }
    seconds[i] = all / repeats;
    peak[i] = (before + after) / 2;
    share[i] = peak[i] > 0 ? flops / seconds[i] / peak[i] : 0;
    i++;
  }
  f.seconds = median(seconds, samples), f.best = seconds[0], f.worst = seconds[samples - 1];
  f.spread = (f.worst - f.best) / f.seconds;
  f.peak = median(peak, samples), f.share = median(share, samples);
  free(seconds);
  free(peak);
  free(share);
  return f;
}

// ---- operations one by one ----

// Flops and seconds of a step's operations, summed as the step has them; every figure as JSON.
typedef struct { double flops, seconds, peak_seconds; int thrown_out; Buffer json; } Sum;

// One call of `flops`, which the step has `times` times (0: it does not count). what: the figure's own keys in JSON
static void print_figure(Sum *sum, const Figure *f, double flops, double times, const char *what) {
  const double rate = 1e-9 * flops / f->seconds;
  printf("  %7.1f ", rate);
  if (f->share > 0) printf("%3.0f%%", 100 * f->share);
  else printf("   -");
  printf(" +-%2.0f%%", MIN(99.0, 50 * f->spread));
  fflush(stdout);
  sum->flops += flops * times;
  sum->seconds += f->seconds * times;
  sum->peak_seconds += f->seconds * f->share * times;
  sum->thrown_out += f->thrown_out;
  buffer_printf(&sum->json, "%s{%s, \"gflops\": %.2f, \"fraction_of_peak\": %.4f, \"spread\": %.4f}", sum->json.len ? ", " : "", what, rate, f->share, f->spread);
}

typedef struct { Device *d; size_t rows, IC, OC; real *x, *weight, *out; acc *dweight; } Product;
static void forward(const void *arg) { const Product *p = arg; p->d->linear_forward(p->d, p->out, NULL, p->x, p->weight, NULL, p->rows, p->IC, p->OC, ACTIVATION_NONE); }
static void backward_input(const void *arg) { const Product *p = arg; p->d->linear_backward_input(p->d, p->x, p->out, p->weight, p->rows, p->IC, p->OC); }
static void backward_weight(const void *arg) { const Product *p = arg; p->d->linear_backward_weight(p->d, p->dweight, NULL, p->out, p->x, p->rows, p->IC, p->OC); }

static void fill(Device *d, real *x, size_t n, const char *site) {   // normal numbers: zeros and denormals have speeds of their own
  enum { PIECE = 4096 };
  double values[PIECE];
  for (size_t at = 0; at < n; at += PIECE) {
    for (size_t i = 0; i < PIECE; i++) values[i] = rng_uniform(1, 0, rng_site(site), at + i) - 0.5;
    d->upload_real(d, d->real_at(x, at), values, MIN((size_t)PIECE, n - at));
  }
}

static void *memory_for(Device *d, size_t bytes) {
  void *p = d->allocate(d, bytes);
  if (!p) fail(EXIT_MACHINE, "memory: the %s device refused %zu MiB; use a smaller --batch, --context or --model", d->name, bytes >> 20);
  return p;
}

static void require_room(const Device *d, double bytes) {
  require_memory(d, &(MemoryTable){.total = bytes < 0x1p63 ? (size_t)bytes : SIZE_MAX}, 0, "use a smaller --batch, --context or --model");
}

static void bench_product(Device *d, const char *name, size_t rows, size_t IC, size_t OC, int64_t times, int samples, Sum *sum) {
  static void (*const directions[])(const void *) = {forward, backward_input, backward_weight};
  static const char *const names[] = {"forward", "d input", "d weight"};
  size_t sizes[] = {rows * IC, OC * IC, rows * OC};
  real *arrays[3];
  require_room(d, ((double)rows * (double)(IC + OC) + (double)IC * (double)OC) * (double)d->real_size + (double)IC * (double)OC * (double)d->acc_size);
  for (int i = 0; i < 3; i++) {
    arrays[i] = memory_for(d, sizes[i] * d->real_size);
    fill(d, arrays[i], sizes[i], name);
  }
  d->refresh(d, arrays[1], OC * IC);   // as after an update: what the device keeps of a weight it makes in the first call, which is not timed
  Product p = {d, rows, IC, OC, arrays[0], arrays[1], arrays[2], memory_for(d, OC * IC * d->acc_size)};
  double flops = 2 * (double)rows * (double)IC * (double)OC;
  printf("%-12s %6zu x %5zu -> %5zu  x %2lld", name, rows, IC, OC, (long long)times);
  for (int i = 0; i < 3; i++) {
    char what[160];
    snprintf(what, sizeof what, "\"name\": \"%s\", \"direction\": \"%s\", \"rows\": %zu, \"in\": %zu, \"out\": %zu", name, names[i], rows, IC, OC);
    Figure f = measure(&(Timed){d, directions[i], &p}, flops, samples);
    print_figure(sum, &f, flops, (double)times, what);
  }
  printf("\n");
  for (int i = 0; i < 3; i++) d->release(d, arrays[i], sizes[i] * d->real_size);
  d->release(d, p.dweight, OC * IC * d->acc_size);
}

static void print_sum(Sum *sum, const char *what, double bandwidth, Buffer *json) {
  double gflops = 1e-9 * sum->flops / sum->seconds, share = sum->peak_seconds / sum->seconds;
  printf("%s: %.1f GFLOP/s, %.0f%% of the peak measured beside it; memory %.1f GB/s; %d samples on a shared core were thrown out\n", what, gflops, 100 * share, 1e-9 * bandwidth, sum->thrown_out);
  buffer_printf(json, "{\"gflops\": %.2f, \"peak_gflops\": %.2f, \"fraction_of_peak\": %.4f, \"bandwidth_gb_per_s\": %.2f, \"thrown_out\": %d, \"figures\": [%s]}", gflops,
                share > 0 ? gflops / share : 0, share, 1e-9 * bandwidth, sum->thrown_out, sum->json.data);
  buffer_free(&sum->json);
}

static double bandwidth_now(Device *d) { return d->measure_bandwidth ? d->measure_bandwidth(d) : 0; }

// Every product of a training step of the model, in all three directions, and their sum weighted as a step has them.
static void bench_gemm(Device *d, const GptConfig *c, size_t rows, int samples, Buffer *json) {
  size_t C = (size_t)c->channels, ffn = (size_t)c->ffn, fc = c->family == FAMILY_LLAMA ? 2 * ffn : ffn, head = round_up((size_t)c->vocab, d->row_multiple);
  Sum sum = {0};
  printf("%-12s %6s   %5s    %5s        %-18s  %-18s  %-18s  GFLOP/s, share of peak, half the spread\n", "product", "rows", "in", "out", "forward", "d input", "d weight");
  bench_product(d, "qkv", rows, C, (size_t)config_qkv_width(c), c->layers, samples, &sum);
  bench_product(d, "projection", rows, C, C, c->layers, samples, &sum);
  bench_product(d, "feed-forward", rows, C, fc, c->layers, samples, &sum);
  bench_product(d, "down", rows, ffn, C, c->layers, samples, &sum);
  size_t chunk = MIN(rows, (size_t)1024);   // the classifier's bound (model.c)
  bench_product(d, "head", chunk, C, head, (int64_t)((rows + chunk - 1) / chunk), samples, &sum);
  print_sum(&sum, "step-weighted", bandwidth_now(d), json);
}

typedef struct { Device *d; AttentionShape shape; real *qkv, *out, *dout, *dqkv; acc *lse; size_t C, KV; } Attention;
static void attention_forward(const void *arg) {
  const Attention *a = arg;
  a->d->attention_forward(a->d, a->out, a->lse, a->qkv, a->d->real_at(a->qkv, a->C), a->d->real_at(a->qkv, a->C + a->KV), &a->shape);
}
static void attention_backward(const void *arg) {
  const Attention *a = arg;
  Device *d = a->d;
  d->attention_backward(d, a->dqkv, d->real_at(a->dqkv, a->C), d->real_at(a->dqkv, a->C + a->KV), a->dout, a->qkv, d->real_at(a->qkv, a->C),
                        d->real_at(a->qkv, a->C + a->KV), a->out, a->lse, &a->shape);
}

// Flops of the causal half only: two products forward, five backward (the scores are computed again).
static void bench_attention(Device *d, const GptConfig *c, size_t B, int samples, Buffer *json) {
  size_t most = (size_t)c->context, C = (size_t)c->channels, HS = (size_t)config_head_size(c), KV = (size_t)c->kv_heads * HS, QKV = C + 2 * KV;
  Sum sum = {0};
  printf("%6s %6s x %4s   %-18s  %-18s  GFLOP/s of the causal half, share of peak, half the spread\n", "T", "heads", "size", "forward", "backward");
  for (size_t T = MIN(most, (size_t)64); ; T = MIN(2 * T, most)) {
    size_t rows = B * T, bytes = d->real_size;
    require_room(d, (double)rows * ((double)(2 * QKV + 2 * C) * (double)bytes + (double)c->heads * (double)d->acc_size));
    Attention a = {.d = d, .C = C, .KV = KV, .qkv = memory_for(d, rows * QKV * bytes), .dqkv = memory_for(d, rows * QKV * bytes), .out = memory_for(d, rows * C * bytes),
                   .dout = memory_for(d, rows * C * bytes), .lse = memory_for(d, rows * (size_t)c->heads * d->acc_size)};
    a.shape = (AttentionShape){.B = B, .T = T, .S = T, .NH = (size_t)c->heads, .KVH = (size_t)c->kv_heads, .HS = HS, .q_stride = QKV, .kv_stride = QKV, .out_stride = C,
                               .q_batch = T * QKV, .kv_batch = T * QKV, .out_batch = T * C, .mask = c->mask, .scale = 1 / sqrt((double)HS)};
    fill(d, a.qkv, rows * QKV, "qkv");
    fill(d, a.dout, rows * C, "dout");
    double flops = 2 * (double)B * (double)c->heads * (double)HS * (double)T * (double)(T + 1) / 2;   // of one product
    printf("%6zu %6lld x %4zu ", T, (long long)c->heads, HS);
    for (int i = 0; i < 2; i++) {
      char what[64];
      snprintf(what, sizeof what, "\"T\": %zu, \"direction\": \"%s\"", T, i ? "backward" : "forward");
      Figure f = measure(&(Timed){d, i ? attention_backward : attention_forward, &a}, flops * (i ? 5 : 2), samples);
      print_figure(&sum, &f, flops * (i ? 5 : 2), T == most, what);
    }
    printf("\n");
    d->release(d, a.qkv, rows * QKV * bytes);
    d->release(d, a.dqkv, rows * QKV * bytes);
    d->release(d, a.out, rows * C * bytes);
    d->release(d, a.dout, rows * C * bytes);
    d->release(d, a.lse, rows * (size_t)c->heads * d->acc_size);
    if (T == most) break;
  }
  print_sum(&sum, "forward and backward at the longest", bandwidth_now(d), json);
}

// ---- a tokenizer ----

// One thread. cold: nothing is known of the text, and its ids' memory is new; again: the same text once more. Medians of `samples`.
static int bench_tokenizer(const Options *o) {
  if (!o->use_tokenizer || o->arg_count == 0) fail(EXIT_REQUEST, "%s is missing: gpt bench tokenizer --tokenizer gpt2 TEXT", o->use_tokenizer ? "TEXT" : "--tokenizer");
  Tokenizer *t = tokenizer_open(o->use_tokenizer);
  Buffer text = {0};
  text.data = corpus_read_texts(o->args, o->arg_count, &text.len);
  size_t samples = o->steps != AUTO_INT ? (size_t)MIN(MAX(o->steps, (int64_t)1), (int64_t)1000) : 5, ids = 0;
  double *seconds[3];
  for (int k = 0; k < 3; k++) seconds[k] = xmalloc(samples, sizeof *seconds[k]);
  for (size_t i = 0; i < samples; i++) {
    TokenBuffer tokens = {0};
    Buffer back = {0};
    for (int k = 0; k < 3; k++) {
      double start = seconds_now();
      if (k < 2) tokens.count = 0, tokenizer_encode_or_fail(t, o->args[0], text.data, text.len, &tokens, SPECIAL_NONE);
      else tokenizer_decode(t, tokens.ids, tokens.count, &back);
      seconds[k][i] = seconds_now() - start;
    }
    if (back.len != text.len || memcmp(back.data, text.data, text.len)) fail(EXIT_FAILURE, "%s: decode(encode(text)) is not the text", o->use_tokenizer);
    ids = tokens.count;
    token_buffer_free(&tokens);
    buffer_free(&back);
  }
  double rate[3];
  for (int k = 0; k < 3; k++) {
    qsort(seconds[k], samples, sizeof *seconds[k], by_value);
    rate[k] = 1e-6 * (double)text.len / seconds[k][samples / 2];
    free(seconds[k]);
  }
  printf("%zu bytes, %zu ids, %.2f bytes an id: encode %.0f MB/s the first time, %.0f again, decode %.0f (one thread, medians of %zu)\n", text.len, ids, (double)text.len / (double)ids, rate[0], rate[1],
         rate[2], samples);
  if (o->json) printf("{\"encode_cold_mb_per_s\": %.1f, \"encode_mb_per_s\": %.1f, \"decode_mb_per_s\": %.1f}\n", rate[0], rate[1], rate[2]);
  buffer_free(&text);
  tokenizer_free(t);
  return 0;
}

// ---- the whole step ----

typedef struct { Gpt *m; const int32_t *ids, *targets; int64_t rows; uint64_t seed; uint32_t *step; } Step;

static void one_step(const void *arg) {
  const Step *s = arg;
  const double t = ++*s->step;
  MicroBatch place = {.seed = s->seed, .step = *s->step, .loss_scale = 1 / (double)s->rows};
  AdamWSettings settings = {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .bias1 = 1 - det_pow(0.9, t), .bias2 = 1 - det_pow(0.95, t), .grad_clip = 1};
  gpt_begin_step(s->m);
  gpt_forward(s->m, s->ids, s->targets, &place, WITH_GRADIENT);
  gpt_backward(s->m, &place);
  gpt_finish_gradients(s->m);
  gpt_update(s->m, &settings, 0.1);
  gpt_loss_sum(s->m);   // waits
}

static void trace(const Step *s) {
  Device *plain = gpt_device(s->m), *watched = watch_device(plain, s->m, WATCH_TRACE);
  gpt_set_device(s->m, watched);
  const double start = seconds_now();
  one_step(s);
  watch_print(watched, stdout, seconds_now() - start);
  gpt_set_device(s->m, plain);
  watch_destroy(watched);
}

static void bench_train(const Options *o, Device *d, const GptConfig *c, int64_t B, int samples, Buffer *json) {
  int64_t T = c->context, rows = B * T;
  GptOptions options = {.config = *c, .purpose = PURPOSE_TRAIN, .B = B, .T = T, .recompute = (Recompute)o->recompute, .no_master = o->stochastic_rounding,
                        .micro_batches = 1};
  MemoryTable memory;
  gpt_memory(&memory, d, &options);
  require_memory(d, &memory, gpt_scratch(d, &options), "use a smaller --batch, --context or --model");
  Gpt *m = gpt_create(d, &options);
  int32_t *ids = xmalloc((size_t)rows, sizeof *ids), *targets = xmalloc((size_t)rows, sizeof *targets);
  const uint64_t seed = (uint64_t)o->seed;
  for (int64_t i = 0; i < rows; i++) {
    ids[i] = (int32_t)rng_below((uint64_t)c->vocab, seed, 0, rng_site("bench ids"), (uint64_t)i);
    targets[i] = (int32_t)rng_below((uint64_t)c->vocab, seed, 0, rng_site("bench targets"), (uint64_t)i);
  }
  gpt_init(m, seed);
  uint32_t step = 0;
  double flops = config_flops_per_token(c, T) * (double)rows;
  Figure f = measure(&(Timed){d, one_step, &(Step){m, ids, targets, rows, seed, &step}}, flops, samples);
  const size_t resident = machine_resident();
  const double bandwidth = bandwidth_now(d);
  char share[64] = "no peak is measured for this device";
  if (f.peak > 0) snprintf(share, sizeof share, "%.0f%% of %.0f measured beside", 100 * f.share, 1e-9 * f.peak);
  printf("%s, B %lld, T %lld, %s: median of %d steps %.2f ms (best %.2f, worst %.2f), %.0f tokens/s, %.1f GFLOP/s, %s; memory %.1f GB/s; %d steps on a shared core were thrown out\n",
         o->model ? o->model : c->family == FAMILY_LLAMA ? "llama-tiny" : "tiny", (long long)B, (long long)T, d->description, samples, 1e3 * f.seconds, 1e3 * f.best, 1e3 * f.worst, (double)rows / f.seconds, 1e-9 * flops / f.seconds,
         share, 1e-9 * bandwidth, f.thrown_out);
  buffer_printf(json, "{\"tokens_per_s\": %.1f, \"ms\": %.3f, \"gflops\": %.2f, \"peak_gflops\": %.2f, \"fraction_of_peak\": %.4f, \"rss_bytes\": %zu, \"bandwidth_gb_per_s\": %.2f, \"spread\": %.4f, \"thrown_out\": %d}",
                (double)rows / f.seconds, 1e3 * f.seconds, 1e-9 * flops / f.seconds, 1e-9 * f.peak, f.share, resident, 1e-9 * bandwidth, f.spread, f.thrown_out);
  if (o->trace) trace(&(Step){m, ids, targets, rows, seed, &step});
  free(ids);
  free(targets);
  gpt_destroy(m);
}

// ---- the command ----

int bench_command(const Options *o) {
  if (o->command == COMMAND_BENCH_TOKENIZER) return bench_tokenizer(o);
  if (o->arg_count > 0) fail(EXIT_REQUEST, "%s: this bench takes flags only, see gpt help bench", o->args[0]);
  GptConfig c = bench_config(o);
  const int64_t B = o->batch != AUTO_INT ? o->batch : 4;
  const int samples = o->steps != AUTO_INT ? (int)MIN(MAX(o->steps, (int64_t)1), (int64_t)1000000) : 7;
  const bool all = o->command == COMMAND_BENCH_ALL;
  Device *d = device_open(o, 0);
  Buffer json = {0};
  if (o->command != COMMAND_BENCH_TRAIN) printf("%s: %s\n", d->name, d->description);
  if (all) buffer_printf(&json, "{\"gemm\": ");
  if (all || o->command == COMMAND_BENCH_GEMM) bench_gemm(d, &c, (size_t)(B * c.context), samples, &json);
  if (all) buffer_printf(&json, ", \"attention\": ");
  if (all || o->command == COMMAND_BENCH_ATTENTION) bench_attention(d, &c, (size_t)B, samples, &json);
  if (all) buffer_printf(&json, ", \"train\": ");
  if (all || o->command == COMMAND_BENCH_TRAIN) bench_train(o, d, &c, B, samples, &json);
  if (all) buffer_printf(&json, "}");
  if (o->json) printf("%s\n", json.data);
  buffer_free(&json);
  d->destroy(d);
  return 0;
}
