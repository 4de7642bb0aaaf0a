// story_report.h: what only the embedded stories can say about a model: how far it is above the exact entropy of the text.
// Tests: tests/test_stories.c
#pragma once
#include "train.h"

// The stories trained on, the unseen ones with their exact probabilities, and the word trigram: made before training, so that the
// floor can be said at the start and the memory is there when it is counted. NULL for a run that is not on the embedded stories.
typedef struct StoryJudge StoryJudge;
StoryJudge *story_judge_create(const Run *r);
void story_judge_free(StoryJudge *judge);
// One line: between which two figures the validation's bits per byte will come to lie.
void story_judge_print(const StoryJudge *judge);
// Prints, and logs as "stories": floor, word trigram and model in bits per character over the validation stories with
// standard errors, and how many of 100 sampled stories are legal by the grammar and not in the training text.
void story_report(const StoryJudge *judge, Run *r, Gpt *model, Gpt *sampler);
