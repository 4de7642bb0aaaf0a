// tokenizer_test.h: what the tests of tokenizers share: random numbers, a folder, round trips, a text to train on.
#pragma once
#include "../json.h"
#include "../tokenizer_internal.h"
#include "../utf8.h"
#include "guard_heap.h"
#include "test.h"

static uint64_t random_state = 1;
static inline uint32_t draw(uint32_t below) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)((random_state >> 33) % below);
}

static char folder[200];
static inline void open_folder(void) { test_folder(folder, sizeof folder, "tokenizer"); }
static inline const char *in_folder(const char *name) {
  static char paths[4][500];
  static int turn;
  char *path = paths[turn++ & 3];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

// A file of tests/data, which lies beside this source.
static inline char *read_data(const char *name, size_t *size) {
  const char *slash = strrchr(__FILE__, '/');
  char *path = format("%.*sdata/%s", slash ? (int)(slash - __FILE__ + 1) : 0, __FILE__, name);
  char *text = read_file(path, "test data", 1 << 24, size);
  free(path);
  return text;
}

static inline void check_round_trip(const Tokenizer *t, const char *text, size_t n, const char *what) {
  TokenBuffer ids = {0};
  Buffer back = {0};
  int64_t count = tokenizer_encode(t, text, n, &ids, SPECIAL_NONE);
  CHECK_MSG(count == (int64_t)ids.count, "%s: %lld returned, %zu appended", what, (long long)count, ids.count);
  CHECK_EQ(tokenizer_decode(t, ids.ids, ids.count, &back), -1);
  CHECK_MSG(back.len == n && memcmp(back.data ? back.data : "", text, n) == 0, "%s: %zu bytes became %zu", what, n, back.len);
  token_buffer_free(&ids);
  buffer_free(&back);
}

static inline bool same_ids(const Tokenizer *a, const Tokenizer *b, const char *text, size_t n) {
  TokenBuffer x = {0}, y = {0};
  tokenizer_encode(a, text, n, &x, SPECIAL_NONE);
  tokenizer_encode(b, text, n, &y, SPECIAL_NONE);
  bool same = x.count == y.count && (x.count == 0 || memcmp(x.ids, y.ids, x.count * sizeof x.ids[0]) == 0);
  token_buffer_free(&x);
  token_buffer_free(&y);
  return same;
}

static inline Tokenizer *train_on(const char *text, size_t n, TokenizerPattern pattern, int64_t vocab, bool eot) {
  static const char *const specials[] = {END_OF_TEXT};
  TokenizerTrainer *trainer = tokenizer_trainer(pattern);
  tokenizer_trainer_add(trainer, text, n);
  return tokenizer_trainer_finish(trainer, vocab, specials, eot);
}

static const char prose[] =
    "The old man and the young girl went to the sea. The sea was old, the girl was not; \"and the man?\" she said.\n"
    "He said: the man and the sea are as old as the old boat, and there's 1 boat, 22 oars, 333 nets.\n\n  The end.\n";

static inline size_t random_text(char *out, size_t room) {
  size_t n = 0, want = draw((uint32_t)room - 8);
  while (n < want) {
    uint32_t kind = draw(6), code = kind == 0 ? draw(256) : kind == 1 ? draw(0x3000) : kind == 2 ? draw(0x110000) : 0;
    if (kind == 3) out[n++] = (char)draw(256);  // any byte: mostly not UTF-8
    else if (kind == 4) out[n++] = " \n\t\r'"[draw(5)];
    else if (kind == 5) out[n++] = (char)('a' + draw(26));
    else if (code < 0xd800 || code > 0xdfff) n += (size_t)utf8_encode(code, out + n);
  }
  return n;
}
