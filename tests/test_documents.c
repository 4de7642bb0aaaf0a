// test_documents.c: tests of documents.c: texts to documents and pieces, and what goes wrong with them.
#include "data_test.h"

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
    for (; documents_next(d, &p) == DOCUMENTS_PIECE; pieces++) {
      CHECK_EQ((p.at + (int64_t)p.n - (int64_t)before) % 4, 0);
      CHECK(!p.starts || p.n >= DOCUMENT_HEAD);
    }
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

// Unicode's white space, and control characters: behind any other character a space may be cut off.
static bool is_space_or_control(uint32_t c) {
  static const uint32_t spaces[] = {0x85, 0xa0, 0x1680, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000};
  for (size_t i = 0; i < ARRAY_LEN(spaces); i++) if (c == spaces[i]) return true;
  return c < 0x21 || (c > 0x7e && c < 0xa0) || (c > 0x1fff && c < 0x200b);
}

static void every_character_is_cut_behind_or_not(void) {
  for (uint32_t c = 1; c < 0x110000; c += c < 0x3100 ? 1 : 37) {
    if (c >= 0xd800 && c < 0xe000) continue;
    char text[16] = "";
    const size_t n = (size_t)utf8_encode(c, text);
    memcpy(text + n, " x", 2);
    CHECK_MSG(documents_last_cut(text, n + 2, n + 1, CUT_WORD) == (is_space_or_control(c) ? 0 : n), "U+%04X, then a space", c);
    memcpy(text, "a\n", 2);
    utf8_encode(c, text + 2);
    memcpy(text + 2 + n, "b", 1);
    CHECK_MSG(documents_last_cut(text, n + 3, 2, CUT_WORD) == (is_space_or_control(c) ? 0 : 2), "a line end, then U+%04X", c);
  }
  static const struct { const char *text; size_t high; DocumentCut cut; size_t at; } cases[] = {
    {"abc", 2, CUT_WORD, 0}, {" bc", 2, CUT_WORD, 0}, {"a c", 2, CUT_WORD, 1}, {"a c", 1, CUT_WORD, 1}, {"\nbc", 2, CUT_WORD, 0}, {"a\nc", 2, CUT_WORD, 2}, {"a\nc d", 2, CUT_WORD, 2},
    {"a c d", 3, CUT_WORD, 3}, {"a c d", 4, CUT_NEVER, 0}, {"abcd", 3, CUT_CHARACTER, 3}, {"abcd", 1, CUT_CHARACTER, 1},
    {"a\xf0\x9f\x98\x80" "b", 4, CUT_CHARACTER, 1}, {"a\xf0\x9f\x98\x80" "b", 5, CUT_CHARACTER, 5}, {"\xf0\x9f\x98\x80" "b", 3, CUT_CHARACTER, 0},
    {"a\x80\x80\x80\x80\x80", 5, CUT_CHARACTER, 5}, {"\x80\x80\x80\x80\x80\x80", 5, CUT_CHARACTER, 5}, {"\x80\x80\x80\x80", 2, CUT_CHARACTER, 0},
    {"\xe9 x", 2, CUT_WORD, 0}, {"\xa9 x", 2, CUT_WORD, 0}, {"\xc3\xa9 x", 3, CUT_WORD, 2}, {"x\xf0\x9f\x98\x80 x", 6, CUT_WORD, 5}, {"x\xf0\x9f\x98 x", 5, CUT_WORD, 0}};
  CHECK_EQ(documents_last_cut(&"a\nbc"[1], 3, 1, CUT_WORD), 0);      // what stands before the text does not count
  CHECK_EQ(documents_last_cut(&"a bc"[1], 3, 1, CUT_WORD), 0);
  CHECK_EQ(documents_last_cut(&"\xc3\xa9 x"[1], 3, 1, CUT_WORD), 0);
  CHECK_EQ(documents_last_cut("a\n\xc3\xa9", 3, 2, CUT_WORD), 0);     // nor what stands behind it
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) CHECK_EQ(documents_last_cut(cases[i].text, strlen(cases[i].text), cases[i].high, cases[i].cut), cases[i].at);
}

// Where pieces end, beside a search without a window: the last place to cut within the length asked for, which is doubled until there is one.
static size_t plain_piece(const char *text, size_t n, size_t low, size_t want, DocumentCut cut) {
  for (;; want *= 2) {
    if (n <= want) return n;
    for (size_t i = want; i >= low; i--) if (documents_last_cut(text, n, i, cut) == i) return i;
  }
}

static void pieces_end_where_they_should(void) {
  char *path = in_folder("ends.txt");
  for (int round = 0; round < 18; round++) {
    Buffer text = {0};
    while (text.len < DOCUMENT_HEAD * 2 + (size_t)round * 777) {
      for (int64_t n = draw(1, round % 2 ? 9 : 400); n > 0; n--) buffer_append(&text, "x", 1);
      const char *part = (const char *const[]){" ", "\n", "  ", "\n\n", " \n"}[draw(0, 4)];
      buffer_append(&text, part, strlen(part));
    }
    write_file(path, text.data, text.len);
    Documents *d = documents_open((const char *const[]){path}, 1, folder);
    Piece p;
    size_t at = 0, wanted = round < 12 ? (size_t)draw(1, 300) : (size_t)round - 11;
    const DocumentCut cut = round % 3 ? CUT_WORD : CUT_CHARACTER;
    documents_start(d, SPLIT_FILE, NULL, cut, wanted);
    for (; documents_next(d, &p) == DOCUMENTS_PIECE; at += p.n) {
      const size_t n = plain_piece(text.data + at, text.len - at, p.starts ? DOCUMENT_HEAD : 1, wanted, cut);
      CHECK_MSG(p.n == n, "round %d: the piece at %zu has %zu bytes, not %zu", round, at, p.n, n);
    }
    CHECK_EQ(at, text.len);
    CHECK_EQ(documents_read(d), text.len);
    documents_close(d);
    buffer_free(&text);
  }
  unlink(path);
  free(path);
}

// A stream of more than one reading, interrupted: kept whole, and read twice.
static long sound_stream_reads = LONG_MAX;
static int stream_errno = EINTR;
ssize_t read(int fd, void *to, size_t n) {
  errno = stream_errno;
  if (sound_stream_reads-- == 0) return -1;
  return (ssize_t)syscall(SYS_read, fd, to, n);
}

static void long_streams_are_kept(void) {
  char *path = in_folder("stream.txt");
  Buffer text = {0}, joined = {0};
  for (int i = 0; text.len < 200000; i++) buffer_printf(&text, "word %d\n", i);
  write_file(path, text.data, text.len);
  int old = dup(0), fd = open(path, O_RDONLY);
  dup2(fd, 0);
  close(fd);
  sound_stream_reads = 2;
  Documents *d = documents_open((const char *const[]){"-"}, 1, folder);
  sound_stream_reads = LONG_MAX;
  CHECK_EQ(documents_bytes(d), text.len);
  for (int pass = 0; pass < 2; pass++) {
    Piece p;
    joined.len = 0;
    documents_start(d, SPLIT_BLANK_LINE, NULL, CUT_WORD, 1000);
    while (documents_next(d, &p) == DOCUMENTS_PIECE) buffer_append(&joined, p.text, p.n);
    CHECK(joined.len == text.len - 1 && !memcmp(joined.data, text.data, joined.len));
    CHECK_EQ(documents_read(d), text.len);
  }
  CHECK_EQ(names_in(".", "gpt-text"), 0);   // what is kept has no name
  documents_close(d);
  dup2(old, 0);
  close(old);
  buffer_free(&text);
  buffer_free(&joined);
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
  expect_documents("a|b|", SPLIT_FILE, "a", "b");
  expect_documents("a|error: /b.txt: line 1: text is needed in the field \"text\" (--jsonl)", SPLIT_JSONL, "{\"text\":\"a\"}\n\n", "{\"text\":1}");
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
  char *second = in_folder("second.txt");
  write_file(empty, "", 0);
  write_file(second, "", 0);
  make_directory(dir);
  EXPECT_FAIL(EXIT_REQUEST, "missing.txt: cannot open text", documents_open((const char *const[]){missing}, 1, folder));
  EXPECT_FAIL(EXIT_REQUEST, "empty.txt: the text is empty: 0 bytes in 1 file, at least 1 is needed", documents_open((const char *const[]){empty}, 1, folder));
  EXPECT_FAIL(EXIT_REQUEST, "empty.txt: the text is empty: 0 bytes in 2 files, at least 1", documents_open((const char *const[]){empty, second}, 2, folder));
  EXPECT_FAIL(EXIT_REQUEST, "0 files in this directory (of 0 names)", documents_open((const char *const[]){dir}, 1, folder));
  unlink(empty), unlink(second);
  free(second);
  rmdir(dir);
  free(missing);
  free(empty);
  free(dir);
}

// What goes wrong with a text while it is listed or read: said with the place, and whose fault it is.
static void fail_to_read_by(DocumentSplit split, const char *path, long sound, int how) {
  disk_fails = true, sound_reads = sound, disk_errno = how;
  Documents *d = documents_open((const char *const[]){path}, 1, folder);
  Piece p;
  DocumentsResult r;
  int64_t got = 0;
  int code = 0;
  documents_start(d, split, "text", CUT_WORD, 20000);
  while ((r = documents_next(d, &p)) == DOCUMENTS_PIECE) got += (int64_t)p.n;
  const char *why = documents_error(d, &code);
  disk_fails = false, sound_reads = LONG_MAX, disk_errno = EIO;
  if (r == DOCUMENTS_ERROR) fail(code, "%s (%lld bytes were there)", why, (long long)got);
  fail(EXIT_NO, "%lld bytes", (long long)got);
}
static void fail_to_read(const char *path, long sound, int how) { fail_to_read_by(SPLIT_FILE, path, sound, how); }

// Files that are open and would stay so in another program started now.
static int inherited(void) {
  int count = 0;
  for (int fd = 3; fd < 100; fd++) { const int flags = fcntl(fd, F_GETFD); count += flags >= 0 && !(flags & FD_CLOEXEC); }
  return count;
}

static void failing_texts_are_told(void) {
  char *path = in_folder("failing.txt"), *stream = in_folder("stream"), *nowhere = in_folder("nowhere");
  Buffer text = {0};
  while (text.len < 100000) buffer_append(&text, "plain words ", 12);
  write_file(path, text.data, text.len);
  EXPECT_FAIL(EXIT_MACHINE, "failing.txt: reading failed at byte 0: Input/output error (0 bytes were there)", fail_to_read(path, 0, EIO));
  EXPECT_FAIL(EXIT_MACHINE, "failing.txt: reading failed at byte 20001: Input/output error (0 bytes were there)", fail_to_read(path, 1, EIO));
  for (DocumentSplit split = SPLIT_FILE; split <= SPLIT_JSONL; split++)
    EXPECT_FAIL(EXIT_MACHINE, "failing.txt: reading failed at byte 0: Input/output error (0 bytes were there)", fail_to_read_by(split, path, 0, EIO));
  EXPECT_FAIL(EXIT_NO, "100008 bytes", fail_to_read(path, 0, EINTR));      // a signal came: read again
  EXPECT_FAIL(EXIT_NO, "100008 bytes", fail_to_read(path, 2, EINTR));
  // a text that is gone when its turn comes
  Documents *d = documents_open((const char *const[]){path}, 1, folder);
  Piece p;
  int code = 0;
  unlink(path);
  documents_start(d, SPLIT_FILE, NULL, CUT_WORD, 100);
  CHECK_EQ(documents_next(d, &p), DOCUMENTS_ERROR);
  CHECK(strstr(documents_error(d, &code), "failing.txt: cannot open text: No such file") && code == EXIT_REQUEST);
  documents_close(d);
  // a build: what is there stays only where the machine is at fault
  write_file(path, text.data, text.len);
  char *out = in_folder("shards");
  EXPECT_FAIL(EXIT_MACHINE, "reading failed at byte", { disk_fails = true; sound_reads = 0; BUILD(path, "--tokenizer", "byte", "--out", out, "--val-fraction", "0"); });
  CHECK_EQ(names_in("shards", "build.json"), 1);
  remove_in_folder("shards");
  // streams: one that fails, no room for it
  int old = dup(0), fd = open(path, O_RDONLY);
  dup2(fd, 0);
  EXPECT_FAIL(EXIT_MACHINE, "-: reading failed at byte 65536: Input/output error", { sound_stream_reads = 1; stream_errno = EIO; documents_open((const char *const[]){"-"}, 1, folder); });
  lseek(0, 0, SEEK_SET);
  EXPECT_FAIL(EXIT_MACHINE, "cannot keep 65536 bytes of -: File too large", {
    limit_files(60000);
    documents_open((const char *const[]){"-"}, 1, folder);
  });
  lseek(0, 0, SEEK_SET);
  EXPECT_FAIL(EXIT_MACHINE, "cannot keep 100008 bytes of -: File too large", {
    limit_files(70000);
    documents_open((const char *const[]){"-"}, 1, folder);
  });
  lseek(0, 0, SEEK_SET);
  EXPECT_FAIL(EXIT_MACHINE, "nowhere: cannot make a file for the text of a stream: No such file", documents_open((const char *const[]){"-"}, 1, nowhere));
  dup2(old, 0);
  close(old), close(fd);
  // nothing in a stream is no text
  if (mkfifo(stream, 0600)) abort();
  pid_t silent = fork();
  if (silent == 0) { write_file(stream, "", 0); _exit(0); }
  d = documents_open((const char *const[]){stream, path}, 2, folder);
  waitpid(silent, NULL, 0);
  CHECK(documents_files(d) == 1 && documents_bytes(d) == (int64_t)text.len);
  documents_close(d);
  unlink(stream);
  // a pipe with a name is a stream as well, read as often as is wanted
  if (mkfifo(stream, 0600)) abort();
  pid_t writer = fork();
  if (writer == 0) { write_file(stream, "one\n\ntwo", 8); _exit(0); }
  d = documents_open((const char *const[]){stream, path}, 2, folder);
  waitpid(writer, NULL, 0);
  int64_t bytes;
  CHECK_STR(documents_name(d, 0, &bytes), stream);
  CHECK_EQ(bytes, 8);
  CHECK_STR(documents_name(d, 1, &bytes), path);
  CHECK(bytes == (int64_t)text.len && documents_files(d) == 2 && documents_bytes(d) == (int64_t)text.len + 8);
  for (int pass = 0; pass < 2; pass++) {
    documents_start(d, SPLIT_BLANK_LINE, NULL, CUT_WORD, 100);
    CHECK(documents_next(d, &p) == DOCUMENTS_PIECE && p.n == 3 && !memcmp(p.text, "one", 3) && p.at == 0);
    CHECK_STR(p.name, stream);
    CHECK(documents_next(d, &p) == DOCUMENTS_PIECE && p.n == 3 && !memcmp(p.text, "two", 3) && p.at == 5 && p.starts && p.ends);
    CHECK(documents_next(d, &p) == DOCUMENTS_PIECE && p.n == text.len && p.at == 0);
    CHECK_STR(p.name, path);
    CHECK_EQ(documents_next(d, &p), DOCUMENTS_END);
  }
  documents_start(d, SPLIT_NONE, NULL, CUT_NEVER, 100);
  CHECK(documents_next(d, &p) == DOCUMENTS_PIECE && p.n == text.len + 8);
  CHECK_STR(p.name, "the texts joined");
  documents_close(d);
  d = documents_open((const char *const[]){path}, 1, folder);
  documents_start(d, SPLIT_FILE, NULL, CUT_WORD, DOCUMENT_HEAD + 100);
  const int before = inherited(), open_before = descriptors();
  CHECK(documents_next(d, &p) == DOCUMENTS_PIECE && p.n < text.len);
  CHECK_EQ(descriptors(), open_before + 1);
  CHECK_EQ(inherited(), before);
  documents_start(d, SPLIT_NONE, NULL, CUT_NEVER, 100);
  CHECK(documents_next(d, &p) == DOCUMENTS_PIECE);
  CHECK_STR(p.name, path);
  documents_close(d);
  unlink(stream), unlink(path);
  buffer_free(&text);
  free(path), free(stream), free(nowhere), free(out);
}

static int opened;
static void files_are_closed(void) { CHECK_MSG(opened == 0, "%d files are still open", opened); }

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  begin_folder("documents");
  const int open_before = descriptors();
  RUN(pieces_encode_as_the_whole);
  RUN(pieces_are_of_whole_characters);
  RUN(pieces_of_plain_words_are_short);
  RUN(every_character_is_cut_behind_or_not);
  RUN(pieces_end_where_they_should);
  RUN(long_streams_are_kept);
  RUN(failing_texts_are_told);
  RUN(documents_are_found);
  RUN(texts_are_refused);
  end_folder();
  opened = descriptors() - open_before;
  RUN(files_are_closed);
  return TEST_END();
}
