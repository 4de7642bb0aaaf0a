// util.c: errors, checked memory, files and bytes. See util.h for what each function promises.
#include "util.h"
#include <dirent.h>     // opendir, readdir
#include <errno.h>      // errno
#include <fcntl.h>      // open
#include <stdlib.h>     // malloc, exit
#include <string.h>     // memcpy, strlen
#include <sys/stat.h>   // stat, mkdir
#include <time.h>       // clock_gettime
#include <unistd.h>     // pread, write, fsync
#if defined(__x86_64__)
#include <cpuid.h>      // __get_cpuid_count
#include <immintrin.h>  // _mm_crc32_u64
#endif

// ---- errors ----

enum { MAX_HANDLERS = 32 };
static struct { void (*fn)(void *); void *arg; } handlers[MAX_HANDLERS];
static int handler_count;

void at_fail(void (*fn)(void *), void *arg) {
  if (handler_count == MAX_HANDLERS) fail(EXIT_MACHINE, "too many cleanup handlers (%d)", MAX_HANDLERS);
  handlers[handler_count].fn = fn;
  handlers[handler_count++].arg = arg;
}

void at_fail_cancel(void (*fn)(void *), void *arg) {
  for (int i = handler_count - 1; i >= 0; i--) {
    if (handlers[i].fn != fn || handlers[i].arg != arg) continue;
    memmove(&handlers[i], &handlers[i + 1], sizeof handlers[0] * (size_t)(handler_count - 1 - i));
    handler_count--;
    return;
  }
}

// One line whatever the message holds: a file name with a newline in it must not forge a second line.
static void print_line(const char *prefix, const char *fmt, va_list args) {
  char line[4096];
  int n = vsnprintf(line, sizeof line, fmt, args);
  if (n >= (int)sizeof line) memcpy(line + sizeof line - 4, "...", 4);
  for (char *p = line; *p; p++) if ((unsigned char)*p < 32 || *p == 127) *p = '?';
  fflush(stdout);
  fprintf(stderr, "%s%s\n", prefix, line);
}

void fail(int code, const char *fmt, ...) {
  static const void *failing;               // the thread that came first; another one waits here for the end of the process, and brings it about if none comes
  static _Thread_local char self;
  const void *nobody = NULL;
  if (!__atomic_compare_exchange_n(&failing, &nobody, &self, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE) && nobody != &self) { sleep(10); _exit(code); }
  va_list args;
  va_start(args, fmt);
  print_line("gpt: ", fmt, args);
  va_end(args);
  while (handler_count > 0) { handler_count--; handlers[handler_count].fn(handlers[handler_count].arg); }
  exit(code);
}

void warn(const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  print_line("gpt: warning: ", fmt, args);
  va_end(args);
}

// ---- memory ----

static size_t checked_size(size_t count, size_t size) {
  size_t bytes;
  if (!mul_size(count, size, &bytes) || bytes > PTRDIFF_MAX) fail(EXIT_MACHINE, "memory: %zu x %zu bytes is more than an address can hold", count, size);
  return bytes ? bytes : 1;
}

static void *checked_pointer(void *p, size_t bytes) {
  if (!p) fail(EXIT_MACHINE, "memory: %zu bytes were refused by the system: close other programs or choose a smaller model or batch", bytes);
  return p;
}

void *xmalloc(size_t count, size_t size) {
  size_t bytes = checked_size(count, size);
  return checked_pointer(malloc(bytes), bytes);
}

void *xcalloc(size_t count, size_t size) {
  size_t bytes = checked_size(count, size);
  return checked_pointer(calloc(1, bytes), bytes);
}

void *xrealloc(void *p, size_t count, size_t size) {
  size_t bytes = checked_size(count, size);
  return checked_pointer(realloc(p, bytes), bytes);
}

char *xstrdup(const char *s) {
  size_t n = strlen(s) + 1;
  return memcpy(xmalloc(n, 1), s, n);
}

static char *format_list(const char *fmt, va_list args) {
  va_list again;
  va_copy(again, args);
  int n = vsnprintf(NULL, 0, fmt, args);
  if (n < 0) fail(EXIT_MACHINE, "cannot format a message");
  char *s = xmalloc((size_t)n + 1, 1);
  vsnprintf(s, (size_t)n + 1, fmt, again);
  va_end(again);
  return s;
}

char *format(const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  char *s = format_list(fmt, args);
  va_end(args);
  return s;
}

void buffer_reserve(Buffer *b, size_t more) {
  size_t need;
  if (!add_size(b->len, more, &need) || !add_size(need, 1, &need)) fail(EXIT_MACHINE, "memory: a buffer of %zu + %zu bytes overflows", b->len, more);
  if (need <= b->cap) return;
  b->cap = MAX(need, MAX((size_t)64, b->cap + b->cap / 2));
  b->data = xrealloc(b->data, b->cap, 1);
}

void buffer_append(Buffer *b, const void *p, size_t n) {
  buffer_reserve(b, n);
  if (n) memcpy(b->data + b->len, p, n);
  b->len += n;
  b->data[b->len] = 0;
}

void buffer_printf(Buffer *b, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  char *s = format_list(fmt, args);
  va_end(args);
  buffer_append(b, s, strlen(s));
  free(s);
}

void buffer_free(Buffer *b) {
  free(b->data);
  *b = (Buffer){0};
}

// ---- files ----

int open_input(const char *path) { return strcmp(path, STANDARD_INPUT) ? open(path, O_RDONLY | O_CLOEXEC) : fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0); }

// A name that the user may not read is the user's to mend, too many open files are not.
static int not_opened_code(int e) { return is_machine_errno(e) && e != EACCES ? EXIT_MACHINE : EXIT_REQUEST; }

char *read_file(const char *path, const char *what, size_t max_bytes, size_t *size) {
  int fd = open_input(path);
  if (fd < 0) fail(not_opened_code(errno), "%s: cannot open %s: %s", path, what, strerror(errno));
  struct stat st;
  if (fstat(fd, &st)) fail(EXIT_MACHINE, "%s: cannot look at %s: %s", path, what, strerror(errno));
  if (S_ISDIR(st.st_mode)) fail(EXIT_REQUEST, "%s: is a directory, a file is needed (%s)", path, what);
  Buffer b = {0};
  size_t room = S_ISREG(st.st_mode) ? (size_t)st.st_size : 0;
  if (room > max_bytes) fail(EXIT_REQUEST, "%s: %s of %zu bytes, at most %zu are read", path, what, room, max_bytes);
  b.cap = room + 2;                    // one to see the end of file without growing, one for the NUL
  b.data = xmalloc(b.cap, 1);
  for (;;) {
    if (b.len + 1 >= b.cap) { b.cap += MAX((size_t)65536, b.cap / 2); b.data = xrealloc(b.data, b.cap, 1); }
    ssize_t got = read(fd, b.data + b.len, MIN(b.cap - b.len - 1, (size_t)1 << 30));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(EXIT_MACHINE, "%s: reading %s failed at byte %zu: %s", path, what, b.len, strerror(errno));
    if (got == 0) break;
    b.len += (size_t)got;
    if (b.len > max_bytes) fail(EXIT_REQUEST, "%s: %s of more than %zu bytes, at most that many are read", path, what, max_bytes);
  }
  close(fd);
  b.data[b.len] = 0;
  *size = b.len;
  return b.data;
}

bool pread_all(int fd, void *dst, size_t n, int64_t offset) {
  uint8_t *p = dst;
  while (n > 0) {
    ssize_t got = pread(fd, p, MIN(n, (size_t)1 << 30), (off_t)offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    p += got;
    n -= (size_t)got;
    offset += got;
  }
  return true;
}

bool write_all(int fd, const void *src, size_t n) {
  const uint8_t *p = src;
  while (n > 0) {
    ssize_t put = write(fd, p, MIN(n, (size_t)1 << 30));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return false;
    p += put;
    n -= (size_t)put;
  }
  return true;
}

bool file_exists(const char *path) {
  struct stat st;
  return lstat(path, &st) == 0;
}

bool is_directory(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

char *parent_folder(const char *path) {
  char *parent = xstrdup(path), *slash;
  for (size_t n = strlen(parent); n > 1 && parent[n - 1] == '/';) parent[--n] = 0;
  slash = strrchr(parent, '/');
  if (!slash) { free(parent); return xstrdup("."); }
  slash[slash == parent] = 0;
  return parent;
}

int replace_begin(const char *path, char **temporary) {
  struct stat st;
  const bool there = stat(path, &st) == 0;
  *temporary = NULL;
  if (there && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) return open(path, O_WRONLY | O_CLOEXEC);
  char *real = there ? realpath(path, NULL) : NULL;        // not the link, but what it leads to
  *temporary = format("%s.tmp-%ld", real ? real : path, (long)getpid());
  free(real);
  int fd = open(*temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd >= 0 && there) (void)!fchmod(fd, st.st_mode & 0777);   // of another's file it may be refused: then the new one is ours
  return fd;
}

bool replace_end(char *temporary, int fd, bool ok) {
  if (!temporary) return (fd < 0 || close(fd) == 0) && ok;
  char *path = xstrdup(temporary);
  *strrchr(path, '.') = 0;                                 // the last one is that of ".tmp-"
  char *parent = parent_folder(path);
  ok = ok && fsync(fd) == 0;
  int why = errno;
  if (fd >= 0 && close(fd) && ok) { ok = false; why = errno; }
  if (ok && rename(temporary, path)) { ok = false; why = errno; }
  if (ok) fsync_directory(parent);
  else if (fd >= 0) unlink(temporary);
  free(temporary);
  free(parent);
  free(path);
  errno = why;
  return ok;
}

bool try_replace_file(const char *path, const void *data, size_t n) {
  char *temporary;
  const int fd = replace_begin(path, &temporary);
  return replace_end(temporary, fd, fd >= 0 && write_all(fd, data, n));
}

void replace_file(const char *path, const void *data, size_t n) {
  if (!try_replace_file(path, data, n)) fail(errno == EISDIR ? EXIT_REQUEST : EXIT_MACHINE, "%s: cannot write %zu bytes: %s", path, n, strerror(errno));
}

void make_directory(const char *path) {
  if (!mkdir(path, 0777)) return;
  if (errno == EEXIST) fail(EXIT_REQUEST, "%s: exists already, or another program made it just now; take another name", path);
  fail(EXIT_MACHINE, "%s: cannot make this directory: %s", path, strerror(errno));
}

bool fsync_directory(const char *path) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return false;
  bool ok = fsync(fd) == 0;
  close(fd);
  return ok;
}

void remove_contents(const char *path) {
  size_t count;
  char **names = list_directory(path, &count);
  for (size_t i = 0; i < count; i++) {
    char *child = format("%s/%s", path, names[i]);
    remove_tree(child);
    free(child);
  }
  free_names(names, count);
}

void remove_tree(const char *path) {
  struct stat st;
  if (lstat(path, &st)) return;
  if (!S_ISDIR(st.st_mode)) { unlink(path); return; }
  remove_contents(path);
  rmdir(path);
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

char **list_directory(const char *path, size_t *count) {
  DIR *dir = opendir(path);
  if (!dir) fail(not_opened_code(errno), "%s: cannot list this directory: %s", path, strerror(errno));
  char **names = NULL;
  size_t n = 0, cap = 0;
  for (struct dirent *e; (e = readdir(dir));) {
    if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
    if (n == cap) { cap = cap ? 2 * cap : 16; names = xrealloc(names, cap, sizeof *names); }
    names[n++] = xstrdup(e->d_name);
  }
  closedir(dir);
  if (n) qsort(names, n, sizeof *names, by_bytes);
  *count = n;
  return names;
}

void free_names(char **names, size_t count) {
  for (size_t i = 0; i < count; i++) free(names[i]);
  free(names);
}

// Appends the regular files of a directory.
static void add_directory(char ***paths, size_t *n, const char *directory) {
  size_t count, before = *n;
  char **names = list_directory(directory, &count);
  *paths = xrealloc(*paths, *n + count, sizeof **paths);
  for (size_t i = 0; i < count; i++) {
    struct stat st;
    char *path = format("%s/%s", directory, names[i]);
    if (stat(path, &st) == 0 && S_ISREG(st.st_mode)) (*paths)[(*n)++] = path;
    else free(path);
  }
  free_names(names, count);
  if (*n == before) fail(EXIT_REQUEST, "%s: 0 files in this directory (of %zu names), at least 1 with text is needed", directory, count);
}

char **list_texts(const char *const *names, size_t count, size_t *files) {
  char **paths = NULL;
  size_t n = 0;
  for (size_t i = 0; i < count; i++) {
    if (is_directory(names[i])) { add_directory(&paths, &n, names[i]); continue; }
    paths = xrealloc(paths, n + 1, sizeof *paths);
    paths[n++] = xstrdup(names[i]);
  }
  *files = n;
  return paths;
}

// ---- CRC32C: by eight tables of 256 (slicing by 8; Kounavis & Berry 2005), about 2 GB/s; by the instruction that x86 has for it, 10 ----

static uint32_t crc_table[8][256];

static void crc_tables(void) __attribute__((constructor));
static void crc_tables(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; bit++) c = c >> 1 ^ (c & 1 ? 0x82F63B78u : 0);
    crc_table[0][i] = c;
  }
  for (int t = 1; t < 8; t++)
    for (uint32_t i = 0; i < 256; i++) crc_table[t][i] = crc_table[t - 1][i] >> 8 ^ crc_table[0][crc_table[t - 1][i] & 255];
}

uint32_t crc32c_plain(uint32_t crc, const void *data, size_t n) {
  const uint8_t *p = data;
  crc = ~crc;
  for (; n >= 8; n -= 8, p += 8) {
    uint32_t a = crc ^ load_u32le(p), b = load_u32le(p + 4);
    crc = crc_table[7][a & 255] ^ crc_table[6][a >> 8 & 255] ^ crc_table[5][a >> 16 & 255] ^ crc_table[4][a >> 24] ^
          crc_table[3][b & 255] ^ crc_table[2][b >> 8 & 255] ^ crc_table[1][b >> 16 & 255] ^ crc_table[0][b >> 24];
  }
  for (; n > 0; n--) crc = crc >> 8 ^ crc_table[0][(crc ^ *p++) & 255];
  return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const void *data, size_t n) {
  const uint8_t *p = data;
  uint64_t c = ~crc;
  for (; n >= 8; n -= 8, p += 8) c = _mm_crc32_u64(c, load_u64le(p));
  for (; n > 0; n--) c = _mm_crc32_u8((uint32_t)c, *p++);
  return ~(uint32_t)c;
}

uint32_t crc32c(uint32_t crc, const void *data, size_t n) { return __builtin_cpu_supports("sse4.2") ? crc32c_sse42(crc, data, n) : crc32c_plain(crc, data, n); }
#else
uint32_t crc32c(uint32_t crc, const void *data, size_t n) { return crc32c_plain(crc, data, n); }
#endif

// ---- SHA-256 (FIPS 180-4) ----

static const uint32_t sha_k[64] = {
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static inline uint32_t rotate_right(uint32_t x, int n) { return x >> n | x << (32 - n); }

// One round; the names of the eight words move on by one in the next, instead of the words.
#define SHA_ROUND(a, b, c, d, e, f, g, h, i) do { \
    uint32_t t1 = (h) + (rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25)) + (((e) & (f)) ^ (~(e) & (g))) + sha_k[i] + w[i]; \
    (d) += t1; \
    (h) = t1 + (rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22)) + (((a) & (b)) ^ ((a) & (c)) ^ ((b) & (c))); \
  } while (0)

void sha256_block_plain(uint32_t h[8], const uint8_t p[64]) {
  uint32_t w[64];
  for (int i = 0; i < 16; i++) w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
  for (int i = 16; i < 64; i++) {
    uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (rotate_right(a, 7) ^ rotate_right(a, 18) ^ a >> 3) + w[i - 7] + (rotate_right(b, 17) ^ rotate_right(b, 19) ^ b >> 10);
  }
  uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], k = h[7];
  for (int i = 0; i < 64; i += 8) {
    SHA_ROUND(a, b, c, d, e, f, g, k, i);
    SHA_ROUND(k, a, b, c, d, e, f, g, i + 1);
    SHA_ROUND(g, k, a, b, c, d, e, f, i + 2);
    SHA_ROUND(f, g, k, a, b, c, d, e, i + 3);
    SHA_ROUND(e, f, g, k, a, b, c, d, i + 4);
    SHA_ROUND(d, e, f, g, k, a, b, c, i + 5);
    SHA_ROUND(c, d, e, f, g, k, a, b, i + 6);
    SHA_ROUND(b, c, d, e, f, g, k, a, i + 7);
  }
  h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e, h[5] += f, h[6] += g, h[7] += k;
}

#if defined(__x86_64__)
// By the instructions that x86 has for it, two rounds each (Gulley et al., "Intel SHA Extensions", 2013): four times as fast. They want the eight
// words as a, b, e, f and c, d, g, h, the first of each in the highest place.
__attribute__((target("sha,sse4.1"))) static void sha_block_x86(uint32_t h[8], const uint8_t p[64]) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)h), 0xB1), hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(h + 4)), 0x1B);
  const __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xF0);
  __m128i w[4], x = abef, y = cdgh;
  for (int i = 0; i < 4; i++) w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(p + 16 * i)), swap);
  for (int i = 0; i < 16; i++) {   // four rounds; w[i % 4] becomes the words of those four turns later
    const __m128i wk = _mm_add_epi32(w[i % 4], _mm_loadu_si128((const __m128i *)(sha_k + 4 * i)));
    y = _mm_sha256rnds2_epu32(y, x, wk);
    x = _mm_sha256rnds2_epu32(x, y, _mm_shuffle_epi32(wk, 0x0E));
    const __m128i newest = w[(i + 3) % 4], seven_ago = _mm_alignr_epi8(newest, w[(i + 2) % 4], 4);
    w[i % 4] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]), seven_ago), newest);
  }
  x = _mm_shuffle_epi32(_mm_add_epi32(x, abef), 0x1B), y = _mm_shuffle_epi32(_mm_add_epi32(y, cdgh), 0xB1);
  _mm_storeu_si128((__m128i *)h, _mm_blend_epi16(x, y, 0xF0));
  _mm_storeu_si128((__m128i *)(h + 4), _mm_alignr_epi8(y, x, 8));
}

static bool has_sha;
static void look_for_sha(void) __attribute__((constructor));
static void look_for_sha(void) {
  unsigned a, b = 0, c, d;
  __builtin_cpu_init();
  has_sha = __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 29 & 1;   // gcc 12 has no name for it
}

static void sha_block(uint32_t h[8], const uint8_t p[64]) {
  if (has_sha) sha_block_x86(h, p); else sha256_block_plain(h, p);
}
#else
static void sha_block(uint32_t h[8], const uint8_t p[64]) { sha256_block_plain(h, p); }
#endif

void sha256_init(Sha256 *s) {
  *s = (Sha256){.h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
}

void sha256_update(Sha256 *s, const void *data, size_t n) {
  const uint8_t *p = data;
  size_t have = s->bytes % 64;
  s->bytes += n;
  if (have) {
    size_t take = MIN(n, 64 - have);
    memcpy(s->block + have, p, take);
    p += take;
    n -= take;
    if (have + take < 64) return;
    sha_block(s->h, s->block);
  }
  for (; n >= 64; n -= 64, p += 64) sha_block(s->h, p);
  if (n) memcpy(s->block, p, n);
}

void sha256_final(Sha256 *s, uint8_t digest[32]) {
  uint64_t bits = s->bytes * 8;
  uint8_t pad[72] = {0x80};
  size_t have = s->bytes % 64, n = (have < 56 ? 56 : 120) - have;
  for (int i = 0; i < 8; i++) pad[n + (size_t)i] = (uint8_t)(bits >> (56 - 8 * i));
  sha256_update(s, pad, n + 8);
  for (int i = 0; i < 32; i++) digest[i] = (uint8_t)(s->h[i / 4] >> (24 - 8 * (i % 4)));
}

void sha256_hex(const uint8_t digest[32], char hex[65]) {
  for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

void sha256_of(const void *data, size_t n, char hex[65]) {
  Sha256 s;
  uint8_t digest[32];
  sha256_init(&s);
  sha256_update(&s, data, n);
  sha256_final(&s, digest);
  sha256_hex(digest, hex);
}

// ---- small things ----

bool cursor_take(Cursor *c, size_t n, const uint8_t **p) {
  if (n > c->size - c->pos) return false;
  *p = c->data + c->pos;
  c->pos += n;
  return true;
}

double seconds_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static size_t edit_distance(const char *a, const char *b) {
  enum { LONGEST = 64 };
  size_t n = strlen(a), m = strlen(b), row[LONGEST + 1];
  if (n > LONGEST || m > LONGEST) return SIZE_MAX;
  for (size_t j = 0; j <= m; j++) row[j] = j;
  for (size_t i = 1; i <= n; i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= m; j++) {
      size_t above = row[j], change = diagonal + (a[i - 1] != b[j - 1]);
      row[j] = MIN(change, MIN(above, row[j - 1]) + 1);
      diagonal = above;
    }
  }
  return row[m];
}

const char *nearest(const char *word, const char *const *candidates, size_t count) {
  const char *best = NULL;
  size_t least = MAX((size_t)2, strlen(word) / 2) + 1;   // farther than this is no misspelling
  for (size_t i = 0; i < count; i++) {
    size_t d = edit_distance(word, candidates[i]);
    if (d < least) { least = d; best = candidates[i]; }
  }
  return best;
}
