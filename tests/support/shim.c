/* Between a program and libc: writes down the calls that change files or talk to a server, lets the one that is named fail,
 * or kills the program there. Knows nothing of what the calls are for.
 *
 * The environment says what to do (shim.py writes it); `faults_arm` reads it again, for children of a process that was
 * started before the order was known. Nothing here allocates, locks, or calls what it stands in front of.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FOLDERS 4
#define TEXT 160
#define FICLONE_REQUEST 0x40049409UL

enum act { WATCH, KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_FROM };

static struct {
    int log;
    enum act act;
    unsigned long at;
    int error;
    int reads;
    char call[32];
    char stale[PATH_MAX];
    char below[FOLDERS][PATH_MAX];
} plan = {.log = -1};

static atomic_ulong ticks, numbers;
static atomic_int asked_anew;

struct passage {
    const char *name;
    char path[PATH_MAX], target[PATH_MAX], text[TEXT + 1];
    unsigned long started, number;
};

/* The order ------------------------------------------------------------------------------------------------------- */

static void read_setting(const char *name, char *into, size_t size)
{
    const char *value = getenv(name);
    snprintf(into, size, "%s", value ? value : "");
}

void faults_arm(void)
{
    static const char *const acts[] = {"watch", "kill before", "kill after", "fail once", "fail from"};
    char text[PATH_MAX], name[32];
    plan.act = WATCH;
    if (plan.log >= 0)
        syscall(SYS_close, plan.log);
    read_setting("FAULTS_LOG", text, sizeof text);
    plan.log = text[0] ? (int)syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    read_setting("FAULTS_CALL", plan.call, sizeof plan.call);
    read_setting("FAULTS_AT", text, sizeof text);
    plan.at = strtoul(text, NULL, 10);
    read_setting("FAULTS_ERRNO", text, sizeof text);
    plan.error = atoi(text);
    read_setting("FAULTS_READS", text, sizeof text);
    plan.reads = text[0] == '1';
    for (int i = 0; i < FOLDERS; i++) {
        snprintf(name, sizeof name, "FAULTS_BELOW_%d", i);
        read_setting(name, plan.below[i], sizeof plan.below[i]);
    }
    read_setting("FAULTS_STALE", plan.stale, sizeof plan.stale);
    atomic_store(&asked_anew, 0);
    atomic_store(&ticks, 0);
    atomic_store(&numbers, 0);
    read_setting("FAULTS_ACT", text, sizeof text);
    for (int act = WATCH; act <= FAIL_FROM; act++)
        if (strcmp(text, acts[act]) == 0)
            plan.act = (enum act)act;
}

__attribute__((constructor)) static void arm_at_start(void)
{
    faults_arm();
}

/* Paths ----------------------------------------------------------------------------------------------------------- */

static void path_of_descriptor(int descriptor, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
}

static void path_of_name(int folder, const char *name, char *path)
{
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, path, PATH_MAX) < 0)
            path[0] = 0;
    } else {
        path_of_descriptor(folder, path);
    }
    size_t length = strlen(path);
    snprintf(path + length, PATH_MAX - length, "/%s", name);
}

static int is_below(const char *path)
{
    for (int i = 0; i < FOLDERS; i++) {
        size_t length = strlen(plan.below[i]);
        if (length && strncmp(path, plan.below[i], length) == 0 && (path[length] == '/' || path[length] == 0))
            return 1;
    }
    return 0;
}

/* One call on its way --------------------------------------------------------------------------------------------- */

static size_t escape(char *into, size_t size, const char *from)
{
    size_t length = 0;
    for (; *from && length + 5 < size; from++) {
        unsigned char c = (unsigned char)*from;
        if (c < ' ' || c == '\\' || c >= 127)
            length += (size_t)snprintf(into + length, size - length, "\\x%02x", c);
        else
            into[length++] = (char)c;
    }
    into[length] = 0;
    return length;
}

static void write_down(const struct passage *p, const char *result, int error)
{
    char line[2 * PATH_MAX + 1024];
    if (plan.log < 0)
        return;
    size_t length = (size_t)snprintf(line, sizeof line, "%lu\t%lu\t%lu\t%ld\t%s\t", p->started,
                                     atomic_fetch_add(&ticks, 1), p->number, syscall(SYS_gettid), p->name);
    length += escape(line + length, PATH_MAX, p->path);
    line[length++] = '\t';
    length += escape(line + length, PATH_MAX, p->target);
    length += (size_t)snprintf(line + length, 64, "\t%s\t%d\t", result, error);
    length += escape(line + length, sizeof line - length - 1, p->text);
    line[length++] = '\n';
    syscall(SYS_write, plan.log, line, length);
}

static void die(const struct passage *p)
{
    write_down(p, "killed", 0);
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;)
        syscall(SYS_sched_yield);
}

/* Whether the call is to fail instead of being made. */
static int enter(struct passage *p, const char *name, int is_watched, int is_counted)
{
    p->name = is_watched ? name : NULL;
    p->number = 0;
    if (!is_watched)
        return 0;
    p->started = atomic_fetch_add(&ticks, 1);
    if (plan.call[0] ? strcmp(plan.call, name) == 0 : is_counted)
        p->number = atomic_fetch_add(&numbers, 1) + 1;
    if (plan.act == KILL_BEFORE && p->number == plan.at && p->number)
        die(p);
    return p->number && ((plan.act == FAIL_ONCE && p->number == plan.at) || (plan.act == FAIL_FROM && p->number >= plan.at));
}

static void leave(struct passage *p, long result, int error)
{
    char text[32];
    if (!p->name)
        return;
    if (plan.act == KILL_AFTER && p->number == plan.at && p->number)
        die(p);
    snprintf(text, sizeof text, "%ld", result);
    write_down(p, text, error);
}

static struct passage *by_descriptor(struct passage *p, int descriptor)
{
    path_of_descriptor(descriptor, p->path);
    p->target[0] = p->text[0] = 0;
    return p;
}

static struct passage *by_name(struct passage *p, int folder, const char *name)
{
    path_of_name(folder, name, p->path);
    p->target[0] = p->text[0] = 0;
    return p;
}

static struct passage *by_names(struct passage *p, int folder, const char *name, int other_folder, const char *other)
{
    path_of_name(folder, name, p->path);
    path_of_name(other_folder, other, p->target);
    p->text[0] = 0;
    return p;
}

static int is_inside(const struct passage *p)
{
    return is_below(p->path) || is_below(p->target);
}

static void *found(_Atomic(void *) *slot, const char *name)
{
    void *real = atomic_load(slot);
    if (!real)
        atomic_store(slot, real = dlsym(RTLD_NEXT, name));
    return real;
}

#define REAL(name) ({ static _Atomic(void *) slot; (__typeof__(&name))found(&slot, #name); })

/* A call that answers -1 and errno. */
#define PASS_IF(is_watched, is_counted, type, name, fill, ...) \
    struct passage p;                                           \
    type result = -1;                                           \
    fill;                                                       \
    if (enter(&p, #name, (is_watched), (is_counted)))           \
        errno = plan.error;                                     \
    else                                                        \
        result = REAL(name)(__VA_ARGS__);                       \
    int error = errno;                                          \
    leave(&p, (long)result, result == -1 ? error : 0);          \
    errno = error;                                              \
    return result

#define PASS(type, name, fill, ...) PASS_IF(is_inside(&p), 1, type, name, fill, __VA_ARGS__)

static int is_stale(const char *path);

/* Opening: only what may change something ------------------------------------------------------------------------- */

/* A file without a name leaves nothing. */
#define WRITES(flags) (((flags) & O_TMPFILE) != O_TMPFILE && ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_APPEND)))

static mode_t mode_of(int flags, va_list rest)
{
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                                                                               \
    int name(const char *path, int flags, ...)                                                                   \
    {                                                                                                            \
        va_list rest;                                                                                            \
        va_start(rest, flags);                                                                                   \
        mode_t mode = mode_of(flags, rest);                                                                      \
        va_end(rest);                                                                                            \
        if (is_stale(path)) {                                                                                    \
            errno = ENOENT;                                                                                      \
            return -1;                                                                                           \
        }                                                                                                        \
        PASS_IF(WRITES(flags) && is_inside(&p), 1, int, name, by_name(&p, AT_FDCWD, path), path, flags, mode);   \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                 \
    int name(int folder, const char *path, int flags, ...)                                                           \
    {                                                                                                                \
        va_list rest;                                                                                                \
        va_start(rest, flags);                                                                                       \
        mode_t mode = mode_of(flags, rest);                                                                          \
        va_end(rest);                                                                                                \
        PASS_IF(WRITES(flags) && is_inside(&p), 1, int, name, by_name(&p, folder, path), folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) { PASS(int, creat, by_name(&p, AT_FDCWD, path), path, mode); }
int creat64(const char *path, mode_t mode) { PASS(int, creat64, by_name(&p, AT_FDCWD, path), path, mode); }

/* Looking: a path that is there and seems absent until its directory is asked anew, as a network file system's cache has it ---- */

static int is_stale(const char *path)
{
    size_t length = strlen(plan.stale);
    return length && !atomic_load(&asked_anew) && strncmp(path, plan.stale, length) == 0 &&
           (path[length] == '/' || path[length] == 0);
}

#define LOOK(name)                                       \
    int name(const char *path, struct stat64 *into)      \
    {                                                    \
        if (is_stale(path)) {                            \
            errno = ENOENT;                              \
            return -1;                                   \
        }                                                \
        return REAL(name)(path, into);                   \
    }
LOOK(stat64)
LOOK(lstat64)

int statx(int folder, const char *path, int flags, unsigned int mask, struct statx *into)
{
    size_t length = strlen(path);
    if (flags & 0x2000 && length && strncmp(path, plan.stale, length) == 0 && plan.stale[length] == '/' &&
        !strchr(plan.stale + length + 1, '/'))
        atomic_store(&asked_anew, 1);
    return REAL(statx)(folder, path, flags, mask, into);
}

/* Reading: many calls, so only when somebody asks for them -------------------------------------------------------- */

#define PASS_READ(name, descriptor, ...)                                                                              \
    if (!plan.reads)                                                                                                  \
        return REAL(name)(__VA_ARGS__);                                                                               \
    PASS_IF(is_inside(&p), 0, ssize_t, name, by_descriptor(&p, descriptor), __VA_ARGS__)

ssize_t read(int fd, void *into, size_t size) { PASS_READ(read, fd, fd, into, size); }
ssize_t readv(int fd, const struct iovec *into, int count) { PASS_READ(readv, fd, fd, into, count); }
ssize_t pread64(int fd, void *into, size_t size, off64_t at) { PASS_READ(pread64, fd, fd, into, size, at); }
ssize_t preadv64v2(int fd, const struct iovec *into, int count, off64_t at, int flags)
{
    PASS_READ(preadv64v2, fd, fd, into, count, at, flags);
}

/* Writing --------------------------------------------------------------------------------------------------------- */

#define PASS_FD(type, name, fd, ...) PASS(type, name, by_descriptor(&p, fd), __VA_ARGS__)

ssize_t write(int fd, const void *from, size_t size) { PASS_FD(ssize_t, write, fd, fd, from, size); }
ssize_t writev(int fd, const struct iovec *from, int count) { PASS_FD(ssize_t, writev, fd, fd, from, count); }
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) { PASS_FD(ssize_t, pwrite, fd, fd, from, size, at); }
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at)
{
    PASS_FD(ssize_t, pwrite64, fd, fd, from, size, at);
}
ssize_t pwritev(int fd, const struct iovec *from, int count, off_t at)
{
    PASS_FD(ssize_t, pwritev, fd, fd, from, count, at);
}
ssize_t pwritev64(int fd, const struct iovec *from, int count, off64_t at)
{
    PASS_FD(ssize_t, pwritev64, fd, fd, from, count, at);
}
ssize_t pwritev2(int fd, const struct iovec *from, int count, off_t at, int flags)
{
    PASS_FD(ssize_t, pwritev2, fd, fd, from, count, at, flags);
}
ssize_t pwritev64v2(int fd, const struct iovec *from, int count, off64_t at, int flags)
{
    PASS_FD(ssize_t, pwritev64v2, fd, fd, from, count, at, flags);
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t size)
{
    PASS_FD(ssize_t, sendfile64, to, to, from, at, size);
}
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size, unsigned int flags)
{
    PASS_FD(ssize_t, copy_file_range, to, from, from_at, to, to_at, size, flags);
}
int ftruncate(int fd, off_t size) { PASS_FD(int, ftruncate, fd, fd, size); }
int ftruncate64(int fd, off64_t size) { PASS_FD(int, ftruncate64, fd, fd, size); }
int truncate64(const char *path, off64_t size) { PASS(int, truncate64, by_name(&p, AT_FDCWD, path), path, size); }
int fchmod(int fd, mode_t mode) { PASS_FD(int, fchmod, fd, fd, mode); }
int futimens(int fd, const struct timespec times[2]) { PASS_FD(int, futimens, fd, fd, times); }

int ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (request != FICLONE_REQUEST)
        return REAL(ioctl)(fd, request, argument);
    PASS_FD(int, ioctl, fd, fd, request, argument);
}

int fallocate(int fd, int mode, off_t at, off_t size) { PASS_FD(int, fallocate, fd, fd, mode, at, size); }

/* The descriptor is gone whatever close(2) says, so one that is to fail is closed all the same. Only what was open for writing. */
int close(int fd)
{
    struct passage p;
    by_descriptor(&p, fd);
    long flags = syscall(SYS_fcntl, fd, F_GETFL);
    int watched = is_inside(&p) && (flags & O_ACCMODE) != O_RDONLY && !(flags & __O_TMPFILE);
    int fails = enter(&p, "close", watched, 1);
    int result = (int)syscall(SYS_close, fd);
    int error = result == -1 ? errno : 0;
    if (fails) {
        result = -1;
        error = plan.error;
    }
    leave(&p, result, error);
    if (result == -1)
        errno = error;
    return result;
}

/* To the disk ----------------------------------------------------------------------------------------------------- */

int fsync(int fd) { PASS_FD(int, fsync, fd, fd); }
int fdatasync(int fd) { PASS_FD(int, fdatasync, fd, fd); }
int syncfs(int fd) { PASS_FD(int, syncfs, fd, fd); }
int sync_file_range(int fd, off64_t at, off64_t size, unsigned int flags)
{
    PASS_FD(int, sync_file_range, fd, fd, at, size, flags);
}

/* Names ----------------------------------------------------------------------------------------------------------- */

#define HERE AT_FDCWD

int link(const char *old, const char *new) { PASS(int, link, by_names(&p, HERE, old, HERE, new), old, new); }
int linkat(int from, const char *old, int to, const char *new, int flags)
{
    PASS(int, linkat, by_names(&p, from, old, to, new), from, old, to, new, flags);
}
int symlink(const char *old, const char *new) { PASS(int, symlink, by_name(&p, HERE, new), old, new); }
int rename(const char *old, const char *new) { PASS(int, rename, by_names(&p, HERE, old, HERE, new), old, new); }
int renameat(int from, const char *old, int to, const char *new)
{
    PASS(int, renameat, by_names(&p, from, old, to, new), from, old, to, new);
}
int renameat2(int from, const char *old, int to, const char *new, unsigned int flags)
{
    PASS(int, renameat2, by_names(&p, from, old, to, new), from, old, to, new, flags);
}
int mkdir(const char *path, mode_t mode) { PASS(int, mkdir, by_name(&p, HERE, path), path, mode); }
int mkdirat(int folder, const char *path, mode_t mode)
{
    PASS(int, mkdirat, by_name(&p, folder, path), folder, path, mode);
}
int unlink(const char *path) { PASS(int, unlink, by_name(&p, HERE, path), path); }
int unlinkat(int folder, const char *path, int flags)
{
    PASS(int, unlinkat, by_name(&p, folder, path), folder, path, flags);
}
int rmdir(const char *path) { PASS(int, rmdir, by_name(&p, HERE, path), path); }
int chmod(const char *path, mode_t mode) { PASS(int, chmod, by_name(&p, HERE, path), path, mode); }
int fchmodat(int folder, const char *path, mode_t mode, int flags)
{
    PASS(int, fchmodat, by_name(&p, folder, path), folder, path, mode, flags);
}
int utimensat(int folder, const char *path, const struct timespec times[2], int flags)
{
    PASS(int, utimensat, by_name(&p, folder, path), folder, path, times, flags);
}

/* To the server: written down always, counted only when named ----------------------------------------------------- */

static struct passage *by_content(struct passage *p, const char *from, size_t size)
{
    size_t length = size < TEXT ? size : TEXT;
    p->path[0] = p->target[0] = 0;
    for (size_t i = 0; i < length; i++)
        p->text[i] = from[i] >= ' ' && from[i] < 127 ? from[i] : ' ';
    p->text[length] = 0;
    return p;
}

#define PASS_SEND(name, from, size, ...) PASS_IF(1, 0, ssize_t, name, by_content(&p, from, size), __VA_ARGS__)

ssize_t send(int fd, const void *from, size_t size, int flags) { PASS_SEND(send, from, size, fd, from, size, flags); }
ssize_t sendto(int fd, const void *from, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
    PASS_SEND(sendto, from, size, fd, from, size, flags, to, length);
}
ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    const struct iovec *first = message->msg_iov;
    PASS_SEND(sendmsg, first->iov_base, first->iov_len, fd, message, flags);
}
