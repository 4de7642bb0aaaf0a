// test_pieces.c: tokenizer_pieces.c (text into words: the two published patterns, each way of cutting against the other) and tokenizer_merge.c
// (one word's bytes to ids: each way of merging against the other).
#include "../tokenizer_internal.h"
#include "../unicode.h"
#include "../utf8.h"
#include "guard_heap.h"
#include "test.h"
#include <sys/resource.h>   // setrlimit
#include <time.h>           // clock

enum { GUARD_PAGE = 1 << 16 };   // a multiple of the page of any machine

static uint64_t random_state = 1;
static uint32_t draw(uint32_t below) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)((random_state >> 33) % below);
}

// ---- pieces ----

static void check_pieces(TokenizerPattern pattern, const char *text, const char *expected) {
  char got[400];
  size_t used = 0, n = strlen(text);
  for (size_t at = 0; at < n;) {
    size_t end = tokenizer_piece_end(pattern, text, n, at);
    CHECK(end > at && end <= n);
    if (at) got[used++] = '|';
    memcpy(got + used, text + at, end - at);
    used += end - at;
    at = end;
  }
  got[used] = 0;
  CHECK_STR(got, expected);
}

static void pieces_are_the_patterns(void) {
  static const char *const rows[][3] = {  // text, gpt2's pieces, gpt4's: made with Python's regex module from the published patterns
      {"Hello world", "Hello| world", "Hello| world"},
      {"  two  spaces ", " | two| | spaces| ", " | two| | spaces| "},
      {"It's we'll I've they're I'd I'm don't", "It|'s| we|'ll| I|'ve| they|'re| I|'d| I|'m| don|'t",
       "It|'s| we|'ll| I|'ve| they|'re| I|'d| I|'m| don|'t"},
      {"IT'S WE'LL 'S", "IT|'|S| WE|'|LL| '|S", "IT|'S| WE|'LL| '|S"},
      {"'\305\277x", "'|\305\277x", "'\305\277|x"},
      {"12345678 9", "12345678| 9", "123|456|78| |9"},
      {"a1b22c333", "a|1|b|22|c|333", "a|1|b|22|c|333"},
      {"x=1;\n\ny", "x|=|1|;|\n|\n|y", "x|=|1|;\n\n|y"},
      {"...\n\n  z", "...|\n\n | z", "...\n\n| | z"},
      {"\n\n \n  a", "\n\n \n | a", "\n\n \n| | a"},
      {"end \n ", "end| \n ", "end| \n "},
      {"a\302\240\302\240b", "a|\302\240|\302\240|b", "a|\302\240|\302\240b"},
      {"\t\tif (x)\r\n\treturn", "\t|\t|if| (|x|)|\r\n|\t|return", "\t|\tif| (|x|)\r\n|\treturn"},
      {"\303\251\346\227\245 \303\261", "\303\251\346\227\245| \303\261", "\303\251\346\227\245| \303\261"},
      {"\302\262\302\275\342\205\247", "\302\262\302\275\342\205\247", "\302\262\302\275\342\205\247"},
      {"!!!abc", "!!!|abc", "!!!|abc"},
      {"$ 5", "$| 5", "$| |5"},
      {" 'tis", " '|tis", " '|tis"},
      {" \343\200\200x", " |\343\200\200|x", " |\343\200\200x"},
      {"  \n\n  ", "  \n\n  ", "  \n\n  "},
      {"''s x' y", "''|s| x|'| y", "''|s| x|'| y"},
      {"\377a \3771", "\377|a| \377|1", "\377a| \377|1"},              // a broken byte is neither letter, number nor space
      {"\303 \303\303\251", "\303| \303|\303\251", "\303| \303|\303\251"},
  };
  for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
    check_pieces(PATTERN_GPT2, rows[i][0], rows[i][1]);
    check_pieces(PATTERN_GPT4, rows[i][0], rows[i][2]);
    check_pieces(PATTERN_NONE, rows[i][0], rows[i][0]);
  }
}

// The published patterns word by word, with all the going back of a regular expression: the length of the piece that s begins with.
typedef struct { const char *s; size_t n; } Rest;

static int class_of(Rest r, size_t at, size_t *length) {   // -1: behind the end
  uint32_t code;
  *length = 1;
  if (at >= r.n) return -1;
  int bytes = utf8_decode(r.s + at, r.n - at, &code);
  if (bytes == 0) return UNICODE_OTHER;
  *length = (size_t)bytes;
  return unicode_class(code);
}

static size_t run_of(Rest r, size_t at, int class, size_t most) {   // end of at most so many characters of a class
  size_t length;
  for (; most > 0 && class_of(r, at, &length) == class; most--) at += length;
  return at;
}

static bool is_newline(Rest r, size_t at) { return at < r.n && (r.s[at] == '\r' || r.s[at] == '\n'); }

// '(?:[sdmt]|ll|ve|re), without or with regard to case; U+017F is a form of s
static size_t contraction_by_the_book(Rest r, bool any_case) {
  static const char *const ends[] = {"s", "d", "m", "t", "ll", "ve", "re"};
  if (any_case && r.n >= 3 && !memcmp(r.s, "'\305\277", 3)) return 3;
  for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
    size_t n = strlen(ends[i]), same = 0;
    if (r.n < n + 1 || r.s[0] != '\'') continue;
    while (same < n && (r.s[1 + same] == ends[i][same] || (any_case && r.s[1 + same] == ends[i][same] - 32))) same++;
    if (same == n) return n + 1;
  }
  return 0;
}

static size_t piece_by_the_book(TokenizerPattern pattern, Rest r) {
  size_t length, end, blank = r.s[0] == ' ', piece = contraction_by_the_book(r, pattern == PATTERN_GPT4);
  const int first = class_of(r, 0, &length);
  if (piece) return piece;
  if (pattern == PATTERN_GPT2) {
    for (int class = 0; class < 4; class++)   //  ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+
      if (class != UNICODE_SPACE && (end = run_of(r, blank, class, SIZE_MAX)) > blank) return end;
  } else {
    size_t lead = first != UNICODE_LETTER && first != UNICODE_NUMBER && !is_newline(r, 0) ? length : 0;   // [^\r\n\p{L}\p{N}]?\p{L}+
    if ((end = run_of(r, lead, UNICODE_LETTER, SIZE_MAX)) > lead) return end;
    if ((end = run_of(r, 0, UNICODE_NUMBER, 3)) > 0) return end;                                            // \p{N}{1,3}
    if ((end = run_of(r, blank, UNICODE_OTHER, SIZE_MAX)) > blank) {                                        //  ?[^\s\p{L}\p{N}]+[\r\n]*
      while (is_newline(r, end)) end++;
      return end;
    }
  }
  size_t spaces = run_of(r, 0, UNICODE_SPACE, SIZE_MAX), last = 0, newline = 0;
  for (size_t at = 0; at < spaces; at += length) {
    class_of(r, at, &length);
    last = at;
    if (is_newline(r, at)) newline = at + 1;
  }
  if (spaces == r.n) return spaces;                             // \s+(?!\S) of gpt2, \s+$ of gpt4
  if (pattern == PATTERN_GPT4 && newline) return newline;       // \s*[\r\n]
  return last ? last : run_of(r, 0, UNICODE_SPACE, 1);          // \s+(?!\S), else \s+ and \s, of one
}

static void check_by_the_book(const char *text, size_t n) {
  for (int pattern = PATTERN_GPT2; pattern <= PATTERN_GPT4; pattern++) {
    size_t got = tokenizer_piece_end((TokenizerPattern)pattern, text, n, 0), want = piece_by_the_book((TokenizerPattern)pattern, (Rest){text, n});
    CHECK_MSG(got == want, "pattern %d, \"%.*s\": a piece of %zu bytes, by the pattern %zu", pattern, (int)n, text, got, want);
  }
}

// All texts of up to five of these characters; and an apostrophe before any two bytes, and at the end.
static void pieces_are_those_of_the_expressions(void) {
  static const char *const parts[] = {"a", "1", " ", "\n", "\r", "\t", ".", "'", "s", "\302\240", "\303\251", "\377"};
  enum { PARTS = ARRAY_LEN(parts) };
  for (int length = 1, count = PARTS; length <= 5; length++, count *= PARTS)
    for (int number = 0; number < count; number++) {
      char text[16];
      size_t n = 0;
      for (int k = 0, rest = number; k < length; k++, rest /= PARTS) {
        const char *part = parts[rest % PARTS];
        memcpy(text + n, part, strlen(part));
        n += strlen(part);
      }
      check_by_the_book(text, n);
    }
  for (int pair = 0; pair < 1 << 16; pair++) {
    char text[4] = {'\'', (char)(pair >> 8), (char)pair, 'x'};
    for (size_t n = pair & 255 ? 3 : 2; n <= 4; n++) check_by_the_book(text, n);
  }
  for (int letter = 0; letter < 256; letter++)   // nothing is read behind a text that ends in the middle of a contraction
    for (size_t n = 1; n <= 2; n++) {
      char *text = at_the_edge((const char[]){'\'', (char)letter}, n);
      check_by_the_book(text, n);
      free(text);
    }
}

// Both ways of cutting, one against the other, from every start: strings in which each kind of byte meets each other, with ASCII
// mostly, so that the windows of 64 bytes are used, and ends of text at all distances.
static void cutting_at_once_is_cutting_one_by_one(void) {
  static const char *const parts[] = {"a", "Zy", "word", "7", "123", "4567", " ", "  ", "\n", "\r\n", "\t", "\v", "\f", ".", "!?", "(", "'", "'s", "'ll", "'LL", "'ve", "'x", "\"",
                                      " the", " of", " and", ", ", "\303\251", "\342\200\231", "\343\200\200", "\377", "\302\240", "[", "`", "{", "@", "/", ":", "\177", "\001", "",
                                      "9", "80", "\b", "\016", "\302\262", " \302\262", "\302\253", "\342\205\247", "\303"};
  size_t most = 0, calls[6] = {0}, pieces[6] = {0};
  for (int round = 0; round < 4000; round++) {
    char made[400];
    size_t n = 0, kinds = round % 2 ? 27 : ARRAY_LEN(parts), length = draw(300);
    while (n < length) {
      const char *part = parts[draw((uint32_t)kinds)];
      memcpy(made + n, part, strlen(part));
      n += strlen(part);
      if (draw(200) == 0) memset(made + n, "a 1.\n'"[draw(6)], 70), n += 70;
      if (n > 320) break;
    }
    char *text = at_the_edge(made, n);   // so that nothing is read behind it
    for (int way = 0; way < 6; way++) {
      const TokenizerPattern pattern = (TokenizerPattern)(PATTERN_GPT2 + way / 2);
      for (TokenizerCut cut = {.pattern = pattern, .text = text, .n = n}; cut.end < n;) {
        size_t ends[TOKENIZER_CUT], at = cut.end, count = way % 2 ? tokenizer_cut_any(&cut, ends) : tokenizer_cut(&cut, ends);
        CHECK(count >= 1 && count <= TOKENIZER_CUT && cut.end == ends[count - 1]);
        for (size_t i = 0; i < count; at = ends[i++]) {
          size_t end = tokenizer_piece_end(pattern, text, n, at);
          CHECK_MSG(ends[i] == end, "round %d, way %d, piece from %zu: end %zu, one by one %zu", round, way, at, ends[i], end);
          if (ends[i] != end) return;
        }
        most = MAX(most, count);
        calls[way]++;
        pieces[way] += count;
      }
    }
    free(text);
  }
  CHECK_MSG(most > 25, "at most %zu pieces at once", most);   // else only the slow way was seen
  // how many calls these pieces take, in either way: no more than this, or cutting has become slower
  for (int way = 0; way < 6; way++) {
    static const size_t few[] = {71493, 178681, 3983};
    CHECK_MSG(calls[way] == few[way / 2], "way %d: %zu calls for %zu pieces", way, calls[way], pieces[way]);
  }
}

// ---- merging ----

// Some of the strings of 2 to 5 letters of "ab", those of a length in random order, each made by every cut in two tokens, as rank files
// have it: pairs of one rank overlap that have come up in another order than they stand. first: the least rank; from SMALL_RANKS on they need large slots.
static Tokenizer *every_cut_merges(int32_t first) {
  Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_NONE);
  for (int byte = 0; byte < 256; byte++) tokenizer_add_token(t, &(char){(char)('a' + byte)}, 1);   // id 0 takes part
  for (int length = 2; length <= 5; length++) {
    int order[32], count = 1 << length;
    for (int i = 0; i < count; i++) {
      int j = (int)draw((uint32_t)i + 1);
      order[i] = order[j], order[j] = i;
    }
    for (int i = 0; i < count; i++) {
      char text[5];
      for (int k = 0; k < length; k++) text[k] = order[i] >> k & 1 ? 'b' : 'a';
      if (draw(2)) tokenizer_add_token(t, text, (size_t)length);
    }
  }
  int32_t earlier;
  CHECK_EQ(tokenizer_index_tokens(t, &earlier), -1);
  for (int32_t id = 256; id < t->size; id++) {
    size_t n;
    const char *text = tokenizer_token(t, id, &n);
    for (size_t cut = 1; cut < n; cut++) {
      int32_t left = tokenizer_find(t, text, cut), right = tokenizer_find(t, text + cut, n - cut);
      if (left >= 0 && right >= 0) tokenizer_add_merge(t, left, right, id, first + id - 256);
    }
  }
  tokenizer_finish(t);
  return t;
}

// The three ways of merging a word, one against the other: few letters make many overlaps and ties.
static void ways_of_merging_agree(void) {
  enum { MADE = 13 };
  Tokenizer *made[MADE] = {tokenizer_gpt2()};
  for (int k = 3; k < MADE; k++) made[k] = every_cut_merges(k == MADE - 1 ? SMALL_RANKS : 0);
  CHECK(made[0]->small_slots && made[3]->small_slots && !made[MADE - 1]->small_slots);
  for (int k = 1; k < 3; k++) {
    TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_NONE);
    for (int d = 0; d < 40; d++) {
      char text[200];
      for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('a' + draw(k == 1 ? 2 : 5));
      tokenizer_trainer_add(trainer, text, sizeof text);
    }
    made[k] = tokenizer_trainer_finish(trainer, 400, NULL, 0);
  }
  MergeScratch scratch = {0};
  for (int round = 0; round < 300; round++) {
    char letters_of_it[6000];
    size_t n = 1 + draw(round % 30 ? 100 : sizeof letters_of_it - 1), letters = (size_t)(const int[]){1, 2, 5, 26}[round % 4];
    for (size_t i = 0; i < n; i++) letters_of_it[i] = (char)((round % 7 ? 'a' : round % 2 ? 0x80 : '!') + draw((uint32_t)letters));   // '!' has id 0 in GPT-2's
    char *word = at_the_edge(letters_of_it, n);   // so that nothing is read behind it
    guarded = round % 10 == 9 && n < 200;
    for (int k = 0; k < (round % 20 ? MADE - 1 : MADE); k++) {   // to walk over so many ranks takes its time
      CHECK(made[k]->ordered);
      TokenBuffer heap = {0}, sweep = {0}, blocks = {0};
      int32_t plain[SHORT_WORD];
      tokenizer_merge_heap(made[k], word, n, &scratch, &heap);
      tokenizer_merge_sweep(made[k], word, n, &sweep);
      CHECK_MSG(heap.count == sweep.count && !memcmp(heap.ids, sweep.ids, heap.count * sizeof heap.ids[0]), "round %d, tokenizer %d, %zu bytes: by heap %zu ids, by ranks %zu", round, k, n, heap.count, sweep.count);
      size_t block = 1 + draw(40), overlap = 1 + draw(8);   // so small that there often is no id to join at
      token_buffer_append(&blocks, -7);                     // what is there already stays
      tokenizer_merge_blocks(made[k], word, n, block, overlap, &scratch, &blocks);
      CHECK_MSG(heap.count + 1 == blocks.count && blocks.ids[0] == -7 && !memcmp(heap.ids, blocks.ids + 1, heap.count * sizeof heap.ids[0]), "round %d, tokenizer %d, %zu bytes: by heap %zu ids, by blocks of %zu and %zu bytes %zu", round, k,
                n, heap.count, block, overlap, blocks.count - 1);
      if (n <= SHORT_WORD) {
        size_t count = tokenizer_merge_short(made[k], word, n, plain);
        CHECK_MSG(heap.count == count && !memcmp(heap.ids, plain, count * sizeof plain[0]), "round %d, tokenizer %d, %zu bytes: by heap %zu ids, the plain way %zu", round, k, n, heap.count, count);
      }
      token_buffer_free(&heap);
      token_buffer_free(&sweep);
      token_buffer_free(&blocks);
    }
    guarded = false;
    free(word);
  }
  merge_scratch_free(&scratch);
  for (int k = 0; k < MADE; k++) tokenizer_free(made[k]);
}

// Tokens of up to three different letters, each made by one merge of any two tokens before it: many of them are never made of their own bytes.
static Tokenizer *any_two_merge(uint32_t letters) {
  Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_NONE);
  for (int byte = 0; byte < 256; byte++) tokenizer_add_token(t, &(char){(char)byte}, 1);
  for (int32_t tried = 0; tried < 60; tried++) {
    char text[2 * SHORT_WORD];
    int32_t part[2], rank = t->size - 256;
    size_t n = 0;
    for (int k = 0; k < 2; k++) {
      size_t length;
      part[k] = draw(3) && rank ? 256 + (int32_t)draw((uint32_t)rank) : 'a' + (int32_t)draw(letters);
      const char *token = tokenizer_token(t, part[k], &length);
      memcpy(text + n, token, length);
      n += length;
    }
    bool again = n > SHORT_WORD;
    for (int32_t id = 256; id < t->size; id++) {
      size_t length;
      const char *token = tokenizer_token(t, id, &length);
      again |= length == n && !memcmp(token, text, n);
    }
    if (again) continue;
    tokenizer_add_merge(t, part[0], part[1], t->size, rank);
    tokenizer_add_token(t, text, n);
  }
  tokenizer_finish(t);
  return t;
}

// Against merging the bytes of each token.
static void whole_tokens_are_what_their_bytes_merge_to(void) {
  int seen[2] = {0};
  for (int round = 0; round < 400; round++) {
    Tokenizer *t = round ? any_two_merge(1 + (uint32_t)round % 3) : tokenizer_gpt2();
    bool *whole = tokenizer_whole_tokens(t);
    CHECK(t->ordered && whole);
    for (int32_t id = 0; id < t->size; id++) {
      size_t n;
      const char *token = tokenizer_token(t, id, &n);
      int32_t ids[SHORT_WORD];
      if (n > SHORT_WORD || tokenizer_is_special(t, id)) continue;
      const bool merged = tokenizer_merge_short(t, token, n, ids) == 1 && ids[0] == id;
      CHECK_MSG(whole[id] == merged, "round %d, token %d, %.*s", round, id, (int)n, token);
      if (round && id >= 256) seen[merged]++;
    }
    free(whole);
    tokenizer_free(t);
  }
  CHECK_MSG(seen[0] > 1000 && seen[1] > 1000, "%d whole, %d not", seen[1], seen[0]);
  Tokenizer *t = every_cut_merges(0);
  CHECK(t->ordered && !tokenizer_whole_tokens(t));   // several merges make one token
  tokenizer_free(t);
}

// A merge whose part is made by a later merge, or a byte without an id: such a word cannot be merged by rising ranks.
static void merges_in_any_order(void) {
  static const struct { int32_t ranks[3]; bool ordered; const char *what; } cases[] = {   // of ab, abc, bc
    {{0, 1, 2}, true, "rising"}, {{1, 0, 2}, false, "a part comes later"}, {{0, 2, 1}, true, "not listed by rank"}};
  MergeScratch scratch = {0};
  for (size_t c = 0; c < ARRAY_LEN(cases); c++)
    for (int bytes = 255; bytes <= 256; bytes++) {
      Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_NONE);
      for (int byte = 0; byte < bytes; byte++) tokenizer_add_token(t, &(char){(char)byte}, 1);
      tokenizer_add_token(t, "ab", 2), tokenizer_add_token(t, "abc", 3), tokenizer_add_token(t, "bc", 2);
      tokenizer_add_merge(t, 'a', 'b', bytes, cases[c].ranks[0]);
      tokenizer_add_merge(t, bytes, 'c', bytes + 1, cases[c].ranks[1]);
      tokenizer_add_merge(t, 'b', 'c', bytes + 2, cases[c].ranks[2]);
      tokenizer_finish(t);
      CHECK_MSG(t->ordered == (cases[c].ordered && bytes == 256), "%s, %d bytes", cases[c].what, bytes);
      CHECK_EQ(t->rank_end, 3);
      static char word[10000];
      for (size_t i = 0; i < sizeof word; i++) word[i] = (char)('a' + draw(3));
      TokenBuffer heap = {0}, all = {0};
      tokenizer_merge_heap(t, word, sizeof word, &scratch, &heap);
      tokenizer_merge_long(t, word, sizeof word, &scratch, &all);
      CHECK_MSG(heap.count == all.count && !memcmp(heap.ids, all.ids, heap.count * sizeof heap.ids[0]), "%s", cases[c].what);
      token_buffer_free(&heap), token_buffer_free(&all);
      tokenizer_free(t);
    }
  Tokenizer *t = tokenizer_byte(false);
  CHECK(!t->ordered);   // nothing to merge
  EXPECT_FAIL(2, "one piece of text of 4294967295 bytes, at most 4294967294 can be encoded: split it into documents", tokenizer_merge_long(t, at_the_edge("", 0), UINT32_MAX, &scratch, &(TokenBuffer){0}));
  tokenizer_free(t);
  merge_scratch_free(&scratch);
}

// Of the second part, too; and each byte needs an id, the first one too.
static void parts_come_before_the_whole(void) {
  for (int rank = 0; rank <= 2; rank += 2)
    for (int first = 0; first < 2; first++) {
      Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_NONE);
      for (int byte = first; byte < 256; byte++) tokenizer_add_token(t, &(char){(char)byte}, 1);
      tokenizer_add_token(t, "bc", 2), tokenizer_add_token(t, "abc", 3);
      tokenizer_add_merge(t, 'b' - first, 'c' - first, 256 - first, rank), tokenizer_add_merge(t, 'a' - first, 256 - first, 257 - first, 1);
      tokenizer_finish(t);
      CHECK_MSG(t->ordered == (rank == 0 && first == 0), "rank %d, from byte %d", rank, first);
      tokenizer_free(t);
    }
}

// The first token that repeats an earlier one, of whatever id.
static void repeated_tokens_are_found(void) {
  static const struct { const char *tokens; int32_t repeated, earlier; } cases[] = {{"aa", 1, 0}, {"abba", 2, 1}, {"abcb", 3, 1}, {"abca", 3, 0}, {"abcd", -1, -7}};
  for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
    Tokenizer *t = tokenizer_new(TOKENIZER_CHAR, PATTERN_NONE);
    int32_t earlier = -7;
    for (const char *p = cases[c].tokens; *p; p++) tokenizer_add_token(t, p, 1);
    CHECK_EQ(tokenizer_index_tokens(t, &earlier), cases[c].repeated);
    CHECK_EQ(earlier, cases[c].earlier);
    tokenizer_free(t);
  }
  tokenizer_free(NULL);
}

// Few tokens in a small table: many share a place, and all are found, those of id 0 too; what is none is not found, however full the table is.
static void tokens_of_one_place_are_told_apart(void) {
  for (int first = 1; first < 200; first++) {
    Tokenizer *t = tokenizer_new(TOKENIZER_CHAR, PATTERN_NONE);
    char texts[8][2];
    for (int i = 0; i < 8; i++) {
      texts[i][0] = (char)(first + 7 * i), texts[i][1] = (char)i;
      tokenizer_add_token(t, texts[i], 1 + (size_t)(first % 2));
    }
    tokenizer_finish(t);
    CHECK_EQ(t->token_mask, 15);
    for (int i = 0; i < 8; i++) CHECK_EQ(tokenizer_find(t, texts[i], 1 + (size_t)(first % 2)), i);
    for (int i = 0; i < 200; i++) CHECK_EQ(tokenizer_find(t, (const char[]){(char)i, 'x', (char)first}, 3), -1);
    tokenizer_free(t);
  }
}

// A word that is a token is that token, its id 0 as well, where the tokenizer says so: without a merge too.
static void whole_words_come_first(void) {
  for (int whole = 0; whole < 2; whole++) {
    Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_GPT2);
    t->whole_words = whole;
    tokenizer_add_token(t, "xyz", 3);
    for (int byte = 0; byte < 256; byte++) tokenizer_add_token(t, &(char){(char)byte}, 1);
    tokenizer_finish(t);
    CHECK_EQ(t->seed_count, 256 + (whole ? 1 : 0));
    TokenBuffer b = {0};
    CHECK_EQ(tokenizer_encode(t, "xyz\nxyzz", 8, &b, SPECIAL_NONE), whole ? 6 : 8);
    CHECK(b.ids[0] == (whole ? 0 : 'x' + 1) && b.ids[b.count - 1] == 'z' + 1);
    token_buffer_free(&b);
    tokenizer_free(t);
  }
}

// Vocabularies of many sizes, made, used and freed on a heap where nothing goes astray unseen; nothing is left.
static void all_is_inside_and_given_back(void) {
  const long before = guarded_blocks;
  for (int tokens = 1; tokens < 300; tokens += tokens < 80 ? 1 : 43) {
    guarded = true;
    Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_NONE);
    for (int i = 0; i < tokens; i++) tokenizer_add_token(t, (char[]){(char)i, 'x'}, 1 + (size_t)(i >= 256));
    if (tokens % 3 == 0) tokenizer_add_merge(t, 0, tokens / 2, tokens - 1, tokens % 2 ? 0 : SMALL_RANKS);
    tokenizer_finish(t);
    Buffer out = {0};
    for (int32_t id = 0; id < tokens; id++) CHECK_EQ(tokenizer_decode(t, &id, 1, &out), -1);
    CHECK(!memcmp(out.data, t->bytes.data, t->bytes.len));
    buffer_free(&out);
    tokenizer_free(t);
    guarded = false;
  }
  // a word that begins where a page does
  char *page = mmap(NULL, 2 * GUARD_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(page, GUARD_PAGE, PROT_NONE);
  Tokenizer *t = tokenizer_gpt2();
  memcpy(page + GUARD_PAGE, "thermometer", 11);
  int32_t ids[SHORT_WORD];
  CHECK(tokenizer_merge_short(t, page + GUARD_PAGE, 11, ids) == 3);
  tokenizer_free(t);
  munmap(page, 2 * GUARD_PAGE);
  CHECK_EQ(guarded_blocks, before);
}

// Two merges may make one token: the last rank that makes a part counts.
static void the_last_merge_that_makes_a_part_counts(void) {
  for (int later = 0; later < 2; later++) {
    Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_NONE);
    for (int byte = 0; byte < 256; byte++) tokenizer_add_token(t, &(char){(char)byte}, 1);
    tokenizer_add_token(t, "ab", 2), tokenizer_add_token(t, "abc", 3), tokenizer_add_token(t, "bc", 2), tokenizer_add_token(t, "abcd", 4);
    tokenizer_add_merge(t, 'a', 'b', 256, 0), tokenizer_add_merge(t, 'b', 'c', 258, 1);
    tokenizer_add_merge(t, 256, 'c', 257, later ? 4 : 2), tokenizer_add_merge(t, 'a', 258, 257, later ? 2 : 4);
    tokenizer_add_merge(t, 257, 'd', 259, 3);
    tokenizer_finish(t);
    CHECK(!t->ordered);
    tokenizer_free(t);
  }
}

// Tables are as large as they have to be: a power of two that is at most half full (of small slots, four fifths), and sixteen bits of the filter for each merge.
static void tables_have_their_size(void) {
  static const struct { int merges; size_t mask, small_mask; int filter_bits; } cases[] = {
    {1, 15, 7, 6}, {4, 15, 7, 6}, {5, 15, 7, 7}, {6, 15, 7, 7}, {7, 15, 15, 7}, {8, 15, 15, 7}, {9, 31, 15, 8}, {64, 127, 127, 10}, {65, 255, 127, 11}, {102, 255, 127, 11}, {103, 255, 255, 11}};
  for (size_t c = 0; c < 2 * ARRAY_LEN(cases); c++) {
    const int merges = cases[c / 2].merges, first = c % 2 ? SMALL_RANKS + 1 - merges : SMALL_RANKS - merges;   // the least that does not fit, the most that does
    const size_t mask = c % 2 ? cases[c / 2].mask : cases[c / 2].small_mask;
    Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_NONE);
    for (int byte = 0; byte < 256; byte++) tokenizer_add_token(t, &(char){(char)byte}, 1);
    for (int i = 0; i < merges; i++) {
      tokenizer_add_token(t, (char[]){'a', (char)i}, 2);
      tokenizer_add_merge(t, 'a', i, 256 + i, first + i);
    }
    guarded = true;
    tokenizer_finish(t);
    CHECK_MSG(t->merge_mask == mask && 64 - t->filter_shift == cases[c / 2].filter_bits, "case %zu, %d merges: mask %zu, %d bits", c, merges, t->merge_mask, 64 - t->filter_shift);
    CHECK((t->small_slots != NULL) == (c % 2 == 0) && (t->merge_slots != NULL) == (c % 2 == 1));
    CHECK((c % 2 ? t->merge_slots[mask + 1].pair : t->small_slots[mask + 1]) == NO_PAIR);   // what the filter keeps away sees this one only
    CHECK_EQ(t->token_mask, 1023);
    CHECK_EQ(t->seed_count, 256 + merges);
    for (int a = -1; a < 257; a++)
      for (int b = -1; b < 257; b++) {
        const int32_t rank = a == 'a' && b >= 0 && b < merges ? first + b : NO_RANK;
        CHECK(tokenizer_merge_rank(t, a, b) == rank);
        if (a >= 0 && b >= 0 && a < 256 && b < 256) CHECK_EQ(t->byte_ranks[a << 8 | b], rank);
        if (rank != NO_RANK) CHECK_EQ(t->rank_result[rank], 256 + b);
      }
    guarded = false;
    tokenizer_free(t);
  }
}

// ---- the cache of words ----

// Words of every length, most of them seen again, so many that the table grows and forgets and the pool is emptied: the whole text at once, from
// a buffer that begins with the vocabulary (a long text) and from one that does not, against each piece by itself without a cache.
static void cache_changes_nothing(void) {
  enum { WORDS = 100000, LEAST = 12 << 20 };
  Tokenizer *t = tokenizer_gpt2();
  Buffer text = {0};
  while (text.len < LEAST) {
    uint64_t seed = draw(4) ? draw(WORDS) : draw(50), saved = random_state;
    random_state = seed * 77777 + 3;   // the same word for the same number
    size_t n = draw(3) ? 1 + draw(12) : 1 + draw(300);   // the long ones fill the pool
    uint32_t letters = draw(3) ? 26 : 2;
    char word[301] = {' '};
    for (size_t i = 1; i <= n; i++) word[i] = n > 12 ? "qxjz"[draw(4)] : (char)('a' + draw(letters));
    buffer_append(&text, word, n + 1);
    random_state = saved;
  }
  TokenBuffer want = {0}, long_start = {0}, short_start = {0};
  MergeScratch scratch = {0};
  for (size_t at = 0, end; at < text.len; at = end) {
    end = tokenizer_piece_end(PATTERN_GPT2, text.data, text.len, at);
    tokenizer_merge_heap(t, text.data + at, end - at, &scratch, &want);
  }
  for (int pass = 0; pass < 2; pass++) {
    TokenBuffer *b = pass ? &short_start : &long_start;
    if (pass) tokenizer_encode(t, "the", 3, b, SPECIAL_NONE);
    for (size_t again = 0; again < 2; again++) {
      b->count = 0;
      tokenizer_encode(t, text.data, text.len, b, SPECIAL_NONE);
      CHECK_MSG(b->count == want.count && !memcmp(b->ids, want.ids, want.count * sizeof want.ids[0]), "start %d, pass %d: %zu ids, without a cache %zu", pass, (int)again, b->count, want.count);
      const size_t merged = tokenizer_words_merged(b), expected[2][2] = {{68079, 130304}, {82440, 155427}};   // no more than this, or it has become slower
      CHECK_MSG(merged == expected[pass][again] || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__, "start %d, pass %zu: %zu words merged so far, not %zu", pass, again, merged, expected[pass][again]);
    }
    token_buffer_free(b);
  }
  token_buffer_free(&want);
  merge_scratch_free(&scratch);
  buffer_free(&text);
  tokenizer_free(t);
}

// A text of 256 KiB begins with the vocabulary's words, a shorter one does not.
static void long_texts_begin_with_the_vocabulary(void) {
  Tokenizer *t = tokenizer_gpt2();
  for (size_t n = (1 << 18) - 1; n <= 1 << 18; n++) {
    char *text = xmalloc(n, 1);
    for (size_t i = 0; i < n; i++) text[i] = " the bear!"[i % 10];   // ! has id 0
    memset(text + n - 10, '\n', 10);
    TokenBuffer b = {0};
    tokenizer_encode(t, text, n, &b, SPECIAL_NONE);
    CHECK_EQ(tokenizer_words_merged(&b), n < 1 << 18 ? 5 : 1);   // the line ends are no token
    free(text);
    token_buffer_free(&b);
  }
  tokenizer_free(t);
}

// Long words of one hash: it is 0 whatever the bytes in front of these eight. Only their length and their bytes tell them apart.
static void words_of_one_hash_are_told_apart(void) {
  static const uint8_t zero[8] = {0x93, 0xfd, 0x59, 0x66, 0xb8, 0xfe, 0xe8, 0xd6};
  Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_NONE);
  for (int byte = 0; byte < 256; byte++) tokenizer_add_token(t, &(char){(char)byte}, 1);
  tokenizer_add_token(t, "ab", 2);
  tokenizer_add_merge(t, 'a', 'b', 256, 0);
  tokenizer_finish(t);
  TokenBuffer b = {0};
  for (int again = 0; again < 2; again++)
    for (size_t n = 16; n <= 256; n += 8)
      for (int kind = 0; kind < 3; kind++) {
        char word[256];
        Buffer back = {0};
        for (size_t i = 0; i < n - 8; i++) word[i] = kind == 1 ? "ab"[i % 2] : (char)('x' + kind);
        memcpy(word + n - 8, zero, 8);
        CHECK_EQ(hash_bytes(cache_key, word, n), hash_bytes(cache_key, zero, 8));
        b.count = 0;
        tokenizer_encode(t, word, n, &b, SPECIAL_NONE);
        tokenizer_decode(t, b.ids, b.count, &back);
        CHECK_MSG(back.len == n && !memcmp(back.data, word, n), "%zu bytes, kind %d", n, kind);
        CHECK_EQ(b.count, kind == 1 ? 8 + (n - 8) / 2 : n);
        buffer_free(&back);
      }
  TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_NONE);
  for (int i = 0; i < 3; i++) {
    char word[24];
    memset(word, 'p' + i, sizeof word);
    memcpy(word + 8, zero, 8), memcpy(word + 16, zero, 8);
    for (int k = 0; k <= i; k++) tokenizer_trainer_add(trainer, word, i == 2 ? 24 : 16);
  }
  Tokenizer *trained = tokenizer_trainer_finish(trainer, 257, NULL, 0);
  size_t n;
  const char *merged = tokenizer_token(trained, 256, &n);   // rr seven times in each of three, qq seven in each of two
  CHECK(n == 2 && !memcmp(merged, "rr", 2));
  tokenizer_free(trained);
  token_buffer_free(&b);
  tokenizer_free(t);
}

// A vocabulary and a text of words that would have one hash under a key that is known: in the tables they lie as any others do. The longest run
// of places that are taken is short, and counting the words takes about as long as other words do (some hundred times as long with one hash).
static double seconds_to_count(size_t count, const uint8_t end[8]) {
  TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_NONE);
  clock_t begin = clock();
  for (size_t i = 0; i < count; i++) {
    char word[16] = {0};
    memcpy(word, &i, sizeof i);
    memcpy(word + 8, end, 8);
    tokenizer_trainer_add(trainer, word, 16);
  }
  double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
  tokenizer_free(tokenizer_trainer_finish(trainer, 256, NULL, 0));
  return seconds;
}

static void words_cannot_be_chosen_to_collide(void) {
  enum { WORDS = 20000 };
  static const uint8_t zero[8] = {0x93, 0xfd, 0x59, 0x66, 0xb8, 0xfe, 0xe8, 0xd6};
  Tokenizer *t = tokenizer_new(TOKENIZER_CHAR, PATTERN_NONE);
  for (uint64_t i = 0; i < WORDS; i++) {
    char word[16];
    memcpy(word, &i, 8), memcpy(word + 8, zero, 8);
    tokenizer_add_token(t, word, 16);
  }
  int32_t earlier;
  CHECK_EQ(tokenizer_index_tokens(t, &earlier), -1);
  size_t longest = 0;
  for (size_t at = 0, run = 0; at <= t->token_mask; at++) {
    run = t->token_slots[at] < 0 ? 0 : run + 1;
    longest = MAX(longest, run);
  }
  CHECK_MSG(longest < 1000, "%zu places side by side are taken", longest);   // of a table that is 0.31 full: by chance some 20
  tokenizer_free(t);
  const double other = seconds_to_count(WORDS, (const uint8_t *)"an other"), chosen = seconds_to_count(WORDS, zero);
  CHECK_MSG(chosen <= 20 * other + 0.05, "%g s, other words %g s", chosen, other);
  HashKey a = hash_random_key(), b = hash_random_key();
  CHECK(a.a != b.a && a.b != b.b && a.a != a.b);
}

// Merges that all lie in one place of a tokenizer's table lie as any others do in that of another with the same tokens.
static void pairs_cannot_be_chosen_to_collide(void) {
  enum { TOKENS = 2048, MERGES = 1000, MASK = 2047 };
  for (int32_t first = 0; first <= SMALL_RANKS; first += SMALL_RANKS) {   // slots of both kinds
    Tokenizer *t[2];
    for (int k = 0; k < 2; k++) {
      t[k] = tokenizer_new(TOKENIZER_BPE, PATTERN_NONE);
      for (int i = 0; i < TOKENS; i++) tokenizer_add_token(t[k], (char[]){(char)(i >> 8), (char)i}, 2);
    }
    int32_t rank = first;
    for (int32_t pair = 0; pair < TOKENS * TOKENS && rank < first + MERGES; pair++) {
      const int32_t left = pair % TOKENS, right = pair / TOKENS;
      if (pair_hash(t[0]->key, left, right) & MASK) continue;
      for (int k = 0; k < 2; k++) tokenizer_add_merge(t[k], left, right, 0, rank);
      rank++;
    }
    CHECK_EQ(rank, first + MERGES);
    size_t longest[2] = {0, 0};
    for (int k = 0; k < 2; k++) {
      tokenizer_finish(t[k]);
      CHECK_EQ(t[k]->merge_mask, MASK);
      for (size_t at = 0, run = 0; at <= MASK; at++) {
        run = (first ? t[k]->merge_slots[at].pair : t[k]->small_slots[at]) == NO_PAIR ? 0 : run + 1;
        longest[k] = MAX(longest[k], run);
      }
      tokenizer_free(t[k]);
    }
    CHECK_MSG(longest[0] >= MERGES && longest[1] < 200, "%zu and %zu places side by side are taken", longest[0], longest[1]);   // half full: by chance some 30
  }
}

// Never are ids written where there is no room, however much there was left.
static void room_is_made_before_ids_are_written(void) {
  enum { CAPACITY = 1000, MORE = 1000, MARK = -77 };
  static const char *const lines[] = {"the cat", " sat on 1,234 mats", " qzx qzy qzz qjx", " antidisestablishmentarianism!!!!!! qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", "                      ", "\xf0\x9f\x98\x80\xf0\x9f\x98\x80"};
  Tokenizer *all[] = {tokenizer_gpt2(), tokenizer_byte(true), tokenizer_char_from_text("t", "abcdefghijklmnopqrstuvwxyz !,1234\xf0\x9f\x98\x80", 37, true)};
  for (size_t k = 0; k < ARRAY_LEN(all); k++) {
    Buffer text = {0};
    while (text.len < 1200) { const char *line = lines[draw(ARRAY_LEN(lines))]; buffer_append(&text, line, strlen(line)); }
    TokenBuffer want = {0};
    tokenizer_encode(all[k], text.data, text.len, &want, SPECIAL_NONE);
    TokenBuffer b = {0};
    for (size_t left = 0; left <= CAPACITY; left++) {
      free(b.ids);
      b.ids = xmalloc(CAPACITY + MORE, sizeof b.ids[0]);
      for (size_t i = 0; i < CAPACITY + MORE; i++) b.ids[i] = MARK;
      b.capacity = CAPACITY;
      b.count = CAPACITY - left;
      tokenizer_encode(all[k], text.data, text.len / (1 + left % 3), &b, SPECIAL_NONE);
      CHECK(b.count <= b.capacity);
      for (size_t i = CAPACITY; b.capacity == CAPACITY && i < CAPACITY + MORE; i++) CHECK_MSG(b.ids[i] == MARK, "written behind the room, %zu were left", left);
      const size_t n = b.count - (CAPACITY - left);
      CHECK(left % 3 || (n == want.count && !memcmp(b.ids + CAPACITY - left, want.ids, n * sizeof want.ids[0])));
    }
    for (size_t left = 1; left <= 300; left++) {   // likewise bytes
      Buffer out = {.data = xmalloc(CAPACITY + MORE, 1), .len = CAPACITY - left, .cap = CAPACITY};
      memset(out.data, 0x5a, CAPACITY + MORE);
      CHECK_EQ(tokenizer_decode(all[k], want.ids, MIN(want.count, left % 40), &out), -1);
      CHECK(out.len < out.cap && out.data[out.len] == 0);
      for (size_t i = CAPACITY; out.cap == CAPACITY && i < CAPACITY + MORE; i++) CHECK_MSG(out.data[i] == 0x5a, "written behind the room, %zu were left", left);
      CHECK(!memcmp(out.data + CAPACITY - left, text.data, out.len - (CAPACITY - left)));
      buffer_free(&out);
    }
    token_buffer_free(&b);
    token_buffer_free(&want);
    buffer_free(&text);
    tokenizer_free(all[k]);
  }
  TokenBuffer b = {0};   // and how much is made
  token_buffer_append(&b, 1);
  CHECK_EQ(b.capacity, 256);
  while (b.count < 256) token_buffer_append(&b, 1);
  CHECK_EQ(b.capacity, 256);
  token_buffer_append(&b, 1);
  CHECK_EQ(b.capacity, 384);
  EXPECT_FAIL(3, "memory: 18446744073709551615 + 1 ids", token_buffer_append(&(TokenBuffer){.count = SIZE_MAX, .capacity = SIZE_MAX}, 1));
  token_buffer_free(&b);
}

// After words of another tokenizer a buffer merges as many words as a new one; and where there is no memory for them that is said.
static void a_used_buffer_is_as_a_new_one(void) {
  Tokenizer *t = tokenizer_gpt2(), *other = every_cut_merges(0);
  Buffer text = {0};
  for (int i = 0; text.len < 200000; i++) buffer_printf(&text, " %x%c", draw(40000), 'g' + i % 20);
  TokenBuffer fresh = {0}, used = {0};
  tokenizer_encode(t, text.data, text.len, &fresh, SPECIAL_NONE);
  for (int i = 0; i < 3; i++) tokenizer_encode(other, text.data, text.len, &used, SPECIAL_NONE), tokenizer_encode(t, text.data, text.len, &used, SPECIAL_NONE);
  const size_t before = tokenizer_words_merged(&used);
  tokenizer_encode(other, "a", 1, &used, SPECIAL_NONE);
  const size_t one = tokenizer_words_merged(&used) - before;
  used.count = 0;
  tokenizer_encode(t, text.data, text.len, &used, SPECIAL_NONE);
  CHECK(fresh.count == used.count && !memcmp(fresh.ids, used.ids, used.count * sizeof *used.ids));
  CHECK_EQ(tokenizer_words_merged(&used) - before - one, tokenizer_words_merged(&fresh));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_FAIL(3, " bytes for the tokenizer's words: Cannot allocate memory", {
    TokenBuffer b = {0};
    setrlimit(RLIMIT_AS, &(struct rlimit){1 << 20, 1 << 20});
    tokenizer_encode(t, "the", 3, &b, SPECIAL_NONE);
  });
#endif
  token_buffer_free(&fresh), token_buffer_free(&used), token_buffer_free(&(TokenBuffer){0});
  tokenizer_free(t), tokenizer_free(other);
  buffer_free(&text);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(pieces_are_the_patterns);
  RUN(pieces_are_those_of_the_expressions);
  RUN(cutting_at_once_is_cutting_one_by_one);
  RUN(ways_of_merging_agree);
  RUN(merges_in_any_order);
  RUN(parts_come_before_the_whole);
  RUN(repeated_tokens_are_found);
  RUN(tokens_of_one_place_are_told_apart);
  RUN(whole_words_come_first);
  RUN(all_is_inside_and_given_back);
  RUN(a_used_buffer_is_as_a_new_one);
  RUN(the_last_merge_that_makes_a_part_counts);
  RUN(tables_have_their_size);
  RUN(long_texts_begin_with_the_vocabulary);
  RUN(words_of_one_hash_are_told_apart);
  RUN(words_cannot_be_chosen_to_collide);
  RUN(pairs_cannot_be_chosen_to_collide);
  RUN(room_is_made_before_ids_are_written);
  RUN(cache_changes_nothing);
  RUN(whole_tokens_are_what_their_bytes_merge_to);
  return TEST_END();
}
