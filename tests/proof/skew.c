/* A clock that jumps and a disk that is slow, for the process that preloads this.
 *
 * PROOF_SKEW names a file of two 64-bit numbers, which its writer changes while the process
 * runs: nanoseconds that the wall clock is off by, and microseconds that each write to or sync of
 * a regular file takes longer. The monotonic clock is left alone, as it is where clocks are set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct skew {
    volatile int64_t clock_ns;
    volatile int64_t disk_us;
};

static const struct skew none;
static const struct skew *skew = &none;

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("PROOF_SKEW");
    int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    void *found = mmap(NULL, sizeof(struct skew), PROT_READ, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) skew = found;
    close(fd);
}

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) real = next("clock_gettime");
    int status = real(clock, now);
    int64_t off = skew->clock_ns;
    if (status == 0 && off != 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t total = now->tv_sec * 1000000000LL + now->tv_nsec + off;
        now->tv_sec = total / 1000000000LL;
        now->tv_nsec = total % 1000000000LL;
    }
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (out != NULL) *out = exact.tv_sec;
    return exact.tv_sec;
}

static void drag(int fd) {
    int64_t us = skew->disk_us;
    struct stat found;
    if (us <= 0 || fstat(fd, &found) != 0 || !S_ISREG(found.st_mode)) return;
    int kept = errno;
    struct timespec wait = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&wait, NULL);
    errno = kept;
}

#define SLOW(result, name, parameters, arguments)          \
    result name parameters {                               \
        static result(*real) parameters;                   \
        if (real == NULL) real = next(#name);              \
        drag(fd);                                          \
        return real arguments;                             \
    }

SLOW(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
SLOW(ssize_t, writev, (int fd, const struct iovec *data, int count), (fd, data, count))
SLOW(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
SLOW(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
SLOW(int, fsync, (int fd), (fd))
SLOW(int, fdatasync, (int fd), (fd))
