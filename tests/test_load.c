// test_load.c: owns the proof of load.c: which device the flags ask for and how many threads it takes, in whose words it is refused, what is
// too much for a machine's memory, and that a saved model comes back.
#include "../load.h"
#include "../machine.h"     // machine_cores_among
#include "../run.h"         // run_prepare, run_save
#include "test.h"           // RUN, CHECK
#include <sched.h>          // sched_setaffinity
#include <fcntl.h>          // open

enum { MOST_ARGS = 32 };

static Options parsed(unsigned command, const char *words) {
  char *text = xstrdup(words), *argv[MOST_ARGS], *save;    // never freed: options point into it
  int argc = 0;
  for (char *p = strtok_r(text, " ", &save); p && argc < MOST_ARGS; p = strtok_r(NULL, " ", &save)) argv[argc++] = p;
  Options o;
  options_parse(&o, command, "train", argc, argv);
  return o;
}
static Options train_options(const char *words) { return parsed(COMMAND_TRAIN, words); }

// In a child: on so many processors, what the device says of itself, and what is said on stderr.
static void check_device(const char *flags, int processors, const char *environment, const char *name, const char *threads, const char *warning) {
  int ends[2];
  char said[2048] = "";
  size_t n = 0;
  if (pipe(ends)) abort();
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    cpu_set_t all, some;
    CPU_ZERO(&some);
    sched_getaffinity(0, sizeof all, &all);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&some) < processors; i++) if (CPU_ISSET(i, &all)) CPU_SET(i, &some);
    sched_setaffinity(0, sizeof some, &some);
    unsetenv("OMP_NUM_THREADS");
    if (environment) setenv("OMP_NUM_THREADS", environment, 1);
    dup2(ends[1], 2);
    Options o = train_options(flags);
    Device *d = device_open(&o, 0);
    fprintf(stderr, "%s: %s\n", d->name, d->description);
    _exit(0);
  }
  close(ends[1]);
  for (ssize_t got; n < sizeof said - 1 && (got = read(ends[0], said + n, sizeof said - 1 - n)) > 0;) n += (size_t)got;
  said[n] = 0;
  close(ends[0]);
  waitpid(child, NULL, 0);
  const size_t warned = strlen(warning);
  CHECK_MSG(!strncmp(said, warning, warned) && !strncmp(said + warned, name, strlen(name)), "%s: \"%s\"", flags, said);
  char *at = strstr(said + MIN(warned, n), threads);
  CHECK_MSG(at && !strcmp(at, threads), "%s: \"%s\" does not end with \"%s\"", flags, said, threads);
}

static void devices_and_their_threads(void) {
  check_device("text --device cpu --threads 1", 1, NULL, "cpu: fp32, ", ", 1 thread\n", "");
  check_device("text --device cpu --threads 2", 1, NULL, "cpu: fp32, ", ", 1 thread\n", "gpt: warning: --threads 2: this process may run on 1 processor, so it uses 1\n");
  check_device("text --device cpu --precision bf16 --threads 1", 1, NULL, "cpu: bf16, ", ", 1 thread\n", "");
  check_device("text --device reference", 1, NULL, "reference: ", "\n", "");
  // ranks share the cores; OMP_NUM_THREADS is taken as it is, --threads before it
  check_device("text --device cpu --ranks 2", 1, NULL, "cpu: fp32, ", ", 1 thread\n", "");
  check_device("text --device cpu --ranks 2 --threads 1", 1, "3", "cpu: fp32, ", ", 1 thread\n", "");
#ifdef _OPENMP
  check_device("text --device cpu --ranks 2", 1, "3", "cpu: fp32, ", ", 3 threads\n", "");
  if (cpu_processors() < 2) return;
  check_device("text --device cpu --threads 2", 2, NULL, "cpu: fp32, ", ", 2 threads\n", "");
  check_device("text --device cpu --threads 3", 2, NULL, "cpu: fp32, ", ", 2 threads\n", "gpt: warning: --threads 3: this process may run on 2 processors, so it uses 2\n");
  const int processors[] = {0, 1};
  if (machine_cores_among(processors, 2) < 2) return;      // two threads of one core
  check_device("text --device cpu --ranks 2", 2, NULL, "cpu: fp32, ", ", 1 thread\n", "");
  check_device("text --device cpu --ranks 3", 2, NULL, "cpu: fp32, ", ", 1 thread\n", "");
  check_device("text --device cpu", 2, NULL, "cpu: fp32, ", ", 2 threads\n", "");
#endif
}

static void words_of_refusal(void) {
  static const struct { const char *flags; int code; const char *words; } cases[] = {
    {"text --stochastic-rounding on", EXIT_REQUEST, "--stochastic-rounding on is for --precision bf16"},
    {"text --gemm wgmma", EXIT_REQUEST, "--gemm wgmma is for --precision bf16"},
    {"text --device cpu --gemm wgmma --precision bf16", EXIT_REQUEST, "gpt: --gemm wgmma needs --device cuda; or use --gemm own\n"},
    {"text --device reference --gemm cublaslt", EXIT_REQUEST, "gpt: --gemm cublaslt needs --device cuda; or use --gemm own\n"},
    {"text --device cpu --stochastic-rounding on --precision bf16 --threads 1", 0, "fine"}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    Options o = train_options(cases[i].flags);
    EXPECT_FAIL(cases[i].code, cases[i].words, device_open(&o, 0); fprintf(stderr, "fine\n"));
  }
  const char *why = cuda_unavailable();
  if (!why) return;                           // what follows is said where there is no GPU
  Options o = train_options("text"), ranks = train_options("text --ranks 2"), gpus = train_options("text --gpus 1"), cpu = train_options("text --device cpu"), lt = train_options("text --gemm cublaslt"), cuda = train_options("text --device cuda");
  CHECK_STR(device_reason(&o), why);
  CHECK_STR(device_reason(&ranks), "several ranks compute on the CPU unless --gpus says otherwise");
  CHECK(device_reason(&gpus) == NULL && device_reason(&cpu) == NULL && device_reason(&cuda) == NULL);
  char *words = format("gpt: --gemm cublaslt needs --device cuda, and %s; or use --gemm own\n", why);
  EXPECT_FAIL(EXIT_MACHINE, words, device_open(&lt, 0));
  free(words);
  EXPECT_FAIL(EXIT_MACHINE, "--device cuda", device_open(&cuda, 0));
  EXPECT_FAIL(EXIT_MACHINE, "--device cuda", device_open(&gpus, 0));
}

// ---- memory ----

static size_t three_gib(const Device *d, const char **from) { (void)d; *from = "a test"; return (size_t)3 << 30; }

static void memory_is_counted(void) {
  Device d = {.memory_available = three_gib};
  MemoryTable table = {.total = (size_t)1 << 30};
  require_memory(&d, &table, (size_t)2 << 30, "");           // just enough
  EXPECT_FAIL(EXIT_MACHINE, "memory: 3.00 GiB are needed, 3.00 GiB are left (a test); buy more", require_memory(&d, &table, ((size_t)2 << 30) + 1, "buy more"));
  EXPECT_FAIL(EXIT_MACHINE, "memory: 4.00 GiB are needed, 3.00 GiB are left", require_memory(&d, &table, (size_t)3 << 30, ""));
  EXPECT_FAIL(EXIT_MACHINE, "memory: 17179869184.00 GiB are needed, 3.00 GiB are left", require_memory(&d, &table, SIZE_MAX, ""));   // more than a number holds
  Device own = {0};                                          // the machine's memory
  table.total = 0;
  require_memory(&own, &table, 0, "");
  EXPECT_FAIL(EXIT_MACHINE, "GiB are left (", require_memory(&own, &table, SIZE_MAX, ""));
}

// ---- a model ----

static void a_model_comes_back(void) {
  replace_file("text.txt", "abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrstuvwxyz", 53);
  Options o = train_options("text.txt --tokenizer byte --layers 1 --channels 8 --heads 1 --context 4 --dropout 0.5 --threads 1 --out run --val-fraction 0.5");
  Run *r = run_prepare(&o);
  Device *d = device_open(&o, 0);
  Gpt *m = gpt_create(d, &r->gpt);
  TrainerState state = {.step = 3};
  gpt_init(m, 5);
  fflush(stdout);
  int old = dup(1), nowhere = open("/dev/null", O_WRONLY);
  dup2(nowhere, 1);
  run_create_folder(r, "", 0);
  run_save(r, m, &state);
  fflush(stdout);
  dup2(old, 1);
  close(old);
  close(nowhere);
  LoadedModel l = load_model("run", &o, PURPOSE_SAMPLE, 1);
  CHECK_STR(l.checkpoint->dir, "run/step_00000003");
  CHECK(l.config.dropout == 0 && l.config.channels == 8 && l.tokenizer != NULL);
  for (size_t i = 0; i < gpt_table(m)->count; i++) {
    const TensorRow *row = &gpt_table(m)->rows[i];
    double saved[2048], loaded[2048];
    const size_t n = tensor_values(row);
    gpt_read(m, PART_WEIGHT, row, 0, n, saved);
    gpt_read(l.gpt, PART_WEIGHT, row, 0, n, loaded);
    CHECK_MSG(!memcmp(saved, loaded, n * sizeof *saved), "%s", row->name);
  }
  unload_model(&l);
  CHECK(!l.checkpoint && !l.tokenizer && !l.device && !l.gpt);
  if (system("mkdir bare && cp run/step_00000003/config.json run/step_00000003/model.safetensors bare")) abort();
  l = load_model("bare", &o, PURPOSE_EVALUATE, 2);
  CHECK(l.tokenizer == NULL);
  unload_model(&l);
  Options many = train_options("text.txt --threads 1");
  EXPECT_FAIL(EXIT_MACHINE, "; use a smaller --batch\n", load_model("run", &many, PURPOSE_EVALUATE, (int64_t)1 << 36));
  Tokenizer *t = tokenizer_byte(true);
  require_same_vocabulary(t, &(GptConfig){.vocab = 257}, "here");
  EXPECT_FAIL(EXIT_REQUEST, "here: the tokenizer has 257 ids, the model's vocabulary 256: they do not belong together", require_same_vocabulary(t, &(GptConfig){.vocab = 256}, "here"));
  tokenizer_free(t);
  gpt_destroy(m);
  d->destroy(d);
  free(o.args);
  run_free(r);
}

int main(int argc, char **argv) {
  char folder[512];
  TEST_BEGIN(argc, argv);
  test_folder(folder, sizeof folder, "load");
  if (chdir(folder)) return 1;
  RUN(words_of_refusal);
  RUN(memory_is_counted);
  RUN(devices_and_their_threads);
  RUN(a_model_comes_back);
  if (chdir("/") == 0) remove_tree(folder);
  return TEST_END();
}
