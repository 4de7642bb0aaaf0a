// fuzz.c: owns the fuzz targets (libFuzzer with AddressSanitizer and UBSan): any bytes as tokenizer.json, as .tiktoken file, as shard, as a
// shard's index of documents, as text.
//
// Built once per target, -DTARGET=fuzz_json and so on (`make fuzz`, dev/fuzz/fuzz.mk has their list). An input ends in one of two ways: it is taken,
// then everything it took is given back; or fail() is called, whose handler jumps back here instead of ending the process, and what was
// taken is freed for it. Neither may take more than 64 MiB above the input, nor longer than a second (libFuzzer's -timeout).
#include "../../dataloader.h"
#include "../../tokenizer_internal.h"
#include <malloc.h>   // malloc_usable_size
#include <setjmp.h>   // setjmp
#include <unistd.h>   // getpid

// ---- memory that an input has taken ----
#undef malloc   // from here on the real ones: what the program has taken (xmalloc) is given back with tracked_free, never with free
#undef calloc
#undef realloc
#undef free

enum { SLOTS = 1 << 17, ROOM = 64 << 20 };
static void *slots[SLOTS];   // open addressing by address
static size_t taken, held, allowed;
static bool tracking;

static size_t slot_of(const void *p) {
  size_t at = ((uintptr_t)p >> 4) * 0x9e3779b97f4a7c15u >> 47;
  while (slots[at] && slots[at] != p) at = (at + 1) % SLOTS;
  return at;
}

static void *take(void *p) {
  if (!p || !tracking) return p;
  slots[slot_of(p)] = p;
  if (++taken > SLOTS / 2) { fprintf(stderr, "more than %d blocks of memory at once\n", SLOTS / 2); abort(); }
  held += malloc_usable_size(p);
  if (held > allowed) { fprintf(stderr, "%zu bytes of memory, allowed are %zu\n", held, allowed); abort(); }
  return p;
}

static void drop(void *p) {
  size_t at = slot_of(p);
  if (!p || !slots[at]) return;   // taken before this input, or by libc itself
  held -= malloc_usable_size(p);
  taken--;
  slots[at] = NULL;
  for (size_t next = (at + 1) % SLOTS; slots[next]; next = (next + 1) % SLOTS) {   // those behind the gap may have come here by it
    void *moved = slots[next];
    slots[next] = NULL;
    slots[slot_of(moved)] = moved;
  }
}

void *tracked_malloc(size_t n) { return take(malloc(n)); }
void *tracked_calloc(size_t count, size_t size) { return take(calloc(count, size)); }
void *tracked_realloc(void *p, size_t n) { drop(p); return take(realloc(p, n)); }
void tracked_free(void *p) { drop(p); free(p); }

static void free_all(void) {
  for (size_t i = 0; i < SLOTS && taken > 0; i++)
    while (slots[i]) { void *p = slots[i]; drop(p); free(p); }
}

// ---- the targets: true: the input was taken ----

static const char *file_of(const uint8_t *data, size_t n, const char *ending) {
  static char path[100];
  snprintf(path, sizeof path, "/dev/shm/gpt_fuzz_%d%s", (int)getpid(), ending);
  FILE *f = fopen(path, "wb");
  if (!f || (n && fwrite(data, 1, n, f) != n) || fclose(f)) abort();
  return path;
}

static void require(bool ok, const char *what) {
  if (ok) return;
  fprintf(stderr, "%s\n", what);
  abort();
}

static void round_trip(const Tokenizer *t, TokenBuffer *ids, const char *text, size_t n, TokenizerSpecial special) {
  Buffer back = {0};
  for (int again = 0; again < 2; again++) {   // the second time from the cache
    ids->count = back.len = 0;
    if (tokenizer_encode(t, text, n, ids, special) < 0) break;
    require(tokenizer_decode(t, ids->ids, ids->count, &back) < 0 && back.len == n && (n == 0 || !memcmp(back.data, text, n)), "decode(encode(x)) is not x");
  }
  buffer_free(&back);
}

static void try_it(const Tokenizer *t, TokenizerSpecial special) {
  static const char text[] = "It's 12345 words,\n  and more";
  TokenBuffer ids = {0};
  round_trip(t, &ids, text, sizeof text - 1, special);
  token_buffer_free(&ids);
}

__attribute__((unused)) static void fuzz_json(const uint8_t *data, size_t n) {
  Tokenizer *t = tokenizer_from_json("json", (const char *)data, n);
  Buffer out = {0};
  tokenizer_json(t, &out);
  try_it(t, SPECIAL_ALL);
  buffer_free(&out);
  tokenizer_free(t);
}

__attribute__((unused)) static void fuzz_ranks(const uint8_t *data, size_t n) {
  Tokenizer *t = tokenizer_open(file_of(data, n, ".tiktoken"));
  try_it(t, SPECIAL_NONE);
  tokenizer_free(t);
}

static Dataloader *opened;
__attribute__((unused)) static void fuzz_shard(const uint8_t *data, size_t n) {
  char *paths[1] = {(char *)file_of(data, n, ".bin")};
  ShardKind kind = n % 8 == 7 ? SHARD_RAW_U16 : SHARD_HEADER;
  opened = dataloader_open_paths(paths, 1, kind, kind == SHARD_RAW_U16 ? 65536 : 0);
  dataloader_arrange(opened, 7, ORDER_STREAM, 1);
  int32_t inputs[7], targets[7];
  int64_t windows = dataloader_windows(opened), counted = 0;
  for (int64_t i = 0; i < windows && i < 2000; i++) counted += dataloader_sample(opened, i, inputs, targets);
  require(windows > 2000 || counted == dataloader_tokens(opened) - 1, "a token is no target, or twice one");
  dataloader_close(opened);
  opened = NULL;
}

// The index of a shard that has as many documents as fit the input. Its header is made, for by chance none would belong to the shard and to the
// starts that follow, and then one byte of it is changed as the input's first byte says (below 32: none; 255: the header is the input's own).
__attribute__((unused)) static void fuzz_index(const uint8_t *data, size_t n) {
  enum { TOKENS = 2000, OWN_HEADER = 255 };
  static uint8_t shard[SHARD_HEADER_BYTES + 2 * TOKENS], index[1 << 15];
  static int64_t starts[TOKENS];
  static char path[100];
  const int change = n ? data[0] : 0;
  n = MIN(n, sizeof index);
  if (n) memcpy(index, data + 1, --n);
  Shard s = {.width = 2, .count = TOKENS, .vocab = 10, .eot = 9, .crc = 0x12345678};
  if (n > INDEX_HEADER_BYTES) s.documents = MIN((int64_t)(n - INDEX_HEADER_BYTES) / 8, (int64_t)TOKENS);
  shard_header(&s, shard);
  if (n >= INDEX_HEADER_BYTES && change != OWN_HEADER) {
    const ShardIndex x = {.count = s.documents, .tokens = TOKENS, .shard_crc = s.crc, .crc = crc32c(0, index + INDEX_HEADER_BYTES, n - INDEX_HEADER_BYTES)};
    shard_index_header(&x, index);
    index[change % INDEX_HEADER_BYTES] ^= (uint8_t)(change / INDEX_HEADER_BYTES);
  }
  strcpy(path, file_of(shard, sizeof shard, ".bin"));
  file_of(index, n, ".idx");
  opened = dataloader_open_paths(&(char *){path}, 1, SHARD_HEADER, 0);
  const int64_t documents = dataloader_documents(opened);
  require(documents == s.documents, "an index was taken with another number of documents than the shard's");
  dataloader_document_starts(opened, 0, documents, starts);
  for (int64_t i = 0; i < documents; i++) require(starts[i] > (i ? starts[i - 1] : -1) && starts[i] < TOKENS, "starts are not in order");
  for (int64_t at = 0; at < TOKENS; at += 37) {
    const int64_t number = dataloader_document_at(opened, at);
    require((number < 0 || starts[number] <= at) && (number + 1 == documents || starts[number + 1] > at), "a token is in another document");
  }
  require(dataloader_longest_document(opened) < TOKENS, "a document longer than the shard");
  dataloader_arrange(opened, 7, ORDER_DOCUMENTS, 1);
  int32_t inputs[7], targets[7];
  int64_t counted = 0;
  for (int64_t i = 0; i < dataloader_windows(opened); i++) counted += dataloader_sample(opened, i, inputs, targets);
  require(counted == TOKENS - 1, "a token is no target, or twice one");
  dataloader_close(opened);
  opened = NULL;
}

__attribute__((unused)) static void fuzz_encode(const uint8_t *data, size_t n) {
  static Tokenizer *all[3];
  static TokenBuffer kept[3];   // with their words: an empty cache of 26 MiB for each input would take most of the time
  tracking = n % 16 == 0;       // but for some inputs
  if (!all[0]) {
    tracking = false;
    all[0] = tokenizer_gpt2(), all[1] = tokenizer_byte(true);
    TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_GPT4);
    const char *text = "it's the cat's own house, in 1999 or so;\n\n  they'll see the other cats there, 12 of them";
    tokenizer_trainer_add(trainer, text, strlen(text));
    all[2] = tokenizer_trainer_finish(trainer, 300, (const char *const[]){END_OF_TEXT}, 1);
  }
  const char *text = (const char *)data;
  for (int i = 0; i < 3; i++) {
    TokenBuffer fresh = {0};
    round_trip(all[i], tracking ? &fresh : &kept[i], text, n, n / 16 % 2 ? SPECIAL_ALL : SPECIAL_NONE);
    token_buffer_free(&fresh);
  }
  for (int way = 0; way < 4; way++)
    for (TokenizerCut cut = {.pattern = way < 2 ? PATTERN_GPT2 : PATTERN_GPT4, .text = text, .n = n}; cut.end < n;) {
      const TokenizerPattern pattern = cut.pattern;
      size_t ends[TOKENIZER_CUT], at = cut.end, count = way % 2 ? tokenizer_cut_any(&cut, ends) : tokenizer_cut(&cut, ends);
      for (size_t i = 0; i < count; at = ends[i++]) require(ends[i] == tokenizer_piece_end(pattern, text, n, at), "two ways of cutting, two pieces");
    }
}

// ---- libFuzzer ----

static jmp_buf refused;
static void jump(void *unused) { (void)unused; longjmp(refused, 1); }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  allowed = n + ROOM;
  tracking = true;
  at_fail(jump, NULL);
  if (setjmp(refused) == 0) {
    TARGET(data, n);
    at_fail_cancel(jump, NULL);
    require(taken == 0, "memory was not given back");
  }
  tracking = false;
  free_all();
  held = 0;
  opened = NULL;
  for (int fd = 3; fd < 20; fd++) close(fd);   // fail() leaves files open, for the process would end; libFuzzer's own are closed when they are not in use
  return 0;
}
