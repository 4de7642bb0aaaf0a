// test_util.c: tests of util.c: errors, checked memory, files, digests, cursor, nearest name; and of machine.c.
#include "machine.h"
#include "rng.h"
#include "test.h"
#include "util.h"
#include <errno.h>         // errno
#include <fcntl.h>         // open
#include <pthread.h>       // pthread_create
#include <sched.h>         // sched_setaffinity
#include <signal.h>        // SIGXFSZ
#include <sys/mman.h>      // mmap
#include <sys/resource.h>  // setrlimit
#include <sys/stat.h>      // stat
#include <sys/syscall.h>   // SYS_read

static char folder[200];   // everything is written here
static char *in_folder(const char *name) { return format("%s/%s", folder, name); }

static uint64_t counter;   // of the random numbers of these tests
static uint64_t draw(uint64_t below) { return rng_below(below, 11, 0, rng_site("test_util"), counter++); }

// ---- a system that reads and writes badly: these take the place of the library's functions in this program ----

static enum { WHOLE, PIECES, BROKEN } transfers;   // PIECES: interrupted every other time, else at most 3 bytes; BROKEN: a dead disk
static int interrupted;

static size_t some_of(size_t n) {   // 0: fail with errno
  if (transfers == BROKEN) { errno = EIO; return 0; }
  if (transfers == PIECES && interrupted++ % 2 == 0) { errno = EINTR; return 0; }
  return transfers == PIECES ? MIN(n, (size_t)3) : n;
}

ssize_t read(int fd, void *to, size_t n) { size_t some = some_of(n); return n && !some ? -1 : syscall(SYS_read, fd, to, some); }
ssize_t write(int fd, const void *from, size_t n) { size_t some = some_of(n); return n && !some ? -1 : syscall(SYS_write, fd, from, some); }
ssize_t pread(int fd, void *to, size_t n, off_t at) {
  size_t some = some_of(n);
  return n && !some ? -1 : syscall(SYS_pread64, fd, to, some, at);
}

// ---- errors ----

static void say_number(void *number) { fprintf(stderr, "%d", *(int *)number); }   // no newline: EXPECT_FAIL wants one line
static void do_nothing(void *ignored) { (void)ignored; }
static void leave_with(void *code) { _exit(*(int *)code); }

static void fail_says_one_line(void) {
  EXPECT_FAIL(EXIT_REQUEST, "gpt: three 3 four\n", fail(EXIT_REQUEST, "%s %d four", "three", 3));
  EXPECT_FAIL(EXIT_MACHINE, "gpt: a?b?c?\n", fail(EXIT_MACHINE, "a\nb\tc\x7f"));
  EXPECT_FAIL(0, "gpt: warning: 7 of 9\n", warn("%d of %d", 7, 9));
}

// Handlers run last first, once each; cancelled ones do not; a handler that fails itself does not run again.
static void fail_runs_its_handlers(void) {
  static int one = 1, two = 2, three = 3, code = 77;
  EXPECT_FAIL(77, "gpt: x\n", at_fail(say_number, &one); at_fail(leave_with, &code); fail(2, "x"));   // the newest came first
  EXPECT_FAIL(77, "gpt: x\n", at_fail(leave_with, &code); at_fail(say_number, &one); at_fail(say_number, &two);
              at_fail_cancel(say_number, &one); at_fail_cancel(say_number, &two); at_fail_cancel(say_number, &three); fail(2, "x"));
  EXPECT_FAIL(3, "too many", for (int i = 0; i < 33; i++) at_fail(do_nothing, &one));
  EXPECT_FAIL(1, "gpt: x\n", for (int i = 0; i < 32; i++) at_fail(leave_with, &one); fail(2, "x"));
}

// What `run` writes to stderr before it ends with `code`, to be freed.
static char *words_of(void (*run)(void), int code) {
  char *log = in_folder("words");
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    if (!freopen(log, "w", stderr)) _exit(99);
    run();
    _exit(98);
  }
  int status;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == code);
  size_t n;
  char *text = read_file(log, "log", 1 << 20, &n);
  unlink(log);
  free(log);
  return text;
}

static void fail_with_handlers(void) {
  static int numbers[4] = {1, 2, 3, 4};
  for (int i = 0; i < 4; i++) at_fail(say_number, &numbers[i]);
  at_fail_cancel(say_number, &numbers[1]);
  fail(5, "begin");
}

static void handlers_keep_their_order(void) {
  char *text = words_of(fail_with_handlers, 5);
  CHECK_STR(text, "gpt: begin\n431");
  free(text);
}

static size_t message_length;
static void fail_with_length(void) { fail(6, "%0*d", (int)message_length, 7); }

// A message is shown whole up to 4,095 characters, and says where it was cut beyond that.
static void long_messages_are_cut(void) {
  for (message_length = 4094; message_length <= 4097; message_length++) {
    char *text = words_of(fail_with_length, 6);
    bool cut = message_length > 4095;
    CHECK_EQ(strlen(text), strlen("gpt: \n") + MIN(message_length, (size_t)4095));
    CHECK_STR(text + strlen(text) - 5, cut ? "0...\n" : "0007\n");
    free(text);
  }
}

// ---- memory ----

static void memory_is_checked(void) {
  EXPECT_FAIL(EXIT_MACHINE, "memory", xmalloc(SIZE_MAX / 2, 3));
  EXPECT_FAIL(EXIT_MACHINE, "memory", xcalloc(SIZE_MAX, 2));
  EXPECT_FAIL(EXIT_MACHINE, "memory", xrealloc(NULL, (size_t)PTRDIFF_MAX + 1, 1));
  uint8_t *p = xcalloc(1000, 3);
  for (int i = 0; i < 3000; i++) CHECK(p[i] == 0);
  memset(p, 1, 3000);
  p = xrealloc(p, 9000, 1);
  CHECK(p[0] == 1 && p[2999] == 1);
  free(p);
  void *nothing = xmalloc(0, 8);
  CHECK(nothing != NULL);
  free(nothing);
  char *copy = xstrdup("words");
  CHECK_STR(copy, "words");
  free(copy);
  size_t out = 5;
  CHECK(!mul_size(SIZE_MAX, 2, &out) && mul_size(6, 7, &out) && out == 42);
  CHECK(!add_size(SIZE_MAX, 1, &out) && add_size(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
  CHECK(round_up(0, 8) == 0 && round_up(1, 8) == 8 && round_up(8, 8) == 8 && round_up(9, 8) == 16);
}

// There is room for the next entry always, what is there stays, and the room doubles.
static void arrays_grow(void) {
  int *array = NULL;
  size_t capacity = 0, grown = 0;
  for (size_t n = 0; n < 1000; n++) {
    const size_t before = capacity;
    array = xgrow(array, n, &capacity, sizeof *array);
    CHECK_MSG(capacity == (n == before ? MAX((size_t)4, 2 * n) : before), "%zu entries: room for %zu, before for %zu", n, capacity, before);
    grown += capacity != before;
    array[n] = (int)n;
  }
  for (size_t i = 0; i < 1000; i++) CHECK(array[i] == (int)i);
  CHECK_EQ(grown, 9);   // 4, 8, .. 1024
  free(array);
}

static void buffers_grow(void) {
  Buffer b = {0};
  buffer_append(&b, "", 0);
  CHECK(b.len == 0 && b.data && b.data[0] == 0);
  size_t sum = 0;
  for (int i = 0; i < 3000; i++) {
    char text[16];
    int n = snprintf(text, sizeof text, "%d,", i);
    if (i % 2) buffer_printf(&b, "%d,", i); else buffer_append(&b, text, (size_t)n);
    sum += (size_t)n;
    CHECK(b.len == sum && b.cap > b.len && b.data[b.len] == 0);
  }
  CHECK(!strncmp(b.data, "0,1,2,3,", 8) && !strcmp(b.data + b.len - 10, "2998,2999,"));
  CHECK_MSG(b.cap < 2 * b.len + 64, "%zu bytes for %zu", b.cap, b.len);
  buffer_append(&b, "a\0b", 3);
  CHECK(b.len == sum + 3 && b.data[sum + 1] == 0 && b.data[sum + 2] == 'b' && b.data[sum + 3] == 0);
  buffer_free(&b);
  CHECK(b.data == NULL && b.len == 0 && b.cap == 0);
  Buffer full = {.len = SIZE_MAX - 2};
  EXPECT_FAIL(EXIT_MACHINE, "overflows", buffer_append(&full, "abc", 3));
  EXPECT_FAIL(EXIT_MACHINE, "overflows", buffer_append(&full, "ab", 2));
}

// ---- files ----

static void files_are_read(void) {
  char *path = in_folder("file"), *missing = in_folder("missing");
  size_t n;
  for (size_t size = 0; size < 200000; size = size * 3 + 1) {
    char *data = xmalloc(size, 1);
    for (size_t i = 0; i < size; i++) data[i] = (char)draw(256);
    replace_file(path, data, size);
    char *again = read_file(path, "text", size, &n);
    CHECK(n == size && !memcmp(again, data, n) && again[n] == 0);
    if (size) EXPECT_FAIL(EXIT_REQUEST, "at most", read_file(path, "text", size - 1, &n));
    free(data);
    free(again);
  }
  EXPECT_FAIL(EXIT_REQUEST, "missing: cannot open tokenizer: No such file", read_file(missing, "tokenizer", 10, &n));
  EXPECT_FAIL(EXIT_REQUEST, "is a directory, a file is needed (text)", read_file(folder, "text", 1000, &n));
  EXPECT_FAIL(EXIT_MACHINE, "missing: cannot open tokenizer: Too many open files", (setrlimit(RLIMIT_NOFILE, &(struct rlimit){3, 3}), read_file(missing, "tokenizer", 10, &n)));
  EXPECT_FAIL(EXIT_MACHINE, "cannot list this directory: Too many open files", (setrlimit(RLIMIT_NOFILE, &(struct rlimit){3, 3}), list_directory(folder, &n)));
  // a pipe: size not known beforehand
  char *fifo = in_folder("fifo");
  CHECK(mkfifo(fifo, 0600) == 0);
  for (int too_long = 0; too_long < 2; too_long++) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
      int fd = open(fifo, O_WRONLY);
      char block[1000];
      memset(block, 'q', sizeof block);
      signal(SIGPIPE, SIG_IGN);
      for (int i = 0; i < 300; i++) if (!write_all(fd, block, sizeof block)) break;
      _exit(0);
    }
    if (too_long) {
      EXPECT_FAIL(EXIT_REQUEST, "more than 299999 bytes", read_file(fifo, "text", 299999, &n));
    } else {
      char *text = read_file(fifo, "text", 300000, &n);
      CHECK(n == 300000 && text[0] == 'q' && text[299999] == 'q' && text[n] == 0);
      free(text);
    }
    waitpid(child, NULL, 0);
  }
  unlink(fifo);
  unlink(path);
  free(fifo);
  free(path);
  free(missing);
}

static void replace_under_limit(const char *path) {
  struct rlimit limit = {100, 100};
  char zeros[7000] = {0};
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &limit);
  replace_file(path, zeros, sizeof zeros);
}

static void files_are_replaced_whole(void) {
  char *path = in_folder("whole"), *nowhere = in_folder("no/such/folder");
  replace_file(path, "first", 5);
  size_t n, count;
  // no byte more can be written: the old file stays, nothing is left beside it
  EXPECT_FAIL(EXIT_MACHINE, "cannot write 7000 bytes: File too large", replace_under_limit(path));
  char *text = read_file(path, "text", 100, &n);
  CHECK_STR(text, "first");
  free(text);
  char **names = list_directory(folder, &count);
  CHECK(count == 1 && !strcmp(names[0], "whole"));
  free_names(names, count);
  CHECK(!try_replace_file(nowhere, "x", 1) && errno == ENOENT);
  CHECK(try_replace_file(path, "second", 6));
  text = read_file(path, "text", 100, &n);
  CHECK_STR(text, "second");
  free(text);
  EXPECT_FAIL(EXIT_MACHINE, "No such file", replace_file(nowhere, "x", 1));
  // a directory stands in the way: rename fails, the temporary file goes
  char *way = in_folder("way"), *inside = in_folder("way/inside");
  make_directory(way);
  replace_file(inside, "x", 1);
  CHECK(!try_replace_file(way, "x", 1));
  names = list_directory(folder, &count);
  CHECK_EQ(count, 2);
  free_names(names, count);
  remove_tree(way);
  unlink(path);
  free(way);
  free(inside);
  free(path);
  free(nowhere);
}

static void files_are_replaced_here(void) {   // a name without a folder
  char *old = getcwd(NULL, 0);
  CHECK(chdir(folder) == 0);
  replace_file("here", "abc", 3);
  CHECK(file_exists("here"));
  unlink("here");
  CHECK(chdir(old) == 0);
  free(old);
}

static void pieces_are_read(void) {
  char *path = in_folder("pieces"), got[8] = {0};
  replace_file(path, "0123456789", 10);
  int fd = open(path, O_RDONLY);
  CHECK(pread_all(fd, got, 4, 3) && !memcmp(got, "3456", 4));
  CHECK(pread_all(fd, got, 3, 7) && !memcmp(got, "789", 3));
  CHECK(!pread_all(fd, got, 4, 7) && !pread_all(fd, got, 1, 10) && pread_all(fd, got, 0, 10));
  CHECK(!write_all(fd, "x", 1) && write_all(fd, "", 0));      // opened for reading
  close(fd);
  CHECK(!pread_all(-1, got, 1, 0));
  unlink(path);
  free(path);
}

static void broken_transfers_are_seen(void) {
  static const char text[] = "twenty bytes or more";
  char *path = in_folder("hard"), got[sizeof text] = "";
  size_t n;
  transfers = PIECES;
  interrupted = 0;
  replace_file(path, text, sizeof text);
  CHECK_EQ(interrupted, 14);                            // 7 pieces
  char *whole = read_file(path, "text", 100, &n);
  CHECK(n == sizeof text && !memcmp(whole, text, n));
  free(whole);
  transfers = WHOLE;                                    // what was written, read by a sound system
  int fd = open(path, O_RDONLY);
  CHECK(pread_all(fd, got, sizeof text, 0) && !memcmp(got, text, sizeof text));
  transfers = PIECES;
  memset(got, 0, sizeof got);
  CHECK(pread_all(fd, got, sizeof text - 5, 5) && !memcmp(got, text + 5, sizeof text - 5));
  transfers = BROKEN;
  CHECK(!pread_all(fd, got, 1, 0) && !write_all(fd, "x", 1));
  CHECK(!try_replace_file(path, "new", 3) && errno == EIO);
  transfers = WHOLE;                                    // the pipe of EXPECT_FAIL is read too
  EXPECT_FAIL(EXIT_MACHINE, "hard: reading text failed at byte 0: Input/output error", transfers = BROKEN; read_file(path, "text", 100, &n));
  close(fd);
  size_t count;
  char **names = list_directory(folder, &count);
  CHECK_EQ(count, 1);                                   // the temporary file is gone
  free_names(names, count);
  whole = read_file(path, "text", 100, &n);
  CHECK(n == sizeof text && !memcmp(whole, text, n));
  free(whole);
  unlink(path);
  free(path);
}

static void folders_are_listed_and_removed(void) {
  char *top = in_folder("top"), *deep = in_folder("top/b"), *link_path = in_folder("top/link"), *outside = in_folder("outside");
  replace_file(outside, "kept", 4);
  make_directory(top);
  make_directory(deep);
  static const char *const names[] = {"z", "B", "aa", "a", ".hidden", "10", "9"};
  for (size_t i = 0; i < ARRAY_LEN(names); i++) {
    for (int below = 0; below < 2; below++) {
      char *path = format("%s/%s", below ? deep : top, names[i]);
      replace_file(path, names[i], 1);
      free(path);
    }
  }
  CHECK(symlink(folder, link_path) == 0);
  size_t count;
  char **listed = list_directory(top, &count);
  static const char *const sorted[] = {".hidden", "10", "9", "B", "a", "aa", "b", "link", "z"};
  CHECK_EQ(count, ARRAY_LEN(sorted));
  for (size_t i = 0; i < MIN(count, ARRAY_LEN(sorted)); i++) CHECK_STR(listed[i], sorted[i]);
  free_names(listed, count);
  CHECK(file_exists(top) && is_directory(top) && !is_directory(outside) && file_exists(outside) && file_exists(link_path));
  CHECK(fsync_directory(top) && !fsync_directory(outside));
  EXPECT_FAIL(EXIT_REQUEST, "exists already", make_directory(top));
  EXPECT_FAIL(EXIT_REQUEST, "cannot list this directory", list_directory(outside, &count));
  remove_tree(top);
  CHECK(!file_exists(top) && file_exists(outside));      // the link was removed, not what it leads to
  remove_tree(top);                                      // absent: nothing happens
  remove_tree(outside);
  CHECK(!file_exists(outside) && !is_directory(outside));
  free(top);
  free(deep);
  free(link_path);
  free(outside);
}

// Threads that fail at once: one line, one exit.
static void *fails(void *gate) {
  pthread_barrier_wait(gate);
  fail(EXIT_MACHINE, "one of many");
}

static void fail_in_many_threads(void) {
  enum { THREADS = 8 };
  pthread_t threads[THREADS];
  pthread_barrier_t gate;
  pthread_barrier_init(&gate, NULL, THREADS);
  for (int i = 0; i < THREADS; i++) if (pthread_create(&threads[i], NULL, fails, &gate)) abort();
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

static void only_one_thread_fails(void) {
  for (int round = 0; round < 20; round++) EXPECT_FAIL(EXIT_MACHINE, "one of many", fail_in_many_threads());
  char *there = in_folder("there");
  make_directory(there);
  EXPECT_FAIL(EXIT_REQUEST, "cannot write 1 bytes: Is a directory", replace_file(there, "x", 1));
  rmdir(there);
  free(there);
}

// ---- digests ----

// RFC 3720 B.4 gives these; any cut of the bytes and any alignment give the same; one bit at a time as the definition has it.
static void crc32c_is_castagnoli(void) {
  uint8_t bytes[300];
  for (int i = 0; i < 32; i++) bytes[i] = 0;
  CHECK_EQ(crc32c(0, bytes, 32), 0x8A9136AAu);
  for (int i = 0; i < 32; i++) bytes[i] = 0xFF;
  CHECK_EQ(crc32c(0, bytes, 32), 0x62A8AB43u);
  for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)i;
  CHECK_EQ(crc32c(0, bytes, 32), 0x46DD794Eu);
  CHECK_EQ(crc32c(0, "123456789", 9), 0xE3069283u);
  CHECK_EQ(crc32c(0, "", 0), 0);
  for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)draw(256);
  for (int round = 0; round < 300; round++) {
    size_t from = draw(9), n = draw(sizeof bytes - 9), cut = draw(n + 1);
    uint32_t plain = ~0u;
    for (size_t i = 0; i < n; i++) {
      plain ^= bytes[from + i];
      for (int bit = 0; bit < 8; bit++) plain = plain >> 1 ^ (plain & 1 ? 0x82F63B78u : 0);
    }
    CHECK_EQ(crc32c(crc32c(0, bytes + from, cut), bytes + from + cut, n - cut), ~plain);
    CHECK_EQ(crc32c_plain(crc32c_plain(0, bytes + from, cut), bytes + from + cut, n - cut), ~plain);
  }
}

// FIPS 180-4's examples and, for every length around the padding's edges, any cut.
static void sha256_is_fips(void) {
  static const struct { const char *text; size_t times; const char *hex; } known[] = {
    {"", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    {"a", 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"}};
  uint8_t digest[32];
  char hex[65], other[65];
  for (size_t k = 0; k < ARRAY_LEN(known); k++) {
    Sha256 s;
    sha256_init(&s);
    for (size_t i = 0; i < known[k].times; i++) sha256_update(&s, known[k].text, strlen(known[k].text));
    sha256_final(&s, digest);
    sha256_hex(digest, hex);
    CHECK_STR(hex, known[k].hex);
  }
  uint8_t bytes[200];
  for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 7 + 1);
  for (size_t n = 0; n < sizeof bytes; n++) {
    Sha256 s;
    size_t first = n / 3, second = (n - first) / 2;
    sha256_init(&s);
    sha256_update(&s, bytes, first);
    sha256_update(&s, bytes + first, second);
    sha256_update(&s, bytes + first + second, n - first - second);
    sha256_final(&s, digest);
    sha256_hex(digest, hex);
    sha256_of(bytes, n, other);
    CHECK_STR(hex, other);
  }
  static const struct { size_t n; const char *hex; } edges[] = {   // of bytes[], by sha256sum
    {55, "16fa57a0a3423a715d594516339f36189d6b5f93754a9714fef202616a9fabfe"},
    {56, "c37b44e5f1b18554b36966f4f8e08bfbf3164c4b6c10374d12d89850892073c5"},
    {63, "bbba992d2c85af960fb2987a1fd05e0aa82a3db3c740dd8982a9e273b75e36a3"},
    {64, "66bd4633ed6f71c4ecfa4763bf7ba1c8ec7612de9aa6c0578a7b675207c71e0b"},
    {65, "9f7dc47107b750a1f3d35db5d9547f24ef40da5b731b9540d4f43710a154f6c9"},
    {119, "a3ed307b730fa77c07531300c6e4a282330011d4d4caf6bb7b63ae05950f4b66"},
    {120, "8e3b15d9fea7472655aa069620b7f8c2e55ee1499f763200a7515fe826e99d20"},
    {200, "397276ea1f65a10cbd90e9d622ab533cf9fc4e14056fc9915feb8f4a52d47dc7"}};
  for (size_t k = 0; k < ARRAY_LEN(edges); k++) {
    sha256_of(bytes, edges[k].n, hex);
    CHECK_STR(hex, edges[k].hex);
  }
  Sha256 s;
  uint32_t plain[8];
  uint8_t block[65];
  sha256_init(&s);
  memcpy(plain, s.h, sizeof plain);
  for (int round = 0; round < 1000; round++) {   // the plain way and the one that is taken here, block by block
    for (size_t i = 0; i < sizeof block; i++) block[i] = (uint8_t)draw(256);
    sha256_update(&s, block + round % 2, 64);
    sha256_block_plain(plain, block + round % 2);
    CHECK(!memcmp(plain, s.h, sizeof plain));
  }
}

// ---- small things ----

static void cursor_stays_inside(void) {
  static const uint8_t data[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const uint8_t *p = NULL;
  Cursor c = {data, sizeof data, 0};
  CHECK(cursor_take(&c, 4, &p) && p == data && c.pos == 4);
  CHECK(!cursor_take(&c, 6, &p) && c.pos == 4 && p == data && !cursor_take(&c, SIZE_MAX, &p));
  CHECK(cursor_take(&c, 0, &p) && cursor_take(&c, 5, &p) && p == data + 4 && c.pos == 9);
  CHECK(!cursor_take(&c, 1, &p) && cursor_take(&c, 0, &p));
  CHECK(load_u32le(data) == 0x04030201u && load_u64le(data + 1) == 0x0908070605040302u);
  uint8_t out[9] = {0};
  store_u64le(out, 0x0102030405060708u);
  store_u32le(out + 4, 0xA0B0C0D0u);
  static const uint8_t expected[9] = {8, 7, 6, 5, 0xD0, 0xC0, 0xB0, 0xA0, 0};
  CHECK(!memcmp(out, expected, sizeof out));
}

static void nearest_name(void) {
  static const char *const names[] = {"layers", "heads", "channels", "lr", "batch", "min-lr"};
#define NEAREST(word) nearest(word, names, ARRAY_LEN(names))
  CHECK_STR(NEAREST("layer"), "layers");
  CHECK_STR(NEAREST("layres"), "layers");
  CHECK_STR(NEAREST("hads"), "heads");
  CHECK_STR(NEAREST("headss"), "heads");
  CHECK_STR(NEAREST("chanels"), "channels");
  CHECK_STR(NEAREST("lr"), "lr");
  CHECK_STR(NEAREST("l"), "lr");
  CHECK_STR(NEAREST("minlr"), "min-lr");
  CHECK(NEAREST("completely-different") == NULL && nearest("x", names, 0) == NULL);
  char longer[100];
  memset(longer, 'a', sizeof longer);
  longer[99] = 0;
  CHECK(NEAREST(longer) == NULL);
  longer[64] = 0;                      // the longest that is compared
  const char *just[] = {longer};
  CHECK(nearest(longer, just, 1) == longer);
  CHECK(nearest("ab", (const char *const[]){"wxab", "wab"}, 2) != NULL);
  CHECK_STR(nearest("ab", (const char *const[]){"wxab"}, 1), "wxab");        // two changes are near, three are not
  CHECK(nearest("ab", (const char *const[]){"wxyab"}, 1) == NULL);
  CHECK_STR(nearest("abcdefgh", (const char *const[]){"abcd"}, 1), "abcd");  // half of a long word
  CHECK(nearest("abcdefgh", (const char *const[]){"abc"}, 1) == NULL);
  CHECK_STR(nearest("kitten", (const char *const[]){"mitten!", "sitting"}, 2), "mitten!");
  CHECK_STR(nearest("aa", (const char *const[]){"ab", "ac"}, 2), "ab");      // the first of equals
}

static void clock_runs(void) {
  double start = seconds_now();
  usleep(20000);
  double passed = seconds_now() - start;
  CHECK_MSG(passed >= 0.0199 && passed < 60, "20 ms of sleep took %g s", passed);   // never earlier; a busy machine: later
}

// ---- the machine ----

static void memory_is_known(void) {
  const char *from = NULL;
  size_t total = machine_memory_total(), available = machine_memory_available(&from);
  CHECK_MSG(available > 0 && available <= total, "%zu of %zu bytes available", available, total);
  CHECK(from && (!strcmp(from, "memory") || !strcmp(from, "cgroup limit")));
  CHECK(machine_memory_available(NULL) > 0);
  // 64 MiB are seen while they are in use, neither when they are only asked for nor when they are given back. Slack: the kernel
  // counts pages per processor and adds them up late, a few MiB.
  size_t size = (size_t)64 << 20, slack = (size_t)12 << 20, page = (size_t)sysconf(_SC_PAGESIZE), seen[4];
  seen[0] = machine_resident();
  void *block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(block != MAP_FAILED);
  if (block == MAP_FAILED) return;
  seen[1] = machine_resident();
  memset(block, 1, size);
  seen[2] = machine_resident();
  munmap(block, size);
  seen[3] = machine_resident();
  for (int i = 0; i < 4; i++) {
    size_t expected = seen[0] + (i == 2 ? size : 0);
    CHECK_MSG(seen[i] > 0 && seen[i] % page == 0 && seen[i] + slack >= expected && seen[i] <= expected + slack, "reading %d: %zu bytes, about %zu expected", i, seen[i], expected);
  }
}

static void bind_to_one(void) {
  cpu_set_t all, one;
  CPU_ZERO(&one);
  if (sched_getaffinity(0, sizeof all, &all)) _exit(1);
  for (int cpu = 0; cpu < CPU_SETSIZE && !CPU_COUNT(&one); cpu++) if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  if (sched_setaffinity(0, sizeof one, &one)) _exit(1);
  fail(machine_threads() == 1 && machine_cores() == 1 ? 4 : 5, "%d threads, %d cores", machine_threads(), machine_cores());
}

static void processors_are_counted(void) {
  int cores = machine_cores(), threads = machine_threads();
  CHECK_MSG(cores >= 1 && cores <= threads && threads <= sysconf(_SC_NPROCESSORS_CONF), "%d cores, %d threads", cores, threads);
  EXPECT_FAIL(4, "1 threads, 1 cores", bind_to_one());
  CHECK_EQ(machine_cores_among((int[]){0}, 1), 1);
  CHECK_EQ(machine_cores_among((int[]){-1, 0, 1 << 20, 0}, 4), 1);   // numbers that are none, one twice
  char name[128];
  memset(name, 'x', sizeof name);
  machine_processor(name);
  CHECK(memchr(name, 0, sizeof name) && *name && !strpbrk(name, "\n\t"));
}

// The texts that a user names: directories become their regular files, everything else stays.
static void texts_are_listed(void) {
  char *top = format("%s/texts", folder), *below = format("%s/a", top), *empty = format("%s/below", below), *file = format("%s/b", top), *other = format("%s/c", top);
  make_directory(top);
  make_directory(below);
  make_directory(empty);
  replace_file(other, "2", 1);
  replace_file(file, "1", 1);
  size_t n = 0;
  char **paths = list_texts((const char *const[]){"-", top, "missing", file}, 4, &n);
  CHECK_EQ(n, 5);
  const char *const wanted[] = {"-", file, other, "missing", file};
  for (size_t i = 0; i < n && i < 5; i++) CHECK_STR(paths[i], wanted[i]);
  free_names(paths, n);
  EXPECT_FAIL(EXIT_REQUEST, "a: 0 files in this directory (of 1 names)", list_texts((const char *const[]){file, below}, 2, &n));
  EXPECT_FAIL(EXIT_REQUEST, "below: 0 files in this directory (of 0 names)", list_texts((const char *const[]){empty}, 1, &n));
  remove_tree(top);
  free(top), free(below), free(empty), free(file), free(other);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  test_folder(folder, sizeof folder, "util");
  RUN(fail_says_one_line);
  RUN(fail_runs_its_handlers);
  RUN(handlers_keep_their_order);
  RUN(long_messages_are_cut);
  RUN(memory_is_checked);
  RUN(arrays_grow);
  RUN(buffers_grow);
  RUN(files_are_read);
  RUN(files_are_replaced_whole);
  RUN(files_are_replaced_here);
  RUN(pieces_are_read);
  RUN(broken_transfers_are_seen);
  RUN(folders_are_listed_and_removed);
  RUN(only_one_thread_fails);
  RUN(crc32c_is_castagnoli);
  RUN(sha256_is_fips);
  RUN(cursor_stays_inside);
  RUN(nearest_name);
  RUN(clock_runs);
  RUN(memory_is_known);
  RUN(processors_are_counted);
  RUN(texts_are_listed);
  if (rmdir(folder)) { printf("%s is not empty: %s\n", folder, strerror(errno)); test_failed++; }
  return TEST_END();
}
