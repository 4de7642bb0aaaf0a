// test_data.c: tests of documents.c (texts to documents), data_build.c and data.c (gpt data).
#include "data_test.h"

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

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  begin_folder("data");
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
  RUN(build_cuts_nothing_without_a_pattern);
  RUN(build_keeps_every_token);       // last: it makes threads, see BUILD
  end_folder();
  return TEST_END();
}
