// test_dataloader.c: tests of dataloader.c: the order of samples, shards of every kind, the data's hash.
#include "data_test.h"
#include <sys/mman.h>      // mmap

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
  CHECK_EQ(data_permute(0, 1000, 1337, ((uint64_t)5 << 32) + 3), 351);
  CHECK_EQ(data_permute(0, 1000, 1337, ((uint64_t)1 << 31) + 3), 672);
  CHECK_EQ(data_permute(5, ((int64_t)1 << 61) + 1, 1, 0), 1052312157053061862);
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

// The same of many lengths and rows, of stream and documents: the places of all samples of three epochs, by their hash.
static void every_order_is_pinned(void) {
  static const int64_t settings[][2] = {{2, 1}, {2, 5}, {50, 8}, {17, 16}, {300, 7}, {1000, 999}, {1025, 1}, {4097, 1}, {4097, 64}, {2001, 3},
                                      {46, 8}, {45, 8}, {47, 8}, {41, 7}, {40, 7}};     // as many shifts with a window more as without, and nearly so
  Buffer places = {0};
  for (size_t i = 0; i < ARRAY_LEN(settings); i++)
    for (DataOrder order = ORDER_STREAM; order <= ORDER_DOCUMENTS; order++) {
      int64_t n = settings[i][0];
      int32_t *tokens = xcalloc((size_t)n, sizeof *tokens);
      for (int64_t t = 0; t < n; t++) tokens[t] = t % 13 || t == n - 1 ? 1 : 0;
      Dataloader *l = dataloader_open_tokens(tokens, n, 2, 0);
      dataloader_arrange(l, settings[i][1], order, 1337 + i);
      buffer_printf(&places, "n %lld, T %lld, %d: %lld a epoch:", (long long)n, (long long)settings[i][1], order, (long long)dataloader_windows(l));
      for (int64_t k = 0, place; k < 3 * dataloader_windows(l); k++) {
        int64_t count = dataloader_targets(l, k, &place);
        buffer_printf(&places, " %lld+%lld", (long long)place, (long long)count);
      }
      dataloader_close(l);
      free(tokens);
    }
  CHECK_HASH(places.data, places.len, "e2393d74682fc2047bd6d74530386c2baa9888886730160d23dc8651564eaf89");
  buffer_free(&places);
}

// Room for n ids behind which no byte may be touched.
static int32_t *guarded(int which, int64_t n) {
  enum { ROOM = 1 << 20 };
  static uint8_t *rooms[3];
  if (!rooms[which]) {
    rooms[which] = mmap(NULL, 2 * ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (rooms[which] == MAP_FAILED || mprotect(rooms[which] + ROOM, ROOM, PROT_NONE)) abort();
  }
  if (4 * n > ROOM) abort();
  return (int32_t *)(void *)(rooms[which] + ROOM) - n;
}

// One setting: reads every sample of some epochs, checks rows against the tokens, counts targets.
static void cover(Dataloader *l, const int32_t *tokens, int64_t n, int64_t T, int64_t epochs) {
  int64_t windows = dataloader_windows(l), counted = 0;
  int32_t *inputs = guarded(0, T), *targets = guarded(1, T), *again = xmalloc((size_t)(2 * T), 4);
  int *times = xcalloc((size_t)n, sizeof *times);
  for (int64_t k = 0; k < epochs * windows; k++) {
    int64_t place, filled = 0, count = dataloader_targets(l, k, &place);
    CHECK_EQ(dataloader_sample(l, k, inputs, targets), count);
    for (int64_t t = 0; t < T; t++) {
      CHECK(inputs[t] >= 0 && inputs[t] < dataloader_vocab(l));
      if (targets[t] == IGNORED_TARGET) { CHECK(inputs[t] == 0 && (filled == 0 || filled == count)); continue; }
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
    int32_t *tokens = guarded(2, n);
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
  // how many there are stands in 32 bits if it fits; no tokenizer is no hash
  s.tokenizer[0] = 0;
  for (int64_t more = 0; more < 2; more++) {
    s.count = INT32_MAX + more;
    shard_header(&s, h);
    CHECK_EQ((int32_t)load_u32le(h + 8), more ? -1 : INT32_MAX);
  }
  for (int i = SHARD_AT_TOKENIZER; i < SHARD_AT_CRC; i++) CHECK_EQ(h[i], 0);
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
    CHECK_EQ(dataloader_eot(l), -1);
    dataloader_read(l, 0, 300, got);
    CHECK(!memcmp(ids, got, sizeof ids));
    dataloader_close(l);
  }
  // ids need 16 bits up to a vocabulary of 65,536, and what a pattern is may be a name
  for (int32_t largest = 65535; largest <= 65536; largest++) {
    Dataloader *l = dataloader_open_tokens(&largest, 1, largest + 1, -1);
    dataloader_read(l, 0, 1, got);
    CHECK_EQ(got[0], largest);
    dataloader_close(l);
  }
  char *odd = in_folder("odd[1]*.bin");
  write_shard(odd, ids, 300, 2, true, 50257, 50256, 'b');
  Dataloader *l = dataloader_open_shards(odd, SHARD_HEADER, 50257);
  CHECK_EQ(dataloader_tokens(l), 300);
  dataloader_close(l);
  unlink(odd);
  free(odd);
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
  WRONG("byte 60: end-of-text id -2, the vocabulary has 1000", 60, "\xfe\xff\xff\xff", 4, 0);
  WRONG("byte 48: 101 documents in 100 tokens", 48, "\x65", 1, 0);
  WRONG("byte 56: a vocabulary of 2147483648, it must be 1 to 2147483647", 56, "\0\0\0\x80", 4, 0);
  open_changed(path, 48, "\x64", 1, 0);                         // the most and the least that can be
  open_changed(path, 56, "\xff\xff\xff\x7f\xff\xff\xff\xff", 8, 0);
  write_shard(path, (const int32_t[]){0, 0}, 2, 2, true, 1, -1, 'c');
  dataloader_close(dataloader_open_shards(path, SHARD_HEADER, 0));
  WRONG("byte 1044: id 59914, the vocabulary has 1000", 1045, "\xea", 1, 0);
  WRONG("byte 1044: id 1000, the vocabulary has 1000", 1044, "\xe8\x03", 2, 0);
  WRONG("byte 60: end-of-text id 1000, the vocabulary has 1000", 60, "\xe8\x03", 2, 0);
  WRONG("1023 bytes, a shard has at least 1024", 0, NULL, 0, -201);
  WRONG("byte 40: 4611686018427387903 tokens, more than a file can hold", 8, "\xff\xff\xff\xff" "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" "GPTC\1\0\0\0\xff\xff\xff\xff\xff\xff\xff\x3f", 40, 0);
  WRONG("more than a file can hold", 8, "\xff\xff\xff\xff" "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" "GPTC\1\0\0\0\0\0\0\0\0\0\0\x7f", 40, 0);
  WRONG("byte 40: 0 tokens, at least 1 is needed", 8, "\0\0\0\0" "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" "GPTC\1\0\0\0\0\0", 34, -200);
  WRONG("byte 8: -2 tokens, at least 1", 8, "\xfe\xff\xff\xff" "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" "no", 26, 0);
  write_file(path, "", 0);
  EXPECT_FAIL(EXIT_REQUEST, "wrong.bin: byte 0: 0 tokens, at least 1 is needed", shard_open(path, SHARD_RAW_U16));
  EXPECT_FAIL(EXIT_REQUEST, "0 files match", dataloader_open_shards("/nowhere/at all/*.bin", SHARD_HEADER, 0));
  EXPECT_FAIL(EXIT_REQUEST, "no regular file", shard_open(folder, SHARD_HEADER));
  unlink(path);
  if (mkfifo(path, 0600)) abort();      // must not wait for a writer
  EXPECT_FAIL(EXIT_REQUEST, "no regular file", shard_open(path, SHARD_HEADER));
  unlink(path);
  free(path);
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

// From here on this process can open `left` files more.
static void leave_open_files(int left) {
  const int next = dup(STDERR_FILENO);
  close(next);
  setrlimit(RLIMIT_NOFILE, &(struct rlimit){(rlim_t)(next + left), (rlim_t)(next + left)});
}

// Nor are files that the system does not open wrong ones: neither the shard, nor its index.
static void too_many_open_files(void) {
  const int32_t ids[10] = {0};
  char *path = in_folder("many.bin"), *index = in_folder("many.idx"), *words = format("gpt: %s: cannot open shard: Too many open files\n", path);
  write_shard(path, ids, 10, 2, true, 1000, 999, 'c');
  EXPECT_FAIL(EXIT_MACHINE, words, { leave_open_files(0); dataloader_open_paths(&path, 1, SHARD_HEADER, 1000); });
  EXPECT_FAIL(EXIT_MACHINE, words, { leave_open_files(0); shard_open(path, SHARD_HEADER); });
  free(words);
  words = format("gpt: %s: cannot open the index of documents: Too many open files\n", index);
  EXPECT_FAIL(EXIT_MACHINE, words, { leave_open_files(1); dataloader_open_paths(&path, 1, SHARD_HEADER, 1000); });
  unlink(path);
  EXPECT_FAIL(EXIT_REQUEST, "many.bin: cannot open shard: No such file", dataloader_open_paths(&path, 1, SHARD_HEADER, 1000));
  free(words), free(path), free(index);
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
  write_shard(b, ids, 10, 2, true, 1100, 999, 'a');
  EXPECT_FAIL(EXIT_REQUEST, "byte 56: vocabulary 1100 and end-of-text id 999, ", open_pair());
  write_shard(b, ids, 10, 2, false, 0, -1, 'a');
  EXPECT_FAIL(EXIT_REQUEST, "pair_a.bin: names its tokenizer", open_pair());
  write_shard(b, ids, 10, 2, true, 1000, 998, 'a');
  EXPECT_FAIL(EXIT_REQUEST, "byte 56: vocabulary 1000 and end-of-text id 998, ", open_pair());
  dataloader_close(dataloader_open_shards(a, SHARD_HEADER, 2000));
  write_shard(a, ids, 10, 2, false, 0, -1, 'a');
  EXPECT_FAIL(EXIT_REQUEST, "pair_b.bin: names its tokenizer", open_pair());
  write_shard(a, ids, 10, 2, true, 1000, 999, 'a');
  EXPECT_FAIL(EXIT_REQUEST, "made for a vocabulary of 1000 ids, this tokenizer or model has 500", dataloader_open_shards(a, SHARD_HEADER, 500));
  EXPECT_FAIL(EXIT_REQUEST, "made for a vocabulary of 1000 ids, this tokenizer or model has 1;", dataloader_open_shards(a, SHARD_HEADER, 1));
  Shard s = shard_open(a, SHARD_HEADER);
  CHECK(fcntl(s.fd, F_GETFD) & FD_CLOEXEC);
  shard_close(&s);
  CHECK_EQ(s.fd, -1);
  s = shard_open(a, SHARD_RAW_U16);      // says nothing of itself
  CHECK(s.vocab == -1 && s.eot == -1 && s.documents == -1);
  shard_close(&s);
  // folders that cannot be read stand in the way of none that can
  char *loop = in_folder("loop"), *sub = in_folder("sub"), *inside = in_folder("sub/x.bin"), *pattern = in_folder("*/x.bin");
  if (mkdir(sub, 0777) || symlink("loop", loop)) abort();
  write_shard(inside, ids, 10, 2, true, 1000, 999, 'a');
  size_t count;
  char **found = shard_glob(pattern, &count);
  CHECK_EQ(count, 1);
  CHECK_STR(found[0], inside);
  free_names(found, count);
  // a folder stands for one side's shards if it has any
  char *train = in_folder("sub/train_000000.bin");
  write_shard(train, ids, 10, 2, true, 1000, 999, 'a');
  CHECK(shard_folder_has(sub, "train") && !shard_folder_has(sub, "val") && !shard_folder_has(train, "train"));
  found = shard_glob_side(sub, "train", &count);
  CHECK(count == 1 && !strcmp(found[0], train));
  free_names(found, count);
  found = shard_glob_side(sub, "val", &count);       // all of it
  CHECK_EQ(count, 2);
  free_names(found, count);
  unlink(train);
  free(train);
  unlink(inside);
  rmdir(sub);
  unlink(loop);
  free(loop);
  free(sub);
  free(inside);
  free(pattern);
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
  CHECK(descriptors() < SHARDS);
  write_shard(last, got, 2, 2, true, 1000, 999, 'c');      // another whole shard in its place
  EXPECT_FAIL(EXIT_MACHINE, "many_299.bin: byte 1024: reading 1 tokens failed", dataloader_read(l, 299, 1, got));
  write_shard(last, got, 1, 4, true, 1000, 999, 'c');
  EXPECT_FAIL(EXIT_MACHINE, "many_299.bin: byte 1024: reading 1 tokens failed", dataloader_read(l, 299, 1, got));
  if (truncate(last, 1024)) abort();
  EXPECT_FAIL(EXIT_MACHINE, "it was whole before", dataloader_read(l, 299, 1, got));
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

// The program's own fstat() stands before libc's: files of any size, two bytes a token.
static int sizes_pretended = -1;
static int64_t pretended_sizes[] = {(int64_t)1 << 62, ((int64_t)1 << 62) - 2};
int fstat(int fd, struct stat *st) {
  const int code = fstatat(fd, "", st, AT_EMPTY_PATH);
  if (sizes_pretended >= 0) st->st_size = pretended_sizes[sizes_pretended++];
  return code;
}

// As many as the 32 bits of llm.c's header hold, and as many as this program counts: two files that together are one too many.
static void the_most_tokens(void) {
  char *a = in_folder("most_a.bin"), *b = in_folder("most_b.bin"), *pattern = in_folder("most_*.bin");
  Shard s = {.width = 2, .count = INT32_MAX, .vocab = 1000, .eot = -1};
  uint8_t h[SHARD_HEADER_BYTES];
  shard_header(&s, h);
  write_file(a, h, sizeof h);
  if (truncate(a, SHARD_HEADER_BYTES + (int64_t)2 * INT32_MAX)) abort();
  Dataloader *l = dataloader_open_shards(a, SHARD_HEADER, 0);
  CHECK_EQ(dataloader_tokens(l), INT32_MAX);
  dataloader_close(l);
  write_file(a, "ab", 2);
  write_file(b, "ab", 2);
  sizes_pretended = 0;
  l = dataloader_open_shards(pattern, SHARD_RAW_U16, 100000);
  if (sizes_pretended == 0) printf("  sizes of files cannot be pretended here\n");
  else {
    CHECK_EQ(dataloader_tokens(l), INT64_MAX / 2);
    pretended_sizes[1] += 2;
    EXPECT_FAIL(EXIT_REQUEST, "most_b.bin: with this shard there are more tokens than can be counted (4611686018427387903)",
                sizes_pretended = 0; dataloader_open_shards(pattern, SHARD_RAW_U16, 100000));
  }
  sizes_pretended = -1;
  dataloader_close(l);
  unlink(a);
  unlink(b);
  free(a);
  free(b);
  free(pattern);
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
  // pinned, for a run goes on with the text of this hash only: with a checksum, without, in memory
  CHECK_STR(hash[1][0], "8a47e612be6d5b8a90dd2c82af051637c38c5ccf5dec1854c29ba440c454e6dd");
  CHECK_STR(hash[1][1], "6a3f085ade8ccd571d7668ca42531ce4cd265f0d30f24b8bcd9d3aa8f3db31b9");
  CHECK_STR(hash[1][2], "a6932aee6d06c7b3e7bede30bf230951166d1b4c85eed973445fbe93be9a1dcf");
  // without a checksum, and too large to be read whole: pieces from its first to its last token
  for (int more = 0; more < 2; more++) {
    int64_t n = ((int64_t)1 << 24) + more * 70001;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0666);
    for (int64_t i = 0; i < n; i += 999) if (pwrite(fd, "\7", 1, (off_t)(2 * i)) != 1) abort();
    if (ftruncate(fd, 2 * n)) abort();
    close(fd);
    Sha256 sha;
    uint8_t digest[32];
    Dataloader *l = dataloader_open_shards(path, SHARD_RAW_U16, 10);
    sha256_init(&sha);
    dataloader_hash(l, &sha);
    sha256_final(&sha, digest);
    sha256_hex(digest, hash[0][more]);
    dataloader_close(l);
  }
  CHECK_STR(hash[0][0], "2bc78a98503e911e92113f84dc47ff51dbd10490448d6981ddd36888d192a7cc");
  CHECK_STR(hash[0][1], "d49c4e11466e984fc8a44d36dceee315a84e6c18c2523d10dd11136194024159");
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

static int opened;
// A run without validation has none to close.
static void nothing_to_close(void) { dataloader_close(NULL); }

static void files_are_closed(void) { CHECK_MSG(opened == 0, "%d files are still open", opened); }

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  begin_folder("dataloader");
  const int open_before = descriptors();
  RUN(permutation_is_a_bijection);
  RUN(order_is_pinned);
  RUN(every_order_is_pinned);
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
  RUN(too_many_open_files);
  RUN(many_shards);
  RUN(counts_past_32_bits);
  RUN(the_most_tokens);
  RUN(data_hash_tells_data_apart);
  RUN(nothing_to_close);
  end_folder();
  opened = descriptors() - open_before;
  RUN(files_are_closed);
  return TEST_END();
}
