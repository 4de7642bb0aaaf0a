// checkpoint.h: saving a run so that it can go on bit for bit, and loading models, ours or others'.
//
// A checkpoint is a folder RUN/step_00001000/:
//   config.json, tokenizer.json, ...   given by the caller; with model.safetensors a model directory for transformers
//   model.safetensors                  every weight as F32, names and shapes of the Hugging Face file
//   trainer.safetensors                moments m/NAME and v/NAME in memory order (out, in), F32, or F64 on a device that
//                                      computes in fp64 (then also master/NAME, the weights themselves); TrainerState
//   manifest.json                      run id, step, size and CRC32C of each file above, CRC32C of its own text
// model.safetensors and trainer.safetensors are a function of the training state alone: no time, path, host or run id.
//
// How the folder is written so that it is whole or absent, and verified: manifest.h. Loading checks every byte against the
// manifest before it gives out any number.
// Tensors pass in bounded pieces: a checkpoint of any size takes about 2 MiB of memory.
// Tests: tests/test_checkpoint.c, tests/test_foreign.c
#pragma once
#include "json.h"         // Json: config.json
#include "manifest.h"     // checkpoint_path, checkpoint_clean, checkpoint_fault
#include "model.h"        // TensorRow, TensorTable, Part
#include "safetensors.h"  // Safetensors: the open files

enum { OUTLIER_WINDOW = 128 };

// All that a run knows besides tensors and settings. Adding a whole number: one line here, one in state_fields of
// checkpoint.c.
typedef struct {
  int64_t step;            // steps done; the checkpoint's number
  int64_t updates;         // of these, the ones that changed the weights: AdamW's t
  int64_t sample_index;    // next sample of the training order
  int64_t tokens_seen;
  uint64_t seed;           // of the run, for whoever reads the file
  int64_t outlier_count;   // values ever entered; the next one goes to outlier_window[outlier_count % OUTLIER_WINDOW]
  double outlier_window[OUTLIER_WINDOW];   // saved to the last bit
} TrainerState;

// values (n) = numbers start .. start+n-1 of one part of a tensor, in memory order (rows, cols), without padding; and
// the other way. part is PART_WEIGHT, PART_M or PART_V. On an fp32 device the doubles are floats, so both are exact.
typedef void (*CheckpointGet)(void *context, Part part, const TensorRow *row, size_t start, size_t n, double *values);
typedef void (*CheckpointPut)(void *context, Part part, const TensorRow *row, size_t start, size_t n, const double *values);

// ---- saving ----
typedef struct { const char *name; const void *data; size_t size; } CheckpointFile;
typedef struct {
  const TensorTable *table;
  bool fp64;                   // the device computes in fp64: moments and weights go to trainer.safetensors as F64
  CheckpointGet get;
  void *context;
  const CheckpointFile *files; // config.json, tokenizer.json and what else transformers wants; file names without folder
  size_t file_count;
  const TrainerState *state;
  const char *run_id;          // 32 hexadecimal digits
} CheckpointSource;

// Publishes RUN/step_<state->step>, then removes all but the `keep` newest whole ones (0: none is removed; the one just
// published never is). A checkpoint of that step that is there already is replaced in one step. Any failure: the
// temporary folder is removed, exit 3, earlier checkpoints are as they were.
void checkpoint_save(const CheckpointSource *source, const char *run_dir, int64_t keep);
void checkpoint_new_run_id(char run_id[33]);      // random
// Exit 3 if another process holds this run folder, else holds it until this process ends.
void checkpoint_lock(const char *run_dir);

// ---- opening: the files stay open, so that a run that goes on pruning cannot take them away ----
typedef struct {
  char *dir;
  bool saved_by_gpt;       // has a manifest, and every byte agreed with it; false: somebody else's model directory
  char run_id[33];         // "" without a manifest
  int64_t step;            // 0 without a manifest
  Json *config;            // config.json; its path for messages is dir/config.json
  Safetensors *model;
  Safetensors *trainer;    // NULL without a manifest
} Checkpoint;

// A checkpoint or a model directory. Damaged, incomplete, sharded: exit 2 with file and numbers; a file that the machine does not
// give (too many are open, permission, an I/O error) says nothing of the checkpoint: exit 3, also of the two below.
Checkpoint *checkpoint_open(const char *dir);
// The newest whole checkpoint of a run; warns about each newer one that is damaged. NULL: the run has none yet. Has some
// but none is whole: exit 2.
Checkpoint *checkpoint_newest(const char *run_dir);
// MODEL of the command line: a model directory, a run folder, one of its checkpoints; NULL: the run folder here (in the
// current directory) with the newest checkpoint. Anything else: exit 2.
Checkpoint *checkpoint_resolve(const char *model);
void checkpoint_close(Checkpoint *c);             // NULL is fine
bool checkpoint_is_name(const char *name);       // in a run folder: a checkpoint, or one that is being written, moved or removed
bool is_run_folder(const char *path);             // has a checkpoint, or a log or settings of a run

// ---- loading ----
// Every weight of the table through put (PART_WEIGHT), from F32, F16, BF16 or F64, with or without the "transformer." or
// "model." prefix. Exit 2: a tensor is missing, has another shape, or the file holds numbers that the model has no place
// for (only known ballast of transformers, the head of a tied model, and tensors of zeros are passed over).
void checkpoint_load_weights(const Checkpoint *c, const TensorTable *table, CheckpointPut put, void *context);
// Whether the state of a run was written by a device that computes in fp64.
bool checkpoint_is_fp64(const Checkpoint *c);
// Moments (PART_M, PART_V) of every trainable tensor and *state; fp64: also PART_WEIGHT, once more, unrounded. Exit 2 if
// the file was written in the other precision, since the run could not go on bit for bit.
void checkpoint_load_trainer(const Checkpoint *c, const TensorTable *table, bool fp64, CheckpointPut put, void *context,
                             TrainerState *state);
