// print_logits.c: owns a small program for comparisons with other implementations: it makes a checkpoint of a model with
// random weights, and prints the logits of any model directory.
//
//   print_logits make FAMILY DIR          FAMILY: gpt2, gpt2-without-bias, gpt2-untied, llama, llama-untied; prints the
//                                         folder made
//   print_logits show DEVICE MODEL ID...  DEVICE: reference, cpu; one line of logits per position, %.9g
//
// dev/peers/transformers_logits.py drives it. Every tensor is random, biases and norms too, so that none can be forgotten.
#include "checkpoint.h"   // checkpoint_save, checkpoint_resolve
#include "model.h"        // Gpt
#include <stdlib.h>       // strtol, free
#include <string.h>       // strcmp

static void get(void *gpt, Part part, const TensorRow *row, size_t first, size_t n, double *values) {
  gpt_read(gpt, part, row, first, n, values);
}

static void put(void *gpt, Part part, const TensorRow *row, size_t first, size_t n, const double *values) {
  gpt_write(gpt, part, row, first, n, values);
}

static GptConfig family_config(const char *family) {
  GptConfig c = {.family = FAMILY_GPT2, .layers = 3, .heads = 4, .kv_heads = 4, .channels = 48, .context = 40, .ffn = 160,
                 .vocab = 67, .bias = true, .tie = true, .norm_eps = 1e-5, .rope_theta = 10000, .mask = MASK_CAUSAL};
  if (!strncmp(family, "llama", 5)) {
    c.family = FAMILY_LLAMA;
    c.kv_heads = 2;
    c.bias = false;
  } else if (strncmp(family, "gpt2", 4)) {
    fail(EXIT_REQUEST, "family %s: gpt2, gpt2-without-bias, gpt2-untied, llama and llama-untied are known", family);
  }
  if (strstr(family, "without-bias")) c.bias = false;
  if (strstr(family, "untied")) c.tie = false;
  return c;
}

// Uniform in -1 .. 1 by a linear congruence (Knuth's MMIX), the upper bits; any spread of values will do here.
static double random_value(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (double)(int64_t)*state * 0x1p-63;
}

static void make(const char *family, const char *dir) {
  Device *d = reference_device();
  GptOptions options = {.config = family_config(family), .purpose = PURPOSE_TRAIN, .B = 1, .T = 8};
  Gpt *m = gpt_create(d, &options);
  const TensorTable *table = gpt_table(m);
  uint64_t random = 1;
  for (size_t i = 0; i < table->count; i++) {
    const TensorRow *row = &table->rows[i];
    size_t n = (size_t)(row->rows * row->cols);
    if (row->zero_in_file_only) continue;
    double *values = xmalloc(n, sizeof *values);
    // Norm weights around 1, all else small; rounded to float, since that is what the file holds.
    for (size_t k = 0; k < n; k++) values[k] = (double)(float)((row->init == INIT_ONE) + 0.2 * random_value(&random));
    gpt_write(m, PART_WEIGHT, row, 0, n, values);
    free(values);
  }
  Buffer config = {0};
  config_write_json(&options.config, -1, &config);
  CheckpointFile file = {"config.json", config.data, config.len};
  TrainerState state = {.step = 1};
  char run_id[33], *path = checkpoint_path(dir, 1);
  checkpoint_new_run_id(run_id);
  CheckpointSource source = {.table = table, .fp64 = true, .get = get, .context = m, .files = &file, .file_count = 1, .state = &state,
                             .run_id = run_id};
  checkpoint_save(&source, dir, 0);
  printf("%s\n", path);
  free(path);
  buffer_free(&config);
  gpt_destroy(m);
  d->destroy(d);
}

static void show(const char *device, const char *model, char **ids_text, int count) {
  Checkpoint *c = checkpoint_resolve(model);
  Device *d = strcmp(device, "reference") ? cpu_device(0) : reference_device();
  char *path = format("%s/config.json", c->dir);
  GptOptions options = {.purpose = PURPOSE_EVALUATE, .B = 1, .T = count};
  config_read_json(&options.config, c->config, path);
  options.config.dropout = 0;
  int32_t *ids = xmalloc((size_t)count, sizeof *ids);
  for (int i = 0; i < count; i++) {
    ids[i] = (int32_t)strtol(ids_text[i], NULL, 10);
    if (ids[i] < 0 || ids[i] >= options.config.vocab)
      fail(EXIT_REQUEST, "id %s: the vocabulary has %lld", ids_text[i], (long long)options.config.vocab);
  }
  if (count > options.config.context) fail(EXIT_REQUEST, "%d ids, the context is %lld", count, (long long)options.config.context);
  Gpt *m = gpt_create(d, &options);
  checkpoint_load_weights(c, gpt_table(m), put, m);
  gpt_refresh(m);
  size_t vocab = (size_t)options.config.vocab;
  double *logits = xmalloc((size_t)count * vocab, sizeof *logits);
  gpt_logits(m, ids, logits);
  for (size_t i = 0; i < (size_t)count * vocab; i++) printf("%.9g%c", logits[i], (i + 1) % vocab ? ' ' : '\n');
  free(logits);
  free(ids);
  free(path);
  gpt_destroy(m);
  d->destroy(d);
  checkpoint_close(c);
}

int main(int argc, char **argv) {
  if (argc == 4 && !strcmp(argv[1], "make")) make(argv[2], argv[3]);
  else if (argc > 4 && !strcmp(argv[1], "show")) show(argv[2], argv[3], argv + 4, argc - 4);
  else fail(EXIT_REQUEST, "use: print_logits make FAMILY DIR, or print_logits show DEVICE MODEL ID...");
  return fflush(stdout) ? EXIT_MACHINE : 0;
}
