// test_index.c: tests of shard_index.c and of what uses it: the index that gpt data build writes beside a shard, the loader's documents.
#include "data_test.h"

// ---- the format, laid out here by hand ----

static void put(Buffer *b, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; i++) buffer_append(b, &(char){(char)(value >> (8 * i))}, 1);
}

static uint32_t plain_crc32c(const void *data, size_t n) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < n; i++) {
    crc ^= ((const uint8_t *)data)[i];
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
  }
  return ~crc;
}

static void index_bytes(Buffer *b, const int64_t *starts, size_t n, int64_t tokens, uint32_t shard_crc) {
  Buffer list = {0};
  for (size_t i = 0; i < n; i++) put(&list, (uint64_t)starts[i], 8);
  buffer_append(b, "GPTD", 4);
  put(b, 1, 4);
  put(b, n, 8);
  put(b, (uint64_t)tokens, 8);
  put(b, shard_crc, 4);
  put(b, plain_crc32c(list.data, list.len), 4);
  if (n) buffer_append(b, list.data, list.len);
  buffer_free(&list);
}

// The index of folder/NAME.bin is of these starts, to the byte.
static void expect_index(const char *name, const int64_t *starts, size_t n) {
  char *shard = format("%s/%s.bin", folder, name), *path = format("%s/%s.idx", folder, name);
  size_t size, found_size;
  char *bytes = read_file(shard, "shard", 1 << 28, &size), *found = read_file(path, "index", 1 << 28, &found_size);
  Buffer expected = {0};
  index_bytes(&expected, starts, n, (int64_t)(size - SHARD_HEADER_BYTES) / (load_u32le((uint8_t *)bytes) == 20240520 ? 2 : 4), plain_crc32c(bytes + SHARD_HEADER_BYTES, size - SHARD_HEADER_BYTES));
  CHECK_MSG(found_size == expected.len && !memcmp(found, expected.data, found_size), "%s is not of %zu documents as they should be", path, n);
  buffer_free(&expected);
  free(shard), free(path), free(bytes), free(found);
}
#define EXPECT_INDEX(name, ...) expect_index(name, (const int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__}) / 8)

static void small_texts_to_the_byte(void) {
  char *text = in_folder("t.txt"), *plain = in_folder("plain.json"), *out = in_folder("d");
  write_file(text, "one\n\ntwo two\n\nthree three three\n", 32);
  CHECK_EQ(BUILD(text, "--tokenizer", "byte", "--documents", "blank-line", "--out", out, "--val-fraction", "0"), 0);
  EXPECT_INDEX("d/train_000000", 0, 4, 12);
  // the very bytes, once
  static const char known[] = "GPTD\1\0\0\0\3\0\0\0\0\0\0\0\37\0\0\0\0\0\0\0Z\331A\173\262\306\331\41" "\0\0\0\0\0\0\0\0\4\0\0\0\0\0\0\0\14\0\0\0\0\0\0";
  char *path = in_folder("d/train_000000.idx");
  size_t n;
  char *found = read_file(path, "index", 1 << 20, &n);
  CHECK_EQ(n, sizeof known);
  CHECK(n == sizeof known && !memcmp(found, known, n));
  free(found);
  free(path);
  CHECK_EQ(CHECK_DATA(out), 0);
  CHECK(strstr(said.data, "d/train_000000.bin: whole: 31 tokens of 2 bytes, ids and checksum right, index of 3 documents right\n"));
  remove_in_folder("d");
  // places are counted from the shard's beginning; a shard in which no document begins; the last end-of-text token begins none
  CHECK_EQ(BUILD(text, "--tokenizer", "byte", "--documents", "blank-line", "--out", out, "--val-fraction", "0", "--shard-tokens", "6"), 0);
  EXPECT_INDEX("d/train_000000", 0, 4);
  expect_index("d/train_000001", NULL, 0);
  EXPECT_INDEX("d/train_000002", 0);
  expect_index("d/train_000003", NULL, 0);
  expect_index("d/train_000004", NULL, 0);
  expect_index("d/train_000005", NULL, 0);
  CHECK_EQ(CHECK_DATA(out), 0);
  CHECK(strstr(said.data, "6 shards, 31 tokens: all whole"));
  remove_in_folder("d");
  // no end-of-text token: the first tokens. Validation that begins inside a document begins none
  Tokenizer *t = tokenizer_byte(false);
  Buffer json = {0};
  tokenizer_json(t, &json);
  write_file(plain, json.data, json.len);
  tokenizer_free(t);
  buffer_free(&json);
  CHECK_EQ(BUILD(text, "--tokenizer", plain, "--documents", "blank-line", "--out", out, "--val-fraction", "0", "--shard-tokens", "10"), 0);
  EXPECT_INDEX("d/train_000000", 0, 3);
  EXPECT_INDEX("d/train_000001", 0);
  expect_index("d/train_000002", NULL, 0);
  CHECK_EQ(CHECK_DATA(out), 0);
  CHECK_EQ(INFO(out, "--json"), 0);
  buffer_append(&said, "", 1);
  CHECK(strstr(said.data, "index      where 3 documents begin\n") && strstr(said.data, "tokens of a document: mean 9.0, longest 17\n"));
  CHECK(strstr(said.data, "\"documents\": 3,") && strstr(said.data, "\"longest_document\": 17, \"indexed_documents\": 3}"));
  remove_in_folder("d");
  CHECK_EQ(BUILD(text, "--tokenizer", "byte", "--documents", "none", "--out", out, "--val-fraction", "0.5"), 0);
  EXPECT_INDEX("d/train_000000", 0);
  expect_index("d/val_000000", NULL, 0);
  remove_in_folder("d");
  // ids of four bytes
  Buffer wide = {0};
  for (uint32_t i = 0; i < 65537; i++) { char utf8[4]; buffer_append(&wide, utf8, (size_t)utf8_encode(0x100000 + i % 65536, utf8)); if (i == 99) buffer_append(&wide, "\n\n", 2); }
  write_file(text, wide.data, wide.len);
  CHECK_EQ(BUILD(text, "--tokenizer", "char", "--documents", "blank-line", "--out", out, "--val-fraction", "0"), 0);
  EXPECT_INDEX("d/train_000000", 0, 101);
  CHECK_EQ(CHECK_DATA(out), 0);
  CHECK(strstr(said.data, "tokens of 4 bytes"));
  remove_in_folder("d"), remove_in_folder("t.txt"), remove_in_folder("plain.json");
  buffer_free(&wide);
  free(text), free(plain), free(out);
}

// Documents of known lengths, from one byte to some pieces, in several batches: whatever reads them and with how many threads, the index has the
// places that a sum of lengths gives.
static void threads_and_reading_change_nothing(void) {
  enum { DOCUMENTS = 3000 };
  static const char *const threads[] = {"1", "2", "7"};
  char *text = in_folder("t.txt"), *out = in_folder("d");
  int64_t *starts = xmalloc(DOCUMENTS, sizeof *starts), at = 0;
  Buffer b = {0};
  for (int i = 0; i < DOCUMENTS; i++) {
    int64_t n = i % 1000 == 500 ? 2500000 : draw(1, i % 7 ? 30 : 3000);
    starts[i] = at;
    at += 1 + n;
    for (int64_t k = 0; k < n; k++) buffer_append(&b, k % 10 == 9 ? " " : "x", 1);
    b.data[b.len - 1] = 'y';
    buffer_append(&b, "\n\n", 2);
  }
  write_file(text, b.data, b.len);
  for (size_t i = 0; i < 2 * ARRAY_LEN(threads); i++) {
    const bool stream = i % 2;
    int old = dup(0), fd = open(text, O_RDONLY);
    dup2(fd, 0);
    close(fd);
    CHECK_EQ(BUILD_THREADS(stream ? "-" : text, "--tokenizer", "byte", "--documents", "blank-line", "--out", out, "--val-fraction", "0", "--threads", threads[i / 2]), 0);
    dup2(old, 0);
    close(old);
    expect_index("d/train_000000", starts, DOCUMENTS);
    remove_in_folder("d");
  }
  remove_in_folder("t.txt");
  buffer_free(&b);
  free(starts);
  free(text);
  free(out);
}

// ---- the loader ----

// Shards of random lengths with an end-of-text token (9) here and there, the last one at the end; with or without their indices. Returns the tokens.
static int32_t *make_shards(const char *name, size_t shards, bool indexed, int64_t *n) {
  char *dir = in_folder(name);
  make_directory(dir);
  Buffer ids = {0};
  for (size_t s = 0; s < shards; s++) {
    int32_t some[40];
    int64_t starts[40], count = draw(1, 40);
    size_t documents = 0;
    const int64_t share = draw(0, 3);      // of tokens that begin a document, in tenths
    for (int64_t i = 0; i < count; i++) {
      some[i] = s == 0 && i == 0 ? 9 : draw(0, 9) < share ? 9 : (int32_t)draw(0, 8);
      const bool last = s == shards - 1 && i == count - 1 && count > 1;
      if (last) some[i] = 9;
      if (some[i] == 9 && !last) starts[documents++] = i;
    }
    char *path = format("%s/%04zu.bin", dir, s), *index = format("%s/%04zu.idx", dir, s);
    write_shard(path, some, count, 2, true, 10, 9, 'a');
    if (s == shards - 1 && some[count - 1] == 9 && count > 1) {       // the header counts documents
      int fd = open(path, O_WRONLY);
      if (pwrite(fd, &(uint64_t){documents}, 8, SHARD_AT_DOCUMENTS) != 8) abort();
      close(fd);
    }
    Shard shard = shard_open(path, SHARD_HEADER);
    Buffer x = {0};
    index_bytes(&x, starts, documents, count, shard.crc);
    if (indexed) write_file(index, x.data, x.len);
    buffer_append(&ids, some, (size_t)count * sizeof *some);
    buffer_free(&x);
    shard_close(&shard);
    free(path);
    free(index);
  }
  free(dir);
  *n = (int64_t)(ids.len / sizeof(int32_t));
  return (int32_t *)(void *)ids.data;
}

// Every question, beside a search through the tokens; more shards than are kept open.
static void documents_of_the_loader(void) {
  static const size_t counts[] = {1, 2, 5, 30, 300};
  for (size_t c = 0; c < ARRAY_LEN(counts); c++) {
    int64_t n, documents = 0;
    int32_t *ids = make_shards("l", counts[c], true, &n);
    int64_t *firsts = xmalloc((size_t)n, sizeof *firsts), *got = xmalloc((size_t)n, sizeof *got);
    char *dir = in_folder("l");
    for (int64_t i = 0; i < n; i++) if (ids[i] == 9 && (i < n - 1 || n == 1)) firsts[documents++] = i;
    if (ids[n - 1] == 9 && n > 1 && CHECK_DATA(dir)) CHECK_MSG(false, "shards are not whole");
    Dataloader *l = dataloader_open_shards(dir, SHARD_HEADER, 0);
    // the last shard may hold one token only; then that token is a document's
    CHECK(dataloader_documents(l) == documents || dataloader_documents(l) == documents + 1);
    documents = dataloader_documents(l);
    dataloader_document_starts(l, 0, documents, got);
    int64_t seen = -1;
    for (int64_t at = 0; at < n; at++) {
      if (seen + 1 < documents && ids[at] == 9) { seen++; CHECK_EQ(got[seen], at); }
      CHECK_EQ(dataloader_document_at(l, at), seen);
    }
    for (int i = 0; i < 200; i++) {
      int64_t first = draw(0, documents), some = draw(0, documents - first);
      memset(got, 0xee, (size_t)n * sizeof *got);
      dataloader_document_starts(l, first, some, got);
      CHECK(!memcmp(got, firsts + first, (size_t)MIN(some, MAX((int64_t)0, documents - 1 - first)) * sizeof *got));
      CHECK(some == n || got[some] == (int64_t)0xeeeeeeeeeeeeeeee);
    }
    dataloader_close(l);
    remove_in_folder("l");
    free(ids);
    free(firsts);
    free(got);
    free(dir);
  }
}

// Rows of documents are the same with indices and without; with them no token is read for it.
static void rows_by_the_index(void) {
  const uint64_t before = counter;
  int64_t n, m;
  int32_t *ids = make_shards("with", 12, true, &n);
  counter = before;
  free(make_shards("without", 12, false, &m));
  char *with = in_folder("with"), *without = in_folder("without");
  Dataloader *a = dataloader_open_shards(with, SHARD_HEADER, 0), *b = dataloader_open_shards(without, SHARD_HEADER, 0);
  CHECK_EQ(n, m);
  CHECK(dataloader_documents(a) > 0);
  CHECK_EQ(dataloader_documents(b), -1);
  CHECK_EQ(dataloader_longest_document(a), dataloader_longest_document(b));
  for (int64_t T = 1; T < 40; T += 6) {
    dataloader_arrange(a, T, ORDER_DOCUMENTS, 5);
    dataloader_arrange(b, T, ORDER_DOCUMENTS, 5);
    CHECK_EQ(dataloader_windows(a), dataloader_windows(b));
    for (int64_t k = 0; k < 2 * dataloader_windows(b); k++) {
      int64_t p, q;
      CHECK_EQ(dataloader_targets(a, k, &p), dataloader_targets(b, k, &q));
      CHECK_EQ(p, q);
    }
  }
  // one reading of starts a shard, if it has any; the last of them may fail
  sound_reads = 100;
  dataloader_longest_document(a);
  const long reads = 100 - sound_reads;
  CHECK_MSG(reads > 0 && reads <= 12, "%ld readings", reads);
  disk_fails = true;
  for (int i = 0; i < 2; i++) {
    int code;
    sound_reads = reads - i;
    EXIT_OF(code, dataloader_longest_document(a));
    CHECK_EQ(code, i ? EXIT_MACHINE : 0);
  }
  disk_fails = false;
  sound_reads = LONG_MAX;
  dataloader_close(a);
  dataloader_close(b);
  // where one shard lacks its index the loader does without all of them; gpt data check says so
  char *one = in_folder("with/0007.idx");
  unlink(one);
  a = dataloader_open_shards(with, SHARD_HEADER, 0);
  CHECK_EQ(dataloader_documents(a), -1);
  dataloader_close(a);
  EXPECT_FAIL(EXIT_NO, "with/0000.bin: has an index of its documents, ", CHECK_DATA(with));
  EXPECT_FAIL(EXIT_NO, "with/0007.bin has none: make the shards again, or remove every index (1 of 12 shards damaged)", CHECK_DATA(with));
  CHECK_EQ(CHECK_DATA(without), 0);
  CHECK(strstr(said.data, "ids and checksum right, no index of documents\n"));
  CHECK_EQ(INFO(without, "--json"), 0);
  buffer_append(&said, "", 1);
  CHECK(strstr(said.data, "index      of documents: none\n") && strstr(said.data, "\"indexed_documents\": -1}"));
  remove_in_folder("with");
  remove_in_folder("without");
  free(one);
  free(with);
  free(without);
  free(ids);
}

// Shards of other programs have none, even where something of that name lies beside them.
static void foreign_shards_have_none(void) {
  char *shard = in_folder("foreign.bin"), *index = in_folder("foreign.idx");
  write_file(index, "MMIDIDX", 7);
  for (int width = 0; width <= 4; width += 2) {
    const ShardKind kind = width ? SHARD_HEADER : SHARD_RAW_U16;
    write_shard(shard, (const int32_t[]){3, 1, 2}, 3, width, false, -1, -1, 'a');
    CHECK_EQ(width ? CHECK_DATA(shard) : CHECK_DATA(shard, "--raw", "u16"), 0);
    CHECK(strstr(said.data, "no checksum, no vocabulary to check ids against, no index of documents\n"));
    Dataloader *l = dataloader_open_shards(shard, kind, 10);
    CHECK_EQ(dataloader_documents(l), -1);
    CHECK_EQ(dataloader_longest_document(l), 0);
    dataloader_close(l);
  }
  char *noname = in_folder("noname"), *its = shard_index_path(noname);
  CHECK_STR(its + strlen(noname), ".idx");
  static const char *const names[][2] = {{".bin", ".idx"}, {"bin", "bin.idx"}, {"a.bin", "a.idx"}, {"x", "x.idx"}, {"a.bin.x", "a.bin.x.idx"}};
  for (size_t i = 0; i < ARRAY_LEN(names); i++) {
    char *path = shard_index_path(names[i][0]);
    CHECK_STR(path, names[i][1]);
    free(path);
  }
  unlink(shard);
  unlink(index);
  free(shard);
  free(index);
  free(noname);
  free(its);
}

// ---- what is wrong ----

// A shard of nine tokens and four documents, and its index as it should be.
typedef struct { char *shard, *path; uint32_t crc; Buffer good; } Indexed;
enum { N = 9 };
#define LOADS(shard) dataloader_close(dataloader_open_shards(shard, SHARD_HEADER, 0))
#define WALKS(shard) do { Dataloader *l_ = dataloader_open_shards(shard, SHARD_HEADER, 0); dataloader_longest_document(l_); } while (0)

// Header and size: whoever opens it.
static void headers_are_checked(const Indexed *w) {
  static const struct { int code; size_t at; uint8_t value; size_t length; const char *needle; } headers[] = {
    {EXIT_REQUEST, 0, 'H', 64, "w.idx: byte 0: magic number 1146376264, an index of documents has 1146376263; make the shards again, or remove this file and do without it"},
    {EXIT_REQUEST, 4, 2, 64, "w.idx: byte 4: index format version 2, this program reads version 1; use a newer gpt"},
    {EXIT_NO, 8, 3, 64, "w.idx: byte 8: 3 starts, "}, {EXIT_NO, 15, 0x80, 64, "w.idx: byte 8: -9223372036854775804 starts, "}, {EXIT_NO, 16, 8, 64, "w.idx: byte 16: made for a shard of 8 tokens, "},
    {EXIT_NO, 23, 1, 64, "w.idx: byte 16: made for a shard of 72057594037927945 tokens, "},
    {EXIT_NO, 0, 'G', 65, "w.idx: byte 64: 4 starts end here, the file has 65 bytes: something stands behind them"}, {EXIT_NO, 0, 'G', 63, "w.idx: byte 63: the file ends, 4 starts need 64 bytes: it was cut off"},
    {EXIT_NO, 0, 'G', 32, "w.idx: byte 32: the file ends, 4 starts need 64 bytes"}, {EXIT_REQUEST, 0, 'G', 31, "w.idx: 31 bytes, an index of documents has at least 32 of header"},
    {EXIT_REQUEST, 0, 'G', 0, "w.idx: 0 bytes, an index of documents has at least 32 of header"}};
  for (size_t i = 0; i < ARRAY_LEN(headers); i++) {
    char bad[66] = "";
    memcpy(bad, w->good.data, 64);
    bad[headers[i].at] = (char)headers[i].value;
    write_file(w->path, bad, headers[i].length);
    EXPECT_FAIL(headers[i].code, headers[i].needle, CHECK_DATA(w->shard));
    EXPECT_FAIL(EXIT_REQUEST, headers[i].needle, LOADS(w->shard));
  }
}

// An index of another shard.
static void another_shards_index(const Indexed *w) {
  Buffer b = {0};
  index_bytes(&b, (const int64_t[]){0, 3, 5, 6}, 4, N, w->crc ^ 0x100);
  write_file(w->path, b.data, b.len);
  char *needle = format("w.idx: byte 24: made for a shard with checksum %08x, %s has %08x", w->crc ^ 0x100, w->shard, w->crc);
  EXPECT_FAIL(EXIT_NO, needle, CHECK_DATA(w->shard));
  EXPECT_FAIL(EXIT_REQUEST, needle, LOADS(w->shard));
  free(needle);
  buffer_free(&b);
}

// Starts: whoever walks through them; with the right checksum.
static void starts_are_checked(const Indexed *w) {
  Buffer b = {0};
  static const struct { int64_t starts[4]; const char *needle; bool loads; } lists[] = {
    {{0, 3, 3, 6}, "w.idx: byte 48: document 2 begins at token 3, it must be 4 to 7", false}, {{0, 5, 3, 6}, "w.idx: byte 48: document 2 begins at token 3, it must be 6 to 7", false},
    {{0, 3, 5, 9}, "w.idx: byte 56: document 3 begins at token 9, it must be 6 to 8", false}, {{-1, 3, 5, 6}, "w.idx: byte 32: document 0 begins at token -1, it must be 0 to 5", false},
    {{0, 3, 8, 9}, "w.idx: byte 48: document 2 begins at token 8, it must be 4 to 7", false}, {{6, 3, 5, 6}, "w.idx: byte 32: document 0 begins at token 6, it must be 0 to 5", false},
    // in order, and not where the end-of-text tokens are
    {{1, 3, 5, 6}, "w.idx: byte 32: no document begins at token 0, where ", true}, {{0, 2, 5, 6}, "w.idx: byte 40: a document begins at token 2, where ", true},
    {{0, 3, 5, 7}, "w.idx: byte 56: no document begins at token 6, where ", true}, {{0, 3, 6, 7}, "w.idx: byte 48: no document begins at token 5, where ", true}};
  for (size_t i = 0; i < ARRAY_LEN(lists); i++) {
    b.len = 0;
    index_bytes(&b, lists[i].starts, 4, N, w->crc);
    write_file(w->path, b.data, b.len);
    EXPECT_FAIL(EXIT_NO, lists[i].needle, CHECK_DATA(w->shard));
    LOADS(w->shard);
    if (!lists[i].loads) EXPECT_FAIL(EXIT_REQUEST, lists[i].needle, WALKS(w->shard));
  }
  buffer_free(&b);
}

// Any bit of the starts or of their checksum.
static void every_bit_is_checked(const Indexed *w) {
  char bad[64];
  for (size_t at = 28; at < 64; at++) {
    memcpy(bad, w->good.data, 64);
    bad[at] = (char)(bad[at] ^ 1 << draw(0, 7));
    write_file(w->path, bad, 64);
    int code;
    EXIT_OF(code, { Options o; options_parse(&o, COMMAND_DATA_CHECK, "data check", 1, (char *[]){w->shard}); _exit(data_command(&o)); });
    CHECK_MSG(code == EXIT_NO, "byte %zu: gpt data check exits with %d", at, code);
    EXIT_OF(code, WALKS(w->shard));
    CHECK_MSG(code == EXIT_REQUEST, "byte %zu: the loader exits with %d", at, code);
  }
  memcpy(bad, w->good.data, 64);
  bad[28] ^= 1;
  write_file(w->path, bad, 64);
  EXPECT_FAIL(EXIT_NO, "w.idx: bytes 32 to 63: checksum ", CHECK_DATA(w->shard));
  EXPECT_FAIL(EXIT_REQUEST, ", byte 28 says ", WALKS(w->shard));
}

// One question reads what it needs, and no more.
static void one_question_reads_what_it_needs(const Indexed *w) {
  char bad[64];
  memcpy(bad, w->good.data, 64);
  write_file(w->path, w->good.data, 64);
  bad[32 + 8] = 9;      // document 1 begins at token 9
  Dataloader *l = dataloader_open_shards(w->shard, SHARD_HEADER, 0);
  CHECK_EQ(dataloader_document_at(l, 4), 1);
  write_file(w->path, bad, 64);
  EXPECT_FAIL(EXIT_REQUEST, "w.idx: byte 40: document 1 begins at token 9, it must be 1 to 6", dataloader_document_at(l, 4));
  EXPECT_FAIL(EXIT_REQUEST, "w.idx: byte 40: document 1 begins at token 9, it must be 1 to 6", dataloader_document_starts(l, 1, 1, (int64_t[1]){0}));
  write_file(w->path, w->good.data, 50);
  EXPECT_FAIL(EXIT_MACHINE, "w.idx: byte 48: reading 1 starts failed: the file became shorter or the disk failed", dataloader_document_at(l, 4));
  dataloader_close(l);
}

// A disk that fails is the machine's matter.
static void disks_fail(const Indexed *w) {
  write_file(w->path, w->good.data, 64);
  disk_fails = true;
  EXPECT_FAIL(EXIT_MACHINE, "w.idx: reading the header failed: Input/output error", { sound_reads = 1; LOADS(w->shard); });
  EXPECT_FAIL(EXIT_MACHINE, "w.idx: byte 32: reading 4 starts failed", { sound_reads = 2; WALKS(w->shard); });
  EXPECT_FAIL(EXIT_MACHINE, ": reading the header failed: Input/output error", { sound_reads = 1; CHECK_DATA(w->shard); });
  EXPECT_FAIL(EXIT_MACHINE, "w.idx: byte 32: reading 4 starts failed", { sound_reads = 3; CHECK_DATA(w->shard); });
  EXPECT_FAIL(EXIT_MACHINE, "w.bin: byte 1024: reading 18 bytes failed: the file became shorter or the disk failed", { sound_reads = 4; CHECK_DATA(w->shard); });
  disk_fails = false;
}

// A folder, a pipe, a link to itself in its place.
static void what_is_no_file(const Indexed *w) {
  unlink(w->path);
  make_directory(w->path);
  EXPECT_FAIL(EXIT_REQUEST, "w.idx: is no regular file, an index of documents is needed", LOADS(w->shard));
  rmdir(w->path);
  if (mkfifo(w->path, 0600)) abort();
  EXPECT_FAIL(EXIT_REQUEST, "w.idx: is no regular file, an index of documents is needed", CHECK_DATA(w->shard));
  unlink(w->path);
  if (symlink(w->path, w->path)) abort();
  EXPECT_FAIL(EXIT_REQUEST, "w.idx: cannot open the index of documents: Too many levels", LOADS(w->shard));
  unlink(w->path);
}

static void wrong_indices_are_refused(void) {
  Indexed w = {.shard = in_folder("w.bin"), .path = in_folder("w.idx")};
  static const int32_t ids[] = {9, 1, 2, 9, 3, 9, 9, 4, 9};
  write_shard(w.shard, ids, N, 2, true, 10, 9, 'a');
  int fd = open(w.shard, O_RDWR);
  if (pwrite(fd, &(uint64_t){4}, 8, SHARD_AT_DOCUMENTS) != 8) abort();
  close(fd);
  Shard s = shard_open(w.shard, SHARD_HEADER);
  w.crc = s.crc;
  shard_close(&s);
  index_bytes(&w.good, (const int64_t[]){0, 3, 5, 6}, 4, N, w.crc);
  write_file(w.path, w.good.data, w.good.len);
  CHECK_EQ(w.good.len, 64);
  CHECK_EQ(CHECK_DATA(w.shard), 0);
  headers_are_checked(&w);
  another_shards_index(&w);
  starts_are_checked(&w);
  every_bit_is_checked(&w);
  one_question_reads_what_it_needs(&w);
  disks_fail(&w);
  what_is_no_file(&w);
  unlink(w.shard);
  buffer_free(&w.good);
  free(w.shard);
  free(w.path);
}

// More documents than are read at once: the last of one reading bounds the first of the next.
static void indices_are_walked_in_pieces(void) {
  enum { DOCUMENTS = 1030, LENGTH = 3 };
  static const int wrong[] = {-1, 511, 512, 513, 1024};
  char *shard = in_folder("p.bin"), *path = in_folder("p.idx");
  static int32_t ids[DOCUMENTS * LENGTH];
  static int64_t starts[DOCUMENTS];
  for (int i = 0; i < DOCUMENTS * LENGTH; i++) ids[i] = i % LENGTH ? 1 + i % 7 : 9;
  for (int i = 0; i < DOCUMENTS; i++) starts[i] = LENGTH * i;
  write_shard(shard, ids, DOCUMENTS * LENGTH, 2, true, 10, 9, 'a');
  Shard s = shard_open(shard, SHARD_HEADER);
  for (size_t w = 0; w < ARRAY_LEN(wrong); w++) {
    const int at = wrong[w];
    Buffer b = {0};
    if (at >= 0) starts[at] -= LENGTH;
    index_bytes(&b, starts, DOCUMENTS, DOCUMENTS * LENGTH, s.crc);
    write_file(path, b.data, b.len);
    if (at < 0) {
      ShardIndex x;
      char *why = NULL;
      CHECK_EQ(CHECK_DATA(shard), 0);
      CHECK(strstr(said.data, "index of 1030 documents right\n"));
      CHECK_EQ(shard_index_try_open(&s, &x, &why), 0);
      CHECK(fcntl(x.fd, F_GETFD) & FD_CLOEXEC);
      shard_index_close(&x);
    } else {
      char *needle = format("p.idx: byte %d: document %d begins at token %lld, it must be %lld to %d", 32 + 8 * at, at, (long long)starts[at], (long long)starts[at] + 1, DOCUMENTS * LENGTH - DOCUMENTS + at);
      EXPECT_FAIL(EXIT_NO, needle, CHECK_DATA(shard));
      EXPECT_FAIL(EXIT_REQUEST, needle, WALKS(shard));
      free(needle);
      starts[at] += LENGTH;
    }
    buffer_free(&b);
  }
  shard_close(&s);
  unlink(shard), unlink(path);
  free(shard), free(path);
}

// Documents of known lengths where no token tells where one begins: gpt data info counts them by the index, in several readings.
static void lengths_by_the_index(void) {
  char *text = in_folder("t.txt"), *plain = in_folder("plain.json"), *out = in_folder("d");
  Buffer b = {0}, json = {0};
  Tokenizer *t = tokenizer_byte(false);
  tokenizer_json(t, &json);
  write_file(plain, json.data, json.len);
  tokenizer_free(t);
  for (int i = 0; i < 1030; i++) buffer_printf(&b, "%.*s\n\n", 1 + i % 7, "xyzuvwt");
  write_file(text, b.data, b.len);
  CHECK_EQ(BUILD(text, "--tokenizer", plain, "--documents", "blank-line", "--out", out, "--val-fraction", "0"), 0);
  CHECK_EQ(INFO(out, "--json"), 0);
  buffer_append(&said, "", 1);
  CHECK(strstr(said.data, "text       4117 bytes, 1.000 bytes a token\n") && strstr(said.data, "tokens of a document: mean 4.0, longest 7\n"));
  CHECK(strstr(said.data, "           1 .. 1                  148  #############\n") && strstr(said.data, "           2 .. 3                  294  #########################\n"));
  CHECK(strstr(said.data, "\"documents\": 1030,"));
  remove_in_folder("d"), remove_in_folder("t.txt"), remove_in_folder("plain.json");
  buffer_free(&b), buffer_free(&json);
  free(text), free(plain), free(out);
}

// An end-of-text token whose id is 0, as a tokenizer of another program may have it: in shards, their check and what is said of them.
static void end_of_text_may_be_id_0(void) {
  char *text = in_folder("t.txt"), *vocabulary = in_folder("zero.json"), *out = in_folder("d"), *shard = in_folder("d/train_000000.bin"), *path = in_folder("d/train_000000.idx");
  char *val = in_folder("d/val_000000.bin"), error[200];
  Buffer j = {0}, plain = {0}, b = {0};
  Tokenizer *t = tokenizer_byte(false);
  tokenizer_json(t, &plain);
  Json *root = json_parse(plain.data, plain.len, error, sizeof error);
  const Json *vocab = json_get(json_get(root, "model"), "vocab");
  buffer_printf(&j, "{\"added_tokens\": [{\"id\": 0, \"content\": \"<|endoftext|>\"}], \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, \"model\": {\"type\": \"BPE\", \"vocab\": {\"<|endoftext|>\": 0");
  for (size_t i = 0; i < vocab->length; i++) {
    buffer_printf(&j, ", ");
    json_write_string(&j, vocab->keys[i], vocab->key_lengths[i]);
    buffer_printf(&j, ": %d", (int)vocab->items[i]->number + 1);
  }
  buffer_printf(&j, "}, \"merges\": []}}");
  json_free(root);
  tokenizer_free(t);
  write_file(vocabulary, j.data, j.len);
  write_file(text, "a\n\nbb\n\ncccc", 11);
  CHECK_EQ(BUILD(text, "--tokenizer", vocabulary, "--documents", "blank-line", "--out", out, "--val-fraction", "0"), 0);
  EXPECT_INDEX("d/train_000000", 0, 2, 5);
  size_t n;
  char *bytes = read_file(shard, "shard", 1 << 20, &n);
  CHECK(n == SHARD_HEADER_BYTES + 22 && !memcmp(bytes + SHARD_HEADER_BYTES, "\0\0b\0\0\0c\0c\0\0\0d\0d\0d\0d\0\0\0", 22));
  CHECK_EQ(CHECK_DATA(out, "--order", "on", "--context", "3", "--ranks", "2", "--epochs", "1"), 0);
  buffer_append(&said, "", 1);
  CHECK(strstr(said.data, "order of documents: context 3, batch 8, 2 ranks, seed 1337: 4 samples, 0.2 steps an epoch; in each of 1 epochs every one of 10 targets once\n"));
  CHECK_EQ(INFO(out, "--json"), 0);
  buffer_append(&said, "", 1);
  CHECK(strstr(said.data, "documents  3\nvocabulary 257, end-of-text id 0\n") && strstr(said.data, "text       7 bytes, 1.000 bytes a token\n"));
  CHECK(strstr(said.data, "tokens of a document: mean 2.3, longest 4\n"
    "           1 .. 1                    1  ##################################################\n"
    "           2 .. 3                    1  ##################################################\n"
    "           4 .. 7                    1  ##################################################\nit begins:"));
  // documents that the header has and the tokens have not; an index that has a document where none begins
  bytes[SHARD_AT_DOCUMENTS] = 2;
  write_file(shard, bytes, n);
  unlink(path);
  EXPECT_FAIL(EXIT_NO, "byte 48: 2 documents, but 4 end-of-text tokens", CHECK_DATA(shard, "--order", "on"));
  bytes[SHARD_AT_DOCUMENTS] = 3;
  write_file(shard, bytes, n);
  index_bytes(&b, (const int64_t[]){0, 2, 6}, 3, 11, load_u32le((const uint8_t *)bytes + SHARD_AT_CRC));
  write_file(path, b.data, b.len);
  EXPECT_FAIL(EXIT_NO, "idx: byte 48: no document begins at token 5, where ", CHECK_DATA(shard));
  remove_in_folder("d");
  // a split of one token before its end
  write_file(text, "ab", 2);
  CHECK_EQ(BUILD(text, "--tokenizer", vocabulary, "--documents", "none", "--out", out, "--val-fraction", "0.5"), 0);
  EXPECT_INDEX("d/train_000000", 0);
  Dataloader *l = dataloader_open_shards(val, SHARD_HEADER, 0);
  int32_t ids[2] = {7, 7};
  CHECK_EQ(dataloader_tokens(l), 2);
  dataloader_read(l, 0, 2, ids);
  CHECK(ids[0] == 'b' + 1 && ids[1] == 0);
  dataloader_close(l);
  remove_in_folder("d"), remove_in_folder("t.txt"), remove_in_folder("zero.json");
  buffer_free(&j), buffer_free(&plain), buffer_free(&b);
  free(bytes), free(text), free(vocabulary), free(out), free(shard), free(path), free(val);
}

// An index that is opened anew for every question may have gone meanwhile.
static void an_index_that_went(void) {
  int64_t n;
  free(make_shards("many", 258, true, &n));
  char *dir = in_folder("many"), *path = in_folder("many/0257.idx"), *hidden = in_folder("many/hidden");
  Dataloader *l = dataloader_open_shards(dir, SHARD_HEADER, 0);
  CHECK_EQ(dataloader_document_at(l, n - 1), dataloader_documents(l) - 1);
  if (rename(path, hidden)) abort();
  CHECK_EQ(dataloader_document_at(l, 0), 0);
  EXPECT_FAIL(EXIT_MACHINE, "many/0257.idx: is gone, it was there when this process began", dataloader_document_at(l, n - 1));
  write_file(path, "x", 1);
  EXPECT_FAIL(EXIT_REQUEST, "many/0257.idx: 1 bytes, an index of documents has at least 32", dataloader_longest_document(l));
  const int open_now = descriptors();
  dataloader_close(l);
  CHECK_EQ(open_now - descriptors(), 2 * 96);
  remove_in_folder("many");
  free(dir);
  free(path);
  free(hidden);
}

static int opened;
static void files_are_closed(void) { CHECK_MSG(opened == 0, "%d files are still open", opened); }

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  begin_folder("index");
  const int open_before = descriptors();
  RUN(small_texts_to_the_byte);
  RUN(documents_of_the_loader);
  RUN(rows_by_the_index);
  RUN(foreign_shards_have_none);
  RUN(wrong_indices_are_refused);
  RUN(an_index_that_went);
  RUN(indices_are_walked_in_pieces);
  RUN(lengths_by_the_index);
  RUN(end_of_text_may_be_id_0);
  RUN(threads_and_reading_change_nothing);       // last: it makes threads
  end_folder();
  opened = descriptors() - open_before;
  RUN(files_are_closed);
  return TEST_END();
}
