// tokenizer_internal.h: the inside of a Tokenizer, shared by tokenizer.c (encode, decode), tokenizer_pieces.c, tokenizer_merge.c,
// tokenizer_train.c and tokenizer_files.c. Everyone else includes tokenizer.h.
// Tests: tests/test_tokenizer.c, tests/test_tokenizer_files.c, tests/test_pieces.c
#pragma once
#include "tokenizer.h"
#include <string.h>  // memcpy

// ---- hashing ----
// With a key that is known, words of one hash are easily made: where a factor is 0 what stood before it is forgotten. A table of such words is
// a list, and the time for a text or a vocabulary of them grows with the square of their number. So tables that grow with their entries have a
// key of their own, drawn at random; what they hold does not depend on it. (The idea of Crosby and Wallach 2003; the mixing is that of wyhash.)
typedef struct { uint64_t a, b; } HashKey;
HashKey hash_random_key(void);   // tokenizer.c
// For the cache of words, which holds two a place whatever their hashes: the worst that a text can do is to have each word merged again.
static const HashKey cache_key = {0x9e3779b97f4a7c15u, 0xd6e8feb86659fd93u};
static inline uint64_t hash_mix(HashKey key, uint64_t a, uint64_t b) {
  __extension__ typedef unsigned __int128 u128;
  u128 product = (u128)(a ^ key.a) * (b ^ key.b);
  return (uint64_t)product ^ (uint64_t)(product >> 64);
}
static inline uint64_t hash_bytes(HashKey key, const void *data, size_t n) {
  const uint8_t *p = data;
  uint64_t h = n, word;
  for (; n >= 8; p += 8, n -= 8) {
    memcpy(&word, p, 8);
    h = hash_mix(key, h, word);
  }
  word = 0;
  memcpy(&word, p, n);
  return hash_mix(key, h, word);
}
// A power of two that keeps `count` entries of an open table at most half full.
static inline size_t table_size(size_t count) {
  size_t size = 16;
  while (size < 2 * count) size *= 2;
  return size;
}

// ---- the inside ----

// left and right, side by side, become result; the merge with the least rank goes first, of equal ranks the leftmost. Merges of one rank
// have one result.
typedef struct { int32_t left, right, result, rank; } Merge;
typedef struct { uint64_t pair; int32_t rank; } MergeSlot;  // pair = left << 32 | right, or NO_PAIR
#define NO_PAIR UINT64_MAX
enum { NO_RANK = INT32_MAX };   // of two that do not merge

// The bytes of a word of at most 15, zeros behind them; the last byte is the length (0: no word). A longer word: its hash and length.
typedef struct { uint64_t low, high; } WordKey;
enum { KEY_BYTES = 15 };
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
enum { LENGTH_SHIFT = 56 };   // where the length stands: in the last byte
#else
enum { LENGTH_SHIFT = 0 };
#endif
#define LONG_MARK ((uint64_t)0x7f << LENGTH_SHIFT)
static const uint8_t kept_bytes[2 * sizeof(WordKey)] = {[0 ... 15] = 0xff};   // from 16 - n on: n bytes are kept, the others not

// `room` bytes may be read from the word, n of them are its own; n < 2^40. hash: of the long ones.
static inline WordKey word_key(HashKey hash, const char *word, size_t n, size_t room) {
  WordKey key = {0}, keep;
  if (n > KEY_BYTES) return (WordKey){hash_bytes(hash, word, n), LONG_MARK ^ (uint64_t)n << 16};
  memcpy(&keep.low, kept_bytes + sizeof keep - n, 8);
  memcpy(&keep.high, kept_bytes + sizeof keep - n + 8, 8);
  if (room >= sizeof key) {   // two loads and masks are faster than a copy of unknown length
    memcpy(&key.low, word, 8);
    memcpy(&key.high, word + 8, 8);
  } else {
    memcpy(&key, word, n);
  }
  return (WordKey){key.low & keep.low, (key.high & keep.high) | (uint64_t)n << LENGTH_SHIFT};
}
static inline size_t key_length(WordKey key) {
  uint64_t length = key.high >> LENGTH_SHIFT & 0xff;
  return length <= KEY_BYTES ? length : (key.high ^ LONG_MARK) >> 16;
}
static inline bool same_key(WordKey a, WordKey b) { return !((a.low ^ b.low) | (a.high ^ b.high)); }
typedef struct { WordKey key; int32_t id; } Seed;

struct Tokenizer {
  TokenizerKind kind;
  TokenizerPattern pattern;
  bool whole_words;         // a piece that is a token is that token, whatever the merges say ("ignore_merges")
  int32_t size;             // entries of the vocabulary
  Buffer bytes;             // all tokens end to end: token i is bytes[starts[i], starts[i + 1])
  size_t *starts;           // (size + 1)
  size_t starts_capacity;
  Merge *merges;            // (merge_count) in the order of their ranks
  size_t merge_count, merge_capacity;
  int32_t *specials;        // (special_count) ids, the longest text first
  size_t special_count, special_capacity;
  int32_t eot;              // or -1
  // indexes, built by tokenizer_finish
  uint64_t *small_slots;    // (merge_mask + 1) open addressing, and an empty one behind; NULL where ids or ranks do not fit:
  MergeSlot *merge_slots;   // likewise
  size_t merge_mask;
  int32_t *rank_result;     // (rank_end) what a merge of this rank makes
  uint64_t *merge_filter;   // a bit for every hash >> filter_shift: 0: no merge has it
  int filter_shift;
  bool ordered;             // every merge comes after those that make its parts, and every byte has an id
  int32_t rank_end;         // ranks are below
  int32_t *byte_ranks;      // (256 * 256) the rank of the merge of two single bytes, first << 8 | second, or NO_RANK
  int32_t *token_slots;     // (token_mask + 1) open addressing: bytes -> id of a token that is not special, or -1
  size_t token_mask;
  HashKey key;              // of token_slots and of the merges' slots and filter
  Seed *seeds;              // (seed_count) words that are one token, by id
  size_t seed_count;
  int32_t byte_id[256];     // id of the token that is this byte, or -1
  WordKey *decoded;         // (size) the bytes of each token, side by side with their number; of one over KEY_BYTES: zeros
  int32_t *char_id;         // char: code point -> id or -1
  bool special_first[256];  // some special token begins with this byte
  uint64_t serial;          // tells a TokenBuffer's cache whose words it holds
};

// ---- building: new, add tokens in the order of their ids, add merges and specials, finish ----
Tokenizer *tokenizer_new(TokenizerKind kind, TokenizerPattern pattern);
void tokenizer_add_token(Tokenizer *t, const void *bytes, size_t n);
void tokenizer_add_merge(Tokenizer *t, int32_t left, int32_t right, int32_t result, int32_t rank);
void tokenizer_add_special(Tokenizer *t, int32_t id);
// Builds the index of tokens alone, so that tokenizer_find works before the merges are known. Returns -1, or the id of
// a token whose bytes an earlier token (*earlier) has.
int32_t tokenizer_index_tokens(Tokenizer *t, int32_t *earlier);
// Builds what is not yet built. The merges must differ in their pairs.
void tokenizer_finish(Tokenizer *t);
// Id of the token with these bytes that is not special, or -1. After tokenizer_index_tokens.
int32_t tokenizer_find(const Tokenizer *t, const void *bytes, size_t n);
static inline const char *tokenizer_token(const Tokenizer *t, int32_t id, size_t *n) {
  *n = t->starts[id + 1] - t->starts[id];
  return t->bytes.data + t->starts[id];
}

// ---- the merge of a pair ----
#define LIKELY(x) __builtin_expect(!!(x), 1)
// With the key of a table: a tokenizer.json may hold any merges, and a text for training has the pairs that it likes.
static inline uint64_t pair_hash(HashKey key, int32_t left, int32_t right) { return hash_mix(key, (uint32_t)left, (uint32_t)right); }
static inline size_t merge_place(const Tokenizer *t, uint64_t hash) { return hash & t->merge_mask; }
// Most pairs that are looked up do not merge. A bit for the pair's hash says so: 128 KiB for GPT-2's 50,000 merges, which stay in the
// processor's cache where the 2 MiB of the merges themselves do not. (Bloom 1970, with one hash.)
static inline uint64_t *filter_word(const Tokenizer *t, uint64_t hash) { return &t->merge_filter[hash >> t->filter_shift >> 6]; }
static inline uint64_t filter_bit(const Tokenizer *t, uint64_t hash) { return (uint64_t)1 << (hash >> t->filter_shift & 63); }
// A merge in eight bytes, if ids and ranks are of the usual size: GPT-2's take 512 KiB, a quarter of what they take else. The last id is none: -1.
enum { SMALL_ID_BITS = 21, SMALL_IDS = (1 << SMALL_ID_BITS) - 1, SMALL_RANKS = (1 << (64 - 2 * SMALL_ID_BITS)) - 1 };
static inline uint64_t small_pair(int32_t left, int32_t right) { return (uint64_t)(left & SMALL_IDS) << SMALL_ID_BITS | (uint64_t)(right & SMALL_IDS); }
static inline bool is_small_pair(uint64_t slot, uint64_t pair) { return (slot ^ pair) << (64 - 2 * SMALL_ID_BITS) == 0; }
// Rank of the merge of two ids (-1: of nothing), or NO_RANK. After tokenizer_finish. The filter chooses the place, the last is empty.
static inline int32_t tokenizer_merge_rank(const Tokenizer *t, int32_t left, int32_t right) {
  uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right, hash = pair_hash(t->key, left, right);
  size_t at = *filter_word(t, hash) & filter_bit(t, hash) ? merge_place(t, hash) : t->merge_mask + 1;
  if (LIKELY(t->small_slots != NULL)) {
    uint64_t small = small_pair(left, right), slot = t->small_slots[at];
    while (!LIKELY(is_small_pair(slot, small) || slot == NO_PAIR)) slot = t->small_slots[at = (at + 1) & t->merge_mask];
    return slot == NO_PAIR ? NO_RANK : (int32_t)(slot >> 2 * SMALL_ID_BITS);
  }
  MergeSlot m = t->merge_slots[at];
  while (!LIKELY(m.pair == pair || m.pair == NO_PAIR)) m = t->merge_slots[at = (at + 1) & t->merge_mask];
  return m.rank;
}

// How many words tokenizer_encode had to merge for this buffer: the others were in its cache.
size_t tokenizer_words_merged(const TokenBuffer *b);

// ---- cutting text into pieces (tokenizer_pieces.c) ----
// End of the piece that begins at `at` < n: what merges never cross. Pieces depend on the text from `at` on only.
size_t tokenizer_piece_end(TokenizerPattern pattern, const char *text, size_t n, size_t at);
// A walk over the pieces of a text: begin with the first three set. end: of the last piece told, where the next begins; window: where to look next.
typedef struct { TokenizerPattern pattern; const char *text; size_t n, end, window; } TokenizerCut;
// The ends of the next pieces, in order, as many as can be seen at once, at least one; while c->end < c->n. Returns how many; what ends has
// behind them is overwritten. _any: as a processor without AVX-512 does it, for tests.
enum { TOKENIZER_CUT = 64 };
size_t tokenizer_cut(TokenizerCut *c, size_t ends[TOKENIZER_CUT]);
size_t tokenizer_cut_any(TokenizerCut *c, size_t ends[TOKENIZER_CUT]);

// ---- merging the bytes of one word (tokenizer_merge.c) ----
enum { SHORT_WORD = 48 };
// A word of at most SHORT_WORD bytes. ids set; returns how many.
size_t tokenizer_merge_short(const Tokenizer *t, const char *word, size_t n, int32_t ids[SHORT_WORD]);
// (size) of each token whether its bytes merge to it, found without merging them; to be freed. NULL where that cannot be known so: the merges are
// not t->ordered, or several make one token.
bool *tokenizer_whole_tokens(const Tokenizer *t);
// A word of any length; its ids are appended. scratch: zero-initialised, kept and grown; of one thread.
typedef struct {
  struct Symbol *symbols;
  uint64_t *heap;           // rank << 32 | position of the left part; the least on top
  size_t heap_count, heap_capacity;
} MergeScratch;
void tokenizer_merge_long(const Tokenizer *t, const char *word, size_t n, MergeScratch *scratch, TokenBuffer *out);
// The same with other sizes: so many bytes at once, of those done so many once more with the next.
void tokenizer_merge_blocks(const Tokenizer *t, const char *word, size_t n, size_t block, size_t overlap, MergeScratch *scratch, TokenBuffer *out);
void merge_scratch_free(MergeScratch *s);
// The two ways of it: the sweep needs t->ordered.
void tokenizer_merge_heap(const Tokenizer *t, const char *word, size_t n, MergeScratch *scratch, TokenBuffer *out);
void tokenizer_merge_sweep(const Tokenizer *t, const char *word, size_t n, TokenBuffer *out);

// ---- GPT-2's byte alphabet: a visible character for every byte, in which tokenizer.json writes tokens ----
// Printable bytes stand for themselves, the other 68 for the code points from 256 on, in order.
static inline uint32_t alphabet_code(uint8_t byte) {
  if (byte < 33) return 256u + byte;
  if (byte >= 127 && byte <= 160) return 256u + 33 + (byte - 127u);
  return byte == 173 ? 256u + 33 + 34 : byte;
}
enum { ALPHABET_END = 256 + 33 + 34 + 1 };
// The byte a code point stands for, or -1.
static inline int alphabet_byte(uint32_t code) {
  if (code < 256) return alphabet_code((uint8_t)code) == code ? (int)code : -1;
  if (code < 256 + 33) return (int)code - 256;
  if (code < 256 + 33 + 34) return (int)code - 256 - 33 + 127;
  return code == 256 + 33 + 34 ? 173 : -1;
}
// The byte whose code point is number `index` (0 to 255) of the alphabet: the byte with that id in GPT-2's vocabulary.
static inline uint8_t alphabet_in_order(int index) {
  if (index < 94) return (uint8_t)(33 + index);
  if (index < 106) return (uint8_t)(161 + index - 94);
  if (index < 188) return (uint8_t)(174 + index - 106);
  return (uint8_t)alphabet_byte(256 + (uint32_t)index - 188);
}
