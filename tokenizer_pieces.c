// tokenizer_pieces.c: owns the cutting of text into pieces, which merges never cross: the two published patterns, by hand.
//
// Promises: a piece depends on the text from its start on only; constant stack; time linear in the text. Two ways to the same ends:
// character by character (tokenizer_piece_end: the plain one), and 64 bytes at once (tokenizer_cut). The second is
// what makes encoding fast: a word has five bytes, and a branch taken wrongly costs as much as looking a word up. It is there once for
// any processor and once for those with AVX-512 VBMI2.
// Tests: tests/test_pieces.c (both ways against each other); dev/peers/tokenizer_peers.py
#include "tokenizer_internal.h"
#include "unicode.h"     // unicode_class
#include "utf8.h"        // utf8_decode
#if defined(__SSE2__)
#include <emmintrin.h>   // sixteen bytes compared at once; every x86-64 has it
#endif
#if defined(__x86_64__) && (__GNUC__ >= 8 || __clang_major__ >= 7)   // older compilers do not know the instructions
#include <immintrin.h>   // sixty-four, where the processor can: AVX-512 VBMI2
#define BUILDS_VBMI2 1
#define VBMI2 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,bmi,bmi2,lzcnt,popcnt")))
#endif

// ---- character by character ----
// Written by hand from the two published patterns. A byte that is not part of valid UTF-8 is a character of its own of class OTHER.
//   gpt2: '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   gpt4: '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+$|\s*[\r\n]|\s+(?!\S)|\s
// (OpenAI's tiktoken, gpt2 and cl100k_base; $ is the end of the whole text.)

enum { OTHER = UNICODE_OTHER, LETTER = UNICODE_LETTER, NUMBER = UNICODE_NUMBER, SPACE = UNICODE_SPACE, LOOK = 4 };
static const uint8_t byte_class[256] = {
    ['A' ... 'Z'] = LETTER, ['a' ... 'z'] = LETTER, ['0' ... '9'] = NUMBER, ['\t' ... '\r'] = SPACE, [' '] = SPACE,
    [0x80 ... 0xff] = LOOK,  // more than one byte, or none: see class_at
};

// Class of the character at `at` < n and its length in bytes.
static inline int class_at(const char *text, size_t n, size_t at, size_t *length) {
  int class = byte_class[(uint8_t)text[at]];
  *length = 1;
  if (class != LOOK) return class;
  uint32_t code;
  int bytes = utf8_decode(text + at, n - at, &code);
  if (bytes == 0) return OTHER;
  *length = (size_t)bytes;
  return unicode_class(code);
}

// End of the run of characters of one class that goes on at `at`.
static inline size_t run_end(const char *text, size_t n, size_t at, int class) {
  size_t length;
  while (at < n && class_at(text, n, at, &length) == class) at += length;
  return at;
}

// Length of the contraction behind an apostrophe at `at`, the apostrophe included, or 0. any_case: also 'S, 'LL, and the
// long s, which is a form of s to those who ignore case.
static size_t contraction(const char *text, size_t n, size_t at, bool any_case) {
  if (at + 1 >= n) return 0;
  char fold = any_case ? 0x20 : 0, a = (char)(text[at + 1] | fold);
  if (a == 's' || a == 'd' || a == 'm' || a == 't') return 2;
  if (any_case && at + 2 < n && text[at + 1] == (char)0xc5 && text[at + 2] == (char)0xbf) return 3;
  if (at + 2 >= n) return 0;
  char b = (char)(text[at + 2] | fold);
  return (a == 'l' && b == 'l') || (a == 'v' && b == 'e') || (a == 'r' && b == 'e') ? 3 : 0;
}

// White space at `at`: where its piece ends. All of it at the end of the text; else all but its last character, which may
// lead the next piece; that one character if there is no other.
static size_t space_end(const char *text, size_t n, size_t at, bool newlines) {
  size_t end = at, last = at, newline = 0, length;
  while (end < n && class_at(text, n, end, &length) == SPACE) {
    last = end;
    end += length;
    if (text[last] == '\n' || text[last] == '\r') newline = end;
  }
  if (end == n) return end;
  if (newlines && newline > 0) return newline;  // gpt4: everything up to the last line end
  return last > at ? last : end;
}

static size_t gpt2_piece_end(const char *text, size_t n, size_t at) {
  size_t length, after, next_length;
  if (text[at] == '\'' && (after = contraction(text, n, at, false)) > 0) return at + after;
  int class = class_at(text, n, at, &length);
  if (class != SPACE) return run_end(text, n, at + length, class);
  if (text[at] == ' ' && at + 1 < n) {
    int next = class_at(text, n, at + 1, &next_length);
    if (next != SPACE) return run_end(text, n, at + 1 + next_length, next);
  }
  return space_end(text, n, at, false);
}

static size_t gpt4_piece_end(const char *text, size_t n, size_t at) {
  size_t length, after;
  if (text[at] == '\'' && (after = contraction(text, n, at, true)) > 0) return at + after;
  int class = class_at(text, n, at, &length);
  size_t end = at + length;
  if (class == LETTER) return run_end(text, n, end, LETTER);
  if (class == NUMBER) {
    for (int digits = 1; digits < 3 && end < n && class_at(text, n, end, &length) == NUMBER; digits++) end += length;
    return end;
  }
  int next = end < n ? class_at(text, n, end, &length) : -1;
  if (next == LETTER && text[at] != '\r' && text[at] != '\n') return run_end(text, n, end, LETTER);
  if (class == OTHER || (text[at] == ' ' && next == OTHER)) {
    end = run_end(text, n, end, OTHER);
    while (end < n && (text[end] == '\r' || text[end] == '\n')) end++;
    return end;
  }
  return space_end(text, n, at, true);
}

size_t tokenizer_piece_end(TokenizerPattern pattern, const char *text, size_t n, size_t at) {
  switch (pattern) {
    case PATTERN_GPT2: return gpt2_piece_end(text, n, at);
    case PATTERN_GPT4: return gpt4_piece_end(text, n, at);
    case PATTERN_NONE: break;
  }
  return n;
}

// ---- 64 bytes at once ----

enum { WINDOW = 64 };
// Bit i: what byte i of the window is, all bytes of a character alike. wide: not yet known.
typedef struct { uint64_t letter, number, space, blank, quote, newline, wide; } Classes;

#if defined(__SSE2__)
// byte by byte: low <= c <= low + span
static inline __m128i in_range(__m128i c, char low, char span) {
  __m128i x = _mm_sub_epi8(c, _mm_set1_epi8(low));
  return _mm_cmpeq_epi8(_mm_min_epu8(x, _mm_set1_epi8(span)), x);
}
static inline uint64_t bits(__m128i mask, int part) { return (uint64_t)(uint32_t)_mm_movemask_epi8(mask) << 16 * part; }

static inline Classes classes_any(const char *text) {
  Classes c = {0};
  for (int part = 0; part < WINDOW / 16; part++) {
    __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(text + 16 * part));
    __m128i blank = _mm_cmpeq_epi8(x, _mm_set1_epi8(' '));
    c.letter |= bits(in_range(_mm_or_si128(x, _mm_set1_epi8(0x20)), 'a', 25), part);
    c.number |= bits(in_range(x, '0', 9), part);
    c.space |= bits(_mm_or_si128(blank, in_range(x, '\t', 4)), part);
    c.blank |= bits(blank, part);
    c.quote |= bits(_mm_cmpeq_epi8(x, _mm_set1_epi8('\'')), part);
    c.newline |= bits(_mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8('\n')), _mm_cmpeq_epi8(x, _mm_set1_epi8('\r'))), part);
    c.wide |= bits(x, part);   // the highest bit of each byte
  }
  return c;
}
#else
static inline Classes classes_any(const char *text) {
  Classes c = {0};
  for (int i = 0; i < WINDOW; i++) {
    uint64_t bit = (uint64_t)1 << i;
    int class = byte_class[(uint8_t)text[i]];
    if (class == LETTER) c.letter |= bit;
    if (class == NUMBER) c.number |= bit;
    if (class == SPACE) c.space |= bit;
    if (class == LOOK) c.wide |= bit;
    if (text[i] == ' ') c.blank |= bit;
    if (text[i] == '\'') c.quote |= bit;
    if (text[i] == '\n' || text[i] == '\r') c.newline |= bit;
  }
  return c;
}
#endif

// Characters of several bytes, one by one, up to the first whose piece the bits cannot tell: white space of several bytes; in
// gpt4, which looks at single characters in front of letters and at three digits, all but letters; one that the window cuts.
static inline void look_at_wide(Classes *c, TokenizerPattern pattern, const char *text) {
  while (c->wide) {
    int at = __builtin_ctzll(c->wide);
    uint32_t code;
    int length = utf8_decode(text + at, (size_t)(WINDOW - at), &code), class = length ? unicode_class(code) : OTHER;
    if (length == 0 && at > WINDOW - 4) return;   // cut, or broken
    if (class == SPACE || (pattern == PATTERN_GPT4 && class != LETTER && length > 1)) return;
    uint64_t bytes = (((uint64_t)1 << MAX(length, 1)) - 1) << at;
    if (class == LETTER) c->letter |= bytes;
    if (class == NUMBER) c->number |= bytes;
    c->wide &= ~bytes;
  }
}

static inline int lowest(uint64_t x) { return __builtin_ctzll(x); }   // x != 0

// gpt2, without a branch a word: bit i of the result: a piece begins at byte i. Whether one does is settled by the bytes
// before, at and behind i, but for contractions, which are rare and looked at one by one. Byte 0 begins a piece.
// Right where byte i + 1 is in the window and all bytes up to it are known.
static inline uint64_t gpt2_starts(const char *text, const Classes *c) {
  uint64_t other = ~(c->letter | c->number | c->space | c->wide);
  uint64_t runs = (c->letter & ~(c->letter << 1)) | (c->number & ~(c->number << 1)) | (other & ~(other << 1));
  uint64_t starts = runs & ~(c->blank << 1);                                        // a blank leads the piece behind it,
  starts |= c->space & (~(c->space << 1) | ~(c->space >> 1));                       // other white space only itself
  for (uint64_t quotes = starts & c->quote; quotes; quotes &= quotes - 1) {
    int at = lowest(quotes);
    size_t length = contraction(text, WINDOW, (size_t)at, false);
    if (length == 0) continue;
    starts &= ~(length == 2 ? (uint64_t)2 << at : (uint64_t)6 << at);
    starts |= (uint64_t)2 << at << (length - 1);   // nothing where it ends with the window
  }
  return starts;
}

// End of the run of `class` that goes on at byte `at`, or WINDOW.
static inline size_t window_run(uint64_t class, size_t at) {
  uint64_t rest = at < WINDOW ? ~class >> at << at : 0;
  return rest ? (size_t)lowest(rest) : WINDOW;
}

// gpt4: end of the piece that begins at byte `at`, for the pieces that text mostly has; 0: look character by character.
// limit: the bytes before it are known and in the window. An end at the limit may not be the end: 0.
static inline size_t gpt4_window_end(const Classes *c, size_t at, size_t limit) {
  uint64_t bit = (uint64_t)1 << at;
  size_t end = 0;
  if (c->quote & bit) return 0;
  if (c->letter & bit) end = window_run(c->letter, at);
  else if (c->number & bit) end = MIN(window_run(c->number, at), at + 3);
  else if (!(c->newline & bit) && (c->letter >> at & 2)) end = window_run(c->letter, at + 1);
  else {
    uint64_t other = ~(c->letter | c->number | c->space | c->wide);
    if (!(other & bit) && !((c->blank & bit) && (other >> at & 2))) return 0;
    end = window_run(c->newline, window_run(other, at + 1));
  }
  return end < limit ? end : 0;
}

// Writes at + i for each bit i of starts, which is not 0, and returns how many. Eight at once: a branch a piece would be guessed wrongly at the last.
static inline size_t write_ends_any(uint64_t starts, size_t at, size_t ends[TOKENIZER_CUT]) {
  uint64_t x = starts - (starts >> 1 & 0x5555555555555555u);   // how many in each two bits, four, eight: not every x86-64 has an instruction for it
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  const uint64_t last = (uint64_t)1 << (WINDOW - 1);   // stands in where no bit is left; what it gives is not read
#define END(i) ends[i] = at + (size_t)lowest(starts | last), starts &= starts - 1
  for (; starts; ends += 8) { END(0); END(1); END(2); END(3); END(4); END(5); END(6); END(7); }
#undef END
  return (size_t)(x * 0x0101010101010101u >> 56);
}

#if BUILDS_VBMI2
// The same as classes_any and write_ends_any: a comparison gives the bits at once, and one instruction collects the numbers of those that are set.
VBMI2 static inline Classes classes_vbmi2(const char *text) {
  __m512i x = _mm512_loadu_si512(text), lower = _mm512_or_si512(x, _mm512_set1_epi8(0x20));
#define FROM(x, low, span) _mm512_cmple_epu8_mask(_mm512_sub_epi8(x, _mm512_set1_epi8(low)), _mm512_set1_epi8(span))
#define IS(c) _mm512_cmpeq_epi8_mask(x, _mm512_set1_epi8(c))
  Classes c = {.letter = FROM(lower, 'a', 25), .number = FROM(x, '0', 9), .blank = IS(' '), .quote = IS('\''), .newline = IS('\n') | IS('\r'), .wide = _mm512_movepi8_mask(x)};
  c.space = c.blank | FROM(x, '\t', 4);
#undef FROM
#undef IS
  return c;
}

VBMI2 static inline size_t write_ends_vbmi2(uint64_t starts, size_t at, size_t ends[TOKENIZER_CUT]) {
  static const uint8_t numbers[WINDOW] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
    32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  uint8_t set[WINDOW];
  const size_t count = (size_t)__builtin_popcountll(starts);
  _mm512_storeu_si512(set, _mm512_maskz_compress_epi8(starts, _mm512_loadu_si512(numbers)));
  const __m512i base = _mm512_set1_epi64((long long)at);
#define EIGHT(i) _mm512_storeu_si512(ends + (i), _mm512_add_epi64(base, _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(const void *)(set + (i))))))
  EIGHT(0), EIGHT(8), EIGHT(16);
  for (size_t i = 24; i < count; i += 8) EIGHT(i);
#undef EIGHT
  return count;
}
#endif

// The walk, for each way to see a window: inlined in both.
typedef Classes ClassesOf(const char *text);
typedef size_t WriteEnds(uint64_t starts, size_t at, size_t ends[TOKENIZER_CUT]);
static inline __attribute__((always_inline)) size_t cut_by(TokenizerCut *c, size_t ends[TOKENIZER_CUT], ClassesOf classes_of, WriteEnds write_ends) {
  // Of a window that follows one of bytes of one character each, the first CONTEXT bits are told already and make the others right: a bit
  // depends on the three before it (a contraction) and theirs. So the next window's place does not depend on what this one shows, and the
  // processor looks at several at once.
  enum { CONTEXT = 4, STRIDE = WINDOW - 1 - CONTEXT };
  while (c->pattern != PATTERN_NONE && c->n - c->window >= WINDOW) {
    const char *text = c->text + c->window;
    Classes k = classes_of(text);
    if (LIKELY(c->pattern == PATTERN_GPT2 && k.wide == 0)) {
      const uint64_t told = c->window == c->end ? 1 : ((uint64_t)1 << CONTEXT) - 1, settled = UINT64_MAX >> 1;
      const uint64_t starts = gpt2_starts(text, &k) & ~told & settled;
      const size_t at = c->window;
      c->window += STRIDE;
      if (!starts) continue;   // one piece goes through
      c->end = at + (WINDOW - 1) - (size_t)__builtin_clzll(starts);
      return write_ends(starts, at, ends);
    }
    if (c->window != c->end) {   // look again from the piece's begin on, if this window's trouble is then seen; else the piece is long
      if (c->window + (size_t)lowest(k.wide) - c->end >= WINDOW) break;
      c->window = c->end;
      continue;
    }
    look_at_wide(&k, c->pattern, text);
    const size_t limit = k.wide ? (size_t)lowest(k.wide) : WINDOW;
    size_t count = 0;
    if (c->pattern == PATTERN_GPT2 && limit > 2) {
      const uint64_t starts = gpt2_starts(text, &k) & (((uint64_t)1 << (limit - 1)) - 2);   // the first is known, the last not settled
      if (starts) count = write_ends(starts, c->window, ends);
    }
    if (c->pattern == PATTERN_GPT4)
      for (size_t start = 0, end; (end = gpt4_window_end(&k, start, limit)) > 0; start = end) ends[count++] = c->window + end;
    if (count == 0) break;
    c->window = c->end = ends[count - 1];
    return count;
  }
  ends[0] = c->window = c->end = tokenizer_piece_end(c->pattern, c->text, c->n, c->end);
  return 1;
}

size_t tokenizer_cut_any(TokenizerCut *c, size_t ends[TOKENIZER_CUT]) { return cut_by(c, ends, classes_any, write_ends_any); }
#if BUILDS_VBMI2
VBMI2 static size_t cut_vbmi2(TokenizerCut *c, size_t ends[TOKENIZER_CUT]) { return cut_by(c, ends, classes_vbmi2, write_ends_vbmi2); }
size_t tokenizer_cut(TokenizerCut *c, size_t ends[TOKENIZER_CUT]) {   // who has VBMI2 has the others
  return __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") ? cut_vbmi2(c, ends) : tokenizer_cut_any(c, ends);
}
#else
size_t tokenizer_cut(TokenizerCut *c, size_t ends[TOKENIZER_CUT]) { return tokenizer_cut_any(c, ends); }
#endif
