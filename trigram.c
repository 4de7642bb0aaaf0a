// trigram.c: owns the word trigram, interpolated after Witten & Bell 1991 ("The zero-frequency problem", method C). See trigram.h.
//
//   P(w | u v) = (count(u v w) + kinds(u v) P(w | v)) / (count(u v) + kinds(u v)),  kinds = distinct words seen there,
// and so on down to the single word, whose own fallback spells it: each byte by its share of the training bytes.
#include "trigram.h"
#include <math.h>     // log2
#include <stdlib.h>   // free
#include <string.h>   // memcmp

enum { END = 1, START = 2, FIRST_WORD = 3 };   // word ids; 0 is free

typedef struct { uint64_t key; uint32_t count, kinds; } Entry;   // of a sequence of up to three words; kinds: distinct successors
typedef struct { Entry *entries; size_t capacity, used; } Table;

struct Trigram {
  Table sequences;
  struct { char *text; size_t n; } *words;
  uint32_t *index;            // hash of a word -> its id
  size_t word_count, word_capacity, index_size;
  uint64_t bytes[256], all_bytes, word_lengths;   // word_lengths: words that bytes were counted over
};

static uint64_t mix(uint64_t x) {   // splitmix64's finaliser
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// A sequence of words as one number: 20 bits each, the length above. Shorter sequences are contexts of longer ones.
static uint64_t key_of(uint32_t u, uint32_t v, uint32_t w) { return (uint64_t)u << 40 | (uint64_t)v << 20 | w; }

static Entry *slot_of(const Table *t, uint64_t key) {
  size_t i = mix(key) & (t->capacity - 1);
  while (t->entries[i].key && t->entries[i].key != key + 1) i = (i + 1) & (t->capacity - 1);
  return &t->entries[i];
}

static void grow(Table *t) {
  Table bigger = {xcalloc(MAX((size_t)1024, 2 * t->capacity), sizeof(Entry)), MAX((size_t)1024, 2 * t->capacity), t->used};
  for (size_t i = 0; i < t->capacity; i++) if (t->entries[i].key) *slot_of(&bigger, t->entries[i].key - 1) = t->entries[i];
  free(t->entries);
  *t = bigger;
}

static Entry *entry_of(Table *t, uint64_t key) {
  if (2 * (t->used + 1) > t->capacity) grow(t);
  Entry *e = slot_of(t, key);
  if (!e->key) { e->key = key + 1; t->used++; }
  return e;
}

static Entry look_up(const Table *t, uint64_t key) { return t->capacity ? *slot_of(t, key) : (Entry){0}; }

// ---- words ----

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c & 0x80) || c == '\''; }

static size_t word_length(const char *s, size_t n) {
  size_t i = s[0] == ' ' ? 1 : 0;
  if (i == n || !is_letter(s[i])) return 1;
  while (i < n && is_letter(s[i])) i++;
  return i;
}

static uint64_t hash_word(const char *s, size_t n) {
  uint64_t h = 14695981039346656037u;
  for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)s[i]) * 1099511628211u;
  return mix(h);
}

// Its place in the index: holds the word's id, or 0 where it would go.
static uint32_t *word_slot(const Trigram *t, const char *s, size_t n) {
  size_t i = hash_word(s, n) & (t->index_size - 1);
  for (;; i = (i + 1) & (t->index_size - 1)) {
    uint32_t id = t->index[i];
    if (!id || (t->words[id - FIRST_WORD].n == n && !memcmp(t->words[id - FIRST_WORD].text, s, n))) return &t->index[i];
  }
}

static uint32_t add_word(Trigram *t, const char *s, size_t n) {
  uint32_t *slot = word_slot(t, s, n);
  if (*slot) return *slot;
  if (t->word_count == t->word_capacity) {
    t->word_capacity = MAX((size_t)1024, 2 * t->word_capacity);
    t->words = xrealloc(t->words, t->word_capacity, sizeof *t->words);
  }
  t->words[t->word_count].text = memcpy(xmalloc(n, 1), s, n);
  t->words[t->word_count].n = n;
  *slot = (uint32_t)(t->word_count++ + FIRST_WORD);
  for (size_t i = 0; i < n; i++) t->bytes[(uint8_t)s[i]]++;
  t->all_bytes += n;
  t->word_lengths++;
  if (t->word_count >= 1000000) fail(EXIT_REQUEST, "the trigram holds at most 1000000 different words");
  return *slot;
}

// Count w behind v and behind u v: at each level a sequence seen for the first time is one more kind for its context.
static void count_word(Trigram *t, uint32_t u, uint32_t v, uint32_t w) {
  const uint64_t sequence[3] = {key_of(0, 0, w), key_of(0, v, w), key_of(u, v, w)}, context[3] = {0, key_of(0, v, 0), key_of(u, v, 0)};
  for (int level = 0; level < 3; level++) {
    bool first = entry_of(&t->sequences, sequence[level])->count++ == 0;
    Entry *c = entry_of(&t->sequences, context[level]);
    c->count++;
    c->kinds += first;
  }
}

Trigram *trigram_fit(const char *const *texts, const size_t *lengths, size_t count) {
  Trigram *t = xcalloc(1, sizeof *t);
  t->index_size = 1 << 21;
  t->index = xcalloc(t->index_size, sizeof *t->index);
  for (size_t i = 0; i < count; i++) {
    uint32_t u = START, v = START;
    for (size_t at = 0, n; at < lengths[i]; at += n) {
      n = word_length(texts[i] + at, lengths[i] - at);
      uint32_t w = add_word(t, texts[i] + at, n);
      count_word(t, u, v, w);
      u = v;
      v = w;
    }
    count_word(t, u, v, END);
  }
  return t;
}

// A word spelled byte by byte, with an end to the spelling; counts are of distinct words, each byte counted once more than seen.
static double spelling(const Trigram *t, const char *s, size_t n) {
  double all = (double)(t->all_bytes + t->word_lengths) + 257, p = ((double)t->word_lengths + 1) / all;
  for (size_t i = 0; i < n; i++) p *= ((double)t->bytes[(uint8_t)s[i]] + 1) / all;
  return p;
}

static double interpolate(const Trigram *t, uint64_t sequence, uint64_t context, double shorter) {
  Entry c = look_up(&t->sequences, context);
  if (!c.count) return shorter;
  return ((double)look_up(&t->sequences, sequence).count + c.kinds * shorter) / ((double)c.count + c.kinds);
}

static double probability(const Trigram *t, uint32_t u, uint32_t v, uint32_t w, double unseen) {
  double p = interpolate(t, key_of(0, 0, w), 0, unseen);
  p = interpolate(t, key_of(0, v, w), key_of(0, v, 0), p);
  return interpolate(t, key_of(u, v, w), key_of(u, v, 0), p);
}

double trigram_bits(const Trigram *t, const char *text, size_t n) {
  // the id of every word outside the vocabulary: no sequence holds it
  const uint32_t UNKNOWN = 0xfffff;
  uint32_t u = START, v = START;
  double bits = 0;
  for (size_t at = 0, length; at < n; at += length) {
    length = word_length(text + at, n - at);
    uint32_t w = *word_slot(t, text + at, length);
    if (!w) w = UNKNOWN;
    bits -= log2(probability(t, u, v, w, spelling(t, text + at, length)));
    u = v;
    v = w;
  }
  return bits - log2(probability(t, u, v, END, 0));
}

void trigram_free(Trigram *t) {
  for (size_t i = 0; i < t->word_count; i++) free(t->words[i].text);
  free(t->words);
  free(t->index);
  free(t->sequences.entries);
  free(t);
}
