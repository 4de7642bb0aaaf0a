// test_train.c: owns the proof of train_step() and what it is made of: schedules, the outlier window, bad steps, accumulation,
// overfitting one batch, and the device that watches. Whole runs from the command line are tested in test_cli_train.sh.
//
// Everything happens in a temporary folder with a made-up text; the trainer is put together here as train.c does it.
#include "../corpus.h"      // corpus_vocabulary
#include "../detmath.h"     // det_pow
#include "../load.h"        // device_open
#include "../rng.h"         // rng_below
#include "../train.h"       // the trainer
#include "../watch.h"       // watch_device
#include "test.h"           // RUN, CHECK
#include <fcntl.h>          // open
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

// What these numbers are does not matter much, that they never change does: a run resumed by a later version goes on at its rates.
static void every_rate_is_pinned(void) {
  Buffer rates = {0};
  for (uint64_t i = 0; i < 60; i++)
    for (int shape = SCHEDULE_COSINE; shape <= SCHEDULE_CONSTANT; shape++) {
      Options o = schedule(shape, 1 + (int64_t)rng_below(60, 2, 0, rng_site("steps"), i), (int64_t)rng_below(9, 2, 0, rng_site("warmup"), i), (int64_t)rng_below(30, 2, 0, rng_site("decay"), i));
      o.lr = rng_uniform(2, 0, rng_site("lr"), i);
      o.min_lr = o.lr * rng_uniform(2, 0, rng_site("min"), i);
      for (int64_t step = 0; step < o.steps + 3; step++) buffer_printf(&rates, "%d %lld/%lld %a\n", shape, (long long)step, (long long)o.steps, learning_rate(&o, step));
    }
  char hex[65];
  sha256_of(rates.data, rates.len, hex);
  CHECK_STR(hex, "559cdc8c5b596896ff3389d93e70c213cc7480716f94697c9ada8f4f8ab6a2b7");
  buffer_free(&rates);
}

static void minutes_are_steps(void) {
  CHECK_EQ(steps_in(1, 0.5), 120);
  CHECK_EQ(steps_in(0.5, 7), 4);
  CHECK_EQ(steps_in(0.01, 0.61), 1);
  CHECK_EQ(steps_in(1e-9, 0.5), 1);
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

// Documents of a separator stay whole; a file is cut before a character, and what is no text anywhere.
static void texts_are_cut_at_characters(void) {
  static const struct { const char *first, *second, *fraction, *separator, *train, *val; } cases[] = {
    {"abcd", "\xc3\xa9xyz", "0.4", NULL, "|abcd|", "|\xc3\xa9xyz|"},                    // in the middle of the first character
    {"abcd", "x\xe2\x82\xacyz", "0.25", NULL, "|abcd|x|", "\xe2\x82\xacyz|"},           // ... of a later one, behind its second byte
    {"abcd", "x\xe2\x82\xacyz", "0.4", NULL, "|abcd|x|", "\xe2\x82\xacyz|"},            // ... behind its first
    {"abcd", "xy\xc3\xa9z", "0.4", NULL, "|abcd|x|", "y\xc3\xa9z|"},
    {"abcd", "\x80\x81\x82\x83\x84", "0.4", NULL, "|abcd|", "|\x80\x81\x82\x83\x84|"},
    {"abcd", "efgh", "0.5", NULL, "|abcd|", "|efgh|"},
    {"abcd", "efgh", "0.25", NULL, "|abcd|ef|", "gh|"},
    {"abcd", "ef#gh", "0.25", "#", "|abcd|ef|", "|gh|"},
    {"abcd", "ef#gh", "0.3", "#", "|abcd|", "|ef|gh|"},
    {"##ab##", "cd#efgh#", "0.5", "#", "|ab|cd|", "|efgh|"}};
  for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
    char *argv[] = {"1.txt", "2.txt", "--tokenizer", "byte", "--val-fraction", (char *)(uintptr_t)cases[c].fraction, "--context", "4", "--layers", "1", "--channels", "8", "--heads", "1",
                    "--separator", (char *)(uintptr_t)cases[c].separator};
    replace_file(argv[0], cases[c].first, strlen(cases[c].first));
    replace_file(argv[1], cases[c].second, strlen(cases[c].second));
    Options o;
    Run *r = prepared((int)ARRAY_LEN(argv) - (cases[c].separator ? 0 : 2), argv, &o);
    char train[100], val[100];
    text_of(r->train, train);
    text_of(r->val, val);
    CHECK_STR(train, cases[c].train);
    CHECK_STR(val, cases[c].val);
    CHECK(r->vocab == 257 && r->token_bytes['a'] == 1 && r->token_bytes[255] == 1 && r->token_bytes[256] == 0);
    run_free(r);
    free(o.args);
  }
}

static void prepare_separated(const char *text, const char *separator, const char *fraction) {
  char *argv[] = {"separated.txt", "--tokenizer", "char", "--context", "4", "--layers", "1", "--channels", "8", "--heads", "1", "--val-fraction", (char *)(uintptr_t)fraction,
                  "--separator", (char *)(uintptr_t)separator};
  Options o;
  replace_file(argv[0], text, strlen(text));
  run_free(prepared(ARRAY_LEN(argv), argv, &o));
  free(o.args);
}

// Documents that stay whole need another beside the one that validates: what is wrong is the separator, not the length of the text.
static void separators_that_separate_nothing(void) {
  EXPECT_FAIL(2, "--separator is empty; give the text that stands between documents, or leave the flag out", prepare_separated("abcdefgh#ijklmnop", "", "0.1"));
  EXPECT_FAIL(2, "--separator is empty", prepare_separated("abcdefgh#ijklmnop", "", "0"));
  EXPECT_FAIL(2, "--separator \"@\\n\" occurs nowhere in the text: 1 document is found, at least 2 are needed, since documents stay whole and the last validate; "
                 "name what stands between them, or use --val-fraction 0\n", prepare_separated("abcdefgh#ijklmnop", "@\n", "0.1"));
  EXPECT_FAIL(2, "--separator \"#\" stands between no two documents: 1 document is found, at least 2 are needed", prepare_separated("##abcdefgh#", "#", "0.1"));
  EXPECT_FAIL(2, "--separator \"#\": nothing else stands in the text: 0 documents are found, at least 1 is needed", prepare_separated("###", "#", "0.1"));
  EXPECT_FAIL(2, "0 documents are found", prepare_separated("###", "#", "0"));
  EXPECT_FAIL(2, "--separator \"#\": the first of 3 documents has 10 of their 12 bytes, and documents stay whole: with --val-fraction 0.2 all of them validate; "
                 "use at most --val-fraction 0.166", prepare_separated("abcdefghij#k#l", "#", "0.2"));
  EXPECT_FAIL(2, "the first of 2 documents has 7 of their 10 bytes", prepare_separated("abcdefg#hij", "#", "0.301"));
  prepare_separated("abcdefghij#k#l", "#", "0.166");
  prepare_separated("abcdefg#hij", "#", "0.3");
  prepare_separated("abcdefgh#ijklmnop", "@", "0");
}

// A file without text among others is no document; one document needs no token between documents; all of them empty is refused.
static void empty_files(void) {
  char *argv[] = {"empty.txt", "full.txt", "--tokenizer", "byte", "--context", "2", "--layers", "1", "--channels", "8", "--heads", "1", "--val-fraction", "0"};
  replace_file("empty.txt", "", 0);
  replace_file("full.txt", "abcd", 4);
  for (int swap = 0; swap < 2; swap++) {
    argv[swap] = "empty.txt", argv[1 - swap] = "full.txt";
    Options o;
    Run *r = prepared(ARRAY_LEN(argv), argv, &o);
    char train[100];
    text_of(r->train, train);
    CHECK_STR(train, "abcd");
    CHECK(r->vocab == 256 && r->eot == -1 && r->text_bytes == 4 && r->val == NULL);
    run_free(r);
    free(o.args);
  }
  argv[0] = argv[1] = "empty.txt";
  Options o;
  EXPECT_FAIL(EXIT_REQUEST, "gpt: empty.txt: the text is empty: 0 bytes in 2 files; name one with text in it\n", prepared(ARRAY_LEN(argv), argv, &o));
  replace_file("one.txt", "x", 1);
  argv[1] = "one.txt";
  EXPECT_FAIL(EXIT_REQUEST, "it leaves 1 tokens for training, at least 2 are needed", prepared(ARRAY_LEN(argv), argv, &o));
}

// Too little to validate on is said, and what becomes of it.
static void little_to_validate_on(void) {
  static const struct { const char *text, *tokenizer, *fraction, *separator, *said; bool val; } cases[] = {
    {"abcdefghij", "byte", "1e-17", NULL, "gpt: warning: --val-fraction 1e-17 leaves 0 tokens of this text for validation, at least 2 are needed: nothing validates this run; take a larger one, or 0\n", false},
    {"abcdefghij", "byte", "0.1", NULL, "gpt: warning: --val-fraction 0.1 leaves 1 token of this text for validation, at least 2 are needed: it is left out, and nothing validates this run; take a larger one, or 0\n", false},
    {"abcdefghij", "byte", "0.2", NULL, "gpt: warning: 2 tokens to validate on are less than a window of 4: all of them are used, in one window that they do not fill, and such a loss says little; "
                                        "take more text, or a larger --val-fraction\n", true},
    {"abcdefghij", "byte", "0.4", NULL, "gpt: warning: 4 tokens to validate on are less than a window of 4", true},
    {"abcdefghij", "byte", "0.5", NULL, "gpt: warning: nothing else\n", true},
    {"abcdefghij", "byte", "0", NULL, "gpt: warning: nothing else\n", false},
    {"ab#cd#ef", "byte", "0.3", "#", "gpt: warning: nothing else\n", true}};      // its documents are rows of their own
  for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
    char *argv[] = {"little.txt", "--tokenizer", (char *)(uintptr_t)cases[c].tokenizer, "--val-fraction", (char *)(uintptr_t)cases[c].fraction, "--context", "4", "--layers", "1", "--channels", "8",
                    "--heads", "1", "--separator", (char *)(uintptr_t)cases[c].separator};
    replace_file(argv[0], cases[c].text, strlen(cases[c].text));
    Options o;
    EXPECT_FAIL(0, cases[c].said, {
      Run *r = prepared((int)ARRAY_LEN(argv) - (cases[c].separator ? 0 : 2), argv, &o);
      if ((r->val != NULL) != cases[c].val) _exit(9);
      if (strstr(cases[c].said, "else")) warn("nothing else");
    });
  }
  replace_file("four.bin", "a\0b\0c\0d", 8);
  replace_file("one.bin", "a", 2);
  char *argv[] = {"--train-data", "four.bin", "--val-data", "one.bin", "--raw", "u16", "--tokenizer", "byte", "--context", "2", "--layers", "1", "--channels", "8", "--heads", "1"};
  Options o;
  EXPECT_FAIL(EXIT_REQUEST, "gpt: one.bin: 1 token to validate on, at least 2 are needed: one to predict the other from; name other shards with --val-data, or only those to train on, DIR/train_*.bin\n",
              prepared(ARRAY_LEN(argv), argv, &o));
}

// What a flag says of a text has no effect on shards or stories, nor --raw on a text.
static void flags_of_other_data(void) {
  static const struct { const char *args, *refusal; } cases[] = {
    {"--train-data none.bin --separator #", "gpt: --separator is for a TEXT, and the documents and the validation of shards were chosen when they were built; leave it out, or name a TEXT\n"},
    {"--train-data none.bin --val-fraction 0", "gpt: --val-fraction is for a TEXT, and the documents and"},
    {"--separator #", "gpt: --separator is for a TEXT, and the embedded stories have their own documents and validation; leave it out, or name a TEXT\n"},
    {"--val-fraction 0.2", "gpt: --val-fraction is for a TEXT, and the embedded stories"},
    {"full.txt --raw u16", "gpt: --raw is for shards, and none are named; name them with --train-data, or leave it out\n"},
    {"--raw u32", "gpt: --raw is for shards"},
    {"--train-data none.bin --config standard.conf", "gpt: none.bin: 0 "}};      // settings that say what holds anyway
  replace_file("full.txt", "abcdefgh", 8);
  replace_file("standard.conf", "val-fraction = 0.1\nraw = no\n", 28);
  for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
    char *text = xstrdup(cases[c].args), *argv[MOST_ARGS], *save;
    int argc = 0;
    for (char *p = strtok_r(text, " ", &save); p; p = strtok_r(NULL, " ", &save)) argv[argc++] = p;
    Options o;
    EXPECT_FAIL(EXIT_REQUEST, cases[c].refusal, prepared(argc, argv, &o));
    free(text);
  }
}

// Shards with and without the hash of their tokenizer, and with another one's.
static void shards_and_their_tokenizer(void) {
  static const char common[] = "--context 4 --layers 1 --channels 8 --heads 1 --train-data shards/t.bin";
  static const struct { const char *digit, *eot, *flags; bool beside; int vocab, run_eot; const char *refusal; } cases[] = {
    {"own", "", "", true, 257, 256, NULL}, {"own", "", "", false, 257, 256, NULL}, {"own", "", "--tokenizer shards/tokenizer.json", true, 257, 256, NULL},
    {"0", "", "", true, 257, 256, NULL}, {"0", "none", "", false, 257, -1, NULL}, {"0", "none", "", true, 257, 256, NULL},
    {"raw", "", "--raw u16 --tokenizer shards/tokenizer.json", true, 257, 256, NULL},
    {"raw", "", "--raw u16", true, 0, 0, "these shards do not say their vocabulary"},
    {"1", "", "", true, 0, 0, "shards/t.bin: made with tokenizer 111111111111, this one is "},
    {"1", "", "--tokenizer shards/tokenizer.json", false, 0, 0, "name the tokenizer.json that they were made with"}};
  Tokenizer *byte = tokenizer_byte(true);
  Buffer json = {0};
  char own[65];
  tokenizer_json(byte, &json);
  tokenizer_sha256(byte, own);
  make_directory("shards");
  for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
    uint8_t header[SHARD_HEADER_BYTES];
    Shard s = {.width = 2, .count = 40, .documents = 1, .vocab = 257, .eot = *cases[c].eot ? -1 : 256};
    if (!strcmp(cases[c].digit, "own")) memcpy(s.tokenizer, own, 65);
    else memset(s.tokenizer, *cases[c].digit, 64);
    shard_header(&s, header);
    Buffer bytes = {0};
    if (strcmp(cases[c].digit, "raw")) buffer_append(&bytes, header, sizeof header);
    for (int i = 0; i < 40; i++) buffer_append(&bytes, i ? "a\0" : "\0\1", 2);
    replace_file("shards/t.bin", bytes.data, bytes.len);
    buffer_free(&bytes);
    remove("shards/tokenizer.json");
    if (cases[c].beside || strstr(cases[c].flags, "--tokenizer")) replace_file("shards/tokenizer.json", json.data, json.len);
    char *text = format("%s %s", common, cases[c].flags), *argv[MOST_ARGS], *save;
    int argc = 0;
    for (char *p = strtok_r(text, " ", &save); p; p = strtok_r(NULL, " ", &save)) argv[argc++] = p;
    Options o;
    if (cases[c].refusal) { EXPECT_FAIL(EXIT_REQUEST, cases[c].refusal, prepared(argc, argv, &o)); free(text); continue; }
    Run *r = prepared(argc, argv, &o);
    CHECK_MSG(r->vocab == cases[c].vocab && r->eot == cases[c].run_eot && (r->tokenizer != NULL) == (cases[c].beside || strstr(cases[c].flags, "--tokenizer")), "case %zu: vocabulary %d, %d", c, r->vocab, r->eot);
    CHECK(!r->val && r->text_bytes == 0);
    run_free(r);
    free(o.args);
    free(text);
  }
  tokenizer_free(byte);
  buffer_free(&json);
}

// Neither split can change unseen.
static void the_hash_is_of_both_splits(void) {
  char *argv[] = {"hashed.txt", "--tokenizer", "byte", "--context", "4", "--layers", "1", "--channels", "8", "--heads", "1"}, hash[3][65];
  for (int i = 0; i < 3; i++) {
    char text[41] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    if (i) text[i == 1 ? 3 : 38] = 'b';
    replace_file(argv[0], text, 40);
    Options o;
    Run *r = prepared(ARRAY_LEN(argv), argv, &o);
    memcpy(hash[i], r->data_hash, 65);
    run_free(r);
    free(o.args);
  }
  CHECK(strcmp(hash[0], hash[1]) && strcmp(hash[0], hash[2]) && strcmp(hash[1], hash[2]));
}

// About a thousand bytes of text for each entry: from 1 MiB on more than 512.
static void the_vocabulary_grows_with_the_text(void) {
  for (int64_t vocab = 1024; vocab <= 8192; vocab *= 2) {
    CHECK_EQ(corpus_vocabulary((size_t)vocab * 1024 - 1), vocab / 2);
    CHECK_EQ(corpus_vocabulary((size_t)vocab * 1024), vocab);
  }
  CHECK(corpus_vocabulary(0) == 512 && corpus_vocabulary((size_t)16384 * 1024) == 8192 && corpus_vocabulary(PTRDIFF_MAX) == 8192);
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
    {"ab#abcd#xy", "5", "0.2", "#", true, true}, {"ab#abcd#xy", "4", "0.2", "#", false, true}, {"ab#xy#abcd", "5", "0.4", "#", true, true}, {"ab#xy#abcd", "4", "0.4", "#", false, true},
    {"abcdef", "5", "0", "#", false, false}};      // one document, which no token ends
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

// A norm that is just as large as the limit is taken: one norm of 16 n among zeros has the mean n, and Z is too small for a deviation to be seen beside it.
static void a_norm_at_the_limit_is_taken(void) {
  static const char flags[] = "--batch 4 --steps 200 --skip-outliers 1";
  Trainer t = trainer_open(flags), again = trainer_open(flags);
  const double norm = train_step(&t).grad_norm;
  again.run->o->skip_outliers = 1e-300;
  again.state.outlier_window[0] = 16 * norm;
  again.state.outlier_count = 16;
  CHECK(outlier_limit(&again.state, 1e-300) == norm);
  StepResult result = train_step(&again);
  CHECK(result.grad_norm == norm && result.taken && again.state.updates == 1);
  trainer_close(&t);
  trainer_close(&again);
}

// ---- what happens beside a step ----

// Runs a statement with stdout and stderr in files, and takes what it has said; freed by the caller.
#define SAID(out, err, ...) do { \
    fflush(NULL); int old1_ = dup(1), old2_ = dup(2), one_ = open("said.out", O_RDWR | O_CREAT | O_TRUNC, 0666), two_ = open("said.err", O_RDWR | O_CREAT | O_TRUNC, 0666); \
    dup2(one_, 1); dup2(two_, 2); __VA_ARGS__; fflush(NULL); dup2(old1_, 1); dup2(old2_, 2); close(old1_); close(old2_); close(one_); close(two_); \
    size_t n_; out = read_file("said.out", "words", 1 << 20, &n_); err = read_file("said.err", "words", 1 << 20, &n_); } while (0)

static char *log_of(const char *run, size_t from) {
  size_t n;
  char *path = format("%s/log.jsonl", run), *text = read_file(path, "log", 1 << 20, &n);
  memmove(text, text + MIN(from, n), n + 1 - MIN(from, n));
  free(path);
  return text;
}

// The line, the log, and their figures to the last digit, for steps of known length. Four ranks have four times the peak.
static void a_step_is_said(void) {
  char *out, *err, *log;
  Trainer t = trainer_open("--batch 4 --steps 1000000 --log-every 1 --val-every 0 --sample-every 0 --save-every 0 --schedule constant --skip-outliers 3 --out said");
  SAID(out, err, run_create_folder(t.run, "", 0));
  free(out);
  free(err);
  log = log_of("said", 0);
  const size_t before = strlen(log);
  free(log);
  const double peak = t.device->peak_flops;
  t.device->peak_flops = 1e9;
  t.comm->world = 4;
  t.next_report = seconds_now() + 5;
  StepResult good = {.loss = 5.25, .grad_norm = 1.5, .lr = 1e-3, .finite = true, .taken = true}, outlier = {.loss = 5.125, .grad_norm = 70.5, .lr = 2e-3, .finite = true};
  SAID(out, err, {
    t.state.step = 7, t.state.tokens_seen = 448; trainer_after_step(&t, &good, 0.0005);
    t.state.step = 8, t.state.tokens_seen = 512; trainer_after_step(&t, &good, 0.0003);
    snprintf(t.slow, sizeof t.slow, "rank 1 is slow");
    t.times.slow_rank = 1;
    t.state.step = 9; trainer_after_step(&t, &outlier, 0.0013);
    t.device->peak_flops = 0.25;
    t.state.step = 10; trainer_after_step(&t, &good, 0.25);
    snprintf(t.slow, sizeof t.slow, "rank 0 is slow");
    t.times.slow_rank = 0;
    t.device->peak_flops = 0;
    t.state.step = 11; trainer_after_step(&t, &good, 2);
    t.slow[0] = 0;
    t.state.step = 999999; trainer_after_step(&t, &good, 61);
  });
  CHECK_STR(out, "step      7/1000000  loss 5.2500  lr 1.00e-03  norm 1.50  0.5 ms  128.0k tok/s  215% of peak  eta 8:19\n"
                 "step      8/1000000  loss 5.2500  lr 1.00e-03  norm 1.50  0.3 ms  213.3k tok/s  358% of peak  eta 4:59\n"
                 "step      9/1000000  loss 5.1250  lr 2.00e-03  norm 70.50  0.8 ms  80.0k tok/s  134% of peak  eta 13:19\n"
                 "step     10/1000000  loss 5.2500  lr 1.00e-03  norm 1.50  83.9 ms  0.8k tok/s  5128139905% of peak  eta 1397:45\n"
                 "step     11/1000000  loss 5.2500  lr 1.00e-03  norm 1.50  562.9 ms  0.1k tok/s  eta 9381:33\n"
                 "step 999999/1000000  loss 5.2500  lr 1.00e-03  norm 1.50  12650.3 ms  0.0k tok/s  eta 0:12\n");
  CHECK_STR(err, "gpt: warning: step 9: rank 1 is slow\n"
                 "gpt: warning: step 9: gradient norm 70.5 lies over --skip-outliers 3 deviations: the step was dropped\n"
                 "gpt: warning: step 11: rank 0 is slow\n");
  log = log_of("said", before);
  CHECK_STR(log, "{\"kind\": \"step\", \"step\": 7, \"loss\": 5.25, \"lr\": 0.001, \"grad_norm\": 1.5, \"ms\": 0.500, \"tokens\": 448, \"tokens_per_s\": 128000.0}\n"
                 "{\"kind\": \"step\", \"step\": 8, \"loss\": 5.25, \"lr\": 0.001, \"grad_norm\": 1.5, \"ms\": 0.300, \"tokens\": 512, \"tokens_per_s\": 213333.3}\n"
                 "{\"kind\": \"step\", \"step\": 9, \"loss\": 5.125, \"lr\": 0.002, \"grad_norm\": 70.5, \"ms\": 1.300, \"tokens\": 512, \"tokens_per_s\": 49230.8}\n"
                 "{\"kind\": \"warn\", \"step\": 9, \"what\": \"slow rank\", \"text\": \"rank 1 is slow\"}\n"
                 "{\"kind\": \"warn\", \"step\": 9, \"what\": \"outlier\", \"grad_norm\": 70.5}\n"
                 "{\"kind\": \"step\", \"step\": 10, \"loss\": 5.25, \"lr\": 0.001, \"grad_norm\": 1.5, \"ms\": 250.000, \"tokens\": 512, \"tokens_per_s\": 256.0}\n"
                 "{\"kind\": \"warn\", \"step\": 10, \"what\": \"slow rank\", \"text\": \"rank 1 is slow\"}\n"
                 "{\"kind\": \"step\", \"step\": 11, \"loss\": 5.25, \"lr\": 0.001, \"grad_norm\": 1.5, \"ms\": 2000.000, \"tokens\": 512, \"tokens_per_s\": 32.0}\n"
                 "{\"kind\": \"warn\", \"step\": 11, \"what\": \"slow rank\", \"text\": \"rank 0 is slow\"}\n"
                 "{\"kind\": \"step\", \"step\": 999999, \"loss\": 5.25, \"lr\": 0.001, \"grad_norm\": 1.5, \"ms\": 61000.000, \"tokens\": 512, \"tokens_per_s\": 1.0}\n");
  free(log);
  free(out);
  free(err);
  // report.html: not with each step, but every five seconds
  CHECK(!file_exists("said/report.html"));
  t.next_report -= 6;
  SAID(out, err, trainer_after_step(&t, &good, 1));
  free(out);
  free(err);
  CHECK(file_exists("said/report.html"));
  remove("said/report.html");
  SAID(out, err, trainer_after_step(&t, &good, 1));
  CHECK(!file_exists("said/report.html"));
  free(out);
  free(err);
  // what cannot be reported ends no run
  rename("said/log.jsonl", "said/log.away");
  t.next_report = 0;
  SAID(out, err, trainer_after_step(&t, &good, 1));
  CHECK_STR(err, "gpt: warning: said: no report: log.jsonl cannot be read: No such file or directory\n");
  CHECK(!file_exists("said/report.html") && t.next_report > seconds_now() + 4);
  rename("said/log.away", "said/log.jsonl");
  free(out);
  free(err);
  t.device->peak_flops = peak;
  trainer_close(&t);
}

// ---- several ranks, of which the others are a mirror: they have the same numbers as this one, and take their time ----

static struct { Buffer calls; int syncs; double pause; } mirror;

static void mirror_sync(Device *d) { (void)d; mirror.syncs++; usleep((useconds_t)(1e6 * mirror.pause)); }

static void mirror_call(Comm *c, const char *name, size_t n, CommType type) {
  buffer_printf(&mirror.calls, "%s %zu of %zu%s\n", name, n, comm_type_size(type), isinf(c->deadline) ? ", however long" : "");
  usleep((useconds_t)(1e6 * mirror.pause));
  c->bytes_received += 100;
}
static void mirror_add(void *x, size_t n, CommType type) {
  for (size_t i = 0; i < n; i++) if (type == COMM_F64) ((double *)x)[i] *= 2; else ((float *)x)[i] *= 2;
}
static void mirror_all_reduce(Comm *c, void *x, size_t n, CommType type) { mirror_call(c, "all_reduce", n, type); mirror_add(x, n, type); }
static void mirror_reduce_scatter(Comm *c, void *x, size_t n, CommType type) { mirror_call(c, "reduce_scatter", n, type); mirror_add(x, n, type); }
static void mirror_all_gather(Comm *c, void *x, size_t n, CommType type) { (void)x; mirror_call(c, "all_gather", n, type); }
static void mirror_barrier(Comm *c) { mirror_call(c, "barrier", 0, COMM_F32); }
// One whose calls only give work to the device: it is done when finish returns.
static struct { void *x; size_t n; CommType type; } begun[8];
static int begun_count;
static void mirror_begin(Comm *c, CommCall call, void *x, size_t n, CommType type) {
  mirror_call(c, comm_call_names[call], n, type);
  begun[begun_count].x = x, begun[begun_count].n = n, begun[begun_count++].type = type;
}
static void mirror_finish(Comm *c) {
  mirror_call(c, "finish", 0, COMM_F32);
  while (begun_count) { begun_count--; mirror_add(begun[begun_count].x, begun[begun_count].n, begun[begun_count].type); }
}

static void mirrored_open(Trainer *t, const char *flags, int rank, bool on_device) {
  *t = trainer_open(flags);
  t->comm->world = 2, t->comm->rank = rank, t->comm->deadline = 60;
  t->comm->all_reduce = mirror_all_reduce, t->comm->reduce_scatter = mirror_reduce_scatter, t->comm->all_gather = mirror_all_gather, t->comm->barrier = mirror_barrier;
  if (on_device) t->comm->begin = mirror_begin, t->comm->finish = mirror_finish;
  t->device->sync = mirror_sync;
  trainer_join_ranks(t);
  t->next_report = INFINITY;            // there is no folder
  mirror.calls.len = 0;
  mirror.syncs = 0;
  mirror.pause = 0;
}

static void mirrored_close(Trainer *t) {
  gpt_set_reducer(t->model, NULL);
  comm_queue_destroy(t->queue);
  trainer_close(t);
}

static void one_rank_has_no_queue(void) {
  Trainer t = trainer_open("--batch 4 --steps 20");
  trainer_join_ranks(&t);
  CHECK(t.queue == NULL && t.device_comm == t.comm);
  trainer_close(&t);
}

// What is summed, in which order, behind how many waits for the device; the loss is that of all rows; and the time is the phase's.
static void gradients_are_summed_over_ranks(void) {
  static const struct { const char *flags; bool on_device; int syncs, in_backward; const char *calls; } cases[] = {     // two blocks, embeddings, last norm
    {"--batch 4 --steps 20 --ranks 2 --tokens-per-step 128", false, 6, 3, "all_reduce 3280 of 4\nall_reduce 3280 of 4\nall_reduce 4352 of 4\nall_reduce 32 of 4\nall_reduce 1 of 8\n"},
    {"--batch 4 --steps 20 --ranks 2 --tokens-per-step 128", true, 1, 1, "all_reduce 3280 of 4\nall_reduce 3280 of 4\nall_reduce 4352 of 4\nall_reduce 32 of 4\nall_reduce 1 of 8\nfinish 0 of 4\n"},
    {"--batch 2 --steps 20 --ranks 2 --tokens-per-step 128 --zero 1", false, 12, 4,
     "reduce_scatter 3280 of 4\nreduce_scatter 3280 of 4\nreduce_scatter 4352 of 4\nreduce_scatter 32 of 4\nall_reduce 1 of 8\nall_reduce 1 of 8\n"
     "all_gather 4352 of 4\nall_gather 3280 of 4\nall_gather 3280 of 4\nall_gather 32 of 4\n"}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    Trainer t;
    mirrored_open(&t, cases[i].flags, 0, cases[i].on_device);
    mirror.pause = 0.02;
    double start = seconds_now();
    StepResult result = train_step(&t);
    double took = seconds_now() - start;
    CHECK_NEAR(result.loss, log(256), 0.2, "case %zu", i);
    CHECK_STR(mirror.calls.data, cases[i].calls);
    CHECK_EQ(mirror.syncs, cases[i].syncs);        // before an array is handed over that a transport reads itself, and before the ranks are waited for
    const bool zero = t.run->gpt.shards > 1;
    const uint64_t numbers = gpt_table(t.model)->total;
    CHECK_EQ(t.reduced_bytes, 4 * numbers + (zero ? 32 : 8));
    CHECK_EQ(t.gathered_bytes, zero ? 4 * numbers : 0);
    CHECK_EQ(t.received_gathering, zero ? 400 : 0);
    CHECK_MSG(zero ? t.gathering >= 4 * 0.02 && t.gathering < took : t.gathering == 0, "%g s of %g", t.gathering, took);
    CHECK_MSG(t.times.own[PHASE_BACKWARD] >= 0.02 * cases[i].in_backward, "%g s", t.times.own[PHASE_BACKWARD]);
    mirrored_close(&t);
  }
}

// Ranks above 0 give their part of a checkpoint, however long rank 0 takes over it, say nothing and write nothing.
static void other_ranks_wait_for_rank_0(void) {
  char *out, *err;
  Trainer t;
  mirrored_open(&t, "--batch 2 --steps 20 --ranks 2 --tokens-per-step 128 --zero 1 --save-every 4 --val-every 3 --sample-every 3 --log-every 1", 1, false);
  StepResult result = {.finite = true, .taken = true};
  for (int64_t step = 2; step <= 4; step++) {
    t.state.step = step;
    mirror.calls.len = 0;
    SAID(out, err, trainer_after_step(&t, &result, 1));
    CHECK_STR(out, "");
    CHECK_STR(err, "");
    CHECK_STR(mirror.calls.len ? mirror.calls.data : "", step == 2 ? "" : step == 3 ? "barrier 0 of 4, however long\n" : "all_gather 4352 of 4, however long\nall_gather 3280 of 4, however long\nall_gather 3280 of 4, however long\nall_gather 32 of 4, however long\n"
              "all_gather 4352 of 4, however long\nall_gather 3280 of 4, however long\nall_gather 3280 of 4, however long\nall_gather 32 of 4, however long\nbarrier 0 of 4, however long\n");       // m, then v
    CHECK(t.comm->deadline == 60);
    free(out);
    free(err);
  }
  mirrored_close(&t);
}

// The step is looked at once more by each rank alone; the lowest that finds something is heard; then all goes on as before.
static void a_bad_step_is_explained_by_each_rank_alone(void) {
  static const struct { int rank; const char *flags, *calls, *err; } cases[] = {
    {0, "--on-nonfinite skip", "all_gather 128 of 4\n", "gpt: warning: step 1: embedding_forward: layer 0 residual: "},
    {1, "--on-nonfinite skip", "all_gather 128 of 4\n", ""}, {1, "--on-nonfinite stop", "all_gather 128 of 4\nbarrier 0 of 4\n", ""}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    char *flags = format("--batch 4 --steps 20 --ranks 2 --tokens-per-step 128 --val-every 0 --sample-every 0 --save-every 0 %s", cases[i].flags), *out, *err;
    Trainer t;
    double old;
    mirrored_open(&t, flags, cases[i].rank, false);
    poke(t.model, "transformer.wpe.weight", 3, INFINITY, &old);
    StepResult bad = train_step(&t);
    CHECK(!bad.finite && !bad.taken);
    mirror.calls.len = 0;
    SAID(out, err, trainer_after_step(&t, &bad, 1));
    CHECK_STR(mirror.calls.data, cases[i].calls);
    CHECK_MSG(!strncmp(err, cases[i].err, strlen(cases[i].err)) && !*err == !*cases[i].err, "%s", err);
    poke(t.model, "transformer.wpe.weight", 3, old, NULL);
    mirror.calls.len = 0;
    CHECK(train_step(&t).taken);
    CHECK(mirror.calls.len && strstr(mirror.calls.data, "all_reduce"));
    free(out);
    free(err);
    free(flags);
    mirrored_close(&t);
  }
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
  TEST_BEGIN(argc, argv);
  test_folder(folder, sizeof folder, "train");
  if (chdir(folder)) return 1;
  make_text();
  RUN(every_schedule_warms_up_and_ends);
  RUN(shapes);
  RUN(the_last_rate_is_the_lowest);
  RUN(every_rate_is_pinned);
  RUN(minutes_are_steps);
  RUN(bias_correction_counts_updates);
  RUN(window_gives_the_limit);
  RUN(advance_counts_and_keeps_bad_norms_out);
  RUN(a_step_trains);
  RUN(micro_batches_change_no_bit);
  RUN(a_step_is_timed_by_phase);
  RUN(one_batch_is_learned_by_heart);
  RUN(files_are_divided);
  RUN(texts_are_cut_at_characters);
  RUN(separators_that_separate_nothing);
  RUN(empty_files);
  RUN(little_to_validate_on);
  RUN(flags_of_other_data);
  RUN(shards_and_their_tokenizer);
  RUN(the_hash_is_of_both_splits);
  RUN(the_vocabulary_grows_with_the_text);
  RUN(small_texts);
  RUN(a_bad_step_changes_nothing_and_is_explained);
  RUN(a_norm_that_overflows_is_explained);
  RUN(an_outlier_is_dropped_and_learned);
  RUN(a_norm_at_the_limit_is_taken);
  RUN(a_step_is_said);
  RUN(one_rank_has_no_queue);
  RUN(gradients_are_summed_over_ranks);
  RUN(other_ranks_wait_for_rank_0);
  RUN(a_bad_step_is_explained_by_each_rank_alone);
  RUN(a_watched_step_is_the_same_step);
  RUN(trace_adds_up);
  if (chdir("/") == 0) remove_tree(folder);
  return TEST_END();
}
