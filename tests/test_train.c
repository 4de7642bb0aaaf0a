// test_train.c: owns the proof of train_step() and what it is made of: schedules, the outlier window, bad steps, accumulation,
// overfitting one batch, and the device that watches. Whole runs from the command line are tested in test_cli_train.sh.
//
// Everything happens in a temporary folder with a made-up text; the trainer is put together here as train.c does it.
#include "../detmath.h"     // det_pow
#include "../load.h"        // device_open
#include "../rng.h"         // rng_below
#include "../train.h"       // the trainer
#include "../watch.h"       // watch_device
#include "test.h"           // RUN, CHECK
#include <stdbool.h>

// ---- schedules ----

static Options schedule(int shape, int64_t steps, int64_t warmup, int64_t decay) {
  return (Options){.lr = 1e-3, .min_lr = 1e-4, .schedule = shape, .steps = steps, .warmup = warmup, .decay = decay};
}

static void every_schedule_warms_up_and_ends(void) {
  for (int shape = SCHEDULE_COSINE; shape <= SCHEDULE_CONSTANT; shape++)
    for (int64_t warmup = 0; warmup <= 10; warmup += 5) {
      Options o = schedule(shape, 40, warmup, 8);
      for (int64_t step = 0; step < warmup; step++) CHECK_NEAR(learning_rate(&o, step), 1e-3 * (double)(step + 1) / (double)warmup, 1e-18, "step %lld", (long long)step);
      CHECK_NEAR(learning_rate(&o, warmup), 1e-3, 1e-18, "schedule %d: the top", shape);
      for (int64_t step = warmup; step + 1 < 40; step++) CHECK(learning_rate(&o, step + 1) <= learning_rate(&o, step));
      CHECK_MSG(learning_rate(&o, 39) == (shape == SCHEDULE_CONSTANT ? 1e-3 : 1e-4), "schedule %d ends at %.17g", shape, learning_rate(&o, 39));
    }
}

static void shapes(void) {
  Options cosine = schedule(SCHEDULE_COSINE, 41, 0, 0), linear = schedule(SCHEDULE_LINEAR, 41, 0, 0), wsd = schedule(SCHEDULE_WSD, 41, 4, 11);
  for (int64_t step = 0; step <= 40; step += 5) {
    double done = (double)step / 40;
    CHECK_NEAR(learning_rate(&cosine, step), 1e-4 + 0.45e-3 * (1 + cos(3.14159265358979323846 * done)), 1e-18, "cosine at %lld", (long long)step);
    CHECK_NEAR(learning_rate(&linear, step), 1e-3 - 0.9e-3 * done, 1e-18, "linear at %lld", (long long)step);
  }
  for (int64_t step = 4; step <= 30; step++) CHECK(learning_rate(&wsd, step) == 1e-3);
  CHECK_NEAR(learning_rate(&wsd, 35), 0.55e-3, 1e-18, "half of the decay");
  for (int shape = SCHEDULE_COSINE; shape < SCHEDULE_CONSTANT; shape++) {      // as short as can be
    Options o = schedule(shape, 2, 0, 2);
    CHECK_MSG(learning_rate(&o, 0) == 1e-3 && learning_rate(&o, 1) == 1e-4, "schedule %d: two steps", shape);
  }
}

// The last rate is min_lr to the bit, whatever the numbers; nothing is out of bounds where a run is as short as its warm-up.
static void the_last_rate_is_the_lowest(void) {
  for (uint64_t i = 0; i < 200; i++)
    for (int shape = SCHEDULE_COSINE; shape < SCHEDULE_CONSTANT; shape++) {
      Options o = schedule(shape, 2 + (int64_t)rng_below(1000, 1, 0, rng_site("steps"), i), 0, 0);
      o.lr = 1e-4 + rng_uniform(1, 0, rng_site("lr"), i);
      o.min_lr = o.lr * rng_uniform(1, 0, rng_site("min"), i);
      o.decay = o.steps / 2;
      CHECK_MSG(learning_rate(&o, o.steps - 1) == o.min_lr, "schedule %d from %.17g ends at %.17g, not %.17g", shape, o.lr, learning_rate(&o, o.steps - 1), o.min_lr);
    }
  for (int shape = SCHEDULE_COSINE; shape <= SCHEDULE_CONSTANT; shape++)
    for (int64_t steps = 1; steps <= 3; steps++)
      for (int64_t warmup = 0; warmup <= 4; warmup++)
        for (int64_t step = 0; step < steps; step++) {
          Options o = schedule(shape, steps, warmup, 9);
          double rate = learning_rate(&o, step);
          CHECK_MSG(rate > 0 && rate <= 1e-3, "schedule %d, %lld steps, warm-up %lld: %g", shape, (long long)steps, (long long)warmup, rate);
        }
}

static void bias_correction_counts_updates(void) {
  Options o = schedule(SCHEDULE_CONSTANT, 10, 0, 0);
  o.beta1 = 0.9;
  o.beta2 = 0.99;
  AdamWSettings s = adamw_settings(&o, &(TrainerState){.step = 7, .updates = 2});
  CHECK_NEAR(s.bias1, 1 - 0.9 * 0.9 * 0.9, 1e-15, "third update");
  CHECK_NEAR(s.bias2, 1 - 0.99 * 0.99 * 0.99, 1e-15, "third update");
  o.beta1 = 0;
  o.beta2 = 0;
  CHECK(adamw_settings(&o, &(TrainerState){0}).bias1 == 1 && adamw_settings(&o, &(TrainerState){0}).bias2 == 1);
}

// ---- the outlier window ----

static void window_gives_the_limit(void) {
  TrainerState s = {0};
  for (int i = 0; i < 15; i++) s.outlier_window[s.outlier_count++] = i % 2 ? 3 : 1;
  CHECK_MSG(outlier_limit(&s, 3) == 0, "15 norms are too few for a limit");
  s.outlier_window[s.outlier_count++] = 3;
  CHECK_NEAR(outlier_limit(&s, 3), 2 + 3 * 1, 1e-12, "mean 2, deviation 1");
  CHECK_NEAR(outlier_limit(&s, 0.5), 2.5, 1e-12, "half a deviation");
  CHECK(outlier_limit(&s, 0) == 0);
  for (int i = 0; i < OUTLIER_WINDOW; i++) s.outlier_window[s.outlier_count++ % OUTLIER_WINDOW] = 5;
  CHECK_NEAR(outlier_limit(&s, 3), 5, 1e-12, "what is older than the window is forgotten");
}

static void advance_counts_and_keeps_bad_norms_out(void) {
  Run run = {.sequences = 6, .gpt = {.T = 16}};
  Trainer t = {.run = &run};
  trainer_advance(&t, &(StepResult){.grad_norm = 2, .finite = true, .taken = true}, 0);
  CHECK(t.state.step == 1 && t.state.updates == 1 && t.state.sample_index == 6 && t.state.tokens_seen == 96 && t.state.outlier_count == 1);
  trainer_advance(&t, &(StepResult){.grad_norm = NAN}, 0);
  trainer_advance(&t, &(StepResult){.grad_norm = INFINITY}, 5);
  CHECK(t.state.step == 3 && t.state.updates == 1 && t.state.sample_index == 18 && t.state.tokens_seen == 288 && t.state.outlier_count == 1);
  trainer_advance(&t, &(StepResult){.grad_norm = 100, .finite = true}, 5);      // dropped: enters as the limit
  CHECK(t.state.outlier_count == 2 && t.state.outlier_window[0] == 2 && t.state.outlier_window[1] == 5);
  trainer_advance(&t, &(StepResult){.grad_norm = 100, .finite = true}, 0.5);
  CHECK(t.state.outlier_window[2] == 0.5);
}

// ---- whole trainers ----

static const char *make_text(void) {
  static const char *const words[] = {"the ", "old ", "bear ", "found ", "a ", "red ", "key ", "and ", "sang.\n", "slept.\n"};
  FILE *f = fopen("text.txt", "w");
  if (!f) abort();
  for (uint64_t i = 0; i < 800; i++) fputs(words[rng_below(10, 1, 0, rng_site("words"), i)], f);
  fclose(f);
  return "text.txt";
}

enum { MOST_ARGS = 48 };

// A trainer for these flags (words between blanks) and the common small ones; device as --device says.
static Trainer trainer_open(const char *flags) {
  static const char common[] = "text.txt --tokenizer byte --layers 2 --channels 16 --heads 2 --context 16 --threads 1 --warmup 2 ";
  char *text = format("%s%s", common, flags), *argv[MOST_ARGS], *save;    // never freed: options point into it
  int argc = 0;
  for (char *p = strtok_r(text, " ", &save); p && argc < MOST_ARGS; p = strtok_r(NULL, " ", &save)) argv[argc++] = p;
  Options *o = xmalloc(1, sizeof *o);
  options_parse(o, COMMAND_TRAIN, "train", argc, argv);
  Trainer t = {.run = run_prepare(o), .comm = comm_none()};
  t.device = device_open(o, 0);
  t.model = gpt_create(t.device, &t.run->gpt);
  t.ids = xmalloc((size_t)(o->batch * o->context), sizeof *t.ids);
  t.targets = xmalloc((size_t)(o->batch * o->context), sizeof *t.targets);
  gpt_init(t.model, (uint64_t)o->seed);
  return t;
}

static void trainer_close(Trainer *t) {
  t->comm->destroy(t->comm);
  gpt_destroy(t->model);
  t->device->destroy(t->device);
  free(t->ids);
  free(t->targets);
  free(t->run->o->args);
  free(t->run->o);
  run_free(t->run);
}

static void weights_hash(Gpt *m, char hex[65]) {
  const TensorTable *table = gpt_table(m);
  uint8_t digest[32];
  Sha256 sha;
  sha256_init(&sha);
  for (Part part = PART_WEIGHT; part <= PART_V; part++)
    for (size_t i = 0; i < table->count && part != PART_GRADIENT; i++) {
      size_t n = tensor_values(&table->rows[i]);
      double *values = xmalloc(n + 1, sizeof *values);
      if (n) gpt_read(m, part, &table->rows[i], 0, n, values);
      sha256_update(&sha, values, n * sizeof *values);
      free(values);
    }
  sha256_final(&sha, digest);
  sha256_hex(digest, hex);
}

static void a_step_trains(void) {
  Trainer t = trainer_open("--batch 8 --tokens-per-step 256 --steps 40 --lr 0.02 --family llama --kv-heads 1");
  StepResult first = train_step(&t), last = first;
  CHECK_MSG(first.finite && first.taken && first.grad_norm > 0, "norm %g", first.grad_norm);
  CHECK_NEAR(first.loss, log(256), 0.2, "an untrained model is undecided among 256 bytes");
  CHECK_NEAR(first.lr, 0.01, 1e-15, "first of two steps of warm-up");
  while (t.state.step < 40) last = train_step(&t);
  CHECK_MSG(last.loss < 2.5, "loss %g after 40 steps", last.loss);      // 1.9 seen
  CHECK(t.state.updates == 40 && t.state.tokens_seen == 40 * 256 && t.state.sample_index == 40 * 16 && t.state.outlier_count == 40);
  trainer_close(&t);
}

// The same steps from micro-batches of another size: same losses, norms, weights and moments, to the bit. With dropout, and
// rows whose first targets are ignored (the edges of an epoch).
static void micro_batches_change_no_bit(void) {
  static const char *const cuts[] = {"--batch 8", "--batch 4", "--batch 1", "--batch 2 --recompute block"};
  char expected[65], hex[65];
  StepResult results[30];
  for (size_t c = 0; c < ARRAY_LEN(cuts); c++) {
    char *flags = format("%s --tokens-per-step 128 --steps 30 --dropout 0.1", cuts[c]);
    Trainer t = trainer_open(flags);
    free(flags);
    for (int step = 0; step < 30; step++) {
      StepResult result = train_step(&t);
      if (c == 0) results[step] = result;
      else CHECK_MSG(result.loss == results[step].loss && result.grad_norm == results[step].grad_norm, "%s, step %d: loss %.17g, not %.17g", cuts[c], step, result.loss, results[step].loss);
    }
    weights_hash(t.model, c ? hex : expected);
    if (c) CHECK_STR(hex, expected);
    trainer_close(&t);
  }
}

// What ranks compare: data, forward, backward and update of all micro-batches are most of the time, and no more than it.
static void a_step_is_timed_by_phase(void) {
  Trainer t = trainer_open("--batch 1 --tokens-per-step 512 --steps 20");
  double start = seconds_now(), sum = 0;
  for (int step = 0; step < 5; step++) train_step(&t);
  double seconds = seconds_now() - start;
  for (int p = 0; p < PHASE_COUNT; p++) {
    CHECK_MSG(t.times.own[p] > 0, "phase %d: %g s", p, t.times.own[p]);
    sum += t.times.own[p];
  }
  CHECK_MSG(sum > 0.3 * seconds && sum <= seconds, "%g s of %g", sum, seconds);   // 0.95 of it seen; one micro-batch would be 0.006
  trainer_close(&t);
}

static void one_batch_is_learned_by_heart(void) {
  static const char *const flags[] = {"--batch 2 --steps 120 --lr 0.02 --overfit-batch on --device cpu", "--batch 2 --steps 120 --lr 0.02 --overfit-batch on --device reference"};
  for (size_t i = 0; i < 2; i++) {
    Trainer t = trainer_open(flags[i]);
    double loss = 9;
    while (t.state.step < 120) loss = train_step(&t).loss;
    CHECK_MSG(loss < 0.1, "%s: loss %g after 120 steps on one batch", t.device->name, loss);
    trainer_close(&t);
  }
}

// What is trained on, or validated on, as text; | is the end-of-text token.
static void text_of(const Dataloader *l, char text[100]) {
  int32_t ids[99];
  const int64_t n = dataloader_tokens(l);
  if (n > 99) abort();
  dataloader_read(l, 0, n, ids);
  for (int64_t i = 0; i < n; i++) text[i] = (char)(ids[i] == 256 ? '|' : ids[i]);
  text[n] = 0;
}

// The last part of the text validates: of files of one size exactly those asked for, else the end of one.
static void files_are_divided(void) {
  static const struct { const char *fraction, *train, *val; } cases[] = {{"0.5", "|abcdefgh|ijklmnop|", "|qrstuvwx|yz012345|"}, {"0.6", "|abcdefgh|ijkl|", "mnop|qrstuvwx|yz012345|"}};
  static const char *const texts[] = {"abcdefgh", "ijklmnop", "qrstuvwx", "yz012345"};
  for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
    char *argv[] = {"1.txt", "2.txt", "3.txt", "4.txt", "--tokenizer", "byte", "--val-fraction", (char *)(uintptr_t)cases[c].fraction, "--context", "4", "--layers", "1", "--channels", "8", "--heads", "1"};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) replace_file(argv[i], texts[i], 8);
    Options o;
    options_parse(&o, COMMAND_TRAIN, "train", ARRAY_LEN(argv), argv);
    Run *r = run_prepare(&o);
    char train[100], val[100];
    text_of(r->train, train);
    text_of(r->val, val);
    CHECK_STR(train, cases[c].train);
    CHECK_STR(val, cases[c].val);
    run_free(r);
    free(o.args);
  }
}

static Run *prepared(int argc, char **argv, Options *o) {
  options_parse(o, COMMAND_TRAIN, "train", argc, argv);
  return run_prepare(o);
}

// About a thousand bytes of text for each entry: from 1 MiB on more than 512.
static void the_vocabulary_grows_with_the_text(void) {
  enum { MANY = (1 << 20) + 1 };
  char *text = xmalloc(MANY, 1), *argv[] = {"large.txt", "--context", "8", "--layers", "1", "--channels", "8", "--heads", "1"};
  for (uint64_t i = 0; i < MANY; i++) text[i] = i % 6 ? (char)('a' + rng_below(26, 1, 0, rng_site("letters"), i / 1000 * 1000 + i % 97)) : ' ';
  for (int more = -1; more <= 0; more++) {
    Options o;
    replace_file(argv[0], text, (size_t)(MANY - 1 + more));
    Run *r = prepared(ARRAY_LEN(argv), argv, &o);
    CHECK_EQ(r->vocab, more < 0 ? 512 : 1024);
    run_free(r);
    free(o.args);
  }
  free(text);
}

// Two tokens are enough; documents fill rows if the longest, of training or validation, just fits.
static void small_texts(void) {
  static const struct { const char *text, *context, *fraction, *separator; bool documents, val; } cases[] = {
    {"ab", "1", "0", NULL, false, false}, {"abcd", "1", "0.5", NULL, false, true}, {"abc", "1", "0.3", NULL, false, false},
    {"ab#abcd#xy", "5", "0.2", "#", true, true}, {"ab#abcd#xy", "4", "0.2", "#", false, true}, {"ab#xy#abcd", "5", "0.4", "#", true, true}, {"ab#xy#abcd", "4", "0.4", "#", false, true}};
  for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
    char *argv[] = {"small.txt", "--tokenizer", "byte", "--layers", "1", "--channels", "8", "--heads", "1", "--context", (char *)(uintptr_t)cases[c].context,
                    "--val-fraction", (char *)(uintptr_t)cases[c].fraction, "--separator", (char *)(uintptr_t)cases[c].separator};
    Options o;
    replace_file("small.txt", cases[c].text, strlen(cases[c].text));
    Run *r = prepared((int)ARRAY_LEN(argv) - (cases[c].separator ? 0 : 2), argv, &o);
    CHECK_MSG(r->documents == cases[c].documents && (r->val != NULL) == cases[c].val, "%s: documents %d, validation %d", cases[c].text, r->documents, r->val != NULL);
    run_free(r);
    free(o.args);
  }
}

// ---- bad steps ----

static void poke(Gpt *m, const char *name, size_t element, double value, double *old) {
  const TensorRow *row = tensor_find(gpt_table(m), name);
  if (!row) abort();
  if (old) gpt_read(m, PART_WEIGHT, row, element, 1, old);
  gpt_write(m, PART_WEIGHT, row, element, 1, &value);
  gpt_refresh(m);
}

// What the watching device says about the batch that lies in the trainer.
static char *finding_of(Trainer *t) {
  Device *watched = watch_device(t->device, t->model, WATCH_CHECK);
  MicroBatch place = {.loss_scale = 1};
  gpt_set_device(t->model, watched);
  gpt_begin_step(t->model);
  gpt_forward(t->model, t->ids, t->targets, &place, WITH_GRADIENT);
  gpt_backward(t->model, &place);
  const char *finding = watch_finding(watched);
  char *text = xstrdup(finding ? finding : "");
  gpt_set_device(t->model, t->device);
  watch_destroy(watched);
  return text;
}

static void a_bad_step_changes_nothing_and_is_explained(void) {
  static const struct { const char *tensor, *finding; } cases[] = {
    {"transformer.h.1.mlp.c_fc.weight", "linear_forward: layer 1 feed-forward: "},
    {"transformer.h.0.attn.c_attn.weight", "linear_forward: layer 0 qkv: "},
    {"transformer.wpe.weight", "embedding_forward: layer 0 residual: "},
    {"transformer.ln_f.weight", "layernorm_forward: last norm: "}};
  static const char *const devices[] = {"--batch 4 --steps 20 --device cpu", "--batch 4 --steps 20 --device reference"};
  for (size_t d = 0; d < 2; d++)
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
      Trainer t = trainer_open(devices[d]);
      char before[65], after[65];
      double old;
      CHECK(train_step(&t).taken);
      char *none = finding_of(&t);
      CHECK_STR(none, "");
      free(none);
      poke(t.model, cases[i].tensor, 3, INFINITY, &old);
      weights_hash(t.model, before);
      StepResult bad = train_step(&t);
      weights_hash(t.model, after);
      CHECK(!bad.finite && !bad.taken && t.state.step == 2 && t.state.updates == 1 && t.state.outlier_count == 1);
      CHECK_STR(after, before);
      char *finding = finding_of(&t);
      CHECK_MSG(!strncmp(finding, cases[i].finding, strlen(cases[i].finding)), "%s: %s: \"%s\"", t.device->name, cases[i].tensor, finding);
      free(finding);
      poke(t.model, cases[i].tensor, 3, old, NULL);          // the run goes on behind the dropped step
      CHECK(train_step(&t).taken && t.state.step == 3 && t.state.updates == 2);
      trainer_close(&t);
    }
}

// Of the numbers each is finite, but not their squares: the scale of the last norm, and so the head's gradient, is about 1e156.
static void a_norm_that_overflows_is_explained(void) {
  Trainer t = trainer_open("--batch 4 --steps 4 --device reference --out huge");
  run_create_folder(t.run, "", 0);
  for (size_t i = 0; i < 16; i++) poke(t.model, "transformer.ln_f.weight", i, 1e156, NULL);
  run_save(t.run, t.model, &t.state);
  trainer_close(&t);
  char *argv[] = {"--resume", "copy"};          // this process has locked huge itself
  CHECK(system("cp -r huge copy") == 0);
  Options o;
  options_parse(&o, COMMAND_TRAIN, "train", ARRAY_LEN(argv), argv);
  EXPECT_FAIL(EXIT_NO, "step 1: every tensor is finite, but the sum of squares of the gradients overflows; the weights are as before",
              if (!freopen("/dev/null", "w", stdout)) abort(); train_command(&o));
  free(o.args);
}

static void an_outlier_is_dropped_and_learned(void) {
  Trainer t = trainer_open("--batch 4 --steps 200 --skip-outliers 3");
  char before[65], after[65];
  for (int i = 0; i < 20; i++) t.state.outlier_window[t.state.outlier_count++] = 1e-3 * (1 + i % 2);    // as if norms had been tiny
  double limit = outlier_limit(&t.state, 3);
  weights_hash(t.model, before);
  StepResult result = train_step(&t);
  weights_hash(t.model, after);
  CHECK_MSG(result.finite && !result.taken && result.grad_norm > limit, "norm %g, limit %g", result.grad_norm, limit);
  CHECK_STR(after, before);
  CHECK(t.state.outlier_window[20] == limit);
  int dropped = 1;
  while (dropped < 199 && !train_step(&t).taken) dropped++;
  CHECK_MSG(dropped < 199, "a lasting change of scale must be learned");
  trainer_close(&t);
}

// ---- the watching device ----

static void a_watched_step_is_the_same_step(void) {
  char expected[65], hex[65];
  for (int mode = 0; mode < 3; mode++) {
    Trainer t = trainer_open("--batch 4 --steps 20 --dropout 0.1");
    Device *watched = mode ? watch_device(t.device, t.model, mode == 1 ? WATCH_TRACE : WATCH_CHECK) : t.device;
    gpt_set_device(t.model, watched);
    for (int step = 0; step < 3; step++) train_step(&t);
    gpt_set_device(t.model, t.device);
    weights_hash(t.model, mode ? hex : expected);
    if (mode) CHECK_STR(hex, expected);
    if (mode) CHECK(watch_finding(watched) == NULL);
    if (mode) watch_destroy(watched);
    trainer_close(&t);
  }
}

static void trace_adds_up(void) {
  Trainer t = trainer_open("--batch 4 --tokens-per-step 128 --steps 20");
  Device *watched = watch_device(t.device, t.model, WATCH_TRACE);
  gpt_set_device(t.model, watched);
  double start = seconds_now();
  train_step(&t);
  double seconds = seconds_now() - start;
  FILE *f = tmpfile();
  if (!f) abort();
  watch_print(watched, f, seconds);
  gpt_set_device(t.model, t.device);
  watch_destroy(watched);
  rewind(f);
  char line[512], word[32];
  double listed = 0, by_kind = 0, total = -1, ms;
  int operations = 0, linear = 0, count = -1;
  while (fgets(line, sizeof line, f)) {
    bool trace = !strncmp(line, "trace  ", 7);
    if (trace && strstr(line, "operation") == line + 7) continue;
    if (trace) {                       // ... shape, ms, MB, GB/s, GFLOP/s: columns of fixed width
      operations++;
      linear += !strncmp(line + 7, "linear_forward ", 15);
      CHECK_MSG(sscanf(line + 7 + 24 + 43 + 33, "%lf", &ms) == 1 && ms >= 0, "%s", line);
      listed += ms;
    } else if (sscanf(line, "sum %d operations %lf", &count, &total) == 2) continue;
    else if (!strncmp(line, "sum    memory: ", 15)) continue;
    else if (sscanf(line, "sum %31s %lf", word, &ms) == 2) by_kind += ms;
    else CHECK_MSG(false, "%s", line);
  }
  fclose(f);
  CHECK_EQ(count, operations);
  CHECK_EQ(linear, 2 * (2 * 4 + 1));   // two micro-batches of two blocks and the head
  CHECK_NEAR(listed, total, 1e-3 * operations, "each is printed to a thousandth");
  CHECK_NEAR(by_kind, total, 1e-3 * operations, "each is printed to a thousandth");
  CHECK_MSG(total > 0 && total <= 1e3 * seconds, "%g ms of %g", total, 1e3 * seconds);
  trainer_close(&t);
}

int main(int argc, char **argv) {
  char folder[512];
  snprintf(folder, sizeof folder, "%s/gpt_train_XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  TEST_BEGIN(argc, argv);
  if (!mkdtemp(folder) || chdir(folder)) return 1;
  make_text();
  RUN(every_schedule_warms_up_and_ends);
  RUN(shapes);
  RUN(the_last_rate_is_the_lowest);
  RUN(bias_correction_counts_updates);
  RUN(window_gives_the_limit);
  RUN(advance_counts_and_keeps_bad_norms_out);
  RUN(a_step_trains);
  RUN(micro_batches_change_no_bit);
  RUN(a_step_is_timed_by_phase);
  RUN(one_batch_is_learned_by_heart);
  RUN(files_are_divided);
  RUN(the_vocabulary_grows_with_the_text);
  RUN(small_texts);
  RUN(a_bad_step_changes_nothing_and_is_explained);
  RUN(a_norm_that_overflows_is_explained);
  RUN(an_outlier_is_dropped_and_learned);
  RUN(a_watched_step_is_the_same_step);
  RUN(trace_adds_up);
  if (chdir("/") == 0) remove_tree(folder);
  return TEST_END();
}
