// trigram.h: an interpolated word trigram: the baseline that a model of the embedded stories has to beat.
// Tests: tests/test_stories.c
#pragma once
#include "util.h"

typedef struct Trigram Trigram;

// Counts the words of `count` texts; words are letters with the space before them, or single other characters.
Trigram *trigram_fit(const char *const *texts, const size_t *lengths, size_t count);
// -log2 P(text and its end). A probability for every byte string: unseen words are spelled character by character.
double trigram_bits(const Trigram *t, const char *text, size_t n);
void trigram_free(Trigram *t);
