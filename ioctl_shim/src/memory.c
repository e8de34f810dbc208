/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program's own memory, by addresses that may be anything
 *
 * The kernel copies, as it does for an ioctl: a bad pointer is an error and
 * not the end of the program.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include "shim.h"

#define PAGE_SIZE   4096u           /* the smallest there is on x86-64 */
#define PROBES      512u            /* below UIO_MAXIOV */

/* 0, or why not */
static int copy_from(void *to, uint64_t address, size_t size)
{
    uint8_t *bytes = to;

    while (size) {
        struct iovec local = { bytes, size };
        struct iovec remote = { (void *)(uintptr_t)address, size };
        ssize_t done = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);

        if (done <= 0) {
            return done < 0 ? errno : EFAULT;
        }
        bytes += done;
        address += (uint64_t)done;
        size -= (size_t)done;
    }
    return 0;
}

static void complain(const char *function, int error)
{
    static atomic_bool is_told;

    if (error != EFAULT && !atomic_exchange(&is_told, true)) {
        shim_error("%s: %s; it must be allowed, or no command can reach its"
                   " arguments", function, strerror(error));
    }
}

bool memory_read(void *to, uint64_t address, size_t size)
{
    int error = copy_from(to, address, size);

    if (error) {
        complain("process_vm_readv", error);
    }
    return !error;
}

bool memory_peek(char *to, const char *from, size_t size)
{
    int error = copy_from(to, (uintptr_t)from, size);

    if (error && error != EFAULT && from) {
        /* A sandbox forbids it. Those who open files there know their names */
        strncpy(to, from, size);
        return true;
    }
    return !error;
}

bool memory_write(uint64_t address, const void *from, size_t size)
{
    const uint8_t *bytes = from;

    while (size) {
        struct iovec local = { (void *)(uintptr_t)bytes, size };
        struct iovec remote = { (void *)(uintptr_t)address, size };
        ssize_t done = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);

        if (done <= 0) {
            complain("process_vm_writev", done < 0 ? errno : EFAULT);
            return false;
        }
        bytes += done;
        address += (uint64_t)done;
        size -= (size_t)done;
    }
    return true;
}

bool memory_zero(uint64_t address, size_t size)
{
    static const uint8_t zeroes[PAGE_SIZE];

    while (size) {
        size_t piece = size < sizeof(zeroes) ? size : sizeof(zeroes);

        if (!memory_write(address, zeroes, piece)) {
            return false;
        }
        address += piece;
        size -= piece;
    }
    return true;
}

/* A byte of each page tells */
bool memory_is_mapped(uint64_t address, uint64_t size)
{
    struct iovec remote[PROBES];
    uint8_t bytes[PROBES];
    uint64_t last;

    if (!size) {
        return true;
    }
    if (address + size - 1 < address) {
        return false;
    }
    last = address + size - 1;
    for (;;) {
        struct iovec local = { bytes, 0 };
        unsigned count = 0;
        ssize_t done;

        while (count < PROBES) {
            uint64_t next = (address | (PAGE_SIZE - 1)) + 1;

            remote[count].iov_base = (void *)(uintptr_t)address;
            remote[count].iov_len = 1;
            count++;
            if (next == 0 || next > last) {
                address = 0;
                break;
            }
            address = next;
        }
        local.iov_len = count;
        done = process_vm_readv(getpid(), &local, 1, remote, count, 0);
        if (done != (ssize_t)count) {
            complain("process_vm_readv", done < 0 ? errno : EFAULT);
            return false;
        }
        if (!address) {
            return true;
        }
    }
}
