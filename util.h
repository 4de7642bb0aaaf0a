// util.h: errors, checked memory, files and bytes. Plumbing: knows nothing of models.
//
// A user error prints ONE line to stderr (what is wrong, the number found, the number needed, the command that
// fixes it) and ends the process with one of the exit codes below. Nothing half-written may be left behind: whoever
// creates a temporary file or folder registers its removal with at_fail().
// Tests: tests/test_util.c
#pragma once
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
  EXIT_NO = 1,        // it ran and the answer is no (a check failed, a run diverged)
  EXIT_REQUEST = 2,   // the request is wrong, as flags and files alone show
  EXIT_MACHINE = 3,   // this machine cannot or let us down: memory, device, disk full, I/O error
};

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#if defined(__GNUC__)
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#else
#define PRINTF_LIKE(f, a)
#endif

// ---- errors ----
// Prints "gpt: <message>\n" to stderr, runs the at_fail() handlers (last registered first), exits with code.
_Noreturn void fail(int code, const char *fmt, ...) PRINTF_LIKE(2, 3);
// Prints "gpt: warning: <message>\n" to stderr.
void warn(const char *fmt, ...) PRINTF_LIKE(1, 2);
// Registers fn(arg) to run inside fail(); at_fail_cancel removes the newest registration of the same pair.
void at_fail(void (*fn)(void *), void *arg);
void at_fail_cancel(void (*fn)(void *), void *arg);

// ---- memory: never returns NULL; refuses count*size overflow; exit 3 when there is none ----
void *xmalloc(size_t count, size_t size);             // contents undefined
void *xcalloc(size_t count, size_t size);             // zeroed
static inline void *xzero(size_t size) { return xcalloc(size, sizeof(char)); }   // one object, zeroed
void *xrealloc(void *p, size_t count, size_t size);
// The array, with room for one entry more than the `count` it has: once it is full it gets twice the room. *capacity, of entries, begins at 0.
static inline void *xgrow(void *array, size_t count, size_t *capacity, size_t size) {
  if (count < *capacity) return array;
  *capacity = MAX((size_t)4, 2 * count);
  return xrealloc(array, *capacity, size);
}
char *xstrdup(const char *s);
char *format(const char *fmt, ...) PRINTF_LIKE(1, 2); // a new string, freed by the caller
// *out = a*b or a+b; false on overflow (then *out is not set).
static inline bool mul_size(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool add_size(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A growing byte string. Zero-initialise; data is NUL-terminated after every call (the NUL is not counted in len).
typedef struct { char *data; size_t len, cap; } Buffer;
void buffer_reserve(Buffer *b, size_t more);   // makes room for `more` bytes and a zero behind data[len]
void buffer_append(Buffer *b, const void *p, size_t n);
void buffer_printf(Buffer *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
void buffer_free(Buffer *b);

// Why a file was not taken, for a caller that may have another: one line, and with which code to end if it has none. Zero-initialise.
typedef struct { Buffer line; bool machine; } Refusal;   // machine: it may be whole, but the system did not give it (EXIT_MACHINE, else EXIT_REQUEST)
_Noreturn static inline void fail_refused(const Refusal *why) { fail(why->machine ? EXIT_MACHINE : EXIT_REQUEST, "%s", why->line.data); }
// Whether this errno of open() or pread() is about the machine (open files, permission, memory, I/O) and not about the name that was asked for.
static inline bool is_machine_errno(int e) { return e && e != ENOENT && e != ENOTDIR && e != ELOOP && e != ENAMETOOLONG && e != ENXIO; }

// ---- files (pread/write with EINTR and short transfers handled; files are never mapped) ----
// Reads a whole regular file into a new buffer of *size bytes plus one NUL. Missing, unreadable, a directory:
// exit 2 naming the path; larger than max_bytes: exit 2 with both numbers; too many open files, a read error: exit 3.
// `what` names the role in messages ("text", "tokenizer", ...).
char *read_file(const char *path, const char *what, size_t max_bytes, size_t *size);
// Reads exactly n bytes at offset; false on I/O error or end of file.
bool pread_all(int fd, void *dst, size_t n, int64_t offset);
bool write_all(int fd, const void *src, size_t n);
bool file_exists(const char *path);   // anything at all is there
bool is_directory(const char *path);
char *parent_folder(const char *path);       // "a/b/" gives "a", "b" gives "."; freed by the caller
// Replaces path by n bytes: temporary file beside it, fsync, rename, fsync of the folder. Failure: exit 3, old file whole. The new file has
// the old one's permissions; a symbolic link stays, and a device or pipe is written to as it is.
void replace_file(const char *path, const void *data, size_t n);
// Like replace_file, but reports failure by false instead of ending the process (for the report, which must not kill a run).
bool try_replace_file(const char *path, const void *data, size_t n);
// The same piece by piece. begin: the temporary file's descriptor, -1 and errno if it cannot be made; its name, for at_fail (NULL: a device or pipe).
// end: with ok it takes path's place, else, or if that fails (false, errno), it is removed. Frees the name.
int replace_begin(const char *path, char **temporary);
bool replace_end(char *temporary, int fd, bool ok);
// For reading, -1 and errno if it cannot be. STANDARD_INPUT is read from where it stands: opened by this name, a file would begin anew.
#define STANDARD_INPUT "/dev/stdin"
int open_input(const char *path);
void make_directory(const char *path);        // exit 3 on failure; parents must exist
bool fsync_directory(const char *path);
void remove_contents(const char *path);       // of a directory, which stays
void remove_tree(const char *path);           // rm -r, silent if absent
// Names (not paths) in a directory, sorted bytewise, without . and ..; *count set; each and the array freed by free_names.
char **list_directory(const char *path, size_t *count);
void free_names(char **names, size_t count);
// Paths of the texts that a user names: a directory becomes its regular files (sorted, not below it), anything else stays as it is,
// also - and what does not exist. Exit 2 for a directory without files. Freed by free_names.
char **list_texts(const char *const *names, size_t count, size_t *files);

// ---- digests ----
uint32_t crc32c(uint32_t crc, const void *data, size_t n);  // Castagnoli (RFC 3720); start with 0; can be continued
uint32_t crc32c_plain(uint32_t crc, const void *data, size_t n);   // the same by tables alone, the oracle of the processor's instruction
typedef struct { uint32_t h[8]; uint64_t bytes; uint8_t block[64]; } Sha256;   // FIPS 180-4
void sha256_init(Sha256 *s);
void sha256_block_plain(uint32_t h[8], const uint8_t p[64]);   // h += the block p, by 32-bit arithmetic alone, the oracle of the processor's instructions
void sha256_update(Sha256 *s, const void *data, size_t n);
void sha256_final(Sha256 *s, uint8_t digest[32]);
void sha256_hex(const uint8_t digest[32], char hex[65]);
void sha256_of(const void *data, size_t n, char hex[65]);

// ---- bounded cursor over untrusted bytes, shared by every binary parser ----
typedef struct { const uint8_t *data; size_t size, pos; } Cursor;
bool cursor_take(Cursor *c, size_t n, const uint8_t **p);   // false (and nothing moves) if fewer than n bytes are left
static inline uint32_t load_u32le(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }
static inline uint64_t load_u64le(const uint8_t *p) { return load_u32le(p) | (uint64_t)load_u32le(p + 4) << 32; }
static inline void store_u32le(uint8_t *p, uint32_t v) { for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (8 * i)); }
static inline void store_u64le(uint8_t *p, uint64_t v) { for (int i = 0; i < 8; i++) p[i] = (uint8_t)(v >> (8 * i)); }

// Another number, in which every bit depends on every bit of h (the finaliser of MurmurHash3).
static inline uint64_t mix_bits(uint64_t h) {
  h = (h ^ h >> 33) * 0xff51afd7ed558ccdu;
  h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53u;
  return h ^ h >> 33;
}

double seconds_now(void);                                   // monotonic clock, seconds
// Edit distance (Levenshtein); nearest() returns the candidate with the least distance, or NULL if none is near.
const char *nearest(const char *word, const char *const *candidates, size_t count);
