// test_pieces.c: tokenizer_pieces.c (text into words: the two published patterns, each way of cutting against the other) and tokenizer_merge.c
// (one word's bytes to ids: each way of merging against the other).
#include "../tokenizer_internal.h"
#include "test.h"

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

// Both ways of cutting, one against the other, from every start: strings in which each kind of byte meets each other, with ASCII
// mostly, so that the windows of 64 bytes are used, and ends of text at all distances.
static void cutting_at_once_is_cutting_one_by_one(void) {
  static const char *const parts[] = {"a", "Zy", "word", "7", "123", "4567", " ", "  ", "\n", "\r\n", "\t", "\v", "\f", ".", "!?", "(", "'", "'s", "'ll", "'LL", "'ve", "'x", "\"",
                                      " the", " of", " and", ", ", "\303\251", "\342\200\231", "\343\200\200", "\377", "\302\240", "[", "`", "{", "@", "/", ":", "\177", "\001", ""};
  size_t most = 0;
  for (int round = 0; round < 4000; round++) {
    char text[400];
    size_t n = 0, kinds = round % 2 ? 27 : ARRAY_LEN(parts), length = draw(300);
    while (n < length) {
      const char *part = parts[draw((uint32_t)kinds)];
      memcpy(text + n, part, strlen(part));
      n += strlen(part);
      if (draw(200) == 0) memset(text + n, "a 1.\n'"[draw(6)], 70), n += 70;
      if (n > 320) break;
    }
    for (int pattern = PATTERN_GPT2; pattern <= PATTERN_NONE; pattern++)
      for (size_t at = 0; at < n;) {
        size_t ends[TOKENIZER_CUT], count = tokenizer_cut((TokenizerPattern)pattern, text, n, at, ends);
        CHECK(count >= 1 && count <= TOKENIZER_CUT);
        for (size_t i = 0; i < count; at = ends[i++]) {
          size_t end = tokenizer_piece_end((TokenizerPattern)pattern, text, n, at);
          CHECK_MSG(ends[i] == end, "round %d, pattern %d, piece from %zu: end %zu, one by one %zu", round, pattern, at, ends[i], end);
          if (ends[i] != end) return;
        }
        most = MAX(most, count);
      }
  }
  CHECK_MSG(most > 25, "at most %zu pieces at once", most);   // else only the slow way was seen
}

// ---- merging ----

// Some of the strings of 2 to 5 letters of "ab", those of a length in random order, each made by every cut in two tokens, as rank files
// have it: pairs of one rank overlap that have come up in another order than they stand.
static Tokenizer *every_cut_merges(void) {
  Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_NONE);
  for (int byte = 0; byte < 256; byte++) tokenizer_add_token(t, &(char){(char)byte}, 1);
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
  tokenizer_index_tokens(t, &earlier);
  for (int32_t id = 256; id < t->size; id++) {
    size_t n;
    const char *text = tokenizer_token(t, id, &n);
    for (size_t cut = 1; cut < n; cut++) {
      int32_t left = tokenizer_find(t, text, cut), right = tokenizer_find(t, text + cut, n - cut);
      if (left >= 0 && right >= 0) tokenizer_add_merge(t, left, right, id, id);
    }
  }
  tokenizer_finish(t);
  return t;
}

// The three ways of merging a word, one against the other: few letters make many overlaps and ties.
static void ways_of_merging_agree(void) {
  enum { MADE = 13 };
  Tokenizer *made[MADE] = {tokenizer_gpt2()};
  for (int k = 3; k < MADE; k++) made[k] = every_cut_merges();
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
    char word[6000];
    size_t n = 1 + draw(round % 30 ? 100 : sizeof word - 1), letters = (size_t)(const int[]){1, 2, 5, 26}[round % 4];
    for (size_t i = 0; i < n; i++) word[i] = (char)((round % 7 ? 'a' : 0x80) + draw((uint32_t)letters));
    for (int k = 0; k < MADE; k++) {
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
  }
  merge_scratch_free(&scratch);
  for (int k = 0; k < MADE; k++) tokenizer_free(made[k]);
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
    for (int again = 0; again < 2; again++) {
      b->count = 0;
      tokenizer_encode(t, text.data, text.len, b, SPECIAL_NONE);
      CHECK_MSG(b->count == want.count && !memcmp(b->ids, want.ids, want.count * sizeof want.ids[0]), "start %d, pass %d: %zu ids, without a cache %zu", pass, again, b->count, want.count);
    }
    token_buffer_free(b);
  }
  token_buffer_free(&want);
  merge_scratch_free(&scratch);
  buffer_free(&text);
  tokenizer_free(t);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(pieces_are_the_patterns);
  RUN(cutting_at_once_is_cutting_one_by_one);
  RUN(ways_of_merging_agree);
  RUN(cache_changes_nothing);
  return TEST_END();
}
