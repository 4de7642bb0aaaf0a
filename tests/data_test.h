// data_test.h: what the tests of data share: a folder, random numbers, shards of any kind, gpt data as a function, a disk that fails.
#pragma once
#include "data.h"
#include "dataloader.h"
#include "documents.h"
#include "json.h"
#include "rng.h"
#include "test.h"
#include "tokenizer.h"
#include "utf8.h"
#include "util.h"          // sha256_of
#include <errno.h>         // errno
#include <fcntl.h>         // open
#include <limits.h>        // LONG_MAX
#include <signal.h>        // SIGXFSZ
#include <sys/resource.h>  // setrlimit
#include <sys/stat.h>      // mkfifo
#include <sys/syscall.h>   // SYS_pread64, SYS_clock_gettime
#include <time.h>          // clock_gettime

static char folder[200];   // everything is written here

static char *in_folder(const char *name) { return format("%s/%s", folder, name); }

static uint64_t counter;   // of the random numbers of these tests
static int64_t draw(int64_t low, int64_t high) { return low + (int64_t)rng_below((uint64_t)(high - low + 1), 7, 0, rng_site("test_data"), counter++); }

static void write_file(const char *path, const void *data, size_t n) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (fd < 0 || !write_all(fd, data, n)) abort();
  close(fd);
}

// A shard of these ids; ours: with our words (tokenizer hash all of one digit), else as llm.c writes it; width 0: raw u16.
static inline void write_shard(const char *path, const int32_t *ids, int64_t n, int width, bool ours, int64_t vocab, int32_t eot, char digit) {
  Shard s = {.width = width, .count = n, .vocab = vocab, .eot = eot};
  uint8_t header[SHARD_HEADER_BYTES] = {0};
  Buffer b = {0};
  int bytes = width ? width : 2;
  uint8_t *payload = xmalloc((size_t)n, (size_t)bytes);
  for (int64_t i = 0; i < n; i++) {
    for (int k = 0; k < bytes; k++) payload[i * bytes + k] = (uint8_t)((uint32_t)ids[i] >> (8 * k));
    s.documents += ids[i] == eot;
  }
  memset(s.tokenizer, digit, 64);
  s.crc = crc32c(0, payload, (size_t)(n * bytes));
  if (ours) shard_header(&s, header);
  else { store_u32le(header, width == 2 ? 20240520 : 20240801); store_u32le(header + 4, width == 2 ? 1 : 7); store_u32le(header + 8, (uint32_t)n); }
  if (width) buffer_append(&b, header, sizeof header);
  buffer_append(&b, payload, (size_t)(n * bytes));
  write_file(path, b.data, b.len);
  free(payload);
  buffer_free(&b);
}

// gpt data SUB WORDS..., its stdout into `said`.
static Buffer said;
static int run_data(unsigned command, const char *const *words) {
  char *argv[40], *out = in_folder("stdout");
  int argc = 0;
  for (; words[argc]; argc++) argv[argc] = (char *)(uintptr_t)words[argc];
  fflush(stdout);
  int old = dup(1), fd = open(out, O_RDWR | O_CREAT | O_TRUNC, 0666);
  dup2(fd, 1);
  Options o;
  options_parse(&o, command, "data", argc, argv);
  int code = data_command(&o);
  free(o.args);
  fflush(stdout);
  dup2(old, 1);
  close(old);
  close(fd);
  size_t n;
  char *text = read_file(out, "output", 1 << 24, &n);
  said.len = 0;
  buffer_append(&said, text, n);
  free(text);
  free(out);
  return code;
}
// One thread unless said otherwise: OpenMP's threads do not live on in the children that EXPECT_FAIL makes.
#define BUILD_THREADS(...) run_data(COMMAND_DATA_BUILD, (const char *const[]){__VA_ARGS__, NULL})
#define BUILD(...) BUILD_THREADS(__VA_ARGS__, "--threads", "1")
#define CHECK_DATA(...) run_data(COMMAND_DATA_CHECK, (const char *const[]){__VA_ARGS__, NULL})
#define INFO(...) run_data(COMMAND_DATA_INFO, (const char *const[]){__VA_ARGS__, NULL})

static inline void leave(int code, void *ignored) { (void)ignored; _exit(code); }

// Exit code of a statement in a child whose words go nowhere. It leaves at once: a search for leaks in each of hundreds of
// children would take minutes.
#define EXIT_OF(code, statement) do { \
    fflush(NULL); pid_t pid_ = fork(); \
    if (pid_ == 0) { on_exit(leave, NULL); int null_ = open("/dev/null", O_WRONLY); dup2(null_, 1); dup2(null_, 2); { statement; } fflush(NULL); _exit(0); } \
    int status_; waitpid(pid_, &status_, 0); (code) = WIFEXITED(status_) ? WEXITSTATUS(status_) : 1000 + WTERMSIG(status_); \
  } while (0)

// Lines of words, runs of blanks, punctuation, characters of two to four bytes, broken bytes.
static inline void random_text(Buffer *b, size_t n, bool valid) {
  static const char *const parts[] = {
      "the", " cat", " Sat", "42", " 7", ".", ",\n", "\n", "\n\n", "  ", " \n", "'s", "é", " ö", "漢", "😀", "!\n", "x\ny", "\t", "\r\n", "\xc2\xa0", "\xe3\x80\x80 "};
  while (b->len < n) {
    const char *p = parts[draw(0, ARRAY_LEN(parts) - 1)];
    buffer_append(b, p, strlen(p));
    if (!valid && draw(0, 30) == 0) buffer_append(b, "\xe2\x82", (size_t)draw(1, 2));
  }
}

static inline void remove_in_folder(const char *name) {
  char *path = in_folder(name);
  remove_tree(path);
  free(path);
}

static inline size_t names_in(const char *name, const char *needle) {
  size_t count, found = 0;
  char *path = in_folder(name);
  if (!is_directory(path)) { free(path); return 0; }
  char **names = list_directory(path, &count);
  for (size_t i = 0; i < count; i++) found += strstr(names[i], needle) != NULL;
  free_names(names, count);
  free(path);
  return found;
}

// Files may not grow past this, in the child that asks for it.
static inline void limit_files(rlim_t bytes) {
  struct rlimit most = {.rlim_cur = bytes, .rlim_max = bytes};
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &most);
}

// The program's own pread() stands before libc's: a disk that, after so many readings, fails or gives what is one bit off.
static long sound_reads = LONG_MAX;
static bool disk_fails;
static int disk_errno = EIO;   // EINTR: once
ssize_t pread(int fd, void *to, size_t n, off_t at) {
  const bool sound = sound_reads-- > 0;
  errno = disk_errno;
  if (!sound && disk_fails) { disk_fails = disk_errno != EINTR; return -1; }
  ssize_t got = (ssize_t)syscall(SYS_pread64, fd, to, n, at);
  if (!sound && got > 0) *(uint8_t *)to ^= 1;
  return got;
}

// How many files this process has open.
static inline int descriptors(void) {
  int open_now = 0;
  for (int fd = 0; fd < 1024; fd++) open_now += fcntl(fd, F_GETFD) >= 0;
  return open_now;
}

// At the beginning and the end of main.
static void begin_folder(const char *name) {
  test_folder(folder, sizeof folder, name);
}
static void end_folder(void) {
  buffer_free(&said);
  remove_tree(folder);
}
