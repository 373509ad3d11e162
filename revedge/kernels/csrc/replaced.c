/* The functions of the C library that the preloaded arena replaces: large blocks go to it, small ones on to glibc. */
#define _GNU_SOURCE
#include "arena.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#ifndef __GLIBC__
#error "the arena replaces functions of glibc by name"
#endif

#define CODE ((size_t)1024 * 1024) /* largest mapping taken for generated code (oneDNN's: 256 KiB) */

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static void *large(size_t bytes) {
    int tried;
    void *found = arena_take(bytes, &tried);
    if (!tried) return __libc_malloc(bytes);
    if (!found) errno = ENOMEM;
    return found;
}

API void *malloc(size_t bytes) {
    if (bytes >= LARGE) return large(bytes);
    void *found = __libc_malloc(bytes);
    while (!found && arena_make_room()) found = __libc_malloc(bytes);
    return found;
}

API void free(void *p) {
    if (arena_has(p)) arena_put(p);
    else __libc_free(p);
}

API void *calloc(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    if (bytes >= LARGE) {
        void *zeroed = large(bytes);
        return zeroed ? memset(zeroed, 0, bytes) : NULL;
    }
    void *found = __libc_calloc(count, size);
    while (!found && arena_make_room()) found = __libc_calloc(count, size);
    return found;
}

API void *realloc(void *p, size_t bytes) {
    if (!p) return malloc(bytes);
    if (!arena_has(p)) {
        void *moved = __libc_realloc(p, bytes);
        while (!moved && bytes && bytes < LARGE && arena_make_room()) moved = __libc_realloc(p, bytes);
        return moved;
    }
    size_t old = arena_size_of(p);
    if (bytes == 0) {
        free(p);
        return NULL;
    }
    if (bytes <= old && bytes > old / 2) return p;
    void *found = malloc(bytes);
    if (found) {
        memcpy(found, p, bytes < old ? bytes : old);
        free(p);
    }
    return found;
}

static void *aligned(size_t alignment, size_t bytes) {
    if (bytes < LARGE) {
        void *small = __libc_memalign(alignment, bytes);
        while (!small && arena_make_room()) small = __libc_memalign(alignment, bytes);
        return small;
    }
    if (alignment > (size_t)sysconf(_SC_PAGESIZE)) return __libc_memalign(alignment, bytes);
    int tried;
    void *found = arena_take(bytes, &tried);
    return tried ? found : __libc_memalign(alignment, bytes);
}

API void *memalign(size_t alignment, size_t bytes) { return aligned(alignment, bytes); }
API void *aligned_alloc(size_t alignment, size_t bytes) { return aligned(alignment, bytes); }

API int posix_memalign(void **out, size_t alignment, size_t bytes) {
    if (alignment < sizeof(void *) || (alignment & (alignment - 1))) return EINVAL;
    void *found = aligned(alignment, bytes);
    if (!found) return ENOMEM;
    *out = found;
    return 0;
}

API size_t malloc_usable_size(void *p) {
    static size_t (*next)(void *);
    if (!p) return 0;
    if (arena_has(p)) return arena_size_of(p);
    if (!next) *(void **)&next = dlsym(RTLD_NEXT, "malloc_usable_size");
    return next ? next(p) : 0;
}

/* Replaces the C library's for everyone but the C library, for the sake of generated code. */
API void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    void *found = arena_map(at, bytes, protection, flags, file, offset);
    const int code = (flags & MAP_ANONYMOUS) && (flags & MAP_PRIVATE) && bytes <= CODE;
    while (found == MAP_FAILED && errno == ENOMEM && code && arena_make_room())
        found = arena_map(at, bytes, protection, flags, file, offset);
    return found;
}

API void *mmap64(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    return mmap(at, bytes, protection, flags, file, offset);
}
