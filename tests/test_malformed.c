// test_malformed.c: 300 damaged files into the readers of tokenizers and shards, each in a process of its own: what is no longer
// valid is refused with one line and exit code 2, never by a signal, and takes neither long nor much memory. `make fuzz` goes on from here.
#include "../dataloader.h"
#include "../tokenizer.h"
#include "test.h"
#include <sys/resource.h>  // setrlimit

static uint64_t random_state = 7;
static size_t draw(size_t below) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (size_t)(random_state >> 33) % below;
}

// ---- valid files ----

static Buffer json_file(void) {
  TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_GPT2);
  const char *text = "the cat sat on the mat, and the other cat sat on the other mat, as cats do";
  tokenizer_trainer_add(trainer, text, strlen(text));
  Tokenizer *t = tokenizer_trainer_finish(trainer, 270, (const char *const[]){END_OF_TEXT}, 1);
  Buffer out = {0};
  tokenizer_json(t, &out);
  tokenizer_free(t);
  return out;
}

static Buffer ranks_file(void) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  Buffer out = {0};
  for (int byte = 0; byte < 256; byte++) buffer_printf(&out, "%c%c== %d\n", digits[byte >> 2], digits[(byte & 3) << 4], byte);
  buffer_printf(&out, "aXQ= 256\nYW4= 257\nYW5k 258\n");   // it, an, and
  return out;
}

static Buffer merges_file(void) {
  Buffer out = {0};
  buffer_printf(&out, "#version: 0.2\nt h\nth e\na t\na n\nan d\nc at\n");
  return out;
}

static Buffer shard_file(void) {
  enum { COUNT = 500, VOCAB = 300 };
  uint8_t header[SHARD_HEADER_BYTES];
  uint16_t ids[COUNT];
  for (int i = 0; i < COUNT; i++) ids[i] = (uint16_t)draw(VOCAB);
  Shard s = {.width = 2, .count = COUNT, .ours = true, .documents = 3, .vocab = VOCAB, .eot = 299};
  memset(s.tokenizer, 'a', 64);
  s.crc = crc32c(0, ids, sizeof ids);
  shard_header(&s, header);
  Buffer out = {0};
  buffer_append(&out, header, sizeof header);
  buffer_append(&out, ids, sizeof ids);
  return out;
}

// ---- reading ----

static void read_tokenizer(const char *path) { tokenizer_free(tokenizer_open(path)); }
static void read_shard(const char *path) {
  enum { T = 16 };
  int32_t inputs[T], targets[T];
  char *paths[] = {(char *)path};
  Dataloader *l = dataloader_open_paths(paths, 1, SHARD_HEADER, 0);
  dataloader_arrange(l, T, ORDER_STREAM, 1);
  for (int64_t i = 0, n = dataloader_windows(l); i < n && i < 1000; i++) dataloader_sample(l, i, inputs, targets);
  dataloader_close(l);
}

static const struct { const char *name; Buffer (*valid)(void); void (*read)(const char *); int refused; } kinds[] = {   // refused: at least so many of 75
    {"tokenizer.json", json_file, read_tokenizer, 50}, {"ranks.tiktoken", ranks_file, read_tokenizer, 60},
    {"vocab.bpe", merges_file, read_tokenizer, 30}, {"shard.bin", shard_file, read_shard, 40}};

// ---- damage ----

static void replace(Buffer *b, size_t at, size_t n, const char *bytes, size_t m) {
  Buffer out = {0};
  buffer_append(&out, b->data, at);
  buffer_append(&out, bytes, m);
  buffer_append(&out, b->data + at + n, b->len - at - n);
  buffer_free(b);
  *b = out;
}

static void damage(Buffer *b, int how) {
  static const char *const tokens[] = {"-1", "99999999999999999999", "1e999", "NaN", "null", "{", "[[[[[[[[[[", "\"", "\\u0000", "\\ud800", "\377", "", " ", "\n", "\n\n", ",", "true", "0"};
  if (b->len == 0) return;
  size_t at = draw(b->len), most = 1 + draw(20), n = MIN(b->len - at, most);
  switch (how % 5) {
    case 0: b->len = at; break;                                                             // cut off
    case 1: b->data[at] = (char)(b->data[at] ^ 1 << draw(8)); break;                        // a bit
    case 2: { const char *t = tokens[draw(ARRAY_LEN(tokens))]; replace(b, at, draw(2) ? n : 0, t, strlen(t)); break; }
    case 3: { Buffer part = {0}; buffer_append(&part, b->data + at, n); replace(b, draw(b->len), 0, part.data, part.len); buffer_free(&part); break; }   // twice
    case 4: replace(b, at, n, NULL, 0); break;                                              // a hole
  }
}

// Exit code of reading the file in a process with 256 MiB of addresses and twenty seconds; its stderr in err.
static int outcome(void (*read_it)(const char *), const char *path, char *err, size_t room) {
  int ends[2], status;
  if (pipe(ends)) abort();
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    dup2(ends[1], 2), close(ends[0]), close(ends[1]);
    alarm(20);   // a second is plenty, but the machine may be loaded
#if !defined(__SANITIZE_ADDRESS__)   // which takes terabytes of addresses
    setrlimit(RLIMIT_AS, &(struct rlimit){256 << 20, 256 << 20});
#endif
    read_it(path);
    _exit(0);
  }
  close(ends[1]);
  size_t n = 0;
  for (ssize_t got; n < room - 1 && (got = read(ends[0], err + n, room - 1 - n)) > 0;) n += (size_t)got;
  err[n] = 0;
  close(ends[0]);
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void damaged_files_are_refused_or_read(void) {
  char folder[200], err[4096];
  test_folder(folder, sizeof folder, "malformed");
  for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
    char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, kinds[k].name);
    int refused = 0;
    for (int i = -1; i < 75; i++) {   // -1: as it is
      Buffer b = kinds[k].valid();
      for (int d = 0; d <= i % 3; d++) damage(&b, i + d);
      replace_file(path, b.len ? b.data : "", b.len);
      int code = outcome(kinds[k].read, path, err, sizeof err);
      size_t n = strlen(err);
      CHECK_MSG(i >= 0 || code == 0, "%s, undamaged: exit code %d: %s", kinds[k].name, code, err);
      CHECK_MSG(code == 0 || code == EXIT_REQUEST, "%s, damage %d: exit code %d: %s", kinds[k].name, i, code, err);
      if (code == EXIT_REQUEST)
        CHECK_MSG(n > 6 && !strncmp(err, "gpt: ", 5) && strchr(err, '\n') == err + n - 1, "%s, damage %d: not one line: %s", kinds[k].name, i, err);
      else CHECK_MSG(n == 0, "%s, damage %d: taken, and yet: %s", kinds[k].name, i, err);
      refused += code == EXIT_REQUEST;
      buffer_free(&b);
    }
    CHECK_MSG(refused >= kinds[k].refused, "%s: only %d of 75 refused", kinds[k].name, refused);
    unlink(path);
  }
  rmdir(folder);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(damaged_files_are_refused_or_read);
  return TEST_END();
}
