// train.c: owns train_step() and the training loop: the first file to open.
//
// One step: batch, forward, loss, backward, reduce, clip, update. Everything before the loop (flags, text, tokens, folder) is
// run.c; how an operation is done is behind device.h, what ranks say to each other behind comm.h. Every rank runs this code; only
// rank 0 prints, validates and writes. Tests: tests/test_train.c, tests/test_ranks.sh
#include "detmath.h"   // det_cos, det_pow
#include "evaluate.h"  // evaluate_loader
#include "load.h"      // device_open, require_memory
#include "machine.h"   // machine_resident
#include "manifest.h"  // checkpoint_steps
#include "ranks.h"     // ranks_start, ranks_agree
#include "report.h"    // report_write
#include "run.h"       // Run
#include "sample.h"    // sample_text
#include "stories.h"   // the embedded corpus
#include "story_report.h"  // floor, trigram, legality
#include "train.h"     // learning_rate, StepResult
#include "watch.h"     // --trace, the re-run of a bad step
#include <math.h>      // isfinite
#include <signal.h>    // SIGINT
#include <stdlib.h>    // free
#include <string.h>    // strcmp

static double milliseconds(double seconds) { return 1e3 * seconds; }

static double phase_ends(Trainer *t, int phase, double start) {
  double now = seconds_now();
  t->times.own[phase] += now - start;
  return now;
}

// Forward and backward of this rank's micro-batches of the step: loss and gradients = their sums. Returns the scale of the loss, one
// over the counted targets of the whole step (each row holds one at least), so that the result does not depend on how the step is cut.
static double accumulate_gradients(Trainer *t, int64_t step, int64_t first_sample) {
  Run *r = t->run;
  MicroBatch place = {.seed = (uint64_t)r->o->seed, .step = (uint32_t)step};
  place.loss_scale = 1 / (double)dataloader_counted(r->train, first_sample, r->sequences);
  gpt_begin_step(t->model);
  for (int64_t k = 0; k < r->micro_batches; k++) {
    double start = seconds_now();
    int64_t row = (t->comm->rank * r->micro_batches + k) * r->gpt.B;    // within the step, over all ranks
    for (int64_t b = 0; b < r->gpt.B; b++)
      dataloader_sample(r->train, first_sample + row + b, t->ids + b * r->gpt.T, t->targets + b * r->gpt.T);
    place.row0 = (uint64_t)(row * r->gpt.T);
    place.last = k == r->micro_batches - 1;
    start = phase_ends(t, PHASE_DATA, start);
    gpt_forward(t->model, t->ids, t->targets, &place, WITH_GRADIENT);
    start = phase_ends(t, PHASE_FORWARD, start);
    gpt_backward(t->model, &place);                                     // and hands over each block of the last micro-batch
    phase_ends(t, PHASE_BACKWARD, start);
  }
  return place.loss_scale;
}

// --overfit-batch: the first batch again and again
static int64_t first_sample(const Trainer *t, int64_t step) { return t->run->o->overfit_batch ? 0 : step * t->run->sequences; }

// One optimizer step. The loss is the mean over the step's targets in nats, the norm is taken before clipping.
StepResult train_step(Trainer *t) {
  const TrainerState *s = &t->state;
  AdamWSettings settings = adamw_settings(t->run->o, s);
  double loss_scale = accumulate_gradients(t, s->step, first_sample(t, s->step));        // gradients = 0; batch, forward, loss, backward
  gpt_finish_gradients(t->model);                                                        // the sum over ranks, global norm
  double start = seconds_now();
  gpt_update(t->model, &settings, t->run->o->weight_decay);                              // clip and update, if all is finite
  phase_ends(t, PHASE_UPDATE, start);
  StepResult result = {.loss = gpt_loss_sum(t->model) * loss_scale, .grad_norm = gpt_grad_norm(t->model), .lr = settings.lr};
  result.finite = isfinite(result.loss) && isfinite(result.grad_norm);
  result.taken = result.finite && !(settings.max_norm > 0 && result.grad_norm > settings.max_norm);
  trainer_advance(t, &result, settings.max_norm);
  return result;
}

// ---- the sum over ranks, beside the backward pass ----

static CommType type_of_size(size_t size) { return size == sizeof(double) ? COMM_F64 : size == sizeof(float) ? COMM_F32 : COMM_16; }

// What a transport reads itself must be there; one that is the device's own follows its operations.
static void wait_for_arrays(Trainer *t) { if (!t->device_comm->begin) t->device->sync(t->device); }

static void reduce_gradients(void *context, acc *x, size_t n) {
  Trainer *t = context;
  t->reduced_bytes += n * t->device->acc_size;
  wait_for_arrays(t);
  comm_queue_add(t->queue, t->run->gpt.shards > 1 ? CALL_REDUCE_SCATTER : CALL_ALL_REDUCE, x, n, type_of_size(t->device->acc_size));
}

static void reduce_scalars(void *context, scalar *x, size_t n) {
  Trainer *t = context;
  t->reduced_bytes += n * sizeof(double) * (t->run->gpt.shards > 1 ? 2 : 1);    // an all-reduce is both halves
  wait_for_arrays(t);
  comm_queue_add(t->queue, CALL_ALL_REDUCE, x, n, COMM_F64);
}

// --zero 1: what each rank has updated goes to all. After the queue's work, so that this thread may call itself.
static void gather(void *context, void *x, size_t n, size_t size) {
  Trainer *t = context;
  double start = seconds_now();
  uint64_t before = t->device_comm->bytes_received;
  wait_for_arrays(t);
  t->device_comm->all_gather(t->device_comm, x, n, type_of_size(size));
  t->gathered_bytes += n * size;
  t->received_gathering += t->device_comm->bytes_received - before;
  t->gathering += seconds_now() - start;
}

static void reduce_wait(void *context) {
  Trainer *t = context;
  double start = seconds_now();
  t->device->sync(t->device);       // what is waited for from here on is the ranks, not a GPU that is still busy with the backward pass
  phase_ends(t, PHASE_BACKWARD, start);
  comm_queue_wait(t->queue);
}

static void set_reducer(Trainer *t) {
  Reducer reducer = {reduce_gradients, reduce_scalars, reduce_wait, gather, t};
  gpt_set_reducer(t->model, t->queue ? &reducer : NULL);
}

void trainer_join_ranks(Trainer *t) {
  t->device_comm = comm_nccl_join(t->comm, t->device);
  if (t->comm->world > 1) t->queue = comm_queue_create(t->device_comm);
  set_reducer(t);
}

// ---- settings of a step ----

// Linear warm-up, then the schedule's shape down to min_lr, reached at the last step. wsd: Hu et al. 2024 (MiniCPM).
double learning_rate(const Options *o, int64_t step) {
  double lr = o->lr, low = o->min_lr;
  if (step < o->warmup) return lr * (double)(step + 1) / (double)o->warmup;
  if (o->schedule == SCHEDULE_CONSTANT) return lr;
  int64_t start = o->schedule == SCHEDULE_WSD ? MAX(o->steps - o->decay, o->warmup) : o->warmup;
  int64_t length = o->steps - 1 - start;
  if (step < start) return lr;
  double done = length > 0 ? MIN(1.0, (double)(step - start) / (double)length) : 1;
  if (o->schedule == SCHEDULE_COSINE) return low + 0.5 * (lr - low) * (1 + det_cos(3.14159265358979323846 * done));
  return lr * (1 - done) + low * done;   // exact at both ends
}

enum { OUTLIER_LEAST = 16 };   // fewer norms say nothing about their spread

// Mean + Z deviations of the norms in the window; 0: no limit (yet).
double outlier_limit(const TrainerState *s, double z) {
  int64_t n = MIN(s->outlier_count, OUTLIER_WINDOW);
  if (z <= 0 || n < OUTLIER_LEAST) return 0;
  double mean = 0, variance = 0;
  for (int64_t i = 0; i < n; i++) mean += s->outlier_window[i];
  mean /= (double)n;
  for (int64_t i = 0; i < n; i++) variance += (s->outlier_window[i] - mean) * (s->outlier_window[i] - mean);
  return mean + z * sqrt(variance / (double)n);
}

AdamWSettings adamw_settings(const Options *o, const TrainerState *s) {
  double t = (double)(s->updates + 1);
  return (AdamWSettings){.lr = learning_rate(o, s->step), .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->eps,
                         .bias1 = 1 - det_pow(o->beta1, t), .bias2 = 1 - det_pow(o->beta2, t),
                         .grad_clip = o->grad_clip, .max_norm = outlier_limit(s, o->skip_outliers), .seed = (uint64_t)o->seed, .step = (uint32_t)s->step};
}

// The state after a step. A norm over the limit enters the window as the limit: a NaN never enters, and a lasting change of
// scale is learned instead of being dropped for ever.
void trainer_advance(Trainer *t, const StepResult *result, double limit) {
  TrainerState *s = &t->state;
  if (isfinite(result->grad_norm)) {
    double norm = limit > 0 ? MIN(result->grad_norm, limit) : result->grad_norm;
    s->outlier_window[s->outlier_count++ % OUTLIER_WINDOW] = norm;
  }
  s->step++;
  s->updates += result->taken;
  s->sample_index = s->step * t->run->sequences;
  s->tokens_seen += t->run->sequences * t->run->gpt.T;
}

// ---- a step whose loss or gradient is not finite ----

// Runs the step's forward and backward again with a check after every operation; the weights are as they were. Each rank
// looks at its own part; the lowest that finds something is heard by all.
static const char *explain_nonfinite(Trainer *t, int64_t step) {
  static char why[256];
  Device *plain = gpt_device(t->model), *watched = watch_device(plain, t->model, WATCH_CHECK);
  gpt_set_device(t->model, watched);
  gpt_set_reducer(t->model, NULL);       // a bad number shall not come from another rank
  accumulate_gradients(t, step, first_sample(t, step));
  const char *finding = watch_finding(watched);
  snprintf(why, sizeof why, "%s", finding ? finding : "");
  ranks_first_text(t->comm, why);
  if (!why[0]) snprintf(why, sizeof why, "every tensor is finite, but the sum of squares of the gradients overflows");
  set_reducer(t);
  gpt_set_device(t->model, plain);
  watch_destroy(watched);
  return why;
}

static void handle_bad_step(Trainer *t, const StepResult *result) {
  Run *r = t->run;
  int64_t step = t->state.step;    // steps are named from 1: the step just done
  const char *why = result->finite ? NULL : explain_nonfinite(t, step - 1);
  if (t->comm->rank > 0) {         // rank 0 says it
    if (!result->finite && r->o->on_nonfinite == NONFINITE_STOP) t->comm->barrier(t->comm);   // does not return: rank 0 ends the run
    return;
  }
  if (result->finite) {
    run_log(r, "warn", ", \"step\": %lld, \"what\": \"outlier\", \"grad_norm\": %.9g", (long long)step, result->grad_norm);
    warn("step %lld: gradient norm %.4g lies over --skip-outliers %g deviations: the step was dropped", (long long)step, result->grad_norm, r->o->skip_outliers);
    return;
  }
  run_log(r, "warn", ", \"step\": %lld, \"what\": \"nonfinite\", \"where\": \"%s\"", (long long)step, why);
  if (r->o->on_nonfinite == NONFINITE_STOP) {
    fflush(r->log);
    size_t saved;
    free(checkpoint_steps(r->dir, &saved));
    char *intact = saved ? format("earlier checkpoints in %s are intact", r->dir) : xstrdup("nothing was saved yet");
    fail(EXIT_NO, "step %lld: %s; the weights are as before this step, %s; try a lower --lr, or --on-nonfinite skip", (long long)step, why, intact);
  }
  warn("step %lld: %s: the step was dropped", (long long)step, why);
}

// ---- what happens beside the steps ----

// printf shows the sign of a NaN, which means nothing and differs from one processor to another.
static double without_sign(double x) { return isnan(x) ? (double)NAN : x; }

static void print_step(const Trainer *t, const StepResult *s, double ms, double tokens_per_s) {
  const Options *o = t->run->o;
  double flops = config_flops_per_token(&t->run->config, t->run->gpt.T) * tokens_per_s, peak = t->device->peak_flops * t->comm->world;
  int64_t left = (int64_t)((double)(o->steps - t->state.step) * ms * 1e-3);   // seconds
  char share[32] = "";
  if (peak > 0) snprintf(share, sizeof share, "  %.0f%% of peak", 100 * flops / peak);
  printf("step %6lld/%lld  loss %.4f  lr %.2e  norm %.2f  %.1f ms  %.1fk tok/s%s  eta %lld:%02lld\n", (long long)t->state.step, (long long)o->steps,
         without_sign(s->loss), s->lr, without_sign(s->grad_norm), ms, tokens_per_s * 1e-3, share, (long long)left / 60, (long long)left % 60);
  fflush(stdout);
}

// False: a signal has ended it, and nothing is said.
static bool validate_and_log(Trainer *t, int64_t most_tokens) {
  Run *r = t->run;
  if (!r->val) return true;
  Score score = evaluate_loader(t->model, r->val, r->token_bytes, most_tokens, ranks_signal);
  if (score.stopped) return false;
  double loss = score_loss(&score), bits = score_bits_per_byte(&score);
  printf("eval %6lld/%lld  val %.4f  bpb %.4f\n", (long long)t->state.step, (long long)r->o->steps, without_sign(loss), without_sign(bits));
  fflush(stdout);
  run_log(r, "eval", ", \"step\": %lld, \"val_loss\": %s, \"bits_per_byte\": %s, \"tokens\": %lld", (long long)t->state.step,
          run_number(loss).text, run_number(bits).text, (long long)score.tokens);
  return true;
}

static void sample_and_log(Trainer *t) {
  Run *r = t->run;
  if (!r->tokenizer) return;
  Buffer text = {0}, json = {0};
  SampleSettings settings = {.temperature = 0.8, .top_p = 1, .repetition_penalty = 1, .seed = (uint64_t)r->o->seed};
  int32_t start = sample_start(r->tokenizer);
  sample_text(t->sampler, r->tokenizer, &start, 1, MIN(r->config.context, 200), &settings, (uint64_t)t->state.step, &text);
  json_write_string(&json, text.data ? text.data : "", text.len);
  printf("--- sample at step %lld ---\n", (long long)t->state.step);
  if (text.len) fwrite(text.data, 1, text.len, stdout);
  printf("\n---\n");
  fflush(stdout);
  run_log(r, "sample", ", \"step\": %lld, \"text\": %s", (long long)t->state.step, json.data);
  buffer_free(&text);
  buffer_free(&json);
}

// Norm and largest absolute value of every weight and gradient, to the log.
static void log_tensors(Trainer *t) {
  enum { PIECE = 1 << 16 };
  const TensorTable *table = gpt_table(t->model);
  double *values = xmalloc(PIECE, sizeof *values);
  for (size_t i = 0; i < table->count; i++) {
    const TensorRow *row = &table->rows[i];
    double sum[2] = {0}, most[2] = {0};
    for (int part = 0; part < 2; part++)
      for (size_t first = 0, n; first < tensor_values(row); first += n) {
        n = MIN((size_t)PIECE, tensor_values(row) - first);
        gpt_read(t->model, part ? PART_GRADIENT : PART_WEIGHT, row, first, n, values);
        for (size_t j = 0; j < n; j++) { sum[part] += values[j] * values[j]; most[part] = MAX(most[part], fabs(values[j])); }
      }
    if (!row->size) continue;
    run_log(t->run, "tensor", ", \"step\": %lld, \"name\": \"%s\", \"weight_norm\": %s, \"weight_max\": %s, \"grad_norm\": %s, \"grad_max\": %s",
            (long long)t->state.step, row->name, run_number(sqrt(sum[0])).text, run_number(most[0]).text,
            run_number(sqrt(sum[1])).text, run_number(most[1]).text);
  }
  free(values);
}

static bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

// A slow rank is said once, and again only when it is another one; the log has it every time.
static void name_slow_rank(Trainer *t) {
  if (!t->slow[0]) return;
  run_log(t->run, "warn", ", \"step\": %lld, \"what\": \"slow rank\", \"text\": \"%s\"", (long long)t->state.step, t->slow);
  if (t->times.slow_rank != t->said_slow) warn("step %lld: %s", (long long)t->state.step, t->slow);
  t->said_slow = t->times.slow_rank;
}

// A checkpoint, written by rank 0. The others give what they alone have, in the order in which it is written.
static void save(Trainer *t) {
  if (t->comm->rank == 0) { run_save(t->run, t->model, &t->state); return; }
  const double deadline = t->comm->deadline;
  t->comm->deadline = INFINITY;      // rank 0 is writing in between: its heart says that it lives
  gpt_gather(t->model, PART_WEIGHT);
  gpt_gather(t->model, PART_M);
  gpt_gather(t->model, PART_V);
  t->comm->deadline = deadline;
}

static bool work_aside(const Trainer *t) {
  const Options *o = t->run->o;
  int64_t step = t->state.step;
  return step != o->steps && (due(step, o->val_every) || due(step, o->sample_every) || due(step, o->save_every));
}

enum { REPORT_EVERY = 5 };    // seconds

// All of the log is read each time: where it is long, that takes at most a twentieth of the run.
static void write_report(Trainer *t) {
  double start = seconds_now();
  report_write_run(t->run->dir);
  double end = seconds_now();
  t->next_report = end + MAX((double)REPORT_EVERY, 20 * (end - start));
}

// Of rank 0 alone.
static void report_step(Trainer *t, const StepResult *result, double seconds) {
  Run *r = t->run;
  const Options *o = r->o;
  int64_t step = t->state.step, tokens = r->sequences * r->gpt.T;
  double ms = milliseconds(seconds), rate = (double)tokens / seconds;
  run_log(r, "step", ", \"step\": %lld, \"loss\": %s, \"lr\": %.9g, \"grad_norm\": %s, \"ms\": %.3f, \"tokens\": %lld, \"tokens_per_s\": %.1f",
          (long long)step, run_number(result->loss).text, result->lr, run_number(result->grad_norm).text, ms, (long long)t->state.tokens_seen, rate);
  // The smoothed step time is for the eye only: the estimate of the time left should not jump. The first step, which touches all memory for the
  // first time, is shown but not kept; the mean of those after it becomes a moving one.
  t->timed++;
  t->smooth_ms += (t->timed <= 2 ? 1 : MAX(0.1, 1.0 / (t->timed - 1))) * (ms - t->smooth_ms);
  if (due(step, o->log_every) || step == o->steps || step == 1) print_step(t, result, t->smooth_ms, 1e3 * (double)tokens / t->smooth_ms);
  name_slow_rank(t);
}

void trainer_after_step(Trainer *t, const StepResult *result, double seconds) {
  Run *r = t->run;
  const Options *o = r->o;
  int64_t step = t->state.step;
  bool writes = t->comm->rank == 0, aside = work_aside(t);
  if (writes) report_step(t, result, seconds);
  if (!result->taken) handle_bad_step(t, result);
  if (due(step, o->log_tensors)) {
    gpt_gather(t->model, PART_WEIGHT);
    gpt_gather(t->model, PART_GRADIENT);
    if (writes) log_tensors(t);
  }
  if (writes && aside && due(step, o->val_every)) validate_and_log(t, o->val_tokens);
  if (writes && aside && due(step, o->sample_every)) sample_and_log(t);
  if (aside && due(step, o->save_every)) save(t);
  if (aside) ranks_wait_for_rank_0(t->comm);
  if (writes && seconds_now() > t->next_report) write_report(t);
}

// Of a kind that gpt_memory counts in every model that is trained.
static size_t bytes_of(const MemoryTable *memory, const char *kind) {
  const MemoryLine *line = memory->line;
  while (strcmp(line->kind, kind)) line++;
  return line->bytes;
}

static size_t optimizer_bytes(const Trainer *t, int shards) {
  MemoryTable memory;
  GptOptions o = t->run->gpt;
  o.shards = shards;
  gpt_memory(&memory, t->device, &o);
  return bytes_of(&memory, "optimizer");
}

// The ring's formula: 2 (N-1)/N S bytes in and as many out for a sum of S bytes over N ranks (Patarasuk & Yuan 2009).
static void print_communication(Trainer *t) {
  if (t->comm->world == 1) return;
  CommQueueTimes times = comm_queue_times(t->queue);
  bool zero = t->run->gpt.shards > 1;
  double n = t->comm->world, formula = (n - 1) / n * (double)(zero ? t->reduced_bytes + t->gathered_bytes : 2 * t->reduced_bytes);
  double busy = times.busy + t->gathering, waited = times.waited + t->gathering, hidden = MAX(1 - waited / busy, 0.0);
  printf("comm      %s over %d ranks (%s): %llu bytes received in %llu calls; 2 (N-1)/N S is %.0f; %.2f ms in calls, %.2f ms waited for: %.0f%% hidden\n",
         zero ? "reduce_scatter and all_gather" : "all_reduce", t->comm->world, t->device_comm->transport, (unsigned long long)(times.bytes + t->received_gathering),
         (unsigned long long)times.calls + (zero ? (unsigned long long)t->run->config.layers + 2 : 0), formula, milliseconds(busy), milliseconds(waited), 100 * hidden);
  if (zero) printf("zero      optimizer state: %zu bytes on this rank, %zu in all\n", optimizer_bytes(t, t->run->gpt.shards), optimizer_bytes(t, 0));
}

// The first step under --trace: the same step on a device that times each operation.
static StepResult traced_step(Trainer *t) {
  Device *plain = gpt_device(t->model), *watched = watch_device(plain, t->model, WATCH_TRACE);
  gpt_set_device(t->model, watched);
  double start = seconds_now();
  StepResult result = train_step(t);
  if (t->comm->rank == 0) {
    watch_print(watched, stdout, seconds_now() - start);
    print_communication(t);
  }
  gpt_set_device(t->model, plain);
  watch_destroy(watched);
  return result;
}

// What is saved stays. The exit code.
static int leave_on_signal(Trainer *t, int signal) {
  if (t->comm->rank > 0) return 128 + signal;
  run_log(t->run, "end", ", \"step\": %lld, \"reason\": \"%s\"", (long long)t->state.step, signal == SIGINT ? "SIGINT" : "SIGTERM");
  report_write_run(t->run->dir);
  printf("stopped after step %lld; go on with: gpt train --resume %s\n", (long long)t->state.step, t->run->dir);
  return 128 + signal;
}

static int finish(Trainer *t) {
  save(t);                                 // first of all: nothing below may cost a trained model
  if (t->comm->rank > 0) return 0;
  // All of the split, which may take hours. Resumed, the finished run begins with it.
  if (!validate_and_log(t, 0)) return leave_on_signal(t, ranks_signal());
  sample_and_log(t);
  if (t->judge) story_report(t->judge, t->run, t->model, t->sampler);
  run_log(t->run, "end", ", \"step\": %lld, \"reason\": \"done\"", (long long)t->state.step);
  report_write_run(t->run->dir);
  printf("done: %s has checkpoints, log.jsonl and report.html; try: gpt sample %s\n", t->run->dir, t->run->dir);
  return 0;
}

static int train_loop(Trainer *t) {
  const Options *o = t->run->o;
  for (bool first = true; t->state.step < o->steps; first = false) {
    double start = seconds_now();
    t->comm->step = t->state.step + 1;
    StepResult result = first && o->trace ? traced_step(t) : train_step(t);
    int stop = ranks_agree(t->comm, &t->times, t->slow);
    trainer_after_step(t, &result, seconds_now() - start);
    if (!stop) continue;
    save(t);
    return leave_on_signal(t, stop);
  }
  return finish(t);
}

// ---- gpt train ----

int64_t steps_in(double minutes, double seconds) { return (int64_t)MAX(1, minutes * 60 / seconds); }

// --minutes: the first step's gradients without an update, three times; the fastest counts.
static void steps_from_minutes(Trainer *t) {
  Run *r = t->run;
  if (r->o->minutes == AUTO_REAL || r->resumed) return;
  double best = INFINITY;
  for (int i = 0; i < 3; i++) {
    double start = seconds_now();
    accumulate_gradients(t, 0, 0);
    gpt_finish_gradients(t->model);
    gpt_loss_sum(t->model);
    best = MIN(best, seconds_now() - start);
  }
  r->o->steps = MIN(steps_in(r->o->minutes, best), (int64_t)UINT32_MAX);
  t->comm->broadcast(t->comm, &r->o->steps, sizeof r->o->steps, 0);    // each rank has its own clock
  run_resolve_intervals(r);
  printf("minutes   %g at %.1f ms a step: %lld steps\n", r->o->minutes, milliseconds(best), (long long)r->o->steps);
}

static void load_weights(Trainer *t) {
  Run *r = t->run;
  t->state.seed = (uint64_t)r->o->seed;
  if (!r->init) { gpt_init(t->model, (uint64_t)r->o->seed); return; }
  checkpoint_load_weights(r->init, gpt_table(t->model), checkpoint_put_gpt, t->model);
  if (r->continues) checkpoint_load_trainer(r->init, gpt_table(t->model), t->device->acc_size == sizeof(double), checkpoint_put_gpt, t->model, &t->state);
  gpt_refresh(t->model);
}

// The flag that shrinks what is largest: numbers kept for each parameter, or for each token of a micro-batch.
static const char *memory_advice(const MemoryTable *memory) {
  size_t parameters = bytes_of(memory, "weights") + bytes_of(memory, "gradients") + bytes_of(memory, "optimizer");
  return parameters > memory->total / 2 ? "use a smaller model: fewer --layers or --channels, or another --model"
                                        : "use a smaller --batch (with the same --tokens-per-step) or --context, or --recompute block";
}

static void memory_json(const MemoryTable *memory, size_t resident, Buffer *out) {
  buffer_printf(out, "{");
  for (size_t i = 0; i < memory->count; i++) buffer_printf(out, "\"%s\": %zu, ", memory->line[i].kind, memory->line[i].bytes);
  buffer_printf(out, "\"program and tokens\": %zu}", resident);
}

// The banner's figures for programs. seconds: none, for speed is measured by gpt bench and never guessed here.
static void print_plan_json(const Run *r, size_t memory_bytes) {
  const Options *o = r->o;
  TensorTable table;
  tensor_table_build(&table, &r->config, 1);
  double tokens = (double)o->steps * (double)o->tokens_per_step;
  printf("{\"parameters\": %lld, ", (long long)table.parameters);
  if (o->minutes != AUTO_REAL) printf("\"steps\": null, \"tokens_per_step\": %lld, \"tokens\": null, \"flop\": null", (long long)o->tokens_per_step);   // such a run begins with a measurement
  else printf("\"steps\": %lld, \"tokens_per_step\": %lld, \"tokens\": %.0f, \"flop\": %.9g", (long long)o->steps, (long long)o->tokens_per_step, tokens, tokens * config_flops_per_token(&r->config, o->context));
  printf(", \"memory_bytes\": %zu, \"memory\": %s}\n", memory_bytes, r->memory.data);
  tensor_table_free(&table);
}

// Counts, prints and refuses before the first allocation; only_plan stops there.
static void create_models(Trainer *t, bool only_plan) {
  Run *r = t->run;
  MemoryTable memory, sampling;
  GptOptions sampler = {.config = r->config, .purpose = PURPOSE_SAMPLE, .B = 1, .T = 1, .shares_weights = true};
  gpt_memory(&memory, t->device, &r->gpt);
  gpt_memory(&sampling, t->device, &sampler);
  memory.line[memory.count++] = (MemoryLine){"sampling during training", sampling.total};
  memory.total += sampling.total;
  size_t scratch = MAX(gpt_scratch(t->device, &r->gpt), gpt_scratch(t->device, &sampler));
  memory.line[memory.count++] = (MemoryLine){"scratch of the device", scratch};
  memory.total += scratch;
  const size_t resident = machine_resident();   // the program, the text and its tokens
  run_print_banner(r, t->device, &memory, resident);
  memory_json(&memory, resident, &r->memory);
  if (t->judge) story_judge_print(t->judge);
  size_t others;                                            // what the other ranks of this machine need
  const int sharing = t->device->memory_available ? 1 : ranks_here(r->o);      // each rank has a GPU of its own
  if (!mul_size(memory.total, (size_t)(sharing - 1), &others)) others = SIZE_MAX;
  require_memory(t->device, &memory, others, sharing > 1 ? "use fewer --ranks, a smaller model, or a smaller --batch with the same --tokens-per-step" : memory_advice(&memory));
  if (only_plan && r->o->json) print_plan_json(r, memory.total + resident);
  if (only_plan) return;
  t->model = gpt_create(t->device, &r->gpt);
  sampler.weights_of = t->model;
  t->sampler = gpt_create(t->device, &sampler);
}

static void trainer_free(Trainer *t) {
  comm_queue_destroy(t->queue);
  if (t->device_comm && t->device_comm != t->comm) t->device_comm->destroy(t->device_comm);
  t->comm->destroy(t->comm);
  gpt_destroy(t->sampler);
  gpt_destroy(t->model);
  t->device->destroy(t->device);
  free(t->ids);
  free(t->targets);
  story_judge_free(t->judge);
  run_free(t->run);
}

// A run goes on bit for bit only in the precision that it began with.
static void check_resumed_device(const Trainer *t) {
  const Run *r = t->run;
  if (!r->continues) return;
  bool stored = checkpoint_is_fp64(r->init), here = t->device->acc_size == sizeof(double);
  if (stored != here)
    fail(EXIT_REQUEST, "--device %s computes in %s, this run began in %s and goes on in that only: give --device %s, or start a new run with --init %s",
         t->device->name, here ? "fp64" : "fp32", stored ? "fp64" : "fp32", stored ? "reference" : "cpu", r->dir);
}

// What flags and text decide is done before the ranks part: once, with one voice, and its memory is shared.
static int train_or_plan(Options *o, bool only_plan) {
  uint8_t agreed[32];
  ranks_place(o);
  Trainer t = {.run = run_prepare(o), .said_slow = -1};
  t.judge = story_judge_create(t.run);
  run_agreement(t.run, agreed);
  t.comm = ranks_start(o, only_plan ? 1 : (int)o->ranks, agreed);
  t.run->gpt.shard_rank = t.comm->rank;
  t.device = device_open(o, ranks_gpu(o, t.comm));
  check_resumed_device(&t);
  create_models(&t, only_plan);
  if (only_plan) { trainer_free(&t); return 0; }
  size_t rows = (size_t)(t.run->gpt.B * t.run->gpt.T);
  t.ids = xmalloc(rows, sizeof *t.ids);
  t.targets = xmalloc(rows, sizeof *t.targets);
  load_weights(&t);
  trainer_join_ranks(&t);
  steps_from_minutes(&t);
  if (t.comm->rank == 0) run_create_folder(t.run, t.device->description, t.state.step);
  ranks_share_folder(t.comm, t.run->dir);
  ranks_catch_signals(t.comm);
  t.next_report = seconds_now() + REPORT_EVERY;
  int code = train_loop(&t);
  trainer_free(&t);
  return code;
}

int train_command(Options *o) { return train_or_plan(o, o->dry_run); }
int plan_command(Options *o) { return train_or_plan(o, true); }
