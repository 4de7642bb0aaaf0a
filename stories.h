// stories.h: the embedded default corpus: a small generative grammar of English stories whose entropy is known exactly.
// Tests: tests/test_stories.c
#pragma once
#include "util.h"

// Appends story number `index` of the stream `seed` to out (no trailing newline, no separator) and returns its
// exact probability under the grammar, as log2 (a negative number of bits). A pure function of (seed, index).
double stories_generate(Buffer *out, uint64_t seed, uint64_t index);

// log2 P(the text is a whole story), summed over ALL derivations by a forward pass over the grammar; -INFINITY where
// the grammar cannot produce it. *derivations (may be NULL) = the number of ways it can be derived (1 wherever the parse
// is unique, 0 for an illegal text).
// If next is not NULL, next[i] = log2 P(character i | characters 0..i-1) for i < n, and next[n] = log2 P(end | text):
// their sum equals the return value.
double stories_logprob(const char *text, size_t n, double *next /* (n+1) or NULL */, double *derivations);

bool stories_legal(const char *text, size_t n);   // is a whole story of the grammar
double stories_least_bits(void);
size_t stories_longest(void);                     // in bytes
