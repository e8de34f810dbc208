// SPDX-License-Identifier: Apache-2.0
/*
 * The C side of the measurements: a client that sends frames again and again and times
 * the answers, and an echo server, the floor of any daemon.
 *
 *   pinger ping FD COUNT PAUSE_US < FRAMES   prints for each: min p50 p99 (nanoseconds)
 *   pinger echo FD
 *
 * FRAMES are CALL frames, sent in turn, each of them COUNT times; their sequence numbers
 * (a big-endian u64 at offset 24) grow with each send, from the one in the first on. An answer is as long as its header says (a
 * big-endian u32 at offset 8), so that the echo's own frame counts as one too.
 */
#include <endian.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 32, SIZE_AT = 8, SEQ_AT = 24, GREATEST = 1 << 20, MOST_FRAMES = 8 };

static void die(const char *what)
{
    fprintf(stderr, "pinger: %s: %s\n", what, errno ? strerror(errno) : "end of file");
    exit(1);
}

static void read_all(int fd, uint8_t *to, size_t size)
{
    while (size) {
        ssize_t got = read(fd, to, size);
        if (got <= 0) {
            die("read");
        }
        to += got;
        size -= got;
    }
}

static void write_all(int fd, const uint8_t *from, size_t size)
{
    while (size) {
        ssize_t put = write(fd, from, size);
        if (put < 0) {
            die("write");
        }
        from += put;
        size -= put;
    }
}

static size_t read_frame(int fd, uint8_t *frame)
{
    uint32_t size;
    ssize_t got = read(fd, frame, GREATEST);

    if (got <= 0) {
        return 0;
    }
    if (got < HEADER) {
        read_all(fd, frame + got, HEADER - got);
        got = HEADER;
    }
    memcpy(&size, frame + SIZE_AT, sizeof(size));
    size = be32toh(size);
    if (size < HEADER || size > GREATEST) {
        die("frame size");
    }
    if ((uint32_t)got < size) {
        read_all(fd, frame + got, size - got);
    }
    return size;
}

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static int ping(int fd, long count, long pause_us)
{
    static uint8_t frames[GREATEST], answer[GREATEST];
    size_t all = fread(frames, 1, sizeof(frames), stdin), at, kinds, kind;
    size_t starts[MOST_FRAMES + 1] = { 0 };
    struct timespec pause = { .tv_nsec = pause_us * 1000 };
    int64_t *took;
    uint64_t seq;

    for (at = 0, kinds = 0; at < all; starts[++kinds] = at) {
        uint32_t size;

        if (kinds == MOST_FRAMES || all - at < HEADER) {
            die("frames");
        }
        memcpy(&size, frames + at + SIZE_AT, sizeof(size));
        size = be32toh(size);
        if (size < HEADER || size > all - at) {
            die("frame size");
        }
        at += size;
    }
    took = calloc(count * kinds, sizeof(*took));
    if (!kinds || !took) {
        die("frames");
    }
    memcpy(&seq, frames + SEQ_AT, sizeof(seq));
    seq = be64toh(seq);
    for (long i = 0; i < count; i++) {
        for (kind = 0; kind < kinds; kind++) {
            uint8_t *frame = frames + starts[kind];
            uint64_t sent = htobe64(++seq);
            int64_t start;

            memcpy(frame + SEQ_AT, &sent, sizeof(sent));
            if (pause_us) {
                nanosleep(&pause, NULL);
            }
            start = now_ns();
            write_all(fd, frame, starts[kind + 1] - starts[kind]);
            if (!read_frame(fd, answer)) {
                die("answer");
            }
            took[kind * count + i] = now_ns() - start;
        }
    }
    for (kind = 0; kind < kinds; kind++) {
        int64_t *its = took + kind * count;

        qsort(its, count, sizeof(*its), by_value);
        printf("%lld %lld %lld\n", (long long)its[0], (long long)its[count / 2],
               (long long)its[count * 99 / 100]);
    }
    free(took);
    return 0;
}

static int echo(int fd)
{
    static uint8_t frame[GREATEST];
    size_t size;

    while ((size = read_frame(fd, frame))) {
        write_all(fd, frame, size);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 5 && !strcmp(argv[1], "ping")) {
        return ping(atoi(argv[2]), atol(argv[3]), atol(argv[4]));
    }
    if (argc == 3 && !strcmp(argv[1], "echo")) {
        return echo(atoi(argv[2]));
    }
    fprintf(stderr, "usage: pinger ping FD COUNT PAUSE_US < FRAMES | pinger echo FD\n");
    return 2;
}
