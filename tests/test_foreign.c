// test_foreign.c: owns the checks of which folder the word MODEL means, and of loading other people's model directories (checkpoint.c).
#include "checkpoint_test.h"
#include <sys/stat.h>      // utimensat

static void touch_at(const char *run, int64_t step, time_t when, long nanoseconds) {
  char *dir = checkpoint_path(run, step), *path = format("%s/manifest.json", dir);
  const struct timespec t = {when, nanoseconds};
  CHECK(utimensat(AT_FDCWD, path, (struct timespec[]){t, t}, 0) == 0);
  free(path);
  free(dir);
}

static void touch(const char *run, int64_t step, time_t when) { touch_at(run, step, when, 0); }

static void resolving(void) {
  char *here = new_run("here");
  char before[1000];
  CHECK(getcwd(before, sizeof before) && chdir(here) == 0);
  EXPECT_FAIL(EXIT_REQUEST, "no run folder with a checkpoint here", checkpoint_resolve(NULL));
  make_directory("run");
  make_directory("run2");
  make_directory("zoo");
  overwrite(".", "note.txt", "", 0);
  overwrite("run2", "config.txt", "", 0);
  EXPECT_FAIL(EXIT_REQUEST, "run2: this run has no checkpoint yet", checkpoint_resolve("run2"));
  EXPECT_FAIL(EXIT_REQUEST, "zoo: is neither a model directory", checkpoint_resolve("zoo"));
  EXPECT_FAIL(EXIT_REQUEST, "nowhere: no such model", checkpoint_resolve("nowhere"));
  EXPECT_FAIL(EXIT_REQUEST, "m.gguf: GGUF files are not read yet", checkpoint_resolve("m.gguf"));
  EXPECT_FAIL(EXIT_REQUEST, "a.gguf: GGUF files are not read yet", checkpoint_resolve("a.gguf"));
  EXPECT_FAIL(EXIT_REQUEST, ".gguf: no such model", checkpoint_resolve(".gguf"));
  EXPECT_FAIL(EXIT_REQUEST, "run2/config.txt: is a file", checkpoint_resolve("run2/config.txt"));
  save_filled("run", 1, 1, 0);
  save_filled("run2", 8, 1, 0);
  save_filled("run2", 9, 1, 0);
  touch("run", 1, 2000);
  touch("run2", 8, 5000);
  touch("run2", 9, 3000);
  const struct { const char *model, *dir; } cases[] = {
    {NULL, "run2/step_00000009"}, {"run", "run/step_00000001"}, {"run/", "run/step_00000001"},
    {"run2/step_00000008", "run2/step_00000008"}, {"run2/step_00000008//", "run2/step_00000008"}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    char *full = i == 2 ? xstrdup("run//step_00000001") : xstrdup(cases[i].dir);
    Checkpoint *c = checkpoint_resolve(cases[i].model);
    CHECK_STR(c->dir, full);
    checkpoint_close(c);
    free(full);
  }
  // the newest by its nanosecond; of two at once the first by name
  static const struct { time_t seconds; long nanoseconds; const char *dir; } times[] = {
    {4000, 0, "run/step_00000001"}, {3000, 5, "run2/step_00000009"}, {3000, 7, "run/step_00000001"}, {3000, 6, "run/step_00000001"}, {2999, 9, "run2/step_00000009"}};
  touch_at("run2", 9, 3000, 6);
  for (size_t i = 0; i < ARRAY_LEN(times); i++) {
    touch_at("run", 1, times[i].seconds, times[i].nanoseconds);
    Checkpoint *c = checkpoint_resolve(NULL);
    CHECK_STR(c->dir, times[i].dir);
    checkpoint_close(c);
  }
  // a newest checkpoint without its manifest has no time: that of the one before it counts; so does the first nanosecond of all time
  char *newest = format("%s/run2/step_00000009/manifest.json", here);
  remove(newest);
  touch_at("run", 1, 4000, 0);
  Checkpoint *c;
  QUIETLY(c = checkpoint_resolve(NULL));
  CHECK_STR(c->dir, "run2/step_00000008");
  checkpoint_close(c);
  free(newest);
  // each of these makes a folder a run, or a model
  static const char *const marks[] = {"log.jsonl", "config.txt"};
  for (size_t i = 0; i < 2; i++) {
    make_directory("marked");
    overwrite("marked", marks[i], "", 0);
    CHECK(is_run_folder("marked"));
    EXPECT_FAIL(EXIT_REQUEST, "marked: this run has no checkpoint yet", checkpoint_resolve("marked"));
    remove_tree("marked");
  }
  CHECK(is_run_folder("run") && !is_run_folder("zoo") && !is_run_folder("run2/config.txt"));
  make_directory("m");
  overwrite("m", "config.json", "{}", 2);
  EXPECT_FAIL(EXIT_REQUEST, "gpt: m/model.safetensors: cannot be opened", checkpoint_resolve("m/"));
  make_directory("step_00000077");
  EXPECT_FAIL(EXIT_REQUEST, "step_00000077/manifest.json: is missing", checkpoint_resolve("step_00000077"));
  make_directory("k");
  overwrite("k", "manifest.json", "{}", 2);
  EXPECT_FAIL(EXIT_REQUEST, "k/manifest.json: is cut off at 2 bytes", checkpoint_resolve("k"));
  make_directory("t");
  overwrite("t", "config.json", "{}", 2);
  overwrite("t", "trainer.safetensors", "", 0);
  EXPECT_FAIL(EXIT_REQUEST, "t/manifest.json: is missing", checkpoint_resolve("t"));
  // a folder that this user may not read is nobody's newest run
  CHECK(chmod(folder, 0755) == 0 && chmod(here, 0755) == 0 && chmod("run2", 0700) == 0 && chmod("run", 0755) == 0);
  EXPECT_FAIL(0, "run/step_00000001", {
    if (getuid() == 0 && setuid(65534)) abort();
    if (getuid() != 65534) chmod("run2", 0);
    Checkpoint *found = checkpoint_resolve(NULL);
    fprintf(stderr, "%s\n", found->dir);
  });
  chmod("run2", 0755);
  CHECK(chdir(before) == 0);
  free(here);
}

// ---- other people's models ----

// A model directory whose tensors all hold 0.5, 1.5, 2.5, ... (or zeros), packed as type.
typedef struct { const char *name; int dims; int64_t shape[2]; bool zero; SafeType type; } Foreign;

static void write_foreign(const char *dir, const Foreign *tensors, size_t count) {
  Buffer b = {0};
  SafeEntry entries[12] = {{0}};
  for (size_t i = 0; i < count; i++)
    entries[i] = (SafeEntry){tensors[i].name, tensors[i].type, tensors[i].dims, {tensors[i].shape[0], tensors[i].shape[1]}};
  safetensors_header(&b, entries, count, NULL, 0);
  for (size_t i = 0; i < count; i++) {
    int64_t n = tensors[i].shape[0] * (tensors[i].dims == 2 ? tensors[i].shape[1] : 1);
    for (int64_t k = 0; k < n; k++) {
      uint8_t bytes[8] = {0};
      float f = tensors[i].zero ? 0 : (float)k + 0.5f;
      uint32_t bits;
      memcpy(&bits, &f, 4);
      // Few bits are set, so the halves are the upper bits of the float, with F16's exponent moved by 112.
      if (tensors[i].type == SAFE_BF16) store_u32le(bytes, bits >> 16);
      else if (tensors[i].type == SAFE_F16) store_u32le(bytes, f == 0 ? 0 : (bits >> 13) - (112u << 10));
      else if (tensors[i].type == SAFE_I32) store_u32le(bytes, (uint32_t)k);
      else safetensors_pack(bytes, (double[]){(double)f}, 1, tensors[i].type);
      buffer_append(&b, bytes, safe_type_size(tensors[i].type));
    }
  }
  overwrite(dir, "model.safetensors", b.data, b.len);
  overwrite(dir, "config.json", "{}", 2);
  buffer_free(&b);
}

static void load_foreign(const char *dir, Model *m) {
  Checkpoint *c = checkpoint_resolve(dir);
  CHECK(!c->saved_by_gpt && c->trainer == NULL && c->run_id[0] == 0);
  checkpoint_load_weights(c, &m->table, put, m);
  checkpoint_close(c);
}

static void foreign_models(void) {
  const Foreign tensors[] = {
    {"wte.weight", 2, {3, 2}, false, SAFE_BF16},                      // without its prefix
    {"transformer.h.0.attn.c_attn.weight", 2, {2, 6}, false, SAFE_F16},
    {"h.0.attn.c_attn.bias", 1, {6}, false, SAFE_F64},
    {"h.0.ln_1.weight", 1, {2}, false, SAFE_F32},
    {"h.0.ln_1.bias", 1, {2}, true, SAFE_F32},
    {"h.0.attn.bias", 2, {2, 2}, false, SAFE_F32},                    // ballast, and a tensor of zeros
    {"lm_head.weight", 2, {3, 2}, false, SAFE_F16},
    {"h.0.mlp.c_fc.bias", 1, {4}, true, SAFE_BF16}};
  enum { N = ARRAY_LEN(tensors) };
  char *dir = new_run("model");
  write_foreign(dir, tensors, N);
  Model m;
  small_model(&m, false);
  load_foreign(dir, &m);
  for (int i = 0; i < 6; i++) CHECK(m.values[0][0][i] == i + 0.5 && m.values[2][0][i] == i + 0.5);
  for (int in = 0; in < 2; in++)
    for (int out = 0; out < 6; out++) CHECK(m.values[1][0][out * 2 + in] == in * 6 + out + 0.5);
  CHECK(m.values[3][0][1] == 1.5);

  const struct { size_t which; Foreign instead; const char *reason; } wrong[] = {
    {0, {"wpe.weight", 2, {3, 2}, true, SAFE_F32}, "tensor transformer.wte.weight is missing"},
    {0, {"wte.weight", 2, {2, 3}, false, SAFE_F32}, "tensor wte.weight has shape [2, 3], this model needs [3, 2]"},
    {1, {"h.0.attn.c_attn.weight", 2, {6, 2}, false, SAFE_F32}, "has shape [6, 2], this model needs [2, 6]"},
    {2, {"h.0.attn.c_attn.bias", 2, {1, 6}, false, SAFE_F32}, "has shape [1, 6], this model needs [6]"},
    {3, {"h.0.ln_1.weight", 1, {2}, false, SAFE_I32}, "is of type I32; weights are read from F32, F16, BF16 and F64"},
    {4, {"h.0.ln_1.bias", 1, {2}, false, SAFE_F32}, "is not zero at element 0, but config.json says \"gpt_bias\": false"},
    {7, {"h.0.mlp.c_fc.bias", 1, {4}, false, SAFE_F32}, "h.0.mlp.c_fc.bias has no place in a model with this config.json"},
    {7, {"transformer.wte.weight", 2, {3, 2}, false, SAFE_F32}, "tensor wte.weight has no place"},
    {7, {"h.0.mlp.c_fc.bias", 1, {4}, true, SAFE_I32}, "h.0.mlp.c_fc.bias has no place in a model with this config.json"}};
  for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
    Foreign changed[N];
    memcpy(changed, tensors, sizeof tensors);
    changed[wrong[i].which] = wrong[i].instead;
    write_foreign(dir, changed, N);
    EXPECT_FAIL(EXIT_REQUEST, wrong[i].reason, load_foreign(dir, &m));
  }
  // zeros that are not in memory may be absent from the file; one number among them is not overlooked
  Foreign fewer[N], last[N];
  memcpy(fewer, tensors, sizeof tensors);
  fewer[4] = fewer[N - 1];
  write_foreign(dir, fewer, N - 1);
  load_foreign(dir, &m);
  memcpy(last, tensors, sizeof tensors);
  last[4] = tensors[7], last[7] = tensors[4];
  write_foreign(dir, last, N);
  char *weights_of = format("%s/model.safetensors", dir);
  for (int element = 0; element < 2; element++) {
    int fd = open(weights_of, O_WRONLY);
    CHECK(pwrite(fd, "\0\0\200\77", 4, lseek(fd, 0, SEEK_END) - 4 * (2 - element)) == 4);
    close(fd);
    char *reason = format("h.0.ln_1.bias is not zero at element %d, but", element);
    EXPECT_FAIL(EXIT_REQUEST, reason, load_foreign(dir, &m));
    free(reason);
    write_foreign(dir, last, N);
  }
  free(weights_of);
  write_foreign(dir, tensors, N);
  Checkpoint *bare = checkpoint_open(dir);
  CHECK(!checkpoint_is_fp64(bare));
  checkpoint_close(bare);
  EXPECT_FAIL(EXIT_REQUEST, "is a model without the state of a run; start a new run from it with --init",
              checkpoint_load_trainer(checkpoint_open(dir), &m.table, false, put, &m, &(TrainerState){0}));
  overwrite(dir, "config.json", "{", 1);
  EXPECT_FAIL(EXIT_REQUEST, "config.json: ", checkpoint_open(dir));
  char *most = xmalloc(1 << 20, 1);                 // as long as may be
  memset(most, ' ', 1 << 20);
  memcpy(most, "{}", 2);
  overwrite(dir, "config.json", most, 1 << 20);
  checkpoint_close(checkpoint_open(dir));
  free(most);
  char *weights = format("%s/model.safetensors", dir), *config = format("%s/config.json", dir);
  CHECK(truncate(config, (1 << 20) + 1) == 0);
  EXPECT_FAIL(EXIT_REQUEST, "config.json: 1048577 bytes, at most 1048576 are read", checkpoint_open(dir));
  free(config);
  overwrite(dir, "model.safetensors", "garbage that is longer", 22);
  overwrite(dir, "config.json", "{}", 2);
  EXPECT_FAIL(EXIT_REQUEST, "model.safetensors: no safetensors file", checkpoint_open(dir));
  remove(weights);
  EXPECT_FAIL(EXIT_REQUEST, "model.safetensors: cannot be opened: No such file", checkpoint_open(dir));
  overwrite(dir, "pytorch_model.bin", "", 0);
  EXPECT_FAIL(EXIT_REQUEST, "pytorch_model.bin is not read", checkpoint_open(dir));
  overwrite(dir, "model.safetensors.index.json", "{}", 2);
  EXPECT_FAIL(EXIT_REQUEST, "split over several files", checkpoint_open(dir));
  free(weights);
  free_model(&m);
  free(dir);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  test_folder(folder, sizeof folder, "foreign");
  RUN(resolving);
  RUN(foreign_models);
  remove_tree(folder);
  return TEST_END();
}
