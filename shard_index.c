// shard_index.c: owns the index of a shard's documents: its format, reading and checking. See dataloader.h.
#include "dataloader.h"
#include <errno.h>      // errno
#include <fcntl.h>      // open
#include <stdlib.h>     // free
#include <string.h>     // strlen, strerror
#include <sys/stat.h>   // fstat
#include <unistd.h>     // close

enum { INDEX_FORMAT = 1 };

char *shard_index_path(const char *shard) {
  size_t n = strlen(shard);
  if (n >= 4 && !strcmp(shard + n - 4, ".bin")) n -= 4;
  return format("%.*s.idx", (int)n, shard);
}

void shard_index_header(const ShardIndex *x, uint8_t header[INDEX_HEADER_BYTES]) {
  store_u32le(header, INDEX_MAGIC);
  store_u32le(header + INDEX_AT_FORMAT, INDEX_FORMAT);
  store_u64le(header + INDEX_AT_COUNT, (uint64_t)x->count);
  store_u64le(header + INDEX_AT_TOKENS, (uint64_t)x->tokens);
  store_u32le(header + INDEX_AT_SHARD, x->shard_crc);
  store_u32le(header + INDEX_AT_CRC, x->crc);
}

static int64_t place_of(int64_t start) { return INDEX_HEADER_BYTES + 8 * start; }

// A reason, or NULL. The count is no larger than the shard's tokens, which its own size vouches for.
static char *check_index(const Shard *s, const ShardIndex *x, int64_t size) {
  if (x->count != s->documents)
    return format("byte %d: %lld starts, %s has %lld documents", INDEX_AT_COUNT, (long long)x->count, s->path, (long long)s->documents);
  if (x->tokens != s->count)
    return format("byte %d: made for a shard of %lld tokens, %s has %lld", INDEX_AT_TOKENS, (long long)x->tokens, s->path, (long long)s->count);
  if (x->shard_crc != s->crc)
    return format("byte %d: made for a shard with checksum %08x, %s has %08x", INDEX_AT_SHARD, x->shard_crc, s->path, s->crc);
  int64_t needed = place_of(x->count);
  if (size < needed)
    return format("byte %lld: the file ends, %lld starts need %lld bytes: it was cut off", (long long)size, (long long)x->count, (long long)needed);
  if (size > needed)
    return format("byte %lld: %lld starts end here, the file has %lld bytes: something stands behind them", (long long)needed,
                  (long long)x->count, (long long)size);
  return NULL;
}

static char *open_and_look(const Shard *s, ShardIndex *x, int *code) {
  struct stat st;
  uint8_t h[INDEX_HEADER_BYTES];
  *code = EXIT_REQUEST;
  if (fstat(x->fd, &st) || !S_ISREG(st.st_mode)) return format("is no regular file, an index of documents is needed");
  if (st.st_size < INDEX_HEADER_BYTES)
    return format("%lld bytes, an index of documents has at least %d of header", (long long)st.st_size, INDEX_HEADER_BYTES);
  if (!pread_all(x->fd, h, sizeof h, 0)) {
    *code = EXIT_MACHINE;
    return format("reading the header failed: %s", strerror(errno));
  }
  uint32_t magic = load_u32le(h), version = load_u32le(h + INDEX_AT_FORMAT);
  if (magic != INDEX_MAGIC) return format("byte 0: magic number %u, an index of documents has %u", magic, (uint32_t)INDEX_MAGIC);
  if (version != INDEX_FORMAT)
    return format("byte %d: index format version %u, this program reads version %d; use a newer gpt", INDEX_AT_FORMAT, version, INDEX_FORMAT);
  *code = EXIT_NO;
  x->count = (int64_t)load_u64le(h + INDEX_AT_COUNT);
  x->tokens = (int64_t)load_u64le(h + INDEX_AT_TOKENS);
  x->shard_crc = load_u32le(h + INDEX_AT_SHARD);
  x->crc = load_u32le(h + INDEX_AT_CRC);
  return check_index(s, x, (int64_t)st.st_size);
}

int shard_index_try_open(const Shard *s, ShardIndex *x, char **why) {
  int code = EXIT_REQUEST;
  *x = (ShardIndex){.fd = -1};
  if (!s->ours) return 0;
  x->path = shard_index_path(s->path);
  x->fd = open(x->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);   // not blocking: a named pipe must not stop us here
  bool none = x->fd < 0 && errno == ENOENT;
  if (x->fd < 0 && is_machine_errno(errno)) code = EXIT_MACHINE;
  char *reason = x->fd >= 0 ? open_and_look(s, x, &code) : none ? NULL : format("cannot open the index of documents: %s", strerror(errno));
  if (reason)
    *why = format("%s: %s%s", x->path, reason, code == EXIT_MACHINE ? "" : "; make the shards again, or remove this file and do without it");
  if (reason || none) shard_index_close(x);
  free(reason);
  return reason ? code : 0;
}

void shard_index_close(ShardIndex *x) {
  if (x->fd >= 0) close(x->fd);
  free(x->path);
  *x = (ShardIndex){.fd = -1};
}

int shard_index_read(const ShardIndex *x, int64_t first, size_t n, int64_t above, int64_t *starts, uint32_t *crc, char **why) {
  uint8_t *raw = (uint8_t *)starts;
  if (!pread_all(x->fd, raw, 8 * n, place_of(first))) {
    *why = format("%s: byte %lld: reading %zu starts failed: the file became shorter or the disk failed", x->path, (long long)place_of(first), n);
    return EXIT_MACHINE;
  }
  if (crc) *crc = crc32c(*crc, raw, 8 * n);
  for (size_t i = 0; i < n; i++) {
    const int64_t number = first + (int64_t)i;
    starts[i] = (int64_t)load_u64le(raw + 8 * i);
    // so many others stand before start `number` and behind it
    int64_t least = MAX(above + 1, number), most = x->tokens - (x->count - number);
    above = starts[i];
    if (above >= least && above <= most) continue;
    *why = format("%s: byte %lld: document %lld begins at token %lld, it must be %lld to %lld", x->path, (long long)place_of(number),
                  (long long)number, (long long)above, (long long)least, (long long)most);
    return EXIT_NO;
  }
  return 0;
}

bool shard_index_next(IndexWalk *w, int64_t *start) {
  const ShardIndex *x = w->index;
  if (w->used == w->have) {
    int64_t last = w->have ? w->starts[w->have - 1] : -1;
    w->used = 0;
    w->have = (size_t)MIN((int64_t)ARRAY_LEN(w->starts), x->count - w->read);
    w->code = shard_index_read(x, w->read, w->have, last, w->starts, &w->crc, &w->why);
    w->read += (int64_t)w->have;
    if (!w->code && w->read == x->count && w->crc != x->crc) {
      w->code = EXIT_NO;
      w->why = format("%s: bytes %d to %lld: checksum %08x, byte %d says %08x", x->path, INDEX_HEADER_BYTES, (long long)place_of(x->count) - 1,
                      w->crc, INDEX_AT_CRC, x->crc);
    }
    if (w->code || !w->have) return false;
  }
  *start = w->starts[w->used++];
  return true;
}
