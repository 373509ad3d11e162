/* Large blocks of the preloaded allocator (arena.c), as the functions that replace the C library's use them. */
#ifndef REVEDGE_ARENA_H
#define REVEDGE_ARENA_H

#include <stddef.h>
#include <sys/mman.h>

#define API __attribute__((visibility("default")))
#define LARGE ((size_t)64 * 1024) /* bytes from which on a block is the arena's */

/* The kernel's mmap: the one that programs call is ours (replaced.c). */
void *arena_map(void *at, size_t bytes, int protection, int flags, int file, off_t offset);

/* A block of at least `bytes`; NULL if there is no memory, `*tried` 0 if the arena cannot serve. */
void *arena_take(size_t bytes, int *tried);

/* Whether `p` is a block of the arena; the next two ask for one. */
int arena_has(const void *p);
size_t arena_size_of(const void *p);
void arena_put(void *p);

/* Make room for a small block that a limit on memory left none. Returns whether there was any. */
int arena_make_room(void);

#endif
