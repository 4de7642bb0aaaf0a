// test_data.c: tests of dataloader.c (shards, order), documents.c (texts to documents), data.c and data_build.c (gpt data).
#include "data.h"
#include "dataloader.h"
#include "documents.h"
#include "json.h"
#include "rng.h"
#include "test.h"
#include "tokenizer.h"
#include "utf8.h"
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
static void write_shard(const char *path, const int32_t *ids, int64_t n, int width, bool ours, int64_t vocab, int32_t eot, char digit) {
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

static void leave(int code, void *ignored) { (void)ignored; _exit(code); }

// Exit code of a statement in a child whose words go nowhere. It leaves at once: a search for leaks in each of hundreds of
// children would take minutes.
#define EXIT_OF(code, statement) do { \
    fflush(NULL); pid_t pid_ = fork(); \
    if (pid_ == 0) { on_exit(leave, NULL); int null_ = open("/dev/null", O_WRONLY); dup2(null_, 1); dup2(null_, 2); { statement; } fflush(NULL); _exit(0); } \
    int status_; waitpid(pid_, &status_, 0); (code) = WIFEXITED(status_) ? WEXITSTATUS(status_) : 1000 + WTERMSIG(status_); \
  } while (0)

// ---- order ----

static void permutation_is_a_bijection(void) {
  for (int64_t n = 1; n <= 400; n += n < 70 ? 1 : 17) {
    for (uint64_t epoch = 0; epoch < 3; epoch++) {
      uint8_t *seen = xcalloc((size_t)n, 1);
      int64_t moved = 0;
      for (int64_t i = 0; i < n; i++) {
        int64_t p = data_permute(i, n, 99, epoch);
        CHECK(p >= 0 && p < n && !seen[p]);
        seen[p] = 1;
        moved += p != i;
      }
      CHECK_MSG(n < 32 || moved > n / 2, "n %lld: only %lld of all are moved", (long long)n, (long long)moved);
      free(seen);
    }
  }
  // far beyond 32 bits: still inside, and different for different places, seeds and epochs
  int64_t n = ((int64_t)1 << 52) + 12345, a = data_permute(5, n, 1, 0);
  CHECK(a >= 0 && a < n && a != data_permute(6, n, 1, 0) && a != data_permute(5, n, 2, 0) && a != data_permute(5, n, 1, 1));
}

// What these numbers are does not matter, that they never change does: a run resumed by a later version reads on in its order.
static void order_is_pinned(void) {
  static const int64_t permuted[8] = {324, 510, 691, 273, 599, 491, 392, 209};
  int32_t tokens[50], inputs[8], targets[8];
  for (int i = 0; i < 50; i++) tokens[i] = i;
  for (int i = 0; i < 8; i++) CHECK_EQ(data_permute(i, 1000, 1337, 3), permuted[i]);
  Dataloader *l = dataloader_open_tokens(tokens, 50, 50, -1);
  dataloader_arrange(l, 8, ORDER_STREAM, 1337);
  static const int32_t first_targets[3][2] = {{7, 8}, {39, 8}, {40, 8}};      // of samples 0, 7, 21: first place, count
  static const int64_t samples[3] = {0, 7, 21};
  for (int i = 0; i < 3; i++) {
    int64_t place, count = dataloader_targets(l, samples[i], &place);
    CHECK_EQ(place, first_targets[i][0]);
    CHECK_EQ(count, first_targets[i][1]);
    CHECK_EQ(dataloader_sample(l, samples[i], inputs, targets), count);
  }
  dataloader_close(l);
}

// One setting: reads every sample of some epochs, checks rows against the tokens, counts targets.
static void cover(Dataloader *l, const int32_t *tokens, int64_t n, int64_t T, int64_t epochs) {
  int64_t windows = dataloader_windows(l), counted = 0;
  int32_t *inputs = xmalloc((size_t)T, 4), *targets = xmalloc((size_t)T, 4), *again = xmalloc((size_t)(2 * T), 4);
  int *times = xcalloc((size_t)n, sizeof *times);
  for (int64_t k = 0; k < epochs * windows; k++) {
    int64_t place, filled = 0, count = dataloader_targets(l, k, &place);
    CHECK_EQ(dataloader_sample(l, k, inputs, targets), count);
    for (int64_t t = 0; t < T; t++) {
      CHECK(inputs[t] >= 0 && inputs[t] < dataloader_vocab(l));
      if (targets[t] == IGNORED_TARGET) { CHECK(filled == 0 || filled == count); continue; }
      int64_t at = place + filled++;
      CHECK(at >= 1 && at < n && targets[t] == tokens[at] && inputs[t] == tokens[at - 1]);
      if (at >= 1 && at < n) times[at]++;
    }
    CHECK_EQ(filled, count);
    counted += count;
    if ((k + 1) % windows) continue;
    for (int64_t i = 0; i < n; i++) CHECK_EQ(times[i], (i > 0) * (k + 1) / windows);
  }
  CHECK_EQ(counted, epochs * (n - 1));
  CHECK_EQ(dataloader_counted(l, 0, epochs * windows), counted);
  // any sample read alone, out of order, is the one read in order
  for (int i = 0; i < 5; i++) {
    int64_t k = draw(0, epochs * windows - 1);
    dataloader_sample(l, k, inputs, targets);
    for (int64_t other = draw(0, 3); other >= 0; other--) dataloader_sample(l, draw(0, epochs * windows), again, again + T);
    dataloader_sample(l, k, again, again + T);
    CHECK(!memcmp(inputs, again, (size_t)T * 4) && !memcmp(targets, again + T, (size_t)T * 4));
  }
  free(inputs);
  free(targets);
  free(again);
  free(times);
}

static void validation_covers(Dataloader *l, const int32_t *tokens, int64_t n, int64_t T) {
  int32_t *inputs = xmalloc((size_t)T, 4), *targets = xmalloc((size_t)T, 4);
  int64_t at = 1;
  for (int64_t w = 0; w < dataloader_sequential_count(l); w++) {
    int64_t count = dataloader_sequential(l, w, inputs, targets);
    CHECK(count >= 1 && count <= T);
    for (int64_t t = 0; t < T; t++) {
      if (t >= count) { CHECK(targets[t] == IGNORED_TARGET); continue; }
      CHECK(at < n && targets[t] == tokens[at] && inputs[t] == tokens[at - 1]);
      at++;
    }
  }
  CHECK_EQ(at, n);
  free(inputs);
  free(targets);
}

// The same tokens as shards of random sizes and a random width.
static Dataloader *as_shards(const int32_t *tokens, int64_t n, int64_t vocab, int32_t eot) {
  char *pattern = in_folder("cover_*.bin");
  int width = vocab > 65536 || draw(0, 1) ? 4 : 2, shards = 0;
  for (int64_t at = 0, take; at < n; at += take) {
    take = draw(1, n - at);
    char *path = format("%s/cover_%03d.bin", folder, shards++);
    write_shard(path, tokens + at, take, width, true, vocab, eot, 'a');
    free(path);
  }
  Dataloader *l = dataloader_open_shards(pattern, SHARD_HEADER, 0);
  for (int i = 0; i < shards; i++) {     // open files stay readable without a name
    char *path = format("%s/cover_%03d.bin", folder, i);
    unlink(path);
    free(path);
  }
  free(pattern);
  return l;
}

static void every_token_once(void) {
  for (int setting = 0; setting < 220; setting++) {
    int64_t n = draw(2, setting % 4 ? 300 : 3000), T = draw(1, setting % 3 ? 40 : 700), epochs = draw(1, 4);
    int64_t vocab = draw(0, 3) ? n : 70000 + n;
    int32_t eot = setting % 2 ? (int32_t)draw(0, vocab - 1) : -1;
    int32_t *tokens = xmalloc((size_t)n, 4);
    for (int64_t i = 0; i < n; i++) tokens[i] = eot >= 0 && draw(0, 20) == 0 ? eot : (int32_t)(vocab - n + i);
    if (eot >= 0) tokens[0] = eot;
    Dataloader *l = setting % 5 ? dataloader_open_tokens(tokens, n, vocab, eot) : as_shards(tokens, n, vocab, eot);
    CHECK_EQ(dataloader_tokens(l), n);
    for (DataOrder order = ORDER_STREAM; order <= (eot >= 0 ? ORDER_DOCUMENTS : ORDER_STREAM); order++) {
      dataloader_arrange(l, T, order, (uint64_t)draw(0, 1000));
      cover(l, tokens, n, T, epochs);
      validation_covers(l, tokens, n, T);
    }
    dataloader_close(l);
    free(tokens);
  }
}

// Documents over more tokens than are read at once: each token once, and the longest document is found across the seams.
static void documents_in_a_long_stream(void) {
  enum { N = (1 << 17) + 77, T = 1000, EOT = 9 };
  static const int64_t ends[] = {0, 1, 60000, 65535, 65536, 65540, 131071, 131072, N - 1};
  int32_t *tokens = xmalloc(N, sizeof *tokens);
  for (int64_t i = 0; i < N; i++) tokens[i] = (int32_t)(i % 9);
  for (size_t i = 0; i < ARRAY_LEN(ends); i++) tokens[ends[i]] = EOT;
  Dataloader *l = dataloader_open_tokens(tokens, N, 10, EOT);
  dataloader_arrange(l, T, ORDER_DOCUMENTS, 3);
  cover(l, tokens, N, T, 1);
  CHECK_EQ(dataloader_longest_document(l), 131071 - 65540);
  dataloader_close(l);
  for (int64_t i = 0; i < N - 1; i++) tokens[i] = 1;      // one document, which has not begun
  l = dataloader_open_tokens(tokens, N, 10, EOT);
  CHECK_EQ(dataloader_longest_document(l), 0);
  dataloader_close(l);
  l = dataloader_open_tokens(tokens, N, 10, -1);
  CHECK_EQ(dataloader_longest_document(l), 0);
  dataloader_close(l);
  free(tokens);
}

// Grid and order change from epoch to epoch and with the seed; documents start their rows.
static void epochs_differ(void) {
  enum { N = 1000, T = 16, EPOCHS = 12 };
  int32_t tokens[N], inputs[T], targets[T];
  int64_t starts[EPOCHS], shifts = 0;
  for (int i = 0; i < N; i++) tokens[i] = i % 25 ? i : 0;
  Dataloader *l = dataloader_open_tokens(tokens, N, N, 0);
  dataloader_arrange(l, T, ORDER_STREAM, 1);
  int64_t windows = dataloader_windows(l), same = 0, place, other;
  for (int64_t e = 0; e < EPOCHS; e++) {
    dataloader_targets(l, e * windows, &place);
    starts[e] = place % T;
    for (int64_t k = 0; k < windows && e > 0; k++) {
      dataloader_targets(l, k, &place);
      dataloader_targets(l, e * windows + k, &other);
      same += place == other;
    }
    for (int64_t f = 0; f < e; f++) if (starts[f] == starts[e]) { shifts--; break; }
    shifts++;
  }
  CHECK_MSG(shifts >= 3, "%lld different grids in %d epochs", (long long)shifts, EPOCHS);
  CHECK_MSG(same < EPOCHS * windows / 8, "%lld of %lld samples are the same in two epochs", (long long)same, (long long)(EPOCHS * windows));
  dataloader_arrange(l, 25, ORDER_DOCUMENTS, 1);
  CHECK_EQ(dataloader_windows(l), N / 25);
  CHECK_EQ(dataloader_longest_document(l), 25);
  dataloader_arrange(l, T, ORDER_DOCUMENTS, 1);
  CHECK_EQ(dataloader_windows(l), N / 25 * 2);       // 25 targets: 16 and 9
  CHECK_EQ(dataloader_sequential(l, 0, inputs, targets), 16);
  CHECK_EQ(inputs[0], 0);
  CHECK_EQ(dataloader_sequential(l, 1, inputs, targets), 9);
  CHECK_EQ(targets[8], 0);
  dataloader_close(l);
  l = dataloader_open_tokens(tokens, 1, N, 0);
  EXPECT_FAIL(EXIT_REQUEST, "1 token, at least 2", dataloader_arrange(l, T, ORDER_STREAM, 1));
  dataloader_close(l);
  l = dataloader_open_tokens(tokens + 1, 500, N, 0);
  EXPECT_FAIL(EXIT_REQUEST, "begins with the end-of-text token", dataloader_arrange(l, T, ORDER_DOCUMENTS, 1));
  dataloader_close(l);
}

// ---- shards ----

static void header_is_as_documented(void) {
  Shard s = {.width = 2, .count = 0x01020304, .documents = 5, .vocab = 50257, .eot = 50256, .crc = 0xa1b2c3d4};
  uint8_t h[SHARD_HEADER_BYTES];
  for (int i = 0; i < 64; i++) s.tokenizer[i] = "0123456789abcdef"[i % 16];
  shard_header(&s, h);
  static const uint8_t expected[104] = {
      0x88, 0xd8, 0x34, 0x01, 1, 0, 0, 0, 4, 3, 2, 1, [32] = 'G', 'P', 'T', 'C', 1, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0,
      [48] = 5, [56] = 0x51, 0xc4, 0, 0, 0x50, 0xc4, 0, 0, [64] = 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
      0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
      0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, [96] = 0xd4, 0xc3, 0xb2, 0xa1};
  CHECK(!memcmp(h, expected, sizeof expected));
  for (int i = 100; i < SHARD_HEADER_BYTES; i++) CHECK_EQ(h[i], 0);
  s.width = 4;
  s.count = 0x1122334455;
  s.eot = -1;
  shard_header(&s, h);
  CHECK_EQ(load_u32le(h), 20240801);
  CHECK_EQ(load_u32le(h + 4), 7);
  CHECK_EQ((int32_t)load_u32le(h + 8), -1);
  CHECK_EQ(load_u64le(h + 40), 0x1122334455);
  CHECK_EQ((int32_t)load_u32le(h + 60), -1);
}

// Ours as llm.c's loader reads them (header of 256 int32: magic, version, count; then exactly count uint16), its files and
// nanoGPT's as ours reads them.
static void other_programs_files(void) {
  int32_t ids[300], got[300];
  for (int i = 0; i < 300; i++) ids[i] = (int32_t)draw(0, 50256);
  char *path = in_folder("other.bin");
  write_shard(path, ids, 300, 2, true, 50257, 50256, 'b');
  FILE *f = fopen(path, "rb");
  int32_t header[256];
  uint16_t tokens[300];
  CHECK_EQ(fread(header, 4, 256, f), 256);
  CHECK(header[0] == 20240520 && header[1] == 1 && header[2] == 300);
  CHECK_EQ(fread(tokens, 2, 300, f), 300);
  CHECK(fgetc(f) == EOF);
  for (int i = 0; i < 300; i++) CHECK_EQ(tokens[i], ids[i]);
  fclose(f);
  for (int kind = 0; kind < 3; kind++) {      // llm.c's 16 bits, its 32 bits, nanoGPT's raw file
    write_shard(path, ids, 300, kind == 0 ? 2 : kind == 1 ? 4 : 0, false, 0, -1, '0');
    EXPECT_FAIL(EXIT_REQUEST, "do not say their vocabulary", dataloader_open_shards(path, kind == 2 ? SHARD_RAW_U16 : SHARD_HEADER, 0));
    Dataloader *l = dataloader_open_shards(path, kind == 2 ? SHARD_RAW_U16 : SHARD_HEADER, 50257);
    CHECK_EQ(dataloader_tokens(l), 300);
    CHECK_STR(dataloader_tokenizer_hash(l), "");
    dataloader_read(l, 0, 300, got);
    CHECK(!memcmp(ids, got, sizeof ids));
    dataloader_close(l);
  }
  EXPECT_FAIL(EXIT_REQUEST, "no whole number of 4-byte ids", { write_file(path, "12345", 5); shard_open(path, SHARD_RAW_U32); });
  unlink(path);
  free(path);
}

// Writes a good shard with bytes changed at `at` (or cut, or lengthened), and opens and reads all of it.
static void open_changed(const char *path, size_t at, const void *bytes, size_t n, int64_t grow) {
  int32_t ids[100], got[100];
  for (int i = 0; i < 100; i++) ids[i] = i;
  write_shard(path, ids, 100, 2, true, 1000, 999, 'c');
  int fd = open(path, O_RDWR);
  if (n && pwrite(fd, bytes, n, (off_t)at) != (ssize_t)n) abort();
  if (grow && ftruncate(fd, 1224 + grow)) abort();
  close(fd);
  Dataloader *l = dataloader_open_shards(path, SHARD_HEADER, 0);
  dataloader_read(l, 0, dataloader_tokens(l), got);
  dataloader_close(l);
}

static void wrong_shards_are_refused(void) {
  char *path = in_folder("wrong.bin");
  open_changed(path, 0, NULL, 0, 0);    // the good one is taken
#define WRONG(needle, at, bytes, n, grow) EXPECT_FAIL(EXIT_REQUEST, needle, open_changed(path, at, bytes, n, grow))
  WRONG("wrong.bin: byte 0: magic number 1195463252, a shard has 20240520 or 20240801", 0, "TRAG", 4, 0);
  WRONG("byte 4: version 2, 1 is needed", 4, "\2", 1, 0);
  WRONG("byte 4: version 1, 7 is needed with magic number 20240801", 0, "\xa1\xd9\x34\x01", 4, 0);
  WRONG("byte 8: count 101, but byte 40 says 100", 8, "\x65", 1, 0);
  WRONG("byte 1224: the file ends, 101 tokens need 1226 bytes: it was cut off", 8, "\x65\0\0\0" "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" "GPTC\1\0\0\0\x65", 33, 0);
  WRONG("byte 1224: 100 tokens end here, the file has 1229 bytes", 0, NULL, 0, 5);
  WRONG("byte 1223: the file ends, 100 tokens need 1224 bytes", 0, NULL, 0, -1);
  WRONG("700 bytes, a shard has at least 1024", 0, NULL, 0, -524);
  WRONG("byte 36: shard format version 9, this program reads version 1", 36, "\x09", 1, 0);
  WRONG("byte 48: -1 documents in 100 tokens", 48, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, 0);
  WRONG("byte 56: a vocabulary of 0, it must be", 56, "\0\0", 2, 0);
  WRONG("byte 60: end-of-text id 4071, the vocabulary has 1000", 61, "\x0f", 1, 0);
  WRONG("byte 1044: id 59914, the vocabulary has 1000", 1045, "\xea", 1, 0);
  WRONG("byte 1044: id 1000, the vocabulary has 1000", 1044, "\xe8\x03", 2, 0);
  WRONG("byte 60: end-of-text id 1000, the vocabulary has 1000", 60, "\xe8\x03", 2, 0);
  WRONG("more than a file can hold", 8, "\xff\xff\xff\xff" "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" "GPTC\1\0\0\0\0\0\0\0\0\0\0\x7f", 40, 0);
  WRONG("byte 40: 0 tokens, at least 1 is needed", 8, "\0\0\0\0" "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" "GPTC\1\0\0\0\0\0", 34, -200);
  WRONG("byte 8: -2 tokens, at least 1", 8, "\xfe\xff\xff\xff" "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" "no", 26, 0);
  EXPECT_FAIL(EXIT_REQUEST, "0 files match", dataloader_open_shards("/nowhere/at all/*.bin", SHARD_HEADER, 0));
  EXPECT_FAIL(EXIT_REQUEST, "no regular file", shard_open(folder, SHARD_HEADER));
  unlink(path);
  if (mkfifo(path, 0600)) abort();      // must not wait for a writer
  EXPECT_FAIL(EXIT_REQUEST, "no regular file", shard_open(path, SHARD_HEADER));
  unlink(path);
  free(path);
}

// The program's own pread() stands before libc's: a disk that, after so many readings, fails or gives what is one bit off.
static long sound_reads = LONG_MAX;
static bool disk_fails;
ssize_t pread(int fd, void *to, size_t n, off_t at) {
  const bool sound = sound_reads-- > 0;
  errno = EIO;
  if (!sound && disk_fails) return -1;
  ssize_t got = (ssize_t)syscall(SYS_pread64, fd, to, n, at);
  if (!sound && got > 0) *(uint8_t *)to ^= 1;
  return got;
}

static void a_failing_disk_is_the_machines(void) {
  int32_t ids[10] = {0};
  char *path = in_folder("failing.bin");
  write_shard(path, ids, 10, 2, true, 1000, 999, 'c');
  disk_fails = true;
  EXPECT_FAIL(EXIT_MACHINE, "failing.bin: reading the header failed: Input/output error", { sound_reads = 0; shard_open(path, SHARD_HEADER); });
  write_shard(path, ids, 10, 2, true, 1000, 999, '0');
  int code = EXIT_MACHINE;
  long reads = 0;
  for (; code && reads < 100; reads++) EXIT_OF(code, { sound_reads = reads; CHECK_DATA(path); });
  CHECK_EQ(code, 0);                     // the last of them is of the payload
  EXPECT_FAIL(EXIT_MACHINE, "failing.bin: byte 1024: reading 20 bytes failed", { sound_reads = reads - 2; CHECK_DATA(path); });
  disk_fails = false;
  unlink(path);
  free(path);
}

static void open_pair(void) {
  char pattern[250];
  snprintf(pattern, sizeof pattern, "%s/pair_*.bin", folder);
  dataloader_close(dataloader_open_shards(pattern, SHARD_HEADER, 1000));
}

static void mixed_shards_are_refused(void) {
  int32_t ids[10] = {0};
  char *a = in_folder("pair_a.bin"), *b = in_folder("pair_b.bin");
  write_shard(a, ids, 10, 2, true, 1000, 999, 'a');
  write_shard(b, ids, 10, 2, true, 1000, 999, 'a');
  open_pair();
  write_shard(b, ids, 10, 2, true, 1000, 999, 'b');
  EXPECT_FAIL(EXIT_REQUEST, "pair_b.bin: byte 64: made with tokenizer bbbbbbbbbbbb", open_pair());
  write_shard(b, ids, 10, 4, true, 1000, 999, 'a');
  EXPECT_FAIL(EXIT_REQUEST, "pair_b.bin: byte 0: 4-byte ids", open_pair());
  write_shard(b, ids, 10, 2, true, 900, 899, 'a');
  EXPECT_FAIL(EXIT_REQUEST, "byte 56: vocabulary 900", open_pair());
  write_shard(b, ids, 10, 2, false, 0, -1, 'a');
  EXPECT_FAIL(EXIT_REQUEST, "pair_a.bin: names its tokenizer", open_pair());
  EXPECT_FAIL(EXIT_REQUEST, "made for a vocabulary of 1000 ids, this tokenizer or model has 500", dataloader_open_shards(a, SHARD_HEADER, 500));
  unlink(a);
  unlink(b);
  free(a);
  free(b);
}

static void file_changed_while_read(void) {
  int32_t ids[100] = {0};
  char *path = in_folder("cut.bin");
  write_shard(path, ids, 100, 2, true, 1000, 999, 'c');
  Dataloader *l = dataloader_open_shards(path, SHARD_HEADER, 0);
  if (truncate(path, 1100)) abort();
  EXPECT_FAIL(EXIT_MACHINE, "cut.bin: byte 1044: reading 50 tokens failed: the file became shorter", dataloader_read(l, 10, 50, ids));
  dataloader_close(l);
  unlink(path);
  free(path);
}

// More shards than files may be open.
static void many_shards(void) {
  enum { SHARDS = 300 };
  int32_t id, got[SHARDS];
  for (int i = 0; i < SHARDS; i++) {
    char *path = format("%s/many_%03d.bin", folder, i);
    id = i;
    write_shard(path, &id, 1, 2, true, 1000, 999, 'c');
    free(path);
  }
  char *pattern = in_folder("many_*.bin"), *last = in_folder("many_299.bin");
  Dataloader *l = dataloader_open_shards(pattern, SHARD_HEADER, 0);
  dataloader_read(l, 0, SHARDS, got);
  for (int i = 0; i < SHARDS; i++) CHECK_EQ(got[i], i);
  write_shard(last, got, 2, 2, true, 1000, 999, 'c');      // another whole shard in its place
  EXPECT_FAIL(EXIT_MACHINE, "many_299.bin: byte 1024: reading 1 tokens failed", dataloader_read(l, 299, 1, got));
  if (truncate(last, 1024)) abort();
  EXPECT_FAIL(EXIT_REQUEST, "many_299.bin", dataloader_read(l, 299, 1, got));
  dataloader_close(l);
  for (int i = 0; i < SHARDS; i++) {
    char *path = format("%s/many_%03d.bin", folder, i);
    unlink(path);
    free(path);
  }
  free(pattern);
  free(last);
}

// Past 2^31 and 2^32 tokens, in a file with holes: the tokens around every edge, read by place and as samples.
static void counts_past_32_bits(void) {
  int64_t n = ((int64_t)1 << 32) + 100;
  static const int64_t edges[] = {1, (int64_t)1 << 30, (int64_t)1 << 31, ((int64_t)1 << 32) - 1, (int64_t)1 << 32, ((int64_t)1 << 32) + 98};
  for (int width = 2; width <= 4; width += 2) {
    char *path = in_folder("holes.bin");
    Shard s = {.width = width, .count = n, .vocab = 1000, .eot = -1, .tokenizer = "d"};
    uint8_t h[SHARD_HEADER_BYTES];
    memset(s.tokenizer, 'd', 64);
    shard_header(&s, h);
    CHECK_EQ((int32_t)load_u32le(h + 8), -1);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0666);
    if (!write_all(fd, h, sizeof h) || ftruncate(fd, SHARD_HEADER_BYTES + n * width)) {
      printf("  files of %lld bytes are not possible here: %s\n", (long long)n * width, strerror(errno));
    } else {
      for (size_t i = 0; i < ARRAY_LEN(edges); i++)
        for (int64_t at = edges[i] - 1; at <= edges[i]; at++) {
          uint8_t id = (uint8_t)(at % 251 + 1);
          if (pwrite(fd, &id, 1, (off_t)(SHARD_HEADER_BYTES + at * width)) != 1) abort();
        }
      Dataloader *l = dataloader_open_shards(path, SHARD_HEADER, 0);
      int32_t pair[2], inputs[64], targets[64];
      CHECK_EQ(dataloader_tokens(l), n);
      for (size_t i = 0; i < ARRAY_LEN(edges); i++) {
        dataloader_read(l, edges[i] - 1, 2, pair);
        CHECK_EQ(pair[0], (edges[i] - 1) % 251 + 1);
        CHECK_EQ(pair[1], edges[i] % 251 + 1);
      }
      dataloader_arrange(l, 64, ORDER_STREAM, 5);
      int64_t place, count = dataloader_sequential(l, dataloader_sequential_count(l) - 1, inputs, targets);
      CHECK_EQ(count, (n - 1) % 64 ? (n - 1) % 64 : 64);
      CHECK_EQ(dataloader_sequential(l, (((int64_t)1 << 32) - 64) / 64, inputs, targets), 64);
      CHECK_EQ(targets[62], (((int64_t)1 << 32) - 1) % 251 + 1);
      CHECK_EQ(targets[63], ((int64_t)1 << 32) % 251 + 1);
      for (int64_t k = 0; k < 1000; k++) CHECK(dataloader_targets(l, k * 100003, &place) >= 1 && place >= 1 && place < n);
      dataloader_close(l);
    }
    close(fd);
    unlink(path);
    free(path);
  }
}

// ---- texts ----

// Lines of words, runs of blanks, punctuation, characters of two to four bytes, broken bytes.
static void random_text(Buffer *b, size_t n, bool valid) {
  static const char *const parts[] = {
      "the", " cat", " Sat", "42", " 7", ".", ",\n", "\n", "\n\n", "  ", " \n", "'s", "é", " ö", "漢", "😀", "!\n", "x\ny", "\t", "\r\n", "\xc2\xa0", "\xe3\x80\x80 "};
  while (b->len < n) {
    const char *p = parts[draw(0, ARRAY_LEN(parts) - 1)];
    buffer_append(b, p, strlen(p));
    if (!valid && draw(0, 30) == 0) buffer_append(b, "\xe2\x82", (size_t)draw(1, 2));
  }
}

// Pieces put together are the text, and encoding them one by one gives the ids of the whole, for every kind of tokenizer.
static void pieces_encode_as_the_whole(void) {
  for (int kind = 0; kind < 5; kind++) {
    Buffer text = {0}, joined = {0};
    random_text(&text, 150000, kind != 2);
    TokenizerTrainer *trainer = tokenizer_trainer(kind == 0 ? PATTERN_GPT2 : kind == 1 ? PATTERN_GPT4 : PATTERN_NONE);
    tokenizer_trainer_add(trainer, text.data, kind < 2 ? 40000 : 400);
    Tokenizer *bpe = tokenizer_trainer_finish(trainer, 400, NULL, 0);
    Tokenizer *t = kind == 2 ? tokenizer_byte(false) : kind == 3 ? tokenizer_char_from_text("text", text.data, text.len, false) : bpe;
    DocumentCut cut = kind < 2 ? CUT_WORD : kind < 4 ? CUT_CHARACTER : CUT_NEVER;
    char *path = in_folder("pieces.txt");
    write_file(path, text.data, text.len);
    TokenBuffer whole = {0}, parts = {0};
    tokenizer_encode_or_fail(t, path, text.data, text.len, &whole, SPECIAL_NONE);
    Documents *d = documents_open((const char *const[]){path}, 1, folder);
    Piece p;
    int pieces = 0;
    documents_start(d, SPLIT_FILE, NULL, cut, 64);
    for (; documents_next(d, &p) == DOCUMENTS_PIECE; pieces++) {
      CHECK_EQ(p.at, joined.len);
      CHECK_EQ(p.starts, pieces == 0);
      CHECK_EQ(p.ends, joined.len + p.n == text.len);
      CHECK(!p.starts || p.n >= DOCUMENT_HEAD);
      buffer_append(&joined, p.text, p.n);
      tokenizer_encode_or_fail(t, path, p.text, p.n, &parts, SPECIAL_NONE);
    }
    CHECK_MSG(kind == 4 ? pieces == 1 : pieces > 100, "kind %d: %d pieces", kind, pieces);
    CHECK(joined.len == text.len && !memcmp(joined.data, text.data, text.len));
    CHECK_MSG(whole.count == parts.count && !memcmp(whole.ids, parts.ids, whole.count * 4), "kind %d", kind);
    documents_close(d);
    token_buffer_free(&whole);
    token_buffer_free(&parts);
    if (t != bpe) tokenizer_free(t);
    tokenizer_free(bpe);
    buffer_free(&text);
    buffer_free(&joined);
    unlink(path);
    free(path);
  }
}

// No piece ends inside a character, wherever the first one, which may not be short, has to end.
static void pieces_are_of_whole_characters(void) {
  char *path = in_folder("whole.txt");
  for (size_t before = 0; before < 4; before++) {
    Buffer text = {0};
    buffer_append(&text, "xyz", before);
    while (text.len < 3 * DOCUMENT_HEAD) buffer_append(&text, "😀", 4);
    write_file(path, text.data, text.len);
    Documents *d = documents_open((const char *const[]){path}, 1, folder);
    Piece p;
    int pieces = 0;
    documents_start(d, SPLIT_FILE, NULL, CUT_CHARACTER, 64);
    for (; documents_next(d, &p) == DOCUMENTS_PIECE; pieces++) CHECK_EQ((p.at + (int64_t)p.n - (int64_t)before) % 4, 0);
    CHECK(pieces > 1000);
    documents_close(d);
    buffer_free(&text);
  }
  unlink(path);
  free(path);
}

// Plain words: a piece ends at the first space from its length on, so memory does not grow with the text.
static void pieces_of_plain_words_are_short(void) {
  char *path = in_folder("plain.txt");
  Buffer text = {0};
  while (text.len < 300000) buffer_append(&text, "plain words ", 12);
  write_file(path, text.data, text.len);
  Documents *d = documents_open((const char *const[]){path}, 1, folder);
  Piece p;
  size_t all = 0;
  documents_start(d, SPLIT_FILE, NULL, CUT_WORD, 64);
  for (; documents_next(d, &p) == DOCUMENTS_PIECE; all += p.n)
    CHECK_MSG(p.n <= (p.starts ? 2 * DOCUMENT_HEAD : 2 * 64), "a piece of %zu bytes where about 64 were asked for", p.n);
  CHECK_EQ(all, text.len);
  documents_close(d);
  buffer_free(&text);
  unlink(path);
  free(path);
}

// All documents of two texts, each followed by |.
static void list_documents(const char *first, const char *second, DocumentSplit split, Buffer *out) {
  char *a = in_folder("a.txt"), *b = in_folder("b.txt");
  write_file(a, first, strlen(first));
  write_file(b, second, strlen(second));
  Documents *d = documents_open((const char *const[]){a, b}, 2, folder);
  Piece p;
  documents_start(d, split, "text", CUT_WORD, 3);
  DocumentsResult r;
  while ((r = documents_next(d, &p)) == DOCUMENTS_PIECE) {
    buffer_append(out, p.text, p.n);
    if (p.ends) buffer_append(out, "|", 1);
  }
  int code;
  if (r == DOCUMENTS_ERROR) buffer_printf(out, "error: %s", documents_error(d, &code) + strlen(folder));
  documents_close(d);
  unlink(a);
  unlink(b);
  free(a);
  free(b);
}

static void expect_documents(const char *expected, DocumentSplit split, const char *first, const char *second) {
  Buffer found = {0};
  list_documents(first, second, split, &found);
  CHECK_STR(found.data, expected);
  buffer_free(&found);
}

static void documents_are_found(void) {
  expect_documents("one\n\ntwo|three|", SPLIT_FILE, "one\n\ntwo", "three");
  expect_documents("one|", SPLIT_FILE, "one", "");
  expect_documents("one\n\ntwothree|", SPLIT_NONE, "one\n\ntwo", "three");
  expect_documents("one\nand a half|two|three|", SPLIT_BLANK_LINE, "\n \n\none\nand a half\n \t\r\n\n\ntwo", "three\n\n");
  expect_documents("a\n|b\t\"|c|", SPLIT_JSONL, "{\"text\": \"a\\n\", \"n\": 1}\n\n{\"text\":\"\"}\n{\"text\":\"b\\t\\\"\"}", "{\"x\":{},\"text\":\"c\"}\n");
  expect_documents("a|error: /a.txt: line 3: text is needed in the field \"text\" (--jsonl)", SPLIT_JSONL, "{\"text\":\"a\"}\n\n{\"text\": 5}\n", "x");
  expect_documents("error: /a.txt: line 1: an object is needed that has the field \"text\" (--jsonl)", SPLIT_JSONL, "{\"txt\":\"a\"}\n", "x");
  Buffer b = {0};
  list_documents("{\"text\":\"a\"}\n{\"text\": \n", "x", SPLIT_JSONL, &b);
  CHECK(!strncmp(b.data, "a|error: /a.txt: line 2 is no JSON:", 35));
  buffer_free(&b);
}

static void texts_are_refused(void) {
  char *missing = in_folder("missing.txt"), *empty = in_folder("empty.txt"), *dir = in_folder("empty");
  write_file(empty, "", 0);
  make_directory(dir);
  EXPECT_FAIL(EXIT_REQUEST, "missing.txt: cannot open text", documents_open((const char *const[]){missing}, 1, folder));
  EXPECT_FAIL(EXIT_REQUEST, "empty.txt: the text is empty: 0 bytes in 1 file", documents_open((const char *const[]){empty}, 1, folder));
  EXPECT_FAIL(EXIT_REQUEST, "0 files in this directory (of 0 names)", documents_open((const char *const[]){dir}, 1, folder));
  unlink(empty);
  rmdir(dir);
  free(missing);
  free(empty);
  free(dir);
}

// ---- gpt data build ----

// All tokens of a split of folder/name, in a new array.
static int32_t *read_split(const char *name, const char *split, int64_t *n) {
  char *pattern = format("%s/%s/%s_*.bin", folder, name, split);
  Dataloader *l = dataloader_open_shards(pattern, SHARD_HEADER, 0);
  *n = dataloader_tokens(l);
  int32_t *ids = xmalloc((size_t)*n, sizeof *ids);
  dataloader_read(l, 0, *n, ids);
  dataloader_close(l);
  free(pattern);
  return ids;
}

static void expect_split(const char *name, const char *split, const TokenBuffer *expected) {
  int64_t n;
  int32_t *ids = read_split(name, split, &n);
  CHECK_EQ(n, expected->count);
  CHECK(n == (int64_t)expected->count && !memcmp(ids, expected->ids, (size_t)n * sizeof *ids));
  free(ids);
}

static void remove_in_folder(const char *name) {
  char *path = in_folder(name);
  remove_tree(path);
  free(path);
}

// A text of several pieces, cut into training and validation, any number of threads: the ids are those of the two halves.
static void build_keeps_every_token(void) {
  char *text_path = in_folder("long.txt"), *out = in_folder("shards"), *pattern = in_folder("shards/*.bin");
  char *tokenizer_path = in_folder("shards/tokenizer.json");
  Buffer text = {0};
  random_text(&text, 3000000, true);
  write_file(text_path, text.data, text.len);
  size_t cut = (size_t)((double)text.len * 0.75);
  while (cut > 0 && ((uint8_t)text.data[cut] & 0xc0) == 0x80) cut--;
  Tokenizer *t = tokenizer_gpt2();
  TokenBuffer train = {0}, val = {0};
  token_buffer_append(&train, 50256);
  tokenizer_encode(t, text.data, cut, &train, SPECIAL_NONE);
  token_buffer_append(&train, 50256);
  tokenizer_encode(t, text.data + cut, text.len - cut, &val, SPECIAL_NONE);
  token_buffer_append(&val, 50256);
  for (int threads = 1; threads <= 3; threads += 2) {
    CHECK_EQ(BUILD_THREADS(text_path, "--tokenizer", "gpt2", "--out", out, "--val-fraction", "0.25", "--shard-tokens", "100k",
                           "--threads", threads == 1 ? "1" : "3"), 0);
    expect_split("shards", "train", &train);
    expect_split("shards", "val", &val);
    CHECK_EQ(CHECK_DATA(out, "--order", "on", "--context", "100"), 0);
    CHECK(strstr(said.data, "all whole") && strstr(said.data, "in each of 2 epochs"));
    CHECK(file_exists(tokenizer_path));
    if (threads == 1) remove_in_folder("shards");
  }
  CHECK_EQ(INFO(pattern, "--json"), 0);
  const char *line = strrchr(said.data, '{');
  char error[200];
  Json *j = line ? json_parse(line, strlen(line), error, sizeof error) : NULL;
  CHECK(j != NULL);
  CHECK_EQ(json_number(j, "tokens", -1), train.count + val.count);
  CHECK_EQ(json_number(j, "bytes", -1), text.len);
  CHECK_EQ(json_number(j, "vocab", -1), 50257);
  json_free(j);
  remove_in_folder("shards");
  remove_in_folder("long.txt");
  tokenizer_free(t);
  token_buffer_free(&train);
  token_buffer_free(&val);
  buffer_free(&text);
  free(text_path);
  free(out);
  free(pattern);
  free(tokenizer_path);
}

// Without a pattern a token may reach over blanks, so a long text must not be cut into pieces: the ids are those of the whole.
// Where validation would begin inside the first character of a document, all of the document is validation's, its end-of-text token too.
static void validation_begins_with_a_character(void) {
  char *a = in_folder("a.txt"), *b = in_folder("b.txt"), *out = in_folder("shards"), *train = in_folder("shards/train_000000.bin"), *val = in_folder("shards/val_000000.bin");
  write_file(a, "0123456789", 10);
  write_file(b, "\xc3\xa9" "1234567", 9);
  CHECK_EQ(BUILD(a, b, "--tokenizer", "byte", "--documents", "file", "--val-fraction", "0.42", "--out", out), 0);   // from byte 11 of 19
  Dataloader *l = dataloader_open_shards(train, SHARD_HEADER, 0);
  CHECK_EQ(dataloader_tokens(l), 1 + 10 + 1);
  dataloader_close(l);
  l = dataloader_open_shards(val, SHARD_HEADER, 0);
  CHECK_EQ(dataloader_tokens(l), 1 + 9 + 1);
  dataloader_close(l);
  remove_in_folder("shards");
  unlink(a);
  unlink(b);
  free(a);
  free(b);
  free(out);
  free(train);
  free(val);
}

static void build_cuts_nothing_without_a_pattern(void) {
  char *text_path = in_folder("long.txt"), *out = in_folder("shards"), *vocabulary = in_folder("none.json");
  Buffer text = {0}, json = {0};
  while (text.len < 2500000) buffer_append(&text, "tick tock, ", 11);
  write_file(text_path, text.data, text.len);
  TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_NONE);
  tokenizer_trainer_add(trainer, text.data, 1100);
  Tokenizer *t = tokenizer_trainer_finish(trainer, 276, NULL, 0);
  tokenizer_json(t, &json);
  write_file(vocabulary, json.data, json.len);
  TokenBuffer whole = {0};
  tokenizer_encode(t, text.data, text.len, &whole, SPECIAL_NONE);
  CHECK(whole.count < text.len / 11);      // tokens reach over words
  CHECK_EQ(BUILD(text_path, "--tokenizer", vocabulary, "--out", out, "--val-fraction", "0"), 0);
  expect_split("shards", "train", &whole);
  remove_in_folder("shards"), remove_in_folder("long.txt"), remove_in_folder("none.json");
  tokenizer_free(t);
  token_buffer_free(&whole);
  buffer_free(&text), buffer_free(&json);
  free(text_path), free(out), free(vocabulary);
}

// From 100 documents on their content decides: the same documents are chosen in any order and company.
static void validation_is_drawn_by_content(void) {
  char *lines = in_folder("docs.jsonl"), *out = in_folder("shards");
  uint8_t chosen[2][400];
  for (int backwards = 0; backwards < 2; backwards++) {
    Buffer b = {0};
    for (int i = 0; i < 400; i++) buffer_printf(&b, "{\"text\": \"%03d\"}\n", backwards ? 399 - i : i);
    write_file(lines, b.data, b.len);
    buffer_free(&b);
    CHECK_EQ(BUILD(lines, "--tokenizer", "byte", "--jsonl", "text", "--out", out, "--val-fraction", "0.2"), 0);
    for (int s = 0; s < 2; s++) {
      int64_t n;
      int32_t *ids = read_split("shards", s ? "val" : "train", &n);
      CHECK(ids[0] == 256 && ids[n - 1] == 256 && n % 4 == 1);
      for (int64_t i = 1; i + 3 < n; i += 4) chosen[backwards][(ids[i] - '0') * 100 + (ids[i + 1] - '0') * 10 + ids[i + 2] - '0'] = (uint8_t)s;
      free(ids);
    }
    remove_in_folder("shards");
  }
  int val = 0;
  for (int i = 0; i < 400; i++) { CHECK_EQ(chosen[0][i], chosen[1][i]); val += chosen[0][i]; }
  CHECK_EQ(val, 84);    // about 80 of 400; pinned: a folder that is built again is divided in the same way by every version
  remove_in_folder("docs.jsonl");
  free(lines);
  free(out);
}

// Documents stay whole, blank lines part them, and a stream is read like a file.
static void build_from_a_stream(void) {
  char *out = in_folder("shards");
  int ends[2], old = dup(0);
  if (pipe(ends)) abort();
  if (!write_all(ends[1], "ab\n\ncd\n\nef\ngh\n", 14)) abort();
  close(ends[1]);
  dup2(ends[0], 0);
  CHECK_EQ(BUILD("-", "--tokenizer", "char", "--documents", "blank-line", "--out", out, "--val-fraction", "0.3"), 0);
  dup2(old, 0);
  close(old);
  close(ends[0]);
  // characters: \n a b c d e f g h, then the end-of-text token, 9
  TokenBuffer train = {0}, val = {0};
  static const int32_t first[] = {9, 1, 2, 9, 3, 4, 9}, second[] = {9, 5, 6, 0, 7, 8, 9};
  for (size_t i = 0; i < ARRAY_LEN(first); i++) token_buffer_append(&train, first[i]);
  for (size_t i = 0; i < ARRAY_LEN(second); i++) token_buffer_append(&val, second[i]);
  expect_split("shards", "train", &train);
  expect_split("shards", "val", &val);
  token_buffer_free(&train);
  token_buffer_free(&val);
  remove_in_folder("shards");
  free(out);
}

// The program's own clock stands before libc's: where a test asks for it, every look at it is `clock_step` seconds later.
static double clock_step, clock_now;
int clock_gettime(clockid_t which, struct timespec *t) {
  if (!(clock_step > 0)) return (int)syscall(SYS_clock_gettime, which, t);
  clock_now += clock_step;
  *t = (struct timespec){(time_t)clock_now, (long)(1e9 * (clock_now - floor(clock_now)))};
  return 0;
}

// One thread: a batch has 4 MiB. `lines` = wanted lines of progress; every look at the clock is `step` seconds later than the last.
static void check_progress(const char *text, const char *out, double step, int lines) {
  int64_t all = 9500000;
  int found = 0;
  clock_now = 1000, clock_step = step;
  CHECK_EQ(BUILD(text, "--tokenizer", "byte", "--documents", "blank-line", "--out", out, "--val-fraction", "0.5"), 0);
  clock_step = 0;
  for (const char *line = said.data; line && !strncmp(line, "build ", 6); line = strchr(line, '\n'), line += line != NULL, found++) {
    double percent, rate, tokens, seconds = step * (found + 1);
    long long minutes, rest;
    CHECK_EQ(sscanf(line, "build %lf%%  %lf MB/s  %lfM tokens  eta %lld:%lld", &percent, &rate, &tokens, &minutes, &rest), 5);
    double done = percent / 100 * (double)all, left = seconds * ((double)all - done) / done;
    // what is printed is rounded: the share to a percent, the rate to 0.1 MB/s
    CHECK_NEAR(1e6 * rate * seconds, done, 0.005 * (double)all + 0.05e6 * seconds, "%.0f%% after %g s", percent, seconds);
    CHECK_NEAR(60.0 * (double)minutes + (double)rest, left, 1 + 0.01 * seconds * (double)all * (double)all / done / done, "time left at %.0f%%", percent);
    CHECK(rest < 60);
    CHECK_NEAR(1e6 * tokens, done, 0.005 * (double)all + 1e6, "tokens at %.0f%%", percent);
    CHECK(found + 1 < lines ? percent < 95 && percent > 40 * (found + 1) : percent == 100);
  }
  CHECK_EQ(found, lines);
  remove_in_folder("shards");
}

static void progress_is_said_every_five_seconds(void) {
  char *text = in_folder("progress.txt"), *out = in_folder("shards"), *bytes = xmalloc(9500000, 1);
  for (size_t i = 0; i < 9500000; i++) bytes[i] = i % 100 > 97 ? '\n' : (char)('a' + (i / 100 >> i % 20 & 1));   // documents differ
  write_file(text, bytes, 9500000);
  check_progress(text, out, 100, 3);      // batches of 4, 4 and 1.1 MiB
  check_progress(text, out, 1, 0);
  free(bytes);
  unlink(text);
  free(text);
  free(out);
}

// The cut falls into a character of a text that is one piece: it moves to its start, and no end-of-text token comes of it.
// With over 65,536 characters ids have 4 bytes.
static void build_of_characters(void) {
  char *text = in_folder("wide.txt"), *out = in_folder("shards");
  for (int wide = 0; wide < 2; wide++) {
    Buffer b = {0};
    int32_t count = wide ? 70000 : 10;
    for (int32_t i = 0; i < count; i++) {
      char utf8[4];
      buffer_append(&b, utf8, (size_t)utf8_encode(0x10000 + (uint32_t)i, utf8));
    }
    write_file(text, b.data, b.len);
    CHECK_EQ(BUILD(text, "--tokenizer", "char", "--out", out, "--val-fraction", "0.45"), 0);   // of 10 x 4 bytes: 22 train
    TokenBuffer sides[2] = {{0}, {0}};
    for (int32_t i = 0; i < count; i++) token_buffer_append(&sides[i >= (wide ? 38500 : 5)], i);
    expect_split("shards", "train", &sides[0]);
    expect_split("shards", "val", &sides[1]);
    CHECK_EQ(CHECK_DATA(out), 0);
    CHECK(strstr(said.data, wide ? "tokens of 4 bytes" : "tokens of 2 bytes"));
    for (int i = 0; i < 2; i++) token_buffer_free(&sides[i]);
    buffer_free(&b);
    remove_in_folder("shards");
  }
  write_file(text, "\xe4\xb8\xad\xe4\xb8\xad", 6);
  CHECK_EQ(BUILD(text, "--tokenizer", "gpt2", "--out", out, "--val-fraction", "0.4"), 0);
  int64_t n;
  int32_t *val = read_split("shards", "val", &n);
  CHECK(val[0] != 50256 && val[n - 1] == 50256);
  free(val);
  remove_in_folder("shards");
  remove_in_folder("wide.txt");
  free(text);
  free(out);
}

static size_t names_in(const char *name, const char *needle) {
  size_t count, found = 0;
  char *path = in_folder(name);
  if (!is_directory(path)) { free(path); return 0; }
  char **names = list_directory(path, &count);
  for (size_t i = 0; i < count; i++) found += strstr(names[i], needle) != NULL;
  free_names(names, count);
  free(path);
  return found;
}

// In the child, files may not grow past 100 KB.
// Names that end in `limited` and are given before the disk is said to be full; -1: any number.
static const char *limited = ".bin";
static int names_left = -1, shards_until_signal = -1;
int rename(const char *from, const char *to) {
  size_t n = strlen(to), end = strlen(limited);
  if (n > 4 && !strcmp(to + n - 4, ".bin") && shards_until_signal >= 0 && shards_until_signal-- == 0) raise(SIGTERM);
  if (names_left >= 0 && n > end && !strcmp(to + n - end, limited) && names_left-- == 0) { errno = ENOSPC; return -1; }
  return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

static void build_on_a_full_disk(const char *text, const char *out) {
  struct rlimit most = {.rlim_cur = 100000, .rlim_max = 100000};
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &most);
  BUILD(text, "--tokenizer", "byte", "--out", out, "--shard-tokens", "80k", "--val-fraction", "0");
}

// A refused request leaves nothing; a full disk leaves whole shards and the same command goes on.
static void build_leaves_nothing_half(void) {
  char *text = in_folder("t.txt"), *lines = in_folder("t.jsonl"), *out = in_folder("shards"), *deep = in_folder("no/shards");
  char *json = in_folder("char.json");
  Buffer b = {0}, j = {0};
  for (int i = 0; i < 3000; i++) buffer_printf(&b, "{\"text\": \"document %d\"}\n", i);
  buffer_printf(&b, "{\"text\": 7}\n");
  write_file(lines, b.data, b.len);
  EXPECT_FAIL(EXIT_REQUEST, "t.jsonl: line 3001: text is needed", BUILD(lines, "--tokenizer", "gpt2", "--jsonl", "text", "--out", out, "--shard-tokens", "1000"));
  CHECK(!is_directory(out));
  b.len = 0;
  for (int i = 0; i < 300; i++) buffer_printf(&b, "{\"text\": \"document %d\", \"title\": \"number %d\"}\n", i, i);
  write_file(lines, b.data, b.len);
  int code;
  EXIT_OF(code, { names_left = 1; BUILD(lines, "--tokenizer", "byte", "--jsonl", "text", "--out", out, "--shard-tokens", "1000"); });
  CHECK_EQ(code, EXIT_MACHINE);
  EXPECT_FAIL(EXIT_REQUEST, "interrupted build of another request", BUILD(lines, "--tokenizer", "byte", "--jsonl", "title", "--out", out, "--shard-tokens", "1000"));
  remove_in_folder("shards");
  write_file(text, "abc\nabd abq", 11);
  Tokenizer *t = tokenizer_char_from_text("text", "abcd \n", 6, false);
  tokenizer_json(t, &j);
  write_file(json, j.data, j.len);
  tokenizer_free(t);
  EXPECT_FAIL(EXIT_REQUEST, "t.txt: byte 10: the tokenizer has no id", BUILD(text, "--tokenizer", json, "--out", out, "--val-fraction", "0"));
  CHECK(!is_directory(out));
  EXPECT_FAIL(EXIT_REQUEST, "--tokenizer is missing", BUILD(text, "--out", out));
  EXPECT_FAIL(EXIT_REQUEST, "--out is missing", BUILD(text, "--tokenizer", "byte"));
  EXPECT_FAIL(EXIT_REQUEST, "needs a TEXT", BUILD("--tokenizer", "byte", "--out", out));
  EXPECT_FAIL(EXIT_REQUEST, "is missing; make it first", BUILD(text, "--tokenizer", "byte", "--out", deep));
  EXPECT_FAIL(EXIT_REQUEST, "other files, an empty or new folder is needed", BUILD(text, "--tokenizer", "byte", "--out", folder));
  char *one = in_folder("one"), *inside = in_folder("one/file");
  make_directory(one);
  write_file(inside, "x", 1);
  EXPECT_FAIL(EXIT_REQUEST, "holds 1 other files", BUILD(text, "--tokenizer", "byte", "--out", one));
  remove_in_folder("one");
  free(one);
  free(inside);
  EXPECT_FAIL(EXIT_REQUEST, "is a file, --out needs a folder", BUILD(text, "--tokenizer", "byte", "--out", text));
  b.len = 0;
  random_text(&b, 300000, true);
  write_file(text, b.data, b.len);
  EXPECT_FAIL(EXIT_MACHINE, "cannot write", build_on_a_full_disk(text, out));
  CHECK_EQ(names_in("shards", ".bin"), 0);
  CHECK_EQ(names_in("shards", "build.json"), 1);
  // something bars the way of the third shard: two are whole and stay
  char *bar = in_folder("shards/train_000002.bin.tmp");
  make_directory(bar);
  EXPECT_FAIL(EXIT_MACHINE, "2 finished shards stay",
              BUILD(text, "--tokenizer", "byte", "--out", out, "--shard-tokens", "80k", "--val-fraction", "0"));
  CHECK_EQ(names_in("shards", ".bin"), 3);
  CHECK_EQ(CHECK_DATA(out), 0);
  CHECK(strstr(said.data, "2 shards, 160000 tokens: all whole"));
  rmdir(bar);
  free(bar);
  EXPECT_FAIL(EXIT_REQUEST, "interrupted build of another request", BUILD(text, "--tokenizer", "byte", "--out", out, "--val-fraction", "0"));
  CHECK_EQ(BUILD(text, "--tokenizer", "byte", "--out", out, "--shard-tokens", "80k", "--val-fraction", "0"), 0);
  CHECK(strstr(said.data, "an interrupted build, goes on behind 2 finished shards"));
  CHECK_EQ(names_in("shards", "train_"), (b.len + 79999) / 80000);
  CHECK_EQ(names_in("shards", ".tmp"), 0);
  EXPECT_FAIL(EXIT_REQUEST, "finished build of this very request",
              BUILD(text, "--tokenizer", "byte", "--out", out, "--shard-tokens", "80k", "--val-fraction", "0"));
  remove_in_folder("shards");
  remove_in_folder("t.txt");
  remove_in_folder("t.jsonl");
  remove_in_folder("char.json");
  buffer_free(&b);
  buffer_free(&j);
  free(text);
  free(lines);
  free(out);
  free(deep);
  free(json);
}

static void expect_same_folder(const char *a, const char *b, const char *how) {
  size_t in_a, in_b;
  char **names = list_directory(a, &in_a), **others = list_directory(b, &in_b);
  CHECK_MSG(in_a == in_b, "%s: %zu files, %zu in the other", how, in_a, in_b);
  for (size_t i = 0; i < MIN(in_a, in_b); i++) {
    size_t n, m;
    char *one = format("%s/%s", a, names[i]), *two = format("%s/%s", b, others[i]);
    char *left = read_file(one, "file", 1 << 24, &n), *right = read_file(two, "file", 1 << 24, &m);
    CHECK_MSG(!strcmp(names[i], others[i]) && n == m && !memcmp(left, right, n), "%s: %s is not %s", how, two, one);
    free(one);
    free(two);
    free(left);
    free(right);
  }
  free_names(names, in_a);
  free_names(others, in_b);
}

// A build that is stopped behind each of its shards goes on, one shard further every time, to the bytes of one that was never
// stopped; had it begun anew it would never come to its end. The text is changed meanwhile: refused, and what is there stays.
static void stopped_builds_go_on(void) {
  char *text = in_folder("t.txt"), *whole = in_folder("whole"), *out = in_folder("shards");
  const char *const ways[][4] = {{"byte", "1500", "0", "blank-line"}, {"gpt2", "500", "0.3", "blank-line"}, {"byte", "1k", "0.3", "file"},
                                 {"shards.json", "1500", "0.3", "blank-line"},      // no end-of-text token
                                 {"byte", "500", "0.4", "blank-line"}};             // too few documents for a hash: validation is the last of them
  enum { FEW_DOCUMENTS = 4 };                                                       // that way
  Buffer b = {0}, j = {0};
  for (int i = 0; i < 130; i++) {
    random_text(&b, b.len + (size_t)draw(1, 150), true);
    buffer_printf(&b, "\n\n");
  }
  Tokenizer *t = tokenizer_byte(false);
  char *plain = in_folder("shards.json");
  tokenizer_json(t, &j);
  write_file(plain, j.data, j.len);
  tokenizer_free(t);
  for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
    const char *const *w = ways[way], *tokenizer = strcmp(w[0], "shards.json") ? w[0] : plain;
    if (way == FEW_DOCUMENTS) b.len /= 2;
    write_file(text, b.data, b.len);
#define AGAIN(to) BUILD(text, "--tokenizer", tokenizer, "--shard-tokens", w[1], "--val-fraction", w[2], "--documents", w[3], "--out", to)
    CHECK_EQ(AGAIN(whole), 0);
    int code = EXIT_MACHINE, stops = 0;
    for (; code == EXIT_MACHINE && stops < 40; stops++) {
      EXIT_OF(code, { names_left = 1; AGAIN(out); });
      if (code == EXIT_MACHINE) CHECK_EQ(names_in("shards", ".bin"), stops + 1);
      if (stops == 1 && code == EXIT_MACHINE) {
        for (size_t i = 0; i < b.len; i++) b.data[i] = (char)(b.data[i] == 't' ? 'T' : b.data[i]);
        write_file(text, b.data, b.len);
        EXPECT_FAIL(EXIT_REQUEST, "the text has changed since this build was interrupted", AGAIN(out));
        CHECK_EQ(names_in("shards", ".bin"), 2);
        for (size_t i = 0; i < b.len; i++) b.data[i] = (char)(b.data[i] == 'T' ? 't' : b.data[i]);   // random_text writes no T
        write_file(text, b.data, b.len);
      }
    }
    CHECK_EQ(code, 0);
    CHECK_MSG(stops >= 4, "way %zu was stopped %d times only", way, stops - 1);
    expect_same_folder(whole, out, w[0]);
    remove_in_folder("shards");
    // the record of the second shard cannot be written, then not even the next build's first one: shards stay
    EXIT_OF(code, { limited = "build.json"; names_left = 2; AGAIN(out); });
    CHECK_EQ(code, EXIT_MACHINE);
    EXIT_OF(code, { limited = "build.json"; names_left = 0; AGAIN(out); });
    CHECK_EQ(code, EXIT_MACHINE);
    CHECK_EQ(names_in("shards", ".bin"), 2);
    CHECK_EQ(AGAIN(out), 0);
    expect_same_folder(whole, out, "record not written");
    remove_in_folder("shards");
    // a signal: the shards that are finished stay
    EXIT_OF(code, { shards_until_signal = 1; AGAIN(out); });
    CHECK_EQ(code, 128 + SIGTERM);
    CHECK(names_in("shards", ".bin") >= 2);
    CHECK_EQ(AGAIN(out), 0);
    expect_same_folder(whole, out, "signal");
    remove_in_folder("shards");
    remove_in_folder("whole");
  }
  unlink(plain);
  unlink(text);
  buffer_free(&b);
  buffer_free(&j);
  free(plain);
  free(text);
  free(whole);
  free(out);
}

// ---- gpt data check ----

// A small build of two shards with their tokenizer.json.
static char *small_build(void) {
  char *text = in_folder("small.txt"), *out = in_folder("small");
  Buffer b = {0};
  buffer_printf(&b, "one\n\ntwo\n\n");
  while (b.len < 700) buffer_printf(&b, "three");
  write_file(text, b.data, b.len);
  CHECK_EQ(BUILD(text, "--tokenizer", "byte", "--documents", "blank-line", "--out", out, "--shard-tokens", "500", "--val-fraction", "0"), 0);
  buffer_append(&said, "", 1);
  CHECK(strstr(said.data, "train  700 tokens, 3 documents, in 2 shards of 2-byte ids\n") == said.data && strstr(said.data, "small/train_*.bin'\n"));
  buffer_free(&b);
  unlink(text);
  free(text);
  return out;
}

// Order: windows, and documents where the stream begins with an end-of-text token; a stream that is not what it was is seen.
static void check_counts_the_order(void) {
  char *out = small_build(), *shards = in_folder("small/*.bin"), *raw = in_folder("order.bin");
  CHECK_EQ(CHECK_DATA(out, "--order", "on", "--context", "5", "--batch", "4", "--epochs", "3", "--seed", "7", "--ranks", "3"), 0);
  CHECK(strstr(said.data, "order of windows: context 5, batch 4, 3 ranks, seed 7: 141 samples, 11.8 steps an epoch; in each of 3 epochs every one of 699 targets once\n"
                          "order of documents: context 5, batch 4, 3 ranks, seed 7: 141 samples, 11.8 steps an epoch; in each of 3 epochs every one of 699 targets once\n"));
  write_shard(raw, (const int32_t[]){3, 1, 2}, 3, 2, true, 10, 9, 'a');
  CHECK_EQ(CHECK_DATA(raw, "--order", "on"), 0);
  CHECK(strstr(said.data, "order of windows: context 1024, batch 8, 1 rank, seed 1337: 1 samples, 0.1 steps an epoch; in each of 2 epochs every one of 2 targets once\n"));
  CHECK(!strstr(said.data, "order of documents"));
  write_shard(raw, (const int32_t[]){3, 1, 2}, 3, 2, false, 10, 9, 'a');
  // what is read changes: at the latest, the last sample
  int code = EXIT_NO;
  long reads = 0;
  for (; code && reads < 100; reads++)
    EXIT_OF(code, { sound_reads = reads; CHECK_DATA(raw, "--order", "on", "--epochs", "1", "--context", "2"); });
  CHECK_EQ(code, 0);
  EXPECT_FAIL(EXIT_NO, "order: a row of epoch 0 does not hold what the stream has there",
              { sound_reads = reads - 2; CHECK_DATA(raw, "--order", "on", "--epochs", "1", "--context", "2"); });
  unlink(raw);
  remove_in_folder("small");
  free(out);
  free(shards);
  free(raw);
}

// What a person sees of the data.
static void info_shows_the_data(void) {
  char *text = in_folder("info.txt"), *out = in_folder("info");
  write_file(text, "one\n\ntwo two\n\nthree three three\n", 32);
  CHECK_EQ(BUILD(text, "--tokenizer", "byte", "--documents", "blank-line", "--out", out, "--val-fraction", "0"), 0);
  CHECK_EQ(INFO(out), 0);
  static const char expected[] =
    "shards     1\n"
    "tokens     31\n"
    "documents  3\n"
    "vocabulary 257, end-of-text id 256\n"
    "tokenizer  79f7f2cc332e5789bef44fb9300e017a38b13f25979691b6dc99c6be73fdc648\n"
    "text       27 bytes, 1.000 bytes a token\n"
    "used       9 of 257 ids\n"
    "most frequent: id, count, share, text\n"
    "      101             7  22.581 %  \"e\"\n"
    "      116             5  16.129 %  \"t\"\n"
    "      256             4  12.903 %  \"<|endoftext|>\"\n"
    "       32             3   9.677 %  \" \"\n"
    "      104             3   9.677 %  \"h\"\n"
    "      111             3   9.677 %  \"o\"\n"
    "      114             3   9.677 %  \"r\"\n"
    "      119             2   6.452 %  \"w\"\n"
    "      110             1   3.226 %  \"n\"\n"
    "longest\n"
    "      256             4  12.903 %  \"<|endoftext|>\"\n"
    "      101             7  22.581 %  \"e\"\n"
    "      116             5  16.129 %  \"t\"\n"
    "       32             3   9.677 %  \" \"\n"
    "      104             3   9.677 %  \"h\"\n"
    "      111             3   9.677 %  \"o\"\n"
    "      114             3   9.677 %  \"r\"\n"
    "      119             2   6.452 %  \"w\"\n"
    "tokens of a document: mean 9.0, longest 17\n"
    "           2 .. 3                    1  ##################################################\n"
    "           4 .. 7                    1  ##################################################\n"
    "           8 .. 15                   0  \n"
    "          16 .. 31                   1  ##################################################\n"
    "it begins:\n"
    "  | <|endoftext|>one<|endoftext|>two two<|endoftext|>three three three<|endoftext|>\n";
  buffer_append(&said, "", 1);
  CHECK_STR(said.data, expected);
  remove_in_folder("info");
  unlink(text);
  free(text);
  free(out);
}

static void check_names_the_byte(void) {
  char *out = small_build(), *shard = in_folder("small/train_000000.bin");
  size_t n;
  char *good = read_file(shard, "shard", 1 << 20, &n), *bad = xmalloc(n + 10, 1);
#define DAMAGED(code, needle, at, value, length) do { \
    memcpy(bad, good, n); bad[n] = 0; \
    bad[at] = (char)(value); \
    write_file(shard, bad, length); \
    EXPECT_FAIL(code, needle, CHECK_DATA(out)); } while (0)
  DAMAGED(EXIT_NO, "bytes 1024 to 2023: checksum", 1500, good[1500] ^ 1, n);
  DAMAGED(EXIT_NO, "byte 1024: id 257, the vocabulary has 257", 1024, 1, n);
  DAMAGED(EXIT_NO, "byte 1026: id 367, the vocabulary has 257", 1027, 1, n);
  DAMAGED(EXIT_NO, "byte 2024: 500 tokens end here, the file has 2025 bytes", 0, good[0], n + 1);
  DAMAGED(EXIT_NO, "byte 2000: the file ends, 500 tokens need 2024 bytes", 0, good[0], n - 24);
  DAMAGED(EXIT_NO, "byte 700: 3, it must be 0", 700, 3, n);
  DAMAGED(EXIT_NO, "byte 48: 2 documents, but 3 end-of-text tokens", 48, 2, n);
  DAMAGED(EXIT_NO, "byte 64: made with tokenizer", 70, good[70] ^ 1, n);
  DAMAGED(EXIT_NO, "(1 of 2 shards damaged)", 1500, good[1500] ^ 1, n);
  DAMAGED(EXIT_REQUEST, "byte 0: magic number", 0, 'x', n);
  DAMAGED(EXIT_REQUEST, "byte 36: shard format version 3", 36, 3, n);
  write_file(shard, good, n);
  CHECK_EQ(CHECK_DATA(out), 0);
  EXPECT_FAIL(EXIT_REQUEST, "0 files match", CHECK_DATA("/nowhere/*.bin"));
  free(good);
  free(bad);
  remove_in_folder("small");
  free(out);
  free(shard);
}

// Any change of any byte, any other length: exit 1 or 2, and no reader ever crashes.
static void malformed_files(void) {
  char *out = small_build(), *shard = in_folder("small/train_000000.bin");
  size_t n;
  char *good = read_file(shard, "shard", 1 << 20, &n), *bad = xmalloc(n + 100, 1);
  for (int i = 0; i < 300; i++) {
    size_t length = n;
    memcpy(bad, good, n);
    memset(bad + n, (int)draw(0, 255), 100);
    for (int64_t changes = i % 3 ? draw(1, 4) : 0; changes > 0; changes--) {
      size_t at = (size_t)draw(0, draw(0, 1) ? 103 : (int64_t)n - 1);
      bad[at] = (char)(bad[at] ^ (1 << draw(0, 7)));
    }
    if (i % 3 == 0) length = (size_t)draw(0, (int64_t)n + 99);
    if (length == n && !memcmp(bad, good, n)) continue;
    write_file(shard, bad, length);
    int check, read;
    EXIT_OF(check, { Options o; options_parse(&o, COMMAND_DATA_CHECK, "data check", 1, (char *[]){out}); _exit(data_command(&o)); });
    CHECK_MSG(check == EXIT_NO || check == EXIT_REQUEST, "change %d: gpt data check exits with %d", i, check);
    if (i % 4) continue;      // a child costs time under a sanitizer
    EXIT_OF(read, {
      int32_t ids[500];
      Dataloader *l = dataloader_open_shards(out, SHARD_HEADER, 0);
      dataloader_arrange(l, 10, ORDER_STREAM, 0);
      dataloader_read(l, 0, MIN(dataloader_tokens(l), (int64_t)500), ids);
      _exit(0);
    });
    CHECK_MSG(read == 0 || read == EXIT_REQUEST, "change %d: the loader exits with %d", i, read);
  }
  free(good);
  free(bad);
  remove_in_folder("small");
  free(out);
  free(shard);
}

// The data's hash: the same for the same shards, another for one other token, with and without a checksum in the header.
static void data_hash_tells_data_apart(void) {
  char *path = in_folder("hash.bin"), hash[2][3][65];
  int32_t ids[1000] = {0};
  for (int changed = 0; changed < 2; changed++) {
    ids[777] = changed;
    for (int kind = 0; kind < 3; kind++) {
      Sha256 sha;
      uint8_t digest[32];
      write_shard(path, ids, 1000, 2, kind == 0, 10, -1, 'a');
      Dataloader *l = kind == 2 ? dataloader_open_tokens(ids, 1000, 10, -1) : dataloader_open_shards(path, SHARD_HEADER, 10);
      sha256_init(&sha);
      dataloader_hash(l, &sha);
      sha256_final(&sha, digest);
      sha256_hex(digest, hash[changed][kind]);
      dataloader_close(l);
    }
  }
  for (int kind = 0; kind < 3; kind++) CHECK(strcmp(hash[0][kind], hash[1][kind]));
  unlink(path);
  free(path);
}

// Two tokens are one target, in every epoch; one id is a vocabulary.
static void the_smallest_stream(void) {
  char *path = in_folder("two.bin");
  write_shard(path, (const int32_t[]){0, 0}, 2, 2, false, -1, -1, 'a');
  Dataloader *l = dataloader_open_shards(path, SHARD_HEADER, 1);
  for (int64_t T = 1; T < 4; T++) {
    int32_t inputs[4], targets[4];
    dataloader_arrange(l, T, ORDER_STREAM, 5);
    int64_t windows = dataloader_windows(l), count = 0;
    for (int64_t k = 0; k < windows; k++) count += dataloader_sample(l, k, inputs, targets);
    CHECK_EQ(count, 1);
    CHECK_EQ(dataloader_sequential_count(l), 1);
    CHECK(dataloader_sequential(l, 0, inputs, targets) == 1 && inputs[0] == 0 && targets[0] == 0);
  }
  dataloader_close(l);
  unlink(path);
  free(path);
  int32_t one = 0;
  l = dataloader_open_tokens(&one, 1, 1, -1);
  EXPECT_FAIL(2, "1 token, at least 2 are needed", dataloader_arrange(l, 4, ORDER_STREAM, 5));
  dataloader_close(l);
}

int main(int argc, char **argv) {
  const char *tmp = getenv("TMPDIR");
  TEST_BEGIN(argc, argv);
  snprintf(folder, sizeof folder, "%s/gpt-test-data-XXXXXX", tmp ? tmp : "/tmp");
  if (!mkdtemp(folder)) { perror(folder); return 1; }
  RUN(permutation_is_a_bijection);
  RUN(order_is_pinned);
  RUN(every_token_once);
  RUN(documents_in_a_long_stream);
  RUN(epochs_differ);
  RUN(the_smallest_stream);
  RUN(header_is_as_documented);
  RUN(other_programs_files);
  RUN(wrong_shards_are_refused);
  RUN(mixed_shards_are_refused);
  RUN(file_changed_while_read);
  RUN(a_failing_disk_is_the_machines);
  RUN(many_shards);
  RUN(counts_past_32_bits);
  RUN(pieces_encode_as_the_whole);
  RUN(pieces_are_of_whole_characters);
  RUN(pieces_of_plain_words_are_short);
  RUN(documents_are_found);
  RUN(texts_are_refused);
  RUN(validation_is_drawn_by_content);
  RUN(validation_begins_with_a_character);
  RUN(build_from_a_stream);
  RUN(progress_is_said_every_five_seconds);
  RUN(build_of_characters);
  RUN(build_leaves_nothing_half);
  RUN(stopped_builds_go_on);
  RUN(check_names_the_byte);
  RUN(check_counts_the_order);
  RUN(info_shows_the_data);
  RUN(malformed_files);
  RUN(data_hash_tells_data_apart);
  RUN(build_cuts_nothing_without_a_pattern);
  RUN(build_keeps_every_token);       // last: it makes threads, see BUILD
  buffer_free(&said);
  remove_tree(folder);
  return TEST_END();
}
