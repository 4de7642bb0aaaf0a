// test_tokenizer.c: owns the checks of tokenizer*.c: ids that others published, round trips, the trainer against a plain
// one, the commands. Files: test_tokenizer_files.c. Comparisons with other programs: dev/peers/tokenizer_peers.py.
#include "../tokenizer_cli.h"
#include "../unicode.h"
#include "tokenizer_test.h"
#include <pthread.h>  // pthread_create

// ---- Unicode's classes ----

static void unicode_classes_are_right(void) {
  long counts[4] = {0};
  for (uint32_t code = 0; code < 0x110000; code++) counts[unicode_class(code)]++;
  CHECK_EQ(counts[UNICODE_LETTER], 136104);  // counted by another program in UnicodeData.txt of 15.0
  CHECK_EQ(counts[UNICODE_NUMBER], 1831);
  CHECK_EQ(counts[UNICODE_SPACE], 25);       // PropList.txt: "Total code points: 25"
  static const struct { uint32_t code; int class; } some[] = {
      {'a', UNICODE_LETTER}, {0xe9, UNICODE_LETTER}, {0xaa, UNICODE_LETTER}, {0x4e2d, UNICODE_LETTER}, {0x9fff,
                                                                                                        UNICODE_LETTER}, {0x323af, UNICODE_LETTER},
      {'7', UNICODE_NUMBER}, {0xb2, UNICODE_NUMBER}, {0x663, UNICODE_NUMBER}, {0x2167, UNICODE_NUMBER}, {' ',
                                                                                                         UNICODE_SPACE}, {0x85, UNICODE_SPACE},
      {0xa0, UNICODE_SPACE}, {0x3000, UNICODE_SPACE}, {0x200b, UNICODE_OTHER}, {0x301, UNICODE_OTHER}, {0x1f600,
                                                                                                        UNICODE_OTHER}, {0x10ffff, UNICODE_OTHER}};
  for (size_t i = 0; i < ARRAY_LEN(some); i++) CHECK_MSG(unicode_class(some[i].code) == some[i].class, "U+%04X", some[i].code);
}

// ---- GPT-2 ----

static void gpt2_golden_ids(void) {
  size_t size, lines = 0;
  char *text = read_data("gpt2_golden.jsonl", &size), error[200];
  Tokenizer *t = tokenizer_gpt2();
  for (char *line = text, *end; line < text + size; line = end + 1) {
    end = strchr(line, '\n');
    Json *row = json_parse(line, (size_t)(end - line), error, sizeof error);
    const Json *want = json_get(row, "ids"), *words = json_get(row, "text");
    CHECK_MSG(want && words, "line %zu: %s", lines, error);
    if (!want || !words) break;
    TokenBuffer ids = {0};
    Buffer back = {0};
    tokenizer_encode(t, words->string, words->length, &ids, SPECIAL_NONE);
    bool same = ids.count == want->length;
    for (size_t i = 0; same && i < ids.count; i++) same = ids.ids[i] == (int32_t)want->items[i]->number;
    CHECK_MSG(same, "ids of \"%s\"", words->string);
    tokenizer_decode(t, ids.ids, ids.count, &back);
    CHECK(back.len == words->length && memcmp(back.data, words->string, back.len) == 0);
    token_buffer_free(&ids);
    buffer_free(&back);
    json_free(row);
    lines++;
  }
  CHECK_EQ(lines, 200);
  CHECK(tokenizer_vocab_size(t) == 50257 && tokenizer_eot(t) == 50256 && tokenizer_merge_count(t) == 50000);
  size_t n;
  n = 77;
  CHECK(tokenizer_decode_one(t, 50257, &n) == NULL && n == 0 && tokenizer_decode_one(t, -1, &n) == NULL);
  char hex[65];
  tokenizer_sha256(t, hex);  // vocab.bpe and encoder.json as published give the same tokenizer.json
  CHECK_STR(hex, "bf0b7cdc84484489032cb0009d0ee810dc68a8f87842fb53b06bd3a5f20c1955");
  tokenizer_free(t);
  free(text);
}

static void special_text_is_plain_unless_asked(void) {
  static const char text[] = "a<|endoftext|>b <|endoftext|><|endof";
  Tokenizer *t = tokenizer_gpt2();
  TokenBuffer plain = {0}, special = {0};
  Buffer back = {0};
  tokenizer_encode(t, text, sizeof text - 1, &plain, SPECIAL_NONE);
  tokenizer_encode(t, text, sizeof text - 1, &special, SPECIAL_ALL);
  int found = 0;
  for (size_t i = 0; i < plain.count; i++) CHECK(plain.ids[i] != 50256);
  for (size_t i = 0; i < special.count; i++) found += special.ids[i] == 50256;
  CHECK_EQ(found, 2);
  CHECK(special.ids[0] == 64 && special.ids[1] == 50256);
  tokenizer_decode(t, special.ids, special.count, &back);
  CHECK_STR(back.data, text);
  int32_t wrong[] = {64, 50257, 64};
  CHECK_EQ(tokenizer_decode(t, wrong, 3, &back), 1);
  back.len = 0;
  CHECK_EQ(tokenizer_decode(t, wrong + 1, 2, &back), 0);   // nothing behind a wrong id
  CHECK_STR(back.data, "");
  token_buffer_free(&plain);
  token_buffer_free(&special);
  buffer_free(&back);
  tokenizer_free(t);
}

// The longest special token wins where two begin at the same place.
static void longest_special_wins(void) {
  static const char *const specials[] = {"<|a", "<|a|>", END_OF_TEXT};
  TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_GPT2);
  tokenizer_trainer_add(trainer, prose, sizeof prose - 1);
  Tokenizer *t = tokenizer_trainer_finish(trainer, 300, specials, 3);
  TokenBuffer ids = {0};
  CHECK_EQ(tokenizer_encode(t, "<|a|><|a<|endoftext|>", 21, &ids, SPECIAL_ALL), 3);
  CHECK(ids.ids[0] == 298 && ids.ids[1] == 297 && ids.ids[2] == 299 && tokenizer_eot(t) == 299);
  token_buffer_free(&ids);
  tokenizer_free(t);
}

// Of special tokens of one length the order is that of their ids; only this one text is the end of a text, however long another is.
static void specials_are_in_order(void) {
  static const char *const specials[] = {"<|aa|>", "<|endoftexx|>", "<|bb|>", "<|c|>", "<|cc|>", "<|ddddddddddddddddd|>", "<|endoftextt|>", "<|ee|>", "<|f|>", "<|gg|>"};
  static const int order[] = {5, 6, 1, 0, 2, 4, 7, 9, 3, 8};
  guarded = true;
  Tokenizer *t = tokenizer_trainer_finish(tokenizer_trainer(PATTERN_GPT2), 300, specials, ARRAY_LEN(specials));
  CHECK(tokenizer_special_count(t) == ARRAY_LEN(specials) && tokenizer_eot(t) == -1 && tokenizer_vocab_size(t) == 256 + (int)ARRAY_LEN(specials));
  for (size_t i = 0; i < ARRAY_LEN(specials); i++) {
    CHECK_EQ(tokenizer_special_id(t, i), 256 + order[i]);
    CHECK(tokenizer_is_special(t, 256 + (int)i) && !tokenizer_is_special(t, (int)i));
    TokenBuffer ids = {0};
    char *text = at_the_edge(specials[i], strlen(specials[i]));
    CHECK(tokenizer_encode(t, text, strlen(specials[i]), &ids, SPECIAL_ALL) == 1 && ids.ids[0] == 256 + (int)i);
    ids.count = 0;
    CHECK(tokenizer_encode(t, text, strlen(specials[i]) - 1, &ids, SPECIAL_ALL) == (int64_t)strlen(specials[i]) - 1);   // half of one is text
    free(text);
    token_buffer_free(&ids);
  }
  tokenizer_free(t);
  guarded = false;
}

// ---- round trips ----

static void any_bytes_come_back(void) {
  Tokenizer *all[] = {tokenizer_gpt2(), train_on(prose, sizeof prose - 1, PATTERN_GPT4, 330, true),
                      train_on(prose, sizeof prose - 1, PATTERN_NONE, 300, false),
                      tokenizer_byte(true)};
  char text[400];
  for (size_t i = 0; i < ARRAY_LEN(all); i++) {
    TokenBuffer ids = {0};
    for (int round = 0; round < 1500; round++) {
      size_t n = random_text(text, sizeof text);
      char *copy = malloc(n);  // of exactly this size, so that a sanitizer sees a read behind it
      memcpy(copy, text, n);
      Buffer back = {0};
      ids.count = 0;
      tokenizer_encode(all[i], copy, n, &ids, SPECIAL_NONE);
      tokenizer_decode(all[i], ids.ids, ids.count, &back);
      CHECK(back.len == n && (n == 0 || memcmp(back.data, text, n) == 0));
      buffer_free(&back);
      free(copy);
    }
    token_buffer_free(&ids);
  }
  for (size_t i = 0; i < ARRAY_LEN(all); i++) {
    check_round_trip(all[i], "", 0, "nothing");
    tokenizer_free(all[i]);
  }
}

// Every token of GPT-2's, the longest too, in one go and by itself.
static void every_token_is_decoded(void) {
  Tokenizer *t = tokenizer_gpt2();
  int32_t *ids = xmalloc((size_t)t->size, sizeof *ids);
  for (int32_t id = 0; id < t->size; id++) ids[id] = id;
  Buffer all = {0};
  CHECK_EQ(tokenizer_decode(t, ids, 0, &all), -1);
  CHECK(all.data == NULL && all.len == 0);
  CHECK_EQ(tokenizer_decode(t, ids, (size_t)t->size, &all), -1);
  CHECK(all.len == t->bytes.len && !memcmp(all.data, t->bytes.data, all.len + 1));   // with the zero behind
  for (int32_t id = 0; id < t->size; id++) {
    size_t n;
    const char *token = tokenizer_decode_one(t, id, &n);
    CHECK(n > 0 && n == t->starts[id + 1] - t->starts[id] && token == t->bytes.data + t->starts[id]);
  }
  CHECK_STR(tokenizer_kind_name(t), "bpe");
  CHECK_STR(tokenizer_pattern_name(PATTERN_GPT2), "gpt2");
  CHECK_STR(tokenizer_pattern_name(PATTERN_GPT4), "gpt4");
  CHECK_STR(tokenizer_pattern_name(PATTERN_NONE), "none");
  CHECK_EQ(t->seed_count, 50126);   // of at most fifteen bytes, and what their bytes merge to
  Tokenizer full = {.size = INT32_MAX - 1};
  EXPECT_FAIL(2, "a vocabulary of more than 2147483646 entries", tokenizer_add_token(&full, "x", 1));
  buffer_free(&all);
  free(ids);
  tokenizer_free(t);
}

// What is said of characters that a tokenizer has not: none that would disturb a terminal is shown.
static void unknown_characters_are_named(void) {
  Tokenizer *t = tokenizer_char_from_text("text", "ab\xf0\x9f\x98\x80", 6, true);
  static const struct { const char *text, *message; size_t n; } rows[] = {
    {"\x01", "character '' (U+0001) at line 1, column 1 is none of the 3 that this character tokenizer has seen in training", 1},
    {"a\x1f", "character '' (U+001F) at line 1, column 2", 2}, {"ab ", "character ' ' (U+0020) at line 1, column 3", 3}, {"\n", "character '' (U+000A) at line 1, column 1", 1},
    {"~", "character '~' (U+007E)", 1}, {"\x7f", "character '' (U+007F)", 1}, {"\xc2\x80", "character '\xc2\x80' (U+0080)", 2}, {"\xf4\x8f\xbf\xbf", "(U+10FFFF) at line 1, column 1", 4},
    {"ab\x80", "F: byte 0x80 at line 1, column 3 is not UTF-8, and this tokenizer knows 4 characters only", 3}, {"ab\xc3", "F: byte 0xc3 at line 1, column 3", 3}};
  for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
    char *text = at_the_edge(rows[i].text, rows[i].n);
    TokenBuffer ids = {0};
    EXPECT_FAIL(2, rows[i].message, tokenizer_encode_or_fail(t, "F", text, rows[i].n, &ids, SPECIAL_NONE));
    CHECK_EQ(tokenizer_encode(t, text, rows[i].n, &ids, SPECIAL_NONE), -1);
    CHECK(ids.count == 0);
    token_buffer_free(&ids);
    free(text);
  }
  TokenBuffer ids = {0};
  EXPECT_FAIL(2, "F: character '<' (U+003C) at line 1, column 2", tokenizer_encode_or_fail(t, "F", "a<|endoftext|>", 14, &ids, SPECIAL_NONE));   // plain text
  token_buffer_free(&ids);
  tokenizer_free(t);
  t = tokenizer_char_from_text("text", "a<\nb", 4, true);
  CHECK(tokenizer_encode(t, "<a", 2, &ids, SPECIAL_NONE) == 2 && ids.ids[0] == 1);
  EXPECT_FAIL(2, "F: character '!' (U+0021) at line 2, column 15", tokenizer_encode_or_fail(t, "F", "a\nb<|endoftext|>!", 17, &ids, SPECIAL_ALL));
  token_buffer_free(&ids);
  tokenizer_free(t);
}

// Long words: were the time quadratic, these would take hours.
static void long_words_come_back(void) {
  enum { LONG = 1 << 19 };
  static const char *const units[] = {"a", " ", "\n", "\x80", "\xcc\x81", "ab", "\xe2\x80\x83"};
  Tokenizer *t = tokenizer_gpt2(), *none = train_on(prose, sizeof prose - 1, PATTERN_NONE, 400, false);
  char *text = malloc(LONG);
  for (size_t u = 0; u < ARRAY_LEN(units); u++) {
    size_t width = strlen(units[u]), n = LONG / width * width;
    for (size_t at = 0; at < n; at += width) memcpy(text + at, units[u], width);
    check_round_trip(t, text, n, "a run");
    check_round_trip(none, text, n, "a run");
  }
  free(text);
  tokenizer_free(t);
  tokenizer_free(none);
}

// The heap of long words and the scan of short ones must agree: the same word, encoded whole, against merging by hand.
static size_t merge_by_hand(const Tokenizer *t, const char *word, size_t n, int32_t *ids) {
  for (size_t i = 0; i < n; i++) ids[i] = t->byte_id[(uint8_t)word[i]];
  for (;;) {
    int32_t least = NO_RANK;
    size_t place = 0;
    for (size_t i = 0; i + 1 < n; i++) {
      const int32_t rank = tokenizer_merge_rank(t, ids[i], ids[i + 1]);
      if (rank < least) least = rank, place = i;
    }
    if (least == NO_RANK) return n;
    ids[place] = t->rank_result[least];
    for (size_t i = place + 1; i + 1 < n; i++) ids[i] = ids[i + 1];
    n--;
  }
}

static void merges_go_by_rank(void) {
  Tokenizer *t = train_on("abababcabcaaabbbaaccbcbcaabbaabbccaab abcabcaab", 47, PATTERN_NONE, 290, false);
  char word[300];
  int32_t want[300];
  for (int round = 0; round < 600; round++) {
    size_t n = 1 + draw(round < 400 ? 60 : 299);
    for (size_t i = 0; i < n; i++) word[i] = (char)('a' + draw(3));
    TokenBuffer ids = {0};
    size_t count = merge_by_hand(t, word, n, want);
    for (int again = 0; again < 2; again++) {  // the second time from the cache
      ids.count = 0;
      tokenizer_encode(t, word, n, &ids, SPECIAL_NONE);
      CHECK_MSG(ids.count == count && memcmp(ids.ids, want, count * sizeof want[0]) == 0, "%.*s", (int)n, word);
    }
    token_buffer_free(&ids);
  }
  tokenizer_free(t);
}

// One buffer used with several tokenizers must not mix their words up.
static void a_buffer_serves_several(void) {
  Tokenizer *a = tokenizer_gpt2(), *b = train_on(prose, sizeof prose - 1, PATTERN_GPT2, 320, false);
  TokenBuffer ids = {0};
  for (int i = 0; i < 4; i++) {
    Buffer back = {0};
    ids.count = 0;
    const Tokenizer *t = i % 2 ? a : b;
    tokenizer_encode(t, prose, sizeof prose - 1, &ids, SPECIAL_NONE);
    tokenizer_decode(t, ids.ids, ids.count, &back);
    CHECK_STR(back.data, prose);
    buffer_free(&back);
  }
  token_buffer_free(&ids);
  tokenizer_free(a);
  tokenizer_free(b);
}

// Words that differ in their last byte only, at the end of the text and before more of it, must not be taken for each other.
static void cached_words_are_told_apart(void) {
  Tokenizer *t = train_on("qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", 32, PATTERN_GPT2, 260, false);  // few ids a word: it is cached
  TokenBuffer ids = {0};
  char text[128];
  for (size_t n = 1; n < 30; n++)
    for (int more = 0; more < 2; more++)
      for (int again = 0; again < 2; again++)
        for (char last = 'a'; last <= 'c'; last++) {
          memset(text, 'q', n);
          text[n - 1] = last;
          size_t size = n;
          if (more) size += (size_t)sprintf(text + n, " and the rest of the text behind it");
          Buffer back = {0};
          ids.count = 0;
          tokenizer_encode(t, text, size, &ids, SPECIAL_NONE);
          tokenizer_decode(t, ids.ids, ids.count, &back);
          CHECK_MSG(back.len == size && memcmp(back.data, text, size) == 0, "%.*s became %s", (int)size, text, back.data);
          buffer_free(&back);
        }
  token_buffer_free(&ids);
  CHECK(ids.ids == NULL && ids.count == 0 && ids.capacity == 0 && ids.cache == NULL);
  tokenizer_free(t);
}

typedef struct { const Tokenizer *t; const char *text; size_t n; TokenBuffer ids; } Job;
static void *encode_job(void *argument) {
  Job *job = argument;
  for (int i = 0; i < 20; i++) {
    job->ids.count = 0;
    tokenizer_encode(job->t, job->text, job->n, &job->ids, SPECIAL_ALL);
  }
  return NULL;
}

static void threads_share_a_tokenizer(void) {
  enum { THREADS = 4 };
  Tokenizer *t = tokenizer_gpt2();
  Buffer text = {0};
  for (int i = 0; i < 40; i++) buffer_printf(&text, "%s%d", prose, i);
  pthread_t threads[THREADS];
  Job jobs[THREADS];
  for (int i = 0; i < THREADS; i++) {
    jobs[i] = (Job){t, text.data, text.len, {0}};
    if (pthread_create(&threads[i], NULL, encode_job, &jobs[i])) abort();
  }
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < THREADS; i++) {
    CHECK(jobs[i].ids.count == jobs[0].ids.count && memcmp(jobs[i].ids.ids, jobs[0].ids.ids,
                                                           jobs[0].ids.count * sizeof(int32_t)) == 0);
    if (i) token_buffer_free(&jobs[i].ids);
  }
  token_buffer_free(&jobs[0].ids);
  buffer_free(&text);
  tokenizer_free(t);
}

// ---- char and byte ----

static void char_tokenizer(void) {
  static const char text[] = "caf\xc3\xa9\nba \xf0\x9f\x98\x80 a";
  Tokenizer *t = tokenizer_char_from_text("text", text, sizeof text - 1, false);
  CHECK_EQ(tokenizer_vocab_size(t), 8);  // \n, blank, a, b, c, f, e acute, the face: by code point
  CHECK_EQ(tokenizer_eot(t), -1);
  CHECK_STR(tokenizer_kind_name(t), "char");
  check_round_trip(t, text, sizeof text - 1, "char");
  TokenBuffer ids = {0};
  CHECK_EQ(tokenizer_encode(t, "\n abcf\xc3\xa9\xf0\x9f\x98\x80", 12, &ids, SPECIAL_NONE), 8);
  for (int i = 0; i < 8; i++) CHECK_EQ(ids.ids[i], i);
  CHECK_EQ(tokenizer_encode(t, "abz", 3, &ids, SPECIAL_NONE), -1);
  CHECK(ids.unseen == 2 && ids.count == 8);  // nothing appended
  CHECK_EQ(tokenizer_encode_or_fail(t, "F", "", 0, &ids, SPECIAL_NONE), 0);
  EXPECT_FAIL(2, "F: character 'z' (U+007A) at line 3, column 2 is none of the 8",
              tokenizer_encode_or_fail(t, "F", "a\nb\n\xc3\xa9z", 7, &ids, SPECIAL_NONE));
  EXPECT_FAIL(2, "byte 0xff at line 1, column 2", tokenizer_encode_or_fail(t, "F", "a\xff", 2, &ids, SPECIAL_NONE));
  EXPECT_FAIL(2, "T: byte 0xff at line 2, column 2 is not UTF-8", tokenizer_char_from_text("T", "a\nb\xff", 4, false));
  EXPECT_FAIL(2, "0 bytes", tokenizer_char_from_text("T", "", 0, false));
  EXPECT_FAIL(2, "T: byte 0xc3 at line 1, column 3 is not UTF-8", tokenizer_char_from_text("T", at_the_edge("ab\xc3", 3), 3, false));
  tokenizer_free(t);
  t = tokenizer_char_from_text("text", text, sizeof text - 1, true);
  CHECK(tokenizer_vocab_size(t) == 9 && tokenizer_eot(t) == 8);
  ids.count = 0;
  CHECK_EQ(tokenizer_encode(t, "a<|endoftext|>b", 15, &ids, SPECIAL_ALL), 3);
  CHECK_EQ(ids.ids[1], 8);
  CHECK_EQ(tokenizer_encode(t, "a<|endoftext|>bz", 16, &ids, SPECIAL_ALL), -1);
  CHECK_EQ(ids.unseen, 15);
  CHECK_EQ(tokenizer_encode(t, "a<|endoftext|>zb<|endoftext|>b", 30, &ids, SPECIAL_ALL), -1);   // not where the next special token is
  CHECK(ids.unseen == 14 && ids.count == 3);
  CHECK_EQ(tokenizer_encode(t, "za<|endoftext|>b", 16, &ids, SPECIAL_ALL), -1);
  CHECK_EQ(ids.unseen, 0);
  token_buffer_free(&ids);
  tokenizer_free(t);
  guarded = true;
  t = tokenizer_char_from_text("text", "\0a\xf4\x8f\xbf\xbf", 6, false);   // the first and the last character there is
  guarded = false;
  CHECK(tokenizer_vocab_size(t) == 3 && tokenizer_encode(t, "a\xf4\x8f\xbf\xbf\0", 6, &ids, SPECIAL_NONE) == 3);
  CHECK(ids.ids[0] == 1 && ids.ids[1] == 2 && ids.ids[2] == 0);
  token_buffer_free(&ids);
  tokenizer_free(t);
}

static void byte_tokenizer(void) {
  Tokenizer *t = tokenizer_byte(false), *with = tokenizer_byte(true);
  TokenBuffer ids = {0};
  CHECK_EQ(tokenizer_encode(t, "\0A\xff", 3, &ids, SPECIAL_NONE), 3);
  CHECK(ids.ids[0] == 0 && ids.ids[1] == 65 && ids.ids[2] == 255);
  CHECK(tokenizer_vocab_size(t) == 256 && tokenizer_eot(t) == -1 && tokenizer_vocab_size(with) == 257 && tokenizer_eot(with) == 256);
  token_buffer_free(&ids);
  tokenizer_free(t);
  tokenizer_free(with);
}

// ---- training ----

enum { PLAIN_WORDS = 64, PLAIN_LENGTH = 40 };
typedef struct { int32_t symbols[PLAIN_LENGTH]; int length; } PlainWord;

// The plainest trainer: counts all pairs anew for every merge. Returns the merges found, up to `most`; stops where a merge makes bytes
// that another has made (*twice): there the peer's counts are its own, and fixed results below stand for it.
static size_t train_plainly(PlainWord *words, int count, Merge *merges, size_t most, bool *twice) {
  static int counts[300][300];
  static char names[300][PLAIN_LENGTH + 1];
  int32_t made = 256;
  for (int i = 0; i < 256; i++) names[i][0] = (char)alphabet_in_order(i), names[i][1] = 0;
  for (size_t found = 0;; found++) {
    *twice = false;
    if (found == most) return found;
    memset(counts, 0, sizeof counts);
    for (int w = 0; w < count; w++)
      for (int i = 0; i + 1 < words[w].length; i++) counts[words[w].symbols[i]][words[w].symbols[i + 1]]++;
    int best = 0, left = 0, right = 0;
    for (int a = 0; a < made; a++)
      for (int b = 0; b < made; b++)
        if (counts[a][b] > best) best = counts[a][b], left = a, right = b;
    if (best == 0) return found;
    strcat(strcpy(names[made], names[left]), names[right]);
    for (int32_t i = 256; i < made; i++)
      if (strcmp(names[i], names[made]) == 0) {
        *twice = true;
        return found;
      }
    merges[found] = (Merge){left, right, made, (int32_t)found};
    for (int w = 0; w < count; w++) {
      int kept = 0;
      for (int i = 0; i < words[w].length; i++) {
        bool here = i + 1 < words[w].length && words[w].symbols[i] == left && words[w].symbols[i + 1] == right;
        words[w].symbols[kept++] = here ? made : words[w].symbols[i];
        i += here;
      }
      words[w].length = kept;
    }
    made++;
  }
}

static void trainer_equals_a_plain_one(void) {
  static PlainWord words[PLAIN_WORDS];
  size_t compared = 0;
  int whole = 0;
  for (int round = 0; round < 300; round++) {
    int count = 1 + (int)draw(PLAIN_WORDS), letters = 2 + (int)draw(7), longest = 2 + (int)draw(PLAIN_LENGTH - 4);
    TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_NONE);
    for (int w = 0; w < count; w++) {
      char text[PLAIN_LENGTH];
      words[w].length = 1 + (int)draw((uint32_t)longest);
      for (int i = 0; i < words[w].length; i++) {
        text[i] = (char)('a' + draw((uint32_t)letters));
        words[w].symbols[i] = text[i] - '!';  // its number in GPT-2's order
      }
      tokenizer_trainer_add(trainer, text, (size_t)words[w].length);
    }
    Merge merges[40];
    bool twice;
    size_t most = 1 + draw(40), n = train_plainly(words, count, merges, most, &twice);
    Tokenizer *t = tokenizer_trainer_finish(trainer, 256 + (int64_t)most, NULL, 0);
    CHECK_MSG(twice ? t->merge_count >= n : t->merge_count == n, "round %d: %zu merges, the plain trainer has %zu", round,
              t->merge_count, n);
    for (size_t i = 0; i < n && i < t->merge_count; i++)
      CHECK_MSG(memcmp(&merges[i], &t->merges[i], sizeof merges[0]) == 0,
                "round %d, merge %zu: (%d, %d) where (%d, %d) is due", round, i, t->merges[i].left,
                t->merges[i].right, merges[i].left, merges[i].right);
    compared += n;
    whole += !twice;
    tokenizer_free(t);
  }
  CHECK_MSG(whole >= 150 && compared > 3000, "%d corpora whole, %zu merges compared", whole, compared);
}

// Runs of few letters, where merges make the same bytes in several ways. The digests are those of the merge lists of
// Hugging Face's BpeTrainer (tokenizers 0.23.3, ByteLevel alphabet) on the same documents.
static void trainer_equals_the_peer_on_runs(void) {
  static const struct { TokenizerPattern pattern; int64_t vocab; const char *sha; } rows[] = {
      {PATTERN_GPT2, 300, "df0885add961589aa290801b0ac3d8b9733064341b3127ec51a7d907eb27a615"},
      {PATTERN_GPT2, 700, "2ad71817789a921788d4280db0512fcbac87116f7ccfba260ee471c42b76c506"},
      {PATTERN_GPT4, 1600, "b54aef2813274d04349bfa16f290b4235187a2b87a24be232f293b962123e2fd"}};
  for (size_t r = 0; r < ARRAY_LEN(rows); r++) {
    random_state = 7;
    TokenizerTrainer *trainer = tokenizer_trainer(rows[r].pattern);
    for (int d = 0; d < 40; d++) {
      Buffer text = {0};
      for (int i = 0; i < 200; i++) {
        char letter = "a-= "[draw(4)];
        for (uint32_t k = 1 + draw(29); k > 0; k--) buffer_append(&text, &letter, 1);
      }
      tokenizer_trainer_add(trainer, text.data, text.len);
      buffer_free(&text);
    }
    Tokenizer *t = tokenizer_trainer_finish(trainer, rows[r].vocab, NULL, 0);
    Buffer list = {0};
    for (size_t i = 0; i < t->merge_count; i++) buffer_printf(&list, "%d %d %d\n", t->merges[i].left, t->merges[i].right,
                                                              t->merges[i].result);
    char hex[65];
    sha256_of(list.data, list.len, hex);
    CHECK_STR(hex, rows[r].sha);
    buffer_free(&list);
    tokenizer_free(t);
  }
}

// More pairs and more words than the tables begin with: the first merge is the pair that a plain count finds.
static void tables_of_the_trainer_grow(void) {
  enum { BYTES = 60000, WORDS = 5000 };
  static int counts[256][256];
  TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_NONE);
  memset(counts, 0, sizeof counts);
  char *text = malloc(BYTES);
  for (size_t i = 0; i < BYTES; i++) text[i] = (char)draw(256);
  for (size_t w = 0; w < WORDS; w++) {
    size_t n = BYTES / WORDS;
    tokenizer_trainer_add(trainer, text + w * n, n);
    tokenizer_trainer_add(trainer, text + w * n, w % 3 ? n : 0);
    for (size_t i = w * n; i + 1 < (w + 1) * n; i++) counts[(uint8_t)text[i]][(uint8_t)text[i + 1]] += w % 3 ? 2 : 1;
  }
  CHECK(tokenizer_trainer_memory(trainer) > BYTES);
  guarded = true, guarded_least = 1 << 16;   // an old table is not there any more
  Tokenizer *t = tokenizer_trainer_finish(trainer, 257, NULL, 0);
  guarded = false, guarded_least = 0;
  int best = 0, left = 0, right = 0;
  for (int a = 0; a < 256; a++)
    for (int b = 0; b < 256; b++) {
      int x = alphabet_in_order(a), y = alphabet_in_order(b);
      if (counts[x][y] > best) best = counts[x][y], left = a, right = b;
    }
  CHECK_MSG(t->merges[0].left == left && t->merges[0].right == right, "(%d, %d), expected (%d, %d)", t->merges[0].left,
            t->merges[0].right, left, right);
  free(text);
  tokenizer_free(t);
}

// Text of all bytes until no pair is left: every pair and every word of the tables counts, more than they begin with of both. All merges are pinned.
static void training_to_the_end(void) {
  enum { BYTES = 40000, LENGTH = 10 };
  TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_NONE);
  random_state = 99;
  guarded = true, guarded_least = 1 << 16;   // tables lie before a page that must not be touched
  for (int w = 0; w < BYTES / LENGTH; w++) {
    char word[LENGTH];
    for (int i = 0; i < LENGTH; i++) word[i] = (char)draw(256);
    for (int again = w % 5; again >= 0; again--) tokenizer_trainer_add(trainer, word, LENGTH);
  }
  Tokenizer *t = tokenizer_trainer_finish(trainer, 100000, NULL, 0);
  guarded = false, guarded_least = 0;
  Buffer list = {0};
  for (size_t i = 0; i < t->merge_count; i++) buffer_printf(&list, "%d %d %d\n", t->merges[i].left, t->merges[i].right, t->merges[i].result);
  char hex[65];
  sha256_of(list.data, list.len, hex);
  CHECK_STR(hex, "a355e2ffb7c964b2297381aa25ce12660bfcc8826c2542f1df1436fa1fe3a1f1");
  buffer_free(&list);
  tokenizer_free(t);
}

static void training_rules(void) {
  Tokenizer *t = train_on("ab", 2, PATTERN_GPT2, 300, true);  // one merge is all there is
  CHECK(tokenizer_vocab_size(t) == 258 && tokenizer_merge_count(t) == 1 && tokenizer_eot(t) == 257);
  tokenizer_free(t);
  t = train_on("", 0, PATTERN_GPT2, 256, false);
  CHECK_EQ(tokenizer_vocab_size(t), 256);
  tokenizer_free(t);
  t = train_on("a b", 3, PATTERN_GPT4, 300, false);   // " b" is one pair
  CHECK_EQ(tokenizer_vocab_size(t), 257);
  tokenizer_free(t);
  t = train_on("a", 1, PATTERN_GPT4, 300, false);     // no pair at all
  CHECK_EQ(tokenizer_vocab_size(t), 256);
  tokenizer_free(t);
  // The order of documents does not matter, and a document's end is an end of words.
  Buffer a = {0}, b = {0};
  for (int order = 0; order < 2; order++) {
    TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_GPT2);
    for (int i = 0; i < 50; i++) tokenizer_trainer_add(trainer, prose + (order ? 49 - i : i), 60);
    t = tokenizer_trainer_finish(trainer, 400, NULL, 0);
    tokenizer_json(t, order ? &b : &a);
    tokenizer_free(t);
  }
  CHECK_STR(a.data, b.data);
  buffer_free(&a);
  buffer_free(&b);
  // With no pattern a merge may make a special token's text: it is that token, and may be merged on.
  Buffer text = {0};
  for (int i = 0; i < 9; i++) buffer_printf(&text, "%s!", END_OF_TEXT);
  t = train_on(text.data, text.len, PATTERN_NONE, 300, true);
  Buffer json = {0}, again = {0};
  tokenizer_json(t, &json);
  Tokenizer *back = tokenizer_from_json("json", json.data, json.len);
  tokenizer_json(back, &again);
  CHECK_STR(again.data, json.data);
  check_round_trip(back, text.data, text.len, "special text");
  tokenizer_free(t);
  tokenizer_free(back);
  buffer_free(&text);
  buffer_free(&json);
  buffer_free(&again);
  static const struct { const char *special, *reason; } edges[] = {{"ab\x1f", "U+001F"}, {"ab\x7f", "U+007F"}, {"ab\xc5\x83", "U+0143"}, {"\xc2\x80", "U+0080"}, {"a\xc2", "--add-special: byte 0xc2 is not UTF-8"}};
  for (size_t i = 0; i < ARRAY_LEN(edges); i++) EXPECT_FAIL(2, edges[i].reason, tokenizer_trainer_finish(tokenizer_trainer(PATTERN_GPT2), 300, &edges[i].special, 1));
  static const char *const good[] = {"ab", " ~", "\xc5\x84", "\xf4\x8f\xbf\xbf"};
  t = tokenizer_trainer_finish(tokenizer_trainer(PATTERN_GPT2), 260, good, 4);
  CHECK_EQ(tokenizer_special_count(t), 4);
  tokenizer_free(t);
  static const char *const bad[] = {"x", "a\nb", "\xff\xff", "a\xc3\xa9", "<|a|>", "<|a|>"};
  EXPECT_FAIL(2, "1 bytes, at least 2", tokenizer_trainer_finish(tokenizer_trainer(PATTERN_GPT2), 300, bad, 1));
  EXPECT_FAIL(2, "U+000A", tokenizer_trainer_finish(tokenizer_trainer(PATTERN_GPT2), 300, bad + 1, 1));
  EXPECT_FAIL(2, "not UTF-8", tokenizer_trainer_finish(tokenizer_trainer(PATTERN_GPT2), 300, bad + 2, 1));
  EXPECT_FAIL(2, "U+00E9", tokenizer_trainer_finish(tokenizer_trainer(PATTERN_GPT2), 300, bad + 3, 1));
  EXPECT_FAIL(2, "given twice", tokenizer_trainer_finish(tokenizer_trainer(PATTERN_GPT2), 300, bad + 4, 2));
  EXPECT_FAIL(2, "at least 257", tokenizer_trainer_finish(tokenizer_trainer(PATTERN_GPT2), 256, bad + 4, 1));
}

// What a trainer says it holds: the table, the words, and what training them takes.
static void memory_of_the_trainer_is_counted(void) {
  TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_NONE);
  enum { SLOT = 32 };   // bytes
  CHECK_EQ(tokenizer_trainer_memory(trainer), 4096 * SLOT);
  char word[1000];
  memset(word, 'x', sizeof word);
  for (int again = 0; again < 2; again++) tokenizer_trainer_add(trainer, word, sizeof word);
  CHECK_EQ(tokenizer_trainer_memory(trainer), 4096 * SLOT + 1001 + 12 * 1000);
  size_t words = 1, text = 1000;
  for (; words < 2047; words++, text += 4) tokenizer_trainer_add(trainer, (char[]){(char)words, (char)(words >> 8), 'a', 'b'}, 4);
  CHECK_EQ((tokenizer_trainer_memory(trainer) - 12 * text) / SLOT / 4096, 1);
  for (; words < 2048; words++, text += 4) tokenizer_trainer_add(trainer, (char[]){(char)words, (char)(words >> 8), 'a', 'b'}, 4);
  CHECK_EQ((tokenizer_trainer_memory(trainer) - 12 * text) / SLOT / 4096, 2);   // half full: twice as large
  const size_t full = tokenizer_trainer_memory(trainer);
  for (size_t i = 1; i < 2048; i++) tokenizer_trainer_add(trainer, (char[]){(char)i, (char)(i >> 8), 'a', 'b'}, 4);
  CHECK_EQ(tokenizer_trainer_memory(trainer), full);                              // all are known still
  EXPECT_FAIL(2, "one piece of text of 2147483648 bytes, at most 2147483647 can be trained on: split it into documents", tokenizer_trainer_add(trainer, at_the_edge("", 0), (size_t)1 << 31));
  EXPECT_FAIL(2, "--vocab 536870912: the 256 bytes and 0 special tokens need at least 256 entries (at most 536870911)", tokenizer_trainer_finish(trainer, 536870912, NULL, 0));
  Tokenizer *t = tokenizer_trainer_finish(trainer, 536870911, NULL, 0);
  CHECK(tokenizer_vocab_size(t) > 300);
  tokenizer_free(t);
}

// Words that one, several or all of three trainers have seen, short ones and such as have a hash for their key: taken over they are those of
// one that has seen everything, each held once.
static void trainers_are_taken_over(void) {
  enum { WORDS = 6000, LONGEST = 30, PARTS = 3 };
  TokenizerTrainer *whole = tokenizer_trainer(PATTERN_NONE), *parts[PARTS];
  guarded = true, guarded_least = 1 << 16;
  for (int p = 0; p < PARTS; p++) parts[p] = tokenizer_trainer(PATTERN_NONE);
  for (int w = 0; w < WORDS; w++) {
    char word[LONGEST];
    const size_t n = 1 + (size_t)w % LONGEST;
    for (size_t i = 0; i < n; i++) word[i] = (char)draw(256);
    for (int again = (int)draw(9); again >= 0; again--) {
      tokenizer_trainer_add(whole, word, n);
      tokenizer_trainer_add(parts[w % 4 < PARTS ? w % 4 : (int)draw(PARTS)], word, n);
    }
  }
  TokenizerTrainer *all = tokenizer_trainer(PATTERN_NONE);
  tokenizer_trainer_take(parts[1], parts[2]);
  tokenizer_trainer_take(parts[0], parts[1]);
  const size_t held = tokenizer_trainer_memory(parts[0]);
  tokenizer_trainer_take(parts[0], tokenizer_trainer(PATTERN_NONE));   // nothing
  CHECK_EQ(tokenizer_trainer_memory(parts[0]), held);
  tokenizer_trainer_take(all, parts[0]);
  guarded = false, guarded_least = 0;
  CHECK_EQ(held, tokenizer_trainer_memory(whole));
  CHECK_EQ(tokenizer_trainer_memory(all), tokenizer_trainer_memory(whole));
  Buffer expected = {0}, json = {0};
  Tokenizer *t = tokenizer_trainer_finish(whole, 5000, NULL, 0), *taken = tokenizer_trainer_finish(all, 5000, NULL, 0);
  CHECK_EQ(tokenizer_vocab_size(t), 5000);
  tokenizer_json(t, &expected);
  tokenizer_json(taken, &json);
  CHECK_STR(json.data, expected.data);
  buffer_free(&expected);
  buffer_free(&json);
  tokenizer_free(t);
  tokenizer_free(taken);
}

// ---- the command ----

static Options command(unsigned which, const char *tokenizer, const char *argument, const char *out) {
  static const char *arguments[4];
  static int turn;
  const char **own = &arguments[turn++ & 3];
  *own = argument;
  return (Options){.command = which, .use_tokenizer = tokenizer, .args = own, .arg_count = argument != NULL,
                   .file_out = out, .vocab = AUTO_INT, .threads = 1,
                   .max_memory = (int64_t)1 << 30};
}

static void check_file(const char *name, const char *expected, size_t n) {
  size_t size;
  char *text = read_file(in_folder(name), "output", 1 << 24, &size);
  CHECK_MSG(size == n && memcmp(text, expected, n) == 0, "%s holds \"%s\", expected \"%s\"", name, text, expected);
  free(text);
}

static void encode_and_decode_commands(void) {
  static const char text[] = "Hello world\xff\n";
  char in[500], ids[500], out[500];
  strcpy(in, in_folder("in.txt"));
  strcpy(ids, in_folder("ids"));
  strcpy(out, in_folder("out"));
  replace_file(in, text, sizeof text - 1);
  Options o = command(COMMAND_TOKENIZER_ENCODE, "gpt2", in, ids);
  CHECK_EQ(tokenizer_command(&o), 0);
  check_file("ids", "15496 995 187 198\n", 18);
  Options back = command(COMMAND_TOKENIZER_DECODE, "gpt2", ids, out);
  CHECK_EQ(tokenizer_command(&back), 0);
  check_file("out", text, sizeof text - 1);
  for (int how = FORMAT_U16; how <= FORMAT_U32; how++) {
    o.format = back.format = how;
    CHECK(tokenizer_command(&o) == 0 && tokenizer_command(&back) == 0);
    check_file("out", text, sizeof text - 1);
    if (how == FORMAT_U16) check_file("ids", "\x88\x3c\xe3\x03\xbb\x00\xc6\x00", 8);
    if (how == FORMAT_U32) check_file("ids", "\x88\x3c\0\0\xe3\x03\0\0\xbb\0\0\0\xc6\0\0\0", 16);
  }
  o.format = FORMAT_TEXT;
  o.show = 1;
  CHECK_EQ(tokenizer_command(&o), 0);
  static const char pieces[] = "  15496  \"Hello\"\n    995  \" world\"\n    187  \"\\xff\"\n    198  \"\\n\"\n";
  check_file("ids", pieces, sizeof pieces - 1);
  back.format = FORMAT_TEXT;
  *back.args = "15496";
  CHECK_EQ(tokenizer_command(&back), 0);
  check_file("out", "Hello", 5);
  static const struct { const char *ids, *reason; int format; } rows[] = {
      {"1 2x", "line 1: id 2 is not a whole number", FORMAT_TEXT}, {"1\n-2", "line 2: id 2", FORMAT_TEXT}, {"99999999999",
                                                                                                            "id 1 is not a whole number", FORMAT_TEXT},
      {"5 50257", "id 50257, number 2 of the list, is not in the vocabulary: it has 50257 entries", FORMAT_TEXT},
      {"abc", "3 bytes are no whole number of 2-byte ids", FORMAT_U16}, {"abcde", "no whole number of 4-byte ids",
                                                                         FORMAT_U32}, {"\xff\xff\xff\xff",
                                                                                       "is none of any vocabulary", FORMAT_U32}};
  for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
    replace_file(ids, rows[i].ids, strlen(rows[i].ids));
    *back.args = ids;
    back.format = rows[i].format;
    unlink(out);
    EXPECT_FAIL(2, rows[i].reason, tokenizer_command(&back));
    CHECK(!file_exists(out));
  }
  o = command(COMMAND_TOKENIZER_ENCODE, NULL, in, NULL);
  EXPECT_FAIL(2, "--tokenizer is missing", tokenizer_command(&o));
  o = command(COMMAND_TOKENIZER_ENCODE, "gpt2", in_folder("none"), NULL);
  EXPECT_FAIL(2, "none: cannot open", tokenizer_command(&o));
  o = command(COMMAND_TOKENIZER_ENCODE, "char", in, ids);
  EXPECT_FAIL(2, "byte 0xff at line 1, column 12 is not UTF-8", tokenizer_command(&o));
}

static void train_and_info_commands(void) {
  char in[500], out[500];
  strcpy(in, in_folder("in.txt"));
  strcpy(out, in_folder("made.json"));
  replace_file(in, prose, sizeof prose - 1);
  const char *specials[] = {END_OF_TEXT};
  Options o = command(COMMAND_TOKENIZER_TRAIN, NULL, in, NULL);
  EXPECT_FAIL(2, "--vocab is missing", tokenizer_command(&o));
  o.vocab = 300;
  EXPECT_FAIL(2, "--out is missing", tokenizer_command(&o));
  o.file_out = out;
  o.add_special = specials;
  o.list_count = 1;
  o.vocab = 256;
  EXPECT_FAIL(2, "need at least 257 entries", tokenizer_command(&o));
  o.vocab = 5000;
  EXPECT_FAIL(2, "merges, --vocab 5000 needs 4743: add text, or ask for --vocab", tokenizer_command(&o));
  CHECK(!file_exists(out));
  o.max_memory = 1 << 10;
  EXPECT_FAIL(2, "--max-memory allows 1024", tokenizer_command(&o));
  o.max_memory = (int64_t)1 << 30;
  fflush(stdout);
  int kept = dup(1);
  if (!freopen(in_folder("stdout"), "w", stdout)) abort();
  for (int documents = DOCUMENTS_FILE; documents <= DOCUMENTS_NONE; documents++) {
    o.documents = documents;
    o.vocab = 300;
    CHECK_EQ(tokenizer_command(&o), 0);
    Tokenizer *t = tokenizer_open(out);
    CHECK(tokenizer_vocab_size(t) == 300 && tokenizer_eot(t) == 299);
    tokenizer_free(t);
  }
  o.vocab = 5000;
  o.allow_fewer = 1;
  CHECK_EQ(tokenizer_command(&o), 0);
  Options info = command(COMMAND_TOKENIZER_INFO, out, NULL, in_folder("copy.json"));
  CHECK_EQ(tokenizer_command(&info), 0);
  fflush(stdout);
  if (!freopen(in_folder("info"), "w", stdout)) abort();
  info.json = 1;
  CHECK_EQ(tokenizer_command(&info), 0);
  fflush(stdout);
  dup2(kept, 1);
  close(kept);
  stdout = fdopen(1, "w");
  setvbuf(stdout, NULL, _IOLBF, 0);
  size_t a, b;
  char *said = read_file(in_folder("stdout"), "output", 1 << 24, &a);
  CHECK(strstr(said, "in 1 documents") && strstr(said, "in 2 documents"));  // blank-line cuts the prose once
  free(said);
  char *first = read_file(out, "tokenizer", 1 << 24, &a), *copy = read_file(in_folder("copy.json"), "tokenizer", 1 << 24,
                                                                            &b), error[200];
  CHECK_STR(copy, first);
  char *line = read_file(in_folder("info"), "info", 1 << 24, &b);
  Json *j = json_parse(line, b, error, sizeof error);
  CHECK_STR(json_string(j, "kind", ""), "bpe");
  CHECK(json_number(j, "eot", -2) == json_number(j, "vocab_size", 0) - 1 && json_number(j, "merges", 0) == json_number(j,
                                                                                                                       "vocab_size", 0) - 257);
  json_free(j);
  free(first);
  free(copy);
  free(line);
}

// ---- training with several threads ----

// Trains in a process of its own, so that this one has no threads when it forks; "in N documents" into `said`. The tokenizer.json, freed by the caller.
static char *train_apart(Options o, int threads, char said[40]) {
  said[0] = 0;
  unlink(o.file_out);
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    if (!freopen(in_folder("stdout"), "w", stdout)) abort();
    o.threads = threads;
    guarded = true, guarded_least = 1 << 16;
    int code = tokenizer_command(&o);
    fflush(stdout);
    _exit(code);
  }
  int status;
  waitpid(child, &status, 0);
  CHECK_MSG(status == 0, "%d threads: status %d", threads, status);
  if (status) return xstrdup("");
  size_t n;
  char *line = read_file(in_folder("stdout"), "output", 1 << 24, &n), *in = strstr(line, "in ");
  snprintf(said, 40, "%.*s", in ? (int)strcspn(in, ",") : 0, in ? in : "");
  free(line);
  return read_file(o.file_out, "tokenizer", 1 << 24, &n);
}

// Any number of threads writes what one trainer gives that was given these documents, which stand end to end in `text`.
static void check_threads(const Options *o, const char *text, const size_t *ends, size_t count) {
  TokenizerTrainer *trainer = tokenizer_trainer((TokenizerPattern)o->pattern);
  for (size_t d = 0, at = 0; d < count; at = ends[d++]) tokenizer_trainer_add(trainer, text + at, ends[d] - at);
  Tokenizer *t = tokenizer_trainer_finish(trainer, o->vocab, NULL, 0);
  Buffer json = {0};
  tokenizer_json(t, &json);
  tokenizer_free(t);
  static const int threads[] = {1, 2, 3, 7};
  char said[40], expected[40];
  snprintf(expected, sizeof expected, "in %zu documents", count);
  for (size_t i = 0; i < ARRAY_LEN(threads); i++) {
    char *made = train_apart(*o, threads[i], said);
    CHECK_MSG(!strcmp(made, json.data), "%d threads, %zu documents: another tokenizer", threads[i], count);
    CHECK_STR(said, expected);
    free(made);
  }
  buffer_free(&json);
}

// Documents to train on: end to end, and as the text of a file, in which blank lines stand between them.
typedef struct { Buffer documents, file; size_t *ends, count, capacity; } Corpus;
static void add_to_corpus(Corpus *c, size_t words) {
  static const char *const syllables[] = {"ba", "na", "the", "ing", "qu", "\xc3\xa9", "st", "or"};
  const size_t start = c->documents.len;
  for (; words > 0; words--) {
    const uint32_t number = 1 + draw(4096);   // of the word; some have over fifteen bytes
    for (uint32_t rest = number % 3 ? number : 4097 * number; rest > 0; rest /= 8) buffer_printf(&c->documents, "%s", syllables[rest % 8]);
    if (words > 1) buffer_append(&c->documents, words % 9 ? " " : "\n", 1);
  }
  if (c->count) buffer_append(&c->file, "\n \t\n\n", 5);
  buffer_append(&c->file, c->documents.data + start, c->documents.len - start);
  c->ends = xgrow(c->ends, c->count, &c->capacity, sizeof c->ends[0]);
  c->ends[c->count++] = c->documents.len;
}
static void free_corpus(Corpus *c) {
  buffer_free(&c->documents);
  buffer_free(&c->file);
  free(c->ends);
}

// Small ones, more than wait together; long ones, whose text is too long to wait together; blank lines at the end.
static void threads_count_the_documents_of_a_text(void) {
  Corpus c = {0};
  for (int d = 0; d < 40000; d++) add_to_corpus(&c, 1);
  for (int d = 0; d < 250; d++) add_to_corpus(&c, 500 + draw(9000));
  CHECK(c.documents.len > 9 << 20);
  buffer_append(&c.file, "\n\n \n", 4);
  char in[500], out[500];
  strcpy(in, in_folder("many.txt"));
  strcpy(out, in_folder("many.json"));
  replace_file(in, c.file.data, c.file.len);
  Options o = command(COMMAND_TOKENIZER_TRAIN, NULL, in, out);
  o.vocab = 700;
  o.documents = DOCUMENTS_BLANK_LINE;
  check_threads(&o, c.documents.data, c.ends, c.count);
  o.documents = DOCUMENTS_FILE;     // one, and all threads but one have nothing to do
  check_threads(&o, c.file.data, &c.file.len, 1);
  o.documents = DOCUMENTS_NONE;
  check_threads(&o, c.file.data, &c.file.len, 1);
  replace_file(in, "\n \n\t\n", 5);
  o.documents = DOCUMENTS_BLANK_LINE;
  o.allow_fewer = 1;
  check_threads(&o, "", NULL, 0);
  free_corpus(&c);
}

// Texts wait as documents do, but none behind a long one. Each is a document, taken whole or as what stands between blank lines.
static void threads_count_the_texts_of_a_folder(void) {
  Corpus c = {0};
  char dir[500], out[500], path[600];
  strcpy(dir, in_folder("texts"));
  strcpy(out, in_folder("texts.json"));
  make_directory(dir);
  for (int d = 0; d < 60; d++) {
    const size_t start = c.documents.len;
    add_to_corpus(&c, d == 20 ? 700000 : 1 + draw(3000));
    snprintf(path, sizeof path, "%s/%02d", dir, d);
    replace_file(path, c.documents.data + start, c.documents.len - start);
  }
  snprintf(path, sizeof path, "%s/empty", dir);
  replace_file(path, "", 0);
  Options o = command(COMMAND_TOKENIZER_TRAIN, NULL, dir, out);
  o.vocab = 700;
  check_threads(&o, c.documents.data, c.ends, c.count);
  o.documents = DOCUMENTS_BLANK_LINE;
  check_threads(&o, c.documents.data, c.ends, c.count);
  o.documents = DOCUMENTS_NONE;
  check_threads(&o, c.documents.data, &c.documents.len, 1);
  remove_tree(dir);
  // more texts than may wait, in none of which a document is
  enum { TEXTS = 40000 };
  strcpy(path, in_folder("blank"));
  const char **texts = xmalloc(TEXTS + 1, sizeof *texts);
  char word[500];
  strcpy(word, in_folder("word"));
  replace_file(path, "\n", 1);
  replace_file(word, "banana", 6);
  for (size_t i = 0; i < TEXTS; i++) texts[i] = path;
  texts[TEXTS] = word;
  o.args = texts;
  o.arg_count = TEXTS + 1;
  o.vocab = 259;
  o.documents = DOCUMENTS_BLANK_LINE;
  check_threads(&o, "banana", (size_t[]){6}, 1);
  free(texts);
  free_corpus(&c);
}

// This text, given so many times, is refused for want of memory after so many documents, whatever the number of threads.
static void refused_at(Options o, const char *text, size_t n, size_t times, size_t documents) {
  const char *texts[] = {*o.args, *o.args, *o.args};
  char *words = format(" bytes are needed for the words of the first %zu documents, --max-memory allows %lld: raise it", documents, (long long)o.max_memory);
  replace_file(*o.args, text, n);
  o.args = texts;
  o.arg_count = times;
  o.documents = DOCUMENTS_BLANK_LINE;
  for (o.threads = 1; o.threads <= 3; o.threads++) {
    EXPECT_FAIL(2, words, tokenizer_command(&o));
    CHECK(!file_exists(o.file_out));
  }
  free(words);
}

// What is refused for want of memory does not depend on the number of threads, though several may know the same words; and it is refused soon.
static void threads_share_the_memory(void) {
  enum { WORDS = 120000, BYTES = 5, TEXTS = 15 };
  Buffer words = {0}, text = {0};
  for (int w = 0; w < WORDS; w++) buffer_printf(&words, " %c%c%c%c", 'a' + w / 17576, 'a' + w / 676 % 26, 'a' + w / 26 % 26, 'a' + w % 26);
  TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_GPT2);
  tokenizer_trainer_add(trainer, words.data, words.len);
  const size_t held = tokenizer_trainer_memory(trainer);
  tokenizer_free(tokenizer_trainer_finish(trainer, 256, NULL, 0));
  char in[500], out[500], said[40];
  strcpy(in, in_folder("words.txt"));
  strcpy(out, in_folder("words.json"));
  replace_file(in, words.data, words.len);
  const char *texts[TEXTS];
  for (int i = 0; i < TEXTS; i++) texts[i] = in;
  Options o = command(COMMAND_TOKENIZER_TRAIN, NULL, in, out), several = o;
  several.args = texts;
  several.arg_count = TEXTS;
  several.vocab = o.vocab = 300;
  several.max_memory = (int64_t)(held + held / 3);   // room for all words once
  char *one = train_apart(several, 1, said), *three = train_apart(several, 3, said);
  CHECK_STR(three, one);
  CHECK_STR(said, "in 15 documents");
  unlink(out);
  o.max_memory = (int64_t)(held / 3 * 2);
  for (int i = 0; i < TEXTS; i++) {
    buffer_append(&text, words.data, words.len);
    buffer_append(&text, "\n\n", 2);
  }
  refused_at(o, text.data, text.len, 1, 14);   // of 600 KB: more than 8 MiB
  text.len = words.len;
  buffer_reserve(&text, 8 << 20);
  memset(text.data + text.len, '\n', 8 << 20);
  refused_at(o, text.data, text.len + (8 << 20), 3, 1);   // of a long text nothing waits, however short its documents are
  text.len = 0;
  for (int d = 0; d < 1 << 16; d++) buffer_printf(&text, "%.*s\n\n", BYTES, words.data + BYTES * (d & 0x7fff));
  o.max_memory = (int64_t)(held / 5);
  refused_at(o, text.data, text.len, 1, 1 << 15);         // each thread knows other words; the second half has none but those of the first
  free(one);
  free(three);
  buffer_free(&words);
  buffer_free(&text);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  open_folder();
  RUN(unicode_classes_are_right);
  RUN(gpt2_golden_ids);
  RUN(special_text_is_plain_unless_asked);
  RUN(longest_special_wins);
  RUN(specials_are_in_order);
  RUN(every_token_is_decoded);
  RUN(unknown_characters_are_named);
  RUN(any_bytes_come_back);
  RUN(long_words_come_back);
  RUN(merges_go_by_rank);
  RUN(a_buffer_serves_several);
  RUN(cached_words_are_told_apart);
  RUN(threads_share_a_tokenizer);
  RUN(char_tokenizer);
  RUN(byte_tokenizer);
  RUN(trainer_equals_a_plain_one);
  RUN(trainer_equals_the_peer_on_runs);
  RUN(tables_of_the_trainer_grow);
  RUN(training_to_the_end);
  RUN(training_rules);
  RUN(memory_of_the_trainer_is_counted);
  RUN(trainers_are_taken_over);
  RUN(encode_and_decode_commands);
  RUN(train_and_info_commands);
  RUN(threads_count_the_documents_of_a_text);
  RUN(threads_count_the_texts_of_a_folder);
  RUN(threads_share_the_memory);
  remove_tree(folder);
  return TEST_END();
}
