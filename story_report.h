// story_report.h: what only the embedded stories can say about a model: how far it is above the exact entropy of the text.
// Tests: tests/test_stories.c
#pragma once
#include "train.h"

// Prints, and logs as "stories": floor, word trigram and model in bits per character over the validation stories with
// standard errors, and how many of 100 sampled stories are legal by the grammar and not in the training text.
void story_report(Run *r, Gpt *model, Gpt *sampler);
