/* Between a program and libc: makes each call by name below one folder take longer, as a network file system does, and counts
 * them all. Knows nothing of what they are for. The environment says which folder (SLOW_BELOW), how many microseconds (SLOW_US)
 * and where the counts go at the end (SLOW_COUNTS).
 *
 * What is asked of an open file (fstat, close) is counted and costs nothing more: a client of such a file system knows it since
 * the file was opened.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { STAT, OPEN, FSTAT, KINDS };
static const char *const names[KINDS] = {"stat", "open", "fstat"};
static atomic_ulong counts[KINDS];
static char below[PATH_MAX];
static long pause_us;

__attribute__((constructor)) static void begin(void)
{
    const char *folder = getenv("SLOW_BELOW"), *us = getenv("SLOW_US");
    snprintf(below, sizeof below, "%s", folder ? folder : "");
    pause_us = us ? atol(us) : 0;
}

__attribute__((destructor)) static void end(void)
{
    const char *path = getenv("SLOW_COUNTS");
    FILE *into = path ? fopen(path, "w") : NULL;
    if (!into) return;
    for (int kind = 0; kind < KINDS; kind++) fprintf(into, "%s %lu\n", names[kind], atomic_load(&counts[kind]));
    fclose(into);
}

static int is_below(int folder, const char *name)
{
    char link[64], path[PATH_MAX];
    if (!below[0]) return 0;
    if (name && name[0] == '/') return !strncmp(name, below, strlen(below));
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = folder < 0 ? -1 : readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return !strncmp(path, below, strlen(below));
}

static void pass(int kind, int folder, const char *name)
{
    struct timespec pause = {0, pause_us * 1000};
    if (!is_below(folder, name)) return;
    atomic_fetch_add(&counts[kind], 1);
    if (kind != FSTAT && pause_us) nanosleep(&pause, NULL);
}

static mode_t mode_of(int flags, va_list rest) { return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; }

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fstatat64(int folder, const char *name, struct stat64 *into, int flags)
{
    pass(STAT, folder, name);
    return NEXT(fstatat64)(folder, name, into, flags);
}
int stat64(const char *name, struct stat64 *into) { pass(STAT, AT_FDCWD, name); return NEXT(stat64)(name, into); }
int lstat64(const char *name, struct stat64 *into) { pass(STAT, AT_FDCWD, name); return NEXT(lstat64)(name, into); }
int fstat64(int fd, struct stat64 *into) { pass(FSTAT, fd, NULL); return NEXT(fstat64)(fd, into); }

int open64(const char *name, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    pass(OPEN, AT_FDCWD, name);
    return NEXT(open64)(name, flags, mode);
}

int openat64(int folder, const char *name, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    pass(OPEN, folder, name);
    return NEXT(openat64)(folder, name, flags, mode);
}

/* openat2(2) has no function of its own in libc. */
long syscall(long number, ...)
{
    long with[6];
    va_list rest;
    va_start(rest, number);
    for (int place = 0; place < 6; place++) with[place] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_openat2) pass(OPEN, (int)with[0], (const char *)with[1]);
    return NEXT(syscall)(number, with[0], with[1], with[2], with[3], with[4], with[5]);
}
