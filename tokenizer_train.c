// tokenizer_train.c: owns the training of byte-level BPE: words are counted, then the most frequent pair is merged again and again.
//
// Promises: the merges are exactly those of Hugging Face's BpeTrainer (initial alphabet: all bytes; min_frequency 0) for the same
// documents, ties and oddities included; they do not depend on the order of documents or words, nor on which of several trainers
// counted them. Memory grows with the distinct words. A merge costs the words that hold its pair, so that training is far from documents x merges.
// Method: Sennrich et al. 2016 (arXiv:1508.07909). Tests: tests/test_tokenizer.c (against a plain trainer),
// dev/peers/tokenizer_peers.py (against Hugging Face's).
#include "tokenizer_internal.h"
#include "utf8.h"    // utf8_decode
#include <stdlib.h>  // free

// ---- counting words ----

// Half a line of the processor's cache, with the bytes of a short word in it: nearly all are told apart without a look at the text.
typedef struct { WordKey key; size_t start; int64_t count; } CountedWord;   // count 0: none

struct TokenizerTrainer {
  TokenizerPattern pattern;
  Buffer text;              // the distinct words end to end
  CountedWord *slots;       // (mask + 1) open addressing, at most half full
  size_t mask, word_count;
  HashKey key;              // of the table of words, and of those of pairs and tokens in training
};

// Written at once: a page of xcalloc is read first, so it is the system's one page of zeros, and is exchanged when it is written: two faults a
// page, and the second makes all other threads of the process stop for a moment. With two threads that took as long as was gained.
static CountedWord *empty_table(size_t size) {
  return memset(xmalloc(size, sizeof(CountedWord)), 0, size * sizeof(CountedWord));
}

TokenizerTrainer *tokenizer_trainer(TokenizerPattern pattern) {
  TokenizerTrainer *trainer = xcalloc(1, sizeof *trainer);
  trainer->pattern = pattern;
  trainer->mask = 4095;
  trainer->key = hash_random_key();
  trainer->slots = empty_table(trainer->mask + 1);
  return trainer;
}

static CountedWord *word_place(const TokenizerTrainer *trainer, const WordKey *key) {
  return &trainer->slots[hash_mix(trainer->key, key->low, key->high) & trainer->mask];
}
static CountedWord *next_place(const TokenizerTrainer *trainer, CountedWord *slot) {
  return slot == trainer->slots + trainer->mask ? trainer->slots : slot + 1;
}

static void grow_table(TokenizerTrainer *trainer) {
  CountedWord *old = trainer->slots;
  size_t old_size = trainer->mask + 1;
  trainer->mask = 2 * old_size - 1;
  trainer->slots = empty_table(2 * old_size);
  for (size_t i = 0; i < old_size; i++) {
    if (old[i].count == 0) continue;
    CountedWord *slot = word_place(trainer, &old[i].key);
    while (slot->count) slot = next_place(trainer, slot);
    *slot = old[i];
  }
  free(old);
}

static void count_word(TokenizerTrainer *trainer, const char *word, size_t n, const WordKey *key, int64_t count) {
  CountedWord *slot = word_place(trainer, key);
  for (; slot->count; slot = next_place(trainer, slot)) {
    if (!same_key(slot->key, *key) || (n > KEY_BYTES && memcmp(trainer->text.data + slot->start, word, n) != 0)) continue;
    slot->count += count;
    return;
  }
  *slot = (CountedWord){*key, trainer->text.len, count};
  buffer_append(&trainer->text, word, n);
  trainer->word_count++;
}

void tokenizer_trainer_add(TokenizerTrainer *trainer, const char *document, size_t n) {
  size_t ends[TOKENIZER_CUT];
  WordKey keys[TOKENIZER_CUT];
  for (TokenizerCut cut = {.pattern = trainer->pattern, .text = document, .n = n}; cut.end < n;) {
    size_t start = cut.end, count = tokenizer_cut(&cut, ends);
    if (2 * (trainer->word_count + count) > trainer->mask) grow_table(trainer);
    // First the place of each, so that the processor fetches many at once: one after the other it would wait for each.
    for (size_t i = 0, at = start; i < count; at = ends[i++]) {
      if (ends[i] - at > INT32_MAX)
        fail(EXIT_REQUEST, "one piece of text of %zu bytes, at most %d can be trained on: split it into documents", ends[i] - at,
             INT32_MAX);
      keys[i] = word_key(trainer->key, document + at, ends[i] - at, n - at);
      __builtin_prefetch(word_place(trainer, &keys[i]));
    }
    for (size_t i = 0, at = start; i < count; at = ends[i++]) count_word(trainer, document + at, ends[i] - at, &keys[i], 1);
  }
}

static void free_trainer(TokenizerTrainer *trainer) {
  buffer_free(&trainer->text);
  free(trainer->slots);
  free(trainer);
}

// A long word's key is a hash made with its trainer's own HashKey, so it is made anew. With one HashKey for all, words would come in the order
// of the places that they go to, and crowd there.
void tokenizer_trainer_take(TokenizerTrainer *to, TokenizerTrainer *from) {
  enum { AHEAD = 16 };
  for (size_t slot = 0; from->word_count > 0 && slot <= from->mask; slot++) {
    const CountedWord *w = &from->slots[slot];
    if (slot + AHEAD <= from->mask) {
      __builtin_prefetch(word_place(to, &w[AHEAD].key));
      __builtin_prefetch(from->text.data + w[AHEAD].start);
    }
    if (w->count == 0) continue;
    const char *word = from->text.data + w->start;
    const size_t n = key_length(w->key);
    const WordKey key = n > KEY_BYTES ? word_key(to->key, word, n, n) : w->key;
    if (2 * (to->word_count + 1) > to->mask) grow_table(to);
    count_word(to, word, n, &key, w->count);
  }
  free_trainer(from);
}

size_t tokenizer_trainer_memory(const TokenizerTrainer *trainer) {
  // Training itself then needs four bytes a byte of distinct words, and the places of pairs: about as much again, twice.
  return trainer->text.cap + (trainer->mask + 1) * sizeof(CountedWord) + 12 * trainer->text.len;
}

// ---- training ----
// Numbers inside: special tokens first, then the bytes in GPT-2's order, then what merges make, as the peer has them; finish() puts
// the special tokens last. Ties between pairs go by these numbers, which both orders leave the same among bytes and merges.

typedef struct { int32_t *symbols; int32_t length; int64_t count; } Word;
typedef struct { uint32_t *words; uint32_t count, capacity; } Places;  // words, each once, that hold a pair

typedef struct {
  uint64_t pair;       // left << 32 | right, or NO_PAIR
  int64_t count;       // how often it occurs now, overlaps counted as often as they can be read
  Places places;       // where it has newly come up in this round
} PairCount;

typedef struct { int64_t count; uint64_t pair; Places places; } Candidate;  // the most frequent first, ties by the smaller pair

typedef struct {
  Word *words;
  size_t word_count;
  PairCount *pairs;          // (pair_mask + 1) open addressing
  size_t pair_mask, pair_count;
  uint64_t *risen;           // pairs that have newly come up in this round
  size_t risen_count, risen_capacity;
  Candidate *heap;
  size_t heap_count, heap_capacity;
  Tokenizer *names;          // the bytes of every number so far
  int32_t *by_bytes;         // (bytes_mask + 1) open addressing: bytes -> number, or -1
  size_t bytes_mask;
  HashKey key;
  Merge *merges;
  size_t merge_count, merge_capacity;
  int32_t specials;          // numbers below are special tokens
} Training;

static size_t pair_place(const Training *tr, uint64_t pair) {
  return pair_hash(tr->key, (int32_t)(pair >> 32), (int32_t)(pair & UINT32_MAX)) & tr->pair_mask;
}

static PairCount *find_pair(Training *tr, uint64_t pair) {
  size_t at = pair_place(tr, pair);
  while (tr->pairs[at].pair != NO_PAIR && tr->pairs[at].pair != pair) at = (at + 1) & tr->pair_mask;
  return &tr->pairs[at];
}

static void resize_pairs(Training *tr, size_t size) {
  PairCount *old = tr->pairs;
  size_t old_size = old ? tr->pair_mask + 1 : 0;
  tr->pair_mask = size - 1;
  tr->pairs = xcalloc(size, sizeof tr->pairs[0]);
  for (size_t i = 0; i < size; i++) tr->pairs[i].pair = NO_PAIR;
  for (size_t i = 0; i < old_size; i++)
    if (old[i].pair != NO_PAIR) *find_pair(tr, old[i].pair) = old[i];
  free(old);
}

// The pair (left, right) of word number `word` occurs `delta` times more (or less) often.
static void change_pair(Training *tr, int32_t left, int32_t right, int64_t delta, uint32_t word) {
  uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
  PairCount *p = find_pair(tr, pair);
  if (p->pair == NO_PAIR) {
    if (2 * ++tr->pair_count > tr->pair_mask) {
      resize_pairs(tr, 2 * (tr->pair_mask + 1));
      p = find_pair(tr, pair);
    }
    p->pair = pair;
  }
  p->count += delta;
  if (delta < 0) return;
  Places *places = &p->places;
  if (places->count == 0) {
    tr->risen = xgrow(tr->risen, tr->risen_count, &tr->risen_capacity, sizeof tr->risen[0]);
    tr->risen[tr->risen_count++] = pair;
  } else if (places->words[places->count - 1] == word) {
    return;  // words come one after the other, so the last entry tells
  }
  size_t capacity = places->capacity;
  places->words = xgrow(places->words, places->count, &capacity, sizeof places->words[0]);
  places->capacity = (uint32_t)capacity;
  places->words[places->count++] = word;
}

static bool goes_before(const Candidate *a, const Candidate *b) {
  return a->count != b->count ? a->count > b->count : a->pair < b->pair;
}

static void heap_add(Training *tr, Candidate c) {
  tr->heap = xgrow(tr->heap, tr->heap_count, &tr->heap_capacity, sizeof tr->heap[0]);
  size_t at = tr->heap_count++;
  for (; at > 0 && goes_before(&c, &tr->heap[(at - 1) / 2]); at = (at - 1) / 2) tr->heap[at] = tr->heap[(at - 1) / 2];
  tr->heap[at] = c;
}

// Puts c at the top in place of what stands there, and restores the order.
static void heap_replace_top(Training *tr, Candidate c) {
  size_t at = 0;
  for (size_t child; (child = 2 * at + 1) < tr->heap_count; at = child) {
    if (child + 1 < tr->heap_count && goes_before(&tr->heap[child + 1], &tr->heap[child])) child++;
    if (!goes_before(&tr->heap[child], &c)) break;
    tr->heap[at] = tr->heap[child];
  }
  tr->heap[at] = c;
}

// Pairs that have come up in this round become candidates, with the places where they have.
static void add_candidates(Training *tr) {
  for (size_t i = 0; i < tr->risen_count; i++) {
    PairCount *p = find_pair(tr, tr->risen[i]);
    if (p->count > 0) heap_add(tr, (Candidate){p->count, p->pair, p->places});
    else free(p->places.words);
    p->places = (Places){0};
  }
  tr->risen_count = 0;
}

// Replaces the pair in one word and counts what that changes. The word's other pairs are counted as the peer does: the
// neighbours on both sides lose the old part and gain the new one, also when the left neighbour is a part just made.
static void merge_in_word(Training *tr, uint32_t number, int32_t left, int32_t right, int32_t made) {
  Word *w = &tr->words[number];
  int32_t *s = w->symbols, kept = 0;  // s[0 .. kept) is done
  for (int32_t i = 0; i < w->length; i++) {
    if (s[i] != left || i + 1 >= w->length || s[i + 1] != right) {
      s[kept++] = s[i];
      continue;
    }
    if (kept > 0) {
      change_pair(tr, s[kept - 1], left, -w->count, number);
      change_pair(tr, s[kept - 1], made, w->count, number);
    }
    i++;
    if (i + 1 < w->length) {
      change_pair(tr, right, s[i + 1], -w->count, number);
      change_pair(tr, made, s[i + 1], w->count, number);
    }
    s[kept++] = made;
  }
  w->length = kept;
}

// Words lie anywhere in memory: those that come next are fetched while one is merged, first where its symbols are, then they.
static void merge_in_words(Training *tr, Places places, int32_t left, int32_t right, int32_t made) {
  enum { AHEAD = 8 };
  for (uint32_t i = 0; i < places.count; i++) {
    if (i + 2 * AHEAD < places.count) __builtin_prefetch(&tr->words[places.words[i + 2 * AHEAD]], 1);
    if (i + AHEAD < places.count) __builtin_prefetch(tr->words[places.words[i + AHEAD]].symbols, 1);
    merge_in_word(tr, places.words[i], left, right, made);
  }
}

static int32_t *bytes_slot(const Training *tr, const char *bytes, size_t n) {
  for (size_t at = hash_bytes(tr->key, bytes, n) & tr->bytes_mask;; at = (at + 1) & tr->bytes_mask) {
    if (tr->by_bytes[at] < 0) return &tr->by_bytes[at];
    size_t length;
    const char *token = tokenizer_token(tr->names, tr->by_bytes[at], &length);
    if (length == n && memcmp(token, bytes, n) == 0) return &tr->by_bytes[at];
  }
}

// Number of the token with these bytes; a new one if there is none yet: two merges may make the same bytes.
static int32_t number_of(Training *tr, const char *bytes, size_t n) {
  int32_t *slot = bytes_slot(tr, bytes, n);
  if (*slot >= 0) return *slot;
  *slot = tr->names->size;
  tokenizer_add_token(tr->names, bytes, n);
  return tr->names->size - 1;
}

static void start_words(Training *tr, const TokenizerTrainer *trainer, int32_t *symbols, int32_t first_byte) {
  int32_t number_of_byte[256];
  for (int i = 0; i < 256; i++) number_of_byte[alphabet_in_order(i)] = first_byte + i;
  tr->words = xmalloc(trainer->word_count, sizeof tr->words[0]);
  for (size_t slot = 0; trainer->word_count > 0 && slot <= trainer->mask; slot++) {
    const CountedWord *from = &trainer->slots[slot];
    if (slot + 16 <= trainer->mask) __builtin_prefetch(trainer->text.data + from[16].start);
    if (from->count == 0) continue;
    Word *w = &tr->words[tr->word_count];
    *w = (Word){symbols + from->start, (int32_t)key_length(from->key), from->count};
    for (int32_t i = 0; i < w->length; i++) w->symbols[i] = number_of_byte[(uint8_t)trainer->text.data[from->start + (size_t)i]];
    for (int32_t i = 0; i + 1 < w->length; i++)
      change_pair(tr, w->symbols[i], w->symbols[i + 1], w->count, (uint32_t)tr->word_count);
    tr->word_count++;
  }
}

static void add_merge(Training *tr, Merge m) {
  tr->merges = xgrow(tr->merges, tr->merge_count, &tr->merge_capacity, sizeof tr->merges[0]);
  tr->merges[tr->merge_count++] = m;
}

// A special token that merges make as well would stand in plain text, where nobody asked for it.
static void refuse_special(const Training *tr, int32_t id) {
  size_t n;
  const char *text = tokenizer_token(tr->names, id, &n);
  fail(EXIT_REQUEST, "--add-special \"%.*s\": the texts hold it so often that merging makes this token too, and it would stand for plain text; take one that they do not hold", (int)n, text);
}

// Merges until the vocabulary is full or no pair is left. A candidate that is not up to date goes back with its count.
static void merge_pairs(Training *tr, int64_t vocab_size) {
  Buffer bytes = {0};
  add_candidates(tr);
  while (tr->names->size < vocab_size && tr->heap_count > 0) {
    Candidate top = tr->heap[0];
    int64_t now = find_pair(tr, top.pair)->count;
    if (top.count != now) {
      top.count = now;
      heap_replace_top(tr, top);
      continue;
    }
    if (now < 1) break;
    Candidate last = tr->heap[--tr->heap_count];
    if (tr->heap_count > 0) heap_replace_top(tr, last);
    int32_t left = (int32_t)(top.pair >> 32), right = (int32_t)(top.pair & UINT32_MAX);
    bytes.len = 0;
    for (int i = 0; i < 2; i++) {
      size_t n;
      const char *part = tokenizer_token(tr->names, i ? right : left, &n);
      buffer_append(&bytes, part, n);
    }
    int32_t made = number_of(tr, bytes.data, bytes.len);
    if (made < tr->specials) refuse_special(tr, made);
    add_merge(tr, (Merge){.left = left, .right = right, .result = made});
    merge_in_words(tr, top.places, left, right, made);
    free(top.places.words);
    add_candidates(tr);
  }
  buffer_free(&bytes);
}

// The Tokenizer of a finished training: special tokens move behind the rest. A pair that was merged twice (it came up again by another
// way to the same bytes) counts once, at its later place, as in the peer's table of merges.
static Tokenizer *to_tokenizer(Training *tr, TokenizerPattern pattern, int32_t specials) {
  Tokenizer *names = tr->names, *t = tokenizer_new(TOKENIZER_BPE, pattern);
  int32_t plain = names->size - specials;
  for (int32_t i = 0; i < names->size; i++) {
    size_t n;
    const char *bytes = tokenizer_token(names, (i + specials) % names->size, &n);
    tokenizer_add_token(t, bytes, n);
    if (i >= plain) tokenizer_add_special(t, i);
  }
  for (size_t i = 0; i < tr->merge_count; i++) {  // the pairs' counts are not needed any more: they take the last place
    const Merge *m = &tr->merges[i];
    find_pair(tr, (uint64_t)(uint32_t)m->left << 32 | (uint32_t)m->right)->count = (int64_t)i;
  }
  for (size_t i = 0; i < tr->merge_count; i++) {
    const Merge *m = &tr->merges[i];
    if (find_pair(tr, (uint64_t)(uint32_t)m->left << 32 | (uint32_t)m->right)->count != (int64_t)i) continue;
    int32_t ids[3] = {m->left, m->right, m->result};
    for (size_t k = 0; k < ARRAY_LEN(ids); k++) ids[k] += ids[k] < specials ? plain : -specials;
    tokenizer_add_merge(t, ids[0], ids[1], ids[2], (int32_t)t->merge_count);
  }
  tokenizer_finish(t);
  return t;
}

// In tokenizer.json special tokens stand beside tokens in the byte alphabet and must not look like one of its letters.
static void check_special(const char *text, const char *const *earlier, size_t earlier_count) {
  size_t n = strlen(text);
  if (n < 2) fail(EXIT_REQUEST, "--add-special \"%s\": %zu bytes, at least 2 are needed", text, n);
  for (size_t at = 0; at < n;) {
    uint32_t code;
    int length = utf8_decode(text + at, n - at, &code);
    if (length == 0) fail(EXIT_REQUEST, "--add-special: byte 0x%02x is not UTF-8", (uint8_t)text[at]);
    if (code < 32 || (code >= 0x7f && code < ALPHABET_END))
      fail(EXIT_REQUEST,
           "--add-special \"%s\": U+%04X cannot be part of a special token: it stands for a byte in tokenizer.json", text, code);
    at += (size_t)length;
  }
  for (size_t i = 0; i < earlier_count; i++)
    if (strcmp(text, earlier[i]) == 0) fail(EXIT_REQUEST, "--add-special \"%s\" is given twice", text);
}

static void free_training(Training *tr) {
  for (size_t i = 0; i < tr->heap_count; i++) free(tr->heap[i].places.words);
  free(tr->heap);
  free(tr->words);
  free(tr->pairs);
  free(tr->risen);
  free(tr->by_bytes);
  free(tr->merges);
  tokenizer_free(tr->names);
}

Tokenizer *tokenizer_trainer_finish(TokenizerTrainer *trainer, int64_t vocab_size, const char *const *specials,
                                    size_t special_count) {
  if (vocab_size < 256 + (int64_t)special_count || vocab_size > INT32_MAX / 4)
    fail(EXIT_REQUEST, "--vocab %lld: the 256 bytes and %zu special tokens need at least %lld entries (at most %d)",
         (long long)vocab_size, special_count,
         256 + (long long)special_count, INT32_MAX / 4);
  Training tr = {.names = tokenizer_new(TOKENIZER_BPE, trainer->pattern), .key = trainer->key};
  // A merge that makes a new token shortens some distinct word, so the distinct words bound the tokens as well as vocab_size does.
  size_t slots = table_size((size_t)MIN(vocab_size, (int64_t)(trainer->text.len + 256 + special_count)));
  tr.bytes_mask = slots - 1;
  tr.by_bytes = xmalloc(slots, sizeof tr.by_bytes[0]);
  memset(tr.by_bytes, 0xff, slots * sizeof tr.by_bytes[0]);
  resize_pairs(&tr, 1 << 16);
  for (size_t i = 0; i < special_count; i++) {
    check_special(specials[i], specials, i);
    number_of(&tr, specials[i], strlen(specials[i]));
  }
  tr.specials = (int32_t)special_count;
  for (int i = 0; i < 256; i++) number_of(&tr, &(char){(char)alphabet_in_order(i)}, 1);
  int32_t *symbols = xmalloc(trainer->text.len, sizeof symbols[0]);
  start_words(&tr, trainer, symbols, (int32_t)special_count);
  merge_pairs(&tr, vocab_size);
  Tokenizer *t = to_tokenizer(&tr, trainer->pattern, (int32_t)special_count);
  free(symbols);
  free_training(&tr);
  free_trainer(trainer);
  return t;
}
