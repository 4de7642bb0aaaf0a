// checkpoint_test.h: what the tests of checkpoints share: a folder, a pretended model, and how it is saved.
#pragma once
#include "checkpoint.h"
#include "test.h"
#include <fcntl.h>         // open
#include <sys/syscall.h>   // SYS_fsync

static char folder[200];

// Stands in for the system's fsync: counts, and asks the disk only where a test wants it, since thousands would take minutes.
static int fsync_calls;
static bool really_fsync;
int fsync(int fd) {
  fsync_calls++;
  return really_fsync ? (int)syscall(SYS_fsync, fd) : 0;
}

// ---- a pretended model: a table, and its numbers in plain arrays ----

enum { MAX_ROWS = 12 };
typedef struct {
  TensorTable table;
  TensorRow rows[MAX_ROWS];
  double *values[MAX_ROWS][3];  // weight, m, v: rows*cols each
  bool fp64;
} Model;

static int part_index(Part part) { return part == PART_WEIGHT ? 0 : part == PART_M ? 1 : 2; }

static TensorRow *add_row(Model *m, const char *name, int64_t rows, int64_t cols, int dims) {
  TensorRow *row = &m->rows[m->table.count++];
  *row = (TensorRow){.rows = rows, .cols = cols, .dims = dims, .trainable = true, .padded_rows = (size_t)rows};
  snprintf(row->name, sizeof row->name, "%s", name);
  m->table.rows = m->rows;
  for (int p = 0; p < 3; p++) m->values[m->table.count - 1][p] = xcalloc((size_t)(rows * cols), sizeof(double));
  return row;
}

// Numbers that depend on everything: salt, part, tensor, element. In fp32 they are floats.
static void fill(Model *m, uint32_t salt) {
  for (size_t r = 0; r < m->table.count; r++) {
    for (int p = 0; p < 3; p++) {
      for (int64_t i = 0; i < m->rows[r].rows * m->rows[r].cols; i++) {
        uint64_t h = (salt * 3u + (uint64_t)p) * 0x9e3779b97f4a7c15u + r * 0xbf58476d1ce4e5b9u + (uint64_t)i * 0x94d049bb133111ebu;
        double x = ((double)(int64_t)(h ^ h >> 29) + 0.5) * 0x1p-63;
        m->values[r][p][i] = m->fp64 ? x : (double)(float)x;
      }
    }
  }
}

static void small_model(Model *m, bool fp64) {
  *m = (Model){.fp64 = fp64};
  add_row(m, "transformer.wte.weight", 3, 2, 2)->padded_rows = 16;
  add_row(m, "transformer.h.0.attn.c_attn.weight", 6, 2, 2)->file_transposed = true;
  add_row(m, "transformer.h.0.attn.c_attn.bias", 1, 6, 1);
  add_row(m, "transformer.h.0.ln_1.weight", 1, 2, 1)->trainable = false;
  TensorRow *bias = add_row(m, "transformer.h.0.ln_1.bias", 1, 2, 1);
  bias->zero_in_file_only = true;
  bias->trainable = false;
}

static void free_model(Model *m) {
  for (size_t r = 0; r < m->table.count; r++)
    for (int p = 0; p < 3; p++) free(m->values[r][p]);
}

static void get(void *context, Part part, const TensorRow *row, size_t start, size_t n, double *values) {
  Model *m = context;
  CHECK(n > 0 && start + n <= (size_t)(row->rows * row->cols) && !row->zero_in_file_only);
  memcpy(values, m->values[row - m->rows][part_index(part)] + start, n * sizeof *values);
}

static void put(void *context, Part part, const TensorRow *row, size_t start, size_t n, const double *values) {
  Model *m = context;
  CHECK(n > 0 && start + n <= (size_t)(row->rows * row->cols) && !row->zero_in_file_only);
  memcpy(m->values[row - m->rows][part_index(part)] + start, values, n * sizeof *values);
}

static TrainerState some_state(int64_t step) {
  TrainerState s = {.step = step, .updates = step - 1, .sample_index = 123456789012345, .tokens_seen = step * 77,
                    .seed = UINT64_MAX - 5, .outlier_count = 130};
  for (int i = 0; i < OUTLIER_WINDOW; i++) s.outlier_window[i] = 1.0 / (i + 3) + (double)step;
  s.outlier_window[3] = -0.0;
  return s;
}

static const char *const RUN_ID = "0123456789abcdef0123456789abcdef";

static void save(Model *m, const char *run, int64_t step, int64_t keep, const char *run_id) {
  const CheckpointFile files[] = {{"config.json", "{\"model_type\":\"gpt2\"}", 21}, {"tokenizer.json", "{}", 2}};
  TrainerState state = some_state(step);
  CheckpointSource source = {.table = &m->table, .fp64 = m->fp64, .get = get, .context = m, .files = files, .file_count = 2,
                             .state = &state, .run_id = run_id};
  checkpoint_save(&source, run, keep);
}

static void save_filled(const char *run, int64_t step, uint32_t salt, int64_t keep) {
  Model m;
  small_model(&m, false);
  fill(&m, salt);
  save(&m, run, step, keep, RUN_ID);
  free_model(&m);
}

static char *new_run(const char *name) {
  char *run = format("%s/%s", folder, name);
  remove_tree(run);
  make_directory(run);
  return run;
}

static void overwrite(const char *dir, const char *name, const char *bytes, size_t size) {
  char *path = format("%s/%s", dir, name);
  FILE *f = fopen(path, "wb");
  CHECK(f && fwrite(bytes, 1, size, f) == size && fclose(f) == 0);
  free(path);
}

// Warnings are expected in these lines and would bury what matters.
#define QUIETLY(statement) do { \
    fflush(stderr); int keep_ = dup(2), null_ = open("/dev/null", O_WRONLY); dup2(null_, 2); close(null_); \
    statement; fflush(stderr); dup2(keep_, 2); close(keep_); } while (0)

// The numbers of the open checkpoint are those that fill(m, salt) makes.
