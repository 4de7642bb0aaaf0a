// test_data.c: tests of data_build.c and data.c (gpt data). Texts to documents: test_documents.c.
#include "data_test.h"
#include "guard_heap.h"

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
  CHECK_HASH(chosen[0], sizeof chosen[0], "006f454648c8e7b1039a752e2b0bb66b789c8a2f0221f537371669c52033df4b");
  CHECK_EQ(val, 84);    // about 80 of 400; pinned: a folder that is built again is divided in the same way by every version
  remove_in_folder("docs.jsonl");
  free(lines);
  free(out);
}

// Below 100 documents the last ones validate: those that begin behind the share of training, or do not end before it.
static void the_last_documents_validate(void) {
  static const struct { const char *text, *fraction, *documents, *train, *val; } cases[] = {
    {"aaaa\n\nbbbb\n\ncccccccc", "0.5", "blank-line", "|aaaa|bbbb|", "|cccccccc|"}, {"aaaa\n\nbbbbb\n\nccccccc", "0.5", "blank-line", "|aaaa|", "|bbbbb|ccccccc|"},
    {"aaaaaaaaaa\n\nbb", "0.5", "blank-line", "|aaaaaaaaaa|", "|bb|"}, {"a\n\nbbbbbbbbb", "0.5", "blank-line", "|a|", "|bbbbbbbbb|"},
    {"aaaabbbb", "0.5", "blank-line", "aaaa", "bbbb"}, {"aaaa\n\nbbbb", "0.25", "blank-line", "|aaaa|", "|bbbb|"}, {"aaaabbbb", "0.5", "file", "aaaa", "bbbb"},
    {"ab", "0.5", "none", "a", "b"}, {"aaaa\n\nbbbb\n\ncccccccc", "0.49", "blank-line", "|aaaa|bbbb|", "|cccccccc|"}, {"aaaa\n\nbbbb", "0", "blank-line", "|aaaa|bbbb|", ""}};
  char *text = in_folder("sides.txt"), *out = in_folder("shards");
  for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
    write_file(text, cases[c].text, strlen(cases[c].text));
    CHECK_EQ(BUILD(text, "--tokenizer", "byte", "--documents", cases[c].documents, "--val-fraction", cases[c].fraction, "--out", out), 0);
    buffer_append(&said, "", 1);
    const char *names[] = {"train", "val"}, *expected[] = {cases[c].train, cases[c].val};
    char *all = format("train on them: gpt train --train-data '%s/train_*.bin' --val-data '%s/val_*.bin'\n", out, out), *one = format("train on them: gpt train --train-data '%s/train_*.bin'\n", out);
    CHECK(strstr(said.data, *expected[1] ? all : one));
    free(all), free(one);
    for (int s = 0; s < 2; s++) {
      if (!*expected[s]) { CHECK_EQ(names_in("shards", names[s]), 0); continue; }
      int64_t n;
      int32_t *ids = read_split("shards", names[s], &n);
      char got[64] = "";
      for (int64_t i = 0; i < n && i < 63; i++) got[i] = ids[i] == 256 ? '|' : (char)ids[i];
      CHECK_STR(got, expected[s]);
      free(ids);
    }
    remove_in_folder("shards");
  }
  // a share too small for any document is said; one that leaves nothing to train on is refused
  Buffer many = {0};
  for (int i = 0; i < 100; i++) buffer_printf(&many, "%d\n\n", i);
  write_file(text, many.data, many.len);
  EXPECT_FAIL(0, "gpt: warning: 0 documents are for validation: --val-fraction 1e-09 is too small for this text", BUILD(text, "--tokenizer", "byte", "--documents", "blank-line", "--val-fraction", "1e-9", "--out", out));
  CHECK_EQ(names_in("shards", "val_"), 0);
  remove_in_folder("shards");
  // 99 documents: the last of them; 100: by what they hold
  for (int count = 99; count <= 100; count++) {
    many.len = 0;
    for (int i = 0; i < count; i++) buffer_printf(&many, "%02d\n\n", i);
    write_file(text, many.data, many.len);
    CHECK_EQ(BUILD(text, "--tokenizer", "byte", "--documents", "blank-line", "--val-fraction", "0.25", "--out", out), 0);
    int64_t n;
    int32_t *ids = read_split("shards", "train", &n);
    bool first_ones = true;
    for (int64_t i = 0; i + 3 < n; i += 3) first_ones &= ids[i + 1] == '0' + i / 3 / 10 && ids[i + 2] == '0' + i / 3 % 10;
    CHECK_MSG(first_ones == (count == 99), "%d documents", count);
    free(ids);
    remove_in_folder("shards");
  }
  write_file(text, "\xe4\xb8\xad", 3);
  EXPECT_FAIL(EXIT_REQUEST, "the texts are too short: 0 tokens are left for training", BUILD(text, "--tokenizer", "byte", "--val-fraction", "0.5", "--out", out));
  CHECK(!is_directory(out));
  write_file(text, "\x80\x80\x80\x80", 4);   // no character begins here
  EXPECT_FAIL(EXIT_REQUEST, "the texts are too short: 0 tokens are left for training", BUILD(text, "--tokenizer", "byte", "--val-fraction", "0.5", "--out", out));
  write_file(text, "\n \n\t\n", 5);
  EXPECT_FAIL(EXIT_REQUEST, "the texts hold 0 documents, at least 1 is needed", BUILD(text, "--tokenizer", "byte", "--documents", "blank-line", "--out", out));
  write_file(text, "ab", 2);
  make_directory(out);                       // an empty folder will do
  CHECK_EQ(BUILD(text, "--tokenizer", "byte", "--val-fraction", "0", "--out", out), 0);
  EXPECT_FAIL(EXIT_REQUEST, "made for a vocabulary of 256 ids, the tokenizer has 50257; name the one they were made with by --tokenizer", INFO(out, "--tokenizer", "gpt2"));
  char *record = in_folder("shards/build.json");
  for (int i = 0; i < 2; i++) {
    write_file(record, i ? "{}" : "x", 1 + (size_t)i);
    EXPECT_FAIL(EXIT_REQUEST, "shards: holds a finished build of something else; name another --out", BUILD(text, "--tokenizer", "byte", "--val-fraction", "0", "--out", out));
  }
  free(record);
  remove_in_folder("shards");
  EXPECT_FAIL(EXIT_REQUEST, "--jsonl and --documents are both given", BUILD(text, "--tokenizer", "byte", "--jsonl", "text", "--documents", "file", "--out", out));
  write_file(text, "ab\n\nc\xe9", 6);
  EXPECT_FAIL(EXIT_REQUEST, "sides.txt: byte 5: byte 0xe9 is no UTF-8", BUILD(text, "--tokenizer", "char", "--out", out));
  write_file(text, "{\"text\": \"ab\"}\n{\"text\": \"c\xe9\"}", 29);
  EXPECT_FAIL(EXIT_REQUEST, "sides.txt: line 2", BUILD(text, "--tokenizer", "char", "--jsonl", "text", "--out", out));
  buffer_free(&many);
  unlink(text);
  free(text);
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

// One thread: the first batch has 128 KiB, each next one four times as much, at most 4 MiB. `lines` = wanted lines of progress, one in `every` batches; every look at the clock is `step` seconds later than the last.
static void check_progress(const char *text, const char *out, double step, int every, int lines) {
  static const double share[] = {1, 7, 30, 75, 100};   // of the text that each batch ends at, per cent
  int64_t all = 9500000;
  int found = 0;
  clock_now = 1000, clock_step = step;
  CHECK_EQ(BUILD(text, "--tokenizer", "byte", "--documents", "blank-line", "--out", out, "--val-fraction", "0.5"), 0);
  clock_step = 0;
  for (const char *line = said.data; line && !strncmp(line, "build ", 6); line = strchr(line, '\n'), line += line != NULL, found++) {
    double percent, rate, tokens, seconds = step * every * (found + 1);
    long long minutes, rest;
    CHECK_EQ(sscanf(line, "build %lf%%  %lf MB/s  %lfM tokens  eta %lld:%lld", &percent, &rate, &tokens, &minutes, &rest), 5);
    double done = percent / 100 * (double)all, left = seconds * ((double)all - done) / done;
    // what is printed is rounded: the share to a percent, the rate to 0.1 MB/s
    CHECK_NEAR(1e6 * rate * seconds, done, 0.005 * (double)all + 0.05e6 * seconds, "%.0f%% after %g s", percent, seconds);
    CHECK_NEAR(60.0 * (double)minutes + (double)rest, left, 1 + 0.01 * seconds * (double)all * (double)all / done / done, "time left at %.0f%%", percent);
    CHECK(rest < 60);
    CHECK_NEAR(1e6 * tokens, done, 0.005 * (double)all + 1e6, "tokens at %.0f%%", percent);
    if ((found + 1) * every <= 5) CHECK_NEAR(percent, share[(found + 1) * every - 1], 3, "where a batch ends");   // reading is a buffer ahead
  }
  CHECK_EQ(found, lines);
  buffer_append(&said, "", 1);
  double mb = 0, bytes_a_token = 0, seconds = 0, rate = 0;
  int threads = 0;
  const char *line = strstr(said.data, " MB of text, ");
  while (line && line > said.data && line[-1] != '\n') line--;
  CHECK_EQ(line ? sscanf(line, "%lf MB of text, %lf bytes a token, %lf s, %lf MB/s, %d threads", &mb, &bytes_a_token, &seconds, &rate, &threads) : 0, 5);
  CHECK_NEAR(mb, 9.5, 1e-9, "bytes");
  CHECK_NEAR(seconds, 6 * step, 0.051, "from the first look at the clock to the last");
  CHECK_NEAR(rate, 9.5 / (6 * step), 0.051, "their ratio");
  CHECK(bytes_a_token > 0.98 && bytes_a_token < 1.03 && threads == 1);
  remove_in_folder("shards");
}

// How often the disk was asked to write what a file has so far.
static int asked;
int sync_file_range(int fd, off_t offset, off_t n, unsigned flags) {
  asked += offset == 0 && n == 0 && flags == SYNC_FILE_RANGE_WRITE;
  return (int)syscall(SYS_sync_file_range, fd, offset, n, flags);
}

static void progress_is_said_every_five_seconds(void) {
  char *text = in_folder("progress.txt"), *out = in_folder("shards"), *bytes = xmalloc(9500000, 1);
  for (size_t i = 0; i < 9500000; i++) bytes[i] = i % 100 > 97 ? '\n' : (char)('a' + (i / 100 >> i % 20 & 1));   // documents differ
  write_file(text, bytes, 9500000);
  check_progress(text, out, 5, 1, 5);      // batches of 1/8, 1/2, 2, 4 and 2.4 MiB
  CHECK_EQ(asked, 4);                      // 9.5 MB in two bytes a token in two files: each 4 MiB of them
  check_progress(text, out, 4.5, 2, 2);
  check_progress(text, out, 0.9, 1, 0);
  free(bytes);
  unlink(text);
  free(text);
  free(out);
}

// The cut falls into a character of a text that is one piece: it moves to its start, and no end-of-text token comes of it.
// With over 65,536 characters ids have 4 bytes.
static void build_of_characters(void) {
  char *text = in_folder("wide.txt"), *out = in_folder("shards");
  for (int wide = 0; wide < 3; wide++) {
    Buffer b = {0};
    int32_t count = wide ? 65535 + wide : 10;
    for (int32_t i = 0; i < count; i++) {
      char utf8[4];
      buffer_append(&b, utf8, (size_t)utf8_encode(0x110000 - (uint32_t)(count - i), utf8));      // up to the last there is
    }
    write_file(text, b.data, b.len);
    CHECK_EQ(BUILD(text, "--tokenizer", "char", "--out", out, "--val-fraction", "0.45"), 0);   // of 10 x 4 bytes: 22 train
    TokenBuffer sides[2] = {{0}, {0}};
    for (int32_t i = 0; i < count; i++) token_buffer_append(&sides[i >= (wide ? (int32_t)(4 * count * 0.55) / 4 : 5)], i);
    expect_split("shards", "train", &sides[0]);
    expect_split("shards", "val", &sides[1]);
    CHECK_EQ(CHECK_DATA(out), 0);
    CHECK(strstr(said.data, wide == 2 ? "tokens of 4 bytes" : "tokens of 2 bytes"));
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

// In the child, files may not grow past 100 KB.
// Names that end in `limited` and are given before the disk is said to be full; -1: any number.
static const char *limited = ".bin";
static int names_left = -1, shards_until_signal = -1, sent = SIGTERM;
int rename(const char *from, const char *to) {
  size_t n = strlen(to), end = strlen(limited);
  if (n > 4 && !strcmp(to + n - 4, ".bin") && shards_until_signal >= 0 && shards_until_signal-- == 0) raise(sent);
  if (names_left >= 0 && n > end && !strcmp(to + n - end, limited) && names_left-- == 0) { errno = ENOSPC; return -1; }
  return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

// A disk that fails late: when a file is to be on it, or is closed. One reading or writing, so many after now.
static int syncs_left = -1;
int fsync(int fd) {
  errno = EIO;
  return syncs_left >= 0 && syncs_left-- == 0 ? -1 : (int)syscall(SYS_fsync, fd);
}
static bool closing_fails;   // of shards: what is open for writing only, and large
int close(int fd) {
  struct stat st;
  const bool shard = closing_fails && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY && fstat(fd, &st) == 0 && st.st_size > 50000;
  const int done = (int)syscall(SYS_close, fd);
  if (shard) errno = EIO;
  return shard ? -1 : done;
}

static void build_on_a_full_disk(const char *text, const char *out) {
  limit_files(100000);
  BUILD(text, "--tokenizer", "byte", "--out", out, "--shard-tokens", "80k", "--val-fraction", "0");
}

// Where the texts and shards of these tests lie.
typedef struct { char *text, *lines, *out, *deep, *json; } Places;

// A line that is wrong leaves nothing.
static void wrong_lines_leave_nothing(const Places *p) {
  Buffer b = {0};
  for (int i = 0; i < 3000; i++) buffer_printf(&b, "{\"text\": \"document %d\"}\n", i);
  buffer_printf(&b, "{\"text\": 7}\n");
  write_file(p->lines, b.data, b.len);
  EXPECT_FAIL(EXIT_REQUEST, "t.jsonl: line 3001: text is needed", BUILD(p->lines, "--tokenizer", "gpt2", "--jsonl", "text", "--out", p->out, "--shard-tokens", "1000"));
  CHECK(!is_directory(p->out));
  // not even of shards that were finished before the line was met: batches have 4 MiB
  b.len = 0;
  for (int i = 0; i < 4500; i++) buffer_printf(&b, "{\"text\": \"%01000d\"}\n", i);
  buffer_printf(&b, "7\n");
  write_file(p->lines, b.data, b.len);
  EXPECT_FAIL(EXIT_REQUEST, "t.jsonl: line 4501: an object is needed", BUILD(p->lines, "--tokenizer", "byte", "--jsonl", "text", "--out", p->out, "--shard-tokens", "1000000"));
  CHECK(!is_directory(p->out));
  buffer_free(&b);
}

// A refusal takes away what a build makes, and nothing else.
static void refusals_take_only_what_builds_make(const Places *p) {
  Buffer b = {0};
  for (int i = 0; i < 300; i++) buffer_printf(&b, "{\"text\": \"document %d\", \"title\": \"number %d\"}\n", i, i);
  write_file(p->lines, b.data, b.len);
  int code;
  EXIT_OF(code, { names_left = 1; BUILD(p->lines, "--tokenizer", "byte", "--jsonl", "text", "--out", p->out, "--shard-tokens", "1000"); });
  CHECK_EQ(code, EXIT_MACHINE);
  EXPECT_FAIL(EXIT_REQUEST, "interrupted build of another request", BUILD(p->lines, "--tokenizer", "byte", "--jsonl", "title", "--out", p->out, "--shard-tokens", "1000"));
  static const char *const others[] = {"notes", "train_1.txt", "x.bin", "val.bin", "build.json.old", "my_tokenizer.json"}, *const mine[] = {"train_9.bin", "val_000001.bin", "train_000009.bin.tmp", "val_7.bin.tmp"};
  for (size_t i = 0; i < ARRAY_LEN(others) + ARRAY_LEN(mine); i++) {
    char *path = format("%s/%s", p->out, i < ARRAY_LEN(others) ? others[i] : mine[i - ARRAY_LEN(others)]);
    write_file(path, "x", 1);
    free(path);
  }
  memcpy(b.data + b.len - 3, "!!!", 3);      // the last line, behind all that is in a shard
  write_file(p->lines, b.data, b.len);
  EXPECT_FAIL(EXIT_REQUEST, "t.jsonl: line 300 is no JSON", BUILD(p->lines, "--tokenizer", "byte", "--jsonl", "text", "--out", p->out, "--shard-tokens", "1000"));
  for (size_t i = 0; i < ARRAY_LEN(others); i++) CHECK_MSG(names_in("shards", others[i]) == 1, "%s is gone", others[i]);
  CHECK_EQ(names_in("shards", ""), ARRAY_LEN(others));
  remove_in_folder("shards");
  buffer_free(&b);
}

static void characters_without_an_id(const Places *p) {
  Buffer j = {0};
  write_file(p->text, "abc\nabd abq", 11);
  Tokenizer *t = tokenizer_char_from_text("text", "abcd \n", 6, false);
  tokenizer_json(t, &j);
  write_file(p->json, j.data, j.len);
  tokenizer_free(t);
  EXPECT_FAIL(EXIT_REQUEST, "t.txt: byte 10: the tokenizer has no id for the character that begins with byte 0x71; take gpt2 or byte", BUILD(p->text, "--tokenizer", p->json, "--out", p->out, "--val-fraction", "0"));
  EXPECT_FAIL(EXIT_REQUEST, "t.txt: byte 10: the tokenizer has no id", BUILD(p->text, "--tokenizer", p->json, "--out", p->out, "--val-fraction", "0.5"));
  write_file(p->lines, "{\"text\": \"abc\"}\n{\"text\": \"aqc\"}\n", 32);
  EXPECT_FAIL(EXIT_REQUEST, "t.jsonl: line 2: the tokenizer has no id for the character that begins with byte 0x71", BUILD(p->lines, "--tokenizer", p->json, "--jsonl", "text", "--out", p->out, "--val-fraction", "0"));
  CHECK(!is_directory(p->out));
  buffer_free(&j);
}

static void wrong_requests_are_refused(const Places *p) {
  EXPECT_FAIL(EXIT_REQUEST, "--tokenizer is missing", BUILD(p->text, "--out", p->out));
  EXPECT_FAIL(EXIT_REQUEST, "--out is missing", BUILD(p->text, "--tokenizer", "byte"));
  EXPECT_FAIL(EXIT_REQUEST, "needs a TEXT", BUILD("--tokenizer", "byte", "--out", p->out));
  EXPECT_FAIL(EXIT_REQUEST, "is missing; make it first", BUILD(p->text, "--tokenizer", "byte", "--out", p->deep));
  EXPECT_FAIL(EXIT_REQUEST, "other files, an empty or new folder is needed", BUILD(p->text, "--tokenizer", "byte", "--out", folder));
  char *one = in_folder("one"), *inside = in_folder("one/file");
  make_directory(one);
  write_file(inside, "x", 1);
  EXPECT_FAIL(EXIT_REQUEST, "holds 1 other files", BUILD(p->text, "--tokenizer", "byte", "--out", one));
  remove_in_folder("one");
  free(one);
  free(inside);
  EXPECT_FAIL(EXIT_REQUEST, "is a file, --out needs a folder", BUILD(p->text, "--tokenizer", "byte", "--out", p->text));
}

// A disk that is full or fails leaves whole shards.
static void disks_fail_while_building(const Places *p) {
  int code;
  EXPECT_FAIL(EXIT_MACHINE, "cannot write", build_on_a_full_disk(p->text, p->out));
  CHECK_EQ(names_in("shards", ".bin"), 0);
  CHECK_EQ(names_in("shards", "build.json"), 1);
  remove_in_folder("shards");
  for (int shard = 0; shard < 4; shard += 3) {   // build.json and tokenizer.json come first, each with its folder; then a shard, its index, the folder, and the record with its own
    EXPECT_FAIL(EXIT_MACHINE, shard ? "cannot put on disk: Input/output error; 3 finished shards stay" : "cannot put on disk: Input/output error; 0 finished shards stay",
                { syncs_left = 4 + 5 * shard; BUILD(p->text, "--tokenizer", "byte", "--out", p->out, "--shard-tokens", "80k", "--val-fraction", "0"); });
    CHECK(names_in("shards", ".tmp") == 0 && (int)names_in("shards", ".bin") == shard);
    remove_in_folder("shards");
  }
  EXPECT_FAIL(EXIT_MACHINE, "train_000000.bin: cannot name the file so: Input/output error; 0 finished shards stay",
              { syncs_left = 6; BUILD(p->text, "--tokenizer", "byte", "--out", p->out, "--shard-tokens", "80k", "--val-fraction", "0"); });
  remove_in_folder("shards");
  char *first = in_folder("shards/train_000000.bin.tmp");
  make_directory(p->out);
  write_file(first, "", 0);
  EXPECT_FAIL(EXIT_REQUEST, "holds 1 other files", BUILD(p->text, "--tokenizer", "byte", "--out", p->out, "--val-fraction", "0"));
  remove_in_folder("shards");
  free(first);
  EXIT_OF(code, { names_left = 0; BUILD(p->text, "--tokenizer", "byte", "--out", p->out, "--shard-tokens", "80k", "--val-fraction", "0"); });
  CHECK(code == EXIT_MACHINE && names_in("shards", "build.json") == 1);
  EXPECT_FAIL(EXIT_MACHINE, "train_000000.bin.tmp: cannot close: Input/output error", { closing_fails = true; BUILD(p->text, "--tokenizer", "byte", "--out", p->out, "--shard-tokens", "80k", "--val-fraction", "0"); });
}

// Something bars the way of the third shard: two are whole and stay, and the same command goes on.
static void goes_on_behind_whole_shards(const Places *p, size_t tokens) {
  char *bar = in_folder("shards/train_000002.bin.tmp");
  make_directory(bar);
  EXPECT_FAIL(EXIT_MACHINE, "2 finished shards stay",
              BUILD(p->text, "--tokenizer", "byte", "--out", p->out, "--shard-tokens", "80k", "--val-fraction", "0"));
  CHECK_EQ(names_in("shards", ".bin"), 3);
  CHECK_EQ(CHECK_DATA(p->out), 0);
  CHECK(strstr(said.data, "2 shards, 160000 tokens: all whole"));
  rmdir(bar);
  free(bar);
  EXPECT_FAIL(EXIT_REQUEST, "interrupted build of another request", BUILD(p->text, "--tokenizer", "byte", "--out", p->out, "--val-fraction", "0"));
  // the record alone, as a build leaves it that was ended at once
  char *only = in_folder("only"), *kept = in_folder("shards/build.json"), *copy = in_folder("only/build.json");
  size_t kept_bytes;
  char *record = read_file(kept, "record", 1 << 20, &kept_bytes);
  make_directory(only);
  write_file(copy, record, kept_bytes);
  EXPECT_FAIL(EXIT_REQUEST, "interrupted build of another request", BUILD(p->text, "--tokenizer", "byte", "--out", only, "--val-fraction", "0"));
  remove_in_folder("only");
  free(only), free(kept), free(copy), free(record);
  CHECK_EQ(BUILD(p->text, "--tokenizer", "byte", "--out", p->out, "--shard-tokens", "80k", "--val-fraction", "0"), 0);
  CHECK(strstr(said.data, "an interrupted build, goes on behind 2 finished shards"));
  CHECK_EQ(names_in("shards", ".bin"), (tokens + 79999) / 80000);
  CHECK_EQ(names_in("shards", ".idx"), (tokens + 79999) / 80000);
  CHECK_EQ(names_in("shards", ".tmp"), 0);
  EXPECT_FAIL(EXIT_REQUEST, "finished build of this very request",
              BUILD(p->text, "--tokenizer", "byte", "--out", p->out, "--shard-tokens", "80k", "--val-fraction", "0"));
  remove_in_folder("shards");
}

// A refused request leaves nothing; a full disk leaves whole shards and the same command goes on.
static void build_leaves_nothing_half(void) {
  const Places p = {in_folder("t.txt"), in_folder("t.jsonl"), in_folder("shards"), in_folder("no/shards"), in_folder("char.json")};
  Buffer b = {0};
  wrong_lines_leave_nothing(&p);
  refusals_take_only_what_builds_make(&p);
  characters_without_an_id(&p);
  wrong_requests_are_refused(&p);
  random_text(&b, 300000, true);
  write_file(p.text, b.data, b.len);
  disks_fail_while_building(&p);
  goes_on_behind_whole_shards(&p, b.len);
  remove_in_folder("t.txt");
  remove_in_folder("t.jsonl");
  remove_in_folder("char.json");
  buffer_free(&b);
  free(p.text), free(p.lines), free(p.out), free(p.deep), free(p.json);
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

// One build, again and again: in one go into `whole`, stopped and gone on into `out`.
typedef struct { const char *text, *whole, *out, *tokenizer; const char *const *flags; } Again;      // shard tokens, fraction, documents
#define AGAIN(to) BUILD(a->text, "--tokenizer", a->tokenizer, "--shard-tokens", a->flags[0], "--val-fraction", a->flags[1], "--documents", a->flags[2], "--out", to)

// Stopped behind each of its shards. The text is changed meanwhile: refused, and what is there stays.
static void stopped_behind_each_shard(const Again *a, Buffer *b, const char *how) {
  int code = EXIT_MACHINE, stops = 0;
  for (; code == EXIT_MACHINE && stops < 40; stops++) {
    EXIT_OF(code, { names_left = 1; AGAIN(a->out); });
    if (code == EXIT_MACHINE) CHECK_EQ(names_in("shards", ".bin"), stops + 1);
    if (stops == 1 && code == EXIT_MACHINE) {
      for (size_t i = 0; i < b->len; i++) b->data[i] = (char)(b->data[i] == 't' ? 'T' : b->data[i]);
      write_file(a->text, b->data, b->len);
      EXPECT_FAIL(EXIT_REQUEST, "the text has changed since this build was interrupted", AGAIN(a->out));
      CHECK_EQ(names_in("shards", ".bin"), 2);
      for (size_t i = 0; i < b->len; i++) b->data[i] = (char)(b->data[i] == 'T' ? 't' : b->data[i]);   // random_text writes no T
      write_file(a->text, b->data, b->len);
    }
  }
  CHECK_EQ(code, 0);
  CHECK_MSG(stops >= 4, "%s was stopped %d times only", how, stops - 1);
  expect_same_folder(a->whole, a->out, how);
  remove_in_folder("shards");
}

// The record of the second shard cannot be written, then not even the next build's first one: shards stay. Nor the last record of all.
static void records_that_cannot_be_written(const Again *a) {
  int code;
  EXIT_OF(code, { limited = "build.json"; names_left = 2; AGAIN(a->out); });
  CHECK_EQ(code, EXIT_MACHINE);
  EXIT_OF(code, { limited = "build.json"; names_left = 0; AGAIN(a->out); });
  CHECK_EQ(code, EXIT_MACHINE);
  CHECK_EQ(names_in("shards", ".bin"), 2);
  CHECK_EQ(AGAIN(a->out), 0);
  expect_same_folder(a->whole, a->out, "record not written");
  remove_in_folder("shards");
  const int shards = (int)names_in("whole", ".bin");
  EXIT_OF(code, { limited = "build.json"; names_left = shards + 1; AGAIN(a->out); });
  CHECK_EQ(code, EXIT_MACHINE);
  CHECK_EQ(names_in("shards", ".bin"), shards);
  CHECK_EQ(AGAIN(a->out), 0);
  expect_same_folder(a->whole, a->out, "last record not written");
  remove_in_folder("shards");
}

// How many shards there are, of both splits.
static void shards_of_both_splits_are_told(const Again *a) {
  for (int number = 3; number <= 6; number += 3) {
    char *said_so = format("%d finished shards stay", number);
    EXPECT_FAIL(EXIT_MACHINE, said_so, { names_left = number; guarded = number > 3; AGAIN(a->out); });
    CHECK_EQ(names_in("shards", ".bin"), number);
    CHECK(names_in("shards", "val_") > 0 && names_in("shards", "train_") > 0);
    remove_in_folder("shards");
    free(said_so);
  }
}

// A shard or its index is gone, or a record says what cannot be: that split is made from its start.
static void damaged_builds_begin_anew(const Again *a) {
  int code;
  for (int damage = 0; damage < 6; damage++) {
    EXIT_OF(code, { names_left = 2; AGAIN(a->out); });
    (void)code;              // what is left says it
    CHECK_EQ(names_in("shards", ".idx"), 2);
    char *shard = in_folder(damage < 4 ? "shards/train_000000.bin" : "shards/train_000000.idx"), *record = in_folder("shards/build.json"), *at;
    size_t n;
    char *said_there = read_file(record, "record", 1 << 20, &n);
    if (damage == 0 || damage == 4) unlink(shard);
    else if (damage == 5) write_file(shard, "GPTD", 4);
    else if (damage == 1) { at = strstr(said_there, "\"done\": "); at[8] = at[8] == '9' ? '8' : '9'; }
    else if (damage == 2) {
      at = strstr(said_there, "\"tokens\": ") + 10;
      char *more = format("%.*s999999999%s", (int)(at - said_there), said_there, at + strspn(at, "0123456789"));
      free(said_there);
      said_there = more, n = strlen(more);
    }
    else { at = strstr(said_there, "\"jobs\""); at[1] = 'J'; }
    if (damage < 4) write_file(record, said_there, n);
    CHECK_EQ(AGAIN(a->out), 0);
    expect_same_folder(a->whole, a->out, "damaged");
    remove_in_folder("shards");
    free(shard), free(record), free(said_there);
  }
}

// Killed between the names of an index and its shard; an index that cannot have its name: no shard without one.
static void shards_have_their_index(const Again *a) {
  int code;
  EXIT_OF(code, { shards_until_signal = 1; sent = SIGKILL; AGAIN(a->out); });
  CHECK_EQ(code, 1000 + SIGKILL);
  CHECK_EQ(names_in("shards", ".bin") - names_in("shards", ".bin.tmp"), 1);
  CHECK_EQ(names_in("shards", ".idx") - names_in("shards", ".idx.tmp"), 2);
  CHECK_EQ(AGAIN(a->out), 0);
  expect_same_folder(a->whole, a->out, "killed");
  remove_in_folder("shards");
  EXIT_OF(code, { limited = ".idx"; names_left = 2; AGAIN(a->out); });
  CHECK_EQ(code, EXIT_MACHINE);
  CHECK_EQ(names_in("shards", ".idx"), 2);
  CHECK_EQ(names_in("shards", ".bin"), 2);
  CHECK_EQ(AGAIN(a->out), 0);
  expect_same_folder(a->whole, a->out, "index not named");
  remove_in_folder("shards");
}

// A signal: the shards that are finished stay.
static void signals_stop_a_build(const Again *a, int number) {
  int code;
  EXIT_OF(code, { shards_until_signal = 1; sent = number; AGAIN(a->out); });
  CHECK_EQ(code, 128 + number);
  CHECK(names_in("shards", ".bin") >= 2);
  CHECK_EQ(AGAIN(a->out), 0);
  expect_same_folder(a->whole, a->out, "signal");
  remove_in_folder("shards");
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
    const Again again = {text, whole, out, strcmp(ways[way][0], "shards.json") ? ways[way][0] : plain, ways[way] + 1}, *a = &again;
    if (way == FEW_DOCUMENTS) b.len /= 2;
    write_file(text, b.data, b.len);
    CHECK_EQ(AGAIN(whole), 0);
    stopped_behind_each_shard(a, &b, ways[way][0]);
    records_that_cannot_be_written(a);
    if (way == 1) shards_of_both_splits_are_told(a);
    if (way % 4 == 0) damaged_builds_begin_anew(a);
    shards_have_their_index(a);
    signals_stop_a_build(a, way % 2 ? SIGINT : SIGTERM);
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
  // the largest ids of each width, where shards do not say their vocabulary; epochs are whole
  for (int width = 2; width <= 4; width += 2) {
    write_shard(raw, (const int32_t[]){width == 2 ? 65535 : INT32_MAX - 1, 1, 2}, 3, width, false, -1, -1, 'a');
    CHECK_EQ(CHECK_DATA(raw, "--order", "on", "--epochs", "2.5", "--context", "1"), 0);
    CHECK(strstr(said.data, "order of windows: context 1, batch 8, 1 rank, seed 1337: 2 samples, 0.2 steps an epoch; in each of 3 epochs every one of 2 targets once\n"));
  }
  unlink(raw);
  remove_in_folder("small");
  free(out);
  free(shards);
  free(raw);
}

// All that the commands say and write of a text of 200 KB, from a folder where names are short, by its hash.
static void words_are_pinned(void) {
  static const char *const words[] = {"the ", "old ", "bear ", "found ", "a ", "red ", "key ", "and ", "sang.\n", "slept.\n\n", "Where?", " 1234", "\"yes\" "};
  static const struct { const char *tokenizer, *hash; } cases[] = {{"byte", "864fbf533c7f703879b414791fe320aaf8824e33bb18ff44deb59dfcef51302c"}, {"gpt2", "1dd83fde31be8ccf486838b9e46f568168604a839e9864451f20f358cbe548a8"}};
  char before[4096];
  Buffer text = {0}, all = {0};
  if (!getcwd(before, sizeof before) || chdir(folder)) abort();
  for (uint64_t i = 0; text.len < 200000; i++) { const char *w = words[rng_below(i < 12000 ? 8 + i % 6 : 9, 3, 0, rng_site("pinned"), i)]; buffer_append(&text, w, strlen(w)); }
  write_file("words.txt", text.data, text.len);
  for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
    size_t n;
    CHECK_EQ(BUILD("words.txt", "--tokenizer", cases[c].tokenizer, "--documents", "blank-line", "--out", "words", "--shard-tokens", "70000", "--val-fraction", "0.1"), 0);
    all.len = 0;
    char *record = read_file("words/build.json", "record", 1 << 20, &n);
    buffer_append(&all, record, n);
    free(record);
    CHECK_EQ(CHECK_DATA("words", "--order", "on", "--context", "300"), 0);
    buffer_append(&all, said.data, said.len);
    CHECK_EQ(INFO("words/train_*.bin", "words/val_000000.bin", "--json"), 0);
    buffer_append(&all, said.data, said.len);
    write_shard("foreign.bin", (const int32_t[]){3, 1, 2}, 3, 2, false, -1, -1, 'a');
    CHECK_EQ(CHECK_DATA("foreign.bin"), 0);
    buffer_append(&all, said.data, said.len);
    CHECK_EQ(INFO("foreign.bin"), 0);
    buffer_append(&all, said.data, said.len);
    if (chdir("words")) abort();
    CHECK_EQ(INFO("val_000000.bin"), 0);           // its tokenizer is beside it, in this very folder
    buffer_append(&all, said.data, said.len);
    if (chdir("..")) abort();
    CHECK_HASH(all.data, all.len, cases[c].hash);
    remove_in_folder("words");
  }
  remove_in_folder("words.txt"), remove_in_folder("foreign.bin");
  if (chdir(before)) abort();
  buffer_free(&text), buffer_free(&all);
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
    "index      where 3 documents begin\n"
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

// A split of one token is written and said: it predicts nothing.
static void a_split_of_one_token_is_told(void) {
  static const struct { const char *fraction, *text, *words; } cases[] = {
    {"0.1", "abcdefghij", "gpt: warning: val_*.bin: 1 token, at least 2 are needed, one to predict the other from, so gpt train will not take it; build again with a larger --val-fraction, or with 0\n"},
    {"0.9", "abcdefghijk", "gpt: warning: train_*.bin: 1 token, at least 2 are needed, one to predict the other from, so gpt train will not take it; build again with a smaller --val-fraction, or with 0\n"}};
  char *text = in_folder("one.txt"), *out = in_folder("one");
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    write_file(text, cases[i].text, strlen(cases[i].text));
    EXPECT_FAIL(0, cases[i].words, BUILD(text, "--tokenizer", "byte", "--documents", "none", "--out", out, "--val-fraction", cases[i].fraction));
    remove_in_folder("one");
  }
  EXPECT_FAIL(0, "gpt: warning: nothing else\n", BUILD(text, "--tokenizer", "byte", "--documents", "none", "--out", out, "--val-fraction", "0.2"); warn("nothing else"));
  remove_in_folder("one");
  write_file(text, "a", 1);          // no fraction is to blame
  EXPECT_FAIL(0, "gpt: warning: nothing else\n", BUILD(text, "--tokenizer", "byte", "--documents", "none", "--out", out, "--val-fraction", "0"); warn("nothing else"));
  remove_in_folder("one");
  unlink(text);
  free(text), free(out);
}

// As many documents as gpt data build says, also where validation begins inside one: with the shards before it that one goes on, and the
// shards of validation alone have none that begins there.
static void info_counts_what_build_counts(void) {
  static const struct { const char *flag, *value, *text, *build, *all, *val, *longest; } cases[] = {
    {"--documents", "file", "0123456789abcdef", "train  28 tokens, 2 documents, in 1 shards of 2-byte ids\nval    8 tokens, 0 documents, in 1 shards", "documents  2\n",
     "documents  0, and the last 7 tokens of one that begins before\n", "longest 16\n"},
    {"--documents", "none", "0123456789abcdef", "train  25 tokens, 1 documents, in 1 shards of 2-byte ids\nval    7 tokens, 0 documents, in 1 shards", "documents  1\n",
     "documents  0, and the last 7 tokens of one that begins before\n", "longest 32\n"},
    {"--jsonl", "text", "{\"text\": \"abc\"}\n{\"text\": \"defghi\"}\n", "train  16 tokens, 3 documents, in 1 shards of 2-byte ids\nval    8 tokens, 1 documents", "documents  4\n", "documents  1\n", "longest 6\n"}};
  char *a = in_folder("a.txt"), *b = in_folder("b.txt"), *out = in_folder("info"), *val = in_folder("info/val_000000.bin");
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    write_file(a, cases[i].text, strlen(cases[i].text));
    write_file(b, cases[i].text, strlen(cases[i].text));
    CHECK_EQ(BUILD(a, b, "--tokenizer", "byte", cases[i].flag, cases[i].value, "--out", out, "--val-fraction", "0.2"), 0);
    buffer_append(&said, "", 1);
    CHECK_MSG(strstr(said.data, cases[i].build) != NULL, "%s", said.data);
    CHECK_EQ(INFO(out), 0);
    buffer_append(&said, "", 1);
    CHECK_MSG(strstr(said.data, cases[i].all) && strstr(said.data, cases[i].longest), "%s", said.data);
    CHECK_EQ(INFO(val), 0);
    buffer_append(&said, "", 1);
    CHECK_MSG(strstr(said.data, cases[i].val) != NULL, "%s", said.data);
    remove_in_folder("info");
  }
  unlink(a), unlink(b);
  free(a), free(b), free(out), free(val);
}

// A document begins where one ended, at the beginning of a shard, or goes on over several; more documents than are read at once.
static void info_reads_every_beginning(void) {
  enum { DOCUMENTS = 1100 };
  char *text = in_folder("many.txt"), *out = in_folder("info");
  Buffer all = {0};
  for (int i = 0; i < DOCUMENTS; i++) buffer_printf(&all, "%0*d\n\n", 1 + (i == 511) * 200 + (i == 1099) * 100, i % 10);
  write_file(text, all.data, all.len);
  for (int has_eot = 0; has_eot < 2; has_eot++) {
    char *tokenizer = in_folder("t.json");
    Buffer json = {0};
    Tokenizer *t = tokenizer_byte(has_eot);
    tokenizer_json(t, &json);
    write_file(tokenizer, json.data, json.len);
    CHECK_EQ(BUILD(text, "--tokenizer", tokenizer, "--documents", "blank-line", "--out", out, "--val-fraction", "0", "--shard-tokens", "300"), 0);
    CHECK_EQ(INFO(out), 0);
    buffer_append(&said, "", 1);
    CHECK_MSG(strstr(said.data, "documents  1100\n") != NULL, "%s", said.data);
    CHECK_MSG(strstr(said.data, "tokens of a document: mean 1.3, longest 201\n") != NULL, "%s", said.data);
    CHECK(strstr(said.data, "           1 .. 1                 1098  "));
    remove_in_folder("info");
    unlink(tokenizer);
    tokenizer_free(t);
    buffer_free(&json);
    free(tokenizer);
  }
  unlink(text);
  buffer_free(&all);
  free(text);
  free(out);
}

// A long token is shown in part.
static void info_shows_a_part_of_long_tokens(void) {
  char *text = in_folder("long.txt"), *out = in_folder("info"), *vocabulary = in_folder("long.json"), z[256];
  memset(z, 'z', sizeof z);
  TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_NONE);
  tokenizer_trainer_add(trainer, z, sizeof z);
  Tokenizer *t = tokenizer_trainer_finish(trainer, 263, NULL, 0);   // 2, 4, .. 128 bytes
  Buffer json = {0};
  tokenizer_json(t, &json);
  write_file(vocabulary, json.data, json.len);
  write_file(text, z, sizeof z);
  CHECK_EQ(BUILD(text, "--tokenizer", vocabulary, "--out", out, "--val-fraction", "0"), 0);
  CHECK_EQ(INFO(out), 0);
  buffer_append(&said, "", 1);
  char *shown = format(" \"%.100s\"\n", z);
  CHECK(strstr(said.data, shown) && strstr(said.data, "text       256 bytes, 128.000 bytes a token\n"));
  remove_in_folder("info");
  unlink(text), unlink(vocabulary);
  tokenizer_free(t);
  buffer_free(&json);
  free(shown), free(text), free(out), free(vocabulary);
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
  DAMAGED(EXIT_NO, "byte 12: 3, it must be 0", 12, 3, n);
  DAMAGED(EXIT_NO, "byte 31: 3, it must be 0", 31, 3, n);
  DAMAGED(EXIT_NO, "byte 100: 3, it must be 0", 100, 3, n);
  DAMAGED(EXIT_NO, "byte 1023: 3, it must be 0", 1023, 3, n);
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

static int opened;
static void files_are_closed(void) { CHECK_MSG(opened == 0, "%d files are still open", opened); }

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  begin_folder("data");
  const int open_before = descriptors();
  RUN(validation_is_drawn_by_content);
  RUN(validation_begins_with_a_character);
  RUN(the_last_documents_validate);
  RUN(build_from_a_stream);
  RUN(progress_is_said_every_five_seconds);
  RUN(build_of_characters);
  RUN(build_leaves_nothing_half);
  RUN(stopped_builds_go_on);
  RUN(check_names_the_byte);
  RUN(check_counts_the_order);
  RUN(info_shows_the_data);
  RUN(a_split_of_one_token_is_told);
  RUN(info_counts_what_build_counts);
  RUN(info_reads_every_beginning);
  RUN(info_shows_a_part_of_long_tokens);
  RUN(words_are_pinned);
  RUN(malformed_files);
  RUN(build_cuts_nothing_without_a_pattern);
  RUN(build_keeps_every_token);       // last: it makes threads, see BUILD
  end_folder();
  opened = descriptors() - open_before;
  RUN(files_are_closed);
  return TEST_END();
}
