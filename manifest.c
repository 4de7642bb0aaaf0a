// manifest.c: owns the files of a checkpoint: names, manifest, atomic publishing, verification, pruning. See manifest.h.
//
// Promises: at any instant the newest published folder is whole; a flipped, missing or added byte in any listed file or
// in the manifest is found; no file makes the reader crash.
// Tests: tests/test_checkpoint.c kills a save before each of its system calls and flips each byte of each file.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE       // renameat2, RENAME_EXCHANGE
#endif
#include "manifest.h"
#include "json.h"         // json_parse
#include <errno.h>        // errno
#include <fcntl.h>        // open, AT_FDCWD
#include <inttypes.h>     // PRId64
#include <signal.h>       // signal, SIGXFSZ
#include <stdlib.h>       // free, strtoll, strtoul, qsort
#include <string.h>       // strcmp, memcmp, strerror
#include <sys/stat.h>     // fstat, mkdir
#include <unistd.h>       // fsync, close

enum { FORMAT_VERSION = 1, MAX_TEXT = 1 << 20 /* bytes of a config.json or a manifest */ };

const char *const MANIFEST_FILE = "manifest.json";
static const char *const TEMPORARY = ".tmp-", *const MOVED_ASIDE = ".old-";

int (*checkpoint_fault)(const char *call, const char *path);

// Asks the test's hook; false with errno set if the call is to fail.
static bool allowed(const char *call, const char *path) {
  int why = checkpoint_fault ? checkpoint_fault(call, path) : 0;
  if (why) errno = why;
  return why == 0;
}

// ---- names ----

char *checkpoint_path(const char *run_dir, int64_t step) { return format("%s/step_%08" PRId64, run_dir, step); }

bool checkpoint_parse_step(const char *name, int64_t *step) {
  char again[40];
  const char *digits = strchr(name, '_');
  if (!digits) return false;
  *step = strtoll(digits + 1, NULL, 10);
  snprintf(again, sizeof again, "step_%08" PRId64, *step);
  return *step >= 0 && !strcmp(again, name);
}

static int by_value(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

int64_t *checkpoint_steps(const char *run_dir, size_t *count) {
  size_t n;
  char **names = list_directory(run_dir, &n);
  int64_t *steps = xmalloc(n, sizeof *steps);
  *count = 0;
  for (size_t i = 0; i < n; i++)
    if (checkpoint_parse_step(names[i], &steps[*count])) ++*count;
  free_names(names, n);
  if (*count) qsort(steps, *count, sizeof *steps, by_value);
  return steps;
}

bool checkpoint_newest_time(const char *run_dir, struct timespec *when) {
  size_t count;
  int64_t *steps = checkpoint_steps(run_dir, &count);
  struct stat st;
  bool there = false;
  for (size_t i = count; !there && i-- > 0;) {
    char *path = format("%s/step_%08" PRId64 "/%s", run_dir, steps[i], MANIFEST_FILE);
    there = stat(path, &st) == 0;
    if (there) *when = st.st_mtim;
    free(path);
  }
  free(steps);
  return there;
}

bool folder_has(const char *dir, const char *name) {
  char *path = format("%s/%s", dir, name);
  bool there = file_exists(path);
  free(path);
  return there;
}

// ---- writing one file ----

static void remove_temporary(void *writer) { remove_tree(((FolderWriter *)writer)->temporary); }

static _Noreturn void save_failed(const FolderWriter *w, const char *call, const char *path) {
  int why = errno;
  bool full = why == ENOSPC || why == EDQUOT || why == EFBIG;
  fail(EXIT_MACHINE, "%s: this checkpoint was not saved: %s %s: %s; earlier checkpoints are intact%s%s", w->final, call, path,
       strerror(why), full ? "; make room, then gpt train --resume " : "", full ? w->run_dir : "");
}

void folder_begin(FolderWriter *w, const char *run_dir, int64_t step, const char *run_id) {
  *w = (FolderWriter){.run_dir = run_dir, .manifest = {.step = step}};
  snprintf(w->manifest.run_id, sizeof w->manifest.run_id, "%s", run_id);
  w->final = checkpoint_path(run_dir, step);
  w->temporary = format("%s/%sstep_%08" PRId64, run_dir, TEMPORARY, step);
  // At a limit on file sizes the write shall fail and say so, not kill us with the temporary folder left behind.
  w->size_signal = signal(SIGXFSZ, SIG_IGN);
  checkpoint_clean(run_dir);
  if (!allowed("mkdir", w->temporary) || mkdir(w->temporary, 0777)) save_failed(w, "mkdir", w->temporary);
  at_fail(remove_temporary, w);
}

void folder_file_begin(FolderWriter *w, const char *name) {
  if (w->manifest.count == MANIFEST_MAX_FILES || strlen(name) >= sizeof w->file->name || strchr(name, '/'))
    fail(EXIT_MACHINE, "%s: no place for a file %s in a checkpoint", w->final, name);
  w->file = &w->manifest.files[w->manifest.count++];
  snprintf(w->file->name, sizeof w->file->name, "%s", name);
  w->path = format("%s/%s", w->temporary, name);
  w->fd = allowed("open", w->path) ? open(w->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666) : -1;
  if (w->fd < 0) save_failed(w, "open", w->path);
}

void folder_write(FolderWriter *w, const void *data, size_t n) {
  if (!allowed("write", w->path) || !write_all(w->fd, data, n)) save_failed(w, "write", w->path);
  w->file->crc = crc32c(w->file->crc, data, n);
  w->file->bytes += (int64_t)n;
}

void folder_file_end(FolderWriter *w) {
  if (!allowed("fsync", w->path) || fsync(w->fd)) save_failed(w, "fsync", w->path);
  if (!allowed("close", w->path) || close(w->fd)) save_failed(w, "close", w->path);
  free(w->path);
}

// ---- the manifest ----

// The end of a manifest: the CRC32C of all text before it. It has one spelling, so that no flipped bit of it can pass.
enum { TAIL_LENGTH = 30 };
static void manifest_tail(uint32_t crc, Buffer *out) { buffer_printf(out, "  \"self_crc32c\": \"%08" PRIx32 "\"\n}\n", crc); }

static void manifest_text(const Manifest *m, Buffer *out) {
  buffer_printf(out, "{\n  \"format\": \"gpt-checkpoint\",\n  \"version\": %d,\n", FORMAT_VERSION);
  buffer_printf(out, "  \"run_id\": \"%s\",\n  \"step\": %" PRId64 ",\n  \"files\": [\n", m->run_id, m->step);
  for (size_t i = 0; i < m->count; i++) {
    buffer_printf(out, "    {\"name\": ");
    json_write_string(out, m->files[i].name, strlen(m->files[i].name));
    buffer_printf(out, ", \"bytes\": %" PRId64 ", \"crc32c\": \"%08" PRIx32 "\"}%s\n", m->files[i].bytes, m->files[i].crc,
                  i + 1 < m->count ? "," : "");
  }
  buffer_printf(out, "  ],\n");
  manifest_tail(crc32c(0, out->data, out->len), out);
}

static void write_manifest(FolderWriter *w) {
  Buffer text = {0};
  manifest_text(&w->manifest, &text);
  folder_file_begin(w, MANIFEST_FILE);
  folder_write(w, text.data, text.len);
  folder_file_end(w);
  buffer_free(&text);
}

// ---- publishing ----

static bool rename_checked(const char *from, const char *to) { return allowed("rename", to) && rename(from, to) == 0; }

// Puts the finished temporary folder in the place of a checkpoint of the same step (one that is damaged, or that a run
// resumed from an older one has reached again).
static bool publish_over(const FolderWriter *w) {
  if (allowed("exchange", w->final) && renameat2(AT_FDCWD, w->temporary, AT_FDCWD, w->final, RENAME_EXCHANGE) == 0)
    return true;
  if (errno != ENOSYS && errno != EINVAL) return false;
  // A file system that cannot exchange: aside, in, away. If we die in between, checkpoint_clean() moves it back.
  char *aside = format("%s/%sstep_%08" PRId64, w->run_dir, MOVED_ASIDE, w->manifest.step);
  bool ok = rename_checked(w->final, aside);
  if (ok && !rename_checked(w->temporary, w->final)) {
    int why = errno;
    ok = false;
    if (rename(aside, w->final)) warn("%s: keeps this name until the run is resumed: %s", aside, strerror(errno));
    errno = why;
  }
  if (ok) remove_tree(aside);
  free(aside);
  return ok;
}

void folder_publish(FolderWriter *w) {
  write_manifest(w);
  if (!allowed("fsync", w->temporary) || !fsync_directory(w->temporary)) save_failed(w, "fsync", w->temporary);
  if (!rename_checked(w->temporary, w->final)) {
    if (errno != ENOTEMPTY && errno != EEXIST) save_failed(w, "rename", w->final);
    if (!publish_over(w)) save_failed(w, "rename", w->final);
  }
  if (!allowed("fsync", w->run_dir) || !fsync_directory(w->run_dir)) save_failed(w, "fsync", w->run_dir);
  remove_temporary(w);  // after an exchange the former checkpoint stands there; else nothing
  at_fail_cancel(remove_temporary, w);
  signal(SIGXFSZ, w->size_signal);
  free(w->final);
  free(w->temporary);
}

// ---- removing ----

// In two steps, so that no half-removed folder is ever called step_...
static void remove_checkpoint(const char *run_dir, int64_t step) {
  char *path = checkpoint_path(run_dir, step), *aside = format("%s/%sremoved_%08" PRId64, run_dir, TEMPORARY, step);
  if (rename_checked(path, aside) && allowed("remove", aside)) remove_tree(aside);
  else warn("%s: this old checkpoint could not be removed: %s", path, strerror(errno));
  free(path);
  free(aside);
}

void checkpoint_prune(const char *run_dir, int64_t published, int64_t keep) {
  size_t count;
  int64_t *steps = checkpoint_steps(run_dir, &count), kept = 0;
  for (size_t i = count; i-- > 0;) {
    Manifest m;
    Refusal why = {0};
    char *dir = checkpoint_path(run_dir, steps[i]);
    // Sizes only: reading every byte of what is kept would double the cost of a save.
    if (steps[i] == published) kept++;
    else if (kept >= keep) remove_checkpoint(run_dir, steps[i]);
    else kept += manifest_read(dir, &m, &why) && manifest_sizes_agree(dir, &m, &why);
    buffer_free(&why.line);
    free(dir);
  }
  free(steps);
}

bool checkpoint_is_name(const char *name) {
  int64_t step;
  return checkpoint_parse_step(name, &step) || !strncmp(name, TEMPORARY, strlen(TEMPORARY)) || !strncmp(name, MOVED_ASIDE, strlen(MOVED_ASIDE));
}

void checkpoint_clean(const char *run_dir) {
  size_t count;
  int64_t step;
  char **names = list_directory(run_dir, &count);
  for (size_t i = 0; i < count; i++) {
    char *path = format("%s/%s", run_dir, names[i]);
    if (!strncmp(names[i], TEMPORARY, strlen(TEMPORARY))) remove_tree(path);
    bool aside = !strncmp(names[i], MOVED_ASIDE, strlen(MOVED_ASIDE));
    if (aside && checkpoint_parse_step(names[i] + strlen(MOVED_ASIDE), &step)) {
      char *home = checkpoint_path(run_dir, step);
      if (file_exists(home)) remove_tree(path);
      else if (rename(path, home)) warn("%s: cannot be renamed to %s: %s", path, home, strerror(errno));
      free(home);
    }
    free(path);
  }
  free_names(names, count);
}

// ---- reading ----

bool refuse_file(Refusal *why, const char *fmt, ...) {
  va_list args;
  char text[1024];
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  buffer_append(&why->line, text, strlen(text));
  return false;
}

// After open() failed.
static void refuse_open(Refusal *why, const char *path) {
  why->machine = is_machine_errno(errno);
  if (why->machine) refuse_file(why, "%s: cannot be opened: %s", path, strerror(errno));
  else refuse_file(why, "%s: %s", path, errno == ENOENT ? "is missing" : strerror(errno));
}

// n bytes of dir/name at `at`, where there were so many a moment ago.
static bool read_piece(int fd, void *bytes, size_t n, int64_t at, const char *dir, const char *name, Refusal *why) {
  errno = 0;                                       // pread_all() leaves it at 0 where the file ends
  if (pread_all(fd, bytes, n, at)) return true;
  why->machine = errno != 0;
  return refuse_file(why, "%s/%s: cannot be read at byte %" PRId64 ": %s", dir, name, at, errno ? strerror(errno) : "it ends there");
}

// Opens dir/name for reading; -1 unless it is a regular file.
static int open_regular(const char *dir, const char *name, int64_t *size, Refusal *why) {
  char *path = format("%s/%s", dir, name);
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // O_NONBLOCK: a pipe in its place must not hang us
  struct stat st;
  if (fd < 0) {
    refuse_open(why, path);
  } else if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
    refuse_file(why, "%s: is no regular file", path);
    close(fd);
    fd = -1;
  } else {
    *size = st.st_size;
  }
  free(path);
  return fd;
}

bool folder_read_text(const char *dir, const char *name, Buffer *out, Refusal *why) {
  int64_t size;
  int fd = open_regular(dir, name, &size, why);
  if (fd < 0) return false;
  bool ok = size <= MAX_TEXT || refuse_file(why, "%s/%s: %" PRId64 " bytes, at most %d are read", dir, name, size, MAX_TEXT);
  if (ok) {
    char *bytes = xmalloc((size_t)size, 1);
    ok = read_piece(fd, bytes, (size_t)size, 0, dir, name, why);
    if (ok) buffer_append(out, bytes, (size_t)size);
    free(bytes);
  }
  close(fd);
  return ok;
}

// Eight hexadecimal digits, exactly as we write them.
static bool parse_crc(const char *text, uint32_t *crc) {
  char again[9];
  *crc = (uint32_t)strtoul(text, NULL, 16);
  snprintf(again, sizeof again, "%08" PRIx32, *crc);
  return !strcmp(text, again);
}

static bool read_members(const char *dir, const Json *j, Manifest *m, Refusal *why) {
  int64_t version;
  const char *id = json_string(j, "run_id", "");
  const Json *files = json_get(j, "files");
  if (strcmp(json_string(j, "format", ""), "gpt-checkpoint") || !json_int(j, "version", 0, INT32_MAX, &version))
    return refuse_file(why, "%s/%s: is no manifest of a checkpoint", dir, MANIFEST_FILE);
  if (version != FORMAT_VERSION)
    return refuse_file(why, "%s/%s: version %" PRId64 ", this program reads %d", dir, MANIFEST_FILE, version, FORMAT_VERSION);
  bool ok = strlen(id) == 32 && json_int(j, "step", 0, (int64_t)1 << 53, &m->step) && files && files->type == JSON_ARRAY &&
            files->length <= MANIFEST_MAX_FILES;
  for (size_t i = 0; ok && i < files->length; i++) {
    ManifestFile f = {0};
    const char *name = json_string(files->items[i], "name", "");
    ok = *name && strlen(name) < sizeof f.name && !strchr(name, '/') && name[0] != '.' && !manifest_find(m, name) &&
         json_int(files->items[i], "bytes", 0, (int64_t)1 << 53, &f.bytes) &&
         parse_crc(json_string(files->items[i], "crc32c", ""), &f.crc);
    if (ok) snprintf(f.name, sizeof f.name, "%s", name);
    m->files[m->count++] = f;
  }
  if (!ok) return refuse_file(why, "%s/%s: a field is missing or wrong", dir, MANIFEST_FILE);
  snprintf(m->run_id, sizeof m->run_id, "%s", id);
  return true;
}

bool manifest_read(const char *dir, Manifest *m, Refusal *why) {
  Buffer text = {0}, tail = {0};
  char error[256];
  *m = (Manifest){0};
  bool ok = folder_read_text(dir, MANIFEST_FILE, &text, why);
  if (ok && text.len <= TAIL_LENGTH) ok = refuse_file(why, "%s/%s: is cut off at %zu bytes", dir, MANIFEST_FILE, text.len);
  if (ok) {
    uint32_t crc = crc32c(0, text.data, text.len - TAIL_LENGTH);
    manifest_tail(crc, &tail);
    if (memcmp(text.data + text.len - TAIL_LENGTH, tail.data, TAIL_LENGTH))
      ok = refuse_file(why, "%s/%s: is damaged: its text has CRC32C %08" PRIx32 ", its last line says otherwise", dir,
                       MANIFEST_FILE, crc);
  }
  Json *j = ok ? json_parse(text.data, text.len, error, sizeof error) : NULL;
  if (ok && !j) ok = refuse_file(why, "%s/%s: %s", dir, MANIFEST_FILE, error);
  ok = ok && read_members(dir, j, m, why);
  json_free(j);
  buffer_free(&text);
  buffer_free(&tail);
  return ok;
}

const ManifestFile *manifest_find(const Manifest *m, const char *name) {
  for (size_t i = 0; i < m->count; i++) if (!strcmp(m->files[i].name, name)) return &m->files[i];
  return NULL;
}

// Opens a file of the manifest if its size is right.
static int open_listed(const char *dir, const ManifestFile *file, Refusal *why) {
  int64_t size;
  int fd = open_regular(dir, file->name, &size, why);
  if (fd < 0 || size == file->bytes) return fd;
  refuse_file(why, "%s/%s: has %" PRId64 " bytes, the manifest says %" PRId64, dir, file->name, size, file->bytes);
  close(fd);
  return -1;
}

bool manifest_sizes_agree(const char *dir, const Manifest *m, Refusal *why) {
  for (size_t i = 0; i < m->count; i++) {
    int fd = open_listed(dir, &m->files[i], why);
    if (fd < 0) return false;
    close(fd);
  }
  return true;
}

int manifest_open(const char *dir, const ManifestFile *file, Refusal *why) {
  enum { PIECE = 1 << 18 };
  int fd = open_listed(dir, file, why);
  if (fd < 0) return -1;
  uint8_t *piece = xmalloc(PIECE, 1);
  uint32_t crc = 0;
  bool ok = true;
  for (int64_t at = 0; ok && at < file->bytes; at += PIECE) {
    size_t n = (size_t)MIN((int64_t)PIECE, file->bytes - at);
    ok = read_piece(fd, piece, n, at, dir, file->name, why);
    if (ok) crc = crc32c(crc, piece, n);
  }
  if (ok && crc != file->crc)
    ok = refuse_file(why, "%s/%s: is damaged: CRC32C %08" PRIx32 ", the manifest says %08" PRIx32, dir, file->name, crc,
                     file->crc);
  free(piece);
  if (ok) return fd;
  close(fd);
  return -1;
}
