// run.c: owns everything between flags and the training loop: defaults, the run folder, its settings and its log. The text
// and its tokens are corpus.c's. See run.h.
#include "run.h"
#include "comm.h"      // COMM_MOST_RANKS
#include "corpus.h"    // corpus_open: text or shards to tokens
#include "detmath.h"   // det_pow
#include "json.h"      // json_write_string
#include "load.h"      // checkpoint_get_gpt, shape_from_flags
#include "machine.h"   // machine_processor
#include "version.h"   // GPT_VERSION, GPT_COMMIT
#include <errno.h>     // errno
#include <math.h>      // INFINITY, isfinite
#include <stdlib.h>    // free
#include <string.h>    // strcmp
#include <sys/stat.h>  // stat
#include <unistd.h>    // ftruncate

// ---- --resume: the stored settings rule ----

static char *config_path(const char *dir) { return format("%s/config.txt", dir); }

// --steps upward is allowed where what was done so far does not depend on the length.
static void check_more_steps(const Options *stored, const Options *o, int64_t done) {
  if (o->steps == stored->steps) return;
  if (o->steps < stored->steps) fail(EXIT_REQUEST, "--steps %lld is less than the run's %lld; a run can only be made longer", (long long)o->steps, (long long)stored->steps);
  bool constant = stored->schedule == SCHEDULE_CONSTANT, before_decay = stored->schedule == SCHEDULE_WSD && done <= stored->steps - stored->decay;
  if (!constant && !before_decay)
    fail(EXIT_REQUEST, "--steps %lld: the learning rate so far followed a schedule of %lld steps; start a new run from its weights with --init %s", (long long)o->steps, (long long)stored->steps, o->resume);
}

static void resume_options(Run *r) {
  Options *o = r->o;
  if (!is_run_folder(o->resume)) fail(EXIT_REQUEST, "--resume %s: is no run folder (config.txt is missing); runs are made by gpt train", o->resume);
  options_write_given(o, &r->asked);
  bool longer = o->given[FLAG_steps];
  int64_t steps = o->steps;
  o->given[FLAG_steps] = false;
  const char *changer = o->arg_count ? "TEXT" : options_result_changer(o);
  if (changer) fail(EXIT_REQUEST, "%s%s cannot be given beside --resume, for it would change the result; start a new run with --init %s", o->arg_count ? "" : "--", changer, o->resume);
  char *path = config_path(o->resume);
  if (!file_exists(path)) fail(EXIT_REQUEST, "%s: is missing, so the run's settings are not known", path);
  options_read_config(o, path);
  free(path);
  r->dir = xstrdup(o->resume);
  r->resumed = true;
  const bool writes = o->command == COMMAND_TRAIN && !o->dry_run && (!o->rendezvous || o->rank == 0);   // of several ranks rank 0
  if (writes) checkpoint_lock(r->dir);
  r->init = checkpoint_newest(r->dir);
  r->continues = r->init != NULL;
  if (r->continues) snprintf(r->run_id, sizeof r->run_id, "%s", r->init->run_id);
  if (!longer) return;
  Options asked = *o;
  asked.steps = steps;
  check_more_steps(o, &asked, r->continues ? r->init->step : 0);
  o->steps = steps;
}

// ---- what the flags left open ----

// Its shape is that of its weights. A flag that says the same is allowed, as the config.txt of such a run has them all.
static void check_shape(const Options *o, const GptConfig *c) {
  const struct { int flag; int64_t asked, has; } rows[] = {
    {FLAG_family, o->family, c->family}, {FLAG_layers, o->layers, c->layers}, {FLAG_heads, o->heads, c->heads}, {FLAG_kv_heads, o->kv_heads, c->kv_heads},
    {FLAG_channels, o->channels, c->channels}, {FLAG_ffn, o->ffn, c->ffn}, {FLAG_bias, o->bias, c->bias}, {FLAG_tie, o->tie, c->tie}};
  if (o->given[FLAG_model] && !o->resume) fail(EXIT_REQUEST, "--model %s cannot be given beside --init: the model is that of %s", o->model, o->init);
  for (size_t i = 0; i < ARRAY_LEN(rows); i++)
    if (o->given[rows[i].flag] && rows[i].asked != rows[i].has && o->resume)
      fail(EXIT_REQUEST, "--resume %s: --%s of its config.txt is not that of its checkpoint: the file was changed after the run began; restore it", o->resume, flag_name(rows[i].flag));
    else if (o->given[rows[i].flag] && rows[i].asked != rows[i].has)
      fail(EXIT_REQUEST, "--%s cannot be another beside --init: the model's shape is that of %s; leave the flag out", flag_name(rows[i].flag), o->init);
}

static void resolve_model(Run *r) {
  Options *o = r->o;
  GptConfig *c = &r->config;
  if (r->init) {           // the model is given, with what no flag can say; only what may differ is taken from flags
    char *path = format("%s/config.json", r->init->dir);
    config_read_json(c, r->init->config, path);
    free(path);
    check_shape(o, c);
  } else {
    shape_from_flags(c, o);
    c->vocab = r->vocab;
  }
  c->dropout = o->dropout;
  if (o->init_std == AUTO_REAL) o->init_std = 0.02;
  c->init_std = o->init_std;
  if (c->vocab < r->vocab) fail(EXIT_REQUEST, "the tokenizer has %d ids, the model's vocabulary %lld: take the model's own with --tokenizer %s", r->vocab, (long long)c->vocab, o->init ? o->init : r->init->dir);
}

// A row is at most a quarter of the text, so that there is something to shuffle.
static void resolve_context(Run *r) {
  Options *o = r->o;
  int64_t tokens = dataloader_tokens(r->train);
  if (o->context == AUTO_INT) {
    o->context = r->init ? r->config.context : o->model ? r->config.context : 256;
    while (o->context > 16 && o->context > tokens / 4) o->context /= 2;
  }
  if (tokens < o->context + 1)
    fail(EXIT_REQUEST, "the text is too short: %lld tokens are there for training, %lld are needed for one row of --context %lld; take a longer text or a smaller --context",
         (long long)tokens, (long long)o->context + 1, (long long)o->context);
  if (r->init) {
    if (o->context > r->config.context && r->config.family == FAMILY_GPT2)
      fail(EXIT_REQUEST, "--context %lld is more than the %lld learned positions of %s", (long long)o->context, (long long)r->config.context, o->init ? o->init : r->init->dir);
    if (r->config.family == FAMILY_LLAMA) r->config.context = MAX(o->context, r->config.context);
  } else r->config.context = o->context;
}

// "1, 2, 3, 6": the divisors of n, at most `most`, and the first dozen of them
static char *divisors(int64_t n, int64_t most) {
  enum { LISTED = 12 };
  Buffer list = {0};
  for (int64_t b = 1, count = 0; b <= MIN(n, most) && count < LISTED; b++)
    if (n % b == 0) buffer_printf(&list, "%s%lld", count++ ? ", " : "", (long long)b);
  return list.len ? list.data : "1";
}

static void refuse_step(const Options *o) {
  int64_t sequences = o->tokens_per_step / o->context, share = sequences / o->ranks;     // that the wish comes nearest to
  const char *word = o->gpus ? "gpus" : "ranks";
  if (sequences % o->ranks)
    fail(EXIT_REQUEST, "--%s %lld cannot share the %lld sequences of a step evenly (--tokens-per-step %lld, --context %lld); these numbers of ranks can: %s", word, (long long)o->ranks,
         (long long)sequences, (long long)o->tokens_per_step, (long long)o->context, divisors(sequences, COMM_MOST_RANKS));
  char ranks[48] = "";
  if (o->ranks > 1) snprintf(ranks, sizeof ranks, " x --%s %lld", word, (long long)o->ranks);
  fail(EXIT_REQUEST, "--tokens-per-step %lld is no multiple of --batch %lld x --context %lld%s = %lld; with --tokens-per-step %lld these batches fit: %s", (long long)o->tokens_per_step,
       (long long)o->batch, (long long)o->context, ranks, (long long)(o->batch * o->context * o->ranks), (long long)(MAX(share, 1) * o->ranks * o->context), divisors(share, INT64_MAX));
}

// The largest micro-batch of at most `most` sequences that divides each rank's share of the step
static int64_t fitting_batch(int64_t share, int64_t most) {
  int64_t batch = MAX((int64_t)1, MIN(share, most));
  while (share > 0 && share % batch) batch--;
  return batch;
}

static void resolve_batch(Run *r) {
  Options *o = r->o;
  int64_t unit, busy = MAX(1, 4096 / o->context);   // a micro-batch of about 4,096 tokens keeps the processor busy
  bool given = o->tokens_per_step != AUTO_INT;
  int64_t share = given ? o->tokens_per_step / o->context / o->ranks : (busy + o->ranks - 1) / o->ranks;
  if (o->batch == AUTO_INT) o->batch = fitting_batch(share, busy);
  if (r->resumed && given && share % o->batch) o->batch = fitting_batch(share, o->batch);   // other ranks than before: the result does not depend on the cut
  if (__builtin_mul_overflow(o->batch, o->context, &unit) || __builtin_mul_overflow(unit, o->ranks, &unit))
    fail(EXIT_REQUEST, "--batch %lld x --context %lld x --ranks %lld overflows", (long long)o->batch, (long long)o->context, (long long)o->ranks);
  if (!given) o->tokens_per_step = unit;
  if (o->tokens_per_step % unit) refuse_step(o);
  r->sequences = o->tokens_per_step / o->context;
  r->micro_batches = r->sequences / o->ranks / o->batch;
}

// 1, 2 or 5 times a power of ten, at most x, at least 1
static int64_t round_number(double x) {
  int64_t p = 1;
  while ((double)(10 * p) <= x) p *= 10;
  return (double)(5 * p) <= x ? 5 * p : (double)(2 * p) <= x ? 2 * p : p;
}

void run_resolve_intervals(Run *r) {
  Options *o = r->o;
  bool *given = o->given;
  double steps = (double)o->steps;
  if (!given[FLAG_warmup]) o->warmup = (int64_t)MIN(100.0, ceil(steps / 10));
  if (!given[FLAG_decay]) o->decay = (int64_t)ceil(steps / 5);
  if (!given[FLAG_log_every]) o->log_every = round_number(steps / 40);
  if (!given[FLAG_val_every]) o->val_every = round_number(steps / 8);
  if (!given[FLAG_sample_every]) o->sample_every = round_number(steps / 4);
  if (!given[FLAG_save_every]) o->save_every = round_number(steps / 4);
}

// Steps of a pass over the training data, with a fraction: where a row is a document most of it is padding, so that tokens tell nothing.
static double steps_of_pass(const Run *r) {
  if (r->documents) return (double)dataloader_windows(r->train) / (double)r->sequences;
  return (double)dataloader_tokens(r->train) / (double)r->o->tokens_per_step;
}

// The length of a run nobody gave a length: a fixed amount of arithmetic (about a minute on two good cores), but no more
// than EPOCHS passes over the text, after which a small model only learns it by heart. A function of text and model, never of the clock.
static void resolve_length(Run *r) {
  static const double EPOCHS = 30;
  const double FLOPS = r->stories ? 9e12 : 1.5e13;
  Options *o = r->o;
  double per_step = (double)o->tokens_per_step, pass = steps_of_pass(r);
  int given = o->given[FLAG_steps] + o->given[FLAG_tokens] + o->given[FLAG_epochs] + o->given[FLAG_minutes];
  if (given > 1 && !r->resumed) fail(EXIT_REQUEST, "--steps, --tokens, --epochs and --minutes all say how long: give one");
  if (o->steps == AUTO_INT) {
    double steps = MIN(FLOPS / (config_flops_per_token(&r->config, o->context) * per_step), EPOCHS * pass);
    if (o->tokens != AUTO_INT) steps = ceil((double)o->tokens / per_step);
    else if (o->epochs != AUTO_REAL) steps = ceil(o->epochs * pass);
    else steps = MAX(steps, 20);
    if (steps > 1e12) fail(EXIT_REQUEST, "the length comes to %.3g steps, at most 1e12 are possible", steps);
    o->steps = (int64_t)MAX(steps, 1);
  }
  o->tokens = AUTO_INT;      // from here on steps says it all, also in config.txt
  o->epochs = AUTO_REAL;
  if (o->steps > (int64_t)UINT32_MAX) fail(EXIT_REQUEST, "--steps %lld: at most %u are possible", (long long)o->steps, UINT32_MAX);
  run_resolve_intervals(r);
}

// Higher for narrow models, as the best rate falls with width: 6.4e-4 at 768 channels, GPT-2 124M's usual value.
static void resolve_optimizer(Run *r) {
  Options *o = r->o;
  if (o->lr == AUTO_REAL) o->lr = r->init ? 1e-4 : 2.5e-3 * det_pow(128 / (double)r->config.channels, 0.76);
  if (o->min_lr == AUTO_REAL) o->min_lr = o->lr / 10;
  if (o->min_lr > o->lr) fail(EXIT_REQUEST, "--min-lr %g is more than --lr %g", o->min_lr, o->lr);
  if (o->beta2 == AUTO_REAL) o->beta2 = o->tokens_per_step < 100000 ? 0.99 : 0.95;   // few tokens a step: a longer memory
  if (o->val_tokens == AUTO_INT) o->val_tokens = 1 << 16;
}

// What a run on the embedded stories takes where the user says nothing: found by trial, see dev/LOG.md. A text brings other
// settings (resolve_*), since it is longer, and has no fixed vocabulary of a few hundred words.
static void stories_defaults(Options *o) {
  const bool *given = o->given;
  if (o->arg_count || o->text || o->train_data || o->model || o->init || o->resume) return;
  if (!given[FLAG_tokenizer]) o->tokenizer = "bpe:1280";   // every word of the stories becomes one token
  if (!given[FLAG_context]) o->context = 160;              // the longest story fits
  if (!given[FLAG_batch] && !given[FLAG_tokens_per_step]) o->tokens_per_step = 8 * o->context;
  if (!given[FLAG_init_std]) o->init_std = 0.07;
  if (!given[FLAG_lr]) o->lr = 4e-3;
  if (!given[FLAG_beta2]) o->beta2 = 0.98;
}

// As --text has them: between commas, a comma and a backslash of a name behind a backslash.
static const char *join_names(const char *const *names, size_t count) {
  Buffer list = {0};
  for (size_t i = 0; i < count; i++) {
    if (i) buffer_append(&list, ",", 1);
    for (const char *c = names[i]; *c; c++) buffer_printf(&list, "%s%c", *c == ',' || *c == '\\' ? "\\" : "", *c);
  }
  return list.data;     // lives as long as the options
}

// ---- --overwrite ----

// Anything else in the folder is somebody's, and is not removed.
static bool is_part_of_run(const char *name) {
  static const char *const files[] = {"config.txt", "log.jsonl", "report.html"};
  for (size_t i = 0; i < ARRAY_LEN(files); i++)
    if (!strncmp(name, files[i], strlen(files[i])) && (!name[strlen(files[i])] || !strncmp(name + strlen(files[i]), ".tmp-", 5))) return true;
  return checkpoint_is_name(name);
}

static void check_overwrite(const char *dir) {
  size_t count;
  if (!is_run_folder(dir)) fail(EXIT_REQUEST, "--overwrite %s: is no run folder, so it is not removed", dir);
  char **names = list_directory(dir, &count);
  for (size_t i = 0; i < count; i++)
    if (!is_part_of_run(names[i])) fail(EXIT_REQUEST, "--overwrite %s: %s in it is no part of a run, so nothing is removed; move it away, or name another folder", dir, names[i]);
  free_names(names, count);
}

static bool same_file(const char *a, const char *b) {
  struct stat x, y;
  return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

// The weights that a run begins with are named in its config.txt and stay.
static void check_init_stays(const Checkpoint *init, const char *out) {
  char *parent = parent_folder(init->dir);
  if (same_file(init->dir, out) || same_file(parent, out)) fail(EXIT_REQUEST, "--overwrite %s: would remove the weights that --init takes, %s; name another folder with --out", out, init->dir);
  free(parent);
}

// All or nothing, and nothing while another process writes there. The folder itself stays, locked.
static void empty_run_folder(const char *dir) {
  checkpoint_lock(dir);
  check_overwrite(dir);
  remove_contents(dir);
}

// Before the text is read: a misspelt path should not cost minutes.
static void check_parent(const char *out) {
  char *parent = parent_folder(out);
  if (!is_directory(parent)) fail(EXIT_REQUEST, "--out %s: the folder %s is missing; make it first", out, parent);
  free(parent);
}

Run *run_prepare(Options *o) {
  Run *r = xcalloc(1, sizeof *r);
  r->o = o;
  if (o->resume) resume_options(r);
  if (o->init && !r->init) r->init = checkpoint_resolve(o->init);
  if (!o->resume && o->out && file_exists(o->out) && !o->overwrite)
    fail(EXIT_REQUEST, "--out %s is there already; go on with --resume %s, replace it with --overwrite, or name another", o->out, o->out);
  if (!o->resume && o->out && o->overwrite && file_exists(o->out)) {     // now, for reading the text may take minutes
    check_overwrite(o->out);
    if (r->init) check_init_stays(r->init, o->out);
  }
  if (o->ranks > 1 && o->device == DEVICE_CUDA && !o->rendezvous)
    fail(EXIT_REQUEST, "--ranks %lld with --device cuda: ranks that --ranks starts compute on the CPU; use --gpus %lld, or --device cpu", (long long)o->ranks, (long long)o->ranks);
  if (o->gpus && o->device != DEVICE_AUTO && o->device != DEVICE_CUDA)
    fail(EXIT_REQUEST, "--gpus %lld with --device %s: its ranks compute on GPUs; leave out one of the two", (long long)o->gpus, o->device == DEVICE_CPU ? "cpu" : "reference");
  if (o->gpus) o->ranks = o->gpus;
  if (!o->resume && o->out) check_parent(o->out);
  stories_defaults(o);
  corpus_open(r);
  if (o->arg_count) o->text = join_names(o->args, o->arg_count);   // so that config.txt names it
  resolve_model(r);
  resolve_context(r);
  corpus_arrange(r);
  resolve_batch(r);
  resolve_optimizer(r);
  resolve_length(r);
  r->config.starts_with_eot = r->documents;
  config_check(&r->config);
  r->gpt = (GptOptions){.config = r->config, .purpose = PURPOSE_TRAIN, .B = o->batch, .T = o->context, .recompute = (Recompute)o->recompute, .no_master = o->stochastic_rounding,
                       .micro_batches = r->micro_batches, .shards = o->zero ? (int)o->ranks : 0};
  o->family = (int64_t)r->config.family; o->layers = r->config.layers; o->heads = r->config.heads; o->kv_heads = r->config.kv_heads;
  o->channels = r->config.channels; o->ffn = r->config.ffn; o->bias = r->config.bias; o->tie = r->config.tie;
  return r;
}

// ---- the banner ----

void run_print_banner(const Run *r, const Device *d, const MemoryTable *memory, size_t resident) {
  const Options *o = r->o;
  const GptConfig *c = &r->config;
  TensorTable table;
  tensor_table_build(&table, c, 1);
  double per_token = config_flops_per_token(c, o->context), total = per_token * (double)o->tokens_per_step * (double)o->steps;
  printf("gpt %s\n", GPT_VERSION);
  corpus_print(r);
  printf("model     %s: %lld layers, %lld heads%s, %lld channels, context %lld; %lld parameters\n", c->family == FAMILY_GPT2 ? "gpt2" : "llama", (long long)c->layers,
         (long long)c->heads, c->kv_heads != c->heads ? " (grouped keys)" : "", (long long)c->channels, (long long)c->context, (long long)table.parameters);
  char ranks[48] = "";
  if (o->ranks > 1) snprintf(ranks, sizeof ranks, "%lld ranks, each ", (long long)o->ranks);
  printf("step      %lld tokens: %s%lld micro-batch%s of %lld x %lld\n", (long long)o->tokens_per_step, ranks, (long long)r->micro_batches, r->micro_batches > 1 ? "es" : "", (long long)o->batch, (long long)o->context);
  if (o->minutes != AUTO_REAL && !r->resumed) printf("length    as many steps as %g minutes hold, which is measured when the run begins (6N + 6LCT = %.4g FLOP a token)\n", o->minutes, per_token);
  else printf("length    %lld steps, %.3g tokens, %.2f epochs, %.3g FLOP (6N + 6LCT = %.4g a token)\n", (long long)o->steps, (double)o->steps * (double)o->tokens_per_step,
         (double)o->steps / steps_of_pass(r), total, per_token);
  printf("optimizer adamw, lr %.3g to %.3g %s, %lld warm-up, betas %.4g %.4g, weight decay %.3g, clip %.3g, dropout %.3g, seed %lld\n", o->lr, o->min_lr,
         (const char *[]){"cosine", "wsd", "linear", "constant"}[o->schedule], (long long)o->warmup, o->beta1, o->beta2, o->weight_decay, o->grad_clip, o->dropout, (long long)o->seed);
  const char *why = device_reason(o);
  printf("device    %s: %s%s%s%s\n", d->name, d->description, o->ranks > 1 ? " a rank" : "", why ? "; not cuda: " : "", why ? why : "");
  printf("memory    %.1f MiB%s:", (double)(memory->total + resident) / (1 << 20), o->ranks > 1 ? " a rank" : "");
  for (size_t i = 0; i < memory->count; i++) printf(" %s %.1f,", memory->line[i].kind, (double)memory->line[i].bytes / (1 << 20));
  printf(" program and tokens %.1f\n", (double)resident / (1 << 20));
  fflush(stdout);
  tensor_table_free(&table);
}

// ---- the folder ----

// A process that was killed while it wrote may have left half a record: what comes next shall stand on a line of its own.
static void cut_torn_line(const char *log) {
  FILE *f = fopen(log, "r+");
  if (!f) return;                  // there is none; or fopen says why where it is opened to be written
  fseeko(f, 0, SEEK_END);
  const off_t n = ftello(f);
  off_t whole = n;                 // bytes of whole lines
  while (whole > 0 && fseeko(f, whole - 1, SEEK_SET) == 0 && fgetc(f) != '\n') whole--;
  if (whole < n && ftruncate(fileno(f), whole)) warn("%s: its last line is torn: %s", log, strerror(errno));
  fclose(f);
}

static char *free_name(void) {
  if (!file_exists("run")) return xstrdup("run");
  for (int i = 2; i < 1000000; i++) {
    char *name = format("run%d", i);
    if (!file_exists(name)) return name;
    free(name);
  }
  fail(EXIT_MACHINE, "run, run2, ... run999999 are all taken; name a folder with --out");
}

static void write_config(const Run *r, const char *device) {
  Buffer text = {0};
  char processor[128], *path = config_path(r->dir);
  machine_processor(processor);
  buffer_printf(&text, "# settings of this run; gpt train --config FILE repeats it, gpt train --resume goes on\n");
  buffer_printf(&text, "# version %s, commit %s, device %s, %s\n# data-sha256 %s\n", GPT_VERSION, GPT_COMMIT, device, processor, r->data_hash);
  Options stored = *r->o;
  if (stored.init && !r->continues) stored.init = r->init->dir;   // of a run these weights, not those that it has later
  if (stored.gpus) stored.ranks = 1;       // --gpus alone says how many ranks there are
  options_write_config(&stored, &text);
  replace_file(path, text.data, text.len);
  buffer_free(&text);
  free(path);
}

void run_agreement(const Run *r, uint8_t digest[32]) {
  Buffer text = {0};
  Options o = *r->o;
  o.threads = AUTO_INT;            // each machine has its own
  o.init = NULL;                   // may lie elsewhere there; the weights count
  options_write_config(&o, &text);
  buffer_printf(&text, "\n%s", r->data_hash);
  if (r->init) {                   // the weights: a checkpoint's manifest has sums of all its bytes
    char *manifest = format("%s/%s", r->init->dir, MANIFEST_FILE);
    size_t n;
    if (file_exists(manifest)) {
      char *sums = read_file(manifest, "manifest", 1 << 24, &n);
      buffer_append(&text, sums, n);
      free(sums);
    }
    free(manifest);
  }
  if (r->resumed) buffer_printf(&text, "\n%s", r->run_id);
  Sha256 s;
  sha256_init(&s);
  sha256_update(&s, text.data, text.len);
  sha256_final(&s, digest);
  buffer_free(&text);
}

// The text of a resumed run must be the text it began with.
static void check_data_hash(const Run *r) {
  char *path = config_path(r->dir);
  size_t size;
  char *text = read_file(path, "settings", 1 << 24, &size), *at = strstr(text, "# data-sha256 ");
  if (at && strncmp(at + strlen("# data-sha256 "), r->data_hash, 64))
    fail(EXIT_REQUEST, "%s: the text has changed since this run began (its tokens have SHA-256 %.16s..., the run's %.16s...); restore it or start a new run", r->dir, r->data_hash, at + strlen("# data-sha256 "));
  free(text);
  free(path);
}

void run_create_folder(Run *r, const char *device, int64_t step) {
  if (r->resumed) check_data_hash(r);
  else {
    r->dir = r->o->out ? xstrdup(r->o->out) : free_name();
    if (!r->o->out && strcmp(r->dir, "run")) printf("out       run is taken: this run goes to %s\n", r->dir);
    if (r->o->out && r->o->overwrite && file_exists(r->dir)) empty_run_folder(r->dir);
    else {
      make_directory(r->dir);
      checkpoint_lock(r->dir);
    }
  }
  if (!r->run_id[0]) checkpoint_new_run_id(r->run_id);
  checkpoint_clean(r->dir);
  write_config(r, device);
  char *path = format("%s/log.jsonl", r->dir);
  cut_torn_line(path);
  r->log = fopen(path, "a");
  if (!r->log) fail(EXIT_MACHINE, "%s: cannot be opened: %s", path, strerror(errno));
  free(path);
  Buffer flags = {0};              // of a run that goes on: what is not as it was
  if (r->resumed) buffer_printf(&flags, ", \"flags\": ");
  if (r->resumed) json_write_string(&flags, r->asked.data ? r->asked.data : "", r->asked.len);
  run_log(r, r->resumed ? "resume" : "start", ", \"step\": %lld, \"run_id\": \"%s\", \"version\": \"%s\", \"steps\": %lld, \"parameters_flops_per_token\": %.9g, \"memory\": %s%s", (long long)step,
          r->run_id, GPT_VERSION, (long long)r->o->steps, config_flops_per_token(&r->config, r->o->context), r->memory.data, flags.data ? flags.data : "");
  buffer_free(&flags);
  if (r->resumed) printf("resume    %s goes on after step %lld%s%s\n", r->dir, (long long)step, r->asked.len ? ", with " : "", r->asked.len ? r->asked.data : "");
  else printf("run       %s\n", r->dir);
  fflush(stdout);
}

void run_free(Run *r) {
  if (r->log) fclose(r->log);
  buffer_free(&r->memory);
  buffer_free(&r->asked);
  checkpoint_close(r->init);
  corpus_close(r);
  free(r->token_bytes);
  free(r->dir);
  free(r);
}

NumberText run_number(double x) {
  NumberText n;
  snprintf(n.text, sizeof n.text, isfinite(x) ? "%.9g" : "null", x);
  return n;
}

void run_log(Run *r, const char *kind, const char *fmt, ...) {
  if (!r->log) return;
  va_list args;
  va_start(args, fmt);
  fprintf(r->log, "{\"kind\": \"%s\"", kind);
  vfprintf(r->log, fmt, args);
  fprintf(r->log, "}\n");
  va_end(args);
  if (fflush(r->log)) fail(EXIT_MACHINE, "%s/log.jsonl: cannot be written: %s; checkpoints so far are intact", r->dir, strerror(errno));
}

void run_save(Run *r, Gpt *m, const TrainerState *state) {
  Buffer config = {0}, tokenizer = {0}, tokenizer_config = {0};
  double start = seconds_now();
  config_write_json(&r->config, r->eot, &config);
  CheckpointFile files[3] = {{"config.json", config.data, config.len}};
  size_t count = 1;
  if (r->tokenizer) {
    tokenizer_json(r->tokenizer, &tokenizer);
    tokenizer_config_json(r->tokenizer, r->config.context, &tokenizer_config);
    files[count++] = (CheckpointFile){"tokenizer.json", tokenizer.data, tokenizer.len};
    files[count++] = (CheckpointFile){"tokenizer_config.json", tokenizer_config.data, tokenizer_config.len};
  }
  CheckpointSource source = {.table = gpt_table(m), .fp64 = gpt_device(m)->acc_size == sizeof(double), .get = checkpoint_get_gpt, .context = m,
                             .files = files, .file_count = count, .state = state, .run_id = r->run_id};
  fflush(r->log);
  checkpoint_save(&source, r->dir, r->o->keep);
  run_log(r, "save", ", \"step\": %lld, \"seconds\": %.3f", (long long)state->step, seconds_now() - start);
  buffer_free(&config);
  buffer_free(&tokenizer);
  buffer_free(&tokenizer_config);
}
