// mutate.c: owns `make mutants`: changes one place of the sources at a time and asks the tests to notice.
//
// A mutant is one small change of one line of code: < for <=, + for -, 0 for 1, a constant off by one, && for ||, a statement
// deleted, an if negated (DeMillo, Lipton and Sayward 1978). Lines and changes are drawn at random; the same seed and the same
// sources give the same mutants. Each is built in a copy of the tree in a temporary folder: only the changed file is compiled again, only the
// tests that are run are linked again. The file's own tests come first (table `homes`); the first test that fails, crashes or
// takes ten times as long as without the change has caught it. What survives them meets all other tests, and then its own with sanitizers.
//
// Not counted, and another one is drawn instead: a change that does not compile, one that gives the same machine code (Papadakis
// et al. 2015), and one argued in dev/mutants_equivalent.txt. Releases of memory and files are never deleted: a leak changes no result.
//
// Kernels (*.cu, *.cuh) are judged by the emulated device (dev/cuda_on_cpu): plain in three orders, then the checked build, then training.
//
//   mutate [--count N] [--seed S] [--list on] [--suite off] [--least 95] [--waits on] [FILE...]     lies in the build folder; started in the root of the tree
//   --list on: only show what would be drawn; --suite off: the file's own tests only, for a quick look
//   --waits on: instead of drawing, each barrier and wait of the files is deleted in turn
//   --least P: per cent that must be caught: of a few mutants one may survive by chance
//
// Exit 0: at least that many were caught. 1: fewer were. 3: the tests fail without any change, or the tree cannot be copied.
// Test: `make mutants N=3` on a tree where one test is taken out of tests/ names survivors of that file.
#include "../rng.h"       // rng_below
#include <ctype.h>        // isalnum
#include <errno.h>        // errno
#include <fcntl.h>        // open
#include <signal.h>       // kill
#include <stdarg.h>       // va_list
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>    // prctl
#include <sys/resource.h> // setrlimit
#include <sys/stat.h>     // stat
#include <sys/wait.h>     // waitpid
#include <time.h>         // clock_gettime
#include <unistd.h>       // fork

// ---- which tests belong to which file: quickest and sharpest first; those that do not exist are left out. drawn: devices, model and
// optimizer, loader, checkpoints, which is what is drawn from where no file is named ----

static const struct { const char *file; bool drawn; const char *tests; } homes[] = {
  {"checkpoint.c", true, "test_checkpoint test_foreign"},
  {"comm.c", false, "test_queue test_comm"},
  {"comm_nccl.c", false, "nccl"},
  {"comm_shared.c", false, "test_shared test_comm"},
  {"comm_tcp.c", false, "test_tcp test_comm"},
  {"config.c", false, "test_config test_checkpoint test_cli_train"},
  {"corpus.c", true, "test_train test_cli_train"},
  {"cpu.c", true, "test_cpu test_tiles test_model test_ops test_bits"},
  {"cpu_attention.c", true, "test_attention test_cpu test_bits"},
  {"cpu_gemm.c", true, "test_gemm test_gemm_bf16 test_ops test_bits"},
  {"cpu_gemm_amx.c", true, "test_gemm_bf16 test_tiles test_bits"},
  {"cpu_ops.c", true, "test_ops test_cpu test_bf16 test_bits"},
  {"data.c", true, "test_index test_data test_dataloader test_cli"},
  {"data_build.c", true, "test_index test_data"},
  {"dataloader.c", true, "test_dataloader test_index test_data"},
  {"detmath.c", true, "test_detmath"},
  {"documents.c", true, "test_documents test_data"},
  {"evaluate.c", false, "test_evaluate test_train test_cli_train"},
  {"flags.c", false, "test_flags test_cli"},
  {"json.c", false, "test_json"},
  {"load.c", true, "test_load test_checkpoint test_sample test_cli_train"},
  {"manifest.c", true, "test_checkpoint test_foreign"},
  {"model.c", true, "test_model test_gradients test_train test_memory test_bits"},
  {"ranks.c", false, "test_supervisor test_ranks test_join"},
  {"reference.c", true, "test_reference test_gradients test_ops"},
  {"run.c", false, "test_train test_cli_train test_ranks"},
  {"safetensors.c", true, "test_safetensors test_checkpoint test_foreign"},
  {"sample.c", false, "test_sample test_cli_train"},
  {"shard_index.c", true, "test_index"},
  {"stories.c", false, "test_stories"},
  {"tensors.c", true, "test_model test_checkpoint"},
  {"tokenizer.c", false, "test_pieces test_tokenizer test_tokenizer_files"},
  {"tokenizer_files.c", false, "test_tokenizer_files test_tokenizer"},
  {"tokenizer_merge.c", false, "test_pieces test_tokenizer"},
  {"tokenizer_pieces.c", false, "test_pieces test_tokenizer"},
  {"tokenizer_train.c", false, "test_tokenizer test_pieces"},
  {"train.c", true, "test_train test_cli_train test_ranks test_join"},
  {"trigram.c", false, "test_stories"},
  {"util.c", false, "test_util"},
  {"watch.c", false, "test_watch test_train"},
  // kernels: in the order of `emulated`
  {"attention.cuh", false, "attention_bf16 attention_fp32 cuda bank_conflicts attention_bf16_checked attention_fp32_checked"},
  {"cublaslt.cuh", false, "library library_fp32 library_bf16"},
  {"cuda.cuh", false, "operations_bf16 operations_fp32 attention_bf16 attention_fp32 cuda"},
  {"gemm.cuh", false, "operations_bf16 operations_fp32 wgmma cuda"},
  {"ptx.cuh", false, "operations_bf16 attention_bf16 wgmma cuda"},
  {"train_gpt.cu", false, "operations_bf16 operations_fp32 cuda wgmma library cuda_random operations_fp32_checked"},
};
enum { HOMES = sizeof homes / sizeof *homes, MAX_TESTS = 100 };

// The tests of kernels: programs of `make test-cuda`, in a fixed order of blocks, warps and lanes where none is named. Quick ones first.
#define RANDOM_ORDER "GPT_CUDA_SCHED=random:7 GPT_CUDA_STREAMS=lazy:3"
static const struct { const char *name, *program, *environment; } emulated[] = {
  {"operations_bf16", "test_ops", "TEST_DEVICE=cuda-bf16"},
  {"operations_fp32", "test_ops", "TEST_DEVICE=cuda"},
  {"attention_bf16", "test_attention", "TEST_DEVICE=cuda-bf16"},
  {"attention_fp32", "test_attention", "TEST_DEVICE=cuda"},
  {"wgmma", "test_cuda", "TEST_DEVICE=cuda-bf16-wgmma"},
  {"cuda", "test_cuda", ""},
  {"library", "test_cuda", "TEST_DEVICE=cuda-cublaslt"},
  {"library_bf16", "test_ops", "TEST_DEVICE=cuda-bf16-cublaslt"},
  {"library_fp32", "test_ops", "TEST_DEVICE=cuda-cublaslt"},
  {"operations_bf16_reverse", "test_ops", "TEST_DEVICE=cuda-bf16 GPT_CUDA_SCHED=reverse"},
  {"operations_fp32_reverse", "test_ops", "TEST_DEVICE=cuda GPT_CUDA_SCHED=reverse"},
  {"attention_bf16_reverse", "test_attention", "TEST_DEVICE=cuda-bf16 GPT_CUDA_SCHED=reverse"},
  {"operations_bf16_random", "test_ops", "TEST_DEVICE=cuda-bf16 " RANDOM_ORDER},
  {"operations_fp32_random", "test_ops", "TEST_DEVICE=cuda " RANDOM_ORDER},
  {"attention_bf16_random", "test_attention", "TEST_DEVICE=cuda-bf16 " RANDOM_ORDER},
  {"cuda_random", "test_cuda", RANDOM_ORDER},
  {"operations_bf16_checked", "test_ops_checked", "TEST_DEVICE=cuda-bf16"},
  {"attention_bf16_checked", "test_attention_checked", "TEST_DEVICE=cuda-bf16"},
  {"wgmma_checked", "test_cuda_checked", "TEST_DEVICE=cuda-bf16-wgmma"},
  {"cuda_checked", "test_cuda_checked", ""},
  {"bank_conflicts", "test_cuda_checked", "GPT_CUDA_PROFILE=1"},
  {"operations_fp32_checked", "test_ops_checked", "TEST_DEVICE=cuda"},
  {"attention_fp32_checked", "test_attention_checked", "TEST_DEVICE=cuda"},
  {"nccl", "test_nccl", "GPT_TEST_EMULATED=1"},
  {"training", NULL, "CUDA_TESTS=train"},            // tests/cuda.sh
};
static bool is_kernel_file(const char *name) { return strstr(name, ".cu") != NULL; }

static double seconds_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---- the copy of the tree ----

static char scratch[300], build[200];   // absolute; the build folder's path below the tree ("build/gcc-O2-123")
static volatile sig_atomic_t stopped;   // by SIGINT or SIGTERM
static void stop(int number) { stopped = number; }

static char *format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static char *format(const char *fmt, ...) {
  char *s;
  va_list args;
  va_start(args, fmt);
  if (vasprintf(&s, fmt, args) < 0) abort();
  va_end(args);
  return s;
}

static void *grow(void *p, size_t count, size_t size) {
  p = realloc(p, (count + 1) * size);
  if (!p) abort();
  return p;
}

static char *read_text(const char *path, size_t *n) {
  FILE *f = fopen(path, "rb");
  *n = 0;
  if (!f) return NULL;
  char *text = NULL;
  for (size_t got = 1; got; *n += got) {
    text = grow(text, *n + 65536, 1);
    got = fread(text + *n, 1, 65536, f);
  }
  text[*n] = 0;
  fclose(f);
  return text;
}

static bool reserves;   // the command that runs reserves terabytes of addresses: sanitizers, the checked emulator

// A mutant may ask for memory or write files without end.
static void set_limits(void) {
  struct rlimit memory = {(rlim_t)16 << 30, (rlim_t)16 << 30}, file = {(rlim_t)32 << 30, (rlim_t)32 << 30}, core = {0, 0};
  const char *flags = getenv("MAKEFLAGS");
  if (!reserves && (!flags || !strstr(flags, "sanitize"))) setrlimit(RLIMIT_DATA, &memory);
  setrlimit(RLIMIT_FSIZE, &file);
  setrlimit(RLIMIT_CORE, &core);
}

enum { TOO_LATE = -1, FAILED_LINE = -2 };

// Whether a test has said that something failed: then the rest of it need not be waited for. *seen = bytes of the log known.
static bool failure_in_log(off_t *seen) {
  char *path = format("%s/log", scratch);
  struct stat st;
  bool found = false;
  if (stat(path, &st) == 0 && st.st_size > *seen) {
    size_t n;
    char *text = read_text(path, &n);
    found = text && (!strncmp(text, "FAILED ", 7) || strstr(text, "\nFAILED "));
    *seen = st.st_size;
    free(text);
  }
  free(path);
  return found;
}

// Processes that have left their group, as supervisors' ranks do, become children of this one when their parents are gone.
static void end_orphans(void) {
  FILE *children;
  do {
    if (!(children = fopen("/proc/thread-self/children", "r"))) return;
    for (int pid; fscanf(children, "%d", &pid) == 1;) kill(pid, SIGKILL);
    fclose(children);
  } while (waitpid(-1, NULL, 0) > 0);      // a killed one may leave others
}

// Runs a shell command in the copy, its words into scratch/log, and kills it with all its children after `limit` seconds, or
// once it has printed a line FAILED. Returns its exit code, 128 + a signal, TOO_LATE or FAILED_LINE.
static int run(double limit, const char *command) {
  char *log = format("%s/log", scratch);
  int out = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);   // here and not in the child: the old words must be gone
  free(log);
  pid_t child = fork();
  if (child < 0) { fprintf(stderr, "mutate: cannot start a process: %s\n", strerror(errno)); exit(3); }
  if (child == 0) {
    setpgid(0, 0);
    int in = open("/dev/null", O_RDONLY);
    dup2(in, 0); dup2(out, 1); dup2(out, 2);
    char *tree = format("%s/tree", scratch);
    if (chdir(tree)) _exit(126);
    set_limits();
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
  }
  close(out);
  setpgid(child, child);
  double start = seconds_now();
  int status, result = 0;
  off_t seen = 0;
  pid_t ended;                             // orphans are waited for too: to their tests they are there until then
  for (useconds_t pause = 1000; (ended = waitpid(-1, &status, WNOHANG)) != child; pause = pause < 20000 ? pause * 2 : pause) {
    if (ended > 0) continue;
    if (failure_in_log(&seen)) result = FAILED_LINE;
    if (stopped || seconds_now() - start > limit) result = TOO_LATE;
    if (result) {
      kill(-child, SIGKILL);
      waitpid(child, &status, 0);
      break;
    }
    usleep(pause);
  }
  kill(-child, SIGKILL);                   // what it left behind
  end_orphans();
  if (stopped) exit(128 + stopped);        // the copy is removed by atexit
  return result < 0 ? result : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run_format(double limit, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int run_format(double limit, const char *fmt, ...) {
  char *command;
  va_list args;
  va_start(args, fmt);
  if (vasprintf(&command, fmt, args) < 0) abort();
  va_end(args);
  int code = run(limit, command);
  free(command);
  return code;
}

static char *read_log(void) {
  size_t n;
  char *path = format("%s/log", scratch), *text = read_text(path, &n);
  free(path);
  return text ? text : calloc(1, 1);
}

static _Noreturn void give_up(const char *what) {
  char *log = read_log();
  size_t n = strlen(log);
  fprintf(stderr, "mutate: %s; the last words were:\n%s\n", what, n > 2000 ? log + n - 2000 : log);
  exit(3);
}

enum { BUILD_LIMIT = 900 };   // seconds; only a hung compiler takes longer

static bool make(const char *targets) { return run_format(BUILD_LIMIT, "make -s %s", targets) == 0; }

static void remove_scratch(void) {
  if (!*scratch) return;
  char *command = format("chmod -R u+w '%s' 2>/dev/null; rm -rf '%s'", scratch, scratch);
  if (system(command)) fprintf(stderr, "mutate: %s could not be removed\n", scratch);
  free(command);
}

// make's words for its children hold a job server that is not open to us, and the number of jobs.
static void clean_environment(void) {
  const char *flags = getenv("MAKEFLAGS");
  char *kept = format("%s", ""), *all = format("%s", flags ? flags : "");
  for (char *word = strtok(all, " "); word; word = strtok(NULL, " ")) {
    if (!strncmp(word, "--jobserver", 11) || !strncmp(word, "-j", 2)) continue;
    char *longer = format("%s%s%s", kept, *kept ? " " : "", word);
    free(kept);
    kept = longer;
  }
  setenv("MAKEFLAGS", kept, 1);
  unsetenv("MFLAGS");
  unsetenv("MAKELEVEL");
  free(kept);
  free(all);
}

static void copy_tree(const char *self) {
  const char *where = getenv("TMPDIR"), *slash = strrchr(self, '/'), *below = strstr(self, "build/");
  if (!slash || !below || access("Makefile", R_OK)) {
    fprintf(stderr, "mutate: start it as `make mutants`, in the root of the tree\n");
    exit(3);
  }
  snprintf(build, sizeof build, "%.*s", (int)(slash - below), below);
  char *root = getcwd(NULL, 0);
  snprintf(scratch, sizeof scratch, "%s/mutants-XXXXXX", where && *where ? where : "/tmp");
  if (!mkdtemp(scratch)) { *scratch = 0; fprintf(stderr, "mutate: cannot make a temporary folder: %s\n", strerror(errno)); exit(3); }
  atexit(remove_scratch);
  for (int i = 0; i < 3; i++) {
    char *folder = format("%s/%s", scratch, (const char *[]){"tree", "keep", "tmp"}[i]);
    if (mkdir(folder, 0777)) exit(3);
    free(folder);
  }
  char *tmp = format("%s/tmp", scratch);
  setenv("TMPDIR", tmp, 1);
  setenv("OMP_WAIT_POLICY", "passive", 0);   // as tests/run.sh: waiting threads leave the cores to others
  clean_environment();
  // times are kept (-p), so that make finds nothing to do; no .git: a change would count as another version of the program
  if (run_format(BUILD_LIMIT, "for f in '%s'/*; do test -f \"$f\" && cp -p \"$f\" .; done; for d in tests dev recipes '%s'; do "
                 "mkdir -p $d && cp -pR '%s'/$d/. $d/ 2>/dev/null; done; true", root, build, root)) give_up("cannot copy the tree");
  if (!make("gpt")) give_up("the tree does not build");
  free(root);
  free(tmp);
}

// ---- the tests ----

// target: what make has to build; command: what runs it (a word of test names may follow); kernels: belongs to them;
// seconds without any change; 0: not known yet
typedef struct { char *name, *target, *command; bool script, kernels; double seconds; } Test;
static Test tests[MAX_TESTS];
static size_t test_count;

static void find_tests(void) {
  if (run(60, "ls tests/test_*.c tests/test_*.sh 2>/dev/null; true")) give_up("cannot list tests/");
  char *log = read_log();
  for (char *path = strtok(log, "\n"); path && test_count < MAX_TESTS; path = strtok(NULL, "\n")) {
    char *dot = strrchr(path, '.'), *name = format("%.*s", (int)(dot - path) - 6, path + 6);
    bool script = !strcmp(dot, ".sh");
    tests[test_count++] = (Test){name, script ? format("gpt") : format("gpt $B/%s", name),   // some programs run ./gpt
                                 script ? format("GPT=$PWD/gpt bash tests/%s.sh", name) : format("$B/%s", name), script, false, 0};
  }
  free(log);
  if (!test_count) give_up("there are no tests");
  for (size_t i = 0; i < sizeof emulated / sizeof *emulated; i++) {
    const char *program = emulated[i].program;
    tests[test_count++] = (Test){format("%s", emulated[i].name), program ? format("$B/emulated/%s", program) : format("$B/emulated/gpt"),
      program ? format("OMP_NUM_THREADS=1 %s $B/emulated/%s", emulated[i].environment, program) : format("%s bash tests/cuda.sh $B/emulated", emulated[i].environment),
      !program, true, 0};
  }
}

static Test *test_named(const char *name, size_t n) {
  for (size_t i = 0; i < test_count; i++) if (strlen(tests[i].name) == n && !strncmp(tests[i].name, name, n)) return &tests[i];
  return NULL;
}

// Tests of a file in the order of the table, then all others of its kind; *own = how many are its own. Returns how many there are.
static size_t order_tests(const char *file, Test *order[MAX_TESTS], size_t *own) {
  size_t count = 0;
  for (size_t h = 0; h < HOMES; h++) {
    if (strcmp(homes[h].file, file)) continue;
    for (const char *p = homes[h].tests; *p; p += strcspn(p, " "), p += strspn(p, " ")) {
      Test *t = test_named(p, strcspn(p, " "));
      if (t) order[count++] = t;
    }
  }
  *own = count;
  for (size_t i = 0; i < test_count; i++) {
    bool taken = false;
    for (size_t k = 0; k < *own; k++) taken |= order[k] == &tests[i];
    if (!taken && tests[i].kernels == is_kernel_file(file)) order[count++] = &tests[i];
  }
  return count;
}

// make and the tests find the build folder as $B: it is another one for the build with sanitizers.
static bool build_test(const Test *t) {
  setenv("B", build, 1);
  return make(t->target);
}

// NULL: passed. Else why not, to be freed. word: only the tests that have it in their names; "": all.
static char *run_test(const Test *t, const char *word, double limit) {
  setenv("B", build, 1);
  reserves |= t->kernels;
  int code = run_format(limit, "%s %s", t->command, t->script ? "" : word);
  if (t->kernels) reserves = false;
  char *log = read_log(), *why = NULL, *line = strstr(log, "FAILED ");
  if (line) line += !strncmp(line, "FAILED tests/", 13) ? 13 : 7;
  char *found = t->kernels && code == 70 ? strstr(log, "cuda_on_cpu: ") : NULL;   // the emulator's own finding
  if (code == TOO_LATE) why = format("%s: not done after %.0f s", t->name, limit);
  else if (code == FAILED_LINE && line) why = format("%s: %.*s", t->name, (int)strcspn(line, "\n"), line);
  else if (found) why = format("%s: %.*s", t->name, (int)strcspn(found, "\n"), found);
  else if (code > 128) why = format("%s: signal %d", t->name, code - 128);
  else if (code && line) why = format("%s: %.*s", t->name, (int)strcspn(line, "\n"), line);
  else if (code) why = format("%s: exit code %d", t->name, code);
  else if (!strstr(log, " passed, 0 failed")) why = format("%s: ended without a count", t->name);
  free(log);
  // a process that a mutant left behind may write once more
  if (run(60, "for i in 1 2 3 4 5; do rm -rf \"$TMPDIR\" && mkdir \"$TMPDIR\" && exit 0; sleep 1; done; exit 1")) give_up("cannot empty the temporary folder");
  return why;
}

static double time_limit(const Test *t) { return 10 * t->seconds + 5; }

// On the unchanged tree: how long each takes. One that fails has a second try: some tests measure time, and the machine may be shared.
static void time_tests(Test *const *order, size_t count) {
  for (size_t i = 0; i < count; i++) {
    Test *t = order[i];
    if (t->seconds > 0) continue;
    if (!build_test(t)) give_up("a test does not build");
    char *why = NULL;
    for (int attempt = 0; attempt < 2 && (!attempt || why); attempt++) {
      free(why);
      double start = seconds_now();
      why = run_test(t, "", BUILD_LIMIT);
      t->seconds = seconds_now() - start;
    }
    if (!why) continue;
    char *message = format("without any change %s", why);
    give_up(message);
  }
}

// ---- sources and their tokens ----

typedef enum { IDENTIFIER, NUMBER, PUNCTUATION } Kind;
typedef struct { size_t at, n; Kind kind; int line, depth; } Token;   // depth: how many ( [ are open before it
typedef struct {
  const char *name;
  char *text;
  size_t n;
  Token *tokens;            // comments, strings, characters and preprocessor lines have none
  size_t count;
} Source;

// Behind a comment, string, character or preprocessor line that begins at i, or i if none does.
static size_t skip_quiet(const char *s, size_t n, size_t i, bool line_start) {
  if (s[i] == '/' && s[i + 1] == '/') { while (i < n && s[i] != '\n') i++; return i; }
  if (s[i] == '/' && s[i + 1] == '*') {
    for (i += 2; i < n && !(s[i] == '*' && s[i + 1] == '/'); i++);
    return i + 2 > n ? n : i + 2;
  }
  if (s[i] == '"' || s[i] == '\'') {
    char quote = s[i++];
    for (; i < n && s[i] != quote; i++) i += s[i] == '\\';
    return i + 1 > n ? n : i + 1;
  }
  if (s[i] == '#' && line_start) for (; i < n && !(s[i] == '\n' && s[i - 1] != '\\'); i++);
  return i;
}

static size_t punctuation_length(const char *s) {
  static const char *const longer[] = {"<<=", ">>=", "...", "->", "++", "--", "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "+=", "-=",
                                       "*=", "/=", "%=", "&=", "|=", "^="};
  for (size_t i = 0; i < sizeof longer / sizeof *longer; i++)
    if (!strncmp(s, longer[i], strlen(longer[i]))) return strlen(longer[i]);
  return 1;
}

static void tokenize(Source *src) {
  const char *s = src->text;
  int line = 1, depth = 0;
  bool line_start = true;
  for (size_t i = 0; i < src->n;) {
    size_t behind = skip_quiet(s, src->n, i, line_start);
    if (behind > i) { for (; i < behind; i++) line += s[i] == '\n'; continue; }
    if (s[i] == '\n') { line++; line_start = true; i++; continue; }
    if (isspace((unsigned char)s[i])) { i++; continue; }
    line_start = false;
    Token t = {i, 1, PUNCTUATION, line, depth};
    if (isalpha((unsigned char)s[i]) || s[i] == '_') {
      t.kind = IDENTIFIER;
      while (isalnum((unsigned char)s[i + t.n]) || s[i + t.n] == '_') t.n++;
    } else if (isdigit((unsigned char)s[i]) || (s[i] == '.' && isdigit((unsigned char)s[i + 1]))) {
      t.kind = NUMBER;
      for (;; t.n++) {
        char c = s[i + t.n], before = s[i + t.n - 1];
        bool exponent = (c == '+' || c == '-') && (strchr("pP", before) || (strchr("eE", before) && s[i + 1] != 'x'));
        if (!isalnum((unsigned char)c) && c != '.' && !exponent) break;
      }
    } else {
      t.n = punctuation_length(s + i);
      depth += (s[i] == '(' || s[i] == '[') - (s[i] == ')' || s[i] == ']');
    }
    src->tokens = grow(src->tokens, src->count, sizeof t);
    src->tokens[src->count++] = t;
    i += t.n;
  }
}

static bool is(const Source *s, size_t token, const char *text) {
  return token < s->count && s->tokens[token].n == strlen(text) && !strncmp(s->text + s->tokens[token].at, text, s->tokens[token].n);
}

// ---- changes ----

typedef struct {
  int source, line;
  size_t at, n;             // bytes replaced ...
  char *with;               // ... by these
  const char *what;
  bool used;
} Change;
static Change *changes;
static size_t change_count;

static void add_change(int source, int line, size_t at, size_t n, char *with, const char *what) {
  changes = grow(changes, change_count, sizeof *changes);
  changes[change_count++] = (Change){source, line, at, n, with, what, false};
}

static const struct { const char *from, *to; bool binary; } swaps[] = {
  {"<", "<=", true}, {"<=", "<", true}, {">", ">=", true}, {">=", ">", true}, {"==", "!=", true}, {"!=", "==", true},
  {"+", "-", true}, {"-", "+", true}, {"*", "/", true}, {"/", "*", true}, {"%", "*", true}, {"&&", "||", true}, {"||", "&&", true},
  {"<<", ">>", true}, {">>", "<<", true}, {"&", "|", true}, {"|", "&", true}, {"++", "--", false}, {"--", "++", false},
  {"+=", "=", true}, {"+=", "-=", true}, {"-=", "+=", true}, {"-=", "=", true}, {"*=", "=", true}, {"!", "", false}, {"true", "false", false}, {"false", "true", false},
};

// Between two values: what stands before ends one.
static bool is_binary(const Source *s, size_t i) {
  static const char *const words[] = {"return", "case", "else", "sizeof", "const", "restrict"};
  if (i == 0) return false;
  const Token *before = &s->tokens[i - 1];
  for (size_t w = 0; w < sizeof words / sizeof *words; w++) if (is(s, i - 1, words[w])) return false;
  const bool blank = s->text[s->tokens[i].at - 1] == ' ', blank_behind = strchr(" \n", s->text[s->tokens[i].at + s->tokens[i].n]) != NULL;
  const bool pointer = (is(s, i, "*") || is(s, i, "&")) && blank && !blank_behind;                      // int *x
  const bool bracket = strchr("<>", s->text[s->tokens[i].at]) && !(blank && blank_behind);              // of a template or a launch
  return !pointer && !bracket && (before->kind != PUNCTUATION || is(s, i - 1, ")") || is(s, i - 1, "]"));
}

static bool is_declaration(const Source *s, size_t i) {
  size_t next = i + 1;
  if (s->tokens[i].kind != IDENTIFIER) return false;
  while (is(s, next, "*")) next++;
  bool call = is(s, i, "return") || is(s, i, "goto") || is(s, i, "else");
  return !call && next < s->count && s->tokens[next].kind == IDENTIFIER && (next == i + 1 || s->text[s->tokens[i + 1].at + 1] != ' ');
}

// The size of an array where it is declared: one more changes nothing, one less nothing that is defined.
static bool is_array_size(const Source *s, size_t i) {
  if (i == 0 || !is(s, i - 1, "[") || !is(s, i + 1, "]")) return false;
  size_t first = i;
  for (; first > 0 && s->tokens[first - 1].line == s->tokens[i].line; first--) if (is(s, first - 1, "=")) return false;
  return is_declaration(s, first) || is(s, first, "const") || is(s, first, "static");
}

// The 0 of {0} in a struct's initializer stands for all its fields; 1 would be of the first only, which is as a rule set before it is read.
static bool is_zero_struct(const Source *s, size_t i) {
  return i > 1 && is(s, i, "0") && is(s, i - 1, "{") && is(s, i + 1, "}") && (is(s, i - 2, ")") || (is(s, i - 2, "=") && !is(s, i - 3, "]")));
}

// A number in the size of an allocation, one more of which asks for more memory and changes no result.
static bool is_room(const Source *s, size_t i) {
  static const char *const words[] = {"xmalloc", "xcalloc", "xrealloc", "malloc", "calloc", "realloc"};
  if (i == 0 || is(s, i - 1, "-") || is(s, i - 1, "/") || is(s, i - 1, ">>") || is(s, i - 1, "%")) return false;
  for (size_t k = i; k > 1 && s->tokens[k - 1].line == s->tokens[i].line && !is(s, k - 1, ";"); k--) {
    if (!is(s, k - 1, "(") || s->tokens[k - 1].depth >= s->tokens[i].depth) continue;
    for (size_t w = 0; w < sizeof words / sizeof *words; w++) if (is(s, k - 2, words[w])) return true;
  }
  return false;
}

// `fd < 0`: 0 is standard input, which is open; <= 0 and < 1 ask the same of any descriptor that open() gives.
static bool is_descriptor_check(const Source *s, size_t i) {
  size_t compare = s->tokens[i].kind == NUMBER ? i - 1 : i;
  return i > 1 && is(s, compare - 1, "fd") && (is(s, compare, "<") || is(s, compare, ">=")) && is(s, compare + 1, "0");
}

static void add_token_changes(int source, const Source *s, size_t i) {
  const Token *t = &s->tokens[i];
  if (is_descriptor_check(s, i)) return;
  for (size_t k = 0; k < sizeof swaps / sizeof *swaps; k++) {
    if (!is(s, i, swaps[k].from) || (swaps[k].binary && !is_binary(s, i))) continue;
    add_change(source, t->line, t->at, t->n, format("%s", swaps[k].to), "operator");
  }
  if (t->kind != NUMBER || is_array_size(s, i) || is_zero_struct(s, i)) return;
  bool room = is_room(s, i);
  if (is(s, i, "0")) { if (!room) add_change(source, t->line, t->at, t->n, format("1"), "constant"); return; }
  char *end;
  long long whole = strtoll(s->text + t->at, &end, 10);
  bool plain = end == s->text + t->at + t->n;
  for (int step = -1; step <= (room ? -1 : 1); step += 2)
    add_change(source, t->line, t->at, t->n, plain ? format("%lld", whole + step) : format("(%.*s %c 1)", (int)t->n, s->text + t->at, step < 0 ? '-' : '+'), "constant");
}

// if (x) -> if (!(x)), where it ends on the same line
static void add_negation(int source, const Source *s, size_t i) {
  if (!is(s, i, "if") || !is(s, i + 1, "(")) return;
  int depth = 0;
  for (size_t k = i + 1; k < s->count && s->tokens[k].line == s->tokens[i].line; k++) {
    depth += is(s, k, "(") - is(s, k, ")");
    if (depth) continue;
    size_t at = s->tokens[i + 1].at, end = s->tokens[k].at + 1;
    add_change(source, s->tokens[i].line, at, end - at, format("(!%.*s)", (int)(end - at), s->text + at), "condition negated");
    return;
  }
}

// Only releases something: nothing else would be different without it.
static bool is_release(const Source *s, size_t i) {
  static const char *const words[] = {"free", "fclose", "close", "closedir", "globfree", "va_end", "fflush", "free_names", "cudaFreeHost", "cudaEventDestroy", "cudaStreamDestroy"};
  const Token *t = &s->tokens[i];
  if (t->kind != IDENTIFIER || !is(s, i + 1, "(")) return false;
  for (size_t w = 0; w < sizeof words / sizeof *words; w++) if (is(s, i, words[w])) return true;
  const char *end = s->text + t->at + t->n;
  static const char *const endings[] = {"_free", "_close", "_destroy", "munmap"};
  for (size_t e = 0; e < sizeof endings / sizeof *endings; e++) {
    const size_t n = strlen(endings[e]);
    if (t->n >= n && !strncmp(end - n, endings[e], n)) return true;
  }
  return false;
}

// Waits for other threads, for copies on their way or for a stream.
static bool is_wait(const Source *s, size_t i) {
  static const char *const words[] = {"__syncthreads", "__syncwarp", "cp_async_wait", "cp_async_commit", "__threadfence", "wgmma_fence", "wgmma_commit", "wgmma_wait", "shared_writes_to_wgmma"};
  for (size_t w = 0; w < sizeof words / sizeof *words; w++) if (is(s, i, words[w])) return true;
  return false;
}

// A statement that begins at token i and ends on the same line.
static void add_deletion(int source, const Source *s, size_t i) {
  if (i == 0 || s->tokens[i].depth || !(is(s, i - 1, ";") || is(s, i - 1, "{") || is(s, i - 1, "}") || is(s, i - 1, "else"))) return;
  if (is(s, i, ";") || is(s, i, "else") || is(s, i, "case") || is(s, i, "default") || is_declaration(s, i) || is_release(s, i)) return;
  if (is(s, i, "return") && !is(s, i + 1, ";")) return;   // without a value to return nothing is defined
  int depth = 0;
  for (size_t k = i; k < s->count && s->tokens[k].line == s->tokens[i].line; k++) {
    depth += is(s, k, "(") - is(s, k, ")");
    if (is(s, k, "}") || is(s, k, "{")) return;
    if (depth || !is(s, k, ";")) continue;
    add_change(source, s->tokens[i].line, s->tokens[i].at, s->tokens[k].at - s->tokens[i].at, format("%s", ""), "statement deleted");
    return;
  }
}

// ---- drawing ----

static uint64_t seed, drawn;   // drawn: how many numbers so far
static uint64_t draw(uint64_t below) { return rng_below(below, seed, 0, rng_site("mutate"), drawn++); }

// A line that has unused changes, then one of its changes. NULL: all are used. Changes of a line stand side by side once sorted.
static Change *draw_change(void) {
  size_t lines = 0;
  for (int pass = 0;; pass++) {
    size_t seen = 0, wanted = pass ? (size_t)draw(lines) : 0;
    for (size_t i = 0; i < change_count;) {
      size_t end = i, unused = 0;
      for (; end < change_count && changes[end].source == changes[i].source && changes[end].line == changes[i].line; end++)
        unused += !changes[end].used;
      if (pass && unused && seen == wanted) {
        size_t k = (size_t)draw(unused);
        for (; changes[i].used || k > 0; i++) k -= !changes[i].used;
        changes[i].used = true;
        return &changes[i];
      }
      seen += unused > 0;
      i = end;
    }
    if (!seen) return NULL;
    lines = seen;
  }
}

static int by_place(const void *a, const void *b) {
  const Change *x = a, *y = b;
  if (x->source != y->source) return x->source < y->source ? -1 : 1;
  if (x->line != y->line) return x->line < y->line ? -1 : 1;
  if (x->at != y->at) return x->at < y->at ? -1 : 1;
  return strcmp(x->with, y->with);
}

// ---- one mutant ----

static Source sources[HOMES];
static size_t source_count;

// The line before and after, without the blanks around it; freed by the caller.
static void lines_of(const Change *c, char **old, char **new) {
  const Source *s = &sources[c->source];
  size_t begin = c->at, end = c->at + c->n;
  while (begin > 0 && s->text[begin - 1] != '\n') begin--;
  while (begin < c->at && s->text[begin] == ' ') begin++;
  while (end < s->n && s->text[end] != '\n') end++;
  *old = format("%.*s", (int)(end - begin), s->text + begin);
  *new = format("%.*s%s%.*s", (int)(c->at - begin), s->text + begin, c->with, (int)(end - c->at - c->n), s->text + c->at + c->n);
}

// kind "new": this new line; "deleted": this old line, where a statement of it is deleted; "any": every change of this old line
typedef struct { char *file, *kind, *line, *why; } Argued;
static Argued *argued;
static size_t argued_count;

// dev/mutants_equivalent.txt: blocks of three lines: `file: new` (or deleted, any), the line, the argument. # begins a comment.
static void read_argued(void) {
  size_t n;
  char *text = read_text("dev/mutants_equivalent.txt", &n), *save;
  if (!text) return;
  int place = 0;
  for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
    line += strspn(line, " ");
    if (*line == '#' && place == 0) continue;
    if (place == 0) {
      char *colon = strstr(line, ": ");
      if (!colon || (strcmp(colon, ": new") && strcmp(colon, ": deleted") && strcmp(colon, ": any"))) {
        fprintf(stderr, "mutate: dev/mutants_equivalent.txt: \"%s\" is not of the form `file: new`, `file: deleted` or `file: any`\n", line);
        exit(3);
      }
      *colon = 0;
      argued = grow(argued, argued_count, sizeof *argued);
      argued[argued_count] = (Argued){line, colon + 2, NULL, NULL};
    } else if (place == 1) {
      argued[argued_count].line = line;
    } else {
      argued[argued_count++].why = line;
    }
    place = (place + 1) % 3;
  }
}

// The argument why no test can see this change, or NULL.
static const char *argument_for(const Change *c, const char *old, const char *new) {
  for (size_t i = 0; i < argued_count; i++) {
    const Argued *a = &argued[i];
    if (!strcmp(a->kind, "deleted") && strcmp(c->what, "statement deleted")) continue;
    if (!strcmp(a->file, sources[c->source].name) && !strcmp(a->line, strcmp(a->kind, "new") ? old : new)) return a->why;
  }
  return NULL;
}

// The folder of a source's objects, below the build folder, and their names in it, as the shell takes them. Freed by the caller.
static const char *object_folder(const Source *s) { return is_kernel_file(s->name) ? "/emulated" : ""; }
static char *object_names(const Source *s) {
  const int stem = (int)strlen(s->name) - 2;
  return is_kernel_file(s->name) ? format("train_gpt.cpp train_gpt.plain.o train_gpt.checked.o") : format("%.*s.o %.*s.*.o", stem, s->name, stem, s->name);
}

// Puts the change into the copy; the unchanged file and its objects go to scratch/keep. The objects are moved and not copied, so
// that make compiles them again even where two files get the same time.
static void apply(const Change *c) {
  const Source *s = &sources[c->source];
  char *path = format("%s/tree/%s", scratch, s->name), *names = object_names(s);
  if (run_format(60, "rm -rf ../keep/* && cp -p %s ../keep/ && cd %s%s && mv %s $OLDPWD/../keep/ 2>/dev/null; true", s->name, build, object_folder(s), names))
    give_up("cannot keep the unchanged file");
  free(names);
  FILE *f = fopen(path, "wb");
  if (!f || fwrite(s->text, 1, c->at, f) != c->at || fputs(c->with, f) < 0 ||
      fwrite(s->text + c->at + c->n, 1, s->n - c->at - c->n, f) != s->n - c->at - c->n || fclose(f)) give_up("cannot write the changed file");
  free(path);
}

// The objects get the time of now (no -p): what was linked with the changed ones is older and will be linked again.
static void restore(const Change *c) {
  const Source *s = &sources[c->source];
  char *names = object_names(s);   // one that was not there before holds the change
  if (run_format(60, "cp -p ../keep/%s . && (cd %s%s && rm -f %s) && cd ../keep && for o in *.o; do cp $o ../tree/%s%s/ || exit 1; done; "
                 "! [ -e train_gpt.cpp ] || cp -p train_gpt.cpp ../tree/%s%s/", s->name, build, object_folder(s), names, build, object_folder(s), build, object_folder(s))) give_up("cannot put the unchanged file back");
  free(names);
}

typedef enum { BUILT, BROKEN, SAME } Built;

// Compiles the changed file, once per instruction set; kernels for the plain emulator. SAME: the machine code of all is what it was.
static Built compile(const Change *c) {
  const char *below = object_folder(&sources[c->source]);
  setenv("OBJECTS_KEPT", is_kernel_file(sources[c->source].name) ? "train_gpt.plain.o" : "*.o", 1);
  if (run_format(BUILD_LIMIT, "make -s $(cd ../keep && for o in $OBJECTS_KEPT; do echo %s%s/$o; done)", build, below)) return BROKEN;
  bool same = run_format(60, "cd ../keep && for o in $OBJECTS_KEPT; do strip -g -o ../a $o && strip -g -o ../b ../tree/%s%s/$o && cmp -s ../a ../b || exit 1; done", build, below) == 0;
  return same ? SAME : BUILT;
}

static bool whole_suite = true;

// What the changed function is about: "layernorm" in cpu_layernorm_backward(), "norm" in norm_backward_row(). "" if no line above
// begins a function. The tests with this word in their names are tried before the rest of a slow program.
static void word_of(const Change *c, char word[64]) {
  const Source *s = &sources[c->source];
  size_t i = c->at, n = 0;
  *word = 0;
  for (;; i--) {                            // to a line that begins with a letter
    while (i > 0 && s->text[i - 1] != '\n') i--;
    if (i == 0 || isalpha((unsigned char)s->text[i])) break;
  }
  size_t end = i + strcspn(s->text + i, "(\n"), begin = end;
  if (s->text[end] != '(') return;
  while (begin > i && (isalnum((unsigned char)s->text[begin - 1]) || s->text[begin - 1] == '_')) begin--;
  static const char *const devices[] = {"cpu_", "reference_", "cuda_"};
  for (size_t d = 0; d < sizeof devices / sizeof *devices; d++) if (!strncmp(s->text + begin, devices[d], strlen(devices[d]))) begin += strlen(devices[d]);
  for (; begin < end && s->text[begin] != '_' && n < 63; begin++) word[n++] = s->text[begin];
  word[n] = 0;
}

// NULL: it survived all tests. Else what caught it, to be freed. "" : it cannot be linked. *start += time spent on the unchanged tree.
static char *judge(const Change *c, double *start) {
  Test *order[MAX_TESTS];
  size_t own;
  char word[64];
  word_of(c, word);
  const size_t count = order_tests(sources[c->source].name, order, &own);
  for (size_t i = 0; i < (whole_suite || !own ? count : own); i++) {
    if (order[i]->seconds <= 0) {          // a survivor of its own tests: how long do the others take?
      double pause = seconds_now();
      restore(c);
      time_tests(order, count);
      apply(c);
      if (compile(c) != BUILT) give_up("a change that compiled does not any more");
      *start += seconds_now() - pause;
    }
    if (!build_test(order[i])) return format("%s", "");
    bool slow = i < own && !order[i]->script && order[i]->seconds > 1;
    char *why = slow && *word ? run_test(order[i], word, time_limit(order[i])) : NULL;
    if (!why) why = run_test(order[i], "", time_limit(order[i]));
    if (why) return why;
  }
  return NULL;
}

#define SANITIZERS "OPT=-O1 CFLAGS='-fsanitize=address,undefined -fno-sanitize-recover=all'"

// The tests of a file once more as .ci/run does: with sanitizers, which see what changes no result, such as a read behind an array.
// A test counts only if it passes without the change. NULL: nothing was seen. *start as in judge().
static char *judge_sanitized(const Change *c, double *start) {
  Test *order[MAX_TESTS];
  size_t own;
  const char *name = sources[c->source].name;
  const int stem = (int)strlen(name) - 2;
  char *why = NULL, *plain = format("%s", build);
  order_tests(name, order, &own);
  if (run(60, "make -s print-build " SANITIZERS)) give_up("the folder of the sanitized build is not known");
  char *folder = read_log();
  folder[strcspn(folder, "\n")] = 0;
  for (size_t i = 0; i < own && !why; i++) {
    Test *t = order[i];
    for (int pass = 0; pass < 2 && (pass == 0 || why); pass++) {   // with the change; if that was seen, without it
      double pause = seconds_now();
      if (pass) restore(c);
      bool built = run_format(BUILD_LIMIT, "rm -f %s/%.*s.o %s/%.*s.*.o; make -s " SANITIZERS " %s/gpt %s/%s && cp -f %s/gpt gpt", folder, stem, name,
                              folder, stem, name, folder, folder, t->script ? "gpt" : t->name, folder) == 0;
      *start += pass == 0 ? seconds_now() - pause : 0;             // the first build is that of the whole tree
      snprintf(build, sizeof build, "%s", folder);
      reserves = true;
      char *said = built ? run_test(t, "", 10 * time_limit(t)) : NULL;
      reserves = false;
      snprintf(build, sizeof build, "%s", plain);
      if (pass == 0) why = said ? format("%s, with sanitizers", said) : NULL;
      else {
        apply(c);
        if (said) { printf("without any change, with sanitizers: %s\n", said); free(why); why = NULL; }
        *start += seconds_now() - pause;
      }
      free(said);
    }
  }
  free(folder);
  free(plain);
  return why;
}

static long least = 95;   // per cent
typedef struct { int wanted, counted, caught, broken, same, argued; double *seconds; char *survivors; } Tally;

static void print_equivalent(const Change *c, const char *old, const char *new, const char *argument) {
  printf("not counted  %s:%d  %s\n  - %s\n  + %s\n  equivalent: %s\n", sources[c->source].name, c->line, c->what, old, new, argument);
}

// One draw; false: there is nothing left to draw.
static bool try_one(Tally *t) {
  Change *c = draw_change();
  if (!c) return false;
  char *old, *new;
  lines_of(c, &old, &new);
  const char *argument = argument_for(c, old, new);
  if (argument) { t->argued++; print_equivalent(c, old, new, argument); free(old); free(new); return true; }
  Test *order[MAX_TESTS];
  size_t own;
  order_tests(sources[c->source].name, order, &own);
  time_tests(order, own);
  double start = seconds_now();
  apply(c);
  Built built = compile(c);
  char *why = built == BUILT ? judge(c, &start) : NULL;
  if (built == BUILT && !why && whole_suite && !is_kernel_file(sources[c->source].name)) why = judge_sanitized(c, &start);
  double took = seconds_now() - start;
  restore(c);
  if (built == BROKEN || (why && !*why)) t->broken++;
  else if (built == SAME) { t->same++; print_equivalent(c, old, new, "the same machine code"); }
  else {
    t->seconds[t->counted++] = took;
    t->caught += why != NULL;
    char *report = format("%s:%d  %s\n  - %s\n  + %s\n", sources[c->source].name, c->line, c->what, old, new);
    printf("%d of %d  %s  %s%s  (%.1f s)\n", t->counted, t->wanted, report, why ? "caught by " : "SURVIVED", why ? why : "", took);
    fflush(stdout);
    if (!why) { char *all = format("%s%s", t->survivors, report); free(t->survivors); t->survivors = all; }
    free(report);
  }
  free(why);
  free(old);
  free(new);
  return true;
}

static int by_value(const void *a, const void *b) { return *(const double *)a < *(const double *)b ? -1 : *(const double *)a > *(const double *)b; }

static bool only_waits;

static void read_sources(char *const *names, int count) {
  for (size_t h = 0; h < HOMES; h++) {
    bool asked = count == 0 && homes[h].drawn;
    for (int i = 0; i < count; i++) asked |= !strcmp(names[i], homes[h].file);
    if (!asked) continue;
    Source *s = &sources[source_count];
    *s = (Source){.name = homes[h].file};
    s->text = read_text(s->name, &s->n);
    if (!s->text) continue;
    tokenize(s);
    for (size_t i = 0; i < s->count; i++) {
      if (only_waits) { if (is_wait(s, i)) add_deletion((int)source_count, s, i); continue; }
      add_token_changes((int)source_count, s, i);
      add_negation((int)source_count, s, i);
      add_deletion((int)source_count, s, i);
    }
    source_count++;
  }
  if (change_count) qsort(changes, change_count, sizeof *changes, by_place);
}

// ---- the command line ----

static long number_of(const char *flag, const char *text) {
  char *end;
  errno = 0;
  long n = text ? strtol(text, &end, 10) : -1;
  if (!text || errno || *end || end == text || n < 0) {
    fprintf(stderr, "mutate: %s %s: a whole number from 0 is needed\n", flag, text ? text : "");
    exit(2);
  }
  return n;
}

static int summarize(Tally *t) {
  qsort(t->seconds, (size_t)t->counted, sizeof *t->seconds, by_value);
  if (*t->survivors) printf("\nsurvivors:\n%s", t->survivors);
  printf("\nnot counted: %d did not compile, %d gave the same machine code, %d argued in dev/mutants_equivalent.txt; %zu changes can be drawn\n",
         t->broken, t->same, t->argued, change_count);
  printf("caught %d of %d, %d equivalent; median %.1f s\n", t->caught, t->counted, t->same + t->argued, t->counted ? t->seconds[t->counted / 2] : 0);
  return !(t->counted > 0 && 100L * t->caught >= least * t->counted);
}

int main(int argc, char **argv) {
  long count = 8;
  seed = 1;
  int i = 1;
  bool list = false;
  for (; i < argc && !strncmp(argv[i], "--", 2); i += 2) {
    if (!strcmp(argv[i], "--count")) count = number_of(argv[i], argv[i + 1]);
    else if (!strcmp(argv[i], "--seed")) seed = (uint64_t)number_of(argv[i], argv[i + 1]);
    else if (!strcmp(argv[i], "--least")) least = number_of(argv[i], argv[i + 1]);
    else if (!strcmp(argv[i], "--list")) list = argv[i + 1] && !strcmp(argv[i + 1], "on");
    else if (!strcmp(argv[i], "--waits")) only_waits = argv[i + 1] && !strcmp(argv[i + 1], "on");
    else if (!strcmp(argv[i], "--suite")) whole_suite = !(argv[i + 1] && !strcmp(argv[i + 1], "off"));
    else { fprintf(stderr, "mutate: %s: no such flag; there are --count, --seed, --list, --suite, --waits and --least\n", argv[i]); return 2; }
  }
  read_argued();
  read_sources(argv + i, argc - i);
  if (only_waits) count = (long)change_count;
  if (!change_count) { fprintf(stderr, "mutate: there is nothing to change in the files named\n"); return 2; }
  if (list) {
    for (long k = 0; k < count; k++) {
      Change *c = draw_change();
      char *old, *new;
      if (!c) break;
      lines_of(c, &old, &new);
      printf("%s:%d  %s%s\n  - %s\n  + %s\n", sources[c->source].name, c->line, c->what, argument_for(c, old, new) ? " (argued)" : "", old, new);
    }
    return 0;
  }
  struct sigaction action = {.sa_handler = stop};
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  setvbuf(stdout, NULL, _IOLBF, 0);
  copy_tree(argv[0]);
  find_tests();
  Tally t = {.wanted = (int)count, .seconds = calloc((size_t)count + 1, sizeof(double)), .survivors = format("%s", "")};
  while (t.counted < count && try_one(&t));
  return summarize(&t);
}
