// manifest.h: the folder of a checkpoint as files: its name, its manifest, writing it so that it is whole or absent,
// verifying each of its bytes, removing old ones. Plumbing: knows nothing of tensors (checkpoint.h does).
//
// A folder RUN/step_00001000/ is built as RUN/.tmp-step_00001000/: each file is written and fsynced, manifest.json last;
// the folder is fsynced, renamed, and the run folder fsynced. Whenever the process dies, step_... is whole or absent.
// Tests: tests/test_checkpoint.c
#pragma once
#include "util.h"    // Buffer, Refusal, bool
#include <time.h>    // struct timespec

extern const char *const MANIFEST_FILE;   // "manifest.json"
enum { MANIFEST_MAX_FILES = 32 };
typedef struct { char name[64]; int64_t bytes; uint32_t crc; } ManifestFile;
typedef struct { char run_id[33]; int64_t step; size_t count; ManifestFile files[MANIFEST_MAX_FILES]; } Manifest;

// ---- names ----
char *checkpoint_path(const char *run_dir, int64_t step);       // RUN/step_00001000, freed by the caller
bool checkpoint_parse_step(const char *name, int64_t *step);    // true if name is exactly step_00001000
int64_t *checkpoint_steps(const char *run_dir, size_t *count);  // steps that have a folder, ascending, freed by the caller
// When the newest checkpoint of this folder was finished; false if it has none.
bool checkpoint_newest_time(const char *run_dir, struct timespec *when);
bool folder_has(const char *dir, const char *name);             // anything called dir/name

// ---- writing: any failure removes the temporary folder and ends the process (exit 3) ----
typedef struct {
  const char *run_dir;
  char *final, *temporary;
  Manifest manifest;
  int fd;                        // of the file being written,
  char *path;                    // its name under the temporary folder,
  ManifestFile *file;            // and what the manifest will say of it
  void (*size_signal)(int);      // what SIGXFSZ did before
} FolderWriter;

void folder_begin(FolderWriter *w, const char *run_dir, int64_t step, const char *run_id);
void folder_file_begin(FolderWriter *w, const char *name);
void folder_write(FolderWriter *w, const void *data, size_t n);
void folder_file_end(FolderWriter *w);
// Writes the manifest and publishes. A folder of that step that is there already is replaced in one step. w ends here.
void folder_publish(FolderWriter *w);

// Removes what a killed save left behind. folder_begin() calls it; a run calls it when it starts.
void checkpoint_clean(const char *run_dir);
// Removes all but the `keep` newest that look whole (manifest and sizes). Never the step `published`, which is whole
// because it was just written. What cannot be removed is warned about.
void checkpoint_prune(const char *run_dir, int64_t published, int64_t keep);

// ---- reading: a false or -1 comes with one line, file and numbers in it, appended to why, and says whether the machine is to blame ----
bool manifest_read(const char *dir, Manifest *m, Refusal *why);  // the manifest's own CRC32C is right, and its fields
const ManifestFile *manifest_find(const Manifest *m, const char *name);
bool manifest_sizes_agree(const char *dir, const Manifest *m, Refusal *why);
// Opens a file of the manifest after reading every byte of it: size and CRC32C agree.
int manifest_open(const char *dir, const ManifestFile *file, Refusal *why);
// The whole of a small text file of a model directory.
bool folder_read_text(const char *dir, const char *name, Buffer *out, Refusal *why);
// Appends a line to why; false, so that a caller can return it at once. The file is wrong.
bool refuse_file(Refusal *why, const char *fmt, ...) PRINTF_LIKE(2, 3);

// ---- for tests ----
// NULL, or called before each system call of a save with its name ("mkdir", "open", "write", "fsync", "close", "rename",
// "exchange", "remove") and path: 0 lets it happen, an errno makes it fail with that, and a test may kill the process.
extern int (*checkpoint_fault)(const char *call, const char *path);
