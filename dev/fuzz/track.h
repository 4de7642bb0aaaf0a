// track.h: put in front of every source of a fuzz target (-include), so that fuzz.c knows what memory an input has taken. See fuzz.c.
#pragma once
#include <stdlib.h>
#include <string.h>
void *tracked_malloc(size_t n);
void *tracked_calloc(size_t count, size_t size);
void *tracked_realloc(void *p, size_t n);
void tracked_free(void *p);
#define malloc tracked_malloc
#define calloc tracked_calloc
#define realloc tracked_realloc
#define free tracked_free
