// test_memory.c: owns the promise that the printed memory table is what the process then uses: 1 % + 4 MiB (train.c, model.c, cpu.c).
// Runs ./gpt (or $GPT) train for a few steps and compares the banner with the largest resident size that the system counted.
// Under AddressSanitizer nothing is measured: its own memory is many times the program's.
#include "test.h"
#include "util.h"
#include <sys/resource.h>  // struct rusage
#include <sys/wait.h>      // wait4

static char folder[200];

// Runs gpt train with these arguments; *table = MiB of the banner; returns MiB of the largest resident size, or -1 where it failed.
static double peak_of(const char *arguments, double *table) {
  const char *gpt = getenv("GPT");
  char *command = format("exec %s train %s --out %s/run --overwrite --sample-every 0 > %s/log 2>&1", gpt ? gpt : "./gpt", arguments, folder, folder);
  pid_t pid = fork();
  if (pid == 0) {
    setenv("OMP_WAIT_POLICY", "passive", 1);
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
  }
  free(command);
  int status = 1;
  struct rusage used;
  if (pid < 0 || wait4(pid, &status, 0, &used) != pid || status != 0) return -1;
  char *path = format("%s/log", folder);
  size_t n;
  char *log = read_file(path, "log", 1 << 20, &n), *line = strstr(log, "\nmemory ");
  *table = line ? strtod(line + 8, NULL) : 0;
  free(path);
  free(log);
  return (double)used.ru_maxrss / 1024;
}

// The table against the process, over small and large models, one thread and two, all that keeps memory in its own way.
static void table_is_what_is_used(void) {
#ifdef __SANITIZE_ADDRESS__
  return;
#endif
  static const char *const runs[] = {
    "%s/text --tokenizer char --layers 2 --channels 32 --heads 2 --context 64 --batch 4 --threads 1",
    "%s/text --tokenizer char --layers 2 --channels 32 --heads 2 --context 64 --batch 4 --threads 2",
    "%s/text --tokenizer char --layers 6 --channels 128 --heads 4 --context 256 --batch 8 --threads 2",
    "%s/text --tokenizer char --family llama --layers 2 --channels 384 --heads 6 --context 512 --batch 2 --threads 2 --recompute block",
    "%s/text --tokenizer gpt2 --layers 1 --channels 128 --heads 4 --context 128 --batch 4 --threads 1",
    "--layers 1 --channels 16 --heads 1 --threads 2"};   // the embedded stories: %s is not there
  for (size_t i = 0; i < ARRAY_LEN(runs); i++) {
    char *arguments = strncmp(runs[i], "%s", 2) ? xstrdup(runs[i]) : format("%s%s", folder, runs[i] + 2), *all = format("%s --steps 2", arguments);
    double table = 0, peak = peak_of(all, &table);
    CHECK_MSG(peak > 0 && table > 0, "gpt train %s failed", arguments);
    CHECK_MSG(fabs(peak - table) <= 0.01 * table + 4, "the table says %.1f MiB, the process used %.1f: gpt train %s", table, peak, arguments);
    free(arguments);
    free(all);
  }
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  test_folder(folder, sizeof folder, "memory");
  Buffer text = {0};
  for (int i = 0; i < 4000; i++) buffer_printf(&text, "%d bottles on the wall. ", i);
  char *path = format("%s/text", folder);
  replace_file(path, text.data, text.len);
  buffer_free(&text);
  free(path);
  RUN(table_is_what_is_used);
  char *remove_all = format("rm -rf '%s'", folder);
  int code = TEST_END();
  if (system(remove_all) != 0) code = 1;
  free(remove_all);
  return code;
}
