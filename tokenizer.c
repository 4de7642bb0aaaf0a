// tokenizer.c: owns text to ids and back: the cache of words, decoding; and the tokenizers that need no file (char, byte, GPT-2's own).
// tokenizer_pieces.c cuts the text into words, tokenizer_merge.c merges the bytes of one.
//
// Promises: any bytes go in; decode(encode(x)) == x; constant stack; a Tokenizer is read only once made.
// Byte-level BPE: Sennrich et al. 2016 (arXiv:1508.07909), on bytes as in Radford et al. 2019 (GPT-2).
// Tests: tests/test_tokenizer.c; dev/peers/tokenizer_peers.py compares with other programs id for id.
#include "tokenizer_internal.h"
#include "gpt2_vocab.h"  // gpt2_merges
#include "utf8.h"        // utf8_decode, utf8_encode
#include <stdatomic.h>   // the counter of tokenizers
#include <stdlib.h>      // free, qsort
#include <errno.h>       // errno
#include <sys/mman.h>    // mmap, madvise
#include <sys/random.h>  // getrandom

// ---- a word as a key ----

enum { LONG_KEY = 255 };   // longer words are not kept
#define POOLED ((uint64_t)0x80 << LENGTH_SHIFT)
static inline uint64_t key_hash(const WordKey *key) { return (key->low ^ key->high * 0xd6e8feb86659fd93u) * 0x9e3779b97f4a7c15u; }

HashKey hash_random_key(void) {
  HashKey key;
  if (getrandom(&key, sizeof key, 0) != (ssize_t)sizeof key) fail(EXIT_MACHINE, "the system gives no random numbers: %s", strerror(errno));
  return key;
}

// ---- building ----

Tokenizer *tokenizer_new(TokenizerKind kind, TokenizerPattern pattern) {
  static atomic_uint_fast64_t made;
  Tokenizer *t = xcalloc(1, sizeof *t);
  t->kind = kind;
  t->pattern = pattern;
  t->eot = -1;
  t->key = hash_random_key();
  t->serial = atomic_fetch_add(&made, 1) + 1;
  t->starts = xgrow(NULL, 0, &t->starts_capacity, sizeof t->starts[0]);
  t->starts[0] = 0;
  return t;
}

void tokenizer_free(Tokenizer *t) {
  if (!t) return;
  buffer_free(&t->bytes);
  free(t->starts);
  free(t->merges);
  free(t->specials);
  free(t->small_slots);
  free(t->decoded);
  free(t->merge_slots);
  free(t->rank_result);
  free(t->merge_filter);
  free(t->byte_ranks);
  free(t->token_slots);
  free(t->seeds);
  free(t->char_id);
  free(t);
}

void tokenizer_add_token(Tokenizer *t, const void *bytes, size_t n) {
  if (t->size == INT32_MAX - 1) fail(EXIT_REQUEST, "a vocabulary of more than %d entries", INT32_MAX - 1);
  buffer_append(&t->bytes, bytes, n);
  t->size++;
  t->starts = xgrow(t->starts, (size_t)t->size, &t->starts_capacity, sizeof t->starts[0]);
  t->starts[t->size] = t->bytes.len;
}

void tokenizer_add_merge(Tokenizer *t, int32_t left, int32_t right, int32_t result, int32_t rank) {
  t->merges = xgrow(t->merges, t->merge_count, &t->merge_capacity, sizeof t->merges[0]);
  t->merges[t->merge_count++] = (Merge){left, right, result, rank};
}

void tokenizer_add_special(Tokenizer *t, int32_t id) {
  size_t n, other;
  const char *text = tokenizer_token(t, id, &n);
  t->specials = xgrow(t->specials, t->special_count, &t->special_capacity, sizeof t->specials[0]);
  size_t at = t->special_count++;
  for (; at > 0 && (tokenizer_token(t, t->specials[at - 1], &other), other < n); at--) t->specials[at] = t->specials[at - 1];
  t->specials[at] = id;
  t->special_first[(uint8_t)text[0]] = true;
  if (n == strlen(END_OF_TEXT) && memcmp(text, END_OF_TEXT, n) == 0) t->eot = id;
}

bool tokenizer_is_special(const Tokenizer *t, int64_t id) {
  for (size_t i = 0; i < t->special_count; i++)
    if (t->specials[i] == id) return true;
  return false;
}

// Slot of the token with these bytes, or the free slot where it would go.
static int32_t *token_slot(const Tokenizer *t, const void *bytes, size_t n) {
  for (size_t at = hash_bytes(t->key, bytes, n) & t->token_mask;; at = (at + 1) & t->token_mask) {
    int32_t id = t->token_slots[at];
    if (id < 0) return &t->token_slots[at];
    size_t length;
    const char *token = tokenizer_token(t, id, &length);
    if (length == n && memcmp(token, bytes, n) == 0) return &t->token_slots[at];
  }
}

int32_t tokenizer_find(const Tokenizer *t, const void *bytes, size_t n) { return *token_slot(t, bytes, n); }

int32_t tokenizer_index_tokens(Tokenizer *t, int32_t *earlier) {
  size_t slots = table_size((size_t)t->size);
  t->token_mask = slots - 1;
  t->token_slots = xmalloc(slots, sizeof t->token_slots[0]);
  memset(t->token_slots, 0xff, slots * sizeof t->token_slots[0]);
  memset(t->byte_id, 0xff, sizeof t->byte_id);
  bool *special = xcalloc((size_t)t->size, sizeof special[0]);
  for (size_t i = 0; i < t->special_count; i++) special[t->specials[i]] = true;
  int32_t repeated = -1;
  for (int32_t id = 0; id < t->size && repeated < 0; id++) {
    if (special[id]) continue;
    size_t n;
    const char *token = tokenizer_token(t, id, &n);
    int32_t *slot = token_slot(t, token, n);
    if (*slot >= 0) {
      *earlier = *slot;
      repeated = id;
    }
    *slot = id;
    if (n == 1) t->byte_id[(uint8_t)token[0]] = id;
  }
  free(special);
  return repeated;
}

static void place_merge(Tokenizer *t, const Merge *m, uint64_t pair, uint64_t hash) {
  size_t at = merge_place(t, hash);
  if (t->small_slots) {
    uint64_t small = small_pair(m->left, m->right);
    while (t->small_slots[at] != NO_PAIR && !is_small_pair(t->small_slots[at], small)) at = (at + 1) & t->merge_mask;
    t->small_slots[at] = (uint64_t)m->rank << 2 * SMALL_ID_BITS | small;
  } else {
    while (t->merge_slots[at].pair != NO_PAIR && t->merge_slots[at].pair != pair) at = (at + 1) & t->merge_mask;
    t->merge_slots[at] = (MergeSlot){pair, m->rank};
  }
}

static void index_merges(Tokenizer *t) {
  for (size_t i = 0; i < t->merge_count; i++) t->rank_end = MAX(t->rank_end, t->merges[i].rank + 1);
  t->rank_result = xmalloc((size_t)t->rank_end, sizeof t->rank_result[0]);
  const bool small = t->size <= SMALL_IDS && t->rank_end <= SMALL_RANKS;
  size_t slots = table_size(t->merge_count);
  if (small && 5 * t->merge_count <= 4 * (slots / 2)) slots /= 2;   // the filter keeps most that are not there away: it may be four fifths full
  t->merge_mask = slots - 1;
  if (small) {
    t->small_slots = xmalloc(slots + 1, sizeof t->small_slots[0]);
    for (size_t i = 0; i <= slots; i++) t->small_slots[i] = NO_PAIR;
  } else {
    t->merge_slots = xmalloc(slots + 1, sizeof t->merge_slots[0]);
    for (size_t i = 0; i <= slots; i++) t->merge_slots[i] = (MergeSlot){NO_PAIR, NO_RANK};
  }
  int filter_bits = 6;
  while ((size_t)1 << filter_bits < 16 * t->merge_count) filter_bits++;   // one in sixteen pairs that do not merge is looked up for nothing
  t->filter_shift = 64 - filter_bits;
  t->merge_filter = xcalloc((size_t)1 << (filter_bits - 6), sizeof t->merge_filter[0]);
  t->byte_ranks = xmalloc((size_t)256 * 256, sizeof t->byte_ranks[0]);
  for (size_t i = 0; i < 256 * 256; i++) t->byte_ranks[i] = NO_RANK;
  for (size_t i = 0; i < t->merge_count; i++) {
    const Merge *m = &t->merges[i];
    uint64_t pair = (uint64_t)(uint32_t)m->left << 32 | (uint32_t)m->right, hash = pair_hash(t->key, m->left, m->right);
    *filter_word(t, hash) |= filter_bit(t, hash);
    place_merge(t, m, pair, hash);
    t->rank_result[m->rank] = m->result;
    size_t left, right;
    const char *a = tokenizer_token(t, m->left, &left), *b = tokenizer_token(t, m->right, &right);
    if (left == 1 && right == 1) t->byte_ranks[(size_t)(uint8_t)*a << 8 | (uint8_t)*b] = m->rank;
  }
}

// Whether every merge comes after all that make its parts, so that merging by rising ranks meets no pair too late.
static void index_order(Tokenizer *t) {
  int32_t *made = xmalloc((size_t)t->size, sizeof made[0]);   // the last rank that makes the token, or -1
  for (int32_t id = 0; id < t->size; id++) made[id] = -1;
  t->ordered = t->merge_count > 0;
  for (size_t i = 0; i < t->merge_count; i++) made[t->merges[i].result] = MAX(made[t->merges[i].result], t->merges[i].rank);
  for (size_t i = 0; i < t->merge_count; i++)
    t->ordered &= t->merges[i].rank > made[t->merges[i].left] && t->merges[i].rank > made[t->merges[i].right];
  for (int byte = 0; byte < 256; byte++) t->ordered &= t->byte_id[byte] >= 0;
  free(made);
}

// Words that are tokens need no merging: those tokens that are what their own bytes merge to.
static void index_seeds(Tokenizer *t) {
  t->seeds = xmalloc((size_t)t->size, sizeof t->seeds[0]);
  bool *whole = t->whole_words ? NULL : tokenizer_whole_tokens(t);   // NULL: must be merged to see
  for (int32_t id = 0; id < t->size; id++) {
    size_t n;
    const char *token = tokenizer_token(t, id, &n);
    int32_t parts[SHORT_WORD];
    if (n > KEY_BYTES || (whole ? !whole[id] : tokenizer_find(t, token, n) != id)) continue;   // not the special ones
    if (!whole && !t->whole_words && tokenizer_merge_short(t, token, n, parts) != 1) continue;
    t->seeds[t->seed_count++] = (Seed){word_key(cache_key, token, n, n), id};
  }
  free(whole);
}

enum { CODES = 0x110000 };   // code points

static void index_characters(Tokenizer *t) {
  t->char_id = xmalloc(CODES, sizeof t->char_id[0]);
  memset(t->char_id, 0xff, CODES * sizeof t->char_id[0]);
  for (int32_t id = 0; id < t->size; id++) {
    size_t n;
    uint32_t code;
    const char *token = tokenizer_token(t, id, &n);
    if (!tokenizer_is_special(t, id) && utf8_decode(token, n, &code)) t->char_id[code] = id;
  }
}

static void index_decoded(Tokenizer *t) {
  t->decoded = xcalloc((size_t)t->size, sizeof t->decoded[0]);
  for (int32_t id = 0; id < t->size; id++) {
    size_t n;
    const char *bytes = tokenizer_token(t, id, &n);
    if (n <= KEY_BYTES) t->decoded[id] = word_key(cache_key, bytes, n, n);
  }
}

void tokenizer_finish(Tokenizer *t) {
  int32_t earlier;
  if (!t->token_slots) tokenizer_index_tokens(t, &earlier);
  index_merges(t);
  index_order(t);
  index_seeds(t);
  index_decoded(t);
  if (t->kind == TOKENIZER_CHAR) index_characters(t);
}

// ---- the tokenizers that need no file ----

Tokenizer *tokenizer_byte(bool with_eot) {
  Tokenizer *t = tokenizer_new(TOKENIZER_BYTE, PATTERN_NONE);
  for (int byte = 0; byte < 256; byte++) tokenizer_add_token(t, &(char){(char)byte}, 1);
  if (with_eot) {
    tokenizer_add_token(t, END_OF_TEXT, strlen(END_OF_TEXT));
    tokenizer_add_special(t, 256);
  }
  tokenizer_finish(t);
  return t;
}

// Line and column (in characters), both from 1, of a byte offset, before which all is valid UTF-8.
static void place_of(const char *text, size_t n, size_t offset, size_t *line, size_t *column) {
  *line = *column = 1;
  for (size_t at = 0; at < offset;) {
    uint32_t code;
    if (text[at] == '\n') ++*line, *column = 0;
    ++*column;
    at += (size_t)utf8_decode(text + at, n - at, &code);
  }
}

Tokenizer *tokenizer_char_from_text(const char *name, const char *text, size_t n, bool with_eot) {
  if (n == 0) fail(EXIT_REQUEST, "%s: 0 bytes, a character tokenizer needs at least 1 character", name);
  bool *seen = xcalloc(CODES, sizeof *seen);
  for (size_t at = 0; at < n;) {
    uint32_t code;
    int length = utf8_decode(text + at, n - at, &code);
    if (length == 0) {
      size_t line, column;
      place_of(text, n, at, &line, &column);
      fail(EXIT_REQUEST,
           "%s: byte 0x%02x at line %zu, column %zu is not UTF-8, a character tokenizer needs UTF-8: use --tokenizer byte or bpe:N",
           name, (uint8_t)text[at], line, column);
    }
    seen[code] = true;
    at += (size_t)length;
  }
  Tokenizer *t = tokenizer_new(TOKENIZER_CHAR, PATTERN_NONE);
  for (uint32_t code = 0; code < CODES; code++) {
    char bytes[4];
    if (seen[code]) tokenizer_add_token(t, bytes, (size_t)utf8_encode(code, bytes));
  }
  free(seen);
  if (with_eot) {
    tokenizer_add_token(t, END_OF_TEXT, strlen(END_OF_TEXT));
    tokenizer_add_special(t, t->size - 1);
  }
  tokenizer_finish(t);
  return t;
}

Tokenizer *tokenizer_gpt2(void) {
  uint8_t value_of[256] = {0};
  for (int i = 0; gpt2_digits[i]; i++) value_of[(uint8_t)gpt2_digits[i]] = (uint8_t)i;
  Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_GPT2);
  for (int i = 0; i < 256; i++) tokenizer_add_token(t, &(char){(char)alphabet_in_order(i)}, 1);
  const char *digit = gpt2_merges;
  for (int rank = 0; rank < GPT2_MERGES; rank++) {
    uint32_t pair = 0;
    for (int i = 0; i < 5; i++) pair = pair * 85 + value_of[(uint8_t)*digit++];
    int32_t left = (int32_t)(pair >> 16), right = (int32_t)(pair & 0xffff);
    char token[256];  // the longest has 128 bytes
    size_t left_size, right_size;
    const char *left_bytes = tokenizer_token(t, left, &left_size);
    memcpy(token, left_bytes, left_size);
    const char *right_bytes = tokenizer_token(t, right, &right_size);
    memcpy(token + left_size, right_bytes, right_size);
    tokenizer_add_token(t, token, left_size + right_size);
    tokenizer_add_merge(t, left, right, t->size - 1, rank);
  }
  tokenizer_add_token(t, END_OF_TEXT, strlen(END_OF_TEXT));
  tokenizer_add_special(t, t->size - 1);
  tokenizer_finish(t);
  return t;
}

// ---- a TokenBuffer and its cache ----
// Text repeats its words, so the ids of words are kept: in a table whose place is given by the word's hash, two words a line of memory,
// where a newer word replaces an older one. A word of at most KEY_BYTES and WORD_IDS ids, which are nearly all, is in the table itself; of
// others the table has the place in the pool, where the ids stand, and before them, if the word is long, its bytes. The table begins small, for
// then the processor's cache holds it, and doubles as it fills; when the pool is full both are emptied. 16 + 12 MiB at most.

enum { WORD_IDS = 3, LINE_BITS_FIRST = 10, LINE_BITS_MOST = 18, POOL_IDS = 3 << 20 };
typedef struct {
  WordKey key;                    // POOLED is set in it where ids[0] is the place in the pool and ids[1] how many stand there
  int32_t ids[WORD_IDS], count;
} CachedWord;
typedef struct { CachedWord words[2]; } CacheLine;   // the one used last first, but for what the pool has

typedef struct WordCache {
  uint64_t serial;       // of the tokenizer whose words these are
  CacheLine *lines;      // (1 << line_bits) of 1 << LINE_BITS_MOST, aligned to pages
  int line_bits;
  size_t words;          // put into the table since it was empty
  int32_t *pool;         // (pool_count) of POOL_IDS
  size_t pool_count;
  size_t merged;         // words that were not there, of all tokenizers
  void *memory;          // (memory_bytes) of both
  size_t memory_bytes;
  MergeScratch scratch;  // of long words
} WordCache;

// For what is written once from begin to end, each page costs. A wish: no harm where it is not granted.
static void wish_for_large_pages(void *memory, size_t bytes) {
  enum { SMALL_PAGE = 4096 };
  if (bytes >= 2 << 20) madvise((void *)round_up((uintptr_t)memory, SMALL_PAGE), bytes - SMALL_PAGE, MADV_HUGEPAGE);
}

static __attribute__((noinline)) void grow(TokenBuffer *b, size_t more) {
  size_t need;
  if (!add_size(b->count, more, &need)) fail(EXIT_MACHINE, "memory: %zu + %zu ids", b->count, more);
  b->capacity = MAX(need, MAX((size_t)256, b->capacity + b->capacity / 2));
  b->ids = xrealloc(b->ids, b->capacity, sizeof b->ids[0]);
  wish_for_large_pages(b->ids, b->capacity * sizeof b->ids[0]);
}

static inline void reserve(TokenBuffer *b, size_t more) {
  if (b->capacity - b->count < more) grow(b, more);
}

void token_buffer_append(TokenBuffer *b, int32_t id) {
  reserve(b, 1);
  b->ids[b->count++] = id;
}

void token_buffer_free(TokenBuffer *b) {
  free(b->ids);
  if (b->cache) {
    munmap(b->cache->memory, b->cache->memory_bytes);   // it may have none yet: of 0 bytes nothing is unmapped
    merge_scratch_free(&b->cache->scratch);
    free(b->cache);
  }
  *b = (TokenBuffer){0};
}

static inline CacheLine *line_of(const WordCache *c, const WordKey *key) { return &c->lines[key_hash(key) >> (64 - c->line_bits)]; }
static inline bool is_word(const CachedWord *w, const WordKey *key) { return same_key(w->key, *key); }

static inline void put_word(CacheLine *line, const CachedWord *word) {
  line->words[1] = line->words[0];
  line->words[0] = *word;
}

// Twice the lines: those of line i go to 2 i and 2 i + 1, the last first.
static void grow_table(WordCache *c) {
  c->line_bits++;
  for (size_t i = (size_t)1 << (c->line_bits - 1); i-- > 0;) {
    CacheLine line = c->lines[i];
    c->lines[2 * i] = c->lines[2 * i + 1] = (CacheLine){0};
    for (int k = 1; k >= 0; k--)
      if (line.words[k].key.high) put_word(line_of(c, &(WordKey){line.words[k].key.low, line.words[k].key.high & ~POOLED}), &line.words[k]);
  }
}

static void empty_cache(WordCache *c) {
  memset(c->lines, 0, sizeof c->lines[0] << c->line_bits);
  c->words = c->pool_count = 0;
}

// text_bytes: how much is to be encoded now.
static void prepare_cache(const Tokenizer *t, TokenBuffer *b, size_t text_bytes) {
  if (!b->cache) b->cache = xcalloc(1, sizeof *b->cache);
  WordCache *c = b->cache;
  if (c->serial == t->serial) return;
  enum { PAGE = 2 << 20 };
  size_t lines = ((size_t)1 << LINE_BITS_MOST) * sizeof(CacheLine);
  munmap(c->memory, c->memory_bytes);
  c->memory_bytes = lines + POOL_IDS * sizeof c->pool[0] + PAGE;   // untouched pages take no memory
  c->memory = mmap(NULL, c->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (c->memory == MAP_FAILED) fail(EXIT_MACHINE, "memory: %zu bytes for the tokenizer's words: %s", c->memory_bytes, strerror(errno));
  c->lines = (CacheLine *)round_up((uintptr_t)c->memory, PAGE);
  c->pool = (int32_t *)((uintptr_t)c->lines + lines);
  c->line_bits = LINE_BITS_FIRST;
  c->words = c->pool_count = 0;
  c->serial = t->serial;
  if (text_bytes < 1 << 18) return;   // a short text would pay for more than it uses
  // Words lie anywhere, and the processor knows the places of few pages: large ones. A wish: no harm where it is not granted.
  madvise(c->lines, lines + POOL_IDS * sizeof c->pool[0], MADV_HUGEPAGE);
  while (c->line_bits < LINE_BITS_MOST && (size_t)1 << c->line_bits < t->seed_count) c->line_bits++;
  for (size_t i = t->seed_count; i-- > 0;)   // small ids are frequent words: the last, for they shall be first in their line
    put_word(line_of(c, &t->seeds[i].key), &(CachedWord){.key = t->seeds[i].key, .ids = {t->seeds[i].id}, .count = 1});
  c->words = t->seed_count;
}

size_t tokenizer_words_merged(const TokenBuffer *b) { return b->cache->merged; }

// ---- one word ----

// Appends the ids of one piece, not looking into the cache. There is room for a short word's, as encode_words has it.
static void merge_word(const Tokenizer *t, const char *word, size_t n, TokenBuffer *out) {
  if (t->whole_words) {
    int32_t id = tokenizer_find(t, word, n);
    if (id >= 0) {
      token_buffer_append(out, id);
      return;
    }
  }
  if (n > SHORT_WORD) {
    tokenizer_merge_long(t, word, n, &out->cache->scratch, out);
    return;
  }
  out->count += tokenizer_merge_short(t, word, n, out->ids + out->count);
}

static size_t pool_text(size_t n) { return n > KEY_BYTES ? (n + 3) / 4 : 0; }   // ids' places that its bytes take

// Keeps the ids of a word of at most LONG_KEY bytes.
static void keep_word(WordCache *c, const char *word, size_t n, const WordKey *key, CacheLine *line, const int32_t *ids, size_t count) {
  CachedWord new = {.key = *key, .count = (int32_t)count};
  if (n <= KEY_BYTES && count <= WORD_IDS) {
    memcpy(new.ids, ids, count * sizeof ids[0]);
  } else {
    if (POOL_IDS - c->pool_count < pool_text(n) + count) empty_cache(c);
    new = (CachedWord){.key = {key->low, key->high | POOLED}, .ids = {(int32_t)c->pool_count, (int32_t)count}};
    if (n > KEY_BYTES) memcpy(c->pool + c->pool_count, word, n);
    c->pool_count += pool_text(n);
    memcpy(c->pool + c->pool_count, ids, count * sizeof ids[0]);
    c->pool_count += count;
  }
  put_word(line, &new);
  c->words++;
}

// Sixteen bytes at once, for a copy of unknown length costs more than the ids behind that are copied too.
static inline void copy_pooled(TokenBuffer *out, const int32_t *ids, size_t count) {
  enum { AT_ONCE = 4 };
  reserve(out, count + AT_ONCE);
  for (size_t i = 0; i < count; i += AT_ONCE) memcpy(out->ids + out->count + i, ids + i, AT_ONCE * sizeof ids[0]);
  out->count += count;
}

// A word that is not the first of its line, or whose ids are in the pool, or that is new.
static __attribute__((noinline)) void encode_rare(const Tokenizer *t, const char *word, size_t n, const WordKey *key, CacheLine *line, TokenBuffer *out) {
  WordCache *c = out->cache;
  if (is_word(&line->words[1], key)) {
    CachedWord found = line->words[1];
    line->words[1] = line->words[0];
    line->words[0] = found;
    memcpy(out->ids + out->count, found.ids, sizeof found.ids);
    out->count += (size_t)found.count;
    return;
  }
  WordKey pooled = {key->low, key->high | POOLED};
  for (const CachedWord *w = line->words; n <= LONG_KEY && w < line->words + 2; w++) {
    if (!is_word(w, &pooled) || (n > KEY_BYTES && memcmp(c->pool + w->ids[0], word, n) != 0)) continue;
    copy_pooled(out, c->pool + (size_t)w->ids[0] + pool_text(n), (size_t)w->ids[1]);
    return;
  }
  size_t before = out->count;
  c->merged++;
  merge_word(t, word, n, out);
  if (n <= LONG_KEY) keep_word(c, word, n, key, line, out->ids + before, out->count - before);
}

// ---- encoding ----

// The words text[start, ends[0]), text[ends[0], ends[1]) and so on, at most BATCH. First the place of each, then whether it is
// there and its ids, so that the processor fetches many places at once: one after the other it would wait for each.
enum { BATCH = 128 };
static void encode_words(const Tokenizer *t, const char *text, size_t n, size_t start, const size_t *ends, size_t count, TokenBuffer *out) {
  CacheLine *lines[BATCH];
  WordKey keys[BATCH];
  WordCache *c = out->cache;
  if (c->words > (size_t)1 << c->line_bits && c->line_bits < LINE_BITS_MOST) grow_table(c);
  for (size_t i = 0, at = start; i < count; at = ends[i++]) {
    keys[i] = word_key(cache_key, text + at, ends[i] - at, n - at);
    lines[i] = line_of(c, &keys[i]);
    __builtin_prefetch(lines[i]);
  }
  enum { ROOM = BATCH * (WORD_IDS + 1) };
  reserve(out, ROOM);
  int32_t *ids = out->ids + out->count;
  for (size_t i = 0, at = start; i < count; at = ends[i++]) {
    const CachedWord *word = lines[i]->words;
    if (LIKELY(is_word(word, &keys[i]))) {
      memcpy(ids, word->ids, sizeof word->ids + sizeof word->count);   // all of it: one copy of sixteen bytes
      ids += word->count;
      continue;
    }
    out->count = (size_t)(ids - out->ids);
    encode_rare(t, text + at, ends[i] - at, &keys[i], lines[i], out);
    reserve(out, ROOM);
    ids = out->ids + out->count;
  }
  out->count = (size_t)(ids - out->ids);
}

// Text without special tokens. false, and out->unseen set, at a character without an id.
static bool encode_plain(const Tokenizer *t, const char *text, size_t n, TokenBuffer *out) {
  if (t->kind == TOKENIZER_CHAR) {
    for (size_t at = 0; at < n;) {
      uint32_t code;
      int length = utf8_decode(text + at, n - at, &code);
      if (length == 0 || t->char_id[code] < 0) {
        out->unseen = at;
        return false;
      }
      token_buffer_append(out, t->char_id[code]);
      at += (size_t)length;
    }
    return true;
  }
  if (t->merge_count == 0 && !t->whole_words) {
    reserve(out, n);
    for (size_t at = 0; at < n; at++) out->ids[out->count++] = t->byte_id[(uint8_t)text[at]];
    return true;
  }
  prepare_cache(t, out, n);
  reserve(out, n / 4);   // about what text needs; what is not used takes no memory
  size_t ends[BATCH];
  for (TokenizerCut cut = {.pattern = t->pattern, .text = text, .n = n}; cut.end < n;) {
    size_t at = cut.end, count = 0;
    while (cut.end < n && count + TOKENIZER_CUT <= BATCH) count += tokenizer_cut(&cut, ends + count);
    encode_words(t, text, n, at, ends, count, out);
  }
  return true;
}

// The special token whose text stands at `at` (the longest of them), or -1.
static int32_t special_at(const Tokenizer *t, const char *text, size_t n, size_t at, size_t *length) {
  if (!t->special_first[(uint8_t)text[at]]) return -1;
  for (size_t i = 0; i < t->special_count; i++) {
    const char *special = tokenizer_token(t, t->specials[i], length);
    if (*length <= n - at && memcmp(text + at, special, *length) == 0) return t->specials[i];
  }
  return -1;
}

int64_t tokenizer_encode(const Tokenizer *t, const char *text, size_t n, TokenBuffer *out, TokenizerSpecial special) {
  size_t before = out->count, start = 0;
  bool ok = true;
  for (size_t at = 0; special == SPECIAL_ALL && at < n;) {
    size_t length;
    int32_t id = special_at(t, text, n, at, &length);
    if (id < 0) {
      at++;
      continue;
    }
    ok = encode_plain(t, text + start, at - start, out);
    if (!ok) break;
    token_buffer_append(out, id);
    start = at += length;
  }
  if (ok) ok = encode_plain(t, text + start, n - start, out);
  if (ok) return (int64_t)(out->count - before);
  out->unseen += start;
  out->count = before;
  return -1;
}

int64_t tokenizer_encode_or_fail(const Tokenizer *t, const char *name, const char *text, size_t n, TokenBuffer *out,
                                 TokenizerSpecial special) {
  int64_t count = tokenizer_encode(t, text, n, out, special);
  if (count >= 0) return count;
  size_t line, column;
  place_of(text, n, out->unseen, &line, &column);
  uint32_t code = 0;
  int length = utf8_decode(text + out->unseen, n - out->unseen, &code);
  if (length == 0)
    fail(EXIT_REQUEST, "%s: byte 0x%02x at line %zu, column %zu is not UTF-8, and this tokenizer knows %d characters only", name,
         (uint8_t)text[out->unseen], line, column, t->size);
  fail(EXIT_REQUEST,
       "%s: character '%.*s' (U+%04X) at line %zu, column %zu is none of the %d that this character tokenizer has seen in training", name,
       code < 32 || code == 127 ? 0 : length, text + out->unseen, code, line, column, t->size - (int)t->special_count);
}

// ---- decoding ----

const char *tokenizer_decode_one(const Tokenizer *t, int64_t id, size_t *length) {
  *length = 0;
  return id < 0 || id >= t->size ? NULL : tokenizer_token(t, (int32_t)id, length);
}

int64_t tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t count, Buffer *out) {
  int64_t bad = -1;
  if (count >= 1 << 19) {   // at least a byte each, of text about four; room that is not used takes no memory
    buffer_reserve(out, 4 * count);
    wish_for_large_pages(out->data + out->len, 4 * count);
  }
  char *data = out->data;   // what `out` has is kept here: bytes written might be its fields, as far as the compiler knows, and it would read them again for each id
  size_t len = out->len, cap = out->cap;
  for (size_t i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= t->size) {
      bad = (int64_t)i;
      break;
    }
    const WordKey token = t->decoded[ids[i]];
    const char *bytes = NULL;
    size_t n = token.high >> LENGTH_SHIFT & 0xff;
    if (!LIKELY(n)) bytes = tokenizer_token(t, ids[i], &n);
    if (cap - len < n + sizeof token) {
      out->len = len;
      buffer_reserve(out, n + sizeof token);
      data = out->data, cap = out->cap;
    }
    if (LIKELY(!bytes)) memcpy(data + len, &token, sizeof token);   // faster than one of the right length: the bytes behind are written over or cut off
    else memcpy(data + len, bytes, n);
    len += n;
  }
  out->len = len;
  if (out->data) out->data[out->len] = 0;
  return bad;
}

// ---- asking ----

int32_t tokenizer_vocab_size(const Tokenizer *t) { return t->size; }
int32_t tokenizer_eot(const Tokenizer *t) { return t->eot; }
TokenizerKind tokenizer_kind(const Tokenizer *t) { return t->kind; }
TokenizerPattern tokenizer_pattern(const Tokenizer *t) { return t->pattern; }
size_t tokenizer_merge_count(const Tokenizer *t) { return t->merge_count; }
size_t tokenizer_special_count(const Tokenizer *t) { return t->special_count; }
int32_t tokenizer_special_id(const Tokenizer *t, size_t index) { return t->specials[index]; }

const char *tokenizer_kind_name(const Tokenizer *t) {
  static const char *const names[] = {[TOKENIZER_CHAR] = "char", [TOKENIZER_BYTE] = "byte", [TOKENIZER_BPE] = "bpe"};
  return names[t->kind];
}

const char *tokenizer_pattern_name(TokenizerPattern p) {
  static const char *const names[] = {[PATTERN_GPT2] = "gpt2", [PATTERN_GPT4] = "gpt4", [PATTERN_NONE] = "none"};
  return names[p];
}
