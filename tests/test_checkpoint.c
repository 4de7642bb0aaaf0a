// test_checkpoint.c: owns the checks of checkpoint.c and manifest.c: what is saved comes back bit for bit, a save that dies
// or fails anywhere leaves a whole checkpoint, and every damaged byte is found. Which folder MODEL means, and other people's models: test_foreign.c
#include "checkpoint_test.h"
#include <errno.h>         // EIO, ENOSPC
#include <signal.h>        // kill, SIGKILL
#include <sys/resource.h>  // setrlimit
#include <sys/stat.h>      // stat, mkfifo

static char *contents(const char *dir, const char *name, size_t *size) {
  char *path = format("%s/%s", dir, name), *bytes = read_file(path, "file", 1 << 26, size);
  free(path);
  return bytes;
}

static void damage(const char *run, int64_t step, const char *name) {
  size_t size;
  char *dir = checkpoint_path(run, step), *bytes = contents(dir, name, &size);
  bytes[size / 2] ^= 1;
  overwrite(dir, name, bytes, size);
  free(bytes);
  free(dir);
}

// Names in the folder, hidden ones too, separated by blanks.
static char *names_in(const char *dir) {
  size_t count;
  char **names = list_directory(dir, &count);
  Buffer b = {0};
  buffer_append(&b, "", 0);
  for (size_t i = 0; i < count; i++) buffer_printf(&b, "%s%s", i ? " " : "", names[i]);
  free_names(names, count);
  return b.data;
}

#define CHECK_NAMES(dir, expected) do { char *found_ = names_in(dir); CHECK_STR(found_, expected); free(found_); } while (0)

static void check_holds(const Checkpoint *c, bool fp64, uint32_t salt, int64_t step) {
  Model expected, loaded;
  small_model(&expected, fp64);
  small_model(&loaded, fp64);
  fill(&expected, salt);
  TrainerState state, wanted = some_state(step);
  checkpoint_load_weights(c, &loaded.table, put, &loaded);
  checkpoint_load_trainer(c, &loaded.table, fp64, put, &loaded, &state);
  for (size_t r = 0; r < loaded.table.count; r++) {
    const TensorRow *row = &loaded.rows[r];
    size_t bytes = (size_t)(row->rows * row->cols) * sizeof(double);
    for (int p = 0; p < 3; p++) {
      bool kept = !row->zero_in_file_only && (row->trainable || p == 0);
      if (!kept) memset(expected.values[r][p], 0, bytes);
      CHECK_MSG(memcmp(loaded.values[r][p], expected.values[r][p], bytes) == 0, "%s, part %d", row->name, p);
    }
  }
  CHECK(memcmp(&state, &wanted, sizeof state) == 0);
  free_model(&expected);
  free_model(&loaded);
}

static int64_t newest_step(const char *run);

// ---- the round trip ----

static void round_trip(void) {
  for (int fp64 = 0; fp64 <= 1; fp64++) {
    char *run = new_run("run"), *dir = checkpoint_path(run, 12);
    Model m;
    small_model(&m, fp64);
    fill(&m, 1);
    save(&m, run, 12, 0, RUN_ID);
    CHECK_NAMES(run, "step_00000012");
    CHECK_NAMES(dir, "config.json manifest.json model.safetensors tokenizer.json trainer.safetensors");
    Checkpoint *c = checkpoint_newest(run);
    CHECK(c && c->saved_by_gpt && c->step == 12);
    CHECK_STR(c->run_id, RUN_ID);
    CHECK_STR(c->dir, dir);
    CHECK_STR(json_string(c->config, "model_type", ""), "gpt2");
    check_holds(c, fp64, 1, 12);
    checkpoint_close(c);
    free_model(&m);
    free(run);
    free(dir);
  }
}

static bool closed_on_exec(int fd) { return (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0; }

// Everybody may read what the user's mask allows; no program that this one starts gets its files.
static void modes_of_files(void) {
  char *run = new_run("run"), *dir = checkpoint_path(run, 0), *path = format("%s/model.safetensors", dir);
  struct stat of_dir, of_file;
  mode_t mask = umask(0);
  save_filled(run, 0, 1, 0);        // a run may save before its first step
  umask(mask);
  CHECK(stat(dir, &of_dir) == 0 && stat(path, &of_file) == 0);
  CHECK_EQ(of_dir.st_mode & 07777, 0777);
  CHECK_EQ(of_file.st_mode & 07777, 0666);
  Checkpoint *c = checkpoint_newest(run);
  CHECK(c && c->step == 0 && closed_on_exec(c->model->fd) && closed_on_exec(c->trainer->fd));
  checkpoint_close(c);
  CHECK(signal(SIGXFSZ, SIG_DFL) == SIG_DFL);      // as it was before the save
  free(path);
  free(dir);
  free(run);
}

// As many files as there is room for, an empty one among them, with the longest name; one more and a longer name are refused.
static void the_most_files(void) {
  char *run = new_run("run"), names[MANIFEST_MAX_FILES][66];
  CheckpointFile files[MANIFEST_MAX_FILES];
  Model m;
  small_model(&m, false);
  TrainerState state = some_state(1);
  CheckpointSource source = {.table = &m.table, .get = get, .context = &m, .files = files, .state = &state, .run_id = RUN_ID};
  for (int i = 0; i < MANIFEST_MAX_FILES; i++) {
    snprintf(names[i], sizeof names[i], "file%02d%058d", i, 0);
    names[i][63] = 0;
    files[i] = (CheckpointFile){names[i], "{}", i == 5 ? 0 : 2};
  }
  snprintf(names[0], sizeof names[0], "config.json");
  source.file_count = MANIFEST_MAX_FILES - 3;     // with both files of tensors and the manifest
  checkpoint_save(&source, run, 0);
  CHECK_EQ(newest_step(run), 1);
  source.file_count++;
  EXPECT_FAIL(EXIT_MACHINE, "no place for a file manifest.json in a checkpoint", checkpoint_save(&source, run, 0));
  names[3][63] = 'x', names[3][64] = 0;
  source.file_count = 4;
  EXPECT_FAIL(EXIT_MACHINE, "no place for a file file03", checkpoint_save(&source, run, 0));
  CHECK_NAMES(run, "step_00000001");
  free_model(&m);
  free(run);
}

// What other programs will see in model.safetensors: names, shapes, F32, (in, out) where the row says so, zero biases.
static void file_layout(void) {
  char *run = new_run("run"), *dir = checkpoint_path(run, 1), *path = format("%s/model.safetensors", dir);
  Model m;
  small_model(&m, false);
  fill(&m, 9);
  save(&m, run, 1, 0, RUN_ID);
  Refusal why = {0};
  Safetensors *s = safetensors_open(path, &why);
  CHECK(s && s->count == m.table.count);
  if (!s) return;
  CHECK_STR(safetensors_metadata(s, "format"), "pt");
  for (size_t i = 0; i < s->count; i++) CHECK(s->tensors[i].type == SAFE_F32 && !strcmp(s->tensors[i].name, m.rows[i].name));
  const SafeTensor *t = safetensors_find(s, "transformer.h.0.attn.c_attn.weight");
  double x[12];
  CHECK(t->dims == 2 && t->shape[0] == 2 && t->shape[1] == 6 && safetensors_read(s, t, 0, 12, x));
  for (int in = 0; in < 2; in++)
    for (int out = 0; out < 6; out++) CHECK(x[in * 6 + out] == m.values[1][0][out * 2 + in]);
  t = safetensors_find(s, "transformer.wte.weight");
  CHECK(t->dims == 2 && t->shape[0] == 3 && t->shape[1] == 2 && safetensors_read(s, t, 0, 6, x) && !memcmp(x, m.values[0][0], 48));
  t = safetensors_find(s, "transformer.h.0.ln_1.bias");
  CHECK(t->dims == 1 && t->shape[0] == 2 && safetensors_read(s, t, 0, 2, x) && x[0] == 0 && x[1] == 0);
  safetensors_close(s);
  free_model(&m);
  free(path);
  free(dir);
  free(run);
}

// Tensors of several pieces: more columns than a piece has elements, more rows, and neither.
static void big_tensors(void) {
  static const int64_t shapes[][2] = {{300, 500}, {70001, 2}, {2, 70001}, {65536, 1}, {1, 65537}};
  char *run = new_run("run");
  Model m = {0}, loaded = {0};
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
    char name[20];
    snprintf(name, sizeof name, "t%zu", i);
    add_row(&m, name, shapes[i][0], shapes[i][1], 2)->file_transposed = true;
    add_row(&loaded, name, shapes[i][0], shapes[i][1], 2)->file_transposed = true;
  }
  fill(&m, 4);
  save(&m, run, 1, 0, RUN_ID);
  Checkpoint *c = checkpoint_newest(run);
  TrainerState state;
  checkpoint_load_weights(c, &loaded.table, put, &loaded);
  checkpoint_load_trainer(c, &loaded.table, false, put, &loaded, &state);
  for (size_t i = 0; i < m.table.count; i++) {
    size_t n = (size_t)(m.rows[i].rows * m.rows[i].cols);
    for (int p = 0; p < 3; p++) CHECK_MSG(memcmp(loaded.values[i][p], m.values[i][p], n * 8) == 0, "tensor %zu part %d", i, p);
    const SafeTensor *t = safetensors_find(c->model, m.rows[i].name);
    double x;
    for (size_t at = 0; at < n; at += 997) {  // file (in, out): element (i, o) is (o, i) of memory
      size_t in = at / (size_t)m.rows[i].rows, out = at % (size_t)m.rows[i].rows;
      CHECK(safetensors_read(c->model, t, (int64_t)at, 1, &x) && x == m.values[i][0][out * (size_t)m.rows[i].cols + in]);
    }
  }
  checkpoint_close(c);
  free_model(&m);
  free_model(&loaded);
  free(run);
}

// The bytes are a function of the state: not of the folder, the time, the run id.
static void same_state_same_bytes(void) {
  char *a = new_run("a"), *b = new_run("another-folder"), id[33], id2[33];
  checkpoint_new_run_id(id);
  checkpoint_new_run_id(id2);
  CHECK(strlen(id) == 32 && strspn(id, "0123456789abcdef") == 32 && strcmp(id, id2) != 0);
  Model m;
  small_model(&m, false);
  fill(&m, 2);
  save(&m, a, 5, 0, id);
  save(&m, b, 5, 0, id2);
  const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json", "trainer.safetensors", "manifest.json"};
  char *dir_a = checkpoint_path(a, 5), *dir_b = checkpoint_path(b, 5);
  for (size_t i = 0; i < ARRAY_LEN(names); i++) {
    size_t size_a, size_b;
    char *bytes_a = contents(dir_a, names[i], &size_a), *bytes_b = contents(dir_b, names[i], &size_b);
    bool same = size_a == size_b && memcmp(bytes_a, bytes_b, size_a) == 0;
    CHECK_MSG(same == (i < 4), "%s", names[i]);  // the manifest names the run
    free(bytes_a);
    free(bytes_b);
  }
  free_model(&m);
  free(dir_a);
  free(dir_b);
  free(a);
  free(b);
}

// ---- damage ----

static const char *const all_files[] = {"config.json", "model.safetensors", "tokenizer.json", "trainer.safetensors", "manifest.json"};

// The newest checkpoint is step 2 if it is whole, else step 1.
static int64_t newest_step(const char *run) {
  int64_t step = -1;
  QUIETLY(Checkpoint *c = checkpoint_newest(run); if (c) step = c->step; checkpoint_close(c));
  return step;
}

static void every_byte_is_guarded(void) {
  char *run = new_run("run"), *dir = checkpoint_path(run, 2);
  save_filled(run, 1, 1, 0);
  save_filled(run, 2, 2, 0);
  CHECK_EQ(newest_step(run), 2);
  for (size_t f = 0; f < ARRAY_LEN(all_files); f++) {
    size_t size;
    char *bytes = contents(dir, all_files[f], &size), *path = format("%s/%s", dir, all_files[f]);
    int fd = open(path, O_WRONLY);
    for (size_t i = 0; i < size; i++) {
      // One bit of each byte (every bit takes its turn), and all bits of the manifest, which guards itself.
      for (int bit = 0; bit < 8; bit++) {
        if (f < 4 && bit != (int)(i % 8)) continue;
        char flipped = (char)(bytes[i] ^ (1 << bit));
        CHECK(pwrite(fd, &flipped, 1, (off_t)i) == 1);
        CHECK_MSG(newest_step(run) == 1, "%s: bit %d of byte %zu was flipped and not found", all_files[f], bit, i);
        CHECK(pwrite(fd, &bytes[i], 1, (off_t)i) == 1);
      }
    }
    close(fd);
    CHECK_EQ(newest_step(run), 2);
    for (size_t shorter = 0; shorter < size; shorter += f == 4 ? 1 : 1 + size / 20) {
      overwrite(dir, all_files[f], bytes, shorter);
      CHECK_MSG(newest_step(run) == 1, "%s: cut to %zu bytes and not found", all_files[f], shorter);
    }
    char *longer = xcalloc(size + 1, 1);
    memcpy(longer, bytes, size);
    overwrite(dir, all_files[f], longer, size + 1);
    CHECK_MSG(newest_step(run) == 1, "%s: a byte more", all_files[f]);
    remove(path);
    CHECK_MSG(newest_step(run) == 1, "%s: missing", all_files[f]);
    make_directory(path);
    CHECK_MSG(newest_step(run) == 1, "%s: a directory", all_files[f]);
    remove_tree(path);
    overwrite(dir, all_files[f], bytes, size);
    CHECK_EQ(newest_step(run), 2);
    free(path);
    free(longer);
    free(bytes);
  }
  free(dir);
  free(run);
}

static void says_what_is_wrong(void) {
  char *run = new_run("run"), *dir = checkpoint_path(run, 2), *model = format("%s/model.safetensors", dir);
  save_filled(run, 2, 2, 0);
  damage(run, 2, "model.safetensors");
  EXPECT_FAIL(EXIT_REQUEST, "step_00000002/model.safetensors: is damaged: CRC32C ", checkpoint_open(dir));
  EXPECT_FAIL(EXIT_REQUEST, "none of its 1 checkpoints is whole; the newest: ", checkpoint_newest(run));
  EXPECT_FAIL(EXIT_REQUEST, "is damaged", checkpoint_resolve(dir));
  size_t size;
  char *bytes = contents(dir, "model.safetensors", &size), *numbers = format("has %zu bytes, the manifest says %zu", size - 1, size);
  overwrite(dir, "model.safetensors", bytes, size - 1);
  EXPECT_FAIL(EXIT_REQUEST, numbers, checkpoint_open(dir));
  remove(model);
  EXPECT_FAIL(EXIT_REQUEST, "model.safetensors: is missing", checkpoint_open(dir));
  char *manifest = format("%s/manifest.json", dir);
  remove(manifest);
  EXPECT_FAIL(EXIT_REQUEST, "manifest.json: is missing", checkpoint_open(dir));
  save_filled(run, 1, 1, 0);
  EXPECT_FAIL(0, "manifest.json: is missing; looking for an older checkpoint", checkpoint_newest(run));
  remove_tree(run);
  make_directory(run);
  CHECK(checkpoint_newest(run) == NULL);
  save_filled(run, 3, 3, 0);
  char *from = checkpoint_path(run, 3), *to = checkpoint_path(run, 4);
  CHECK(rename(from, to) == 0);
  EXPECT_FAIL(EXIT_REQUEST, "its manifest is that of step 3", checkpoint_open(to));
  free(from);
  free(to);
  free(manifest);
  free(numbers);
  free(bytes);
  free(model);
  free(dir);
  free(run);
}

// What a statement says on stderr, in a child, and its exit code.
#define SAID(code, words, statement) do { \
    char *path_ = format("%s/said", folder); \
    fflush(NULL); \
    pid_t pid_ = fork(); \
    if (pid_ == 0) { if (!freopen(path_, "w", stderr)) _exit(99); { statement; } fflush(NULL); _exit(0); } \
    int status_; \
    waitpid(pid_, &status_, 0); \
    size_t n_; \
    char *text_ = read_file(path_, "words", 1 << 16, &n_); \
    CHECK_EQ(WEXITSTATUS(status_), code); \
    CHECK_STR(text_, words); \
    free(text_); \
    remove(path_); \
    free(path_); \
  } while (0)

// A file in the place of a folder, a pipe in the place of a file, a manifest of its last line alone; and a file that ends while it is read.
static void says_what_stands_in_the_way(void) {
  char *run = new_run("run"), *dir = checkpoint_path(run, 2), *path = format("%s/config.json", dir), *model = format("%s/model.safetensors", dir);
  save_filled(run, 2, 2, 0);
  char *pipe_words = format("gpt: %s: is no regular file\n", path), *cut_words = format("gpt: %s/manifest.json: is cut off at 30 bytes\n", dir);
  remove(path);
  CHECK(mkfifo(path, 0600) == 0);
  SAID(EXIT_REQUEST, pipe_words, checkpoint_open(dir));
  char *manifest = format("%s/manifest.json", dir), *missing_words = format("gpt: %s: is missing\n", manifest);
  CHECK(truncate(manifest, 30) == 0);
  SAID(EXIT_REQUEST, cut_words, checkpoint_open(dir));
  remove(manifest);
  SAID(EXIT_REQUEST, missing_words, checkpoint_open(dir));
  free(missing_words);
  remove_tree(dir);
  save_filled(run, 2, 2, 0);
  Checkpoint *c = checkpoint_open(dir);
  Model m;
  small_model(&m, false);
  CHECK(truncate(model, 8) == 0);
  char *words = format("gpt: %s: tensor transformer.h.0.ln_1.bias cannot be read at element 0\n", model);
  SAID(EXIT_MACHINE, words, checkpoint_load_weights(c, &m.table, put, &m));
  checkpoint_close(c);
  overwrite(dir, "manifest.json", "", 0);
  EXPECT_FAIL(EXIT_MACHINE, "manifest.json: cannot be opened: Not a directory", checkpoint_lock(manifest));
  EXPECT_FAIL(EXIT_REQUEST, "gpt: //config.json: is missing", checkpoint_open("/"));
  free_model(&m);
  free(words);
  free(pipe_words);
  free(cut_words);
  free(manifest);
  free(model);
  free(path);
  free(dir);
  free(run);
}

// From here on this process can open `left` files more.
static void leave_open_files(int left) {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = 64;
  setrlimit(RLIMIT_NOFILE, &limit);
  int last = -1;
  for (int fd; (fd = dup(STDERR_FILENO)) >= 0;) last = fd;
  while (left-- > 0) close(last--);
}

// Nobody may read this file any more, root neither.
static void forbid(const char *path) {
  if (chmod(path, 0) || (geteuid() == 0 && (chmod(folder, 0755) || seteuid(65534)))) _exit(99);
}

// Stands in for the system's pread: call number `fails` (from 1) fails with this errno, or finds the file's end where it is 0.
static struct { int calls, fails, error; } reading;
ssize_t pread(int fd, void *bytes, size_t n, off_t at) {
  if (++reading.calls == reading.fails) { errno = reading.error ? reading.error : errno; return reading.error ? -1 : 0; }
  return syscall(SYS_pread64, fd, bytes, n, at);
}
static void fail_reading(int call, int error) { reading.calls = 0, reading.fails = call, reading.error = error; }

// A file that the machine does not give is no damage: exit 3 with its name and the reason, and no older checkpoint is taken in its place.
static void the_machine_gives_no_file(void) {
  char *run = new_run("run"), *dir = checkpoint_path(run, 2), *manifest = format("%s/manifest.json", dir);
  save_filled(run, 1, 1, 0);
  save_filled(run, 2, 2, 0);
  static const char *const refused[] = {"manifest.json", "trainer.safetensors", "config.json"};   // where 0, 1, 2 files can be opened
  for (int left = 0; left < 3; left++) {
    char *words = format("gpt: %s/%s: cannot be opened: Too many open files\n", dir, refused[left]);
    SAID(EXIT_MACHINE, words, leave_open_files(left); checkpoint_open(dir));
    if (left) SAID(EXIT_MACHINE, words, leave_open_files(left); checkpoint_newest(run));   // the run's folder takes one to list
    if (left) SAID(EXIT_MACHINE, words, leave_open_files(left); checkpoint_resolve(run));
    free(words);
  }
  SAID(0, "", leave_open_files(3); checkpoint_newest(run));
  char *words = format("gpt: %s: cannot be opened: Permission denied\n", manifest);
  SAID(EXIT_MACHINE, words, forbid(manifest); checkpoint_open(dir));
  free(words);
  free(manifest);
  free(dir);
  remove_tree(run);
  free(run);
}

// The same of a read that fails; a file that has become shorter meanwhile is the file's fault.
static void the_machine_reads_no_byte(void) {
  char *run = new_run("run"), *dir = checkpoint_path(run, 2);
  save_filled(run, 1, 1, 0);
  save_filled(run, 2, 2, 0);
  static const struct { int call; const char *words; } reads[] = {   // in the order of checkpoint_open()
    {1, "manifest.json: cannot be read at byte 0: "}, {2, "config.json: cannot be read at byte 0: "}, {4, "model.safetensors: cannot be read at byte 0: "},
    {5, "model.safetensors: cannot be read: "}, {6, "model.safetensors: cannot be read: "}, {7, "trainer.safetensors: cannot be read at byte 0: "},
    {8, "trainer.safetensors: cannot be read: "}, {10, "config.json: cannot be read at byte 0: "}};
  for (size_t i = 0; i < ARRAY_LEN(reads); i++) {
    char *words = format("gpt: %s/%sInput/output error\n", dir, reads[i].words);
    SAID(EXIT_MACHINE, words, fail_reading(reads[i].call, EIO); checkpoint_open(dir));
    SAID(EXIT_MACHINE, words, fail_reading(reads[i].call, EIO); checkpoint_newest(run));
    free(words);
    words = format("gpt: %s/%s%s\n", dir, reads[i].words, strstr(reads[i].words, "byte") ? "it ends there" : "it ends too early");
    SAID(EXIT_REQUEST, words, errno = EIO; fail_reading(reads[i].call, 0); checkpoint_open(dir));
    SAID(0, "", if (!freopen("/dev/null", "w", stderr)) _exit(99); fail_reading(reads[i].call, 0); _exit(checkpoint_newest(run)->step != 1));
    free(words);
  }
  // whatever errno was before
  char *model = format("%s/model.safetensors", dir);
  Refusal why = {0};
  fail_reading(1, 0);
  errno = EIO;
  CHECK(!safetensors_open(model, &why) && !why.machine && strstr(why.line.data, "it ends too early"));
  fail_reading(0, 0);
  buffer_free(&why.line);
  free(model);
  free(dir);
  remove_tree(run);
  free(run);
}

// A name that leads nowhere is no matter of the machine.
static void a_name_that_leads_nowhere(void) {
  char *run = new_run("run"), *dir = checkpoint_path(run, 2), *manifest = format("%s/manifest.json", dir);
  save_filled(run, 2, 2, 0);
  CHECK(remove(manifest) == 0 && symlink("manifest.json", manifest) == 0);
  EXPECT_FAIL(EXIT_REQUEST, "manifest.json: Too many levels of symbolic links", checkpoint_open(dir));
  CHECK(remove(manifest) == 0 && symlink("config.json/x", manifest) == 0);
  EXPECT_FAIL(EXIT_REQUEST, "manifest.json: Not a directory", checkpoint_open(dir));
  char name[300];
  memset(name, 'x', sizeof name - 1);
  name[sizeof name - 1] = 0;
  CHECK(remove(manifest) == 0 && symlink(name, manifest) == 0);
  EXPECT_FAIL(EXIT_REQUEST, "manifest.json: File name too long", checkpoint_open(dir));
  CHECK(remove(manifest) == 0 && mknod(manifest, S_IFSOCK | 0600, 0) == 0);
  EXPECT_FAIL(EXIT_REQUEST, "manifest.json: No such device or address", checkpoint_open(dir));
  free(manifest);
  free(dir);
  remove_tree(run);
  free(run);
}

// Where none of several is whole, each but the oldest is passed over with its reason, and the newest one's stands last.
static void none_is_whole(void) {
  char *run = new_run("run");
  for (int step = 1; step <= 3; step++) {
    save_filled(run, step, 1, 0);
    char *dir = checkpoint_path(run, step), *path = format("%s/%s", dir, step == 2 ? "model.safetensors" : step == 3 ? "trainer.safetensors" : "manifest.json");
    remove(path);
    free(path);
    free(dir);
  }
  char *words = format("gpt: warning: %s/step_00000003/trainer.safetensors: is missing; looking for an older checkpoint\n"
                       "gpt: warning: %s/step_00000002/model.safetensors: is missing; looking for an older checkpoint\n"
                       "gpt: %s: none of its 3 checkpoints is whole; the newest: %s/step_00000003/trainer.safetensors: is missing\n", run, run, run, run);
  SAID(EXIT_REQUEST, words, checkpoint_newest(run));
  free(words);
  remove_tree(run);
  free(run);
}

// The files of a checkpoint, to the bit: other versions of this program must read them.
static void files_are_pinned(void) {
  char *run = new_run("run");
  Buffer all = {0};
  for (int fp64 = 0; fp64 < 2; fp64++) {
    Model m;
    small_model(&m, fp64);
    fill(&m, 5);
    save(&m, run, 7 + fp64, 0, RUN_ID);
    free_model(&m);
    char *dir = checkpoint_path(run, 7 + fp64);
    for (int i = 0; i < 3; i++) {
      size_t n;
      char *bytes = contents(dir, (const char *[]){"model.safetensors", "trainer.safetensors", "manifest.json"}[i], &n);
      buffer_append(&all, bytes, n);
      free(bytes);
    }
    free(dir);
  }
  CHECK_HASH(all.data, all.len, "fd6791e637b97355138fbce50ac93cbf71807a3b5b8fc61f06f74f076070adcb");
  buffer_free(&all);
  remove_tree(run);
  free(run);
}

// A manifest whose own checksum is right and whose fields are not: somebody else's doing, and no crash.
static void wrong_manifests(void) {
  char *run = new_run("run"), *dir = checkpoint_path(run, 1);
  save_filled(run, 1, 1, 0);
  Buffer many = {0};
  buffer_printf(&many, "\"files\": [");
  for (int i = 0; i < 100; i++) buffer_printf(&many, "{\"name\": \"file%d\", \"bytes\": 1, \"crc32c\": \"00000000\"}, ", i);
  const char *const long_name = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";   // with its NUL one byte more than there is room for
  const char *const bad[][3] = {  // what, by what, and the reason if it is not that a field is wrong
    {"gpt-checkpoint", "gpt-checkpoinT", "is no manifest"}, {"\"version\": 1", "\"version\": 2", "version 2, this program reads 1"}, {"\"version\": 1", "\"version\": 0", "version 0, this program reads 1"},
    {"\"version\": 1", "\"version\": 1e10", "is no manifest"}, {"\"version\"", "version", "line 3"},
    {"\"step\": 1", "\"step\": 1.5", NULL}, {"\"step\": 1", "\"step\": 2", "its manifest is that of step 2"},
    {RUN_ID, "short", NULL},
    {"tokenizer.json", "../../else.json", NULL}, {"tokenizer.json", "sub/file.json", NULL},
    {"tokenizer.json", "config.json", NULL}, {"tokenizer.json", ".okenizer.json", NULL},
    {"\"bytes\": 21", "\"bytes\": 9007199254740994", NULL}, {"\"bytes\": 21", "\"bytes\": 9007199254740992", "config.json: has 21 bytes, the manifest says 9007199254740992"},
    {"\"bytes\": 21", "\"bytes\": 9007199254740990", "config.json: has 21 bytes, the manifest says 9007199254740990"},
    {"\"step\": 1", "\"step\": 9007199254740994", NULL}, {"\"step\": 1", "\"step\": 9007199254740992", "its manifest is that of step 9007199254740992"},
    {"tokenizer.json", "", NULL}, {"tokenizer.json", long_name, NULL}, {"tokenizer.json", long_name + 1, "nnn: is missing"}, {"config.json", "other.json", "does not list config.json"},
    {"model.safetensors", "other.safetensors", "does not list model.safetensors"},
    {"trainer.safetensors", "other.safetensors", "does not list trainer.safetensors"}, {"tokenizer.json", "absent.json", "is missing"},
    {"\"bytes\": 21", "\"bytes\": -1", NULL}, {"\"bytes\": 21", "\"bytes\": 1e18", NULL}, {"\"files\": [", "\"files\": [[], ", NULL},
    {"\"files\": [", "\"files\": 3, \"f\": [", NULL}, {"\"crc32c\": \"", "\"crc32c\": \"0x", NULL}, {"\"files\": [", many.data, NULL}};
  size_t size, self;
  char *bytes = contents(dir, "manifest.json", &size);
  for (self = size; strncmp(bytes + self, "  \"self_crc32c\"", 15); self--) {}
  for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
    Buffer b = {0};
    char *at = strstr(bytes, bad[i][0]);
    CHECK(at && at < bytes + self);
    buffer_append(&b, bytes, (size_t)(at - bytes));
    buffer_printf(&b, "%s", bad[i][1]);
    at += strlen(bad[i][0]);
    buffer_append(&b, at, (size_t)(bytes + self - at));
    buffer_printf(&b, "  \"self_crc32c\": \"%08x\"\n}\n", crc32c(0, b.data, b.len));
    overwrite(dir, "manifest.json", b.data, b.len);
    EXPECT_FAIL(EXIT_REQUEST, bad[i][2] ? bad[i][2] : "a field is missing or wrong", checkpoint_open(dir));
    buffer_free(&b);
  }
  // as many files as a manifest can hold, and one more
  for (size_t count = MANIFEST_MAX_FILES; count <= MANIFEST_MAX_FILES + 1; count++) {
    Manifest m;
    Buffer b = {0};
    Refusal why = {0};
    buffer_printf(&b, "{\"format\": \"gpt-checkpoint\", \"version\": 1, \"run_id\": \"%s\", \"step\": 1, \"files\": [", RUN_ID);
    for (size_t i = 0; i < count; i++) buffer_printf(&b, "%s{\"name\": \"file%zu\", \"bytes\": 0, \"crc32c\": \"00000000\"}", i ? ", " : "", i);
    buffer_printf(&b, "],\n");
    buffer_printf(&b, "  \"self_crc32c\": \"%08x\"\n}\n", crc32c(0, b.data, b.len));
    overwrite(dir, "manifest.json", b.data, b.len);
    CHECK_MSG(manifest_read(dir, &m, &why) == (count == MANIFEST_MAX_FILES), "%zu files: %s", count, why.line.data ? why.line.data : "");
    buffer_free(&b);
    buffer_free(&why.line);
  }
  overwrite(dir, "manifest.json", bytes, size);
  checkpoint_close(checkpoint_open(dir));
  buffer_free(&many);
  free(bytes);
  free(dir);
  free(run);
}

// ---- dying and failing ----

// What the hook below does at the call number `at` (from 0): dies, or makes it fail with this errno.
static struct { int count, at, error; bool die, no_exchange; Buffer trace; } fault;

static int inject(const char *call, const char *path) {
  if (fault.at < 0) buffer_printf(&fault.trace, "%s %s\n", call, strrchr(path, '/') + 1);
  int error = fault.no_exchange && !strcmp(call, "exchange") ? EINVAL : 0;
  if (fault.count++ != fault.at) return error;
  if (fault.die) kill(getpid(), SIGKILL);
  return fault.error;
}

static void trace_save(const char *run, int64_t step, int64_t keep) {
  fault.at = -1;
  fault.count = 0;
  buffer_free(&fault.trace);
  checkpoint_fault = inject;
  save_filled(run, step, 2, keep);
  checkpoint_fault = NULL;
}

// Everything is on the disk before the name that promises it: files, then manifest, then folder, rename, run folder.
static void order_of_calls(void) {
  char *run = new_run("run");
  really_fsync = true;
  fsync_calls = 0;
  trace_save(run, 2, 0);
  CHECK_EQ(fsync_calls, 7);  // five files and two folders
  really_fsync = false;
  char *t = fault.trace.data, *at = t;
  CHECK(!strncmp(t, "mkdir .tmp-step_00000002\n", 25));
  for (size_t i = 0; i < 5; i++) {  // each file: open, writes, fsync, close, before the next
    const char *const order[] = {"config.json", "tokenizer.json", "model.safetensors", "trainer.safetensors", "manifest.json"};
    char *open_line = format("open %s\nwrite %s\n", order[i], order[i]), *end = format("fsync %s\nclose %s\n", order[i], order[i]);
    char *start = strstr(at, open_line);
    CHECK_MSG(start != NULL, "%s in %s", open_line, t);
    at = start ? strstr(start, end) : NULL;
    CHECK_MSG(at != NULL, "%s in %s", end, t);
    if (!at) return;
    at += strlen(end);
    free(open_line);
    free(end);
  }
  CHECK_STR(at, "fsync .tmp-step_00000002\nrename step_00000002\nfsync run\n");
  free(run);
}

typedef enum { NEW_STEP, SAME_STEP, SAME_STEP_WITHOUT_EXCHANGE, PRUNING } Story;

static void prepare(const char *run, Story story) {
  checkpoint_fault = NULL;
  remove_tree(run);
  make_directory(run);
  save_filled(run, 1, 1, 0);
  if (story == PRUNING) save_filled(run, 2, 2, 0);
}

// The save that is disturbed. Salt 3 is what it saves; what was there has the salt of its step.
static void disturbed(const char *run, Story story) {
  fault.count = 0;
  fault.no_exchange = story == SAME_STEP_WITHOUT_EXCHANGE;
  checkpoint_fault = inject;
  save_filled(run, story == NEW_STEP ? 2 : story == PRUNING ? 3 : 1, 3, story == PRUNING ? 1 : 0);
}

// Whatever happened: the newest checkpoint is whole and is the old one or the new one, and the next save works.
static void check_survived(const char *run, Story story, int at) {
  int64_t old_step = story == PRUNING ? 2 : 1, new_step = story == NEW_STEP ? 2 : story == PRUNING ? 3 : 1;
  checkpoint_clean(run);  // as a run does when it starts
  Checkpoint *c = checkpoint_newest(run);
  CHECK_MSG(c != NULL, "story %d, call %d", story, at);
  if (!c) return;
  CHECK_MSG(c->step == old_step || c->step == new_step, "story %d, call %d: step %lld", story, at, (long long)c->step);
  Model loaded, is_new, is_old;
  small_model(&loaded, false);
  small_model(&is_new, false);
  small_model(&is_old, false);
  fill(&is_new, 3);
  fill(&is_old, (uint32_t)old_step);
  checkpoint_load_weights(c, &loaded.table, put, &loaded);
  bool new_bytes = !memcmp(loaded.values[0][0], is_new.values[0][0], 6 * sizeof(double));
  bool old_bytes = !memcmp(loaded.values[0][0], is_old.values[0][0], 6 * sizeof(double));
  CHECK_MSG(c->step == old_step && c->step == new_step ? new_bytes || old_bytes : c->step == new_step ? new_bytes : old_bytes,
            "story %d, call %d", story, at);
  checkpoint_close(c);
  free_model(&loaded);
  free_model(&is_new);
  free_model(&is_old);
  save_filled(run, 9, 9, 1);
  CHECK_NAMES(run, "step_00000009");
}

// Killed before each of its system calls in turn.
static void killed_anywhere(void) {
  char *run = new_run("run");
  for (Story story = NEW_STEP; story <= PRUNING; story++) {
    bool killed = true;
    int at = 0;
    for (; killed; at++) {
      prepare(run, story);
      fflush(NULL);
      pid_t child = fork();
      if (child == 0) {
        fault.at = at;
        fault.die = true;
        disturbed(run, story);
        _exit(0);
      }
      int status;
      waitpid(child, &status, 0);
      killed = WIFSIGNALED(status);
      CHECK(killed ? WTERMSIG(status) == SIGKILL : status == 0);
      check_survived(run, story, at);
    }
    CHECK_MSG(at > 30, "only %d calls", at);
  }
  free(run);
}

// Each system call fails in turn: exit 3, one line, no temporary folder, the earlier checkpoint as it was.
static void fails_anywhere(void) {
  char *run = new_run("run");
  for (Story story = NEW_STEP; story <= SAME_STEP_WITHOUT_EXCHANGE; story++) {
    prepare(run, story);
    fault.at = -1;
    fault.trace.len = 0;
    disturbed(run, story);
    int calls = fault.count;
    CHECK_NAMES(run, story == NEW_STEP ? "step_00000001 step_00000002" : "step_00000001");
    static const struct { int error; const char *words; bool full; } errors[] = {{EIO, "Input/output error", false}, {ENOSPC, "No space left on device", true}, {EDQUOT, "Disk quota exceeded", true}};
    for (int at = 0; at < calls; at++) {
      prepare(run, story);
      fault.at = at;
      fault.die = false;
      fault.error = errors[at % 3].error;
      char *words = format("%s; earlier checkpoints are intact%s%s\n", errors[at % 3].words, errors[at % 3].full ? "; make room, then gpt train --resume " : "", errors[at % 3].full ? run : "");
      // Only the last fsync, that of the run folder, comes after the new checkpoint took its place.
      EXPECT_FAIL(EXIT_MACHINE, words, disturbed(run, story));
      free(words);
      checkpoint_fault = NULL;
      CHECK_NAMES(run, at == calls - 1 && story == NEW_STEP ? "step_00000001 step_00000002" : "step_00000001");
      check_survived(run, story, at);
    }
  }
  free(run);
}

// Where files cannot be exchanged, the old one stands aside, and the new one cannot take its place nor the old one go back.
static int renames;
static int cannot_go_back(const char *call, const char *path) {
  if (!strcmp(call, "exchange")) return EINVAL;
  if (strcmp(call, "rename") || ++renames < 3) return 0;
  char *inside = format("%s/something", path);
  make_directory(path);
  make_directory(inside);
  free(inside);
  return EIO;
}

static int refused_call;
static int refuses_to_remove(const char *call, const char *path) {
  bool removing = strstr(path, ".tmp-removed_") != NULL;
  return removing && !strcmp(call, refused_call ? "remove" : "rename") ? EIO : 0;
}

static void what_stays_is_said(void) {
  char *run = new_run("run");
  save_filled(run, 1, 1, 0);
  renames = 0;
  checkpoint_fault = cannot_go_back;
  char *words = format("gpt: warning: %s/.old-step_00000001: keeps this name until the run is resumed: Directory not empty\n"
                       "gpt: %s/step_00000001: this checkpoint was not saved: rename %s/step_00000001: Input/output error; earlier checkpoints are intact\n", run, run, run);
  SAID(EXIT_MACHINE, words, save_filled(run, 1, 2, 0));
  CHECK_NAMES(run, ".old-step_00000001 step_00000001");
  checkpoint_fault = refuses_to_remove;
  free(words);
  words = format("gpt: warning: %s/step_00000001: this old checkpoint could not be removed: Input/output error\n", run);
  for (refused_call = 0; refused_call < 2; refused_call++) {
    remove_tree(run);
    make_directory(run);
    save_filled(run, 1, 1, 0);
    SAID(0, words, save_filled(run, 2, 2, 1));
    CHECK_NAMES(run, refused_call ? ".tmp-removed_00000001 step_00000002" : "step_00000001 step_00000002");
  }
  checkpoint_fault = NULL;
  free(words);
  free(run);
}

// The real thing: the kernel refuses to let a file grow, with the signal that would kill us.
static void file_size_limit(void) {
  char *run = new_run("run");
  for (rlim_t limit = 0; limit <= 1600; limit += 400) {
    prepare(run, NEW_STEP);
    struct rlimit r = {limit, limit};
    EXPECT_FAIL(EXIT_MACHINE, "File too large; earlier checkpoints are intact",
                setrlimit(RLIMIT_FSIZE, &r); save_filled(run, 2, 2, 0));
    CHECK_NAMES(run, "step_00000001");
    check_survived(run, NEW_STEP, (int)limit);
  }
  free(run);
}

// ---- pruning and choosing ----

static void pruning(void) {
  char *run = new_run("run");
  for (int64_t step = 1; step <= 5; step++) save_filled(run, step, 1, 0);
  CHECK_NAMES(run, "step_00000001 step_00000002 step_00000003 step_00000004 step_00000005");
  save_filled(run, 6, 1, 2);
  CHECK_NAMES(run, "step_00000005 step_00000006");
  save_filled(run, 100000000, 1, 2);  // nine digits, and still the newest
  CHECK_NAMES(run, "step_00000006 step_100000000");
  CHECK_EQ(newest_step(run), 100000000);

  // The newest has lost its tail: the run goes on from an older one, and keep 1 must not leave only the damaged one.
  run = (free(run), new_run("run"));
  save_filled(run, 1, 1, 0);
  save_filled(run, 3, 3, 0);
  char *dir = checkpoint_path(run, 3), *trainer = format("%s/trainer.safetensors", dir);
  CHECK(truncate(trainer, 100) == 0);
  QUIETLY(save_filled(run, 2, 2, 1));
  CHECK_NAMES(run, "step_00000002 step_00000003");
  CHECK_EQ(newest_step(run), 2);
  // A damaged one does not count among those to keep, so the whole one below it stays.
  save_filled(run, 4, 4, 2);
  CHECK_NAMES(run, "step_00000002 step_00000003 step_00000004");
  // The same with damage that sizes do not show.
  run = (free(run), new_run("run"));
  save_filled(run, 1, 1, 0);
  save_filled(run, 3, 3, 0);
  damage(run, 3, "model.safetensors");
  save_filled(run, 2, 2, 1);
  CHECK_EQ(newest_step(run), 2);
  // A damaged checkpoint is replaced when the run gets there again.
  save_filled(run, 3, 3, 2);
  CHECK_NAMES(run, "step_00000002 step_00000003");
  CHECK_EQ(newest_step(run), 3);
  // Foreign names are nobody's business here.
  char *other = format("%s/step_3", run);
  make_directory(other);
  overwrite(run, "log.jsonl", "", 0);
  save_filled(run, 4, 4, 1);
  CHECK_NAMES(run, "log.jsonl step_00000004 step_3");
  free(other);
  free(trainer);
  free(dir);
  free(run);
}

static void names(void) {
  const struct { const char *name; int64_t step; } cases[] = {
    {"step_00000000", 0}, {"step_00000120", 120}, {"step_99999999", 99999999}, {"step_100000000", 100000000}, {"step_0000012", -1},
    {"step_000000120", -1}, {"step_0000012x", -1}, {"step_-0000012", -1}, {"Step_00000120", -1}, {"step_00000120 ", -1},
    {".tmp-step_00000120", -1}, {"step_999999999999999999", 999999999999999999}, {"step_9999999999999999999999", -1}, {"", -1}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    int64_t step = -1;
    bool is_step = checkpoint_parse_step(cases[i].name, &step);
    CHECK_MSG(is_step == (cases[i].step >= 0) && (!is_step || step == cases[i].step), "\"%s\"", cases[i].name);
  }
  char *run = new_run("run");
  TrainerState state = some_state(1);
  const CheckpointFile twice[] = {{"config.json", "{}", 2}, {"config.json", "{}", 2}}, far = {"../config.json", "{}", 2};
  CheckpointSource source = {.files = twice, .file_count = 2, .state = &state, .run_id = RUN_ID};
  EXPECT_FAIL(EXIT_MACHINE, "config.json: File exists", checkpoint_save(&source, run, 0));
  source.files = &far;
  EXPECT_FAIL(EXIT_MACHINE, "no place for a file ../config.json", checkpoint_save(&source, run, 0));
  CHECK_NAMES(run, "");
  free(run);
}

static void leftovers(void) {
  char *run = new_run("run"), *a = format("%s/.tmp-step_00000007", run), *b = format("%s/.old-step_00000001", run);
  char *c = format("%s/.old-step_00000002", run), *two = checkpoint_path(run, 2);
  make_directory(a);
  overwrite(a, "config.json", "{", 1);
  make_directory(b);
  save_filled(run, 1, 1, 0);
  CHECK_NAMES(run, "step_00000001");
  save_filled(run, 2, 2, 0);
  CHECK(rename(two, c) == 0);  // as if killed between the two renames of a replacement
  checkpoint_clean(run);
  CHECK_NAMES(run, "step_00000001 step_00000002");
  CHECK_EQ(newest_step(run), 2);
  make_directory(c);  // as if killed just after
  EXPECT_FAIL(0, "", checkpoint_clean(run); warn("nothing else was said"));
  CHECK_NAMES(run, "step_00000001 step_00000002");
  CHECK_EQ(newest_step(run), 2);
  free(a);
  free(b);
  free(c);
  free(two);
  free(run);
}

// A checkpoint that was opened can be read although the run has removed it since.
static void open_files_outlive_pruning(void) {
  char *run = new_run("run");
  save_filled(run, 1, 1, 0);
  Checkpoint *c = checkpoint_newest(run);
  save_filled(run, 2, 2, 1);
  CHECK_NAMES(run, "step_00000002");
  check_holds(c, false, 1, 1);
  checkpoint_close(c);
  free(run);
}

// Somebody reads the newest checkpoint while the run goes on publishing and removing: always a whole one, never an error.
static void reading_while_training(void) {
  char *run = new_run("run");
  save_filled(run, 1, 1, 1);
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    for (int64_t step = 2; step <= 120; step++) save_filled(run, step, 1, 1);
    _exit(0);
  }
  int64_t last = 0;
  for (int status; waitpid(child, &status, WNOHANG) == 0;) {
    Checkpoint *c = checkpoint_newest(run);
    CHECK(c && c->step >= last);
    if (c) last = c->step;
    checkpoint_close(c);
  }
  CHECK_NAMES(run, "step_00000120");
  free(run);
}

static void one_trainer_at_a_time(void) {
  char *run = new_run("run");
  checkpoint_lock(run);
  EXPECT_FAIL(EXIT_MACHINE, "another gpt process is training in this folder", checkpoint_lock(run));
  struct stat here, there;
  int locks = 0;
  CHECK(stat(run, &here) == 0);
  for (int fd = 3; fd < 100; fd++)
    if (fstat(fd, &there) == 0 && there.st_ino == here.st_ino && there.st_dev == here.st_dev) { locks++; CHECK(closed_on_exec(fd)); }
  CHECK_EQ(locks, 1);
  free(run);
}

// Replaces text in a file by text of the same length and makes the manifest agree: damage with a right checksum.
static void forge(const char *dir, const char *file, const char *from, const char *to) {
  size_t size, manifest_size;
  char *bytes = contents(dir, file, &size), *manifest = contents(dir, "manifest.json", &manifest_size), crc[9];
  char *line = strstr(manifest, file), *at = bytes;
  while (memcmp(at, from, strlen(from))) at++;
  memcpy(at, to, strlen(to));
  overwrite(dir, file, bytes, size);
  snprintf(crc, sizeof crc, "%08x", crc32c(0, bytes, size));
  memcpy(strstr(line, "\"crc32c\": \"") + 11, crc, 8);
  size_t self = (size_t)(strstr(manifest, "  \"self_crc32c\"") - manifest);
  snprintf(crc, sizeof crc, "%08x", crc32c(0, manifest, self));
  memcpy(manifest + self + 18, crc, 8);
  overwrite(dir, "manifest.json", manifest, manifest_size);
  free(bytes);
  free(manifest);
}

static void wrong_headers(void) {
  static const char *const files[] = {"model.safetensors", "trainer.safetensors"};
  for (size_t i = 0; i < ARRAY_LEN(files); i++) {
    char *run = new_run("run"), *dir = checkpoint_path(run, 1);
    save_filled(run, 1, 1, 0);
    forge(dir, files[i], "{\"", "[\"");
    EXPECT_FAIL(EXIT_REQUEST, files[i], checkpoint_open(dir));
    free(dir);
    free(run);
  }
}

static void wrong_state(void) {
  const char *const cases[][3] = {
    {"\"step\":\"1\"", "\"step\":\"2\"", "is of step 2, the manifest of step 1"},
    {"\"seed\":\"1", "\"seed\":\"x", "\"seed\" is x84467"},
    {"\"seed\":\"1", "\"seed\":\"9", "a whole number is needed"},
    {"\"seed\":\"18", "\"seed\":\"-1", "a whole number is needed"},
    {"\"updates\":\"0\"", "\"uodates\":\"0\"", "\"updates\" is missing"},
    {"\"updates\":\"0\"", "\"updates\":\"\" ", "\"updates\" is , "}};
  char *run = new_run("run"), *dir = checkpoint_path(run, 1);
  Model m;
  small_model(&m, false);
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    TrainerState state;
    save_filled(run, 1, 1, 0);
    forge(dir, "trainer.safetensors", cases[i][0], cases[i][1]);
    Checkpoint *c = checkpoint_open(dir);
    EXPECT_FAIL(EXIT_REQUEST, cases[i][2], checkpoint_load_trainer(c, &m.table, false, put, &m, &state));
    checkpoint_close(c);
  }
  free_model(&m);
  free(dir);
  free(run);
}

// A trainer that does not belong to this model, optimizer or device.
static void wrong_trainers(void) {
  char *run = new_run("run");
  Model narrow, wide;
  small_model(&narrow, false);
  small_model(&wide, true);
  fill(&narrow, 1);
  fill(&wide, 1);
  save(&narrow, run, 1, 0, RUN_ID);
  save(&wide, run, 2, 0, RUN_ID);
  char *one = checkpoint_path(run, 1), *two = checkpoint_path(run, 2);
  Checkpoint *a = checkpoint_open(one), *b = checkpoint_open(two);
  TrainerState state;
  CHECK(!checkpoint_is_fp64(a) && checkpoint_is_fp64(b));
  EXPECT_FAIL(EXIT_REQUEST, "was saved in F32 and cannot go on in F64 bit for bit; resume with --device cpu",
              checkpoint_load_trainer(a, &wide.table, true, put, &wide, &state));
  EXPECT_FAIL(EXIT_REQUEST, "was saved in F64 and cannot go on in F32 bit for bit; resume with --device reference",
              checkpoint_load_trainer(b, &narrow.table, false, put, &narrow, &state));
  narrow.rows[0].rows = 2;
  EXPECT_FAIL(EXIT_REQUEST, "has shape [3, 2], this model needs [2, 2]",
              checkpoint_load_trainer(a, &narrow.table, false, put, &narrow, &state));
  narrow.rows[0].rows = 3;
  narrow.rows[3].trainable = true;
  EXPECT_FAIL(EXIT_REQUEST, "tensor m/transformer.h.0.ln_1.weight is missing",
              checkpoint_load_trainer(a, &narrow.table, false, put, &narrow, &state));
  narrow.rows[3].trainable = narrow.rows[2].trainable = false;
  EXPECT_FAIL(EXIT_REQUEST, "holds 7 tensors, this model and optimizer have 5",
              checkpoint_load_trainer(a, &narrow.table, false, put, &narrow, &state));
  checkpoint_close(a);
  checkpoint_close(b);
  free_model(&narrow);
  free_model(&wide);
  free(one);
  free(two);
  free(run);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  test_folder(folder, sizeof folder, "checkpoint");
  RUN(round_trip);
  RUN(modes_of_files);
  RUN(the_most_files);
  RUN(file_layout);
  RUN(big_tensors);
  RUN(same_state_same_bytes);
  RUN(every_byte_is_guarded);
  RUN(says_what_is_wrong);
  RUN(says_what_stands_in_the_way);
  RUN(the_machine_gives_no_file);
  RUN(the_machine_reads_no_byte);
  RUN(a_name_that_leads_nowhere);
  RUN(none_is_whole);
  RUN(files_are_pinned);
  RUN(wrong_manifests);
  RUN(order_of_calls);
  RUN(killed_anywhere);
  RUN(fails_anywhere);
  RUN(what_stays_is_said);
  RUN(file_size_limit);
  RUN(pruning);
  RUN(names);
  RUN(leftovers);
  RUN(open_files_outlive_pruning);
  RUN(reading_while_training);
  RUN(one_trainer_at_a_time);
  RUN(wrong_trainers);
  RUN(wrong_headers);
  RUN(wrong_state);
  buffer_free(&fault.trace);
  remove_tree(folder);
  return TEST_END();
}
