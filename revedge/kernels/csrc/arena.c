/* An allocator for large blocks that never holds more than was in use at once.
 *
 * Preloaded into a training process (LD_PRELOAD), it serves every block of 64 KiB or more; smaller
 * ones go to the C library. A freed block is kept for the next step, but only while
 *
 *     live + kept <= largest live so far,
 *
 * so that the resident memory of the process never exceeds the peak of its live bytes, which is
 * what a plan predicts, while a training step, whose allocations repeat, takes no new pages.
 * The C library alone offers either (a low mmap threshold: every block new pages; the default: up
 * to twice the live bytes), not both.
 *
 * Blocks are whole pages inside one reserved range of addresses, so that `free` can tell ours from
 * the C library's by the address. The functions that programs call are in replaced.c.
 *
 * Where a limit on memory stands (RLIMIT_DATA), a large block that does not fit fails cleanly: torch
 * checks it. A small one does not: oneDNN ignores that there was no room for the code of a kernel,
 * and calls address 0 (seen in its brgemm convolutions). So a part of what the limit allows can be
 * held back, as address space without pages, for small blocks and for such code. Once that is
 * touched, no large block gets new pages any more: the next one fails, and the failure is a clean
 * one.
 */
#define _GNU_SOURCE
#include "arena.h"

#include <pthread.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_EXTENTS 65535 /* above that, blocks go to the C library */
#define SLICE ((size_t)512 * 1024)   /* of the reserve, given to one small block */

enum state { UNUSED, EMPTY, KEPT, LIVE };

/* A range of pages; extents stand in a list in the order of their addresses. */
struct extent {
    uint32_t first, pages;
    uint32_t before, after; /* indices, 0 at the ends */
    uint32_t freed_at;      /* order in which kept extents were freed */
    uint32_t state;
};

static struct extent extents[MAX_EXTENTS + 1];
static uint32_t spare[MAX_EXTENTS]; /* indices of unused extents */
static uint32_t spares, head, clock_now;
static uint32_t *owner; /* page -> extent that starts there */
static char *base;
static size_t page_size, region_pages;
static size_t live, kept, peak; /* pages */
static int ready; /* 0 not tried, 1 yes, -1 no */
static char *reserved; /* address space that counts against the limit, and holds no page */
static size_t reserved_bytes;
static int broken; /* a part of the reserve was needed */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }

void *arena_map(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    return (void *)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
}

/* The kernel's mprotect; code.c has another. */
static int protect(void *at, size_t bytes, int protection) {
    return (int)syscall(SYS_mprotect, at, bytes, protection);
}

static void *reserve(size_t bytes, int protection) {
    void *found = arena_map(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return found == MAP_FAILED ? NULL : found;
}

/* Called with the lock held, at the first large block. */
static int start(void) {
    if (ready) return ready > 0;
    ready = -1;
    page_size = (size_t)sysconf(_SC_PAGESIZE);
    region_pages = (size_t)sysconf(_SC_PHYS_PAGES) * 2;
    if (region_pages > UINT32_MAX / 2) region_pages = UINT32_MAX / 2;
    base = reserve(region_pages * page_size, PROT_NONE);
    owner = reserve(region_pages * sizeof *owner, PROT_READ | PROT_WRITE);
    if (!base || !owner) return 0;
    for (uint32_t i = MAX_EXTENTS; i >= 2; --i) spare[spares++] = i;
    extents[1] = (struct extent){.first = 0, .pages = (uint32_t)region_pages, .state = EMPTY};
    head = 1;
    pthread_atfork(before_fork, after_fork, after_fork);
    ready = 1;
    return 1;
}

int arena_has(const void *p) {
    return base && (const char *)p >= base && (const char *)p < base + region_pages * page_size;
}

static char *address(const struct extent *e) { return base + (size_t)e->first * page_size; }

/* Take `after` of `e` off the list and into `e`. */
static void swallow(struct extent *e, uint32_t after) {
    struct extent *next = &extents[after];
    e->pages += next->pages;
    e->after = next->after;
    if (next->after) extents[next->after].before = (uint32_t)(e - extents);
    next->state = UNUSED;
    spare[spares++] = after;
}

/* Cut `e` to `pages`; the rest becomes an extent of the same state. Returns 0 without a spare one. */
static int cut(struct extent *e, uint32_t pages) {
    if (e->pages == pages) return 1;
    if (!spares) return 0;
    uint32_t index = spare[--spares], self = (uint32_t)(e - extents);
    struct extent *rest = &extents[index];
    *rest = *e;
    rest->first = e->first + pages;
    rest->pages = e->pages - pages;
    rest->before = self;
    if (e->after) extents[e->after].before = index;
    e->after = index;
    e->pages = pages;
    return 1;
}

/* Give the pages of a kept extent back to the system. */
static void give_back(struct extent *e) {
    arena_map(address(e), (size_t)e->pages * page_size, PROT_NONE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    kept -= e->pages;
    e->state = EMPTY;
    if (e->after && extents[e->after].state == EMPTY) swallow(e, e->after);
    if (e->before && extents[e->before].state == EMPTY) {
        uint32_t self = (uint32_t)(e - extents);
        swallow(&extents[e->before], self);
    }
}

/* Give back kept extents, those freed longest ago first, until live + kept <= limit. */
static void shrink(size_t limit) {
    while (kept && live + kept > limit) {
        struct extent *oldest = NULL;
        for (uint32_t i = head; i; i = extents[i].after)
            if (extents[i].state == KEPT &&
                (!oldest || clock_now - extents[i].freed_at > clock_now - oldest->freed_at))
                oldest = &extents[i];
        if (!oldest) return;
        give_back(oldest);
    }
}

static struct extent *smallest(uint32_t state, uint32_t pages) {
    struct extent *best = NULL;
    for (uint32_t i = head; i; i = extents[i].after) {
        struct extent *e = &extents[i];
        if (e->state != state || e->pages < pages || (best && best->pages <= e->pages)) continue;
        best = e;
        if (e->pages == pages) break;
    }
    return best;
}

/* Make one of kept extents that touch. */
static void join_kept(void) {
    for (uint32_t i = head; i; i = extents[i].after)
        while (extents[i].state == KEPT && extents[i].after &&
               extents[extents[i].after].state == KEPT)
            swallow(&extents[i], extents[i].after);
}

static void *take_kept(struct extent *e, uint32_t pages) {
    if (!cut(e, pages)) return NULL;
    kept -= pages;
    e->state = LIVE;
    live += pages;
    owner[e->first] = (uint32_t)(e - extents);
    return address(e);
}

static void *take_new(uint32_t pages) {
    if (broken) return NULL;
    struct extent *e = smallest(EMPTY, pages);
    if (!e || !cut(e, pages)) return NULL;
    size_t bytes = (size_t)pages * page_size;
    if (protect(address(e), bytes, PROT_READ | PROT_WRITE)) {
        shrink(live); /* a limit on memory was met: keep nothing, try once more */
        e = smallest(EMPTY, pages);
        if (!e || !cut(e, pages) || protect(address(e), bytes, PROT_READ | PROT_WRITE)) return NULL;
    }
    e->state = LIVE;
    live += pages;
    if (live > peak) peak = live;
    owner[e->first] = (uint32_t)(e - extents);
    return address(e);
}

/* What is kept goes first, then a slice of the reserve. */
int arena_make_room(void) {
    pthread_mutex_lock(&lock);
    const int any = kept > 0 || reserved_bytes > 0;
    if (kept) {
        shrink(0);
    } else if (reserved_bytes) {
        const size_t bytes = reserved_bytes < SLICE ? reserved_bytes : SLICE;
        reserved_bytes -= bytes;
        munmap(reserved + reserved_bytes, bytes);
        broken = 1;
    }
    pthread_mutex_unlock(&lock);
    return any;
}

void *arena_take(size_t bytes, int *tried) {
    void *found = NULL;
    pthread_mutex_lock(&lock);
    *tried = start() && spares > 2 && bytes <= (region_pages - 1) * page_size;
    if (*tried) {
        uint32_t pages = (uint32_t)((bytes + page_size - 1) / page_size);
        struct extent *e = smallest(KEPT, pages);
        int fits = e && e->pages - pages <= pages / 8;
        if (!fits && live + kept + pages <= peak) {
            e = NULL; /* room for new pages: break up nothing */
        } else if (!e && kept >= pages) {
            join_kept();
            e = smallest(KEPT, pages);
        }
        if (e) {
            found = take_kept(e, pages);
            if (live > peak) peak = live;
        }
        if (!found) {
            shrink(peak > live + pages ? peak - pages : live);
            found = take_new(pages);
        }
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void arena_put(void *p) {
    pthread_mutex_lock(&lock);
    struct extent *e = &extents[owner[((char *)p - base) / page_size]];
    e->state = KEPT;
    e->freed_at = ++clock_now;
    live -= e->pages;
    kept += e->pages;
    pthread_mutex_unlock(&lock);
}

size_t arena_size_of(const void *p) {
    return (size_t)extents[owner[((const char *)p - base) / page_size]].pages * page_size;
}

/* Bytes that are [0] live, [1] kept, [2] the largest live so far. */
API void revedge_arena_bytes(size_t out[3]) {
    pthread_mutex_lock(&lock);
    out[0] = live * page_size;
    out[1] = kept * page_size;
    out[2] = peak * page_size;
    pthread_mutex_unlock(&lock);
}

/* Hold `bytes` back for small blocks (0: nothing) and forget that there was need. Returns 1, or 0 if
 * the limit does not leave so much. */
API int revedge_arena_reserve(size_t bytes) {
    pthread_mutex_lock(&lock);
    if (reserved_bytes) munmap(reserved, reserved_bytes);
    reserved = bytes ? reserve(bytes, PROT_READ | PROT_WRITE) : NULL;
    reserved_bytes = reserved ? bytes : 0;
    broken = 0;
    pthread_mutex_unlock(&lock);
    return !bytes || reserved;
}

/* Keep nothing, and count the peak from here. */
API void revedge_arena_reset(void) {
    pthread_mutex_lock(&lock);
    shrink(0);
    peak = live;
    pthread_mutex_unlock(&lock);
}
