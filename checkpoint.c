// checkpoint.c: owns what a checkpoint says: weights, moments and trainer state as safetensors files, loading them back,
// loading other people's model directories, and which folder the word MODEL means. See checkpoint.h.
//
// Promises: the same state gives the same bytes of model.safetensors and trainer.safetensors; loading gives back each
// number that was saved; no number is given out before the whole folder was verified and every shape agreed.
// Tests: tests/test_checkpoint.c, tests/test_foreign.c
#include "checkpoint.h"
#include <errno.h>        // errno
#include <fcntl.h>        // open, O_DIRECTORY
#include <inttypes.h>     // PRIu64
#include <stdlib.h>       // free, strtoull
#include <string.h>       // strcmp, memcpy, strerror
#include <sys/file.h>     // flock
#include <sys/random.h>   // getrandom
#include <unistd.h>       // access, close

enum { BLOCK = 1 << 16 };   // elements that pass through the host at once

static const char *const MODEL_FILE = "model.safetensors", *const TRAINER_FILE = "trainer.safetensors";
static const char *const CONFIG_FILE = "config.json";

// The whole numbers of TrainerState, as they stand in the metadata of trainer.safetensors.
static const struct { const char *key; size_t offset; } state_fields[] = {
  {"step", offsetof(TrainerState, step)},
  {"updates", offsetof(TrainerState, updates)},
  {"sample_index", offsetof(TrainerState, sample_index)},
  {"tokens_seen", offsetof(TrainerState, tokens_seen)},
  {"seed", offsetof(TrainerState, seed)},
  {"outlier_count", offsetof(TrainerState, outlier_count)},
};

// ---- a run's identity ----

void checkpoint_new_run_id(char run_id[33]) {
  uint8_t bytes[16];
  if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
    fail(EXIT_MACHINE, "the system gave no random bytes for a run id: %s", strerror(errno));
  for (int i = 0; i < 16; i++) snprintf(run_id + 2 * i, 3, "%02x", bytes[i]);
}

void checkpoint_lock(const char *run_dir) {
  int fd = open(run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail(EXIT_MACHINE, "%s: cannot be opened: %s", run_dir, strerror(errno));
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) return;  // fd stays open: the lock lives as long as the process
  if (errno == EWOULDBLOCK)
    fail(EXIT_MACHINE, "%s: another gpt process is training in this folder; wait for it, or choose another --out", run_dir);
  close(fd);  // a file system without locks: we do without, too
}

// ---- tensors, in bounded pieces ----

typedef struct {
  FolderWriter writer;
  const CheckpointSource *source;
  double *block, *line;   // BLOCK elements each
  uint8_t *packed;
} Save;

// Shape in the file of weights.
static int file_shape(const TensorRow *row, int64_t shape[2]) {
  shape[0] = row->dims == 1 ? row->cols : row->file_transposed ? row->cols : row->rows;
  shape[1] = row->file_transposed ? row->rows : row->cols;
  return row->dims;
}

static size_t row_elements(const TensorRow *row) { return (size_t)row->rows * (size_t)row->cols; }

// A transposed tensor passes as blocks of `tall` rows of the file (inputs i) times `wide` of its columns (outputs o), in
// the order of the file: either whole rows, or pieces of one row.
typedef struct { size_t tall, wide; } Tile;
static Tile tile_of(const TensorRow *row) {
  size_t wide = MIN((size_t)row->rows, (size_t)BLOCK);
  return (Tile){BLOCK / wide, wide};
}

static void write_block(Save *s, size_t n, SafeType type) {
  safetensors_pack(s->packed, s->block, n, type);
  folder_write(&s->writer, s->packed, n * safe_type_size(type));
}

static void write_transposed(Save *s, const TensorRow *row, SafeType type) {
  size_t in = (size_t)row->cols, out = (size_t)row->rows;
  Tile tile = tile_of(row);
  for (size_t i0 = 0; i0 < in; i0 += tile.tall) {
    size_t tall = MIN(tile.tall, in - i0);
    for (size_t o0 = 0; o0 < out; o0 += tile.wide) {
      size_t wide = MIN(tile.wide, out - o0);
      for (size_t o = 0; o < wide; o++) {
        s->source->get(s->source->context, PART_WEIGHT, row, (o0 + o) * in + i0, tall, s->line);
        for (size_t i = 0; i < tall; i++) s->block[i * wide + o] = s->line[i];
      }
      write_block(s, tall * wide, type);
    }
  }
}

static void write_part(Save *s, Part part, const TensorRow *row, SafeType type) {
  size_t n = row_elements(row);
  for (size_t start = 0; start < n; start += BLOCK) {
    size_t some = MIN((size_t)BLOCK, n - start);
    if (row->zero_in_file_only) memset(s->block, 0, some * sizeof *s->block);
    else s->source->get(s->source->context, part, row, start, some, s->block);
    write_block(s, some, type);
  }
}

static void write_header(Save *s, const SafeEntry *entries, size_t count, const SafeMetadata *metadata, size_t keys) {
  Buffer header = {0};
  safetensors_header(&header, entries, count, metadata, keys);
  folder_write(&s->writer, header.data, header.len);
  buffer_free(&header);
}

static void write_model(Save *s) {
  const TensorTable *t = s->source->table;
  SafeEntry *entries = xcalloc(t->count, sizeof *entries);
  for (size_t i = 0; i < t->count; i++) {
    entries[i] = (SafeEntry){.name = t->rows[i].name, .type = SAFE_F32};
    entries[i].dims = file_shape(&t->rows[i], entries[i].shape);
  }
  const SafeMetadata metadata = {"format", "pt"};  // transformers refuses a file that does not say so
  folder_file_begin(&s->writer, MODEL_FILE);
  write_header(s, entries, t->count, &metadata, 1);
  for (size_t i = 0; i < t->count; i++) {
    const TensorRow *row = &t->rows[i];
    if (row->file_transposed && !row->zero_in_file_only) write_transposed(s, row, SAFE_F32);
    else write_part(s, PART_WEIGHT, row, SAFE_F32);
  }
  folder_file_end(&s->writer);
  free(entries);
}

// ---- the trainer's file ----

// What trainer.safetensors holds of each tensor; the weights only in fp64.
static const struct { const char *prefix; Part part; bool fp64_only; } trainer_parts[] = {
  {"m/", PART_M, false}, {"v/", PART_V, false}, {"master/", PART_WEIGHT, true},
};

typedef struct {
  char name[sizeof((TensorRow *)0)->name + 8];
  Part part;
  const TensorRow *row;
} TrainerTensor;

// The tensors of trainer.safetensors in order, but for the outlier window, which stands last; freed by the caller.
static TrainerTensor *trainer_tensors(const TensorTable *t, bool fp64, size_t *count) {
  TrainerTensor *list = xcalloc(ARRAY_LEN(trainer_parts) * t->count, sizeof *list);
  *count = 0;
  for (size_t p = 0; p < ARRAY_LEN(trainer_parts); p++) {
    if (trainer_parts[p].fp64_only && !fp64) continue;
    for (size_t i = 0; i < t->count; i++) {
      const TensorRow *row = &t->rows[i];
      // A frozen tensor has no moments, but its fp64 weights are part of the state; what is only in the file is neither.
      if (row->zero_in_file_only || (!row->trainable && trainer_parts[p].part != PART_WEIGHT)) continue;
      TrainerTensor *tensor = &list[(*count)++];
      *tensor = (TrainerTensor){.part = trainer_parts[p].part, .row = row};
      snprintf(tensor->name, sizeof tensor->name, "%s%s", trainer_parts[p].prefix, row->name);
    }
  }
  return list;
}

static SafeEntry trainer_entry(const TrainerTensor *tensor, bool fp64) {
  return (SafeEntry){.name = tensor->name, .type = fp64 ? SAFE_F64 : SAFE_F32, .dims = 2,
                     .shape = {tensor->row->rows, tensor->row->cols}};
}

static const SafeEntry window_entry = {.name = "trainer.outlier_window", .type = SAFE_F64, .dims = 1,
                                       .shape = {OUTLIER_WINDOW}};

static void write_trainer(Save *s) {
  const TrainerState *state = s->source->state;
  bool fp64 = s->source->fp64;
  size_t count;
  TrainerTensor *tensors = trainer_tensors(s->source->table, fp64, &count);
  SafeEntry *entries = xcalloc(count + 1, sizeof *entries);
  for (size_t i = 0; i < count; i++) entries[i] = trainer_entry(&tensors[i], fp64);
  entries[count] = window_entry;
  char numbers[ARRAY_LEN(state_fields)][24];
  SafeMetadata metadata[ARRAY_LEN(state_fields) + 1] = {{"format", "gpt-trainer-1"}};
  for (size_t i = 0; i < ARRAY_LEN(state_fields); i++) {
    uint64_t value;  // each of them is 8 bytes wide
    memcpy(&value, (const char *)state + state_fields[i].offset, sizeof value);
    snprintf(numbers[i], sizeof numbers[i], "%" PRIu64, value);
    metadata[i + 1] = (SafeMetadata){state_fields[i].key, numbers[i]};
  }
  folder_file_begin(&s->writer, TRAINER_FILE);
  write_header(s, entries, count + 1, metadata, ARRAY_LEN(metadata));
  for (size_t i = 0; i < count; i++) write_part(s, tensors[i].part, tensors[i].row, entries[i].type);
  memcpy(s->block, state->outlier_window, sizeof state->outlier_window);
  write_block(s, OUTLIER_WINDOW, SAFE_F64);
  folder_file_end(&s->writer);
  free(entries);
  free(tensors);
}

void checkpoint_save(const CheckpointSource *source, const char *run_dir, int64_t keep) {
  Save s = {.source = source};
  s.block = xmalloc(BLOCK, sizeof *s.block);
  s.line = xmalloc(BLOCK, sizeof *s.line);
  s.packed = xmalloc(BLOCK, safe_type_size(SAFE_F64));
  folder_begin(&s.writer, run_dir, source->state->step, source->run_id);
  for (size_t i = 0; i < source->file_count; i++) {
    folder_file_begin(&s.writer, source->files[i].name);
    folder_write(&s.writer, source->files[i].data, source->files[i].size);
    folder_file_end(&s.writer);
  }
  write_model(&s);
  write_trainer(&s);
  folder_publish(&s.writer);
  if (keep > 0) checkpoint_prune(run_dir, source->state->step, keep);
  free(s.block);
  free(s.line);
  free(s.packed);
}

// ---- opening ----

static bool read_config(Checkpoint *c, Refusal *why) {
  Buffer text = {0};
  char error[256];
  bool ok = folder_read_text(c->dir, CONFIG_FILE, &text, why);
  if (ok) {
    c->config = json_parse(text.data, text.len, error, sizeof error);
    ok = c->config || refuse_file(why, "%s/%s: %s", c->dir, CONFIG_FILE, error);
  }
  buffer_free(&text);
  return ok;
}

// A checkpoint of ours: all of its bytes, then its headers.
static bool open_ours(Checkpoint *c, Refusal *why) {
  Manifest m;
  if (!manifest_read(c->dir, &m, why)) return false;
  const char *const needed[] = {CONFIG_FILE, MODEL_FILE, TRAINER_FILE};
  for (size_t i = 0; i < ARRAY_LEN(needed); i++)
    if (!manifest_find(&m, needed[i])) return refuse_file(why, "%s/%s: does not list %s", c->dir, MANIFEST_FILE, needed[i]);
  bool ok = true;
  for (size_t i = 0; ok && i < m.count; i++) {
    const char *name = m.files[i].name;
    int fd = manifest_open(c->dir, &m.files[i], why);
    ok = fd >= 0;
    Safetensors **kept = !strcmp(name, MODEL_FILE) ? &c->model : !strcmp(name, TRAINER_FILE) ? &c->trainer : NULL;
    if (ok && kept) {
      char *path = format("%s/%s", c->dir, name);
      *kept = safetensors_open_fd(fd, path, why);
      ok = *kept != NULL;
      free(path);
    } else if (ok) {
      close(fd);
    }
  }
  snprintf(c->run_id, sizeof c->run_id, "%s", m.run_id);
  c->step = m.step;
  c->saved_by_gpt = true;
  return ok && read_config(c, why);
}

// Somebody else's model directory.
static bool open_imported(Checkpoint *c, Refusal *why) {
  if (!folder_has(c->dir, MODEL_FILE)) {
    if (folder_has(c->dir, "model.safetensors.index.json"))
      return refuse_file(why, "%s: its weights are split over several files, which is not read; save the model once more "
                         "as one model.safetensors (save_pretrained with max_shard_size=\"1000GB\")", c->dir);
    if (folder_has(c->dir, "pytorch_model.bin"))
      return refuse_file(why, "%s: pytorch_model.bin is not read; save the model once more as model.safetensors", c->dir);
  }
  if (!read_config(c, why)) return false;
  char *path = format("%s/%s", c->dir, MODEL_FILE);
  c->model = safetensors_open(path, why);
  free(path);
  return c->model != NULL;
}

static const char *last_part(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

static Checkpoint *try_open(const char *dir, Refusal *why) {
  Checkpoint *c = xcalloc(1, sizeof *c);
  size_t length = strlen(dir);
  while (length > 1 && dir[length - 1] == '/') length--;
  c->dir = format("%.*s", (int)length, dir);
  int64_t step;
  bool named = checkpoint_parse_step(last_part(c->dir), &step);
  // Without its manifest a checkpoint of ours must not pass for a foreign model directory, unverified.
  bool ours = named || folder_has(c->dir, MANIFEST_FILE) || folder_has(c->dir, TRAINER_FILE);
  bool ok = ours ? open_ours(c, why) : open_imported(c, why);
  if (ok && named && step != c->step)
    ok = refuse_file(why, "%s: its manifest is that of step %" PRId64, c->dir, c->step);
  if (ok) return c;
  checkpoint_close(c);
  return NULL;
}

void checkpoint_close(Checkpoint *c) {
  if (!c) return;
  safetensors_close(c->model);
  safetensors_close(c->trainer);
  json_free(c->config);
  free(c->dir);
  free(c);
}

Checkpoint *checkpoint_open(const char *dir) {
  Refusal why = {0};
  Checkpoint *c = try_open(dir, &why);
  if (!c) fail_refused(&why);
  buffer_free(&why.line);
  return c;
}

// Newest first until one is whole. *tried = how many have a folder; *vanished: one was removed while we looked, so that
// the list is out of date (a run that is training now prunes).
static Checkpoint *first_whole(const char *run_dir, size_t *tried, bool *vanished, Buffer *first_reason) {
  int64_t *steps = checkpoint_steps(run_dir, tried);
  Checkpoint *c = NULL;
  *vanished = false;
  for (size_t i = *tried; !c && !*vanished && i-- > 0;) {
    Refusal why = {0};
    char *dir = checkpoint_path(run_dir, steps[i]);
    c = try_open(dir, &why);
    if (!c && why.machine) fail_refused(&why);   // it may be whole: an older one would lose steps
    if (!c) *vanished = !is_directory(dir);
    if (!c && !*vanished) {
      if (!first_reason->len) buffer_append(first_reason, why.line.data, why.line.len);
      if (i > 0) warn("%s; looking for an older checkpoint", why.line.data);
    }
    buffer_free(&why.line);
    free(dir);
  }
  free(steps);
  return c;
}

Checkpoint *checkpoint_newest(const char *run_dir) {
  size_t tried;
  bool vanished;
  Buffer reason = {0};
  Checkpoint *c;
  int attempts = 10;
  do c = first_whole(run_dir, &tried, &vanished, &reason); while (vanished && --attempts > 0);
  if (!c && tried)
    fail(EXIT_REQUEST, "%s: none of its %zu checkpoints is whole; the newest: %s", run_dir, tried, reason.len ? reason.data : "?");
  buffer_free(&reason);
  return c;
}

// ---- MODEL of the command line ----

static bool has_steps(const char *dir) {
  size_t count;
  free(checkpoint_steps(dir, &count));
  return count > 0;
}

bool is_run_folder(const char *path) {
  return is_directory(path) && (has_steps(path) || folder_has(path, "log.jsonl") || folder_has(path, "config.txt"));
}

static bool later(struct timespec a, struct timespec b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

// The name of the folder here with the newest checkpoint, or NULL; freed by the caller.
static char *newest_run_here(void) {
  size_t count;
  char **names = list_directory(".", &count), *best = NULL;
  struct timespec when, best_when = {0};
  for (size_t i = 0; i < count; i++) {
    if (!is_directory(names[i]) || access(names[i], R_OK | X_OK) || !checkpoint_newest_time(names[i], &when)) continue;
    if (best && !later(when, best_when)) continue;
    free(best);
    best = xstrdup(names[i]);
    best_when = when;
  }
  free_names(names, count);
  return best;
}

static Checkpoint *resolve_folder(const char *path) {
  int64_t step;
  if (folder_has(path, CONFIG_FILE) || folder_has(path, MANIFEST_FILE) || checkpoint_parse_step(last_part(path), &step))
    return checkpoint_open(path);
  if (!is_run_folder(path))
    fail(EXIT_REQUEST, "%s: is neither a model directory (no config.json) nor a run folder (no step_... in it)", path);
  Checkpoint *c = checkpoint_newest(path);
  if (!c) fail(EXIT_REQUEST, "%s: this run has no checkpoint yet; go on with gpt train --resume %s", path, path);
  return c;
}

Checkpoint *checkpoint_resolve(const char *model) {
  if (!model) {
    char *run = newest_run_here();
    if (!run) fail(EXIT_REQUEST, "no run folder with a checkpoint here; name a MODEL, or make one with gpt train");
    Checkpoint *c = resolve_folder(run);
    free(run);
    return c;
  }
  size_t length = strlen(model);
  if (length > 5 && !strcmp(model + length - 5, ".gguf"))
    fail(EXIT_REQUEST, "%s: GGUF files are not read yet; give a model directory with config.json and model.safetensors", model);
  if (!file_exists(model)) fail(EXIT_REQUEST, "%s: no such model directory or run folder", model);
  if (!is_directory(model))
    fail(EXIT_REQUEST, "%s: is a file; give the folder of a model (config.json, model.safetensors) or of a run", model);
  return resolve_folder(model);
}

// ---- loading weights ----

// The tensor of this name, also if only one of the two carries the prefix that transformers gives to the body of a model.
static const SafeTensor *find_weight(const Safetensors *s, const char *name) {
  static const char *const prefixes[] = {"transformer.", "model."};
  const SafeTensor *t = safetensors_find(s, name);
  for (size_t i = 0; !t && i < ARRAY_LEN(prefixes); i++) {
    size_t length = strlen(prefixes[i]);
    if (!strncmp(name, prefixes[i], length)) {
      t = safetensors_find(s, name + length);
    } else {
      char *longer = format("%s%s", prefixes[i], name);
      t = safetensors_find(s, longer);
      free(longer);
    }
  }
  return t;
}

static void check_tensor(const Safetensors *s, const SafeTensor *t, int dims, const int64_t *shape) {
  Buffer found = {0}, needed = {0};
  bool same = t->dims == dims;
  for (int i = 0; same && i < dims; i++) same = t->shape[i] == shape[i];
  if (!same) {
    safe_shape_text(&found, t->dims, t->shape);
    safe_shape_text(&needed, dims, shape);
    fail(EXIT_REQUEST, "%s: tensor %.80s has shape %s, this model needs %s", s->path, t->name, found.data, needed.data);
  }
  if (!safe_type_is_read(t->type))
    fail(EXIT_REQUEST, "%s: tensor %.80s is of type %s; weights are read from F32, F16, BF16 and F64", s->path, t->name,
         safe_type_name(t->type));
}

static void read_checked(const Safetensors *s, const SafeTensor *t, size_t start, size_t n, double *values) {
  if (!safetensors_read(s, t, (int64_t)start, n, values))
    fail(EXIT_MACHINE, "%s: tensor %.80s cannot be read at element %zu", s->path, t->name, start);
}

typedef struct { CheckpointPut put; void *context; const Safetensors *file; double *block, *line; } Load;

static void read_part(const Load *l, const SafeTensor *t, Part part, const TensorRow *row) {
  size_t n = row_elements(row);
  for (size_t start = 0; start < n; start += BLOCK) {
    size_t some = MIN((size_t)BLOCK, n - start);
    read_checked(l->file, t, start, some, l->block);
    l->put(l->context, part, row, start, some, l->block);
  }
}

// The mirror of write_transposed().
static void read_transposed(const Load *l, const SafeTensor *t, const TensorRow *row) {
  size_t in = (size_t)row->cols, out = (size_t)row->rows;
  Tile tile = tile_of(row);
  for (size_t i0 = 0; i0 < in; i0 += tile.tall) {
    size_t tall = MIN(tile.tall, in - i0);
    for (size_t o0 = 0; o0 < out; o0 += tile.wide) {
      size_t wide = MIN(tile.wide, out - o0);
      read_checked(l->file, t, i0 * out + o0, tall * wide, l->block);
      for (size_t o = 0; o < wide; o++) {
        for (size_t i = 0; i < tall; i++) l->line[i] = l->block[i * wide + o];
        l->put(l->context, PART_WEIGHT, row, (o0 + o) * in + i0, tall, l->line);
      }
    }
  }
}

// Whether all elements are zero; if not, *element = the first that is none.
static bool all_zero(const Load *l, const SafeTensor *t, int64_t *element) {
  for (int64_t start = 0; start < t->elements; start += BLOCK) {
    size_t n = (size_t)MIN((int64_t)BLOCK, t->elements - start);
    read_checked(l->file, t, (size_t)start, n, l->block);
    for (size_t i = 0; i < n; i++) if (!(l->block[i] == 0)) { *element = start + (int64_t)i; return false; }
  }
  return true;
}

static bool ends_in(const char *s, const char *end) {
  size_t n = strlen(s), m = strlen(end);
  return n >= m && !strcmp(s + n - m, end);
}

// A tensor of the file that the table does not ask for: ballast is passed over, numbers that would be lost are refused.
static void check_unused(const Load *l, const SafeTensor *t) {
  static const char *const ballast[] = {
    ".attn.bias", ".attn.masked_bias",  // GPT-2's causal mask, which old versions of transformers saved
    ".rotary_emb.inv_freq",             // follows from rope_theta
    "lm_head.weight",                   // asked for unless the head is tied, and then wte rules
  };
  for (size_t i = 0; i < ARRAY_LEN(ballast); i++) if (ends_in(t->name, ballast[i])) return;
  int64_t element;
  if (safe_type_is_read(t->type) && all_zero(l, t, &element)) return;
  fail(EXIT_REQUEST, "%s: tensor %.80s has no place in a model with this config.json; leaving it out would change the model",
       l->file->path, t->name);
}

static Load load_begin(const Safetensors *file, CheckpointPut put, void *context) {
  return (Load){put, context, file, xmalloc(BLOCK, sizeof(double)), xmalloc(BLOCK, sizeof(double))};
}

static void load_end(Load *l) {
  free(l->block);
  free(l->line);
}

void checkpoint_load_weights(const Checkpoint *c, const TensorTable *table, CheckpointPut put, void *context) {
  Load l = load_begin(c->model, put, context);
  bool *used = xcalloc(c->model->count, sizeof *used);
  const SafeTensor **found = xcalloc(table->count, sizeof *found);
  int64_t shape[2], element;
  for (size_t i = 0; i < table->count; i++) {  // everything is checked before the first number is given out
    const TensorRow *row = &table->rows[i];
    found[i] = find_weight(c->model, row->name);
    if (!found[i] && row->zero_in_file_only) continue;
    if (!found[i]) fail(EXIT_REQUEST, "%s: tensor %s is missing", c->model->path, row->name);
    int dims = file_shape(row, shape);
    check_tensor(c->model, found[i], dims, shape);
    used[found[i] - c->model->tensors] = true;
    if (row->zero_in_file_only && !all_zero(&l, found[i], &element))
      fail(EXIT_REQUEST, "%s: tensor %s is not zero at element %" PRId64 ", but config.json says \"gpt_bias\": false",
           c->model->path, found[i]->name, element);
  }
  for (size_t i = 0; i < c->model->count; i++)
    if (!used[i]) check_unused(&l, &c->model->tensors[i]);
  for (size_t i = 0; i < table->count; i++) {
    const TensorRow *row = &table->rows[i];
    if (row->zero_in_file_only) continue;
    if (row->file_transposed) read_transposed(&l, found[i], row);
    else read_part(&l, found[i], PART_WEIGHT, row);
  }
  free(found);
  free(used);
  load_end(&l);
}

// ---- loading the trainer ----

static void read_state(const Checkpoint *c, TrainerState *state) {
  *state = (TrainerState){0};
  for (size_t i = 0; i < ARRAY_LEN(state_fields); i++) {
    const char *found = safetensors_metadata(c->trainer, state_fields[i].key), *text = found ? found : "missing";
    char again[24];
    uint64_t value = strtoull(text, NULL, 10);
    snprintf(again, sizeof again, "%" PRIu64, value);
    if (strcmp(text, again)) fail(EXIT_REQUEST, "%s: \"%s\" is %.40s, a whole number is needed", c->trainer->path, state_fields[i].key, text);
    memcpy((char *)state + state_fields[i].offset, &value, sizeof value);
  }
  if (state->step != c->step)
    fail(EXIT_REQUEST, "%s: is of step %" PRId64 ", the manifest of step %" PRId64, c->trainer->path, state->step, c->step);
}

// The trainer's tensor that this entry describes.
static const SafeTensor *find_trainer_tensor(const Checkpoint *c, const SafeEntry *entry) {
  const SafeTensor *t = safetensors_find(c->trainer, entry->name);
  if (!t) fail(EXIT_REQUEST, "%s: tensor %s is missing", c->trainer->path, entry->name);
  if (t->type != entry->type)
    fail(EXIT_REQUEST, "%s: was saved in %s and cannot go on in %s bit for bit; resume with --device %s", c->trainer->path,
         safe_type_name(t->type), safe_type_name(entry->type), entry->type == SAFE_F64 ? "cpu" : "reference");
  check_tensor(c->trainer, t, entry->dims, entry->shape);
  return t;
}

bool checkpoint_is_fp64(const Checkpoint *c) {
  const char *master = trainer_parts[ARRAY_LEN(trainer_parts) - 1].prefix;   // in fp64 only
  for (size_t i = 0; c->trainer && i < c->trainer->count; i++)
    if (!strncmp(c->trainer->tensors[i].name, master, strlen(master))) return true;
  return false;
}

void checkpoint_load_trainer(const Checkpoint *c, const TensorTable *table, bool fp64, CheckpointPut put, void *context,
                             TrainerState *state) {
  if (!c->trainer)
    fail(EXIT_REQUEST, "%s: is a model without the state of a run; start a new run from it with --init %s", c->dir, c->dir);
  size_t count;
  TrainerTensor *tensors = trainer_tensors(table, fp64, &count);
  const SafeTensor **found = xcalloc(count, sizeof *found);
  for (size_t i = 0; i < count; i++) {
    SafeEntry entry = trainer_entry(&tensors[i], fp64);
    found[i] = find_trainer_tensor(c, &entry);
  }
  const SafeTensor *window = find_trainer_tensor(c, &window_entry);
  if (c->trainer->count != count + 1)
    fail(EXIT_REQUEST, "%s: holds %zu tensors, this model and optimizer have %zu", c->trainer->path, c->trainer->count,
         count + 1);
  read_state(c, state);
  read_checked(c->trainer, window, 0, OUTLIER_WINDOW, state->outlier_window);
  Load l = load_begin(c->trainer, put, context);
  for (size_t i = 0; i < count; i++) read_part(&l, found[i], tensors[i].part, tensors[i].row);
  load_end(&l);
  free(found);
  free(tensors);
}
