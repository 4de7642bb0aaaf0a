// gpt.c: main and the command table. A command is a function of its parsed flags that returns the exit code.
#include "bench.h"          // bench_command
#include "data.h"           // data_command
#include "device.h"         // cpu_wait_briefly
#include "doctor.h"         // doctor_command
#include "evaluate.h"       // eval_command
#include "flags.h"          // Options
#include "report.h"         // report_command
#include "sample.h"         // sample_command
#include "tokenizer_cli.h"  // tokenizer_command
#include "train.h"          // train_command, plan_command
#include "version.h"        // GPT_VERSION
#include "machine.h"        // machine_limit_threads
#include <errno.h>          // errno
#include <fcntl.h>          // open
#include <signal.h>         // SIGXFSZ
#include <string.h>         // strcmp
#include <unistd.h>         // STDIN_FILENO

static const struct {
  const char *name, *sub;       // "tokenizer", "train"; sub NULL: none
  unsigned bit;
  int (*run)(const Options *);
  int (*run_resolving)(Options *);   // writes what it resolves back into the options
  const char *usage, *summary;
} commands[] = {
  {"train", NULL, COMMAND_TRAIN, NULL, train_command, "[TEXT...]", "raw text in, a run folder out; no text: the embedded stories; --resume RUN goes on, bit for bit"},
  {"sample", NULL, COMMAND_SAMPLE, sample_command, NULL, "[MODEL]", "generate text; MODEL: a run, a checkpoint, a model directory (default: the newest run here)"},
  {"eval", NULL, COMMAND_EVAL, eval_command, NULL, "MODEL TEXT...", "loss, perplexity and bits per byte of a text, or of shards"},
  {"tokenizer", "train", COMMAND_TOKENIZER_TRAIN, tokenizer_command, NULL, "TEXT... --vocab N --out tokenizer.json", "byte-level BPE from text"},
  {"tokenizer", "encode", COMMAND_TOKENIZER_ENCODE, tokenizer_command, NULL, "--tokenizer T [TEXT|-]", "text to ids"},
  {"tokenizer", "decode", COMMAND_TOKENIZER_DECODE, tokenizer_command, NULL, "--tokenizer T [IDS|-]", "ids to text, exact bytes"},
  {"tokenizer", "info", COMMAND_TOKENIZER_INFO, tokenizer_command, NULL, "--tokenizer T", "what a tokenizer is"},
  {"data", "build", COMMAND_DATA_BUILD, data_command, NULL, "TEXT... --tokenizer T --out DIR", "text to shards of ids"},
  {"data", "check", COMMAND_DATA_CHECK, data_command, NULL, "PATTERN", "verify shards"},
  {"data", "info", COMMAND_DATA_INFO, data_command, NULL, "PATTERN", "describe shards"},
  {"report", NULL, COMMAND_REPORT, report_command, NULL, "RUN...", "one page over several runs"},
  {"plan", NULL, COMMAND_PLAN, NULL, plan_command, "[TEXT...]", "what a training run would need and cost, without running it"},
  {"bench", "train", COMMAND_BENCH_TRAIN, bench_command, NULL, "", "speed of a training step beside the processor's peak"},
  {"bench", "gemm", COMMAND_BENCH_GEMM, bench_command, NULL, "", "speed of a model's matrix products, each direction, beside the peak measured with it"},
  {"bench", "attention", COMMAND_BENCH_ATTENTION, bench_command, NULL, "", "speed of attention, forward and backward, beside the peak measured with it"},
  {"bench", "all", COMMAND_BENCH_ALL, bench_command, NULL, "", "products, attention and the step, one after the other"},
  {"bench", "tokenizer", COMMAND_BENCH_TOKENIZER, bench_command, NULL, "--tokenizer T TEXT...", "speed of encoding, first and again, and of decoding, on one thread"},
  {"doctor", NULL, COMMAND_DOCTOR, doctor_command, NULL, "", "what this machine has, what this build can use, a self-test"},
};

static void print_usage(FILE *out) {
  fprintf(out, "gpt %s: raw text to a trained GPT, and out again\n\n", GPT_VERSION);
  for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
    char call[96];
    snprintf(call, sizeof call, "gpt %s%s%s %s", commands[i].name, commands[i].sub ? " " : "", commands[i].sub ? commands[i].sub : "", commands[i].usage);
    fprintf(out, "  %-62s %s\n", call, commands[i].summary);
  }
  fprintf(out, "  %-62s %s\n  %-62s %s\n", "gpt help [COMMAND]", "the flags of a command", "gpt --version", "version, commit, compiler");
}

// The row for argv[0] (and argv[1] where there are sub-commands); *used = words taken. Exit 2 with the nearest name.
static size_t find_command(int argc, char **argv, int *used) {
  const char *names[ARRAY_LEN(commands)];
  size_t count = 0;
  bool known = false;
  for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
    bool same = !strcmp(argv[0], commands[i].name);
    known |= same;
    if (same && (!commands[i].sub || (argc > 1 && !strcmp(argv[1], commands[i].sub)))) { *used = commands[i].sub ? 2 : 1; return i; }
  }
  for (size_t i = 0; i < ARRAY_LEN(commands); i++) names[count++] = known ? (!strcmp(argv[0], commands[i].name) ? commands[i].sub : "") : commands[i].name;
  const char *word = known ? (argc > 1 ? argv[1] : "") : argv[0], *near = nearest(word, names, count);
  if (known && argc < 2) fail(EXIT_REQUEST, "gpt %s needs a word behind it; see gpt help", argv[0]);
  fail(EXIT_REQUEST, "gpt %s%s%s: no such command%s%s; see gpt help", argv[0], known ? " " : "", known ? word : "", near && *near ? "; did you mean " : "", near ? near : "");
}

static int print_help(int argc, char **argv) {
  if (argc == 0) { print_usage(stdout); return 0; }
  bool whole = argc == 1;          // `gpt help tokenizer`: all its sub-commands
  int used;
  bool any = false;
  if (!whole) find_command(argc, argv, &used);   // says what is wrong
  if (!whole && argc > used) fail(EXIT_REQUEST, "gpt help takes one command, %s is more; see gpt help %s", argv[used], argv[0]);
  for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
    if (strcmp(argv[0], commands[i].name) || (!whole && commands[i].sub && strcmp(argv[1], commands[i].sub))) continue;
    printf("%sgpt %s%s%s %s\n  %s\n", any ? "\n" : "", commands[i].name, commands[i].sub ? " " : "", commands[i].sub ? commands[i].sub : "", commands[i].usage, commands[i].summary);
    options_print_help(commands[i].bit, stdout);
    any = true;
  }
  if (!any) find_command(argc, argv, &used);   // says what is wrong
  return 0;
}

static bool asks_for_help(int argc, char **argv) {
  for (int i = 0; i < argc && strcmp(argv[i], "--"); i++) if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return true;
  return false;
}

// What was printed has reached its file or pipe: a full disk is no success.
static int finish(int code) {
  if (fflush(stdout)) fail(EXIT_MACHINE, "cannot write to stdout: %s", strerror(errno));
  if (ferror(stdout)) fail(EXIT_MACHINE, "cannot write to stdout: an earlier write failed, what was printed is not whole");
  return code;
}

// Started with standard input, output or error closed, the files that we open would get their numbers, and what we print would go into them. What
// stands in their places cannot be read (0) or written (1, 2): who uses them is told so.
static void hold_standard_descriptors(void) {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0)
      fail(EXIT_MACHINE, "/dev/null: cannot take the place of descriptor %d, which is closed: %s", fd, strerror(errno));
}

int main(int argc, char **argv) {
  int used;
  hold_standard_descriptors();
  setvbuf(stdout, NULL, _IOFBF, 1 << 16);
  signal(SIGXFSZ, SIG_IGN);   // at a limit on file sizes a write shall fail and be said, not kill us with half a file left behind
  machine_limit_threads();
  if (argc < 2) { print_usage(stderr); return EXIT_REQUEST; }
  if (!strcmp(argv[1], "--version")) { printf("gpt %s, commit %s, built with %s\n", GPT_VERSION, GPT_COMMIT, GPT_COMPILER); return finish(0); }
  if (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) return finish(print_help(argc - 2, argv + 2));
  if (argc > 2 && asks_for_help(1, argv + 2)) return finish(print_help(1, argv + 1));   // `gpt data --help`: all its sub-commands
  size_t c = find_command(argc - 1, argv + 1, &used);
  if (asks_for_help(argc - 1 - used, argv + 1 + used)) return finish(print_help(used, argv + 1));
  if (commands[c].bit & (COMMAND_RUNNING | COMMAND_DOCTOR)) cpu_wait_briefly(argv);
  Options o;
  char *name = format("%s%s%s", commands[c].name, commands[c].sub ? " " : "", commands[c].sub ? commands[c].sub : "");
  options_parse(&o, commands[c].bit, name, argc - 1 - used, argv + 1 + used);
  return finish(commands[c].run ? commands[c].run(&o) : commands[c].run_resolving(&o));
}
