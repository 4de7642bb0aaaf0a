// guard_heap.h: owns a heap for tests on which no access goes astray unseen, without a sanitizer: behind each block (rounded up to eight bytes) lies
// a page that must not be touched, and in front of it a mark, looked at when it is freed. After Electric Fence (Perens 1987).
//
//   guarded = true; ...; guarded = false;     what is allocated in between; it may be freed and resized at any time
//   char *text = at_the_edge("abc", 3);       a copy that ends where that page begins; freed by free()
//
// A block takes pages of its own, so: for small inputs. Under a sanitizer, which watches itself, and without glibc it is an ordinary heap.
#pragma once
#include <malloc.h>    // malloc_usable_size
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>  // mmap, mprotect

static bool guarded;
static long guarded_blocks;   // that are not freed yet; always 0 where it is an ordinary heap
static size_t guarded_alignment = 8, guarded_least;   // smaller blocks are ordinary ones

#if defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *p, size_t n);
void __libc_free(void *p);

typedef struct { char *base; size_t span, bytes; uint64_t mark; } GuardedBlock;   // stands in front of the block, at any address
#define GUARDED_MARK 0x5afe0b10cca11edau   // where glibc has the size of a block, which is less
enum { GUARDED_PAGE = 1 << 16 };           // a multiple of the page of any machine

static GuardedBlock guarded_block(const void *p) {   // of another block only the mark is there for certain
  GuardedBlock b = {0};
  memcpy(&b.mark, (const char *)p - sizeof b.mark, sizeof b.mark);
  if (b.mark == GUARDED_MARK) memcpy(&b, (const char *)p - sizeof b, sizeof b);
  return b;
}

static void *guarded_malloc(size_t n) {
  if (n < guarded_least || n > (size_t)1 << 40) return __libc_malloc(n);
  const size_t room = (n + guarded_alignment - 1) / guarded_alignment * guarded_alignment;
  const size_t span = (room + sizeof(GuardedBlock) + GUARDED_PAGE - 1) / GUARDED_PAGE * GUARDED_PAGE;
  char *base = mmap(NULL, span + GUARDED_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return __libc_malloc(n);   // there may be too many
  mprotect(base + span, GUARDED_PAGE, PROT_NONE);
  char *p = base + span - room;
  GuardedBlock b = {base, span, n, GUARDED_MARK};
  memcpy(p - sizeof b, &b, sizeof b);
  memset(p, 0xa5, n);
  guarded_blocks++;
  return p;
}

void *malloc(size_t n) { return guarded ? guarded_malloc(n) : __libc_malloc(n); }

void *calloc(size_t count, size_t size) {
  size_t n;
  if (!guarded || __builtin_mul_overflow(count, size, &n)) return __libc_calloc(count, size);
  void *p = guarded_malloc(n);
  return p ? memset(p, 0, n) : NULL;
}

void free(void *p) {
  if (!p) return;
  const GuardedBlock b = guarded_block(p);
  if (b.mark == GUARDED_MARK) guarded_blocks--, munmap(b.base, b.span + GUARDED_PAGE);
  else __libc_free(p);   // a block whose mark was written over is none of glibc's: it ends the process
}

void *realloc(void *p, size_t n) {
  if (!p) return malloc(n);
  const GuardedBlock b = guarded_block(p);
  if (!guarded && b.mark != GUARDED_MARK) return __libc_realloc(p, n);
  const size_t had = b.mark == GUARDED_MARK ? b.bytes : malloc_usable_size(p);
  void *q = malloc(n);
  if (!q) return NULL;
  memcpy(q, p, had < n ? had : n);
  free(p);
  return q;
}
#endif

static inline char *at_the_edge(const void *text, size_t n) {
  const bool before = guarded;
  guarded = true, guarded_alignment = 1;
  char *copy = malloc(n);
  guarded = before, guarded_alignment = 8;
  if (!copy) abort();
  return n ? memcpy(copy, text, n) : copy;
}
