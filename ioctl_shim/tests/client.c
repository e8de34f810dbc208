/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A program that does what it is told, a line at a time: the stand-in for a
 * VMM, for tests of libhcalld-sev.so where there is no KVM
 *
 * It answers each line with one, which begins with "ok" or, if the call has
 * failed, with "errno N". A call that succeeds must leave errno alone, so
 * errno is MARK before each, and "ok" says if it is not any more.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/psp-sev.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define MARK        12345
#define MAX_WORDS   8
#define MAX_THREADS 64

/* What _FORTIFY_SOURCE makes of open() */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dir, const char *path, int flags);
int __openat64_2(int dir, const char *path, int flags);

static char **words;
static unsigned word_count;

static uint64_t number(unsigned index)
{
    return index < word_count ? strtoull(words[index], NULL, 0) : 0;
}

static void *address(unsigned index)
{
    return (void *)(uintptr_t)number(index);
}

static void __attribute__((format(printf, 1, 2))) ok(const char *format, ...)
{
    int seen = errno;
    va_list args;

    printf("ok ");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    if (seen != MARK) {
        printf(" errno became %d", seen);
    }
    printf("\n");
}

/* The result of a call that sets errno */
static void answer(long result)
{
    if (result == -1) {
        printf("errno %d\n", errno);
    } else {
        ok("%ld", result);
    }
}

/* open FUNCTION PATH FLAGS */
static int open_by(const char *function, const char *path, int flags)
{
    if (strcmp(function, "open") == 0) {
        return open(path, flags, 0600);
    } else if (strcmp(function, "open64") == 0) {
        return open64(path, flags, 0600);
    } else if (strcmp(function, "openat") == 0) {
        return openat(AT_FDCWD, path, flags, 0600);
    } else if (strcmp(function, "openat64") == 0) {
        return openat64(AT_FDCWD, path, flags, 0600);
    } else if (strcmp(function, "__open_2") == 0) {
        return __open_2(path, flags);
    } else if (strcmp(function, "__open64_2") == 0) {
        return __open64_2(path, flags);
    } else if (strcmp(function, "__openat_2") == 0) {
        return __openat_2(AT_FDCWD, path, flags);
    } else if (strcmp(function, "__openat64_2") == 0) {
        return __openat64_2(AT_FDCWD, path, flags);
    }
    errno = ENOSYS;
    return -1;
}

static void do_open(void)
{
    answer(open_by(words[1], words[2], (int)number(3)));
}

/* openbad ADDRESS: a path that may not be there */
static void do_openbad(void)
{
    answer(open(address(1), O_RDONLY));
}

/*
 * look FUNCTION PATH [MODE]: what a program sees of a file: its mode, or 0 if
 * it may be accessed
 */
static int look_by_stat(const char *function, const char *path,
                        struct stat *status, struct stat64 *status64)
{
    if (strcmp(function, "stat") == 0) {
        return stat(path, status);
    } else if (strcmp(function, "lstat") == 0) {
        return lstat(path, status);
    } else if (strcmp(function, "fstatat") == 0) {
        return fstatat(AT_FDCWD, path, status, AT_SYMLINK_NOFOLLOW);
    } else if (strcmp(function, "stat64") == 0) {
        return stat64(path, status64);
    } else if (strcmp(function, "lstat64") == 0) {
        return lstat64(path, status64);
    } else if (strcmp(function, "fstatat64") == 0) {
        return fstatat64(AT_FDCWD, path, status64, 0);
    }
    errno = ENOSYS;
    return -1;
}

/* Those that a program cannot be linked with any more; only old ones are */
static int look_by_old_stat(const char *function, const char *path,
                            struct stat *status)
{
    int (*by_path)(int, const char *, void *);
    int (*by_dir)(int, int, const char *, void *, int);
    void *found = dlsym(RTLD_DEFAULT, function);

    if (!found) {
        errno = ENOSYS;
        return -1;
    }
    if (strncmp(function, "__fxstatat", 10) == 0) {
        memcpy(&by_dir, &found, sizeof(found));
        return by_dir(1, AT_FDCWD, path, status, 0);
    }
    memcpy(&by_path, &found, sizeof(found));
    return by_path(1, path, status);
}

static int look_by_access(const char *function, const char *path, int mode)
{
    if (strcmp(function, "access") == 0) {
        return access(path, mode);
    } else if (strcmp(function, "euidaccess") == 0) {
        return euidaccess(path, mode);
    } else if (strcmp(function, "eaccess") == 0) {
        return eaccess(path, mode);
    } else if (strcmp(function, "faccessat") == 0) {
        return faccessat(AT_FDCWD, path, mode, 0);
    }
    errno = ENOSYS;
    return -1;
}

static void do_look(void)
{
    union {
        struct stat as_stat;
        struct stat64 as_stat64;
        struct statx as_statx;
    } status;
    const char *function = words[1], *path = words[2];
    int result;

    if (strstr(function, "access")) {
        answer(look_by_access(function, path, (int)number(3)));
        return;
    }
    if (strcmp(function, "statx") == 0) {
        result = statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &status.as_statx);
        answer(result < 0 ? result : status.as_statx.stx_mode);
        return;
    }
    if (strncmp(function, "__", 2) == 0) {
        result = look_by_old_stat(function, path, &status.as_stat);
    } else {
        result = look_by_stat(function, path, &status.as_stat,
                              &status.as_stat64);
    }
    answer(result < 0 ? result : (long)status.as_stat.st_mode);
}

/* statbad FD ADDRESS: the descriptor, by a path that may not be there */
static void do_statbad(void)
{
    struct statx status;

    answer(statx((int)number(1), address(2), AT_EMPTY_PATH, 0, &status));
}

/* deny SYSCALL ERRNO: as a sandbox or an older kernel does from now on */
static void do_deny(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number(1), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)number(2)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {
        .len = sizeof(filter) / sizeof(filter[0]), .filter = filter,
    };
    int result = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);

    if (result == 0) {
        result = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    }
    answer(result);
}

static void on_signal(int signal)
{
    (void)signal;
}

/* A signal comes that often, or not any more */
static void signal_every(long us)
{
    struct sigaction action = { .sa_handler = on_signal };
    struct itimerval timer = {
        .it_interval = { us / 1000000, us % 1000000 },
        .it_value = { us / 1000000, us % 1000000 },
    };

    if (sigaction(SIGALRM, &action, NULL) < 0 ||
        setitimer(ITIMER_REAL, &timer, NULL) < 0) {
        abort();
    }
}

/* ioctl FD REQUEST ARGUMENT */
static void do_ioctl(void)
{
    answer(ioctl((int)number(1), number(2), address(3)));
}

/* interrupted FD REQUEST ARGUMENT MICROSECONDS: the same under signals */
static void do_interrupted(void)
{
    int result, error;

    signal_every((long)number(4));
    errno = MARK;
    result = ioctl((int)number(1), number(2), address(3));
    error = errno;
    signal_every(0);
    errno = error;
    answer(result);
}

/* COUNT threads that do the same TIMES, each with arguments of its own */
struct worker {
    pthread_t thread;
    pthread_barrier_t *start;
    unsigned (*once)(const struct worker *worker);
    unsigned times;
    size_t offset;
    unsigned good;
};

static void *work(void *opaque)
{
    struct worker *worker = opaque;
    unsigned i;

    pthread_barrier_wait(worker->start);
    for (i = 0; i < worker->times; i++) {
        worker->good += worker->once(worker);
    }
    return NULL;
}

/* What is done says how often it has gone well; STEP is between arguments */
static void run_workers(unsigned (*once)(const struct worker *worker))
{
    struct worker workers[MAX_THREADS];
    unsigned i, good = 0, count = (unsigned)number(1);
    pthread_barrier_t start;

    if (count > MAX_THREADS) {
        count = MAX_THREADS;
    }
    if (pthread_barrier_init(&start, NULL, count)) {
        abort();
    }
    for (i = 0; i < count; i++) {
        workers[i] = (struct worker) {
            .start = &start, .once = once, .times = (unsigned)number(2),
            .offset = i * number(6),
        };
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) {
            abort();
        }
    }
    for (i = 0; i < count; i++) {
        pthread_join(workers[i].thread, NULL);
        good += workers[i].good;
    }
    pthread_barrier_destroy(&start);
    errno = MARK;
    ok("%u", good);
}

/*
 * threads COUNT TIMES FD REQUEST ARGUMENT STEP: thread n has its argument at
 * ARGUMENT + n * STEP
 */
static unsigned ioctl_once(const struct worker *worker)
{
    return ioctl((int)number(3), number(4),
                 (char *)address(5) + worker->offset) == 0;
}

static void do_threads(void)
{
    run_workers(ioctl_once);
}

/*
 * churn COUNT TIMES FD PLATFORM VM STEP: each thread opens, copies and closes
 * all there is, copies the VM that is FD too, and gives a command to a device
 * and to a VM, whose arguments are STEP apart; the answer is how many commands
 * have gone well
 */
static unsigned churn_once(const struct worker *worker)
{
    int device = open("/dev/sev", O_RDWR | O_CLOEXEC);
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    int copy = fcntl(device, F_DUPFD_CLOEXEC, 100);
    int other = dup(vm);
    int shared = dup((int)number(3));
    unsigned good;
    int vcpu;

    close(device);
    close(kvm);
    good = ioctl(copy, SEV_ISSUE_CMD, (char *)address(4) + worker->offset) == 0;
    good += ioctl(other, KVM_MEMORY_ENCRYPT_OP,
                  (char *)address(5) + worker->offset) == 0;
    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    close(vm);
    dup2(copy, vcpu);
    close(vcpu);
    close(copy);
    close(other);
    close(ioctl(shared, KVM_CREATE_VCPU, 0));
    close(shared);
    return good;
}

static void do_churn(void)
{
    run_workers(churn_once);
}

/*
 * aside FD REQUEST ARGUMENT: an ioctl in a thread, while other lines are done;
 * with REQUEST 0, a close(). join: what came of it
 */
struct aside {
    pthread_t thread;
    int fd;
    unsigned long request;
    void *argument;
    int result;
    int error;
};

static struct aside aside;

static void *work_aside(void *unused)
{
    (void)unused;
    errno = MARK;
    aside.result = aside.request ?
                   ioctl(aside.fd, aside.request, aside.argument) :
                   close(aside.fd);
    aside.error = errno;
    return NULL;
}

static void do_aside(void)
{
    aside.fd = (int)number(1);
    aside.request = number(2);
    aside.argument = address(3);
    if (pthread_create(&aside.thread, NULL, work_aside, NULL)) {
        abort();
    }
    errno = MARK;
    ok("0");
}

static void do_join(void)
{
    pthread_join(aside.thread, NULL);
    errno = aside.error;
    answer(aside.result);
}

/* Descriptors */

static void do_close(void)
{
    answer(close((int)number(1)));
}

static void do_dup(void)
{
    answer(dup((int)number(1)));
}

static void do_dup2(void)
{
    answer(dup2((int)number(1), (int)number(2)));
}

static void do_dup3(void)
{
    answer(dup3((int)number(1), (int)number(2), (int)number(3)));
}

/* fcntl FD COMMAND ARGUMENT */
static void do_fcntl(void)
{
    answer(fcntl((int)number(1), (int)number(2), number(3)));
}

static void do_close_range(void)
{
    answer(close_range((unsigned)number(1), (unsigned)number(2),
                       (int)number(3)));
}

static void do_closefrom(void)
{
    closefrom((int)number(1));
    ok("0");
}

/* rawclose FD: as code does that does not go through libc */
static void do_rawclose(void)
{
    answer(syscall(SYS_close, (int)number(1)));
}

/* rawdup FD: the same; the library does not know the copy */
static void do_rawdup(void)
{
    answer(syscall(SYS_dup, (int)number(1)));
}

/* Memory */

/* map SIZE PROTECTION [AT] */
static void do_map(void)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    void *p = mmap(address(3), number(1), (int)number(2),
                   flags | (number(3) ? MAP_FIXED_NOREPLACE : 0), -1, 0);

    if (p == MAP_FAILED) {
        answer(-1);
    } else {
        ok("0x%" PRIxPTR, (uintptr_t)p);
    }
}

static void do_protect(void)
{
    answer(mprotect(address(1), number(2), (int)number(3)));
}

static void do_unmap(void)
{
    answer(munmap(address(1), number(2)));
}

static unsigned nibble(char c)
{
    return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'a' + 10);
}

/* put ADDRESS HEXADECIMAL */
static void do_put(void)
{
    uint8_t *p = address(1);
    const char *hex;

    for (hex = words[2]; hex[0] && hex[1]; hex += 2) {
        *p++ = (uint8_t)(nibble(hex[0]) << 4 | nibble(hex[1]));
    }
    ok("0");
}

/* get ADDRESS SIZE */
static void do_get(void)
{
    const uint8_t *p = address(1);
    uint64_t i, size = number(2);

    printf("ok ");
    for (i = 0; i < size; i++) {
        printf("%02x", p[i]);
    }
    printf("\n");
}

/* Processes */

/*
 * fork: the child does what is in the lines that follow, up to `exit N`; then
 * its parent answers with N and goes on.
 */
static void do_fork(void)
{
    pid_t child;
    int status;

    fflush(stdout);
    child = fork();
    if (child < 0) {
        answer(-1);
        return;
    }
    if (child == 0) {
        ok("0");
        return;
    }
    if (waitpid(child, &status, 0) == child) {
        errno = MARK;
        ok("%d", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    } else {
        answer(-1);
    }
}

/* vfork FD: what a child that shares our memory closes is still open here */
static void do_vfork(void)
{
    /* The child uses our stack */
    volatile int fd = (int)number(1);
    int status;
    pid_t child = vfork();

    if (child == 0) {
        close(fd);
        _exit(0);
    }
    if (child > 0 && waitpid(child, &status, 0) == child) {
        errno = MARK;
        ok("%d", WEXITSTATUS(status));
    } else {
        answer(-1);
    }
}

/* vforkopen FUNCTION PATH: the descriptor that such a child gets */
static void do_vforkopen(void)
{
    int status;
    pid_t child = vfork();

    if (child == 0) {
        _exit(open_by(words[1], words[2], O_RDWR));
    }
    if (child > 0 && waitpid(child, &status, 0) == child) {
        errno = MARK;
        ok("%d", WEXITSTATUS(status));
    } else {
        answer(-1);
    }
}

static const struct {
    const char *name;
    unsigned words;
    void (*run)(void);
} commands[] = {
    { "open", 4, do_open },
    { "openbad", 2, do_openbad },
    { "look", 3, do_look },
    { "statbad", 3, do_statbad },
    { "deny", 3, do_deny },
    { "ioctl", 4, do_ioctl },
    { "interrupted", 5, do_interrupted },
    { "threads", 7, do_threads },
    { "churn", 7, do_churn },
    { "aside", 4, do_aside },
    { "join", 1, do_join },
    { "close", 2, do_close },
    { "dup", 2, do_dup },
    { "dup2", 3, do_dup2 },
    { "dup3", 4, do_dup3 },
    { "fcntl", 4, do_fcntl },
    { "close_range", 4, do_close_range },
    { "closefrom", 2, do_closefrom },
    { "rawclose", 2, do_rawclose },
    { "rawdup", 2, do_rawdup },
    { "map", 3, do_map },
    { "protect", 4, do_protect },
    { "unmap", 3, do_unmap },
    { "put", 3, do_put },
    { "get", 3, do_get },
    { "fork", 1, do_fork },
    { "vfork", 2, do_vfork },
    { "vforkopen", 3, do_vforkopen },
};

static void run_line(char *line)
{
    char *list[MAX_WORDS], *rest = NULL, *word;
    unsigned i;

    words = list;
    word_count = 0;
    for (word = strtok_r(line, " \n", &rest); word && word_count < MAX_WORDS;
         word = strtok_r(NULL, " \n", &rest)) {
        list[word_count++] = word;
    }
    if (!word_count) {
        return;
    }
    if (strcmp(list[0], "exit") == 0) {
        exit((int)number(1));
    }
    for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(list[0], commands[i].name) == 0 &&
            word_count >= commands[i].words) {
            errno = MARK;
            commands[i].run();
            return;
        }
    }
    printf("unknown %s\n", list[0]);
}

int main(void)
{
    char *line = NULL;
    size_t room = 0;

    /* A child must not have read lines that are its parent's */
    setvbuf(stdin, NULL, _IONBF, 0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (getline(&line, &room, stdin) > 0) {
        run_line(line);
        fflush(stdout);
    }
    free(line);
    return 0;
}
