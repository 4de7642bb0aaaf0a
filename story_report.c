// story_report.c: owns the judgement of a model of the embedded stories against their exact entropy. See story_report.h.
#include "story_report.h"
#include "corpus.h"    // corpus_story
#include "sample.h"    // sample_text
#include "stories.h"   // stories_logprob
#include "trigram.h"   // the baseline
#include <math.h>      // sqrt
#include <stdlib.h>    // free
#include <string.h>    // memcmp

enum { SAMPLED = 100 };

typedef struct { Buffer text; size_t *ends; double *log2p; size_t count; } Stories;   // story i ends at ends[i]

static Stories make_stories(bool validation, size_t count) {
  Stories s = {.ends = xmalloc(count, sizeof *s.ends), .log2p = xmalloc(count, sizeof *s.log2p), .count = count};
  for (size_t i = 0; i < count; i++) {
    s.log2p[i] = corpus_story(&s.text, validation, i);
    s.ends[i] = s.text.len;
  }
  return s;
}

static void free_stories(Stories *s) {
  buffer_free(&s->text);
  free(s->ends);
  free(s->log2p);
}

static const char *story_at(const Stories *s, size_t i, size_t *n) {
  size_t begin = i ? s->ends[i - 1] : 0;
  *n = s->ends[i] - begin;
  return s->text.data + begin;
}

static Trigram *fit_trigram(const Stories *s) {
  const char **texts = xmalloc(s->count, sizeof *texts);
  size_t *lengths = xmalloc(s->count, sizeof *lengths);
  for (size_t i = 0; i < s->count; i++) texts[i] = story_at(s, i, &lengths[i]);
  Trigram *t = trigram_fit(texts, lengths, s->count);
  free(texts);
  free(lengths);
  return t;
}

// bits[i] of each validation story under the model: its row begins with the end-of-text token and ends with it.
static void model_bits(Run *r, Gpt *m, double *bits, size_t count) {
  int64_t B = r->gpt.B, T = r->gpt.T;
  size_t rows = (size_t)(B * T);
  int32_t *ids = xcalloc(rows, sizeof *ids), *targets = xmalloc(rows, sizeof *targets);
  double *losses = xmalloc(rows, sizeof *losses);
  MicroBatch place = {.loss_scale = 1};
  for (int64_t i = 0; i < (int64_t)count; i += B) {
    for (int64_t b = 0; b < B; b++) {
      if (i + b < (int64_t)count) dataloader_sequential(r->val, i + b, ids + b * T, targets + b * T);
      else for (int64_t t = 0; t < T; t++) targets[b * T + t] = IGNORED_TARGET;
    }
    gpt_forward(m, ids, targets, &place, WITHOUT_GRADIENT);
    gpt_token_losses(m, losses);
    for (int64_t b = 0; b < B && i + b < (int64_t)count; b++) {
      double nats = 0;
      for (int64_t t = 0; t < T; t++) nats += losses[b * T + t];   // 0 where ignored
      bits[i + b] = nats / 0.69314718055994530942;
    }
  }
  free(ids);
  free(targets);
  free(losses);
}

typedef struct { int legal, legal_new; } Legality;

static Legality sample_stories(Run *r, Gpt *sampler, const Stories *training) {
  Legality result = {0};
  SampleSettings settings = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = (uint64_t)r->o->seed};
  int32_t start = sample_start(r->tokenizer);
  for (uint64_t i = 0; i < SAMPLED; i++) {
    Buffer text = {0};
    double derivations = 0;
    sample_text(sampler, r->tokenizer, &start, 1, r->config.context, &settings, i, &text);
    if (text.data) stories_logprob(text.data, text.len, NULL, &derivations);
    bool known = false;
    for (size_t k = 0, n; derivations > 0 && k < training->count && !known; k++) {
      const char *story = story_at(training, k, &n);
      known = n == text.len && !memcmp(story, text.data, n);
    }
    result.legal += derivations > 0;
    result.legal_new += derivations > 0 && !known;
    buffer_free(&text);
  }
  return result;
}

struct StoryJudge {
  Stories training, validation;
  double floor_bits, trigram_bits;   // sums over the validation stories
};

StoryJudge *story_judge_create(const Run *r) {
  if (!r->stories || !r->documents || !r->val || !r->tokenizer) return NULL;
  StoryJudge *judge = xcalloc(1, sizeof *judge);
  judge->training = make_stories(false, STORIES_TRAIN);
  judge->validation = make_stories(true, STORIES_VALIDATION);
  Trigram *trigram = fit_trigram(&judge->training);
  for (size_t i = 0, n; i < judge->validation.count; i++) {
    const char *story = story_at(&judge->validation, i, &n);
    judge->floor_bits -= judge->validation.log2p[i];
    judge->trigram_bits += trigram_bits(trigram, story, n);
  }
  trigram_free(trigram);
  return judge;
}

void story_judge_free(StoryJudge *judge) {
  if (!judge) return;
  free_stories(&judge->training);
  free_stories(&judge->validation);
  free(judge);
}

void story_judge_print(const StoryJudge *judge) {
  double c = (double)judge->validation.text.len;
  printf("floor     bits per byte of the unseen stories: %.4f the grammar itself, %.4f a word trigram; a model lies between\n", judge->floor_bits / c, judge->trigram_bits / c);
  fflush(stdout);
}

void story_report(const StoryJudge *judge, Run *r, Gpt *model, Gpt *sampler) {
  const Stories *validation = &judge->validation;
  size_t count = validation->count, characters = validation->text.len;
  double *bits = xmalloc(count, sizeof *bits), floor_bits = judge->floor_bits, trigram_sum = judge->trigram_bits, model_sum = 0, spread = 0;
  model_bits(r, model, bits, count);
  for (size_t i = 0; i < count; i++) model_sum += bits[i];
  // standard error of the excess over the floor: the stories' own spread is in both and cancels
  double mean_excess = (model_sum - floor_bits) / (double)count, c = (double)characters;
  for (size_t i = 0; i < count; i++) spread += pow(bits[i] + validation->log2p[i] - mean_excess, 2);
  double error = sqrt(spread / (double)(count - 1) * (double)count) / c;
  double above = 100 * (model_sum / floor_bits - 1), learned = 100 * (trigram_sum - model_sum) / (trigram_sum - floor_bits);
  printf("stories   bits per character over %zu unseen stories: floor %.4f (the grammar itself), word trigram %.4f, model %.4f +- %.4f\n", count, floor_bits / c, trigram_sum / c, model_sum / c, error);
  printf("          the trigram is %.0f%% above the floor, the model %.1f%%: it has learned %.1f%% of the way\n", 100 * (trigram_sum / floor_bits - 1), above, learned);
  fflush(stdout);
  Legality legality = sample_stories(r, sampler, &judge->training);
  printf("          of %d sampled stories %d are legal by the grammar, %d of them not in the training text\n", SAMPLED, legality.legal, legality.legal_new);
  run_log(r, "stories", ", \"floor\": %.9g, \"trigram\": %.9g, \"model\": %.9g, \"standard_error\": %.3g, \"sampled\": %d, \"legal\": %d, \"legal_new\": %d",
          floor_bits / c, trigram_sum / c, model_sum / c, error, SAMPLED, legality.legal, legality.legal_new);
  free(bits);
}
