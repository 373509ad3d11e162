/*
 * Generated code and a limit on memory; a part of the preloaded arena.
 *
 * Where a limit stands on what a process may write (RLIMIT_DATA), oneDNN's code counts with the
 * 256 KiB that are mapped for each kernel, of which some 10 KiB are ever touched: 5 to 40 MiB of a
 * training that takes no memory. So the limit moves up with each such range, and down when it is
 * given back.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define LARGEST ((size_t)1024 * 1024)
#define MAX_CODES 16384

static struct range {
    char *at;
    size_t bytes;
} codes[MAX_CODES]; /* writable and executable */
static int code_count;
static pthread_mutex_t codes_lock = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void) { pthread_mutex_lock(&codes_lock); }
static void after_fork(void) { pthread_mutex_unlock(&codes_lock); }

__attribute__((constructor)) static void survive_forks(void) {
    pthread_atfork(before_fork, after_fork, after_fork);
}

/* Move the limit on writable memory, where there is one; with the lock held. */
static void move_limit(size_t bytes, int up) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_DATA, &limit) || limit.rlim_cur == RLIM_INFINITY) return;
    if (up && limit.rlim_max - limit.rlim_cur < bytes) bytes = limit.rlim_max - limit.rlim_cur;
    if (!up && limit.rlim_cur < bytes) bytes = limit.rlim_cur;
    limit.rlim_cur = up ? limit.rlim_cur + bytes : limit.rlim_cur - bytes;
    setrlimit(RLIMIT_DATA, &limit);
}

/* As the C library's; a range that is writable and executable from now on is generated code. */
API int mprotect(void *at, size_t bytes, int protection) {
    const int failed = (int)syscall(SYS_mprotect, at, bytes, protection);
    if (failed || bytes > LARGEST) return failed;
    const int is_code = (protection & PROT_WRITE) && (protection & PROT_EXEC);
    pthread_mutex_lock(&codes_lock);
    int i = code_count - 1;
    while (i >= 0 && codes[i].at != at) --i;
    if (is_code && i < 0 && code_count < MAX_CODES) {
        codes[code_count++] = (struct range){at, bytes};
        move_limit(bytes, 1);
    } else if (!is_code && i >= 0) {
        move_limit(codes[i].bytes, 0);
        codes[i] = codes[--code_count];
    }
    pthread_mutex_unlock(&codes_lock);
    return 0;
}
