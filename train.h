// train.h: the trainer: train_step() and what it is made of, for train.c, tests and benchmarks. Tests: tests/test_train.c
#pragma once
#include "evaluate.h"   // Score
#include "ranks.h"      // Comm, StepTimes
#include "run.h"        // Run

typedef struct {
  Run *run;
  Comm *comm;                  // to the other ranks; this one takes the micro-batches rank*k .. rank*k+k-1 of each step
  Comm *device_comm;           // the same for arrays of the device: comm itself where its memory is the process's
  CommQueue *queue;            // sums gradients over ranks beside the backward pass
  uint64_t reduced_bytes, gathered_bytes, received_gathering;   // so far: handed to the queue, to be gathered (--zero 1), received of these
  double gathering;            // seconds
  StepTimes times;
  char slow[128];              // "", or which rank holds up the others
  int said_slow;               // the slow rank that was warned of last; -1: none
  Device *device;
  Gpt *model, *sampler;        // the sampler looks at the model's weights
  TrainerState state;
  int32_t *ids, *targets;      // (B,T) of a micro-batch
  double smooth_ms, next_report;
  int timed;                   // steps of this process that smooth_ms has seen
  struct StoryJudge *judge;    // of a run on the embedded stories, else NULL
} Trainer;

typedef struct {
  double loss, grad_norm, lr;
  bool finite;                 // loss and norm
  bool taken;                  // the weights were changed
} StepResult;

StepResult train_step(Trainer *t);
void trainer_join_ranks(Trainer *t);           // from now on gradients are summed over the ranks of t->comm
double learning_rate(const Options *o, int64_t step);               // of the step with this number, from 0
double outlier_limit(const TrainerState *s, double z);              // largest norm that --skip-outliers takes; 0: no limit
AdamWSettings adamw_settings(const Options *o, const TrainerState *s);
void trainer_advance(Trainer *t, const StepResult *result, double limit);
// What happens beside a step that took so long: lines, log, validation, samples, a checkpoint, as they are due; a step that was not taken is explained.
void trainer_after_step(Trainer *t, const StepResult *result, double seconds);
int64_t steps_in(double minutes, double seconds);   // steps of so many seconds, at least 1
int train_command(Options *o);
int plan_command(Options *o);
