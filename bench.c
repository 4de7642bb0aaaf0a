// bench.c: owns `gpt bench train`: a training step on made-up tokens, timed. See bench.h.
#include "bench.h"
#include "detmath.h"   // det_pow
#include "load.h"      // device_open, require_memory
#include "machine.h"   // machine_resident
#include "rng.h"       // made-up ids
#include <stdlib.h>    // qsort, free

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static GptConfig bench_config(const Options *o) {
  GptConfig c;
  config_preset(&c, o->model ? o->model : "tiny");
  if (o->layers != AUTO_INT) c.layers = o->layers;
  if (o->channels != AUTO_INT) c.channels = o->channels;
  if (o->heads != AUTO_INT) c.heads = c.kv_heads = o->heads;
  if (o->kv_heads != AUTO_INT) c.kv_heads = o->kv_heads;
  c.ffn = o->ffn != AUTO_INT ? o->ffn : o->channels != AUTO_INT ? config_default_ffn(&c) : c.ffn;
  if (o->context != AUTO_INT) c.context = o->context;
  if (o->given[FLAG_bias]) c.bias = o->bias;
  if (o->given[FLAG_tie]) c.tie = o->tie;
  c.vocab = o->vocab != AUTO_INT ? o->vocab : 50304;
  c.dropout = o->dropout;
  config_check(&c);
  return c;
}

static double one_step(Gpt *m, const int32_t *ids, const int32_t *targets, int64_t rows, uint32_t step) {
  double start = seconds_now(), t = step + 1.0;
  MicroBatch place = {.seed = 1, .step = step, .loss_scale = 1 / (double)rows};
  AdamWSettings s = {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .bias1 = 1 - det_pow(0.9, t), .bias2 = 1 - det_pow(0.95, t), .grad_clip = 1};
  gpt_begin_step(m);
  gpt_forward(m, ids, targets, &place, WITH_GRADIENT);
  gpt_backward(m, &place);
  gpt_finish_gradients(m);
  gpt_update(m, &s, 0.1);
  gpt_loss_sum(m);   // waits
  return seconds_now() - start;
}

int bench_command(const Options *o) {
  GptConfig c = bench_config(o);
  int64_t B = o->batch != AUTO_INT ? o->batch : 4, T = c.context, rows = B * T, steps = o->steps != AUTO_INT ? MAX(o->steps, 1) : 10;
  GptOptions options = {.config = c, .purpose = PURPOSE_TRAIN, .B = B, .T = T, .recompute = (Recompute)o->recompute};
  MemoryTable memory;
  Device *d = device_open(o);
  gpt_memory(&memory, d, &options);
  require_memory(&memory, gpt_scratch(d, &options), "use a smaller --batch, --context or --model");
  Gpt *m = gpt_create(d, &options);
  int32_t *ids = xmalloc((size_t)rows, sizeof *ids), *targets = xmalloc((size_t)rows, sizeof *targets);
  for (int64_t i = 0; i < rows; i++) {
    ids[i] = (int32_t)rng_below((uint64_t)c.vocab, 1, 0, rng_site("bench ids"), (uint64_t)i);
    targets[i] = (int32_t)rng_below((uint64_t)c.vocab, 1, 0, rng_site("bench targets"), (uint64_t)i);
  }
  gpt_init(m, 1);
  double *seconds = xmalloc((size_t)steps, sizeof *seconds);
  one_step(m, ids, targets, rows, 0);   // the first touches memory
  for (int64_t i = 0; i < steps; i++) seconds[i] = one_step(m, ids, targets, rows, (uint32_t)i + 1);
  qsort(seconds, (size_t)steps, sizeof *seconds, by_value);
  double median = seconds[steps / 2], flops = config_flops_per_token(&c, T) * (double)rows / median, share = d->peak_flops > 0 ? flops / d->peak_flops : 0;
  printf("%s, B %lld, T %lld, %s: median of %lld steps %.2f ms (best %.2f, worst %.2f), %.0f tokens/s, %.1f GFLOP/s, %.0f%% of %.0f\n", o->model ? o->model : "tiny", (long long)B, (long long)T,
         d->description, (long long)steps, 1e3 * median, 1e3 * seconds[0], 1e3 * seconds[steps - 1], (double)rows / median, 1e-9 * flops, 100 * share, 1e-9 * d->peak_flops);
  if (o->json)
    printf("{\"tokens_per_s\": %.1f, \"ms\": %.3f, \"gflops\": %.2f, \"peak_gflops\": %.2f, \"fraction_of_peak\": %.4f, \"rss_bytes\": %zu}\n", (double)rows / median, 1e3 * median,
           1e-9 * flops, 1e-9 * d->peak_flops, share, machine_resident());
  free(seconds);
  free(ids);
  free(targets);
  gpt_destroy(m);
  d->destroy(d);
  return 0;
}
